/* The flags that say where and in what a command computes, resolved. */
#define _POSIX_C_SOURCE 200809L
#include "backend.h"

#include "machine.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The choices of the flags, from 1; 0: not given. */
enum { BACKEND_AUTO = 1, BACKEND_CPU, BACKEND_OPENCL };
enum { ISA_AUTO = 1 };
enum { DTYPE_F16 = 3 };

/* devices --------------------------------------------------------------------------------------------------------- */

void list_opencl_devices(opencl_devices *out) {
    memset(out, 0, sizeof *out);
    if (gmem_devices(NULL, out->items, MOST_DEVICES, &out->count, &out->trouble) != GMEM_OK) out->count = 0;
    if (out->count > MOST_DEVICES) out->count = MOST_DEVICES;
}

int is_cpu_device(const char *device) {
    char model[256];
    return strcmp(device, "0") == 0 || same_ignoring_case(device, "cpu") ||
           same_ignoring_case(device, cpu_model(model, sizeof model));
}

static int contains(const char *text, const char *part) {
    char window[128];
    const size_t length = strlen(part);
    for (; strlen(text) >= length; text++) {
        snprintf(window, sizeof window, "%.*s", (int)length, text);
        if (same_ignoring_case(window, part)) return 1;
    }
    return 0;
}

outcome find_opencl_device(const opencl_devices *devices, const char *device, int *out, gmem_error *error) {
    int64_t number;
    const int is_short = strlen(device) <= 2 && strspn(device, "0123456789") == strlen(device);
    if (devices->count == 0) {
        *error = devices->trouble;
        return OUTCOME_FAILED;
    }
    *out = -1;
    if (parse_integer(device, FIRST_OPENCL_DEVICE, devices->count, &number)) {
        *out = (int)number - FIRST_OPENCL_DEVICE;
    } else if (!is_short) {                             /* "3090" may be a part of a name, "7" is a number */
        for (int i = devices->count - 1; i >= 0; i--) { /* the first that can be used, else the first */
            if (contains(devices->items[i].name, device) &&
                (*out < 0 || !devices->items[i].unusable || devices->items[*out].unusable))
                *out = i;
        }
    }
    if (*out >= 0) return OUTCOME_DONE;
    if (is_cpu_device(device))
        return failed(error, NULL, "device '%s' is the processor, not OpenCL's: gmem devices lists what there is",
                      device);
    return failed(error, NULL, "no device '%s': gmem devices lists what there is", device);
}

/* The place of an OpenCL device in the description. */
static outcome use_opencl_device(const arguments *args, gmem_context_desc *desc, device_text *device,
                                 gmem_error *error) {
    static opencl_devices devices;
    int index;
    desc->backend = GMEM_BACKEND_OPENCL;
    if (!args->device) return OUTCOME_DONE;
    list_opencl_devices(&devices);
    TRY(find_opencl_device(&devices, args->device, &index, error));
    snprintf(device->text, sizeof device->text, "%d", index);
    desc->device = device->text;
    return OUTCOME_DONE;
}

/* Networks, autoencoders and image encoders are worth a GPU; opening, copying and reading are not. */
static int is_worth_a_device(command_id command) {
    switch (command) {
    case COMMAND_SAMPLE:
    case COMMAND_EVAL:
    case COMMAND_INTEGRATE:
    case COMMAND_DECODE:
    case COMMAND_ENCODE:
    case COMMAND_FEATURES:
    case COMMAND_BANK_BUILD:
    case COMMAND_BENCH_NETWORK:
    case COMMAND_BENCH_AUTOENCODER:
    case COMMAND_BENCH_ENCODER:
        return 1;
    default:
        return 0;
    }
}

/* Who names a device or an instruction set has chosen the backend. */
static outcome choose_backend(const arguments *args, gmem_context_desc *desc, device_text *device, gmem_error *error) {
    const int names_isa = args->isa > ISA_AUTO, names_cpu = args->device && is_cpu_device(args->device);
    if (args->backend == BACKEND_CPU || (args->backend != BACKEND_OPENCL && names_cpu)) {
        desc->backend = GMEM_BACKEND_CPU;
        if (args->device && !names_cpu)
            return failed(error, NULL, "no device '%s' of the backend cpu: gmem devices lists what there is",
                          args->device);
        return OUTCOME_DONE;
    }
    if (args->backend == BACKEND_OPENCL || args->device || args->tune) {
        if (names_isa)
            return misused(error, "--isa is for the processor: it cannot be combined with %s",
                           args->backend == BACKEND_OPENCL ? "--backend opencl" : "a device of OpenCL");
        return use_opencl_device(args, desc, device, error);
    }
    desc->backend = names_isa || !is_worth_a_device(args->command) ? GMEM_BACKEND_CPU : GMEM_BACKEND_AUTO;
    return OUTCOME_DONE;
}

/* what is computed in --------------------------------------------------------------------------------------------- */

/* Commands that write a checkpoint or a bank take --dtype for the type of what they write. */
static int writes_dtype(command_id command) {
    return command == COMMAND_CONVERT || command == COMMAND_BANK_BUILD || command == COMMAND_BANK_ADD ||
           command == COMMAND_BANK_EXPORT || command == COMMAND_BANK_COMPRESS;
}

/* For the others --dtype is what products compute in. */
static outcome choose_compute(const arguments *args, gmem_context_desc *desc, gmem_error *error) {
    static const gmem_compute by_choice[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_F16,
                                             GMEM_COMPUTE_INT8}; /* none, f32, bf16, f16, int8 */
    if (writes_dtype(args->command)) return OUTCOME_DONE;
    if (args->dtype == DTYPE_F16 && desc->backend == GMEM_BACKEND_CPU)
        return failed(error, NULL,
                      "no CPU kernel computes in f16: --dtype bf16 is as fast, and f16 files run as they are");
    desc->compute = by_choice[args->dtype];
    return OUTCOME_DONE;
}

const char *compute_name(gmem_compute compute) {
    static const char *const names[] = {"f32", "bf16", "int8", "f16"}; /* by gmem_compute */
    return names[compute];
}

int is_opencl(const gmem_context *context) { return strncmp(gmem_context_backend(context), "opencl/", 7) == 0; }

int is_opencl_on_cpu(const gmem_context *context) {
    static opencl_devices devices;
    if (!is_opencl(context)) return 0;
    list_opencl_devices(&devices);
    for (int i = 0; i < devices.count; i++) {
        if (strcmp(devices.items[i].name, gmem_context_backend(context) + 7) == 0)
            return strcmp(devices.items[i].kind, "cpu") == 0;
    }
    return 0;
}

/* the cache folder ------------------------------------------------------------------------------------------------ */

/* Whoever can write there can have this program run what they like on the device. */
outcome check_cache_dir(const char *path, gmem_error *error) {
    struct stat status;
    if (stat(path, &status) != 0) return failed(error, path, "cannot use the cache folder: %s", strerror(errno));
    if (!S_ISDIR(status.st_mode)) return failed(error, path, "the cache folder is not a folder");
    if (status.st_uid != geteuid()) return failed(error, path, "the cache folder belongs to another user");
    if (status.st_mode & (S_IWGRP | S_IWOTH))
        return failed(error, path, "others may write to the cache folder (mode %03o): chmod go-w makes it yours alone",
                      (unsigned)status.st_mode & 0777u);
    if (access(path, R_OK | W_OK | X_OK) != 0)
        return failed(error, path, "cannot use the cache folder: %s", strerror(errno));
    return OUTCOME_DONE;
}

outcome backend_from_flags(const arguments *args, gmem_context_desc *desc, device_text *device, gmem_error *error) {
    TRY(choose_backend(args, desc, device, error));
    TRY(choose_compute(args, desc, error));
    if (args->cache_dir) TRY(check_cache_dir(args->cache_dir, error));
    desc->cache_dir = args->cache_dir;
    desc->isa = args->isa ? (gmem_isa)(args->isa - 1) : GMEM_ISA_AUTO;
    desc->threads = (int)args->threads;
    desc->log = backend_log;
    return OUTCOME_DONE;
}

/* the log --------------------------------------------------------------------------------------------------------- */

/* What the user did not ask for, or waits for. */
void backend_log(void *user, const char *line) {
    static const char *const news[] = {"the CPU goes on", "streamed"};
    (void)user;
    for (size_t i = 0; i < sizeof news / sizeof *news; i++) {
        if (!strstr(line, news[i])) continue;
        note("%s", line);
        return;
    }
    if (strncmp(line, "compiling", 9) == 0)
        note_waiting("%s", line);
    else
        detail("%s", line);
}
