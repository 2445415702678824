/* Numbers: exact conversions against arithmetic in double, reads through any strides, weights in every layout. */
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

#include "../src/internal.h"

#include <math.h>

static uint64_t state = 1;

static uint32_t random_bits(void) { /* any will do: a linear congruence's upper half */
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* half formats ---------------------------------------------------------------------------------------------------- */

/* The value of a format of `fraction` stored bits and least exponent `least`, from its definition. */
static double half_value(uint16_t half, int fraction, int least) {
    int exponent = (half & 0x7fff) >> fraction, digits = half & ((1 << fraction) - 1);
    double magnitude = exponent ? ldexp((double)(digits | 1 << fraction), exponent - 1 + least - fraction)
                                : ldexp((double)digits, least - fraction);
    return half & 0x8000 ? -magnitude : magnitude;
}

/* The nearest number of the format, ties to even (rint's rule in the default mode); infinity from `limit` on. */
static double rounded(double value, int fraction, int least, double limit) {
    int exponent;
    if (fabs(value) >= limit) return value < 0 ? -INFINITY : INFINITY;
    frexp(value, &exponent);
    exponent = exponent - 1 > least ? exponent - 1 : least;
    return ldexp(rint(ldexp(value, fraction - exponent)), exponent - fraction);
}

static double f16_value(uint16_t half) {
    if ((half & 0x7fff) == 0x7c00) return half & 0x8000 ? -INFINITY : INFINITY;
    return half_value(half, 10, -14);
}

static double bf16_value(uint16_t half) {
    if ((half & 0x7fff) == 0x7f80) return half & 0x8000 ? -INFINITY : INFINITY;
    return half_value(half, 7, -126);
}

static void test_every_half(void) {
    int64_t wrong = 0;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t half = (uint16_t)i;
        float f16 = gmem__f16_to_f32(half), bf16 = gmem__bf16_to_f32(half);
        if ((half & 0x7fff) > 0x7c00) {
            wrong += f16 == f16 || (gmem__f32_to_f16(f16) | 0x200) != (half | 0x200);
        } else {
            wrong += (double)f16 != f16_value(half) || gmem__f32_to_f16(f16) != half;
        }
        if ((half & 0x7fff) > 0x7f80) {
            wrong += bf16 == bf16 || (gmem__f32_to_bf16(bf16) | 0x40) != (half | 0x40);
        } else {
            wrong += (double)bf16 != bf16_value(half) || gmem__f32_to_bf16(bf16) != half;
        }
    }
    CHECK_INT(wrong, 0);
}

static void check_rounding(float value, int64_t *wrong) {
    uint16_t f16 = gmem__f32_to_f16(value), bf16 = gmem__f32_to_bf16(value);
    if (value != value) {
        *wrong += (f16 & 0x7fff) <= 0x7c00 || (bf16 & 0x7fff) <= 0x7f80;
        return;
    }
    double limit_bf16 = ldexp(511, 119); /* halfway from the largest, 255 * 2^120, to 2^128 */
    *wrong += f16_value(f16) != rounded((double)value, 10, -14, 65520) || (f16 >> 15 != 0) != (signbit(value) != 0);
    *wrong +=
        bf16_value(bf16) != rounded((double)value, 7, -126, limit_bf16) || (bf16 >> 15 != 0) != (signbit(value) != 0);
}

/* Random floats, and all the midpoints between neighbouring halves with their neighbours. */
static void test_rounding(void) {
    int64_t wrong = 0;
    for (int i = 0; i < 1000000; i++)
        check_rounding(bits_to_float(random_bits()), &wrong);
    for (uint32_t i = 0; i < 0x7c00; i++) {
        double middle = (half_value((uint16_t)i, 10, -14) + half_value((uint16_t)(i + 1), 10, -14)) / 2;
        uint32_t bits;
        float value = (float)middle;
        memcpy(&bits, &value, sizeof bits);
        for (uint32_t k = bits - 2; k != bits + 3; k++)
            check_rounding(bits_to_float(k), &wrong);
    }
    for (uint32_t i = 0; i < 65536; i++) {
        for (uint32_t k = 0x7ffe; k <= 0x8002; k++)
            check_rounding(bits_to_float((i << 16) + k), &wrong);
    }
    CHECK_INT(wrong, 0);
}

static void test_convert(void) {
    static const float from[4] = {1.5f, -65504.0f, 1e-8f, 3.14159274f};
    float f32[4];
    double f64[4];
    uint16_t half[4];
    gmem_convert_f32(from, 4, GMEM_F32, f32);
    gmem_convert_f32(from, 4, GMEM_F64, f64);
    CHECK(memcmp(f32, from, sizeof from) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(f64[i] == (double)from[i]);
    gmem_convert_f32(from, 4, GMEM_F16, half);
    CHECK(half[0] == 0x3e00 && half[1] == 0xfbff && half[2] == 0 && half[3] == 0x4248);
    gmem_convert_f32(from, 4, GMEM_BF16, half);
    CHECK(half[0] == 0x3fc0 && half[1] == 0xc780 && half[3] == 0x4049);
}

/* reads ----------------------------------------------------------------------------------------------------------- */

static void test_types(void) {
    static const unsigned char bytes[] = {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}; /* data from 0 or 1 */
    static const struct {
        gmem_type type;
        int from;
        int64_t expected;
    } cases[] = {
        {GMEM_I8, 0, -2},  {GMEM_U8, 0, 254}, {GMEM_I16, 0, -2},        {GMEM_I32, 0, -2},
        {GMEM_I64, 0, -2}, {GMEM_BOOL, 0, 1}, {GMEM_I64, 1, INT64_MAX}, {GMEM_I32, 1, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t value;
        float real;
        gmem_tensor tensor = gmem_tensor_make("x", cases[i].type, 0, NULL, bytes + cases[i].from);
        gmem_tensor_read_i64(&tensor, 0, 1, &value);
        gmem_tensor_read_f32(&tensor, 0, 1, &real);
        CHECK_INT(value, cases[i].expected);
        CHECK(real == (float)cases[i].expected);
    }
    CHECK_TEXT(gmem_type_name(GMEM_BF16), "BF16");
    CHECK_TEXT(gmem_type_name(GMEM_TYPE_COUNT), "unknown");
    CHECK_INT(gmem_type_bytes(GMEM_F64), 8);
    CHECK_INT(gmem_type_bytes((gmem_type)-1), 0);
}

/* Reals as integers: towards zero, what does not fit at the nearest end, NaN 0. */
static void test_saturation(void) {
    static const double from[6] = {-2.9, 2.9, 1e30, -1e30, NAN, 9007199254740993.0};
    static const int64_t shape[1] = {6}, expected[6] = {-2, 2, INT64_MAX, INT64_MIN, 0, 9007199254740992};
    int64_t to[6];
    float real[6];
    gmem_tensor tensor = gmem_tensor_make("x", GMEM_F64, 1, shape, from);
    gmem_tensor_read_i64(&tensor, 0, 6, to);
    for (int i = 0; i < 6; i++)
        CHECK_INT(to[i], expected[i]);
    gmem_tensor_read_f32(&tensor, 0, 4, real);
    CHECK(real[0] == -2.9f && real[2] == 1e30f);
}

/* A random view: dimensions in any order over a larger block, with steps, sizes of one, one byte off alignment. */
static gmem_tensor random_view(gmem_type type, const unsigned char *data) {
    gmem_tensor tensor;
    int64_t stride = 1;
    int order[4] = {0, 1, 2, 3};
    memset(&tensor, 0, sizeof tensor);
    tensor.type = type;
    tensor.rank = (int)(random_bits() % 5);
    tensor.data = data + 1;
    for (int i = tensor.rank - 1; i > 0; i--) {
        int other = (int)(random_bits() % (uint32_t)(i + 1)), kept = order[i];
        if (random_bits() % 2) continue; /* contiguous stretches too */
        order[i] = order[other];
        order[other] = kept;
    }
    for (int i = tensor.rank - 1; i >= 0; i--) {
        int64_t size = 1 + random_bits() % 5;
        tensor.shape[order[i]] = size;
        tensor.stride[order[i]] = stride;
        stride *= size + (random_bits() % 3 == 0);
    }
    return tensor;
}

static int64_t element_offset(const gmem_tensor *tensor, int64_t index) {
    int64_t offset = 0;
    for (int i = tensor->rank - 1; i >= 0; i--) {
        offset += index % tensor->shape[i] * tensor->stride[i];
        index /= tensor->shape[i];
    }
    return offset;
}

static void test_views(void) {
    static unsigned char data[1300 * 8 + 1];
    static unsigned char raw[625 * 8];
    static float real[625];
    static int64_t integers[625];
    int64_t wrong = 0;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)random_bits();
    for (int round = 0; round < 20000; round++) {
        gmem_type type = (gmem_type)(random_bits() % GMEM_TYPE_COUNT);
        gmem_tensor view = random_view(type, data);
        int64_t count = gmem_tensor_count(&view), bytes = (int64_t)gmem_type_bytes(type);
        int64_t first = random_bits() % (uint32_t)count, part = 1 + random_bits() % (uint32_t)(count - first);
        gmem_tensor_read(&view, first, part, raw);
        gmem_tensor_read_f32(&view, first, part, real);
        gmem_tensor_read_i64(&view, first, part, integers);
        for (int64_t k = 0; k < part; k++) {
            const unsigned char *from = (const unsigned char *)view.data + element_offset(&view, first + k) * bytes;
            gmem_tensor scalar = gmem_tensor_make("x", type, 0, NULL, from);
            float one_real;
            int64_t one_integer;
            gmem_tensor_read_f32(&scalar, 0, 1, &one_real);
            gmem_tensor_read_i64(&scalar, 0, 1, &one_integer);
            wrong += memcmp(raw + k * bytes, from, (size_t)bytes) != 0;
            wrong += memcmp(real + k, &one_real, sizeof one_real) != 0 || integers[k] != one_integer;
        }
    }
    CHECK_INT(wrong, 0);
}

static void test_contiguity(void) {
    static const int64_t shape[3] = {4, 1, 6}, empty[3] = {0, INT64_MAX, 8};
    gmem_tensor tensor = gmem_tensor_make("x", GMEM_F32, 3, shape, NULL);
    CHECK(tensor.stride[0] == 6 && tensor.stride[1] == 6 && tensor.stride[2] == 1);
    CHECK(gmem__tensor_is_contiguous(&tensor));
    tensor.stride[1] = 77; /* of a dimension of one: never used */
    CHECK(gmem__tensor_is_contiguous(&tensor));
    tensor.stride[0] = 7;
    CHECK(!gmem__tensor_is_contiguous(&tensor));
    tensor = gmem_tensor_make("x", GMEM_F32, 3, empty, NULL);
    CHECK_INT(gmem_tensor_count(&tensor), 0);
    gmem_tensor_read_f32(&tensor, 0, 0, NULL);
}

/* weights --------------------------------------------------------------------------------------------------------- */

/* The largest difference of a weight, element by element of its own description, to a tensor of the same numbers. */
static double weight_error(const gmem__weight *weight, const gmem_tensor *expected) {
    double worst = 0;
    for (int64_t i = 0; i < weight->rows * weight->cols; i++) {
        int64_t row = i / weight->cols, col = i % weight->cols, bytes = (int64_t)gmem_type_bytes(weight->type);
        const unsigned char *from = (const unsigned char *)weight->data + (row * weight->row_stride + col) * bytes;
        gmem_tensor element = gmem_tensor_make("x", weight->type, 0, NULL, from);
        float found, wanted;
        gmem_tensor_read_f32(&element, 0, 1, &found);
        gmem_tensor_read_f32(expected, i, 1, &wanted);
        double error = fabs((double)found * (weight->scale ? (double)weight->scale[row] : 1) - (double)wanted);
        if (!(error <= worst)) worst = error; /* NaN too */
    }
    return worst;
}

/* A file whose data is one byte off alignment: matrices of each type with the numbers 0 to 11, and what goes with. */
static edit_list *weight_list(void) {
    static const int64_t matrix[2] = {3, 4}, conv[4] = {3, 1, 2, 2}, rows[1] = {3}, wrong_rows[1] = {4};
    static const float counting[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, scales[3] = {1, 0.5f, 0.25f};
    static const signed char quantized[12] = {0, 1, 2, 3, 8, 10, 12, 14, 32, 36, 40, 44}, ones[3] = {1, 2, 4};
    static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_F64};
    edit_list *list = edit_new();
    edit_add(list, "off", GMEM_U8, 0, NULL, NULL);
    for (int i = 0; i < 4; i++) {
        void *data = edit_own(list, 12 * 8);
        gmem_convert_f32(counting, 12, types[i], data);
        edit_add(list, gmem_type_name(types[i]), types[i], 2, matrix, data);
    }
    edit_add(list, "conv", GMEM_F32, 4, conv, counting);
    edit_add(list, "I8", GMEM_I8, 2, matrix, quantized);
    edit_add(list, "I8.scale", GMEM_F32, 1, rows, scales);
    edit_add(list, "bad", GMEM_I8, 2, matrix, quantized);
    edit_add(list, "bad.scale", GMEM_F32, 1, wrong_rows, counting);
    edit_add(list, "vector", GMEM_I8, 1, rows, ones);
    edit_add(list, "vector.scale", GMEM_F32, 1, rows, scales);
    return list;
}

static gmem__store store_make(gmem_context *context, gmem_file *file) {
    gmem__store store;
    memset(&store, 0, sizeof store);
    store.context = context;
    store.file = file;
    return store;
}

static void test_weights(void) {
    static const char *const stay[] = {"F32", "F16", "BF16", "I8"};
    failing memory = {0, 0, 0};
    gmem_context *context = failing_context(&memory);
    int64_t before = memory.live;
    edit_list *list = weight_list();
    gmem_file *file = edit_open(context, list);
    gmem__store store = store_make(context, file);
    gmem__weight weight;
    const float *vector = NULL;
    gmem_error error;
    const gmem_tensor *expected = gmem_file_find(file, "F32");
    for (int i = 0; i < 4; i++) { /* views of the file, wherever they lie in it */
        CHECK_OK(gmem__store_matrix(&store, stay[i], 3, 4, &weight, &error));
        CHECK(weight.data == gmem_file_find(file, stay[i])->data && weight.row_stride == 4);
        CHECK((weight.scale != NULL) == (i == 3));
        CHECK(weight_error(&weight, expected) == 0);
    }
    CHECK_INT(store.parameters, 48);
    CHECK_INT(store.bytes, 48 + 24 + 24 + 12 + 12);
    CHECK_OK(gmem__store_conv(&store, "conv", 3, 1, 2, &weight, &error));
    CHECK(weight.data == gmem_file_find(file, "conv")->data && weight_error(&weight, expected) == 0);
    CHECK_OK(gmem__store_matrix(&store, "F64", 3, 4, &weight, &error));
    CHECK(weight.type == GMEM_F32 && (uintptr_t)weight.data % 64 == 0 && weight_error(&weight, expected) == 0);
    CHECK_OK(gmem__store_vector(&store, "vector", 3, &vector, &error));
    CHECK(vector[0] == 1 && vector[1] == 1 && vector[2] == 1);
    CHECK_STATUS(GMEM_E_SHAPE, gmem__store_matrix(&store, "F32", 3, 5, &weight, &error));
    CHECK_TEXT(error.message, "F32: expected 3 x 5, found 3 x 4");
    CHECK_STATUS(GMEM_E_SHAPE, gmem__store_matrix(&store, "bad", 3, 4, &weight, &error));
    CHECK_TEXT(error.message, "bad.scale: expected 3, found 4");
    CHECK_STATUS(GMEM_E_SHAPE, gmem__store_conv(&store, "F32", 3, 4, 1, &weight, &error));
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, gmem__store_vector(&store, "nothing", 3, &vector, &error));
    gmem__store_free(&store);
    memory.countdown = 0;
    CHECK_STATUS(GMEM_E_MEMORY, gmem__store_matrix(&store, "F64", 3, 4, &weight, &error));
    gmem_file_close(file);
    edit_free(list);
    CHECK_INT(memory.live, before);
    gmem_context_destroy(context);
}

/* Column-major matrices are copied. */
static void test_strided_weights(void) {
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    gmem_file *file = golden_open(context, "container_zip.pth");
    gmem_file *expected = golden_open(context, "container.expect.safetensors");
    gmem__store store = store_make(context, file);
    gmem__weight weight;
    CHECK(gmem_file_find(file, "view_t")->stride[0] == 1);
    CHECK_OK(gmem__store_matrix(&store, "view_t", 10, 6, &weight, NULL));
    CHECK(weight.data != gmem_file_find(file, "view_t")->data && weight.row_stride == 6);
    CHECK(weight_error(&weight, gmem_file_find(expected, "view_t")) == 0);
    CHECK_OK(gmem__store_matrix(&store, "view_slice", 3, 2, &weight, NULL));
    CHECK(weight_error(&weight, gmem_file_find(expected, "view_slice")) == 0);
    gmem__store_free(&store);
    gmem_file_close(file);
    gmem_file_close(expected);
    gmem_context_destroy(context);
}

int main(void) {
    test_every_half();
    test_rounding();
    test_convert();
    test_types();
    test_saturation();
    test_views();
    test_contiguity();
    test_weights();
    test_strided_weights();
    return check_report();
}
