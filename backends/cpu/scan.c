/* A search's scan: rows of a bank against queries, cut into tasks over the rows. A few queries wait for memory and are
 * multiplied as the rows come; many are a matrix product, tile by tile, whose scores never leave the cache. */
#include "cpu.h"

#include <math.h>

enum { GMEM__SCAN_NONE, GMEM__SCAN_PRODUCTS, GMEM__SCAN_GEMM };

/* Up to so many queries are taken as the rows come. */
#define GMEM__SCAN_FEW 16
/* Rows of a task then, in bytes. */
#define GMEM__SCAN_BYTES (512 * 1024)

/* A task's scratch in floats: what the GEMM's kernel uses, scores (GMEM__MC, GMEM__NC), rows that are filled. */
#define GMEM__SCAN_SCORES (144 * 1024)
#define GMEM__SCAN_FILLED (GMEM__SCAN_SCORES + GMEM__MC * GMEM__NC)

typedef struct gmem__scan_job {
    const gmem__engine *engine;
    const gmem__kernels *kernels;
    const gmem__scan *scan;
    int64_t block; /* rows of a task */
} gmem__scan_job;

/* Rows of a task where they can be read, with what divides their products. */
typedef struct gmem__scan_rows {
    const void *data;
    gmem_type type;
    int64_t first, count;
    float norms[GMEM__MC]; /* NaN: odd */
    int thread;
} gmem__scan_rows;

/* queries --------------------------------------------------------------------------------------------------------- */

/* Elements of a query as the products by rows want it. */
static int64_t gmem__scan_step(int64_t width) { return gmem__round_up(width, 16); }

static int64_t gmem__scan_together(int64_t count) { return count == 1 ? 1 : count <= 4 ? 4 : gmem__round_up(count, 8); }

static float gmem__scan_unit(const gmem__scan *scan, int64_t query, int64_t i) {
    return (float)((double)scan->queries[query * scan->width + i] / scan->norms[query]);
}

/* (queries, step), zeros behind. */
static void gmem__scan_lay_out(const gmem__scan *scan, float *out) {
    const int64_t step = gmem__scan_step(scan->width);
    memset(out, 0, (size_t)(gmem__scan_together(scan->count) * step) * sizeof *out);
    for (int64_t q = 0; q < scan->count; q++)
        for (int64_t i = 0; i < scan->width; i++)
            out[q * step + i] = gmem__scan_unit(scan, q, i);
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

/* Sums of `width` products in f32, in any order, are wrong by less than width 2^-24 of |row| |query|, a norm by half of
 * that (Higham, Accuracy and Stability of Numerical Algorithms, 3.5); a few roundings come to it. */
static double gmem__scan_rounding(int64_t width) { return (double)(2 * width + 16) / 16777216.0; }

static int gmem__scan_choose(const gmem__engine *engine, const gmem__scan *scan) {
    const int64_t nr = gmem__engine_kernels(engine)->nr, fillable = GMEM__SCRATCH - GMEM__SCAN_FILLED;
    if (scan->fill && scan->width > fillable) return GMEM__SCAN_NONE;
    if (scan->count > GMEM__SCAN_FEW && gmem__round_up(scan->count, nr) * scan->width <= GMEM__SHARED)
        return GMEM__SCAN_GEMM;
    return gmem__scan_together(scan->count) * gmem__scan_step(scan->width) <= GMEM__SHARED ? GMEM__SCAN_PRODUCTS
                                                                                           : GMEM__SCAN_NONE;
}

GMEM__FN void gmem__cpu_scan_prepare(const gmem__engine *engine, gmem__scan *scan) {
    float *shared = (float *)engine->scratch;
    scan->how = gmem__scan_choose(engine, scan);
    if (scan->how == GMEM__SCAN_PRODUCTS) gmem__scan_lay_out(scan, shared);
    if (scan->how == GMEM__SCAN_GEMM) gmem__scan_pack(scan, gmem__engine_kernels(engine)->nr, shared);
    for (int64_t q = 0; q < scan->count; q++)
        scan->slack[q] = fmax(scan->slack[q], gmem__scan_rounding(scan->width));
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
        scan->fill(scan->user, rows.first, rows.count, scratch + GMEM__SCAN_FILLED);
    } else {
        rows.data = (const char *)scan->data + rows.first * scan->width * (int64_t)gmem_type_bytes(scan->type);
    }
    return rows;
}

static gmem__scan_block gmem__scan_block_of(const gmem__scan *scan, const gmem__scan_rows *rows, int64_t first) {
    gmem__scan_block block;
    memset(&block, 0, sizeof block);
    block.data = (const char *)rows->data + first * scan->width * (int64_t)gmem_type_bytes(rows->type);
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

/* tasks ----------------------------------------------------------------------------------------------------------- */

/* products (count, GMEM__SCAN_ROWS) of rows from `first` on. */
static void gmem__scan_take_rows(const gmem__scan_job *job, const gmem__scan_rows *rows, int64_t first, int64_t count,
                                 const float *norms, const float *products) {
    const gmem__scan *scan = job->scan;
    const float *cuts = scan->cuts + rows->thread * scan->count;
    int32_t which[GMEM__SCAN_ROWS];
    for (int64_t q = 0; q < scan->count; q++, products += GMEM__SCAN_ROWS) {
        const int64_t found = job->kernels->above(products, norms, cuts[q], count, which);
        for (int64_t i = 0; i < found; i++)
            scan->take(scan->user, rows->thread, rows->first + first + which[i], q,
                       products[which[i]] / norms[which[i]]);
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
        block.query = (const float *)job->engine->scratch;
        block.queries = together;
        block.query_step = step;
        block.products = products;
        block.squares = norms;
        job->kernels->scan(&block);
        gmem__scan_norms(scan, &rows, first, block.rows, norms);
        gmem__scan_take_rows(job, &rows, first, block.rows, norms, products);
    }
}

/* scores (rows, GMEM__NC) of the products with all queries. */
static void gmem__scan_take_scores(const gmem__scan_job *job, const gmem__scan_rows *rows, const float *norms,
                                   const float *scores) {
    const gmem__scan *scan = job->scan;
    const float *cuts = scan->cuts + rows->thread * scan->count;
    int32_t which[GMEM__NC];
    for (int64_t r = 0; r < rows->count; r++, scores += GMEM__NC) {
        const int64_t found = job->kernels->above(scores, cuts, norms[r], scan->count, which);
        for (int64_t i = 0; i < found; i++)
            scan->take(scan->user, rows->thread, rows->first + r, which[i], scores[which[i]] / norms[r]);
    }
}

static void gmem__scan_measure(const gmem__scan_job *job, const gmem__scan_rows *rows, float *norms) {
    for (int64_t first = 0; first < rows->count; first += GMEM__SCAN_ROWS) {
        gmem__scan_block block = gmem__scan_block_of(job->scan, rows, first);
        block.squares = norms + first;
        job->kernels->scan(&block);
        gmem__scan_norms(job->scan, rows, first, block.rows, norms + first);
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
    gmem__scan_measure(job, &rows, norms);
    gmem__scan_take_scores(job, &rows, norms, scores);
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
    job.block = GMEM__MC / job.kernels->mr * job.kernels->mr;
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
#undef GMEM__SCAN_BYTES
#undef GMEM__SCAN_SCORES
#undef GMEM__SCAN_FILLED
