/* gmem devices: what can compute here, tested; and what it computes fastest with. */
#include "backend.h"
#include "commands.h"
#include "interrupt.h"
#include "machine.h"

#include <string.h>

/* the processor --------------------------------------------------------------------------------------------------- */

static int has_isa(int isa) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.isa = (gmem_isa)isa;
    desc.backend = GMEM_BACKEND_CPU;
    int found = gmem_context_create(&desc, &context, NULL) == GMEM_OK;
    gmem_context_destroy(context);
    return found;
}

static void print_isas(json_writer *json) {
    char isa[16];
    if (json) json_open(json, "isa", '[');
    for (int i = GMEM_ISA_SCALAR; i <= GMEM_ISA_AMX; i++) {
        if (!has_isa(i)) continue;
        choice_name(FLAG_isa, i + 1, isa, sizeof isa);
        if (json)
            json_text(json, NULL, isa);
        else
            printf(" %s", isa);
    }
    if (json) json_close(json, ']');
}

static void print_cpu(json_writer *json, const gmem_context *context) {
    char model[256];
    cpu_model(model, sizeof model);
    if (json) {
        json_open(json, NULL, '{');
        json_integer(json, "device", DEVICE_CPU);
        json_text(json, "backend", gmem_context_backend(context));
        json_text(json, "kind", "cpu");
        json_text(json, "name", model);
        json_integer(json, "threads", gmem_context_threads(context));
    } else {
        printf("%d  cpu  %s, %d threads, instruction sets:", DEVICE_CPU, model, gmem_context_threads(context));
    }
    print_isas(json);
    if (json)
        json_close(json, '}');
    else
        printf("\n   in use: %s\n", gmem_context_backend(context));
}

/* OpenCL's -------------------------------------------------------------------------------------------------------- */

typedef struct device_test {
    const gmem_device_info *info;
    int number;
    int passed;
    gmem_error why;              /* where it did not pass */
    int f16;                     /* it computes in f16 */
    double seconds, cpu_seconds; /* of the same product */
} device_test;

/* Whether --dtype f16 is computed in f16: a device may say that it can, and fail its test. */
static int computes_f16(const gmem_context_desc *named) {
    gmem_context_desc desc = *named;
    gmem_context *context = NULL;
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.compute = GMEM_COMPUTE_F16;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) return 0;
    const int found = strcmp(gmem_context_kernels(context), "opencl-f16") == 0;
    gmem_context_destroy(context);
    return found;
}

static device_test test_device(const arguments *args, const gmem_device_info *info, int index) {
    gmem_context_desc desc;
    device_test test;
    char number[16];
    memset(&desc, 0, sizeof desc);
    memset(&test, 0, sizeof test);
    test.info = info;
    test.number = index + FIRST_OPENCL_DEVICE;
    snprintf(number, sizeof number, "%d", index);
    desc.device = number;
    desc.cache_dir = args->cache_dir;
    desc.log = backend_log;
    if (!info->unusable) test.passed = gmem_device_check(&desc, &test.seconds, &test.cpu_seconds, &test.why) == GMEM_OK;
    if (test.passed && info->fp16) test.f16 = computes_f16(&desc);
    return test;
}

static void json_device(json_writer *json, const device_test *test) {
    const gmem_device_info *info = test->info;
    json_open(json, NULL, '{');
    json_integer(json, "device", test->number);
    json_text(json, "backend", "opencl");
    json_text(json, "kind", info->kind);
    json_text(json, "name", info->name);
    json_text(json, "vendor", info->vendor);
    json_text(json, "platform", info->platform);
    json_text(json, "driver", info->driver);
    json_text(json, "version", info->version);
    json_integer(json, "memory_bytes", info->memory);
    json_integer(json, "largest_buffer_bytes", info->largest);
    json_integer(json, "compute_units", info->units);
    json_boolean(json, "shares_memory", info->unified);
    json_open(json, "types", '[');
    json_text(json, NULL, "f32");
    if (test->f16) json_text(json, NULL, "f16");
    json_close(json, ']');
    json_boolean(json, "usable", !info->unusable && test->passed);
    json_text(json, "unusable", info->unusable);
    json_text(json, "self_test", info->unusable ? NULL : test->passed ? "passed" : test->why.message);
    if (test->passed) {
        json_number(json, "seconds", test->seconds);
        json_number(json, "cpu_seconds", test->cpu_seconds);
    }
    json_close(json, '}');
}

static void print_device(const device_test *test) {
    const gmem_device_info *info = test->info;
    printf("%d  opencl  %s (%s), %.1f GB%s, %lld compute units, computes in f32%s\n", test->number, info->name,
           info->kind, 1e-9 * (double)info->memory, info->unified ? " shared with the processor" : "",
           (long long)info->units, test->f16 ? " and f16" : ", f16 by rounding");
    printf("   %s, %s, driver %s\n", info->platform, info->version, info->driver);
    if (info->unusable)
        printf("   cannot be used: %s\n", info->unusable);
    else if (!test->passed)
        printf("   cannot be used: the self-test failed: %s\n", test->why.message);
    else
        printf("   self-test passed; a matrix product takes %.3g ms, on the processor %.3g ms\n", 1e3 * test->seconds,
               1e3 * test->cpu_seconds);
}

static void print_devices(const gmem_context *cpu, const device_test *tests, int count, json_writer *json) {
    if (json) json_open(json, NULL, '[');
    if (cpu) print_cpu(json, cpu);
    for (int i = 0; i < count; i++) {
        if (json)
            json_device(json, &tests[i]);
        else
            print_device(&tests[i]);
    }
    if (json) json_close(json, ']');
}

/* All of them, or the one of --device. */
static outcome list_devices(const arguments *args, gmem_error *error) {
    static opencl_devices devices;
    static device_test tests[MOST_DEVICES];
    gmem_context_desc desc;
    gmem_context *cpu = NULL;
    json_writer json;
    int first = 0, end, count = 0;
    list_opencl_devices(&devices);
    end = devices.count;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    if (args->device && is_cpu_device(args->device)) {
        end = 0;
    } else if (args->device) {
        TRY(find_opencl_device(&devices, args->device, &first, error));
        end = first + 1;
    }
    if (!args->device || end == 0) TRY(from_status(gmem_context_create(&desc, &cpu, error)));
    for (int i = first; i < end; i++) {
        tests[count++] = test_device(args, &devices.items[i], i);
    }
    if (args->json) json_begin(&json, stdout);
    print_devices(cpu, tests, count, args->json ? &json : NULL);
    gmem_context_destroy(cpu);
    if (devices.count == 0) note("no OpenCL device: %s", devices.trouble.message);
    return OUTCOME_DONE;
}

/* tuning ---------------------------------------------------------------------------------------------------------- */

typedef struct tuning {
    progress_bar bar;
    double seconds;
} tuning;

static double tuning_clock(void *user) {
    (void)user;
    return seconds_now();
}

static int tuning_progress(void *user, double seconds, const char *what) {
    tuning *t = (tuning *)user;
    gmem_error ignored;
    progress_show_time(&t->bar, seconds, t->seconds, what);
    return interrupt_check(&ignored) != OUTCOME_DONE;
}

static double gflops_of(const gmem_tune_shape *shape, double seconds) {
    return seconds > 0 ? 2e-9 * (double)shape->rows * (double)shape->depth * (double)shape->columns / seconds : 0;
}

static void print_report(const gmem_tune_report *r, double allowed) {
    printf("%-16s %5s %5s %5s %12s %14s %12s   %s\n", "GFLOP/s", "rows", "depth", "cols", "CLBlast", "CLBlast tuned",
           "own kernels", "choice");
    for (int i = 0; i < r->shape_count; i++) {
        const gmem_tune_shape *s = &r->shapes[i];
        const double seconds[] = {s->clblast, s->clblast_tuned, s->own};
        static const int widths[] = {12, 14, 12};
        printf("%-16s %5lld %5lld %5lld", s->layer, (long long)s->rows, (long long)s->depth, (long long)s->columns);
        for (int j = 0; j < 3; j++) {
            if (seconds[j] > 0)
                printf(" %*.1f", widths[j], gflops_of(s, seconds[j]));
            else
                printf(" %*s", widths[j], "-");
        }
        printf("   %s\n", s->choice ? s->choice : "-");
    }
    printf("%d settings tried in %.0f of %.0f s, %d of them failed or computed something else\n", r->tried, r->seconds,
           allowed, r->failed);
    if (r->tried == 0) printf("there was no time to compile any other: allow more with --seconds\n");
}

/* null where it is not known */
static void json_rate(json_writer *json, const char *key, const gmem_tune_shape *shape, double seconds) {
    if (seconds > 0)
        json_number(json, key, gflops_of(shape, seconds));
    else
        json_text(json, key, NULL);
}

static void json_report(const gmem_tune_report *r, double allowed, const char *backend) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "backend", backend);
    json_number(&json, "seconds", r->seconds);
    json_number(&json, "allowed", allowed);
    json_integer(&json, "tried", r->tried);
    json_integer(&json, "failed", r->failed);
    json_open(&json, "shapes", '[');
    for (int i = 0; i < r->shape_count; i++) {
        const gmem_tune_shape *s = &r->shapes[i];
        json_open(&json, NULL, '{');
        json_text(&json, "layer", s->layer);
        json_integer(&json, "rows", s->rows);
        json_integer(&json, "depth", s->depth);
        json_integer(&json, "columns", s->columns);
        json_rate(&json, "clblast_gflops", s, s->clblast);
        json_rate(&json, "tuned_gflops", s, s->clblast_tuned);
        json_rate(&json, "own_gflops", s, s->own);
        json_text(&json, "choice", s->choice);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

static outcome tune(const arguments *args, gmem_error *error) {
    gmem_context_desc desc;
    device_text device;
    gmem_context *context = NULL;
    gmem_tune_desc tune_desc;
    gmem_tune_report report;
    tuning t;
    memset(&desc, 0, sizeof desc);
    memset(&tune_desc, 0, sizeof tune_desc);
    if (args->device && is_cpu_device(args->device))
        return failed(error, NULL, "the processor's own kernels are not tuned: --tune is for an OpenCL device");
    TRY(backend_from_flags(args, &desc, &device, error));
    if (!args->verbose) desc.log = NULL; /* each try is compiled */
    desc.cache_dir = NULL;               /* what was tuned before must not be what is compared with */
    TRY(from_status(gmem_context_create(&desc, &context, error)));
    t.seconds = args->seconds > 0 ? args->seconds : 60;
    tune_desc.cache_dir = args->cache_dir;
    tune_desc.seconds = t.seconds;
    tune_desc.clock = tuning_clock;
    tune_desc.progress = tuning_progress;
    tune_desc.user = &t;
    progress_begin(&t.bar);
    const outcome result = from_status(gmem_device_tune(context, &tune_desc, &report, error));
    progress_end(&t.bar);
    if (result == OUTCOME_DONE) {
        note("backend: %s", gmem_context_backend(context));
        note("kept in %s", args->cache_dir);
        if (args->json)
            json_report(&report, t.seconds, gmem_context_backend(context));
        else if (!args->quiet)
            print_report(&report, t.seconds);
    }
    gmem_context_destroy(context);
    return result;
}

outcome command_devices(const arguments *args, gmem_error *error) {
    if (!args->tune && args->seconds > 0) return misused(error, "--seconds needs --tune");
    if (args->tune && !args->cache_dir)
        return misused(error, "--tune needs a folder to keep what it finds in: add --cache-dir DIR");
    if (args->cache_dir) TRY(check_cache_dir(args->cache_dir, error));
    return args->tune ? tune(args, error) : list_devices(args, error);
}
