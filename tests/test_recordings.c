/* The samplers with a network against recorded trajectories, on every instruction set: the transport package's, REPA's,
 * and LightningDiT's guided call. */
#include "../src/sampler.h"

#include "check.h"
#include "golden.h"
#include "tape.h"

#define BAR 1e-5
/* Of one recording: the error estimate of dopri5's first step, 7e-6 of the tolerance, is nothing but the rounding of
 * the network's f32, and it sets the length of all later steps. The reference itself comes to 4e-5 with another number
 * of threads, and with a network in f64. The recording with a tight tolerance has the usual bar. */
#define NOISY_BAR 1e-4

/* what a recording says ------------------------------------------------------------------------------------------- */

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

/* replaying ------------------------------------------------------------------------------------------------------- */

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
        desc.noise = tape_play;
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
    golden_case dit = golden_case_open(context, "dit_base", NULL);
    for (size_t i = 0; i < sizeof recordings / sizeof recordings[0]; i++) {
        replay(context, dit.network, recordings[i]);
    }
    golden_case_close(&dit);
}

static void replay_repa(gmem_context *context, const golden_case *sit, const char *name, gmem_method method, int steps,
                        double cfg_scale, int64_t passes_expected) {
    const gmem_file *io = sit->io;
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
    desc.noise = tape_play;
    desc.noise_user = &noise;
    desc.passes = &passes;
    if (!CHECK_OK(gmem_sample(sit->network, &desc, x, &error))) printf("  %s: %s\n", name, error.message);
    snprintf(label, sizeof label, "%s on %s", name, gmem_context_backend(context));
    CHECK_CLOSE(label, x, expected, count, BAR);
    CHECK_INT(passes, passes_expected);
    free(x);
    free(expected);
    free(draws);
    free(labels);
}

static void test_repa(gmem_context *context, const char *name) {
    golden_case sit = golden_case_open(context, name, NULL);
    replay_repa(context, &sit, "ode_euler12", GMEM_REPA_EULER, 12, 1, 12);
    replay_repa(context, &sit, "ode_heun10_cfg", GMEM_REPA_HEUN, 10, 1.8, 19);
    replay_repa(context, &sit, "sde_em12_cfg", GMEM_METHOD_DEFAULT, 12, 1.8, 12);
    golden_case_close(&sit);
}

/* a guided call --------------------------------------------------------------------------------------------------- */

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
    gmem__engine engine;
    memset(&engine, 0, sizeof engine);
    engine.ops = gmem__cpu_ops(GMEM_ISA_SCALAR, NULL);
    run.engine = &engine;
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
    golden_case dit = golden_case_open(context, "lightningdit_class", NULL);
    int64_t *labels = golden_i64(dit.io, "sample_label", NULL);
    labelled user = {NULL, labels, {0, 0}};
    if (CHECK_OK(gmem_pass_create(dit.network, 2, &user.pass, NULL))) {
        check_guided_call(dit.io, &user, "cfg_t0.05", 0.05);
        CHECK(user.calls[0] == 1 && user.calls[1] == 0);
        check_guided_call(dit.io, &user, "cfg_t0.5", 0.5);
        CHECK(user.calls[0] == 2 && user.calls[1] == 1);
    }
    gmem_pass_destroy(user.pass);
    free(labels);
    golden_case_close(&dit);
}

int main(void) {
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_context(golden_isas[i]);
        if (!context) continue;
        test_guided_calls(context);
        test_recordings(context);
        test_repa(context, "sit_plain");
        test_repa(context, "sit_qknorm");
        gmem_context_destroy(context);
    }
    return check_report();
}
