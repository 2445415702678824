/* The operations on a stream: each becomes kernels' arguments, or a product. Nothing waits but what returns a number,
 * downloads, and settle. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

/* launching ------------------------------------------------------------------------------------------------------- */

/* Work-groups are of one size whatever the operation's, since some compilers make a kernel anew for each. */

#define GMEM__CL_ITEMS  256                /* in a group */
#define GMEM__CL_SCORES (64 * 1024 * 1024) /* bytes at most, if the device has so many in one buffer */

/* Floats of a work-item's vector (product.cl). */
static int64_t gmem__cl_width(const gmem__cl_launch *launch) { return launch->stream->device->tuning.tiles.tile_width; }

/* Adds the last argument, local memory for vectors, and runs (items, slices, batch): work-groups share their columns
 * among slices (kernels.cl), of which a GPU needs many and a processor none. */
static void gmem__cl_run_columns(gmem__cl_launch *launch, int64_t columns, int64_t batch) {
    const int is_cpu = launch->stream->device->found.limits.is_cpu;
    const int64_t local[3] = {is_cpu ? 1 : 8, is_cpu ? 1 : GMEM__CL_ITEMS / 8, 1};
    const int64_t width = gmem__cl_width(launch);
    const int64_t global[3] = {gmem__ceil_div(columns, width), 1, batch}; /* as many slices as the device can do */
    gmem__launch_local(launch, (size_t)(local[0] * local[1] * width) * sizeof(float));
    gmem__launch_run(launch, 3, global, local);
}

/* One item for each of `count`. */
static void gmem__cl_run_flat(gmem__cl_launch *launch, int64_t count) {
    const int64_t local = GMEM__CL_ITEMS;
    gmem__launch_run(launch, 1, &count, &local);
}

/* One item for each of (width, rows, planes). */
static void gmem__cl_run_grid(gmem__cl_launch *launch, int64_t width, int64_t rows, int64_t planes) {
    const int64_t global[3] = {width, rows, planes}, local[3] = {GMEM__CL_ITEMS / 4, 4, 1};
    gmem__launch_run(launch, 3, global, local);
}

/* Adds the last argument, local memory for floats, and runs one work-group for each of `parts` of `batch`. */
static void gmem__cl_run_parts(gmem__cl_launch *launch, int64_t parts, int64_t batch) {
    const int is_cpu = launch->stream->device->found.limits.is_cpu;
    const int64_t global[3] = {1, parts, batch}, local[3] = {is_cpu ? 16 : GMEM__CL_ITEMS, 1, 1};
    gmem__launch_local(launch, (size_t)local[0] * sizeof(float));
    gmem__launch_run(launch, 3, global, local);
}

/* Parts of `count` values, several for each item: enough to keep any device busy. */
static int64_t gmem__cl_parts(int64_t count) {
    const int64_t each = 8 * GMEM__CL_ITEMS, most = 256;
    return gmem__max(1, gmem__min(most, gmem__ceil_div(count, each)));
}

static void gmem__launch_f32(gmem__cl_launch *launch, const float *address) {
    gmem__launch_pointer(launch, address, sizeof(float));
}

/* A double as two floats. */
static void gmem__launch_pair(gmem__cl_launch *launch, double value) {
    const float high = (float)value;
    gmem__launch_float(launch, high);
    gmem__launch_float(launch, (float)(value - (double)high));
}

/* All bits of a uint of the kernel. */
static void gmem__launch_bits(gmem__cl_launch *launch, uint64_t bits) {
    int32_t value;
    const uint32_t low = (uint32_t)bits;
    memcpy(&value, &low, sizeof value);
    gmem__launch_int(launch, value);
}

/* Along `count` things of so many floats, side by side in x and y; either may be NULL. */
static gmem__cl_walk gmem__walk_floats(struct gmem__stream *stream, int64_t count, int64_t floats, const float *x,
                                       const float *y) {
    const int64_t bytes = floats * (int64_t)sizeof(float);
    gmem__cl_walk walk = gmem__cl_walk_start(stream, count);
    gmem__walk_along(&walk, x, bytes, bytes);
    gmem__walk_along(&walk, y, bytes, bytes);
    return walk;
}

/* norms ----------------------------------------------------------------------------------------------------------- */

/* kernels.cl: which of the optional arguments are given. */
enum { GMEM__GIVEN_WEIGHT = 1, GMEM__GIVEN_BIAS = 2, GMEM__GIVEN_SHIFT = 4, GMEM__GIVEN_SCALE = 8 };

static int64_t gmem__norm_stride(const gmem__norm *op) { return op->y_stride ? op->y_stride : op->columns; }

/* y_column is for the CPU's kernels: of an operation it is 0. */
static void gmem__cl_norm(const gmem__engine *engine, const gmem__norm *op) {
    const int64_t tokens = op->shift || op->scale ? op->tokens : op->columns;
    if (!gmem__stream_ok(engine->stream) || op->columns <= 0 || op->channels <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_norm);
    gmem__launch_f32(&launch, op->x);
    gmem__launch_f32(&launch, op->y);
    gmem__launch_f32(&launch, op->weight);
    gmem__launch_f32(&launch, op->bias);
    gmem__launch_f32(&launch, op->shift);
    gmem__launch_f32(&launch, op->scale);
    gmem__launch_int(&launch, (op->weight ? GMEM__GIVEN_WEIGHT : 0) | (op->bias ? GMEM__GIVEN_BIAS : 0) |
                                  (op->shift ? GMEM__GIVEN_SHIFT : 0) | (op->scale ? GMEM__GIVEN_SCALE : 0));
    gmem__launch_int(&launch, op->rms != 0);
    gmem__launch_float(&launch, op->eps);
    gmem__launch_int(&launch, op->channels);
    gmem__launch_int(&launch, op->columns);
    gmem__launch_int(&launch, gmem__norm_stride(op));
    gmem__launch_int(&launch, tokens);
    gmem__launch_int(&launch, op->modulation_stride);
    gmem__cl_run_columns(&launch, tokens, op->columns / tokens);
}

static void gmem__cl_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const int64_t tokens = op->cosine ? op->tokens : op->columns;
    if (!gmem__stream_ok(engine->stream) || op->columns <= 0 || op->heads <= 0 || op->head_dim <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_rotate_heads);
    gmem__launch_f32(&launch, op->x);
    gmem__launch_f32(&launch, op->weight);
    gmem__launch_f32(&launch, op->bias);
    gmem__launch_f32(&launch, op->cosine);
    gmem__launch_f32(&launch, op->sine);
    gmem__launch_int(&launch, (op->weight ? GMEM__GIVEN_WEIGHT : 0) | (op->bias ? GMEM__GIVEN_BIAS : 0));
    gmem__launch_int(&launch, op->norm != 0);
    gmem__launch_int(&launch, op->rms != 0);
    gmem__launch_int(&launch, op->cosine != NULL);
    gmem__launch_float(&launch, op->eps);
    gmem__launch_int(&launch, op->heads);
    gmem__launch_int(&launch, op->head_dim);
    gmem__launch_int(&launch, op->columns);
    gmem__launch_int(&launch, tokens);
    gmem__cl_run_columns(&launch, tokens, op->columns / tokens * op->heads);
}

/* What one work-group sums up of a group, in parts of four floats. */
#define GMEM__CL_CHUNK  4096
#define GMEM__CL_CHUNKS 64 /* at most */

/* Some of the groups. */
typedef struct gmem__cl_groups {
    struct gmem__stream *stream;
    const gmem__group_norm *op;
    int64_t first, count, channels, chunk; /* channels of a group */
} gmem__cl_groups;

static void gmem__cl_group_moments(const gmem__cl_groups *groups, gmem__cl_mem parts) {
    const int64_t values = groups->channels * groups->op->area;
    gmem__cl_launch launch = gmem__launch(groups->stream, GMEM__CL_group_moments);
    gmem__launch_f32(&launch, groups->op->x + groups->first * values);
    gmem__launch_buffer(&launch, parts, 0);
    gmem__launch_int(&launch, values);
    gmem__launch_int(&launch, groups->chunk);
    gmem__cl_run_parts(&launch, gmem__ceil_div(values, groups->chunk), groups->count);
}

static void gmem__cl_group_values(const gmem__cl_groups *groups, gmem__cl_mem parts) {
    const gmem__group_norm *op = groups->op;
    const int64_t first = groups->first * groups->channels, channels = groups->count * groups->channels;
    gmem__cl_launch launch = gmem__launch(groups->stream, GMEM__CL_group_norm);
    gmem__launch_f32(&launch, op->x + first * op->area);
    gmem__launch_f32(&launch, op->y + first * op->area);
    gmem__launch_f32(&launch, op->weight + first);
    gmem__launch_f32(&launch, op->bias + first);
    gmem__launch_buffer(&launch, parts, 0);
    gmem__launch_int(&launch, groups->channels);
    gmem__launch_int(&launch, op->area);
    gmem__launch_int(&launch, groups->chunk);
    gmem__launch_float(&launch, op->eps);
    gmem__launch_int(&launch, op->silu);
    gmem__launch_local(&launch, 4 * sizeof(float));
    const int is_cpu = groups->stream->device->found.limits.is_cpu;
    const int64_t each = is_cpu ? 64 : 4; /* vectors of an item */
    const int64_t global[2] = {gmem__ceil_div(op->area, each * gmem__cl_width(&launch)), channels};
    const int64_t local[2] = {is_cpu ? 1 : GMEM__CL_ITEMS, 1};
    gmem__launch_run(&launch, 2, global, local);
}

static void gmem__cl_group_norm(const gmem__engine *engine, const gmem__group_norm *op) {
    struct gmem__stream *stream = engine->stream;
    if (op->channels <= 0 || op->area <= 0) return;
    const int64_t channels = op->channels / op->groups, values = channels * op->area;
    const int64_t chunk = gmem__max(GMEM__CL_CHUNK, gmem__ceil_div(values, GMEM__CL_CHUNKS));
    gmem__cl_walk walk = gmem__walk_floats(stream, op->groups, values, op->x, op->y);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_groups groups = {stream, op, walk.first, walk.size, channels, chunk};
        const int64_t bytes = walk.size * gmem__ceil_div(values, chunk) * 4 * (int64_t)sizeof(float);
        gmem__cl_mem parts = gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SUMS, bytes);
        gmem__cl_group_moments(&groups, parts);
        gmem__cl_group_values(&groups, parts);
    }
}

/* products -------------------------------------------------------------------------------------------------------- */

/* What lies in one buffer: rows of the weight and of the result, or the depth that goes with some channels of x. */
typedef struct gmem__cl_range {
    int64_t first, count;
} gmem__cl_range;

static const char *gmem__cl_weight_row(const gmem__weight *weight, int64_t row, int64_t column) {
    return (const char *)weight->data + (row * weight->row_stride + column) * (int64_t)gmem_type_bytes(weight->type);
}

static gmem__cl_walk gmem__walk_rows(struct gmem__stream *stream, const gmem__weight *weight) {
    const int64_t bytes = (int64_t)gmem_type_bytes(weight->type);
    gmem__cl_walk walk = gmem__cl_walk_start(stream, weight->rows);
    gmem__walk_along(&walk, weight->data, weight->row_stride * bytes, weight->cols * bytes);
    return walk;
}

static gmem__cl_product gmem__product_of(struct gmem__stream *stream, const gmem__weight *weight, gmem__cl_range rows,
                                         gmem__cl_range depth) {
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    product.a = gmem__stream_find(stream, gmem__cl_weight_row(weight, rows.first, depth.first));
    product.a_type = weight->type;
    product.a_scale = weight->scale ? weight->scale + rows.first : NULL;
    product.a_ld = weight->row_stride;
    product.compute = weight->compute;
    product.rows = rows.count;
    product.depth = depth.count;
    product.batch = 1;
    product.alpha = 1;
    return product;
}

static gmem__cl_product gmem__linear_product(struct gmem__stream *stream, const gmem__linear *op, gmem__cl_range rows) {
    const gmem__cl_range depth = {0, op->weight->cols};
    gmem__cl_product product = gmem__product_of(stream, op->weight, rows, depth);
    product.b = gmem__stream_find(stream, op->norm ? op->norm->y : op->x);
    product.b_ld = op->norm ? gmem__norm_stride(op->norm) : op->x_stride;
    product.columns = op->columns;
    product.tokens = op->gate ? op->tokens : op->columns;
    return product;
}

static void gmem__linear_epilogue(struct gmem__stream *stream, const gmem__linear *op, int64_t row,
                                  gmem__cl_product *product) {
    product->c = gmem__stream_find(stream, op->y + row * op->y_stride);
    product->c_ld = op->y_stride;
    product->bias = op->bias ? op->bias + row : NULL;
    product->activation = op->activation;
    product->gate = op->gate ? op->gate + row : NULL;
    product->gate_stride = op->gate_stride;
    product->adds = op->residual || op->gate;
}

/* SwiGLU needs both halves of the rows at a time. Where these do not lie in one buffer, sums for some of the columns
 * wait in scratch. */
static void gmem__linear_halves(struct gmem__stream *stream, const gmem__linear *op) {
    const int64_t most = gmem__min(stream->device->found.limits.largest, GMEM__CL_SCORES);
    const int64_t rows = op->weight->rows, column_bytes = rows * (int64_t)sizeof(float);
    const int64_t columns = gmem__min(op->columns, gmem__max(1, most / column_bytes));
    const gmem__cl_range all = {0, rows};
    gmem__cl_product whole = gmem__linear_product(stream, op, all);
    gmem__linear_epilogue(stream, op, 0, &whole);
    gmem__cl_mem sums = gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, columns * column_bytes);
    for (int64_t first = 0; first < op->columns && gmem__stream_ok(stream); first += columns) {
        const int64_t count = gmem__min(columns, op->columns - first);
        gmem__cl_walk walk = gmem__walk_rows(stream, op->weight);
        while (gmem__walk_next(&walk)) {
            const gmem__cl_range part = {walk.first, walk.size};
            gmem__cl_product product = gmem__linear_product(stream, op, part);
            product.b.offset += first * (int64_t)sizeof(float);
            product.c.memory = sums;
            product.c.offset = walk.first * count * (int64_t)sizeof(float);
            product.c_ld = product.columns = product.tokens = count;
            gmem__stream_product(stream, &product);
        }
        gmem__stream_epilogue(stream, &whole, sums, first, count);
    }
}

static void gmem__cl_linear(const gmem__engine *engine, const gmem__linear *op) {
    struct gmem__stream *stream = engine->stream;
    if (op->norm) gmem__cl_norm(engine, op->norm);
    if (op->columns <= 0) return;
    gmem__cl_walk walk = gmem__walk_rows(stream, op->weight);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_range rows = {walk.first, walk.size};
        if (op->activation == GMEM__ACT_SWIGLU && walk.size < walk.count) {
            gmem__linear_halves(stream, op);
            return;
        }
        gmem__cl_product product = gmem__linear_product(stream, op, rows);
        gmem__linear_epilogue(stream, op, rows.first, &product);
        gmem__stream_product(stream, &product);
    }
}

/* Rows of the result from channels of x: the first of these bring bias and residual, the others add to them. */
static void gmem__conv_part(struct gmem__stream *stream, const gmem__conv *op, int64_t area, gmem__cl_range rows,
                            gmem__cl_range channels) {
    const int64_t taps = (int64_t)op->kernel * op->kernel;
    const gmem__cl_range depth = {channels.first * taps, channels.count * taps};
    gmem__cl_product product = gmem__product_of(stream, op->weight, rows, depth);
    product.conv = op;
    product.b = gmem__stream_find(stream, op->x + channels.first * op->height * op->width);
    product.b_ld = area;
    product.c = gmem__stream_find(stream, op->y + rows.first * area);
    product.c_ld = area;
    product.columns = area;
    product.tokens = area;
    product.adds = channels.first > 0;
    if (!product.adds) {
        product.bias = op->bias ? op->bias + rows.first : NULL;
        product.residual = op->residual ? op->residual + rows.first * area : NULL;
        product.residual_ld = area;
    }
    gmem__stream_product(stream, &product);
}

static void gmem__cl_conv(const gmem__engine *engine, const gmem__conv *op) {
    struct gmem__stream *stream = engine->stream;
    const int64_t area = (op->height << op->upsample) / op->stride * ((op->width << op->upsample) / op->stride);
    const int64_t bytes = area * (int64_t)sizeof(float);
    if (area <= 0) return;
    gmem__cl_walk rows = gmem__walk_rows(stream, op->weight);
    gmem__walk_along(&rows, op->y, bytes, bytes);
    gmem__walk_along(&rows, op->residual, bytes, bytes);
    while (gmem__walk_next(&rows)) {
        gmem__cl_walk channels = gmem__walk_floats(stream, op->in_channels, op->height * op->width, op->x, NULL);
        const gmem__cl_range out = {rows.first, rows.size};
        while (gmem__walk_next(&channels)) {
            const gmem__cl_range in = {channels.first, channels.size};
            gmem__conv_part(stream, op, area, out, in);
        }
    }
}

/* attention ------------------------------------------------------------------------------------------------------- */

/* Some heads and queries of one sample, as many as the scores' memory has room for. */
typedef struct gmem__cl_attend {
    struct gmem__stream *stream;
    const gmem__attention *op;
    gmem__cl_mem scores; /* (heads, keys, queries) */
    int64_t sample, head, heads, query, queries;
} gmem__cl_attend;

/* The first of the sample's tokens in the block's first head, or `row` rows below. */
static const float *gmem__attend_at(const gmem__cl_attend *block, const float *x, int64_t stride, int64_t row) {
    return x + (block->head * block->op->head_dim + row) * stride + block->sample * block->op->tokens;
}

/* Along the rows of a head in x and y: row i of all the block's heads is one thing. */
static gmem__cl_walk gmem__attend_walk(const gmem__cl_attend *block, const float *x, const float *y, int64_t y_stride) {
    const gmem__attention *op = block->op;
    const int64_t size = (int64_t)sizeof(float), last = (block->heads - 1) * op->head_dim;
    gmem__cl_walk walk = gmem__cl_walk_start(block->stream, op->head_dim);
    gmem__walk_along(&walk, gmem__attend_at(block, x, op->stride, 0), op->stride * size,
                     (last * op->stride + op->tokens) * size);
    gmem__walk_along(&walk, gmem__attend_at(block, y, y_stride, 0), y_stride * size,
                     (last * y_stride + op->tokens) * size);
    return walk;
}

static gmem__cl_product gmem__attend_product(const gmem__cl_attend *block, const float *a, int64_t row) {
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    product.a = gmem__stream_find(block->stream, gmem__attend_at(block, a, block->op->stride, row));
    product.a_type = GMEM_F32;
    product.a_ld = block->op->stride;
    product.a_stride = block->op->head_dim * block->op->stride;
    product.columns = product.tokens = block->queries;
    product.batch = block->heads;
    product.alpha = 1;
    return product;
}

/* scores = k^T q */
static void gmem__attend_scores(const gmem__cl_attend *block) {
    const gmem__attention *op = block->op;
    gmem__cl_walk walk = gmem__attend_walk(block, op->k, op->q, op->stride);
    while (gmem__walk_next(&walk)) {
        gmem__cl_product product = gmem__attend_product(block, op->k, walk.first);
        product.a_transposed = 1;
        product.b =
            gmem__stream_find(block->stream, gmem__attend_at(block, op->q, op->stride, walk.first) + block->query);
        product.b_ld = op->stride;
        product.b_stride = product.a_stride;
        product.c.memory = block->scores;
        product.c_ld = block->queries;
        product.c_stride = op->tokens * block->queries;
        product.rows = op->tokens;
        product.depth = walk.size;
        product.adds = walk.first > 0;
        gmem__stream_product(block->stream, &product);
    }
}

static void gmem__attend_softmax(const gmem__cl_attend *block) {
    gmem__cl_launch launch = gmem__launch(block->stream, GMEM__CL_softmax);
    gmem__launch_buffer(&launch, block->scores, 0);
    gmem__launch_float(&launch, block->op->scale);
    gmem__launch_int(&launch, block->op->tokens);
    gmem__launch_int(&launch, block->queries);
    gmem__cl_run_columns(&launch, block->queries, block->heads);
}

/* y = v scores */
static void gmem__attend_values(const gmem__cl_attend *block) {
    const gmem__attention *op = block->op;
    gmem__cl_walk walk = gmem__attend_walk(block, op->v, op->y, op->y_stride);
    while (gmem__walk_next(&walk)) {
        gmem__cl_product product = gmem__attend_product(block, op->v, walk.first);
        product.b.memory = block->scores;
        product.b_ld = block->queries;
        product.b_stride = op->tokens * block->queries;
        product.c =
            gmem__stream_find(block->stream, gmem__attend_at(block, op->y, op->y_stride, walk.first) + block->query);
        product.c_ld = op->y_stride;
        product.c_stride = op->head_dim * op->y_stride;
        product.rows = walk.size;
        product.depth = op->tokens;
        gmem__stream_product(block->stream, &product);
    }
}

/* As many queries as there is room for, with as many heads as make the products large. */
static void gmem__attend_size(gmem__cl_attend *block) {
    const int64_t largest = gmem__min(block->stream->device->found.limits.largest, GMEM__CL_SCORES);
    const int64_t columns = gmem__max(1, largest / (block->op->tokens * (int64_t)sizeof(float)));
    const int64_t few = gmem__min(block->op->tokens, 64); /* queries that still make a product worth its launch */
    block->heads = gmem__max(1, gmem__min(block->op->heads, columns / few));
    block->queries = gmem__max(1, gmem__min(block->op->tokens, columns / block->heads));
    block->scores = gmem__stream_scratch(block->stream, GMEM__CL_SCRATCH_SCORES,
                                         block->heads * block->queries * block->op->tokens * (int64_t)sizeof(float));
}

static void gmem__cl_attention(const gmem__engine *engine, const gmem__attention *op) {
    gmem__cl_attend block;
    if (!gmem__stream_ok(engine->stream) || op->tokens <= 0) return;
    block.stream = engine->stream;
    block.op = op;
    gmem__attend_size(&block);
    const int64_t heads = block.heads, queries = block.queries;
    for (block.sample = 0; block.sample < op->samples; block.sample++)
        for (block.head = 0; block.head < op->heads; block.head += heads)
            for (block.query = 0; block.query < op->tokens; block.query += queries) {
                if (!gmem__stream_ok(engine->stream)) return;
                block.heads = gmem__min(heads, op->heads - block.head);
                block.queries = gmem__min(queries, op->tokens - block.query);
                gmem__attend_scores(&block);
                gmem__attend_softmax(&block);
                gmem__attend_values(&block);
            }
}

/* shapes ---------------------------------------------------------------------------------------------------------- */

/* Rows in a buffer, `stride` apart. */
typedef struct gmem__cl_rows {
    gmem__cl_place place;
    int64_t stride;
} gmem__cl_rows;

static gmem__cl_rows gmem__cl_rows_at(struct gmem__stream *stream, const float *address, int64_t stride) {
    gmem__cl_rows rows;
    rows.place = gmem__stream_find(stream, address);
    rows.stride = stride;
    return rows;
}

static void gmem__launch_rows(gmem__cl_launch *launch, const gmem__cl_rows *rows) {
    gmem__launch_buffer(launch, rows->place.memory, rows->place.offset / (int64_t)sizeof(float));
}

static void gmem__cl_copy_rows(struct gmem__stream *stream, const gmem__cl_rows *to, const gmem__cl_rows *from,
                               int64_t rows, int64_t width) {
    gmem__cl_launch launch = gmem__launch(stream, GMEM__CL_copy);
    gmem__launch_rows(&launch, to);
    gmem__launch_rows(&launch, from);
    gmem__launch_int(&launch, rows);
    gmem__launch_int(&launch, width);
    gmem__launch_int(&launch, to->stride);
    gmem__launch_int(&launch, from->stride);
    gmem__cl_run_grid(&launch, width, rows, 1);
}

/* Whether some of what is written is also read. Addresses of one buffer are in order, others' do not meet. */
static int gmem__cl_overlap(const gmem__copy *op) {
    const uintptr_t row = (uintptr_t)op->width * sizeof(float), last = (uintptr_t)(op->rows - 1) * sizeof(float);
    const uintptr_t to = (uintptr_t)op->to, from = (uintptr_t)op->from;
    return to < from + last * (uintptr_t)op->from_stride + row && from < to + last * (uintptr_t)op->to_stride + row;
}

/* Items run in any order, so what overlaps goes by way of scratch, some rows at a time: nothing that they overwrite is
 * read by those that come after, since `to` lies below. */
static void gmem__cl_copy_overlapping(struct gmem__stream *stream, const gmem__copy *op) {
    const int64_t bytes = op->width * (int64_t)sizeof(float), most = GMEM__CL_SCORES;
    const int64_t block = gmem__min(op->rows, gmem__max(1, most / bytes));
    gmem__cl_rows between;
    between.place.memory = gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, block * bytes);
    between.place.offset = 0;
    between.stride = op->width;
    for (int64_t row = 0; row < op->rows && gmem__stream_ok(stream); row += block) {
        const int64_t rows = gmem__min(block, op->rows - row);
        const gmem__cl_rows from = gmem__cl_rows_at(stream, op->from + row * op->from_stride, op->from_stride);
        const gmem__cl_rows to = gmem__cl_rows_at(stream, op->to + row * op->to_stride, op->to_stride);
        gmem__cl_copy_rows(stream, &between, &from, rows, op->width);
        gmem__cl_copy_rows(stream, &to, &between, rows, op->width);
    }
}

static void gmem__cl_copy(const gmem__engine *engine, const gmem__copy *op) {
    struct gmem__stream *stream = engine->stream;
    const int64_t size = (int64_t)sizeof(float);
    if (!gmem__stream_ok(stream) || op->rows <= 0 || op->width <= 0) return;
    if (gmem__cl_overlap(op)) {
        gmem__cl_copy_overlapping(stream, op);
        return;
    }
    gmem__cl_walk walk = gmem__cl_walk_start(stream, op->rows);
    gmem__walk_along(&walk, op->from, op->from_stride * size, op->width * size);
    gmem__walk_along(&walk, op->to, op->to_stride * size, op->width * size);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_rows from = gmem__cl_rows_at(stream, op->from + walk.first * op->from_stride, op->from_stride);
        const gmem__cl_rows to = gmem__cl_rows_at(stream, op->to + walk.first * op->to_stride, op->to_stride);
        gmem__cl_copy_rows(stream, &to, &from, walk.size, op->width);
    }
}

static void gmem__cl_patches(const gmem__engine *engine, const gmem__patches *op) {
    const int64_t columns = op->samples * (op->height / op->patch) * (op->width / op->patch);
    if (!gmem__stream_ok(engine->stream) || columns <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, op->to_latents ? GMEM__CL_to_latents : GMEM__CL_to_patches);
    gmem__launch_f32(&launch, op->latents);
    gmem__launch_f32(&launch, op->patches);
    gmem__launch_int(&launch, op->samples);
    gmem__launch_int(&launch, op->channels);
    gmem__launch_int(&launch, op->height);
    gmem__launch_int(&launch, op->width);
    gmem__launch_int(&launch, op->patch);
    if (op->to_latents) {
        gmem__launch_int(&launch, op->patch_channels);
        gmem__cl_run_grid(&launch, op->width, op->height, op->samples * op->channels);
    } else {
        gmem__cl_run_grid(&launch, columns, op->channels * op->patch * op->patch, 1);
    }
}

#define GMEM__CL_TILE 16 /* columns and rows that a work-group turns */

static void gmem__cl_transpose(const gmem__engine *engine, const gmem__transpose *op) {
    const int64_t global[2] = {op->columns, op->rows}, local[2] = {GMEM__CL_TILE, GMEM__CL_TILE};
    if (!gmem__stream_ok(engine->stream) || op->rows <= 0 || op->columns <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_transpose);
    gmem__launch_f32(&launch, op->x);
    gmem__launch_f32(&launch, op->y);
    gmem__launch_int(&launch, op->rows);
    gmem__launch_int(&launch, op->columns);
    gmem__launch_int(&launch, op->y_stride);
    gmem__launch_local(&launch, GMEM__CL_TILE * (GMEM__CL_TILE + 1) * sizeof(float));
    gmem__launch_run(&launch, 2, global, local);
}

/* values ---------------------------------------------------------------------------------------------------------- */

static void gmem__cl_silu(const gmem__engine *engine, float *x, int64_t count) {
    if (!gmem__stream_ok(engine->stream) || count <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_silu);
    gmem__launch_f32(&launch, x);
    gmem__launch_int(&launch, count);
    gmem__cl_run_flat(&launch, count);
}

/* All GMEM__MAX_TERMS, those beyond `terms` with nothing in them. */
static void gmem__launch_terms(gmem__cl_launch *launch, int terms, const float *const *k, const double *weight) {
    gmem__launch_int(launch, terms);
    for (int j = 0; j < GMEM__MAX_TERMS; j++) {
        gmem__launch_f32(launch, j < terms ? k[j] : NULL);
        gmem__launch_pair(launch, j < terms ? weight[j] : 0);
    }
}

static void gmem__cl_combine(const gmem__engine *engine, const gmem__combine *op) {
    if (!gmem__stream_ok(engine->stream) || op->rows <= 0 || op->width <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_combine);
    gmem__launch_f32(&launch, op->out);
    gmem__launch_f32(&launch, op->x);
    gmem__launch_pair(&launch, op->x_weight);
    gmem__launch_terms(&launch, op->terms, op->k, op->weight);
    gmem__launch_int(&launch, op->rows);
    gmem__launch_int(&launch, op->width);
    gmem__launch_int(&launch, op->stride);
    gmem__cl_run_grid(&launch, gmem__ceil_div(op->width, gmem__cl_width(&launch)), op->rows, 1);
}

static void gmem__cl_normal(const gmem__engine *engine, const gmem__normal *op) {
    const uint64_t picture = (uint64_t)op->picture;
    if (!gmem__stream_ok(engine->stream) || op->count <= 0 || op->per_picture <= 0) return;
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_normal);
    gmem__launch_f32(&launch, op->out);
    gmem__launch_bits(&launch, op->seed);
    gmem__launch_bits(&launch, op->seed >> 32);
    gmem__launch_bits(&launch, (uint64_t)op->index);
    gmem__launch_bits(&launch, picture);
    gmem__launch_bits(&launch, picture >> 32);
    gmem__launch_bits(&launch, (uint64_t)op->draw);
    gmem__launch_int(&launch, op->count);
    gmem__launch_int(&launch, op->per_picture);
    gmem__cl_run_grid(&launch, gmem__ceil_div(op->per_picture, 4), op->count, 1);
}

static void gmem__cl_scale_shift(const gmem__engine *engine, const gmem__scale_shift *op) {
    if (op->channels <= 0 || op->area <= 0) return;
    gmem__cl_walk walk = gmem__walk_floats(engine->stream, op->channels, op->area, op->x, op->y);
    while (gmem__walk_next(&walk)) {
        gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_scale_shift);
        gmem__launch_f32(&launch, op->x + walk.first * op->area);
        gmem__launch_f32(&launch, op->y + walk.first * op->area);
        gmem__launch_f32(&launch, op->scale + walk.first);
        gmem__launch_f32(&launch, op->shift + walk.first);
        gmem__launch_int(&launch, walk.size);
        gmem__launch_int(&launch, op->area);
        gmem__cl_run_grid(&launch, op->area, walk.size, 1);
    }
}

static int gmem__cl_finite(const gmem__engine *engine, const float *x, int64_t count, int note) {
    gmem__cl_walk walk = gmem__walk_floats(engine->stream, count, 1, x, NULL);
    while (gmem__walk_next(&walk)) {
        gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_note_finite);
        gmem__launch_f32(&launch, x + walk.first);
        gmem__launch_int(&launch, walk.size);
        gmem__launch_int(&launch, note);
        gmem__launch_pointer(&launch, NULL, sizeof(int)); /* the notes */
        gmem__cl_run_parts(&launch, 1, 1);
    }
    return 1;
}

/* results --------------------------------------------------------------------------------------------------------- */

/* Waits. Returns whether `to` was filled. */
static int gmem__cl_read_scratch(struct gmem__stream *stream, gmem__cl_mem from, void *to, int64_t bytes) {
    if (!gmem__stream_ok(stream)) return 0;
    const int code =
        stream->device->library.api.clEnqueueReadBuffer(stream->queue, from, 1, 0, (size_t)bytes, to, 0, NULL, NULL);
    return gmem__stream_check(stream, "clEnqueueReadBuffer", code);
}

/* `width` numbers of each part, added up in double. */
#define GMEM__CL_MAX_SUMS 512

static void gmem__cl_add_sums(struct gmem__stream *stream, gmem__cl_mem sums, int64_t parts, int width, double *out) {
    float values[GMEM__CL_MAX_SUMS];
    if (!gmem__cl_read_scratch(stream, sums, values, parts * width * (int64_t)sizeof *values)) return;
    for (int64_t i = 0; i < parts * width; i++)
        out[i % width] += (double)values[i];
}

static double gmem__cl_error_norm(const gmem__engine *engine, const gmem__error_norm *op) {
    const int64_t parts = gmem__cl_parts(op->count);
    double sum = 0;
    if (!gmem__stream_ok(engine->stream) || op->count <= 0) return sum;
    gmem__cl_mem sums = gmem__stream_scratch(engine->stream, GMEM__CL_SCRATCH_SUMS, parts * (int64_t)sizeof(float));
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_error_norm);
    gmem__launch_f32(&launch, op->x);
    gmem__launch_f32(&launch, op->y);
    gmem__launch_int(&launch, op->y != NULL);
    gmem__launch_terms(&launch, op->terms, op->k, op->weight);
    gmem__launch_float(&launch, (float)op->atol);
    gmem__launch_float(&launch, (float)op->rtol);
    gmem__launch_int(&launch, op->count);
    gmem__launch_buffer(&launch, sums, 0);
    gmem__cl_run_parts(&launch, parts, 1);
    gmem__cl_add_sums(engine->stream, sums, parts, 1, &sum);
    return sum;
}

static void gmem__cl_change(const gmem__engine *engine, const gmem__change *op, double *change, double *size) {
    const int64_t parts = gmem__min(op->rows, GMEM__CL_MAX_SUMS / 2);
    double both[2] = {0, 0};
    *change = *size = 0;
    if (!gmem__stream_ok(engine->stream) || op->rows <= 0 || op->width <= 0) return;
    gmem__cl_mem sums = gmem__stream_scratch(engine->stream, GMEM__CL_SCRATCH_SUMS, 2 * parts * (int64_t)sizeof(float));
    gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_change);
    gmem__launch_f32(&launch, op->after);
    gmem__launch_f32(&launch, op->before);
    gmem__launch_f32(&launch, op->residual);
    gmem__launch_int(&launch, op->rows);
    gmem__launch_int(&launch, op->width);
    gmem__launch_int(&launch, op->after_stride);
    gmem__launch_buffer(&launch, sums, 0);
    gmem__cl_run_parts(&launch, parts, 1);
    gmem__cl_add_sums(engine->stream, sums, parts, 2, both);
    *change = both[0];
    *size = both[1];
}

static void gmem__cl_pixels(const gmem__engine *engine, uint8_t *pixels, const float *x, int64_t area, float offset) {
    if (!gmem__stream_ok(engine->stream) || area <= 0) return;
    gmem__cl_mem out = gmem__stream_scratch(engine->stream, GMEM__CL_SCRATCH_SCORES, 3 * area);
    gmem__cl_walk walk = gmem__walk_floats(engine->stream, 3, area, x, NULL);
    while (gmem__walk_next(&walk)) {
        gmem__cl_launch launch = gmem__launch(engine->stream, GMEM__CL_pixels);
        gmem__launch_f32(&launch, x + walk.first * area);
        gmem__launch_buffer(&launch, out, walk.first);
        gmem__launch_float(&launch, offset);
        gmem__launch_int(&launch, walk.size);
        gmem__launch_int(&launch, area);
        gmem__cl_run_flat(&launch, area);
    }
    (void)gmem__cl_read_scratch(engine->stream, out, pixels, 3 * area);
}

/* memory ---------------------------------------------------------------------------------------------------------- */

static int64_t gmem__cl_scratch_bytes(int threads) {
    (void)threads;
    return 0;
}

static void gmem__cl_download(const gmem__engine *engine, float *to, const float *from, int64_t count) {
    if (count > 0) gmem__stream_read(engine->stream, from, to, count * (int64_t)sizeof(float));
}

static void gmem__cl_upload(const gmem__engine *engine, float *to, const float *from, int64_t count) {
    if (count > 0) gmem__stream_write(engine->stream, to, from, count * (int64_t)sizeof(float));
}

/* What lies in one buffer of `from` to one or more of `to`. */
static void gmem__cl_hand_over_piece(const gmem__engine *engine, const float *from, const gmem__engine *with, float *to,
                                     int64_t count) {
    gmem__cl_walk walk = gmem__walk_floats(with->stream, count, 1, to, NULL);
    while (gmem__walk_next(&walk)) {
        const gmem__cl_rows source = gmem__cl_rows_at(engine->stream, from + walk.first, walk.size);
        const gmem__cl_rows target = gmem__cl_rows_at(with->stream, to + walk.first, walk.size);
        gmem__cl_copy_rows(with->stream, &target, &source, 1, walk.size);
    }
}

/* By the stream that receives, whose queue knows nothing of the other: each must be done before the other goes on. */
static void gmem__cl_hand_over(const gmem__engine *engine, const float *from, const gmem__engine *with, float *to,
                               int64_t count) {
    gmem__stream_finish(engine->stream);
    gmem__cl_walk walk = gmem__walk_floats(engine->stream, count, 1, from, NULL);
    while (gmem__walk_next(&walk))
        gmem__cl_hand_over_piece(engine, from + walk.first, with, to + walk.first, walk.size);
    gmem__stream_finish(with->stream);
}

static int gmem__cl_reserve(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena) {
    return gmem__stream_reserve(engine->stream, context, arena);
}

static void gmem__cl_release(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena) {
    gmem__stream_release(engine->stream, context, arena);
}

static gmem_status gmem__cl_settle(const gmem__engine *engine, int *notes, gmem_error *error) {
    struct gmem__stream *stream = engine->stream;
    int32_t found = 0;
    const int32_t none = 0;
    if (notes) {
        gmem__stream_read(stream, NULL, &found, sizeof found);
        if (found) gmem__stream_write(stream, NULL, &none, sizeof none);
        gmem__stream_finish(stream);
        *notes = gmem__stream_ok(stream) ? (int)found : 0;
    }
    if (!gmem__stream_ok(stream) && error) *error = stream->failed;
    return stream->failed.code;
}

GMEM__FN const gmem__ops *gmem__opencl_ops(void) {
    static const gmem__ops ops = {
        "opencl",           gmem__cl_scratch_bytes, gmem__cl_linear,     gmem__cl_norm,     gmem__cl_rotate,
        gmem__cl_attention, gmem__cl_conv,          gmem__cl_group_norm, gmem__cl_copy,     gmem__cl_patches,
        gmem__cl_combine,   gmem__cl_transpose,     gmem__cl_silu,       gmem__cl_normal,   gmem__cl_scale_shift,
        gmem__cl_finite,    gmem__cl_error_norm,    gmem__cl_change,     gmem__cl_download, gmem__cl_pixels,
        gmem__cl_hand_over, gmem__cl_upload,        gmem__cl_reserve,    gmem__cl_release,  gmem__cl_settle};
    return &ops;
}

#undef GMEM__CL_ITEMS
#undef GMEM__CL_CHUNK
#undef GMEM__CL_CHUNKS
#undef GMEM__CL_SCORES
#undef GMEM__CL_TILE
#undef GMEM__CL_MAX_SUMS

#endif /* GMEM_NO_OPENCL */
