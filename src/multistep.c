/* Multistep solvers of the probability flow on a grid that need not be even: one network pass an interval, the earlier
 * predictions remembered. The first intervals, which have none yet, are of lower order. */
#include "sampler.h"

#include <math.h>

/* What an interval makes of the state and of the predictions, the latest first. */
typedef struct gmem__multistep {
    double x, k[3];
} gmem__multistep;

/* Adams-Bashforth: the integral over the interval of the polynomial through the latest slopes (Hairer, Norsett, Wanner:
 * "Solving Ordinary Differential Equations I", III.5). Slopes at one time, on a grid finer than f32, count once. */
static gmem__multistep gmem__adams_weights(const gmem__plan *plan, int64_t i, int terms) {
    const double t = gmem__plan_time(plan, i), h = gmem__plan_time(plan, i + 1) - t;
    const double a = terms > 1 ? t - gmem__plan_time(plan, i - 1) : 0; /* back to the slope before, ... */
    const double b = terms > 2 ? t - gmem__plan_time(plan, i - 2) : 0; /* ... and to the one before that */
    gmem__multistep weights = {1, {h, 0, 0}};
    if (a > 0 && b > a) {
        weights.k[1] = -h * h * (h / 3 + b / 2) / (a * (b - a));
        weights.k[2] = h * h * (h / 3 + a / 2) / (b * (b - a));
    } else if (a > 0) {
        weights.k[1] = -h * h / (2 * a);
    }
    weights.k[0] = h - weights.k[1] - weights.k[2];
    return weights;
}

static double gmem__log_ratio(const gmem__path_point *at) { return log(at->alpha / at->sigma); }

/* DPM-Solver++(2M) (Lu et al., 2211.01095, algorithm 2): exact in the linear part, with D the data extrapolated in
 * lambda = log(alpha / sigma), whose steps are h:
 *     x' = sigma' / sigma x + (alpha' - alpha sigma' / sigma) D,  D = D_i + h / (2 h_before) (D_i - D_(i-1)).
 * lambda is infinite at pure noise and at the data: beside the former, and in the last interval as the published code
 * has it, D is D_i alone. */
static gmem__multistep gmem__dpmpp_weights(const gmem__plan *plan, int64_t i, int terms) {
    const gmem_path path = plan->desc.path;
    const gmem__path_point from = gmem__path_at(path, gmem__plan_time(plan, i));
    const gmem__path_point to = gmem__path_at(path, gmem__plan_time(plan, i + 1));
    const double kept = from.sigma > 0 ? to.sigma / from.sigma : 0, gain = to.alpha - from.alpha * kept;
    gmem__multistep weights = {kept, {gain, 0, 0}};
    if (terms < 2 || i + 1 == plan->intervals) return weights;
    const gmem__path_point before = gmem__path_at(path, gmem__plan_time(plan, i - 1));
    if (before.alpha <= 0 || to.sigma <= 0) return weights;
    const double lambda = gmem__log_ratio(&from), h_before = lambda - gmem__log_ratio(&before);
    if (h_before <= 0) return weights;
    weights.k[1] = -gain * (gmem__log_ratio(&to) - lambda) / (2 * h_before);
    weights.k[0] = gain - weights.k[1];
    return weights;
}

/* k[0] becomes the oldest prediction's buffer, the others move up. */
static void gmem__rotate_history(gmem__run *run, int history) {
    float *oldest = run->k[history - 1];
    for (int j = history - 1; j > 0; j--)
        run->k[j] = run->k[j - 1];
    run->k[0] = oldest;
}

/* k[0] = the slope of x at t, or the data that it amounts to. */
static gmem_status gmem__predict(gmem__run *run, double t, const float *x, float *k, gmem_error *error) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    const gmem__path_point at = gmem__path_at(desc->path, t);
    GMEM__TRY(gmem__run_model(run, t, t, x, k, error));
    gmem__run_blend(run,
                    run->plan->method->solver == GMEM__SOLVER_ADAMS ? gmem__path_drift(&at, desc->prediction)
                                                                    : gmem__path_data(&at, desc->prediction),
                    x, k);
    return GMEM_OK;
}

/* The third order would lose to the error of a first interval by Euler: Heun's second stage corrects it, from
 * x + h k[0] as the weights made it. */
static gmem_status gmem__correct_first(gmem__run *run, gmem_error *error) {
    const double t = gmem__plan_time(run->plan, 0), next = gmem__plan_time(run->plan, 1);
    const double half[2] = {-(next - t) / 2, (next - t) / 2};
    GMEM__TRY(gmem__predict(run, next, run->x, run->k[1], error));
    gmem__run_combine(run, run->x, 1, run->x, 2, half, (const float *const *)run->k);
    return GMEM_OK;
}

static gmem_status gmem__multistep_interval(gmem__run *run, int64_t i, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    const int terms = (int)gmem__min(i + 1, plan->method->history);
    const gmem__multistep weights = plan->method->solver == GMEM__SOLVER_ADAMS ? gmem__adams_weights(plan, i, terms)
                                                                               : gmem__dpmpp_weights(plan, i, terms);
    gmem__rotate_history(run, plan->method->history);
    GMEM__TRY(gmem__predict(run, gmem__plan_time(plan, i), run->x, run->k[0], error));
    gmem__run_combine(run, run->x, weights.x, run->x, terms, weights.k, (const float *const *)run->k);
    if (gmem__plan_stages(plan, i) > 1) GMEM__TRY(gmem__correct_first(run, error));
    return gmem__run_step_done(run, gmem__plan_time(plan, i + 1), error);
}

GMEM__FN gmem_status gmem__run_multistep(gmem__run *run, gmem_error *error) {
    for (int64_t i = 0; i < run->plan->intervals; i++)
        GMEM__TRY(gmem__multistep_interval(run, i, error));
    return GMEM_OK;
}
