/* What a search keeps: rows that may be among a query's k best, known exactly or within a slack, in bounded memory.
 * Exact cosines are sums in double on a grid that is coarser than their rounding, so that equal ones are equal whatever
 * summed them, and ties go to the lower row. */
#include "bank_search.h"

#include <math.h>

/* exact cosines --------------------------------------------------------------------------------------------------- */

#define GMEM__CHUNK 256

/* Values [first, first + count) of a row of the part that doesn't lie as kernels read it. */
static void gmem__exact_values(const gmem__bank_part *part, int64_t width, int64_t row, int64_t first, int64_t count,
                               float *out) {
    if (part->kind == GMEM_BANK_DECOMPOSED)
        gmem__bank_compose(part, row, width, first, count, out);
    else
        gmem_tensor_read_f32(part->rows_tensor, row * width + first, count, out);
}

/* F64 rows, as they are; `largest` as f32 holds it. */
static void gmem__exact_f64(const gmem__bank_part *part, int64_t width, int64_t row, const float *query,
                            gmem__exact_sums *sums) {
    double x[GMEM__CHUNK];
    for (int64_t k = 0; k < width; k += GMEM__CHUNK) {
        const int64_t count = gmem__min(GMEM__CHUNK, width - k);
        gmem_tensor_read(part->rows_tensor, row * width + k, count, x);
        for (int64_t i = 0; i < count; i++) {
            const float value = fabsf((float)x[i]);
            sums->product += x[i] * (double)query[k + i];
            sums->square += x[i] * x[i];
            if (value > sums->largest) sums->largest = value;
        }
    }
}

static gmem__exact_sums gmem__exact_sums_of(const gmem__search *search, const gmem__bank_part *part, int64_t row,
                                            const float *query) {
    const int64_t width = search->bank->width;
    gmem__exact_sums sums = {0, 0, 0};
    float values[GMEM__CHUNK];
    gmem__weight rows;
    memset(&rows, 0, sizeof rows);
    if (gmem__search_in_place(part)) {
        rows.data = part->rows_tensor->data;
        rows.type = part->rows_tensor->type;
        rows.cols = rows.row_stride = width;
        search->kernels->exact(&rows, row, query, &sums);
        return sums;
    }
    if (part->rows_tensor->type == GMEM_F64 && part->kind == GMEM_BANK_FULL) {
        gmem__exact_f64(part, width, row, query, &sums);
        return sums;
    }
    rows.data = values;
    for (int64_t k = 0; k < width; k += GMEM__CHUNK) {
        rows.cols = gmem__min(GMEM__CHUNK, width - k);
        gmem__exact_values(part, width, row, k, rows.cols, values);
        search->kernels->exact(&rows, 0, query + k, &sums);
    }
    return sums;
}

/* x on a grid of 2^-44: sums of products of unit vectors in double differ by less. */
static double gmem__on_grid(double x) { return floor(x * 17592186044416.0 + 0.5) / 17592186044416.0; }

GMEM__FN double gmem__search_cosine(const gmem__search *search, int64_t row, int64_t query) {
    const gmem__bank_part *part = gmem__bank_part_of(search->bank, row);
    const gmem__exact_sums sums =
        gmem__exact_sums_of(search, part, row - part->first, search->queries + query * search->bank->width);
    float scale = 1;
    if (part->scale) gmem_tensor_read_f32(part->scale, row - part->first, 1, &scale);
    const float largest = sums.largest * fabsf(scale);
    if (!(largest > 0) || largest - largest != 0 || sums.square - sums.square != 0) return (double)NAN;
    const double cosine = sums.product / (sqrt(sums.square) * search->norms[query]);
    return gmem__on_grid(scale < 0 ? -cosine : cosine);
}

#undef GMEM__CHUNK

/* what was found -------------------------------------------------------------------------------------------------- */

static float *gmem__search_cut(const gmem__search *search, int thread, int64_t query) {
    return search->cuts + thread * search->count + query;
}

static gmem__finder *gmem__finder_of(const gmem__search *search, int thread, int64_t query) {
    return search->finders + thread * search->count + query;
}

/* The least that the row's cosine can be. */
static double gmem__found_least(const gmem__found *found, double slack) {
    return found->row2 & 1 ? found->cosine : found->cosine - slack;
}

/* Whether a comes before b, by the least that their cosines can be. */
static int gmem__found_before(const gmem__found *a, const gmem__found *b, double slack) {
    const double x = gmem__found_least(a, slack), y = gmem__found_least(b, slack);
    return x != y ? x > y : a->row2 < b->row2;
}

static void gmem__found_swap(gmem__found *a, gmem__found *b) {
    const gmem__found t = *a;
    *a = *b;
    *b = t;
}

/* Brings the k first of count to the front, in any order (Hoare's selection). */
static void gmem__found_select(gmem__found *found, int64_t count, int64_t k, double slack) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const gmem__found pivot = found[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (gmem__found_before(&found[i], &pivot, slack))
                i++;
            while (gmem__found_before(&pivot, &found[j], slack))
                j--;
            if (i <= j) gmem__found_swap(&found[i++], &found[j--]);
        }
        if (k <= j)
            high = j;
        else if (k > i)
            low = i;
        else
            break;
    }
}

/* In order (heapsort: in place, whatever comes). */
static void gmem__found_sort(gmem__found *found, int64_t count) {
    for (int64_t end = count, start = count / 2; end > 1;) {
        if (start > 0) {
            start--;
        } else {
            gmem__found_swap(&found[0], &found[--end]);
        }
        for (int64_t i = start, child; (child = 2 * i + 1) < end; i = child) {
            if (child + 1 < end && gmem__found_before(&found[child], &found[child + 1], 0)) child++;
            if (!gmem__found_before(&found[i], &found[child], 0)) break;
            gmem__found_swap(&found[i], &found[child]);
        }
    }
}

/* Makes every cosine exact; rows without one go. */
static void gmem__finder_settle(const gmem__search *search, int64_t query, gmem__finder *finder) {
    int64_t kept = 0;
    for (int64_t i = 0; i < finder->count; i++) {
        gmem__found found = finder->found[i];
        if (!(found.row2 & 1)) found.cosine = gmem__search_cosine(search, found.row2 / 2, query);
        found.row2 |= 1;
        if (found.cosine == found.cosine) finder->found[kept++] = found;
    }
    finder->count = kept;
}

/* Rounded down. */
static float gmem__cut_of(double cosine) {
    const float cut = (float)cosine;
    return (double)cut <= cosine ? cut : cut - 1e-6f;
}

/* Leaves what may be among the k best: those whose cosine may be as large as the k-th largest is at least. */
static void gmem__finder_shrink(const gmem__search *search, int thread, int64_t query, gmem__finder *finder) {
    const double slack = search->slack[query];
    const int64_t k = search->k;
    if (finder->count < k) return;
    gmem__found_select(finder->found, finder->count, k, slack);
    double least = gmem__found_least(&finder->found[0], slack);
    for (int64_t i = 1; i < k; i++) {
        const double other = gmem__found_least(&finder->found[i], slack);
        if (other < least) least = other;
    }
    int64_t kept = k;
    for (int64_t i = k; i < finder->count; i++) {
        const gmem__found found = finder->found[i];
        if (found.cosine + (found.row2 & 1 ? 0 : slack) >= least) finder->found[kept++] = found;
    }
    finder->count = kept;
    *gmem__search_cut(search, thread, query) = gmem__cut_of(least - slack);
}

/* The k best of all, once every cosine is exact. */
static void gmem__finder_decide(const gmem__search *search, int thread, int64_t query, gmem__finder *finder) {
    gmem__finder_settle(search, query, finder);
    if (finder->count <= search->k) return;
    gmem__found_select(finder->found, finder->count, search->k, 0);
    finder->count = search->k;
    gmem__finder_shrink(search, thread, query, finder);
}

/* Where the slack leaves too many, they are decided. */
static void gmem__finder_make_room(const gmem__search *search, int thread, int64_t query, gmem__finder *finder) {
    gmem__finder_shrink(search, thread, query, finder);
    if (2 * finder->count > search->k + search->capacity) gmem__finder_decide(search, thread, query, finder);
}

GMEM__FN void gmem__search_take(const gmem__search *search, int thread, int64_t query, int64_t row, double cosine,
                                int exact) {
    gmem__finder *finder = gmem__finder_of(search, thread, query);
    if (!(cosine >= (double)*gmem__search_cut(search, thread, query))) return; /* nor NaN */
    if (finder->count == search->capacity) gmem__finder_make_room(search, thread, query, finder);
    gmem__found *found = &finder->found[finder->count++];
    found->row2 = 2 * row + (exact != 0);
    found->cosine = cosine;
}

GMEM__FN void gmem__search_finish(const gmem__search *search, int64_t query) {
    gmem_match *out = search->out + query * search->k;
    gmem__finder *finder = gmem__finder_of(search, 0, query);
    for (int t = 1; t < search->threads; t++) {
        const gmem__finder *other = gmem__finder_of(search, t, query);
        for (int64_t i = 0; i < other->count; i++) {
            const gmem__found found = other->found[i];
            gmem__search_take(search, 0, query, found.row2 / 2, found.cosine, (int)(found.row2 & 1));
        }
    }
    gmem__finder_shrink(search, 0, query, finder);
    gmem__finder_decide(search, 0, query, finder);
    gmem__found_sort(finder->found, finder->count);
    for (int64_t i = 0; i < search->k; i++) {
        out[i].row = i < finder->count ? finder->found[i].row2 / 2 : -1;
        out[i].cosine = i < finder->count ? (float)finder->found[i].cosine : 0.0f;
    }
}
