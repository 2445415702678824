/* Products in f16 arithmetic, from its choice to the pictures. No device of the tests has cl_khr_fp16: one is made to
 * say so, and its programs are compiled with the stand-in for the arithmetic; all else is as on a GPU that has it. */
#include "check.h"
#include "failing_opencl.h"
#include "golden.h"
#include "recorded.h"

#define BAR 5e-3 /* relative L2 error against recordings in f32 */

static failing_cl cl;
static char log_text[1 << 13];

static void note(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

/* A GPU with cl_khr_fp16, or not quite. */
static gmem_context *context_on(failing_cl_f16 fp16, gmem__cl_bits type, gmem_compute compute) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&cl, 0, sizeof cl);
    golden_choose_backend(&desc);
    cl.fp16 = fp16;
    cl.type = type;
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.compute = compute;
    desc.opencl = failing_cl_hook(&cl);
    desc.log = note;
    log_text[0] = 0;
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("%s\n", error.message);
        exit(check_report());
    }
    return context;
}

static void context_close(gmem_context *context) {
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
}

/* recorded cases --------------------------------------------------------------------------------------------------- */

static void test_recorded(void) {
    static const char *const passes[] = {"dit_base",
                                         "dit_patch2",
                                         "dit_qknorm",
                                         "dit_gelu",
                                         "dit_layernorm",
                                         "dit_noshift",
                                         "dit_layernorm_qknorm",
                                         "dit_norope",
                                         "dit_feat96",
                                         "dit_learnsigma",
                                         "dit_odd",
                                         "dit_wide",
                                         "gmem_sit"};
    static const char *const pictures[] = {"vae_f8.io.safetensors", "vae_f16.io.safetensors",
                                           "vae_noattn.io.safetensors", "vae_diffusers.io.safetensors"};
    gmem_context *context = context_on(FAILING_F16_STAND_IN, GMEM__CL_DEVICE_TYPE_GPU, GMEM_COMPUTE_F16);
    CHECK_TEXT(gmem_context_kernels(context), "opencl-f16");
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        const double off = pass_error(context, passes[i], NULL);
        printf("%s: relative L2 error %.2g\n", passes[i], off);
        CHECK(off > 1e-5 && off <= BAR);
    }
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures; i++) {
        const double off = decode_error(context, pictures[i]);
        printf("%s: relative L2 error %.2g\n", pictures[i], off);
        CHECK(off > 1e-5 && off <= BAR);
    }
    context_close(context);
}

/* The default model's picture, 50 steps with guidance from the recorded noise on. */
static void test_trajectory(void) {
    enum { CHANNELS = 8, SIDE = 8, PER_PICTURE = CHANNELS * SIDE * SIDE, IMAGE = 64 };
    gmem_context *context = context_on(FAILING_F16_STAND_IN, GMEM__CL_DEVICE_TYPE_GPU, GMEM_COMPUTE_F16);
    gmem_file *golden = golden_open(context, "emoji_golden.safetensors");
    gmem_network_desc network_desc;
    gmem_sample_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    float *x = golden_f32(golden, "z", NULL), *latent = golden_f32(golden, "cfg_latent", NULL);
    float *c = golden_f32(golden, "c", NULL);
    memset(&network_desc, 0, sizeof network_desc);
    memset(&desc, 0, sizeof desc);
    network_desc.path = "examples/model/network.safetensors";
    desc.sampler.method = GMEM_EULER;
    desc.sampler.steps = 50;
    desc.sampler.timestep_shift = 0.3;
    desc.sampler.cfg_scale = 3;
    desc.sampler.cfg_start = 0.4;
    desc.batch = 1;
    desc.snippets = c;
    gmem_status status = gmem_network_open(context, &network_desc, &network, &error);
    if (status == GMEM_OK) status = gmem_sample(network, &desc, x, &error);
    if (!CHECK_OK(status)) printf("  %s\n", error.message);
    const double off = check_relative_l2(x, latent, PER_PICTURE);
    printf("the default model's latent after 50 steps: relative L2 error %.2g\n", off);
    CHECK(off > 1e-5 && off <= BAR);
    gmem_network_close(network);
    gmem_file_close(golden);
    free(x);
    free(latent);
    free(c);
    context_close(context);
}

/* the choice ------------------------------------------------------------------------------------------------------- */

enum { WIDE_VALUES = 1 << 14 };

/* What a device of these words computes f16 in, and a recorded pass on it. */
static void choose(failing_cl_f16 fp16, gmem__cl_bits type, gmem_compute compute, const char *kernels, float *v) {
    gmem_context *context = context_on(fp16, type, compute);
    CHECK_TEXT(gmem_context_kernels(context), kernels);
    CHECK((strstr(log_text, "f16 arithmetic fails: clBuildProgram") != NULL) == (fp16 == FAILING_F16_FALSE));
    CHECK((strstr(log_text, "f32, for the device is a processor\n") != NULL) == (type == GMEM__CL_DEVICE_TYPE_CPU));
    CHECK((strstr(log_text, "f32, for the device has no cl_khr_fp16\n") != NULL) ==
          (fp16 == FAILING_F16_OWN && compute == GMEM_COMPUTE_F16));
    CHECK_INT(gmem_context_compute(context), compute);
    CHECK(pass_error(context, "dit_odd", v) <= BAR);
    context_close(context);
}

/* f16 arithmetic is used where it is asked for, on a GPU that has it and can compile for it; else f32. */
static void test_choice(void) {
    static float f32[WIDE_VALUES], own[WIDE_VALUES], stand_in[WIDE_VALUES], rounded[WIDE_VALUES], fails[WIDE_VALUES];
    const gmem__cl_bits gpu = GMEM__CL_DEVICE_TYPE_GPU, cpu = GMEM__CL_DEVICE_TYPE_CPU;
    choose(FAILING_F16_STAND_IN, gpu, GMEM_COMPUTE_F32, "opencl", f32);
    choose(FAILING_F16_OWN, gpu, GMEM_COMPUTE_F16, "opencl", own);
    choose(FAILING_F16_STAND_IN, gpu, GMEM_COMPUTE_F16, "opencl-f16", stand_in);
    choose(FAILING_F16_STAND_IN, cpu, GMEM_COMPUTE_F16, "opencl", rounded);
    choose(FAILING_F16_FALSE, gpu, GMEM_COMPUTE_F16, "opencl", fails);
    CHECK(memcmp(own, fails, sizeof own) == 0);
    CHECK(memcmp(own, stand_in, sizeof own) != 0);
    CHECK(memcmp(own, f32, sizeof own) != 0);
    CHECK(memcmp(rounded, stand_in, sizeof own) != 0);
}

static void test_list(void) {
    for (int i = 0; i < 4; i++) {
        gmem_device_info info;
        int count = 0;
        memset(&cl, 0, sizeof cl);
        cl.fp16 = i & 1 ? FAILING_F16_STAND_IN : FAILING_F16_OWN;
        cl.no_fp16 = !(i & 1);
        cl.type = i & 2 ? GMEM__CL_DEVICE_TYPE_GPU : GMEM__CL_DEVICE_TYPE_CPU;
        const gmem_opencl hook = failing_cl_hook(&cl);
        CHECK_OK(gmem_devices(&hook, &info, 1, &count, NULL));
        CHECK_INT(count, 1);
        CHECK_INT(info.fp16, i == 3);
    }
}

/* failures --------------------------------------------------------------------------------------------------------- */

/* Opens a context while call number `at` of a function fails, once or for good; its status. */
static gmem_status open_failing(failing_cl_function function, int64_t at, int for_good, gmem_error *error) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    memset(&cl, 0, sizeof cl);
    golden_choose_backend(&desc);
    cl.fp16 = FAILING_F16_STAND_IN;
    cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.compute = GMEM_COMPUTE_F16;
    desc.opencl = failing_cl_hook(&cl);
    desc.log = note;
    log_text[0] = 0;
    failing_cl_arm(&cl, function, at, FAILING_CL_OUT_OF_RESOURCES, for_good);
    const gmem_status status = gmem_context_create(&desc, &context, error);
    CHECK((status == GMEM_OK) == (context != NULL));
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
    return status;
}

/* What fails once fails with f16 arithmetic, and f32 takes its place; a device that is lost stays so. */
static void test_failures(void) {
    static const failing_cl_function functions[] = {FAILING_clBuildProgram, FAILING_clCreateKernel,
                                                    FAILING_clEnqueueNDRangeKernel, FAILING_clFinish,
                                                    FAILING_clEnqueueReadBuffer};
    gmem_error error;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        CHECK_OK(open_failing(functions[i], 1, 0, &error));
        CHECK_CONTAINS(log_text, "f16 arithmetic fails");
        CHECK_CONTAINS(log_text, failing_cl_names[functions[i]]);
        CHECK_STATUS(GMEM_E_DEVICE, open_failing(functions[i], 1, 1, &error));
        CHECK_CONTAINS(error.message, "clCreateProgramWithSource"); /* for the second attempt */
    }
    CHECK_OK(open_failing(FAILING_clFinish, 0, 0, &error));
    CHECK(strstr(log_text, "fails") == NULL);
}

int main(void) {
    test_recorded();
    test_trajectory();
    test_choice();
    test_list();
    test_failures();
    return check_report();
}
