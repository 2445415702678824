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
 *     GMEM_NO_OPENCL  the OpenCL backend is left out
 * Link with libm, and with libdl where dlopen is there (glibc before 2.34). OpenMP is used where the compiler has it
 * switched on (-fopenmp); OpenCL and CLBlast are looked for at run time and never needed.
 *
 * Contents (search for ">>"):
 *     >>errors       status codes and gmem_error
 *     >>context      backend, device, instruction set, threads, allocator, files, log
 *     >>tensors      element types and tensors
 *     >>files        checkpoints: torch zip, torch legacy, safetensors; writing safetensors
 *     >>network      the transformer
 *     >>random       noise
 *     >>sampler      from noise to latents, with a network or with your own velocity
 *     >>bank         the memory: rows, names, mixing
 *     >>autoencoder  latents to pixels and back
 *     >>encoder      pictures to snippets: resizing, cropping, the image encoder
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
    X(E_LOCKED, "another writer holds the bank")                                      \
    X(E_LABEL, "no such class label")                                                 \
    X(E_NONFINITE, "the network produced a value that is not finite")                 \
    X(E_STIFF, "the adaptive solver's step became too small")                         \
    /* OpenCL */                                                                      \
    X(E_NO_DEVICE, "no such OpenCL device")                                           \
    X(E_DEVICE, "a call of OpenCL or CLBlast failed")                                 \
    X(E_DEVICE_TEST, "the OpenCL device computes wrong results")

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
    /* Opens for reading (write = 0) or creates anew (write = 1, fails where it exists). NULL on failure, with errno
     * ENOENT where there is no such file: only then does gmem_bank_add make it. */
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
    /* Moves a finished file over `to`, durably where the system can; 0 on success. Default: it takes over the owner and
     * the permissions of the file that was there. */
    int (*rename)(void *user, const char *from, const char *to);
    int (*remove)(void *user, const char *path);
    /* Keeps other writers of the file `path` out, whether it exists or not, until unlock or the end of the process,
     * however it comes. NULL: somebody holds it (*held is set to 1), or it cannot be had (0). Both or neither; without
     * them nobody is kept out. Default: a lock on PATH.lock, where the system has flock. */
    void *(*lock)(void *user, const char *path, int *held);
    void (*unlock)(void *user, void *lock);
} gmem_io;

typedef enum gmem_isa { GMEM_ISA_AUTO, GMEM_ISA_SCALAR, GMEM_ISA_AVX2, GMEM_ISA_AVX512, GMEM_ISA_AMX } gmem_isa;

/* What the large matrix products compute in: the blocks' linear layers, attention and the autoencoder's convolutions.
 * Sums and everything else are f32 always. Files of any type run in any of them. BF16: weights and inputs are rounded
 * to bf16. INT8: weights have one scale a row, inputs one a token (symmetric, found as they come; of 8 bits,
 * of 7 on AVX2 without VNNI); attention, the autoencoder and the layers that suffer (network.c says which) compute in
 * bf16. F16, OpenCL only: weights and inputs are rounded to f16; devices with cl_khr_fp16 that are no processors
 * multiply in f16 and add up a few products in it before they go to a sum, all others in f32, and the log says why.
 * Where a processor or device lacks an instruction for it, the same rounding is computed with what it has. */
typedef enum gmem_compute { GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8, GMEM_COMPUTE_F16 } gmem_compute;

/* Where networks and autoencoders run. AUTO: a GPU that OpenCL knows, that passes a short test against the CPU and is
 * faster at it; else the CPU, and so it is where a device fails later. OPENCL never falls back. */
typedef enum gmem_backend { GMEM_BACKEND_AUTO, GMEM_BACKEND_CPU, GMEM_BACKEND_OPENCL } gmem_backend;

/* Where the functions of OpenCL and CLBlast come from: `symbol` gives one by its name, or NULL. It is called while a
 * context is created or devices are listed. Default: libOpenCL and libclblast, opened when first needed. */
typedef struct gmem_opencl {
    void *user;
    void (*(*symbol)(void *user, const char *name))(void);
} gmem_opencl;

typedef struct gmem_context_desc {
    gmem_isa isa;         /* auto: the fastest that this processor has; a named one that is missing is an error */
    gmem_compute compute; /* f32 */
    /* 0: as many as the machine has; needs OpenMP for more than one. Between steps they sleep: LLVM's runtime is told
     * to let them after a millisecond; GCC's spins for some 5 ms first, and not where the program runs with
     * GOMP_SPINCOUNT=1000, which also helps where other programs want the processor. */
    int threads;
    gmem_backend backend; /* auto */
    /* The OpenCL device: its number in gmem_devices, or a part of its name, case ignored; NULL: the first GPU, else the
     * first of any kind. */
    const char *device;
    /* A folder for compiled OpenCL programs and tuned parameters, keyed by device, driver and source; it must exist and
     * be writable by nobody else. NULL: everything is compiled anew. */
    const char *cache_dir;
    int64_t device_memory;    /* bytes of the device's memory to use at most; 0: what it has */
    gmem_opencl opencl;       /* all zero: the system's libraries */
    int no_map;               /* read files into memory instead of mapping them: survives files that shrink */
    gmem_allocator allocator; /* all zero: the C library */
    gmem_io io;               /* all zero: the system's files */
    /* What was chosen and opened, a line without its end at a time, on the calling thread; NULL: nobody is told. */
    void (*log)(void *user, const char *line);
    void *log_user;
} gmem_context_desc;

typedef struct gmem_context gmem_context;

/* `desc` may be NULL for all defaults. The context must outlive everything made from it.
 * Errors: E_MEMORY, E_UNSUPPORTED (instruction set, or OPENCL in a build without it), E_ARGUMENT; with OPENCL also
 * E_NO_DEVICE, E_DEVICE, E_DEVICE_TEST. */
GMEM_API gmem_status gmem_context_create(const gmem_context_desc *desc, gmem_context **out, gmem_error *error);
GMEM_API void gmem_context_destroy(gmem_context *context); /* NULL is allowed, as in every destroy and close */

/* What runs: "cpu/avx2", "cpu/avx512", "cpu/scalar", "opencl/NAME"; the CPU's once it went on for a device. Lives as
 * long as the context. */
GMEM_API const char *gmem_context_backend(const gmem_context *context);
GMEM_API gmem_isa gmem_context_isa(const gmem_context *context);
GMEM_API gmem_compute gmem_context_compute(const gmem_context *context);
/* The kernels of the large products: "avx512", "avx512-bf16", "amx-int8", "opencl", "opencl-f16" (f16 arithmetic), ...
 * Lives as long as the context. */
GMEM_API const char *gmem_context_kernels(const gmem_context *context);
GMEM_API int gmem_context_threads(const gmem_context *context);

/* An OpenCL device as it describes itself; texts are escaped to printable ASCII. */
typedef struct gmem_device_info {
    char name[128], vendor[64], driver[64], version[64], platform[64];
    const char *kind;     /* "gpu", "cpu", "accelerator" or "other" */
    const char *unusable; /* why gmem cannot use it ("its OpenCL is older than 1.2"), or NULL */
    int64_t memory;       /* bytes of all its buffers */
    int64_t largest;      /* bytes of one buffer */
    int64_t units;        /* compute units */
    int unified;          /* it shares the host's memory */
    int fp16;             /* it has f16 arithmetic for GMEM_COMPUTE_F16: cl_khr_fp16, and is no processor */
} gmem_device_info;

/* The OpenCL devices of this machine in the order of their numbers: the first `capacity` go to `out`, `count` receives
 * how many there are. hook: NULL for the system's libraries. Nothing is compiled, but drivers are loaded.
 * Errors: E_NO_DEVICE (no library, driver or device), E_DEVICE, E_UNSUPPORTED (GMEM_NO_OPENCL), E_ARGUMENT. */
GMEM_API gmem_status gmem_devices(const gmem_opencl *hook, gmem_device_info *out, int capacity, int *count,
                                  gmem_error *error);

/* Opens the OpenCL device that `desc` names (desc->device; desc->backend is not looked at) as gmem_context_create
 * would, which compiles its kernels and compares each operation with the CPU's, and measures the seconds of a matrix
 * product of a usual size on it and on this CPU. Both are optional; they are set on success.
 * Errors: those of gmem_context_create; E_DEVICE_TEST names the operation that differs. */
GMEM_API gmem_status gmem_device_check(const gmem_context_desc *desc, double *device_seconds, double *cpu_seconds,
                                       gmem_error *error);

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
    gmem_backend backend; /* auto: the context's; CPU in any context; OPENCL: the context must have a device */
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

/* Sampling and decoding in one, so that a device gets no more than a seed and gives no more than pixels. */
typedef struct gmem_sample_pixels_desc {
    gmem_sample_desc sample;
    const float *z;          /* (batch, channels, height, width) start noise, or NULL: sample.rng's, of Philox only */
    const float *mean, *std; /* (channels) as for gmem_denormalize */
    double multiplier;       /* 0: the autoencoder family's */
} gmem_sample_pixels_desc;

typedef struct gmem_autoencoder gmem_autoencoder;

/* pixels (batch, height * factor, width * factor, 3), as gmem_pixels makes them, but for GMem's first version, which
 * added 127.5. Network and autoencoder must be on the same backend. Errors: those of gmem_sample and gmem_decode,
 * E_LATENT, E_COMBINATION. */
GMEM_API gmem_status gmem_sample_pixels(const gmem_network *network, const gmem_autoencoder *autoencoder,
                                        const gmem_sample_pixels_desc *desc, uint8_t *pixels, gmem_error *error);

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
/* The first row of that name, else the first whose name is the same but for the case of ASCII letters.
 * Errors: E_NAME_UNKNOWN (the message offers the nearest names). */
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

/* A found row and the cosine between it and the query. */
typedef struct gmem_match {
    int64_t row;
    float cosine;
} gmem_match;

typedef struct gmem_bank_search_desc {
    const float *queries; /* (count, width), of any length but 0 */
    int64_t count;
    int64_t k;               /* rows to find for each; at most the bank's */
    const gmem_bank *rerank; /* the same rows, more exact: what was found in `bank`, and somewhat more, is ordered by
                                their cosines here, which are then returned; or NULL */
    int64_t candidates;      /* with rerank: rows to take from `bank` for each query; 0: 4 * k + 64 */
} gmem_bank_search_desc;

/* The k rows of largest cosine to each query, best first, the lower row where two are equal: out (count, k). Exact
 * over all rows, as the bank's type holds them: products in f32 or narrower only tell which rows' cosines are worth
 * computing in double. Rows that are zero or not finite are never found, and where too few are left `row` is -1. Up to
 * 256 queries share a scan. Memory grows with count, k and the threads, not with the bank.
 * Errors: E_ARGUMENT, E_MEMORY, E_ROW_ZERO (a query), E_WIDTH (rerank). */
GMEM_API gmem_status gmem_bank_search(const gmem_bank *bank, const gmem_bank_search_desc *desc, gmem_match *out,
                                      gmem_error *error);

/* How far the writing of a bank is, now and then; not 0 ends it: E_CANCELLED, and everything is as it was. */
typedef int (*gmem_bank_progress_fn)(void *user, int64_t done, int64_t total);

/* Rows for a bank's file, from memory or one after the other. */
typedef struct gmem_bank_source {
    int64_t rows, width;
    const float *features; /* (rows, width); or NULL: `fill` */
    /* Rows [first, first + count) into out (count, width). Asked for in order, once each; for a file of I8 once more,
     * for its scales come before its rows. */
    gmem_status (*fill)(void *user, int64_t first, int64_t count, float *out, gmem_error *error);
    void *fill_user;
    const char *const *names;       /* (rows), UTF-8, NULL for a row without; or NULL: no names */
    gmem_bank_progress_fn progress; /* or NULL; counts the old rows of the file too */
    void *progress_user;
} gmem_bank_source;

/* Adds rows to the bank of these files, in order, of which only the last is written: a native file (safetensors with
 * `features`), made anew with `type` (F32, F16, BF16, F64, I8: largest magnitude of a row / 127 is its scale) where it
 * does not exist; an old one keeps its type, its metadata and its other tensors. The new file is written whole beside
 * the old one and renamed over it, so that readers and a crash see the one or the other; a second writer is refused.
 * Opened banks keep the old rows. Memory does not grow with the old rows, but for their names.
 * Refuses rows that are zero or not finite, or would be in the file's type, and names that the bank has already, byte
 * for byte, or that hold the end of a line. first_row (or NULL) receives the number of the first row added. Errors:
 * E_ARGUMENT, E_LOCKED, E_COMBINATION (the last file is not native, or holds a tensor of one value a row), E_WIDTH,
 * E_ROW_ZERO, E_TYPE (a value that F16 or BF16 cannot hold), E_NAMES, those of files and of gmem_save. */
GMEM_API gmem_status gmem_bank_add(gmem_context *context, const char *const *paths, int path_count, gmem_type type,
                                   const gmem_bank_source *source, int64_t *first_row, gmem_error *error);
/* The same into a file of its own, in place of one that may be there. Errors: as gmem_bank_add. */
GMEM_API gmem_status gmem_bank_create(gmem_context *context, const char *path, gmem_type type,
                                      const gmem_bank_source *source, gmem_error *error);
/* Removes rows (count; in any order) of the last file from it in the same way; later rows move up. The file must keep
 * at least one (E_ARGUMENT). progress may be NULL. Errors: as gmem_bank_add, E_ROW (also a row of an earlier file). */
GMEM_API gmem_status gmem_bank_remove(gmem_context *context, const char *const *paths, int path_count,
                                      const int64_t *rows, int64_t count, gmem_bank_progress_fn progress, void *user,
                                      gmem_error *error);
/* Writes a bank as one native file, whatever it is made of, names included. What is of `type` already is copied bit by
 * bit. Errors: E_ARGUMENT, E_LOCKED, E_TYPE (as gmem_bank_add), E_ROW_ZERO (I8: a row that is not finite), those of
 * gmem_save. */
GMEM_API gmem_status gmem_bank_export(const gmem_bank *bank, const char *path, gmem_type type,
                                      gmem_bank_progress_fn progress, void *user, gmem_error *error);

typedef struct gmem_bank_compress_desc {
    int64_t rank;   /* directions that are kept: C, M, S, mean; 0: all rows as `type` alone */
    gmem_type type; /* of C or of the rows; F32, F16, BF16, I8 with a scale for each row (rank 0 only) */
    /* Now and then; not 0 ends it: E_CANCELLED. done of total rows, all passes over the bank together. Or NULL. */
    int (*progress)(void *user, int64_t done, int64_t total);
    void *user;
} gmem_bank_compress_desc;

/* A row's image is what a reader of the new bank gets, the type's rounding included. */
typedef struct gmem_bank_compress_report {
    /* Kept, of the centred rows: 1 - |row - its image|^2 / |row - mean|^2, summed; 1 where all rows are equal. */
    double energy;
    double mean_cosine, least_cosine;  /* between a row and its image; rows of zeros aside */
    int64_t bytes_before, bytes_after; /* of the files */
} gmem_bank_compress_report;

/* Makes a smaller bank: of rank `rank`, at most the rows and the width (C = U sqrt(S), M = V sqrt(S) of the centred
 * rows' SVD, as the published utils/svd_utils.py), or int8. Whatever the bank is made of, and names travel. Reads it
 * twice (once for rank 0 without scales), in memory that the width bounds, not the rows; the file's pages are let go
 * of. The covariance is summed in double, so that singular values are right to f32 down to 1e-4 of the largest, and its
 * eigenvectors are the directions; those that all rows lack have S = 0. C is projected in f32: the report's cosines are
 * right to 1e-6 |row - mean| / |row|. Errors: E_ARGUMENT, E_COMBINATION (I8 with a rank), E_UNSUPPORTED (a
 * rank of rows wider than 16384), E_ROW_ZERO (a row is not finite), E_TYPE (a row exceeds `type`), E_CANCELLED,
 * E_LOCKED, those of gmem_save. */
GMEM_API gmem_status gmem_bank_compress(const gmem_bank *bank, const char *path, const gmem_bank_compress_desc *desc,
                                        gmem_bank_compress_report *report, gmem_error *error);

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
    gmem_backend backend; /* as for a network */
} gmem_autoencoder_desc;

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

/* >>encoder ------------------------------------------------------------------------------------------------------ */

/* Resizing as PIL's Image.resize does it, antialiased when it shrinks, in its 8-bit arithmetic. */
typedef enum gmem_filter {
    GMEM_FILTER_BOX,
    GMEM_FILTER_BICUBIC /* Catmull-Rom's, a = -0.5 */
} gmem_filter;

/* pixels (height, width, 3) -> out (out_height, out_width, 3). Errors: E_ARGUMENT, E_MEMORY. */
GMEM_API gmem_status gmem_resize(gmem_context *context, gmem_filter filter, int64_t height, int64_t width,
                                 const uint8_t *pixels, int64_t out_height, int64_t out_width, uint8_t *out,
                                 gmem_error *error);
/* As the published bank builder crops (datasets/construct_memory_bank.py): halved by boxes while the shorter side has
 * at least 2 * size, bicubic to `size`, the middle. pixels (height, width, 3) -> out (size, size, 3).
 * Errors: E_ARGUMENT, E_MEMORY. */
GMEM_API gmem_status gmem_center_crop(gmem_context *context, int64_t height, int64_t width, const uint8_t *pixels,
                                      int64_t size, uint8_t *out, gmem_error *error);

typedef struct gmem_image_encoder_info {
    const char *name; /* "DINOv2 ViT-B/14", "DINOv2 ViT-B/14 with registers"; the family alone for unpublished sizes */
    int64_t width;    /* of a feature: what a network's snippet_width must be */
    int64_t depth, heads, head_dim, mlp_hidden;
    int64_t patch, registers; /* pixels on a side; register tokens */
    int64_t picture_size;     /* side that pictures are cropped to: 256 for patch 14, else input_size */
    int64_t input_size;       /* side that the transformer sees: `image_size` of the file's metadata; else 224 for
                                 patch 14; else what pos_embed was made for */
    int64_t tokens;           /* patches of input_size, without class and register tokens */
    int64_t parameters, weight_bytes;
    double flop; /* of one picture */
} gmem_image_encoder_info;

typedef struct gmem_image_encoder_desc {
    const char *path;
    gmem_file *file; /* or one open file, which must outlive the encoder */
    const char *key;
    int heads;            /* 0: from the file's metadata or configuration, else 64 channels a head */
    gmem_backend backend; /* as for a network */
} gmem_image_encoder_desc;

/* A DINOv2 vision transformer in its official key names (arXiv 2304.07193; registers: arXiv 2309.16588).
 * Errors: those of files, E_ARCHITECTURE, E_MISSING_TENSOR, E_SHAPE, E_TYPE, E_HEADS, E_COMBINATION. */
typedef struct gmem_image_encoder gmem_image_encoder;
GMEM_API gmem_status gmem_image_encoder_open(gmem_context *context, const gmem_image_encoder_desc *desc,
                                             gmem_image_encoder **out, gmem_error *error);
GMEM_API void gmem_image_encoder_close(gmem_image_encoder *encoder);
GMEM_API const gmem_image_encoder_info *gmem_image_encoder_get_info(const gmem_image_encoder *encoder);

/* image (count, 3, height, width) in [-1, 1] -> cls (count, width), the class token after the final norm, and patch
 * (count, tokens, width), the patch tokens after it; either may be NULL. As the published wrapper preprocesses
 * (models/dinov2.py): to [0, 1], ImageNet's mean and deviation, bicubic (A = -0.75, not antialiased) to input_size.
 * Safe from several threads. Errors: E_ARGUMENT, E_MEMORY, E_NONFINITE, E_DEVICE. */
GMEM_API gmem_status gmem_image_features(const gmem_image_encoder *encoder, int64_t count, int64_t height,
                                         int64_t width, const float *image, float *cls, float *patch,
                                         gmem_error *error);
/* The same for pixels (count, height, width, 3). published: feeds [0, 1] where [-1, 1] is meant, as the published
 * script for novel images does. */
GMEM_API gmem_status gmem_pixel_features(const gmem_image_encoder *encoder, int64_t count, int64_t height,
                                         int64_t width, const uint8_t *pixels, int published, float *cls, float *patch,
                                         gmem_error *error);

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

/* Finding what an OpenCL device multiplies matrices with fastest: the parameters of CLBlast, where it is there, the own
 * kernels' tiles, and which of them for which shape, tried on the layers of XL/1, B/1 and the default model. A result
 * that differs from the CPU's is never kept. */
typedef struct gmem_tune_shape {
    const char *layer;            /* "XL/1 qkv" */
    int64_t rows, depth, columns; /* y (rows, columns) = W (rows, depth) x (depth, columns) */
    double clblast, clblast_tuned,
        own;            /* seconds, 0 where not known: CLBlast as it comes and tuned, the best own kernel */
    const char *choice; /* "clblast", or an own kernel: "own", "tile"; NULL: not known */
} gmem_tune_shape;

#define GMEM_TUNE_SHAPES 12

typedef struct gmem_tune_report {
    gmem_tune_shape shapes[GMEM_TUNE_SHAPES];
    int shape_count;
    int tried, failed; /* settings that ran, and those among them that failed or computed something else */
    double seconds;
} gmem_tune_report;

typedef struct gmem_tune_desc {
    const char *cache_dir; /* where it is kept for contexts with this folder; NULL: only reported */
    double seconds;        /* to be done in; 0: 60. Nothing is begun that would not be done if it took as long as the
                              longest of its kind before; the own kernels are measured once in any case */
    double (*clock)(void *user); /* seconds; needed, for the library has none */
    /* Now and then, with the seconds so far and what is being tried; or NULL. Not 0 ends it: E_CANCELLED. */
    int (*progress)(void *user, double seconds, const char *what);
    void *user;
} gmem_tune_desc;

/* For the context's device, while nothing else runs on it. What the folder holds from before is where the search
 * begins; the context is best made without it, or that is what CLBlast comes with. CLBlast keeps what was tried last
 * for the rest of the process: go on in a new one. Errors: E_COMBINATION (no device), E_ARGUMENT, E_CANCELLED,
 * E_MEMORY, E_DEVICE, those of writing. */
GMEM_API gmem_status gmem_device_tune(gmem_context *context, const gmem_tune_desc *desc, gmem_tune_report *report,
                                      gmem_error *error);

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
