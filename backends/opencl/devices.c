/* What OpenCL devices there are, what each can do, and which one the caller means. */
#include "opencl.h"

#ifndef GMEM_NO_OPENCL

#include <stdio.h>

/* questions ------------------------------------------------------------------------------------------------------- */

/* Platforms and devices answer alike. */
typedef struct gmem__cl_asked {
    const gmem__cl_api *api;
    gmem__cl_platform platform;
    gmem__cl_device_id device; /* NULL: the platform is asked */
} gmem__cl_asked;

/* `out` (bytes) receives the answer, `size` its size. Returns whether it fits. */
static int gmem__cl_ask(const gmem__cl_asked *asked, uint32_t what, size_t bytes, void *out, size_t *size) {
    *size = 0;
    const int32_t status = asked->device ? asked->api->clGetDeviceInfo(asked->device, what, bytes, out, size)
                                         : asked->api->clGetPlatformInfo(asked->platform, what, bytes, out, size);
    return status == GMEM__CL_SUCCESS && *size <= bytes;
}

/* A number of exactly this many bytes. */
static int gmem__cl_ask_number(const gmem__cl_asked *asked, uint32_t what, size_t bytes, void *out) {
    size_t size;
    return gmem__cl_ask(asked, what, bytes, out, &size) && size == bytes;
}

/* Numbers of the widths that OpenCL has: cl_uint and cl_bool, cl_ulong, size_t. Returns whether it was told. */
static int gmem__cl_ask_uint(const gmem__cl_asked *asked, uint32_t what, int64_t *out) {
    uint32_t value = 0;
    const int told = gmem__cl_ask_number(asked, what, sizeof value, &value);
    *out = value;
    return told;
}

static int gmem__cl_ask_ulong(const gmem__cl_asked *asked, uint32_t what, int64_t *out) {
    uint64_t value = 0;
    const int told = gmem__cl_ask_number(asked, what, sizeof value, &value);
    *out = value > INT64_MAX ? INT64_MAX : (int64_t)value;
    return told;
}

static int gmem__cl_ask_size(const gmem__cl_asked *asked, uint32_t what, int64_t *out) {
    size_t value = 0;
    const int told = gmem__cl_ask_number(asked, what, sizeof value, &value);
    *out = value > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)value;
    return told;
}

#define GMEM__CL_TEXT 8192

/* The text, ended whatever the driver does; "" where there is none or it is unreasonably long. */
static const char *gmem__cl_ask_text(const gmem__cl_asked *asked, uint32_t what, char text[GMEM__CL_TEXT]) {
    size_t size;
    if (!gmem__cl_ask(asked, what, GMEM__CL_TEXT - 1, text, &size)) size = 0;
    text[size] = 0;
    return text;
}

/* The same in `out` (bytes): escaped, for it is printed, and without the spaces around it. */
static void gmem__cl_ask_name(const gmem__cl_asked *asked, uint32_t what, char *out, size_t bytes) {
    char text[GMEM__CL_TEXT];
    const char *name = gmem__cl_ask_text(asked, what, text);
    while (*name == ' ')
        name++;
    gmem_escape(name, out, bytes);
    size_t length = strlen(out);
    while (length > 0 && out[length - 1] == ' ')
        out[--length] = 0;
}

/* Whether a list of words that are parted by spaces holds this one. */
static int gmem__has_word(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = strstr(list, word); at; at = strstr(at + length, word))
        if ((at == list || at[-1] == ' ') && (at[length] == 0 || at[length] == ' ')) return 1;
    return 0;
}

/* limits ---------------------------------------------------------------------------------------------------------- */

/* "OpenCL 1.2 ..." or later. */
static int gmem__cl_is_1_2(const char *version) {
    int major = 0, minor = 0;
    return sscanf(version, "OpenCL %3d.%3d", &major, &minor) == 2 && (major > 1 || (major == 1 && minor >= 2));
}

static const char *gmem__cl_why_unusable(const gmem__cl_asked *asked, const gmem__cl_limits *limits) {
    int64_t answer;
    if (!gmem__cl_is_1_2(limits->version)) return "its OpenCL is older than 1.2";
    if (!gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_AVAILABLE, &answer) || !answer) return "it is not available";
    if (!gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_COMPILER_AVAILABLE, &answer) || !answer)
        return "its driver has no compiler";
    if (!gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_ENDIAN_LITTLE, &answer) || !answer) return "it is big-endian";
    if (limits->memory <= 0 || limits->largest <= 0) return "it has no memory";
    if (limits->work_group <= 0 || limits->work_items[0] <= 0) return "it runs no work-items";
    return NULL;
}

static void gmem__cl_ask_texts(const gmem__cl_asked *asked, gmem__cl_limits *limits) {
    gmem__cl_asked platform = *asked;
    char text[GMEM__CL_TEXT];
    platform.device = NULL;
    gmem__cl_ask_name(&platform, GMEM__CL_PLATFORM_NAME, limits->platform, sizeof limits->platform);
    gmem__cl_ask_name(asked, GMEM__CL_DEVICE_NAME, limits->name, sizeof limits->name);
    gmem__cl_ask_name(asked, GMEM__CL_DEVICE_VENDOR, limits->vendor, sizeof limits->vendor);
    gmem__cl_ask_name(asked, GMEM__CL_DRIVER_VERSION, limits->driver, sizeof limits->driver);
    gmem__cl_ask_name(asked, GMEM__CL_DEVICE_VERSION, limits->version, sizeof limits->version);
    /* a processor that says so mostly converts, while product_tile has all its registers for f32 */
    limits->fp16 =
        !limits->is_cpu && gmem__has_word(gmem__cl_ask_text(asked, GMEM__CL_DEVICE_EXTENSIONS, text), "cl_khr_fp16");
}

/* Up to three dimensions' limits; devices may have more, and the standard's least is three. */
static int gmem__cl_ask_work_items(const gmem__cl_asked *asked, int64_t out[3]) {
    size_t items[16], size;
    if (!gmem__cl_ask(asked, GMEM__CL_DEVICE_MAX_WORK_ITEM_SIZES, sizeof items, items, &size)) return 0;
    for (size_t i = 0; i < 3; i++)
        out[i] = i < size / sizeof *items ? (int64_t)items[i] : 1;
    return 1;
}

/* Returns 0 for a device that does not even tell what matters. */
static int gmem__cl_ask_limits(const gmem__cl_asked *asked, gmem__cl_limits *limits) {
    int64_t unified, width;
    memset(limits, 0, sizeof *limits);
    if (!gmem__cl_ask_number(asked, GMEM__CL_DEVICE_TYPE, sizeof limits->type, &limits->type) ||
        !gmem__cl_ask_ulong(asked, GMEM__CL_DEVICE_GLOBAL_MEM_SIZE, &limits->memory) ||
        !gmem__cl_ask_ulong(asked, GMEM__CL_DEVICE_MAX_MEM_ALLOC_SIZE, &limits->largest) ||
        !gmem__cl_ask_ulong(asked, GMEM__CL_DEVICE_LOCAL_MEM_SIZE, &limits->local_memory) ||
        !gmem__cl_ask_size(asked, GMEM__CL_DEVICE_MAX_WORK_GROUP_SIZE, &limits->work_group) ||
        !gmem__cl_ask_work_items(asked, limits->work_items) ||
        !gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_MAX_COMPUTE_UNITS, &limits->units))
        return 0;
    limits->largest = gmem__min(limits->largest, limits->memory);
    limits->is_cpu = (limits->type & GMEM__CL_DEVICE_TYPE_CPU) != 0;
    limits->unified = gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_HOST_UNIFIED_MEMORY, &unified) && unified;
    if (gmem__cl_ask_uint(asked, GMEM__CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, &width)) limits->vector_width = (int)width;
    gmem__cl_ask_texts(asked, limits);
    limits->unusable = gmem__cl_why_unusable(asked, limits);
    return 1;
}

/* the list -------------------------------------------------------------------------------------------------------- */

static void gmem__cl_list_platform(const gmem__cl_api *api, gmem__cl_platform platform, gmem__cl_found *out,
                                   int *count) {
    gmem__cl_device_id ids[GMEM__CL_MAX_DEVICES];
    uint32_t found = 0;
    const gmem__cl_bits any = GMEM__CL_DEVICE_TYPE_CPU | GMEM__CL_DEVICE_TYPE_GPU | GMEM__CL_DEVICE_TYPE_ACCELERATOR;
    if (api->clGetDeviceIDs(platform, any, GMEM__CL_MAX_DEVICES, ids, &found) != GMEM__CL_SUCCESS) return;
    for (uint32_t i = 0; i < found && i < GMEM__CL_MAX_DEVICES && *count < GMEM__CL_MAX_DEVICES; i++) {
        gmem__cl_asked asked;
        gmem__cl_found *next = &out[*count];
        asked.api = api;
        asked.platform = next->platform = platform;
        asked.device = next->id = ids[i];
        if (ids[i] && gmem__cl_ask_limits(&asked, &next->limits)) ++*count;
    }
}

GMEM__FN gmem_status gmem__cl_list(const gmem__cl_api *api, gmem__cl_found *out, int *count, gmem_error *error) {
    gmem__cl_platform platforms[GMEM__CL_MAX_DEVICES];
    uint32_t found = 0;
    int listed = 0;
    const int32_t status = api->clGetPlatformIDs(GMEM__CL_MAX_DEVICES, platforms, &found);
    if (status == GMEM__CL_PLATFORM_NOT_FOUND_KHR || (status == GMEM__CL_SUCCESS && found == 0))
        return gmem__fail(error, GMEM_E_NO_DEVICE, "OpenCL has no platform: no driver is installed");
    if (status != GMEM__CL_SUCCESS) return gmem__cl_fail(error, "clGetPlatformIDs", status);
    for (uint32_t i = 0; i < found && i < GMEM__CL_MAX_DEVICES; i++)
        gmem__cl_list_platform(api, platforms[i], out, &listed);
    if (listed == 0) return gmem__fail(error, GMEM_E_NO_DEVICE, "OpenCL has no device");
    *count = listed;
    return GMEM_OK;
}

/* the choice ------------------------------------------------------------------------------------------------------ */

static int gmem__ascii_lower(int c) { return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c; }

/* Whether `part` occurs in `text`, ASCII case ignored. */
static int gmem__contains_part(const char *text, const char *part) {
    for (;; text++) {
        size_t i = 0;
        while (part[i] && gmem__ascii_lower(text[i]) == gmem__ascii_lower(part[i]))
            i++;
        if (!part[i]) return 1;
        if (!*text) return 0;
    }
}

/* A number below `count`, or -1: "3090" is a part of a name then. */
static int gmem__cl_number(const char *text, int count) {
    int number = 0;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9') return -1;
        number = number * 10 + (*c - '0');
        if (number >= count) return -1;
    }
    return *text ? number : -1;
}

static int gmem__is_gpu(const gmem__cl_found *found) { return (found->limits.type & GMEM__CL_DEVICE_TYPE_GPU) != 0; }

/* The first that has `part` in its name and can be used, else the first that has it, else -1. */
static int gmem__cl_first(const gmem__cl_found *found, int count, const char *part, int gpu_only) {
    int first = -1;
    for (int i = 0; i < count; i++) {
        if ((gpu_only && !gmem__is_gpu(found + i)) || !gmem__contains_part(found[i].limits.name, part)) continue;
        if (!found[i].limits.unusable) return i;
        if (first < 0) first = i;
    }
    return first;
}

/* `0: "NAME"`, `1: "NAME" (it is big-endian)`, ... as far as there is room. */
static void gmem__cl_name_all(const gmem__cl_found *found, int count, char *out, size_t bytes) {
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < count && used < bytes; i++) {
        const gmem__cl_limits *limits = &found[i].limits;
        used += (size_t)snprintf(out + used, bytes - used, "%s%d: \"%s\"%s%s%s", i ? ", " : "", i, limits->name,
                                 limits->unusable ? " (" : "", limits->unusable ? limits->unusable : "",
                                 limits->unusable ? ")" : "");
    }
}

static gmem_status gmem__cl_fail_pick(const gmem__cl_found *found, int count, const char *device, int gpu_only,
                                      gmem_error *error) {
    gmem__quoted quoted;
    char all[360];
    const char *kind = gpu_only ? "OpenCL GPU" : "OpenCL device";
    gmem__cl_name_all(found, count, all, sizeof all);
    if (device)
        return gmem__fail(error, GMEM_E_NO_DEVICE, "no %s \"%.60s\"; there are %s", kind, gmem__quote(&quoted, device),
                          all);
    return gmem__fail(error, GMEM_E_NO_DEVICE, "no %s can be used; there are %s", kind, all);
}

/* The device that is meant, usable or not, or -1. */
static int gmem__cl_meant(const gmem__cl_found *found, int count, const char *device, int gpu_only) {
    if (device) {
        const int number = gmem__cl_number(device, count);
        if (number < 0) return gmem__cl_first(found, count, device, gpu_only);
        return gpu_only && !gmem__is_gpu(found + number) ? -1 : number;
    }
    const int gpu = gmem__cl_first(found, count, "", 1);
    return gpu_only || (gpu >= 0 && !found[gpu].limits.unusable) ? gpu : gmem__cl_first(found, count, "", 0);
}

GMEM__FN gmem_status gmem__cl_pick(const gmem__cl_found *found, int count, const char *device, int gpu_only, int *out,
                                   gmem_error *error) {
    const int meant = gmem__cl_meant(found, count, device, gpu_only);
    if (meant < 0) return gmem__cl_fail_pick(found, count, device, gpu_only, error);
    if (found[meant].limits.unusable)
        return gmem__fail(error, GMEM_E_NO_DEVICE, "OpenCL device %d, \"%s\", cannot be used: %s", meant,
                          found[meant].limits.name, found[meant].limits.unusable);
    *out = meant;
    return GMEM_OK;
}

#undef GMEM__CL_TEXT

#endif /* GMEM_NO_OPENCL */
