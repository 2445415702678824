/* safetensors and what all formats share: types, the selection, saving, refusals by rule, broken files of every kind.
 * The numbers of tensors are test_tensor.c's, the system's files test_io.c's, torch's formats test_torch.c's. */
#include "check.h"
#include "failing.h"
#include "golden.h"
#include "torch_bytes.h"

#include "../src/file.h"

#include <locale.h>

static char target[600]; /* beside this program */

/* A safetensors file in memory. A '^' in the header marks a place and is left out; `mark` receives its offset. */
typedef struct made {
    unsigned char *memory;
    size_t bytes;
    int64_t mark;
} made;

static made make_file(const char *header, size_t data_bytes) {
    made file = {NULL, 8, -1};
    file.memory = (unsigned char *)calloc(strlen(header) + data_bytes + 9, 1);
    if (!file.memory) exit(1);
    for (const char *c = header; *c; c++) {
        if (*c == '^')
            file.mark = (int64_t)file.bytes;
        else
            file.memory[file.bytes++] = (unsigned char)*c;
    }
    for (int i = 0; i < 8; i++)
        file.memory[i] = (unsigned char)((file.bytes - 8) >> (8 * i));
    file.bytes += data_bytes;
    return file;
}

static gmem_status open_made(gmem_context *context, const made *file, const char *key, gmem_file **out,
                             gmem_error *error) {
    return gmem_file_open_memory(context, "made", file->memory, file->bytes, key, out, error);
}

static volatile int sink; /* what is read must not be optimised away */

/* Every element of every tensor, in all three ways. */
static void read_everything(const gmem_file *file) {
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        for (int64_t k = 0; k < gmem_tensor_count(tensor); k++) {
            float real;
            int64_t integer;
            unsigned char raw[8];
            gmem_tensor_read_f32(tensor, k, 1, &real);
            gmem_tensor_read_i64(tensor, k, 1, &integer);
            gmem_tensor_read(tensor, k, 1, raw);
            sink = (real > 0) + (integer > 0) + raw[0];
        }
    }
}

/* reading --------------------------------------------------------------------------------------------------------- */

static void test_container(gmem_context *context) {
    static const struct {
        const char *name;
        gmem_type type;
        int rank;
        int64_t shape[2];
    } expected[] = {
        {"f32", GMEM_F32, 2, {3, 5}},      {"f16", GMEM_F16, 2, {4, 7}},        {"bf16", GMEM_BF16, 2, {2, 9}},
        {"f64", GMEM_F64, 1, {3, 0}},      {"i64", GMEM_I64, 1, {11, 0}},       {"i32", GMEM_I32, 1, {5, 0}},
        {"u8", GMEM_U8, 1, {6, 0}},        {"boolean", GMEM_BOOL, 1, {3, 0}},   {"scalar", GMEM_F32, 0, {0, 0}},
        {"view_t", GMEM_F32, 2, {10, 6}},  {"view_slice", GMEM_F32, 2, {3, 2}}, {"param", GMEM_F32, 2, {2, 2}},
        {"nested.t", GMEM_F32, 1, {2, 0}},
    };
    gmem_file *file = golden_open(context, "container.expect.safetensors");
    CHECK_INT(gmem_file_tensor_count(file), 13);
    CHECK_INT(gmem_file_format(file), GMEM_SAFETENSORS);
    CHECK_INT(gmem_file_bytes(file), 1401);
    CHECK_TEXT(gmem_file_key(file), "");
    for (int i = 0; i < 13; i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        CHECK_TEXT(tensor->name, expected[i].name);
        CHECK_INT(tensor->type, expected[i].type);
        CHECK_INT(tensor->rank, expected[i].rank);
        for (int k = 0; k < tensor->rank && k < expected[i].rank; k++)
            CHECK_INT(tensor->shape[k], expected[i].shape[k]);
        CHECK(gmem_file_find(file, expected[i].name) == tensor);
        CHECK(gmem_file_find_any(file, expected[i].name) != NULL);
    }
    CHECK(gmem_file_find(file, "f") == NULL && gmem_file_find(file, "") == NULL && gmem_file_find(file, "zz") == NULL);
    CHECK(gmem_file_tensor(file, -1) == NULL && gmem_file_tensor(file, 13) == NULL);
    CHECK_INT(gmem_file_foreign_count(file), 0);
    gmem_file_close(file);
    gmem_file_close(NULL);
}

static void test_metadata(gmem_context *context) {
    made made_file = make_file("{\"__metadata__\":{\"config\":\"{\\\"num_heads\\\":6,\\\"model\\\":{\\\"depth\\\":[1,"
                               "2.5e1],\\\"rope\\\":true,\\\"name\\\":\\\"x\\\",\\\"none\\\":null}}\","
                               "\"empty\":\"\",\"text\":\"\\u00e9\\ud83d\\ude00\\n\"},"
                               "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                               1);
    gmem_file *file = NULL;
    double number = 0;
    const char *key, *text;
    CHECK_OK(open_made(context, &made_file, NULL, &file, NULL));
    CHECK(gmem_file_number(file, "config.num_heads", &number) && number == 6);
    CHECK(gmem_file_number(file, "config.model.depth.1", &number) && number == 25);
    CHECK(gmem_file_number(file, "config.model.rope", &number) && number == 1);
    CHECK(!gmem_file_number(file, "config.model.none", &number));
    CHECK(!gmem_file_number(file, "config.model.name", &number));
    CHECK_TEXT(gmem_file_string(file, "config.model.name"), "x");
    CHECK_TEXT(gmem_file_metadata(file, "text"), "\xc3\xa9\xf0\x9f\x98\x80\n");
    CHECK_TEXT(gmem_file_metadata(file, "empty"), "");
    CHECK(gmem_file_metadata(file, "nothing") == NULL);
    CHECK_INT(gmem_file_metadata_count(file), 3);
    gmem_file_metadata_at(file, 1, &key, &text);
    CHECK_TEXT(key, "empty");
    for (int64_t beyond = -1; beyond <= 3; beyond += 4) {
        gmem_file_metadata_at(file, beyond, &key, &text);
        CHECK(key == NULL && text == NULL);
    }
    int64_t cursor = 0, numbers = 0, strings = 0;
    while (gmem_file_next_value(file, &cursor, &key, &number, &text)) {
        numbers += text == NULL;
        strings += text != NULL;
    }
    CHECK(numbers == 4 && strings == 1);
    gmem_file_close(file);
    free(made_file.memory);
}

/* `config` is free text: what is no JSON object is no error. */
static void test_other_config(gmem_context *context) {
    static const char *const configs[] = {"", "vit", "{", "[1]", "{\\\"a\\\":1,\\\"a\\\":2}"};
    for (int i = 0; i < 5; i++) {
        char header[256];
        gmem_file *file = NULL;
        snprintf(header, sizeof header,
                 "{\"__metadata__\":{\"config\":\"%s\"},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
                 configs[i]);
        made made_file = make_file(header, 1);
        CHECK_OK(open_made(context, &made_file, NULL, &file, NULL));
        gmem_file_close(file);
        free(made_file.memory);
    }
}

/* refusals by rule ------------------------------------------------------------------------------------------------ */

#define T(name, offsets) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":" offsets "}"
#define ENTRY(fields)    "{\"a\":" fields "}"
#define DTYPE(type)      "\"dtype\":" type
#define SHAPE(shape)     "\"shape\":" shape
#define OFFSETS(offsets) "\"data_offsets\":" offsets
#define FIELDS(t, s, o)  "{" DTYPE(t) "," SHAPE(s) "," OFFSETS(o) "}"
#define OPEN_8           "[[[[[[[["

/* The header, with '^' at the offset that the refusal must name ('$': the file's end, '#': its last byte), and how many
 * bytes follow. */
static const struct {
    gmem_status code;
    const char *header;
    int data;
} refusals[] = {
    /* JSON */
    {GMEM_E_JSON, "^[]", 0},
    {GMEM_E_JSON, "^ {}", 0},
    {GMEM_E_JSON, "{ ^", 0},
    {GMEM_E_JSON, "{^,}", 0},
    {GMEM_E_JSON, "{" T("a", "[0,2]") ",^}", 2},
    {GMEM_E_JSON, "{" T("a", "[0,2,^]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[0,2^") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^00,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^-,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^1.,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^1e,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^+1,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[^NaN,2]") "}", 2},
    {GMEM_E_JSON, "{" T("a", "[0 ^2]") "}", 2},
    {GMEM_E_JSON, "{\"a\" ^1}", 0},
    {GMEM_E_JSON, "{^a:1}", 0},
    {GMEM_E_JSON, "{\"a\":^tru}", 0},
    {GMEM_E_JSON, "{\"a\":true^x}", 0},
    {GMEM_E_JSON, "{^\"a", 0},
    {GMEM_E_JSON, "{\"a^\tb\":1}", 0},
    {GMEM_E_JSON, "{\"^\\x41\":1}", 0},
    {GMEM_E_JSON, "{\"^\\u12g4\":1}", 0},
    {GMEM_E_JSON, "{\"^\\ud800\":1}", 0},
    {GMEM_E_JSON, "{\"^\\udc00\":1}", 0},
    {GMEM_E_JSON, "{\"^\\ud800\\u0041\":1}", 0},
    {GMEM_E_JSON, "{\"^\\u0000\":1}", 0},
    {GMEM_E_JSON, "{\"a^\x80\":1}", 0},
    {GMEM_E_JSON, "{\"^\xc0\xaf\":1}", 0},
    {GMEM_E_JSON, "{\"^\xe0\x80\xaf\":1}", 0},
    {GMEM_E_JSON, "{\"^\xed\xa0\x80\":1}", 0},
    {GMEM_E_JSON, "{\"^\xf4\x90\x80\x80\":1}", 0},
    {GMEM_E_JSON, "{\"^\xf0\x9f\x98\":1}", 0},
    {GMEM_E_JSON_DUPLICATE, "{" T("a", "[0,2]") ",^\"a\":1}", 2},
    {GMEM_E_JSON_DUPLICATE, "{" T("a", "[0,2]") ",^\"\\u0061\":1}", 2},
    {GMEM_E_JSON_DUPLICATE, "{\"a\":{\"dtype\":1,\"shape\":2,^\"dtype\":1}}", 0},
    {GMEM_E_JSON_DUPLICATE, "{\"__metadata__\":{\"b\":\"\",\"a\":\"\",^\"b\":\"\",\"a\":\"\"}}", 0},
    {GMEM_E_LIMIT, "{\"a\":" OPEN_8 OPEN_8 OPEN_8 OPEN_8 OPEN_8 OPEN_8 OPEN_8 "[[[[[[[^[", 0},
    /* what follows the JSON */
    {GMEM_E_ST_TRAILING, "{" T("a", "[0,2]") "}  ^x", 2},
    {GMEM_E_ST_TRAILING, "{" T("a", "[0,2]") "}^\n", 2},
    {GMEM_E_ST_TRAILING, "{" T("a", "[0,2]") "}^{}", 2},
    /* metadata */
    {GMEM_E_ST_METADATA, "{\"__metadata__\":^[]}", 0},
    {GMEM_E_ST_METADATA, "{\"__metadata__\":^null}", 0},
    {GMEM_E_ST_METADATA, "{\"__metadata__\":{\"a\":^1}}", 0},
    {GMEM_E_ST_METADATA, "{\"__metadata__\":{\"a\":\"\",\"b\":^{}}}", 0},
    /* entries */
    {GMEM_E_ST_ENTRY, ENTRY("^1"), 0},
    {GMEM_E_ST_ENTRY, ENTRY("^{" DTYPE("\"U8\"") "," SHAPE("[2]") "}"), 2},
    {GMEM_E_ST_ENTRY, ENTRY("^{" DTYPE("\"U8\"") "," OFFSETS("[0,2]") "}"), 2},
    {GMEM_E_ST_ENTRY, ENTRY("^{" SHAPE("[2]") "," OFFSETS("[0,2]") "}"), 2},
    {GMEM_E_ST_ENTRY, ENTRY("{" DTYPE("\"U8\"") "," SHAPE("[2]") "," OFFSETS("[0,2]") ",^\"x\":1}"), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("^1", "[2]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "^2", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[^-2]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[^2.0]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[^2e0]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[^\"2\"]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[^9223372036854775808]", "[0,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[2]", "^0")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[2]", "^[0]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[2]", "^[0,2,2]")), 2},
    {GMEM_E_ST_ENTRY, ENTRY(FIELDS("\"U8\"", "[2]", "[0,^null]")), 2},
    {GMEM_E_ST_TYPE, ENTRY(FIELDS("^\"U16\"", "[1]", "[0,2]")), 2},
    {GMEM_E_ST_TYPE, ENTRY(FIELDS("^\"f32\"", "[1]", "[0,4]")), 4},
    {GMEM_E_ST_TYPE, ENTRY(FIELDS("^\"\"", "[1]", "[0,4]")), 4},
    {GMEM_E_LIMIT, ENTRY(FIELDS("\"U8\"", "[1,1,1,1,1,1,1,1,^1]", "[0,1]")), 1},
    /* offsets and sizes */
    {GMEM_E_ST_OFFSETS, ENTRY(FIELDS("\"U8\"", "[2]", "^[2,0]")), 2},
    {GMEM_E_ST_OFFSETS, ENTRY(FIELDS("\"U8\"", "[1]", "^[1,2]")), 2},
    {GMEM_E_ST_OFFSETS, "{" T("a", "[0,2]") "," T("b", "^[1,3]") "}", 3},
    {GMEM_E_ST_OFFSETS, "{" T("a", "[0,2]") "," T("b", "^[0,2]") "}", 2},
    {GMEM_E_ST_OFFSETS, "{" T("a", "^[3,5]") "," T("b", "[0,2]") "}", 5},
    {GMEM_E_ST_OFFSETS, "{" T("a", "[0,2]") "}#", 3},
    {GMEM_E_ST_OFFSETS, "{}^", 1},
    {GMEM_E_ST_SIZE, ENTRY(FIELDS("\"U8\"", "[3]", "^[0,2]")), 2},
    {GMEM_E_ST_SIZE, ENTRY(FIELDS("\"U8\"", "[1]", "^[0,2]")), 2},
    {GMEM_E_ST_SIZE, ENTRY(FIELDS("\"F32\"", "[]", "^[0,2]")), 2},
    {GMEM_E_ST_SIZE, ENTRY(FIELDS("\"I64\"", "[2,0]", "^[0,2]")), 2},
    {GMEM_E_OVERFLOW, ENTRY(FIELDS("\"F64\"", "[4294967296,4294967296]", "^[0,2]")), 2},
    {GMEM_E_OVERFLOW, ENTRY(FIELDS("\"U8\"", "[9223372036854775807,2]", "^[0,2]")), 2},
    {GMEM_E_OVERFLOW, ENTRY(FIELDS("\"U8\"", "[0,4294967296,4294967296]", "^[0,0]")), 0},
    {GMEM_E_TRUNCATED, ENTRY(FIELDS("\"U8\"", "[3]", "[0,3]")) "$", 2},
    {GMEM_E_TRUNCATED, ENTRY(FIELDS("\"U8\"", "[9223372036854775807]", "[0,9223372036854775807]")) "$", 2},
    /* files without tensors, or with names that collide */
    {GMEM_E_NO_TENSORS, "{}", 0},
    {GMEM_E_NO_TENSORS, "{\"__metadata__\":{\"a\":\"b\"}}", 0},
    {GMEM_E_NAME, "{" T("module.a", "[0,2]") "," T("a", "[2,4]") "}", 4},
    {GMEM_E_NAME, "{" T("x._orig_mod.a", "[0,2]") "," T("module._orig_mod.x.a", "[2,4]") "}", 4},
};

static void test_refusals(gmem_context *context) {
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        gmem_file *file = NULL;
        gmem_error error;
        char header[512];
        snprintf(header, sizeof header, "%s", refusals[i].header);
        char *end = strpbrk(header, "$#");
        int last = end && *end == '#';
        if (end) *end = 0;
        made bad = make_file(header, (size_t)refusals[i].data);
        int64_t offset = end ? (int64_t)bad.bytes - last : bad.mark;
        memset(&error, 0, sizeof error);
        int right = CHECK_STATUS(refusals[i].code, open_made(context, &bad, NULL, &file, &error));
        right &= CHECK_INT(error.offset, offset);
        right &= CHECK_TEXT(error.path, "made");
        if (!right) printf("  header: %s\n  message: %s\n", refusals[i].header, error.message);
        gmem_file_close(file);
        free(bad.memory);
    }
}

static void test_header_sizes(gmem_context *context) {
    static const struct {
        gmem_status code;
        unsigned char length[8];
        int64_t offset;
    } sizes[] = {
        {GMEM_E_ST_HEADER, {0, 0, 0, 0, 0, 0, 0, 0}, 0},       {GMEM_E_ST_HEADER, {1, 0, 0, 0, 0, 0, 0, 0}, 0},
        {GMEM_E_ST_HEADER, {1, 0xe1, 0xf5, 5, 0, 0, 0, 0}, 0}, /* 100,000,001 */
        {GMEM_E_ST_HEADER, {2, 0, 0, 0, 0, 0, 0, 0x80}, 0},    {GMEM_E_TRUNCATED, {0, 0xe1, 0xf5, 5, 0, 0, 0, 0}, 10},
        {GMEM_E_TRUNCATED, {3, 0, 0, 0, 0, 0, 0, 0}, 10},      {GMEM_E_NO_TENSORS, {2, 0, 0, 0, 0, 0, 0, 0}, -1},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char data[10];
        gmem_error error;
        gmem_file *file = NULL;
        memcpy(data, sizes[i].length, 8);
        memcpy(data + 8, "{}", 2);
        CHECK_STATUS(sizes[i].code, gmem_file_open_memory(context, "x", data, 10, NULL, &file, &error));
        CHECK_INT(error.offset, sizes[i].offset);
    }
}

/* Header lengths that begin like a pickle or like nothing. */
static void test_detection(gmem_context *context) {
    char header[1024];
    gmem_file *file = NULL;
    gmem_error error;
    snprintf(header, sizeof header, "%-640s", "{" T("a", "[0,2]") "}"); /* its length is 0x280: 80 02, a pickle's */
    made like_pickle = make_file(header, 2);
    CHECK(like_pickle.memory[0] == 0x80 && like_pickle.memory[1] == 2);
    CHECK_OK(open_made(context, &like_pickle, NULL, &file, NULL));
    CHECK_INT(gmem_file_format(file), GMEM_SAFETENSORS);
    gmem_file_close(file);
    free(like_pickle.memory);
    CHECK_STATUS(GMEM_E_FORMAT, gmem_file_open_memory(context, "x", "\x89PNG\r\n\x1a\n....", 12, NULL, &file, &error));
    CHECK_INT(error.offset, 0);
    CHECK_STATUS(GMEM_E_JSON, gmem_file_open_memory(context, "x", "\4\0\0\0\0\0\0\0....", 12, NULL, &file, &error));
}

/* the selection --------------------------------------------------------------------------------------------------- */

/* What opening with `key` selects: the key, and the names joined by spaces. */
static void check_selection(gmem_context *context, const made *made_file, const char *key, const char *selected,
                            const char *names) {
    char found[512] = "";
    gmem_file *file = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    if (!CHECK_OK(open_made(context, made_file, key, &file, &error))) {
        printf("  %s\n", error.message);
        return;
    }
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        size_t used = strlen(found);
        snprintf(found + used, sizeof found - used, i ? " %s" : "%s", gmem_file_tensor(file, i)->name);
        CHECK(gmem_file_find(file, gmem_file_tensor(file, i)->name) == gmem_file_tensor(file, i));
    }
    CHECK_TEXT(found, names);
    CHECK_TEXT(gmem_file_key(file), selected);
    gmem_file_close(file);
}

static void test_selection(gmem_context *context) {
    made all = make_file(
        "{" T("model.a", "[0,2]") "," T("ema.module.b", "[2,4]") "," T("ema._orig_mod.c.module.d", "[4,6]") "}", 6);
    made some = make_file(
        "{" T("model.a", "[0,2]") "," T("models", "[2,4]") "," T("module.x._orig_mod.y._orig_mod.z", "[4,6]") "}", 6);
    gmem_file *file = NULL;
    gmem_error error;
    check_selection(context, &all, NULL, "ema", "b c.module.d");
    check_selection(context, &all, "model", "model", "a");
    check_selection(context, &all, ".", "", "model.a ema.module.b ema.c.module.d");
    check_selection(context, &all, "", "", "model.a ema.module.b ema.c.module.d");
    check_selection(context, &all, "ema.module", "ema.module", "b");
    check_selection(context, &all, "model.a", "model.a", "tensor");
    check_selection(context, &some, NULL, "", "model.a models x.y.z"); /* no dictionaries: names with dots */
    check_selection(context, &some, "model", "model", "a");
    CHECK_STATUS(GMEM_E_KEY, open_made(context, &all, "mode", &file, &error));
    CHECK_CONTAINS(error.message, "no key mode; there are: model, ema");
    CHECK_STATUS(GMEM_E_KEY, open_made(context, &all, "state_dict", &file, &error));
    CHECK(file == NULL);
    free(all.memory);
    free(some.memory);
}

/* Dictionaries of torch files are real ones: names with dots in them are not taken for such. */
#define P_EMA     "X\3\0\0\0ema"
#define P_MODEL   "X\5\0\0\0model"
#define P_MODULE  "X\6\0\0\0module"
#define P_NETWORK "X\7\0\0\0network"
#define P_STATE   "X\12\0\0\0state_dict"
#define P_MODEL_A "X\7\0\0\0model.a"
#define P_DICT(x) "}(" x "u"
#define P_A       P_DICT(P_TEXT1("a") P_TENSOR)
#define P_B       P_DICT(P_TEXT1("b") P_TENSOR)
#define P_FOREIGN "cmy\nThing\n)R"
#define PICKLE(x) "\x80\2" P_DICT(x) ".", sizeof("\x80\2" P_DICT(x) ".") - 1

static void test_torch_selection(gmem_context *context) {
    static const struct {
        const char *pickle;
        size_t size;
        const char *key, *selected, *names;
    } cases[] = {
        {PICKLE(P_MODEL P_A P_EMA P_DICT(P_MODULE P_B)), NULL, "ema", "b"},
        {PICKLE(P_MODEL P_A P_EMA "}"), NULL, "model", "a"},
        {PICKLE(P_MODEL P_A P_EMA P_DICT(P_TEXT1("n") "K\1")), NULL, "model", "a"},
        {PICKLE(P_MODEL P_A P_EMA P_TENSOR), NULL, "model", "a"},
        {PICKLE(P_MODEL P_A P_EMA P_FOREIGN), "model", "model", "a"},
        {PICKLE(P_NETWORK P_A P_STATE P_B), NULL, "state_dict", "b"},
        {PICKLE(P_NETWORK P_A P_TEXT1("x") P_TENSOR), NULL, "network", "a"},
        {PICKLE(P_TEXT1("x") P_A P_TEXT1("y") P_TENSOR), NULL, "", "x.a y"},
        {PICKLE(P_MODEL_A P_TENSOR P_TEXT1("b") P_TENSOR), NULL, "", "model.a b"},
        {PICKLE(P_MODEL_A P_TENSOR), NULL, "", "model.a"},
        {PICKLE(P_MODEL_A P_TENSOR), "model", "model", "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zip_image zip;
        torch_zip(&zip, cases[i].pickle, cases[i].size);
        made file = {zip.file.data, zip.file.size, -1};
        check_selection(context, &file, cases[i].key, cases[i].selected, cases[i].names);
        bytes_free(&zip.file);
    }
}

/* What only the file's own code could build: harmless where it is not needed, named where it is. */
static void test_foreign(gmem_context *context) {
    static const char ema_itself[] = "\x80\2" P_DICT(P_MODEL P_A P_EMA P_FOREIGN) ".";
    static const char inside[] = "\x80\2" P_DICT(P_EMA P_DICT(P_TEXT1("a") P_TENSOR P_TEXT1("f") P_FOREIGN)) ".";
    static const int64_t shape[2] = {2, 3};
    const gmem_tensor *tensor = NULL;
    const char *key, *global;
    gmem_file *file = NULL;
    gmem_error error;
    zip_image zip;
    int64_t cursor = 0;
    torch_zip(&zip, ema_itself, sizeof ema_itself - 1);
    CHECK_STATUS(GMEM_E_FOREIGN,
                 gmem_file_open_memory(context, "x", zip.file.data, zip.file.size, NULL, &file, &error));
    CHECK_CONTAINS(error.message, "ema: only the file's own code could build it (my.Thing)");
    bytes_free(&zip.file);
    torch_zip(&zip, inside, sizeof inside - 1);
    CHECK_OK(gmem_file_open_memory(context, "x", zip.file.data, zip.file.size, NULL, &file, &error));
    CHECK_OK(gmem__need(file, "a", 2, shape, &tensor, &error));
    CHECK_STATUS(GMEM_E_FOREIGN, gmem__need(file, "f", 2, shape, &tensor, &error));
    CHECK_TEXT(error.message, "f: only the file's own code could build it (my.Thing), and none is run");
    CHECK_STATUS(GMEM_E_FOREIGN, gmem__need(file, "f.weight", 2, shape, &tensor, &error));
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, gmem__need(file, "fa", 2, shape, &tensor, &error));
    CHECK(gmem_file_next_foreign(file, &cursor, &key, &global));
    CHECK_TEXT(key, "ema.f");
    CHECK_TEXT(global, "my.Thing");
    CHECK(!gmem_file_next_foreign(file, &cursor, &key, &global));
    gmem_file_close(file);
    bytes_free(&zip.file);
}

/* needed tensors -------------------------------------------------------------------------------------------------- */

static void test_need(gmem_context *context) {
    made made_file = make_file("{\"w\":{\"dtype\":\"F16\",\"shape\":[1,2,3],\"data_offsets\":[0,12]},"
                               "\"n\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[12,20]},"
                               "\"q\":{\"dtype\":\"I8\",\"shape\":[2,2],\"data_offsets\":[20,24]},"
                               "\"r\":{\"dtype\":\"I8\",\"shape\":[2,2],\"data_offsets\":[24,28]},"
                               "\"r.scale\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[28,36]}}",
                               36);
    static const int64_t any[3] = {1, -1, 3}, other[3] = {1, 1024, 3}, two[2] = {2, 2}, one[1] = {1};
    gmem_file *file = NULL;
    const gmem_tensor *tensor = NULL;
    gmem_error error;
    CHECK_OK(open_made(context, &made_file, NULL, &file, NULL));
    CHECK_OK(gmem__need(file, "w", 3, any, &tensor, &error));
    CHECK(tensor == gmem_file_find(file, "w"));
    CHECK_OK(gmem__need(file, "r", 2, two, &tensor, &error));
    CHECK_STATUS(GMEM_E_SHAPE, gmem__need(file, "w", 3, other, &tensor, &error));
    CHECK_TEXT(error.message, "w: expected 1 x 1024 x 3, found 1 x 2 x 3");
    CHECK_TEXT(error.path, "made");
    CHECK_STATUS(GMEM_E_SHAPE, gmem__need(file, "w", 2, two, &tensor, &error));
    CHECK_TEXT(error.message, "w: expected 2 x 2, found 1 x 2 x 3");
    CHECK_STATUS(GMEM_E_MISSING_TENSOR, gmem__need(file, "x\x1b", 1, one, &tensor, &error));
    CHECK_TEXT(error.message, "x\\x1b: missing");
    CHECK_STATUS(GMEM_E_TYPE, gmem__need(file, "n", 1, one, &tensor, &error));
    CHECK_TEXT(error.message, "n: expected floating point, found I64");
    CHECK_STATUS(GMEM_E_TYPE, gmem__need(file, "q", 2, two, &tensor, &error));
    CHECK_CONTAINS(error.message, "q.scale");
    gmem_file_close(file);
    free(made_file.memory);
}

/* saving ---------------------------------------------------------------------------------------------------------- */

static void check_same(const gmem_file *a, const gmem_file *b) {
    unsigned char x[1024], y[1024];
    CHECK_INT(gmem_file_tensor_count(a), gmem_file_tensor_count(b));
    for (int64_t i = 0; i < gmem_file_tensor_count(a); i++) {
        const gmem_tensor *from = gmem_file_tensor(a, i), *to = gmem_file_tensor(b, i);
        int64_t count = gmem_tensor_count(from), size = count * (int64_t)gmem_type_bytes(from->type);
        CHECK_TEXT(to->name, from->name);
        CHECK(to->type == from->type && to->rank == from->rank);
        CHECK(memcmp(to->shape, from->shape, sizeof from->shape) == 0 && size <= 1024);
        gmem_tensor_read(from, 0, count, x);
        gmem_tensor_read(to, 0, count, y);
        CHECK(memcmp(x, y, (size_t)size) == 0);
        CHECK((uintptr_t)to->data % gmem_type_bytes(to->type) == 0); /* saved files are aligned */
    }
}

static void test_round_trip(gmem_context *context, const char *name) {
    static const char *const metadata[] = {"quote \" and \\", "\x01\x1f\n\x7f\xc3\xa9", "", "empty"};
    gmem_file *from = golden_open(context, name), *to = NULL;
    gmem_tensor tensors[32];
    gmem_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.tensors = tensors;
    desc.count = gmem_file_tensor_count(from);
    desc.metadata = metadata;
    desc.metadata_count = 2;
    for (int64_t i = 0; i < desc.count; i++)
        tensors[i] = *gmem_file_tensor(from, i);
    CHECK_OK(gmem_save(context, target, &desc, NULL));
    CHECK_OK(gmem_file_open(context, target, NULL, &to, NULL));
    check_same(from, to);
    for (int i = 0; i < 2; i++)
        CHECK_TEXT(gmem_file_metadata(to, metadata[2 * i]), metadata[2 * i + 1]);
    gmem_file_close(from);
    gmem_file_close(to);
    remove(target);
}

/* Element k of tensor i is 100000 i + k. Stops tensor 2 halfway. */
static gmem_status count_up(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    for (int64_t k = 0; k < count; k++)
        ((int32_t *)out)[k] = (int32_t)(100000 * index + first + k);
    if (!user || index != 2 || first == 0) return GMEM_OK;
    return gmem__fail(error, GMEM_E_CANCELLED, "stopped");
}

/* Fails without a word. */
static gmem_status break_off(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    (void)user;
    (void)index;
    (void)first;
    (void)count;
    (void)out;
    (void)error;
    return GMEM_E_LIMIT;
}

static void test_fill(gmem_context *context) {
    static const int64_t shape[2] = {300, 301};
    gmem_tensor tensors[3];
    gmem_save_desc desc;
    gmem_error error;
    gmem_file *file = NULL;
    memset(&desc, 0, sizeof desc);
    desc.tensors = tensors;
    desc.count = 3;
    desc.fill = count_up;
    for (int i = 0; i < 3; i++)
        tensors[i] = gmem_tensor_make(i == 0 ? "a" : i == 1 ? "b" : "c", GMEM_I32, 2, shape, NULL);
    CHECK_OK(gmem_save(context, target, &desc, NULL));
    CHECK_OK(gmem_file_open(context, target, NULL, &file, NULL));
    for (int i = 0; i < 3; i++) {
        int64_t wrong = 0, value;
        for (int64_t k = 0; k < 300 * 301; k++) {
            gmem_tensor_read_i64(gmem_file_tensor(file, i), k, 1, &value);
            wrong += value != 100000 * i + k;
        }
        CHECK_INT(wrong, 0);
    }
    gmem_file_close(file);
    remove(target);
    desc.fill_user = &error; /* not NULL: it stops */
    CHECK_STATUS(GMEM_E_CANCELLED, gmem_save(context, target, &desc, &error));
    CHECK_TEXT(error.message, "stopped");
    CHECK_TEXT(error.path, target);
    desc.fill = break_off;
    memset(&error, 0x55, sizeof error); /* nobody has set it */
    CHECK_STATUS(GMEM_E_LIMIT, gmem_save(context, target, &desc, &error));
    CHECK_TEXT(error.message, "the function that fills tensors failed: the file exceeds a limit of the reader");
    CHECK_TEXT(error.path, target);
    CHECK_INT(error.offset, -1);
    CHECK(fopen(target, "rb") == NULL);
}

static void test_save_refusals(gmem_context *context) {
    static const int64_t shape[1] = {1}, negative[1] = {-1}, huge[3] = {1 << 30, 1 << 30, 1 << 30};
    static const char *const twice[] = {"a", "", "a", ""}, *const broken[] = {"a", "\xff"};
    const struct {
        gmem_status code;
        const char *name;
        gmem_type type;
        int rank;
        const int64_t *shape;
        const char *second;
        const char *const *metadata;
        int64_t metadata_count;
    } cases[] = {
        {GMEM_E_NAME, "a", GMEM_F32, 1, shape, "a", NULL, 0},
        {GMEM_E_NAME, "__metadata__", GMEM_F32, 1, shape, "b", NULL, 0},
        {GMEM_E_NAME, "\xc3", GMEM_F32, 1, shape, "b", NULL, 0},
        {GMEM_E_NAME, "a", GMEM_F32, 1, shape, "b", twice, 2},
        {GMEM_E_NAME, "a", GMEM_F32, 1, shape, "b", broken, 1},
        {GMEM_E_ARGUMENT, NULL, GMEM_F32, 1, shape, "b", NULL, 0},
        {GMEM_E_ARGUMENT, "a", GMEM_TYPE_COUNT, 1, shape, "b", NULL, 0},
        {GMEM_E_ARGUMENT, "a", GMEM_F32, 1, negative, "b", NULL, 0},
        {GMEM_E_ARGUMENT, "a", GMEM_F32, 3, huge, "b", NULL, 0},
        {GMEM_E_ARGUMENT, "a", GMEM_F32, 1, shape, "b", NULL, -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static const float value = 1;
        gmem_tensor tensors[2];
        gmem_save_desc desc;
        gmem_error error;
        memset(&desc, 0, sizeof desc);
        tensors[0] = gmem_tensor_make(cases[i].name, cases[i].type, cases[i].rank, cases[i].shape, &value);
        tensors[1] = gmem_tensor_make(cases[i].second, GMEM_F32, 1, shape, &value);
        desc.tensors = tensors;
        desc.count = 2;
        desc.metadata = cases[i].metadata;
        desc.metadata_count = cases[i].metadata_count;
        CHECK_STATUS(cases[i].code, gmem_save(context, target, &desc, &error));
        tensors[0] = gmem_tensor_make("a", GMEM_F32, 1, shape, NULL); /* neither data nor fill */
        desc.metadata_count = 0;
        CHECK_STATUS(GMEM_E_ARGUMENT, gmem_save(context, target, &desc, &error));
        CHECK(fopen(target, "rb") == NULL);
    }
}

/* broken files ---------------------------------------------------------------------------------------------------- */

/* From memory of exactly its size, so that a sanitizer sees the first byte read too far. */
static gmem_status open_exactly(gmem_context *context, const unsigned char *data, size_t size) {
    gmem_file *file = NULL;
    gmem_error error;
    unsigned char *copy = (unsigned char *)malloc(size ? size : 1);
    if (!copy) exit(1);
    memcpy(copy, data, size);
    memset(&error, 0, sizeof error);
    gmem_status status = gmem_file_open_memory(context, "broken", copy, size, NULL, &file, &error);
    if (status == GMEM_OK) {
        read_everything(file);
    } else {
        CHECK(error.code == status && error.message[0] && file == NULL);
        CHECK(error.offset >= -1 && error.offset <= (int64_t)size);
    }
    gmem_file_close(file);
    free(copy);
    return status;
}

static size_t load(const char *name, unsigned char *data, size_t most) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    FILE *file = fopen(path, "rb");
    size_t size = file ? fread(data, 1, most, file) : 0;
    if (file) fclose(file);
    return size;
}

static void test_prefixes_and_flips(const char *name) {
    static unsigned char data[8192];
    failing memory = {0, 0, 0};
    gmem_context *context = failing_context(&memory);
    int64_t before = memory.live;
    size_t size = load(name, data, sizeof data);
    CHECK(size > 1000 && size < sizeof data);
    CHECK_OK(open_exactly(context, data, size));
    for (size_t i = 0; i < size; i++)
        CHECK(open_exactly(context, data, i) != GMEM_OK);
    for (size_t i = 0; i < size; i++) {
        for (int bit = 0; bit < 8; bit++) {
            data[i] = (unsigned char)(data[i] ^ (1 << bit));
            open_exactly(context, data, size);
            data[i] = (unsigned char)(data[i] ^ (1 << bit));
        }
    }
    CHECK_INT(memory.live, before);
    gmem_context_destroy(context);
}

/* The limit on what a file may make its reader hold. */
static void test_memory_limit(gmem_context *context) {
    enum { LEVELS = 60, LEAVES = 20000 };
    size_t used = 0, room = 400000;
    char *header = (char *)malloc(room);
    gmem_file *file = NULL;
    gmem_error error;
    if (!header) exit(1);
    used += (size_t)snprintf(header, room, "{\"__metadata__\":{\"config\":\"");
    for (int i = 0; i < LEVELS; i++)
        used += (size_t)snprintf(header + used, room - used, "{\\\"longkey%d\\\":", i);
    used += (size_t)snprintf(header + used, room - used, "[1");
    for (int i = 0; i < LEAVES; i++)
        used += (size_t)snprintf(header + used, room - used, ",1");
    used += (size_t)snprintf(header + used, room - used, "]");
    for (int i = 0; i < LEVELS; i++)
        used += (size_t)snprintf(header + used, room - used, "}");
    snprintf(header + used, room - used, "\"}," T("a", "[0,2]") "}");
    made greedy = make_file(header, 2);
    CHECK_STATUS(GMEM_E_LIMIT, open_made(context, &greedy, NULL, &file, &error));
    free(greedy.memory);
    free(header);
}

/* locale ---------------------------------------------------------------------------------------------------------- */

int setenv(const char *name, const char *value, int overwrite); /* hidden by strict C99 */

static void test_decimal_commas(gmem_context *context) {
    char command[1400], folder[600];
    snprintf(folder, sizeof folder, "%.500s.locale", target);
    snprintf(command, sizeof command, "mkdir -p '%s' && localedef -i de_DE -f UTF-8 '%s/de_DE.UTF-8' >/dev/null 2>&1",
             folder, folder);
    CHECK_INT(system(command), 0); /* Debian's package locales */
    setenv("LOCPATH", folder, 1);
    CHECK(setlocale(LC_ALL, "de_DE.UTF-8") != NULL);
    CHECK_TEXT(localeconv()->decimal_point, ",");
    made made_file = make_file("{\"__metadata__\":{\"config\":\"{\\\"a\\\":0.5,\\\"b\\\":1.25e-3,\\\"c\\\":\\\"0,5\\\"}"
                               "\"}," T("x", "[0,2]") "}",
                               2);
    gmem_file *file = NULL;
    double number = 0;
    CHECK_OK(open_made(context, &made_file, NULL, &file, NULL));
    CHECK(gmem_file_number(file, "config.a", &number) && number == 0.5);
    CHECK(gmem_file_number(file, "config.b", &number) && number == 1.25e-3);
    gmem_file_close(file);
    free(made_file.memory);
    test_round_trip(context, "container.expect.safetensors");
    setlocale(LC_ALL, "C");
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    CHECK_INT(system(command), 0);
}

int main(int count, char **arguments) {
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    snprintf(target, sizeof target, "%.500s.out", count > 0 ? arguments[0] : "test_files");
    test_container(context);
    test_metadata(context);
    test_other_config(context);
    test_refusals(context);
    test_header_sizes(context);
    test_detection(context);
    test_selection(context);
    test_torch_selection(context);
    test_foreign(context);
    test_need(context);
    test_round_trip(context, "container.expect.safetensors");
    test_round_trip(context, "container_zip.pth");
    test_round_trip(context, "container_legacy.pth");
    test_fill(context);
    test_save_refusals(context);
    test_prefixes_and_flips("container.expect.safetensors");
    test_memory_limit(context);
    test_decimal_commas(context);
    gmem_context_destroy(context);
    return check_report();
}
