/* Exact search: the rows of largest cosine to some queries. */
#include "bank_search.h"

#include <math.h>

/* |query| (count) in double. */
static gmem_status gmem__search_norms(const gmem_bank *bank, const gmem_bank_search_desc *desc, double *norms,
                                      gmem_error *error) {
    for (int64_t q = 0; q < desc->count; q++) {
        const float *query = desc->queries + q * bank->width;
        double sum = 0;
        for (int64_t i = 0; i < bank->width; i++)
            sum += (double)query[i] * (double)query[i];
        norms[q] = sqrt(sum);
        if (!(sum > 0) || sum - sum != 0)
            return gmem__fail(error, GMEM_E_ROW_ZERO, "query %lld is zero or not finite", (long long)q);
    }
    return GMEM_OK;
}

/* What a search takes in memory. */
static void gmem__search_place(gmem__search *search, gmem__arena *arena) {
    const int64_t finders = search->threads * search->count;
    search->norms = (double *)gmem__take(arena, search->count, sizeof *search->norms);
    search->slack = (double *)gmem__take(arena, search->count, sizeof *search->slack);
    search->finders = (gmem__finder *)gmem__take(arena, finders, sizeof *search->finders);
    search->cuts = GMEM__TAKE_F32(arena, finders);
    search->found = (gmem__found *)gmem__take(arena, finders * search->capacity, sizeof *search->found);
}

static void gmem__search_begin(gmem__search *search) {
    for (int64_t i = 0; i < search->threads * search->count; i++) {
        search->finders[i].found = search->found + i * search->capacity;
        search->finders[i].count = 0;
        search->cuts[i] = -8; /* below every cosine */
    }
}

static void gmem__search_rows(gmem__search *search) {
    for (int64_t row = 0; row < search->bank->rows; row++)
        for (int64_t q = 0; q < search->count; q++)
            gmem__search_take(search, 0, q, row, gmem__search_cosine(search, row, q), 1);
}

/* The k best of the bank for each query. */
static gmem_status gmem__search_bank(const gmem_bank *bank, const gmem_bank_search_desc *desc, int64_t k,
                                     gmem_match *out, gmem_error *error) {
    gmem__search search;
    gmem__arena arena;
    memset(&search, 0, sizeof search);
    memset(&arena, 0, sizeof arena);
    search.bank = bank;
    search.queries = desc->queries;
    search.count = desc->count;
    search.k = k;
    search.capacity = gmem__min(bank->rows, 2 * k + 64);
    search.threads = 1;
    gmem__search_place(&search, &arena);
    if (!gmem__arena_reserve(bank->context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a search: %lld bytes", (long long)arena.bytes);
    gmem__search_place(&search, &arena);
    gmem_status status = gmem__search_norms(bank, desc, search.norms, error);
    if (status == GMEM_OK) {
        gmem__search_begin(&search);
        gmem__search_rows(&search);
        for (int64_t q = 0; q < search.count; q++)
            gmem__search_finish(&search, q, out + q * k);
    }
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
