/* The names of a bank's rows: from a text file or from the bank's own files, finding, and offering the nearest. */
#include "bank.h"
#include "file.h"

#include <stdio.h>

/* collecting ------------------------------------------------------------------------------------------------------ */

static gmem_status gmem__names_alloc(gmem_bank *bank, int64_t text_bytes, gmem_error *error) {
    gmem__bank_names *names = &bank->names;
    names->text_bytes = text_bytes;
    names->text = (char *)gmem__alloc_raw(bank->context, text_bytes, 1);
    names->start = (int64_t *)gmem__alloc(bank->context, bank->rows + 1, sizeof *names->start);
    if (names->text && names->start) return GMEM_OK;
    return gmem__fail(error, GMEM_E_MEMORY, "no memory for the names of %lld rows", (long long)bank->rows);
}

GMEM__FN void gmem__bank_free_names(gmem_bank *bank) {
    gmem__free(bank->context, bank->names.text, bank->names.text_bytes, 1);
    gmem__free(bank->context, bank->names.start, bank->rows + 1, sizeof *bank->names.start);
}

/* Appends the name of `row`; the rows come in order. An empty name counts as none. */
static gmem_status gmem__bank_names_add(gmem_bank *bank, int64_t row, const char *name, int64_t bytes,
                                        gmem_error *error) {
    gmem__bank_names *names = &bank->names;
    int64_t at = names->start[row];
    names->start[row + 1] = at + (bytes > 0 ? bytes + 1 : 0);
    if (bytes == 0) return GMEM_OK;
    if (memchr(name, 0, (size_t)bytes) || gmem__utf8_error(name, bytes) >= 0)
        return gmem__fail(error, GMEM_E_NAMES, "the name of row %lld is not UTF-8 text", (long long)row);
    memcpy(names->text + at, name, (size_t)bytes);
    names->text[at + bytes] = 0;
    return GMEM_OK;
}

/* names in a text, one a line -------------------------------------------------------------------------------------- */

/* The line at `*at` without its end, LF or CRLF; `*at` moves past it. */
static int64_t gmem__bank_names_line(const char *text, int64_t size, int64_t *at) {
    const char *line = text + *at, *end = (const char *)memchr(line, '\n', (size_t)(size - *at));
    int64_t length = end ? end - line : size - *at;
    *at += end ? length + 1 : length;
    return end && length > 0 && line[length - 1] == '\r' ? length - 1 : length;
}

static gmem_status gmem__names_from_text(gmem_bank *bank, const char *text, int64_t size, gmem_error *error) {
    int64_t at = 0, lines = 0;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) { /* a byte order mark, which some editors write */
        text += 3;
        size -= 3;
    }
    while (at < size) {
        gmem__bank_names_line(text, size, &at);
        lines++;
    }
    if (lines != bank->rows)
        return gmem__fail(error, GMEM_E_NAMES, "%lld names for %lld rows", (long long)lines, (long long)bank->rows);
    GMEM__TRY(gmem__names_alloc(bank, size + 1, error)); /* a line's end makes room for its NUL, but the last's */
    at = 0;
    for (int64_t row = 0; row < bank->rows; row++) {
        const char *line = text + at;
        GMEM__TRY(gmem__bank_names_add(bank, row, line, gmem__bank_names_line(text, size, &at), error));
    }
    return GMEM_OK;
}

static gmem_status gmem__names_from_path(gmem_bank *bank, const char *path, gmem_error *error) {
    gmem__bytes bytes;
    memset(&bytes, 0, sizeof bytes);
    GMEM__TRY(gmem__bytes_open(bank->context, path, &bytes, error));
    gmem_status status = gmem__names_from_text(bank, (const char *)bytes.data, bytes.size, error);
    gmem__bytes_close(bank->context, &bytes);
    return gmem__fail_in(error, status, path);
}

/* names in the bank's files --------------------------------------------------------------------------------------- */

/* `names` (U8, all names in one run) and `names.offsets` (I64, rows + 1) of a file; NULL where it has none. */
typedef struct gmem__bank_names_tensors {
    const gmem_tensor *run, *offsets;
} gmem__bank_names_tensors;

static gmem_status gmem__bank_names_find(const gmem__bank_part *part, gmem__bank_names_tensors *out,
                                         gmem_error *error) {
    gmem__bank_names_tensors found;
    found.run = gmem_file_find_any(part->file, "names");
    found.offsets = gmem_file_find_any(part->file, "names.offsets");
    if (!found.run && !found.offsets) return GMEM_OK;
    if (!found.run || !found.offsets)
        return gmem__fail(error, GMEM_E_NAMES, "\"names\" and \"names.offsets\" belong together");
    if (found.run->rank != 1 || found.run->type != GMEM_U8 || !gmem__tensor_is_contiguous(found.run))
        return gmem__fail(error, GMEM_E_NAMES, "\"names\" is not one run of U8");
    if (found.offsets->rank != 1 || found.offsets->type != GMEM_I64 || found.offsets->shape[0] != part->rows + 1)
        return gmem__fail(error, GMEM_E_NAMES, "\"names.offsets\" is not I64 of %lld + 1 elements",
                          (long long)part->rows);
    *out = found;
    return GMEM_OK;
}

static gmem_status gmem__names_from_part(gmem_bank *bank, const gmem__bank_part *part,
                                         const gmem__bank_names_tensors *tensors, gmem_error *error) {
    int64_t block[257], size = tensors->run->shape[0];
    for (int64_t row = 0; row < part->rows; row++) {
        int64_t *offset = block + row % 256;
        if (row % 256 == 0) gmem_tensor_read_i64(tensors->offsets, row, gmem__min(257, part->rows + 1 - row), block);
        if (offset[0] < 0 || offset[1] < offset[0] || offset[1] > size || (row == 0 && offset[0] != 0) ||
            (row == part->rows - 1 && offset[1] != size))
            return gmem__fail(error, GMEM_E_NAMES, "\"names.offsets\" is wrong at row %lld", (long long)row);
        GMEM__TRY(gmem__bank_names_add(bank, part->first + row, (const char *)tensors->run->data + offset[0],
                                       offset[1] - offset[0], error));
    }
    gmem__file_discard(part->file, tensors->run->data, size); /* they are copied */
    gmem__file_discard(part->file, tensors->offsets->data, (part->rows + 1) * (int64_t)sizeof *block);
    return GMEM_OK;
}

/* Rows of a file without names have none, where other files have. */
static gmem_status gmem__names_from_parts(gmem_bank *bank, gmem_error *error) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < bank->part_count; i++) {
        const gmem__bank_part *part = bank->parts + i;
        gmem__bank_names_tensors tensors = {NULL, NULL};
        gmem_status status = gmem__bank_names_find(part, &tensors, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
        if (!tensors.run) continue;
        if (!gmem__add(bytes, tensors.run->shape[0], &bytes) || !gmem__add(bytes, part->rows, &bytes))
            return gmem__fail(error, GMEM_E_OVERFLOW, "the size of the names overflows");
    }
    if (bytes == 0) return GMEM_OK;
    GMEM__TRY(gmem__names_alloc(bank, bytes, error));
    for (int64_t i = 0; i < bank->part_count; i++) {
        const gmem__bank_part *part = bank->parts + i;
        gmem__bank_names_tensors tensors = {NULL, NULL};
        gmem_status status = gmem__bank_names_find(part, &tensors, error);
        if (status == GMEM_OK && tensors.run) status = gmem__names_from_part(bank, part, &tensors, error);
        if (status != GMEM_OK) return gmem__fail_in(error, status, gmem_file_path(part->file));
        for (int64_t row = part->first; !tensors.run && row < part->first + part->rows; row++) {
            bank->names.start[row + 1] = bank->names.start[row];
        }
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__bank_read_names(gmem_bank *bank, const gmem_bank_desc *desc, gmem_error *error) {
    if (desc->names_path) return gmem__names_from_path(bank, desc->names_path, error);
    if (desc->names_text)
        return gmem__names_from_text(bank, desc->names_text, (int64_t)strlen(desc->names_text), error);
    return gmem__names_from_parts(bank, error);
}

/* writing --------------------------------------------------------------------------------------------------------- */

GMEM__FN const char *gmem__names_of_bank(const void *bank, int64_t row) {
    return gmem_bank_name((const gmem_bank *)bank, row);
}

static int64_t gmem__names_length(const gmem__names_writer *writer, int64_t row) {
    const char *name = writer->name(writer->user, row);
    return name ? (int64_t)strlen(name) : 0;
}

GMEM__FN int64_t gmem__names_bytes(const gmem__names_writer *writer, int64_t rows) {
    int64_t bytes = 0;
    for (int64_t row = 0; row < rows; row++) {
        bytes += gmem__names_length(writer, row);
    }
    return bytes;
}

GMEM__FN void gmem__names_write(gmem__names_writer *writer, int64_t bytes, char *out) {
    while (bytes > 0) {
        const int64_t length = gmem__names_length(writer, writer->row);
        const int64_t count = gmem__min(bytes, length - writer->at);
        if (count > 0) memcpy(out, writer->name(writer->user, writer->row) + writer->at, (size_t)count);
        writer->at += count;
        if (writer->at == length) {
            writer->row++;
            writer->at = 0;
        }
        bytes -= count;
        out += count;
    }
}

GMEM__FN void gmem__names_write_offsets(gmem__names_writer *writer, int64_t count, int64_t *out) {
    for (int64_t i = 0; i < count; i++, writer->next++) {
        if (writer->next > 0) writer->start += gmem__names_length(writer, writer->next - 1);
        out[i] = writer->start;
    }
}

/* finding --------------------------------------------------------------------------------------------------------- */

static int64_t gmem__name_length(const gmem_bank *bank, int64_t row) {
    return gmem__max(0, bank->names.start[row + 1] - bank->names.start[row] - 1);
}

GMEM_API const char *gmem_bank_name(const gmem_bank *bank, int64_t row) {
    if (!bank->names.start || row < 0 || row >= bank->rows || gmem__name_length(bank, row) == 0) return NULL;
    return bank->names.text + bank->names.start[row];
}

static char gmem__fold(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c; }

static int gmem__same_name(const char *a, const char *b, int64_t length) {
    for (int64_t i = 0; i < length; i++) {
        if (gmem__fold(a[i]) != gmem__fold(b[i])) return 0;
    }
    return 1;
}

static int gmem__contains_name(const char *name, int64_t length, const char *part, int64_t part_length) {
    for (int64_t i = 0; i + part_length <= length; i++) {
        if (gmem__same_name(name + i, part, part_length)) return 1;
    }
    return 0;
}

#define GMEM__NAME_COMPARED 64 /* bytes of a name that the edit distance looks at */

/* Levenshtein's distance, case ignored; more than `most` where it is more. */
static int64_t gmem__edit_distance(const char *a, int64_t a_length, const char *b, int64_t b_length, int64_t most) {
    int64_t row[GMEM__NAME_COMPARED + 1];
    a_length = gmem__min(a_length, GMEM__NAME_COMPARED);
    b_length = gmem__min(b_length, GMEM__NAME_COMPARED);
    for (int64_t j = 0; j <= b_length; j++) {
        row[j] = j;
    }
    for (int64_t i = 1; i <= a_length; i++) {
        int64_t diagonal = row[0], least = i;
        row[0] = i;
        for (int64_t j = 1; j <= b_length; j++) {
            int64_t change = diagonal + (gmem__fold(a[i - 1]) != gmem__fold(b[j - 1]));
            diagonal = row[j];
            row[j] = gmem__min(change, 1 + gmem__min(row[j], row[j - 1]));
            least = gmem__min(least, row[j]);
        }
        if (least > most) return least; /* it only grows */
    }
    return row[b_length];
}

/* How far a name is from what was asked for, at most `bar` being of interest. A name that contains the query counts
 * as one edit; of equal ones the shorter is nearer. */
static int64_t gmem__name_distance(const char *name, int64_t length, const char *query, int64_t query_length,
                                   int64_t bar) {
    int64_t difference = length > query_length ? length - query_length : query_length - length;
    int64_t least = gmem__min(difference, 255);
    if (query_length > 0 && gmem__contains_name(name, length, query, query_length)) return 256 + least;
    if (least * 256 > bar) return INT64_MAX;
    return 256 * gmem__edit_distance(name, length, query, query_length, (bar - least) / 256) + least;
}

#define GMEM__NEAREST 3

typedef struct gmem__nearest {
    int64_t row[GMEM__NEAREST], distance[GMEM__NEAREST];
    int count;
} gmem__nearest;

static int gmem__nearest_has(const gmem_bank *bank, const gmem__nearest *nearest, int64_t row) {
    int64_t length = gmem__name_length(bank, row);
    for (int i = 0; i < nearest->count; i++) {
        if (gmem__name_length(bank, nearest->row[i]) == length &&
            gmem__same_name(gmem_bank_name(bank, nearest->row[i]), gmem_bank_name(bank, row), length))
            return 1;
    }
    return 0;
}

static void gmem__nearest_add(gmem__nearest *nearest, int64_t row, int64_t distance) {
    int at = nearest->count < GMEM__NEAREST ? nearest->count++ : GMEM__NEAREST - 1;
    for (; at > 0 && nearest->distance[at - 1] > distance; at--) {
        nearest->row[at] = nearest->row[at - 1];
        nearest->distance[at] = nearest->distance[at - 1];
    }
    nearest->row[at] = row;
    nearest->distance[at] = distance;
}

static gmem__nearest gmem__nearest_names(const gmem_bank *bank, const char *query, int64_t query_length) {
    gmem__nearest nearest;
    memset(&nearest, 0, sizeof nearest);
    for (int64_t row = 0; row < bank->rows; row++) {
        const char *name = gmem_bank_name(bank, row);
        int64_t bar = nearest.count < GMEM__NEAREST ? INT64_MAX - 1 : nearest.distance[GMEM__NEAREST - 1] - 1;
        if (!name) continue;
        int64_t distance = gmem__name_distance(name, gmem__name_length(bank, row), query, query_length, bar);
        if (distance <= bar && !gmem__nearest_has(bank, &nearest, row)) gmem__nearest_add(&nearest, row, distance);
    }
    return nearest;
}

static gmem_status gmem__name_unknown(const gmem_bank *bank, const char *query, gmem_error *error) {
    char asked[96], offered[GMEM__NEAREST][96];
    gmem_escape(query, asked, sizeof asked);
    if (!error) return GMEM_E_NAME_UNKNOWN; /* nobody reads what the search below would find */
    gmem__nearest nearest;
    memset(&nearest, 0, sizeof nearest);
    if (bank->names.start) nearest = gmem__nearest_names(bank, query, (int64_t)strlen(query));
    if (nearest.count == 0)
        return gmem__fail(error, GMEM_E_NAME_UNKNOWN, "no name \"%s\": the bank has no names", asked);
    for (int i = 0; i < GMEM__NEAREST; i++) {
        char name[80];
        offered[i][0] = 0;
        if (i >= nearest.count) continue;
        gmem_escape(gmem_bank_name(bank, nearest.row[i]), name, sizeof name);
        snprintf(offered[i], sizeof offered[i], "%s\"%s\"", i ? ", " : "", name);
    }
    return gmem__fail(error, GMEM_E_NAME_UNKNOWN, "no name \"%s\" in the bank; nearest: %s%s%s", asked, offered[0],
                      offered[1], offered[2]);
}

/* A scan: names have their lengths at hand, so that a bank of a million rows takes milliseconds and no index. */
GMEM_API gmem_status gmem_bank_find(const gmem_bank *bank, const char *name, int64_t *row, gmem_error *error) {
    if (!bank || !name || !row) return gmem__fail(error, GMEM_E_ARGUMENT, "finding a row needs a bank and a name");
    int64_t length = (int64_t)strlen(name), found = -1;
    for (int64_t i = 0; bank->names.start && length > 0 && i < bank->rows; i++) {
        if (gmem__name_length(bank, i) != length) continue;
        const char *candidate = gmem_bank_name(bank, i);
        if (found < 0 && gmem__same_name(candidate, name, length)) found = i;
        if (found < 0 || memcmp(candidate, name, (size_t)length) != 0) continue;
        found = i;
        break;
    }
    if (found < 0) return gmem__name_unknown(bank, name, error);
    *row = found;
    return GMEM_OK;
}
