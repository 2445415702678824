/* The autoencoder: every recorded one on every instruction set, the naming schemes, weights of other types, and what
 * malformed files get. */
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

#define BAR 1e-5

static gmem_autoencoder *open_ae(gmem_context *context, gmem_file *file) {
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.file = file;
    if (!CHECK_OK(gmem_autoencoder_open(context, &desc, &ae, &error))) {
        printf("%s: %s\n", error.path, error.message);
        exit(1);
    }
    return ae;
}

static float *numbers(int64_t count) {
    float *out = (float *)malloc((size_t)count * sizeof *out);
    if (!out) exit(1);
    for (int64_t i = 0; i < count; i++) {
        out[i] = (float)(sin((double)i * 1.7 + 0.3) * 0.9);
    }
    return out;
}

/* recorded cases --------------------------------------------------------------------------------------------------- */

static void check_pixels(const float *decoded, const gmem_file *io, int64_t count, int64_t height, int64_t width) {
    int64_t bytes = 0;
    int64_t *expected = golden_i64(io, "decoded_u8", &bytes);
    uint8_t *pixels = (uint8_t *)malloc((size_t)bytes);
    gmem_pixels(decoded, count, height, width, pixels);
    int64_t wrong = 0;
    for (int64_t i = 0; i < bytes; i++) {
        if (pixels[i] == expected[i]) continue;
        /* one off is right where the value lies within the decoding's error of an integer */
        int64_t image = i / (height * width * 3), at = i / 3 % (height * width), c = i % 3;
        double value = 127.5 * (double)decoded[(image * 3 + c) * height * width + at] + 128;
        int near_integer = fabs(value - floor(value + 0.5)) < 1e-3;
        wrong += !(near_integer && llabs((long long)pixels[i] - (long long)expected[i]) == 1);
    }
    CHECK_INT(wrong, 0);
    free(pixels);
    free(expected);
}

static void check_recorded(const gmem_autoencoder *ae, const gmem_file *io, const char *label) {
    const gmem_autoencoder_info *info = gmem_autoencoder_get_info(ae);
    int64_t count = golden_dim(io, "image", 0), height = golden_dim(io, "image", 2), width = golden_dim(io, "image", 3);
    int64_t pixels = 0, latents = 0;
    float *image = golden_f32(io, "image", &pixels), *decoded = golden_f32(io, "decoded", NULL);
    float *mean = golden_f32(io, "mean", &latents), *logvar = golden_f32(io, "logvar", NULL);
    float *out = (float *)malloc((size_t)pixels * sizeof *out), *out2 = (float *)malloc((size_t)latents * sizeof *out);
    CHECK_INT(info->latent_channels, golden_dim(io, "mean", 1));
    CHECK_INT(info->factor, height / golden_dim(io, "mean", 2));
    CHECK(info->has_encoder);
    CHECK_OK(gmem_encode(ae, count, height, width, image, out, out2, NULL));
    CHECK_CLOSE(label, out, mean, latents, BAR);
    CHECK_CLOSE(label, out2, logvar, latents, BAR);
    CHECK_OK(gmem_decode(ae, count, height / info->factor, width / info->factor, mean, out, NULL));
    CHECK_CLOSE(label, out, decoded, pixels, BAR);
    check_pixels(out, io, count, height, width);
    check_pixels(decoded, io, count, height, width);
    free(image);
    free(decoded);
    free(mean);
    free(logvar);
    free(out);
    free(out2);
}

/* The weights come from the recorded list of tensors, or from a file. */
static void test_case(gmem_context *context, const char *io_name, const char *weights, gmem_autoencoder_family family,
                      double multiplier) {
    gmem_file *io = golden_open(context, io_name);
    gmem_autoencoder *ae = NULL;
    if (weights) {
        char path[256];
        gmem_autoencoder_desc desc;
        memset(&desc, 0, sizeof desc);
        snprintf(path, sizeof path, "tests/golden/%s", weights);
        desc.path = path;
        CHECK_OK(gmem_autoencoder_open(context, &desc, &ae, NULL));
        if (ae) check_recorded(ae, io, weights);
    } else {
        golden_network network = golden_procedural(context, io, NULL);
        ae = open_ae(context, network.file);
        const gmem_autoencoder_info *info = gmem_autoencoder_get_info(ae);
        int64_t parameters = 0;
        for (int64_t i = 0; i < gmem_file_tensor_count(network.file); i++) {
            parameters += gmem_tensor_count(gmem_file_tensor(network.file, i));
        }
        check_recorded(ae, io, io_name);
        CHECK_INT(info->parameters, parameters);
        CHECK_INT(info->family, family);
        CHECK(info->multiplier == multiplier);
        gmem_autoencoder_close(ae);
        ae = NULL;
        golden_network_close(&network);
    }
    gmem_autoencoder_close(ae);
    gmem_file_close(io);
}

static void test_cases(gmem_context *context) {
    test_case(context, "vae_f8.io.safetensors", NULL, GMEM_AE_VAVAE, 1);
    test_case(context, "vae_f16.io.safetensors", NULL, GMEM_AE_VAVAE, 1);
    test_case(context, "vae_noattn.io.safetensors", NULL, GMEM_AE_SDVAE, 0.18215);
    test_case(context, "vae_diffusers.io.safetensors", NULL, GMEM_AE_SDVAE, 0.18215);
    test_case(context, "vae_f8.io.safetensors", "vae_f8.pt", GMEM_AE_VAVAE, 1);
    test_case(context, "vae_diffusers.io.safetensors", "vae_diffusers.safetensors", GMEM_AE_SDVAE, 0.18215);
    test_case(context, "vae_diffusers.io.safetensors", "vae_diffusers.pt", GMEM_AE_SDVAE, 0.18215);
}

/* variants of a recorded one -------------------------------------------------------------------------------------- */

typedef struct opened {
    gmem_file *io;
    golden_network weights;
} opened;

static opened open_weights(gmem_context *context, const char *name) {
    opened it;
    it.io = golden_open(context, name);
    it.weights = golden_procedural(context, it.io, NULL);
    return it;
}

static void close_weights(opened *it) {
    golden_network_close(&it->weights);
    gmem_file_close(it->io);
}

/* Decodes 2 x 3 latents with the list's weights: out (3 * 2 * 3 * factor^2), malloc'ed. */
static float *decode_with(gmem_context *context, edit_list *list, int64_t *count) {
    gmem_file *file = edit_open(context, list);
    gmem_autoencoder *ae = open_ae(context, file);
    const gmem_autoencoder_info *info = gmem_autoencoder_get_info(ae);
    float *z = numbers(info->latent_channels * 6);
    *count = 3 * 6 * info->factor * info->factor;
    float *out = numbers(*count);
    CHECK_OK(gmem_decode(ae, 1, 2, 3, z, out, NULL));
    gmem_autoencoder_close(ae);
    gmem_file_close(file);
    free(z);
    return out;
}

/* Oblong latents: every instruction set gives what the portable kernels do, a batch what its pictures do alone, and a
 * picture turned about its diagonal with turned kernels is the turned picture. */
static void test_oblong(gmem_context *context, gmem_context *scalar) {
    opened it = open_weights(scalar, "vae_f8.io.safetensors");
    gmem_autoencoder *ae = open_ae(context, it.weights.file), *reference = open_ae(scalar, it.weights.file);
    enum { HEIGHT = 3, WIDTH = 5, COUNT = 2 };
    int64_t size = 8 * HEIGHT * WIDTH, pixels = 3 * 64 * HEIGHT * WIDTH;
    float *z = numbers(COUNT * size), *expected = numbers(COUNT * pixels), *out = numbers(COUNT * pixels);
    float *mean = numbers(COUNT * size), *logvar = numbers(COUNT * size);
    float *mean2 = numbers(COUNT * size), *logvar2 = numbers(COUNT * size);
    CHECK_OK(gmem_decode(reference, COUNT, HEIGHT, WIDTH, z, expected, NULL));
    CHECK_OK(gmem_decode(ae, COUNT, HEIGHT, WIDTH, z, out, NULL));
    CHECK_CLOSE("oblong decode", out, expected, COUNT * pixels, BAR);
    CHECK_OK(gmem_encode(reference, COUNT, 8 * HEIGHT, 8 * WIDTH, expected, mean, logvar, NULL));
    CHECK_OK(gmem_encode(ae, COUNT, 8 * HEIGHT, 8 * WIDTH, expected, mean2, logvar2, NULL));
    CHECK_CLOSE("oblong encode", mean2, mean, COUNT * size, BAR);
    CHECK_CLOSE("oblong encode", logvar2, logvar, COUNT * size, BAR);
    for (int i = 0; i < COUNT; i++) {
        CHECK_OK(gmem_decode(ae, 1, HEIGHT, WIDTH, z + i * size, expected, NULL));
        CHECK(memcmp(expected, out + i * pixels, (size_t)pixels * sizeof(float)) == 0);
    }
    gmem_autoencoder_close(ae);
    gmem_autoencoder_close(reference);
    close_weights(&it);
    free(z);
    free(expected);
    free(out);
    free(mean);
    free(logvar);
    free(mean2);
    free(logvar2);
}

/* x (planes, height, width) -> (planes, width, height), in memory of the list's or malloc'ed. */
static void transpose(const float *x, int64_t planes, int64_t height, int64_t width, float *out) {
    for (int64_t p = 0; p < planes; p++) {
        for (int64_t i = 0; i < height * width; i++) {
            out[p * height * width + i % width * height + i / width] = x[p * height * width + i];
        }
    }
}

static void test_transposed(gmem_context *context) {
    opened it = open_weights(context, "vae_f8.io.safetensors");
    edit_list *list = edit_of(it.weights.file);
    for (int i = 0; i < list->count; i++) {
        gmem_tensor *tensor = &list->tensors[i];
        if (tensor->rank != 4) continue;
        float *turned = (float *)edit_own(list, edit_tensor_bytes(tensor));
        transpose((const float *)tensor->data, tensor->shape[0] * tensor->shape[1], tensor->shape[2], tensor->shape[3],
                  turned);
        tensor->data = turned;
    }
    gmem_file *file = edit_open(context, list);
    gmem_autoencoder *plain = open_ae(context, it.weights.file), *turned = open_ae(context, file);
    float *z = numbers(8 * 15), *z2 = numbers(8 * 15), *out = numbers(3 * 64 * 15), *out2 = numbers(3 * 64 * 15);
    float *turned_out = numbers(3 * 64 * 15), *logvar = numbers(8 * 15);
    transpose(z, 8, 3, 5, z2);
    CHECK_OK(gmem_decode(plain, 1, 3, 5, z, out, NULL));
    CHECK_OK(gmem_decode(turned, 1, 5, 3, z2, out2, NULL));
    transpose(out2, 3, 40, 24, turned_out);
    CHECK_CLOSE("transposed decode", turned_out, out, 3 * 64 * 15, BAR);
    CHECK_OK(gmem_encode(plain, 1, 24, 40, out, z, logvar, NULL));
    CHECK_OK(gmem_encode(turned, 1, 40, 24, out2, z2, logvar, NULL));
    float *turned_z = numbers(8 * 15);
    transpose(z2, 8, 5, 3, turned_z);
    CHECK_CLOSE("transposed encode", turned_z, z, 8 * 15, BAR);
    gmem_autoencoder_close(plain);
    gmem_autoencoder_close(turned);
    gmem_file_close(file);
    edit_free(list);
    close_weights(&it);
    free(z);
    free(z2);
    free(out);
    free(out2);
    free(turned_out);
    free(turned_z);
    free(logvar);
}

/* Weights of another type decode to what the same values in f32 do. */
static void test_type(gmem_context *context, const char *name, gmem_type type) {
    opened it = open_weights(context, name);
    edit_list *narrow = edit_of(it.weights.file), *wide = edit_of(it.weights.file);
    int64_t count = 0;
    for (int i = 0; i < narrow->count; i++) {
        edit_round(narrow, wide, i, type);
    }
    float *out = decode_with(context, narrow, &count), *expected = decode_with(context, wide, &count);
    CHECK_CLOSE(gmem_type_name(type), out, expected, count, BAR);
    free(out);
    free(expected);
    edit_free(narrow);
    edit_free(wide);
    close_weights(&it);
}

/* int8 weights with one scale a row. */
static void test_int8(gmem_context *context, const char *name) {
    opened it = open_weights(context, name);
    edit_list *narrow = edit_of(it.weights.file), *wide = edit_of(it.weights.file);
    int64_t count = 0;
    for (int i = 0, tensors = narrow->count; i < tensors; i++) {
        if (narrow->tensors[i].rank >= 2) edit_quantise(narrow, wide, i);
    }
    float *out = decode_with(context, narrow, &count), *expected = decode_with(context, wide, &count);
    CHECK_CLOSE("int8", out, expected, count, BAR);
    free(out);
    free(expected);
    edit_free(narrow);
    edit_free(wide);
    close_weights(&it);
}

/* Under the prefix that Stable Diffusion's checkpoints use, beside other tensors. */
static void test_prefix(gmem_context *context) {
    opened it = open_weights(context, "vae_noattn.io.safetensors");
    edit_list *list = edit_of(it.weights.file), *plain = edit_of(it.weights.file);
    int64_t shape[2] = {3, 3}, count = 0;
    edit_prefix_all(list, "first_stage_model.");
    edit_add(list, "model.diffusion_model.out.2.weight", GMEM_F32, 2, shape, NULL);
    float *out = decode_with(context, list, &count), *expected = decode_with(context, plain, &count);
    CHECK(memcmp(out, expected, (size_t)count * sizeof *out) == 0);
    free(out);
    free(expected);
    edit_free(list);
    edit_free(plain);
    close_weights(&it);
}

static void test_decoder_only(gmem_context *context) {
    opened it = open_weights(context, "vae_f8.io.safetensors");
    edit_list *list = edit_of(it.weights.file);
    edit_drop_all(list, "encoder.");
    edit_drop_all(list, "quant_conv.");
    gmem_file *file = edit_open(context, list);
    gmem_autoencoder *ae = open_ae(context, file);
    float *image = numbers(3 * 64), z[8], logvar[8];
    CHECK(!gmem_autoencoder_get_info(ae)->has_encoder);
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_encode(ae, 1, 8, 8, image, z, logvar, NULL));
    memset(z, 0, sizeof z);
    CHECK_OK(gmem_decode(ae, 1, 1, 1, z, image, NULL));
    free(image);
    gmem_autoencoder_close(ae);
    gmem_file_close(file);
    edit_free(list);
    close_weights(&it);
}

static void test_multiplier(gmem_context *context) {
    static const struct {
        const char *value;
        double expected;
    } cases[] = {{"0.13025", 0.13025}, {"0", 0.18215}, {"-1", 0.18215}, {"many", 0.18215}, {"nan", 0.18215}};
    opened it = open_weights(context, "vae_noattn.io.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        edit_list *list = edit_of(it.weights.file);
        edit_metadata(list, "scaling_factor", cases[i].value);
        gmem_file *file = edit_open(context, list);
        gmem_autoencoder *ae = open_ae(context, file);
        CHECK(gmem_autoencoder_get_info(ae)->multiplier == cases[i].expected);
        gmem_autoencoder_close(ae);
        gmem_file_close(file);
        edit_free(list);
    }
    close_weights(&it);
}

static void test_logvar_clamp(gmem_context *context) {
    opened it = open_weights(context, "vae_noattn.io.safetensors");
    edit_list *list = edit_of(it.weights.file);
    static const float bias[8] = {0, 0, 0, 0, 1e4f, -1e4f, 1e4f, -1e4f};
    edit_find(list, "quant_conv.bias")->data = bias;
    gmem_file *file = edit_open(context, list);
    gmem_autoencoder *ae = open_ae(context, file);
    float *image = numbers(3 * 16), mean[4 * 4], logvar[4 * 4];
    CHECK_OK(gmem_encode(ae, 1, 4, 4, image, mean, logvar, NULL));
    for (int i = 0; i < 16; i++) {
        CHECK(logvar[i] == (i / 4 % 2 ? -30.0f : 20.0f));
    }
    free(image);
    gmem_autoencoder_close(ae);
    gmem_file_close(file);
    edit_free(list);
    close_weights(&it);
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static gmem_status status_of(gmem_context *context, edit_list *list, gmem_error *error) {
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    memset(&desc, 0, sizeof desc);
    memset(error, 0, sizeof *error);
    desc.file = edit_open(context, list);
    gmem_status status = gmem_autoencoder_open(context, &desc, &ae, error);
    CHECK((status == GMEM_OK) == (ae != NULL));
    if (status != GMEM_OK) CHECK_TEXT(error->path, "edited");
    gmem_autoencoder_close(ae);
    gmem_file_close(desc.file);
    edit_free(list);
    return status;
}

/* Every tensor missing, of another shape and of another type in turn. */
static void test_each_tensor(gmem_context *context, const char *name) {
    opened it = open_weights(context, name);
    gmem_error error;
    for (int64_t i = 0; i < gmem_file_tensor_count(it.weights.file); i++) {
        gmem_tensor tensor = *gmem_file_tensor(it.weights.file, i);
        edit_list *list = edit_of(it.weights.file);
        edit_drop(list, tensor.name);
        if (CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error)))
            CHECK_CONTAINS(error.message, tensor.name);
        else
            printf("without %s\n", tensor.name);
        list = edit_of(it.weights.file);
        edit_replace(list, tensor.name, GMEM_I32, tensor.rank, tensor.shape);
        CHECK_STATUS(GMEM_E_TYPE, status_of(context, list, &error));
        for (int d = 0; d < tensor.rank; d++) {
            int64_t shape[GMEM_MAX_RANK];
            memcpy(shape, tensor.shape, sizeof shape);
            shape[d]++;
            list = edit_of(it.weights.file);
            edit_replace(list, tensor.name, GMEM_F32, tensor.rank, shape);
            if (!CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, &error)))
                printf("%s, dimension %d\n", tensor.name, d);
        }
    }
    close_weights(&it);
}

static void test_malformed(gmem_context *context) {
    opened it = open_weights(context, "vae_f8.io.safetensors");
    gmem_error error;
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    memset(&desc, 0, sizeof desc);
    edit_list *list = edit_of(it.weights.file);
    edit_drop_all(list, "decoder.");
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, &error));
    list = edit_of(it.weights.file);
    edit_drop_all(list, "decoder.up.");
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, &error));
    list = edit_of(it.weights.file); /* a level in between is missing, not absent */
    edit_drop_all(list, "decoder.up.1.");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    list = edit_of(it.weights.file); /* so is a block that other levels have */
    edit_drop_all(list, "decoder.up.2.block.1.");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    list = edit_of(it.weights.file); /* and an attention that the level's other block has */
    edit_drop_all(list, "decoder.up.3.attn.0.");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    list = edit_of(it.weights.file); /* three channels of latents for a decoder of eight */
    edit_drop_all(list, "encoder.down.3.");
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, &error));
    list = edit_of(it.weights.file);
    edit_drop_all(list, "quant_conv.");
    edit_drop_all(list, "encoder.conv_out.");
    int64_t wide[4] = {12, 64, 3, 3};
    edit_add(list, "encoder.conv_out.weight", GMEM_F32, 4, wide, NULL);
    edit_add(list, "encoder.conv_out.bias", GMEM_F32, 1, wide, NULL);
    CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, &error));
    desc.path = "tests/golden/dit_base.pth";
    CHECK_STATUS(GMEM_E_ARCHITECTURE, gmem_autoencoder_open(context, &desc, &ae, &error));
    desc.path = "tests/golden/no_such_file.pt";
    CHECK_STATUS(GMEM_E_OPEN, gmem_autoencoder_open(context, &desc, &ae, &error));
    desc.path = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_autoencoder_open(context, &desc, &ae, &error));
    CHECK(ae == NULL);
    gmem_autoencoder_close(NULL);
    close_weights(&it);
}

static void test_arguments(gmem_context *context) {
    opened it = open_weights(context, "vae_f8.io.safetensors");
    gmem_autoencoder *ae = open_ae(context, it.weights.file);
    float *image = numbers(3 * 64), *kept = numbers(3 * 64), z[8] = {0}, logvar[8] = {0};
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, 0, 1, 1, z, image, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, 1, 0, 1, z, image, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, 1, 1, -1, z, image, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, 1, 1, 1, NULL, image, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_encode(ae, 1, 8, 12, image, z, logvar, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_encode(ae, 1, 4, 8, image, z, logvar, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, 1, INT64_MAX / 2, INT64_MAX / 2, z, image, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_decode(ae, INT64_MAX, 1, 1, z, image, NULL));
    CHECK_STATUS(GMEM_E_MEMORY, gmem_decode(ae, 1, (int64_t)1 << 20, (int64_t)1 << 20, z, image, NULL));
    z[3] = (float)NAN;
    CHECK_STATUS(GMEM_E_NONFINITE, gmem_decode(ae, 1, 1, 1, z, image, NULL));
    CHECK(memcmp(image, kept, 3 * 64 * sizeof *image) == 0);
    image[7] = (float)INFINITY;
    z[3] = 0;
    CHECK_STATUS(GMEM_E_NONFINITE, gmem_encode(ae, 1, 8, 8, image, z, logvar, NULL));
    CHECK(z[0] == 0 && logvar[0] == 0);
    gmem_autoencoder_close(ae);
    close_weights(&it);
    free(image);
    free(kept);
}

typedef struct attempt {
    const edit_list *list; /* written */
    float *image, *kept;   /* (3, 2, 2): the output, and what it held */
} attempt;

static gmem_status open_and_run(gmem_context *context, void *user) {
    const attempt *a = (const attempt *)user;
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    float z[4], logvar[4];
    memset(&desc, 0, sizeof desc);
    memcpy(a->image, a->kept, 12 * sizeof *a->image);
    gmem_status status =
        gmem_file_open_memory(context, "edited", a->list->memory, a->list->bytes, NULL, &desc.file, NULL);
    if (status == GMEM_OK) status = gmem_autoencoder_open(context, &desc, &ae, NULL);
    if (status == GMEM_OK) status = gmem_encode(ae, 1, 2, 2, a->image, z, logvar, NULL);
    if (status == GMEM_OK) status = gmem_decode(ae, 1, 1, 1, z, a->image, NULL);
    if (status != GMEM_OK) CHECK(memcmp(a->image, a->kept, 12 * sizeof *a->image) == 0);
    gmem_autoencoder_close(ae);
    gmem_file_close(desc.file);
    return status;
}

static void test_allocations(gmem_context *context) {
    opened it = open_weights(context, "vae_noattn.io.safetensors");
    edit_list *list = edit_of(it.weights.file);
    attempt a = {list, numbers(12), numbers(12)};
    edit_write(list);
    check_failing_allocations(open_and_run, &a, 10);
    edit_free(list);
    close_weights(&it);
    free(a.image);
    free(a.kept);
}

/* between the transformer and the decoder ------------------------------------------------------------------------- */

static void test_denormalize(void) {
    float x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    static const float mean[3] = {10, 20, 30}, std[3] = {1, 2, 3};
    static const float both[12] = {12, 14, 32, 36, 60, 66, 24, 26, 56, 60, 96, 102};
    gmem_denormalize(x, 2, 3, 2, mean, std, 0.5);
    for (int i = 0; i < 12; i++) {
        CHECK(x[i] == both[i]);
    }
    gmem_denormalize(x, 2, 3, 2, NULL, NULL, 2);
    for (int i = 0; i < 12; i++) {
        CHECK(x[i] == both[i] / 2);
    }
}

static gmem_status read_stats(gmem_context *context, gmem_type type, int64_t channels, const float *std, float *out) {
    edit_list *list = edit_new();
    int64_t shape[4] = {1, 4, 1, 1};
    static const float mean[4] = {1, 2, 3, 4};
    void *stored = edit_own(list, 4 * 8);
    gmem_convert_f32(mean, 4, type, stored);
    edit_add(list, "mean", type, 4, shape, stored);
    if (std) edit_add(list, "std", GMEM_F32, 4, shape, std);
    gmem_file *file = edit_open(context, list);
    gmem_status status = gmem_read_latent_stats(file, channels, out, out + 4, NULL);
    gmem_file_close(file);
    edit_free(list);
    return status;
}

static void test_stats(gmem_context *context) {
    static const float good[4] = {1, 2, 0.5f, 4}, zero[4] = {1, 0, 1, 1}, negative[4] = {1, 1, 1, -1};
    float out[8] = {9, 9, 9, 9, 9, 9, 9, 9}, nan[4] = {1, 1, 1, 1};
    nan[2] = (float)NAN;
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, read_stats(context, GMEM_F32, 4, NULL, out));
    CHECK_STATUS(GMEM_E_SHAPE, read_stats(context, GMEM_F32, 3, good, out));
    CHECK_STATUS(GMEM_E_ARGUMENT, read_stats(context, GMEM_F32, 4, zero, out));
    CHECK_STATUS(GMEM_E_ARGUMENT, read_stats(context, GMEM_F32, 4, negative, out));
    CHECK_STATUS(GMEM_E_ARGUMENT, read_stats(context, GMEM_F32, 4, nan, out));
    for (int i = 0; i < 8; i++) {
        CHECK(out[i] == 9);
    }
    CHECK_OK(read_stats(context, GMEM_F64, 4, good, out));
    CHECK(out[0] == 1 && out[3] == 4 && out[4] == 1 && out[6] == 0.5f);
}

static void test_pixels(void) {
    static const float values[3][4] = {{-1, 1, 0, 0.999f}, {-2, 3, 1.0f / 255, -0.9999f}, {0.5f, -0.5f, 1e30f, -1e30f}};
    static const uint8_t expected[12] = {0, 0, 191, 255, 255, 64, 128, 128, 255, 255, 0, 0};
    uint8_t pixels[12];
    float bad[3];
    gmem_pixels(values[0], 1, 1, 4, pixels);
    for (int i = 0; i < 12; i++) {
        CHECK_INT(pixels[i], expected[i]);
    }
    bad[0] = (float)NAN;
    bad[1] = (float)INFINITY;
    bad[2] = (float)-INFINITY;
    gmem_pixels(bad, 1, 1, 1, pixels);
    CHECK(pixels[0] == 0 && pixels[1] == 255 && pixels[2] == 0);
}

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO), *scalar = golden_context(GMEM_ISA_SCALAR);
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *one = golden_context(golden_isas[i]);
        if (!one) continue;
        test_cases(one);
        test_oblong(one, scalar);
        test_type(one, "vae_f8.io.safetensors", GMEM_F16);
        test_type(one, "vae_diffusers.io.safetensors", GMEM_BF16);
        test_type(one, "vae_f8.io.safetensors", GMEM_F64);
        test_int8(one, "vae_f8.io.safetensors");
        test_int8(one, "vae_diffusers.io.safetensors");
        gmem_context_destroy(one);
    }
    test_transposed(context);
    test_prefix(context);
    test_decoder_only(context);
    test_multiplier(context);
    test_logvar_clamp(context);
    test_each_tensor(context, "vae_noattn.io.safetensors");
    test_each_tensor(context, "vae_f8.io.safetensors");
    test_each_tensor(context, "vae_diffusers.io.safetensors");
    test_malformed(context);
    test_arguments(context);
    test_allocations(context);
    test_denormalize();
    test_stats(context);
    test_pixels();
    gmem_context_destroy(context);
    gmem_context_destroy(scalar);
    return check_report();
}
