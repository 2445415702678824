/* The row operations of the CPU backend, cut into tasks. Columns don't depend on each other, so neither do results on
 * the cut, or on the number of threads. */
#include "narrow.h"

/* `heads` times `samples` times `blocks` of `block` columns. */
typedef struct gmem__row_job {
    const gmem__kernels *kernels;
    const gmem__narrow *bf16;
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
                           int64_t block, void (*task)(const void *job, int64_t i, float *scratch)) {
    const int64_t smallest = 16;
    gmem__row_job job;
    job.kernels = gmem__engine_kernels(engine);
    job.bf16 = engine->bf16;
    job.op = op;
    job.heads = heads;
    job.samples = samples;
    job.tokens = tokens;
    job.block = block;
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

static void gmem__narrow_attention_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    job->kernels->narrow_attention(job->bf16, (const gmem__attention *)job->op, place.sample, place.head, place.begin,
                                   place.end, scratch);
}

static void gmem__group_norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    (void)scratch;
    job->kernels->group_norm((const gmem__group_norm *)job->op, i);
}

/* Where samples make no difference, `tokens` need not be given: all columns are one sample's. */
GMEM__FN void gmem__cpu_norm(const gmem__engine *engine, const gmem__norm *op) {
    const int64_t tokens = op->shift || op->scale ? op->tokens : op->columns;
    if (op->columns) gmem__run_rows(engine, op, 1, op->columns / tokens, tokens, GMEM__COLUMN_BLOCK, gmem__norm_task);
}

GMEM__FN void gmem__cpu_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const int64_t tokens = op->cosine ? op->tokens : op->columns;
    if (op->columns)
        gmem__run_rows(engine, op, op->heads, op->columns / tokens, tokens, GMEM__COLUMN_BLOCK, gmem__rotate_task);
}

/* What a head takes in scratch; INT64_MAX where that has no number. */
static int64_t gmem__narrow_attention_floats(const gmem__narrow *narrow, const gmem__attention *op) {
    const int64_t far = 1 << 20; /* more tokens or channels than fit in any case */
    if (op->tokens > far || op->head_dim > far) return INT64_MAX;
    const int64_t keys = gmem__round_up(op->tokens, narrow->mr), rows = gmem__round_up(op->head_dim, narrow->mr);
    const int64_t channel_words = gmem__round_up(gmem__ceil_div(op->head_dim, 2), GMEM__TILE_WORDS);
    const int64_t token_words = gmem__round_up(gmem__ceil_div(op->tokens, 2), GMEM__TILE_WORDS);
    return (keys + rows + channel_words + token_words) * GMEM__COLUMN_BLOCK + keys * channel_words + rows * token_words;
}

/* Packing a head's keys costs the same for all its queries as for some: whole heads where there are enough of them. */
static void gmem__narrow_attend(const gmem__engine *engine, const gmem__attention *op) {
    const int64_t whole = op->heads * op->samples >= 2 * engine->threads;
    if (whole && op->head_dim % 2 == 0 && op->tokens % engine->bf16->nr == 0 &&
        gmem__narrow_hands_over(engine, op->to, engine->bf16, op->y, op->heads * op->head_dim,
                                op->samples * op->tokens))
        op->to->packed = 1;
    const int64_t block = whole ? gmem__round_up(op->tokens, GMEM__COLUMN_BLOCK) : GMEM__COLUMN_BLOCK;
    gmem__run_rows(engine, op, op->heads, op->samples, op->tokens, block, gmem__narrow_attention_task);
}

GMEM__FN void gmem__cpu_attention(const gmem__engine *engine, const gmem__attention *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
    if (op->compute != GMEM_COMPUTE_F32 && engine->bf16 && kernels->narrow_attention &&
        gmem__narrow_attention_floats(engine->bf16, op) <= GMEM__SCRATCH)
        gmem__narrow_attend(engine, op);
    else
        gmem__run_rows(engine, op, op->heads, op->samples, op->tokens, GMEM__COLUMN_BLOCK, gmem__attention_task);
}

GMEM__FN void gmem__cpu_group_norm(const gmem__engine *engine, const gmem__group_norm *op) {
    gmem__run_rows(engine, op, op->groups, 1, 1, GMEM__COLUMN_BLOCK, gmem__group_norm_task);
}
