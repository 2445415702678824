/* Mean and covariance of any number of vectors in double, in memory that the width alone bounds. Blocks are centred on
 * their own means, so that no digits are lost where the mean is large, and merged by the formula of Chan, Golub and
 * LeVeque (Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979):
 * S = S_a + S_b + n_a n_b / (n_a + n_b) d d^T, where d is the difference of the means. */
#include "scatter.h"

#include "../backends/cpu/cpu.h"

#include <math.h>

#define GMEM__SCATTER_DEPTH (GMEM__SCATTER_ROWS + 1) /* the last row of a block stands for d */
#define GMEM__SCATTER_PANEL 64                       /* more than the columns of any kernel's panel */

GMEM__FN int gmem__scatter_open(gmem__scatter *scatter, const gmem_context *context, struct gmem__block **blocks,
                                const gmem__engine *engine, int64_t width, int with_sums) {
    int64_t elements = 0;
    memset(scatter, 0, sizeof *scatter);
    scatter->width = width;
    scatter->panel = gmem__engine_kernels(engine)->nr / 2;
    scatter->panels = gmem__ceil_div(width, scatter->panel);
    scatter->padded = scatter->panels * scatter->panel;
    scatter->mean = (double *)gmem__blocks_take(context, blocks, scatter->padded, sizeof(double), 64);
    scatter->squares = (double *)gmem__blocks_take(context, blocks, scatter->panels, sizeof(double), 64);
    if (!scatter->mean || !scatter->squares) return 0;
    if (!with_sums) return 1;
    if (!gmem__mul(scatter->padded, scatter->padded, &elements)) return 0;
    scatter->sums = (double *)gmem__blocks_take(context, blocks, elements, sizeof(double), 64);
    if (!gmem__mul(scatter->padded, GMEM__SCATTER_DEPTH, &elements)) return 0;
    scatter->centred = (double *)gmem__blocks_take(context, blocks, elements, sizeof(double), 64);
    return scatter->sums && scatter->centred;
}

typedef struct gmem__scatter_job {
    gmem__scatter *scatter;
    const gmem__kernels *kernels;
    const float *rows; /* (count, width) */
    int64_t count;
} gmem__scatter_job;

/* Columns [column, column + columns) of the block: their means. */
static void gmem__scatter_means(const gmem__scatter_job *job, int64_t column, int64_t columns, double *means) {
    memset(means, 0, (size_t)columns * sizeof *means);
    for (int64_t k = 0; k < job->count; k++) {
        const float *row = job->rows + k * job->scatter->width + column;
        for (int64_t c = 0; c < columns; c++)
            means[c] += (double)row[c];
    }
    for (int64_t c = 0; c < columns; c++)
        means[c] /= (double)job->count;
}

/* A row of a panel into its place, if it has one; returns the sum of its squares. */
static double gmem__scatter_put(const double *row, int64_t panel, double *out) {
    double squares = 0;
    for (int64_t c = 0; c < panel; c++)
        squares += row[c] * row[c];
    if (out) memcpy(out, row, (size_t)panel * sizeof *row);
    return squares;
}

/* One panel of the block: its columns less their means, then a row for the difference of the means. */
static void gmem__scatter_centre(const void *job_, int64_t i, float *scratch) {
    const gmem__scatter_job *job = (const gmem__scatter_job *)job_;
    gmem__scatter *scatter = job->scatter;
    const int64_t panel = scatter->panel, column = i * panel, columns = gmem__min(panel, scatter->width - column);
    const double before = (double)scatter->count, added = (double)job->count, all = before + added;
    double *mean = scatter->mean + column,
           *out = scatter->centred ? scatter->centred + column * GMEM__SCATTER_DEPTH : NULL;
    double means[GMEM__SCATTER_PANEL], row[GMEM__SCATTER_PANEL] = {0}, squares = 0;
    (void)scratch;
    gmem__scatter_means(job, column, columns, means);
    for (int64_t k = 0; k < job->count; k++) {
        const float *x = job->rows + k * scatter->width + column;
        for (int64_t c = 0; c < columns; c++)
            row[c] = (double)x[c] - means[c];
        squares += gmem__scatter_put(row, panel, out ? out + k * panel : NULL);
    }
    for (int64_t c = 0; c < columns; c++) {
        const double difference = means[c] - mean[c];
        row[c] = difference * sqrt(before * added / all);
        mean[c] += difference * (added / all);
    }
    scatter->squares[i] = squares + gmem__scatter_put(row, panel, out ? out + job->count * panel : NULL);
}

/* The panels of one row of the matrix up to the diagonal; the longest rows first. */
static void gmem__scatter_multiply(const void *job_, int64_t i, float *scratch) {
    const gmem__scatter_job *job = (const gmem__scatter_job *)job_;
    const gmem__scatter *scatter = job->scatter;
    const int64_t panel = scatter->panel, row = (scatter->panels - 1 - i) * panel;
    (void)scratch;
    for (int64_t column = 0; column <= row; column += panel)
        job->kernels->scatter(scatter->centred + row * GMEM__SCATTER_DEPTH,
                              scatter->centred + column * GMEM__SCATTER_DEPTH, job->count + 1,
                              scatter->sums + row * scatter->padded + column, scatter->padded);
}

GMEM__FN void gmem__scatter_add(gmem__scatter *scatter, const gmem__engine *engine, const float *rows, int64_t count) {
    gmem__scatter_job job;
    job.scatter = scatter;
    job.kernels = gmem__engine_kernels(engine);
    job.rows = rows;
    job.count = count;
    gmem__run_tasks(engine, scatter->panels, gmem__scatter_centre, &job);
    if (scatter->sums) gmem__run_tasks(engine, scatter->panels, gmem__scatter_multiply, &job);
    for (int64_t i = 0; i < scatter->panels; i++)
        scatter->total += scatter->squares[i];
    scatter->count += count;
}

GMEM__FN double *gmem__scatter_matrix(gmem__scatter *scatter) {
    for (int64_t row = 1; row < scatter->width; row++)
        memmove(scatter->sums + row * scatter->width, scatter->sums + row * scatter->padded,
                (size_t)scatter->width * sizeof *scatter->sums);
    return scatter->sums;
}

#undef GMEM__SCATTER_DEPTH
#undef GMEM__SCATTER_PANEL
