/* The linear layers of a GMem XL/1 block against this machine's peak, in every instruction set. Checks each layer
 * against the portable kernels before it times it. Prints the best of several runs: GFLOP/s and the share of the
 * measured peak of multiply-adds.
 *
 *     gemm [THREADS [RUNS [COLUMNS [f32|f16|bf16|i8]]]] */
#define _POSIX_C_SOURCE 200112L
#include "../backends/cpu/cpu.h"
#include "../examples/gmem/machine.h"
#include "../examples/gmem/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BLOCKS 4 /* different weights, so that they come from memory as in a whole pass */

static void *need(int64_t count, size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 64, (size_t)count * bytes + 64)) {
        fprintf(stderr, "gemm: out of memory\n");
        exit(1);
    }
    return memory;
}

/* the layers ------------------------------------------------------------------------------------------------------ */

typedef struct layer {
    const char *name;
    int64_t rows, depth;
    gmem__activation activation;
} layer;

static const layer layers[] = {{"qkv", 3456, 1152, GMEM__ACT_NONE},
                               {"proj", 1152, 1152, GMEM__ACT_NONE},
                               {"w12", 6144, 1152, GMEM__ACT_SWIGLU},
                               {"w3", 1152, 3072, GMEM__ACT_NONE}};
enum { LAYERS = sizeof layers / sizeof *layers };

static float small_random(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)((int32_t)(state >> 8) - (1 << 23)) / (1 << 23);
}

static gmem__weight weight_make(const layer *l, gmem_type type) {
    const int64_t count = l->rows * l->depth;
    float *scale = (float *)need(l->rows, sizeof(float));
    gmem__weight weight;
    void *data = need(count, sizeof(float));
    for (int64_t r = 0; r < l->rows; r++)
        scale[r] = 0.05f / 127;
    for (int64_t i = 0; i < count; i++) {
        const float value = small_random();
        if (type == GMEM_I8)
            ((signed char *)data)[i] = (signed char)(value * 127);
        else if (type == GMEM_F16)
            ((uint16_t *)data)[i] = gmem__f32_to_f16(value * 0.05f);
        else if (type == GMEM_BF16)
            ((uint16_t *)data)[i] = gmem__f32_to_bf16(value * 0.05f);
        else
            ((float *)data)[i] = value * 0.05f;
    }
    weight.data = data;
    weight.scale = type == GMEM_I8 ? scale : NULL;
    weight.type = type;
    weight.rows = l->rows;
    weight.cols = weight.row_stride = l->depth;
    return weight;
}

typedef struct bench {
    gmem__weight weights[BLOCKS][LAYERS];
    float *x, *y, *expected;
    int64_t columns;
    int runs;
} bench;

static void run_layer(const bench *b, const gmem__engine *engine, int block, int l, float *y) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &b->weights[block][l];
    op.x = b->x;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = b->columns;
    op.activation = layers[l].activation;
    engine->ops->linear(engine, &op);
}

static gmem__engine engine_make(const gmem__ops *ops, int threads) {
    gmem__engine engine;
    engine.ops = ops;
    engine.threads = threads;
    engine.scratch = need(ops->scratch_bytes(threads), 1);
    return engine;
}

static void check_layer(const bench *b, const gmem__engine *engine, int l) {
    const gmem__engine scalar = engine_make(gmem__cpu_ops(GMEM_ISA_SCALAR, NULL), engine->threads);
    const int64_t count = (layers[l].activation == GMEM__ACT_SWIGLU ? layers[l].rows / 2 : layers[l].rows) * b->columns;
    double difference = 0, norm = 0;
    run_layer(b, &scalar, 0, l, b->expected);
    run_layer(b, engine, 0, l, b->y);
    for (int64_t i = 0; i < count; i++) {
        const double d = (double)b->y[i] - (double)b->expected[i];
        difference += d * d;
        norm += (double)b->expected[i] * (double)b->expected[i];
    }
    free(scalar.scratch);
    if (!(sqrt(difference / norm) < 1e-6)) {
        fprintf(stderr, "gemm: %s differs from the portable kernels by %g\n", layers[l].name, sqrt(difference / norm));
        exit(1);
    }
}

static void report(const char *name, double flops, double time, double limit) {
    printf("    %-6s %8.2f ms %8.1f GFLOP/s", name, time * 1e3, flops / time * 1e-9);
    if (limit > 0) printf("  %5.1f %% of the peak", flops / time * 1e-7 / limit);
    printf("\n");
}

static void time_layers(const bench *b, const gmem__engine *engine, double limit) {
    double best[LAYERS + 1], all = 0;
    for (int l = 0; l <= LAYERS; l++)
        best[l] = 1e30;
    for (int run = 0; run < b->runs; run++) {
        double sum = 0;
        for (int l = 0; l < LAYERS; l++) {
            const double start = seconds_now();
            run_layer(b, engine, run % BLOCKS, l, b->y);
            const double time = seconds_now() - start;
            if (time < best[l]) best[l] = time;
            sum += time;
        }
        if (sum < best[LAYERS]) best[LAYERS] = sum;
    }
    for (int l = 0; l < LAYERS; l++) {
        const double flops = 2.0 * (double)(layers[l].rows * layers[l].depth * b->columns);
        report(layers[l].name, flops, best[l], limit);
        all += flops;
    }
    report("block", all, best[LAYERS], limit);
}

int main(int argc, char **argv) {
    static const gmem_isa isas[] = {GMEM_ISA_AVX512, GMEM_ISA_AVX2, GMEM_ISA_SCALAR};
    static const char *const type_names[] = {"f32", "f16", "bf16", "i8"};
    static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_I8};
    const int threads = argc > 1 ? atoi(argv[1]) : gmem__cpu_count();
    bench b;
    int type = 0;
    b.runs = argc > 2 ? atoi(argv[2]) : 20;
    b.columns = argc > 3 ? atoi(argv[3]) : 256;
    while (argc > 4 && type < 3 && strcmp(argv[4], type_names[type]) != 0)
        type++;
    if (threads < 1 || b.runs < 1 || b.columns < 1) {
        fprintf(stderr, "usage: gemm [THREADS [RUNS [COLUMNS [f32|f16|bf16|i8]]]]\n");
        return 2;
    }
    b.x = (float *)need(3072 * b.columns, sizeof(float));
    b.y = (float *)need(3456 * b.columns, sizeof(float));
    b.expected = (float *)need(3456 * b.columns, sizeof(float));
    for (int64_t i = 0; i < 3072 * b.columns; i++)
        b.x[i] = small_random();
    for (int block = 0; block < BLOCKS; block++)
        for (int l = 0; l < LAYERS; l++)
            b.weights[block][l] = weight_make(&layers[l], types[type]);
    printf("XL/1, %lld columns, %s weights, %d threads, best of %d\n", (long long)b.columns, type_names[type], threads,
           b.runs);
    for (int i = 0; i < (int)(sizeof isas / sizeof *isas); i++) {
        const gmem__ops *ops = gmem__cpu_ops(isas[i], NULL);
        if (!ops) continue;
        const gmem__engine engine = engine_make(ops, threads);
        const double limit = isas[i] == GMEM_ISA_SCALAR ? 0 : 1e-9 * measure_peak_flops(isas[i], threads);
        printf("%s", ops->name);
        if (limit > 0) printf(": peak %.1f GFLOP/s", limit);
        printf("\n");
        if (isas[i] != GMEM_ISA_SCALAR)
            for (int l = 0; l < LAYERS; l++)
                check_layer(&b, &engine, l);
        else
            b.runs = 1;
        time_layers(&b, &engine, limit);
        free(engine.scratch);
    }
    return 0;
}
