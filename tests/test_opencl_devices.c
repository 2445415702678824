/* Finding OpenCL: the functions, with any of them missing; codes by name; devices as drivers describe them, well and
 * badly; the choice among them. PoCL is the device at hand: without it the tests fail. */
#include "../backends/opencl/opencl.h"
#include "failing_opencl.h"

/* the functions --------------------------------------------------------------------------------------------------- */

static const char *const opencl_names[] = {
#define NAME(result, name, parameters) #name,
    GMEM__CL_FUNCTIONS(NAME)};
static const char *const clblast_names[] = {GMEM__CLBLAST_FUNCTIONS(NAME)};
#undef NAME

#define COUNT(array) (sizeof(array) / sizeof *(array))

static int has_opencl(const gmem__cl_api *api) {
    int has = 1;
#define HAS(result, name, parameters) has = has && api->name != NULL;
    GMEM__CL_FUNCTIONS(HAS)
    return has;
}

static int has_clblast(const gmem__cl_api *api) {
    int has = 1;
    GMEM__CLBLAST_FUNCTIONS(HAS)
    return has;
}

static int has_any_clblast(const gmem__cl_api *api) {
    int has = 0;
#undef HAS
#define HAS(result, name, parameters) has = has || api->name != NULL;
    GMEM__CLBLAST_FUNCTIONS(HAS)
#undef HAS
    return has;
}

static void test_system_libraries(void) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    for (int i = 0; i < 200; i++) {
        gmem__cl_library library;
        gmem_error error;
        int count = 0;
        if (!CHECK_OK(gmem__cl_load(NULL, &library, &error))) {
            printf("%s\n", error.message);
            return;
        }
        CHECK(has_opencl(&library.api) && library.has_clblast && has_clblast(&library.api));
        CHECK(library.opened[0] && library.opened[1]);
        if (i % 20 == 0) CHECK_OK(gmem__cl_list(&library.api, found, &count, &error));
        gmem__cl_unload(&library);
        CHECK(!library.opened[0] && !library.opened[1] && !library.has_clblast && !has_any_clblast(&library.api));
        gmem__cl_unload(&library); /* of nothing */
    }
}

static void test_hook(void) {
    failing_cl state;
    gmem__cl_library library;
    memset(&state, 0, sizeof state);
    const gmem_opencl hook = failing_cl_hook(&state);
    CHECK_OK(gmem__cl_load(&hook, &library, NULL));
    CHECK(has_opencl(&library.api) && library.has_clblast && has_clblast(&library.api));
    CHECK(!library.opened[0] && !library.opened[1]);
    gmem__cl_unload(&library);
    CHECK_INT(state.calls[FAILING_CLBlastClearCache], 1);
}

static void test_missing_functions(void) {
    failing_cl state;
    gmem__cl_library library;
    gmem_error error;
    memset(&state, 0, sizeof state);
    const gmem_opencl hook = failing_cl_hook(&state);
    for (size_t i = 0; i < COUNT(opencl_names); i++) {
        state.without = opencl_names[i];
        memset(&library, 7, sizeof library);
        const gmem__cl_library before = library;
        CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_load(&hook, &library, &error));
        CHECK_CONTAINS(error.message, opencl_names[i]);
        CHECK(memcmp(&before, &library, sizeof library) == 0);
    }
    for (size_t i = 0; i <= COUNT(clblast_names); i++) {
        state.without = i < COUNT(clblast_names) ? clblast_names[i] : "clblast";
        CHECK_OK(gmem__cl_load(&hook, &library, &error));
        CHECK(has_opencl(&library.api) && !library.has_clblast && !has_any_clblast(&library.api));
        gmem__cl_unload(&library);
    }
    CHECK_INT(state.calls[FAILING_CL_ANY], 0);
}

static void test_codes(void) {
    gmem__quoted buffer;
    gmem_error error;
    CHECK_TEXT(gmem__cl_code_name(&buffer, 0), "CL_SUCCESS");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -5), "CL_OUT_OF_RESOURCES");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -68), "CL_INVALID_DEVICE_PARTITION_COUNT");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -1001), "CL_PLATFORM_NOT_FOUND_KHR");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -1011), "CLBlastInsufficientMemoryA");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -2039), "CLBlastUnexpectedError");
    CHECK_TEXT(gmem__cl_code_name(&buffer, -9999), "-9999");
    CHECK_TEXT(gmem__cl_code_name(&buffer, 7), "7");
    CHECK_STATUS(GMEM_E_DEVICE, gmem__cl_fail(&error, "clBuildProgram", -11));
    CHECK_INT(error.code, GMEM_E_DEVICE);
    CHECK_TEXT(error.message, "clBuildProgram: CL_BUILD_PROGRAM_FAILURE (-11)");
    CHECK_STATUS(GMEM_E_DEVICE, gmem__cl_fail(&error, "clFinish", -9999));
    CHECK_TEXT(error.message, "clFinish: code -9999");
    CHECK_STATUS(GMEM_E_MEMORY, gmem__cl_fail(&error, "clCreateBuffer", -4));
    CHECK_STATUS(GMEM_E_MEMORY, gmem__cl_fail(&error, "clCreateBuffer", -6));
    CHECK_STATUS(GMEM_E_DEVICE, gmem__cl_fail(NULL, "clCreateBuffer", -5));
}

/* real devices ---------------------------------------------------------------------------------------------------- */

static void test_real_devices(void) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    gmem__cl_library library;
    gmem_error error;
    int count = 0, usable = 0;
    CHECK_OK(gmem__cl_load(NULL, &library, &error));
    CHECK_OK(gmem__cl_list(&library.api, found, &count, &error));
    CHECK(count >= 1 && count <= GMEM__CL_MAX_DEVICES);
    for (int i = 0; i < count; i++) {
        const gmem__cl_limits *limits = &found[i].limits;
        if (limits->unusable) continue;
        usable++;
        CHECK(found[i].platform && found[i].id);
        CHECK(limits->name[0] && limits->driver[0] && limits->platform[0]);
        CHECK_CONTAINS(limits->version, "OpenCL ");
        CHECK(limits->memory >= limits->largest && limits->largest > 0);
        CHECK(limits->work_group >= 1 && limits->work_items[0] >= 1 && limits->work_items[2] >= 1);
        CHECK(limits->units >= 1 && limits->local_memory > 0);
        CHECK_INT(limits->is_cpu, (limits->type & GMEM__CL_DEVICE_TYPE_CPU) != 0);
    }
    CHECK(usable >= 1);
    gmem__cl_unload(&library);
}

/* Each call fails: the device is passed over, or described without what could not be asked. */
static void test_failing_questions(void) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    for (int64_t call = 1;; call++) {
        failing_cl state;
        gmem__cl_library library;
        gmem_error error;
        int count = -1;
        memset(&state, 0, sizeof state);
        state.fail = FAILING_CL_ANY;
        state.at = call;
        state.code = FAILING_CL_OUT_OF_RESOURCES;
        const gmem_opencl hook = failing_cl_hook(&state);
        CHECK_OK(gmem__cl_load(&hook, &library, &error));
        const gmem_status status = gmem__cl_list(&library.api, found, &count, &error);
        if (status != GMEM_OK) CHECK(count == -1 && (status == GMEM_E_NO_DEVICE || status == GMEM_E_DEVICE));
        gmem__cl_unload(&library);
        if (!state.failed || call > 200) {
            CHECK(call > 10 && call <= 200);
            CHECK_OK(status);
            return;
        }
    }
}

/* devices that are not there -------------------------------------------------------------------------------------- */

/* What the made-up devices below say; a negative size: the question fails. */
static struct {
    int platforms, devices; /* of each platform */
    int32_t status;         /* of clGetPlatformIDs */
    const char *name, *version, *extensions;
    uint32_t available, compiler, little;
    uint64_t memory, largest;
    size_t work_group;
    uint32_t silent; /* a question that fails */
    int no_end;      /* texts come without their zero */
} fake;

static int32_t GMEM__CL_CALL fake_platforms(uint32_t capacity, gmem__cl_platform *out, uint32_t *count) {
    *count = (uint32_t)fake.platforms;
    for (uint32_t i = 0; i < capacity && i < *count; i++)
        out[i] = (gmem__cl_platform)(void *)&fake;
    return fake.status;
}

static int32_t GMEM__CL_CALL fake_devices(gmem__cl_platform platform, gmem__cl_bits type, uint32_t capacity,
                                          gmem__cl_device_id *out, uint32_t *count) {
    (void)platform;
    (void)type;
    if (fake.devices == 0) return GMEM__CL_DEVICE_NOT_FOUND;
    *count = (uint32_t)fake.devices;
    for (uint32_t i = 0; i < capacity && i < *count; i++)
        out[i] = (gmem__cl_device_id)(void *)&fake;
    return GMEM__CL_SUCCESS;
}

static int32_t fake_answer(const void *from, size_t length, size_t bytes, void *out, size_t *size) {
    if (size) *size = length;
    if (out && bytes < length) return -30;
    if (out) memcpy(out, from, length);
    return GMEM__CL_SUCCESS;
}

static int32_t fake_text(const char *text, size_t bytes, void *out, size_t *size) {
    return fake_answer(text, strlen(text) + !fake.no_end, bytes, out, size);
}

static int32_t GMEM__CL_CALL fake_platform_info(gmem__cl_platform platform, uint32_t what, size_t bytes, void *out,
                                                size_t *size) {
    (void)platform;
    return what == fake.silent ? -30 : fake_text("A platform", bytes, out, size);
}

static int32_t GMEM__CL_CALL fake_device_info(gmem__cl_device_id device, uint32_t what, size_t bytes, void *out,
                                              size_t *size) {
    const uint64_t type = GMEM__CL_DEVICE_TYPE_GPU, local = 32768;
    const uint32_t units = 4, unified = 0;
    const size_t items[3] = {fake.work_group, fake.work_group, 64};
    (void)device;
    if (what == fake.silent) return -30;
    switch (what) {
    case GMEM__CL_DEVICE_TYPE:
        return fake_answer(&type, sizeof type, bytes, out, size);
    case GMEM__CL_DEVICE_MAX_COMPUTE_UNITS:
        return fake_answer(&units, sizeof units, bytes, out, size);
    case GMEM__CL_DEVICE_MAX_WORK_GROUP_SIZE:
        return fake_answer(&fake.work_group, sizeof fake.work_group, bytes, out, size);
    case GMEM__CL_DEVICE_MAX_WORK_ITEM_SIZES:
        return fake_answer(items, sizeof items, bytes, out, size);
    case GMEM__CL_DEVICE_MAX_MEM_ALLOC_SIZE:
        return fake_answer(&fake.largest, sizeof fake.largest, bytes, out, size);
    case GMEM__CL_DEVICE_GLOBAL_MEM_SIZE:
        return fake_answer(&fake.memory, sizeof fake.memory, bytes, out, size);
    case GMEM__CL_DEVICE_LOCAL_MEM_SIZE:
        return fake_answer(&local, sizeof local, bytes, out, size);
    case GMEM__CL_DEVICE_ENDIAN_LITTLE:
        return fake_answer(&fake.little, sizeof fake.little, bytes, out, size);
    case GMEM__CL_DEVICE_AVAILABLE:
        return fake_answer(&fake.available, sizeof fake.available, bytes, out, size);
    case GMEM__CL_DEVICE_COMPILER_AVAILABLE:
        return fake_answer(&fake.compiler, sizeof fake.compiler, bytes, out, size);
    case GMEM__CL_DEVICE_HOST_UNIFIED_MEMORY:
        return fake_answer(&unified, sizeof unified, bytes, out, size);
    case GMEM__CL_DEVICE_NAME:
        return fake_text(fake.name, bytes, out, size);
    case GMEM__CL_DEVICE_VERSION:
        return fake_text(fake.version, bytes, out, size);
    case GMEM__CL_DEVICE_EXTENSIONS:
        return fake_text(fake.extensions, bytes, out, size);
    default:
        return fake_text("text", bytes, out, size);
    }
}

static gmem__cl_api fake_api(void) {
    gmem__cl_api api;
    memset(&api, 0, sizeof api);
    api.clGetPlatformIDs = fake_platforms;
    api.clGetPlatformInfo = fake_platform_info;
    api.clGetDeviceIDs = fake_devices;
    api.clGetDeviceInfo = fake_device_info;
    return api;
}

static void fake_reset(void) {
    memset(&fake, 0, sizeof fake);
    fake.platforms = fake.devices = 1;
    fake.name = "A GPU";
    fake.version = "OpenCL 1.2 text";
    fake.extensions = "cl_khr_icd";
    fake.available = fake.compiler = fake.little = 1;
    fake.memory = (uint64_t)1 << 32;
    fake.largest = (uint64_t)1 << 30;
    fake.work_group = 256;
}

/* The first made-up device. */
static gmem__cl_limits fake_limits(void) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    const gmem__cl_api api = fake_api();
    gmem_error error;
    int count = 0;
    CHECK_OK(gmem__cl_list(&api, found, &count, &error));
    CHECK_INT(count, 1);
    return found[0].limits;
}

static void test_descriptions(void) {
    static char longer[9000];
    gmem__cl_limits limits;
    fake_reset();
    limits = fake_limits();
    CHECK(!limits.unusable && !limits.fp16 && !limits.unified && !limits.is_cpu);
    CHECK_TEXT(limits.name, "A GPU");
    CHECK_TEXT(limits.platform, "A platform");
    CHECK(limits.memory == (int64_t)1 << 32 && limits.largest == 1 << 30 && limits.local_memory == 32768);
    CHECK(limits.work_group == 256 && limits.work_items[1] == 256 && limits.work_items[2] == 64 && limits.units == 4);

    fake.largest = UINT64_MAX; /* no more than all, and no negative number */
    CHECK_INT(fake_limits().largest, (int64_t)1 << 32);
    fake.memory = UINT64_MAX;
    CHECK(fake_limits().memory == INT64_MAX && fake_limits().largest == INT64_MAX);

    fake.extensions = "cl_khr_fp16_not cl_khr_fp64";
    CHECK(!fake_limits().fp16);
    fake.extensions = "cl_khr_fp64 cl_khr_fp16";
    CHECK(fake_limits().fp16);
    fake.extensions = "cl_khr_fp16 cl_khr_fp64";
    CHECK(fake_limits().fp16);
    memset(longer, 'x', sizeof longer - 1);
    fake.extensions = longer;
    CHECK(!fake_limits().fp16);

    fake_reset();
    fake.name = "  A \"new\"\n\x1b[31m \xc2\xae GPU  ";
    limits = fake_limits();
    CHECK_TEXT(limits.name, "A \"new\"\\x0a\\x1b[31m \\xc2\\xae GPU");
    longer[8000] = 0;
    fake.name = longer;
    CHECK_INT(strlen(fake_limits().name), sizeof limits.name - 1);
    fake_reset();
    fake.no_end = 1;
    limits = fake_limits();
    CHECK_TEXT(limits.name, "A GPU");
    CHECK(!limits.unusable);
}

static void test_unusable(void) {
    static const char *const old[] = {"OpenCL 1.1 text", "OpenCL 0.9", "OpenCL", "", "1.2",
                                      "OpenCL x.y",      "OpenCL -3.0"};
    static const char *const fit[] = {"OpenCL 1.2", "OpenCL 1.10 a", "OpenCL 2.0 b", "OpenCL 3.0", "OpenCL 10.0"};
    fake_reset();
    for (size_t i = 0; i < COUNT(old); i++) {
        fake.version = old[i];
        CHECK(fake_limits().unusable && strstr(fake_limits().unusable, "older"));
    }
    for (size_t i = 0; i < COUNT(fit); i++) {
        fake.version = fit[i];
        CHECK(!fake_limits().unusable);
    }
    fake.available = 0;
    CHECK_TEXT(fake_limits().unusable, "it is not available");
    fake_reset();
    fake.compiler = 0;
    CHECK_TEXT(fake_limits().unusable, "its driver has no compiler");
    fake_reset();
    fake.little = 0;
    CHECK_TEXT(fake_limits().unusable, "it is big-endian");
    fake_reset();
    fake.memory = 0;
    CHECK_TEXT(fake_limits().unusable, "it has no memory");
    fake_reset();
    fake.work_group = 0;
    CHECK_TEXT(fake_limits().unusable, "it runs no work-items");
}

static void test_lists(void) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    const gmem__cl_api api = fake_api();
    gmem_error error;
    int count = -1;
    fake_reset();
    fake.platforms = 3, fake.devices = 2;
    CHECK_OK(gmem__cl_list(&api, found, &count, &error));
    CHECK_INT(count, 6);
    fake.platforms = 100, fake.devices = 100;
    CHECK_OK(gmem__cl_list(&api, found, &count, &error));
    CHECK_INT(count, GMEM__CL_MAX_DEVICES);
    count = -1;
    fake.devices = 0;
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_list(&api, found, &count, &error));
    fake.platforms = 0;
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_list(&api, found, &count, &error));
    fake.status = GMEM__CL_PLATFORM_NOT_FOUND_KHR;
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_list(&api, found, &count, &error));
    fake.status = -6;
    CHECK_STATUS(GMEM_E_MEMORY, gmem__cl_list(&api, found, &count, &error));
    fake.status = -30;
    CHECK_STATUS(GMEM_E_DEVICE, gmem__cl_list(&api, found, &count, &error));
    CHECK_TEXT(error.message, "clGetPlatformIDs: CL_INVALID_VALUE (-30)");
    CHECK_INT(count, -1);
    fake_reset();
    fake.silent = GMEM__CL_DEVICE_GLOBAL_MEM_SIZE;
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_list(&api, found, &count, &error));
}

/* the choice ------------------------------------------------------------------------------------------------------ */

static gmem__cl_found made[5];

static void make_devices(void) {
    static const struct {
        const char *name;
        gmem__cl_bits type;
        const char *unusable;
    } devices[] = {{"pthread-A Processor", GMEM__CL_DEVICE_TYPE_CPU, NULL},
                   {"Old Radeon", GMEM__CL_DEVICE_TYPE_GPU, "its OpenCL is older than 1.2"},
                   {"GeForce RTX 3090", GMEM__CL_DEVICE_TYPE_GPU, NULL},
                   {"Radeon RX 7900", GMEM__CL_DEVICE_TYPE_GPU, NULL},
                   {"An Accelerator", GMEM__CL_DEVICE_TYPE_ACCELERATOR, NULL}};
    memset(made, 0, sizeof made);
    for (size_t i = 0; i < COUNT(devices); i++) {
        snprintf(made[i].limits.name, sizeof made[i].limits.name, "%s", devices[i].name);
        made[i].limits.type = devices[i].type;
        made[i].limits.unusable = devices[i].unusable;
    }
}

static void check_pick(int count, const char *device, int gpu_only, int expected) {
    int pick = -1;
    gmem_error error;
    const gmem_status status = gmem__cl_pick(made, count, device, gpu_only, &pick, &error);
    if (!CHECK_INT(pick, expected)) printf("  for %s, gpu_only %d\n", device ? device : "(none)", gpu_only);
    CHECK_STATUS(expected < 0 ? GMEM_E_NO_DEVICE : GMEM_OK, status);
}

static void test_choice(void) {
    gmem_error error;
    int pick = -1;
    make_devices();
    check_pick(5, NULL, 0, 2);
    check_pick(5, NULL, 1, 2);
    check_pick(2, NULL, 0, 0); /* the only GPU cannot be used */
    check_pick(2, NULL, 1, -1);
    check_pick(1, NULL, 0, 0);
    check_pick(1, NULL, 1, -1);
    check_pick(0, NULL, 0, -1);
    check_pick(5, "0", 0, 0);
    check_pick(5, "0", 1, -1);
    check_pick(5, "1", 0, -1); /* unusable */
    check_pick(5, "3", 1, 3);
    check_pick(5, "00003", 0, 3);
    check_pick(5, "5", 0, -1);
    check_pick(5, "3090", 0, 2); /* no such number, but such a name */
    check_pick(5, "99999999999999999999", 0, -1);
    check_pick(5, "-1", 0, -1);
    check_pick(5, "radeon", 0, 3); /* the first can't be used */
    check_pick(5, "OLD RADEON", 0, -1);
    check_pick(5, "r", 0, 0);
    check_pick(5, "r", 1, 2);
    check_pick(5, "accel", 0, 4);
    check_pick(5, "accel", 1, -1);
    check_pick(5, "processor  ", 0, -1);
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_pick(made, 5, "no\nsuch", 0, &pick, &error));
    CHECK_CONTAINS(error.message, "no OpenCL device \"no\\x0asuch\"; there are 0: \"pthread-A Processor\", 1: ");
    CHECK_CONTAINS(error.message, "1: \"Old Radeon\" (its OpenCL is older than 1.2), 2: \"GeForce RTX 3090\"");
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_pick(made, 5, "1", 0, &pick, &error));
    CHECK_TEXT(error.message, "OpenCL device 1, \"Old Radeon\", cannot be used: its OpenCL is older than 1.2");
    for (int i = 0; i < 5; i++)
        memset(made[i].limits.name, 'x', sizeof made[i].limits.name - 1);
    CHECK_STATUS(GMEM_E_NO_DEVICE, gmem__cl_pick(made, 5, "y", 0, &pick, &error)); /* more than a message holds */
    CHECK_INT(pick, -1);
}

int main(void) {
    test_system_libraries();
    test_hook();
    test_missing_functions();
    test_codes();
    test_real_devices();
    test_failing_questions();
    test_descriptions();
    test_unusable();
    test_lists();
    test_choice();
    return check_report();
}
