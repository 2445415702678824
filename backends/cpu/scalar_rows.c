/* The portable kernels of the row operations: norms, rotary embedding, attention. They define the result that the
 * vector kernels are tested against, so they favour plainness: statistics in double, one column at a time. */
#include "cpu.h"

#include <math.h>

/* Mean and 1 / sqrt(variance + eps) of `count` values `step` apart; mean 0 for RMSNorm. */
typedef struct gmem__moments {
    double mean, inverse;
} gmem__moments;

static gmem__moments gmem__scalar_moments(const float *x, int64_t count, int64_t step, int rms, double eps) {
    gmem__moments moments = {0, 0};
    double squares = 0;
    if (!rms) {
        for (int64_t i = 0; i < count; i++)
            moments.mean += (double)x[i * step];
        moments.mean /= (double)count;
    }
    for (int64_t i = 0; i < count; i++) {
        double deviation = (double)x[i * step] - moments.mean;
        squares += deviation * deviation;
    }
    moments.inverse = 1 / sqrt(squares / (double)count + eps);
    return moments;
}

/* (x - mean) * inverse * weight + bias for one channel. */
static double gmem__scalar_affine(float x, gmem__moments moments, const float *weight, const float *bias, int64_t i) {
    double y = ((double)x - moments.mean) * moments.inverse;
    if (weight) y *= (double)weight[i];
    if (bias) y += (double)bias[i];
    return y;
}

/* RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450), and adaLN's modulation (2212.09748). */
GMEM__FN void gmem__scalar_norm(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end) {
    const float *shift = op->shift ? op->shift + sample * op->modulation_stride : NULL;
    const float *scale = op->scale ? op->scale + sample * op->modulation_stride : NULL;
    const int64_t y_stride = op->y_stride ? op->y_stride : op->columns;
    for (int64_t column = begin; column < end; column++) {
        const float *x = op->x + column;
        float *y = op->y + column - op->y_column;
        gmem__moments moments = gmem__scalar_moments(x, op->channels, op->columns, op->rms, (double)op->eps);
        for (int64_t c = 0; c < op->channels; c++) {
            double value = gmem__scalar_affine(x[c * op->columns], moments, op->weight, op->bias, c);
            if (scale) value *= 1 + (double)scale[c];
            if (shift) value += (double)shift[c];
            y[c * y_stride] = (float)value;
        }
    }
}

/* q/k norm, then RoPE (arXiv 2104.09864) on adjacent pairs. */
GMEM__FN void gmem__scalar_rotate(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column++) {
        float *x = op->x + head * op->head_dim * op->columns + column;
        int64_t token = column - sample * op->tokens;
        if (op->norm) {
            gmem__moments moments = gmem__scalar_moments(x, op->head_dim, op->columns, op->rms, (double)op->eps);
            for (int64_t d = 0; d < op->head_dim; d++)
                x[d * op->columns] = (float)gmem__scalar_affine(x[d * op->columns], moments, op->weight, op->bias, d);
        }
        if (!op->cosine) continue;
        for (int64_t pair = 0; pair < op->head_dim / 2; pair++) {
            float *first = x + 2 * pair * op->columns, *second = first + op->columns;
            float c = op->cosine[pair * op->tokens + token], s = op->sine[pair * op->tokens + token];
            float turned = *first * c - *second * s;
            *second = *second * c + *first * s;
            *first = turned;
        }
    }
}

/* Online softmax (arXiv 1805.02867): one pass over the keys, the sums rescaled whenever the maximum grows. A few
 * queries at a time share the pass. */
#define GMEM__SCALAR_QUERIES 16

GMEM__FN void gmem__scalar_attention(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin,
                                     int64_t end, float *scratch) {
    int64_t first = head * op->head_dim * op->stride + sample * op->tokens;
    const float *k = op->k + first, *v = op->v + first;
    (void)scratch;
    for (int64_t column = begin; column < end; column += GMEM__SCALAR_QUERIES) {
        const int64_t lanes = gmem__min(GMEM__SCALAR_QUERIES, end - column);
        const float *q = op->q + first + column;
        float *y = op->y + head * op->head_dim * op->y_stride + sample * op->tokens + column;
        float largest[GMEM__SCALAR_QUERIES], sum[GMEM__SCALAR_QUERIES];
        for (int64_t i = 0; i < lanes; i++) {
            largest[i] = -INFINITY;
            sum[i] = 0;
            for (int64_t d = 0; d < op->head_dim; d++)
                y[d * op->y_stride + i] = 0;
        }
        for (int64_t key = 0; key < op->tokens; key++) {
            double score[GMEM__SCALAR_QUERIES] = {0};
            float p[GMEM__SCALAR_QUERIES], rescale[GMEM__SCALAR_QUERIES];
            for (int64_t d = 0; d < op->head_dim; d++)
                for (int64_t i = 0; i < lanes; i++)
                    score[i] += (double)q[d * op->stride + i] * (double)k[d * op->stride + key];
            for (int64_t i = 0; i < lanes; i++) {
                float s = (float)(score[i] * (double)op->scale), before = largest[i];
                if (s > largest[i]) largest[i] = s;
                rescale[i] = expf(before - largest[i]);
                p[i] = expf(s - largest[i]);
                sum[i] = sum[i] * rescale[i] + p[i];
            }
            for (int64_t d = 0; d < op->head_dim; d++)
                for (int64_t i = 0; i < lanes; i++)
                    y[d * op->y_stride + i] = y[d * op->y_stride + i] * rescale[i] + p[i] * v[d * op->stride + key];
        }
        for (int64_t d = 0; d < op->head_dim; d++)
            for (int64_t i = 0; i < lanes; i++)
                y[d * op->y_stride + i] /= sum[i];
    }
}

/* GroupNorm (arXiv 1803.08494) of one group, then silu where asked. */
GMEM__FN void gmem__scalar_group_norm(const gmem__group_norm *op, int64_t group) {
    const int64_t channels = op->channels / op->groups, first = group * channels;
    gmem__moments moments = gmem__scalar_moments(op->x + first * op->area, channels * op->area, 1, 0, (double)op->eps);
    for (int64_t c = first; c < first + channels; c++)
        for (int64_t i = c * op->area; i < (c + 1) * op->area; i++) {
            float y = (float)gmem__scalar_affine(op->x[i], moments, op->weight, op->bias, c);
            op->y[i] = op->silu ? y / (1 + expf(-y)) : y;
        }
}
