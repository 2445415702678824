/* The memory bank: opening its files without touching rows, and reading rows whole or from their decomposition. */
#include "bank.h"
#include "file.h"

#include <float.h>
#include <stdio.h>

/* what a file holds ----------------------------------------------------------------------------------------------- */

static gmem_status gmem__bank_missing(const gmem_file *file, const char *name, gmem_error *error) {
    const char *foreign = gmem__file_foreign_at(file, name);
    gmem__quoted quoted;
    if (foreign)
        return gmem__fail(error, GMEM_E_FOREIGN, "\"%s\" could only be built by running %s", name,
                          gmem__quote(&quoted, foreign));
    return gmem__fail(error, GMEM_E_MISSING_TENSOR, "no tensor \"%s\"", name);
}

/* A needed tensor of floating-point values; a dimension of -1 may be anything from 1. */
static gmem_status gmem__bank_need(const gmem_file *file, const char *name, int rank, int64_t rows, int64_t columns,
                                   const gmem_tensor **out, gmem_error *error) {
    const gmem_tensor *tensor = gmem_file_find_any(file, name);
    int64_t shape[2] = {rows, columns};
    gmem__quoted expected, found;
    if (!tensor) return gmem__bank_missing(file, name, error);
    int fits = tensor->rank == rank;
    for (int i = 0; fits && i < rank; i++) {
        fits = shape[i] < 0 ? tensor->shape[i] > 0 : tensor->shape[i] == shape[i];
    }
    if (!fits && gmem_tensor_count(tensor) == 0)
        return gmem__fail(error, GMEM_E_SHAPE, "\"%s\" is %s: it is empty", name,
                          gmem__shape_text(&found, tensor->shape, tensor->rank));
    if (!fits)
        return gmem__fail(error, GMEM_E_SHAPE, "\"%s\" is %s, expected %s", name,
                          gmem__shape_text(&found, tensor->shape, tensor->rank),
                          gmem__shape_text(&expected, shape, rank));
    *out = tensor;
    return GMEM_OK;
}

static int gmem__bank_is_float(gmem_type type) {
    return type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64;
}

static gmem_status gmem__bank_need_float(const gmem_tensor *tensor, const char *name, gmem_error *error) {
    if (gmem__bank_is_float(tensor->type)) return GMEM_OK;
    return gmem__fail(error, GMEM_E_TYPE, "\"%s\" is %s, expected a floating-point type", name,
                      gmem_type_name(tensor->type));
}

/* `features`, `memorybank` or a bare tensor: (rows, width), I8 with a scale for each row. */
static gmem_status gmem__bank_take_rows(gmem__bank_part *part, const char *name, int64_t *width, gmem_error *error) {
    const gmem_tensor *tensor = NULL;
    char scale[32];
    snprintf(scale, sizeof scale, "%s.scale", name);
    GMEM__TRY(gmem__bank_need(part->file, name, 2, -1, -1, &tensor, error));
    part->kind = GMEM_BANK_FULL;
    part->rows_tensor = tensor;
    part->rows = tensor->shape[0];
    *width = tensor->shape[1];
    if (tensor->type != GMEM_I8 || (strcmp(name, "features") != 0 && !gmem_file_find_any(part->file, scale)))
        return gmem__bank_need_float(tensor, name, error);
    GMEM__TRY(gmem__bank_need(part->file, scale, 1, part->rows, 0, &part->scale, error));
    return gmem__bank_need_float(part->scale, scale, error);
}

static gmem_status gmem__bank_check_number(const gmem_file *file, const char *name, int64_t expected,
                                           gmem_error *error) {
    const char *text = gmem_file_metadata(file, name); /* safetensors have no other place for a number */
    double number = 0;
    int given = text ? 1 : gmem_file_number(file, name, &number);
    if (text && !gmem__parse_double(text, strlen(text), &number)) number = -1;
    if (!given || number == (double)expected) return GMEM_OK;
    gmem__quoted found;
    return gmem__fail(error, GMEM_E_SHAPE, "\"%s\" is %s, but the tensors have %lld", name,
                      text ? gmem__quote(&found, text) : gmem__format_double(&found, number), (long long)expected);
}

static gmem_status gmem__bank_copy_factors(const gmem_context *context, gmem__bank_factors *factors,
                                           const gmem_tensor *m, const gmem_tensor *s, const gmem_tensor *mean,
                                           gmem_error *error) {
    int64_t width = m->shape[0], rank = m->shape[1], count = 0;
    if (!gmem__mul(rank, width, &count) || !gmem__add(count, rank + width, &count))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the size of \"M\" overflows");
    factors->rank = rank;
    factors->count = count;
    factors->memory = (float *)gmem__alloc_raw(context, count, sizeof(float));
    if (!factors->memory) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a decomposed bank");
    factors->m = factors->memory;
    factors->s = factors->m + rank * width;
    factors->mean = factors->s + rank;
    gmem_tensor transposed = *m;
    transposed.shape[0] = rank;
    transposed.shape[1] = width;
    transposed.stride[0] = m->stride[1];
    transposed.stride[1] = m->stride[0];
    gmem_tensor_read_f32(&transposed, 0, rank * width, factors->m);
    gmem_tensor_read_f32(s, 0, rank, factors->s);
    gmem_tensor_read_f32(mean, 0, width, factors->mean);
    return GMEM_OK;
}

/* `C` (rows, rank), `M` (width, rank), `S` (rank), `mean` (width); the scalars `latent_dim` and `feature_dim`, which
 * may be metadata. */
static gmem_status gmem__bank_take_factors(const gmem_context *context, gmem__bank_part *part, int64_t *width,
                                           gmem_error *error) {
    const gmem_tensor *c = NULL, *m = NULL, *s = NULL, *mean = NULL;
    GMEM__TRY(gmem__bank_need(part->file, "C", 2, -1, -1, &c, error));
    int64_t rank = c->shape[1];
    GMEM__TRY(gmem__bank_need(part->file, "M", 2, -1, rank, &m, error));
    GMEM__TRY(gmem__bank_need(part->file, "S", 1, rank, 0, &s, error));
    *width = m->shape[0];
    mean = gmem_file_find_any(part->file, "mean");
    if (!mean || mean->rank != 2 || mean->shape[0] != 1 || mean->shape[1] != *width) /* (1, width) is fine too */
        GMEM__TRY(gmem__bank_need(part->file, "mean", 1, *width, 0, &mean, error));
    GMEM__TRY(gmem__bank_need_float(c, "C", error));
    GMEM__TRY(gmem__bank_need_float(m, "M", error));
    GMEM__TRY(gmem__bank_need_float(s, "S", error));
    GMEM__TRY(gmem__bank_need_float(mean, "mean", error));
    GMEM__TRY(gmem__bank_check_number(part->file, "latent_dim", rank, error));
    GMEM__TRY(gmem__bank_check_number(part->file, "feature_dim", *width, error));
    part->kind = GMEM_BANK_DECOMPOSED;
    part->rows_tensor = c;
    part->rows = c->shape[0];
    return gmem__bank_copy_factors(context, &part->factors, m, s, mean, error);
}

static gmem_status gmem__bank_take(const gmem_context *context, gmem__bank_part *part, int64_t *width,
                                   gmem_error *error) {
    static const char *const full[] = {"features", "memorybank", "tensor"};
    static const char *const factors[] = {"C", "M", "S", "mean"};
    for (int i = 0; i < 3; i++) {
        if (gmem_file_find_any(part->file, full[i])) return gmem__bank_take_rows(part, full[i], width, error);
    }
    for (int i = 0; i < 4; i++) {
        if (gmem_file_find_any(part->file, factors[i])) return gmem__bank_take_factors(context, part, width, error);
    }
    return gmem__fail(
        error, GMEM_E_MISSING_TENSOR,
        "no bank: expected one bare tensor, \"features\", \"memorybank\", or \"C\", \"M\", \"S\", \"mean\"");
}

/* opening --------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__bank_add_part(gmem_bank *bank, gmem__bank_part *part, gmem_error *error) {
    int64_t width = 0;
    GMEM__TRY(gmem__bank_take(bank->context, part, &width, error));
    if (bank->width == 0) bank->width = width;
    if (width != bank->width)
        return gmem__fail(error, GMEM_E_WIDTH, "rows of %lld elements, but the first file's have %lld",
                          (long long)width, (long long)bank->width);
    part->first = bank->rows;
    if (!gmem__add(bank->rows, part->rows, &bank->rows))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the number of rows overflows");
    return GMEM_OK;
}

static gmem_status gmem__bank_load(gmem_context *context, gmem_bank *bank, const gmem_bank_desc *desc,
                                   gmem_error *error) {
    for (int64_t i = 0; i < bank->part_count; i++) {
        gmem__bank_part *part = bank->parts + i;
        part->file = desc->file;
        if (!desc->file) {
            if (!desc->paths[i]) return gmem__fail(error, GMEM_E_ARGUMENT, "a bank's path is missing");
            GMEM__TRY(gmem_file_open(context, desc->paths[i], ".", &part->file, error));
            part->file_owned = 1;
        }
        gmem_status status = gmem__bank_add_part(bank, part, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
    }
    return gmem__bank_read_names(bank, desc, error);
}

GMEM_API gmem_status gmem_bank_open(gmem_context *context, const gmem_bank_desc *desc, gmem_bank **out,
                                    gmem_error *error) {
    if (!context || !desc || !out || (!desc->file && (!desc->paths || desc->path_count < 1)))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_bank_open needs a context, files and an output");
    gmem_bank *bank = (gmem_bank *)gmem__alloc(context, 1, sizeof *bank);
    if (!bank) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank");
    bank->context = context;
    bank->part_count = desc->file ? 1 : desc->path_count;
    bank->parts = (gmem__bank_part *)gmem__alloc(context, bank->part_count, sizeof *bank->parts);
    gmem_status status = bank->parts ? gmem__bank_load(context, bank, desc, error)
                                     : gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank");
    if (status != GMEM_OK) {
        gmem_bank_close(bank);
        return status;
    }
    gmem__log(context, "bank: %lld rows of width %lld in %d files", (long long)gmem_bank_rows(bank),
              (long long)gmem_bank_width(bank), gmem_bank_file_count(bank));
    *out = bank;
    return GMEM_OK;
}

GMEM_API void gmem_bank_close(gmem_bank *bank) {
    if (!bank) return;
    const gmem_context *context = bank->context;
    for (int64_t i = 0; bank->parts && i < bank->part_count; i++) {
        gmem__bank_part *part = bank->parts + i;
        gmem__free(context, part->factors.memory, part->factors.count, sizeof(float));
        if (part->file_owned) gmem_file_close(part->file);
    }
    gmem__bank_free_names(bank);
    gmem__free(context, bank->parts, bank->part_count, sizeof *bank->parts);
    gmem__free(context, bank, 1, sizeof *bank);
}

GMEM_API int64_t gmem_bank_rows(const gmem_bank *bank) { return bank->rows; }
GMEM_API int64_t gmem_bank_width(const gmem_bank *bank) { return bank->width; }
GMEM_API gmem_type gmem_bank_type(const gmem_bank *bank) { return bank->parts[0].rows_tensor->type; }
GMEM_API gmem_bank_kind gmem_bank_get_kind(const gmem_bank *bank) { return bank->parts[0].kind; }
GMEM_API int gmem_bank_file_count(const gmem_bank *bank) { return (int)bank->part_count; }

GMEM_API const char *gmem_bank_file_path(const gmem_bank *bank, int index) {
    return index >= 0 && index < bank->part_count ? gmem_file_path(bank->parts[index].file) : NULL;
}

GMEM_API int64_t gmem_bank_file_rows(const gmem_bank *bank, int index) {
    return index >= 0 && index < bank->part_count ? bank->parts[index].rows : 0;
}

/* rows ------------------------------------------------------------------------------------------------------------ */

/* out (width) += scale * x (width) */
static void gmem__bank_accumulate(float *out, const float *x, float scale, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        out[i] += scale * x[i];
    }
}

#define GMEM__BANK_COLUMNS 32

/* out (count) += c (run) m (run, columns `stride` apart), in the order of m's rows. Columns go in runs that stay in
 * registers. */
static void gmem__bank_add_products(float *out, const float *c, int64_t run, const float *m, int64_t stride,
                                    int64_t count) {
    int64_t i = 0;
    for (; i + GMEM__BANK_COLUMNS <= count; i += GMEM__BANK_COLUMNS) {
        float sums[GMEM__BANK_COLUMNS];
        memcpy(sums, out + i, sizeof sums);
        for (int64_t k = 0; k < run; k++) {
            const float *x = m + k * stride + i;
            for (int j = 0; j < GMEM__BANK_COLUMNS; j++)
                sums[j] += c[k] * x[j];
        }
        memcpy(out + i, sums, sizeof sums);
    }
    for (int64_t k = 0; k < run; k++)
        gmem__bank_accumulate(out + i, m + k * stride + i, c[k], count - i);
}

#undef GMEM__BANK_COLUMNS

GMEM__FN void gmem__bank_compose(const gmem__bank_part *part, int64_t row, int64_t width, int64_t first, int64_t count,
                                 float *out) {
    const gmem__bank_factors *factors = &part->factors;
    float c[64];
    memcpy(out, factors->mean + first, (size_t)count * sizeof(float));
    for (int64_t done = 0; done < factors->rank; done += 64) {
        int64_t run = gmem__min(64, factors->rank - done);
        gmem_tensor_read_f32(part->rows_tensor, row * factors->rank + done, run, c);
        gmem__bank_add_products(out, c, run, factors->m + done * width + first, width, count);
    }
}

GMEM__FN const gmem__bank_part *gmem__bank_part_of(const gmem_bank *bank, int64_t row) {
    const gmem__bank_part *part = bank->parts;
    while (row >= part->first + part->rows) {
        part++;
    }
    return part;
}

/* Systems take back whole pages, and bring some of those before a page that is touched along with it: what came back
 * with these rows goes with them. */
GMEM__FN void gmem__bank_discard(const gmem_bank *bank, int64_t first, int64_t count) {
    const int64_t neighbours = 65536;
    for (int64_t row = first, next; row < first + count; row = next) {
        const gmem__bank_part *part = gmem__bank_part_of(bank, row);
        const gmem_tensor *tensor = part->rows_tensor;
        next = gmem__min(first + count, part->first + part->rows);
        if (!gmem__tensor_is_contiguous(tensor)) continue;
        const int64_t bytes = tensor->shape[1] * (int64_t)gmem_type_bytes(tensor->type);
        const int64_t begin = (row - part->first) * bytes, before = gmem__min(begin, neighbours);
        gmem__file_discard(part->file, (const char *)tensor->data + begin - before, (next - row) * bytes + before);
    }
}

GMEM_API gmem_status gmem_bank_row(const gmem_bank *bank, int64_t row, float *out, gmem_error *error) {
    if (row < 0 || row >= bank->rows)
        return gmem__fail(error, GMEM_E_ROW, "row %lld of a bank of %lld", (long long)row, (long long)bank->rows);
    const gmem__bank_part *part = gmem__bank_part_of(bank, row);
    row -= part->first;
    if (part->kind == GMEM_BANK_DECOMPOSED) {
        gmem__bank_compose(part, row, bank->width, 0, bank->width, out);
        return GMEM_OK;
    }
    gmem_tensor_read_f32(part->rows_tensor, row * bank->width, bank->width, out);
    if (!part->scale) return GMEM_OK;
    float scale = 0;
    gmem_tensor_read_f32(part->scale, row, 1, &scale);
    for (int64_t i = 0; i < bank->width; i++) {
        out[i] *= scale;
    }
    return GMEM_OK;
}

/* Without their sign, floats are in the order of their bits, whose comparison waits less. */
GMEM__FN float gmem__row_largest(const float *row, int64_t width) {
    uint32_t largest = 0;
    float value;
    for (int64_t i = 0; i < width; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    memcpy(&value, &largest, sizeof value);
    return value;
}

/* A row of zeros has scale 1; one of a tiny row is a normal number, as its inverse must be. */
GMEM__FN float gmem__row_scale(float largest) {
    const float scale = largest / 127;
    if (largest == 0) return 1;
    return scale > FLT_MIN ? scale : FLT_MIN;
}

GMEM__FN void gmem__quantise_row(const float *row, int64_t width, float scale, int8_t *out) {
    const float inverse = 1 / scale;
    for (int64_t i = 0; i < width; i++) {
        const float level = row[i] * inverse;
        out[i] = (int8_t)(level + (level < 0 ? -0.5f : 0.5f)); /* to nearest; below 128 */
    }
}

/* Room for `rows` rows, freed with the same number. */
static gmem_status gmem__bank_scratch(const gmem_bank *bank, int64_t rows, float **out, gmem_error *error) {
    *out = (float *)gmem__alloc_raw(bank->context, rows * bank->width, sizeof(float));
    return *out ? GMEM_OK : gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank row");
}

static void gmem__bank_scratch_free(const gmem_bank *bank, int64_t rows, float *scratch) {
    gmem__free(bank->context, scratch, rows * bank->width, sizeof(float));
}

GMEM_API gmem_status gmem_bank_snippet(const gmem_bank *bank, int64_t row, float *out, gmem_error *error) {
    float *scratch = NULL;
    GMEM__TRY(gmem__bank_scratch(bank, 1, &scratch, error));
    gmem_status status = gmem_bank_row(bank, row, scratch, error);
    if (status == GMEM_OK && gmem_normalize(scratch, bank->width, NULL) != GMEM_OK)
        status = gmem__fail(error, GMEM_E_ROW_ZERO, "row %lld is zero or not finite", (long long)row);
    if (status == GMEM_OK) memcpy(out, scratch, (size_t)bank->width * sizeof(float));
    gmem__bank_scratch_free(bank, 1, scratch);
    return status;
}

/* Coefficient k of a centred vector, (x - mean) M / S. A direction that the bank lacks has S 0 and takes none. */
static double gmem__bank_coefficient(const gmem__bank_factors *factors, int64_t k, const float *x, int64_t width) {
    const float *m = factors->m + k * width;
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += ((double)x[i] - (double)factors->mean[i]) * (double)m[i];
    }
    return factors->s[k] > 0 ? sum / (double)factors->s[k] : 0;
}

GMEM_API gmem_status gmem_bank_project(const gmem_bank *bank, const float *snippet, float *out, gmem_error *error) {
    const gmem__bank_factors *factors = &bank->parts[0].factors;
    float *scratch = NULL;
    if (gmem_bank_get_kind(bank) != GMEM_BANK_DECOMPOSED)
        return gmem__fail(error, GMEM_E_COMBINATION, "only a decomposed bank projects");
    GMEM__TRY(gmem__bank_scratch(bank, 1, &scratch, error));
    memcpy(scratch, factors->mean, (size_t)bank->width * sizeof(float));
    for (int64_t k = 0; k < factors->rank; k++) {
        float c = (float)gmem__bank_coefficient(factors, k, snippet, bank->width);
        gmem__bank_accumulate(scratch, factors->m + k * bank->width, c, bank->width);
    }
    memcpy(out, scratch, (size_t)bank->width * sizeof(float));
    gmem__bank_scratch_free(bank, 1, scratch);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_bank_interpolate(const gmem_bank *bank, int64_t a, int64_t b, double alpha, float *out,
                                           gmem_error *error) {
    float *scratch = NULL;
    if (!(alpha - alpha == 0)) return gmem__fail(error, GMEM_E_ARGUMENT, "the mixing weight is not finite");
    GMEM__TRY(gmem__bank_scratch(bank, 2, &scratch, error));
    float *row_b = scratch + bank->width;
    gmem_status status = gmem_bank_row(bank, a, scratch, error);
    if (status == GMEM_OK) status = gmem_bank_row(bank, b, row_b, error);
    for (int64_t i = 0; status == GMEM_OK && i < bank->width; i++) {
        out[i] = (float)(alpha * (double)scratch[i] + (1 - alpha) * (double)row_b[i]);
    }
    gmem__bank_scratch_free(bank, 2, scratch);
    return status;
}

GMEM__FN const char *gmem__dtype_name(gmem_type type) {
    return type == GMEM_F32    ? "f32"
           : type == GMEM_F16  ? "f16"
           : type == GMEM_BF16 ? "bf16"
           : type == GMEM_F64  ? "f64"
                               : "int8";
}
