/* The portable GEMM, for processors without a vector version and as the reference of those that have one. Plain loops
 * of constant length, which compilers vectorise for what every processor of an architecture has. */
#include "cpu.h"

#include <math.h>

#define GMEM__SCALAR_NR 32

/* weight[row][k .. k + count) as floats; int8 without scales as it is. */
GMEM__FN void gmem__scalar_weights(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    const unsigned char *data = (const unsigned char *)weight->data;
    const int64_t first = row * weight->row_stride + k;
    uint16_t half;
    switch (weight->type) {
    case GMEM_F16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + (first + i) * 2, sizeof half);
            out[i] = gmem__f16_to_f32(half);
        }
        break;
    case GMEM_BF16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + (first + i) * 2, sizeof half);
            out[i] = gmem__bf16_to_f32(half);
        }
        break;
    case GMEM_I8:
        for (int64_t i = 0; i < count; i++)
            out[i] = (weight->scale ? weight->scale[row] : 1.0f) * (float)(signed char)data[first + i];
        break;
    default:
        memcpy(out, data + first * 4, (size_t)count * sizeof *out);
    }
}

/* sum (nr) += w (depth) * panel (depth, nr) */
static void gmem__scalar_dot(const float *w, const float *panel, int64_t depth, float *sum) {
    float local[GMEM__SCALAR_NR] = {0};
    for (int64_t k = 0; k < depth; k++, panel += GMEM__SCALAR_NR)
        for (int c = 0; c < GMEM__SCALAR_NR; c++)
            local[c] += w[k] * panel[c];
    for (int c = 0; c < GMEM__SCALAR_NR; c++)
        sum[c] += local[c];
}

static float gmem__scalar_activate(gmem__activation activation, float x) {
    switch (activation) {
    case GMEM__ACT_SILU:
    case GMEM__ACT_SWIGLU:
        return x / (1 + expf(-x));
    case GMEM__ACT_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case GMEM__ACT_GELU_ERF:
        return 0.5f * x * (1 + erff(x * 0.7071067812f));
    default:
        return x;
    }
}

/* Row i of a tile from the product's rows, GMEM__NC floats apart, to y. */
static void gmem__scalar_finish_row(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up_row,
                                    float *product) {
    const int swiglu = gemm->activation == GMEM__ACT_SWIGLU;
    const int64_t row = tile->row + i, first = row * gemm->y_stride + tile->column;
    const float *sums = product + i * GMEM__NC, *up = product + (up_row + i) * GMEM__NC;
    float *y = gemm->y ? gemm->y + first : product + i * GMEM__NC;
    const float bias = gemm->bias ? gemm->bias[row] : 0;
    const float up_bias = gemm->bias && swiglu ? gemm->bias[row + gemm->rows / 2] : 0;
    for (int64_t c = 0; c < tile->columns; c++) {
        float value = gmem__scalar_activate(gemm->activation, sums[c] + bias);
        if (swiglu) value *= up[c] + up_bias;
        if (gemm->gate) value *= gemm->gate[(tile->column + c) / gemm->tokens * gemm->gate_stride + row];
        if (gemm->residual) value += gemm->residual[first + c];
        y[c] = value;
    }
}

static void gmem__scalar_round_bf16(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        x[i] = gmem__bf16_to_f32(gmem__f32_to_bf16(x[i]));
}

static void gmem__scalar_gemm(const gmem__gemm *gemm, const gmem__tile *tile, const float *panels, float *scratch) {
    const int64_t rows = gmem__tile_rows(gemm, tile), nr = GMEM__SCALAR_NR;
    float *product = scratch;                   /* (rows, GMEM__NC) */
    float *own = product + GMEM__MC * GMEM__NC; /* panels of one block of the depth */
    float *weights = own + GMEM__KC * GMEM__NC; /* (GMEM__KC) */
    for (int64_t i = 0; i < rows * GMEM__NC; i++)
        product[i] = 0;
    for (int64_t k = 0; k < gemm->depth; k += GMEM__KC) {
        const int64_t depth = gmem__min(GMEM__KC, gemm->depth - k);
        const int64_t step = (panels ? gemm->depth : depth) * nr;
        const float *first = panels ? panels + k * nr : own;
        if (!panels) gmem__pack(gemm, k, depth, tile->column, tile->columns, nr, step, own);
        if (!panels && gemm->round_bf16) gmem__scalar_round_bf16(own, gmem__ceil_div(tile->columns, nr) * step);
        for (int64_t i = 0; i < rows; i++) {
            gmem__scalar_weights(gemm->weight, gmem__tile_row(gemm, tile, i), k, depth, weights);
            if (gemm->round_bf16) gmem__scalar_round_bf16(weights, depth);
            for (int64_t c = 0; c < tile->columns; c += nr)
                gmem__scalar_dot(weights, first + c / nr * step, depth, product + i * GMEM__NC + c);
        }
    }
    for (int64_t i = 0; i < tile->rows; i++)
        gmem__scalar_finish_row(gemm, tile, i, tile->rows, product);
}

static void gmem__scalar_scatter(const double *left, const double *right, int64_t depth, double *out,
                                 int64_t out_step) {
    const int64_t panel = GMEM__SCALAR_NR / 2;
    for (int64_t k = 0; k < depth; k++, left += panel, right += panel) {
        for (int64_t r = 0; r < panel; r++) {
            for (int64_t c = 0; c < GMEM__SCALAR_NR / 2; c++)
                out[r * out_step + c] += left[r] * right[c];
        }
    }
}

GMEM__FN const gmem__kernels *gmem__scalar_kernels(void) {
    static const gmem__kernels kernels = {1,
                                          GMEM__SCALAR_NR,
                                          0,
                                          gmem__scalar_gemm,
                                          gmem__scalar_norm,
                                          gmem__scalar_rotate,
                                          gmem__scalar_attention,
                                          gmem__scalar_group_norm,
                                          gmem__scalar_finish_row,
                                          gmem__scalar_round_bf16,
                                          gmem__scalar_narrow,
                                          NULL,
                                          gmem__scalar_scatter,
                                          gmem__scalar_scan,
                                          gmem__scalar_scan_strip,
                                          gmem__scalar_exact,
                                          gmem__scalar_form,
                                          gmem__scalar_above};
    return &kernels;
}

#undef GMEM__SCALAR_NR
