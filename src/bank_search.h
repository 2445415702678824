/* What a search has found so far: for each query and thread the rows that may still be among the k best. */
#ifndef GMEM__BANK_SEARCH_H
#define GMEM__BANK_SEARCH_H

#include "../backends/cpu/cpu.h"
#include "bank.h"

/* A row and its cosine, which is exact, or known within the query's slack. */
typedef struct gmem__found {
    int64_t row2; /* 2 * row + whether it is exact */
    double cosine;
} gmem__found;

/* The rows of one query and one thread, at most `capacity`. */
typedef struct gmem__finder {
    gmem__found *found;
    int64_t count;
} gmem__finder;

/* bank_form.c: what a decomposed part's rows come down to for some queries, and the memory for it. */
typedef struct gmem__search_form {
    gmem__scan_form form;
    float *quadratic, *linear; /* (rank) */
    float *offset;             /* (count) */
    float *projected;          /* (count, rank): the queries, as products with M's columns */
    double *ones;              /* (count) */
    double *skew;              /* (rank) */
} gmem__search_form;

/* Some queries and what belongs to them. */
typedef struct gmem__search {
    const gmem_bank *bank;
    const gmem__kernels *kernels;
    const float *queries; /* (count, width) */
    int64_t count, k, capacity;
    int threads;
    double *norms;         /* (count) of the queries */
    double *slack;         /* (count) how far a cosine that is not exact may be off */
    gmem__finder *finders; /* (threads, count) */
    float *cuts;           /* (threads, count): no row below can be among the best, wrong by the slack or not */
    gmem__found *found;    /* (threads, count, capacity) */
    gmem_match *out;       /* (count, k) */
    gmem__search_form form;
} gmem__search;

/* Whether the part's rows lie in its file as kernels read them. */
GMEM__FN int gmem__search_in_place(const gmem__bank_part *part);
/* The cosine of a row and a query of the search, on a grid of 2^-44, or NaN where the row is zero or not finite: over
 * the values as they are stored, in double. */
GMEM__FN double gmem__search_cosine(const gmem__search *search, int64_t row, int64_t query);

/* Takes a row whose cosine is about this, or exactly, into account. */
GMEM__FN void gmem__search_take(const gmem__search *search, int thread, int64_t query, int64_t row, double cosine,
                                int exact);
/* The best of all threads to search->out, in order; row -1 where there are no more. */
GMEM__FN void gmem__search_finish(const gmem__search *search, int64_t query);

/* gmem_bank_search on an engine without scratch. */
GMEM__FN gmem_status gmem__bank_search_on(const gmem__engine *engine, const gmem_bank *bank,
                                          const gmem_bank_search_desc *desc, gmem_match *out, gmem_error *error);

/* For the largest rank of the bank's parts and so many queries; nothing where no part is decomposed. */
GMEM__FN void gmem__form_place(gmem__search_form *form, const gmem_bank *bank, int64_t count, gmem__arena *arena);
/* 0 where the part's columns are not at right angles, and its rows must be composed. */
GMEM__FN int gmem__form_prepare(gmem__search_form *form, const gmem__search *search, const gmem__bank_part *part,
                                const gmem__engine *engine);

#endif /* GMEM__BANK_SEARCH_H */
