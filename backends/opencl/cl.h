/* What is used of OpenCL 1.2 (Khronos, "The OpenCL Specification", version 1.2) and of CLBlast's C interface: types,
 * numbers, and the functions as one list, from which the table, its loading and the names in errors are made. No header
 * of theirs is needed to compile, no library to link. */
#ifndef GMEM__CL_H
#define GMEM__CL_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define GMEM__CL_CALL __stdcall
#else
#define GMEM__CL_CALL
#endif

typedef struct gmem__cl_platform_object *gmem__cl_platform;
typedef struct gmem__cl_device_object *gmem__cl_device_id;
typedef struct gmem__cl_context_object *gmem__cl_context;
typedef struct gmem__cl_queue_object *gmem__cl_queue;
typedef struct gmem__cl_memory_object *gmem__cl_mem;
typedef struct gmem__cl_program_object *gmem__cl_program;
typedef struct gmem__cl_kernel_object *gmem__cl_kernel;
typedef struct gmem__cl_event_object *gmem__cl_event;
typedef uint64_t gmem__cl_bits;

enum {
    GMEM__CL_SUCCESS = 0,
    GMEM__CL_DEVICE_NOT_FOUND = -1,
    GMEM__CL_PLATFORM_NOT_FOUND_KHR = -1001,

    GMEM__CL_PLATFORM_VERSION = 0x0901,
    GMEM__CL_PLATFORM_NAME = 0x0902,

    GMEM__CL_DEVICE_TYPE = 0x1000,
    GMEM__CL_DEVICE_MAX_COMPUTE_UNITS = 0x1002,
    GMEM__CL_DEVICE_MAX_WORK_GROUP_SIZE = 0x1004,
    GMEM__CL_DEVICE_MAX_WORK_ITEM_SIZES = 0x1005,
    GMEM__CL_DEVICE_MAX_MEM_ALLOC_SIZE = 0x1010,
    GMEM__CL_DEVICE_GLOBAL_MEM_SIZE = 0x101F,
    GMEM__CL_DEVICE_LOCAL_MEM_SIZE = 0x1023,
    GMEM__CL_DEVICE_ENDIAN_LITTLE = 0x1026,
    GMEM__CL_DEVICE_AVAILABLE = 0x1027,
    GMEM__CL_DEVICE_COMPILER_AVAILABLE = 0x1028,
    GMEM__CL_DEVICE_NAME = 0x102B,
    GMEM__CL_DEVICE_VENDOR = 0x102C,
    GMEM__CL_DRIVER_VERSION = 0x102D,
    GMEM__CL_DEVICE_VERSION = 0x102F,
    GMEM__CL_DEVICE_EXTENSIONS = 0x1030,
    GMEM__CL_DEVICE_HOST_UNIFIED_MEMORY = 0x1035,
    GMEM__CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT = 0x103A,

    GMEM__CL_DEVICE_TYPE_CPU = 1 << 1,
    GMEM__CL_DEVICE_TYPE_GPU = 1 << 2,
    GMEM__CL_DEVICE_TYPE_ACCELERATOR = 1 << 3,

    GMEM__CL_CONTEXT_PLATFORM = 0x1084,
    GMEM__CL_MEM_READ_WRITE = 1 << 0,
    GMEM__CL_MEM_READ_ONLY = 1 << 2,
    GMEM__CL_MEM_USE_HOST_PTR = 1 << 3,

    GMEM__CL_PROGRAM_BINARY_SIZES = 0x1165,
    GMEM__CL_PROGRAM_BINARIES = 0x1166,
    GMEM__CL_PROGRAM_BUILD_LOG = 0x1183,
    GMEM__CL_KERNEL_WORK_GROUP_SIZE = 0x11B0,

    GMEM__CLBLAST_ROW_MAJOR = 101,
    GMEM__CLBLAST_NO_TRANSPOSE = 111,
    GMEM__CLBLAST_TRANSPOSE = 112,
    GMEM__CLBLAST_SINGLE = 32
};

/* X(result, name, parameters) */
#define GMEM__CL_FUNCTIONS(X)                                                                                          \
    X(int32_t, clGetPlatformIDs, (uint32_t capacity, gmem__cl_platform * out, uint32_t * count))                       \
    X(int32_t, clGetPlatformInfo, (gmem__cl_platform platform, uint32_t what, size_t bytes, void *out, size_t *size))  \
    X(int32_t, clGetDeviceIDs,                                                                                         \
      (gmem__cl_platform platform, gmem__cl_bits type, uint32_t capacity, gmem__cl_device_id * out, uint32_t * count)) \
    X(int32_t, clGetDeviceInfo, (gmem__cl_device_id device, uint32_t what, size_t bytes, void *out, size_t *size))     \
    X(gmem__cl_context, clCreateContext,                                                                               \
      (const intptr_t *properties, uint32_t count, const gmem__cl_device_id *devices,                                  \
       void(GMEM__CL_CALL * notify)(const char *, const void *, size_t, void *), void *user, int32_t *status))         \
    X(int32_t, clReleaseContext, (gmem__cl_context context))                                                           \
    X(gmem__cl_queue, clCreateCommandQueue,                                                                            \
      (gmem__cl_context context, gmem__cl_device_id device, gmem__cl_bits properties, int32_t * status))               \
    X(int32_t, clReleaseCommandQueue, (gmem__cl_queue queue))                                                          \
    X(gmem__cl_mem, clCreateBuffer,                                                                                    \
      (gmem__cl_context context, gmem__cl_bits flags, size_t bytes, void *host, int32_t *status))                      \
    X(int32_t, clReleaseMemObject, (gmem__cl_mem memory))                                                              \
    X(int32_t, clEnqueueWriteBuffer,                                                                                   \
      (gmem__cl_queue queue, gmem__cl_mem memory, uint32_t blocking, size_t offset, size_t bytes, const void *from,    \
       uint32_t waits, const gmem__cl_event *wait, gmem__cl_event *event))                                             \
    X(int32_t, clEnqueueReadBuffer,                                                                                    \
      (gmem__cl_queue queue, gmem__cl_mem memory, uint32_t blocking, size_t offset, size_t bytes, void *to,            \
       uint32_t waits, const gmem__cl_event *wait, gmem__cl_event *event))                                             \
    X(gmem__cl_program, clCreateProgramWithSource,                                                                     \
      (gmem__cl_context context, uint32_t count, const char **lines, const size_t *lengths, int32_t *status))          \
    X(gmem__cl_program, clCreateProgramWithBinary,                                                                     \
      (gmem__cl_context context, uint32_t count, const gmem__cl_device_id *devices, const size_t *bytes,               \
       const unsigned char **binaries, int32_t *each, int32_t *status))                                                \
    X(int32_t, clBuildProgram,                                                                                         \
      (gmem__cl_program program, uint32_t count, const gmem__cl_device_id *devices, const char *options,               \
       void(GMEM__CL_CALL * notify)(gmem__cl_program, void *), void *user))                                            \
    X(int32_t, clGetProgramInfo, (gmem__cl_program program, uint32_t what, size_t bytes, void *out, size_t *size))     \
    X(int32_t, clGetProgramBuildInfo,                                                                                  \
      (gmem__cl_program program, gmem__cl_device_id device, uint32_t what, size_t bytes, void *out, size_t *size))     \
    X(int32_t, clReleaseProgram, (gmem__cl_program program))                                                           \
    X(gmem__cl_kernel, clCreateKernel, (gmem__cl_program program, const char *name, int32_t *status))                  \
    X(int32_t, clReleaseKernel, (gmem__cl_kernel kernel))                                                              \
    X(int32_t, clSetKernelArg, (gmem__cl_kernel kernel, uint32_t index, size_t bytes, const void *value))              \
    X(int32_t, clGetKernelWorkGroupInfo,                                                                               \
      (gmem__cl_kernel kernel, gmem__cl_device_id device, uint32_t what, size_t bytes, void *out, size_t *size))       \
    X(int32_t, clEnqueueNDRangeKernel,                                                                                 \
      (gmem__cl_queue queue, gmem__cl_kernel kernel, uint32_t dimensions, const size_t *offset, const size_t *global,  \
       const size_t *local, uint32_t waits, const gmem__cl_event *wait, gmem__cl_event *event))                        \
    X(int32_t, clFlush, (gmem__cl_queue queue))                                                                        \
    X(int32_t, clFinish, (gmem__cl_queue queue))

/* The same of CLBlast, without which the backend's own kernels do all products. */
#define GMEM__CLBLAST_FUNCTIONS(X)                                                                                     \
    X(int, CLBlastSgemm,                                                                                               \
      (int layout, int a_transpose, int b_transpose, size_t m, size_t n, size_t k, float alpha, gmem__cl_mem a,        \
       size_t a_offset, size_t a_ld, gmem__cl_mem b, size_t b_offset, size_t b_ld, float beta, gmem__cl_mem c,         \
       size_t c_offset, size_t c_ld, gmem__cl_queue *queue, gmem__cl_event *event))                                    \
    X(int, CLBlastSgemmStridedBatched,                                                                                 \
      (int layout, int a_transpose, int b_transpose, size_t m, size_t n, size_t k, float alpha, gmem__cl_mem a,        \
       size_t a_offset, size_t a_ld, size_t a_stride, gmem__cl_mem b, size_t b_offset, size_t b_ld, size_t b_stride,   \
       float beta, gmem__cl_mem c, size_t c_offset, size_t c_ld, size_t c_stride, size_t count, gmem__cl_queue *queue, \
       gmem__cl_event *event))                                                                                         \
    X(int, CLBlastSconvgemm,                                                                                           \
      (int mode, size_t channels, size_t height, size_t width, size_t kernel_h, size_t kernel_w, size_t pad_h,         \
       size_t pad_w, size_t stride_h, size_t stride_w, size_t dilation_h, size_t dilation_w, size_t kernels,           \
       size_t batch, gmem__cl_mem image, size_t image_offset, gmem__cl_mem kernel, size_t kernel_offset,               \
       gmem__cl_mem result, size_t result_offset, gmem__cl_queue *queue, gmem__cl_event *event))                       \
    X(int, CLBlastOverrideParameters,                                                                                  \
      (gmem__cl_device_id device, const char *kernel, int precision, size_t count, const char **names,                 \
       const size_t *values))                                                                                          \
    X(int, CLBlastClearCache, (void))

/* A member may be NULL in the second group only. */
typedef struct gmem__cl_api {
#define GMEM__CL_MEMBER(result, name, parameters) result(GMEM__CL_CALL *name) parameters;
    GMEM__CL_FUNCTIONS(GMEM__CL_MEMBER)
#undef GMEM__CL_MEMBER
#define GMEM__CL_MEMBER(result, name, parameters) result(*name) parameters;
    GMEM__CLBLAST_FUNCTIONS(GMEM__CL_MEMBER)
#undef GMEM__CL_MEMBER
} gmem__cl_api;

#endif /* GMEM__CL_H */
