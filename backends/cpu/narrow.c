/* Narrow products (narrow.h), cut into tasks: weights packed once where that is worth a copy, x packed for all row
 * blocks, tiles multiplied block by block of the depth. Beside the f32 products in cpu.c. */
#include "narrow.h"

#include "../../src/file.h"

/* What a product needs to know of its weight under a kernel. SWIGLU's halves have strips of their own. */
typedef struct gmem__narrow_shape {
    int64_t per_word, words;     /* values in a word; depth in words, padded */
    int64_t halves, rows;        /* rows of a half */
    int64_t strips, strip_words; /* strips of a half */
} gmem__narrow_shape;

static gmem__narrow_shape gmem__narrow_shape_of(const gmem__narrow *narrow, const gmem__weight *weight, int swiglu) {
    gmem__narrow_shape shape;
    shape.per_word = gmem__narrow_per_word(narrow);
    shape.words = gmem__round_up(gmem__ceil_div(weight->cols, shape.per_word), GMEM__TILE_WORDS);
    shape.halves = swiglu ? 2 : 1;
    shape.rows = weight->rows / shape.halves;
    shape.strips = gmem__ceil_div(shape.rows, narrow->mr);
    shape.strip_words = shape.words * narrow->mr;
    return shape;
}

/* the choice ------------------------------------------------------------------------------------------------------ */

/* What all threads share is x in words, then the scales of its columns, and what they are found by. */
#define GMEM__SCALES  (16 * 1024)
#define GMEM__LARGEST (64 * 1024)
#define GMEM__PANELS  (GMEM__SHARED - GMEM__SCALES - GMEM__LARGEST)

GMEM__FN const struct gmem__narrow *gmem__cpu_narrow(gmem_isa isa, gmem_type type) {
    return gmem__narrow_of(isa, type);
}

GMEM__FN const char *gmem__cpu_narrow_name(const struct gmem__narrow *narrow) { return narrow->name; }

static const gmem__narrow *gmem__narrow_pick(const gmem__narrow *bf16, const gmem__narrow *int8, gmem_compute compute) {
    return compute == GMEM_COMPUTE_INT8 ? int8 : compute == GMEM_COMPUTE_BF16 ? bf16 : NULL;
}

GMEM__FN const struct gmem__narrow *gmem__narrow_for(const gmem__engine *engine, const gmem__weight *weight) {
    return gmem__narrow_pick(engine->bf16, engine->int8, weight->compute);
}

static int64_t gmem__packed_words(const gmem__narrow_shape *shape) {
    return shape->halves * shape->strips * shape->strip_words;
}

GMEM__FN int64_t gmem__cpu_packed_bytes(const gmem_context *context, const gmem__weight *weight, int swiglu,
                                        gmem_compute *compute) {
    const gmem__narrow *narrow = gmem__narrow_pick(context->bf16, context->int8, *compute);
    if (!narrow) return 0;
    const gmem__narrow_shape shape = gmem__narrow_shape_of(narrow, weight, swiglu);
    if (shape.words * GMEM__NC > GMEM__PANELS || weight->cols > (1 << 16)) { /* x would not fit, or sums overflow */
        *compute = GMEM_COMPUTE_F32;
        return 0;
    }
    if (!narrow->keep) return 0;
    return gmem__packed_words(&shape) * 4 + (narrow->type == GMEM_I8 ? 8 * weight->rows : 0);
}

GMEM__FN void gmem__cpu_packed_place(const gmem_context *context, const gmem__weight *weight, int swiglu, void *memory,
                                     gmem__packed *packed) {
    const gmem__narrow *narrow = gmem__narrow_pick(context->bf16, context->int8, weight->compute);
    const gmem__narrow_shape shape = gmem__narrow_shape_of(narrow, weight, swiglu);
    packed->state = GMEM__PACKED_EMPTY;
    packed->file = NULL;
    packed->words = (uint32_t *)memory;
    packed->scale = (float *)(void *)(packed->words + gmem__packed_words(&shape));
    packed->sum = (int32_t *)(void *)(packed->scale + weight->rows);
}

/* the job --------------------------------------------------------------------------------------------------------- */

typedef struct gmem__narrow_job {
    const gmem__engine *engine;
    const gmem__gemm *gemm;
    const gmem__kernels *kernels;
    const gmem__narrow_rows *convert;
    const gmem__narrow *narrow;
    gmem__narrow_shape shape;
    const gmem__packed *packed; /* ready, or NULL */
    int64_t row_block;          /* rows of a half in a task */
    int64_t column, columns;    /* the columns being worked on */
    int64_t column_tasks;
    const uint32_t *panels; /* these columns, packed for all row blocks; or NULL */
    uint32_t *packing;      /* the same, while it is made */
    float *scales;          /* int8: (columns) */
    float *largest;         /* int8: (blocks of rows of x, columns), or NULL */
    uint32_t *y;            /* the panels of the product that y is handed over to, or NULL */
    int64_t y_words;        /* their words */
} gmem__narrow_job;

GMEM__FN int gmem__narrow_hands_over(const gmem__engine *engine, const gmem__handover *to, const gmem__narrow *narrow,
                                     const void *x, int64_t depth, int64_t columns) {
    return to && narrow && narrow->type == GMEM_BF16 && narrow == gmem__narrow_for(engine, to->reader) &&
           to->reader->cols == depth && depth % (2 * GMEM__TILE_WORDS) == 0 && columns % narrow->nr == 0 &&
           (uintptr_t)x % 64 == 0;
}

/* packing weights once -------------------------------------------------------------------------------------------- */

typedef struct gmem__packing {
    const gmem__narrow *narrow;
    const gmem__narrow_rows *convert;
    const gmem__weight *weight;
    gmem__narrow_shape shape;
} gmem__packing;

static void gmem__pack_strip_task(const void *job_, int64_t i, float *scratch) {
    const gmem__packing *job = (const gmem__packing *)job_;
    const gmem__narrow_shape *shape = &job->shape;
    const gmem__packed *packed = job->weight->packed;
    const int64_t first = i % shape->strips * job->narrow->mr;
    gmem__strip_part part;
    (void)scratch;
    part.row = i / shape->strips * shape->rows + first;
    part.rows = gmem__min(job->narrow->mr, shape->rows - first);
    part.k = 0;
    part.words = shape->words;
    part.scale = NULL;
    if (job->narrow->type == GMEM_I8) {
        part.scale = packed->scale + part.row;
        for (int64_t r = part.row; r < part.row + part.rows; r++)
            job->convert->measure(job->weight, r, packed->scale + r, packed->sum + r);
    }
    job->convert->strip(job->narrow, job->weight, &part, packed->words + i * shape->strip_words);
}

/* The copy of the weight, packed now if nobody has begun to; NULL where there is none, or another thread is at it. */
static const gmem__packed *gmem__packed_ready(const gmem__narrow_job *job) {
    gmem__packed *packed = job->gemm->weight->packed;
    int empty = GMEM__PACKED_EMPTY;
    if (!packed) return NULL;
    if (GMEM__ATOMIC_LOAD(&packed->state) == GMEM__PACKED_READY) return packed;
    if (!GMEM__ATOMIC_CLAIM(&packed->state, &empty, GMEM__PACKED_FILLING)) return NULL;
    gmem__packing packing;
    packing.narrow = job->narrow;
    packing.convert = job->convert;
    packing.weight = job->gemm->weight;
    packing.shape = job->shape;
    gmem__run_tasks(job->engine, job->shape.halves * job->shape.strips, gmem__pack_strip_task, &packing);
    GMEM__ATOMIC_STORE(&packed->state, GMEM__PACKED_READY);
    if (packed->file)
        gmem__file_discard(packed->file, packing.weight->data,
                           packing.weight->rows * packing.weight->row_stride *
                               (int64_t)gmem_type_bytes(packing.weight->type));
    return packed;
}

/* packing x ------------------------------------------------------------------------------------------------------- */

/* Some columns, all of the depth: for a norm, which needs a column whole, and for int8, whose scale does. */
static void gmem__narrow_columns_task(const void *job_, int64_t i, float *scratch) {
    const gmem__narrow_job *job = (const gmem__narrow_job *)job_;
    const gmem__gemm *gemm = job->gemm;
    const int64_t done = i * GMEM__PACK_COLUMNS, count = gmem__min(GMEM__PACK_COLUMNS, job->columns - done);
    const float *x = gemm->x ? gemm->x + job->column + done : NULL;
    int64_t stride = gemm->x_stride;
    if (gemm->norm) {
        gmem__normed_columns(job->kernels, gemm, job->column + done, count, scratch);
        x = scratch;
        stride = GMEM__PACK_COLUMNS;
    }
    job->convert->panels(job->narrow, x, stride, gemm->depth, job->shape.words, count,
                         job->packing + done * job->shape.words, job->shape.words * job->narrow->nr, NULL,
                         job->scales + done);
}

/* int8: GMEM__PACK_ROWS rows of x, of which the largest of each column are sought. */
static void gmem__narrow_largest_task(const void *job_, int64_t i, float *scratch) {
    const gmem__narrow_job *job = (const gmem__narrow_job *)job_;
    const gmem__gemm *gemm = job->gemm;
    const int64_t k = i * GMEM__PACK_ROWS;
    (void)scratch;
    job->convert->largest(gemm->x + k * gemm->x_stride + job->column, gemm->x_stride,
                          gmem__min(GMEM__PACK_ROWS, gemm->depth - k), job->columns, job->largest + i * job->columns);
}

/* GMEM__PACK_ROWS rows of x, all columns; of an image's patches by way of floats. int8: the first row of `largest`
 * holds all rows' by then. */
static void gmem__narrow_rows_task(const void *job_, int64_t i, float *scratch) {
    const gmem__narrow_job *job = (const gmem__narrow_job *)job_;
    const gmem__gemm *gemm = job->gemm;
    const int64_t nr = job->narrow->nr, k = i * GMEM__PACK_ROWS, rows = gmem__min(GMEM__PACK_ROWS, gemm->depth - k);
    const int64_t word = k / job->shape.per_word, step = job->shape.words * nr;
    const int64_t words = gmem__min(GMEM__PACK_ROWS / job->shape.per_word, job->shape.words - word);
    if (!gemm->conv) {
        job->convert->panels(job->narrow, gemm->x + k * gemm->x_stride + job->column, gemm->x_stride, rows, words,
                             job->columns, job->packing + word * nr, step, job->largest, i ? NULL : job->scales);
        return;
    }
    if (gmem__packs_words(gemm, nr, job->column, job->columns)) {
        gmem__pack_words(gemm, job->convert, nr, k, words, job->column, job->columns, job->packing + word * nr, step);
        return;
    }
    for (int64_t done = 0; done < job->columns; done += GMEM__NC) {
        const int64_t columns = gmem__min(GMEM__NC, job->columns - done);
        gmem__pack(gemm, k, rows, job->column + done, columns, GMEM__PACK_COLUMNS, rows * GMEM__PACK_COLUMNS, scratch);
        for (int64_t c = 0; c < columns; c += GMEM__PACK_COLUMNS)
            job->convert->panels(job->narrow, scratch + c * rows, GMEM__PACK_COLUMNS, rows, words,
                                 gmem__min(GMEM__PACK_COLUMNS, columns - c),
                                 job->packing + (done + c) / nr * step + word * nr, step, NULL, NULL);
    }
}

/* int8 reads x twice, for the scales first. Row by row that is twice from memory, but column by column the rows, which
 * often lie a power of two apart, would evict each other from the caches. */
static void gmem__narrow_pack_x(const gmem__narrow_job *job) {
    const int64_t blocks = gmem__ceil_div(job->gemm->depth, GMEM__PACK_ROWS);
    if (job->gemm->norm || (job->narrow->type == GMEM_I8 && blocks * job->columns > GMEM__LARGEST)) {
        gmem__run_tasks(job->engine, gmem__ceil_div(job->columns, GMEM__PACK_COLUMNS), gmem__narrow_columns_task, job);
        return;
    }
    if (job->narrow->type == GMEM_I8) {
        gmem__run_tasks(job->engine, blocks, gmem__narrow_largest_task, job);
        job->convert->largest(job->largest, job->columns, blocks, job->columns, job->largest);
    }
    gmem__run_tasks(job->engine, blocks, gmem__narrow_rows_task, job);
}

/* a tile ---------------------------------------------------------------------------------------------------------- */

/* A group is as many strips of one half as the kernel takes at a time. */
typedef struct gmem__narrow_tile {
    const gmem__narrow_job *job;
    gmem__tile tile;
    int64_t strips, per_half, groups; /* strips of a half; groups of a half, of the tile */
    float *product;                   /* (halves * strips * mr, GMEM__NC) */
    uint32_t *buffer;                 /* of a group and a block of the depth, where weights are not kept */
    float *scale;                     /* int8: (product rows) of the weights */
    int32_t *sum;
    const uint32_t *panels;
} gmem__narrow_tile;

typedef struct gmem__group {
    int64_t half, strip, strips; /* strip: of the tile's half */
} gmem__group;

static gmem__group gmem__group_of(const gmem__narrow_tile *t, int64_t i) {
    gmem__group group;
    group.half = i / t->per_half;
    group.strip = i % t->per_half * t->job->narrow->strips;
    group.strips = gmem__min(t->job->narrow->strips, t->strips - group.strip);
    return group;
}

/* The row of the weight that a product row stands for. */
static int64_t gmem__narrow_row(const gmem__narrow_tile *t, int64_t half, int64_t row) {
    return half * t->job->shape.rows + t->tile.row + row;
}

/* A block of the depth of a group, from the weight's own type into `out`, as the kept copy would hold it. */
static void gmem__pack_group(const gmem__narrow_tile *t, const gmem__group *group, int64_t word, int64_t words,
                             uint32_t *out) {
    const gmem__narrow_job *job = t->job;
    const int64_t mr = job->narrow->mr;
    for (int64_t s = 0; s < group->strips; s++, out += words * mr) {
        const int64_t first = (group->strip + s) * mr;
        gmem__strip_part part;
        part.row = gmem__narrow_row(t, group->half, first);
        part.rows = gmem__min(mr, t->tile.rows - first);
        part.k = word * job->shape.per_word;
        part.words = words;
        part.scale = t->scale + group->half * t->strips * mr + first;
        job->convert->strip(job->narrow, job->gemm->weight, &part, out);
    }
}

/* Where weights are not kept and the type is int8: their scales and sums. */
static void gmem__measure_tile(const gmem__narrow_tile *t) {
    for (int64_t half = 0; half < t->job->shape.halves; half++)
        for (int64_t row = 0; row < t->tile.rows; row++) {
            const int64_t at = half * t->strips * t->job->narrow->mr + row;
            t->job->convert->measure(t->job->gemm->weight, gmem__narrow_row(t, half, row), t->scale + at, t->sum + at);
        }
}

/* Where a group's weights lie in the kept copy. */
static const uint32_t *gmem__kept_group(const gmem__narrow_tile *t, const gmem__group *group, int64_t word) {
    const gmem__narrow_job *job = t->job;
    const int64_t strip = group->half * job->shape.strips + t->tile.row / job->narrow->mr + group->strip;
    return job->packed->words + strip * job->shape.strip_words + word * job->narrow->mr;
}

/* What comes after this block of the group: the next group, or after the last one the next block of the first. */
static void gmem__announce_next(const gmem__narrow_tile *t, int64_t index, int64_t word, gmem__narrow_block *block) {
    const int64_t next_word = index + 1 < t->groups ? word : word + block->words;
    const int64_t words = gmem__min(block->words, t->job->shape.words - next_word);
    const gmem__group next = gmem__group_of(t, (index + 1) % t->groups);
    if (words <= 0) return;
    block->next = (const char *)gmem__kept_group(t, &next, next_word);
    block->next_strips = next.strips;
    block->next_bytes = words * t->job->narrow->mr * 4;
}

static void gmem__multiply_group(const gmem__narrow_tile *t, int64_t index, int64_t word, int64_t words) {
    const gmem__narrow_job *job = t->job;
    const gmem__narrow *narrow = job->narrow;
    const gmem__group group = gmem__group_of(t, index);
    const int64_t panels = gmem__ceil_div(t->tile.columns, narrow->nr);
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strips = group.strips;
    block.words = words;
    block.first = word == 0;
    block.panel_step = (job->panels ? job->shape.words : words) * narrow->nr;
    block.panels = t->panels + (job->panels ? word * narrow->nr : 0);
    block.panel_count = panels;
    block.product_step = GMEM__NC;
    block.product = t->product + (group.half * t->strips + group.strip) * narrow->mr * GMEM__NC;
    if (job->packed) {
        block.weights = gmem__kept_group(t, &group, word);
        block.strip_step = job->shape.strip_words;
        gmem__announce_next(t, index, word, &block);
    } else {
        gmem__pack_group(t, &group, word, words, t->buffer);
        block.weights = t->buffer;
        block.strip_step = words * narrow->mr;
    }
    narrow->multiply(&block);
}

/* Two rows of y, as the product that comes next wants its x. */
static void gmem__hand_over_rows(const gmem__narrow_tile *t, int64_t i) {
    const gmem__narrow_job *job = t->job;
    const int64_t nr = job->narrow->nr, step = job->y_words * nr;
    const float *low = t->product + i * GMEM__NC;
    job->convert->pair(low, low + GMEM__NC, t->tile.columns, nr,
                       job->y + t->tile.column / nr * step + (t->tile.row + i) / 2 * nr, step);
}

static void gmem__narrow_finish(const gmem__narrow_tile *t) {
    const gmem__narrow_job *job = t->job;
    const int64_t up = t->strips * job->narrow->mr, padded = gmem__round_up(t->tile.columns, 16);
    const float *scales = job->scales + (t->tile.column - job->column);
    for (int64_t i = 0; i < t->tile.rows; i++) {
        for (int64_t half = 0; half < job->shape.halves && job->narrow->type == GMEM_I8; half++) {
            const int64_t at = half * up + i, row = gmem__narrow_row(t, half, i);
            const int32_t *sum = job->packed ? job->packed->sum + row : t->sum + at;
            const float *scale = job->packed ? job->packed->scale + row : t->scale + at;
            job->convert->dequantise(t->product + at * GMEM__NC, GMEM__NC, 1, padded, job->narrow->offset, sum, scale,
                                     scales);
        }
        job->kernels->finish_row(job->gemm, &t->tile, i, up, t->product);
        if (job->y && i % 2) gmem__hand_over_rows(t, i - 1);
    }
}

/* bf16 without shared panels: this block of the depth of the tile's columns, by way of floats. */
static void gmem__narrow_own_panels(const gmem__narrow_tile *t, int64_t word, int64_t words, float *values,
                                    uint32_t *panels) {
    const gmem__narrow_job *job = t->job;
    const int64_t k = word * job->shape.per_word, nr = job->narrow->nr;
    const int64_t depth = gmem__min(words * job->shape.per_word, job->gemm->depth - k);
    if (gmem__packs_words(job->gemm, nr, t->tile.column, t->tile.columns)) {
        gmem__pack_words(job->gemm, job->convert, nr, k, words, t->tile.column, t->tile.columns, panels, words * nr);
        return;
    }
    gmem__pack(job->gemm, k, depth, t->tile.column, t->tile.columns, GMEM__PACK_COLUMNS, depth * GMEM__PACK_COLUMNS,
               values);
    for (int64_t c = 0; c < t->tile.columns; c += GMEM__PACK_COLUMNS)
        job->convert->panels(job->narrow, values + c * depth, GMEM__PACK_COLUMNS, depth, words,
                             gmem__min(GMEM__PACK_COLUMNS, t->tile.columns - c), panels + c / nr * words * nr,
                             words * nr, NULL, NULL);
}

#define GMEM__OWN_WORDS 288 /* of the depth in a block of panels of a task's own */

static void gmem__narrow_task(const void *job_, int64_t i, float *scratch) {
    const gmem__narrow_job *job = (const gmem__narrow_job *)job_;
    const gmem__narrow *narrow = job->narrow;
    const int64_t done = i % job->column_tasks * GMEM__NC, words = job->shape.words;
    const int64_t longest = job->panels ? narrow->block : gmem__min(narrow->block, GMEM__OWN_WORDS);
    const int64_t block = gmem__round_up(gmem__ceil_div(words, gmem__ceil_div(words, longest)), GMEM__TILE_WORDS);
    gmem__narrow_tile t;
    memset(&t, 0, sizeof t);
    t.job = job;
    t.tile.row = i / job->column_tasks * job->row_block;
    t.tile.rows = gmem__min(job->row_block, job->shape.rows - t.tile.row);
    t.tile.column = job->column + done;
    t.tile.columns = gmem__min(GMEM__NC, job->columns - done);
    t.strips = gmem__ceil_div(t.tile.rows, narrow->mr);
    t.per_half = gmem__ceil_div(t.strips, narrow->strips);
    t.groups = job->shape.halves * t.per_half;
    t.product = scratch;
    t.scale = t.product + GMEM__MC * GMEM__NC;
    t.sum = (int32_t *)(void *)(t.scale + GMEM__MC);
    t.buffer = (uint32_t *)(t.sum + GMEM__MC);
    uint32_t *own = t.buffer + narrow->strips * narrow->mr * narrow->block;
    float *values = (float *)(void *)(own + GMEM__OWN_WORDS * GMEM__NC);
    t.panels = job->panels ? job->panels + done * words : own;
    if (!job->packed && narrow->type == GMEM_I8) gmem__measure_tile(&t);
    if (narrow->begin) narrow->begin();
    for (int64_t word = 0; word < words; word += block) {
        const int64_t count = gmem__min(block, words - word);
        if (!job->panels) gmem__narrow_own_panels(&t, word, count, values, own);
        for (int64_t group = 0; group < t.groups; group++)
            gmem__multiply_group(&t, group, word, count);
    }
    if (narrow->end) narrow->end();
    gmem__narrow_finish(&t);
}

GMEM__FN void gmem__narrow_run(const gmem__engine *engine, const gmem__gemm *gemm, const gmem__narrow *narrow) {
    const int swiglu = gemm->activation == GMEM__ACT_SWIGLU;
    gmem__gemm plain = *gemm;
    gmem__narrow_job job;
    memset(&job, 0, sizeof job);
    job.engine = engine;
    job.gemm = &plain;
    job.kernels = gmem__engine_kernels(engine);
    job.convert = job.kernels->narrow();
    job.narrow = narrow;
    job.shape = gmem__narrow_shape_of(narrow, gemm->weight, swiglu);
    job.packed = gmem__packed_ready(&job);
    const int64_t group = narrow->mr * narrow->strips, most = GMEM__MC / job.shape.halves;
    job.row_block = gmem__row_block(engine, job.shape.rows, gemm->columns, group, most / group * group);
    const int64_t row_tasks = gmem__ceil_div(job.shape.rows, job.row_block);
    const int64_t packable = gmem__min(GMEM__PANELS / job.shape.words, GMEM__SCALES) / GMEM__NC * GMEM__NC;
    const int packed = gemm->from && gemm->from->packed; /* x is panels already */
    const int share = row_tasks > 1 || narrow->type == GMEM_I8 || gemm->norm != NULL;
    if (!gemm->gate && !gemm->residual &&
        gmem__narrow_hands_over(engine, gemm->to, narrow, gemm->y, job.shape.rows, gemm->columns)) {
        gemm->to->packed = 1;
        job.y = (uint32_t *)(void *)gemm->y;
        job.y_words = job.shape.rows / 2;
        plain.y = NULL;
    }
    if (gemm->norm && !gmem__norm_fits(gemm)) {
        gmem__cpu_norm(engine, gemm->norm);
        plain.norm = NULL;
        plain.x = gemm->norm->y;
        plain.x_stride = gemm->norm->columns;
    }
    for (job.column = 0; job.column < gemm->columns; job.column += job.columns) {
        job.columns = gmem__min(gemm->columns - job.column, share && !packed ? packable : gemm->columns);
        job.column_tasks = gmem__ceil_div(job.columns, GMEM__NC);
        job.packing = share && !packed ? (uint32_t *)engine->scratch : NULL;
        job.panels = packed ? (const uint32_t *)(const void *)gemm->x : job.packing;
        job.scales = (float *)engine->scratch + GMEM__PANELS;
        job.largest = narrow->type == GMEM_I8 ? job.scales + GMEM__SCALES : NULL;
        if (job.packing) gmem__narrow_pack_x(&job);
        gmem__run_tasks(engine, row_tasks * job.column_tasks, gmem__narrow_task, &job);
    }
}

#undef GMEM__SCALES
#undef GMEM__LARGEST
#undef GMEM__PANELS
#undef GMEM__OWN_WORDS
