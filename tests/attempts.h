/* Whole models run on a device under test, and checked: what tests of its limits do again and again. */
#ifndef ATTEMPTS_H
#define ATTEMPTS_H

#include "../src/api.h"

#include "failing_opencl.h"
#include "golden.h"
#include "reference.h"

#define MODEL_BAR 1e-5

static gmem_context *context; /* where they run */

static inline float *attempt_floats(int64_t count) { return vector_make(count, 0.3f, 1); }

/* Computes something with a model, and checks what comes out. */
typedef gmem_status (*attempt)(const char *name, gmem_error *error);

/* The recorded pictures, to latents and back. */
static inline gmem_status try_autoencoder(const char *name, gmem_error *error) {
    gmem_file *io = golden_open(context, name);
    golden_network network = golden_procedural(context, io, NULL);
    const int64_t count = golden_dim(io, "image", 0), height = golden_dim(io, "image", 2);
    const int64_t width = golden_dim(io, "image", 3), factor = height / golden_dim(io, "mean", 2);
    int64_t pixels = 0, latents = 0;
    float *image = golden_f32(io, "image", &pixels), *decoded = golden_f32(io, "decoded", NULL);
    float *mean = golden_f32(io, "mean", &latents), *logvar = golden_f32(io, "logvar", NULL);
    float *out = attempt_floats(pixels), *out_mean = attempt_floats(latents), *out_logvar = attempt_floats(latents);
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    memset(&desc, 0, sizeof desc);
    desc.file = network.file;
    gmem_status status = gmem_autoencoder_open(context, &desc, &ae, error);
    if (status == GMEM_OK) status = gmem_encode(ae, count, height, width, image, out_mean, out_logvar, error);
    if (status == GMEM_OK) status = gmem_decode(ae, count, height / factor, width / factor, mean, out, error);
    if (status == GMEM_OK) {
        CHECK_CLOSE(name, out_mean, mean, latents, MODEL_BAR);
        CHECK_CLOSE(name, out_logvar, logvar, latents, MODEL_BAR);
        CHECK_CLOSE(name, out, decoded, pixels, MODEL_BAR);
    }
    gmem_autoencoder_close(ae);
    golden_network_close(&network);
    gmem_file_close(io);
    free(image);
    free(decoded);
    free(mean);
    free(logvar);
    free(out);
    free(out_mean);
    free(out_logvar);
    return status;
}

/* The recorded picture's features. */
static inline gmem_status try_encoder(const char *name, gmem_error *error) {
    gmem_file *io = golden_open(context, name);
    golden_network network = golden_procedural(context, io, NULL);
    int64_t width = 0, count = 0;
    float *image = golden_f32(io, "image", NULL), *cls = golden_f32(io, "cls", &width);
    float *patch = golden_f32(io, "patch", &count), *out_cls = attempt_floats(width), *out = attempt_floats(count);
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    memset(&desc, 0, sizeof desc);
    desc.file = network.file;
    gmem_status status = gmem_image_encoder_open(context, &desc, &encoder, error);
    if (status == GMEM_OK) status = gmem_image_features(encoder, 1, 256, 256, image, out_cls, out, error);
    if (status == GMEM_OK) {
        CHECK_CLOSE(name, out_cls, cls, width, MODEL_BAR);
        CHECK_CLOSE(name, out, patch, count, MODEL_BAR);
    }
    gmem_image_encoder_close(encoder);
    golden_network_close(&network);
    gmem_file_close(io);
    free(image);
    free(cls);
    free(patch);
    free(out_cls);
    free(out);
    return status;
}

/* The recorded pass. */
static inline gmem_status try_network(const char *name, gmem_error *error) {
    gmem_file *io = golden_open(context, name);
    golden_network procedural = golden_procedural(context, io, NULL);
    int64_t count = 0, batch = 0;
    float *x = golden_f32(io, "x", &count), *t = golden_f32(io, "t", &batch), *c = golden_f32(io, "c", NULL);
    float *y = golden_f32(io, "y", NULL), *out = attempt_floats(count);
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_pass *pass = NULL;
    memset(&desc, 0, sizeof desc);
    desc.file = procedural.file;
    gmem_status status = gmem_network_open(context, &desc, &network, error);
    if (status == GMEM_OK) status = gmem_pass_create(network, batch, &pass, error);
    if (status == GMEM_OK) status = gmem_pass_run(pass, batch, x, t, c, NULL, out, error);
    if (status == GMEM_OK) CHECK_CLOSE(name, out, y, count, MODEL_BAR);
    gmem_pass_destroy(pass);
    gmem_network_close(network);
    golden_network_close(&procedural);
    gmem_file_close(io);
    free(x);
    free(t);
    free(c);
    free(y);
    free(out);
    return status;
}

static int drawn = 2; /* pictures at once */

/* The default model's pictures, from the seed to the pixels on the device: like the CPU's. */
static inline gmem_status draw(gmem_context *where, gmem_image *image, gmem_error *error) {
    gmem_generate_desc desc;
    memset(&desc, 0, sizeof desc);
    memset(image, 0, sizeof *image);
    desc.network = "examples/model/network.safetensors";
    desc.bank = "examples/model/bank.safetensors";
    desc.autoencoder = "examples/model/autoencoder.safetensors";
    desc.latent_stats = "examples/model/latents_stats.safetensors";
    desc.count = drawn;
    desc.sampler.steps = 3;
    desc.seed = 7;
    return gmem_generate(where, &desc, image, error);
}

static gmem_image cpu_image; /* what `draw` gives on a CPU */

static inline gmem_status try_default_model(const char *name, gmem_error *error) {
    gmem_image image;
    int64_t worst = 0;
    const gmem_status status = draw(context, &image, error);
    if (status != GMEM_OK) return status;
    for (int64_t i = 0; i < image.count * image.height * image.width * 3; i++) {
        const int64_t difference = llabs((long long)image.pixels[i] - (long long)cpu_image.pixels[i]);
        worst = gmem__max(worst, difference);
    }
    if (!CHECK(worst <= 1)) printf("  %s: values differ by %lld\n", name, (long long)worst);
    gmem_image_free(context, &image);
    return GMEM_OK;
}

#endif /* ATTEMPTS_H */
