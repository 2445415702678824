/* Exact search: the rows of largest cosine to some queries. */
#include "bank_search.h"

#include <math.h>

/* memory and queries ---------------------------------------------------------------------------------------------- */

static void gmem__search_place(gmem__search *search, gmem__arena *arena) {
    const int64_t finders = search->threads * search->count;
    int64_t found = 0;
    search->norms = (double *)gmem__take(arena, search->count, sizeof *search->norms);
    search->slack = (double *)gmem__take(arena, search->count, sizeof *search->slack);
    search->finders = (gmem__finder *)gmem__take(arena, finders, sizeof *search->finders);
    search->cuts = GMEM__TAKE_F32(arena, finders);
    if (!gmem__mul(finders, search->capacity, &found)) found = INT64_MAX;
    search->found = (gmem__found *)gmem__take(arena, found, sizeof *search->found);
    gmem__form_place(&search->form, search->bank, search->count, arena);
}

/* |query| in double, 0 where a value is not finite. */
static double gmem__search_norm(const float *query, int64_t width) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++)
        sum += (double)query[i] * (double)query[i];
    return sum - sum == 0 ? sqrt(sum) : 0;
}

/* Other queries, of which nothing has been found: queries (count, width), at most as many as there is memory for. */
static void gmem__search_begin(gmem__search *search, const float *queries, int64_t count, gmem_match *out) {
    const int64_t width = search->bank->width;
    search->queries = queries;
    search->count = count;
    search->out = out;
    for (int64_t q = 0; q < count; q++) {
        search->norms[q] = gmem__search_norm(queries + q * width, width);
        search->slack[q] = 0;
    }
    for (int64_t i = 0; i < search->threads * count; i++) {
        search->finders[i].found = search->found + i * search->capacity;
        search->finders[i].count = 0;
        search->cuts[i] = -8; /* below every cosine */
    }
}

/* the scan -------------------------------------------------------------------------------------------------------- */

/* One of a bank's files being scanned. */
typedef struct gmem__search_part {
    const gmem__search *search;
    const gmem__bank_part *part;
    int by_form; /* decomposed, and searched by its coefficients */
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
    const int64_t width = at->search->bank->width, columns = at->part->rows_tensor->shape[1];
    if (at->part->kind != GMEM_BANK_DECOMPOSED || at->by_form) {
        gmem_tensor_read_f32(at->part->rows_tensor, first * columns, count * columns, out);
        return;
    }
    for (int64_t r = 0; r < count; r++)
        gmem__bank_compose(at->part, first + r, width, 0, width, out + r * width);
}

/* Whether kernels can read it where it is. */
static int gmem__search_is_plain(const gmem_tensor *tensor) {
    return gmem__tensor_is_contiguous(tensor) && tensor->type != GMEM_F64;
}

GMEM__FN int gmem__search_in_place(const gmem__bank_part *part) {
    return part->kind == GMEM_BANK_FULL && gmem__search_is_plain(part->rows_tensor);
}

static gmem__scan gmem__search_scan_of(const gmem__search *search, gmem__search_part *at) {
    const gmem__bank_part *part = at->part;
    gmem__scan scan;
    memset(&scan, 0, sizeof scan);
    if (at->by_form ? gmem__search_is_plain(part->rows_tensor) : gmem__search_in_place(part)) {
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
    if (!at->by_form) return scan;
    scan.form = &search->form.form;
    scan.width = part->factors.rank;
    scan.queries = search->form.projected;
    scan.norms = search->form.ones;
    return scan;
}

/* Every file's needs for slack come first: what one finds is compared with what others found. */
static void gmem__search_scan(gmem__search *search, const gmem__engine *engine) {
    const gmem_bank *bank = search->bank;
    for (int run = bank->part_count == 1; run < 2; run++)
        for (int64_t i = 0; i < bank->part_count; i++) {
            gmem__search_part at = {search, bank->parts + i, 0};
            if (at.part->kind == GMEM_BANK_DECOMPOSED)
                at.by_form = gmem__form_prepare(&search->form, search, at.part, engine);
            gmem__scan scan = gmem__search_scan_of(search, &at);
            gmem__cpu_scan_prepare(engine, &scan);
            if (run == 1) gmem__cpu_scan(engine, &scan);
        }
}

/* the search ------------------------------------------------------------------------------------------------------ */

/* With the fastest kernels for candidates: results are the same with any. */
static gmem__engine gmem__search_engine(const gmem_context *context) {
    gmem__engine engine = gmem__cpu_engine(context);
    const gmem_isa tiles = context->any_isa ? GMEM_ISA_AMX : context->isa;
    if (context->isa == GMEM_ISA_SCALAR) return engine;
    engine.bf16 = gmem__cpu_narrow(tiles, GMEM_BF16);
    engine.int8 = gmem__cpu_narrow(tiles, GMEM_I8);
    if (!engine.bf16) engine.f32 = gmem__cpu_narrow(context->isa, GMEM_F32);
    if (!engine.bf16) engine.bf16 = gmem__cpu_narrow(context->isa, GMEM_BF16);
    if (!engine.int8) engine.int8 = gmem__cpu_narrow(context->isa, GMEM_I8);
    return engine;
}

static void gmem__search_finish_task(const void *job, int64_t i, float *scratch) {
    (void)scratch;
    gmem__search_finish((const gmem__search *)job, i);
}

/* A search, and another one of what it found. */
typedef struct gmem__searches {
    gmem__engine engine;
    int64_t batch; /* queries that share a scan */
    gmem__search scan, rerank;
    gmem_match *matches; /* (scan.count, scan.k), to be reranked; or NULL */
} gmem__searches;

static void gmem__rerank_task(const void *job, int64_t q, float *scratch) {
    const gmem__searches *searches = (const gmem__searches *)job;
    const gmem__search *rerank = &searches->rerank;
    const gmem_match *matches = searches->matches + q * searches->scan.k;
    (void)scratch;
    for (int64_t i = 0; i < searches->scan.k && matches[i].row >= 0; i++)
        gmem__search_take(rerank, 0, q, matches[i].row, gmem__search_cosine(rerank, matches[i].row, q), 1);
    gmem__search_finish(rerank, q);
}

/* Some queries, few enough for one scan: out (count, k). */
static void gmem__search_some(gmem__searches *searches, const float *queries, int64_t count, gmem_match *out) {
    const gmem__engine *engine = &searches->engine;
    gmem__search_begin(&searches->scan, queries, count, searches->matches ? searches->matches : out);
    gmem__search_scan(&searches->scan, engine);
    gmem__run_tasks(engine, count, gmem__search_finish_task, &searches->scan);
    if (!searches->matches) return;
    gmem__search_begin(&searches->rerank, queries, count, out);
    gmem__run_tasks(engine, count, gmem__rerank_task, searches);
}

static void gmem__searches_place(gmem__searches *searches, gmem__arena *arena) {
    gmem__engine *engine = &searches->engine;
    gmem__search_place(&searches->scan, arena);
    engine->scratch = gmem__take(arena, engine->ops->scratch_bytes(engine->threads), 1);
    if (!searches->rerank.bank) return;
    int64_t matches = 0;
    gmem__search_place(&searches->rerank, arena);
    if (!gmem__mul(searches->scan.count, searches->scan.k, &matches)) matches = INT64_MAX;
    searches->matches = (gmem_match *)gmem__take(arena, matches, sizeof *searches->matches);
}

/* Found rows at a time, at most, where that leaves a query: 256 MB. */
#define GMEM__SEARCH_FOUND (1 << 24)

static gmem__searches gmem__searches_of(const gmem__engine *engine, const gmem_bank *bank,
                                        const gmem_bank_search_desc *desc) {
    const int64_t rows = bank->rows, some = desc->k < (rows - 64) / 4 ? 4 * desc->k + 64 : rows;
    gmem__searches searches;
    memset(&searches, 0, sizeof searches);
    searches.engine = *engine;
    searches.scan.bank = bank;
    searches.scan.kernels = searches.rerank.kernels = gmem__engine_kernels(engine);
    searches.scan.threads = engine->threads;
    searches.scan.k = desc->k;
    if (desc->rerank) searches.scan.k = desc->candidates ? gmem__min(desc->candidates, rows) : some;
    /* room beyond the k best, so that sorting them out is seldom */
    searches.scan.capacity = searches.scan.k < rows / 8 - 32 ? 8 * searches.scan.k + 64 : rows;
    searches.batch = gmem__min(gmem__min(desc->count, GMEM__SCAN_QUERIES),
                               gmem__max(1, GMEM__SEARCH_FOUND / searches.scan.capacity / engine->threads));
    searches.scan.count = searches.batch;
    if (!desc->rerank) return searches;
    searches.rerank.bank = desc->rerank;
    searches.rerank.count = searches.batch;
    searches.rerank.threads = 1;
    searches.rerank.k = desc->k;
    searches.rerank.capacity = searches.scan.k;
    return searches;
}

static gmem_status gmem__search_check(const gmem_bank *bank, const gmem_bank_search_desc *desc, gmem_error *error) {
    const gmem_bank *rerank = desc->rerank;
    if (desc->k < 1 || desc->k > bank->rows)
        return gmem__fail(error, GMEM_E_ARGUMENT, "k is %lld, but the bank has %lld rows", (long long)desc->k,
                          (long long)bank->rows);
    if (desc->candidates < 0 || (desc->candidates && desc->candidates < desc->k))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld candidates are too few for k %lld", (long long)desc->candidates,
                          (long long)desc->k);
    if (rerank && rerank->width != bank->width)
        return gmem__fail_at(error, GMEM_E_WIDTH, gmem_bank_file_path(rerank, 0), -1,
                             "the bank to rerank by has rows of %lld elements, not %lld", (long long)rerank->width,
                             (long long)bank->width);
    if (rerank && rerank->rows != bank->rows)
        return gmem__fail_at(error, GMEM_E_ARGUMENT, gmem_bank_file_path(rerank, 0), -1,
                             "the bank to rerank by has %lld rows, not %lld", (long long)rerank->rows,
                             (long long)bank->rows);
    for (int64_t q = 0; q < desc->count; q++)
        if (!(gmem__search_norm(desc->queries + q * bank->width, bank->width) > 0))
            return gmem__fail(error, GMEM_E_ROW_ZERO, "query %lld is zero or not finite", (long long)q);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__bank_search_on(const gmem__engine *engine, const gmem_bank *bank,
                                          const gmem_bank_search_desc *desc, gmem_match *out, gmem_error *error) {
    GMEM__TRY(gmem__search_check(bank, desc, error));
    if (desc->count == 0) return GMEM_OK;
    gmem__searches searches = gmem__searches_of(engine, bank, desc);
    gmem__arena arena;
    memset(&arena, 0, sizeof arena);
    gmem__searches_place(&searches, &arena);
    if (!gmem__arena_reserve(bank->context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a search: %lld bytes", (long long)arena.bytes);
    gmem__searches_place(&searches, &arena);
    for (int64_t q = 0; q < desc->count; q += searches.batch)
        gmem__search_some(&searches, desc->queries + q * bank->width, gmem__min(searches.batch, desc->count - q),
                          out + q * desc->k);
    gmem__arena_release(bank->context, &arena);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_bank_search(const gmem_bank *bank, const gmem_bank_search_desc *desc, gmem_match *out,
                                      gmem_error *error) {
    if (!bank || !desc || !out || desc->count < 0 || (desc->count > 0 && !desc->queries))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_bank_search needs a bank, queries and an output");
    const gmem__engine engine = gmem__search_engine(bank->context);
    return gmem__bank_search_on(&engine, bank, desc, out, error);
}

#undef GMEM__SEARCH_FOUND
