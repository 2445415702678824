/* The operations on an OpenCL device against loops in double, on odd shapes, with guard zones around the outputs and
 * hostile values. With the argument "small", fewer and smaller shapes, for a simulator:
 * OCLGRIND_DATA_RACES=1 OCLGRIND_UNINITIALIZED=1, and OCLGRIND_BUILD_OPTIONS=-cl-opt-disable, since oclgrind 21.10
 * takes optimised vectors for uninitialised. */
#include "../backends/opencl/opencl.h"
#include "../src/random.h"

#include "product.h"
#include "reference.h"

#define BAR 1e-6

static int small; /* shapes */
static gmem_context *context;
static gmem__engine engine;

/* memory of the device --------------------------------------------------------------------------------------------- */

/* What a case has put there, each in an arena of its own; freed together. */
static gmem__arena arenas[32];
static int arena_count;

static float *device_alloc(int64_t count) {
    gmem__arena *arena = &arenas[arena_count++];
    memset(arena, 0, sizeof *arena);
    (void)gmem__take(arena, count, sizeof(float));
    CHECK(engine.ops->reserve(&engine, context, arena));
    return (float *)gmem__take(arena, count, sizeof(float));
}

static void device_free(void) {
    while (arena_count > 0)
        engine.ops->release(&engine, context, &arenas[--arena_count]);
}

/* A copy on the device; NULL stays NULL. */
static float *put(const float *x, int64_t count) {
    if (!x) return NULL;
    float *there = device_alloc(count);
    engine.ops->upload(&engine, there, x, count);
    return there;
}

/* The address of the first element, guards around it. */
static float *put_matrix(const matrix *m) { return put(m->memory, matrix_floats(m)) + GUARD; }

static void settle(const char *label) {
    gmem_error error;
    int notes = 0;
    memset(&error, 0, sizeof error);
    if (!CHECK_OK(engine.ops->settle(&engine, &notes, &error))) {
        printf("    %s: %s\n", label, error.message);
        exit(1); /* a stream that has failed does nothing more */
    }
    CHECK_INT(notes, 0);
}

/* Everything that the device holds of `m`, whose address there is `y`. */
static matrix take_back(const matrix *m, const float *y, const char *label) {
    matrix got = matrix_make(m->rows, m->columns, m->stride);
    engine.ops->download(&engine, got.memory, y - GUARD, matrix_floats(&got));
    settle(label);
    return got;
}

static void check_matrix(const char *label, const matrix *m, const float *y, const double *expected) {
    char text[240];
    matrix got = take_back(m, y, label);
    const double error = matrix_error(&got, expected);
    snprintf(text, sizeof text, "%s: error %.3g", label, error);
    check_result(error <= BAR, __FILE__, __LINE__, text);
    snprintf(text, sizeof text, "%s: guards", label);
    check_result(matrix_guards_hold(&got), __FILE__, __LINE__, text);
    matrix_free(&got);
}

/* norm ------------------------------------------------------------------------------------------------------------- */

enum {
    NORM_RMS = 1,
    NORM_WEIGHT = 2,
    NORM_BIAS = 4,
    NORM_SCALE = 8,
    NORM_SHIFT = 16,
    NORM_IN_PLACE = 32,
    NORM_MEAN = 64,
    NORM_STRIDE = 128,
    NORM_OPTIONS = 256
};

static void norm_case(int64_t channels, int64_t tokens, int64_t samples, int options) {
    char label[120];
    gmem__norm op;
    memset(&op, 0, sizeof op);
    op.channels = channels;
    op.columns = samples * tokens;
    op.tokens = tokens;
    op.rms = options & NORM_RMS;
    op.eps = 1e-6f;
    op.modulation_stride = 2 * channels + 3;
    const int in_place = options & NORM_IN_PLACE;
    const int64_t count = samples * op.modulation_stride, gap = options & NORM_STRIDE && !in_place ? 5 : 0;
    float *weight = vector_make(channels, 1, 0.3f), *bias = vector_make(channels, 0, 0.5f);
    float *modulation = vector_make(count, 0, 0.5f);
    matrix x = matrix_make(channels, op.columns, op.columns), y = matrix_make(channels, op.columns, op.columns + gap);
    matrix_fill(&x, options & NORM_MEAN ? 3 : 0.1f, 1.5f);
    if (options & NORM_WEIGHT) op.weight = weight;
    if (options & NORM_BIAS) op.bias = bias;
    if (options & NORM_SCALE) op.scale = modulation;
    if (options & NORM_SHIFT) op.shift = modulation + channels;
    op.x = x.data;
    double *expected = reference_norm(&op);
    float *there = put(modulation, count);
    op.weight = put(op.weight, channels);
    op.bias = put(op.bias, channels);
    if (op.scale) op.scale = there;
    if (op.shift) op.shift = there + channels;
    op.x = put_matrix(&x);
    op.y = in_place ? (float *)(uintptr_t)op.x : put_matrix(&y);
    op.y_stride = gap ? y.stride : 0;
    engine.ops->norm(&engine, &op);
    snprintf(label, sizeof label, "norm, options %d, channels %d, tokens %d, samples %d", options, (int)channels,
             (int)tokens, (int)samples);
    check_matrix(label, in_place ? &x : &y, op.y, expected);
    device_free();
    free(expected);
    free(weight);
    free(bias);
    free(modulation);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_norm(void) {
    static const int64_t channels[] = {1, 3, 7, 16, 72, 1152}, tokens[] = {1, 5, 8, 16, 17, 36, 67, 131};
    int options = 0;
    for (int c = 0; c < LENGTH(channels) - 2 * small; c++)
        for (int t = small; t < LENGTH(tokens); t += 1 + 2 * small)
            for (int64_t samples = 1; samples <= 3 - small; samples++, options = (options + 37) % NORM_OPTIONS)
                norm_case(channels[c], tokens[t], samples, options);
    for (options = 0; options < NORM_OPTIONS; options += 1 + 22 * small)
        norm_case(24, small ? 5 : 36, 2, options);
}

/* tokens belongs to the modulation */
static void test_norm_without_samples(void) {
    gmem__norm op;
    memset(&op, 0, sizeof op);
    matrix x = matrix_make(5, 40, 40), y = matrix_make(5, 40, 43);
    matrix_fill(&x, 0, 1);
    op.channels = 5;
    op.columns = op.tokens = 40;
    op.x = x.data;
    op.eps = 1e-6f;
    double *expected = reference_norm(&op);
    op.tokens = 0;
    op.x = put_matrix(&x);
    op.y = put_matrix(&y);
    op.y_stride = y.stride;
    engine.ops->norm(&engine, &op);
    check_matrix("norm without tokens", &y, op.y, expected);
    device_free();
    free(expected);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_norm_nan(void) {
    for (int rms = 0; rms < 2; rms++) {
        gmem__norm op;
        memset(&op, 0, sizeof op);
        matrix x = matrix_make(9, 37, 37);
        matrix_fill(&x, 0, 1);
        x.data[4 * 37 + 35] = NAN;
        op.rms = rms;
        op.channels = 9;
        op.columns = op.tokens = 37;
        op.x = op.y = put_matrix(&x);
        op.eps = 1e-6f;
        engine.ops->norm(&engine, &op);
        matrix y = take_back(&x, op.y, "norm of NaN");
        CHECK_INT(matrix_nans(&y, 0, 9, 35, 1), 9);
        CHECK_INT(matrix_nans(&y, 0, 9, 0, 37), 9);
        device_free();
        matrix_free(&x);
        matrix_free(&y);
    }
}

/* rotate ----------------------------------------------------------------------------------------------------------- */

static void rotate_case(int64_t head_dim, int64_t heads, int64_t tokens, int64_t samples, int options) {
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
    const int64_t angles = head_dim * tokens;
    float *weight = vector_make(head_dim, 1, 0.3f), *bias = vector_make(head_dim, 0, 0.5f);
    float *cosine = vector_make(angles, 0, 1), *sine = vector_make(angles, 0, 1);
    for (int64_t i = 0; i < angles; i++) {
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
    double *expected = reference_rotate(&op);
    op.x = put_matrix(&x);
    op.weight = put(op.weight, head_dim);
    op.bias = put(op.bias, head_dim);
    op.cosine = put(op.cosine, angles);
    op.sine = put(op.sine, angles);
    if (!op.cosine) op.tokens = 0;
    engine.ops->rotate(&engine, &op);
    snprintf(label, sizeof label, "rotate, options %d, head_dim %d, heads %d, tokens %d, samples %d", options,
             (int)head_dim, (int)heads, (int)tokens, (int)samples);
    check_matrix(label, &x, op.x, expected);
    device_free();
    free(expected);
    free(weight);
    free(bias);
    free(cosine);
    free(sine);
    matrix_free(&x);
}

static void test_rotate(void) {
    static const int64_t head_dims[] = {1, 2, 3, 16, 24, 72, 512}, tokens[] = {1, 7, 16, 36, 70};
    int options = 0;
    for (int d = 0; d < LENGTH(head_dims) - small; d++)
        for (int t = 0; t < LENGTH(tokens); t += 1 + small)
            for (int64_t samples = 1; samples <= 2; samples++, options = (options + 7) % 32)
                /* LayerNorm of two channels cancels all but their difference: too much to ask of f32 */
                rotate_case(head_dims[d], 1 + t % 3, tokens[t], samples, head_dims[d] == 2 ? options | 2 : options);
    for (options = 0; options < 32; options += 1 + 2 * small)
        rotate_case(6, 2, 36, 2, options);
}

/* attention -------------------------------------------------------------------------------------------------------- */

/* q, k and v are slices of one (3 * heads * head_dim, columns) matrix, as in the network. */
typedef struct attention_case {
    gmem__attention op;
    matrix qkv, y;
} attention_case;

static void attention_place(attention_case *c, float *qkv, float *y) {
    const int64_t part = c->op.heads * c->op.head_dim * c->op.stride;
    c->op.q = qkv;
    c->op.k = qkv + part;
    c->op.v = qkv + 2 * part;
    c->op.y = y;
}

static attention_case attention_make(int64_t heads, int64_t head_dim, int64_t tokens, int64_t samples, int64_t gap) {
    attention_case c;
    const int64_t rows = heads * head_dim, columns = samples * tokens;
    memset(&c, 0, sizeof c);
    c.qkv = matrix_make(3 * rows, columns, columns + gap);
    c.y = matrix_make(rows, columns, columns + 2 * gap);
    matrix_fill(&c.qkv, 0, 1);
    matrix_fill(&c.y, 0, 1); /* what is there must not matter */
    c.op.heads = heads;
    c.op.head_dim = head_dim;
    c.op.tokens = tokens;
    c.op.samples = samples;
    c.op.stride = c.qkv.stride;
    c.op.y_stride = c.y.stride;
    c.op.scale = (float)(1 / sqrt((double)head_dim));
    return c;
}

static void attention_run(attention_case *c) {
    attention_place(c, put_matrix(&c->qkv), put_matrix(&c->y));
    engine.ops->attention(&engine, &c->op);
}

static void attention_check(attention_case *c, const char *what) {
    char label[120];
    snprintf(label, sizeof label, "attention, %s, heads %d, head_dim %d, tokens %d, samples %d", what, (int)c->op.heads,
             (int)c->op.head_dim, (int)c->op.tokens, (int)c->op.samples);
    attention_place(c, c->qkv.data, c->y.data);
    double *expected = reference_attention(&c->op);
    attention_run(c);
    check_matrix(label, &c->y, c->op.y, expected);
    device_free();
    free(expected);
    matrix_free(&c->qkv);
    matrix_free(&c->y);
}

static void test_attention(void) {
    static const int64_t head_dims[] = {1, 3, 16, 24, 72, 131}, tokens[] = {1, 2, 7, 16, 36, 63, 64, 65, 130, 257};
    for (int d = 0; d < LENGTH(head_dims); d += 1 + small)
        for (int t = 0; t < LENGTH(tokens) - 3 * small; t += 1 + 2 * small) {
            attention_case c = attention_make(1 + (t + d) % 3, head_dims[d], tokens[t], 1 + t % 2, 5 * (d % 2));
            attention_check(&c, "normal");
        }
    if (small) return;
    attention_case c = attention_make(1, 512, 300, 1, 0);
    attention_check(&c, "autoencoder");
    c = attention_make(16, 72, 256, 2, 0);
    attention_check(&c, "transformer");
}

/* A device with room for the scores of a few queries, or of a few heads, at a time. */
static void test_attention_in_blocks(void) {
    gmem__cl_limits *limits = &context->device->found.limits;
    const int64_t largest = limits->largest;
    static const int64_t shapes[][3] = {{5, 37, 9000}, {5, 70, 40000}, {1, 70, 20000}, {2, 13, 53}};
    for (int i = 0; i < LENGTH(shapes); i += 1 + 2 * small) {
        attention_case c = attention_make(shapes[i][0], 6, shapes[i][1], 2, i);
        attention_place(&c, c.qkv.data, c.y.data);
        double *expected = reference_attention(&c.op);
        attention_place(&c, put_matrix(&c.qkv), put_matrix(&c.y));
        limits->largest = shapes[i][2];
        engine.ops->attention(&engine, &c.op);
        limits->largest = largest;
        check_matrix("attention in blocks", &c.y, c.op.y, expected);
        device_free();
        free(expected);
        matrix_free(&c.qkv);
        matrix_free(&c.y);
    }
}

/* Whole numbers, so that the scores are exact in f32 and the bar needs no allowance: some 1e4 in size, of both signs,
 * growing along the keys or falling. */
static void test_attention_extremes(void) {
    static const char *const names[] = {"large scores", "rising scores", "falling scores", "equal low scores"};
    const int64_t tokens = small ? 40 : 200;
    for (int kind = 0; kind < LENGTH(names); kind++) {
        attention_case c = attention_make(1, 16, tokens, 1, 0);
        float *q = c.qkv.data, *k = q + 16 * c.qkv.stride;
        for (int64_t d = 0; d < 16; d++)
            for (int64_t i = 0; i < tokens; i++) {
                float random = (float)floor(uniform() * 81 - 40);
                q[d * c.qkv.stride + i] = kind == 0 ? random : (float)(1 + i % 3);
                k[d * c.qkv.stride + i] = kind == 0   ? (float)floor(uniform() * 81 - 40)
                                          : kind == 1 ? (float)i
                                          : kind == 2 ? (float)-i
                                                      : -250.0f;
            }
        c.op.scale = 1;
        attention_check(&c, names[kind]);
    }
}

static void test_attention_nan(void) {
    const int64_t tokens = small ? 33 : 133;
    for (int part = 0; part < 3; part++)
        for (int64_t token = 0; token < tokens; token += tokens / 2) { /* the first, one inside, the last */
            attention_case c = attention_make(2, 5, tokens, 1, 0);
            c.qkv.data[(10 * part + 5 + 3) * c.qkv.stride + token] = NAN; /* head 1, channel 3 */
            attention_run(&c);
            matrix y = take_back(&c.y, c.op.y, "attention of NaN");
            int64_t column = part ? 0 : token, columns = part ? tokens : 1; /* a query harms itself, a key all */
            int64_t row = part == 2 ? 8 : 5, rows = part == 2 ? 1 : 5;      /* a value its own channel */
            CHECK_INT(matrix_nans(&y, row, rows, column, columns), rows * columns);
            CHECK_INT(matrix_nans(&y, 0, 10, 0, tokens), rows * columns);
            device_free();
            matrix_free(&y);
            matrix_free(&c.qkv);
            matrix_free(&c.y);
        }
}

/* group_norm ------------------------------------------------------------------------------------------------------- */

static void group_norm_case(int64_t channels, int64_t groups, int64_t area, int options) {
    char label[120];
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    const int in_place = options & 2;
    matrix x = matrix_make(channels, area, area), y = matrix_make(channels, area, area);
    matrix_fill(&x, options & 4 ? 10 : 0.1f, 1.5f);
    float *weight = vector_make(channels, 1, 0.3f), *bias = vector_make(channels, 0, 0.5f);
    if (options & 8) weight[0] = 300; /* silu's exponential overflows */
    op.x = x.data;
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
    op.x = put_matrix(&x);
    op.y = in_place ? (float *)(uintptr_t)op.x : put_matrix(&y);
    op.weight = put(weight, channels);
    op.bias = put(bias, channels);
    engine.ops->group_norm(&engine, &op);
    check_matrix(label, in_place ? &x : &y, op.y, expected);
    device_free();
    free(expected);
    free(weight);
    free(bias);
    matrix_free(&x);
    matrix_free(&y);
}

static void test_group_norm(void) {
    static const int64_t shapes[][2] = {{1, 1}, {6, 3}, {5, 1}, {32, 32}, {96, 32}};
    static const int64_t areas[] = {1, 7, 8, 16, 17, 36, 64, 67, 1031};
    int options = 0;
    for (int s = 0; s < LENGTH(shapes) - 3 * small; s++)
        for (int a = 0; a < LENGTH(areas) - small; a += 1 + 2 * small, options = (options + 5) % 16)
            group_norm_case(shapes[s][0], shapes[s][1], areas[a], options);
    for (options = 0; options < 16; options += 1 + 4 * small)
        group_norm_case(6, 2, 83, options);
    group_norm_case(3, 1, small ? 1501 : 3001, 4); /* parts that are no equals */
    if (!small) group_norm_case(2, 1, 170001, 4);
}

static void test_group_norm_nan(void) {
    for (int silu = 0; silu < 2; silu++) {
        gmem__group_norm op;
        memset(&op, 0, sizeof op);
        const float weight[4] = {1, 1, 1, 1}, bias[4] = {0, 0, 0, 0};
        matrix x = matrix_make(4, 19, 19);
        matrix_fill(&x, 0, 1);
        x.data[2 * 19 + 18] = NAN;
        op.x = op.y = put_matrix(&x);
        op.weight = put(weight, 4);
        op.bias = put(bias, 4);
        op.channels = 4;
        op.groups = 2;
        op.area = 19;
        op.eps = 1e-6f;
        op.silu = silu;
        engine.ops->group_norm(&engine, &op);
        matrix y = take_back(&x, op.y, "group_norm of NaN");
        CHECK_INT(matrix_nans(&y, 2, 2, 0, 19), 38);
        CHECK_INT(matrix_nans(&y, 0, 4, 0, 19), 38);
        device_free();
        matrix_free(&x);
        matrix_free(&y);
    }
}

/* linear and conv: the way into the product ------------------------------------------------------------------------ */

static void put_weights(const weights *w, gmem__weight *out) {
    const int64_t bytes =
        ((w->weight.rows - 1) * w->weight.row_stride + w->weight.cols) * (int64_t)gmem_type_bytes(w->weight.type);
    float *there = device_alloc(gmem__ceil_div(bytes, (int64_t)sizeof(float)));
    *out = w->weight;
    gmem__stream_write(engine.stream, there, w->weight.data, bytes);
    out->data = there;
    out->scale = put(w->weight.scale, w->weight.rows);
}

static void linear_case(gmem_type type, gmem__activation activation, int options) {
    char label[120];
    const int64_t tokens = 9, samples = 3, columns = tokens * samples, rows = 14, depth = 29;
    const int64_t out_rows = activation == GMEM__ACT_SWIGLU ? rows / 2 : rows;
    weights w = weights_make(type, rows, depth);
    matrix x = matrix_random(depth, columns, options & 8 ? 0 : SLACK), y = matrix_random(out_rows, columns, SLACK);
    matrix bias = matrix_random(1, rows, 0), gate = matrix_random(samples, rows, SLACK);
    double *expected = (double *)need(out_rows * columns, sizeof *expected);
    gmem__weight weight;
    gmem__linear op;
    gmem__norm norm;
    memset(&op, 0, sizeof op);
    op.weight = &w.weight;
    op.x = x.data;
    op.x_stride = x.stride;
    op.y_stride = y.stride;
    op.columns = columns;
    op.activation = activation;
    op.bias = options & 1 ? bias.data : NULL;
    op.residual = options & 2;
    op.gate = options & 4 ? gate.data : NULL;
    op.gate_stride = gate.stride;
    op.tokens = tokens;
    memset(&norm, 0, sizeof norm);
    norm.eps = 1e-6f;
    norm.x = x.data;
    norm.channels = depth;
    norm.columns = columns;
    norm.tokens = tokens;
    if (options & 8) {
        float *normed = (float *)need(depth * columns, sizeof(float));
        double *exact = reference_norm(&norm);
        for (int64_t i = 0; i < depth * columns; i++)
            normed[i] = (float)exact[i];
        op.x = normed;
        linear_reference(&op, &w, &y, expected);
        free(exact);
        free(normed);
    } else {
        linear_reference(&op, &w, &y, expected);
    }
    put_weights(&w, &weight);
    op.weight = &weight;
    op.x = put(x.data, depth * x.stride);
    op.y = put_matrix(&y);
    op.bias = put(op.bias, rows);
    op.gate = put(op.gate, samples * gate.stride);
    if (options & 8) {
        norm.x = op.x;
        norm.y = device_alloc(depth * columns);
        op.norm = &norm;
        op.x = NULL;
    }
    engine.ops->linear(&engine, &op);
    snprintf(label, sizeof label, "linear, type %d, activation %d, options %d", (int)type, (int)activation, options);
    check_matrix(label, &y, op.y, expected);
    device_free();
    free(expected);
    weights_free(&w);
    matrix_free(&x);
    matrix_free(&y);
    matrix_free(&bias);
    matrix_free(&gate);
}

static void test_linear(void) {
    for (int options = 0; options < 16; options += 1 + 2 * small)
        for (int a = GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++)
            linear_case(types[(options + a) % LENGTH(types)], (gmem__activation)a, options);
}

/* A 1x1 convolution is a linear layer; the wider ones have tests of their own. */
static void test_conv(void) {
    weights w = weights_make(GMEM_F32, 7, 5);
    matrix x = matrix_random(5, 6 * 11, 0), y = matrix_random(7, 6 * 11, 0), bias = matrix_random(1, 7, 0);
    double *expected = (double *)need(7 * 66, sizeof *expected);
    gmem__weight weight;
    gmem__linear linear;
    gmem__conv op;
    memset(&linear, 0, sizeof linear);
    linear.bias = bias.data;
    linear.x = x.data;
    linear.x_stride = x.stride;
    linear.residual = 1;
    linear_reference(&linear, &w, &y, expected);
    put_weights(&w, &weight);
    memset(&op, 0, sizeof op);
    op.weight = &weight;
    op.bias = put(bias.data, 7);
    op.x = put_matrix(&x);
    op.y = put_matrix(&y);
    op.residual = op.y;
    op.in_channels = 5;
    op.height = 6;
    op.width = 11;
    op.kernel = op.stride = 1;
    engine.ops->conv(&engine, &op);
    check_matrix("conv", &y, op.y, expected);
    device_free();
    free(expected);
    weights_free(&w);
    matrix_free(&x);
    matrix_free(&y);
    matrix_free(&bias);
}

/* shapes ----------------------------------------------------------------------------------------------------------- */

static double *doubles(const matrix *m) { return reference_copy(m->data, m->rows, m->columns, m->stride); }

static void test_copy(void) {
    static const int64_t widths[] = {1, 7, 36, 300};
    for (int i = 0; i < LENGTH(widths) - small; i++) {
        matrix from = matrix_random(5, widths[i], 3), to = matrix_random(5, widths[i], i);
        double *expected = doubles(&from);
        gmem__copy op;
        op.to = put_matrix(&to);
        op.from = put_matrix(&from);
        op.rows = 5;
        op.width = widths[i];
        op.to_stride = to.stride;
        op.from_stride = from.stride;
        engine.ops->copy(&engine, &op);
        check_matrix("copy", &to, op.to, expected);
        device_free();
        free(expected);
        matrix_free(&from);
        matrix_free(&to);
    }
}

/* Rows closed up in place: (rows, width) from `offset` on, stride apart, to the front, without gaps. */
static void overlapping_case(int64_t rows, int64_t width, int64_t stride, int64_t offset) {
    const int64_t count = offset + rows * stride;
    matrix all = matrix_random(1, count, 0);
    double *expected = doubles(&all);
    gmem__copy op;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++)
            expected[r * width + c] = (double)all.data[offset + r * stride + c];
    op.to = put_matrix(&all);
    op.from = op.to + offset;
    op.rows = rows;
    op.width = width;
    op.to_stride = width;
    op.from_stride = stride;
    engine.ops->copy(&engine, &op);
    check_matrix("copy onto itself", &all, op.to, expected);
    device_free();
    free(expected);
    matrix_free(&all);
}

static void test_copy_overlapping(void) {
    overlapping_case(1, 50, 50, 3);
    overlapping_case(7, 5, 8, 0);
    overlapping_case(9, 40, 41, 1);
    overlapping_case(9, 40, 40, 40);
    if (!small) overlapping_case(70, 300, 320, 5);
}

static void patches_case(int64_t samples, int64_t channels, int64_t height, int64_t width, int64_t patch,
                         int64_t patch_channels, int to_latents) {
    const int64_t across = width / patch, tokens = height / patch * across, area = patch * patch;
    const int64_t rows = to_latents ? area * patch_channels : area * channels;
    matrix latents = matrix_random(samples * channels * height, width, 0);
    matrix patches = matrix_random(rows, samples * tokens, 0);
    matrix *out = to_latents ? &latents : &patches;
    double *expected = (double *)need(out->rows * out->columns, sizeof *expected);
    for (int64_t i = 0; i < samples * channels * height * width; i++) {
        const int64_t x = i % width, y = i / width % height, channel = i / width / height % channels;
        const int64_t inside = y % patch * patch + x % patch;
        const int64_t row = to_latents ? inside * patch_channels + channel : channel * area + inside;
        const int64_t at =
            row * samples * tokens + i / width / height / channels * tokens + y / patch * across + x / patch;
        if (to_latents)
            expected[i] = (double)patches.data[at];
        else
            expected[at] = (double)latents.data[i];
    }
    gmem__patches op;
    op.latents = put_matrix(&latents);
    op.patches = put_matrix(&patches);
    op.samples = samples;
    op.channels = channels;
    op.height = height;
    op.width = width;
    op.patch = patch;
    op.patch_channels = patch_channels;
    op.to_latents = to_latents;
    engine.ops->patches(&engine, &op);
    check_matrix(to_latents ? "to latents" : "to patches", out, to_latents ? op.latents : op.patches, expected);
    device_free();
    free(expected);
    matrix_free(&latents);
    matrix_free(&patches);
}

static void test_patches(void) {
    for (int to_latents = 0; to_latents < 2; to_latents++) {
        patches_case(1, 1, 1, 1, 1, 1, to_latents);
        patches_case(2, 4, 6, 10, 2, 8, to_latents);
        patches_case(3, 3, 9, 6, 3, 3, to_latents);
        if (!small) patches_case(2, 4, 32, 32, 2, 8, to_latents);
    }
}

static void test_transpose(void) {
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {33, 1}, {15, 17}, {16, 16}, {70, 35}, {3, 300}};
    for (int i = 0; i < LENGTH(shapes) - small; i++) {
        matrix x = matrix_random(shapes[i][0], shapes[i][1], 0), y = matrix_random(shapes[i][1], shapes[i][0], i);
        double *expected = (double *)need(x.rows * x.columns, sizeof *expected);
        for (int64_t r = 0; r < x.rows; r++)
            for (int64_t c = 0; c < x.columns; c++)
                expected[c * x.rows + r] = (double)x.data[r * x.columns + c];
        gmem__transpose op;
        op.x = put_matrix(&x);
        op.y = put_matrix(&y);
        op.rows = x.rows;
        op.columns = x.columns;
        op.y_stride = y.stride;
        engine.ops->transpose(&engine, &op);
        check_matrix("transpose", &y, op.y, expected);
        device_free();
        free(expected);
        matrix_free(&x);
        matrix_free(&y);
    }
}

/* values ----------------------------------------------------------------------------------------------------------- */

static void test_silu(void) {
    static const int64_t counts[] = {1, 255, 256, 1031};
    for (int i = 0; i < LENGTH(counts) - small; i++) {
        matrix x = matrix_random(1, counts[i], 0);
        for (int64_t j = 0; j < counts[i]; j += 3)
            x.data[j] *= 100;
        double *expected = doubles(&x);
        for (int64_t j = 0; j < counts[i]; j++)
            expected[j] = activate(GMEM__ACT_SILU, expected[j]);
        float *there = put_matrix(&x);
        engine.ops->silu(&engine, there, counts[i]);
        check_matrix("silu", &x, there, expected);
        device_free();
        free(expected);
        matrix_free(&x);
    }
}

/* As in double, then rounded: the same float but where that is a tie or nearly. `cancel`: weights whose sum is 0 on
 * values that are nearly equal. */
static void combine_case(int64_t rows, int64_t width, int terms, int cancel, int in_place) {
    static const double usual[GMEM__MAX_TERMS] = {1.0 / 3, -0.7, 1e-3, 2.123456789, -5.5, 1e-9, 0.1, 35.0 / 384};
    matrix x = matrix_random(rows, width, SLACK), out = matrix_random(rows, width, SLACK), k[GMEM__MAX_TERMS];
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.x_weight = -1.0 / 7;
    op.terms = terms;
    op.rows = rows;
    op.width = width;
    op.stride = x.stride;
    double total = op.x_weight;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = cancel && j == terms - 1 ? -total : usual[j];
        total += op.weight[j];
        k[j] = matrix_random(rows, width, SLACK);
        for (int64_t i = 0; cancel && i < rows * x.stride; i++)
            if (i % x.stride < width) k[j].data[i] = x.data[i] * (1 + 1e-5f * k[j].data[i]);
    }
    float *expected = (float *)need(rows * width, sizeof *expected);
    for (int64_t i = 0; i < rows * width; i++) {
        const int64_t at = i / width * x.stride + i % width;
        double sum = op.x_weight * (double)x.data[at];
        for (int j = 0; j < terms; j++)
            sum += op.weight[j] * (double)k[j].data[at];
        expected[i] = (float)sum;
    }
    op.x = put_matrix(&x);
    for (int j = 0; j < terms; j++)
        op.k[j] = put_matrix(&k[j]);
    op.out = in_place ? (float *)(uintptr_t)(terms ? op.k[0] : op.x) : put_matrix(&out);
    engine.ops->combine(&engine, &op);
    matrix got = take_back(&x, op.out, "combine");
    int64_t differ = 0;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < rows * width; i++) {
        const double value = (double)got.data[i / width * x.stride + i % width], want = (double)expected[i];
        differ += value != want;
        error += (value - want) * (value - want);
        norm += want * want;
    }
    CHECK(matrix_guards_hold(&got));
    if (!CHECK(sqrt(error / norm) <= (cancel ? 2e-7 : 2e-8)) || !CHECK(cancel || differ <= 1 + rows * width / 1000))
        printf("    combine of %d terms, cancel %d: error %.3g, %d of %d differ\n", terms, cancel, sqrt(error / norm),
               (int)differ, (int)(rows * width));
    device_free();
    free(expected);
    matrix_free(&got);
    matrix_free(&x);
    matrix_free(&out);
    for (int j = 0; j < terms; j++)
        matrix_free(&k[j]);
}

static void test_combine(void) {
    for (int terms = 0; terms <= GMEM__MAX_TERMS; terms++) {
        combine_case(1, small ? 70 : 1031, terms, 0, 0);
        combine_case(3, small ? 9 : 401, terms, 0, 1);
        if (terms) combine_case(2, small ? 33 : 400, terms, 1, terms % 2);
    }
}

static void test_scale_shift(void) {
    matrix x = matrix_random(3, 77, 0), scale = matrix_random(1, 3, 0), shift = matrix_random(1, 3, 0);
    double *expected = doubles(&x);
    for (int i = 0; i < 3 * 77; i++)
        expected[i] = expected[i] * (double)scale.data[i / 77] + (double)shift.data[i / 77];
    gmem__scale_shift op;
    op.x = op.y = put_matrix(&x);
    op.scale = put_matrix(&scale);
    op.shift = put_matrix(&shift);
    op.channels = 3;
    op.area = 77;
    engine.ops->scale_shift(&engine, &op);
    check_matrix("scale_shift", &x, op.y, expected);
    device_free();
    free(expected);
    matrix_free(&x);
    matrix_free(&scale);
    matrix_free(&shift);
}

static void test_pixels(void) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 1, -1, 0, 1.5f, -1.5f};
    const gmem__ops *cpu = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    const int64_t area = small ? 77 : 4099;
    matrix x = matrix_random(3, area, 0);
    for (int i = 0; i < LENGTH(special); i++)
        x.data[i * 13] = special[i];
    uint8_t *got = (uint8_t *)need(3 * area + 1, 1), *expected = (uint8_t *)need(3 * area, 1);
    got[3 * area] = 99;
    cpu->pixels(NULL, expected, x.data, area, 127.5f);
    engine.ops->pixels(&engine, got, put_matrix(&x), area, 127.5f);
    settle("pixels");
    CHECK(memcmp(got, expected, (size_t)(3 * area)) == 0 && got[3 * area] == 99);
    device_free();
    free(got);
    free(expected);
    matrix_free(&x);
}

static void test_hand_over(void) {
    gmem__engine other = engine;
    gmem_error error;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &other.stream, &error))) return;
    matrix from = matrix_random(1, 333, 0), to = matrix_random(1, 333, 0);
    double *expected = doubles(&from);
    gmem__engine own = engine;
    float *there = put_matrix(&to);
    gmem__arena arena;
    memset(&arena, 0, sizeof arena);
    (void)gmem__take(&arena, 333, sizeof(float));
    CHECK(other.ops->reserve(&other, context, &arena));
    float *source = (float *)gmem__take(&arena, 333, sizeof(float));
    other.ops->upload(&other, source, from.data, 333);
    other.ops->silu(&other, source, 333);
    other.ops->hand_over(&other, source, &own, there, 333);
    for (int i = 0; i < 333; i++)
        expected[i] = activate(GMEM__ACT_SILU, expected[i]);
    check_matrix("hand_over", &to, there, expected);
    other.ops->release(&other, context, &arena);
    gmem__stream_close(other.stream);
    device_free();
    free(expected);
    matrix_free(&from);
    matrix_free(&to);
}

/* What is not finite is still not finite afterwards, and infinity is not NaN. */
static void test_combine_nonfinite(void) {
    const float x[4] = {NAN, INFINITY, -INFINITY, 3e38f};
    float out[4];
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.x = put(x, 4);
    op.out = device_alloc(4);
    op.x_weight = 2;
    op.rows = 1;
    op.width = op.stride = 4;
    engine.ops->combine(&engine, &op);
    engine.ops->download(&engine, out, op.out, 4);
    settle("combine");
    CHECK(isnan(out[0]) && out[1] == INFINITY && out[2] == -INFINITY && out[3] == INFINITY);
    device_free();
}

static void test_normal(void) {
    static const int64_t sizes[] = {1, 2, 3, 7, 1027};
    for (int i = 0; i < LENGTH(sizes); i++) {
        gmem__normal op;
        gmem_rng rng;
        op.seed = 0xfedcba9876543210u;
        op.draw = GMEM_DRAW_STEP;
        op.index = 41;
        op.picture = 0xfffffffe; /* the third counts into the upper word */
        op.count = 4;
        op.per_picture = small ? gmem__min(sizes[i], 101) : sizes[i];
        const int64_t count = op.count * op.per_picture;
        matrix out = matrix_random(1, count, 0);
        float *expected = (float *)need(count, sizeof *expected);
        gmem_rng_init(&rng, GMEM_RNG_PHILOX, op.seed);
        gmem_rng_normal(&rng, GMEM_DRAW_STEP, op.index, op.picture, op.count, op.per_picture, expected);
        op.out = put_matrix(&out);
        engine.ops->normal(&engine, &op);
        double *exact = reference_copy(expected, 1, count, count);
        check_matrix("normal", &out, op.out, exact);
        device_free();
        free(exact);
        free(expected);
        matrix_free(&out);
    }
}

static void test_finite(void) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    gmem_error error;
    const int64_t count = small ? 300 : 20011;
    for (int i = 0; i < 3; i++) {
        matrix x = matrix_random(1, count, 0);
        int notes = 0;
        float *there = put_matrix(&x);
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_STATE), 1);
        settle("finite");
        x.data[i == 0 ? 0 : i == 1 ? 131 : count - 1] = bad[i];
        engine.ops->upload(&engine, there, x.data, count);
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_STATE), 1);
        CHECK_INT(engine.ops->finite(&engine, there, count, GMEM__NOTE_IMAGE), 1);
        CHECK_OK(engine.ops->settle(&engine, &notes, &error));
        CHECK_INT(notes, GMEM__NOTE_STATE | GMEM__NOTE_IMAGE);
        settle("finite"); /* the notes are gone */
        device_free();
        matrix_free(&x);
    }
}

/* sums ------------------------------------------------------------------------------------------------------------- */

/* The weights of an embedded method's error, whose sum is 0, on slopes that are nearly equal. */
static void error_norm_case(int64_t count, int has_y, int terms) {
    static const double usual[] = {71.0 / 57600, 0, -71.0 / 16695, 71.0 / 1920, -17253.0 / 339200, 22.0 / 525, -0.025};
    matrix x = matrix_random(1, count, 0), y = matrix_random(1, count, 0), k[7];
    double expected = 0;
    gmem__error_norm op;
    memset(&op, 0, sizeof op);
    op.terms = terms;
    op.atol = 1e-6;
    op.rtol = 1e-5;
    op.count = count;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = 0.02 * usual[j];
        k[j] = matrix_random(1, count, 0);
        for (int64_t i = 0; i < count; i++)
            k[j].data[i] = x.data[i] * 3 + 1e-3f * k[j].data[i];
    }
    for (int64_t i = 0; i < count; i++) {
        double sum = 0, size = fabs((double)x.data[i]);
        for (int j = 0; j < terms; j++)
            sum += op.weight[j] * (double)k[j].data[i];
        if (has_y) size = fmax(size, fabs((double)y.data[i]));
        sum /= op.atol + op.rtol * size;
        expected += sum * sum;
    }
    op.x = put_matrix(&x);
    op.y = has_y ? put_matrix(&y) : NULL;
    for (int j = 0; j < terms; j++)
        op.k[j] = put_matrix(&k[j]);
    const double got = engine.ops->error_norm(&engine, &op);
    settle("error_norm");
    if (!CHECK(fabs(got - expected) <= BAR * expected))
        printf("    error_norm of %d: %.9g, not %.9g\n", (int)count, got, expected);
    device_free();
    matrix_free(&x);
    matrix_free(&y);
    for (int j = 0; j < terms; j++)
        matrix_free(&k[j]);
}

static void test_error_norm(void) {
    static const int64_t counts[] = {1, 255, 2049, 16411};
    for (int i = 0; i < LENGTH(counts) - 2 * small; i++)
        for (int has_y = 0; has_y < 2; has_y++)
            error_norm_case(counts[i], has_y, i % 2 ? 7 : 1);
}

/* Nearly everything cancels. */
static void test_change(void) {
    static const int64_t shapes[][2] = {{1, 1}, {3, 17}, {37, 36}, {300, 301}};
    for (int i = 0; i < LENGTH(shapes) - small; i++) {
        const int64_t rows = shapes[i][0], width = shapes[i][1];
        matrix after = matrix_random(rows, width, SLACK), before = matrix_random(rows, width, 0);
        matrix residual = matrix_random(rows, width, 0);
        double change = 0, size = 0, got_change = -1, got_size = -1;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < width; c++) {
                float *then = &residual.data[r * width + c], *to = &after.data[r * after.stride + c];
                const float from = before.data[r * width + c];
                *to = from + *then + 1e-4f * *to;
                change += fabs((double)*to - (double)from - (double)*then);
                size += fabs((double)*then);
            }
        gmem__change op;
        op.after = put_matrix(&after);
        op.before = put_matrix(&before);
        op.residual = put_matrix(&residual);
        op.rows = rows;
        op.width = width;
        op.after_stride = after.stride;
        engine.ops->change(&engine, &op, &got_change, &got_size);
        settle("change");
        if (!CHECK(fabs(got_change - change) <= BAR * change) || !CHECK(fabs(got_size - size) <= BAR * size))
            printf("    change (%d, %d): %.9g of %.9g, not %.9g of %.9g\n", (int)rows, (int)width, got_change, got_size,
                   change, size);
        device_free();
        matrix_free(&after);
        matrix_free(&before);
        matrix_free(&residual);
    }
}

/* Nothing to do is no error. */
static void test_nothing(void) {
    gmem__norm norm;
    gmem__copy copy;
    gmem__combine combine;
    gmem__error_norm error_norm;
    gmem__linear linear;
    gmem__weight weight;
    memset(&norm, 0, sizeof norm);
    memset(&copy, 0, sizeof copy);
    memset(&combine, 0, sizeof combine);
    memset(&error_norm, 0, sizeof error_norm);
    memset(&linear, 0, sizeof linear);
    memset(&weight, 0, sizeof weight);
    linear.weight = &weight;
    engine.ops->norm(&engine, &norm);
    engine.ops->copy(&engine, &copy);
    engine.ops->combine(&engine, &combine);
    engine.ops->linear(&engine, &linear);
    engine.ops->silu(&engine, NULL, 0);
    engine.ops->download(&engine, NULL, NULL, 0);
    engine.ops->upload(&engine, NULL, NULL, 0);
    CHECK(engine.ops->error_norm(&engine, &error_norm) == 0);
    CHECK_INT(engine.ops->finite(&engine, NULL, 0, GMEM__NOTE_STATE), 1);
    settle("nothing");
}

/* After a failure nothing runs, outputs stay as they were, and settle keeps saying why. */
static void test_failed(void) {
    const float x[3] = {1, 2, 3};
    float out[3] = {7, 8, 9};
    double change = -1, size = -1;
    gmem__error_norm error_norm;
    gmem__change changed;
    float *there = put(x, 3);
    settle("before");
    gmem__stream_fail(engine.stream, GMEM_E_DEVICE, "on request");
    engine.ops->silu(&engine, there, 3);
    engine.ops->download(&engine, out, there, 3);
    CHECK(out[0] == 7 && out[1] == 8 && out[2] == 9);
    memset(&error_norm, 0, sizeof error_norm);
    error_norm.count = 3;
    error_norm.x = there;
    CHECK(engine.ops->error_norm(&engine, &error_norm) == 0);
    memset(&changed, 0, sizeof changed);
    changed.after = changed.before = changed.residual = there;
    changed.rows = 1;
    changed.width = changed.after_stride = 3;
    engine.ops->change(&engine, &changed, &change, &size);
    CHECK(change == 0 && size == 0);
    for (int i = 0; i < 2; i++) {
        gmem_error error;
        int notes = -1;
        memset(&error, 0, sizeof error);
        CHECK_STATUS(GMEM_E_DEVICE, engine.ops->settle(&engine, &notes, &error));
        CHECK_CONTAINS(error.message, "on request");
        CHECK_INT(notes, 0);
    }
    device_free();
}

static void test_operations(void) {
    value_state = random_state = 1;
    test_norm();
    test_norm_without_samples();
    test_norm_nan();
    test_rotate();
    test_attention();
    test_attention_in_blocks();
    test_attention_extremes();
    test_attention_nan();
    test_group_norm();
    test_group_norm_nan();
    test_linear();
    test_conv();
    test_copy();
    test_copy_overlapping();
    test_patches();
    test_transpose();
    test_silu();
    test_combine();
    test_combine_nonfinite();
    test_scale_shift();
    test_pixels();
    test_hand_over();
    test_normal();
    test_finite();
    test_error_norm();
    test_change();
    test_nothing();
}

/* Kernels are launched as for a processor, as for a GPU, and on a device that cannot do large work-groups. */
static void test_devices(void) {
    gmem__cl_limits *limits = &context->device->found.limits;
    const gmem__cl_limits own = *limits;
    for (int kind = 0; kind < 3; kind++) {
        static const char *const names[] = {"a processor", "a GPU", "a GPU of small work-groups"};
        const int failed = check_failed;
        limits->is_cpu = kind == 0;
        for (int i = 0; kind == 2 && i < GMEM__CL_KERNEL_COUNT; i++)
            if (engine.stream->work_group[i]) engine.stream->work_group[i] = 6;
        test_operations();
        if (check_failed > failed) printf("    as on %s\n", names[kind]);
    }
    *limits = own;
}

int main(int argc, char **argv) {
    gmem_context_desc desc;
    gmem_error error;
    small = argc > 1 && strcmp(argv[1], "small") == 0;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("    %s\n", error.message);
        return check_report();
    }
    memset(&engine, 0, sizeof engine);
    engine.ops = gmem__opencl_ops();
    engine.threads = 1;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &engine.stream, &error))) return check_report();
    CHECK_INT(engine.ops->scratch_bytes(1), 0);
    test_devices();
    test_failed();
    gmem__stream_close(engine.stream);
    gmem_context_destroy(context);
    return check_report();
}
