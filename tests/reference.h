/* What tests of the row operations share: values about normal, and the operations as loops in double. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include "kernel.h"

/* How many of these entries are NaN. */
static inline int64_t matrix_nans(const matrix *m, int64_t row, int64_t rows, int64_t column, int64_t columns) {
    int64_t count = 0;
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t c = column; c < column + columns; c++)
            count += m->data[r * m->stride + c] != m->data[r * m->stride + c];
    return count;
}

/* values ----------------------------------------------------------------------------------------------------------- */

static uint64_t value_state = 1;

static inline double uniform(void) { /* [0, 1) */
    value_state = value_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(value_state >> 40) / 16777216.0;
}

static inline float normal(void) { return (float)(sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform())); }

static inline void fill(float *x, int64_t count, float mean, float deviation) {
    for (int64_t i = 0; i < count; i++)
        x[i] = mean + deviation * normal();
}

static inline void matrix_fill(matrix *m, float mean, float deviation) {
    for (int64_t r = 0; r < m->rows; r++)
        fill(m->data + r * m->stride, m->columns, mean, deviation);
}

static inline float *vector_make(int64_t count, float mean, float deviation) {
    float *x = (float *)need(count, sizeof(float));
    fill(x, count, mean, deviation);
    return x;
}

/* references in double --------------------------------------------------------------------------------------------- */

/* Normalises `count` doubles `step` apart in place. */
static inline void reference_normalise(double *x, int64_t count, int64_t step, int rms, double eps) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < count && !rms; i++)
        mean += x[i * step] / (double)count;
    for (int64_t i = 0; i < count; i++)
        variance += (x[i * step] - mean) * (x[i * step] - mean) / (double)count;
    for (int64_t i = 0; i < count; i++)
        x[i * step] = (x[i * step] - mean) / sqrt(variance + eps);
}

static inline double *reference_copy(const float *x, int64_t rows, int64_t columns, int64_t stride) {
    double *copy = (double *)need(rows * columns, sizeof(double));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++)
            copy[r * columns + c] = (double)x[r * stride + c];
    return copy;
}

static inline double *reference_norm(const gmem__norm *op) {
    double *y = reference_copy(op->x, op->channels, op->columns, op->columns);
    for (int64_t column = 0; column < op->columns; column++) {
        reference_normalise(y + column, op->channels, op->columns, op->rms, (double)op->eps);
        for (int64_t c = 0; c < op->channels; c++) {
            double *value = &y[c * op->columns + column];
            int64_t modulation = column / op->tokens * op->modulation_stride + c;
            if (op->weight) *value *= (double)op->weight[c];
            if (op->bias) *value += (double)op->bias[c];
            if (op->scale) *value *= 1 + (double)op->scale[modulation];
            if (op->shift) *value += (double)op->shift[modulation];
        }
    }
    return y;
}

static inline double *reference_rotate(const gmem__rotate *op) {
    double *y = reference_copy(op->x, op->heads * op->head_dim, op->columns, op->columns);
    for (int64_t head = 0; head < op->heads; head++)
        for (int64_t column = 0; column < op->columns; column++) {
            double *x = y + head * op->head_dim * op->columns + column;
            if (op->norm) reference_normalise(x, op->head_dim, op->columns, op->rms, (double)op->eps);
            for (int64_t d = 0; d < op->head_dim && op->norm; d++) {
                if (op->weight) x[d * op->columns] *= (double)op->weight[d];
                if (op->bias) x[d * op->columns] += (double)op->bias[d];
            }
            for (int64_t i = 0; i < op->head_dim / 2 && op->cosine; i++) {
                double *a = x + 2 * i * op->columns, *b = a + op->columns, first = *a, second = *b;
                double c = (double)op->cosine[i * op->tokens + column % op->tokens];
                double s = (double)op->sine[i * op->tokens + column % op->tokens];
                *a = first * c - second * s;
                *b = second * c + first * s;
            }
        }
    return y;
}

static inline double *reference_attention(const gmem__attention *op) {
    const int64_t columns = op->samples * op->tokens;
    double *y = (double *)need(op->heads * op->head_dim * columns, sizeof(double));
    double *p = (double *)need(op->tokens, sizeof(double));
    for (int64_t head = 0; head < op->heads; head++)
        for (int64_t column = 0; column < columns; column++) {
            const int64_t row = head * op->head_dim, sample = column / op->tokens * op->tokens;
            double largest = -INFINITY, sum = 0;
            for (int64_t key = 0; key < op->tokens; key++) {
                p[key] = 0;
                for (int64_t d = row; d < row + op->head_dim; d++)
                    p[key] += (double)op->q[d * op->stride + column] * (double)op->k[d * op->stride + sample + key];
                p[key] *= (double)op->scale;
                if (p[key] > largest) largest = p[key];
            }
            for (int64_t key = 0; key < op->tokens; key++)
                sum += p[key] = exp(p[key] - largest);
            for (int64_t d = row; d < row + op->head_dim; d++) {
                double value = 0;
                for (int64_t key = 0; key < op->tokens; key++)
                    value += p[key] * (double)op->v[d * op->stride + sample + key];
                y[d * columns + column] = value / sum;
            }
        }
    free(p);
    return y;
}

static inline double *reference_group_norm(const gmem__group_norm *op) {
    double *y = reference_copy(op->x, op->channels, op->area, op->area);
    const int64_t channels = op->channels / op->groups;
    for (int64_t group = 0; group < op->groups; group++)
        reference_normalise(y + group * channels * op->area, channels * op->area, 1, 0, (double)op->eps);
    for (int64_t i = 0; i < op->channels * op->area; i++) {
        y[i] = y[i] * (double)op->weight[i / op->area] + (double)op->bias[i / op->area];
        if (op->silu) y[i] /= 1 + exp(-y[i]);
    }
    return y;
}

#endif /* REFERENCE_H */
