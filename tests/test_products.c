/* Products in bf16 and int8 as a network uses them: every narrow kernel that this processor has and the stand-ins of
 * those that it lacks, kept weights and weights packed on the way, every epilogue, shapes around the blocks' edges;
 * against products in double of operands rounded independently. */
#include "../backends/cpu/narrow.h"

#include "product.h"

#define BAR 2e-6

typedef struct product_case {
    int64_t rows, depth, columns;
    gmem__activation activation;
    int bias, residual;
    int64_t tokens; /* of a sample, with a gate; 0: no gate */
} product_case;

static int kernel_count;
static const gmem__narrow *kernels[32];

static void add_kernel(const gmem__narrow *narrow) {
    for (int i = 0; i < kernel_count; i++)
        if (kernels[i] == narrow) return;
    if (narrow && CHECK(kernel_count < LENGTH(kernels))) kernels[kernel_count++] = narrow;
}

/* Those that are not the first choice here, where AVX2 is enough for them. */
static void add_kernels_of_this_build(void) {
#ifdef GMEM__X86
    if (!gmem__cpu_ops(GMEM_ISA_AVX2, NULL)) return;
    add_kernel(gmem__avx2_dots(GMEM_BF16));
    add_kernel(gmem__avx2_dots(GMEM_I8));
#endif
}

/* Kernels in plain C take long: on the fastest instruction set alone, which packs for the real ones too. */
static int is_plain(const gmem__narrow *narrow) {
    return strncmp(narrow->name, "avx", 3) != 0 && strncmp(narrow->name, "amx", 3) != 0;
}

static int worth_running(int isa, const gmem__narrow *narrow) {
    int fastest = 0;
    for (int i = 0; i < LENGTH(isas) && isas[i] != GMEM_ISA_AMX; i++)
        if (gmem__cpu_ops(isas[i], NULL)) fastest = i;
    return !is_plain(narrow) || isa == fastest;
}

/* one case -------------------------------------------------------------------------------------------------------- */

/* Memory for a kept copy, as opening a network reserves it. */
static void *keep_weights(const gmem__narrow *narrow, weights *w, int swiglu, gmem__packed *packed) {
    gmem_context context;
    gmem__narrow kept = *narrow;
    memset(&context, 0, sizeof context);
    kept.keep = 1;
    context.bf16 = context.int8 = &kept;
    gmem_compute compute = w->weight.compute;
    const int64_t bytes = gmem__cpu_packed_bytes(&context, &w->weight, swiglu, &compute);
    char *memory = (char *)need(bytes + 64, 1);
    CHECK_INT(compute, w->weight.compute);
    gmem__cpu_packed_place(&context, &w->weight, swiglu, memory + (64 - (uintptr_t)memory % 64) % 64, packed);
    return memory;
}

static void check_on(const gmem__ops *ops, const gmem__narrow *narrow, gmem__linear *op, weights *w,
                     const matrix *before, const double *expected) {
    gmem__packed packed;
    matrix first = matrix_copy(before);
    void *kept = keep_weights(narrow, w, op->activation == GMEM__ACT_SWIGLU, &packed);
    const int runs = is_plain(narrow) ? 2 : 4; /* on the way, packing, packed, packed with other threads */
    for (int run = 0; run < runs; run++) {
        gmem__engine engine = engine_make(ops, run == 3 ? 3 : 2);
        matrix y = matrix_copy(before);
        engine.bf16 = engine.int8 = narrow;
        w->weight.packed = run > 0 ? &packed : NULL;
        op->y = y.data;
        ops->linear(&engine, op);
        const double error = matrix_error(&y, expected);
        if (!CHECK(error < BAR) || !CHECK(matrix_guards_hold(&y)))
            printf("    %s on %s, run %d: (%d, %d) x %d columns, type %d, activation %d: error %g\n", narrow->name,
                   ops->name, run, (int)w->weight.rows, (int)w->weight.cols, (int)op->columns, (int)w->weight.type,
                   (int)op->activation, error);
        if (run == 0)
            memcpy(first.memory, y.memory, (size_t)matrix_floats(&y) * sizeof(float));
        else
            CHECK(matrix_equal(&first, &y));
        matrix_free(&y);
    }
    CHECK_INT(packed.state, GMEM__PACKED_READY);
    w->weight.packed = NULL;
    matrix_free(&first);
    free(kept);
}

/* By all kernels that round x to so many levels, as the reference does once for all instruction sets. */
static void check_levels(gmem_type type, int levels, gmem__linear *op, weights *w, const matrix *x,
                         const matrix *before) {
    double *expected = (double *)need(before->rows * before->columns, sizeof(double));
    double *rounded = rounded_x(type, levels, x);
    narrow_reference(op, w, rounded, before, expected);
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        for (int k = 0; ops && k < kernel_count; k++)
            if (kernels[k]->type == type && gmem__narrow_levels(kernels[k]) == levels && worth_running(i, kernels[k]))
                check_on(ops, kernels[k], op, w, before, expected);
    }
    free(expected);
    free(rounded);
}

static void check_case(const product_case *test, gmem_type type, gmem_type stored) {
    const int64_t out_rows = test->activation == GMEM__ACT_SWIGLU ? test->rows / 2 : test->rows;
    weights w = weights_make(stored, test->rows, test->depth);
    matrix x = matrix_random(test->depth, test->columns, SLACK), before = matrix_random(out_rows, test->columns, SLACK);
    matrix bias = matrix_random(1, test->rows, 0);
    matrix gate = matrix_random(test->tokens ? test->columns / test->tokens : 1, test->rows, SLACK);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    w.weight.compute = type == GMEM_BF16 ? GMEM_COMPUTE_BF16 : GMEM_COMPUTE_INT8;
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
    round_weights(type, &w);
    check_levels(type, 127, &op, &w, &x, &before);
    if (type == GMEM_I8) check_levels(type, 63, &op, &w, &x, &before);
    CHECK(matrix_guards_hold(&x));
    matrix_free(&x);
    matrix_free(&before);
    matrix_free(&bias);
    matrix_free(&gate);
    weights_free(&w);
}

static void test_shapes(void) {
    static const int64_t rows[] = {1, 6, 12, 13, 16, 31, 33, 97, 193};
    static const int64_t depths[] = {1, 2, 5, 31, 32, 33, 63, 64, 65, 130};
    static const int64_t columns[] = {1, 15, 16, 17, 31, 32, 33, 64, 255, 257};
    product_case test;
    memset(&test, 0, sizeof test);
    for (int r = 0; r < LENGTH(rows); r++)
        for (int c = 0; c < LENGTH(columns); c += 3) {
            const int pick = r * LENGTH(columns) + c;
            test.rows = rows[r];
            test.columns = columns[(c + r) % LENGTH(columns)];
            test.depth = depths[pick % LENGTH(depths)];
            test.bias = pick % 3 == 0;
            check_case(&test, pick % 2 ? GMEM_BF16 : GMEM_I8, types[pick % LENGTH(types)]);
        }
}

static void test_depths(void) {
    static const int64_t depths[] = {383, 576, 577, 1151, 1153, 2305};
    product_case test = {19, 0, 35, GMEM__ACT_NONE, 1, 0, 0};
    for (int d = 0; d < LENGTH(depths); d++) {
        test.depth = depths[d];
        check_case(&test, GMEM_BF16, types[d % LENGTH(types)]);
        check_case(&test, GMEM_I8, types[d % LENGTH(types)]);
    }
}

static void test_epilogues(void) {
    for (int a = GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a++)
        for (int flags = 0; flags < 8; flags += 3) {
            product_case test = {50, 40, 60, (gmem__activation)a, flags & 1, flags >> 1 & 1, 0};
            if (flags & 4) test.tokens = a % 2 ? 12 : 20;
            check_case(&test, a % 2 ? GMEM_BF16 : GMEM_I8, GMEM_F32);
            test.rows = 412;
            check_case(&test, a % 2 ? GMEM_I8 : GMEM_BF16, GMEM_F32);
        }
}

/* norms ----------------------------------------------------------------------------------------------------------- */

/* A product of a norm's result, computed on the way, is that of the norm's result. */
static void check_norm(const gmem__ops *ops, const gmem__narrow *narrow, gmem_compute compute, int64_t depth,
                       int64_t tokens, int64_t samples) {
    const int64_t columns = tokens * samples;
    weights w = weights_make(GMEM_F32, 77, depth);
    matrix x = matrix_random(depth, columns, 0), normed = matrix_make(depth, columns, columns);
    matrix spare = matrix_make(depth, columns, columns), modulation = matrix_random(samples, 2 * depth, 0);
    matrix apart = matrix_make(77, columns, columns), fused = matrix_make(77, columns, columns);
    gmem__engine engine = engine_make(ops, 2);
    gmem__norm norm;
    gmem__linear op;
    memset(&norm, 0, sizeof norm);
    memset(&op, 0, sizeof op);
    engine.bf16 = engine.int8 = narrow;
    w.weight.compute = compute;
    norm.rms = 1;
    norm.eps = 1e-6f;
    norm.shift = modulation.data;
    norm.scale = modulation.data + depth;
    norm.modulation_stride = 2 * depth;
    norm.x = x.data;
    norm.y = normed.data;
    norm.channels = depth;
    norm.columns = columns;
    norm.tokens = tokens;
    ops->norm(&engine, &norm);
    op.weight = &w.weight;
    op.x = normed.data;
    op.x_stride = op.y_stride = op.columns = columns;
    op.y = apart.data;
    ops->linear(&engine, &op);
    norm.y = spare.data;
    op.norm = &norm;
    op.x = NULL;
    op.y = fused.data;
    ops->linear(&engine, &op);
    if (!CHECK(matrix_equal(&apart, &fused)) || !CHECK(matrix_guards_hold(&fused)))
        printf("    norm on %s, %s: depth %d, %d x %d tokens\n", ops->name, narrow ? narrow->name : "f32", (int)depth,
               (int)samples, (int)tokens);
    matrix_free(&x);
    matrix_free(&normed);
    matrix_free(&spare);
    matrix_free(&modulation);
    matrix_free(&apart);
    matrix_free(&fused);
    weights_free(&w);
}

static void test_norms(void) {
    static const int64_t shapes[][3] = {{40, 9, 5}, {31, 64, 1}, {65, 30, 3}, {130, 1, 7}, {20000, 5, 1}};
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        for (int s = 0; ops && s < LENGTH(shapes); s++) {
            check_norm(ops, NULL, GMEM_COMPUTE_F32, shapes[s][0], shapes[s][1], shapes[s][2]);
            check_norm(ops, NULL, GMEM_COMPUTE_BF16, shapes[s][0], shapes[s][1], shapes[s][2]);
            for (int k = 0; k < kernel_count && shapes[s][0] < 10000; k++)
                if (worth_running(i, kernels[k]))
                    check_norm(ops, kernels[k], kernels[k]->type == GMEM_BF16 ? GMEM_COMPUTE_BF16 : GMEM_COMPUTE_INT8,
                               shapes[s][0], shapes[s][1], shapes[s][2]);
        }
    }
}

/* bf16 where no narrow kernel is worth it: f32 kernels on rounded operands. */
static void test_rounded(void) {
    weights w = weights_make(GMEM_F32, 29, 67);
    matrix x = matrix_random(67, 45, SLACK), before = matrix_make(29, 45, 45 + SLACK);
    double *rounded = rounded_x(GMEM_BF16, 0, &x), *expected = (double *)need(29 * 45, sizeof(double));
    gmem__linear op;
    memset(&op, 0, sizeof op);
    w.weight.compute = GMEM_COMPUTE_BF16;
    op.weight = &w.weight;
    op.x = x.data;
    op.x_stride = x.stride;
    op.y_stride = before.stride;
    op.columns = 45;
    round_weights(GMEM_BF16, &w);
    narrow_reference(&op, &w, rounded, &before, expected);
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        gmem__engine engine = engine_make(ops, 2);
        matrix y = matrix_copy(&before);
        op.y = y.data;
        ops->linear(&engine, &op);
        CHECK(matrix_error(&y, expected) < BAR);
        CHECK(matrix_guards_hold(&y));
        matrix_free(&y);
    }
    matrix_free(&x);
    matrix_free(&before);
    free(rounded);
    free(expected);
    weights_free(&w);
}

/* attention ------------------------------------------------------------------------------------------------------- */

/* Every vector version by every bf16 kernel, against the scalar one in f32: what is left is rounding to 8 bits. */
static void check_attention(int64_t heads, int64_t head_dim, int64_t tokens, int64_t samples) {
    const int64_t rows = heads * head_dim, columns = tokens * samples;
    matrix q = matrix_random(rows, columns, 0), k = matrix_random(rows, columns, 0),
           v = matrix_random(rows, columns, 0);
    matrix exact = matrix_make(rows, columns, columns);
    double *expected = (double *)need(rows * columns, sizeof *expected);
    gmem__attention op;
    memset(&op, 0, sizeof op);
    op.q = q.data;
    op.k = k.data;
    op.v = v.data;
    op.y = exact.data;
    op.heads = heads;
    op.head_dim = head_dim;
    op.tokens = tokens;
    op.samples = samples;
    op.stride = op.y_stride = columns;
    op.scale = (float)(1 / sqrt((double)head_dim));
    const gmem__ops *scalar = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    gmem__engine plain = engine_make(scalar, 1);
    scalar->attention(&plain, &op);
    for (int64_t i = 0; i < rows * columns; i++)
        expected[i] = (double)exact.data[i];
    op.compute = GMEM_COMPUTE_BF16;
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        for (int n = 0; ops && n < kernel_count; n++) {
            if (kernels[n]->type != GMEM_BF16 || !worth_running(i, kernels[n])) continue;
            matrix y = matrix_make(rows, columns, columns);
            gmem__engine engine = engine_make(ops, 2);
            engine.bf16 = kernels[n];
            op.y = y.data;
            ops->attention(&engine, &op);
            const double error = matrix_error(&y, expected);
            if (!CHECK(error < 5e-3) || !CHECK(matrix_guards_hold(&y)))
                printf("    attention on %s, %s: %d heads of %d, %d x %d tokens: error %g\n", ops->name,
                       kernels[n]->name, (int)heads, (int)head_dim, (int)samples, (int)tokens, error);
            matrix_free(&y);
        }
    }
    matrix_free(&q);
    matrix_free(&k);
    matrix_free(&v);
    matrix_free(&exact);
    free(expected);
}

static void test_attention(void) {
    check_attention(1, 1, 1, 1);
    check_attention(2, 72, 256, 1);
    check_attention(3, 7, 33, 2);
    check_attention(2, 64, 65, 3);
    check_attention(1, 130, 100, 1);
    check_attention(5, 16, 17, 1);
    check_attention(1, 2000, 300, 1); /* more than fits: in f32 */
}

/* What is not finite shows in its own column, wherever in the depth it is. */
static void check_not_finite(gmem_type type) {
    const int64_t rows = 20, depth = 200, columns = 40;
    weights w = weights_make(GMEM_F32, rows, depth);
    matrix x = matrix_random(depth, columns, SLACK);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    w.weight.compute = type == GMEM_BF16 ? GMEM_COMPUTE_BF16 : GMEM_COMPUTE_INT8;
    x.data[10 * x.stride + 20] = -INFINITY;
    x.data[150 * x.stride + 3] = NAN;
    x.data[199 * x.stride + 39] = NAN;
    op.weight = &w.weight;
    op.x = x.data;
    op.x_stride = x.stride;
    op.y_stride = op.columns = columns;
    op.activation = GMEM__ACT_NONE;
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        for (int k = 0; ops && k < kernel_count; k++) {
            if (kernels[k]->type != type || !worth_running(i, kernels[k])) continue;
            gmem__engine engine = engine_make(ops, 2);
            matrix y = matrix_make(rows, columns, columns);
            int right = 1;
            engine.bf16 = engine.int8 = kernels[k];
            op.y = y.data;
            ops->linear(&engine, &op);
            for (int64_t at = 0; at < rows * columns; at++) {
                const int64_t column = at % columns;
                right &= !isfinite(y.data[at]) == (column == 3 || column == 20 || column == 39);
            }
            if (!CHECK(right)) printf("    %s on %s\n", kernels[k]->name, ops->name);
            matrix_free(&y);
        }
    }
    matrix_free(&x);
    weights_free(&w);
}

/* An image's patches: against f32 products of rounded operands on the scalar kernels, which know no narrow ones. */
static void check_conv(int64_t in, int64_t out, int64_t height, int64_t width, int kernel, int stride, int upsample) {
    const int64_t area = (height << upsample) / stride * ((width << upsample) / stride);
    weights w = weights_make(GMEM_F32, out, in * kernel * kernel);
    matrix x = matrix_random(in, height * width, 0), exact = matrix_make(out, area, area);
    double *expected = (double *)need(out * area, sizeof(double));
    gmem__engine engine = engine_make(gmem__cpu_ops(GMEM_ISA_SCALAR, NULL), 1);
    gmem__conv op;
    memset(&op, 0, sizeof op);
    w.weight.compute = GMEM_COMPUTE_BF16;
    op.weight = &w.weight;
    op.x = x.data;
    op.y = exact.data;
    op.in_channels = in;
    op.height = height;
    op.width = width;
    op.kernel = kernel;
    op.stride = stride;
    op.upsample = upsample;
    engine.bf16 = NULL;
    engine.ops->conv(&engine, &op);
    for (int64_t i = 0; i < out * area; i++)
        expected[i] = (double)exact.data[i];
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        for (int n = 0; ops && n < kernel_count; n++) {
            if (kernels[n]->type != GMEM_BF16 || !worth_running(i, kernels[n])) continue;
            matrix y = matrix_make(out, area, area);
            engine = engine_make(ops, 2);
            engine.bf16 = kernels[n];
            op.y = y.data;
            ops->conv(&engine, &op);
            const double error = matrix_error(&y, expected);
            if (!CHECK(error < BAR) || !CHECK(matrix_guards_hold(&y)))
                printf("    convolution on %s, %s: %d to %d channels, %d x %d, kernel %d, stride %d, upsample %d: %g\n",
                       ops->name, kernels[n]->name, (int)in, (int)out, (int)height, (int)width, kernel, stride,
                       upsample, error);
            matrix_free(&y);
        }
    }
    CHECK(matrix_guards_hold(&x));
    matrix_free(&x);
    matrix_free(&exact);
    weights_free(&w);
    free(expected);
}

static void test_conv(void) {
    check_conv(3, 5, 4, 32, 3, 1, 0);
    check_conv(8, 33, 5, 64, 3, 1, 0); /* depth 72 */
    check_conv(70, 3, 3, 32, 3, 1, 0); /* several blocks of the depth */
    check_conv(5, 20, 2, 16, 3, 1, 1); /* upsampled to 32 */
    check_conv(5, 20, 3, 16, 3, 1, 0); /* half a panel of some kernels */
    check_conv(4, 9, 3, 20, 3, 1, 0);
    check_conv(4, 9, 4, 64, 3, 2, 0);
    check_conv(7, 9, 3, 32, 1, 1, 0);
    check_conv(2, 400, 2, 512, 3, 1, 0); /* longer than a tile's columns */
}

int main(void) {
    static const gmem_type narrow_types[] = {GMEM_BF16, GMEM_I8};
    for (int t = 0; t < LENGTH(narrow_types); t++) {
        for (int i = 0; i < LENGTH(isas); i++)
            if (gmem__cpu_ops(isas[i], NULL)) add_kernel(gmem__narrow_of(isas[i], narrow_types[t]));
    }
    for (int t = 0; t < LENGTH(narrow_types); t++)
        add_kernel(gmem__amx_stand_in(narrow_types[t]));
    add_kernel(gmem__portable_bf16());
    add_kernel(gmem__portable_i8());
    add_kernels_of_this_build();
    for (int i = 0; gmem__portable_like(i); i++)
        if (gmem__portable_like(i)->nr >= 16 && gmem__portable_like(i)->type != GMEM_F32) /* others are the scans' */
            add_kernel(gmem__portable_like(i));
    test_shapes();
    test_depths();
    test_epilogues();
    test_norms();
    test_rounded();
    test_attention();
    test_conv();
    check_not_finite(GMEM_BF16);
    check_not_finite(GMEM_I8);
    for (int k = 0; k < kernel_count; k++)
        printf("%s%s", k ? ", " : "kernels: ", kernels[k]->name);
    printf("\n");
    return check_report();
}
