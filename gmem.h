/* Generated from src/ and backends/ by tools/amalgamate.awk (make gmem.h). Do not edit. */
/* The engine's parts in reading order: this list is the only one, for the amalgamation and for the build. */
/* ---- src/api.h ---- */
/* gmem.h - GMem image generation ("Generative Modeling with Explicit Memory", arXiv 2412.08781) in one C header.
 *
 * A diffusion transformer, conditioned on one snippet of an immutable memory bank, turns noise into latents; an
 * autoencoder turns latents into pixels. The published checkpoints are read as they are.
 *
 *     #define GMEM_IMPLEMENTATION     // in exactly one C or C++ file
 *     #include "gmem.h"
 *
 * Options, defined before the include of the implementation:
 *     GMEM_STATIC     every public function is static to the including file
 *     GMEM_NO_MMAP    files are read instead of mapped
 *     GMEM_NO_SIMD    only the portable kernels are compiled
 * Link with libm. OpenMP is used where the compiler has it switched on (-fopenmp).
 *
 * Contents (search for ">>"):
 *     >>errors       status codes and gmem_error
 *     >>context      instruction set, threads, allocator, files, log
 *     >>tensors      element types and tensors
 *     >>files        checkpoints: torch zip, torch legacy, safetensors; writing safetensors
 *     >>network      the transformer
 *     >>random       noise
 *     >>sampler      from noise to latents, with a network or with your own velocity
 *     >>bank         the memory: rows, names, mixing
 *     >>autoencoder  latents to pixels and back
 *     >>joints       raw passes
 *     >>generate     one call from files to pixels: start here; it stands last because it uses the others' types
 *
 * Conventions
 *   Tensors are row-major, innermost dimension last; shapes stand beside every pointer. Sizes count elements unless a
 *   name says bytes. Description structs are zero-initialised: zero means the documented default.
 *   Every function that can fail returns a gmem_status and fills an optional gmem_error. On failure the outputs are
 *   untouched and everything acquired is released. Nothing prints, exits, or keeps global state.
 *   Callbacks that return a gmem_status may fill the error they are given, which is never NULL, and need not.
 *   Threads: a context, network, bank and autoencoder may be used by several threads at once; a pass and a random
 *   generator belong to one thread at a time.
 */
#ifndef GMEM_H
#define GMEM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GMEM_VERSION "0.1.0"

#ifndef GMEM_API
#ifdef GMEM_STATIC
#define GMEM_API static
#else
#define GMEM_API extern
#endif
#endif

/* The version of the implementation that was linked, GMEM_VERSION of its header. */
GMEM_API const char *gmem_version(void);

/* >>errors ------------------------------------------------------------------------------------------------------- */

/* Every status with its string: X(name, "text"). One refusal, one code: tests assert codes, never messages. */
#define GMEM_STATUS_LIST(X)                                                           \
    X(OK, "no error")                                                                 \
    /* the caller */                                                                  \
    X(E_ARGUMENT, "an argument is out of its range or missing")                       \
    X(E_COMBINATION, "these settings cannot be combined")                             \
    X(E_UNSUPPORTED, "not supported by this build or machine")                        \
    X(E_CANCELLED, "cancelled by the caller")                                         \
    /* the system */                                                                  \
    X(E_MEMORY, "out of memory")                                                      \
    X(E_OPEN, "cannot open the file")                                                 \
    X(E_READ, "cannot read the file")                                                 \
    X(E_WRITE, "cannot write the file")                                               \
    X(E_SYNC, "cannot bring the file to disk")                                        \
    X(E_RENAME, "cannot put the finished file in its place")                          \
    /* any file */                                                                    \
    X(E_TRUNCATED, "the file ends too early")                                         \
    X(E_FORMAT, "not a format that gmem reads")                                       \
    X(E_LIMIT, "the file exceeds a limit of the reader")                              \
    X(E_OVERFLOW, "a size in the file overflows")                                     \
    X(E_NO_TENSORS, "the file holds no tensor")                                       \
    X(E_NAME, "a name in the file is not acceptable")                                 \
    /* JSON and safetensors */                                                        \
    X(E_JSON, "malformed JSON")                                                       \
    X(E_JSON_DUPLICATE, "a JSON object repeats a key")                                \
    X(E_ST_HEADER, "the safetensors header has a bad size")                           \
    X(E_ST_TRAILING, "bytes other than spaces after the safetensors JSON")            \
    X(E_ST_METADATA, "safetensors metadata is not a map of strings")                  \
    X(E_ST_ENTRY, "a safetensors entry lacks a field or has an unknown one")          \
    X(E_ST_TYPE, "unknown safetensors element type")                                  \
    X(E_ST_OFFSETS, "safetensors offsets are not contiguous from 0 to the end")       \
    X(E_ST_SIZE, "a safetensors entry's size does not match its shape")               \
    /* zip */                                                                         \
    X(E_ZIP_END, "the zip end record is missing or not at the end")                   \
    X(E_ZIP_DIRECTORY, "the zip directory is inconsistent")                           \
    X(E_ZIP_LOCAL, "a zip local header disagrees with the directory")                 \
    X(E_ZIP_COMPRESSED, "a zip entry is compressed")                                  \
    X(E_ZIP_ENCRYPTED, "a zip entry is encrypted")                                    \
    X(E_ZIP_OVERLAP, "zip entries overlap")                                           \
    X(E_ZIP_DUPLICATE, "the zip repeats a name")                                      \
    X(E_ZIP_NAME, "a zip entry has an unsafe name")                                   \
    X(E_ZIP_ROOT, "zip entries do not share one root folder")                         \
    X(E_ZIP_MISSING, "the zip lacks an entry that torch writes")                      \
    X(E_BYTEORDER, "the file was written on a big-endian machine")                    \
    /* pickle */                                                                      \
    X(E_PICKLE_OPCODE, "a pickle opcode that torch.save never writes")                \
    X(E_PICKLE_PROTOCOL, "unsupported pickle protocol")                               \
    X(E_PICKLE_STACK, "the pickle misuses its stack or memo")                         \
    X(E_PICKLE_VALUE, "a pickle value has the wrong kind")                            \
    X(E_PICKLE_UTF8, "a pickle string is not UTF-8")                                  \
    X(E_PICKLE_CYCLE, "a pickle container contains itself")                           \
    X(E_PICKLE_TRAILING, "bytes after the pickle's end")                              \
    X(E_LEGACY_HEADER, "the legacy torch header is wrong")                            \
    X(E_STORAGE, "a torch storage is missing or has the wrong size")                  \
    X(E_TENSOR, "a tensor does not fit its storage")                                  \
    X(E_FOREIGN, "a needed value could only be built by running the file's own code") \
    /* models */                                                                      \
    X(E_KEY, "no such key in the file")                                               \
    X(E_ARCHITECTURE, "not an architecture that gmem knows")                          \
    X(E_MISSING_TENSOR, "a needed tensor is missing")                                 \
    X(E_SHAPE, "a tensor has the wrong shape")                                        \
    X(E_TYPE, "a tensor has the wrong element type")                                  \
    X(E_HEADS, "the number of heads cannot be told")                                  \
    X(E_WIDTH, "the snippet's width differs from the network's")                      \
    X(E_LATENT, "the latent's shape differs from the network's")                      \
    X(E_ROW, "no such row in the bank")                                               \
    X(E_ROW_ZERO, "a bank row is zero or not finite")                                 \
    X(E_NAME_UNKNOWN, "no such name in the bank")                                     \
    X(E_NAMES, "the names do not match the bank's rows")                              \
    X(E_LABEL, "no such class label")                                                 \
    X(E_NONFINITE, "the network produced a value that is not finite")                 \
    X(E_STIFF, "the adaptive solver's step became too small")

typedef enum gmem_status {
#define GMEM__STATUS_ENUM(name, text) GMEM_##name,
    GMEM_STATUS_LIST(GMEM__STATUS_ENUM)
#undef GMEM__STATUS_ENUM
        GMEM_STATUS_COUNT
} gmem_status;

/* What went wrong, in the caller's memory. `message` is one line without the path; names that come from files are
 * escaped to printable ASCII. Pass NULL where it is of no interest. Untouched on success. */
typedef struct gmem_error {
    gmem_status code;
    char message[480];
    char path[480]; /* the file concerned, or "" */
    int64_t offset; /* byte offset in the file, or -1 */
} gmem_error;

/* The name of a code ("E_SHAPE") and its text. Any value is allowed. */
GMEM_API const char *gmem_status_name(gmem_status status);
GMEM_API const char *gmem_status_text(gmem_status status);

/* >>context ------------------------------------------------------------------------------------------------------ */

/* Memory. Both functions may be called from several threads at once. `alloc` returns at least 64-byte aligned memory or
 * NULL; `release` gets what `alloc` returned and the same size. Both are needed. Default: the C library. */
typedef struct gmem_allocator {
    void *user;
    void *(*alloc)(void *user, size_t bytes);
    void (*release)(void *user, void *memory, size_t bytes);
} gmem_allocator;

/* Files. Every function may fail; none is called twice at once for the same file. Default: POSIX, or the C library.
 * All are needed, but for `map` and `unmap`, which come together, and `discard`, which may go with them. Failures of
 * each can be injected, which is how the tests prove the error paths. */
typedef struct gmem_io {
    void *user;
    /* Opens for reading (write = 0) or creates anew (write = 1, fails where it exists). NULL on failure. */
    void *(*open)(void *user, const char *path, int write);
    /* Bytes in the file, or -1. */
    int64_t (*size)(void *user, void *file);
    /* Reads up to `bytes` at `offset`; the count read, 0 at the end, -1 on failure. */
    int64_t (*read)(void *user, void *file, void *to, int64_t bytes, int64_t offset);
    /* Appends; the count written, which may be short, or -1. */
    int64_t (*write)(void *user, void *file, const void *from, int64_t bytes);
    /* Brings what was written to the disk; 0 on success. */
    int (*sync)(void *user, void *file);
    /* Closes in any case; 0 on success. */
    int (*close)(void *user, void *file);
    /* Maps the whole file for reading, or NULL: then it is read instead. The mapping outlives close. */
    const void *(*map)(void *user, void *file, int64_t bytes);
    void (*unmap)(void *user, const void *memory, int64_t bytes);
    /* These bytes of a mapping are not needed for now: their memory may serve others, and they read the same later. */
    void (*discard)(void *user, const void *memory, int64_t bytes);
    /* Moves a finished file over `to`, durably where the system can; 0 on success. */
    int (*rename)(void *user, const char *from, const char *to);
    int (*remove)(void *user, const char *path);
} gmem_io;

typedef enum gmem_isa { GMEM_ISA_AUTO, GMEM_ISA_SCALAR, GMEM_ISA_AVX2, GMEM_ISA_AVX512, GMEM_ISA_AMX } gmem_isa;

/* What the large matrix products compute in: the blocks' linear layers, attention and the autoencoder's convolutions.
 * Sums and everything else are f32 always. Files of any type run in any of them. BF16: weights and inputs are rounded
 * to bf16. INT8: weights have one scale a row, inputs one a token (symmetric, found as they come); attention, the
 * autoencoder and the layers that suffer (network.c says which) compute in bf16. Where the processor lacks an
 * instruction for it, the same rounding is computed with what it has. */
typedef enum gmem_compute { GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8 } gmem_compute;

typedef struct gmem_context_desc {
    gmem_isa isa;         /* auto: the fastest that this processor has; a named one that is missing is an error */
    gmem_compute compute; /* f32 */
    /* 0: as many as the machine has; needs OpenMP for more than one. Between steps they sleep: LLVM's runtime is told
     * to let them after a millisecond; GCC's spins for some 5 ms first, and not where the program runs with
     * GOMP_SPINCOUNT=1000, which also helps where other programs want the processor. */
    int threads;
    int no_map;               /* read files into memory instead of mapping them: survives files that shrink */
    gmem_allocator allocator; /* all zero: the C library */
    gmem_io io;               /* all zero: the system's files */
    /* What was chosen and opened, a line without its end at a time, on the calling thread; NULL: nobody is told. */
    void (*log)(void *user, const char *line);
    void *log_user;
} gmem_context_desc;

typedef struct gmem_context gmem_context;

/* `desc` may be NULL for all defaults. The context must outlive everything made from it.
 * Errors: E_MEMORY, E_UNSUPPORTED (instruction set), E_ARGUMENT. */
GMEM_API gmem_status gmem_context_create(const gmem_context_desc *desc, gmem_context **out, gmem_error *error);
GMEM_API void gmem_context_destroy(gmem_context *context); /* NULL is allowed, as in every destroy and close */

/* What runs: "cpu/avx2", "cpu/avx512", "cpu/scalar". Lives as long as the context. */
GMEM_API const char *gmem_context_backend(const gmem_context *context);
GMEM_API gmem_isa gmem_context_isa(const gmem_context *context);
GMEM_API gmem_compute gmem_context_compute(const gmem_context *context);
/* The kernels of the large products: "avx512", "avx512-bf16", "amx-int8", ... Lives as long as the context. */
GMEM_API const char *gmem_context_kernels(const gmem_context *context);
GMEM_API int gmem_context_threads(const gmem_context *context);

/* >>tensors ------------------------------------------------------------------------------------------------------ */

/* X(name, bytes, safetensors' name) */
#define GMEM_TYPE_LIST(X) \
    X(F32, 4, "F32")      \
    X(F16, 2, "F16")      \
    X(BF16, 2, "BF16")    \
    X(F64, 8, "F64")      \
    X(I8, 1, "I8")        \
    X(U8, 1, "U8")        \
    X(I16, 2, "I16")      \
    X(I32, 4, "I32")      \
    X(I64, 8, "I64")      \
    X(BOOL, 1, "BOOL")

typedef enum gmem_type {
#define GMEM__TYPE_ENUM(name, bytes, text) GMEM_##name,
    GMEM_TYPE_LIST(GMEM__TYPE_ENUM)
#undef GMEM__TYPE_ENUM
        GMEM_TYPE_COUNT
} gmem_type;

#define GMEM_MAX_RANK 8

/* A view of elements that somebody else owns, often a file mapping. */
typedef struct gmem_tensor {
    const char *name; /* UTF-8 as in the file; escape before printing */
    gmem_type type;
    int rank; /* 0 to GMEM_MAX_RANK */
    int64_t shape[GMEM_MAX_RANK];
    int64_t stride[GMEM_MAX_RANK]; /* in elements */
    const void *data;              /* the first element, little-endian; unaligned where the file says so */
} gmem_tensor;

GMEM_API const char *gmem_type_name(gmem_type type); /* "F32" */
GMEM_API size_t gmem_type_bytes(gmem_type type);
GMEM_API int64_t gmem_tensor_count(const gmem_tensor *tensor); /* elements */

/* Elements [first, first + count) in row-major order, whatever the strides, converted to f32 (values that f32 cannot
 * hold are rounded) or copied in the tensor's own type. The range must lie inside the tensor. */
GMEM_API void gmem_tensor_read_f32(const gmem_tensor *tensor, int64_t first, int64_t count, float *out);
GMEM_API void gmem_tensor_read_i64(const gmem_tensor *tensor, int64_t first, int64_t count, int64_t *out);
GMEM_API void gmem_tensor_read(const gmem_tensor *tensor, int64_t first, int64_t count, void *out);

/* Rounds f32 to `type` (F32, F16, BF16: to nearest even; F64 exact). `out` holds count elements of `type`. */
GMEM_API void gmem_convert_f32(const float *from, int64_t count, gmem_type type, void *out);

/* A contiguous tensor over the caller's memory; a convenience for gmem_save. */
GMEM_API gmem_tensor gmem_tensor_make(const char *name, gmem_type type, int rank, const int64_t *shape,
                                      const void *data);

/* >>files -------------------------------------------------------------------------------------------------------- */

/* A checkpoint, opened. Tensors are views into the mapping: opening costs no memory but the header's.
 * Nested dictionaries are flattened, keys joined by '.', list items by their index; a file whose root is a tensor
 * holds one named "tensor". The selection is what loading uses: below `ema`, else `model`, else `state_dict`, else
 * `network`, else the root; the prefixes `module.` and `_orig_mod.` are removed. */
typedef struct gmem_file gmem_file;

typedef enum gmem_format { GMEM_TORCH_ZIP, GMEM_TORCH_LEGACY, GMEM_SAFETENSORS } gmem_format;

/* `key`: NULL for the rule above, another dictionary's dotted key, or "." for everything in the file.
 * Nothing in the file is executed: see gmem_file_foreign. Errors: E_OPEN, E_READ, E_MEMORY, E_KEY and those of files.
 */
GMEM_API gmem_status gmem_file_open(gmem_context *context, const char *path, const char *key, gmem_file **out,
                                    gmem_error *error);
/* The same over the caller's memory, which must stay until close. `name` stands for the path in messages. */
GMEM_API gmem_status gmem_file_open_memory(gmem_context *context, const char *name, const void *data, size_t bytes,
                                           const char *key, gmem_file **out, gmem_error *error);
GMEM_API void gmem_file_close(gmem_file *file);

GMEM_API const char *gmem_file_path(const gmem_file *file);
GMEM_API gmem_format gmem_file_format(const gmem_file *file);
GMEM_API int64_t gmem_file_bytes(const gmem_file *file);
GMEM_API const char *gmem_file_key(const gmem_file *file); /* the dictionary selected: "ema", or "" for the root */

/* The selected tensors, in the file's order; they live as long as the file. */
GMEM_API int64_t gmem_file_tensor_count(const gmem_file *file);
GMEM_API const gmem_tensor *gmem_file_tensor(const gmem_file *file, int64_t index);
GMEM_API const gmem_tensor *gmem_file_find(const gmem_file *file, const char *name); /* or NULL */
/* A tensor anywhere in the file by its full dotted key ("memorybank"), or NULL. */
GMEM_API const gmem_tensor *gmem_file_find_any(const gmem_file *file, const char *key);

/* Numbers, booleans and strings anywhere in the file by full dotted key ("config.model.num_heads"), and safetensors
 * metadata (strings). 1 where found. */
GMEM_API int gmem_file_number(const gmem_file *file, const char *key, double *out);
GMEM_API const char *gmem_file_string(const gmem_file *file, const char *key);   /* or NULL */
GMEM_API const char *gmem_file_metadata(const gmem_file *file, const char *key); /* or NULL */
GMEM_API int64_t gmem_file_metadata_count(const gmem_file *file);
GMEM_API void gmem_file_metadata_at(const gmem_file *file, int64_t index, const char **key, const char **value);
/* Every such number and string of the file in order: start with *cursor = 0; 1 while there is another. `string` is set
 * to NULL for a number. */
GMEM_API int gmem_file_next_value(const gmem_file *file, int64_t *cursor, const char **key, double *number,
                                  const char **string);

/* Globals in the pickle that Python would have imported and called ("posix.system"); here they stay inert names. */
GMEM_API int64_t gmem_file_foreign_count(const gmem_file *file);
GMEM_API const char *gmem_file_foreign(const gmem_file *file, int64_t index);
/* The entries of the selected dictionary that only such a global could build: start with *cursor = 0; 1 while there is
 * another. `key` is the full one. */
GMEM_API int gmem_file_next_foreign(const gmem_file *file, int64_t *cursor, const char **key, const char **global);

typedef struct gmem_save_desc {
    const gmem_tensor *tensors; /* (count); any strides; `data` may be NULL where `fill` is given */
    int64_t count;
    const char *const *metadata; /* (2 * metadata_count) keys and values in turn */
    int64_t metadata_count;
    /* For tensors without data: elements [first, first + count) of tensor `index`, row-major, into `out`. */
    gmem_status (*fill)(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error);
    void *fill_user;
} gmem_save_desc;

/* Writes a safetensors file beside `path`, brings it to disk and renames it: it appears whole or not at all. A process
 * that is killed on the way leaves PATH.tmp0 (or .tmp1 and so on), which nothing reads and another save leaves alone.
 * Errors: E_OPEN, E_WRITE, E_SYNC, E_RENAME, E_MEMORY, E_ARGUMENT, E_NAME (names must be unique). */
GMEM_API gmem_status gmem_save(gmem_context *context, const char *path, const gmem_save_desc *desc, gmem_error *error);
/* The same discipline for any bytes (a PNG). */
GMEM_API gmem_status gmem_save_bytes(gmem_context *context, const char *path, const void *data, size_t bytes,
                                     gmem_error *error);

/* Printable ASCII for a name that came from a file: control and other bytes as \xNN. Returns `out`, always
 * terminated, cut where it does not fit. */
GMEM_API const char *gmem_escape(const char *text, char *out, size_t bytes);

/* >>network ------------------------------------------------------------------------------------------------------ */

typedef enum gmem_architecture {
    GMEM_ARCH_GMEM,         /* LightningDiT conditioned on a snippet: the published GMem */
    GMEM_ARCH_LIGHTNINGDIT, /* LightningDiT and FasterDiT, class-conditional */
    GMEM_ARCH_GMEM_SIT,     /* GMem's first version, on SiT */
    GMEM_ARCH_SIT           /* SiT, with or without REPA, class-conditional */
} gmem_architecture;

typedef struct gmem_network_info {
    gmem_architecture architecture;
    const char *name;      /* "GMem-LightningDiT-XL/1", or the family alone for sizes that were not published */
    int64_t channels;      /* of the latent */
    int64_t height, width; /* of the latent */
    int64_t patch;
    int64_t tokens; /* height / patch * width / patch */
    int64_t hidden, depth, heads, head_dim, mlp_hidden;
    int64_t snippet_width; /* of the condition, or 0 */
    int64_t classes;       /* labels 0 to classes - 1; the null label follows; or 0 */
    int swiglu, rmsnorm, qk_norm, rope, shift, learned_sigma;
    int time_reversed;    /* REPA's convention: t = 1 is noise and velocity points to noise */
    int64_t parameters;   /* of the weights used */
    int64_t weight_bytes; /* as stored, of the weights used in a pass */
    double flop;          /* floating-point operations of one pass of one sample */
} gmem_network_info;

typedef struct gmem_network_desc {
    const char *path;      /* a checkpoint */
    gmem_file *file;       /* or one already open, which must outlive the network (then `path` is ignored) */
    const char *key;       /* as for gmem_file_open */
    int heads;             /* 0: from the file (config, else RoPE table, q norm, published sizes) */
    int64_t latent_height; /* 0: from pos_embed, square */
    int64_t latent_width;
} gmem_network_desc;

typedef struct gmem_network gmem_network;

/* Recognises the architecture from the tensors and checks every shape against the others; a tensor that the network has
 * no use for is refused, but for training's leftovers. A stored pos_embed is used, a missing one computed, and RoPE
 * too. RoPE is on where `feat_rope.*` is stored; where the file holds no such buffer, `use_rope` of its configuration
 * decides, else it is off with pos_embed stored, and without that on for SwiGLU or RMSNorm.
 * Errors: those of files, E_ARCHITECTURE, E_MISSING_TENSOR, E_SHAPE, E_TYPE, E_HEADS, E_LATENT, E_LIMIT, E_FOREIGN. */
GMEM_API gmem_status gmem_network_open(gmem_context *context, const gmem_network_desc *desc, gmem_network **out,
                                       gmem_error *error);
GMEM_API void gmem_network_close(gmem_network *network);
GMEM_API const gmem_network_info *gmem_network_get_info(const gmem_network *network);

/* >>random ------------------------------------------------------------------------------------------------------- */

typedef enum gmem_rng_kind {
    GMEM_RNG_PHILOX,    /* counter-based: picture i of seed s depends on (s, i) alone */
    GMEM_RNG_TORCH_CPU, /* PyTorch's CPU generator, bit for bit: one stream for all pictures, in the order drawn */
    /* Philox as PyTorch's CUDA kernels arrange it: likewise one stream. Draws above 221,184 values depend on the
     * device's size, taken to be an A100's. As in the published code, which draws the noise of the transport SDE's
     * steps on the CPU whatever the device, gmem_sample takes it from the CPU generator of the same seed. */
    GMEM_RNG_TORCH_CUDA
} gmem_rng_kind;

/* Plain data; copy it to fork the stream. Set up with gmem_rng_init only. */
typedef struct gmem_rng {
    gmem_rng_kind kind;
    uint64_t seed;
    uint64_t offset;     /* torch-cuda: the Philox offset */
    uint32_t state[624]; /* torch-cpu: MT19937 */
    int left, next;
    int has_normal; /* torch-cpu: the second value of a pair, kept for the next short draw */
    double normal;
} gmem_rng;

GMEM_API void gmem_rng_init(gmem_rng *rng, gmem_rng_kind kind, uint64_t seed);

/* What a draw is for. With Philox every (picture, purpose, index) is a stream of its own and the order of calls does
 * not matter; the torch generators ignore it and draw in order. */
typedef enum gmem_draw {
    GMEM_DRAW_LATENT,
    GMEM_DRAW_ROW,
    GMEM_DRAW_STEP,
    GMEM_DRAW_MIX,
    GMEM_DRAW_POSTERIOR
} gmem_draw;

/* Normal values for pictures [picture, picture + count): out (count, per_picture).
 * index: the step for GMEM_DRAW_STEP, else 0. The torch kinds draw all count * per_picture values at once, as
 * torch.randn(count, ...) does. */
GMEM_API void gmem_rng_normal(gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t count,
                              int64_t per_picture, float *out);
/* Integers in [0, high), high >= 1: out (count), one for each picture. torch.randint's values for the torch kinds. */
GMEM_API void gmem_rng_integers(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t high,
                                int64_t *out);
/* Uniform values in [0, 1): out (count, per_picture). torch.rand's values for the torch kinds. */
GMEM_API void gmem_rng_uniform(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t per_picture,
                               float *out);

/* >>sampler ------------------------------------------------------------------------------------------------------ */

typedef enum gmem_method {
    GMEM_METHOD_DEFAULT, /* SDE_HEUN; REPA_SDE for networks with REPA's convention */
    GMEM_EULER,
    GMEM_MIDPOINT,
    GMEM_HEUN2,
    GMEM_HEUN3,
    GMEM_RK4,    /* torchdiffeq's: Kutta's 3/8 rule */
    GMEM_DOPRI5, /* adaptive, torchdiffeq's step control and interpolation */
    GMEM_SDE_EULER,
    GMEM_SDE_HEUN,
    GMEM_REPA_EULER,
    GMEM_REPA_HEUN,
    GMEM_REPA_SDE,
    /* Not published with these models: ODE methods of one pass an interval, which remember earlier predictions. */
    GMEM_AB2,    /* Adams-Bashforth: x' = x + h (v + h / (2 h_before) (v - v_before)), likewise on uneven grids */
    GMEM_AB3,    /* its third order, from the third interval on; the first is Heun's, a pass more */
    GMEM_DPMPP2M /* DPM-Solver++(2M), arXiv 2211.01095: the data x_1 is extrapolated in log(alpha / sigma) */
} gmem_method;

typedef enum gmem_diffusion_form {
    GMEM_DIFFUSION_DEFAULT, /* LINEAR */
    GMEM_DIFFUSION_CONSTANT,
    GMEM_DIFFUSION_SBDM,
    GMEM_DIFFUSION_SIGMA,
    GMEM_DIFFUSION_LINEAR,
    GMEM_DIFFUSION_DECREASING,
    GMEM_DIFFUSION_INCREASING_DECREASING
} gmem_diffusion_form;

typedef enum gmem_last_step {
    GMEM_LAST_DEFAULT, /* MEAN */
    GMEM_LAST_MEAN,
    GMEM_LAST_TWEEDIE,
    GMEM_LAST_EULER,
    GMEM_LAST_NONE
} gmem_last_step;

typedef enum gmem_path { GMEM_PATH_LINEAR, GMEM_PATH_GVP, GMEM_PATH_VP } gmem_path;
typedef enum gmem_prediction { GMEM_PREDICT_VELOCITY, GMEM_PREDICT_NOISE, GMEM_PREDICT_SCORE } gmem_prediction;

/* The published defaults throughout. t runs from 0 (noise) to 1 (data), except in the REPA methods, where t = 1 is
 * noise; a network of the other convention is converted (v(x, t) = -v'(x, 1 - t)). */
typedef struct gmem_sampler_desc {
    gmem_method method;
    int steps;             /* 0: 50 (REPA_SDE: 250). Transport methods take steps - 1 intervals, REPA's ODEs steps */
    double timestep_shift; /* ODE: t' = s t / (1 + (s - 1) t); 0 or 1: none */
    double atol, rtol;     /* DOPRI5; 0: 1e-6 and 1e-3 */
    gmem_diffusion_form diffusion_form; /* SDE */
    double diffusion_norm;              /* SDE; 0: 1 */
    gmem_last_step last_step;           /* SDE */
    double last_step_size;              /* SDE; 0: 0.004; negative: exactly 0 */
    gmem_path path;
    gmem_prediction prediction;
    double cfg_scale;          /* guidance; 1 or less: none */
    double cfg_start, cfg_end; /* the interval of t, ends included; cfg_end 0: no end. Outside it one half alone is
                                  asked for: the conditional, but beyond a transport method's end the unconditional */
    int cfg_channels;          /* guided channels from the first; 0: all */
    /* Step caching, opt-in; 0: off. In a pass of gmem_sample, the sum that a network's blocks after the first add is
     * taken from the last pass that computed it, where what the first block adds has changed since by less than this
     * (relative L1). Decided for each picture, and each half of a guided one, on its own: a picture does not depend on
     * its batch. Not for DOPRI5, whose times go back, nor for gmem_integrate. After TeaCache, arXiv 2411.19108. */
    double cache_threshold;
} gmem_sampler_desc;

/* What a pass asks of a velocity function: at one time t for the whole batch, the conditional half, the null half or
 * both (one call for both, so that weights are read once). */
typedef struct gmem_velocity_call {
    int64_t batch;
    int64_t per_picture;  /* elements of one latent */
    double t;             /* in the sampler's own convention */
    const float *x;       /* (batch, per_picture) */
    float *conditional;   /* (batch, per_picture) to fill, or NULL */
    float *unconditional; /* (batch, per_picture) to fill, or NULL */
} gmem_velocity_call;

typedef gmem_status (*gmem_velocity_fn)(void *user, const gmem_velocity_call *call, gmem_error *error);

/* After each step (DOPRI5: each attempt). `x` is the state (batch, per_picture), which has reached `t`.
 * Return nonzero to cancel: the run ends with E_CANCELLED. */
typedef struct gmem_progress {
    int64_t step, steps;          /* 1-based; steps is 0 where the number is not known beforehand (DOPRI5) */
    int64_t passes, total_passes; /* network passes made so far; expected in all, or 0 */
    double t;
    const float *x;
} gmem_progress;
typedef int (*gmem_progress_fn)(void *user, const gmem_progress *progress);

/* Noise for one SDE step: out (batch, per_picture). Called in order, index from 0. */
typedef gmem_status (*gmem_noise_fn)(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                     gmem_error *error);

typedef struct gmem_integrate_desc {
    gmem_sampler_desc sampler;
    int64_t batch, per_picture;
    int64_t channels; /* of per_picture, for cfg_channels; 0: 1 */
    gmem_velocity_fn velocity;
    void *velocity_user;
    gmem_noise_fn noise; /* SDE methods */
    void *noise_user;
    gmem_progress_fn progress; /* or NULL */
    void *progress_user;
    int64_t *passes; /* receives the number of velocity calls; or NULL */
} gmem_integrate_desc;

/* The integrator alone, for any velocity: x (batch, per_picture) holds the noise at the start and the sample at the
 * end. Errors: E_ARGUMENT, E_COMBINATION, E_MEMORY, E_NONFINITE, E_STIFF, E_CANCELLED, those of the callbacks. */
GMEM_API gmem_status gmem_integrate(gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                    gmem_error *error);
/* Whether the settings can be combined, with the reason in `error`. Fills in the defaults of `desc` where not NULL. */
GMEM_API gmem_status gmem_sampler_check(const gmem_sampler_desc *desc, int time_reversed, gmem_sampler_desc *resolved,
                                        gmem_error *error);
/* The times, in order, at which the velocity will be asked for: at most `capacity` are written, the count is
 * returned; 0 where they are not known beforehand (DOPRI5) or the settings cannot be combined. `desc` as resolved for
 * the network; otherwise its defaults are those of t = 0 being noise. */
GMEM_API int64_t gmem_sampler_times(const gmem_sampler_desc *desc, double *out, int64_t capacity);

/* What step caching did: passes of one sample each (two a picture where it is guided), and those of them in which only
 * the first block was computed. */
typedef struct gmem_reuse {
    int64_t passes, reused;
} gmem_reuse;

/* Sampling with a network. `x` as in gmem_integrate, (batch, channels, height, width). */
typedef struct gmem_sample_desc {
    gmem_sampler_desc sampler;
    int64_t batch;
    const float *snippets; /* (batch, snippet_width), used as given; for networks with snippets */
    const int64_t *labels; /* (batch); for class-conditional networks */
    gmem_rng *rng;         /* SDE noise from a generator: pictures picture to picture + batch - 1 */
    int64_t picture;
    gmem_noise_fn noise; /* or from the caller (then rng is ignored) */
    void *noise_user;
    gmem_progress_fn progress;
    void *progress_user;
    int64_t *passes;
    gmem_reuse *reuse; /* receives what caching did, zeros without; or NULL */
} gmem_sample_desc;

GMEM_API gmem_status gmem_sample(const gmem_network *network, const gmem_sample_desc *desc, float *x,
                                 gmem_error *error);

/* >>bank --------------------------------------------------------------------------------------------------------- */

typedef enum gmem_bank_kind { GMEM_BANK_FULL, GMEM_BANK_DECOMPOSED } gmem_bank_kind;

typedef struct gmem_bank_desc {
    const char *const *paths; /* one or more files, rows numbered through */
    int path_count;
    gmem_file *file;        /* or one open file, which must outlive the bank */
    const char *names_path; /* a text file of one name a line; or NULL: names in the files, where there are any */
    const char *names_text; /* or that text in memory, which must outlive the bank */
} gmem_bank_desc;

typedef struct gmem_bank gmem_bank;

/* Reads a bare tensor (rows, width), `features` (with `features.scale` for I8, `names`, `names.offsets`), `memorybank`,
 * or a decomposed bank (`C`, `M`, `S`, `mean`: row = C M^T + mean).
 * Errors: those of files, E_MISSING_TENSOR, E_SHAPE, E_TYPE, E_WIDTH (files of different width), E_NAMES. */
GMEM_API gmem_status gmem_bank_open(gmem_context *context, const gmem_bank_desc *desc, gmem_bank **out,
                                    gmem_error *error);
GMEM_API void gmem_bank_close(gmem_bank *bank);

GMEM_API int64_t gmem_bank_rows(const gmem_bank *bank);
GMEM_API int64_t gmem_bank_width(const gmem_bank *bank);
GMEM_API gmem_type gmem_bank_type(const gmem_bank *bank); /* of the first file's elements */
GMEM_API gmem_bank_kind gmem_bank_get_kind(const gmem_bank *bank);
GMEM_API int gmem_bank_file_count(const gmem_bank *bank);
GMEM_API const char *gmem_bank_file_path(const gmem_bank *bank, int index);
GMEM_API int64_t gmem_bank_file_rows(const gmem_bank *bank, int index);

/* A row as stored, in f32: out (width). Errors: E_ROW. */
GMEM_API gmem_status gmem_bank_row(const gmem_bank *bank, int64_t row, float *out, gmem_error *error);
/* A row as the network wants it, L2-normalised. Errors: E_ROW, E_ROW_ZERO. */
GMEM_API gmem_status gmem_bank_snippet(const gmem_bank *bank, int64_t row, float *out, gmem_error *error);
/* A decomposed bank's image of a new vector: c M^T + mean with c = (snippet - mean) M / S. Errors: E_COMBINATION. */
GMEM_API gmem_status gmem_bank_project(const gmem_bank *bank, const float *snippet, float *out, gmem_error *error);

/* The row's name, or NULL. Lives as long as the bank; UTF-8 as in the file. */
GMEM_API const char *gmem_bank_name(const gmem_bank *bank, int64_t row);
/* The first row of that name, ASCII case ignored. Errors: E_NAME_UNKNOWN (the message offers the nearest names). */
GMEM_API gmem_status gmem_bank_find(const gmem_bank *bank, const char *name, int64_t *row, gmem_error *error);

typedef enum gmem_mix_method { GMEM_MIX_LINEAR, GMEM_MIX_SPHERICAL, GMEM_MIX_CONCAT, GMEM_MIX_MASK } gmem_mix_method;

/* Mixes two unit vectors a and b (width), renormalised: alpha 0 gives a, 1 gives b. CONCAT takes the first half of a
 * and the second of b, whatever alpha; MASK takes each element from b with probability alpha, by `rng` (needed by MASK
 * only), the same mask for the same (seed, picture). SPHERICAL refuses opposite vectors between the ends. `out` may be
 * a or b, save for MASK. Errors: E_ARGUMENT, E_ROW_ZERO (the result vanishes, or may). */
GMEM_API gmem_status gmem_mix(gmem_mix_method method, const float *a, const float *b, int64_t width, double alpha,
                              gmem_rng *rng, int64_t picture, float *out, gmem_error *error);
/* L2-normalises in place. Errors: E_ROW_ZERO (zero or not finite; `x` is untouched). */
GMEM_API gmem_status gmem_normalize(float *x, int64_t width, gmem_error *error);
/* The published bank's own interpolation: alpha * row a + (1 - alpha) * row b, not normalised. */
GMEM_API gmem_status gmem_bank_interpolate(const gmem_bank *bank, int64_t a, int64_t b, double alpha, float *out,
                                           gmem_error *error);

/* How GMem's first version chose a row: from the start noise z (count) and the rows' frequencies memoryfreq (rows):
 * u = Phi(mean(z) sqrt(count)); the row is the number of entries of cumsum(memoryfreq) / sum that are <= u. */
GMEM_API gmem_status gmem_choose_row(const int64_t *memoryfreq, int64_t rows, const float *z, int64_t count,
                                     int64_t *row, gmem_error *error);

/* >>autoencoder -------------------------------------------------------------------------------------------------- */

typedef enum gmem_autoencoder_family {
    GMEM_AE_VAVAE, /* the statistics file's mean and std, then the decoder */
    GMEM_AE_SDVAE  /* latent / scaling factor, then the decoder */
} gmem_autoencoder_family;

typedef struct gmem_autoencoder_info {
    gmem_autoencoder_family family; /* SDVAE: four latent channels or diffusers' key names */
    int64_t latent_channels;
    int64_t factor; /* pixels per latent on a side: 8, 16 */
    int64_t parameters;
    double multiplier; /* 1 for VAVAE; for SDVAE what the file says (a number `scaling_factor` or
                          `config.scaling_factor`, or metadata of that name), else 0.18215 */
    int has_encoder;
} gmem_autoencoder_info;

typedef struct gmem_autoencoder_desc {
    const char *path;
    gmem_file *file; /* or one open file, which must outlive the autoencoder */
    const char *key;
} gmem_autoencoder_desc;

typedef struct gmem_autoencoder gmem_autoencoder;

/* Errors: those of files, E_ARCHITECTURE, E_MISSING_TENSOR, E_SHAPE, E_TYPE. */
GMEM_API gmem_status gmem_autoencoder_open(gmem_context *context, const gmem_autoencoder_desc *desc,
                                           gmem_autoencoder **out, gmem_error *error);
GMEM_API void gmem_autoencoder_close(gmem_autoencoder *autoencoder);
GMEM_API const gmem_autoencoder_info *gmem_autoencoder_get_info(const gmem_autoencoder *autoencoder);

/* z (count, latent_channels, height, width), raw latents -> out (count, 3, height * factor, width * factor), about
 * [-1, 1], not clamped. Errors: E_MEMORY, E_ARGUMENT, E_NONFINITE. */
GMEM_API gmem_status gmem_decode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *z, float *out, gmem_error *error);
/* Floating-point operations of decoding one latent of this size: convolutions and attention. */
GMEM_API double gmem_decode_flop(const gmem_autoencoder *autoencoder, int64_t height, int64_t width);
/* image (count, 3, height, width) in [-1, 1], both multiples of factor -> mean and logvar (count, latent_channels,
 * height / factor, width / factor); logvar clamped to [-30, 20]. Errors: as gmem_decode, E_COMBINATION (no encoder). */
GMEM_API gmem_status gmem_encode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *image, float *mean, float *logvar, gmem_error *error);

/* The network's latents to the decoder's: x * std / multiplier + mean per channel, in place.
 * x (count, channels, area); mean and std (channels) or NULL for 0 and 1. */
GMEM_API void gmem_denormalize(float *x, int64_t count, int64_t channels, int64_t area, const float *mean,
                               const float *std, double multiplier);
/* Reads `mean` and `std` (any shape of `channels` elements) of a statistics file. Errors: those of files,
 * E_MISSING_TENSOR, E_SHAPE, E_ARGUMENT (a std that is not positive). */
GMEM_API gmem_status gmem_read_latent_stats(const gmem_file *file, int64_t channels, float *mean, float *std,
                                            gmem_error *error);
/* Decoded (count, 3, height, width) -> pixels (count, height, width, 3): clamp(127.5 y + 128, 0, 255), truncated. */
GMEM_API void gmem_pixels(const float *decoded, int64_t count, int64_t height, int64_t width, uint8_t *pixels);

/* >>joints ------------------------------------------------------------------------------------------------------- */

/* A network's working memory for raw passes: its activations are allocated once, for batches up to `max_batch`. */
typedef struct gmem_pass gmem_pass;
GMEM_API gmem_status gmem_pass_create(const gmem_network *network, int64_t max_batch, gmem_pass **out,
                                      gmem_error *error);
GMEM_API void gmem_pass_destroy(gmem_pass *pass);

/* One forward pass in the network's own convention of time: x (batch, channels, height, width), t (batch), snippets
 * (batch, snippet_width) or labels (batch) -> v (batch, channels, height, width). Nothing is allocated.
 * snippets NULL: the null condition. Errors: E_ARGUMENT, E_LABEL, E_NONFINITE. */
GMEM_API gmem_status gmem_pass_run(gmem_pass *pass, int64_t batch, const float *x, const float *t,
                                   const float *snippets, const int64_t *labels, float *v, gmem_error *error);
/* Computes the adaLN projections of many times at once (they are a third of the weights), so that later passes with
 * these times and the same conditions find them. t (times), snippets or labels (batch) as for gmem_pass_run;
 * with_null adds the null condition. Forgotten at the next call. As many are held as 64 MB take, at most 64 pairs of a
 * time and a condition (more where one time has more), from the first time on; passes compute the others themselves.
 * Errors: E_ARGUMENT, E_LABEL. */
GMEM_API gmem_status gmem_pass_prepare(gmem_pass *pass, int64_t times, const float *t, int64_t batch,
                                       const float *snippets, const int64_t *labels, int with_null, gmem_error *error);

/* What a pass spends its time on. Linear layers include the normalisation before them, which is computed as their input
 * is packed, and the activation or gate behind them. CONDITIONING: everything of time and condition. */
#define GMEM_OPERATION_LIST(X)        \
    X(CONDITIONING, "conditioning")   \
    X(EMBEDDING, "embedding")         \
    X(QKV, "norm and qkv")            \
    X(ROTATE, "q, k norm and rotate") \
    X(ATTENTION, "attention")         \
    X(PROJ, "proj")                   \
    X(MLP_IN, "norm and mlp_in")      \
    X(MLP_OUT, "mlp_out")             \
    X(FINAL, "final")                 \
    X(NORM, "other norms")

typedef enum gmem_operation {
#define GMEM__OPERATION_ENUM(name, text) GMEM_OPERATION_##name,
    GMEM_OPERATION_LIST(GMEM__OPERATION_ENUM)
#undef GMEM__OPERATION_ENUM
        GMEM_OPERATION_COUNT
} gmem_operation;

GMEM_API const char *gmem_operation_name(gmem_operation operation); /* "attention" */

/* Sums over passes, by gmem_operation; the caller zeroes them and gives the clock, for the library has none. */
typedef struct gmem_profile {
    double (*clock)(void *user); /* seconds; called on the thread of the pass */
    void *user;
    struct {
        int64_t calls;
        double seconds, flop;
    } operations[GMEM_OPERATION_COUNT];
} gmem_profile;

/* From now on passes and preparations add to `profile`, which must stay; NULL: no longer. Results are the same. What
 * the operations' seconds leave of a pass's own is the rest: copies, patches, checks. */
GMEM_API void gmem_pass_profile(gmem_pass *pass, gmem_profile *profile);

/* A linear layer by itself, to measure the kernels with: y = W x in what the context computes in. weight (rows, depth):
 * F32, F16, BF16, or I8 with `scale` (rows); rows may lie apart. Both must stay until destroy. Where kernels want
 * weights in an order of their own, the first run makes that copy. Belongs to one thread at a time.
 * Errors: E_ARGUMENT, E_TYPE, E_SHAPE, E_MEMORY. */
typedef struct gmem_linear gmem_linear;
GMEM_API gmem_status gmem_linear_create(gmem_context *context, const gmem_tensor *weight, const float *scale,
                                        gmem_linear **out, gmem_error *error);
GMEM_API void gmem_linear_destroy(gmem_linear *linear);
/* x (depth, columns) -> y (rows, columns), channels first as all activations inside. Errors: E_ARGUMENT. */
GMEM_API gmem_status gmem_linear_run(gmem_linear *linear, int64_t columns, const float *x, float *y, gmem_error *error);

/* >>generate ----------------------------------------------------------------------------------------------------- */

/* One call from files to pixels. Paths that a network does not need may be NULL. */
typedef struct gmem_generate_desc {
    const char *network;
    const char *bank;  /* for networks with snippets; NULL where the network's file holds its own `memorybank` */
    const char *names; /* or NULL */
    const char *autoencoder;
    const char *latent_stats; /* VA-VAE family; or NULL: mean 0, std 1 */
    double multiplier;        /* 0: the autoencoder family's */
    int64_t count;            /* pictures; 0: 1 */
    int64_t batch; /* sampled at once, which is faster and takes more memory; 0: as many as have 1024 tokens, at most
                      16, but all with the torch generators, whose one stream gives other pictures for other batches */
    uint64_t seed;
    gmem_rng_kind rng;
    const char *const *memory; /* (memory_count) names or row numbers, used in turn; none: random rows, or with the
                                  network's own bank those that the noise and `memoryfreq` choose */
    int memory_count;
    const int64_t *labels; /* (label_count) used in turn, for class-conditional networks; none: random labels */
    int label_count;
    gmem_sampler_desc sampler;
    gmem_progress_fn progress; /* steps and passes count through all batches; `x` is the present one */
    void *progress_user;
} gmem_generate_desc;

typedef struct gmem_image {
    int64_t count, height, width;
    uint8_t *pixels; /* (count, height, width, 3), sRGB */
} gmem_image;

/* Fills `out`, whose memory belongs to the context's allocator until gmem_image_free. */
GMEM_API gmem_status gmem_generate(gmem_context *context, const gmem_generate_desc *desc, gmem_image *out,
                                   gmem_error *error);
GMEM_API void gmem_image_free(gmem_context *context, gmem_image *image);

#ifdef __cplusplus
}
#endif

#endif /* GMEM_H */

#if defined(GMEM_IMPLEMENTATION) && !defined(GMEM__IMPLEMENTED)
#define GMEM__IMPLEMENTED

/* ---- src/internal.h ---- */
/* Private declarations shared by the parts: linkage, errors, memory, checked sizes, files, the table of operations.
 * In the single file everything here is static; apart, the parts link against each other. */
#ifndef GMEM__INTERNAL_H
#define GMEM__INTERNAL_H


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

struct gmem_context {
    gmem_allocator allocator;
    gmem_io io;
    void (*log)(void *user, const char *line);
    void *log_user;
    int threads;
    int no_map;
    gmem_isa isa;
    gmem_compute compute;
    const struct gmem__ops *ops;
    const struct gmem__narrow *bf16, *int8; /* see gmem__engine */
    char backend[32];
};

GMEM__FN gmem_allocator gmem__system_allocator(void);
GMEM__FN void gmem__log(const gmem_context *context, const char *format, ...) GMEM__PRINTF(2, 3);
/* Zero-filled memory or NULL; count * bytes is checked. Freed with the same numbers. */
GMEM__FN void *gmem__alloc(const gmem_context *context, int64_t count, size_t bytes);
GMEM__FN void gmem__free(const gmem_context *context, void *memory, int64_t count, size_t bytes);
/* The same without the zeroing, for large buffers. */
GMEM__FN void *gmem__alloc_raw(const gmem_context *context, int64_t count, size_t bytes);

/* Activations live in one block sized beforehand: run the same takes on an arena without memory, reserve, and run them
 * again. A take from a full arena gives NULL and makes `used` exceed `bytes`. */
typedef struct gmem__arena {
    char *memory;
    int64_t bytes, used;
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
    struct gmem__block *blocks; /* of owned memory, freed together */
    int64_t parameters, bytes;  /* of what was taken */
} gmem__store;
GMEM__FN gmem_status gmem__store_matrix(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                        gmem__weight *out, gmem_error *error);
GMEM__FN gmem_status gmem__store_conv(gmem__store *store, const char *name, int64_t out_channels, int64_t in_channels,
                                      int64_t kernel, gmem__weight *out, gmem_error *error);
GMEM__FN gmem_status gmem__store_vector(gmem__store *store, const char *name, int64_t count, const float **out,
                                        gmem_error *error);
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
    int64_t tokens; /* columns of one sample, where gate is given */
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

/* What an operation needs besides its arguments. One per pass; never used by two threads at once. */
typedef struct gmem__engine {
    const struct gmem__ops *ops;
    int threads;
    void *scratch; /* ops->scratch_bytes(threads), 64-byte aligned */
    /* The kernels of narrow products, found once: asking the processor takes longer than a small product. bf16 NULL:
     * f32 kernels on rounded operands. */
    const struct gmem__narrow *bf16, *int8;
    struct gmem__profiler *profiler; /* of ops that time others (profile.h), else NULL */
} gmem__engine;

typedef struct gmem__ops {
    const char *name; /* "cpu/avx2" */
    int64_t (*scratch_bytes)(int threads);
    void (*linear)(const gmem__engine *engine, const gmem__linear *op);
    void (*norm)(const gmem__engine *engine, const gmem__norm *op);
    void (*rotate)(const gmem__engine *engine, const gmem__rotate *op);
    void (*attention)(const gmem__engine *engine, const gmem__attention *op);
    void (*conv)(const gmem__engine *engine, const gmem__conv *op);
    void (*group_norm)(const gmem__engine *engine, const gmem__group_norm *op);
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
/* An engine without scratch. */
GMEM__FN gmem__engine gmem__engine_of(const gmem_context *context);

/* The float and its bits: 1 where every one of `count` is finite. */
GMEM__FN int gmem__all_finite(const float *x, int64_t count);

#endif /* GMEM__INTERNAL_H */

/* from the file ... */
/* ---- src/error.c ---- */
/* Errors as values: codes and their strings from one list, messages with escaped names and plain numbers. */

#include <stdio.h>
#include <stdlib.h>

GMEM_API const char *gmem_version(void) { return GMEM_VERSION; }

GMEM_API const char *gmem_status_name(gmem_status status) {
    static const char *const names[] = {
#define GMEM__STATUS_NAME(name, text) #name,
        GMEM_STATUS_LIST(GMEM__STATUS_NAME)
#undef GMEM__STATUS_NAME
    };
    return (int)status >= 0 && status < GMEM_STATUS_COUNT ? names[status] : "E_UNKNOWN";
}

GMEM_API const char *gmem_status_text(gmem_status status) {
    static const char *const texts[] = {
#define GMEM__STATUS_TEXT(name, text) text,
        GMEM_STATUS_LIST(GMEM__STATUS_TEXT)
#undef GMEM__STATUS_TEXT
    };
    return (int)status >= 0 && status < GMEM_STATUS_COUNT ? texts[status] : "unknown error";
}

static void gmem__copy_text(char *out, size_t bytes, const char *text) {
    size_t length = strlen(text);
    if (length >= bytes) length = bytes - 1;
    memcpy(out, text, length);
    out[length] = 0;
}

static void gmem__set_error(gmem_error *error, gmem_status code, const char *path, int64_t offset, const char *format,
                            va_list arguments) {
    if (!error) return;
    error->code = code;
    error->offset = offset;
    gmem__copy_text(error->path, sizeof error->path, path ? path : "");
    vsnprintf(error->message, sizeof error->message, format, arguments);
}

GMEM__FN gmem_status gmem__fail(gmem_error *error, gmem_status code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    gmem__set_error(error, code, NULL, -1, format, arguments);
    va_end(arguments);
    return code;
}

GMEM__FN gmem_status gmem__fail_at(gmem_error *error, gmem_status code, const char *path, int64_t offset,
                                   const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    gmem__set_error(error, code, path, offset, format, arguments);
    va_end(arguments);
    return code;
}

GMEM__FN gmem_status gmem__fail_in(gmem_error *error, gmem_status code, const char *path) {
    if (error && code != GMEM_OK && !error->path[0]) gmem__copy_text(error->path, sizeof error->path, path);
    return code;
}

GMEM__FN gmem_error gmem__callback_error(void) {
    gmem_error error;
    memset(&error, 0, sizeof error);
    error.offset = -1;
    return error;
}

GMEM__FN gmem_status gmem__fail_callback(gmem_error *error, gmem_status status, const gmem_error *from,
                                         const char *who) {
    if (status == GMEM_OK || !error) return status;
    if (!from->message[0]) return gmem__fail(error, status, "%s failed: %s", who, gmem_status_text(status));
    *error = *from;
    error->code = status;
    return status;
}

GMEM_API const char *gmem_escape(const char *text, char *out, size_t bytes) {
    static const char digits[] = "0123456789abcdef";
    size_t used = 0;
    if (bytes == 0) return out;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        int plain = c >= 0x20 && c < 0x7f && c != '\\';
        size_t need = plain ? 1 : 4;
        if (used + need >= bytes) break;
        if (plain) {
            out[used++] = (char)c;
        } else {
            out[used++] = '\\';
            out[used++] = 'x';
            out[used++] = digits[c >> 4];
            out[used++] = digits[c & 15];
        }
    }
    out[used] = 0;
    return out;
}

GMEM__FN const char *gmem__quote(gmem__quoted *buffer, const char *name) {
    return gmem_escape(name, buffer->text, sizeof buffer->text);
}

GMEM__FN const char *gmem__shape_text(gmem__quoted *buffer, const int64_t *shape, int rank) {
    size_t used = 0;
    if (rank == 0) gmem__copy_text(buffer->text, sizeof buffer->text, "scalar");
    for (int i = 0; i < rank && used < sizeof buffer->text; i++) {
        const char *format = i == 0 ? "%lld" : " x %lld";
        if (shape[i] < 0) { /* a dimension that may be anything */
            used += (size_t)snprintf(buffer->text + used, sizeof buffer->text - used, i == 0 ? "any" : " x any");
        } else {
            used += (size_t)snprintf(buffer->text + used, sizeof buffer->text - used, format, (long long)shape[i]);
        }
    }
    return buffer->text;
}

GMEM__FN const char *gmem__format_double(gmem__quoted *buffer, double value) {
    snprintf(buffer->text, sizeof buffer->text, "%.9g", value);
    for (char *c = buffer->text; *c; c++) {
        if (*c == ',') *c = '.';
    }
    return buffer->text;
}

/* strtod obeys the locale, so the text is checked here and its point replaced by whatever the locale wants. */
GMEM__FN int gmem__parse_double(const char *text, size_t bytes, double *out) {
    char copy[64], point[8];
    size_t used = 0;
    int digits = 0;
    if (bytes == 0 || bytes > 40) return 0;
    snprintf(point, sizeof point, "%.1f", 0.5);
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '.') {
            for (const char *p = point + 1; *p && *p != '5'; p++)
                copy[used++] = *p;
            continue;
        }
        if (c >= '0' && c <= '9')
            digits = 1;
        else if (c != '-' && c != '+' && c != 'e' && c != 'E')
            return 0;
        copy[used++] = c;
    }
    if (!digits) return 0;
    copy[used] = 0;
    char *end = NULL;
    double value = strtod(copy, &end);
    if (end != copy + used || !(value - value == 0.0)) return 0;
    *out = value;
    return 1;
}
/* ---- src/memory.c ---- */
/* Memory: the default allocator, checked sizes, and the arena that holds a pass's activations. */

#include <stdlib.h>

#define GMEM__ALIGNMENT 64

/* Over-allocates by the alignment and keeps the original pointer just before what it returns: C99 has no
 * aligned_alloc. */
static void *gmem__system_alloc(void *user, size_t bytes) {
    (void)user;
    if (bytes > SIZE_MAX / 2 - GMEM__ALIGNMENT - sizeof(void *)) return NULL; /* no object may be larger */
    char *raw = (char *)malloc(bytes + GMEM__ALIGNMENT + sizeof(void *));
    if (!raw) return NULL;
    uintptr_t start = (uintptr_t)raw + sizeof(void *);
    char *aligned = raw + sizeof(void *) + (GMEM__ALIGNMENT - start % GMEM__ALIGNMENT) % GMEM__ALIGNMENT;
    memcpy(aligned - sizeof(void *), &raw, sizeof(void *));
    return aligned;
}

static void gmem__system_release(void *user, void *memory, size_t bytes) {
    void *raw;
    (void)user;
    (void)bytes;
    memcpy(&raw, (char *)memory - sizeof(void *), sizeof(void *));
    free(raw);
}

GMEM__FN gmem_allocator gmem__system_allocator(void) {
    gmem_allocator allocator = {NULL, gmem__system_alloc, gmem__system_release};
    return allocator;
}

GMEM__FN void *gmem__alloc_raw(const gmem_context *context, int64_t count, size_t bytes) {
    if (count < 0 || (uint64_t)count > SIZE_MAX / 2 / bytes) return NULL;
    size_t total = (size_t)count * bytes;
    return context->allocator.alloc(context->allocator.user, total ? total : 1);
}

GMEM__FN void *gmem__alloc(const gmem_context *context, int64_t count, size_t bytes) {
    void *memory = gmem__alloc_raw(context, count, bytes);
    if (memory) memset(memory, 0, (size_t)count * bytes);
    return memory;
}

GMEM__FN void gmem__free(const gmem_context *context, void *memory, int64_t count, size_t bytes) {
    if (!memory) return;
    size_t total = (size_t)count * bytes;
    context->allocator.release(context->allocator.user, memory, total ? total : 1);
}

GMEM__FN void *gmem__take(gmem__arena *arena, int64_t count, size_t bytes) {
    int64_t size = 0, end = 0, start = gmem__round_up(arena->used, GMEM__ALIGNMENT);
    if (!gmem__mul(count, (int64_t)bytes, &size) || !gmem__add(start, size, &end)) end = INT64_MAX - GMEM__ALIGNMENT;
    arena->used = end;
    return arena->memory && end <= arena->bytes ? arena->memory + start : NULL;
}

GMEM__FN int gmem__arena_reserve(const gmem_context *context, gmem__arena *arena) {
    arena->bytes = arena->used;
    arena->used = 0;
    arena->memory = (char *)gmem__alloc_raw(context, arena->bytes, 1);
    return arena->memory != NULL;
}

GMEM__FN void gmem__arena_release(const gmem_context *context, gmem__arena *arena) {
    gmem__free(context, arena->memory, arena->bytes, 1);
    arena->memory = NULL;
}

typedef struct gmem__block {
    struct gmem__block *next;
    int64_t bytes, used; /* of the whole allocation, this header included */
} gmem__block;

/* A new block goes first in the list, unless the first one has more room left for what comes. */
static gmem__block *gmem__block_add(const gmem_context *context, gmem__block **blocks, int64_t need) {
    int64_t bytes = gmem__max(need, *blocks ? gmem__min(2 * (*blocks)->bytes, 65536) : 2048);
    gmem__block *block = (gmem__block *)gmem__alloc(context, bytes, 1);
    if (!block) return NULL;
    block->bytes = bytes;
    block->used = (int64_t)sizeof *block;
    if (*blocks && bytes - need < (*blocks)->bytes - (*blocks)->used) {
        block->next = (*blocks)->next;
        (*blocks)->next = block;
    } else {
        block->next = *blocks;
        *blocks = block;
    }
    return block;
}

GMEM__FN void *gmem__blocks_take(const gmem_context *context, struct gmem__block **blocks, int64_t count, size_t bytes,
                                 size_t align) {
    int64_t size, need, a = (int64_t)align;
    if (!gmem__mul(count, (int64_t)bytes, &size) || !gmem__add(size, 2 * GMEM__ALIGNMENT, &need)) return NULL;
    gmem__block *block = *blocks;
    if (!block || block->bytes - gmem__round_up(block->used, a) < size) block = gmem__block_add(context, blocks, need);
    if (!block) return NULL;
    int64_t start = gmem__round_up(block->used, a);
    block->used = start + size;
    return (char *)block + start;
}

GMEM__FN void *gmem__blocks_take_raw(const gmem_context *context, gmem__block **blocks, int64_t bytes) {
    int64_t need;
    if (!*blocks && !gmem__block_add(context, blocks, 0)) return NULL; /* the first one serves small takes */
    if (!gmem__add(bytes, GMEM__ALIGNMENT, &need)) return NULL;
    gmem__block *block = (gmem__block *)gmem__alloc_raw(context, need, 1);
    if (!block) return NULL;
    block->bytes = block->used = need;
    block->next = (*blocks)->next;
    (*blocks)->next = block;
    return (char *)block + GMEM__ALIGNMENT;
}

GMEM__FN void gmem__blocks_free(const gmem_context *context, struct gmem__block **blocks) {
    while (*blocks) {
        gmem__block *block = *blocks;
        *blocks = block->next;
        gmem__free(context, block, block->bytes, 1);
    }
}

GMEM__FN int gmem__all_finite(const float *x, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
    }
    return !bad;
}
/* ---- src/io.c ---- */
/* Files: the system's, behind the hooks of gmem_io, and whole files in memory, mapped where that is possible.
 * POSIX where there is one, else the C library. */
/* ---- src/file.h ---- */
/* An opened checkpoint: what the format parsers fill in and what gmem_file_* answers from. */
#ifndef GMEM__FILE_H
#define GMEM__FILE_H


typedef enum gmem__entry_kind {
    GMEM__ENTRY_TENSOR,
    GMEM__ENTRY_NUMBER,
    GMEM__ENTRY_STRING,
    GMEM__ENTRY_FOREIGN
} gmem__entry_kind;

/* One leaf of the flattened file, as a parser hands it over. Keys and strings live in the file's own memory. */
typedef struct gmem__entry {
    const char *key; /* full dotted key; "" for a root that is no dictionary */
    int64_t nested;  /* bytes of `key` that name real dictionaries and lists: 3 for "ema" holding "blocks.0.bias" */
    gmem__entry_kind kind;
    gmem_tensor tensor; /* TENSOR, without its name */
    double number;      /* NUMBER: integers, floats, booleans */
    const char *string; /* STRING: the text; FOREIGN: the global that alone could build the value */
} gmem__entry;

/* What is kept of them: a tensor, or anything else in little room (checkpoints hold long lists of numbers). */
typedef struct gmem__leaf {
    gmem_tensor tensor; /* its name is the full key */
    int64_t nested;
} gmem__leaf;

typedef struct gmem__value {
    const char *key;
    int32_t kind, nested;
    union {
        double number;
        const char *string;
    } as;
} gmem__value;

struct gmem_file {
    const gmem_context *context;
    char *path;
    gmem_format format;
    gmem__bytes bytes;
    struct gmem__block *blocks; /* everything allocated with gmem__file_alloc */
    int64_t held;               /* bytes of memory held, against the limit */
    int over_limit;             /* gmem__file_alloc has refused because of it */

    gmem__leaf *leaves; /* (leaf_count) tensors in the file's order */
    int64_t leaf_count, leaf_capacity;
    gmem__value *values; /* (value_count) */
    int64_t value_count, value_capacity;
    const char **foreign; /* (foreign_count) distinct names of globals that stayed inert */
    int64_t foreign_count, foreign_capacity;
    const char **metadata; /* (2 * metadata_count) keys and values in turn; safetensors' __metadata__ */
    int64_t metadata_count, metadata_capacity;

    const char *key;       /* the selection */
    gmem_tensor *selected; /* (selected_count) views with prefixes removed from their names */
    int64_t selected_count;
    int32_t *index; /* (selected_count) the selection in the order of its names, for gmem_file_find */
};

/* Memory that lives as long as the file (zero-filled), or NULL: the system has no more, or the file wants more than 16
 * times its size + 1 MiB. gmem__file_no_memory raises what it was: E_MEMORY or E_LIMIT. */
GMEM__FN void *gmem__file_alloc(gmem_file *file, int64_t count, size_t bytes);
/* A NUL-terminated copy in the file's memory, or NULL. */
GMEM__FN char *gmem__file_text(gmem_file *file, const char *text, int64_t bytes);
GMEM__FN gmem_status gmem__file_no_memory(gmem_file *file, gmem_error *error);
/* Counts memory that a parser holds itself against the same limit: 0 where that would exceed it. The parser subtracts
 * what it frees from `held`. */
GMEM__FN int gmem__file_may_hold(gmem_file *file, int64_t bytes);

/* The parsers' outputs; keys and strings must live in the file's memory. Errors: E_MEMORY, E_LIMIT. */
GMEM__FN gmem_status gmem__file_add(gmem_file *file, const gmem__entry *entry, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_foreign(gmem_file *file, const char *name, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_metadata(gmem_file *file, const char *key, const char *value, gmem_error *error);

/* One parser per format; file->bytes is open, file->path set. */
GMEM__FN gmem_status gmem__parse_safetensors(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_zip(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_legacy(gmem_file *file, gmem_error *error);

/* Whether the name of any selected tensor begins with `prefix`. */
GMEM__FN int gmem__file_has_prefix(const gmem_file *file, const char *prefix);

/* Gives the memory of these bytes back to the system until they are read again, where `data` lies in the file's
 * mapping; else it does nothing. For weights of which a copy is in use. */
GMEM__FN void gmem__file_discard(const gmem_file *file, const void *data, int64_t bytes);

/* The global that alone could build the selection's `name` or what it lies in ("argparse.Namespace"), or NULL. */
GMEM__FN const char *gmem__file_foreign_at(const gmem_file *file, const char *name);

/* The offset of the first byte that is not UTF-8 (no overlong forms, no surrogates), or -1. */
GMEM__FN int64_t gmem__utf8_error(const char *text, int64_t bytes);
/* Sorts `order` (count), which holds 0 to count - 1 on return, by `compare`: heapsort, for names chosen by strangers
 * must not cost more than n log n. Equal items keep their order. */
GMEM__FN void gmem__sort(int32_t *order, int64_t count, int (*compare)(const void *user, int32_t a, int32_t b),
                         const void *user);
/* Why the last call of the I/O hooks failed, as far as the system tells; "" where it does not. Call
 * gmem__io_forget before the call. */
GMEM__FN void gmem__io_forget(void);
GMEM__FN const char *gmem__io_reason(void);

#endif /* GMEM__FILE_H */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* GMEM__C_FILES asks for the C library's files where POSIX has others, for the tests. */
#if (defined(__unix__) || defined(__APPLE__)) && !defined(GMEM__C_FILES)
#define GMEM__POSIX
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#ifndef GMEM_NO_MMAP
#include <sys/mman.h>
#endif
#endif

GMEM__FN void gmem__io_forget(void) { errno = 0; }

/* strerror is neither free of the locale nor safe with threads, and C99 itself knows none of these codes. */
GMEM__FN const char *gmem__io_reason(void) {
    static const struct {
        int code;
        const char *text;
    } reasons[] = {
#ifdef ENOENT
        {ENOENT, ": no such file or folder"},
#endif
#ifdef ENOTDIR
        {ENOTDIR, ": a part of the path is no folder"},
#endif
#ifdef EISDIR
        {EISDIR, ": it is a folder"},
#endif
#ifdef ESPIPE
        {ESPIPE, ": it is a pipe or a device"},
#endif
#ifdef EACCES
        {EACCES, ": permission denied"},
#endif
#ifdef EPERM
        {EPERM, ": not permitted"},
#endif
#ifdef EROFS
        {EROFS, ": the file system is read-only"},
#endif
#ifdef ENOSPC
        {ENOSPC, ": no space left"},
#endif
#ifdef EDQUOT
        {EDQUOT, ": the quota is used up"},
#endif
#ifdef EFBIG
        {EFBIG, ": too large for the file system"},
#endif
#ifdef EMFILE
        {EMFILE, ": too many open files"},
#endif
#ifdef ENAMETOOLONG
        {ENAMETOOLONG, ": the name is too long"},
#endif
#ifdef ELOOP
        {ELOOP, ": too many symbolic links"},
#endif
#ifdef EEXIST
        {EEXIST, ": it exists already"},
#endif
#ifdef EIO
        {EIO, ": input/output error"},
#endif
        {0, ""}, /* ends the table, and stands for what is not in it */
    };
    int i = 0;
    while (reasons[i].code != 0 && reasons[i].code != errno)
        i++;
    return reasons[i].text;
}

#ifdef GMEM__POSIX

/* Hidden by strict C99, and the headers may be in already; the declaration is POSIX's own. */
#ifdef __cplusplus
extern "C" {
#endif
int fsync(int file);
#ifdef __cplusplus
}
#endif

typedef struct gmem__system_file {
    int descriptor;
} gmem__system_file;

static int gmem__system_descriptor(void *file) { return ((gmem__system_file *)file)->descriptor; }

/* Folders, pipes and devices are refused: a model is a regular file, and a finished one is renamed over its target. */
static int gmem__check_regular(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return 0;
    if (S_ISREG(status.st_mode)) return 1;
    errno = S_ISDIR(status.st_mode) ? EISDIR : ESPIPE;
    return 0;
}

static void *gmem__system_open(void *user, const char *path, int write_it) {
    int flags = write_it ? O_WRONLY | O_CREAT | O_EXCL : O_RDONLY | O_NONBLOCK; /* never wait for a pipe's writer */
    (void)user;
#ifdef O_CLOEXEC
    flags |= O_CLOEXEC;
#endif
    int descriptor = open(path, flags, 0666);
    if (descriptor < 0) return NULL;
    gmem__system_file *file = gmem__check_regular(descriptor) ? (gmem__system_file *)malloc(sizeof *file) : NULL;
    if (!file) {
        int reason = errno;
        close(descriptor);
        errno = reason;
        return NULL;
    }
    file->descriptor = descriptor;
    return file;
}

static int64_t gmem__system_size(void *user, void *file) {
    struct stat status;
    (void)user;
    return fstat(gmem__system_descriptor(file), &status) == 0 ? (int64_t)status.st_size : -1;
}

static int64_t gmem__system_read(void *user, void *file, void *to, int64_t bytes, int64_t offset) {
    int descriptor = gmem__system_descriptor(file);
    off_t position = (off_t)offset;
    int64_t count;
    (void)user;
    if ((int64_t)position != offset || lseek(descriptor, position, SEEK_SET) != position) return -1;
    do {
        count = (int64_t)read(descriptor, to, (size_t)gmem__min(bytes, 1 << 30));
    } while (count < 0 && errno == EINTR);
    return count;
}

static int64_t gmem__system_write(void *user, void *file, const void *from, int64_t bytes) {
    int64_t count;
    (void)user;
    do {
        count = (int64_t)write(gmem__system_descriptor(file), from, (size_t)gmem__min(bytes, 1 << 30));
    } while (count < 0 && errno == EINTR);
    return count;
}

static int gmem__system_sync(void *user, void *file) {
    (void)user;
    return fsync(gmem__system_descriptor(file));
}

static int gmem__system_close(void *user, void *file) {
    (void)user;
    int result = close(gmem__system_descriptor(file));
    free(file);
    return result;
}

#ifndef GMEM_NO_MMAP
static const void *gmem__system_map(void *user, void *file, int64_t bytes) {
    (void)user;
    if ((uint64_t)bytes > SIZE_MAX / 2) return NULL;
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ, MAP_PRIVATE, gmem__system_descriptor(file), 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void gmem__system_unmap(void *user, const void *memory, int64_t bytes) {
    (void)user;
    munmap((void *)(uintptr_t)memory, (size_t)bytes);
}

/* Linux drops the pages from the process and takes them from the file when they are touched again. Its posix_madvise
 * does nothing, and strict C99 hides what does. */
#if defined(__linux__) && !defined(__alpha__)
#define GMEM__SYSTEM_DISCARD gmem__system_discard
#ifndef MADV_DONTNEED
#define GMEM__DONTNEED 4
#ifdef __cplusplus
extern "C" {
#endif
int madvise(void *memory, size_t bytes, int advice);
#ifdef __cplusplus
}
#endif
#else
#define GMEM__DONTNEED MADV_DONTNEED
#endif

/* Whole pages only: the others hold what belongs to somebody else. */
static void gmem__system_discard(void *user, const void *memory, int64_t bytes) {
    const long page = sysconf(_SC_PAGESIZE);
    (void)user;
    if (page <= 0) return;
    const uintptr_t size = (uintptr_t)page, end = ((uintptr_t)memory + (uintptr_t)bytes) / size * size;
    const uintptr_t start = ((uintptr_t)memory + size - 1) / size * size;
    if (start < end) (void)madvise((void *)start, (size_t)(end - start), GMEM__DONTNEED);
}
#undef GMEM__DONTNEED
#else
#define GMEM__SYSTEM_DISCARD NULL
#endif
#endif

/* A rename is on the disk once its folder is. Some file systems cannot sync a folder: the file is whole anyway. */
static void gmem__sync_folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) + 1 : 1;
    char *folder = (char *)malloc(length + 1);
    if (!folder) return;
    memcpy(folder, slash ? path : ".", length);
    folder[length] = 0;
    int descriptor = open(folder, O_RDONLY);
    free(folder);
    if (descriptor < 0) return;
    (void)fsync(descriptor);
    close(descriptor);
}

static int gmem__system_rename(void *user, const char *from, const char *to) {
    (void)user;
    if (rename(from, to) != 0) return -1;
    gmem__sync_folder_of(to);
    return 0;
}

static int gmem__system_remove(void *user, const char *path) {
    (void)user;
    return unlink(path);
}

#else /* the C library's files */

/* long has 32 bits in some places where files are larger. */
#ifdef _WIN32
#define GMEM__SEEK(file, offset, whence) _fseeki64((file), (offset), (whence))
#define GMEM__TELL(file)                 _ftelli64(file)
#else
#define GMEM__SEEK(file, offset, whence) \
    ((int64_t)(long)(offset) == (offset) ? fseek((file), (long)(offset), (whence)) : -1)
#define GMEM__TELL(file) ftell(file)
#endif

static void *gmem__system_open(void *user, const char *path, int write_it) {
    char first;
    (void)user;
    FILE *file = fopen(path, "rb");
    if (write_it) {
        if (!file) return fopen(path, "wb"); /* C99 has no exclusive creation */
        fclose(file);
        errno = 0;
        return NULL;
    }
    /* Some systems open folders and refuse to read them. */
    if (file && fread(&first, 1, 1, file) != 1 && ferror(file)) {
        int reason = errno;
        fclose(file);
        errno = reason;
        return NULL;
    }
    return file;
}

static int64_t gmem__system_size(void *user, void *file) {
    (void)user;
    return GMEM__SEEK((FILE *)file, (int64_t)0, SEEK_END) == 0 ? (int64_t)GMEM__TELL((FILE *)file) : -1;
}

static int64_t gmem__system_read(void *user, void *file, void *to, int64_t bytes, int64_t offset) {
    (void)user;
    if (GMEM__SEEK((FILE *)file, offset, SEEK_SET) != 0) return -1;
    size_t count = fread(to, 1, (size_t)gmem__min(bytes, 1 << 30), (FILE *)file);
    return count == 0 && ferror((FILE *)file) ? -1 : (int64_t)count;
}

static int64_t gmem__system_write(void *user, void *file, const void *from, int64_t bytes) {
    (void)user;
    size_t count = fwrite(from, 1, (size_t)gmem__min(bytes, 1 << 30), (FILE *)file);
    return count == 0 ? -1 : (int64_t)count;
}

static int gmem__system_sync(void *user, void *file) {
    (void)user;
    return fflush((FILE *)file);
}

static int gmem__system_close(void *user, void *file) {
    (void)user;
    return fclose((FILE *)file);
}

static int gmem__system_rename(void *user, const char *from, const char *to) {
    (void)user;
#ifdef _WIN32
    (void)remove(to); /* its rename does not replace */
#endif
    return rename(from, to);
}

static int gmem__system_remove(void *user, const char *path) {
    (void)user;
    return remove(path);
}

#undef GMEM__SEEK
#undef GMEM__TELL
#endif

GMEM__FN gmem_io gmem__system_io(void) {
    gmem_io io;
    memset(&io, 0, sizeof io);
    io.open = gmem__system_open;
    io.size = gmem__system_size;
    io.read = gmem__system_read;
    io.write = gmem__system_write;
    io.sync = gmem__system_sync;
    io.close = gmem__system_close;
#if defined(GMEM__POSIX) && !defined(GMEM_NO_MMAP)
    io.map = gmem__system_map;
    io.unmap = gmem__system_unmap;
    io.discard = GMEM__SYSTEM_DISCARD;
#endif
    io.rename = gmem__system_rename;
    io.remove = gmem__system_remove;
    return io;
}

static gmem_status gmem__read_fully(const gmem_io *io, void *file, unsigned char *to, int64_t bytes, const char *path,
                                    gmem_error *error) {
    for (int64_t done = 0; done < bytes;) {
        gmem__io_forget();
        int64_t count = io->read(io->user, file, to + done, bytes - done, done);
        if (count < 0 || count > bytes - done)
            return gmem__fail_at(error, GMEM_E_READ, path, done, "cannot read the file%s", gmem__io_reason());
        if (count == 0)
            return gmem__fail_at(error, GMEM_E_TRUNCATED, path, done,
                                 "the file ends after %lld bytes, but had %lld when it was opened", (long long)done,
                                 (long long)bytes);
        done += count;
    }
    return GMEM_OK;
}

/* Maps or reads `bytes` of an open file. */
static gmem_status gmem__bytes_load(const gmem_context *context, void *file, int64_t bytes, const char *path,
                                    gmem__bytes *out, gmem_error *error) {
    const gmem_io *io = &context->io;
    out->size = bytes;
    out->data = (const unsigned char *)"";
    if (bytes == 0) return GMEM_OK;
    const void *mapped = context->no_map || !io->map ? NULL : io->map(io->user, file, bytes);
    if (mapped) {
        out->data = (const unsigned char *)mapped;
        out->mapped = 1;
        return GMEM_OK;
    }
    unsigned char *memory = (unsigned char *)gmem__alloc_raw(context, bytes, 1);
    if (!memory)
        return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory for the file's %lld bytes", (long long)bytes);
    gmem_status status = gmem__read_fully(io, file, memory, bytes, path, error);
    if (status != GMEM_OK) {
        gmem__free(context, memory, bytes, 1);
        return status;
    }
    out->data = memory;
    out->owned = 1;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__bytes_open(const gmem_context *context, const char *path, gmem__bytes *out,
                                      gmem_error *error) {
    const gmem_io *io = &context->io;
    gmem__bytes loaded;
    memset(&loaded, 0, sizeof loaded);
    gmem__io_forget();
    void *file = io->open(io->user, path, 0);
    if (!file) return gmem__fail_at(error, GMEM_E_OPEN, path, -1, "cannot open the file%s", gmem__io_reason());
    gmem__io_forget();
    int64_t size = io->size(io->user, file);
    gmem_status status =
        size < 0 ? gmem__fail_at(error, GMEM_E_READ, path, -1, "cannot tell the file's size%s", gmem__io_reason())
                 : gmem__bytes_load(context, file, size, path, &loaded, error);
    (void)io->close(io->user, file); /* what was read is here, whatever closing says */
    if (status == GMEM_OK) *out = loaded;
    return status;
}

GMEM__FN void gmem__bytes_close(const gmem_context *context, gmem__bytes *bytes) {
    if (bytes->mapped && context->io.unmap) context->io.unmap(context->io.user, bytes->data, bytes->size);
    if (bytes->owned) gmem__free(context, (void *)(uintptr_t)bytes->data, bytes->size, 1);
    memset(bytes, 0, sizeof *bytes);
}

#undef GMEM__POSIX
#undef GMEM__SYSTEM_DISCARD
/* ---- src/tensor.c ---- */
/* Tensors: element types, exact conversions, and reads through any strides from data that may lie unaligned. */

GMEM_API const char *gmem_type_name(gmem_type type) {
    static const char *const names[] = {
#define GMEM__TYPE_NAME(name, bytes, text) text,
        GMEM_TYPE_LIST(GMEM__TYPE_NAME)
#undef GMEM__TYPE_NAME
    };
    return (int)type >= 0 && type < GMEM_TYPE_COUNT ? names[type] : "unknown";
}

GMEM_API size_t gmem_type_bytes(gmem_type type) {
    static const unsigned char sizes[] = {
#define GMEM__TYPE_BYTES(name, bytes, text) bytes,
        GMEM_TYPE_LIST(GMEM__TYPE_BYTES)
#undef GMEM__TYPE_BYTES
    };
    return (int)type >= 0 && type < GMEM_TYPE_COUNT ? sizes[type] : 0;
}

GMEM_API int64_t gmem_tensor_count(const gmem_tensor *tensor) {
    int64_t count = 1;
    for (int i = 0; i < tensor->rank; i++)
        count *= tensor->shape[i];
    return count;
}

/* The stride outside of a dimension that is contiguous. Unsigned: shapes may come here before they are checked. */
static int64_t gmem__outer_stride(int64_t stride, int64_t size) {
    return (int64_t)((uint64_t)stride * (uint64_t)gmem__max(size, 1));
}

GMEM_API gmem_tensor gmem_tensor_make(const char *name, gmem_type type, int rank, const int64_t *shape,
                                      const void *data) {
    gmem_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.name = name;
    tensor.type = type;
    tensor.rank = rank;
    tensor.data = data;
    int64_t stride = 1;
    for (int i = rank <= GMEM_MAX_RANK ? rank - 1 : -1; i >= 0; i--) {
        tensor.shape[i] = shape[i];
        tensor.stride[i] = stride;
        stride = gmem__outer_stride(stride, shape[i]);
    }
    return tensor;
}

/* the half formats ------------------------------------------------------------------------------------------------ */

static uint32_t gmem__float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float gmem__bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* binary16: 1 sign, 5 exponent (bias 15), 10 fraction. */
GMEM__FN float gmem__f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
    if (exponent == 31) return gmem__bits_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return gmem__bits_float(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * (1.0f / 16777216.0f); /* subnormal: fraction * 2^-24, exact in f32 */
    return gmem__bits_float(sign | gmem__float_bits(magnitude));
}

/* Drops the low `shift` bits (1 to 31), to nearest, ties to even. A carry into the exponent is right: it rounds up. */
static uint32_t gmem__round_bits(uint32_t bits, int shift) {
    uint32_t half = 1u << (shift - 1), odd = (bits >> shift) & 1u;
    return (bits + (half - 1) + odd) >> shift;
}

GMEM__FN uint16_t gmem__f32_to_f16(float value) {
    uint32_t bits = gmem__float_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
        result = 0x7e00u | (magnitude >> 13 & 0x3ffu); /* a quiet NaN with what fits of its payload */
    } else if (magnitude >= 0x477ff000u) {
        result = 0x7c00u; /* 65520 and more round to infinity */
    } else if (magnitude >= 0x38800000u) {
        result = gmem__round_bits(magnitude - (112u << 23), 13); /* normal: 2^-14 and more */
    } else if (magnitude < 0x33000000u) {
        result = 0; /* less than half of the smallest subnormal */
    } else {
        uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
        result = gmem__round_bits(fraction, 126 - (int)(magnitude >> 23)); /* to a multiple of 2^-24 */
    }
    return (uint16_t)(sign | result);
}

GMEM__FN uint16_t gmem__f32_to_bf16(float value) {
    uint32_t bits = gmem__float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)gmem__round_bits(bits, 16);
}

/* elements from little-endian bytes ------------------------------------------------------------------------------- */

static uint16_t gmem__load16(const unsigned char *from) { return (uint16_t)(from[0] | from[1] << 8); }

static uint32_t gmem__load32(const unsigned char *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static uint64_t gmem__load64(const unsigned char *from) {
    return (uint64_t)gmem__load32(from) | (uint64_t)gmem__load32(from + 4) << 32;
}

static double gmem__load_f64(const unsigned char *from) {
    uint64_t bits = gmem__load64(from);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Towards zero, as a C cast does where it is defined; what does not fit goes to the nearest end, NaN to 0. */
static int64_t gmem__double_to_i64(double value) {
    if (value != value) return 0;
    if (value >= 9223372036854775808.0) return INT64_MAX;
    if (value < -9223372036854775808.0) return INT64_MIN;
    return (int64_t)value;
}

/* X(type, what it holds, the element at `from` as a number of C) */
#define GMEM__LOADS(X)                                   \
    X(F32, REAL, gmem__bits_float(gmem__load32(from)))   \
    X(F16, REAL, gmem__f16_to_f32(gmem__load16(from)))   \
    X(BF16, REAL, gmem__bf16_to_f32(gmem__load16(from))) \
    X(F64, REAL, gmem__load_f64(from))                   \
    X(I8, INTEGER, (int8_t)*from)                        \
    X(U8, INTEGER, *from)                                \
    X(I16, INTEGER, (int16_t)gmem__load16(from))         \
    X(I32, INTEGER, (int32_t)gmem__load32(from))         \
    X(I64, INTEGER, (int64_t)gmem__load64(from))         \
    X(BOOL, INTEGER, *from != 0)
#define GMEM__REAL_TO_I64(value)    gmem__double_to_i64((double)(value))
#define GMEM__INTEGER_TO_I64(value) ((int64_t)(value))

/* Elements at from, from + step, ... in row-major order: what one inner loop can take. */
typedef struct gmem__stretch {
    const unsigned char *from;
    int64_t step, count; /* bytes, elements */
} gmem__stretch;

static void gmem__stretch_to_f32(gmem_type type, gmem__stretch stretch, void *to) {
    float *out = (float *)to;
    const unsigned char *from = stretch.from;
    switch (type) {
#define GMEM__LOAD_CASE(name, kind, value)                                \
    case GMEM_##name:                                                     \
        for (int64_t i = 0; i < stretch.count; i++, from += stretch.step) \
            out[i] = (float)(value);                                      \
        break;
        GMEM__LOADS(GMEM__LOAD_CASE)
#undef GMEM__LOAD_CASE
    case GMEM_TYPE_COUNT:
        break;
    }
}

static void gmem__stretch_to_i64(gmem_type type, gmem__stretch stretch, void *to) {
    int64_t *out = (int64_t *)to;
    const unsigned char *from = stretch.from;
    switch (type) {
#define GMEM__LOAD_CASE(name, kind, value)                                \
    case GMEM_##name:                                                     \
        for (int64_t i = 0; i < stretch.count; i++, from += stretch.step) \
            out[i] = GMEM__##kind##_TO_I64(value);                        \
        break;
        GMEM__LOADS(GMEM__LOAD_CASE)
#undef GMEM__LOAD_CASE
    case GMEM_TYPE_COUNT:
        break;
    }
}

static void gmem__stretch_copy(gmem_type type, gmem__stretch stretch, void *to) {
    unsigned char *out = (unsigned char *)to;
    int64_t bytes = (int64_t)gmem_type_bytes(type);
    if (stretch.step == bytes) {
        memcpy(out, stretch.from, (size_t)(stretch.count * bytes));
        return;
    }
    for (int64_t i = 0; i < stretch.count; i++)
        memcpy(out + i * bytes, stretch.from + i * stretch.step, (size_t)bytes);
}

/* walking strides ----------------------------------------------------------------------------------------------- */

/* How a tensor is walked: the innermost dimensions that one step reaches count as one. */
typedef struct gmem__walk {
    const gmem_tensor *tensor;
    int outer;           /* dimensions outside of the innermost stretch */
    int64_t step, count; /* elements */
} gmem__walk;

static gmem__walk gmem__walk_of(const gmem_tensor *tensor) {
    gmem__walk walk = {tensor, tensor->rank, 1, 1};
    while (walk.outer > 0) {
        int64_t size = tensor->shape[walk.outer - 1], stride = tensor->stride[walk.outer - 1];
        if (size != 1) {
            if (walk.count == 1)
                walk.step = stride;
            else if (stride != walk.step * walk.count)
                break;
            walk.count *= size;
        }
        walk.outer--;
    }
    return walk;
}

/* The stretch from element `first` on, at most `limit` elements long. */
static gmem__stretch gmem__stretch_at(const gmem__walk *walk, int64_t first, int64_t limit) {
    const gmem_tensor *tensor = walk->tensor;
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type), inner = first % walk->count, rest = first / walk->count;
    int64_t offset = inner * walk->step;
    for (int i = walk->outer - 1; i >= 0; i--) {
        offset += rest % tensor->shape[i] * tensor->stride[i];
        rest /= tensor->shape[i];
    }
    gmem__stretch stretch;
    stretch.from = (const unsigned char *)tensor->data + offset * bytes;
    stretch.step = walk->step * bytes;
    stretch.count = gmem__min(limit, walk->count - inner);
    return stretch;
}

/* Elements [first, first + count) into out, `width` bytes each there. */
static void gmem__read_stretches(const gmem_tensor *tensor, int64_t first, int64_t count, void *out, size_t width,
                                 void (*read)(gmem_type type, gmem__stretch stretch, void *to)) {
    if (count <= 0) return; /* an empty tensor's other dimensions mean nothing */
    gmem__walk walk = gmem__walk_of(tensor);
    for (int64_t done = 0; done < count;) {
        gmem__stretch stretch = gmem__stretch_at(&walk, first + done, count - done);
        read(tensor->type, stretch, (char *)out + (size_t)done * width);
        done += stretch.count;
    }
}

GMEM_API void gmem_tensor_read_f32(const gmem_tensor *tensor, int64_t first, int64_t count, float *out) {
    gmem__read_stretches(tensor, first, count, out, sizeof *out, gmem__stretch_to_f32);
}

GMEM_API void gmem_tensor_read_i64(const gmem_tensor *tensor, int64_t first, int64_t count, int64_t *out) {
    gmem__read_stretches(tensor, first, count, out, sizeof *out, gmem__stretch_to_i64);
}

GMEM_API void gmem_tensor_read(const gmem_tensor *tensor, int64_t first, int64_t count, void *out) {
    gmem__read_stretches(tensor, first, count, out, gmem_type_bytes(tensor->type), gmem__stretch_copy);
}

GMEM__FN int gmem__tensor_is_contiguous(const gmem_tensor *tensor) {
    int64_t expected = 1;
    for (int i = tensor->rank - 1; i >= 0; i--) {
        if (tensor->shape[i] != 1 && tensor->stride[i] != expected) return 0;
        expected = gmem__outer_stride(expected, tensor->shape[i]);
    }
    return 1;
}

GMEM_API void gmem_convert_f32(const float *from, int64_t count, gmem_type type, void *out) {
    if (type == GMEM_F32) {
        memcpy(out, from, (size_t)count * sizeof *from);
    } else if (type == GMEM_F64) {
        for (int64_t i = 0; i < count; i++)
            ((double *)out)[i] = (double)from[i];
    } else if (type == GMEM_F16) {
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)out)[i] = gmem__f32_to_f16(from[i]);
    } else if (type == GMEM_BF16) {
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)out)[i] = gmem__f32_to_bf16(from[i]);
    }
}

/* needed tensors -------------------------------------------------------------------------------------------------- */

static gmem_status gmem__fail_missing(const gmem_file *file, const char *name, gmem_error *error) {
    gmem__quoted quoted, culprit;
    const char *foreign = gmem__file_foreign_at(file, name);
    if (foreign)
        return gmem__fail_at(error, GMEM_E_FOREIGN, gmem_file_path(file), -1,
                             "%s: only the file's own code could build it (%s), and none is run",
                             gmem__quote(&quoted, name), gmem__quote(&culprit, foreign));
    return gmem__fail_at(error, GMEM_E_MISSING_TENSOR, gmem_file_path(file), -1, "%s: missing",
                         gmem__quote(&quoted, name));
}

static int gmem__shape_matches(const gmem_tensor *tensor, int rank, const int64_t *shape) {
    if (tensor->rank != rank) return 0;
    for (int i = 0; i < rank; i++) {
        if (shape[i] >= 0 && tensor->shape[i] != shape[i]) return 0;
    }
    return 1;
}

GMEM__FN const gmem_tensor *gmem__find_scale(const gmem_file *file, const char *name) {
    static const char suffix[] = ".scale";
    char scale[1024];
    size_t length = strlen(name);
    if (length > sizeof scale - sizeof suffix) return NULL;
    memcpy(scale, name, length);
    memcpy(scale + length, suffix, sizeof suffix);
    return gmem_file_find(file, scale);
}

/* int8 weights are numbers only together with their scales. */
static gmem_status gmem__check_type(const gmem_file *file, const gmem_tensor *tensor, gmem_error *error) {
    gmem__quoted quoted;
    gmem_type type = tensor->type;
    if (type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64) return GMEM_OK;
    if (type != GMEM_I8)
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(file), -1, "%s: expected floating point, found %s",
                             gmem__quote(&quoted, tensor->name), gmem_type_name(type));
    if (!gmem__find_scale(file, tensor->name))
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(file), -1,
                             "%s: found I8 without its scales in %s.scale", gmem__quote(&quoted, tensor->name),
                             quoted.text);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__need(const gmem_file *file, const char *name, int rank, const int64_t *shape,
                                const gmem_tensor **out, gmem_error *error) {
    gmem__quoted quoted, expected, found;
    const gmem_tensor *tensor = gmem_file_find(file, name);
    if (!tensor) return gmem__fail_missing(file, name, error);
    if (!gmem__shape_matches(tensor, rank, shape))
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(file), -1, "%s: expected %s, found %s",
                             gmem__quote(&quoted, name), gmem__shape_text(&expected, shape, rank),
                             gmem__shape_text(&found, tensor->shape, tensor->rank));
    GMEM__TRY(gmem__check_type(file, tensor, error));
    *out = tensor;
    return GMEM_OK;
}

#undef GMEM__LOADS
#undef GMEM__REAL_TO_I64
#undef GMEM__INTEGER_TO_I64
/* ---- src/json.c ---- */
/* The JSON parser: RFC 8259 without leniency. It runs twice over the text, first to count the nodes and then to fill
 * them in, so memory is exact; its stack is an array of bounded depth. */
/* ---- src/json.h ---- */
/* JSON as a flat array of nodes: a strict parser of bounded depth for headers and configurations from strangers. */
#ifndef GMEM__JSON_H
#define GMEM__JSON_H


#define GMEM__JSON_DEPTH 64
/* Bytes of memory that a byte of text takes at most: a node for every second one, the copy, the keys being sorted. */
#define GMEM__JSON_MEMORY 9

typedef enum gmem__json_kind {
    GMEM__JSON_NULL,
    GMEM__JSON_FALSE,
    GMEM__JSON_TRUE,
    GMEM__JSON_NUMBER,
    GMEM__JSON_STRING,
    GMEM__JSON_ARRAY,
    GMEM__JSON_OBJECT
} gmem__json_kind;

/* A value, followed by what it contains. The children of node i are i + 1, next of that, and so on until next of i;
 * an object's are keys and values in turn. */
typedef struct gmem__json_node {
    uint32_t kind : 3, start : 29; /* a gmem__json_kind; where its text begins, a string's after the quote */
    uint32_t length;               /* of a number's or string's text */
    uint32_t next;
} gmem__json_node;

typedef struct gmem__json {
    const gmem_context *context;
    char *text; /* the parser's copy; strings are decoded in place and NUL-terminated */
    int64_t bytes;
    int64_t offset; /* of the text in its file, for messages */
    gmem__json_node *nodes;
    int64_t count;
} gmem__json;

/* Parses the value at the start of text (bytes). `path` and `offset` (where the text lies in that file) are for the
 * error. `end` receives the bytes up to the value's end; where it is NULL only white space may follow.
 * Errors: E_JSON, E_JSON_DUPLICATE, E_LIMIT, E_MEMORY. */
GMEM__FN gmem_status gmem__json_parse(const gmem_context *context, const char *text, int64_t bytes, const char *path,
                                      int64_t offset, gmem__json *out, int64_t *end, gmem_error *error);
GMEM__FN void gmem__json_free(gmem__json *json);

/* The value at `key` of the object at `node`, or -1: no such key, or no object. */
GMEM__FN int64_t gmem__json_get(const gmem__json *json, int64_t node, const char *key);
GMEM__INLINE gmem__json_kind gmem__json_kind_of(const gmem__json *json, int64_t node) {
    return (gmem__json_kind)json->nodes[node].kind;
}
/* A string's text, NUL-terminated; JSON with a NUL in a string is refused. */
GMEM__INLINE const char *gmem__json_text(const gmem__json *json, int64_t node) {
    return json->text + json->nodes[node].start;
}
/* Where the value begins in its file. */
GMEM__INLINE int64_t gmem__json_offset(const gmem__json *json, int64_t node) {
    return json->offset + json->nodes[node].start - (json->nodes[node].kind == GMEM__JSON_STRING);
}
/* 1 where the node is a number that can be had: as a plain non-negative integer; as a double. */
GMEM__FN int gmem__json_int(const gmem__json *json, int64_t node, int64_t *out);
GMEM__FN int gmem__json_double(const gmem__json *json, int64_t node, double *out);

#endif /* GMEM__JSON_H */

#define GMEM__JSON_MAX_BYTES ((int64_t)1 << 28)

typedef struct gmem__json_parser {
    gmem__json *json; /* nodes NULL: the counting run, which leaves the text alone */
    const char *path;
    gmem_error *error;
    int64_t at, count;
    uint32_t open[GMEM__JSON_DEPTH]; /* the containers around, innermost last */
    char closer[GMEM__JSON_DEPTH];   /* ']' or '}' */
    int depth;
} gmem__json_parser;

static gmem_status gmem__json_fail(gmem__json_parser *parser, int64_t at, const char *what) {
    return gmem__fail_at(parser->error, GMEM_E_JSON, parser->path, parser->json->offset + at, "JSON: %s", what);
}

/* The byte at `at`, or 0 at the end: no byte 0 is part of JSON. */
static char gmem__json_peek(const gmem__json_parser *parser) {
    return parser->at < parser->json->bytes ? parser->json->text[parser->at] : (char)0;
}

static void gmem__json_skip_space(gmem__json_parser *parser) {
    char c = gmem__json_peek(parser);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        parser->at++;
        c = gmem__json_peek(parser);
    }
}

static uint32_t gmem__json_push(gmem__json_parser *parser, gmem__json_kind kind, int64_t start, int64_t length) {
    uint32_t index = (uint32_t)parser->count++;
    if (parser->json->nodes) {
        gmem__json_node *node = parser->json->nodes + index;
        node->kind = (uint32_t)kind & 7u;
        node->start = (uint32_t)start & 0x1fffffffu;
        node->length = (uint32_t)length;
        node->next = index + 1;
    }
    return index;
}

/* strings --------------------------------------------------------------------------------------------------------- */

GMEM__FN int64_t gmem__utf8_error(const char *text, int64_t bytes) {
    const unsigned char *s = (const unsigned char *)text;
    for (int64_t i = 0; i < bytes;) {
        unsigned char lead = s[i];
        int more = lead < 0x80 ? 0 : lead >= 0xc2 && lead < 0xe0 ? 1 : lead >= 0xe0 && lead < 0xf0 ? 2 : 3;
        if ((more == 3 && (lead < 0xf0 || lead > 0xf4)) || more >= bytes - i) return i;
        uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
        for (int k = 1; k <= more; k++) {
            if ((s[i + k] & 0xc0) != 0x80) return i;
            code = code << 6 | (s[i + k] & 0x3fu);
        }
        if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
            (more == 3 && (code < 0x10000 || code > 0x10ffff)))
            return i;
        i += more + 1;
    }
    return -1;
}

static int gmem__utf8_put(char *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    for (int k = more; k > 0; k--, code >>= 6)
        out[k] = (char)(unsigned char)(0x80u | (code & 0x3fu));
    out[0] = (char)(unsigned char)((0xff00u >> (more + 1) & 0xffu) | code);
    return more + 1;
}

/* Four hex digits at `at`, or -1. */
static int32_t gmem__json_hex4(const gmem__json *json, int64_t at) {
    int32_t value = 0;
    if (json->bytes - at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = json->text[at + i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* The escape at `at`, which points behind the backslash; moves behind it. */
static gmem_status gmem__json_escape(gmem__json_parser *parser, uint32_t *code) {
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int64_t start = parser->at - 1;
    char c = gmem__json_peek(parser);
    parser->at++;
    if (c != 'u') {
        const char *letter = c ? strchr(letters, c) : NULL;
        if (!letter) return gmem__json_fail(parser, start, "no such escape");
        *code = (unsigned char)values[letter - letters];
        return GMEM_OK;
    }
    int32_t unit = gmem__json_hex4(parser->json, parser->at);
    if (unit < 0) return gmem__json_fail(parser, start, "\\u wants four hexadecimal digits");
    parser->at += 4;
    *code = (uint32_t)unit;
    if (unit >= 0xd800 && unit < 0xdc00 && gmem__json_peek(parser) == '\\') {
        parser->at++;
        int32_t low = gmem__json_peek(parser) == 'u' ? gmem__json_hex4(parser->json, parser->at + 1) : -1;
        parser->at += 5;
        if (low >= 0xdc00 && low < 0xe000)
            *code = 0x10000u + ((uint32_t)(unit - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    }
    if (*code >= 0xd800 && *code < 0xe000) return gmem__json_fail(parser, start, "half of a surrogate pair");
    if (*code == 0) return gmem__json_fail(parser, start, "a NUL in a string");
    return GMEM_OK;
}

/* The string at `at`. The filling run writes the decoded text, which is never longer, over the encoded one. */
static gmem_status gmem__json_string(gmem__json_parser *parser) {
    gmem__json *json = parser->json;
    int64_t start = ++parser->at, used = start, bad;
    for (;;) {
        char utf8[4], c = gmem__json_peek(parser);
        int length = 1;
        if (parser->at >= json->bytes) return gmem__json_fail(parser, start - 1, "a string without an end");
        if ((unsigned char)c < 0x20) return gmem__json_fail(parser, parser->at, "a control character in a string");
        parser->at++;
        if (c == '"') break;
        utf8[0] = c;
        if (c == '\\') {
            uint32_t code = 0;
            GMEM__TRY(gmem__json_escape(parser, &code));
            length = gmem__utf8_put(utf8, code);
        }
        if (json->nodes) memcpy(json->text + used, utf8, (size_t)length);
        used += length;
    }
    bad = json->nodes ? -1 : gmem__utf8_error(json->text + start, parser->at - 1 - start);
    if (bad >= 0) return gmem__json_fail(parser, start + bad, "a string that is not UTF-8");
    if (json->nodes) json->text[used] = 0;
    gmem__json_push(parser, GMEM__JSON_STRING, start, used - start);
    return GMEM_OK;
}

/* numbers and words ----------------------------------------------------------------------------------------------- */

static int64_t gmem__json_digits(gmem__json_parser *parser) {
    int64_t start = parser->at;
    while (gmem__json_peek(parser) >= '0' && gmem__json_peek(parser) <= '9')
        parser->at++;
    return parser->at - start;
}

static gmem_status gmem__json_number(gmem__json_parser *parser) {
    int64_t start = parser->at;
    if (gmem__json_peek(parser) == '-') parser->at++;
    char first = gmem__json_peek(parser);
    int64_t digits = gmem__json_digits(parser);
    if (digits == 0 || (digits > 1 && first == '0')) return gmem__json_fail(parser, start, "a malformed number");
    if (gmem__json_peek(parser) == '.') {
        parser->at++;
        if (gmem__json_digits(parser) == 0) return gmem__json_fail(parser, start, "a malformed number");
    }
    if (gmem__json_peek(parser) == 'e' || gmem__json_peek(parser) == 'E') {
        parser->at++;
        if (gmem__json_peek(parser) == '+' || gmem__json_peek(parser) == '-') parser->at++;
        if (gmem__json_digits(parser) == 0) return gmem__json_fail(parser, start, "a malformed number");
    }
    gmem__json_push(parser, GMEM__JSON_NUMBER, start, parser->at - start);
    return GMEM_OK;
}

static gmem_status gmem__json_word(gmem__json_parser *parser) {
    static const struct {
        const char *text;
        gmem__json_kind kind;
    } words[] = {{"null", GMEM__JSON_NULL}, {"false", GMEM__JSON_FALSE}, {"true", GMEM__JSON_TRUE}};
    for (int i = 0; i < 3; i++) {
        int64_t length = (int64_t)strlen(words[i].text);
        if (parser->json->bytes - parser->at >= length &&
            memcmp(parser->json->text + parser->at, words[i].text, (size_t)length) == 0) {
            gmem__json_push(parser, words[i].kind, parser->at, length);
            parser->at += length;
            return GMEM_OK;
        }
    }
    return gmem__json_fail(parser, parser->at, "a value is missing");
}

/* containers ------------------------------------------------------------------------------------------------------ */

typedef struct gmem__json_keys {
    const gmem__json *json;
    const uint32_t *nodes; /* of the keys, in the object's order */
} gmem__json_keys;

static int gmem__json_compare_keys(const void *user, int32_t a, int32_t b) {
    const gmem__json_keys *keys = (const gmem__json_keys *)user;
    return strcmp(gmem__json_text(keys->json, keys->nodes[a]), gmem__json_text(keys->json, keys->nodes[b]));
}

/* The first repeated key of `count`, or -1; `order` (count) is room to sort in. */
static int64_t gmem__json_repeated(const gmem__json_keys *keys, int32_t *order, int64_t count) {
    int64_t first = -1;
    gmem__sort(order, count, gmem__json_compare_keys, keys);
    for (int64_t i = 1; i < count; i++) {
        if (gmem__json_compare_keys(keys, order[i - 1], order[i]) == 0 && (first < 0 || order[i] < first))
            first = order[i];
    }
    return first;
}

static gmem_status gmem__json_check_keys(gmem__json_parser *parser, uint32_t object) {
    gmem__json *json = parser->json;
    gmem__quoted quoted;
    int64_t count = 0, filled = 0;
    uint32_t end = json->nodes[object].next;
    for (uint32_t i = object + 1; i < end; i = json->nodes[i + 1].next)
        count++;
    if (count < 2) return GMEM_OK;
    uint32_t *nodes = (uint32_t *)gmem__alloc_raw(json->context, 2 * count, sizeof *nodes);
    if (!nodes) return gmem__fail_at(parser->error, GMEM_E_MEMORY, parser->path, -1, "no memory for the JSON's keys");
    for (uint32_t i = object + 1; i < end; i = json->nodes[i + 1].next)
        nodes[filled++] = i;
    gmem__json_keys keys = {json, nodes};
    int64_t repeated = gmem__json_repeated(&keys, (int32_t *)(nodes + count), count);
    int64_t node = repeated < 0 ? -1 : (int64_t)nodes[repeated];
    gmem__free(json->context, nodes, 2 * count, sizeof *nodes);
    if (node < 0) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_JSON_DUPLICATE, parser->path, gmem__json_offset(json, node),
                         "JSON: the key %s stands twice", gmem__quote(&quoted, gmem__json_text(json, node)));
}

static gmem_status gmem__json_open(gmem__json_parser *parser, char closer) {
    if (parser->depth == GMEM__JSON_DEPTH)
        return gmem__fail_at(parser->error, GMEM_E_LIMIT, parser->path, parser->json->offset + parser->at,
                             "JSON: nested more than %d deep", GMEM__JSON_DEPTH);
    parser->closer[parser->depth] = closer;
    parser->open[parser->depth++] =
        gmem__json_push(parser, closer == '}' ? GMEM__JSON_OBJECT : GMEM__JSON_ARRAY, parser->at, 0);
    parser->at++;
    return GMEM_OK;
}

static gmem_status gmem__json_close(gmem__json_parser *parser) {
    uint32_t container = parser->open[--parser->depth];
    parser->at++;
    if (!parser->json->nodes) return GMEM_OK;
    parser->json->nodes[container].next = (uint32_t)parser->count;
    return parser->closer[parser->depth] == '}' ? gmem__json_check_keys(parser, container) : GMEM_OK;
}

/* Inside an object: a key and its colon. */
static gmem_status gmem__json_key(gmem__json_parser *parser) {
    if (parser->depth == 0 || parser->closer[parser->depth - 1] != '}') return GMEM_OK;
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) != '"') return gmem__json_fail(parser, parser->at, "a key is missing");
    GMEM__TRY(gmem__json_string(parser));
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) != ':') return gmem__json_fail(parser, parser->at, "':' is missing");
    parser->at++;
    return GMEM_OK;
}

/* A scalar, or the opening of a container; where that is not empty, its first value is due. */
static gmem_status gmem__json_value(gmem__json_parser *parser, int *due) {
    gmem__json_skip_space(parser);
    char c = gmem__json_peek(parser);
    *due = 0;
    if (c == '"') return gmem__json_string(parser);
    if (c == '-' || (c >= '0' && c <= '9')) return gmem__json_number(parser);
    if (c != '[' && c != '{') return gmem__json_word(parser);
    GMEM__TRY(gmem__json_open(parser, c == '{' ? '}' : ']'));
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) == parser->closer[parser->depth - 1]) return gmem__json_close(parser);
    *due = 1;
    return GMEM_OK;
}

/* One run over the text: parser->at ends behind the value. */
static gmem_status gmem__json_run(gmem__json_parser *parser) {
    int due = 1;
    parser->at = parser->count = 0;
    parser->depth = 0;
    for (;;) {
        if (due) {
            GMEM__TRY(gmem__json_key(parser));
            GMEM__TRY(gmem__json_value(parser, &due));
            continue;
        }
        if (parser->depth == 0) return GMEM_OK;
        gmem__json_skip_space(parser);
        char c = gmem__json_peek(parser);
        if (c == ',') {
            parser->at++;
            due = 1;
        } else if (c == parser->closer[parser->depth - 1]) {
            GMEM__TRY(gmem__json_close(parser));
        } else {
            return gmem__json_fail(parser, parser->at, "',' or the container's end is missing");
        }
    }
}

static gmem_status gmem__json_runs(gmem__json_parser *parser, int64_t *end) {
    gmem__json *json = parser->json;
    GMEM__TRY(gmem__json_run(parser));
    if (end) {
        *end = parser->at;
    } else {
        gmem__json_skip_space(parser);
        if (parser->at != json->bytes) return gmem__json_fail(parser, parser->at, "more follows the value");
    }
    json->count = parser->count;
    json->nodes = (gmem__json_node *)gmem__alloc_raw(json->context, json->count, sizeof *json->nodes);
    if (!json->nodes) return gmem__fail_at(parser->error, GMEM_E_MEMORY, parser->path, -1, "no memory for the JSON");
    return gmem__json_run(parser);
}

GMEM__FN gmem_status gmem__json_parse(const gmem_context *context, const char *text, int64_t bytes, const char *path,
                                      int64_t offset, gmem__json *out, int64_t *end, gmem_error *error) {
    gmem__json json;
    gmem__json_parser parser;
    memset(&json, 0, sizeof json);
    memset(&parser, 0, sizeof parser);
    if (bytes > GMEM__JSON_MAX_BYTES)
        return gmem__fail_at(error, GMEM_E_LIMIT, path, offset, "%lld bytes of JSON", (long long)bytes);
    json.context = context;
    json.bytes = bytes;
    json.offset = offset;
    json.text = (char *)gmem__alloc_raw(context, bytes, 1);
    if (!json.text) return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory for the JSON");
    memcpy(json.text, text, (size_t)bytes);
    parser.json = &json;
    parser.path = path;
    parser.error = error;
    gmem_status status = gmem__json_runs(&parser, end);
    if (status != GMEM_OK) {
        gmem__json_free(&json);
        return status;
    }
    *out = json;
    return GMEM_OK;
}

GMEM__FN void gmem__json_free(gmem__json *json) {
    gmem__free(json->context, json->text, json->bytes, 1);
    gmem__free(json->context, json->nodes, json->count, sizeof *json->nodes);
    json->text = NULL;
    json->nodes = NULL;
}

/* access ---------------------------------------------------------------------------------------------------------- */

GMEM__FN int64_t gmem__json_get(const gmem__json *json, int64_t node, const char *key) {
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_OBJECT) return -1;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[i + 1].next) {
        if (strcmp(gmem__json_text(json, i), key) == 0) return i + 1;
    }
    return -1;
}

GMEM__FN int gmem__json_int(const gmem__json *json, int64_t node, int64_t *out) {
    int64_t value = 0;
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_NUMBER) return 0;
    for (uint32_t i = 0; i < json->nodes[node].length; i++) {
        char c = gmem__json_text(json, node)[i];
        if (c < '0' || c > '9' || !gmem__mul(value, 10, &value) || !gmem__add(value, c - '0', &value)) return 0;
    }
    *out = value;
    return 1;
}

GMEM__FN int gmem__json_double(const gmem__json *json, int64_t node, double *out) {
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_NUMBER) return 0;
    return gmem__parse_double(gmem__json_text(json, node), json->nodes[node].length, out);
}

#undef GMEM__JSON_MAX_BYTES
/* ---- src/safetensors.c ---- */
/* The safetensors parser: 8 bytes of length, a JSON header, then the tensors' bytes, side by side without gaps. */

#include <stdio.h>

#define GMEM__ST_MAX_HEADER 100000000
#define GMEM__ST_PREFIX     8

typedef struct gmem__st_parser {
    gmem_file *file;
    gmem_error *error;
    gmem__json json; /* the header, a private copy */
    int64_t data;    /* offset of the tensors' bytes in the file */
    int64_t bytes;   /* of the tensors in all */
    int64_t tensors; /* entries in the header */
} gmem__st_parser;

/* Where a tensor lies, counted from parser->data. */
typedef struct gmem__st_range {
    int64_t begin, end;
    int64_t node; /* of data_offsets */
} gmem__st_range;

/* A refusal at a JSON node of the header; `what` is about the tensor or key `name`. */
static gmem_status gmem__st_fail(gmem__st_parser *parser, gmem_status code, int64_t node, const char *name,
                                 const char *what) {
    gmem__quoted quoted;
    return gmem__fail_at(parser->error, code, parser->file->path, gmem__json_offset(&parser->json, node), "%s: %s",
                         gmem__quote(&quoted, name), what);
}

/* fields of an entry ---------------------------------------------------------------------------------------------- */

static gmem_status gmem__st_type(gmem__st_parser *parser, const char *name, int64_t node, gmem_type *out) {
    gmem__quoted quoted;
    if (gmem__json_kind_of(&parser->json, node) != GMEM__JSON_STRING)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "dtype is no string");
    const char *text = gmem__json_text(&parser->json, node);
    for (int i = 0; i < GMEM_TYPE_COUNT; i++) {
        if (strcmp(text, gmem_type_name((gmem_type)i)) == 0) {
            *out = (gmem_type)i;
            return GMEM_OK;
        }
    }
    return gmem__st_fail(parser, GMEM_E_ST_TYPE, node, name, gmem__quote(&quoted, text));
}

/* Up to `capacity` plain non-negative integers. */
static gmem_status gmem__st_integers(gmem__st_parser *parser, const char *name, int64_t node, int64_t *out,
                                     int capacity, int *count) {
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, node) != GMEM__JSON_ARRAY)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "shape and data_offsets must be arrays");
    *count = 0;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[i].next) {
        if (*count == capacity) return gmem__st_fail(parser, GMEM_E_LIMIT, i, name, "more dimensions than are read");
        if (!gmem__json_int(json, i, out + *count))
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, i, name, "not a plain non-negative integer");
        ++*count;
    }
    return GMEM_OK;
}

static gmem_status gmem__st_range_of(gmem__st_parser *parser, const char *name, int64_t node, gmem__st_range *out) {
    int64_t offsets[3];
    int count;
    GMEM__TRY(gmem__st_integers(parser, name, node, offsets, 3, &count));
    if (count != 2) return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "data_offsets must hold two integers");
    if (offsets[0] > offsets[1])
        return gmem__st_fail(parser, GMEM_E_ST_OFFSETS, node, name, "data_offsets end before they begin");
    if (offsets[1] > parser->bytes)
        return gmem__fail_at(parser->error, GMEM_E_TRUNCATED, parser->file->path, parser->file->bytes.size,
                             "the file ends too early: the tensors need %lld bytes, %lld are there",
                             (long long)offsets[1], (long long)parser->bytes);
    out->begin = offsets[0];
    out->end = offsets[1];
    out->node = node;
    return GMEM_OK;
}

/* The range must be exactly what the shape needs. */
static gmem_status gmem__st_check_size(gmem__st_parser *parser, const gmem_tensor *tensor,
                                       const gmem__st_range *range) {
    gmem__quoted quoted, shape;
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type);
    int empty = 0; /* the other dimensions of an empty tensor must make sense all the same */
    for (int i = 0; i < tensor->rank; i++) {
        empty |= tensor->shape[i] == 0;
        if (!gmem__mul(bytes, gmem__max(tensor->shape[i], 1), &bytes))
            return gmem__st_fail(parser, GMEM_E_OVERFLOW, range->node, tensor->name, "its size overflows");
    }
    if (empty) bytes = 0;
    if (bytes == range->end - range->begin) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_ST_SIZE, parser->file->path,
                         gmem__json_offset(&parser->json, range->node), "%s: %s of %s need %lld bytes, found %lld",
                         gmem__quote(&quoted, tensor->name), gmem__shape_text(&shape, tensor->shape, tensor->rank),
                         gmem_type_name(tensor->type), (long long)bytes, (long long)(range->end - range->begin));
}

/* entries --------------------------------------------------------------------------------------------------------- */

/* The nodes of the three fields, all there and nothing beside them. */
static gmem_status gmem__st_fields(gmem__st_parser *parser, const char *name, int64_t entry, int64_t *fields) {
    static const char *const names[3] = {"dtype", "shape", "data_offsets"};
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, entry) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, entry, name, "not an object");
    for (int i = 0; i < 3; i++) {
        fields[i] = gmem__json_get(json, entry, names[i]);
        if (fields[i] < 0)
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, entry, name, "dtype, shape or data_offsets is missing");
    }
    for (int64_t i = entry + 1; i < json->nodes[entry].next; i = json->nodes[i + 1].next) {
        if (i + 1 != fields[0] && i + 1 != fields[1] && i + 1 != fields[2])
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, i, name, "an unknown field");
    }
    return GMEM_OK;
}

static gmem_status gmem__st_tensor(gmem__st_parser *parser, int64_t key, gmem__st_range *range) {
    const char *name = gmem__json_text(&parser->json, key);
    gmem_type type = GMEM_F32;
    int64_t fields[3], shape[GMEM_MAX_RANK];
    int rank = 0;
    GMEM__TRY(gmem__st_fields(parser, name, key + 1, fields));
    GMEM__TRY(gmem__st_type(parser, name, fields[0], &type));
    GMEM__TRY(gmem__st_integers(parser, name, fields[1], shape, GMEM_MAX_RANK, &rank));
    GMEM__TRY(gmem__st_range_of(parser, name, fields[2], range));
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.tensor = gmem_tensor_make(name, type, rank, shape, parser->file->bytes.data + parser->data + range->begin);
    GMEM__TRY(gmem__st_check_size(parser, &entry.tensor, range));
    entry.kind = GMEM__ENTRY_TENSOR;
    entry.key = gmem__file_text(parser->file, name, (int64_t)strlen(name));
    if (!entry.key) return gmem__file_no_memory(parser->file, parser->error);
    return gmem__file_add(parser->file, &entry, parser->error);
}

static gmem_status gmem__st_metadata(gmem__st_parser *parser, int64_t object) {
    const gmem__json *json = &parser->json;
    gmem_file *file = parser->file;
    if (gmem__json_kind_of(json, object) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_ST_METADATA, object, "__metadata__", "not an object");
    for (int64_t i = object + 1; i < json->nodes[object].next; i = json->nodes[i + 1].next) {
        if (gmem__json_kind_of(json, i + 1) != GMEM__JSON_STRING)
            return gmem__st_fail(parser, GMEM_E_ST_METADATA, i + 1, gmem__json_text(json, i), "metadata must be text");
        const char *key = gmem__file_text(file, gmem__json_text(json, i), json->nodes[i].length);
        const char *value = gmem__file_text(file, gmem__json_text(json, i + 1), json->nodes[i + 1].length);
        if (!key || !value) return gmem__file_no_memory(file, parser->error);
        GMEM__TRY(gmem__file_add_metadata(file, key, value, parser->error));
    }
    return GMEM_OK;
}

static int gmem__st_compare_ranges(const void *user, int32_t a, int32_t b) {
    const gmem__st_range *x = (const gmem__st_range *)user + a, *y = (const gmem__st_range *)user + b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Side by side from 0 to the end: no gap to hide bytes in, no overlap. */
static gmem_status gmem__st_check_ranges(gmem__st_parser *parser, const gmem__st_range *ranges, int32_t *order) {
    int64_t at = 0;
    gmem__sort(order, parser->tensors, gmem__st_compare_ranges, ranges);
    for (int64_t i = 0; i < parser->tensors; i++) {
        const gmem__st_range *range = ranges + order[i];
        if (range->begin != at)
            return gmem__fail_at(
                parser->error, GMEM_E_ST_OFFSETS, parser->file->path, gmem__json_offset(&parser->json, range->node),
                "data_offsets begin at %lld where %lld bytes are taken", (long long)range->begin, (long long)at);
        at = range->end;
    }
    if (at == parser->bytes) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_ST_OFFSETS, parser->file->path, parser->data + at,
                         "%lld bytes belong to no tensor", (long long)(parser->bytes - at));
}

static int gmem__st_is_metadata(const gmem__json *json, int64_t key) {
    return strcmp(gmem__json_text(json, key), "__metadata__") == 0;
}

static gmem_status gmem__st_entries(gmem__st_parser *parser, gmem__st_range *ranges) {
    const gmem__json *json = &parser->json;
    int64_t tensors = 0;
    for (int64_t i = 1; i < json->count; i = json->nodes[i + 1].next) {
        if (gmem__st_is_metadata(json, i)) {
            GMEM__TRY(gmem__st_metadata(parser, i + 1));
        } else {
            GMEM__TRY(gmem__st_tensor(parser, i, ranges + tensors));
            tensors++;
        }
    }
    return GMEM_OK;
}

static gmem_status gmem__st_header(gmem__st_parser *parser) {
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, 0) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_JSON, 0, "JSON", "not an object");
    for (int64_t i = 1; i < json->count; i = json->nodes[i + 1].next)
        parser->tensors += !gmem__st_is_metadata(json, i);
    int64_t held = json->bytes + json->count * (int64_t)sizeof *json->nodes +
                   parser->tensors * (int64_t)(sizeof(gmem__st_range) + sizeof(int32_t));
    if (!gmem__file_may_hold(parser->file, held)) return gmem__file_no_memory(parser->file, parser->error);
    const gmem_context *context = parser->file->context;
    gmem__st_range *ranges = (gmem__st_range *)gmem__alloc(context, parser->tensors, sizeof *ranges);
    int32_t *order = (int32_t *)gmem__alloc(context, parser->tensors, sizeof *order);
    gmem_status status = GMEM_E_MEMORY;
    if (ranges && order) {
        status = gmem__st_entries(parser, ranges);
        if (status == GMEM_OK) status = gmem__st_check_ranges(parser, ranges, order);
    } else {
        gmem__fail_at(parser->error, status, parser->file->path, -1, "no memory for the header");
    }
    gmem__free(context, ranges, parser->tensors, sizeof *ranges);
    gmem__free(context, order, parser->tensors, sizeof *order);
    parser->file->held -= held;
    return status;
}

/* the network's configuration ------------------------------------------------------------------------------------- */

/* A leaf of the metadata `config`, so that gmem_file_number(file, "config.num_heads") finds it in converted files as
 * it does in the checkpoint. `key` is its dotted name. */
static gmem_status gmem__st_config_leaf(gmem_file *file, const gmem__json *json, int64_t node, const char *key,
                                        gmem_error *error) {
    gmem__entry entry;
    gmem__json_kind kind = gmem__json_kind_of(json, node);
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_NUMBER;
    if (kind == GMEM__JSON_STRING) {
        entry.kind = GMEM__ENTRY_STRING;
        entry.string = gmem__file_text(file, gmem__json_text(json, node), json->nodes[node].length);
        if (!entry.string) return gmem__file_no_memory(file, error);
    } else if (kind == GMEM__JSON_TRUE || kind == GMEM__JSON_FALSE) {
        entry.number = kind == GMEM__JSON_TRUE;
    } else if (!gmem__json_double(json, node, &entry.number)) {
        return GMEM_OK; /* null, and numbers beyond double */
    }
    entry.key = gmem__file_text(file, key, (int64_t)strlen(key));
    if (!entry.key) return gmem__file_no_memory(file, error);
    return gmem__file_add(file, &entry, error);
}

typedef struct gmem__st_path {
    char text[1024];
    size_t used;
} gmem__st_path;

/* Appends ".part"; 0 where it does not fit. */
static int gmem__st_path_add(gmem__st_path *path, const char *part) {
    size_t length = strlen(part);
    if (length + 2 > sizeof path->text - path->used) return 0;
    path->text[path->used++] = '.';
    memcpy(path->text + path->used, part, length + 1);
    path->used += length;
    return 1;
}

/* Recursion ends with the depth that the JSON parser allows. */
static gmem_status gmem__st_config_tree(gmem_file *file, const gmem__json *json, int64_t node, gmem__st_path *path,
                                        gmem_error *error) {
    gmem__json_kind kind = gmem__json_kind_of(json, node);
    if (kind != GMEM__JSON_OBJECT && kind != GMEM__JSON_ARRAY)
        return gmem__st_config_leaf(file, json, node, path->text, error);
    size_t used = path->used;
    int64_t index = 0, value;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[value].next) {
        char digits[24];
        snprintf(digits, sizeof digits, "%lld", (long long)index++);
        value = kind == GMEM__JSON_OBJECT ? i + 1 : i;
        if (gmem__st_path_add(path, kind == GMEM__JSON_OBJECT ? gmem__json_text(json, i) : digits))
            GMEM__TRY(gmem__st_config_tree(file, json, value, path, error));
        path->used = used;
        path->text[used] = 0;
    }
    return GMEM_OK;
}

/* Metadata is free text: a `config` that holds no JSON object is none of ours. */
static gmem_status gmem__st_config(gmem_file *file, gmem_error *error) {
    const char *text = gmem_file_metadata(file, "config");
    gmem__st_path path = {"config", 6};
    gmem__json json;
    if (!text || text[0] != '{') return GMEM_OK;
    int64_t bytes = (int64_t)strlen(text), held = GMEM__JSON_MEMORY * bytes;
    if (!gmem__file_may_hold(file, held)) return gmem__file_no_memory(file, error);
    gmem_status status = gmem__json_parse(file->context, text, bytes, file->path, -1, &json, NULL, NULL);
    if (status == GMEM_OK) {
        status = gmem__st_config_tree(file, &json, 0, &path, error);
        gmem__json_free(&json);
    } else if (status == GMEM_E_MEMORY) {
        gmem__file_no_memory(file, error);
    } else {
        status = GMEM_OK;
    }
    file->held -= held;
    return status;
}

/* the file -------------------------------------------------------------------------------------------------------- */

/* The header's length, checked against the file. */
static gmem_status gmem__st_length(gmem__st_parser *parser) {
    const gmem__bytes *bytes = &parser->file->bytes;
    const char *path = parser->file->path;
    uint64_t length = 0;
    for (int i = GMEM__ST_PREFIX - 1; i >= 0 && bytes->size >= GMEM__ST_PREFIX; i--)
        length = length << 8 | bytes->data[i];
    if (bytes->size >= GMEM__ST_PREFIX && (length < 2 || length > GMEM__ST_MAX_HEADER))
        return gmem__fail_at(parser->error, GMEM_E_ST_HEADER, path, 0,
                             "the header's length is %llu bytes, expected 2 to %d", (unsigned long long)length,
                             GMEM__ST_MAX_HEADER);
    if (bytes->size < GMEM__ST_PREFIX || (int64_t)length > bytes->size - GMEM__ST_PREFIX)
        return gmem__fail_at(parser->error, GMEM_E_TRUNCATED, path, bytes->size,
                             "the file ends too early: inside of its header");
    parser->data = GMEM__ST_PREFIX + (int64_t)length;
    parser->bytes = bytes->size - parser->data;
    return GMEM_OK;
}

static gmem_status gmem__st_check_trailing(gmem__st_parser *parser, int64_t end) {
    for (int64_t i = GMEM__ST_PREFIX + end; i < parser->data; i++) {
        if (parser->file->bytes.data[i] != ' ')
            return gmem__fail_at(parser->error, GMEM_E_ST_TRAILING, parser->file->path, i,
                                 "only spaces may follow the header's JSON");
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__parse_safetensors(gmem_file *file, gmem_error *error) {
    gmem__st_parser parser;
    int64_t end = 0;
    memset(&parser, 0, sizeof parser);
    parser.file = file;
    parser.error = error;
    GMEM__TRY(gmem__st_length(&parser));
    const char *text = (const char *)file->bytes.data + GMEM__ST_PREFIX;
    if (text[0] != '{')
        return gmem__fail_at(error, GMEM_E_JSON, file->path, GMEM__ST_PREFIX, "JSON: the header begins with no '{'");
    GMEM__TRY(gmem__json_parse(file->context, text, parser.data - GMEM__ST_PREFIX, file->path, GMEM__ST_PREFIX,
                               &parser.json, &end, error));
    gmem_status status = gmem__st_check_trailing(&parser, end);
    if (status == GMEM_OK) status = gmem__st_header(&parser);
    gmem__json_free(&parser.json);
    return status == GMEM_OK ? gmem__st_config(file, error) : status;
}

#undef GMEM__ST_MAX_HEADER
#undef GMEM__ST_PREFIX
/* ---- src/names.c ---- */
/* A hash table from names to numbers: open addressing, FNV-1a, names stay where they are. */
/* ---- src/names.h ---- */
/* A table from names to numbers, for the readers of torch files. */
#ifndef GMEM__NAMES_H
#define GMEM__NAMES_H


typedef struct gmem__name_slot {
    const unsigned char *text; /* (bytes) not owned, not terminated; NULL where free */
    int32_t bytes, index;
} gmem__name_slot;

/* Zero-initialised but for the context. */
typedef struct gmem__names {
    const gmem_context *context;
    gmem__name_slot *slots; /* (size) open addressing; at most half are taken */
    int64_t size, count;
} gmem__names;

/* Room for `count` names: 1, or 0 where memory lacks. */
GMEM__FN int gmem__names_reserve(gmem__names *names, int64_t count);
/* Adds a name that is not there; the room must be reserved. */
GMEM__FN void gmem__names_add(gmem__names *names, const unsigned char *text, int64_t bytes, int32_t index);
/* The number of a name, or -1. */
GMEM__FN int32_t gmem__names_find(const gmem__names *names, const unsigned char *text, int64_t bytes);
GMEM__FN void gmem__names_free(gmem__names *names);

#endif /* GMEM__NAMES_H */

/* The slot that holds the name, or the free one where it belongs. The table's own address begins the hash, so that a
 * file's author cannot choose names that all meet in one place. */
static int64_t gmem__names_slot(const gmem__names *names, const unsigned char *text, int64_t bytes) {
    uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)(uintptr_t)names->slots;
    for (int64_t i = 0; i < bytes; i++)
        hash = (hash ^ text[i]) * 0x100000001b3u;
    const int64_t mask = names->size - 1;
    for (int64_t slot = (int64_t)(hash ^ hash >> 32) & mask;; slot = (slot + 1) & mask) {
        const gmem__name_slot *taken = &names->slots[slot];
        if (!taken->text) return slot;
        if (taken->bytes == bytes && memcmp(taken->text, text, (size_t)bytes) == 0) return slot;
    }
}

GMEM__FN int gmem__names_reserve(gmem__names *names, int64_t count) {
    gmem__names larger = {names->context, NULL, 16, 0};
    if (count > INT32_MAX / 4) return 0;
    while (larger.size < 2 * count)
        larger.size *= 2;
    if (larger.size <= names->size) return 1;
    larger.slots = (gmem__name_slot *)gmem__alloc(names->context, larger.size, sizeof *larger.slots);
    if (!larger.slots) return 0;
    for (int64_t i = 0; i < names->size; i++) {
        const gmem__name_slot *slot = &names->slots[i];
        if (slot->text) gmem__names_add(&larger, slot->text, slot->bytes, slot->index);
    }
    gmem__names_free(names);
    *names = larger;
    return 1;
}

GMEM__FN void gmem__names_add(gmem__names *names, const unsigned char *text, int64_t bytes, int32_t index) {
    gmem__name_slot *slot = &names->slots[gmem__names_slot(names, text, bytes)];
    slot->text = text;
    slot->bytes = (int32_t)bytes;
    slot->index = index;
    names->count++;
}

GMEM__FN int32_t gmem__names_find(const gmem__names *names, const unsigned char *text, int64_t bytes) {
    if (names->size == 0 || bytes > INT32_MAX) return -1;
    const gmem__name_slot *slot = &names->slots[gmem__names_slot(names, text, bytes)];
    return slot->text ? slot->index : -1;
}

GMEM__FN void gmem__names_free(gmem__names *names) {
    gmem__free(names->context, names->slots, names->size, sizeof *names->slots);
    names->slots = NULL;
    names->size = names->count = 0;
}
/* ---- src/pickle.c ---- */
/* A pickle machine that builds data and never calls anything: protocols 2 to 4, the opcodes that torch.save emits.
 * Opcodes as in CPython's Lib/pickletools.py; what torch puts into its pickles as in torch/serialization.py and
 * torch/_utils.py. Every opcode costs a time bounded by its own bytes or by the stack items it consumes, so the work is
 * linear in the input; memory is bounded by a budget. There is no recursion. */
/* ---- src/pickle.h ---- */
/* What a pickle of torch.save says, as inert data. Nothing is imported or called: a global that is not in the machine's
 * short list becomes a value that only carries its name. A value is a 32-bit handle: a node's index, or a small integer
 * itself. Strings stay in the file; containers are linked cells, shared where the pickle shares them. */
#ifndef GMEM__PICKLE_H
#define GMEM__PICKLE_H


typedef uint32_t gmem__handle;
#define GMEM__HANDLE_INTEGER 0x80000000u /* the bit that marks an integer of 31 bits */

typedef enum gmem__kind {
    GMEM__KIND_NONE,
    GMEM__KIND_FALSE,
    GMEM__KIND_TRUE,
    GMEM__KIND_TUPLE,
    GMEM__KIND_LIST,
    GMEM__KIND_SET,
    GMEM__KIND_DICT,
    GMEM__KIND_ORDERED_DICT,
    GMEM__KIND_INTEGER,
    GMEM__KIND_LONG, /* an integer beyond int64: text is its little-endian two's complement */
    GMEM__KIND_FLOAT,
    GMEM__KIND_TEXT, /* UTF-8 */
    GMEM__KIND_BYTES,
    GMEM__KIND_FUNCTION,      /* index: what REDUCE does with it */
    GMEM__KIND_STORAGE_CLASS, /* index: a gmem_type */
    GMEM__KIND_DTYPE,         /* index: gmem__pickle_dtype_name */
    GMEM__KIND_DEVICE,        /* a tuple: type and maybe number */
    GMEM__KIND_STORAGE,       /* index into storages; `last` is the legacy view's tuple, or None */
    GMEM__KIND_TENSOR,        /* the tuple of arguments of its _rebuild function */
    GMEM__KIND_INERT          /* index into foreign */
} gmem__kind;

typedef struct gmem__node {
    uint8_t kind;    /* gmem__kind */
    uint8_t on_path; /* while it is being flattened */
    uint32_t at;     /* of its opcode in the pickle */
    union {
        int64_t integer;
        double number;
        struct {
            uint32_t at, bytes; /* in the pickle */
        } text;
        struct {
            uint32_t first, last; /* cells, 0 for none; a dictionary's are key, value, key, value */
        } list;
        struct {
            uint32_t index, view;
        } ref;
    } as;
} gmem__node;

typedef struct gmem__cell {
    gmem__handle value;
    uint32_t next; /* 0 at the end */
} gmem__cell;

/* A storage that the pickle names; all uses of one key agree. */
typedef struct gmem__storage {
    const unsigned char *key;  /* (key_bytes) in the file */
    const unsigned char *data; /* filled by the container's reader */
    int64_t numel;
    uint32_t key_bytes, at;
    gmem_type type;
} gmem__storage;

/* A growing array. */
typedef struct gmem__pool {
    void *items;
    uint32_t count, capacity;
    size_t bytes; /* of an item */
} gmem__pool;

typedef struct gmem__pickle {
    gmem_file *file;
    gmem_error *error;
    const unsigned char *bytes; /* (size) of the pickle and what follows */
    int64_t start;              /* file offset of bytes[0] */
    uint32_t size, next, at;    /* next to be read; opcode being executed */
    int legacy, protocol;

    gmem__pool nodes, cells, stack, marks, memo;
    gmem__pool storages, foreign; /* gmem__storage; const char * in the file's memory */
    gmem__names storage_names, foreign_names;
    int64_t held; /* bytes counted against the file's limit */
    gmem__handle root;
} gmem__pickle;

/* Runs the pickle at file offset `start`, which ends before `end`; `next` is then behind its STOP. `legacy` says which
 * persistent ids are meant. Errors: E_PICKLE_*, E_TRUNCATED, E_LIMIT, E_OVERFLOW,
 * E_STORAGE, E_TENSOR, E_NAME, E_MEMORY. On failure nothing is held. */
GMEM__FN gmem_status gmem__pickle_run(gmem_file *file, int64_t start, int64_t end, int legacy, gmem__pickle *out,
                                      gmem_error *error);
GMEM__FN void gmem__pickle_free(gmem__pickle *pickle);

GMEM__FN gmem__node gmem__pickle_node(const gmem__pickle *pickle, gmem__handle value);
GMEM__INLINE const gmem__cell *gmem__pickle_cell(const gmem__pickle *pickle, uint32_t cell) {
    return (const gmem__cell *)pickle->cells.items + cell;
}
GMEM__INLINE gmem__storage *gmem__pickle_storage(const gmem__pickle *pickle, int64_t index) {
    return (gmem__storage *)pickle->storages.items + index;
}
GMEM__FN const char *gmem__pickle_foreign(const gmem__pickle *pickle, const gmem__node *inert);
GMEM__FN const char *gmem__pickle_dtype_name(const gmem__node *dtype); /* "float32" */
/* Of INTEGER, LONG and FLOAT. */
GMEM__FN double gmem__pickle_number(const gmem__pickle *pickle, const gmem__node *number);
GMEM__FN int gmem__pickle_text_is(const gmem__pickle *pickle, gmem__handle value, const char *text);
/* The value of a dictionary's string key: 1 where found. */
GMEM__FN int gmem__pickle_lookup(const gmem__pickle *pickle, gmem__handle dict, const char *key, gmem__handle *out);
/* The index of the storage with that key, or -1. */
GMEM__FN int32_t gmem__pickle_find_storage(const gmem__pickle *pickle, const unsigned char *key, int64_t bytes);
/* The tensor, already checked against its storage; `data` is set where the storage's is. */
GMEM__FN void gmem__pickle_tensor(const gmem__pickle *pickle, const gmem__node *node, gmem_tensor *out);

#endif /* GMEM__PICKLE_H */

enum {
    GMEM__PICKLE_MAX_GLOBAL = 512,   /* bytes of a global's module or name */
    GMEM__PICKLE_MAX_FOREIGN = 1024, /* distinct globals that stay inert */
    GMEM__PICKLE_NAME_COST = 96      /* bytes of a name table per name, growing included */
};

/* Handles of the nodes that every pickle starts with. */
enum { GMEM__HANDLE_NONE, GMEM__HANDLE_FALSE, GMEM__HANDLE_TRUE, GMEM__HANDLE_EMPTY_TUPLE, GMEM__HANDLE_FIRST };

/* What REDUCE does with a known function. */
enum {
    GMEM__CALL_ORDERED_DICT,
    GMEM__CALL_SIZE,
    GMEM__CALL_DEVICE,
    GMEM__CALL_TENSOR,
    GMEM__CALL_TENSOR_V2,
    GMEM__CALL_PARAMETER
};

static gmem_status gmem__pickle_fail(const gmem__pickle *p, gmem_status code, const char *what) {
    return gmem__fail_at(p->error, code, p->file->path, p->start + p->at, "%s", what);
}

static uint64_t gmem__pickle_unsigned(const unsigned char *bytes, uint32_t count) {
    uint64_t value = 0;
    for (uint32_t i = count; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

/* memory ----------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__pickle_charge(gmem__pickle *p, int64_t bytes) {
    if (!gmem__file_may_hold(p->file, bytes)) {
        return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle builds more than the file's size allows");
    }
    p->held += bytes;
    return GMEM_OK;
}

static void gmem__pickle_release(gmem__pickle *p, int64_t bytes) {
    p->file->held -= bytes;
    p->held -= bytes;
}

static void gmem__pool_free(const gmem__pickle *p, gmem__pool *pool) {
    gmem__free(p->file->context, pool->items, pool->capacity, pool->bytes);
    pool->items = NULL;
    pool->count = pool->capacity = 0;
}

/* Room for one more item. The old array is still held while the new one is filled, and counts until then. */
static gmem_status gmem__pool_reserve(gmem__pickle *p, gmem__pool *pool) {
    if (pool->count < pool->capacity) return GMEM_OK;
    const uint32_t capacity = pool->capacity + pool->capacity / 2 + 64;
    const int64_t old_bytes = (int64_t)pool->capacity * (int64_t)pool->bytes;
    if (capacity >= GMEM__HANDLE_INTEGER) return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle builds too much");
    GMEM__TRY(gmem__pickle_charge(p, (int64_t)capacity * (int64_t)pool->bytes));
    void *items = gmem__alloc_raw(p->file->context, capacity, pool->bytes);
    if (!items) return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    if (pool->count) memcpy(items, pool->items, (size_t)pool->count * pool->bytes);
    gmem__free(p->file->context, pool->items, pool->capacity, pool->bytes);
    gmem__pickle_release(p, old_bytes);
    pool->items = items;
    pool->capacity = capacity;
    return GMEM_OK;
}

static gmem_status gmem__pool_push_u32(gmem__pickle *p, gmem__pool *pool, uint32_t value) {
    GMEM__TRY(gmem__pool_reserve(p, pool));
    ((uint32_t *)pool->items)[pool->count++] = value;
    return GMEM_OK;
}

/* values ----------------------------------------------------------------------------------------------------------- */

GMEM__FN gmem__node gmem__pickle_node(const gmem__pickle *p, gmem__handle value) {
    if (!(value & GMEM__HANDLE_INTEGER)) return ((const gmem__node *)p->nodes.items)[value];
    gmem__node node;
    memset(&node, 0, sizeof node);
    node.kind = GMEM__KIND_INTEGER;
    node.as.integer = value & ~GMEM__HANDLE_INTEGER;
    return node;
}

static gmem__kind gmem__pickle_kind(const gmem__pickle *p, gmem__handle value) {
    return (gmem__kind)gmem__pickle_node(p, value).kind;
}

static gmem__node gmem__pickle_make(const gmem__pickle *p, gmem__kind kind) {
    gmem__node node;
    memset(&node, 0, sizeof node);
    node.kind = (uint8_t)kind;
    node.at = p->at;
    return node;
}

static gmem_status gmem__pickle_add_node(gmem__pickle *p, gmem__node node, gmem__handle *out) {
    GMEM__TRY(gmem__pool_reserve(p, &p->nodes));
    *out = p->nodes.count;
    ((gmem__node *)p->nodes.items)[p->nodes.count++] = node;
    return GMEM_OK;
}

static gmem_status gmem__pickle_append(gmem__pickle *p, gmem__handle container, gmem__handle item) {
    GMEM__TRY(gmem__pool_reserve(p, &p->cells));
    gmem__cell *cells = (gmem__cell *)p->cells.items;
    gmem__node *node = (gmem__node *)p->nodes.items + container;
    const uint32_t cell = p->cells.count++;
    cells[cell].value = item;
    cells[cell].next = 0;
    if (node->as.list.last) {
        cells[node->as.list.last].next = cell;
    } else {
        node->as.list.first = cell;
    }
    node->as.list.last = cell;
    return GMEM_OK;
}

/* The first `limit` items of a tuple (a tensor is one of arguments); returns how many there are, counting one beyond
 * the limit at most, or -1 where it is no tuple. */
static int gmem__pickle_items(const gmem__pickle *p, const gmem__node *tuple, gmem__handle *items, int limit) {
    int count = 0;
    if (tuple->kind != GMEM__KIND_TUPLE) return -1;
    for (uint32_t cell = tuple->as.list.first; cell && count <= limit; cell = gmem__pickle_cell(p, cell)->next) {
        if (count < limit) items[count] = gmem__pickle_cell(p, cell)->value;
        count++;
    }
    return count;
}

GMEM__FN int gmem__pickle_text_is(const gmem__pickle *p, gmem__handle value, const char *text) {
    gmem__node node = gmem__pickle_node(p, value);
    return node.kind == GMEM__KIND_TEXT && node.as.text.bytes == strlen(text) &&
           memcmp(p->bytes + node.as.text.at, text, node.as.text.bytes) == 0;
}

GMEM__FN int gmem__pickle_lookup(const gmem__pickle *p, gmem__handle dict, const char *key, gmem__handle *out) {
    gmem__node node = gmem__pickle_node(p, dict);
    if (node.kind != GMEM__KIND_DICT && node.kind != GMEM__KIND_ORDERED_DICT) return 0;
    for (uint32_t cell = node.as.list.first; cell;) {
        const gmem__cell *name = gmem__pickle_cell(p, cell), *item = gmem__pickle_cell(p, name->next);
        *out = item->value;
        if (gmem__pickle_text_is(p, name->value, key)) return 1;
        cell = item->next;
    }
    return 0;
}

/* Two's complement of any length to the nearest double: its 64 leading bits, the last of which stands for all that
 * are cut off, are rounded once; the powers of two are exact. */
static double gmem__pickle_long(const unsigned char *bytes, uint32_t count) {
    const int negative = bytes[count - 1] >> 7;
    uint64_t leading = 0;
    uint32_t top = 0, carry = (uint32_t)negative, cut = 0;
    unsigned char magnitude[255];
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t byte = (negative ? (uint32_t)(unsigned char)~bytes[i] : bytes[i]) + carry;
        magnitude[i] = (unsigned char)byte;
        carry = byte >> 8;
        if (magnitude[i]) top = i;
    }
    const uint32_t low = top >= 7 ? top - 7 : 0;
    for (uint32_t i = 0; i < low; i++)
        cut |= magnitude[i];
    for (uint32_t i = top + 1; i-- > low;)
        leading = leading << 8 | magnitude[i];
    double value = (double)(leading | (cut != 0));
    for (uint32_t i = 0; i < low; i++)
        value *= 256.0;
    return negative ? -value : value;
}

GMEM__FN double gmem__pickle_number(const gmem__pickle *p, const gmem__node *node) {
    if (node->kind == GMEM__KIND_INTEGER) return (double)node->as.integer;
    if (node->kind == GMEM__KIND_FLOAT) return node->as.number;
    return gmem__pickle_long(p->bytes + node->as.text.at, node->as.text.bytes);
}

GMEM__FN const char *gmem__pickle_foreign(const gmem__pickle *p, const gmem__node *inert) {
    return ((const char *const *)p->foreign.items)[inert->as.ref.index];
}

/* stack ------------------------------------------------------------------------------------------------------------ */

/* Items above the last mark: those below belong to an unfinished container. */
static uint32_t gmem__pickle_available(const gmem__pickle *p) {
    const uint32_t *marks = (const uint32_t *)p->marks.items;
    return p->stack.count - (p->marks.count ? marks[p->marks.count - 1] : 0);
}

static gmem_status gmem__pickle_need(const gmem__pickle *p, uint32_t count) {
    if (gmem__pickle_available(p) >= count) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's stack holds too little");
}

static gmem__handle *gmem__pickle_top(const gmem__pickle *p, uint32_t depth) {
    return (gmem__handle *)p->stack.items + (p->stack.count - 1 - depth);
}

static gmem_status gmem__pickle_push(gmem__pickle *p, gmem__handle value) {
    return gmem__pool_push_u32(p, &p->stack, value);
}

static gmem_status gmem__pickle_push_node(gmem__pickle *p, gmem__node node) {
    gmem__handle value;
    GMEM__TRY(gmem__pickle_add_node(p, node, &value));
    return gmem__pickle_push(p, value);
}

/* Ends a marked group: how many items it has. */
static gmem_status gmem__pickle_pop_mark(gmem__pickle *p, uint32_t *count) {
    if (p->marks.count == 0) return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle lacks a mark");
    *count = gmem__pickle_available(p);
    p->marks.count--;
    return GMEM_OK;
}

/* opcodes ---------------------------------------------------------------------------------------------------------- */

/* One opcode: its fixed argument's bytes, and what its handler is told. */
typedef struct gmem__opcode {
    unsigned char code, protocol, argument;
    gmem_status (*run)(gmem__pickle *p, const struct gmem__opcode *op, const unsigned char *argument);
    uint32_t detail;
    uint32_t kind;
} gmem__opcode;

static gmem_status gmem__op_constant(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    return gmem__pickle_push(p, op->detail);
}

static gmem_status gmem__op_unsigned(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    return gmem__pickle_push(p, GMEM__HANDLE_INTEGER | (uint32_t)gmem__pickle_unsigned(argument, op->argument));
}

static gmem_status gmem__op_signed(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_INTEGER);
    node.as.integer = (int64_t)gmem__pickle_unsigned(argument, op->argument);
    if (node.as.integer <= INT32_MAX) return gmem__pickle_push(p, GMEM__HANDLE_INTEGER | (uint32_t)node.as.integer);
    node.as.integer -= (int64_t)1 << 32;
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__op_long(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t count = argument[0];
    (void)op;
    if (count > p->size - p->next) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside an integer");
    gmem__node node = gmem__pickle_make(p, count > 8 ? GMEM__KIND_LONG : GMEM__KIND_INTEGER);
    if (count > 8) {
        node.as.text.at = p->next;
        node.as.text.bytes = count;
    } else if (count > 0) {
        const unsigned char *bytes = p->bytes + p->next;
        const uint64_t sign = bytes[count - 1] & 0x80 && count < 8 ? ~(uint64_t)0 << (8 * count) : 0;
        const uint64_t bits = gmem__pickle_unsigned(bytes, count) | sign;
        memcpy(&node.as.integer, &bits, sizeof bits);
    }
    p->next += count;
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__op_float(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_FLOAT);
    uint64_t bits = 0;
    for (int i = 0; i < op->argument; i++)
        bits = bits << 8 | argument[i];
    memcpy(&node.as.number, &bits, sizeof bits);
    return gmem__pickle_push_node(p, node);
}

/* Text and bytes stay where they are in the file. */
static gmem_status gmem__op_text(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t bytes = (uint32_t)gmem__pickle_unsigned(argument, op->argument);
    gmem__node node = gmem__pickle_make(p, (gmem__kind)op->kind);
    if (bytes > p->size - p->next) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a string");
    if (op->kind == GMEM__KIND_TEXT && gmem__utf8_error((const char *)p->bytes + p->next, bytes) >= 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_UTF8, "a pickle string is not UTF-8");
    }
    node.as.text.at = p->next;
    node.as.text.bytes = bytes;
    p->next += bytes;
    return gmem__pickle_push_node(p, node);
}

/* Integers beyond 255 bytes and strings beyond 4 GiB: Python can write them, no checkpoint needs them. */
static gmem_status gmem__op_huge(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    return gmem__pickle_fail(p, GMEM_E_LIMIT, "an integer of more than 255 bytes or a string of more than 4 GiB");
}

static gmem_status gmem__op_mark(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    return gmem__pool_push_u32(p, &p->marks, p->stack.count);
}

static gmem_status gmem__op_empty(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    return gmem__pickle_push_node(p, gmem__pickle_make(p, (gmem__kind)op->kind));
}

/* The items of an opcode: since the mark where `detail` is 0, else that many. */
static gmem_status gmem__pickle_group(gmem__pickle *p, const gmem__opcode *op, uint32_t *count) {
    *count = op->detail;
    return op->detail ? gmem__pickle_need(p, op->detail) : gmem__pickle_pop_mark(p, count);
}

/* A tuple or frozenset of the topmost items. */
static gmem_status gmem__op_gather(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    uint32_t count;
    gmem__handle value;
    (void)argument;
    GMEM__TRY(gmem__pickle_group(p, op, &count));
    GMEM__TRY(gmem__pickle_add_node(p, gmem__pickle_make(p, (gmem__kind)op->kind), &value));
    for (uint32_t i = count; i-- > 0;)
        GMEM__TRY(gmem__pickle_append(p, value, *gmem__pickle_top(p, i)));
    p->stack.count -= count;
    return gmem__pickle_push(p, value);
}

static int gmem__pickle_takes(gmem__kind container, uint32_t wanted) {
    return container == (gmem__kind)wanted ||
           (container == GMEM__KIND_ORDERED_DICT && wanted == (uint32_t)GMEM__KIND_DICT);
}

/* Adds the topmost items to the list, set or dictionary below them; an inert value swallows them. */
static gmem_status gmem__op_fill(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    uint32_t count;
    (void)argument;
    GMEM__TRY(gmem__pickle_group(p, op, &count));
    GMEM__TRY(gmem__pickle_need(p, count + 1));
    const gmem__handle container = *gmem__pickle_top(p, count);
    const gmem__kind kind = gmem__pickle_kind(p, container);
    if (op->kind == GMEM__KIND_DICT && count % 2 != 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "a dictionary gets a key without a value");
    }
    if (kind != GMEM__KIND_INERT) {
        if (!gmem__pickle_takes(kind, op->kind)) {
            return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "items are added to what cannot hold them");
        }
        for (uint32_t i = count; i-- > 0;)
            GMEM__TRY(gmem__pickle_append(p, container, *gmem__pickle_top(p, i)));
    }
    p->stack.count -= count;
    return GMEM_OK;
}

/* Python numbers its memo 0, 1, 2 ... */
static gmem_status gmem__op_put(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    GMEM__TRY(gmem__pickle_need(p, 1));
    if (op->argument && gmem__pickle_unsigned(argument, op->argument) != p->memo.count) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's memo is not numbered in order");
    }
    return gmem__pool_push_u32(p, &p->memo, *gmem__pickle_top(p, 0));
}

static gmem_status gmem__op_get(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const uint32_t index = (uint32_t)gmem__pickle_unsigned(argument, op->argument);
    if (index >= p->memo.count) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle's memo has no such value");
    }
    return gmem__pickle_push(p, ((const uint32_t *)p->memo.items)[index]);
}

static gmem_status gmem__op_frame(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    if (gmem__pickle_unsigned(argument, op->argument) <= p->size - p->next) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a frame");
}

/* globals ---------------------------------------------------------------------------------------------------------- */

typedef struct gmem__global {
    const char *module, *name;
    gmem__kind kind;
    uint32_t index;
} gmem__global;

#define GMEM__TORCH_STORAGE(name, type) \
    { "torch", #name "Storage", GMEM__KIND_STORAGE_CLASS, GMEM_##type }
#define GMEM__TORCH_DTYPE(name) \
    { "torch", #name, GMEM__KIND_DTYPE, 0 }
static const gmem__global gmem__globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", GMEM__KIND_FUNCTION, GMEM__CALL_TENSOR_V2},
    {"torch._utils", "_rebuild_tensor", GMEM__KIND_FUNCTION, GMEM__CALL_TENSOR},
    {"torch._utils", "_rebuild_parameter", GMEM__KIND_FUNCTION, GMEM__CALL_PARAMETER},
    {"collections", "OrderedDict", GMEM__KIND_FUNCTION, GMEM__CALL_ORDERED_DICT},
    {"torch", "Size", GMEM__KIND_FUNCTION, GMEM__CALL_SIZE},
    {"torch", "device", GMEM__KIND_FUNCTION, GMEM__CALL_DEVICE},
    GMEM__TORCH_STORAGE(Double, F64),
    GMEM__TORCH_STORAGE(Float, F32),
    GMEM__TORCH_STORAGE(Half, F16),
    GMEM__TORCH_STORAGE(BFloat16, BF16),
    GMEM__TORCH_STORAGE(Long, I64),
    GMEM__TORCH_STORAGE(Int, I32),
    GMEM__TORCH_STORAGE(Short, I16),
    GMEM__TORCH_STORAGE(Char, I8),
    GMEM__TORCH_STORAGE(Byte, U8),
    GMEM__TORCH_STORAGE(Bool, BOOL),
    GMEM__TORCH_STORAGE(Untyped, U8),
    {"torch.storage", "UntypedStorage", GMEM__KIND_STORAGE_CLASS, GMEM_U8},
    GMEM__TORCH_DTYPE(float64),
    GMEM__TORCH_DTYPE(float32),
    GMEM__TORCH_DTYPE(float16),
    GMEM__TORCH_DTYPE(bfloat16),
    GMEM__TORCH_DTYPE(int64),
    GMEM__TORCH_DTYPE(int32),
    GMEM__TORCH_DTYPE(int16),
    GMEM__TORCH_DTYPE(int8),
    GMEM__TORCH_DTYPE(uint64),
    GMEM__TORCH_DTYPE(uint32),
    GMEM__TORCH_DTYPE(uint16),
    GMEM__TORCH_DTYPE(uint8),
    GMEM__TORCH_DTYPE(bool),
    GMEM__TORCH_DTYPE(complex32),
    GMEM__TORCH_DTYPE(complex64),
    GMEM__TORCH_DTYPE(complex128),
    GMEM__TORCH_DTYPE(float8_e4m3fn),
    GMEM__TORCH_DTYPE(float8_e5m2),
};
#undef GMEM__TORCH_STORAGE
#undef GMEM__TORCH_DTYPE

GMEM__FN const char *gmem__pickle_dtype_name(const gmem__node *dtype) {
    return gmem__globals[dtype->as.ref.index].name;
}

static int gmem__pickle_same(const unsigned char *text, uint32_t bytes, const char *name) {
    return strlen(name) == bytes && memcmp(text, name, bytes) == 0;
}

/* An inert value: "module.name", noted once in the file however often the pickle names it. */
static gmem_status gmem__pickle_intern_foreign(gmem__pickle *p, const char *name, int64_t bytes, uint32_t *index) {
    const int32_t found = gmem__names_find(&p->foreign_names, (const unsigned char *)name, bytes);
    if (found >= 0) {
        *index = (uint32_t)found;
        return GMEM_OK;
    }
    if (p->foreign.count >= GMEM__PICKLE_MAX_FOREIGN) {
        return gmem__pickle_fail(p, GMEM_E_LIMIT, "the pickle names too many globals");
    }
    GMEM__TRY(gmem__pickle_charge(p, GMEM__PICKLE_NAME_COST));
    GMEM__TRY(gmem__pool_reserve(p, &p->foreign));
    const char *copy = gmem__file_text(p->file, name, bytes);
    if (!copy) return gmem__file_no_memory(p->file, p->error);
    if (!gmem__names_reserve(&p->foreign_names, (int64_t)p->foreign.count + 1)) {
        return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    }
    GMEM__TRY(gmem__file_add_foreign(p->file, copy, p->error));
    gmem__names_add(&p->foreign_names, (const unsigned char *)copy, bytes, (int32_t)p->foreign.count);
    *index = p->foreign.count;
    ((const char **)p->foreign.items)[p->foreign.count++] = copy;
    return GMEM_OK;
}

static gmem_status gmem__pickle_check_global(const gmem__pickle *p, const unsigned char *text, uint32_t bytes) {
    if (bytes > GMEM__PICKLE_MAX_GLOBAL) return gmem__pickle_fail(p, GMEM_E_LIMIT, "a global has an overlong name");
    if (bytes == 0 || memchr(text, 0, bytes)) {
        return gmem__pickle_fail(p, GMEM_E_NAME, "a global has an empty name or a NUL in it");
    }
    if (gmem__utf8_error((const char *)text, bytes) >= 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_UTF8, "a global's name is not UTF-8");
    }
    return GMEM_OK;
}

static gmem_status gmem__pickle_push_global(gmem__pickle *p, const unsigned char *module, uint32_t module_bytes,
                                            const unsigned char *name, uint32_t name_bytes) {
    char full[2 * GMEM__PICKLE_MAX_GLOBAL + 1];
    GMEM__TRY(gmem__pickle_check_global(p, module, module_bytes));
    GMEM__TRY(gmem__pickle_check_global(p, name, name_bytes));
    for (uint32_t i = 0; i < sizeof gmem__globals / sizeof gmem__globals[0]; i++) {
        const gmem__global *known = &gmem__globals[i];
        if (!gmem__pickle_same(module, module_bytes, known->module)) continue;
        if (!gmem__pickle_same(name, name_bytes, known->name)) continue;
        gmem__node node = gmem__pickle_make(p, known->kind);
        node.as.ref.index = known->kind == GMEM__KIND_DTYPE ? i : known->index;
        return gmem__pickle_push_node(p, node);
    }
    memcpy(full, module, module_bytes);
    full[module_bytes] = '.';
    memcpy(full + module_bytes + 1, name, name_bytes);
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_INERT);
    GMEM__TRY(gmem__pickle_intern_foreign(p, full, (int64_t)module_bytes + 1 + name_bytes, &node.as.ref.index));
    return gmem__pickle_push_node(p, node);
}

static gmem_status gmem__pickle_read_line(gmem__pickle *p, const unsigned char **line, uint32_t *bytes) {
    *line = p->bytes + p->next;
    const unsigned char *end = (const unsigned char *)memchr(*line, '\n', p->size - p->next);
    if (!end) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside a global's name");
    *bytes = (uint32_t)(end - *line);
    p->next += *bytes + 1;
    return GMEM_OK;
}

static gmem_status gmem__op_global(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    const unsigned char *module, *name;
    uint32_t module_bytes = 0, name_bytes = 0;
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_read_line(p, &module, &module_bytes));
    GMEM__TRY(gmem__pickle_read_line(p, &name, &name_bytes));
    return gmem__pickle_push_global(p, module, module_bytes, name, name_bytes);
}

static gmem_status gmem__op_stack_global(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 2));
    const gmem__node module = gmem__pickle_node(p, *gmem__pickle_top(p, 1));
    const gmem__node name = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    if (module.kind != GMEM__KIND_TEXT || name.kind != GMEM__KIND_TEXT) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a global's name is no string");
    }
    p->stack.count -= 2;
    return gmem__pickle_push_global(p, p->bytes + module.as.text.at, module.as.text.bytes, p->bytes + name.as.text.at,
                                    name.as.text.bytes);
}

/* storages --------------------------------------------------------------------------------------------------------- */

GMEM__FN int32_t gmem__pickle_find_storage(const gmem__pickle *p, const unsigned char *key, int64_t bytes) {
    return gmem__names_find(&p->storage_names, key, bytes);
}

static gmem_status gmem__pickle_integer(const gmem__pickle *p, gmem__handle value, int64_t *out) {
    const gmem__node node = gmem__pickle_node(p, value);
    if (node.kind == GMEM__KIND_LONG) return gmem__pickle_fail(p, GMEM_E_OVERFLOW, "an integer overflows");
    if (node.kind != GMEM__KIND_INTEGER)
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "no integer where one must be");
    *out = node.as.integer;
    return GMEM_OK;
}

/* Adds the storage, or finds the one that an earlier tensor named: torch never gives one key two types or sizes. */
static gmem_status gmem__pickle_intern_storage(gmem__pickle *p, const gmem__storage *storage, uint32_t *index) {
    const int32_t found = gmem__pickle_find_storage(p, storage->key, storage->key_bytes);
    if (found >= 0) {
        const gmem__storage *known = gmem__pickle_storage(p, found);
        if (known->type != storage->type || known->numel != storage->numel) {
            return gmem__pickle_fail(p, GMEM_E_STORAGE, "one storage is given two types or sizes");
        }
        *index = (uint32_t)found;
        return GMEM_OK;
    }
    GMEM__TRY(gmem__pickle_charge(p, GMEM__PICKLE_NAME_COST));
    GMEM__TRY(gmem__pool_reserve(p, &p->storages));
    if (!gmem__names_reserve(&p->storage_names, (int64_t)p->storages.count + 1)) {
        return gmem__pickle_fail(p, GMEM_E_MEMORY, "out of memory");
    }
    gmem__names_add(&p->storage_names, storage->key, storage->key_bytes, (int32_t)p->storages.count);
    *index = p->storages.count;
    ((gmem__storage *)p->storages.items)[p->storages.count++] = *storage;
    return GMEM_OK;
}

/* (key of the view, first element, elements): what torch before 0.4 wrote for a storage inside another. */
static gmem_status gmem__pickle_view(const gmem__pickle *p, gmem__handle view, int64_t numel, int64_t *offset,
                                     int64_t *count) {
    gmem__handle items[3];
    int64_t end;
    *offset = 0;
    *count = numel;
    if (view == GMEM__HANDLE_NONE) return GMEM_OK;
    const gmem__node node = gmem__pickle_node(p, view);
    if (gmem__pickle_items(p, &node, items, 3) != 3) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a storage's view is no tuple of three");
    }
    GMEM__TRY(gmem__pickle_integer(p, items[1], offset));
    GMEM__TRY(gmem__pickle_integer(p, items[2], count));
    if (gmem__add(*offset, *count, &end) && end <= numel) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_STORAGE, "a storage's view leaves the storage");
}

/* ("storage", class, key, location, elements) and, in legacy files, a view. */
static gmem_status gmem__op_persistent(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    gmem__handle items[6];
    gmem__storage storage;
    int64_t bytes, view_offset, view_count;
    const int expected = p->legacy ? 6 : 5;
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 1));
    const gmem__node id = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    const int count = gmem__pickle_items(p, &id, items, 6);
    if (p->legacy && count == 4 && gmem__pickle_text_is(p, items[0], "module") &&
        gmem__pickle_kind(p, items[1]) == GMEM__KIND_INERT) { /* a module's class with its source */
        *gmem__pickle_top(p, 0) = items[1];
        return GMEM_OK;
    }
    if (count != expected || !gmem__pickle_text_is(p, items[0], "storage") ||
        gmem__pickle_kind(p, items[2]) != GMEM__KIND_TEXT || gmem__pickle_kind(p, items[3]) != GMEM__KIND_TEXT) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a persistent id that is no storage's");
    }
    const gmem__node type = gmem__pickle_node(p, items[1]), key = gmem__pickle_node(p, items[2]);
    if (type.kind == GMEM__KIND_INERT) { /* a class of elements that gmem does not know */
        *gmem__pickle_top(p, 0) = items[1];
        return GMEM_OK;
    }
    if (type.kind != GMEM__KIND_STORAGE_CLASS) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a storage's class is no storage class");
    }
    memset(&storage, 0, sizeof storage);
    storage.key = p->bytes + key.as.text.at;
    storage.key_bytes = key.as.text.bytes;
    storage.at = p->at;
    storage.type = (gmem_type)type.as.ref.index;
    GMEM__TRY(gmem__pickle_integer(p, items[4], &storage.numel));
    if (!gmem__mul(storage.numel, (int64_t)gmem_type_bytes(storage.type), &bytes)) {
        return gmem__pickle_fail(p, GMEM_E_STORAGE, "a storage's size is negative or overflows");
    }
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_STORAGE);
    node.as.ref.view = p->legacy ? items[5] : (gmem__handle)GMEM__HANDLE_NONE;
    GMEM__TRY(gmem__pickle_view(p, node.as.ref.view, storage.numel, &view_offset, &view_count));
    GMEM__TRY(gmem__pickle_intern_storage(p, &storage, &node.as.ref.index));
    p->stack.count--;
    return gmem__pickle_push_node(p, node);
}

/* tensors ---------------------------------------------------------------------------------------------------------- */

/* A tensor's arguments: storage, offset, size, stride. */
typedef struct gmem__view {
    gmem_tensor tensor;
    uint32_t storage;
    int64_t first; /* element of the storage */
} gmem__view;

/* The integers of a tuple; `inert` receives an inert value among them. */
static gmem_status gmem__pickle_integers(const gmem__pickle *p, gmem__handle tuple, int64_t *out, int *count,
                                         gmem__handle *inert) {
    gmem__handle items[GMEM_MAX_RANK];
    const gmem__node node = gmem__pickle_node(p, tuple);
    *count = gmem__pickle_items(p, &node, items, GMEM_MAX_RANK);
    if (*count < 0) return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a tensor's size is no tuple");
    if (*count > GMEM_MAX_RANK) return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor of more than 8 dimensions");
    for (int i = 0; i < *count; i++) {
        if (gmem__pickle_kind(p, items[i]) == GMEM__KIND_INERT) {
            *inert = items[i];
            out[i] = 0;
        } else {
            GMEM__TRY(gmem__pickle_integer(p, items[i], &out[i]));
        }
    }
    return GMEM_OK;
}

/* Every element must lie in the storage, and a stride of zero must not make more elements than it has. */
static gmem_status gmem__pickle_check_view(const gmem__pickle *p, const gmem__view *view, int64_t offset,
                                           int64_t numel) {
    const gmem_tensor *tensor = &view->tensor;
    int64_t count = 1, last = offset;
    int empty = 0, fits = offset >= 0 && offset <= numel;
    for (int i = 0; i < tensor->rank; i++) {
        empty |= tensor->shape[i] == 0;
        fits &= tensor->shape[i] >= 0 && tensor->stride[i] >= 0;
    }
    for (int i = 0; i < tensor->rank && fits && !empty; i++) {
        int64_t span = 0;
        fits = gmem__mul(count, tensor->shape[i], &count) &&
               gmem__mul(tensor->shape[i] - 1, tensor->stride[i], &span) && gmem__add(last, span, &last);
    }
    if (fits && (empty || (count <= numel && last < numel))) return GMEM_OK;
    return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor does not fit its storage");
}

/* Decodes and checks. Where an inert value stands for a part, `inert` receives it and nothing else counts. */
static gmem_status gmem__pickle_decode_tensor(const gmem__pickle *p, const gmem__node *arguments, gmem__view *out,
                                              gmem__handle *inert) {
    gmem__handle items[4];
    int64_t offset = 0, view_offset, view_count;
    int stride_count = 0;
    memset(out, 0, sizeof *out);
    *inert = GMEM__HANDLE_NONE;
    (void)gmem__pickle_items(p, arguments, items, 4); /* four at least, by gmem__call_arguments */
    for (int i = 0; i < 4; i++) {
        if (gmem__pickle_kind(p, items[i]) != GMEM__KIND_INERT) continue;
        *inert = items[i];
        return GMEM_OK;
    }
    const gmem__node storage_node = gmem__pickle_node(p, items[0]);
    if (storage_node.kind != GMEM__KIND_STORAGE) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a tensor's storage is no storage");
    }
    GMEM__TRY(gmem__pickle_integer(p, items[1], &offset));
    GMEM__TRY(gmem__pickle_integers(p, items[2], out->tensor.shape, &out->tensor.rank, inert));
    GMEM__TRY(gmem__pickle_integers(p, items[3], out->tensor.stride, &stride_count, inert));
    if (*inert != GMEM__HANDLE_NONE) return GMEM_OK;
    if (stride_count != out->tensor.rank) {
        return gmem__pickle_fail(p, GMEM_E_TENSOR, "a tensor has more or fewer strides than dimensions");
    }
    const gmem__storage *storage = gmem__pickle_storage(p, storage_node.as.ref.index);
    GMEM__TRY(gmem__pickle_view(p, storage_node.as.ref.view, storage->numel, &view_offset, &view_count));
    GMEM__TRY(gmem__pickle_check_view(p, out, offset, view_count));
    out->tensor.type = storage->type;
    out->storage = storage_node.as.ref.index;
    out->first = view_offset + offset;
    return GMEM_OK;
}

GMEM__FN void gmem__pickle_tensor(const gmem__pickle *p, const gmem__node *node, gmem_tensor *out) {
    gmem__view view;
    gmem__handle inert;
    gmem__node arguments = *node;
    arguments.kind = GMEM__KIND_TUPLE;
    (void)gmem__pickle_decode_tensor(p, &arguments, &view, &inert); /* it succeeded when the node was made */
    const gmem__storage *storage = gmem__pickle_storage(p, view.storage);
    *out = view.tensor;
    if (storage->data) out->data = storage->data + view.first * (int64_t)gmem_type_bytes(view.tensor.type);
}

/* calls that are data ---------------------------------------------------------------------------------------------- */

/* Replaces the function and its arguments on the stack by the result. */
static gmem_status gmem__pickle_return(gmem__pickle *p, gmem__handle result) {
    p->stack.count -= 2;
    return gmem__pickle_push(p, result);
}

static gmem_status gmem__pickle_return_node(gmem__pickle *p, gmem__node node) {
    gmem__handle result;
    GMEM__TRY(gmem__pickle_add_node(p, node, &result));
    return gmem__pickle_return(p, result);
}

static gmem_status gmem__call_tensor(gmem__pickle *p, const gmem__node *arguments) {
    gmem__view view;
    gmem__handle inert;
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_TENSOR);
    GMEM__TRY(gmem__pickle_decode_tensor(p, arguments, &view, &inert));
    if (inert != GMEM__HANDLE_NONE) return gmem__pickle_return(p, inert);
    node.as.list = arguments->as.list;
    return gmem__pickle_return_node(p, node);
}

static gmem_status gmem__call_device(gmem__pickle *p, const gmem__node *arguments, const gmem__handle *items,
                                     int count) {
    int64_t number = 0;
    gmem__node node = gmem__pickle_make(p, GMEM__KIND_DEVICE);
    const gmem__node type = gmem__pickle_node(p, items[0]);
    if (type.kind != GMEM__KIND_TEXT || type.as.text.bytes > 32) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a device's type is no short string");
    }
    if (count == 2) GMEM__TRY(gmem__pickle_integer(p, items[1], &number));
    node.as.list = arguments->as.list;
    return gmem__pickle_return_node(p, node);
}

/* How many arguments each function takes. */
static const struct { int least, most; } gmem__call_arguments[] = {{0, 0}, {1, 1}, {1, 2}, {4, 4}, {6, 7}, {3, 3}};

static gmem_status gmem__pickle_call(gmem__pickle *p, uint32_t function, const gmem__node *arguments) {
    gmem__handle items[7];
    const int count = gmem__pickle_items(p, arguments, items, 7);
    if (count < gmem__call_arguments[function].least || count > gmem__call_arguments[function].most) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a function is given the wrong number of arguments");
    }
    if (function == GMEM__CALL_ORDERED_DICT) {
        return gmem__pickle_return_node(p, gmem__pickle_make(p, GMEM__KIND_ORDERED_DICT));
    }
    if (function == GMEM__CALL_TENSOR || function == GMEM__CALL_TENSOR_V2) return gmem__call_tensor(p, arguments);
    if (function == GMEM__CALL_DEVICE) return gmem__call_device(p, arguments, items, count);
    /* what remains gives its argument back: a size is a tuple, a parameter is its tensor */
    const gmem__kind kind = gmem__pickle_kind(p, items[0]);
    const gmem__kind wanted = function == GMEM__CALL_SIZE ? GMEM__KIND_TUPLE : GMEM__KIND_TENSOR;
    if (kind == wanted || kind == GMEM__KIND_INERT) return gmem__pickle_return(p, items[0]);
    return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "a size is no tuple or a parameter no tensor");
}

static gmem_status gmem__op_reduce(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)op;
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, 2));
    const gmem__handle value = *gmem__pickle_top(p, 1);
    const gmem__node function = gmem__pickle_node(p, value);
    const gmem__node arguments = gmem__pickle_node(p, *gmem__pickle_top(p, 0));
    if (function.kind == GMEM__KIND_INERT) return gmem__pickle_return(p, value);
    if (function.kind == GMEM__KIND_FUNCTION) return gmem__pickle_call(p, function.as.ref.index, &arguments);
    return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "what is called is no function");
}

/* NEWOBJ, NEWOBJ_EX and BUILD: `detail` values are applied to an inert one below them, which swallows them. The state
 * that BUILD gives to an OrderedDict is its attributes (_metadata), not its items. */
static gmem_status gmem__op_swallow(gmem__pickle *p, const gmem__opcode *op, const unsigned char *argument) {
    (void)argument;
    GMEM__TRY(gmem__pickle_need(p, op->detail + 1));
    const gmem__kind kind = gmem__pickle_kind(p, *gmem__pickle_top(p, op->detail));
    if (kind != GMEM__KIND_INERT && kind != (gmem__kind)op->kind) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_VALUE, "an object is built of what is no class");
    }
    p->stack.count -= op->detail;
    return GMEM_OK;
}

/* the machine ------------------------------------------------------------------------------------------------------ */

enum { GMEM__PICKLE_PROTO = 0x80, GMEM__PICKLE_STOP = '.' };

/* code, protocol that brought it, bytes of argument, handler, detail, kind. PROTO and STOP are the machine's own. What
 * is absent is refused: text forms, POP, DUP, INST, OBJ, EXT, and what came after protocol 4. */
static const gmem__opcode gmem__opcodes[] = {
    {'(', 2, 0, gmem__op_mark, 0, 0},
    {')', 2, 0, gmem__op_constant, GMEM__HANDLE_EMPTY_TUPLE, 0},
    {'B', 3, 4, gmem__op_text, 0, GMEM__KIND_BYTES},
    {'C', 3, 1, gmem__op_text, 0, GMEM__KIND_BYTES},
    {'G', 2, 8, gmem__op_float, 0, 0},
    {'J', 2, 4, gmem__op_signed, 0, 0},
    {'K', 2, 1, gmem__op_unsigned, 0, 0},
    {'M', 2, 2, gmem__op_unsigned, 0, 0},
    {'N', 2, 0, gmem__op_constant, GMEM__HANDLE_NONE, 0},
    {'Q', 2, 0, gmem__op_persistent, 0, 0},
    {'R', 2, 0, gmem__op_reduce, 0, 0},
    {'X', 2, 4, gmem__op_text, 0, GMEM__KIND_TEXT},
    {']', 2, 0, gmem__op_empty, 0, GMEM__KIND_LIST},
    {'a', 2, 0, gmem__op_fill, 1, GMEM__KIND_LIST},
    {'b', 2, 0, gmem__op_swallow, 1, GMEM__KIND_ORDERED_DICT},
    {'c', 2, 0, gmem__op_global, 0, 0},
    {'e', 2, 0, gmem__op_fill, 0, GMEM__KIND_LIST},
    {'h', 2, 1, gmem__op_get, 0, 0},
    {'j', 2, 4, gmem__op_get, 0, 0},
    {'q', 2, 1, gmem__op_put, 0, 0},
    {'r', 2, 4, gmem__op_put, 0, 0},
    {'s', 2, 0, gmem__op_fill, 2, GMEM__KIND_DICT},
    {'t', 2, 0, gmem__op_gather, 0, GMEM__KIND_TUPLE},
    {'u', 2, 0, gmem__op_fill, 0, GMEM__KIND_DICT},
    {'}', 2, 0, gmem__op_empty, 0, GMEM__KIND_DICT},
    {0x81, 2, 0, gmem__op_swallow, 1, GMEM__KIND_INERT}, /* NEWOBJ */
    {0x85, 2, 0, gmem__op_gather, 1, GMEM__KIND_TUPLE},
    {0x86, 2, 0, gmem__op_gather, 2, GMEM__KIND_TUPLE},
    {0x87, 2, 0, gmem__op_gather, 3, GMEM__KIND_TUPLE},
    {0x88, 2, 0, gmem__op_constant, GMEM__HANDLE_TRUE, 0},
    {0x89, 2, 0, gmem__op_constant, GMEM__HANDLE_FALSE, 0},
    {0x8a, 2, 1, gmem__op_long, 0, 0},
    {0x8b, 2, 0, gmem__op_huge, 0, 0}, /* LONG4 */
    {0x8c, 4, 1, gmem__op_text, 0, GMEM__KIND_TEXT},
    {0x8d, 4, 0, gmem__op_huge, 0, 0}, /* BINUNICODE8 */
    {0x8e, 4, 0, gmem__op_huge, 0, 0}, /* BINBYTES8 */
    {0x8f, 4, 0, gmem__op_empty, 0, GMEM__KIND_SET},
    {0x90, 4, 0, gmem__op_fill, 0, GMEM__KIND_SET},
    {0x91, 4, 0, gmem__op_gather, 0, GMEM__KIND_SET},    /* FROZENSET */
    {0x92, 4, 0, gmem__op_swallow, 2, GMEM__KIND_INERT}, /* NEWOBJ_EX */
    {0x93, 4, 0, gmem__op_stack_global, 0, 0},
    {0x94, 4, 0, gmem__op_put, 0, 0}, /* MEMOIZE */
    {0x95, 4, 8, gmem__op_frame, 0, 0},
};

/* The opcode of that byte in this pickle's protocol, or NULL. */
static const gmem__opcode *gmem__pickle_opcode(const gmem__pickle *p, unsigned char code) {
    int low = 0, high = (int)(sizeof gmem__opcodes / sizeof gmem__opcodes[0]);
    while (low < high) {
        const int middle = (low + high) / 2;
        if (gmem__opcodes[middle].code < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const int known = low < (int)(sizeof gmem__opcodes / sizeof gmem__opcodes[0]) && gmem__opcodes[low].code == code &&
                      gmem__opcodes[low].protocol <= p->protocol;
    return known ? &gmem__opcodes[low] : NULL;
}

static gmem_status gmem__pickle_begin(gmem__pickle *p) {
    static const gmem__kind constants[GMEM__HANDLE_FIRST] = {GMEM__KIND_NONE, GMEM__KIND_FALSE, GMEM__KIND_TRUE,
                                                             GMEM__KIND_TUPLE};
    gmem__handle value;
    if (p->size < 2) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends before its protocol");
    if (p->bytes[0] != GMEM__PICKLE_PROTO || p->bytes[1] < 2 || p->bytes[1] > 4) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_PROTOCOL, "no pickle of protocol 2, 3 or 4");
    }
    p->protocol = p->bytes[1];
    p->next = 2;
    for (int i = 0; i < GMEM__HANDLE_FIRST; i++)
        GMEM__TRY(gmem__pickle_add_node(p, gmem__pickle_make(p, constants[i]), &value));
    GMEM__TRY(gmem__pool_reserve(p, &p->cells));
    p->cells.count = 1; /* cell 0 means none */
    return GMEM_OK;
}

static gmem_status gmem__pickle_step(gmem__pickle *p) {
    const unsigned char code = p->bytes[p->next++];
    const gmem__opcode *op = gmem__pickle_opcode(p, code);
    if (!op) {
        return gmem__fail_at(p->error, GMEM_E_PICKLE_OPCODE, p->file->path, p->start + p->at,
                             "opcode 0x%02x is none that torch.save writes", (unsigned)code);
    }
    if (op->argument > p->size - p->next) {
        return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends inside an opcode");
    }
    const unsigned char *argument = p->bytes + p->next;
    p->next += op->argument;
    return op->run(p, op, argument);
}

static gmem_status gmem__pickle_execute(gmem__pickle *p) {
    GMEM__TRY(gmem__pickle_begin(p));
    for (;;) {
        p->at = p->next;
        if (p->next >= p->size) return gmem__pickle_fail(p, GMEM_E_TRUNCATED, "the pickle ends before its STOP");
        if (p->bytes[p->next] == GMEM__PICKLE_STOP) break;
        GMEM__TRY(gmem__pickle_step(p));
    }
    p->next++;
    if (p->stack.count != 1 || p->marks.count != 0) {
        return gmem__pickle_fail(p, GMEM_E_PICKLE_STACK, "the pickle stops with more or less than one value");
    }
    p->root = *gmem__pickle_top(p, 0);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__pickle_run(gmem_file *file, int64_t start, int64_t end, int legacy, gmem__pickle *out,
                                      gmem_error *error) {
    gmem__pickle pickle, *p = &pickle;
    memset(p, 0, sizeof *p);
    p->file = file;
    p->error = error;
    p->bytes = file->bytes.data + start;
    p->start = start;
    p->size = (uint32_t)gmem__min(end - start, INT32_MAX); /* a longer pickle, 2 GiB of names, ends as truncated */
    p->legacy = legacy;
    p->nodes.bytes = sizeof(gmem__node);
    p->cells.bytes = sizeof(gmem__cell);
    p->stack.bytes = p->marks.bytes = p->memo.bytes = sizeof(uint32_t);
    p->storages.bytes = sizeof(gmem__storage);
    p->foreign.bytes = sizeof(const char *);
    p->storage_names.context = p->foreign_names.context = file->context;
    const gmem_status status = gmem__pickle_execute(p);
    p->error = NULL;
    if (status == GMEM_OK) *out = pickle;
    if (status != GMEM_OK) gmem__pickle_free(p);
    return status;
}

GMEM__FN void gmem__pickle_free(gmem__pickle *p) {
    gmem__pool *const pools[] = {&p->nodes, &p->cells, &p->stack, &p->marks, &p->memo, &p->storages, &p->foreign};
    for (size_t i = 0; i < sizeof pools / sizeof pools[0]; i++)
        gmem__pool_free(p, pools[i]);
    gmem__names_free(&p->storage_names);
    gmem__names_free(&p->foreign_names);
    gmem__pickle_release(p, p->held);
}
/* ---- src/zip.c ---- */
/* The zip container of torch.save: the central directory is the authority, entries are stored, nothing is unpacked.
 * Everything is checked before anything is used; every refusal has its own code and the offset of the record at fault.
 * Field names follow PKWARE's APPNOTE.TXT. */
/* ---- src/zip.h ---- */
/* The directory of a torch zip archive, checked: what zip.c hands to torch.c. */
#ifndef GMEM__ZIP_H
#define GMEM__ZIP_H


typedef struct gmem__zip_entry {
    const unsigned char *name; /* (name_bytes) in the file, with the root folder, not terminated */
    int32_t name_bytes;
    uint32_t method;    /* 0: stored */
    int64_t header;     /* file offset of the local header */
    int64_t data, size; /* file offset and bytes of the stored data */
} gmem__zip_entry;

typedef struct gmem__zip {
    const gmem_context *context;
    const char *path;
    const unsigned char *bytes; /* (size) the whole file */
    int64_t size;
    gmem__zip_entry *entries; /* (count) in the directory's order, never overlapping */
    int64_t count;
    gmem__names names;  /* below the root, to indices into entries */
    int32_t root_bytes; /* of the folder that all names share, with its slash */
} gmem__zip;

/* Checks every record of the archive. Errors: E_ZIP_*, E_LIMIT, E_OVERFLOW, E_MEMORY. On failure nothing is held. */
GMEM__FN gmem_status gmem__zip_open(const gmem_context *context, const char *path, const gmem__bytes *bytes,
                                    gmem__zip *out, gmem_error *error);
/* The entry of that name below the root folder, or NULL. */
GMEM__FN const gmem__zip_entry *gmem__zip_find(const gmem__zip *zip, const char *name);
/* Refuses an archive with compressed entries, apart so that the caller can say first what else it is. Errors:
 * E_ZIP_COMPRESSED. */
GMEM__FN gmem_status gmem__zip_require_stored(const gmem__zip *zip, gmem_error *error);
/* Bytes of memory that the open archive takes: some 1.4 for each byte of the file at most. */
GMEM__FN int64_t gmem__zip_held(const gmem__zip *zip);
GMEM__FN void gmem__zip_close(gmem__zip *zip);

#endif /* GMEM__ZIP_H */


enum {
    GMEM__ZIP_END_BYTES = 22,
    GMEM__ZIP64_LOCATOR_BYTES = 20,
    GMEM__ZIP64_END_BYTES = 56,
    GMEM__ZIP_CENTRAL_BYTES = 46,
    GMEM__ZIP_LOCAL_BYTES = 30
};

#define GMEM__ZIP_LOCAL_SIGNATURE     0x04034b50u
#define GMEM__ZIP_CENTRAL_SIGNATURE   0x02014b50u
#define GMEM__ZIP_END_SIGNATURE       0x06054b50u
#define GMEM__ZIP64_END_SIGNATURE     0x06064b50u
#define GMEM__ZIP64_LOCATOR_SIGNATURE 0x07064b50u
#define GMEM__ZIP_FLAGS_ENCRYPTED     0x2041u /* encrypted, strongly encrypted, masked headers */

static uint32_t gmem__zip_u16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t gmem__zip_u32(const unsigned char *p) { return gmem__zip_u16(p) | gmem__zip_u16(p + 2) << 16; }
static uint64_t gmem__zip_u64(const unsigned char *p) {
    return (uint64_t)gmem__zip_u32(p) | (uint64_t)gmem__zip_u32(p + 4) << 32;
}

static gmem_status gmem__zip_fail(const gmem__zip *zip, gmem_status code, int64_t offset, const char *what,
                                  gmem_error *error) {
    return gmem__fail_at(error, code, zip->path, offset, "%s", what);
}

/* the end records -------------------------------------------------------------------------------------------------- */

typedef struct gmem__zip_end {
    uint64_t count, offset, size; /* of the central directory */
    int64_t start;                /* file offset of the first end record */
} gmem__zip_end;

/* torch writes the zip64 record always, so the plain fields may hold their values or be saturated. */
static int gmem__zip_same(uint32_t plain, uint32_t saturated, uint64_t value) {
    return plain == saturated || plain == value;
}

static gmem_status gmem__zip_read_end64(const gmem__zip *zip, gmem__zip_end *end, gmem_error *error) {
    const int64_t plain_at = end->start, at = plain_at - GMEM__ZIP64_LOCATOR_BYTES - GMEM__ZIP64_END_BYTES;
    const unsigned char *plain = zip->bytes + plain_at, *locator = plain - GMEM__ZIP64_LOCATOR_BYTES;
    if (at < 0 || gmem__zip_u32(locator + 4) != 0 || gmem__zip_u64(locator + 8) != (uint64_t)at ||
        gmem__zip_u32(locator + 16) != 1) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, plain_at - GMEM__ZIP64_LOCATOR_BYTES,
                              "the zip64 locator does not point to the record before it", error);
    }
    const unsigned char *record = zip->bytes + at;
    if (gmem__zip_u32(record) != GMEM__ZIP64_END_SIGNATURE || gmem__zip_u64(record + 4) != GMEM__ZIP64_END_BYTES - 12) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the zip64 end record is missing", error);
    }
    end->start = at;
    end->count = gmem__zip_u64(record + 32);
    end->size = gmem__zip_u64(record + 40);
    end->offset = gmem__zip_u64(record + 48);
    if (gmem__zip_u32(record + 16) != 0 || gmem__zip_u32(record + 20) != 0 ||
        gmem__zip_u64(record + 24) != end->count || !gmem__zip_same(gmem__zip_u16(plain + 10), 0xffffu, end->count) ||
        !gmem__zip_same(gmem__zip_u32(plain + 12), 0xffffffffu, end->size) ||
        !gmem__zip_same(gmem__zip_u32(plain + 16), 0xffffffffu, end->offset)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the two zip end records disagree", error);
    }
    return GMEM_OK;
}

static gmem_status gmem__zip_read_end(const gmem__zip *zip, gmem__zip_end *end, gmem_error *error) {
    const int64_t at = zip->size - GMEM__ZIP_END_BYTES;
    const unsigned char *record = zip->bytes + gmem__max(at, 0);
    if (at < 0 || gmem__zip_u32(record) != GMEM__ZIP_END_SIGNATURE || gmem__zip_u16(record + 20) != 0) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, gmem__max(at, 0), "no zip end record at the end: cut short?", error);
    }
    if (gmem__zip_u16(record + 4) != 0 || gmem__zip_u16(record + 6) != 0 ||
        gmem__zip_u16(record + 8) != gmem__zip_u16(record + 10)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_END, at, "the zip is one part of several", error);
    }
    end->start = at;
    end->count = gmem__zip_u16(record + 10);
    end->size = gmem__zip_u32(record + 12);
    end->offset = gmem__zip_u32(record + 16);
    if (at >= GMEM__ZIP64_LOCATOR_BYTES &&
        gmem__zip_u32(record - GMEM__ZIP64_LOCATOR_BYTES) == GMEM__ZIP64_LOCATOR_SIGNATURE) {
        GMEM__TRY(gmem__zip_read_end64(zip, end, error));
    }
    if (end->offset > (uint64_t)end->start || end->size != (uint64_t)end->start - end->offset) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, end->start,
                              "the zip directory does not end where the end record begins", error);
    }
    if (end->count > end->size / GMEM__ZIP_CENTRAL_BYTES) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, end->start,
                              "the zip directory cannot hold the entries it counts", error);
    }
    if (end->count > INT32_MAX / 4) {
        return gmem__zip_fail(zip, GMEM_E_LIMIT, end->start, "too many zip entries", error);
    }
    return GMEM_OK;
}

/* names ------------------------------------------------------------------------------------------------------------ */

/* Components separated by single slashes; none of them empty (but after a folder's last slash), "." or "..". */
static int gmem__zip_name_is_safe(const unsigned char *name, int32_t bytes) {
    int32_t start = 0;
    if (bytes == 0 || (bytes >= 3 && name[1] == ':' && name[2] == '/')) return 0;
    for (int32_t i = 0; i <= bytes; i++) {
        if (i < bytes && (name[i] == 0 || name[i] == '\\')) return 0;
        if (i < bytes && name[i] != '/') continue;
        int32_t length = i - start;
        if (length == 0 && i < bytes) return 0;
        if (length == 1 && name[start] == '.') return 0;
        if (length == 2 && name[start] == '.' && name[start + 1] == '.') return 0;
        start = i + 1;
    }
    return 1;
}

static gmem_status gmem__zip_check_roots(gmem__zip *zip, gmem_error *error) {
    for (int64_t i = 0; i < zip->count; i++) {
        const gmem__zip_entry *entry = &zip->entries[i], *first = &zip->entries[0];
        const unsigned char *slash = (const unsigned char *)memchr(entry->name, '/', (size_t)entry->name_bytes);
        int32_t bytes = slash ? (int32_t)(slash - entry->name) + 1 : 0;
        if (i == 0) zip->root_bytes = bytes;
        if (bytes == 0 || bytes != zip->root_bytes || memcmp(entry->name, first->name, (size_t)bytes) != 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_ROOT, entry->name - zip->bytes,
                                  "the zip entries are not in one folder", error);
        }
    }
    return GMEM_OK;
}

/* Names are kept without the root; one that is there already is the archive's fault. */
static gmem_status gmem__zip_index_names(gmem__zip *zip, gmem_error *error) {
    if (!gmem__names_reserve(&zip->names, zip->count)) return gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    for (int64_t i = 0; i < zip->count; i++) {
        const gmem__zip_entry *entry = &zip->entries[i];
        const unsigned char *name = entry->name + zip->root_bytes;
        const int32_t bytes = entry->name_bytes - zip->root_bytes;
        if (gmem__names_find(&zip->names, name, bytes) >= 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_DUPLICATE, name - zip->bytes, "a zip name occurs twice", error);
        }
        gmem__names_add(&zip->names, name, bytes, (int32_t)i);
    }
    return GMEM_OK;
}

GMEM__FN const gmem__zip_entry *gmem__zip_find(const gmem__zip *zip, const char *name) {
    int32_t index = gmem__names_find(&zip->names, (const unsigned char *)name, (int64_t)strlen(name));
    return index >= 0 ? &zip->entries[index] : NULL;
}

GMEM__FN gmem_status gmem__zip_require_stored(const gmem__zip *zip, gmem_error *error) {
    for (int64_t i = 0; i < zip->count; i++) {
        if (zip->entries[i].method != 0) {
            return gmem__zip_fail(zip, GMEM_E_ZIP_COMPRESSED, zip->entries[i].header, "a zip entry is compressed",
                                  error);
        }
    }
    return GMEM_OK;
}

/* entries ---------------------------------------------------------------------------------------------------------- */

/* The sizes and the offset that did not fit 32 bits are in the zip64 extra field, in this order. */
static gmem_status gmem__zip_read_extra64(const gmem__zip *zip, const unsigned char *extra, uint32_t bytes,
                                          uint64_t *uncompressed, uint64_t *compressed, uint64_t *offset,
                                          gmem_error *error) {
    uint64_t *fields[3];
    uint32_t wanted = 0;
    if (*uncompressed == 0xffffffffu) fields[wanted++] = uncompressed;
    if (*compressed == 0xffffffffu) fields[wanted++] = compressed;
    if (*offset == 0xffffffffu) fields[wanted++] = offset;
    if (wanted == 0) return GMEM_OK;
    for (uint32_t at = 0; bytes - at >= 4;) {
        uint32_t id = gmem__zip_u16(extra + at), size = gmem__zip_u16(extra + at + 2);
        if (size > bytes - at - 4) break;
        if (id != 1) {
            at += 4 + size;
            continue;
        }
        if (size < 8 * wanted) break;
        for (uint32_t i = 0; i < wanted; i++)
            *fields[i] = gmem__zip_u64(extra + at + 4 + 8 * i);
        return GMEM_OK;
    }
    return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, extra - zip->bytes, "a zip64 size is missing", error);
}

/* One central record at *at; moves *at behind it. */
static gmem_status gmem__zip_read_central(const gmem__zip *zip, int64_t *at, int64_t directory_end,
                                          gmem__zip_entry *entry, gmem_error *error) {
    const unsigned char *record = zip->bytes + *at;
    if (directory_end - *at < GMEM__ZIP_CENTRAL_BYTES || gmem__zip_u32(record) != GMEM__ZIP_CENTRAL_SIGNATURE) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "no zip directory record here", error);
    }
    const uint32_t flags = gmem__zip_u16(record + 8), method = gmem__zip_u16(record + 10);
    const uint32_t name_bytes = gmem__zip_u16(record + 28), extra_bytes = gmem__zip_u16(record + 30);
    const uint32_t comment_bytes = gmem__zip_u16(record + 32), disk = gmem__zip_u16(record + 34);
    const int64_t record_bytes = (int64_t)GMEM__ZIP_CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes;
    uint64_t compressed = gmem__zip_u32(record + 20), uncompressed = gmem__zip_u32(record + 24);
    uint64_t offset = gmem__zip_u32(record + 42);
    if (record_bytes > directory_end - *at) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "a zip directory record runs over the end", error);
    }
    entry->name = record + GMEM__ZIP_CENTRAL_BYTES;
    entry->name_bytes = (int32_t)name_bytes;
    if (flags & GMEM__ZIP_FLAGS_ENCRYPTED) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_ENCRYPTED, *at, "a zip entry is encrypted", error);
    }
    if (!gmem__zip_name_is_safe(entry->name, entry->name_bytes)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_NAME, *at, "a zip name is empty, absolute or leaves its folder", error);
    }
    GMEM__TRY(
        gmem__zip_read_extra64(zip, entry->name + name_bytes, extra_bytes, &uncompressed, &compressed, &offset, error));
    if (compressed > INT64_MAX || uncompressed > INT64_MAX || offset > INT64_MAX) {
        return gmem__zip_fail(zip, GMEM_E_OVERFLOW, *at, "a zip size or offset overflows", error);
    }
    if ((method == 0 && compressed != uncompressed) || disk != 0) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, *at, "a stored zip entry has two sizes, or another disk",
                              error);
    }
    entry->method = method;
    entry->size = (int64_t)compressed;
    entry->header = (int64_t)offset;
    *at += record_bytes;
    return GMEM_OK;
}

/* torch leaves the local sizes zero and writes a descriptor behind the data; other writers repeat the directory. */
static int gmem__zip_local_size_agrees(const unsigned char *local, const gmem__zip_entry *entry) {
    const uint32_t compressed = gmem__zip_u32(local + 18), uncompressed = gmem__zip_u32(local + 22);
    if (compressed != 0 && compressed != 0xffffffffu && (int64_t)compressed != entry->size) return 0;
    return entry->method != 0 || uncompressed == 0 || uncompressed == 0xffffffffu ||
           (int64_t)uncompressed == entry->size;
}

static gmem_status gmem__zip_check_local(const gmem__zip *zip, int64_t directory, gmem__zip_entry *entry,
                                         gmem_error *error) {
    const int64_t at = entry->header;
    if (at > directory - GMEM__ZIP_LOCAL_BYTES) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_LOCAL, entry->name - zip->bytes - GMEM__ZIP_CENTRAL_BYTES,
                              "a zip entry lies outside the file", error);
    }
    const unsigned char *local = zip->bytes + at;
    const uint32_t name_bytes = gmem__zip_u16(local + 26), extra_bytes = gmem__zip_u16(local + 28);
    entry->data = at + GMEM__ZIP_LOCAL_BYTES + name_bytes + extra_bytes;
    if (gmem__zip_u32(local) != GMEM__ZIP_LOCAL_SIGNATURE || gmem__zip_u16(local + 8) != entry->method ||
        (gmem__zip_u16(local + 6) & GMEM__ZIP_FLAGS_ENCRYPTED) || (int32_t)name_bytes != entry->name_bytes ||
        entry->data > directory || memcmp(local + GMEM__ZIP_LOCAL_BYTES, entry->name, name_bytes) != 0 ||
        !gmem__zip_local_size_agrees(local, entry)) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_LOCAL, at, "a zip local header disagrees with the directory", error);
    }
    if (entry->size > directory - entry->data) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_OVERLAP, at, "a zip entry runs into the directory", error);
    }
    return GMEM_OK;
}

static int gmem__zip_compare_headers(const void *user, int32_t a, int32_t b) {
    const gmem__zip_entry *entries = (const gmem__zip_entry *)user;
    return (entries[a].header > entries[b].header) - (entries[a].header < entries[b].header);
}

static gmem_status gmem__zip_check_overlap(const gmem__zip *zip, gmem_error *error) {
    int32_t *order = (int32_t *)gmem__alloc(zip->context, zip->count, sizeof *order);
    gmem_status status = GMEM_OK;
    if (!order) return gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    gmem__sort(order, zip->count, gmem__zip_compare_headers, zip->entries);
    for (int64_t i = 1; i < zip->count && status == GMEM_OK; i++) {
        const gmem__zip_entry *before = &zip->entries[order[i - 1]], *entry = &zip->entries[order[i]];
        if (before->data + before->size > entry->header) {
            status = gmem__zip_fail(zip, GMEM_E_ZIP_OVERLAP, entry->header, "two zip entries overlap", error);
        }
    }
    gmem__free(zip->context, order, zip->count, sizeof *order);
    return status;
}

/* the whole -------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__zip_read_directory(gmem__zip *zip, const gmem__zip_end *end, gmem_error *error) {
    const int64_t directory = (int64_t)end->offset;
    int64_t at = directory;
    for (int64_t i = 0; i < zip->count; i++) {
        GMEM__TRY(gmem__zip_read_central(zip, &at, end->start, &zip->entries[i], error));
        GMEM__TRY(gmem__zip_check_local(zip, directory, &zip->entries[i], error));
    }
    if (at != end->start) {
        return gmem__zip_fail(zip, GMEM_E_ZIP_DIRECTORY, at, "the zip directory has more records than it counts",
                              error);
    }
    GMEM__TRY(gmem__zip_check_roots(zip, error));
    GMEM__TRY(gmem__zip_index_names(zip, error));
    return gmem__zip_check_overlap(zip, error);
}

GMEM__FN gmem_status gmem__zip_open(const gmem_context *context, const char *path, const gmem__bytes *bytes,
                                    gmem__zip *out, gmem_error *error) {
    gmem__zip zip;
    gmem__zip_end end = {0, 0, 0, 0};
    memset(&zip, 0, sizeof zip);
    zip.context = context;
    zip.path = path;
    zip.bytes = bytes->data;
    zip.size = bytes->size;
    GMEM__TRY(gmem__zip_read_end(&zip, &end, error));
    zip.count = (int64_t)end.count;
    zip.names.context = context;
    zip.entries = (gmem__zip_entry *)gmem__alloc(context, zip.count, sizeof *zip.entries);
    gmem_status status = zip.entries ? GMEM_OK : gmem__fail(error, GMEM_E_MEMORY, "out of memory");
    if (status == GMEM_OK) status = gmem__zip_read_directory(&zip, &end, error);
    if (status == GMEM_OK) *out = zip;
    if (status != GMEM_OK) gmem__zip_close(&zip);
    return status;
}

GMEM__FN int64_t gmem__zip_held(const gmem__zip *zip) {
    return zip->count * (int64_t)sizeof *zip->entries + zip->names.size * (int64_t)sizeof *zip->names.slots;
}

GMEM__FN void gmem__zip_close(gmem__zip *zip) {
    gmem__free(zip->context, zip->entries, zip->count, sizeof *zip->entries);
    gmem__names_free(&zip->names);
    zip->entries = NULL;
    zip->count = 0;
}

#undef GMEM__ZIP_LOCAL_SIGNATURE
#undef GMEM__ZIP_CENTRAL_SIGNATURE
#undef GMEM__ZIP_END_SIGNATURE
#undef GMEM__ZIP64_END_SIGNATURE
#undef GMEM__ZIP64_LOCATOR_SIGNATURE
#undef GMEM__ZIP_FLAGS_ENCRYPTED
/* ---- src/torch.c ---- */
/* Checkpoints of torch.save, zip and legacy: where the storages lie, and the pickle's object flattened into entries.
 * Tensors are views into the file at whatever alignment: torch aligns storages to 64 bytes, but every reader of
 * elements is safe without, so nothing is ever copied. */

#include <stdio.h>

enum {
    GMEM__TORCH_MAX_DEPTH = 128,   /* dictionaries in dictionaries */
    GMEM__TORCH_MAX_KEY = 4096,    /* bytes of a flattened key */
    GMEM__TORCH_MAX_SHARING = 8,   /* visits per byte of pickle: shared containers are listed each time */
    GMEM__TORCH_MIN_VISITS = 65536 /* whatever the size */
};

/* flattening ------------------------------------------------------------------------------------------------------- */

/* A container whose items are being listed. */
typedef struct gmem__frame {
    gmem__handle container;
    uint32_t cell;     /* the next item, a dictionary's key */
    int64_t index;     /* of that item */
    int32_t key_bytes; /* of the container's own key */
} gmem__frame;

typedef struct gmem__flatten {
    gmem_file *file;
    gmem__pickle *pickle;
    gmem_error *error;
    int64_t visits;
    int depth;
    int32_t key_bytes;
    gmem__frame frames[GMEM__TORCH_MAX_DEPTH];
    char key[GMEM__TORCH_MAX_KEY + 1];
} gmem__flatten;

static gmem_status gmem__flatten_fail(const gmem__flatten *f, gmem_status code, const gmem__node *node,
                                      const char *what) {
    gmem__quoted quoted;
    return gmem__fail_at(f->error, code, f->file->path, f->pickle->start + node->at, "%s (key %s)", what,
                         gmem__quote(&quoted, f->key));
}

static int gmem__is_container(const gmem__node *node) {
    return node->kind >= GMEM__KIND_TUPLE && node->kind <= GMEM__KIND_ORDERED_DICT;
}

static int gmem__is_dict(const gmem__node *node) {
    return node->kind == GMEM__KIND_DICT || node->kind == GMEM__KIND_ORDERED_DICT;
}

/* The mark that a container is on the path from the root: meeting it again is a cycle. */
static void gmem__flatten_mark(const gmem__flatten *f, gmem__handle container, uint8_t on_path) {
    ((gmem__node *)f->pickle->nodes.items)[container].on_path = on_path;
}

static gmem_status gmem__flatten_enter(gmem__flatten *f, gmem__handle container, const gmem__node *node) {
    if (node->on_path) return gmem__flatten_fail(f, GMEM_E_PICKLE_CYCLE, node, "a container contains itself");
    if (f->depth == GMEM__TORCH_MAX_DEPTH) {
        return gmem__flatten_fail(f, GMEM_E_LIMIT, node, "containers are nested too deeply");
    }
    gmem__frame *frame = &f->frames[f->depth++];
    frame->container = container;
    frame->cell = node->as.list.first;
    frame->index = 0;
    frame->key_bytes = f->key_bytes;
    gmem__flatten_mark(f, container, 1);
    return GMEM_OK;
}

/* Extends the frame's key by ".name". */
static gmem_status gmem__flatten_name(gmem__flatten *f, const gmem__frame *frame, const gmem__node *node,
                                      const char *name, int64_t bytes) {
    const int32_t dot = f->depth > 1;
    if (memchr(name, 0, (size_t)bytes)) return gmem__flatten_fail(f, GMEM_E_NAME, node, "a key has a NUL in it");
    if (bytes > GMEM__TORCH_MAX_KEY - frame->key_bytes - dot) {
        return gmem__flatten_fail(f, GMEM_E_LIMIT, node, "a key is too long");
    }
    if (dot) f->key[frame->key_bytes] = '.';
    memcpy(f->key + frame->key_bytes + dot, name, (size_t)bytes);
    f->key_bytes = frame->key_bytes + dot + (int32_t)bytes;
    f->key[f->key_bytes] = 0;
    return GMEM_OK;
}

static gmem_status gmem__flatten_name_index(gmem__flatten *f, const gmem__frame *frame, const gmem__node *node,
                                            int64_t index) {
    char text[24];
    const int bytes = snprintf(text, sizeof text, "%lld", (long long)index);
    return gmem__flatten_name(f, frame, node, text, bytes);
}

/* A string key is the name; an integer key in decimal; what has no such name (a tuple, a number) goes by its place. */
static gmem_status gmem__flatten_name_key(gmem__flatten *f, const gmem__frame *frame, gmem__handle key) {
    const gmem__node node = gmem__pickle_node(f->pickle, key);
    if (node.kind == GMEM__KIND_TEXT) {
        return gmem__flatten_name(f, frame, &node, (const char *)f->pickle->bytes + node.as.text.at,
                                  node.as.text.bytes);
    }
    return gmem__flatten_name_index(f, frame, &node, node.kind == GMEM__KIND_INTEGER ? node.as.integer : frame->index);
}

static gmem_status gmem__flatten_add(gmem__flatten *f, gmem__entry *entry) {
    entry->key = gmem__file_text(f->file, f->key, f->key_bytes);
    if (!entry->key) return gmem__file_no_memory(f->file, f->error);
    entry->nested = f->depth ? f->frames[f->depth - 1].key_bytes : 0;
    return gmem__file_add(f->file, entry, f->error);
}

static gmem_status gmem__flatten_add_number(gmem__flatten *f, double number) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_NUMBER;
    entry.number = number;
    return gmem__flatten_add(f, &entry);
}

static gmem_status gmem__flatten_add_string(gmem__flatten *f, const gmem__node *node, const char *text, int64_t bytes) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_STRING;
    if (memchr(text, 0, (size_t)bytes)) return gmem__flatten_fail(f, GMEM_E_NAME, node, "a string has a NUL in it");
    entry.string = gmem__file_text(f->file, text, bytes);
    if (!entry.string) return gmem__file_no_memory(f->file, f->error);
    return gmem__flatten_add(f, &entry);
}

/* As Python prints them: "torch.float32", "cuda:0". */
static gmem_status gmem__flatten_add_dtype(gmem__flatten *f, const gmem__node *node) {
    char text[64];
    const int bytes = snprintf(text, sizeof text, "torch.%s", gmem__pickle_dtype_name(node));
    return gmem__flatten_add_string(f, node, text, bytes);
}

static gmem_status gmem__flatten_add_device(gmem__flatten *f, const gmem__node *node) {
    char text[64];
    const gmem__cell *first = gmem__pickle_cell(f->pickle, node->as.list.first);
    const gmem__node type = gmem__pickle_node(f->pickle, first->value);
    int bytes = (int)type.as.text.bytes; /* at most 32 */
    memcpy(text, f->pickle->bytes + type.as.text.at, type.as.text.bytes);
    if (first->next) {
        const gmem__node number = gmem__pickle_node(f->pickle, gmem__pickle_cell(f->pickle, first->next)->value);
        bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, ":%lld", (long long)number.as.integer);
    }
    return gmem__flatten_add_string(f, node, text, bytes);
}

static gmem_status gmem__flatten_add_tensor(gmem__flatten *f, const gmem__node *node) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_TENSOR;
    gmem__pickle_tensor(f->pickle, node, &entry.tensor);
    return gmem__flatten_add(f, &entry);
}

static gmem_status gmem__flatten_add_foreign(gmem__flatten *f, const gmem__node *node) {
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_FOREIGN;
    entry.string = gmem__pickle_foreign(f->pickle, node);
    return gmem__flatten_add(f, &entry);
}

/* None, bytes, bare storages, classes and functions are no part of what a checkpoint says. */
static gmem_status gmem__flatten_leaf(gmem__flatten *f, const gmem__node *node) {
    switch ((gmem__kind)node->kind) {
    case GMEM__KIND_FALSE:
        return gmem__flatten_add_number(f, 0.0);
    case GMEM__KIND_TRUE:
        return gmem__flatten_add_number(f, 1.0);
    case GMEM__KIND_INTEGER:
    case GMEM__KIND_LONG:
    case GMEM__KIND_FLOAT:
        return gmem__flatten_add_number(f, gmem__pickle_number(f->pickle, node));
    case GMEM__KIND_TEXT:
        return gmem__flatten_add_string(f, node, (const char *)f->pickle->bytes + node->as.text.at,
                                        node->as.text.bytes);
    case GMEM__KIND_DTYPE:
        return gmem__flatten_add_dtype(f, node);
    case GMEM__KIND_DEVICE:
        return gmem__flatten_add_device(f, node);
    case GMEM__KIND_TENSOR:
        return gmem__flatten_add_tensor(f, node);
    case GMEM__KIND_INERT:
        return gmem__flatten_add_foreign(f, node);
    default:
        return GMEM_OK;
    }
}

static gmem_status gmem__flatten_visit(gmem__flatten *f, gmem__handle value) {
    const gmem__node node = gmem__pickle_node(f->pickle, value);
    const int64_t limit = gmem__max((int64_t)f->pickle->next * GMEM__TORCH_MAX_SHARING, GMEM__TORCH_MIN_VISITS);
    if (++f->visits > limit)
        return gmem__flatten_fail(f, GMEM_E_LIMIT, &node, "shared containers make too many entries");
    return gmem__is_container(&node) ? gmem__flatten_enter(f, value, &node) : gmem__flatten_leaf(f, &node);
}

/* Takes the innermost frame's next item, or leaves the frame. */
static gmem_status gmem__flatten_step(gmem__flatten *f) {
    gmem__frame *frame = &f->frames[f->depth - 1];
    if (frame->cell == 0) {
        gmem__flatten_mark(f, frame->container, 0);
        f->depth--;
        return GMEM_OK;
    }
    const gmem__node container = gmem__pickle_node(f->pickle, frame->container);
    const gmem__cell *item = gmem__pickle_cell(f->pickle, frame->cell);
    if (gmem__is_dict(&container)) {
        GMEM__TRY(gmem__flatten_name_key(f, frame, item->value));
        item = gmem__pickle_cell(f->pickle, item->next);
    } else {
        GMEM__TRY(gmem__flatten_name_index(f, frame, &container, frame->index));
    }
    frame->cell = item->next;
    frame->index++;
    return gmem__flatten_visit(f, item->value);
}

static gmem_status gmem__flatten_root(gmem_file *file, gmem__pickle *pickle, gmem_error *error) {
    gmem__flatten flatten, *f = &flatten;
    memset(f, 0, sizeof *f);
    f->file = file;
    f->pickle = pickle;
    f->error = error;
    GMEM__TRY(gmem__flatten_visit(f, pickle->root));
    while (f->depth > 0)
        GMEM__TRY(gmem__flatten_step(f));
    return GMEM_OK;
}

/* zip -------------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__torch_check_entries(const gmem_file *file, const gmem__zip *zip, gmem_error *error) {
    const gmem__zip_entry *script = gmem__zip_find(zip, "constants.pkl"), *order = gmem__zip_find(zip, "byteorder");
    if (script) {
        return gmem__fail_at(error, GMEM_E_FORMAT, file->path, script->header,
                             "a TorchScript archive: save the module's state_dict with torch.save instead");
    }
    GMEM__TRY(gmem__zip_require_stored(zip, error));
    if (!gmem__zip_find(zip, "data.pkl")) {
        return gmem__fail_at(error, GMEM_E_ZIP_MISSING, file->path, zip->size, "a zip without torch's data.pkl");
    }
    if (order && (order->size != 6 || memcmp(zip->bytes + order->data, "little", 6) != 0)) {
        return gmem__fail_at(error, GMEM_E_BYTEORDER, file->path, order->data, "its byte order is not little");
    }
    return GMEM_OK;
}

static gmem_status gmem__torch_zip_storages(const gmem_file *file, const gmem__zip *zip, gmem__pickle *pickle,
                                            gmem_error *error) {
    for (uint32_t i = 0; i < pickle->storages.count; i++) {
        gmem__storage *storage = gmem__pickle_storage(pickle, i);
        const int64_t bytes = storage->numel * (int64_t)gmem_type_bytes(storage->type);
        char name[128] = "data/";
        gmem__quoted quoted;
        const uint32_t fits = (uint32_t)(sizeof name - 6);
        memcpy(name + 5, storage->key, storage->key_bytes < fits ? storage->key_bytes : fits);
        const gmem__zip_entry *entry = storage->key_bytes < fits ? gmem__zip_find(zip, name) : NULL;
        if (!entry) {
            return gmem__fail_at(error, GMEM_E_STORAGE, file->path, pickle->start + storage->at,
                                 "the zip lacks the storage %s", gmem__quote(&quoted, name));
        }
        if (entry->size != bytes) {
            return gmem__fail_at(error, GMEM_E_STORAGE, file->path, entry->data,
                                 "the storage %s must have %lld bytes and has %lld", gmem__quote(&quoted, name),
                                 (long long)bytes, (long long)entry->size);
        }
        storage->data = zip->bytes + entry->data;
    }
    return GMEM_OK;
}

static gmem_status gmem__torch_read_zip(gmem_file *file, const gmem__zip *zip, gmem_error *error) {
    gmem__pickle pickle;
    GMEM__TRY(gmem__torch_check_entries(file, zip, error));
    const gmem__zip_entry *object = gmem__zip_find(zip, "data.pkl");
    const int64_t end = object->data + object->size;
    GMEM__TRY(gmem__pickle_run(file, object->data, end, 0, &pickle, error));
    gmem_status status = GMEM_OK;
    if (pickle.start + pickle.next != end) {
        status = gmem__fail_at(error, GMEM_E_PICKLE_TRAILING, file->path, pickle.start + pickle.next,
                               "bytes after the pickle's end");
    }
    if (status == GMEM_OK) status = gmem__torch_zip_storages(file, zip, &pickle, error);
    if (status == GMEM_OK) status = gmem__flatten_root(file, &pickle, error);
    gmem__pickle_free(&pickle);
    return status;
}

GMEM__FN gmem_status gmem__parse_torch_zip(gmem_file *file, gmem_error *error) {
    gmem__zip zip;
    GMEM__TRY(gmem__zip_open(file->context, file->path, &file->bytes, &zip, error));
    const int64_t held = gmem__zip_held(&zip);
    gmem_status status = GMEM_OK;
    if (gmem__file_may_hold(file, held)) {
        status = gmem__torch_read_zip(file, &zip, error);
        file->held -= held;
    } else {
        status = gmem__file_no_memory(file, error);
    }
    gmem__zip_close(&zip);
    return status;
}

/* legacy ----------------------------------------------------------------------------------------------------------- */

/* torch/serialization.py, _legacy_save: five pickles one after another, then the storages. */
typedef struct gmem__legacy {
    gmem_file *file;
    gmem_error *error;
    int64_t at; /* the file's next byte */
} gmem__legacy;

static gmem_status gmem__legacy_fail(const gmem__legacy *legacy, gmem_status code, int64_t offset, const char *what) {
    return gmem__fail_at(legacy->error, code, legacy->file->path, offset, "%s", what);
}

static gmem_status gmem__legacy_pickle(gmem__legacy *legacy, gmem__pickle *out) {
    GMEM__TRY(gmem__pickle_run(legacy->file, legacy->at, legacy->file->bytes.size, 1, out, legacy->error));
    legacy->at += out->next;
    return GMEM_OK;
}

static int gmem__legacy_is_magic(const gmem__pickle *pickle) {
    static const unsigned char magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
    const gmem__node root = gmem__pickle_node(pickle, pickle->root);
    return root.kind == GMEM__KIND_LONG && root.as.text.bytes == sizeof magic &&
           memcmp(pickle->bytes + root.as.text.at, magic, sizeof magic) == 0;
}

static int gmem__legacy_is_protocol(const gmem__pickle *pickle) {
    const gmem__node root = gmem__pickle_node(pickle, pickle->root);
    return root.kind == GMEM__KIND_INTEGER && root.as.integer == 1001;
}

static gmem_status gmem__legacy_check_system(const gmem__legacy *legacy, const gmem__pickle *pickle) {
    gmem__handle order;
    if (!gmem__pickle_lookup(pickle, pickle->root, "little_endian", &order)) {
        return gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle->start, "no byte order in the legacy header");
    }
    const gmem__node node = gmem__pickle_node(pickle, order);
    if (node.kind == GMEM__KIND_TRUE) return GMEM_OK;
    return gmem__legacy_fail(legacy, GMEM_E_BYTEORDER, pickle->start, "its byte order is not little");
}

static gmem_status gmem__legacy_header(gmem__legacy *legacy) {
    for (int i = 0; i < 3; i++) {
        gmem__pickle pickle;
        gmem_status status = GMEM_OK;
        GMEM__TRY(gmem__legacy_pickle(legacy, &pickle));
        if (i == 0 && !gmem__legacy_is_magic(&pickle)) {
            status = gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle.start, "not torch's magic number");
        } else if (i == 1 && !gmem__legacy_is_protocol(&pickle)) {
            status = gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, pickle.start, "not torch's protocol 1001");
        } else if (i == 2) {
            status = gmem__legacy_check_system(legacy, &pickle);
        }
        gmem__pickle_free(&pickle);
        GMEM__TRY(status);
    }
    return GMEM_OK;
}

/* One storage: its key is the next in the list; 8 bytes that count its elements, then these. */
static gmem_status gmem__legacy_storage(gmem__legacy *legacy, gmem__pickle *object, const gmem__pickle *keys,
                                        gmem__handle value) {
    const unsigned char *count = legacy->file->bytes.data + legacy->at;
    const gmem__node key = gmem__pickle_node(keys, value);
    const int64_t left = legacy->file->bytes.size - legacy->at;
    int32_t index = -1;
    uint64_t numel = 0;
    if (key.kind == GMEM__KIND_TEXT) {
        index = gmem__pickle_find_storage(object, keys->bytes + key.as.text.at, key.as.text.bytes);
    }
    if (index < 0) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, keys->start + key.at,
                                 "a storage that no tensor of a known class names");
    }
    gmem__storage *storage = gmem__pickle_storage(object, index);
    if (storage->data) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, keys->start + key.at, "a storage is listed twice");
    }
    if (left < 8) return gmem__legacy_fail(legacy, GMEM_E_TRUNCATED, legacy->at, "the file ends before a storage");
    for (int i = 8; i-- > 0;)
        numel = numel << 8 | count[i];
    if (numel != (uint64_t)storage->numel) {
        return gmem__legacy_fail(legacy, GMEM_E_STORAGE, legacy->at, "a storage's size is not what its tensors say");
    }
    const int64_t bytes = storage->numel * (int64_t)gmem_type_bytes(storage->type);
    if (bytes > left - 8) return gmem__legacy_fail(legacy, GMEM_E_TRUNCATED, legacy->at, "the file ends in a storage");
    storage->data = count + 8;
    legacy->at += 8 + bytes;
    return GMEM_OK;
}

static gmem_status gmem__legacy_storages(gmem__legacy *legacy, gmem__pickle *object, const gmem__pickle *keys) {
    const gmem__node list = gmem__pickle_node(keys, keys->root);
    if (list.kind != GMEM__KIND_LIST) {
        return gmem__legacy_fail(legacy, GMEM_E_LEGACY_HEADER, keys->start, "no list of storages");
    }
    for (uint32_t cell = list.as.list.first; cell; cell = gmem__pickle_cell(keys, cell)->next)
        GMEM__TRY(gmem__legacy_storage(legacy, object, keys, gmem__pickle_cell(keys, cell)->value));
    for (uint32_t i = 0; i < object->storages.count; i++) {
        const gmem__storage *storage = gmem__pickle_storage(object, i);
        if (!storage->data) {
            return gmem__legacy_fail(legacy, GMEM_E_STORAGE, object->start + storage->at, "a storage is not listed");
        }
    }
    if (legacy->at != legacy->file->bytes.size) {
        return gmem__legacy_fail(legacy, GMEM_E_PICKLE_TRAILING, legacy->at, "bytes after the last storage");
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__parse_torch_legacy(gmem_file *file, gmem_error *error) {
    gmem__legacy legacy = {file, error, 0};
    gmem__pickle object, keys;
    GMEM__TRY(gmem__legacy_header(&legacy));
    GMEM__TRY(gmem__legacy_pickle(&legacy, &object));
    gmem_status status = gmem__legacy_pickle(&legacy, &keys);
    if (status == GMEM_OK) {
        status = gmem__legacy_storages(&legacy, &object, &keys);
        gmem__pickle_free(&keys);
    }
    if (status == GMEM_OK) status = gmem__flatten_root(file, &object, error);
    gmem__pickle_free(&object);
    return status;
}
/* ---- src/file.c ---- */
/* Opening a checkpoint: which format it is, what the parser found, which dictionary of it loading uses. */

#include <stdio.h>

#define GMEM__FILE_MAX_COUNT   ((int64_t)1 << 30) /* of tensors, values, names: orders are int32 */
#define GMEM__FILE_MAX_FOREIGN 1000

/* memory of the file ---------------------------------------------------------------------------------------------- */

/* What a file makes its reader allocate stays in proportion to the file: no legitimate one comes near. */
GMEM__FN int gmem__file_may_hold(gmem_file *file, int64_t bytes) {
    int64_t limit = 7 << 17, scaled, held; /* a sixteenth and an eighth are left for the blocks' unused ends */
    if (gmem__mul(file->bytes.size, 15, &scaled)) limit += gmem__min(scaled, INT64_MAX / 2);
    if (!gmem__add(file->held, bytes, &held) || held > limit) {
        file->over_limit = 1;
        return 0;
    }
    file->held = held;
    return 1;
}

static void *gmem__file_take(gmem_file *file, int64_t count, size_t bytes, size_t align) {
    int64_t total;
    if (!gmem__mul(count, (int64_t)bytes, &total) || !gmem__file_may_hold(file, total)) return NULL;
    return gmem__blocks_take(file->context, &file->blocks, count, bytes, align);
}

GMEM__FN void *gmem__file_alloc(gmem_file *file, int64_t count, size_t bytes) {
    return gmem__file_take(file, count, bytes, 16);
}

GMEM__FN char *gmem__file_text(gmem_file *file, const char *text, int64_t bytes) {
    char *copy = (char *)gmem__file_take(file, bytes + 1, 1, 1);
    if (copy) memcpy(copy, text, (size_t)bytes);
    return copy;
}

GMEM__FN gmem_status gmem__file_no_memory(gmem_file *file, gmem_error *error) {
    if (file->over_limit)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1,
                             "its keys and values want more than 16 times the file's %lld bytes of memory",
                             (long long)file->bytes.size);
    return gmem__fail_at(error, GMEM_E_MEMORY, file->path, -1, "no memory for the file's keys and values");
}

/* Room for one more in an array of `count` items, which moves: for a moment it is held twice. */
static gmem_status gmem__file_grow(gmem_file *file, void **items, int64_t count, int64_t *capacity, size_t bytes,
                                   gmem_error *error) {
    int64_t more = *capacity / 2 + 8;
    if (count < *capacity) return GMEM_OK;
    if (count >= GMEM__FILE_MAX_COUNT)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1, "too many keys and values");
    if (!gmem__file_may_hold(file, (*capacity + more) * (int64_t)bytes)) return gmem__file_no_memory(file, error);
    void *larger = gmem__alloc_raw(file->context, *capacity + more, bytes);
    if (!larger) return gmem__file_no_memory(file, error);
    if (count) memcpy(larger, *items, (size_t)count * bytes);
    gmem__free(file->context, *items, *capacity, bytes);
    file->held -= *capacity * (int64_t)bytes;
    *items = larger;
    *capacity += more;
    return GMEM_OK;
}

/* the parsers' outputs -------------------------------------------------------------------------------------------- */

static gmem_status gmem__file_add_leaf(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    void *leaves = file->leaves;
    gmem_status status =
        gmem__file_grow(file, &leaves, file->leaf_count, &file->leaf_capacity, sizeof *file->leaves, error);
    file->leaves = (gmem__leaf *)leaves;
    if (status != GMEM_OK) return status;
    gmem__leaf *leaf = file->leaves + file->leaf_count++;
    leaf->tensor = entry->tensor;
    leaf->tensor.name = entry->key[0] ? entry->key : "tensor";
    leaf->nested = entry->nested;
    return GMEM_OK;
}

static gmem_status gmem__file_add_value(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    void *values = file->values;
    gmem_status status =
        gmem__file_grow(file, &values, file->value_count, &file->value_capacity, sizeof *file->values, error);
    file->values = (gmem__value *)values;
    if (status != GMEM_OK) return status;
    gmem__value *value = file->values + file->value_count++;
    value->key = entry->key;
    value->kind = (int32_t)entry->kind;
    value->nested = (int32_t)gmem__min(entry->nested, INT32_MAX);
    if (entry->kind == GMEM__ENTRY_NUMBER)
        value->as.number = entry->number;
    else
        value->as.string = entry->string;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__file_add(gmem_file *file, const gmem__entry *entry, gmem_error *error) {
    return entry->kind == GMEM__ENTRY_TENSOR ? gmem__file_add_leaf(file, entry, error)
                                             : gmem__file_add_value(file, entry, error);
}

GMEM__FN gmem_status gmem__file_add_foreign(gmem_file *file, const char *name, gmem_error *error) {
    for (int64_t i = 0; i < file->foreign_count; i++) {
        if (strcmp(file->foreign[i], name) == 0) return GMEM_OK;
    }
    if (file->foreign_count == GMEM__FILE_MAX_FOREIGN)
        return gmem__fail_at(error, GMEM_E_LIMIT, file->path, -1, "more than %d different foreign globals",
                             GMEM__FILE_MAX_FOREIGN);
    void *names = (void *)file->foreign;
    gmem_status status =
        gmem__file_grow(file, &names, file->foreign_count, &file->foreign_capacity, sizeof *file->foreign, error);
    file->foreign = (const char **)names;
    if (status == GMEM_OK) file->foreign[file->foreign_count++] = name;
    return status;
}

GMEM__FN gmem_status gmem__file_add_metadata(gmem_file *file, const char *key, const char *value, gmem_error *error) {
    void *pairs = (void *)file->metadata;
    gmem_status status = gmem__file_grow(file, &pairs, file->metadata_count, &file->metadata_capacity,
                                         2 * sizeof *file->metadata, error);
    file->metadata = (const char **)pairs;
    if (status != GMEM_OK) return status;
    file->metadata[2 * file->metadata_count] = key;
    file->metadata[2 * file->metadata_count + 1] = value;
    file->metadata_count++;
    return GMEM_OK;
}

/* sorting --------------------------------------------------------------------------------------------------------- */

typedef struct gmem__sorter {
    int32_t *order;
    int (*compare)(const void *user, int32_t a, int32_t b);
    const void *user;
} gmem__sorter;

/* Ties are broken by position, which makes the order stable. */
static int gmem__sort_less(const gmem__sorter *sorter, int64_t i, int64_t k) {
    int32_t a = sorter->order[i], b = sorter->order[k];
    int difference = sorter->compare(sorter->user, a, b);
    return difference < 0 || (difference == 0 && a < b);
}

static void gmem__sort_swap(const gmem__sorter *sorter, int64_t i, int64_t k) {
    int32_t kept = sorter->order[i];
    sorter->order[i] = sorter->order[k];
    sorter->order[k] = kept;
}

static void gmem__sort_sift(const gmem__sorter *sorter, int64_t root, int64_t count) {
    for (int64_t child = 2 * root + 1; child < count; root = child, child = 2 * root + 1) {
        if (child + 1 < count && gmem__sort_less(sorter, child, child + 1)) child++;
        if (!gmem__sort_less(sorter, root, child)) return;
        gmem__sort_swap(sorter, root, child);
    }
}

GMEM__FN void gmem__sort(int32_t *order, int64_t count, int (*compare)(const void *user, int32_t a, int32_t b),
                         const void *user) {
    gmem__sorter sorter = {order, compare, user};
    for (int64_t i = 0; i < count; i++)
        order[i] = (int32_t)i;
    for (int64_t i = count / 2 - 1; i >= 0; i--)
        gmem__sort_sift(&sorter, i, count);
    for (int64_t last = count - 1; last > 0; last--) {
        gmem__sort_swap(&sorter, 0, last);
        gmem__sort_sift(&sorter, 0, last);
    }
}

/* the selection --------------------------------------------------------------------------------------------------- */

/* The name of `key` within the dictionary (its dotted key, "" for the root), or NULL where it lies outside. What
 * stands at the dictionary's own key has the name "". */
static const char *gmem__name_within(const char *key, const char *dictionary) {
    size_t length = strlen(dictionary);
    if (length == 0) return key;
    if (strncmp(key, dictionary, length) != 0) return NULL;
    if (key[length] == 0) return key + length;
    return key[length] == '.' ? key + length + 1 : NULL;
}

/* Whether anything that loading could want lies in the dictionary: a tensor, or what should have been one. `nested`:
 * only in a real one, not below a name that merely has a dot in it. */
static int gmem__holds(const gmem_file *file, const char *dictionary, int nested) {
    int64_t least = nested ? (int64_t)strlen(dictionary) : 0;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const gmem__leaf *leaf = file->leaves + i;
        if (leaf->nested >= least && gmem__name_within(leaf->tensor.name, dictionary)) return 1;
    }
    for (int64_t i = 0; i < file->value_count; i++) {
        const gmem__value *value = file->values + i;
        const char *name = value->kind == GMEM__ENTRY_FOREIGN ? gmem__name_within(value->key, dictionary) : NULL;
        if (name && (value->nested >= least || !name[0])) return 1;
    }
    return 0;
}

static const char *const gmem__dictionaries[] = {"ema", "model", "state_dict", "network"};
#define GMEM__DICTIONARIES ((int)(sizeof gmem__dictionaries / sizeof gmem__dictionaries[0]))

/* safetensors know no dictionaries. Where every tensor's name begins with one of the four, as `gmem convert --key .`
 * writes them, the names stand for dictionaries all the same. */
static int gmem__stands_for_dictionaries(const gmem_file *file) {
    if (file->format != GMEM_SAFETENSORS) return 0;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        int inside = 0;
        for (int k = 0; k < GMEM__DICTIONARIES; k++) {
            const char *name = gmem__name_within(file->leaves[i].tensor.name, gmem__dictionaries[k]);
            inside |= name && name[0];
        }
        if (!inside) return 0;
    }
    return 1;
}

static const char *gmem__default_key(const gmem_file *file) {
    int nested = !gmem__stands_for_dictionaries(file);
    for (int k = 0; k < GMEM__DICTIONARIES; k++) {
        if (gmem__holds(file, gmem__dictionaries[k], nested)) return gmem__dictionaries[k];
    }
    return "";
}

/* "ema, model and 3 more": the first parts of the keys, for a message. */
static void gmem__list_keys(const gmem_file *file, gmem__quoted *out) {
    size_t used = 0;
    int64_t total = file->leaf_count + file->value_count;
    const char *last = "";
    size_t last_length = 0;
    out->text[0] = 0;
    for (int64_t i = 0; i < total; i++) {
        const char *key = i < file->leaf_count ? file->leaves[i].tensor.name : file->values[i - file->leaf_count].key;
        size_t length = strcspn(key, ".");
        if (length == 0 || (length == last_length && memcmp(key, last, length) == 0)) continue;
        gmem__quoted quoted, part;
        snprintf(part.text, sizeof part.text, "%.*s", (int)gmem__min((int64_t)length, 60), key);
        int written =
            snprintf(out->text + used, sizeof out->text - used, used ? ", %s" : "%s", gmem__quote(&quoted, part.text));
        if (written < 0 || (size_t)written + 6 > sizeof out->text - used) {
            snprintf(out->text + used, sizeof out->text - used, "%s", ", ...");
            return;
        }
        used += (size_t)written;
        last = key;
        last_length = length;
    }
}

/* The caller's key, checked. "." and "" are the root. */
static gmem_status gmem__check_key(gmem_file *file, const char *key, gmem_error *error) {
    gmem__quoted quoted, there;
    if (strcmp(key, ".") == 0) key = "";
    if (!gmem__holds(file, key, 0)) {
        for (int64_t i = 0; i < file->value_count; i++) {
            if (gmem__name_within(file->values[i].key, key))
                return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1, "%s holds no tensor",
                                     gmem__quote(&quoted, key));
        }
        gmem__list_keys(file, &there);
        return gmem__fail_at(error, GMEM_E_KEY, file->path, -1, "no key %s; there are: %s", gmem__quote(&quoted, key),
                             there.text);
    }
    file->key = gmem__file_text(file, key, (int64_t)strlen(key));
    return file->key ? GMEM_OK : gmem__file_no_memory(file, error);
}

/* Without what data-parallel and compiled models put before their names. */
static const char *gmem__strip_front(const char *name) {
    for (;;) {
        if (strncmp(name, "module.", 7) == 0)
            name += 7;
        else if (strncmp(name, "_orig_mod.", 10) == 0)
            name += 10;
        else
            return name;
    }
}

/* A compiled submodule has its mark in the middle. NULL: no memory. */
static const char *gmem__strip_name(gmem_file *file, const char *name) {
    static const char mark[] = "._orig_mod.";
    name = gmem__strip_front(name);
    if (!strstr(name, mark)) return name;
    char *copy = gmem__file_text(file, name, (int64_t)strlen(name));
    for (char *at = copy ? strstr(copy, mark) : NULL; at; at = strstr(at, mark)) {
        char *rest = at + sizeof mark - 2; /* its dot stays */
        memmove(at, rest, strlen(rest) + 1);
    }
    return copy;
}

static gmem_status gmem__select_leaves(gmem_file *file, gmem_error *error) {
    for (int64_t i = 0; i < file->leaf_count; i++)
        file->selected_count += gmem__name_within(file->leaves[i].tensor.name, file->key) != NULL;
    file->selected = (gmem_tensor *)gmem__file_alloc(file, file->selected_count, sizeof *file->selected);
    file->index = (int32_t *)gmem__file_alloc(file, file->selected_count, sizeof *file->index);
    if (!file->selected || !file->index) return gmem__file_no_memory(file, error);
    gmem_tensor *selected = file->selected;
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const char *name = gmem__name_within(file->leaves[i].tensor.name, file->key);
        if (!name) continue;
        *selected = file->leaves[i].tensor;
        selected->name = name[0] ? gmem__strip_name(file, name) : "tensor"; /* "": the key names a tensor */
        if (!selected->name) return gmem__file_no_memory(file, error);
        selected++;
    }
    return GMEM_OK;
}

static int gmem__compare_selected(const void *user, int32_t a, int32_t b) {
    const gmem_tensor *selected = (const gmem_tensor *)user;
    return strcmp(selected[a].name, selected[b].name);
}

/* Names must tell tensors apart, after the prefixes are gone too. */
static gmem_status gmem__index_names(gmem_file *file, gmem_error *error) {
    gmem__quoted quoted;
    gmem__sort(file->index, file->selected_count, gmem__compare_selected, file->selected);
    for (int64_t i = 1; i < file->selected_count; i++) {
        if (gmem__compare_selected(file->selected, file->index[i - 1], file->index[i]) == 0)
            return gmem__fail_at(error, GMEM_E_NAME, file->path, -1, "two tensors have the name %s",
                                 gmem__quote(&quoted, file->selected[file->index[i]].name));
    }
    return GMEM_OK;
}

/* The dictionary that loading uses is, or holds nothing but, what the file's own code would have to build. */
static gmem_status gmem__fail_inert(const gmem_file *file, gmem_error *error) {
    gmem__quoted key, culprit;
    const char *global = "";
    for (int64_t i = 0; i < file->value_count && !global[0]; i++) {
        const gmem__value *value = file->values + i;
        if (value->kind == GMEM__ENTRY_FOREIGN && gmem__name_within(value->key, file->key)) global = value->as.string;
    }
    return gmem__fail_at(error, GMEM_E_FOREIGN, file->path, -1,
                         "%s: only the file's own code could build it (%s), and none is run; choose another key",
                         gmem__quote(&key, file->key), gmem__quote(&culprit, global));
}

static gmem_status gmem__fail_empty(const gmem_file *file, gmem_error *error) {
    gmem__quoted culprit;
    if (file->foreign_count == 0) return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1, "it holds no tensor");
    return gmem__fail_at(error, GMEM_E_NO_TENSORS, file->path, -1,
                         "it holds no tensor, only what the file's own code would have to build (%s), and none is run",
                         gmem__quote(&culprit, file->foreign[0]));
}

static gmem_status gmem__select(gmem_file *file, const char *key, gmem_error *error) {
    if (file->leaf_count == 0) return gmem__fail_empty(file, error);
    if (key)
        GMEM__TRY(gmem__check_key(file, key, error));
    else
        file->key = gmem__default_key(file);
    GMEM__TRY(gmem__select_leaves(file, error));
    if (file->selected_count == 0) return gmem__fail_inert(file, error);
    return gmem__index_names(file, error);
}

/* opening --------------------------------------------------------------------------------------------------------- */

/* The contents decide, and one parser it is: nothing is tried a second time as something else. A safetensors header
 * may begin with a pickle's first byte, so its '{' is looked at before. */
static gmem_status gmem__detect(gmem_file *file, gmem_error *error) {
    const unsigned char *data = file->bytes.data;
    int64_t size = file->bytes.size;
    if (size < 8)
        return gmem__fail_at(error, GMEM_E_TRUNCATED, file->path, size, "the file ends too early: %lld bytes in all",
                             (long long)size);
    int brace = size > 8 && data[8] == '{';
    int small = (data[4] | data[5] | data[6] | data[7]) == 0 && data[3] < 6; /* as the length of a header */
    if (memcmp(data, "PK\3\4", 4) == 0 || memcmp(data, "PK\5\6", 4) == 0)
        file->format = GMEM_TORCH_ZIP;
    else if (data[0] == 0x80 && !(brace && small))
        file->format = GMEM_TORCH_LEGACY;
    else if (brace || small)
        file->format = GMEM_SAFETENSORS;
    else
        return gmem__fail_at(error, GMEM_E_FORMAT, file->path, 0, "neither a torch checkpoint nor safetensors");
    return GMEM_OK;
}

static gmem_status gmem__parse(gmem_file *file, gmem_error *error) {
    switch (file->format) {
    case GMEM_TORCH_ZIP:
        return gmem__parse_torch_zip(file, error);
    case GMEM_TORCH_LEGACY:
        return gmem__parse_torch_legacy(file, error);
    default:
        return gmem__parse_safetensors(file, error);
    }
}

/* Either way of opening: `bytes` belongs to the file from here on. */
static void gmem__log_opened(const gmem_file *file) {
    gmem__quoted path, key;
    gmem__log(file->context, "%s: %lld bytes, %s; %lld tensors%s%s", gmem__quote(&path, file->path),
              (long long)file->bytes.size, file->bytes.mapped ? "mapped" : "in memory", (long long)file->selected_count,
              file->key[0] ? " in " : "", gmem__quote(&key, file->key));
}

static gmem_status gmem__file_create(gmem_context *context, const char *path, gmem__bytes bytes, const char *key,
                                     gmem_file **out, gmem_error *error) {
    gmem_file *file = (gmem_file *)gmem__alloc(context, 1, sizeof *file);
    if (!file) {
        gmem__bytes_close(context, &bytes);
        return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory to open the file");
    }
    file->context = context;
    file->bytes = bytes;
    file->held = bytes.owned ? bytes.size : 0;
    file->key = "";
    file->path = (char *)gmem__blocks_take(context, &file->blocks, (int64_t)strlen(path) + 1, 1, 1);
    gmem_status status = GMEM_E_MEMORY;
    if (file->path) {
        memcpy(file->path, path, strlen(path));
        status = gmem__detect(file, error);
        if (status == GMEM_OK) status = gmem__parse(file, error);
        if (status == GMEM_OK) status = gmem__select(file, key, error);
        gmem__fail_in(error, status, path);
    } else {
        gmem__fail_at(error, status, path, -1, "no memory to open the file");
    }
    if (status != GMEM_OK) {
        gmem_file_close(file);
        return status;
    }
    gmem__log_opened(file);
    *out = file;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_file_open(gmem_context *context, const char *path, const char *key, gmem_file **out,
                                    gmem_error *error) {
    gmem__bytes bytes;
    if (!context || !path || !out)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and a place for the file are needed");
    GMEM__TRY(gmem__bytes_open(context, path, &bytes, error));
    return gmem__file_create(context, path, bytes, key, out, error);
}

GMEM_API gmem_status gmem_file_open_memory(gmem_context *context, const char *name, const void *data, size_t size,
                                           const char *key, gmem_file **out, gmem_error *error) {
    gmem__bytes bytes;
    if (!context || !out || (!data && size) || (uint64_t)size > INT64_MAX)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, the file's bytes and a place for the file are needed");
    memset(&bytes, 0, sizeof bytes);
    bytes.data = (const unsigned char *)data;
    bytes.size = (int64_t)size;
    return gmem__file_create(context, name ? name : "memory", bytes, key, out, error);
}

GMEM_API void gmem_file_close(gmem_file *file) {
    if (!file) return;
    const gmem_context *context = file->context;
    gmem__free(context, file->leaves, file->leaf_capacity, sizeof *file->leaves);
    gmem__free(context, file->values, file->value_capacity, sizeof *file->values);
    gmem__free(context, (void *)file->foreign, file->foreign_capacity, sizeof *file->foreign);
    gmem__free(context, (void *)file->metadata, file->metadata_capacity, 2 * sizeof *file->metadata);
    gmem__blocks_free(context, &file->blocks);
    gmem__bytes_close(context, &file->bytes);
    gmem__free(context, file, 1, sizeof *file);
}

GMEM__FN void gmem__file_discard(const gmem_file *file, const void *data, int64_t bytes) {
    const gmem_io *io = &file->context->io;
    const uintptr_t start = (uintptr_t)file->bytes.data, at = (uintptr_t)data;
    if (!file->bytes.mapped || !io->discard || at < start || at - start > (uintptr_t)file->bytes.size) return;
    if (bytes < 1 || bytes > file->bytes.size - (int64_t)(at - start)) return;
    io->discard(io->user, data, bytes);
}

/* answers --------------------------------------------------------------------------------------------------------- */

GMEM_API const char *gmem_file_path(const gmem_file *file) { return file->path; }
GMEM_API gmem_format gmem_file_format(const gmem_file *file) { return file->format; }
GMEM_API int64_t gmem_file_bytes(const gmem_file *file) { return file->bytes.size; }
GMEM_API const char *gmem_file_key(const gmem_file *file) { return file->key; }
GMEM_API int64_t gmem_file_tensor_count(const gmem_file *file) { return file->selected_count; }

GMEM_API const gmem_tensor *gmem_file_tensor(const gmem_file *file, int64_t index) {
    return index >= 0 && index < file->selected_count ? file->selected + index : NULL;
}

/* The first selected tensor, in the order of names, that doesn't stand before `name`; or NULL. */
static const gmem_tensor *gmem__first_from(const gmem_file *file, const char *name) {
    int64_t low = 0, high = file->selected_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (strcmp(file->selected[file->index[middle]].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < file->selected_count ? file->selected + file->index[low] : NULL;
}

GMEM_API const gmem_tensor *gmem_file_find(const gmem_file *file, const char *name) {
    const gmem_tensor *tensor = gmem__first_from(file, name);
    return tensor && strcmp(tensor->name, name) == 0 ? tensor : NULL;
}

GMEM__FN int gmem__file_has_prefix(const gmem_file *file, const char *prefix) {
    const gmem_tensor *tensor = gmem__first_from(file, prefix);
    return tensor && strncmp(tensor->name, prefix, strlen(prefix)) == 0;
}

GMEM_API const gmem_tensor *gmem_file_find_any(const gmem_file *file, const char *key) {
    for (int64_t i = 0; i < file->leaf_count; i++) {
        if (strcmp(file->leaves[i].tensor.name, key) == 0) return &file->leaves[i].tensor;
    }
    return NULL;
}

static const gmem__value *gmem__find_value(const gmem_file *file, const char *key, gmem__entry_kind kind) {
    for (int64_t i = 0; i < file->value_count; i++) {
        if (file->values[i].kind == (int32_t)kind && strcmp(file->values[i].key, key) == 0) return file->values + i;
    }
    return NULL;
}

GMEM_API int gmem_file_number(const gmem_file *file, const char *key, double *out) {
    const gmem__value *value = gmem__find_value(file, key, GMEM__ENTRY_NUMBER);
    if (value) *out = value->as.number;
    return value != NULL;
}

GMEM_API const char *gmem_file_string(const gmem_file *file, const char *key) {
    const gmem__value *value = gmem__find_value(file, key, GMEM__ENTRY_STRING);
    return value ? value->as.string : gmem_file_metadata(file, key);
}

GMEM_API const char *gmem_file_metadata(const gmem_file *file, const char *key) {
    for (int64_t i = 0; i < file->metadata_count; i++) {
        if (strcmp(file->metadata[2 * i], key) == 0) return file->metadata[2 * i + 1];
    }
    return NULL;
}

GMEM_API int64_t gmem_file_metadata_count(const gmem_file *file) { return file->metadata_count; }

GMEM_API void gmem_file_metadata_at(const gmem_file *file, int64_t index, const char **key, const char **value) {
    const int there = index >= 0 && index < file->metadata_count;
    *key = there ? file->metadata[2 * index] : NULL;
    *value = there ? file->metadata[2 * index + 1] : NULL;
}

GMEM_API int gmem_file_next_value(const gmem_file *file, int64_t *cursor, const char **key, double *number,
                                  const char **string) {
    while (*cursor >= 0 && *cursor < file->value_count) {
        const gmem__value *value = file->values + (*cursor)++;
        if (value->kind == GMEM__ENTRY_FOREIGN) continue;
        *key = value->key;
        *string = value->kind == GMEM__ENTRY_STRING ? value->as.string : NULL;
        if (value->kind == GMEM__ENTRY_NUMBER) *number = value->as.number;
        return 1;
    }
    return 0;
}

GMEM_API int64_t gmem_file_foreign_count(const gmem_file *file) { return file->foreign_count; }

GMEM_API const char *gmem_file_foreign(const gmem_file *file, int64_t index) {
    return index >= 0 && index < file->foreign_count ? file->foreign[index] : NULL;
}

GMEM_API int gmem_file_next_foreign(const gmem_file *file, int64_t *cursor, const char **key, const char **global) {
    while (*cursor >= 0 && *cursor < file->value_count) {
        const gmem__value *value = file->values + (*cursor)++;
        if (value->kind != GMEM__ENTRY_FOREIGN || !gmem__name_within(value->key, file->key)) continue;
        *key = value->key;
        *global = value->as.string;
        return 1;
    }
    return 0;
}

GMEM__FN const char *gmem__file_foreign_at(const gmem_file *file, const char *name) {
    for (int64_t i = 0; i < file->value_count; i++) {
        const gmem__value *value = file->values + i;
        const char *within = value->kind == GMEM__ENTRY_FOREIGN ? gmem__name_within(value->key, file->key) : NULL;
        if (within && (!within[0] || gmem__name_within(name, gmem__strip_front(within)))) return value->as.string;
    }
    return NULL;
}

#undef GMEM__FILE_MAX_COUNT
#undef GMEM__FILE_MAX_FOREIGN
#undef GMEM__DICTIONARIES
/* ---- src/save.c ---- */
/* Writing: a file is made under a temporary name beside its place, brought to disk and renamed, so it appears whole or
 * not at all; and safetensors in that way. */

#include <errno.h>
#include <stdio.h>

#define GMEM__SAVE_ALIGN   64
#define GMEM__SAVE_PREFIX  8
#define GMEM__SAVE_HEADER  100000000 /* what readers accept */
#define GMEM__SAVE_CHUNK   ((int64_t)1 << 18)
#define GMEM__SAVE_ATTEMPT 100

/* output files ---------------------------------------------------------------------------------------------------- */

typedef struct gmem__output {
    const gmem_context *context;
    const char *path;
    char *temporary; /* (path_bytes) beside path */
    int64_t path_bytes;
    void *file;
    gmem_error *error;
} gmem__output;

/* An existing target must be a regular file: a rename would put one in a device's place. Where it cannot be opened for
 * another reason, or isn't there, the rename will tell. */
static gmem_status gmem__output_check_target(const gmem__output *output) {
    const gmem_io *io = &output->context->io;
    gmem__io_forget();
    void *file = io->open(io->user, output->path, 0);
    if (file) {
        (void)io->close(io->user, file);
        return GMEM_OK;
    }
    int special = 0;
#ifdef EISDIR
    special |= errno == EISDIR;
#endif
#ifdef ESPIPE
    special |= errno == ESPIPE;
#endif
    if (!special && output->path[0]) return GMEM_OK;
    return gmem__fail_at(output->error, GMEM_E_OPEN, output->path, -1, "cannot write the file%s",
                         output->path[0] ? gmem__io_reason() : ": its path is empty");
}

/* Whether the last opening failed, or may have, because the file was there. */
static int gmem__output_name_taken(void) {
#ifdef EEXIST
    return errno == 0 || errno == EEXIST;
#else
    return 1;
#endif
}

static gmem_status gmem__output_create(gmem__output *output) {
    const gmem_io *io = &output->context->io;
    for (int attempt = 0; attempt < GMEM__SAVE_ATTEMPT; attempt++) {
        snprintf(output->temporary, (size_t)output->path_bytes, "%s.tmp%d", output->path, attempt);
        gmem__io_forget();
        output->file = io->open(io->user, output->temporary, 1);
        if (output->file) return GMEM_OK;
        if (!gmem__output_name_taken()) break;
    }
    return gmem__fail_at(output->error, GMEM_E_OPEN, output->path, -1, "cannot write beside it%s", gmem__io_reason());
}

static gmem_status gmem__output_open(gmem__output *output, const gmem_context *context, const char *path,
                                     gmem_error *error) {
    memset(output, 0, sizeof *output);
    output->context = context;
    output->path = path;
    output->error = error;
    GMEM__TRY(gmem__output_check_target(output));
    output->path_bytes = (int64_t)strlen(path) + 16;
    output->temporary = (char *)gmem__alloc(context, output->path_bytes, 1);
    if (!output->temporary) return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory to write the file");
    gmem_status status = gmem__output_create(output);
    if (status != GMEM_OK) gmem__free(context, output->temporary, output->path_bytes, 1);
    return status;
}

static gmem_status gmem__output_write(gmem__output *output, const void *from, int64_t bytes) {
    const gmem_io *io = &output->context->io;
    for (int64_t done = 0; done < bytes;) {
        gmem__io_forget();
        int64_t count = io->write(io->user, output->file, (const char *)from + done, bytes - done);
        if (count <= 0 || count > bytes - done)
            return gmem__fail_at(output->error, GMEM_E_WRITE, output->path, -1, "cannot write the file%s",
                                 gmem__io_reason());
        done += count;
    }
    return GMEM_OK;
}

/* Syncs, closes, renames. The file is closed in any case. */
static gmem_status gmem__output_finish(gmem__output *output) {
    const gmem_io *io = &output->context->io;
    gmem__io_forget();
    if (io->sync(io->user, output->file) != 0)
        return gmem__fail_at(output->error, GMEM_E_SYNC, output->path, -1, "cannot bring the file to disk%s",
                             gmem__io_reason());
    void *file = output->file;
    output->file = NULL;
    gmem__io_forget();
    if (io->close(io->user, file) != 0)
        return gmem__fail_at(output->error, GMEM_E_WRITE, output->path, -1, "cannot write the file%s",
                             gmem__io_reason());
    gmem__io_forget();
    if (io->rename(io->user, output->temporary, output->path) != 0)
        return gmem__fail_at(output->error, GMEM_E_RENAME, output->path, -1,
                             "cannot put the finished file in its place%s", gmem__io_reason());
    return GMEM_OK;
}

/* Ends what gmem__output_open began: finishes the file, or removes it where `status` is a failure or becomes one. */
static gmem_status gmem__output_close(gmem__output *output, gmem_status status) {
    const gmem_io *io = &output->context->io;
    if (status == GMEM_OK) status = gmem__output_finish(output);
    if (status != GMEM_OK) {
        if (output->file) (void)io->close(io->user, output->file);
        (void)io->remove(io->user, output->temporary);
    }
    gmem__free(output->context, output->temporary, output->path_bytes, 1);
    return status;
}

GMEM_API gmem_status gmem_save_bytes(gmem_context *context, const char *path, const void *data, size_t bytes,
                                     gmem_error *error) {
    gmem__output output;
    if (!context || !path || (!data && bytes) || (uint64_t)bytes > INT64_MAX)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and the bytes to write are needed");
    GMEM__TRY(gmem__output_open(&output, context, path, error));
    return gmem__output_close(&output, gmem__output_write(&output, data, (int64_t)bytes));
}

/* the header ------------------------------------------------------------------------------------------------------ */

/* Text that is counted first (out NULL) and written in a second run. */
typedef struct gmem__header {
    char *out;
    int64_t used;
} gmem__header;

static void gmem__header_add(gmem__header *header, const char *text, int64_t bytes) {
    if (header->out) memcpy(header->out + header->used, text, (size_t)bytes);
    header->used += bytes;
}

static void gmem__header_text(gmem__header *header, const char *text) {
    gmem__header_add(header, text, (int64_t)strlen(text));
}

static void gmem__header_int(gmem__header *header, int64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    gmem__header_text(header, digits);
}

static void gmem__header_string(gmem__header *header, const char *text) {
    gmem__header_text(header, "\"");
    for (; *text; text++) {
        char escape[8];
        if ((unsigned char)*text < 0x20)
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)(unsigned char)*text);
        else
            snprintf(escape, sizeof escape, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
        gmem__header_text(header, escape);
    }
    gmem__header_text(header, "\"");
}

static void gmem__header_metadata(gmem__header *header, const gmem_save_desc *desc) {
    gmem__header_text(header, "\"__metadata__\":{");
    for (int64_t i = 0; i < desc->metadata_count; i++) {
        if (i) gmem__header_text(header, ",");
        gmem__header_string(header, desc->metadata[2 * i]);
        gmem__header_text(header, ":");
        gmem__header_string(header, desc->metadata[2 * i + 1]);
    }
    gmem__header_text(header, "}");
}

static void gmem__header_tensor(gmem__header *header, const gmem_tensor *tensor, int64_t begin) {
    int64_t bytes = gmem_tensor_count(tensor) * (int64_t)gmem_type_bytes(tensor->type);
    gmem__header_string(header, tensor->name);
    gmem__header_text(header, ":{\"dtype\":\"");
    gmem__header_text(header, gmem_type_name(tensor->type));
    gmem__header_text(header, "\",\"shape\":[");
    for (int i = 0; i < tensor->rank; i++) {
        if (i) gmem__header_text(header, ",");
        gmem__header_int(header, tensor->shape[i]);
    }
    gmem__header_text(header, "],\"data_offsets\":[");
    gmem__header_int(header, begin);
    gmem__header_text(header, ",");
    gmem__header_int(header, begin + bytes);
    gmem__header_text(header, "]}");
}

/* safetensors ----------------------------------------------------------------------------------------------------- */

typedef struct gmem__saver {
    const gmem_context *context;
    const gmem_save_desc *desc;
    gmem_error *error;
    int32_t *order; /* (count) the tensors in the order of their names, then of their data */
    int64_t *begin; /* (count) where a tensor's data lies, from the header's end */
} gmem__saver;

static gmem_status gmem__save_check_text(const gmem__saver *saver, const char *text) {
    gmem__quoted quoted;
    if (!text) return gmem__fail(saver->error, GMEM_E_ARGUMENT, "a name or a text is missing");
    if (gmem__utf8_error(text, (int64_t)strlen(text)) >= 0)
        return gmem__fail(saver->error, GMEM_E_NAME, "%s is not UTF-8", gmem__quote(&quoted, text));
    return GMEM_OK;
}

static gmem_status gmem__save_check_tensor(const gmem__saver *saver, const gmem_tensor *tensor, int64_t *total) {
    gmem__quoted quoted;
    GMEM__TRY(gmem__save_check_text(saver, tensor->name));
    if (strcmp(tensor->name, "__metadata__") == 0)
        return gmem__fail(saver->error, GMEM_E_NAME, "no tensor may be named __metadata__");
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type);
    int fits = bytes != 0 && tensor->rank >= 0 && tensor->rank <= GMEM_MAX_RANK;
    for (int i = 0; fits && i < tensor->rank; i++)
        fits = gmem__mul(bytes, tensor->shape[i], &bytes);
    if (!fits || !gmem__add(*total, bytes, total))
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "%s: no such type, rank or size",
                          gmem__quote(&quoted, tensor->name));
    if (!tensor->data && bytes && !saver->desc->fill)
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "%s: no data", gmem__quote(&quoted, tensor->name));
    return GMEM_OK;
}

static int gmem__save_compare_names(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return strcmp(desc->tensors[a].name, desc->tensors[b].name);
}

static int gmem__save_compare_keys(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return strcmp(desc->metadata[2 * (int64_t)a], desc->metadata[2 * (int64_t)b]);
}

/* Wider elements first: data that begins aligned stays so, whatever the names. */
static int gmem__save_compare_widths(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return (int)gmem_type_bytes(desc->tensors[b].type) - (int)gmem_type_bytes(desc->tensors[a].type);
}

static gmem_status gmem__save_check_unique(const gmem__saver *saver, int64_t count,
                                           int (*compare)(const void *user, int32_t a, int32_t b)) {
    gmem__sort(saver->order, count, compare, saver->desc);
    for (int64_t i = 1; i < count; i++) {
        if (compare(saver->desc, saver->order[i - 1], saver->order[i]) == 0)
            return gmem__fail(saver->error, GMEM_E_NAME, "a name of a tensor or of metadata stands twice");
    }
    return GMEM_OK;
}

static gmem_status gmem__save_check(const gmem__saver *saver) {
    const gmem_save_desc *desc = saver->desc;
    int64_t total = 0;
    for (int64_t i = 0; i < desc->count; i++)
        GMEM__TRY(gmem__save_check_tensor(saver, desc->tensors + i, &total));
    for (int64_t i = 0; i < 2 * desc->metadata_count; i++)
        GMEM__TRY(gmem__save_check_text(saver, desc->metadata[i]));
    GMEM__TRY(gmem__save_check_unique(saver, desc->metadata_count, gmem__save_compare_keys));
    return gmem__save_check_unique(saver, desc->count, gmem__save_compare_names);
}

static void gmem__save_lay_out(const gmem__saver *saver) {
    int64_t at = 0;
    gmem__sort(saver->order, saver->desc->count, gmem__save_compare_widths, saver->desc);
    for (int64_t i = 0; i < saver->desc->count; i++) {
        const gmem_tensor *tensor = saver->desc->tensors + saver->order[i];
        saver->begin[saver->order[i]] = at;
        at += gmem_tensor_count(tensor) * (int64_t)gmem_type_bytes(tensor->type);
    }
}

static void gmem__save_print_header(const gmem__saver *saver, gmem__header *header) {
    const gmem_save_desc *desc = saver->desc;
    header->used = GMEM__SAVE_PREFIX;
    gmem__header_text(header, "{");
    if (desc->metadata_count) gmem__header_metadata(header, desc);
    for (int64_t i = 0; i < desc->count; i++) {
        if (i || desc->metadata_count) gmem__header_text(header, ",");
        gmem__header_tensor(header, desc->tensors + i, saver->begin[i]);
    }
    gmem__header_text(header, "}");
    while (header->used % GMEM__SAVE_ALIGN != 0)
        gmem__header_text(header, " ");
}

static gmem_status gmem__save_header(const gmem__saver *saver, gmem__output *output) {
    gmem__header header = {NULL, 0};
    gmem__save_print_header(saver, &header);
    int64_t bytes = header.used, length = bytes - GMEM__SAVE_PREFIX;
    if (length > GMEM__SAVE_HEADER)
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "names and metadata need a header of more than %d bytes",
                          GMEM__SAVE_HEADER);
    header.out = (char *)gmem__alloc(saver->context, bytes, 1);
    if (!header.out) return gmem__fail(saver->error, GMEM_E_MEMORY, "no memory for the header");
    gmem__save_print_header(saver, &header);
    for (int i = 0; i < GMEM__SAVE_PREFIX; i++)
        header.out[i] = (char)(unsigned char)((uint64_t)length >> (8 * i) & 255u);
    gmem_status status = gmem__output_write(output, header.out, bytes);
    gmem__free(saver->context, header.out, bytes, 1);
    return status;
}

static gmem_status gmem__save_fill(const gmem__saver *saver, int64_t index, int64_t first, int64_t count, void *out) {
    gmem_error own = gmem__callback_error();
    gmem_status status = saver->desc->fill(saver->desc->fill_user, index, first, count, out, &own);
    return gmem__fail_callback(saver->error, status, &own, "the function that fills tensors");
}

static gmem_status gmem__save_data(const gmem__saver *saver, int64_t index, unsigned char *chunk,
                                   gmem__output *output) {
    const gmem_tensor *tensor = saver->desc->tensors + index;
    int64_t total = gmem_tensor_count(tensor), width = (int64_t)gmem_type_bytes(tensor->type);
    if (tensor->data && gmem__tensor_is_contiguous(tensor))
        return gmem__output_write(output, tensor->data, total * width);
    for (int64_t first = 0; first < total;) {
        int64_t count = gmem__min(total - first, GMEM__SAVE_CHUNK / width);
        if (tensor->data)
            gmem_tensor_read(tensor, first, count, chunk);
        else
            GMEM__TRY(gmem__save_fill(saver, index, first, count, chunk));
        GMEM__TRY(gmem__output_write(output, chunk, count * width));
        first += count;
    }
    return GMEM_OK;
}

static gmem_status gmem__save_contents(const gmem__saver *saver, gmem__output *output) {
    GMEM__TRY(gmem__save_header(saver, output));
    unsigned char *chunk = (unsigned char *)gmem__alloc_raw(saver->context, GMEM__SAVE_CHUNK, 1);
    if (!chunk) return gmem__fail(saver->error, GMEM_E_MEMORY, "no memory to write the file");
    gmem_status status = GMEM_OK;
    for (int64_t i = 0; i < saver->desc->count && status == GMEM_OK; i++)
        status = gmem__save_data(saver, saver->order[i], chunk, output);
    gmem__free(saver->context, chunk, GMEM__SAVE_CHUNK, 1);
    return status;
}

static gmem_status gmem__save_file(const gmem__saver *saver, const char *path) {
    gmem__output output;
    GMEM__TRY(gmem__save_check(saver));
    gmem__save_lay_out(saver);
    GMEM__TRY(gmem__output_open(&output, saver->context, path, saver->error));
    return gmem__output_close(&output, gmem__save_contents(saver, &output));
}

GMEM_API gmem_status gmem_save(gmem_context *context, const char *path, const gmem_save_desc *desc, gmem_error *error) {
    gmem__saver saver;
    if (!context || !path || !desc || desc->count < 0 || desc->count > INT32_MAX || desc->metadata_count < 0 ||
        desc->metadata_count > INT32_MAX || (desc->count && !desc->tensors) ||
        (desc->metadata_count && !desc->metadata))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and what to save are needed");
    saver.context = context;
    saver.desc = desc;
    saver.error = error;
    int64_t names = gmem__max(desc->count, desc->metadata_count);
    saver.order = (int32_t *)gmem__alloc(context, names, sizeof *saver.order);
    saver.begin = (int64_t *)gmem__alloc(context, desc->count, sizeof *saver.begin);
    gmem_status status = saver.order && saver.begin ? gmem__save_file(&saver, path)
                                                    : gmem__fail(error, GMEM_E_MEMORY, "no memory to write the file");
    gmem__free(context, saver.order, names, sizeof *saver.order);
    gmem__free(context, saver.begin, desc->count, sizeof *saver.begin);
    return gmem__fail_in(error, status, path);
}

#undef GMEM__SAVE_ALIGN
#undef GMEM__SAVE_PREFIX
#undef GMEM__SAVE_HEADER
#undef GMEM__SAVE_CHUNK
#undef GMEM__SAVE_ATTEMPT
/* ---- src/weights.c ---- */
/* What a model takes from its file: matrices and f32 vectors stay where they lie, so that opening touches none of them;
 * what has another layout or type is copied to f32. */

GMEM__FN void *gmem__store_alloc(gmem__store *store, int64_t count, size_t bytes) {
    return gmem__blocks_take(store->context, &store->blocks, count, bytes, 64);
}

GMEM__FN void gmem__store_free(gmem__store *store) { gmem__blocks_free(store->context, &store->blocks); }

static gmem_status gmem__store_no_memory(const gmem__store *store, const char *name, gmem_error *error) {
    gmem__quoted quoted;
    return gmem__fail_at(error, GMEM_E_MEMORY, gmem_file_path(store->file), -1, "%s: no memory for the weights",
                         gmem__quote(&quoted, name));
}

static void gmem__store_count(gmem__store *store, const gmem_tensor *tensor, int parameters) {
    int64_t count = gmem_tensor_count(tensor);
    if (parameters) store->parameters += count;
    store->bytes += count * (int64_t)gmem_type_bytes(tensor->type);
}

static int gmem__is_f32_array(const gmem_tensor *tensor) {
    return tensor->type == GMEM_F32 && gmem__tensor_is_contiguous(tensor) &&
           (uintptr_t)tensor->data % sizeof(float) == 0;
}

/* The whole tensor in f32, its rows multiplied by `scale` (rows) where that is not NULL: a copy, unless the file holds
 * just that. */
static gmem_status gmem__store_f32(gmem__store *store, const gmem_tensor *tensor, int64_t rows, const float *scale,
                                   const float **out, gmem_error *error) {
    int64_t count = gmem_tensor_count(tensor);
    if (!scale && gmem__is_f32_array(tensor)) {
        *out = (const float *)tensor->data;
        return GMEM_OK;
    }
    float *copy = (float *)gmem__store_alloc(store, count, sizeof *copy);
    if (!copy) return gmem__store_no_memory(store, tensor->name, error);
    gmem_tensor_read_f32(tensor, 0, count, copy);
    for (int64_t i = 0; scale && i < count; i++)
        copy[i] *= scale[i / (count / rows)];
    *out = copy;
    return GMEM_OK;
}

/* The scales (rows) of an I8 tensor, NULL for other types. */
static gmem_status gmem__store_scale(gmem__store *store, const gmem_tensor *tensor, int64_t rows, const float **out,
                                     gmem_error *error) {
    gmem__quoted quoted;
    *out = NULL;
    if (tensor->type != GMEM_I8) return GMEM_OK;
    const gmem_tensor *scale = gmem__find_scale(store->file, tensor->name); /* gmem__need has seen it */
    GMEM__TRY(gmem__need(store->file, scale->name, 1, &rows, &scale, error));
    if (scale->type == GMEM_I8)
        return gmem__fail_at(error, GMEM_E_TYPE, gmem_file_path(store->file), -1,
                             "%s: expected floating point, found I8", gmem__quote(&quoted, scale->name));
    GMEM__TRY(gmem__store_f32(store, scale, rows, NULL, out, error));
    gmem__store_count(store, scale, 0);
    return GMEM_OK;
}

/* Whether a row's elements, all dimensions but the first, lie side by side. */
static int gmem__has_contiguous_rows(const gmem_tensor *tensor) {
    gmem_tensor row = *tensor;
    if (row.shape[0] > 1) row.shape[0] = 1;
    return gmem__tensor_is_contiguous(&row);
}

/* `tensor`, whose shape has been checked, as a matrix (rows, cols). */
static gmem_status gmem__store_rows(gmem__store *store, const gmem_tensor *tensor, int64_t rows, int64_t cols,
                                    gmem__weight *out, gmem_error *error) {
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.rows = rows;
    weight.cols = cols;
    GMEM__TRY(gmem__store_scale(store, tensor, rows, &weight.scale, error));
    if (tensor->type != GMEM_F64 && gmem__has_contiguous_rows(tensor)) {
        weight.type = tensor->type;
        weight.data = tensor->data;
        weight.row_stride = rows == 1 ? cols : tensor->stride[0];
    } else {
        const float *copy = NULL;
        GMEM__TRY(gmem__store_f32(store, tensor, rows, weight.scale, &copy, error));
        weight.type = GMEM_F32;
        weight.scale = NULL;
        weight.data = copy;
        weight.row_stride = cols;
    }
    gmem__store_count(store, tensor, 1);
    *out = weight;
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__store_matrix(gmem__store *store, const char *name, int64_t rows, int64_t cols,
                                        gmem__weight *out, gmem_error *error) {
    int64_t shape[2];
    const gmem_tensor *tensor;
    shape[0] = rows;
    shape[1] = cols;
    GMEM__TRY(gmem__need(store->file, name, 2, shape, &tensor, error));
    return gmem__store_rows(store, tensor, rows, cols, out, error);
}

GMEM__FN gmem_status gmem__store_conv(gmem__store *store, const char *name, int64_t out_channels, int64_t in_channels,
                                      int64_t kernel, gmem__weight *out, gmem_error *error) {
    int64_t shape[4];
    const gmem_tensor *tensor;
    shape[0] = out_channels;
    shape[1] = in_channels;
    shape[2] = shape[3] = kernel;
    GMEM__TRY(gmem__need(store->file, name, 4, shape, &tensor, error));
    return gmem__store_rows(store, tensor, out_channels, in_channels * kernel * kernel, out, error);
}

GMEM__FN gmem_status gmem__store_vector(gmem__store *store, const char *name, int64_t count, const float **out,
                                        gmem_error *error) {
    const gmem_tensor *tensor;
    const float *scale;
    GMEM__TRY(gmem__need(store->file, name, 1, &count, &tensor, error));
    GMEM__TRY(gmem__store_scale(store, tensor, count, &scale, error));
    GMEM__TRY(gmem__store_f32(store, tensor, count, scale, out, error));
    gmem__store_count(store, tensor, 1);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__store_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute, int swiglu,
                                        gmem_error *error) {
    weight->compute = compute;
    const int64_t bytes = gmem__cpu_packed_bytes(store->context, weight, swiglu, &weight->compute);
    if (bytes == 0) return GMEM_OK;
    void *memory = gmem__blocks_take_raw(store->context, &store->blocks, bytes);
    weight->packed = (gmem__packed *)gmem__store_alloc(store, 1, sizeof *weight->packed);
    if (!memory || !weight->packed)
        return gmem__fail_at(error, GMEM_E_MEMORY, store->file ? gmem_file_path(store->file) : NULL, -1,
                             "no memory for the weights in the kernel's order: %lld bytes", (long long)bytes);
    gmem__cpu_packed_place(store->context, weight, swiglu, memory, weight->packed);
    weight->packed->file = store->file;
    return GMEM_OK;
}

/* ... through the operations ... */
/* ---- backends/cpu/pack.c ---- */
/* The GEMM's right operand, cut into panels that a micro-kernel reads from front to back: columns of a matrix, or the
 * patches of an image under a convolution (im2col, one block at a time). */
/* ---- backends/cpu/cpu.h ---- */
/* The CPU backend's inside: what the drivers (cpu.c) ask of an instruction set (scalar*.c, avx2.c, avx512.c). A driver
 * cuts an operation into tasks and runs them on its threads; a kernel does one task on one thread. */
#ifndef GMEM__CPU_H
#define GMEM__CPU_H


/* Function-wise target regions, as gcc and clang have them, make -march flags unnecessary. */
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(GMEM_NO_SIMD)
#define GMEM__X86 1
/* Weights lie at any address of a mapping. */
typedef float gmem__unaligned_f32 __attribute__((aligned(1), may_alias));
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
    int64_t rows, depth, columns;
    /* epilogue: y = residual + gate * activation(W x + bias) */
    const float *bias; /* (rows) or NULL */
    gmem__activation activation;
    const float *gate; /* (samples, rows) or NULL */
    int64_t gate_stride, tokens;
    const float *residual; /* like y, may be y; or NULL */
    float *y;              /* (rows, columns), or (rows / 2, columns) for SWIGLU; rows y_stride apart */
    int64_t y_stride;
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

struct gmem__narrow;

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
     * whole panels. scale (columns), int8 only: max |x| / 127 of each column. */
    void (*panels)(const struct gmem__narrow *narrow, const float *x, int64_t stride, int64_t depth, int64_t words,
                   int64_t columns, uint32_t *panels, int64_t panel_step, float *scale);
    /* int8: sums (count, whole vectors) in place to floats: (sum - offset) * row_scale * scale (count). */
    void (*dequantise)(void *sums, int64_t count, int32_t offset, float row_scale, const float *scale);
} gmem__narrow_rows;

typedef struct gmem__kernels {
    int64_t mr, nr; /* rows and columns of the GEMM's micro-kernel */
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

    /* Row i of a tile from the product to y: activation, gate, residual. up: where SWIGLU's second half begins. */
    void (*finish_row)(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up, float *product);
    /* x (count) to the nearest bf16 values, in place. */
    void (*round_bf16)(float *x, int64_t count);
    const gmem__narrow_rows *(*narrow)(void);
    /* Like attention, by the products of a bf16 kernel; gmem__narrow_attention_floats of scratch. Or NULL. */
    void (*narrow_attention)(const struct gmem__narrow *narrow, const gmem__attention *op, int64_t sample, int64_t head,
                             int64_t begin, int64_t end, float *scratch);
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

#endif /* GMEM__CPU_H */

/* Columns [lane, lane + count) of one row of the panels: `out` is the row's first column in the first panel. */
static void gmem__pack_row(float *out, int64_t panel_step, int64_t nr, int64_t lane, const float *x, int64_t count) {
    while (count > 0) {
        const int64_t lanes = gmem__min(nr - lane, count);
        if (lanes % 16 == 0) { /* the rule, and inlined */
            for (int64_t i = 0; i < lanes; i += 16)
                memcpy(out + lane + i, x + i, 16 * sizeof *x);
        } else {
            memcpy(out + lane, x, (size_t)lanes * sizeof *x);
        }
        x += lanes;
        count -= lanes;
        out += panel_step;
        lane = 0;
    }
}

static void gmem__pack_matrix(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns,
                              int64_t nr, int64_t panel_step, float *panels) {
    for (int64_t i = 0; i < depth; i++)
        gmem__pack_row(panels + i * nr, panel_step, nr, 0, gemm->x + (k + i) * gemm->x_stride + column, columns);
}

/* `count` neighbouring pixels of input row `row`, from `x` on, as the kernel sees them: doubled where conv->upsample,
 * zero outside. Where they lie, or copied to `line`. The next channel's are asked for: they are a plane away. */
static const float *gmem__pack_line(const gmem__conv *conv, int64_t channel, int64_t row, int64_t x, int64_t count,
                                    float *line) {
    const int64_t height = conv->height << conv->upsample, width = conv->width << conv->upsample;
    const int inside = row >= 0 && row < height;
    const float *pixels = conv->x + (channel * conv->height + (inside ? row >> conv->upsample : 0)) * conv->width;
    const int64_t begin = inside ? gmem__min(count, gmem__max(0, -x)) : count;
    const int64_t end = gmem__max(begin, gmem__min(count, width - x));
    if (inside && channel + 1 < conv->in_channels) {
        const float *next = pixels + conv->height * conv->width + x;
        for (int64_t i = 0; i < count; i += 16)
            GMEM__PREFETCH(next + i);
    }
    if (begin == 0 && end == count && !conv->upsample) return pixels + x;
    for (int64_t i = 0; i < begin; i++)
        line[i] = 0;
    if (conv->upsample) {
        for (int64_t i = begin; i < end; i++)
            line[i] = pixels[(x + i) >> 1];
    } else {
        memcpy(line + begin, pixels + x + begin, (size_t)(end - begin) * sizeof *line);
    }
    for (int64_t i = end; i < count; i++)
        line[i] = 0;
    return line;
}

/* The taps [k, k + depth) over `count` neighbouring pixels of one output row, which are the panels' columns from
 * `lane` on. Whole rows at a time, as the planes of an image are apart by powers of two and evict each other. */
static void gmem__pack_pixels(const gmem__conv *conv, int64_t k, int64_t depth, int64_t out_row, int64_t out_x,
                              int64_t count, int64_t lane, int64_t nr, int64_t panel_step, float *panels) {
    const int64_t kernel = conv->kernel, stride = conv->stride, pad = kernel == 3 && stride == 1;
    int64_t channel = k / (kernel * kernel), ky = k / kernel % kernel, kx = k % kernel;
    const float *line = NULL;
    float buffer[2 * GMEM__NC + 3], skipped[GMEM__NC];
    for (int64_t i = 0; i < depth; i++) {
        if (!line)
            line = gmem__pack_line(conv, channel, out_row * stride + ky - pad, out_x * stride - pad,
                                   (count - 1) * stride + kernel, buffer);
        const float *pixels = line + kx;
        if (stride > 1) {
            for (int64_t j = 0; j < count; j++)
                skipped[j] = pixels[j * stride];
            pixels = skipped;
        }
        gmem__pack_row(panels + i * nr, panel_step, nr, lane, pixels, count);
        if (++kx < kernel) continue;
        line = NULL;
        kx = 0;
        if (++ky == kernel) ky = 0, channel++;
    }
}

static void gmem__pack_image(const gmem__conv *conv, int64_t k, int64_t depth, int64_t column, int64_t columns,
                             int64_t nr, int64_t panel_step, float *panels) {
    const int64_t out_width = (conv->width << conv->upsample) / conv->stride;
    for (int64_t done = 0, count; done < columns; done += count) { /* up to the end of each output row */
        const int64_t x = (column + done) % out_width;
        count = gmem__min(gmem__min(columns - done, GMEM__NC), out_width - x);
        gmem__pack_pixels(conv, k, depth, (column + done) / out_width, x, count, done % nr, nr, panel_step,
                          panels + done / nr * panel_step);
    }
}

GMEM__FN void gmem__pack(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns, int64_t nr,
                         int64_t panel_step, float *panels) {
    const int64_t rest = columns % nr;
    if (gemm->conv)
        gmem__pack_image(gemm->conv, k, depth, column, columns, nr, panel_step, panels);
    else
        gmem__pack_matrix(gemm, k, depth, column, columns, nr, panel_step, panels);
    for (int64_t i = 0; rest && i < depth; i++)
        memset(panels + columns / nr * panel_step + i * nr + rest, 0, (size_t)(nr - rest) * sizeof *panels);
}
/* ---- backends/cpu/scalar.c ---- */
/* The portable GEMM, for processors without a vector version and as the reference of those that have one. Plain loops
 * of constant length, which compilers vectorise for what every processor of an architecture has. */

#include <math.h>

#define GMEM__SCALAR_NR 32

/* weight[row][k .. k + count) as floats. */
GMEM__FN void gmem__scalar_weights(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    const unsigned char *data = (const unsigned char *)weight->data;
    const int64_t first = row * weight->row_stride + k;
    uint16_t half;
    switch (weight->type) {
    case GMEM_F16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + (first + i) * 2, sizeof half);
            out[i] = gmem__f16_to_f32(half);
        }
        break;
    case GMEM_BF16:
        for (int64_t i = 0; i < count; i++) {
            memcpy(&half, data + (first + i) * 2, sizeof half);
            out[i] = gmem__bf16_to_f32(half);
        }
        break;
    case GMEM_I8:
        for (int64_t i = 0; i < count; i++)
            out[i] = weight->scale[row] * (float)(signed char)data[first + i];
        break;
    default:
        memcpy(out, data + first * 4, (size_t)count * sizeof *out);
    }
}

/* sum (nr) += w (depth) * panel (depth, nr) */
static void gmem__scalar_dot(const float *w, const float *panel, int64_t depth, float *sum) {
    float local[GMEM__SCALAR_NR] = {0};
    for (int64_t k = 0; k < depth; k++, panel += GMEM__SCALAR_NR)
        for (int c = 0; c < GMEM__SCALAR_NR; c++)
            local[c] += w[k] * panel[c];
    for (int c = 0; c < GMEM__SCALAR_NR; c++)
        sum[c] += local[c];
}

static float gmem__scalar_activate(gmem__activation activation, float x) {
    switch (activation) {
    case GMEM__ACT_SILU:
    case GMEM__ACT_SWIGLU:
        return x / (1 + expf(-x));
    case GMEM__ACT_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    case GMEM__ACT_GELU_ERF:
        return 0.5f * x * (1 + erff(x * 0.7071067812f));
    default:
        return x;
    }
}

/* Row i of a tile from the product's rows, GMEM__NC floats apart, to y. */
static void gmem__scalar_finish_row(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up_row,
                                    float *product) {
    const int swiglu = gemm->activation == GMEM__ACT_SWIGLU;
    const int64_t row = tile->row + i, first = row * gemm->y_stride + tile->column;
    const float *sums = product + i * GMEM__NC, *up = product + (up_row + i) * GMEM__NC;
    const float bias = gemm->bias ? gemm->bias[row] : 0;
    const float up_bias = gemm->bias && swiglu ? gemm->bias[row + gemm->rows / 2] : 0;
    for (int64_t c = 0; c < tile->columns; c++) {
        float value = gmem__scalar_activate(gemm->activation, sums[c] + bias);
        if (swiglu) value *= up[c] + up_bias;
        if (gemm->gate) value *= gemm->gate[(tile->column + c) / gemm->tokens * gemm->gate_stride + row];
        if (gemm->residual) value += gemm->residual[first + c];
        gemm->y[first + c] = value;
    }
}

static void gmem__scalar_round_bf16(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        x[i] = gmem__bf16_to_f32(gmem__f32_to_bf16(x[i]));
}

static void gmem__scalar_gemm(const gmem__gemm *gemm, const gmem__tile *tile, const float *panels, float *scratch) {
    const int64_t rows = gmem__tile_rows(gemm, tile), nr = GMEM__SCALAR_NR;
    float *product = scratch;                   /* (rows, GMEM__NC) */
    float *own = product + GMEM__MC * GMEM__NC; /* panels of one block of the depth */
    float *weights = own + GMEM__KC * GMEM__NC; /* (GMEM__KC) */
    for (int64_t i = 0; i < rows * GMEM__NC; i++)
        product[i] = 0;
    for (int64_t k = 0; k < gemm->depth; k += GMEM__KC) {
        const int64_t depth = gmem__min(GMEM__KC, gemm->depth - k);
        const int64_t step = (panels ? gemm->depth : depth) * nr;
        const float *first = panels ? panels + k * nr : own;
        if (!panels) gmem__pack(gemm, k, depth, tile->column, tile->columns, nr, step, own);
        if (!panels && gemm->round_bf16) gmem__scalar_round_bf16(own, gmem__ceil_div(tile->columns, nr) * step);
        for (int64_t i = 0; i < rows; i++) {
            gmem__scalar_weights(gemm->weight, gmem__tile_row(gemm, tile, i), k, depth, weights);
            if (gemm->round_bf16) gmem__scalar_round_bf16(weights, depth);
            for (int64_t c = 0; c < tile->columns; c += nr)
                gmem__scalar_dot(weights, first + c / nr * step, depth, product + i * GMEM__NC + c);
        }
    }
    for (int64_t i = 0; i < tile->rows; i++)
        gmem__scalar_finish_row(gemm, tile, i, tile->rows, product);
}

GMEM__FN const gmem__kernels *gmem__scalar_kernels(void) {
    static const gmem__kernels kernels = {1,
                                          GMEM__SCALAR_NR,
                                          gmem__scalar_gemm,
                                          gmem__scalar_norm,
                                          gmem__scalar_rotate,
                                          gmem__scalar_attention,
                                          gmem__scalar_group_norm,
                                          gmem__scalar_finish_row,
                                          gmem__scalar_round_bf16,
                                          gmem__scalar_narrow,
                                          NULL};
    return &kernels;
}

#undef GMEM__SCALAR_NR
/* ---- backends/cpu/scalar_rows.c ---- */
/* The portable kernels of the row operations: norms, rotary embedding, attention. They define the result that the
 * vector kernels are tested against, so they favour plainness: statistics in double, one column at a time. */

#include <math.h>

/* Mean and 1 / sqrt(variance + eps) of `count` values `step` apart; mean 0 for RMSNorm. */
typedef struct gmem__moments {
    double mean, inverse;
} gmem__moments;

static gmem__moments gmem__scalar_moments(const float *x, int64_t count, int64_t step, int rms, double eps) {
    gmem__moments moments = {0, 0};
    double squares = 0;
    if (!rms) {
        for (int64_t i = 0; i < count; i++)
            moments.mean += (double)x[i * step];
        moments.mean /= (double)count;
    }
    for (int64_t i = 0; i < count; i++) {
        double deviation = (double)x[i * step] - moments.mean;
        squares += deviation * deviation;
    }
    moments.inverse = 1 / sqrt(squares / (double)count + eps);
    return moments;
}

/* (x - mean) * inverse * weight + bias for one channel. */
static double gmem__scalar_affine(float x, gmem__moments moments, const float *weight, const float *bias, int64_t i) {
    double y = ((double)x - moments.mean) * moments.inverse;
    if (weight) y *= (double)weight[i];
    if (bias) y += (double)bias[i];
    return y;
}

/* RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450), and adaLN's modulation (2212.09748). */
GMEM__FN void gmem__scalar_norm(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end) {
    const float *shift = op->shift ? op->shift + sample * op->modulation_stride : NULL;
    const float *scale = op->scale ? op->scale + sample * op->modulation_stride : NULL;
    const int64_t y_stride = op->y_stride ? op->y_stride : op->columns;
    for (int64_t column = begin; column < end; column++) {
        const float *x = op->x + column;
        float *y = op->y + column - op->y_column;
        gmem__moments moments = gmem__scalar_moments(x, op->channels, op->columns, op->rms, (double)op->eps);
        for (int64_t c = 0; c < op->channels; c++) {
            double value = gmem__scalar_affine(x[c * op->columns], moments, op->weight, op->bias, c);
            if (scale) value *= 1 + (double)scale[c];
            if (shift) value += (double)shift[c];
            y[c * y_stride] = (float)value;
        }
    }
}

/* q/k norm, then RoPE (arXiv 2104.09864) on adjacent pairs. */
GMEM__FN void gmem__scalar_rotate(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end) {
    for (int64_t column = begin; column < end; column++) {
        float *x = op->x + head * op->head_dim * op->columns + column;
        int64_t token = column - sample * op->tokens;
        if (op->norm) {
            gmem__moments moments = gmem__scalar_moments(x, op->head_dim, op->columns, op->rms, (double)op->eps);
            for (int64_t d = 0; d < op->head_dim; d++)
                x[d * op->columns] = (float)gmem__scalar_affine(x[d * op->columns], moments, op->weight, op->bias, d);
        }
        if (!op->cosine) continue;
        for (int64_t pair = 0; pair < op->head_dim / 2; pair++) {
            float *first = x + 2 * pair * op->columns, *second = first + op->columns;
            float c = op->cosine[pair * op->tokens + token], s = op->sine[pair * op->tokens + token];
            float turned = *first * c - *second * s;
            *second = *second * c + *first * s;
            *first = turned;
        }
    }
}

/* Online softmax (arXiv 1805.02867): one pass over the keys, the sums rescaled whenever the maximum grows. A few
 * queries at a time share the pass. */
#define GMEM__SCALAR_QUERIES 16

GMEM__FN void gmem__scalar_attention(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin,
                                     int64_t end, float *scratch) {
    int64_t first = head * op->head_dim * op->stride + sample * op->tokens;
    const float *k = op->k + first, *v = op->v + first;
    (void)scratch;
    for (int64_t column = begin; column < end; column += GMEM__SCALAR_QUERIES) {
        const int64_t lanes = gmem__min(GMEM__SCALAR_QUERIES, end - column);
        const float *q = op->q + first + column;
        float *y = op->y + head * op->head_dim * op->y_stride + sample * op->tokens + column;
        float largest[GMEM__SCALAR_QUERIES], sum[GMEM__SCALAR_QUERIES];
        for (int64_t i = 0; i < lanes; i++) {
            largest[i] = -INFINITY;
            sum[i] = 0;
            for (int64_t d = 0; d < op->head_dim; d++)
                y[d * op->y_stride + i] = 0;
        }
        for (int64_t key = 0; key < op->tokens; key++) {
            double score[GMEM__SCALAR_QUERIES] = {0};
            float p[GMEM__SCALAR_QUERIES], rescale[GMEM__SCALAR_QUERIES];
            for (int64_t d = 0; d < op->head_dim; d++)
                for (int64_t i = 0; i < lanes; i++)
                    score[i] += (double)q[d * op->stride + i] * (double)k[d * op->stride + key];
            for (int64_t i = 0; i < lanes; i++) {
                float s = (float)(score[i] * (double)op->scale), before = largest[i];
                if (s > largest[i]) largest[i] = s;
                rescale[i] = expf(before - largest[i]);
                p[i] = expf(s - largest[i]);
                sum[i] = sum[i] * rescale[i] + p[i];
            }
            for (int64_t d = 0; d < op->head_dim; d++)
                for (int64_t i = 0; i < lanes; i++)
                    y[d * op->y_stride + i] = y[d * op->y_stride + i] * rescale[i] + p[i] * v[d * op->stride + key];
        }
        for (int64_t d = 0; d < op->head_dim; d++)
            for (int64_t i = 0; i < lanes; i++)
                y[d * op->y_stride + i] /= sum[i];
    }
}

/* GroupNorm (arXiv 1803.08494) of one group, then silu where asked. */
GMEM__FN void gmem__scalar_group_norm(const gmem__group_norm *op, int64_t group) {
    const int64_t channels = op->channels / op->groups, first = group * channels;
    gmem__moments moments = gmem__scalar_moments(op->x + first * op->area, channels * op->area, 1, 0, (double)op->eps);
    for (int64_t c = first; c < first + channels; c++)
        for (int64_t i = c * op->area; i < (c + 1) * op->area; i++) {
            float y = (float)gmem__scalar_affine(op->x[i], moments, op->weight, op->bias, c);
            op->y[i] = op->silu ? y / (1 + expf(-y)) : y;
        }
}
/* ---- backends/cpu/scalar_narrow.c ---- */
/* The operands of narrow products without vector instructions: the template on vectors of one lane. */
/* ---- backends/cpu/narrow.h ---- */
/* Products with narrow operands: bf16 or int8 on both sides, summed in f32 or int32. Both operands are made of 32-bit
 * words that hold 2 (bf16) or 4 (int8) values neighbouring in depth, the first in the lowest bits, as dot-product and
 * tile instructions read them; so one packing, one loop and one epilogue serve them all.
 *
 *     weights   strips of mr rows:   (strip, words / 16, mr, 16)    an AMX tile is 16 rows of 16 words, 1 KB
 *     x         panels of nr columns: (panel, words, nr)
 *
 * words: the depth in words, padded with zeros to a multiple of 16. Rows past the last one are zero, columns too. */
#ifndef GMEM__NARROW_H
#define GMEM__NARROW_H


#define GMEM__TILE_WORDS 16

/* One block of the depth of one group of strips, against all panels of a tile. */
typedef struct gmem__narrow_block {
    const uint32_t *weights; /* strips strip_step words apart; 64-byte aligned */
    int64_t strips, strip_step;
    const uint32_t *panels; /* panel_step words apart; 64-byte aligned */
    int64_t panel_count, panel_step;
    int64_t
        words; /* depth of this block; zeros follow up to a multiple of GMEM__TILE_WORDS, and may be multiplied too */
    int first; /* the sums start from zero, else from `product` */
    void *product; /* f32 for bf16, int32 for int8: (strips * mr, panel_count * nr), rows product_step apart */
    int64_t product_step;
    /* Weights that come next from memory, worth a prefetch while this block is computed: next_bytes each of so many
     * strips, strip_step words apart; 0: none. */
    const char *next;
    int64_t next_strips, next_bytes;
} gmem__narrow_block;

/* The kernel of one instruction set and one type. All fields constant. */
typedef struct gmem__narrow {
    const char *name; /* "avx512-bf16" */
    gmem_type type;   /* GMEM_BF16 or GMEM_I8 */
    int64_t mr, nr;   /* rows of a strip (divides GMEM__MC / 2), columns of a panel (divides GMEM__NC, at least 16) */
    int64_t strips;   /* how many strips multiply takes at a time, at most */
    int64_t block;    /* words of a block of the depth, at most; a multiple of GMEM__TILE_WORDS */
    int unsigned_x;   /* int8: bytes of x are stored as x + 128; the epilogue subtracts 128 * sum of the weight row */
    int keep;         /* packed weights are kept for all passes; else each pass packs them from the file's type */
    void (*begin)(void); /* around the products of one task on one thread (AMX's configuration), or NULL */
    void (*end)(void);
    void (*multiply)(const gmem__narrow_block *block);
} gmem__narrow;

/* narrow_portable.c: plain C, the reference, and what runs where there is no vector instruction. */
GMEM__FN const gmem__narrow *gmem__portable_bf16(void);
GMEM__FN const gmem__narrow *gmem__portable_i8(void);
/* The same under the shapes of kernels that need an instruction, for tests: the i-th, NULL after the last. */
GMEM__FN const gmem__narrow *gmem__portable_like(int i);

#ifdef GMEM__X86
/* avx512_dots.c, avx2_dots.c: NULL where the compiler lacks the instruction; whether the processor has it is
 * narrow_choose.c's question. */
GMEM__FN const gmem__narrow *gmem__avx512_dots(gmem_type type);
GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void); /* I8 */
GMEM__FN const gmem__narrow *gmem__avx2_dots(void);     /* I8, always there */
#endif

/* amx.c: whether the processor has AMX and the system grants it to this process; its kernels, NULL without; and the
 * same loops on tiles in plain C, for tests on any machine. type: GMEM_BF16 or GMEM_I8. */
GMEM__FN int gmem__has_amx(void);
GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type);
GMEM__FN const gmem__narrow *gmem__amx_stand_in(gmem_type type);

/* By instruction set: the fastest that this processor has, by a table of processor families where the mere presence of
 * an instruction does not tell; NULL where f32 kernels on rounded operands (bf16) or the portable kernel (int8) is
 * better. isa: GMEM_ISA_SCALAR, AVX2, AVX512 or AMX, never AUTO. type: GMEM_BF16 or GMEM_I8. */
GMEM__FN const gmem__narrow *gmem__narrow_of(gmem_isa isa, gmem_type type);

#endif /* GMEM__NARROW_H */

#include <math.h>

#define GMEM__K(name)       gmem__scalar_##name
#define V_WIDTH             1
#define V_F32               float
#define V_I32               uint32_t
#define V_LOAD(p)           (*(p))
#define V_STORE(p, a)       (*(p) = (a))
#define V_ZERO()            0.0f
#define V_SET1(a)           ((float)(a))
#define V_ADD(a, b)         ((a) + (b))
#define V_MUL(a, b)         ((a) * (b))
#define V_DIV(a, b)         ((a) / (b))
#define V_FMA(a, b, c)      ((a) * (b) + (c))
#define V_MAX(a, b)         ((a) > (b) ? (a) : (b))
#define V_ABS(a)            fabsf(a)
#define V_ROUND(a)          rintf(a)
#define V_SUM(a)            (a)
#define V_MAXIMUM(a)        (a)
#define V_ROUND_BF16(a)     gmem__bf16_to_f32(gmem__f32_to_bf16(a))
#define V_WORD_BF16(lo, hi) ((uint32_t)gmem__f32_to_bf16(lo) | (uint32_t)gmem__f32_to_bf16(hi) << 16)
#define V_WORD_I8(a, b, c, d) \
    (gmem__byte_of(a) | gmem__byte_of(b) << 8 | gmem__byte_of(c) << 16 | gmem__byte_of(d) << 24)
#define V_FLIP_SIGNS(word)   ((word) ^ 0x80808080u)
#define V_STORE_WORDS(p, a)  (*(p) = (a))
#define V_FROM_I32(p, minus) ((float)(*(p) - (minus)))
#define V_STORE_I8(p, a)     (*(p) = (signed char)gmem__small_int(a))
#define V_STORE_BF16(p, a)   gmem__store_bf16((p), (a))

/* Rounded to nearest even; what is not finite has shown itself in the scale. */
GMEM__INLINE int gmem__small_int(float a) { return a > -128.5f && a < 127.5f ? (int)rintf(a) : 0; }
GMEM__INLINE uint32_t gmem__byte_of(float a) { return (uint32_t)gmem__small_int(a) & 0xff; }
GMEM__INLINE void gmem__store_bf16(char *p, float a) {
    const uint16_t half = gmem__f32_to_bf16(a);
    memcpy(p, &half, sizeof half);
}
GMEM__INLINE float gmem__scalar_load_lanes(const float *p, int64_t lanes) {
    (void)lanes;
    return *p;
}
GMEM__INLINE void gmem__scalar_store_lanes(float *p, float a, int64_t lanes) {
    (void)lanes;
    *p = a;
}
static void gmem__scalar_convert(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    gmem__scalar_weights(weight, row, k, count, out);
}

/* ---- backends/cpu/narrow.inc ---- */
/* Template: the operands of narrow products (narrow.h): weights to strips, columns of x to panels, and the sums of int8
 * products back to floats. */

/* Values of a row that are converted at a time: whole words of a strip for both types. */
#define GMEM__RUN 512

/* max |w| of a row, and 0, or NaN where a value is not finite. */
static float GMEM__K(largest)(const float *x, int64_t count) {
    V_F32 largest = V_ZERO(), finite = V_ZERO();
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = GMEM__K(load_lanes)(x + i, count - i);
        largest = V_MAX(largest, V_ABS(value));
        finite = V_FMA(value, V_ZERO(), finite);
    }
    return V_MAXIMUM(largest) + V_SUM(finite);
}

/* x (count) to int8, divided by `scale`; to whole vectors. Returns their sum. */
static int32_t GMEM__K(quantise)(const float *x, int64_t count, float scale, signed char *out) {
    const V_F32 inverse = V_SET1(scale > 0 ? 1 / scale : 0);
    V_F32 sum = V_ZERO(); /* exact: below 2^24 */
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = V_ROUND(V_MUL(GMEM__K(load_lanes)(x + i, count - i), inverse));
        V_STORE_I8(out + i, value);
        sum = V_ADD(sum, value);
    }
    return (int32_t)V_SUM(sum);
}

static void GMEM__K(measure_weights)(const gmem__weight *weight, int64_t row, float *scale, int32_t *sum) {
    float values[GMEM__RUN + V_WIDTH];
    signed char bytes[GMEM__RUN + V_WIDTH];
    float largest = 0;
    *sum = 0;
    if (weight->type == GMEM_I8) {
        const signed char *data = (const signed char *)weight->data + row * weight->row_stride;
        for (int64_t k = 0; k < weight->cols; k++)
            *sum += data[k];
        *scale = weight->scale[row];
        return;
    }
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        const float part = GMEM__K(largest)(values, count);
        largest = !(part <= largest) ? part : largest; /* NaN stays */
        if (largest != largest) break;
    }
    *scale = largest / 127;
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        *sum += GMEM__K(quantise)(values, count, *scale, bytes);
    }
}

/* Values [k, k + count) of one row as narrow values, zero beyond the row's end. */
static void GMEM__K(narrow_values)(const gmem__narrow *narrow, const gmem__weight *weight, int64_t row, int64_t k,
                                   int64_t count, float scale, char *out) {
    const int64_t bytes = narrow->type == GMEM_BF16 ? 2 : 1;
    const int64_t inside = gmem__max(0, gmem__min(count, weight->cols - k));
    float values[GMEM__RUN + V_WIDTH];
    if (weight->type == narrow->type) {
        memcpy(out, (const char *)weight->data + (row * weight->row_stride + k) * bytes, (size_t)(inside * bytes));
    } else if (inside > 0) {
        GMEM__K(convert)(weight, row, k, inside, values);
        if (bytes == 1) (void)GMEM__K(quantise)(values, inside, scale, (signed char *)out);
        for (int64_t i = 0; bytes == 2 && i < inside; i += V_WIDTH)
            V_STORE_BF16(out + 2 * i, V_ROUND_BF16(V_LOAD(values + i)));
    }
    memset(out + inside * bytes, 0, (size_t)((count - inside) * bytes));
}

static void GMEM__K(pack_narrow_strip)(const gmem__narrow *narrow, const gmem__weight *weight,
                                       const gmem__strip_part *part, uint32_t *strip) {
    const int64_t per_word = narrow->type == GMEM_BF16 ? 2 : 4, run = GMEM__RUN / per_word;
    char values[GMEM__RUN * 2 + 2 * V_WIDTH];
    for (int64_t r = 0; r < narrow->mr; r++) {
        uint32_t *out = strip + r * GMEM__TILE_WORDS;
        for (int64_t word = 0; word < part->words; word += run) {
            const int64_t words = gmem__min(run, part->words - word);
            if (r < part->rows) GMEM__K(narrow_values)
            (narrow, weight, part->row + r, part->k + word * per_word, words * per_word,
             part->scale ? part->scale[r] : 1, values);
            else memset(values, 0, (size_t)words * 4);
            for (int64_t i = 0; i < words; i += GMEM__TILE_WORDS, out += narrow->mr * GMEM__TILE_WORDS)
                memcpy(out, values + i * 4, GMEM__TILE_WORDS * 4);
        }
    }
}

/* One vector of columns, all of the depth, as pairs of bf16. */
static void GMEM__K(panel_bf16)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                                uint32_t *panel) {
    int64_t w = 0;
    for (; w < depth / 2; w++, x += 2 * stride, panel += nr) {
        const V_F32 low = V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes));
        const V_F32 high = V_ROUND_BF16(GMEM__K(load_lanes)(x + stride, lanes));
        V_STORE_WORDS(panel, V_WORD_BF16(low, high));
    }
    for (; w < words; w++, panel += nr) {
        const V_F32 low = 2 * w < depth ? V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes)) : V_ZERO();
        V_STORE_WORDS(panel, V_WORD_BF16(low, V_ZERO()));
    }
}

/* The same as four int8, each column divided by its scale, which is found first. */
static void GMEM__K(panel_i8)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                              int unsigned_x, uint32_t *panel, float *scale) {
    V_F32 a = V_ZERO(), b = V_ZERO(), finite = V_ZERO(), value[4];
    for (int64_t k = 0; k < depth; k++) {
        const V_F32 row = GMEM__K(load_lanes)(x + k * stride, lanes);
        if (k % 2)
            a = V_MAX(a, V_ABS(row));
        else
            b = V_MAX(b, V_ABS(row));
        finite = V_FMA(row, V_ZERO(), finite);
    }
    const V_F32 largest = V_MAX(V_MAX(a, b), V_SET1(1e-30f)); /* never divides by zero */
    const V_F32 inverse = V_DIV(V_SET1(127), largest);
    GMEM__K(store_lanes)(scale, V_ADD(V_MUL(largest, V_SET1(1.0f / 127)), finite), lanes);
    for (int64_t w = 0; w < words; w++, panel += nr) {
        for (int64_t i = 0; i < 4; i++)
            value[i] =
                4 * w + i < depth ? V_MUL(GMEM__K(load_lanes)(x + (4 * w + i) * stride, lanes), inverse) : V_ZERO();
        const V_I32 word = V_WORD_I8(value[0], value[1], value[2], value[3]);
        V_STORE_WORDS(panel, unsigned_x ? V_FLIP_SIGNS(word) : word);
    }
}

static void GMEM__K(pack_narrow_panels)(const gmem__narrow *narrow, const float *x, int64_t stride, int64_t depth,
                                        int64_t words, int64_t columns, uint32_t *panels, int64_t panel_step,
                                        float *scale) {
    const int64_t nr = narrow->nr;
    for (int64_t i = 0; i < gmem__round_up(columns, nr); i += V_WIDTH) {
        uint32_t *panel = panels + i / nr * panel_step + i % nr;
        if (i >= columns) /* a panel's last columns */
            for (int64_t w = 0; w < words; w++)
                memset(panel + w * nr, 0, V_WIDTH * sizeof *panel);
        else if (narrow->type == GMEM_BF16)
            GMEM__K(panel_bf16)(x + i, stride, depth, words, columns - i, nr, panel);
        else
            GMEM__K(panel_i8)(x + i, stride, depth, words, columns - i, nr, narrow->unsigned_x, panel, scale + i);
    }
}

static void GMEM__K(dequantise)(void *sums, int64_t count, int32_t offset, float row_scale, const float *scale) {
    const V_F32 factor = V_SET1(row_scale);
    float *out = (float *)sums;
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 sum = V_FROM_I32((const int32_t *)sums + i, offset);
        V_STORE(out + i, V_MUL(V_MUL(sum, factor), V_LOAD(scale + i)));
    }
}

static const gmem__narrow_rows *GMEM__K(narrow_rows)(void) {
    static const gmem__narrow_rows rows = {GMEM__K(measure_weights), GMEM__K(pack_narrow_strip),
                                           GMEM__K(pack_narrow_panels), GMEM__K(dequantise)};
    return &rows;
}

#undef GMEM__RUN

GMEM__FN const gmem__narrow_rows *gmem__scalar_narrow(void) { return gmem__scalar_narrow_rows(); }

/* ---- backends/cpu/vector_end.inc ---- */
/* Withdraws what an instruction set defined, so that the next one can. */
#undef GMEM__K
#undef GMEM__MR
#undef GMEM__REPEAT
#undef V_WIDTH
#undef V_F32
#undef V_I32
#undef V_MASK
#undef V_LOAD
#undef V_STORE
#undef V_ZERO
#undef V_SET1
#undef V_ADD
#undef V_SUB
#undef V_MUL
#undef V_DIV
#undef V_MAX
#undef V_MIN
#undef V_SQRT
#undef V_ABS
#undef V_FMA
#undef V_FNMA
#undef V_ROUND
#undef V_LESS
#undef V_IS_NAN
#undef V_SELECT
#undef V_SCALE2
#undef V_LOAD_F16
#undef V_LOAD_BF16
#undef V_LOAD_I8
#undef V_PREFETCH
#undef V_LOAD_F32
#undef V_LOAD_PART
#undef V_STORE_PART
#undef V_SUM
#undef V_MAXIMUM
#undef V_ROUND_BF16
#undef V_WORD_BF16
#undef V_WORD_I8
#undef V_WORD_WEIGHTS
#undef V_FLIP_SIGNS
#undef V_STORE_WORDS
#undef V_STORE_BF16
#undef V_STORE_I8
#undef V_FROM_I32
/* ---- backends/cpu/avx2.c ---- */
/* AVX2 with FMA and F16C: the vector operations that the templates are written in, and the templates. */

#ifdef GMEM__X86
#include <immintrin.h>
#include <math.h>

#define GMEM__K(name) gmem__avx2_##name

#define V_WIDTH 8
#define V_F32   __m256
#define V_I32   __m256i
#define V_MASK  __m256 /* of lanes, from a comparison */

#define V_LOAD(p)            _mm256_loadu_ps(p)
#define V_STORE(p, a)        _mm256_storeu_ps((p), (a))
#define V_ZERO()             _mm256_setzero_ps()
#define V_SET1(a)            _mm256_set1_ps(a)
#define V_ADD(a, b)          _mm256_add_ps((a), (b))
#define V_SUB(a, b)          _mm256_sub_ps((a), (b))
#define V_MUL(a, b)          _mm256_mul_ps((a), (b))
#define V_DIV(a, b)          _mm256_div_ps((a), (b))
#define V_MAX(a, b)          _mm256_max_ps((a), (b))
#define V_MIN(a, b)          _mm256_min_ps((a), (b))
#define V_SQRT(a)            _mm256_sqrt_ps(a)
#define V_ABS(a)             _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (a))
#define V_FMA(a, b, c)       _mm256_fmadd_ps((a), (b), (c))  /* a b + c */
#define V_FNMA(a, b, c)      _mm256_fnmadd_ps((a), (b), (c)) /* c - a b */
#define V_ROUND(a)           _mm256_round_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_LESS(a, b)         _mm256_cmp_ps((a), (b), _CMP_LT_OQ)
#define V_IS_NAN(a)          _mm256_cmp_ps((a), (a), _CMP_UNORD_Q)
#define V_SELECT(mask, a, b) _mm256_blendv_ps((b), (a), (mask)) /* mask ? a : b */
/* a * 2^n for integral n, where the result is a normal number. */
#define V_SCALE2(a, n) \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)))
/* Of stored weights, at any address. The prefetch is assembly since gcc takes a function of mere prefetches for one
 * without effect. */
#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))
#define V_LOAD_F32(p) _mm256_loadu_ps((const float *)(const void *)(p))
#define V_LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define V_LOAD_BF16(p)   \
    _mm256_castsi256_ps( \
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define V_LOAD_I8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
/* The first n lanes only, 0 <= n <= V_WIDTH; the others load as zero. */
#define V_LOAD_PART(p, n)     _mm256_maskload_ps((p), gmem__avx2_lanes(n))
#define V_STORE_PART(p, a, n) _mm256_maskstore_ps((p), gmem__avx2_lanes(n), (a))
#define V_SUM(a)              gmem__avx2_sum(a)
#define V_MAXIMUM(a)          gmem__avx2_maximum(a)

/* To the nearest bf16, kept as a float; NaN stays NaN. */
#define V_ROUND_BF16(a) gmem__avx2_round_to_bf16(a)
/* Words of two rounded bf16, or of four integral floats below 128, the first in the lowest bits. */
#define V_WORD_BF16(lo, hi) _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(lo), 16), _mm256_castps_si256(hi))
/* The same of two floats between 0 and 1 that are not rounded yet: to nearest, ties up, and NaN to anything. */
#define V_WORD_WEIGHTS(lo, hi) gmem__avx2_word_weights((lo), (hi))
#define V_WORD_I8(a, b, c, d)  gmem__avx2_word_i8((a), (b), (c), (d))
#define V_FLIP_SIGNS(word)     _mm256_xor_si256((word), _mm256_set1_epi32((int)0x80808080))
#define V_STORE_WORDS(p, word) _mm256_storeu_si256((__m256i *)(void *)(p), (word))
#define V_STORE_BF16(p, a)     _mm_storeu_si128((__m128i *)(void *)(p), gmem__avx2_halves(a))
#define V_STORE_I8(p, a)       _mm_storel_epi64((__m128i *)(void *)(p), gmem__avx2_bytes(a))
#define V_FROM_I32(p, minus) \
    _mm256_cvtepi32_ps(      \
        _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)), _mm256_set1_epi32(minus)))

/* The GEMM's micro-kernel: 6 rows, whose sums fill 12 of 16 registers. */
#define GMEM__MR        6
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

GMEM__INLINE __m256i gmem__avx2_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GMEM__INLINE float gmem__avx2_sum(__m256 a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
GMEM__INLINE float gmem__avx2_maximum(__m256 a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

GMEM__INLINE __m256 gmem__avx2_round_to_bf16(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256 rounded = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000)));
    return _mm256_blendv_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), V_IS_NAN(a));
}
GMEM__INLINE __m128i gmem__avx2_halves(__m256 rounded) {
    const __m256i halves = _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
GMEM__INLINE __m128i gmem__avx2_bytes(__m256 a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    return _mm_packs_epi16(halves, halves);
}
GMEM__INLINE __m256i gmem__avx2_word_i8(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i low = _mm256_or_si256(_mm256_and_si256(_mm256_cvtps_epi32(a), byte),
                                        _mm256_slli_epi32(_mm256_and_si256(_mm256_cvtps_epi32(b), byte), 8));
    const __m256i high =
        _mm256_or_si256(_mm256_and_si256(_mm256_cvtps_epi32(c), byte), _mm256_slli_epi32(_mm256_cvtps_epi32(d), 8));
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}

GMEM__INLINE __m256i gmem__avx2_word_weights(__m256 low, __m256 high) {
    const __m256i half = _mm256_set1_epi32(0x8000), upper = _mm256_set1_epi32((int)0xffff0000);
    const __m256i l = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(low), half), 16);
    return _mm256_or_si256(l, _mm256_and_si256(_mm256_add_epi32(_mm256_castps_si256(high), half), upper));
}

/* ---- backends/cpu/math.inc ---- */
/* Template: exp and the activations on vectors. */

/* e^x within 1.5 ulp, by x = n ln 2 + r, |r| <= ln 2 / 2 (Cody and Waite), and e^r = 1 + r + r^2 p(r), p being minimax
 * (relative error 4e-9). Below -87.3 it gives e^-87.3 (1.2e-38), above 88.3 e^88.3; NaN stays NaN. */
GMEM__INLINE V_F32 GMEM__K(exp)(V_F32 x) {
    /* max and min give their second operand where one is NaN */
    x = V_MAX(V_SET1(-87.3f), V_MIN(V_SET1(88.3f), x));
    const V_F32 n = V_ROUND(V_MUL(x, V_SET1(1.44269504f)));
    const V_F32 r = V_FNMA(n, V_SET1(-1.90465421e-9f), V_FNMA(n, V_SET1(0.693147182f), x));
    V_F32 p = V_SET1(1.381446724e-3f);
    p = V_FMA(p, r, V_SET1(8.368780836e-3f));
    p = V_FMA(p, r, V_SET1(4.166839272e-2f));
    p = V_FMA(p, r, V_SET1(1.666651964e-1f));
    p = V_FMA(p, r, V_SET1(4.999999404e-1f));
    p = V_FMA(V_MUL(p, r), r, V_ADD(r, V_SET1(1.0f)));
    return V_SCALE2(p, n);
}

GMEM__INLINE V_F32 GMEM__K(silu)(V_F32 x) { return V_DIV(x, V_ADD(V_SET1(1.0f), GMEM__K(exp)(V_SUB(V_ZERO(), x)))); }

/* 0.5 x (1 + tanh(s)) = x / (1 + e^-2s), s = sqrt(2 / pi) (x + 0.044715 x^3) */
GMEM__INLINE V_F32 GMEM__K(gelu_tanh)(V_F32 x) {
    const V_F32 s = V_MUL(x, V_FMA(V_MUL(x, x), V_SET1(0.044715f), V_SET1(1.0f)));
    return V_DIV(x, V_ADD(V_SET1(1.0f), GMEM__K(exp)(V_MUL(s, V_SET1(-1.5957691216f)))));
}

/* x P(x), P being the normal distribution's integral: max(x, 0) - a Q(a), a = |x|, Q(a) = e^(-a^2/2) t p(t),
 * t = 1 / (1 + 0.4 a) (the form of Abramowitz and Stegun 26.2.17), p being minimax (absolute error of a Q 8e-9). */
GMEM__INLINE V_F32 GMEM__K(gelu_erf)(V_F32 x) {
    const V_F32 a = V_ABS(x), one = V_SET1(1.0f);
    const V_F32 t = V_DIV(one, V_FMA(a, V_SET1(0.4f), one));
    const V_F32 density = GMEM__K(exp)(V_MUL(V_MUL(a, a), V_SET1(-0.5f)));
    V_F32 p = V_SET1(5.724073201e-2f);
    p = V_FMA(p, t, V_SET1(-2.577858269e-1f));
    p = V_FMA(p, t, V_SET1(3.441259861e-1f));
    p = V_FMA(p, t, V_SET1(1.007481944e-2f));
    p = V_FMA(p, t, V_SET1(1.897868812e-1f));
    p = V_FMA(p, t, V_SET1(1.565577388e-1f));
    return V_FNMA(V_MUL(a, t), V_MUL(p, density), V_MAX(x, V_ZERO()));
}
/* ---- backends/cpu/gemm.inc ---- */
/* Template: the GEMM. A strip of GMEM__MR weight rows, read in place or converted to floats, is multiplied with panels
 * of x, whose columns fill two vectors: strip * panel is summed in registers over one block of the depth, and these
 * sums in the tile's product. After the last block the epilogue takes the product to y. */

#define GMEM__NR (2 * V_WIDTH)

/* out (count) = weight[row][k .. k + count) as floats. */
static void GMEM__K(convert)(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    const int64_t first = row * weight->row_stride + k, whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    const V_F32 scale = V_SET1(weight->scale ? weight->scale[row] : 1.0f);
    const char *data = (const char *)weight->data;
    float tail[V_WIDTH] = {0}; /* wide enough for a vector of any type */
#define GMEM__CONVERT(bytes, load)                                        \
    data += first * bytes;                                                \
    for (int64_t i = 0; i < whole; i += V_WIDTH, data += V_WIDTH * bytes) \
        V_STORE(out + i, load(data));                                     \
    if (rest) {                                                           \
        memcpy(tail, data, (size_t)(rest * bytes));                       \
        V_STORE_PART(out + whole, load(tail), rest);                      \
    }
#define GMEM__SCALED_I8(p) V_MUL(scale, V_LOAD_I8(p))
    switch (weight->type) {
    case GMEM_F16:
        GMEM__CONVERT(2, V_LOAD_F16) break;
    case GMEM_BF16:
        GMEM__CONVERT(2, V_LOAD_BF16) break;
    case GMEM_I8:
        GMEM__CONVERT(1, GMEM__SCALED_I8) break;
    default:
        GMEM__CONVERT(4, V_LOAD_F32)
    }
#undef GMEM__CONVERT
#undef GMEM__SCALED_I8
}

static void GMEM__K(round_bf16)(float *x, int64_t count) {
    const int64_t whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    for (int64_t i = 0; i < whole; i += V_WIDTH)
        V_STORE(x + i, V_ROUND_BF16(V_LOAD(x + i)));
    if (rest) V_STORE_PART(x + whole, V_ROUND_BF16(V_LOAD_PART(x + whole, rest)), rest);
}

/* The strips of a tile in the order of their use: all rows of one block of the depth, then of the next. */
typedef struct GMEM__K(strips) {
    const gmem__gemm *gemm;
    const gmem__tile *tile;
    int64_t rows, block; /* product rows of the tile; depth of a block */
    int64_t per_block, count;
} GMEM__K(strips);

/* A part of a strip: rows [begin, end) of the tile, depth [k, k + depth). */
typedef struct GMEM__K(part) {
    int64_t first, begin, end, k, depth;
} GMEM__K(part);

GMEM__INLINE GMEM__K(part) GMEM__K(part_of)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts) {
    GMEM__K(part) part;
    part.first = strip % strips->per_block * GMEM__MR;
    part.begin = part.first + i * GMEM__MR / parts;
    part.end = part.first + (i + 1) * GMEM__MR / parts;
    part.k = strip / strips->per_block * strips->block;
    part.depth = gmem__min(strips->block, strips->gemm->depth - part.k);
    return part;
}

/* Converts part i of so many of a strip: out (GMEM__MR, GMEM__KC), zeros below the tile's last row. */
static void GMEM__K(pack_strip)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts, float *out) {
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, i, parts);
    const gmem__gemm *gemm = strips->gemm;
    out += (part.begin - part.first) * GMEM__KC;
    for (int64_t r = part.begin; r < part.end; r++, out += GMEM__KC) {
        const int64_t row = gmem__tile_row(gemm, strips->tile, r);
        if (r >= strips->rows) {
            memset(out, 0, (size_t)part.depth * sizeof *out);
        } else {
            GMEM__K(convert)(gemm->weight, row, part.k, part.depth, out);
            if (gemm->round_bf16) GMEM__K(round_bf16)(out, part.depth);
        }
    }
}

/* The strip where it lies in the file, or NULL where it must be converted: other types than floats, rows that are not
 * neighbours, and more rows than a cache has ways, a multiple of its size apart: they would evict each other. */
static const gmem__unaligned_f32 *GMEM__K(in_place)(const GMEM__K(strips) * strips, int64_t strip) {
    const gmem__weight *weight = strips->gemm->weight;
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, 0, 1);
    const int evicting = GMEM__MR > 8 && weight->row_stride % 1024 == 0;
    if (weight->type != GMEM_F32 || strips->gemm->round_bf16 || evicting || part.end > strips->rows) return NULL;
    const int64_t row = gmem__tile_row(strips->gemm, strips->tile, part.first);
    if (gmem__tile_row(strips->gemm, strips->tile, part.end - 1) != row + GMEM__MR - 1) return NULL;
    return (const gmem__unaligned_f32 *)weight->data + row * weight->row_stride + part.k;
}

/* Asks for the weights of a part, which come from memory, long before it is converted. */
static void GMEM__K(prefetch)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts) {
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, i, parts);
    const gmem__weight *weight = strips->gemm->weight;
    const int64_t bytes = weight->type == GMEM_F32 ? 4 : weight->type == GMEM_I8 ? 1 : 2;
    for (int64_t r = part.begin; r < gmem__min(part.end, strips->rows); r++) {
        const int64_t row = gmem__tile_row(strips->gemm, strips->tile, r);
        const char *data = (const char *)weight->data + (row * weight->row_stride + part.k) * bytes;
        for (int64_t at = 0; at < part.depth * bytes; at += 64)
            V_PREFETCH(data + at);
    }
}

/* The left operand's row r: every third row has a pointer, as a processor addresses 0, 1 and 2 steps from it. */
#define GMEM__LEFT(r) (r / 3 == 0 ? left : r / 3 == 1 ? left3 : r / 3 == 2 ? left6 : left9)[r % 3 * row_step]

/* out (GMEM__MR, 2 vectors; rows out_step apart) += left * panel, where left (GMEM__MR, depth) lies at any steps and
 * panel is (depth, 2 vectors). The sum starts from zero: over several blocks of the depth, rounding errors grow with
 * the block, not with the whole. */
GMEM__ALWAYS_INLINE void GMEM__K(tile)(const gmem__unaligned_f32 *left, int64_t row_step, int64_t k_step,
                                       const float *panel, int64_t depth, float *out, int64_t out_step) {
    const gmem__unaligned_f32 *left3 = left + 3 * row_step, *left6 = left3 + 3 * row_step,
                              *left9 = left6 + 3 * row_step;
#define GMEM__BEGIN(r) V_F32 a##r = V_ZERO(), b##r = V_ZERO();
#define GMEM__STEP(r)          \
    w = V_SET1(GMEM__LEFT(r)); \
    a##r = V_FMA(w, x0, a##r); \
    b##r = V_FMA(w, x1, b##r);
#define GMEM__END(r)                                                      \
    V_STORE(out + r * out_step, V_ADD(a##r, V_LOAD(out + r * out_step))); \
    V_STORE(out + r * out_step + V_WIDTH, V_ADD(b##r, V_LOAD(out + r * out_step + V_WIDTH)));
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t k = 0; k < depth; k++, panel += GMEM__NR) {
        const V_F32 x0 = V_LOAD(panel), x1 = V_LOAD(panel + V_WIDTH);
        V_F32 w;
        GMEM__REPEAT(GMEM__STEP)
        left += k_step, left3 += k_step, left6 += k_step, left9 += k_step;
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__END
}

/* product (GMEM__MR, 2 vectors; rows GMEM__NC apart) += left * panel. */
static void GMEM__K(multiply2)(const gmem__unaligned_f32 *left, int64_t row_step, const float *panel, int64_t depth,
                               float *product) {
    GMEM__K(tile)(left, row_step, 1, panel, depth, product, GMEM__NC);
}

/* The same for a panel of which only the first vector matters. */
static void GMEM__K(multiply1)(const gmem__unaligned_f32 *left, int64_t row_step, const float *panel, int64_t depth,
                               float *product) {
    const gmem__unaligned_f32 *left3 = left + 3 * row_step, *left6 = left3 + 3 * row_step,
                              *left9 = left6 + 3 * row_step;
#define GMEM__BEGIN(r) V_F32 a##r = V_ZERO();
#define GMEM__STEP(r)  a##r = V_FMA(V_SET1(GMEM__LEFT(r)), x, a##r);
#define GMEM__END(r)   V_STORE(product + r * GMEM__NC, V_ADD(a##r, V_LOAD(product + r * GMEM__NC)));
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t k = 0; k < depth; k++, panel += GMEM__NR) {
        const V_F32 x = V_LOAD(panel);
        GMEM__REPEAT(GMEM__STEP)
        left++, left3++, left6++, left9++;
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__END
}
#undef GMEM__LEFT

/* row (count) = activation(row + bias), whole vectors. */
static void GMEM__K(activate)(gmem__activation activation, float bias, int64_t count, float *row) {
    const V_F32 b = V_SET1(bias);
    int64_t c;
    switch (activation) {
    case GMEM__ACT_SILU:
    case GMEM__ACT_SWIGLU:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(silu)(V_ADD(V_LOAD(row + c), b)));
        break;
    case GMEM__ACT_GELU_TANH:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(gelu_tanh)(V_ADD(V_LOAD(row + c), b)));
        break;
    case GMEM__ACT_GELU_ERF:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(gelu_erf)(V_ADD(V_LOAD(row + c), b)));
        break;
    default:
        if (bias == 0) return;
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, V_ADD(V_LOAD(row + c), b));
    }
}

/* y (count) = residual + gate * row; residual NULL: 0. */
static void GMEM__K(store)(const float *row, float gate, const float *residual, int64_t count, float *y) {
    const V_F32 g = V_SET1(gate);
    const int64_t whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    int64_t c = 0;
    if (!residual) {
        for (; c < whole; c += V_WIDTH)
            V_STORE(y + c, V_MUL(g, V_LOAD(row + c)));
        if (rest) V_STORE_PART(y + c, V_MUL(g, V_LOAD_PART(row + c, rest)), rest);
        return;
    }
    for (; c < whole; c += V_WIDTH)
        V_STORE(y + c, V_FMA(g, V_LOAD(row + c), V_LOAD(residual + c)));
    if (rest) V_STORE_PART(y + c, V_FMA(g, V_LOAD_PART(row + c, rest), V_LOAD_PART(residual + c, rest)), rest);
}

/* Row i of the tile from the product to y; SWIGLU's other half begins with the product's row `up_row`. */
static void GMEM__K(finish_row)(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up_row,
                                float *product) {
    const int64_t row = tile->row + i, padded = gmem__round_up(tile->columns, V_WIDTH);
    float *sums = product + i * GMEM__NC;
    GMEM__K(activate)(gemm->activation, gemm->bias ? gemm->bias[row] : 0.0f, padded, sums);
    if (gemm->activation == GMEM__ACT_SWIGLU) {
        const float *up = product + (up_row + i) * GMEM__NC;
        const V_F32 bias = V_SET1(gemm->bias ? gemm->bias[row + gemm->rows / 2] : 0.0f);
        for (int64_t c = 0; c < padded; c += V_WIDTH)
            V_STORE(sums + c, V_MUL(V_LOAD(sums + c), V_ADD(V_LOAD(up + c), bias)));
    }
    const int64_t end = tile->column + tile->columns;
    for (int64_t c = tile->column, next; c < end; c = next) { /* sample by sample, where the gate differs */
        const int64_t sample = gemm->gate ? c / gemm->tokens : 0, at = row * gemm->y_stride + c;
        next = gemm->gate ? gmem__min(end, (sample + 1) * gemm->tokens) : end;
        GMEM__K(store)
        (sums + c - tile->column, gemm->gate ? gemm->gate[sample * gemm->gate_stride + row] : 1.0f,
         gemm->residual ? gemm->residual + at : NULL, next - c, gemm->y + at);
    }
}

/* While a strip is multiplied with one panel after the other, the one after the next is fetched and the next one
 * converted, if need be, part by part. */
static void GMEM__K(gemm)(const gmem__gemm *gemm, const gmem__tile *tile, const float *panels, float *scratch) {
    float *product = scratch;                   /* (rows, GMEM__NC) */
    float *own = product + GMEM__MC * GMEM__NC; /* panels of one block of the depth */
    float *buffers = own + GMEM__KC * GMEM__NC; /* (2, GMEM__MR, GMEM__KC) */
    const int64_t blocks = gmem__ceil_div(gemm->depth, GMEM__KC), parts = gmem__ceil_div(tile->columns, GMEM__NR);
    GMEM__K(strips) strips;
    strips.gemm = gemm;
    strips.tile = tile;
    strips.rows = gmem__tile_rows(gemm, tile);
    strips.block = gmem__ceil_div(gemm->depth, blocks);
    strips.per_block = gmem__ceil_div(strips.rows, GMEM__MR);
    strips.count = strips.per_block * gmem__ceil_div(gemm->depth, strips.block);
    memset(product, 0, (size_t)(strips.per_block * GMEM__MR * GMEM__NC) * sizeof *product);
    for (int64_t s = 0; s < gmem__min(2, strips.count); s++)
        GMEM__K(prefetch)(&strips, s, 0, 1);
    if (!GMEM__K(in_place)(&strips, 0)) GMEM__K(pack_strip)(&strips, 0, 0, 1, buffers);
    for (int64_t s = 0; s < strips.count; s++) {
        const GMEM__K(part) at = GMEM__K(part_of)(&strips, s, 0, 1);
        const gmem__unaligned_f32 *stored = GMEM__K(in_place)(&strips, s);
        const gmem__unaligned_f32 *left = stored ? stored : buffers + s % 2 * GMEM__MR * GMEM__KC;
        const int64_t row_step = stored ? gemm->weight->row_stride : GMEM__KC;
        const int convert = s + 1 < strips.count && !GMEM__K(in_place)(&strips, s + 1);
        const int64_t panel_step = (panels ? gemm->depth : at.depth) * GMEM__NR;
        const float *panel = panels ? panels + at.k * GMEM__NR : own;
        if (!panels && at.first == 0) {
            gmem__pack(gemm, at.k, at.depth, tile->column, tile->columns, GMEM__NR, panel_step, own);
            if (gemm->round_bf16) GMEM__K(round_bf16)(own, parts * panel_step);
        }
        for (int64_t i = 0; i < parts; i++, panel += panel_step) {
            float *sums = product + at.first * GMEM__NC + i * GMEM__NR;
            if (s + 2 < strips.count) GMEM__K(prefetch)(&strips, s + 2, i, parts);
            if (convert) GMEM__K(pack_strip)(&strips, s + 1, i, parts, buffers + (s + 1) % 2 * GMEM__MR * GMEM__KC);
            if (tile->columns - i * GMEM__NR > V_WIDTH)
                GMEM__K(multiply2)(left, row_step, panel, at.depth, sums);
            else
                GMEM__K(multiply1)(left, row_step, panel, at.depth, sums);
        }
    }
    for (int64_t i = 0; i < tile->rows; i++)
        GMEM__K(finish_row)(gemm, tile, i, tile->rows, product);
}

#undef GMEM__NR
/* ---- backends/cpu/rows.inc ---- */
/* Template: norm, rotary embedding and group norm on vectors. Vectors run along columns, so sums over channels need no
 * shuffles; a lane's arithmetic is the same in a full vector and in the last, partial one. */

/* The first `lanes` of a vector; masks are for the last vector of a row only. */
GMEM__INLINE V_F32 GMEM__K(load_lanes)(const float *p, int64_t lanes) {
    return lanes >= V_WIDTH ? V_LOAD(p) : V_LOAD_PART(p, lanes);
}
GMEM__INLINE void GMEM__K(store_lanes)(float *p, V_F32 a, int64_t lanes) {
    if (lanes >= V_WIDTH)
        V_STORE(p, a);
    else
        V_STORE_PART(p, a, lanes);
}

/* Over `rows` rows `stride` apart: the sum of x - mean and that of its square. Summed four by four, then in runs, then
 * over all: rounding grows with the root of a run's length instead of that of the whole. */
#define GMEM__SUM_RUN 64

typedef struct GMEM__K(sums) {
    V_F32 first, second;
} GMEM__K(sums);

GMEM__INLINE GMEM__K(sums) GMEM__K(row_sums)(const float *x, int64_t rows, int64_t stride, int64_t lanes, V_F32 mean) {
    GMEM__K(sums) total = {V_ZERO(), V_ZERO()};
    for (int64_t begin = 0; begin < rows; begin += GMEM__SUM_RUN) {
        const int64_t end = gmem__min(begin + GMEM__SUM_RUN, rows);
        GMEM__K(sums) run = {V_ZERO(), V_ZERO()};
        int64_t r = begin;
        for (; r + 4 <= end; r += 4) {
            const float *p = x + r * stride;
            const V_F32 a = V_SUB(GMEM__K(load_lanes)(p, lanes), mean);
            const V_F32 b = V_SUB(GMEM__K(load_lanes)(p + stride, lanes), mean);
            const V_F32 c = V_SUB(GMEM__K(load_lanes)(p + 2 * stride, lanes), mean);
            const V_F32 d = V_SUB(GMEM__K(load_lanes)(p + 3 * stride, lanes), mean);
            run.first = V_ADD(run.first, V_ADD(V_ADD(a, b), V_ADD(c, d)));
            run.second = V_ADD(run.second, V_ADD(V_FMA(a, a, V_MUL(b, b)), V_FMA(c, c, V_MUL(d, d))));
        }
        for (; r < end; r++) {
            const V_F32 a = V_SUB(GMEM__K(load_lanes)(x + r * stride, lanes), mean);
            run.first = V_ADD(run.first, a);
            run.second = V_FMA(a, a, run.second);
        }
        total.first = V_ADD(total.first, run.first);
        total.second = V_ADD(total.second, run.second);
    }
    return total;
}

/* What normalises each of up to GMEM__COLUMN_BLOCK columns: (x - mean) * inverse + rest, where `rest` is what rounding
 * left of the mean. Mean and rest are 0 for RMSNorm. */
typedef struct GMEM__K(moments) {
    float mean[GMEM__COLUMN_BLOCK], inverse[GMEM__COLUMN_BLOCK], rest[GMEM__COLUMN_BLOCK];
} GMEM__K(moments);

static void GMEM__K(measure)(const float *x, int64_t rows, int64_t stride, int64_t columns, int rms, float eps,
                             GMEM__K(moments) * moments) {
    const V_F32 count = V_SET1((float)rows);
    for (int64_t column = 0; column < columns; column += V_WIDTH) {
        const int64_t lanes = columns - column;
        V_F32 mean = V_ZERO(), rest = V_ZERO();
        if (!rms) mean = V_DIV(GMEM__K(row_sums)(x + column, rows, stride, lanes, mean).first, count);
        const GMEM__K(sums) sums = GMEM__K(row_sums)(x + column, rows, stride, lanes, mean);
        const V_F32 variance = V_DIV(sums.second, count);
        const V_F32 inverse = V_DIV(V_SET1(1), V_SQRT(V_ADD(variance, V_SET1(eps))));
        if (!rms) rest = V_FNMA(V_DIV(sums.first, count), inverse, rest);
        V_STORE(moments->mean + column, mean);
        V_STORE(moments->inverse + column, inverse);
        V_STORE(moments->rest + column, rest);
    }
}

/* Columns as they are. */
static void GMEM__K(measure_nothing)(GMEM__K(moments) * moments) {
    for (int64_t i = 0; i < GMEM__COLUMN_BLOCK; i++) {
        moments->mean[i] = moments->rest[i] = 0;
        moments->inverse[i] = 1;
    }
}

/* One vector of one row, normalised, * weight + bias. */
GMEM__INLINE V_F32 GMEM__K(normalise)(const float *row, int64_t column, int64_t lanes, const GMEM__K(moments) * moments,
                                      float weight, float bias) {
    const V_F32 x = V_SUB(GMEM__K(load_lanes)(row + column, lanes), V_LOAD(moments->mean + column));
    const V_F32 y = V_FMA(x, V_LOAD(moments->inverse + column), V_LOAD(moments->rest + column));
    return V_FMA(y, V_SET1(weight), V_SET1(bias));
}

static void GMEM__K(norm)(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end) {
    const float *shift = op->shift ? op->shift + sample * op->modulation_stride : NULL;
    const float *scale = op->scale ? op->scale + sample * op->modulation_stride : NULL;
    const int64_t columns = end - begin, y_stride = op->y_stride ? op->y_stride : op->columns;
    GMEM__K(moments) moments;
    GMEM__K(measure)(op->x + begin, op->channels, op->columns, columns, op->rms, op->eps, &moments);
    for (int64_t c = 0; c < op->channels; c++) {
        const double modulation = scale ? 1 + (double)scale[c] : 1;
        const double weight = (op->weight ? (double)op->weight[c] : 1) * modulation;
        const double bias = (op->bias ? (double)op->bias[c] : 0) * modulation + (shift ? (double)shift[c] : 0);
        const float *x = op->x + c * op->columns + begin;
        float *y = op->y + c * y_stride + begin - op->y_column;
        for (int64_t i = 0; i < columns; i += V_WIDTH) {
            V_F32 value = GMEM__K(normalise)(x, i, columns - i, &moments, (float)weight, (float)bias);
            GMEM__K(store_lanes)(y + i, value, columns - i);
        }
    }
}

static void GMEM__K(rotate)(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end) {
    const int64_t columns = end - begin, stride = op->columns, token = begin - sample * op->tokens;
    const float *weight = op->norm ? op->weight : NULL, *bias = op->norm ? op->bias : NULL;
    float *x = op->x + head * op->head_dim * stride + begin;
    GMEM__K(moments) moments;
    if (op->norm)
        GMEM__K(measure)(x, op->head_dim, stride, columns, op->rms, op->eps, &moments);
    else
        GMEM__K(measure_nothing)(&moments);
    for (int64_t d = 0; d < op->head_dim; d += 2, x += 2 * stride) {
        const int paired = d + 1 < op->head_dim; /* the last of an odd head is normalised only */
        const float w0 = weight ? weight[d] : 1, w1 = weight && paired ? weight[d + 1] : 1;
        const float b0 = bias ? bias[d] : 0, b1 = bias && paired ? bias[d + 1] : 0;
        const float *cosine = op->cosine ? op->cosine + d / 2 * op->tokens + token : NULL;
        const float *sine = op->cosine ? op->sine + d / 2 * op->tokens + token : NULL;
        for (int64_t i = 0; i < columns; i += V_WIDTH) {
            const int64_t lanes = columns - i;
            V_F32 first = GMEM__K(normalise)(x, i, lanes, &moments, w0, b0);
            if (paired) {
                V_F32 second = GMEM__K(normalise)(x + stride, i, lanes, &moments, w1, b1);
                if (cosine) {
                    V_F32 c = GMEM__K(load_lanes)(cosine + i, lanes), s = GMEM__K(load_lanes)(sine + i, lanes);
                    V_F32 turned = V_FNMA(second, s, V_MUL(first, c));
                    second = V_FMA(first, s, V_MUL(second, c));
                    first = turned;
                }
                GMEM__K(store_lanes)(x + stride + i, second, lanes);
            }
            GMEM__K(store_lanes)(x + i, first, lanes);
        }
    }
}

/* The sum of x - mean, and of its square where asked, over a whole image: runs of vectors in f32, what they give in
 * double. */
static double GMEM__K(area_sum)(const float *x, int64_t count, float mean, double *squares) {
    double total = 0, total_squares = 0;
    int64_t i = 0;
    while (count - i >= V_WIDTH) {
        const int64_t rows = gmem__min((count - i) / V_WIDTH, GMEM__SUM_RUN);
        const GMEM__K(sums) sums = GMEM__K(row_sums)(x + i, rows, V_WIDTH, V_WIDTH, V_SET1(mean));
        total += (double)V_SUM(sums.first);
        total_squares += (double)V_SUM(sums.second);
        i += rows * V_WIDTH;
    }
    for (; i < count; i++) {
        const double deviation = (double)x[i] - (double)mean;
        total += deviation;
        total_squares += deviation * deviation;
    }
    if (squares) *squares = total_squares;
    return total;
}

static void GMEM__K(group_norm)(const gmem__group_norm *op, int64_t group) {
    const int64_t channels = op->channels / op->groups, first = group * channels, count = channels * op->area;
    const float *x = op->x + first * op->area;
    const float mean = (float)(GMEM__K(area_sum)(x, count, 0, NULL) / (double)count);
    double squares;
    const double rest = GMEM__K(area_sum)(x, count, mean, &squares) / (double)count; /* what rounding left of it */
    const double inverse = 1 / sqrt(squares / (double)count + (double)op->eps);
    for (int64_t c = first; c < first + channels; c++) {
        const double weight = inverse * (double)op->weight[c];
        const V_F32 scale = V_SET1((float)weight);
        const V_F32 bias = V_SET1((float)((double)op->bias[c] - rest * weight));
        for (int64_t i = 0; i < op->area; i += V_WIDTH) {
            const int64_t lanes = op->area - i;
            V_F32 y = V_FMA(V_SUB(GMEM__K(load_lanes)(op->x + c * op->area + i, lanes), V_SET1(mean)), scale, bias);
            if (op->silu) y = GMEM__K(silu)(y);
            GMEM__K(store_lanes)(op->y + c * op->area + i, y, lanes);
        }
    }
}

#undef GMEM__SUM_RUN

/* ---- backends/cpu/attention.inc ---- */
/* Template: attention on vectors (FlashAttention, arXiv 2205.14135, with the online softmax of 1805.02867). A block of
 * keys at a time: scores S = K^T Q, the softmax's running maximum and sum of each query, then Y = Y * rescale + V P.
 * Queries lie along the vectors, so nothing is shuffled and no sum is horizontal; both products are the GEMM's
 * tile, which broadcasts from its left operand. Y itself is the accumulator: heads of any width do with the same
 * scratch. */

/* Keys of a block (a multiple of GMEM__MR), channels of a head copied at a time, queries of a panel. */
#define GMEM__KEYS     96
#define GMEM__CHANNELS 128
#define GMEM__LANES    (2 * V_WIDTH)

/* A thread's scratch. Left operands lie as in the tensors, right operands in panels (rows, GMEM__LANES). What pads the
 * last tile is computed with and dropped. */
typedef struct GMEM__K(blocks) {
    float q[GMEM__COLUMN_BLOCK / GMEM__LANES][GMEM__CHANNELS][GMEM__LANES];
    float p[GMEM__COLUMN_BLOCK / GMEM__LANES][GMEM__KEYS][GMEM__LANES]; /* scores, then exp(score - largest) */
    float kv[GMEM__CHANNELS + GMEM__MR][GMEM__KEYS];                    /* k, then v */
    float largest[GMEM__COLUMN_BLOCK], sum[GMEM__COLUMN_BLOCK];         /* of each query's scores so far */
    float rescale[GMEM__COLUMN_BLOCK];                                  /* of the sums before this block */
} GMEM__K(blocks);

/* Rows of k or v, which may lie a power of two apart and then evict each other, side by side. */
static void GMEM__K(copy_keys)(GMEM__K(blocks) * blocks, const float *from, int64_t stride, int64_t channels,
                               int64_t keys) {
    for (int64_t c = 0; c < channels; c++)
        memcpy(blocks->kv[c], from + c * stride, (size_t)keys * sizeof *from);
}

static void GMEM__K(copy_queries)(GMEM__K(blocks) * blocks, const float *from, int64_t stride, int64_t channels,
                                  int64_t queries, float scale) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < gmem__round_up(queries, GMEM__LANES); i += V_WIDTH) {
            V_F32 q = i < queries ? GMEM__K(load_lanes)(from + c * stride + i, queries - i) : V_ZERO();
            V_STORE(&blocks->q[i / GMEM__LANES][c][i % GMEM__LANES], V_MUL(q, V_SET1(scale)));
        }
}

/* p += the scores of the queries that were copied against `keys` copied keys, over these channels. */
static void GMEM__K(scores)(GMEM__K(blocks) * blocks, int64_t channels, int64_t keys, int64_t queries) {
    for (int64_t i = 0; i * GMEM__LANES < queries; i++)
        for (int64_t key = 0; key < keys; key += GMEM__MR)
            GMEM__K(tile)
    (blocks->kv[0] + key, 1, GMEM__KEYS, blocks->q[i][0], channels, blocks->p[i][key], GMEM__LANES);
}

/* p = exp(p - largest), with the largest score so far; the maximum and the sum of each query follow. A NaN may get
 * lost in the maximum, but not in its own exponential. */
static void GMEM__K(softmax)(GMEM__K(blocks) * blocks, int64_t keys, int64_t queries, int first) {
    for (int64_t i = 0; i < queries; i += V_WIDTH) {
        float(*p)[GMEM__LANES] = blocks->p[i / GMEM__LANES];
        const int64_t lane = i % GMEM__LANES;
        const V_F32 before = first ? V_SET1(-INFINITY) : V_LOAD(blocks->largest + i);
        V_F32 largest = before, other = before, sum = V_ZERO();
        for (int64_t key = 0; key < keys; key += 2) { /* two chains, as a maximum takes several cycles */
            largest = V_MAX(largest, V_LOAD(p[key] + lane));
            if (key + 1 < keys) other = V_MAX(other, V_LOAD(p[key + 1] + lane));
        }
        largest = V_MAX(largest, other);
        for (int64_t key = 0; key < keys; key++) {
            V_F32 e = GMEM__K(exp)(V_SUB(V_LOAD(p[key] + lane), largest));
            V_STORE(p[key] + lane, e);
            sum = V_ADD(sum, e);
        }
        if (!first) {
            const V_F32 rescale = GMEM__K(exp)(V_SUB(before, largest));
            V_STORE(blocks->rescale + i, rescale);
            sum = V_FMA(V_LOAD(blocks->sum + i), rescale, sum);
        }
        V_STORE(blocks->sum + i, sum);
        V_STORE(blocks->largest + i, largest);
    }
}

/* y = y * rescale + v p over these channels, divided by the sums after the last block. */
static void GMEM__K(values)(GMEM__K(blocks) * blocks, float *y, int64_t stride, int64_t channels, int64_t keys,
                            int64_t queries, int first, int last) {
    float tile[GMEM__MR][GMEM__LANES];
    for (int64_t i = 0; i < queries; i += GMEM__LANES)
        for (int64_t c = 0; c < channels; c += GMEM__MR) {
            memset(tile, 0, sizeof tile);
            GMEM__K(tile)(blocks->kv[c], GMEM__KEYS, 1, blocks->p[i / GMEM__LANES][0], keys, tile[0], GMEM__LANES);
            for (int64_t r = 0; r < gmem__min(GMEM__MR, channels - c); r++)
                for (int64_t j = i; j < gmem__min(i + GMEM__LANES, queries); j += V_WIDTH) {
                    float *out = y + (c + r) * stride + j;
                    V_F32 value = V_LOAD(tile[r] + (j - i));
                    if (!first)
                        value = V_FMA(GMEM__K(load_lanes)(out, queries - j), V_LOAD(blocks->rescale + j), value);
                    if (last) value = V_DIV(value, V_LOAD(blocks->sum + j));
                    GMEM__K(store_lanes)(out, value, queries - j);
                }
        }
}

static void GMEM__K(attention)(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin, int64_t end,
                               float *scratch) {
    GMEM__K(blocks) *blocks = (GMEM__K(blocks) *)(void *)scratch;
    const int64_t row = head * op->head_dim, column = sample * op->tokens, queries = end - begin;
    for (int64_t key = 0; key < op->tokens; key += GMEM__KEYS) {
        const int64_t keys = gmem__min(GMEM__KEYS, op->tokens - key);
        const int first = key == 0, last = key + keys == op->tokens;
        memset(blocks->p, 0, sizeof blocks->p);
        for (int64_t c = 0; c < op->head_dim; c += GMEM__CHANNELS) {
            const int64_t channels = gmem__min(GMEM__CHANNELS, op->head_dim - c);
            const int64_t at = (row + c) * op->stride + column;
            GMEM__K(copy_keys)(blocks, op->k + at + key, op->stride, channels, keys);
            if (first || op->head_dim > GMEM__CHANNELS) /* else they are still there */
                GMEM__K(copy_queries)(blocks, op->q + at + begin, op->stride, channels, queries, op->scale);
            GMEM__K(scores)(blocks, channels, keys, queries);
        }
        GMEM__K(softmax)(blocks, keys, queries, first);
        for (int64_t c = 0; c < op->head_dim; c += GMEM__CHANNELS) {
            const int64_t channels = gmem__min(GMEM__CHANNELS, op->head_dim - c);
            float *y = op->y + (row + c) * op->y_stride + column + begin;
            GMEM__K(copy_keys)(blocks, op->v + (row + c) * op->stride + column + key, op->stride, channels, keys);
            GMEM__K(values)(blocks, y, op->y_stride, channels, keys, queries, first, last);
        }
    }
}

/* The scratch suffices: an array of negative size otherwise. */
typedef char GMEM__K(blocks_fit)[sizeof(GMEM__K(blocks)) <= GMEM__SCRATCH * sizeof(float) ? 1 : -1];

#undef GMEM__KEYS
#undef GMEM__CHANNELS
#undef GMEM__LANES
/* ---- backends/cpu/narrow.inc ---- */
/* Template: the operands of narrow products (narrow.h): weights to strips, columns of x to panels, and the sums of int8
 * products back to floats. */

/* Values of a row that are converted at a time: whole words of a strip for both types. */
#define GMEM__RUN 512

/* max |w| of a row, and 0, or NaN where a value is not finite. */
static float GMEM__K(largest)(const float *x, int64_t count) {
    V_F32 largest = V_ZERO(), finite = V_ZERO();
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = GMEM__K(load_lanes)(x + i, count - i);
        largest = V_MAX(largest, V_ABS(value));
        finite = V_FMA(value, V_ZERO(), finite);
    }
    return V_MAXIMUM(largest) + V_SUM(finite);
}

/* x (count) to int8, divided by `scale`; to whole vectors. Returns their sum. */
static int32_t GMEM__K(quantise)(const float *x, int64_t count, float scale, signed char *out) {
    const V_F32 inverse = V_SET1(scale > 0 ? 1 / scale : 0);
    V_F32 sum = V_ZERO(); /* exact: below 2^24 */
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = V_ROUND(V_MUL(GMEM__K(load_lanes)(x + i, count - i), inverse));
        V_STORE_I8(out + i, value);
        sum = V_ADD(sum, value);
    }
    return (int32_t)V_SUM(sum);
}

static void GMEM__K(measure_weights)(const gmem__weight *weight, int64_t row, float *scale, int32_t *sum) {
    float values[GMEM__RUN + V_WIDTH];
    signed char bytes[GMEM__RUN + V_WIDTH];
    float largest = 0;
    *sum = 0;
    if (weight->type == GMEM_I8) {
        const signed char *data = (const signed char *)weight->data + row * weight->row_stride;
        for (int64_t k = 0; k < weight->cols; k++)
            *sum += data[k];
        *scale = weight->scale[row];
        return;
    }
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        const float part = GMEM__K(largest)(values, count);
        largest = !(part <= largest) ? part : largest; /* NaN stays */
        if (largest != largest) break;
    }
    *scale = largest / 127;
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        *sum += GMEM__K(quantise)(values, count, *scale, bytes);
    }
}

/* Values [k, k + count) of one row as narrow values, zero beyond the row's end. */
static void GMEM__K(narrow_values)(const gmem__narrow *narrow, const gmem__weight *weight, int64_t row, int64_t k,
                                   int64_t count, float scale, char *out) {
    const int64_t bytes = narrow->type == GMEM_BF16 ? 2 : 1;
    const int64_t inside = gmem__max(0, gmem__min(count, weight->cols - k));
    float values[GMEM__RUN + V_WIDTH];
    if (weight->type == narrow->type) {
        memcpy(out, (const char *)weight->data + (row * weight->row_stride + k) * bytes, (size_t)(inside * bytes));
    } else if (inside > 0) {
        GMEM__K(convert)(weight, row, k, inside, values);
        if (bytes == 1) (void)GMEM__K(quantise)(values, inside, scale, (signed char *)out);
        for (int64_t i = 0; bytes == 2 && i < inside; i += V_WIDTH)
            V_STORE_BF16(out + 2 * i, V_ROUND_BF16(V_LOAD(values + i)));
    }
    memset(out + inside * bytes, 0, (size_t)((count - inside) * bytes));
}

static void GMEM__K(pack_narrow_strip)(const gmem__narrow *narrow, const gmem__weight *weight,
                                       const gmem__strip_part *part, uint32_t *strip) {
    const int64_t per_word = narrow->type == GMEM_BF16 ? 2 : 4, run = GMEM__RUN / per_word;
    char values[GMEM__RUN * 2 + 2 * V_WIDTH];
    for (int64_t r = 0; r < narrow->mr; r++) {
        uint32_t *out = strip + r * GMEM__TILE_WORDS;
        for (int64_t word = 0; word < part->words; word += run) {
            const int64_t words = gmem__min(run, part->words - word);
            if (r < part->rows) GMEM__K(narrow_values)
            (narrow, weight, part->row + r, part->k + word * per_word, words * per_word,
             part->scale ? part->scale[r] : 1, values);
            else memset(values, 0, (size_t)words * 4);
            for (int64_t i = 0; i < words; i += GMEM__TILE_WORDS, out += narrow->mr * GMEM__TILE_WORDS)
                memcpy(out, values + i * 4, GMEM__TILE_WORDS * 4);
        }
    }
}

/* One vector of columns, all of the depth, as pairs of bf16. */
static void GMEM__K(panel_bf16)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                                uint32_t *panel) {
    int64_t w = 0;
    for (; w < depth / 2; w++, x += 2 * stride, panel += nr) {
        const V_F32 low = V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes));
        const V_F32 high = V_ROUND_BF16(GMEM__K(load_lanes)(x + stride, lanes));
        V_STORE_WORDS(panel, V_WORD_BF16(low, high));
    }
    for (; w < words; w++, panel += nr) {
        const V_F32 low = 2 * w < depth ? V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes)) : V_ZERO();
        V_STORE_WORDS(panel, V_WORD_BF16(low, V_ZERO()));
    }
}

/* The same as four int8, each column divided by its scale, which is found first. */
static void GMEM__K(panel_i8)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                              int unsigned_x, uint32_t *panel, float *scale) {
    V_F32 a = V_ZERO(), b = V_ZERO(), finite = V_ZERO(), value[4];
    for (int64_t k = 0; k < depth; k++) {
        const V_F32 row = GMEM__K(load_lanes)(x + k * stride, lanes);
        if (k % 2)
            a = V_MAX(a, V_ABS(row));
        else
            b = V_MAX(b, V_ABS(row));
        finite = V_FMA(row, V_ZERO(), finite);
    }
    const V_F32 largest = V_MAX(V_MAX(a, b), V_SET1(1e-30f)); /* never divides by zero */
    const V_F32 inverse = V_DIV(V_SET1(127), largest);
    GMEM__K(store_lanes)(scale, V_ADD(V_MUL(largest, V_SET1(1.0f / 127)), finite), lanes);
    for (int64_t w = 0; w < words; w++, panel += nr) {
        for (int64_t i = 0; i < 4; i++)
            value[i] =
                4 * w + i < depth ? V_MUL(GMEM__K(load_lanes)(x + (4 * w + i) * stride, lanes), inverse) : V_ZERO();
        const V_I32 word = V_WORD_I8(value[0], value[1], value[2], value[3]);
        V_STORE_WORDS(panel, unsigned_x ? V_FLIP_SIGNS(word) : word);
    }
}

static void GMEM__K(pack_narrow_panels)(const gmem__narrow *narrow, const float *x, int64_t stride, int64_t depth,
                                        int64_t words, int64_t columns, uint32_t *panels, int64_t panel_step,
                                        float *scale) {
    const int64_t nr = narrow->nr;
    for (int64_t i = 0; i < gmem__round_up(columns, nr); i += V_WIDTH) {
        uint32_t *panel = panels + i / nr * panel_step + i % nr;
        if (i >= columns) /* a panel's last columns */
            for (int64_t w = 0; w < words; w++)
                memset(panel + w * nr, 0, V_WIDTH * sizeof *panel);
        else if (narrow->type == GMEM_BF16)
            GMEM__K(panel_bf16)(x + i, stride, depth, words, columns - i, nr, panel);
        else
            GMEM__K(panel_i8)(x + i, stride, depth, words, columns - i, nr, narrow->unsigned_x, panel, scale + i);
    }
}

static void GMEM__K(dequantise)(void *sums, int64_t count, int32_t offset, float row_scale, const float *scale) {
    const V_F32 factor = V_SET1(row_scale);
    float *out = (float *)sums;
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 sum = V_FROM_I32((const int32_t *)sums + i, offset);
        V_STORE(out + i, V_MUL(V_MUL(sum, factor), V_LOAD(scale + i)));
    }
}

static const gmem__narrow_rows *GMEM__K(narrow_rows)(void) {
    static const gmem__narrow_rows rows = {GMEM__K(measure_weights), GMEM__K(pack_narrow_strip),
                                           GMEM__K(pack_narrow_panels), GMEM__K(dequantise)};
    return &rows;
}

#undef GMEM__RUN
/* ---- backends/cpu/narrow_attention.inc ---- */
/* Template: attention through a bf16 kernel's products: scores S = K^T Q and values Y = V P, both operands packed as
 * narrow.h has them. All keys of a head are packed once; queries go GMEM__COLUMN_BLOCK at a time, and as all their
 * scores fit, the softmax is plain. */

#define GMEM__LANES GMEM__COLUMN_BLOCK

/* Where things lie in a task's scratch; gmem__narrow_attention_floats (drivers.c) says how much they take. */
typedef struct GMEM__K(packed_head) {
    const gmem__narrow *narrow;
    int64_t tokens, channels;
    int64_t channel_words, token_words; /* padded */
    uint32_t *k;                        /* strips of keys, in words along the channels */
    uint32_t *v;                        /* strips of channels, in words along the keys */
    uint32_t *q, *p;                    /* panels of queries: (channel_words, nr), (token_words, nr) */
    float *s, *y;                       /* (padded tokens or channels, GMEM__LANES) */
} GMEM__K(packed_head);

static GMEM__K(packed_head) GMEM__K(place_head)(const gmem__narrow *narrow, const gmem__attention *op, float *scratch) {
    GMEM__K(packed_head) head;
    const int64_t keys = gmem__round_up(op->tokens, narrow->mr), rows = gmem__round_up(op->head_dim, narrow->mr);
    head.narrow = narrow;
    head.tokens = op->tokens;
    head.channels = op->head_dim;
    head.channel_words = gmem__round_up(gmem__ceil_div(op->head_dim, 2), GMEM__TILE_WORDS);
    head.token_words = gmem__round_up(gmem__ceil_div(op->tokens, 2), GMEM__TILE_WORDS);
    head.s = scratch;
    head.y = head.s + keys * GMEM__LANES;
    head.q = (uint32_t *)(void *)(head.y + rows * GMEM__LANES);
    head.p = head.q + head.channel_words * GMEM__LANES;
    head.k = head.p + head.token_words * GMEM__LANES;
    head.v = head.k + keys * head.channel_words;
    return head;
}

/* A key's words lie along the channels, across the vectors: turned in pieces of a vector's keys. */
static void GMEM__K(pack_keys)(const GMEM__K(packed_head) * head, const float *k, int64_t stride) {
    const int64_t mr = head->narrow->mr, strip_words = head->channel_words * mr;
    uint32_t words[V_WIDTH];
    memset(head->k, 0, (size_t)(gmem__ceil_div(head->tokens, mr) * strip_words) * sizeof *head->k);
    for (int64_t key = 0; key < head->tokens; key += V_WIDTH) {
        const int64_t lanes = gmem__min(V_WIDTH, head->tokens - key);
        uint32_t *at[V_WIDTH];
        for (int64_t i = 0; i < lanes; i++)
            at[i] = head->k + (key + i) / mr * strip_words + (key + i) % mr * GMEM__TILE_WORDS;
        for (int64_t c = 0; c < head->channels; c += 2) {
            const float *row = k + c * stride + key;
            const V_F32 low = V_ROUND_BF16(GMEM__K(load_lanes)(row, lanes));
            const V_F32 high =
                c + 1 < head->channels ? V_ROUND_BF16(GMEM__K(load_lanes)(row + stride, lanes)) : V_ZERO();
            const int64_t word = c / 2 / GMEM__TILE_WORDS * mr * GMEM__TILE_WORDS + c / 2 % GMEM__TILE_WORDS;
            V_STORE_WORDS(words, V_WORD_BF16(low, high));
            for (int64_t i = 0; i < lanes; i++)
                at[i][word] = words[i];
        }
    }
}

/* A channel's words lie along the keys, as in a row of weights. */
static void GMEM__K(pack_values)(const GMEM__K(packed_head) * head, const float *v, int64_t stride) {
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.data = v;
    weight.type = GMEM_F32;
    weight.rows = head->channels;
    weight.cols = head->tokens;
    weight.row_stride = stride;
    for (int64_t c = 0; c < head->channels; c += head->narrow->mr) {
        gmem__strip_part part;
        memset(&part, 0, sizeof part);
        part.row = c;
        part.rows = gmem__min(head->narrow->mr, head->channels - c);
        part.words = head->token_words;
        GMEM__K(pack_narrow_strip)(head->narrow, &weight, &part, head->v + c * head->token_words);
    }
}

/* out (rows, GMEM__LANES) = strips * panels, over the whole depth; a head's is short, so that its padding counts. */
static void GMEM__K(multiply_strips)(const gmem__narrow *narrow, const uint32_t *strips, int64_t rows, int64_t depth,
                                     const uint32_t *panels, int64_t queries, float *out) {
    const int64_t used = gmem__ceil_div(depth, 2), words = gmem__round_up(used, GMEM__TILE_WORDS);
    const int64_t count = gmem__ceil_div(rows, narrow->mr);
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strip_step = words * narrow->mr;
    block.panel_step = words * narrow->nr;
    block.panel_count = gmem__ceil_div(queries, narrow->nr);
    block.product_step = GMEM__LANES;
    for (int64_t strip = 0; strip < count; strip += narrow->strips)
        for (int64_t word = 0; word < used; word += narrow->block) {
            block.strips = gmem__min(narrow->strips, count - strip);
            block.weights = strips + strip * block.strip_step + word * narrow->mr;
            block.panels = panels + word * narrow->nr;
            block.words = gmem__min(narrow->block, used - word);
            block.first = word == 0;
            block.product = out + strip * narrow->mr * GMEM__LANES;
            narrow->multiply(&block);
        }
}

/* p = exp(scale * (s - its column's largest)) of one vector of queries; returns the sums, in which a NaN stays. */
static V_F32 GMEM__K(softmax_words)(const GMEM__K(packed_head) * head, int64_t lane, float scale) {
    const int64_t nr = head->narrow->nr, tokens = head->tokens;
    const float *s = head->s + lane;
    uint32_t *p = head->p + lane / nr * head->token_words * nr + lane % nr;
    V_F32 largest = V_LOAD(s), other = largest, sum = V_ZERO(), high;
    int64_t key = 1;
    for (; key + 1 < tokens; key += 2) { /* two chains, as a maximum takes several cycles */
        largest = V_MAX(largest, V_LOAD(s + key * GMEM__LANES));
        other = V_MAX(other, V_LOAD(s + (key + 1) * GMEM__LANES));
    }
    if (key < tokens) largest = V_MAX(largest, V_LOAD(s + key * GMEM__LANES));
    largest = V_MUL(V_MAX(largest, other), V_SET1(scale));
    for (key = 0; key < tokens; key += 2, p += nr, s += 2 * GMEM__LANES) {
        V_F32 low = GMEM__K(exp)(V_SUB(V_MUL(V_LOAD(s), V_SET1(scale)), largest));
        high = V_ZERO();
        if (key + 1 < tokens) high = GMEM__K(exp)(V_SUB(V_MUL(V_LOAD(s + GMEM__LANES), V_SET1(scale)), largest));
        sum = V_ADD(sum, V_ADD(low, high));
        V_STORE_WORDS(p, V_WORD_WEIGHTS(low, high));
    }
    for (key = gmem__ceil_div(tokens, 2); key < head->token_words; key++, p += nr)
        V_STORE_WORDS(p, V_WORD_BF16(V_ZERO(), V_ZERO()));
    return sum;
}

static void GMEM__K(attend_queries)(const GMEM__K(packed_head) * head, const gmem__attention *op, const float *q,
                                    float *y, int64_t queries) {
    float inverse[GMEM__LANES];
    GMEM__K(pack_narrow_panels)
    (head->narrow, q, op->stride, head->channels, head->channel_words, queries, head->q,
     head->channel_words * head->narrow->nr, NULL);
    GMEM__K(multiply_strips)
    (head->narrow, head->k, head->tokens, head->channels, head->q, queries, head->s);
    for (int64_t i = 0; i < gmem__round_up(queries, head->narrow->nr); i += V_WIDTH)
        V_STORE(inverse + i, V_DIV(V_SET1(1), GMEM__K(softmax_words)(head, i, op->scale)));
    GMEM__K(multiply_strips)
    (head->narrow, head->v, head->channels, head->tokens, head->p, queries, head->y);
    for (int64_t c = 0; c < head->channels; c++)
        for (int64_t i = 0; i < queries; i += V_WIDTH) {
            const V_F32 value = V_MUL(V_LOAD(head->y + c * GMEM__LANES + i), V_LOAD(inverse + i));
            GMEM__K(store_lanes)(y + c * op->y_stride + i, value, queries - i);
        }
}

static void GMEM__K(narrow_attention)(const gmem__narrow *narrow, const gmem__attention *op, int64_t sample,
                                      int64_t head, int64_t begin, int64_t end, float *scratch) {
    const GMEM__K(packed_head) packed = GMEM__K(place_head)(narrow, op, scratch);
    const int64_t row = head * op->head_dim, column = sample * op->tokens;
    GMEM__K(pack_keys)(&packed, op->k + row * op->stride + column, op->stride);
    GMEM__K(pack_values)(&packed, op->v + row * op->stride + column, op->stride);
    if (narrow->begin) narrow->begin();
    for (int64_t query = begin; query < end; query += GMEM__LANES)
        GMEM__K(attend_queries)
    (&packed, op, op->q + row * op->stride + column + query, op->y + row * op->y_stride + column + query,
     gmem__min(GMEM__LANES, end - query));
    if (narrow->end) narrow->end();
}

#undef GMEM__LANES

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

GMEM__FN const gmem__kernels *gmem__avx2_kernels(void) {
    static const gmem__kernels kernels = {GMEM__MR,
                                          2 * V_WIDTH,
                                          gmem__avx2_gemm,
                                          gmem__avx2_norm,
                                          gmem__avx2_rotate,
                                          gmem__avx2_attention,
                                          gmem__avx2_group_norm,
                                          gmem__avx2_finish_row,
                                          gmem__avx2_round_bf16,
                                          gmem__avx2_narrow_rows,
                                          gmem__avx2_narrow_attention};
    return &kernels;
}

/* ---- backends/cpu/vector_end.inc ---- */
/* Withdraws what an instruction set defined, so that the next one can. */
#undef GMEM__K
#undef GMEM__MR
#undef GMEM__REPEAT
#undef V_WIDTH
#undef V_F32
#undef V_I32
#undef V_MASK
#undef V_LOAD
#undef V_STORE
#undef V_ZERO
#undef V_SET1
#undef V_ADD
#undef V_SUB
#undef V_MUL
#undef V_DIV
#undef V_MAX
#undef V_MIN
#undef V_SQRT
#undef V_ABS
#undef V_FMA
#undef V_FNMA
#undef V_ROUND
#undef V_LESS
#undef V_IS_NAN
#undef V_SELECT
#undef V_SCALE2
#undef V_LOAD_F16
#undef V_LOAD_BF16
#undef V_LOAD_I8
#undef V_PREFETCH
#undef V_LOAD_F32
#undef V_LOAD_PART
#undef V_STORE_PART
#undef V_SUM
#undef V_MAXIMUM
#undef V_ROUND_BF16
#undef V_WORD_BF16
#undef V_WORD_I8
#undef V_WORD_WEIGHTS
#undef V_FLIP_SIGNS
#undef V_STORE_WORDS
#undef V_STORE_BF16
#undef V_STORE_I8
#undef V_FROM_I32
#endif /* GMEM__X86 */
/* ---- backends/cpu/avx512.c ---- */
/* AVX-512 (F, BW, DQ, VL): the vector operations that the templates are written in, and the templates. */

#ifdef GMEM__X86
#include <immintrin.h>
#include <math.h>

#define GMEM__K(name) gmem__avx512_##name

#define V_WIDTH 16
#define V_F32   __m512
#define V_I32   __m512i
#define V_MASK  __mmask16

#define V_LOAD(p)            _mm512_loadu_ps(p)
#define V_STORE(p, a)        _mm512_storeu_ps((p), (a))
#define V_ZERO()             _mm512_setzero_ps()
#define V_SET1(a)            _mm512_set1_ps(a)
#define V_ADD(a, b)          _mm512_add_ps((a), (b))
#define V_SUB(a, b)          _mm512_sub_ps((a), (b))
#define V_MUL(a, b)          _mm512_mul_ps((a), (b))
#define V_DIV(a, b)          _mm512_div_ps((a), (b))
#define V_MAX(a, b)          _mm512_max_ps((a), (b))
#define V_MIN(a, b)          _mm512_min_ps((a), (b))
#define V_SQRT(a)            _mm512_sqrt_ps(a)
#define V_ABS(a)             _mm512_abs_ps(a)
#define V_FMA(a, b, c)       _mm512_fmadd_ps((a), (b), (c))            /* a b + c */
#define V_FNMA(a, b, c)      _mm512_fnmadd_ps((a), (b), (c))           /* c - a b */
#define V_ROUND(a)           _mm512_cvtepi32_ps(_mm512_cvtps_epi32(a)) /* |a| < 2^31; roundscale warns at -O0 */
#define V_LESS(a, b)         _mm512_cmp_ps_mask((a), (b), _CMP_LT_OQ)
#define V_IS_NAN(a)          _mm512_cmp_ps_mask((a), (a), _CMP_UNORD_Q)
#define V_SELECT(mask, a, b) _mm512_mask_blend_ps((mask), (b), (a)) /* mask ? a : b */
/* a * 2^n for integral n, where the result is a normal number. */
#define V_SCALE2(a, n) _mm512_scalef_ps((a), (n))
/* Of stored weights, at any address. The prefetch is assembly since gcc takes a function of mere prefetches for one
 * without effect. */
#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))
#define V_LOAD_F32(p) _mm512_loadu_ps((const float *)(const void *)(p))
#define V_LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define V_LOAD_BF16(p)   \
    _mm512_castsi512_ps( \
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define V_LOAD_I8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))
/* The first n lanes only, 0 <= n <= V_WIDTH; the others load as zero. */
#define V_LOAD_PART(p, n)     _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), (p))
#define V_STORE_PART(p, a, n) _mm512_mask_storeu_ps((p), (__mmask16)((1u << (n)) - 1), (a))
#define V_SUM(a)              _mm512_reduce_add_ps(a)
#define V_MAXIMUM(a)          _mm512_reduce_max_ps(a)

/* To the nearest bf16, kept as a float; NaN stays NaN. */
#define V_ROUND_BF16(a) gmem__avx512_round_to_bf16(a)
/* Words of two rounded bf16, or of four integral floats below 128, the first in the lowest bits. */
#define V_WORD_BF16(lo, hi) _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(lo), 16), _mm512_castps_si512(hi))
/* The same of two floats between 0 and 1 that are not rounded yet: to nearest, ties up, and NaN to anything. */
#define V_WORD_WEIGHTS(lo, hi) gmem__avx512_word_weights((lo), (hi))
#define V_WORD_I8(a, b, c, d)  gmem__avx512_word_i8((a), (b), (c), (d))
#define V_FLIP_SIGNS(word)     _mm512_xor_si512((word), _mm512_set1_epi32((int)0x80808080))
#define V_STORE_WORDS(p, word) _mm512_storeu_si512((p), (word))
#define V_STORE_BF16(p, a)     _mm256_storeu_si256((__m256i *)(void *)(p), gmem__avx512_halves(a))
#define V_STORE_I8(p, a)       _mm_storeu_si128((__m128i *)(void *)(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)))
#define V_FROM_I32(p, minus)   _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(minus)))

/* The GEMM's micro-kernel: 12 rows, whose sums fill 24 of 32 registers. */
#define GMEM__MR        12
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic push /* g++ 12 takes its own header's undefined operands for a mistake (GCC 105593) */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

GMEM__INLINE __m512 gmem__avx512_round_to_bf16(__m512 a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi32((int)0xffff0000));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(V_IS_NAN(a), rounded, _mm512_set1_epi32(0x7fc00000)));
}
GMEM__INLINE __m256i gmem__avx512_halves(__m512 rounded) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(rounded), 16));
}
GMEM__INLINE __m512i gmem__avx512_word_i8(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512i byte = _mm512_set1_epi32(0xff);
    const __m512i low = _mm512_or_si512(_mm512_and_si512(_mm512_cvtps_epi32(a), byte),
                                        _mm512_slli_epi32(_mm512_and_si512(_mm512_cvtps_epi32(b), byte), 8));
    const __m512i high =
        _mm512_or_si512(_mm512_and_si512(_mm512_cvtps_epi32(c), byte), _mm512_slli_epi32(_mm512_cvtps_epi32(d), 8));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

GMEM__INLINE __m512i gmem__avx512_word_weights(__m512 low, __m512 high) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    const __m512i l = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low), half), 16);
    return _mm512_or_si512(l, _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(high), half), upper));
}

/* ---- backends/cpu/math.inc ---- */
/* Template: exp and the activations on vectors. */

/* e^x within 1.5 ulp, by x = n ln 2 + r, |r| <= ln 2 / 2 (Cody and Waite), and e^r = 1 + r + r^2 p(r), p being minimax
 * (relative error 4e-9). Below -87.3 it gives e^-87.3 (1.2e-38), above 88.3 e^88.3; NaN stays NaN. */
GMEM__INLINE V_F32 GMEM__K(exp)(V_F32 x) {
    /* max and min give their second operand where one is NaN */
    x = V_MAX(V_SET1(-87.3f), V_MIN(V_SET1(88.3f), x));
    const V_F32 n = V_ROUND(V_MUL(x, V_SET1(1.44269504f)));
    const V_F32 r = V_FNMA(n, V_SET1(-1.90465421e-9f), V_FNMA(n, V_SET1(0.693147182f), x));
    V_F32 p = V_SET1(1.381446724e-3f);
    p = V_FMA(p, r, V_SET1(8.368780836e-3f));
    p = V_FMA(p, r, V_SET1(4.166839272e-2f));
    p = V_FMA(p, r, V_SET1(1.666651964e-1f));
    p = V_FMA(p, r, V_SET1(4.999999404e-1f));
    p = V_FMA(V_MUL(p, r), r, V_ADD(r, V_SET1(1.0f)));
    return V_SCALE2(p, n);
}

GMEM__INLINE V_F32 GMEM__K(silu)(V_F32 x) { return V_DIV(x, V_ADD(V_SET1(1.0f), GMEM__K(exp)(V_SUB(V_ZERO(), x)))); }

/* 0.5 x (1 + tanh(s)) = x / (1 + e^-2s), s = sqrt(2 / pi) (x + 0.044715 x^3) */
GMEM__INLINE V_F32 GMEM__K(gelu_tanh)(V_F32 x) {
    const V_F32 s = V_MUL(x, V_FMA(V_MUL(x, x), V_SET1(0.044715f), V_SET1(1.0f)));
    return V_DIV(x, V_ADD(V_SET1(1.0f), GMEM__K(exp)(V_MUL(s, V_SET1(-1.5957691216f)))));
}

/* x P(x), P being the normal distribution's integral: max(x, 0) - a Q(a), a = |x|, Q(a) = e^(-a^2/2) t p(t),
 * t = 1 / (1 + 0.4 a) (the form of Abramowitz and Stegun 26.2.17), p being minimax (absolute error of a Q 8e-9). */
GMEM__INLINE V_F32 GMEM__K(gelu_erf)(V_F32 x) {
    const V_F32 a = V_ABS(x), one = V_SET1(1.0f);
    const V_F32 t = V_DIV(one, V_FMA(a, V_SET1(0.4f), one));
    const V_F32 density = GMEM__K(exp)(V_MUL(V_MUL(a, a), V_SET1(-0.5f)));
    V_F32 p = V_SET1(5.724073201e-2f);
    p = V_FMA(p, t, V_SET1(-2.577858269e-1f));
    p = V_FMA(p, t, V_SET1(3.441259861e-1f));
    p = V_FMA(p, t, V_SET1(1.007481944e-2f));
    p = V_FMA(p, t, V_SET1(1.897868812e-1f));
    p = V_FMA(p, t, V_SET1(1.565577388e-1f));
    return V_FNMA(V_MUL(a, t), V_MUL(p, density), V_MAX(x, V_ZERO()));
}
/* ---- backends/cpu/gemm.inc ---- */
/* Template: the GEMM. A strip of GMEM__MR weight rows, read in place or converted to floats, is multiplied with panels
 * of x, whose columns fill two vectors: strip * panel is summed in registers over one block of the depth, and these
 * sums in the tile's product. After the last block the epilogue takes the product to y. */

#define GMEM__NR (2 * V_WIDTH)

/* out (count) = weight[row][k .. k + count) as floats. */
static void GMEM__K(convert)(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    const int64_t first = row * weight->row_stride + k, whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    const V_F32 scale = V_SET1(weight->scale ? weight->scale[row] : 1.0f);
    const char *data = (const char *)weight->data;
    float tail[V_WIDTH] = {0}; /* wide enough for a vector of any type */
#define GMEM__CONVERT(bytes, load)                                        \
    data += first * bytes;                                                \
    for (int64_t i = 0; i < whole; i += V_WIDTH, data += V_WIDTH * bytes) \
        V_STORE(out + i, load(data));                                     \
    if (rest) {                                                           \
        memcpy(tail, data, (size_t)(rest * bytes));                       \
        V_STORE_PART(out + whole, load(tail), rest);                      \
    }
#define GMEM__SCALED_I8(p) V_MUL(scale, V_LOAD_I8(p))
    switch (weight->type) {
    case GMEM_F16:
        GMEM__CONVERT(2, V_LOAD_F16) break;
    case GMEM_BF16:
        GMEM__CONVERT(2, V_LOAD_BF16) break;
    case GMEM_I8:
        GMEM__CONVERT(1, GMEM__SCALED_I8) break;
    default:
        GMEM__CONVERT(4, V_LOAD_F32)
    }
#undef GMEM__CONVERT
#undef GMEM__SCALED_I8
}

static void GMEM__K(round_bf16)(float *x, int64_t count) {
    const int64_t whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    for (int64_t i = 0; i < whole; i += V_WIDTH)
        V_STORE(x + i, V_ROUND_BF16(V_LOAD(x + i)));
    if (rest) V_STORE_PART(x + whole, V_ROUND_BF16(V_LOAD_PART(x + whole, rest)), rest);
}

/* The strips of a tile in the order of their use: all rows of one block of the depth, then of the next. */
typedef struct GMEM__K(strips) {
    const gmem__gemm *gemm;
    const gmem__tile *tile;
    int64_t rows, block; /* product rows of the tile; depth of a block */
    int64_t per_block, count;
} GMEM__K(strips);

/* A part of a strip: rows [begin, end) of the tile, depth [k, k + depth). */
typedef struct GMEM__K(part) {
    int64_t first, begin, end, k, depth;
} GMEM__K(part);

GMEM__INLINE GMEM__K(part) GMEM__K(part_of)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts) {
    GMEM__K(part) part;
    part.first = strip % strips->per_block * GMEM__MR;
    part.begin = part.first + i * GMEM__MR / parts;
    part.end = part.first + (i + 1) * GMEM__MR / parts;
    part.k = strip / strips->per_block * strips->block;
    part.depth = gmem__min(strips->block, strips->gemm->depth - part.k);
    return part;
}

/* Converts part i of so many of a strip: out (GMEM__MR, GMEM__KC), zeros below the tile's last row. */
static void GMEM__K(pack_strip)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts, float *out) {
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, i, parts);
    const gmem__gemm *gemm = strips->gemm;
    out += (part.begin - part.first) * GMEM__KC;
    for (int64_t r = part.begin; r < part.end; r++, out += GMEM__KC) {
        const int64_t row = gmem__tile_row(gemm, strips->tile, r);
        if (r >= strips->rows) {
            memset(out, 0, (size_t)part.depth * sizeof *out);
        } else {
            GMEM__K(convert)(gemm->weight, row, part.k, part.depth, out);
            if (gemm->round_bf16) GMEM__K(round_bf16)(out, part.depth);
        }
    }
}

/* The strip where it lies in the file, or NULL where it must be converted: other types than floats, rows that are not
 * neighbours, and more rows than a cache has ways, a multiple of its size apart: they would evict each other. */
static const gmem__unaligned_f32 *GMEM__K(in_place)(const GMEM__K(strips) * strips, int64_t strip) {
    const gmem__weight *weight = strips->gemm->weight;
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, 0, 1);
    const int evicting = GMEM__MR > 8 && weight->row_stride % 1024 == 0;
    if (weight->type != GMEM_F32 || strips->gemm->round_bf16 || evicting || part.end > strips->rows) return NULL;
    const int64_t row = gmem__tile_row(strips->gemm, strips->tile, part.first);
    if (gmem__tile_row(strips->gemm, strips->tile, part.end - 1) != row + GMEM__MR - 1) return NULL;
    return (const gmem__unaligned_f32 *)weight->data + row * weight->row_stride + part.k;
}

/* Asks for the weights of a part, which come from memory, long before it is converted. */
static void GMEM__K(prefetch)(const GMEM__K(strips) * strips, int64_t strip, int64_t i, int64_t parts) {
    const GMEM__K(part) part = GMEM__K(part_of)(strips, strip, i, parts);
    const gmem__weight *weight = strips->gemm->weight;
    const int64_t bytes = weight->type == GMEM_F32 ? 4 : weight->type == GMEM_I8 ? 1 : 2;
    for (int64_t r = part.begin; r < gmem__min(part.end, strips->rows); r++) {
        const int64_t row = gmem__tile_row(strips->gemm, strips->tile, r);
        const char *data = (const char *)weight->data + (row * weight->row_stride + part.k) * bytes;
        for (int64_t at = 0; at < part.depth * bytes; at += 64)
            V_PREFETCH(data + at);
    }
}

/* The left operand's row r: every third row has a pointer, as a processor addresses 0, 1 and 2 steps from it. */
#define GMEM__LEFT(r) (r / 3 == 0 ? left : r / 3 == 1 ? left3 : r / 3 == 2 ? left6 : left9)[r % 3 * row_step]

/* out (GMEM__MR, 2 vectors; rows out_step apart) += left * panel, where left (GMEM__MR, depth) lies at any steps and
 * panel is (depth, 2 vectors). The sum starts from zero: over several blocks of the depth, rounding errors grow with
 * the block, not with the whole. */
GMEM__ALWAYS_INLINE void GMEM__K(tile)(const gmem__unaligned_f32 *left, int64_t row_step, int64_t k_step,
                                       const float *panel, int64_t depth, float *out, int64_t out_step) {
    const gmem__unaligned_f32 *left3 = left + 3 * row_step, *left6 = left3 + 3 * row_step,
                              *left9 = left6 + 3 * row_step;
#define GMEM__BEGIN(r) V_F32 a##r = V_ZERO(), b##r = V_ZERO();
#define GMEM__STEP(r)          \
    w = V_SET1(GMEM__LEFT(r)); \
    a##r = V_FMA(w, x0, a##r); \
    b##r = V_FMA(w, x1, b##r);
#define GMEM__END(r)                                                      \
    V_STORE(out + r * out_step, V_ADD(a##r, V_LOAD(out + r * out_step))); \
    V_STORE(out + r * out_step + V_WIDTH, V_ADD(b##r, V_LOAD(out + r * out_step + V_WIDTH)));
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t k = 0; k < depth; k++, panel += GMEM__NR) {
        const V_F32 x0 = V_LOAD(panel), x1 = V_LOAD(panel + V_WIDTH);
        V_F32 w;
        GMEM__REPEAT(GMEM__STEP)
        left += k_step, left3 += k_step, left6 += k_step, left9 += k_step;
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__END
}

/* product (GMEM__MR, 2 vectors; rows GMEM__NC apart) += left * panel. */
static void GMEM__K(multiply2)(const gmem__unaligned_f32 *left, int64_t row_step, const float *panel, int64_t depth,
                               float *product) {
    GMEM__K(tile)(left, row_step, 1, panel, depth, product, GMEM__NC);
}

/* The same for a panel of which only the first vector matters. */
static void GMEM__K(multiply1)(const gmem__unaligned_f32 *left, int64_t row_step, const float *panel, int64_t depth,
                               float *product) {
    const gmem__unaligned_f32 *left3 = left + 3 * row_step, *left6 = left3 + 3 * row_step,
                              *left9 = left6 + 3 * row_step;
#define GMEM__BEGIN(r) V_F32 a##r = V_ZERO();
#define GMEM__STEP(r)  a##r = V_FMA(V_SET1(GMEM__LEFT(r)), x, a##r);
#define GMEM__END(r)   V_STORE(product + r * GMEM__NC, V_ADD(a##r, V_LOAD(product + r * GMEM__NC)));
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t k = 0; k < depth; k++, panel += GMEM__NR) {
        const V_F32 x = V_LOAD(panel);
        GMEM__REPEAT(GMEM__STEP)
        left++, left3++, left6++, left9++;
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__END
}
#undef GMEM__LEFT

/* row (count) = activation(row + bias), whole vectors. */
static void GMEM__K(activate)(gmem__activation activation, float bias, int64_t count, float *row) {
    const V_F32 b = V_SET1(bias);
    int64_t c;
    switch (activation) {
    case GMEM__ACT_SILU:
    case GMEM__ACT_SWIGLU:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(silu)(V_ADD(V_LOAD(row + c), b)));
        break;
    case GMEM__ACT_GELU_TANH:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(gelu_tanh)(V_ADD(V_LOAD(row + c), b)));
        break;
    case GMEM__ACT_GELU_ERF:
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, GMEM__K(gelu_erf)(V_ADD(V_LOAD(row + c), b)));
        break;
    default:
        if (bias == 0) return;
        for (c = 0; c < count; c += V_WIDTH)
            V_STORE(row + c, V_ADD(V_LOAD(row + c), b));
    }
}

/* y (count) = residual + gate * row; residual NULL: 0. */
static void GMEM__K(store)(const float *row, float gate, const float *residual, int64_t count, float *y) {
    const V_F32 g = V_SET1(gate);
    const int64_t whole = count / V_WIDTH * V_WIDTH, rest = count - whole;
    int64_t c = 0;
    if (!residual) {
        for (; c < whole; c += V_WIDTH)
            V_STORE(y + c, V_MUL(g, V_LOAD(row + c)));
        if (rest) V_STORE_PART(y + c, V_MUL(g, V_LOAD_PART(row + c, rest)), rest);
        return;
    }
    for (; c < whole; c += V_WIDTH)
        V_STORE(y + c, V_FMA(g, V_LOAD(row + c), V_LOAD(residual + c)));
    if (rest) V_STORE_PART(y + c, V_FMA(g, V_LOAD_PART(row + c, rest), V_LOAD_PART(residual + c, rest)), rest);
}

/* Row i of the tile from the product to y; SWIGLU's other half begins with the product's row `up_row`. */
static void GMEM__K(finish_row)(const gmem__gemm *gemm, const gmem__tile *tile, int64_t i, int64_t up_row,
                                float *product) {
    const int64_t row = tile->row + i, padded = gmem__round_up(tile->columns, V_WIDTH);
    float *sums = product + i * GMEM__NC;
    GMEM__K(activate)(gemm->activation, gemm->bias ? gemm->bias[row] : 0.0f, padded, sums);
    if (gemm->activation == GMEM__ACT_SWIGLU) {
        const float *up = product + (up_row + i) * GMEM__NC;
        const V_F32 bias = V_SET1(gemm->bias ? gemm->bias[row + gemm->rows / 2] : 0.0f);
        for (int64_t c = 0; c < padded; c += V_WIDTH)
            V_STORE(sums + c, V_MUL(V_LOAD(sums + c), V_ADD(V_LOAD(up + c), bias)));
    }
    const int64_t end = tile->column + tile->columns;
    for (int64_t c = tile->column, next; c < end; c = next) { /* sample by sample, where the gate differs */
        const int64_t sample = gemm->gate ? c / gemm->tokens : 0, at = row * gemm->y_stride + c;
        next = gemm->gate ? gmem__min(end, (sample + 1) * gemm->tokens) : end;
        GMEM__K(store)
        (sums + c - tile->column, gemm->gate ? gemm->gate[sample * gemm->gate_stride + row] : 1.0f,
         gemm->residual ? gemm->residual + at : NULL, next - c, gemm->y + at);
    }
}

/* While a strip is multiplied with one panel after the other, the one after the next is fetched and the next one
 * converted, if need be, part by part. */
static void GMEM__K(gemm)(const gmem__gemm *gemm, const gmem__tile *tile, const float *panels, float *scratch) {
    float *product = scratch;                   /* (rows, GMEM__NC) */
    float *own = product + GMEM__MC * GMEM__NC; /* panels of one block of the depth */
    float *buffers = own + GMEM__KC * GMEM__NC; /* (2, GMEM__MR, GMEM__KC) */
    const int64_t blocks = gmem__ceil_div(gemm->depth, GMEM__KC), parts = gmem__ceil_div(tile->columns, GMEM__NR);
    GMEM__K(strips) strips;
    strips.gemm = gemm;
    strips.tile = tile;
    strips.rows = gmem__tile_rows(gemm, tile);
    strips.block = gmem__ceil_div(gemm->depth, blocks);
    strips.per_block = gmem__ceil_div(strips.rows, GMEM__MR);
    strips.count = strips.per_block * gmem__ceil_div(gemm->depth, strips.block);
    memset(product, 0, (size_t)(strips.per_block * GMEM__MR * GMEM__NC) * sizeof *product);
    for (int64_t s = 0; s < gmem__min(2, strips.count); s++)
        GMEM__K(prefetch)(&strips, s, 0, 1);
    if (!GMEM__K(in_place)(&strips, 0)) GMEM__K(pack_strip)(&strips, 0, 0, 1, buffers);
    for (int64_t s = 0; s < strips.count; s++) {
        const GMEM__K(part) at = GMEM__K(part_of)(&strips, s, 0, 1);
        const gmem__unaligned_f32 *stored = GMEM__K(in_place)(&strips, s);
        const gmem__unaligned_f32 *left = stored ? stored : buffers + s % 2 * GMEM__MR * GMEM__KC;
        const int64_t row_step = stored ? gemm->weight->row_stride : GMEM__KC;
        const int convert = s + 1 < strips.count && !GMEM__K(in_place)(&strips, s + 1);
        const int64_t panel_step = (panels ? gemm->depth : at.depth) * GMEM__NR;
        const float *panel = panels ? panels + at.k * GMEM__NR : own;
        if (!panels && at.first == 0) {
            gmem__pack(gemm, at.k, at.depth, tile->column, tile->columns, GMEM__NR, panel_step, own);
            if (gemm->round_bf16) GMEM__K(round_bf16)(own, parts * panel_step);
        }
        for (int64_t i = 0; i < parts; i++, panel += panel_step) {
            float *sums = product + at.first * GMEM__NC + i * GMEM__NR;
            if (s + 2 < strips.count) GMEM__K(prefetch)(&strips, s + 2, i, parts);
            if (convert) GMEM__K(pack_strip)(&strips, s + 1, i, parts, buffers + (s + 1) % 2 * GMEM__MR * GMEM__KC);
            if (tile->columns - i * GMEM__NR > V_WIDTH)
                GMEM__K(multiply2)(left, row_step, panel, at.depth, sums);
            else
                GMEM__K(multiply1)(left, row_step, panel, at.depth, sums);
        }
    }
    for (int64_t i = 0; i < tile->rows; i++)
        GMEM__K(finish_row)(gemm, tile, i, tile->rows, product);
}

#undef GMEM__NR
/* ---- backends/cpu/rows.inc ---- */
/* Template: norm, rotary embedding and group norm on vectors. Vectors run along columns, so sums over channels need no
 * shuffles; a lane's arithmetic is the same in a full vector and in the last, partial one. */

/* The first `lanes` of a vector; masks are for the last vector of a row only. */
GMEM__INLINE V_F32 GMEM__K(load_lanes)(const float *p, int64_t lanes) {
    return lanes >= V_WIDTH ? V_LOAD(p) : V_LOAD_PART(p, lanes);
}
GMEM__INLINE void GMEM__K(store_lanes)(float *p, V_F32 a, int64_t lanes) {
    if (lanes >= V_WIDTH)
        V_STORE(p, a);
    else
        V_STORE_PART(p, a, lanes);
}

/* Over `rows` rows `stride` apart: the sum of x - mean and that of its square. Summed four by four, then in runs, then
 * over all: rounding grows with the root of a run's length instead of that of the whole. */
#define GMEM__SUM_RUN 64

typedef struct GMEM__K(sums) {
    V_F32 first, second;
} GMEM__K(sums);

GMEM__INLINE GMEM__K(sums) GMEM__K(row_sums)(const float *x, int64_t rows, int64_t stride, int64_t lanes, V_F32 mean) {
    GMEM__K(sums) total = {V_ZERO(), V_ZERO()};
    for (int64_t begin = 0; begin < rows; begin += GMEM__SUM_RUN) {
        const int64_t end = gmem__min(begin + GMEM__SUM_RUN, rows);
        GMEM__K(sums) run = {V_ZERO(), V_ZERO()};
        int64_t r = begin;
        for (; r + 4 <= end; r += 4) {
            const float *p = x + r * stride;
            const V_F32 a = V_SUB(GMEM__K(load_lanes)(p, lanes), mean);
            const V_F32 b = V_SUB(GMEM__K(load_lanes)(p + stride, lanes), mean);
            const V_F32 c = V_SUB(GMEM__K(load_lanes)(p + 2 * stride, lanes), mean);
            const V_F32 d = V_SUB(GMEM__K(load_lanes)(p + 3 * stride, lanes), mean);
            run.first = V_ADD(run.first, V_ADD(V_ADD(a, b), V_ADD(c, d)));
            run.second = V_ADD(run.second, V_ADD(V_FMA(a, a, V_MUL(b, b)), V_FMA(c, c, V_MUL(d, d))));
        }
        for (; r < end; r++) {
            const V_F32 a = V_SUB(GMEM__K(load_lanes)(x + r * stride, lanes), mean);
            run.first = V_ADD(run.first, a);
            run.second = V_FMA(a, a, run.second);
        }
        total.first = V_ADD(total.first, run.first);
        total.second = V_ADD(total.second, run.second);
    }
    return total;
}

/* What normalises each of up to GMEM__COLUMN_BLOCK columns: (x - mean) * inverse + rest, where `rest` is what rounding
 * left of the mean. Mean and rest are 0 for RMSNorm. */
typedef struct GMEM__K(moments) {
    float mean[GMEM__COLUMN_BLOCK], inverse[GMEM__COLUMN_BLOCK], rest[GMEM__COLUMN_BLOCK];
} GMEM__K(moments);

static void GMEM__K(measure)(const float *x, int64_t rows, int64_t stride, int64_t columns, int rms, float eps,
                             GMEM__K(moments) * moments) {
    const V_F32 count = V_SET1((float)rows);
    for (int64_t column = 0; column < columns; column += V_WIDTH) {
        const int64_t lanes = columns - column;
        V_F32 mean = V_ZERO(), rest = V_ZERO();
        if (!rms) mean = V_DIV(GMEM__K(row_sums)(x + column, rows, stride, lanes, mean).first, count);
        const GMEM__K(sums) sums = GMEM__K(row_sums)(x + column, rows, stride, lanes, mean);
        const V_F32 variance = V_DIV(sums.second, count);
        const V_F32 inverse = V_DIV(V_SET1(1), V_SQRT(V_ADD(variance, V_SET1(eps))));
        if (!rms) rest = V_FNMA(V_DIV(sums.first, count), inverse, rest);
        V_STORE(moments->mean + column, mean);
        V_STORE(moments->inverse + column, inverse);
        V_STORE(moments->rest + column, rest);
    }
}

/* Columns as they are. */
static void GMEM__K(measure_nothing)(GMEM__K(moments) * moments) {
    for (int64_t i = 0; i < GMEM__COLUMN_BLOCK; i++) {
        moments->mean[i] = moments->rest[i] = 0;
        moments->inverse[i] = 1;
    }
}

/* One vector of one row, normalised, * weight + bias. */
GMEM__INLINE V_F32 GMEM__K(normalise)(const float *row, int64_t column, int64_t lanes, const GMEM__K(moments) * moments,
                                      float weight, float bias) {
    const V_F32 x = V_SUB(GMEM__K(load_lanes)(row + column, lanes), V_LOAD(moments->mean + column));
    const V_F32 y = V_FMA(x, V_LOAD(moments->inverse + column), V_LOAD(moments->rest + column));
    return V_FMA(y, V_SET1(weight), V_SET1(bias));
}

static void GMEM__K(norm)(const gmem__norm *op, int64_t sample, int64_t begin, int64_t end) {
    const float *shift = op->shift ? op->shift + sample * op->modulation_stride : NULL;
    const float *scale = op->scale ? op->scale + sample * op->modulation_stride : NULL;
    const int64_t columns = end - begin, y_stride = op->y_stride ? op->y_stride : op->columns;
    GMEM__K(moments) moments;
    GMEM__K(measure)(op->x + begin, op->channels, op->columns, columns, op->rms, op->eps, &moments);
    for (int64_t c = 0; c < op->channels; c++) {
        const double modulation = scale ? 1 + (double)scale[c] : 1;
        const double weight = (op->weight ? (double)op->weight[c] : 1) * modulation;
        const double bias = (op->bias ? (double)op->bias[c] : 0) * modulation + (shift ? (double)shift[c] : 0);
        const float *x = op->x + c * op->columns + begin;
        float *y = op->y + c * y_stride + begin - op->y_column;
        for (int64_t i = 0; i < columns; i += V_WIDTH) {
            V_F32 value = GMEM__K(normalise)(x, i, columns - i, &moments, (float)weight, (float)bias);
            GMEM__K(store_lanes)(y + i, value, columns - i);
        }
    }
}

static void GMEM__K(rotate)(const gmem__rotate *op, int64_t head, int64_t sample, int64_t begin, int64_t end) {
    const int64_t columns = end - begin, stride = op->columns, token = begin - sample * op->tokens;
    const float *weight = op->norm ? op->weight : NULL, *bias = op->norm ? op->bias : NULL;
    float *x = op->x + head * op->head_dim * stride + begin;
    GMEM__K(moments) moments;
    if (op->norm)
        GMEM__K(measure)(x, op->head_dim, stride, columns, op->rms, op->eps, &moments);
    else
        GMEM__K(measure_nothing)(&moments);
    for (int64_t d = 0; d < op->head_dim; d += 2, x += 2 * stride) {
        const int paired = d + 1 < op->head_dim; /* the last of an odd head is normalised only */
        const float w0 = weight ? weight[d] : 1, w1 = weight && paired ? weight[d + 1] : 1;
        const float b0 = bias ? bias[d] : 0, b1 = bias && paired ? bias[d + 1] : 0;
        const float *cosine = op->cosine ? op->cosine + d / 2 * op->tokens + token : NULL;
        const float *sine = op->cosine ? op->sine + d / 2 * op->tokens + token : NULL;
        for (int64_t i = 0; i < columns; i += V_WIDTH) {
            const int64_t lanes = columns - i;
            V_F32 first = GMEM__K(normalise)(x, i, lanes, &moments, w0, b0);
            if (paired) {
                V_F32 second = GMEM__K(normalise)(x + stride, i, lanes, &moments, w1, b1);
                if (cosine) {
                    V_F32 c = GMEM__K(load_lanes)(cosine + i, lanes), s = GMEM__K(load_lanes)(sine + i, lanes);
                    V_F32 turned = V_FNMA(second, s, V_MUL(first, c));
                    second = V_FMA(first, s, V_MUL(second, c));
                    first = turned;
                }
                GMEM__K(store_lanes)(x + stride + i, second, lanes);
            }
            GMEM__K(store_lanes)(x + i, first, lanes);
        }
    }
}

/* The sum of x - mean, and of its square where asked, over a whole image: runs of vectors in f32, what they give in
 * double. */
static double GMEM__K(area_sum)(const float *x, int64_t count, float mean, double *squares) {
    double total = 0, total_squares = 0;
    int64_t i = 0;
    while (count - i >= V_WIDTH) {
        const int64_t rows = gmem__min((count - i) / V_WIDTH, GMEM__SUM_RUN);
        const GMEM__K(sums) sums = GMEM__K(row_sums)(x + i, rows, V_WIDTH, V_WIDTH, V_SET1(mean));
        total += (double)V_SUM(sums.first);
        total_squares += (double)V_SUM(sums.second);
        i += rows * V_WIDTH;
    }
    for (; i < count; i++) {
        const double deviation = (double)x[i] - (double)mean;
        total += deviation;
        total_squares += deviation * deviation;
    }
    if (squares) *squares = total_squares;
    return total;
}

static void GMEM__K(group_norm)(const gmem__group_norm *op, int64_t group) {
    const int64_t channels = op->channels / op->groups, first = group * channels, count = channels * op->area;
    const float *x = op->x + first * op->area;
    const float mean = (float)(GMEM__K(area_sum)(x, count, 0, NULL) / (double)count);
    double squares;
    const double rest = GMEM__K(area_sum)(x, count, mean, &squares) / (double)count; /* what rounding left of it */
    const double inverse = 1 / sqrt(squares / (double)count + (double)op->eps);
    for (int64_t c = first; c < first + channels; c++) {
        const double weight = inverse * (double)op->weight[c];
        const V_F32 scale = V_SET1((float)weight);
        const V_F32 bias = V_SET1((float)((double)op->bias[c] - rest * weight));
        for (int64_t i = 0; i < op->area; i += V_WIDTH) {
            const int64_t lanes = op->area - i;
            V_F32 y = V_FMA(V_SUB(GMEM__K(load_lanes)(op->x + c * op->area + i, lanes), V_SET1(mean)), scale, bias);
            if (op->silu) y = GMEM__K(silu)(y);
            GMEM__K(store_lanes)(op->y + c * op->area + i, y, lanes);
        }
    }
}

#undef GMEM__SUM_RUN

/* ---- backends/cpu/attention.inc ---- */
/* Template: attention on vectors (FlashAttention, arXiv 2205.14135, with the online softmax of 1805.02867). A block of
 * keys at a time: scores S = K^T Q, the softmax's running maximum and sum of each query, then Y = Y * rescale + V P.
 * Queries lie along the vectors, so nothing is shuffled and no sum is horizontal; both products are the GEMM's
 * tile, which broadcasts from its left operand. Y itself is the accumulator: heads of any width do with the same
 * scratch. */

/* Keys of a block (a multiple of GMEM__MR), channels of a head copied at a time, queries of a panel. */
#define GMEM__KEYS     96
#define GMEM__CHANNELS 128
#define GMEM__LANES    (2 * V_WIDTH)

/* A thread's scratch. Left operands lie as in the tensors, right operands in panels (rows, GMEM__LANES). What pads the
 * last tile is computed with and dropped. */
typedef struct GMEM__K(blocks) {
    float q[GMEM__COLUMN_BLOCK / GMEM__LANES][GMEM__CHANNELS][GMEM__LANES];
    float p[GMEM__COLUMN_BLOCK / GMEM__LANES][GMEM__KEYS][GMEM__LANES]; /* scores, then exp(score - largest) */
    float kv[GMEM__CHANNELS + GMEM__MR][GMEM__KEYS];                    /* k, then v */
    float largest[GMEM__COLUMN_BLOCK], sum[GMEM__COLUMN_BLOCK];         /* of each query's scores so far */
    float rescale[GMEM__COLUMN_BLOCK];                                  /* of the sums before this block */
} GMEM__K(blocks);

/* Rows of k or v, which may lie a power of two apart and then evict each other, side by side. */
static void GMEM__K(copy_keys)(GMEM__K(blocks) * blocks, const float *from, int64_t stride, int64_t channels,
                               int64_t keys) {
    for (int64_t c = 0; c < channels; c++)
        memcpy(blocks->kv[c], from + c * stride, (size_t)keys * sizeof *from);
}

static void GMEM__K(copy_queries)(GMEM__K(blocks) * blocks, const float *from, int64_t stride, int64_t channels,
                                  int64_t queries, float scale) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < gmem__round_up(queries, GMEM__LANES); i += V_WIDTH) {
            V_F32 q = i < queries ? GMEM__K(load_lanes)(from + c * stride + i, queries - i) : V_ZERO();
            V_STORE(&blocks->q[i / GMEM__LANES][c][i % GMEM__LANES], V_MUL(q, V_SET1(scale)));
        }
}

/* p += the scores of the queries that were copied against `keys` copied keys, over these channels. */
static void GMEM__K(scores)(GMEM__K(blocks) * blocks, int64_t channels, int64_t keys, int64_t queries) {
    for (int64_t i = 0; i * GMEM__LANES < queries; i++)
        for (int64_t key = 0; key < keys; key += GMEM__MR)
            GMEM__K(tile)
    (blocks->kv[0] + key, 1, GMEM__KEYS, blocks->q[i][0], channels, blocks->p[i][key], GMEM__LANES);
}

/* p = exp(p - largest), with the largest score so far; the maximum and the sum of each query follow. A NaN may get
 * lost in the maximum, but not in its own exponential. */
static void GMEM__K(softmax)(GMEM__K(blocks) * blocks, int64_t keys, int64_t queries, int first) {
    for (int64_t i = 0; i < queries; i += V_WIDTH) {
        float(*p)[GMEM__LANES] = blocks->p[i / GMEM__LANES];
        const int64_t lane = i % GMEM__LANES;
        const V_F32 before = first ? V_SET1(-INFINITY) : V_LOAD(blocks->largest + i);
        V_F32 largest = before, other = before, sum = V_ZERO();
        for (int64_t key = 0; key < keys; key += 2) { /* two chains, as a maximum takes several cycles */
            largest = V_MAX(largest, V_LOAD(p[key] + lane));
            if (key + 1 < keys) other = V_MAX(other, V_LOAD(p[key + 1] + lane));
        }
        largest = V_MAX(largest, other);
        for (int64_t key = 0; key < keys; key++) {
            V_F32 e = GMEM__K(exp)(V_SUB(V_LOAD(p[key] + lane), largest));
            V_STORE(p[key] + lane, e);
            sum = V_ADD(sum, e);
        }
        if (!first) {
            const V_F32 rescale = GMEM__K(exp)(V_SUB(before, largest));
            V_STORE(blocks->rescale + i, rescale);
            sum = V_FMA(V_LOAD(blocks->sum + i), rescale, sum);
        }
        V_STORE(blocks->sum + i, sum);
        V_STORE(blocks->largest + i, largest);
    }
}

/* y = y * rescale + v p over these channels, divided by the sums after the last block. */
static void GMEM__K(values)(GMEM__K(blocks) * blocks, float *y, int64_t stride, int64_t channels, int64_t keys,
                            int64_t queries, int first, int last) {
    float tile[GMEM__MR][GMEM__LANES];
    for (int64_t i = 0; i < queries; i += GMEM__LANES)
        for (int64_t c = 0; c < channels; c += GMEM__MR) {
            memset(tile, 0, sizeof tile);
            GMEM__K(tile)(blocks->kv[c], GMEM__KEYS, 1, blocks->p[i / GMEM__LANES][0], keys, tile[0], GMEM__LANES);
            for (int64_t r = 0; r < gmem__min(GMEM__MR, channels - c); r++)
                for (int64_t j = i; j < gmem__min(i + GMEM__LANES, queries); j += V_WIDTH) {
                    float *out = y + (c + r) * stride + j;
                    V_F32 value = V_LOAD(tile[r] + (j - i));
                    if (!first)
                        value = V_FMA(GMEM__K(load_lanes)(out, queries - j), V_LOAD(blocks->rescale + j), value);
                    if (last) value = V_DIV(value, V_LOAD(blocks->sum + j));
                    GMEM__K(store_lanes)(out, value, queries - j);
                }
        }
}

static void GMEM__K(attention)(const gmem__attention *op, int64_t sample, int64_t head, int64_t begin, int64_t end,
                               float *scratch) {
    GMEM__K(blocks) *blocks = (GMEM__K(blocks) *)(void *)scratch;
    const int64_t row = head * op->head_dim, column = sample * op->tokens, queries = end - begin;
    for (int64_t key = 0; key < op->tokens; key += GMEM__KEYS) {
        const int64_t keys = gmem__min(GMEM__KEYS, op->tokens - key);
        const int first = key == 0, last = key + keys == op->tokens;
        memset(blocks->p, 0, sizeof blocks->p);
        for (int64_t c = 0; c < op->head_dim; c += GMEM__CHANNELS) {
            const int64_t channels = gmem__min(GMEM__CHANNELS, op->head_dim - c);
            const int64_t at = (row + c) * op->stride + column;
            GMEM__K(copy_keys)(blocks, op->k + at + key, op->stride, channels, keys);
            if (first || op->head_dim > GMEM__CHANNELS) /* else they are still there */
                GMEM__K(copy_queries)(blocks, op->q + at + begin, op->stride, channels, queries, op->scale);
            GMEM__K(scores)(blocks, channels, keys, queries);
        }
        GMEM__K(softmax)(blocks, keys, queries, first);
        for (int64_t c = 0; c < op->head_dim; c += GMEM__CHANNELS) {
            const int64_t channels = gmem__min(GMEM__CHANNELS, op->head_dim - c);
            float *y = op->y + (row + c) * op->y_stride + column + begin;
            GMEM__K(copy_keys)(blocks, op->v + (row + c) * op->stride + column + key, op->stride, channels, keys);
            GMEM__K(values)(blocks, y, op->y_stride, channels, keys, queries, first, last);
        }
    }
}

/* The scratch suffices: an array of negative size otherwise. */
typedef char GMEM__K(blocks_fit)[sizeof(GMEM__K(blocks)) <= GMEM__SCRATCH * sizeof(float) ? 1 : -1];

#undef GMEM__KEYS
#undef GMEM__CHANNELS
#undef GMEM__LANES
/* ---- backends/cpu/narrow.inc ---- */
/* Template: the operands of narrow products (narrow.h): weights to strips, columns of x to panels, and the sums of int8
 * products back to floats. */

/* Values of a row that are converted at a time: whole words of a strip for both types. */
#define GMEM__RUN 512

/* max |w| of a row, and 0, or NaN where a value is not finite. */
static float GMEM__K(largest)(const float *x, int64_t count) {
    V_F32 largest = V_ZERO(), finite = V_ZERO();
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = GMEM__K(load_lanes)(x + i, count - i);
        largest = V_MAX(largest, V_ABS(value));
        finite = V_FMA(value, V_ZERO(), finite);
    }
    return V_MAXIMUM(largest) + V_SUM(finite);
}

/* x (count) to int8, divided by `scale`; to whole vectors. Returns their sum. */
static int32_t GMEM__K(quantise)(const float *x, int64_t count, float scale, signed char *out) {
    const V_F32 inverse = V_SET1(scale > 0 ? 1 / scale : 0);
    V_F32 sum = V_ZERO(); /* exact: below 2^24 */
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 value = V_ROUND(V_MUL(GMEM__K(load_lanes)(x + i, count - i), inverse));
        V_STORE_I8(out + i, value);
        sum = V_ADD(sum, value);
    }
    return (int32_t)V_SUM(sum);
}

static void GMEM__K(measure_weights)(const gmem__weight *weight, int64_t row, float *scale, int32_t *sum) {
    float values[GMEM__RUN + V_WIDTH];
    signed char bytes[GMEM__RUN + V_WIDTH];
    float largest = 0;
    *sum = 0;
    if (weight->type == GMEM_I8) {
        const signed char *data = (const signed char *)weight->data + row * weight->row_stride;
        for (int64_t k = 0; k < weight->cols; k++)
            *sum += data[k];
        *scale = weight->scale[row];
        return;
    }
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        const float part = GMEM__K(largest)(values, count);
        largest = !(part <= largest) ? part : largest; /* NaN stays */
        if (largest != largest) break;
    }
    *scale = largest / 127;
    for (int64_t k = 0; k < weight->cols; k += GMEM__RUN) {
        const int64_t count = gmem__min(GMEM__RUN, weight->cols - k);
        GMEM__K(convert)(weight, row, k, count, values);
        *sum += GMEM__K(quantise)(values, count, *scale, bytes);
    }
}

/* Values [k, k + count) of one row as narrow values, zero beyond the row's end. */
static void GMEM__K(narrow_values)(const gmem__narrow *narrow, const gmem__weight *weight, int64_t row, int64_t k,
                                   int64_t count, float scale, char *out) {
    const int64_t bytes = narrow->type == GMEM_BF16 ? 2 : 1;
    const int64_t inside = gmem__max(0, gmem__min(count, weight->cols - k));
    float values[GMEM__RUN + V_WIDTH];
    if (weight->type == narrow->type) {
        memcpy(out, (const char *)weight->data + (row * weight->row_stride + k) * bytes, (size_t)(inside * bytes));
    } else if (inside > 0) {
        GMEM__K(convert)(weight, row, k, inside, values);
        if (bytes == 1) (void)GMEM__K(quantise)(values, inside, scale, (signed char *)out);
        for (int64_t i = 0; bytes == 2 && i < inside; i += V_WIDTH)
            V_STORE_BF16(out + 2 * i, V_ROUND_BF16(V_LOAD(values + i)));
    }
    memset(out + inside * bytes, 0, (size_t)((count - inside) * bytes));
}

static void GMEM__K(pack_narrow_strip)(const gmem__narrow *narrow, const gmem__weight *weight,
                                       const gmem__strip_part *part, uint32_t *strip) {
    const int64_t per_word = narrow->type == GMEM_BF16 ? 2 : 4, run = GMEM__RUN / per_word;
    char values[GMEM__RUN * 2 + 2 * V_WIDTH];
    for (int64_t r = 0; r < narrow->mr; r++) {
        uint32_t *out = strip + r * GMEM__TILE_WORDS;
        for (int64_t word = 0; word < part->words; word += run) {
            const int64_t words = gmem__min(run, part->words - word);
            if (r < part->rows) GMEM__K(narrow_values)
            (narrow, weight, part->row + r, part->k + word * per_word, words * per_word,
             part->scale ? part->scale[r] : 1, values);
            else memset(values, 0, (size_t)words * 4);
            for (int64_t i = 0; i < words; i += GMEM__TILE_WORDS, out += narrow->mr * GMEM__TILE_WORDS)
                memcpy(out, values + i * 4, GMEM__TILE_WORDS * 4);
        }
    }
}

/* One vector of columns, all of the depth, as pairs of bf16. */
static void GMEM__K(panel_bf16)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                                uint32_t *panel) {
    int64_t w = 0;
    for (; w < depth / 2; w++, x += 2 * stride, panel += nr) {
        const V_F32 low = V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes));
        const V_F32 high = V_ROUND_BF16(GMEM__K(load_lanes)(x + stride, lanes));
        V_STORE_WORDS(panel, V_WORD_BF16(low, high));
    }
    for (; w < words; w++, panel += nr) {
        const V_F32 low = 2 * w < depth ? V_ROUND_BF16(GMEM__K(load_lanes)(x, lanes)) : V_ZERO();
        V_STORE_WORDS(panel, V_WORD_BF16(low, V_ZERO()));
    }
}

/* The same as four int8, each column divided by its scale, which is found first. */
static void GMEM__K(panel_i8)(const float *x, int64_t stride, int64_t depth, int64_t words, int64_t lanes, int64_t nr,
                              int unsigned_x, uint32_t *panel, float *scale) {
    V_F32 a = V_ZERO(), b = V_ZERO(), finite = V_ZERO(), value[4];
    for (int64_t k = 0; k < depth; k++) {
        const V_F32 row = GMEM__K(load_lanes)(x + k * stride, lanes);
        if (k % 2)
            a = V_MAX(a, V_ABS(row));
        else
            b = V_MAX(b, V_ABS(row));
        finite = V_FMA(row, V_ZERO(), finite);
    }
    const V_F32 largest = V_MAX(V_MAX(a, b), V_SET1(1e-30f)); /* never divides by zero */
    const V_F32 inverse = V_DIV(V_SET1(127), largest);
    GMEM__K(store_lanes)(scale, V_ADD(V_MUL(largest, V_SET1(1.0f / 127)), finite), lanes);
    for (int64_t w = 0; w < words; w++, panel += nr) {
        for (int64_t i = 0; i < 4; i++)
            value[i] =
                4 * w + i < depth ? V_MUL(GMEM__K(load_lanes)(x + (4 * w + i) * stride, lanes), inverse) : V_ZERO();
        const V_I32 word = V_WORD_I8(value[0], value[1], value[2], value[3]);
        V_STORE_WORDS(panel, unsigned_x ? V_FLIP_SIGNS(word) : word);
    }
}

static void GMEM__K(pack_narrow_panels)(const gmem__narrow *narrow, const float *x, int64_t stride, int64_t depth,
                                        int64_t words, int64_t columns, uint32_t *panels, int64_t panel_step,
                                        float *scale) {
    const int64_t nr = narrow->nr;
    for (int64_t i = 0; i < gmem__round_up(columns, nr); i += V_WIDTH) {
        uint32_t *panel = panels + i / nr * panel_step + i % nr;
        if (i >= columns) /* a panel's last columns */
            for (int64_t w = 0; w < words; w++)
                memset(panel + w * nr, 0, V_WIDTH * sizeof *panel);
        else if (narrow->type == GMEM_BF16)
            GMEM__K(panel_bf16)(x + i, stride, depth, words, columns - i, nr, panel);
        else
            GMEM__K(panel_i8)(x + i, stride, depth, words, columns - i, nr, narrow->unsigned_x, panel, scale + i);
    }
}

static void GMEM__K(dequantise)(void *sums, int64_t count, int32_t offset, float row_scale, const float *scale) {
    const V_F32 factor = V_SET1(row_scale);
    float *out = (float *)sums;
    for (int64_t i = 0; i < count; i += V_WIDTH) {
        const V_F32 sum = V_FROM_I32((const int32_t *)sums + i, offset);
        V_STORE(out + i, V_MUL(V_MUL(sum, factor), V_LOAD(scale + i)));
    }
}

static const gmem__narrow_rows *GMEM__K(narrow_rows)(void) {
    static const gmem__narrow_rows rows = {GMEM__K(measure_weights), GMEM__K(pack_narrow_strip),
                                           GMEM__K(pack_narrow_panels), GMEM__K(dequantise)};
    return &rows;
}

#undef GMEM__RUN
/* ---- backends/cpu/narrow_attention.inc ---- */
/* Template: attention through a bf16 kernel's products: scores S = K^T Q and values Y = V P, both operands packed as
 * narrow.h has them. All keys of a head are packed once; queries go GMEM__COLUMN_BLOCK at a time, and as all their
 * scores fit, the softmax is plain. */

#define GMEM__LANES GMEM__COLUMN_BLOCK

/* Where things lie in a task's scratch; gmem__narrow_attention_floats (drivers.c) says how much they take. */
typedef struct GMEM__K(packed_head) {
    const gmem__narrow *narrow;
    int64_t tokens, channels;
    int64_t channel_words, token_words; /* padded */
    uint32_t *k;                        /* strips of keys, in words along the channels */
    uint32_t *v;                        /* strips of channels, in words along the keys */
    uint32_t *q, *p;                    /* panels of queries: (channel_words, nr), (token_words, nr) */
    float *s, *y;                       /* (padded tokens or channels, GMEM__LANES) */
} GMEM__K(packed_head);

static GMEM__K(packed_head) GMEM__K(place_head)(const gmem__narrow *narrow, const gmem__attention *op, float *scratch) {
    GMEM__K(packed_head) head;
    const int64_t keys = gmem__round_up(op->tokens, narrow->mr), rows = gmem__round_up(op->head_dim, narrow->mr);
    head.narrow = narrow;
    head.tokens = op->tokens;
    head.channels = op->head_dim;
    head.channel_words = gmem__round_up(gmem__ceil_div(op->head_dim, 2), GMEM__TILE_WORDS);
    head.token_words = gmem__round_up(gmem__ceil_div(op->tokens, 2), GMEM__TILE_WORDS);
    head.s = scratch;
    head.y = head.s + keys * GMEM__LANES;
    head.q = (uint32_t *)(void *)(head.y + rows * GMEM__LANES);
    head.p = head.q + head.channel_words * GMEM__LANES;
    head.k = head.p + head.token_words * GMEM__LANES;
    head.v = head.k + keys * head.channel_words;
    return head;
}

/* A key's words lie along the channels, across the vectors: turned in pieces of a vector's keys. */
static void GMEM__K(pack_keys)(const GMEM__K(packed_head) * head, const float *k, int64_t stride) {
    const int64_t mr = head->narrow->mr, strip_words = head->channel_words * mr;
    uint32_t words[V_WIDTH];
    memset(head->k, 0, (size_t)(gmem__ceil_div(head->tokens, mr) * strip_words) * sizeof *head->k);
    for (int64_t key = 0; key < head->tokens; key += V_WIDTH) {
        const int64_t lanes = gmem__min(V_WIDTH, head->tokens - key);
        uint32_t *at[V_WIDTH];
        for (int64_t i = 0; i < lanes; i++)
            at[i] = head->k + (key + i) / mr * strip_words + (key + i) % mr * GMEM__TILE_WORDS;
        for (int64_t c = 0; c < head->channels; c += 2) {
            const float *row = k + c * stride + key;
            const V_F32 low = V_ROUND_BF16(GMEM__K(load_lanes)(row, lanes));
            const V_F32 high =
                c + 1 < head->channels ? V_ROUND_BF16(GMEM__K(load_lanes)(row + stride, lanes)) : V_ZERO();
            const int64_t word = c / 2 / GMEM__TILE_WORDS * mr * GMEM__TILE_WORDS + c / 2 % GMEM__TILE_WORDS;
            V_STORE_WORDS(words, V_WORD_BF16(low, high));
            for (int64_t i = 0; i < lanes; i++)
                at[i][word] = words[i];
        }
    }
}

/* A channel's words lie along the keys, as in a row of weights. */
static void GMEM__K(pack_values)(const GMEM__K(packed_head) * head, const float *v, int64_t stride) {
    gmem__weight weight;
    memset(&weight, 0, sizeof weight);
    weight.data = v;
    weight.type = GMEM_F32;
    weight.rows = head->channels;
    weight.cols = head->tokens;
    weight.row_stride = stride;
    for (int64_t c = 0; c < head->channels; c += head->narrow->mr) {
        gmem__strip_part part;
        memset(&part, 0, sizeof part);
        part.row = c;
        part.rows = gmem__min(head->narrow->mr, head->channels - c);
        part.words = head->token_words;
        GMEM__K(pack_narrow_strip)(head->narrow, &weight, &part, head->v + c * head->token_words);
    }
}

/* out (rows, GMEM__LANES) = strips * panels, over the whole depth; a head's is short, so that its padding counts. */
static void GMEM__K(multiply_strips)(const gmem__narrow *narrow, const uint32_t *strips, int64_t rows, int64_t depth,
                                     const uint32_t *panels, int64_t queries, float *out) {
    const int64_t used = gmem__ceil_div(depth, 2), words = gmem__round_up(used, GMEM__TILE_WORDS);
    const int64_t count = gmem__ceil_div(rows, narrow->mr);
    gmem__narrow_block block;
    memset(&block, 0, sizeof block);
    block.strip_step = words * narrow->mr;
    block.panel_step = words * narrow->nr;
    block.panel_count = gmem__ceil_div(queries, narrow->nr);
    block.product_step = GMEM__LANES;
    for (int64_t strip = 0; strip < count; strip += narrow->strips)
        for (int64_t word = 0; word < used; word += narrow->block) {
            block.strips = gmem__min(narrow->strips, count - strip);
            block.weights = strips + strip * block.strip_step + word * narrow->mr;
            block.panels = panels + word * narrow->nr;
            block.words = gmem__min(narrow->block, used - word);
            block.first = word == 0;
            block.product = out + strip * narrow->mr * GMEM__LANES;
            narrow->multiply(&block);
        }
}

/* p = exp(scale * (s - its column's largest)) of one vector of queries; returns the sums, in which a NaN stays. */
static V_F32 GMEM__K(softmax_words)(const GMEM__K(packed_head) * head, int64_t lane, float scale) {
    const int64_t nr = head->narrow->nr, tokens = head->tokens;
    const float *s = head->s + lane;
    uint32_t *p = head->p + lane / nr * head->token_words * nr + lane % nr;
    V_F32 largest = V_LOAD(s), other = largest, sum = V_ZERO(), high;
    int64_t key = 1;
    for (; key + 1 < tokens; key += 2) { /* two chains, as a maximum takes several cycles */
        largest = V_MAX(largest, V_LOAD(s + key * GMEM__LANES));
        other = V_MAX(other, V_LOAD(s + (key + 1) * GMEM__LANES));
    }
    if (key < tokens) largest = V_MAX(largest, V_LOAD(s + key * GMEM__LANES));
    largest = V_MUL(V_MAX(largest, other), V_SET1(scale));
    for (key = 0; key < tokens; key += 2, p += nr, s += 2 * GMEM__LANES) {
        V_F32 low = GMEM__K(exp)(V_SUB(V_MUL(V_LOAD(s), V_SET1(scale)), largest));
        high = V_ZERO();
        if (key + 1 < tokens) high = GMEM__K(exp)(V_SUB(V_MUL(V_LOAD(s + GMEM__LANES), V_SET1(scale)), largest));
        sum = V_ADD(sum, V_ADD(low, high));
        V_STORE_WORDS(p, V_WORD_WEIGHTS(low, high));
    }
    for (key = gmem__ceil_div(tokens, 2); key < head->token_words; key++, p += nr)
        V_STORE_WORDS(p, V_WORD_BF16(V_ZERO(), V_ZERO()));
    return sum;
}

static void GMEM__K(attend_queries)(const GMEM__K(packed_head) * head, const gmem__attention *op, const float *q,
                                    float *y, int64_t queries) {
    float inverse[GMEM__LANES];
    GMEM__K(pack_narrow_panels)
    (head->narrow, q, op->stride, head->channels, head->channel_words, queries, head->q,
     head->channel_words * head->narrow->nr, NULL);
    GMEM__K(multiply_strips)
    (head->narrow, head->k, head->tokens, head->channels, head->q, queries, head->s);
    for (int64_t i = 0; i < gmem__round_up(queries, head->narrow->nr); i += V_WIDTH)
        V_STORE(inverse + i, V_DIV(V_SET1(1), GMEM__K(softmax_words)(head, i, op->scale)));
    GMEM__K(multiply_strips)
    (head->narrow, head->v, head->channels, head->tokens, head->p, queries, head->y);
    for (int64_t c = 0; c < head->channels; c++)
        for (int64_t i = 0; i < queries; i += V_WIDTH) {
            const V_F32 value = V_MUL(V_LOAD(head->y + c * GMEM__LANES + i), V_LOAD(inverse + i));
            GMEM__K(store_lanes)(y + c * op->y_stride + i, value, queries - i);
        }
}

static void GMEM__K(narrow_attention)(const gmem__narrow *narrow, const gmem__attention *op, int64_t sample,
                                      int64_t head, int64_t begin, int64_t end, float *scratch) {
    const GMEM__K(packed_head) packed = GMEM__K(place_head)(narrow, op, scratch);
    const int64_t row = head * op->head_dim, column = sample * op->tokens;
    GMEM__K(pack_keys)(&packed, op->k + row * op->stride + column, op->stride);
    GMEM__K(pack_values)(&packed, op->v + row * op->stride + column, op->stride);
    if (narrow->begin) narrow->begin();
    for (int64_t query = begin; query < end; query += GMEM__LANES)
        GMEM__K(attend_queries)
    (&packed, op, op->q + row * op->stride + column + query, op->y + row * op->y_stride + column + query,
     gmem__min(GMEM__LANES, end - query));
    if (narrow->end) narrow->end();
}

#undef GMEM__LANES

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

GMEM__FN const gmem__kernels *gmem__avx512_kernels(void) {
    static const gmem__kernels kernels = {GMEM__MR,
                                          2 * V_WIDTH,
                                          gmem__avx512_gemm,
                                          gmem__avx512_norm,
                                          gmem__avx512_rotate,
                                          gmem__avx512_attention,
                                          gmem__avx512_group_norm,
                                          gmem__avx512_finish_row,
                                          gmem__avx512_round_bf16,
                                          gmem__avx512_narrow_rows,
                                          gmem__avx512_narrow_attention};
    return &kernels;
}

/* ---- backends/cpu/vector_end.inc ---- */
/* Withdraws what an instruction set defined, so that the next one can. */
#undef GMEM__K
#undef GMEM__MR
#undef GMEM__REPEAT
#undef V_WIDTH
#undef V_F32
#undef V_I32
#undef V_MASK
#undef V_LOAD
#undef V_STORE
#undef V_ZERO
#undef V_SET1
#undef V_ADD
#undef V_SUB
#undef V_MUL
#undef V_DIV
#undef V_MAX
#undef V_MIN
#undef V_SQRT
#undef V_ABS
#undef V_FMA
#undef V_FNMA
#undef V_ROUND
#undef V_LESS
#undef V_IS_NAN
#undef V_SELECT
#undef V_SCALE2
#undef V_LOAD_F16
#undef V_LOAD_BF16
#undef V_LOAD_I8
#undef V_PREFETCH
#undef V_LOAD_F32
#undef V_LOAD_PART
#undef V_STORE_PART
#undef V_SUM
#undef V_MAXIMUM
#undef V_ROUND_BF16
#undef V_WORD_BF16
#undef V_WORD_I8
#undef V_WORD_WEIGHTS
#undef V_FLIP_SIGNS
#undef V_STORE_WORDS
#undef V_STORE_BF16
#undef V_STORE_I8
#undef V_FROM_I32
#endif /* GMEM__X86 */
/* ---- backends/cpu/avx512_dots.c ---- */
/* Narrow kernels of AVX-512: pairs of bf16 (AVX512-BF16) and quads of int8 (AVX512-VNNI), one instruction a dot
 * product. */

#ifdef GMEM__X86
#include <immintrin.h>

/* AVX512-BF16's intrinsics came with gcc 10 and clang 9. */
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define GMEM__AVX512_DOTS

/* 12 rows, whose sums fill 24 of 32 registers, as in f32. */
#define GMEM__MR        12
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define V_PREFETCH(p)   __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")
#endif

#define GMEM__K(name)       gmem__avx512_bf16_##name
#define D_WIDTH             16
#define D_VECTOR            __m512i
#define D_SUM               __m512
#define D_ELEMENT           float
#define D_BROADCAST(p)      _mm512_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm512_dpbf16_ps((sum), (__m512bh)(w), (__m512bh)(x))
#define D_ADD(a, b)         _mm512_add_ps((a), (b))
#define D_ZERO()            _mm512_setzero_ps()
#define D_LOAD(p)           _mm512_loadu_si512(p)
#define D_LOAD_SUM(p)       _mm512_loadu_ps(p)
#define D_STORE_SUM(p, sum) _mm512_storeu_ps((p), (sum))
/* ---- backends/cpu/dots.inc ---- */
/* Template: a narrow kernel (narrow.h) of dot-product instructions. GMEM__MR words of weights are broadcast, one after
 * the other, against two vectors of columns, whose sums stay in registers over one block of the depth.
 *
 * D_WIDTH lanes of D_VECTOR, summed in D_SUM; D_BROADCAST(p), D_DOT(sum, w, x), D_ADD, D_ZERO, D_LOAD_SUM,
 * D_STORE_SUM on D_ELEMENT, D_LOAD. */

#define GMEM__PANEL (2 * D_WIDTH)

/* The weights that come next from memory. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; at a time: many at once would keep loads waiting */
} GMEM__K(fetch);

GMEM__ALWAYS_INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        V_PREFETCH(fetch->at);
}

/* product (GMEM__MR, two vectors) of one strip and one panel. */
static void GMEM__K(strip)(const uint32_t *weights, const uint32_t *panel, int64_t words, int first, D_ELEMENT *product,
                           int64_t step, GMEM__K(fetch) * fetch) {
#define GMEM__BEGIN(r) D_SUM a##r = D_ZERO(), b##r = D_ZERO();
#define GMEM__STEP(r)                                                   \
    {                                                                   \
        const D_VECTOR w = D_BROADCAST(weights + r * GMEM__TILE_WORDS); \
        a##r = D_DOT(a##r, w, x0);                                      \
        b##r = D_DOT(b##r, w, x1);                                      \
    }
#define GMEM__JOIN(r)                                   \
    a##r = D_ADD(a##r, D_LOAD_SUM(product + r * step)); \
    b##r = D_ADD(b##r, D_LOAD_SUM(product + r * step + D_WIDTH));
#define GMEM__END(r)                       \
    D_STORE_SUM(product + r * step, a##r); \
    D_STORE_SUM(product + r * step + D_WIDTH, b##r);
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t tile = 0; tile < words; tile += GMEM__TILE_WORDS) {
        GMEM__K(fetch_some)(fetch);
        const int count = (int)gmem__min(GMEM__TILE_WORDS, words - tile);
        for (int i = 0; i < count; i++, weights++, panel += GMEM__PANEL) {
            const D_VECTOR x0 = D_LOAD(panel), x1 = D_LOAD(panel + D_WIDTH);
            GMEM__REPEAT(GMEM__STEP)
        }
        weights += (GMEM__MR - 1) * GMEM__TILE_WORDS;
    }
    if (!first) {
        GMEM__REPEAT(GMEM__JOIN)
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__JOIN
#undef GMEM__END
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    const int64_t parts = block->strips * block->panel_count;
    GMEM__K(fetch) fetch;
    fetch.at = block->next;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, parts * gmem__ceil_div(block->words, GMEM__TILE_WORDS));
    for (int64_t i = 0; i < parts; i++) {
        const int64_t s = i / block->panel_count, p = i % block->panel_count;
        D_ELEMENT *product = (D_ELEMENT *)block->product + s * GMEM__MR * block->product_step + p * GMEM__PANEL;
        GMEM__K(strip)
        (block->weights + s * block->strip_step, block->panels + p * block->panel_step, block->words, block->first,
         product, block->product_step, &fetch);
    }
}

#undef GMEM__PANEL
#undef GMEM__K
#undef D_WIDTH
#undef D_VECTOR
#undef D_SUM
#undef D_ELEMENT
#undef D_BROADCAST
#undef D_DOT
#undef D_ADD
#undef D_ZERO
#undef D_LOAD
#undef D_LOAD_SUM
#undef D_STORE_SUM

/* The first operand of the instruction, x, is unsigned. */
#define GMEM__K(name)       gmem__avx512_vnni_##name
#define D_WIDTH             16
#define D_VECTOR            __m512i
#define D_SUM               __m512i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      _mm512_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm512_dpbusd_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm512_add_epi32((a), (b))
#define D_ZERO()            _mm512_setzero_si512()
#define D_LOAD(p)           _mm512_loadu_si512(p)
#define D_LOAD_SUM(p)       _mm512_loadu_si512(p)
#define D_STORE_SUM(p, sum) _mm512_storeu_si512((p), (sum))
/* ---- backends/cpu/dots.inc ---- */
/* Template: a narrow kernel (narrow.h) of dot-product instructions. GMEM__MR words of weights are broadcast, one after
 * the other, against two vectors of columns, whose sums stay in registers over one block of the depth.
 *
 * D_WIDTH lanes of D_VECTOR, summed in D_SUM; D_BROADCAST(p), D_DOT(sum, w, x), D_ADD, D_ZERO, D_LOAD_SUM,
 * D_STORE_SUM on D_ELEMENT, D_LOAD. */

#define GMEM__PANEL (2 * D_WIDTH)

/* The weights that come next from memory. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; at a time: many at once would keep loads waiting */
} GMEM__K(fetch);

GMEM__ALWAYS_INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        V_PREFETCH(fetch->at);
}

/* product (GMEM__MR, two vectors) of one strip and one panel. */
static void GMEM__K(strip)(const uint32_t *weights, const uint32_t *panel, int64_t words, int first, D_ELEMENT *product,
                           int64_t step, GMEM__K(fetch) * fetch) {
#define GMEM__BEGIN(r) D_SUM a##r = D_ZERO(), b##r = D_ZERO();
#define GMEM__STEP(r)                                                   \
    {                                                                   \
        const D_VECTOR w = D_BROADCAST(weights + r * GMEM__TILE_WORDS); \
        a##r = D_DOT(a##r, w, x0);                                      \
        b##r = D_DOT(b##r, w, x1);                                      \
    }
#define GMEM__JOIN(r)                                   \
    a##r = D_ADD(a##r, D_LOAD_SUM(product + r * step)); \
    b##r = D_ADD(b##r, D_LOAD_SUM(product + r * step + D_WIDTH));
#define GMEM__END(r)                       \
    D_STORE_SUM(product + r * step, a##r); \
    D_STORE_SUM(product + r * step + D_WIDTH, b##r);
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t tile = 0; tile < words; tile += GMEM__TILE_WORDS) {
        GMEM__K(fetch_some)(fetch);
        const int count = (int)gmem__min(GMEM__TILE_WORDS, words - tile);
        for (int i = 0; i < count; i++, weights++, panel += GMEM__PANEL) {
            const D_VECTOR x0 = D_LOAD(panel), x1 = D_LOAD(panel + D_WIDTH);
            GMEM__REPEAT(GMEM__STEP)
        }
        weights += (GMEM__MR - 1) * GMEM__TILE_WORDS;
    }
    if (!first) {
        GMEM__REPEAT(GMEM__JOIN)
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__JOIN
#undef GMEM__END
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    const int64_t parts = block->strips * block->panel_count;
    GMEM__K(fetch) fetch;
    fetch.at = block->next;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, parts * gmem__ceil_div(block->words, GMEM__TILE_WORDS));
    for (int64_t i = 0; i < parts; i++) {
        const int64_t s = i / block->panel_count, p = i % block->panel_count;
        D_ELEMENT *product = (D_ELEMENT *)block->product + s * GMEM__MR * block->product_step + p * GMEM__PANEL;
        GMEM__K(strip)
        (block->weights + s * block->strip_step, block->panels + p * block->panel_step, block->words, block->first,
         product, block->product_step, &fetch);
    }
}

#undef GMEM__PANEL
#undef GMEM__K
#undef D_WIDTH
#undef D_VECTOR
#undef D_SUM
#undef D_ELEMENT
#undef D_BROADCAST
#undef D_DOT
#undef D_ADD
#undef D_ZERO
#undef D_LOAD
#undef D_LOAD_SUM
#undef D_STORE_SUM

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif /* GMEM__AVX512_DOTS */

GMEM__FN const gmem__narrow *gmem__avx512_dots(gmem_type type) {
#ifdef GMEM__AVX512_DOTS
    static const gmem__narrow bf16 = {
        "avx512-bf16", GMEM_BF16, GMEM__MR, 32, 1, 288, 0, 1, NULL, NULL, gmem__avx512_bf16_multiply};
    static const gmem__narrow i8 = {
        "avx512-vnni", GMEM_I8, GMEM__MR, 32, 1, 288, 1, 1, NULL, NULL, gmem__avx512_vnni_multiply};
    return type == GMEM_BF16 ? &bf16 : &i8;
#else
    (void)type;
    return NULL;
#endif
}

#undef GMEM__MR
#undef GMEM__REPEAT
#undef V_PREFETCH
#undef GMEM__AVX512_DOTS
#endif /* GMEM__X86 */
/* ---- backends/cpu/avx2_dots.c ---- */
/* Narrow kernels on 256 bits, for int8: AVX-VNNI's dot products, and for processors without them AVX2's products of
 * pairs of 16 bits. Its products of bytes take one instruction less, but three to a dot product that compete for the
 * same two ports, against two. */

#ifdef GMEM__X86
#include <immintrin.h>

#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

/* AVX-VNNI's intrinsics came with gcc 11 and clang 12. */
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define GMEM__AVX_VNNI
#endif

#define GMEM__LOAD_256(p)       _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define GMEM__STORE_256(p, sum) _mm256_storeu_si256((__m256i *)(void *)(p), (sum))

#ifdef GMEM__AVX_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,avxvnni")
#endif

#define GMEM__MR            6
#define GMEM__REPEAT(X)     X(0) X(1) X(2) X(3) X(4) X(5)
#define GMEM__K(name)       gmem__avx_vnni_##name
#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      _mm256_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm256_dpbusd_avx_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
/* ---- backends/cpu/dots.inc ---- */
/* Template: a narrow kernel (narrow.h) of dot-product instructions. GMEM__MR words of weights are broadcast, one after
 * the other, against two vectors of columns, whose sums stay in registers over one block of the depth.
 *
 * D_WIDTH lanes of D_VECTOR, summed in D_SUM; D_BROADCAST(p), D_DOT(sum, w, x), D_ADD, D_ZERO, D_LOAD_SUM,
 * D_STORE_SUM on D_ELEMENT, D_LOAD. */

#define GMEM__PANEL (2 * D_WIDTH)

/* The weights that come next from memory. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; at a time: many at once would keep loads waiting */
} GMEM__K(fetch);

GMEM__ALWAYS_INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        V_PREFETCH(fetch->at);
}

/* product (GMEM__MR, two vectors) of one strip and one panel. */
static void GMEM__K(strip)(const uint32_t *weights, const uint32_t *panel, int64_t words, int first, D_ELEMENT *product,
                           int64_t step, GMEM__K(fetch) * fetch) {
#define GMEM__BEGIN(r) D_SUM a##r = D_ZERO(), b##r = D_ZERO();
#define GMEM__STEP(r)                                                   \
    {                                                                   \
        const D_VECTOR w = D_BROADCAST(weights + r * GMEM__TILE_WORDS); \
        a##r = D_DOT(a##r, w, x0);                                      \
        b##r = D_DOT(b##r, w, x1);                                      \
    }
#define GMEM__JOIN(r)                                   \
    a##r = D_ADD(a##r, D_LOAD_SUM(product + r * step)); \
    b##r = D_ADD(b##r, D_LOAD_SUM(product + r * step + D_WIDTH));
#define GMEM__END(r)                       \
    D_STORE_SUM(product + r * step, a##r); \
    D_STORE_SUM(product + r * step + D_WIDTH, b##r);
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t tile = 0; tile < words; tile += GMEM__TILE_WORDS) {
        GMEM__K(fetch_some)(fetch);
        const int count = (int)gmem__min(GMEM__TILE_WORDS, words - tile);
        for (int i = 0; i < count; i++, weights++, panel += GMEM__PANEL) {
            const D_VECTOR x0 = D_LOAD(panel), x1 = D_LOAD(panel + D_WIDTH);
            GMEM__REPEAT(GMEM__STEP)
        }
        weights += (GMEM__MR - 1) * GMEM__TILE_WORDS;
    }
    if (!first) {
        GMEM__REPEAT(GMEM__JOIN)
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__JOIN
#undef GMEM__END
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    const int64_t parts = block->strips * block->panel_count;
    GMEM__K(fetch) fetch;
    fetch.at = block->next;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, parts * gmem__ceil_div(block->words, GMEM__TILE_WORDS));
    for (int64_t i = 0; i < parts; i++) {
        const int64_t s = i / block->panel_count, p = i % block->panel_count;
        D_ELEMENT *product = (D_ELEMENT *)block->product + s * GMEM__MR * block->product_step + p * GMEM__PANEL;
        GMEM__K(strip)
        (block->weights + s * block->strip_step, block->panels + p * block->panel_step, block->words, block->first,
         product, block->product_step, &fetch);
    }
}

#undef GMEM__PANEL
#undef GMEM__K
#undef D_WIDTH
#undef D_VECTOR
#undef D_SUM
#undef D_ELEMENT
#undef D_BROADCAST
#undef D_DOT
#undef D_ADD
#undef D_ZERO
#undef D_LOAD
#undef D_LOAD_SUM
#undef D_STORE_SUM
#undef GMEM__MR
#undef GMEM__REPEAT

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif /* GMEM__AVX_VNNI */

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

/* Quads of bytes as two pairs of 16 bits: their first and third values, their second and fourth. */
typedef struct gmem__byte_pairs {
    __m256i even, odd;
} gmem__byte_pairs;

GMEM__INLINE gmem__byte_pairs gmem__avx2_split(const uint32_t *p) {
    const __m256i quads = GMEM__LOAD_256(p);
    gmem__byte_pairs x;
    x.even = _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
    x.odd = _mm256_srai_epi16(quads, 8);
    return x;
}
GMEM__INLINE __m256i gmem__avx2_dot(__m256i sum, gmem__byte_pairs w, gmem__byte_pairs x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w.even, x.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w.odd, x.odd));
}

#define GMEM__SPLIT_BLOCK 288                     /* words of a block */
#define GMEM__SPLIT_WORDS (4 * GMEM__SPLIT_BLOCK) /* between a strip's even and odd halves */

GMEM__INLINE gmem__byte_pairs gmem__avx2_broadcast(const uint32_t *p) {
    gmem__byte_pairs w;
    w.even = _mm256_set1_epi32((int)p[0]);
    w.odd = _mm256_set1_epi32((int)p[GMEM__SPLIT_WORDS]);
    return w;
}

/* 4 rows: both operands take two registers. */
#define GMEM__MR            4
#define GMEM__REPEAT(X)     X(0) X(1) X(2) X(3)
#define GMEM__K(name)       gmem__avx2_i8_##name
#define D_WIDTH             8
#define D_VECTOR            gmem__byte_pairs
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      gmem__avx2_broadcast(p)
#define D_DOT(sum, w, x)    gmem__avx2_dot((sum), (w), (x))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           gmem__avx2_split(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
/* ---- backends/cpu/dots.inc ---- */
/* Template: a narrow kernel (narrow.h) of dot-product instructions. GMEM__MR words of weights are broadcast, one after
 * the other, against two vectors of columns, whose sums stay in registers over one block of the depth.
 *
 * D_WIDTH lanes of D_VECTOR, summed in D_SUM; D_BROADCAST(p), D_DOT(sum, w, x), D_ADD, D_ZERO, D_LOAD_SUM,
 * D_STORE_SUM on D_ELEMENT, D_LOAD. */

#define GMEM__PANEL (2 * D_WIDTH)

/* The weights that come next from memory. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; at a time: many at once would keep loads waiting */
} GMEM__K(fetch);

GMEM__ALWAYS_INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        V_PREFETCH(fetch->at);
}

/* product (GMEM__MR, two vectors) of one strip and one panel. */
static void GMEM__K(strip)(const uint32_t *weights, const uint32_t *panel, int64_t words, int first, D_ELEMENT *product,
                           int64_t step, GMEM__K(fetch) * fetch) {
#define GMEM__BEGIN(r) D_SUM a##r = D_ZERO(), b##r = D_ZERO();
#define GMEM__STEP(r)                                                   \
    {                                                                   \
        const D_VECTOR w = D_BROADCAST(weights + r * GMEM__TILE_WORDS); \
        a##r = D_DOT(a##r, w, x0);                                      \
        b##r = D_DOT(b##r, w, x1);                                      \
    }
#define GMEM__JOIN(r)                                   \
    a##r = D_ADD(a##r, D_LOAD_SUM(product + r * step)); \
    b##r = D_ADD(b##r, D_LOAD_SUM(product + r * step + D_WIDTH));
#define GMEM__END(r)                       \
    D_STORE_SUM(product + r * step, a##r); \
    D_STORE_SUM(product + r * step + D_WIDTH, b##r);
    GMEM__REPEAT(GMEM__BEGIN)
    for (int64_t tile = 0; tile < words; tile += GMEM__TILE_WORDS) {
        GMEM__K(fetch_some)(fetch);
        const int count = (int)gmem__min(GMEM__TILE_WORDS, words - tile);
        for (int i = 0; i < count; i++, weights++, panel += GMEM__PANEL) {
            const D_VECTOR x0 = D_LOAD(panel), x1 = D_LOAD(panel + D_WIDTH);
            GMEM__REPEAT(GMEM__STEP)
        }
        weights += (GMEM__MR - 1) * GMEM__TILE_WORDS;
    }
    if (!first) {
        GMEM__REPEAT(GMEM__JOIN)
    }
    GMEM__REPEAT(GMEM__END)
#undef GMEM__BEGIN
#undef GMEM__STEP
#undef GMEM__JOIN
#undef GMEM__END
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    const int64_t parts = block->strips * block->panel_count;
    GMEM__K(fetch) fetch;
    fetch.at = block->next;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, parts * gmem__ceil_div(block->words, GMEM__TILE_WORDS));
    for (int64_t i = 0; i < parts; i++) {
        const int64_t s = i / block->panel_count, p = i % block->panel_count;
        D_ELEMENT *product = (D_ELEMENT *)block->product + s * GMEM__MR * block->product_step + p * GMEM__PANEL;
        GMEM__K(strip)
        (block->weights + s * block->strip_step, block->panels + p * block->panel_step, block->words, block->first,
         product, block->product_step, &fetch);
    }
}

#undef GMEM__PANEL
#undef GMEM__K
#undef D_WIDTH
#undef D_VECTOR
#undef D_SUM
#undef D_ELEMENT
#undef D_BROADCAST
#undef D_DOT
#undef D_ADD
#undef D_ZERO
#undef D_LOAD
#undef D_LOAD_SUM
#undef D_STORE_SUM

/* The strip is split once for all panels. */
static void gmem__avx2_i8_multiply_split(const gmem__narrow_block *block) {
    uint32_t halves[2 * GMEM__SPLIT_WORDS];
    gmem__narrow_block split = *block;
    for (int64_t i = 0; i < block->words * GMEM__MR; i += 8) {
        const gmem__byte_pairs w = gmem__avx2_split(block->weights + i);
        GMEM__STORE_256(halves + i, w.even);
        GMEM__STORE_256(halves + GMEM__SPLIT_WORDS + i, w.odd);
    }
    split.weights = halves;
    gmem__avx2_i8_multiply(&split);
}
#undef GMEM__MR
#undef GMEM__REPEAT

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void) {
#ifdef GMEM__AVX_VNNI
    static const gmem__narrow vnni = {"avx-vnni", GMEM_I8, 6, 16, 1, 288, 1, 1, NULL, NULL, gmem__avx_vnni_multiply};
    return &vnni;
#else
    return NULL;
#endif
}

GMEM__FN const gmem__narrow *gmem__avx2_dots(void) {
    static const gmem__narrow bytes = {
        "avx2-int8", GMEM_I8, 4, 16, 1, GMEM__SPLIT_BLOCK, 0, 1, NULL, NULL, gmem__avx2_i8_multiply_split};
    return &bytes;
}

#undef V_PREFETCH
#undef GMEM__SPLIT_BLOCK
#undef GMEM__SPLIT_WORDS
#undef GMEM__LOAD_256
#undef GMEM__STORE_256
#undef GMEM__AVX_VNNI
#endif /* GMEM__X86 */
/* ---- backends/cpu/narrow_portable.c ---- */
/* Narrow kernels in plain C: the reference of those made of special instructions, what runs without them, and under
 * those kernels' shapes the stand-in that tests their packing, loops and epilogues on any machine. */

static float gmem__word_dot_bf16(uint32_t w, uint32_t x) {
    const float low = gmem__bf16_to_f32((uint16_t)w) * gmem__bf16_to_f32((uint16_t)x);
    return low + gmem__bf16_to_f32((uint16_t)(w >> 16)) * gmem__bf16_to_f32((uint16_t)(x >> 16));
}

/* Byte i of a word, signed. */
static int32_t gmem__word_byte(uint32_t word, int i) { return (int32_t)(signed char)(unsigned char)(word >> 8 * i); }

/* unsigned_x: as the instruction has it; the epilogue subtracts the offset. */
static int32_t gmem__word_dot_i8(uint32_t w, uint32_t x, int unsigned_x) {
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += gmem__word_byte(w, i) * (unsigned_x ? (int32_t)(x >> 8 * i & 0xff) : gmem__word_byte(x, i));
    return sum;
}

typedef struct gmem__portable {
    int64_t mr, nr;
    gmem_type type;
    int unsigned_x;
} gmem__portable;

/* One row of a strip against one panel. */
static void gmem__portable_row(const gmem__portable *kernel, const gmem__narrow_block *block, const uint32_t *row,
                               const uint32_t *panel, char *product) {
    float sums[32];
    int32_t counts[32];
    memset(sums, 0, sizeof sums);
    memset(counts, 0, sizeof counts);
    for (int64_t word = 0; word < block->words; word++, panel += kernel->nr) {
        const uint32_t w = row[word / GMEM__TILE_WORDS * kernel->mr * GMEM__TILE_WORDS + word % GMEM__TILE_WORDS];
        for (int64_t c = 0; c < kernel->nr; c++) {
            if (kernel->type == GMEM_BF16)
                sums[c] += gmem__word_dot_bf16(w, panel[c]);
            else
                counts[c] += gmem__word_dot_i8(w, panel[c], kernel->unsigned_x);
        }
    }
    for (int64_t c = 0; c < kernel->nr; c++, product += 4) {
        float sum = 0;
        int32_t count = 0;
        if (!block->first) memcpy(&sum, product, 4), memcpy(&count, product, 4);
        sum += sums[c], count += counts[c];
        memcpy(product, kernel->type == GMEM_BF16 ? (const void *)&sum : (const void *)&count, 4);
    }
}

static void gmem__portable_run(const gmem__portable *kernel, const gmem__narrow_block *block) {
    for (int64_t i = 0; i < block->strips * block->panel_count * kernel->mr; i++) {
        const int64_t r = i % kernel->mr, panel = i / kernel->mr % block->panel_count;
        const int64_t strip = i / kernel->mr / block->panel_count;
        const int64_t at = (strip * kernel->mr + r) * block->product_step + panel * kernel->nr;
        gmem__portable_row(kernel, block, block->weights + strip * block->strip_step + r * GMEM__TILE_WORDS,
                           block->panels + panel * block->panel_step, (char *)block->product + at * 4);
    }
}

/* A kernel of given shape: multiply takes nothing but a block, so each has its own. */
#define GMEM__PORTABLE(name, text, type, mr, nr, strips, block, unsigned_x)                         \
    static void name##_multiply(const gmem__narrow_block *b) {                                      \
        const gmem__portable kernel = {mr, nr, type, unsigned_x};                                   \
        gmem__portable_run(&kernel, b);                                                             \
    }                                                                                               \
    static const gmem__narrow name##_kernel = {text,       type, mr,   nr,   strips,         block, \
                                               unsigned_x, 1,    NULL, NULL, name##_multiply};

GMEM__PORTABLE(gmem__plain_bf16, "portable-bf16", GMEM_BF16, 8, 32, 1, 288, 0)
GMEM__PORTABLE(gmem__plain_i8, "portable-int8", GMEM_I8, 8, 32, 1, 288, 0)
GMEM__PORTABLE(gmem__like_dots_bf16, "like-avx512-bf16", GMEM_BF16, 12, 32, 1, 288, 0)
GMEM__PORTABLE(gmem__like_dots_i8, "like-avx512-vnni", GMEM_I8, 12, 32, 1, 288, 1)
GMEM__PORTABLE(gmem__like_vnni_i8, "like-avx-vnni", GMEM_I8, 6, 16, 1, 288, 1)
GMEM__PORTABLE(gmem__like_halves_i8, "like-avx2-int8", GMEM_I8, 4, 16, 1, 288, 0)

#undef GMEM__PORTABLE

GMEM__FN const gmem__narrow *gmem__portable_bf16(void) { return &gmem__plain_bf16_kernel; }
GMEM__FN const gmem__narrow *gmem__portable_i8(void) { return &gmem__plain_i8_kernel; }

GMEM__FN const gmem__narrow *gmem__portable_like(int i) {
    static const gmem__narrow *const kernels[] = {&gmem__like_dots_bf16_kernel, &gmem__like_dots_i8_kernel,
                                                  &gmem__like_vnni_i8_kernel, &gmem__like_halves_i8_kernel};
    return i < 4 ? kernels[i] : NULL;
}
/* ---- backends/cpu/amx.c ---- */
/* AMX: narrow kernels of tile instructions (Intel SDM, volume 1, chapter 18), and beside them the same kernels on tiles
 * in plain C, which test the loops on machines without. Assembly of our own rather than intrinsics: gcc's don't say
 * which memory they touch, and clang may spill tiles of its own choice (LLVM 110190). */

#include <float.h>

/* Blocks of 288 words: two strips of that are 36 KB of the first-level cache's 48. A shorter block would load and store
 * the sums more often, 8 KB each time beside the 2 KB of x in a step, all from the second-level cache: with 12 steps
 * (192 words) 42 bytes a cycle, with 18 steps 38, of about 47 that it gives. int8 of depth 1152 is one block. */
#define GMEM__TILES_MR     16
#define GMEM__TILES_NR     16
#define GMEM__TILES_STRIPS 2
#define GMEM__TILES_BLOCK  288

/* What LDTILECFG reads: eight tiles of 16 rows of 64 bytes. */
typedef struct gmem__tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} gmem__tile_config;

static const gmem__tile_config gmem__tile_shapes = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* the stand-in ---------------------------------------------------------------------------------------------------- */

typedef struct gmem__tiles {
    uint32_t word[8][16][16]; /* tile, row, column */
} gmem__tiles;

static void gmem__tile_zero(gmem__tiles *tiles, int n) { memset(tiles->word[n], 0, sizeof tiles->word[n]); }

static void gmem__tile_load(gmem__tiles *tiles, int n, const void *p, int64_t stride) {
    gmem__tile_zero(tiles, n);
    for (int r = 0; r < gmem__tile_shapes.rows[n]; r++)
        memcpy(tiles->word[n][r], (const char *)p + r * stride, gmem__tile_shapes.row_bytes[n]);
}

static void gmem__tile_store(const gmem__tiles *tiles, int n, void *p, int64_t stride) {
    for (int r = 0; r < gmem__tile_shapes.rows[n]; r++)
        memcpy((char *)p + r * stride, tiles->word[n][r], gmem__tile_shapes.row_bytes[n]);
}

/* TDPBF16PS takes subnormal numbers for zero, and gives none. */
GMEM__INLINE float gmem__tile_flush(float x) { return x < FLT_MIN && x > -FLT_MIN ? 0 : x; }

GMEM__INLINE float gmem__tile_half(uint32_t word, int high) {
    return gmem__tile_flush(gmem__bf16_to_f32((uint16_t)(word >> 16 * high)));
}

/* TDPBF16PS: the lower and the higher halves' products, which are exact, are summed apart, then added to the sum. */
static void gmem__tile_dot_bf16(gmem__tiles *tiles, int sum, int weights, int x) {
    float values[16][2][16]; /* x, once for all rows */
    for (int i = 0; i < 16 * 2 * 16; i++)
        values[i / 32][i / 16 % 2][i % 16] = gmem__tile_half(tiles->word[x][i / 32][i % 16], i / 16 % 2);
    for (int r = 0; r < 16; r++) {
        float part[2][16], total;
        memset(part, 0, sizeof part);
        for (int k = 0; k < 16; k++)
            for (int high = 0; high < 2; high++) {
                const float w = gmem__tile_half(tiles->word[weights][r][k], high);
                for (int c = 0; c < 16; c++)
                    part[high][c] = gmem__tile_flush(part[high][c] + w * values[k][high][c]);
            }
        for (int c = 0; c < 16; c++) {
            memcpy(&total, &tiles->word[sum][r][c], sizeof total);
            total = gmem__tile_flush(gmem__tile_flush(total) + gmem__tile_flush(part[0][c] + part[1][c]));
            memcpy(&tiles->word[sum][r][c], &total, sizeof total);
        }
    }
}

GMEM__INLINE int32_t gmem__tile_byte(uint32_t word, int i) { return (signed char)(unsigned char)(word >> 8 * i); }

/* TDPBSSD: signed by signed, without saturation. */
static void gmem__tile_dot_i8(gmem__tiles *tiles, int sum, int weights, int x) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < 4; i++) {
                const int32_t w = gmem__tile_byte(tiles->word[weights][r][k], i);
                for (int c = 0; c < 16; c++)
                    tiles->word[sum][r][c] += (uint32_t)(w * gmem__tile_byte(tiles->word[x][k][c], i));
            }
}

#define TILE_STATE                gmem__tiles
#define TILE_ZERO(n)              gmem__tile_zero(tiles, n)
#define TILE_LOAD(n, p, stride)   gmem__tile_load(tiles, n, p, stride)
#define TILE_STREAM(n, p, stride) gmem__tile_load(tiles, n, p, stride)
#define TILE_STORE(n, p, stride)  gmem__tile_store(tiles, n, p, stride)
#define TILE_PREFETCH(p)          ((void)*(const volatile char *)(p)) /* what is asked for must be there */

#define GMEM__K(name)             gmem__stand_in_bf16_##name
#define TILE_DOT(sum, weights, x) gmem__tile_dot_bf16(tiles, sum, weights, x)
/* ---- backends/cpu/tiles.inc ---- */
/* Template: a narrow kernel (narrow.h) of tile instructions, on eight tiles of 16 rows of 64 bytes: 0 to 3 sum 2 strips
 * x 2 panels (0 and 1 the first strip's), 4 and 5 hold weights (16 rows x 16 words), 6 and 7 x (16 words x 16 columns).
 *
 * TILE_ZERO(n), TILE_LOAD(n, p, stride), TILE_STREAM(n, p, stride) of what is too large for the first-level cache,
 * TILE_STORE(n, p, stride), TILE_DOT(sum, weights, x), all with literal numbers and strides in bytes;
 * TILE_PREFETCH(p) to the second-level cache. They may use `tiles`, a TILE_STATE *.
 *
 * A step of 2 x 2 products takes 64 cycles and 4 KB of operands: 64 bytes a cycle, more than the second-level cache
 * gives. So the strips' block stays in the first-level one, 2 KB of each step, and x is streamed past it. */

#define TILE_ROW (GMEM__TILE_WORDS * 4) /* bytes between rows of an operand */

/* The weights that come next, asked for line by line: after each product of a strip, of one strip. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; after a product */
} GMEM__K(fetch);

GMEM__INLINE GMEM__K(fetch) GMEM__K(fetch_of)(const gmem__narrow_block *block, int64_t strip) {
    const int64_t products = block->panel_count * gmem__ceil_div(block->words, GMEM__TILE_WORDS);
    GMEM__K(fetch) fetch = {NULL, 0, 0};
    if (strip >= block->next_strips) return fetch;
    fetch.at = block->next + strip * block->strip_step * 4;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, products);
    return fetch;
}

GMEM__INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        TILE_PREFETCH(fetch->at);
}

/* What a step multiplies: tiles of all strips and of one or two panels. */
typedef struct GMEM__K(operands) {
    const uint32_t *weights, *x;
    int64_t panels; /* 0: nothing is left */
} GMEM__K(operands);

/* At the end of the depth the next panels begin. */
GMEM__INLINE GMEM__K(operands) GMEM__K(operands_at)(const gmem__narrow_block *block, int64_t panel, int64_t word) {
    GMEM__K(operands) operands;
    if (word >= block->words) panel += 2, word = 0;
    operands.weights = block->weights + word * GMEM__TILE_WORDS;
    operands.x = block->panels + panel * block->panel_step + word * GMEM__TILE_WORDS;
    operands.panels = gmem__max(0, gmem__min(2, block->panel_count - panel));
    return operands;
}

GMEM__INLINE void GMEM__K(load)(TILE_STATE *tiles, const gmem__narrow_block *block, GMEM__K(operands) at) {
    TILE_STREAM(6, at.x, TILE_ROW);
    TILE_LOAD(4, at.weights, TILE_ROW);
    if (at.panels > 1) TILE_STREAM(7, at.x + block->panel_step, TILE_ROW);
    if (block->strips > 1) TILE_LOAD(5, at.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* The products of what was loaded before. Each tile's successor is loaded as soon as no product needs it any more, so
 * that the next step can begin before this one has ended; x, which is slower to come, two products before its use. */
GMEM__INLINE void GMEM__K(step)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                GMEM__K(operands) next, GMEM__K(fetch) fetch[2]) {
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_DOT(0, 4, 6);
    GMEM__K(fetch_some)(&fetch[0]);
    if (two_strips) {
        TILE_DOT(2, 5, 6);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels) TILE_STREAM(6, next.x, TILE_ROW);
    if (two_panels) {
        TILE_DOT(1, 4, 7);
        GMEM__K(fetch_some)(&fetch[0]);
    }
    if (next.panels) TILE_LOAD(4, next.weights, TILE_ROW);
    if (two_strips && two_panels) {
        TILE_DOT(3, 5, 7);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels > 1) TILE_STREAM(7, next.x + block->panel_step, TILE_ROW);
    if (next.panels && two_strips) TILE_LOAD(5, next.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* In the order of the first products, as the stores are in that of the last. */
GMEM__INLINE void GMEM__K(begin_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      const uint32_t *product) {
    const uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    if (block->first) {
        TILE_ZERO(0);
        TILE_ZERO(2);
        TILE_ZERO(1);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, product, stride);
        if (two_strips) TILE_LOAD(2, below, stride);
        if (two_panels) TILE_LOAD(1, product + GMEM__TILE_WORDS, stride);
        if (two_strips && two_panels) TILE_LOAD(3, below + GMEM__TILE_WORDS, stride);
    }
    (void)tiles;
}

GMEM__INLINE void GMEM__K(store_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      uint32_t *product) {
    uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_STORE(0, product, stride);
    if (two_strips) TILE_STORE(2, below, stride);
    if (two_panels) TILE_STORE(1, product + GMEM__TILE_WORDS, stride);
    if (two_strips && two_panels) TILE_STORE(3, below + GMEM__TILE_WORDS, stride);
    (void)tiles;
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    TILE_STATE state, *tiles = &state;
    GMEM__K(fetch) fetch[2] = {GMEM__K(fetch_of)(block, 0), GMEM__K(fetch_of)(block, 1)};
    GMEM__K(load)(tiles, block, GMEM__K(operands_at)(block, 0, 0));
    for (int64_t panel = 0; panel < block->panel_count; panel += 2) {
        const int64_t panels = gmem__min(2, block->panel_count - panel);
        uint32_t *product = (uint32_t *)block->product + panel * GMEM__TILE_WORDS;
        GMEM__K(begin_sums)(tiles, block, panels, product);
        for (int64_t word = GMEM__TILE_WORDS; word < block->words + GMEM__TILE_WORDS; word += GMEM__TILE_WORDS)
            GMEM__K(step)(tiles, block, panels, GMEM__K(operands_at)(block, panel, word), fetch);
        GMEM__K(store_sums)(tiles, block, panels, product);
    }
}

#undef TILE_ROW
#undef TILE_DOT
#undef GMEM__K

#define GMEM__K(name)             gmem__stand_in_i8_##name
#define TILE_DOT(sum, weights, x) gmem__tile_dot_i8(tiles, sum, weights, x)
/* ---- backends/cpu/tiles.inc ---- */
/* Template: a narrow kernel (narrow.h) of tile instructions, on eight tiles of 16 rows of 64 bytes: 0 to 3 sum 2 strips
 * x 2 panels (0 and 1 the first strip's), 4 and 5 hold weights (16 rows x 16 words), 6 and 7 x (16 words x 16 columns).
 *
 * TILE_ZERO(n), TILE_LOAD(n, p, stride), TILE_STREAM(n, p, stride) of what is too large for the first-level cache,
 * TILE_STORE(n, p, stride), TILE_DOT(sum, weights, x), all with literal numbers and strides in bytes;
 * TILE_PREFETCH(p) to the second-level cache. They may use `tiles`, a TILE_STATE *.
 *
 * A step of 2 x 2 products takes 64 cycles and 4 KB of operands: 64 bytes a cycle, more than the second-level cache
 * gives. So the strips' block stays in the first-level one, 2 KB of each step, and x is streamed past it. */

#define TILE_ROW (GMEM__TILE_WORDS * 4) /* bytes between rows of an operand */

/* The weights that come next, asked for line by line: after each product of a strip, of one strip. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; after a product */
} GMEM__K(fetch);

GMEM__INLINE GMEM__K(fetch) GMEM__K(fetch_of)(const gmem__narrow_block *block, int64_t strip) {
    const int64_t products = block->panel_count * gmem__ceil_div(block->words, GMEM__TILE_WORDS);
    GMEM__K(fetch) fetch = {NULL, 0, 0};
    if (strip >= block->next_strips) return fetch;
    fetch.at = block->next + strip * block->strip_step * 4;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, products);
    return fetch;
}

GMEM__INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        TILE_PREFETCH(fetch->at);
}

/* What a step multiplies: tiles of all strips and of one or two panels. */
typedef struct GMEM__K(operands) {
    const uint32_t *weights, *x;
    int64_t panels; /* 0: nothing is left */
} GMEM__K(operands);

/* At the end of the depth the next panels begin. */
GMEM__INLINE GMEM__K(operands) GMEM__K(operands_at)(const gmem__narrow_block *block, int64_t panel, int64_t word) {
    GMEM__K(operands) operands;
    if (word >= block->words) panel += 2, word = 0;
    operands.weights = block->weights + word * GMEM__TILE_WORDS;
    operands.x = block->panels + panel * block->panel_step + word * GMEM__TILE_WORDS;
    operands.panels = gmem__max(0, gmem__min(2, block->panel_count - panel));
    return operands;
}

GMEM__INLINE void GMEM__K(load)(TILE_STATE *tiles, const gmem__narrow_block *block, GMEM__K(operands) at) {
    TILE_STREAM(6, at.x, TILE_ROW);
    TILE_LOAD(4, at.weights, TILE_ROW);
    if (at.panels > 1) TILE_STREAM(7, at.x + block->panel_step, TILE_ROW);
    if (block->strips > 1) TILE_LOAD(5, at.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* The products of what was loaded before. Each tile's successor is loaded as soon as no product needs it any more, so
 * that the next step can begin before this one has ended; x, which is slower to come, two products before its use. */
GMEM__INLINE void GMEM__K(step)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                GMEM__K(operands) next, GMEM__K(fetch) fetch[2]) {
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_DOT(0, 4, 6);
    GMEM__K(fetch_some)(&fetch[0]);
    if (two_strips) {
        TILE_DOT(2, 5, 6);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels) TILE_STREAM(6, next.x, TILE_ROW);
    if (two_panels) {
        TILE_DOT(1, 4, 7);
        GMEM__K(fetch_some)(&fetch[0]);
    }
    if (next.panels) TILE_LOAD(4, next.weights, TILE_ROW);
    if (two_strips && two_panels) {
        TILE_DOT(3, 5, 7);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels > 1) TILE_STREAM(7, next.x + block->panel_step, TILE_ROW);
    if (next.panels && two_strips) TILE_LOAD(5, next.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* In the order of the first products, as the stores are in that of the last. */
GMEM__INLINE void GMEM__K(begin_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      const uint32_t *product) {
    const uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    if (block->first) {
        TILE_ZERO(0);
        TILE_ZERO(2);
        TILE_ZERO(1);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, product, stride);
        if (two_strips) TILE_LOAD(2, below, stride);
        if (two_panels) TILE_LOAD(1, product + GMEM__TILE_WORDS, stride);
        if (two_strips && two_panels) TILE_LOAD(3, below + GMEM__TILE_WORDS, stride);
    }
    (void)tiles;
}

GMEM__INLINE void GMEM__K(store_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      uint32_t *product) {
    uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_STORE(0, product, stride);
    if (two_strips) TILE_STORE(2, below, stride);
    if (two_panels) TILE_STORE(1, product + GMEM__TILE_WORDS, stride);
    if (two_strips && two_panels) TILE_STORE(3, below + GMEM__TILE_WORDS, stride);
    (void)tiles;
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    TILE_STATE state, *tiles = &state;
    GMEM__K(fetch) fetch[2] = {GMEM__K(fetch_of)(block, 0), GMEM__K(fetch_of)(block, 1)};
    GMEM__K(load)(tiles, block, GMEM__K(operands_at)(block, 0, 0));
    for (int64_t panel = 0; panel < block->panel_count; panel += 2) {
        const int64_t panels = gmem__min(2, block->panel_count - panel);
        uint32_t *product = (uint32_t *)block->product + panel * GMEM__TILE_WORDS;
        GMEM__K(begin_sums)(tiles, block, panels, product);
        for (int64_t word = GMEM__TILE_WORDS; word < block->words + GMEM__TILE_WORDS; word += GMEM__TILE_WORDS)
            GMEM__K(step)(tiles, block, panels, GMEM__K(operands_at)(block, panel, word), fetch);
        GMEM__K(store_sums)(tiles, block, panels, product);
    }
}

#undef TILE_ROW
#undef TILE_DOT
#undef GMEM__K

#undef TILE_STATE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STREAM
#undef TILE_STORE
#undef TILE_PREFETCH

/* A kernel on tiles. */
#define GMEM__TILES(name, type, begin, end, multiply) \
    { name, type, GMEM__TILES_MR, GMEM__TILES_NR, GMEM__TILES_STRIPS, GMEM__TILES_BLOCK, 0, 1, begin, end, multiply }

GMEM__FN const gmem__narrow *gmem__amx_stand_in(gmem_type type) {
    static const gmem__narrow bf16 = GMEM__TILES("like-amx-bf16", GMEM_BF16, NULL, NULL, gmem__stand_in_bf16_multiply);
    static const gmem__narrow i8 = GMEM__TILES("like-amx-int8", GMEM_I8, NULL, NULL, gmem__stand_in_i8_multiply);
    return type == GMEM_BF16 ? &bf16 : type == GMEM_I8 ? &i8 : NULL;
}

/* the instructions ------------------------------------------------------------------------------------------------ */

/* Where the compiler's assembler knows them. MemorySanitizer doesn't see what a tile stores. */
#if defined(GMEM__X86) && defined(__linux__) && !defined(__ILP32__)
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define GMEM__AMX 1
#endif
#endif
#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#undef GMEM__AMX
#endif
#endif

#ifdef GMEM__AMX
#include <cpuid.h>

static int64_t gmem__arch_prctl(int64_t code, uintptr_t argument) {
    int64_t result = 158; /* arch_prctl, which libraries don't declare */
    __asm__ volatile("syscall" : "+a"(result) : "D"(code), "S"(argument) : "rcx", "r11", "memory");
    return result;
}

/* Tiles are 8 KB of state that Linux keeps for those who ask. Asking again is harmless; being refused (an old kernel, a
 * filter, an alternative signal stack too small for it) is not an error. */
static int gmem__tiles_permitted(void) {
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    uint64_t permitted = 0;
    gmem__arch_prctl(REQUEST_PERMISSION, TILE_DATA);
    return gmem__arch_prctl(GET_PERMISSION, (uintptr_t)&permitted) == 0 && (permitted >> TILE_DATA & 1) != 0;
}

GMEM__FN int gmem__has_amx(void) {
    unsigned a, b, c, d, low, high;
    const unsigned osxsave = 1u << 27, tile_state = 3u << 17; /* XCR0: configuration and data */
    const unsigned tiles = 1u << 22 | 1u << 24 | 1u << 25;    /* AMX-BF16, AMX-TILE, AMX-INT8 */
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tiles) != tiles) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & tile_state) == tile_state && gmem__tiles_permitted();
}

/* The configuration is the thread's own and is nobody's between two calls: loaded for each task, then released. */
static void gmem__amx_begin(void) { __asm__ volatile("ldtilecfg %0" : : "m"(gmem__tile_shapes)); }
static void gmem__amx_end(void) { __asm__ volatile("tilerelease" : : : "memory"); }

#define TILE_STATE   char
#define TILE_ZERO(n) __asm__ volatile("tilezero %%tmm" #n : : : "memory")
#define TILE_LOAD(n, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #n : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STREAM(n, p, stride) \
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #n : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(n, p, stride) \
    __asm__ volatile("tilestored %%tmm" #n ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

#define GMEM__K(name)             gmem__amx_bf16_##name
#define TILE_DOT(sum, weights, x) __asm__ volatile("tdpbf16ps %%tmm" #x ", %%tmm" #weights ", %%tmm" #sum : :)
/* ---- backends/cpu/tiles.inc ---- */
/* Template: a narrow kernel (narrow.h) of tile instructions, on eight tiles of 16 rows of 64 bytes: 0 to 3 sum 2 strips
 * x 2 panels (0 and 1 the first strip's), 4 and 5 hold weights (16 rows x 16 words), 6 and 7 x (16 words x 16 columns).
 *
 * TILE_ZERO(n), TILE_LOAD(n, p, stride), TILE_STREAM(n, p, stride) of what is too large for the first-level cache,
 * TILE_STORE(n, p, stride), TILE_DOT(sum, weights, x), all with literal numbers and strides in bytes;
 * TILE_PREFETCH(p) to the second-level cache. They may use `tiles`, a TILE_STATE *.
 *
 * A step of 2 x 2 products takes 64 cycles and 4 KB of operands: 64 bytes a cycle, more than the second-level cache
 * gives. So the strips' block stays in the first-level one, 2 KB of each step, and x is streamed past it. */

#define TILE_ROW (GMEM__TILE_WORDS * 4) /* bytes between rows of an operand */

/* The weights that come next, asked for line by line: after each product of a strip, of one strip. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; after a product */
} GMEM__K(fetch);

GMEM__INLINE GMEM__K(fetch) GMEM__K(fetch_of)(const gmem__narrow_block *block, int64_t strip) {
    const int64_t products = block->panel_count * gmem__ceil_div(block->words, GMEM__TILE_WORDS);
    GMEM__K(fetch) fetch = {NULL, 0, 0};
    if (strip >= block->next_strips) return fetch;
    fetch.at = block->next + strip * block->strip_step * 4;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, products);
    return fetch;
}

GMEM__INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        TILE_PREFETCH(fetch->at);
}

/* What a step multiplies: tiles of all strips and of one or two panels. */
typedef struct GMEM__K(operands) {
    const uint32_t *weights, *x;
    int64_t panels; /* 0: nothing is left */
} GMEM__K(operands);

/* At the end of the depth the next panels begin. */
GMEM__INLINE GMEM__K(operands) GMEM__K(operands_at)(const gmem__narrow_block *block, int64_t panel, int64_t word) {
    GMEM__K(operands) operands;
    if (word >= block->words) panel += 2, word = 0;
    operands.weights = block->weights + word * GMEM__TILE_WORDS;
    operands.x = block->panels + panel * block->panel_step + word * GMEM__TILE_WORDS;
    operands.panels = gmem__max(0, gmem__min(2, block->panel_count - panel));
    return operands;
}

GMEM__INLINE void GMEM__K(load)(TILE_STATE *tiles, const gmem__narrow_block *block, GMEM__K(operands) at) {
    TILE_STREAM(6, at.x, TILE_ROW);
    TILE_LOAD(4, at.weights, TILE_ROW);
    if (at.panels > 1) TILE_STREAM(7, at.x + block->panel_step, TILE_ROW);
    if (block->strips > 1) TILE_LOAD(5, at.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* The products of what was loaded before. Each tile's successor is loaded as soon as no product needs it any more, so
 * that the next step can begin before this one has ended; x, which is slower to come, two products before its use. */
GMEM__INLINE void GMEM__K(step)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                GMEM__K(operands) next, GMEM__K(fetch) fetch[2]) {
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_DOT(0, 4, 6);
    GMEM__K(fetch_some)(&fetch[0]);
    if (two_strips) {
        TILE_DOT(2, 5, 6);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels) TILE_STREAM(6, next.x, TILE_ROW);
    if (two_panels) {
        TILE_DOT(1, 4, 7);
        GMEM__K(fetch_some)(&fetch[0]);
    }
    if (next.panels) TILE_LOAD(4, next.weights, TILE_ROW);
    if (two_strips && two_panels) {
        TILE_DOT(3, 5, 7);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels > 1) TILE_STREAM(7, next.x + block->panel_step, TILE_ROW);
    if (next.panels && two_strips) TILE_LOAD(5, next.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* In the order of the first products, as the stores are in that of the last. */
GMEM__INLINE void GMEM__K(begin_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      const uint32_t *product) {
    const uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    if (block->first) {
        TILE_ZERO(0);
        TILE_ZERO(2);
        TILE_ZERO(1);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, product, stride);
        if (two_strips) TILE_LOAD(2, below, stride);
        if (two_panels) TILE_LOAD(1, product + GMEM__TILE_WORDS, stride);
        if (two_strips && two_panels) TILE_LOAD(3, below + GMEM__TILE_WORDS, stride);
    }
    (void)tiles;
}

GMEM__INLINE void GMEM__K(store_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      uint32_t *product) {
    uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_STORE(0, product, stride);
    if (two_strips) TILE_STORE(2, below, stride);
    if (two_panels) TILE_STORE(1, product + GMEM__TILE_WORDS, stride);
    if (two_strips && two_panels) TILE_STORE(3, below + GMEM__TILE_WORDS, stride);
    (void)tiles;
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    TILE_STATE state, *tiles = &state;
    GMEM__K(fetch) fetch[2] = {GMEM__K(fetch_of)(block, 0), GMEM__K(fetch_of)(block, 1)};
    GMEM__K(load)(tiles, block, GMEM__K(operands_at)(block, 0, 0));
    for (int64_t panel = 0; panel < block->panel_count; panel += 2) {
        const int64_t panels = gmem__min(2, block->panel_count - panel);
        uint32_t *product = (uint32_t *)block->product + panel * GMEM__TILE_WORDS;
        GMEM__K(begin_sums)(tiles, block, panels, product);
        for (int64_t word = GMEM__TILE_WORDS; word < block->words + GMEM__TILE_WORDS; word += GMEM__TILE_WORDS)
            GMEM__K(step)(tiles, block, panels, GMEM__K(operands_at)(block, panel, word), fetch);
        GMEM__K(store_sums)(tiles, block, panels, product);
    }
}

#undef TILE_ROW
#undef TILE_DOT
#undef GMEM__K

#define GMEM__K(name)             gmem__amx_i8_##name
#define TILE_DOT(sum, weights, x) __asm__ volatile("tdpbssd %%tmm" #x ", %%tmm" #weights ", %%tmm" #sum : :)
/* ---- backends/cpu/tiles.inc ---- */
/* Template: a narrow kernel (narrow.h) of tile instructions, on eight tiles of 16 rows of 64 bytes: 0 to 3 sum 2 strips
 * x 2 panels (0 and 1 the first strip's), 4 and 5 hold weights (16 rows x 16 words), 6 and 7 x (16 words x 16 columns).
 *
 * TILE_ZERO(n), TILE_LOAD(n, p, stride), TILE_STREAM(n, p, stride) of what is too large for the first-level cache,
 * TILE_STORE(n, p, stride), TILE_DOT(sum, weights, x), all with literal numbers and strides in bytes;
 * TILE_PREFETCH(p) to the second-level cache. They may use `tiles`, a TILE_STATE *.
 *
 * A step of 2 x 2 products takes 64 cycles and 4 KB of operands: 64 bytes a cycle, more than the second-level cache
 * gives. So the strips' block stays in the first-level one, 2 KB of each step, and x is streamed past it. */

#define TILE_ROW (GMEM__TILE_WORDS * 4) /* bytes between rows of an operand */

/* The weights that come next, asked for line by line: after each product of a strip, of one strip. */
typedef struct GMEM__K(fetch) {
    const char *at;
    int64_t lines, burst; /* still to be asked for; after a product */
} GMEM__K(fetch);

GMEM__INLINE GMEM__K(fetch) GMEM__K(fetch_of)(const gmem__narrow_block *block, int64_t strip) {
    const int64_t products = block->panel_count * gmem__ceil_div(block->words, GMEM__TILE_WORDS);
    GMEM__K(fetch) fetch = {NULL, 0, 0};
    if (strip >= block->next_strips) return fetch;
    fetch.at = block->next + strip * block->strip_step * 4;
    fetch.lines = gmem__ceil_div(block->next_bytes, 64);
    fetch.burst = gmem__ceil_div(fetch.lines, products);
    return fetch;
}

GMEM__INLINE void GMEM__K(fetch_some)(GMEM__K(fetch) * fetch) {
    for (int64_t i = 0; i < fetch->burst && fetch->lines > 0; i++, fetch->at += 64, fetch->lines--)
        TILE_PREFETCH(fetch->at);
}

/* What a step multiplies: tiles of all strips and of one or two panels. */
typedef struct GMEM__K(operands) {
    const uint32_t *weights, *x;
    int64_t panels; /* 0: nothing is left */
} GMEM__K(operands);

/* At the end of the depth the next panels begin. */
GMEM__INLINE GMEM__K(operands) GMEM__K(operands_at)(const gmem__narrow_block *block, int64_t panel, int64_t word) {
    GMEM__K(operands) operands;
    if (word >= block->words) panel += 2, word = 0;
    operands.weights = block->weights + word * GMEM__TILE_WORDS;
    operands.x = block->panels + panel * block->panel_step + word * GMEM__TILE_WORDS;
    operands.panels = gmem__max(0, gmem__min(2, block->panel_count - panel));
    return operands;
}

GMEM__INLINE void GMEM__K(load)(TILE_STATE *tiles, const gmem__narrow_block *block, GMEM__K(operands) at) {
    TILE_STREAM(6, at.x, TILE_ROW);
    TILE_LOAD(4, at.weights, TILE_ROW);
    if (at.panels > 1) TILE_STREAM(7, at.x + block->panel_step, TILE_ROW);
    if (block->strips > 1) TILE_LOAD(5, at.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* The products of what was loaded before. Each tile's successor is loaded as soon as no product needs it any more, so
 * that the next step can begin before this one has ended; x, which is slower to come, two products before its use. */
GMEM__INLINE void GMEM__K(step)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                GMEM__K(operands) next, GMEM__K(fetch) fetch[2]) {
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_DOT(0, 4, 6);
    GMEM__K(fetch_some)(&fetch[0]);
    if (two_strips) {
        TILE_DOT(2, 5, 6);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels) TILE_STREAM(6, next.x, TILE_ROW);
    if (two_panels) {
        TILE_DOT(1, 4, 7);
        GMEM__K(fetch_some)(&fetch[0]);
    }
    if (next.panels) TILE_LOAD(4, next.weights, TILE_ROW);
    if (two_strips && two_panels) {
        TILE_DOT(3, 5, 7);
        GMEM__K(fetch_some)(&fetch[1]);
    }
    if (next.panels > 1) TILE_STREAM(7, next.x + block->panel_step, TILE_ROW);
    if (next.panels && two_strips) TILE_LOAD(5, next.weights + block->strip_step, TILE_ROW);
    (void)tiles;
}

/* In the order of the first products, as the stores are in that of the last. */
GMEM__INLINE void GMEM__K(begin_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      const uint32_t *product) {
    const uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    if (block->first) {
        TILE_ZERO(0);
        TILE_ZERO(2);
        TILE_ZERO(1);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, product, stride);
        if (two_strips) TILE_LOAD(2, below, stride);
        if (two_panels) TILE_LOAD(1, product + GMEM__TILE_WORDS, stride);
        if (two_strips && two_panels) TILE_LOAD(3, below + GMEM__TILE_WORDS, stride);
    }
    (void)tiles;
}

GMEM__INLINE void GMEM__K(store_sums)(TILE_STATE *tiles, const gmem__narrow_block *block, int64_t panels,
                                      uint32_t *product) {
    uint32_t *below = product + GMEM__TILE_WORDS * block->product_step;
    const int64_t stride = 4 * block->product_step;
    const int two_strips = block->strips > 1, two_panels = panels > 1;
    TILE_STORE(0, product, stride);
    if (two_strips) TILE_STORE(2, below, stride);
    if (two_panels) TILE_STORE(1, product + GMEM__TILE_WORDS, stride);
    if (two_strips && two_panels) TILE_STORE(3, below + GMEM__TILE_WORDS, stride);
    (void)tiles;
}

static void GMEM__K(multiply)(const gmem__narrow_block *block) {
    TILE_STATE state, *tiles = &state;
    GMEM__K(fetch) fetch[2] = {GMEM__K(fetch_of)(block, 0), GMEM__K(fetch_of)(block, 1)};
    GMEM__K(load)(tiles, block, GMEM__K(operands_at)(block, 0, 0));
    for (int64_t panel = 0; panel < block->panel_count; panel += 2) {
        const int64_t panels = gmem__min(2, block->panel_count - panel);
        uint32_t *product = (uint32_t *)block->product + panel * GMEM__TILE_WORDS;
        GMEM__K(begin_sums)(tiles, block, panels, product);
        for (int64_t word = GMEM__TILE_WORDS; word < block->words + GMEM__TILE_WORDS; word += GMEM__TILE_WORDS)
            GMEM__K(step)(tiles, block, panels, GMEM__K(operands_at)(block, panel, word), fetch);
        GMEM__K(store_sums)(tiles, block, panels, product);
    }
}

#undef TILE_ROW
#undef TILE_DOT
#undef GMEM__K

#undef TILE_STATE
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STREAM
#undef TILE_STORE
#undef TILE_PREFETCH

/* Whether they can run or not. */
static const gmem__narrow *gmem__amx_kernel(gmem_type type) {
    static const gmem__narrow bf16 =
        GMEM__TILES("amx-bf16", GMEM_BF16, gmem__amx_begin, gmem__amx_end, gmem__amx_bf16_multiply);
    static const gmem__narrow i8 =
        GMEM__TILES("amx-int8", GMEM_I8, gmem__amx_begin, gmem__amx_end, gmem__amx_i8_multiply);
    return type == GMEM_BF16 ? &bf16 : type == GMEM_I8 ? &i8 : NULL;
}

GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type) {
    return gmem__has_amx() ? gmem__amx_kernel(type) : NULL;
}

#else
GMEM__FN int gmem__has_amx(void) { return 0; }

GMEM__FN const gmem__narrow *gmem__amx_narrow(gmem_type type) {
    (void)type;
    return NULL;
}
#endif

#undef GMEM__TILES
#undef GMEM__TILES_MR
#undef GMEM__TILES_NR
#undef GMEM__TILES_STRIPS
#undef GMEM__TILES_BLOCK
/* ---- backends/cpu/narrow_choose.c ---- */
/* Which narrow kernel runs. An instruction's presence says nothing of its speed: AVX512-BF16 does twice the work of
 * f32's multiply-adds on AMD's Zen 4, and half of it on Intel's Sapphire Rapids, whose fast bf16 is AMX. Measured on
 * both; kept as a table, since a measurement at start could choose differently from run to run, and results with it. */

#ifdef GMEM__X86
#include <cpuid.h>

typedef struct gmem__features {
    int avx512_bf16, avx512_vnni, avx_vnni;
    int amd;
} gmem__features;

static gmem__features gmem__processor_features(void) {
    gmem__features features;
    unsigned a, b, c, d;
    memset(&features, 0, sizeof features);
    if (__get_cpuid(0, &a, &b, &c, &d)) features.amd = b == signature_AMD_ebx && c == signature_AMD_ecx;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) features.avx512_vnni = (c >> 11 & 1) != 0;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) {
        features.avx512_bf16 = (a >> 5 & 1) != 0;
        features.avx_vnni = (a >> 4 & 1) != 0;
    }
    return features;
}

static const gmem__narrow *gmem__vector_dots(gmem_isa isa, gmem_type type) {
    const gmem__features has = gmem__processor_features();
    const gmem__narrow *wide = isa >= GMEM_ISA_AVX512 ? gmem__avx512_dots(type) : NULL;
    if (type == GMEM_BF16) return has.avx512_bf16 && has.amd ? wide : NULL;
    if (wide && has.avx512_vnni) return wide;
    const gmem__narrow *vnni = has.avx_vnni ? gmem__avx_vnni_dots() : NULL;
    return vnni ? vnni : gmem__avx2_dots();
}
#endif

GMEM__FN const gmem__narrow *gmem__narrow_of(gmem_isa isa, gmem_type type) {
#ifdef GMEM__X86
    if (isa == GMEM_ISA_AMX) return gmem__amx_narrow(type);
    if (isa >= GMEM_ISA_AVX2) return gmem__vector_dots(isa, type);
#endif
    (void)isa;
    return type == GMEM_BF16 ? NULL : gmem__portable_i8(); /* the f32 loops are plain enough to be fast */
}
/* ---- backends/cpu/drivers.c ---- */
/* The row operations of the CPU backend, cut into tasks. Columns don't depend on each other, so neither do results on
 * the cut, or on the number of threads. */

/* `heads` times `samples` times `blocks` of `block` columns. */
typedef struct gmem__row_job {
    const gmem__kernels *kernels;
    const gmem__narrow *bf16;
    const void *op;
    int64_t heads, samples, tokens, blocks, block;
} gmem__row_job;

/* Columns [begin, end) of the tokens of one sample, under one head. */
typedef struct gmem__place {
    int64_t head, sample, begin, end;
} gmem__place;

static gmem__place gmem__row_place(const gmem__row_job *job, int64_t i) {
    gmem__place place;
    place.head = i / job->blocks / job->samples;
    place.sample = i / job->blocks % job->samples;
    place.begin = i % job->blocks * job->block;
    place.end = gmem__min(place.begin + job->block, job->tokens);
    return place;
}

static void gmem__run_rows(const gmem__engine *engine, const void *op, int64_t heads, int64_t samples, int64_t tokens,
                           int64_t block, void (*task)(const void *job, int64_t i, float *scratch)) {
    const int64_t smallest = 16;
    gmem__row_job job;
    job.kernels = gmem__engine_kernels(engine);
    job.bf16 = engine->bf16;
    job.op = op;
    job.heads = heads;
    job.samples = samples;
    job.tokens = tokens;
    job.block = block;
    while (job.block > smallest && heads * samples * gmem__ceil_div(tokens, job.block) < engine->threads)
        job.block /= 2; /* rather than leave threads idle */
    job.blocks = gmem__ceil_div(tokens, job.block);
    gmem__run_tasks(engine, heads * samples * job.blocks, task, &job);
}

static void gmem__norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    const int64_t first = place.sample * job->tokens;
    (void)scratch;
    job->kernels->norm((const gmem__norm *)job->op, place.sample, first + place.begin, first + place.end);
}

static void gmem__rotate_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    const int64_t first = place.sample * job->tokens;
    (void)scratch;
    job->kernels->rotate((const gmem__rotate *)job->op, place.head, place.sample, first + place.begin,
                         first + place.end);
}

static void gmem__attention_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    job->kernels->attention((const gmem__attention *)job->op, place.sample, place.head, place.begin, place.end,
                            scratch);
}

static void gmem__narrow_attention_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    const gmem__place place = gmem__row_place(job, i);
    job->kernels->narrow_attention(job->bf16, (const gmem__attention *)job->op, place.sample, place.head, place.begin,
                                   place.end, scratch);
}

static void gmem__group_norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__row_job *job = (const gmem__row_job *)job_;
    (void)scratch;
    job->kernels->group_norm((const gmem__group_norm *)job->op, i);
}

/* Where samples make no difference, `tokens` need not be given: all columns are one sample's. */
GMEM__FN void gmem__cpu_norm(const gmem__engine *engine, const gmem__norm *op) {
    const int64_t tokens = op->shift || op->scale ? op->tokens : op->columns;
    if (op->columns) gmem__run_rows(engine, op, 1, op->columns / tokens, tokens, GMEM__COLUMN_BLOCK, gmem__norm_task);
}

GMEM__FN void gmem__cpu_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const int64_t tokens = op->cosine ? op->tokens : op->columns;
    if (op->columns)
        gmem__run_rows(engine, op, op->heads, op->columns / tokens, tokens, GMEM__COLUMN_BLOCK, gmem__rotate_task);
}

/* What a head takes in scratch; INT64_MAX where that has no number. */
static int64_t gmem__narrow_attention_floats(const gmem__narrow *narrow, const gmem__attention *op) {
    const int64_t far = 1 << 20; /* more tokens or channels than fit in any case */
    if (op->tokens > far || op->head_dim > far) return INT64_MAX;
    const int64_t keys = gmem__round_up(op->tokens, narrow->mr), rows = gmem__round_up(op->head_dim, narrow->mr);
    const int64_t channel_words = gmem__round_up(gmem__ceil_div(op->head_dim, 2), GMEM__TILE_WORDS);
    const int64_t token_words = gmem__round_up(gmem__ceil_div(op->tokens, 2), GMEM__TILE_WORDS);
    return (keys + rows + channel_words + token_words) * GMEM__COLUMN_BLOCK + keys * channel_words + rows * token_words;
}

/* Packing a head's keys costs the same for all its queries as for some: whole heads where there are enough of them. */
static void gmem__narrow_attend(const gmem__engine *engine, const gmem__attention *op) {
    const int64_t whole = op->heads * op->samples >= 2 * engine->threads;
    const int64_t block = whole ? gmem__round_up(op->tokens, GMEM__COLUMN_BLOCK) : GMEM__COLUMN_BLOCK;
    gmem__run_rows(engine, op, op->heads, op->samples, op->tokens, block, gmem__narrow_attention_task);
}

GMEM__FN void gmem__cpu_attention(const gmem__engine *engine, const gmem__attention *op) {
    const gmem__kernels *kernels = gmem__engine_kernels(engine);
    if (op->compute != GMEM_COMPUTE_F32 && engine->bf16 && kernels->narrow_attention &&
        gmem__narrow_attention_floats(engine->bf16, op) <= GMEM__SCRATCH)
        gmem__narrow_attend(engine, op);
    else
        gmem__run_rows(engine, op, op->heads, op->samples, op->tokens, GMEM__COLUMN_BLOCK, gmem__attention_task);
}

GMEM__FN void gmem__cpu_group_norm(const gmem__engine *engine, const gmem__group_norm *op) {
    gmem__run_rows(engine, op, op->groups, 1, 1, GMEM__COLUMN_BLOCK, gmem__group_norm_task);
}
/* ---- backends/cpu/cpu.c ---- */
/* The CPU's operations: the choice of the instruction set, and the products cut into tasks. OpenMP pragmas stay in this
 * file, outside the kernels' target regions, where compilers mishandle them. */

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef GMEM__X86
#include <cpuid.h>
#endif

/* Operations with the kernels that they run on; engine->ops points to the first member. */
typedef struct gmem__cpu {
    gmem__ops ops;
    const gmem__kernels *(*kernels)(void);
} gmem__cpu;

GMEM__FN const gmem__kernels *gmem__engine_kernels(const gmem__engine *engine) {
    return ((const gmem__cpu *)(const void *)engine->ops)->kernels();
}

/* tasks ----------------------------------------------------------------------------------------------------------- */

static int64_t gmem__cpu_scratch_bytes(int threads) {
    return (GMEM__SHARED + (int64_t)threads * GMEM__SCRATCH) * (int64_t)sizeof(float);
}

/* engine->scratch is the shared part, then one part for each thread. */
static float *gmem__engine_scratch(const gmem__engine *engine, int thread) {
    return (float *)engine->scratch + GMEM__SHARED + (int64_t)thread * GMEM__SCRATCH;
}

/* By default LLVM's runtime lets threads without work spin for 200 ms, which a host that waits between steps would pay
 * for. A millisecond bridges the gaps between a pass's products. Its functions are found where it is linked; GCC's
 * runtime, a few milliseconds, can be set from outside only. */
#if defined(_OPENMP) && defined(__clang__) && defined(__ELF__)
#define GMEM__KMP_DEFAULT 200
#ifdef __cplusplus
extern "C" {
#endif
__attribute__((weak)) int kmp_get_blocktime(void);
__attribute__((weak)) void kmp_set_blocktime(int milliseconds);
#ifdef __cplusplus
}
#endif

/* Where the host has chosen nothing else. Returns what to put back. */
static int gmem__spin_briefly(void) {
    if (!kmp_get_blocktime || !kmp_set_blocktime || kmp_get_blocktime() != GMEM__KMP_DEFAULT) return 0;
    kmp_set_blocktime(1);
    return GMEM__KMP_DEFAULT;
}

static void gmem__spin_as_before(int milliseconds) {
    if (milliseconds) kmp_set_blocktime(milliseconds);
}
#undef GMEM__KMP_DEFAULT
#elif defined(_OPENMP)
static int gmem__spin_briefly(void) { return 0; }
static void gmem__spin_as_before(int milliseconds) { (void)milliseconds; }
#endif

GMEM__FN void gmem__run_tasks(const gmem__engine *engine, int64_t tasks,
                              void (*task)(const void *job, int64_t i, float *scratch), const void *job) {
    int64_t i;
#ifdef _OPENMP
    if (engine->threads > 1 && tasks > 1) {
        const int before = gmem__spin_briefly();
#pragma omp parallel for schedule(dynamic) num_threads(engine->threads)
        for (i = 0; i < tasks; i++)
            task(job, i, gmem__engine_scratch(engine, omp_get_thread_num()));
        gmem__spin_as_before(before);
        return;
    }
#endif
    for (i = 0; i < tasks; i++)
        task(job, i, gmem__engine_scratch(engine, 0));
}

/* linear and conv ------------------------------------------------------------------------------------------------- */

typedef struct gmem__gemm_job {
    const gmem__gemm *gemm;
    const gmem__kernels *kernels;
    int64_t rows, row_block; /* of y, hence pairs with SWIGLU */
    int64_t column, columns; /* the columns being worked on */
    int64_t column_tasks;
    float *panels; /* these columns, packed for all row blocks; or NULL */
} gmem__gemm_job;

/* Some rows of x, all columns. */
static void gmem__pack_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t nr = job->kernels->nr, depth = job->gemm->depth, k = i * GMEM__PACK_ROWS;
    const int64_t rows = gmem__min(GMEM__PACK_ROWS, depth - k);
    (void)scratch;
    gmem__pack(job->gemm, k, rows, job->column, job->columns, nr, depth * nr, job->panels + k * nr);
    for (int64_t panel = 0; job->gemm->round_bf16 && panel * nr < job->columns; panel++)
        job->kernels->round_bf16(job->panels + (panel * depth + k) * nr, rows * nr);
}

GMEM__FN void gmem__normed_columns(const gmem__kernels *kernels, const gmem__gemm *gemm, int64_t begin, int64_t count,
                                   float *out) {
    gmem__norm norm = *gemm->norm;
    norm.y = out;
    norm.y_stride = GMEM__PACK_COLUMNS;
    norm.y_column = begin;
    const int64_t tokens = norm.shift || norm.scale ? norm.tokens : norm.columns, end = begin + count;
    for (int64_t column = begin, next; column < end; column = next) { /* sample by sample */
        next = gmem__min(end, (column / tokens + 1) * tokens);
        kernels->norm(&norm, column / tokens, column, next);
    }
}

/* Some columns of gemm->norm's result, all rows. */
static void gmem__pack_norm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t nr = job->kernels->nr, depth = job->gemm->depth, done = i * GMEM__PACK_COLUMNS;
    const int64_t count = gmem__min(GMEM__PACK_COLUMNS, job->columns - done);
    gmem__gemm normed = *job->gemm;
    float *panels = job->panels + done * depth;
    gmem__normed_columns(job->kernels, job->gemm, job->column + done, count, scratch);
    normed.x = scratch;
    normed.x_stride = GMEM__PACK_COLUMNS;
    gmem__pack(&normed, 0, depth, 0, count, nr, depth * nr, panels);
    if (job->gemm->round_bf16) job->kernels->round_bf16(panels, depth * gmem__round_up(count, nr));
}

static void gmem__pack_all(const gmem__engine *engine, const gmem__gemm_job *job) {
    if (job->gemm->norm)
        gmem__run_tasks(engine, gmem__ceil_div(job->columns, GMEM__PACK_COLUMNS), gmem__pack_norm_task, job);
    else
        gmem__run_tasks(engine, gmem__ceil_div(job->gemm->depth, GMEM__PACK_ROWS), gmem__pack_task, job);
}

static void gmem__gemm_task(const void *job_, int64_t i, float *scratch) {
    const gmem__gemm_job *job = (const gmem__gemm_job *)job_;
    const int64_t done = i % job->column_tasks * GMEM__NC;
    gmem__tile tile;
    tile.row = i / job->column_tasks * job->row_block;
    tile.rows = gmem__min(job->row_block, job->rows - tile.row);
    tile.column = job->column + done;
    tile.columns = gmem__min(GMEM__NC, job->columns - done);
    const float *panels = job->panels ? job->panels + done * job->gemm->depth : NULL;
    job->kernels->gemm(job->gemm, &tile, panels, scratch);
}

/* As few blocks as fit, but enough of them to keep the threads evenly busy. */
GMEM__FN int64_t gmem__row_block(const gmem__engine *engine, int64_t rows, int64_t columns, int64_t mr,
                                 int64_t largest) {
    const int64_t threads = engine->threads;
    int64_t blocks = gmem__ceil_div(rows, largest);
    if (gmem__ceil_div(columns, GMEM__NC) < 4 * threads && threads > 1)
        blocks = gmem__max(blocks, gmem__min(4 * threads, gmem__ceil_div(rows, mr)));
    return gmem__min(largest, gmem__round_up(gmem__ceil_div(rows, blocks), mr));
}

static void gmem__f32_run(const gmem__engine *engine, const gmem__gemm *gemm) {
    const int64_t halves = gemm->activation == GMEM__ACT_SWIGLU ? 2 : 1;
    gmem__gemm plain = *gemm;
    gmem__gemm_job job;
    job.gemm = gemm;
    job.kernels = gmem__engine_kernels(engine);
    job.rows = gemm->rows / halves;
    job.row_block = gmem__row_block(engine, job.rows, gemm->columns, job.kernels->mr,
                                    GMEM__MC / halves / job.kernels->mr * job.kernels->mr);
    const int64_t row_tasks = gmem__ceil_div(job.rows, job.row_block);
    /* x is packed once for all row blocks where there are several and it fits */
    const int64_t packable = GMEM__SHARED / gemm->depth / GMEM__NC * GMEM__NC;
    const int share = row_tasks > 1 && packable > 0;
    if (gemm->norm && (!share || !gmem__norm_fits(gemm))) {
        gmem__cpu_norm(engine, gemm->norm);
        plain.norm = NULL;
        plain.x = gemm->norm->y;
        plain.x_stride = gemm->norm->columns;
        job.gemm = &plain;
    }
    for (job.column = 0; job.column < gemm->columns; job.column += job.columns) {
        job.columns = gmem__min(gemm->columns - job.column, share ? packable : gemm->columns);
        job.column_tasks = gmem__ceil_div(job.columns, GMEM__NC);
        job.panels = share ? (float *)engine->scratch : NULL;
        if (share) gmem__pack_all(engine, &job);
        gmem__run_tasks(engine, row_tasks * job.column_tasks, gmem__gemm_task, &job);
    }
}

static void gmem__gemm_run(const gmem__engine *engine, gmem__gemm *gemm) {
    const struct gmem__narrow *narrow = gmem__narrow_for(engine, gemm->weight);
    gemm->round_bf16 = gemm->weight->compute != GMEM_COMPUTE_F32;
    if (narrow)
        gmem__narrow_run(engine, gemm, narrow);
    else
        gmem__f32_run(engine, gemm);
}

static void gmem__cpu_linear(const gmem__engine *engine, const gmem__linear *op) {
    gmem__gemm gemm;
    memset(&gemm, 0, sizeof gemm);
    gemm.weight = op->weight;
    gemm.rows = op->weight->rows;
    gemm.depth = op->weight->cols;
    gemm.columns = op->columns;
    gemm.x = op->x;
    gemm.x_stride = op->x_stride;
    gemm.norm = op->norm;
    gemm.bias = op->bias;
    gemm.activation = op->activation;
    gemm.gate = op->gate;
    gemm.gate_stride = op->gate_stride;
    gemm.tokens = op->tokens;
    gemm.residual = op->residual || op->gate ? op->y : NULL;
    gemm.y = op->y;
    gemm.y_stride = op->y_stride;
    gmem__gemm_run(engine, &gemm);
}

static void gmem__cpu_conv(const gmem__engine *engine, const gmem__conv *op) {
    const int64_t area = (op->height << op->upsample) / op->stride * ((op->width << op->upsample) / op->stride);
    gmem__gemm gemm;
    memset(&gemm, 0, sizeof gemm);
    gemm.weight = op->weight;
    gemm.rows = op->weight->rows;
    gemm.depth = op->weight->cols;
    gemm.columns = area;
    gemm.conv = op;
    gemm.bias = op->bias;
    gemm.activation = GMEM__ACT_NONE;
    gemm.residual = op->residual;
    gemm.y = op->y;
    gemm.y_stride = area;
    gmem__gemm_run(engine, &gemm);
}

/* the choice ------------------------------------------------------------------------------------------------------ */

#ifdef GMEM__X86
/* The processor has the instructions and the system saves their registers. */
static int gmem__has_isa(gmem_isa isa) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned fma = 1u << 12, xsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | xsave | avx | f16c)) != (fma | xsave | avx | f16c)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); /* XCR0: what the system saves */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    const unsigned avx2 = 1u << 5, ymm = 0x6;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, zmm = 0xe6; /* F, DQ, BW, VL */
    if ((low & ymm) != ymm || !(b & avx2)) return 0;
    return isa == GMEM_ISA_AVX2 || (isa == GMEM_ISA_AVX512 && (low & zmm) == zmm && (b & avx512) == avx512);
}
#endif

#define GMEM__CPU_OPS(name, kernels)                                   \
    {                                                                  \
        {name,           gmem__cpu_scratch_bytes, gmem__cpu_linear,    \
         gmem__cpu_norm, gmem__cpu_rotate,        gmem__cpu_attention, \
         gmem__cpu_conv, gmem__cpu_group_norm},                        \
            kernels                                                    \
    }

GMEM__FN const gmem__ops *gmem__cpu_ops(gmem_isa isa, gmem_isa *chosen) {
    static const gmem__cpu scalar = GMEM__CPU_OPS("cpu/scalar", gmem__scalar_kernels);
    gmem_isa found = GMEM_ISA_SCALAR;
    const gmem__cpu *cpu = isa == GMEM_ISA_AUTO || isa == GMEM_ISA_SCALAR ? &scalar : NULL;
#ifdef GMEM__X86
    static const gmem__cpu avx2 = GMEM__CPU_OPS("cpu/avx2", gmem__avx2_kernels);
    static const gmem__cpu avx512 = GMEM__CPU_OPS("cpu/avx512", gmem__avx512_kernels);
    static const gmem__cpu amx = GMEM__CPU_OPS("cpu/amx", gmem__avx512_kernels);
    if ((isa == GMEM_ISA_AUTO || isa == GMEM_ISA_AVX2) && gmem__has_isa(GMEM_ISA_AVX2))
        cpu = &avx2, found = GMEM_ISA_AVX2;
    if ((isa == GMEM_ISA_AUTO || isa == GMEM_ISA_AVX512) && gmem__has_isa(GMEM_ISA_AVX512))
        cpu = &avx512, found = GMEM_ISA_AVX512;
    /* tiles multiply narrow words; everything else is AVX-512's */
    if (isa == GMEM_ISA_AMX && gmem__has_isa(GMEM_ISA_AVX512) && gmem__has_amx()) cpu = &amx, found = GMEM_ISA_AMX;
#endif
    if (!cpu) return NULL;
    if (chosen) *chosen = found;
    return &cpu->ops;
}

#undef GMEM__CPU_OPS

GMEM__FN int gmem__cpu_count(void) {
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}
/* ---- backends/cpu/narrow.c ---- */
/* Narrow products (narrow.h), cut into tasks: weights packed once where that is worth a copy, x packed for all row
 * blocks, tiles multiplied block by block of the depth. Beside the f32 products in cpu.c. */


/* What a product needs to know of its weight under a kernel. SWIGLU's halves have strips of their own. */
typedef struct gmem__narrow_shape {
    int64_t per_word, words;     /* values in a word; depth in words, padded */
    int64_t halves, rows;        /* rows of a half */
    int64_t strips, strip_words; /* strips of a half */
} gmem__narrow_shape;

static gmem__narrow_shape gmem__narrow_shape_of(const gmem__narrow *narrow, const gmem__weight *weight, int swiglu) {
    gmem__narrow_shape shape;
    shape.per_word = narrow->type == GMEM_BF16 ? 2 : 4;
    shape.words = gmem__round_up(gmem__ceil_div(weight->cols, shape.per_word), GMEM__TILE_WORDS);
    shape.halves = swiglu ? 2 : 1;
    shape.rows = weight->rows / shape.halves;
    shape.strips = gmem__ceil_div(shape.rows, narrow->mr);
    shape.strip_words = shape.words * narrow->mr;
    return shape;
}

/* the choice ------------------------------------------------------------------------------------------------------ */

/* What all threads share is x in words, then the scales of its columns. */
#define GMEM__SCALES (16 * 1024)
#define GMEM__PANELS (GMEM__SHARED - GMEM__SCALES)

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
    uint32_t *panels; /* these columns, packed for all row blocks; or NULL */
    float *scales;    /* int8: (columns) */
} gmem__narrow_job;

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

#if defined(__GNUC__) || defined(__clang__)
#define GMEM__ATOMIC_LOAD(p)         __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define GMEM__ATOMIC_STORE(p, value) __atomic_store_n((p), (value), __ATOMIC_RELEASE)
#define GMEM__ATOMIC_CLAIM(p, old, new) \
    __atomic_compare_exchange_n((p), (old), (new), 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
#else /* nobody packs, everybody does without */
#define GMEM__ATOMIC_LOAD(p)            (*(p))
#define GMEM__ATOMIC_STORE(p, value)    (*(p) = (value))
#define GMEM__ATOMIC_CLAIM(p, old, new) (0)
#endif

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
                         job->panels + done * job->shape.words, job->shape.words * job->narrow->nr, job->scales + done);
}

/* bf16: GMEM__PACK_ROWS rows of x, all columns; of an image's patches by way of floats. */
static void gmem__narrow_rows_task(const void *job_, int64_t i, float *scratch) {
    const gmem__narrow_job *job = (const gmem__narrow_job *)job_;
    const gmem__gemm *gemm = job->gemm;
    const int64_t nr = job->narrow->nr, k = i * GMEM__PACK_ROWS, rows = gmem__min(GMEM__PACK_ROWS, gemm->depth - k);
    const int64_t word = k / job->shape.per_word, step = job->shape.words * nr;
    const int64_t words = gmem__min(GMEM__PACK_ROWS / job->shape.per_word, job->shape.words - word);
    if (!gemm->conv) {
        job->convert->panels(job->narrow, gemm->x + k * gemm->x_stride + job->column, gemm->x_stride, rows, words,
                             job->columns, job->panels + word * nr, step, NULL);
        return;
    }
    for (int64_t done = 0; done < job->columns; done += GMEM__NC) {
        const int64_t columns = gmem__min(GMEM__NC, job->columns - done);
        gmem__pack(gemm, k, rows, job->column + done, columns, GMEM__PACK_COLUMNS, rows * GMEM__PACK_COLUMNS, scratch);
        for (int64_t c = 0; c < columns; c += GMEM__PACK_COLUMNS)
            job->convert->panels(job->narrow, scratch + c * rows, GMEM__PACK_COLUMNS, rows, words,
                                 gmem__min(GMEM__PACK_COLUMNS, columns - c),
                                 job->panels + (done + c) / nr * step + word * nr, step, NULL);
    }
}

static void gmem__narrow_pack_x(const gmem__narrow_job *job) {
    if (job->gemm->norm || job->narrow->type == GMEM_I8)
        gmem__run_tasks(job->engine, gmem__ceil_div(job->columns, GMEM__PACK_COLUMNS), gmem__narrow_columns_task, job);
    else
        gmem__run_tasks(job->engine, gmem__ceil_div(job->gemm->depth, GMEM__PACK_ROWS), gmem__narrow_rows_task, job);
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

static void gmem__narrow_finish(const gmem__narrow_tile *t) {
    const gmem__narrow_job *job = t->job;
    const int64_t up = t->strips * job->narrow->mr, padded = gmem__round_up(t->tile.columns, 16);
    const float *scales = job->scales + (t->tile.column - job->column);
    for (int64_t i = 0; i < t->tile.rows; i++) {
        for (int64_t half = 0; half < job->shape.halves && job->narrow->type == GMEM_I8; half++) {
            const int64_t at = half * up + i, row = gmem__narrow_row(t, half, i);
            const int32_t sum = job->packed ? job->packed->sum[row] : t->sum[at];
            const float scale = job->packed ? job->packed->scale[row] : t->scale[at];
            job->convert->dequantise(t->product + at * GMEM__NC, padded, job->narrow->unsigned_x ? 128 * sum : 0, scale,
                                     scales);
        }
        job->kernels->finish_row(job->gemm, &t->tile, i, up, t->product);
    }
}

/* bf16 without shared panels: this block of the depth of the tile's columns, by way of floats. */
static void gmem__narrow_own_panels(const gmem__narrow_tile *t, int64_t word, int64_t words, float *values,
                                    uint32_t *panels) {
    const gmem__narrow_job *job = t->job;
    const int64_t k = word * job->shape.per_word, nr = job->narrow->nr;
    const int64_t depth = gmem__min(words * job->shape.per_word, job->gemm->depth - k);
    gmem__pack(job->gemm, k, depth, t->tile.column, t->tile.columns, GMEM__PACK_COLUMNS, depth * GMEM__PACK_COLUMNS,
               values);
    for (int64_t c = 0; c < t->tile.columns; c += GMEM__PACK_COLUMNS)
        job->convert->panels(job->narrow, values + c * depth, GMEM__PACK_COLUMNS, depth, words,
                             gmem__min(GMEM__PACK_COLUMNS, t->tile.columns - c), panels + c / nr * words * nr,
                             words * nr, NULL);
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
    const int share = row_tasks > 1 || narrow->type == GMEM_I8 || gemm->norm != NULL;
    if (gemm->norm && !gmem__norm_fits(gemm)) {
        gmem__cpu_norm(engine, gemm->norm);
        plain.norm = NULL;
        plain.x = gemm->norm->y;
        plain.x_stride = gemm->norm->columns;
    }
    for (job.column = 0; job.column < gemm->columns; job.column += job.columns) {
        job.columns = gmem__min(gemm->columns - job.column, share ? packable : gemm->columns);
        job.column_tasks = gmem__ceil_div(job.columns, GMEM__NC);
        job.panels = share ? (uint32_t *)engine->scratch : NULL;
        job.scales = (float *)engine->scratch + GMEM__PANELS;
        if (share) gmem__narrow_pack_x(&job);
        gmem__run_tasks(engine, row_tasks * job.column_tasks, gmem__narrow_task, &job);
    }
}

#undef GMEM__SCALES
#undef GMEM__PANELS
#undef GMEM__OWN_WORDS
#undef GMEM__ATOMIC_LOAD
#undef GMEM__ATOMIC_STORE
#undef GMEM__ATOMIC_CLAIM
/* ---- src/context.c ---- */
/* The context: what the caller chose (instruction set, threads, memory, files, log), resolved once. */

#include <stdio.h>

GMEM__FN void gmem__log(const gmem_context *context, const char *format, ...) {
    char line[512];
    va_list arguments;
    if (!context->log) return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    context->log(context->log_user, line);
}

static const char *gmem__isa_name(gmem_isa isa) {
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    return names[isa];
}

/* Hooks come together: a part of them would be called with the other part's data, or not be there when it is due. */
static int gmem__hooks_are_whole(const gmem_allocator *allocator, const gmem_io *io) {
    const int given = (io->open != NULL) + (io->size != NULL) + (io->read != NULL) + (io->write != NULL) +
                      (io->sync != NULL) + (io->close != NULL) + (io->rename != NULL) + (io->remove != NULL);
    return !allocator->alloc == !allocator->release && (given == 8 || (given == 0 && !io->map)) &&
           !io->map == !io->unmap && (io->map || !io->discard);
}

GMEM_API gmem_status gmem_context_create(const gmem_context_desc *desc, gmem_context **out, gmem_error *error) {
    gmem_context_desc defaults;
    memset(&defaults, 0, sizeof defaults);
    if (!desc) desc = &defaults;
    if (!out || (int)desc->isa < 0 || desc->isa > GMEM_ISA_AMX || (int)desc->compute < 0 ||
        desc->compute > GMEM_COMPUTE_INT8 || desc->threads < 0 || desc->threads > 4096)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the context's description is out of range");
    if (!gmem__hooks_are_whole(&desc->allocator, &desc->io))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a function of the allocator or of the files is missing");
    gmem_isa isa = desc->isa;
    const gmem__ops *ops = NULL;
    if (isa == GMEM_ISA_AUTO && desc->compute != GMEM_COMPUTE_F32) ops = gmem__cpu_ops(GMEM_ISA_AMX, &isa);
    if (!ops) ops = gmem__cpu_ops(desc->isa, &isa);
    if (!ops)
        return gmem__fail(error, GMEM_E_UNSUPPORTED, "the instruction set %s is not available on this processor",
                          gmem__isa_name(desc->isa));
    gmem_allocator allocator = desc->allocator.alloc ? desc->allocator : gmem__system_allocator();
    gmem_context *context = (gmem_context *)allocator.alloc(allocator.user, sizeof *context);
    if (!context) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the context");
    memset(context, 0, sizeof *context);
    context->allocator = allocator;
    context->io = desc->io.open ? desc->io : gmem__system_io();
    context->log = desc->log;
    context->log_user = desc->log_user;
    context->no_map = desc->no_map;
    context->isa = isa;
    context->ops = ops;
    context->compute = desc->compute;
    if (desc->compute != GMEM_COMPUTE_F32) context->bf16 = gmem__cpu_narrow(isa, GMEM_BF16);
    if (desc->compute == GMEM_COMPUTE_INT8) context->int8 = gmem__cpu_narrow(isa, GMEM_I8);
    context->threads = desc->threads ? desc->threads : gmem__cpu_count();
#ifndef _OPENMP
    context->threads = 1;
#endif
    snprintf(context->backend, sizeof context->backend, "%s", ops->name);
    gmem__log(context, "%s, products in %s, %d threads", context->backend, gmem_context_kernels(context),
              context->threads);
    *out = context;
    return GMEM_OK;
}

GMEM_API void gmem_context_destroy(gmem_context *context) {
    if (context) context->allocator.release(context->allocator.user, context, sizeof *context);
}

GMEM_API const char *gmem_context_backend(const gmem_context *context) { return context->backend; }
GMEM_API gmem_isa gmem_context_isa(const gmem_context *context) { return context->isa; }
GMEM_API int gmem_context_threads(const gmem_context *context) { return context->threads; }
GMEM_API gmem_compute gmem_context_compute(const gmem_context *context) { return context->compute; }

GMEM_API const char *gmem_context_kernels(const gmem_context *context) {
    if (context->int8) return gmem__cpu_narrow_name(context->int8);
    if (context->bf16) return gmem__cpu_narrow_name(context->bf16);
    return gmem__isa_name(context->isa);
}

GMEM__FN gmem__engine gmem__engine_of(const gmem_context *context) {
    gmem__engine engine;
    memset(&engine, 0, sizeof engine);
    engine.ops = context->ops;
    engine.threads = context->threads;
    engine.bf16 = context->bf16;
    engine.int8 = context->int8;
    return engine;
}
/* ---- src/linear.c ---- */
/* A matrix product on the caller's memory: one linear layer, by the kernels that a network's layers run on. */

struct gmem_linear {
    gmem__store store; /* of the weight's copy in the kernel's order, without a file */
    gmem__weight weight;
    gmem__engine engine;
    int64_t scratch_bytes;
};

static gmem_status gmem__linear_check(const gmem_tensor *weight, const float *scale, gmem_error *error) {
    const gmem_type type = weight->type;
    if (type != GMEM_F32 && type != GMEM_F16 && type != GMEM_BF16 && type != GMEM_I8)
        return gmem__fail(error, GMEM_E_TYPE, "a weight of %s, expected F32, F16, BF16 or I8", gmem_type_name(type));
    if (weight->rank != 2 || weight->shape[0] < 1 || weight->shape[1] < 1 || weight->stride[1] != 1 ||
        weight->stride[0] < weight->shape[1])
        return gmem__fail(error, GMEM_E_SHAPE, "a weight must be (rows, depth), each row contiguous");
    if ((type == GMEM_I8) != (scale != NULL))
        return gmem__fail(error, GMEM_E_ARGUMENT, "I8 weights have a scale for each row, others have none");
    return GMEM_OK;
}

static gmem_status gmem__linear_fill(gmem_linear *linear, const gmem_context *context, const gmem_tensor *weight,
                                     const float *scale, gmem_error *error) {
    linear->weight.data = weight->data;
    linear->weight.scale = scale;
    linear->weight.type = weight->type;
    linear->weight.rows = weight->shape[0];
    linear->weight.cols = weight->shape[1];
    linear->weight.row_stride = weight->stride[0];
    linear->engine = gmem__engine_of(context);
    linear->scratch_bytes = context->ops->scratch_bytes(context->threads);
    linear->engine.scratch = gmem__alloc_raw(context, linear->scratch_bytes, 1);
    if (!linear->engine.scratch)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a product: %lld bytes",
                          (long long)linear->scratch_bytes);
    return gmem__store_narrow(&linear->store, &linear->weight, context->compute, 0, error);
}

GMEM_API gmem_status gmem_linear_create(gmem_context *context, const gmem_tensor *weight, const float *scale,
                                        gmem_linear **out, gmem_error *error) {
    if (!context || !weight || !weight->data || !out)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a product needs a context and a weight");
    GMEM__TRY(gmem__linear_check(weight, scale, error));
    gmem_linear *linear = (gmem_linear *)gmem__alloc(context, 1, sizeof *linear);
    if (!linear) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a product");
    linear->store.context = context;
    gmem_status status = gmem__linear_fill(linear, context, weight, scale, error);
    if (status != GMEM_OK) {
        gmem_linear_destroy(linear);
        return status;
    }
    *out = linear;
    return GMEM_OK;
}

GMEM_API void gmem_linear_destroy(gmem_linear *linear) {
    if (!linear) return;
    const gmem_context *context = linear->store.context;
    gmem__free(context, linear->engine.scratch, linear->scratch_bytes, 1);
    gmem__store_free(&linear->store);
    gmem__free(context, linear, 1, sizeof *linear);
}

GMEM_API gmem_status gmem_linear_run(gmem_linear *linear, int64_t columns, const float *x, float *y,
                                     gmem_error *error) {
    gmem__linear op;
    if (!linear || !x || !y || columns < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a product needs a weight, columns and room for the result");
    memset(&op, 0, sizeof op);
    op.weight = &linear->weight;
    op.x = x;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = columns;
    op.activation = GMEM__ACT_NONE;
    linear->engine.ops->linear(&linear->engine, &op);
    return GMEM_OK;
}

/* ... the models ... */
/* ---- src/recognise.c ---- */
/* Which network a file holds, told from its tensors and never from a flag: the family, its options and dimensions.
 *
 * What each option is told from:
 *   condition      condition_projection.* (a snippet) or y_embedder.* (a class label)
 *   SwiGLU, GELU   mlp.w12 and mlp.w3, or mlp.fc1 and mlp.fc2
 *   RMSNorm        norm1.weight, norm2.weight, final_layer.norm_final.weight; LayerNorm has none
 *   q/k norm       attn.q_norm.*, attn.k_norm.*
 *   shift          6 x hidden rows of adaLN_modulation; without it 4 x hidden
 *   RoPE           feat_rope.*, a buffer that every checkpoint with RoPE holds. A file without buffers (no pos_embed
 *                  either) says `use_rope` in its configuration; where it has none, networks with LightningDiT's SwiGLU
 *                  or RMSNorm have RoPE and others don't
 *   family         SiT has GELU, LayerNorm, no RoPE, shift, and no `projector.*`; everything else is LightningDiT
 *   REPA's time    `projectors.*` anywhere in the file; GMem on SiT always */
/* ---- src/network.h ---- */
/* The opened transformer: its weights by their place in the network, and what a pass needs to know about it. */
#ifndef GMEM__NETWORK_H
#define GMEM__NETWORK_H


#define GMEM__TIME_WIDTH 256 /* of the sinusoidal time embedding: 128 cosines, then 128 sines */

/* W x + b. */
typedef struct gmem__layer {
    gmem__weight weight; /* (rows, cols) */
    const float *bias;   /* (rows) */
} gmem__layer;

/* What a normalisation learned: both NULL for LayerNorm without affine, no bias for RMSNorm. */
typedef struct gmem__affine {
    const float *weight, *bias;
} gmem__affine;

typedef struct gmem__dit_block {
    gmem__affine norm1, norm2;   /* (hidden) */
    gmem__affine q_norm, k_norm; /* (head_dim) */
    gmem__layer qkv;             /* (3 hidden, hidden): the rows of q, then k, then v, head after head in each */
    gmem__layer proj;            /* (hidden, hidden) */
    gmem__layer mlp_in;          /* w12 (2 mlp_hidden, hidden), first half gated by SiLU; or fc1 (mlp_hidden, hidden) */
    gmem__layer mlp_out;         /* (hidden, mlp_hidden) */
    gmem__layer modulation;      /* (gmem__modulation_rows, hidden) */
} gmem__dit_block;

/* Nothing changes after gmem_network_open, so passes on several threads share it. */
struct gmem_network {
    const gmem_context *context;
    gmem_file *file;
    int owns_file;
    gmem__store store;
    gmem_network_info info;
    char name[64];
    int64_t out_channels; /* of the final layer: channels, or twice that with learned sigma */

    gmem__layer patch;                    /* (hidden, channels * patch * patch) */
    gmem__layer time1, time2;             /* (hidden, GMEM__TIME_WIDTH), (hidden, hidden) */
    gmem__layer condition;                /* (hidden, snippet_width) */
    gmem__weight labels;                  /* (classes + 1, hidden): the null label is the last */
    gmem__dit_block *blocks;              /* (depth) */
    gmem__affine final_norm;              /* (hidden) */
    gmem__layer final_modulation;         /* (2 hidden, hidden): shift, scale */
    gmem__layer output;                   /* (patch * patch * out_channels, hidden), channels innermost */
    const float *position;                /* (hidden, tokens) */
    const float *rope_cosine, *rope_sine; /* (head_dim / 2, tokens), or NULL */
};

/* Rows of a block's adaLN: shift, scale, gate of the attention, then of the MLP; without shift the other four. */
GMEM__INLINE int64_t gmem__modulation_rows(const gmem_network_info *info) {
    return (info->shift ? 6 : 4) * info->hidden;
}

/* recognise.c: what the selected tensors are: every field of `info` but name, parameters and weight_bytes. Shapes are
 * only looked at as far as that needs; loading checks them all. Errors: E_ARCHITECTURE, E_MISSING_TENSOR, E_SHAPE,
 * E_HEADS, E_LIMIT, E_ARGUMENT. */
GMEM__FN gmem_status gmem__recognise(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                     int64_t *out_channels, gmem_error *error);
/* "attn.qkv.weight" of "blocks.12.attn.qkv.weight", with the block's index (at most INT32_MAX); or NULL. */
GMEM__FN const char *gmem__below_block(const char *name, int64_t *index);
/* "GMem-LightningDiT-XL/1", or the family alone. */
GMEM__FN void gmem__network_name(const gmem_network_info *info, char *out, size_t bytes);

/* pass.c: gmem_pass_create, with step caching (cache.h) where the threshold is positive; gmem_pass_run on samples whose
 * cached blocks are those of slot to slot + batch - 1, slot + batch at most max_batch; and what caching has done. */
GMEM__FN gmem_status gmem__pass_create(const gmem_network *network, int64_t max_batch, double cache_threshold,
                                       gmem_pass **out, gmem_error *error);
GMEM__FN gmem_status gmem__pass_run(gmem_pass *pass, int64_t slot, int64_t batch, const float *x, const float *t,
                                    const float *snippets, const int64_t *labels, float *v, gmem_error *error);
GMEM__FN gmem_reuse gmem__pass_reuse(const gmem_pass *pass);
/* How many (time, condition) columns a pass can hold prepared. A sampler calls gmem_pass_prepare with as many
 * times as fit: limit / conditions, the null condition counted. */
GMEM__FN int64_t gmem__pass_prepare_limit(const gmem_pass *pass);

#endif /* GMEM__NETWORK_H */

#include <stdio.h>

#define GMEM__MAX_TOKENS 65536

/* names --------------------------------------------------------------------------------------------------------- */

static int gmem__starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* `projectors.` as a component of any key, selected or not: training's EMA may lack what its model has. */
static int gmem__has_repa_projectors(const gmem_file *file) {
    static const char component[] = "projectors.";
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const char *key = file->leaves[i].tensor.name;
        for (const char *at = strstr(key, component); at; at = strstr(at + 1, component)) {
            if (at == key || at[-1] == '.') return 1;
        }
    }
    return 0;
}

GMEM__FN const char *gmem__below_block(const char *name, int64_t *index) {
    const char *at = name + 7;
    if (!gmem__starts_with(name, "blocks.") || *at < '0' || *at > '9' || (*at == '0' && at[1] != '.')) return NULL;
    for (*index = 0; *at >= '0' && *at <= '9'; at++) {
        *index = gmem__min(*index * 10 + (*at - '0'), INT32_MAX);
    }
    return *at == '.' ? at + 1 : NULL;
}

/* The number of blocks; they must be numbered without a gap. */
static gmem_status gmem__count_blocks(const gmem_file *file, int64_t *depth, gmem_error *error) {
    int64_t count = gmem_file_tensor_count(file), highest = -1, first_gap = 0;
    unsigned char *present = (unsigned char *)gmem__alloc(file->context, count + 1, 1);
    if (!present) return gmem__fail(error, GMEM_E_MEMORY, "no memory to count the blocks");
    for (int64_t i = 0; i < count; i++) {
        int64_t index;
        if (!gmem__below_block(gmem_file_tensor(file, i)->name, &index)) continue;
        highest = gmem__max(highest, index);
        if (index < count) present[index] = 1;
    }
    while (present[first_gap]) {
        first_gap++;
    }
    gmem__free(file->context, present, count + 1, 1);
    if (highest >= first_gap)
        return gmem__fail(error, GMEM_E_MISSING_TENSOR, "blocks.%lld.*: missing, though blocks.%lld is there",
                          (long long)first_gap, (long long)highest);
    *depth = first_gap;
    return GMEM_OK;
}

/* configuration --------------------------------------------------------------------------------------------------- */

/* A number of the training configuration: `config.NAME` or `config.model.NAME`. */
static int gmem__config_number(const gmem_file *file, const char *name, double *out) {
    static const char *const places[] = {"config.", "config.model."};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char key[96];
        snprintf(key, sizeof key, "%s%s", places[i], name);
        if (gmem_file_number(file, key, out)) return 1;
    }
    return 0;
}

/* The same where it's an integer from 1 to `highest`. */
static int gmem__config_size(const gmem_file *file, const char *name, int64_t highest, int64_t *out) {
    double value;
    if (!gmem__config_number(file, name, &value) || !(value >= 1 && value <= (double)highest)) return 0;
    *out = (int64_t)value;
    return (double)*out == value;
}

/* published sizes ------------------------------------------------------------------------------------------------- */

typedef struct gmem__published {
    const char *size;
    int64_t hidden, depth, heads;
} gmem__published;

/* SiT (Ma et al., 2401.08740) has the first four, LightningDiT (Yao et al., 2501.01423) all. */
static const gmem__published gmem__published_sizes[] = {{"S", 384, 12, 6},      {"B", 768, 12, 12},
                                                        {"L", 1024, 24, 16},    {"XL", 1152, 28, 16},
                                                        {"1p0B", 1536, 24, 24}, {"1p6B", 1792, 28, 28}};

static const gmem__published *gmem__find_published(int64_t hidden, int64_t depth) {
    for (size_t i = 0; i < sizeof gmem__published_sizes / sizeof gmem__published_sizes[0]; i++) {
        const gmem__published *size = &gmem__published_sizes[i];
        if (size->hidden == hidden && size->depth == depth) return size;
    }
    return NULL;
}

GMEM__FN void gmem__network_name(const gmem_network_info *info, char *out, size_t bytes) {
    static const char *const families[] = {"GMem-LightningDiT", "LightningDiT", "GMem-SiT", "SiT"};
    const gmem__published *size = gmem__find_published(info->hidden, info->depth);
    if (size && size->heads == info->heads) {
        snprintf(out, bytes, "%s-%s/%lld", families[info->architecture], size->size, (long long)info->patch);
    } else {
        snprintf(out, bytes, "%s", families[info->architecture]);
    }
}

/* recognition ----------------------------------------------------------------------------------------------------- */

/* A tensor whose shape decides something: of `rank`, every dimension at least 1. */
static gmem_status gmem__source(const gmem_file *file, const char *name, int rank, const gmem_tensor **out,
                                gmem_error *error) {
    static const int64_t any[GMEM_MAX_RANK] = {-1, -1, -1, -1, -1, -1, -1, -1};
    GMEM__TRY(gmem__need(file, name, rank, any, out, error));
    for (int i = 0; i < rank; i++) {
        gmem__quoted quoted, shape;
        if ((*out)->shape[i] < 1)
            return gmem__fail(error, GMEM_E_SHAPE, "%s: expected no empty dimension, found %s",
                              gmem__quote(&quoted, name), gmem__shape_text(&shape, (*out)->shape, rank));
    }
    return GMEM_OK;
}

/* A condition that only the file's own code could build counts too: loading then says so. */
static int gmem__has_snippets(const gmem_file *file) {
    return gmem__file_has_prefix(file, "condition_projection.") ||
           gmem__file_foreign_at(file, "condition_projection.linear.weight");
}

static int gmem__has_labels(const gmem_file *file) {
    return gmem__file_has_prefix(file, "y_embedder.") ||
           gmem__file_foreign_at(file, "y_embedder.embedding_table.weight");
}

static gmem_status gmem__recognise_family(const gmem_file *file, gmem_error *error) {
    static const char *const needed[] = {"x_embedder.", "t_embedder.", "blocks.0.attn.", "final_layer."};
    int snippets = gmem__has_snippets(file), labels = gmem__has_labels(file);
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!gmem__file_has_prefix(file, needed[i]))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "not a diffusion transformer that gmem knows: no tensor %s*",
                              needed[i]);
    }
    if (snippets == labels)
        return gmem__fail(error, GMEM_E_ARCHITECTURE,
                          "not a diffusion transformer that gmem knows: %s condition_projection.* %s y_embedder.*",
                          snippets ? "both" : "neither", snippets ? "and" : "nor");
    return GMEM_OK;
}

static int gmem__recognise_rope(const gmem_file *file, const gmem_network_info *info) {
    double use_rope;
    if (gmem__file_has_prefix(file, "feat_rope.")) return 1;
    if (gmem__config_number(file, "use_rope", &use_rope)) return use_rope != 0;
    if (gmem_file_find(file, "pos_embed")) return 0;
    return info->swiglu || info->rmsnorm;
}

static gmem_status gmem__recognise_options(const gmem_file *file, gmem_network_info *info, gmem_error *error) {
    const gmem_tensor *modulation;
    int snippets = gmem__has_snippets(file);
    info->swiglu = gmem__file_has_prefix(file, "blocks.0.mlp.w");
    info->rmsnorm =
        gmem__file_has_prefix(file, "blocks.0.norm") || gmem__file_has_prefix(file, "final_layer.norm_final.");
    info->qk_norm =
        gmem__file_has_prefix(file, "blocks.0.attn.q_norm.") || gmem__file_has_prefix(file, "blocks.0.attn.k_norm.");
    info->rope = gmem__recognise_rope(file, info);
    GMEM__TRY(gmem__source(file, "blocks.0.adaLN_modulation.1.weight", 2, &modulation, error));
    info->shift = modulation->shape[0] != 4 * modulation->shape[1];
    int sit =
        !info->swiglu && !info->rmsnorm && !info->rope && info->shift && !gmem__file_has_prefix(file, "projector.");
    info->architecture =
        snippets ? (sit ? GMEM_ARCH_GMEM_SIT : GMEM_ARCH_GMEM) : (sit ? GMEM_ARCH_SIT : GMEM_ARCH_LIGHTNINGDIT);
    info->time_reversed = sit && (snippets || gmem__has_repa_projectors(file));
    return GMEM_OK;
}

static gmem_status gmem__recognise_sizes(const gmem_file *file, gmem_network_info *info, gmem_error *error) {
    const gmem_tensor *patch, *mlp, *condition;
    GMEM__TRY(gmem__count_blocks(file, &info->depth, error));
    GMEM__TRY(gmem__source(file, "x_embedder.proj.weight", 4, &patch, error));
    GMEM__TRY(gmem__source(file, info->swiglu ? "blocks.0.mlp.w3.weight" : "blocks.0.mlp.fc2.weight", 2, &mlp, error));
    info->hidden = patch->shape[0];
    info->channels = patch->shape[1];
    info->patch = patch->shape[2];
    info->mlp_hidden = mlp->shape[1];
    /* Every other dimension is a small multiple of these, or checked against the file's own size. */
    if (info->hidden > INT32_MAX / 8 || info->channels > INT32_MAX / 8 || info->mlp_hidden > INT32_MAX / 8 ||
        info->patch > 1024)
        return gmem__fail(error, GMEM_E_LIMIT, "x_embedder.proj.weight: the network is too large");
    if (info->architecture == GMEM_ARCH_GMEM || info->architecture == GMEM_ARCH_GMEM_SIT) {
        GMEM__TRY(gmem__source(file, "condition_projection.linear.weight", 2, &condition, error));
        info->snippet_width = condition->shape[1];
    } else {
        GMEM__TRY(gmem__source(file, "y_embedder.embedding_table.weight", 2, &condition, error));
        info->classes = condition->shape[0] - 1;
        if (info->classes < 1)
            return gmem__fail(error, GMEM_E_SHAPE,
                              "y_embedder.embedding_table.weight: expected a class and the null label, found 1 row");
    }
    return GMEM_OK;
}

/* The final layer gives the velocity, or the velocity and a sigma that sampling has no use for. */
static gmem_status gmem__recognise_output(const gmem_file *file, gmem_network_info *info, int64_t *out_channels,
                                          gmem_error *error) {
    const gmem_tensor *final;
    GMEM__TRY(gmem__source(file, "final_layer.linear.weight", 2, &final, error));
    info->learned_sigma = final->shape[0] == 2 * info->patch * info->patch * info->channels;
    *out_channels = info->channels * (info->learned_sigma ? 2 : 1);
    return GMEM_OK;
}

/* The attention's weights don't tell the heads: from the caller, else the configuration, else the width of a head as
 * the RoPE table, the q norm or the published size has it. */
static gmem_status gmem__recognise_heads(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                         gmem_error *error) {
    const gmem_tensor *rope = gmem_file_find(file, "feat_rope.freqs_cos");
    const gmem_tensor *q_norm = gmem_file_find(file, "blocks.0.attn.q_norm.weight");
    const gmem__published *size = gmem__find_published(info->hidden, info->depth);
    int64_t width = 0;
    if (desc->heads > 0) {
        info->heads = desc->heads;
    } else if (!gmem__config_size(file, "num_heads", info->hidden, &info->heads)) {
        if (rope && rope->rank == 2) {
            width = rope->shape[1];
        } else if (q_norm && q_norm->rank == 1) {
            width = q_norm->shape[0];
        } else if (size) {
            width = info->hidden / size->heads;
        } else {
            return gmem__fail(error, GMEM_E_HEADS,
                              "the number of heads cannot be told from the file: give it with --heads");
        }
        info->heads = width > 0 && info->hidden % width == 0 ? info->hidden / width : 0;
    }
    if (info->heads < 1 || info->hidden % info->heads != 0)
        return gmem__fail(error, GMEM_E_HEADS, "a width of %lld does not divide into heads%s: give --heads",
                          (long long)info->hidden, desc->heads > 0 ? " of that number" : " as the file has it");
    info->head_dim = info->hidden / info->heads;
    if (info->rope && info->head_dim % 4 != 0)
        return gmem__fail(error, GMEM_E_HEADS, "RoPE needs heads of a multiple of 4 channels, and %lld heads have %lld",
                          (long long)info->heads, (long long)info->head_dim);
    return GMEM_OK;
}

/* From the caller, else a square of pos_embed's tokens, else the configuration. */
static gmem_status gmem__recognise_latent(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                          gmem_error *error) {
    const gmem_tensor *position = gmem_file_find(file, "pos_embed");
    info->height = desc->latent_height ? desc->latent_height : desc->latent_width;
    info->width = desc->latent_width ? desc->latent_width : desc->latent_height;
    if (info->height == 0 && position && position->rank >= 2) {
        int64_t tokens = position->shape[position->rank - 2], side = 1;
        while (side < GMEM__MAX_TOKENS && side * side < tokens) {
            side++;
        }
        if (side * side != tokens)
            return gmem__fail(error, GMEM_E_SHAPE, "pos_embed: expected a square number of tokens, found %lld",
                              (long long)tokens);
        info->height = info->width = side * info->patch;
    } else if (info->height == 0 && gmem__config_size(file, "input_size", GMEM__MAX_TOKENS, &info->height)) {
        info->width = info->height;
    } else if (info->height == 0) {
        return gmem__fail(error, GMEM_E_MISSING_TENSOR, "pos_embed: missing, and nothing else tells the latent's size");
    }
    if (info->height < 0 || info->width < 0 || info->height % info->patch != 0 || info->width % info->patch != 0)
        return gmem__fail(error, GMEM_E_LATENT, "a latent of %lld x %lld does not divide into patches of %lld",
                          (long long)info->height, (long long)info->width, (long long)info->patch);
    if (info->height > GMEM__MAX_TOKENS * info->patch || info->width > GMEM__MAX_TOKENS * info->patch ||
        (info->height / info->patch) * (info->width / info->patch) > GMEM__MAX_TOKENS)
        return gmem__fail(error, GMEM_E_LIMIT, "a latent of %lld x %lld has more than %d tokens",
                          (long long)info->height, (long long)info->width, GMEM__MAX_TOKENS);
    info->tokens = (info->height / info->patch) * (info->width / info->patch);
    return GMEM_OK;
}

/* Two for each multiplication of a matrix or of the attention; norms and activations do not count. */
static double gmem__count_flop(const gmem_network_info *info, int64_t out_channels) {
    double hidden = (double)info->hidden, tokens = (double)info->tokens, depth = (double)info->depth;
    double patch = (double)(info->patch * info->patch);
    double block = 4 * hidden * hidden + (info->swiglu ? 3 : 2) * hidden * (double)info->mlp_hidden;
    double attention = 2 * tokens * hidden;
    double ends = patch * hidden * (double)(info->channels + out_channels);
    double modulation = hidden * (depth * (double)gmem__modulation_rows(info) + 2 * hidden);
    double condition = hidden * (GMEM__TIME_WIDTH + hidden + (double)info->snippet_width);
    return 2 * (tokens * (depth * (block + attention) + ends) + modulation + condition);
}

GMEM__FN gmem_status gmem__recognise(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                     int64_t *out_channels, gmem_error *error) {
    memset(info, 0, sizeof *info);
    GMEM__TRY(gmem__recognise_family(file, error));
    GMEM__TRY(gmem__recognise_options(file, info, error));
    GMEM__TRY(gmem__recognise_sizes(file, info, error));
    GMEM__TRY(gmem__recognise_output(file, info, out_channels, error));
    GMEM__TRY(gmem__recognise_heads(file, desc, info, error));
    GMEM__TRY(gmem__recognise_latent(file, desc, info, error));
    info->flop = gmem__count_flop(info, *out_channels);
    return GMEM_OK;
}
/* ---- src/network.c ---- */
/* Opening a transformer: one table says which tensors a network has, what shape each has and where it goes; loading and
 * the refusal of everything else both read it. */

#include <math.h>
#include <stddef.h>
#include <stdio.h>

/* the tensors of a network ---------------------------------------------------------------------------------------- */

/* Options that decide whether a tensor belongs to the network. */
enum {
    GMEM__IF_SWIGLU = 1,
    GMEM__IF_GELU = 2,
    GMEM__IF_RMSNORM = 4,
    GMEM__IF_QK_NORM = 8,
    GMEM__IF_QK_BIAS = 16,
    GMEM__IF_SNIPPETS = 32,
    GMEM__IF_LABELS = 64
};

static int gmem__options(const gmem_network_info *info) {
    int options = info->swiglu ? GMEM__IF_SWIGLU : GMEM__IF_GELU;
    if (info->rmsnorm) options |= GMEM__IF_RMSNORM;
    if (info->qk_norm) options |= GMEM__IF_QK_NORM | (info->rmsnorm ? 0 : GMEM__IF_QK_BIAS);
    return options | (info->snippet_width ? GMEM__IF_SNIPPETS : GMEM__IF_LABELS);
}

typedef enum gmem__extent {
    GMEM__ONE, /* as the second one: a vector */
    GMEM__HIDDEN,
    GMEM__QKV,
    GMEM__HEAD,
    GMEM__MLP,
    GMEM__MLP_IN,
    GMEM__MODULATION,
    GMEM__FINAL_MODULATION,
    GMEM__OUTPUT,
    GMEM__TIME,
    GMEM__SNIPPET,
    GMEM__LABELS,
    GMEM__PATCH, /* as the second one: a convolution, (channels, patch, patch) */
    GMEM__EXTENT_COUNT
} gmem__extent;

static void gmem__extents(const gmem_network *network, int64_t extents[GMEM__EXTENT_COUNT]) {
    const gmem_network_info *info = &network->info;
    extents[GMEM__ONE] = 1;
    extents[GMEM__HIDDEN] = info->hidden;
    extents[GMEM__QKV] = 3 * info->hidden;
    extents[GMEM__HEAD] = info->head_dim;
    extents[GMEM__MLP] = info->mlp_hidden;
    extents[GMEM__MLP_IN] = (info->swiglu ? 2 : 1) * info->mlp_hidden;
    extents[GMEM__MODULATION] = gmem__modulation_rows(info);
    extents[GMEM__FINAL_MODULATION] = 2 * info->hidden;
    extents[GMEM__OUTPUT] = info->patch * info->patch * network->out_channels;
    extents[GMEM__TIME] = GMEM__TIME_WIDTH;
    extents[GMEM__SNIPPET] = info->snippet_width;
    extents[GMEM__LABELS] = info->classes + 1;
    extents[GMEM__PATCH] = info->channels * info->patch * info->patch;
}

typedef struct gmem__part {
    const char *name;
    int options; /* all of these are needed */
    gmem__extent rows, cols;
    size_t place; /* of the gmem__weight, or of the vector's pointer, in its struct */
} gmem__part;

#define GMEM__AT(type, member) offsetof(type, member)
#define GMEM__LINEAR_PARTS(name, options, rows, cols, type, member)         \
    {name ".weight", options, rows, cols, GMEM__AT(type, member.weight)}, { \
        name ".bias", options, rows, GMEM__ONE, GMEM__AT(type, member.bias) \
    }
#define GMEM__VECTOR_PART(name, options, rows, type, member) \
    { name, options, rows, GMEM__ONE, GMEM__AT(type, member) }

/* Below "blocks.N.". */
static const gmem__part gmem__block_parts[] = {
    GMEM__VECTOR_PART("norm1.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem__dit_block, norm1.weight),
    GMEM__VECTOR_PART("norm2.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem__dit_block, norm2.weight),
    GMEM__LINEAR_PARTS("attn.qkv", 0, GMEM__QKV, GMEM__HIDDEN, gmem__dit_block, qkv),
    GMEM__VECTOR_PART("attn.q_norm.weight", GMEM__IF_QK_NORM, GMEM__HEAD, gmem__dit_block, q_norm.weight),
    GMEM__VECTOR_PART("attn.q_norm.bias", GMEM__IF_QK_BIAS, GMEM__HEAD, gmem__dit_block, q_norm.bias),
    GMEM__VECTOR_PART("attn.k_norm.weight", GMEM__IF_QK_NORM, GMEM__HEAD, gmem__dit_block, k_norm.weight),
    GMEM__VECTOR_PART("attn.k_norm.bias", GMEM__IF_QK_BIAS, GMEM__HEAD, gmem__dit_block, k_norm.bias),
    GMEM__LINEAR_PARTS("attn.proj", 0, GMEM__HIDDEN, GMEM__HIDDEN, gmem__dit_block, proj),
    GMEM__LINEAR_PARTS("mlp.w12", GMEM__IF_SWIGLU, GMEM__MLP_IN, GMEM__HIDDEN, gmem__dit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.w3", GMEM__IF_SWIGLU, GMEM__HIDDEN, GMEM__MLP, gmem__dit_block, mlp_out),
    GMEM__LINEAR_PARTS("mlp.fc1", GMEM__IF_GELU, GMEM__MLP_IN, GMEM__HIDDEN, gmem__dit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.fc2", GMEM__IF_GELU, GMEM__HIDDEN, GMEM__MLP, gmem__dit_block, mlp_out),
    GMEM__LINEAR_PARTS("adaLN_modulation.1", 0, GMEM__MODULATION, GMEM__HIDDEN, gmem__dit_block, modulation)};

/* The rest. */
static const gmem__part gmem__outer_parts[] = {
    GMEM__LINEAR_PARTS("x_embedder.proj", 0, GMEM__HIDDEN, GMEM__PATCH, gmem_network, patch),
    GMEM__LINEAR_PARTS("t_embedder.mlp.0", 0, GMEM__HIDDEN, GMEM__TIME, gmem_network, time1),
    GMEM__LINEAR_PARTS("t_embedder.mlp.2", 0, GMEM__HIDDEN, GMEM__HIDDEN, gmem_network, time2),
    GMEM__LINEAR_PARTS("condition_projection.linear", GMEM__IF_SNIPPETS, GMEM__HIDDEN, GMEM__SNIPPET, gmem_network,
                       condition),
    {"y_embedder.embedding_table.weight", GMEM__IF_LABELS, GMEM__LABELS, GMEM__HIDDEN, GMEM__AT(gmem_network, labels)},
    GMEM__VECTOR_PART("final_layer.norm_final.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem_network, final_norm.weight),
    GMEM__LINEAR_PARTS("final_layer.adaLN_modulation.1", 0, GMEM__FINAL_MODULATION, GMEM__HIDDEN, gmem_network,
                       final_modulation),
    GMEM__LINEAR_PARTS("final_layer.linear", 0, GMEM__OUTPUT, GMEM__HIDDEN, gmem_network, output)};

#define GMEM__BLOCK_PARTS (sizeof gmem__block_parts / sizeof gmem__block_parts[0])
#define GMEM__OUTER_PARTS (sizeof gmem__outer_parts / sizeof gmem__outer_parts[0])

/* Training's leftovers, buffers that are recomputed or read on their own, and the first version's bank. A final dot
 * stands for everything below. */
static const char *const gmem__skipped[] = {"projector.", "projectors.", "feat_rope.",
                                            "pos_embed",  "memorybank",  "memoryfreq"};

/* refusing what is not in the table ------------------------------------------------------------------------------- */

/* "NAME.weight", or its int8 scales "NAME.weight.scale". */
static int gmem__part_matches(const gmem__part *part, const char *name) {
    size_t length = strlen(part->name);
    return strncmp(name, part->name, length) == 0 && (!name[length] || strcmp(name + length, ".scale") == 0);
}

static int gmem__in_table(const gmem__part *parts, size_t count, int options, const char *name) {
    for (size_t i = 0; i < count; i++) {
        if ((parts[i].options & ~options) == 0 && gmem__part_matches(&parts[i], name)) return 1;
    }
    return 0;
}

static int gmem__is_skipped(const char *name) {
    for (size_t i = 0; i < sizeof gmem__skipped / sizeof gmem__skipped[0]; i++) {
        size_t length = strlen(gmem__skipped[i]);
        if (strncmp(name, gmem__skipped[i], length) == 0 && (gmem__skipped[i][length - 1] == '.' || !name[length]))
            return 1;
    }
    return 0;
}

static int gmem__is_expected(const char *name, int options) {
    int64_t index;
    if (gmem__is_skipped(name)) return 1;
    const char *below = gmem__below_block(name, &index);
    return below ? gmem__in_table(gmem__block_parts, GMEM__BLOCK_PARTS, options, below)
                 : gmem__in_table(gmem__outer_parts, GMEM__OUTER_PARTS, options, name);
}

/* A tensor that no part of the network reads means another architecture, whose pictures would come out wrong. */
static gmem_status gmem__refuse_unexpected(const gmem_network *network, gmem_error *error) {
    int options = gmem__options(&network->info);
    for (int64_t i = 0; i < gmem_file_tensor_count(network->file); i++) {
        gmem__quoted quoted;
        const char *name = gmem_file_tensor(network->file, i)->name;
        if (!gmem__is_expected(name, options))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "%s: not a tensor of a network that gmem knows",
                              gmem__quote(&quoted, name));
    }
    return GMEM_OK;
}

/* loading ---------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__load_part(gmem_network *network, const gmem__part *part, const char *prefix, void *base,
                                   gmem_error *error) {
    int64_t extents[GMEM__EXTENT_COUNT];
    char name[96];
    void *place = (char *)base + part->place;
    gmem__extents(network, extents);
    snprintf(name, sizeof name, "%s%s", prefix, part->name);
    int64_t rows = extents[part->rows], cols = extents[part->cols];
    if (part->cols == GMEM__ONE) return gmem__store_vector(&network->store, name, rows, (const float **)place, error);
    if (part->cols == GMEM__PATCH)
        return gmem__store_conv(&network->store, name, rows, network->info.channels, network->info.patch,
                                (gmem__weight *)place, error);
    return gmem__store_matrix(&network->store, name, rows, cols, (gmem__weight *)place, error);
}

static gmem_status gmem__load_parts(gmem_network *network, const gmem__part *parts, size_t count, const char *prefix,
                                    void *base, gmem_error *error) {
    int options = gmem__options(&network->info);
    for (size_t i = 0; i < count; i++) {
        if ((parts[i].options & ~options) == 0) GMEM__TRY(gmem__load_part(network, &parts[i], prefix, base, error));
    }
    return GMEM_OK;
}

/* The layers whose products are the pass: those of the blocks. What is computed once for many steps, and the two ends,
 * which are small and next to the picture, stay in f32. */
static gmem_status gmem__choose_compute(gmem_network *network, gmem_error *error) {
    const gmem_compute compute = network->context->compute;
    if (compute == GMEM_COMPUTE_F32) return GMEM_OK;
    for (int64_t i = 0; i < network->info.depth; i++) {
        gmem__dit_block *block = &network->blocks[i];
        GMEM__TRY(gmem__store_narrow(&network->store, &block->qkv.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->proj.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->mlp_in.weight, compute, network->info.swiglu, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->mlp_out.weight, compute, 0, error));
    }
    return GMEM_OK;
}

static gmem_status gmem__load_weights(gmem_network *network, gmem_error *error) {
    network->blocks =
        (gmem__dit_block *)gmem__store_alloc(&network->store, network->info.depth, sizeof *network->blocks);
    if (!network->blocks) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the network");
    GMEM__TRY(gmem__load_parts(network, gmem__outer_parts, GMEM__OUTER_PARTS, "", network, error));
    for (int64_t i = 0; i < network->info.depth; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%lld.", (long long)i);
        GMEM__TRY(gmem__load_parts(network, gmem__block_parts, GMEM__BLOCK_PARTS, prefix, &network->blocks[i], error));
    }
    return gmem__choose_compute(network, error);
}

/* positions -------------------------------------------------------------------------------------------------------- */

/* The stored one: training's EMA has moved it a little from the formula. pos_embed (1, tokens, hidden). */
static gmem_status gmem__read_position(const gmem_network *network, float *row, float *out, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    const gmem_tensor *stored;
    int64_t shape[3] = {1, 0, 0};
    shape[1] = info->tokens;
    shape[2] = info->hidden;
    GMEM__TRY(gmem__need(network->file, "pos_embed", 3, shape, &stored, error));
    if (stored->type == GMEM_I8) return gmem__fail(error, GMEM_E_TYPE, "pos_embed: expected floating point, found I8");
    for (int64_t token = 0; token < info->tokens; token++) {
        gmem_tensor_read_f32(stored, token * info->hidden, info->hidden, row);
        for (int64_t channel = 0; channel < info->hidden; channel++) {
            out[channel * info->tokens + token] = row[channel];
        }
    }
    return GMEM_OK;
}

/* Positions depend on a token's row or on its column alone: `value` for all tokens that share it, out (tokens). */
static void gmem__fill_line(const gmem_network_info *info, int is_row, int64_t coordinate, float value, float *out) {
    const int64_t columns = info->width / info->patch;
    const int64_t step = is_row ? 1 : columns, count = is_row ? columns : info->tokens / columns;
    for (int64_t i = 0; i < count; i++) {
        out[coordinate * (is_row ? columns : 1) + i * step] = value;
    }
}

static int64_t gmem__line_count(const gmem_network_info *info, int is_row) {
    return (is_row ? info->height : info->width) / info->patch;
}

/* Two-dimensional sine and cosine: the first half of the channels is the column's, the second the row's, and in each
 * half sines come first; angle = coordinate / 10000^(i / (hidden / 4)) (MAE, He et al., 2111.06377). */
static void gmem__compute_position(const gmem_network_info *info, float *out) {
    int64_t quarter = info->hidden / 4;
    for (int64_t channel = 0; channel < info->hidden; channel++) {
        double frequency = pow(10000.0, -(double)(channel % quarter) / (double)quarter);
        int is_row = channel / quarter >= 2, is_cosine = channel / quarter % 2 == 1;
        for (int64_t i = 0; i < gmem__line_count(info, is_row); i++) {
            double angle = (double)i * frequency;
            gmem__fill_line(info, is_row, i, (float)(is_cosine ? cos(angle) : sin(angle)),
                            out + channel * info->tokens);
        }
    }
}

static gmem_status gmem__load_position(gmem_network *network, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    float *row = (float *)gmem__store_alloc(&network->store, info->hidden, sizeof *row);
    float *position = (float *)gmem__store_alloc(&network->store, info->hidden * info->tokens, sizeof *position);
    if (!row || !position) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the positions");
    if (gmem_file_find(network->file, "pos_embed")) {
        GMEM__TRY(gmem__read_position(network, row, position, error));
    } else if (info->hidden % 4 == 0) {
        gmem__compute_position(info, position);
    } else {
        return gmem__fail(error, GMEM_E_MISSING_TENSOR,
                          "pos_embed: missing, and not computable for a width of %lld, no multiple of 4",
                          (long long)info->hidden);
    }
    network->position = position;
    return GMEM_OK;
}

/* Axial rotary embedding (EVA-02, Fang et al., 2303.11331): the first half of a head's pairs turns by the token's row,
 * the second by its column, pair i of a half by coordinate / 10000^(2 i / (head_dim / 2)). */
static gmem_status gmem__compute_rope(gmem_network *network, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    int64_t pairs = info->head_dim / 2, half = pairs / 2;
    float *cosine = (float *)gmem__store_alloc(&network->store, pairs * info->tokens, sizeof *cosine);
    float *sine = (float *)gmem__store_alloc(&network->store, pairs * info->tokens, sizeof *sine);
    if (!cosine || !sine) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the rotary embedding");
    for (int64_t pair = 0; pair < pairs; pair++) {
        float frequency = (float)pow(10000.0, -2.0 * (double)(pair % half) / (double)pairs);
        int is_row = pair < half;
        for (int64_t i = 0; i < gmem__line_count(info, is_row); i++) {
            float angle = (float)i * frequency; /* in f32, as trained */
            gmem__fill_line(info, is_row, i, (float)cos((double)angle), cosine + pair * info->tokens);
            gmem__fill_line(info, is_row, i, (float)sin((double)angle), sine + pair * info->tokens);
        }
    }
    network->rope_cosine = cosine;
    network->rope_sine = sine;
    return GMEM_OK;
}

/* opening ---------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__load_network(gmem_network *network, const gmem_network_desc *desc, gmem_error *error) {
    gmem_network_info *info = &network->info;
    network->store.context = network->context;
    network->store.file = network->file;
    GMEM__TRY(gmem__recognise(network->file, desc, info, &network->out_channels, error));
    GMEM__TRY(gmem__refuse_unexpected(network, error));
    GMEM__TRY(gmem__load_weights(network, error));
    GMEM__TRY(gmem__load_position(network, error));
    if (info->rope) GMEM__TRY(gmem__compute_rope(network, error));
    gmem__network_name(info, network->name, sizeof network->name);
    info->name = network->name;
    info->parameters = network->store.parameters;
    info->weight_bytes = network->store.bytes;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_network_open(gmem_context *context, const gmem_network_desc *desc, gmem_network **out,
                                       gmem_error *error) {
    if (!context || !desc || !out || (!desc->path && !desc->file) || desc->heads < 0 || desc->latent_height < 0 ||
        desc->latent_width < 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a network needs a path or a file, and sizes that are not negative");
    gmem_network *network = (gmem_network *)gmem__alloc(context, 1, sizeof *network);
    if (!network) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the network");
    network->context = context;
    network->file = desc->file;
    gmem_status status = GMEM_OK;
    if (!desc->file) {
        status = gmem_file_open(context, desc->path, desc->key, &network->file, error);
        network->owns_file = status == GMEM_OK;
    }
    if (status == GMEM_OK) {
        status = gmem__load_network(network, desc, error);
        gmem__fail_in(error, status, gmem_file_path(network->file));
    }
    if (status != GMEM_OK) {
        gmem_network_close(network);
        return status;
    }
    gmem__quoted path;
    const gmem_network_info *info = &network->info;
    gmem__log(context, "%s: %s, %lld parameters, %lld blocks of width %lld, %lld heads",
              gmem__quote(&path, gmem_file_path(network->file)), info->name, (long long)info->parameters,
              (long long)info->depth, (long long)info->hidden, (long long)info->heads);
    *out = network;
    return GMEM_OK;
}

GMEM_API void gmem_network_close(gmem_network *network) {
    if (!network) return;
    gmem__store_free(&network->store);
    if (network->owns_file) gmem_file_close(network->file);
    gmem__free(network->context, network, 1, sizeof *network);
}

GMEM_API const gmem_network_info *gmem_network_get_info(const gmem_network *network) { return &network->info; }

#undef GMEM__AT
#undef GMEM__LINEAR_PARTS
#undef GMEM__VECTOR_PART
#undef GMEM__BLOCK_PARTS
#undef GMEM__OUTER_PARTS
/* ---- src/cache.c ---- */
/* Step caching. Blocks' outputs change slowly from one step to the next (TeaCache, Liu et al., 2411.19108; DeepCache,
 * Ma et al., 2312.00858). The first block, which costs 1 / depth of a pass, tells how much: the change is measured
 * against the last pass that was computed, so small changes add up until they count. */
/* ---- src/cache.h ---- */
/* Step caching: what the blocks after the first add to a sample is taken from an earlier pass where the first block
 * adds nearly what it added then. */
#ifndef GMEM__CACHE_H
#define GMEM__CACHE_H


/* A slot is a sample of a sampling: a picture, or its null half. Everything is decided for each slot on its own, so
 * that a picture does not depend on its batch. */
typedef struct gmem__cache {
    double threshold; /* relative change of the first block's residual, L1; 0: off */
    int64_t slots, hidden, tokens;
    float *first; /* (slots, hidden, tokens) what the first block added in the slot's last computed pass */
    float *rest;  /* (slots, hidden, tokens) what the blocks after it added then */
    float *start; /* (slots, hidden, tokens) this pass's residual stream before the first block, then after it */
    unsigned char *filled; /* (slots) whether there was such a pass */
    int64_t *computed;     /* (slots) the samples of this pass that are computed to the end, ascending */
    int64_t computed_count;
    gmem_reuse counts;
} gmem__cache;

/* Takes the memory where there is a threshold. */
GMEM__FN void gmem__cache_layout(gmem__cache *cache, gmem__arena *arena);
/* Forgets everything: a sampling starts. */
GMEM__FN void gmem__cache_reset(gmem__cache *cache);

/* Around the blocks of a pass over samples slot to slot + batch - 1, x (hidden, batch * tokens):
 * before the first, ... */
GMEM__FN void gmem__cache_enter(gmem__cache *cache, int64_t batch, const float *x);
/* ... after it: leaves in x (hidden, computed_count * tokens) the samples that the other blocks are to see, ... */
GMEM__FN void gmem__cache_split(gmem__cache *cache, int64_t slot, int64_t batch, float *x);
/* ... and after the last: x (hidden, batch * tokens) again, with the others' sum from memory. */
GMEM__FN void gmem__cache_join(gmem__cache *cache, int64_t slot, int64_t batch, float *x);

#endif /* GMEM__CACHE_H */

#include <math.h>

GMEM__FN void gmem__cache_layout(gmem__cache *cache, gmem__arena *arena) {
    int64_t size = INT64_MAX; /* that overfills the arena */
    if (!(cache->threshold > 0)) return;
    if (!gmem__mul(cache->hidden, cache->tokens, &size) || !gmem__mul(size, cache->slots, &size)) size = INT64_MAX;
    cache->first = GMEM__TAKE_F32(arena, size);
    cache->rest = GMEM__TAKE_F32(arena, size);
    cache->start = GMEM__TAKE_F32(arena, size);
    cache->filled = (unsigned char *)gmem__take(arena, cache->slots, 1);
    cache->computed = (int64_t *)gmem__take(arena, cache->slots, sizeof *cache->computed);
}

GMEM__FN void gmem__cache_reset(gmem__cache *cache) {
    memset(&cache->counts, 0, sizeof cache->counts);
    if (cache->threshold > 0) memset(cache->filled, 0, (size_t)cache->slots);
}

/* Sample i's tokens of one channel in a stream of `samples`. */
static float *gmem__cache_row(const gmem__cache *cache, float *x, int64_t samples, int64_t channel, int64_t i) {
    return x + (channel * samples + i) * cache->tokens;
}

/* The same in the cache's own order, one sample after the other. */
static float *gmem__cache_held(const gmem__cache *cache, float *held, int64_t channel, int64_t i) {
    return held + (i * cache->hidden + channel) * cache->tokens;
}

static void gmem__cache_subtract(float *out, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = a[i] - b[i];
}

static void gmem__cache_hold(gmem__cache *cache, int64_t batch, const float *x) {
    for (int64_t channel = 0; channel < cache->hidden; channel++) {
        for (int64_t i = 0; i < batch; i++)
            memcpy(gmem__cache_held(cache, cache->start, channel, i), x + (channel * batch + i) * cache->tokens,
                   (size_t)cache->tokens * sizeof(float));
    }
}

GMEM__FN void gmem__cache_enter(gmem__cache *cache, int64_t batch, const float *x) {
    gmem__cache_hold(cache, batch, x);
}

/* Whether the first block adds to sample i what it added in the slot's last computed pass, or nearly. What is not
 * finite never does. */
static int gmem__cache_is_near(const gmem__cache *cache, int64_t slot, int64_t batch, float *x, int64_t i) {
    double change = 0, size = 0;
    if (!cache->filled[slot]) return 0;
    for (int64_t channel = 0; channel < cache->hidden; channel++) {
        const float *after = gmem__cache_row(cache, x, batch, channel, i);
        const float *before = gmem__cache_held(cache, cache->start, channel, i);
        const float *then = gmem__cache_held(cache, cache->first, channel, slot);
        for (int64_t token = 0; token < cache->tokens; token++) {
            change += fabs((double)after[token] - (double)before[token] - (double)then[token]);
            size += fabs((double)then[token]);
        }
    }
    return change < cache->threshold * size;
}

/* first[slot] = what the first block added. */
static void gmem__cache_remember_first(gmem__cache *cache, int64_t slot, int64_t batch, float *x, int64_t i) {
    for (int64_t channel = 0; channel < cache->hidden; channel++)
        gmem__cache_subtract(gmem__cache_held(cache, cache->first, channel, slot),
                             gmem__cache_row(cache, x, batch, channel, i),
                             gmem__cache_held(cache, cache->start, channel, i), cache->tokens);
}

GMEM__FN void gmem__cache_split(gmem__cache *cache, int64_t slot, int64_t batch, float *x) {
    cache->computed_count = 0;
    for (int64_t i = 0; i < batch; i++) {
        if (gmem__cache_is_near(cache, slot + i, batch, x, i)) continue;
        gmem__cache_remember_first(cache, slot + i, batch, x, i);
        cache->computed[cache->computed_count++] = i;
    }
    cache->counts.passes += batch;
    cache->counts.reused += batch - cache->computed_count;
    gmem__cache_hold(cache, batch, x);
    if (cache->computed_count == batch) return;
    for (int64_t channel = 0; channel < cache->hidden; channel++) { /* to the front: nothing is overwritten too early */
        for (int64_t i = 0; i < cache->computed_count; i++)
            memmove(gmem__cache_row(cache, x, cache->computed_count, channel, i),
                    gmem__cache_row(cache, x, batch, channel, cache->computed[i]),
                    (size_t)cache->tokens * sizeof(float));
    }
}

/* One channel of the reused samples from memory, between those that were computed. */
static void gmem__cache_join_channel(gmem__cache *cache, int64_t slot, int64_t batch, int64_t channel, float *x) {
    int64_t from = cache->computed_count - 1;
    for (int64_t i = batch - 1; i >= 0; i--) { /* from the back, for the same reason */
        float *const out = gmem__cache_row(cache, x, batch, channel, i);
        float *const start = gmem__cache_held(cache, cache->start, channel, i);
        float *const rest = gmem__cache_held(cache, cache->rest, channel, slot + i);
        if (from >= 0 && cache->computed[from] == i) {
            memmove(out, gmem__cache_row(cache, x, cache->computed_count, channel, from--),
                    (size_t)cache->tokens * sizeof(float));
            gmem__cache_subtract(rest, out, start, cache->tokens);
        } else {
            for (int64_t token = 0; token < cache->tokens; token++)
                out[token] = start[token] + rest[token];
        }
    }
}

GMEM__FN void gmem__cache_join(gmem__cache *cache, int64_t slot, int64_t batch, float *x) {
    for (int64_t channel = cache->hidden - 1; channel >= 0; channel--)
        gmem__cache_join_channel(cache, slot, batch, channel, x);
    for (int64_t i = 0; i < cache->computed_count; i++)
        cache->filled[slot + cache->computed[i]] = 1;
}
/* ---- src/profile.c ---- */
/* Where a pass spends its time. The model's code knows nothing of it: its engine gets a table of operations that time
 * themselves around the real ones, and a linear layer is told by its weight's address. */
/* ---- src/profile.h ---- */
/* Where a pass spends its time: a table of operations that times those of another. */
#ifndef GMEM__PROFILE_H
#define GMEM__PROFILE_H


typedef struct gmem__profiler {
    gmem__engine inner;          /* what computes */
    const gmem_network *network; /* whose weights tell one linear layer from another */
    gmem_profile *profile;       /* the caller's */
} gmem__profiler;

/* Makes `engine` time its operations into `profile`, or no longer where that is NULL. */
GMEM__FN void gmem__profile_engine(gmem__engine *engine, gmem__profiler *profiler, const gmem_network *network,
                                   gmem_profile *profile);

#endif /* GMEM__PROFILE_H */

#include <stddef.h>

GMEM_API const char *gmem_operation_name(gmem_operation operation) {
    static const char *const names[] = {
#define GMEM__OPERATION_NAME(name, text) text,
        GMEM_OPERATION_LIST(GMEM__OPERATION_NAME)
#undef GMEM__OPERATION_NAME
    };
    return (int)operation >= 0 && operation < GMEM_OPERATION_COUNT ? names[operation] : "";
}

/* The layers of a block, by their place in it. */
static gmem_operation gmem__operation_in_block(size_t offset) {
    if (offset == offsetof(gmem__dit_block, qkv.weight)) return GMEM_OPERATION_QKV;
    if (offset == offsetof(gmem__dit_block, proj.weight)) return GMEM_OPERATION_PROJ;
    if (offset == offsetof(gmem__dit_block, mlp_in.weight)) return GMEM_OPERATION_MLP_IN;
    if (offset == offsetof(gmem__dit_block, mlp_out.weight)) return GMEM_OPERATION_MLP_OUT;
    return GMEM_OPERATION_CONDITIONING;
}

static gmem_operation gmem__operation_of(const gmem_network *network, const gmem__weight *weight) {
    const uintptr_t blocks = (uintptr_t)network->blocks, place = (uintptr_t)weight;
    const uintptr_t bytes = (uintptr_t)network->info.depth * sizeof *network->blocks;
    if (weight == &network->patch.weight) return GMEM_OPERATION_EMBEDDING;
    if (weight == &network->output.weight) return GMEM_OPERATION_FINAL;
    if (place < blocks || place - blocks >= bytes) return GMEM_OPERATION_CONDITIONING;
    return gmem__operation_in_block((size_t)((place - blocks) % sizeof *network->blocks));
}

static void gmem__profile_add(const gmem__profiler *profiler, gmem_operation operation, double start, double flop) {
    gmem_profile *profile = profiler->profile;
    profile->operations[operation].calls++;
    profile->operations[operation].seconds += profile->clock(profile->user) - start;
    profile->operations[operation].flop += flop;
}

static double gmem__profile_now(const gmem__profiler *profiler) {
    return profiler->profile->clock(profiler->profile->user);
}

static void gmem__profiled_linear(const gmem__engine *engine, const gmem__linear *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double flop = 2.0 * (double)op->weight->rows * (double)op->weight->cols * (double)op->columns;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->linear(&profiler->inner, op);
    gmem__profile_add(profiler, gmem__operation_of(profiler->network, op->weight), start, flop);
}

static void gmem__profiled_norm(const gmem__engine *engine, const gmem__norm *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->norm(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_NORM, start, 0);
}

static void gmem__profiled_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->rotate(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_ROTATE, start, 0);
}

static void gmem__profiled_attention(const gmem__engine *engine, const gmem__attention *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double pairs = (double)op->tokens * (double)op->tokens * (double)op->samples;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->attention(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_ATTENTION, start,
                      4.0 * pairs * (double)op->heads * (double)op->head_dim); /* q k^T, and its product with v */
}

GMEM__FN void gmem__profile_engine(gmem__engine *engine, gmem__profiler *profiler, const gmem_network *network,
                                   gmem_profile *profile) {
    /* a transformer has no convolutions and no group norms */
    static const gmem__ops profiled = {
        "profile", NULL, gmem__profiled_linear, gmem__profiled_norm, gmem__profiled_rotate, gmem__profiled_attention,
        NULL,      NULL};
    if (engine->profiler) *engine = profiler->inner;
    if (!profile) return;
    profiler->inner = *engine;
    profiler->network = network;
    profiler->profile = profile;
    engine->ops = &profiled;
    engine->profiler = profiler;
}
/* ---- src/pass.c ---- */
/* One forward pass of the transformer. Activations are channels-first, (channels, columns) with columns = batch *
 * tokens; the adaLN projections depend on time and condition alone and may be computed beforehand for many of both.
 *
 *     x = patches(x) + position
 *     for each block:  x += gate * proj(attention(rotate(qkv(modulate(norm(x))))))
 *                      x += gate * mlp(modulate(norm(x)))
 *     v = unpatch(linear(modulate(norm(x))))
 * (DiT, Peebles and Xie, 2212.09748; LightningDiT, 2501.01423; GMem, 2412.08781) */

#include <math.h>

/* Columns held prepared: enough for a matrix product to be worth its name, in bounded memory. */
#define GMEM__PREPARED_COLUMNS 64
#define GMEM__PREPARED_BYTES   (64 << 20)

#define GMEM__NORM_EPS 1e-6f

/* The modulations of distinct (time, condition) pairs. */
typedef struct gmem__columns {
    int64_t capacity, count;
    float *time;       /* (capacity) */
    float *snippet;    /* (capacity, snippet_width) */
    int64_t *label;    /* (capacity) */
    float *modulation; /* (capacity, depth * gmem__modulation_rows + 2 hidden): block after block, the final layer */
} gmem__columns;

/* Where a pass takes its conditions from; both NULL is the null condition for every sample. */
typedef struct gmem__conditions {
    const float *snippets; /* (batch, snippet_width) */
    const int64_t *labels; /* (batch) */
} gmem__conditions;

struct gmem_pass {
    const gmem_network *network;
    gmem__engine engine;
    gmem__profiler profiler;
    gmem__arena arena;
    int64_t max_batch;
    gmem__cache cache;

    gmem__columns prepared; /* by gmem_pass_prepare */
    gmem__columns missing;  /* what a pass had to compute itself, (max_batch) */
    const float **found;    /* (max_batch) the modulation of each sample */
    float *null_snippet;    /* (snippet_width) zeros */

    /* Work of computing modulations: (..., columns), columns the larger capacity. */
    float *embedding;    /* (max(GMEM__TIME_WIDTH, snippet_width, hidden), columns) */
    float *conditioning; /* (hidden, columns) */
    float *projected;    /* (modulation rows, columns) */
    float *label_row;    /* (hidden) */

    /* Work of a pass, for max_batch * tokens columns. */
    float *modulation; /* (max_batch, modulation rows) of one block */
    float *x;          /* (hidden, columns) the residual stream */
    float *y;          /* (hidden, columns) normed, or the attention's result */
    float *wide;       /* (widest, columns) q k v, or the MLP's inside, or patches */
};

static int64_t gmem__column_size(const gmem_network_info *info) {
    return info->depth * gmem__modulation_rows(info) + 2 * info->hidden;
}

/* layout ---------------------------------------------------------------------------------------------------------- */

/* (rows, cols) floats; a size that overflows overfills the arena. */
static float *gmem__take_matrix(gmem__arena *arena, int64_t rows, int64_t cols) {
    int64_t count = 0;
    if (!gmem__mul(rows, cols, &count)) count = INT64_MAX;
    return GMEM__TAKE_F32(arena, count);
}

static void gmem__layout_columns(gmem__arena *arena, const gmem_network_info *info, gmem__columns *columns) {
    columns->time = gmem__take_matrix(arena, columns->capacity, 1);
    columns->snippet = gmem__take_matrix(arena, columns->capacity, info->snippet_width);
    columns->label = (int64_t *)gmem__take(arena, columns->capacity, sizeof *columns->label);
    columns->modulation = gmem__take_matrix(arena, columns->capacity, gmem__column_size(info));
}

/* All working memory, taken in the same order without memory first, to learn how much it is. */
static void gmem__layout_pass(gmem_pass *pass, gmem__arena *arena) {
    const gmem_network_info *info = &pass->network->info;
    int64_t rows = gmem__modulation_rows(info), hidden = info->hidden;
    int64_t held = gmem__max(pass->prepared.capacity, pass->max_batch), columns = INT64_MAX;
    int64_t patch = info->patch * info->patch;
    int64_t ends = patch * gmem__max(info->channels, pass->network->out_channels);
    (void)gmem__mul(pass->max_batch, info->tokens, &columns);
    gmem__layout_columns(arena, info, &pass->prepared);
    gmem__layout_columns(arena, info, &pass->missing);
    pass->found = (const float **)gmem__take(arena, pass->max_batch, sizeof *pass->found);
    pass->null_snippet = gmem__take_matrix(arena, info->snippet_width, 1);
    pass->embedding =
        gmem__take_matrix(arena, gmem__max(gmem__max(GMEM__TIME_WIDTH, info->snippet_width), hidden), held);
    pass->conditioning = gmem__take_matrix(arena, hidden, held);
    pass->projected = gmem__take_matrix(arena, gmem__max(rows, 2 * hidden), held);
    pass->label_row = gmem__take_matrix(arena, hidden, 1);
    pass->modulation = gmem__take_matrix(arena, pass->max_batch, gmem__max(rows, 2 * hidden));
    pass->x = gmem__take_matrix(arena, hidden, columns);
    pass->y = gmem__take_matrix(arena, hidden, columns);
    pass->wide = gmem__take_matrix(arena, gmem__max(gmem__max(3 * hidden, info->mlp_hidden), ends), columns);
    gmem__cache_layout(&pass->cache, arena);
    pass->engine.scratch = gmem__take(arena, pass->engine.ops->scratch_bytes(pass->engine.threads), 1);
}

GMEM__FN gmem_status gmem__pass_create(const gmem_network *network, int64_t max_batch, double cache_threshold,
                                       gmem_pass **out, gmem_error *error) {
    if (!network || !out || max_batch < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a pass needs a network and a batch of at least 1");
    const gmem_context *context = network->context;
    gmem_pass *pass = (gmem_pass *)gmem__alloc(context, 1, sizeof *pass);
    if (!pass) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a pass");
    int64_t column_bytes = gmem__column_size(&network->info) * (int64_t)sizeof(float);
    pass->network = network;
    pass->engine = gmem__engine_of(context);
    pass->max_batch = max_batch;
    pass->missing.capacity = max_batch;
    pass->prepared.capacity =
        gmem__max(gmem__min(GMEM__PREPARED_COLUMNS, GMEM__PREPARED_BYTES / column_bytes), max_batch + 1);
    pass->cache.threshold = network->info.depth > 1 ? cache_threshold : 0;
    pass->cache.slots = max_batch;
    pass->cache.hidden = network->info.hidden;
    pass->cache.tokens = network->info.tokens;
    gmem__layout_pass(pass, &pass->arena);
    if (!gmem__arena_reserve(context, &pass->arena)) {
        int64_t bytes = pass->arena.bytes;
        gmem_pass_destroy(pass);
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the activations of a batch of %lld: %lld bytes",
                          (long long)max_batch, (long long)bytes);
    }
    gmem__layout_pass(pass, &pass->arena);
    memset(pass->null_snippet, 0, (size_t)network->info.snippet_width * sizeof(float));
    gmem__cache_reset(&pass->cache);
    *out = pass;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_create(const gmem_network *network, int64_t max_batch, gmem_pass **out,
                                      gmem_error *error) {
    return gmem__pass_create(network, max_batch, 0, out, error);
}

GMEM_API void gmem_pass_destroy(gmem_pass *pass) {
    if (!pass) return;
    const gmem_context *context = pass->network->context;
    gmem__arena_release(context, &pass->arena);
    gmem__free(context, pass, 1, sizeof *pass);
}

GMEM_API void gmem_pass_profile(gmem_pass *pass, gmem_profile *profile) {
    if (pass) gmem__profile_engine(&pass->engine, &pass->profiler, pass->network, profile);
}

GMEM__FN gmem_reuse gmem__pass_reuse(const gmem_pass *pass) { return pass->cache.counts; }

GMEM__FN int64_t gmem__pass_prepare_limit(const gmem_pass *pass) { return pass->prepared.capacity; }

/* modulation ------------------------------------------------------------------------------------------------------ */

static void gmem__apply(const gmem_pass *pass, const gmem__layer *layer, const float *x, float *y, int64_t columns,
                        gmem__activation activation, int residual) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = x;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = columns;
    op.activation = activation;
    op.residual = residual;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* embedding (GMEM__TIME_WIDTH, count): cos(t w), then sin(t w), w = 10000^(-i / 128). Time is not scaled. */
static void gmem__embed_time(const gmem__columns *columns, float *embedding) {
    const int64_t half = GMEM__TIME_WIDTH / 2, count = columns->count;
    for (int64_t i = 0; i < half; i++) {
        float frequency = (float)pow(10000.0, -(double)i / (double)half);
        for (int64_t column = 0; column < count; column++) {
            float angle = columns->time[column] * frequency;
            embedding[i * count + column] = (float)cos((double)angle);
            embedding[(half + i) * count + column] = (float)sin((double)angle);
        }
    }
}

/* A row of a matrix in its own type, in f32: out (cols). */
static void gmem__weight_row(const gmem__weight *weight, int64_t row, float *out) {
    gmem_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.type = weight->type;
    tensor.rank = 1;
    tensor.shape[0] = weight->cols;
    tensor.stride[0] = 1;
    tensor.data = (const char *)weight->data + (size_t)(row * weight->row_stride) * gmem_type_bytes(weight->type);
    gmem_tensor_read_f32(&tensor, 0, weight->cols, out);
    for (int64_t i = 0; weight->scale && i < weight->cols; i++) {
        out[i] *= weight->scale[row];
    }
}

/* conditioning (hidden, count) += the embedding of each column's condition. */
static void gmem__add_conditions(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t width = network->info.snippet_width, count = columns->count;
    for (int64_t column = 0; width == 0 && column < count; column++) {
        gmem__weight_row(&network->labels, columns->label[column], pass->label_row);
        for (int64_t i = 0; i < network->info.hidden; i++) {
            pass->conditioning[i * count + column] += pass->label_row[i];
        }
    }
    if (width == 0) return;
    for (int64_t column = 0; column < count; column++) {
        for (int64_t i = 0; i < width; i++) {
            pass->embedding[i * count + column] = columns->snippet[column * width + i];
        }
    }
    gmem__apply(pass, &network->condition, pass->embedding, pass->conditioning, count, GMEM__ACT_NONE, 1);
}

/* One layer's modulation of every column, turned so that a column's rows lie together, `offset` into each. */
static void gmem__project_columns(const gmem_pass *pass, const gmem__columns *columns, const gmem__layer *layer,
                                  int64_t offset) {
    const int64_t rows = layer->weight.rows, count = columns->count;
    const int64_t size = gmem__column_size(&pass->network->info);
    gmem__apply(pass, layer, pass->conditioning, pass->projected, count, GMEM__ACT_NONE, 0);
    for (int64_t column = 0; column < count; column++) {
        float *out = columns->modulation + column * size + offset;
        for (int64_t row = 0; row < rows; row++) {
            out[row] = pass->projected[row * count + column];
        }
    }
}

/* modulation = adaLN(silu(time embedding + condition embedding)) for every block and the final layer. */
static void gmem__compute_columns(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t count = columns->count, rows = gmem__modulation_rows(&network->info);
    if (count == 0) return;
    gmem__embed_time(columns, pass->embedding);
    gmem__apply(pass, &network->time1, pass->embedding, pass->projected, count, GMEM__ACT_SILU, 0);
    gmem__apply(pass, &network->time2, pass->projected, pass->conditioning, count, GMEM__ACT_NONE, 0);
    gmem__add_conditions(pass, columns);
    for (int64_t i = 0; i < network->info.hidden * count; i++) {
        float c = pass->conditioning[i];
        pass->conditioning[i] = c / (1.0f + expf(-c));
    }
    for (int64_t block = 0; block < network->info.depth; block++) {
        gmem__project_columns(pass, columns, &network->blocks[block].modulation, block * rows);
    }
    gmem__project_columns(pass, columns, &network->final_modulation, network->info.depth * rows);
}

/* The condition of a sample; the null one is the zero snippet, or the last label. */
static const float *gmem__snippet_of(const gmem_pass *pass, const gmem__conditions *conditions, int64_t sample) {
    const int64_t width = pass->network->info.snippet_width;
    return conditions->snippets ? conditions->snippets + sample * width : pass->null_snippet;
}

static int64_t gmem__label_of(const gmem_pass *pass, const gmem__conditions *conditions, int64_t sample) {
    return conditions->labels ? conditions->labels[sample] : pass->network->info.classes;
}

/* The modulation of a time and condition of exactly these bits, or NULL. */
static const float *gmem__find_column(const gmem_pass *pass, const gmem__columns *columns, float time,
                                      const float *snippet, int64_t label) {
    const gmem_network_info *info = &pass->network->info;
    const size_t bytes = (size_t)info->snippet_width * sizeof(float);
    for (int64_t i = 0; i < columns->count; i++) {
        if (memcmp(&columns->time[i], &time, sizeof time) == 0 && columns->label[i] == label &&
            memcmp(columns->snippet + i * info->snippet_width, snippet, bytes) == 0)
            return columns->modulation + i * gmem__column_size(info);
    }
    return NULL;
}

/* The modulation that is there already or a place for it at the end, or NULL where there's no room. */
static const float *gmem__add_column(const gmem_pass *pass, gmem__columns *columns, float time, const float *snippet,
                                     int64_t label) {
    const gmem_network_info *info = &pass->network->info;
    const float *found = gmem__find_column(pass, columns, time, snippet, label);
    if (found || columns->count == columns->capacity) return found;
    int64_t i = columns->count++;
    columns->time[i] = time;
    columns->label[i] = label;
    memcpy(columns->snippet + i * info->snippet_width, snippet, (size_t)info->snippet_width * sizeof(float));
    return columns->modulation + i * gmem__column_size(info);
}

static gmem_status gmem__check_conditions(const gmem_pass *pass, int64_t batch, int64_t times, const float *t,
                                          const gmem__conditions *conditions, gmem_error *error) {
    const gmem_network_info *info = &pass->network->info;
    if (batch < 0 || batch > pass->max_batch)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a batch of %lld, where the pass was made for at most %lld",
                          (long long)batch, (long long)pass->max_batch);
    if (!gmem__all_finite(t, times)) return gmem__fail(error, GMEM_E_ARGUMENT, "a time that is not finite");
    if (conditions->snippets && info->snippet_width == 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "snippets for a network that is conditioned on class labels");
    if (conditions->labels && info->classes == 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "labels for a network that is conditioned on snippets");
    for (int64_t i = 0; conditions->labels && i < batch; i++) {
        if (conditions->labels[i] < 0 || conditions->labels[i] > info->classes)
            return gmem__fail(error, GMEM_E_LABEL, "label %lld, where the network has 0 to %lld, and %lld for none",
                              (long long)conditions->labels[i], (long long)info->classes - 1, (long long)info->classes);
    }
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_prepare(gmem_pass *pass, int64_t times, const float *t, int64_t batch,
                                       const float *snippets, const int64_t *labels, int with_null, gmem_error *error) {
    gmem__conditions conditions, none = {NULL, NULL};
    conditions.snippets = snippets;
    conditions.labels = labels;
    if (!pass || times < 0 || (times > 0 && !t))
        return gmem__fail(error, GMEM_E_ARGUMENT, "preparing needs a pass and times");
    GMEM__TRY(gmem__check_conditions(pass, batch, times, t, &conditions, error));
    pass->prepared.count = 0;
    for (int64_t i = 0; i < times; i++) {
        for (int64_t sample = with_null ? -1 : 0; sample < batch; sample++) {
            const gmem__conditions *from = sample < 0 ? &none : &conditions;
            int64_t label = gmem__label_of(pass, from, sample);
            gmem__add_column(pass, &pass->prepared, t[i], gmem__snippet_of(pass, from, sample), label);
        }
    }
    gmem__compute_columns(pass, &pass->prepared);
    return GMEM_OK;
}

/* Points pass->found at each sample's modulation and computes those that were not prepared. */
static void gmem__find_modulations(gmem_pass *pass, int64_t batch, const float *t, const gmem__conditions *conditions) {
    pass->missing.count = 0;
    for (int64_t sample = 0; sample < batch; sample++) {
        const float *snippet = gmem__snippet_of(pass, conditions, sample);
        int64_t label = gmem__label_of(pass, conditions, sample);
        pass->found[sample] = gmem__find_column(pass, &pass->prepared, t[sample], snippet, label);
        if (!pass->found[sample])
            pass->found[sample] = gmem__add_column(pass, &pass->missing, t[sample], snippet, label);
    }
    gmem__compute_columns(pass, &pass->missing);
}

/* One layer's rows of every sample into pass->modulation (batch, rows). */
static void gmem__gather_modulation(const gmem_pass *pass, int64_t batch, int64_t offset, int64_t rows) {
    for (int64_t sample = 0; sample < batch; sample++) {
        memcpy(pass->modulation + sample * rows, pass->found[sample] + offset, (size_t)rows * sizeof(float));
    }
}

/* the pass -------------------------------------------------------------------------------------------------------- */

/* x (batch, channels, height, width) -> patches (channels * patch * patch, batch * tokens). */
static void gmem__patchify(const gmem_network_info *info, int64_t batch, const float *x, float *patches) {
    const int64_t p = info->patch, columns = info->width / p, total = batch * info->tokens;
    for (int64_t sample = 0; sample < batch; sample++) {
        for (int64_t row = 0; row < info->channels * p * p; row++) {
            const float *plane = x + (sample * info->channels + row / (p * p)) * info->height * info->width +
                                 row / p % p * info->width + row % p;
            float *out = patches + row * total + sample * info->tokens;
            for (int64_t token = 0; token < info->tokens; token++) {
                out[token] = plane[token / columns * p * info->width + token % columns * p];
            }
        }
    }
}

/* patches (patch, patch, out_channels, batch * tokens) -> v (batch, channels, height, width); a sigma is dropped. */
static void gmem__unpatchify(const gmem_network *network, int64_t batch, const float *patches, float *v) {
    const gmem_network_info *info = &network->info;
    const int64_t p = info->patch, columns = info->width / p, total = batch * info->tokens;
    for (int64_t sample = 0; sample < batch; sample++) {
        for (int64_t row = 0; row < p * p * network->out_channels; row++) {
            const int64_t channel = row % network->out_channels, place = row / network->out_channels;
            if (channel >= info->channels) continue;
            const float *from = patches + row * total + sample * info->tokens;
            float *plane = v + (sample * info->channels + channel) * info->height * info->width +
                           place / p * info->width + place % p;
            for (int64_t token = 0; token < info->tokens; token++) {
                plane[token / columns * p * info->width + token % columns * p] = from[token];
            }
        }
    }
}

/* pass->x (hidden, columns) = patches + position. */
static void gmem__embed_patches(const gmem_pass *pass, int64_t batch, const float *x) {
    const gmem_network *network = pass->network;
    const int64_t tokens = network->info.tokens, columns = batch * tokens;
    for (int64_t channel = 0; channel < network->info.hidden; channel++) {
        for (int64_t sample = 0; sample < batch; sample++) {
            memcpy(pass->x + channel * columns + sample * tokens, network->position + channel * tokens,
                   (size_t)tokens * sizeof(float));
        }
    }
    gmem__patchify(&network->info, batch, x, pass->wide);
    gmem__apply(pass, &network->patch, pass->wide, pass->x, columns, GMEM__ACT_NONE, 1);
}

/* norm(pass->x) * (1 + scale) + shift, with pass->y as memory; shift NULL: none. */
static gmem__norm gmem__modulated_norm(const gmem_pass *pass, int64_t batch, const gmem__affine *norm,
                                       const float *shift, const float *scale, int64_t stride) {
    const gmem_network_info *info = &pass->network->info;
    gmem__norm op;
    memset(&op, 0, sizeof op);
    op.rms = info->rmsnorm;
    op.eps = GMEM__NORM_EPS;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.shift = shift;
    op.scale = scale;
    op.modulation_stride = stride;
    op.x = pass->x;
    op.y = pass->y;
    op.channels = info->hidden;
    op.columns = batch * info->tokens;
    op.tokens = info->tokens;
    return op;
}

/* pass->wide = activation(layer(norm(...))). */
static void gmem__apply_normed(const gmem_pass *pass, const gmem__norm *norm, const gmem__layer *layer,
                               gmem__activation activation) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.norm = norm;
    op.y = pass->wide;
    op.y_stride = op.columns = norm->columns;
    op.activation = activation;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* pass->x += gate * layer(from). */
static void gmem__apply_gated(const gmem_pass *pass, int64_t batch, const gmem__layer *layer, const float *from,
                              const float *gate, int64_t stride) {
    const gmem_network_info *info = &pass->network->info;
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = from;
    op.y = pass->x;
    op.x_stride = op.y_stride = op.columns = batch * info->tokens;
    op.residual = 1;
    op.gate = gate;
    op.gate_stride = stride;
    op.tokens = info->tokens;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* q or k in place: its norm and the rotary embedding, each where the network has it. */
static void gmem__rotate_heads(const gmem_pass *pass, int64_t batch, const gmem__affine *norm, float *x) {
    const gmem_network *network = pass->network;
    const gmem_network_info *info = &network->info;
    gmem__rotate op;
    if (!info->qk_norm && !info->rope) return;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.heads = info->heads;
    op.head_dim = info->head_dim;
    op.columns = batch * info->tokens;
    op.tokens = info->tokens;
    op.norm = info->qk_norm;
    op.rms = info->rmsnorm;
    op.eps = info->rmsnorm ? GMEM__NORM_EPS : 1e-5f; /* torch.nn.LayerNorm's default */
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.cosine = network->rope_cosine;
    op.sine = network->rope_sine;
    pass->engine.ops->rotate(&pass->engine, &op);
}

/* pass->y = attention(norm(...)). */
static void gmem__attend(const gmem_pass *pass, int64_t batch, const gmem__norm *norm, const gmem__dit_block *block) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t columns = batch * info->tokens, part = info->hidden * columns;
    gmem__attention op;
    gmem__apply_normed(pass, norm, &block->qkv, GMEM__ACT_NONE);
    gmem__rotate_heads(pass, batch, &block->q_norm, pass->wide);
    gmem__rotate_heads(pass, batch, &block->k_norm, pass->wide + part);
    memset(&op, 0, sizeof op);
    op.q = pass->wide;
    op.k = pass->wide + part;
    op.v = pass->wide + 2 * part;
    op.y = pass->y;
    op.heads = info->heads;
    op.head_dim = info->head_dim;
    op.tokens = info->tokens;
    op.samples = batch;
    op.stride = op.y_stride = columns;
    op.scale = (float)(1.0 / sqrt((double)info->head_dim));
    op.compute = pass->network->context->compute;
    pass->engine.ops->attention(&pass->engine, &op);
}

static void gmem__run_block(const gmem_pass *pass, int64_t batch, int64_t index) {
    const gmem_network_info *info = &pass->network->info;
    const gmem__dit_block *block = &pass->network->blocks[index];
    const int64_t rows = gmem__modulation_rows(info), half = rows / 2, hidden = info->hidden;
    const int64_t scale = info->shift ? hidden : 0; /* the shift, where there is one, comes first */
    gmem__gather_modulation(pass, batch, index * rows, rows);
    const float *attention = pass->modulation, *mlp = pass->modulation + half;

    gmem__norm norm =
        gmem__modulated_norm(pass, batch, &block->norm1, info->shift ? attention : NULL, attention + scale, rows);
    gmem__attend(pass, batch, &norm, block);
    gmem__apply_gated(pass, batch, &block->proj, pass->y, attention + scale + hidden, rows);

    norm = gmem__modulated_norm(pass, batch, &block->norm2, info->shift ? mlp : NULL, mlp + scale, rows);
    gmem__apply_normed(pass, &norm, &block->mlp_in, info->swiglu ? GMEM__ACT_SWIGLU : GMEM__ACT_GELU_TANH);
    gmem__apply_gated(pass, batch, &block->mlp_out, pass->wide, mlp + scale + hidden, rows);
}

/* pass->wide = the final layer's patches. */
static void gmem__run_final(const gmem_pass *pass, int64_t batch) {
    const gmem_network *network = pass->network;
    const gmem_network_info *info = &network->info;
    const int64_t rows = 2 * info->hidden;
    gmem__gather_modulation(pass, batch, info->depth * gmem__modulation_rows(info), rows);
    const gmem__norm norm = gmem__modulated_norm(pass, batch, &network->final_norm, pass->modulation,
                                                 pass->modulation + info->hidden, rows);
    gmem__apply_normed(pass, &norm, &network->output, GMEM__ACT_NONE);
}

/* Brings the modulations of the samples that are computed to the front, or back: an exchange undoes itself. */
static void gmem__exchange_found(gmem_pass *pass, int back) {
    const int64_t count = pass->cache.computed_count;
    for (int64_t i = 0; i < count; i++) {
        const int64_t to = back ? count - 1 - i : i, from = pass->cache.computed[to];
        const float *found = pass->found[to];
        pass->found[to] = pass->found[from];
        pass->found[from] = found;
    }
}

/* All blocks, in which the cache may stand for those after the first. */
static void gmem__run_blocks(gmem_pass *pass, int64_t slot, int64_t batch) {
    const int64_t depth = pass->network->info.depth;
    const int caching = pass->cache.threshold > 0;
    if (caching) gmem__cache_enter(&pass->cache, batch, pass->x);
    for (int64_t block = 0; block < (caching ? 1 : depth); block++)
        gmem__run_block(pass, batch, block);
    if (!caching) return;
    gmem__cache_split(&pass->cache, slot, batch, pass->x);
    gmem__exchange_found(pass, 0);
    for (int64_t block = 1; block < depth && pass->cache.computed_count > 0; block++)
        gmem__run_block(pass, pass->cache.computed_count, block);
    gmem__exchange_found(pass, 1);
    gmem__cache_join(&pass->cache, slot, batch, pass->x);
}

GMEM__FN gmem_status gmem__pass_run(gmem_pass *pass, int64_t slot, int64_t batch, const float *x, const float *t,
                                    const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    gmem__conditions conditions;
    conditions.snippets = snippets;
    conditions.labels = labels;
    if (!pass || !x || !t || !v || batch < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a pass needs a batch, latents, times and room for the velocity");
    const gmem_network *network = pass->network;
    GMEM__TRY(gmem__check_conditions(pass, batch, batch, t, &conditions, error));
    gmem__find_modulations(pass, batch, t, &conditions);
    gmem__embed_patches(pass, batch, x);
    gmem__run_blocks(pass, slot, batch);
    gmem__run_final(pass, batch);
    if (!gmem__all_finite(pass->wide, network->output.weight.rows * batch * network->info.tokens))
        return gmem__fail_at(error, GMEM_E_NONFINITE, gmem_file_path(network->file), -1,
                             "the network's output is not finite: its weights or its input hold NaN or infinity");
    gmem__unpatchify(network, batch, pass->wide, v);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_run(gmem_pass *pass, int64_t batch, const float *x, const float *t,
                                   const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    return gmem__pass_run(pass, 0, batch, x, t, snippets, labels, v, error);
}

#undef GMEM__PREPARED_COLUMNS
#undef GMEM__PREPARED_BYTES
#undef GMEM__NORM_EPS
/* ---- src/autoencoder.c ---- */
/* Autoencoders from their files: names of the parts in each naming scheme, structure from the tensors, weights.
 * One architecture, CompVis's AutoencoderKL (latent-diffusion, ldm/models/autoencoder.py), serves VA-VAE and SD-VAE. */
/* ---- src/autoencoder.h ---- */
/* The autoencoder's networks as the list of their layers: what loading makes and a run walks through. */
#ifndef GMEM__AUTOENCODER_H
#define GMEM__AUTOENCODER_H


typedef struct gmem__ae_conv {
    gmem__weight weight; /* (out, in * kernel * kernel) */
    const float *bias;   /* (out) */
    int kernel;
} gmem__ae_conv;

typedef struct gmem__ae_norm {
    const float *weight, *bias; /* (channels) */
} gmem__ae_norm;

typedef enum gmem__ae_kind {
    GMEM__AE_CONV,      /* conv[0] */
    GMEM__AE_RESIDUAL,  /* x + conv[1](silu(norm[1](conv[0](silu(norm[0](x)))))), x through conv[2] where out != in */
    GMEM__AE_ATTENTION, /* x + conv[3](attention(conv[0](n), conv[1](n), conv[2](n))) with n = norm[0](x); one head */
    GMEM__AE_NORM_SILU  /* silu(norm[0](x)) */
} gmem__ae_kind;

typedef struct gmem__ae_layer {
    gmem__ae_kind kind;
    int64_t in, out;      /* channels */
    int stride, upsample; /* of a CONV, as in gmem__conv */
    gmem__ae_norm norm[2];
    gmem__ae_conv conv[4];
} gmem__ae_layer;

/* The encoder or the decoder, quantisation convolutions included. */
typedef struct gmem__ae_net {
    gmem__ae_layer *layers; /* (count), in the store's memory */
    int64_t count, capacity;
} gmem__ae_net;

struct gmem_autoencoder {
    const gmem_context *context;
    gmem_file *file;
    int file_owned;
    gmem__store store;
    gmem_autoencoder_info info;
    gmem__ae_net encoder, decoder;
};

/* 32 groups, eps 1e-6: `Normalize` of CompVis's latent-diffusion, ldm/modules/diffusionmodules/model.py. */
#define GMEM__AE_GROUPS 32
#define GMEM__AE_EPS    1e-6f

#endif /* GMEM__AUTOENCODER_H */

#include <stdio.h>

/* names ----------------------------------------------------------------------------------------------------------- */

typedef enum gmem__ae_scheme {
    GMEM__AE_COMPVIS,
    GMEM__AE_DIFFUSERS,
    GMEM__AE_DIFFUSERS_OLD, /* before diffusers 0.17: other names in the attention */
    GMEM__AE_SCHEMES
} gmem__ae_scheme;

/* Where a layer stands. In the names: %h "encoder" or "decoder", %d "down" or "up", %p "" or "post_", %l the level's
 * number in the file, %b the block in its level. */
typedef enum gmem__ae_place {
    GMEM__AE_CONV_IN,
    GMEM__AE_LEVEL,
    GMEM__AE_BLOCK,
    GMEM__AE_BLOCK_ATTENTION,
    GMEM__AE_RESAMPLE,
    GMEM__AE_MIDDLE,
    GMEM__AE_MIDDLE_1,
    GMEM__AE_MIDDLE_ATTENTION,
    GMEM__AE_MIDDLE_2,
    GMEM__AE_NORM_OUT,
    GMEM__AE_CONV_OUT,
    GMEM__AE_QUANT,
    GMEM__AE_PLACES
} gmem__ae_place;

static const char *const gmem__ae_place_names[GMEM__AE_PLACES][2] = {
    /* CompVis                    diffusers */
    {"%h.conv_in", "%h.conv_in"},
    {"%h.%d.%l", "%h.%d_blocks.%l"},
    {"%h.%d.%l.block.%b", "%h.%d_blocks.%l.resnets.%b"},
    {"%h.%d.%l.attn.%b", "%h.%d_blocks.%l.attentions.%b"},
    {"%h.%d.%l.%dsample.conv", "%h.%d_blocks.%l.%dsamplers.0.conv"},
    {"%h.mid", "%h.mid_block"},
    {"%h.mid.block_1", "%h.mid_block.resnets.0"},
    {"%h.mid.attn_1", "%h.mid_block.attentions.0"},
    {"%h.mid.block_2", "%h.mid_block.resnets.1"},
    {"%h.norm_out", "%h.conv_norm_out"},
    {"%h.conv_out", "%h.conv_out"},
    {"%pquant_conv", "%pquant_conv"},
};

/* What a residual block and an attention are made of. */
typedef enum gmem__ae_leaf {
    GMEM__AE_SELF, /* the place is the layer */
    GMEM__AE_NORM1,
    GMEM__AE_CONV1,
    GMEM__AE_NORM2,
    GMEM__AE_CONV2,
    GMEM__AE_SHORTCUT,
    GMEM__AE_ATTENTION_NORM,
    GMEM__AE_QUERY,
    GMEM__AE_KEY,
    GMEM__AE_VALUE,
    GMEM__AE_PROJECTION,
    GMEM__AE_LEAVES
} gmem__ae_leaf;

static const char *const gmem__ae_leaf_names[GMEM__AE_LEAVES][GMEM__AE_SCHEMES] = {
    /* CompVis        diffusers          old diffusers */
    {"", "", ""},
    {".norm1", ".norm1", ".norm1"},
    {".conv1", ".conv1", ".conv1"},
    {".norm2", ".norm2", ".norm2"},
    {".conv2", ".conv2", ".conv2"},
    {".nin_shortcut", ".conv_shortcut", ".conv_shortcut"},
    {".norm", ".group_norm", ".group_norm"},
    {".q", ".to_q", ".query"},
    {".k", ".to_k", ".key"},
    {".v", ".to_v", ".value"},
    {".proj_out", ".to_out.0", ".proj_attn"},
};

/* Prefixes under which pipelines keep their autoencoder: alone, Stable Diffusion's checkpoints, others'. */
static const char *const gmem__ae_prefixes[] = {"", "first_stage_model.", "vae."};

#define GMEM__AE_MAX_LEVELS 8
#define GMEM__AE_MAX_BLOCKS 16

/* building -------------------------------------------------------------------------------------------------------- */

/* The state of reading one half: the layer list so far and the channels that its end gives. */
typedef struct gmem__ae_builder {
    gmem__store *store;
    const gmem_file *file;
    const char *prefix;
    gmem__ae_scheme scheme;
    int decoder;
    int levels, blocks; /* of the half; blocks of each level */
    int64_t channels;   /* -1: whatever the first convolution takes */
    gmem__ae_net *net;
    gmem_error *error;
} gmem__ae_builder;

/* Where in its half a layer stands, by the file's own numbers. */
typedef struct gmem__ae_position {
    gmem__ae_place place;
    int level, block;
} gmem__ae_position;

typedef struct gmem__ae_name {
    char text[128];
} gmem__ae_name;

static gmem__ae_position gmem__ae_at(gmem__ae_place place, int level, int block) {
    gmem__ae_position position = {place, level, block};
    return position;
}

static size_t gmem__ae_append(gmem__ae_name *name, size_t used, const char *text) {
    size_t room = sizeof name->text - used, length = strlen(text);
    if (length >= room) length = room - 1; /* cannot happen with the tables above */
    memcpy(name->text + used, text, length);
    name->text[used + length] = 0;
    return used + length;
}

/* The name of a part in the file's scheme; `tail` is ".weight", ".bias", "." for the prefix of all below, or "". */
static gmem__ae_name gmem__ae_key(const gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf,
                                  const char *tail) {
    gmem__ae_name name;
    const char *pattern = gmem__ae_place_names[at.place][b->scheme != GMEM__AE_COMPVIS];
    size_t used = gmem__ae_append(&name, 0, b->prefix);
    for (const char *c = pattern; *c; c++) {
        char text[24] = {*c, 0};
        if (*c == '%') {
            c++;
            if (*c == 'h') snprintf(text, sizeof text, "%s", b->decoder ? "decoder" : "encoder");
            if (*c == 'd') snprintf(text, sizeof text, "%s", b->decoder ? "up" : "down");
            if (*c == 'p') snprintf(text, sizeof text, "%s", b->decoder ? "post_" : "");
            if (*c == 'l') snprintf(text, sizeof text, "%d", at.level);
            if (*c == 'b') snprintf(text, sizeof text, "%d", at.block);
        }
        used = gmem__ae_append(&name, used, text);
    }
    used = gmem__ae_append(&name, used, gmem__ae_leaf_names[leaf][b->scheme]);
    gmem__ae_append(&name, used, tail);
    return name;
}

/* Whether the file has any tensor at or below a place: one alone makes all the others needed. */
static int gmem__ae_has(const gmem__ae_builder *b, gmem__ae_position at) {
    gmem__ae_name name = gmem__ae_key(b, at, GMEM__AE_SELF, ".");
    return gmem__file_has_prefix(b->file, name.text);
}

static gmem_status gmem__ae_take_norm(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf, int64_t channels,
                                      gmem__ae_norm *out) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight"), bias = gmem__ae_key(b, at, leaf, ".bias");
    if (channels % GMEM__AE_GROUPS != 0)
        return gmem__fail(b->error, GMEM_E_SHAPE, "%s: %lld channels do not divide into %d groups", weight.text,
                          (long long)channels, GMEM__AE_GROUPS);
    GMEM__TRY(gmem__store_vector(b->store, weight.text, channels, &out->weight, b->error));
    return gmem__store_vector(b->store, bias.text, channels, &out->bias, b->error);
}

/* A 1x1 convolution may be stored as the matrix that it is, as diffusers' attention does. */
static gmem_status gmem__ae_take_weight(gmem__ae_builder *b, const char *name, int64_t out_channels,
                                        int64_t in_channels, int kernel, gmem__weight *out) {
    const gmem_tensor *tensor = gmem_file_find(b->file, name);
    if (kernel == 1 && tensor && tensor->rank == 2)
        return gmem__store_matrix(b->store, name, out_channels, in_channels, out, b->error);
    return gmem__store_conv(b->store, name, out_channels, in_channels, kernel, out, b->error);
}

static gmem_status gmem__ae_take_conv(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf,
                                      int64_t out_channels, int64_t in_channels, int kernel, gmem__ae_conv *out) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight"), bias = gmem__ae_key(b, at, leaf, ".bias");
    out->kernel = kernel;
    GMEM__TRY(gmem__ae_take_weight(b, weight.text, out_channels, in_channels, kernel, &out->weight));
    if (b->store->context->compute != GMEM_COMPUTE_F32) /* int8 too: images suffer from it */
        GMEM__TRY(gmem__store_narrow(b->store, &out->weight, GMEM_COMPUTE_BF16, 0, b->error));
    return gmem__store_vector(b->store, bias.text, out_channels, &out->bias, b->error);
}

/* The channels of a convolution, as its weight (out, in, kernel, kernel) has them; in: the builder's, or any. */
static gmem_status gmem__ae_channels(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf, int kernel,
                                     int64_t *in_channels, int64_t *out_channels) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight");
    int64_t shape[4] = {-1, b->channels, kernel, kernel};
    const gmem_tensor *tensor = NULL;
    GMEM__TRY(gmem__need(b->file, weight.text, 4, shape, &tensor, b->error));
    *out_channels = tensor->shape[0];
    *in_channels = tensor->shape[1];
    if (*in_channels < 1 || *out_channels < 1)
        return gmem__fail(b->error, GMEM_E_SHAPE, "%s has no elements", weight.text);
    return GMEM_OK;
}

static gmem__ae_layer *gmem__ae_add(gmem__ae_builder *b, gmem__ae_kind kind, int64_t in_channels,
                                    int64_t out_channels) {
    gmem__ae_layer *layer = b->net->layers + b->net->count++;
    layer->kind = kind;
    layer->in = in_channels;
    layer->out = out_channels;
    layer->stride = 1;
    b->channels = out_channels;
    return layer;
}

static gmem_status gmem__ae_add_conv(gmem__ae_builder *b, gmem__ae_position at, int kernel, int stride, int upsample) {
    int64_t in_channels = 0, out_channels = 0;
    GMEM__TRY(gmem__ae_channels(b, at, GMEM__AE_SELF, kernel, &in_channels, &out_channels));
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_CONV, in_channels, out_channels);
    layer->stride = stride;
    layer->upsample = upsample;
    return gmem__ae_take_conv(b, at, GMEM__AE_SELF, out_channels, in_channels, kernel, &layer->conv[0]);
}

static gmem_status gmem__ae_add_residual(gmem__ae_builder *b, gmem__ae_position at) {
    int64_t in = 0, out = 0;
    GMEM__TRY(gmem__ae_channels(b, at, GMEM__AE_CONV1, 3, &in, &out));
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_RESIDUAL, in, out);
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_NORM1, in, &layer->norm[0]));
    GMEM__TRY(gmem__ae_take_conv(b, at, GMEM__AE_CONV1, out, in, 3, &layer->conv[0]));
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_NORM2, out, &layer->norm[1]));
    GMEM__TRY(gmem__ae_take_conv(b, at, GMEM__AE_CONV2, out, out, 3, &layer->conv[1]));
    if (in == out) return GMEM_OK;
    return gmem__ae_take_conv(b, at, GMEM__AE_SHORTCUT, out, in, 1, &layer->conv[2]);
}

static gmem_status gmem__ae_add_attention(gmem__ae_builder *b, gmem__ae_position at) {
    static const gmem__ae_leaf leaves[4] = {GMEM__AE_QUERY, GMEM__AE_KEY, GMEM__AE_VALUE, GMEM__AE_PROJECTION};
    int64_t channels = b->channels;
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_ATTENTION, channels, channels);
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_ATTENTION_NORM, channels, &layer->norm[0]));
    for (int i = 0; i < 4; i++) {
        GMEM__TRY(gmem__ae_take_conv(b, at, leaves[i], channels, channels, 1, &layer->conv[i]));
    }
    return GMEM_OK;
}

static gmem_status gmem__ae_add_level(gmem__ae_builder *b, int level) {
    int attention = 0;
    for (int block = 0; block < b->blocks; block++) {
        attention |= gmem__ae_has(b, gmem__ae_at(GMEM__AE_BLOCK_ATTENTION, level, block));
    }
    for (int block = 0; block < b->blocks; block++) {
        GMEM__TRY(gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_BLOCK, level, block)));
        if (attention) GMEM__TRY(gmem__ae_add_attention(b, gmem__ae_at(GMEM__AE_BLOCK_ATTENTION, level, block)));
    }
    return GMEM_OK;
}

static gmem_status gmem__ae_add_middle(gmem__ae_builder *b) {
    gmem__ae_position attention = gmem__ae_at(GMEM__AE_MIDDLE_ATTENTION, 0, 0);
    GMEM__TRY(gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_MIDDLE_1, 0, 0)));
    if (gmem__ae_has(b, attention)) GMEM__TRY(gmem__ae_add_attention(b, attention));
    return gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_MIDDLE_2, 0, 0));
}

static gmem_status gmem__ae_add_end(gmem__ae_builder *b) {
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_NORM_SILU, b->channels, b->channels);
    GMEM__TRY(gmem__ae_take_norm(b, gmem__ae_at(GMEM__AE_NORM_OUT, 0, 0), GMEM__AE_SELF, b->channels, &layer->norm[0]));
    return gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_OUT, 0, 0), 3, 1, 0);
}

/* The quantisation convolutions stand outside the halves; newer files lack them. */
static gmem_status gmem__ae_add_quant(gmem__ae_builder *b) {
    gmem__ae_position at = gmem__ae_at(GMEM__AE_QUANT, 0, 0);
    return gmem__ae_has(b, at) ? gmem__ae_add_conv(b, at, 1, 1, 0) : GMEM_OK;
}

/* The file's number of a level, 0 having the pixels' resolution: diffusers counts in the order in which they run. */
static int gmem__ae_number(const gmem__ae_builder *b, int level) {
    return b->scheme != GMEM__AE_COMPVIS && b->decoder ? b->levels - 1 - level : level;
}

static gmem_status gmem__ae_add_encoder(gmem__ae_builder *b) {
    b->channels = 3;
    GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_IN, 0, 0), 3, 1, 0));
    for (int level = 0; level < b->levels; level++) {
        GMEM__TRY(gmem__ae_add_level(b, gmem__ae_number(b, level)));
        if (level + 1 < b->levels)
            GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_RESAMPLE, gmem__ae_number(b, level), 0), 3, 2, 0));
    }
    GMEM__TRY(gmem__ae_add_middle(b));
    GMEM__TRY(gmem__ae_add_end(b));
    return gmem__ae_add_quant(b);
}

static gmem_status gmem__ae_add_decoder(gmem__ae_builder *b) {
    b->channels = -1;
    GMEM__TRY(gmem__ae_add_quant(b));
    GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_IN, 0, 0), 3, 1, 0));
    GMEM__TRY(gmem__ae_add_middle(b));
    for (int level = b->levels - 1; level >= 0; level--) {
        GMEM__TRY(gmem__ae_add_level(b, gmem__ae_number(b, level)));
        if (level > 0)
            GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_RESAMPLE, gmem__ae_number(b, level), 0), 3, 1, 1));
    }
    return gmem__ae_add_end(b);
}

/* Counts levels and blocks by the highest numbers in the file, so that a gap in between is a missing tensor. */
static gmem_status gmem__ae_measure(gmem__ae_builder *b) {
    b->levels = b->blocks = 0;
    for (int level = 0; level < GMEM__AE_MAX_LEVELS; level++) {
        if (gmem__ae_has(b, gmem__ae_at(GMEM__AE_LEVEL, level, 0))) b->levels = level + 1;
    }
    for (int level = 0; level < b->levels; level++) {
        for (int block = b->blocks; block < GMEM__AE_MAX_BLOCKS; block++) {
            if (gmem__ae_has(b, gmem__ae_at(GMEM__AE_BLOCK, level, block))) b->blocks = block + 1;
        }
    }
    if (b->levels == 0 || b->blocks == 0)
        return gmem__fail(b->error, GMEM_E_ARCHITECTURE, "the %s has no levels of residual blocks",
                          b->decoder ? "decoder" : "encoder");
    return GMEM_OK;
}

static gmem_status gmem__ae_build(gmem__ae_builder *b, int decoder, gmem__ae_net *net) {
    b->decoder = decoder;
    b->net = net;
    GMEM__TRY(gmem__ae_measure(b));
    net->capacity = (int64_t)b->levels * (2 * b->blocks + 1) + 7; /* the middle 3, the ends 4 */
    net->layers = (gmem__ae_layer *)gmem__store_alloc(b->store, net->capacity, sizeof *net->layers);
    if (!net->layers) return gmem__fail(b->error, GMEM_E_MEMORY, "no memory for the autoencoder's layers");
    return decoder ? gmem__ae_add_decoder(b) : gmem__ae_add_encoder(b);
}

/* opening --------------------------------------------------------------------------------------------------------- */

/* The scheme of the names below the builder's prefix; 0 where there is no decoder. */
static int gmem__ae_recognise_scheme(gmem__ae_builder *b) {
    gmem__ae_position middle = gmem__ae_at(GMEM__AE_MIDDLE, 0, 0);
    b->scheme = GMEM__AE_COMPVIS;
    if (gmem__ae_has(b, middle)) return 1;
    b->scheme = GMEM__AE_DIFFUSERS_OLD;
    gmem__ae_name query = gmem__ae_key(b, gmem__ae_at(GMEM__AE_MIDDLE_ATTENTION, 0, 0), GMEM__AE_QUERY, ".");
    if (gmem__file_has_prefix(b->file, query.text)) return 1;
    b->scheme = GMEM__AE_DIFFUSERS;
    return gmem__ae_has(b, middle);
}

static gmem_status gmem__ae_recognise(gmem__ae_builder *b) {
    b->decoder = 1;
    for (size_t i = 0; i < sizeof gmem__ae_prefixes / sizeof *gmem__ae_prefixes; i++) {
        b->prefix = gmem__ae_prefixes[i];
        if (gmem__ae_recognise_scheme(b)) return GMEM_OK;
    }
    return gmem__fail(b->error, GMEM_E_ARCHITECTURE,
                      "no autoencoder: expected tensors decoder.mid.* (CompVis) or decoder.mid_block.* (diffusers)");
}

/* SD-VAE's scaling factor, where the file states it: a number `scaling_factor`, at the root or in its `config`, or
 * safetensors metadata of that name; else the published 0.18215. (diffusers keeps it in a config.json beside the file,
 * which the library doesn't read: its caller passes the factor as `multiplier` where it differs.) */
static double gmem__ae_multiplier(const gmem_file *file) {
    double value = 0;
    const char *text = gmem_file_metadata(file, "scaling_factor");
    int found = gmem_file_number(file, "scaling_factor", &value) ||
                gmem_file_number(file, "config.scaling_factor", &value) ||
                (text && gmem__parse_double(text, strlen(text), &value));
    return found && value > 0 && value - value == 0 ? value : 0.18215;
}

static gmem_status gmem__ae_describe(gmem_autoencoder *ae, const gmem__ae_builder *b, int decoder_levels,
                                     int encoder_levels) {
    gmem_autoencoder_info *info = &ae->info;
    const gmem__ae_layer *last = ae->decoder.layers + ae->decoder.count - 1;
    info->latent_channels = ae->decoder.layers[0].in;
    info->factor = (int64_t)1 << (decoder_levels - 1);
    info->parameters = ae->store.parameters;
    info->has_encoder = ae->encoder.count > 0;
    info->family = info->latent_channels == 4 || b->scheme != GMEM__AE_COMPVIS ? GMEM_AE_SDVAE : GMEM_AE_VAVAE;
    info->multiplier = info->family == GMEM_AE_SDVAE ? gmem__ae_multiplier(ae->file) : 1;
    if (last->out != 3)
        return gmem__fail(b->error, GMEM_E_SHAPE, "the decoder gives %lld channels, expected 3", (long long)last->out);
    if (!info->has_encoder) return GMEM_OK;
    last = ae->encoder.layers + ae->encoder.count - 1;
    if (last->out != 2 * info->latent_channels)
        return gmem__fail(b->error, GMEM_E_SHAPE, "the encoder gives %lld channels, expected mean and logvar of %lld",
                          (long long)last->out, (long long)info->latent_channels);
    if (encoder_levels != decoder_levels)
        return gmem__fail(b->error, GMEM_E_ARCHITECTURE, "the encoder has %d levels, the decoder %d", encoder_levels,
                          decoder_levels);
    return GMEM_OK;
}

static gmem_status gmem__ae_load(gmem_autoencoder *ae, gmem_error *error) {
    gmem__ae_builder b;
    int decoder_levels = 0, encoder_levels = 0;
    memset(&b, 0, sizeof b);
    b.store = &ae->store;
    b.file = ae->file;
    b.error = error;
    GMEM__TRY(gmem__ae_recognise(&b));
    GMEM__TRY(gmem__ae_build(&b, 1, &ae->decoder));
    decoder_levels = b.levels;
    b.decoder = 0;
    if (gmem__ae_has(&b, gmem__ae_at(GMEM__AE_MIDDLE, 0, 0))) {
        GMEM__TRY(gmem__ae_build(&b, 0, &ae->encoder));
        encoder_levels = b.levels;
    }
    return gmem__ae_describe(ae, &b, decoder_levels, encoder_levels);
}

GMEM_API gmem_status gmem_autoencoder_open(gmem_context *context, const gmem_autoencoder_desc *desc,
                                           gmem_autoencoder **out, gmem_error *error) {
    if (!context || !desc || !out || (!desc->path && !desc->file))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_autoencoder_open needs a context, a file and an output");
    gmem_autoencoder *ae = (gmem_autoencoder *)gmem__alloc(context, 1, sizeof *ae);
    if (!ae) return gmem__fail(error, GMEM_E_MEMORY, "no memory for an autoencoder");
    ae->context = context;
    ae->file = desc->file;
    ae->file_owned = !desc->file;
    gmem_status status = GMEM_OK;
    if (ae->file_owned) status = gmem_file_open(context, desc->path, desc->key, &ae->file, error);
    if (status == GMEM_OK) {
        ae->store.context = context;
        ae->store.file = ae->file;
        status = gmem__fail_in(error, gmem__ae_load(ae, error), gmem_file_path(ae->file));
    }
    if (status != GMEM_OK) {
        gmem_autoencoder_close(ae);
        return status;
    }
    gmem__quoted path;
    gmem__log(context, "%s: autoencoder, %lld latent channels, %lld pixels a latent",
              gmem__quote(&path, gmem_file_path(ae->file)), (long long)ae->info.latent_channels,
              (long long)ae->info.factor);
    *out = ae;
    return GMEM_OK;
}

GMEM_API void gmem_autoencoder_close(gmem_autoencoder *autoencoder) {
    if (!autoencoder) return;
    if (autoencoder->store.context) gmem__store_free(&autoencoder->store);
    if (autoencoder->file_owned) gmem_file_close(autoencoder->file);
    gmem__free(autoencoder->context, autoencoder, 1, sizeof *autoencoder);
}

GMEM_API const gmem_autoencoder_info *gmem_autoencoder_get_info(const gmem_autoencoder *autoencoder) {
    return &autoencoder->info;
}
/* ---- src/autoencoder_run.c ---- */
/* Autoencoders at work: the walk through a half's layers, decoding, encoding, and what lies between the transformer's
 * latents and pixels. */

#include <math.h>

/* the walk -------------------------------------------------------------------------------------------------------- */

/* The working memory of one image: two states that layers read and write in turn, and what a layer needs inside. */
typedef struct gmem__ae_plan {
    int64_t input, state, work; /* floats */
    int64_t out_channels, out_height, out_width;
} gmem__ae_plan;

static int gmem__ae_volume(int64_t channels, int64_t height, int64_t width, int64_t *out) {
    return gmem__mul(channels, height, out) && gmem__mul(*out, width, out);
}

/* The largest states of a run over an image of this size; 0 where a size overflows. */
static int gmem__ae_measure_run(const gmem__ae_net *net, int64_t height, int64_t width, gmem__ae_plan *plan) {
    plan->state = plan->work = 0;
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        int64_t before = 0, after = 0, inside = 0;
        if (!gmem__ae_volume(layer->in, height, width, &before)) return 0;
        if (layer->upsample && (!gmem__mul(height, 2, &height) || !gmem__mul(width, 2, &width))) return 0;
        height /= layer->stride;
        width /= layer->stride;
        if (!gmem__ae_volume(layer->out, height, width, &after)) return 0;
        if (layer->kind == GMEM__AE_RESIDUAL) inside = after;
        if (layer->kind == GMEM__AE_ATTENTION && !gmem__mul(after, 3, &inside)) return 0;
        if (i == 0) plan->input = before; /* the first layer reads the caller's memory */
        if (i > 0) plan->state = gmem__max(plan->state, before);
        plan->state = gmem__max(plan->state, after);
        plan->work = gmem__max(plan->work, inside);
        plan->out_channels = layer->out;
    }
    plan->out_height = height;
    plan->out_width = width;
    return 1;
}

typedef struct gmem__ae_walk {
    gmem__engine engine;
    float *x, *spare;      /* (plan.state) each; x holds the state */
    float *work;           /* (plan.work) */
    int64_t height, width; /* of the state */
    gmem_compute compute;
} gmem__ae_walk;

static void gmem__ae_swap(gmem__ae_walk *walk) {
    float *x = walk->x;
    walk->x = walk->spare;
    walk->spare = x;
}

static gmem__conv gmem__ae_conv_of(const gmem__ae_walk *walk, const gmem__ae_conv *conv, int64_t in_channels,
                                   const float *x, float *y) {
    gmem__conv op;
    memset(&op, 0, sizeof op);
    op.weight = &conv->weight;
    op.bias = conv->bias;
    op.x = x;
    op.y = y;
    op.in_channels = in_channels;
    op.height = walk->height;
    op.width = walk->width;
    op.kernel = conv->kernel;
    op.stride = 1;
    return op;
}

/* y (out, height, width) = conv(x) (+ residual), at the state's size. */
static void gmem__ae_run_conv(const gmem__ae_walk *walk, const gmem__ae_conv *conv, int64_t in_channels, const float *x,
                              const float *residual, float *y) {
    gmem__conv op = gmem__ae_conv_of(walk, conv, in_channels, x, y);
    op.residual = residual;
    walk->engine.ops->conv(&walk->engine, &op);
}

/* A convolution that stands alone, and may change the size. */
static void gmem__ae_run_layer(gmem__ae_walk *walk, const gmem__ae_layer *layer, const float *x) {
    gmem__conv op = gmem__ae_conv_of(walk, &layer->conv[0], layer->in, x, walk->spare);
    op.stride = layer->stride;
    op.upsample = layer->upsample;
    walk->engine.ops->conv(&walk->engine, &op);
    walk->height = walk->height * (layer->upsample ? 2 : 1) / layer->stride;
    walk->width = walk->width * (layer->upsample ? 2 : 1) / layer->stride;
    gmem__ae_swap(walk);
}

static void gmem__ae_run_norm(const gmem__ae_walk *walk, const gmem__ae_norm *norm, int64_t channels, int silu,
                              const float *x, float *y) {
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.y = y;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.channels = channels;
    op.area = walk->height * walk->width;
    op.groups = GMEM__AE_GROUPS;
    op.eps = GMEM__AE_EPS;
    op.silu = silu;
    walk->engine.ops->group_norm(&walk->engine, &op);
}

static void gmem__ae_run_residual(gmem__ae_walk *walk, const gmem__ae_layer *layer) {
    float *h = walk->work;
    gmem__ae_run_norm(walk, &layer->norm[0], layer->in, 1, walk->x, walk->spare);
    gmem__ae_run_conv(walk, &layer->conv[0], layer->in, walk->spare, NULL, h);
    gmem__ae_run_norm(walk, &layer->norm[1], layer->out, 1, h, h);
    if (layer->in != layer->out) {
        gmem__ae_run_conv(walk, &layer->conv[2], layer->in, walk->x, NULL, walk->spare);
        gmem__ae_swap(walk);
    }
    gmem__ae_run_conv(walk, &layer->conv[1], layer->out, h, walk->x, walk->x);
}

static void gmem__ae_run_attention(gmem__ae_walk *walk, const gmem__ae_layer *layer) {
    int64_t channels = layer->in, area = walk->height * walk->width;
    gmem__attention op;
    float *qkv[3];
    gmem__ae_run_norm(walk, &layer->norm[0], channels, 0, walk->x, walk->spare);
    for (int i = 0; i < 3; i++) {
        qkv[i] = walk->work + i * channels * area;
        gmem__ae_run_conv(walk, &layer->conv[i], channels, walk->spare, NULL, qkv[i]);
    }
    memset(&op, 0, sizeof op);
    op.q = qkv[0];
    op.k = qkv[1];
    op.v = qkv[2];
    op.y = walk->spare;
    op.heads = 1;
    op.head_dim = channels;
    op.tokens = area;
    op.samples = 1;
    op.stride = op.y_stride = area;
    op.scale = (float)(1 / sqrt((double)channels));
    op.compute = walk->compute;
    walk->engine.ops->attention(&walk->engine, &op);
    gmem__ae_run_conv(walk, &layer->conv[3], channels, walk->spare, walk->x, walk->x);
}

/* One image through a half; the result is in walk->x. The first layer is a convolution, so the input stays as it is. */
static void gmem__ae_run(gmem__ae_walk *walk, const gmem__ae_net *net, const float *input) {
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        switch (layer->kind) {
        case GMEM__AE_CONV:
            gmem__ae_run_layer(walk, layer, i == 0 ? input : walk->x);
            break;
        case GMEM__AE_RESIDUAL:
            gmem__ae_run_residual(walk, layer);
            break;
        case GMEM__AE_ATTENTION:
            gmem__ae_run_attention(walk, layer);
            break;
        case GMEM__AE_NORM_SILU:
            gmem__ae_run_norm(walk, &layer->norm[0], layer->in, 1, walk->x, walk->x);
            break;
        }
    }
}

/* a batch --------------------------------------------------------------------------------------------------------- */

/* A call's images, one after the other through one block of memory. */
typedef struct gmem__ae_job {
    const gmem_context *context;
    const gmem__ae_net *net;
    int64_t count, height, width;
    const float *input; /* (count, in, height, width) */
    gmem__ae_plan plan;
    gmem__arena arena;
    float *a, *b, *work;
    void *scratch;
    float *results; /* (count, out_channels, out_height, out_width): the caller's outputs wait for the last image */
} gmem__ae_job;

static int64_t gmem__ae_result_size(const gmem__ae_plan *plan) {
    return plan->out_channels * plan->out_height * plan->out_width;
}

static void gmem__ae_take(gmem__ae_job *job) {
    const gmem_context *context = job->context;
    job->a = GMEM__TAKE_F32(&job->arena, job->plan.state);
    job->b = GMEM__TAKE_F32(&job->arena, job->plan.state);
    job->work = GMEM__TAKE_F32(&job->arena, job->plan.work);
    job->scratch = gmem__take(&job->arena, context->ops->scratch_bytes(context->threads), 1);
    job->results = GMEM__TAKE_F32(&job->arena, job->count * gmem__ae_result_size(&job->plan));
}

static void gmem__ae_job_end(gmem__ae_job *job) { gmem__arena_release(job->context, &job->arena); }

static gmem_status gmem__ae_job_begin(gmem__ae_job *job, gmem_error *error) {
    int64_t size = 0;
    if (!gmem__ae_measure_run(job->net, job->height, job->width, &job->plan) ||
        !gmem__mul(gmem__max(job->plan.state, job->plan.input), job->count, &size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld images of %lld x %lld are too large", (long long)job->count,
                          (long long)job->height, (long long)job->width);
    gmem__ae_take(job);
    if (!gmem__arena_reserve(job->context, &job->arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the autoencoder: %lld bytes",
                          (long long)job->arena.bytes);
    gmem__ae_take(job);
    return GMEM_OK;
}

static gmem_status gmem__ae_job_images(gmem__ae_job *job, gmem_error *error) {
    int64_t size = gmem__ae_result_size(&job->plan);
    for (int64_t i = 0; i < job->count; i++) {
        gmem__engine engine = gmem__engine_of(job->context);
        engine.scratch = job->scratch;
        gmem__ae_walk walk = {engine, job->a, job->b, job->work, job->height, job->width, job->context->compute};
        gmem__ae_run(&walk, job->net, job->input + i * job->plan.input);
        if (!gmem__all_finite(walk.x, size))
            return gmem__fail(error, GMEM_E_NONFINITE, "the autoencoder's output for image %lld is not finite",
                              (long long)i);
        memcpy(job->results + i * size, walk.x, (size_t)size * sizeof(float));
    }
    return GMEM_OK;
}

/* On success the results wait in the job until gmem__ae_job_end. */
static gmem_status gmem__ae_job_run(gmem__ae_job *job, gmem_error *error) {
    GMEM__TRY(gmem__ae_job_begin(job, error));
    gmem_status status = gmem__ae_job_images(job, error);
    if (status != GMEM_OK) gmem__ae_job_end(job);
    return status;
}

static gmem__ae_job gmem__ae_job_of(const gmem_autoencoder *ae, const gmem__ae_net *net, int64_t count, int64_t height,
                                    int64_t width, const float *input) {
    gmem__ae_job job;
    memset(&job, 0, sizeof job);
    job.context = ae->context;
    job.net = net;
    job.count = count;
    job.height = height;
    job.width = width;
    job.input = input;
    return job;
}

GMEM_API gmem_status gmem_decode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *z, float *out, gmem_error *error) {
    if (!autoencoder || !z || !out || count < 1 || height < 1 || width < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_decode needs latents (count, channels, height, width)");
    gmem__ae_job job = gmem__ae_job_of(autoencoder, &autoencoder->decoder, count, height, width, z);
    GMEM__TRY(gmem__ae_job_run(&job, error));
    memcpy(out, job.results, (size_t)(count * gmem__ae_result_size(&job.plan)) * sizeof(float));
    gmem__ae_job_end(&job);
    return GMEM_OK;
}

static double gmem__ae_conv_flop(const gmem__ae_conv *conv, double area) {
    return 2.0 * (double)conv->weight.rows * (double)conv->weight.cols * area;
}

GMEM_API double gmem_decode_flop(const gmem_autoencoder *autoencoder, int64_t height, int64_t width) {
    const gmem__ae_net *net = &autoencoder->decoder;
    double area = (double)height * (double)width, flop = 0;
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        if (layer->upsample) area *= 4;
        area /= (double)layer->stride * (double)layer->stride;
        for (int conv = 0; conv < 4; conv++) { /* those that a layer has not are zero */
            flop += gmem__ae_conv_flop(&layer->conv[conv], area);
        }
        if (layer->kind == GMEM__AE_ATTENTION) flop += 4.0 * area * area * (double)layer->in;
    }
    return flop;
}

/* The posterior's parameters (2 * size): mean, then logvar clamped as DiagonalGaussianDistribution does. */
static void gmem__ae_split(const float *moments, int64_t size, float *mean, float *logvar) {
    memcpy(mean, moments, (size_t)size * sizeof(float));
    for (int64_t i = 0; i < size; i++) {
        float value = moments[size + i];
        logvar[i] = value < -30 ? -30 : value > 20 ? 20 : value;
    }
}

GMEM_API gmem_status gmem_encode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *image, float *mean, float *logvar, gmem_error *error) {
    if (!autoencoder || !image || !mean || !logvar || count < 1 || height < 1 || width < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_encode needs images (count, 3, height, width)");
    if (!autoencoder->info.has_encoder)
        return gmem__fail(error, GMEM_E_COMBINATION, "this autoencoder's file has a decoder only");
    if (height % autoencoder->info.factor != 0 || width % autoencoder->info.factor != 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "an image of %lld x %lld: both must be multiples of %lld",
                          (long long)height, (long long)width, (long long)autoencoder->info.factor);
    gmem__ae_job job = gmem__ae_job_of(autoencoder, &autoencoder->encoder, count, height, width, image);
    GMEM__TRY(gmem__ae_job_run(&job, error));
    int64_t size = gmem__ae_result_size(&job.plan) / 2;
    for (int64_t i = 0; i < count; i++) {
        gmem__ae_split(job.results + 2 * i * size, size, mean + i * size, logvar + i * size);
    }
    gmem__ae_job_end(&job);
    return GMEM_OK;
}

/* latents and pixels ---------------------------------------------------------------------------------------------- */

GMEM_API void gmem_denormalize(float *x, int64_t count, int64_t channels, int64_t area, const float *mean,
                               const float *std, double multiplier) {
    for (int64_t row = 0; row < count * channels; row++) {
        float scale = (float)((std ? (double)std[row % channels] : 1) / multiplier);
        float shift = mean ? mean[row % channels] : 0;
        float *values = x + row * area;
        for (int64_t i = 0; i < area; i++) {
            values[i] = values[i] * scale + shift;
        }
    }
}

static gmem_status gmem__need_stats(const gmem_file *file, const char *name, int64_t channels, int positive,
                                    const gmem_tensor **out, gmem_error *error) {
    const gmem_tensor *tensor = gmem_file_find_any(file, name);
    if (!tensor) return gmem__fail_at(error, GMEM_E_MISSING_TENSOR, gmem_file_path(file), -1, "no tensor \"%s\"", name);
    if (gmem_tensor_count(tensor) != channels)
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(file), -1, "\"%s\" has %lld elements, expected %lld",
                             name, (long long)gmem_tensor_count(tensor), (long long)channels);
    for (int64_t i = 0; i < channels; i++) {
        float value = 0;
        gmem_tensor_read_f32(tensor, i, 1, &value);
        if (!gmem__all_finite(&value, 1) || (positive && value <= 0))
            return gmem__fail_at(error, GMEM_E_ARGUMENT, gmem_file_path(file), -1, "\"%s\" of channel %lld is not %s",
                                 name, (long long)i, positive ? "positive" : "finite");
    }
    *out = tensor;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_read_latent_stats(const gmem_file *file, int64_t channels, float *mean, float *std,
                                            gmem_error *error) {
    const gmem_tensor *means = NULL, *stds = NULL;
    if (!file || !mean || !std || channels < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_read_latent_stats needs a file and room for its channels");
    GMEM__TRY(gmem__need_stats(file, "mean", channels, 0, &means, error));
    GMEM__TRY(gmem__need_stats(file, "std", channels, 1, &stds, error));
    gmem_tensor_read_f32(means, 0, channels, mean);
    gmem_tensor_read_f32(stds, 0, channels, std);
    return GMEM_OK;
}

/* The published rounding: 127.5 y + 128 truncated. NaN gives 0. */
static uint8_t gmem__pixel(float y) {
    float value = 127.5f * y + 128.0f;
    return (uint8_t)(!(value > 0) ? 0 : value >= 255 ? 255 : value);
}

GMEM_API void gmem_pixels(const float *decoded, int64_t count, int64_t height, int64_t width, uint8_t *pixels) {
    int64_t area = height * width;
    for (int64_t i = 0; i < count; i++) {
        const float *image = decoded + i * 3 * area;
        for (int64_t at = 0; at < area; at++) {
            for (int64_t c = 0; c < 3; c++) {
                *pixels++ = gmem__pixel(image[c * area + at]);
            }
        }
    }
}
/* ---- src/bank.c ---- */
/* The memory bank: opening its files without touching rows, and reading rows whole or from their decomposition. */
/* ---- src/bank.h ---- */
/* The opened bank: its files numbered through, and the names of its rows. */
#ifndef GMEM__BANK_H
#define GMEM__BANK_H


/* Centred SVD of the rows, C = U sqrt(S), M = V sqrt(S): row = C M^T + mean. Everything but C is small and copied. */
typedef struct gmem__bank_factors {
    int64_t rank;
    float *memory; /* (count) of the three below */
    int64_t count;
    float *m;    /* (rank, width): M transposed, so that a row is a sum of contiguous rows */
    float *s;    /* (rank) */
    float *mean; /* (width) */
} gmem__bank_factors;

typedef struct gmem__bank_part {
    gmem_file *file;
    int file_owned;
    int64_t first, rows; /* the bank's numbers of this file's rows */
    gmem_bank_kind kind;
    const gmem_tensor *rows_tensor; /* (rows, width), or C (rows, rank) */
    const gmem_tensor *scale;       /* (rows) for I8, else NULL */
    gmem__bank_factors factors;     /* DECOMPOSED */
} gmem__bank_part;

/* Names stand one after the other, each with its NUL; a row without one takes no bytes. */
typedef struct gmem__bank_names {
    char *text;
    int64_t text_bytes;
    int64_t *start; /* (rows + 1) offsets into text; NULL where the bank has no names */
} gmem__bank_names;

struct gmem_bank {
    const gmem_context *context;
    gmem__bank_part *parts; /* (part_count) */
    int64_t part_count;
    int64_t rows, width;
    gmem__bank_names names;
};

/* bank_names.c */
GMEM__FN gmem_status gmem__bank_read_names(gmem_bank *bank, const gmem_bank_desc *desc, gmem_error *error);
GMEM__FN void gmem__bank_free_names(gmem_bank *bank);

#endif /* GMEM__BANK_H */

#include <stdio.h>

/* what a file holds ----------------------------------------------------------------------------------------------- */

static gmem_status gmem__bank_missing(const gmem_file *file, const char *name, gmem_error *error) {
    const char *foreign = gmem__file_foreign_at(file, name);
    gmem__quoted quoted;
    if (foreign)
        return gmem__fail(error, GMEM_E_FOREIGN, "\"%s\" could only be built by running %s", name,
                          gmem__quote(&quoted, foreign));
    return gmem__fail(error, GMEM_E_MISSING_TENSOR, "no tensor \"%s\"", name);
}

/* A needed tensor of floating-point values; a dimension of -1 may be anything from 1. */
static gmem_status gmem__bank_need(const gmem_file *file, const char *name, int rank, int64_t rows, int64_t columns,
                                   const gmem_tensor **out, gmem_error *error) {
    const gmem_tensor *tensor = gmem_file_find_any(file, name);
    int64_t shape[2] = {rows, columns};
    gmem__quoted expected, found;
    if (!tensor) return gmem__bank_missing(file, name, error);
    int fits = tensor->rank == rank;
    for (int i = 0; fits && i < rank; i++) {
        fits = shape[i] < 0 ? tensor->shape[i] > 0 : tensor->shape[i] == shape[i];
    }
    if (!fits)
        return gmem__fail(error, GMEM_E_SHAPE, "\"%s\" is %s, expected %s", name,
                          gmem__shape_text(&found, tensor->shape, tensor->rank),
                          gmem__shape_text(&expected, shape, rank));
    *out = tensor;
    return GMEM_OK;
}

static int gmem__bank_is_float(gmem_type type) {
    return type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64;
}

static gmem_status gmem__bank_need_float(const gmem_tensor *tensor, const char *name, gmem_error *error) {
    if (gmem__bank_is_float(tensor->type)) return GMEM_OK;
    return gmem__fail(error, GMEM_E_TYPE, "\"%s\" is %s, expected a floating-point type", name,
                      gmem_type_name(tensor->type));
}

/* `features`, `memorybank` or a bare tensor: (rows, width), I8 with a scale for each row. */
static gmem_status gmem__bank_take_rows(gmem__bank_part *part, const char *name, int64_t *width, gmem_error *error) {
    const gmem_tensor *tensor = NULL;
    char scale[32];
    snprintf(scale, sizeof scale, "%s.scale", name);
    GMEM__TRY(gmem__bank_need(part->file, name, 2, -1, -1, &tensor, error));
    part->kind = GMEM_BANK_FULL;
    part->rows_tensor = tensor;
    part->rows = tensor->shape[0];
    *width = tensor->shape[1];
    if (tensor->type != GMEM_I8 || (strcmp(name, "features") != 0 && !gmem_file_find_any(part->file, scale)))
        return gmem__bank_need_float(tensor, name, error);
    GMEM__TRY(gmem__bank_need(part->file, scale, 1, part->rows, 0, &part->scale, error));
    return gmem__bank_need_float(part->scale, scale, error);
}

static gmem_status gmem__bank_check_number(const gmem_file *file, const char *name, int64_t expected,
                                           gmem_error *error) {
    double number = 0;
    if (!gmem_file_number(file, name, &number) || number == (double)expected) return GMEM_OK;
    gmem__quoted found;
    return gmem__fail(error, GMEM_E_SHAPE, "\"%s\" is %s, but the tensors have %lld", name,
                      gmem__format_double(&found, number), (long long)expected);
}

static gmem_status gmem__bank_copy_factors(const gmem_context *context, gmem__bank_factors *factors,
                                           const gmem_tensor *m, const gmem_tensor *s, const gmem_tensor *mean,
                                           gmem_error *error) {
    int64_t width = m->shape[0], rank = m->shape[1], count = 0;
    if (!gmem__mul(rank, width, &count) || !gmem__add(count, rank + width, &count))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the size of \"M\" overflows");
    factors->rank = rank;
    factors->count = count;
    factors->memory = (float *)gmem__alloc_raw(context, count, sizeof(float));
    if (!factors->memory) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a decomposed bank");
    factors->m = factors->memory;
    factors->s = factors->m + rank * width;
    factors->mean = factors->s + rank;
    gmem_tensor transposed = *m;
    transposed.shape[0] = rank;
    transposed.shape[1] = width;
    transposed.stride[0] = m->stride[1];
    transposed.stride[1] = m->stride[0];
    gmem_tensor_read_f32(&transposed, 0, rank * width, factors->m);
    gmem_tensor_read_f32(s, 0, rank, factors->s);
    gmem_tensor_read_f32(mean, 0, width, factors->mean);
    return GMEM_OK;
}

/* `C` (rows, rank), `M` (width, rank), `S` (rank), `mean` (width); the scalars `latent_dim` and `feature_dim`. */
static gmem_status gmem__bank_take_factors(const gmem_context *context, gmem__bank_part *part, int64_t *width,
                                           gmem_error *error) {
    const gmem_tensor *c = NULL, *m = NULL, *s = NULL, *mean = NULL;
    GMEM__TRY(gmem__bank_need(part->file, "C", 2, -1, -1, &c, error));
    int64_t rank = c->shape[1];
    GMEM__TRY(gmem__bank_need(part->file, "M", 2, -1, rank, &m, error));
    GMEM__TRY(gmem__bank_need(part->file, "S", 1, rank, 0, &s, error));
    *width = m->shape[0];
    mean = gmem_file_find_any(part->file, "mean");
    if (!mean || mean->rank != 2 || mean->shape[0] != 1 || mean->shape[1] != *width) /* (1, width) is fine too */
        GMEM__TRY(gmem__bank_need(part->file, "mean", 1, *width, 0, &mean, error));
    GMEM__TRY(gmem__bank_need_float(c, "C", error));
    GMEM__TRY(gmem__bank_need_float(m, "M", error));
    GMEM__TRY(gmem__bank_need_float(s, "S", error));
    GMEM__TRY(gmem__bank_need_float(mean, "mean", error));
    GMEM__TRY(gmem__bank_check_number(part->file, "latent_dim", rank, error));
    GMEM__TRY(gmem__bank_check_number(part->file, "feature_dim", *width, error));
    part->kind = GMEM_BANK_DECOMPOSED;
    part->rows_tensor = c;
    part->rows = c->shape[0];
    return gmem__bank_copy_factors(context, &part->factors, m, s, mean, error);
}

static gmem_status gmem__bank_take(const gmem_context *context, gmem__bank_part *part, int64_t *width,
                                   gmem_error *error) {
    static const char *const full[] = {"features", "memorybank", "tensor"};
    static const char *const factors[] = {"C", "M", "S", "mean"};
    for (int i = 0; i < 3; i++) {
        if (gmem_file_find_any(part->file, full[i])) return gmem__bank_take_rows(part, full[i], width, error);
    }
    for (int i = 0; i < 4; i++) {
        if (gmem_file_find_any(part->file, factors[i])) return gmem__bank_take_factors(context, part, width, error);
    }
    return gmem__fail(
        error, GMEM_E_MISSING_TENSOR,
        "no bank: expected one bare tensor, \"features\", \"memorybank\", or \"C\", \"M\", \"S\", \"mean\"");
}

/* opening --------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__bank_add_part(gmem_bank *bank, gmem__bank_part *part, gmem_error *error) {
    int64_t width = 0;
    GMEM__TRY(gmem__bank_take(bank->context, part, &width, error));
    if (bank->width == 0) bank->width = width;
    if (width != bank->width)
        return gmem__fail(error, GMEM_E_WIDTH, "rows of %lld elements, but the first file's have %lld",
                          (long long)width, (long long)bank->width);
    part->first = bank->rows;
    if (!gmem__add(bank->rows, part->rows, &bank->rows))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the number of rows overflows");
    return GMEM_OK;
}

static gmem_status gmem__bank_load(gmem_context *context, gmem_bank *bank, const gmem_bank_desc *desc,
                                   gmem_error *error) {
    for (int64_t i = 0; i < bank->part_count; i++) {
        gmem__bank_part *part = bank->parts + i;
        part->file = desc->file;
        if (!desc->file) {
            if (!desc->paths[i]) return gmem__fail(error, GMEM_E_ARGUMENT, "a bank's path is missing");
            GMEM__TRY(gmem_file_open(context, desc->paths[i], ".", &part->file, error));
            part->file_owned = 1;
        }
        gmem_status status = gmem__bank_add_part(bank, part, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
    }
    return gmem__bank_read_names(bank, desc, error);
}

GMEM_API gmem_status gmem_bank_open(gmem_context *context, const gmem_bank_desc *desc, gmem_bank **out,
                                    gmem_error *error) {
    if (!context || !desc || !out || (!desc->file && (!desc->paths || desc->path_count < 1)))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_bank_open needs a context, files and an output");
    gmem_bank *bank = (gmem_bank *)gmem__alloc(context, 1, sizeof *bank);
    if (!bank) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank");
    bank->context = context;
    bank->part_count = desc->file ? 1 : desc->path_count;
    bank->parts = (gmem__bank_part *)gmem__alloc(context, bank->part_count, sizeof *bank->parts);
    gmem_status status = bank->parts ? gmem__bank_load(context, bank, desc, error)
                                     : gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank");
    if (status != GMEM_OK) {
        gmem_bank_close(bank);
        return status;
    }
    gmem__log(context, "bank: %lld rows of width %lld in %d files", (long long)gmem_bank_rows(bank),
              (long long)gmem_bank_width(bank), gmem_bank_file_count(bank));
    *out = bank;
    return GMEM_OK;
}

GMEM_API void gmem_bank_close(gmem_bank *bank) {
    if (!bank) return;
    const gmem_context *context = bank->context;
    for (int64_t i = 0; bank->parts && i < bank->part_count; i++) {
        gmem__bank_part *part = bank->parts + i;
        gmem__free(context, part->factors.memory, part->factors.count, sizeof(float));
        if (part->file_owned) gmem_file_close(part->file);
    }
    gmem__bank_free_names(bank);
    gmem__free(context, bank->parts, bank->part_count, sizeof *bank->parts);
    gmem__free(context, bank, 1, sizeof *bank);
}

GMEM_API int64_t gmem_bank_rows(const gmem_bank *bank) { return bank->rows; }
GMEM_API int64_t gmem_bank_width(const gmem_bank *bank) { return bank->width; }
GMEM_API gmem_type gmem_bank_type(const gmem_bank *bank) { return bank->parts[0].rows_tensor->type; }
GMEM_API gmem_bank_kind gmem_bank_get_kind(const gmem_bank *bank) { return bank->parts[0].kind; }
GMEM_API int gmem_bank_file_count(const gmem_bank *bank) { return (int)bank->part_count; }

GMEM_API const char *gmem_bank_file_path(const gmem_bank *bank, int index) {
    return index >= 0 && index < bank->part_count ? gmem_file_path(bank->parts[index].file) : NULL;
}

GMEM_API int64_t gmem_bank_file_rows(const gmem_bank *bank, int index) {
    return index >= 0 && index < bank->part_count ? bank->parts[index].rows : 0;
}

/* rows ------------------------------------------------------------------------------------------------------------ */

/* out (width) += scale * x (width) */
static void gmem__bank_accumulate(float *out, const float *x, float scale, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        out[i] += scale * x[i];
    }
}

/* C's row (rank) times M^T, plus the mean. */
static void gmem__bank_compose(const gmem__bank_part *part, int64_t row, int64_t width, float *out) {
    const gmem__bank_factors *factors = &part->factors;
    float c[64];
    memcpy(out, factors->mean, (size_t)width * sizeof(float));
    for (int64_t first = 0; first < factors->rank; first += 64) {
        int64_t count = gmem__min(64, factors->rank - first);
        gmem_tensor_read_f32(part->rows_tensor, row * factors->rank + first, count, c);
        for (int64_t k = 0; k < count; k++) {
            gmem__bank_accumulate(out, factors->m + (first + k) * width, c[k], width);
        }
    }
}

GMEM_API gmem_status gmem_bank_row(const gmem_bank *bank, int64_t row, float *out, gmem_error *error) {
    if (row < 0 || row >= bank->rows)
        return gmem__fail(error, GMEM_E_ROW, "row %lld of a bank of %lld", (long long)row, (long long)bank->rows);
    const gmem__bank_part *part = bank->parts;
    while (row >= part->first + part->rows) {
        part++;
    }
    row -= part->first;
    if (part->kind == GMEM_BANK_DECOMPOSED) {
        gmem__bank_compose(part, row, bank->width, out);
        return GMEM_OK;
    }
    gmem_tensor_read_f32(part->rows_tensor, row * bank->width, bank->width, out);
    if (!part->scale) return GMEM_OK;
    float scale = 0;
    gmem_tensor_read_f32(part->scale, row, 1, &scale);
    for (int64_t i = 0; i < bank->width; i++) {
        out[i] *= scale;
    }
    return GMEM_OK;
}

/* Room for `rows` rows, freed with the same number. */
static gmem_status gmem__bank_scratch(const gmem_bank *bank, int64_t rows, float **out, gmem_error *error) {
    *out = (float *)gmem__alloc_raw(bank->context, rows * bank->width, sizeof(float));
    return *out ? GMEM_OK : gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank row");
}

static void gmem__bank_scratch_free(const gmem_bank *bank, int64_t rows, float *scratch) {
    gmem__free(bank->context, scratch, rows * bank->width, sizeof(float));
}

GMEM_API gmem_status gmem_bank_snippet(const gmem_bank *bank, int64_t row, float *out, gmem_error *error) {
    float *scratch = NULL;
    GMEM__TRY(gmem__bank_scratch(bank, 1, &scratch, error));
    gmem_status status = gmem_bank_row(bank, row, scratch, error);
    if (status == GMEM_OK && gmem_normalize(scratch, bank->width, NULL) != GMEM_OK)
        status = gmem__fail(error, GMEM_E_ROW_ZERO, "row %lld is zero or not finite", (long long)row);
    if (status == GMEM_OK) memcpy(out, scratch, (size_t)bank->width * sizeof(float));
    gmem__bank_scratch_free(bank, 1, scratch);
    return status;
}

/* Coefficient k of a centred vector, (x - mean) M / S. A direction that the bank lacks has S 0 and takes none. */
static double gmem__bank_coefficient(const gmem__bank_factors *factors, int64_t k, const float *x, int64_t width) {
    const float *m = factors->m + k * width;
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += ((double)x[i] - (double)factors->mean[i]) * (double)m[i];
    }
    return factors->s[k] > 0 ? sum / (double)factors->s[k] : 0;
}

GMEM_API gmem_status gmem_bank_project(const gmem_bank *bank, const float *snippet, float *out, gmem_error *error) {
    const gmem__bank_factors *factors = &bank->parts[0].factors;
    float *scratch = NULL;
    if (gmem_bank_get_kind(bank) != GMEM_BANK_DECOMPOSED)
        return gmem__fail(error, GMEM_E_COMBINATION, "only a decomposed bank projects");
    GMEM__TRY(gmem__bank_scratch(bank, 1, &scratch, error));
    memcpy(scratch, factors->mean, (size_t)bank->width * sizeof(float));
    for (int64_t k = 0; k < factors->rank; k++) {
        float c = (float)gmem__bank_coefficient(factors, k, snippet, bank->width);
        gmem__bank_accumulate(scratch, factors->m + k * bank->width, c, bank->width);
    }
    memcpy(out, scratch, (size_t)bank->width * sizeof(float));
    gmem__bank_scratch_free(bank, 1, scratch);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_bank_interpolate(const gmem_bank *bank, int64_t a, int64_t b, double alpha, float *out,
                                           gmem_error *error) {
    float *scratch = NULL;
    if (!(alpha - alpha == 0)) return gmem__fail(error, GMEM_E_ARGUMENT, "the mixing weight is not finite");
    GMEM__TRY(gmem__bank_scratch(bank, 2, &scratch, error));
    float *row_b = scratch + bank->width;
    gmem_status status = gmem_bank_row(bank, a, scratch, error);
    if (status == GMEM_OK) status = gmem_bank_row(bank, b, row_b, error);
    for (int64_t i = 0; status == GMEM_OK && i < bank->width; i++) {
        out[i] = (float)(alpha * (double)scratch[i] + (1 - alpha) * (double)row_b[i]);
    }
    gmem__bank_scratch_free(bank, 2, scratch);
    return status;
}
/* ---- src/bank_names.c ---- */
/* The names of a bank's rows: from a text file or from the bank's own files, finding, and offering the nearest. */

#include <stdio.h>

/* collecting ------------------------------------------------------------------------------------------------------ */

static gmem_status gmem__names_alloc(gmem_bank *bank, int64_t text_bytes, gmem_error *error) {
    gmem__bank_names *names = &bank->names;
    names->text_bytes = text_bytes;
    names->text = (char *)gmem__alloc_raw(bank->context, text_bytes, 1);
    names->start = (int64_t *)gmem__alloc(bank->context, bank->rows + 1, sizeof *names->start);
    if (names->text && names->start) return GMEM_OK;
    return gmem__fail(error, GMEM_E_MEMORY, "no memory for the names of %lld rows", (long long)bank->rows);
}

GMEM__FN void gmem__bank_free_names(gmem_bank *bank) {
    gmem__free(bank->context, bank->names.text, bank->names.text_bytes, 1);
    gmem__free(bank->context, bank->names.start, bank->rows + 1, sizeof *bank->names.start);
}

/* Appends the name of `row`; the rows come in order. An empty name counts as none. */
static gmem_status gmem__bank_names_add(gmem_bank *bank, int64_t row, const char *name, int64_t bytes,
                                        gmem_error *error) {
    gmem__bank_names *names = &bank->names;
    int64_t at = names->start[row];
    names->start[row + 1] = at + (bytes > 0 ? bytes + 1 : 0);
    if (bytes == 0) return GMEM_OK;
    if (memchr(name, 0, (size_t)bytes) || gmem__utf8_error(name, bytes) >= 0)
        return gmem__fail(error, GMEM_E_NAMES, "the name of row %lld is not UTF-8 text", (long long)row);
    memcpy(names->text + at, name, (size_t)bytes);
    names->text[at + bytes] = 0;
    return GMEM_OK;
}

/* names in a text, one a line -------------------------------------------------------------------------------------- */

/* The line at `*at` without its end, LF or CRLF; `*at` moves past it. */
static int64_t gmem__bank_names_line(const char *text, int64_t size, int64_t *at) {
    const char *line = text + *at, *end = (const char *)memchr(line, '\n', (size_t)(size - *at));
    int64_t length = end ? end - line : size - *at;
    *at += end ? length + 1 : length;
    return end && length > 0 && line[length - 1] == '\r' ? length - 1 : length;
}

static gmem_status gmem__names_from_text(gmem_bank *bank, const char *text, int64_t size, gmem_error *error) {
    int64_t at = 0, lines = 0;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark, which some editors write */
        text += 3;
        size -= 3;
    }
    while (at < size) {
        gmem__bank_names_line(text, size, &at);
        lines++;
    }
    if (lines != bank->rows)
        return gmem__fail(error, GMEM_E_NAMES, "%lld names for %lld rows", (long long)lines, (long long)bank->rows);
    GMEM__TRY(gmem__names_alloc(bank, size + 1, error)); /* a line's end makes room for its NUL, but the last's */
    at = 0;
    for (int64_t row = 0; row < bank->rows; row++) {
        const char *line = text + at;
        GMEM__TRY(gmem__bank_names_add(bank, row, line, gmem__bank_names_line(text, size, &at), error));
    }
    return GMEM_OK;
}

static gmem_status gmem__names_from_path(gmem_bank *bank, const char *path, gmem_error *error) {
    gmem__bytes bytes;
    memset(&bytes, 0, sizeof bytes);
    GMEM__TRY(gmem__bytes_open(bank->context, path, &bytes, error));
    gmem_status status = gmem__names_from_text(bank, (const char *)bytes.data, bytes.size, error);
    gmem__bytes_close(bank->context, &bytes);
    return gmem__fail_in(error, status, path);
}

/* names in the bank's files --------------------------------------------------------------------------------------- */

/* `names` (U8, all names in one run) and `names.offsets` (I64, rows + 1) of a file; NULL where it has none. */
typedef struct gmem__bank_names_tensors {
    const gmem_tensor *run, *offsets;
} gmem__bank_names_tensors;

static gmem_status gmem__bank_names_find(const gmem__bank_part *part, gmem__bank_names_tensors *out,
                                         gmem_error *error) {
    gmem__bank_names_tensors found;
    found.run = gmem_file_find_any(part->file, "names");
    found.offsets = gmem_file_find_any(part->file, "names.offsets");
    if (!found.run && !found.offsets) return GMEM_OK;
    if (!found.run || !found.offsets)
        return gmem__fail(error, GMEM_E_NAMES, "\"names\" and \"names.offsets\" belong together");
    if (found.run->rank != 1 || found.run->type != GMEM_U8 || !gmem__tensor_is_contiguous(found.run))
        return gmem__fail(error, GMEM_E_NAMES, "\"names\" is not one run of U8");
    if (found.offsets->rank != 1 || found.offsets->type != GMEM_I64 || found.offsets->shape[0] != part->rows + 1)
        return gmem__fail(error, GMEM_E_NAMES, "\"names.offsets\" is not I64 of %lld + 1 elements",
                          (long long)part->rows);
    *out = found;
    return GMEM_OK;
}

static gmem_status gmem__names_from_part(gmem_bank *bank, const gmem__bank_part *part,
                                         const gmem__bank_names_tensors *tensors, gmem_error *error) {
    int64_t block[257], size = tensors->run->shape[0];
    for (int64_t row = 0; row < part->rows; row++) {
        int64_t *offset = block + row % 256;
        if (row % 256 == 0) gmem_tensor_read_i64(tensors->offsets, row, gmem__min(257, part->rows + 1 - row), block);
        if (offset[0] < 0 || offset[1] < offset[0] || offset[1] > size || (row == 0 && offset[0] != 0) ||
            (row == part->rows - 1 && offset[1] != size))
            return gmem__fail(error, GMEM_E_NAMES, "\"names.offsets\" is wrong at row %lld", (long long)row);
        GMEM__TRY(gmem__bank_names_add(bank, part->first + row, (const char *)tensors->run->data + offset[0],
                                       offset[1] - offset[0], error));
    }
    return GMEM_OK;
}

/* Rows of a file without names have none, where other files have. */
static gmem_status gmem__names_from_parts(gmem_bank *bank, gmem_error *error) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < bank->part_count; i++) {
        const gmem__bank_part *part = bank->parts + i;
        gmem__bank_names_tensors tensors = {NULL, NULL};
        gmem_status status = gmem__bank_names_find(part, &tensors, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
        if (!tensors.run) continue;
        if (!gmem__add(bytes, tensors.run->shape[0], &bytes) || !gmem__add(bytes, part->rows, &bytes))
            return gmem__fail(error, GMEM_E_OVERFLOW, "the size of the names overflows");
    }
    if (bytes == 0) return GMEM_OK;
    GMEM__TRY(gmem__names_alloc(bank, bytes, error));
    for (int64_t i = 0; i < bank->part_count; i++) {
        const gmem__bank_part *part = bank->parts + i;
        gmem__bank_names_tensors tensors = {NULL, NULL};
        gmem_status status = gmem__bank_names_find(part, &tensors, error);
        if (status == GMEM_OK && tensors.run) status = gmem__names_from_part(bank, part, &tensors, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
        for (int64_t row = part->first; !tensors.run && row < part->first + part->rows; row++) {
            bank->names.start[row + 1] = bank->names.start[row];
        }
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__bank_read_names(gmem_bank *bank, const gmem_bank_desc *desc, gmem_error *error) {
    if (desc->names_path) return gmem__names_from_path(bank, desc->names_path, error);
    if (desc->names_text)
        return gmem__names_from_text(bank, desc->names_text, (int64_t)strlen(desc->names_text), error);
    return gmem__names_from_parts(bank, error);
}

/* finding --------------------------------------------------------------------------------------------------------- */

static int64_t gmem__name_length(const gmem_bank *bank, int64_t row) {
    return gmem__max(0, bank->names.start[row + 1] - bank->names.start[row] - 1);
}

GMEM_API const char *gmem_bank_name(const gmem_bank *bank, int64_t row) {
    if (!bank->names.start || row < 0 || row >= bank->rows || gmem__name_length(bank, row) == 0) return NULL;
    return bank->names.text + bank->names.start[row];
}

static char gmem__fold(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

static int gmem__same_name(const char *a, const char *b, int64_t length) {
    for (int64_t i = 0; i < length; i++) {
        if (gmem__fold(a[i]) != gmem__fold(b[i])) return 0;
    }
    return 1;
}

static int gmem__contains_name(const char *name, int64_t length, const char *part, int64_t part_length) {
    for (int64_t i = 0; i + part_length <= length; i++) {
        if (gmem__same_name(name + i, part, part_length)) return 1;
    }
    return 0;
}

#define GMEM__NAME_COMPARED 64 /* bytes of a name that the edit distance looks at */

/* Levenshtein's distance, case ignored. */
static int64_t gmem__edit_distance(const char *a, int64_t a_length, const char *b, int64_t b_length) {
    int64_t row[GMEM__NAME_COMPARED + 1];
    a_length = gmem__min(a_length, GMEM__NAME_COMPARED);
    b_length = gmem__min(b_length, GMEM__NAME_COMPARED);
    for (int64_t j = 0; j <= b_length; j++) {
        row[j] = j;
    }
    for (int64_t i = 1; i <= a_length; i++) {
        int64_t diagonal = row[0];
        row[0] = i;
        for (int64_t j = 1; j <= b_length; j++) {
            int64_t change = diagonal + (gmem__fold(a[i - 1]) != gmem__fold(b[j - 1]));
            diagonal = row[j];
            row[j] = gmem__min(change, 1 + gmem__min(row[j], row[j - 1]));
        }
    }
    return row[b_length];
}

/* How far a name is from what was asked for, at most `bar` being of interest. A name that contains the query counts
 * as one edit; of equal ones the shorter is nearer. */
static int64_t gmem__name_distance(const char *name, int64_t length, const char *query, int64_t query_length,
                                   int64_t bar) {
    int64_t difference = length > query_length ? length - query_length : query_length - length;
    int64_t least = gmem__min(difference, 255);
    if (query_length > 0 && gmem__contains_name(name, length, query, query_length)) return 256 + least;
    if (least * 256 > bar) return INT64_MAX;
    return 256 * gmem__edit_distance(name, length, query, query_length) + least;
}

#define GMEM__NEAREST 3

typedef struct gmem__nearest {
    int64_t row[GMEM__NEAREST], distance[GMEM__NEAREST];
    int count;
} gmem__nearest;

static int gmem__nearest_has(const gmem_bank *bank, const gmem__nearest *nearest, int64_t row) {
    int64_t length = gmem__name_length(bank, row);
    for (int i = 0; i < nearest->count; i++) {
        if (gmem__name_length(bank, nearest->row[i]) == length &&
            gmem__same_name(gmem_bank_name(bank, nearest->row[i]), gmem_bank_name(bank, row), length))
            return 1;
    }
    return 0;
}

static void gmem__nearest_add(gmem__nearest *nearest, int64_t row, int64_t distance) {
    int at = nearest->count < GMEM__NEAREST ? nearest->count++ : GMEM__NEAREST - 1;
    for (; at > 0 && nearest->distance[at - 1] > distance; at--) {
        nearest->row[at] = nearest->row[at - 1];
        nearest->distance[at] = nearest->distance[at - 1];
    }
    nearest->row[at] = row;
    nearest->distance[at] = distance;
}

static gmem__nearest gmem__nearest_names(const gmem_bank *bank, const char *query, int64_t query_length) {
    gmem__nearest nearest;
    memset(&nearest, 0, sizeof nearest);
    for (int64_t row = 0; row < bank->rows; row++) {
        const char *name = gmem_bank_name(bank, row);
        int64_t bar = nearest.count < GMEM__NEAREST ? INT64_MAX - 1 : nearest.distance[GMEM__NEAREST - 1] - 1;
        if (!name) continue;
        int64_t distance = gmem__name_distance(name, gmem__name_length(bank, row), query, query_length, bar);
        if (distance <= bar && !gmem__nearest_has(bank, &nearest, row)) gmem__nearest_add(&nearest, row, distance);
    }
    return nearest;
}

static gmem_status gmem__name_unknown(const gmem_bank *bank, const char *query, gmem_error *error) {
    char asked[96], offered[GMEM__NEAREST][96];
    gmem_escape(query, asked, sizeof asked);
    if (!error) return GMEM_E_NAME_UNKNOWN; /* nobody reads what the search below would find */
    gmem__nearest nearest;
    memset(&nearest, 0, sizeof nearest);
    if (bank->names.start) nearest = gmem__nearest_names(bank, query, (int64_t)strlen(query));
    if (nearest.count == 0)
        return gmem__fail(error, GMEM_E_NAME_UNKNOWN, "no name \"%s\": the bank has no names", asked);
    for (int i = 0; i < GMEM__NEAREST; i++) {
        char name[80];
        offered[i][0] = 0;
        if (i >= nearest.count) continue;
        gmem_escape(gmem_bank_name(bank, nearest.row[i]), name, sizeof name);
        snprintf(offered[i], sizeof offered[i], "%s\"%s\"", i ? ", " : "", name);
    }
    return gmem__fail(error, GMEM_E_NAME_UNKNOWN, "no name \"%s\" in the bank; nearest: %s%s%s", asked, offered[0],
                      offered[1], offered[2]);
}

/* A scan: names have their lengths at hand, so that a bank of a million rows takes milliseconds and no index. */
GMEM_API gmem_status gmem_bank_find(const gmem_bank *bank, const char *name, int64_t *row, gmem_error *error) {
    if (!bank || !name || !row) return gmem__fail(error, GMEM_E_ARGUMENT, "finding a row needs a bank and a name");
    int64_t length = (int64_t)strlen(name);
    for (int64_t i = 0; bank->names.start && length > 0 && i < bank->rows; i++) {
        if (gmem__name_length(bank, i) == length && gmem__same_name(gmem_bank_name(bank, i), name, length)) {
            *row = i;
            return GMEM_OK;
        }
    }
    return gmem__name_unknown(bank, name, error);
}
/* ---- src/mix.c ---- */
/* Vectors of the bank: normalising, mixing two, and the choice of a row from the start noise.
 * The four ways to mix are those of GMem's script for images. */

#include <math.h>

/* a * wa + b * wb, or each element from one of them. */
typedef struct gmem__mixture {
    const float *a, *b; /* (width) */
    double wa, wb;
    int64_t half;       /* CONCAT: elements below come from a, the others from b */
    const float *draws; /* MASK: (width) uniform; those below `wb` take b; may be the output */
    gmem_mix_method method;
} gmem__mixture;

static double gmem__mixed(const gmem__mixture *mixture, int64_t i) {
    double a = (double)mixture->a[i], b = (double)mixture->b[i];
    if (mixture->method == GMEM_MIX_CONCAT) return i < mixture->half ? a : b;
    if (mixture->method == GMEM_MIX_MASK) return (double)mixture->draws[i] < mixture->wb ? b : a;
    return mixture->wa * a + mixture->wb * b;
}

static int gmem__norm_is_usable(double norm) { return norm > 0 && norm - norm == 0; }

/* |x|, not usable where an element is not finite. Elements of f32 cannot make the sum overflow in double. */
static double gmem__vector_norm(const float *x, int64_t width) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

GMEM_API gmem_status gmem_normalize(float *x, int64_t width, gmem_error *error) {
    double norm = gmem__vector_norm(x, width);
    if (!gmem__norm_is_usable(norm)) return gmem__fail(error, GMEM_E_ROW_ZERO, "a vector is zero or not finite");
    for (int64_t i = 0; i < width; i++) {
        x[i] = (float)((double)x[i] / norm);
    }
    return GMEM_OK;
}

/* The angle between two directions, exact near 0 and pi where acos of the product is not:
 * 2 atan2(|a - b|, |a + b|) of the unit vectors (Kahan). */
static double gmem__angle(const float *a, double norm_a, const float *b, double norm_b, int64_t width) {
    double difference = 0, sum = 0;
    for (int64_t i = 0; i < width; i++) {
        double x = (double)a[i] / norm_a, y = (double)b[i] / norm_b;
        difference += (x - y) * (x - y);
        sum += (x + y) * (x + y);
    }
    return 2 * atan2(sqrt(difference), sqrt(sum));
}

/* Weights on the arc from a to b, sin((1 - alpha) w) / sin w and sin(alpha w) / sin w. Equal directions make it the
 * linear mixture; opposite ones have no shortest arc, which is refused between the ends. */
static gmem_status gmem__mix_weights(gmem__mixture *mixture, int64_t width, double alpha, gmem_error *error) {
    double norm_a = gmem__vector_norm(mixture->a, width), norm_b = gmem__vector_norm(mixture->b, width);
    mixture->wa = 1 - alpha;
    mixture->wb = alpha;
    if (!gmem__norm_is_usable(norm_a) || !gmem__norm_is_usable(norm_b))
        return gmem__fail(error, GMEM_E_ROW_ZERO, "a vector to mix is zero or not finite");
    if (mixture->method != GMEM_MIX_SPHERICAL || alpha <= 0 || alpha >= 1) return GMEM_OK;
    double angle = gmem__angle(mixture->a, norm_a, mixture->b, norm_b, width);
    if (sin(angle) >= 1e-6) {
        mixture->wa = sin((1 - alpha) * angle) / sin(angle);
        mixture->wb = sin(alpha * angle) / sin(angle);
    } else if (angle > 1) {
        return gmem__fail(error, GMEM_E_ROW_ZERO, "opposite vectors have no shortest arc between them");
    }
    return GMEM_OK;
}

#define GMEM__MIX_LEAST 1e-12 /* norm of a mixture that has not vanished */

/* A masked mixture surely does not vanish where one element alone suffices in both: told before `out` is drawn into. */
static int gmem__share_an_element(const float *a, const float *b, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        if (fabs((double)a[i]) > GMEM__MIX_LEAST && fabs((double)b[i]) > GMEM__MIX_LEAST) return 1;
    }
    return 0;
}

static gmem_status gmem__mix_draw(gmem__mixture *mixture, int64_t width, gmem_rng *rng, int64_t picture, float *out,
                                  gmem_error *error) {
    if (!rng || out == mixture->a || out == mixture->b)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a mask needs a generator and an output of its own");
    if (!gmem__share_an_element(mixture->a, mixture->b, width))
        return gmem__fail(error, GMEM_E_ROW_ZERO, "no element is nonzero in both vectors: a mask may leave none");
    gmem_rng_uniform(rng, GMEM_DRAW_MIX, picture, 1, width, out);
    mixture->draws = out;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_mix(gmem_mix_method method, const float *a, const float *b, int64_t width, double alpha,
                              gmem_rng *rng, int64_t picture, float *out, gmem_error *error) {
    if (!a || !b || !out || width < 1 || !(alpha >= 0 && alpha <= 1) || (int)method < 0 || method > GMEM_MIX_MASK)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_mix needs two vectors and alpha from 0 to 1");
    gmem__mixture mixture = {a, b, 0, 0, width / 2, NULL, method};
    GMEM__TRY(gmem__mix_weights(&mixture, width, alpha, error));
    if (method == GMEM_MIX_MASK) GMEM__TRY(gmem__mix_draw(&mixture, width, rng, picture, out, error));
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += gmem__mixed(&mixture, i) * gmem__mixed(&mixture, i);
    }
    double norm = sqrt(sum);
    if (!(norm > GMEM__MIX_LEAST)) return gmem__fail(error, GMEM_E_ROW_ZERO, "the mixture of the two vectors vanishes");
    for (int64_t i = 0; i < width; i++) {
        out[i] = (float)(gmem__mixed(&mixture, i) / norm);
    }
    return GMEM_OK;
}

/* the first version's choice -------------------------------------------------------------------------------------- */

GMEM_API gmem_status gmem_choose_row(const int64_t *memoryfreq, int64_t rows, const float *z, int64_t count,
                                     int64_t *row, gmem_error *error) {
    double total = 0, sum = 0, below = 0;
    if (!memoryfreq || !z || !row || rows < 1 || count < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_choose_row needs frequencies and noise");
    for (int64_t i = 0; i < rows; i++) {
        if (memoryfreq[i] < 0)
            return gmem__fail(error, GMEM_E_ARGUMENT, "the frequency of row %lld is negative", (long long)i);
        total += (double)memoryfreq[i];
    }
    for (int64_t i = 0; i < count; i++) {
        sum += (double)z[i];
    }
    if (!(total > 0) || !(sum - sum == 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "no frequency is positive, or the noise is not finite");
    /* the mean of count standard normal values times sqrt(count) is standard normal, so u is uniform */
    double u = 0.5 * erfc(-(sum / sqrt((double)count)) / sqrt(2.0));
    int64_t chosen = 0, last = 0;
    for (int64_t i = 0; i < rows; i++) {
        below += (double)memoryfreq[i];
        if (below / total <= u) chosen = i + 1;
        if (memoryfreq[i] > 0) last = i;
    }
    *row = gmem__min(chosen, last); /* u rounds to 1 beyond 8 sigma */
    return GMEM_OK;
}

#undef GMEM__MIX_LEAST

/* ... and the samplers, to the picture. */
/* ---- src/random.c ---- */
/* Noise: Philox by picture (the default), and PyTorch's CPU and CUDA generators reproduced. */
/* ---- src/random.h ---- */
/* What random.c offers beyond the public API. */
#ifndef GMEM__RANDOM_H
#define GMEM__RANDOM_H


/* One block of Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
GMEM__FN void gmem__philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Where and in which type the published samplers draw the noise of a step. Philox makes no difference. */
typedef enum gmem__draw_kind {
    GMEM__DRAW_HOST,      /* f32, on the CPU even where the start noise is the device's: the transport package */
    GMEM__DRAW_DEVICE_F64 /* f64 rounded to f32, on the device: REPA */
} gmem__draw_kind;

/* gmem_rng_normal for GMEM_DRAW_STEP. */
GMEM__FN void gmem__rng_step_normal(gmem_rng *rng, gmem__draw_kind kind, int64_t index, int64_t picture, int64_t count,
                                    int64_t per_picture, float *out);

#endif /* GMEM__RANDOM_H */

#include <math.h>

#define GMEM__TWO_PI    6.283185307179586476925286766559
#define GMEM__2_POW_M24 (1.0 / 16777216)
#define GMEM__2_POW_M32 (1.0 / 4294967296)
#define GMEM__2_POW_M53 (1.0 / 9007199254740992)

/* Philox4x32-10 -------------------------------------------------------------------------------------------------- */

GMEM__FN void gmem__philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Philox by picture ----------------------------------------------------------------------------------------------- */

/* The key is the seed; the counter is (block, index, picture, picture's high bits and the purpose), so a value depends
 * on the seed, the picture, the purpose and its place alone. */

static void gmem__picture_block(const gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t block,
                                uint32_t out[4]) {
    const uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
    const uint64_t p = (uint64_t)picture;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)index, (uint32_t)p,
                                 ((uint32_t)(p >> 32) & 0xffffffu) | (uint32_t)draw << 24};
    gmem__philox(key, counter, out);
}

/* Box-Muller in double, rounded once: the same floats from every libm that is accurate to a few units. */
static void gmem__box_muller(uint32_t a, uint32_t b, double out[2]) {
    double radius = sqrt(-2.0 * log(((double)a + 0.5) * GMEM__2_POW_M32));
    double angle = GMEM__TWO_PI * (((double)b + 0.5) * GMEM__2_POW_M32);
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

static void gmem__picture_normal(const gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t count,
                                 float *out) {
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t bits[4];
        double normal[4];
        gmem__picture_block(rng, draw, index, picture, i / 4, bits);
        gmem__box_muller(bits[0], bits[1], normal);
        gmem__box_muller(bits[2], bits[3], normal + 2);
        for (int64_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = (float)normal[j];
    }
}

static void gmem__picture_uniform(const gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t bits[4];
        gmem__picture_block(rng, draw, 0, picture, i / 4, bits);
        for (int64_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = (float)(bits[j] >> 8) * (float)GMEM__2_POW_M24;
    }
}

/* 64 bits modulo high: the bias is below high / 2^64. */
static int64_t gmem__picture_integer(const gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t high) {
    uint32_t bits[4];
    gmem__picture_block(rng, draw, 0, picture, 0, bits);
    return (int64_t)(((uint64_t)bits[0] << 32 | bits[1]) % (uint64_t)high);
}

/* PyTorch's CPU generator ----------------------------------------------------------------------------------------- */

/* MT19937 (Matsumoto and Nishimura, 1998); the distributions are those of ATen's DistributionTemplates.h. */

static void gmem__mt_seed(gmem_rng *rng, uint32_t seed) {
    rng->state[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        rng->state[i] = 1812433253u * (rng->state[i - 1] ^ rng->state[i - 1] >> 30) + i;
    rng->left = 1;
    rng->next = 0;
}

static void gmem__mt_refill(gmem_rng *rng) {
    uint32_t *s = rng->state;
    for (int i = 0; i < 624; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
        s[i] = s[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    rng->left = 624;
    rng->next = 0;
}

static uint32_t gmem__mt_next(gmem_rng *rng) {
    if (--rng->left == 0) gmem__mt_refill(rng);
    uint32_t y = rng->state[rng->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static uint64_t gmem__mt_next64(gmem_rng *rng) {
    uint64_t high = gmem__mt_next(rng);
    return high << 32 | gmem__mt_next(rng);
}

static float gmem__mt_uniform(gmem_rng *rng) {
    return (float)(gmem__mt_next(rng) & 0xffffffu) * (float)GMEM__2_POW_M24;
}

static double gmem__mt_uniform_double(gmem_rng *rng) {
    return (double)(gmem__mt_next64(rng) & 0x1fffffffffffffu) * GMEM__2_POW_M53;
}

/* Fewer than 16 values are made one by one in double, the second of a pair kept for later. */
static double gmem__mt_normal(gmem_rng *rng) {
    if (rng->has_normal) {
        rng->has_normal = 0;
        return rng->normal;
    }
    double u1 = gmem__mt_uniform_double(rng), u2 = gmem__mt_uniform_double(rng);
    double radius = sqrt(-2.0 * log1p(-u2)), angle = GMEM__TWO_PI * u1;
    rng->normal = radius * sin(angle);
    rng->has_normal = 1;
    return radius * cos(angle);
}

/* log and sincos of the Cephes library in f32, with the multiply-adds fused that PyTorch's compiler fused. fmaf and
 * sqrtf are exact by definition, and no other product feeds a sum, so no compiler or flag can change a bit. */
static float gmem__cephes_log(float x) { /* 0 < x, normal */
    static const float p[] = {-1.1514610310E-1f, 1.1676998740E-1f, -1.2420140846E-1f, 1.4249322787E-1f,
                              -1.6668057665E-1f, 2.0000714765E-1f, -2.4999993993E-1f, 3.3333331174E-1f};
    int exponent;
    x = frexpf(x, &exponent);
    float e = (float)exponent;
    if (x < 0.707106781186547524f) {
        e -= 1.0f;
        x = (x - 1.0f) + x;
    } else {
        x -= 1.0f;
    }
    float square = x * x;
    float y = 7.0376836292E-2f;
    for (int i = 0; i < 8; i++)
        y = fmaf(y, x, p[i]);
    y *= x;
    y = fmaf(y, square, e * -2.12194440e-4f);
    y = fmaf(square, -0.5f, y);
    return fmaf(e, 0.693359375f, x + y);
}

static void gmem__cephes_sincos(float x, float *sine, float *cosine) { /* 0 <= x < 8192 */
    int octant = (int)(x * 1.27323954473516f);
    octant = (octant + 1) & ~1;
    float turns = (float)octant;
    x = fmaf(turns, -0.78515625f, x);
    x = fmaf(turns, -2.4187564849853515625e-4f, x);
    x = fmaf(turns, -3.77489497744594108e-8f, x);
    float square = x * x;
    float c = fmaf(2.443315711809948E-005f, square, -1.388731625493765E-003f);
    c = fmaf(c, square, 4.166664568298827E-002f);
    c *= square;
    c = fmaf(c, square, square * -0.5f) + 1.0f;
    float s = fmaf(-1.9515295891E-4f, square, 8.3321608736E-3f);
    s = fmaf(s, square, -1.6666654611E-1f);
    s *= square;
    s = fmaf(s, x, x);
    int swap = octant & 2;
    *sine = swap ? c : s;
    *cosine = swap ? s : c;
    if (octant & 4) *sine = -*sine;
    if (!((octant - 2) & 4)) *cosine = -*cosine;
}

/* Box-Muller on 16 uniform values in place: the first eight give radii, the last eight angles. */
static void gmem__mt_normal16(gmem_rng *rng, float *data) {
    for (int i = 0; i < 16; i++)
        data[i] = gmem__mt_uniform(rng);
    for (int i = 0; i < 8; i++) {
        float sine, cosine;
        float radius = sqrtf(-2.0f * gmem__cephes_log(1.0f - data[i]));
        gmem__cephes_sincos((float)GMEM__TWO_PI * data[i + 8], &sine, &cosine);
        data[i] = radius * cosine + 0.0f;
        data[i + 8] = radius * sine + 0.0f;
    }
}

static void gmem__mt_normal16_double(gmem_rng *rng, float *data) {
    double u[16];
    for (int i = 0; i < 16; i++)
        u[i] = gmem__mt_uniform_double(rng);
    for (int i = 0; i < 8; i++) {
        double radius = sqrt(-2.0 * log(1.0 - u[i])), angle = GMEM__TWO_PI * u[i + 8];
        data[i] = (float)(radius * cos(angle));
        data[i + 8] = (float)(radius * sin(angle));
    }
}

/* torch.randn(count), of f32 or f64: 16 at a time, the last 16 drawn again where count is no multiple of 16. The
 * uniform values of all blocks but the redrawn are consecutive, so blocks can be finished one by one. */
static void gmem__mt_normals(gmem_rng *rng, int is_double, int64_t count, float *out) {
    void (*normal16)(gmem_rng *, float *) = is_double ? gmem__mt_normal16_double : gmem__mt_normal16;
    if (count < 16) {
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)gmem__mt_normal(rng);
        return;
    }
    for (int64_t i = 0; i + 16 <= count; i += 16)
        normal16(rng, out + i);
    if (count % 16 == 0) return;
    for (int64_t i = 0; i < count % 16; i++) { /* uniform values that the redrawn block replaces */
        if (is_double)
            (void)gmem__mt_next64(rng);
        else
            (void)gmem__mt_next(rng);
    }
    normal16(rng, out + count - 16);
}

/* PyTorch's CUDA generator ---------------------------------------------------------------------------------------- */

/* cuRAND's Philox4_32_10: thread i of a launch reads the stream (seed, subsequence i) from the generator's offset. A
 * launch has blocks of 256 threads, as many as the values need or the device holds; a thread makes 4 values (2 of 64
 * bits) that lie a whole grid apart, and again until all are made (ATen's native/cuda/DistributionTemplates.h).
 * The device is taken to be an A100: 108 processors of 2048 threads. This matters from 221,185 values on. */

#define GMEM__CUDA_THREADS    256
#define GMEM__CUDA_MAX_BLOCKS (108 * 2048 / GMEM__CUDA_THREADS)

typedef enum gmem__cuda_kind {
    GMEM__CUDA_NORMAL,
    GMEM__CUDA_NORMAL_F64,
    GMEM__CUDA_UNIFORM,
    GMEM__CUDA_INTEGER,
    GMEM__CUDA_INTEGER64
} gmem__cuda_kind;

/* curand_normal4: the sine comes first. The device's fast sine and cosine differ from these by up to 2^-21. */
static float gmem__cuda_normal(const uint32_t bits[4], int64_t which) {
    const uint32_t *pair = bits + which / 2 * 2;
    const float to_unit = (float)GMEM__2_POW_M32, to_angle = 2.3283064e-10f * 6.2831855f;
    float u = fmaf((float)pair[0], to_unit, to_unit / 2);
    float angle = fmaf((float)pair[1], to_angle, to_angle / 2);
    double radius = sqrt(-2.0 * log((double)u));
    return (float)(radius * (which % 2 == 0 ? sin((double)angle) : cos((double)angle)));
}

/* curand_normal2_double: two words make 53 bits. */
static float gmem__cuda_normal_f64(const uint32_t bits[4], int64_t which) {
    uint64_t a = bits[0] ^ (uint64_t)bits[1] << 21, b = bits[2] ^ (uint64_t)bits[3] << 21;
    double radius = sqrt(-2.0 * log(((double)a + 0.5) * GMEM__2_POW_M53));
    double angle = GMEM__TWO_PI * (((double)b + 0.5) * GMEM__2_POW_M53);
    return (float)(radius * (which == 0 ? sin(angle) : cos(angle)));
}

/* curand_uniform gives (0, 1]; PyTorch turns 1 into 0. */
static float gmem__cuda_uniform(uint32_t bits) {
    float u = fmaf((float)bits, (float)GMEM__2_POW_M32, (float)GMEM__2_POW_M32 / 2);
    return u == 1.0f ? 0.0f : u;
}

static uint64_t gmem__cuda_integer(gmem__cuda_kind kind, const uint32_t bits[4], int64_t which) {
    if (kind == GMEM__CUDA_INTEGER) return bits[which];
    return (uint64_t)bits[2 * which] << 32 | bits[2 * which + 1];
}

/* One call of torch.randn, rand or randint: count values into `values`, or into `integers`, below `high`. */
static void gmem__cuda_draw(gmem_rng *rng, gmem__cuda_kind kind, int64_t count, float *values, int64_t *integers,
                            int64_t high) {
    if (count <= 0) return;
    const int64_t each = kind == GMEM__CUDA_NORMAL_F64 || kind == GMEM__CUDA_INTEGER64 ? 2 : 4;
    const int64_t threads =
        GMEM__CUDA_THREADS * gmem__min(gmem__ceil_div(count, GMEM__CUDA_THREADS), GMEM__CUDA_MAX_BLOCKS);
    const int64_t rounds = gmem__ceil_div(count, threads * each);
    const uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
    for (int64_t round = 0; round < rounds; round++) {
        const uint64_t place = rng->offset / 4 + (uint64_t)round;
        for (int64_t thread = 0; thread < threads; thread++) {
            const uint32_t counter[4] = {(uint32_t)place, (uint32_t)(place >> 32), (uint32_t)thread, 0};
            uint32_t bits[4];
            gmem__philox(key, counter, bits);
            for (int64_t k = 0; k < each; k++) {
                int64_t i = (round * each + k) * threads + thread;
                if (i >= count) break;
                switch (kind) {
                case GMEM__CUDA_NORMAL:
                    values[i] = gmem__cuda_normal(bits, k);
                    break;
                case GMEM__CUDA_NORMAL_F64:
                    values[i] = gmem__cuda_normal_f64(bits, k);
                    break;
                case GMEM__CUDA_UNIFORM:
                    values[i] = gmem__cuda_uniform(bits[k]);
                    break;
                case GMEM__CUDA_INTEGER:
                case GMEM__CUDA_INTEGER64:
                    integers[i] = (int64_t)(gmem__cuda_integer(kind, bits, k) % (uint64_t)high);
                    break;
                }
            }
        }
    }
    rng->offset += (uint64_t)rounds * 4;
}

/* The generators behind one face --------------------------------------------------------------------------------- */

GMEM_API void gmem_rng_init(gmem_rng *rng, gmem_rng_kind kind, uint64_t seed) {
    memset(rng, 0, sizeof *rng);
    rng->kind = kind;
    rng->seed = seed;
    gmem__mt_seed(rng, (uint32_t)seed); /* torch-cuda too: a process seeds both of its generators */
}

GMEM_API void gmem_rng_normal(gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t count,
                              int64_t per_picture, float *out) {
    switch (rng->kind) {
    case GMEM_RNG_TORCH_CPU:
        gmem__mt_normals(rng, 0, count * per_picture, out);
        return;
    case GMEM_RNG_TORCH_CUDA:
        gmem__cuda_draw(rng, GMEM__CUDA_NORMAL, count * per_picture, out, NULL, 0);
        return;
    case GMEM_RNG_PHILOX:
        break;
    }
    for (int64_t i = 0; i < count; i++)
        gmem__picture_normal(rng, draw, index, picture + i, per_picture, out + i * per_picture);
}

GMEM__FN void gmem__rng_step_normal(gmem_rng *rng, gmem__draw_kind kind, int64_t index, int64_t picture, int64_t count,
                                    int64_t per_picture, float *out) {
    if (rng->kind == GMEM_RNG_PHILOX) {
        gmem_rng_normal(rng, GMEM_DRAW_STEP, index, picture, count, per_picture, out);
    } else if (rng->kind == GMEM_RNG_TORCH_CUDA && kind == GMEM__DRAW_DEVICE_F64) {
        gmem__cuda_draw(rng, GMEM__CUDA_NORMAL_F64, count * per_picture, out, NULL, 0);
    } else {
        gmem__mt_normals(rng, kind == GMEM__DRAW_DEVICE_F64, count * per_picture, out);
    }
}

GMEM_API void gmem_rng_integers(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t high,
                                int64_t *out) {
    const int wide = high >= (int64_t)1 << 28; /* as PyTorch has it, against the bias of a remainder of 32 bits */
    if (rng->kind == GMEM_RNG_TORCH_CUDA) {
        gmem__cuda_draw(rng, wide ? GMEM__CUDA_INTEGER64 : GMEM__CUDA_INTEGER, count, NULL, out, high);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        if (rng->kind == GMEM_RNG_PHILOX)
            out[i] = gmem__picture_integer(rng, draw, picture + i, high);
        else
            out[i] = (int64_t)((wide ? gmem__mt_next64(rng) : gmem__mt_next(rng)) % (uint64_t)high);
    }
}

GMEM_API void gmem_rng_uniform(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t per_picture,
                               float *out) {
    switch (rng->kind) {
    case GMEM_RNG_TORCH_CPU:
        for (int64_t i = 0; i < count * per_picture; i++)
            out[i] = gmem__mt_uniform(rng);
        return;
    case GMEM_RNG_TORCH_CUDA:
        gmem__cuda_draw(rng, GMEM__CUDA_UNIFORM, count * per_picture, out, NULL, 0);
        return;
    case GMEM_RNG_PHILOX:
        break;
    }
    for (int64_t i = 0; i < count; i++)
        gmem__picture_uniform(rng, draw, picture + i, per_picture, out + i * per_picture);
}
/* ---- src/path.c ---- */
/* The paths between noise and data, and what drift, score and diffusion are along them. Formulas: SiT (Ma et al.,
 * 2401.08740), in its transport package path.py. */
/* ---- src/sampler.h ---- */
/* The samplers inside: a plan made from the settings, and a run that the solvers carry through. */
#ifndef GMEM__SAMPLER_H
#define GMEM__SAMPLER_H


GMEM__INLINE double gmem__square(double x) { return x * x; }

/* path.c --------------------------------------------------------------------------------------------------------- */

/* Drift, score and denoised sample are all of the form x * state + model * (what the network gave). */
typedef struct gmem__blend {
    double x, model;
} gmem__blend;

/* x_t = alpha x_1 + sigma x_0, from noise x_0 at t = 0 to data x_1 at t = 1, with derivatives in t. */
typedef struct gmem__path_point {
    double alpha, d_alpha, sigma, d_sigma;
} gmem__path_point;

GMEM__FN gmem__path_point gmem__path_at(gmem_path path, double t);
/* The probability flow's drift, and the score grad log p_t, from a prediction. */
GMEM__FN gmem__blend gmem__path_drift(const gmem__path_point *at, gmem_prediction prediction);
GMEM__FN gmem__blend gmem__path_score(const gmem__path_point *at, gmem_prediction prediction);
/* The data x_1 that a prediction amounts to. */
GMEM__FN gmem__blend gmem__path_data(const gmem__path_point *at, gmem_prediction prediction);
/* The diffusion coefficient D of dx = (drift + D score) dt + sqrt(2 D) dw. */
GMEM__FN double gmem__path_diffusion(const gmem__path_point *at, double t, gmem_diffusion_form form, double norm);

/* sampler.c: the plan -------------------------------------------------------------------------------------------- */

typedef enum gmem__solver {
    GMEM__SOLVER_GRID,  /* explicit Runge-Kutta on the grid */
    GMEM__SOLVER_DOPRI, /* adaptive Runge-Kutta */
    GMEM__SOLVER_ADAMS, /* Adams-Bashforth on the grid */
    GMEM__SOLVER_DPMPP, /* DPM-Solver++, multistep, on the grid */
    GMEM__SOLVER_SDE_EULER,
    GMEM__SOLVER_SDE_HEUN
} gmem__solver;

/* One interval of a grid: where its stages lie (c, in units of the interval); for Runge-Kutta also Butcher's a, b. */
typedef struct gmem__method {
    const char *name;
    gmem__solver solver;
    int repa;    /* REPA's convention of time: noise at t = 1 */
    int stages;  /* multistep: of the first interval, the others have one */
    int history; /* multistep: predictions that an interval looks at, its own included; else 0 */
    double c[4], a[4][3], b[4];
} gmem__method;

GMEM__FN const gmem__method *gmem__method_of(gmem_method method);
GMEM__FN int gmem__is_sde(const gmem__method *method);

/* Resolved settings and the grid that they make. */
typedef struct gmem__plan {
    gmem_sampler_desc desc;
    const gmem__method *method;
    double start, end; /* of the grid */
    int64_t intervals; /* adaptive: 0 */
    int last_step;     /* whether a last step from `end` calls the network */
    double last_size;  /* its length, signed like the intervals */
} gmem__plan;

GMEM__FN gmem__plan gmem__plan_make(const gmem_sampler_desc *resolved);
GMEM__FN double gmem__plan_time(const gmem__plan *plan, int64_t i);                  /* grid point, 0 to intervals */
GMEM__FN int gmem__plan_stages(const gmem__plan *plan, int64_t i);                   /* calls in interval i */
GMEM__FN double gmem__plan_stage_time(const gmem__plan *plan, int64_t i, int stage); /* when they are made */
GMEM__FN int64_t gmem__plan_passes(const gmem__plan *plan);                          /* adaptive: 0 */

/* The times at which the velocity will be asked for, one after the other; next gives 0 at the end. */
typedef struct gmem__schedule {
    const gmem__plan *plan;
    int64_t interval;
    int stage;
} gmem__schedule;

GMEM__FN gmem__schedule gmem__schedule_start(const gmem__plan *plan);
GMEM__FN int gmem__schedule_next(gmem__schedule *schedule, double *t);

/* integrate.c: the run ------------------------------------------------------------------------------------------- */

#define GMEM__MAX_STAGES 7

typedef struct gmem__run {
    const gmem__plan *plan;
    const gmem_integrate_desc *desc;
    int64_t count; /* batch * per_picture: the length of every buffer here */
    float *x;      /* the state */
    float *stage;  /* the state that a stage looks at */
    float *k[GMEM__MAX_STAGES];
    float *unconditional;
    float *noise;
    int64_t passes, total_passes;
    int64_t step, steps;
} gmem__run;

/* out = what the network says of x at t, guided as the settings want it for `guide_t`, checked to be finite. */
GMEM__FN gmem_status gmem__run_model(gmem__run *run, double t, double guide_t, const float *x, float *out,
                                     gmem_error *error);
/* A step is over and the state has reached t: checks that it is finite, reports, and asks whether to go on. */
GMEM__FN gmem_status gmem__run_step_done(gmem__run *run, double t, gmem_error *error);
/* out = x_weight * x + sum of weight[j] * k[j], summed in double, rounded once. `out` may be any of the inputs. */
GMEM__FN void gmem__run_combine(const gmem__run *run, float *out, double x_weight, const float *x, int terms,
                                const double *weight, const float *const *k);
/* drift = blend.x * x + blend.model * drift */
GMEM__FN void gmem__run_blend(const gmem__run *run, gmem__blend blend, const float *x, float *drift);

/* gmem_integrate, with the context as the network holds it. */
GMEM__FN gmem_status gmem__integrate(const gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                     gmem_error *error);

/* ode.c, multistep.c, sde.c: from plan->start to the end; the state is in and out of run->x. */
GMEM__FN gmem_status gmem__run_grid(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_dopri5(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_multistep(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_sde(gmem__run *run, gmem_error *error);

#endif /* GMEM__SAMPLER_H */

#include <math.h>

#define GMEM__PI 3.141592653589793238462643383280

/* The variance-preserving path's schedule, beta from 0.1 to 20 (Song et al., 2011.13456). */
#define GMEM__VP_BETA_MIN 0.1
#define GMEM__VP_BETA_MAX 20.0

static gmem__path_point gmem__linear_at(double t) {
    gmem__path_point at;
    at.alpha = t;
    at.d_alpha = 1;
    at.sigma = 1 - t;
    at.d_sigma = -1;
    return at;
}

static gmem__path_point gmem__gvp_at(double t) {
    const double rate = GMEM__PI / 2;
    gmem__path_point at;
    at.alpha = sin(rate * t);
    at.d_alpha = rate * cos(rate * t);
    at.sigma = cos(rate * t);
    at.d_sigma = -rate * sin(rate * t);
    return at;
}

static gmem__path_point gmem__vp_at(double t) {
    const double s = 1 - t, range = GMEM__VP_BETA_MAX - GMEM__VP_BETA_MIN;
    const double log_alpha = -0.25 * s * s * range - 0.5 * s * GMEM__VP_BETA_MIN;
    const double d_log_alpha = 0.5 * s * range + 0.5 * GMEM__VP_BETA_MIN;
    gmem__path_point at;
    at.alpha = exp(log_alpha);
    at.d_alpha = at.alpha * d_log_alpha;
    at.sigma = sqrt(-expm1(2 * log_alpha));
    at.d_sigma = -at.alpha * at.d_alpha / at.sigma;
    return at;
}

GMEM__FN gmem__path_point gmem__path_at(gmem_path path, double t) {
    switch (path) {
    case GMEM_PATH_GVP:
        return gmem__gvp_at(t);
    case GMEM_PATH_VP:
        return gmem__vp_at(t);
    case GMEM_PATH_LINEAR:
        break;
    }
    return gmem__linear_at(t);
}

/* The derivative of log alpha. On Linear and GVP it has no value at t = 0, where no setting that needs it begins. */
static double gmem__path_ratio(const gmem__path_point *at) { return at->d_alpha / at->alpha; }

/* Half the squared diffusion of the path's own SDE, which SBDM (score-based diffusion model) takes as it is. */
static double gmem__path_variance(const gmem__path_point *at) {
    return gmem__path_ratio(at) * at->sigma * at->sigma - at->sigma * at->d_sigma;
}

GMEM__FN gmem__blend gmem__path_score(const gmem__path_point *at, gmem_prediction prediction) {
    gmem__blend score = {0, 1};
    if (prediction == GMEM_PREDICT_NOISE) {
        score.model = -1 / at->sigma;
    } else if (prediction == GMEM_PREDICT_VELOCITY) {
        double inverse_ratio = at->alpha / at->d_alpha;
        double variance = at->sigma * at->sigma - inverse_ratio * at->d_sigma * at->sigma;
        score.x = -1 / variance;
        score.model = inverse_ratio / variance;
    }
    return score;
}

GMEM__FN gmem__blend gmem__path_data(const gmem__path_point *at, gmem_prediction prediction) {
    const double determinant = at->alpha * at->d_sigma - at->d_alpha * at->sigma;
    gmem__blend data = {1 / at->alpha, 0};
    switch (prediction) {
    case GMEM_PREDICT_VELOCITY: /* from x = alpha x_1 + sigma x_0 and v = alpha' x_1 + sigma' x_0 */
        data.x = at->d_sigma / determinant;
        data.model = -at->sigma / determinant;
        break;
    case GMEM_PREDICT_NOISE:
        data.model = -at->sigma / at->alpha;
        break;
    case GMEM_PREDICT_SCORE: /* the noise is -sigma score */
        data.model = at->sigma * at->sigma / at->alpha;
        break;
    }
    return data;
}

GMEM__FN gmem__blend gmem__path_drift(const gmem__path_point *at, gmem_prediction prediction) {
    gmem__blend drift = {0, 1};
    if (prediction != GMEM_PREDICT_VELOCITY) {
        gmem__blend score = gmem__path_score(at, prediction);
        double variance = gmem__path_variance(at);
        drift.x = gmem__path_ratio(at) + variance * score.x;
        drift.model = variance * score.model;
    }
    return drift;
}

GMEM__FN double gmem__path_diffusion(const gmem__path_point *at, double t, gmem_diffusion_form form, double norm) {
    switch (form) {
    case GMEM_DIFFUSION_CONSTANT:
        return norm;
    case GMEM_DIFFUSION_SBDM:
        return norm * gmem__path_variance(at);
    case GMEM_DIFFUSION_SIGMA:
        return norm * at->sigma;
    case GMEM_DIFFUSION_DECREASING:
        return 0.25 * gmem__square(norm * cos(GMEM__PI * t) + 1);
    case GMEM_DIFFUSION_INCREASING_DECREASING:
        return norm * gmem__square(sin(GMEM__PI * t));
    case GMEM_DIFFUSION_DEFAULT:
    case GMEM_DIFFUSION_LINEAR:
        break;
    }
    return norm * (1 - t);
}
/* ---- src/ode.c ---- */
/* The probability flow's solvers: Runge-Kutta on a fixed grid, and Dormand-Prince 5(4) with step control. */

#include <math.h>

/* k = the drift of x at t. */
static gmem_status gmem__drift(gmem__run *run, double t, double guide_t, const float *x, float *k, gmem_error *error) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    GMEM__TRY(gmem__run_model(run, t, guide_t, x, k, error));
    if (desc->prediction == GMEM_PREDICT_VELOCITY) return GMEM_OK;
    gmem__path_point at = gmem__path_at(desc->path, t);
    gmem__run_blend(run, gmem__path_drift(&at, desc->prediction), x, k);
    return GMEM_OK;
}

/* the fixed grid ------------------------------------------------------------------------------------------------- */

static gmem_status gmem__grid_interval(gmem__run *run, int64_t i, const gmem__method *method, gmem_error *error) {
    const double t = gmem__plan_time(run->plan, i), dt = gmem__plan_time(run->plan, i + 1) - t;
    double weight[4];
    for (int stage = 0; stage < method->stages; stage++) {
        const double stage_t = gmem__plan_stage_time(run->plan, i, stage);
        const float *x = run->x;
        if (stage > 0) {
            for (int j = 0; j < stage; j++)
                weight[j] = dt * method->a[stage][j];
            gmem__run_combine(run, run->stage, 1, run->x, stage, weight, (const float *const *)run->k);
            x = run->stage;
        }
        /* REPA decides on guidance once an interval. */
        GMEM__TRY(gmem__drift(run, stage_t, method->repa ? t : stage_t, x, run->k[stage], error));
    }
    for (int j = 0; j < method->stages; j++)
        weight[j] = dt * method->b[j];
    gmem__run_combine(run, run->x, 1, run->x, method->stages, weight, (const float *const *)run->k);
    return gmem__run_step_done(run, t + dt, error);
}

GMEM__FN gmem_status gmem__run_grid(gmem__run *run, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    for (int64_t i = 0; i < plan->intervals; i++) {
        int whole = gmem__plan_stages(plan, i) == plan->method->stages;
        GMEM__TRY(gmem__grid_interval(run, i, whole ? plan->method : gmem__method_of(GMEM_REPA_EULER), error));
    }
    return GMEM_OK;
}

/* Dormand-Prince -------------------------------------------------------------------------------------------------- */

/* Tableau: Dormand and Prince, 1980; error weights and midpoint: Shampine, 1986. Control as torchdiffeq has it: the
 * last point is not stepped on but interpolated back to. */

static const double gmem__dopri_c[6] = {1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1, 1};
static const double gmem__dopri_a[6][6] = {
    {1.0 / 5},
    {3.0 / 40, 9.0 / 40},
    {44.0 / 45, -56.0 / 15, 32.0 / 9},
    {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
    {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
    {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84},
};
static const double gmem__dopri_error[7] = {35.0 / 384 - 1951.0 / 21600,
                                            0,
                                            500.0 / 1113 - 22642.0 / 50085,
                                            125.0 / 192 - 451.0 / 720,
                                            -2187.0 / 6784 + 12231.0 / 42400,
                                            11.0 / 84 - 649.0 / 6300,
                                            -1.0 / 60};
static const double gmem__dopri_middle[7] = {6025192743.0 / 30085553152.0 / 2,     0,
                                             51252292925.0 / 65400821598.0 / 2,    -2691868925.0 / 45128329728.0 / 2,
                                             187940372067.0 / 1594534317056.0 / 2, -1776094331.0 / 19743644256.0 / 2,
                                             11237099.0 / 235043384.0 / 2};

#define GMEM__DOPRI_ORDER      5
#define GMEM__DOPRI_SAFETY     0.9
#define GMEM__DOPRI_MAX_GROWTH 10.0
#define GMEM__DOPRI_MAX_SHRINK 0.2

static double gmem__rms(double sum_of_squares, int64_t count) { return sqrt(sum_of_squares / (double)count); }

/* The first step's length (Hairer, Norsett, Wanner: "Solving Ordinary Differential Equations I", II.4); k[0] holds the
 * drift at the start. */
static gmem_status gmem__dopri_first_step(gmem__run *run, double t, double *dt, gmem_error *error) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    const float *x = run->x, *f0 = run->k[0], *f1 = run->k[1];
    double d0 = 0, d1 = 0, d2 = 0;
    for (int64_t i = 0; i < run->count; i++) {
        double scale = desc->atol + desc->rtol * fabs((double)x[i]);
        d0 += gmem__square((double)x[i] / scale);
        d1 += gmem__square((double)f0[i] / scale);
    }
    d0 = gmem__rms(d0, run->count);
    d1 = gmem__rms(d1, run->count);
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    gmem__run_combine(run, run->stage, 1, x, 1, &h0, (const float *const *)run->k);
    double next_t = (double)(float)(t + h0);
    GMEM__TRY(gmem__drift(run, next_t, next_t, run->stage, run->k[1], error));
    for (int64_t i = 0; i < run->count; i++) {
        double scale = desc->atol + desc->rtol * fabs((double)x[i]);
        d2 += gmem__square(((double)f1[i] - (double)f0[i]) / scale);
    }
    d2 = gmem__rms(d2, run->count) / h0;
    double h1 = d1 <= 1e-15 && d2 <= 1e-15 ? fmax(1e-6, h0 * 1e-3) : pow(0.01 / fmax(d1, d2), 1.0 / GMEM__DOPRI_ORDER);
    *dt = fmin(100 * h0, h1);
    return GMEM_OK;
}

/* k[1] to k[6] and, in run->stage, the state at t + dt. */
static gmem_status gmem__dopri_attempt(gmem__run *run, double t, double dt, gmem_error *error) {
    const float t0 = (float)t, t1 = (float)(t + dt);
    for (int stage = 0; stage < 6; stage++) {
        double weight[6];
        for (int j = 0; j <= stage; j++)
            weight[j] = dt * gmem__dopri_a[stage][j];
        gmem__run_combine(run, run->stage, 1, run->x, stage + 1, weight, (const float *const *)run->k);
        /* just before the end, lest it be a discontinuity */
        float stage_t =
            gmem__dopri_c[stage] < 1 ? (float)((double)t0 + gmem__dopri_c[stage] * dt) : nextafterf(t1, t1 - 1);
        GMEM__TRY(gmem__drift(run, (double)stage_t, (double)stage_t, run->stage, run->k[stage + 1], error));
    }
    return GMEM_OK;
}

/* The estimated error in units of the tolerance, RMS over the whole batch. */
static double gmem__dopri_error_ratio(const gmem__run *run, double dt) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    double sum = 0;
    for (int64_t i = 0; i < run->count; i++) {
        double estimate = 0;
        for (int j = 0; j < 7; j++)
            estimate += dt * gmem__dopri_error[j] * (double)run->k[j][i];
        double size = fmax(fabs((double)run->x[i]), fabs((double)run->stage[i]));
        sum += gmem__square(estimate / (desc->atol + desc->rtol * size));
    }
    return gmem__rms(sum, run->count);
}

static double gmem__dopri_next_step(double dt, double ratio) {
    if (ratio == 0) return dt * GMEM__DOPRI_MAX_GROWTH;
    double least = ratio < 1 ? 1 : GMEM__DOPRI_MAX_SHRINK;
    return dt * fmin(GMEM__DOPRI_MAX_GROWTH, fmax(GMEM__DOPRI_SAFETY / pow(ratio, 1.0 / GMEM__DOPRI_ORDER), least));
}

/* The state a fraction `s` into the step just taken, by a quartic through both ends, their slopes and the middle. */
static void gmem__dopri_interpolate(gmem__run *run, double dt, double s) {
    for (int64_t i = 0; i < run->count; i++) {
        double y0 = (double)run->x[i], y1 = (double)run->stage[i], middle = y0;
        double f0 = dt * (double)run->k[0][i], f1 = dt * (double)run->k[6][i];
        for (int j = 0; j < 7; j++)
            middle += dt * gmem__dopri_middle[j] * (double)run->k[j][i];
        double a = 2 * (f1 - f0) - 8 * (y1 + y0) + 16 * middle;
        double b = 5 * f0 - 3 * f1 + 18 * y0 + 14 * y1 - 32 * middle;
        double c = f1 - 4 * f0 - 11 * y0 - 5 * y1 + 16 * middle;
        run->x[i] = (float)((((a * s + b) * s + c) * s + f0) * s + y0);
    }
}

static void gmem__swap(float **a, float **b) {
    float *t = *a;
    *a = *b;
    *b = t;
}

GMEM__FN gmem_status gmem__run_dopri5(gmem__run *run, gmem_error *error) {
    const double end = run->plan->end;
    double t = run->plan->start, dt = 0;
    GMEM__TRY(gmem__drift(run, t, t, run->x, run->k[0], error));
    GMEM__TRY(gmem__dopri_first_step(run, t, &dt, error));
    while (t < end) {
        if (!(t + dt > t)) {
            gmem__quoted at;
            return gmem__fail(error, GMEM_E_STIFF, "at t = %s the adaptive step is too small to advance",
                              gmem__format_double(&at, t));
        }
        GMEM__TRY(gmem__dopri_attempt(run, t, dt, error));
        double ratio = gmem__dopri_error_ratio(run, dt);
        if (ratio <= 1) {
            double next = t + dt;
            if (next >= end) {
                gmem__dopri_interpolate(run, dt, (end - t) / (next - t));
                next = end;
            } else {
                gmem__swap(&run->x, &run->stage);
                gmem__swap(&run->k[0], &run->k[6]);
            }
            t = next;
        }
        dt = gmem__dopri_next_step(dt, ratio);
        GMEM__TRY(gmem__run_step_done(run, t, error));
    }
    return GMEM_OK;
}

#undef GMEM__DOPRI_ORDER
#undef GMEM__DOPRI_SAFETY
#undef GMEM__DOPRI_MAX_GROWTH
#undef GMEM__DOPRI_MAX_SHRINK
/* ---- src/multistep.c ---- */
/* Multistep solvers of the probability flow on a grid that need not be even: one network pass an interval, the earlier
 * predictions remembered. The first intervals, which have none yet, are of lower order. */

#include <math.h>

/* What an interval makes of the state and of the predictions, the latest first. */
typedef struct gmem__multistep {
    double x, k[3];
} gmem__multistep;

/* Adams-Bashforth: the integral over the interval of the polynomial through the latest slopes (Hairer, Norsett, Wanner:
 * "Solving Ordinary Differential Equations I", III.5). Slopes at one time, on a grid finer than f32, count once. */
static gmem__multistep gmem__adams_weights(const gmem__plan *plan, int64_t i, int terms) {
    const double t = gmem__plan_time(plan, i), h = gmem__plan_time(plan, i + 1) - t;
    const double a = terms > 1 ? t - gmem__plan_time(plan, i - 1) : 0; /* back to the slope before, ... */
    const double b = terms > 2 ? t - gmem__plan_time(plan, i - 2) : 0; /* ... and to the one before that */
    gmem__multistep weights = {1, {h, 0, 0}};
    if (a > 0 && b > a) {
        weights.k[1] = -h * h * (h / 3 + b / 2) / (a * (b - a));
        weights.k[2] = h * h * (h / 3 + a / 2) / (b * (b - a));
    } else if (a > 0) {
        weights.k[1] = -h * h / (2 * a);
    }
    weights.k[0] = h - weights.k[1] - weights.k[2];
    return weights;
}

static double gmem__log_ratio(const gmem__path_point *at) { return log(at->alpha / at->sigma); }

/* DPM-Solver++(2M) (Lu et al., 2211.01095, algorithm 2): exact in the linear part, with D the data extrapolated in
 * lambda = log(alpha / sigma), whose steps are h:
 *     x' = sigma' / sigma x + (alpha' - alpha sigma' / sigma) D,  D = D_i + h / (2 h_before) (D_i - D_(i-1)).
 * lambda is infinite at pure noise and at the data: beside the former, and in the last interval as the published code
 * has it, D is D_i alone. */
static gmem__multistep gmem__dpmpp_weights(const gmem__plan *plan, int64_t i, int terms) {
    const gmem_path path = plan->desc.path;
    const gmem__path_point from = gmem__path_at(path, gmem__plan_time(plan, i));
    const gmem__path_point to = gmem__path_at(path, gmem__plan_time(plan, i + 1));
    const double kept = from.sigma > 0 ? to.sigma / from.sigma : 0, gain = to.alpha - from.alpha * kept;
    gmem__multistep weights = {kept, {gain, 0, 0}};
    if (terms < 2 || i + 1 == plan->intervals) return weights;
    const gmem__path_point before = gmem__path_at(path, gmem__plan_time(plan, i - 1));
    if (before.alpha <= 0 || to.sigma <= 0) return weights;
    const double lambda = gmem__log_ratio(&from), h_before = lambda - gmem__log_ratio(&before);
    if (h_before <= 0) return weights;
    weights.k[1] = -gain * (gmem__log_ratio(&to) - lambda) / (2 * h_before);
    weights.k[0] = gain - weights.k[1];
    return weights;
}

/* k[0] becomes the oldest prediction's buffer, the others move up. */
static void gmem__rotate_history(gmem__run *run, int history) {
    float *oldest = run->k[history - 1];
    for (int j = history - 1; j > 0; j--)
        run->k[j] = run->k[j - 1];
    run->k[0] = oldest;
}

/* k[0] = the slope of x at t, or the data that it amounts to. */
static gmem_status gmem__predict(gmem__run *run, double t, const float *x, float *k, gmem_error *error) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    const gmem__path_point at = gmem__path_at(desc->path, t);
    GMEM__TRY(gmem__run_model(run, t, t, x, k, error));
    gmem__run_blend(run,
                    run->plan->method->solver == GMEM__SOLVER_ADAMS ? gmem__path_drift(&at, desc->prediction)
                                                                    : gmem__path_data(&at, desc->prediction),
                    x, k);
    return GMEM_OK;
}

/* The third order would lose to the error of a first interval by Euler: Heun's second stage corrects it, from
 * x + h k[0] as the weights made it. */
static gmem_status gmem__correct_first(gmem__run *run, gmem_error *error) {
    const double t = gmem__plan_time(run->plan, 0), next = gmem__plan_time(run->plan, 1);
    const double half[2] = {-(next - t) / 2, (next - t) / 2};
    GMEM__TRY(gmem__predict(run, next, run->x, run->k[1], error));
    gmem__run_combine(run, run->x, 1, run->x, 2, half, (const float *const *)run->k);
    return GMEM_OK;
}

static gmem_status gmem__multistep_interval(gmem__run *run, int64_t i, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    const int terms = (int)gmem__min(i + 1, plan->method->history);
    const gmem__multistep weights = plan->method->solver == GMEM__SOLVER_ADAMS ? gmem__adams_weights(plan, i, terms)
                                                                               : gmem__dpmpp_weights(plan, i, terms);
    gmem__rotate_history(run, plan->method->history);
    GMEM__TRY(gmem__predict(run, gmem__plan_time(plan, i), run->x, run->k[0], error));
    gmem__run_combine(run, run->x, weights.x, run->x, terms, weights.k, (const float *const *)run->k);
    if (gmem__plan_stages(plan, i) > 1) GMEM__TRY(gmem__correct_first(run, error));
    return gmem__run_step_done(run, gmem__plan_time(plan, i + 1), error);
}

GMEM__FN gmem_status gmem__run_multistep(gmem__run *run, gmem_error *error) {
    for (int64_t i = 0; i < run->plan->intervals; i++)
        GMEM__TRY(gmem__multistep_interval(run, i, error));
    return GMEM_OK;
}
/* ---- src/sde.c ---- */
/* The SDE's solvers, Euler-Maruyama and Heun, and the last step to the data. */

#include <math.h>

/* What a step needs to know at t: the reverse SDE's drift and the noise per square root of time. */
typedef struct gmem__sde_terms {
    gmem__blend drift;
    double noise;
} gmem__sde_terms;

/* REPA: drift v - t score with score = -((1 - t) v + x) / t, diffusion 2 t. */
static gmem__sde_terms gmem__repa_terms(double t) {
    gmem__sde_terms terms = {{1, 2 - t}, sqrt(2 * t)};
    return terms;
}

static gmem__sde_terms gmem__sde_at(const gmem__plan *plan, double t) {
    if (plan->method->repa) return gmem__repa_terms(t);
    const gmem_sampler_desc *desc = &plan->desc;
    gmem__path_point at = gmem__path_at(desc->path, t);
    gmem__blend flow = gmem__path_drift(&at, desc->prediction), score = gmem__path_score(&at, desc->prediction);
    double diffusion = gmem__path_diffusion(&at, t, desc->diffusion_form, desc->diffusion_norm);
    gmem__sde_terms terms;
    terms.drift.x = flow.x + diffusion * score.x;
    terms.drift.model = flow.model + diffusion * score.model;
    terms.noise = sqrt(2 * diffusion);
    return terms;
}

/* k = the drift of x at t. */
static gmem_status gmem__sde_drift(gmem__run *run, const gmem__sde_terms *terms, double t, const float *x, float *k,
                                   gmem_error *error) {
    GMEM__TRY(gmem__run_model(run, t, t, x, k, error));
    gmem__run_blend(run, terms->drift, x, k);
    return GMEM_OK;
}

/* run->noise = the caller's noise for interval i. */
static gmem_status gmem__sde_noise(gmem__run *run, int64_t i, gmem_error *error) {
    const gmem_integrate_desc *desc = run->desc;
    gmem_error own = gmem__callback_error();
    gmem_status status = desc->noise(desc->noise_user, i, desc->batch, desc->per_picture, run->noise, &own);
    return gmem__fail_callback(error, status, &own, "the noise function");
}

static gmem_status gmem__sde_interval(gmem__run *run, int64_t i, double dt, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    const double t = gmem__plan_time(plan, i), next_t = gmem__plan_time(plan, i + 1);
    const gmem__sde_terms terms = gmem__sde_at(plan, t);
    const double noise = terms.noise * sqrt(fabs(dt));
    const float *const draw = run->noise;
    GMEM__TRY(gmem__sde_noise(run, i, error));
    if (plan->method->solver == GMEM__SOLVER_SDE_EULER) {
        const double weight[2] = {dt, noise};
        GMEM__TRY(gmem__sde_drift(run, &terms, t, run->x, run->k[0], error));
        const float *const add[2] = {run->k[0], draw};
        gmem__run_combine(run, run->x, 1, run->x, 2, weight, add);
    } else { /* the noise comes first, and both stages look at the state with it */
        const gmem__sde_terms next = gmem__sde_at(plan, next_t);
        const double half[2] = {dt / 2, dt / 2};
        gmem__run_combine(run, run->x, 1, run->x, 1, &noise, &draw);
        GMEM__TRY(gmem__sde_drift(run, &terms, t, run->x, run->k[0], error));
        gmem__run_combine(run, run->stage, 1, run->x, 1, &dt, (const float *const *)run->k);
        GMEM__TRY(gmem__sde_drift(run, &next, next_t, run->stage, run->k[1], error));
        gmem__run_combine(run, run->x, 1, run->x, 2, half, (const float *const *)run->k);
    }
    return gmem__run_step_done(run, next_t, error);
}

/* What becomes of x in the last step, which adds no noise. */
static gmem__blend gmem__last_blend(const gmem__plan *plan, double t) {
    const gmem_sampler_desc *desc = &plan->desc;
    gmem__blend move;
    if (desc->last_step == GMEM_LAST_TWEEDIE) { /* (x + sigma^2 score) / alpha */
        gmem__path_point at = gmem__path_at(desc->path, t);
        gmem__blend score = gmem__path_score(&at, desc->prediction);
        move.x = (1 + at.sigma * at.sigma * score.x) / at.alpha;
        move.model = at.sigma * at.sigma * score.model / at.alpha;
        return move;
    }
    if (desc->last_step == GMEM_LAST_EULER) {
        gmem__path_point at = gmem__path_at(desc->path, t);
        move = gmem__path_drift(&at, desc->prediction);
    } else {
        move = gmem__sde_at(plan, t).drift;
    }
    move.x = 1 + plan->last_size * move.x;
    move.model = plan->last_size * move.model;
    return move;
}

GMEM__FN gmem_status gmem__run_sde(gmem__run *run, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    /* the transport package takes every interval to be as long as the first */
    double dt = gmem__plan_time(plan, gmem__min(1, plan->intervals)) - plan->start;
    for (int64_t i = 0; i < plan->intervals; i++) {
        if (plan->method->repa) dt = gmem__plan_time(plan, i + 1) - gmem__plan_time(plan, i);
        GMEM__TRY(gmem__sde_interval(run, i, dt, error));
    }
    if (!plan->last_step) return GMEM_OK;
    gmem__blend last = gmem__last_blend(plan, plan->end);
    GMEM__TRY(gmem__run_model(run, plan->end, plan->end, run->x, run->k[0], error));
    gmem__run_combine(run, run->x, last.x, run->x, 1, &last.model, (const float *const *)run->k);
    return gmem__run_step_done(run, plan->end + plan->last_size, error);
}
/* ---- src/sampler.c ---- */
/* A sampler's settings: checked, completed, and turned into the plan of when the network is called. */

/* The times nearest to the ends where noise and score predictions stay finite (SiT's sample_eps). */
#define GMEM__SAMPLE_EPS 1e-3

/* methods -------------------------------------------------------------------------------------------------------- */

/* In the order of gmem_method. rk4 is Kutta's 3/8 rule, as in torchdiffeq; heun3 is Heun's third-order rule. */
static const gmem__method gmem__methods[] = {
    {"default", GMEM__SOLVER_GRID, 0, 0, 0, {0}, {{0}}, {0}},
    {"euler", GMEM__SOLVER_GRID, 0, 1, 0, {0}, {{0}}, {1}},
    {"midpoint", GMEM__SOLVER_GRID, 0, 2, 0, {0, 0.5}, {{0}, {0.5}}, {0, 1}},
    {"heun2", GMEM__SOLVER_GRID, 0, 2, 0, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"heun3", GMEM__SOLVER_GRID, 0, 3, 0, {0, 1.0 / 3, 2.0 / 3}, {{0}, {1.0 / 3}, {0, 2.0 / 3}}, {0.25, 0, 0.75}},
    {"rk4",
     GMEM__SOLVER_GRID,
     0,
     4,
     0,
     {0, 1.0 / 3, 2.0 / 3, 1},
     {{0}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}},
     {0.125, 0.375, 0.375, 0.125}},
    {"dopri5", GMEM__SOLVER_DOPRI, 0, 0, 0, {0}, {{0}}, {0}},
    {"sde-euler", GMEM__SOLVER_SDE_EULER, 0, 1, 0, {0}, {{0}}, {0}},
    {"sde-heun", GMEM__SOLVER_SDE_HEUN, 0, 2, 0, {0, 1}, {{0}}, {0}},
    {"repa-euler", GMEM__SOLVER_GRID, 1, 1, 0, {0}, {{0}}, {1}},
    {"repa-heun", GMEM__SOLVER_GRID, 1, 2, 0, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"repa-sde", GMEM__SOLVER_SDE_EULER, 1, 1, 0, {0}, {{0}}, {0}},
    {"ab2", GMEM__SOLVER_ADAMS, 0, 1, 2, {0}, {{0}}, {0}},
    {"ab3", GMEM__SOLVER_ADAMS, 0, 2, 3, {0, 1}, {{0}}, {0}},
    {"dpmpp2m", GMEM__SOLVER_DPMPP, 0, 1, 2, {0}, {{0}}, {0}},
};

GMEM__FN const gmem__method *gmem__method_of(gmem_method method) { return &gmem__methods[method]; }

GMEM__FN int gmem__is_sde(const gmem__method *method) {
    return method->solver == GMEM__SOLVER_SDE_EULER || method->solver == GMEM__SOLVER_SDE_HEUN;
}

/* settings ------------------------------------------------------------------------------------------------------- */

static int gmem__in_range(int value, int last) { return value >= 0 && value <= last; }

static int gmem__is_finite(double x) { return x - x == 0; }

static gmem_status gmem__check_ranges(const gmem_sampler_desc *desc, gmem_error *error) {
    if (!gmem__in_range((int)desc->method, GMEM_DPMPP2M) ||
        !gmem__in_range((int)desc->diffusion_form, GMEM_DIFFUSION_INCREASING_DECREASING) ||
        !gmem__in_range((int)desc->last_step, GMEM_LAST_NONE) || !gmem__in_range((int)desc->path, GMEM_PATH_VP) ||
        !gmem__in_range((int)desc->prediction, GMEM_PREDICT_SCORE))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not one of its enumeration's values");
    if (!gmem__is_finite(desc->timestep_shift) || !gmem__is_finite(desc->atol) || !gmem__is_finite(desc->rtol) ||
        !gmem__is_finite(desc->diffusion_norm) || !gmem__is_finite(desc->last_step_size) ||
        !gmem__is_finite(desc->cfg_scale) || !gmem__is_finite(desc->cfg_start) || !gmem__is_finite(desc->cfg_end) ||
        !gmem__is_finite(desc->cache_threshold))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not a finite number");
    if (desc->steps < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of steps is negative");
    if (desc->timestep_shift < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the timestep shift is negative");
    if (desc->atol < 0 || desc->rtol < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "a tolerance is negative");
    if (desc->diffusion_norm < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the diffusion norm is negative");
    if (desc->last_step_size >= 1) return gmem__fail(error, GMEM_E_ARGUMENT, "the last step is not shorter than 1");
    if (desc->cfg_channels < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of guided channels is negative");
    if (desc->cache_threshold < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the cache threshold is negative");
    if (desc->cfg_end != 0 && desc->cfg_end < desc->cfg_start)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the guidance interval ends before it starts");
    return GMEM_OK;
}

/* Settings that the method does not have. */
static gmem_status gmem__check_foreign(const gmem_sampler_desc *desc, const gmem__method *method, gmem_error *error) {
    const int transport_sde = gmem__is_sde(method) && !method->repa;
    if (desc->timestep_shift != 0 && desc->timestep_shift != 1 && (gmem__is_sde(method) || method->repa))
        return gmem__fail(error, GMEM_E_COMBINATION, "a timestep shift is for the transport ODE methods, not for %s",
                          method->name);
    if (!transport_sde && (desc->diffusion_form != GMEM_DIFFUSION_DEFAULT || desc->diffusion_norm != 0))
        return gmem__fail(error, GMEM_E_COMBINATION, "a diffusion is for sde-euler and sde-heun, not for %s",
                          method->name);
    if (!transport_sde && (desc->last_step != GMEM_LAST_DEFAULT || desc->last_step_size != 0))
        return gmem__fail(error, GMEM_E_COMBINATION, "a last step is for sde-euler and sde-heun, not for %s",
                          method->name);
    if (method->repa && (desc->path != GMEM_PATH_LINEAR || desc->prediction != GMEM_PREDICT_VELOCITY))
        return gmem__fail(error, GMEM_E_COMBINATION, "%s is for the linear path and velocity prediction only",
                          method->name);
    if (method->solver == GMEM__SOLVER_DOPRI && desc->cache_threshold > 0)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a cache threshold is for methods whose times only go forward, not for %s", method->name);
    return GMEM_OK;
}

static void gmem__fill_defaults(gmem_sampler_desc *desc, const gmem__method *method) {
    if (desc->steps == 0) desc->steps = desc->method == GMEM_REPA_SDE ? 250 : 50;
    if (desc->timestep_shift == 1) desc->timestep_shift = 0;
    if (desc->cfg_scale < 1) desc->cfg_scale = 1;
    if (method->solver == GMEM__SOLVER_DOPRI) {
        if (desc->atol == 0) desc->atol = 1e-6;
        if (desc->rtol == 0) desc->rtol = 1e-3;
    }
    if (gmem__is_sde(method) && !method->repa) {
        if (desc->diffusion_form == GMEM_DIFFUSION_DEFAULT) desc->diffusion_form = GMEM_DIFFUSION_LINEAR;
        if (desc->diffusion_norm == 0) desc->diffusion_norm = 1;
        if (desc->last_step == GMEM_LAST_DEFAULT) desc->last_step = GMEM_LAST_MEAN;
        if (desc->last_step_size == 0) desc->last_step_size = 0.004;
    }
}

/* What would come out infinite or not a number. */
static gmem_status gmem__check_sde(const gmem__plan *plan, gmem_error *error) {
    const gmem_sampler_desc *desc = &plan->desc;
    if (plan->start >= plan->end)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the last step leaves nothing for the steps before it");
    if (desc->prediction != GMEM_PREDICT_VELOCITY || desc->path == GMEM_PATH_VP) return GMEM_OK;
    if (desc->diffusion_form == GMEM_DIFFUSION_SBDM)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "sbdm diffusion is infinite at t = 0, where sampling starts with velocity prediction on the "
                          "linear and gvp paths");
    if (plan->end < 1) return GMEM_OK;
    if (plan->method->solver == GMEM__SOLVER_SDE_HEUN)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "sde-heun without a last step needs the score at t = 1, which velocity prediction on the "
                          "linear and gvp paths does not give");
    if (desc->last_step == GMEM_LAST_MEAN || desc->last_step == GMEM_LAST_TWEEDIE)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a last step of size 0 needs the score at t = 1, which velocity prediction on the linear and "
                          "gvp paths does not give");
    return GMEM_OK;
}

/* the plan ------------------------------------------------------------------------------------------------------- */

/* Where the transport package starts and ends (check_interval). */
static void gmem__transport_ends(gmem__plan *plan) {
    const gmem_sampler_desc *desc = &plan->desc;
    const int velocity = desc->prediction == GMEM_PREDICT_VELOCITY, vp = desc->path == GMEM_PATH_VP;
    const double eps = velocity && !vp ? 0 : GMEM__SAMPLE_EPS;
    double size = 0;
    if (gmem__is_sde(plan->method)) {
        if (desc->last_step != GMEM_LAST_NONE && desc->last_step_size > 0) size = desc->last_step_size;
        plan->last_step = desc->last_step != GMEM_LAST_NONE;
        plan->last_size = size;
    }
    plan->start = (double)(float)(vp ? 0 : eps);
    plan->end = (double)(float)(1 - (size > 0 ? size : eps));
}

GMEM__FN gmem__plan gmem__plan_make(const gmem_sampler_desc *resolved) {
    gmem__plan plan;
    memset(&plan, 0, sizeof plan);
    plan.desc = *resolved;
    plan.method = gmem__method_of(resolved->method);
    plan.intervals = plan.method->solver == GMEM__SOLVER_DOPRI ? 0 : (int64_t)resolved->steps - 1;
    if (!plan.method->repa) {
        gmem__transport_ends(&plan);
    } else if (gmem__is_sde(plan.method)) { /* from 1 to 0.04, then the mean step to 0 */
        plan.start = 1;
        plan.end = plan.intervals > 0 ? 0.04 : 1;
        plan.last_step = 1;
        plan.last_size = -plan.end;
    } else {
        plan.start = 1;
        plan.intervals = resolved->steps;
    }
    return plan;
}

/* torch.linspace, which counts from both ends; of f32 in the transport package, of f64 in REPA. */
GMEM__FN double gmem__plan_time(const gmem__plan *plan, int64_t i) {
    const int64_t n = plan->intervals;
    if (n == 0) return plan->start;
    double step = (plan->end - plan->start) / (double)n;
    if (!plan->method->repa) step = (double)(float)step;
    double t = i < (n + 1) / 2 ? plan->start + step * (double)i : plan->end - step * (double)(n - i);
    if (plan->method->repa) return t;
    t = (double)(float)t;
    const double shift = plan->desc.timestep_shift;
    return shift > 0 ? (double)(float)(shift * t / (1 + (shift - 1) * t)) : t;
}

/* REPA's Heun makes no correction in its last interval, multistep methods none after the first. */
GMEM__FN int gmem__plan_stages(const gmem__plan *plan, int64_t i) {
    const int single =
        plan->method->history > 0 ? i > 0 : plan->desc.method == GMEM_REPA_HEUN && i == plan->intervals - 1;
    return single ? 1 : plan->method->stages;
}

GMEM__FN double gmem__plan_stage_time(const gmem__plan *plan, int64_t i, int stage) {
    const double c = plan->method->c[stage];
    if (c == 0 || c == 1) return gmem__plan_time(plan, i + (c == 1));
    const double t = gmem__plan_time(plan, i);
    return (double)(float)(t + c * (gmem__plan_time(plan, i + 1) - t));
}

GMEM__FN int64_t gmem__plan_passes(const gmem__plan *plan) {
    int64_t passes = plan->last_step;
    for (int64_t i = 0; i < plan->intervals; i++)
        passes += gmem__plan_stages(plan, i);
    return passes;
}

GMEM_API gmem_status gmem_sampler_check(const gmem_sampler_desc *desc, int time_reversed, gmem_sampler_desc *resolved,
                                        gmem_error *error) {
    if (!desc) return gmem__fail(error, GMEM_E_ARGUMENT, "there are no sampler settings");
    GMEM__TRY(gmem__check_ranges(desc, error));
    gmem_sampler_desc full = *desc;
    if (full.method == GMEM_METHOD_DEFAULT) full.method = time_reversed ? GMEM_REPA_SDE : GMEM_SDE_HEUN;
    const gmem__method *method = gmem__method_of(full.method);
    GMEM__TRY(gmem__check_foreign(&full, method, error));
    gmem__fill_defaults(&full, method);
    if (full.steps < 2 && !method->repa)
        return gmem__fail(error, GMEM_E_ARGUMENT, "%s needs at least 2 steps, which make 1 interval", method->name);
    if (gmem__is_sde(method) && !method->repa) {
        gmem__plan plan = gmem__plan_make(&full);
        GMEM__TRY(gmem__check_sde(&plan, error));
    }
    if (resolved) *resolved = full;
    return GMEM_OK;
}

GMEM__FN gmem__schedule gmem__schedule_start(const gmem__plan *plan) {
    gmem__schedule schedule = {plan, 0, 0};
    return schedule;
}

GMEM__FN int gmem__schedule_next(gmem__schedule *schedule, double *t) {
    const gmem__plan *plan = schedule->plan;
    if (schedule->interval < plan->intervals) {
        *t = gmem__plan_stage_time(plan, schedule->interval, schedule->stage);
        if (++schedule->stage == gmem__plan_stages(plan, schedule->interval)) {
            schedule->stage = 0;
            schedule->interval++;
        }
        return 1;
    }
    if (schedule->interval > plan->intervals || !plan->last_step) return 0;
    schedule->interval++;
    *t = plan->end;
    return 1;
}

GMEM_API int64_t gmem_sampler_times(const gmem_sampler_desc *desc, double *out, int64_t capacity) {
    gmem_sampler_desc resolved;
    if (gmem_sampler_check(desc, 0, &resolved, NULL) != GMEM_OK) return 0;
    const gmem__plan plan = gmem__plan_make(&resolved);
    gmem__schedule schedule = gmem__schedule_start(&plan);
    int64_t count = 0;
    for (double t; gmem__schedule_next(&schedule, &t); count++) {
        if (count < capacity) out[count] = t;
    }
    return count;
}
/* ---- src/integrate.c ---- */
/* Integration: what every solver shares (guidance, checks, counting, progress), and its buffers. */

typedef enum gmem__halves { GMEM__HALF_CONDITIONAL, GMEM__HALF_UNCONDITIONAL, GMEM__HALF_BOTH } gmem__halves;

/* Outside its interval guidance falls back to one half: the transport samplers to the unconditional one beyond the
 * end, otherwise to the conditional one. They compare in f32, in which their times are. */
static gmem__halves gmem__halves_at(const gmem__plan *plan, double t) {
    const gmem_sampler_desc *desc = &plan->desc;
    if (desc->cfg_scale <= 1) return GMEM__HALF_CONDITIONAL;
    if (plan->method->repa)
        return t < desc->cfg_start || (desc->cfg_end != 0 && t > desc->cfg_end) ? GMEM__HALF_CONDITIONAL
                                                                                : GMEM__HALF_BOTH;
    if ((float)t < (float)desc->cfg_start) return GMEM__HALF_CONDITIONAL;
    return desc->cfg_end != 0 && (float)t > (float)desc->cfg_end ? GMEM__HALF_UNCONDITIONAL : GMEM__HALF_BOTH;
}

/* out = unconditional + scale (out - unconditional) in the guided channels; the others keep the conditional value. */
static void gmem__guide(const gmem__run *run, float *out) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    const int64_t per_picture = run->desc->per_picture, channels = gmem__max(1, run->desc->channels);
    const int64_t guided = desc->cfg_channels ? per_picture / channels * desc->cfg_channels : per_picture;
    for (int64_t picture = 0; picture < run->desc->batch; picture++) {
        float *c = out + picture * per_picture;
        const float *u = run->unconditional + picture * per_picture;
        for (int64_t i = 0; i < guided; i++)
            c[i] = (float)((double)u[i] + desc->cfg_scale * ((double)c[i] - (double)u[i]));
    }
}

static gmem_status gmem__nonfinite(const gmem__run *run, const char *what, double t, gmem_error *error) {
    gmem__quoted at;
    return gmem__fail(error, GMEM_E_NONFINITE, "%s is not finite at t = %s (pass %lld)", what,
                      gmem__format_double(&at, t), (long long)run->passes);
}

GMEM__FN gmem_status gmem__run_model(gmem__run *run, double t, double guide_t, const float *x, float *out,
                                     gmem_error *error) {
    const gmem__halves halves = gmem__halves_at(run->plan, guide_t);
    gmem_velocity_call call;
    call.batch = run->desc->batch;
    call.per_picture = run->desc->per_picture;
    call.t = t;
    call.x = x;
    call.conditional = halves == GMEM__HALF_UNCONDITIONAL ? NULL : out;
    call.unconditional = halves == GMEM__HALF_CONDITIONAL     ? NULL
                         : halves == GMEM__HALF_UNCONDITIONAL ? out
                                                              : run->unconditional;
    gmem_error own = gmem__callback_error();
    gmem_status status = run->desc->velocity(run->desc->velocity_user, &call, &own);
    if (status != GMEM_OK) return gmem__fail_callback(error, status, &own, "the velocity function");
    run->passes++;
    if ((call.conditional && !gmem__all_finite(call.conditional, run->count)) ||
        (call.unconditional && !gmem__all_finite(call.unconditional, run->count)))
        return gmem__nonfinite(run, "what the network gave", t, error);
    if (halves == GMEM__HALF_BOTH) gmem__guide(run, out);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__run_step_done(gmem__run *run, double t, gmem_error *error) {
    run->step++;
    if (!gmem__all_finite(run->x, run->count)) return gmem__nonfinite(run, "the state", t, error);
    if (!run->desc->progress) return GMEM_OK;
    gmem_progress progress;
    progress.step = run->step;
    progress.steps = run->steps;
    progress.passes = run->passes;
    progress.total_passes = run->total_passes;
    progress.t = t;
    progress.x = run->x;
    if (run->desc->progress(run->desc->progress_user, &progress))
        return gmem__fail(error, GMEM_E_CANCELLED, "cancelled after step %lld", (long long)run->step);
    return GMEM_OK;
}

GMEM__FN void gmem__run_combine(const gmem__run *run, float *out, double x_weight, const float *x, int terms,
                                const double *weight, const float *const *k) {
    for (int64_t i = 0; i < run->count; i++) {
        double sum = x_weight * (double)x[i];
        for (int j = 0; j < terms; j++)
            sum += weight[j] * (double)k[j][i];
        out[i] = (float)sum;
    }
}

GMEM__FN void gmem__run_blend(const gmem__run *run, gmem__blend blend, const float *x, float *drift) {
    const float *const from = drift;
    gmem__run_combine(run, drift, blend.x, x, 1, &blend.model, &from);
}

/* Every buffer that the method needs, before the first step. */
static void gmem__run_layout(gmem__run *run, gmem__arena *arena) {
    const gmem__method *method = run->plan->method;
    const int stages = method->solver == GMEM__SOLVER_DOPRI ? GMEM__MAX_STAGES : method->stages;
    run->x = GMEM__TAKE_F32(arena, run->count);
    if (stages > 1) run->stage = GMEM__TAKE_F32(arena, run->count);
    for (int i = 0; i < gmem__max(stages, method->history); i++)
        run->k[i] = GMEM__TAKE_F32(arena, run->count);
    if (run->plan->desc.cfg_scale > 1) run->unconditional = GMEM__TAKE_F32(arena, run->count);
    if (gmem__is_sde(method)) run->noise = GMEM__TAKE_F32(arena, run->count);
}

static gmem_status gmem__run_solver(gmem__run *run, gmem_error *error) {
    switch (run->plan->method->solver) {
    case GMEM__SOLVER_DOPRI:
        return gmem__run_dopri5(run, error);
    case GMEM__SOLVER_ADAMS:
    case GMEM__SOLVER_DPMPP:
        return gmem__run_multistep(run, error);
    case GMEM__SOLVER_SDE_EULER:
    case GMEM__SOLVER_SDE_HEUN:
        return gmem__run_sde(run, error);
    case GMEM__SOLVER_GRID:
        break;
    }
    return gmem__run_grid(run, error);
}

static gmem_status gmem__check_integrate(const gmem_context *context, const gmem_integrate_desc *desc, const float *x,
                                         const gmem__plan *plan, int64_t *count, gmem_error *error) {
    if (!context || !x || !desc->velocity)
        return gmem__fail(error, GMEM_E_ARGUMENT, "integrating needs a context, a state and a velocity");
    if (desc->batch < 1 || desc->per_picture < 1 || !gmem__mul(desc->batch, desc->per_picture, count))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch or the picture is empty or too large");
    if (desc->channels < 0 || (desc->channels > 0 && desc->per_picture % desc->channels != 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a picture of %lld elements does not have %lld channels",
                          (long long)desc->per_picture, (long long)desc->channels);
    if (plan->desc.cfg_channels > gmem__max(1, desc->channels))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%d guided channels, where the latent has %lld",
                          plan->desc.cfg_channels, (long long)gmem__max(1, desc->channels));
    if (gmem__is_sde(plan->method) && !desc->noise)
        return gmem__fail(error, GMEM_E_ARGUMENT, "%s needs noise", plan->method->name);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__integrate(const gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                     gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__run run;
    gmem__arena arena;
    memset(&run, 0, sizeof run);
    memset(&arena, 0, sizeof arena);
    GMEM__TRY(gmem_sampler_check(&desc->sampler, 0, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    GMEM__TRY(gmem__check_integrate(context, desc, x, &plan, &run.count, error));
    run.plan = &plan;
    run.desc = desc;
    run.total_passes = gmem__plan_passes(&plan);
    run.steps = plan.intervals + plan.last_step;

    gmem__run_layout(&run, &arena);
    if (!gmem__arena_reserve(context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler (%lld bytes)", (long long)arena.bytes);
    gmem__run_layout(&run, &arena);
    memcpy(run.x, x, (size_t)run.count * sizeof(float));
    gmem_status status = gmem__run_solver(&run, error);
    if (status == GMEM_OK) {
        memcpy(x, run.x, (size_t)run.count * sizeof(float));
        if (desc->passes) *desc->passes = run.passes;
    }
    gmem__arena_release(context, &arena);
    return status;
}

GMEM_API gmem_status gmem_integrate(gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                    gmem_error *error) {
    if (!desc) return gmem__fail(error, GMEM_E_ARGUMENT, "there is nothing to integrate");
    if (desc->sampler.cache_threshold > 0)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a cache threshold is for sampling with a network, not for a velocity function");
    return gmem__integrate(context, desc, x, error);
}
/* ---- src/sample.c ---- */
/* Sampling with a network: it becomes the velocity that is integrated, a generator the noise. */

/* Guided passes run a doubled batch: the conditional half first, then the null half. */
typedef struct gmem__sampling {
    const gmem_sample_desc *desc;
    const gmem_network_info *info;
    const gmem__method *method;
    int guided;
    int flip_time;     /* the network's time runs the other way: t -> 1 - t, ... */
    int flip_sign;     /* ... and its velocity, where it predicts one, points the other way */
    int doubled_draws; /* the published script draws noise for the doubled batch and uses the first half */
    int64_t batch, per_picture;
    gmem_pass *pass;
    float *t;        /* (2 batch) */
    float *snippets; /* (2 batch, snippet_width): the null half is zero */
    int64_t *labels; /* (2 batch) */
    float *x, *v;    /* (2 batch, per_picture), guided only */
    float *draws;    /* (2 batch, per_picture), doubled_draws only */
    float *times;    /* (time_count) the network's times to come, neighbours distinct */
    int64_t time_count;
    int64_t prepared_first, prepared_end; /* of `times`: what the pass holds prepared */
} gmem__sampling;

static float gmem__network_time(const gmem__sampling *sampling, double t) {
    return (float)(sampling->flip_time ? 1 - t : t);
}

/* Lets the pass compute the adaLN projections of this time and as many of the following as it can hold. */
static gmem_status gmem__prepare_times(gmem__sampling *sampling, float t, gmem_error *error) {
    int64_t i = sampling->prepared_first;
    while (i < sampling->time_count && sampling->times[i] != t)
        i++;
    if (i < sampling->prepared_end || i == sampling->time_count) return GMEM_OK;
    const int64_t conditions = sampling->batch + sampling->guided;
    const int64_t room = gmem__pass_prepare_limit(sampling->pass) / conditions;
    const int64_t count = gmem__min(room, sampling->time_count - i);
    if (count < 2) return GMEM_OK;
    sampling->prepared_first = i;
    sampling->prepared_end = i + count;
    return gmem_pass_prepare(sampling->pass, count, sampling->times + i, sampling->batch, sampling->desc->snippets,
                             sampling->desc->labels, sampling->guided, error);
}

static gmem_status gmem__run_both(gmem__sampling *sampling, const gmem_velocity_call *call, gmem_error *error) {
    const size_t half = (size_t)(sampling->batch * sampling->per_picture);
    memcpy(sampling->x, call->x, half * sizeof(float));
    memcpy(sampling->x + half, call->x, half * sizeof(float));
    GMEM__TRY(gmem__pass_run(sampling->pass, 0, 2 * sampling->batch, sampling->x, sampling->t, sampling->snippets,
                             sampling->labels, sampling->v, error));
    memcpy(call->conditional, sampling->v, half * sizeof(float));
    memcpy(call->unconditional, sampling->v + half, half * sizeof(float));
    return GMEM_OK;
}

static void gmem__negate(float *v, int64_t count) {
    for (int64_t i = 0; v && i < count; i++)
        v[i] = -v[i];
}

static gmem_status gmem__network_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const float t = gmem__network_time(sampling, call->t);
    GMEM__TRY(gmem__prepare_times(sampling, t, error));
    for (int64_t i = 0; i < 2 * sampling->batch; i++)
        sampling->t[i] = t;
    if (call->conditional && call->unconditional)
        GMEM__TRY(gmem__run_both(sampling, call, error));
    else if (call->conditional)
        GMEM__TRY(gmem__pass_run(sampling->pass, 0, sampling->batch, call->x, sampling->t, desc->snippets, desc->labels,
                                 call->conditional, error));
    else
        GMEM__TRY(gmem__pass_run(sampling->pass, sampling->batch, sampling->batch, call->x, sampling->t, NULL, NULL,
                                 call->unconditional, error));
    if (sampling->flip_sign) {
        gmem__negate(call->conditional, sampling->batch * sampling->per_picture);
        gmem__negate(call->unconditional, sampling->batch * sampling->per_picture);
    }
    return GMEM_OK;
}

static gmem_status gmem__generator_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                         gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const gmem__draw_kind kind = sampling->method->repa ? GMEM__DRAW_DEVICE_F64 : GMEM__DRAW_HOST;
    (void)error;
    if (!sampling->doubled_draws) {
        gmem__rng_step_normal(desc->rng, kind, index, desc->picture, batch, per_picture, out);
        return GMEM_OK;
    }
    gmem__rng_step_normal(desc->rng, kind, index, desc->picture, 2 * batch, per_picture, sampling->draws);
    memcpy(out, sampling->draws, (size_t)(batch * per_picture) * sizeof(float));
    return GMEM_OK;
}

static gmem_status gmem__check_sample(const gmem_network *network, const gmem_sample_desc *desc, const float *x,
                                      int64_t per_picture, gmem_error *error) {
    int64_t elements;
    if (!network || !desc || !x)
        return gmem__fail(error, GMEM_E_ARGUMENT, "sampling needs a network, a description and a start");
    if (desc->batch < 1 || !gmem__mul(desc->batch, 4 * per_picture, &elements))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch is empty or too large");
    if (network->info.snippet_width > 0 && !desc->snippets)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on snippets, and none are given");
    if (network->info.classes > 0 && !desc->labels)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on class labels, and none are given");
    return GMEM_OK;
}

static void gmem__sampling_layout(gmem__sampling *sampling, gmem__arena *arena, int64_t time_count) {
    const gmem_network_info *info = sampling->info;
    const int64_t doubled = 2 * sampling->batch;
    sampling->t = GMEM__TAKE_F32(arena, doubled);
    sampling->times = GMEM__TAKE_F32(arena, time_count);
    if (sampling->doubled_draws) sampling->draws = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    if (!sampling->guided) return;
    sampling->x = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    sampling->v = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    if (info->snippet_width > 0) sampling->snippets = GMEM__TAKE_F32(arena, doubled * info->snippet_width);
    if (info->classes > 0) sampling->labels = (int64_t *)gmem__take(arena, doubled, sizeof(int64_t));
}

/* The doubled conditions and the times to come. */
static void gmem__sampling_fill(gmem__sampling *sampling, const gmem__plan *plan) {
    const int64_t batch = sampling->batch, width = sampling->info->snippet_width;
    if (sampling->snippets) {
        memset(sampling->snippets, 0, (size_t)(2 * batch * width) * sizeof(float));
        memcpy(sampling->snippets, sampling->desc->snippets, (size_t)(batch * width) * sizeof(float));
    }
    for (int64_t i = 0; sampling->labels && i < batch; i++) {
        sampling->labels[i] = sampling->desc->labels[i];
        sampling->labels[batch + i] = sampling->info->classes;
    }
    gmem__schedule schedule = gmem__schedule_start(plan);
    for (double t; gmem__schedule_next(&schedule, &t);) {
        float network_t = gmem__network_time(sampling, t);
        if (sampling->time_count == 0 || sampling->times[sampling->time_count - 1] != network_t)
            sampling->times[sampling->time_count++] = network_t;
    }
}

static gmem_status gmem__sample_run(const gmem_network *network, gmem__sampling *sampling, const gmem__plan *plan,
                                    float *x, gmem_error *error) {
    const gmem_sample_desc *desc = sampling->desc;
    gmem_integrate_desc integrate;
    gmem__sampling_fill(sampling, plan);
    memset(&integrate, 0, sizeof integrate);
    integrate.sampler = plan->desc;
    integrate.sampler.cache_threshold = 0; /* the pass sees to it */
    integrate.batch = sampling->batch;
    integrate.per_picture = sampling->per_picture;
    integrate.channels = sampling->info->channels;
    integrate.velocity = gmem__network_velocity;
    integrate.velocity_user = sampling;
    integrate.noise = desc->noise ? desc->noise : desc->rng ? gmem__generator_noise : NULL;
    integrate.noise_user = desc->noise ? desc->noise_user : sampling;
    integrate.progress = desc->progress;
    integrate.progress_user = desc->progress_user;
    integrate.passes = desc->passes;
    GMEM__TRY(gmem__pass_create(network, sampling->batch * (1 + sampling->guided), plan->desc.cache_threshold,
                                &sampling->pass, error));
    gmem_status status = gmem__integrate(network->context, &integrate, x, error);
    if (status == GMEM_OK && desc->reuse) *desc->reuse = gmem__pass_reuse(sampling->pass);
    gmem_pass_destroy(sampling->pass);
    return status;
}

GMEM_API gmem_status gmem_sample(const gmem_network *network, const gmem_sample_desc *desc, float *x,
                                 gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__sampling sampling;
    gmem__arena arena;
    memset(&sampling, 0, sizeof sampling);
    memset(&arena, 0, sizeof arena);
    const int64_t per_picture = network ? network->info.channels * network->info.height * network->info.width : 0;
    GMEM__TRY(gmem__check_sample(network, desc, x, per_picture, error));
    GMEM__TRY(gmem_sampler_check(&desc->sampler, network->info.time_reversed, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    sampling.desc = desc;
    sampling.info = &network->info;
    sampling.method = plan.method;
    sampling.guided = resolved.cfg_scale > 1;
    sampling.flip_time = network->info.time_reversed != plan.method->repa;
    sampling.flip_sign = sampling.flip_time && resolved.prediction == GMEM_PREDICT_VELOCITY;
    sampling.doubled_draws = gmem__is_sde(plan.method) && !plan.method->repa && sampling.guided && !desc->noise &&
                             desc->rng && desc->rng->kind != GMEM_RNG_PHILOX;
    sampling.batch = desc->batch;
    sampling.per_picture = per_picture;

    const int64_t time_count = gmem__plan_passes(&plan);
    gmem__sampling_layout(&sampling, &arena, time_count);
    if (!gmem__arena_reserve(network->context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler (%lld bytes)", (long long)arena.bytes);
    gmem__sampling_layout(&sampling, &arena, time_count);
    gmem_status status = gmem__sample_run(network, &sampling, &plan, x, error);
    gmem__arena_release(network->context, &arena);
    return status;
}
/* ---- src/generate.c ---- */
/* One call from files to pixels, on the public objects alone. */

/* The default batch: enough columns for every matrix product, activations within reach of the caches. */
#define GMEM__BATCH_TOKENS 1024
#define GMEM__BATCH_MOST   16

/* Everything that a run opens and fills, released together. */
typedef struct gmem__generation {
    gmem_context *context;
    const gmem_generate_desc *desc;
    gmem_file *network_file; /* shared by the network and, in the first version, its bank */
    gmem_network *network;
    gmem_bank *bank;
    gmem_autoencoder *autoencoder;
    const gmem_network_info *info;
    int64_t count, batch, per_picture;
    int64_t first, size; /* the pictures being drawn: at most `batch` */
    gmem_rng rng;
    gmem_progress done; /* steps and passes of the batches before; what the present one has told last */
    gmem_progress told;
    int bank_in_network;
    gmem__arena arena; /* of the five below */
    float *z;          /* (batch, channels, height, width): noise, then latents */
    float *snippets;   /* (batch, snippet_width) */
    int64_t *chosen;   /* (count) rows or labels */
    float *stats;      /* (2, channels): mean and std */
    float *decoded;    /* (3, height * factor, width * factor), of one picture */
    gmem_image image;
} gmem__generation;

/* sizes ----------------------------------------------------------------------------------------------------------- */

static int64_t gmem__image_bytes(const gmem_image *image) { return image->count * image->height * image->width * 3; }

static void gmem__generation_take(gmem__generation *g) {
    g->z = GMEM__TAKE_F32(&g->arena, g->batch * g->per_picture);
    g->snippets = GMEM__TAKE_F32(&g->arena, g->batch * g->info->snippet_width);
    g->chosen = (int64_t *)gmem__take(&g->arena, g->count, sizeof *g->chosen);
    g->stats = GMEM__TAKE_F32(&g->arena, 2 * g->info->channels);
    g->decoded = GMEM__TAKE_F32(&g->arena, 3 * g->image.height * g->image.width);
}

/* torch's generators have one stream, so the batch changes the pictures; the published script draws all at once. */
static int64_t gmem__generation_batch(const gmem__generation *g) {
    int64_t batch = gmem__max(1, gmem__min(GMEM__BATCH_TOKENS / g->info->tokens, GMEM__BATCH_MOST));
    if (g->desc->rng != GMEM_RNG_PHILOX) batch = g->count;
    if (g->desc->batch) batch = g->desc->batch;
    return gmem__min(batch, g->count);
}

static gmem_status gmem__generation_alloc(gmem__generation *g, gmem_error *error) {
    const gmem_network_info *info = g->info;
    int64_t factor = gmem_autoencoder_get_info(g->autoencoder)->factor, size = 0;
    g->per_picture = info->channels * info->height * info->width;
    /* one of the three is the largest product by which anything below is sized */
    if (!gmem__mul(3 * info->height * factor * info->width * factor, g->count, &size) ||
        !gmem__mul(g->per_picture, g->count, &size) || !gmem__mul(info->snippet_width, g->count, &size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld pictures are too many", (long long)g->count);
    g->batch = gmem__generation_batch(g);
    g->image.count = g->count;
    g->image.height = info->height * factor;
    g->image.width = info->width * factor;
    gmem__generation_take(g);
    g->image.pixels = (uint8_t *)gmem__alloc_raw(g->context, gmem__image_bytes(&g->image), 1);
    if (!gmem__arena_reserve(g->context, &g->arena) || !g->image.pixels)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for %lld pictures", (long long)g->count);
    gmem__generation_take(g);
    return GMEM_OK;
}

static void gmem__generation_free(gmem__generation *g) {
    gmem__arena_release(g->context, &g->arena);
    gmem_image_free(g->context, &g->image);
    gmem_autoencoder_close(g->autoencoder);
    gmem_bank_close(g->bank);
    gmem_network_close(g->network);
    gmem_file_close(g->network_file);
}

GMEM_API void gmem_image_free(gmem_context *context, gmem_image *image) {
    if (!image) return;
    gmem__free(context, image->pixels, gmem__image_bytes(image), 1);
    memset(image, 0, sizeof *image);
}

/* opening --------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__generation_open_network(gmem__generation *g, gmem_error *error) {
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    GMEM__TRY(gmem_file_open(g->context, g->desc->network, NULL, &g->network_file, error));
    desc.file = g->network_file;
    GMEM__TRY(gmem_network_open(g->context, &desc, &g->network, error));
    g->info = gmem_network_get_info(g->network);
    return GMEM_OK;
}

static gmem_status gmem__generation_open_bank(gmem__generation *g, gmem_error *error) {
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    if (g->info->snippet_width == 0) {
        if (g->desc->bank || g->desc->memory_count > 0)
            return gmem__fail(error, GMEM_E_COMBINATION, "a class-conditional network takes labels, not a bank");
        return GMEM_OK;
    }
    if (g->desc->label_count > 0)
        return gmem__fail(error, GMEM_E_COMBINATION, "a network with snippets takes no labels");
    g->bank_in_network = !g->desc->bank && gmem_file_find_any(g->network_file, "memorybank") != NULL;
    if (!g->desc->bank && !g->bank_in_network) return gmem__fail(error, GMEM_E_ARGUMENT, "this network needs a bank");
    desc.paths = &g->desc->bank;
    desc.path_count = 1;
    desc.file = g->bank_in_network ? g->network_file : NULL;
    desc.names_path = g->desc->names;
    GMEM__TRY(gmem_bank_open(g->context, &desc, &g->bank, error));
    if (gmem_bank_width(g->bank) == g->info->snippet_width) return GMEM_OK;
    return gmem__fail_at(error, GMEM_E_WIDTH, gmem_bank_file_path(g->bank, 0), -1,
                         "the bank's rows have %lld elements, the network's snippets %lld",
                         (long long)gmem_bank_width(g->bank), (long long)g->info->snippet_width);
}

static gmem_status gmem__generation_open_autoencoder(gmem__generation *g, gmem_error *error) {
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.path = g->desc->autoencoder;
    GMEM__TRY(gmem_autoencoder_open(g->context, &desc, &g->autoencoder, error));
    int64_t channels = gmem_autoencoder_get_info(g->autoencoder)->latent_channels;
    if (channels == g->info->channels) return GMEM_OK;
    return gmem__fail_at(error, GMEM_E_LATENT, g->desc->autoencoder, -1,
                         "the autoencoder has %lld latent channels, the network %lld", (long long)channels,
                         (long long)g->info->channels);
}

static gmem_status gmem__generation_read_stats(gmem__generation *g, gmem_error *error) {
    int64_t channels = g->info->channels;
    gmem_file *file = NULL;
    for (int64_t i = 0; i < 2 * channels; i++) {
        g->stats[i] = i < channels ? 0.0f : 1.0f;
    }
    if (!g->desc->latent_stats) return GMEM_OK;
    GMEM__TRY(gmem_file_open(g->context, g->desc->latent_stats, ".", &file, error));
    gmem_status status = gmem_read_latent_stats(file, channels, g->stats, g->stats + channels, error);
    gmem_file_close(file);
    return status;
}

/* what to draw ---------------------------------------------------------------------------------------------------- */

/* Digits are a row's number, anything else a name. */
static gmem_status gmem__generation_find_row(const gmem_bank *bank, const char *what, int64_t *row, gmem_error *error) {
    int64_t number = 0;
    const char *c = what;
    if (!what) return gmem__fail(error, GMEM_E_ARGUMENT, "a name of a row is missing");
    for (; *c >= '0' && *c <= '9'; c++) {
        if (!gmem__mul(number, 10, &number) || !gmem__add(number, *c - '0', &number)) break;
    }
    if (c == what || *c) return gmem_bank_find(bank, what, row, error);
    if (number >= gmem_bank_rows(bank))
        return gmem__fail(error, GMEM_E_ROW, "row %lld of a bank of %lld", (long long)number,
                          (long long)gmem_bank_rows(bank));
    *row = number;
    return GMEM_OK;
}

/* What the caller named, in turn; before any number is drawn. */
static gmem_status gmem__generation_choose_named(gmem__generation *g, gmem_error *error) {
    const gmem_generate_desc *desc = g->desc;
    for (int64_t i = 0; i < g->count && desc->memory_count > 0; i++) {
        GMEM__TRY(gmem__generation_find_row(g->bank, desc->memory[i % desc->memory_count], &g->chosen[i], error));
    }
    for (int64_t i = 0; i < g->count && desc->label_count > 0; i++) {
        g->chosen[i] = desc->labels[i % desc->label_count];
        if (g->chosen[i] < 0 || g->chosen[i] >= g->info->classes)
            return gmem__fail(error, GMEM_E_LABEL, "label %lld of %lld classes", (long long)g->chosen[i],
                              (long long)g->info->classes);
    }
    return GMEM_OK;
}

/* GMem's first version: rows from the noise and `memoryfreq`, which its checkpoints hold beside their bank. */
static gmem_status gmem__generation_choose_by_noise(gmem__generation *g, const gmem_tensor *frequencies,
                                                    gmem_error *error) {
    int64_t rows = gmem_bank_rows(g->bank);
    gmem_status status = GMEM_OK;
    if (gmem_tensor_count(frequencies) != rows)
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(g->network_file), -1,
                             "\"memoryfreq\" has %lld elements for %lld rows",
                             (long long)gmem_tensor_count(frequencies), (long long)rows);
    int64_t *memoryfreq = (int64_t *)gmem__alloc_raw(g->context, rows, sizeof *memoryfreq);
    if (!memoryfreq) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the rows' frequencies");
    gmem_tensor_read_i64(frequencies, 0, rows, memoryfreq);
    for (int64_t i = 0; i < g->size && status == GMEM_OK; i++) {
        status = gmem_choose_row(memoryfreq, rows, g->z + i * g->per_picture, g->per_picture, &g->chosen[g->first + i],
                                 error);
    }
    gmem__free(g->context, memoryfreq, rows, sizeof *memoryfreq);
    return status;
}

static gmem_status gmem__generation_choose_random(gmem__generation *g, gmem_error *error) {
    const gmem_tensor *frequencies = gmem_file_find_any(g->network_file, "memoryfreq");
    if (g->bank_in_network && frequencies) return gmem__generation_choose_by_noise(g, frequencies, error);
    int64_t high = g->bank ? gmem_bank_rows(g->bank) : g->info->classes;
    gmem_rng_integers(&g->rng, GMEM_DRAW_ROW, g->first, g->size, high, g->chosen + g->first);
    return GMEM_OK;
}

/* The published script's order of draws: z, then rows; the steps' noise follows while sampling. */
static gmem_status gmem__generation_condition(gmem__generation *g, gmem_error *error) {
    gmem_rng_normal(&g->rng, GMEM_DRAW_LATENT, 0, g->first, g->size, g->per_picture, g->z);
    if (g->desc->memory_count == 0 && g->desc->label_count == 0) GMEM__TRY(gmem__generation_choose_random(g, error));
    for (int64_t i = 0; i < g->size && g->bank; i++) {
        GMEM__TRY(gmem_bank_snippet(g->bank, g->chosen[g->first + i], g->snippets + i * g->info->snippet_width, error));
    }
    return GMEM_OK;
}

/* drawing --------------------------------------------------------------------------------------------------------- */

/* The caller sees one run, however many batches it has. */
static int gmem__generation_progress(void *user, const gmem_progress *progress) {
    gmem__generation *g = (gmem__generation *)user;
    const int64_t batches = gmem__ceil_div(g->count, g->batch);
    gmem_progress all = *progress;
    g->told = *progress;
    all.step += g->done.step;
    all.steps *= batches;
    all.passes += g->done.passes;
    all.total_passes *= batches;
    return g->desc->progress(g->desc->progress_user, &all);
}

static gmem_status gmem__generation_sample(gmem__generation *g, gmem_error *error) {
    gmem_sample_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.sampler = g->desc->sampler;
    desc.batch = g->size;
    desc.picture = g->first;
    desc.snippets = g->bank ? g->snippets : NULL;
    desc.labels = g->bank ? NULL : g->chosen + g->first;
    desc.rng = &g->rng;
    desc.progress = g->desc->progress ? gmem__generation_progress : NULL;
    desc.progress_user = g;
    GMEM__TRY(gmem_sample(g->network, &desc, g->z, error));
    g->done.step += g->told.step;
    g->done.passes += g->told.passes;
    return GMEM_OK;
}

static gmem_status gmem__generation_decode(gmem__generation *g, gmem_error *error) {
    const gmem_network_info *info = g->info;
    const int64_t image_bytes = g->image.height * g->image.width * 3;
    double multiplier = g->desc->multiplier;
    if (multiplier == 0) multiplier = gmem_autoencoder_get_info(g->autoencoder)->multiplier;
    gmem_denormalize(g->z, g->size, info->channels, info->height * info->width, g->stats, g->stats + info->channels,
                     multiplier);
    for (int64_t i = 0; i < g->size; i++) {
        GMEM__TRY(
            gmem_decode(g->autoencoder, 1, info->height, info->width, g->z + i * g->per_picture, g->decoded, error));
        gmem_pixels(g->decoded, 1, g->image.height, g->image.width, g->image.pixels + (g->first + i) * image_bytes);
    }
    return GMEM_OK;
}

static gmem_status gmem__generation_draw(gmem__generation *g, gmem_error *error) {
    GMEM__TRY(gmem__generation_choose_named(g, error));
    gmem_rng_init(&g->rng, g->desc->rng, g->desc->seed);
    for (g->first = 0; g->first < g->count; g->first += g->size) {
        g->size = gmem__min(g->batch, g->count - g->first);
        GMEM__TRY(gmem__generation_condition(g, error));
        GMEM__TRY(gmem__generation_sample(g, error));
        GMEM__TRY(gmem__generation_decode(g, error));
    }
    return GMEM_OK;
}

static gmem_status gmem__generation_run(gmem__generation *g, gmem_error *error) {
    GMEM__TRY(gmem__generation_open_network(g, error));
    GMEM__TRY(gmem__generation_open_bank(g, error));
    GMEM__TRY(gmem__generation_open_autoencoder(g, error));
    GMEM__TRY(gmem__generation_alloc(g, error));
    GMEM__TRY(gmem__generation_read_stats(g, error));
    return gmem__generation_draw(g, error);
}

static gmem_status gmem__generate_check(const gmem_context *context, const gmem_generate_desc *desc,
                                        const gmem_image *out, gmem_error *error) {
    if (!context || !desc || !out || !desc->network || !desc->autoencoder)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_generate needs a network, an autoencoder and an output");
    if (desc->count < 0 || desc->batch < 0 || desc->memory_count < 0 || desc->label_count < 0 ||
        (desc->memory_count && !desc->memory) || (desc->label_count && !desc->labels) || (int)desc->rng < 0 ||
        desc->rng > GMEM_RNG_TORCH_CUDA || !(desc->multiplier >= 0 && desc->multiplier - desc->multiplier == 0))
        return gmem__fail(error, GMEM_E_ARGUMENT,
                          "a count, a list, the generator or the multiplier of gmem_generate is wrong");
    return GMEM_OK;
}

GMEM_API gmem_status gmem_generate(gmem_context *context, const gmem_generate_desc *desc, gmem_image *out,
                                   gmem_error *error) {
    gmem__generation g;
    GMEM__TRY(gmem__generate_check(context, desc, out, error));
    memset(&g, 0, sizeof g);
    g.context = context;
    g.desc = desc;
    g.count = desc->count ? desc->count : 1;
    gmem_status status = gmem__generation_run(&g, error);
    if (status == GMEM_OK) {
        *out = g.image;
        memset(&g.image, 0, sizeof g.image); /* the caller's now */
    }
    gmem__generation_free(&g);
    return status;
}

#undef GMEM__BATCH_TOKENS
#undef GMEM__BATCH_MOST

#endif /* GMEM_IMPLEMENTATION */
