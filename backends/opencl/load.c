/* The functions of OpenCL and CLBlast, found when a program runs, so that it also runs where there are none: through
 * the caller's hook, or from the system's libraries. And the names of their codes, as errors tell them. */
#include "opencl.h"

#include <stdio.h>

#ifndef GMEM_NO_OPENCL

#if defined(_WIN32)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#include <windows.h>
#elif defined(__unix__) || defined(__APPLE__)
#define GMEM__DLOPEN
#include <dlfcn.h>
#endif

/* libraries ------------------------------------------------------------------------------------------------------- */

enum { GMEM__CL_LIBRARY, GMEM__CLBLAST_LIBRARY };

typedef void (*gmem__cl_function)(void);

#if defined(GMEM__DLOPEN)

/* Drivers leave threads and handlers of exit behind: their code must stay when the last user is gone. */
#ifdef RTLD_NODELETE
#define GMEM__DLOPEN_FLAGS (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)
#else
#define GMEM__DLOPEN_FLAGS (RTLD_NOW | RTLD_LOCAL)
#endif

static void *gmem__library_open(const char *name) { return dlopen(name, GMEM__DLOPEN_FLAGS); }
static void gmem__library_close(void *library) { (void)dlclose(library); }

/* C knows no cast from a pointer to data to one to a function, though POSIX wants them alike. */
static gmem__cl_function gmem__library_symbol(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    gmem__cl_function function;
    memcpy(&function, &symbol, sizeof function);
    return function;
}

#undef GMEM__DLOPEN_FLAGS

#elif defined(_WIN32)

static void *gmem__library_open(const char *name) { return (void *)LoadLibraryA(name); }
static void gmem__library_close(void *library) { (void)FreeLibrary((HMODULE)library); }
static gmem__cl_function gmem__library_symbol(void *library, const char *name) {
    return (gmem__cl_function)GetProcAddress((HMODULE)library, name);
}

#else

static void *gmem__library_open(const char *name) {
    (void)name;
    return NULL;
}
static void gmem__library_close(void *library) { (void)library; }
static gmem__cl_function gmem__library_symbol(void *library, const char *name) {
    (void)library;
    (void)name;
    return NULL;
}

#endif

#if defined(_WIN32)
#define GMEM__CL_NAMES \
    { "OpenCL.dll", NULL }
#define GMEM__CLBLAST_NAMES \
    { "clblast.dll", NULL }
#elif defined(__APPLE__)
#define GMEM__CL_NAMES \
    { "/System/Library/Frameworks/OpenCL.framework/OpenCL", NULL }
#define GMEM__CLBLAST_NAMES \
    { "libclblast.1.dylib", "libclblast.dylib", NULL }
#else
#define GMEM__CL_NAMES \
    { "libOpenCL.so.1", "libOpenCL.so", NULL }
#define GMEM__CLBLAST_NAMES \
    { "libclblast.so.1", "libclblast.so", NULL }
#endif

/* The names under which a library may be there, best first, ended by NULL. */
static const char *const *gmem__library_names(int which) {
    static const char *const opencl[] = GMEM__CL_NAMES;
    static const char *const clblast[] = GMEM__CLBLAST_NAMES;
    return which == GMEM__CL_LIBRARY ? opencl : clblast;
}

#undef GMEM__CL_NAMES
#undef GMEM__CLBLAST_NAMES

static void *gmem__library_open_any(int which) {
    void *library = NULL;
    for (const char *const *name = gmem__library_names(which); *name && !library; name++)
        library = gmem__library_open(*name);
    return library;
}

/* the table ------------------------------------------------------------------------------------------------------- */

/* Where functions come from: a hook, or an open library. */
typedef struct gmem__cl_origin {
    const gmem_opencl *hook;
    void *library;
} gmem__cl_origin;

static gmem__cl_function gmem__cl_symbol(const gmem__cl_origin *origin, const char *name) {
    if (origin->hook) return origin->hook->symbol(origin->hook->user, name);
    return origin->library ? gmem__library_symbol(origin->library, name) : NULL;
}

/* Both fill their part of the table and return the name of the first function that is missing, or NULL. */
#define GMEM__CL_FIND(result, name, parameters) \
    function = gmem__cl_symbol(origin, #name);  \
    if (!function && !missing) missing = #name; \
    memcpy(&api->name, &function, sizeof function);

static const char *gmem__find_opencl(const gmem__cl_origin *origin, gmem__cl_api *api) {
    const char *missing = NULL;
    gmem__cl_function function;
    GMEM__CL_FUNCTIONS(GMEM__CL_FIND)
    return missing;
}

static const char *gmem__find_clblast(const gmem__cl_origin *origin, gmem__cl_api *api) {
    const char *missing = NULL;
    gmem__cl_function function;
    GMEM__CLBLAST_FUNCTIONS(GMEM__CL_FIND)
    return missing;
}

#undef GMEM__CL_FIND

/* A part of CLBlast is of no use. */
#define GMEM__CL_FORGET(result, name, parameters) api->name = NULL;
static void gmem__forget_clblast(gmem__cl_api *api) { GMEM__CLBLAST_FUNCTIONS(GMEM__CL_FORGET) }
#undef GMEM__CL_FORGET

static gmem__cl_origin gmem__cl_origin_of(const gmem_opencl *hook, gmem__cl_library *library, int which) {
    gmem__cl_origin origin;
    origin.hook = hook && hook->symbol ? hook : NULL;
    origin.library = origin.hook ? NULL : gmem__library_open_any(which);
    library->opened[which] = origin.library;
    return origin;
}

GMEM__FN gmem_status gmem__cl_load(const gmem_opencl *hook, gmem__cl_library *out, gmem_error *error) {
    gmem__cl_library library;
    memset(&library, 0, sizeof library);
    const gmem__cl_origin opencl = gmem__cl_origin_of(hook, &library, GMEM__CL_LIBRARY);
    const char *first_name = gmem__library_names(GMEM__CL_LIBRARY)[0];
    if (!opencl.hook && !opencl.library)
        return gmem__fail(error, GMEM_E_NO_DEVICE, "OpenCL is not installed: %s cannot be opened", first_name);
    const char *missing = gmem__find_opencl(&opencl, &library.api);
    if (missing) {
        gmem__cl_unload(&library);
        return gmem__fail(error, GMEM_E_NO_DEVICE, "%s has no function %s of OpenCL 1.2",
                          opencl.hook ? "the caller's table" : first_name, missing);
    }
    const gmem__cl_origin clblast = gmem__cl_origin_of(hook, &library, GMEM__CLBLAST_LIBRARY);
    library.has_clblast = gmem__find_clblast(&clblast, &library.api) == NULL;
    if (!library.has_clblast) gmem__forget_clblast(&library.api);
    *out = library;
    return GMEM_OK;
}

GMEM__FN void gmem__cl_unload(gmem__cl_library *library) {
    /* CLBlast keeps programs of contexts that are no more */
    if (library->has_clblast) (void)library->api.CLBlastClearCache();
    for (int which = GMEM__CLBLAST_LIBRARY; which >= GMEM__CL_LIBRARY; which--)
        if (library->opened[which]) gmem__library_close(library->opened[which]);
    memset(library, 0, sizeof *library);
}

/* codes ----------------------------------------------------------------------------------------------------------- */

/* X(name, code): those of OpenCL 1.2, of the loader, then CLBlast's own. */
#define GMEM__CL_CODES(X)                                \
    X(CL_SUCCESS, 0)                                     \
    X(CL_DEVICE_NOT_FOUND, -1)                           \
    X(CL_DEVICE_NOT_AVAILABLE, -2)                       \
    X(CL_COMPILER_NOT_AVAILABLE, -3)                     \
    X(CL_MEM_OBJECT_ALLOCATION_FAILURE, -4)              \
    X(CL_OUT_OF_RESOURCES, -5)                           \
    X(CL_OUT_OF_HOST_MEMORY, -6)                         \
    X(CL_PROFILING_INFO_NOT_AVAILABLE, -7)               \
    X(CL_MEM_COPY_OVERLAP, -8)                           \
    X(CL_IMAGE_FORMAT_MISMATCH, -9)                      \
    X(CL_IMAGE_FORMAT_NOT_SUPPORTED, -10)                \
    X(CL_BUILD_PROGRAM_FAILURE, -11)                     \
    X(CL_MAP_FAILURE, -12)                               \
    X(CL_MISALIGNED_SUB_BUFFER_OFFSET, -13)              \
    X(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST, -14) \
    X(CL_COMPILE_PROGRAM_FAILURE, -15)                   \
    X(CL_LINKER_NOT_AVAILABLE, -16)                      \
    X(CL_LINK_PROGRAM_FAILURE, -17)                      \
    X(CL_DEVICE_PARTITION_FAILED, -18)                   \
    X(CL_KERNEL_ARG_INFO_NOT_AVAILABLE, -19)             \
    X(CL_INVALID_VALUE, -30)                             \
    X(CL_INVALID_DEVICE_TYPE, -31)                       \
    X(CL_INVALID_PLATFORM, -32)                          \
    X(CL_INVALID_DEVICE, -33)                            \
    X(CL_INVALID_CONTEXT, -34)                           \
    X(CL_INVALID_QUEUE_PROPERTIES, -35)                  \
    X(CL_INVALID_COMMAND_QUEUE, -36)                     \
    X(CL_INVALID_HOST_PTR, -37)                          \
    X(CL_INVALID_MEM_OBJECT, -38)                        \
    X(CL_INVALID_IMAGE_FORMAT_DESCRIPTOR, -39)           \
    X(CL_INVALID_IMAGE_SIZE, -40)                        \
    X(CL_INVALID_SAMPLER, -41)                           \
    X(CL_INVALID_BINARY, -42)                            \
    X(CL_INVALID_BUILD_OPTIONS, -43)                     \
    X(CL_INVALID_PROGRAM, -44)                           \
    X(CL_INVALID_PROGRAM_EXECUTABLE, -45)                \
    X(CL_INVALID_KERNEL_NAME, -46)                       \
    X(CL_INVALID_KERNEL_DEFINITION, -47)                 \
    X(CL_INVALID_KERNEL, -48)                            \
    X(CL_INVALID_ARG_INDEX, -49)                         \
    X(CL_INVALID_ARG_VALUE, -50)                         \
    X(CL_INVALID_ARG_SIZE, -51)                          \
    X(CL_INVALID_KERNEL_ARGS, -52)                       \
    X(CL_INVALID_WORK_DIMENSION, -53)                    \
    X(CL_INVALID_WORK_GROUP_SIZE, -54)                   \
    X(CL_INVALID_WORK_ITEM_SIZE, -55)                    \
    X(CL_INVALID_GLOBAL_OFFSET, -56)                     \
    X(CL_INVALID_EVENT_WAIT_LIST, -57)                   \
    X(CL_INVALID_EVENT, -58)                             \
    X(CL_INVALID_OPERATION, -59)                         \
    X(CL_INVALID_GL_OBJECT, -60)                         \
    X(CL_INVALID_BUFFER_SIZE, -61)                       \
    X(CL_INVALID_MIP_LEVEL, -62)                         \
    X(CL_INVALID_GLOBAL_WORK_SIZE, -63)                  \
    X(CL_INVALID_PROPERTY, -64)                          \
    X(CL_INVALID_IMAGE_DESCRIPTOR, -65)                  \
    X(CL_INVALID_COMPILER_OPTIONS, -66)                  \
    X(CL_INVALID_LINKER_OPTIONS, -67)                    \
    X(CL_INVALID_DEVICE_PARTITION_COUNT, -68)            \
    X(CL_PLATFORM_NOT_FOUND_KHR, -1001)                  \
    X(CLBlastInsufficientMemoryY, -1007)                 \
    X(CLBlastInsufficientMemoryX, -1008)                 \
    X(CLBlastInsufficientMemoryC, -1009)                 \
    X(CLBlastInsufficientMemoryB, -1010)                 \
    X(CLBlastInsufficientMemoryA, -1011)                 \
    X(CLBlastInvalidIncrementY, -1012)                   \
    X(CLBlastInvalidIncrementX, -1013)                   \
    X(CLBlastInvalidLeadDimC, -1014)                     \
    X(CLBlastInvalidLeadDimB, -1015)                     \
    X(CLBlastInvalidLeadDimA, -1016)                     \
    X(CLBlastInvalidDimension, -1017)                    \
    X(CLBlastInvalidVectorY, -1018)                      \
    X(CLBlastInvalidVectorX, -1019)                      \
    X(CLBlastInvalidMatrixC, -1020)                      \
    X(CLBlastInvalidMatrixB, -1021)                      \
    X(CLBlastInvalidMatrixA, -1022)                      \
    X(CLBlastNotImplemented, -1024)                      \
    X(CLBlastUnexpectedError, -2039)                     \
    X(CLBlastUnknownError, -2040)                        \
    X(CLBlastDatabaseError, -2041)                       \
    X(CLBlastInsufficientMemoryScalar, -2042)            \
    X(CLBlastInvalidVectorScalar, -2043)                 \
    X(CLBlastNoDoublePrecision, -2044)                   \
    X(CLBlastNoHalfPrecision, -2045)                     \
    X(CLBlastInvalidLocalMemUsage, -2046)                \
    X(CLBlastMissingOverrideParameter, -2047)            \
    X(CLBlastInvalidOverrideKernel, -2048)               \
    X(CLBlastInvalidBatchCount, -2049)                   \
    X(CLBlastInsufficientMemoryTemp, -2050)

enum { GMEM__CL_OUT_OF_DEVICE_MEMORY = -4, GMEM__CL_OUT_OF_HOST_MEMORY = -6 };

GMEM__FN const char *gmem__cl_code_name(gmem__quoted *buffer, int code) {
    static const struct {
        int code;
        const char *name;
    } codes[] = {
#define GMEM__CL_CODE_ROW(name, code) {code, #name},
        GMEM__CL_CODES(GMEM__CL_CODE_ROW)
#undef GMEM__CL_CODE_ROW
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].code == code) return codes[i].name;
    snprintf(buffer->text, sizeof buffer->text, "%d", code);
    return buffer->text;
}

#undef GMEM__CL_CODES

GMEM__FN gmem_status gmem__cl_fail(gmem_error *error, const char *call, int code) {
    gmem__quoted quoted;
    const int memory = code == GMEM__CL_OUT_OF_DEVICE_MEMORY || code == GMEM__CL_OUT_OF_HOST_MEMORY;
    const char *name = gmem__cl_code_name(&quoted, code);
    return gmem__fail(error, memory ? GMEM_E_MEMORY : GMEM_E_DEVICE,
                      name == quoted.text ? "%s: code %s" : "%s: %s (%d)", call, name, code);
}

#endif /* GMEM_NO_OPENCL */
