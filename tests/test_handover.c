/* What a product or attention leaves in the order of the next product: the same result, bit for bit, as by way of rows
 * of floats; and where it must not be left so. */
#include "../backends/cpu/narrow.h"

#include "product.h"

typedef struct chain {
    const gmem__ops *ops;
    const gmem__narrow *narrow;
    int64_t depth, inside, rows, columns; /* (inside, depth), with SWIGLU twice as many, then (rows, inside) */
    gmem__activation activation;
    int off; /* floats from the 64-byte grid */
} chain;

static gmem__engine engine_of(const chain *c, int threads) {
    gmem__engine engine = engine_make(c->ops, threads);
    engine.bf16 = engine.int8 = c->narrow;
    return engine;
}

/* (rows, columns), on the 64-byte grid or 4 bytes off. */
static matrix matrix_aligned(int64_t rows, int64_t columns, int off) {
    matrix m = {NULL, NULL, 0, 0, 0};
    m.rows = rows;
    m.columns = m.stride = columns;
    m.memory = (float *)need(rows * columns + 32, sizeof(float));
    m.data = m.memory + (64 - (uintptr_t)m.memory % 64) % 64 / sizeof(float) + off;
    for (int64_t i = 0; i < rows * columns + 15; i++)
        m.data[i] = CANARY;
    return m;
}

static int matrix_ends(const matrix *m) {
    for (int64_t i = m->rows * m->columns; i < m->rows * m->columns + 15; i++)
        if (m->data[i] != CANARY) return 0;
    return 1;
}

static gmem__linear linear_of(weights *w, const matrix *x, matrix *y) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &w->weight;
    op.x = x->data;
    op.x_stride = x->stride;
    op.y = y->data;
    op.y_stride = y->stride;
    op.columns = x->columns;
    op.activation = GMEM__ACT_NONE;
    return op;
}

/* second(first(x)), with a residual and a gate; hand 0: by way of floats. Returns whether it was handed over. */
static int run_chain(const chain *c, weights *first, weights *second, const matrix *x, const matrix *gate, int hand,
                     int threads, matrix *y) {
    matrix inside = matrix_aligned(c->inside, c->columns, c->off);
    gmem__engine engine = engine_of(c, threads);
    gmem__handover handover;
    gmem__linear op = linear_of(first, x, &inside);
    handover.reader = &second->weight;
    handover.packed = 0;
    op.activation = c->activation;
    op.to = hand ? &handover : NULL;
    c->ops->linear(&engine, &op);
    CHECK(matrix_ends(&inside));
    op = linear_of(second, &inside, y);
    op.from = hand ? &handover : NULL;
    op.residual = 1;
    op.gate = gate->data;
    op.gate_stride = gate->stride;
    op.tokens = c->columns;
    c->ops->linear(&engine, &op);
    matrix_free(&inside);
    return handover.packed;
}

static void check_chain(const chain *c, int expected) {
    const int64_t halves = c->activation == GMEM__ACT_SWIGLU ? 2 : 1;
    weights first = weights_make(GMEM_F32, halves * c->inside, c->depth),
            second = weights_make(GMEM_BF16, c->rows, c->inside);
    matrix x = matrix_random(c->depth, c->columns, SLACK), before = matrix_random(c->rows, c->columns, SLACK);
    matrix gate = matrix_random(1, c->rows, 0), plain = matrix_copy(&before);
    first.weight.compute = second.weight.compute = c->narrow->type == GMEM_BF16 ? GMEM_COMPUTE_BF16 : GMEM_COMPUTE_INT8;
    CHECK_INT(run_chain(c, &first, &second, &x, &gate, 0, 1, &plain), 0);
    for (int threads = 1; threads <= 3; threads += 2) {
        matrix y = matrix_copy(&before);
        const int packed = run_chain(c, &first, &second, &x, &gate, 1, threads, &y);
        if (!CHECK_INT(packed, expected) || !CHECK(matrix_equal(&plain, &y)) || !CHECK(matrix_guards_hold(&y)))
            printf("    %s on %s: %d to %d to %d, %d columns\n", c->narrow->name, c->ops->name, (int)c->depth,
                   (int)c->inside, (int)c->rows, (int)c->columns);
        matrix_free(&y);
    }
    matrix_free(&x);
    matrix_free(&before);
    matrix_free(&gate);
    matrix_free(&plain);
    weights_free(&first);
    weights_free(&second);
}

static void check_products(const gmem__ops *ops, const gmem__narrow *narrow) {
    static const struct {
        int64_t inside, columns;
        gmem__activation activation;
        int whole; /* words and panels of 32 columns */
    } cases[] = {{64, 64, GMEM__ACT_SWIGLU, 1}, {416, 288, GMEM__ACT_SWIGLU, 1}, {32, 32, GMEM__ACT_GELU_TANH, 1},
                 {480, 64, GMEM__ACT_NONE, 1},  {48, 64, GMEM__ACT_SWIGLU, 0},   {64, 40, GMEM__ACT_SWIGLU, 0}};
    for (int i = 0; i < LENGTH(cases); i++) {
        chain c;
        c.ops = ops;
        c.narrow = narrow;
        c.depth = 50;
        c.inside = cases[i].inside;
        c.rows = 37;
        c.columns = cases[i].columns;
        c.activation = cases[i].activation;
        c.off = 0;
        check_chain(&c, cases[i].whole && narrow->type == GMEM_BF16);
        c.off = 1;
        check_chain(&c, 0);
    }
}

/* proj(attention(q, k, v)). */
static int run_attention(const chain *c, const gmem__attention *attention, weights *proj, int hand, int threads,
                         matrix *y) {
    matrix inside = matrix_aligned(c->inside, c->columns, c->off);
    gmem__engine engine = engine_of(c, threads);
    gmem__attention op = *attention;
    gmem__handover handover;
    handover.reader = &proj->weight;
    handover.packed = 0;
    op.y = inside.data;
    op.y_stride = inside.stride;
    op.to = hand ? &handover : NULL;
    c->ops->attention(&engine, &op);
    CHECK(matrix_ends(&inside));
    gmem__linear linear = linear_of(proj, &inside, y);
    linear.from = hand ? &handover : NULL;
    c->ops->linear(&engine, &linear);
    matrix_free(&inside);
    return handover.packed;
}

static void check_attention(const gmem__ops *ops, const gmem__narrow *narrow, int64_t head_dim, int64_t tokens,
                            int expected) {
    const int64_t heads = 8, samples = 2;
    chain c;
    gmem__attention op;
    memset(&op, 0, sizeof op);
    c.ops = ops;
    c.narrow = narrow;
    c.off = 0;
    c.inside = heads * head_dim;
    c.columns = samples * tokens;
    matrix q = matrix_random(c.inside, c.columns, 0), k = matrix_random(c.inside, c.columns, 0);
    matrix v = matrix_random(c.inside, c.columns, 0), plain = matrix_make(21, c.columns, c.columns);
    weights proj = weights_make(GMEM_F32, 21, c.inside);
    proj.weight.compute = GMEM_COMPUTE_BF16;
    op.q = q.data;
    op.k = k.data;
    op.v = v.data;
    op.heads = heads;
    op.head_dim = head_dim;
    op.tokens = tokens;
    op.samples = samples;
    op.stride = c.columns;
    op.scale = 0.3f;
    op.compute = GMEM_COMPUTE_BF16;
    CHECK_INT(run_attention(&c, &op, &proj, 0, 1, &plain), 0);
    for (int threads = 1; threads <= 3; threads += 2) {
        matrix y = matrix_make(21, c.columns, c.columns);
        CHECK_INT(run_attention(&c, &op, &proj, 1, threads, &y), expected);
        CHECK(matrix_equal(&plain, &y));
        matrix_free(&y);
    }
    matrix_free(&q);
    matrix_free(&k);
    matrix_free(&v);
    matrix_free(&plain);
    weights_free(&proj);
}

static void check_kernel(const gmem__ops *ops, const gmem__narrow *narrow) {
    const gmem__engine engine = engine_make(ops, 1);
    const int vectors = gmem__engine_kernels(&engine)->narrow_attention != NULL;
    if (!narrow || narrow->nr < 16) return;
    check_products(ops, narrow);
    if (narrow->type != GMEM_BF16) return;
    check_attention(ops, narrow, 12, 64, vectors);
    check_attention(ops, narrow, 16, 32, vectors);
    check_attention(ops, narrow, 7, 64, 0);
    check_attention(ops, narrow, 12, 40, 0);
    printf("%s on %s ", narrow->name, ops->name);
}

int main(void) {
    for (int i = 0; i < LENGTH(isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        check_kernel(ops, gmem__narrow_of(isas[i], GMEM_BF16));
        check_kernel(ops, gmem__narrow_of(isas[i], GMEM_I8));
        check_kernel(ops, gmem__portable_bf16());
        check_kernel(ops, gmem__amx_stand_in(GMEM_BF16));
        for (int n = 0; gmem__portable_like(n); n++)
            if (gmem__portable_like(n)->type == GMEM_BF16) check_kernel(ops, gmem__portable_like(n));
    }
    printf("\n");
    return check_report();
}
