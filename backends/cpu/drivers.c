/* The row operations of the CPU backend, cut into tasks. Columns don't depend on each other, so neither do results on
 * the cut, or on the number of threads. */
#include "cpu.h"

/* `heads` times `samples` times `blocks` of `block` columns. */
typedef struct gmem__row_job {
    const gmem__kernels *kernels;
    const void *op;
    int64_t heads, samples, tokens, blocks, block;
} gmem__row_job;

/* Columns [begin, end) of the tokens of one sample, under one head. */
typedef struct gmem__place {
    int64_t head, sample, begin, end;
} gmem__place;

static gmem__place gmem__row_place(const gmem__row_job *job, int64_t i) {
    gmem__place place;
    place.head = i / job->blocks / job->samples;
    place.sample = i / job->blocks % job->samples;
    place.begin = i % job->blocks * job->block;
    place.end = gmem__min(place.begin + job->block, job->tokens);
    return place;
}

static void gmem__run_rows(const gmem__engine *engine, const void *op, int64_t heads, int64_t samples, int64_t tokens,
                           void (*task)(const void *job, int64_t i, float *scratch)) {
    const int64_t smallest = 16;
    gmem__row_job job;
    job.kernels = gmem__engine_kernels(engine);
    job.op = op;
    job.heads = heads;
    job.samples = samples;
    job.tokens = tokens;
    job.block = GMEM__COLUMN_BLOCK;
    while (job.block > smallest && heads * samples * gmem__ceil_div(tokens, job.block) < engine->threads)
        job.block /= 2; /* rather than leave threads idle */
    job.blocks = gmem__ceil_div(tokens, job.block);
    gmem__run_tasks(engine, heads * samples * job.blocks, task, &job);
}

static void gmem__norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    const int64_t first = place.sample * job->tokens;
    (void)scratch;
    job->kernels->norm((const gmem__norm *)job->op, place.sample, first + place.begin, first + place.end);
}

static void gmem__rotate_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    const int64_t first = place.sample * job->tokens;
    (void)scratch;
    job->kernels->rotate((const gmem__rotate *)job->op, place.head, place.sample, first + place.begin,
                         first + place.end);
}

static void gmem__attention_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    job->kernels->attention((const gmem__attention *)job->op, place.sample, place.head, place.begin, place.end,
                            scratch);
}

static void gmem__group_norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    (void)scratch;
    job->kernels->group_norm((const gmem__group_norm *)job->op, i);
}

/* Where samples make no difference, `tokens` need not be given: all columns are one sample's. */
GMEM__FN void gmem__cpu_norm(const gmem__engine *engine, const gmem__norm *op) {
    const int64_t tokens = op->shift || op->scale ? op->tokens : op->columns;
    if (op->columns) gmem__run_rows(engine, op, 1, op->columns / tokens, tokens, gmem__norm_task);
}

GMEM__FN void gmem__cpu_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const int64_t tokens = op->cosine ? op->tokens : op->columns;
    if (op->columns) gmem__run_rows(engine, op, op->heads, op->columns / tokens, tokens, gmem__rotate_task);
}

GMEM__FN void gmem__cpu_attention(const gmem__engine *engine, const gmem__attention *op) {
    gmem__run_rows(engine, op, op->heads, op->samples, op->tokens, gmem__attention_task);
}

GMEM__FN void gmem__cpu_group_norm(const gmem__engine *engine, const gmem__group_norm *op) {
    gmem__run_rows(engine, op, op->groups, 1, 1, gmem__group_norm_task);
}
