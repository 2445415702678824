/* Step caching: what is reused and when, sample by sample; that it changes nothing where it is off; counts, refusals
 * and allocations. */
#include "../src/cache.h"
#include "../src/network.h"

#include "check.h"
#include "failing.h"
#include "golden.h"

/* the cache alone ------------------------------------------------------------------------------------------------- */

enum { HIDDEN = 2, TOKENS = 3, SLOTS = 4, HELD = SLOTS * HIDDEN * TOKENS };

typedef struct held {
    float first[HELD], rest[HELD], start[HELD];
    unsigned char filled[SLOTS];
    int64_t computed[SLOTS];
} held;

static gmem__engine small_engine(void) {
    gmem__engine engine;
    memset(&engine, 0, sizeof engine);
    engine.ops = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    return engine;
}

static gmem__cache small_cache(held *memory, double threshold) {
    gmem__cache cache;
    memset(&cache, 0, sizeof cache);
    memset(memory, 0x7f, sizeof *memory);
    cache.threshold = threshold;
    cache.slots = SLOTS;
    cache.hidden = HIDDEN;
    cache.tokens = TOKENS;
    cache.first = memory->first;
    cache.rest = memory->rest;
    cache.start = memory->start;
    cache.filled = memory->filled;
    cache.computed = memory->computed;
    gmem__cache_reset(&cache);
    return cache;
}

/* A pass over `batch` samples whose stream is `begin`, in which the first block adds by[i] to all of sample i and the
 * others add `rest` to what they see. Leaves each sample's value in `out`. */
static void small_pass(gmem__cache *cache, int64_t slot, int64_t batch, float begin, const float *by, float rest,
                       float *out) {
    float x[HELD] = {0};
    const int64_t columns = batch * TOKENS;
    const gmem__engine engine = small_engine();
    for (int64_t i = 0; i < HIDDEN * columns; i++)
        x[i] = begin;
    gmem__cache_enter(cache, &engine, batch, x);
    for (int64_t i = 0; i < HIDDEN * columns; i++)
        x[i] += by[i % columns / TOKENS];
    gmem__cache_split(cache, &engine, slot, batch, x);
    for (int64_t i = 0; i < HIDDEN * cache->computed_count * TOKENS; i++) {
        CHECK(x[i] == begin + by[cache->computed[i % (cache->computed_count * TOKENS) / TOKENS]]);
        x[i] += rest;
    }
    gmem__cache_join(cache, &engine, slot, batch, x);
    for (int64_t i = 0; i < HIDDEN * columns; i++) {
        if (i < columns) out[i / TOKENS] = x[i / TOKENS * TOKENS];
        CHECK(x[i] == out[i % columns / TOKENS]);
    }
}

static void test_small(void) {
    static const float first[SLOTS] = {4, 8, 16, 32}, second[SLOTS] = {5, 12, 17, 12}, third[SLOTS] = {6, 13, 18, 13};
    static held memory;
    float out[SLOTS];
    gmem__cache cache = small_cache(&memory, 0.26);
    small_pass(&cache, 0, 4, 1, first, 100, out); /* nothing to reuse */
    CHECK(out[0] == 105 && out[1] == 109 && out[2] == 117 && out[3] == 133);
    CHECK_INT(cache.counts.reused, 0);
    small_pass(&cache, 0, 4, 2, second, 200, out); /* the second and the last changed by more */
    CHECK(out[0] == 107 && out[1] == 214 && out[2] == 119 && out[3] == 214);
    CHECK_INT(cache.counts.reused, 2);
    small_pass(&cache, 0, 4, 3, third, 300, out); /* small changes add up: 4 to 6 is more than a quarter */
    CHECK(out[0] == 309 && out[1] == 216 && out[2] == 121 && out[3] == 216);
    CHECK_INT(cache.counts.passes, 12);
    CHECK_INT(cache.counts.reused, 5);
    small_pass(&cache, 2, 2, 3, third + 1, 400, out); /* slots 2 and 3: 16 to 13, 12 to 18 */
    CHECK(out[0] == 116 && out[1] == 421);
    gmem__cache_reset(&cache);
    CHECK_INT(cache.counts.passes, 0);
    small_pass(&cache, 0, 2, 3, third, 500, out);
    CHECK(out[0] == 509 && out[1] == 516);
}

static void test_nonfinite(void) {
    static const float good[1] = {1}, bad[1] = {NAN};
    static held memory;
    float x[HIDDEN * TOKENS], out[1];
    const gmem__engine engine = small_engine();
    gmem__cache cache = small_cache(&memory, 1e30);
    small_pass(&cache, 0, 1, 1, good, 1, out);
    for (int i = 0; i < HIDDEN * TOKENS; i++)
        x[i] = bad[0];
    gmem__cache_enter(&cache, &engine, 1, x);
    gmem__cache_split(&cache, &engine, 0, 1, x);
    CHECK_INT(cache.computed_count, 1); /* never hidden by what is remembered */
}

/* in a sampling --------------------------------------------------------------------------------------------------- */

enum { PER_PICTURE = 512, WIDTH = 768, STEPS = 15 };

static gmem_sampler_desc sampler_of(gmem_method method, double threshold) {
    gmem_sampler_desc sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.method = method;
    sampler.steps = STEPS;
    sampler.cache_threshold = threshold;
    return sampler;
}

/* Guided between times that leave intervals of one half alone on both sides. */
static gmem_sampler_desc guided_of(gmem_method method, double threshold) {
    gmem_sampler_desc sampler = sampler_of(method, threshold);
    sampler.cfg_scale = 2;
    sampler.cfg_start = 0.25;
    sampler.cfg_end = 0.75;
    return sampler;
}

static gmem_reuse sample(const gmem_network *network, const gmem_sampler_desc *sampler, int64_t picture, int64_t batch,
                         const float *snippets, float *x, int64_t *passes) {
    gmem_rng rng;
    gmem_sample_desc desc;
    gmem_error error;
    gmem_reuse reuse = {-1, -1};
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 5);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, picture, batch, PER_PICTURE, x);
    desc.sampler = *sampler;
    desc.batch = batch;
    desc.snippets = snippets + picture * WIDTH;
    desc.rng = &rng;
    desc.picture = picture;
    desc.passes = passes;
    desc.reuse = &reuse;
    if (!CHECK_OK(gmem_sample(network, &desc, x, &error))) printf("  %s\n", error.message);
    return reuse;
}

static const gmem_method methods[] = {GMEM_EULER,      GMEM_MIDPOINT,  GMEM_HEUN2,   GMEM_HEUN3, GMEM_RK4,
                                      GMEM_SDE_EULER,  GMEM_SDE_HEUN,  GMEM_AB2,     GMEM_AB3,   GMEM_DPMPP2M,
                                      GMEM_REPA_EULER, GMEM_REPA_HEUN, GMEM_REPA_SDE};
enum { METHODS = sizeof methods / sizeof *methods };

/* A threshold that nothing stays below computes the same bits as none; one that everything stays below leaves the first
 * pass of each picture, and of each half of it. */
static void test_extremes(const gmem_network *network, const float *snippets) {
    static float off[2 * PER_PICTURE], on[2 * PER_PICTURE];
    for (int i = 0; i < METHODS; i++) {
        for (int guided = 0; guided < 2; guided++) {
            int64_t passes = 0, same = 0;
            gmem_sampler_desc sampler = guided ? guided_of(methods[i], 0) : sampler_of(methods[i], 0);
            gmem_reuse reuse = sample(network, &sampler, 0, 2, snippets, off, &passes);
            CHECK_INT(reuse.passes, 0);
            CHECK_INT(reuse.reused, 0);
            sampler.cache_threshold = 1e-30;
            reuse = sample(network, &sampler, 0, 2, snippets, on, &same);
            CHECK(memcmp(off, on, sizeof off) == 0);
            CHECK_INT(same, passes);
            CHECK_INT(reuse.reused, 0);
            if (!guided) CHECK_INT(reuse.passes, 2 * passes);
            if (guided) CHECK(reuse.passes > 2 * passes && reuse.passes < 4 * passes);
            sampler.cache_threshold = 1e30;
            const gmem_reuse most = sample(network, &sampler, 0, 2, snippets, on, &same);
            CHECK_INT(most.passes, reuse.passes);
            CHECK_INT(most.reused, most.passes - (guided ? 4 : 2));
            CHECK(memcmp(off, on, sizeof off) != 0);
        }
    }
}

/* Nearer to the exact result than when everything is reused, and with fewer passes than without. */
static void test_between(const gmem_network *network, const float *snippets) {
    static float exact[PER_PICTURE], between[PER_PICTURE], rough[PER_PICTURE];
    int64_t passes;
    gmem_sampler_desc sampler = sampler_of(GMEM_EULER, 0);
    sample(network, &sampler, 0, 1, snippets, exact, &passes);
    sampler.cache_threshold = 1e30;
    sample(network, &sampler, 0, 1, snippets, rough, &passes);
    sampler.cache_threshold = 0.3;
    const gmem_reuse reuse = sample(network, &sampler, 0, 1, snippets, between, &passes);
    CHECK(reuse.reused > 0 && reuse.reused < reuse.passes - 1);
    CHECK(check_relative_l2(between, exact, PER_PICTURE) < 0.5 * check_relative_l2(rough, exact, PER_PICTURE));
}

/* Each picture decides for itself: together as alone, in the same passes. */
static void test_batches(const gmem_network *network, const float *snippets, gmem_sampler_desc sampler) {
    static float both[2 * PER_PICTURE], one[PER_PICTURE], two[PER_PICTURE];
    int64_t passes;
    const gmem_reuse together = sample(network, &sampler, 0, 2, snippets, both, &passes);
    const gmem_reuse first = sample(network, &sampler, 0, 1, snippets, one, &passes);
    const gmem_reuse second = sample(network, &sampler, 1, 1, snippets, two, &passes);
    CHECK_CLOSE("the first alone", one, both, PER_PICTURE, 1e-6);
    CHECK_CLOSE("the second alone", two, both + PER_PICTURE, PER_PICTURE, 1e-6);
    CHECK_INT(together.passes, first.passes + second.passes);
    CHECK_INT(together.reused, first.reused + second.reused);
    CHECK(first.reused != second.reused); /* so that passes were divided */
}

/* What is remembered is never of a later time: the times of every method that may cache go one way. */
static void test_order(void) {
    for (int i = 0; i < METHODS; i++) {
        double times[256];
        gmem_sampler_desc resolved, sampler = sampler_of(methods[i], 0.1);
        CHECK_OK(gmem_sampler_check(&sampler, 0, &resolved, NULL));
        const int64_t count = gmem_sampler_times(&resolved, times, 256);
        const double way = times[count - 1] > times[0] ? 1 : -1;
        CHECK(count > 1 && count <= 256);
        for (int64_t j = 1; j < count; j++)
            CHECK(way * (times[j] - times[j - 1]) >= 0);
    }
}

static gmem_status still(void *user, const gmem_velocity_call *call, gmem_error *error) {
    (void)user;
    (void)error;
    memset(call->conditional, 0, (size_t)(call->batch * call->per_picture) * sizeof(float));
    return GMEM_OK;
}

static void test_refusals(gmem_context *context) {
    gmem_sampler_desc sampler = sampler_of(GMEM_DOPRI5, 0.1);
    gmem_integrate_desc desc;
    float x[1] = {1};
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_sampler_check(&sampler, 0, NULL, NULL));
    sampler = sampler_of(GMEM_EULER, -0.1);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sampler_check(&sampler, 0, NULL, NULL));
    sampler.cache_threshold = NAN;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sampler_check(&sampler, 0, NULL, NULL));
    sampler.cache_threshold = INFINITY;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sampler_check(&sampler, 0, NULL, NULL));
    memset(&desc, 0, sizeof desc);
    desc.sampler = sampler_of(GMEM_EULER, 0.1);
    desc.batch = desc.per_picture = 1;
    desc.velocity = still;
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_integrate(context, &desc, x, NULL));
    desc.sampler.cache_threshold = 0;
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
}

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

/* Everything is allocated before the first step, and a lack of memory leaves no trace. */
static void test_memory(const gmem_network *network, failing *memory, const float *snippets) {
    enum { PLENTY = 1 << 30 };
    float x[PER_PICTURE] = {0}, before[PER_PICTURE] = {0};
    gmem_sample_desc desc;
    gmem_reuse reuse = {-7, -7};
    watched w = {memory, 0, 0};
    const int64_t live = memory->live;
    memset(&desc, 0, sizeof desc);
    desc.sampler = guided_of(GMEM_EULER, 0.2);
    desc.batch = 1;
    desc.snippets = snippets;
    desc.reuse = &reuse;
    for (int64_t i = 0; i < 2; i++) {
        memory->countdown = i;
        CHECK_STATUS(GMEM_E_MEMORY, gmem_sample(network, &desc, x, NULL));
        CHECK(memcmp(x, before, sizeof x) == 0);
        CHECK_INT(memory->live, live);
        CHECK_INT(reuse.passes, -7);
    }
    memory->countdown = PLENTY;
    desc.progress = watch;
    desc.progress_user = &w;
    CHECK_OK(gmem_sample(network, &desc, x, NULL));
    CHECK_INT(w.last, w.first);
    CHECK_INT(memory->live, live);
    CHECK(reuse.passes > 0);
    memory->countdown = -1;
}

int main(void) {
    failing memory = {-1, 0, 0};
    gmem_context *context = failing_context(&memory);
    golden_case dit = golden_case_open(context, "dit_base", NULL);
    gmem_file *recording = golden_open(context, "sample_ode_euler20.safetensors");
    float *snippets = golden_f32(recording, "c", NULL);
    test_small();
    test_nonfinite();
    test_extremes(dit.network, snippets);
    test_between(dit.network, snippets);
    test_batches(dit.network, snippets, sampler_of(GMEM_EULER, 0.056));
    test_batches(dit.network, snippets, sampler_of(GMEM_SDE_HEUN, 0.12));
    test_batches(dit.network, snippets, guided_of(GMEM_AB2, 0.12));
    test_order();
    test_refusals(context);
    test_memory(dit.network, &memory, snippets);
    free(snippets);
    gmem_file_close(recording);
    golden_case_close(&dit);
    gmem_context_destroy(context);
    CHECK_INT(memory.live, 0);
    return check_report();
}
