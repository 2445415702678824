/* The row operations of the CPU backend: what is independent of the instruction set. Each is cut into tasks, whose
 * cut does not depend on the number of threads, and neither does any result. */
#include "cpu.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static int gmem__thread_index(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* `parts` runs of columns of each of `samples` samples; task i is run i % parts of sample i / parts. */
typedef struct gmem__runs {
    int64_t samples, tokens, parts;
} gmem__runs;

static gmem__runs gmem__cut(int64_t samples, int64_t tokens) {
    gmem__runs runs = {samples, tokens, gmem__ceil_div(tokens, GMEM__COLUMN_BLOCK)};
    return runs;
}

/* The tokens [begin, end) of run i within its sample, whose number is returned. */
static int64_t gmem__run(const gmem__runs *runs, int64_t i, int64_t *begin, int64_t *end) {
    *begin = i % runs->parts * GMEM__COLUMN_BLOCK;
    *end = gmem__min(*begin + GMEM__COLUMN_BLOCK, runs->tokens);
    return i / runs->parts;
}

GMEM__FN void gmem__cpu_norm(const gmem__engine *engine, const gmem__norm *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
    const int64_t tokens = op->shift || op->scale ? op->tokens : op->columns; /* else they need not be given */
    const gmem__runs runs = gmem__cut(op->columns / tokens, tokens);
    const int64_t tasks = runs.samples * runs.parts;
#ifdef _OPENMP
#pragma omp parallel for num_threads(engine->threads) schedule(static)
#endif
    for (int64_t i = 0; i < tasks; i++) {
        int64_t begin, end, sample = gmem__run(&runs, i, &begin, &end);
        kernels->norm(op, sample, sample * tokens + begin, sample * tokens + end);
    }
}

GMEM__FN void gmem__cpu_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
    const int64_t tokens = op->cosine ? op->tokens : op->columns;
    const gmem__runs runs = gmem__cut(op->columns / tokens, tokens);
    const int64_t per_head = runs.samples * runs.parts, tasks = op->heads * per_head;
#ifdef _OPENMP
#pragma omp parallel for num_threads(engine->threads) schedule(static)
#endif
    for (int64_t i = 0; i < tasks; i++) {
        int64_t begin, end, sample = gmem__run(&runs, i % per_head, &begin, &end);
        kernels->rotate(op, i / per_head, sample, sample * tokens + begin, sample * tokens + end);
    }
}

GMEM__FN void gmem__cpu_attention(const gmem__engine *engine, const gmem__attention *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
    const gmem__runs runs = gmem__cut(op->samples, op->tokens);
    const int64_t per_head = runs.samples * runs.parts, tasks = op->heads * per_head;
#ifdef _OPENMP
#pragma omp parallel for num_threads(engine->threads) schedule(dynamic)
#endif
    for (int64_t i = 0; i < tasks; i++) {
        int64_t begin, end, sample = gmem__run(&runs, i % per_head, &begin, &end);
        kernels->attention(op, sample, i / per_head, begin, end, gmem__engine_scratch(engine, gmem__thread_index()));
    }
}

GMEM__FN void gmem__cpu_group_norm(const gmem__engine *engine, const gmem__group_norm *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
#ifdef _OPENMP
#pragma omp parallel for num_threads(engine->threads) schedule(dynamic)
#endif
    for (int64_t group = 0; group < op->groups; group++)
        kernels->group_norm(op, group);
}
