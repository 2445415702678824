/* The OpenCL backend's inside. From the outside in: the libraries' functions (load.c), devices and the choice among
 * them (devices.c), an opened device with its program (device.c, program.c, tune.c), a stream of operations on it with
 * its memory (stream.c, memory.c), and the operations (product.c, ops.c) on the kernels (*.cl). */
#ifndef GMEM__OPENCL_H
#define GMEM__OPENCL_H

#include "../../src/internal.h"
#include "cl.h"

#ifndef GMEM_NO_OPENCL

/* load.c ---------------------------------------------------------------------------------------------------------- */

/* The functions, and the libraries that they came from, to be closed. */
typedef struct gmem__cl_library {
    gmem__cl_api api;
    void *opened[2];
    int has_clblast;
} gmem__cl_library;

/* Errors: E_NO_DEVICE (no library, or one that lacks a function: the message names it). */
GMEM__FN gmem_status gmem__cl_load(const gmem_opencl *hook, gmem__cl_library *out, gmem_error *error);
GMEM__FN void gmem__cl_unload(gmem__cl_library *library);
/* "CL_OUT_OF_RESOURCES", "-9999": OpenCL's and CLBlast's codes. */
GMEM__FN const char *gmem__cl_code_name(gmem__quoted *buffer, int code);
/* E_DEVICE, or E_MEMORY for the codes that say so, "clBuildProgram: CL_BUILD_PROGRAM_FAILURE (-11)". */
GMEM__FN gmem_status gmem__cl_fail(gmem_error *error, const char *call, int code);

/* devices.c: what there is ---------------------------------------------------------------------------------------- */

/* What a device says of itself, and the smaller of that and of what the caller allows. */
typedef struct gmem__cl_limits {
    gmem__cl_bits type;
    char name[128], vendor[64], driver[64], version[64], platform[64];
    int64_t memory, largest; /* bytes: of all buffers, of one */
    int64_t local_memory;    /* bytes of a work-group */
    int64_t work_group;      /* work-items */
    int64_t work_items[3];   /* of a work-group in each dimension */
    int64_t units;           /* compute units */
    int unified;             /* shares the host's memory */
    int fp16;                /* f16 arithmetic: cl_khr_fp16, on what is no processor */
    int vector_width;        /* floats of a vector instruction, or 1 */
    int is_cpu;              /* runs on the host's processor */
    const char *unusable;    /* why gmem cannot use it, or NULL */
} gmem__cl_limits;

typedef struct gmem__cl_found {
    gmem__cl_platform platform;
    gmem__cl_device_id id;
    gmem__cl_limits limits;
} gmem__cl_found;

#define GMEM__CL_MAX_DEVICES 32

/* Every device of every platform, in the order in which they are numbered; at most GMEM__CL_MAX_DEVICES. A platform
 * or a device that cannot be asked is passed over. Errors: E_NO_DEVICE where there is none, E_DEVICE. */
GMEM__FN gmem_status gmem__cl_list(const gmem__cl_api *api, gmem__cl_found *out, int *count, gmem_error *error);
/* The one that `device` (gmem_context_desc.device) means. gpu_only: of GPUs alone. Errors: E_NO_DEVICE. */
GMEM__FN gmem_status gmem__cl_pick(const gmem__cl_found *found, int count, const char *device, int gpu_only, int *out,
                                   gmem_error *error);

/* kernels --------------------------------------------------------------------------------------------------------- */

/* Every kernel of the program: X(name). The order is that of gmem__cl_kernel_id. First product.cl's, then kernels.cl's.
 */
#define GMEM__CL_KERNELS(X) \
    X(product)              \
    X(product_f16)          \
    X(product_tile)         \
    X(finish_product)       \
    X(pack_rows)            \
    X(pack_columns)         \
    X(pack_panels)          \
    X(column_scales)        \
    X(norm)                 \
    X(rotate_heads)         \
    X(softmax)              \
    X(group_moments)        \
    X(group_norm)           \
    X(copy)                 \
    X(to_patches)           \
    X(to_latents)           \
    X(combine)              \
    X(transpose)            \
    X(silu)                 \
    X(normal)               \
    X(scale_shift)          \
    X(pixels)               \
    X(note_finite)          \
    X(error_norm)           \
    X(change)

typedef enum gmem__cl_kernel_id {
#define GMEM__CL_KERNEL_ENUM(name) GMEM__CL_##name,
    GMEM__CL_KERNELS(GMEM__CL_KERNEL_ENUM)
#undef GMEM__CL_KERNEL_ENUM
        GMEM__CL_KERNEL_COUNT
} gmem__cl_kernel_id;

/* program.c: the text of the .cl files as lines, ended by NULL; their options for a device; the program, from the
 * context's cache folder where it is there, else compiled and put there. What -D says of tiles: gmem__product_options.
 */
GMEM__FN const char *const *gmem__cl_source(void);

/* device.c: an opened device -------------------------------------------------------------------------------------- */

/* Which way a matrix product goes. */
typedef enum gmem__cl_way {
    GMEM__CL_WAY_AUTO,   /* what tuning says of the shape, else by the kind of device */
    GMEM__CL_WAY_OWN,    /* the `product` kernel: local memory, for GPUs */
    GMEM__CL_WAY_TILE,   /* the `product_tile` kernel: a register tile for each work-item, for processors */
    GMEM__CL_WAY_CLBLAST /* CLBlast, then `finish_product` */
} gmem__cl_way;

/* The sizes that are compiled into product.cl's kernels. */
typedef struct gmem__cl_tiles {
    /* product: the sums that a work-item keeps (rows even), the work-items of a group, the depth held in local memory
     */
    int item_rows, item_columns, group_rows, group_columns, group_depth;
    /* product_tile: the sums that a work-item keeps in registers: rows (4, 6, 8 or 12) of 1, 2 or 4 vectors of 4, 8 or
     * 16; the columns (a multiple of a tile's) and the depth that it goes through in its caches */
    int tile_rows, tile_vectors, tile_width, tile_columns, tile_depth;
} gmem__cl_tiles;

/* What tuning found, or the defaults (tune.c). */
typedef struct gmem__cl_tuning {
    gmem__cl_way way; /* of shapes that are not in the table, where there is none */
    int tuned;        /* from the cache folder */
    gmem__cl_tiles tiles;
    struct {
        int64_t rows, depth, columns; /* the nearest decides */
        gmem__cl_way way;
    } shapes[32];
    int shape_count;
} gmem__cl_tuning;

/* What products in GMEM_COMPUTE_F16 are computed in: the option -DF16_ARITHMETIC of product.cl. */
typedef enum gmem__cl_f16 {
    GMEM__CL_F16_NONE,    /* f32, of operands rounded to f16 */
    GMEM__CL_F16_NATIVE,  /* f16, of the device */
    GMEM__CL_F16_STAND_IN /* f16 that is put together of f32, for tests */
} gmem__cl_f16;

/* One per context, read by all its networks and never changed once opened, but for the last four (atomic). */
struct gmem__device {
    const gmem_context *context; /* for its allocator, files and log */
    gmem__cl_library library;
    gmem__cl_found found;
    gmem__cl_context cl;
    gmem__cl_program program;
    int compiled;     /* the program, anew: not from the cache folder */
    gmem__cl_f16 f16; /* what the program was compiled with; NONE where the context computes in something else */
    gmem__cl_tuning tuning;
    char backend[160]; /* "opencl/NAME" */
    int64_t next_address;
    int64_t used;                         /* bytes of all buffers, at most found.limits.memory */
    int64_t giving;                       /* 1 while somebody goes through ... */
    struct gmem__device_memory *memories; /* ... the models that are there, the last opened first */
};

/* selftest.c: runs every operation on small tensors and compares with the scalar CPU's; E_DEVICE_TEST names the one
 * that differs. And what a product of a usual size takes (on this device, on the context's CPU). */
GMEM__FN gmem_status gmem__device_test(struct gmem__device *device, gmem_error *error);
GMEM__FN gmem_status gmem__device_seconds(struct gmem__device *device, double seconds[2], gmem_error *error);
/* program.c: from the cache folder, else compiled. And put there when it has been tested: some drivers compile more
 * when a kernel is first run, and what they have by then is in the binary. What fails of the cache is logged. */
GMEM__FN gmem_status gmem__device_build(struct gmem__device *device, const char *cache_dir, gmem_error *error);
GMEM__FN void gmem__device_keep(const struct gmem__device *device, const char *cache_dir);
/* tune.c: applies what the cache folder holds for this device, if anything. */
GMEM__FN void gmem__device_tuning_load(struct gmem__device *device, const char *cache_dir);

/* A file NAME of the cache folder, read whole or written whole; both checked: the folder exists and only its owner
 * writes to it, a file ends with its own checksum. cache_dir NULL: E_OPEN. (cache.c) */
GMEM__FN gmem_status gmem__cl_cache_read(const gmem_context *context, const char *cache_dir, const char *name,
                                         gmem__bytes *out, gmem_error *error);
GMEM__FN gmem_status gmem__cl_cache_write(const gmem_context *context, const char *cache_dir, const char *name,
                                          const void *data, int64_t bytes, gmem_error *error);
/* FNV-1a, 64 bits: checksums and names of those files. */
GMEM__FN uint64_t gmem__fnv1a(const void *data, int64_t bytes);

/* memory.c: addresses and buffers --------------------------------------------------------------------------------- */

/* A run of addresses with one buffer behind it. Addresses are unique in a device, so a stream finds its own and its
 * network's by looking into both lists. */
typedef struct gmem__cl_buffer {
    uint64_t address;
    int64_t bytes;       /* on the device */
    gmem__cl_mem memory; /* NULL: streamed from `host`, as it lies there, when an operation wants it */
    int64_t users;       /* of a matrix (atomic): streams that may be launching with it; -1: it is streamed */
    /* uploaded memory only: where it comes from, (rows, cols) of `from`, rows row_stride elements apart */
    const void *host;
    const float *scale; /* (rows) host, what multiplies each row of I8; or NULL */
    float *measured;    /* (rows) host, receives what divided each row on its way to I8; or NULL */
    gmem_type from, to;
    int64_t rows, cols, row_stride;
    int is_matrix; /* may be streamed */
} gmem__cl_buffer;

/* Ascending addresses. */
typedef struct gmem__device_memory {
    struct gmem__device *device;
    gmem__cl_buffer *buffers;
    int64_t count, capacity;
    int64_t resident_bytes, streamed_bytes;
    int64_t largest_streamed;         /* bytes (atomic) */
    int wraps;                        /* some buffer's memory is the host's */
    struct gmem__block *blocks;       /* of the host: what is streamed and lies otherwise in the file */
    struct gmem__device_memory *next; /* of the device's */
} gmem__device_memory;

/* Every buffer of the device is made and released by these two, which count. Within the limits, else E_MEMORY.
 * `host`, where not NULL, is wrapped, and only read. */
GMEM__FN gmem_status gmem__device_buffer(struct gmem__device *device, int64_t bytes, const void *host,
                                         gmem__cl_mem *out, gmem_error *error);
GMEM__FN void gmem__device_buffer_release(struct gmem__device *device, gmem__cl_mem memory, int64_t bytes);
/* Makes so much of the device's memory free: where something is lacking, models' matrices that nobody is using give way
 * to it, and are streamed from then on; the log says so. E_MEMORY where all of them are not enough, and none does. */
GMEM__FN gmem_status gmem__device_make_room(struct gmem__device *device, int64_t bytes, gmem_error *error);
/* gmem__device_buffer without `host`, with room made for it, also where only the driver knows that there is none. */
GMEM__FN gmem_status gmem__device_buffer_make(struct gmem__device *device, int64_t bytes, gmem__cl_mem *out,
                                              gmem_error *error);
/* A matrix that is on the device stays there until it is let go of (NULL: nothing is); 0 where it is not. */
GMEM__FN int gmem__device_buffer_hold(gmem__cl_buffer *buffer);
GMEM__FN void gmem__device_buffer_let_go(gmem__cl_buffer *buffer);
/* Bytes of the device's memory that nobody uses. */
GMEM__FN int64_t gmem__device_left(struct gmem__device *device);
/* So many bytes of addresses, nobody else's, with room around; 0 where there are no more. */
GMEM__FN uint64_t gmem__device_addresses(struct gmem__device *device, int64_t bytes);
/* Appends a buffer, whose address is above the others'; 0 without memory. */
GMEM__FN int gmem__device_memory_add(const gmem_context *context, gmem__device_memory *memory,
                                     const gmem__cl_buffer *buffer);
/* The buffer that holds the address, or NULL. */
GMEM__FN gmem__cl_buffer *gmem__device_memory_find(const gmem__device_memory *memory, uint64_t address);
/* Releases the buffers that begin in this run of addresses; all of them, with the list. */
GMEM__FN void gmem__device_memory_drop(gmem__device_memory *memory, uint64_t address, int64_t bytes);
GMEM__FN void gmem__device_memory_clear(const gmem_context *context, gmem__device_memory *memory);

/* stream.c: operations in order ----------------------------------------------------------------------------------- */

enum {
    GMEM__CL_SCRATCH_PRODUCT, /* product.c's four: a result before its epilogue, operands packed, scales of columns */
    GMEM__CL_SCRATCH_ROWS,
    GMEM__CL_SCRATCH_COLUMNS,
    GMEM__CL_SCRATCH_SCALES,
    GMEM__CL_SCRATCH_SCORES,
    GMEM__CL_SCRATCH_SUMS,
    GMEM__CL_SCRATCHES
};

/* Buffers through which a stream's weights come; an operation has one weight. And what weights leave for activations
 * when they are uploaded, bytes, at most; of small devices a quarter. More than that makes weights give way. */
#define GMEM__CL_POOL        2
#define GMEM__CL_ACTIVATIONS ((int64_t)1 << 30)

struct gmem__stream {
    struct gmem__device *device;
    const gmem__device_memory *shared; /* of the network, or NULL */
    gmem__cl_buffer *held;             /* of `shared`: the matrix of the operation at hand; or NULL */
    gmem__device_memory own;           /* of the stream's arenas */
    gmem__cl_queue queue;
    gmem__cl_kernel kernels[GMEM__CL_KERNEL_COUNT]; /* made when first launched */
    int64_t work_group[GMEM__CL_KERNEL_COUNT];      /* work-items that the device can do of each */
    gmem__cl_mem notes;                             /* one int: bits of what was not finite */
    struct {
        gmem__cl_mem memory;
        int64_t bytes;
    } scratch[GMEM__CL_SCRATCHES]; /* of the operations, grown when first needed */
    struct {                       /* of streamed weights, the one used longest ago is next */
        gmem__cl_mem memory;
        int64_t bytes;
        uint64_t address;
        uint64_t used;
    } pool[GMEM__CL_POOL];
    uint64_t clock;
    int reads_host;    /* commands may be reading the host's memory: it must stay until they are done */
    int launches;      /* since the last flush */
    gmem_error failed; /* the first failure; code GMEM_OK while there is none */
};

/* Whether everything is well so far; each operation asks first. */
GMEM__INLINE int gmem__stream_ok(const struct gmem__stream *stream) { return stream->failed.code == GMEM_OK; }
/* Keeps the first failure. Returns whether the code is that of success. */
GMEM__FN int gmem__stream_check(struct gmem__stream *stream, const char *call, int code);
/* Likewise, for what is no code of OpenCL's. */
GMEM__FN void gmem__stream_fail(struct gmem__stream *stream, gmem_status code, const char *message);

/* A buffer and the place in it, in bytes. */
typedef struct gmem__cl_place {
    gmem__cl_mem memory;
    int64_t offset;
} gmem__cl_place;
/* NULL gives the notes' buffer at 0, for kernels that do not look at it. Fails the stream where the address is not
 * known; streams the weight where it is not resident. */
GMEM__FN gmem__cl_place gmem__stream_find(struct gmem__stream *stream, const void *address);
/* At least so many bytes, or NULL and a failed stream. Contents are lost when it grows. */
GMEM__FN gmem__cl_mem gmem__stream_scratch(struct gmem__stream *stream, int which, int64_t bytes);
/* Tensors of `count` things each, side by side in memory that may be cut between two of them: a walk goes through those
 * that lie in one buffer of every tensor at a time, and through all at once where nothing is cut. */
#define GMEM__CL_WALKED 3
typedef struct gmem__cl_walk {
    struct gmem__stream *stream;
    int64_t count, first, size; /* the piece is [first, first + size) */
    int tensors;
    struct {
        uint64_t address;
        int64_t step, bytes;
    } tensor[GMEM__CL_WALKED];
} gmem__cl_walk;
GMEM__FN gmem__cl_walk gmem__cl_walk_start(struct gmem__stream *stream, int64_t count);
/* A tensor's things: `bytes` of each, `step` bytes apart. NULL is passed over. */
GMEM__FN void gmem__walk_along(gmem__cl_walk *walk, const void *address, int64_t step, int64_t bytes);
/* The next piece; 0 at the end and after a failure, that of a thing itself cut being one. */
GMEM__FN int gmem__walk_next(gmem__cl_walk *walk);
/* Bytes to and from an address (NULL: the notes); both wait. */
GMEM__FN void gmem__stream_write(struct gmem__stream *stream, const void *address, const void *from, int64_t bytes);
GMEM__FN void gmem__stream_read(struct gmem__stream *stream, const void *address, void *to, int64_t bytes);
/* Waits for everything so far. */
GMEM__FN void gmem__stream_finish(struct gmem__stream *stream);
/* gmem__ops.reserve and .release: a buffer for each take, for devices bound the size of one, and for a larger take
 * several, each a multiple of the arena's grain; takes beyond GMEM__ARENA_CUTS share the last. Returns 0 with a failed
 * stream where there is not so much memory. */
GMEM__FN int gmem__stream_reserve(struct gmem__stream *stream, const gmem_context *context, gmem__arena *arena);
GMEM__FN void gmem__stream_release(struct gmem__stream *stream, const gmem_context *context, gmem__arena *arena);

/* A launch: arguments in the kernel's order, then run. Every pointer is two arguments of the kernel: the buffer, and a
 * ulong that counts elements. */
typedef struct gmem__cl_launch {
    struct gmem__stream *stream;
    gmem__cl_kernel_id kernel;
    uint32_t count; /* arguments so far */
} gmem__cl_launch;
GMEM__FN gmem__cl_launch gmem__launch(struct gmem__stream *stream, gmem__cl_kernel_id kernel);
GMEM__FN void gmem__launch_pointer(gmem__cl_launch *launch, const void *address, size_t element); /* sizeof one */
GMEM__FN void gmem__launch_buffer(gmem__cl_launch *launch, gmem__cl_mem memory, int64_t elements);
GMEM__FN void gmem__launch_int(gmem__cl_launch *launch, int64_t value); /* an int of the kernel; fails beyond 2^31 */
GMEM__FN void gmem__launch_float(gmem__cl_launch *launch, float value);
GMEM__FN void gmem__launch_local(gmem__cl_launch *launch, size_t bytes); /* local memory */
/* Global sizes are rounded up to the local ones; a local size that device or kernel cannot do is halved along its
 * longest side until it can, so kernels must not depend on it but through get_local_size. local NULL: any. */
GMEM__FN void gmem__launch_run(gmem__cl_launch *launch, int dimensions, const int64_t *global, const int64_t *local);

/* product.c and ops.c --------------------------------------------------------------------------------------------- */

/* C (rows, columns) = A (rows, depth) B (depth, columns) for each of `batch`, then the epilogue of gmem__gemm. */
typedef struct gmem__cl_product {
    gmem__cl_place a, b, c; /* offsets in bytes */
    gmem_type a_type;       /* F32, F16, BF16, I8 */
    int a_transposed;       /* A lies as (depth, rows); F32 only */
    int64_t rows, depth, columns, batch;
    int64_t a_ld, b_ld, c_ld, a_stride, b_stride, c_stride; /* elements */
    gmem_compute compute;                                   /* how B is rounded before the product */
    gmem__cl_way way;                                       /* AUTO, but for tests and tuning */
    const float *a_scale;                                   /* (rows) address, for I8; or NULL */
    const gmem__conv *conv;                                 /* B is this image's patches; or NULL */
    /* epilogue: C = residual + gate * activation(A B + bias); addresses */
    const float *bias, *gate, *residual;
    int adds;                    /* the residual is C itself, wherever it lies */
    gmem__activation activation; /* SWIGLU: C (rows / 2, columns) */
    int64_t gate_stride, tokens, residual_ld;
    float alpha; /* what A B is multiplied by first */
} gmem__cl_product;
GMEM__FN void gmem__stream_product(struct gmem__stream *stream, const gmem__cl_product *product);
/* The epilogue alone, of `columns` of the columns: sums (rows, columns) have taken the place of A B. */
GMEM__FN void gmem__stream_epilogue(struct gmem__stream *stream, const gmem__cl_product *product, gmem__cl_mem sums,
                                    int64_t first_column, int64_t columns);
/* The way that a product of WAY_AUTO takes: tuning's table, or the default; the `product` kernel with f16 arithmetic,
 * which the others don't have. */
GMEM__FN gmem__cl_way gmem__product_way(const struct gmem__device *device, const gmem__cl_product *product);
/* Good sizes for a device of these limits; whether a device can do them; and as options of the program:
 * "-DITEM_ROWS=8 ...". */
GMEM__FN gmem__cl_tiles gmem__product_tiles(const gmem__cl_limits *limits);
GMEM__FN int gmem__product_tiles_fit(const gmem__cl_tiles *tiles, const gmem__cl_limits *limits);
GMEM__FN const char *gmem__product_options(const gmem__cl_tiles *tiles, char *out, size_t capacity);

#endif /* GMEM_NO_OPENCL */
#endif /* GMEM__OPENCL_H */
