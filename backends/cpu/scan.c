/* A search's scan: rows of a bank against queries, cut into tasks over the rows. A few queries wait for memory and are
 * multiplied as the rows come; many are a matrix product, tile by tile, whose scores never leave the cache. */
#include "narrow.h"

#include <math.h>

enum { GMEM__SCAN_NONE, GMEM__SCAN_PRODUCTS, GMEM__SCAN_GEMM, GMEM__SCAN_NARROW };

/* Up to so many queries are taken as the rows come; with and without a narrow kernel. */
#define GMEM__SCAN_FEW             16
#define GMEM__SCAN_FEW_WITH_NARROW 4
/* Rows of a task then, in bytes. */
#define GMEM__SCAN_BYTES (512 * 1024)

/* Words of a block of the depth when a few queries are multiplied by narrow kernels. */
#define GMEM__SCAN_WORDS 384

/* A task's scratch in floats: what the GEMM's kernel or a strip of narrow words takes, scores (GMEM__MC, GMEM__NC), and
 * rows that are filled. */
#define GMEM__SCAN_SCORES (144 * 1024)
#define GMEM__SCAN_FILLED (GMEM__SCAN_SCORES + GMEM__MC * GMEM__NC)

typedef struct gmem__scan_job {
    const gmem__engine *engine;
    const gmem__kernels *kernels;
    const gmem__scan *scan;
    const gmem__narrow *narrow;
    int64_t block; /* rows of a task */
} gmem__scan_job;

/* Rows of a task where they can be read, with what divides their products. */
typedef struct gmem__scan_rows {
    const void *data, *end; /* up to the file's last row */
    gmem_type type;
    int64_t first, count;
    int thread;
} gmem__scan_rows;

/* queries --------------------------------------------------------------------------------------------------------- */

/* Elements of a query as the products by rows want it. */
static int64_t gmem__scan_step(int64_t width) { return gmem__round_up(width, 32); }

static int64_t gmem__scan_together(int64_t count) { return count == 1 ? 1 : gmem__round_up(count, 4); }

static float gmem__scan_unit(const gmem__scan *scan, int64_t query, int64_t i) {
    return (float)((double)scan->queries[query * scan->width + i] / scan->norms[query]);
}

/* Sums of `width` products in f32, in any order, are wrong by less than width 2^-24 of |row| |query|, a norm by half of
 * that (Higham, Accuracy and Stability of Numerical Algorithms, 3.5); a few roundings come to it. */
static double gmem__scan_rounding(int64_t width) { return (double)(2 * width + 16) / 16777216.0; }

/* Where rows stand for others, what is summed may be so many times as large as the row that comes of it; where it is
 * more, the row is odd. */
#define GMEM__SCAN_CANCELLATION 4

/* `slack` of the products, relative to what is summed. */
static void gmem__scan_raise(const gmem__scan *scan, int64_t query, double slack) {
    const double most = GMEM__SCAN_CANCELLATION;
    if (scan->form)
        slack = most * (slack + scan->form->row_slack) +
                most * most * (scan->form->square_slack + gmem__scan_rounding(scan->width));
    scan->slack[query] = fmax(scan->slack[query], slack);
}

/* The queries of products by rows, (queries, step) with zeros behind, after what their products are to be multiplied
 * with: of int16 for rows of int8, otherwise of f32. */
static const void *gmem__scan_laid_out(const gmem__engine *engine) {
    return (const float *)engine->scratch + GMEM__SCAN_FEW;
}

static void gmem__scan_lay_out(const gmem__engine *engine, const gmem__scan *scan) {
    const int64_t step = gmem__scan_step(scan->width);
    float *factors = (float *)engine->scratch, *out = factors + GMEM__SCAN_FEW;
    memset(out, 0, (size_t)(gmem__scan_together(scan->count) * step) * sizeof *out);
    for (int64_t q = 0; q < scan->count; q++) {
        factors[q] = 1;
        for (int64_t i = 0; i < scan->width; i++)
            out[q * step + i] = gmem__scan_unit(scan, q, i);
    }
}

/* Adds to the slack what the queries' rounding changes, which is measured. */
static void gmem__scan_lay_out_i16(const gmem__engine *engine, const gmem__scan *scan) {
    const int64_t step = gmem__scan_step(scan->width);
    float *factors = (float *)engine->scratch;
    int16_t *out = (int16_t *)(void *)(factors + GMEM__SCAN_FEW);
    memset(out, 0, (size_t)(gmem__scan_together(scan->count) * step) * sizeof *out);
    for (int64_t q = 0; q < scan->count; q++) {
        float largest = 0;
        double change = 0;
        for (int64_t i = 0; i < scan->width; i++)
            largest = fmaxf(largest, fabsf(gmem__scan_unit(scan, q, i)));
        factors[q] = largest / 32767;
        for (int64_t i = 0; i < scan->width; i++) {
            const double unit = (double)gmem__scan_unit(scan, q, i), level = floor(unit / (double)factors[q] + 0.5);
            const double value = fmax(-32767, fmin(32767, level)), d = unit - (double)factors[q] * value;
            out[q * step + i] = (int16_t)value;
            change += d * d;
        }
        gmem__scan_raise(scan, q, 1.01 * sqrt(change) + gmem__scan_rounding(scan->width));
    }
}

/* As gmem__pack would, from columns: panels (count / nr, width, nr). */
static void gmem__scan_pack(const gmem__scan *scan, int64_t nr, float *panels) {
    memset(panels, 0, (size_t)(gmem__round_up(scan->count, nr) * scan->width) * sizeof *panels);
    for (int64_t q = 0; q < scan->count; q++) {
        float *column = panels + q / nr * nr * scan->width + q % nr;
        for (int64_t i = 0; i < scan->width; i++)
            column[i * nr] = gmem__scan_unit(scan, q, i);
    }
}

/* The kernel that finds candidates for many queries: int8 for rows of int8, which then stay as they are; of f32 for one
 * panel of queries, above which words of two bf16 take less of the cache; no wider than the queries need. Rows that
 * stand for others are short, and to decide one takes long: f32 leaves fewer. */
static const gmem__narrow *gmem__scan_narrow(const gmem__engine *engine, const gmem__scan *scan) {
    if (scan->form) return NULL;
    const gmem__narrow *wide = engine->f32 && scan->count <= engine->f32->nr ? engine->f32 : engine->bf16;
    const gmem__narrow *narrow = !scan->fill && scan->type == GMEM_I8 ? engine->int8 : wide;
    while (narrow && narrow->thinner && scan->count <= narrow->thinner->nr)
        narrow = narrow->thinner;
    return narrow;
}

static int64_t gmem__scan_words(const gmem__narrow *narrow, int64_t width) {
    return gmem__round_up(gmem__ceil_div(width, gmem__narrow_per_word(narrow)), GMEM__TILE_WORDS);
}

/* What the threads share then: the panels, the columns' scales. */
static int64_t gmem__scan_panel_words(const gmem__narrow *narrow, const gmem__scan *scan) {
    return gmem__scan_words(narrow, scan->width) * gmem__round_up(scan->count, narrow->nr);
}

static int gmem__scan_fits_narrow(const gmem__narrow *narrow, const gmem__scan *scan) {
    const int64_t strip = narrow->strips * narrow->mr * gmem__scan_words(narrow, scan->width);
    return strip <= GMEM__SCAN_SCORES && gmem__scan_panel_words(narrow, scan) + GMEM__NC <= GMEM__SHARED;
}

static int gmem__scan_choose(const gmem__engine *engine, const gmem__scan *scan) {
    const int64_t nr = gmem__engine_kernels(engine)->nr, fillable = GMEM__SCRATCH - GMEM__SCAN_FILLED;
    const gmem__narrow *narrow = gmem__scan_narrow(engine, scan);
    if (scan->fill && scan->width > fillable) return GMEM__SCAN_NONE;
    const int wide = scan->width > GMEM__SCAN_I8_WIDTH && !scan->fill && scan->type == GMEM_I8;
    const int64_t floats = GMEM__SCAN_FEW + gmem__scan_together(scan->count) * gmem__scan_step(scan->width);
    if (narrow && gmem__scan_fits_narrow(narrow, scan) && (wide || scan->count > GMEM__SCAN_FEW_WITH_NARROW))
        return GMEM__SCAN_NARROW;
    if (wide || scan->count > GMEM__SCAN_FEW)
        return gmem__round_up(scan->count, nr) * scan->width <= GMEM__SHARED ? GMEM__SCAN_GEMM : GMEM__SCAN_NONE;
    return floats <= GMEM__SHARED ? GMEM__SCAN_PRODUCTS : GMEM__SCAN_NONE;
}

/* The shared scratch of narrow scans. */
typedef struct gmem__scan_shared {
    uint32_t *panels;
    float *scales; /* int8: (GMEM__NC) */
} gmem__scan_shared;

static gmem__scan_shared gmem__scan_shared_of(const gmem__engine *engine, const gmem__narrow *narrow,
                                              const gmem__scan *scan) {
    gmem__scan_shared shared;
    shared.panels = (uint32_t *)engine->scratch;
    shared.scales = (float *)(void *)(shared.panels + gmem__scan_panel_words(narrow, scan));
    return shared;
}

/* Element i of a packed query. */
static double gmem__scan_packed(const gmem__narrow *narrow, const uint32_t *panels, const float *scales, int64_t words,
                                int64_t query, int64_t i) {
    const int64_t per_word = gmem__narrow_per_word(narrow), nr = narrow->nr;
    const uint32_t word = panels[(query / nr * words + i / per_word) * nr + query % nr];
    if (narrow->type == GMEM_F32) return (double)gmem__word_float(word);
    if (narrow->type == GMEM_BF16) return (double)gmem__bf16_to_f32((uint16_t)(word >> 16 * (i % 2)));
    const int value = (int)(word >> 8 * (i % 4) & 255);
    return (double)scales[query] * (narrow->offset || value < 128 ? value - narrow->offset : value - 256);
}

/* A value in its place in a word; int8 as `levels` of a scale. */
static uint32_t gmem__scan_word(const gmem__narrow *narrow, float value, float levels, int64_t i) {
    if (narrow->type == GMEM_F32) return gmem__float_word(value);
    if (narrow->type == GMEM_BF16) return (uint32_t)gmem__f32_to_bf16(value) << 16 * (i % 2);
    return ((uint32_t)((int)rintf(value * levels) + narrow->offset) & 255) << 8 * (i % 4);
}

/* A query as the kernel multiplies it; int8 divided by its scale. */
static void gmem__scan_pack_query(const gmem__narrow *narrow, const gmem__scan *scan, int64_t query, int64_t words,
                                  const gmem__scan_shared *shared) {
    uint32_t *panel = shared->panels + query / narrow->nr * words * narrow->nr + query % narrow->nr;
    const float levels = (float)gmem__narrow_levels(narrow);
    const int64_t per_word = gmem__narrow_per_word(narrow);
    float largest = 1e-30f;
    for (int64_t i = 0; i < scan->width; i++)
        largest = fmaxf(largest, fabsf(gmem__scan_unit(scan, query, i)));
    shared->scales[query] = largest / levels;
    for (int64_t i = 0; i < scan->width; i++)
        panel[i / per_word * narrow->nr] |=
            gmem__scan_word(narrow, gmem__scan_unit(scan, query, i), levels / largest, i);
}

/* Packs the queries, and adds to the slack what that and the rows' rounding change: the queries' part is measured, a
 * row's is below 2^-8 of it, the distance of half the last of bf16's 8 bits. */
static void gmem__scan_pack_narrow(const gmem__engine *engine, const gmem__narrow *narrow, const gmem__scan *scan) {
    const gmem__scan_shared shared = gmem__scan_shared_of(engine, narrow, scan);
    const int64_t words = gmem__scan_words(narrow, scan->width);
    const int exact = narrow->type == GMEM_F32 || (!scan->fill && (scan->type == GMEM_BF16 || scan->type == GMEM_I8));
    memset(shared.panels, 0, (size_t)gmem__scan_panel_words(narrow, scan) * sizeof *shared.panels);
    memset(shared.scales, 0, GMEM__NC * sizeof *shared.scales);
    for (int64_t q = 0; q < scan->count; q++) {
        double change = 0;
        gmem__scan_pack_query(narrow, scan, q, words, &shared);
        for (int64_t i = 0; i < scan->width; i++) {
            const double d = (double)gmem__scan_unit(scan, q, i) -
                             gmem__scan_packed(narrow, shared.panels, shared.scales, words, q, i);
            change += d * d;
        }
        gmem__scan_raise(scan, q,
                         1.01 * sqrt(change) + (exact ? 0 : 1.01 / 256) + 2 * gmem__scan_rounding(scan->width));
    }
}

GMEM__FN void gmem__cpu_scan_prepare(const gmem__engine *engine, gmem__scan *scan) {
    float *shared = (float *)engine->scratch;
    scan->how = gmem__scan_choose(engine, scan);
    if (scan->how == GMEM__SCAN_PRODUCTS)
        (!scan->fill && scan->type == GMEM_I8 ? gmem__scan_lay_out_i16 : gmem__scan_lay_out)(engine, scan);
    if (scan->how == GMEM__SCAN_GEMM) gmem__scan_pack(scan, gmem__engine_kernels(engine)->nr, shared);
    if (scan->how == GMEM__SCAN_NARROW) gmem__scan_pack_narrow(engine, gmem__scan_narrow(engine, scan), scan);
    for (int64_t q = 0; q < scan->count; q++)
        gmem__scan_raise(scan, q, gmem__scan_rounding(scan->width));
}

/* rows ------------------------------------------------------------------------------------------------------------ */

static gmem__scan_rows gmem__scan_rows_of(const gmem__scan_job *job, int64_t i, float *scratch) {
    const gmem__scan *scan = job->scan;
    gmem__scan_rows rows;
    rows.first = i * job->block;
    rows.count = gmem__min(job->block, scan->rows - rows.first);
    rows.thread = gmem__scratch_owner(job->engine, scratch);
    rows.type = scan->fill ? GMEM_F32 : scan->type;
    if (scan->fill) {
        rows.data = scratch + GMEM__SCAN_FILLED;
        rows.end = scratch + GMEM__SCAN_FILLED + rows.count * scan->width;
        scan->fill(scan->user, rows.first, rows.count, scratch + GMEM__SCAN_FILLED);
    } else {
        rows.data = (const char *)scan->data + rows.first * scan->width * (int64_t)gmem_type_bytes(scan->type);
        rows.end = (const char *)scan->data + scan->rows * scan->width * (int64_t)gmem_type_bytes(scan->type);
    }
    return rows;
}

static gmem__scan_block gmem__scan_block_of(const gmem__scan *scan, const gmem__scan_rows *rows, int64_t first) {
    gmem__scan_block block;
    memset(&block, 0, sizeof block);
    block.data = (const char *)rows->data + first * scan->width * (int64_t)gmem_type_bytes(rows->type);
    block.end = rows->end;
    block.type = rows->type;
    block.rows = gmem__min(GMEM__SCAN_ROWS, rows->count - first);
    block.row_stride = block.width = scan->width;
    return block;
}

/* squares (count) of rows from `first` on, in place to norms. Outside of a range in which f32 neither overflows nor
 * loses bits, NaN, and the row is odd. */
static void gmem__scan_norms(const gmem__scan *scan, const gmem__scan_rows *rows, int64_t first, int64_t count,
                             float *squares) {
    const float least = 1e-30f, most = 1e30f;
    float scales[GMEM__SCAN_ROWS];
    if (scan->scale) gmem_tensor_read_f32(scan->scale, rows->first + first, count, scales);
    for (int64_t r = 0; r < count; r++) {
        const float scale = scan->scale ? scales[r] : 1.0f, square = scale * scale * squares[r];
        if (square >= least && square <= most && scale > 0) {
            squares[r] = sqrtf(squares[r]);
        } else {
            squares[r] = (float)NAN;
            scan->odd(scan->user, rows->thread, rows->first + first + r);
        }
    }
}

/* The same of rows that stand for others. */
static void gmem__scan_form_norms(const gmem__scan_job *job, const gmem__scan_rows *rows, int64_t first, int64_t count,
                                  float *norms) {
    const gmem__scan_form *form = job->scan->form;
    const float mean = (float)form->mean, cancellation = GMEM__SCAN_CANCELLATION;
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.data = rows->data;
    weight.type = rows->type;
    weight.cols = weight.row_stride = job->scan->width;
    for (int64_t r = 0; r < count; r++) {
        float square, sum;
        job->kernels->form(&weight, first + r, form->quadratic, form->linear, &square, &sum);
        norms[r] = square + 2 * sum + mean * mean;
        if (!(sqrtf(square) + mean <= cancellation * sqrtf(norms[r]))) norms[r] = (float)NAN;
    }
    gmem__scan_norms(job->scan, rows, first, count, norms);
}

static void gmem__scan_offset(const float *offset, int64_t count, float *scores) {
    for (int64_t q = 0; q < count; q++)
        scores[q] += offset[q];
}

/* tasks ----------------------------------------------------------------------------------------------------------- */

/* products (count, GMEM__SCAN_ROWS) of rows from `first` on. */
static void gmem__scan_take_rows(const gmem__scan_job *job, const gmem__scan_rows *rows, int64_t first, int64_t count,
                                 const float *norms, const float *products) {
    const gmem__scan *scan = job->scan;
    const float *cuts = scan->cuts + rows->thread * scan->count, *factors = (const float *)job->engine->scratch;
    float bars[GMEM__SCAN_FEW];
    int32_t which[GMEM__SCAN_FEW * GMEM__SCAN_ROWS];
    for (int64_t q = 0; q < scan->count; q++)
        bars[q] = cuts[q] / factors[q];
    const int64_t found = job->kernels->above(products, GMEM__SCAN_ROWS, scan->count, count, bars, norms, which);
    for (int64_t i = 0; i < found; i++) {
        const int64_t q = which[i] / GMEM__SCAN_ROWS, r = which[i] % GMEM__SCAN_ROWS;
        scan->take(scan->user, rows->thread, rows->first + first + r, q, factors[q] * products[which[i]] / norms[r]);
    }
}

static void gmem__scan_products_task(const void *job_, int64_t i, float *scratch) {
    const gmem__scan_job *job = (const gmem__scan_job *)job_;
    const gmem__scan *scan = job->scan;
    const gmem__scan_rows rows = gmem__scan_rows_of(job, i, scratch);
    const int64_t step = gmem__scan_step(scan->width), together = gmem__scan_together(scan->count);
    float norms[GMEM__SCAN_ROWS], products[GMEM__SCAN_FEW * GMEM__SCAN_ROWS];
    for (int64_t first = 0; first < rows.count; first += GMEM__SCAN_ROWS) {
        gmem__scan_block block = gmem__scan_block_of(scan, &rows, first);
        block.query = gmem__scan_laid_out(job->engine);
        block.queries = together;
        block.query_step = step;
        block.products = products;
        block.squares = norms;
        job->kernels->scan(&block);
        if (scan->form) {
            gmem__scan_form_norms(job, &rows, first, block.rows, norms);
            for (int64_t q = 0; q < scan->count; q++)
                for (int64_t r = 0; r < block.rows; r++)
                    products[q * GMEM__SCAN_ROWS + r] += scan->form->offset[q];
        } else {
            gmem__scan_norms(scan, &rows, first, block.rows, norms);
        }
        gmem__scan_take_rows(job, &rows, first, block.rows, norms, products);
    }
}

/* scores (count, GMEM__NC) of the products of rows from `first` on with all queries. */
static void gmem__scan_take_scores(const gmem__scan_job *job, const gmem__scan_rows *rows, int64_t first, int64_t count,
                                   const float *norms, float *scores) {
    const gmem__scan *scan = job->scan;
    const float *cuts = scan->cuts + rows->thread * scan->count;
    enum { MOST = 32 }; /* rows whose scores are looked through at a time */
    int32_t which[MOST * GMEM__NC];
    for (int64_t done = 0; done < count; done += MOST, scores += MOST * GMEM__NC) {
        const int64_t some = gmem__min(MOST, count - done);
        for (int64_t r = 0; r < some && scan->form; r++)
            gmem__scan_offset(scan->form->offset, scan->count, scores + r * GMEM__NC);
        const int64_t found = job->kernels->above(scores, GMEM__NC, some, scan->count, norms + done, cuts, which);
        for (int64_t i = 0; i < found; i++) {
            const int64_t r = done + which[i] / GMEM__NC;
            scan->take(scan->user, rows->thread, rows->first + first + r, which[i] % GMEM__NC,
                       scores[which[i]] / norms[r]);
        }
    }
}

/* norms (count) of rows from `begin` on. */
static void gmem__scan_measure(const gmem__scan_job *job, const gmem__scan_rows *rows, int64_t begin, int64_t count,
                               float *norms) {
    for (int64_t first = begin; first < begin + count; first += GMEM__SCAN_ROWS) {
        gmem__scan_block block = gmem__scan_block_of(job->scan, rows, first);
        block.rows = gmem__min(block.rows, begin + count - first);
        if (job->scan->form) {
            gmem__scan_form_norms(job, rows, first, block.rows, norms + (first - begin));
            continue;
        }
        block.squares = norms + (first - begin);
        job->kernels->scan(&block);
        gmem__scan_norms(job->scan, rows, first, block.rows, norms + (first - begin));
    }
}

static void gmem__scan_gemm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__scan_job *job = (const gmem__scan_job *)job_;
    const gmem__scan *scan = job->scan;
    const gmem__scan_rows rows = gmem__scan_rows_of(job, i, scratch);
    float norms[GMEM__MC], *scores = scratch + GMEM__SCAN_SCORES;
    gmem__weight weight;
    gmem__gemm gemm;
    gmem__tile tile;
    memset(&weight, 0, sizeof weight);
    memset(&gemm, 0, sizeof gemm);
    weight.data = rows.data;
    weight.type = rows.type;
    weight.rows = rows.count;
    weight.cols = weight.row_stride = scan->width;
    gemm.weight = &weight;
    gemm.rows = rows.count;
    gemm.depth = scan->width;
    gemm.columns = scan->count;
    gemm.y = scores;
    gemm.y_stride = GMEM__NC;
    tile.row = tile.column = 0;
    tile.rows = rows.count;
    tile.columns = scan->count;
    job->kernels->gemm(&gemm, &tile, (const float *)job->engine->scratch, scratch);
    gmem__scan_measure(job, &rows, 0, rows.count, norms);
    gmem__scan_take_scores(job, &rows, 0, rows.count, norms, scores);
}

/* As many strips as the kernel takes at a time, against all panels. */
typedef struct gmem__scan_group {
    const gmem__scan_job *job;
    const gmem__scan_rows *rows;
    int64_t first, count; /* of the rows */
    uint32_t *strips;
    float *scores; /* (count, GMEM__NC) */
    float *norms;  /* (count) */
    int32_t *sums; /* (count) of int8 rows */
} gmem__scan_group;

/* The group's rows as strips, with their norms, and sums. */
static void gmem__scan_read(const gmem__scan_group *group, int64_t words) {
    const gmem__narrow *narrow = group->job->narrow;
    for (int64_t done = 0; done < group->count; done += narrow->mr) {
        gmem__scan_block block = gmem__scan_block_of(group->job->scan, group->rows, group->first + done);
        float sums[GMEM__SCAN_ROWS];
        block.rows = gmem__min(narrow->mr, group->count - done);
        block.squares = group->norms + done;
        block.products = narrow->type == GMEM_I8 ? sums : NULL;
        if (narrow->type != GMEM_F32) /* whose products take long enough to fetch all of the next group meanwhile */
            block.ahead = narrow->strips * narrow->mr * block.row_stride * (int64_t)gmem_type_bytes(block.type);
        group->job->kernels->scan_strip(narrow, &block, group->strips + done * words);
        for (int64_t r = 0; r < block.rows && block.products; r++)
            group->sums[done + r] = (int32_t)sums[r];
    }
    gmem__scan_norms(group->job->scan, group->rows, group->first, group->count, group->norms);
}

/* The scores, while the rows of the next group are fetched, as far as that was not done when these were read. */
static void gmem__scan_multiply(const gmem__scan_group *group, int64_t words) {
    const gmem__scan *scan = group->job->scan;
    const gmem__narrow *narrow = group->job->narrow;
    const gmem__scan_shared shared = gmem__scan_shared_of(group->job->engine, narrow, scan);
    const int64_t longest = gmem__ceil_div(words, gmem__ceil_div(words, narrow->block));
    const int64_t most = gmem__round_up(longest, GMEM__TILE_WORDS);
    const int64_t row_bytes = scan->width * (int64_t)gmem_type_bytes(group->rows->type);
    const int64_t left = gmem__min(group->rows->count - group->first - group->count, narrow->strips * narrow->mr);
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strips = gmem__ceil_div(group->count, narrow->mr);
    block.strip_step = words * narrow->mr;
    block.panel_count = gmem__ceil_div(scan->count, narrow->nr);
    block.panel_step = words * narrow->nr;
    block.product = group->scores;
    block.product_step = GMEM__NC;
    block.next = (const char *)group->rows->data + (group->first + group->count) * row_bytes;
    block.next_strips = 1;
    for (int64_t word = 0; word < words; word += most, block.next += block.next_bytes) {
        block.words = gmem__min(most, words - word);
        block.weights = group->strips + word * narrow->mr;
        block.panels = shared.panels + word * narrow->nr;
        block.first = word == 0;
        block.next_bytes = left * row_bytes * block.words / words;
        narrow->multiply(&block);
    }
    if (narrow->type == GMEM_I8)
        group->job->kernels->narrow()->dequantise(group->scores, GMEM__NC, group->count,
                                                  gmem__round_up(scan->count, 16), narrow->offset, group->sums, NULL,
                                                  shared.scales);
}

static void gmem__scan_narrow_task(const void *job_, int64_t i, float *scratch) {
    const gmem__scan_job *job = (const gmem__scan_job *)job_;
    const gmem__narrow *narrow = job->narrow;
    const gmem__scan_rows rows = gmem__scan_rows_of(job, i, scratch);
    const int64_t together = narrow->strips * narrow->mr;
    const int64_t words = gmem__scan_words(narrow, job->scan->width);
    float norms[GMEM__SCAN_ROWS];
    int32_t sums[GMEM__SCAN_ROWS];
    gmem__scan_group group = {job, &rows, 0, 0, (uint32_t *)(void *)scratch, scratch + GMEM__SCAN_SCORES, norms, sums};
    if (narrow->begin) narrow->begin();
    for (; group.first < rows.count; group.first += together) {
        group.count = gmem__min(together, rows.count - group.first);
        gmem__scan_read(&group, words);
        gmem__scan_multiply(&group, words);
        gmem__scan_take_scores(job, &rows, group.first, group.count, norms, group.scores);
    }
    if (narrow->end) narrow->end();
}

static void gmem__scan_odd_task(const void *job_, int64_t i, float *scratch) {
    const gmem__scan_job *job = (const gmem__scan_job *)job_;
    job->scan->odd(job->scan->user, gmem__scratch_owner(job->engine, scratch), i);
}

GMEM__FN void gmem__cpu_scan(const gmem__engine *engine, const gmem__scan *scan) {
    const int64_t row_bytes = scan->width * (scan->fill ? 4 : (int64_t)gmem_type_bytes(scan->type));
    const int64_t fillable = (GMEM__SCRATCH - GMEM__SCAN_FILLED) / scan->width;
    void (*task)(const void *job, int64_t i, float *scratch) = gmem__scan_gemm_task;
    gmem__scan_job job;
    job.engine = engine;
    job.kernels = gmem__engine_kernels(engine);
    job.scan = scan;
    job.narrow = gmem__scan_narrow(engine, scan);
    job.block = GMEM__MC / job.kernels->mr * job.kernels->mr;
    if (scan->how == GMEM__SCAN_NARROW) {
        task = gmem__scan_narrow_task;
        job.block = gmem__max(1, GMEM__SCAN_BYTES / row_bytes / GMEM__MC) * GMEM__MC; /* whole strips of every kernel */
    }
    if (scan->how == GMEM__SCAN_PRODUCTS) {
        task = gmem__scan_products_task;
        job.block = gmem__max(GMEM__SCAN_ROWS, GMEM__SCAN_BYTES / row_bytes);
    }
    if (scan->how == GMEM__SCAN_NONE) {
        task = gmem__scan_odd_task;
        job.block = 1;
    } else if (scan->fill) {
        job.block = gmem__min(job.block, fillable);
    }
    gmem__run_tasks(engine, gmem__ceil_div(scan->rows, job.block), task, &job);
}

#undef GMEM__SCAN_FEW
#undef GMEM__SCAN_FEW_WITH_NARROW
#undef GMEM__SCAN_BYTES
#undef GMEM__SCAN_CANCELLATION
#undef GMEM__SCAN_SCORES
#undef GMEM__SCAN_FILLED
