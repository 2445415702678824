/* Symmetric eigenproblems in double: Householder's reduction to a tridiagonal matrix, then the QL iteration with
 * implicit shifts (Golub and Van Loan, Matrix Computations, 8.3; EISPACK's tred2 and tql2). The vectors are kept as
 * rows, so that every inner loop runs along contiguous memory. */
#include "eigen.h"

#include "../backends/cpu/cpu.h"

#include <float.h>
#include <math.h>

#define GMEM__EIGEN_STRIP (GMEM__SCRATCH / 2 / GMEM__EIGEN_MOST) /* columns of doubles in a thread's scratch */

/* row arithmetic -------------------------------------------------------------------------------------------------- */

/* Four sums side by side: they need not wait for each other. */
static double gmem__eigen_dot(const double *x, const double *y, int64_t count) {
    double a = 0, b = 0, c = 0, d = 0;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        a += x[i] * y[i];
        b += x[i + 1] * y[i + 1];
        c += x[i + 2] * y[i + 2];
        d += x[i + 3] * y[i + 3];
    }
    for (; i < count; i++)
        a += x[i] * y[i];
    return (a + b) + (c + d);
}

/* y += factor * x */
static void gmem__eigen_add(double *GMEM__RESTRICT y, const double *GMEM__RESTRICT x, double factor, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        y[i] += factor * x[i];
}

/* scaling --------------------------------------------------------------------------------------------------------- */

/* The power of two that brings the largest element of the lower triangle to [0.5, 1): squares cannot overflow, and
 * nothing is rounded. */
static int gmem__eigen_exponent(const double *a, int64_t n) {
    double largest = 0;
    int exponent = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++)
            largest = fmax(largest, fabs(a[i * n + j]));
    }
    (void)frexp(largest, &exponent);
    return exponent;
}

/* The lower triangle times 2^-exponent, in both triangles' place. */
static void gmem__eigen_scale(double *a, int64_t n, int exponent) {
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++)
            a[i * n + j] = ldexp(a[i * n + j], -exponent);
    }
}

/* to a tridiagonal matrix ----------------------------------------------------------------------------------------- */

/* u (count) becomes the vector of the reflection I - u u^T / h that leaves only the last element of what u was, *rest;
 * returns h, or 0 where there is nothing to do. */
static double gmem__eigen_reflector(double *u, int64_t count, double *rest) {
    const double last = u[count - 1], others = gmem__eigen_dot(u, u, count - 1);
    *rest = last;
    if (others < DBL_MIN / DBL_EPSILON) return 0; /* squares that small have lost their digits */
    const double norm = sqrt(others + last * last);
    *rest = last > 0 ? -norm : norm;
    u[count - 1] = last - *rest;
    return norm * norm - last * *rest;
}

/* The lower triangle of a[0 .. count) from both sides by the reflection. p (count) is memory for a u / h. */
static void gmem__eigen_reflect(double *a, int64_t n, int64_t count, const double *u, double h, double *p) {
    for (int64_t i = 0; i < count; i++) { /* row i below the diagonal is column i above it */
        const double *row = a + i * n;
        p[i] = gmem__eigen_dot(row, u, i + 1);
        gmem__eigen_add(p, row, u[i], i);
    }
    for (int64_t i = 0; i < count; i++)
        p[i] /= h;
    gmem__eigen_add(p, u, -gmem__eigen_dot(u, p, count) / (2 * h), count);
    for (int64_t i = 0; i < count; i++) { /* a -= u p^T + p u^T */
        gmem__eigen_add(a + i * n, p, -u[i], i + 1);
        gmem__eigen_add(a + i * n, u, -p[i], i + 1);
    }
}

/* Row i of a, left of the diagonal, keeps the vector of reflection i, and h[i] its h. e[i] is the element between i - 1
 * and i. The diagonal stays where it is. */
static void gmem__eigen_tridiagonalise(double *a, int64_t n, double *e, double *h) {
    for (int64_t i = n - 1; i > 0; i--) {
        h[i] = gmem__eigen_reflector(a + i * n, i, &e[i]);
        if (h[i] != 0) gmem__eigen_reflect(a, n, i, a + i * n, h[i], e); /* e[0 .. i) is not needed yet */
    }
    e[0] = h[0] = 0;
}

/* The diagonal goes to d (n), where h was; the reflections' product to a. */
static void gmem__eigen_accumulate(double *a, int64_t n, double *d) {
    for (int64_t i = 0; i < n; i++) {
        double *u = a + i * n;
        const double h = d[i];
        for (int64_t j = 0; h != 0 && j < i; j++)
            gmem__eigen_add(a + j * n, u, -gmem__eigen_dot(a + j * n, u, i) / h, i);
        d[i] = u[i];
        for (int64_t j = 0; j < i; j++)
            u[j] = a[j * n + i] = 0;
        u[i] = 1;
    }
}

/* the QL iteration ------------------------------------------------------------------------------------------------ */

/* Sweeps over d and e do not ask for the vectors, whose turns are kept and made up for later, many sweeps at a time: a
 * strip of the vectors' columns then stays in a cache, and strips go to threads. */
typedef struct gmem__eigen_turns {
    double *a; /* (n, n) the vectors */
    int64_t n;
    double *c, *s;                                               /* (GMEM__EIGEN_SWEEPS, n) of rows i and i + 1 */
    int64_t first[GMEM__EIGEN_SWEEPS], last[GMEM__EIGEN_SWEEPS]; /* a sweep turned from last - 1 down to first */
    int64_t count;
} gmem__eigen_turns;

/* (x, y) turned: x' = c x + s y, y' = c y - s x. */
static void gmem__eigen_turn(double *GMEM__RESTRICT x, double *GMEM__RESTRICT y, double c, double s) {
    for (int i = 0; i < GMEM__EIGEN_STRIP; i++) {
        const double before = x[i];
        x[i] = c * before + s * y[i];
        y[i] = c * y[i] - s * before;
    }
}

/* Between the matrix, whose rows may lie where they evict each other, and memory of its own (n, GMEM__EIGEN_STRIP). */
static void gmem__eigen_move_strip(const gmem__eigen_turns *turns, int64_t column, double *strip, int back) {
    const size_t bytes = (size_t)gmem__min(GMEM__EIGEN_STRIP, turns->n - column) * sizeof(double);
    for (int64_t row = 0; row < turns->n; row++) {
        double *stored = turns->a + row * turns->n + column, *here = strip + row * GMEM__EIGEN_STRIP;
        memcpy(back ? stored : here, back ? here : stored, bytes);
    }
}

static void gmem__eigen_turn_strip(const void *turns_, int64_t i, float *scratch) {
    const gmem__eigen_turns *turns = (const gmem__eigen_turns *)turns_;
    double *strip = (double *)(void *)scratch;
    memset(strip, 0, (size_t)(turns->n * GMEM__EIGEN_STRIP) * sizeof *strip);
    gmem__eigen_move_strip(turns, i * GMEM__EIGEN_STRIP, strip, 0);
    for (int64_t sweep = 0; sweep < turns->count; sweep++) {
        const double *c = turns->c + sweep * turns->n, *s = turns->s + sweep * turns->n;
        for (int64_t row = turns->last[sweep] - 1; row >= turns->first[sweep]; row--)
            gmem__eigen_turn(strip + (row + 1) * GMEM__EIGEN_STRIP, strip + row * GMEM__EIGEN_STRIP, c[row], s[row]);
    }
    gmem__eigen_move_strip(turns, i * GMEM__EIGEN_STRIP, strip, 1);
}

static void gmem__eigen_turn_all(const gmem__engine *engine, gmem__eigen_turns *turns) {
    gmem__run_tasks(engine, gmem__ceil_div(turns->n, GMEM__EIGEN_STRIP), gmem__eigen_turn_strip, turns);
    turns->count = 0;
}

/* One sweep over the block [first, last] of d and e (e[i] between i and i + 1), shifted by Wilkinson's choice. */
static void gmem__eigen_sweep(gmem__eigen_turns *turns, double *d, double *e, int64_t first, int64_t last) {
    const double half = (d[first + 1] - d[first]) / (2 * e[first]);
    double *cosine = turns->c + turns->count * turns->n, *sine = turns->s + turns->count * turns->n;
    double g = d[last] - d[first] + e[first] / (half + copysign(hypot(half, 1.0), half));
    double s = 1, c = 1, shift = 0;
    int64_t i = last - 1;
    for (; i >= first; i--) {
        const double f = s * e[i], b = c * e[i], r = hypot(f, g);
        e[i + 1] = r;
        if (r == 0) break; /* the block has come apart on the way */
        s = f / r;
        c = g / r;
        g = d[i + 1] - shift;
        const double q = (d[i] - g) * s + 2 * c * b;
        shift = s * q;
        d[i + 1] = g + shift;
        g = c * q - b;
        cosine[i] = c;
        sine[i] = s;
    }
    d[i + 1] -= shift;
    if (i < first) e[first] = g;
    e[last] = 0;
    turns->first[turns->count] = i + 1;
    turns->last[turns->count++] = last;
}

/* The end of the block that begins at `first`: what follows it is coupled by nothing more than rounding. */
static int64_t gmem__eigen_block_end(const double *e, int64_t n, int64_t first, double negligible) {
    int64_t last = first;
    while (last < n - 1 && fabs(e[last]) > negligible)
        last++;
    return last;
}

static int gmem__eigen_iterate(const gmem__engine *engine, gmem__eigen_turns *turns, double *d, double *e) {
    const int64_t n = turns->n;
    const int most = 60; /* sweeps for one value; two or three are usual */
    double negligible = 0;
    for (int64_t i = 0; i < n; i++) {
        e[i] = i + 1 < n ? e[i + 1] : 0;
        negligible = fmax(negligible, DBL_EPSILON * (fabs(d[i]) + fabs(e[i])));
    }
    for (int64_t first = 0; first < n; first++) {
        for (int sweep = 0;; sweep++) {
            const int64_t last = gmem__eigen_block_end(e, n, first, negligible);
            if (last == first) break;
            if (sweep == most) return 0;
            gmem__eigen_sweep(turns, d, e, first, last);
            if (turns->count == GMEM__EIGEN_SWEEPS) gmem__eigen_turn_all(engine, turns);
        }
    }
    gmem__eigen_turn_all(engine, turns);
    return 1;
}

/* Largest first, the vectors with them. */
static void gmem__eigen_sort(double *a, int64_t n, double *values) {
    for (int64_t i = 0; i < n; i++) {
        int64_t largest = i;
        for (int64_t j = i + 1; j < n; j++) {
            if (values[j] > values[largest]) largest = j;
        }
        if (largest == i) continue;
        const double value = values[i];
        values[i] = values[largest];
        values[largest] = value;
        for (int64_t k = 0; k < n; k++) {
            const double element = a[i * n + k];
            a[i * n + k] = a[largest * n + k];
            a[largest * n + k] = element;
        }
    }
}

GMEM__FN int gmem__eigen_symmetric(const gmem__engine *engine, double *a, int64_t n, double *values, double *work) {
    const int exponent = gmem__eigen_exponent(a, n);
    gmem__eigen_turns turns;
    double *e = work;
    memset(&turns, 0, sizeof turns);
    turns.a = a;
    turns.n = n;
    turns.c = work + n;
    turns.s = turns.c + GMEM__EIGEN_SWEEPS * n;
    gmem__eigen_scale(a, n, exponent);
    gmem__eigen_tridiagonalise(a, n, e, values);
    gmem__eigen_accumulate(a, n, values);
    if (!gmem__eigen_iterate(engine, &turns, values, e)) return 0;
    gmem__eigen_sort(a, n, values);
    for (int64_t i = 0; i < n; i++)
        values[i] = ldexp(values[i], exponent);
    return 1;
}

#undef GMEM__EIGEN_STRIP
