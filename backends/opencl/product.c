/* Matrix products and convolutions on a stream: which way each goes (own kernels for GPUs or for processors, or
 * CLBlast), and the launches of product.cl that it takes. What is packed on the way is cut into parts, so that scratch
 * stays small whatever the product. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <math.h>
#include <stdio.h>

#define GMEM__PRODUCT_SCRATCH  ((int64_t)64 << 20) /* bytes of one scratch buffer, at most */
#define GMEM__PANELS_OF_UNIT   ((int64_t)1 << 20)  /* what a processor's core should find in its caches */
#define GMEM__PACK_DEPTH       72                  /* of a work-item of pack_panels: PACK_DEPTH of product.cl */
#define GMEM__BLAS_COLUMNS     32                  /* of a part for CLBlast, at least */
#define GMEM__CLBLAST_PRODUCTS ((int64_t)1 << 24)  /* from so many on CLBlast is worth its launches */

/* tiles ----------------------------------------------------------------------------------------------------------- */

GMEM__FN gmem__cl_tiles gmem__product_tiles(const gmem__cl_limits *limits) {
    static const gmem__cl_tiles wide = {8, 4, 8, 16, 16, 12, 2, 16, 256, 384}; /* for 32 vector registers */
    static const gmem__cl_tiles narrow = {8, 4, 8, 16, 16, 6, 2, 8, 256, 384};
    static const gmem__cl_tiles small = {8, 4, 8, 16, 16, 4, 1, 4, 64, 64}; /* product_tile is of no use */
    gmem__cl_tiles tiles = !limits->is_cpu ? small : limits->vector_width >= 16 ? wide : narrow;
    if (limits->is_cpu && limits->vector_width < 8) tiles.tile_width = 4;
    while (tiles.group_columns > 1 && !gmem__product_tiles_fit(&tiles, limits))
        tiles.group_columns /= 2;
    return tiles;
}

GMEM__FN int gmem__product_tiles_fit(const gmem__cl_tiles *tiles, const gmem__cl_limits *limits) {
    const int64_t rows = (int64_t)tiles->group_rows * tiles->item_rows;
    const int64_t columns = (int64_t)tiles->group_columns * tiles->item_columns;
    const int panel = tiles->tile_vectors * tiles->tile_width;
    const int good_group = tiles->item_rows >= 2 && tiles->item_rows <= 16 && tiles->item_rows % 2 == 0 &&
                           tiles->item_columns >= 1 && tiles->item_columns <= 16 && tiles->group_rows >= 1 &&
                           tiles->group_columns >= 1 && tiles->group_depth >= 2 && tiles->group_depth % 2 == 0 &&
                           tiles->group_depth <= 64 &&
                           (int64_t)tiles->group_rows * tiles->group_columns <= limits->work_group &&
                           tiles->group_depth * (rows + 1 + columns) * 4 <= limits->local_memory;
    const int good_rows =
        tiles->tile_rows == 4 || tiles->tile_rows == 6 || tiles->tile_rows == 8 || tiles->tile_rows == 12;
    const int good_panel = (tiles->tile_vectors == 1 || tiles->tile_vectors == 2 || tiles->tile_vectors == 4) &&
                           (tiles->tile_width == 4 || tiles->tile_width == 8 || tiles->tile_width == 16);
    return good_group && good_rows && good_panel && tiles->tile_columns >= panel && tiles->tile_columns <= 1024 &&
           tiles->tile_columns % panel == 0 && tiles->tile_depth >= 16 && tiles->tile_depth <= 2048;
}

GMEM__FN const char *gmem__product_options(const gmem__cl_tiles *tiles, char *out, size_t capacity) {
    snprintf(out, capacity,
             "-DITEM_ROWS=%d -DITEM_COLUMNS=%d -DGROUP_ROWS=%d -DGROUP_COLUMNS=%d -DGROUP_DEPTH=%d "
             "-DTILE_ROWS=%d -DTILE_VECTORS=%d -DTILE_WIDTH=%d -DTILE_COLUMNS=%d -DTILE_DEPTH=%d",
             tiles->item_rows, tiles->item_columns, tiles->group_rows, tiles->group_columns, tiles->group_depth,
             tiles->tile_rows, tiles->tile_vectors, tiles->tile_width, tiles->tile_columns, tiles->tile_depth);
    return out;
}

/* the choice ------------------------------------------------------------------------------------------------------ */

/* How far apart two shapes are: the factors between their sizes, as logarithms. */
static double gmem__product_distance(const gmem__cl_product *product, int64_t rows, int64_t depth, int64_t columns) {
    return fabs(log((double)product->rows / (double)rows)) + fabs(log((double)product->depth / (double)depth)) +
           fabs(log((double)product->columns / (double)columns));
}

static gmem__cl_way gmem__product_default(const struct gmem__device *device, const gmem__cl_product *product) {
    const int plain = product->a_type == GMEM_F32 && product->compute == GMEM_COMPUTE_F32 && !product->conv;
    const double products = (double)product->rows * (double)product->depth * (double)product->columns;
    if (device->found.limits.is_cpu) return GMEM__CL_WAY_TILE;
    return plain && device->library.has_clblast && products >= (double)GMEM__CLBLAST_PRODUCTS ? GMEM__CL_WAY_CLBLAST
                                                                                              : GMEM__CL_WAY_OWN;
}

/* Whether `product_f16` is there for this one. */
static int gmem__product_in_f16(const struct gmem__device *device, gmem_compute compute) {
    return device->f16 != GMEM__CL_F16_NONE && compute == GMEM_COMPUTE_F16;
}

GMEM__FN gmem__cl_way gmem__product_way(const struct gmem__device *device, const gmem__cl_product *product) {
    const gmem__cl_tuning *tuning = &device->tuning;
    gmem__cl_way way = tuning->way;
    double nearest = HUGE_VAL;
    if (gmem__product_in_f16(device, product->compute)) return GMEM__CL_WAY_OWN; /* tuning measures f32 */
    for (int i = 0; i < tuning->shape_count; i++) {
        const double distance =
            gmem__product_distance(product, tuning->shapes[i].rows, tuning->shapes[i].depth, tuning->shapes[i].columns);
        if (distance < nearest) nearest = distance, way = tuning->shapes[i].way;
    }
    return way == GMEM__CL_WAY_AUTO ? gmem__product_default(device, product) : way;
}

/* parts and arguments --------------------------------------------------------------------------------------------- */

/* A product with what all its launches need, and the part of it that they are about. */
typedef struct gmem__cl_job {
    struct gmem__stream *stream;
    const gmem__cl_product *product;
    const gmem__conv *conv; /* NULL where B is a matrix, as it is for filters of one pixel */
    gmem_compute compute;
    gmem__cl_mem largest; /* (batch, columns) of column_scales; NULL: none */
    int64_t first_batch, batch, first_column, columns;
} gmem__cl_job;

static int64_t gmem__job_out_rows(const gmem__cl_job *job) {
    return job->product->activation == GMEM__ACT_SWIGLU ? job->product->rows / 2 : job->product->rows;
}

static void gmem__launch_place(gmem__cl_launch *launch, gmem__cl_place place, int64_t size, int64_t elements) {
    gmem__launch_buffer(launch, place.memory, place.offset / size + elements);
}

/* An address that may be NULL, or so many floats behind it. */
static void gmem__launch_floats(gmem__cl_launch *launch, const float *address, int64_t floats) {
    gmem__launch_pointer(launch, address ? address + floats : NULL, sizeof(float));
}

/* A buffer that may be missing, and a kernel that does not look at it then. */
static void gmem__launch_optional(gmem__cl_launch *launch, gmem__cl_mem memory, int64_t elements) {
    if (memory)
        gmem__launch_buffer(launch, memory, elements);
    else
        gmem__launch_pointer(launch, NULL, sizeof(float));
}

/* WEIGHT_PARAMETERS */
static void gmem__launch_weight(gmem__cl_launch *launch, const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    gmem__launch_place(launch, p->a, (int64_t)gmem_type_bytes(p->a_type), job->first_batch * p->a_stride);
    gmem__launch_int(launch, p->a_type);
    gmem__launch_int(launch, p->a_transposed);
    gmem__launch_int(launch, p->a_ld);
    gmem__launch_int(launch, p->a_stride);
    gmem__launch_pointer(launch, p->a_scale, sizeof(float));
    gmem__launch_int(launch, job->compute);
    gmem__launch_int(launch, p->rows);
    gmem__launch_int(launch, p->depth);
}

/* COLUMN_PARAMETERS */
static void gmem__launch_columns(gmem__cl_launch *launch, const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    const gmem__conv *conv = job->conv;
    gmem__launch_place(launch, p->b, sizeof(float), job->first_batch * p->b_stride);
    gmem__launch_int(launch, p->b_ld);
    gmem__launch_int(launch, p->b_stride);
    gmem__launch_int(launch, conv ? conv->kernel : 0);
    gmem__launch_int(launch, conv ? conv->stride : 0);
    gmem__launch_int(launch, conv ? conv->upsample : 0);
    gmem__launch_int(launch, conv ? conv->height : 0);
    gmem__launch_int(launch, conv ? conv->width : 0);
    gmem__launch_int(launch, conv ? (conv->width << conv->upsample) / conv->stride : 0);
    gmem__launch_optional(launch, job->largest, job->first_batch * p->columns);
    gmem__launch_int(launch, p->columns);
}

/* EPILOGUE_PARAMETERS */
static void gmem__launch_epilogue(gmem__cl_launch *launch, const gmem__cl_job *job) {
    enum { HAS_BIAS = 1, HAS_GATE = 2, HAS_RESIDUAL = 4 };
    const gmem__cl_product *p = job->product;
    const int64_t first = job->first_batch * p->c_stride + job->first_column;
    const int has_residual = p->residual || p->adds;
    gmem__launch_int(launch, (p->bias ? HAS_BIAS : 0) | (p->gate ? HAS_GATE : 0) | (has_residual ? HAS_RESIDUAL : 0));
    gmem__launch_int(launch, p->activation);
    gmem__launch_float(launch, p->alpha);
    gmem__launch_floats(launch, p->bias, 0);
    gmem__launch_floats(launch, p->gate, 0);
    gmem__launch_int(launch, p->gate_stride);
    gmem__launch_int(launch, p->tokens);
    gmem__launch_int(launch, job->first_column);
    if (p->adds)
        gmem__launch_place(launch, p->c, sizeof(float), first);
    else
        gmem__launch_floats(launch, p->residual, first);
    gmem__launch_int(launch, p->adds ? p->c_ld : p->residual_ld);
    gmem__launch_place(launch, p->c, sizeof(float), first);
    gmem__launch_int(launch, p->c_ld);
    gmem__launch_int(launch, p->c_stride);
}

static void gmem__launch_run3(gmem__cl_launch *launch, int64_t x, int64_t y, int64_t z, int64_t local_x,
                              int64_t local_y) {
    const int64_t global[3] = {x, y, z}, local[3] = {local_x, local_y, 1};
    gmem__launch_run(launch, 3, global, local);
}

/* Int8 alone: what each column of B is divided by. */
static gmem__cl_mem gmem__job_largest(const gmem__cl_job *job) {
    enum { WIDTH = 16, HEIGHT = 8 };
    const gmem__cl_product *p = job->product;
    gmem__cl_mem memory = gmem__stream_scratch(job->stream, GMEM__CL_SCRATCH_SCALES, p->batch * p->columns * 4);
    if (!memory) return NULL;
    gmem__cl_launch launch = gmem__launch(job->stream, GMEM__CL_column_scales);
    gmem__launch_place(&launch, p->b, sizeof(float), 0);
    gmem__launch_int(&launch, p->b_ld);
    gmem__launch_int(&launch, p->b_stride);
    gmem__launch_int(&launch, p->depth);
    gmem__launch_int(&launch, p->columns);
    gmem__launch_buffer(&launch, memory, 0);
    gmem__launch_local(&launch, WIDTH * HEIGHT * sizeof(float));
    gmem__launch_run3(&launch, p->columns, HEIGHT, p->batch, WIDTH, HEIGHT);
    return memory;
}

/* Runs `part` on as many columns of all the batch, or of as many of it with all columns, as have `bytes` bytes for
 * each; whole multiples of `step` columns where there are more. */
static void gmem__job_parts(gmem__cl_job *job, int64_t column_bytes, int64_t bytes, int64_t step,
                            void (*part)(const gmem__cl_job *job)) {
    const gmem__cl_product *p = job->product;
    const int64_t fitting = gmem__max(1, bytes / column_bytes);
    const int64_t columns = fitting >= p->columns ? p->columns : gmem__max(step, fitting / step * step);
    const int64_t batch = gmem__max(1, fitting / gmem__round_up(columns, step));
    for (job->first_batch = 0; job->first_batch < p->batch; job->first_batch += batch)
        for (job->first_column = 0; job->first_column < p->columns; job->first_column += columns) {
            job->batch = gmem__min(batch, p->batch - job->first_batch);
            job->columns = gmem__min(columns, p->columns - job->first_column);
            part(job);
        }
}

static int64_t gmem__job_scratch(const gmem__cl_job *job) {
    return gmem__min(GMEM__PRODUCT_SCRATCH, job->stream->device->found.limits.largest);
}

/* The epilogue of sums (batch, rows, columns) of this part. */
static void gmem__job_finish(const gmem__cl_job *job, gmem__cl_mem sums) {
    if (!gmem__stream_ok(job->stream)) return;
    gmem__cl_launch launch = gmem__launch(job->stream, GMEM__CL_finish_product);
    gmem__launch_buffer(&launch, sums, 0);
    gmem__launch_int(&launch, job->product->rows * job->columns);
    gmem__launch_int(&launch, job->product->rows);
    gmem__launch_int(&launch, job->columns);
    gmem__launch_epilogue(&launch, job);
    gmem__launch_run3(&launch, job->columns, gmem__job_out_rows(job), job->batch, 16, 4);
}

/* the `product` kernels ------------------------------------------------------------------------------------------- */

static void gmem__product_own(const gmem__cl_job *job) {
    const struct gmem__device *device = job->stream->device;
    const gmem__cl_tiles *tiles = &device->tuning.tiles;
    const int64_t item_rows = job->product->activation == GMEM__ACT_SWIGLU ? tiles->item_rows / 2 : tiles->item_rows;
    gmem__cl_launch launch =
        gmem__launch(job->stream, gmem__product_in_f16(device, job->compute) ? GMEM__CL_product_f16 : GMEM__CL_product);
    gmem__launch_weight(&launch, job);
    gmem__launch_columns(&launch, job);
    gmem__launch_epilogue(&launch, job);
    gmem__launch_run3(&launch, gmem__ceil_div(job->columns, tiles->item_columns),
                      gmem__ceil_div(gmem__job_out_rows(job), item_rows), job->batch, tiles->group_columns,
                      tiles->group_rows);
}

/* the `product_tile` kernel --------------------------------------------------------------------------------------- */

/* Columns of a work-item: as many as its caches like, fewer where that leaves cores without work. */
static int64_t gmem__tile_item_columns(const gmem__cl_job *job, int64_t row_items, int64_t panel) {
    const struct gmem__device *device = job->stream->device;
    int64_t columns = device->tuning.tiles.tile_columns;
    while (columns >= 4 * panel && columns % (2 * panel) == 0 &&
           row_items * gmem__ceil_div(job->columns, columns) * job->batch < 8 * device->found.limits.units)
        columns /= 2;
    return columns;
}

static void gmem__product_tile(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    const gmem__cl_tiles *tiles = &job->stream->device->tuning.tiles;
    const int64_t panel = tiles->tile_vectors * tiles->tile_width, panels = gmem__ceil_div(job->columns, panel);
    const int64_t rows = p->activation == GMEM__ACT_SWIGLU ? tiles->tile_rows / 2 : tiles->tile_rows;
    const int64_t row_items = gmem__ceil_div(gmem__job_out_rows(job), rows);
    const int64_t item_columns = gmem__tile_item_columns(job, row_items, panel);
    gmem__cl_mem packed = gmem__stream_scratch(job->stream, GMEM__CL_SCRATCH_COLUMNS,
                                               job->batch * panels * panel * p->depth * (int64_t)sizeof(float));
    if (!packed) return;
    gmem__cl_launch pack = gmem__launch(job->stream, GMEM__CL_pack_panels);
    gmem__launch_columns(&pack, job);
    gmem__launch_int(&pack, job->compute);
    gmem__launch_int(&pack, p->depth);
    gmem__launch_int(&pack, job->first_column);
    gmem__launch_int(&pack, job->columns);
    gmem__launch_buffer(&pack, packed, 0);
    gmem__launch_run3(&pack, panels, gmem__ceil_div(p->depth, GMEM__PACK_DEPTH), job->batch, 1, 1);
    gmem__cl_launch launch = gmem__launch(job->stream, GMEM__CL_product_tile);
    gmem__launch_weight(&launch, job);
    gmem__launch_buffer(&launch, packed, 0);
    gmem__launch_int(&launch, job->columns);
    gmem__launch_int(&launch, item_columns);
    gmem__launch_epilogue(&launch, job);
    gmem__launch_run3(&launch, row_items, gmem__ceil_div(job->columns, item_columns), job->batch, 1, 1);
}

/* CLBlast --------------------------------------------------------------------------------------------------------- */

/* An operand as CLBlast wants it. */
typedef struct gmem__blas_matrix {
    gmem__cl_mem memory;
    size_t at, ld, stride; /* floats */
} gmem__blas_matrix;

static gmem__blas_matrix gmem__blas_of(gmem__cl_mem memory, int64_t at, int64_t ld, int64_t stride) {
    gmem__blas_matrix matrix;
    matrix.memory = memory;
    matrix.at = (size_t)at;
    matrix.ld = (size_t)ld;
    matrix.stride = (size_t)stride;
    return matrix;
}

static int gmem__blas_keeps_rows(const gmem__cl_job *job) {
    return job->product->a_type == GMEM_F32 && job->compute == GMEM_COMPUTE_F32;
}

static int gmem__blas_keeps_columns(const gmem__cl_job *job) { return !job->conv && job->compute == GMEM_COMPUTE_F32; }

/* The result needs nothing more. */
static int gmem__blas_keeps_result(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    return !p->bias && !p->gate && !p->residual && !p->adds && p->activation == GMEM__ACT_NONE;
}

static gmem__blas_matrix gmem__blas_rows(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    if (gmem__blas_keeps_rows(job))
        return gmem__blas_of(p->a.memory, p->a.offset / 4 + job->first_batch * p->a_stride, p->a_ld, p->a_stride);
    gmem__cl_mem memory = gmem__stream_scratch(job->stream, GMEM__CL_SCRATCH_ROWS, job->batch * p->rows * p->depth * 4);
    if (memory) {
        gmem__cl_launch launch = gmem__launch(job->stream, GMEM__CL_pack_rows);
        gmem__launch_weight(&launch, job);
        gmem__launch_buffer(&launch, memory, 0);
        gmem__launch_run3(&launch, p->depth, p->rows, job->batch, 16, 4);
    }
    return gmem__blas_of(memory, 0, p->depth, p->rows * p->depth);
}

static gmem__blas_matrix gmem__blas_columns(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    if (gmem__blas_keeps_columns(job))
        return gmem__blas_of(p->b.memory, p->b.offset / 4 + job->first_batch * p->b_stride + job->first_column, p->b_ld,
                             p->b_stride);
    gmem__cl_mem memory =
        gmem__stream_scratch(job->stream, GMEM__CL_SCRATCH_COLUMNS, job->batch * p->depth * job->columns * 4);
    if (memory) {
        gmem__cl_launch launch = gmem__launch(job->stream, GMEM__CL_pack_columns);
        gmem__launch_columns(&launch, job);
        gmem__launch_int(&launch, job->compute);
        gmem__launch_int(&launch, p->depth);
        gmem__launch_int(&launch, job->first_column);
        gmem__launch_int(&launch, job->columns);
        gmem__launch_buffer(&launch, memory, 0);
        gmem__launch_run3(&launch, job->columns, p->depth, job->batch, 16, 4);
    }
    return gmem__blas_of(memory, 0, job->columns, p->depth * job->columns);
}

static gmem__blas_matrix gmem__blas_result(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    if (gmem__blas_keeps_result(job))
        return gmem__blas_of(p->c.memory, p->c.offset / 4 + job->first_batch * p->c_stride + job->first_column, p->c_ld,
                             p->c_stride);
    gmem__cl_mem memory =
        gmem__stream_scratch(job->stream, GMEM__CL_SCRATCH_PRODUCT, job->batch * p->rows * job->columns * 4);
    return gmem__blas_of(memory, 0, job->columns, p->rows * job->columns);
}

static void gmem__blas_multiply(const gmem__cl_job *job, const gmem__blas_matrix *a, const gmem__blas_matrix *b,
                                const gmem__blas_matrix *c) {
    const gmem__cl_product *p = job->product;
    const gmem__cl_api *api = &job->stream->device->library.api;
    const int turned = p->a_transposed && gmem__blas_keeps_rows(job);
    const int a_turn = turned ? GMEM__CLBLAST_TRANSPOSE : GMEM__CLBLAST_NO_TRANSPOSE;
    const float alpha = gmem__blas_keeps_result(job) ? p->alpha : 1;
    const size_t rows = (size_t)p->rows, columns = (size_t)job->columns, depth = (size_t)p->depth;
    gmem__cl_queue *queue = &job->stream->queue;
    if (job->batch == 1)
        gmem__stream_check(job->stream, "CLBlastSgemm",
                           api->CLBlastSgemm(GMEM__CLBLAST_ROW_MAJOR, a_turn, GMEM__CLBLAST_NO_TRANSPOSE, rows, columns,
                                             depth, alpha, a->memory, a->at, a->ld, b->memory, b->at, b->ld, 0,
                                             c->memory, c->at, c->ld, queue, NULL));
    else
        gmem__stream_check(job->stream, "CLBlastSgemmStridedBatched",
                           api->CLBlastSgemmStridedBatched(GMEM__CLBLAST_ROW_MAJOR, a_turn, GMEM__CLBLAST_NO_TRANSPOSE,
                                                           rows, columns, depth, alpha, a->memory, a->at, a->ld,
                                                           a->stride, b->memory, b->at, b->ld, b->stride, 0, c->memory,
                                                           c->at, c->ld, c->stride, (size_t)job->batch, queue, NULL));
}

static void gmem__product_blas(const gmem__cl_job *job) {
    const gmem__blas_matrix a = gmem__blas_rows(job), b = gmem__blas_columns(job), c = gmem__blas_result(job);
    if (!gmem__stream_ok(job->stream)) return;
    gmem__blas_multiply(job, &a, &b, &c);
    if (!gmem__blas_keeps_result(job)) gmem__job_finish(job, c.memory);
}

/* Bytes of scratch for each column, the larger of its two buffers' shares. */
static int64_t gmem__blas_column_bytes(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    const int64_t before = gmem__blas_keeps_columns(job) ? 0 : p->depth;
    const int64_t after = gmem__blas_keeps_result(job) ? 0 : p->rows;
    return gmem__max(1, 4 * gmem__max(before, after));
}

/* CLBlast is there, and what it needs converted fits in scratch. */
static int gmem__blas_can(const gmem__cl_job *job) {
    const gmem__cl_product *p = job->product;
    const double scratch = (double)gmem__job_scratch(job);
    const int64_t columns = gmem__min(p->columns, GMEM__BLAS_COLUMNS);
    return job->stream->device->library.has_clblast && (double)(columns * gmem__blas_column_bytes(job)) <= scratch &&
           (gmem__blas_keeps_rows(job) || (double)p->batch * (double)p->rows * (double)p->depth * 4 <= scratch);
}

/* ----------------------------------------------------------------------------------------------------------------- */

/* Columns are packed by the panel, the last of a part beyond what is there. */
static int64_t gmem__panel_bytes(const gmem__cl_job *job) {
    const gmem__cl_tiles *tiles = &job->stream->device->tuning.tiles;
    return tiles->tile_vectors * tiles->tile_width * job->product->depth * 4;
}

/* The way that was chosen, or another where this one wants more scratch than a buffer has. */
static gmem__cl_way gmem__job_way(const gmem__cl_job *job, gmem__cl_way way) {
    const struct gmem__device *device = job->stream->device;
    const int64_t columns = gmem__min(job->product->columns, device->tuning.tiles.tile_columns);
    const int64_t tile_bytes = columns * job->product->depth * 4 + gmem__panel_bytes(job);
    if (way == GMEM__CL_WAY_CLBLAST && !gmem__blas_can(job))
        way = device->found.limits.is_cpu ? GMEM__CL_WAY_TILE : GMEM__CL_WAY_OWN;
    return way == GMEM__CL_WAY_TILE && tile_bytes > device->found.limits.largest ? GMEM__CL_WAY_OWN : way;
}

static gmem__cl_job gmem__job_of(struct gmem__stream *stream, const gmem__cl_product *product) {
    gmem__cl_job job;
    memset(&job, 0, sizeof job);
    job.stream = stream;
    job.product = product;
    job.conv = product->conv && (product->conv->kernel > 1 || product->conv->upsample) ? product->conv : NULL;
    job.batch = product->batch;
    job.columns = product->columns;
    /* int8 has weights on levels and columns of one token each; else it counts as bf16 */
    job.compute = product->compute == GMEM_COMPUTE_INT8 && (product->a_type != GMEM_I8 || job.conv) ? GMEM_COMPUTE_BF16
                                                                                                    : product->compute;
    return job;
}

GMEM__FN void gmem__stream_product(struct gmem__stream *stream, const gmem__cl_product *product) {
    const struct gmem__device *device = stream->device;
    gmem__cl_way way = product->way == GMEM__CL_WAY_AUTO ? gmem__product_way(device, product) : product->way;
    if (!gmem__stream_ok(stream) || product->columns == 0 || product->batch == 0) return;
    gmem__cl_job job = gmem__job_of(stream, product);
    if (job.compute == GMEM_COMPUTE_INT8) job.largest = gmem__job_largest(&job);
    if (!gmem__stream_ok(stream)) return;
    way = gmem__job_way(&job, way);
    if (way == GMEM__CL_WAY_TILE)
        gmem__job_parts(&job, product->depth * 4,
                        gmem__min(GMEM__PANELS_OF_UNIT * device->found.limits.units,
                                  gmem__job_scratch(&job) - gmem__panel_bytes(&job)),
                        device->tuning.tiles.tile_columns, gmem__product_tile);
    else if (way == GMEM__CL_WAY_CLBLAST)
        gmem__job_parts(&job, gmem__blas_column_bytes(&job), gmem__job_scratch(&job), GMEM__BLAS_COLUMNS,
                        gmem__product_blas);
    else
        gmem__product_own(&job);
}

GMEM__FN void gmem__stream_epilogue(struct gmem__stream *stream, const gmem__cl_product *product, gmem__cl_mem sums,
                                    int64_t first_column, int64_t columns) {
    gmem__cl_job job = gmem__job_of(stream, product);
    job.first_column = first_column;
    job.columns = columns;
    gmem__job_finish(&job, sums);
}

#endif
