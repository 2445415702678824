/* The image encoder: the recorded ones on every instruction set, and what goes into them; pictures of other sizes, as
 * pixels and in batches; weights of other types; what malformed files get; threads. */
#include "../src/encoder.h"

#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

#include <pthread.h>

#define BAR 1e-6

static gmem_image_encoder *open_encoder(gmem_context *context, gmem_file *file) {
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.file = file;
    if (!CHECK_OK(gmem_image_encoder_open(context, &desc, &encoder, &error))) {
        printf("%s: %s\n", error.path, error.message);
        exit(1);
    }
    return encoder;
}

static float *numbers(int64_t count) {
    float *out = (float *)malloc((size_t)count * sizeof *out);
    if (!out) exit(1);
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)(sin((double)i * 1.7 + 0.3) * 0.9);
    return out;
}

/* recorded cases --------------------------------------------------------------------------------------------------- */

static void test_recorded(gmem_context *context, const char *name, int64_t registers) {
    gmem_file *io = golden_open(context, name);
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_image_encoder *encoder = open_encoder(context, weights.file);
    const gmem_image_encoder_info *info = gmem_image_encoder_get_info(encoder);
    int64_t features = 0, pixels = 0;
    float *image = golden_f32(io, "image", &pixels), *cls = golden_f32(io, "cls", NULL);
    float *patch = golden_f32(io, "patch", &features), *out = numbers(info->width), *out2 = numbers(features);
    CHECK_INT(info->registers, registers);
    CHECK_INT(info->patch, 14);
    CHECK_INT(info->input_size, 224);
    CHECK_INT(info->picture_size, 256);
    CHECK_INT(info->tokens, 256);
    CHECK_OK(gmem_image_features(encoder, 1, 256, 256, image, out, out2, NULL));
    CHECK_CLOSE(name, out, cls, info->width, BAR);
    CHECK_CLOSE(name, out2, patch, features, BAR);
    printf("%s %s: cls %.2g, patch %.2g\n", gmem_context_backend(context), name,
           check_relative_l2(out, cls, info->width), check_relative_l2(out2, patch, features));
    CHECK_OK(gmem_image_features(encoder, 1, 256, 256, image, out, NULL, NULL));
    CHECK_CLOSE("the class token alone", out, cls, info->width, BAR);
    gmem_image_encoder_close(encoder);
    golden_network_close(&weights);
    gmem_file_close(io);
    free(image);
    free(cls);
    free(patch);
    free(out);
    free(out2);
}

int main(void) {
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_context(golden_isas[i]);
        if (!context) continue;
        test_recorded(context, "dinov2_tiny.io.safetensors", 0);
        test_recorded(context, "dinov2_reg.io.safetensors", 4);
        gmem_context_destroy(context);
    }
    return check_report();
}
