/* Smaller banks, in memory that the width bounds: the rows' centred SVD cut to a rank, from the eigenvectors of their
 * covariance, or the rows in another type. A block of rows at a time is read, worked on by all threads, and handed to
 * the file that is being written. */
#include "bank.h"
#include "eigen.h"
#include "scatter.h"

#include "../backends/cpu/cpu.h"

#include <float.h>
#include <math.h>
#include <stdio.h>

/* A row against its image, both about the mean where there is one. */
typedef struct gmem__shrunk_row {
    int read, stored; /* finite as it was read, and as it is stored */
    double row_row;   /* row . row */
    double row_mean;  /* row . mean */
    double spread;    /* |row - mean|^2 */
    double image_image, row_image;
    double rest; /* |row - image|^2 */
} gmem__shrunk_row;

/* What becomes of all rows so far. */
typedef struct gmem__shrunk_sums {
    double rest, spread, cosines, least;
    int64_t compared; /* rows that are not zero */
} gmem__shrunk_sums;

typedef struct gmem__shrinker {
    const gmem_bank *bank;
    const gmem_bank_compress_desc *desc;
    struct gmem__block *blocks; /* all memory but the engine's scratch */
    gmem__engine engine;
    int64_t scratch_bytes;
    int64_t columns;     /* stored for a row: its coefficients, or all of it */
    int64_t done, total; /* rows read in all passes */
    gmem__scatter scatter;
    gmem__shrunk_sums sums;
    gmem__names_writer names;

    /* The decomposition, as stored; rank 0: NULL. */
    float *m, *s, *mean; /* (width, rank), (rank), (width) */
    float *basis;        /* (width, rank): V / sqrt(S), which takes a centred row to its coefficients */
    double *root;        /* (rank) sqrt(S), which takes a coefficient to its length */
    double *mean_on;     /* (rank) V^T mean */
    double mean_mean;    /* mean . mean */

    /* The block at work: rows [first, first + count). */
    int64_t first, count;
    float *rows;               /* (count, width); centred by projecting */
    float *kept;               /* (count, columns) in f32: coefficients, or the rows themselves */
    float *stored;             /* (count, columns): what a reader will make of them */
    char *encoded;             /* (count, columns) of desc->type */
    float *scales;             /* (count) for I8 */
    gmem__shrunk_row *results; /* (count) */
    int64_t given, ready;      /* elements of the block that the file has got, and can get */
} gmem__shrinker;

/* opening --------------------------------------------------------------------------------------------------------- */

static void *gmem__shrinker_take(gmem__shrinker *shrinker, int64_t count, int64_t each, size_t bytes) {
    int64_t elements = 0;
    if (!gmem__mul(count, each, &elements)) return NULL;
    return gmem__blocks_take(shrinker->bank->context, &shrinker->blocks, elements, bytes, 64);
}

static int gmem__shrinker_take_factors(gmem__shrinker *shrinker) {
    const int64_t width = shrinker->bank->width, rank = shrinker->desc->rank;
    shrinker->m = (float *)gmem__shrinker_take(shrinker, width, rank, sizeof(float));
    shrinker->basis = (float *)gmem__shrinker_take(shrinker, width, rank, sizeof(float));
    shrinker->mean = (float *)gmem__shrinker_take(shrinker, width, 1, sizeof(float));
    shrinker->s = (float *)gmem__shrinker_take(shrinker, rank, 1, sizeof(float));
    shrinker->root = (double *)gmem__shrinker_take(shrinker, rank, 1, sizeof(double));
    shrinker->mean_on = (double *)gmem__shrinker_take(shrinker, rank, 1, sizeof(double));
    shrinker->kept = (float *)gmem__shrinker_take(shrinker, GMEM__SCATTER_ROWS, rank, sizeof(float));
    return shrinker->m && shrinker->basis && shrinker->mean && shrinker->s && shrinker->root && shrinker->mean_on &&
           shrinker->kept;
}

static int gmem__shrinker_take_all(gmem__shrinker *shrinker) {
    const gmem_context *context = shrinker->bank->context;
    const int64_t width = shrinker->bank->width, columns = shrinker->columns, most = GMEM__SCATTER_ROWS;
    shrinker->scratch_bytes = shrinker->engine.ops->scratch_bytes(shrinker->engine.threads);
    shrinker->engine.scratch = gmem__alloc_raw(context, shrinker->scratch_bytes, 1);
    shrinker->rows = (float *)gmem__shrinker_take(shrinker, most, width, sizeof(float));
    shrinker->stored = (float *)gmem__shrinker_take(shrinker, most, columns, sizeof(float));
    shrinker->encoded = (char *)gmem__shrinker_take(shrinker, most, columns, gmem_type_bytes(shrinker->desc->type));
    shrinker->scales = (float *)gmem__shrinker_take(shrinker, most, 1, sizeof(float));
    shrinker->results = (gmem__shrunk_row *)gmem__shrinker_take(shrinker, most, 1, sizeof(gmem__shrunk_row));
    if (!shrinker->engine.scratch || !shrinker->rows || !shrinker->stored || !shrinker->encoded || !shrinker->scales ||
        !shrinker->results)
        return 0;
    if (shrinker->desc->rank > 0 && !gmem__shrinker_take_factors(shrinker)) return 0;
    if (shrinker->desc->rank == 0) shrinker->kept = shrinker->rows;
    return gmem__scatter_open(&shrinker->scatter, context, &shrinker->blocks, &shrinker->engine, width,
                              shrinker->desc->rank > 0);
}

/* The file gets an I8 bank's scales before its rows. */
static int gmem__shrinker_passes(const gmem_bank_compress_desc *desc) {
    return desc->rank > 0 || desc->type == GMEM_I8 ? 2 : 1;
}

static gmem_status gmem__shrinker_open(gmem__shrinker *shrinker, const gmem_bank *bank,
                                       const gmem_bank_compress_desc *desc, gmem_error *error) {
    memset(shrinker, 0, sizeof *shrinker);
    shrinker->bank = bank;
    shrinker->desc = desc;
    shrinker->engine = gmem__cpu_engine(bank->context);
    shrinker->columns = desc->rank > 0 ? desc->rank : bank->width;
    shrinker->sums.least = 1;
    shrinker->names.name = gmem__names_of_bank;
    shrinker->names.user = bank;
    if (!gmem__mul(bank->rows, gmem__shrinker_passes(desc), &shrinker->total)) shrinker->total = INT64_MAX;
    if (gmem__shrinker_take_all(shrinker)) return GMEM_OK;
    return gmem__fail(error, GMEM_E_MEMORY, "no memory to compress rows of %lld elements", (long long)bank->width);
}

static void gmem__shrinker_close(gmem__shrinker *shrinker) {
    gmem__free(shrinker->bank->context, shrinker->engine.scratch, shrinker->scratch_bytes, 1);
    gmem__blocks_free(shrinker->bank->context, &shrinker->blocks);
}

/* reading --------------------------------------------------------------------------------------------------------- */

static void gmem__shrinker_read_row(const void *shrinker_, int64_t i, float *scratch) {
    const gmem__shrinker *shrinker = (const gmem__shrinker *)shrinker_;
    const int64_t width = shrinker->bank->width;
    float *row = shrinker->rows + i * width;
    (void)scratch;
    shrinker->results[i].read =
        gmem_bank_row(shrinker->bank, shrinker->first + i, row, NULL) == GMEM_OK && gmem__all_finite(row, width);
}

static gmem_status gmem__shrinker_refuse(const gmem__shrinker *shrinker, int64_t row, gmem_status code, const char *why,
                                         gmem_error *error) {
    const gmem_file *file = gmem__bank_part_of(shrinker->bank, row)->file;
    return gmem__fail_at(error, code, gmem_file_path(file), -1, "row %lld %s", (long long)row, why);
}

static gmem_status gmem__shrinker_tell(gmem__shrinker *shrinker, gmem_error *error) {
    const gmem_bank_compress_desc *desc = shrinker->desc;
    shrinker->done += shrinker->count;
    if (!desc->progress || !desc->progress(desc->user, shrinker->done, shrinker->total)) return GMEM_OK;
    return gmem__fail(error, GMEM_E_CANCELLED, "cancelled after row %lld",
                      (long long)(shrinker->first + shrinker->count));
}

/* Reads the block from row `first` on. */
static gmem_status gmem__shrinker_read(gmem__shrinker *shrinker, int64_t first, gmem_error *error) {
    shrinker->first = first;
    shrinker->count = gmem__min(GMEM__SCATTER_ROWS, shrinker->bank->rows - first);
    gmem__run_tasks(&shrinker->engine, shrinker->count, gmem__shrinker_read_row, shrinker);
    gmem__bank_discard(shrinker->bank, first, shrinker->count);
    for (int64_t i = 0; i < shrinker->count; i++) {
        if (!shrinker->results[i].read)
            return gmem__shrinker_refuse(shrinker, first + i, GMEM_E_ROW_ZERO, "is not finite", error);
    }
    return gmem__shrinker_tell(shrinker, error);
}

/* the decomposition ----------------------------------------------------------------------------------------------- */

/* Direction k: an eigenvector v (width) of the scatter and its singular value. Vectors have no sign; here their largest
 * element is positive. A direction that the rows lack (S = 0) has no coefficients. */
static void gmem__shrinker_set_direction(gmem__shrinker *shrinker, int64_t k, const double *v, double s) {
    const int64_t width = shrinker->bank->width, rank = shrinker->desc->rank;
    int64_t largest = 0;
    for (int64_t i = 1; i < width; i++) {
        if (fabs(v[i]) > fabs(v[largest])) largest = i;
    }
    const double sign = v[largest] < 0 ? -1 : 1, root = sqrt((double)(float)s);
    double on = 0;
    for (int64_t i = 0; i < width; i++) {
        shrinker->m[i * rank + k] = (float)(sign * root * v[i]);
        shrinker->basis[i * rank + k] = root > 0 ? (float)(sign * v[i] / root) : 0;
        on += sign * v[i] * (double)shrinker->mean[i];
    }
    shrinker->s[k] = (float)s;
    shrinker->root[k] = root;
    shrinker->mean_on[k] = on;
}

/* Singular values are the roots of the scatter's eigenvalues; those that its rounding alone may have made count as 0.
 */
static gmem_status gmem__shrinker_set_factors(gmem__shrinker *shrinker, const double *vectors, const double *values,
                                              gmem_error *error) {
    const int64_t width = shrinker->bank->width;
    const double negligible = (double)width * DBL_EPSILON * values[0];
    if (!(sqrt(fabs(values[0])) <= FLT_MAX))
        return gmem__fail(error, GMEM_E_TYPE, "the rows are so large that their singular values exceed F32");
    for (int64_t i = 0; i < width; i++) {
        shrinker->mean[i] = (float)shrinker->scatter.mean[i];
        shrinker->mean_mean += (double)shrinker->mean[i] * (double)shrinker->mean[i];
    }
    for (int64_t k = 0; k < shrinker->desc->rank; k++)
        gmem__shrinker_set_direction(shrinker, k, vectors + k * width, values[k] > negligible ? sqrt(values[k]) : 0);
    return GMEM_OK;
}

/* The first pass. */
static gmem_status gmem__shrinker_decompose(gmem__shrinker *shrinker, gmem_error *error) {
    const int64_t width = shrinker->bank->width;
    for (int64_t row = 0; row < shrinker->bank->rows; row += shrinker->count) {
        GMEM__TRY(gmem__shrinker_read(shrinker, row, error));
        gmem__scatter_add(&shrinker->scatter, &shrinker->engine, shrinker->rows, shrinker->count);
    }
    double *values = (double *)gmem__shrinker_take(shrinker, width, 1, sizeof(double));
    double *work = (double *)gmem__shrinker_take(shrinker, GMEM__EIGEN_WORK(width), 1, sizeof(double));
    if (!values || !work) return gmem__fail(error, GMEM_E_MEMORY, "no memory for eigenvalues");
    double *matrix = gmem__scatter_matrix(&shrinker->scatter);
    if (!gmem__eigen_symmetric(&shrinker->engine, matrix, width, values, work))
        return gmem__fail(error, GMEM_E_UNSUPPORTED, "the covariance's eigenvectors cannot be found");
    return gmem__shrinker_set_factors(shrinker, matrix, values, error);
}

/* Row i less the mean, and what both say before it is projected. */
static void gmem__shrinker_centre_row(const void *shrinker_, int64_t i, float *scratch) {
    const gmem__shrinker *shrinker = (const gmem__shrinker *)shrinker_;
    const int64_t width = shrinker->bank->width;
    gmem__shrunk_row *result = shrinker->results + i;
    float *row = shrinker->rows + i * width;
    double row_row = 0, row_mean = 0, spread = 0;
    (void)scratch;
    for (int64_t c = 0; c < width; c++) {
        const double x = (double)row[c], mean = (double)shrinker->mean[c];
        row[c] = (float)(x - mean);
        row_row += x * x;
        row_mean += x * mean;
        spread += (x - mean) * (x - mean);
    }
    result->row_row = row_row;
    result->row_mean = row_mean;
    result->spread = spread;
}

/* kept = (rows - mean) V / sqrt(S): a product whose weight is the block. */
static void gmem__shrinker_project(gmem__shrinker *shrinker) {
    gmem__weight weight;
    gmem__linear op;
    gmem__run_tasks(&shrinker->engine, shrinker->count, gmem__shrinker_centre_row, shrinker);
    memset(&weight, 0, sizeof weight);
    weight.data = shrinker->rows;
    weight.type = GMEM_F32;
    weight.rows = shrinker->count;
    weight.cols = weight.row_stride = shrinker->bank->width;
    memset(&op, 0, sizeof op);
    op.weight = &weight;
    op.x = shrinker->basis;
    op.y = shrinker->kept;
    op.x_stride = op.y_stride = op.columns = shrinker->columns;
    shrinker->engine.ops->linear(&shrinker->engine, &op);
}

/* In the coordinates of V, p = sqrt(S) c is the row's part in the subspace and q the same of what is stored. V being
 * orthonormal, |row - image|^2 = |row - mean|^2 - |p|^2 + |p - q|^2, and so with the other products. */
static void gmem__shrinker_compare_coefficients(const gmem__shrinker *shrinker, int64_t i) {
    const float *kept = shrinker->kept + i * shrinker->columns, *stored = shrinker->stored + i * shrinker->columns;
    gmem__shrunk_row *result = shrinker->results + i;
    double p_p = 0, p_q = 0, q_q = 0, lost = 0, mean_q = 0;
    for (int64_t k = 0; k < shrinker->columns; k++) {
        const double p = shrinker->root[k] * (double)kept[k], q = shrinker->root[k] * (double)stored[k];
        p_p += p * p;
        p_q += p * q;
        q_q += q * q;
        lost += (p - q) * (p - q);
        mean_q += shrinker->mean_on[k] * q;
    }
    result->image_image = shrinker->mean_mean + 2 * mean_q + q_q;
    result->row_image = result->row_mean + mean_q + p_q;
    result->rest = fmax(result->spread - p_p, 0) + lost;
}

/* storing --------------------------------------------------------------------------------------------------------- */

static void gmem__shrinker_compare_rows(const gmem__shrinker *shrinker, int64_t i) {
    const float *row = shrinker->kept + i * shrinker->columns, *image = shrinker->stored + i * shrinker->columns;
    gmem__shrunk_row *result = shrinker->results + i;
    double row_row = 0, row_image = 0, image_image = 0, rest = 0;
    for (int64_t c = 0; c < shrinker->columns; c++) {
        const double x = (double)row[c], y = (double)image[c];
        row_row += x * x;
        row_image += x * y;
        image_image += y * y;
        rest += (x - y) * (x - y);
    }
    result->row_row = row_row;
    result->row_image = row_image;
    result->image_image = image_image;
    result->rest = rest;
}

static void gmem__shrinker_measure_row(const void *shrinker_, int64_t i, float *scratch) {
    const gmem__shrinker *shrinker = (const gmem__shrinker *)shrinker_;
    (void)scratch;
    shrinker->scales[i] = gmem__row_scale(gmem__row_largest(shrinker->rows + i * shrinker->columns, shrinker->columns));
}

/* Row i, or its coefficients, in the file's type, and what that makes of them. */
static void gmem__shrinker_encode_row(const void *shrinker_, int64_t i, float *scratch) {
    const gmem__shrinker *shrinker = (const gmem__shrinker *)shrinker_;
    const gmem_type type = shrinker->desc->type;
    const int64_t columns = shrinker->columns;
    const float *kept = shrinker->kept + i * columns;
    float *stored = shrinker->stored + i * columns;
    char *encoded = shrinker->encoded + i * columns * (int64_t)gmem_type_bytes(type);
    if (type == GMEM_I8) {
        gmem__shrinker_measure_row(shrinker, i, scratch);
        gmem__quantise_row(kept, columns, shrinker->scales[i], (int8_t *)encoded);
        for (int64_t c = 0; c < columns; c++)
            stored[c] = (float)((int8_t *)encoded)[c] * shrinker->scales[i];
    } else {
        const gmem_tensor tensor = gmem_tensor_make("", type, 1, &columns, encoded);
        gmem_convert_f32(kept, columns, type, encoded);
        gmem_tensor_read_f32(&tensor, 0, columns, stored);
    }
    shrinker->results[i].stored = gmem__all_finite(stored, columns);
    if (shrinker->desc->rank > 0)
        gmem__shrinker_compare_coefficients(shrinker, i);
    else
        gmem__shrinker_compare_rows(shrinker, i);
}

/* Adds up the block's rows, in their order. */
static gmem_status gmem__shrinker_add_up(gmem__shrinker *shrinker, gmem_error *error) {
    gmem__shrunk_sums *sums = &shrinker->sums;
    for (int64_t i = 0; i < shrinker->count; i++) {
        const gmem__shrunk_row *result = shrinker->results + i;
        if (!result->stored)
            return gmem__shrinker_refuse(shrinker, shrinker->first + i, GMEM_E_TYPE,
                                         "has a value that is too large for the type to store", error);
        sums->rest += result->rest;
        sums->spread += result->spread;
        if (!(result->row_row > 0)) continue;
        const double lengths = sqrt(result->row_row) * sqrt(fmax(result->image_image, 0));
        const double cosine = lengths > 0 ? fmin(result->row_image / lengths, 1) : 0;
        sums->cosines += cosine;
        sums->least = fmin(sums->least, cosine);
        sums->compared++;
    }
    return GMEM_OK;
}

/* The next block of rows as the file wants them. */
static gmem_status gmem__shrinker_store_block(gmem__shrinker *shrinker, int64_t first, gmem_error *error) {
    GMEM__TRY(gmem__shrinker_read(shrinker, first, error));
    if (shrinker->desc->rank > 0)
        gmem__shrinker_project(shrinker);
    else
        gmem__scatter_add(&shrinker->scatter, &shrinker->engine, shrinker->rows, shrinker->count);
    gmem__run_tasks(&shrinker->engine, shrinker->count, gmem__shrinker_encode_row, shrinker);
    GMEM__TRY(gmem__shrinker_add_up(shrinker, error));
    shrinker->ready = shrinker->count * shrinker->columns;
    return GMEM_OK;
}

static gmem_status gmem__shrinker_scale_block(gmem__shrinker *shrinker, int64_t first, gmem_error *error) {
    GMEM__TRY(gmem__shrinker_read(shrinker, first, error));
    gmem__run_tasks(&shrinker->engine, shrinker->count, gmem__shrinker_measure_row, shrinker);
    shrinker->ready = shrinker->count;
    return GMEM_OK;
}

/* the file -------------------------------------------------------------------------------------------------------- */

/* The tensors that are filled in; the others have data. */
typedef enum gmem__shrunk_part {
    GMEM__SHRUNK_ROWS, /* C or features */
    GMEM__SHRUNK_SCALES,
    GMEM__SHRUNK_NAMES,
    GMEM__SHRUNK_OFFSETS,
    GMEM__SHRUNK_FACTOR
} gmem__shrunk_part;

typedef struct gmem__shrunk_file {
    gmem__shrinker *shrinker;
    gmem_tensor tensors[6];
    gmem__shrunk_part parts[6];
    int64_t count, bytes; /* of the tensors */
    const char *metadata[12];
    int64_t metadata_count;
    char rank_text[24], width_text[24];
} gmem__shrunk_file;

/* The next elements of what the blocks make, for whoever asks from the first to the last. */
static gmem_status gmem__shrunk_stream(gmem__shrinker *shrinker, gmem__shrunk_part part, int64_t first, int64_t count,
                                       char *out, gmem_error *error) {
    const int scales = part == GMEM__SHRUNK_SCALES;
    const int64_t bytes = (int64_t)(scales ? sizeof(float) : gmem_type_bytes(shrinker->desc->type));
    if (first == 0) shrinker->first = shrinker->count = shrinker->given = shrinker->ready = 0;
    while (count > 0) {
        if (shrinker->given == shrinker->ready) {
            const int64_t next = shrinker->first + shrinker->count;
            shrinker->given = shrinker->ready = 0;
            GMEM__TRY((scales ? gmem__shrinker_scale_block : gmem__shrinker_store_block)(shrinker, next, error));
        }
        const char *from = scales ? (const char *)shrinker->scales : shrinker->encoded;
        const int64_t some = gmem__min(count, shrinker->ready - shrinker->given);
        memcpy(out, from + shrinker->given * bytes, (size_t)(some * bytes));
        shrinker->given += some;
        out += some * bytes;
        count -= some;
    }
    return GMEM_OK;
}

static gmem_status gmem__shrunk_fill(void *user, int64_t index, int64_t first, int64_t count, void *out,
                                     gmem_error *error) {
    gmem__shrunk_file *file = (gmem__shrunk_file *)user;
    gmem__shrinker *shrinker = file->shrinker;
    switch (file->parts[index]) {
    case GMEM__SHRUNK_NAMES:
        gmem__names_write(&shrinker->names, count, (char *)out);
        return GMEM_OK;
    case GMEM__SHRUNK_OFFSETS:
        gmem__names_write_offsets(&shrinker->names, count, (int64_t *)out);
        return GMEM_OK;
    default:
        return gmem__shrunk_stream(shrinker, file->parts[index], first, count, (char *)out, error);
    }
}

static void gmem__shrunk_add(gmem__shrunk_file *file, gmem__shrunk_part part, const char *name, gmem_type type,
                             int rank, int64_t rows, int64_t columns, const void *data) {
    const int64_t shape[2] = {rows, columns};
    file->tensors[file->count] = gmem_tensor_make(name, type, rank, shape, data);
    file->bytes += gmem_tensor_count(&file->tensors[file->count]) * (int64_t)gmem_type_bytes(type);
    file->parts[file->count++] = part;
}

static void gmem__shrunk_say(gmem__shrunk_file *file, const char *key, const char *value) {
    file->metadata[2 * file->metadata_count] = key;
    file->metadata[2 * file->metadata_count++ + 1] = value;
}

static void gmem__shrunk_describe(gmem__shrunk_file *file, gmem__shrinker *shrinker) {
    const int64_t rows = shrinker->bank->rows, width = shrinker->bank->width, rank = shrinker->desc->rank;
    const int64_t names_bytes = shrinker->bank->names.start ? gmem__names_bytes(&shrinker->names, rows) : 0;
    const gmem_type type = shrinker->desc->type;
    memset(file, 0, sizeof *file);
    file->shrinker = shrinker;
    gmem__shrunk_say(file, "format", "pt"); /* as other tools' files say it */
    gmem__shrunk_say(file, "gmem", GMEM_VERSION);
    gmem__shrunk_say(file, "backend", shrinker->engine.ops->name);
    gmem__shrunk_say(file, "dtype", gmem__dtype_name(type));
    if (rank > 0) {
        snprintf(file->rank_text, sizeof file->rank_text, "%lld", (long long)rank);
        snprintf(file->width_text, sizeof file->width_text, "%lld", (long long)width);
        gmem__shrunk_say(file, "latent_dim", file->rank_text);
        gmem__shrunk_say(file, "feature_dim", file->width_text);
        gmem__shrunk_add(file, GMEM__SHRUNK_ROWS, "C", type, 2, rows, rank, NULL);
        gmem__shrunk_add(file, GMEM__SHRUNK_FACTOR, "M", GMEM_F32, 2, width, rank, shrinker->m);
        gmem__shrunk_add(file, GMEM__SHRUNK_FACTOR, "S", GMEM_F32, 1, rank, 0, shrinker->s);
        gmem__shrunk_add(file, GMEM__SHRUNK_FACTOR, "mean", GMEM_F32, 1, width, 0, shrinker->mean);
    } else {
        gmem__shrunk_add(file, GMEM__SHRUNK_ROWS, "features", type, 2, rows, width, NULL);
        if (type == GMEM_I8) gmem__shrunk_add(file, GMEM__SHRUNK_SCALES, "features.scale", GMEM_F32, 1, rows, 0, NULL);
    }
    if (names_bytes == 0) return;
    gmem__shrunk_add(file, GMEM__SHRUNK_NAMES, "names", GMEM_U8, 1, names_bytes, 0, NULL);
    gmem__shrunk_add(file, GMEM__SHRUNK_OFFSETS, "names.offsets", GMEM_I64, 1, rows + 1, 0, NULL);
}

static gmem_status gmem__shrunk_save(gmem__shrunk_file *file, const char *path, gmem_error *error) {
    gmem_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.tensors = file->tensors;
    desc.count = file->count;
    desc.metadata = file->metadata;
    desc.metadata_count = file->metadata_count;
    desc.fill = gmem__shrunk_fill;
    desc.fill_user = file;
    return gmem__bank_save((gmem_context *)(uintptr_t)file->shrinker->bank->context, path, &desc, error);
}

/* the report ------------------------------------------------------------------------------------------------------ */

/* The file's size, or where that cannot be told any more what it holds. */
static int64_t gmem__shrunk_bytes(const gmem__shrunk_file *file, const char *path) {
    const gmem_io *io = &file->shrinker->bank->context->io;
    void *opened = io->open(io->user, path, 0);
    if (!opened) return file->bytes;
    const int64_t bytes = io->size(io->user, opened);
    (void)io->close(io->user, opened);
    return bytes > 0 ? bytes : file->bytes;
}

static void gmem__shrunk_report(const gmem__shrunk_file *file, const char *path, gmem_bank_compress_report *out) {
    const gmem__shrinker *shrinker = file->shrinker;
    const gmem__shrunk_sums *sums = &shrinker->sums;
    const double spread = shrinker->desc->rank > 0 ? sums->spread : shrinker->scatter.total;
    memset(out, 0, sizeof *out);
    out->energy = spread > 0 ? 1 - sums->rest / spread : 1;
    out->mean_cosine = sums->compared > 0 ? sums->cosines / (double)sums->compared : 1;
    out->least_cosine = sums->least;
    for (int64_t i = 0; i < shrinker->bank->part_count; i++)
        out->bytes_before += gmem_file_bytes(shrinker->bank->parts[i].file);
    out->bytes_after = gmem__shrunk_bytes(file, path);
}

static gmem_status gmem__compress_check(const gmem_bank *bank, const char *path, const gmem_bank_compress_desc *desc,
                                        gmem_error *error) {
    if (!bank || !path || !desc)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a bank, a path and how to compress are needed");
    if (desc->type != GMEM_F32 && desc->type != GMEM_F16 && desc->type != GMEM_BF16 && desc->type != GMEM_I8)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a bank is compressed to F32, F16, BF16 or I8");
    if (desc->rank < 0 || desc->rank > gmem__min(bank->width, bank->rows))
        return gmem__fail(error, GMEM_E_ARGUMENT, "rank %lld of a bank of %lld rows of width %lld",
                          (long long)desc->rank, (long long)bank->rows, (long long)bank->width);
    if (desc->rank > 0 && bank->width > GMEM__EIGEN_MOST)
        return gmem__fail(error, GMEM_E_UNSUPPORTED,
                          "rows of %lld elements are too wide to be decomposed: more than %d", (long long)bank->width,
                          GMEM__EIGEN_MOST);
    if (desc->rank > 0 && desc->type == GMEM_I8)
        return gmem__fail(error, GMEM_E_COMBINATION, "coefficients are F32, F16 or BF16: int8 is for whole rows");
    return GMEM_OK;
}

GMEM_API gmem_status gmem_bank_compress(const gmem_bank *bank, const char *path, const gmem_bank_compress_desc *desc,
                                        gmem_bank_compress_report *report, gmem_error *error) {
    gmem__shrinker shrinker;
    gmem__shrunk_file file;
    GMEM__TRY(gmem__compress_check(bank, path, desc, error));
    gmem_status status = gmem__shrinker_open(&shrinker, bank, desc, error);
    if (status == GMEM_OK && desc->rank > 0) status = gmem__shrinker_decompose(&shrinker, error);
    if (status == GMEM_OK) {
        gmem__shrunk_describe(&file, &shrinker);
        status = gmem__shrunk_save(&file, path, error);
    }
    if (status == GMEM_OK && report) gmem__shrunk_report(&file, path, report);
    gmem__shrinker_close(&shrinker);
    return status;
}
