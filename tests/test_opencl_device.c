/* Opening a device: the cache folder and its files, programs from source and from there, the choice of the device and
 * its reasons, the self-test that catches wrong results. PoCL is the device at hand: without it the tests fail. */
#include "../backends/opencl/opencl.h"
#include "failing_io.h"
#include "failing_opencl.h"

#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

/* A folder of the test's own -------------------------------------------------------------------------------------- */

static char folder[200];

static const char *path_of(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void make_folder(void) {
    snprintf(folder, sizeof folder, "build/test_opencl_device.%ld", (long)getpid());
    if (mkdir(folder, 0700) == 0) return;
    printf("cannot make %s\n", folder);
    exit(1);
}

/* The bytes of a whole file; 0 where there is none. */
static size_t slurp(const char *name, char *out, size_t capacity) {
    FILE *file = fopen(path_of(name), "rb");
    if (!file) return 0;
    const size_t bytes = fread(out, 1, capacity, file);
    fclose(file);
    return bytes;
}

static void spill(const char *name, const char *data, size_t bytes) {
    FILE *file = fopen(path_of(name), "wb");
    if (!CHECK(file != NULL)) return;
    CHECK(fwrite(data, 1, bytes, file) == bytes);
    fclose(file);
}

/* OpenCL with somebody in between ---------------------------------------------------------------------------------- */

/* Zero is harmless. */
typedef struct meddler {
    failing_cl cl;
    const char *line;  /* what the source of an opening's first program gets as its first line */
    int read;          /* the self-test's results: of this case, from 1, one is wrong; -1: of all */
    float wrong;       /* by what it is multiplied */
    int binaries_only; /* only where the program is from a binary */
    int from_binary, reads;
} meddler;

static meddler *meddling;

static gmem__cl_program GMEM__CL_CALL meddle_source(gmem__cl_context context, uint32_t count, const char **lines,
                                                    const size_t *lengths, int32_t *status) {
    const char *changed[4096];
    meddling->from_binary = 0;
    if (!meddling->line || count >= 4096 || meddling->cl.calls[FAILING_clCreateProgramWithSource] > 0)
        return failing_clCreateProgramWithSource(context, count, lines, lengths, status);
    changed[0] = meddling->line;
    memcpy(changed + 1, lines, count * sizeof *lines);
    return failing_clCreateProgramWithSource(context, count + 1, changed, NULL, status);
}

static gmem__cl_program GMEM__CL_CALL meddle_binary(gmem__cl_context context, uint32_t count,
                                                    const gmem__cl_device_id *devices, const size_t *bytes,
                                                    const unsigned char **binaries, int32_t *each, int32_t *status) {
    meddling->from_binary = 1;
    return failing_clCreateProgramWithBinary(context, count, devices, bytes, binaries, each, status);
}

/* The self-test's results are the only reads of so many bytes. */
static int32_t GMEM__CL_CALL meddle_read(gmem__cl_queue queue, gmem__cl_mem memory, uint32_t blocking, size_t offset,
                                         size_t bytes, void *to, uint32_t waits, const gmem__cl_event *wait,
                                         gmem__cl_event *event) {
    const int32_t status = failing_clEnqueueReadBuffer(queue, memory, blocking, offset, bytes, to, waits, wait, event);
    if (bytes < 1024 || status != GMEM__CL_SUCCESS) return status;
    meddling->reads++;
    const int meant = meddling->read == -1 || meddling->read == meddling->reads;
    if (meant && (meddling->from_binary || !meddling->binaries_only)) ((float *)to)[1] += meddling->wrong;
    return status;
}

static void (*meddler_symbol(void *user, const char *name))(void) {
    meddling = (meddler *)user;
    if (strcmp(name, "clCreateProgramWithSource") == 0) return (failing_cl_any)meddle_source;
    if (strcmp(name, "clCreateProgramWithBinary") == 0) return (failing_cl_any)meddle_binary;
    if (strcmp(name, "clEnqueueReadBuffer") == 0) return (failing_cl_any)meddle_read;
    return failing_cl_symbol(&meddling->cl, name);
}

/* Contexts --------------------------------------------------------------------------------------------------------- */

static char log_text[8192]; /* since the last opening */

static void keep_log(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

static gmem_context_desc describe(meddler *m) {
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.threads = 2;
    desc.log = keep_log;
    if (m) {
        (void)failing_cl_hook(&m->cl);
        desc.opencl.user = m;
        desc.opencl.symbol = meddler_symbol;
    }
    return desc;
}

/* Opens and closes; on failure too everything must have been given back. */
static gmem_status try_open(meddler *m, const gmem_context_desc *desc, gmem_error *error) {
    gmem_context *context = NULL;
    log_text[0] = 0;
    m->reads = 0;
    memset(m->cl.calls, 0, sizeof m->cl.calls);
    memset(error, 0, sizeof *error);
    const gmem_status status = gmem_context_create(desc, &context, error);
    CHECK((status == GMEM_OK) == (context != NULL));
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&m->cl));
    CHECK(!strchr(error->message, '\n'));
    return status;
}

static gmem_context *cpu_context(void) {
    gmem_context *context = NULL;
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_context_create(&desc, &context, NULL));
    return context;
}

/* The cache's files ------------------------------------------------------------------------------------------------ */

static gmem_status read_back(const gmem_context *context, const char *name, const char *expected, size_t bytes) {
    gmem__bytes file;
    const gmem_status status = gmem__cl_cache_read(context, folder, name, &file, NULL);
    if (status != GMEM_OK) return status;
    CHECK_INT(file.size, bytes);
    CHECK(file.size == (int64_t)bytes && memcmp(file.data, expected, bytes) == 0);
    gmem__bytes_close(context, &file);
    return status;
}

static void test_cache_round_trip(void) {
    static char data[100000];
    const size_t sizes[] = {0, 1, 71, 72, 73, 4096, sizeof data};
    gmem_context *context = cpu_context();
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (char)(i * i >> 3);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) { /* each over the last */
        CHECK_OK(gmem__cl_cache_write(context, folder, "trip-1_x.bin", data, (int64_t)sizes[i], NULL));
        CHECK_OK(read_back(context, "trip-1_x.bin", data, sizes[i]));
    }
    CHECK_STATUS(GMEM_E_OPEN, read_back(context, "another.bin", data, 0));
    remove(path_of("trip-1_x.bin"));
    gmem_context_destroy(context);
}

/* Whatever happens to one byte, and wherever the file ends, it is refused. */
static void test_cache_damage(void) {
    static const char data[] = "the contents of a file";
    char whole[256], damaged[256];
    int accepted = 0;
    gmem_context *context = cpu_context();
    CHECK_OK(gmem__cl_cache_write(context, folder, "damaged", data, sizeof data, NULL));
    const size_t bytes = slurp("damaged", whole, sizeof whole);
    CHECK(bytes > sizeof data);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        memcpy(damaged, whole, bytes);
        damaged[bit / 8] = (char)(damaged[bit / 8] ^ (1 << bit % 8));
        spill("damaged", damaged, bytes);
        accepted += read_back(context, "damaged", data, sizeof data) != GMEM_E_FORMAT;
    }
    for (size_t end = 0; end < bytes; end++) {
        spill("damaged", whole, end);
        accepted += read_back(context, "damaged", data, sizeof data) != GMEM_E_FORMAT;
    }
    memcpy(damaged, whole, bytes);
    damaged[bytes] = '\n';
    spill("damaged", damaged, bytes + 1);
    accepted += read_back(context, "damaged", data, sizeof data) != GMEM_E_FORMAT;
    CHECK_INT(accepted, 0);
    spill("damaged", whole, bytes);
    CHECK_OK(read_back(context, "damaged", data, sizeof data));
    remove(path_of("damaged"));
    gmem_context_destroy(context);
}

static void test_cache_names(void) {
    static const char *const names[] = {"", ".", "..", ".hidden", "../up", "a/b", "a b", "a\nb", "\xc3\xa4"};
    gmem_context *context = cpu_context();
    gmem__bytes file;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem__cl_cache_read(context, folder, names[i], &file, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem__cl_cache_write(context, folder, names[i], "x", 1, NULL));
    }
    gmem_context_destroy(context);
}

static void check_folder_refused(const gmem_context *context, const char *where, const char *why) {
    gmem__bytes file;
    gmem_error error;
    CHECK_STATUS(GMEM_E_OPEN, gmem__cl_cache_read(context, where, "name", &file, &error));
    CHECK_CONTAINS(error.message, why);
    CHECK_STATUS(GMEM_E_OPEN, gmem__cl_cache_write(context, where, "name", "x", 1, &error));
    CHECK_CONTAINS(error.message, why);
}

static void test_cache_folders(void) {
    static const mode_t open_to_others[] = {0777, 0770, 0720, 0702, 01777};
    gmem_context *context = cpu_context();
    check_folder_refused(context, NULL, "no cache folder");
    check_folder_refused(context, "", "no cache folder");
    check_folder_refused(context, path_of("missing"), "no such file");
    spill("file", "x", 1);
    check_folder_refused(context, path_of("file"), "it is none");
    remove(path_of("file"));
    for (size_t i = 0; i < sizeof open_to_others / sizeof *open_to_others; i++) {
        CHECK(chmod(folder, open_to_others[i]) == 0);
        check_folder_refused(context, folder, "others may write");
    }
    CHECK(chmod(folder, 0755) == 0);
    CHECK_OK(gmem__cl_cache_write(context, folder, "name", "x", 1, NULL));
    remove(path_of("name"));
    if (geteuid() == 0) { /* who alone can give folders away, and is alone in writing to all */
        CHECK(chown(folder, 12345, (gid_t)-1) == 0);
        check_folder_refused(context, folder, "another user's");
        CHECK(chown(folder, 0, (gid_t)-1) == 0);
    } else {
        CHECK(chmod(folder, 0555) == 0);
        CHECK_STATUS(GMEM_E_OPEN, gmem__cl_cache_write(context, folder, "name", "x", 1, NULL));
    }
    CHECK(chmod(folder, 0700) == 0);
    gmem_context_destroy(context);
}

/* What was there stays readable when writing fails. */
static void test_cache_failing_files(void) {
    static const failing_op ops[] = {FAILING_OPEN, FAILING_WRITE, FAILING_SYNC, FAILING_CLOSE, FAILING_RENAME};
    failing_io io;
    failing memory;
    memset(&memory, 0, sizeof memory);
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), 0);
    CHECK_OK(gmem__cl_cache_write(context, folder, "kept", "old", 3, NULL));
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        io.op = ops[i];
        io.countdown = 0;
        io.for_good = 1;
        CHECK(gmem__cl_cache_write(context, folder, "kept", "new", 3, NULL) != GMEM_OK);
        io.countdown = -1;
        CHECK_OK(read_back(context, "kept", "old", 3));
        CHECK_INT(io.open, 0);
    }
    io.op = FAILING_READ;
    io.countdown = -1;
    remove(path_of("kept"));
    gmem_context_destroy(context);
}

/* Programs --------------------------------------------------------------------------------------------------------- */

/* What the last opening made of them. */
static void check_made(const meddler *m, int64_t sources, int64_t binaries) {
    CHECK_INT(m->cl.calls[FAILING_clCreateProgramWithSource], sources);
    CHECK_INT(m->cl.calls[FAILING_clCreateProgramWithBinary], binaries);
}

/* The one file that is in the folder: its name is in the log. */
static const char *program_name(void) {
    static char name[64];
    const char *at = strstr(log_text, "/program-");
    if (CHECK(at != NULL)) sscanf(at + 1, "%63[^\n]", name);
    return name;
}

static void test_without_cache(void) {
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(try_open(&m, &desc, &error));
        check_made(&m, 1, 0);
        CHECK_CONTAINS(log_text, "compiling the OpenCL kernels for ");
        CHECK_CONTAINS(log_text, "compiled\n");
        CHECK(!strstr(log_text, "cache"));
    }
    CHECK_INT(m.cl.calls[FAILING_clGetProgramInfo], 0);
}

static void check_recompiled(meddler *m, const gmem_context_desc *desc, const char *why) {
    gmem_error error;
    CHECK_OK(try_open(m, desc, &error));
    CHECK_INT(m->cl.calls[FAILING_clCreateProgramWithSource], 1);
    CHECK_CONTAINS(log_text, why);
    CHECK_CONTAINS(log_text, "keeping the OpenCL kernels");
    CHECK_OK(try_open(m, desc, &error)); /* and written anew */
    check_made(m, 0, 1);
    CHECK_CONTAINS(log_text, "from the cache");
    CHECK(!strstr(log_text, "compil"));
}

/* A file that is whole, but not of this program. */
static void test_foreign_program(meddler *m, const gmem_context_desc *desc, const char *name) {
    gmem_context *context = cpu_context();
    gmem__bytes file;
    CHECK_OK(gmem__cl_cache_read(context, folder, name, &file, NULL));
    char *changed = (char *)malloc((size_t)file.size);
    if (!changed) exit(1);
    memcpy(changed, file.data, (size_t)file.size);
    const char *driver = strstr(changed, ", driver ");
    if (CHECK(driver != NULL)) changed[driver - changed + 10] ^= 1;
    CHECK_OK(gmem__cl_cache_write(context, folder, name, changed, file.size, NULL));
    check_recompiled(m, desc, "is of another program");
    /* the key, and no binary */
    const int64_t key = (int64_t)strlen((const char *)file.data) + 1;
    CHECK_OK(gmem__cl_cache_write(context, folder, name, file.data, key, NULL));
    check_recompiled(m, desc, "is of another program");
    free(changed);
    gmem__bytes_close(context, &file);
    gmem_context_destroy(context);
}

static void test_damaged_program(meddler *m, const gmem_context_desc *desc, const char *name) {
    static char whole[1 << 24];
    const size_t bytes = slurp(name, whole, sizeof whole);
    CHECK(bytes > 1000 && bytes < sizeof whole);
    spill(name, whole, bytes / 2);
    check_recompiled(m, desc, "damaged");
    whole[bytes - 200] ^= 4;
    spill(name, whole, bytes);
    check_recompiled(m, desc, "damaged");
}

/* The driver refuses it, or what it makes of it computes nonsense. */
static void test_refused_program(meddler *m, const gmem_context_desc *desc) {
    static const failing_cl_function functions[] = {FAILING_clCreateProgramWithBinary, FAILING_clBuildProgram};
    gmem_error error;
    for (int i = 0; i < 2; i++) {
        m->cl.fail = functions[i];
        m->cl.at = 1;
        m->cl.code = FAILING_CL_BUILD_PROGRAM_FAILURE;
        CHECK_OK(try_open(m, desc, &error));
        check_made(m, 1, 1);
        CHECK_CONTAINS(log_text, "CL_BUILD_PROGRAM_FAILURE");
        m->cl.at = 0;
    }
    m->binaries_only = 1;
    m->read = -1;
    m->wrong = 0.5f;
    CHECK_OK(try_open(m, desc, &error));
    check_made(m, 1, 1);
    CHECK_CONTAINS(log_text, "are of no use");
    m->read = m->binaries_only = 0;
}

/* No reason to fail. */
static void test_unwritable_cache(meddler *m, const gmem_context_desc *desc) {
    gmem_error error;
    m->cl.fail = FAILING_clGetProgramInfo;
    for (m->cl.at = 1; m->cl.at <= 2; m->cl.at++) {
        m->cl.code = FAILING_CL_OUT_OF_RESOURCES;
        CHECK_OK(try_open(m, desc, &error));
        CHECK_CONTAINS(log_text, "are not kept: clGetProgramInfo: CL_OUT_OF_RESOURCES");
    }
    m->cl.at = 0;
    CHECK(chmod(folder, 0777) == 0);
    CHECK_OK(try_open(m, desc, &error));
    check_made(m, 1, 0);
    CHECK_CONTAINS(log_text, "others may write");
    CHECK(chmod(folder, 0700) == 0);
}

/* In f32, and not kept: PoCL takes long to give a binary. */
static void test_other_program(meddler *m, gmem_context_desc desc, const char *name) {
    gmem_error error;
    desc.compute = GMEM_COMPUTE_F32;
    m->cl.fail = FAILING_clGetProgramInfo;
    m->cl.at = 1;
    m->cl.code = FAILING_CL_OUT_OF_RESOURCES;
    CHECK_OK(try_open(m, &desc, &error));
    m->cl.at = 0;
    check_made(m, 1, 0);
    CHECK_CONTAINS(log_text, "products in opencl,");
    CHECK(strcmp(program_name(), name) != 0);
}

/* One with f16 arithmetic, which an f32 one of the same device neither takes nor replaces. */
static void test_with_cache(void) {
    meddler m;
    gmem_error error;
    char name[64];
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    desc.cache_dir = folder;
    desc.compute = GMEM_COMPUTE_F16;
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    m.cl.fp16 = FAILING_F16_STAND_IN;
    test_unwritable_cache(&m, &desc);
    CHECK_OK(try_open(&m, &desc, &error));
    check_made(&m, 1, 0);
    snprintf(name, sizeof name, "%s", program_name());
    test_other_program(&m, desc, name);
    CHECK_OK(try_open(&m, &desc, &error));
    check_made(&m, 0, 1);
    CHECK_TEXT(program_name(), name);
    CHECK_CONTAINS(log_text, "products in opencl-f16");
    test_damaged_program(&m, &desc, name);
    test_foreign_program(&m, &desc, name);
    test_refused_program(&m, &desc);
    remove(path_of(name));
}

/* Each allocation fails in turn: the opening fails, or does without the cache. */
static void test_failing_allocations(void) {
    meddler m;
    gmem_error error;
    failing memory;
    int failed = 0, went_on = 0, reached = 1;
    memset(&m, 0, sizeof m);
    memset(&memory, 0, sizeof memory);
    gmem_context_desc desc = describe(&m);
    desc.cache_dir = folder;
    desc.compute = GMEM_COMPUTE_F16; /* as before, for PoCL to find the binary that it has made */
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    m.cl.fp16 = FAILING_F16_STAND_IN;
    desc.allocator.user = &memory;
    desc.allocator.alloc = failing_alloc;
    desc.allocator.release = failing_release;
    for (int i = 0; reached; i++) {
        memory.countdown = i;
        const gmem_status status = try_open(&m, &desc, &error);
        reached = memory.countdown < 0;
        if (status != GMEM_OK) CHECK_STATUS(GMEM_E_MEMORY, status);
        failed += status != GMEM_OK;
        went_on += reached && status == GMEM_OK;
        CHECK_INT(memory.live, 0);
    }
    CHECK(failed > 8 && went_on > 2);
    remove(path_of(program_name()));
}

static void test_bad_source(void) {
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    m.line = "#error no such\tthing\n";
    CHECK_STATUS(GMEM_E_DEVICE, try_open(&m, &desc, &error));
    CHECK_CONTAINS(error.message, "clBuildProgram");
    CHECK_CONTAINS(error.message, "CL_BUILD_PROGRAM_FAILURE");
    CHECK_CONTAINS(error.message, "no such thing");
    desc.backend = GMEM_BACKEND_AUTO; /* the CPU does it */
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK_CONTAINS(log_text, "no such thing");
    CHECK_CONTAINS(log_text, "cpu/");
}

/* The self-test ---------------------------------------------------------------------------------------------------- */

static void test_wrong_results(void) {
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    CHECK_OK(try_open(&m, &desc, &error));
    const int cases = m.reads;
    CHECK(cases > 25);
    for (m.read = 1; m.read <= cases; m.read++) {
        m.wrong = m.read % 2 ? 0.25f : NAN;
        if (!CHECK_STATUS(GMEM_E_DEVICE_TEST, try_open(&m, &desc, &error))) printf("case %d\n", m.read);
        CHECK_INT(m.reads, m.read); /* the first that fails ends it */
        CHECK_CONTAINS(error.message, "differs");
    }
    m.read = 1;
    CHECK_STATUS(GMEM_E_DEVICE_TEST, try_open(&m, &desc, &error));
    CHECK_CONTAINS(error.message, "norm (layer)");
    m.wrong = 1e-6f; /* rounding */
    CHECK_OK(try_open(&m, &desc, &error));
    desc.backend = GMEM_BACKEND_AUTO;
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    m.wrong = 2;
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK_CONTAINS(log_text, "the CPU, for opencl/");
    CHECK_CONTAINS(log_text, "norm (layer) differs");
}

/* f16 arithmetic --------------------------------------------------------------------------------------------------- */

/* Devices whose f16 is none of IEEE's, as far as a line before the source makes the stand-in do the same: each fails
 * the case of the self-test that is about it, and computes in f32. */
static void test_f16_faults(void) {
    static const struct {
        const char *line, *fails;
    } faults[] = {
        {"#define convert_float2(x) select(x, (float2)(0.0f), isless(fabs(x), (float2)(6.1e-5f)))\n",
         "linear (in f16, subnormal) differs"},
        {"#define convert_float2(x) fmin(fmax(x, -65504.0f), 65504.0f)\n", "linear (in f16, large) differs"},
        {"#define convert_float2(x) (1.001f * (x))\n", "linear (in f16) differs"},
    };
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    desc.compute = GMEM_COMPUTE_F16;
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    m.cl.fp16 = FAILING_F16_STAND_IN;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        m.line = faults[i].line;
        CHECK_OK(try_open(&m, &desc, &error));
        CHECK_CONTAINS(log_text, "computed in f32, for f16 arithmetic fails");
        CHECK_CONTAINS(log_text, faults[i].fails);
        CHECK_CONTAINS(log_text, "products in opencl,");
    }
}

/* The choice ------------------------------------------------------------------------------------------------------- */

static void test_names(void) {
    static const char *const names[] = {"",         "0x0", "99", "99999999999999999999", "-1", "no such device",
                                        "Pthread-", "0"};
    static const gmem_status expected[] = {GMEM_OK,          GMEM_E_NO_DEVICE, GMEM_E_NO_DEVICE, GMEM_E_NO_DEVICE,
                                           GMEM_E_NO_DEVICE, GMEM_E_NO_DEVICE, GMEM_OK,          GMEM_OK};
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        desc.device = names[i];
        if (!CHECK_STATUS(expected[i], try_open(&m, &desc, &error))) printf("device \"%s\"\n", names[i]);
    }
}

/* AUTO takes GPUs alone, and of them what is faster than the CPU. */
static void test_auto(void) {
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    desc.backend = GMEM_BACKEND_AUTO;
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK_CONTAINS(log_text, "the CPU, for no OpenCL GPU");
    CHECK_INT(m.cl.calls[FAILING_clCreateContext], 0);
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK(strstr(log_text, "the CPU, for opencl/") ? strstr(log_text, " ms for a matrix product") != NULL
                                                   : strstr(log_text, "\nopencl/") != NULL);
    desc.compute = GMEM_COMPUTE_F16; /* which no CPU computes in: no matter how fast */
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK(strstr(log_text, "\nopencl/") != NULL);
    m.cl.type = 0;
    CHECK_STATUS(GMEM_E_UNSUPPORTED, try_open(&m, &desc, &error));
    desc.compute = GMEM_COMPUTE_F32;
    m.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    m.cl.without = "clFinish";
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK_CONTAINS(log_text, "has no function clFinish");
    desc.backend = GMEM_BACKEND_OPENCL;
    CHECK_STATUS(GMEM_E_NO_DEVICE, try_open(&m, &desc, &error));
    m.cl.without = "clblast"; /* which is not needed */
    CHECK_OK(try_open(&m, &desc, &error));
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(try_open(&m, &desc, &error));
    CHECK_INT(m.cl.calls[FAILING_CL_ANY], 0);
}

/* A device whose memory does not suffice for the self-test says so. */
static void test_allowed_memory(void) {
    meddler m;
    gmem_error error;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    desc.device_memory = 1 << 12;
    CHECK_STATUS(GMEM_E_MEMORY, try_open(&m, &desc, &error));
    desc.device_memory = 1 << 24;
    CHECK_OK(try_open(&m, &desc, &error));
    desc.device_memory = -1;
    CHECK_STATUS(GMEM_E_ARGUMENT, try_open(&m, &desc, &error));
}

/* The public list -------------------------------------------------------------------------------------------------- */

static void test_list(void) {
    meddler m;
    gmem_error error;
    gmem_device_info info[2];
    int count = -1;
    memset(&m, 0, sizeof m);
    const gmem_context_desc desc = describe(&m);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_devices(&desc.opencl, NULL, 1, &count, &error));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_devices(&desc.opencl, info, 2, NULL, &error));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_devices(&desc.opencl, info, -1, &count, &error));
    CHECK_INT(count, -1);
    CHECK_OK(gmem_devices(&desc.opencl, NULL, 0, &count, NULL));
    CHECK_INT(count, 1);
    CHECK_OK(gmem_devices(NULL, info, 2, &count, &error)); /* the system's own */
    CHECK_INT(count, 1);
    CHECK_OK(gmem_devices(&desc.opencl, info, 2, &count, &error));
    CHECK_CONTAINS(info->name, "pthread");
    CHECK_TEXT(info->kind, "cpu");
    CHECK_CONTAINS(info->version, "OpenCL ");
    CHECK_TEXT(info->platform, "Portable Computing Language");
    CHECK(!info->unusable && info->unified && info->units > 0);
    CHECK(info->memory > 0 && info->largest > 0 && info->largest <= info->memory);
    m.cl.type = GMEM__CL_DEVICE_TYPE_ACCELERATOR;
    CHECK_OK(gmem_devices(&desc.opencl, info, 1, &count, &error));
    CHECK_TEXT(info->kind, "accelerator");
    m.cl.fail = FAILING_clGetPlatformIDs;
    m.cl.at = m.cl.calls[FAILING_clGetPlatformIDs] + 1;
    m.cl.code = FAILING_CL_OUT_OF_HOST_MEMORY;
    CHECK_STATUS(GMEM_E_MEMORY, gmem_devices(&desc.opencl, info, 1, &count, &error));
    m.cl.at = 0;
    m.cl.without = "clGetDeviceInfo";
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem_devices(&desc.opencl, info, 1, &count, &error));
}

static void test_check(void) {
    meddler m;
    gmem_error error;
    double device = -1, cpu = -1;
    memset(&m, 0, sizeof m);
    gmem_context_desc desc = describe(&m);
    desc.backend = GMEM_BACKEND_CPU; /* of no interest */
    CHECK_OK(gmem_device_check(&desc, &device, &cpu, &error));
    CHECK(device > 0 && device < 60 && cpu > 0 && cpu < 60);
    desc.compute = GMEM_COMPUTE_F16;
    CHECK_OK(gmem_device_check(&desc, NULL, NULL, NULL));
    desc.device = "none such";
    device = -1;
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem_device_check(&desc, &device, &cpu, &error));
    CHECK(device < 0);
    CHECK(failing_cl_is_clean(&m.cl));
}

int main(void) {
    make_folder();
    test_cache_round_trip();
    test_cache_damage();
    test_cache_names();
    test_cache_folders();
    test_cache_failing_files();
    test_without_cache();
    test_with_cache();
    test_failing_allocations();
    test_bad_source();
    test_wrong_results();
    test_f16_faults();
    test_names();
    test_auto();
    test_allowed_memory();
    test_list();
    test_check();
    CHECK(rmdir(folder) == 0);
    return check_report();
}
