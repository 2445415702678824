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

/* The input pixel under tap (ky, kx) of output pixel (y, x), or 0 in the padding. */
static inline double conv_pixel(const gmem__conv *op, int64_t channel, int64_t y, int64_t x, int64_t ky, int64_t kx) {
    const int64_t pad = op->kernel == 3 && op->stride == 1, scale = op->upsample ? 2 : 1;
    const int64_t row = y * op->stride + ky - pad, column = x * op->stride + kx - pad;
    if (row < 0 || row >= op->height * scale || column < 0 || column >= op->width * scale) return 0;
    return (double)op->x[(channel * op->height + row / scale) * op->width + column / scale];
}

static inline void conv_reference(const gmem__conv *op, const weights *w, int64_t height, int64_t width, double *out) {
    for (int64_t o = 0; o < w->weight.rows; o++)
        for (int64_t y = 0; y < height; y++)
            for (int64_t x = 0; x < width; x++) {
                const int64_t at = (o * height + y) * width + x;
                const double *taps = w->values + o * w->weight.cols;
                double sum = op->bias ? (double)op->bias[o] : 0;
                for (int64_t c = 0; c < op->in_channels; c++)
                    for (int64_t ky = 0; ky < op->kernel; ky++)
                        for (int64_t kx = 0; kx < op->kernel; kx++)
                            sum += *taps++ * conv_pixel(op, c, y, x, ky, kx);
                out[at] = sum + (op->residual ? (double)op->residual[at] : 0);
            }
}

/* rounding, as the definition has it ------------------------------------------------------------------------------ */

static inline double to_type(gmem_type type, double value) {
    if (type == GMEM_BF16) return (double)gmem__bf16_to_f32(gmem__f32_to_bf16((float)value));
    return type == GMEM_F16 ? (double)gmem__f16_to_f32(gmem__f32_to_f16((float)value)) : value;
}

static inline float largest_of(const double *values, int64_t count, int64_t step) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++)
        if (fabs(values[i * step]) > largest) largest = fabs(values[i * step]);
    return (float)largest;
}

/* To so many levels on each side, in place; `stored` weights are on their levels already. */
static inline void round_line(double *values, int64_t count, int64_t step, int is_weight, int levels) {
    const float largest = largest_of(values, count, step);
    const float inverse = is_weight ? 1 / (largest / (float)levels) : (float)levels / largest;
    for (int64_t i = 0; largest > 0 && i < count; i++)
        values[i * step] = (double)rintf((float)values[i * step] * inverse) * ((double)largest / levels);
}

static inline void round_weights(gmem_type type, const weights *w) {
    const int64_t rows = w->weight.rows, cols = w->weight.cols;
    for (int64_t i = 0; i < rows * cols; i++)
        w->values[i] = to_type(type, w->values[i]);
    for (int64_t r = 0; type == GMEM_I8 && w->weight.type != GMEM_I8 && r < rows; r++)
        round_line(w->values + r * cols, cols, 1, 1, 127);
}

/* What the product sees of x, as doubles (depth, columns); int8: so many levels on each side of zero. */
static inline double *rounded_x(gmem_type type, int levels, const matrix *x) {
    double *values = (double *)need(x->rows * x->columns, sizeof *values);
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->columns; c++)
            values[r * x->columns + c] = to_type(type, (double)x->data[r * x->stride + c]);
    for (int64_t c = 0; type == GMEM_I8 && c < x->columns; c++)
        round_line(values + c, x->rows, x->columns, 0, levels);
    return values;
}

static inline double narrow_product(const gmem__linear *op, const weights *w, const double *x, int64_t row,
                                    int64_t column) {
    double sum = op->bias ? (double)op->bias[row] : 0;
    for (int64_t k = 0; k < w->weight.cols; k++)
        sum += w->values[row * w->weight.cols + k] * x[k * op->columns + column];
    return sum;
}

static inline void narrow_reference(const gmem__linear *op, const weights *w, const double *x, const matrix *before,
                                    double *out) {
    for (int64_t r = 0; r < before->rows; r++)
        for (int64_t c = 0; c < before->columns; c++) {
            double value = activate(op->activation, narrow_product(op, w, x, r, c));
            if (op->activation == GMEM__ACT_SWIGLU) value *= narrow_product(op, w, x, r + before->rows, c);
            if (op->gate) value *= (double)op->gate[c / op->tokens * op->gate_stride + r];
            if (op->gate || op->residual) value += (double)before->data[r * before->stride + c];
            out[r * before->columns + c] = value;
        }
}

#endif /* PRODUCT_H */
