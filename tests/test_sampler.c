/* The samplers with velocities of our own: orders of convergence, Gaussians, numbers of passes, guidance, refusals,
 * cancelling and failures. */
#include "check.h"
#include "failing.h"
#include "golden.h"

#include "../src/sampler.h"

#include <fenv.h>

/* velocities of our own ------------------------------------------------------------------------------------------ */

enum { FIELD_BATCH = 2, FIELD_SIZE = 6, FIELD_COUNT = FIELD_BATCH * FIELD_SIZE };

/* What a field was asked. */
typedef struct asked {
    int64_t calls, conditional, unconditional;
    double times[512];
    int fail_at, nonfinite_at; /* 1-based calls; 0: never */
} asked;

static void note(asked *log, const gmem_velocity_call *call) {
    if (log->calls < 512) log->times[log->calls] = call->t;
    log->calls++;
    log->conditional += call->conditional != NULL;
    log->unconditional += call->unconditional != NULL;
}

/* dx/dt = (2 t + 1) x, so x(1) = e^2 x(0); the unconditional half is 1 everywhere. */
#define FIELD_GROWTH exp(2.0)

static gmem_status growing(void *user, const gmem_velocity_call *call, gmem_error *error) {
    asked *log = (asked *)user;
    (void)error;
    note(log, call);
    if (log->calls == log->fail_at) return GMEM_E_READ;
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        if (call->conditional) call->conditional[i] = (float)((2 * call->t + 1) * (double)call->x[i]);
        if (call->unconditional) call->unconditional[i] = 1;
    }
    if (log->calls == log->nonfinite_at) call->conditional[call->per_picture - 1] = INFINITY;
    return GMEM_OK;
}

static gmem_integrate_desc field_desc(gmem_method method, int steps, asked *log) {
    gmem_integrate_desc desc;
    memset(&desc, 0, sizeof desc);
    memset(log, 0, sizeof *log);
    desc.sampler.method = method;
    desc.sampler.steps = steps;
    desc.batch = FIELD_BATCH;
    desc.per_picture = FIELD_SIZE;
    desc.velocity = growing;
    desc.velocity_user = log;
    return desc;
}

static void field_start(float *x) {
    for (int i = 0; i < FIELD_COUNT; i++) {
        x[i] = (float)(i - 4) * 0.25f;
    }
}

static double field_error(gmem_context *context, gmem_method method, double shift, int intervals) {
    asked log;
    float x[FIELD_COUNT], exact[FIELD_COUNT];
    gmem_integrate_desc desc = field_desc(method, intervals + 1, &log);
    desc.sampler.timestep_shift = shift;
    field_start(x);
    for (int i = 0; i < FIELD_COUNT; i++) {
        exact[i] = (float)((double)x[i] * FIELD_GROWTH);
    }
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    return check_relative_l2(x, exact, FIELD_COUNT);
}

static void test_orders(gmem_context *context) {
    static const struct {
        gmem_method method;
        int intervals;
        double order, shift;
    } cases[] = {{GMEM_EULER, 64, 1, 0}, {GMEM_MIDPOINT, 32, 2, 0}, {GMEM_HEUN2, 32, 2, 0},
                 {GMEM_HEUN3, 16, 3, 0}, {GMEM_RK4, 8, 4, 0},       {GMEM_AB2, 64, 2, 0},
                 {GMEM_AB2, 64, 2, 0.3}, {GMEM_AB3, 64, 3, 0},      {GMEM_AB3, 64, 3, 0.3}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double coarse = field_error(context, cases[i].method, cases[i].shift, cases[i].intervals);
        double fine = field_error(context, cases[i].method, cases[i].shift, 2 * cases[i].intervals);
        double order = log2(coarse / fine);
        if (!CHECK(fabs(order - cases[i].order) < 0.25))
            printf("  method %d: order %g, errors %g and %g\n", (int)cases[i].method, order, coarse, fine);
    }
}

static void test_dopri5(gmem_context *context) {
    asked log;
    float x[FIELD_COUNT], exact[FIELD_COUNT];
    int64_t passes = 0;
    gmem_integrate_desc desc = field_desc(GMEM_DOPRI5, 0, &log);
    desc.sampler.atol = 1e-9;
    desc.sampler.rtol = 1e-7;
    desc.passes = &passes;
    field_start(x);
    for (int i = 0; i < FIELD_COUNT; i++) {
        exact[i] = (float)((double)x[i] * FIELD_GROWTH);
    }
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_CLOSE("dopri5", x, exact, FIELD_COUNT, 2e-6);
    CHECK_INT(passes, log.calls);
    CHECK_INT((passes - 2) % 6, 0);
    CHECK_INT(gmem_sampler_times(&desc.sampler, NULL, 0), 0);
    int64_t loose = 0;
    desc = field_desc(GMEM_DOPRI5, 0, &log);
    desc.passes = &loose;
    field_start(x);
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_CLOSE("dopri5, default tolerances", x, exact, FIELD_COUNT, 1e-2);
    CHECK(loose < passes);
}

/* Data from N(0, s^2): every prediction is a known multiple of x, and every sampler must end with deviation s. */
typedef struct gaussian {
    gmem_path path;
    gmem_prediction prediction;
    double s;
} gaussian;

static double gaussian_factor(const gaussian *g, double t) {
    const double half_pi = 1.5707963267948966;
    double a = t, da = 1, s = 1 - t, ds = -1;
    if (g->path == GMEM_PATH_GVP) {
        a = sin(half_pi * t), da = half_pi * cos(half_pi * t);
        s = cos(half_pi * t), ds = -half_pi * sin(half_pi * t);
    } else if (g->path == GMEM_PATH_VP) {
        double u = 1 - t, rate = 0.5 * u * 19.9 + 0.05;
        a = exp(-0.25 * u * u * 19.9 - 0.05 * u), da = a * rate;
        s = sqrt(1 - a * a), ds = -a * da / s;
    }
    double variance = a * a * g->s * g->s + s * s;
    if (g->prediction == GMEM_PREDICT_NOISE) return s / variance;
    if (g->prediction == GMEM_PREDICT_SCORE) return -1 / variance;
    return (a * da * g->s * g->s + s * ds) / variance;
}

static gmem_status gaussian_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    double factor = gaussian_factor((const gaussian *)user, call->t);
    (void)error;
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        call->conditional[i] = (float)(factor * (double)call->x[i]);
    }
    return GMEM_OK;
}

/* From noise, how far the end is from where the flow of a Gaussian leads: x keeps its place among the deviations. */
static double gaussian_error(gmem_context *context, gmem_method method, gaussian *g, double shift, int intervals) {
    asked log;
    float x[FIELD_COUNT], exact[FIELD_COUNT];
    gmem_sampler_desc resolved;
    gmem_integrate_desc desc = field_desc(method, intervals + 1, &log);
    desc.sampler.path = g->path;
    desc.sampler.prediction = g->prediction;
    desc.sampler.timestep_shift = shift;
    desc.velocity = gaussian_velocity;
    desc.velocity_user = g;
    CHECK_OK(gmem_sampler_check(&desc.sampler, 0, &resolved, NULL));
    const gmem__plan plan = gmem__plan_make(&resolved);
    const gmem__path_point from = gmem__path_at(g->path, gmem__plan_time(&plan, 0));
    const gmem__path_point to = gmem__path_at(g->path, gmem__plan_time(&plan, intervals));
    const double factor = sqrt((gmem__square(to.alpha * g->s) + to.sigma * to.sigma) /
                               (gmem__square(from.alpha * g->s) + from.sigma * from.sigma));
    field_start(x);
    for (int i = 0; i < FIELD_COUNT; i++) {
        exact[i] = (float)((double)x[i] * factor);
    }
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    return check_relative_l2(x, exact, FIELD_COUNT);
}

/* DPM-Solver++(2M)'s error is h^2 log(1 / h) where lambda is infinite at both ends: an order that nears 2 slowly. */
static void test_dpmpp_order(gmem_context *context, gmem_path path, gmem_prediction prediction, double shift) {
    gaussian g = {path, prediction, 2};
    double coarse = gaussian_error(context, GMEM_DPMPP2M, &g, shift, 200);
    double fine = gaussian_error(context, GMEM_DPMPP2M, &g, shift, 400);
    double order = log2(coarse / fine);
    if (!CHECK(order > 1.7 && order < 2.3))
        printf("  path %d, prediction %d, shift %g: order %g, errors %g and %g\n", (int)path, (int)prediction, shift,
               order, coarse, fine);
}

static void test_dpmpp_orders(gmem_context *context) {
    for (int path = 0; path < 3; path++) {
        for (int prediction = 0; prediction < 3; prediction++) {
            test_dpmpp_order(context, (gmem_path)path, (gmem_prediction)prediction, 0);
        }
    }
    test_dpmpp_order(context, GMEM_PATH_LINEAR, GMEM_PREDICT_VELOCITY, 0.3);
    test_dpmpp_order(context, GMEM_PATH_LINEAR, GMEM_PREDICT_NOISE, 0.3);
}

/* Where the data is one point, DPM-Solver++ is exact in any number of intervals. */
static gmem_status to_one_point(void *user, const gmem_velocity_call *call, gmem_error *error) {
    const gaussian *g = (const gaussian *)user; /* s: the point */
    const gmem__path_point at = gmem__path_at(g->path, call->t);
    (void)error;
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        const double noise = ((double)call->x[i] - at.alpha * g->s) / at.sigma;
        const double say[3] = {at.d_alpha * g->s + at.d_sigma * noise, noise, -noise / at.sigma};
        call->conditional[i] = (float)say[g->prediction];
    }
    return GMEM_OK;
}

static void test_dpmpp_exact(gmem_context *context) {
    for (int path = 0; path < 3; path++) {
        for (int prediction = 0; prediction < 3; prediction++) {
            for (int intervals = 1; intervals < 6; intervals++) {
                asked log;
                float x[FIELD_COUNT], exact[FIELD_COUNT];
                gmem_sampler_desc resolved;
                gaussian g = {(gmem_path)path, (gmem_prediction)prediction, -1.5};
                gmem_integrate_desc desc = field_desc(GMEM_DPMPP2M, intervals + 1, &log);
                desc.sampler.path = g.path;
                desc.sampler.prediction = g.prediction;
                desc.velocity = to_one_point;
                desc.velocity_user = &g;
                CHECK_OK(gmem_sampler_check(&desc.sampler, 0, &resolved, NULL));
                const gmem__plan plan = gmem__plan_make(&resolved);
                const gmem__path_point from = gmem__path_at(g.path, plan.start), to = gmem__path_at(g.path, plan.end);
                field_start(x);
                for (int i = 0; i < FIELD_COUNT; i++) {
                    const double noise = ((double)x[i] - from.alpha * g.s) / from.sigma;
                    exact[i] = (float)(to.alpha * g.s + to.sigma * noise);
                }
                CHECK_OK(gmem_integrate(context, &desc, x, NULL));
                CHECK_CLOSE("one point", x, exact, FIELD_COUNT, 2e-4);
            }
        }
    }
}

/* One interval has nothing to remember. */
static void test_one_interval(gmem_context *context) {
    static const gmem_method same[][2] = {{GMEM_AB2, GMEM_EULER}, {GMEM_DPMPP2M, GMEM_EULER}, {GMEM_AB3, GMEM_HEUN2}};
    for (int i = 0; i < 3; i++) {
        asked log;
        float x[FIELD_COUNT], y[FIELD_COUNT];
        gmem_integrate_desc desc = field_desc(same[i][0], 2, &log);
        field_start(x);
        field_start(y);
        CHECK_OK(gmem_integrate(context, &desc, x, NULL));
        desc = field_desc(same[i][1], 2, &log);
        CHECK_OK(gmem_integrate(context, &desc, y, NULL));
        CHECK_CLOSE("one interval", x, y, FIELD_COUNT, 1e-6);
    }
}

static gmem_status constant(void *user, const gmem_velocity_call *call, gmem_error *error) {
    (void)error;
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        call->conditional[i] = (float)((const gaussian *)user)->s;
    }
    return GMEM_OK;
}

/* A shift that leaves neighbouring times equal in f32. */
static void test_equal_times(gmem_context *context) {
    static const gmem_method multistep[] = {GMEM_AB2, GMEM_AB3, GMEM_DPMPP2M};
    for (int i = 0; i < 3; i++) {
        asked log;
        float x[FIELD_COUNT], exact[FIELD_COUNT];
        gaussian g = {GMEM_PATH_LINEAR, GMEM_PREDICT_VELOCITY, -1.5};
        gmem_integrate_desc desc = field_desc(multistep[i], 400, &log);
        desc.sampler.timestep_shift = 1e6;
        desc.velocity = constant;
        field_start(x);
        for (int j = 0; j < FIELD_COUNT; j++) {
            exact[j] = x[j] + (float)g.s;
        }
        desc.velocity_user = &g;
        CHECK_OK(gmem_integrate(context, &desc, x, NULL));
        CHECK_CLOSE("equal times", x, exact, FIELD_COUNT, 1e-4);
    }
}

static gmem_status generator(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                             gmem_error *error) {
    (void)error;
    gmem_rng_normal((gmem_rng *)user, GMEM_DRAW_STEP, index, 0, batch, per_picture, out);
    return GMEM_OK;
}

static void test_one_gaussian(gmem_context *context, gmem_method method, gmem_path path, gmem_prediction prediction,
                              gmem_diffusion_form form, double tolerance) {
    enum { COUNT = 6000 };
    static float x[COUNT];
    gaussian g = {path, prediction, 0.5};
    gmem_rng rng;
    gmem_integrate_desc desc;
    gmem_error error;
    double sum = 0;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 11);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, COUNT, x);
    desc.sampler.method = method;
    desc.sampler.steps = 100;
    desc.sampler.path = path;
    desc.sampler.prediction = prediction;
    desc.sampler.diffusion_form = form;
    desc.batch = 1;
    desc.per_picture = COUNT;
    desc.velocity = gaussian_velocity;
    desc.velocity_user = &g;
    desc.noise = generator;
    desc.noise_user = &rng;
    if (!CHECK_OK(gmem_integrate(context, &desc, x, &error))) printf("  %s\n", error.message);
    for (int i = 0; i < COUNT; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    double deviation = sqrt(sum / COUNT);
    if (!CHECK(fabs(deviation / g.s - 1) < tolerance))
        printf("  method %d, path %d, prediction %d, form %d: deviation %g\n", (int)method, (int)path, (int)prediction,
               (int)form, deviation);
}

static void test_gaussians(gmem_context *context) {
    for (int path = 0; path < 3; path++) {
        for (int prediction = 0; prediction < 3; prediction++) {
            static const gmem_method odes[] = {GMEM_RK4, GMEM_AB2, GMEM_AB3, GMEM_DPMPP2M};
            for (int i = 0; i < 4; i++) {
                test_one_gaussian(context, odes[i], (gmem_path)path, (gmem_prediction)prediction,
                                  GMEM_DIFFUSION_DEFAULT, 0.03);
            }
            for (int form = 1; form <= GMEM_DIFFUSION_INCREASING_DECREASING; form++) {
                if (form == GMEM_DIFFUSION_SBDM && path != GMEM_PATH_VP) continue; /* stiff at the start, or refused */
                test_one_gaussian(context, GMEM_SDE_HEUN, (gmem_path)path, (gmem_prediction)prediction,
                                  (gmem_diffusion_form)form, 0.06);
                test_one_gaussian(context, GMEM_SDE_EULER, (gmem_path)path, (gmem_prediction)prediction,
                                  (gmem_diffusion_form)form, 0.1);
            }
        }
    }
}

/* passes, times, progress ---------------------------------------------------------------------------------------- */

typedef struct reports {
    int64_t count, last_step, steps, passes, total_passes;
    double t;
    int cancel_at;
} reports;

static int report(void *user, const gmem_progress *progress) {
    reports *r = (reports *)user;
    r->count++;
    CHECK_INT(progress->step, r->count);
    CHECK(progress->x != NULL && progress->passes > r->passes);
    r->last_step = progress->step;
    r->steps = progress->steps;
    r->passes = progress->passes;
    r->total_passes = progress->total_passes;
    r->t = progress->t;
    return r->count == r->cancel_at;
}

static gmem_status no_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                            gmem_error *error) {
    (void)user;
    (void)index;
    (void)error;
    memset(out, 0, (size_t)(batch * per_picture) * sizeof *out);
    return GMEM_OK;
}

static void test_passes(gmem_context *context) {
    static const struct {
        gmem_method method;
        gmem_last_step last;
        int steps;
        int64_t passes, reported;
        double end;
    } cases[] = {
        {GMEM_METHOD_DEFAULT, GMEM_LAST_DEFAULT, 0, 99, 50, 1}, /* as published */
        {GMEM_SDE_HEUN, GMEM_LAST_TWEEDIE, 50, 99, 50, 1},      {GMEM_SDE_EULER, GMEM_LAST_MEAN, 50, 50, 50, 1},
        {GMEM_SDE_EULER, GMEM_LAST_NONE, 50, 49, 49, 1},        {GMEM_EULER, GMEM_LAST_DEFAULT, 50, 49, 49, 1},
        {GMEM_MIDPOINT, GMEM_LAST_DEFAULT, 50, 98, 49, 1},      {GMEM_HEUN2, GMEM_LAST_DEFAULT, 50, 98, 49, 1},
        {GMEM_HEUN3, GMEM_LAST_DEFAULT, 50, 147, 49, 1},        {GMEM_RK4, GMEM_LAST_DEFAULT, 50, 196, 49, 1},
        {GMEM_REPA_EULER, GMEM_LAST_DEFAULT, 50, 50, 50, 0},    {GMEM_REPA_HEUN, GMEM_LAST_DEFAULT, 50, 99, 50, 0},
        {GMEM_REPA_SDE, GMEM_LAST_DEFAULT, 0, 250, 250, 0},     {GMEM_REPA_SDE, GMEM_LAST_DEFAULT, 1, 1, 1, 0},
        {GMEM_REPA_HEUN, GMEM_LAST_DEFAULT, 1, 1, 1, 0},        {GMEM_SDE_HEUN, GMEM_LAST_DEFAULT, 2, 3, 2, 1},
        {GMEM_AB2, GMEM_LAST_DEFAULT, 50, 49, 49, 1},           {GMEM_AB3, GMEM_LAST_DEFAULT, 50, 50, 49, 1},
        {GMEM_DPMPP2M, GMEM_LAST_DEFAULT, 50, 49, 49, 1},       {GMEM_AB3, GMEM_LAST_DEFAULT, 2, 2, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        asked log;
        reports r = {0, 0, 0, 0, 0, 0, 0};
        float x[FIELD_COUNT];
        double times[512];
        int64_t passes = 0;
        gmem_sampler_desc resolved;
        gmem_integrate_desc desc = field_desc(cases[i].method, cases[i].steps, &log);
        desc.sampler.last_step = cases[i].last;
        desc.noise = no_noise;
        desc.progress = report;
        desc.progress_user = &r;
        desc.passes = &passes;
        field_start(x);
        CHECK_OK(gmem_integrate(context, &desc, x, NULL));
        CHECK_INT(passes, cases[i].passes);
        CHECK_INT(log.calls, cases[i].passes);
        CHECK_INT(r.total_passes, cases[i].passes);
        CHECK_INT(r.count, cases[i].reported);
        CHECK_INT(r.steps, cases[i].reported);
        CHECK(fabs(r.t - cases[i].end) < 1e-6);
        CHECK_OK(gmem_sampler_check(&desc.sampler, 0, &resolved, NULL));
        CHECK_INT(gmem_sampler_times(&resolved, times, 512), log.calls);
        CHECK(memcmp(times, log.times, (size_t)log.calls * sizeof times[0]) == 0);
        CHECK_INT(gmem_sampler_times(&resolved, times, 1), log.calls);
    }
}

/* guidance ------------------------------------------------------------------------------------------------------- */

static void test_guidance_halves(gmem_context *context) {
    asked log;
    float x[FIELD_COUNT];
    gmem_integrate_desc desc = field_desc(GMEM_EULER, 11, &log); /* t = 0, 0.1 ... 0.9 */
    desc.sampler.cfg_scale = 2;
    desc.sampler.cfg_start = 0.3;
    desc.sampler.cfg_end = 0.8;
    field_start(x);
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_INT(log.calls, 10);
    CHECK_INT(log.conditional, 9);   /* all but 0.9 */
    CHECK_INT(log.unconditional, 7); /* 0.3 to 0.9 */

    desc = field_desc(GMEM_AB2, 11, &log); /* the same times */
    desc.sampler.cfg_scale = 2;
    desc.sampler.cfg_start = 0.3;
    desc.sampler.cfg_end = 0.8;
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_INT(log.calls, 10);
    CHECK_INT(log.conditional, 9);
    CHECK_INT(log.unconditional, 7);

    desc = field_desc(GMEM_REPA_HEUN, 10, &log); /* t = 1, 0.9 ... 0.1 */
    desc.sampler.cfg_scale = 2;
    desc.sampler.cfg_end = 0.7;
    field_start(x);
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_INT(log.calls, 19);
    CHECK_INT(log.conditional, 19);
    CHECK_INT(log.unconditional, 13); /* both stages from 0.7, one in the last step */

    desc = field_desc(GMEM_EULER, 11, &log);
    desc.sampler.cfg_scale = 1; /* no guidance, whatever the interval */
    desc.sampler.cfg_start = 0.3;
    field_start(x);
    CHECK_OK(gmem_integrate(context, &desc, x, NULL));
    CHECK_INT(log.unconditional, 0);
}

static gmem_status two_and_one(void *user, const gmem_velocity_call *call, gmem_error *error) {
    (void)user;
    (void)error;
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        if (call->conditional) call->conditional[i] = 2;
        if (call->unconditional) call->unconditional[i] = 1;
    }
    return GMEM_OK;
}

static void test_guidance_values(gmem_context *context) {
    asked log;
    gmem_integrate_desc desc = field_desc(GMEM_EULER, 2, &log);
    desc.velocity = two_and_one;
    desc.sampler.cfg_scale = 4;
    for (int guided = 0; guided <= 3; guided++) { /* of 3 channels of 2 elements; 0: all */
        float x[FIELD_COUNT] = {0}, expected[FIELD_COUNT];
        desc.channels = 3;
        desc.sampler.cfg_channels = guided;
        for (int i = 0; i < FIELD_COUNT; i++) {
            expected[i] = guided == 0 || i % FIELD_SIZE < 2 * guided ? 5 : 2; /* 1 + 4 (2 - 1), or 2 */
        }
        CHECK_OK(gmem_integrate(context, &desc, x, NULL));
        CHECK_CLOSE("guided channels", x, expected, FIELD_COUNT, 0);
    }
    float x[FIELD_COUNT] = {0};
    desc.sampler.cfg_channels = 4;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_integrate(context, &desc, x, NULL));
    static const gmem_method multistep[] = {GMEM_AB2, GMEM_AB3, GMEM_DPMPP2M};
    for (int i = 0; i < 3; i++) { /* a guided velocity of 5 throughout */
        float y[FIELD_COUNT] = {0}, five[FIELD_COUNT];
        desc = field_desc(multistep[i], 8, &log);
        desc.velocity = two_and_one;
        desc.sampler.cfg_scale = 4;
        for (int j = 0; j < FIELD_COUNT; j++) {
            five[j] = 5;
        }
        CHECK_OK(gmem_integrate(context, &desc, y, NULL));
        CHECK_CLOSE("guided", y, five, FIELD_COUNT, 1e-6);
    }
}

/* refusals and failures ------------------------------------------------------------------------------------------ */

static void refuse(const char *what, gmem_status expected, const gmem_sampler_desc *desc) {
    gmem_error error;
    gmem_sampler_desc resolved, before;
    memset(&error, 0, sizeof error);
    memset(&resolved, 1, sizeof resolved);
    before = resolved;
    if (!CHECK_STATUS(expected, gmem_sampler_check(desc, 0, &resolved, &error))) printf("  %s\n", what);
    CHECK(error.message[0] != 0 && strchr(error.message, '\n') == NULL);
    CHECK(memcmp(&resolved, &before, sizeof resolved) == 0);
}

#define REFUSE(code, setting)                 \
    do {                                      \
        gmem_sampler_desc desc;               \
        memset(&desc, 0, sizeof desc);        \
        setting;                              \
        refuse(#setting, GMEM_##code, &desc); \
    } while (0)

#define ACCEPT(setting)                                               \
    do {                                                              \
        gmem_sampler_desc desc, once, twice;                          \
        memset(&desc, 0, sizeof desc);                                \
        setting;                                                      \
        CHECK_OK(gmem_sampler_check(&desc, 0, &once, NULL));          \
        CHECK_OK(gmem_sampler_check(&once, 0, &twice, NULL));         \
        CHECK(memcmp(&once, &twice, sizeof once) == 0); /* settled */ \
    } while (0)

static void test_refusals(void) {
    /* infinite at one end of the interval */
    REFUSE(E_COMBINATION, desc.diffusion_form = GMEM_DIFFUSION_SBDM);
    REFUSE(E_COMBINATION, (desc.diffusion_form = GMEM_DIFFUSION_SBDM, desc.path = GMEM_PATH_GVP));
    REFUSE(E_COMBINATION, desc.last_step = GMEM_LAST_NONE);
    REFUSE(E_COMBINATION, (desc.last_step = GMEM_LAST_NONE, desc.path = GMEM_PATH_GVP));
    REFUSE(E_COMBINATION, desc.last_step_size = -1);
    REFUSE(E_COMBINATION, desc.last_step_size = 1e-9);
    REFUSE(E_COMBINATION, (desc.last_step_size = -1, desc.last_step = GMEM_LAST_EULER));
    REFUSE(E_COMBINATION, (desc.last_step_size = -1, desc.method = GMEM_SDE_EULER));
    REFUSE(E_COMBINATION, (desc.last_step_size = -1, desc.method = GMEM_SDE_EULER, desc.last_step = GMEM_LAST_TWEEDIE));
    ACCEPT((desc.last_step_size = -1, desc.method = GMEM_SDE_EULER, desc.last_step = GMEM_LAST_EULER));
    ACCEPT((desc.last_step = GMEM_LAST_NONE, desc.method = GMEM_SDE_EULER));
    ACCEPT((desc.last_step = GMEM_LAST_NONE, desc.path = GMEM_PATH_VP));
    ACCEPT((desc.last_step = GMEM_LAST_NONE, desc.prediction = GMEM_PREDICT_NOISE));
    ACCEPT((desc.diffusion_form = GMEM_DIFFUSION_SBDM, desc.path = GMEM_PATH_VP));
    ACCEPT((desc.diffusion_form = GMEM_DIFFUSION_SBDM, desc.prediction = GMEM_PREDICT_SCORE));
    ACCEPT(desc.last_step_size = 0.5);

    /* settings that a method does not have */
    REFUSE(E_COMBINATION, desc.timestep_shift = 0.3);
    REFUSE(E_COMBINATION, (desc.timestep_shift = 0.3, desc.method = GMEM_REPA_EULER));
    REFUSE(E_COMBINATION, (desc.diffusion_form = GMEM_DIFFUSION_SIGMA, desc.method = GMEM_EULER));
    REFUSE(E_COMBINATION, (desc.diffusion_norm = 2, desc.method = GMEM_DOPRI5));
    REFUSE(E_COMBINATION, (desc.last_step = GMEM_LAST_MEAN, desc.method = GMEM_RK4));
    REFUSE(E_COMBINATION, (desc.last_step_size = 0.04, desc.method = GMEM_REPA_SDE));
    REFUSE(E_COMBINATION, (desc.path = GMEM_PATH_VP, desc.method = GMEM_REPA_SDE));
    REFUSE(E_COMBINATION, (desc.prediction = GMEM_PREDICT_NOISE, desc.method = GMEM_REPA_HEUN));
    ACCEPT(desc.timestep_shift = 1);
    REFUSE(E_COMBINATION, (desc.diffusion_norm = 2, desc.method = GMEM_AB2));
    REFUSE(E_COMBINATION, (desc.last_step = GMEM_LAST_MEAN, desc.method = GMEM_DPMPP2M));
    ACCEPT((desc.timestep_shift = 0.3, desc.method = GMEM_DOPRI5));
    ACCEPT((desc.timestep_shift = 0.3, desc.method = GMEM_DPMPP2M));

    /* out of range */
    REFUSE(E_ARGUMENT, desc.method = (gmem_method)99);
    REFUSE(E_ARGUMENT, desc.method = (gmem_method)-1);
    REFUSE(E_ARGUMENT, desc.path = (gmem_path)3);
    REFUSE(E_ARGUMENT, desc.prediction = (gmem_prediction)3);
    REFUSE(E_ARGUMENT, desc.diffusion_form = (gmem_diffusion_form)7);
    REFUSE(E_ARGUMENT, desc.last_step = (gmem_last_step)5);
    REFUSE(E_ARGUMENT, desc.steps = -1);
    REFUSE(E_ARGUMENT, desc.steps = 1);
    REFUSE(E_ARGUMENT, desc.timestep_shift = -0.5);
    REFUSE(E_ARGUMENT, desc.timestep_shift = NAN);
    REFUSE(E_ARGUMENT, (desc.method = GMEM_DOPRI5, desc.atol = -1));
    REFUSE(E_ARGUMENT, (desc.method = GMEM_DOPRI5, desc.rtol = INFINITY));
    REFUSE(E_ARGUMENT, desc.diffusion_norm = -1);
    REFUSE(E_ARGUMENT, desc.last_step_size = 1);
    REFUSE(E_ARGUMENT, (desc.last_step_size = 0.9995, desc.prediction = GMEM_PREDICT_NOISE));
    REFUSE(E_ARGUMENT, desc.cfg_scale = NAN);
    REFUSE(E_ARGUMENT, (desc.cfg_start = 0.5, desc.cfg_end = 0.4));
    REFUSE(E_ARGUMENT, desc.cfg_channels = -1);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sampler_check(NULL, 0, NULL, NULL));
    ACCEPT((desc.steps = 1, desc.method = GMEM_REPA_EULER));
}

static void test_defaults(void) {
    gmem_sampler_desc desc, resolved;
    memset(&desc, 0, sizeof desc);
    CHECK_OK(gmem_sampler_check(&desc, 0, &resolved, NULL));
    CHECK_INT(resolved.method, GMEM_SDE_HEUN);
    CHECK_INT(resolved.steps, 50);
    CHECK_INT(resolved.diffusion_form, GMEM_DIFFUSION_LINEAR);
    CHECK(resolved.diffusion_norm == 1);
    CHECK_INT(resolved.last_step, GMEM_LAST_MEAN);
    CHECK(resolved.last_step_size == 0.004);
    CHECK_OK(gmem_sampler_check(&desc, 1, &resolved, NULL));
    CHECK_INT(resolved.method, GMEM_REPA_SDE);
    CHECK_INT(resolved.steps, 250);
    desc.method = GMEM_DOPRI5;
    CHECK_OK(gmem_sampler_check(&desc, 0, &resolved, NULL));
    CHECK(resolved.atol == 1e-6 && resolved.rtol == 1e-3);
    memset(&desc, 0, sizeof desc); /* the times of settings that nobody has resolved */
    desc.steps = 10;
    CHECK_INT(gmem_sampler_times(&desc, NULL, 0), 19);
    desc.diffusion_form = GMEM_DIFFUSION_SBDM;
    CHECK_INT(gmem_sampler_times(&desc, NULL, 0), 0);
    CHECK_INT(gmem_sampler_times(NULL, NULL, 0), 0);
}

/* Nothing until t = 0.5, then a different value at every call: no step is ever small enough. */
static gmem_status restless(void *user, const gmem_velocity_call *call, gmem_error *error) {
    asked *log = (asked *)user;
    (void)error;
    note(log, call);
    for (int64_t i = 0; i < call->batch * call->per_picture; i++) {
        call->conditional[i] = call->t < 0.5 ? 0 : log->calls % 2 ? 1e30f : -1e30f;
    }
    return GMEM_OK;
}

static gmem_status broken_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                gmem_error *error) {
    (void)user;
    (void)index;
    (void)batch;
    (void)per_picture;
    (void)out;
    (void)error;
    return GMEM_E_READ;
}

static void check_failure(gmem_context *context, gmem_status expected, gmem_integrate_desc *desc) {
    float x[FIELD_COUNT], before[FIELD_COUNT];
    int64_t passes = -7;
    desc->passes = &passes;
    field_start(x);
    field_start(before);
    CHECK_STATUS(expected, gmem_integrate(context, desc, x, NULL));
    CHECK(memcmp(x, before, sizeof x) == 0); /* untouched */
    CHECK_INT(passes, -7);
}

static gmem_status broken_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    (void)user;
    (void)call;
    error->message[0] = 0; /* there, and left empty */
    return GMEM_E_OPEN;
}

/* Callbacks that fail without a word. */
static void test_silent_failures(gmem_context *context) {
    asked log;
    gmem_error error;
    float x[FIELD_COUNT];
    field_start(x);
    gmem_integrate_desc desc = field_desc(GMEM_SDE_HEUN, 0, &log);
    desc.noise = broken_noise;
    memset(&error, 0x55, sizeof error); /* nobody has set it */
    CHECK_STATUS(GMEM_E_READ, gmem_integrate(context, &desc, x, &error));
    CHECK_INT(error.code, GMEM_E_READ);
    CHECK_INT(error.offset, -1);
    CHECK_TEXT(error.path, "");
    CHECK_TEXT(error.message, "the noise function failed: cannot read the file");
    desc.velocity = broken_velocity;
    desc.noise = no_noise;
    memset(&error, 0x55, sizeof error);
    CHECK_STATUS(GMEM_E_OPEN, gmem_integrate(context, &desc, x, &error));
    CHECK_TEXT(error.message, "the velocity function failed: cannot open the file");
    CHECK_STATUS(GMEM_E_OPEN, gmem_integrate(context, &desc, x, NULL));
}

static void test_failures(gmem_context *context) {
    static const gmem_method methods[] = {GMEM_EULER,    GMEM_RK4,      GMEM_DOPRI5, GMEM_SDE_EULER,
                                          GMEM_SDE_HEUN, GMEM_REPA_SDE, GMEM_AB3,    GMEM_DPMPP2M};
    asked log;
    gmem_integrate_desc desc;
    for (int i = 0; i < 8; i++) {
        reports r = {0, 0, 0, 0, 0, 0, 2};
        desc = field_desc(methods[i], 10, &log);
        desc.noise = no_noise;
        log.fail_at = 2;
        check_failure(context, GMEM_E_READ, &desc);
        desc = field_desc(methods[i], 10, &log);
        desc.noise = no_noise;
        log.nonfinite_at = 3;
        check_failure(context, GMEM_E_NONFINITE, &desc);
        CHECK_INT(log.calls, 3);
        desc = field_desc(methods[i], 10, &log);
        desc.noise = no_noise;
        desc.progress = report;
        desc.progress_user = &r;
        check_failure(context, GMEM_E_CANCELLED, &desc);
        CHECK_INT(r.count, 2);
    }
    desc = field_desc(GMEM_DOPRI5, 0, &log);
    desc.velocity = restless;
    check_failure(context, GMEM_E_STIFF, &desc);
    desc = field_desc(GMEM_SDE_HEUN, 0, &log);
    desc.noise = broken_noise;
    check_failure(context, GMEM_E_READ, &desc);
    desc.noise = NULL;
    check_failure(context, GMEM_E_ARGUMENT, &desc);
    desc = field_desc(GMEM_EULER, 0, &log);
    desc.batch = 0;
    check_failure(context, GMEM_E_ARGUMENT, &desc);
    desc.batch = INT64_MAX;
    check_failure(context, GMEM_E_ARGUMENT, &desc);
    desc = field_desc(GMEM_EULER, 0, &log);
    desc.channels = 4; /* of 6 elements */
    check_failure(context, GMEM_E_ARGUMENT, &desc);
    desc = field_desc(GMEM_EULER, 0, &log);
    desc.velocity = NULL;
    check_failure(context, GMEM_E_ARGUMENT, &desc);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_integrate(context, NULL, NULL, NULL));
}

/* Programs that trap division by zero begin at t = 0 too. */
static void test_no_division_by_zero(gmem_context *context) {
    static const gmem_path paths[] = {GMEM_PATH_LINEAR, GMEM_PATH_GVP, GMEM_PATH_VP};
    for (int i = 0; i < 3; i++) {
        float x[FIELD_COUNT] = {0};
        asked log;
        gmem_integrate_desc desc = field_desc(GMEM_SDE_HEUN, 10, &log);
        gmem_rng rng;
        gmem_rng_init(&rng, GMEM_RNG_PHILOX, 1);
        desc.noise = generator;
        desc.noise_user = &rng;
        desc.sampler.path = paths[i];
        feclearexcept(FE_ALL_EXCEPT);
        gmem__path_point at = gmem__path_at(paths[i], 0);
        CHECK(at.alpha - at.alpha == 0 && at.d_alpha - at.d_alpha == 0);
        CHECK(at.sigma - at.sigma == 0 && at.d_sigma - at.d_sigma == 0);
        CHECK_OK(gmem_integrate(context, &desc, x, NULL));
        CHECK(!fetestexcept(FE_DIVBYZERO | FE_INVALID));
    }
}

static void test_failed_allocation(void) {
    failing state = {-1, 0, 0};
    asked log;
    gmem_context *context = failing_context(&state);
    gmem_integrate_desc desc = field_desc(GMEM_EULER, 0, &log);
    state.countdown = 0;
    check_failure(context, GMEM_E_MEMORY, &desc);
    gmem_context_destroy(context);
    CHECK_INT(state.live, 0);
}

int main(void) {
    gmem_context *scalar = golden_context(GMEM_ISA_SCALAR);
    test_defaults();
    test_refusals();
    test_orders(scalar);
    test_dopri5(scalar);
    test_dpmpp_orders(scalar);
    test_dpmpp_exact(scalar);
    test_one_interval(scalar);
    test_equal_times(scalar);
    test_gaussians(scalar);
    test_passes(scalar);
    test_guidance_halves(scalar);
    test_guidance_values(scalar);
    test_failures(scalar);
    test_no_division_by_zero(scalar);
    test_failed_allocation();
    test_silent_failures(scalar);
    gmem_context_destroy(scalar);
    return check_report();
}
