/* A sampler's settings: checked, completed, and turned into the plan of when the network is called. */
#include "sampler.h"

/* The times nearest to the ends where noise and score predictions stay finite (SiT's sample_eps). */
#define GMEM__SAMPLE_EPS 1e-3

/* methods -------------------------------------------------------------------------------------------------------- */

/* In the order of gmem_method. rk4 is Kutta's 3/8 rule, as in torchdiffeq; heun3 is Heun's third-order rule. */
static const gmem__method gmem__methods[] = {
    {"default", GMEM__SOLVER_GRID, 0, 0, 0, {0}, {{0}}, {0}},
    {"euler", GMEM__SOLVER_GRID, 0, 1, 0, {0}, {{0}}, {1}},
    {"midpoint", GMEM__SOLVER_GRID, 0, 2, 0, {0, 0.5}, {{0}, {0.5}}, {0, 1}},
    {"heun2", GMEM__SOLVER_GRID, 0, 2, 0, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"heun3", GMEM__SOLVER_GRID, 0, 3, 0, {0, 1.0 / 3, 2.0 / 3}, {{0}, {1.0 / 3}, {0, 2.0 / 3}}, {0.25, 0, 0.75}},
    {"rk4",
     GMEM__SOLVER_GRID,
     0,
     4,
     0,
     {0, 1.0 / 3, 2.0 / 3, 1},
     {{0}, {1.0 / 3}, {-1.0 / 3, 1}, {1, -1, 1}},
     {0.125, 0.375, 0.375, 0.125}},
    {"dopri5", GMEM__SOLVER_DOPRI, 0, 0, 0, {0}, {{0}}, {0}},
    {"sde-euler", GMEM__SOLVER_SDE_EULER, 0, 1, 0, {0}, {{0}}, {0}},
    {"sde-heun", GMEM__SOLVER_SDE_HEUN, 0, 2, 0, {0, 1}, {{0}}, {0}},
    {"repa-euler", GMEM__SOLVER_GRID, 1, 1, 0, {0}, {{0}}, {1}},
    {"repa-heun", GMEM__SOLVER_GRID, 1, 2, 0, {0, 1}, {{0}, {1}}, {0.5, 0.5}},
    {"repa-sde", GMEM__SOLVER_SDE_EULER, 1, 1, 0, {0}, {{0}}, {0}},
    {"ab2", GMEM__SOLVER_ADAMS, 0, 1, 2, {0}, {{0}}, {0}},
    {"ab3", GMEM__SOLVER_ADAMS, 0, 2, 3, {0, 1}, {{0}}, {0}},
    {"dpmpp2m", GMEM__SOLVER_DPMPP, 0, 1, 2, {0}, {{0}}, {0}},
};

GMEM__FN const gmem__method *gmem__method_of(gmem_method method) { return &gmem__methods[method]; }

GMEM__FN int gmem__is_sde(const gmem__method *method) {
    return method->solver == GMEM__SOLVER_SDE_EULER || method->solver == GMEM__SOLVER_SDE_HEUN;
}

/* settings ------------------------------------------------------------------------------------------------------- */

static int gmem__in_range(int value, int last) { return value >= 0 && value <= last; }

static int gmem__is_finite(double x) { return x - x == 0; }

static gmem_status gmem__check_ranges(const gmem_sampler_desc *desc, gmem_error *error) {
    if (!gmem__in_range((int)desc->method, GMEM_DPMPP2M) ||
        !gmem__in_range((int)desc->diffusion_form, GMEM_DIFFUSION_INCREASING_DECREASING) ||
        !gmem__in_range((int)desc->last_step, GMEM_LAST_NONE) || !gmem__in_range((int)desc->path, GMEM_PATH_VP) ||
        !gmem__in_range((int)desc->prediction, GMEM_PREDICT_SCORE))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not one of its enumeration's values");
    if (!gmem__is_finite(desc->timestep_shift) || !gmem__is_finite(desc->atol) || !gmem__is_finite(desc->rtol) ||
        !gmem__is_finite(desc->diffusion_norm) || !gmem__is_finite(desc->last_step_size) ||
        !gmem__is_finite(desc->cfg_scale) || !gmem__is_finite(desc->cfg_start) || !gmem__is_finite(desc->cfg_end) ||
        !gmem__is_finite(desc->cache_threshold))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a sampler setting is not a finite number");
    if (desc->steps < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of steps is negative");
    if (desc->timestep_shift < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the timestep shift is negative");
    if (desc->atol < 0 || desc->rtol < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "a tolerance is negative");
    if (desc->diffusion_norm < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the diffusion norm is negative");
    if (desc->last_step_size >= 1) return gmem__fail(error, GMEM_E_ARGUMENT, "the last step is not shorter than 1");
    if (desc->cfg_channels < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the number of guided channels is negative");
    if (desc->cache_threshold < 0) return gmem__fail(error, GMEM_E_ARGUMENT, "the cache threshold is negative");
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
    if (method->solver == GMEM__SOLVER_DOPRI && desc->cache_threshold > 0)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a cache threshold is for methods whose times only go forward, not for %s", method->name);
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

/* the plan ------------------------------------------------------------------------------------------------------- */

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

GMEM__FN gmem__plan gmem__plan_make(const gmem_sampler_desc *resolved) {
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

/* REPA's Heun makes no correction in its last interval, multistep methods none after the first. */
GMEM__FN int gmem__plan_stages(const gmem__plan *plan, int64_t i) {
    const int single =
        plan->method->history > 0 ? i > 0 : plan->desc.method == GMEM_REPA_HEUN && i == plan->intervals - 1;
    return single ? 1 : plan->method->stages;
}

GMEM__FN double gmem__plan_stage_time(const gmem__plan *plan, int64_t i, int stage) {
    const double c = plan->method->c[stage];
    if (c == 0 || c == 1) return gmem__plan_time(plan, i + (c == 1));
    const double t = gmem__plan_time(plan, i);
    return (double)(float)(t + c * (gmem__plan_time(plan, i + 1) - t));
}

GMEM__FN int64_t gmem__plan_passes(const gmem__plan *plan) {
    int64_t passes = plan->last_step;
    for (int64_t i = 0; i < plan->intervals; i++)
        passes += gmem__plan_stages(plan, i);
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

GMEM__FN gmem__schedule gmem__schedule_start(const gmem__plan *plan) {
    gmem__schedule schedule = {plan, 0, 0};
    return schedule;
}

GMEM__FN int gmem__schedule_next(gmem__schedule *schedule, double *t) {
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
    gmem_sampler_desc resolved;
    if (gmem_sampler_check(desc, 0, &resolved, NULL) != GMEM_OK) return 0;
    const gmem__plan plan = gmem__plan_make(&resolved);
    gmem__schedule schedule = gmem__schedule_start(&plan);
    int64_t count = 0;
    for (double t; gmem__schedule_next(&schedule, &t); count++) {
        if (count < capacity) out[count] = t;
    }
    return count;
}
