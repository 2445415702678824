/* Private declarations shared by the parts: linkage, errors, memory, checked sizes, files, the table of operations.
 * In the single file everything here is static; apart, the parts link against each other. */
#ifndef GMEM__INTERNAL_H
#define GMEM__INTERNAL_H

#include "api.h"

#include <stdarg.h>
#include <string.h>

/* Apart, the parts are compiled with GMEM__PARTS and see each other; in the single file they are static, and what a
 * configuration does not use must not warn. */
#ifdef GMEM__PARTS
#define GMEM__FN
#elif defined(__GNUC__) || defined(__clang__)
#define GMEM__FN static __attribute__((unused))
#else
#define GMEM__FN static
#endif

#if defined(__GNUC__) || defined(__clang__)
#define GMEM__PRINTF(string, first) __attribute__((format(printf, string, first)))
#define GMEM__RESTRICT              __restrict
#define GMEM__INLINE                static inline __attribute__((unused))
#define GMEM__ALWAYS_INLINE         static inline __attribute__((unused, always_inline))
#else
#define GMEM__PRINTF(string, first)
#define GMEM__RESTRICT
#define GMEM__INLINE        static inline
#define GMEM__ALWAYS_INLINE static inline
#endif

/* What threads share and write. */
#if defined(__GNUC__) || defined(__clang__)
#define GMEM__ATOMIC_LOAD(p)         __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define GMEM__ATOMIC_STORE(p, value) __atomic_store_n((p), (value), __ATOMIC_RELEASE)
#define GMEM__ATOMIC_CLAIM(p, old, new) \
    __atomic_compare_exchange_n((p), (old), (new), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
#else /* claims fail: whoever wants one does without */
#define GMEM__ATOMIC_LOAD(p)            (*(p))
#define GMEM__ATOMIC_STORE(p, value)    (*(p) = (value))
#define GMEM__ATOMIC_CLAIM(p, old, new) (0)
#endif

/* errors ---------------------------------------------------------------------------------------------------------- */

/* Fill `error` (may be NULL) and return `code`. Messages never depend on the locale: numbers are integers or go
 * through gmem__format_double. */
GMEM__FN gmem_status gmem__fail(gmem_error *error, gmem_status code, const char *format, ...) GMEM__PRINTF(3, 4);
/* The same with the file and the byte offset (-1: none). */
GMEM__FN gmem_status gmem__fail_at(gmem_error *error, gmem_status code, const char *path, int64_t offset,
                                   const char *format, ...) GMEM__PRINTF(5, 6);
/* Adds the path to an error that was raised without one; returns the error's code. */
GMEM__FN gmem_status gmem__fail_in(gmem_error *error, gmem_status code, const char *path);
/* What a callback is given to fill, and what becomes of it: its own error, or where it filled in none, one that says
 * who failed. Returns `status`. */
GMEM__FN gmem_error gmem__callback_error(void);
GMEM__FN gmem_status gmem__fail_callback(gmem_error *error, gmem_status status, const gmem_error *from,
                                         const char *who);

#define GMEM__TRY(call)                                     \
    do {                                                    \
        gmem_status gmem__status_ = (call);                 \
        if (gmem__status_ != GMEM_OK) return gmem__status_; \
    } while (0)

/* "blocks.3.attn.qkv.weight" of file text, escaped: gmem__quoted q; gmem__quote(&q, name) inside a printf call. */
typedef struct gmem__quoted {
    char text[200];
} gmem__quoted;
GMEM__FN const char *gmem__quote(gmem__quoted *buffer, const char *name);
/* "3456 x 1152", "scalar" for rank 0. */
GMEM__FN const char *gmem__shape_text(gmem__quoted *buffer, const int64_t *shape, int rank);

/* Locale-independent numbers: %.9g and back. parse returns 0 where the whole text is no finite number. */
GMEM__FN const char *gmem__format_double(gmem__quoted *buffer, double value);
GMEM__FN int gmem__parse_double(const char *text, size_t bytes, double *out);

/* sizes from files ------------------------------------------------------------------------------------------------ */

/* Non-negative operands only; 0 on overflow of int64. */
GMEM__INLINE int gmem__mul(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0 || (a != 0 && b > INT64_MAX / a)) return 0;
    *out = a * b;
    return 1;
}
GMEM__INLINE int gmem__add(int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0 || b > INT64_MAX - a) return 0;
    *out = a + b;
    return 1;
}
GMEM__INLINE int64_t gmem__min(int64_t a, int64_t b) { return a < b ? a : b; }
GMEM__INLINE int64_t gmem__max(int64_t a, int64_t b) { return a > b ? a : b; }
GMEM__INLINE int64_t gmem__ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GMEM__INLINE int64_t gmem__round_up(int64_t a, int64_t b) { return gmem__ceil_div(a, b) * b; }

/* context and memory ---------------------------------------------------------------------------------------------- */

struct gmem__ops;
struct gmem__block;
struct gmem__device; /* an OpenCL device, opened (backends/opencl/opencl.h) */
struct gmem__stream; /* its queue and memory for one engine */

struct gmem_context {
    gmem_allocator allocator;
    gmem_io io;
    void (*log)(void *user, const char *line);
    void *log_user;
    int threads;
    int no_map;
    gmem_isa isa;
    int any_isa; /* it was not asked for by name */
    gmem_compute compute;
    const struct gmem__ops *ops;            /* of the CPU */
    const struct gmem__narrow *bf16, *int8; /* see gmem__engine */
    struct gmem__device *device;            /* what networks run on unless they say otherwise; NULL: the CPU */
    gmem_backend asked;                     /* AUTO: what a device fails to do the CPU does, ... */
    int device_failed;                      /* ... and has done; read and written atomically */
    char backend[160];
};

GMEM__FN gmem_allocator gmem__system_allocator(void);
/* io.c: asks the system to back this memory with huge pages; it may not. */
GMEM__FN void gmem__prefer_huge_pages(void *memory, int64_t bytes);
GMEM__FN void gmem__log(const gmem_context *context, const char *format, ...) GMEM__PRINTF(2, 3);
/* Zero-filled memory or NULL; count * bytes is checked. Freed with the same numbers. */
GMEM__FN void *gmem__alloc(const gmem_context *context, int64_t count, size_t bytes);
GMEM__FN void gmem__free(const gmem_context *context, void *memory, int64_t count, size_t bytes);
/* The same without the zeroing, for large buffers. */
GMEM__FN void *gmem__alloc_raw(const gmem_context *context, int64_t count, size_t bytes);

#define GMEM__ARENA_CUTS 24

/* Activations live in one block sized beforehand: run the same takes on an arena without memory, reserve, and run them
 * again. A take from a full arena gives NULL and makes `used` exceed `bytes`. */
typedef struct gmem__arena {
    char *memory;
    int64_t bytes, used;
    int64_t cut[GMEM__ARENA_CUTS]; /* where the first takes end: a device may give each its own memory */
    int cuts;
    int64_t grain; /* bytes: what a device cannot hold in one piece may be cut at multiples of it; 0: nowhere */
} gmem__arena;
GMEM__FN void *gmem__take(gmem__arena *arena, int64_t count, size_t bytes); /* 64-byte aligned */
/* Allocates what was taken so far and starts anew; 0 without memory, where `bytes` tells how much it would have been.
 */
GMEM__FN int gmem__arena_reserve(const gmem_context *context, gmem__arena *arena);
GMEM__FN void gmem__arena_release(const gmem_context *context, gmem__arena *arena);
#define GMEM__TAKE_F32(arena, count) ((float *)gmem__take((arena), (count), sizeof(float)))

/* Allocations that are freed together; small ones share a block. Zero-filled, `align` a power of two up to 64. */
GMEM__FN void *gmem__blocks_take(const gmem_context *context, struct gmem__block **blocks, int64_t count, size_t bytes,
                                 size_t align);
/* Large and uninitialised: the system gives such memory away without touching it. 64-byte aligned. */
GMEM__FN void *gmem__blocks_take_raw(const gmem_context *context, struct gmem__block **blocks, int64_t bytes);
GMEM__FN void gmem__blocks_free(const gmem_context *context, struct gmem__block **blocks);

/* io.c: the system's files, and whole files in memory or mapped --------------------------------------------------- */

GMEM__FN gmem_io gmem__system_io(void);

typedef struct gmem__bytes {
    const unsigned char *data;
    int64_t size;
    int mapped, owned;
} gmem__bytes;
GMEM__FN gmem_status gmem__bytes_open(const gmem_context *context, const char *path, gmem__bytes *out,
                                      gmem_error *error);
GMEM__FN void gmem__bytes_close(const gmem_context *context, gmem__bytes *bytes);

/* tensor.c -------------------------------------------------------------------------------------------------------- */

GMEM__FN int gmem__tensor_is_contiguous(const gmem_tensor *tensor);
GMEM__FN float gmem__f16_to_f32(uint16_t half);
GMEM__FN uint16_t gmem__f32_to_f16(float value);
GMEM__FN uint16_t gmem__f32_to_bf16(float value);
GMEM__INLINE float gmem__bf16_to_f32(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
/* Needed tensors with a shape to match; a dimension of -1 matches any. Errors: E_MISSING_TENSOR, E_SHAPE, E_TYPE,
 * E_FOREIGN, with the name and both shapes. `out` gets a floating-point tensor, or I8 where `NAME.scale` exists. */
GMEM__FN gmem_status gmem__need(const gmem_file *file, const char *name, int rank, const int64_t *shape,
                                const gmem_tensor **out, gmem_error *error);
/* `NAME.scale`, one value a row of an I8 tensor, or NULL. */
GMEM__FN const gmem_tensor *gmem__find_scale(const gmem_file *file, const char *name);

/* weights --------------------------------------------------------------------------------------------------------- */

/* A copy of a weight in the order and type of a narrow kernel (backends/cpu/narrow.h). Its memory is reserved when the
 * network is opened and filled by the first product that needs it; whoever finds it being filled does without. */
typedef struct gmem__packed {
    int state; /* GMEM__PACKED_*, read and written atomically */
    uint32_t *words;
    float *scale; /* int8: (rows) what multiplies each row, and (rows) the sum of its values */
    int32_t *sum;
    const gmem_file *file; /* whose mapping may be let go of once the copy is there; or NULL */
} gmem__packed;

enum { GMEM__PACKED_EMPTY, GMEM__PACKED_FILLING, GMEM__PACKED_READY };

/* A matrix of weights in the file's own type, rows contiguous. Convolutions (O, I, k, k) count as (O, I * k * k). */
typedef struct gmem__weight {
    const void *data;     /* (rows, cols), little-endian, maybe unaligned */
    const float *scale;   /* (rows) for I8, else NULL */
    gmem_type type;       /* F32, F16, BF16, I8 */
    gmem_compute compute; /* what products with it compute in */
    gmem__packed *packed; /* or NULL */
    int64_t rows, cols;
    int64_t row_stride; /* elements */
} gmem__weight;

/* weights.c: what a model takes from its file. Matrices of the four types and vectors of f32 stay in the mapping; other
 * types and what is not contiguous are copied to f32 into `store`. */
typedef struct gmem__store {
    const gmem_context *context;
    const gmem_file *file;
    struct gmem__device *device;          /* where operations want the weights; NULL: the host */
    struct gmem__device_memory *uploaded; /* there: see gmem__store_upload */
    struct gmem__block *blocks;           /* of owned memory, freed together */
    char *packed;                         /* what is left of the last piece of memory for packed weights, */
    int64_t packed_left, packed_bytes;    /* its bytes, and those of all pieces */
    int64_t parameters, bytes;            /* of what was taken */
} gmem__store;
GMEM__FN gmem_status gmem__store_matrix(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                        gmem__weight *out, gmem_error *error);
GMEM__FN gmem_status gmem__store_conv(gmem__store *store, const char *name, int64_t out_channels, int64_t in_channels,
                                      int64_t kernel, gmem__weight *out, gmem_error *error);
GMEM__FN gmem_status gmem__store_vector(gmem__store *store, const char *name, int64_t count, const float **out,
                                        gmem_error *error);
/* A matrix that stays on the host. */
GMEM__FN gmem_status gmem__store_table(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                       gmem__weight *out, gmem_error *error);
/* *values (count), in memory that stays: its address where operations want it. */
GMEM__FN gmem_status gmem__store_place(gmem__store *store, const float **values, int64_t count, gmem_error *error);
/* After everything was taken: brings it to the device, if there is one. */
GMEM__FN gmem_status gmem__store_upload(gmem__store *store, gmem_error *error);
GMEM__FN void *gmem__store_alloc(gmem__store *store, int64_t count,
                                 size_t bytes); /* zero-filled, freed with the store */
GMEM__FN void gmem__store_free(gmem__store *store);
/* Lets products with `weight` compute in this type, and reserves memory for the copy that its kernel wants, if any.
 * swiglu: they end in GMEM__ACT_SWIGLU. */
GMEM__FN gmem_status gmem__store_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute, int swiglu,
                                        gmem_error *error);

/* the table of operations ----------------------------------------------------------------------------------------- */

/* Activations are channels-first: x (channels, columns), the columns of all samples of the batch side by side
 * (columns = batch * tokens, sample-major). A weight row is then broadcast over contiguous columns, reductions over
 * channels need no shuffles, and a transformer's linear layer, a 1x1 convolution and a 3x3 convolution are one GEMM. */

typedef enum gmem__activation {
    GMEM__ACT_NONE,
    GMEM__ACT_SILU,
    GMEM__ACT_GELU_TANH,
    GMEM__ACT_GELU_ERF,
    GMEM__ACT_SWIGLU /* y (rows / 2, columns): silu(row r) * row (r + rows / 2) */
} gmem__activation;

/* y = norm(x) over channels, per column, then y = y * (1 + scale) + shift. */
typedef struct gmem__norm {
    int rms; /* RMSNorm; else LayerNorm */
    float eps;
    const float *weight; /* (channels) or NULL for 1 */
    const float *bias;   /* (channels) or NULL for 0 */
    const float *shift;  /* (samples, channels), samples modulation_stride apart; or NULL for 0 */
    const float *scale;  /* likewise; or NULL for 0 */
    int64_t modulation_stride;
    const float *x;             /* (channels, columns) */
    float *y;                   /* (channels, columns) from column y_column on, rows y_stride apart; may be x */
    int64_t y_stride, y_column; /* y_stride 0: columns */
    int64_t channels, columns, tokens;
} gmem__norm;

/* What is computed for one product alone: a backend may leave it, in the same memory, in the order that this product's
 * kernel wants, and then says so. */
typedef struct gmem__handover {
    const gmem__weight *reader; /* the product's weight */
    int packed;                 /* whether it was */
} gmem__handover;

/* y = activation(W x + bias); with `gate` or `residual`: y += gate * (W x + bias). */
typedef struct gmem__linear {
    const gmem__weight *weight; /* (rows, depth) */
    const float *bias;          /* (rows) or NULL */
    const gmem__norm *norm;     /* x is what this gives, and computed on the way; its y is memory for that. Or NULL */
    const float *x;             /* (depth, columns), rows x_stride apart; of no use with norm */
    float *y;                   /* (rows, columns), rows y_stride apart */
    int64_t x_stride, y_stride, columns;
    gmem__activation activation;
    int residual;
    const float *gate; /* (samples, rows), samples gate_stride apart; or NULL for 1 */
    int64_t gate_stride;
    int64_t tokens;             /* columns of one sample, where gate is given */
    gmem__handover *to;         /* of y, where no other columns lie beside it; or NULL */
    const gmem__handover *from; /* of x; or NULL */
} gmem__linear;

/* In place on x (heads * head_dim, columns): norm over each head's channels, then rotary embedding. Pairs (2i, 2i+1)
 * of a head turn by the angle of column (token of the sample), pair i: x' = x cos - y sin, y' = y cos + x sin. */
typedef struct gmem__rotate {
    float *x;
    int64_t heads, head_dim, columns, tokens;
    int norm, rms; /* norm 0: none */
    float eps;
    const float *weight, *bias; /* (head_dim) or NULL */
    const float *cosine, *sine; /* (head_dim / 2, tokens) or NULL: no rotation */
} gmem__rotate;

/* y = softmax(scale * q k^T) v for each sample and head, never holding the full score matrix.
 * q, k, v, y (heads * head_dim, samples * tokens), rows `stride` apart (y: y_stride). */
typedef struct gmem__attention {
    const float *q, *k, *v;
    float *y;
    int64_t heads, head_dim, tokens, samples;
    int64_t stride, y_stride;
    float scale;
    gmem_compute compute; /* int8 counts as bf16 */
    gmem__handover *to;   /* of y; or NULL */
} gmem__attention;

/* y = W * x + bias (+ residual), one image: x (in_channels, height, width), zero padding.
 * kernel 1 or 3. upsample: x is doubled by nearest neighbour first, without being stored. stride 2 pads right and
 * bottom only, (0,1,0,1); stride 1 pads 1 on all sides (kernel 3) or none (kernel 1).
 * y (out_channels, out_height, out_width): height * 2 with upsample, height / 2 with stride 2. */
typedef struct gmem__conv {
    const gmem__weight *weight; /* (out_channels, in_channels * kernel * kernel) */
    const float *bias;          /* (out_channels) or NULL */
    const float *residual;      /* like y, may be y; or NULL */
    const float *x;
    float *y;
    int64_t in_channels, height, width;
    int kernel, stride, upsample;
} gmem__conv;

/* y = norm(x) over each group's channels and area, affine, then silu where asked. x, y (channels, area); y may be x. */
typedef struct gmem__group_norm {
    const float *x;
    float *y;
    const float *weight, *bias; /* (channels) */
    int64_t channels, area, groups;
    float eps;
    int silu;
} gmem__group_norm;

/* The small rest of a pass and of a sampler, so that on a device nothing comes back to the host inside a step. -------
 */

/* to (rows, width), rows to_stride apart = from, rows from_stride apart. Where they overlap, `to` lies below `from`. */
typedef struct gmem__copy {
    float *to;
    const float *from;
    int64_t rows, width, to_stride, from_stride;
} gmem__copy;

/* latents (samples, channels, height, width) and patches (rows, samples * tokens), from the one to the other.
 * To patches: rows are (channels, patch, patch). To latents: rows are (patch, patch, patch_channels), of which the
 * first `channels` are used. */
typedef struct gmem__patches {
    float *latents, *patches;
    int64_t samples, channels, height, width, patch, patch_channels;
    int to_latents;
} gmem__patches;

#define GMEM__MAX_TERMS 8

/* out = x_weight x + sum of weight[j] k[j], summed in double (or as exactly), rounded once. `out` may be any of the
 * inputs. All are (rows, width), rows `stride` apart. */
typedef struct gmem__combine {
    float *out;
    const float *x;
    double x_weight;
    int terms;
    double weight[GMEM__MAX_TERMS];
    const float *k[GMEM__MAX_TERMS];
    int64_t rows, width, stride;
} gmem__combine;

/* y (columns, rows), rows y_stride apart = x (rows, columns) turned. */
typedef struct gmem__transpose {
    const float *x;
    float *y;
    int64_t rows, columns, y_stride;
} gmem__transpose;

/* Sum over count of (sum of weight[j] k[j] / (atol + rtol max(|x|, |y|)))^2; y may be NULL. */
typedef struct gmem__error_norm {
    int terms;
    double weight[GMEM__MAX_TERMS];
    const float *k[GMEM__MAX_TERMS];
    const float *x, *y;
    double atol, rtol;
    int64_t count;
} gmem__error_norm;

/* change = sum |after - before - residual|, size = sum |residual|. after (rows, width), rows after_stride apart;
 * before, residual (rows, width). */
typedef struct gmem__change {
    const float *after, *before, *residual;
    int64_t rows, width, after_stride;
} gmem__change;

/* Philox's normal draws (random.c): out (count, per_picture). */
typedef struct gmem__normal {
    uint64_t seed;
    int draw;
    int64_t index, picture, count, per_picture;
    float *out;
} gmem__normal;

/* y (channels, area) = x * scale + shift; scale, shift (channels). */
typedef struct gmem__scale_shift {
    const float *x, *scale, *shift;
    float *y;
    int64_t channels, area;
} gmem__scale_shift;

/* What a note of gmem__ops.finite is about, as bits. */
enum { GMEM__NOTE_NETWORK = 1, GMEM__NOTE_MODEL = 2, GMEM__NOTE_STATE = 4, GMEM__NOTE_IMAGE = 8 };

/* What an operation needs besides its arguments. One per pass; never used by two threads at once. */
typedef struct gmem__engine {
    const struct gmem__ops *ops;
    int threads;
    void *scratch; /* ops->scratch_bytes(threads), 64-byte aligned, of the host */
    /* The kernels of narrow products, found once: asking the processor takes longer than a small product. bf16 NULL:
     * f32 kernels on rounded operands. f32: of scans only; NULL: bf16 does better. */
    const struct gmem__narrow *bf16, *int8, *f32;
    struct gmem__profiler *profiler; /* of ops that time others (profile.h), else NULL */
    struct gmem__stream *stream;     /* of a device; NULL: the CPU */
} gmem__engine;

/* Every pointer to floats in an operation is into memory of the engine: the host's on the CPU; on a device an address
 * that only the device's operations understand, made by `reserve` or by gmem__store_upload, with which the model's code
 * does arithmetic and nothing else. Operations of a device run in order, later; what fails is kept, nothing after it
 * runs, and `settle` tells. */
typedef struct gmem__ops {
    const char *name; /* "cpu/avx2" */
    int64_t (*scratch_bytes)(int threads);
    void (*linear)(const gmem__engine *engine, const gmem__linear *op);
    void (*norm)(const gmem__engine *engine, const gmem__norm *op);
    void (*rotate)(const gmem__engine *engine, const gmem__rotate *op);
    void (*attention)(const gmem__engine *engine, const gmem__attention *op);
    void (*conv)(const gmem__engine *engine, const gmem__conv *op);
    void (*group_norm)(const gmem__engine *engine, const gmem__group_norm *op);

    void (*copy)(const gmem__engine *engine, const gmem__copy *op);
    void (*patches)(const gmem__engine *engine, const gmem__patches *op);
    void (*combine)(const gmem__engine *engine, const gmem__combine *op);
    void (*transpose)(const gmem__engine *engine, const gmem__transpose *op);
    void (*silu)(const gmem__engine *engine, float *x, int64_t count);
    void (*normal)(const gmem__engine *engine, const gmem__normal *op);
    void (*scale_shift)(const gmem__engine *engine, const gmem__scale_shift *op);
    /* 0 where one of count is known not to be finite. A device returns 1 and notes it, for `settle`. */
    int (*finite)(const gmem__engine *engine, const float *x, int64_t count, int note);
    /* These wait for their result. */
    double (*error_norm)(const gmem__engine *engine, const gmem__error_norm *op);
    void (*change)(const gmem__engine *engine, const gmem__change *op, double *change, double *size);
    void (*download)(const gmem__engine *engine, float *to, const float *from, int64_t count);
    /* pixels (area, 3), of the host: clamp(127.5 x + offset, 0, 255) of x (3, area), truncated; NaN gives 0. */
    void (*pixels)(const gmem__engine *engine, uint8_t *pixels, const float *x, int64_t area, float offset);
    /* to (count), of the engine `with` = from, of this one; both of the same device, or the host's. */
    void (*hand_over)(const gmem__engine *engine, const float *from, const gmem__engine *with, float *to,
                      int64_t count);
    /* `from` may change as soon as this returns. */
    void (*upload)(const gmem__engine *engine, float *to, const float *from, int64_t count);
    /* gmem__arena_reserve and gmem__arena_release with memory of the engine. */
    int (*reserve)(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena);
    void (*release)(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena);
    /* Waits for everything; the first failure since the stream began, if any. `notes` receives and clears the notes;
     * NULL after a download, which has waited: nothing more can fail then. */
    gmem_status (*settle)(const gmem__engine *engine, int *notes, gmem_error *error);
} gmem__ops;

/* backends/cpu/cpu.c: the operations of an instruction set, or NULL where this processor or build lacks it.
 * GMEM_ISA_AUTO gives the fastest; `isa` (may be NULL) receives which. */
GMEM__FN const gmem__ops *gmem__cpu_ops(gmem_isa isa, gmem_isa *chosen);
GMEM__FN int gmem__cpu_count(void);
/* backends/cpu/narrow.c: the kernels for BF16 or I8 with an instruction set (never AUTO), and their names. */
GMEM__FN const struct gmem__narrow *gmem__cpu_narrow(gmem_isa isa, gmem_type type);
GMEM__FN const char *gmem__cpu_narrow_name(const struct gmem__narrow *narrow);
/* Bytes of the copy that products of this type with `weight` want, words, scales and sums one after the other; 0: none.
 * A weight that no narrow kernel takes (too deep) gets `*compute` F32. */
GMEM__FN int64_t gmem__cpu_packed_bytes(const gmem_context *context, const gmem__weight *weight, int swiglu,
                                        gmem_compute *compute);
GMEM__FN void gmem__cpu_packed_place(const gmem_context *context, const gmem__weight *weight, int swiglu, void *memory,
                                     gmem__packed *packed);

/* Rows c that stand for rows c M^T + mean, by what is the same for all of them. With M's columns at right angles, which
 * `slack` makes up for where they are not quite, |row|^2 = sum(quadratic c^2) + 2 sum(linear c) + |mean|^2. */
typedef struct gmem__scan_form {
    const float *quadratic, *linear; /* (width of c) the columns' squares, and their products with the mean */
    double mean;                     /* |mean| */
    const float *offset;             /* (count) the mean's products with the queries */
    double square_slack;             /* relative to (|row - mean| + |mean|)^2 */
    double row_slack;                /* how far the rows are from what they are taken to be, likewise */
} gmem__scan_form;

/* backends/cpu/scan.c: all rows of a bank's file against some queries, for a search. Cosines are computed in f32 or
 * narrower and wrong by less than `slack`; who uses them makes sure of those that matter. */
typedef struct gmem__scan {
    /* (rows, width), contiguous and maybe unaligned: F32, F16, BF16, or I8 with a scale for each row */
    const void *data;
    gmem_type type;
    const gmem_tensor *scale;
    /* or what gives rows [first, first + count) in f32 */
    void (*fill)(void *user, int64_t first, int64_t count, float *out);
    /* or they stand for others; then the queries are M's columns' products with unit vectors, and the norms 1 */
    const gmem__scan_form *form;
    int64_t rows, width;
    const float *queries; /* (count, width) */
    const double *norms;  /* (count) */
    int64_t count;
    double *slack; /* (count) */
    /* A row that is not below the thread's cut for the query, cuts (threads, count), comes to `take`. A row whose norm
     * f32 can't tell, a zero or not finite one among others, goes to `odd`, for all queries. */
    const float *cuts;
    void (*take)(void *user, int thread, int64_t row, int64_t query, float cosine);
    void (*odd)(void *user, int thread, int64_t row);
    void *user;
    int how; /* scan.c's choice */
} gmem__scan;

/* Queries at a time, at most. */
#define GMEM__SCAN_QUERIES 256
/* Packs the queries into the engine's scratch and raises `slack` to what the products of these rows need; then the scan
 * itself, before the scratch is used for anything else. */
GMEM__FN void gmem__cpu_scan_prepare(const gmem__engine *engine, gmem__scan *scan);
GMEM__FN void gmem__cpu_scan(const gmem__engine *engine, const gmem__scan *scan);

/* The CPU's engine, without scratch. */
GMEM__FN gmem__engine gmem__cpu_engine(const gmem_context *context);
/* engine.c: the device for a model that asks for this backend: the context's, or NULL. Errors: E_COMBINATION. */
GMEM__FN gmem_status gmem__choose_device(const gmem_context *context, gmem_backend backend, struct gmem__device **out,
                                         gmem_error *error);
/* The engine where the store's weights are, without scratch, and what it holds released. */
GMEM__FN gmem_status gmem__engine_open(const gmem__store *store, gmem__engine *engine, gmem_error *error);
GMEM__FN void gmem__engine_close(gmem__engine *engine);
/* ops->reserve, with an error that says for what there is no memory. */
GMEM__FN gmem_status gmem__engine_reserve(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena,
                                          const char *what, gmem_error *error);

/* backends/opencl: what the rest asks of it (none.c where a build leaves it out) ----------------------------------- */

/* Opens the device that the description asks for, self-test included. AUTO: E_NO_DEVICE unless it is a GPU, faster than
 * the CPU. The context is complete but for its device. `*out` belongs to the caller. */
GMEM__FN gmem_status gmem__device_open(const gmem_context_desc *desc, const gmem_context *context,
                                       struct gmem__device **out, gmem_error *error);
GMEM__FN void gmem__device_close(struct gmem__device *device);
GMEM__FN const char *gmem__device_backend(const struct gmem__device *device); /* "opencl/NAME" */
GMEM__FN const char *gmem__device_kernels(const struct gmem__device *device); /* "opencl", "opencl-f16" */

/* A weight or a vector of the host gets an address (store->uploaded is made when needed), which gmem__device_upload
 * fills. */
GMEM__FN gmem_status gmem__device_place_weight(gmem__store *store, gmem__weight *weight, gmem_error *error);
GMEM__FN gmem_status gmem__device_place_vector(gmem__store *store, const float **values, int64_t count,
                                               gmem_error *error);
/* The weight's products are to compute in this type: it is converted on its way. */
GMEM__FN gmem_status gmem__device_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute,
                                         gmem_error *error);
GMEM__FN gmem_status gmem__device_upload(gmem__store *store, gmem_error *error);
GMEM__FN void gmem__device_memory_free(const gmem_context *context, struct gmem__device_memory *memory);

GMEM__FN gmem_status gmem__stream_open(struct gmem__device *device, const struct gmem__device_memory *shared,
                                       struct gmem__stream **out, gmem_error *error);
GMEM__FN void gmem__stream_close(struct gmem__stream *stream);
GMEM__FN int64_t gmem__stream_largest(const struct gmem__stream *stream); /* bytes of one buffer at most */
GMEM__FN const gmem__ops *gmem__opencl_ops(void);

/* The float and its bits: 1 where every one of `count` is finite. */
GMEM__FN int gmem__all_finite(const float *x, int64_t count);

#endif /* GMEM__INTERNAL_H */
