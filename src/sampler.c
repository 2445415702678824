/* Sampling: settings checked and turned into a plan, and the run that carries guidance, counting and progress. */
#include "sampler.h"

#include "network.h"
#include "random.h"

/* The times nearest to the ends where noise and score predictions stay finite (SiT's sample_eps). */
#define GMEM__SAMPLE_EPS 1e-3

/* methods -----------------------------------------------------------------------------------------------------------
 */

/* In the order of gmem_method. rk4 is Kutta's 3/8 rule, as in torchdiffeq; heun3 is Heun's third-order rule. */
static const gmem__method gmem__methods[] = {
    {"default", GMEM__SOLVER_GRID, 0, 0, {0}, {{0}}, {0}},
    {"euler", GMEM__SOLVER_GRID, 0, 1, {0}, {{0}}, {1}},
    {"midpoint", GMEM__SOLVER_GRID, 0, 2, {0, 0.5}, {{0}, {0.5}}, {0, 1}},
    {"heun2", GMEM__SOLVER_GRID, 0, 2, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"heun3", GMEM__SOLVER_GRID, 0, 3, {0, 1.0 / 3, 2.0 / 3}, {{0}, {1.0 / 3}, {0, 2.0 / 3}}, {0.25, 0, 0.75}},
    {"rk4",
     GMEM__SOLVER_GRID,
     0,
     4,
     {0, 1.0 / 3, 2.0 / 3, 1},
     {{0}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}},
     {0.125, 0.375, 0.375, 0.125}},
    {"dopri5", GMEM__SOLVER_DOPRI, 0, 0, {0}, {{0}}, {0}},
    {"sde-euler", GMEM__SOLVER_SDE_EULER, 0, 1, {0}, {{0}}, {0}},
    {"sde-heun", GMEM__SOLVER_SDE_HEUN, 0, 2, {0, 1}, {{0}}, {0}},
    {"repa-euler", GMEM__SOLVER_GRID, 1, 1, {0}, {{0}}, {1}},
    {"repa-heun", GMEM__SOLVER_GRID, 1, 2, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"repa-sde", GMEM__SOLVER_SDE_EULER, 1, 1, {0}, {{0}}, {0}},
};

GMEM__FN const gmem__method *gmem__method_of(gmem_method method) { return &gmem__methods[method]; }

static int gmem__is_sde(const gmem__method *method) {
    return method->solver == GMEM__SOLVER_SDE_EULER || method->solver == GMEM__SOLVER_SDE_HEUN;
}

/* settings ----------------------------------------------------------------------------------------------------------
 */

static int gmem__in_range(int value, int last) { return value >= 0 && value <= last; }

static int gmem__is_finite(double x) { return x - x == 0; }

static gmem_status gmem__check_ranges(const gmem_sampler_desc *desc, gmem_error *error) {
    if (!gmem__in_range((int)desc->method, GMEM_REPA_SDE) ||
        !gmem__in_range((int)desc->diffusion_form, GMEM_DIFFUSION_INCREASING_DECREASING) ||
        !gmem__in_range((int)desc->last_step, GMEM_LAST_NONE) || !gmem__in_range((int)desc->path, GMEM_PATH_VP) ||
        !gmem__in_range((int)desc->prediction, GMEM_PREDICT_SCORE))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not one of its enumeration's values");
    if (!gmem__is_finite(desc->timestep_shift) || !gmem__is_finite(desc->atol) || !gmem__is_finite(desc->rtol) ||
        !gmem__is_finite(desc->diffusion_norm) || !gmem__is_finite(desc->last_step_size) ||
        !gmem__is_finite(desc->cfg_scale) || !gmem__is_finite(desc->cfg_start) || !gmem__is_finite(desc->cfg_end))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not a finite number");
    if (desc->steps < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of steps is negative");
    if (desc->timestep_shift < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the timestep shift is negative");
    if (desc->atol < 0 || desc->rtol < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "a tolerance is negative");
    if (desc->diffusion_norm < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the diffusion norm is negative");
    if (desc->last_step_size >= 1) return gmem__fail(error, GMEM_E_ARGUMENT, "the last step is not shorter than 1");
    if (desc->cfg_channels < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of guided channels is negative");
    if (desc->cfg_end != 0 && desc->cfg_end < desc->cfg_start)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the guidance interval ends before it starts");
    return GMEM_OK;
}

/* Settings that the method does not have. */
static gmem_status gmem__check_foreign(const gmem_sampler_desc *desc, const gmem__method *method, gmem_error *error) {
    const int transport_sde = gmem__is_sde(method) && !method->repa;
    if (desc->timestep_shift != 0 && desc->timestep_shift != 1 && (gmem__is_sde(method) || method->repa))
        return gmem__fail(error, GMEM_E_COMBINATION, "a timestep shift is for the transport ODE methods, not for %s",
                          method->name);
    if (!transport_sde && (desc->diffusion_form != GMEM_DIFFUSION_DEFAULT || desc->diffusion_norm != 0))
        return gmem__fail(error, GMEM_E_COMBINATION, "a diffusion is for sde-euler and sde-heun, not for %s",
                          method->name);
    if (!transport_sde && (desc->last_step != GMEM_LAST_DEFAULT || desc->last_step_size != 0))
        return gmem__fail(error, GMEM_E_COMBINATION, "a last step is for sde-euler and sde-heun, not for %s",
                          method->name);
    if (method->repa && (desc->path != GMEM_PATH_LINEAR || desc->prediction != GMEM_PREDICT_VELOCITY))
        return gmem__fail(error, GMEM_E_COMBINATION, "%s is for the linear path and velocity prediction only",
                          method->name);
    return GMEM_OK;
}

static void gmem__fill_defaults(gmem_sampler_desc *desc, const gmem__method *method) {
    if (desc->steps == 0) desc->steps = desc->method == GMEM_REPA_SDE ? 250 : 50;
    if (desc->timestep_shift == 1) desc->timestep_shift = 0;
    if (desc->cfg_scale < 1) desc->cfg_scale = 1;
    if (method->solver == GMEM__SOLVER_DOPRI) {
        if (desc->atol == 0) desc->atol = 1e-6;
        if (desc->rtol == 0) desc->rtol = 1e-3;
    }
    if (gmem__is_sde(method) && !method->repa) {
        if (desc->diffusion_form == GMEM_DIFFUSION_DEFAULT) desc->diffusion_form = GMEM_DIFFUSION_LINEAR;
        if (desc->diffusion_norm == 0) desc->diffusion_norm = 1;
        if (desc->last_step == GMEM_LAST_DEFAULT) desc->last_step = GMEM_LAST_MEAN;
        if (desc->last_step_size == 0) desc->last_step_size = 0.004;
    }
}

/* What would come out infinite or not a number. */
static gmem_status gmem__check_sde(const gmem__plan *plan, gmem_error *error) {
    const gmem_sampler_desc *desc = &plan->desc;
    if (plan->start >= plan->end)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the last step leaves nothing for the steps before it");
    if (desc->prediction != GMEM_PREDICT_VELOCITY || desc->path == GMEM_PATH_VP) return GMEM_OK;
    if (desc->diffusion_form == GMEM_DIFFUSION_SBDM)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "sbdm diffusion is infinite at t = 0, where sampling starts with velocity prediction on the "
                          "linear and gvp paths");
    if (plan->end < 1) return GMEM_OK;
    if (plan->method->solver == GMEM__SOLVER_SDE_HEUN)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "sde-heun without a last step needs the score at t = 1, which velocity prediction on the "
                          "linear and gvp paths does not give");
    if (desc->last_step == GMEM_LAST_MEAN || desc->last_step == GMEM_LAST_TWEEDIE)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a last step of size 0 needs the score at t = 1, which velocity prediction on the linear and "
                          "gvp paths does not give");
    return GMEM_OK;
}

/* the plan ----------------------------------------------------------------------------------------------------------
 */

/* Where the transport package starts and ends (check_interval). */
static void gmem__transport_ends(gmem__plan *plan) {
    const gmem_sampler_desc *desc = &plan->desc;
    const int velocity = desc->prediction == GMEM_PREDICT_VELOCITY, vp = desc->path == GMEM_PATH_VP;
    const double eps = velocity && !vp ? 0 : GMEM__SAMPLE_EPS;
    double size = 0;
    if (gmem__is_sde(plan->method)) {
        if (desc->last_step != GMEM_LAST_NONE && desc->last_step_size > 0) size = desc->last_step_size;
        plan->last_step = desc->last_step != GMEM_LAST_NONE;
        plan->last_size = size;
    }
    plan->start = (double)(float)(vp ? 0 : eps);
    plan->end = (double)(float)(1 - (size > 0 ? size : eps));
}

static gmem__plan gmem__plan_make(const gmem_sampler_desc *resolved) {
    gmem__plan plan;
    memset(&plan, 0, sizeof plan);
    plan.desc = *resolved;
    plan.method = gmem__method_of(resolved->method);
    plan.intervals = plan.method->solver == GMEM__SOLVER_DOPRI ? 0 : (int64_t)resolved->steps - 1;
    if (!plan.method->repa) {
        gmem__transport_ends(&plan);
    } else if (gmem__is_sde(plan.method)) { /* from 1 to 0.04, then the mean step to 0 */
        plan.start = 1;
        plan.end = plan.intervals > 0 ? 0.04 : 1;
        plan.last_step = 1;
        plan.last_size = -plan.end;
    } else {
        plan.start = 1;
        plan.intervals = resolved->steps;
    }
    return plan;
}

/* torch.linspace, which counts from both ends; of f32 in the transport package, of f64 in REPA. */
GMEM__FN double gmem__plan_time(const gmem__plan *plan, int64_t i) {
    const int64_t n = plan->intervals;
    if (n == 0) return plan->start;
    double step = (plan->end - plan->start) / (double)n;
    if (!plan->method->repa) step = (double)(float)step;
    double t = i < (n + 1) / 2 ? plan->start + step * (double)i : plan->end - step * (double)(n - i);
    if (plan->method->repa) return t;
    t = (double)(float)t;
    const double shift = plan->desc.timestep_shift;
    return shift > 0 ? (double)(float)(shift * t / (1 + (shift - 1) * t)) : t;
}

/* REPA's Heun makes no correction in its last interval. */
GMEM__FN int gmem__plan_stages(const gmem__plan *plan, int64_t i) {
    return plan->desc.method == GMEM_REPA_HEUN && i == plan->intervals - 1 ? 1 : plan->method->stages;
}

GMEM__FN double gmem__plan_stage_time(const gmem__plan *plan, int64_t i, int stage) {
    const double c = plan->method->c[stage];
    if (c == 0 || c == 1) return gmem__plan_time(plan, i + (c == 1));
    const double t = gmem__plan_time(plan, i);
    return (double)(float)(t + c * (gmem__plan_time(plan, i + 1) - t));
}

static int64_t gmem__plan_passes(const gmem__plan *plan) {
    int64_t passes = plan->last_step;
    if (plan->intervals > 0)
        passes += (plan->intervals - 1) * plan->method->stages + gmem__plan_stages(plan, plan->intervals - 1);
    return passes;
}

GMEM_API gmem_status gmem_sampler_check(const gmem_sampler_desc *desc, int time_reversed, gmem_sampler_desc *resolved,
                                        gmem_error *error) {
    if (!desc) return gmem__fail(error, GMEM_E_ARGUMENT, "there are no sampler settings");
    GMEM__TRY(gmem__check_ranges(desc, error));
    gmem_sampler_desc full = *desc;
    if (full.method == GMEM_METHOD_DEFAULT) full.method = time_reversed ? GMEM_REPA_SDE : GMEM_SDE_HEUN;
    const gmem__method *method = gmem__method_of(full.method);
    GMEM__TRY(gmem__check_foreign(&full, method, error));
    gmem__fill_defaults(&full, method);
    if (full.steps < 2 && !method->repa)
        return gmem__fail(error, GMEM_E_ARGUMENT, "%s needs at least 2 steps, which make 1 interval", method->name);
    if (gmem__is_sde(method) && !method->repa) {
        gmem__plan plan = gmem__plan_make(&full);
        GMEM__TRY(gmem__check_sde(&plan, error));
    }
    if (resolved) *resolved = full;
    return GMEM_OK;
}

/* The times at which a plan will ask for the velocity, one after the other. */
typedef struct gmem__schedule {
    const gmem__plan *plan;
    int64_t interval;
    int stage;
} gmem__schedule;

static gmem__schedule gmem__schedule_start(const gmem__plan *plan) {
    gmem__schedule schedule = {plan, 0, 0};
    return schedule;
}

static int gmem__schedule_next(gmem__schedule *schedule, double *t) {
    const gmem__plan *plan = schedule->plan;
    if (schedule->interval < plan->intervals) {
        *t = gmem__plan_stage_time(plan, schedule->interval, schedule->stage);
        if (++schedule->stage == gmem__plan_stages(plan, schedule->interval)) {
            schedule->stage = 0;
            schedule->interval++;
        }
        return 1;
    }
    if (schedule->interval > plan->intervals || !plan->last_step) return 0;
    schedule->interval++;
    *t = plan->end;
    return 1;
}

GMEM_API int64_t gmem_sampler_times(const gmem_sampler_desc *desc, double *out, int64_t capacity) {
    const gmem__plan plan = gmem__plan_make(desc);
    gmem__schedule schedule = gmem__schedule_start(&plan);
    int64_t count = 0;
    for (double t; gmem__schedule_next(&schedule, &t); count++) {
        if (count < capacity) out[count] = t;
    }
    return count;
}

/* the run ------------------------------------------------------------------------------------------------------------
 */

typedef enum gmem__halves { GMEM__HALF_CONDITIONAL, GMEM__HALF_UNCONDITIONAL, GMEM__HALF_BOTH } gmem__halves;

/* Outside its interval guidance falls back to one half: the transport samplers to the unconditional one beyond the
 * end, otherwise to the conditional one. They compare in f32, in which their times are. */
static gmem__halves gmem__halves_at(const gmem__plan *plan, double t) {
    const gmem_sampler_desc *desc = &plan->desc;
    if (desc->cfg_scale <= 1) return GMEM__HALF_CONDITIONAL;
    if (plan->method->repa)
        return t < desc->cfg_start || (desc->cfg_end != 0 && t > desc->cfg_end) ? GMEM__HALF_CONDITIONAL
                                                                                : GMEM__HALF_BOTH;
    if ((float)t < (float)desc->cfg_start) return GMEM__HALF_CONDITIONAL;
    return desc->cfg_end != 0 && (float)t > (float)desc->cfg_end ? GMEM__HALF_UNCONDITIONAL : GMEM__HALF_BOTH;
}

/* out = unconditional + scale (out - unconditional) in the guided channels; the others keep the conditional value. */
static void gmem__guide(const gmem__run *run, float *out) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    const int64_t per_picture = run->desc->per_picture, channels = gmem__max(1, run->desc->channels);
    const int64_t guided = desc->cfg_channels ? per_picture / channels * desc->cfg_channels : per_picture;
    for (int64_t picture = 0; picture < run->desc->batch; picture++) {
        float *c = out + picture * per_picture;
        const float *u = run->unconditional + picture * per_picture;
        for (int64_t i = 0; i < guided; i++)
            c[i] = (float)((double)u[i] + desc->cfg_scale * ((double)c[i] - (double)u[i]));
    }
}

static gmem_status gmem__nonfinite(const gmem__run *run, const char *what, double t, gmem_error *error) {
    gmem__quoted at;
    return gmem__fail(error, GMEM_E_NONFINITE, "%s is not finite at t = %s (pass %lld)", what,
                      gmem__format_double(&at, t), (long long)run->passes);
}

GMEM__FN gmem_status gmem__run_model(gmem__run *run, double t, double guide_t, const float *x, float *out,
                                     gmem_error *error) {
    const gmem__halves halves = gmem__halves_at(run->plan, guide_t);
    gmem_velocity_call call;
    call.batch = run->desc->batch;
    call.per_picture = run->desc->per_picture;
    call.t = t;
    call.x = x;
    call.conditional = halves == GMEM__HALF_UNCONDITIONAL ? NULL : out;
    call.unconditional = halves == GMEM__HALF_CONDITIONAL     ? NULL
                         : halves == GMEM__HALF_UNCONDITIONAL ? out
                                                              : run->unconditional;
    GMEM__TRY(run->desc->velocity(run->desc->velocity_user, &call, error));
    run->passes++;
    if ((call.conditional && !gmem__all_finite(call.conditional, run->count)) ||
        (call.unconditional && !gmem__all_finite(call.unconditional, run->count)))
        return gmem__nonfinite(run, "what the network gave", t, error);
    if (halves == GMEM__HALF_BOTH) gmem__guide(run, out);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__run_step_done(gmem__run *run, double t, gmem_error *error) {
    run->step++;
    if (!gmem__all_finite(run->x, run->count)) return gmem__nonfinite(run, "the state", t, error);
    if (!run->desc->progress) return GMEM_OK;
    gmem_progress progress;
    progress.step = run->step;
    progress.steps = run->steps;
    progress.passes = run->passes;
    progress.total_passes = run->total_passes;
    progress.t = t;
    progress.x = run->x;
    if (run->desc->progress(run->desc->progress_user, &progress))
        return gmem__fail(error, GMEM_E_CANCELLED, "cancelled after step %lld", (long long)run->step);
    return GMEM_OK;
}

GMEM__FN void gmem__run_combine(const gmem__run *run, float *out, double x_weight, const float *x, int terms,
                                const double *weight, const float *const *k) {
    for (int64_t i = 0; i < run->count; i++) {
        double sum = x_weight * (double)x[i];
        for (int j = 0; j < terms; j++)
            sum += weight[j] * (double)k[j][i];
        out[i] = (float)sum;
    }
}

GMEM__FN void gmem__run_blend(const gmem__run *run, gmem__blend blend, const float *x, float *drift) {
    const float *const from = drift;
    gmem__run_combine(run, drift, blend.x, x, 1, &blend.model, &from);
}

/* Every buffer that the method needs, before the first step. */
static void gmem__run_layout(gmem__run *run, gmem__arena *arena) {
    const gmem__method *method = run->plan->method;
    const int stages = method->solver == GMEM__SOLVER_DOPRI ? GMEM__MAX_STAGES : method->stages;
    run->x = GMEM__TAKE_F32(arena, run->count);
    if (stages > 1) run->stage = GMEM__TAKE_F32(arena, run->count);
    for (int i = 0; i < stages; i++)
        run->k[i] = GMEM__TAKE_F32(arena, run->count);
    if (run->plan->desc.cfg_scale > 1) run->unconditional = GMEM__TAKE_F32(arena, run->count);
    if (gmem__is_sde(method)) run->noise = GMEM__TAKE_F32(arena, run->count);
}

static gmem_status gmem__run_solver(gmem__run *run, gmem_error *error) {
    switch (run->plan->method->solver) {
    case GMEM__SOLVER_DOPRI:
        return gmem__run_dopri5(run, error);
    case GMEM__SOLVER_SDE_EULER:
    case GMEM__SOLVER_SDE_HEUN:
        return gmem__run_sde(run, error);
    case GMEM__SOLVER_GRID:
        break;
    }
    return gmem__run_grid(run, error);
}

static gmem_status gmem__check_integrate(const gmem_context *context, const gmem_integrate_desc *desc, const float *x,
                                         const gmem__plan *plan, int64_t *count, gmem_error *error) {
    if (!context || !x || !desc->velocity)
        return gmem__fail(error, GMEM_E_ARGUMENT, "integrating needs a context, a state and a velocity");
    if (desc->batch < 1 || desc->per_picture < 1 || !gmem__mul(desc->batch, desc->per_picture, count))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch or the picture is empty or too large");
    if (desc->channels < 0 || (desc->channels > 0 && desc->per_picture % desc->channels != 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a picture of %lld elements does not have %lld channels",
                          (long long)desc->per_picture, (long long)desc->channels);
    if (plan->desc.cfg_channels > gmem__max(1, desc->channels))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%d guided channels, where the latent has %lld",
                          plan->desc.cfg_channels, (long long)gmem__max(1, desc->channels));
    if (gmem__is_sde(plan->method) && !desc->noise)
        return gmem__fail(error, GMEM_E_ARGUMENT, "%s needs noise", plan->method->name);
    return GMEM_OK;
}

static gmem_status gmem__integrate(const gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                   gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__run run;
    gmem__arena arena;
    memset(&run, 0, sizeof run);
    memset(&arena, 0, sizeof arena);
    GMEM__TRY(gmem_sampler_check(&desc->sampler, 0, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    GMEM__TRY(gmem__check_integrate(context, desc, x, &plan, &run.count, error));
    run.plan = &plan;
    run.desc = desc;
    run.total_passes = gmem__plan_passes(&plan);
    run.steps = plan.intervals + plan.last_step;

    gmem__run_layout(&run, &arena);
    const int64_t bytes = arena.used;
    arena.bytes = bytes;
    arena.used = 0;
    arena.memory = (char *)gmem__alloc_raw(context, bytes, 1);
    if (!arena.memory)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler (%lld bytes)", (long long)bytes);
    gmem__run_layout(&run, &arena);
    memcpy(run.x, x, (size_t)run.count * sizeof(float));
    gmem_status status = gmem__run_solver(&run, error);
    if (status == GMEM_OK) {
        memcpy(x, run.x, (size_t)run.count * sizeof(float));
        if (desc->passes) *desc->passes = run.passes;
    }
    gmem__free(context, arena.memory, bytes, 1);
    return status;
}

GMEM_API gmem_status gmem_integrate(gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                    gmem_error *error) {
    if (!desc) return gmem__fail(error, GMEM_E_ARGUMENT, "there is nothing to integrate");
    return gmem__integrate(context, desc, x, error);
}

/* a network as the velocity -------------------------------------------------------------------------------------------
 */

/* Guided passes run a doubled batch: the conditional half first, then the null half. */
typedef struct gmem__sampling {
    const gmem_sample_desc *desc;
    const gmem_network_info *info;
    const gmem__method *method;
    int guided;
    int flip_time;     /* the network's time runs the other way: t -> 1 - t, ... */
    int flip_sign;     /* ... and its velocity, where it predicts one, points the other way */
    int doubled_draws; /* the published script draws noise for the doubled batch and uses the first half */
    int64_t batch, per_picture;
    gmem_pass *pass;
    float *t;        /* (2 batch) */
    float *snippets; /* (2 batch, snippet_width): the null half is zero */
    int64_t *labels; /* (2 batch) */
    float *x, *v;    /* (2 batch, per_picture), guided only */
    float *draws;    /* (2 batch, per_picture), doubled_draws only */
    float *times;    /* (time_count) the network's times to come, neighbours distinct */
    int64_t time_count;
    int64_t prepared_first, prepared_end; /* of `times`: what the pass holds prepared */
} gmem__sampling;

static float gmem__network_time(const gmem__sampling *sampling, double t) {
    return (float)(sampling->flip_time ? 1 - t : t);
}

/* Lets the pass compute the adaLN projections of this time and as many of the following as it can hold. */
static gmem_status gmem__prepare_times(gmem__sampling *sampling, float t, gmem_error *error) {
    int64_t i = sampling->prepared_first;
    while (i < sampling->time_count && sampling->times[i] != t)
        i++;
    if (i < sampling->prepared_end || i == sampling->time_count) return GMEM_OK;
    const int64_t conditions = sampling->batch + sampling->guided;
    const int64_t room = gmem__pass_prepare_limit(sampling->pass) / conditions;
    const int64_t count = gmem__min(room, sampling->time_count - i);
    if (count < 2) return GMEM_OK;
    sampling->prepared_first = i;
    sampling->prepared_end = i + count;
    return gmem_pass_prepare(sampling->pass, count, sampling->times + i, sampling->batch, sampling->desc->snippets,
                             sampling->desc->labels, sampling->guided, error);
}

static gmem_status gmem__run_both(gmem__sampling *sampling, const gmem_velocity_call *call, gmem_error *error) {
    const size_t half = (size_t)(sampling->batch * sampling->per_picture);
    memcpy(sampling->x, call->x, half * sizeof(float));
    memcpy(sampling->x + half, call->x, half * sizeof(float));
    GMEM__TRY(gmem_pass_run(sampling->pass, 2 * sampling->batch, sampling->x, sampling->t, sampling->snippets,
                            sampling->labels, sampling->v, error));
    memcpy(call->conditional, sampling->v, half * sizeof(float));
    memcpy(call->unconditional, sampling->v + half, half * sizeof(float));
    return GMEM_OK;
}

static void gmem__negate(float *v, int64_t count) {
    for (int64_t i = 0; v && i < count; i++)
        v[i] = -v[i];
}

static gmem_status gmem__network_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const float t = gmem__network_time(sampling, call->t);
    GMEM__TRY(gmem__prepare_times(sampling, t, error));
    for (int64_t i = 0; i < 2 * sampling->batch; i++)
        sampling->t[i] = t;
    if (call->conditional && call->unconditional)
        GMEM__TRY(gmem__run_both(sampling, call, error));
    else if (call->conditional)
        GMEM__TRY(gmem_pass_run(sampling->pass, sampling->batch, call->x, sampling->t, desc->snippets, desc->labels,
                                call->conditional, error));
    else
        GMEM__TRY(gmem_pass_run(sampling->pass, sampling->batch, call->x, sampling->t, NULL, NULL, call->unconditional,
                                error));
    if (sampling->flip_sign) {
        gmem__negate(call->conditional, sampling->batch * sampling->per_picture);
        gmem__negate(call->unconditional, sampling->batch * sampling->per_picture);
    }
    return GMEM_OK;
}

static gmem_status gmem__generator_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                         gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const gmem__draw_kind kind = sampling->method->repa ? GMEM__DRAW_DEVICE_F64 : GMEM__DRAW_HOST;
    (void)error;
    if (!sampling->doubled_draws) {
        gmem__rng_step_normal(desc->rng, kind, index, desc->picture, batch, per_picture, out);
        return GMEM_OK;
    }
    gmem__rng_step_normal(desc->rng, kind, index, desc->picture, 2 * batch, per_picture, sampling->draws);
    memcpy(out, sampling->draws, (size_t)(batch * per_picture) * sizeof(float));
    return GMEM_OK;
}

static gmem_status gmem__check_sample(const gmem_network *network, const gmem_sample_desc *desc, const float *x,
                                      int64_t per_picture, gmem_error *error) {
    int64_t elements;
    if (!network || !desc || !x)
        return gmem__fail(error, GMEM_E_ARGUMENT, "sampling needs a network, a description and a start");
    if (desc->batch < 1 || !gmem__mul(desc->batch, 4 * per_picture, &elements))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch is empty or too large");
    if (network->info.snippet_width > 0 && !desc->snippets)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on snippets, and none are given");
    if (network->info.classes > 0 && !desc->labels)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on class labels, and none are given");
    return GMEM_OK;
}

static void gmem__sampling_layout(gmem__sampling *sampling, gmem__arena *arena, int64_t time_count) {
    const gmem_network_info *info = sampling->info;
    const int64_t doubled = 2 * sampling->batch;
    sampling->t = GMEM__TAKE_F32(arena, doubled);
    sampling->times = GMEM__TAKE_F32(arena, time_count);
    if (sampling->doubled_draws) sampling->draws = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    if (!sampling->guided) return;
    sampling->x = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    sampling->v = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    if (info->snippet_width > 0) sampling->snippets = GMEM__TAKE_F32(arena, doubled * info->snippet_width);
    if (info->classes > 0) sampling->labels = (int64_t *)gmem__take(arena, doubled, sizeof(int64_t));
}

/* The doubled conditions and the times to come. */
static void gmem__sampling_fill(gmem__sampling *sampling, const gmem__plan *plan) {
    const int64_t batch = sampling->batch, width = sampling->info->snippet_width;
    if (sampling->snippets) {
        memset(sampling->snippets, 0, (size_t)(2 * batch * width) * sizeof(float));
        memcpy(sampling->snippets, sampling->desc->snippets, (size_t)(batch * width) * sizeof(float));
    }
    for (int64_t i = 0; sampling->labels && i < batch; i++) {
        sampling->labels[i] = sampling->desc->labels[i];
        sampling->labels[batch + i] = sampling->info->classes;
    }
    gmem__schedule schedule = gmem__schedule_start(plan);
    for (double t; gmem__schedule_next(&schedule, &t);) {
        float network_t = gmem__network_time(sampling, t);
        if (sampling->time_count == 0 || sampling->times[sampling->time_count - 1] != network_t)
            sampling->times[sampling->time_count++] = network_t;
    }
}

static gmem_status gmem__sample_run(const gmem_network *network, gmem__sampling *sampling, const gmem__plan *plan,
                                    float *x, gmem_error *error) {
    const gmem_sample_desc *desc = sampling->desc;
    gmem_integrate_desc integrate;
    gmem__sampling_fill(sampling, plan);
    memset(&integrate, 0, sizeof integrate);
    integrate.sampler = plan->desc;
    integrate.batch = sampling->batch;
    integrate.per_picture = sampling->per_picture;
    integrate.channels = sampling->info->channels;
    integrate.velocity = gmem__network_velocity;
    integrate.velocity_user = sampling;
    integrate.noise = desc->noise ? desc->noise : desc->rng ? gmem__generator_noise : NULL;
    integrate.noise_user = desc->noise ? desc->noise_user : sampling;
    integrate.progress = desc->progress;
    integrate.progress_user = desc->progress_user;
    integrate.passes = desc->passes;
    GMEM__TRY(gmem_pass_create(network, sampling->batch * (1 + sampling->guided), &sampling->pass, error));
    gmem_status status = gmem__integrate(network->context, &integrate, x, error);
    gmem_pass_destroy(sampling->pass);
    return status;
}

GMEM_API gmem_status gmem_sample(const gmem_network *network, const gmem_sample_desc *desc, float *x,
                                 gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__sampling sampling;
    gmem__arena arena;
    memset(&sampling, 0, sizeof sampling);
    memset(&arena, 0, sizeof arena);
    const int64_t per_picture = network ? network->info.channels * network->info.height * network->info.width : 0;
    GMEM__TRY(gmem__check_sample(network, desc, x, per_picture, error));
    GMEM__TRY(gmem_sampler_check(&desc->sampler, network->info.time_reversed, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    sampling.desc = desc;
    sampling.info = &network->info;
    sampling.method = plan.method;
    sampling.guided = resolved.cfg_scale > 1;
    sampling.flip_time = network->info.time_reversed != plan.method->repa;
    sampling.flip_sign = sampling.flip_time && resolved.prediction == GMEM_PREDICT_VELOCITY;
    sampling.doubled_draws = gmem__is_sde(plan.method) && !plan.method->repa && sampling.guided && !desc->noise &&
                             desc->rng && desc->rng->kind != GMEM_RNG_PHILOX;
    sampling.batch = desc->batch;
    sampling.per_picture = per_picture;

    const int64_t time_count = gmem__plan_passes(&plan);
    gmem__sampling_layout(&sampling, &arena, time_count);
    const int64_t bytes = arena.used;
    arena.bytes = bytes;
    arena.used = 0;
    arena.memory = (char *)gmem__alloc_raw(network->context, bytes, 1);
    if (!arena.memory)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler (%lld bytes)", (long long)bytes);
    gmem__sampling_layout(&sampling, &arena, time_count);
    gmem_status status = gmem__sample_run(network, &sampling, &plan, x, error);
    gmem__free(network->context, arena.memory, bytes, 1);
    return status;
}
