/* The samplers inside: a plan made from the settings, and a run that the solvers carry through. */
#ifndef GMEM__SAMPLER_H
#define GMEM__SAMPLER_H

#include "internal.h"

GMEM__INLINE double gmem__square(double x) { return x * x; }

/* path.c --------------------------------------------------------------------------------------------------------- */

/* Drift, score and denoised sample are all of the form x * state + model * (what the network gave). */
typedef struct gmem__blend {
    double x, model;
} gmem__blend;

/* x_t = alpha x_1 + sigma x_0, from noise x_0 at t = 0 to data x_1 at t = 1, with derivatives in t. */
typedef struct gmem__path_point {
    double alpha, d_alpha, sigma, d_sigma;
} gmem__path_point;

GMEM__FN gmem__path_point gmem__path_at(gmem_path path, double t);
/* The probability flow's drift, and the score grad log p_t, from a prediction. */
GMEM__FN gmem__blend gmem__path_drift(const gmem__path_point *at, gmem_prediction prediction);
GMEM__FN gmem__blend gmem__path_score(const gmem__path_point *at, gmem_prediction prediction);
/* The data x_1 that a prediction amounts to. */
GMEM__FN gmem__blend gmem__path_data(const gmem__path_point *at, gmem_prediction prediction);
/* The diffusion coefficient D of dx = (drift + D score) dt + sqrt(2 D) dw. */
GMEM__FN double gmem__path_diffusion(const gmem__path_point *at, double t, gmem_diffusion_form form, double norm);

/* sampler.c: the plan -------------------------------------------------------------------------------------------- */

typedef enum gmem__solver {
    GMEM__SOLVER_GRID,  /* explicit Runge-Kutta on the grid */
    GMEM__SOLVER_DOPRI, /* adaptive Runge-Kutta */
    GMEM__SOLVER_ADAMS, /* Adams-Bashforth on the grid */
    GMEM__SOLVER_DPMPP, /* DPM-Solver++, multistep, on the grid */
    GMEM__SOLVER_SDE_EULER,
    GMEM__SOLVER_SDE_HEUN
} gmem__solver;

/* One interval of a grid: where its stages lie (c, in units of the interval); for Runge-Kutta also Butcher's a, b. */
typedef struct gmem__method {
    const char *name;
    gmem__solver solver;
    int repa;    /* REPA's convention of time: noise at t = 1 */
    int stages;  /* multistep: of the first interval, the others have one */
    int history; /* multistep: predictions that an interval looks at, its own included; else 0 */
    double c[4], a[4][3], b[4];
} gmem__method;

GMEM__FN const gmem__method *gmem__method_of(gmem_method method);
GMEM__FN int gmem__is_sde(const gmem__method *method);

/* Resolved settings and the grid that they make. */
typedef struct gmem__plan {
    gmem_sampler_desc desc;
    const gmem__method *method;
    double start, end; /* of the grid */
    int64_t intervals; /* adaptive: 0 */
    int last_step;     /* whether a last step from `end` calls the network */
    double last_size;  /* its length, signed like the intervals */
} gmem__plan;

GMEM__FN gmem__plan gmem__plan_make(const gmem_sampler_desc *resolved);
GMEM__FN double gmem__plan_time(const gmem__plan *plan, int64_t i);                  /* grid point, 0 to intervals */
GMEM__FN int gmem__plan_stages(const gmem__plan *plan, int64_t i);                   /* calls in interval i */
GMEM__FN double gmem__plan_stage_time(const gmem__plan *plan, int64_t i, int stage); /* when they are made */
GMEM__FN int64_t gmem__plan_passes(const gmem__plan *plan);                          /* adaptive: 0 */

/* The times at which the velocity will be asked for, one after the other; next gives 0 at the end. */
typedef struct gmem__schedule {
    const gmem__plan *plan;
    int64_t interval;
    int stage;
} gmem__schedule;

GMEM__FN gmem__schedule gmem__schedule_start(const gmem__plan *plan);
GMEM__FN int gmem__schedule_next(gmem__schedule *schedule, double *t);

/* integrate.c: the run ------------------------------------------------------------------------------------------- */

#define GMEM__MAX_STAGES 7

/* Where a run's vectors are and what draws its noise. */
typedef struct gmem__integration {
    const gmem__engine *engine;
    const gmem_rng *philox; /* the noise of a step comes from this generator, drawn on the engine; or NULL */
    int64_t picture;        /* the first one's number, for it */
    int draw_start;         /* the start noise too: `x` of gmem__integrate is neither read nor written */
    /* Gets the result, of the engine, in place of the host's x; or NULL. */
    gmem_status (*take)(void *user, const gmem__engine *engine, const float *x, gmem_error *error);
    void *take_user;
} gmem__integration;

typedef struct gmem__run {
    const gmem__plan *plan;
    const gmem_integrate_desc *desc;
    const gmem__engine *engine; /* of the vectors that follow */
    const gmem__integration *how;
    float *host;   /* (count) where a device's vectors meet the caller's functions, or NULL */
    int64_t count; /* batch * per_picture: the length of every buffer here */
    float *x;      /* the state */
    float *stage;  /* the state that a stage looks at */
    float *k[GMEM__MAX_STAGES];
    float *unconditional;
    float *noise;
    int64_t passes, total_passes;
    int64_t step, steps;
} gmem__run;

/* out = what the network says of x at t, guided as the settings want it for `guide_t`, checked to be finite. */
GMEM__FN gmem_status gmem__run_model(gmem__run *run, double t, double guide_t, const float *x, float *out,
                                     gmem_error *error);
/* A step is over and the state has reached t: checks that it is finite, reports, and asks whether to go on. */
GMEM__FN gmem_status gmem__run_step_done(gmem__run *run, double t, gmem_error *error);
/* Of gmem__ops.combine over whole vectors. */
GMEM__FN void gmem__run_combine(const gmem__run *run, float *out, double x_weight, const float *x, int terms,
                                const double *weight, const float *const *k);
/* out = the generator's noise for this purpose and index. */
GMEM__FN void gmem__run_draw(const gmem__run *run, gmem_draw draw, int64_t index, float *out);
/* drift = blend.x * x + blend.model * drift */
GMEM__FN void gmem__run_blend(const gmem__run *run, gmem__blend blend, const float *x, float *drift);

/* gmem_integrate with vectors of an engine, of which only `x` is the host's: the velocity function gets addresses of
 * the engine, the noise and the progress function memory of the host. */
GMEM__FN gmem_status gmem__integrate(const gmem_context *context, const gmem__integration *how,
                                     const gmem_integrate_desc *desc, float *x, gmem_error *error);

/* ode.c, multistep.c, sde.c: from plan->start to the end; the state is in and out of run->x. */
GMEM__FN gmem_status gmem__run_grid(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_dopri5(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_multistep(gmem__run *run, gmem_error *error);
GMEM__FN gmem_status gmem__run_sde(gmem__run *run, gmem_error *error);

#endif /* GMEM__SAMPLER_H */
