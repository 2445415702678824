/* Searching a decomposed bank by its coefficients: a row c M^T + mean has the product c (M^T query) + mean query with a
 * query, and with M's columns at right angles, as a decomposition's are, the square sum(|m_k|^2 c_k^2) + 2 c (M^T mean)
 * + |mean|^2. So that its `rank` coefficients are read instead of `width` elements being composed. */
#include "bank_search.h"

#include <math.h>

/* Columns further from right angles than this, all together, are those of something else. */
#define GMEM__FORM_SKEW 1e-3

static int64_t gmem__form_rank(const gmem_bank *bank) {
    int64_t rank = 0;
    for (int64_t i = 0; i < bank->part_count; i++)
        rank = gmem__max(rank, bank->parts[i].factors.rank);
    return rank;
}

GMEM__FN void gmem__form_place(gmem__search_form *form, const gmem_bank *bank, int64_t count, gmem__arena *arena) {
    const int64_t rank = gmem__form_rank(bank);
    int64_t projected = 0;
    if (!rank) return;
    if (!gmem__mul(rank, count, &projected)) projected = INT64_MAX;
    form->quadratic = GMEM__TAKE_F32(arena, rank);
    form->linear = GMEM__TAKE_F32(arena, rank);
    form->skew = (double *)gmem__take(arena, rank, sizeof *form->skew);
    form->offset = GMEM__TAKE_F32(arena, count);
    form->projected = GMEM__TAKE_F32(arena, projected);
    form->ones = (double *)gmem__take(arena, count, sizeof *form->ones);
}

typedef struct gmem__form_job {
    const gmem__search *search;
    const gmem__bank_factors *factors;
    const gmem__search_form *form;
    gmem__weight columns; /* (rank, width): M's columns */
} gmem__form_job;

static gmem__exact_sums gmem__form_sums(const gmem__form_job *job, int64_t k, const float *x) {
    gmem__exact_sums sums = {0, 0, 0};
    job->search->kernels->exact(&job->columns, k, x, &sums);
    return sums;
}

/* What column k is, and how far from right angles with those before it. */
static void gmem__form_column_task(const void *job_, int64_t k, float *scratch) {
    const gmem__form_job *job = (const gmem__form_job *)job_;
    const float *columns = job->factors->m, *column = columns + k * job->columns.cols;
    const gmem__exact_sums own = gmem__form_sums(job, k, job->factors->mean);
    double skew = 0;
    (void)scratch;
    job->form->quadratic[k] = (float)own.square;
    job->form->linear[k] = (float)own.product;
    for (int64_t l = 0; l < k && own.square > 0; l++) {
        const gmem__exact_sums other = gmem__form_sums(job, l, column);
        if (other.square > 0) skew += 2 * other.product * other.product / own.square / other.square;
    }
    job->form->skew[k] = skew;
}

/* A query's products with the columns and the mean. */
static void gmem__form_query_task(const void *job_, int64_t q, float *scratch) {
    const gmem__form_job *job = (const gmem__form_job *)job_;
    const int64_t rank = job->factors->rank;
    const float *query = job->search->queries + q * job->columns.cols;
    const double norm = job->search->norms[q];
    gmem__weight mean = job->columns;
    gmem__exact_sums sums = {0, 0, 0};
    (void)scratch;
    mean.data = job->factors->mean;
    job->search->kernels->exact(&mean, 0, query, &sums);
    job->form->offset[q] = (float)(sums.product / norm);
    job->form->ones[q] = 1;
    for (int64_t k = 0; k < rank; k++)
        job->form->projected[q * rank + k] = (float)(gmem__form_sums(job, k, query).product / norm);
}

/* Sums of f32 in gmem__bank_compose are wrong by less than (rank + 1) 2^-24 of the sum of what is summed, which over
 * the columns is at most sqrt(rank) |row - mean|. */
static double gmem__form_row_slack(int64_t rank) { return (double)(rank + 2) / 16777216.0 * (sqrt((double)rank) + 1); }

GMEM__FN int gmem__form_prepare(gmem__search_form *form, const gmem__search *search, const gmem__bank_part *part,
                                const gmem__engine *engine) {
    const gmem__bank_factors *factors = &part->factors;
    gmem__form_job job;
    gmem__exact_sums mean = {0, 0, 0};
    double skew = 0;
    memset(&job, 0, sizeof job);
    job.search = search;
    job.factors = factors;
    job.form = form;
    job.columns.data = factors->m;
    job.columns.cols = job.columns.row_stride = search->bank->width;
    gmem__run_tasks(engine, factors->rank, gmem__form_column_task, &job);
    for (int64_t k = 0; k < factors->rank; k++)
        skew += form->skew[k];
    if (!(sqrt(skew) < GMEM__FORM_SKEW)) return 0; /* nor what is not finite */
    gmem__run_tasks(engine, search->count, gmem__form_query_task, &job);
    job.columns.data = factors->mean;
    search->kernels->exact(&job.columns, 0, factors->mean, &mean);
    form->form.quadratic = form->quadratic;
    form->form.linear = form->linear;
    form->form.mean = sqrt(mean.square);
    form->form.offset = form->offset;
    form->form.square_slack = sqrt(skew);
    form->form.row_slack = gmem__form_row_slack(factors->rank);
    return 1;
}

#undef GMEM__FORM_SKEW
