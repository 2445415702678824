/* The SDE's solvers, Euler-Maruyama and Heun, and the last step to the data. */
#include "sampler.h"

#include <math.h>

/* What a step needs to know at t: the reverse SDE's drift and the noise per square root of time. */
typedef struct gmem__sde_terms {
    gmem__blend drift;
    double noise;
} gmem__sde_terms;

/* REPA: drift v - t score with score = -((1 - t) v + x) / t, diffusion 2 t. */
static gmem__sde_terms gmem__repa_terms(double t) {
    gmem__sde_terms terms = {{1, 2 - t}, sqrt(2 * t)};
    return terms;
}

static gmem__sde_terms gmem__sde_at(const gmem__plan *plan, double t) {
    if (plan->method->repa) return gmem__repa_terms(t);
    const gmem_sampler_desc *desc = &plan->desc;
    gmem__path_point at = gmem__path_at(desc->path, t);
    gmem__blend flow = gmem__path_drift(&at, desc->prediction), score = gmem__path_score(&at, desc->prediction);
    double diffusion = gmem__path_diffusion(&at, t, desc->diffusion_form, desc->diffusion_norm);
    gmem__sde_terms terms;
    terms.drift.x = flow.x + diffusion * score.x;
    terms.drift.model = flow.model + diffusion * score.model;
    terms.noise = sqrt(2 * diffusion);
    return terms;
}

/* k = the drift of x at t. */
static gmem_status gmem__sde_drift(gmem__run *run, const gmem__sde_terms *terms, double t, const float *x, float *k,
                                   gmem_error *error) {
    GMEM__TRY(gmem__run_model(run, t, t, x, k, error));
    gmem__run_blend(run, terms->drift, x, k);
    return GMEM_OK;
}

/* run->noise = the noise for interval i: the generator's, drawn on the engine, or the caller's. */
static gmem_status gmem__sde_noise(gmem__run *run, int64_t i, gmem_error *error) {
    const gmem_integrate_desc *desc = run->desc;
    const gmem__ops *ops = run->engine->ops;
    if (run->how->philox) {
        gmem__run_draw(run, GMEM_DRAW_STEP, i, run->noise);
        return GMEM_OK;
    }
    float *const noise = run->engine->stream ? run->host : run->noise;
    gmem_error own = gmem__callback_error();
    gmem_status status = desc->noise(desc->noise_user, i, desc->batch, desc->per_picture, noise, &own);
    if (run->engine->stream) ops->upload(run->engine, run->noise, noise, run->count);
    return gmem__fail_callback(error, status, &own, "the noise function");
}

static gmem_status gmem__sde_interval(gmem__run *run, int64_t i, double dt, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    const double t = gmem__plan_time(plan, i), next_t = gmem__plan_time(plan, i + 1);
    const gmem__sde_terms terms = gmem__sde_at(plan, t);
    const double noise = terms.noise * sqrt(fabs(dt));
    const float *const draw = run->noise;
    GMEM__TRY(gmem__sde_noise(run, i, error));
    if (plan->method->solver == GMEM__SOLVER_SDE_EULER) {
        const double weight[2] = {dt, noise};
        GMEM__TRY(gmem__sde_drift(run, &terms, t, run->x, run->k[0], error));
        const float *const add[2] = {run->k[0], draw};
        gmem__run_combine(run, run->x, 1, run->x, 2, weight, add);
    } else { /* the noise comes first, and both stages look at the state with it */
        const gmem__sde_terms next = gmem__sde_at(plan, next_t);
        const double half[2] = {dt / 2, dt / 2};
        gmem__run_combine(run, run->x, 1, run->x, 1, &noise, &draw);
        GMEM__TRY(gmem__sde_drift(run, &terms, t, run->x, run->k[0], error));
        gmem__run_combine(run, run->stage, 1, run->x, 1, &dt, (const float *const *)run->k);
        GMEM__TRY(gmem__sde_drift(run, &next, next_t, run->stage, run->k[1], error));
        gmem__run_combine(run, run->x, 1, run->x, 2, half, (const float *const *)run->k);
    }
    return gmem__run_step_done(run, next_t, error);
}

/* What becomes of x in the last step, which adds no noise. */
static gmem__blend gmem__last_blend(const gmem__plan *plan, double t) {
    const gmem_sampler_desc *desc = &plan->desc;
    gmem__blend move;
    if (desc->last_step == GMEM_LAST_TWEEDIE) { /* (x + sigma^2 score) / alpha */
        gmem__path_point at = gmem__path_at(desc->path, t);
        gmem__blend score = gmem__path_score(&at, desc->prediction);
        move.x = (1 + at.sigma * at.sigma * score.x) / at.alpha;
        move.model = at.sigma * at.sigma * score.model / at.alpha;
        return move;
    }
    if (desc->last_step == GMEM_LAST_EULER) {
        gmem__path_point at = gmem__path_at(desc->path, t);
        move = gmem__path_drift(&at, desc->prediction);
    } else {
        move = gmem__sde_at(plan, t).drift;
    }
    move.x = 1 + plan->last_size * move.x;
    move.model = plan->last_size * move.model;
    return move;
}

GMEM__FN gmem_status gmem__run_sde(gmem__run *run, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    /* the transport package takes every interval to be as long as the first */
    double dt = gmem__plan_time(plan, gmem__min(1, plan->intervals)) - plan->start;
    for (int64_t i = 0; i < plan->intervals; i++) {
        if (plan->method->repa) dt = gmem__plan_time(plan, i + 1) - gmem__plan_time(plan, i);
        GMEM__TRY(gmem__sde_interval(run, i, dt, error));
    }
    if (!plan->last_step) return GMEM_OK;
    gmem__blend last = gmem__last_blend(plan, plan->end);
    GMEM__TRY(gmem__run_model(run, plan->end, plan->end, run->x, run->k[0], error));
    gmem__run_combine(run, run->x, last.x, run->x, 1, &last.model, (const float *const *)run->k);
    return gmem__run_step_done(run, plan->end + plan->last_size, error);
}
