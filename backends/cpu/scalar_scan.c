/* A search's kernels in portable C: rows of a bank against a few queries. */
#include "narrow.h"

#include <math.h>

#define GMEM__LANES 16 /* sums side by side, which compilers vectorise */
#define GMEM__RUN   (16 * GMEM__LANES)

typedef struct gmem__lanes {
    float sum[GMEM__LANES];
} gmem__lanes;

static void gmem__lanes_add(gmem__lanes *lanes, const float *a, const float *b, int64_t count) {
    int64_t i = 0;
    for (; i + GMEM__LANES <= count; i += GMEM__LANES)
        for (int j = 0; j < GMEM__LANES; j++)
            lanes->sum[j] += a[i + j] * b[i + j];
    for (; i < count; i++)
        lanes->sum[i % GMEM__LANES] += a[i] * b[i];
}

static float gmem__lanes_total(const gmem__lanes *lanes) {
    float total = 0;
    for (int j = 0; j < GMEM__LANES; j++)
        total += lanes->sum[j];
    return total;
}

/* A query's elements [k, k + count) as floats. */
static const float *gmem__lanes_query(const gmem__scan_block *block, int64_t q, int64_t k, int64_t count, float *out) {
    const int64_t first = q * block->query_step + k;
    if (block->type != GMEM_I8) return (const float *)block->query + first;
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)((const int16_t *)block->query)[first + i];
    return out;
}

GMEM__FN void gmem__scalar_scan(const gmem__scan_block *block) {
    gmem__weight rows;
    float values[GMEM__RUN], query[GMEM__RUN];
    memset(&rows, 0, sizeof rows);
    rows.data = block->data;
    rows.type = block->type;
    rows.row_stride = block->row_stride;
    for (int64_t r = 0; r < block->rows; r++) {
        gmem__lanes square, product[16];
        memset(&square, 0, sizeof square);
        memset(product, 0, sizeof product);
        for (int64_t k = 0; k < block->width; k += GMEM__RUN) {
            const int64_t count = gmem__min(GMEM__RUN, block->width - k);
            gmem__scalar_weights(&rows, r, k, count, values);
            gmem__lanes_add(&square, values, values, count);
            for (int64_t q = 0; q < block->queries; q++)
                gmem__lanes_add(&product[q], values, gmem__lanes_query(block, q, k, count, query), count);
        }
        block->squares[r] = gmem__lanes_total(&square);
        for (int64_t q = 0; q < block->queries; q++)
            block->products[q * GMEM__SCAN_ROWS + r] = gmem__lanes_total(&product[q]);
    }
}

/* A strip of words of one f32. */
static void gmem__scalar_strip_f32(const gmem__weight *rows, int64_t mr, int64_t words, uint32_t *strip) {
    memset(strip, 0, (size_t)(mr * words) * sizeof *strip);
    for (int64_t r = 0; r < rows->rows; r++)
        for (int64_t k = 0; k < rows->cols; k += GMEM__TILE_WORDS) {
            const int64_t count = gmem__min(GMEM__TILE_WORDS, rows->cols - k);
            float values[GMEM__TILE_WORDS];
            gmem__scalar_weights(rows, r, k, count, values);
            memcpy(strip + k * mr + r * GMEM__TILE_WORDS, values, (size_t)count * sizeof *values);
        }
}

GMEM__FN void gmem__scalar_scan_strip(const gmem__narrow *narrow, const gmem__scan_block *block, uint32_t *strip) {
    gmem__scan_block measured = *block;
    gmem__weight rows;
    gmem__strip_part part;
    measured.queries = 0;
    gmem__scalar_scan(&measured);
    for (int64_t r = 0; r < block->rows && block->products; r++) {
        const signed char *row = (const signed char *)block->data + r * block->row_stride;
        block->products[r] = 0;
        for (int64_t i = 0; i < block->width; i++)
            block->products[r] += (float)row[i];
    }
    memset(&rows, 0, sizeof rows);
    memset(&part, 0, sizeof part);
    rows.data = block->data;
    rows.type = block->type;
    rows.rows = part.rows = block->rows;
    rows.row_stride = block->row_stride;
    rows.cols = block->width;
    part.words = gmem__round_up(gmem__ceil_div(block->width, gmem__narrow_per_word(narrow)), GMEM__TILE_WORDS);
    if (narrow->type == GMEM_F32)
        gmem__scalar_strip_f32(&rows, narrow->mr, part.words, strip);
    else
        gmem__scalar_narrow()->strip(narrow, &rows, &part, strip);
}

/* Four sums at a time, which processors add side by side. */
GMEM__FN void gmem__scalar_exact(const gmem__weight *rows, int64_t row, const float *query, gmem__exact_sums *sums) {
    double product[4] = {0, 0, 0, 0}, square[4] = {0, 0, 0, 0};
    float values[GMEM__RUN];
    for (int64_t k = 0; k < rows->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, rows->cols - k);
        gmem__scalar_weights(rows, row, k, count, values);
        for (int64_t i = 0; i < count; i++) {
            const double x = (double)values[i];
            product[i % 4] += x * (double)query[k + i];
            square[i % 4] += x * x;
            if (fabsf(values[i]) > sums->largest) sums->largest = fabsf(values[i]);
        }
    }
    sums->product += product[0] + product[1] + (product[2] + product[3]);
    sums->square += square[0] + square[1] + (square[2] + square[3]);
}

GMEM__FN void gmem__scalar_form(const gmem__weight *rows, int64_t row, const float *quadratic, const float *linear,
                                float *square, float *sum) {
    gmem__lanes squares, sums;
    float values[GMEM__RUN], weighted[GMEM__RUN];
    memset(&squares, 0, sizeof squares);
    memset(&sums, 0, sizeof sums);
    for (int64_t k = 0; k < rows->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, rows->cols - k);
        gmem__scalar_weights(rows, row, k, count, values);
        for (int64_t i = 0; i < count; i++)
            weighted[i] = values[i] * quadratic[k + i];
        gmem__lanes_add(&squares, values, weighted, count);
        gmem__lanes_add(&sums, values, linear + k, count);
    }
    *square = gmem__lanes_total(&squares);
    *sum = gmem__lanes_total(&sums);
}

GMEM__FN int64_t gmem__scalar_above(const float *scores, int64_t step, int64_t rows, int64_t count,
                                    const float *factors, const float *bars, int32_t *which) {
    int64_t found = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++)
            if (scores[r * step + i] >= factors[r] * bars[i]) which[found++] = (int32_t)(r * step + i);
    return found;
}

#undef GMEM__LANES
#undef GMEM__RUN
