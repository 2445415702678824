/* Exact search: the rows of largest cosine to some queries. */
#include "bank_search.h"
#include "../backends/cpu/cpu.h"

#include <math.h>

/* memory ---------------------------------------------------------------------------------------------------------- */

/* What a search takes; returns the engine's scratch. */
static void *gmem__search_place(gmem__search *search, const gmem__engine *engine, gmem__arena *arena) {
    const int64_t finders = search->threads * search->count;
    search->norms = (double *)gmem__take(arena, search->count, sizeof *search->norms);
    search->slack = (double *)gmem__take(arena, search->count, sizeof *search->slack);
    search->finders = (gmem__finder *)gmem__take(arena, finders, sizeof *search->finders);
    search->cuts = GMEM__TAKE_F32(arena, finders);
    int64_t found = 0;
    if (!gmem__mul(finders, search->capacity, &found)) found = INT64_MAX;
    search->found = (gmem__found *)gmem__take(arena, found, sizeof *search->found);
    return gmem__take(arena, engine->ops->scratch_bytes(engine->threads), 1);
}

/* `first` is the number of the first query, for the message. */
static gmem_status gmem__search_begin(gmem__search *search, int64_t first, gmem_error *error) {
    const int64_t width = search->bank->width;
    for (int64_t q = 0; q < search->count; q++) {
        const float *query = search->queries + q * width;
        double sum = 0;
        for (int64_t i = 0; i < width; i++)
            sum += (double)query[i] * (double)query[i];
        search->norms[q] = sqrt(sum);
        search->slack[q] = 0;
        if (!(sum > 0) || sum - sum != 0)
            return gmem__fail(error, GMEM_E_ROW_ZERO, "query %lld is zero or not finite", (long long)(first + q));
    }
    for (int64_t i = 0; i < search->threads * search->count; i++) {
        search->finders[i].found = search->found + i * search->capacity;
        search->finders[i].count = 0;
        search->cuts[i] = -8; /* below every cosine */
    }
    return GMEM_OK;
}

/* the scan -------------------------------------------------------------------------------------------------------- */

/* Some of a bank's files being scanned. */
typedef struct gmem__search_part {
    const gmem__search *search;
    const gmem__bank_part *part;
} gmem__search_part;

static void gmem__search_near(void *user, int thread, int64_t row, int64_t query, float cosine) {
    const gmem__search_part *at = (const gmem__search_part *)user;
    gmem__search_take(at->search, thread, query, at->part->first + row, (double)cosine, 0);
}

static void gmem__search_odd(void *user, int thread, int64_t row) {
    const gmem__search_part *at = (const gmem__search_part *)user;
    for (int64_t q = 0; q < at->search->count; q++)
        gmem__search_take(at->search, thread, q, at->part->first + row,
                          gmem__search_cosine(at->search, at->part->first + row, q), 1);
}

/* Rows that don't lie in the file as kernels read them. */
static void gmem__search_fill(void *user, int64_t first, int64_t count, float *out) {
    const gmem__search_part *at = (const gmem__search_part *)user;
    const int64_t width = at->search->bank->width;
    if (at->part->kind != GMEM_BANK_DECOMPOSED) {
        gmem_tensor_read_f32(at->part->rows_tensor, first * width, count * width, out);
        return;
    }
    for (int64_t r = 0; r < count; r++)
        gmem__bank_compose(at->part, first + r, width, 0, width, out + r * width);
}

static int gmem__search_in_place(const gmem__bank_part *part) {
    const gmem_type type = part->rows_tensor->type;
    return part->kind == GMEM_BANK_FULL && gmem__tensor_is_contiguous(part->rows_tensor) && type != GMEM_F64;
}

static gmem__scan gmem__search_scan_of(const gmem__search *search, gmem__search_part *at) {
    const gmem__bank_part *part = at->part;
    gmem__scan scan;
    memset(&scan, 0, sizeof scan);
    if (gmem__search_in_place(part)) {
        scan.data = part->rows_tensor->data;
        scan.type = part->rows_tensor->type;
    } else {
        scan.fill = gmem__search_fill;
    }
    scan.scale = part->scale;
    scan.rows = part->rows;
    scan.width = search->bank->width;
    scan.queries = search->queries;
    scan.norms = search->norms;
    scan.count = search->count;
    scan.slack = search->slack;
    scan.cuts = search->cuts;
    scan.take = gmem__search_near;
    scan.odd = gmem__search_odd;
    scan.user = at;
    return scan;
}

/* Every file's needs for slack come first: what one finds is compared with what others found. */
static void gmem__search_scan(const gmem__search *search, const gmem__engine *engine) {
    const gmem_bank *bank = search->bank;
    for (int run = 0; run < 2; run++)
        for (int64_t i = 0; i < bank->part_count; i++) {
            gmem__search_part at = {search, bank->parts + i};
            gmem__scan scan = gmem__search_scan_of(search, &at);
            gmem__cpu_scan_prepare(engine, &scan);
            if (run == 1) gmem__cpu_scan(engine, &scan);
        }
}

/* the search ------------------------------------------------------------------------------------------------------ */

static void gmem__search_finish_task(const void *job, int64_t i, float *scratch) {
    const gmem__search *search = (const gmem__search *)job;
    (void)scratch;
    gmem__search_finish(search, i);
}

/* Up to GMEM__SCAN_QUERIES of the description's queries from `first` on. */
static gmem_status gmem__search_some(gmem__search *search, const gmem__engine *engine, int64_t first, int64_t count,
                                     const gmem_bank_search_desc *desc, gmem_match *out, gmem_error *error) {
    search->queries = desc->queries + first * search->bank->width;
    search->count = count;
    search->out = out + first * search->k;
    GMEM__TRY(gmem__search_begin(search, first, error));
    gmem__search_scan(search, engine);
    gmem__run_tasks(engine, count, gmem__search_finish_task, search);
    return GMEM_OK;
}

/* With the fastest kernels for candidates: results are the same with any. */
static gmem__engine gmem__search_engine(const gmem_context *context) {
    gmem__engine engine = gmem__cpu_engine(context);
    const gmem_isa tiles = context->any_isa ? GMEM_ISA_AMX : context->isa;
    if (context->isa == GMEM_ISA_SCALAR) return engine;
    engine.bf16 = gmem__cpu_narrow(tiles, GMEM_BF16);
    engine.int8 = gmem__cpu_narrow(tiles, GMEM_I8);
    if (!engine.bf16) engine.bf16 = gmem__cpu_narrow(context->isa, GMEM_BF16);
    if (!engine.int8) engine.int8 = gmem__cpu_narrow(context->isa, GMEM_I8);
    return engine;
}

/* The k best of the bank for each query: out (count, k). */
static gmem_status gmem__search_bank(const gmem_bank *bank, const gmem_bank_search_desc *desc, int64_t k,
                                     gmem_match *out, gmem_error *error) {
    gmem__engine engine = gmem__search_engine(bank->context);
    gmem__search search;
    gmem__arena arena;
    gmem_status status = GMEM_OK;
    memset(&search, 0, sizeof search);
    memset(&arena, 0, sizeof arena);
    search.bank = bank;
    search.count = gmem__min(desc->count, GMEM__SCAN_QUERIES);
    search.k = k;
    search.capacity = k < bank->rows / 2 - 32 ? 2 * k + 64 : bank->rows;
    search.threads = engine.threads;
    engine.scratch = gmem__search_place(&search, &engine, &arena);
    if (!gmem__arena_reserve(bank->context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a search: %lld bytes", (long long)arena.bytes);
    engine.scratch = gmem__search_place(&search, &engine, &arena);
    for (int64_t q = 0; q < desc->count && status == GMEM_OK; q += GMEM__SCAN_QUERIES)
        status =
            gmem__search_some(&search, &engine, q, gmem__min(GMEM__SCAN_QUERIES, desc->count - q), desc, out, error);
    gmem__arena_release(bank->context, &arena);
    return status;
}

GMEM_API gmem_status gmem_bank_search(const gmem_bank *bank, const gmem_bank_search_desc *desc, gmem_match *out,
                                      gmem_error *error) {
    if (!bank || !desc || !out || desc->count < 0 || (desc->count > 0 && !desc->queries))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_bank_search needs a bank, queries and an output");
    if (desc->k < 1 || desc->k > bank->rows)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the %lld nearest rows of a bank of %lld", (long long)desc->k,
                          (long long)bank->rows);
    return gmem__search_bank(bank, desc, desc->k, out, error);
}
