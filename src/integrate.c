/* Integration: what every solver shares (guidance, checks, counting, progress), and its buffers. */
#include "sampler.h"

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
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.out = out;
    op.x = run->unconditional;
    op.x_weight = 1 - desc->cfg_scale;
    op.terms = 1;
    op.weight[0] = desc->cfg_scale;
    op.k[0] = out;
    op.rows = run->desc->batch;
    op.width = desc->cfg_channels ? per_picture / channels * desc->cfg_channels : per_picture;
    op.stride = per_picture;
    run->engine->ops->combine(run->engine, &op);
}

static gmem_status gmem__nonfinite(const gmem__run *run, const char *what, double t, gmem_error *error) {
    gmem__quoted at;
    return gmem__fail(error, GMEM_E_NONFINITE, "%s is not finite at t = %s (pass %lld)", what,
                      gmem__format_double(&at, t), (long long)run->passes);
}

/* x may be NULL. */
static int gmem__run_finite(const gmem__run *run, const float *x, int note) {
    return !x || run->engine->ops->finite(run->engine, x, run->count, note);
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
    gmem_error own = gmem__callback_error();
    gmem_status status = run->desc->velocity(run->desc->velocity_user, &call, &own);
    if (status != GMEM_OK) return gmem__fail_callback(error, status, &own, "the velocity function");
    run->passes++;
    if (!gmem__run_finite(run, call.conditional, GMEM__NOTE_MODEL) ||
        !gmem__run_finite(run, call.unconditional, GMEM__NOTE_MODEL))
        return gmem__nonfinite(run, "what the network gave", t, error);
    if (halves == GMEM__HALF_BOTH) gmem__guide(run, out);
    return GMEM_OK;
}

/* Once a step a device is waited for, and what it noted comes to light. */
static gmem_status gmem__run_settle(const gmem__run *run, double t, gmem_error *error) {
    int notes = 0;
    GMEM__TRY(run->engine->ops->settle(run->engine, &notes, error));
    if (notes & (GMEM__NOTE_NETWORK | GMEM__NOTE_MODEL)) return gmem__nonfinite(run, "what the network gave", t, error);
    return notes ? gmem__nonfinite(run, "the state", t, error) : GMEM_OK;
}

/* The state where the caller can read it. */
static const float *gmem__run_visible(const gmem__run *run) {
    if (!run->engine->stream) return run->x;
    run->engine->ops->download(run->engine, run->host, run->x, run->count);
    return run->host;
}

GMEM__FN gmem_status gmem__run_step_done(gmem__run *run, double t, gmem_error *error) {
    run->step++;
    if (!gmem__run_finite(run, run->x, GMEM__NOTE_STATE)) return gmem__nonfinite(run, "the state", t, error);
    GMEM__TRY(gmem__run_settle(run, t, error));
    if (!run->desc->progress) return GMEM_OK;
    gmem_progress progress;
    progress.step = run->step;
    progress.steps = run->steps;
    progress.passes = run->passes;
    progress.total_passes = run->total_passes;
    progress.t = t;
    progress.x = gmem__run_visible(run);
    if (run->desc->progress(run->desc->progress_user, &progress))
        return gmem__fail(error, GMEM_E_CANCELLED, "cancelled after step %lld", (long long)run->step);
    return GMEM_OK;
}

GMEM__FN void gmem__run_combine(const gmem__run *run, float *out, double x_weight, const float *x, int terms,
                                const double *weight, const float *const *k) {
    gmem__combine op;
    memset(&op, 0, sizeof op);
    op.out = out;
    op.x = x;
    op.x_weight = x_weight;
    op.terms = terms;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = weight[j];
        op.k[j] = k[j];
    }
    op.rows = 1;
    op.width = op.stride = run->count;
    run->engine->ops->combine(run->engine, &op);
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
    for (int i = 0; i < gmem__max(stages, method->history); i++)
        run->k[i] = GMEM__TAKE_F32(arena, run->count);
    if (run->plan->desc.cfg_scale > 1) run->unconditional = GMEM__TAKE_F32(arena, run->count);
    if (gmem__is_sde(method)) run->noise = GMEM__TAKE_F32(arena, run->count);
}

/* Whether a device's vectors go through the host on their way to the caller's functions. */
static int gmem__run_needs_host(const gmem__run *run) {
    return run->engine->stream && (run->desc->progress || (gmem__is_sde(run->plan->method) && !run->how->philox));
}

static gmem_status gmem__run_solver(gmem__run *run, gmem_error *error) {
    switch (run->plan->method->solver) {
    case GMEM__SOLVER_DOPRI:
        return gmem__run_dopri5(run, error);
    case GMEM__SOLVER_ADAMS:
    case GMEM__SOLVER_DPMPP:
        return gmem__run_multistep(run, error);
    case GMEM__SOLVER_SDE_EULER:
    case GMEM__SOLVER_SDE_HEUN:
        return gmem__run_sde(run, error);
    case GMEM__SOLVER_GRID:
        break;
    }
    return gmem__run_grid(run, error);
}

static gmem_status gmem__check_integrate(const gmem_context *context, const gmem__integration *how,
                                         const gmem_integrate_desc *desc, const float *x, const gmem__plan *plan,
                                         int64_t *count, gmem_error *error) {
    if (!context || (!x && !how->take) || !desc->velocity)
        return gmem__fail(error, GMEM_E_ARGUMENT, "integrating needs a context, a state and a velocity");
    if (desc->batch < 1 || desc->per_picture < 1 || !gmem__mul(desc->batch, desc->per_picture, count))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch or the picture is empty or too large");
    if (desc->channels < 0 || (desc->channels > 0 && desc->per_picture % desc->channels != 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a picture of %lld elements does not have %lld channels",
                          (long long)desc->per_picture, (long long)desc->channels);
    if (plan->desc.cfg_channels > gmem__max(1, desc->channels))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%d guided channels, where the latent has %lld",
                          plan->desc.cfg_channels, (long long)gmem__max(1, desc->channels));
    if (gmem__is_sde(plan->method) && !desc->noise && !how->philox)
        return gmem__fail(error, GMEM_E_ARGUMENT, "%s needs noise", plan->method->name);
    return GMEM_OK;
}

GMEM__FN void gmem__run_draw(const gmem__run *run, gmem_draw draw, int64_t index, float *out) {
    gmem__normal op;
    op.seed = run->how->philox->seed;
    op.draw = (int)draw;
    op.index = index;
    op.picture = run->how->picture;
    op.count = run->desc->batch;
    op.per_picture = run->desc->per_picture;
    op.out = out;
    run->engine->ops->normal(run->engine, &op);
}

static gmem_status gmem__run_between(gmem__run *run, float *x, gmem_error *error) {
    const gmem__engine *engine = run->engine;
    int notes;
    if (run->how->draw_start)
        gmem__run_draw(run, GMEM_DRAW_LATENT, 0, run->x);
    else
        engine->ops->upload(engine, run->x, x, run->count);
    GMEM__TRY(gmem__run_solver(run, error));
    GMEM__TRY(engine->ops->settle(engine, &notes, error)); /* before the caller's memory is touched */
    if (run->how->take) return run->how->take(run->how->take_user, engine, run->x, error);
    engine->ops->download(engine, x, run->x, run->count);
    return engine->ops->settle(engine, NULL, error);
}

GMEM__FN gmem_status gmem__integrate(const gmem_context *context, const gmem__integration *how,
                                     const gmem_integrate_desc *desc, float *x, gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__run run;
    gmem__arena arena;
    memset(&run, 0, sizeof run);
    memset(&arena, 0, sizeof arena);
    GMEM__TRY(gmem_sampler_check(&desc->sampler, 0, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    GMEM__TRY(gmem__check_integrate(context, how, desc, x, &plan, &run.count, error));
    run.plan = &plan;
    run.desc = desc;
    run.how = how;
    run.engine = how->engine;
    run.total_passes = gmem__plan_passes(&plan);
    run.steps = plan.intervals + plan.last_step;

    gmem__run_layout(&run, &arena);
    GMEM__TRY(gmem__engine_reserve(run.engine, context, &arena, "the sampler", error));
    gmem__run_layout(&run, &arena);
    const int64_t host = gmem__run_needs_host(&run) ? run.count : 0;
    if (host) run.host = (float *)gmem__alloc_raw(context, host, sizeof(float));
    gmem_status status = host && !run.host ? gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler")
                                           : gmem__run_between(&run, x, error);
    if (status == GMEM_OK && desc->passes) *desc->passes = run.passes;
    gmem__free(context, run.host, host, sizeof(float));
    run.engine->ops->release(run.engine, context, &arena);
    return status;
}

GMEM_API gmem_status gmem_integrate(gmem_context *context, const gmem_integrate_desc *desc, float *x,
                                    gmem_error *error) {
    gmem__integration how;
    if (!context || !desc) return gmem__fail(error, GMEM_E_ARGUMENT, "there is nothing to integrate");
    if (desc->sampler.cache_threshold > 0)
        return gmem__fail(error, GMEM_E_COMBINATION,
                          "a cache threshold is for sampling with a network, not for a velocity function");
    const gmem__engine engine = gmem__cpu_engine(context);
    memset(&how, 0, sizeof how);
    how.engine = &engine;
    return gmem__integrate(context, &how, desc, x, error);
}
