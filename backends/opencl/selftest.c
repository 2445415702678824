/* What a device must show before it is used: every operation on small tensors, compared with the scalar CPU's. And how
 * long it takes for a product, beside the CPU. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <math.h>
#include <time.h>

#if defined(__unix__) || defined(__APPLE__)
#define GMEM__TEST_POSIX
#include <sys/time.h>
#endif

#define GMEM__TEST_FLOATS       2048 /* of each tensor */
#define GMEM__TEST_BAR          1e-4 /* relative L2; right ones differ by less than 1e-6 */
#define GMEM__TEST_COUNT(cases) (sizeof(cases) / sizeof *(cases))

/* The tensors of a case, all filled before it. Y is compared, and read by what works in place. */
enum {
    GMEM__TEST_Y,
    GMEM__TEST_WORK,
    GMEM__TEST_X,
    GMEM__TEST_F32, /* weights of each type */
    GMEM__TEST_F16,
    GMEM__TEST_BF16,
    GMEM__TEST_I8,
    GMEM__TEST_VECTORS, /* biases, gates, scales, ... side by side */
    GMEM__TEST_TENSORS
};

enum { GMEM__TEST_BIAS = 1, GMEM__TEST_GATE = 2, GMEM__TEST_RESIDUAL = 4, GMEM__TEST_NORM = 8, GMEM__TEST_ROUND = 16 };

/* An operation with its numbers, run on either engine. */
typedef struct gmem__test_case {
    const char *name;
    void (*run)(const gmem__engine *engine, const struct gmem__test_case *test, float *const *at);
    int kind;  /* of the operation: a type, a kernel's size, ... */
    int with;  /* GMEM__TEST_BIAS, ... */
    int after; /* an activation, a stride, ... */
} gmem__test_case;

/* cases ----------------------------------------------------------------------------------------------------------- */

enum { GMEM__TEST_TOKENS = 17, GMEM__TEST_COLUMNS = 2 * GMEM__TEST_TOKENS }; /* of two samples */

/* The vector number i, up to 64 long. */
static float *gmem__test_vector(float *const *at, int i) { return at[GMEM__TEST_VECTORS] + (ptrdiff_t)i * 256; }

static gmem__weight gmem__test_weight(float *const *at, gmem_type type, int64_t rows, int64_t cols) {
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.data = at[type == GMEM_I8     ? GMEM__TEST_I8
                     : type == GMEM_BF16 ? GMEM__TEST_BF16
                     : type == GMEM_F16  ? GMEM__TEST_F16
                                         : GMEM__TEST_F32];
    weight.scale = type == GMEM_I8 ? gmem__test_vector(at, 0) : NULL;
    weight.type = type;
    weight.rows = rows;
    weight.cols = weight.row_stride = cols;
    return weight;
}

static gmem__norm gmem__test_norm_of(float *const *at, int rms, int modulated, float *y) {
    gmem__norm norm;
    memset(&norm, 0, sizeof norm);
    norm.rms = rms;
    norm.eps = 1e-6f;
    norm.weight = gmem__test_vector(at, 1);
    norm.bias = modulated ? NULL : gmem__test_vector(at, 2);
    norm.shift = modulated ? gmem__test_vector(at, 3) : NULL;
    norm.scale = modulated ? gmem__test_vector(at, 4) : NULL;
    norm.modulation_stride = 40;
    norm.x = at[GMEM__TEST_X];
    norm.y = y;
    norm.channels = 37;
    norm.columns = GMEM__TEST_COLUMNS;
    norm.tokens = GMEM__TEST_TOKENS;
    return norm;
}

static void gmem__test_norm(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    const gmem__norm norm = gmem__test_norm_of(at, test->kind, test->kind, at[GMEM__TEST_Y]);
    engine->ops->norm(engine, &norm);
}

static void gmem__test_linear(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__weight weight = gmem__test_weight(at, (gmem_type)test->kind, 26, 37);
    const gmem__norm norm = gmem__test_norm_of(at, 1, 1, at[GMEM__TEST_WORK]);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    if (test->with & GMEM__TEST_ROUND) weight.compute = GMEM_COMPUTE_BF16;
    op.weight = &weight;
    op.bias = test->with & GMEM__TEST_BIAS ? gmem__test_vector(at, 5) : NULL;
    op.norm = test->with & GMEM__TEST_NORM ? &norm : NULL;
    op.x = at[GMEM__TEST_X];
    op.y = at[GMEM__TEST_Y];
    op.x_stride = op.columns = GMEM__TEST_COLUMNS;
    op.y_stride = GMEM__TEST_COLUMNS + 3;
    op.activation = (gmem__activation)test->after;
    op.residual = (test->with & GMEM__TEST_RESIDUAL) != 0;
    op.gate = test->with & GMEM__TEST_GATE ? gmem__test_vector(at, 6) : NULL;
    op.gate_stride = 40;
    op.tokens = GMEM__TEST_TOKENS;
    engine->ops->linear(engine, &op);
}

/* Small integers as the weights, times 2^kind as x: products and sums are exact in f16, or beyond its range, or lost
 * where it has no subnormal numbers. The gate makes them small integers again. */
static void gmem__test_linear_f16(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    enum { ROWS = 26, DEPTH = 37 };
    float values[GMEM__TEST_FLOATS] = {0};
    gmem__weight weight = gmem__test_weight(at, GMEM_F32, ROWS, DEPTH);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    engine->ops->upload(engine, at[GMEM__TEST_Y], values, GMEM__TEST_FLOATS);
    for (int i = 0; i < ROWS * DEPTH; i++)
        values[i] = (float)(i * 7 % 5 - 1);
    engine->ops->upload(engine, at[GMEM__TEST_F32], values, ROWS * DEPTH);
    for (int i = 0; i < GMEM__TEST_COLUMNS * DEPTH; i++)
        values[i] = ldexpf((float)(i * 5 % 6 - 2), test->kind);
    engine->ops->upload(engine, at[GMEM__TEST_WORK], values, GMEM__TEST_COLUMNS * DEPTH);
    for (int i = 0; i < GMEM__TEST_FLOATS; i++) /* all: where only a part is written, oclgrind forgets the others */
        values[i] = ldexpf(1.0f / 16, -test->kind);
    engine->ops->upload(engine, at[GMEM__TEST_VECTORS], values, GMEM__TEST_FLOATS);
    if (engine->stream) weight.compute = GMEM_COMPUTE_F16; /* which no CPU's kernel does, and gives the same */
    op.weight = &weight;
    op.x = at[GMEM__TEST_WORK];
    op.y = at[GMEM__TEST_Y];
    op.x_stride = op.y_stride = op.columns = op.tokens = GMEM__TEST_COLUMNS;
    op.gate = gmem__test_vector(at, 6);
    engine->ops->linear(engine, &op);
}

static void gmem__test_rotate(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__rotate op;
    memset(&op, 0, sizeof op);
    op.x = at[GMEM__TEST_Y];
    op.heads = 3;
    op.head_dim = 8;
    op.columns = GMEM__TEST_COLUMNS;
    op.tokens = GMEM__TEST_TOKENS;
    op.norm = test->kind;
    op.rms = 1;
    op.eps = 1e-6f;
    op.weight = gmem__test_vector(at, 1);
    op.cosine = gmem__test_vector(at, 3);
    op.sine = gmem__test_vector(at, 4);
    engine->ops->rotate(engine, &op);
}

static void gmem__test_attention(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__attention op;
    (void)test;
    memset(&op, 0, sizeof op);
    op.q = at[GMEM__TEST_X];
    op.k = at[GMEM__TEST_F32];
    op.v = at[GMEM__TEST_WORK];
    op.y = at[GMEM__TEST_Y];
    op.heads = 2;
    op.head_dim = 9;
    op.tokens = GMEM__TEST_TOKENS;
    op.samples = 2;
    op.stride = op.y_stride = GMEM__TEST_COLUMNS;
    op.scale = 2;
    engine->ops->attention(engine, &op);
}

static void gmem__test_conv(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    const gmem__weight weight = gmem__test_weight(at, GMEM_F32, 6, 5 * (int64_t)test->kind * test->kind);
    gmem__conv op;
    memset(&op, 0, sizeof op);
    op.weight = &weight;
    op.bias = gmem__test_vector(at, 5);
    op.residual = test->with & GMEM__TEST_RESIDUAL ? at[GMEM__TEST_Y] : NULL;
    op.x = at[GMEM__TEST_X];
    op.y = at[GMEM__TEST_Y];
    op.in_channels = 5;
    op.height = 6;
    op.width = 8;
    op.kernel = test->kind;
    op.stride = test->after == 2 ? 2 : 1;
    op.upsample = test->after == -2;
    engine->ops->conv(engine, &op);
}

static void gmem__test_group_norm(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    op.x = at[GMEM__TEST_X];
    op.y = at[GMEM__TEST_Y];
    op.weight = gmem__test_vector(at, 1);
    op.bias = gmem__test_vector(at, 2);
    op.channels = 12;
    op.area = 77;
    op.groups = 4;
    op.eps = 1e-6f;
    op.silu = test->after;
    engine->ops->group_norm(engine, &op);
}

static void gmem__test_copy(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__copy op;
    (void)test;
    op.to = at[GMEM__TEST_Y];
    op.from = at[GMEM__TEST_X];
    op.rows = 9;
    op.width = 21;
    op.to_stride = 40;
    op.from_stride = 30;
    engine->ops->copy(engine, &op);
}

static void gmem__test_patches(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__patches op;
    op.to_latents = test->kind;
    op.latents = at[test->kind ? GMEM__TEST_Y : GMEM__TEST_X];
    op.patches = at[test->kind ? GMEM__TEST_X : GMEM__TEST_Y];
    op.samples = 2;
    op.channels = 3;
    op.patch_channels = 4;
    op.height = 6;
    op.width = 10;
    op.patch = 2;
    engine->ops->patches(engine, &op);
}

static void gmem__test_combine(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__combine op;
    (void)test;
    memset(&op, 0, sizeof op);
    op.out = at[GMEM__TEST_Y];
    op.x = at[GMEM__TEST_X];
    op.x_weight = 0.7;
    op.terms = 2;
    op.weight[0] = -1.3;
    op.k[0] = at[GMEM__TEST_Y];
    op.weight[1] = 1e-3;
    op.k[1] = at[GMEM__TEST_F32];
    op.rows = 7;
    op.width = 33;
    op.stride = 50;
    engine->ops->combine(engine, &op);
}

static void gmem__test_transpose(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__transpose op;
    (void)test;
    op.x = at[GMEM__TEST_X];
    op.y = at[GMEM__TEST_Y];
    op.rows = 19;
    op.columns = 37;
    op.y_stride = 21;
    engine->ops->transpose(engine, &op);
}

static void gmem__test_silu(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    (void)test;
    engine->ops->silu(engine, at[GMEM__TEST_Y], 501);
}

static void gmem__test_normal(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__normal op;
    (void)test;
    op.seed = 0x123456789abcdef0u;
    op.draw = 1;
    op.index = 3;
    op.picture = 5;
    op.count = 3;
    op.per_picture = 130;
    op.out = at[GMEM__TEST_Y];
    engine->ops->normal(engine, &op);
}

static void gmem__test_scale_shift(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__scale_shift op;
    (void)test;
    op.x = at[GMEM__TEST_X];
    op.scale = gmem__test_vector(at, 1);
    op.shift = gmem__test_vector(at, 2);
    op.y = at[GMEM__TEST_Y];
    op.channels = 7;
    op.area = 45;
    engine->ops->scale_shift(engine, &op);
}

static void gmem__test_hand_over(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    (void)test;
    engine->ops->hand_over(engine, at[GMEM__TEST_X], engine, at[GMEM__TEST_Y], 555);
}

/* Below 0 to above 255, always far from a step, where rounding would decide. */
static void gmem__test_pixels(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    enum { AREA = 35 };
    uint8_t pixels[3 * AREA] = {0};
    float values[3 * AREA];
    (void)test;
    for (int i = 0; i < 3 * AREA; i++)
        values[i] = (float)(5 * i - 262) / 255.0f;
    engine->ops->upload(engine, at[GMEM__TEST_WORK], values, 3 * AREA);
    engine->ops->pixels(engine, pixels, at[GMEM__TEST_WORK], AREA, 128.25f);
    for (int i = 0; i < 3 * AREA; i++)
        values[i] = (float)pixels[i];
    engine->ops->upload(engine, at[GMEM__TEST_Y], values, 3 * AREA);
}

/* Numbers that an operation returns, where they are compared. */
static void gmem__test_return(const gmem__engine *engine, float *const *at, double a, double b) {
    const float values[2] = {(float)a, (float)b};
    engine->ops->upload(engine, at[GMEM__TEST_Y], values, 2);
}

/* The notes for finite numbers and for others: a device tells when it settles. */
static void gmem__test_finite(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    float values[700] = {0};
    int notes = 0;
    (void)test;
    int noted = engine->ops->finite(engine, at[GMEM__TEST_X], 700, GMEM__NOTE_NETWORK) ? 0 : GMEM__NOTE_NETWORK;
    values[600] = HUGE_VALF;
    engine->ops->upload(engine, at[GMEM__TEST_WORK], values, 700);
    noted |= engine->ops->finite(engine, at[GMEM__TEST_WORK], 700, GMEM__NOTE_STATE) ? 0 : GMEM__NOTE_STATE;
    (void)engine->ops->settle(engine, &notes, NULL); /* a failure stays, and is told after the case */
    gmem__test_return(engine, at, noted | notes, 0);
}

static void gmem__test_error_norm(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__error_norm op;
    (void)test;
    memset(&op, 0, sizeof op);
    op.terms = 2;
    op.weight[0] = 0.3;
    op.k[0] = at[GMEM__TEST_F32];
    op.weight[1] = -0.2;
    op.k[1] = at[GMEM__TEST_WORK];
    op.x = at[GMEM__TEST_X];
    op.y = at[GMEM__TEST_Y];
    op.atol = 0.25;
    op.rtol = 0.5;
    op.count = 777;
    gmem__test_return(engine, at, engine->ops->error_norm(engine, &op), 0);
}

static void gmem__test_change(const gmem__engine *engine, const gmem__test_case *test, float *const *at) {
    gmem__change op;
    double change = 0, size = 0;
    (void)test;
    op.after = at[GMEM__TEST_X];
    op.before = at[GMEM__TEST_WORK];
    op.residual = at[GMEM__TEST_F32];
    op.rows = 11;
    op.width = 29;
    op.after_stride = 31;
    engine->ops->change(engine, &op, &change, &size);
    gmem__test_return(engine, at, change, size);
}

static const gmem__test_case gmem__test_cases[] = {
    {"norm (layer)", gmem__test_norm, 0, 0, 0},
    {"norm (RMS, modulated)", gmem__test_norm, 1, 0, 0},
    {"linear", gmem__test_linear, GMEM_F32, 0, GMEM__ACT_NONE},
    {"linear (f16, silu)", gmem__test_linear, GMEM_F16, GMEM__TEST_BIAS, GMEM__ACT_SILU},
    {"linear (bf16, gelu)", gmem__test_linear, GMEM_BF16, GMEM__TEST_BIAS, GMEM__ACT_GELU_TANH},
    {"linear (int8, gelu)", gmem__test_linear, GMEM_I8, GMEM__TEST_BIAS, GMEM__ACT_GELU_ERF},
    {"linear (swiglu)", gmem__test_linear, GMEM_F32, GMEM__TEST_BIAS, GMEM__ACT_SWIGLU},
    {"linear (gate)", gmem__test_linear, GMEM_F32, GMEM__TEST_BIAS | GMEM__TEST_GATE, GMEM__ACT_NONE},
    {"linear (residual)", gmem__test_linear, GMEM_F32, GMEM__TEST_RESIDUAL, GMEM__ACT_NONE},
    {"linear (norm)", gmem__test_linear, GMEM_F32, GMEM__TEST_NORM, GMEM__ACT_NONE},
    {"linear (in bf16)", gmem__test_linear, GMEM_BF16, GMEM__TEST_ROUND, GMEM__ACT_NONE},
    {"rotate", gmem__test_rotate, 0, 0, 0},
    {"rotate (norm)", gmem__test_rotate, 1, 0, 0},
    {"attention", gmem__test_attention, 0, 0, 0},
    {"conv (1 x 1)", gmem__test_conv, 1, 0, 1},
    {"conv (3 x 3, residual)", gmem__test_conv, 3, GMEM__TEST_RESIDUAL, 1},
    {"conv (stride 2)", gmem__test_conv, 3, 0, 2},
    {"conv (upsample)", gmem__test_conv, 3, 0, -2},
    {"group_norm", gmem__test_group_norm, 0, 0, 0},
    {"group_norm (silu)", gmem__test_group_norm, 0, 0, 1},
    {"copy", gmem__test_copy, 0, 0, 0},
    {"patches", gmem__test_patches, 0, 0, 0},
    {"patches (back)", gmem__test_patches, 1, 0, 0},
    {"combine", gmem__test_combine, 0, 0, 0},
    {"transpose", gmem__test_transpose, 0, 0, 0},
    {"silu", gmem__test_silu, 0, 0, 0},
    {"normal", gmem__test_normal, 0, 0, 0},
    {"scale_shift", gmem__test_scale_shift, 0, 0, 0},
    {"hand_over", gmem__test_hand_over, 0, 0, 0},
    {"pixels", gmem__test_pixels, 0, 0, 0},
    {"finite", gmem__test_finite, 0, 0, 0},
    {"error_norm", gmem__test_error_norm, 0, 0, 0},
    {"change", gmem__test_change, 0, 0, 0},
};

/* Of contexts that compute in f16 alone, and the first of them: what fails here is tried again without. */
static const gmem__test_case gmem__test_cases_f16[] = {
    {"linear (in f16)", gmem__test_linear_f16, 0, 0, 0},
    {"linear (in f16, large)", gmem__test_linear_f16, 14, 0, 0},
    {"linear (in f16, subnormal)", gmem__test_linear_f16, -22, 0, 0},
};

/* the comparison -------------------------------------------------------------------------------------------------- */

/* An engine with the tensors in its memory. */
typedef struct gmem__test_side {
    const gmem_context *context;
    gmem__engine engine;
    gmem__arena arena;
    float *at[GMEM__TEST_TENSORS];
    float *result; /* (GMEM__TEST_FLOATS) of the host */
} gmem__test_side;

/* Numbers in [-1, 1) that look random. */
static void gmem__test_fill(float *out, int64_t count, uint32_t seed) {
    uint32_t state = seed * 0x9e3779b9u + 1;
    for (int64_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        out[i] = (float)(state >> 8) / 8388608.0f - 1.0f;
    }
}

/* What a tensor holds at first, as its type lies in memory. */
static void gmem__test_values(int tensor, float *out) {
    float values[GMEM__TEST_FLOATS];
    gmem__test_fill(values, GMEM__TEST_FLOATS, (uint32_t)tensor);
    memcpy(out, values, sizeof values);
    if (tensor == GMEM__TEST_F16) gmem_convert_f32(values, GMEM__TEST_FLOATS, GMEM_F16, out);
    if (tensor == GMEM__TEST_BF16) gmem_convert_f32(values, GMEM__TEST_FLOATS, GMEM_BF16, out);
    signed char *bytes = (signed char *)out;
    for (int i = 0; tensor == GMEM__TEST_I8 && i < GMEM__TEST_FLOATS; i++)
        bytes[i] = (signed char)(int)(values[i] * 127);
}

static void gmem__test_take(gmem__test_side *side) {
    for (int i = 0; i < GMEM__TEST_TENSORS; i++)
        side->at[i] = GMEM__TAKE_F32(&side->arena, GMEM__TEST_FLOATS);
}

static gmem_status gmem__test_side_open(gmem__test_side *side, gmem_error *error) {
    gmem__engine *engine = &side->engine;
    const int64_t scratch = engine->ops->scratch_bytes(engine->threads);
    engine->scratch = gmem__alloc_raw(side->context, scratch, 1);
    side->result = (float *)gmem__alloc(side->context, GMEM__TEST_FLOATS, sizeof *side->result);
    if ((scratch && !engine->scratch) || !side->result)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the device's test");
    gmem__test_take(side);
    GMEM__TRY(gmem__engine_reserve(engine, side->context, &side->arena, "the device's test", error));
    gmem__test_take(side);
    return GMEM_OK;
}

static void gmem__test_side_close(gmem__test_side *side) {
    gmem__engine *engine = &side->engine;
    if (side->arena.memory) engine->ops->release(engine, side->context, &side->arena);
    gmem__free(side->context, side->result, GMEM__TEST_FLOATS, sizeof *side->result);
    gmem__free(side->context, engine->scratch, engine->ops->scratch_bytes(engine->threads), 1);
}

static gmem_status gmem__test_run(const gmem__test_case *test, const gmem__test_side *side, gmem_error *error) {
    const gmem__engine *engine = &side->engine;
    float values[GMEM__TEST_FLOATS];
    int notes = 0;
    for (int i = 0; i < GMEM__TEST_TENSORS; i++) {
        gmem__test_values(i, values);
        engine->ops->upload(engine, side->at[i], values, GMEM__TEST_FLOATS);
    }
    test->run(engine, test, side->at);
    engine->ops->download(engine, side->result, side->at[GMEM__TEST_Y], GMEM__TEST_FLOATS);
    return engine->ops->settle(engine, &notes, error);
}

/* Relative L2. */
static double gmem__test_difference(const float *actual, const float *expected) {
    double difference = 0, size = 0;
    for (int i = 0; i < GMEM__TEST_FLOATS; i++) {
        const double d = (double)actual[i] - (double)expected[i];
        difference += d * d;
        size += (double)expected[i] * (double)expected[i];
    }
    return sqrt(difference / size);
}

static gmem_status gmem__test_compare(const gmem__test_case *test, const struct gmem__device *device,
                                      const gmem__test_side *sides, gmem_error *error) {
    gmem__quoted number;
    for (int i = 0; i < 2; i++)
        GMEM__TRY(gmem__test_run(test, sides + i, error));
    const double difference = gmem__test_difference(sides[1].result, sides[0].result);
    if (difference <= GMEM__TEST_BAR) return GMEM_OK; /* NaN is not */
    return gmem__fail(error, GMEM_E_DEVICE_TEST, "%s: %s differs from the CPU's by %s of its size", device->backend,
                      test->name, gmem__format_double(&number, difference));
}

static gmem_status gmem__test_each(const gmem__test_case *cases, size_t count, const struct gmem__device *device,
                                   const gmem__test_side *sides, gmem_error *error) {
    for (size_t i = 0; i < count; i++)
        GMEM__TRY(gmem__test_compare(&cases[i], device, sides, error));
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__device_test(struct gmem__device *device, gmem_error *error) {
    gmem__test_side sides[2];
    gmem_status status;
    memset(sides, 0, sizeof sides);
    sides[0].context = sides[1].context = device->context;
    sides[0].engine.ops = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    sides[1].engine.ops = gmem__opencl_ops();
    sides[0].engine.threads = sides[1].engine.threads = 1;
    GMEM__TRY(gmem__stream_open(device, NULL, &sides[1].engine.stream, error));
    status = gmem__test_side_open(&sides[0], error);
    if (status == GMEM_OK) status = gmem__test_side_open(&sides[1], error);
    if (status == GMEM_OK && device->context->compute == GMEM_COMPUTE_F16)
        status = gmem__test_each(gmem__test_cases_f16, GMEM__TEST_COUNT(gmem__test_cases_f16), device, sides, error);
    if (status == GMEM_OK)
        status = gmem__test_each(gmem__test_cases, GMEM__TEST_COUNT(gmem__test_cases), device, sides, error);
    gmem__test_side_close(&sides[1]);
    gmem__test_side_close(&sides[0]);
    gmem__stream_close(sides[1].engine.stream);
    return status;
}

/* speed ----------------------------------------------------------------------------------------------------------- */

/* The qkv of the published B/1 with guidance: 2 x 256 tokens. */
enum { GMEM__TEST_ROWS = 2304, GMEM__TEST_DEPTH = 768, GMEM__TEST_BATCH = 512, GMEM__TEST_REPEATS = 3 };

/* Where C's clock counts the time of all threads, the system's. */
static double gmem__test_clock(void) {
#ifdef GMEM__TEST_POSIX
    struct timeval now;
    if (gettimeofday(&now, NULL) != 0) return 0;
    return (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

/* The least of some runs after one that warms up, with the way to the device and back. */
static gmem_status gmem__test_measure(gmem_linear *linear, const float *x, float *y, double *seconds,
                                      gmem_error *error) {
    double least = HUGE_VAL;
    for (int i = 0; i <= GMEM__TEST_REPEATS; i++) {
        const double start = gmem__test_clock();
        GMEM__TRY(gmem_linear_run(linear, GMEM__TEST_BATCH, x, y, error));
        const double taken = gmem__test_clock() - start;
        if (i > 0 && taken >= 0 && taken < least) least = taken;
    }
    *seconds = least;
    return GMEM_OK;
}

/* On the context with this device, or NULL for the CPU. memory: the weight, x and y one after the other. */
static gmem_status gmem__test_product(const gmem_context *context, struct gmem__device *device, float *memory,
                                      double *seconds, gmem_error *error) {
    const int64_t shape[2] = {GMEM__TEST_ROWS, GMEM__TEST_DEPTH};
    const gmem_tensor weight = gmem_tensor_make("", GMEM_F32, 2, shape, memory);
    const float *x = memory + GMEM__TEST_ROWS * GMEM__TEST_DEPTH;
    float *y = memory + (GMEM__TEST_ROWS + GMEM__TEST_BATCH) * GMEM__TEST_DEPTH;
    gmem_linear *linear = NULL;
    gmem_context there = *context;
    there.device = device;
    if (!device && there.compute == GMEM_COMPUTE_F16) there.compute = GMEM_COMPUTE_F32; /* which no CPU's kernel does */
    GMEM__TRY(gmem_linear_create(&there, &weight, NULL, &linear, error));
    const gmem_status status = gmem__test_measure(linear, x, y, seconds, error);
    gmem_linear_destroy(linear);
    return status;
}

GMEM__FN gmem_status gmem__device_seconds(struct gmem__device *device, double seconds[2], gmem_error *error) {
    const gmem_context *context = device->context;
    const int64_t inputs = (GMEM__TEST_ROWS + GMEM__TEST_BATCH) * GMEM__TEST_DEPTH;
    const int64_t count = inputs + GMEM__TEST_ROWS * GMEM__TEST_BATCH;
    float *memory = (float *)gmem__alloc_raw(context, count, sizeof *memory);
    if (!memory) return gmem__fail(error, GMEM_E_MEMORY, "no memory to measure a product");
    gmem__test_fill(memory, inputs, 1);
    gmem_status status = gmem__test_product(context, device, memory, &seconds[0], error);
    if (status == GMEM_OK) status = gmem__test_product(context, NULL, memory, &seconds[1], error);
    gmem__free(context, memory, count, sizeof *memory);
    return status;
}

#undef GMEM__TEST_POSIX
#undef GMEM__TEST_FLOATS
#undef GMEM__TEST_BAR
#undef GMEM__TEST_COUNT

#endif /* GMEM_NO_OPENCL */
