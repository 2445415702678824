/* Compressed banks against a decomposition that shares nothing with the library's: a one-sided Jacobi SVD in double.
 * Every type and kind of source, rows that are hard (a large mean, too few directions, duplicates, constants), what is
 * refused, failing allocations and files, pictures, and memory that does not grow with the rows. */
#include "check.h"
#include "edit.h"
#include "failing_io.h"

enum { MOST_RANK = 64 };

static char folder[512]; /* this program's */

/* The path of a file beside this program; the same for the same name, as long as the program runs. */
static const char *beside(const char *name) {
    static char paths[16][600];
    const size_t length = strlen(folder);
    int i = 0;
    while (i < 15 && paths[i][0] && strcmp(paths[i] + length, name) != 0)
        i++;
    snprintf(paths[i], sizeof paths[i], "%s%s", folder, name);
    return paths[i];
}

/* Uniform in [-1, 1), of two numbers. */
static double uniform(int64_t a, int64_t b) {
    uint64_t z = (uint64_t)a * UINT64_C(0x9E3779B97F4A7C15) + (uint64_t)b * UINT64_C(0xD1B54A32D192ED03) + 1;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return (double)((z ^ (z >> 31)) >> 11) / 4503599627370496.0 - 1;
}

static double *doubles(int64_t count) {
    double *out = (double *)calloc((size_t)count + 1, sizeof *out);
    if (!out) exit(1);
    return out;
}

static double dot(const double *x, const double *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* banks ----------------------------------------------------------------------------------------------------------- */

typedef enum kind {
    USUAL,      /* directions that fall off, and a mean */
    FAR_AWAY,   /* a mean 10,000 times the spread */
    DEFICIENT,  /* three directions, exactly */
    DUPLICATES, /* seven rows, again and again */
    CONSTANT,   /* one row, again and again */
    SPARSE      /* every third row is zero */
} kind;

static float value(kind what, int64_t row, int64_t column) {
    double sum = 0;
    if (what == CONSTANT) row = 0;
    if (what == DUPLICATES) row %= 7;
    if (what == SPARSE && row % 3 == 0) return 0;
    if (what == DEFICIENT) {
        for (int64_t k = 0; k < 3; k++)
            sum += floor(4 * uniform(row, k)) * floor(4 * uniform(1000000 + column, k));
        return (float)(sum + 5);
    }
    for (int64_t k = 0; k < 12; k++)
        sum += pow(0.7, (double)k) * uniform(row, k) * uniform(1000000 + column, k);
    sum += 0.01 * uniform(row, 100 + column) + uniform(2000000, column);
    return (float)(what == FAR_AWAY ? sum + 1e4 : sum);
}

/* `features` of a type, with names where asked for. */
static void write_bank(const char *path, gmem_type type, kind what, int64_t rows, int64_t width, int named) {
    edit_list *list = edit_new(), *rounded = edit_new();
    const int64_t shape[2] = {rows, width};
    float *values = (float *)edit_own(list, (size_t)(rows * width) * sizeof *values);
    for (int64_t i = 0; i < rows * width; i++)
        values[i] = value(what, i / width, i % width);
    edit_add(list, "features", GMEM_F32, 2, shape, values);
    edit_add(rounded, "features", GMEM_F32, 2, shape, values);
    if (type == GMEM_I8)
        edit_quantise(list, rounded, 0);
    else
        edit_round(list, rounded, 0, type);
    if (named) {
        int64_t *offsets = (int64_t *)edit_own(list, (size_t)(rows + 1) * sizeof *offsets), bytes = 0, ends = rows + 1;
        char *run = (char *)edit_own(list, (size_t)rows * 24);
        for (int64_t i = 0; i < rows; i++) { /* every fifth has none */
            if (i % 5 != 4) bytes += sprintf(run + bytes, "row %lld \xc3\xa9", (long long)i);
            offsets[i + 1] = bytes;
        }
        edit_add(list, "names", GMEM_U8, 1, &bytes, run);
        edit_add(list, "names.offsets", GMEM_I64, 1, &ends, offsets);
    }
    edit_save(list, path);
    edit_free(list);
    edit_free(rounded);
}

static gmem_bank *open_bank(gmem_context *context, const char *const *paths, int count) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.paths = paths;
    desc.path_count = count;
    if (!CHECK_OK(gmem_bank_open(context, &desc, &bank, &error))) {
        printf("%s: %s\n", error.path, error.message);
        exit(1);
    }
    return bank;
}

/* All rows (rows, width). */
static double *read_bank(const gmem_bank *bank) {
    const int64_t rows = gmem_bank_rows(bank), width = gmem_bank_width(bank);
    double *out = doubles(rows * width);
    float *row = (float *)calloc((size_t)width, sizeof *row);
    if (!row) exit(1);
    for (int64_t i = 0; i < rows; i++) {
        CHECK_OK(gmem_bank_row(bank, i, row, NULL));
        for (int64_t c = 0; c < width; c++)
            out[i * width + c] = (double)row[c];
    }
    free(row);
    return out;
}

static gmem_bank_compress_desc how(int64_t rank, gmem_type type) {
    gmem_bank_compress_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.rank = rank;
    desc.type = type;
    return desc;
}

/* the reference --------------------------------------------------------------------------------------------------- */

/* The centred SVD of rows x (rows, width): its singular values, descending, and right vectors. */
typedef struct svd {
    int64_t count; /* the smaller of rows and width */
    double *mean;  /* (width) */
    double *s;     /* (count) */
    double *v;     /* (count, width) */
    double total;  /* sum |x - mean|^2 */
} svd;

/* One turn of two columns, kept as rows, which makes them orthogonal; 0 where they were. */
static int jacobi_turn(double *x, double *y, int64_t count, double *x2, double *y2, int64_t count2) {
    const double xx = dot(x, x, count), yy = dot(y, y, count), xy = dot(x, y, count);
    if (fabs(xy) <= 1e-16 * sqrt(xx * yy) || xx * yy == 0) return 0;
    const double zeta = (yy - xx) / (2 * xy), t = copysign(1 / (fabs(zeta) + sqrt(1 + zeta * zeta)), zeta);
    const double c = 1 / sqrt(1 + t * t), s = c * t;
    for (int64_t i = 0; i < count + count2; i++) {
        double *a = i < count ? x + i : x2 + i - count, *b = i < count ? y + i : y2 + i - count, before = *a;
        *a = c * before - s * *b;
        *b = s * before + c * *b;
    }
    return 1;
}

/* Hestenes' method on the columns (n of them) of a matrix, kept as the rows of a (n, length); v (n, extra) follows. */
static void jacobi(double *a, int64_t n, int64_t length, double *v, int64_t extra) {
    for (int sweep = 0, turns = 1; turns > 0 && sweep < 60; sweep++) {
        turns = 0;
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = i + 1; j < n; j++)
                turns += jacobi_turn(a + i * length, a + j * length, length, v + i * extra, v + j * extra, extra);
        }
    }
}

static void sort_descending(svd *out, int64_t width) {
    for (int64_t i = 0; i < out->count; i++) {
        for (int64_t j = i + 1; j < out->count; j++) {
            if (out->s[j] <= out->s[i]) continue;
            const double s = out->s[i];
            out->s[i] = out->s[j];
            out->s[j] = s;
            for (int64_t c = 0; c < width; c++) {
                const double v = out->v[i * width + c];
                out->v[i * width + c] = out->v[j * width + c];
                out->v[j * width + c] = v;
            }
        }
    }
}

/* Long matrices have few columns, wide ones few rows: those are turned, and the others' vectors come by themselves. */
static svd decompose(const double *x, int64_t rows, int64_t width) {
    const int is_long = rows >= width;
    svd out = {is_long ? width : rows, doubles(width), NULL, NULL, 0};
    const int64_t n = out.count, length = is_long ? rows : width;
    double *a = doubles(n * length);
    out.s = doubles(n);
    out.v = doubles(n * width);
    for (int64_t i = 0; i < rows * width; i++)
        out.mean[i % width] += (x[i] - x[i % width]) / (double)rows;
    for (int64_t c = 0; c < width; c++)
        out.mean[c] += x[c];
    for (int64_t i = 0; i < rows * width; i++) {
        const double centred = x[i] - out.mean[i % width];
        a[is_long ? i % width * length + i / width : i] = centred;
        out.total += centred * centred;
    }
    for (int64_t i = 0; is_long && i < n; i++)
        out.v[i * width + i] = 1;
    jacobi(a, n, length, out.v, is_long ? width : 0);
    for (int64_t i = 0; i < n; i++) {
        out.s[i] = sqrt(dot(a + i * length, a + i * length, length));
        for (int64_t c = 0; !is_long && c < width; c++)
            out.v[i * width + c] = out.s[i] > 0 ? a[i * length + c] / out.s[i] : 0;
    }
    sort_descending(&out, width);
    free(a);
    return out;
}

static void svd_free(svd *reference) {
    free(reference->mean);
    free(reference->s);
    free(reference->v);
}

/* what a file says ------------------------------------------------------------------------------------------------ */

static double *read_doubles(gmem_file *file, const char *name, gmem_type type, int64_t rows, int64_t columns) {
    const gmem_tensor *tensor = gmem_file_find(file, name);
    if (!CHECK(tensor && tensor->type == type && tensor->shape[0] == rows &&
               (columns ? tensor->rank == 2 && tensor->shape[1] == columns : tensor->rank == 1)))
        exit(1);
    const int64_t count = gmem_tensor_count(tensor);
    float *values = (float *)calloc((size_t)count, sizeof *values);
    double *out = doubles(count);
    if (!values) exit(1);
    gmem_tensor_read_f32(tensor, 0, count, values);
    for (int64_t i = 0; i < count; i++)
        out[i] = (double)values[i];
    free(values);
    return out;
}

/* A decomposed bank's file, and the images that it makes in double. */
typedef struct factors {
    int64_t rows, width, rank;
    double *c, *m, *s, *mean, *images;
} factors;

static factors read_factors(gmem_context *context, const char *path, gmem_type type, int64_t rows, int64_t width,
                            int64_t rank) {
    factors f = {rows, width, rank, NULL, NULL, NULL, NULL, NULL};
    gmem_file *file = NULL;
    char text[24];
    CHECK_OK(gmem_file_open(context, path, ".", &file, NULL));
    f.c = read_doubles(file, "C", type, rows, rank);
    f.m = read_doubles(file, "M", GMEM_F32, width, rank);
    f.s = read_doubles(file, "S", GMEM_F32, rank, 0);
    f.mean = read_doubles(file, "mean", GMEM_F32, width, 0);
    snprintf(text, sizeof text, "%lld", (long long)rank);
    CHECK_TEXT(gmem_file_metadata(file, "latent_dim"), text);
    snprintf(text, sizeof text, "%lld", (long long)width);
    CHECK_TEXT(gmem_file_metadata(file, "feature_dim"), text);
    gmem_file_close(file);
    f.images = doubles(rows * width);
    for (int64_t i = 0; i < rows * width; i++)
        f.images[i] = f.mean[i % width] + dot(f.c + i / width * rank, f.m + i % width * rank, rank);
    return f;
}

static void factors_free(factors *f) {
    free(f->c);
    free(f->m);
    free(f->s);
    free(f->mean);
    free(f->images);
}

/* The report against sums over all rows and their images. */
static void check_report_of(const gmem_bank_compress_report *report, const double *x, const double *images,
                            int64_t rows, int64_t width, const svd *reference) {
    double rest = 0, cosines = 0, least = 1, bar = 1e-6;
    int64_t compared = 0;
    for (int64_t i = 0; i < rows; i++) {
        double spread = 0;
        const double *a = x + i * width, *b = images + i * width, aa = dot(a, a, width), bb = dot(b, b, width);
        for (int64_t c = 0; c < width; c++) {
            rest += (a[c] - b[c]) * (a[c] - b[c]);
            spread += pow(a[c] - reference->mean[c], 2);
        }
        if (aa == 0) continue;
        bar = fmax(bar, 5e-7 * sqrt(spread / aa)); /* a row near zero is known to f32 of its way from the mean */
        const double cosine = bb > 0 ? dot(a, b, width) / sqrt(aa * bb) : 0;
        cosines += cosine;
        least = fmin(least, cosine);
        compared++;
    }
    const double energy = reference->total > 0 ? 1 - rest / reference->total : 1;
    CHECK(fabs(report->energy - energy) < 1e-6);
    CHECK(fabs(report->mean_cosine - cosines / (double)compared) < 1e-6);
    if (!CHECK(fabs(report->least_cosine - least) < bar))
        printf("least cosine %.9g, expected %.9g, bar %g\n", report->least_cosine, least, bar);
}

static int64_t file_bytes(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) exit(1);
    const int64_t bytes = (int64_t)ftell(file);
    fclose(file);
    return bytes;
}

static void check_names(const gmem_bank *before, const gmem_bank *after) {
    for (int64_t i = 0; i < gmem_bank_rows(before); i++) {
        const char *name = gmem_bank_name(before, i);
        if (name)
            CHECK_TEXT(gmem_bank_name(after, i), name);
        else
            CHECK(!gmem_bank_name(after, i));
    }
}

/* ranks ----------------------------------------------------------------------------------------------------------- */

/* Unit roundoff of a stored coefficient. */
static double roundoff(gmem_type type) { return type == GMEM_F32 ? 6e-8 : type == GMEM_F16 ? 5e-4 : 4e-3; }

/* Singular values, each to 1e-6 of itself, down to a ten-thousandth of the largest; none where the rows lack it. */
static void check_singular_values(const factors *f, const svd *reference) {
    for (int64_t k = 0; k < f->rank; k++) {
        const double expected = reference->s[k],
                     bar = expected > 1e-4 * reference->s[0] ? 1e-6 * expected : 1e-7 * reference->s[0];
        if (!CHECK(fabs(f->s[k] - expected) <= bar)) printf("S[%d] %.9g, expected %.9g\n", (int)k, f->s[k], expected);
        if (expected <= 1e-9 * reference->s[0]) CHECK(f->s[k] == 0); /* rounding is no direction */
        if (f->s[k] > 0) continue;
        for (int64_t i = 0; i < f->rows; i++)
            CHECK(f->c[i * f->rank + k] == 0);
    }
}

/* M / sqrt(S) is orthonormal and lies where the reference's vectors lie, as far as these are told from the next. */
static void check_subspace(const factors *f, const svd *reference) {
    double v[MOST_RANK][1024];
    const int has_gap = f->rank == reference->count || reference->s[f->rank] < 0.99 * reference->s[f->rank - 1];
    for (int64_t k = 0; k < f->rank && f->s[k] > 1e-4 * f->s[0]; k++) {
        double inside = 0;
        for (int64_t c = 0; c < f->width; c++)
            v[k][c] = f->m[c * f->rank + k] / sqrt(f->s[k]);
        for (int64_t j = 0; j <= k; j++)
            CHECK(fabs(dot(v[k], v[j], f->width) - (j == k)) < 1e-6);
        for (int64_t j = 0; j < f->rank; j++)
            inside += pow(dot(v[k], reference->v + j * f->width, f->width), 2);
        if (has_gap) CHECK(fabs(inside - 1) < 1e-6);
    }
}

/* Images against the best ones of that rank: mean + (x - mean) V V^T. */
static void check_images(const factors *f, const svd *reference, const double *x, double bar) {
    double error = 0;
    double *centred = doubles(f->width), *image = doubles(f->width);
    for (int64_t i = 0; i < f->rows; i++) {
        for (int64_t c = 0; c < f->width; c++) {
            centred[c] = x[i * f->width + c] - reference->mean[c];
            image[c] = reference->mean[c];
        }
        for (int64_t k = 0; k < f->rank; k++) {
            const double *v = reference->v + k * f->width, on = dot(centred, v, f->width);
            for (int64_t c = 0; c < f->width; c++)
                image[c] += on * v[c];
        }
        for (int64_t c = 0; c < f->width; c++)
            error += pow(f->images[i * f->width + c] - image[c], 2);
    }
    double mean_rounds = 6e-8 * sqrt(dot(reference->mean, reference->mean, f->width) * (double)f->rows);
    if (!CHECK(sqrt(error) <= bar * sqrt(reference->total) + mean_rounds))
        printf("images differ by %g of %g\n", sqrt(error), sqrt(reference->total));
    free(centred);
    free(image);
}

static void check_rank(gmem_context *context, const char *const *paths, int count, int64_t rank, gmem_type type) {
    const char *target = beside("small.safetensors");
    const gmem_bank_compress_desc desc = how(rank, type);
    gmem_bank_compress_report report;
    gmem_bank *bank = open_bank(context, paths, count);
    const int64_t rows = gmem_bank_rows(bank), width = gmem_bank_width(bank);
    double *x = read_bank(bank), kept = 0;
    svd reference = decompose(x, rows, width);
    if (!CHECK_OK(gmem_bank_compress(bank, target, &desc, &report, NULL))) exit(1);
    factors f = read_factors(context, target, type, rows, width, rank);
    check_singular_values(&f, &reference);
    check_subspace(&f, &reference);
    check_images(&f, &reference, x, 1e-6 + roundoff(type));
    check_report_of(&report, x, f.images, rows, width, &reference);
    for (int64_t k = 0; k < rank; k++)
        kept += reference.s[k] * reference.s[k];
    CHECK(fabs(report.energy - (reference.total > 0 ? kept / reference.total : 1)) < 1e-6 + pow(roundoff(type), 2));
    CHECK_INT(report.bytes_after, file_bytes(target));
    int64_t before = 0;
    for (int i = 0; i < count; i++)
        before += file_bytes(paths[i]);
    CHECK_INT(report.bytes_before, before);
    gmem_bank *small = open_bank(context, &target, 1);
    CHECK_INT(gmem_bank_get_kind(small), GMEM_BANK_DECOMPOSED);
    double *read = read_bank(small), error = 0, size = 0;
    for (int64_t i = 0; i < rows * width; i++) {
        error += pow(read[i] - f.images[i], 2);
        size += pow(f.images[i], 2);
    }
    CHECK(sqrt(error) <= 1e-6 * sqrt(size));
    check_names(bank, small);
    gmem_bank_close(small);
    gmem_bank_close(bank);
    remove(target);
    factors_free(&f);
    svd_free(&reference);
    free(read);
    free(x);
}

static void test_ranks(gmem_context *context) {
    static const struct {
        kind what;
        int64_t rows, width, rank;
    } cases[] = {
        {USUAL, 257, 48, 16},     {USUAL, 600, 48, 48},    {USUAL, 7, 3, 2},        {USUAL, 30, 3, 3},
        {USUAL, 50, 1, 1},        {USUAL, 40, 769, 5},     {USUAL, 40, 769, 40},    {USUAL, 300, 17, 1},
        {USUAL, 1, 5, 1},         {FAR_AWAY, 600, 24, 12}, {DEFICIENT, 300, 48, 8}, {DEFICIENT, 9, 20, 9},
        {DUPLICATES, 530, 20, 9}, {CONSTANT, 300, 20, 3},  {SPARSE, 300, 20, 7},
    };
    const char *path = beside("bank.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int failed = check_failed;
        write_bank(path, GMEM_F32, cases[i].what, cases[i].rows, cases[i].width, i % 2 == 0);
        check_rank(context, &path, 1, cases[i].rank, GMEM_F32);
        if (check_failed > failed) printf("case %d\n", (int)i);
    }
    remove(path);
}

static void test_coefficient_types(gmem_context *context) {
    static const gmem_type types[] = {GMEM_F16, GMEM_BF16};
    const char *path = beside("bank.safetensors");
    write_bank(path, GMEM_F32, USUAL, 300, 33, 1);
    for (int i = 0; i < 2; i++)
        check_rank(context, &path, 1, 11, types[i]);
    remove(path);
}

/* Rows of every type and form that a bank can have, in files of their own. */
static void test_sources(gmem_context *context) {
    static const gmem_type types[] = {GMEM_F16, GMEM_BF16, GMEM_F64, GMEM_I8};
    const char *paths[] = {beside("a.safetensors"), beside("b.safetensors"),      beside("c.safetensors"),
                           beside("d.safetensors"), "tests/golden/bank_full.pth", "tests/golden/bank_dmd16.pth"};
    for (int i = 0; i < 4; i++) {
        write_bank(paths[i], types[i], USUAL, 60 + i, 48, i == 2);
        check_rank(context, paths + i, 1, 5, GMEM_F32);
    }
    check_rank(context, paths + 4, 1, 16, GMEM_F32);
    check_rank(context, paths + 5, 1, 7, GMEM_F32);
    check_rank(context, paths, 6, 20, GMEM_F32);
    for (int i = 0; i < 4; i++)
        remove(paths[i]);
}

/* The published bank's own decomposition, as PyTorch made it. */
static void test_recorded(gmem_context *context) {
    const char *full = "tests/golden/bank_full.pth", *target = beside("small.safetensors");
    const gmem_bank_compress_desc desc = how(16, GMEM_F32);
    gmem_file *io = golden_open(context, "bank.io.safetensors"), *published = golden_open(context, "bank_dmd16.pth");
    int64_t count = 0;
    int64_t *index = golden_i64(io, "index", &count);
    float *rows = golden_f32(io, "dmd_rows", NULL), *snippet = golden_f32(io, "snippet", NULL);
    float *projected = golden_f32(io, "dmd_projected", NULL), *s = golden_f32(published, "S", NULL), out[48], image[48];
    gmem_bank *bank = open_bank(context, &full, 1);
    CHECK_OK(gmem_bank_compress(bank, target, &desc, NULL, NULL)); /* no report is fine */
    gmem_bank *small = open_bank(context, &target, 1);
    factors f = read_factors(context, target, GMEM_F32, 257, 48, 16);
    for (int k = 0; k < 16; k++)
        CHECK(fabs(f.s[k] - (double)s[k]) < 2e-6 * f.s[k]);
    for (int64_t i = 0; i < count; i++) {
        CHECK_OK(gmem_bank_row(small, index[i], out, NULL));
        CHECK_CLOSE("row", out, rows + i * 48, 48, 5e-6); /* recorded in f32 */
    }
    CHECK_OK(gmem_bank_project(small, snippet, out, NULL));
    CHECK_CLOSE("projection", out, projected, 48, 5e-6);
    CHECK_OK(gmem_bank_row(bank, 5, out, NULL)); /* a row's projection is its image */
    CHECK_OK(gmem_bank_project(small, out, out, NULL));
    CHECK_OK(gmem_bank_row(small, 5, image, NULL));
    CHECK_CLOSE("image", out, image, 48, 1e-6);
    gmem_bank_close(bank);
    gmem_bank_close(small);
    gmem_file_close(io);
    gmem_file_close(published);
    remove(target);
    factors_free(&f);
    free(index);
    free(rows);
    free(snippet);
    free(projected);
    free(s);
}

/* types ----------------------------------------------------------------------------------------------------------- */

/* int8: half a step of the row's own scale, which rounds too. */
static double largest_error(gmem_type type, const double *row, int64_t width) {
    double largest = 0;
    for (int64_t c = 0; c < width; c++)
        largest = fmax(largest, fabs(row[c]));
    return type == GMEM_I8 ? largest / 127 * 0.50003 : largest * roundoff(type);
}

static void check_type(gmem_context *context, const char *const *paths, int count, gmem_type type) {
    const char *target = beside("small.safetensors");
    const gmem_bank_compress_desc desc = how(0, type);
    gmem_bank_compress_report report;
    gmem_bank *bank = open_bank(context, paths, count);
    const int64_t rows = gmem_bank_rows(bank), width = gmem_bank_width(bank);
    double *x = read_bank(bank);
    svd reference = decompose(x, rows, width);
    if (!CHECK_OK(gmem_bank_compress(bank, target, &desc, &report, NULL))) exit(1);
    gmem_bank *small = open_bank(context, &target, 1);
    double *images = read_bank(small);
    CHECK_INT(gmem_bank_type(small), type);
    CHECK_INT(gmem_bank_get_kind(small), GMEM_BANK_FULL);
    for (int64_t i = 0; i < rows; i++) {
        const double bar = largest_error(type, x + i * width, width);
        for (int64_t c = 0; c < width; c++)
            CHECK(fabs(x[i * width + c] - images[i * width + c]) <= bar);
    }
    check_report_of(&report, x, images, rows, width, &reference);
    CHECK_INT(report.bytes_after, file_bytes(target));
    check_names(bank, small);
    gmem_bank_close(small);
    gmem_bank_close(bank);
    remove(target);
    svd_free(&reference);
    free(images);
    free(x);
}

static void test_types(gmem_context *context) {
    static const gmem_type types[] = {GMEM_I8, GMEM_F16, GMEM_BF16, GMEM_F32};
    const char *paths[] = {beside("a.safetensors"), beside("b.safetensors"), "tests/golden/bank_dmd16.pth"};
    write_bank(paths[0], GMEM_F32, SPARSE, 300, 48, 0);
    write_bank(paths[1], GMEM_F16, USUAL, 7, 48, 1);
    for (int i = 0; i < 4; i++)
        check_type(context, paths, 3, types[i]);
    write_bank(paths[0], GMEM_F32, USUAL, 40, 1, 1);
    write_bank(paths[1], GMEM_F64, USUAL, 40, 769, 1);
    check_type(context, paths, 1, GMEM_I8);
    check_type(context, paths + 1, 1, GMEM_I8);
    remove(paths[0]);
    remove(paths[1]);
}

/* Rows as small as floats get, whose scale is no normal number any more: nothing but the last digits may go. */
static void test_tiny_rows(gmem_context *context) {
    const char *path = beside("bank.safetensors"), *target = beside("small.safetensors");
    const int64_t shape[2] = {3, 2};
    static const float values[6] = {1e-44f, -1e-44f, 1e-38f, 2e-39f, 3e38f, -1e38f};
    const gmem_bank_compress_desc desc = how(0, GMEM_I8);
    edit_list *list = edit_new();
    edit_add(list, "features", GMEM_F32, 2, shape, values);
    edit_save(list, path);
    edit_free(list);
    gmem_bank *bank = open_bank(context, &path, 1);
    CHECK_OK(gmem_bank_compress(bank, target, &desc, NULL, NULL));
    gmem_bank *small = open_bank(context, &target, 1);
    double *images = read_bank(small);
    for (int i = 0; i < 6; i++)
        CHECK(fabs(images[i] - (double)values[i]) <= fmax(fabs((double)values[i / 2 * 2]) / 250, 6e-39));
    gmem_bank_close(small);
    gmem_bank_close(bank);
    remove(path);
    remove(target);
    free(images);
}

/* pictures -------------------------------------------------------------------------------------------------------- */

static gmem_image draw(gmem_context *context, const char *bank) {
    static const char *const memory[2] = {"cat face", "slice of pizza"};
    gmem_generate_desc desc;
    gmem_image image;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&image, 0, sizeof image);
    memset(&error, 0, sizeof error);
    desc.network = "examples/model/network.safetensors";
    desc.bank = bank;
    desc.autoencoder = "examples/model/autoencoder.safetensors";
    desc.latent_stats = "examples/model/latents_stats.safetensors";
    desc.count = desc.memory_count = 2;
    desc.memory = memory;
    desc.seed = 5;
    desc.sampler.method = GMEM_EULER;
    desc.sampler.steps = 6;
    if (!CHECK_OK(gmem_generate(context, &desc, &image, &error))) {
        printf("%s: %s\n", error.path, error.message);
        exit(1);
    }
    return image;
}

/* The mean difference of channels, of 255, and the largest. */
static void check_pictures(gmem_context *context, const gmem_image *expected, gmem_bank_compress_desc desc, double mean,
                           double largest) {
    const char *full = "examples/model/bank.safetensors", *small = beside("small.safetensors");
    gmem_bank *bank = open_bank(context, &full, 1);
    double sum = 0, most = 0;
    CHECK_OK(gmem_bank_compress(bank, small, &desc, NULL, NULL));
    gmem_bank_close(bank);
    gmem_image image = draw(context, small);
    const int64_t count = image.count * image.height * image.width * 3;
    for (int64_t i = 0; i < count; i++) {
        const double difference = fabs((double)image.pixels[i] - (double)expected->pixels[i]);
        sum += difference;
        most = fmax(most, difference);
    }
    if (!CHECK(sum / (double)count <= mean && most <= largest))
        printf("rank %d: pictures differ by %g, at most %g\n", (int)desc.rank, sum / (double)count, most);
    gmem_image_free(context, &image);
    remove(small);
}

/* The default model draws from both forms as they are: the same pictures from its own f16 and from all directions,
 * nearly the same from int8, and from a third of the directions what is still the same picture. */
static void test_pictures(gmem_context *context) {
    gmem_image expected = draw(context, "examples/model/bank.safetensors");
    check_pictures(context, &expected, how(0, GMEM_F16), 0, 0);
    check_pictures(context, &expected, how(192, GMEM_F32), 0.01, 1);
    check_pictures(context, &expected, how(0, GMEM_I8), 0.1, 3);
    check_pictures(context, &expected, how(64, GMEM_F16), 8, 230);
    gmem_image_free(context, &expected);
}

/* threads and instruction sets ------------------------------------------------------------------------------------ */

typedef struct bytes {
    char *data;
    size_t size;
} bytes;

static bytes slurp(const char *path) {
    bytes out;
    FILE *file = fopen(path, "rb");
    out.size = (size_t)file_bytes(path);
    out.data = (char *)malloc(out.size + 1);
    if (!file || !out.data || fread(out.data, 1, out.size, file) != out.size) exit(1);
    fclose(file);
    return out;
}

static bytes compressed(gmem_context *context, const char *path, gmem_bank_compress_desc desc,
                        gmem_bank_compress_report *report) {
    const char *target = beside("small.safetensors");
    gmem_bank *bank = open_bank(context, &path, 1);
    CHECK_OK(gmem_bank_compress(bank, target, &desc, report, NULL));
    gmem_bank_close(bank);
    bytes out = slurp(target);
    remove(target);
    return out;
}

static void test_threads(void) {
    const char *path = beside("bank.safetensors");
    bytes first[2] = {{NULL, 0}, {NULL, 0}};
    gmem_bank_compress_report reports[2];
    write_bank(path, GMEM_F32, USUAL, 700, 50, 1);
    for (int threads = 1; threads < 5; threads++) {
        gmem_context_desc desc;
        gmem_context *context = NULL;
        memset(&desc, 0, sizeof desc);
        desc.threads = threads;
        CHECK_OK(gmem_context_create(&desc, &context, NULL));
        for (int i = 0; i < 2; i++) {
            gmem_bank_compress_report report;
            bytes out = compressed(context, path, i ? how(9, GMEM_F32) : how(0, GMEM_I8), &report);
            if (threads == 1) {
                first[i] = out;
                reports[i] = report;
                continue;
            }
            CHECK(out.size == first[i].size && memcmp(out.data, first[i].data, out.size) == 0);
            CHECK(report.energy == reports[i].energy && report.least_cosine == reports[i].least_cosine);
            free(out.data);
        }
        gmem_context_destroy(context);
    }
    free(first[0].data);
    free(first[1].data);
    remove(path);
}

static void test_instruction_sets(void) {
    const char *path = beside("bank.safetensors");
    write_bank(path, GMEM_F16, USUAL, 300, 37, 0);
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_cpu_context(golden_isas[i]);
        if (!context) continue;
        check_rank(context, &path, 1, 9, GMEM_F32);
        check_type(context, &path, 1, GMEM_I8);
        gmem_context_destroy(context);
    }
    remove(path);
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static int is_there(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

static void check_refused(const gmem_bank *bank, gmem_bank_compress_desc desc, gmem_status expected, const char *part,
                          const char *where) {
    const char *target = beside("small.safetensors");
    gmem_bank_compress_report report;
    gmem_error error;
    memset(&report, 0x55, sizeof report);
    memset(&error, 0, sizeof error);
    const gmem_bank_compress_report untouched = report;
    CHECK_STATUS(expected, gmem_bank_compress(bank, target, &desc, &report, &error));
    CHECK_INT(error.code, expected);
    CHECK_CONTAINS(error.message, part);
    CHECK_TEXT(error.path, where);
    CHECK(memcmp(&report, &untouched, sizeof report) == 0);
    CHECK(!is_there(target) && !is_there(beside("small.safetensors.tmp0")));
}

static void test_arguments(gmem_context *context) {
    const char *path = "tests/golden/bank_full.pth", *few = beside("few.safetensors");
    gmem_bank *bank = open_bank(context, &path, 1);
    gmem_bank_compress_desc desc = how(0, GMEM_F32);
    check_refused(bank, how(49, GMEM_F32), GMEM_E_ARGUMENT, "rank 49 of a bank of 257 rows of width 48", "");
    check_refused(bank, how(-1, GMEM_F32), GMEM_E_ARGUMENT, "rank -1", "");
    check_refused(bank, how(INT64_MAX, GMEM_F32), GMEM_E_ARGUMENT, "rank", "");
    check_refused(bank, how(4, GMEM_I8), GMEM_E_COMBINATION, "int8", "");
    check_refused(bank, how(4, GMEM_F64), GMEM_E_ARGUMENT, "F32, F16, BF16 or I8", "");
    check_refused(bank, how(0, GMEM_I64), GMEM_E_ARGUMENT, "F32, F16, BF16 or I8", "");
    check_refused(NULL, desc, GMEM_E_ARGUMENT, "needed", "");
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_compress(bank, NULL, &desc, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_compress(bank, beside("x"), NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_OPEN, gmem_bank_compress(bank, beside("no/such/folder"), &desc, NULL, NULL));
    gmem_bank_close(bank);
    write_bank(few, GMEM_F16, CONSTANT, 2, 16385, 0);
    bank = open_bank(context, &few, 1);
    check_refused(bank, how(1, GMEM_F32), GMEM_E_UNSUPPORTED, "16385 elements are too wide", "");
    gmem_bank_close(bank);
    write_bank(few, GMEM_F32, USUAL, 3, 48, 0);
    bank = open_bank(context, &few, 1);
    check_refused(bank, how(4, GMEM_F32), GMEM_E_ARGUMENT, "rank 4 of a bank of 3 rows", "");
    gmem_bank_close(bank);
    remove(few);
}

/* A value that no bank of that form can hold: by the row's number and the file that it is in. */
static void check_bad_value(gmem_context *context, float bad, gmem_bank_compress_desc desc, gmem_status expected,
                            const char *part) {
    const char *paths[2] = {"tests/golden/bank_full.pth", beside("bad.safetensors")};
    const int64_t shape[2] = {300, 48};
    edit_list *list = edit_new();
    float *values = (float *)edit_own(list, 300 * 48 * sizeof *values);
    for (int64_t i = 0; i < 300 * 48; i++)
        values[i] = value(USUAL, i / 48, i % 48);
    values[290 * 48 + 47] = bad;
    edit_add(list, "features", GMEM_F32, 2, shape, values);
    edit_save(list, paths[1]);
    edit_free(list);
    gmem_bank *bank = open_bank(context, paths, 2);
    check_refused(bank, desc, expected, part, paths[1]);
    gmem_bank_close(bank);
    remove(paths[1]);
}

static void test_bad_values(gmem_context *context) {
    static const float bad[3] = {(float)NAN, (float)INFINITY, (float)-INFINITY};
    for (int i = 0; i < 3; i++) {
        check_bad_value(context, bad[i], how(4, GMEM_F32), GMEM_E_ROW_ZERO, "row 547 is not finite");
        check_bad_value(context, bad[i], how(0, GMEM_I8), GMEM_E_ROW_ZERO, "row 547 is not finite");
        check_bad_value(context, bad[i], how(0, GMEM_F16), GMEM_E_ROW_ZERO, "row 547 is not finite");
    }
    check_bad_value(context, 70000, how(0, GMEM_F16), GMEM_E_TYPE, "row 547 has a value that is too large");
    check_bad_value(context, 3.4e38f, how(0, GMEM_BF16), GMEM_E_TYPE, "row 547 has a value that is too large");
}

/* progress -------------------------------------------------------------------------------------------------------- */

typedef struct watch {
    int calls, cancel_at; /* cancel_at 0: never */
    int64_t done, total;
    int in_order;
} watch;

static int watch_progress(void *user, int64_t done, int64_t total) {
    watch *w = (watch *)user;
    w->in_order &= done > w->done && (w->calls == 0 || total == w->total) && done <= total;
    w->done = done;
    w->total = total;
    return ++w->calls == w->cancel_at;
}

static void test_progress(gmem_context *context) {
    static const struct {
        int64_t rank;
        gmem_type type;
        int passes;
    } cases[] = {{5, GMEM_F32, 2}, {0, GMEM_I8, 2}, {0, GMEM_F16, 1}};
    const char *path = beside("bank.safetensors"), *target = beside("small.safetensors");
    write_bank(path, GMEM_F32, USUAL, 700, 20, 0);
    gmem_bank *bank = open_bank(context, &path, 1);
    for (int i = 0; i < 3; i++) {
        gmem_bank_compress_desc desc = how(cases[i].rank, cases[i].type);
        watch w = {0, 0, 0, 0, 1};
        desc.progress = watch_progress;
        desc.user = &w;
        CHECK_OK(gmem_bank_compress(bank, target, &desc, NULL, NULL));
        CHECK(w.in_order && w.done == w.total);
        CHECK_INT(w.total, 700 * cases[i].passes);
        remove(target);
        const int calls = w.calls;
        for (int at = 1; at <= calls; at++) {
            watch cancelling = {0, at, 0, 0, 1};
            desc.user = &cancelling;
            check_refused(bank, desc, GMEM_E_CANCELLED, "cancelled", at <= 3 && cases[i].rank ? "" : target);
            CHECK_INT(cancelling.calls, at);
        }
    }
    gmem_bank_close(bank);
    remove(path);
}

/* failures -------------------------------------------------------------------------------------------------------- */

static gmem_status attempt(gmem_context *context, void *user) {
    const gmem_bank_compress_desc desc = how(*(const int *)user, *(const int *)user ? GMEM_F16 : GMEM_I8);
    const char *path = beside("bank.safetensors"), *target = beside("small.safetensors");
    gmem_bank_desc what;
    gmem_bank *bank = NULL;
    memset(&what, 0, sizeof what);
    what.paths = &path;
    what.path_count = 1;
    gmem_status status = gmem_bank_open(context, &what, &bank, NULL);
    if (status == GMEM_OK) status = gmem_bank_compress(bank, target, &desc, NULL, NULL);
    gmem_bank_close(bank);
    CHECK(is_there(target) == (status == GMEM_OK));
    remove(target);
    return status;
}

static void test_failing_memory(void) {
    static int ranks[2] = {0, 3};
    write_bank(beside("bank.safetensors"), GMEM_F32, USUAL, 300, 5, 1);
    for (int i = 0; i < 2; i++)
        check_failing_allocations(attempt, &ranks[i], 10);
    remove(beside("bank.safetensors"));
}

/* Whatever fails and when, what was there stays, and nothing else is left. What does no harm may be overlooked. */
static void check_failing_op(failing_op op, int for_good, gmem_bank_compress_desc desc) {
    const char *path = beside("bank.safetensors"), *target = beside("small.safetensors");
    failing_io io;
    failing memory = {-1, 0, 0};
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), 1);
    gmem_bank *bank = open_bank(context, &path, 1);
    const int64_t live = memory.live;
    CHECK_OK(gmem_save_bytes(context, target, "old", 3, NULL));
    io.op = op;
    io.most = 1000; /* short writes */
    io.for_good = for_good;
    for (int64_t countdown = 0;; countdown++) {
        gmem_bank_compress_report report;
        io.countdown = countdown;
        io.failed = 0;
        const gmem_status status = gmem_bank_compress(bank, target, &desc, &report, NULL);
        io.countdown = -1;
        CHECK(io.open == 0 && io.temporary == 0 && memory.live == live);
        bytes found = slurp(target);
        CHECK((found.size == 3 && memcmp(found.data, "old", 3) == 0) == (status != GMEM_OK));
        free(found.data);
        CHECK(status == GMEM_OK || (op == FAILING_OPEN && status == GMEM_E_OPEN) ||
              (op == FAILING_SYNC && status == GMEM_E_SYNC) || (op == FAILING_RENAME && status == GMEM_E_RENAME) ||
              ((op == FAILING_WRITE || op == FAILING_CLOSE) && status == GMEM_E_WRITE));
        if (status == GMEM_OK) CHECK_OK(gmem_save_bytes(context, target, "old", 3, NULL));
        if (io.failed == 0) {
            CHECK_OK(status);
            CHECK(countdown > 0);
            break;
        }
        if (op == FAILING_WRITE || op == FAILING_SYNC || op == FAILING_RENAME) CHECK(status != GMEM_OK);
    }
    gmem_bank_close(bank);
    gmem_context_destroy(context);
    remove(target);
}

static void test_failing_files(void) {
    static const failing_op ops[] = {FAILING_OPEN,  FAILING_WRITE,  FAILING_SYNC,
                                     FAILING_CLOSE, FAILING_RENAME, FAILING_SIZE};
    write_bank(beside("bank.safetensors"), GMEM_F32, USUAL, 300, 5, 1);
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        for (int for_good = 0; for_good < 2; for_good++) {
            check_failing_op(ops[i], for_good, how(3, GMEM_BF16));
            check_failing_op(ops[i], for_good, how(0, GMEM_I8));
        }
    }
    remove(beside("bank.safetensors"));
}

/* memory ---------------------------------------------------------------------------------------------------------- */

typedef struct meter {
    int64_t live, peak;
} meter;

static void *meter_alloc(void *user, size_t size) {
    meter *m = (meter *)user;
    failing counted = {-1, 0, 0};
    void *memory = failing_alloc(&counted, size);
    m->live += counted.live;
    m->peak = m->live > m->peak ? m->live : m->peak;
    return memory;
}

static void meter_release(void *user, void *memory, size_t size) {
    failing counted = {-1, 0, 0};
    failing_release(&counted, memory, size);
    ((meter *)user)->live += counted.live;
}

/* The most memory that compressing a bank of so many rows takes at a time, the bank itself included. */
static int64_t peak_of(int64_t rows, gmem_bank_compress_desc desc) {
    const char *path = beside("bank.safetensors"), *target = beside("small.safetensors");
    meter m = {0, 0};
    gmem_context_desc what;
    gmem_context *context = NULL;
    memset(&what, 0, sizeof what);
    what.threads = 1;
    what.allocator.user = &m;
    what.allocator.alloc = meter_alloc;
    what.allocator.release = meter_release;
    CHECK_OK(gmem_context_create(&what, &context, NULL));
    write_bank(path, GMEM_F16, USUAL, rows, 12, 0);
    gmem_bank *bank = open_bank(context, &path, 1);
    CHECK_OK(gmem_bank_compress(bank, target, &desc, NULL, NULL));
    gmem_bank_close(bank);
    gmem_context_destroy(context);
    CHECK_INT(m.live, 0);
    remove(path);
    remove(target);
    return m.peak;
}

static void test_bounded_memory(void) {
    static const gmem_type types[] = {GMEM_F32, GMEM_I8};
    for (int i = 0; i < 2; i++) {
        const gmem_bank_compress_desc desc = how(i ? 0 : 6, types[i]);
        const int64_t few = peak_of(300, desc), many = peak_of(20000, desc);
        if (!CHECK(many <= few + 256)) printf("%lld bytes, then %lld\n", (long long)few, (long long)many);
    }
}

int main(int argc, char **argv) {
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    snprintf(folder, sizeof folder, "%.*stest_bank_compress.", slash ? (int)(slash - argv[0]) + 1 : 0, argv[0]);
    gmem_context *context = golden_cpu_context(GMEM_ISA_AUTO);
    test_ranks(context);
    test_coefficient_types(context);
    test_sources(context);
    test_recorded(context);
    test_types(context);
    test_tiny_rows(context);
    test_pictures(context);
    test_arguments(context);
    test_bad_values(context);
    test_progress(context);
    gmem_context_destroy(context);
    test_threads();
    test_instruction_sets();
    test_failing_memory();
    test_failing_files();
    test_bounded_memory();
    return check_report();
}
