/* What the rest calls of the OpenCL backend, in a build that leaves it out. */
#include "../../src/internal.h"

#ifdef GMEM_NO_OPENCL

GMEM__FN gmem_status gmem__device_open(const gmem_context_desc *desc, const gmem_context *context,
                                       struct gmem__device **out, gmem_error *error) {
    (void)desc;
    (void)context;
    (void)out;
    return gmem__fail(error, GMEM_E_UNSUPPORTED, "this build has no OpenCL (GMEM_NO_OPENCL)");
}

GMEM_API gmem_status gmem_devices(const gmem_opencl *hook, gmem_device_info *out, int capacity, int *count,
                                  gmem_error *error) {
    (void)hook;
    (void)out;
    (void)capacity;
    (void)count;
    return gmem__fail(error, GMEM_E_UNSUPPORTED, "this build has no OpenCL (GMEM_NO_OPENCL)");
}
GMEM_API gmem_status gmem_device_check(const gmem_context_desc *desc, double *device_seconds, double *cpu_seconds,
                                       gmem_error *error) {
    (void)desc;
    (void)device_seconds;
    (void)cpu_seconds;
    return gmem__fail(error, GMEM_E_UNSUPPORTED, "this build has no OpenCL (GMEM_NO_OPENCL)");
}

/* Without a device nothing below is ever reached. */

GMEM__FN void gmem__device_close(struct gmem__device *device) { (void)device; }
GMEM__FN const char *gmem__device_backend(const struct gmem__device *device) {
    (void)device;
    return "";
}
GMEM__FN const char *gmem__device_kernels(const struct gmem__device *device) {
    (void)device;
    return "";
}
GMEM__FN gmem_status gmem__device_place_weight(gmem__store *store, gmem__weight *weight, gmem_error *error) {
    (void)store;
    (void)weight;
    (void)error;
    return GMEM_E_UNSUPPORTED;
}
GMEM__FN gmem_status gmem__device_place_vector(gmem__store *store, const float **values, int64_t count,
                                               gmem_error *error) {
    (void)store;
    (void)values;
    (void)count;
    (void)error;
    return GMEM_E_UNSUPPORTED;
}
GMEM__FN gmem_status gmem__device_narrow(gmem__store *store, gmem__weight *weight, gmem_compute compute,
                                         gmem_error *error) {
    (void)store;
    (void)weight;
    (void)compute;
    (void)error;
    return GMEM_E_UNSUPPORTED;
}
GMEM__FN gmem_status gmem__device_upload(gmem__store *store, gmem_error *error) {
    (void)store;
    (void)error;
    return GMEM_E_UNSUPPORTED;
}
GMEM__FN void gmem__device_memory_free(const gmem_context *context, struct gmem__device_memory *memory) {
    (void)context;
    (void)memory;
}
GMEM__FN gmem_status gmem__stream_open(struct gmem__device *device, const struct gmem__device_memory *shared,
                                       struct gmem__stream **out, gmem_error *error) {
    (void)device;
    (void)shared;
    (void)out;
    (void)error;
    return GMEM_E_UNSUPPORTED;
}
GMEM__FN void gmem__stream_close(struct gmem__stream *stream) { (void)stream; }
GMEM__FN int64_t gmem__stream_largest(const struct gmem__stream *stream) {
    (void)stream;
    return 0;
}
GMEM__FN const gmem__ops *gmem__opencl_ops(void) { return NULL; }

#endif /* GMEM_NO_OPENCL */
