/* Symmetric eigenproblems: orthonormal vectors, residuals and order for matrices of every kind, and spectra that are
 * known; and the scatter of vectors against sums in the plainest order. */
#include "../backends/cpu/cpu.h"
#include "../src/eigen.h"
#include "../src/scatter.h"

#include "check.h"
#include "golden.h"

#include <float.h>

/* Uniform in [-1, 1). */
static double uniform(uint64_t *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* Knuth's MMIX */
    return (double)(*state >> 11) / 4503599627370496.0 - 1;
}

static double *doubles(int64_t count) {
    double *out = (double *)calloc((size_t)count + 1, sizeof *out);
    if (!out) exit(1);
    return out;
}

/* matrices -------------------------------------------------------------------------------------------------------- */

typedef enum kind {
    DENSE,
    ZERO,
    IDENTITY,
    ONES,      /* rank 1 */
    DIAGONAL,  /* unsorted, of both signs */
    GRADED,    /* elements fall by eight orders of magnitude */
    REVERSED,  /* the same, the large ones last */
    BLOCKS,    /* a third of the eigenvalues equal each other */
    GRAM,      /* positive semidefinite, of half the rank */
    HUGE_ONE,  /* near what a double can hold */
    TINY_ONE,  /* near the least of it */
    UNDERFLOW, /* off the diagonal, squares are no numbers any more */
    KINDS
} kind;

static double element(kind what, int64_t n, int64_t i, int64_t j, uint64_t *state) {
    const double x = uniform(state), place = (double)(i + j) / (double)n;
    switch (what) {
    case ZERO:
        return 0;
    case IDENTITY:
        return i == j;
    case ONES:
        return 1;
    case DIAGONAL:
        return i == j ? x : 0;
    case GRADED:
        return x * pow(10, -4 * place);
    case REVERSED:
        return x * pow(10, 4 * place - 8);
    case BLOCKS:
        return i / 3 == j / 3;
    case HUGE_ONE:
        return x * 1e306;
    case TINY_ONE:
        return x * 1e-305;
    case UNDERFLOW:
        return i == j ? x : x * 1e-160;
    default:
        return x;
    }
}

static void fill(kind what, int64_t n, double *a) {
    uint64_t state = (uint64_t)n + 1000 * (uint64_t)what;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++)
            a[i * n + j] = a[j * n + i] = element(what, n, i, j, &state);
    }
    if (what != GRAM) return;
    double *rows = doubles(n * n);
    memcpy(rows, a, (size_t)(n * n) * sizeof *rows);
    for (int64_t i = 0; i < n * n; i++) {
        a[i] = 0;
        for (int64_t k = 0; k < n / 2; k++)
            a[i] += rows[k * n + i / n] * rows[k * n + i % n];
    }
    free(rows);
}

static double dot(const double *x, const double *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static void check_decomposition(const gmem__engine *engine, kind what, int64_t n) {
    double *a = doubles(n * n), *v = doubles(n * n), *values = doubles(n), *work = doubles(GMEM__EIGEN_WORK(n));
    double largest = 0, crossing = 0, residual = 0, trace = 0;
    int descending = 1;
    fill(what, n, a);
    for (int64_t i = 0; i < n * n; i++) {
        v[i] = i % n <= i / n ? a[i] : (double)NAN; /* the upper triangle is not read */
        largest = fmax(largest, fabs(a[i]));
    }
    if (!CHECK(gmem__eigen_symmetric(engine, v, n, values, work))) printf("kind %d, n %d\n", (int)what, (int)n);
    for (int64_t i = 0; i < n; i++) {
        descending &= i == 0 || values[i] <= values[i - 1];
        trace += (a[i * n + i] - values[i]) / (largest > 0 ? largest : 1);
        for (int64_t j = 0; j < n; j++) {
            crossing = fmax(crossing, fabs(dot(v + i * n, v + j * n, n) - (i == j)));
            const double image = dot(a + j * n, v + i * n, n) - values[i] * v[i * n + j];
            residual = fmax(residual, fabs(image) / (largest > 0 ? largest : 1));
        }
    }
    if (!CHECK(crossing < 1e-13) || !CHECK(residual < 2e-15 * (double)n) || !CHECK(fabs(trace) < 1e-13 * (double)n) ||
        !CHECK(descending))
        printf("kind %d, n %d: crossing %g, residual %g, trace %g\n", (int)what, (int)n, crossing, residual, trace);
    free(a);
    free(v);
    free(values);
    free(work);
}

static void test_kinds(const gmem__engine *engine) {
    static const int64_t sizes[] = {1, 2, 3, 4, 7, 48, 64, 97, 131};
    for (int what = 0; what < KINDS; what++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_decomposition(engine, (kind)what, sizes[i]);
    }
}

/* Second differences: 2 - 2 cos(pi k / (n + 1)), with vectors sin(pi k i / (n + 1)). Well and ill separated ones. */
static void test_known(const gmem__engine *engine) {
    const int64_t n = 60;
    const double pi = 3.14159265358979323846;
    double *a = doubles(n * n), *values = doubles(n), *work = doubles(GMEM__EIGEN_WORK(n)), *expected = doubles(n);
    for (int64_t i = 0; i < n; i++) {
        a[i * n + i] = 2;
        if (i > 0) a[i * n + i - 1] = -1;
    }
    CHECK(gmem__eigen_symmetric(engine, a, n, values, work));
    for (int64_t k = 0; k < n; k++) {
        const double angle = pi * (double)(n - k) / (double)(n + 1);
        for (int64_t i = 0; i < n; i++)
            expected[i] = sin(angle * (double)(i + 1)) * sqrt(2 / (double)(n + 1));
        CHECK(fabs(values[k] - (2 - 2 * cos(angle))) < 1e-14);
        CHECK(fabs(fabs(dot(a + k * n, expected, n)) - 1) < 1e-12);
    }
    free(a);
    free(values);
    free(work);
    free(expected);
}

/* scatter --------------------------------------------------------------------------------------------------------- */

/* Entry i of vector k from the first vector's: in double that is exact. */
static double from_first(const float *rows, int64_t width, int64_t k, int64_t i) {
    return (double)rows[k * width + i] - (double)rows[i];
}

/* The largest of what an entry differs by, against the geometric mean of its diagonal entries. */
static double scatter_error(const float *rows, int64_t count, int64_t width, const gmem__scatter *scatter,
                            const double *matrix) {
    double *mean = doubles(width), *sums = doubles(width * width), error = 0, trace = 0;
    for (int64_t i = 0; i < count * width; i++)
        mean[i % width] += from_first(rows, width, i / width, i % width) / (double)count;
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < width * width; i++)
            sums[i] += (from_first(rows, width, k, i / width) - mean[i / width]) *
                       (from_first(rows, width, k, i % width) - mean[i % width]);
    }
    for (int64_t i = 0; i < width; i++) {
        const double expected = (double)rows[i] + mean[i];
        error = fmax(error, fabs(expected - scatter->mean[i]) / (fabs(expected) + 1));
        trace += sums[i * width + i];
        for (int64_t j = 0; j <= i; j++)
            error = fmax(error, fabs(matrix[i * width + j] - sums[i * width + j]) /
                                    (sqrt(sums[i * width + i] * sums[j * width + j]) + DBL_MIN));
    }
    error = fmax(error, fabs(scatter->total - trace) / trace);
    free(mean);
    free(sums);
    return error;
}

static void check_scatter(gmem_context *context, int64_t count, int64_t width, double offset) {
    struct gmem__block *blocks = NULL;
    gmem__engine engine = gmem__cpu_engine(context);
    gmem__scatter scatter;
    uint64_t state = (uint64_t)(count + width);
    const int64_t scratch_bytes = engine.ops->scratch_bytes(engine.threads);
    float *rows = (float *)calloc((size_t)(count * width), sizeof *rows);
    engine.scratch = gmem__alloc_raw(context, scratch_bytes, 1);
    if (!rows || !engine.scratch || !gmem__scatter_open(&scatter, context, &blocks, &engine, width, 1)) exit(1);
    for (int64_t i = 0; i < count * width; i++)
        rows[i] = (float)(uniform(&state) + offset * (double)(i % width) + (i > count * width / 2)); /* a shift too */
    for (int64_t done = 0, some; done < count; done += some) {
        some = gmem__min(count - done, done % 3 == 0 ? GMEM__SCATTER_ROWS : 17);
        gmem__scatter_add(&scatter, &engine, rows + done * width, some);
    }
    const double error = scatter_error(rows, count, width, &scatter, gmem__scatter_matrix(&scatter));
    const double mean_rounds = DBL_EPSILON * offset * (double)width; /* against a spread of about 1 */
    if (!CHECK(error < 1e-12 + mean_rounds))
        printf("%d x %d, offset %g: error %g\n", (int)count, (int)width, offset, error);
    gmem__blocks_free(context, &blocks);
    gmem__free(context, engine.scratch, scratch_bytes, 1);
    free(rows);
}

static void test_scatter(void) {
    static const int64_t widths[] = {1, 3, 15, 16, 17, 48, 65};
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_cpu_context(golden_isas[i]);
        for (size_t w = 0; context && w < sizeof widths / sizeof *widths; w++) {
            check_scatter(context, 2, widths[w], 0);
            check_scatter(context, 600, widths[w], 0);
            check_scatter(context, 300, widths[w], 1e4);
        }
        gmem_context_destroy(context);
    }
}

int main(void) {
    gmem_context *context = golden_cpu_context(GMEM_ISA_AUTO);
    gmem__engine engine = gmem__cpu_engine(context);
    engine.scratch = malloc((size_t)engine.ops->scratch_bytes(engine.threads));
    if (!engine.scratch) return 1;
    test_kinds(&engine);
    test_known(&engine);
    free(engine.scratch);
    gmem_context_destroy(context);
    test_scatter();
    return check_report();
}
