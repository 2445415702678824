/* What the tests of edited banks share: files, rows by a rule that tells from a row which one it is, and contexts. */
#ifndef BANK_ROWS_H
#define BANK_ROWS_H

#include "check.h"
#include "failing_io.h"

#include <sys/stat.h>
#include <unistd.h>

enum { WIDTH = 7, MOST = 64 };

/* Beside the program, and named as it is. */
static char target[600], other[600], lock_path[640], unfinished[640], folder[600];

static inline void name_files(const char *program) {
    const char *slash = strrchr(program, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - program) : 1, slash ? program : ".");
    snprintf(target, sizeof target, "%.500s.out", program);
    snprintf(other, sizeof other, "%.500s.more", program);
    snprintf(lock_path, sizeof lock_path, "%.600s.lock", target);
    snprintf(unfinished, sizeof unfinished, "%.600s.unfinished", target);
}

/* files ----------------------------------------------------------------------------------------------------------- */

static inline int exists(const char *path) { return access(path, F_OK) == 0; }

typedef struct contents {
    char *data;
    size_t size;
} contents;

static inline contents get(const char *path) {
    struct stat status;
    contents found = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (!file) return found;
    if (stat(path, &status) != 0) exit(1);
    found.size = (size_t)status.st_size;
    found.data = (char *)malloc(found.size + 1);
    if (!found.data || fread(found.data, 1, found.size, file) != found.size) exit(1);
    fclose(file);
    return found;
}

static inline void put(const char *path, const void *data, size_t size) {
    remove(path); /* some file systems write at once what is truncated first */
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) exit(1);
}

static inline int holds(const char *path, const contents *expected) {
    contents found = get(path);
    int same = found.size == expected->size && memcmp(found.data, expected->data, found.size) == 0;
    free(found.data);
    return same;
}

static inline void clear(void) {
    remove(target);
    remove(other);
    remove(lock_path);
    remove(unfinished);
}

/* The system's files, but that nothing waits for a disk: most tests look at what is written, not at when. */
static inline int sync_nothing(void *user, void *file) {
    (void)user;
    return file == NULL;
}

static inline int rename_only(void *user, const char *from, const char *to) {
    (void)user;
    remove(to); /* as for put */
    return rename(from, to);
}

static inline gmem_io quick_io(void) {
    gmem_io io = gmem__system_io();
    io.sync = sync_nothing;
    io.rename = rename_only;
    return io;
}

static inline gmem_context *open_context(gmem_io io) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    desc.threads = 1;
    desc.io = io;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) exit(1);
    return context;
}

/* rows ------------------------------------------------------------------------------------------------------------ */

/* Exact in every floating-point type, and never zero. */
static inline float feature(int64_t row, int64_t column) {
    return (float)((row * 7 + column * 3) % 23 - 11) + (column == 0 ? 0.5f : 0);
}

static inline void make_row(int64_t row, float *out) {
    for (int64_t i = 0; i < WIDTH; i++)
        out[i] = feature(row, i);
}

static inline const char *make_name(int64_t row, char *out) {
    sprintf(out, "row %lld", (long long)row);
    return out;
}

/* Rows [first, first + rows) of the rule above, with names but for every third. */
typedef struct made {
    gmem_bank_source source;
    float features[MOST * WIDTH];
    char texts[MOST][32];
    const char *names[MOST];
    int64_t first, asked; /* of fill: the rows asked for so far */
} made;

static inline made *make_rows(int64_t first, int64_t rows) {
    made *out = (made *)calloc(1, sizeof *out);
    if (!out) exit(1);
    for (int64_t i = 0; i < rows; i++) {
        make_row(first + i, out->features + i * WIDTH);
        if ((first + i) % 3 != 2) out->names[i] = make_name(first + i, out->texts[i]);
    }
    out->first = first;
    out->source.rows = rows;
    out->source.width = WIDTH;
    out->source.features = out->features;
    out->source.names = out->names;
    return out;
}

/* In order, once each: `asked` wraps where the rows are asked for again. */
static inline gmem_status give_rows(void *user, int64_t first, int64_t count, float *out, gmem_error *error) {
    made *from = (made *)user;
    (void)error;
    if (from->asked == from->source.rows) from->asked = 0;
    CHECK_INT(first, from->asked);
    from->asked += count;
    memcpy(out, from->features + first * WIDTH, (size_t)(count * WIDTH) * sizeof *out);
    return GMEM_OK;
}

static inline made *stream_rows(int64_t first, int64_t rows) {
    made *out = make_rows(first, rows);
    out->source.features = NULL;
    out->source.fill = give_rows;
    out->source.fill_user = out;
    return out;
}

static inline gmem_status add(gmem_context *context, const char *path, gmem_type type, made *rows, int64_t *first,
                              gmem_error *error) {
    gmem_status status = gmem_bank_add(context, &path, 1, type, &rows->source, first, error);
    free(rows);
    return status;
}

static inline gmem_bank *open_paths(gmem_context *context, const char *const *paths, int count) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.paths = paths;
    desc.path_count = count;
    if (gmem_bank_open(context, &desc, &bank, &error) != GMEM_OK) printf("%s: %s\n", error.path, error.message);
    return bank;
}

static inline gmem_bank *open_path(gmem_context *context, const char *path) { return open_paths(context, &path, 1); }

/* Row `at` of the bank is row `row` of the rule; an int8 one within half a step. */
static inline int is_row(const gmem_bank *bank, int64_t at, int64_t row) {
    float found[WIDTH], expected[WIDTH], largest = 0;
    char text[32];
    const char *name = gmem_bank_name(bank, at);
    if (gmem_bank_row(bank, at, found, NULL) != GMEM_OK) return 0;
    make_row(row, expected);
    for (int i = 0; i < WIDTH; i++)
        largest = fmaxf(largest, fabsf(expected[i]));
    const float bar = gmem_bank_type(bank) == GMEM_I8 ? largest / 127 * 0.5001f : 0;
    for (int i = 0; i < WIDTH; i++) {
        if (!(fabsf(found[i] - expected[i]) <= bar)) return 0;
    }
    return row % 3 == 2 ? name == NULL : name && strcmp(name, make_name(row, text)) == 0;
}

/* The file holds these rows and no others. */
static inline int is_bank(gmem_context *context, const char *path, gmem_type type, const int64_t *rows, int64_t count) {
    gmem_bank *bank = open_path(context, path);
    int right = bank && gmem_bank_rows(bank) == count && gmem_bank_width(bank) == WIDTH && gmem_bank_type(bank) == type;
    for (int64_t i = 0; right && i < count; i++)
        right = is_row(bank, i, rows[i]);
    gmem_bank_close(bank);
    return right;
}

static inline int is_bank_up_to(gmem_context *context, const char *path, gmem_type type, int64_t count) {
    int64_t rows[4 * MOST];
    for (int64_t i = 0; i < count; i++)
        rows[i] = i;
    return is_bank(context, path, type, rows, count);
}

#endif /* BANK_ROWS_H */
