/* Writing: a file is made under a temporary name beside its place, brought to disk and renamed, so it appears whole or
 * not at all; and safetensors in that way. */
#include "file.h"

#include <errno.h>
#include <stdio.h>

#define GMEM__SAVE_ALIGN   64
#define GMEM__SAVE_PREFIX  8
#define GMEM__SAVE_HEADER  100000000 /* what readers accept */
#define GMEM__SAVE_CHUNK   ((int64_t)1 << 18)
#define GMEM__SAVE_ATTEMPT 100

/* output files ---------------------------------------------------------------------------------------------------- */

typedef struct gmem__output {
    const gmem_context *context;
    const char *path;
    char *temporary; /* (path_bytes) beside path */
    int64_t path_bytes;
    int locked; /* nobody else writes there */
    void *file;
    gmem_error *error;
} gmem__output;

/* An existing target must be a regular file: a rename would put one in a device's place. Where it cannot be opened for
 * another reason, or isn't there, the rename will tell. */
static gmem_status gmem__output_check_target(const gmem__output *output) {
    const gmem_io *io = &output->context->io;
    gmem__io_forget();
    void *file = io->open(io->user, output->path, 0);
    if (file) {
        (void)io->close(io->user, file);
        return GMEM_OK;
    }
    int special = 0;
#ifdef EISDIR
    special |= errno == EISDIR;
#endif
#ifdef ESPIPE
    special |= errno == ESPIPE;
#endif
    if (!special && output->path[0]) return GMEM_OK;
    return gmem__fail_at(output->error, GMEM_E_OPEN, output->path, -1, "cannot write the file%s",
                         output->path[0] ? gmem__io_reason() : ": its path is empty");
}

/* Whether the last opening failed, or may have, because the file was there. */
static int gmem__output_name_taken(void) {
#ifdef EEXIST
    return errno == 0 || errno == EEXIST;
#else
    return 1;
#endif
}

/* A name that nobody uses; or with a lock always the same, and what a crash left there goes. */
static void gmem__output_choose_name(gmem__output *output, int attempt) {
    const gmem_io *io = &output->context->io;
    if (output->locked) {
        snprintf(output->temporary, (size_t)output->path_bytes, "%s.unfinished", output->path);
        (void)io->remove(io->user, output->temporary);
    } else {
        snprintf(output->temporary, (size_t)output->path_bytes, "%s.tmp%d", output->path, attempt);
    }
}

static gmem_status gmem__output_create(gmem__output *output) {
    const gmem_io *io = &output->context->io;
    for (int attempt = 0; attempt < (output->locked ? 1 : GMEM__SAVE_ATTEMPT); attempt++) {
        gmem__output_choose_name(output, attempt);
        gmem__io_forget();
        output->file = io->open(io->user, output->temporary, 1);
        if (output->file) return GMEM_OK;
        if (!gmem__output_name_taken()) break;
    }
    return gmem__fail_at(output->error, GMEM_E_OPEN, output->path, -1, "cannot write beside it%s", gmem__io_reason());
}

static gmem_status gmem__output_open(gmem__output *output, const gmem_context *context, const char *path, int locked,
                                     gmem_error *error) {
    memset(output, 0, sizeof *output);
    output->context = context;
    output->path = path;
    output->locked = locked;
    output->error = error;
    GMEM__TRY(gmem__output_check_target(output));
    output->path_bytes = (int64_t)strlen(path) + 16;
    output->temporary = (char *)gmem__alloc(context, output->path_bytes, 1);
    if (!output->temporary) return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory to write the file");
    gmem_status status = gmem__output_create(output);
    if (status != GMEM_OK) gmem__free(context, output->temporary, output->path_bytes, 1);
    return status;
}

static gmem_status gmem__output_write(gmem__output *output, const void *from, int64_t bytes) {
    const gmem_io *io = &output->context->io;
    for (int64_t done = 0; done < bytes;) {
        gmem__io_forget();
        int64_t count = io->write(io->user, output->file, (const char *)from + done, bytes - done);
        if (count <= 0 || count > bytes - done)
            return gmem__fail_at(output->error, GMEM_E_WRITE, output->path, -1, "cannot write the file%s",
                                 gmem__io_reason());
        done += count;
    }
    return GMEM_OK;
}

/* Syncs, closes, renames. The file is closed in any case. */
static gmem_status gmem__output_finish(gmem__output *output) {
    const gmem_io *io = &output->context->io;
    gmem__io_forget();
    if (io->sync(io->user, output->file) != 0)
        return gmem__fail_at(output->error, GMEM_E_SYNC, output->path, -1, "cannot bring the file to disk%s",
                             gmem__io_reason());
    void *file = output->file;
    output->file = NULL;
    gmem__io_forget();
    if (io->close(io->user, file) != 0)
        return gmem__fail_at(output->error, GMEM_E_WRITE, output->path, -1, "cannot write the file%s",
                             gmem__io_reason());
    gmem__io_forget();
    if (io->rename(io->user, output->temporary, output->path) != 0)
        return gmem__fail_at(output->error, GMEM_E_RENAME, output->path, -1,
                             "cannot put the finished file in its place%s", gmem__io_reason());
    return GMEM_OK;
}

/* Ends what gmem__output_open began: finishes the file, or removes it where `status` is a failure or becomes one. */
static gmem_status gmem__output_close(gmem__output *output, gmem_status status) {
    const gmem_io *io = &output->context->io;
    if (status == GMEM_OK) status = gmem__output_finish(output);
    if (status != GMEM_OK) {
        if (output->file) (void)io->close(io->user, output->file);
        (void)io->remove(io->user, output->temporary);
    }
    gmem__free(output->context, output->temporary, output->path_bytes, 1);
    return status;
}

GMEM_API gmem_status gmem_save_bytes(gmem_context *context, const char *path, const void *data, size_t bytes,
                                     gmem_error *error) {
    gmem__output output;
    if (!context || !path || (!data && bytes) || (uint64_t)bytes > INT64_MAX)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and the bytes to write are needed");
    GMEM__TRY(gmem__output_open(&output, context, path, 0, error));
    return gmem__output_close(&output, gmem__output_write(&output, data, (int64_t)bytes));
}

/* the header ------------------------------------------------------------------------------------------------------ */

/* Text that is counted first (out NULL) and written in a second run. */
typedef struct gmem__header {
    char *out;
    int64_t used;
} gmem__header;

static void gmem__header_add(gmem__header *header, const char *text, int64_t bytes) {
    if (header->out) memcpy(header->out + header->used, text, (size_t)bytes);
    header->used += bytes;
}

static void gmem__header_text(gmem__header *header, const char *text) {
    gmem__header_add(header, text, (int64_t)strlen(text));
}

static void gmem__header_int(gmem__header *header, int64_t value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)value);
    gmem__header_text(header, digits);
}

static void gmem__header_string(gmem__header *header, const char *text) {
    gmem__header_text(header, "\"");
    for (; *text; text++) {
        char escape[8];
        if ((unsigned char)*text < 0x20)
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)(unsigned char)*text);
        else
            snprintf(escape, sizeof escape, *text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
        gmem__header_text(header, escape);
    }
    gmem__header_text(header, "\"");
}

static void gmem__header_metadata(gmem__header *header, const gmem_save_desc *desc) {
    gmem__header_text(header, "\"__metadata__\":{");
    for (int64_t i = 0; i < desc->metadata_count; i++) {
        if (i) gmem__header_text(header, ",");
        gmem__header_string(header, desc->metadata[2 * i]);
        gmem__header_text(header, ":");
        gmem__header_string(header, desc->metadata[2 * i + 1]);
    }
    gmem__header_text(header, "}");
}

static void gmem__header_tensor(gmem__header *header, const gmem_tensor *tensor, int64_t begin) {
    int64_t bytes = gmem_tensor_count(tensor) * (int64_t)gmem_type_bytes(tensor->type);
    gmem__header_string(header, tensor->name);
    gmem__header_text(header, ":{\"dtype\":\"");
    gmem__header_text(header, gmem_type_name(tensor->type));
    gmem__header_text(header, "\",\"shape\":[");
    for (int i = 0; i < tensor->rank; i++) {
        if (i) gmem__header_text(header, ",");
        gmem__header_int(header, tensor->shape[i]);
    }
    gmem__header_text(header, "],\"data_offsets\":[");
    gmem__header_int(header, begin);
    gmem__header_text(header, ",");
    gmem__header_int(header, begin + bytes);
    gmem__header_text(header, "]}");
}

/* safetensors ----------------------------------------------------------------------------------------------------- */

typedef struct gmem__saver {
    const gmem_context *context;
    const gmem_save_desc *desc;
    gmem_error *error;
    int locked;
    int32_t *order; /* (count) the tensors in the order of their names, then of their data */
    int64_t *begin; /* (count) where a tensor's data lies, from the header's end */
} gmem__saver;

static gmem_status gmem__save_check_text(const gmem__saver *saver, const char *text) {
    gmem__quoted quoted;
    if (!text) return gmem__fail(saver->error, GMEM_E_ARGUMENT, "a name or a text is missing");
    if (gmem__utf8_error(text, (int64_t)strlen(text)) >= 0)
        return gmem__fail(saver->error, GMEM_E_NAME, "%s is not UTF-8", gmem__quote(&quoted, text));
    return GMEM_OK;
}

static gmem_status gmem__save_check_tensor(const gmem__saver *saver, const gmem_tensor *tensor, int64_t *total) {
    gmem__quoted quoted;
    GMEM__TRY(gmem__save_check_text(saver, tensor->name));
    if (strcmp(tensor->name, "__metadata__") == 0)
        return gmem__fail(saver->error, GMEM_E_NAME, "no tensor may be named __metadata__");
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type);
    int fits = bytes != 0 && tensor->rank >= 0 && tensor->rank <= GMEM_MAX_RANK;
    for (int i = 0; fits && i < tensor->rank; i++)
        fits = gmem__mul(bytes, tensor->shape[i], &bytes);
    if (!fits || !gmem__add(*total, bytes, total))
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "%s: no such type, rank or size",
                          gmem__quote(&quoted, tensor->name));
    if (!tensor->data && bytes && !saver->desc->fill)
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "%s: no data", gmem__quote(&quoted, tensor->name));
    return GMEM_OK;
}

static int gmem__save_compare_names(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return strcmp(desc->tensors[a].name, desc->tensors[b].name);
}

static int gmem__save_compare_keys(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return strcmp(desc->metadata[2 * (int64_t)a], desc->metadata[2 * (int64_t)b]);
}

/* Wider elements first: data that begins aligned stays so, whatever the names. */
static int gmem__save_compare_widths(const void *user, int32_t a, int32_t b) {
    const gmem_save_desc *desc = (const gmem_save_desc *)user;
    return (int)gmem_type_bytes(desc->tensors[b].type) - (int)gmem_type_bytes(desc->tensors[a].type);
}

static gmem_status gmem__save_check_unique(const gmem__saver *saver, int64_t count,
                                           int (*compare)(const void *user, int32_t a, int32_t b)) {
    gmem__sort(saver->order, count, compare, saver->desc);
    for (int64_t i = 1; i < count; i++) {
        if (compare(saver->desc, saver->order[i - 1], saver->order[i]) == 0)
            return gmem__fail(saver->error, GMEM_E_NAME, "a name of a tensor or of metadata stands twice");
    }
    return GMEM_OK;
}

static gmem_status gmem__save_check(const gmem__saver *saver) {
    const gmem_save_desc *desc = saver->desc;
    int64_t total = 0;
    for (int64_t i = 0; i < desc->count; i++)
        GMEM__TRY(gmem__save_check_tensor(saver, desc->tensors + i, &total));
    for (int64_t i = 0; i < 2 * desc->metadata_count; i++)
        GMEM__TRY(gmem__save_check_text(saver, desc->metadata[i]));
    GMEM__TRY(gmem__save_check_unique(saver, desc->metadata_count, gmem__save_compare_keys));
    return gmem__save_check_unique(saver, desc->count, gmem__save_compare_names);
}

static void gmem__save_lay_out(const gmem__saver *saver) {
    int64_t at = 0;
    gmem__sort(saver->order, saver->desc->count, gmem__save_compare_widths, saver->desc);
    for (int64_t i = 0; i < saver->desc->count; i++) {
        const gmem_tensor *tensor = saver->desc->tensors + saver->order[i];
        saver->begin[saver->order[i]] = at;
        at += gmem_tensor_count(tensor) * (int64_t)gmem_type_bytes(tensor->type);
    }
}

static void gmem__save_print_header(const gmem__saver *saver, gmem__header *header) {
    const gmem_save_desc *desc = saver->desc;
    header->used = GMEM__SAVE_PREFIX;
    gmem__header_text(header, "{");
    if (desc->metadata_count) gmem__header_metadata(header, desc);
    for (int64_t i = 0; i < desc->count; i++) {
        if (i || desc->metadata_count) gmem__header_text(header, ",");
        gmem__header_tensor(header, desc->tensors + i, saver->begin[i]);
    }
    gmem__header_text(header, "}");
    while (header->used % GMEM__SAVE_ALIGN != 0)
        gmem__header_text(header, " ");
}

static gmem_status gmem__save_header(const gmem__saver *saver, gmem__output *output) {
    gmem__header header = {NULL, 0};
    gmem__save_print_header(saver, &header);
    int64_t bytes = header.used, length = bytes - GMEM__SAVE_PREFIX;
    if (length > GMEM__SAVE_HEADER)
        return gmem__fail(saver->error, GMEM_E_ARGUMENT, "names and metadata need a header of more than %d bytes",
                          GMEM__SAVE_HEADER);
    header.out = (char *)gmem__alloc(saver->context, bytes, 1);
    if (!header.out) return gmem__fail(saver->error, GMEM_E_MEMORY, "no memory for the header");
    gmem__save_print_header(saver, &header);
    for (int i = 0; i < GMEM__SAVE_PREFIX; i++)
        header.out[i] = (char)(unsigned char)((uint64_t)length >> (8 * i) & 255u);
    gmem_status status = gmem__output_write(output, header.out, bytes);
    gmem__free(saver->context, header.out, bytes, 1);
    return status;
}

static gmem_status gmem__save_fill(const gmem__saver *saver, int64_t index, int64_t first, int64_t count, void *out) {
    gmem_error own = gmem__callback_error();
    gmem_status status = saver->desc->fill(saver->desc->fill_user, index, first, count, out, &own);
    return gmem__fail_callback(saver->error, status, &own, "the function that fills tensors");
}

static gmem_status gmem__save_data(const gmem__saver *saver, int64_t index, unsigned char *chunk,
                                   gmem__output *output) {
    const gmem_tensor *tensor = saver->desc->tensors + index;
    int64_t total = gmem_tensor_count(tensor), width = (int64_t)gmem_type_bytes(tensor->type);
    if (tensor->data && gmem__tensor_is_contiguous(tensor))
        return gmem__output_write(output, tensor->data, total * width);
    for (int64_t first = 0; first < total;) {
        int64_t count = gmem__min(total - first, GMEM__SAVE_CHUNK / width);
        if (tensor->data)
            gmem_tensor_read(tensor, first, count, chunk);
        else
            GMEM__TRY(gmem__save_fill(saver, index, first, count, chunk));
        GMEM__TRY(gmem__output_write(output, chunk, count * width));
        first += count;
    }
    return GMEM_OK;
}

static gmem_status gmem__save_contents(const gmem__saver *saver, gmem__output *output) {
    GMEM__TRY(gmem__save_header(saver, output));
    unsigned char *chunk = (unsigned char *)gmem__alloc_raw(saver->context, GMEM__SAVE_CHUNK, 1);
    if (!chunk) return gmem__fail(saver->error, GMEM_E_MEMORY, "no memory to write the file");
    gmem_status status = GMEM_OK;
    for (int64_t i = 0; i < saver->desc->count && status == GMEM_OK; i++)
        status = gmem__save_data(saver, saver->order[i], chunk, output);
    gmem__free(saver->context, chunk, GMEM__SAVE_CHUNK, 1);
    return status;
}

static gmem_status gmem__save_file(const gmem__saver *saver, const char *path) {
    gmem__output output;
    GMEM__TRY(gmem__save_check(saver));
    gmem__save_lay_out(saver);
    GMEM__TRY(gmem__output_open(&output, saver->context, path, saver->locked, saver->error));
    return gmem__output_close(&output, gmem__save_contents(saver, &output));
}

static gmem_status gmem__save(gmem_context *context, const char *path, const gmem_save_desc *desc, int locked,
                              gmem_error *error) {
    gmem__saver saver;
    if (!context || !path || !desc || desc->count < 0 || desc->count > INT32_MAX || desc->metadata_count < 0 ||
        desc->metadata_count > INT32_MAX || (desc->count && !desc->tensors) ||
        (desc->metadata_count && !desc->metadata))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a path and what to save are needed");
    saver.context = context;
    saver.desc = desc;
    saver.error = error;
    saver.locked = locked;
    int64_t names = gmem__max(desc->count, desc->metadata_count);
    saver.order = (int32_t *)gmem__alloc(context, names, sizeof *saver.order);
    saver.begin = (int64_t *)gmem__alloc(context, desc->count, sizeof *saver.begin);
    gmem_status status = saver.order && saver.begin ? gmem__save_file(&saver, path)
                                                    : gmem__fail(error, GMEM_E_MEMORY, "no memory to write the file");
    gmem__free(context, saver.order, names, sizeof *saver.order);
    gmem__free(context, saver.begin, desc->count, sizeof *saver.begin);
    return gmem__fail_in(error, status, path);
}

GMEM_API gmem_status gmem_save(gmem_context *context, const char *path, const gmem_save_desc *desc, gmem_error *error) {
    return gmem__save(context, path, desc, 0, error);
}

GMEM__FN gmem_status gmem__save_locked(gmem_context *context, const char *path, const gmem_save_desc *desc,
                                       gmem_error *error) {
    return gmem__save(context, path, desc, 1, error);
}

#undef GMEM__SAVE_ALIGN
#undef GMEM__SAVE_PREFIX
#undef GMEM__SAVE_HEADER
#undef GMEM__SAVE_CHUNK
#undef GMEM__SAVE_ATTEMPT
