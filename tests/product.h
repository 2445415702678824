/* What tests of products share: weights of every type, an engine whose scratch is NaN, references in double. */
#ifndef PRODUCT_H
#define PRODUCT_H

#include "kernel.h"

#define SLACK 5 /* floats behind each row */

static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_I8};

static uint32_t random_state;

/* About normal, mean 0, deviation 1. */
static inline float random_float(void) {
    int64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        random_state = random_state * 1664525u + 1013904223u;
        sum += (int64_t)(random_state >> 8) - (1 << 23);
    }
    return (float)sum / 9.7e6f;
}

static inline matrix matrix_random(int64_t rows, int64_t columns, int64_t slack) {
    matrix m = matrix_make(rows, columns, columns + slack);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            m.data[r * m.stride + c] = random_float();
    return m;
}

/* A weight of random numbers in its type, one byte off the grid, and what they stand for, in double. */
typedef struct weights {
    gmem__weight weight;
    unsigned char *memory;
    float *scale;
    double *values; /* (rows, cols) */
} weights;

static inline weights weights_make(gmem_type type, int64_t rows, int64_t cols) {
    weights w;
    const int64_t stride = cols + 3;
    memset(&w, 0, sizeof w);
    w.memory = (unsigned char *)need(rows * stride, sizeof(float));
    w.scale = (float *)need(rows, sizeof(float));
    w.values = (double *)need(rows * cols, sizeof(double));
    memset(w.memory, 0x7f, (size_t)(rows * stride) * sizeof(float)); /* between the rows: NaN, or 127 */
    for (int64_t r = 0; r < rows; r++) {
        w.scale[r] = 0.01f + 0.001f * (float)(r % 7);
        for (int64_t c = 0; c < cols; c++) {
            const float value = random_float();
            unsigned char *at = w.memory + 1;
            double *stored = w.values + r * cols + c;
            if (type == GMEM_F32) {
                memcpy(at + (r * stride + c) * 4, &value, 4);
                *stored = (double)value;
            } else if (type == GMEM_I8) {
                const int level = (int)(value * 30) < -128 ? -128 : (int)(value * 30) > 127 ? 127 : (int)(value * 30);
                at[r * stride + c] = (unsigned char)(level & 255);
                *stored = level * (double)w.scale[r];
            } else {
                const uint16_t half = type == GMEM_F16 ? gmem__f32_to_f16(value) : gmem__f32_to_bf16(value);
                memcpy(at + (r * stride + c) * 2, &half, 2);
                *stored = (double)(type == GMEM_F16 ? gmem__f16_to_f32(half) : gmem__bf16_to_f32(half));
            }
        }
    }
    w.weight.data = w.memory + 1;
    w.weight.scale = type == GMEM_I8 ? w.scale : NULL;
    w.weight.type = type;
    w.weight.rows = rows;
    w.weight.cols = cols;
    w.weight.row_stride = stride;
    return w;
}

static inline void weights_free(weights *w) {
    free(w->memory);
    free(w->scale);
    free(w->values);
}

/* An engine whose scratch is NaN: nothing may be taken from what was there. The memory is kept for the next engine of
 * as many threads, for millions of new pages take longer than the products. */
static inline gmem__engine engine_make(const gmem__ops *ops, int threads) {
    static struct {
        void *memory;
        int64_t bytes;
    } kept[4];
    gmem__engine engine;
    const int64_t bytes = ops->scratch_bytes(threads) + 64;
    if (threads >= LENGTH(kept)) exit(1);
    if (kept[threads].bytes != bytes) {
        free(kept[threads].memory);
        kept[threads].memory = need(bytes, 1);
        kept[threads].bytes = bytes;
    }
    char *memory = (char *)kept[threads].memory;
    memset(memory, 0xff, (size_t)bytes);
    memset(&engine, 0, sizeof engine);
    engine.ops = ops;
    engine.threads = threads;
    engine.scratch = memory + (64 - (uintptr_t)memory % 64) % 64;
    return engine;
}

/* references ------------------------------------------------------------------------------------------------------ */

static inline double activate(gmem__activation activation, double x) {
    switch (activation) {
    case GMEM__ACT_SILU:
    case GMEM__ACT_SWIGLU:
        return x / (1 + exp(-x));
    case GMEM__ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case GMEM__ACT_GELU_ERF:
        return 0.5 * x * (1 + erf(x / sqrt(2.0)));
    default:
        return x;
    }
}

static inline double product(const gmem__linear *op, const weights *w, int64_t row, int64_t column) {
    double sum = op->bias ? (double)op->bias[row] : 0;
    for (int64_t k = 0; k < w->weight.cols; k++)
        sum += w->values[row * w->weight.cols + k] * (double)op->x[k * op->x_stride + column];
    return sum;
}

static inline void linear_reference(const gmem__linear *op, const weights *w, const matrix *before, double *out) {
    for (int64_t r = 0; r < before->rows; r++)
        for (int64_t c = 0; c < before->columns; c++) {
            double value = activate(op->activation, product(op, w, r, c));
            if (op->activation == GMEM__ACT_SWIGLU) value *= product(op, w, r + before->rows, c);
            if (op->gate) value *= (double)op->gate[c / op->tokens * op->gate_stride + r];
            if (op->gate || op->residual) value += (double)before->data[r * before->stride + c];
            out[r * before->columns + c] = value;
        }
}

#endif /* PRODUCT_H */
