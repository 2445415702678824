/* Where a command computes: --backend, --device, --isa, --dtype and --cache-dir. */
#ifndef BACKEND_H
#define BACKEND_H

#include "args.h"

/* The numbers of `gmem devices`: 0 is the processor, OpenCL's follow, the library's number plus one. */
enum { MOST_DEVICES = 32, DEVICE_CPU = 0, FIRST_OPENCL_DEVICE = 1 };

typedef struct opencl_devices {
    gmem_device_info items[MOST_DEVICES];
    int count;
    gmem_error trouble; /* why there is none, where there is none */
} opencl_devices;
void list_opencl_devices(opencl_devices *out);

/* Whether the description means the processor. */
int is_cpu_device(const char *device);
/* What `device`, a number of gmem devices or a part of a name, means among OpenCL's: an index, or a failure. */
outcome find_opencl_device(const opencl_devices *devices, const char *device, int *out, gmem_error *error);

/* A text that gmem_context_desc.device may point to. */
typedef struct device_text {
    char text[16];
} device_text;

/* Fills in what the flags say of the backend, and refuses what cannot be together. `device` must outlive the
 * description. */
outcome backend_from_flags(const arguments *args, gmem_context_desc *desc, device_text *device, gmem_error *error);

/* Refuses a folder that is none, or that somebody else may write to. */
outcome check_cache_dir(const char *path, gmem_error *error);
const char *compute_name(gmem_compute compute);    /* "f32", as --dtype spells it */
int is_opencl(const gmem_context *context);        /* that is where it computes */
int is_opencl_on_cpu(const gmem_context *context); /* on a device that is this processor */

/* gmem_context_desc.log: what concerns everybody is a note, the rest a detail. */
void backend_log(void *user, const char *line);

#endif /* BACKEND_H */
