/* Devices of every size, from one on which nothing can run to one with room for all: a network, an autoencoder, an
 * image encoder and all in turn give what they should or say that there is no memory, and leave nothing. Weights that
 * have given way to activations are streamed to the last bit, in every type, whoever noticed that there is no room. */
#include "../backends/opencl/opencl.h"
#include "../src/autoencoder.h"
#include "../src/network.h"

#include "attempts.h"

#include <pthread.h>

static failing_cl cl;
static char log_text[1 << 13];

static void note(void *user, const char *line) {
    const size_t used = strlen(log_text);
    (void)user;
    snprintf(log_text + used, sizeof log_text - used, "%s\n", line);
}

/* A context on a device with memory of its own. */
static void open_context(gmem_compute compute) {
    gmem_context_desc desc;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    golden_choose_backend(&desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.compute = compute;
    desc.opencl = failing_cl_hook(&cl);
    desc.log = note;
    cl.not_unified = 1;
    cl.type = GMEM__CL_DEVICE_TYPE_ACCELERATOR;
    if (CHECK_OK(gmem_context_create(&desc, &context, &error))) return;
    printf("%s\n", error.message);
    exit(check_report());
}

static void close_context(void) {
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
    memset(&cl, 0, sizeof cl);
}

/* From now on the device has so many bytes. */
static void shrink(int64_t bytes) {
    context->device->found.limits.memory = bytes;
    log_text[0] = 0;
}

/* every size ------------------------------------------------------------------------------------------------------- */

/* The attempt on a device of so many bytes: right, or E_MEMORY. */
static gmem_status attempt_on(attempt attempt_of, const char *name, int64_t bytes) {
    gmem_error error;
    const int64_t before = cl.buffers + cl.queues + cl.kernels;
    shrink(bytes);
    cl.most_bytes = 0;
    memset(&error, 0, sizeof error);
    const gmem_status status = attempt_of(name, &error);
    if (status != GMEM_OK && !CHECK_STATUS(GMEM_E_MEMORY, status))
        printf("  %s on %lld bytes: %s\n", name, (long long)bytes, error.message);
    CHECK(cl.most_bytes <= bytes);
    CHECK_INT(cl.buffers + cl.queues + cl.kernels, before);
    CHECK_INT(context->device->used, 0);
    CHECK(context->device->memories == NULL);
    return status;
}

/* Sizes up to what is used where there is enough, in steps; what works on a device works on every larger one, and at
 * least on one of 1 / `least` of all. Then the CPU goes on wherever it may. */
static void every_size(attempt attempt_of, const char *name, int steps, int64_t least) {
    const int64_t all = context->device->found.limits.memory;
    int64_t smallest = 0, streamed = 0, fell_back = 0;
    CHECK_OK(attempt_on(attempt_of, name, all));
    const int64_t full = cl.most_bytes + cl.most_bytes / 2; /* weights leave room for more than these activations */
    for (int64_t step = 0; step <= steps; step++) {
        const int64_t bytes = full * step / steps;
        const gmem_status status = attempt_on(attempt_of, name, bytes);
        if (status == GMEM_OK && !smallest) smallest = bytes;
        if (smallest) CHECK_OK(status);
        streamed += status == GMEM_OK && strstr(log_text, "streamed");
        context->asked = GMEM_BACKEND_AUTO;
        if (status != GMEM_OK) CHECK_OK(attempt_on(attempt_of, name, bytes));
        if (status != GMEM_OK) fell_back += strstr(log_text, "the CPU") != NULL;
        context->asked = GMEM_BACKEND_OPENCL;
        context->device_failed = 0;
    }
    shrink(all);
    CHECK(smallest > 0 && smallest * least <= full);
    CHECK(streamed > 0 && fell_back > 0);
    printf("%s: %lld bytes are enough, from %lld on it works, streamed in %lld of %d steps\n", name, (long long)full,
           (long long)smallest, (long long)streamed, steps);
}

static void test_sizes(void) {
    gmem_context_desc desc;
    gmem_context *cpu = NULL;
    open_context(GMEM_COMPUTE_F32);
    every_size(try_network, "dit_base.io.safetensors", 24, 3);
    every_size(try_network, "gmem_sit.io.safetensors", 24, 3);
    every_size(try_autoencoder, "vae_f8.io.safetensors", 24, 2);
    every_size(try_autoencoder, "vae_diffusers.io.safetensors", 24, 2);
    every_size(try_encoder, "dinov2_reg.io.safetensors", 12, 1); /* mostly activations */
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_context_create(&desc, &cpu, NULL));
    drawn = 3; /* in parts, where there is little room */
    if (CHECK_OK(draw(cpu, &cpu_image, NULL))) every_size(try_default_model, "the default model", 6, 3);
    gmem_image_free(cpu, &cpu_image);
    gmem_context_destroy(cpu);
    close_context();
}

/* giving way ------------------------------------------------------------------------------------------------------- */

enum { LATENT = 512, ROW = 192, MOST = 3 }; /* of the default model: 8 x 8 x 8, and its snippets */

static float latents[MOST * LATENT], rows[MOST * ROW];
static const float times[MOST] = {0.25f, 0.5f, 0.75f};

static void make_inputs(void) {
    for (int i = 0; i < MOST * LATENT; i++)
        latents[i] = (float)sin(0.61 * i);
    for (int i = 0; i < MOST * ROW; i++)
        rows[i] = (float)sin(0.37 * i) / 10;
}

static gmem_network *open_network(void) {
    gmem_network_desc desc;
    gmem_network *network = NULL;
    memset(&desc, 0, sizeof desc);
    desc.path = "examples/model/network.safetensors";
    if (!CHECK_OK(gmem_network_open(context, &desc, &network, NULL))) exit(check_report());
    return network;
}

/* The velocity of a few latents; on failure v stays. */
static gmem_status run_pass(const gmem_network *network, int64_t batch, float *v) {
    gmem_pass *pass = NULL;
    gmem_status status = gmem_pass_create(network, batch, &pass, NULL);
    if (status == GMEM_OK) status = gmem_pass_run(pass, batch, latents, times, rows, NULL, v, NULL);
    gmem_pass_destroy(pass);
    return status;
}

static void check_given(const gmem_network *network, int64_t matrices) {
    const gmem__device_memory *memory = network->store.uploaded;
    CHECK(memory->streamed_bytes > 0 && memory->streamed_bytes <= matrices && memory->largest_streamed > 0);
    CHECK_CONTAINS(log_text, "give way");
}

/* Weights that are all there, then a device of little more than them: for the limit that the library counts, or only
 * for the driver. The second pass finds everything as it wants it. */
static void test_give_way(gmem_compute compute, int driver) {
    enum { BATCH = 2 };
    static float expected[BATCH * LATENT], v[BATCH * LATENT];
    open_context(compute);
    gmem_network *network = open_network();
    const int64_t all = context->device->found.limits.memory, resident = network->store.uploaded->resident_bytes;
    CHECK_INT(network->store.uploaded->streamed_bytes, 0);
    CHECK_OK(run_pass(network, BATCH, expected));
    const int64_t bytes = context->device->used + 1000;
    shrink(driver ? all : bytes);
    if (driver) cl.memory = bytes;
    CHECK_OK(run_pass(network, BATCH, v));
    CHECK(memcmp(v, expected, sizeof v) == 0);
    check_given(network, resident);
    log_text[0] = 0;
    CHECK_OK(run_pass(network, BATCH, v));
    CHECK(memcmp(v, expected, sizeof v) == 0);
    if (!CHECK(log_text[0] == 0)) printf("  %s", log_text);
    gmem_network_close(network);
    close_context();
}

/* Where even all weights would not be enough none gives way. */
static void test_in_vain(void) {
    gmem_pass *pass = NULL;
    open_context(GMEM_COMPUTE_F32);
    gmem_network *network = open_network();
    shrink(context->device->used + 1000);
    CHECK_STATUS(GMEM_E_MEMORY, gmem_pass_create(network, 1 << 14, &pass, NULL));
    CHECK_INT(network->store.uploaded->streamed_bytes, 0);
    CHECK(log_text[0] == 0);
    gmem_network_close(network);
    close_context();
}

/* A network's weights give way to an autoencoder that comes later, from one that is open but idle. */
static void test_two_models(void) {
    static float expected[LATENT], v[LATENT], before[3 * 64 * 64], after[3 * 64 * 64];
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    gmem_pass *pass = NULL;
    memset(&desc, 0, sizeof desc);
    desc.path = "examples/model/autoencoder.safetensors";
    open_context(GMEM_COMPUTE_F32);
    gmem_network *network = open_network();
    if (!CHECK_OK(gmem_autoencoder_open(context, &desc, &ae, NULL))) exit(check_report());
    CHECK_OK(gmem_pass_create(network, 1, &pass, NULL));
    CHECK_OK(gmem_pass_run(pass, 1, latents, times, rows, NULL, expected, NULL));
    CHECK_INT(8 * ae->info.factor, 64);
    CHECK_OK(gmem_decode(ae, 1, 8, 8, latents, before, NULL));
    shrink(context->device->used + 100000);
    CHECK_OK(gmem_decode(ae, 1, 8, 8, latents, after, NULL));
    CHECK(memcmp(after, before, sizeof after) == 0);
    CHECK_CONTAINS(log_text, "give way");
    CHECK_OK(gmem_pass_run(pass, 1, latents, times, rows, NULL, v, NULL));
    CHECK(memcmp(v, expected, sizeof v) == 0);
    gmem_pass_destroy(pass);
    gmem_autoencoder_close(ae);
    gmem_network_close(network);
    close_context();
}

/* Several passes of one network at once, on a device with room for less and less of its weights. */
typedef struct worker {
    const gmem_network *network;
    int64_t batch;
    float v[MOST * LATENT];
    int wrong;
    const float *expected;
} worker;

static void *work(void *user) {
    worker *w = (worker *)user;
    for (int i = 0; i < 3; i++) {
        const gmem_status status = run_pass(w->network, w->batch, w->v);
        if (status == GMEM_E_MEMORY) continue; /* the others' activations are in the way */
        w->wrong += status != GMEM_OK || memcmp(w->v, w->expected, (size_t)w->batch * LATENT * sizeof *w->v) != 0;
    }
    return NULL;
}

static void test_threads(void) {
    enum { WORKERS = MOST };
    static float expected[WORKERS][MOST * LATENT];
    static worker workers[WORKERS];
    pthread_t threads[WORKERS];
    open_context(GMEM_COMPUTE_BF16);
    gmem_network *network = open_network();
    for (int i = 0; i < WORKERS; i++)
        CHECK_OK(run_pass(network, i + 1, expected[i]));
    for (int64_t room = context->device->used; room > 3000000; room = room * 2 / 3) {
        shrink(room);
        for (int i = 0; i < WORKERS; i++) {
            workers[i].network = network;
            workers[i].batch = i + 1;
            workers[i].expected = expected[i];
            workers[i].wrong = 0;
            if (pthread_create(&threads[i], NULL, work, &workers[i])) exit(1);
        }
        for (int i = 0; i < WORKERS; i++) {
            pthread_join(threads[i], NULL);
            CHECK_INT(workers[i].wrong, 0);
        }
        CHECK(cl.misuse == 0);
    }
    CHECK(network->store.uploaded->streamed_bytes > 0);
    gmem_network_close(network);
    close_context();
}

int main(void) {
    static const gmem_compute computes[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8};
    make_inputs();
    test_sizes();
    for (int i = 0; i < LENGTH(computes); i++) {
        test_give_way(computes[i], 0);
        if (computes[i] == GMEM_COMPUTE_BF16) test_give_way(computes[i], 1);
    }
    test_in_vain();
    test_two_models();
    test_threads();
    return check_report();
}
