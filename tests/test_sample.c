/* Sampling with a network: pictures do not depend on their batch, torch's doubled draws, time that runs the other way,
 * refusals and failing allocations. */
#include "check.h"
#include "failing.h"
#include "golden.h"
#include "tape.h"

/* Allocations left to the failing one, at the first and at the last report. */
typedef struct watched {
    const failing *memory;
    int64_t first, last;
} watched;

static int watch(void *user, const gmem_progress *progress) {
    watched *w = (watched *)user;
    if (progress->step == 1) w->first = w->memory->countdown;
    w->last = w->memory->countdown;
    return 0;
}

static void sample_pictures(const gmem_network *network, const gmem_sampler_desc *sampler, gmem_rng_kind kind,
                            int64_t picture, int64_t batch, const float *snippets, const int64_t *labels, float *x,
                            int64_t per_picture) {
    gmem_rng rng;
    gmem_sample_desc desc;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    gmem_rng_init(&rng, kind, 5);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, picture, batch, per_picture, x);
    desc.sampler = *sampler;
    desc.batch = batch;
    desc.snippets = snippets;
    desc.labels = labels;
    desc.rng = &rng;
    desc.picture = picture;
    if (!CHECK_OK(gmem_sample(network, &desc, x, &error))) printf("  %s\n", error.message);
}

/* Pictures do not depend on the batch they are drawn in. */
static void test_batches(const gmem_network *network, const float *snippets) {
    enum { PER_PICTURE = 512, WIDTH = 768 };
    static float both[2 * PER_PICTURE], one[PER_PICTURE];
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.steps = 6;
    sampler.cfg_scale = 1.5;
    sample_pictures(network, &sampler, GMEM_RNG_PHILOX, 3, 2, snippets, NULL, both, PER_PICTURE);
    sample_pictures(network, &sampler, GMEM_RNG_PHILOX, 3, 1, snippets, NULL, one, PER_PICTURE);
    CHECK_CLOSE("picture 3 alone", one, both, PER_PICTURE, 1e-6);
    sample_pictures(network, &sampler, GMEM_RNG_PHILOX, 4, 1, snippets + WIDTH, NULL, one, PER_PICTURE);
    CHECK_CLOSE("picture 4 alone", one, both + PER_PICTURE, PER_PICTURE, 1e-6);
}

/* With a torch generator and guidance the noise is the first half of a doubled draw. */
static void test_doubled_draws(const gmem_network *network, const float *snippets) {
    enum { PER_PICTURE = 512, BATCH = 2, HALF = BATCH * PER_PICTURE, DRAWS = 2 };
    static float x[HALF], y[HALF], doubled[2 * HALF], noise[DRAWS * HALF];
    gmem_rng rng;
    gmem_sample_desc desc;
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    memset(&desc, 0, sizeof desc);
    sampler.steps = DRAWS + 1;
    sampler.cfg_scale = 2;
    sample_pictures(network, &sampler, GMEM_RNG_TORCH_CPU, 0, BATCH, snippets, NULL, x, PER_PICTURE);
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, 5);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, BATCH, PER_PICTURE, y);
    for (int i = 0; i < DRAWS; i++) {
        gmem_rng_normal(&rng, GMEM_DRAW_STEP, i, 0, 2 * BATCH, PER_PICTURE, doubled);
        memcpy(noise + i * HALF, doubled, HALF * sizeof *noise);
    }
    tape from = {noise, DRAWS, 0};
    desc.sampler = sampler;
    desc.batch = BATCH;
    desc.snippets = snippets;
    desc.noise = tape_play;
    desc.noise_user = &from;
    CHECK_OK(gmem_sample(network, &desc, y, NULL));
    CHECK(memcmp(x, y, sizeof x) == 0);
}

static void test_sample_failures(const gmem_network *network, failing *memory, const float *snippets) {
    enum { PER_PICTURE = 512, PLENTY = 1 << 30 };
    static float x[PER_PICTURE], before[PER_PICTURE];
    gmem_rng rng;
    gmem_sample_desc desc;
    watched w = {memory, 0, 0};
    memset(&desc, 0, sizeof desc);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 1);
    desc.sampler.steps = 4;
    desc.sampler.cfg_scale = 2;
    desc.batch = 1;
    desc.snippets = snippets;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(network, &desc, x, NULL)); /* no noise */
    desc.rng = &rng;
    desc.snippets = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(network, &desc, x, NULL));
    desc.snippets = snippets;
    desc.batch = 0;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(network, &desc, x, NULL));
    desc.batch = INT64_MAX / 512;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(network, &desc, x, NULL));
    desc.batch = 1;
    desc.sampler.timestep_shift = 2;
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_sample(network, &desc, x, NULL));
    desc.sampler.timestep_shift = 0;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(NULL, &desc, x, NULL));

    desc.progress = watch;
    desc.progress_user = &w;
    const int64_t live = memory->live;
    memory->countdown = PLENTY;
    CHECK_OK(gmem_sample(network, &desc, x, NULL));
    CHECK_INT(w.last, w.first); /* nothing is allocated inside a step */
    CHECK_INT(memory->live, live);
    const int64_t needed = PLENTY - memory->countdown;
    CHECK(needed >= 2);
    memcpy(before, x, sizeof x);
    for (int64_t i = 0; i < needed; i++) {
        memory->countdown = i;
        CHECK_STATUS(GMEM_E_MEMORY, gmem_sample(network, &desc, x, NULL));
        CHECK_INT(memory->live, live);
        CHECK(memcmp(x, before, sizeof x) == 0);
    }
    memory->countdown = -1;
    CHECK_OK(gmem_sample(network, &desc, x, NULL));
}

static void test_snippet_network(void) {
    failing memory = {-1, 0, 0};
    gmem_context *context = failing_context(&memory);
    golden_case dit = golden_case_open(context, "dit_base", NULL);
    gmem_file *recording = golden_open(context, "sample_ode_euler20.safetensors");
    float *snippets = golden_f32(recording, "c", NULL);
    test_batches(dit.network, snippets);
    test_doubled_draws(dit.network, snippets);
    test_sample_failures(dit.network, &memory, snippets);
    free(snippets);
    gmem_file_close(recording);
    golden_case_close(&dit);
    gmem_context_destroy(context);
    CHECK_INT(memory.live, 0);
}

/* A network of REPA's convention under the transport samplers: the same trajectory, t turned round. */
static void test_reversed_time(void) {
    enum { PER_PICTURE = 256 };
    static float x[2 * PER_PICTURE], y[2 * PER_PICTURE];
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    golden_case sit = golden_case_open(context, "sit_plain", NULL);
    int64_t *labels = golden_i64(sit.io, "sample_label", NULL), wrong[2] = {0, 11};
    gmem_sampler_desc sampler;
    gmem_sample_desc desc;
    memset(&sampler, 0, sizeof sampler);
    memset(&desc, 0, sizeof desc);
    CHECK(gmem_network_get_info(sit.network)->time_reversed);
    sampler.cfg_scale = 1.5;
    sampler.method = GMEM_REPA_EULER;
    sampler.steps = 8;
    sample_pictures(sit.network, &sampler, GMEM_RNG_PHILOX, 0, 2, NULL, labels, x, PER_PICTURE);
    sampler.method = GMEM_EULER;
    sampler.steps = 9;
    sample_pictures(sit.network, &sampler, GMEM_RNG_PHILOX, 0, 2, NULL, labels, y, PER_PICTURE);
    CHECK_CLOSE("the other convention", y, x, 2 * PER_PICTURE, 1e-6);

    desc.sampler = sampler;
    desc.batch = 2;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(sit.network, &desc, x, NULL)); /* no labels */
    desc.labels = wrong;
    CHECK_STATUS(GMEM_E_LABEL, gmem_sample(sit.network, &desc, x, NULL));
    free(labels);
    golden_case_close(&sit);
    gmem_context_destroy(context);
}

int main(void) {
    test_snippet_network();
    test_reversed_time();
    return check_report();
}
