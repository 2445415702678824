/* The paths between noise and data, and what drift, score and diffusion are along them. Formulas: SiT (Ma et al.,
 * 2401.08740), in its transport package path.py. */
#include "sampler.h"

#include <math.h>

#define GMEM__PI 3.141592653589793238462643383280

/* The variance-preserving path's schedule, beta from 0.1 to 20 (Song et al., 2011.13456). */
#define GMEM__VP_BETA_MIN 0.1
#define GMEM__VP_BETA_MAX 20.0

static gmem__path_point gmem__linear_at(double t) {
    gmem__path_point at;
    at.alpha = t;
    at.d_alpha = 1;
    at.sigma = 1 - t;
    at.d_sigma = -1;
    return at;
}

static gmem__path_point gmem__gvp_at(double t) {
    const double rate = GMEM__PI / 2;
    gmem__path_point at;
    at.alpha = sin(rate * t);
    at.d_alpha = rate * cos(rate * t);
    at.sigma = cos(rate * t);
    at.d_sigma = -rate * sin(rate * t);
    return at;
}

static gmem__path_point gmem__vp_at(double t) {
    const double s = 1 - t, range = GMEM__VP_BETA_MAX - GMEM__VP_BETA_MIN;
    const double log_alpha = -0.25 * s * s * range - 0.5 * s * GMEM__VP_BETA_MIN;
    const double d_log_alpha = 0.5 * s * range + 0.5 * GMEM__VP_BETA_MIN;
    gmem__path_point at;
    at.alpha = exp(log_alpha);
    at.d_alpha = at.alpha * d_log_alpha;
    at.sigma = sqrt(-expm1(2 * log_alpha));
    at.d_sigma = -at.alpha * at.d_alpha / at.sigma;
    return at;
}

GMEM__FN gmem__path_point gmem__path_at(gmem_path path, double t) {
    switch (path) {
    case GMEM_PATH_GVP:
        return gmem__gvp_at(t);
    case GMEM_PATH_VP:
        return gmem__vp_at(t);
    case GMEM_PATH_LINEAR:
        break;
    }
    return gmem__linear_at(t);
}

/* The derivative of log alpha. On Linear and GVP it has no value at t = 0, where no setting that needs it begins. */
static double gmem__path_ratio(const gmem__path_point *at) { return at->d_alpha / at->alpha; }

/* Half the squared diffusion of the path's own SDE, which SBDM (score-based diffusion model) takes as it is. */
static double gmem__path_variance(const gmem__path_point *at) {
    return gmem__path_ratio(at) * at->sigma * at->sigma - at->sigma * at->d_sigma;
}

GMEM__FN gmem__blend gmem__path_score(const gmem__path_point *at, gmem_prediction prediction) {
    gmem__blend score = {0, 1};
    if (prediction == GMEM_PREDICT_NOISE) {
        score.model = -1 / at->sigma;
    } else if (prediction == GMEM_PREDICT_VELOCITY) {
        double inverse_ratio = at->alpha / at->d_alpha;
        double variance = at->sigma * at->sigma - inverse_ratio * at->d_sigma * at->sigma;
        score.x = -1 / variance;
        score.model = inverse_ratio / variance;
    }
    return score;
}

GMEM__FN gmem__blend gmem__path_data(const gmem__path_point *at, gmem_prediction prediction) {
    const double determinant = at->alpha * at->d_sigma - at->d_alpha * at->sigma;
    gmem__blend data = {1 / at->alpha, 0};
    switch (prediction) {
    case GMEM_PREDICT_VELOCITY: /* from x = alpha x_1 + sigma x_0 and v = alpha' x_1 + sigma' x_0 */
        data.x = at->d_sigma / determinant;
        data.model = -at->sigma / determinant;
        break;
    case GMEM_PREDICT_NOISE:
        data.model = -at->sigma / at->alpha;
        break;
    case GMEM_PREDICT_SCORE: /* the noise is -sigma score */
        data.model = at->sigma * at->sigma / at->alpha;
        break;
    }
    return data;
}

GMEM__FN gmem__blend gmem__path_drift(const gmem__path_point *at, gmem_prediction prediction) {
    gmem__blend drift = {0, 1};
    if (prediction != GMEM_PREDICT_VELOCITY) {
        gmem__blend score = gmem__path_score(at, prediction);
        double variance = gmem__path_variance(at);
        drift.x = gmem__path_ratio(at) + variance * score.x;
        drift.model = variance * score.model;
    }
    return drift;
}

GMEM__FN double gmem__path_diffusion(const gmem__path_point *at, double t, gmem_diffusion_form form, double norm) {
    switch (form) {
    case GMEM_DIFFUSION_CONSTANT:
        return norm;
    case GMEM_DIFFUSION_SBDM:
        return norm * gmem__path_variance(at);
    case GMEM_DIFFUSION_SIGMA:
        return norm * at->sigma;
    case GMEM_DIFFUSION_DECREASING:
        return 0.25 * gmem__square(norm * cos(GMEM__PI * t) + 1);
    case GMEM_DIFFUSION_INCREASING_DECREASING:
        return norm * gmem__square(sin(GMEM__PI * t));
    case GMEM_DIFFUSION_DEFAULT:
    case GMEM_DIFFUSION_LINEAR:
        break;
    }
    return norm * (1 - t);
}
