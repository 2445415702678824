/* The CPU backend's inside: what the drivers (cpu.c) ask of an instruction set (scalar*.c, avx2.c, avx512.c). A driver
 * cuts an operation into tasks and runs them on its threads; a kernel does one task on one thread. */
#ifndef GMEM__CPU_H
#define GMEM__CPU_H

#include "../../src/internal.h"

/* Function-wise target regions, as gcc and clang have them, make -march flags unnecessary. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(GMEM_NO_SIMD)
#define GMEM__X86 1
/* Weights lie at any address of a mapping. */
typedef float gmem__unaligned_f32 __attribute__((aligned(1), may_alias));

/* features.c. What needs registers counts only where the system saves them; amx: a process must still ask for it. */
typedef struct gmem__features {
    int amd; /* by whom it is made */
    int avx2 /* with FMA and F16C */, avx512 /* F, BW, DQ, VL */, avx512_bf16, avx512_vnni, avx_vnni, amx;
} gmem__features;
GMEM__FN gmem__features gmem__processor_features(void);

/* Around functions that are compiled for more than the whole file is. A stand-in for the instructions needs no more. */
#ifndef GMEM__TARGET_BEGIN
#define GMEM__PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define GMEM__TARGET_BEGIN(features) \
    GMEM__PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define GMEM__TARGET_END GMEM__PRAGMA(clang attribute pop)
#else
#define GMEM__TARGET_BEGIN(features) GMEM__PRAGMA(GCC push_options) GMEM__PRAGMA(GCC target(features))
#define GMEM__TARGET_END             GMEM__PRAGMA(GCC pop_options)
#endif
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GMEM__PREFETCH(p) __builtin_prefetch(p)
#else
#define GMEM__PREFETCH(p) ((void)(p))
#endif

/* The GEMM's blocks (BLIS's MC, NC, KC). A task's share of x and of y stay in the second-level cache, a strip of
 * weights in the first-level one. */
#define GMEM__MC 192
#define GMEM__NC 256
#define GMEM__KC 288

/* Scratch of one thread and what all share, in floats. The shared part holds an operand x that was packed for all row
 * blocks; where x is too deep for it, each task packs its own. */
#define GMEM__SCRATCH (512 * 1024)
#define GMEM__SHARED  (2 * 1024 * 1024)

/* Row operations go in tasks of so many columns (norm, rotate) or queries (attention), never across samples. */
#define GMEM__COLUMN_BLOCK 64

/* One matrix product, the common form of gmem__linear and gmem__conv:
 * y (rows, columns) = W (rows, depth) x (depth, columns), then the epilogue. */
typedef struct gmem__gemm {
    const gmem__weight *weight;
    int round_bf16; /* both operands are rounded to bf16 first */
    const float *x; /* (depth, columns), rows x_stride apart */
    int64_t x_stride;
    const gmem__norm *norm; /* or what x comes from, computed while it is packed */
    const gmem__conv *conv; /* or the image whose patches are x, which is then never stored whole */
    int64_t line; /* of the image: where tiles copy lines of so many pixels (gmem__lines) instead of panels, else 0 */
    int64_t rows, depth, columns;
    /* epilogue: y = residual + gate * activation(W x + bias) */
    const float *bias; /* (rows) or NULL */
    gmem__activation activation;
    const float *gate; /* (samples, rows) or NULL */
    int64_t gate_stride, tokens;
    const float *residual; /* like y, may be y; or NULL */
    float *y;              /* (rows, columns), or (rows / 2, columns) for SWIGLU; rows y_stride apart */
    int64_t y_stride;
    gmem__handover *to; /* as gmem__linear has them */
    const gmem__handover *from;
} gmem__gemm;

/* A rectangle of a gmem__gemm's product. With SWIGLU rows go in pairs: `row` and `rows` count pairs, j standing for
 * rows j and j + gemm->rows / 2, so that the epilogue sees both. */
typedef struct gmem__tile {
    int64_t row, rows, column, columns;
} gmem__tile;

/* The rows of the product that a tile computes, and the i-th of them. */
GMEM__INLINE int64_t gmem__tile_rows(const gmem__gemm *gemm, const gmem__tile *tile) {
    return gemm->activation == GMEM__ACT_SWIGLU ? 2 * tile->rows : tile->rows;
}
GMEM__INLINE int64_t gmem__tile_row(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i) {
    return i < tile->rows ? tile->row + i : gemm->rows / 2 + tile->row + i - tile->rows;
}

/* pack.c: x[k .. k + depth) of `columns` columns from `column` on, as panels of nr columns (depth, nr), panel_step
 * floats apart, the last one padded with zeros. */
GMEM__FN void gmem__pack(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns, int64_t nr,
                         int64_t panel_step, float *panels);

/* What a tile needs of an image under a 3 x 3 kernel: lines with a pixel more at either end, those of a channel one
 * after the other. A line serves nine taps, which read it at different places; as panels it would be copied for each.
 */
typedef struct gmem__lines {
    int64_t width, step, channel_step; /* pixels of a line without the ends; floats between lines, and channels */
} gmem__lines;

/* How long such lines are for panels of nr columns; 0: patches can't be taken from lines. */
GMEM__FN int64_t gmem__line_width(const gmem__conv *conv, int64_t nr);
GMEM__FN gmem__lines gmem__lines_of(int64_t width);
/* Where the patches begin of the pixels from a tile's `column` on, in its first channel. */
GMEM__INLINE const float *gmem__line_at(const gmem__lines *lines, const float *first, int64_t column) {
    return first + column / lines->width * lines->step + column % lines->width;
}
/* Those of `channels` channels from `first` on around the columns of a tile. */
GMEM__FN void gmem__pack_lines(const gmem__gemm *gemm, const gmem__lines *lines, int64_t first, int64_t channels,
                               const gmem__tile *tile, float *out);

struct gmem__narrow;
struct gmem__narrow_rows;

/* The same of an image's patches as words of bf16, without floats between: `words` from the tap k on, an even one,
 * zeros beyond the depth; where whole panels lie in each output row, which gmem__packs_words tells. */
GMEM__FN int gmem__packs_words(const gmem__gemm *gemm, int64_t nr, int64_t column, int64_t columns);
GMEM__FN void gmem__pack_words(const gmem__gemm *gemm, const struct gmem__narrow_rows *convert, int64_t nr, int64_t k,
                               int64_t words, int64_t column, int64_t columns, uint32_t *panels, int64_t panel_step);

/* Rows of a weight for a strip of a narrow kernel (narrow.h): its rows, where they lie in the strip, the depth. */
typedef struct gmem__strip_part {
    int64_t row, rows;  /* of the weight; below mr at the end */
    int64_t k, words;   /* from this value of the depth on; words beyond the depth are zero */
    const float *scale; /* int8: (rows) what the weight was divided by */
} gmem__strip_part;

/* The operands' conversions to words, and back, in vector code. */
typedef struct gmem__narrow_rows {
    /* int8: the scale of one row of weights, max |w| / 127 (NaN where the row is not finite), and its values' sum. */
    void (*measure)(const gmem__weight *weight, int64_t row, float *scale, int32_t *sum);
    /* strip (words / 16, mr, 16) of the part. */
    void (*strip)(const struct gmem__narrow *narrow, const gmem__weight *weight, const gmem__strip_part *part,
                  uint32_t *strip);
    /* x (depth, columns), rows `stride` apart, to panels panel_step words apart, of which this fills `words` rows and
     * whole panels. int8 only: largest (columns) max |x| of each column, or NULL where x is the whole depth; scale
     * (columns) or NULL, what it divides by, largest / gmem__narrow_levels. */
    void (*panels)(const struct gmem__narrow *narrow, const float *x, int64_t stride, int64_t depth, int64_t words,
                   int64_t columns, uint32_t *panels, int64_t panel_step, const float *largest, float *scale);
    /* out (columns) = max |x| over rows `stride` apart; NaN where one is not finite. */
    void (*largest)(const float *x, int64_t stride, int64_t rows, int64_t columns, float *out);
    /* Two rows of x (count; whole panels), neighbours in depth, to a row of words of bf16 panels. */
    void (*pair)(const float *low, const float *high, int64_t count, int64_t nr, uint32_t *panels, int64_t panel_step);
    /* int8: sums (rows, count; whole vectors), `step` apart, in place to floats: times row_scale (rows), or 1 where it
     * is NULL, and scale (count). weight_sums (rows), as columns were stored as x + offset. */
    void (*dequantise)(void *sums, int64_t step, int64_t rows, int64_t count, int offset, const int32_t *weight_sums,
                       const float *row_scale, const float *scale);
} gmem__narrow_rows;

/* Rows of a bank against a few queries: products and squares, summed in f32; with int8 exactly, for widths up to
 * GMEM__SCAN_I8_WIDTH. */
#define GMEM__SCAN_ROWS     256
#define GMEM__SCAN_AHEAD    8192 /* bytes */
#define GMEM__SCAN_I8_WIDTH 4096 /* 128 * 32767 of each value, in 32 bits: 512 values a lane */
typedef struct gmem__scan_block {
    const void *data;                /* (rows, width) in the bank's type, row_stride elements apart, maybe unaligned */
    gmem_type type;                  /* F32, F16, BF16, I8 without scales */
    int64_t rows, row_stride, width; /* at most GMEM__SCAN_ROWS rows */
    const void *query; /* (queries, width) f32, with I8 int16; query_step apart, zeros up to a multiple of 32 */
    const void *end;   /* of what may be read and comes later */
    int64_t ahead;     /* bytes from what is read to what is fetched meanwhile; 0: nothing */
    int64_t queries, query_step; /* 0, 1 or a multiple of 4 */
    float *products;             /* (queries, GMEM__SCAN_ROWS) */
    float *squares;              /* (rows) */
} gmem__scan_block;

/* What a cosine is made of, in double. */
typedef struct gmem__exact_sums {
    double product, square;
    float largest; /* |x|; of no meaning where one is NaN, of which the sums tell */
} gmem__exact_sums;

typedef struct gmem__kernels {
    int64_t mr, nr; /* rows and columns of the GEMM's micro-kernel */
    int lines;      /* it takes lines (gemm->line) */
    /* One tile of y: at most GMEM__MC product rows and GMEM__NC columns. `panels`: the tile's columns of x, packed with
     * the whole depth; or NULL, then the kernel packs them. scratch (GMEM__SCRATCH). */
    void (*gemm)(const gmem__gemm *gemm, const gmem__tile *tile, const float *panels, float *scratch);

    /* Columns [begin, end) of all, which belong to one sample; at most GMEM__COLUMN_BLOCK. */
    void (*norm)(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end);
    /* The same columns of one head. */
    void (*rotate)(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end);
    /* Queries [begin, end) of the sample's tokens; at most GMEM__COLUMN_BLOCK. scratch (GMEM__SCRATCH). */
    void (*attention)(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin, int64_t end,
                      float *scratch);
    void (*group_norm)(const gmem__group_norm *op, int64_t group);

    /* Row i of a tile from the product to y: activation, gate, residual. up: where SWIGLU's second half begins. y NULL:
     * it stays in the product, and there is neither gate nor residual. */
    void (*finish_row)(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up, float *product);
    /* x (count) to the nearest bf16 values, in place. */
    void (*round_bf16)(float *x, int64_t count);
    const gmem__narrow_rows *(*narrow)(void);
    /* Like attention, by the products of a bf16 kernel; gmem__narrow_attention_floats of scratch. Or NULL. */
    void (*narrow_attention)(const struct gmem__narrow *narrow, const gmem__attention *op, int64_t sample, int64_t head,
                             int64_t begin, int64_t end, float *scratch);
    /* out (nr / 2, nr / 2; rows out_step apart) += left^T right, both (depth, nr / 2). */
    void (*scatter)(const double *left, const double *right, int64_t depth, double *out, int64_t out_step);

    void (*scan)(const gmem__scan_block *block);
    /* The block's rows, at most mr, as a strip of the narrow kernel, all of the depth, in one reading; squares as of
     * `scan`, and int8's sums where products are. Rounding to bf16 breaks ties upwards. The queries are not looked at.
     */
    void (*scan_strip)(const struct gmem__narrow *narrow, const gmem__scan_block *block, uint32_t *strip);
    /* Adds a row's product with `query` (rows->cols), and so on; int8 without its scale. */
    void (*exact)(const gmem__weight *rows, int64_t row, const float *query, gmem__exact_sums *sums);
    /* sum(quadratic c^2) and sum(linear c) over a row c; quadratic, linear (rows->cols). */
    void (*form)(const gmem__weight *rows, int64_t row, const float *quadratic, const float *linear, float *square,
                 float *sum);
    /* Those scores (rows, count), `step` apart, that are at least factor (rows) * bar (count), as row * step + column,
     * in order: how many. */
    int64_t (*above)(const float *scores, int64_t step, int64_t rows, int64_t count, const float *factors,
                     const float *bars, int32_t *which);
} gmem__kernels;

/* avx2.c and avx512.c: what the build has; whether the processor has it too is cpu.c's question. */
GMEM__FN const gmem__kernels *gmem__scalar_kernels(void);
#ifdef GMEM__X86
GMEM__FN const gmem__kernels *gmem__avx2_kernels(void);
GMEM__FN const gmem__kernels *gmem__avx512_kernels(void);
#endif

/* scalar.c: weight[row][k .. k + count) as floats. scalar_narrow.c. */
GMEM__FN void gmem__scalar_weights(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out);
GMEM__FN const gmem__narrow_rows *gmem__scalar_narrow(void);
/* scalar_scan.c */
GMEM__FN void gmem__scalar_scan(const gmem__scan_block *block);
GMEM__FN void gmem__scalar_scan_strip(const struct gmem__narrow *narrow, const gmem__scan_block *block,
                                      uint32_t *strip);
GMEM__FN void gmem__scalar_exact(const gmem__weight *rows, int64_t row, const float *query, gmem__exact_sums *sums);
GMEM__FN void gmem__scalar_form(const gmem__weight *rows, int64_t row, const float *quadratic, const float *linear,
                                float *square, float *sum);
GMEM__FN int64_t gmem__scalar_above(const float *scores, int64_t step, int64_t rows, int64_t count,
                                    const float *factors, const float *bars, int32_t *which);

/* scalar_rows.c: the references of the row operations. */
GMEM__FN void gmem__scalar_norm(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end);
GMEM__FN void gmem__scalar_rotate(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end);
GMEM__FN void gmem__scalar_attention(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin,
                                     int64_t end, float *scratch);
GMEM__FN void gmem__scalar_group_norm(const gmem__group_norm *op, int64_t group);

/* drivers.c: the row operations, cut into tasks. */
GMEM__FN void gmem__cpu_norm(const gmem__engine *engine, const gmem__norm *op);
GMEM__FN void gmem__cpu_rotate(const gmem__engine *engine, const gmem__rotate *op);
GMEM__FN void gmem__cpu_attention(const gmem__engine *engine, const gmem__attention *op);
GMEM__FN void gmem__cpu_group_norm(const gmem__engine *engine, const gmem__group_norm *op);

/* cpu.c: the kernels behind engine->ops. */
GMEM__FN const gmem__kernels *gmem__engine_kernels(const gmem__engine *engine);
/* Runs task(job, i, scratch) for each i below `tasks`, in any order on any thread, each with its own GMEM__SCRATCH
 * floats. What a task computes depends on its number only, so that results don't depend on the number of threads. */
GMEM__FN void gmem__run_tasks(const gmem__engine *engine, int64_t tasks,
                              void (*task)(const void *job, int64_t i, float *scratch), const void *job);

/* The number of the thread that a task's scratch belongs to, below engine->threads. */
GMEM__FN int gmem__scratch_owner(const gmem__engine *engine, const float *scratch);

/* A product cut into tasks over the columns, or the depth, of x, and over tiles of y; shared by f32 and narrow ones. */
#define GMEM__PACK_ROWS    64 /* of x in a task that packs them */
#define GMEM__PACK_COLUMNS 32 /* or columns, where a task needs them whole; every nr divides it */

/* Whether gemm->norm can be computed while packing: a task's columns fit in its scratch. */
GMEM__INLINE int gmem__norm_fits(const gmem__gemm *gemm) { return gemm->depth * GMEM__PACK_COLUMNS <= GMEM__SCRATCH; }
/* cpu.c: columns [begin, begin + count) of gemm->norm's result: out (depth, GMEM__PACK_COLUMNS). */
GMEM__FN void gmem__normed_columns(const gmem__kernels *kernels, const gmem__gemm *gemm, int64_t begin, int64_t count,
                                   float *out);
/* cpu.c: rows of y in a task, a multiple of mr and at most `largest`. */
GMEM__FN int64_t gmem__row_block(const gmem__engine *engine, int64_t rows, int64_t columns, int64_t mr,
                                 int64_t largest);
/* narrow.c: the kernel for products with this weight, or NULL; and the product. */
GMEM__FN const struct gmem__narrow *gmem__narrow_for(const gmem__engine *engine, const gmem__weight *weight);
GMEM__FN void gmem__narrow_run(const gmem__engine *engine, const gmem__gemm *gemm, const struct gmem__narrow *narrow);

/* narrow.c: whether what this kernel computes, x (depth, columns) of the reader at `x`, can be left there in the panels
 * of the reader's product: whole words and panels. Then the panels lie one after the other. */
GMEM__FN int gmem__narrow_hands_over(const gmem__engine *engine, const gmem__handover *to,
                                     const struct gmem__narrow *narrow, const void *x, int64_t depth, int64_t columns);

/* host.c: the operations that no instruction set does better. */
GMEM__FN void gmem__host_copy(const gmem__engine *engine, const gmem__copy *op);
GMEM__FN void gmem__host_patches(const gmem__engine *engine, const gmem__patches *op);
GMEM__FN void gmem__host_combine(const gmem__engine *engine, const gmem__combine *op);
GMEM__FN void gmem__host_transpose(const gmem__engine *engine, const gmem__transpose *op);
GMEM__FN void gmem__host_silu(const gmem__engine *engine, float *x, int64_t count);
GMEM__FN void gmem__host_normal(const gmem__engine *engine, const gmem__normal *op);
GMEM__FN void gmem__host_scale_shift(const gmem__engine *engine, const gmem__scale_shift *op);
GMEM__FN int gmem__host_finite(const gmem__engine *engine, const float *x, int64_t count, int note);
GMEM__FN double gmem__host_error_norm(const gmem__engine *engine, const gmem__error_norm *op);
GMEM__FN void gmem__host_change(const gmem__engine *engine, const gmem__change *op, double *change, double *size);
GMEM__FN void gmem__host_transfer(const gmem__engine *engine, float *to, const float *from, int64_t count);
GMEM__FN void gmem__host_pixels(const gmem__engine *engine, uint8_t *pixels, const float *x, int64_t area,
                                float offset);
GMEM__FN void gmem__host_hand_over(const gmem__engine *engine, const float *from, const gmem__engine *with, float *to,
                                   int64_t count);
GMEM__FN int gmem__host_reserve(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena);
GMEM__FN void gmem__host_release(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena);
GMEM__FN gmem_status gmem__host_settle(const gmem__engine *engine, int *notes, gmem_error *error);

#endif /* GMEM__CPU_H */
