/* The row operations, attention and the ways into products on an OpenCL device against loops in double, on odd shapes,
 * with guard zones around the outputs and hostile values. */
#include "device.h"

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
    for (int c = 0; c < LENGTH(channels) - 2 * small; c += 1 + small)
        for (int t = small; t < LENGTH(tokens); t += 1 + 3 * small)
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
    for (int d = 0; d < LENGTH(head_dims) - small; d += 1 + small)
        for (int t = small; t < LENGTH(tokens) - small; t += 1 + 2 * small)
            for (int64_t samples = 1; samples <= 2; samples++, options = (options + 7) % 32)
                /* LayerNorm of two channels cancels all but their difference: too much to ask of f32 */
                rotate_case(head_dims[d], 1 + t % 3, tokens[t], samples, head_dims[d] == 2 ? options | 2 : options);
    for (options = 0; options < 32; options += 1 + 4 * small)
        rotate_case(6, 2, small ? 9 : 36, 2, options);
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
    for (int d = 2 * brief; d < LENGTH(head_dims); d += 1 + small + 3 * brief)
        for (int t = 3 * brief; t < LENGTH(tokens) - 5 * small; t += 1 + 2 * small) {
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
    if (small) return; /* hundreds of launches of the same kernels */
    for (int i = 0; i < LENGTH(shapes); i++) {
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
    const int64_t tokens = 200;
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
    const int64_t tokens = 133;
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
    for (int options = 15 * brief; options < 16; options += 1 + 2 * small)
        for (int a = brief ? GMEM__ACT_SWIGLU : GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++)
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

static void test_operations(void) {
    test_norm();
    test_norm_without_samples();
    test_norm_nan();
    test_rotate();
    test_attention();
    test_attention_in_blocks();
    if (!small) test_attention_extremes(); /* these two are about values */
    if (!small) test_attention_nan();
    test_group_norm();
    test_group_norm_nan();
    test_linear();
    test_conv();
}

int main(int argc, char **argv) { return device_main(argc, argv, test_operations, NULL); }
