/* Every call of OpenCL and CLBlast failing in turn, with several codes, once and for good: an error with the call's
 * name or the CPU's result, outputs as they were, nothing left behind, and everything well again where the failure
 * passed. An argument, "all", makes each single call fail instead of some of each stage. */
#define _POSIX_C_SOURCE 200112L /* for alarm */
#include "../backends/opencl/opencl.h"

#include "check.h"
#include "failing_opencl.h"
#include "golden.h"
#include "vit.h"

#include <unistd.h>

enum { LIMIT = 60 /* seconds that nothing may take */, SOME = 25 /* failures in each stage */ };

static const int codes[] = {FAILING_CL_OUT_OF_RESOURCES, FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE,
                            FAILING_CL_DEVICE_NOT_AVAILABLE, FAILING_CL_INVALID_KERNEL_ARGS,
                            FAILING_CL_BUILD_PROGRAM_FAILURE};
enum { CODES = sizeof codes / sizeof codes[0] };

/* what is computed ------------------------------------------------------------------------------------------------ */

enum { MAX_OUT = 1 << 15 };

/* What every stage starts from, on the host. */
typedef struct world {
    gmem_context *cpu;
    golden_case dit;
    gmem_file *ae_io;
    golden_network ae;
    edit_list *vit;
    gmem_file *vit_file;
    float *x, *snippets, *t, *z; /* x, z: one sample each */
    int64_t latent_height, latent_width;
} world;

/* What is open on the device. */
typedef struct opened {
    const world *from;
    gmem_context *context;
    gmem_network *network;
    gmem_autoencoder *ae;
    gmem_image_encoder *encoder;
    float out[MAX_OUT];
    int64_t count; /* of out */
} opened;

static failing_cl cl;
static char log_text[1 << 14];

static void note(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

static const vit small_vit = {64, 2, 1, 100, 8, 5, 2, 0, 40};

static world world_open(void) {
    world from;
    memset(&from, 0, sizeof from);
    from.cpu = golden_context(GMEM_ISA_AUTO);
    from.dit = golden_case_open(from.cpu, "dit_odd", NULL);
    from.x = golden_f32(from.dit.io, "x", NULL);
    from.t = golden_f32(from.dit.io, "t", NULL);
    from.snippets = golden_f32(from.dit.io, "c", NULL);
    from.ae_io = golden_open(from.cpu, "vae_f8.io.safetensors");
    from.ae = golden_procedural(from.cpu, from.ae_io, NULL);
    from.z = golden_f32(from.ae_io, "mean", NULL);
    from.vit = vit_make(&small_vit);
    from.vit_file = edit_open(from.cpu, from.vit);
    from.latent_height = 2;
    from.latent_width = 3;
    return from;
}

static void world_close(world *from) {
    golden_network_close(&from->ae);
    gmem_file_close(from->ae_io);
    gmem_file_close(from->vit_file);
    edit_free(from->vit);
    golden_case_close(&from->dit);
    gmem_context_destroy(from->cpu);
    free(from->x);
    free(from->t);
    free(from->snippets);
    free(from->z);
}

static int64_t latent_count(const world *from) {
    const gmem_network_info *info = gmem_network_get_info(from->dit.network);
    return info->channels * info->height * info->width;
}

/* stages ---------------------------------------------------------------------------------------------------------- */

/* Each leaves what it computed in out (count), and nothing else behind. */
typedef gmem_status (*stage_fn)(opened *it, gmem_error *error);

static gmem_status open_context(opened *it, gmem_backend backend, gmem_error *error) {
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.isa = GMEM_ISA_SCALAR; /* or AUTO would not choose the device, which is slower than this processor's best */
    desc.threads = 1;
    desc.backend = backend;
    desc.opencl = failing_cl_hook(&cl);
    desc.log = note;
    return gmem_context_create(&desc, &it->context, error);
}

static gmem_status open_network(opened *it, gmem_error *error) {
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = it->from->dit.weights.file;
    return gmem_network_open(it->context, &desc, &it->network, error);
}

static gmem_status open_autoencoder(opened *it, gmem_error *error) {
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = it->from->ae.file;
    return gmem_autoencoder_open(it->context, &desc, &it->ae, error);
}

static gmem_status open_encoder(opened *it, gmem_error *error) {
    gmem_image_encoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = it->from->vit_file;
    return gmem_image_encoder_open(it->context, &desc, &it->encoder, error);
}

static gmem_status stage_network(opened *it, gmem_error *error) {
    gmem_network *kept = it->network;
    const gmem_status status = open_network(it, error);
    if (status == GMEM_OK) gmem_network_close(it->network);
    it->network = kept;
    it->count = 0;
    return status;
}

static gmem_status stage_pass(opened *it, gmem_error *error) {
    gmem_pass *pass = NULL;
    const world *from = it->from;
    gmem_status status = gmem_pass_create(it->network, 1, &pass, error);
    if (status == GMEM_OK) status = gmem_pass_prepare(pass, 1, from->t, 1, from->snippets, NULL, 1, error);
    if (status == GMEM_OK) status = gmem_pass_run(pass, 1, from->x, from->t, from->snippets, NULL, it->out, error);
    gmem_pass_destroy(pass);
    it->count = latent_count(from);
    return status;
}

static gmem_status sample(opened *it, const gmem_sampler_desc *sampler, gmem_error *error) {
    gmem_sample_desc desc;
    gmem_rng rng;
    memset(&desc, 0, sizeof desc);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 3);
    desc.sampler = *sampler;
    desc.batch = 1;
    desc.snippets = it->from->snippets;
    desc.rng = &rng;
    it->count = latent_count(it->from);
    return gmem_sample(it->network, &desc, it->out, error);
}

static gmem_status stage_sde(opened *it, gmem_error *error) {
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.method = GMEM_SDE_HEUN;
    sampler.steps = 3;
    return sample(it, &sampler, error);
}

/* Waits in every step. */
static gmem_status stage_dopri5(opened *it, gmem_error *error) {
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.method = GMEM_DOPRI5;
    sampler.steps = 2;
    sampler.atol = sampler.rtol = 0.1;
    return sample(it, &sampler, error);
}

static gmem_status stage_guided_and_cached(opened *it, gmem_error *error) {
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.method = GMEM_AB2;
    sampler.steps = 4;
    sampler.cfg_scale = 2;
    sampler.cache_threshold = 0.2;
    return sample(it, &sampler, error);
}

static gmem_status stage_encoder(opened *it, gmem_error *error) {
    gmem_image_encoder *kept = it->encoder;
    const gmem_status status = open_encoder(it, error);
    if (status == GMEM_OK) gmem_image_encoder_close(it->encoder);
    it->encoder = kept;
    it->count = 0;
    return status;
}

/* Of two pictures. */
static gmem_status features(opened *it, int with_patches, gmem_error *error) {
    enum { WIDTH = 64, PATCHES = 25, PICTURES = 2, PIXELS = 3 * 20 * 30 };
    uint8_t pixels[PICTURES * PIXELS];
    float *patch = with_patches ? it->out + PICTURES * WIDTH : NULL;
    for (int i = 0; i < PICTURES * PIXELS; i++)
        pixels[i] = (uint8_t)(i * 37);
    it->count = PICTURES * (1 + (with_patches ? PATCHES : 0)) * WIDTH;
    return gmem_pixel_features(it->encoder, PICTURES, 20, 30, pixels, 0, it->out, patch, error);
}

static gmem_status stage_features(opened *it, gmem_error *error) { return features(it, 1, error); }
static gmem_status stage_class(opened *it, gmem_error *error) { return features(it, 0, error); }

static gmem_status stage_autoencoder(opened *it, gmem_error *error) {
    gmem_autoencoder *kept = it->ae;
    const gmem_status status = open_autoencoder(it, error);
    if (status == GMEM_OK) gmem_autoencoder_close(it->ae);
    it->ae = kept;
    it->count = 0;
    return status;
}

static gmem_status stage_decode(opened *it, gmem_error *error) {
    const world *from = it->from;
    it->count = 3 * 64 * from->latent_height * from->latent_width;
    return gmem_decode(it->ae, 1, from->latent_height, from->latent_width, from->z, it->out, error);
}

static const struct {
    const char *name;
    stage_fn run;
} stages[] = {{"opening the network", stage_network},
              {"a pass", stage_pass},
              {"sde", stage_sde},
              {"dopri5", stage_dopri5},
              {"guided and cached", stage_guided_and_cached},
              {"opening the image encoder", stage_encoder},
              {"features", stage_features},
              {"class tokens", stage_class},
              {"opening the autoencoder", stage_autoencoder},
              {"decoding", stage_decode}};
enum { STAGES = sizeof stages / sizeof stages[0] };

/* What the CPU gives for each, and the device when all is well. */
static float by_cpu[STAGES][MAX_OUT], by_device[STAGES][MAX_OUT];

static gmem_status open_all(opened *it, const world *from, gmem_backend backend, gmem_error *error) {
    memset(it, 0, sizeof *it);
    it->from = from;
    gmem_status status = open_context(it, backend, error);
    if (status == GMEM_OK) status = open_network(it, error);
    if (status == GMEM_OK) status = open_autoencoder(it, error);
    if (status == GMEM_OK) status = open_encoder(it, error);
    return status;
}

static void close_all(opened *it) {
    gmem_image_encoder_close(it->encoder);
    gmem_autoencoder_close(it->ae);
    gmem_network_close(it->network);
    gmem_context_destroy(it->context);
}

/* What out holds before: the noise to start from, and something to be seen where it is not touched. */
static void prepare(opened *it) {
    for (int i = 0; i < MAX_OUT; i++)
        it->out[i] = (float)i;
    memcpy(it->out, it->from->x, (size_t)latent_count(it->from) * sizeof(float));
}

/* Every stage once, by the CPU. */
static void expect_all(const world *from) {
    static opened it;
    gmem_error error;
    CHECK_OK(open_all(&it, from, GMEM_BACKEND_CPU, &error));
    for (int s = 0; s < STAGES; s++) {
        prepare(&it);
        if (!CHECK_OK(stages[s].run(&it, &error))) printf("  %s: %s\n", stages[s].name, error.message);
        memcpy(by_cpu[s], it.out, sizeof it.out);
    }
    close_all(&it);
}

/* one attempt ----------------------------------------------------------------------------------------------------- */

/* An error says which call failed, and how. What lists devices passes over those that fail, so that there is none; the
 * compiler's failure comes with its report. */
static int error_tells(const gmem_error *error, gmem_status status, int code) {
    gmem__quoted quoted;
    if (error->code != status) return 0;
    if (status == GMEM_E_NO_DEVICE) return strncmp(cl.failed, "clGet", 5) == 0;
    if (status != GMEM_E_DEVICE && status != GMEM_E_MEMORY) return 0;
    if (code == FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE && status != GMEM_E_MEMORY) return 0;
    if (code == FAILING_CL_DEVICE_NOT_AVAILABLE && status != GMEM_E_DEVICE) return 0;
    return strstr(error->message, cl.failed) && strstr(error->message, gmem__cl_code_name(&quoted, code));
}

static void tell(const char *what, const gmem_error *error, gmem_status status) {
    printf("  %s: call %lld (%s) with %d%s: %s: %s\n", what, (long long)cl.at, cl.failed ? cl.failed : "none", cl.code,
           cl.for_good ? ", for good" : "", gmem_status_name(status), status ? error->message : "");
}

static int equals(const opened *it, const float *expected) {
    return memcmp(it->out, expected, (size_t)it->count * sizeof *expected) == 0;
}

/* Runs a stage whose armed call fails: either it says so, or nothing shows. 0 where the call was not reached. */
static int attempt(opened *it, int s, gmem_backend backend) {
    gmem_error error;
    static float before[MAX_OUT];
    memset(&error, 0, sizeof error);
    prepare(it);
    memcpy(before, it->out, sizeof before);
    log_text[0] = 0;
    const int64_t alive = cl.buffers + cl.queues + cl.kernels + cl.programs + cl.contexts;
    alarm(LIMIT);
    const gmem_status status = stages[s].run(it, &error);
    alarm(0);
    const char *failed = cl.failed;
    cl.at = 0;
    const int64_t more = cl.buffers + cl.queues + cl.kernels + cl.programs + cl.contexts - alive;
    const int gave_way = strstr(log_text, "give way") != NULL; /* weights, to a buffer that failed first */
    int good = CHECK((gave_way ? more < 0 : more == 0) && cl.misuse == 0);
    if (backend == GMEM_BACKEND_OPENCL && failed && status != GMEM_OK) {
        good &= CHECK(error_tells(&error, status, cl.code));
        good &= CHECK(memcmp(it->out, before, sizeof before) == 0);
    } else {
        good &= CHECK_OK(status);
        good &= CHECK(equals(it, by_device[s]) || (backend == GMEM_BACKEND_AUTO && equals(it, by_cpu[s])));
    }
    if (!good) tell(stages[s].name, &error, status);
    return failed != NULL;
}

/* What comes after every change of the device: its results, which are the CPU's but for rounding. The steps that dopri5
 * chooses depend on an estimate that is hardly more than rounding (test_recordings.c). */
static void expect_of_device(opened *it) {
    gmem_error error;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    for (int s = 0; s < STAGES; s++) {
        prepare(it);
        if (!CHECK_OK(stages[s].run(it, &error))) printf("  %s: %s\n", stages[s].name, error.message);
        CHECK_CLOSE(stages[s].name, it->out, by_cpu[s], it->count, stages[s].run == stage_dopri5 ? 1e-4 : 1e-5);
        memcpy(by_device[s], it->out, sizeof it->out);
    }
}

/* Some calls of a stage, or all, with the codes in turn; then everything is as before. */
static void sweep(opened *it, int s, gmem_backend backend, int all) {
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    CHECK(!attempt(it, s, backend));
    const int64_t calls = cl.calls[FAILING_CL_ANY], step = all || calls < SOME ? 1 : calls / SOME;
    int64_t failures = 0, fell_back = 0;
    for (int64_t at = 1; at <= calls; at += step) {
        failing_cl_arm(&cl, FAILING_CL_ANY, at, codes[failures % CODES], 0);
        if (!CHECK(attempt(it, s, backend))) break;
        failures++;
        fell_back += strstr(log_text, "the CPU goes on") != NULL;
    }
    if (backend == GMEM_BACKEND_AUTO && calls > 2) CHECK(fell_back > 0);
    if (backend == GMEM_BACKEND_OPENCL) CHECK(fell_back == 0);
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    attempt(it, s, backend);
    printf("%s%s: %lld calls, %lld made to fail\n", backend == GMEM_BACKEND_AUTO ? "auto, " : "", stages[s].name,
           (long long)calls, (long long)failures);
}

/* Each function that a stage calls, with every code: its first call, and its last. */
static void each_function(opened *it, int s, gmem_backend backend) {
    int64_t calls[FAILING_CL_COUNT + 1];
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    attempt(it, s, backend);
    memcpy(calls, cl.calls, sizeof calls);
    for (int f = 0; f < FAILING_CL_COUNT; f++) {
        for (int c = 0; c < CODES && calls[f]; c++) {
            failing_cl_arm(&cl, (failing_cl_function)f, 1, codes[c], 0);
            CHECK(attempt(it, s, backend));
        }
        if (calls[f] < 2) continue;
        failing_cl_arm(&cl, (failing_cl_function)f, calls[f], codes[f % CODES], 0);
        CHECK(attempt(it, s, backend));
    }
}

/* contexts -------------------------------------------------------------------------------------------------------- */

static int on_device(const opened *it) { return strncmp(gmem_context_backend(it->context), "opencl/", 7) == 0; }

static void check_clean(void) {
    if (!CHECK(failing_cl_is_clean(&cl))) {
        printf("  left: %lld contexts, %lld queues, %lld buffers, %lld programs, %lld kernels; misuse: %lld\n",
               (long long)cl.contexts, (long long)cl.queues, (long long)cl.buffers, (long long)cl.programs,
               (long long)cl.kernels, (long long)cl.misuse);
        exit(1); /* whatever follows would fail too */
    }
}

/* Makes a context while the armed call fails, and uses it where there is one. `expect`: that it cannot be made. */
static void attempt_context(const world *from, gmem_backend backend) {
    static opened it;
    gmem_error error;
    memset(&it, 0, sizeof it);
    memset(&error, 0, sizeof error);
    it.from = from;
    log_text[0] = 0;
    alarm(LIMIT);
    const gmem_status status = open_context(&it, backend, &error);
    alarm(0);
    const char *failed = cl.failed;
    int good = CHECK((status == GMEM_OK) == (it.context != NULL));
    if (backend == GMEM_BACKEND_AUTO) {
        good &= CHECK_OK(status);
        if (it.context && !on_device(&it)) good &= CHECK_CONTAINS(log_text, "the CPU");
    } else if (status != GMEM_OK) {
        good &= CHECK(failed && error_tells(&error, status, cl.code));
    } else {
        good &= CHECK(on_device(&it));
    }
    if (!good) tell("a context", &error, status);
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    if (status == GMEM_OK && failed && CHECK_OK(open_network(&it, &error)) && CHECK_OK(stage_pass(&it, &error)))
        CHECK_CLOSE("a pass", it.out, by_cpu[1], it.count, 1e-5);
    close_all(&it);
    check_clean();
}

static void test_contexts(const world *from, gmem_backend backend, int all) {
    int64_t calls[FAILING_CL_COUNT + 1], failures = 0;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    static opened it;
    gmem_error error;
    memset(&it, 0, sizeof it);
    it.from = from;
    if (!CHECK_OK(open_context(&it, backend, &error))) exit(check_report());
    memcpy(calls, cl.calls, sizeof calls);
    if (!CHECK(on_device(&it))) printf("  %s\n%s", gmem_context_backend(it.context), log_text);
    close_all(&it);
    check_clean();
    for (int f = 0; f < FAILING_CL_COUNT; f++) {
        /* the comparison with scalar code takes most of a second */
        const int64_t last = all || backend == GMEM_BACKEND_OPENCL ? calls[f] : 1;
        const int64_t step = all ? 1 : calls[f] - 1;
        for (int64_t at = 1; at <= last && calls[f]; at += step > 0 ? step : 1) {
            failing_cl_arm(&cl, (failing_cl_function)f, at, codes[failures++ % CODES], 0);
            attempt_context(from, backend);
        }
    }
    printf("%sa context: %lld calls, %lld made to fail\n", backend == GMEM_BACKEND_AUTO ? "auto, " : "",
           (long long)calls[FAILING_CL_ANY], (long long)failures);
}

/* A library that lacks one function, or all of CLBlast's. */
static void test_missing(const world *from) {
    static opened it;
    gmem_error error;
    for (int f = 0; f <= FAILING_CL_COUNT; f++) {
        memset(&it, 0, sizeof it);
        it.from = from;
        cl.without = f < FAILING_CL_COUNT ? failing_cl_names[f] : "clblast";
        failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
        if (strncmp(cl.without, "cl", 2) == 0 && strcmp(cl.without, "clblast") != 0) {
            CHECK_STATUS(GMEM_E_NO_DEVICE, open_context(&it, GMEM_BACKEND_OPENCL, &error));
            CHECK_CONTAINS(error.message, cl.without);
            CHECK(it.context == NULL);
            log_text[0] = 0;
            if (f == FAILING_clFinish && CHECK_OK(open_context(&it, GMEM_BACKEND_AUTO, &error))) {
                CHECK(!on_device(&it));
                CHECK_CONTAINS(log_text, "clFinish");
            }
        } else if (f == FAILING_CLBlastSgemm || f == FAILING_CL_COUNT) {
            if (CHECK_OK(open_context(&it, GMEM_BACKEND_OPENCL, &error)) && CHECK_OK(open_network(&it, &error)) &&
                CHECK_OK(stage_pass(&it, &error)))
                CHECK_CLOSE("a pass", it.out, by_cpu[1], it.count, 1e-5);
        }
        close_all(&it);
        check_clean();
    }
    cl.without = NULL;
}

/* stages with one context -------------------------------------------------------------------------------------------
 */

static void test_stages(const world *from, gmem_backend backend, int all) {
    static opened it;
    gmem_error error;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    if (!CHECK_OK(open_all(&it, from, backend, &error)) || !CHECK(on_device(&it))) exit(check_report());
    expect_of_device(&it);
    for (int s = 0; s < STAGES; s++) {
        sweep(&it, s, backend, all);
    }
    for (int s = 0; s < 2; s++) { /* opening, a pass: what the others call too */
        each_function(&it, s, backend);
    }
    close_all(&it);
    check_clean();
}

/* The same with products by CLBlast, of which a device's tuning may not have chosen any. */
static void test_clblast(const world *from) {
    static opened it;
    gmem_error error;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    if (!CHECK_OK(open_all(&it, from, GMEM_BACKEND_OPENCL, &error))) return;
    it.context->device->tuning.way = GMEM__CL_WAY_CLBLAST;
    it.context->device->tuning.shape_count = 0;
    expect_of_device(&it);
    static const int with_products[] = {1, STAGES - 1};
    for (int i = 0; i < 2; i++) {
        int64_t calls[FAILING_CL_COUNT + 1], products = 0;
        failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
        attempt(&it, with_products[i], GMEM_BACKEND_OPENCL);
        memcpy(calls, cl.calls, sizeof calls);
        for (int f = FAILING_CLBlastSgemm; f < FAILING_CL_COUNT; f++) {
            products += calls[f];
            for (int c = 0; c < CODES && calls[f]; c++) {
                failing_cl_arm(&cl, (failing_cl_function)f, c % 2 ? calls[f] : 1, codes[c], 0);
                CHECK(attempt(&it, with_products[i], GMEM_BACKEND_OPENCL));
            }
        }
        CHECK(products > 0);
    }
    close_all(&it);
    check_clean();
}

/* lost devices ------------------------------------------------------------------------------------------------------
 */

/* A device is lost in the middle of a stage: so does every later stage fail, or the CPU does it, and all is released.
 */
static void lose(const world *from, gmem_backend backend, int s, failing_cl_function function, int code) {
    static opened it;
    gmem_error error;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    if (!CHECK_OK(open_all(&it, from, backend, &error))) exit(check_report());
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    attempt(&it, s, backend);
    const int64_t middle = (cl.calls[function] + 1) / 2;
    if (CHECK(middle > 0)) {
        failing_cl_arm(&cl, function, middle, code, 1);
        CHECK(attempt(&it, s, backend));
    }
    for (int later = 0; later < STAGES; later++) {
        failing_cl_arm(&cl, FAILING_CL_ANY, 1, code, 1);
        attempt(&it, later, backend);
    }
    alarm(LIMIT);
    close_all(&it);
    alarm(0);
    check_clean();
}

static void test_lost(const world *from, gmem_backend backend) {
    lose(from, backend, 2, FAILING_clEnqueueNDRangeKernel, FAILING_CL_DEVICE_NOT_AVAILABLE);
    lose(from, backend, 3, FAILING_clEnqueueReadBuffer, FAILING_CL_OUT_OF_RESOURCES);
    lose(from, backend, STAGES - 1, FAILING_CL_ANY, FAILING_CL_OUT_OF_RESOURCES);
    lose(from, backend, 4, FAILING_clSetKernelArg, FAILING_CL_DEVICE_NOT_AVAILABLE);
}

static double no_time(void *user) {
    (void)user;
    return 0;
}

/* A profile goes on where the CPU does, and ends when it is told to. */
static void test_profile(const world *from) {
    static opened it;
    gmem_error error;
    gmem_pass *pass = NULL;
    gmem_profile profile;
    memset(&profile, 0, sizeof profile);
    profile.clock = no_time;
    failing_cl_arm(&cl, FAILING_CL_ANY, 0, 0, 0);
    if (!CHECK_OK(open_all(&it, from, GMEM_BACKEND_AUTO, &error)) || !CHECK(on_device(&it))) exit(check_report());
    CHECK_OK(gmem_pass_create(it.network, 1, &pass, NULL));
    gmem_pass_profile(pass, &profile);
    failing_cl_arm(&cl, FAILING_clFinish, 1, FAILING_CL_OUT_OF_RESOURCES, 1);
    CHECK_OK(gmem_pass_run(pass, 1, from->x, from->t, from->snippets, NULL, it.out, NULL));
    CHECK(!on_device(&it));
    memset(profile.operations, 0, sizeof profile.operations);
    CHECK_OK(gmem_pass_run(pass, 1, from->x, from->t, from->snippets, NULL, it.out, NULL));
    CHECK(profile.operations[GMEM_OPERATION_QKV].calls > 0);
    gmem_pass_profile(pass, NULL);
    memset(profile.operations, 0, sizeof profile.operations);
    CHECK_OK(gmem_pass_run(pass, 1, from->x, from->t, from->snippets, NULL, it.out, NULL));
    CHECK_INT(profile.operations[GMEM_OPERATION_QKV].calls, 0);
    gmem_pass_destroy(pass);
    close_all(&it);
    check_clean();
}

int main(int argc, char **argv) {
    const int all = argc > 1 && strcmp(argv[1], "all") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    world from = world_open();
    expect_all(&from);
    test_stages(&from, GMEM_BACKEND_OPENCL, all);
    test_lost(&from, GMEM_BACKEND_OPENCL);
    test_contexts(&from, GMEM_BACKEND_OPENCL, all);
    test_missing(&from);
    test_clblast(&from);
    /* a GPU, so that AUTO considers it, with the kernels for processors, with which it is faster than scalar code */
    cl.type = GMEM__CL_DEVICE_TYPE_GPU | GMEM__CL_DEVICE_TYPE_CPU;
    test_stages(&from, GMEM_BACKEND_AUTO, all);
    test_lost(&from, GMEM_BACKEND_AUTO);
    test_profile(&from);
    test_contexts(&from, GMEM_BACKEND_AUTO, 0);
    world_close(&from);
    return check_report();
}
