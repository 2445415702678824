/* The kernels' program for a device: the text of the .cl files, compiled, or as it was compiled before from the cache
 * folder. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <stdio.h>

/* The .cl files as literals, a line each (tools/amalgamate.awk). kernels.cl uses product.cl's vectors. */
GMEM__FN const char *const *gmem__cl_source(void) {
    static const char *const lines[] = {
#include "product.cl.inc"
#include "kernels.cl.inc"
        NULL};
    return lines;
}

/* OpenCL 1.2 and no more is asked for, whatever the device could do. */
typedef struct gmem__cl_options {
    char text[512];
} gmem__cl_options;

static const char *gmem__program_options(const struct gmem__device *device, gmem__cl_options *out) {
    char tiles[400], f16[32] = "";
    if (device->f16 != GMEM__CL_F16_NONE) snprintf(f16, sizeof f16, " -DF16_ARITHMETIC=%d", (int)device->f16);
    snprintf(out->text, sizeof out->text, "-cl-std=CL1.2 %s%s",
             gmem__product_options(&device->tuning.tiles, tiles, sizeof tiles), f16);
    return out->text;
}

/* compiling ------------------------------------------------------------------------------------------------------- */

/* What there is to read for people in a compiler's messages, on one line: from the first error on. */
static void gmem__program_excerpt(const char *log, char *out, size_t bytes) {
    const char *error = strstr(log, "error");
    size_t used = 0;
    while (error && error > log && error[-1] != '\n')
        error--;
    for (const char *c = error ? error : log; *c && used + 1 < bytes; c++) {
        const int space = *c == '\n' || *c == '\r' || *c == '\t' || *c == ' ';
        if (!space || (used > 0 && out[used - 1] != ' ')) out[used++] = space ? ' ' : *c;
    }
    out[used] = 0;
}

/* E_DEVICE with the compiler's first messages, where it has left some. */
static gmem_status gmem__program_fail(const struct gmem__device *device, gmem__cl_program program, int code,
                                      gmem_error *error) {
    const gmem__cl_api *api = &device->library.api;
    const uint32_t what = GMEM__CL_PROGRAM_BUILD_LOG;
    char excerpt[320], plain[360];
    size_t size = 0;
    const gmem_status status = gmem__cl_fail(error, "clBuildProgram", code);
    if (!error || api->clGetProgramBuildInfo(program, device->found.id, what, 0, NULL, &size) != GMEM__CL_SUCCESS ||
        size == 0 || size > (size_t)1 << 26)
        return status;
    char *log = (char *)gmem__alloc(device->context, (int64_t)size + 1, 1);
    if (!log) return status;
    if (api->clGetProgramBuildInfo(program, device->found.id, what, size, log, NULL) == GMEM__CL_SUCCESS) {
        gmem__program_excerpt(log, excerpt, sizeof excerpt);
        const size_t length = strlen(error->message);
        snprintf(error->message + length, sizeof error->message - length, ": %s",
                 gmem_escape(excerpt, plain, sizeof plain));
    }
    gmem__free(device->context, log, (int64_t)size + 1, 1);
    return status;
}

/* Builds what was created, or releases it. */
static gmem_status gmem__program_finish(struct gmem__device *device, gmem__cl_program program, const char *options,
                                        gmem_error *error) {
    const gmem__cl_api *api = &device->library.api;
    const int32_t code = api->clBuildProgram(program, 1, &device->found.id, options, NULL, NULL);
    if (code != GMEM__CL_SUCCESS) {
        const gmem_status status = gmem__program_fail(device, program, code, error);
        (void)api->clReleaseProgram(program);
        return status;
    }
    device->program = program;
    device->compiled = 0;
    return GMEM_OK;
}

static gmem_status gmem__program_compile(struct gmem__device *device, const char *options, gmem_error *error) {
    const char *const *lines = gmem__cl_source();
    uint32_t count = 0;
    int32_t code = GMEM__CL_SUCCESS;
    while (lines[count])
        count++;
    gmem__log(device->context, "compiling the OpenCL kernels for %s ...", device->found.limits.name);
    gmem__cl_program program =
        device->library.api.clCreateProgramWithSource(device->cl, count, (const char **)(uintptr_t)lines, NULL, &code);
    if (code != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clCreateProgramWithSource", code);
    GMEM__TRY(gmem__program_finish(device, program, options, error));
    device->compiled = 1;
    gmem__log(device->context, "compiled");
    return GMEM_OK;
}

/* the cache ------------------------------------------------------------------------------------------------------- */

/* A file holds the whole key with its final 0, then the binary; its name is the key's hash. */
typedef struct gmem__program_key {
    char *text;
    int64_t bytes;
    char name[40];
} gmem__program_key;

/* What decides about a program, but for the source. Returns its length. */
static int64_t gmem__program_print_head(const struct gmem__device *device, const char *options, char *out,
                                        size_t bytes) {
    const gmem__cl_limits *limits = &device->found.limits;
    return snprintf(out, bytes, "gmem %s, program for %s of %s, driver %s, %s, %s\noptions: %s\n", GMEM_VERSION,
                    limits->name, limits->vendor, limits->driver, limits->version, limits->platform, options);
}

static gmem_status gmem__program_key_open(const struct gmem__device *device, const char *options,
                                          gmem__program_key *out, gmem_error *error) {
    const char *const *lines = gmem__cl_source();
    int64_t used = gmem__program_print_head(device, options, NULL, 0);
    out->bytes = used + 1;
    for (int i = 0; lines[i]; i++)
        out->bytes += (int64_t)strlen(lines[i]);
    out->text = (char *)gmem__alloc(device->context, out->bytes, 1);
    if (!out->text) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the program's source");
    (void)gmem__program_print_head(device, options, out->text, (size_t)out->bytes);
    for (int i = 0; lines[i]; i++) {
        const size_t length = strlen(lines[i]);
        memcpy(out->text + used, lines[i], length);
        used += (int64_t)length;
    }
    const uint64_t hash = gmem__fnv1a(out->text, out->bytes);
    snprintf(out->name, sizeof out->name, "program-%08x%08x.bin", (unsigned)(hash >> 32),
             (unsigned)(hash & 0xffffffffu));
    return GMEM_OK;
}

static void gmem__program_key_close(const gmem_context *context, gmem__program_key *key) {
    gmem__free(context, key->text, key->bytes, 1);
}

static gmem_status gmem__program_from_binary(struct gmem__device *device, const char *options,
                                             const unsigned char *binary, size_t bytes, gmem_error *error) {
    int32_t code = GMEM__CL_SUCCESS, of_device = GMEM__CL_SUCCESS;
    gmem__cl_program program = device->library.api.clCreateProgramWithBinary(device->cl, 1, &device->found.id, &bytes,
                                                                             &binary, &of_device, &code);
    if (code == GMEM__CL_SUCCESS && of_device != GMEM__CL_SUCCESS) {
        (void)device->library.api.clReleaseProgram(program);
        code = of_device;
    }
    if (code != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clCreateProgramWithBinary", code);
    return gmem__program_finish(device, program, options, error);
}

static gmem_status gmem__program_load(struct gmem__device *device, const char *cache_dir, const char *options,
                                      const gmem__program_key *key, gmem_error *error) {
    gmem__bytes file;
    GMEM__TRY(gmem__cl_cache_read(device->context, cache_dir, key->name, &file, error));
    gmem_status status;
    if (file.size <= key->bytes || memcmp(file.data, key->text, (size_t)key->bytes) != 0)
        status = gmem__fail(error, GMEM_E_FORMAT, "%s is of another program", key->name);
    else
        status =
            gmem__program_from_binary(device, options, file.data + key->bytes, (size_t)(file.size - key->bytes), error);
    gmem__bytes_close(device->context, &file);
    return status;
}

/* The device's binary behind the key, in memory for both. */
static gmem_status gmem__program_save_binary(const struct gmem__device *device, const char *cache_dir,
                                             const gmem__program_key *key, size_t bytes, gmem_error *error) {
    const int64_t whole = key->bytes + (int64_t)bytes;
    unsigned char *file = (unsigned char *)gmem__alloc(device->context, whole, 1);
    if (!file) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the program's binary");
    memcpy(file, key->text, (size_t)key->bytes);
    unsigned char *binary = file + key->bytes;
    const int32_t code =
        device->library.api.clGetProgramInfo(device->program, GMEM__CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL);
    const gmem_status status = code == GMEM__CL_SUCCESS
                                   ? gmem__cl_cache_write(device->context, cache_dir, key->name, file, whole, error)
                                   : gmem__cl_fail(error, "clGetProgramInfo", code);
    gmem__free(device->context, file, whole, 1);
    return status;
}

static gmem_status gmem__program_save(const struct gmem__device *device, const char *cache_dir,
                                      const gmem__program_key *key, gmem_error *error) {
    size_t bytes = 0;
    const int32_t code = device->library.api.clGetProgramInfo(device->program, GMEM__CL_PROGRAM_BINARY_SIZES,
                                                              sizeof bytes, &bytes, NULL);
    if (code != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clGetProgramInfo", code);
    if (bytes == 0 || bytes > (size_t)1 << 30)
        return gmem__fail(error, GMEM_E_UNSUPPORTED, "the driver gives no binary of a program");
    return gmem__program_save_binary(device, cache_dir, key, bytes, error);
}

GMEM__FN gmem_status gmem__device_build(struct gmem__device *device, const char *cache_dir, gmem_error *error) {
    gmem__cl_options options;
    gmem__program_key key;
    gmem_error why;
    (void)gmem__program_options(device, &options);
    if (!cache_dir) return gmem__program_compile(device, options.text, error);
    GMEM__TRY(gmem__program_key_open(device, options.text, &key, error));
    const gmem_status status = gmem__program_load(device, cache_dir, options.text, &key, &why);
    if (status == GMEM_OK)
        gmem__log(device->context, "the OpenCL kernels are from the cache, %s/%s", cache_dir, key.name);
    else if (status != GMEM_E_OPEN) /* which is a file that isn't there yet, or will be told when it is written */
        gmem__log(device->context, "the cached OpenCL kernels are of no use: %s", why.message);
    gmem__program_key_close(device->context, &key);
    return status == GMEM_OK ? GMEM_OK : gmem__program_compile(device, options.text, error);
}

GMEM__FN void gmem__device_keep(const struct gmem__device *device, const char *cache_dir) {
    gmem__cl_options options;
    gmem__program_key key;
    gmem_error why;
    if (!cache_dir || !device->compiled) return;
    gmem_status status = gmem__program_key_open(device, gmem__program_options(device, &options), &key, &why);
    if (status == GMEM_OK) {
        gmem__log(device->context, "keeping the OpenCL kernels in %s/%s", cache_dir, key.name);
        status = gmem__program_save(device, cache_dir, &key, &why);
        gmem__program_key_close(device->context, &key);
    }
    if (status != GMEM_OK)
        gmem__log(device->context, "the OpenCL kernels are not kept: %s%s%s", why.message, why.path[0] ? ": " : "",
                  why.path);
}

#endif /* GMEM_NO_OPENCL */
