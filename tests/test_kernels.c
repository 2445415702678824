/* The row operations of every instruction set (norm, rotate, attention, group_norm) against loops in double, on
 * shapes around the vector widths, with guard zones around the outputs, hostile values, and several thread counts. */
#include "reference.h"

#define BAR 1e-6

/* an operation on one instruction set ------------------------------------------------------------------------------ */

typedef void (*run_op)(const gmem__engine *engine, const void *op);

static void run_norm(const gmem__engine *engine, const void *op) { engine->ops->norm(engine, (const gmem__norm *)op); }
static void run_rotate(const gmem__engine *engine, const void *op) {
    engine->ops->rotate(engine, (const gmem__rotate *)op);
}
static void run_attention(const gmem__engine *engine, const void *op) {
    engine->ops->attention(engine, (const gmem__attention *)op);
}
static void run_group_norm(const gmem__engine *engine, const void *op) {
    engine->ops->group_norm(engine, (const gmem__group_norm *)op);
}

/* One scratch for all, as large as any needs, filled with NaN in the beginning: what a kernel reads without having
 * written it is at best another kernel's. The guard behind what this one may use is checked. */
#define MOST_THREADS 7
static float *scratch;
static char *scratch_memory;

static void scratch_make(const gmem__ops *ops) {
    const size_t floats = (size_t)ops->scratch_bytes(MOST_THREADS) / sizeof(float) + GUARD;
    scratch_memory = (char *)need((int64_t)(floats * sizeof(float)) + 64, 1);
    scratch = (float *)(void *)(scratch_memory + (64 - (uintptr_t)scratch_memory % 64) % 64);
    for (size_t i = 0; i < floats; i++)
        scratch[i] = NAN;
}

static void run(const gmem__ops *ops, int threads, run_op function, const void *op) {
    const size_t end = (size_t)ops->scratch_bytes(threads) / sizeof(float);
    gmem__engine engine;
    memset(&engine, 0, sizeof engine);
    engine.ops = ops;
    engine.threads = threads;
    engine.scratch = scratch;
    for (size_t i = end; i < end + GUARD; i++)
        scratch[i] = CANARY;
    function(&engine, op);
    int held = 1;
    for (size_t i = end; i < end + GUARD; i++)
        held &= scratch[i] == CANARY;
    CHECK(held);
}

/* `op` writes to *y, whose contents beforehand are `before`. On every thread count: within BAR of `expected`, guards
 * intact, and the same bits. */
static void check_op(const gmem__ops *ops, const char *label, run_op function, const void *op, matrix *y,
                     const double *expected) {
    char text[200];
    matrix before = matrix_copy(y), once = matrix_make(1, 1, 1);
    static const int counts[] = {
        1, 2, MOST_THREADS}; /* the last: more than there are blocks of columns, hence smaller ones */
    for (int i = 0; i < LENGTH(counts); i++) {
        const int threads = counts[i];
        memcpy(y->memory, before.memory, (size_t)matrix_floats(y) * sizeof(float));
        run(ops, threads, function, op);
        double error = matrix_error(y, expected);
        snprintf(text, sizeof text, "%s, %s, %d threads: error %.3g", ops->name, label, threads, error);
        check_result(error <= BAR, __FILE__, __LINE__, text);
        snprintf(text, sizeof text, "%s, %s: guards", ops->name, label);
        check_result(matrix_guards_hold(y), __FILE__, __LINE__, text);
        if (threads == 1) {
            matrix_free(&once);
            once = matrix_copy(y);
        } else {
            snprintf(text, sizeof text, "%s, %s: same bits on %d threads", ops->name, label, threads);
            check_result(matrix_equal(&once, y), __FILE__, __LINE__, text);
        }
    }
    matrix_free(&before);
    matrix_free(&once);
}

/* norm ------------------------------------------------------------------------------------------------------------- */

static void norm_case(const gmem__ops *ops, int64_t channels, int64_t tokens, int64_t samples, int options) {
    char label[120];
    gmem__norm op;
    const int in_place = options & 32;
    memset(&op, 0, sizeof op);
    op.channels = channels;
    op.columns = samples * tokens;
    op.tokens = tokens;
    op.rms = options & 1;
    op.eps = 1e-6f;
    op.modulation_stride = 2 * channels + 3;
    float *weight = vector_make(channels, 1, 0.3f), *bias = vector_make(channels, 0, 0.5f);
    float *modulation = vector_make(samples * op.modulation_stride, 0, 0.5f);
    matrix x = matrix_make(channels, op.columns, op.columns), y = matrix_make(channels, op.columns, op.columns);
    matrix_fill(&x, options & 64 ? 3 : 0.1f, 1.5f);
    if (options & 2) op.weight = weight;
    if (options & 4) op.bias = bias;
    if (options & 8) op.scale = modulation;
    if (options & 16) op.shift = modulation + channels;
    op.x = x.data;
    op.y = in_place ? x.data : y.data;
    snprintf(label, sizeof label, "norm, options %d, channels %d, tokens %d, samples %d", options, (int)channels,
             (int)tokens, (int)samples);
    double *expected = reference_norm(&op);
    check_op(ops, label, run_norm, &op, in_place ? &x : &y, expected);
    free(expected);
    free(weight);
    free(bias);
    free(modulation);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_norm(const gmem__ops *ops) {
    static const int64_t channels[] = {1, 3, 7, 16, 72, 1152}, tokens[] = {1, 5, 8, 16, 17, 36, 67, 131};
    int options = 0;
    for (int c = 0; c < LENGTH(channels); c++)
        for (int t = 0; t < LENGTH(tokens); t++)
            for (int64_t samples = 1; samples <= 3; samples++, options = (options + 37) % 128)
                norm_case(ops, channels[c], tokens[t], samples, options);
    for (options = 0; options < 128; options++)
        norm_case(ops, 24, 36, 2, options);
}

static void test_norm_without_samples(const gmem__ops *ops) { /* tokens belongs to the modulation */
    gmem__norm op;
    memset(&op, 0, sizeof op);
    matrix x = matrix_make(5, 40, 40), y = matrix_make(5, 40, 40);
    matrix_fill(&x, 0, 1);
    op.channels = 5;
    op.columns = 40;
    op.x = x.data;
    op.y = y.data;
    op.eps = 1e-6f;
    op.tokens = 40;
    double *expected = reference_norm(&op);
    op.tokens = 0;
    check_op(ops, "norm without tokens", run_norm, &op, &y, expected);
    free(expected);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_norm_nan(const gmem__ops *ops) {
    for (int rms = 0; rms < 2; rms++) {
        gmem__norm op;
        memset(&op, 0, sizeof op);
        matrix x = matrix_make(9, 37, 37), y = matrix_make(9, 37, 37);
        matrix_fill(&x, 0, 1);
        x.data[4 * 37 + 35] = NAN;
        op.rms = rms;
        op.channels = 9;
        op.columns = op.tokens = 37;
        op.x = x.data;
        op.y = y.data;
        op.eps = 1e-6f;
        run(ops, 1, run_norm, &op);
        CHECK_INT(matrix_nans(&y, 0, 9, 35, 1), 9);
        CHECK_INT(matrix_nans(&y, 0, 9, 0, 37), 9);
        matrix_free(&x);
        matrix_free(&y);
    }
}

/* rotate ----------------------------------------------------------------------------------------------------------- */

static void rotate_case(const gmem__ops *ops, int64_t head_dim, int64_t heads, int64_t tokens, int64_t samples,
                        int options) {
    char label[120];
    gmem__rotate op;
    memset(&op, 0, sizeof op);
    op.heads = heads;
    op.head_dim = head_dim;
    op.tokens = tokens;
    op.columns = samples * tokens;
    op.norm = options & 1;
    op.rms = options & 2;
    op.eps = op.rms ? 1e-6f : 1e-5f;
    float *weight = vector_make(head_dim, 1, 0.3f), *bias = vector_make(head_dim, 0, 0.5f);
    float *cosine = vector_make(head_dim * tokens, 0, 1), *sine = vector_make(head_dim * tokens, 0, 1);
    for (int64_t i = 0; i < head_dim * tokens; i++) {
        double angle = 7 * uniform();
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    if (options & 4) op.weight = weight;
    if (options & 8) op.bias = bias;
    if (options & 16) {
        op.cosine = cosine;
        op.sine = sine;
    }
    matrix x = matrix_make(heads * head_dim, op.columns, op.columns);
    matrix_fill(&x, 0.2f, 2);
    op.x = x.data;
    snprintf(label, sizeof label, "rotate, options %d, head_dim %d, heads %d, tokens %d, samples %d", options,
             (int)head_dim, (int)heads, (int)tokens, (int)samples);
    double *expected = reference_rotate(&op);
    check_op(ops, label, run_rotate, &op, &x, expected);
    free(expected);
    free(weight);
    free(bias);
    free(cosine);
    free(sine);
    matrix_free(&x);
}

static void test_rotate(const gmem__ops *ops) {
    static const int64_t head_dims[] = {1, 2, 3, 16, 24, 72, 512}, tokens[] = {1, 7, 16, 36, 70};
    int options = 0;
    for (int d = 0; d < LENGTH(head_dims); d++)
        for (int t = 0; t < LENGTH(tokens); t++)
            for (int64_t samples = 1; samples <= 2; samples++, options = (options + 7) % 32)
                /* LayerNorm of two channels cancels all but their difference: too much to ask of f32 */
                rotate_case(ops, head_dims[d], 1 + t % 3, tokens[t], samples,
                            head_dims[d] == 2 ? options | 2 : options);
    for (options = 0; options < 32; options++)
        rotate_case(ops, 6, 2, 36, 2, options);
}

static void test_rotate_nan(const gmem__ops *ops) {
    gmem__rotate op;
    memset(&op, 0, sizeof op);
    matrix x = matrix_make(2 * 6, 21, 21);
    matrix_fill(&x, 0, 1);
    x.data[(6 + 2) * 21 + 20] = NAN;
    op.x = x.data;
    op.heads = 2;
    op.head_dim = 6;
    op.columns = op.tokens = 21;
    op.norm = op.rms = 1;
    op.eps = 1e-6f;
    run(ops, 2, run_rotate, &op);
    CHECK_INT(matrix_nans(&x, 6, 6, 20, 1), 6);
    CHECK_INT(matrix_nans(&x, 0, 12, 0, 21), 6);
    matrix_free(&x);
}

/* attention -------------------------------------------------------------------------------------------------------- */

/* q, k and v are slices of one (3 * heads * head_dim, columns) matrix, as in the network. */
typedef struct attention_case {
    gmem__attention op;
    matrix qkv, y;
} attention_case;

static attention_case attention_make(int64_t heads, int64_t head_dim, int64_t tokens, int64_t samples, int64_t gap) {
    attention_case c;
    const int64_t rows = heads * head_dim, columns = samples * tokens;
    memset(&c, 0, sizeof c);
    c.qkv = matrix_make(3 * rows, columns, columns + gap);
    c.y = matrix_make(rows, columns, columns + 2 * gap);
    matrix_fill(&c.qkv, 0, 1);
    matrix_fill(&c.y, 0, 1); /* what is there must not matter */
    c.op.q = c.qkv.data;
    c.op.k = c.op.q + rows * c.qkv.stride;
    c.op.v = c.op.k + rows * c.qkv.stride;
    c.op.y = c.y.data;
    c.op.heads = heads;
    c.op.head_dim = head_dim;
    c.op.tokens = tokens;
    c.op.samples = samples;
    c.op.stride = c.qkv.stride;
    c.op.y_stride = c.y.stride;
    c.op.scale = (float)(1 / sqrt((double)head_dim));
    return c;
}

static void attention_check(const gmem__ops *ops, attention_case *c, const char *what) {
    char label[120];
    snprintf(label, sizeof label, "attention, %s, heads %d, head_dim %d, tokens %d, samples %d", what, (int)c->op.heads,
             (int)c->op.head_dim, (int)c->op.tokens, (int)c->op.samples);
    double *expected = reference_attention(&c->op);
    check_op(ops, label, run_attention, &c->op, &c->y, expected);
    free(expected);
}

static void attention_free(attention_case *c) {
    matrix_free(&c->qkv);
    matrix_free(&c->y);
}

static void test_attention(const gmem__ops *ops) {
    static const int64_t head_dims[] = {1, 3, 16, 24, 72, 131}, tokens[] = {1, 2, 7, 16, 36, 63, 64, 65, 130, 257, 265};
    for (int d = 0; d < LENGTH(head_dims); d++)
        for (int t = 0; t < LENGTH(tokens); t++) {
            attention_case c = attention_make(1 + (t + d) % 3, head_dims[d], tokens[t], 1 + t % 2, 5 * (d % 2));
            attention_check(ops, &c, "normal");
            attention_free(&c);
        }
    attention_case c = attention_make(1, 512, 300, 1, 0);
    attention_check(ops, &c, "autoencoder");
    attention_free(&c);
    c = attention_make(2, 72, 803, 1, 1);
    attention_check(ops, &c, "long");
    attention_free(&c);
    c = attention_make(2, 1031, 70, 1, 1);
    attention_check(ops, &c, "wide");
    attention_free(&c);
}

/* Whole numbers, so that the scores are exact in f32 and the bar needs no allowance: some 1e4 in size, of both signs,
 * growing along the keys (every block raises the maximum) or falling. */
static void test_attention_extremes(const gmem__ops *ops) {
    const int64_t count = 600; /* several blocks of keys */
    for (int kind = 0; kind < 4; kind++) {
        static const char *const names[] = {"large scores", "rising scores", "falling scores", "equal low scores"};
        attention_case c = attention_make(1, 16, count, 1, 0);
        float *q = c.qkv.data, *k = q + 16 * c.qkv.stride;
        for (int64_t d = 0; d < 16; d++)
            for (int64_t i = 0; i < count; i++) {
                float random = (float)floor(uniform() * 81 - 40);
                q[d * c.qkv.stride + i] = kind == 0 ? random : (float)(1 + i % 3);
                k[d * c.qkv.stride + i] = kind == 0   ? (float)floor(uniform() * 81 - 40)
                                          : kind == 1 ? (float)i
                                          : kind == 2 ? (float)-i
                                                      : -250.0f;
            }
        c.op.scale = 1;
        attention_check(ops, &c, names[kind]);
        attention_free(&c);
    }
}

static void test_attention_nan(const gmem__ops *ops) {
    const int64_t count = 597;
    for (int part = 0; part < 3; part++)
        for (int64_t token = 0; token < count; token += count / 2) { /* the first, one inside, the last */
            attention_case c = attention_make(2, 5, count, 1, 0);
            matrix_fill(&c.y, 0, 1);
            c.qkv.data[(10 * part + 5 + 3) * c.qkv.stride + token] = NAN; /* head 1, channel 3 */
            run(ops, 1, run_attention, &c.op);
            int64_t column = part ? 0 : token, columns = part ? count : 1; /* a query harms itself, a key all */
            int64_t row = part == 2 ? 8 : 5, rows = part == 2 ? 1 : 5;     /* a value its own channel */
            CHECK_INT(matrix_nans(&c.y, row, rows, column, columns), rows * columns);
            CHECK_INT(matrix_nans(&c.y, 0, 10, 0, count), rows * columns);
            attention_free(&c);
        }
}

/* group_norm ------------------------------------------------------------------------------------------------------- */

static void group_norm_case(const gmem__ops *ops, int64_t channels, int64_t groups, int64_t area, int options) {
    char label[120];
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    const int in_place = options & 2;
    matrix x = matrix_make(channels, area, area), y = matrix_make(channels, area, area);
    matrix_fill(&x, options & 4 ? 10 : 0.1f, 1.5f);
    float *weight = vector_make(channels, 1, 0.3f), *bias = vector_make(channels, 0, 0.5f);
    if (options & 8) weight[0] = 300; /* silu's exponential overflows */
    op.x = x.data;
    op.y = in_place ? x.data : y.data;
    op.weight = weight;
    op.bias = bias;
    op.channels = channels;
    op.area = area;
    op.groups = groups;
    op.eps = 1e-6f;
    op.silu = options & 1;
    snprintf(label, sizeof label, "group_norm, options %d, channels %d, groups %d, area %d", options, (int)channels,
             (int)groups, (int)area);
    double *expected = reference_group_norm(&op);
    check_op(ops, label, run_group_norm, &op, in_place ? &x : &y, expected);
    free(expected);
    free(weight);
    free(bias);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_group_norm(const gmem__ops *ops) {
    static const int64_t shapes[][2] = {{1, 1}, {6, 3}, {32, 32}, {96, 32}, {5, 1}};
    static const int64_t areas[] = {1, 7, 8, 16, 17, 36, 64, 67, 1031};
    int options = 0;
    for (int s = 0; s < LENGTH(shapes); s++)
        for (int a = 0; a < LENGTH(areas); a++, options = (options + 5) % 16)
            group_norm_case(ops, shapes[s][0], shapes[s][1], areas[a], options);
    for (options = 0; options < 16; options++)
        group_norm_case(ops, 6, 2, 83, options);
    group_norm_case(ops, 2, 1, 70001, 4);
}

static void test_group_norm_nan(const gmem__ops *ops) {
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    float weight[4] = {1, 1, 1, 1}, bias[4] = {0, 0, 0, 0};
    for (int silu = 0; silu < 2; silu++) {
        matrix x = matrix_make(4, 19, 19), y = matrix_make(4, 19, 19);
        matrix_fill(&x, 0, 1);
        x.data[2 * 19 + 18] = NAN;
        op.x = x.data;
        op.y = y.data;
        op.weight = weight;
        op.bias = bias;
        op.channels = 4;
        op.groups = 2;
        op.area = 19;
        op.eps = 1e-6f;
        op.silu = silu;
        run(ops, 1, run_group_norm, &op);
        CHECK_INT(matrix_nans(&y, 2, 2, 0, 19), 38);
        CHECK_INT(matrix_nans(&y, 0, 4, 0, 19), 38);
        matrix_free(&x);
        matrix_free(&y);
    }
}

int main(void) {
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        value_state = 1; /* the same values for each */
        scratch_make(ops);
        test_norm(ops);
        test_norm_without_samples(ops);
        test_norm_nan(ops);
        test_rotate(ops);
        test_rotate_nan(ops);
        test_attention(ops);
        test_attention_extremes(ops);
        test_attention_nan(ops);
        test_group_norm(ops);
        test_group_norm_nan(ops);
        free(scratch_memory);
    }
    return check_report();
}
