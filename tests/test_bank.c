/* The bank: recorded rows of the published forms, the native form, names, mixing, and what malformed banks get. */
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

#define BAR 1e-6

static gmem_bank *open_paths(gmem_context *context, const char *const *paths, int count, const char *names) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    desc.paths = paths;
    desc.path_count = count;
    desc.names_text = names;
    if (!CHECK_OK(gmem_bank_open(context, &desc, &bank, &error))) {
        printf("%s: %s\n", error.path, error.message);
        exit(1);
    }
    return bank;
}

static gmem_bank *open_path(gmem_context *context, const char *path) { return open_paths(context, &path, 1, NULL); }

static float *zeros(int64_t count) {
    float *out = (float *)calloc((size_t)count, sizeof *out);
    if (!out) exit(1);
    return out;
}

/* recorded banks -------------------------------------------------------------------------------------------------- */

static void test_full(gmem_context *context) {
    gmem_file *io = golden_open(context, "bank.io.safetensors");
    gmem_bank *bank = open_path(context, "tests/golden/bank_full.pth");
    int64_t count = 0, width = gmem_bank_width(bank);
    int64_t *index = golden_i64(io, "index", &count);
    float *rows = golden_f32(io, "rows", NULL), *normalized = golden_f32(io, "rows_normalized", NULL);
    float *interpolated = golden_f32(io, "interp01", NULL), *out = zeros(width);
    CHECK_INT(width, golden_dim(io, "rows", 1));
    CHECK_INT(gmem_bank_rows(bank), 257);
    CHECK_INT(gmem_bank_type(bank), GMEM_F32);
    CHECK_INT(gmem_bank_get_kind(bank), GMEM_BANK_FULL);
    CHECK_INT(gmem_bank_file_count(bank), 1);
    CHECK_INT(gmem_bank_file_rows(bank, 0), 257);
    CHECK_TEXT(gmem_bank_file_path(bank, 0), "tests/golden/bank_full.pth");
    CHECK(!gmem_bank_file_path(bank, 1) && gmem_bank_file_rows(bank, -1) == 0);
    for (int64_t i = 0; i < count; i++) {
        CHECK_OK(gmem_bank_row(bank, index[i], out, NULL));
        CHECK(memcmp(out, rows + i * width, (size_t)width * sizeof *out) == 0);
        CHECK_OK(gmem_bank_snippet(bank, index[i], out, NULL));
        CHECK_CLOSE("snippet", out, normalized + i * width, width, BAR);
    }
    CHECK_OK(gmem_bank_interpolate(bank, 0, 1, 0.3, out, NULL));
    CHECK_CLOSE("interpolate", out, interpolated, width, BAR);
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_row(bank, 257, out, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_row(bank, -1, out, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_snippet(bank, 257, out, NULL));
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_interpolate(bank, 0, 257, 0.5, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_interpolate(bank, 0, 1, NAN, out, NULL));
    CHECK_STATUS(GMEM_E_COMBINATION, gmem_bank_project(bank, rows, out, NULL));
    CHECK_CLOSE("untouched by failures", out, interpolated, width, BAR);
    CHECK(gmem_bank_name(bank, 0) == NULL);
    gmem_bank_close(bank);
    gmem_file_close(io);
    free(index);
    free(rows);
    free(normalized);
    free(interpolated);
    free(out);
}

static void test_decomposed(gmem_context *context) {
    gmem_file *io = golden_open(context, "bank.io.safetensors");
    gmem_bank *bank = open_path(context, "tests/golden/bank_dmd16.pth");
    int64_t count = 0, width = gmem_bank_width(bank);
    int64_t *index = golden_i64(io, "index", &count);
    float *rows = golden_f32(io, "dmd_rows", NULL), *snippet = golden_f32(io, "snippet", NULL);
    float *projected = golden_f32(io, "dmd_projected", NULL), *out = zeros(width);
    CHECK_INT(gmem_bank_rows(bank), 257);
    CHECK_INT(gmem_bank_get_kind(bank), GMEM_BANK_DECOMPOSED);
    for (int64_t i = 0; i < count; i++) {
        CHECK_OK(gmem_bank_row(bank, index[i], out, NULL));
        CHECK_CLOSE("decomposed row", out, rows + i * width, width, BAR);
    }
    CHECK_OK(gmem_bank_project(bank, snippet, snippet, NULL)); /* in place is fine */
    CHECK_CLOSE("projection", snippet, projected, width, BAR);
    gmem_bank_close(bank);
    gmem_file_close(io);
    free(index);
    free(rows);
    free(snippet);
    free(projected);
    free(out);
}

/* Several files are numbered through, whatever their kinds and types. */
static void test_files(gmem_context *context) {
    static const char *const paths[2] = {"tests/golden/bank_full.pth", "tests/golden/bank_dmd16.pth"};
    gmem_bank *both = open_paths(context, paths, 2, NULL);
    gmem_bank *parts[2] = {open_path(context, paths[0]), open_path(context, paths[1])};
    static const int64_t rows[4] = {0, 256, 257, 513};
    float a[48], b[48];
    CHECK_INT(gmem_bank_rows(both), 514);
    CHECK_INT(gmem_bank_file_rows(both, 1), 257);
    CHECK_TEXT(gmem_bank_file_path(both, 1), paths[1]);
    for (int i = 0; i < 4; i++) {
        CHECK_OK(gmem_bank_row(both, rows[i], a, NULL));
        CHECK_OK(gmem_bank_row(parts[i / 2], rows[i] % 257, b, NULL));
        CHECK(memcmp(a, b, sizeof a) == 0);
    }
    CHECK_STATUS(GMEM_E_ROW, gmem_bank_row(both, 514, a, NULL));
    gmem_bank_close(both);
    gmem_bank_close(parts[0]);
    gmem_bank_close(parts[1]);
}

/* made banks ------------------------------------------------------------------------------------------------------ */

enum { ROWS = 5, WIDTH = 6 };

static const char *const row_names[ROWS] = {"Cat", "tabby cat", "grinning face", "caf\xc3\xa9", "Dog"};

static float feature(int64_t row, int64_t column) { return (float)((row * 7 + column * 3) % 11 - 5); }

/* `features` in a type, and names where asked for. */
static edit_list *native_bank(gmem_type type, int names) {
    edit_list *list = edit_new();
    int64_t shape[2] = {ROWS, WIDTH}, size = 0, *offsets;
    float values[ROWS * WIDTH];
    for (int64_t i = 0; i < ROWS * WIDTH; i++) {
        values[i] = feature(i / WIDTH, i % WIDTH);
    }
    void *data = edit_own(list, sizeof values * 2);
    if (type == GMEM_I8) {
        float *scale = (float *)edit_own(list, ROWS * sizeof *scale);
        for (int64_t i = 0; i < ROWS * WIDTH; i++) {
            ((int8_t *)data)[i] = (int8_t)(4 * values[i]);
            scale[i / WIDTH] = 0.25f;
        }
        edit_add(list, "features.scale", GMEM_F32, 1, shape, scale);
    } else {
        gmem_convert_f32(values, ROWS * WIDTH, type, data);
    }
    edit_add(list, "features", type, 2, shape, data);
    if (!names) return list;
    char *run = (char *)edit_own(list, 256);
    offsets = (int64_t *)edit_own(list, (ROWS + 1) * sizeof *offsets);
    for (int i = 0; i < ROWS; i++) {
        strcpy(run + size, row_names[i]);
        size += (int64_t)strlen(row_names[i]);
        offsets[i + 1] = size;
    }
    shape[0] = size;
    edit_add(list, "names", GMEM_U8, 1, shape, run);
    shape[0] = ROWS + 1;
    edit_add(list, "names.offsets", GMEM_I64, 1, shape, offsets);
    return list;
}

static gmem_bank *open_list(gmem_context *context, edit_list *list, gmem_file **file) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    memset(&desc, 0, sizeof desc);
    desc.file = *file = edit_open(context, list);
    if (!CHECK_OK(gmem_bank_open(context, &desc, &bank, &error))) {
        printf("%s\n", error.message);
        exit(1);
    }
    return bank;
}

static void test_native(gmem_context *context) {
    static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_F64, GMEM_I8};
    for (int t = 0; t < 5; t++) {
        gmem_file *file = NULL;
        edit_list *list = native_bank(types[t], 1);
        gmem_bank *bank = open_list(context, list, &file);
        float out[WIDTH];
        CHECK_INT(gmem_bank_rows(bank), ROWS);
        CHECK_INT(gmem_bank_width(bank), WIDTH);
        CHECK_INT(gmem_bank_type(bank), types[t]);
        for (int64_t row = 0; row < ROWS; row++) {
            CHECK_OK(gmem_bank_row(bank, row, out, NULL));
            for (int64_t i = 0; i < WIDTH; i++) {
                CHECK(out[i] == feature(row, i));
            }
            CHECK_TEXT(gmem_bank_name(bank, row), row_names[row]);
        }
        CHECK(!gmem_bank_name(bank, -1) && !gmem_bank_name(bank, ROWS));
        gmem_bank_close(bank);
        gmem_file_close(file);
        edit_free(list);
    }
}

/* A checkpoint of the first version, with its bank beside its network. */
/* A bank of int8 in a file of which another dictionary is selected, as the network's loader selects it. */
static void test_memorybank_int8(gmem_context *context) {
    static const char path[] = "build/test_bank.safetensors";
    edit_list *list = native_bank(GMEM_I8, 0);
    int64_t shape[1] = {1};
    float one = 1, out[WIDTH];
    gmem_file *file = NULL;
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    edit_find(list, "features.scale")->name = "memorybank.scale";
    edit_find(list, "features")->name = "memorybank";
    edit_add(list, "ema.pos_embed", GMEM_F32, 1, shape, &one);
    edit_save(list, path);
    edit_free(list);
    memset(&desc, 0, sizeof desc);
    CHECK_OK(gmem_file_open(context, path, "ema", &file, NULL));
    desc.file = file;
    if (CHECK_OK(gmem_bank_open(context, &desc, &bank, NULL))) {
        CHECK_OK(gmem_bank_row(bank, 4, out, NULL));
        CHECK(fabs((double)(out[5] - feature(4, 5))) <= 0.25);
    }
    gmem_bank_close(bank);
    gmem_file_close(file);
    remove(path);
}

static void test_memorybank(gmem_context *context) {
    edit_list *list = native_bank(GMEM_F16, 0);
    gmem_file *file = NULL;
    int64_t shape[2] = {3, 3};
    list->tensors[0].name = "memorybank";
    edit_add(list, "blocks.0.attn.qkv.weight", GMEM_F32, 2, shape, NULL);
    gmem_bank *bank = open_list(context, list, &file);
    float out[WIDTH];
    CHECK_OK(gmem_bank_row(bank, 4, out, NULL));
    CHECK(out[5] == feature(4, 5));
    gmem_bank_close(bank);
    gmem_file_close(file);
    edit_free(list);
}

static void test_zero_row(gmem_context *context) {
    edit_list *list = native_bank(GMEM_F32, 0);
    gmem_file *file = NULL;
    float *values = (float *)edit_own(list, ROWS * WIDTH * sizeof *values), out[WIDTH] = {9};
    for (int i = 0; i < WIDTH; i++) {
        values[i] = 1e30f;
        values[WIDTH + i] = 1e-30f;
        values[3 * WIDTH + i] = i == 2 ? (float)NAN : 1;
        values[4 * WIDTH + i] = i == 2 ? (float)INFINITY : 1;
    }
    list->tensors[0].data = values;
    gmem_bank *bank = open_list(context, list, &file);
    for (int64_t row = 2; row < ROWS; row++) {
        CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_bank_snippet(bank, row, out, NULL));
        CHECK(out[0] == 9);
    }
    for (int64_t row = 0; row < 2; row++) { /* neither overflow nor underflow */
        CHECK_OK(gmem_bank_snippet(bank, row, out, NULL));
        CHECK(fabs((double)out[0] - 1 / sqrt(6.0)) < 1e-6);
    }
    gmem_bank_close(bank);
    gmem_file_close(file);
    edit_free(list);
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static gmem_status status_of(gmem_context *context, edit_list *list, gmem_error *error) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    memset(&desc, 0, sizeof desc);
    memset(error, 0, sizeof *error);
    desc.file = edit_open(context, list);
    gmem_status status = gmem_bank_open(context, &desc, &bank, error);
    CHECK((status == GMEM_OK) == (bank != NULL));
    if (status != GMEM_OK) CHECK_TEXT(error->path, "edited");
    gmem_bank_close(bank);
    gmem_file_close(desc.file);
    edit_free(list);
    return status;
}

typedef struct wrong {
    const char *tensor;
    gmem_type type;
    int rank;
    int64_t shape[3];
    gmem_status expected;
} wrong;

static void test_malformed(gmem_context *context) {
    static const wrong cases[] = {
        {"features", GMEM_F32, 1, {ROWS}, GMEM_E_SHAPE},
        {"features", GMEM_F32, 3, {ROWS, WIDTH, 1}, GMEM_E_SHAPE},
        {"features", GMEM_F32, 2, {0, WIDTH}, GMEM_E_SHAPE},
        {"features", GMEM_F32, 2, {ROWS, 0}, GMEM_E_SHAPE},
        {"features", GMEM_I32, 2, {ROWS, WIDTH}, GMEM_E_TYPE},
        {"features", GMEM_BOOL, 2, {ROWS, WIDTH}, GMEM_E_TYPE},
        {"features.scale", GMEM_F32, 1, {ROWS + 1}, GMEM_E_SHAPE},
        {"features.scale", GMEM_F32, 2, {ROWS, 1}, GMEM_E_SHAPE},
        {"features.scale", GMEM_I32, 1, {ROWS}, GMEM_E_TYPE},
        {"names", GMEM_U8, 2, {1, 40}, GMEM_E_NAMES},
        {"names", GMEM_I8, 1, {37}, GMEM_E_NAMES},
        {"names.offsets", GMEM_I64, 1, {ROWS}, GMEM_E_NAMES},
        {"names.offsets", GMEM_I32, 1, {ROWS + 1}, GMEM_E_NAMES},
        {"names.offsets", GMEM_I64, 1, {ROWS + 1}, GMEM_E_NAMES}, /* all zero, but there are names */
    };
    gmem_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        edit_list *list = native_bank(GMEM_I8, 1);
        edit_replace(list, cases[i].tensor, cases[i].type, cases[i].rank, cases[i].shape);
        if (!CHECK_STATUS(cases[i].expected, status_of(context, list, &error))) printf("case %d\n", (int)i);
        CHECK_CONTAINS(error.message, cases[i].tensor);
        if (cases[i].shape[0] == 0) CHECK_CONTAINS(error.message, "it is empty");
    }
    static const char *const dropped[3] = {"features.scale", "names", "names.offsets"};
    for (int i = 0; i < 3; i++) {
        edit_list *list = native_bank(GMEM_I8, 1);
        edit_drop(list, dropped[i]);
        CHECK_STATUS(i ? GMEM_E_NAMES : GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    }
    edit_list *list = native_bank(GMEM_F32, 0);
    list->tensors[0].name = "weight";
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    list = native_bank(GMEM_I8, 0); /* only the native form has scales */
    edit_find(list, "features")->name = "memorybank";
    CHECK_STATUS(GMEM_E_TYPE, status_of(context, list, &error));
}

static void test_malformed_names(gmem_context *context) {
    static const int64_t offsets[][ROWS + 1] = {
        {0, 5, 3, 20, 30, 33}, {-1, 5, 8, 20, 30, 33}, {1, 5, 8, 20, 30, 33},
        {0, 5, 8, 20, 40, 33}, {0, 5, 8, 20, 30, 32},  {0, 5, 8, 20, INT64_MAX, 33},
    };
    gmem_error error;
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        edit_list *list = native_bank(GMEM_F32, 1);
        CHECK_INT(edit_find(list, "names")->shape[0], 33);
        edit_find(list, "names.offsets")->data = offsets[i];
        if (!CHECK_STATUS(GMEM_E_NAMES, status_of(context, list, &error))) printf("case %d\n", (int)i);
    }
    for (int i = 0; i < 2; i++) { /* a byte that is no UTF-8, and a NUL */
        edit_list *list = native_bank(GMEM_F32, 1);
        ((char *)(uintptr_t)edit_find(list, "names")->data)[2] = i ? '\0' : '\xff';
        CHECK_STATUS(GMEM_E_NAMES, status_of(context, list, &error));
    }
}

static edit_list *decomposed_bank(void) {
    edit_list *list = edit_new();
    static const int64_t c[2] = {ROWS, 2}, m[2] = {WIDTH, 2}, s[1] = {2}, mean[1] = {WIDTH};
    edit_add(list, "C", GMEM_F32, 2, c, NULL);
    edit_add(list, "M", GMEM_F32, 2, m, NULL);
    edit_add(list, "S", GMEM_F32, 1, s, NULL);
    edit_add(list, "mean", GMEM_F32, 1, mean, NULL);
    return list;
}

static void test_malformed_decomposed(gmem_context *context) {
    static const wrong cases[] = {
        {"C", GMEM_F32, 2, {ROWS, 3}, GMEM_E_SHAPE},
        {"C", GMEM_F32, 1, {ROWS}, GMEM_E_SHAPE},
        {"M", GMEM_F32, 2, {2, WIDTH}, GMEM_E_SHAPE},
        {"M", GMEM_F32, 2, {WIDTH, 3}, GMEM_E_SHAPE},
        {"S", GMEM_F32, 1, {3}, GMEM_E_SHAPE},
        {"S", GMEM_F32, 2, {2, 2}, GMEM_E_SHAPE},
        {"mean", GMEM_F32, 1, {WIDTH + 1}, GMEM_E_SHAPE},
        {"mean", GMEM_F32, 2, {WIDTH, 1}, GMEM_E_SHAPE},
        {"C", GMEM_I8, 2, {ROWS, 2}, GMEM_E_TYPE},
        {"M", GMEM_I64, 2, {WIDTH, 2}, GMEM_E_TYPE},
        {"S", GMEM_I32, 1, {2}, GMEM_E_TYPE},
        {"mean", GMEM_U8, 1, {WIDTH}, GMEM_E_TYPE},
        {"mean", GMEM_F32, 2, {1, WIDTH}, GMEM_OK},
        {"C", GMEM_F16, 2, {ROWS, 2}, GMEM_OK},
    };
    static const char *const dropped[4] = {"C", "M", "S", "mean"};
    gmem_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        edit_list *list = decomposed_bank();
        edit_replace(list, cases[i].tensor, cases[i].type, cases[i].rank, cases[i].shape);
        if (!CHECK_STATUS(cases[i].expected, status_of(context, list, &error))) printf("case %d\n", (int)i);
    }
    for (int i = 0; i < 4; i++) {
        edit_list *list = decomposed_bank();
        edit_drop(list, dropped[i]);
        CHECK_STATUS(GMEM_E_MISSING_TENSOR, status_of(context, list, &error));
    }
}

static void test_arguments(gmem_context *context) {
    static const char *const widths[2] = {"tests/golden/bank_full.pth", "build/test_bank.safetensors"};
    static const char *const missing[2] = {"tests/golden/bank_full.pth", "tests/golden/no_such_bank.pth"};
    static const char *const network[1] = {"tests/golden/vae_diffusers.safetensors"};
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    gmem_error error;
    edit_list *list = native_bank(GMEM_F16, 1);
    edit_save(list, widths[1]);
    edit_free(list);
    memset(&desc, 0, sizeof desc);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_open(context, &desc, &bank, &error));
    desc.paths = widths;
    desc.path_count = 2;
    CHECK_STATUS(GMEM_E_WIDTH, gmem_bank_open(context, &desc, &bank, &error));
    CHECK_TEXT(error.path, widths[1]);
    desc.paths = missing;
    CHECK_STATUS(GMEM_E_OPEN, gmem_bank_open(context, &desc, &bank, &error));
    CHECK_TEXT(error.path, missing[1]);
    desc.paths = network;
    desc.path_count = 1;
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, gmem_bank_open(context, &desc, &bank, &error));
    CHECK(bank == NULL);
    gmem_bank_close(NULL);
    int64_t row = -7;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_find(NULL, "x", &row, NULL));
    bank = open_path(context, "tests/golden/bank_full.pth");
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_bank_find(bank, NULL, &row, NULL));
    CHECK_INT(row, -7);
    gmem_bank_close(bank);
    remove(widths[1]);
}

/* names ----------------------------------------------------------------------------------------------------------- */

static gmem_status with_names(gmem_context *context, const char *text, const char *path, gmem_bank **bank,
                              gmem_file **file, edit_list **list, gmem_error *error) {
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    memset(error, 0, sizeof *error);
    *list = native_bank(GMEM_F32, 1);
    desc.file = *file = edit_open(context, *list);
    desc.names_text = text;
    desc.names_path = path;
    return gmem_bank_open(context, &desc, bank, error);
}

static void close_named(gmem_bank *bank, gmem_file *file, edit_list *list) {
    gmem_bank_close(bank);
    gmem_file_close(file);
    edit_free(list);
}

/* A text of names goes before those in the file. */
static void test_name_texts(gmem_context *context) {
    static const char *const good[] = {"a\nb\nc\nd\nlast", "a\nb\nc\nd\nlast\n", "a\r\nb\r\nc\r\nd\r\nlast\r\n",
                                       ("\xef\xbb\xbf"
                                        "a\nb\nc\nd\nlast\n")};
    static const char *const bad[] = {"", "a\nb\nc\nd\n", "a\nb\nc\nd\ne\nf", "a\nb\nc\nd\ne\n\n", "a\nb\n\xff\nd\ne"};
    gmem_bank *bank = NULL;
    gmem_file *file = NULL;
    edit_list *list = NULL;
    gmem_error error;
    for (int i = 0; i < 4; i++) {
        CHECK_OK(with_names(context, good[i], NULL, &bank, &file, &list, &error));
        CHECK_TEXT(gmem_bank_name(bank, 0), "a");
        CHECK_TEXT(gmem_bank_name(bank, 4), "last");
        close_named(bank, file, list);
    }
    for (int i = 0; i < 5; i++) {
        bank = NULL;
        CHECK_STATUS(GMEM_E_NAMES, with_names(context, bad[i], NULL, &bank, &file, &list, &error));
        CHECK(bank == NULL);
        close_named(bank, file, list);
    }
    CHECK_OK(with_names(context, "a\n\nc\nd\n\n", NULL, &bank, &file, &list, &error));
    CHECK(gmem_bank_name(bank, 1) == NULL && gmem_bank_name(bank, 4) == NULL);
    CHECK_TEXT(gmem_bank_name(bank, 2), "c");
    CHECK_TEXT(gmem_bank_name(bank, 3), "d");
    close_named(bank, file, list);
}

static void test_name_files(gmem_context *context) {
    static const char path[] = "build/test_bank.names.txt";
    gmem_bank *bank = NULL;
    gmem_file *file = NULL;
    edit_list *list = NULL;
    gmem_error error;
    FILE *out = fopen(path, "wb");
    CHECK(out && fputs("eins\nzwei\ndrei\nvier\nf\xc3\xbcnf\n", out) >= 0 && fclose(out) == 0);
    CHECK_OK(with_names(context, NULL, path, &bank, &file, &list, &error));
    CHECK_TEXT(gmem_bank_name(bank, 4), "f\xc3\xbcnf");
    close_named(bank, file, list);
    bank = NULL;
    out = fopen(path, "wb");
    CHECK(out && fputs("eins\nzwei\n", out) >= 0 && fclose(out) == 0);
    CHECK_STATUS(GMEM_E_NAMES, with_names(context, NULL, path, &bank, &file, &list, &error));
    CHECK_TEXT(error.path, path);
    CHECK_CONTAINS(error.message, "2 names for 5 rows");
    close_named(bank, file, list);
    remove(path);
    CHECK_STATUS(GMEM_E_OPEN, with_names(context, NULL, path, &bank, &file, &list, &error));
    CHECK_TEXT(error.path, path);
    close_named(bank, file, list);
}

/* The rows of a file without names have none beside one that has. */
static void test_names_of_some(gmem_context *context) {
    static const char *const paths[3] = {"build/test_bank.1.safetensors", "build/test_bank.2.safetensors",
                                         "build/test_bank.1.safetensors"};
    for (int i = 0; i < 2; i++) {
        edit_list *list = native_bank(GMEM_F32, i == 0);
        edit_save(list, paths[i]);
        edit_free(list);
    }
    gmem_bank *bank = open_paths(context, paths, 3, NULL);
    int64_t row = -1;
    CHECK_INT(gmem_bank_rows(bank), 3 * ROWS);
    for (int64_t i = 0; i < 3 * ROWS; i++) {
        if (i / ROWS == 1)
            CHECK(gmem_bank_name(bank, i) == NULL);
        else
            CHECK_TEXT(gmem_bank_name(bank, i), row_names[i % ROWS]);
    }
    CHECK_OK(gmem_bank_find(bank, "dog", &row, NULL));
    CHECK_INT(row, 4);
    gmem_bank_close(bank);
    remove(paths[0]);
    remove(paths[1]);
}

static void test_find(gmem_context *context) {
    static const char *const paths[1] = {"tests/golden/bank_full.pth"};
    edit_list *list = native_bank(GMEM_F32, 1);
    gmem_file *file = NULL;
    gmem_bank *bank = open_list(context, list, &file), *nameless = open_paths(context, paths, 1, NULL);
    gmem_error error;
    int64_t row = -1;
    CHECK_OK(gmem_bank_find(bank, "CAT", &row, NULL));
    CHECK_INT(row, 0);
    CHECK_OK(gmem_bank_find(bank, "Grinning FACE", &row, NULL));
    CHECK_INT(row, 2);
    CHECK_OK(gmem_bank_find(bank, "caf\xc3\xa9", &row, NULL));
    CHECK_INT(row, 3);
    row = -1;
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "grining face", &row, &error));
    CHECK_CONTAINS(error.message, "nearest: \"grinning face\", ");
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "tabby", &row, &error));
    CHECK_CONTAINS(error.message, "nearest: \"tabby cat\", ");
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "caf\xc3\xa8", &row, &error));
    CHECK_CONTAINS(error.message, "no name \"caf\\xc3\\xa8\"");
    CHECK_CONTAINS(error.message, "nearest: \"caf\\xc3\\xa9\"");
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "ca", &row, &error));
    CHECK_CONTAINS(error.message, "nearest: \"Cat\", \"caf\\xc3\\xa9\", \"tabby cat\"");
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "", &row, &error));
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "nothing", &row, NULL));
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(nameless, "cat", &row, &error));
    CHECK_CONTAINS(error.message, "no names");
    CHECK_INT(row, -1);
    gmem_bank_close(bank);
    gmem_bank_close(nameless);
    gmem_file_close(file);
    edit_free(list);
}

/* Repeated names are offered once, and one name alone reads well. */
static void test_few_names(gmem_context *context) {
    gmem_bank *bank = NULL;
    gmem_file *file = NULL;
    edit_list *list = NULL;
    gmem_error error;
    int64_t row = -1;
    CHECK_OK(with_names(context, "red\nblue\nRed\nred\nblue", NULL, &bank, &file, &list, &error));
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "reed", &row, &error));
    CHECK_TEXT(error.message, "no name \"reed\" in the bank; nearest: \"red\", \"blue\"");
    CHECK_OK(gmem_bank_find(bank, "RED", &row, NULL));
    CHECK_INT(row, 0);
    close_named(bank, file, list);
    CHECK_OK(with_names(context, "\n\n\nred\n\n", NULL, &bank, &file, &list, &error));
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "x", &row, &error));
    CHECK_TEXT(error.message, "no name \"x\" in the bank; nearest: \"red\"");
    close_named(bank, file, list);
    CHECK_OK(with_names(context, "\n\n\n\n\n", NULL, &bank, &file, &list, &error));
    CHECK_STATUS(GMEM_E_NAME_UNKNOWN, gmem_bank_find(bank, "x", &row, &error));
    CHECK_TEXT(error.message, "no name \"x\": the bank has no names");
    close_named(bank, file, list);
}

/* mixing ---------------------------------------------------------------------------------------------------------- */

static void test_mix_recorded(gmem_context *context) {
    static const struct {
        gmem_mix_method method;
        const char *expected;
    } methods[] = {{GMEM_MIX_LINEAR, "linear"}, {GMEM_MIX_SPHERICAL, "spherical"}, {GMEM_MIX_CONCAT, "concat"}};
    gmem_file *io = golden_open(context, "bank.io.safetensors");
    int64_t width = 0, count = 0;
    float *a = golden_f32(io, "feat_a", &width), *b = golden_f32(io, "feat_b", NULL);
    float *alphas = golden_f32(io, "alphas", &count), *out = zeros(width);
    for (int m = 0; m < 3; m++) {
        float *expected = golden_f32(io, methods[m].expected, NULL);
        for (int64_t i = 0; i < count; i++) {
            CHECK_OK(gmem_mix(methods[m].method, a, b, width, (double)alphas[i], NULL, 0, out, NULL));
            CHECK_CLOSE(methods[m].expected, out, expected + i * width, width, BAR);
        }
        free(expected);
    }
    gmem_file_close(io);
    free(a);
    free(b);
    free(alphas);
    free(out);
}

static double norm(const float *x, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum);
}

static void test_mix_edges(void) {
    static const float a[4] = {0.6f, 0.8f, 0, 0}, opposite[4] = {-0.6f, -0.8f, 0, 0}, zero[4] = {0, 0, 0, 0};
    static const float close[4] = {0.6f, 0.8f, 1e-7f, 0}, high[4] = {0, 0, 1, 0};
    float out[4], nan[4] = {0, (float)NAN, 0, 0};
    for (double alpha = 0; alpha <= 1; alpha += 0.125) { /* identical inputs give the input back */
        CHECK_OK(gmem_mix(GMEM_MIX_SPHERICAL, a, a, 4, alpha, NULL, 0, out, NULL));
        CHECK_CLOSE("identical", out, a, 4, 1e-7);
        CHECK_OK(gmem_mix(GMEM_MIX_SPHERICAL, a, close, 4, alpha, NULL, 0, out, NULL));
        CHECK_CLOSE("nearly identical", out, a, 4, 2e-7);
        CHECK_OK(gmem_mix(GMEM_MIX_LINEAR, a, a, 4, alpha, NULL, 0, out, NULL));
        CHECK_CLOSE("identical", out, a, 4, 1e-7);
    }
    CHECK_OK(gmem_mix(GMEM_MIX_SPHERICAL, a, opposite, 4, 0, NULL, 0, out, NULL));
    CHECK_CLOSE("the one end", out, a, 4, 1e-7);
    CHECK_OK(gmem_mix(GMEM_MIX_SPHERICAL, a, opposite, 4, 1, NULL, 0, out, NULL));
    CHECK_CLOSE("the other end", out, opposite, 4, 1e-7);
    memcpy(out, a, sizeof out);
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_SPHERICAL, a, opposite, 4, 0.25, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_LINEAR, a, opposite, 4, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_LINEAR, a, zero, 4, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_LINEAR, nan, a, 4, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_CONCAT, high, a, 4, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_LINEAR, a, a, 4, -0.1, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_LINEAR, a, a, 4, 1.1, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_LINEAR, a, a, 4, NAN, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_LINEAR, a, a, 0, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix((gmem_mix_method)9, a, a, 4, 0.5, NULL, 0, out, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_MASK, a, a, 4, 0.5, NULL, 0, out, NULL));
    CHECK(memcmp(out, a, sizeof out) == 0);
    CHECK_OK(gmem_mix(GMEM_MIX_SPHERICAL, a, high, 4, 0.5, NULL, 0, out, NULL));
    CHECK(fabs(norm(out, 4) - 1) < 1e-6 && fabs((double)out[2] - sqrt(0.5)) < 1e-6);
    CHECK_OK(gmem_mix(GMEM_MIX_LINEAR, out, high, 4, 1, NULL, 0, out, NULL)); /* in place */
    CHECK(out[2] == 1);
}

static void test_mask(void) {
    enum { COUNT = 1000 };
    float a[COUNT], b[COUNT], out[COUNT], again[COUNT];
    gmem_rng rng;
    for (int i = 0; i < COUNT; i++) {
        a[i] = 1 / sqrtf(COUNT);
        b[i] = -a[i];
    }
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 5);
    CHECK_OK(gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.25, &rng, 3, out, NULL));
    int from_b = 0;
    for (int i = 0; i < COUNT; i++) {
        from_b += out[i] < 0;
        CHECK(fabs(fabs((double)out[i]) - (double)a[i]) < 1e-6);
    }
    CHECK(from_b > 200 && from_b < 300); /* 250 +- 3.6 sigma */
    CHECK_OK(gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.25, &rng, 3, again, NULL));
    CHECK(memcmp(out, again, sizeof out) == 0);
    CHECK_OK(gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.25, &rng, 4, again, NULL));
    CHECK(memcmp(out, again, sizeof out) != 0);
    CHECK_OK(gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0, &rng, 4, again, NULL));
    CHECK_CLOSE("mask at 0", again, a, COUNT, 1e-6);
    CHECK_OK(gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 1, &rng, 4, again, NULL));
    CHECK_CLOSE("mask at 1", again, b, COUNT, 1e-6);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.5, &rng, 0, a, NULL));
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    a[0] = b[1] = 1;
    a[2] = b[2] = 1e-13f; /* shared, but nothing were left if the mask hid the others */
    memcpy(again, out, sizeof out);
    for (int picture = 0; picture < 16; picture++) {
        CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.5, &rng, picture, out, NULL));
        CHECK(memcmp(out, again, sizeof out) == 0);
    }
    memset(b, 0, sizeof b);
    for (int i = 1; i < COUNT; i++)
        b[i] = -1 / sqrtf(COUNT);
    CHECK_STATUS(GMEM_E_ROW_ZERO, gmem_mix(GMEM_MIX_MASK, a, b, COUNT, 0.5, &rng, 0, out, NULL));
    CHECK(memcmp(out, again, sizeof out) == 0);
}

/* the first version's choice of rows ------------------------------------------------------------------------------ */

static void test_choose_row(gmem_context *context) {
    gmem_file *io = golden_open(context, "gmem_sit.io.safetensors");
    int64_t rows = 0, count = 0, total = 0, row = -1;
    int64_t *frequencies = golden_i64(io, "memoryfreq", &rows), *expected = golden_i64(io, "row", &count);
    float *z = golden_f32(io, "z", &total);
    for (int64_t i = 0; i < count; i++) {
        CHECK_OK(gmem_choose_row(frequencies, rows, z + i * (total / count), total / count, &row, NULL));
        CHECK_INT(row, expected[i]);
    }
    static const int64_t counts[5] = {0, 3, 0, 1, 0};
    static const int64_t none[2] = {0, 0}, negative[2] = {2, -1};
    static const float extremes[3] = {-40, 0, 40};
    static const int64_t chosen[3] = {1, 1, 3};
    for (int i = 0; i < 3; i++) { /* rows of no frequency are never chosen */
        CHECK_OK(gmem_choose_row(counts, 5, extremes + i, 1, &row, NULL));
        CHECK_INT(row, chosen[i]);
    }
    z[0] = (float)NAN;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_choose_row(counts, 5, z, 4, &row, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_choose_row(none, 2, extremes, 1, &row, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_choose_row(negative, 2, extremes, 1, &row, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_choose_row(counts, 0, extremes, 1, &row, NULL));
    CHECK_INT(row, 3);
    gmem_file_close(io);
    free(frequencies);
    free(expected);
    free(z);
}

/* failing allocations --------------------------------------------------------------------------------------------- */

typedef struct bank_files {
    const char *const *paths;
    int count;
} bank_files;

static gmem_status open_and_use(gmem_context *context, void *user) {
    const bank_files *files = (const bank_files *)user;
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    float out[48];
    memset(&desc, 0, sizeof desc);
    desc.paths = files->paths;
    desc.path_count = files->count;
    gmem_status status = gmem_bank_open(context, &desc, &bank, NULL);
    if (status == GMEM_OK) status = gmem_bank_snippet(bank, 3, out, NULL);
    if (status == GMEM_OK) status = gmem_bank_interpolate(bank, 0, 1, 0.5, out, NULL);
    if (status == GMEM_OK && gmem_bank_get_kind(bank) == GMEM_BANK_DECOMPOSED)
        status = gmem_bank_project(bank, out, out, NULL);
    gmem_bank_close(bank);
    return status;
}

static void test_allocations(void) {
    static const char *const recorded[2] = {"tests/golden/bank_dmd16.pth", "tests/golden/bank_full.pth"};
    static const char *const made[2] = {"build/test_bank.safetensors", "build/test_bank.safetensors"};
    bank_files recorded_files = {recorded, 2}, made_files = {made, 2};
    edit_list *list = native_bank(GMEM_I8, 1);
    edit_save(list, made[0]);
    edit_free(list);
    check_failing_allocations(open_and_use, &recorded_files, 5);
    check_failing_allocations(open_and_use, &made_files, 5);
    remove(made[0]);
}

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    test_full(context);
    test_decomposed(context);
    test_files(context);
    test_native(context);
    test_memorybank(context);
    test_memorybank_int8(context);
    test_zero_row(context);
    test_malformed(context);
    test_malformed_names(context);
    test_malformed_decomposed(context);
    test_arguments(context);
    test_name_texts(context);
    test_name_files(context);
    test_names_of_some(context);
    test_find(context);
    test_few_names(context);
    test_mix_recorded(context);
    test_mix_edges();
    test_mask();
    test_choose_row(context);
    test_allocations();
    gmem_context_destroy(context);
    return check_report();
}
