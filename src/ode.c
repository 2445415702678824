/* The probability flow's solvers: Runge-Kutta on a fixed grid, and Dormand-Prince 5(4) with step control. */
#include "sampler.h"

#include <math.h>

/* k = the drift of x at t. */
static gmem_status gmem__drift(gmem__run *run, double t, double guide_t, const float *x, float *k, gmem_error *error) {
    const gmem_sampler_desc *desc = &run->plan->desc;
    GMEM__TRY(gmem__run_model(run, t, guide_t, x, k, error));
    if (desc->prediction == GMEM_PREDICT_VELOCITY) return GMEM_OK;
    gmem__path_point at = gmem__path_at(desc->path, t);
    gmem__run_blend(run, gmem__path_drift(&at, desc->prediction), x, k);
    return GMEM_OK;
}

/* the fixed grid ------------------------------------------------------------------------------------------------- */

static gmem_status gmem__grid_interval(gmem__run *run, int64_t i, const gmem__method *method, gmem_error *error) {
    const double t = gmem__plan_time(run->plan, i), dt = gmem__plan_time(run->plan, i + 1) - t;
    double weight[4];
    for (int stage = 0; stage < method->stages; stage++) {
        const double stage_t = gmem__plan_stage_time(run->plan, i, stage);
        const float *x = run->x;
        if (stage > 0) {
            for (int j = 0; j < stage; j++)
                weight[j] = dt * method->a[stage][j];
            gmem__run_combine(run, run->stage, 1, run->x, stage, weight, (const float *const *)run->k);
            x = run->stage;
        }
        /* REPA decides on guidance once an interval. */
        GMEM__TRY(gmem__drift(run, stage_t, method->repa ? t : stage_t, x, run->k[stage], error));
    }
    for (int j = 0; j < method->stages; j++)
        weight[j] = dt * method->b[j];
    gmem__run_combine(run, run->x, 1, run->x, method->stages, weight, (const float *const *)run->k);
    return gmem__run_step_done(run, t + dt, error);
}

GMEM__FN gmem_status gmem__run_grid(gmem__run *run, gmem_error *error) {
    const gmem__plan *plan = run->plan;
    for (int64_t i = 0; i < plan->intervals; i++) {
        int whole = gmem__plan_stages(plan, i) == plan->method->stages;
        GMEM__TRY(gmem__grid_interval(run, i, whole ? plan->method : gmem__method_of(GMEM_REPA_EULER), error));
    }
    return GMEM_OK;
}

/* Dormand-Prince -------------------------------------------------------------------------------------------------- */

/* Tableau: Dormand and Prince, 1980; error weights and midpoint: Shampine, 1986. Control as torchdiffeq has it: the
 * last point is not stepped on but interpolated back to. */

static const double gmem__dopri_c[6] = {1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1, 1};
static const double gmem__dopri_a[6][6] = {
    {1.0 / 5},
    {3.0 / 40, 9.0 / 40},
    {44.0 / 45, -56.0 / 15, 32.0 / 9},
    {19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729},
    {9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656},
    {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84},
};
static const double gmem__dopri_error[7] = {35.0 / 384 - 1951.0 / 21600,
                                            0,
                                            500.0 / 1113 - 22642.0 / 50085,
                                            125.0 / 192 - 451.0 / 720,
                                            -2187.0 / 6784 + 12231.0 / 42400,
                                            11.0 / 84 - 649.0 / 6300,
                                            -1.0 / 60};
static const double gmem__dopri_middle[7] = {6025192743.0 / 30085553152.0 / 2,     0,
                                             51252292925.0 / 65400821598.0 / 2,    -2691868925.0 / 45128329728.0 / 2,
                                             187940372067.0 / 1594534317056.0 / 2, -1776094331.0 / 19743644256.0 / 2,
                                             11237099.0 / 235043384.0 / 2};

#define GMEM__DOPRI_ORDER      5
#define GMEM__DOPRI_SAFETY     0.9
#define GMEM__DOPRI_MAX_GROWTH 10.0
#define GMEM__DOPRI_MAX_SHRINK 0.2

/* The RMS over the whole batch of a combination of k's, in units of the tolerance at x (and y, where that is not NULL).
 */
static double gmem__dopri_norm(const gmem__run *run, int terms, const double *weight, const float *const *k,
                               const float *x, const float *y) {
    gmem__error_norm op;
    memset(&op, 0, sizeof op);
    op.terms = terms;
    for (int j = 0; j < terms; j++) {
        op.weight[j] = weight[j];
        op.k[j] = k[j];
    }
    op.x = x;
    op.y = y;
    op.atol = run->plan->desc.atol;
    op.rtol = run->plan->desc.rtol;
    op.count = run->count;
    return sqrt(run->engine->ops->error_norm(run->engine, &op) / (double)run->count);
}

/* The first step's length (Hairer, Norsett, Wanner: "Solving Ordinary Differential Equations I", II.4); k[0] holds the
 * drift at the start. */
static gmem_status gmem__dopri_first_step(gmem__run *run, double t, double *dt, gmem_error *error) {
    static const double one = 1, difference[2] = {-1, 1};
    const float *const x = run->x, *const *const k = (const float *const *)run->k;
    const double d0 = gmem__dopri_norm(run, 1, &one, &x, x, NULL), d1 = gmem__dopri_norm(run, 1, &one, k, x, NULL);
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    gmem__run_combine(run, run->stage, 1, x, 1, &h0, k);
    double next_t = (double)(float)(t + h0);
    GMEM__TRY(gmem__drift(run, next_t, next_t, run->stage, run->k[1], error));
    const double d2 = gmem__dopri_norm(run, 2, difference, k, x, NULL) / h0;
    double h1 = d1 <= 1e-15 && d2 <= 1e-15 ? fmax(1e-6, h0 * 1e-3) : pow(0.01 / fmax(d1, d2), 1.0 / GMEM__DOPRI_ORDER);
    *dt = fmin(100 * h0, h1);
    return GMEM_OK;
}

/* k[1] to k[6] and, in run->stage, the state at t + dt. */
static gmem_status gmem__dopri_attempt(gmem__run *run, double t, double dt, gmem_error *error) {
    const float t0 = (float)t, t1 = (float)(t + dt);
    for (int stage = 0; stage < 6; stage++) {
        double weight[6];
        for (int j = 0; j <= stage; j++)
            weight[j] = dt * gmem__dopri_a[stage][j];
        gmem__run_combine(run, run->stage, 1, run->x, stage + 1, weight, (const float *const *)run->k);
        /* just before the end, lest it be a discontinuity */
        float stage_t =
            gmem__dopri_c[stage] < 1 ? (float)((double)t0 + gmem__dopri_c[stage] * dt) : nextafterf(t1, t1 - 1);
        GMEM__TRY(gmem__drift(run, (double)stage_t, (double)stage_t, run->stage, run->k[stage + 1], error));
    }
    return GMEM_OK;
}

/* The estimated error in units of the tolerance. */
static double gmem__dopri_error_ratio(const gmem__run *run, double dt) {
    double weight[7];
    for (int j = 0; j < 7; j++)
        weight[j] = dt * gmem__dopri_error[j];
    return gmem__dopri_norm(run, 7, weight, (const float *const *)run->k, run->x, run->stage);
}

static double gmem__dopri_next_step(double dt, double ratio) {
    if (ratio == 0) return dt * GMEM__DOPRI_MAX_GROWTH;
    double least = ratio < 1 ? 1 : GMEM__DOPRI_MAX_SHRINK;
    return dt * fmin(GMEM__DOPRI_MAX_GROWTH, fmax(GMEM__DOPRI_SAFETY / pow(ratio, 1.0 / GMEM__DOPRI_ORDER), least));
}

/* The state a fraction `s` into the step just taken, by the quartic through both ends y0 and y1, their slopes f0 and f1
 * and the middle m:
 *     a s^4 + b s^3 + c s^2 + f0 s + y0,  a = 2 (f1 - f0) - 8 (y1 + y0) + 16 m,  b = 5 f0 - 3 f1 + 18 y0 + 14 y1 - 32
 * m, c = f1 - 4 f0 - 11 y0 - 5 y1 + 16 m,  m = y0 + what gmem__dopri_middle makes of the slopes. */
static void gmem__dopri_interpolate(gmem__run *run, double dt, double s) {
    const double s2 = s * s, s3 = s2 * s, s4 = s2 * s2, middle = 16 * s4 - 32 * s3 + 16 * s2;
    const float *vector[8];
    double weight[8];
    for (int j = 0; j < 7; j++) {
        vector[j] = run->k[j];
        weight[j] = dt * gmem__dopri_middle[j] * middle;
    }
    weight[0] += dt * (-2 * s4 + 5 * s3 - 4 * s2 + s);
    weight[6] += dt * (2 * s4 - 3 * s3 + s2);
    vector[7] = run->stage;
    weight[7] = -8 * s4 + 14 * s3 - 5 * s2;
    gmem__run_combine(run, run->x, 1 - 8 * s4 + 18 * s3 - 11 * s2 + middle, run->x, 8, weight, vector);
}

static void gmem__swap(float **a, float **b) {
    float *t = *a;
    *a = *b;
    *b = t;
}

GMEM__FN gmem_status gmem__run_dopri5(gmem__run *run, gmem_error *error) {
    const double end = run->plan->end;
    double t = run->plan->start, dt = 0;
    GMEM__TRY(gmem__drift(run, t, t, run->x, run->k[0], error));
    GMEM__TRY(gmem__dopri_first_step(run, t, &dt, error));
    while (t < end) {
        if (!(t + dt > t)) {
            gmem__quoted at;
            return gmem__fail(error, GMEM_E_STIFF, "at t = %s the adaptive step is too small to advance",
                              gmem__format_double(&at, t));
        }
        GMEM__TRY(gmem__dopri_attempt(run, t, dt, error));
        double ratio = gmem__dopri_error_ratio(run, dt);
        if (ratio <= 1) {
            double next = t + dt;
            if (next >= end) {
                gmem__dopri_interpolate(run, dt, (end - t) / (next - t));
                next = end;
            } else {
                gmem__swap(&run->x, &run->stage);
                gmem__swap(&run->k[0], &run->k[6]);
            }
            t = next;
        }
        dt = gmem__dopri_next_step(dt, ratio);
        GMEM__TRY(gmem__run_step_done(run, t, error));
    }
    return GMEM_OK;
}

#undef GMEM__DOPRI_ORDER
#undef GMEM__DOPRI_SAFETY
#undef GMEM__DOPRI_MAX_GROWTH
#undef GMEM__DOPRI_MAX_SHRINK
