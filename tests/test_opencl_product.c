/* Matrix products and convolutions on an OpenCL device, by each of the three ways, against loops in double of operands
 * rounded independently: weights of every type, every epilogue, odd shapes, batches, images, several tile sizes and
 * small limits of the device; and in f16 arithmetic, by its stand-in. With the argument "small", fewer shapes and not
 * CLBlast, for a simulator: oclgrind --data-races --uninitialized --build-options -cl-opt-disable
 * build/tests/test_opencl_product small (its check of uninitialised values knows few of the instructions that optimised
 * vectors become). */
#include "../backends/opencl/opencl.h"

#include "product.h"
#include "simulator.h"

#define BAR     1e-6
#define F16_BAR 1e-3 /* of products in f16: each run of them is off by 2^-12 or so, whatever the depth */

static int small;        /* shapes */
static int in_f16;       /* every product is one of f16 arithmetic */
static double worst_f16; /* error of these */
static const gmem_context *context;
static struct gmem__device device; /* a copy of the context's, for its limits and tiles to be changed */
static struct gmem__stream *stream;

static int ways_count;
static const gmem__cl_way *ways;
static const gmem__cl_way all_ways[] = {GMEM__CL_WAY_OWN, GMEM__CL_WAY_TILE, GMEM__CL_WAY_CLBLAST};

static const char *way_name(gmem__cl_way way) {
    return way == GMEM__CL_WAY_OWN ? "own" : way == GMEM__CL_WAY_TILE ? "tile" : "clblast";
}

static void stream_renew(void) {
    gmem_error error;
    gmem__stream_close(stream);
    stream = NULL;
    if (CHECK_OK(gmem__stream_open(&device, NULL, &stream, &error))) return;
    printf("    %s\n", error.message);
    exit(1);
}

/* memory of the device --------------------------------------------------------------------------------------------- */

static gmem__arena arenas[16];
static int arena_count;

static void *put(const void *data, int64_t bytes) {
    gmem__arena *arena = &arenas[arena_count++];
    memset(arena, 0, sizeof *arena);
    (void)gmem__take(arena, bytes, 1);
    CHECK(gmem__stream_reserve(stream, context, arena));
    void *address = gmem__take(arena, bytes, 1);
    gmem__stream_write(stream, address, data, bytes);
    return address;
}

static float *put_matrix(const matrix *m) {
    return (float *)put(m->memory, matrix_floats(m) * (int64_t)sizeof(float)) + GUARD;
}

static void free_all(void) {
    while (arena_count > 0)
        gmem__stream_release(stream, context, &arenas[--arena_count]);
}

/* one product ------------------------------------------------------------------------------------------------------ */

typedef struct product_case {
    int64_t rows, depth, columns, batch;
    gmem_type type;
    gmem_compute compute;
    gmem__activation activation;
    int bias, residual;
    int64_t tokens; /* of a sample, with a gate; 0: no gate */
    int transposed;
} product_case;

/* Whatever its activation needs: a product of some shape, plain. */
static product_case case_make(int64_t rows, int64_t depth, int64_t columns) {
    product_case test;
    memset(&test, 0, sizeof test);
    test.rows = rows;
    test.depth = depth;
    test.columns = columns;
    test.batch = 1;
    test.type = GMEM_F32;
    test.compute = GMEM_COMPUTE_F32;
    return test;
}

/* What the product rounds its operands to: int8 takes weights on levels, and counts as bf16 with others. */
static gmem_type rounding_of(gmem_compute compute, gmem_type weights_type) {
    if (compute == GMEM_COMPUTE_INT8) return weights_type == GMEM_I8 ? GMEM_I8 : GMEM_BF16;
    return compute == GMEM_COMPUTE_BF16 ? GMEM_BF16 : compute == GMEM_COMPUTE_F16 ? GMEM_F16 : GMEM_F32;
}

/* A case's operands on the host. Batches lie one below the other; a turned A is kept turned beside. */
typedef struct operands {
    weights a;
    matrix turned, b, c, bias, gate;
    double *expected; /* like c */
} operands;

static const float alpha = 0.75f;
static int64_t largest_buffer; /* of the device, while a product runs; 0: what it has */

static void operands_expect(const product_case *test, operands *o) {
    const int64_t out_rows = o->c.rows / test->batch;
    const gmem_type rounding = rounding_of(test->compute, test->type);
    round_weights(rounding, &o->a);
    for (int64_t i = 0; i < test->batch; i++) {
        weights a = o->a;
        matrix b = o->b, c = o->c;
        gmem__linear op;
        memset(&op, 0, sizeof op);
        a.values += i * test->rows * test->depth;
        a.weight.rows = test->rows;
        b.data += i * test->depth * b.stride;
        b.rows = test->depth;
        c.data += i * out_rows * c.stride;
        c.rows = out_rows;
        double *x = rounded_x(rounding, 127, &b);
        for (int64_t j = 0; j < test->depth * test->columns; j++)
            x[j] *= (double)alpha;
        op.bias = test->bias ? o->bias.data : NULL;
        op.columns = test->columns;
        op.activation = test->activation;
        op.residual = test->residual;
        op.gate = test->tokens ? o->gate.data : NULL;
        op.gate_stride = o->gate.stride;
        op.tokens = test->tokens;
        narrow_reference(&op, &a, x, &c, o->expected + i * out_rows * test->columns);
        free(x);
    }
}

static operands operands_make(const product_case *test) {
    const int64_t out_rows = test->activation == GMEM__ACT_SWIGLU ? test->rows / 2 : test->rows;
    const int64_t samples = test->tokens ? gmem__ceil_div(test->columns, test->tokens) : 1;
    operands o;
    o.a = weights_make(test->type, test->rows * test->batch, test->depth);
    o.turned = matrix_make(test->depth * test->batch, test->rows, test->rows + SLACK);
    for (int64_t i = 0; i < test->batch; i++)
        for (int64_t r = 0; r < test->rows; r++)
            for (int64_t k = 0; k < test->depth; k++)
                o.turned.data[(i * test->depth + k) * o.turned.stride + r] =
                    (float)o.a.values[(i * test->rows + r) * test->depth + k];
    o.b = matrix_random(test->depth * test->batch, test->columns, SLACK);
    o.c = matrix_random(out_rows * test->batch, test->columns, SLACK);
    o.bias = matrix_random(1, test->rows, 0);
    o.gate = matrix_random(samples, test->rows, SLACK);
    o.expected = (double *)need(out_rows * test->batch * test->columns, sizeof(double));
    operands_expect(test, &o);
    return o;
}

static void operands_free(operands *o) {
    weights_free(&o->a);
    matrix_free(&o->turned);
    matrix_free(&o->b);
    matrix_free(&o->c);
    matrix_free(&o->bias);
    matrix_free(&o->gate);
    free(o->expected);
}

/* What the device holds of c afterwards. A residual is c itself, or a copy beside it. */
static matrix run(const product_case *test, const operands *o, gmem__cl_way way, int beside) {
    const int64_t size = (int64_t)gmem_type_bytes(test->type), stride = o->a.weight.row_stride;
    const int64_t out_rows = o->c.rows / test->batch;
    matrix got = matrix_copy(&o->c);
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    float *c = put_matrix(&o->c);
    if (test->transposed) {
        product.a = gmem__stream_find(stream, put_matrix(&o->turned));
        product.a_ld = o->turned.stride;
        product.a_stride = test->depth * o->turned.stride;
    } else {
        product.a = gmem__stream_find(stream, put(o->a.weight.data, (o->a.weight.rows * stride - 3) * size));
        product.a_ld = stride;
        product.a_stride = test->rows * stride;
    }
    product.b = gmem__stream_find(stream, put_matrix(&o->b));
    product.c = gmem__stream_find(stream, c);
    product.a_type = test->type;
    product.a_transposed = test->transposed;
    product.a_scale = test->type == GMEM_I8 ? (const float *)put(o->a.scale, test->rows * 4) : NULL;
    product.rows = test->rows;
    product.depth = test->depth;
    product.columns = test->columns;
    product.batch = test->batch;
    product.b_ld = o->b.stride;
    product.b_stride = test->depth * o->b.stride;
    product.c_ld = product.residual_ld = o->c.stride;
    product.c_stride = out_rows * o->c.stride;
    product.compute = test->compute;
    product.way = way;
    product.bias = test->bias ? put_matrix(&o->bias) : NULL;
    product.gate = test->tokens ? put_matrix(&o->gate) : NULL;
    product.gate_stride = o->gate.stride;
    product.tokens = test->tokens;
    product.residual = !test->residual && !test->tokens ? NULL : beside ? put_matrix(&o->c) : c;
    product.activation = test->activation;
    product.alpha = alpha;
    if (largest_buffer) device.found.limits.largest = largest_buffer;
    gmem__stream_product(stream, &product);
    device.found.limits.largest = context->device->found.limits.largest;
    gmem__stream_read(stream, c - GUARD, got.memory, matrix_floats(&got) * (int64_t)sizeof(float));
    if (!CHECK(gmem__stream_ok(stream))) {
        printf("    %s: %s\n", way_name(way), stream->failed.message);
        exit(1); /* a stream that has failed does nothing more */
    }
    free_all();
    return got;
}

/* A simulator takes long. */
static int too_large(int64_t rows, int64_t depth, int64_t columns) { return small && rows * depth * columns > 3000; }

/* Of a few values the error is anything, for what they are small beside is not in their norm. */
static int is_close(double error, int64_t values) {
    if (!in_f16) return error < BAR;
    if (values >= 10) worst_f16 = fmax(worst_f16, error);
    return error < (values < 10 ? 5 * F16_BAR : F16_BAR);
}

static void check_case(const product_case *which, const char *label) {
    product_case of_f16 = *which;
    const product_case *test = in_f16 ? &of_f16 : which;
    of_f16.compute = GMEM_COMPUTE_F16;
    if (too_large(test->rows * test->batch, test->depth, test->columns)) return;
    operands o = operands_make(test);
    for (int i = 0; i < ways_count; i++) {
        matrix got = run(test, &o, ways[i], i % 2);
        const double error = matrix_error(&got, o.expected);
        if (!CHECK(is_close(error, got.rows * got.columns)) || !CHECK(matrix_guards_hold(&got)))
            printf("    %s, %s: %d x (%d, %d) x %d columns, type %d, compute %d, activation %d, bias %d, residual %d, "
                   "%d tokens, turned %d: error %g\n",
                   label, way_name(ways[i]), (int)test->batch, (int)test->rows, (int)test->depth, (int)test->columns,
                   (int)test->type, (int)test->compute, (int)test->activation, test->bias, test->residual,
                   (int)test->tokens, test->transposed, error);
        matrix_free(&got);
    }
    operands_free(&o);
}

/* products --------------------------------------------------------------------------------------------------------- */

static const gmem_compute computes[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8, GMEM_COMPUTE_F16};

static void test_shapes(void) {
    static const int64_t rows[] = {1, 3, 12, 13, 17, 31, 64, 65, 129};
    static const int64_t depths[] = {1, 3, 15, 16, 17, 31, 63, 65};
    static const int64_t columns[] = {1, 3, 16, 17, 31, 33, 63, 64, 65, 129};
    int pick = 0;
    for (int r = 0; r < LENGTH(rows); r += small ? 5 : 1)
        for (int c = r % 2; c < LENGTH(columns); c += small ? 4 : 1, pick++) {
            product_case test = case_make(rows[r], depths[pick % LENGTH(depths)], columns[c]);
            test.type = types[pick % LENGTH(types)];
            test.compute = computes[pick / 3 % LENGTH(computes)];
            test.bias = pick % 3 == 0;
            check_case(&test, "shapes");
        }
}

/* Every type in every rounding, beyond one block of the depth. */
static void test_types(void) {
    for (int t = 0; t < LENGTH(types); t++)
        for (int c = 0; c < LENGTH(computes); c++) {
            if (small && (t + c) % LENGTH(computes) != 1) continue; /* I8 with int8, and the others with another */
            product_case test = case_make(small ? 5 : 29, small ? 12 : 389, 37);
            test.type = types[t];
            test.compute = computes[c];
            test.bias = 1;
            check_case(&test, "types");
        }
}

static void test_depths(void) {
    static const int64_t depths[] = {71, 72, 73, 383, 384, 385, 769, 1153};
    for (int d = small ? LENGTH(depths) - 6 : 0; d < (small ? 3 : LENGTH(depths)); d++) {
        product_case test = case_make(small ? 4 : 14, depths[d], small ? 9 : 35);
        check_case(&test, "depths");
    }
}

static void test_epilogues(void) {
    for (int a = GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++)
        for (int flags = small ? 7 : 0; flags < 8; flags++) {
            product_case test = case_make(small ? 10 : 38, small ? 5 : 21, 60);
            test.activation = (gmem__activation)a;
            test.bias = flags & 1;
            test.residual = flags >> 1 & 1;
            test.tokens = flags & 4 ? (a % 2 ? 12 : 20) : 0;
            check_case(&test, "epilogues");
            if (small) continue;
            test.columns = 7;
            if (test.tokens) test.tokens = 1;
            test.type = GMEM_BF16;
            check_case(&test, "epilogues");
        }
}

static void test_turned(void) {
    static const int64_t sizes[] = {1, 17, 64, 65};
    for (int i = small; i < LENGTH(sizes) - 2 * small; i++)
        for (int c = 0; c < LENGTH(computes); c += 1 + small) {
            product_case test = case_make(sizes[i], sizes[(i + c) % LENGTH(sizes)], small ? 9 : 33);
            test.transposed = 1;
            test.compute = computes[c];
            check_case(&test, "turned");
        }
}

static void test_batches(void) {
    for (int i = 2 * small; i < 8; i += 1 + 2 * small) { /* two are enough for a simulator */
        product_case test = case_make(small ? 3 : 19 + i, small ? 4 : 20 + i, 15 + 8 * i);
        test.batch = 2 + i % 3;
        test.transposed = i & 1;
        test.compute = computes[i / 2];
        test.residual = i == 3;
        check_case(&test, "batches");
    }
}

/* So large that it is done in parts. */
static void test_parts(void) {
    product_case test = case_make(26, 1153, 2001);
    test.bias = test.residual = 1;
    test.tokens = 667;
    check_case(&test, "parts");
    test = case_make(7, 300, 701);
    test.batch = 9;
    test.compute = GMEM_COMPUTE_BF16;
    check_case(&test, "parts");
    largest_buffer = 100000;
    stream_renew(); /* without scratch */
    test = case_make(35, 63, 1000);
    test.compute = GMEM_COMPUTE_INT8;
    test.type = GMEM_I8;
    test.activation = GMEM__ACT_SILU;
    test.tokens = 300;
    check_case(&test, "parts");
    test = case_make(10, 20, 900);
    test.batch = 5;
    test.bias = 1;
    check_case(&test, "parts");
    largest_buffer = 0;
}

static void test_nothing(void) {
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    product.rows = product.depth = product.batch = 3;
    gmem__stream_product(stream, &product);
    product.columns = 3;
    product.batch = 0;
    gmem__stream_product(stream, &product);
    CHECK(gmem__stream_ok(stream));
}

/* NaN stays NaN and stays in its column. */
static void test_nan(void) {
    for (int i = 0; i < LENGTH(computes) * ways_count; i++) {
        product_case test = case_make(14, 20, 41);
        test.compute = computes[i / ways_count];
        if (in_f16 && test.compute != GMEM_COMPUTE_F16) continue;
        test.type = test.compute == GMEM_COMPUTE_INT8 ? GMEM_I8 : GMEM_F32;
        test.activation = i % 2 ? GMEM__ACT_SWIGLU : GMEM__ACT_GELU_ERF;
        operands o = operands_make(&test);
        memset(o.b.data + 3 * o.b.stride + 37, 0xff, sizeof(float));
        matrix got = run(&test, &o, ways[i % ways_count], 0);
        for (int64_t r = 0; r < got.rows; r++)
            for (int64_t c = 0; c < got.columns; c++)
                CHECK(c == 37 ? isnan(got.data[r * got.stride + c]) : isfinite(got.data[r * got.stride + c]));
        matrix_free(&got);
        operands_free(&o);
    }
}

/* The activations and roundings far from 0, one by one: row 1 of the identity. */
static void test_values(void) {
    static const float values[] = {0,   -0.0f, 1e-30f, -1e-30f, 1e-3f, -1e-3f, 0.5f,  -0.5f,  1,    -1,    3,    -3,
                                   5,   -5,    8,      -8,      12,    -12,    20,    -20,    87,   -87,   90,   -90,
                                   200, -200,  1e4f,   -1e4f,   1e15f, -1e15f, 1e30f, -1e30f, 2.5f, -2.5f, 0.1f, -0.1f};
    product_case test = case_make(1, 1, LENGTH(values));
    for (int a = GMEM__ACT_NONE; a < GMEM__ACT_SWIGLU; a++)
        for (int i = 0; i < ways_count; i++) {
            test.activation = (gmem__activation)a;
            operands o = operands_make(&test);
            const float inverse = 1 / alpha;
            memcpy((void *)(uintptr_t)o.a.weight.data, &inverse, sizeof inverse);
            memcpy(o.b.data, values, sizeof values);
            matrix got = run(&test, &o, ways[i], 0);
            for (int v = 0; v < LENGTH(values); v++) {
                const double x = (double)(values[v] * inverse) * (double)alpha, expected = activate(test.activation, x);
                if (!CHECK(fabs((double)got.data[v] - expected) <= 3e-7 + 6e-7 * fabs(expected)))
                    printf("    %s: activation %d of %g is %g, not %g\n", way_name(ways[i]), a, x, (double)got.data[v],
                           expected);
            }
            matrix_free(&got);
            operands_free(&o);
        }
}

static void test_rounding(void) {
    static const float values[] = {1,       65504,   65519,    65520,   -70000, 6e-8f,   3e-8f,       2.9e-8f, -1e-5f,
                                   6.1e-5f, 6.2e-5f, 1.00048f, 1.0005f, -2049,  2050.9f, 0.99999994f, 1e-40f,  3.3e38f};
    for (int c = GMEM_COMPUTE_BF16; c <= GMEM_COMPUTE_F16; c += 2)
        for (int i = 0; i < ways_count; i++) {
            product_case test = case_make(1, 1, LENGTH(values));
            const float one = 1 / alpha;
            test.compute = (gmem_compute)c;
            operands o = operands_make(&test);
            memcpy((void *)(uintptr_t)o.a.weight.data, &one, sizeof one);
            memcpy(o.b.data, values, sizeof values);
            matrix got = run(&test, &o, ways[i], 0);
            for (int v = 0; v < LENGTH(values); v++) {
                const gmem_type type = rounding_of(test.compute, GMEM_F32);
                const float a = (float)to_type(type, (double)one), b = (float)to_type(type, (double)values[v]);
                const float expected = a * b * alpha;
                if (!CHECK(got.data[v] == expected || fabsf(got.data[v] / expected - 1) < 3e-7f ||
                           (isinf(expected) && !isfinite(got.data[v]))))
                    printf("    %s: %g in compute %d is %g, not %g\n", way_name(ways[i]), (double)values[v], c,
                           (double)got.data[v], (double)expected);
            }
            matrix_free(&got);
            operands_free(&o);
        }
}

/* convolutions ----------------------------------------------------------------------------------------------------- */

typedef struct conv_case {
    int64_t in_channels, out_channels, height, width;
    int kernel, stride, upsample;
} conv_case;

static void check_conv(const conv_case *test, gmem_type type, gmem_compute asked, int residual) {
    const gmem_compute compute = in_f16 ? GMEM_COMPUTE_F16 : asked;
    const int64_t height = (test->height << test->upsample) / test->stride, area_in = test->height * test->width;
    const int64_t width = (test->width << test->upsample) / test->stride, area = height * width;
    if (too_large(test->out_channels, test->in_channels * test->kernel * test->kernel, area)) return;
    const gmem_type rounding =
        compute == GMEM_COMPUTE_INT8 && (test->kernel > 1 || test->upsample) ? GMEM_BF16 : rounding_of(compute, type);
    weights w = weights_make(type, test->out_channels, test->in_channels * test->kernel * test->kernel);
    matrix x = matrix_random(test->in_channels, area_in, 0), rounded = matrix_copy(&x);
    matrix before = matrix_random(test->out_channels, area, 0), bias = matrix_random(1, test->out_channels, 0);
    double *expected = (double *)need(test->out_channels * area, sizeof(double));
    double *values = rounded_x(rounding, 127, &x);
    gmem__conv op;
    memset(&op, 0, sizeof op);
    round_weights(rounding, &w);
    for (int64_t i = 0; i < test->in_channels * area_in; i++)
        rounded.data[i] = (float)values[i];
    op.bias = bias.data;
    op.residual = residual ? before.data : NULL;
    op.x = rounded.data;
    op.in_channels = test->in_channels;
    op.height = test->height;
    op.width = test->width;
    op.kernel = test->kernel;
    op.stride = test->stride;
    op.upsample = test->upsample;
    conv_reference(&op, &w, height, width, expected);
    for (int i = 0; i < ways_count; i++) {
        matrix got = matrix_copy(&before);
        float *y = put_matrix(&before);
        gmem__cl_product product;
        memset(&product, 0, sizeof product);
        product.conv = &op;
        product.a = gmem__stream_find(
            stream, put(w.weight.data, (w.weight.rows * w.weight.row_stride - 3) * (int64_t)gmem_type_bytes(type)));
        product.a_type = type;
        product.a_ld = w.weight.row_stride;
        product.a_scale = type == GMEM_I8 ? (const float *)put(w.scale, test->out_channels * 4) : NULL;
        product.b = gmem__stream_find(stream, put_matrix(&x));
        product.b_ld = area_in;
        product.c = gmem__stream_find(stream, y);
        product.c_ld = product.residual_ld = area;
        product.rows = test->out_channels;
        product.depth = w.weight.cols;
        product.columns = area;
        product.batch = 1;
        product.compute = compute;
        product.way = ways[i];
        product.bias = put_matrix(&bias);
        product.residual = !residual ? NULL : i % 2 ? put_matrix(&before) : y;
        product.alpha = 1;
        gmem__stream_product(stream, &product);
        gmem__stream_read(stream, y - GUARD, got.memory, matrix_floats(&got) * (int64_t)sizeof(float));
        CHECK(gmem__stream_ok(stream));
        const double error = matrix_error(&got, expected);
        if (!CHECK(is_close(error, got.rows * got.columns)) || !CHECK(matrix_guards_hold(&got)))
            printf("    %s: conv (%d, %d, %d, %d) to %d, stride %d, upsample %d, type %d, compute %d: error %g\n",
                   way_name(ways[i]), (int)test->in_channels, test->kernel, (int)test->height, (int)test->width,
                   (int)test->out_channels, test->stride, test->upsample, (int)type, (int)compute, error);
        free_all();
        matrix_free(&got);
    }
    matrix_free(&x);
    matrix_free(&rounded);
    matrix_free(&before);
    matrix_free(&bias);
    free(values);
    free(expected);
    weights_free(&w);
}

static void test_conv(void) {
    static const conv_case cases[] = {{1, 1, 1, 1, 1, 1, 0},    {1, 1, 1, 1, 3, 1, 0},   {1, 1, 1, 1, 3, 1, 1},
                                      {1, 1, 2, 2, 3, 2, 0},    {3, 5, 4, 4, 3, 1, 0},   {3, 5, 4, 4, 3, 2, 0},
                                      {3, 5, 4, 4, 3, 1, 1},    {5, 13, 7, 5, 1, 1, 0},  {5, 13, 7, 5, 1, 1, 1},
                                      {5, 13, 7, 5, 3, 1, 0},   {9, 13, 7, 5, 3, 1, 1},  {2, 14, 6, 10, 3, 2, 0},
                                      {4, 6, 1, 70, 3, 1, 0},   {4, 6, 70, 1, 3, 1, 0},  {45, 25, 9, 11, 3, 1, 0},
                                      {9, 3, 33, 31, 3, 1, 0},  {4, 6, 34, 70, 3, 2, 0}, {4, 6, 9, 35, 3, 1, 1},
                                      {17, 20, 8, 64, 3, 1, 0}, {2, 3, 3, 300, 3, 1, 0}, {100, 20, 50, 50, 3, 1, 0}};
    for (int i = 0; i < LENGTH(cases); i++)
        for (int c = 0; c < LENGTH(computes); c += small ? LENGTH(computes) : 1)
            check_conv(&cases[i], types[(i + c) % LENGTH(types)], computes[c], i % 2);
}

/* the choice ------------------------------------------------------------------------------------------------------ */

/* The nearest shape of the table decides, then the way for all, then the kind of device. */
static void test_choice(void) {
    gmem__cl_product product;
    gmem__cl_tuning *tuning = &device.tuning;
    const gmem__cl_tuning before = *tuning;
    memset(&product, 0, sizeof product);
    memset(tuning, 0, sizeof *tuning);
    product.rows = 700;
    product.depth = 800;
    product.columns = 256;
    device.found.limits.is_cpu = 1;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_TILE);
    device.found.limits.is_cpu = 0;
    device.library.has_clblast = 0;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_OWN);
    device.library.has_clblast = 1;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_CLBLAST);
    product.a_type = GMEM_F16;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_OWN);
    tuning->way = GMEM__CL_WAY_TILE;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_TILE);
    tuning->shape_count = 2;
    tuning->shapes[0].rows = 768;
    tuning->shapes[0].depth = 768;
    tuning->shapes[0].columns = 256;
    tuning->shapes[0].way = GMEM__CL_WAY_CLBLAST;
    tuning->shapes[1] = tuning->shapes[0];
    tuning->shapes[1].rows = 3 * 768;
    tuning->shapes[1].way = GMEM__CL_WAY_OWN;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_CLBLAST);
    product.rows = 1500;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_OWN);
    device.found.limits.is_cpu = context->device->found.limits.is_cpu;
    device.library.has_clblast = context->device->library.has_clblast;
    *tuning = before;
}

static void test_tiles_fit(void) {
    gmem__cl_limits limits = device.found.limits;
    for (int cpu = 0; cpu < 2; cpu++)
        for (int width = 1; width <= 16; width *= 2)
            for (int64_t group = 64; group <= 1024; group *= 2) {
                limits.is_cpu = cpu;
                limits.vector_width = width;
                limits.work_group = group;
                limits.local_memory = 16384;
                const gmem__cl_tiles tiles = gmem__product_tiles(&limits);
                CHECK(gmem__product_tiles_fit(&tiles, &limits));
            }
    gmem__cl_tiles tiles = gmem__product_tiles(&limits);
    tiles.item_rows = 7; /* SWIGLU's come in pairs */
    CHECK(!gmem__product_tiles_fit(&tiles, &limits));
    tiles = gmem__product_tiles(&limits);
    tiles.tile_columns += 1;
    CHECK(!gmem__product_tiles_fit(&tiles, &limits));
    tiles = gmem__product_tiles(&limits);
    tiles.group_depth = 64;
    CHECK(!gmem__product_tiles_fit(&tiles, &limits));
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void test_all(void) {
    test_shapes();
    test_conv();
    test_nothing();
    if (small) return; /* the rest with smaller tiles, or about values */
    test_types();
    test_depths();
    test_epilogues();
    test_turned();
    test_batches();
    test_parts();
    test_nan();
    test_values();
    test_rounding();
}

/* A program with other tiles or arithmetic, and a stream on it. */
static void device_renew(const gmem__cl_tiles *tiles, gmem__cl_f16 f16) {
    gmem_error error;
    gmem__stream_close(stream);
    stream = NULL;
    if (device.program != context->device->program) (void)device.library.api.clReleaseProgram(device.program);
    device.program = NULL;
    device.tuning.tiles = *tiles;
    device.f16 = f16;
    CHECK(gmem__product_tiles_fit(tiles, &device.found.limits));
    if (!CHECK_OK(gmem__device_build(&device, NULL, &error))) exit(1);
    stream_renew();
}

/* The own kernels with other tiles, and in groups that are cut to a device's limit. */
static void test_tiles(void) {
    static const gmem__cl_tiles tiles[] = {{2, 1, 4, 8, 8, 4, 1, 4, 64, 64},
                                           {4, 8, 8, 8, 32, 6, 2, 8, 64, 96},
                                           {8, 4, 16, 16, 16, 8, 4, 4, 128, 128},
                                           {6, 3, 4, 16, 12, 12, 1, 16, 48, 500}};
    for (int i = 0; i < (small ? 1 : LENGTH(tiles)); i++) {
        device_renew(&tiles[i], GMEM__CL_F16_NONE);
        device.found.limits.work_group = i == 2 ? 64 : context->device->found.limits.work_group;
        test_shapes();
        test_epilogues();
        test_turned();
        test_batches();
        if (!small) test_conv();
    }
    if (!small) return; /* a simulator takes as long for a work-item that has nothing to do */
    test_types();
    test_depths();
}

/* f16 arithmetic --------------------------------------------------------------------------------------------------- */

/* Errors do not grow with the depth, as they would to 1e-2 here were f16 the sums' type too. */
static void test_f16_depth(void) {
    product_case test = case_make(6, 4100, 35);
    check_case(&test, "deep");
}

/* A product whose operands are multiplied by powers of two. Neither operands nor runs beyond f16's range are lost, and
 * operands whose products are subnormal keep a part of their precision. */
static void check_f16_range(gmem_type type, float a_factor, float b_factor, double bar) {
    product_case test = case_make(13, 67, 39);
    test.type = type;
    test.bias = 1;
    operands o = operands_make(&test); /* before compute is set: expects what unrounded operands give */
    for (int64_t r = 0; r < test.rows; r++)
        for (int64_t k = 0; k < test.depth && type == GMEM_F32; k++) {
            double *value = o.a.values + r * test.depth + k;
            const float changed = (float)*value * a_factor;
            memcpy(o.a.memory + 1 + (r * o.a.weight.row_stride + k) * 4, &changed, 4);
            *value = (double)changed;
        }
    for (int64_t i = 0; i < test.depth; i++)
        for (int64_t j = 0; j < test.columns; j++)
            o.b.data[i * o.b.stride + j] *= b_factor;
    for (int64_t i = 0; i < test.rows; i++)
        o.bias.data[i] *= a_factor * b_factor;
    operands_expect(&test, &o);
    test.compute = GMEM_COMPUTE_F16;
    matrix got = run(&test, &o, GMEM__CL_WAY_OWN, 0);
    const double error = matrix_error(&got, o.expected);
    if (!CHECK(error < bar) || !CHECK(matrix_guards_hold(&got)))
        printf("    f16, factors %g and %g: error %g\n", (double)a_factor, (double)b_factor, error);
    matrix_free(&got);
    operands_free(&o);
}

static void test_f16_range(void) {
    check_f16_range(GMEM_F32, 1, 1, F16_BAR);
    check_f16_range(GMEM_F32, 128, 128, F16_BAR); /* some runs leave the range */
    check_f16_range(GMEM_F32, 4096, 4096, F16_BAR);
    check_f16_range(GMEM_F32, 1, 65536, F16_BAR); /* some operands do */
    check_f16_range(GMEM_BF16, 1, 1e6f, F16_BAR);
    check_f16_range(GMEM_F32, 1e12f, 1e12f, F16_BAR);
    check_f16_range(GMEM_F32, 1.0f / 128, 1.0f / 128, F16_BAR);
    check_f16_range(GMEM_F32, 1.0f / 512, 1.0f / 512, 5e-3);
}

static void test_f16(void) {
    static const gmem__cl_tiles few = {2, 1, 4, 8, 8, 4, 1, 4, 64, 64};
    CHECK_INT(device.f16, GMEM__CL_F16_NONE); /* the context does not compute in it */
    device_renew(small ? &few : &context->device->tuning.tiles, GMEM__CL_F16_STAND_IN);
    in_f16 = 1;
    ways_count = 1;
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    product.rows = product.depth = product.columns = 500;
    product.compute = GMEM_COMPUTE_F16;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_OWN);
    product.compute = GMEM_COMPUTE_BF16;
    CHECK_INT(gmem__product_way(&device, &product), GMEM__CL_WAY_TILE);
    test_shapes();
    test_types();
    test_depths();
    test_epilogues();
    test_turned();
    test_batches();
    test_conv();
    if (!small) {
        static const gmem__cl_tiles odd = {6, 3, 4, 16, 36, 12, 1, 16, 48, 500};
        test_nan();
        test_f16_depth();
        test_f16_range();
        device_renew(&odd, GMEM__CL_F16_STAND_IN);
        test_shapes();
        test_conv();
        test_f16_range();
    }
    CHECK(worst_f16 > 1e-4); /* it is no f32 */
    printf("f16 arithmetic: relative L2 errors of products up to %.2g\n", worst_f16);
    in_f16 = 0;
}

int main(int argc, char **argv) {
    gmem_context_desc desc;
    gmem_context *created;
    gmem_error error;
    small = argc > 1 && strcmp(argv[1], "small") == 0;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    if (small) desc.opencl = simulator();
    if (!CHECK_OK(gmem_context_create(&desc, &created, &error))) {
        printf("    %s\n", error.message);
        return check_report();
    }
    context = created;
    device = *context->device;
    ways = all_ways;
    ways_count = device.library.has_clblast ? 3 : 2;
    test_choice();
    test_tiles_fit();
    stream_renew();
    test_all();
    ways_count = 2;
    test_tiles();
    test_f16();
    gmem__stream_close(stream);
    if (device.program != context->device->program) (void)device.library.api.clReleaseProgram(device.program);
    gmem_context_destroy(created);
    return check_report();
}
