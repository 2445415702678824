/* The error that bf16 and int8 may cost: 64 pictures of the default model, drawn from the same noise as in f32. An
 * argument sets the number of steps; the published 50 take a minute. */
#include "../src/api.h"

#include "check.h"

enum { PICTURES = 64 };

typedef struct bar {
    gmem_compute compute;
    const char *name;
    double psnr; /* dB, at least */
} bar;

static const bar bars[] = {{GMEM_COMPUTE_BF16, "bf16", 45}, {GMEM_COMPUTE_INT8, "int8", 35}};

static gmem_image draw(gmem_compute compute, int steps) {
    gmem_context_desc context_desc;
    gmem_generate_desc desc;
    gmem_context *context = NULL;
    gmem_image image;
    memset(&context_desc, 0, sizeof context_desc);
    memset(&desc, 0, sizeof desc);
    memset(&image, 0, sizeof image);
    context_desc.compute = compute;
    desc.network = "examples/model/network.safetensors";
    desc.bank = "examples/model/bank.safetensors";
    desc.autoencoder = "examples/model/autoencoder.safetensors";
    desc.latent_stats = "examples/model/latents_stats.safetensors";
    desc.count = PICTURES;
    desc.seed = 7;
    desc.sampler.steps = steps;
    if (!CHECK_OK(gmem_context_create(&context_desc, &context, NULL))) return image;
    CHECK_INT(gmem_context_compute(context), compute);
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    printf("%s on %s: ", gmem_context_kernels(context), gmem_context_backend(context));
    gmem_context_destroy(context); /* the C library's memory outlives it */
    return image;
}

static void drop(gmem_image *image) {
    gmem_context *context = NULL;
    CHECK_OK(gmem_context_create(NULL, &context, NULL));
    gmem_image_free(context, image);
    gmem_context_destroy(context);
}

static double psnr(const gmem_image *a, const gmem_image *b) {
    const int64_t bytes = a->count * a->height * a->width * 3;
    double squares = 0;
    for (int64_t i = 0; i < bytes; i++) {
        const double difference = (double)a->pixels[i] - (double)b->pixels[i];
        squares += difference * difference;
    }
    return 10 * log10(255.0 * 255.0 * (double)bytes / squares);
}

int main(int argc, char **argv) {
    const int steps = argc > 1 ? atoi(argv[1]) : 13;
    gmem_image exact = draw(GMEM_COMPUTE_F32, steps);
    printf("the reference, %d steps\n", steps);
    for (int i = 0; i < 2 && exact.pixels; i++) {
        gmem_image image = draw(bars[i].compute, steps);
        if (!CHECK(image.pixels != NULL)) break;
        const double found = psnr(&exact, &image);
        printf("%s, PSNR %.1f dB (bar %.0f)\n", bars[i].name, found, bars[i].psnr);
        CHECK(found >= bars[i].psnr && found < 100); /* not the same arithmetic either */
        drop(&image);
    }
    drop(&exact);
    return check_report();
}
