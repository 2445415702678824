/* Vectors of the bank: normalising, mixing two, and the choice of a row from the start noise.
 * The four ways to mix are those of GMem's script for images. */
#include "internal.h"

#include <math.h>

/* a * wa + b * wb, or each element from one of them. */
typedef struct gmem__mixture {
    const float *a, *b; /* (width) */
    double wa, wb;
    int64_t half;       /* CONCAT: elements below come from a, the others from b */
    const float *draws; /* MASK: (width) uniform; those below `wb` take b; may be the output */
    gmem_mix_method method;
} gmem__mixture;

static double gmem__mixed(const gmem__mixture *mixture, int64_t i) {
    double a = (double)mixture->a[i], b = (double)mixture->b[i];
    if (mixture->method == GMEM_MIX_CONCAT) return i < mixture->half ? a : b;
    if (mixture->method == GMEM_MIX_MASK) return (double)mixture->draws[i] < mixture->wb ? b : a;
    return mixture->wa * a + mixture->wb * b;
}

static int gmem__norm_is_usable(double norm) { return norm > 0 && norm - norm == 0; }

/* |x|, not usable where an element is not finite. Elements of f32 cannot make the sum overflow in double. */
static double gmem__vector_norm(const float *x, int64_t width) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

GMEM_API gmem_status gmem_normalize(float *x, int64_t width, gmem_error *error) {
    double norm = gmem__vector_norm(x, width);
    if (!gmem__norm_is_usable(norm)) return gmem__fail(error, GMEM_E_ROW_ZERO, "a vector is zero or not finite");
    for (int64_t i = 0; i < width; i++) {
        x[i] = (float)((double)x[i] / norm);
    }
    return GMEM_OK;
}

/* The angle between two directions, exact near 0 and pi where acos of the product is not:
 * 2 atan2(|a - b|, |a + b|) of the unit vectors (Kahan). */
static double gmem__angle(const float *a, double norm_a, const float *b, double norm_b, int64_t width) {
    double difference = 0, sum = 0;
    for (int64_t i = 0; i < width; i++) {
        double x = (double)a[i] / norm_a, y = (double)b[i] / norm_b;
        difference += (x - y) * (x - y);
        sum += (x + y) * (x + y);
    }
    return 2 * atan2(sqrt(difference), sqrt(sum));
}

/* Weights on the arc from a to b, sin((1 - alpha) w) / sin w and sin(alpha w) / sin w. Equal directions make it the
 * linear mixture; opposite ones have no shortest arc, which is refused between the ends. */
static gmem_status gmem__mix_weights(gmem__mixture *mixture, int64_t width, double alpha, gmem_error *error) {
    double norm_a = gmem__vector_norm(mixture->a, width), norm_b = gmem__vector_norm(mixture->b, width);
    mixture->wa = 1 - alpha;
    mixture->wb = alpha;
    if (!gmem__norm_is_usable(norm_a) || !gmem__norm_is_usable(norm_b))
        return gmem__fail(error, GMEM_E_ROW_ZERO, "a vector to mix is zero or not finite");
    if (mixture->method != GMEM_MIX_SPHERICAL || alpha <= 0 || alpha >= 1) return GMEM_OK;
    double angle = gmem__angle(mixture->a, norm_a, mixture->b, norm_b, width);
    if (sin(angle) >= 1e-6) {
        mixture->wa = sin((1 - alpha) * angle) / sin(angle);
        mixture->wb = sin(alpha * angle) / sin(angle);
    } else if (angle > 1) {
        return gmem__fail(error, GMEM_E_ROW_ZERO, "opposite vectors have no shortest arc between them");
    }
    return GMEM_OK;
}

#define GMEM__MIX_LEAST 1e-12 /* norm of a mixture that has not vanished */

/* A masked mixture surely does not vanish where one element alone suffices in both: told before `out` is drawn into. */
static int gmem__share_an_element(const float *a, const float *b, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        if (fabs((double)a[i]) > GMEM__MIX_LEAST && fabs((double)b[i]) > GMEM__MIX_LEAST) return 1;
    }
    return 0;
}

static gmem_status gmem__mix_draw(gmem__mixture *mixture, int64_t width, gmem_rng *rng, int64_t picture, float *out,
                                  gmem_error *error) {
    if (!rng || out == mixture->a || out == mixture->b)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a mask needs a generator and an output of its own");
    if (!gmem__share_an_element(mixture->a, mixture->b, width))
        return gmem__fail(error, GMEM_E_ROW_ZERO, "no element is nonzero in both vectors: a mask may leave none");
    gmem_rng_uniform(rng, GMEM_DRAW_MIX, picture, 1, width, out);
    mixture->draws = out;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_mix(gmem_mix_method method, const float *a, const float *b, int64_t width, double alpha,
                              gmem_rng *rng, int64_t picture, float *out, gmem_error *error) {
    if (!a || !b || !out || width < 1 || !(alpha >= 0 && alpha <= 1) || (int)method < 0 || method > GMEM_MIX_MASK)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_mix needs two vectors and alpha from 0 to 1");
    gmem__mixture mixture = {a, b, 0, 0, width / 2, NULL, method};
    GMEM__TRY(gmem__mix_weights(&mixture, width, alpha, error));
    if (method == GMEM_MIX_MASK) GMEM__TRY(gmem__mix_draw(&mixture, width, rng, picture, out, error));
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += gmem__mixed(&mixture, i) * gmem__mixed(&mixture, i);
    }
    double norm = sqrt(sum);
    if (!(norm > GMEM__MIX_LEAST)) return gmem__fail(error, GMEM_E_ROW_ZERO, "the mixture of the two vectors vanishes");
    for (int64_t i = 0; i < width; i++) {
        out[i] = (float)(gmem__mixed(&mixture, i) / norm);
    }
    return GMEM_OK;
}

/* the first version's choice -------------------------------------------------------------------------------------- */

GMEM_API gmem_status gmem_choose_row(const int64_t *memoryfreq, int64_t rows, const float *z, int64_t count,
                                     int64_t *row, gmem_error *error) {
    double total = 0, sum = 0, below = 0;
    if (!memoryfreq || !z || !row || rows < 1 || count < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_choose_row needs frequencies and noise");
    for (int64_t i = 0; i < rows; i++) {
        if (memoryfreq[i] < 0)
            return gmem__fail(error, GMEM_E_ARGUMENT, "the frequency of row %lld is negative", (long long)i);
        total += (double)memoryfreq[i];
    }
    for (int64_t i = 0; i < count; i++) {
        sum += (double)z[i];
    }
    if (!(total > 0) || !(sum - sum == 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "no frequency is positive, or the noise is not finite");
    /* the mean of count standard normal values times sqrt(count) is standard normal, so u is uniform */
    double u = 0.5 * erfc(-(sum / sqrt((double)count)) / sqrt(2.0));
    int64_t chosen = 0, last = 0;
    for (int64_t i = 0; i < rows; i++) {
        below += (double)memoryfreq[i];
        if (below / total <= u) chosen = i + 1;
        if (memoryfreq[i] > 0) last = i;
    }
    *row = gmem__min(chosen, last); /* u rounds to 1 beyond 8 sigma */
    return GMEM_OK;
}

#undef GMEM__MIX_LEAST
