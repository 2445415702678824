/* linear and conv of every instruction set against loops in double: every weight type at odd addresses, every epilogue,
 * shapes around the blocks' and vectors' edges, several thread counts; nothing outside the output is written. */
#include "../backends/cpu/cpu.h"

#include "product.h"

#define BAR 1e-6

/* linear ---------------------------------------------------------------------------------------------------------- */

typedef struct linear_case {
    int64_t rows, depth, columns; /* of the weight and of x */
    gmem__activation activation;
    int bias, residual;
    int64_t tokens; /* 0: no gate */
} linear_case;

static void check_linear(const linear_case *test, gmem_type type, const char *label) {
    const int64_t out_rows = test->activation == GMEM__ACT_SWIGLU ? test->rows / 2 : test->rows;
    const int64_t samples = test->tokens ? test->columns / test->tokens : 1;
    weights w = weights_make(type, test->rows, test->depth);
    matrix x = matrix_random(test->depth, test->columns, SLACK), before = matrix_random(out_rows, test->columns, SLACK);
    matrix bias = matrix_random(1, test->rows, 0), gate = matrix_random(samples, test->rows, SLACK);
    double *expected = (double *)need(out_rows * test->columns, sizeof(double));
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &w.weight;
    op.bias = test->bias ? bias.data : NULL;
    op.x = x.data;
    op.x_stride = x.stride;
    op.y_stride = before.stride;
    op.columns = test->columns;
    op.activation = test->activation;
    op.residual = test->residual;
    op.gate = test->tokens ? gate.data : NULL;
    op.gate_stride = gate.stride;
    op.tokens = test->tokens;
    linear_reference(&op, &w, &before, expected);
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        matrix first = matrix_copy(&before);
        for (int threads = 1; threads <= 3; threads++) {
            const gmem__engine engine = engine_make(ops, threads);
            matrix y = matrix_copy(&before);
            char text[160];
            snprintf(text, sizeof text, "%s %s: type %d, (%d, %d) x (%d, %d), threads %d", ops->name, label, (int)type,
                     (int)test->rows, (int)test->depth, (int)test->depth, (int)test->columns, threads);
            op.y = y.data;
            ops->linear(&engine, &op);
            const double error = matrix_error(&y, expected);
            if (!CHECK(error < BAR) || !CHECK(matrix_guards_hold(&y))) printf("    %s: error %g\n", text, error);
            if (threads == 1)
                memcpy(first.memory, y.memory, (size_t)matrix_floats(&y) * sizeof(float));
            else
                CHECK(matrix_equal(&first, &y));
            matrix_free(&y);
        }
        matrix_free(&first);
    }
    CHECK(matrix_guards_hold(&x));
    matrix_free(&x);
    matrix_free(&before);
    matrix_free(&bias);
    matrix_free(&gate);
    free(expected);
    weights_free(&w);
}

static void test_shapes(void) {
    static const int64_t rows[] = {1, 2, 5, 6, 7, 11, 12, 13, 29, 97, 193};
    static const int64_t depths[] = {1, 3, 8, 15, 16, 17, 31, 64};
    static const int64_t columns[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 36, 48, 49, 255, 257};
    linear_case test;
    memset(&test, 0, sizeof test);
    for (int r = 0; r < LENGTH(rows); r++)
        for (int c = 0; c < LENGTH(columns); c++) {
            const int pick = r * LENGTH(columns) + c;
            test.rows = rows[r];
            test.columns = columns[c];
            test.depth = depths[pick % LENGTH(depths)];
            test.bias = pick % 3 == 0;
            check_linear(&test, types[pick % LENGTH(types)], "shape");
        }
}

static void test_depths(void) {
    static const int64_t depths[] = {1, 255, 256, 257, 383, 384, 385, 511, 512, 513, 769, 1153};
    linear_case test = {13, 0, 37, GMEM__ACT_NONE, 1, 0, 0};
    for (int d = 0; d < LENGTH(depths); d++) {
        test.depth = depths[d];
        for (int t = 0; t < LENGTH(types); t++)
            check_linear(&test, types[t], "depth");
    }
}

/* x too deep to be packed whole. */
static void test_deep(void) {
    const linear_case test = {31, GMEM__SHARED / GMEM__NC + 5, 3, GMEM__ACT_NONE, 0, 0, 0};
    check_linear(&test, GMEM_F32, "deep");
}

/* More columns than are packed at once. */
static void test_wide(void) {
    const linear_case test = {26, 1000, 2 * GMEM__SHARED / 1000 + 77, GMEM__ACT_NONE, 0, 0, 0};
    check_linear(&test, GMEM_F32, "wide");
}

static void test_epilogues(void) {
    for (int a = GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++)
        for (int flags = 0; flags < 8; flags++) {
            linear_case test = {26, 40, 60, (gmem__activation)a, flags & 1, flags >> 1 & 1, 0};
            if (flags & 4) test.tokens = a % 2 ? 12 : 20;
            check_linear(&test, GMEM_F32, "epilogue");
            test.rows = 412;
            check_linear(&test, GMEM_F32, "epilogue");
            test.columns = 7;
            if (flags & 4) test.tokens = 1;
            check_linear(&test, GMEM_BF16, "epilogue");
        }
}

/* The activations far from 0, one by one: row 1 of the identity. */
static void test_activations(void) {
    static const float values[] = {0,   -0.0f, 1e-30f, -1e-30f, 1e-3f, -1e-3f, 0.5f,  -0.5f,  1,    -1,    3,    -3,
                                   5,   -5,    8,      -8,      12,    -12,    20,    -20,    87,   -87,   90,   -90,
                                   200, -200,  1e4f,   -1e4f,   1e15f, -1e15f, 1e30f, -1e30f, 2.5f, -2.5f, 0.1f, -0.1f};
    const float one = 1;
    float y[LENGTH(values)];
    gmem__weight weight;
    gmem__linear op;
    memset(&weight, 0, sizeof weight);
    weight.data = &one;
    weight.type = GMEM_F32;
    weight.rows = weight.cols = weight.row_stride = 1;
    memset(&op, 0, sizeof op);
    op.weight = &weight;
    op.x = values;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = LENGTH(values);
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        const gmem__engine engine = engine_make(ops, 1);
        for (int a = GMEM__ACT_NONE; a < GMEM__ACT_SWIGLU; a++) {
            op.activation = (gmem__activation)a;
            ops->linear(&engine, &op);
            for (int v = 0; v < LENGTH(values); v++) {
                const double expected = activate(op.activation, (double)values[v]);
                if (!CHECK(fabs((double)y[v] - expected) <= 2e-7 + 4e-7 * fabs(expected)))
                    printf("    %s: activation %d of %g is %g, not %g\n", ops->name, a, (double)values[v], (double)y[v],
                           expected);
            }
        }
    }
}

/* NaN stays NaN and stays in its column. */
static void test_nan(void) {
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        for (int a = GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++) {
            const gmem__engine engine = engine_make(ops, 2);
            weights w = weights_make(GMEM_F32, 14, 20);
            matrix x = matrix_random(20, 41, 0), y = matrix_random(14, 41, 0);
            gmem__linear op;
            memset(&op, 0, sizeof op);
            op.weight = &w.weight;
            op.x = x.data;
            op.y = y.data;
            op.x_stride = op.y_stride = op.columns = 41;
            op.activation = (gmem__activation)a;
            memset(x.data + 3 * 41 + 37, 0xff, sizeof(float));
            ops->linear(&engine, &op);
            for (int64_t r = 0; r < (a == GMEM__ACT_SWIGLU ? 7 : 14); r++)
                for (int64_t c = 0; c < 41; c++)
                    CHECK(c == 37 ? isnan(y.data[r * 41 + c]) : isfinite(y.data[r * 41 + c]));
            matrix_free(&x);
            matrix_free(&y);
            weights_free(&w);
        }
    }
}

/* conv ------------------------------------------------------------------------------------------------------------ */

typedef struct conv_case {
    int64_t in_channels, out_channels, height, width;
    int kernel, stride, upsample;
} conv_case;

enum { CONV_NO_RESIDUAL, CONV_RESIDUAL, CONV_RESIDUAL_IN_PLACE, CONV_VARIANTS };

static void check_conv(const conv_case *test, gmem_type type, int variant) {
    const int64_t height = (test->height << test->upsample) / test->stride;
    const int64_t width = (test->width << test->upsample) / test->stride;
    weights w = weights_make(type, test->out_channels, test->in_channels * test->kernel * test->kernel);
    matrix x = matrix_random(test->in_channels, test->height * test->width, 0);
    matrix before = matrix_random(test->out_channels, height * width, 0),
           bias = matrix_random(1, test->out_channels, 0);
    double *expected = (double *)need(test->out_channels * height * width, sizeof(double));
    gmem__conv op;
    memset(&op, 0, sizeof op);
    op.weight = &w.weight;
    op.bias = type == GMEM_I8 ? NULL : bias.data;
    op.residual = variant == CONV_NO_RESIDUAL ? NULL : before.data;
    op.x = x.data;
    op.in_channels = test->in_channels;
    op.height = test->height;
    op.width = test->width;
    op.kernel = test->kernel;
    op.stride = test->stride;
    op.upsample = test->upsample;
    conv_reference(&op, &w, height, width, expected);
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        for (int threads = 1; threads <= 2; threads++) {
            const gmem__engine engine = engine_make(ops, threads);
            matrix y = matrix_copy(&before);
            op.y = y.data;
            if (variant == CONV_RESIDUAL_IN_PLACE) op.residual = y.data;
            ops->conv(&engine, &op);
            const double error = matrix_error(&y, expected);
            if (!CHECK(error < BAR) || !CHECK(matrix_guards_hold(&y)))
                printf("    %s: conv (%d, %d, %d, %d) to %d, stride %d, upsample %d, type %d: error %g\n", ops->name,
                       (int)test->in_channels, test->kernel, (int)test->height, (int)test->width,
                       (int)test->out_channels, test->stride, test->upsample, (int)type, error);
            matrix_free(&y);
        }
    }
    CHECK(matrix_guards_hold(&x));
    matrix_free(&x);
    matrix_free(&before);
    matrix_free(&bias);
    free(expected);
    weights_free(&w);
}

static void test_conv(void) {
    static const conv_case cases[] = {{1, 1, 1, 1, 1, 1, 0},
                                      {1, 1, 1, 1, 3, 1, 0},
                                      {1, 1, 1, 1, 3, 1, 1},
                                      {1, 1, 2, 2, 3, 2, 0},
                                      {3, 5, 4, 4, 3, 1, 0},
                                      {3, 5, 4, 4, 3, 2, 0},
                                      {3, 5, 4, 4, 3, 1, 1},
                                      {5, 13, 7, 5, 1, 1, 0},
                                      {5, 13, 7, 5, 3, 1, 0},
                                      {5, 13, 7, 5, 3, 1, 1},
                                      {2, 14, 6, 10, 3, 2, 0},
                                      {45, 25, 9, 11, 3, 1, 0},
                                      {43, 7, 17, 16, 3, 1, 0},
                                      {9, 3, 33, 31, 3, 1, 0},
                                      {4, 6, 1, 70, 3, 1, 0},
                                      {4, 6, 70, 1, 3, 1, 0},
                                      {4, 6, 34, 70, 3, 2, 0},
                                      {4, 6, 9, 35, 3, 1, 1},
                                      {100, 200, 8, 8, 3, 1, 0},
                                      {2, 3, 3, 300, 3, 1, 0},
                                      {2, 3, 2, 200, 3, 1, 1},
                                      {2, 3, 4, 532, 3, 2, 0},
                                      {2, 3, 2, 300, 1, 1, 0},
                                      /* taken from lines */ {33, 14, 3, 16, 3, 1, 0},
                                      {5, 7, 18, 16, 3, 1, 0},
                                      {65, 13, 9, 32, 3, 1, 0},
                                      {3, 5, 2, 256, 3, 1, 0},
                                      {35, 200, 1, 64, 3, 1, 0},
                                      {4, 9, 3, 512, 3, 1, 0},
                                      {5, 4, 3, 128, 3, 1, 1},
                                      {70, 5, 5, 8, 3, 1, 1},
                                      {2, 27, 5, 128, 3, 1, 0}};
    for (int i = 0; i < LENGTH(cases); i++)
        for (int variant = 0; variant < CONV_VARIANTS; variant++)
            check_conv(&cases[i], types[(i + variant) % LENGTH(types)], variant);
}

/* the choice ------------------------------------------------------------------------------------------------------ */

static void test_choice(void) {
    gmem_isa chosen = GMEM_ISA_AMX;
    const gmem__ops *scalar = gmem__cpu_ops(GMEM_ISA_SCALAR, &chosen), *automatic;
    CHECK(scalar != NULL && chosen == GMEM_ISA_SCALAR);
    CHECK_TEXT(scalar->name, "cpu/scalar");
    automatic = gmem__cpu_ops(GMEM_ISA_AUTO, &chosen);
    CHECK(automatic != NULL && chosen != GMEM_ISA_AUTO && automatic == gmem__cpu_ops(chosen, NULL));
    for (int i = 0; i < LENGTH(isas); i++)
        if (gmem__cpu_ops(isas[i], NULL)) CHECK(gmem__cpu_ops(isas[i], &chosen) && chosen == isas[i]);
}

int main(void) {
    test_choice();
    test_shapes();
    test_depths();
    test_deep();
    test_wide();
    test_epilogues();
    test_activations();
    test_nan();
    test_conv();
    return check_report();
}
