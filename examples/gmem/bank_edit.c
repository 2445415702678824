/* gmem bank: add, remove, export. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "choose.h"
#include "commands.h"
#include "interrupt.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BATCH 16 /* pictures that the image encoder takes at once */

/* what the commands share ----------------------------------------------------------------------------------------- */

/* A link's file is what is to be replaced, not the link. */
static outcome follow_link(session *s, const char **path, gmem_error *error) {
    struct stat status;
    if (lstat(*path, &status) != 0 || !S_ISLNK(status.st_mode)) return OUTCOME_DONE;
    char *file = realpath(*path, NULL);
    if (!file) return failed(error, *path, "cannot write: it is a link to nowhere");
    char *kept = (char *)session_alloc(s, (int64_t)strlen(file) + 1, 1);
    if (kept) *path = strcpy(kept, file);
    free(file);
    return kept ? OUTCOME_DONE : out_of_memory(error);
}

/* One file by two names would grow or shrink twice. */
static outcome check_aliases(const char *const *paths, int count, gmem_error *error) {
    for (int i = 0; i < count - 1; i++) {
        if (same_file(paths[i], paths[count - 1]))
            return failed(error, paths[count - 1], "it is one of the bank's earlier files too: name it once");
    }
    return OUTCOME_DONE;
}

/* The files of --bank, of which the last is to be written. */
static outcome edited_paths(session *s, const char ***out, int *count, gmem_error *error) {
    const text_list *bank = &s->args->bank;
    if (bank->count == 0)
        return misused(error, "gmem %s needs --bank FILE: the built-in bank stays as it is",
                       command_words(s->args->command));
    *out = (const char **)session_alloc(s, bank->count, sizeof **out);
    if (!*out) return out_of_memory(error);
    memcpy(*out, bank->items, (size_t)bank->count * sizeof **out);
    *count = bank->count;
    TRY(check_aliases(*out, *count, error));
    return follow_link(s, &(*out)[bank->count - 1], error);
}

/* add ------------------------------------------------------------------------------------------------------------- */

typedef struct addition {
    session s;
    const char **paths; /* (path_count) of the bank */
    int path_count;
    gmem_bank_source source;
    progress_bar bar;
} addition;

static const char *last_path(const addition *a) { return a->paths[a->path_count - 1]; }

/* Finds out what would be refused in the end before pictures are read: the bank's width, and a type that is not its
 * last file's. */
static outcome check_bank(addition *a, gmem_error *error) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    const int exists = access(last_path(a), F_OK) == 0;
    const char *path = exists ? last_path(a) : a->paths[0];
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    if (!exists && a->path_count == 1) return OUTCOME_DONE;
    TRY(from_status(gmem_bank_open(a->s.context, &desc, &bank, error)));
    const int64_t width = gmem_bank_width(bank);
    const gmem_type type = gmem_bank_type(bank);
    gmem_bank_close(bank);
    if (exists && written_type(a->s.args, type) != type)
        return failed(error, path, "its rows are %s and stay so: --dtype is for a new file", gmem_type_name(type));
    if (width == a->source.width) return OUTCOME_DONE;
    return failed(error, path, "the bank's rows have %lld elements, the new ones %lld", (long long)width,
                  (long long)a->source.width);
}

static gmem_status read_rows(void *user, int64_t first, int64_t count, float *out, gmem_error *error) {
    const addition *a = (const addition *)user;
    for (int64_t i = 0; i < count; i++) {
        gmem_status status = gmem_bank_row(a->s.bank, first + i, out + i * a->source.width, error);
        if (status != GMEM_OK) return status;
    }
    return GMEM_OK;
}

/* The rows of --input, whatever kind of bank it is, with their names. */
static outcome add_from_input(addition *a, gmem_error *error) {
    session *s = &a->s;
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    TRY(from_status(gmem_file_open(s->context, s->args->input, ".", &s->input, error)));
    desc.file = s->input;
    desc.names_path = s->args->names;
    TRY(in_file(s->args->input, gmem_bank_open(s->context, &desc, &s->bank, error), error));
    a->source.rows = gmem_bank_rows(s->bank);
    a->source.width = gmem_bank_width(s->bank);
    a->source.fill = read_rows;
    a->source.fill_user = a;
    const char **names = (const char **)session_alloc(s, a->source.rows, sizeof *names);
    if (!names) return out_of_memory(error);
    for (int64_t i = 0; i < a->source.rows; i++) {
        names[i] = gmem_bank_name(s->bank, i);
    }
    a->source.names = names;
    return check_bank(a, error);
}

/* A picture's row is named as its file; what is no line of UTF-8 is escaped. */
static outcome name_of_picture(session *s, const char *path, const char **name, gmem_error *error) {
    const char *slash = strrchr(path, '/');
    *name = row_name(s, slash ? slash + 1 : path);
    return *name ? OUTCOME_DONE : out_of_memory(error);
}

static outcome encode_batch(session *s, int64_t count, const char *const *paths, uint8_t *crops, float *out,
                            gmem_error *error) {
    const int64_t width = s->encoder_info->width;
    TRY(interrupt_check(error));
    TRY(picture_features(s, count, paths, crops, out, NULL, error));
    for (int64_t i = 0; i < count; i++) {
        if (!has_direction(out + i * width, width))
            return failed(error, paths[i], "its features are zero or not finite");
    }
    return OUTCOME_DONE;
}

static outcome encode_pictures(addition *a, float *features, gmem_error *error) {
    session *s = &a->s;
    outcome result = OUTCOME_DONE;
    const text_list *pictures = &s->args->operands;
    const int64_t size = s->encoder_info->picture_size;
    const int64_t batch = s->args->batch ? s->args->batch : BATCH;
    uint8_t *crops = (uint8_t *)session_alloc(s, batch * size * size, 3);
    if (!crops) return out_of_memory(error);
    progress_begin(&a->bar);
    for (int64_t i = 0; i < pictures->count && result == OUTCOME_DONE; i += batch) {
        const int64_t count = pictures->count - i < batch ? pictures->count - i : batch;
        result = encode_batch(s, count, pictures->items + i, crops, features + i * a->source.width, error);
        progress_show(&a->bar, i + count, pictures->count, "pictures");
    }
    progress_end(&a->bar);
    return result;
}

static outcome add_from_pictures(addition *a, gmem_error *error) {
    session *s = &a->s;
    const text_list *pictures = &s->args->operands;
    TRY(open_image_encoder(s, error));
    a->source.rows = pictures->count;
    a->source.width = s->encoder_info->width;
    TRY(check_bank(a, error));
    float *features = session_floats(s, a->source.rows * a->source.width);
    const char **names = (const char **)session_alloc(s, a->source.rows, sizeof *names);
    if (!features || !names) return out_of_memory(error);
    for (int i = 0; i < pictures->count; i++) {
        TRY(name_of_picture(s, pictures->items[i], &names[i], error));
    }
    TRY(encode_pictures(a, features, error));
    a->source.features = features;
    a->source.names = names;
    return OUTCOME_DONE;
}

static void report_addition(const addition *a, int64_t first) {
    const int64_t last = first + a->source.rows - 1;
    char plain[1024];
    json_writer json;
    if (a->s.args->json) {
        json_begin(&json, stdout);
        json_open(&json, NULL, '{');
        json_text(&json, "output", last_path(a));
        json_integer(&json, "first", first);
        json_integer(&json, "added", a->source.rows);
        json_integer(&json, "rows", last + 1);
        json_close(&json, '}');
    } else if (!a->s.args->quiet) {
        printf("%s: ", gmem_escape(last_path(a), plain, sizeof plain));
        printf(first == last ? "row %lld added\n" : "rows %lld to %lld added\n", (long long)first, (long long)last);
    }
}

static outcome add(addition *a, gmem_error *error) {
    const arguments *args = a->s.args;
    int64_t first = 0;
    if (args->input && args->operands.count)
        return misused(error, "--input and '%s' cannot be combined: add either features or pictures",
                       args->operands.items[0]);
    if (!args->input && args->operands.count == 0)
        return misused(error, "gmem bank add needs pictures, or --input FILE with features");
    if (!args->input && args->names)
        return misused(error, "--names is for --input: pictures' rows are named as they are");
    if (args->input && args->image_encoder) return misused(error, "--image-encoder is for pictures, not for --input");
    TRY(edited_paths(&a->s, &a->paths, &a->path_count, error));
    TRY((args->input ? add_from_input : add_from_pictures)(a, error));
    a->source.progress = show_rows;
    a->source.progress_user = &a->bar;
    progress_begin(&a->bar);
    gmem_status status =
        gmem_bank_add(a->s.context, a->paths, a->path_count, written_type(args, GMEM_F32), &a->source, &first, error);
    progress_end(&a->bar);
    if (args->input && (status == GMEM_E_ROW_ZERO || status == GMEM_E_TYPE)) /* of a new row */
        snprintf(error->path, sizeof error->path, "%s", args->input);
    TRY(from_status(status));
    report_addition(a, first);
    return OUTCOME_DONE;
}

outcome command_bank_add(const arguments *args, gmem_error *error) {
    addition a;
    memset(&a, 0, sizeof a);
    outcome result = session_begin(&a.s, args, error);
    if (result == OUTCOME_DONE) result = add(&a, error);
    session_end(&a.s);
    return result;
}

/* remove ---------------------------------------------------------------------------------------------------------- */

/* A row behind `row` that `what` names just as well, or -1. */
static int64_t namesake(const gmem_bank *bank, const char *what, int64_t row) {
    const int64_t rows = gmem_bank_rows(bank);
    const int exact = strcmp(gmem_bank_name(bank, row), what) == 0;
    for (int64_t i = row + 1; i < rows; i++) {
        const char *name = gmem_bank_name(bank, i);
        if (name && (exact ? strcmp(name, what) == 0 : same_ignoring_case(name, what))) return i;
    }
    return -1;
}

/* A row by its number or its whole name, which no other may have: what is removed is not guessed at. */
static outcome named_row(session *s, const char *what, int64_t *row, gmem_error *error) {
    const char *path = gmem_bank_file_path(s->bank, gmem_bank_file_count(s->bank) - 1);
    char plain[256];
    if (parse_integer(what, 0, INT64_MAX, row)) return OUTCOME_DONE; /* whether there is one is found out later */
    TRY(in_file(path, gmem_bank_find(s->bank, what, row, error), error));
    const int64_t other = namesake(s->bank, what, *row);
    if (other < 0) return OUTCOME_DONE;
    return failed(error, path, "rows %lld and %lld both have the name \"%s\": give the number of one", (long long)*row,
                  (long long)other, gmem_escape(what, plain, sizeof plain));
}

static outcome rows_to_remove(session *s, int64_t **rows, int64_t *count, gmem_error *error) {
    const text_list *named = &s->args->operands;
    int64_t *numbered = NULL, numbers = 0;
    TRY(open_bank(s, error));
    if (s->args->rows) TRY(parse_rows(s, s->args->rows, &numbered, &numbers, error));
    *rows = (int64_t *)session_alloc(s, numbers + named->count, sizeof **rows);
    if (!*rows) return out_of_memory(error);
    if (numbers > 0) memcpy(*rows, numbered, (size_t)numbers * sizeof **rows);
    for (int i = 0; i < named->count; i++) {
        TRY(named_row(s, named->items[i], *rows + numbers + i, error));
    }
    *count = numbers + named->count;
    return OUTCOME_DONE;
}

static void report_removal(const session *s, const char *path, int64_t before, int64_t after) {
    const int64_t removed = before - after;
    char plain[1024];
    json_writer json;
    if (s->args->json) {
        json_begin(&json, stdout);
        json_open(&json, NULL, '{');
        json_text(&json, "output", path);
        json_integer(&json, "removed", removed);
        json_integer(&json, "rows", after);
        json_close(&json, '}');
    } else if (!s->args->quiet) {
        printf("%s: %lld row%s removed, %lld left in the bank\n", gmem_escape(path, plain, sizeof plain),
               (long long)removed, removed == 1 ? "" : "s", (long long)after);
    }
}

static int compare_rows(const void *a, const void *b) {
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Sorts the rows. */
static int64_t count_distinct(int64_t *rows, int64_t count) {
    int64_t distinct = 0;
    qsort(rows, (size_t)count, sizeof *rows, compare_rows);
    for (int64_t i = 0; i < count; i++) {
        distinct += i == 0 || rows[i] != rows[i - 1];
    }
    return distinct;
}

static outcome remove_rows(session *s, gmem_error *error) {
    const char **paths = NULL;
    int64_t *rows = NULL, count = 0;
    int path_count = 0;
    progress_bar bar;
    if (!s->args->rows && s->args->operands.count == 0)
        return misused(error, "gmem bank remove needs --rows A-B,C, or rows by number or name");
    if (s->args->names)
        return misused(error,
                       "--names cannot be combined with bank remove: its lines would not fit any longer; gmem bank "
                       "export puts them into the file");
    TRY(edited_paths(s, &paths, &path_count, error));
    TRY(rows_to_remove(s, &rows, &count, error));
    const int64_t before = gmem_bank_rows(s->bank), removed = count_distinct(rows, count);
    progress_begin(&bar);
    gmem_status status = gmem_bank_remove(s->context, paths, path_count, rows, count, show_rows, &bar, error);
    progress_end(&bar);
    TRY(from_status(status));
    report_removal(s, paths[path_count - 1], before, before - removed);
    return OUTCOME_DONE;
}

outcome command_bank_remove(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = remove_rows(&s, error);
    session_end(&s);
    return result;
}

/* export ---------------------------------------------------------------------------------------------------------- */

static void report_export(const session *s, gmem_type type) {
    const int64_t rows = gmem_bank_rows(s->bank), width = gmem_bank_width(s->bank);
    char what[128];
    json_writer json;
    if (s->args->json) {
        json_begin(&json, stdout);
        json_open(&json, NULL, '{');
        json_text(&json, "output", s->args->output);
        json_integer(&json, "rows", rows);
        json_integer(&json, "width", width);
        json_text(&json, "type", gmem_type_name(type));
        json_close(&json, '}');
    } else {
        snprintf(what, sizeof what, "%lld rows of %lld, %s", (long long)rows, (long long)width, gmem_type_name(type));
        say_written(s->args, s->args->output, what);
    }
}

static outcome export_bank(session *s, gmem_error *error) {
    progress_bar bar;
    TRY(check_bank_output(s->args->output, error));
    TRY(open_bank(s, error));
    const gmem_type stored = gmem_bank_get_kind(s->bank) == GMEM_BANK_FULL ? gmem_bank_type(s->bank) : GMEM_F32;
    const gmem_type type = written_type(s->args, stored);
    progress_begin(&bar);
    gmem_status status = gmem_bank_export(s->bank, s->args->output, type, show_rows, &bar, error);
    progress_end(&bar);
    TRY(from_status(status));
    report_export(s, type);
    return OUTCOME_DONE;
}

outcome command_bank_export(const arguments *args, gmem_error *error) {
    session s;
    memset(&s, 0, sizeof s);
    if (!args->output) return misused(error, "gmem bank export needs -o FILE");
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE) result = export_bank(&s, error);
    session_end(&s);
    return result;
}
