/* What the kernels' tests share: the instruction sets, and matrices with guards around them. */
#ifndef KERNEL_H
#define KERNEL_H

#include "../src/internal.h"

#include "check.h"

#define GUARD     64 /* floats around a buffer */
#define CANARY    -7.0625e11f
#define LENGTH(a) ((int)(sizeof(a) / sizeof *(a)))

static const gmem_isa isas[] = {GMEM_ISA_SCALAR, GMEM_ISA_AVX2, GMEM_ISA_AVX512, GMEM_ISA_AMX};

/* Not a byte more than asked for, so that a sanitizer sees what reads behind it. */
static inline void *need(int64_t count, size_t bytes) {
    void *memory = malloc(count ? (size_t)count * bytes : 1);
    if (!memory) {
        printf("out of memory\n");
        exit(1);
    }
    return memory;
}

/* (rows, columns) in rows `stride` apart; everything else holds the canary. `data` is off the 64-byte grid on purpose,
 * as the network's are not promised to be on it. */
typedef struct matrix {
    float *data, *memory;
    int64_t rows, columns, stride;
} matrix;

static inline int64_t matrix_floats(const matrix *m) { return GUARD + m->rows * m->stride + GUARD; }

static inline matrix matrix_make(int64_t rows, int64_t columns, int64_t stride) {
    matrix m = {NULL, NULL, 0, 0, 0};
    m.rows = rows;
    m.columns = columns;
    m.stride = stride;
    m.memory = (float *)need(matrix_floats(&m), sizeof(float));
    m.data = m.memory + GUARD;
    for (int64_t i = 0; i < matrix_floats(&m); i++)
        m.memory[i] = CANARY;
    return m;
}

static inline matrix matrix_copy(const matrix *from) {
    matrix m = matrix_make(from->rows, from->columns, from->stride);
    memcpy(m.memory, from->memory, (size_t)matrix_floats(from) * sizeof(float));
    return m;
}

static inline void matrix_free(matrix *m) { free(m->memory); }

static inline int matrix_guards_hold(const matrix *m) {
    for (int64_t i = 0; i < matrix_floats(m); i++) {
        int64_t at = i - GUARD;
        int inside = at >= 0 && at < m->rows * m->stride && at % m->stride < m->columns;
        if (!inside && m->memory[i] != CANARY) return 0;
    }
    return 1;
}

static inline double matrix_error(const matrix *m, const double *expected) {
    double difference = 0, norm = 0;
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->columns; c++) {
            double e = expected[r * m->columns + c], d = (double)m->data[r * m->stride + c] - e;
            difference += d * d;
            norm += e * e;
        }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static inline int matrix_equal(const matrix *a, const matrix *b) {
    return memcmp(a->memory, b->memory, (size_t)matrix_floats(a) * sizeof(float)) == 0;
}

#endif /* KERNEL_H */
