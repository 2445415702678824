/* gmem bank build: a bank of every picture below folders. Batch by batch the threads read and crop pictures, then
 * compute their features, which go into a journal; at the end the journal becomes the bank. */
#define _POSIX_C_SOURCE 200809L
#include "commands.h"
#include "interrupt.h"
#include "journal.h"
#include "picture.h"
#include "walk.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BATCH     16 /* enough to keep every thread at work, reading and computing */
#define UNDECIDED (-1)

typedef struct building {
    session s;
    path_list pictures;
    complaint_list complaints;
    size_t not_in_name; /* bytes at the beginning of every path that are no part of the row's name */
    int64_t *features;  /* (pictures.count) where in the journal they are, or UNDECIDED */
    journal finished;
    int64_t before, done; /* pictures that earlier runs finished; that are finished, or cannot be read */
    progress_bar bar;

    int64_t batch;
    int64_t *chosen;        /* (batch) pictures at work, */
    const char **paths;     /* their paths, */
    journal_entry *entries; /* names and states, */
    uint8_t *crops;         /* (batch, picture_size, picture_size, 3) their pixels, */
    outcome *results;       /* and what became of them */
    gmem_error *errors;
    float *cls; /* (batch, width) */
} building;

/* what there is to do --------------------------------------------------------------------------------------------- */

/* The name of a picture's row is its path below the folder. With several folders it is the whole path, so that names
 * differ. */
static const char *name_of(const building *b, int64_t which) { return b->pictures.items[which] + b->not_in_name; }

/* Of a folder and the slash behind it, of which find_pictures leaves one. */
static size_t folder_bytes(const char *folder) {
    size_t bytes = strlen(folder);
    while (bytes > 0 && folder[bytes - 1] == '/') {
        bytes--;
    }
    return bytes + 1;
}

static outcome find(building *b, gmem_error *error) {
    const text_list *folders = &b->s.args->operands;
    TRY(find_pictures(folders, &b->pictures, &b->complaints, error));
    if (b->pictures.count == 0) {
        if (b->complaints.count)
            return failed(error, b->complaints.items[0].path, "%s; and no picture was found",
                          b->complaints.items[0].reason);
        return failed(error, folders->items[0], "no picture in %s",
                      folders->count > 1 ? "these folders" : "the folder");
    }
    if (folders->count == 1) b->not_in_name = folder_bytes(folders->items[0]);
    b->features = (int64_t *)session_alloc(&b->s, b->pictures.count, sizeof *b->features);
    if (!b->features) return out_of_memory(error);
    for (int64_t i = 0; i < b->pictures.count; i++) {
        b->features[i] = UNDECIDED;
    }
    return OUTCOME_DONE;
}

/* A sum over what the encoder is, wherever its file lies: every tensor's name and shape and its first elements. */
static uint32_t encoder_key(const building *b) {
    enum { SOME = 1024 };
    const gmem_file *file = b->s.encoder_file;
    double first[SOME]; /* as many of the widest type */
    uint32_t key = 0;
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        const int64_t all = gmem_tensor_count(tensor), some = all < SOME ? all : (int64_t)SOME;
        gmem_tensor_read(tensor, 0, some, first);
        key = crc_add(&b->finished.crc, key, tensor->name, strlen(tensor->name) + 1);
        key = crc_add(&b->finished.crc, key, tensor->shape, (size_t)tensor->rank * sizeof *tensor->shape);
        key = crc_add(&b->finished.crc, key, first, (size_t)some * gmem_type_bytes(tensor->type));
    }
    return crc_add(&b->finished.crc, key, &b->s.args->published_range, sizeof b->s.args->published_range);
}

/* what was done before -------------------------------------------------------------------------------------------- */

/* Size and time of a picture's file, which tell whether it is still the same. */
static void read_state(const char *path, journal_entry *out) {
    struct stat status;
    memset(out, 0, sizeof *out);
    if (stat(path, &status) != 0) return;
    out->size = (int64_t)status.st_size;
    out->mtime = (int64_t)status.st_mtime;
}

static int64_t find_name(const building *b, const char *name) {
    int64_t low = 0, high = b->pictures.count - 1;
    while (low <= high) {
        const int64_t middle = low + (high - low) / 2;
        const int order = strcmp(name_of(b, middle), name);
        if (order == 0) return middle;
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle - 1;
        }
    }
    return -1;
}

static outcome take_up(building *b, gmem_error *error) {
    journal_entry entry, now;
    int more;
    memset(&entry, 0, sizeof entry);
    while ((more = journal_next(&b->finished, &entry, error)) > 0) {
        const int64_t which = find_name(b, entry.name);
        if (which < 0) continue;
        read_state(b->pictures.items[which], &now);
        if (now.size != entry.size || now.mtime != entry.mtime) continue;
        b->before += b->features[which] == UNDECIDED;
        b->features[which] = entry.features;
    }
    if (more < 0) return OUTCOME_FAILED;
    if (b->before)
        note("going on: %lld of %lld pictures were finished before", (long long)b->before,
             (long long)b->pictures.count);
    b->done = b->before;
    return OUTCOME_DONE;
}

/* what is left ---------------------------------------------------------------------------------------------------- */

static outcome prepare_batch(building *b, gmem_error *error) {
    const gmem_image_encoder_info *info = b->s.encoder_info;
    const int64_t left = b->pictures.count - b->done;
    b->batch = b->s.args->batch ? b->s.args->batch : BATCH;
    if (b->batch > left) b->batch = left;
    b->chosen = (int64_t *)session_alloc(&b->s, b->batch, sizeof *b->chosen);
    b->paths = (const char **)session_alloc(&b->s, b->batch, sizeof *b->paths);
    b->entries = (journal_entry *)session_alloc(&b->s, b->batch, sizeof *b->entries);
    b->crops = (uint8_t *)session_alloc(&b->s, b->batch * info->picture_size * info->picture_size, 3);
    b->results = (outcome *)session_alloc(&b->s, b->batch, sizeof *b->results);
    b->errors = (gmem_error *)session_alloc(&b->s, b->batch, sizeof *b->errors);
    b->cls = session_floats(&b->s, b->batch * info->width);
    return b->chosen && b->paths && b->entries && b->crops && b->results && b->errors && b->cls ? OUTCOME_DONE
                                                                                                : out_of_memory(error);
}

/* Reads the next pictures that are undecided, from *next on; those that can be read move to the front, the others are
 * complained of. */
static outcome read_batch(building *b, int64_t *next, int64_t *count, gmem_error *error) {
    const int64_t size = b->s.encoder_info->picture_size, bytes = size * size * 3;
    int64_t chosen = 0, read = 0;
    for (; *next < b->pictures.count && chosen < b->batch; (*next)++) {
        if (b->features[*next] != UNDECIDED) continue;
        b->chosen[chosen] = *next;
        b->paths[chosen] = b->pictures.items[*next];
        read_state(b->paths[chosen], &b->entries[chosen]);
        b->entries[chosen].name = name_of(b, *next);
        chosen++;
    }
    read_crops(&b->s, chosen, b->paths, size, b->crops, b->results, b->errors);
    for (int64_t i = 0; i < chosen; i++) {
        if (b->results[i] != OUTCOME_DONE) {
            if (!complaint_add(&b->complaints, b->paths[i], b->errors[i].message)) return out_of_memory(error);
            continue;
        }
        memmove(b->crops + read * bytes, b->crops + i * bytes, (size_t)bytes);
        b->entries[read] = b->entries[i];
        b->chosen[read++] = b->chosen[i];
    }
    b->done += chosen;
    *count = read;
    return OUTCOME_DONE;
}

static outcome finish_batch(building *b, int64_t count, gmem_error *error) {
    const int64_t width = b->s.encoder_info->width;
    if (count == 0) return OUTCOME_DONE;
    TRY(crop_features(&b->s, count, b->crops, b->cls, NULL, error));
    for (int64_t i = 0; i < count; i++) {
        const float *row = b->cls + i * width;
        if (!has_direction(row, width)) {
            if (!complaint_add(&b->complaints, b->pictures.items[b->chosen[i]], "its features are zero or not finite"))
                return out_of_memory(error);
            continue;
        }
        TRY(journal_add(&b->finished, &b->entries[i], row, error));
        b->features[b->chosen[i]] = b->entries[i].features;
    }
    return OUTCOME_DONE;
}

static outcome finish_all(building *b, gmem_error *error) {
    outcome result = OUTCOME_DONE;
    int64_t next = 0, count = 0;
    TRY(prepare_batch(b, error));
    progress_begin(&b->bar);
    while (b->done < b->pictures.count && result == OUTCOME_DONE) {
        result = interrupt_check(error);
        if (result == OUTCOME_DONE) result = read_batch(b, &next, &count, error);
        if (result == OUTCOME_DONE) result = finish_batch(b, count, error);
        progress_show(&b->bar, b->done - b->before, b->pictures.count - b->before, "pictures");
    }
    progress_end(&b->bar);
    return result;
}

/* the bank -------------------------------------------------------------------------------------------------------- */

/* Rows are the pictures that have features: their places move to the front. */
typedef struct bank_rows {
    building *b;
    int64_t count;
    const char **names; /* (count) */
} bank_rows;

static outcome collect_rows(bank_rows *rows, gmem_error *error) {
    building *b = rows->b;
    rows->names = (const char **)session_alloc(&b->s, b->pictures.count, sizeof *rows->names);
    if (!rows->names) return out_of_memory(error);
    for (int64_t i = 0; i < b->pictures.count; i++) {
        if (b->features[i] == UNDECIDED) continue;
        const char *name = row_name(&b->s, name_of(b, i));
        if (!name) return out_of_memory(error);
        rows->names[rows->count] = name;
        b->features[rows->count++] = b->features[i];
    }
    return OUTCOME_DONE;
}

static gmem_status fill_rows(void *user, int64_t first, int64_t count, float *out, gmem_error *error) {
    const bank_rows *rows = (const bank_rows *)user;
    const building *b = rows->b;
    for (int64_t i = 0; i < count; i++, out += b->s.encoder_info->width) {
        if (journal_read(&b->finished, b->features[first + i], out, error) != OUTCOME_DONE) return GMEM_E_READ;
    }
    return GMEM_OK;
}

static outcome write_bank(bank_rows *rows, gmem_type type, gmem_error *error) {
    gmem_bank_source source;
    building *b = rows->b;
    memset(&source, 0, sizeof source);
    source.rows = rows->count;
    source.width = b->s.encoder_info->width;
    source.fill = fill_rows;
    source.fill_user = rows;
    source.names = rows->names;
    source.progress = show_rows;
    source.progress_user = &b->bar;
    progress_begin(&b->bar);
    const gmem_status status = gmem_bank_create(b->s.context, b->s.args->output, type, &source, error);
    progress_end(&b->bar);
    return from_status(status);
}

/* the report ------------------------------------------------------------------------------------------------------ */

static void print_json(const building *b, const bank_rows *rows, gmem_type type) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "output", b->s.args->output);
    json_integer(&json, "rows", rows->count);
    json_integer(&json, "width", b->s.encoder_info->width);
    json_text(&json, "type", gmem_type_name(type));
    json_open(&json, "skipped", '[');
    for (int64_t i = 0; i < b->complaints.count; i++) {
        json_open(&json, NULL, '{');
        json_text(&json, "path", b->complaints.items[i].path);
        json_text(&json, "reason", b->complaints.items[i].reason);
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

/* However many they are: notes would be cut. */
static void print_skipped(const building *b) {
    char path[4 * 1024], reason[1024];
    for (int64_t i = 0; i < b->complaints.count && !b->s.args->quiet; i++) {
        fprintf(stderr, "skipped: %s: %s\n", gmem_escape(b->complaints.items[i].path, path, sizeof path),
                gmem_escape(b->complaints.items[i].reason, reason, sizeof reason));
    }
}

static void report(const building *b, const bank_rows *rows, gmem_type type) {
    char what[256];
    if (b->s.args->json) {
        print_json(b, rows, type);
    } else {
        snprintf(what, sizeof what, "%lld rows of %lld, %s", (long long)rows->count,
                 (long long)b->s.encoder_info->width, gmem_type_name(type));
        say_written(b->s.args, b->s.args->output, what);
    }
    note("backend: %s", gmem_context_backend(b->s.context));
    print_skipped(b);
}

/* the command ----------------------------------------------------------------------------------------------------- */

static outcome check_arguments(const arguments *args, gmem_error *error) {
    if (!args->output) return misused(error, "gmem bank build needs -o FILE");
    return check_bank_output(args->output, error);
}

static outcome build(building *b, const arguments *args, gmem_error *error) {
    const gmem_type type = written_type(args, GMEM_F32);
    bank_rows rows = {b, 0, NULL};
    TRY(check_arguments(args, error));
    TRY(session_begin(&b->s, args, error));
    TRY(find(b, error));
    TRY(open_image_encoder(&b->s, error));
    crc_prepare(&b->finished.crc);
    TRY(journal_open(&b->finished, args->output, encoder_key(b), b->s.encoder_info->width, error));
    TRY(take_up(b, error));
    TRY(finish_all(b, error));
    TRY(collect_rows(&rows, error));
    if (rows.count == 0) {
        journal_remove(&b->finished);
        return failed(error, b->complaints.items[0].path, "%s; and none of the other %lld could be read",
                      b->complaints.items[0].reason, (long long)b->complaints.count - 1);
    }
    TRY(write_bank(&rows, type, error));
    journal_remove(&b->finished);
    report(b, &rows, type);
    return OUTCOME_DONE;
}

outcome command_bank_build(const arguments *args, gmem_error *error) {
    building b;
    memset(&b, 0, sizeof b);
    b.finished.file = -1;
    outcome result = build(&b, args, error);
    journal_close(&b.finished);
    session_end(&b.s);
    paths_free(&b.pictures);
    complaints_free(&b.complaints);
    return result;
}
