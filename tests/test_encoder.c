/* The image encoder: the recorded ones on every instruction set, and what goes into them; pictures of other sizes, as
 * pixels and in batches; weights of other types; what malformed files get; threads. */
#include "../src/encoder.h"

#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"
#include "vit.h"

#define BAR      1e-6
#define SIZE_BAR 3e-6 /* against double precision */

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

/* What goes into the transformer, before its first product. */
static void test_inputs(gmem_context *context, const char *name) {
    gmem_file *io = golden_open(context, name);
    golden_network weights = golden_procedural(context, io, NULL);
    const gmem_tensor *stored = gmem_file_find(weights.file, "pos_embed");
    const int64_t width = stored->shape[2];
    int64_t count = 0;
    float *image = golden_f32(io, "image", NULL), *seen = golden_f32(io, "preprocessed", &count);
    float *position = golden_f32(io, "pos_embed", NULL), *out = numbers(count), *turned = numbers(width * 256);
    float line[256];
    gmem__pictures pictures = {image, NULL, 0, 1, 256, 256};
    gmem__taps taps;
    memset(&taps, 0, sizeof taps);
    CHECK(gmem__taps_make(context, 256, 224, 0, &taps));
    gmem__preprocess(&pictures, 0, &taps, &taps, line, out);
    gmem__taps_free(context, &taps);
    CHECK_CLOSE("preprocessed", out, seen, count, BAR);
    printf("%s: preprocessed %.2g", name, check_relative_l2(out, seen, count));
    CHECK(gmem__resample_position(context, stored, 1, 37, 16, out, 256));
    for (int64_t i = 0; i < 256 * width; i++)
        turned[i] = out[i % width * 256 + i / width];
    CHECK_CLOSE("pos_embed", turned, position + width, 256 * width, BAR);
    printf(", pos_embed %.2g\n", check_relative_l2(turned, position + width, 256 * width));
    golden_network_close(&weights);
    gmem_file_close(io);
    free(image);
    free(seen);
    free(position);
    free(out);
    free(turned);
}

/* other sizes ------------------------------------------------------------------------------------------------------ */

static const vit sizes[] = {
    {64, 2, 4, 128, 8, 8, 0, 0, 64},   /* as pos_embed is */
    {96, 2, 3, 72, 16, 4, 3, 1, 48},   /* SwiGLU, and pictures smaller than pos_embed */
    {64, 1, 1, 100, 14, 5, 0, 0, 224}, /* pictures larger than it */
    {40, 1, 5, 33, 4, 6, 1, 0, 28},    /* no number that vectors like */
};
enum { SIZES = sizeof sizes / sizeof *sizes };

static const int64_t pictures[SIZES][2] = {{64, 64}, {50, 37}, {30, 300}, {1, 9}};

typedef struct opened {
    edit_list *list;
    gmem_file *file;
    gmem_image_encoder *encoder;
} opened;

static edit_list *list_of(const vit *v) {
    static char heads[SIZES][16], input[SIZES][16];
    const size_t i = (size_t)(v - sizes);
    edit_list *list = vit_make(v);
    snprintf(heads[i], sizeof heads[i], "%lld", (long long)v->heads);
    snprintf(input[i], sizeof input[i], "%lld", (long long)v->input);
    if (v->width != 64 * v->heads) edit_metadata(list, "num_heads", heads[i]);
    if (v->input != v->grid * v->patch && v->patch != 14) edit_metadata(list, "image_size", input[i]);
    return list;
}

static opened open_list(gmem_context *context, edit_list *list) {
    opened it;
    it.list = list;
    it.file = edit_open(context, list);
    it.encoder = open_encoder(context, it.file);
    return it;
}

static void close_list(opened *it) {
    gmem_image_encoder_close(it->encoder);
    gmem_file_close(it->file);
    edit_free(it->list);
}

static void check_info(const vit *v, const opened *it) {
    const gmem_image_encoder_info *info = gmem_image_encoder_get_info(it->encoder);
    int64_t parameters = 0;
    for (int64_t i = 0; i < gmem_file_tensor_count(it->file); i++)
        parameters += gmem_tensor_count(gmem_file_tensor(it->file, i));
    CHECK_TEXT(info->name, v->registers ? "DINOv2 ViT with registers" : "DINOv2 ViT");
    CHECK_INT(info->width, v->width);
    CHECK_INT(info->depth, v->depth);
    CHECK_INT(info->heads, v->heads);
    CHECK_INT(info->head_dim, v->width / v->heads);
    CHECK_INT(info->mlp_hidden, v->mlp);
    CHECK_INT(info->patch, v->patch);
    CHECK_INT(info->registers, v->registers);
    CHECK_INT(info->input_size, v->input);
    CHECK_INT(info->picture_size, v->patch == 14 ? 256 : v->input);
    CHECK_INT(info->tokens, v->input / v->patch * (v->input / v->patch));
    CHECK_INT(info->parameters, parameters);
    CHECK_INT(info->weight_bytes, 4 * parameters);
}

/* Against the reference in double precision, from an image and from pixels in both ranges. */
static void test_size(gmem_context *context, const vit *v) {
    opened it = open_list(context, list_of(v));
    const int64_t height = pictures[v - sizes][0], width = pictures[v - sizes][1], area = height * width;
    const int64_t count = gmem_image_encoder_get_info(it.encoder)->tokens * v->width;
    float *image = numbers(3 * area), *expected = numbers(v->width), *expected2 = numbers(count);
    float *out = numbers(v->width), *out2 = numbers(count);
    uint8_t *pixels = (uint8_t *)malloc((size_t)(3 * area));
    check_info(v, &it);
    for (int published = 0; published < 2; published++) {
        for (int64_t i = 0; i < 3 * area; i++) {
            pixels[i] = (uint8_t)(i * 37 % 256);
            image[i % 3 * area + i / 3] = published ? (float)pixels[i] / 255 : (float)pixels[i] / 127.5f - 1;
        }
        vit_features(v, it.list, image, height, width, expected, expected2);
        CHECK_OK(gmem_image_features(it.encoder, 1, height, width, image, out, out2, NULL));
        CHECK_CLOSE("an image's class token", out, expected, v->width, SIZE_BAR);
        CHECK_CLOSE("an image's patches", out2, expected2, count, SIZE_BAR);
        CHECK_OK(gmem_pixel_features(it.encoder, 1, height, width, pixels, published, out, NULL, NULL));
        CHECK_CLOSE("pixels' class token", out, expected, v->width, SIZE_BAR);
        CHECK_OK(gmem_pixel_features(it.encoder, 1, height, width, pixels, published, NULL, out2, NULL));
        CHECK_CLOSE("pixels' patches", out2, expected2, count, SIZE_BAR);
    }
    close_list(&it);
    free(image);
    free(expected);
    free(expected2);
    free(out);
    free(out2);
    free(pixels);
}

/* More pictures than go through at once come out as they do alone. */
static void test_batch(gmem_context *context, const vit *v, int64_t count) {
    opened it = open_list(context, list_of(v));
    const int64_t patches = gmem_image_encoder_get_info(it.encoder)->tokens * v->width, size = 3 * 20 * 24;
    float *image = numbers(count * size), *cls = numbers(count * v->width), *patch = numbers(count * patches);
    float *alone = numbers(v->width), *alone2 = numbers(patches);
    CHECK_OK(gmem_image_features(it.encoder, count, 20, 24, image, cls, patch, NULL));
    for (int64_t i = 0; i < count; i += count - 1) {
        CHECK_OK(gmem_image_features(it.encoder, 1, 20, 24, image + i * size, alone, alone2, NULL));
        CHECK(memcmp(alone, cls + i * v->width, (size_t)v->width * sizeof *alone) == 0);
        CHECK(memcmp(alone2, patch + i * patches, (size_t)patches * sizeof *alone) == 0);
    }
    CHECK_OK(gmem_image_features(it.encoder, count, 20, 24, image, cls, NULL, NULL));
    CHECK_CLOSE("the last class token alone", cls + (count - 1) * v->width, alone, v->width, BAR);
    close_list(&it);
    free(image);
    free(cls);
    free(patch);
    free(alone);
    free(alone2);
}

/* weights of other types ------------------------------------------------------------------------------------------- */

/* The class token and the patches of one picture: out (width + patches * width), malloc'ed. */
static float *encode_with(gmem_context *context, edit_list *list, int64_t *count) {
    opened it = open_list(context, list);
    const gmem_image_encoder_info *info = gmem_image_encoder_get_info(it.encoder);
    float *image = numbers(3 * 33 * 21);
    *count = (1 + info->tokens) * info->width;
    float *out = numbers(*count);
    CHECK_OK(gmem_image_features(it.encoder, 1, 33, 21, image, out, out + info->width, NULL));
    close_list(&it);
    free(image);
    return out;
}

/* They give what the same values in f32 do. int8: matrices alone, each row with its scale. */
static void test_type(gmem_context *context, const vit *v, gmem_type type) {
    edit_list *narrow = list_of(v), *wide = list_of(v);
    int64_t count = 0;
    for (int i = 0, tensors = narrow->count; i < tensors; i++) {
        if (type != GMEM_I8)
            edit_round(narrow, wide, i, type);
        else if (narrow->tensors[i].rank == 2 || narrow->tensors[i].rank == 4)
            edit_quantise(narrow, wide, i);
    }
    float *out = encode_with(context, narrow, &count), *expected = encode_with(context, wide, &count);
    CHECK_CLOSE(gmem_type_name(type), out, expected, count, BAR);
    free(out);
    free(expected);
}

/* What products in a narrower type cost, of the recorded cases; not nothing either. */
static void test_compute(gmem_compute compute, const char *name, double bar) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    golden_choose_backend(&desc);
    desc.compute = compute;
    if (!CHECK_OK(gmem_context_create(&desc, &context, NULL))) return;
    gmem_file *io = golden_open(context, name);
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_image_encoder *encoder = open_encoder(context, weights.file);
    int64_t width = 0;
    float *image = golden_f32(io, "image", NULL), *cls = golden_f32(io, "cls", &width), *out = numbers(width);
    CHECK_OK(gmem_image_features(encoder, 1, 256, 256, image, out, NULL, NULL));
    const double error = check_relative_l2(out, cls, width);
    printf("%s on %s: %.2g\n", name, gmem_context_kernels(context), error);
    CHECK(error < bar && error > 1e-5);
    gmem_image_encoder_close(encoder);
    golden_network_close(&weights);
    gmem_file_close(io);
    gmem_context_destroy(context);
    free(image);
    free(cls);
    free(out);
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static gmem_status status_of(gmem_context *context, edit_list *list, gmem_error *error) {
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    memset(&desc, 0, sizeof desc);
    memset(error, 0, sizeof *error);
    desc.file = edit_open(context, list);
    gmem_status status = gmem_image_encoder_open(context, &desc, &encoder, error);
    CHECK((status == GMEM_OK) == (encoder != NULL));
    if (status != GMEM_OK) CHECK_TEXT(error->path, "edited");
    gmem_image_encoder_close(encoder);
    gmem_file_close(desc.file);
    edit_free(list);
    return status;
}

/* Without registers the file of registers is another's, and right. */
static int may_be_missing(const char *name) { return strcmp(name, "register_tokens") == 0; }

/* Every tensor missing, of another shape and of another type in turn. */
static void test_each_tensor(gmem_context *context, const vit *v) {
    gmem_error error;
    edit_list *whole = list_of(v);
    for (int i = 0; i < whole->count; i++) {
        const gmem_tensor tensor = whole->tensors[i];
        edit_list *list = list_of(v);
        edit_drop(list, tensor.name);
        const gmem_status missing = status_of(context, list, &error);
        if (may_be_missing(tensor.name))
            CHECK_OK(missing);
        else if (strcmp(tensor.name, "cls_token") == 0)
            CHECK_STATUS(GMEM_E_ARCHITECTURE, missing);
        else if (CHECK_STATUS(GMEM_E_MISSING_TENSOR, missing))
            CHECK_CONTAINS(error.message, tensor.name);
        else
            printf("without %s\n", tensor.name);
        list = list_of(v);
        edit_replace(list, tensor.name, GMEM_I32, tensor.rank, tensor.shape);
        CHECK_STATUS(GMEM_E_TYPE, status_of(context, list, &error));
        for (int d = 0; d < tensor.rank; d++) {
            int64_t shape[GMEM_MAX_RANK];
            if (d == 1 && may_be_missing(tensor.name)) continue; /* another number of registers */
            memcpy(shape, tensor.shape, sizeof shape);
            shape[d]++;
            list = list_of(v);
            edit_replace(list, tensor.name, GMEM_F32, tensor.rank, shape);
            if (!CHECK_STATUS(GMEM_E_SHAPE, status_of(context, list, &error)))
                printf("%s, dimension %d: %s\n", tensor.name, d, error.message);
        }
    }
    edit_free(whole);
}

static gmem_status status_with(gmem_context *context, const char *key, const char *value) {
    edit_list *list = vit_make(&sizes[1]);
    gmem_error error;
    if (strcmp(key, "num_heads") != 0) edit_metadata(list, "num_heads", "3");
    edit_metadata(list, key, value);
    const gmem_status status = status_of(context, list, &error);
    if (status != GMEM_OK) CHECK(error.message[0] != 0);
    return status;
}

static void test_metadata(gmem_context *context) {
    gmem_error error;
    CHECK_STATUS(GMEM_E_HEADS, status_of(context, vit_make(&sizes[1]), &error)); /* 96 is no multiple of 64 */
    CHECK_OK(status_with(context, "num_heads", "4"));
    CHECK_STATUS(GMEM_E_HEADS, status_with(context, "num_heads", "5"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "num_heads", "0"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "num_heads", "many"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "num_heads", "97"));
    CHECK_OK(status_with(context, "image_size", "64"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "image_size", "50"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "image_size", "-16"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "image_size", "16.5"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "image_size", "nan"));
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_with(context, "image_size", ""));
    CHECK_STATUS(GMEM_E_LIMIT, status_with(context, "image_size", "65536"));
}

static void test_malformed(gmem_context *context) {
    static const char *const strangers[] = {"blocks.0.attn.q_norm.weight", "reg_token", "blocks.0.mlp.fc1.weight",
                                            "fc_norm.weight"};
    static const char *const trained_with[] = {"mask_token", "head.weight", "linear_head.bias"};
    const int64_t shape[2] = {2, 2};
    gmem_error error;
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    memset(&desc, 0, sizeof desc);
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++) {
        edit_list *list = list_of(&sizes[1]);
        edit_add(list, strangers[i], GMEM_F32, 2, shape, NULL);
        CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, &error));
        CHECK_CONTAINS(error.message, strangers[i]);
    }
    for (size_t i = 0; i < sizeof trained_with / sizeof *trained_with; i++) {
        edit_list *list = list_of(&sizes[1]);
        edit_add(list, trained_with[i], GMEM_F32, 2, shape, NULL);
        CHECK_OK(status_of(context, list, &error));
    }
    edit_list *list = list_of(&sizes[1]); /* a block in between is missing, not absent */
    edit_drop_all(list, "blocks.0.");
    CHECK_STATUS(GMEM_E_ARCHITECTURE, status_of(context, list, &error));
    vit deep = sizes[1];
    deep.depth = 3;
    list = vit_make(&deep);
    edit_metadata(list, "num_heads", "3");
    edit_drop_all(list, "blocks.1.");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    list = list_of(&sizes[1]);
    edit_drop_all(list, "pos_embed");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    desc.path = "tests/golden/dit_base.pth";
    CHECK_STATUS(GMEM_E_ARCHITECTURE, gmem_image_encoder_open(context, &desc, &encoder, &error));
    desc.path = "tests/golden/no_such_file.pth";
    CHECK_STATUS(GMEM_E_OPEN, gmem_image_encoder_open(context, &desc, &encoder, &error));
    desc.heads = -1;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_encoder_open(context, &desc, &encoder, &error));
    desc.heads = 0;
    desc.path = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_encoder_open(context, &desc, &encoder, &error));
    CHECK(encoder == NULL);
    gmem_image_encoder_close(NULL);
}

static void test_arguments(gmem_context *context) {
    opened it = open_list(context, list_of(&sizes[0]));
    const gmem_image_encoder *encoder = it.encoder;
    const int64_t huge = INT64_MAX / 2, large = (int64_t)1 << 20;
    float *image = numbers(2 * 3 * 12), cls[2 * 64], kept[2 * 64];
    const uint8_t pixel[3] = {1, 2, 3};
    for (int i = 0; i < 2 * 64; i++)
        cls[i] = kept[i] = 7;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(NULL, 1, 3, 4, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 1, 3, 4, NULL, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 1, 3, 4, image, NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 0, 3, 4, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 1, 0, 4, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 1, 3, -4, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, 1, huge, huge, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_image_features(encoder, huge, 3, 4, image, cls, NULL, NULL));
    CHECK_STATUS(GMEM_E_MEMORY, gmem_image_features(encoder, large * large, 1, 1, image, cls, cls, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_pixel_features(encoder, 1, 1, 1, NULL, 0, cls, NULL, NULL));
    CHECK_OK(gmem_pixel_features(encoder, 1, 1, 1, pixel, 0, cls, NULL, NULL));
    memcpy(cls, kept, sizeof cls);
    image[3 * 12 + 5] = (float)NAN; /* of the second picture */
    gmem_error error;
    CHECK_STATUS(GMEM_E_NONFINITE, gmem_image_features(encoder, 2, 3, 4, image, cls, NULL, &error));
    CHECK_CONTAINS(error.message, "picture 1");
    CHECK(memcmp(cls, kept, sizeof cls) == 0);
    close_list(&it);
    free(image);
}

typedef struct attempt {
    const edit_list *list; /* written */
    const float *image;    /* (2, 3, 5, 7) */
} attempt;

static gmem_status open_and_run(gmem_context *context, void *user) {
    const attempt *a = (const attempt *)user;
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    float cls[2 * 40], patch[2 * 49 * 40];
    memset(&desc, 0, sizeof desc);
    cls[0] = patch[0] = 7;
    gmem_status status =
        gmem_file_open_memory(context, "edited", a->list->memory, a->list->bytes, NULL, &desc.file, NULL);
    if (status == GMEM_OK) status = gmem_image_encoder_open(context, &desc, &encoder, NULL);
    if (status == GMEM_OK) status = gmem_image_features(encoder, 2, 5, 7, a->image, cls, patch, NULL);
    CHECK((status == GMEM_OK) == (cls[0] != 7 && patch[0] != 7));
    gmem_image_encoder_close(encoder);
    gmem_file_close(desc.file);
    return status;
}

static void test_allocations(void) {
    edit_list *list = list_of(&sizes[3]);
    float *image = numbers(2 * 3 * 35);
    attempt a = {list, image};
    edit_write(list);
    check_failing_allocations(open_and_run, &a, 10);
    edit_free(list);
    free(image);
}

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *one = golden_context(golden_isas[i]);
        if (!one) continue;
        test_recorded(one, "dinov2_tiny.io.safetensors", 0);
        test_recorded(one, "dinov2_reg.io.safetensors", 4);
        for (int s = 0; s < SIZES; s++)
            test_size(one, &sizes[s]);
        test_type(one, &sizes[0], GMEM_F16);
        test_type(one, &sizes[1], GMEM_BF16);
        test_type(one, &sizes[3], GMEM_F64);
        test_type(one, &sizes[1], GMEM_I8);
        gmem_context_destroy(one);
    }
    test_inputs(context, "dinov2_tiny.io.safetensors");
    test_inputs(context, "dinov2_reg.io.safetensors");
    test_batch(context, &sizes[0], 33);
    test_batch(context, &sizes[1], 3);
    test_compute(GMEM_COMPUTE_BF16, "dinov2_tiny.io.safetensors", 1e-2);
    test_compute(GMEM_COMPUTE_INT8, "dinov2_tiny.io.safetensors", 5e-2);
    test_each_tensor(context, &sizes[1]);
    test_each_tensor(context, &sizes[3]);
    test_metadata(context);
    test_malformed(context);
    test_arguments(context);
    test_allocations();
    gmem_context_destroy(context);
    return check_report();
}
