/* Resizing and cropping against what Pillow made of the same procedural pictures (tools/record-resample.py): equal in
 * every byte. And what is refused, and every allocation that fails. */
#include "failing.h"

#include "../src/internal.h"

/* As in tools/record-resample.py. */
static uint8_t *procedural(int64_t height, int64_t width) {
    uint8_t *pixels = (uint8_t *)malloc((size_t)(height * width * 3)), *next = pixels;
    for (int64_t y = 0; pixels && y < height; y++) {
        for (int64_t x = 0; x < width; x++) {
            for (int64_t c = 0; c < 3; c++) {
                const uint32_t noise = (uint32_t)((y * width + x) * 3 + c) * 2654435761u >> 24;
                const uint32_t smooth = (uint32_t)(5 * x + 3 * y + 40 * c) & 255u;
                const uint32_t kinds[4] = {smooth, noise, noise & 1u ? 255u : 0u, noise};
                *next++ = (uint8_t)kinds[(x / 8 + 2 * (y / 8)) % 4];
            }
        }
    }
    return pixels;
}

typedef struct recorded {
    char kind[16]; /* "box", "bicubic" or "crop" */
    int64_t height, width, out_height, out_width;
} recorded;

static gmem_status repeat(gmem_context *context, const recorded *r, const uint8_t *pixels, uint8_t *out) {
    if (strcmp(r->kind, "crop") == 0)
        return gmem_center_crop(context, r->height, r->width, pixels, r->out_width, out, NULL);
    return gmem_resize(context, strcmp(r->kind, "box") == 0 ? GMEM_FILTER_BOX : GMEM_FILTER_BICUBIC, r->height,
                       r->width, pixels, r->out_height, r->out_width, out, NULL);
}

static int parse(const char *name, recorded *out) {
    long long size[4];
    if (sscanf(name, "%15s %lld %lld %lld %lld", out->kind, &size[0], &size[1], &size[2], &size[3]) != 5) return 0;
    out->height = size[0];
    out->width = size[1];
    out->out_height = size[2];
    out->out_width = size[3];
    return 1;
}

static void test_recorded(void) {
    enum { GUARD = 64 };
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    gmem_file *file = golden_open(context, "resample.safetensors");
    CHECK(gmem_file_tensor_count(file) > 60);
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        recorded r;
        char text[200];
        const gmem_tensor *expected = gmem_file_tensor(file, i);
        const int64_t bytes = gmem_tensor_count(expected);
        if (!CHECK(parse(expected->name, &r)) || !CHECK_INT(bytes, r.out_height * r.out_width * 3)) continue;
        uint8_t *pixels = procedural(r.height, r.width), *out = (uint8_t *)malloc((size_t)bytes + GUARD);
        memset(out, 0xa5, (size_t)bytes + GUARD);
        CHECK_OK(repeat(context, &r, pixels, out));
        int64_t different = 0, beyond = 0;
        for (int64_t k = 0; k < bytes; k++)
            different += out[k] != ((const uint8_t *)expected->data)[k];
        for (int64_t k = bytes; k < bytes + GUARD; k++)
            beyond += out[k] != 0xa5;
        snprintf(text, sizeof text, "%s: %lld bytes differ, %lld beyond the end", expected->name, (long long)different,
                 (long long)beyond);
        check_result(different == 0 && beyond == 0, __FILE__, __LINE__, text);
        free(pixels);
        free(out);
    }
    gmem_file_close(file);
    gmem_context_destroy(context);
}

/* A constant stays one, whatever the size: the weights sum to 1. */
static void test_constant(void) {
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    static uint8_t pixels[61 * 47 * 3], out[80 * 80 * 3];
    memset(pixels, 201, sizeof pixels);
    for (int64_t size = 1; size <= 80; size++) {
        for (int filter = 0; filter < 2; filter++) {
            int64_t wrong = 0;
            CHECK_OK(gmem_resize(context, (gmem_filter)filter, 61, 47, pixels, size, 81 - size, out, NULL));
            for (int64_t i = 0; i < size * (81 - size) * 3; i++)
                wrong += out[i] != 201;
            CHECK_INT(wrong, 0);
        }
    }
    gmem_context_destroy(context);
}

/* Only the middle of what a thin picture would become is computed: as a whole it would have 2^44 pixels. */
static void test_thin(void) {
    const int64_t side = (int64_t)1 << 22, size = 2048;
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    uint8_t *pixels = (uint8_t *)malloc((size_t)side * 3), *out = (uint8_t *)malloc((size_t)(size * size * 3));
    memset(pixels, 7, (size_t)side * 3);
    memset(pixels + side / 2 * 3, 90, 3);
    CHECK_OK(gmem_center_crop(context, side, 1, pixels, size, out, NULL));
    CHECK_INT(out[0], 7);
    CHECK(out[(size - 1) * size * 3] > 50); /* the middle pixel begins below the middle of the crop */
    CHECK_OK(gmem_resize(context, GMEM_FILTER_BICUBIC, 1, side, pixels, 1, 1, out, NULL));
    CHECK_OK(gmem_resize(context, GMEM_FILTER_BOX, side, 1, pixels, 1, 1, out, NULL));
    free(pixels);
    free(out);
    gmem_context_destroy(context);
}

static void test_refused(void) {
    const int64_t bad[] = {0, -1, INT64_MIN, ((int64_t)1 << 22) + 1, INT64_MAX, INT64_MAX / 3};
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    uint8_t pixels[3] = {1, 2, 3}, out[3] = {9, 9, 9};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const gmem_filter box = GMEM_FILTER_BOX;
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, box, bad[i], 1, pixels, 1, 1, out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, box, 1, bad[i], pixels, 1, 1, out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, box, 1, 1, pixels, bad[i], 1, out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, box, 1, 1, pixels, 1, bad[i], out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(context, bad[i], 1, pixels, 1, out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(context, 1, bad[i], pixels, 1, out, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(context, 1, 1, pixels, bad[i], out, NULL));
    }
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(NULL, GMEM_FILTER_BOX, 1, 1, pixels, 1, 1, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, (gmem_filter)2, 1, 1, pixels, 1, 1, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, GMEM_FILTER_BOX, 1, 1, NULL, 1, 1, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_resize(context, GMEM_FILTER_BOX, 1, 1, pixels, 1, 1, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(NULL, 1, 1, pixels, 1, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(context, 1, 1, NULL, 1, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_center_crop(context, 1, 1, pixels, 1, NULL, NULL));
    CHECK(out[0] == 9 && out[1] == 9 && out[2] == 9);
    gmem_context_destroy(context);
}

/* A crop with two halvings, so that every allocation comes more than once. */
static gmem_status attempt(gmem_context *context, void *user) {
    uint8_t out[8 * 8 * 3];
    memset(out, 0xa5, sizeof out);
    gmem_status status = gmem_center_crop(context, 35, 50, (const uint8_t *)user, 8, out, NULL);
    for (size_t i = 0; status != GMEM_OK && i < sizeof out; i++)
        if (out[i] != 0xa5) return GMEM_E_ARGUMENT; /* a failure must not touch it */
    return status;
}

static void test_memory(void) {
    uint8_t *pixels = procedural(35, 50);
    check_failing_allocations(attempt, pixels, 20);
    free(pixels);
}

int main(void) {
    test_recorded();
    test_constant();
    test_thin();
    test_refused();
    test_memory();
    return check_report();
}
