/* The default model's image encoder on emoji that its training never saw: PyTorch's features, recorded by
 * tools/image-encoder/evaluate.py, and the rows of the default bank. */
#include "check.h"
#include "golden.h"

#define ENCODER "examples/model/image_encoder.safetensors"
#define BANK    "examples/model/bank.safetensors"

enum { SIDE = 64, WIDTH = 192 };
static const double feature_bar = 5e-6; /* relative L2 error */
static const double least_cosine = 0.93;

typedef struct recording {
    uint8_t *pixels; /* (count, SIDE, SIDE, 3) */
    float *cls;      /* (count, WIDTH) */
    int64_t *rows;   /* (count) of the bank */
    int64_t count;
} recording;

static recording read_recording(gmem_context *context) {
    recording r;
    gmem_file *file = golden_open(context, "default_encoder.safetensors");
    int64_t count = 0;
    int64_t *pixels = golden_i64(file, "pixels", &count);
    memset(&r, 0, sizeof r);
    r.pixels = (uint8_t *)malloc((size_t)count);
    if (!r.pixels) exit(1);
    for (int64_t i = 0; i < count; i++)
        r.pixels[i] = (uint8_t)pixels[i];
    free(pixels);
    r.cls = golden_f32(file, "cls", NULL);
    r.rows = golden_i64(file, "rows", &r.count);
    gmem_file_close(file);
    return r;
}

static gmem_image_encoder *open_encoder(gmem_context *context) {
    gmem_image_encoder_desc desc;
    gmem_image_encoder *encoder = NULL;
    memset(&desc, 0, sizeof desc);
    desc.path = ENCODER;
    if (!CHECK_OK(gmem_image_encoder_open(context, &desc, &encoder, NULL))) exit(1);
    return encoder;
}

static gmem_bank *open_bank(gmem_context *context) {
    const char *path = BANK;
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    if (!CHECK_OK(gmem_bank_open(context, &desc, &bank, NULL))) exit(1);
    return bank;
}

static void test_description(const gmem_image_encoder *encoder) {
    const gmem_image_encoder_info *info = gmem_image_encoder_get_info(encoder);
    CHECK_INT(info->width, WIDTH);
    CHECK_INT(info->heads, 6);
    CHECK_INT(info->patch, 16);
    CHECK_INT(info->registers, 0);
    CHECK_INT(info->picture_size, SIDE);
    CHECK_INT(info->input_size, SIDE);
    CHECK_INT(info->tokens, 16);
}

static void test_features(gmem_context *context, const recording *r) {
    gmem_image_encoder *encoder = open_encoder(context);
    float *cls = (float *)calloc((size_t)(r->count * WIDTH), sizeof *cls);
    if (!cls) exit(1);
    test_description(encoder);
    CHECK_OK(gmem_pixel_features(encoder, r->count, SIDE, SIDE, r->pixels, 0, cls, NULL, NULL));
    for (int64_t i = 0; i < r->count; i++)
        CHECK_CLOSE("a recorded feature", cls + i * WIDTH, r->cls + i * WIDTH, WIDTH, feature_bar);
    printf("%s: relative L2 error %.2g\n", gmem_context_backend(context),
           check_relative_l2(cls, r->cls, r->count * WIDTH));
    free(cls);
    gmem_image_encoder_close(encoder);
}

static double cosine(const float *a, const float *b) {
    double aa = 0, bb = 0, ab = 0;
    for (int i = 0; i < WIDTH; i++) {
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
        ab += (double)a[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

/* A picture's own row is the nearest of the bank's, and near. */
static void test_rows(gmem_context *context, const recording *r) {
    gmem_bank *bank = open_bank(context);
    float row[WIDTH];
    CHECK_INT(gmem_bank_width(bank), WIDTH);
    for (int64_t i = 0; i < r->count; i++) {
        int64_t nearest = -1;
        double best = -2;
        for (int64_t j = 0; j < gmem_bank_rows(bank); j++) {
            double near;
            CHECK_OK(gmem_bank_row(bank, j, row, NULL));
            near = cosine(r->cls + i * WIDTH, row);
            if (near > best) {
                best = near;
                nearest = j;
            }
        }
        CHECK_INT(nearest, r->rows[i]);
        CHECK(best >= least_cosine);
        printf("%s: cosine %.3f\n", gmem_bank_name(bank, nearest), best);
    }
    gmem_bank_close(bank);
}

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    recording r = read_recording(context);
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *one = golden_context(golden_isas[i]);
        if (!one) continue;
        test_features(one, &r);
        gmem_context_destroy(one);
    }
    test_rows(context, &r);
    free(r.pixels);
    free(r.cls);
    free(r.rows);
    gmem_context_destroy(context);
    return check_report();
}
