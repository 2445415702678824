/* Whole models on an OpenCL device beyond the recorded cases, which the other programs run with GMEM_TEST_BACKEND:
 * devices that are too small, that do not share the host's memory, or that have small work-groups; narrow products;
 * every sampler, caching, batches; threads; CPU and device side by side. What the CPU gives is the reference. */
#include "check.h"
#include "failing_opencl.h"
#include "golden.h"
#include "recorded.h"

#include <pthread.h>

#define BAR 1e-5

enum { PER_PICTURE = 512 }; /* of the networks that draw here: 8 x 8 x 8 */

/* contexts -------------------------------------------------------------------------------------------------------- */

static failing_cl cl; /* what the device says of itself */
static char log_text[1 << 13];

static void note(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

static gmem_context *context_on(gmem_backend backend, gmem_compute compute, int64_t device_memory) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    golden_choose_backend(&desc);
    desc.backend = backend;
    desc.compute = compute;
    desc.device_memory = device_memory;
    desc.opencl = failing_cl_hook(&cl);
    desc.log = note;
    log_text[0] = 0;
    cl.most_bytes = cl.wrapped = 0;
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("%s\n", error.message);
        exit(check_report());
    }
    return context;
}

static gmem_context *device_context(gmem_compute compute, int64_t device_memory) {
    return context_on(GMEM_BACKEND_OPENCL, compute, device_memory);
}

/* Closes what was opened with `cl`, and makes it the system's device again. */
static void device_close(gmem_context *context) {
    gmem_context_destroy(context);
    if (!CHECK(failing_cl_is_clean(&cl))) exit(check_report());
    memset(&cl, 0, sizeof cl);
}

/* devices that can do less --------------------------------------------------------------------------------------------
 */

typedef struct lesser {
    const char *name;
    int64_t work_group; /* 0: the device's own */
    int not_unified, gpu;
} lesser;

static const lesser lessers[] = {{"as it is", 0, 0, 0},
                                 {"memory of its own", 0, 1, 0},
                                 {"a GPU", 0, 1, 1},
                                 {"work-groups of 16", 16, 0, 0},
                                 {"a GPU with work-groups of 24", 24, 1, 1},
                                 {"work-items alone", 1, 1, 0}};

/* A processor shares the host's memory whatever it says of that. */
static void own_memory(void) {
    cl.not_unified = 1;
    cl.type = GMEM__CL_DEVICE_TYPE_ACCELERATOR;
}

static void test_lesser(const lesser *what) {
    cl.work_group = what->work_group;
    if (what->not_unified) own_memory();
    if (what->gpu) cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    gmem_context *context = device_context(GMEM_COMPUTE_F32, 0);
    const double base = pass_error(context, "dit_base", NULL), odd = pass_error(context, "dit_odd", NULL);
    const double picture = decode_error(context, "vae_f8.io.safetensors");
    if (!CHECK(base < 2e-6 && odd < 2e-6 && picture < BAR))
        printf("  %s: passes are off by %.2g and %.2g, a picture by %.2g\n", what->name, base, odd, picture);
    CHECK(what->not_unified == (cl.wrapped == 0));
    CHECK(strstr(log_text, "streamed") == NULL);
    device_close(context);
}

enum { MEMORY = 12000000 };

/* The default model's network (11 MB, and 3 MB of activations) draws `batch` pictures. */
static void draw_default(gmem_context *context, int64_t batch, float *x) {
    enum { DEFAULT_WIDTH = 192 };
    gmem_network_desc network_desc;
    gmem_sample_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    gmem_rng rng;
    float *rows = zeros(batch * DEFAULT_WIDTH);
    for (int64_t i = 0; i < batch * DEFAULT_WIDTH; i++)
        rows[i] = (float)sin(0.37 * (double)i + 0.2) / 10;
    memset(&network_desc, 0, sizeof network_desc);
    memset(&desc, 0, sizeof desc);
    network_desc.path = "examples/model/network.safetensors";
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 5);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, batch, PER_PICTURE, x);
    desc.sampler.method = GMEM_EULER;
    desc.sampler.steps = 3; /* two passes */
    desc.batch = batch;
    desc.snippets = rows;
    desc.rng = &rng;
    gmem_status status = gmem_network_open(context, &network_desc, &network, &error);
    if (status == GMEM_OK) status = gmem_sample(network, &desc, x, &error);
    if (!CHECK_OK(status)) printf("  %s\n", error.message);
    gmem_network_close(network);
    free(rows);
}

/* A device of which the model leaves no room for its activations gets a part of it in each pass, and one with small
 * buffers a part of the batch; a picture is the same to the last bit. */
static void test_streaming(int owns_memory, int64_t reported, int64_t allowed) {
    static float expected[PER_PICTURE], x[PER_PICTURE];
    if (owns_memory) own_memory();
    gmem_context *context = device_context(GMEM_COMPUTE_F32, 0);
    draw_default(context, 1, expected);
    CHECK(strstr(log_text, "streamed") == NULL);
    device_close(context);
    if (owns_memory) own_memory();
    cl.memory = reported;
    context = device_context(GMEM_COMPUTE_F32, allowed);
    draw_default(context, 1, x);
    CHECK_CONTAINS(log_text, "streamed");
    CHECK(memcmp(x, expected, sizeof x) == 0);
    CHECK(cl.most_bytes <= (reported ? reported : allowed));
    device_close(context);
}

static void test_small_buffers(void) {
    enum { LARGEST = 3 << 20, BATCH = 20 };
    static float expected[BATCH * PER_PICTURE], x[BATCH * PER_PICTURE];
    gmem_context *context = device_context(GMEM_COMPUTE_F32, 0);
    draw_default(context, BATCH, expected);
    device_close(context);
    cl.largest = LARGEST;
    context = device_context(GMEM_COMPUTE_F32, 0);
    draw_default(context, BATCH, x);
    CHECK(memcmp(x, expected, sizeof x) == 0);
    CHECK(strstr(log_text, "streamed") == NULL);
    device_close(context);
}

/* Where not even one layer fits there is an error, and nothing is left of the attempt. */
static void test_too_small(void) {
    gmem_context *host = golden_context(GMEM_ISA_AUTO);
    golden_case it = golden_case_open(host, "dit_base", NULL);
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    own_memory();
    gmem_context *context = device_context(GMEM_COMPUTE_F32, 100 << 10);
    memset(&desc, 0, sizeof desc);
    desc.file = it.weights.file;
    CHECK_STATUS(GMEM_E_MEMORY, gmem_network_open(context, &desc, &network, &error));
    CHECK(network == NULL && cl.buffers == 0);
    device_close(context);
    golden_case_close(&it);
    gmem_context_destroy(host);
}

/* narrow products -----------------------------------------------------------------------------------------------------
 */

typedef struct narrow {
    gmem_compute compute;
    const char *name;
    double bar; /* relative L2 error against the recordings */
} narrow;

static const narrow narrows[] = {
    {GMEM_COMPUTE_F16, "f16", 5e-3}, {GMEM_COMPUTE_BF16, "bf16", 3e-2}, {GMEM_COMPUTE_INT8, "int8", 5e-2}};

static void test_narrow(const narrow *what, int without_fp16) {
    static const char *const cases[] = {"dit_base", "dit_wide", "dit_odd", "gmem_sit"};
    double worst = 0;
    cl.no_fp16 = without_fp16;
    gmem_context *context = device_context(what->compute, 0);
    CHECK_INT(gmem_context_compute(context), what->compute);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        worst = fmax(worst, pass_error(context, cases[i], NULL));
    if (!CHECK(worst > 1e-5 && worst <= what->bar)) printf("  %s: %.2g\n", what->name, worst); /* not f32 either */
    const double picture = decode_error(context, "vae_f8.io.safetensors");
    if (!CHECK(picture > 1e-5 && picture <= what->bar)) printf("  %s: decoded, %.2g\n", what->name, picture);
    printf("%s: relative L2 errors %.2g of networks, %.2g of a picture\n", what->name, worst, picture);
    device_close(context);
}

/* sampling ------------------------------------------------------------------------------------------------------------
 */

enum { MAX_BATCH = 7, WIDTH = 768, STEPS = 6 };

static float snippets[MAX_BATCH * WIDTH];

static gmem_status draw_latents(const gmem_network *network, const gmem_sampler_desc *sampler, int64_t picture,
                                int64_t batch, float *x, gmem_reuse *reuse, gmem_error *error) {
    gmem_rng rng;
    gmem_sample_desc desc;
    memset(&desc, 0, sizeof desc);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 5);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, picture, batch, PER_PICTURE, x);
    desc.sampler = *sampler;
    desc.batch = batch;
    desc.snippets = snippets + picture * WIDTH;
    desc.rng = &rng;
    desc.picture = picture;
    desc.reuse = reuse;
    return gmem_sample(network, &desc, x, error);
}

static gmem_reuse sample(const gmem_network *network, const gmem_sampler_desc *sampler, int64_t picture, int64_t batch,
                         float *x) {
    gmem_error error;
    gmem_reuse reuse = {-1, -1};
    if (!CHECK_OK(draw_latents(network, sampler, picture, batch, x, &reuse, &error))) printf("  %s\n", error.message);
    return reuse;
}

/* One file, opened on the device and on the CPU, in the same context. */
typedef struct both {
    gmem_context *context;
    golden_case device;
    gmem_network *cpu;
} both;

static both both_open(void) {
    both it;
    gmem_network_desc desc;
    it.cpu = NULL;
    it.context = device_context(GMEM_COMPUTE_F32, 0);
    it.device = golden_case_open(it.context, "dit_base", NULL);
    memset(&desc, 0, sizeof desc);
    desc.file = it.device.weights.file;
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_network_open(it.context, &desc, &it.cpu, NULL));
    for (int i = 0; i < MAX_BATCH * WIDTH; i++)
        snippets[i] = (float)sin(0.37 * i + 0.2);
    for (int i = 0; i < MAX_BATCH; i++)
        CHECK_OK(gmem_normalize(snippets + i * WIDTH, WIDTH, NULL));
    return it;
}

static void both_close(both *it) {
    gmem_network_close(it->cpu);
    golden_case_close(&it->device);
    device_close(it->context);
}

/* Guided in an interval, and with step caching, every method that may cache decides and draws as on the CPU. The plain
 * ones are recorded (test_recordings.c), but for those that are gmem's own. */
static void test_samplers(const both *it) {
    static const gmem_method methods[] = {GMEM_EULER,      GMEM_MIDPOINT,  GMEM_HEUN2,   GMEM_HEUN3, GMEM_RK4,
                                          GMEM_SDE_EULER,  GMEM_SDE_HEUN,  GMEM_AB2,     GMEM_AB3,   GMEM_DPMPP2M,
                                          GMEM_REPA_EULER, GMEM_REPA_HEUN, GMEM_REPA_SDE};
    static float device[2 * PER_PICTURE], cpu[2 * PER_PICTURE];
    int64_t reused = 0;
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        const int own = methods[i] == GMEM_AB2 || methods[i] == GMEM_AB3 || methods[i] == GMEM_DPMPP2M;
        for (int plain = 0; plain <= own; plain++) {
            char label[64];
            gmem_sampler_desc sampler;
            memset(&sampler, 0, sizeof sampler);
            sampler.method = methods[i];
            sampler.steps = STEPS;
            if (!plain) {
                sampler.cfg_scale = 2;
                sampler.cfg_start = 0.25;
                sampler.cfg_end = 0.75;
                sampler.cfg_channels = 3;
                sampler.cache_threshold = 0.2;
            }
            const gmem_reuse on_device = sample(it->device.network, &sampler, 0, 2, device);
            const gmem_reuse on_cpu = sample(it->cpu, &sampler, 0, 2, cpu);
            snprintf(label, sizeof label, "method %d%s", (int)methods[i], plain ? ", plain" : "");
            CHECK_CLOSE(label, device, cpu, 2 * PER_PICTURE, BAR);
            CHECK_INT(on_device.passes, on_cpu.passes);
            CHECK_INT(on_device.reused, on_cpu.reused);
            reused += on_device.reused;
        }
    }
    CHECK(reused > 0);
}

/* A picture does not depend on its batch. */
static void test_batches(const both *it) {
    static float together[MAX_BATCH * PER_PICTURE], alone[PER_PICTURE];
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.steps = STEPS;
    for (int64_t batch = 2; batch <= MAX_BATCH; batch++) {
        sample(it->device.network, &sampler, 0, batch, together);
        sample(it->device.network, &sampler, batch - 1, 1, alone);
        CHECK_CLOSE("alone", alone, together + (batch - 1) * PER_PICTURE, PER_PICTURE, 1e-6);
    }
}

typedef struct job {
    const gmem_network *network;
    int64_t picture;
    gmem_status status;
    float x[PER_PICTURE];
} job;

static void *sample_one(void *argument) {
    job *work = (job *)argument;
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.steps = STEPS;
    work->status = draw_latents(work->network, &sampler, work->picture, 1, work->x, NULL, NULL);
    return NULL;
}

/* Several threads with one network, each on a queue of its own. */
static void test_threads(const both *it) {
    enum { THREADS = 4 };
    static job jobs[THREADS], alone;
    pthread_t ids[THREADS];
    for (int i = 0; i < THREADS; i++) {
        jobs[i].network = it->device.network;
        jobs[i].picture = i;
        if (pthread_create(&ids[i], NULL, sample_one, &jobs[i]) != 0) exit(1);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
    alone.network = it->device.network;
    for (int i = 0; i < THREADS; i++) {
        alone.picture = i;
        sample_one(&alone);
        CHECK_OK(jobs[i].status);
        CHECK_OK(alone.status);
        CHECK(memcmp(alone.x, jobs[i].x, sizeof alone.x) == 0);
    }
}

/* pictures ------------------------------------------------------------------------------------------------------------
 */

static gmem_image draw(gmem_context *context) {
    gmem_generate_desc desc;
    gmem_image image;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&image, 0, sizeof image);
    desc.network = "examples/model/network.safetensors";
    desc.bank = "examples/model/bank.safetensors";
    desc.autoencoder = "examples/model/autoencoder.safetensors";
    desc.latent_stats = "examples/model/latents_stats.safetensors";
    desc.count = 1;
    desc.seed = 7;
    desc.sampler.steps = 20;
    if (!CHECK_OK(gmem_generate(context, &desc, &image, &error))) printf("  %s\n", error.message);
    return image;
}

/* The default model: the same seed, the same picture but for rounding. */
static void test_default_model(void) {
    gmem_context *context = device_context(GMEM_COMPUTE_F32, 0), *cpu = NULL;
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_context_create(&desc, &cpu, NULL));
    gmem_image device_image = draw(context), cpu_image = draw(cpu);
    const int64_t bytes = cpu_image.count * cpu_image.height * cpu_image.width * 3;
    int64_t largest = 0, different = 0;
    for (int64_t i = 0; i < bytes && device_image.pixels && cpu_image.pixels; i++) {
        const int64_t difference = llabs((long long)device_image.pixels[i] - (long long)cpu_image.pixels[i]);
        if (difference > largest) largest = difference;
        different += difference != 0;
    }
    CHECK(largest <= 1 && bytes > 0);
    printf("the default model: %lld of %lld values differ, by %lld at most\n", (long long)different, (long long)bytes,
           (long long)largest);
    gmem_image_free(context, &device_image);
    gmem_image_free(cpu, &cpu_image);
    gmem_context_destroy(cpu);
    device_close(context);
}

int main(void) {
    for (size_t i = 0; i < sizeof lessers / sizeof lessers[0]; i++)
        test_lesser(&lessers[i]);
    test_streaming(1, MEMORY, 0);
    test_streaming(0, 0, MEMORY);
    test_small_buffers();
    test_too_small();
    for (size_t i = 0; i < sizeof narrows / sizeof narrows[0]; i++)
        test_narrow(&narrows[i], 0);
    test_narrow(&narrows[0], 1);
    both it = both_open();
    test_samplers(&it);
    test_batches(&it);
    test_threads(&it);
    both_close(&it);
    test_default_model();
    return check_report();
}
