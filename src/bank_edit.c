/* Editing banks: rows are added to a native file or removed from it, and any bank becomes one native file. What is
 * written streams from the old files, beside them and under a lock, and is then renamed over the old one. */
#include "bank.h"
#include "file.h"
#include "names.h"

#include <float.h>

#define GMEM__BLOCK_FLOATS 65536 /* of a source's rows that are asked for at once */
#define GMEM__DISCARD_ROWS 512   /* of a bank that are let go of at once */

/* The rows of a file to be: some of a bank's, then those of a source, one of them at work. */
typedef struct gmem__bank_writer {
    gmem_context *context;
    const gmem_bank *bank;  /* or NULL */
    int64_t first, kept;    /* `kept` of the bank's rows from `first` on: all but ... */
    const int64_t *removed; /* ... (removed_count) these, counted from `first`, ascending */
    int64_t removed_count;
    const gmem_bank_source *source; /* or NULL */
    int64_t rows, width;
    gmem_type type;

    int64_t encoded_row; /* the row that is at work, or -1 */
    void *encoded;       /* (width) of `type` */
    float scale;         /* its scale, for I8 */
    float *row;          /* (width) */
    float *block;        /* (block_capacity, width): rows [block_first, block_first + block_rows) of source->fill */
    int64_t block_first, block_rows, block_capacity;

    gmem_bank_progress_fn progress; /* or NULL */
    void *progress_user;

    gmem__names_writer names;
    int64_t names_bytes; /* 0: no row has one */
    const char *metadata[8];
} gmem__bank_writer;

/* rows that are kept ---------------------------------------------------------------------------------------------- */

/* How many removed rows lie before the kept row `row`: as many as there are k with removed[k] - k <= row. */
static int64_t gmem__removed_before(const gmem__bank_writer *writer, int64_t row) {
    int64_t low = 0, high = writer->removed_count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (writer->removed[middle] - middle <= row)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static int64_t gmem__kept_row(const gmem__bank_writer *writer, int64_t row) {
    return writer->first + row + gmem__removed_before(writer, row);
}

/* How many rows from `row` on can be copied as they are from one place: the rows of `part` from row *at of it on. */
static int64_t gmem__rows_as_stored(const gmem__bank_writer *writer, int64_t row, const gmem__bank_part **part,
                                    int64_t *at) {
    if (row >= writer->kept) return 0;
    int64_t removed = gmem__removed_before(writer, row), bank_row = writer->first + row + removed;
    const gmem__bank_part *from = gmem__bank_part_of(writer->bank, bank_row);
    if (from->kind != GMEM_BANK_FULL || from->rows_tensor->type != writer->type) return 0;
    int64_t end = from->first + from->rows;
    if (removed < writer->removed_count) end = gmem__min(end, writer->first + writer->removed[removed]);
    *part = from;
    *at = bank_row - from->first;
    return end - bank_row;
}

/* rows in f32 ----------------------------------------------------------------------------------------------------- */

/* What has been read does not stay in memory: it may be gigabytes. */
static gmem_status gmem__read_kept_row(gmem__bank_writer *writer, int64_t row, gmem_error *error) {
    const int64_t bank_row = gmem__kept_row(writer, row), next = bank_row + 1;
    GMEM__TRY(gmem_bank_row(writer->bank, bank_row, writer->row, error));
    if (next % GMEM__DISCARD_ROWS == 0) gmem__bank_discard(writer->bank, next - GMEM__DISCARD_ROWS, GMEM__DISCARD_ROWS);
    return GMEM_OK;
}

static gmem_status gmem__fill_block(gmem__bank_writer *writer, int64_t row, gmem_error *error) {
    const gmem_bank_source *source = writer->source;
    gmem_error own = gmem__callback_error();
    writer->block_rows = 0;
    int64_t count = gmem__min(writer->block_capacity, source->rows - row);
    gmem_status status = source->fill(source->fill_user, row, count, writer->block, &own);
    GMEM__TRY(gmem__fail_callback(error, status, &own, "the function that gives rows"));
    writer->block_first = row;
    writer->block_rows = count;
    return GMEM_OK;
}

/* A row as it is to be written, (width). */
static gmem_status gmem__writer_row(gmem__bank_writer *writer, int64_t row, const float **out, gmem_error *error) {
    if (row < writer->kept) {
        *out = writer->row;
        return gmem__read_kept_row(writer, row, error);
    }
    row -= writer->kept;
    if (writer->source->features) {
        *out = writer->source->features + row * writer->width;
        return GMEM_OK;
    }
    if (row < writer->block_first || row >= writer->block_first + writer->block_rows)
        GMEM__TRY(gmem__fill_block(writer, row, error));
    *out = writer->block + (row - writer->block_first) * writer->width;
    return GMEM_OK;
}

/* rows in the file's type ----------------------------------------------------------------------------------------- */

/* What a reader makes of a row's largest magnitude. Rounding keeps the order, so this tells whether the row has become
 * infinite somewhere or zero everywhere. */
static float gmem__magnitude_as_stored(gmem_type type, float largest) {
    if (type == GMEM_F16) return gmem__f16_to_f32(gmem__f32_to_f16(largest));
    if (type == GMEM_BF16) return gmem__bf16_to_f32(gmem__f32_to_bf16(largest));
    if (type != GMEM_I8) return largest;
    int8_t level = 0;
    gmem__quantise_row(&largest, 1, gmem__row_scale(largest), &level);
    return (float)level * gmem__row_scale(largest);
}

/* A refusal of a row, by its number in the bank or among those that are added. */
static gmem_status gmem__refuse_row(const gmem__bank_writer *writer, int64_t row, gmem_status code, const char *why,
                                    gmem_error *error) {
    gmem__quoted quoted;
    if (row < writer->kept) {
        row = gmem__kept_row(writer, row);
        return gmem__fail_at(error, code, gmem_file_path(gmem__bank_part_of(writer->bank, row)->file), -1,
                             "row %lld %s%s", (long long)row, why, gmem_type_name(writer->type));
    }
    row -= writer->kept;
    const char *name = writer->source->names && writer->source->names[row] ? writer->source->names[row] : "";
    return gmem__fail(error, code, "row %lld of the new ones%s%s%s %s%s", (long long)row, name[0] ? ", \"" : "",
                      gmem__quote(&quoted, name), name[0] ? "\"," : "", why, gmem_type_name(writer->type));
}

/* The bank's own rows may be what they are, if the type can say it; new ones must be of use. */
static gmem_status gmem__check_row(const gmem__bank_writer *writer, int64_t row, float largest, gmem_error *error) {
    const int is_new = row >= writer->kept, is_finite = largest <= FLT_MAX;
    const float stored = is_finite ? gmem__magnitude_as_stored(writer->type, largest) : largest;
    if (!is_finite && (is_new || writer->type == GMEM_I8))
        return gmem__refuse_row(writer, row, GMEM_E_ROW_ZERO, "is not finite, and has no use as ", error);
    if (is_finite && !(stored <= FLT_MAX))
        return gmem__refuse_row(writer, row, GMEM_E_TYPE, "has a value that is too large for ", error);
    if (is_new && !(stored > 0))
        return gmem__refuse_row(writer, row, GMEM_E_ROW_ZERO,
                                largest > 0 ? "is so small that it is zero as " : "is zero, and has no use as ", error);
    return GMEM_OK;
}

/* Puts a row to work: into `encoded` and `scale`. */
static gmem_status gmem__encode_row(gmem__bank_writer *writer, int64_t row, gmem_error *error) {
    const float *x = NULL;
    if (writer->encoded_row == row) return GMEM_OK;
    writer->encoded_row = -1;
    GMEM__TRY(gmem__writer_row(writer, row, &x, error));
    const float largest = gmem__row_largest(x, writer->width);
    GMEM__TRY(gmem__check_row(writer, row, largest, error));
    if (writer->type == GMEM_I8) {
        writer->scale = gmem__row_scale(largest);
        gmem__quantise_row(x, writer->width, writer->scale, (int8_t *)writer->encoded);
    } else {
        gmem_convert_f32(x, writer->width, writer->type, writer->encoded);
    }
    writer->encoded_row = row;
    return GMEM_OK;
}

/* filling --------------------------------------------------------------------------------------------------------- */

/* Rows of I8 are gone through twice, the first time for their scales. */
static gmem_status gmem__writer_progress(const gmem__bank_writer *writer, int64_t row, int again, gmem_error *error) {
    const int twice = writer->type == GMEM_I8;
    if (!writer->progress) return GMEM_OK;
    if (!writer->progress(writer->progress_user, twice && again ? writer->rows + row : row, (1 + twice) * writer->rows))
        return GMEM_OK;
    return gmem__fail(error, GMEM_E_CANCELLED, "cancelled");
}

/* Elements [first, first + count) of `features`; a row may begin in one call and end in the next. */
static gmem_status gmem__fill_features(gmem__bank_writer *writer, int64_t first, int64_t count, char *out,
                                       gmem_error *error) {
    const int64_t bytes = (int64_t)gmem_type_bytes(writer->type), width = writer->width;
    GMEM__TRY(gmem__writer_progress(writer, first / width, 1, error));
    while (count > 0) {
        const gmem__bank_part *part = NULL;
        int64_t row = first / width, column = first % width, at = 0;
        int64_t run = gmem__rows_as_stored(writer, row, &part, &at);
        int64_t some = gmem__min(count, gmem__max(run, 1) * width - column);
        if (run > 0) {
            gmem_tensor_read(part->rows_tensor, at * width + column, some, out);
            gmem__bank_discard(writer->bank, part->first + at, gmem__ceil_div(column + some, width));
        } else {
            GMEM__TRY(gmem__encode_row(writer, row, error));
            memcpy(out, (const char *)writer->encoded + column * bytes, (size_t)(some * bytes));
        }
        first += some;
        count -= some;
        out += some * bytes;
    }
    return GMEM_OK;
}

static gmem_status gmem__fill_scales(gmem__bank_writer *writer, int64_t first, int64_t count, float *out,
                                     gmem_error *error) {
    for (int64_t i = 0; i < count;) {
        const gmem__bank_part *part = NULL;
        GMEM__TRY(gmem__writer_progress(writer, first + i, 0, error));
        int64_t at = 0, run = gmem__rows_as_stored(writer, first + i, &part, &at);
        int64_t some = gmem__min(count - i, gmem__max(run, 1));
        if (run > 0) {
            gmem_tensor_read_f32(part->scale, at, some, out + i);
        } else {
            GMEM__TRY(gmem__encode_row(writer, first + i, error));
            out[i] = writer->scale;
        }
        i += some;
    }
    return GMEM_OK;
}

/* Tensors in the order of gmem__writer_tensors. */
static gmem_status gmem__fill_tensor(void *user, int64_t index, int64_t first, int64_t count, void *out,
                                     gmem_error *error) {
    gmem__bank_writer *writer = (gmem__bank_writer *)user;
    if (index == 0) return gmem__fill_features(writer, first, count, (char *)out, error);
    if (writer->type == GMEM_I8 && index == 1) return gmem__fill_scales(writer, first, count, (float *)out, error);
    if (index == (writer->type == GMEM_I8) + 1)
        gmem__names_write(&writer->names, count, (char *)out);
    else
        gmem__names_write_offsets(&writer->names, count, (int64_t *)out);
    return GMEM_OK;
}

/* names ----------------------------------------------------------------------------------------------------------- */

/* The name of a row to be, or NULL. */
static const char *gmem__writer_name(const void *user, int64_t row) {
    const gmem__bank_writer *writer = (const gmem__bank_writer *)user;
    if (row < writer->kept) return gmem_bank_name(writer->bank, gmem__kept_row(writer, row));
    return writer->source->names ? writer->source->names[row - writer->kept] : NULL;
}

/* Files that hold names as text have one a line. */
static gmem_status gmem__check_new_name(const gmem__names *taken, const char *name, int64_t row, gmem_error *error) {
    gmem__quoted quoted;
    size_t length = strlen(name);
    if (strcspn(name, "\r\n") != length || length > INT32_MAX || gmem__utf8_error(name, (int64_t)length) >= 0)
        return gmem__fail(error, GMEM_E_NAMES, "the name \"%s\" of new row %lld is not one line of UTF-8",
                          gmem__quote(&quoted, name), (long long)row);
    if (gmem__names_find(taken, (const unsigned char *)name, (int64_t)length) >= 0)
        return gmem__fail(error, GMEM_E_NAMES, "the name \"%s\" of new row %lld is an earlier one's too",
                          gmem__quote(&quoted, name), (long long)row);
    return GMEM_OK;
}

/* Two rows of one name could not be told apart. */
static gmem_status gmem__compare_names(const gmem_bank *bank, const gmem_bank_source *source, gmem__names *added,
                                       gmem_error *error) {
    gmem__quoted quoted;
    for (int64_t row = 0; row < source->rows; row++) {
        const char *name = source->names[row];
        if (!name || !name[0]) continue;
        GMEM__TRY(gmem__check_new_name(added, name, row, error));
        gmem__names_add(added, (const unsigned char *)name, (int64_t)strlen(name), (int32_t)row);
    }
    for (int64_t row = 0; bank && row < bank->rows; row++) {
        const char *name = gmem_bank_name(bank, row);
        if (!name || gmem__names_find(added, (const unsigned char *)name, (int64_t)strlen(name)) < 0) continue;
        return gmem__fail(error, GMEM_E_NAMES, "row %lld of the bank has the name \"%s\" already", (long long)row,
                          gmem__quote(&quoted, name));
    }
    return GMEM_OK;
}

static gmem_status gmem__check_new_names(gmem_context *context, const gmem_bank *bank, const gmem_bank_source *source,
                                         gmem_error *error) {
    gmem__names added = {context, NULL, 0, 0};
    if (!source->names) return GMEM_OK;
    if (!gmem__names_reserve(&added, source->rows)) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the names");
    gmem_status status = gmem__compare_names(bank, source, &added, error);
    gmem__names_free(&added);
    return status;
}

/* writing --------------------------------------------------------------------------------------------------------- */

static void gmem__writer_free(gmem__bank_writer *writer) {
    const gmem_context *context = writer->context;
    gmem__free(context, writer->encoded, writer->width, gmem_type_bytes(writer->type));
    gmem__free(context, writer->row, writer->width, sizeof(float));
    gmem__free(context, writer->block, writer->block_capacity * writer->width, sizeof(float));
}

/* What does not come from the caller: memory and names. To be freed also where it fails. */
static gmem_status gmem__writer_prepare(gmem__bank_writer *writer, gmem_error *error) {
    const gmem_context *context = writer->context;
    int64_t elements = 0, streamed = writer->source && writer->source->fill && !writer->source->features;
    writer->encoded_row = -1;
    if (!gmem__mul(writer->rows, writer->width, &elements))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the size of the bank overflows");
    writer->block_capacity = streamed ? gmem__max(1, GMEM__BLOCK_FLOATS / writer->width) : 0;
    writer->encoded = gmem__alloc_raw(context, writer->width, gmem_type_bytes(writer->type));
    writer->row = (float *)gmem__alloc_raw(context, writer->width, sizeof(float));
    writer->block = (float *)gmem__alloc_raw(context, writer->block_capacity * writer->width, sizeof(float));
    if (!writer->encoded || !writer->row || !writer->block)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for a bank's rows");
    writer->names.name = gmem__writer_name;
    writer->names.user = writer;
    writer->names_bytes = gmem__names_bytes(&writer->names, writer->rows);
    return GMEM_OK;
}

enum { GMEM__BANK_TENSORS = 4 };

/* The tensors of a native file, all to be filled. */
static int64_t gmem__writer_tensors(const gmem__bank_writer *writer, gmem_tensor *out) {
    int64_t shape[2] = {writer->rows, writer->width}, offsets = writer->rows + 1, count = 0;
    out[count++] = gmem_tensor_make("features", writer->type, 2, shape, NULL);
    if (writer->type == GMEM_I8) out[count++] = gmem_tensor_make("features.scale", GMEM_F32, 1, shape, NULL);
    if (writer->names_bytes == 0) return count;
    out[count++] = gmem_tensor_make("names", GMEM_U8, 1, &writer->names_bytes, NULL);
    out[count++] = gmem_tensor_make("names.offsets", GMEM_I64, 1, &offsets, NULL);
    return count;
}

static gmem_save_desc gmem__writer_desc(gmem__bank_writer *writer, const gmem_tensor *tensors, int64_t count) {
    const char *const metadata[] = {"format",  "pt",
                                    "gmem",    GMEM_VERSION,
                                    "backend", gmem_context_backend(writer->context),
                                    "dtype",   gmem__dtype_name(writer->type)};
    gmem_save_desc desc;
    memcpy(writer->metadata, metadata, sizeof metadata);
    memset(&desc, 0, sizeof desc);
    desc.tensors = tensors;
    desc.count = count;
    desc.metadata = writer->metadata;
    desc.metadata_count = (int64_t)(sizeof writer->metadata / sizeof *writer->metadata / 2);
    desc.fill = gmem__fill_tensor;
    desc.fill_user = writer;
    return desc;
}

static int gmem__is_stored_type(gmem_type type) {
    return type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64 || type == GMEM_I8;
}

/* `lock` stays NULL where the io has no locks. */
static gmem_status gmem__bank_lock(gmem_context *context, const char *path, void **lock, gmem_error *error) {
    const gmem_io *io = &context->io;
    int held = 0;
    if (!io->lock) return GMEM_OK;
    gmem__io_forget();
    *lock = io->lock(io->user, path, &held);
    if (*lock) return GMEM_OK;
    if (held) return gmem__fail_at(error, GMEM_E_LOCKED, path, -1, "another writer is at it");
    return gmem__fail_at(error, GMEM_E_OPEN, path, -1, "cannot lock it for writing%s", gmem__io_reason());
}

static gmem_status gmem__bank_save_under(gmem_context *context, const char *path, const void *lock,
                                         const gmem_save_desc *desc, gmem_error *error) {
    return (lock ? gmem__save_locked : gmem_save)(context, path, desc, error);
}

GMEM__FN gmem_status gmem__bank_save(gmem_context *context, const char *path, const gmem_save_desc *desc,
                                     gmem_error *error) {
    void *lock = NULL;
    GMEM__TRY(gmem__bank_lock(context, path, &lock, error));
    gmem_status status = gmem__bank_save_under(context, path, lock, desc, error);
    if (lock) context->io.unlock(context->io.user, lock);
    return status;
}

GMEM_API gmem_status gmem_bank_export(const gmem_bank *bank, const char *path, gmem_type type,
                                      gmem_bank_progress_fn progress, void *user, gmem_error *error) {
    gmem_tensor tensors[GMEM__BANK_TENSORS];
    gmem__bank_writer writer;
    if (!bank || !path || !gmem__is_stored_type(type))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a bank, a path and a type that rows are stored in are needed");
    memset(&writer, 0, sizeof writer);
    writer.context = (gmem_context *)(uintptr_t)bank->context;
    writer.bank = bank;
    writer.kept = writer.rows = bank->rows;
    writer.width = bank->width;
    writer.type = type;
    writer.progress = progress;
    writer.progress_user = user;
    gmem_status status = gmem__writer_prepare(&writer, error);
    if (status == GMEM_OK) {
        gmem_save_desc desc = gmem__writer_desc(&writer, tensors, gmem__writer_tensors(&writer, tensors));
        status = gmem__bank_save(writer.context, path, &desc, error);
    }
    gmem__writer_free(&writer);
    return gmem__fail_in(error, status, path);
}

/* the last file --------------------------------------------------------------------------------------------------- */

/* A bank that is being edited: locked from before it is read until the new file is in its place. */
typedef struct gmem__bank_edit {
    gmem_context *context;
    const char *const *paths; /* (path_count), the last of which is edited */
    int path_count;
    const char *path;
    void *lock;
    gmem_bank *bank;             /* of the files that are there, or NULL */
    const gmem__bank_part *part; /* the last file's, or NULL where it is made anew */
} gmem__bank_edit;

static gmem_status gmem__edit_lock(gmem__bank_edit *edit, gmem_error *error) {
    return gmem__bank_lock(edit->context, edit->path, &edit->lock, error);
}

static int gmem__ends_with(const char *text, const char *end) {
    size_t length = strlen(text), bytes = strlen(end);
    return length >= bytes && strcmp(text + length - bytes, end) == 0;
}

/* A new file may not look like what it is not; an old one must be what can be written. */
static gmem_status gmem__edit_check_file(const gmem__bank_edit *edit, gmem_error *error) {
    const gmem__bank_part *part = edit->part;
    const char *why = NULL;
    if (!part)
        why = gmem__ends_with(edit->path, ".pth") || gmem__ends_with(edit->path, ".pt") ? "its name is torch's" : NULL;
    else if (gmem_file_format(part->file) != GMEM_SAFETENSORS)
        why = "it is a torch file, and those are never written";
    else if (part->kind == GMEM_BANK_DECOMPOSED)
        why = "its rows are decomposed";
    else if (strcmp(part->rows_tensor->name, "features") != 0)
        why = "its rows are not named \"features\"";
    for (int i = 0; !why && i < edit->path_count - 1; i++) {
        if (strcmp(edit->paths[i], edit->path) == 0) why = "it is one of the earlier ones too";
    }
    if (!why) return GMEM_OK;
    return gmem__fail_at(error, GMEM_E_COMBINATION, edit->path, -1,
                         "rows of this file cannot be edited: %s; name a native file as the bank's last, or a new one",
                         why);
}

static gmem_status gmem__edit_file_exists(const gmem__bank_edit *edit, int *exists, gmem_error *error) {
    const gmem_io *io = &edit->context->io;
    gmem__io_forget();
    void *file = io->open(io->user, edit->path, 0);
    *exists = file != NULL;
    if (file)
        (void)io->close(io->user, file);
    else if (!gmem__io_no_such_file())
        return gmem__fail_at(error, GMEM_E_OPEN, edit->path, -1, "cannot open the file%s", gmem__io_reason());
    return GMEM_OK;
}

static gmem_status gmem__edit_load(gmem__bank_edit *edit, gmem_error *error) {
    gmem_bank_desc desc;
    int exists = 0;
    GMEM__TRY(gmem__edit_file_exists(edit, &exists, error));
    memset(&desc, 0, sizeof desc);
    desc.paths = edit->paths;
    desc.path_count = edit->path_count - !exists;
    if (desc.path_count > 0) GMEM__TRY(gmem_bank_open(edit->context, &desc, &edit->bank, error));
    if (exists) edit->part = edit->bank->parts + edit->path_count - 1;
    return gmem__edit_check_file(edit, error);
}

/* Where there is no lock to be had, that is no news of a file that could not be edited anyway. */
static gmem_status gmem__edit_open(gmem__bank_edit *edit, gmem_error *error) {
    gmem_error other = gmem__callback_error();
    gmem_status status = gmem__edit_lock(edit, error);
    if (status == GMEM_OK) return gmem__edit_load(edit, error);
    if (status != GMEM_E_OPEN || gmem__edit_load(edit, &other) != GMEM_E_COMBINATION) return status;
    if (error) *error = other;
    return GMEM_E_COMBINATION;
}

static void gmem__edit_close(gmem__bank_edit *edit) {
    gmem_bank_close(edit->bank);
    if (edit->lock) edit->context->io.unlock(edit->context->io.user, edit->lock);
}

/* `features` and what belongs to it is written anew. */
static int gmem__is_rewritten(const gmem__bank_part *part, const gmem_tensor *tensor) {
    return strcmp(tensor->name, "features") == 0 || strcmp(tensor->name, "names") == 0 ||
           strcmp(tensor->name, "names.offsets") == 0 || (part->scale && strcmp(tensor->name, "features.scale") == 0);
}

/* Appends the old file's other tensors, which stay as they are; one that goes with the rows could not. */
static gmem_status gmem__edit_other_tensors(const gmem__bank_edit *edit, gmem_tensor *out, int64_t *count,
                                            gmem_error *error) {
    for (int64_t i = 0; edit->part && i < gmem_file_tensor_count(edit->part->file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(edit->part->file, i);
        gmem__quoted quoted;
        if (gmem__is_rewritten(edit->part, tensor)) continue;
        if (tensor->rank > 0 && tensor->shape[0] == edit->part->rows)
            return gmem__fail_at(error, GMEM_E_COMBINATION, edit->path, -1,
                                 "\"%s\" has something for every row and would not fit them any longer",
                                 gmem__quote(&quoted, tensor->name));
        out[(*count)++] = *tensor;
    }
    return GMEM_OK;
}

static gmem_status gmem__edit_write_tensors(const gmem__bank_edit *edit, gmem__bank_writer *writer,
                                            gmem_tensor *tensors, gmem_error *error) {
    int64_t count = gmem__writer_tensors(writer, tensors);
    GMEM__TRY(gmem__edit_other_tensors(edit, tensors, &count, error));
    gmem_save_desc desc = gmem__writer_desc(writer, tensors, count);
    if (edit->part) {
        desc.metadata = edit->part->file->metadata;
        desc.metadata_count = edit->part->file->metadata_count;
    }
    return gmem__bank_save_under(edit->context, edit->path, edit->lock, &desc, error);
}

/* Writes the last file anew. */
static gmem_status gmem__edit_write(const gmem__bank_edit *edit, gmem__bank_writer *writer, gmem_error *error) {
    int64_t room = GMEM__BANK_TENSORS + (edit->part ? gmem_file_tensor_count(edit->part->file) : 0);
    writer->context = edit->context;
    gmem_tensor *tensors = (gmem_tensor *)gmem__alloc_raw(edit->context, room, sizeof *tensors);
    gmem_status status =
        tensors ? gmem__writer_prepare(writer, error) : gmem__fail(error, GMEM_E_MEMORY, "no memory to write the bank");
    /* Rows in memory are looked at before gigabytes of old ones are copied. */
    for (int64_t row = writer->kept; writer->source && writer->source->features && row < writer->rows; row++) {
        if (status == GMEM_OK) status = gmem__encode_row(writer, row, error);
    }
    if (status == GMEM_OK) status = gmem__edit_write_tensors(edit, writer, tensors, error);
    gmem__writer_free(writer);
    gmem__free(edit->context, tensors, room, sizeof *tensors);
    return status;
}

static int gmem__edit_begin(gmem__bank_edit *edit, gmem_context *context, const char *const *paths, int path_count) {
    memset(edit, 0, sizeof *edit);
    if (!context || !paths || path_count < 1) return 0;
    for (int i = 0; i < path_count; i++) {
        if (!paths[i]) return 0;
    }
    edit->context = context;
    edit->paths = paths;
    edit->path_count = path_count;
    edit->path = paths[path_count - 1];
    return 1;
}

/* adding ---------------------------------------------------------------------------------------------------------- */

/* Writes the rows of `source` behind those of the last file that is there, if any. */
static gmem_status gmem__edit_append(const gmem__bank_edit *edit, gmem_type type, const gmem_bank_source *source,
                                     gmem_error *error) {
    gmem__bank_writer writer;
    GMEM__TRY(gmem__check_new_names(edit->context, edit->bank, source, error));
    memset(&writer, 0, sizeof writer);
    writer.source = source;
    writer.width = source->width;
    writer.type = type;
    writer.progress = source->progress;
    writer.progress_user = source->progress_user;
    if (edit->part) {
        writer.bank = edit->bank;
        writer.first = edit->part->first;
        writer.kept = edit->part->rows;
        writer.type = edit->part->rows_tensor->type;
    }
    if (!gmem__add(writer.kept, source->rows, &writer.rows))
        return gmem__fail(error, GMEM_E_OVERFLOW, "the number of rows overflows");
    return gmem__edit_write(edit, &writer, error);
}

static int gmem__source_is_whole(const gmem_bank_source *source, gmem_type type) {
    return source && source->rows > 0 && source->width > 0 && (source->features || source->fill) &&
           gmem__is_stored_type(type);
}

static gmem_status gmem__edit_add(gmem__bank_edit *edit, gmem_type type, const gmem_bank_source *source,
                                  int64_t *first_row, gmem_error *error) {
    GMEM__TRY(gmem__edit_open(edit, error));
    if (edit->bank && edit->bank->width != source->width)
        return gmem__fail_at(error, GMEM_E_WIDTH, gmem_file_path(edit->bank->parts[0].file), -1,
                             "the bank's rows have %lld elements, the new ones %lld", (long long)edit->bank->width,
                             (long long)source->width);
    GMEM__TRY(gmem__edit_append(edit, type, source, error));
    if (first_row) *first_row = edit->bank ? edit->bank->rows : 0;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_bank_add(gmem_context *context, const char *const *paths, int path_count, gmem_type type,
                                   const gmem_bank_source *source, int64_t *first_row, gmem_error *error) {
    gmem__bank_edit edit;
    if (!gmem__edit_begin(&edit, context, paths, path_count) || !gmem__source_is_whole(source, type))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a bank's files, a type and at least one row are needed");
    gmem_status status = gmem__edit_add(&edit, type, source, first_row, error);
    gmem__edit_close(&edit);
    return gmem__fail_in(error, status, edit.path);
}

static gmem_status gmem__edit_create(gmem__bank_edit *edit, gmem_type type, const gmem_bank_source *source,
                                     gmem_error *error) {
    GMEM__TRY(gmem__edit_lock(edit, error));
    GMEM__TRY(gmem__edit_check_file(edit, error));
    return gmem__edit_append(edit, type, source, error);
}

GMEM_API gmem_status gmem_bank_create(gmem_context *context, const char *path, gmem_type type,
                                      const gmem_bank_source *source, gmem_error *error) {
    gmem__bank_edit edit;
    if (!gmem__edit_begin(&edit, context, &path, 1) || !gmem__source_is_whole(source, type))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path, a type and at least one row are needed");
    gmem_status status = gmem__edit_create(&edit, type, source, error);
    gmem__edit_close(&edit);
    return gmem__fail_in(error, status, edit.path);
}

/* removing -------------------------------------------------------------------------------------------------------- */

static int gmem__compare_rows(const void *user, int32_t a, int32_t b) {
    const int64_t *rows = (const int64_t *)user;
    return rows[a] < rows[b] ? -1 : rows[a] > rows[b];
}

/* The rows in order and once each, counted from the last file's first one; returns how many there are. */
static int64_t gmem__sort_rows(const gmem__bank_edit *edit, const int64_t *rows, int64_t count, int32_t *order,
                               int64_t *out) {
    int64_t distinct = 0;
    gmem__sort(order, count, gmem__compare_rows, rows);
    for (int64_t i = 0; i < count; i++) {
        int64_t row = rows[order[i]] - edit->part->first;
        if (distinct == 0 || out[distinct - 1] != row) out[distinct++] = row;
    }
    return distinct;
}

static gmem_status gmem__edit_check_rows(const gmem__bank_edit *edit, const int64_t *rows, int64_t count,
                                         gmem_error *error) {
    for (int64_t i = 0; i < count; i++) {
        if (rows[i] < 0 || rows[i] >= edit->bank->rows)
            return gmem__fail(error, GMEM_E_ROW, "row %lld of a bank of %lld", (long long)rows[i],
                              (long long)edit->bank->rows);
        if (rows[i] < edit->part->first)
            return gmem__fail(error, GMEM_E_ROW, "row %lld is an earlier file's: this one's begin at %lld",
                              (long long)rows[i], (long long)edit->part->first);
    }
    return GMEM_OK;
}

/* Writes the last file without the rows `removed` (removed_count) of `writer`. */
static gmem_status gmem__edit_keep(const gmem__bank_edit *edit, gmem__bank_writer *writer, gmem_error *error) {
    writer->bank = edit->bank;
    writer->first = edit->part->first;
    writer->kept = writer->rows = edit->part->rows - writer->removed_count;
    writer->width = edit->bank->width;
    writer->type = edit->part->rows_tensor->type;
    if (writer->rows < 1) return gmem__fail(error, GMEM_E_ARGUMENT, "no row of the file would be left");
    return gmem__edit_write(edit, writer, error);
}

static gmem_status gmem__edit_remove(gmem__bank_edit *edit, gmem__bank_writer *writer, const int64_t *rows,
                                     int64_t count, gmem_error *error) {
    GMEM__TRY(gmem__edit_open(edit, error));
    if (!edit->part) return gmem__fail(error, GMEM_E_OPEN, "cannot open the file: no such file or folder");
    GMEM__TRY(gmem__edit_check_rows(edit, rows, count, error));
    int32_t *order = (int32_t *)gmem__alloc_raw(edit->context, count, sizeof *order);
    int64_t *sorted = (int64_t *)gmem__alloc_raw(edit->context, count, sizeof *sorted);
    gmem_status status = GMEM_E_MEMORY;
    if (order && sorted) {
        writer->removed = sorted;
        writer->removed_count = gmem__sort_rows(edit, rows, count, order, sorted);
        status = gmem__edit_keep(edit, writer, error);
    } else {
        gmem__fail(error, status, "no memory for the rows' numbers");
    }
    gmem__free(edit->context, order, count, sizeof *order);
    gmem__free(edit->context, sorted, count, sizeof *sorted);
    return status;
}

GMEM_API gmem_status gmem_bank_remove(gmem_context *context, const char *const *paths, int path_count,
                                      const int64_t *rows, int64_t count, gmem_bank_progress_fn progress, void *user,
                                      gmem_error *error) {
    gmem__bank_writer writer;
    gmem__bank_edit edit;
    if (!gmem__edit_begin(&edit, context, paths, path_count) || !rows || count < 1 || count > INT32_MAX)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a bank's files and rows of it are needed");
    memset(&writer, 0, sizeof writer);
    writer.progress = progress;
    writer.progress_user = user;
    gmem_status status = gmem__edit_remove(&edit, &writer, rows, count, error);
    gmem__edit_close(&edit);
    return gmem__fail_in(error, status, edit.path);
}

#undef GMEM__BLOCK_FLOATS
#undef GMEM__DISCARD_ROWS
