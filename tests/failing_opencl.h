/* OpenCL and CLBlast as the library calls them, but for the tests' whims: any call can be made to fail, once or for
 * good; the device can be reported smaller than it is, or as something else; what is created and not released is
 * counted. A wrapper of every function is made from the lists of backends/opencl/cl.h, around the system's libraries.
 * One at a time in a program. */
#ifndef FAILING_OPENCL_H
#define FAILING_OPENCL_H

#include "../backends/opencl/cl.h"
#include "../src/api.h"

#include "check.h"

#include <dlfcn.h>
#include <pthread.h>

/* Codes that the library needs no names for. */
enum {
    FAILING_CL_DEVICE_NOT_AVAILABLE = -2,
    FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE = -4,
    FAILING_CL_OUT_OF_RESOURCES = -5,
    FAILING_CL_OUT_OF_HOST_MEMORY = -6,
    FAILING_CL_BUILD_PROGRAM_FAILURE = -11,
    FAILING_CL_INVALID_KERNEL_ARGS = -52,
    FAILING_CL_INVALID_WORK_GROUP_SIZE = -54,
    FAILING_CL_INVALID_BUFFER_SIZE = -61
};

/* FAILING_clFinish, ... */
typedef enum failing_cl_function {
#define FAILING_CL_ENUM(result, name, parameters) FAILING_##name,
    GMEM__CL_FUNCTIONS(FAILING_CL_ENUM) GMEM__CLBLAST_FUNCTIONS(FAILING_CL_ENUM)
#undef FAILING_CL_ENUM
        FAILING_CL_COUNT,
    FAILING_CL_ANY = FAILING_CL_COUNT
} failing_cl_function;

static const char *const failing_cl_names[] = {
#define FAILING_CL_NAME(result, name, parameters) #name,
    GMEM__CL_FUNCTIONS(FAILING_CL_NAME) GMEM__CLBLAST_FUNCTIONS(FAILING_CL_NAME)
#undef FAILING_CL_NAME
};

enum { FAILING_CL_BUFFERS = 4096, FAILING_CL_QUEUES = 64 };

/* What comes of cl_khr_fp16. */
typedef enum failing_cl_f16 {
    FAILING_F16_OWN,      /* the device's own word */
    FAILING_F16_STAND_IN, /* it is there: programs for it are compiled with the stand-in for its arithmetic */
    FAILING_F16_FALSE     /* it is there, and programs for it are compiled as they are: no device of the tests can */
} failing_cl_f16;

/* Zero is the system's own behaviour. The first group is for tests to set, the second to read. */
typedef struct failing_cl {
    failing_cl_function fail; /* with `at`: which function, or FAILING_CL_ANY */
    int64_t at;               /* its call number `at`, from 1, fails; 0: none does */
    int code;
    int for_good; /* from then on every call of any function fails: the device is lost */
    /* what the device says of itself; the sizes are also kept to */
    gmem__cl_bits type;
    int64_t memory, largest, work_group;
    int not_unified, no_fp16;
    failing_cl_f16 fp16;
    const char *without; /* a function that the libraries lack; "clblast": all of CLBlast's */

    int64_t calls[FAILING_CL_COUNT + 1];                  /* the last is of all */
    const char *failed;                                   /* the function that first failed on request, or NULL */
    int64_t contexts, queues, programs, kernels, buffers; /* alive */
    int64_t made;                                         /* of all of them so far */
    int64_t bytes, most_bytes; /* of live buffers on the device, and the most at a time; wrapped ones are the host's */
    int64_t most_buffer;       /* bytes of the largest buffer so far, wrapped ones included */
    int64_t wrapped;           /* buffers made so far of the host's own memory */
    int64_t misuse;            /* releases of nothing, events that nobody releases, a launch or buffer beyond limits */
} failing_cl;

static pthread_mutex_t failing_cl_lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    failing_cl *now;
    void *libraries[2];
    struct {
        gmem__cl_mem memory;
        int64_t bytes;
    } buffers[FAILING_CL_BUFFERS]; /* alive */
    gmem__cl_queue queues[FAILING_CL_QUEUES];
    gmem__cl_api real;
} failing_cl_state;

/* Every call begins here: the code with which it has to fail, or 0. A lost device has stopped: what was under way when
 * it was lost neither reads nor writes any more. */
static inline int failing_cl_begin(failing_cl_function function) {
    failing_cl *state = failing_cl_state.now;
    gmem__cl_queue stopped[FAILING_CL_QUEUES];
    pthread_mutex_lock(&failing_cl_lock);
    const int64_t own = ++state->calls[function], all = ++state->calls[FAILING_CL_ANY];
    const int64_t call = state->fail == FAILING_CL_ANY ? all : own;
    const int now = state->at > 0 && call == state->at && (state->fail == FAILING_CL_ANY || state->fail == function);
    const int fails = now || (state->for_good && state->failed);
    const int lost = now && state->for_good;
    if (now && !state->failed) state->failed = failing_cl_names[function];
    memcpy(stopped, failing_cl_state.queues, sizeof stopped);
    pthread_mutex_unlock(&failing_cl_lock);
    for (int i = 0; lost && i < FAILING_CL_QUEUES; i++) {
        if (stopped[i]) failing_cl_state.real.clFinish(stopped[i]);
    }
    return fails ? state->code : 0;
}

static inline void failing_cl_count(int64_t *alive, int by) {
    pthread_mutex_lock(&failing_cl_lock);
    *alive += by;
    if (by > 0) failing_cl_state.now->made++;
    if (*alive < 0) failing_cl_state.now->misuse++;
    pthread_mutex_unlock(&failing_cl_lock);
}

static inline void failing_cl_misuse(int is_misuse) {
    if (!is_misuse) return;
    pthread_mutex_lock(&failing_cl_lock);
    failing_cl_state.now->misuse++;
    pthread_mutex_unlock(&failing_cl_lock);
}

/* buffers and queues, by what they are ----------------------------------------------------------------------------- */

static inline int failing_cl_too_large(gmem__cl_bits flags, size_t bytes) {
    const failing_cl *state = failing_cl_state.now;
    const int wraps = (flags & GMEM__CL_MEM_USE_HOST_PTR) != 0;
    if (state->largest && bytes > (size_t)state->largest) return FAILING_CL_INVALID_BUFFER_SIZE;
    if (!wraps && state->memory && state->bytes + (int64_t)bytes > state->memory)
        return FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE;
    return 0;
}

static inline void failing_cl_buffer(gmem__cl_mem memory, gmem__cl_bits flags, size_t bytes) {
    failing_cl *state = failing_cl_state.now;
    const int wraps = (flags & GMEM__CL_MEM_USE_HOST_PTR) != 0;
    int i = 0;
    failing_cl_count(&state->buffers, 1);
    pthread_mutex_lock(&failing_cl_lock);
    while (i < FAILING_CL_BUFFERS - 1 && failing_cl_state.buffers[i].memory) {
        i++;
    }
    failing_cl_state.buffers[i].memory = memory;
    failing_cl_state.buffers[i].bytes = wraps ? 0 : (int64_t)bytes;
    state->wrapped += wraps;
    if ((int64_t)bytes > state->most_buffer) state->most_buffer = (int64_t)bytes;
    state->bytes += failing_cl_state.buffers[i].bytes;
    if (state->bytes > state->most_bytes) state->most_bytes = state->bytes;
    pthread_mutex_unlock(&failing_cl_lock);
}

static inline void failing_cl_buffer_gone(gmem__cl_mem memory) {
    failing_cl_count(&failing_cl_state.now->buffers, -1);
    pthread_mutex_lock(&failing_cl_lock);
    for (int i = 0; i < FAILING_CL_BUFFERS; i++) {
        if (failing_cl_state.buffers[i].memory != memory) continue;
        failing_cl_state.now->bytes -= failing_cl_state.buffers[i].bytes;
        failing_cl_state.buffers[i].memory = NULL;
        break;
    }
    pthread_mutex_unlock(&failing_cl_lock);
}

/* from NULL: a new queue; to NULL: one that is gone. */
static inline void failing_cl_queue(gmem__cl_queue from, gmem__cl_queue to) {
    int i = 0;
    failing_cl_count(&failing_cl_state.now->queues, to ? 1 : -1);
    pthread_mutex_lock(&failing_cl_lock);
    while (i < FAILING_CL_QUEUES - 1 && failing_cl_state.queues[i] != from) {
        i++;
    }
    failing_cl_state.queues[i] = to;
    pthread_mutex_unlock(&failing_cl_lock);
}

static inline int failing_cl_too_wide(uint32_t dimensions, const size_t *local) {
    size_t items = 1;
    for (uint32_t i = 0; local && i < dimensions; i++) {
        items *= local[i];
    }
    const int too_wide = failing_cl_state.now->work_group && items > (size_t)failing_cl_state.now->work_group;
    failing_cl_misuse(too_wide);
    return too_wide ? FAILING_CL_INVALID_WORK_GROUP_SIZE : 0;
}

/* what a device says of itself ------------------------------------------------------------------------------------- */

/* Replaces an answer of `size` bytes. */
static inline void failing_cl_report(uint32_t what, size_t bytes, void *out) {
    const failing_cl *state = failing_cl_state.now;
    uint64_t wide = 0;
    size_t sizes[3];
    uint32_t flag = 0;
    if (!out) return;
    if (what == GMEM__CL_DEVICE_TYPE) wide = state->type;
    if (what == GMEM__CL_DEVICE_GLOBAL_MEM_SIZE) wide = (uint64_t)state->memory;
    if (what == GMEM__CL_DEVICE_MAX_MEM_ALLOC_SIZE) wide = (uint64_t)state->largest;
    if (what == GMEM__CL_DEVICE_MAX_WORK_GROUP_SIZE || what == GMEM__CL_KERNEL_WORK_GROUP_SIZE)
        wide = (uint64_t)state->work_group;
    if (wide && bytes == sizeof wide) memcpy(out, &wide, sizeof wide);
    if (what == GMEM__CL_DEVICE_MAX_WORK_ITEM_SIZES && state->work_group && bytes >= sizeof sizes) {
        sizes[0] = sizes[1] = sizes[2] = (size_t)state->work_group;
        memcpy(out, sizes, sizeof sizes);
    }
    if (what == GMEM__CL_DEVICE_HOST_UNIFIED_MEMORY && state->not_unified && bytes == sizeof flag)
        memcpy(out, &flag, sizeof flag);
    if (what == GMEM__CL_DEVICE_EXTENSIONS && state->no_fp16) {
        char *fp16 = strstr((char *)out, "cl_khr_fp16");
        if (fp16) memset(fp16, ' ', strlen("cl_khr_fp16"));
    }
    if (what == GMEM__CL_DEVICE_EXTENSIONS && state->fp16 != FAILING_F16_OWN)
        snprintf((char *)out, bytes, "cl_khr_fp16");
}

/* What a program is compiled with. */
static inline const char *failing_cl_options(const char *options) {
    static char changed[1024];
    if (!options || failing_cl_state.now->fp16 != FAILING_F16_STAND_IN) return options;
    snprintf(changed, sizeof changed, "%s", options);
    char *f16 = strstr(changed, "-DF16_ARITHMETIC=1");
    if (f16) f16[strlen("-DF16_ARITHMETIC=")] = '2';
    return changed;
}

/* A device of another type is not found as what it is. */
static inline gmem__cl_bits failing_cl_type(gmem__cl_bits asked) {
    const gmem__cl_bits all = 0xFFFFFFFF, type = failing_cl_state.now->type;
    return !type ? asked : asked & type ? all : 0;
}

/* the wrappers ----------------------------------------------------------------------------------------------------- */

/* FAILING_CL_clFinish and so on say how a function is wrapped: its parameters' names, the kind of call, the code that
 * the reported limits make of it, what follows success. Each of them sees the function's own parameters. */
#define FAILING_CL_ALIVE(what, by) failing_cl_count(&failing_cl_state.now->what, by)

/* Gives the code without calling. */
#define FAILING_CL_STATUS(result, call, after) \
    if (code) return code;                     \
    const int got = call;                      \
    if (got == 0) {                            \
        after;                                 \
    }                                          \
    return got;
/* What must happen in any case, or the real device would keep it: then failing is but what the caller is told. */
#define FAILING_CL_ANYWAY(result, call, after) \
    after;                                     \
    const int got = call;                      \
    return code ? code : got;
#define FAILING_CL_CREATION(result, call, after) \
    if (code) {                                  \
        if (status) *status = code;              \
        return NULL;                             \
    }                                            \
    const result got = call;                     \
    if (got) {                                   \
        after;                                   \
    }                                            \
    return got;
#define FAILING_CL_EVENT failing_cl_misuse(event != NULL)

#define FAILING_CL_clGetPlatformIDs  (capacity, out, count), STATUS, 0, (void)0
#define FAILING_CL_clGetPlatformInfo (platform, what, bytes, out, size), STATUS, 0, (void)0
#define FAILING_CL_clGetDeviceIDs                                    \
    (platform, failing_cl_type(type), capacity, out, count), STATUS, \
        failing_cl_type(type) ? 0 : GMEM__CL_DEVICE_NOT_FOUND, (void)0
#define FAILING_CL_clGetDeviceInfo (device, what, bytes, out, size), STATUS, 0, failing_cl_report(what, bytes, out)
#define FAILING_CL_clCreateContext \
    (properties, count, devices, notify, user, status), CREATION, 0, FAILING_CL_ALIVE(contexts, 1)
#define FAILING_CL_clReleaseContext      (context), ANYWAY, 0, FAILING_CL_ALIVE(contexts, -1)
#define FAILING_CL_clCreateCommandQueue  (context, device, properties, status), CREATION, 0, failing_cl_queue(NULL, got)
#define FAILING_CL_clReleaseCommandQueue (queue), ANYWAY, 0, failing_cl_queue(queue, NULL)
#define FAILING_CL_clCreateBuffer                                                        \
    (context, flags, bytes, host, status), CREATION, failing_cl_too_large(flags, bytes), \
        failing_cl_buffer(got, flags, bytes)
#define FAILING_CL_clReleaseMemObject (memory), ANYWAY, 0, failing_cl_buffer_gone(memory)
#define FAILING_CL_clEnqueueWriteBuffer \
    (queue, memory, blocking, offset, bytes, from, waits, wait, event), STATUS, 0, FAILING_CL_EVENT
#define FAILING_CL_clEnqueueReadBuffer \
    (queue, memory, blocking, offset, bytes, to, waits, wait, event), STATUS, 0, FAILING_CL_EVENT
#define FAILING_CL_clCreateProgramWithSource \
    (context, count, lines, lengths, status), CREATION, 0, FAILING_CL_ALIVE(programs, 1)
#define FAILING_CL_clCreateProgramWithBinary \
    (context, count, devices, bytes, binaries, each, status), CREATION, 0, FAILING_CL_ALIVE(programs, 1)
#define FAILING_CL_clBuildProgram \
    (program, count, devices, failing_cl_options(options), notify, user), STATUS, 0, (void)0
#define FAILING_CL_clGetProgramInfo      (program, what, bytes, out, size), STATUS, 0, (void)0
#define FAILING_CL_clGetProgramBuildInfo (program, device, what, bytes, out, size), STATUS, 0, (void)0
#define FAILING_CL_clReleaseProgram      (program), ANYWAY, 0, FAILING_CL_ALIVE(programs, -1)
#define FAILING_CL_clCreateKernel        (program, name, status), CREATION, 0, FAILING_CL_ALIVE(kernels, 1)
#define FAILING_CL_clReleaseKernel       (kernel), ANYWAY, 0, FAILING_CL_ALIVE(kernels, -1)
#define FAILING_CL_clSetKernelArg        (kernel, index, bytes, value), STATUS, 0, (void)0
#define FAILING_CL_clGetKernelWorkGroupInfo \
    (kernel, device, what, bytes, out, size), STATUS, 0, failing_cl_report(what, bytes, out)
#define FAILING_CL_clEnqueueNDRangeKernel                                           \
    (queue, kernel, dimensions, offset, global, local, waits, wait, event), STATUS, \
        failing_cl_too_wide(dimensions, local), FAILING_CL_EVENT
#define FAILING_CL_clFlush  (queue), STATUS, 0, (void)0
#define FAILING_CL_clFinish (queue), ANYWAY, 0, (void)0
#define FAILING_CL_CLBlastSgemm                                                                                       \
    (layout, a_transpose, b_transpose, m, n, k, alpha, a, a_offset, a_ld, b, b_offset, b_ld, beta, c, c_offset, c_ld, \
     queue, event),                                                                                                   \
        STATUS, 0, FAILING_CL_EVENT
#define FAILING_CL_CLBlastSgemmStridedBatched                                                                          \
    (layout, a_transpose, b_transpose, m, n, k, alpha, a, a_offset, a_ld, a_stride, b, b_offset, b_ld, b_stride, beta, \
     c, c_offset, c_ld, c_stride, count, queue, event),                                                                \
        STATUS, 0, FAILING_CL_EVENT
#define FAILING_CL_CLBlastSconvgemm                                                                               \
    (mode, channels, height, width, kernel_h, kernel_w, pad_h, pad_w, stride_h, stride_w, dilation_h, dilation_w, \
     kernels, batch, image, image_offset, kernel, kernel_offset, result, result_offset, queue, event),            \
        STATUS, 0, FAILING_CL_EVENT
#define FAILING_CL_CLBlastOverrideParameters (device, kernel, precision, count, names, values), STATUS, 0, (void)0
#define FAILING_CL_CLBlastClearCache         (), STATUS, 0, (void)0

#define FAILING_CL_WRAPPER(result, name, parameters) FAILING_CL_WRAPPER_OF(result, name, parameters, FAILING_CL_##name)
#define FAILING_CL_WRAPPER_OF(...)                   FAILING_CL_WRAPPER_AS(__VA_ARGS__)
#define FAILING_CL_WRAPPER_AS(result_type, name, parameters, arguments, kind, limit, after) \
    static result_type GMEM__CL_CALL failing_##name parameters {                            \
        int code = failing_cl_begin(FAILING_##name);                                        \
        if (!code) code = limit;                                                            \
        FAILING_CL_##kind(result_type, failing_cl_state.real.name arguments, after)         \
    }
GMEM__CL_FUNCTIONS(FAILING_CL_WRAPPER)
GMEM__CLBLAST_FUNCTIONS(FAILING_CL_WRAPPER)

/* the hook --------------------------------------------------------------------------------------------------------- */

typedef void (*failing_cl_any)(void);

/* ISO C has no conversion from an object pointer to a function pointer; POSIX has one representation for both. */
static inline failing_cl_any failing_cl_real(const char *name) {
    void *found = dlsym(failing_cl_state.libraries[strncmp(name, "CLBlast", 7) == 0], name);
    failing_cl_any function = NULL;
    memcpy(&function, &found, sizeof function);
    return function;
}

static inline failing_cl_any failing_cl_symbol(void *user, const char *name) {
    const char *without = ((const failing_cl *)user)->without;
    if (without && strcmp(without, name) == 0) return NULL;
    if (without && strcmp(without, "clblast") == 0 && strncmp(name, "CLBlast", 7) == 0) return NULL;
#define FAILING_CL_FIND(result, function, parameters) \
    if (strcmp(name, #function) == 0) return (failing_cl_any)failing_##function;
    GMEM__CL_FUNCTIONS(FAILING_CL_FIND)
    GMEM__CLBLAST_FUNCTIONS(FAILING_CL_FIND)
#undef FAILING_CL_FIND
    return NULL;
}

/* The functions by way of `state`, which must stay until everything made with them is gone. */
static inline gmem_opencl failing_cl_hook(failing_cl *state) {
    gmem_opencl hook;
    failing_cl_state.now = state;
    if (!failing_cl_state.libraries[0]) {
        failing_cl_state.libraries[0] = dlopen("libOpenCL.so.1", RTLD_NOW);
        failing_cl_state.libraries[1] = dlopen("libclblast.so.1", RTLD_NOW);
        if (!failing_cl_state.libraries[0] || !failing_cl_state.libraries[1]) {
            printf("cannot open OpenCL's or CLBlast's library: %s\n", dlerror());
            exit(1);
        }
#define FAILING_CL_LOAD(result, function, parameters) \
    failing_cl_state.real.function = (result(GMEM__CL_CALL *) parameters)failing_cl_real(#function);
        GMEM__CL_FUNCTIONS(FAILING_CL_LOAD)
        GMEM__CLBLAST_FUNCTIONS(FAILING_CL_LOAD)
#undef FAILING_CL_LOAD
    }
    hook.user = state;
    hook.symbol = failing_cl_symbol;
    return hook;
}

/* Lets call number `at`, counted from now, fail; at 0: none. */
static inline void failing_cl_arm(failing_cl *state, failing_cl_function function, int64_t at, int code, int for_good) {
    memset(state->calls, 0, sizeof state->calls);
    state->failed = NULL;
    state->fail = function;
    state->at = at;
    state->code = code;
    state->for_good = for_good;
}

/* Nothing is alive, nothing was misused. */
static inline int failing_cl_is_clean(const failing_cl *state) {
    return !state->contexts && !state->queues && !state->programs && !state->kernels && !state->buffers &&
           !state->bytes && !state->misuse;
}

#endif /* FAILING_OPENCL_H */
