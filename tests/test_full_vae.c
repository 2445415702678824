/* The VA-VAE at its published size, with procedural weights: decoding and encoding one picture of 256 x 256. */
#include "check.h"
#include "golden.h"

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    gmem_file *io = golden_open(context, "full_vavae.io.safetensors");
    golden_network network = golden_procedural(context, io, NULL);
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    memset(&desc, 0, sizeof desc);
    desc.file = network.file;
    if (!CHECK_OK(gmem_autoencoder_open(context, &desc, &ae, NULL))) return check_report();
    const gmem_autoencoder_info *info = gmem_autoencoder_get_info(ae);
    CHECK_INT(info->latent_channels, 32);
    CHECK_INT(info->factor, 16);
    CHECK_INT(info->family, GMEM_AE_VAVAE);

    int64_t pixels = 0, latents = 0;
    float *z = golden_f32(io, "z", &latents), *decoded = golden_f32(io, "decoded", &pixels);
    float *mean = golden_f32(io, "encoded_mean", NULL), *logvar = golden_f32(io, "encoded_logvar", NULL);
    int64_t *expected = golden_i64(io, "decoded_u8", NULL);
    float *image = (float *)malloc((size_t)pixels * sizeof *image);
    float *out = (float *)malloc((size_t)latents * sizeof *out),
          *out2 = (float *)malloc((size_t)latents * sizeof *out2);
    uint8_t *u8 = (uint8_t *)malloc((size_t)pixels);
    CHECK_OK(gmem_decode(ae, 1, 16, 16, z, image, NULL));
    CHECK_CLOSE("decoded", image, decoded, pixels, 5e-4); /* recorded in f16, 2e-4 off */

    /* decoded_u8 comes from the f32 picture: a value off by one must lie within the decoding's error of an integer */
    int64_t wrong = 0, area = 256 * 256;
    gmem_pixels(image, 1, 256, 256, u8);
    for (int64_t i = 0; i < pixels; i++) {
        double value = 127.5 * (double)image[i % 3 * area + i / 3] + 128;
        int near_integer = fabs(value - floor(value + 0.5)) < 2e-3;
        if (u8[i] != expected[i]) wrong += !(near_integer && llabs((long long)u8[i] - (long long)expected[i]) == 1);
    }
    CHECK_INT(wrong, 0);

    for (int64_t i = 0; i < pixels; i++) {
        image[i] = image[i] < -1 ? -1 : image[i] > 1 ? 1 : image[i];
    }
    CHECK_OK(gmem_encode(ae, 1, 256, 256, image, out, out2, NULL));
    CHECK_CLOSE("mean", out, mean, latents, 1e-5);
    CHECK_CLOSE("logvar", out2, logvar, latents, 1e-5);

    gmem_autoencoder_close(ae);
    golden_network_close(&network);
    gmem_file_close(io);
    gmem_context_destroy(context);
    free(z);
    free(decoded);
    free(mean);
    free(logvar);
    free(expected);
    free(image);
    free(out);
    free(out2);
    free(u8);
    return check_report();
}
