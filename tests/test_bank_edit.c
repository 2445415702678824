/* Banks that are edited: rows added, removed and exported in every type, what is refused, and what failing calls leave.
 */
#define _POSIX_C_SOURCE 200809L
#include "bank_rows.h"
#include "edit.h"

static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_F64, GMEM_I8};

/* adding and removing --------------------------------------------------------------------------------------------- */

static void test_types(gmem_context *context) {
    for (int t = 0; t < 5; t++) {
        int64_t first = -1;
        clear();
        CHECK_OK(add(context, target, types[t], make_rows(0, 1), &first, NULL));
        CHECK_INT(first, 0);
        CHECK_OK(add(context, target, GMEM_F32, stream_rows(1, MOST), &first, NULL)); /* it keeps its type */
        CHECK_INT(first, 1);
        CHECK_OK(add(context, target, types[t], make_rows(1 + MOST, 3), NULL, NULL));
        CHECK(is_bank_up_to(context, target, types[t], MOST + 4));
        CHECK(!exists(lock_path) && !exists(unfinished));
    }
}

/* A row that crosses the pieces in which a file is written is asked for once all the same. */
static void test_large_rows(gmem_context *context) {
    enum { WIDE = 50000, COUNT = 9 };
    for (int t = 0; t < 5; t++) {
        float *rows = (float *)calloc(COUNT * WIDE, sizeof *rows), *row = (float *)calloc(WIDE, sizeof *row);
        const char *path = target;
        gmem_bank_source source;
        if (!rows || !row) exit(1);
        for (int64_t i = 0; i < COUNT * WIDE; i++)
            rows[i] = i % WIDE == 0 ? 127.0f : (float)(i * 31 % 127 - 63);
        clear();
        memset(&source, 0, sizeof source);
        source.features = rows;
        source.width = WIDE;
        source.rows = COUNT - 2;
        CHECK_OK(gmem_bank_add(context, &path, 1, types[t], &source, NULL, NULL));
        source.features = rows + (COUNT - 2) * WIDE;
        source.rows = 2;
        CHECK_OK(gmem_bank_add(context, &path, 1, types[t], &source, NULL, NULL));
        gmem_bank *bank = open_path(context, target);
        for (int i = 0; bank && i < COUNT; i++) {
            CHECK_OK(gmem_bank_row(bank, i, row, NULL));
            CHECK(memcmp(row, rows + (int64_t)i * WIDE, WIDE * sizeof *row) == 0);
        }
        gmem_bank_close(bank);
        free(rows);
        free(row);
    }
}

/* Removes by turns what a rule says, in a scrambled order and with repetitions. */
static void test_removing(gmem_context *context) {
    const char *path = target;
    for (int t = 0; t < 5; t++) {
        int64_t left[MOST], removed[2 * MOST], count = MOST;
        clear();
        CHECK_OK(add(context, target, types[t], make_rows(0, MOST), NULL, NULL));
        for (int64_t i = 0; i < MOST; i++)
            left[i] = i;
        for (int round = 0; count > 1; round++) {
            int64_t removals = 0, kept = 0;
            for (int64_t i = count - 1; i >= 0; i--) {
                if ((i * i + round) % 3 != 0 || (count == 2 && removals)) continue;
                removed[removals++] = i;
            }
            if (removals == count) removals--;
            for (int64_t i = 0; i < removals && round == 0; i++)
                removed[removals + i] = removed[i];
            if (removals == 0) removed[removals++] = round % count;
            for (int64_t i = 0; i < count; i++) {
                int gone = 0;
                for (int64_t k = 0; k < removals; k++)
                    gone |= removed[k] == i;
                if (!gone) left[kept++] = left[i];
            }
            count = kept;
            CHECK_OK(gmem_bank_remove(context, &path, 1, removed, removals * (round == 0 ? 2 : 1), NULL, NULL, NULL));
            if (!CHECK(is_bank(context, target, types[t], left, count))) return;
        }
    }
}

/* The bank's earlier files are read and never written; rows are numbered through. */
static void test_several_files(gmem_context *context) {
    const char *paths[3] = {"tests/golden/bank_full.pth", target, other};
    static const int64_t removed[2] = {257, 259};
    enum { PUBLISHED = 48 };
    float rows[3 * PUBLISHED], row[PUBLISHED];
    static const char *const names[3] = {"first", NULL, "third"};
    int64_t first = 0;
    contents before = get(paths[0]);
    gmem_bank_source source;
    clear();
    for (int i = 0; i < 3 * PUBLISHED; i++)
        rows[i] = (float)(i % 100) - 50;
    memset(&source, 0, sizeof source);
    source.rows = 3;
    source.width = PUBLISHED;
    source.features = rows;
    CHECK_OK(gmem_bank_add(context, paths, 2, GMEM_F32, &source, &first, NULL));
    CHECK_INT(first, 257);
    source.names = names;
    CHECK_OK(gmem_bank_add(context, paths, 3, GMEM_F16, &source, &first, NULL));
    CHECK_INT(first, 260);
    gmem_bank *bank = open_paths(context, paths, 3);
    CHECK_INT(gmem_bank_rows(bank), 263);
    CHECK(!gmem_bank_name(bank, 0) && !gmem_bank_name(bank, 259) && !gmem_bank_name(bank, 261));
    CHECK_TEXT(gmem_bank_name(bank, 260), "first");
    for (int i = 0; i < 6; i++) {
        CHECK_OK(gmem_bank_row(bank, 257 + i, row, NULL));
        CHECK(memcmp(row, rows + i % 3 * PUBLISHED, sizeof row) == 0);
    }
    gmem_bank_close(bank);
    contents last = get(other);
    CHECK_OK(gmem_bank_remove(context, paths, 2, removed, 2, NULL, NULL, NULL));
    CHECK(holds(other, &last) && holds(paths[0], &before));
    bank = open_path(context, target);
    CHECK_INT(gmem_bank_rows(bank), 1);
    CHECK_OK(gmem_bank_row(bank, 0, row, NULL));
    CHECK(memcmp(row, rows + PUBLISHED, sizeof row) == 0);
    gmem_bank_close(bank);
    free(before.data);
    free(last.data);
}

/* A file with rows 2, 5 and 8, which have no names, and things beside them. */
static void put_more(const char *path, int64_t mean_count) {
    static const int64_t shape[2] = {3, WIDTH};
    static const float mean[5] = {1, 2, 3, 4, 5};
    edit_list *list = edit_new();
    float features[3 * WIDTH];
    for (int i = 0; i < 3; i++)
        make_row(3 * i + 2, features + i * WIDTH);
    edit_metadata(list, "encoder", "dinov2");
    edit_metadata(list, "format", "np");
    edit_add(list, "features", GMEM_F32, 2, shape, features);
    edit_add(list, "mean", GMEM_F32, 1, &mean_count, mean);
    edit_save(list, path);
    edit_free(list);
}

/* What else the file holds stays, and readers go on with the old rows. */
static void test_other_contents(gmem_context *context) {
    static const int64_t removed[1] = {1}, left[3] = {2, 8, 1};
    const char *path = target;
    gmem_file *file = NULL;
    clear();
    put_more(target, 5);
    gmem_bank *reader = open_path(context, target);
    CHECK_OK(add(context, target, GMEM_F32, make_rows(1, 1), NULL, NULL));
    CHECK_OK(gmem_bank_remove(context, &path, 1, removed, 1, NULL, NULL, NULL));
    CHECK_OK(gmem_file_open(context, target, NULL, &file, NULL));
    CHECK_TEXT(gmem_file_metadata(file, "encoder"), "dinov2");
    CHECK_TEXT(gmem_file_metadata(file, "format"), "np");
    CHECK_INT(gmem_file_metadata_count(file), 2);
    CHECK_INT(gmem_file_tensor_count(file), 4); /* with the names, which are new */
    const gmem_tensor *mean = gmem_file_find(file, "mean");
    CHECK(mean && mean->shape[0] == 5 && ((const float *)mean->data)[4] == 5);
    gmem_file_close(file);
    CHECK(is_bank(context, target, GMEM_F32, left, 3));
    CHECK_INT(gmem_bank_rows(reader), 3);
    for (int64_t i = 0; i < 3; i++)
        CHECK(is_row(reader, i, 3 * i + 2));
    gmem_bank_close(reader);
}

static int mode_of(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? (int)(status.st_mode & 0777) : -1;
}

/* What was for few to read stays so. */
static void test_mode(gmem_context *durable) {
    static const int modes[3] = {0600, 0640, 0444};
    clear();
    for (int i = 0; i < 3; i++) {
        CHECK_OK(add(durable, target, GMEM_F32, make_rows(3 * i, 3), NULL, NULL));
        if (i > 0) CHECK_INT(mode_of(target), modes[i - 1]);
        CHECK(chmod(target, (mode_t)modes[i]) == 0);
    }
    CHECK(is_bank_up_to(durable, target, GMEM_F32, 9));
}

/* exporting ------------------------------------------------------------------------------------------------------- */

/* A torch file, a decomposed one and an int8 one with names become one of each type. */
static void test_export(gmem_context *context) {
    const char *paths[3] = {"tests/golden/bank_full.pth", "tests/golden/bank_dmd16.pth", target};
    static const double bars[5] = {0, 1e-3, 8e-3, 0, 1.2e-2};
    enum { PUBLISHED = 48 };
    static const char *const names[2] = {NULL, "caf\xc3\xa9"};
    float rows[2 * PUBLISHED], expected[PUBLISHED], found[PUBLISHED];
    gmem_bank_source source;
    clear();
    for (int i = 0; i < 2 * PUBLISHED; i++)
        rows[i] = (float)(i * 37 % 101) - 50;
    memset(&source, 0, sizeof source);
    source.rows = 2;
    source.width = PUBLISHED;
    source.features = rows;
    source.names = names;
    CHECK_OK(gmem_bank_add(context, paths, 3, GMEM_I8, &source, NULL, NULL));
    gmem_bank *bank = open_paths(context, paths, 3);
    for (int t = 0; t < 5; t++) {
        CHECK_OK(gmem_bank_export(bank, other, types[t], NULL, NULL, NULL));
        gmem_bank *exported = open_path(context, other);
        CHECK_INT(gmem_bank_rows(exported), 516);
        CHECK_INT(gmem_bank_type(exported), types[t]);
        CHECK_TEXT(gmem_bank_name(exported, 515), "caf\xc3\xa9");
        CHECK(gmem_bank_name(exported, 514) == NULL);
        for (int64_t i = 0; i < 516; i++) {
            CHECK_OK(gmem_bank_row(bank, i, expected, NULL));
            CHECK_OK(gmem_bank_row(exported, i, found, NULL));
            CHECK_CLOSE("an exported row", found, expected, PUBLISHED, i < 514 || types[t] != GMEM_I8 ? bars[t] : 0);
        }
        gmem_bank_close(exported);
    }
    gmem_bank_close(bank);
    bank = open_path(context, target); /* over itself: what is open stays */
    CHECK_OK(gmem_bank_export(bank, target, GMEM_F32, NULL, NULL, NULL));
    CHECK_OK(gmem_bank_row(bank, 1, expected, NULL));
    gmem_bank_close(bank);
    bank = open_path(context, target);
    CHECK_OK(gmem_bank_row(bank, 1, found, NULL));
    CHECK(gmem_bank_type(bank) == GMEM_F32 && memcmp(found, expected, sizeof found) == 0);
    gmem_bank_close(bank);
}

/* Rows of no use, which banks may hold, are exported as they are, unless the type cannot say them. */
static void test_export_of_bad_rows(gmem_context *context) {
    static const int64_t shape[2] = {2, 3};
    float rows[6] = {0, 0, 0, 1e6f, 1, 2}, found[3];
    gmem_error error;
    for (int is_nan = 0; is_nan < 2; is_nan++) {
        edit_list *list = edit_new();
        clear();
        if (is_nan) rows[4] = (float)NAN;
        edit_add(list, "features", GMEM_F32, 2, shape, rows);
        edit_save(list, target);
        edit_free(list);
        gmem_bank *bank = open_path(context, target);
        CHECK_OK(gmem_bank_export(bank, other, GMEM_BF16, NULL, NULL, NULL));
        CHECK_STATUS(is_nan ? GMEM_E_ROW_ZERO : GMEM_OK, gmem_bank_export(bank, other, GMEM_I8, NULL, NULL, &error));
        if (!is_nan) CHECK_STATUS(GMEM_E_TYPE, gmem_bank_export(bank, other, GMEM_F16, NULL, NULL, &error));
        CHECK_TEXT(error.path, target);
        CHECK_CONTAINS(error.message, "row 1 ");
        gmem_bank_close(bank);
        bank = open_path(context, other); /* refusals leave what is there */
        CHECK_INT(gmem_bank_type(bank), is_nan ? GMEM_BF16 : GMEM_I8);
        CHECK_OK(gmem_bank_row(bank, 0, found, NULL));
        CHECK(found[0] == 0 && found[1] == 0 && found[2] == 0);
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_export(bank, other, GMEM_I64, NULL, NULL, NULL));
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_export(NULL, other, GMEM_F32, NULL, NULL, NULL));
        CHECK_STATUS(GMEM_E_OPEN, gmem_bank_export(bank, folder, GMEM_F32, NULL, NULL, NULL));
        gmem_bank_close(bank);
    }
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static void test_arguments(gmem_context *context) {
    const char *paths[2] = {target, NULL};
    static const int64_t none[1] = {0};
    made *rows = make_rows(0, 1);
    gmem_bank_source *source = &rows->source;
    clear();
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(NULL, paths, 1, GMEM_F32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, NULL, 1, GMEM_F32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 0, GMEM_F32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 2, GMEM_F32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 1, GMEM_I32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 1, GMEM_F32, NULL, NULL, NULL));
    source->rows = 0;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 1, GMEM_F32, source, NULL, NULL));
    source->rows = 1;
    source->width = 0;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 1, GMEM_F32, source, NULL, NULL));
    source->width = WIDTH;
    source->features = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_add(context, paths, 1, GMEM_F32, source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_remove(context, paths, 1, NULL, 1, NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_remove(context, paths, 1, none, 0, NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_OPEN, gmem_bank_remove(context, paths, 1, none, 1, NULL, NULL, NULL));
    CHECK(!exists(target) && !exists(lock_path));
    free(rows);
}

/* Adds one row of these values, or none but its name, to the target; the file must stay as it is. */
static void refused_row(gmem_context *context, gmem_status code, const float *values, const char *name) {
    for (int way = 0; way < 2; way++) {
        made *rows = way ? stream_rows(31, 2) : make_rows(31, 2);
        gmem_error error;
        int64_t first = -1;
        contents before = get(target);
        if (values) memcpy(rows->features + WIDTH, values, WIDTH * sizeof *values);
        rows->names[1] = name;
        memset(&error, 0, sizeof error);
        CHECK_STATUS(code, add(context, target, GMEM_F32, rows, &first, &error));
        CHECK_STATUS(code, error.code);
        CHECK_TEXT(error.path, target);
        CHECK(first == -1 && holds(target, &before) && !exists(lock_path) && !exists(unfinished));
        free(before.data);
    }
}

static void test_refused_rows(gmem_context *context) {
    float zero[WIDTH] = {0}, nan[WIDTH] = {1, (float)NAN}, infinite[WIDTH] = {1, 2, -(float)INFINITY};
    float large[WIDTH] = {1, 65520}, huge[WIDTH] = {1, -3.4e38f}, tiny[WIDTH] = {1e-40f, -1e-38f}, least[WIDTH] = {0};
    float fits[WIDTH] = {1, -65519};
    for (int t = 0; t < 5; t++) {
        clear();
        CHECK_OK(add(context, target, types[t], make_rows(0, 2), NULL, NULL));
        refused_row(context, GMEM_E_ROW_ZERO, zero, NULL);
        refused_row(context, GMEM_E_ROW_ZERO, nan, NULL);
        refused_row(context, GMEM_E_ROW_ZERO, infinite, NULL);
        if (types[t] == GMEM_F16) refused_row(context, GMEM_E_TYPE, large, NULL);
        if (types[t] == GMEM_F16) refused_row(context, GMEM_E_ROW_ZERO, tiny, NULL);
        if (types[t] == GMEM_BF16) refused_row(context, GMEM_E_TYPE, huge, NULL);
        least[1] = 1e-45f;
        if (types[t] == GMEM_I8) refused_row(context, GMEM_E_ROW_ZERO, least, NULL);
        made *rows = make_rows(31, 1);
        memcpy(rows->features, fits, sizeof fits);
        CHECK_OK(add(context, target, types[t], rows, NULL, NULL));
    }
}

static void test_refused_names(gmem_context *context) {
    gmem_error error;
    float row[WIDTH];
    clear();
    CHECK_OK(add(context, target, GMEM_F32, make_rows(0, 30), NULL, NULL));
    refused_row(context, GMEM_E_NAMES, NULL, "row 7");  /* the bank's */
    refused_row(context, GMEM_E_NAMES, NULL, "row 31"); /* the one's before */
    refused_row(context, GMEM_E_NAMES, NULL, "two\nlines");
    refused_row(context, GMEM_E_NAMES, NULL, "a line\r");
    refused_row(context, GMEM_E_NAMES, NULL, "caf\xe9");
    refused_row(context, GMEM_E_NAMES, NULL, "\xed\xa0\x80");
    made *rows = make_rows(31, 1);
    rows->names[0] = "Row 7"; /* another one, which is found by it */
    CHECK_OK(add(context, target, GMEM_F32, rows, NULL, &error));
    rows = make_rows(32, 1);
    rows->names[0] = ""; /* none */
    CHECK_OK(add(context, target, GMEM_F32, rows, NULL, &error));
    gmem_bank *bank = open_path(context, target);
    int64_t found = -1;
    CHECK(gmem_bank_name(bank, 31) == NULL);
    CHECK_OK(gmem_bank_find(bank, "row 7", &found, NULL));
    CHECK_INT(found, 7);
    CHECK_OK(gmem_bank_find(bank, "Row 7", &found, NULL));
    CHECK_INT(found, 30);
    CHECK_OK(gmem_bank_find(bank, "ROW 7", &found, NULL));
    CHECK_INT(found, 7);
    CHECK_OK(gmem_bank_row(bank, 30, row, NULL));
    gmem_bank_close(bank);
}

static void refused_file(gmem_context *context, gmem_status code, const char *const *paths, int count,
                         const char *why) {
    static const int64_t first[1] = {0};
    gmem_error error;
    made *rows = make_rows(1, 1);
    contents before = get(paths[count - 1]);
    CHECK_STATUS(code, gmem_bank_add(context, paths, count, GMEM_F32, &rows->source, NULL, &error));
    CHECK_TEXT(error.path, paths[count - 1]);
    CHECK_CONTAINS(error.message, why);
    if (before.data) CHECK_STATUS(code, gmem_bank_remove(context, paths, count, first, 1, NULL, NULL, NULL));
    CHECK(before.data ? holds(paths[count - 1], &before) : !exists(paths[count - 1]));
    CHECK(!exists(lock_path));
    free(before.data);
    free(rows);
}

static void test_refused_files(gmem_context *context) {
    const char *paths[2] = {target, target};
    char path[700], lock[720];
    gmem_error error;
    static const int64_t all[3] = {0, 1, 2}, beyond[1] = {3}, negative[1] = {-1}, earlier[2] = {4, 2};
    gmem_file *file = NULL;
    gmem_save_desc desc;
    /* torch files, by content and by name, and folders */
    for (int i = 0; i < 2; i++) {
        contents golden = get(i ? "tests/golden/bank_dmd16.pth" : "tests/golden/bank_full.pth");
        clear();
        put(target, golden.data, golden.size);
        refused_file(context, GMEM_E_COMBINATION, paths, 1, "torch");
        free(golden.data);
    }
    clear();
    snprintf(path, sizeof path, "%.600s.pth", target);
    paths[0] = path;
    refused_file(context, GMEM_E_COMBINATION, paths, 1, "torch");
    paths[0] = folder;
    made *rows = make_rows(0, 1);
    CHECK_STATUS(GMEM_E_OPEN, gmem_bank_add(context, paths, 1, GMEM_F32, &rows->source, NULL, &error));
    snprintf(lock, sizeof lock, "%.600s.lock", folder);
    CHECK(!exists(lock));
    snprintf(path, sizeof path, "%.600s/none/bank", folder);
    paths[0] = path;
    CHECK_STATUS(GMEM_E_OPEN, gmem_bank_add(context, paths, 1, GMEM_F32, &rows->source, NULL, &error));
    CHECK_CONTAINS(error.message, "no such file or folder");
    CHECK_TEXT(error.path, path);
    free(rows);
    /* safetensors with other rows than `features` */
    paths[0] = target;
    CHECK_OK(gmem_file_open(context, "tests/golden/bank_dmd16.pth", ".", &file, NULL));
    edit_list *list = edit_of(file);
    memset(&desc, 0, sizeof desc);
    desc.tensors = list->tensors;
    desc.count = list->count;
    CHECK_OK(gmem_save(context, target, &desc, NULL));
    refused_file(context, GMEM_E_COMBINATION, paths, 1, "decomposed");
    edit_free(list);
    gmem_file_close(file);
    list = edit_new();
    edit_add(list, "tensor", GMEM_F32, 2, all + 1, NULL);
    edit_save(list, target);
    edit_free(list);
    refused_file(context, GMEM_E_COMBINATION, paths, 1, "not named \"features\"");
    /* something for each row, of which the new ones have none */
    put_more(target, 3);
    refused_file(context, GMEM_E_COMBINATION, paths, 1, "\"mean\"");
    put(target, "not a bank", 10);
    refused_file(context, GMEM_E_FORMAT, paths, 1, "neither");
    /* twice the same, another width, and rows that cannot be removed */
    clear();
    CHECK_OK(add(context, target, GMEM_F32, make_rows(0, 3), NULL, NULL));
    paths[1] = target;
    refused_file(context, GMEM_E_COMBINATION, paths, 2, "earlier");
    rows = make_rows(3, 1);
    rows->source.width = WIDTH - 1;
    CHECK_STATUS(GMEM_E_WIDTH, gmem_bank_add(context, paths, 1, GMEM_F32, &rows->source, NULL, NULL));
    paths[1] = other;
    CHECK_STATUS(GMEM_E_WIDTH, gmem_bank_add(context, paths, 2, GMEM_F32, &rows->source, NULL, NULL));
    free(rows);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_remove(context, paths, 1, all, 3, NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_remove(context, paths, 1, beyond, 1, NULL, NULL, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_remove(context, paths, 1, negative, 1, NULL, NULL, NULL));
    rows = make_rows(3, 3);
    CHECK_OK(gmem_bank_add(context, paths, 2, GMEM_F32, &rows->source, NULL, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_remove(context, paths, 2, earlier, 2, NULL, NULL, &error));
    CHECK_CONTAINS(error.message, "row 2 is an earlier file's");
    free(rows);
    CHECK(is_bank_up_to(context, target, GMEM_F32, 3) && !exists(lock_path));
}

static gmem_status give_nothing(void *user, int64_t first, int64_t count, float *out, gmem_error *error) {
    (void)first;
    (void)count;
    (void)out;
    (void)error;
    return *(const int *)user ? GMEM_E_CANCELLED : GMEM_E_READ;
}

static void test_failing_source(gmem_context *context) {
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        gmem_error error;
        made *rows = stream_rows(0, 5);
        rows->source.fill = give_nothing;
        rows->source.fill_user = &cancelled;
        clear();
        CHECK_STATUS(cancelled ? GMEM_E_CANCELLED : GMEM_E_READ, add(context, target, GMEM_F32, rows, NULL, &error));
        CHECK_CONTAINS(error.message, "the function that gives rows");
        CHECK(!exists(target) && !exists(unfinished) && !exists(lock_path));
    }
}

/* A file is replaced whatever was there, or stays. */
static void test_creating(gmem_context *context) {
    gmem_error error;
    clear();
    for (int round = 0; round < 2; round++) {
        put(target, "anything", 8);
        made *rows = make_rows(0, 5);
        if (round) rows->names[4] = rows->names[0];
        CHECK_STATUS(round ? GMEM_E_NAMES : GMEM_OK,
                     gmem_bank_create(context, target, GMEM_BF16, &rows->source, &error));
        CHECK(is_bank_up_to(context, target, GMEM_BF16, 5) == !round);
        rows->source.rows = 0;
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_create(context, target, GMEM_BF16, &rows->source, NULL));
        free(rows);
        CHECK(!exists(lock_path));
    }
}

/* progress -------------------------------------------------------------------------------------------------------- */

typedef struct watch {
    int64_t done, total, calls, end; /* after `end` calls it is enough; negative: never */
    int orderly;
} watch;

static int look(void *user, int64_t done, int64_t total) {
    watch *w = (watch *)user;
    w->orderly &= done >= w->done && done <= total && (w->calls == 0 || total == w->total);
    w->done = done;
    w->total = total;
    return w->calls++ == w->end;
}

static gmem_status edit_watched(gmem_context *context, int what, watch *w, gmem_error *error) {
    static const int64_t removed[2] = {7, 3};
    const char *path = target;
    gmem_bank *bank = what == 2 ? open_path(context, target) : NULL;
    gmem_status status;
    if (what == 0) {
        made *rows = stream_rows(40, 20);
        rows->source.progress = look;
        rows->source.progress_user = w;
        status = add(context, target, GMEM_F32, rows, NULL, error);
    } else if (what == 1) {
        status = gmem_bank_remove(context, &path, 1, removed, 2, look, w, error);
    } else {
        status = gmem_bank_export(bank, target, GMEM_I8, look, w, error);
    }
    gmem_bank_close(bank);
    return status;
}

static void test_progress(gmem_context *context) {
    static const int64_t rows[3] = {60, 38, 80}; /* int8: each row twice */
    for (int what = 0; what < 3; what++) {
        int64_t failures = 0;
        gmem_status status = GMEM_E_CANCELLED;
        clear();
        CHECK_OK(add(context, target, what == 1 ? GMEM_I8 : GMEM_F64, make_rows(0, 40), NULL, NULL));
        contents before = get(target);
        while (status == GMEM_E_CANCELLED && failures < 1000) {
            watch w = {0, 0, 0, failures, 1};
            gmem_error error;
            status = edit_watched(context, what, &w, &error);
            CHECK(w.orderly && w.total == (what == 1 ? 2 : 1) * rows[what]);
            CHECK(!exists(lock_path) && !exists(unfinished));
            failures += status != GMEM_OK;
            if (status != GMEM_OK) CHECK(holds(target, &before) && error.code == GMEM_E_CANCELLED);
        }
        CHECK(status == GMEM_OK && failures > 0);
        CHECK(!holds(target, &before));
        free(before.data);
    }
}

/* failing calls --------------------------------------------------------------------------------------------------- */

static gmem_status add_three(gmem_context *context, gmem_error *error) {
    return add(context, target, GMEM_F32, stream_rows(MOST, 3), NULL, error);
}

static gmem_status add_anew(gmem_context *context, gmem_error *error) {
    remove(target);
    return add(context, target, GMEM_I8, make_rows(0, 3), NULL, error);
}

static gmem_status remove_some(gmem_context *context, gmem_error *error) {
    static const int64_t rows[2] = {5, 40};
    const char *path = target;
    return gmem_bank_remove(context, &path, 1, rows, 2, NULL, NULL, error);
}

static gmem_status export_all(gmem_context *context, gmem_error *error) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    const char *path = target;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    gmem_status status = gmem_bank_open(context, &desc, &bank, error);
    if (status == GMEM_OK) status = gmem_bank_export(bank, target, GMEM_I8, NULL, NULL, error);
    gmem_bank_close(bank);
    return status;
}

typedef gmem_status (*action)(gmem_context *context, gmem_error *error);
static const action actions[] = {add_three, add_anew, remove_some, export_all};

/* A lock that can be had again has been given back. */
static int is_unlocked(void) {
    gmem_io io = gmem__system_io();
    int held = 0;
    void *lock = io.lock(NULL, target, &held);
    if (lock) io.unlock(NULL, lock);
    return lock && !exists(lock_path);
}

/* What must be so after an action, whatever failed: the old bank byte for byte, or all of the new one. */
static void check_after(action run, gmem_status status, const gmem_error *error, const contents *before) {
    CHECK(is_unlocked());
    if (status == GMEM_OK) return;
    CHECK_STATUS(status, error->code);
    CHECK(error->message[0] != 0);
    CHECK(run == add_anew ? !exists(target) : holds(target, before));
}

/* Call `at` of `op` fails, once or for good, and writes move few bytes. 0 where the action makes fewer calls. */
static int survives(action run, const contents *before, failing_op op, int64_t at, int for_good, int no_map) {
    static const gmem_status codes[FAILING_OPS] = {GMEM_E_OPEN, GMEM_E_READ,  GMEM_E_READ,   GMEM_E_WRITE,
                                                   GMEM_E_SYNC, GMEM_E_WRITE, GMEM_E_RENAME, GMEM_E_OPEN};
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_error error;
    gmem_context *context = failing_io_context(&io, &memory, quick_io(), no_map);
    memset(&error, 0, sizeof error);
    put(target, before->data, before->size);
    io.op = op;
    io.countdown = at;
    io.for_good = for_good;
    io.most = 100;
    gmem_status status = run(context, &error);
    const int64_t failed = io.failed;
    CHECK(failing_io_clean(&io, &memory));
    check_after(run, status, &error, before);
    if (status != GMEM_OK) {
        CHECK_STATUS(codes[op], status);
        CHECK_TEXT(error.path, target);
        CHECK(failed > 0);
    }
    io.countdown = -1;
    put(target, before->data, before->size);
    CHECK_OK(run(context, NULL)); /* the context is as good as ever */
    gmem_context_destroy(context);
    return failed > 0;
}

static void test_io_failures(const contents *before) {
    int64_t reached = 0;
    for (int run = 0; run < 4; run++) {
        for (int op = 0; op < FAILING_OPS; op++) {
            for (int variant = 0; variant < 4; variant++) {
                for (int64_t at = 0; survives(actions[run], before, (failing_op)op, at, variant & 1, variant >> 1);
                     at++)
                    reached++;
            }
        }
    }
    CHECK(reached > 500);
}

static void test_allocation_failures(const contents *before) {
    int64_t reached = 0;
    for (int run = 0; run < 4; run++) {
        for (int variant = 0; variant < 4; variant++) {
            for (int64_t at = 0;; at++) {
                failing memory = {0, 0, 0};
                failing_io io;
                gmem_error error;
                gmem_context *context = failing_io_context(&io, &memory, quick_io(), variant >> 1);
                memset(&error, 0, sizeof error);
                put(target, before->data, before->size);
                memory.countdown = at;
                memory.for_good = variant & 1;
                gmem_status status = actions[run](context, &error);
                const int done = memory.countdown > 0;
                CHECK(failing_io_clean(&io, &memory));
                check_after(actions[run], status, &error, before);
                if (status != GMEM_OK) CHECK_STATUS(GMEM_E_MEMORY, status);
                gmem_context_destroy(context);
                if (done) break;
                reached += status != GMEM_OK;
            }
        }
    }
    CHECK(reached > 200);
}

/* Without locks nobody is kept out, and everything else is the same. */
static void test_without_locks(void) {
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), 0);
    context->io.lock = NULL;
    context->io.unlock = NULL;
    clear();
    put(unfinished, "somebody's", 10); /* of which nothing is known */
    CHECK_OK(add(context, target, GMEM_BF16, make_rows(0, 9), NULL, NULL));
    CHECK_OK(add(context, target, GMEM_BF16, make_rows(9, 9), NULL, NULL));
    CHECK(is_bank_up_to(context, target, GMEM_BF16, 18) && exists(unfinished));
    CHECK(failing_io_clean(&io, &memory));
    gmem_context_destroy(context);
}

int main(int count, char **arguments) {
    gmem_context *context = open_context(quick_io()), *durable = open_context(gmem__system_io());
    name_files(count > 0 ? arguments[0] : "test_bank_edit");
    test_types(context);
    test_large_rows(context);
    test_removing(context);
    test_several_files(context);
    test_other_contents(context);
    test_mode(durable);
    test_export(context);
    test_export_of_bad_rows(context);
    test_arguments(context);
    test_refused_rows(context);
    test_refused_names(context);
    test_refused_files(context);
    test_failing_source(context);
    test_creating(context);
    test_progress(context);
    clear();
    CHECK_OK(add(context, target, GMEM_F32, make_rows(0, MOST), NULL, NULL));
    contents before = get(target);
    test_io_failures(&before);
    test_allocation_failures(&before);
    free(before.data);
    test_without_locks();
    clear();
    gmem_context_destroy(context);
    gmem_context_destroy(durable);
    return check_report();
}
