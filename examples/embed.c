/* Image generation in a program of your own:
 *     cc -O2 -fopenmp embed.c -lm -o embed && ./embed network.pth bank.pth vae.pt latents_stats.pt > picture.ppm */
#define GMEM_IMPLEMENTATION
#include "gmem.h"

#include <stdio.h>

int main(int argc, char **argv) {
    static gmem_generate_desc desc; /* static: all zero, and zero means the default */
    static gmem_image image;
    static gmem_error error;
    gmem_context *context = NULL;
    if (argc != 5) return 2;
    desc.network = argv[1];
    desc.bank = argv[2];
    desc.autoencoder = argv[3];
    desc.latent_stats = argv[4];
    desc.seed = 1;
    if (gmem_context_create(NULL, &context, &error) || gmem_generate(context, &desc, &image, &error)) {
        fprintf(stderr, "%s: %s\n", error.path, error.message);
        gmem_context_destroy(context);
        return 1;
    }
    printf("P6 %d %d 255\n", (int)image.width, (int)image.height);
    fwrite(image.pixels, 3, (size_t)(image.width * image.height), stdout);
    gmem_image_free(context, &image);
    gmem_context_destroy(context);
    return 0;
}
