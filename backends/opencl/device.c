/* An OpenCL device opened: from the libraries to a program that has been tried. And the public list of devices. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <stdio.h>

#ifdef __linux__
#include <sys/stat.h>
#endif

/* the choice ------------------------------------------------------------------------------------------------------ */

/* Whether there may be a GPU at all: asking OpenCL may load a compiler, which a machine without one needn't pay for.
 * The files are those of Linux's drivers: most, NVIDIA's, AMD's, Mali, Adreno, and Windows's under WSL. */
static int gmem__may_have_gpu(void) {
#ifdef __linux__
    static const char *const paths[] = {"/dev/nvidiactl", "/dev/kfd", "/dev/mali0", "/dev/kgsl-3d0", "/dev/dxg"};
    struct stat status;
    char path[40];
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (stat(paths[i], &status) == 0) return 1;
    for (int minor = 128; minor < 192; minor++) {
        snprintf(path, sizeof path, "/dev/dri/renderD%d", minor);
        if (stat(path, &status) == 0) return 1;
    }
    return 0;
#else
    return 1;
#endif
}

/* What the caller allows, where that is less than what there is. */
static void gmem__device_limit(gmem__cl_limits *limits, int64_t allowed) {
    if (allowed) limits->memory = gmem__min(limits->memory, allowed);
    limits->largest = gmem__min(limits->largest, limits->memory);
}

static gmem_status gmem__device_choose(const gmem_context_desc *desc, struct gmem__device *device, gmem_error *error) {
    gmem__cl_found *found = (gmem__cl_found *)gmem__alloc(device->context, GMEM__CL_MAX_DEVICES, sizeof *found);
    int count = 0, chosen = 0;
    if (!found) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the list of OpenCL devices");
    gmem_status status = gmem__cl_list(&device->library.api, found, &count, error);
    if (status == GMEM_OK)
        status = gmem__cl_pick(found, count, desc->device, desc->backend == GMEM_BACKEND_AUTO, &chosen, error);
    if (status == GMEM_OK) device->found = found[chosen];
    gmem__free(device->context, found, GMEM__CL_MAX_DEVICES, sizeof *found);
    return status;
}

/* open and close -------------------------------------------------------------------------------------------------- */

static gmem_status gmem__device_start(struct gmem__device *device, gmem_error *error) {
    const intptr_t properties[] = {GMEM__CL_CONTEXT_PLATFORM, (intptr_t)device->found.platform, 0};
    int32_t code = GMEM__CL_SUCCESS;
    gmem__cl_context cl = device->library.api.clCreateContext(properties, 1, &device->found.id, NULL, NULL, &code);
    if (code != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clCreateContext", code);
    device->cl = cl;
    return GMEM_OK;
}

static gmem_status gmem__device_is_faster(struct gmem__device *device, gmem_error *error) {
    double seconds[2];
    gmem__quoted own, cpu;
    GMEM__TRY(gmem__device_seconds(device, seconds, error));
    gmem__format_double(&own, seconds[0] * 1e3);
    gmem__format_double(&cpu, seconds[1] * 1e3);
    if (seconds[0] < seconds[1]) return GMEM_OK;
    return gmem__fail(error, GMEM_E_NO_DEVICE, "%s takes %.6s ms for a matrix product, the CPU %.6s ms",
                      device->backend, own.text, cpu.text);
}

static void gmem__device_unload(struct gmem__device *device) {
    if (device->program) (void)device->library.api.clReleaseProgram(device->program);
    device->program = NULL;
}

static gmem_status gmem__device_try(struct gmem__device *device, const char *cache_dir, gmem_error *error) {
    GMEM__TRY(gmem__device_build(device, cache_dir, error));
    return gmem__device_test(device, error);
}

/* A program that works. Where one from the cache folder does not, a driver may have changed without saying so; where
 * one with f16 arithmetic does not, one without it may. */
static gmem_status gmem__device_load(struct gmem__device *device, const char *cache_dir, gmem_error *error) {
    gmem_error why;
    gmem_status status = gmem__device_try(device, cache_dir, &why);
    if (device->program && !device->compiled && (status == GMEM_E_DEVICE || status == GMEM_E_DEVICE_TEST)) {
        gmem__log(device->context, "the cached OpenCL kernels are of no use: %s", why.message);
        gmem__device_unload(device);
        status = gmem__device_try(device, NULL, &why);
    }
    if (device->f16 != GMEM__CL_F16_NONE && (status == GMEM_E_DEVICE || status == GMEM_E_DEVICE_TEST)) {
        gmem__log(device->context, "products in f16 are computed in f32, for f16 arithmetic fails: %s", why.message);
        gmem__device_unload(device);
        device->f16 = GMEM__CL_F16_NONE;
        return gmem__device_load(device, cache_dir, error);
    }
    if (status == GMEM_OK)
        gmem__device_keep(device, cache_dir);
    else if (error)
        *error = why;
    return status;
}

/* What products in f16 are computed in; where that is f32, why. */
static void gmem__device_choose_f16(struct gmem__device *device) {
    const gmem__cl_limits *limits = &device->found.limits;
    if (limits->fp16)
        device->f16 = GMEM__CL_F16_NATIVE;
    else
        gmem__log(device->context, "products in f16 are computed in f32, for the device %s",
                  limits->is_cpu ? "is a processor" : "has no cl_khr_fp16");
}

static gmem_status gmem__device_prepare(const gmem_context_desc *desc, struct gmem__device *device, gmem_error *error) {
    /* what no CPU can do has no need of being faster */
    const int any = desc->backend == GMEM_BACKEND_OPENCL || desc->compute == GMEM_COMPUTE_F16;
    GMEM__TRY(gmem__cl_load(desc->opencl.symbol ? &desc->opencl : NULL, &device->library, error));
    GMEM__TRY(gmem__device_choose(desc, device, error));
    gmem__device_limit(&device->found.limits, desc->device_memory);
    snprintf(device->backend, sizeof device->backend, "opencl/%s", device->found.limits.name);
    GMEM__TRY(gmem__device_start(device, error));
    if (desc->compute == GMEM_COMPUTE_F16) gmem__device_choose_f16(device);
    device->tuning.tiles = gmem__product_tiles(&device->found.limits);
    gmem__device_tuning_load(device, desc->cache_dir);
    GMEM__TRY(gmem__device_load(device, desc->cache_dir, error));
    return any ? GMEM_OK : gmem__device_is_faster(device, error);
}

GMEM__FN gmem_status gmem__device_open(const gmem_context_desc *desc, const gmem_context *context,
                                       struct gmem__device **out, gmem_error *error) {
    if (desc->backend == GMEM_BACKEND_AUTO && !desc->opencl.symbol && !gmem__may_have_gpu())
        return gmem__fail(error, GMEM_E_NO_DEVICE, "this machine has no GPU");
    struct gmem__device *device = (struct gmem__device *)gmem__alloc(context, 1, sizeof *device);
    if (!device) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a device");
    device->context = context;
    const gmem_status status = gmem__device_prepare(desc, device, error);
    if (status != GMEM_OK) {
        gmem__device_close(device);
        return status;
    }
    *out = device;
    return GMEM_OK;
}

GMEM__FN void gmem__device_close(struct gmem__device *device) {
    if (!device) return;
    gmem__device_unload(device);
    if (device->cl) (void)device->library.api.clReleaseContext(device->cl);
    gmem__cl_unload(&device->library);
    gmem__free(device->context, device, 1, sizeof *device);
}

GMEM__FN const char *gmem__device_backend(const struct gmem__device *device) { return device->backend; }

GMEM__FN const char *gmem__device_kernels(const struct gmem__device *device) {
    return device->f16 == GMEM__CL_F16_NONE ? "opencl" : "opencl-f16";
}

/* the public list ------------------------------------------------------------------------------------------------- */

static const char *gmem__device_kind(gmem__cl_bits type) {
    if (type & GMEM__CL_DEVICE_TYPE_GPU) return "gpu";
    if (type & GMEM__CL_DEVICE_TYPE_CPU) return "cpu";
    return type & GMEM__CL_DEVICE_TYPE_ACCELERATOR ? "accelerator" : "other";
}

static void gmem__device_describe(const gmem__cl_limits *limits, gmem_device_info *out) {
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", limits->name);
    snprintf(out->vendor, sizeof out->vendor, "%s", limits->vendor);
    snprintf(out->driver, sizeof out->driver, "%s", limits->driver);
    snprintf(out->version, sizeof out->version, "%s", limits->version);
    snprintf(out->platform, sizeof out->platform, "%s", limits->platform);
    out->kind = gmem__device_kind(limits->type);
    out->unusable = limits->unusable;
    out->memory = limits->memory;
    out->largest = limits->largest;
    out->units = limits->units;
    out->unified = limits->unified;
    out->fp16 = limits->fp16;
}

GMEM_API gmem_status gmem_devices(const gmem_opencl *hook, gmem_device_info *out, int capacity, int *count,
                                  gmem_error *error) {
    gmem__cl_library library;
    gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    int listed = 0;
    if (!count || capacity < 0 || (capacity && !out))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a list and a count to fill are needed");
    GMEM__TRY(gmem__cl_load(hook && hook->symbol ? hook : NULL, &library, error));
    const gmem_status status = gmem__cl_list(&library.api, found, &listed, error);
    gmem__cl_unload(&library);
    if (status != GMEM_OK) return status;
    for (int i = 0; i < listed && i < capacity; i++)
        gmem__device_describe(&found[i].limits, out + i);
    *count = listed;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_device_check(const gmem_context_desc *desc, double *device_seconds, double *cpu_seconds,
                                       gmem_error *error) {
    gmem_context_desc named;
    gmem_context *context = NULL;
    double seconds[2];
    memset(&named, 0, sizeof named);
    if (desc) named = *desc;
    named.backend = GMEM_BACKEND_OPENCL;
    GMEM__TRY(gmem_context_create(&named, &context, error));
    const gmem_status status = gmem__device_seconds(context->device, seconds, error);
    gmem_context_destroy(context);
    if (status != GMEM_OK) return status;
    if (device_seconds) *device_seconds = seconds[0];
    if (cpu_seconds) *cpu_seconds = seconds[1];
    return GMEM_OK;
}

#endif /* GMEM_NO_OPENCL */
