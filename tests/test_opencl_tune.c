/* Tuning: which parameters fit a device, what the file keeps and what of a file is believed, and the search with clocks
 * of all sorts. PoCL is the device at hand: without it the tests fail. */
#define _DEFAULT_SOURCE
#include "../backends/opencl/tune.h"
#include "failing_opencl.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[200];
static char log_text[8192]; /* since the last opening */

static void keep_log(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

static gmem_context *open_context(failing_cl *cl, const char *cache_dir) {
    gmem_context *context = NULL;
    gmem_context_desc desc;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.threads = 2;
    desc.cache_dir = cache_dir;
    desc.log = keep_log;
    if (cl) desc.opencl = failing_cl_hook(cl);
    log_text[0] = 0;
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("%s\n", error.message);
        exit(check_report());
    }
    return context;
}

static gmem_context *open_cpu_context(void) {
    gmem_context *context = NULL;
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_context_create(&desc, &context, NULL));
    return context;
}

/* the parameters -------------------------------------------------------------------------------------------------- */

static gmem__cl_limits large_device(void) {
    gmem__cl_limits limits;
    memset(&limits, 0, sizeof limits);
    limits.memory = limits.largest = (int64_t)1 << 33;
    limits.local_memory = 65536;
    limits.work_group = limits.work_items[0] = limits.work_items[1] = limits.work_items[2] = 1024;
    limits.units = 8;
    limits.vector_width = 8;
    return limits;
}

static void test_seeds(void) {
    const gmem__cl_limits large = large_device();
    gmem__cl_limits small = large;
    gmem__tune_point point;
    small.work_group = 3;
    for (int id = 0; id <= GMEM__TUNE_PADTRANSPOSE; id++) {
        int seeds = 0;
        for (; gmem__tune_seed((gmem__tune_set_id)id, seeds, &point); seeds++) {
            CHECK(gmem__tune_fits((gmem__tune_set_id)id, &point, &large));
            CHECK(!gmem__tune_fits((gmem__tune_set_id)id, &point, &small));
        }
        CHECK(seeds >= 2);
    }
}

/* The seed of a set with one parameter changed. */
static int fits_with(gmem__tune_set_id id, const char *name, int value, const gmem__cl_limits *limits) {
    const gmem__tune_set *set = gmem__tune_get_set(id);
    gmem__tune_point point;
    CHECK(gmem__tune_seed(id, 0, &point));
    for (int i = 0; i < set->count; i++)
        if (strcmp(set->parameters[i].name, name) == 0) point.values[i] = value;
    return gmem__tune_fits(id, &point, limits);
}

static void test_constraints(void) {
    const gmem__cl_limits large = large_device();
    gmem__cl_limits no_local = large;
    no_local.local_memory = 1024;
    CHECK(fits_with(GMEM__TUNE_XGEMM, "SA", 1, &large));
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "SA", 1, &no_local));  /* 4 KB of local memory */
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "MDIMC", 16, &large)); /* MWG 32 is no multiple of 16 * 8 */
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "MWG", 48, &large));   /* no value of CLBlast's */
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "GEMMK", 1, &large));  /* writes outside */
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "VWM", 0, &large));    /* nothing divides by it */
    CHECK(!fits_with(GMEM__TUNE_XGEMM, "VWM", -8, &large));
    CHECK(!fits_with(GMEM__TUNE_XGEMM_DIRECT, "WGD", 16, &large)); /* no multiple of 4 * 8 */
    CHECK(!fits_with(GMEM__TUNE_XGEMM_DIRECT, "KWID", 0, &large));
    CHECK(!fits_with(GMEM__TUNE_TRANSPOSE, "TRA_DIM", 64, &large)); /* 4096 work-items */
    CHECK(!fits_with(GMEM__TUNE_PADTRANSPOSE, "PADTRA_WPT", 0, &large));
}

static void test_tiles(void) {
    const gmem__cl_limits large = large_device();
    const gmem__cl_tiles first = gmem__product_tiles(&large);
    for (int id = GMEM__TUNE_OWN; id < GMEM__TUNE_SETS; id++) {
        gmem__cl_tiles tiles = first;
        gmem__tune_point point;
        gmem__tune_get_tiles(&first, (gmem__tune_set_id)id, &point);
        CHECK(gmem__tune_fits((gmem__tune_set_id)id, &point, &large)); /* the defaults are among what is searched */
        point.values[0] = 1000;
        CHECK(!gmem__tune_fits((gmem__tune_set_id)id, &point, &large));
        gmem__tune_set_tiles(&tiles, (gmem__tune_set_id)id, &point);
        CHECK_INT(id == GMEM__TUNE_OWN ? tiles.item_rows : tiles.tile_rows, 1000);
    }
}

/* the file -------------------------------------------------------------------------------------------------------- */

static const char *tuning_file(void) {
    static char name[300];
    DIR *all = opendir(folder);
    name[0] = 0;
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all))
        if (strncmp(entry->d_name, "tuning-", 7) == 0) snprintf(name, sizeof name, "%s", entry->d_name);
    if (all) closedir(all);
    return name;
}

/* What a device would have found: two shapes, other tiles, one of CLBlast's kernels. */
static gmem__tune_found something_found(const struct gmem__device *device) {
    gmem__tune_found found;
    memset(&found, 0, sizeof found);
    found.tuning = device->tuning;
    found.tuning.tiles.tile_columns = 2 * found.tuning.tiles.tile_vectors * found.tuning.tiles.tile_width;
    found.tuning.shape_count = 2;
    found.tuning.shapes[0].rows = 3456;
    found.tuning.shapes[0].depth = 1152;
    found.tuning.shapes[0].columns = 256;
    found.tuning.shapes[0].way = GMEM__CL_WAY_TILE;
    found.tuning.shapes[1].rows = 8;
    found.tuning.shapes[1].depth = 9;
    found.tuning.shapes[1].columns = 10;
    found.tuning.shapes[1].way = GMEM__CL_WAY_OWN;
    found.has[GMEM__TUNE_XGEMM] = gmem__tune_seed(GMEM__TUNE_XGEMM, 0, &found.points[GMEM__TUNE_XGEMM]);
    return found;
}

static void check_found(const struct gmem__device *device, const gmem__tune_found *found) {
    CHECK(device->tuning.tuned);
    CHECK(memcmp(&device->tuning.tiles, &found->tuning.tiles, sizeof device->tuning.tiles) == 0);
    if (!CHECK_INT(device->tuning.shape_count, 2)) return;
    for (int i = 0; i < 2; i++) {
        CHECK_INT(device->tuning.shapes[i].rows, found->tuning.shapes[i].rows);
        CHECK_INT(device->tuning.shapes[i].depth, found->tuning.shapes[i].depth);
        CHECK_INT(device->tuning.shapes[i].columns, found->tuning.shapes[i].columns);
        CHECK_INT(device->tuning.shapes[i].way, found->tuning.shapes[i].way);
    }
}

static void test_kept(void) {
    failing_cl cl;
    memset(&cl, 0, sizeof cl);
    gmem_context *context = open_context(&cl, folder);
    CHECK(!context->device->tuning.tuned);
    CHECK_TEXT(tuning_file(), "");
    CHECK_INT(cl.calls[FAILING_CLBlastOverrideParameters], 0);
    const gmem__cl_tuning usual = context->device->tuning;
    gmem__tune_found found = something_found(context->device);
    CHECK_OK(gmem__tune_save(context->device, folder, &found, NULL));
    gmem__device_tuning_load(context->device, folder); /* without compiling for other tiles */
    check_found(context->device, &found);
    context->device->tuning = usual;
    found.tuning.tiles = usual.tiles;
    CHECK_OK(gmem__tune_save(context->device, folder, &found, NULL));
    gmem_context_destroy(context);
    memset(cl.calls, 0, sizeof cl.calls);
    context = open_context(&cl, folder);
    CHECK_CONTAINS(log_text, "tuned parameters of");
    CHECK_INT(cl.calls[FAILING_CLBlastOverrideParameters], context->device->library.has_clblast);
    check_found(context->device, &found);
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

/* The file with `text` in place of all after its first line, or of all. */
static void write_lines(const char *text, int keep_first) {
    gmem__bytes bytes;
    char all[4096];
    gmem_context *context = open_cpu_context(); /* the cache is no device's */
    int first = 0;
    if (CHECK_OK(gmem__cl_cache_read(context, folder, tuning_file(), &bytes, NULL))) {
        while (keep_first && first < (int)bytes.size && bytes.data[first] != '\n')
            first++;
        const int used =
            snprintf(all, sizeof all, "%.*s%s%s", first, (const char *)bytes.data, first ? "\n" : "", text);
        gmem__bytes_close(context, &bytes);
        CHECK_OK(gmem__cl_cache_write(context, folder, tuning_file(), all, used, NULL));
    }
    gmem_context_destroy(context);
}

static void test_disbelief(void) {
    static const char *const bad[] = {
        "nonsense\n",
        "set\n",
        "set Xnothing A=1\n",
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4\n",                         /* one is missing */
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 COPY_VW=4\n",               /* likewise */
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 COPY_WPT=3\n",              /* no value that may be */
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 COPY_WPT=99999999999999\n", /* no number */
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 COPY_WPT=\n",
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 OTHER=4\n",
        "set Copy COPY_DIMX=8 COPY_DIMY=8 COPY_VW=4 COPY_WPT=4 COPY_WPT=4\n",
        "set product_tile tile_rows=5 tile_vectors=2 tile_width=16 tile_columns=256 tile_depth=384\n",
        "shape 1 2 3\n",
        "shape 1 2 3 sideways\n",
        "shape 1 -2 3 tile\n",
        "shape 0 2 3 tile\n",
        "shape 1 2 3 tile 4\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        failing_cl cl;
        memset(&cl, 0, sizeof cl);
        write_lines(bad[i], 1);
        gmem_context *context = open_context(&cl, folder);
        const gmem__cl_tiles usual = gmem__product_tiles(&context->device->found.limits);
        CHECK_CONTAINS(log_text, "lines that do not fit the device are ignored");
        CHECK_INT(cl.calls[FAILING_CLBlastOverrideParameters], 0);
        CHECK_INT(context->device->tuning.shape_count, 0);
        CHECK(memcmp(&context->device->tuning.tiles, &usual, sizeof usual) == 0);
        gmem_context_destroy(context);
    }
}

/* What is good in a file is taken, whatever stands around it. */
static void test_mixed(void) {
    char text[2048];
    size_t used = (size_t)snprintf(text, sizeof text, "# remark\n\nshape  1  2 3  tile\n");
    memset(text + used, 'x', 600); /* a line too long: there the reading ends */
    snprintf(text + used + 600, sizeof text - used - 600, "\nshape 4 5 6 tile\n");
    write_lines(text, 1);
    gmem_context *context = open_context(NULL, folder);
    CHECK_INT(context->device->tuning.shape_count, 1);
    CHECK_CONTAINS(log_text, "ignored");
    gmem_context_destroy(context);
    used = 0;
    for (int i = 0; i < 40; i++) /* more than there is room for */
        used += (size_t)snprintf(text + used, sizeof text - used, "shape %d 2 3 tile\n", i + 1);
    write_lines(text, 1);
    context = open_context(NULL, folder);
    CHECK_INT(context->device->tuning.shape_count,
              (int)(sizeof context->device->tuning.shapes / sizeof *context->device->tuning.shapes));
    gmem_context_destroy(context);
    write_lines("gmem of another day\nshape 1 2 3 tile\n", 0);
    context = open_context(NULL, folder);
    CHECK(!context->device->tuning.tuned);
    CHECK_CONTAINS(log_text, "for another device");
    gmem_context_destroy(context);
}

/* the search ------------------------------------------------------------------------------------------------------ */

typedef struct searcher {
    double now, step; /* a clock that goes on by `step` whenever it is asked */
    int told, stop_at;
} searcher;

static double searcher_clock(void *user) {
    searcher *s = (searcher *)user;
    return s->now += s->step;
}

static int searcher_progress(void *user, double seconds, const char *what) {
    searcher *s = (searcher *)user;
    CHECK(seconds >= 0 && what && what[0]);
    return ++s->told == s->stop_at;
}

static gmem_tune_desc search_desc(searcher *s) {
    gmem_tune_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.clock = searcher_clock;
    desc.progress = searcher_progress;
    desc.user = s;
    return desc;
}

static void test_refusals(void) {
    searcher s = {0, 1, 0, 0};
    gmem_tune_desc desc = search_desc(&s);
    gmem_tune_report report;
    gmem_context *cpu = open_cpu_context(), *context = open_context(NULL, folder);
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_device_tune(cpu, &desc, &report, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_device_tune(NULL, &desc, &report, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_device_tune(context, NULL, &report, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_device_tune(context, &desc, NULL, NULL));
    desc.seconds = -1;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_device_tune(context, &desc, &report, NULL));
    desc = search_desc(&s);
    desc.clock = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_device_tune(context, &desc, &report, NULL));
    gmem_context_destroy(context);
    gmem_context_destroy(cpu);
}

/* A clock that runs away: the own kernels are measured, nothing else is begun, and that is kept. */
static void test_no_time(void) {
    searcher s = {5, 1000, 0, 0};
    failing_cl cl;
    memset(&cl, 0, sizeof cl);
    gmem_tune_desc desc = search_desc(&s);
    gmem_tune_report report;
    gmem_context *context = open_context(&cl, folder);
    desc.cache_dir = folder;
    CHECK_OK(gmem_device_tune(context, &desc, &report, NULL));
    CHECK_INT(report.tried, 0);
    CHECK_INT(report.shape_count, GMEM_TUNE_SHAPES);
    CHECK_INT(cl.calls[FAILING_CLBlastSgemm], 0);
    for (int i = 0; i < report.shape_count; i++) {
        const gmem_tune_shape *shape = &report.shapes[i];
        CHECK(shape->own > 0 && shape->clblast == 0 && shape->clblast_tuned == 0);
        CHECK(shape->layer && shape->rows > 0 && shape->depth > 0 && shape->columns > 0);
        CHECK_TEXT(shape->choice, context->device->found.limits.is_cpu ? "tile" : "own");
    }
    gmem_context_destroy(context);
    context = open_context(&cl, folder);
    CHECK_INT(context->device->tuning.shape_count, GMEM_TUNE_SHAPES);
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

/* A compiler that takes its time, by the clock of the search, and then fails: it is known after the first program. */
static searcher slow_compiler;
static double slow_seconds;

static int32_t GMEM__CL_CALL build_slowly(gmem__cl_program program, uint32_t count, const gmem__cl_device_id *devices,
                                          const char *options, void(GMEM__CL_CALL *notify)(gmem__cl_program, void *),
                                          void *user) {
    (void)program, (void)count, (void)devices, (void)options, (void)notify, (void)user;
    slow_compiler.now += slow_seconds;
    return FAILING_CL_BUILD_PROGRAM_FAILURE;
}

/* The time that is given is kept, and what fits into it is tried. */
static void test_in_time(double compile, double limit, int tried) {
    failing_cl cl;
    memset(&cl, 0, sizeof cl);
    memset(&slow_compiler, 0, sizeof slow_compiler);
    slow_compiler.step = 1e-6;
    slow_seconds = compile;
    gmem_tune_desc desc = search_desc(&slow_compiler);
    gmem_tune_report report;
    cl.without = "clblast";
    gmem_context *context = open_context(&cl, NULL);
    context->device->library.api.clBuildProgram = build_slowly;
    desc.seconds = limit;
    CHECK_OK(gmem_device_tune(context, &desc, &report, NULL));
    CHECK(report.seconds <= limit);
    CHECK_INT(report.tried, tried);
    CHECK_INT(report.failed, tried);
    for (int i = 0; i < report.shape_count; i++)
        CHECK(report.shapes[i].own > 0 && report.shapes[i].choice);
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

/* Ended by the caller, and by a device that fails in the middle: nothing is kept, everything is given back. */
static void test_ended(void) {
    searcher s = {0, 1e-6, 0, 3};
    failing_cl cl;
    memset(&cl, 0, sizeof cl);
    gmem_tune_desc desc = search_desc(&s);
    gmem_tune_report report;
    gmem_error error;
    gmem_context *context = open_context(&cl, folder);
    memset(&report, 0x55, sizeof report);
    CHECK_STATUS(GMEM_E_CANCELLED, gmem_device_tune(context, &desc, &report, &error));
    CHECK_INT(report.shape_count, 0x55555555); /* untouched */
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

/* A device that computes nonsense from some point on: no time of it is believed. */
static int32_t GMEM__CL_CALL spoil_read(gmem__cl_queue queue, gmem__cl_mem memory, uint32_t blocking, size_t offset,
                                        size_t bytes, void *to, uint32_t waits, const gmem__cl_event *wait,
                                        gmem__cl_event *event) {
    const int32_t status = failing_clEnqueueReadBuffer(queue, memory, blocking, offset, bytes, to, waits, wait, event);
    if (bytes >= 4 * 192 * 192) memset((char *)to + bytes / 2, 0, bytes / 4); /* of a product: a quarter is missing */
    return status;
}

static void test_wrong_results(void) {
    searcher s = {0, 1e-6, 0, 0};
    failing_cl cl;
    memset(&cl, 0, sizeof cl);
    gmem_tune_desc desc = search_desc(&s);
    gmem_tune_report report;
    gmem_context *context = open_context(&cl, folder);
    s.step = 1000; /* the own kernels only */
    context->device->library.api.clEnqueueReadBuffer = spoil_read;
    CHECK_OK(gmem_device_tune(context, &desc, &report, NULL));
    for (int i = 0; i < report.shape_count; i++)
        CHECK(report.shapes[i].own == 0 && !report.shapes[i].choice);
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

static void remove_folder(void) {
    char path[600];
    DIR *all = opendir(folder);
    for (struct dirent *entry = all ? readdir(all) : NULL; entry; entry = readdir(all)) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        unlink(path);
    }
    if (all) closedir(all);
    CHECK(rmdir(folder) == 0);
}

int main(void) {
    unsetenv("OCL_ICD_VENDORS"); /* tests/run.sh hides the devices */
    snprintf(folder, sizeof folder, "build/test_opencl_tune.%ld", (long)getpid());
    if (mkdir(folder, 0700) != 0) return 1;
    test_seeds();
    test_constraints();
    test_tiles();
    test_kept();
    test_disbelief();
    test_mixed();
    test_refusals();
    test_no_time();
    test_in_time(20, 31, 1); /* the first compiled, seen to take too long for another */
    test_in_time(1, 10, 0);  /* it might take longer, for all that is known */
    test_ended();
    test_wrong_results();
    remove_folder();
    return check_report();
}
