/* The samplers: recorded trajectories with a network, and with velocities of our own orders of convergence, numbers of
 * passes, refusals, guidance, cancelling and failures. */
#include "../src/sampler.h"

#include "check.h"
#include "golden.h"

#define BAR 1e-5
/* Of one recording: the error estimate of dopri5's first step, 7e-6 of the tolerance, is nothing but the rounding of
 * the network's f32, and it sets the length of all later steps. The reference itself comes to 4e-5 with another number
 * of threads, and with a network in f64. The recording with a tight tolerance has the usual bar. */
#define NOISY_BAR 1e-4

/* recorded trajectories ------------------------------------------------------------------------------------------ */

/* A recording's noise tensors, in order. */
typedef struct tape {
    const float *noise; /* (draws, batch, per_picture) */
    int64_t draws, used;
} tape;

static gmem_status play(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out, gmem_error *error) {
    tape *from = (tape *)user;
    (void)error;
    if (!CHECK_INT(index, from->used) || !CHECK(from->used < from->draws)) return GMEM_E_ARGUMENT;
    memcpy(out, from->noise + index * batch * per_picture, (size_t)(batch * per_picture) * sizeof *out);
    from->used++;
    return GMEM_OK;
}

typedef struct choice {
    const char *text;
    int value;
} choice;

/* The value that a recording's argument names, or 0 where there is none. */
static int choose(const gmem_file *file, const char *name, const choice *choices) {
    char text[64];
    if (!golden_text(file, "args", name, text, sizeof text)) return 0;
    for (; choices->text; choices++) {
        if (strcmp(choices->text, text) == 0) return choices->value;
    }
    CHECK_TEXT(text, "a known choice");
    return 0;
}

static double number(const gmem_file *file, const char *name) {
    double value = 0;
    golden_number(file, "args", name, &value);
    return value;
}

/* The description that a recording's arguments stand for. */
static gmem_sampler_desc recorded_desc(const gmem_file *file, int is_sde) {
    static const choice methods[] = {{"euler", GMEM_EULER},     {"midpoint", GMEM_MIDPOINT}, {"heun2", GMEM_HEUN2},
                                     {"heun3", GMEM_HEUN3},     {"rk4", GMEM_RK4},           {"dopri5", GMEM_DOPRI5},
                                     {"Euler", GMEM_SDE_EULER}, {"Heun", GMEM_SDE_HEUN},     {NULL, 0}};
    static const choice forms[] = {{"constant", GMEM_DIFFUSION_CONSTANT},
                                   {"SBDM", GMEM_DIFFUSION_SBDM},
                                   {"sigma", GMEM_DIFFUSION_SIGMA},
                                   {"linear", GMEM_DIFFUSION_LINEAR},
                                   {"decreasing", GMEM_DIFFUSION_DECREASING},
                                   {"inccreasing-decreasing", GMEM_DIFFUSION_INCREASING_DECREASING},
                                   {NULL, 0}};
    static const choice lasts[] = {
        {"Mean", GMEM_LAST_MEAN}, {"Tweedie", GMEM_LAST_TWEEDIE}, {"Euler", GMEM_LAST_EULER}, {NULL, 0}};
    static const choice paths[] = {
        {"Linear", GMEM_PATH_LINEAR}, {"GVP", GMEM_PATH_GVP}, {"VP", GMEM_PATH_VP}, {NULL, 0}};
    static const choice predictions[] = {
        {"velocity", GMEM_PREDICT_VELOCITY}, {"noise", GMEM_PREDICT_NOISE}, {"score", GMEM_PREDICT_SCORE}, {NULL, 0}};
    gmem_sampler_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.method = (gmem_method)choose(file, "sampling_method", methods);
    desc.steps = (int)number(file, "num_steps");
    desc.path = (gmem_path)choose(file, "path_type", paths);
    desc.prediction = (gmem_prediction)choose(file, "prediction", predictions);
    desc.timestep_shift = number(file, "timestep_shift");
    desc.atol = number(file, "atol");
    desc.rtol = number(file, "rtol");
    desc.cfg_scale = number(file, "cfg_scale");
    if (number(file, "cfg_interval") != 0) {
        desc.cfg_start = number(file, "cfg_interval_start");
        desc.cfg_end = number(file, "cfg_interval_end");
    }
    if (is_sde) {
        desc.diffusion_form = (gmem_diffusion_form)choose(file, "diffusion_form", forms);
        desc.diffusion_norm = number(file, "diffusion_norm");
        desc.last_step = (gmem_last_step)choose(file, "last_step", lasts);
        if (desc.last_step == GMEM_LAST_DEFAULT) desc.last_step = GMEM_LAST_NONE;
        desc.last_step_size = number(file, "last_step_size");
    }
    return desc;
}

static const char *const recordings[] = {
    "ode_euler20",
    "ode_euler20_shift03",
    "ode_midpoint10",
    "ode_rk4_6",
    "ode_heun2_10",
    "ode_heun3_8",
    "ode_dopri5",
    "ode_dopri5_tight",
    "ode_cfg_interval",
    "ode_cfg_plain",
    "ode_cfg_both",
    "ode_GVP_velocity",
    "ode_GVP_noise",
    "ode_GVP_score",
    "ode_VP_velocity",
    "ode_VP_noise",
    "ode_VP_score",
    "sde_heun_linear",
    "sde_euler_sigma",
    "sde_heun_eulerlast",
    "sde_heun_incdec",
    "sde_euler_decreasing",
    "sde_heun_decreasing",
    "sde_heun_sigma",
    "sde_euler_incdec",
    "sde_euler_tweedie",
    "sde_heun_tweedie",
    "sde_heun_decreasing_tweedie",
    "sde_euler_eulerlast",
    "sde_heun_linear_eulerlast",
    "sde_euler_nolast",
    "sde_euler_decreasing_nolast",
    "sde_euler_constant",
    "sde_heun_constant",
    "sde_euler_sbdm_VP_velocity",
    "sde_heun_sbdm_VP_velocity",
    "sde_euler_sbdm_Linear_noise",
    "sde_heun_sbdm_GVP_score",
    "sde_heun_GVP_tweedie",
};

/* The manifest's count of the reference's network calls for `sample_NAME`, or 0. */
static int recorded_calls(const char *name) {
    static char manifest[64 << 10];
    char quoted[128];
    if (!manifest[0]) {
        FILE *file = fopen("tests/golden/manifest.json", "rb");
        if (!CHECK(file != NULL)) return 0;
        manifest[fread(manifest, 1, sizeof manifest - 1, file)] = 0;
        fclose(file);
    }
    snprintf(quoted, sizeof quoted, "\"sample_%s\": {", name);
    const char *at = strstr(manifest, quoted);
    const char *end = at ? strstr(at, "\"io\"") : NULL;
    const char *calls = at ? strstr(at, "\"nfe\": ") : NULL;
    return calls && calls < end ? atoi(calls + 7) : 0;
}

static void replay(gmem_context *context, const gmem_network *network, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "sample_%s.safetensors", name);
    gmem_file *file = golden_open(context, path);
    const int is_sde = strncmp(name, "sde", 3) == 0;
    int64_t count = 0, passes = 0;
    tape noise = {NULL, 0, 0};
    gmem_sample_desc desc;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    float *x = golden_f32(file, "z", &count), *snippets = golden_f32(file, "c", NULL);
    float *expected = golden_f32(file, "out", NULL);
    float *draws = is_sde ? golden_f32(file, "noise", NULL) : NULL;
    if (is_sde) {
        noise.noise = draws;
        noise.draws = golden_dim(file, "noise", 0);
        desc.noise = play;
        desc.noise_user = &noise;
    }
    desc.sampler = recorded_desc(file, is_sde);
    desc.batch = golden_dim(file, "z", 0);
    desc.snippets = snippets;
    desc.passes = &passes;
    if (!CHECK_OK(gmem_sample(network, &desc, x, &error))) printf("  %s: %s\n", name, error.message);
    snprintf(path, sizeof path, "%s on %s", name, gmem_context_backend(context));
    CHECK_CLOSE(path, x, expected, count, strcmp(name, "ode_dopri5") == 0 ? NOISY_BAR : BAR);
    CHECK_INT(noise.used, noise.draws);
    /* For an SDE the reference calls the network once for the drift and once for the score, of which a last step may
     * need one only. */
    const int calls = recorded_calls(name);
    if (calls && is_sde) CHECK_INT(passes, (calls + 1) / 2);
    if (calls && !is_sde) CHECK_INT(passes, calls);
    free(x);
    free(snippets);
    free(expected);
    free(draws);
    gmem_file_close(file);
}

static void test_recordings(gmem_context *context) {
    gmem_file *io = golden_open(context, "dit_base.io.safetensors");
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.file = weights.file;
    desc.heads = 4;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, &error))) {
        for (size_t i = 0; i < sizeof recordings / sizeof recordings[0]; i++) {
            replay(context, network, recordings[i]);
        }
    } else {
        printf("  %s\n", error.message);
    }
    gmem_network_close(network);
    golden_network_close(&weights);
    gmem_file_close(io);
}

static void replay_repa(gmem_context *context, const gmem_network *network, const gmem_file *io, const char *name,
                        gmem_method method, int steps, double cfg_scale, int64_t passes_expected) {
    int64_t count = 0, passes = 0;
    float *x = golden_f32(io, "z", &count), *expected = golden_f32(io, name, NULL);
    float *draws = golden_f32(io, "sde_noise", NULL);
    int64_t *labels = golden_i64(io, "sample_label", NULL);
    tape noise = {draws, golden_dim(io, "sde_noise", 0), 0};
    gmem_sample_desc desc;
    gmem_error error;
    char label[128];
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.sampler.method = method;
    desc.sampler.steps = steps;
    desc.sampler.cfg_scale = cfg_scale;
    desc.sampler.cfg_end = cfg_scale > 1 ? 0.7 : 0;
    desc.batch = golden_dim(io, "z", 0);
    desc.labels = labels;
    desc.noise = play;
    desc.noise_user = &noise;
    desc.passes = &passes;
    if (!CHECK_OK(gmem_sample(network, &desc, x, &error))) printf("  %s: %s\n", name, error.message);
    snprintf(label, sizeof label, "%s on %s", name, gmem_context_backend(context));
    CHECK_CLOSE(label, x, expected, count, BAR);
    CHECK_INT(passes, passes_expected);
    free(x);
    free(expected);
    free(draws);
    free(labels);
}

static void test_repa(gmem_context *context, const char *name) {
    gmem_file *io = golden_open(context, name);
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.file = weights.file;
    desc.heads = 4;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, &error))) {
        replay_repa(context, network, io, "ode_euler12", GMEM_REPA_EULER, 12, 1, 12);
        replay_repa(context, network, io, "ode_heun10_cfg", GMEM_REPA_HEUN, 10, 1.8, 19);
        replay_repa(context, network, io, "sde_em12_cfg", GMEM_METHOD_DEFAULT, 12, 1.8, 12);
    } else {
        printf("  %s\n", error.message);
    }
    gmem_network_close(network);
    golden_network_close(&weights);
    gmem_file_close(io);
}

/* One guided call as LightningDiT's script makes it: three channels, from t = 0.1. */
typedef struct labelled {
    gmem_pass *pass;
    const int64_t *labels;
    int64_t calls[2]; /* of the halves */
} labelled;

static gmem_status labelled_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    labelled *from = (labelled *)user;
    const float t[2] = {(float)call->t, (float)call->t};
    gmem_status status = GMEM_OK;
    if (call->conditional)
        status = gmem_pass_run(from->pass, call->batch, call->x, t, NULL, from->labels, call->conditional, error);
    if (status == GMEM_OK && call->unconditional)
        status = gmem_pass_run(from->pass, call->batch, call->x, t, NULL, NULL, call->unconditional, error);
    from->calls[0] += call->conditional != NULL;
    from->calls[1] += call->unconditional != NULL;
    return status;
}

static void check_guided_call(const gmem_file *io, labelled *user, const char *name, double t) {
    int64_t count = 0;
    float *x = golden_f32(io, "z", &count), *expected = golden_f32(io, name, NULL);
    float *out = (float *)calloc((size_t)count, sizeof *out), *half = (float *)calloc((size_t)count, sizeof *half);
    gmem_integrate_desc desc;
    gmem_sampler_desc resolved;
    gmem__plan plan;
    gmem__run run;
    memset(&desc, 0, sizeof desc);
    memset(&run, 0, sizeof run);
    desc.sampler.method = GMEM_EULER;
    desc.sampler.cfg_scale = 3;
    desc.sampler.cfg_start = 0.1;
    desc.sampler.cfg_channels = 3;
    desc.batch = golden_dim(io, "z", 0);
    desc.channels = golden_dim(io, "z", 1);
    desc.per_picture = count / desc.batch;
    desc.velocity = labelled_velocity;
    desc.velocity_user = user;
    CHECK_OK(gmem_sampler_check(&desc.sampler, 0, &resolved, NULL));
    plan = gmem__plan_make(&resolved);
    run.plan = &plan;
    run.desc = &desc;
    run.count = count;
    run.unconditional = half;
    CHECK_OK(gmem__run_model(&run, t, t, x, out, NULL));
    CHECK_CLOSE(name, out, expected, count, BAR);
    free(x);
    free(expected);
    free(out);
    free(half);
}

static void test_guided_calls(gmem_context *context) {
    gmem_file *io = golden_open(context, "lightningdit_class.io.safetensors");
    golden_network weights = golden_procedural(context, io, NULL);
    int64_t *labels = golden_i64(io, "sample_label", NULL);
    labelled user = {NULL, labels, {0, 0}};
    gmem_network_desc desc;
    gmem_network *network = NULL;
    memset(&desc, 0, sizeof desc);
    desc.file = weights.file;
    desc.heads = 4;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, NULL)) &&
        CHECK_OK(gmem_pass_create(network, 2, &user.pass, NULL))) {
        check_guided_call(io, &user, "cfg_t0.05", 0.05);
        CHECK(user.calls[0] == 1 && user.calls[1] == 0);
        check_guided_call(io, &user, "cfg_t0.5", 0.5);
        CHECK(user.calls[0] == 2 && user.calls[1] == 1);
    }
    gmem_pass_destroy(user.pass);
    gmem_network_close(network);
    free(labels);
    golden_network_close(&weights);
    gmem_file_close(io);
}

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

static double field_error(gmem_context *context, gmem_method method, int intervals) {
    asked log;
    float x[FIELD_COUNT], exact[FIELD_COUNT];
    gmem_integrate_desc desc = field_desc(method, intervals + 1, &log);
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
        double order;
    } cases[] = {
        {GMEM_EULER, 64, 1}, {GMEM_MIDPOINT, 32, 2}, {GMEM_HEUN2, 32, 2}, {GMEM_HEUN3, 16, 3}, {GMEM_RK4, 8, 4}};
    for (int i = 0; i < 5; i++) {
        double coarse = field_error(context, cases[i].method, cases[i].intervals);
        double fine = field_error(context, cases[i].method, 2 * cases[i].intervals);
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
            test_one_gaussian(context, GMEM_RK4, (gmem_path)path, (gmem_prediction)prediction, GMEM_DIFFUSION_DEFAULT,
                              0.03);
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
    ACCEPT((desc.timestep_shift = 0.3, desc.method = GMEM_DOPRI5));

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

static void test_failures(gmem_context *context) {
    static const gmem_method methods[] = {GMEM_EULER,     GMEM_RK4,      GMEM_DOPRI5,
                                          GMEM_SDE_EULER, GMEM_SDE_HEUN, GMEM_REPA_SDE};
    asked log;
    gmem_integrate_desc desc;
    for (int i = 0; i < 6; i++) {
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

/* a network and a generator -------------------------------------------------------------------------------------- */

/* An allocator that counts, and can fail the n-th call. */
typedef struct counter {
    gmem_allocator inner;
    int64_t calls, live, fail_at;
} counter;

static void *counted_alloc(void *user, size_t bytes) {
    counter *c = (counter *)user;
    if (++c->calls == c->fail_at) return NULL;
    void *raw = malloc(bytes + 128);
    if (!raw) return NULL;
    uintptr_t aligned = ((uintptr_t)raw + 64 + sizeof raw) & ~(uintptr_t)63;
    memcpy((char *)aligned - sizeof raw, &raw, sizeof raw);
    c->live++;
    return (void *)aligned;
}

static void counted_release(void *user, void *memory, size_t bytes) {
    void *raw;
    (void)bytes;
    memcpy(&raw, (char *)memory - sizeof raw, sizeof raw);
    free(raw);
    ((counter *)user)->live--;
}

/* Allocations made at the first and at the last report. */
typedef struct watched {
    const counter *allocations;
    int64_t first, last;
} watched;

static int watch(void *user, const gmem_progress *progress) {
    watched *w = (watched *)user;
    if (progress->step == 1) w->first = w->allocations->calls;
    w->last = w->allocations->calls;
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
    desc.noise = play;
    desc.noise_user = &from;
    CHECK_OK(gmem_sample(network, &desc, y, NULL));
    CHECK(memcmp(x, y, sizeof x) == 0);
}

static void test_sample_failures(const gmem_network *network, counter *allocations, const float *snippets) {
    enum { PER_PICTURE = 512 };
    static float x[PER_PICTURE], before[PER_PICTURE];
    gmem_rng rng;
    gmem_sample_desc desc;
    watched w = {allocations, 0, 0};
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
    const int64_t start = allocations->calls, live = allocations->live;
    CHECK_OK(gmem_sample(network, &desc, x, NULL));
    CHECK_INT(w.last, w.first); /* nothing is allocated inside a step */
    CHECK_INT(allocations->live, live);
    const int64_t needed = allocations->calls - start;
    CHECK(needed >= 2);
    memcpy(before, x, sizeof x);
    for (int64_t i = 1; i <= needed; i++) {
        allocations->fail_at = allocations->calls + i;
        CHECK_STATUS(GMEM_E_MEMORY, gmem_sample(network, &desc, x, NULL));
        CHECK_INT(allocations->live, live);
        CHECK(memcmp(x, before, sizeof x) == 0);
    }
    allocations->fail_at = 0;
    CHECK_OK(gmem_sample(network, &desc, x, NULL));
}

static void test_snippet_network(void) {
    counter allocations;
    gmem_context_desc context_desc;
    gmem_context *context = NULL;
    gmem_network_desc desc;
    gmem_network *network = NULL;
    memset(&allocations, 0, sizeof allocations);
    memset(&context_desc, 0, sizeof context_desc);
    memset(&desc, 0, sizeof desc);
    context_desc.allocator.user = &allocations;
    context_desc.allocator.alloc = counted_alloc;
    context_desc.allocator.release = counted_release;
    if (!CHECK_OK(gmem_context_create(&context_desc, &context, NULL))) return;
    gmem_file *io = golden_open(context, "dit_base.io.safetensors");
    gmem_file *recording = golden_open(context, "sample_ode_euler20.safetensors");
    golden_network weights = golden_procedural(context, io, NULL);
    float *snippets = golden_f32(recording, "c", NULL);
    asked log;
    gmem_integrate_desc integrate = field_desc(GMEM_EULER, 0, &log);
    allocations.fail_at = allocations.calls + 1;
    check_failure(context, GMEM_E_MEMORY, &integrate);
    allocations.fail_at = 0;
    desc.file = weights.file;
    desc.heads = 4;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, NULL))) {
        test_batches(network, snippets);
        test_doubled_draws(network, snippets);
        test_sample_failures(network, &allocations, snippets);
    }
    free(snippets);
    gmem_network_close(network);
    golden_network_close(&weights);
    gmem_file_close(recording);
    gmem_file_close(io);
    gmem_context_destroy(context);
    CHECK_INT(allocations.live, 0);
}

/* A network of REPA's convention under the transport samplers: the same trajectory, t turned round. */
static void test_reversed_time(gmem_context *context) {
    enum { PER_PICTURE = 256 };
    static float x[2 * PER_PICTURE], y[2 * PER_PICTURE];
    gmem_file *io = golden_open(context, "sit_plain.io.safetensors");
    golden_network weights = golden_procedural(context, io, NULL);
    int64_t *labels = golden_i64(io, "sample_label", NULL), wrong[2] = {0, 11};
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_sampler_desc sampler;
    memset(&desc, 0, sizeof desc);
    memset(&sampler, 0, sizeof sampler);
    desc.file = weights.file;
    desc.heads = 4;
    if (CHECK_OK(gmem_network_open(context, &desc, &network, NULL))) {
        CHECK(gmem_network_get_info(network)->time_reversed);
        sampler.cfg_scale = 1.5;
        sampler.method = GMEM_REPA_EULER;
        sampler.steps = 8;
        sample_pictures(network, &sampler, GMEM_RNG_PHILOX, 0, 2, NULL, labels, x, PER_PICTURE);
        sampler.method = GMEM_EULER;
        sampler.steps = 9;
        sample_pictures(network, &sampler, GMEM_RNG_PHILOX, 0, 2, NULL, labels, y, PER_PICTURE);
        CHECK_CLOSE("the other convention", y, x, 2 * PER_PICTURE, 1e-6);
        gmem_sample_desc sample;
        memset(&sample, 0, sizeof sample);
        sample.sampler = sampler;
        sample.batch = 2;
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_sample(network, &sample, x, NULL)); /* no labels */
        sample.labels = wrong;
        CHECK_STATUS(GMEM_E_LABEL, gmem_sample(network, &sample, x, NULL));
    }
    free(labels);
    gmem_network_close(network);
    golden_network_close(&weights);
    gmem_file_close(io);
}

int main(void) {
    gmem_context *scalar = golden_context(GMEM_ISA_SCALAR);
    test_defaults();
    test_refusals();
    test_orders(scalar);
    test_dopri5(scalar);
    test_gaussians(scalar);
    test_passes(scalar);
    test_guidance_halves(scalar);
    test_guidance_values(scalar);
    test_failures(scalar);
    test_reversed_time(scalar);
    gmem_context_destroy(scalar);
    test_snippet_network();
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_context(golden_isas[i]);
        if (!context) continue;
        test_guided_calls(context);
        test_recordings(context);
        test_repa(context, "sit_plain.io.safetensors");
        test_repa(context, "sit_qknorm.io.safetensors");
        gmem_context_destroy(context);
    }
    return check_report();
}
