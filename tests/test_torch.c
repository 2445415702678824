/* Reading torch checkpoints: the recorded files, a malformed one for every rule of the readers, hostile pickles, every
 * prefix and every flipped bit of small files, and every allocation failing. */
#include "../src/api.h"

#include "check.h"
#include "failing.h"
#include "golden.h"
#include "torch_bytes.h"

/* opening ---------------------------------------------------------------------------------------------------------- */

static gmem_context *shared_context;

/* Opens a copy of exactly that size, so that a sanitizer sees every byte read outside. */
static gmem_status open_copy(gmem_context *context, const void *data, size_t size, const char *key, gmem_file **file,
                             void **copy, gmem_error *error) {
    *copy = malloc(size ? size : 1);
    if (!*copy) exit(1);
    if (size) memcpy(*copy, data, size);
    return gmem_file_open_memory(context, "test.pth", *copy, size, key, file, error);
}

static void expect(const char *what, const bytes *file, gmem_status code, size_t offset) {
    gmem_file *opened = NULL;
    gmem_error error;
    void *copy;
    char text[800];
    memset(&error, 0, sizeof error);
    const gmem_status status = open_copy(shared_context, file->data, file->size, ".", &opened, &copy, &error);
    snprintf(text, sizeof text, "%s: %s at %lld (%s), expected %s at %lld", what, gmem_status_name(status),
             (long long)error.offset, error.message, gmem_status_name(code), (long long)offset);
    check_result(status == code && error.code == code && error.offset == (int64_t)offset && !opened, __FILE__, __LINE__,
                 text);
    gmem_file_close(opened);
    free(copy);
}

/* recorded files --------------------------------------------------------------------------------------------------- */

static void check_same_tensor(const gmem_tensor *actual, const gmem_tensor *expected) {
    if (!CHECK(actual && expected)) return;
    CHECK_TEXT(actual->name, expected->name);
    CHECK_INT(actual->type, expected->type);
    if (!CHECK_INT(actual->rank, expected->rank)) return;
    for (int i = 0; i < actual->rank; i++)
        CHECK_INT(actual->shape[i], expected->shape[i]);
    const int64_t count = gmem_tensor_count(actual), size = count * (int64_t)gmem_type_bytes(actual->type);
    char *a = (char *)malloc((size_t)size + 1), *b = (char *)malloc((size_t)size + 1);
    gmem_tensor_read(actual, 0, count, a);
    gmem_tensor_read(expected, 0, count, b);
    CHECK(memcmp(a, b, (size_t)size) == 0);
    free(a);
    free(b);
}

static void check_number(const gmem_file *file, const char *key, double expected) {
    double number = -12345.0;
    CHECK(gmem_file_number(file, key, &number));
    CHECK(number == expected);
}

static void test_container(const char *name, gmem_format format) {
    gmem_file *expected = golden_open(shared_context, "container.expect.safetensors");
    gmem_file *file = golden_open(shared_context, name);
    double number;
    CHECK_INT(gmem_file_format(file), format);
    CHECK_INT(gmem_file_tensor_count(file), gmem_file_tensor_count(expected) + 1); /* and an empty one */
    for (int64_t i = 0; i < gmem_file_tensor_count(expected); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(expected, i);
        check_same_tensor(gmem_file_find(file, tensor->name), tensor);
    }
    const gmem_tensor *empty = gmem_file_find(file, "empty");
    if (CHECK(empty)) CHECK(empty->rank == 2 && empty->shape[0] == 0 && empty->shape[1] == 4);
    check_number(file, "step", 123);
    check_number(file, "flag", 1);
    check_number(file, "lr", 2e-4);
    check_number(file, "big", 1099511627776.0);
    check_number(file, "neg", -7);
    check_number(file, "nested.a.0", 1);
    check_number(file, "nested.a.2.0", 3);
    CHECK(!gmem_file_number(file, "none", &number));
    CHECK_TEXT(gmem_file_string(file, "name"), "caf\xc3\xa9 \xe2\x98\x83");
    CHECK_TEXT(gmem_file_string(file, "nested.a.2.1"), "x");
    CHECK_INT(gmem_file_foreign_count(file), 0);
    gmem_file_close(file);
    gmem_file_close(expected);
}

static void test_training_checkpoint(void) {
    gmem_file *file = NULL;
    if (!CHECK_OK(gmem_file_open(shared_context, "tests/golden/dit_base.pth", NULL, &file, NULL))) return;
    CHECK_TEXT(gmem_file_key(file), "ema");
    const gmem_tensor *ema = gmem_file_find(file, "blocks.0.attn.qkv.weight");
    const gmem_tensor *model = gmem_file_find_any(file, "model.blocks.0.attn.qkv.weight");
    if (CHECK(ema && model)) {
        float a[8], b[8];
        gmem_tensor_read_f32(ema, 0, 8, a);
        gmem_tensor_read_f32(model, 0, 8, b);
        for (int i = 0; i < 8; i++)
            CHECK(fabsf(b[i] - a[i] - 1.0f) < 1e-6f);
        CHECK((const char *)ema->data != (const char *)model->data);
    }
    gmem_file_close(file);
    file = golden_open(shared_context, "bank_full.pth");
    CHECK_INT(gmem_file_tensor_count(file), 1);
    CHECK(gmem_file_find(file, "tensor") != NULL);
    gmem_file_close(file);
}

/* zip rules -------------------------------------------------------------------------------------------------------- */

#define GOOD_PICKLE "\x80\2}" P_TEXT1("w") P_TENSOR "s."

static void good_zip(zip_image *image) { torch_zip(image, GOOD_PICKLE, sizeof GOOD_PICKLE - 1); }

/* One byte range changed in a good archive. */
static void expect_patched(const char *what, size_t (*place)(const zip_image *), int offset, uint64_t value, int size,
                           gmem_status code, size_t (*at)(const zip_image *)) {
    zip_image image;
    good_zip(&image);
    bytes_patch(&image.file, place(&image) + (size_t)offset, value, size);
    expect(what, &image.file, code, at(&image));
    bytes_free(&image.file);
}

static size_t place_end(const zip_image *image) { return image->end; }
static size_t place_end64(const zip_image *image) { return image->end64; }
static size_t place_locator(const zip_image *image) { return image->locator; }
static size_t place_local0(const zip_image *image) { return image->local[0]; }
static size_t place_central1(const zip_image *image) { return image->central[1]; }
static size_t place_central2(const zip_image *image) { return image->central[2]; }
static size_t place_local1(const zip_image *image) { return image->local[1]; }
static size_t place_local2(const zip_image *image) { return image->local[2]; }

static void test_zip_end(void) {
    zip_image image;
    good_zip(&image);
    image.file.size--;
    expect("cut by a byte", &image.file, GMEM_E_ZIP_END, image.file.size - 22);
    image.file.size = image.end + 22;
    bytes_add(&image.file, "x", 1);
    expect("a byte behind the end", &image.file, GMEM_E_ZIP_END, image.file.size - 22);
    image.file.size = 20;
    expect("shorter than an end record", &image.file, GMEM_E_ZIP_END, 0);
    bytes_free(&image.file);
    expect_patched("a comment", place_end, 20, 1, 2, GMEM_E_ZIP_END, place_end);
    expect_patched("another disk", place_end, 4, 1, 2, GMEM_E_ZIP_END, place_end);
    expect_patched("two counts", place_end, 8, 2, 2, GMEM_E_ZIP_END, place_end);
    expect_patched("locator elsewhere", place_locator, 8, 0, 8, GMEM_E_ZIP_END, place_locator);
    expect_patched("zip64 record missing", place_end64, 0, 0, 4, GMEM_E_ZIP_END, place_end64);
    expect_patched("zip64 record longer", place_end64, 4, 45, 8, GMEM_E_ZIP_END, place_end64);
    expect_patched("end records disagree on the count", place_end, 8, 0x00040004, 4, GMEM_E_ZIP_END, place_end64);
    expect_patched("end records disagree on the offset", place_end64, 48, 0, 8, GMEM_E_ZIP_END, place_end64);
}

static void test_zip_directory(void) {
    zip_image image;
    good_zip(&image);
    bytes_patch(&image.file, image.end + 8, 0xffffffffu, 4);
    bytes_patch(&image.file, image.end64 + 24, (uint64_t)1 << 40, 8);
    bytes_patch(&image.file, image.end64 + 32, (uint64_t)1 << 40, 8);
    expect("more entries than fit", &image.file, GMEM_E_ZIP_DIRECTORY, image.end64);
    bytes_free(&image.file);

    good_zip(&image);
    bytes_patch(&image.file, image.end + 8, 0x00020002, 4);
    bytes_patch(&image.file, image.end64 + 24, 2, 8);
    bytes_patch(&image.file, image.end64 + 32, 2, 8);
    expect("fewer entries than there are", &image.file, GMEM_E_ZIP_DIRECTORY, image.central[2]);
    bytes_free(&image.file);

    good_zip(&image);
    bytes_patch(&image.file, image.end + 16, image.directory + 1, 4);
    bytes_patch(&image.file, image.end64 + 48, image.directory + 1, 8);
    expect("a directory that ends elsewhere", &image.file, GMEM_E_ZIP_DIRECTORY, image.end64);
    bytes_free(&image.file);

    expect_patched("no record", place_central1, 0, 0, 4, GMEM_E_ZIP_DIRECTORY, place_central1);
    expect_patched("record over the end", place_central2, 32, 1, 2, GMEM_E_ZIP_DIRECTORY, place_central2);
    expect_patched("stored, two sizes", place_central1, 20, 23, 4, GMEM_E_ZIP_DIRECTORY, place_central1);
    expect_patched("on another disk", place_central1, 34, 1, 2, GMEM_E_ZIP_DIRECTORY, place_central1);
    expect_patched("encrypted", place_central1, 8, 1, 2, GMEM_E_ZIP_ENCRYPTED, place_central1);
    expect_patched("compressed in the directory only", place_central1, 10, 8, 2, GMEM_E_ZIP_LOCAL, place_local1);

    good_zip(&image);
    bytes_patch(&image.file, image.central[1] + 24, 0xffffffffu, 4);
    expect("a zip64 size without its field", &image.file, GMEM_E_ZIP_DIRECTORY, image.central[1] + 46 + 8);
    bytes_patch(&image.file, image.central[1] + 24, 24, 4);
    bytes_patch(&image.file, image.central[1] + 10, 8, 2);
    bytes_patch(&image.file, image.local[1] + 8, 8, 2);
    expect("compressed", &image.file, GMEM_E_ZIP_COMPRESSED, image.local[1]);
    bytes_free(&image.file);
}

static void test_zip_local(void) {
    zip_image image;
    good_zip(&image);
    const size_t directory = image.directory;
    bytes_free(&image.file);
    expect_patched("no local header", place_local1, 0, 0, 4, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("another local method", place_local1, 8, 8, 2, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("another local name", place_local1, 30, 'b', 1, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("a longer local name", place_local1, 26, 9, 2, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("locally encrypted", place_local1, 6, 1, 2, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("another local size", place_local1, 22, 23, 4, GMEM_E_ZIP_LOCAL, place_local1);
    expect_patched("extra over the directory", place_local2, 28, 0xffff, 2, GMEM_E_ZIP_LOCAL, place_local2);
    expect_patched("outside the file", place_central1, 42, directory, 4, GMEM_E_ZIP_LOCAL, place_central1);
    expect_patched("into the directory", place_central2, 20, 0x0000ffff0000ffffu, 8, GMEM_E_ZIP_OVERLAP, place_local2);
    expect_patched("over the next entry", place_central1, 20, 0x0000003000000030u, 8, GMEM_E_ZIP_OVERLAP, place_local2);
    expect_patched("two entries at one place", place_central2, 42, 0, 4, GMEM_E_ZIP_LOCAL, place_local0);
}

/* Names: the second of three entries gets the name in both headers. */
static void expect_name(const char *what, const char *name, size_t size, gmem_status code, int central, int offset) {
    zip_image image;
    const zip_item items[3] = {{"a/data.pkl", 0, GOOD_PICKLE, sizeof GOOD_PICKLE - 1},
                               {name, size, torch_floats, 24},
                               {"a/version", 0, "3\n", 2}};
    zip_write(&image, items, 3, 1);
    expect(what, &image.file, code, image.central[central] + (size_t)offset);
    bytes_free(&image.file);
}

static void test_zip_names(void) {
    expect_name("up", "a/../x", 6, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("up at the end", "a/..", 4, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("here", "a/./x", 5, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("absolute", "/a/x", 4, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("a drive", "C:/x", 4, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("backslash", "a\\x", 3, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("NUL", "a/x\0y", 5, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("empty component", "a//x", 4, GMEM_E_ZIP_NAME, 1, 0);
    expect_name("another root", "b/data/0", 8, GMEM_E_ZIP_ROOT, 1, 46);
    expect_name("no root", "data0", 5, GMEM_E_ZIP_ROOT, 1, 46);
    expect_name("twice", "a/version", 9, GMEM_E_ZIP_DUPLICATE, 2, 48);
}

static void expect_items(const char *what, const zip_item *items, int count, gmem_status code,
                         size_t (*at)(const zip_image *)) {
    zip_image image;
    zip_write(&image, items, count, 0);
    expect(what, &image.file, code, at(&image));
    bytes_free(&image.file);
}

static size_t place_file_end(const zip_image *image) { return image->file.size; }
static size_t place_data1(const zip_image *image) { return image->data[1]; }
static size_t place_storage_id(const zip_image *image) {
    static const char before[] = "\x80\2}" P_TEXT1("w") P_REBUILD;
    return image->data[0] + sizeof before - 1 + sizeof P_STORAGE - 2; /* BINPERSID is the piece's last byte */
}

static void test_zip_contents(void) {
    const zip_item pickle = {"a/data.pkl", 0, GOOD_PICKLE, sizeof GOOD_PICKLE - 1};
    const zip_item storage = {"a/data/0", 0, torch_floats, 24}, shorter = {"a/data/0", 0, torch_floats, 20};
    const zip_item big = {"a/byteorder", 0, "big", 3}, little = {"a/byteorder", 0, "little", 6};
    const zip_item script = {"a/constants.pkl", 0, "", 0}, extra = {"a/.format_version", 0, "1", 1};
    zip_item items[3];
    items[0] = storage;
    expect_items("no pickle", items, 1, GMEM_E_ZIP_MISSING, place_file_end);
    items[0] = pickle;
    expect_items("no storage", items, 1, GMEM_E_STORAGE, place_storage_id);
    items[1] = shorter;
    expect_items("a shorter storage", items, 2, GMEM_E_STORAGE, place_data1);
    items[2] = storage;
    items[1] = big;
    expect_items("big-endian", items, 3, GMEM_E_BYTEORDER, place_data1);
    items[1] = script;
    expect_items("TorchScript", items, 3, GMEM_E_FORMAT, place_local1);

    zip_image image;
    gmem_file *file = NULL;
    items[1] = little;
    zip_write(&image, items, 3, 0);
    CHECK_OK(gmem_file_open_memory(shared_context, "x", image.file.data, image.file.size, NULL, &file, NULL));
    gmem_file_close(file);
    bytes_free(&image.file);
    items[1] = extra;
    zip_write(&image, items, 3, 1);
    CHECK_OK(gmem_file_open_memory(shared_context, "x", image.file.data, image.file.size, NULL, &file, NULL));
    gmem_file_close(file);
    bytes_free(&image.file);
}

/* All three 64-bit fields of an entry in the zip64 extra field. */
static void test_zip64_entry(void) {
    for (int overflow = 0; overflow < 2; overflow++) {
        zip_image image;
        bytes file = {NULL, 0, 0};
        good_zip(&image);
        const size_t after = image.central[0] + 46 + 10;
        bytes_add(&file, image.file.data, after);
        bytes_patch(&file, image.central[0] + 20, 0xffffffffffffffffu, 8);
        bytes_patch(&file, image.central[0] + 30, 28, 2);
        bytes_patch(&file, image.central[0] + 42, 0xffffffffu, 4);
        bytes_number(&file, 1 | 24 << 16, 4);
        bytes_number(&file, overflow ? UINT64_MAX : sizeof GOOD_PICKLE - 1, 8);
        bytes_number(&file, overflow ? UINT64_MAX : sizeof GOOD_PICKLE - 1, 8);
        bytes_number(&file, 0, 8);
        bytes_add(&file, image.file.data + after, image.file.size - after);
        bytes_patch(&file, image.end64 + 28 + 40, image.end64 + 28 - image.directory, 8);
        bytes_patch(&file, image.locator + 28 + 8, image.end64 + 28, 8);
        bytes_patch(&file, image.end + 28 + 12, 0xffffffffu, 4);
        if (overflow) {
            expect("a 64-bit size", &file, GMEM_E_OVERFLOW, image.central[0]);
        } else {
            gmem_file *opened = NULL;
            CHECK_OK(gmem_file_open_memory(shared_context, "x", file.data, file.size, NULL, &opened, NULL));
            gmem_file_close(opened);
        }
        bytes_free(&file);
        bytes_free(&image.file);
    }
}

/* pickle rules ----------------------------------------------------------------------------------------------------- */

/* A pickle in a zip; what is wrong begins behind `good`. */
static void expect_pickle_bytes(const char *what, const char *good, size_t good_size, const char *bad, size_t bad_size,
                                gmem_status code) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    bytes_add(&pickle, good, good_size);
    bytes_add(&pickle, bad, bad_size);
    torch_zip(&image, pickle.data, pickle.size);
    expect(what, &image.file, code, image.data[0] + good_size);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

#define EXPECT_PICKLE(what, good, bad, code) \
    expect_pickle_bytes((what), (good), sizeof(good) - 1, (bad), sizeof(bad) - 1, (code))

static void test_pickle_opcodes(void) {
    static const char refused[] = "012FILPSTUVdgilop\x82\x83\x84\x96\x97\x98\x80\xff";
    for (const char *code = refused; *code; code++) {
        char bad[] = "?\0\0\0\0\0\0\0\0.";
        bad[0] = *code;
        expect_pickle_bytes("a refused opcode", "\x80\4", 2, bad, sizeof bad - 1, GMEM_E_PICKLE_OPCODE);
    }
    EXPECT_PICKLE("SHORT_BINUNICODE in protocol 3", "\x80\3", "\x8c\1x.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("MEMOIZE in protocol 2", "\x80\2N", "\x94.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("SHORT_BINBYTES in protocol 2", "\x80\2", "C\1x.", GMEM_E_PICKLE_OPCODE);
    EXPECT_PICKLE("protocol 1", "", "\x80\1N.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("protocol 5", "", "\x80\5N.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("no protocol", "", "}.", GMEM_E_PICKLE_PROTOCOL);
    EXPECT_PICKLE("nothing", "", "", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("no STOP", "\x80\2N", "", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut opcode", "\x80\2", "J\1\0\0", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut integer", "\x80\2", "\x8a\5\1", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("huge string", "\x80\2", "X\xff\xff\xff\xff.", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("cut global", "\x80\2", "cposix\nsystem", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("frame over the end", "\x80\4", "\x95\xff\0\0\0\0\0\0\0N.", GMEM_E_TRUNCATED);
    EXPECT_PICKLE("LONG4", "\x80\2", "\x8b\xff\xff\xff\x7f.", GMEM_E_LIMIT);
    EXPECT_PICKLE("BINUNICODE8", "\x80\4", "\x8d\1\0\0\0\0\0\0\0x.", GMEM_E_LIMIT);
    EXPECT_PICKLE("BINBYTES8", "\x80\4", "\x8e\1\0\0\0\0\0\0\0x.", GMEM_E_LIMIT);
    EXPECT_PICKLE("bytes after STOP", "\x80\2}" P_TEXT1("w") P_TENSOR "s.", "N", GMEM_E_PICKLE_TRAILING);
}

static void test_pickle_stack(void) {
    EXPECT_PICKLE("STOP without a value", "\x80\2", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STOP with two", "\x80\2NN", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STOP in a group", "\x80\2N(", ".", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE without a mark", "\x80\2N", "t.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE2 of one", "\x80\2N", "\x86.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("TUPLE1 across a mark", "\x80\2N(", "\x85.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("APPEND to nothing", "\x80\2N", "a.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("APPENDS to nothing", "\x80\2(N", "e.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("SETITEMS of three", "\x80\2}(NNN", "u.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("REDUCE without arguments", "\x80\2cx\ny\n", "R.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BUILD without state", "\x80\2cx\ny\n", "b.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPERSID of nothing", "\x80\2", "Q.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("STACK_GLOBAL of one", "\x80\4\x8c\1x", "\x93.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPUT of nothing", "\x80\2", "q\0.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINPUT out of order", "\x80\2N", "q\1.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("LONG_BINPUT far away", "\x80\2N", "r\xff\xff\xff\xff.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("BINGET of nothing", "\x80\2", "h\0.", GMEM_E_PICKLE_STACK);
    EXPECT_PICKLE("LONG_BINGET of nothing", "\x80\2Nq\0", "j\1\0\0\0.", GMEM_E_PICKLE_STACK);
}

static void test_pickle_values(void) {
    EXPECT_PICKLE("APPEND to a dict", "\x80\2}N", "a.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("SETITEM on a list", "\x80\2]NN", "s.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("ADDITEMS to a list", "\x80\4](N", "\x90.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a call of a string", "\x80\2" P_TEXT1("f") ")", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a call of a storage class", "\x80\2" P_CLASS("Float") ")", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("arguments that are no tuple", "\x80\2ccollections\nOrderedDict\n]", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("arguments that are a float", "\x80\2ccollections\nOrderedDict\nG\x7f\xff\xff\xff\x7f\xff\xff\xff",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("an id that is a float", "\x80\2G\x7f\xff\xff\xff\x7f\xff\xff\xff", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("OrderedDict with arguments", "\x80\2ccollections\nOrderedDict\n]\x85", "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a size of a list",
                  "\x80\2"
                  "ctorch\nSize\n]\x85",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a device of a number",
                  "\x80\2"
                  "ctorch\ndevice\nK\1\x85",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a parameter of None",
                  "\x80\2"
                  "ctorch._utils\n_rebuild_parameter\nN\x88}\x87",
                  "R.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("BUILD on a dict", "\x80\2}}", "b.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("NEWOBJ of a function", "\x80\2ccollections\nOrderedDict\n)", "\x81.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a global named by a number", "\x80\4\x8c\1xK\1", "\x93.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("no UTF-8", "\x80\2", "X\2\0\0\0\xc3\x28.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a surrogate", "\x80\2", "X\3\0\0\0\xed\xa0\x80.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a global that is no UTF-8", "\x80\2", "c\xff\nx\n.", GMEM_E_PICKLE_UTF8);
    EXPECT_PICKLE("a global without a name", "\x80\2", "cx\n\n.", GMEM_E_NAME);
    EXPECT_PICKLE("a key with a NUL", "\x80\2}", "X\3\0\0\0a\0bK\1s.", GMEM_E_NAME);
    EXPECT_PICKLE("a string with a NUL", "\x80\2}" P_TEXT1("k"), "X\3\0\0\0a\0bs.", GMEM_E_NAME);
    EXPECT_PICKLE("a list in itself", "\x80\2", "]q\0h\0a.", GMEM_E_PICKLE_CYCLE);
    EXPECT_PICKLE("a dict in a list in itself", "\x80\2", "}q\0" P_TEXT1("k") "]h\0as.", GMEM_E_PICKLE_CYCLE);
}

static void test_pickle_storages(void) {
#define ID "(X\7\0\0\0storage"
    EXPECT_PICKLE("an id that is no tuple", "\x80\2]", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("an id of another kind", "\x80\2(X\7\0\0\0storagfNNNNt", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("four parts", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "t", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("six parts", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "K\6Nt", "Q.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a class that is none", "\x80\2" ID "N" P_TEXT1("0") P_TEXT1("c") "K\6t", "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a key that is a number", "\x80\2" ID P_CLASS("Float") "K\0" P_TEXT1("c") "K\6t", "Q.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a size that is a string", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") P_TEXT1("6") "t",
                  "Q.", GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("a negative size", "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "J\xff\xff\xff\xfft", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("a size whose bytes overflow",
                  "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "\x8a\x8\0\0\0\0\0\0\0\x40t", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("a size beyond int64",
                  "\x80\2" ID P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "\x8a\x9\0\0\0\0\0\0\0\0\1t", "Q.",
                  GMEM_E_OVERFLOW);
    EXPECT_PICKLE("one key, two sizes",
                  "\x80\2]" P_STORAGE "a(X\7\0\0\0storage" P_CLASS("Float") P_TEXT1("0") P_TEXT1("c") "K\5t", "Q.",
                  GMEM_E_STORAGE);
    EXPECT_PICKLE("one key, two types",
                  "\x80\2]" P_STORAGE "a(X\7\0\0\0storage" P_CLASS("Int") P_TEXT1("0") P_TEXT1("c") "K\6t", "Q.",
                  GMEM_E_STORAGE);
#undef ID
}

static void test_pickle_tensors(void) {
#define EXPECT_TENSOR(what, parts, code) EXPECT_PICKLE(what, "\x80\2" P_REBUILD P_STORAGE parts P_REST, "R.", code)
    EXPECT_TENSOR("offset past the end", "K\1K\2K\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative offset", "J\xff\xff\xff\xffK\2K\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("stride past the end", "K\0K\2K\3\x86K\4K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative size", "K\0J\xff\xff\xff\xffK\3\x86K\3K\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("negative stride", "K\5K\2K\3\x86J\xfd\xff\xff\xffK\1\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("stride of zero", "K\0K\7\x85K\0\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("gigabytes from nothing", "K\0J\0\0\0\x40J\0\0\0\x40\x86K\0K\0\x86", GMEM_E_TENSOR);
    EXPECT_TENSOR("overflow", "K\0J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87K\0K\0K\0\x87", GMEM_E_TENSOR);
    EXPECT_TENSOR("span overflow",
                  "K\0K\2K\2\x86\x8a\x8\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x8\xff\xff\xff\xff\xff\xff\xff\x7f\x86",
                  GMEM_E_TENSOR);
    EXPECT_TENSOR("nine dimensions", "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", GMEM_E_TENSOR);
    EXPECT_TENSOR("a stride too few", "K\0K\2K\3\x86K\1\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("an empty one outside", "K\7K\0\x85K\1\x85", GMEM_E_TENSOR);
    EXPECT_TENSOR("a size that is a list", "K\0]K\1\x85", GMEM_E_PICKLE_VALUE);
    EXPECT_TENSOR("an offset that is a float", "G\0\0\0\0\0\0\0\0K\2K\3\x86K\3K\1\x86", GMEM_E_PICKLE_VALUE);
    EXPECT_TENSOR("a size beyond int64", "K\0\x8a\x9\0\0\0\0\0\0\0\0\1\x85K\1\x85", GMEM_E_OVERFLOW);
#undef EXPECT_TENSOR
    EXPECT_PICKLE("a storage that is none", "\x80\2" P_REBUILD "NK\0K\2K\3\x86K\3K\1\x86" P_REST, "R.",
                  GMEM_E_PICKLE_VALUE);
    EXPECT_PICKLE("five arguments", "\x80\2" P_REBUILD P_STORAGE "K\0K\2K\3\x86K\3K\1\x86\x89t", "R.",
                  GMEM_E_PICKLE_VALUE);
}

/* what is accepted ------------------------------------------------------------------------------------------------- */

typedef struct loaded {
    zip_image image;
    gmem_file *file;
} loaded;

static loaded open_pickle_bytes(const char *pickle, size_t size, const char *key) {
    loaded result;
    gmem_error error;
    memset(&result, 0, sizeof result);
    memset(&error, 0, sizeof error);
    torch_zip(&result.image, pickle, size);
    if (gmem_file_open_memory(shared_context, "x", result.image.file.data, result.image.file.size, key, &result.file,
                              &error) != GMEM_OK) {
        printf("cannot open: %s\n", error.message);
        CHECK(0);
        exit(check_report());
    }
    return result;
}

#define OPEN_PICKLE(literal) open_pickle_bytes((literal), sizeof(literal) - 1, ".")

static void loaded_close(loaded *file) {
    gmem_file_close(file->file);
    bytes_free(&file->image.file);
}

static void check_floats(const gmem_tensor *tensor, int count, float first, float step) {
    float values[6];
    if (!CHECK(tensor) || !CHECK_INT(gmem_tensor_count(tensor), count)) return;
    gmem_tensor_read_f32(tensor, 0, count, values);
    for (int i = 0; i < count; i++)
        CHECK(values[i] == first + step * (float)i);
}

static void test_keys(void) {
    loaded o = OPEN_PICKLE("\x80\2}(" P_TEXT1("d") "}(K\7" P_TENSOR "J\xfe\xff\xff\xffK\1u" P_TEXT1(
        "l") "](" P_TENSOR "NK\5e" P_TEXT1("t") "K\1]K\2a\x86" P_TEXT1("o") P_ORDERED P_TEXT1("k") "K\3s}b"
                                                                                                   "K\1K\2\x86K\4"
                                                                                                   "\x88K\5"
                                                                                                   "u.");
    check_floats(gmem_file_find_any(o.file, "d.7"), 6, 0, 1);
    check_number(o.file, "d.-2", 1);
    check_floats(gmem_file_find_any(o.file, "l.0"), 6, 0, 1);
    check_number(o.file, "l.2", 5);
    check_number(o.file, "t.0", 1);
    check_number(o.file, "t.1.0", 2);
    check_number(o.file, "o.k", 3);
    check_number(o.file, "4", 4); /* a tuple as key goes by its place */
    check_number(o.file, "5", 5);
    CHECK_INT(gmem_file_tensor_count(o.file), 2);
    loaded_close(&o);

    o = OPEN_PICKLE("\x80\2" P_TENSOR ".");
    check_floats(gmem_file_find(o.file, "tensor"), 6, 0, 1);
    loaded_close(&o);
}

static void test_values(void) {
    loaded o =
        OPEN_PICKLE(
            "\x80\4}(" P_TEXT1("w") P_TENSOR
                P_TEXT1("a") "\x8a\0" P_TEXT1("b") "\x8a\1\xff" P_TEXT1("c") "\x8a\x9\0\0\0\0\0\0\0\0\1" P_TEXT1("d") "\x8a\x9\0\0\0\0\0\0\0\0\xff" P_TEXT1("e") "\x8a\x9\1\0\0\0\0\4\0\0\1" P_TEXT1("f") "\x8a\x8\0\0\0\0\0\0\0\x80" P_TEXT1("g") "G\xbf\xf8\0\0\0\0\0\0" P_TEXT1(
                    "h") "J\0\0\0\x80" P_TEXT1("i") "M\xff\xff" P_TEXT1("j") "ctorch\n"
                                                                             "bfloat16"
                                                                             "\n" P_TEXT1(
                                                                                 "k") "ctorch\ndevice\nX\4\0\0\0cudaK\3"
                                                                                      "\x86R" P_TEXT1(
                                                                                          "l") "ctorch\ndevic"
                                                                                               "e\nX\3\0\0\0c"
                                                                                               "pu\x85"
                                                                                               "R" P_TEXT1(
                                                                                                   "m") "ctorch"
                                                                                                        "\nSize"
                                                                                                        "\nK\5"
                                                                                                        "\x85"
                                                                                                        "\x85"
                                                                                                        "R" P_TEXT1("n") "C\2\xff\0" P_TEXT1(
                                                                                                            "o") "\x8f("
                                                                                                                 "K\1"
                                                                                                                 "\x90" P_TEXT1(
                                                                                                                     "p") "(K\2\x91u.");
    check_number(o.file, "a", 0);
    check_number(o.file, "b", -1);
    check_number(o.file, "c", 18446744073709551616.0);
    check_number(o.file, "d", -18446744073709551616.0);
    check_number(o.file, "e", 18446744073709551616.0 + 4398046511104.0); /* the 1 at the end is beyond a double */
    check_number(o.file, "f", -9223372036854775808.0);
    check_number(o.file, "g", -1.5);
    check_number(o.file, "h", -2147483648.0);
    check_number(o.file, "i", 65535);
    CHECK_TEXT(gmem_file_string(o.file, "j"), "torch.bfloat16");
    CHECK_TEXT(gmem_file_string(o.file, "k"), "cuda:3");
    CHECK_TEXT(gmem_file_string(o.file, "l"), "cpu");
    check_number(o.file, "m.0", 5);
    CHECK(gmem_file_string(o.file, "n") == NULL);
    check_number(o.file, "o.0", 1);
    check_number(o.file, "p.0", 2);
    CHECK_INT(gmem_file_foreign_count(o.file), 0);
    loaded_close(&o);
}

static void test_tensors(void) {
    loaded o = OPEN_PICKLE("\x80\2}(" P_TEXT1("t") P_REBUILD P_STORAGE "K\0K\3K\2\x86K\1K\3\x86" P_REST "R" P_TEXT1("o")
                               P_REBUILD P_STORAGE "K\4K\2\x85K\1\x85" P_REST "R" P_TEXT1("s") P_REBUILD P_STORAGE
                           "K\5))" P_REST "R" P_TEXT1("e") P_REBUILD P_STORAGE
                           "K\6K\0K\x63\x86K\1K\1\x86" P_REST
                           "R" P_TEXT1("p") "ctorch._utils\n_rebuild_parameter\n" P_TENSOR "\x88" P_ORDERED
                                            "\x87R" P_TEXT1("1") "ctorch._utils\n_rebuild_tensor\n(" P_STORAGE
                                                                 "K\1K\2\x85K\2\x85tRu.");
    float transposed[6];
    const gmem_tensor *t = gmem_file_find(o.file, "t");
    if (CHECK(t)) {
        gmem_tensor_read_f32(t, 0, 6, transposed);
        CHECK(transposed[1] == 3 && transposed[2] == 1 && transposed[5] == 5);
    }
    check_floats(gmem_file_find(o.file, "o"), 2, 4, 1);
    check_floats(gmem_file_find(o.file, "s"), 1, 5, 1);
    check_floats(gmem_file_find(o.file, "e"), 0, 0, 0);
    check_floats(gmem_file_find(o.file, "p"), 6, 0, 1);
    check_floats(gmem_file_find(o.file, "1"), 2, 1, 2);
    loaded_close(&o);
}

/* Foreign objects: what is applied to them vanishes, their names are told, nothing happens. */
static void test_foreign(void) {
    loaded o = OPEN_PICKLE("\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "cposix\nsystem\nX\6\0\0\0reboot\x85R" P_TEXT1("n") "cargparse\nNamespace\n)\x81}(" P_TEXT1(
        "a") "K\1ub" P_TEXT1("s") "cposix\nsystem\n)R](K\1ea" P_TEXT1("d") "cmy\nDict\n)R" P_TEXT1("k") "K\1s(" P_TEXT1("q") "K\2u" P_TEXT1("c")
                               P_REBUILD P_ID("ComplexFloat", "9", "K\1") "K\0K\1\x85K\1\x85" P_REST "R" P_TEXT1("i")
                                   P_REBUILD P_STORAGE "K\0cnumpy\nint64\n\x85K\1\x85" P_REST "Ru.");
    static const char *const names[] = {"posix.system", "argparse.Namespace", "my.Dict", "torch.ComplexFloatStorage",
                                        "numpy.int64"};
    double number;
    CHECK_INT(gmem_file_foreign_count(o.file), 5);
    for (int i = 0; i < 5; i++)
        CHECK_TEXT(gmem_file_foreign(o.file, i), names[i]);
    CHECK_INT(gmem_file_tensor_count(o.file), 1);
    CHECK(!gmem_file_number(o.file, "n.a", &number));
    CHECK(!gmem_file_number(o.file, "s.0", &number));
    CHECK(!gmem_file_number(o.file, "d.k", &number));
    loaded_close(&o);
    EXPECT_PICKLE("a cycle through an inert object is none",
                  "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "cmy\nNode\n)\x81q\0}" P_TEXT1("p") "h\0sbu.", "N",
                  GMEM_E_PICKLE_TRAILING);
    EXPECT_PICKLE("BUILD on a list that holds one", "\x80\2]cmy\nNode\na}", "b.", GMEM_E_PICKLE_VALUE);
}

/* hostile pickles -------------------------------------------------------------------------------------------------- */

/* Bytes of memory at their highest, on top of the failing allocator. */
typedef struct metered {
    failing base;
    int64_t peak;
} metered;

static void *metered_alloc(void *user, size_t size) {
    metered *state = (metered *)user;
    void *memory = failing_alloc(&state->base, size);
    if (state->base.live > state->peak) state->peak = state->base.live;
    return memory;
}

static void metered_release(void *user, void *memory, size_t size) {
    failing_release(&((metered *)user)->base, memory, size);
}

/* Opens in a metered context: the code, and memory in proportion. */
static void expect_metered(const char *what, const bytes *file, gmem_status code) {
    metered state;
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_file *opened = NULL;
    char text[200];
    memset(&state, 0, sizeof state);
    memset(&desc, 0, sizeof desc);
    state.base.countdown = -1;
    desc.allocator.user = &state;
    desc.allocator.alloc = metered_alloc;
    desc.allocator.release = metered_release;
    CHECK_OK(gmem_context_create(&desc, &context, NULL));
    const int64_t before = state.base.live;
    const gmem_status status = gmem_file_open_memory(context, "x", file->data, file->size, ".", &opened, NULL);
    snprintf(text, sizeof text, "%s: %s, %lld bytes of memory for %lld", what, gmem_status_name(status),
             (long long)(state.peak - before), (long long)file->size);
    check_result(status == code && state.peak - before <= 16 * (int64_t)file->size + (1 << 20), __FILE__, __LINE__,
                 text);
    gmem_file_close(opened);
    CHECK_INT(state.base.live, before);
    gmem_context_destroy(context);
}

/* A pickle of `head`, `count` times `piece`, `tail`, in a zip. */
static void expect_repeated(const char *what, const char *head, size_t head_size, const char *piece, size_t piece_size,
                            int count, const char *tail, size_t tail_size, gmem_status code) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    bytes_add(&pickle, head, head_size);
    for (int i = 0; i < count; i++)
        bytes_add(&pickle, piece, piece_size);
    bytes_add(&pickle, tail, tail_size);
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered(what, &image.file, code);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

#define EXPECT_REPEATED(what, head, piece, count, tail, code)                                                        \
    expect_repeated((what), (head), sizeof(head) - 1, (piece), sizeof(piece) - 1, (count), (tail), sizeof(tail) - 1, \
                    (code))

static void test_deep(void) {
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    PIECE(&pickle, "\x80\2");
    for (int i = 0; i < 100000; i++)
        PIECE(&pickle, "]");
    for (int i = 1; i < 100000; i++)
        PIECE(&pickle, "a");
    PIECE(&pickle, ".");
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered("100000 lists in each other", &image.file, GMEM_E_LIMIT);
    bytes_free(&image.file);
    bytes_free(&pickle);
    EXPECT_REPEATED("100000 tuples in each other", "\x80\2N", "\x85", 100000, ".", GMEM_E_LIMIT);
    EXPECT_REPEATED("100000 marks", "\x80\2", "(", 100000, ".", GMEM_E_PICKLE_STACK);
    EXPECT_REPEATED("20000 tuples in a foreign object", "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "cmy\nNode\nN",
                    "\x85", 20000, "Ru.", GMEM_OK);
}

/* Each list holds the one before twice: 2^60 leaves, or none at all. */
static void test_sharing(void) {
    for (int leaves = 0; leaves < 2; leaves++) {
        bytes pickle = {NULL, 0, 0};
        zip_image image;
        PIECE(&pickle, "\x80\2(]q");
        bytes_number(&pickle, 0, 1);
        if (leaves) PIECE(&pickle, "K\1a");
        for (uint64_t i = 0; i < 60; i++) {
            PIECE(&pickle, "]q");
            bytes_number(&pickle, i + 1, 1);
            PIECE(&pickle, "(h");
            bytes_number(&pickle, i, 1);
            PIECE(&pickle, "h");
            bytes_number(&pickle, i, 1);
            PIECE(&pickle, "e");
        }
        PIECE(&pickle, "t.");
        torch_zip(&image, pickle.data, pickle.size);
        expect_metered("a billion laughs", &image.file, GMEM_E_LIMIT);
        bytes_free(&image.file);
        bytes_free(&pickle);
    }
}

static void test_many(void) {
    EXPECT_REPEATED("lists on the stack", "\x80\2", "]", 1000000, ".", GMEM_E_LIMIT);
    EXPECT_REPEATED("Nones on the stack", "\x80\2", "N", 1000000, ".", GMEM_E_PICKLE_STACK);
    EXPECT_REPEATED("dictionaries in a list", "\x80\2](", "}", 1000000, "e.", GMEM_E_LIMIT);
    EXPECT_REPEATED("numbers in a list", "\x80\2](", "K\1", 1000000, "e.", GMEM_E_LIMIT);
    EXPECT_REPEATED("memo entries", "\x80\4N", "\x94", 1000000, ".", GMEM_E_NO_TENSORS);
    EXPECT_REPEATED("shared tensors", "\x80\4" P_TENSOR "\x94](", "h\0", 100000, "e\x86.", GMEM_E_LIMIT);
    EXPECT_REPEATED("shared long strings",
                    "\x80\4\x8c\377"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
                    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
                    "\x94](",
                    "h\0", 30000, "e\x86.", GMEM_E_LIMIT);
    EXPECT_REPEATED("one global, often", "\x80\2}(" P_TEXT1("w") P_TENSOR P_TEXT1("x") "](", "cposix\nsystem\n", 50000,
                    "eu.", GMEM_OK);
    bytes pickle = {NULL, 0, 0};
    zip_image image;
    PIECE(&pickle, "\x80\2](");
    for (int i = 0; i < 1025; i++) {
        char name[32];
        const int size = snprintf(name, sizeof name, "cm\nn%d\n", i);
        bytes_add(&pickle, name, (size_t)size);
    }
    PIECE(&pickle, "e.");
    torch_zip(&image, pickle.data, pickle.size);
    expect_metered("too many globals", &image.file, GMEM_E_LIMIT);
    bytes_free(&image.file);
    bytes_free(&pickle);
}

/* An archive of nothing but empty entries. */
static void test_many_entries(void) {
    bytes file = {NULL, 0, 0};
    const uint64_t count = 20000;
    char name[16];
    for (uint64_t i = 0; i < count; i++) {
        bytes_add(&file, "PK\3\4\0\0\0\0\0\0\0\0\0\0", 14);
        bytes_number(&file, 0, 8);
        bytes_number(&file, 0, 4);
        bytes_number(&file, 7, 4);
        snprintf(name, sizeof name, "a/%05d", (int)i);
        bytes_add(&file, name, 7);
    }
    const uint64_t directory = file.size;
    for (uint64_t i = count; i-- > 0;) {
        bytes_add(&file, "PK\1\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
        bytes_number(&file, 0, 8);
        bytes_number(&file, 7, 8);
        bytes_number(&file, 0, 6);
        bytes_number(&file, i * 37, 4);
        snprintf(name, sizeof name, "a/%05d", (int)i);
        bytes_add(&file, name, 7);
    }
    const uint64_t end = file.size;
    bytes_add(&file, "PK\5\6\0\0\0\0", 8);
    bytes_number(&file, count, 2);
    bytes_number(&file, count, 2);
    bytes_number(&file, end - directory, 4);
    bytes_number(&file, directory, 4);
    bytes_number(&file, 0, 2);
    expect_metered("20000 entries, backwards", &file, GMEM_E_ZIP_MISSING);
    bytes_free(&file);
}

/* legacy ----------------------------------------------------------------------------------------------------------- */

enum { LEGACY_PARTS = 6 };

/* A stream of six parts; `changed` is replaced. The error lies `offset` bytes into part `at`. */
static void expect_legacy_bytes(const char *what, int changed, const char *part, size_t part_size, gmem_status code,
                                int at, size_t offset) {
    static const char storage[] = "\6\0\0\0\0\0\0\0"
                                  "012345678901234567890123";
    static const char object[] = "\x80\2}" P_TEXT1("w") L_TENSOR "s.";
    const struct {
        const char *data;
        size_t size;
    } parts[LEGACY_PARTS] = {{LEGACY_MAGIC, sizeof LEGACY_MAGIC - 1},   {LEGACY_PROTOCOL, sizeof LEGACY_PROTOCOL - 1},
                             {LEGACY_SYSTEM, sizeof LEGACY_SYSTEM - 1}, {object, sizeof object - 1},
                             {LEGACY_KEYS, sizeof LEGACY_KEYS - 1},     {storage, sizeof storage - 1}};
    bytes file = {NULL, 0, 0};
    size_t starts[LEGACY_PARTS];
    for (int i = 0; i < LEGACY_PARTS; i++) {
        starts[i] = file.size;
        bytes_add(&file, i == changed ? part : parts[i].data, i == changed ? part_size : parts[i].size);
    }
    if (code == GMEM_OK) {
        gmem_file *opened = NULL;
        CHECK_OK(gmem_file_open_memory(shared_context, what, file.data, file.size, ".", &opened, NULL));
        gmem_file_close(opened);
    } else {
        expect(what, &file, code, starts[at] + offset);
    }
    bytes_free(&file);
}

#define EXPECT_LEGACY(what, changed, part, code, at, offset) \
    expect_legacy_bytes((what), (changed), (part), sizeof(part) - 1, (code), (at), (offset))

static void test_legacy(void) {
#define L_ID(rest)          "(X\7\0\0\0storage" P_CLASS("Float") P_TEXT1("0") "X\3\0\0\0cpuK\6" rest "t"
#define L_OBJECT(id, parts) "\x80\2" P_REBUILD id "Q" parts P_REST "R."
    EXPECT_LEGACY("good", -1, "", GMEM_OK, 0, 0);
    EXPECT_LEGACY("another magic number", 0, "\x80\2\x8a\12\x6d\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.",
                  GMEM_E_LEGACY_HEADER, 0, 0);
    EXPECT_LEGACY("a dictionary first", 0, "\x80\2}.\0\0\0\0", GMEM_E_LEGACY_HEADER, 0, 0);
    EXPECT_LEGACY("another protocol", 1, "\x80\2M\xea\3.", GMEM_E_LEGACY_HEADER, 1, 0);
    EXPECT_LEGACY("no byte order", 2, "\x80\2}.", GMEM_E_LEGACY_HEADER, 2, 0);
    EXPECT_LEGACY("big-endian", 2, "\x80\2}X\15\0\0\0little_endian\x89s.", GMEM_E_BYTEORDER, 2, 0);
    EXPECT_LEGACY("keys that are no list", 4, "\x80\2}.", GMEM_E_LEGACY_HEADER, 4, 0);
    EXPECT_LEGACY("a key that is no string", 4,
                  "\x80\2]J\0\0\0\x80"
                  "a.",
                  GMEM_E_STORAGE, 4, 3);
    EXPECT_LEGACY("an unknown key", 4, "\x80\2]" P_TEXT1("1") "a.", GMEM_E_STORAGE, 4, 3);
    EXPECT_LEGACY("a key twice", 4, "\x80\2]" P_TEXT1("0") "a" P_TEXT1("0") "a.", GMEM_E_STORAGE, 4, 10);
    EXPECT_LEGACY("no key", 4, "\x80\2].", GMEM_E_STORAGE, 3,
                  sizeof("\x80\2}" P_TEXT1("w") P_REBUILD) - 1 + sizeof L_STORAGE - 2);
    EXPECT_LEGACY("another count", 5,
                  "\5\0\0\0\0\0\0\0"
                  "01234567890123456789",
                  GMEM_E_STORAGE, 5, 0);
    EXPECT_LEGACY("a cut count", 5, "\6\0\0\0", GMEM_E_TRUNCATED, 5, 0);
    EXPECT_LEGACY("a cut storage", 5,
                  "\6\0\0\0\0\0\0\0"
                  "0123",
                  GMEM_E_TRUNCATED, 5, 0);
    EXPECT_LEGACY("bytes at the end", 5,
                  "\6\0\0\0\0\0\0\0"
                  "012345678901234567890123x",
                  GMEM_E_PICKLE_TRAILING, 5, 32);
    EXPECT_LEGACY("a view", 3, L_OBJECT(L_ID("(" P_TEXT1("v") "K\2K\4t"), "K\2K\2\x85K\1\x85"), GMEM_OK, 0, 0);
    EXPECT_LEGACY("a tensor past its view", 3, L_OBJECT(L_ID("(" P_TEXT1("v") "K\2K\3t"), "K\2K\2\x85K\1\x85"),
                  GMEM_E_TENSOR, 3,
                  sizeof("\x80\2" P_REBUILD L_ID("(" P_TEXT1("v") "K\2K\3t") "QK\2K\2\x85K\1\x85" P_REST) - 1);
    EXPECT_LEGACY("a view past the storage", 3, L_OBJECT(L_ID("(" P_TEXT1("v") "K\3K\4t"), "K\0K\2\x85K\1\x85"),
                  GMEM_E_STORAGE, 3, sizeof("\x80\2" P_REBUILD L_ID("(" P_TEXT1("v") "K\3K\4t")) - 1);
    EXPECT_LEGACY("a view of two parts", 3, L_OBJECT(L_ID("K\0K\1\x86"), "K\0K\2\x85K\1\x85"), GMEM_E_PICKLE_VALUE, 3,
                  sizeof("\x80\2" P_REBUILD L_ID("K\0K\1\x86")) - 1);
    EXPECT_LEGACY("an id without a view", 3, L_OBJECT(L_ID(""), "K\0K\2\x85K\1\x85"), GMEM_E_PICKLE_VALUE, 3,
                  sizeof("\x80\2" P_REBUILD L_ID("")) - 1);
    EXPECT_LEGACY("a module's class and source", 3,
                  "\x80\2](" L_TENSOR "(X\6\0\0\0modulecmy\nNet\n" P_TEXT1("f") P_TEXT1("s") "tQ)\x81}be.", GMEM_OK, 0,
                  0);
#undef L_ID
#undef L_OBJECT
}

/* every prefix, every bit ------------------------------------------------------------------------------------------ */

static void read_everything(const gmem_file *file, size_t size) {
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        const int64_t count = gmem_tensor_count(tensor);
        const size_t wanted = (size_t)count * gmem_type_bytes(tensor->type);
        if (wanted > size) {
            CHECK(wanted <= size);
            continue;
        }
        void *out = malloc(wanted + 1);
        gmem_tensor_read(tensor, 0, count, out);
        free(out);
    }
}

static int survives(const unsigned char *data, size_t size) {
    gmem_file *file = NULL;
    gmem_error error;
    void *copy;
    memset(&error, 0, sizeof error);
    const gmem_status status = open_copy(shared_context, data, size, ".", &file, &copy, &error);
    if (status == GMEM_OK) read_everything(file, size);
    const int ok = (status == GMEM_OK) == (file != NULL) && error.code == status;
    gmem_file_close(file);
    free(copy);
    return ok;
}

static void test_mutations(unsigned char *data, size_t size) {
    int survived = 1;
    for (size_t i = 0; i < size; i++)
        survived &= survives(data, i);
    CHECK(survived);
    for (size_t i = 0; i < 8 * size; i++) {
        data[i / 8] ^= (unsigned char)(1 << i % 8);
        survived &= survives(data, size);
        data[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    CHECK(survived);
    CHECK(survives(data, size));
}

static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    unsigned char *data = (unsigned char *)malloc(1 << 20);
    if (!file || !data) {
        printf("cannot read %s\n", path);
        exit(1);
    }
    *size = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

/* No prefix of a zip or a legacy stream is valid. */
static void test_prefixes(const unsigned char *data, size_t size) {
    int refused = 1;
    for (size_t i = 0; i < size; i++) {
        gmem_file *file = NULL;
        refused &= gmem_file_open_memory(shared_context, "x", data, i, ".", &file, NULL) != GMEM_OK;
        gmem_file_close(file);
    }
    CHECK(refused);
}

static void test_failing_allocations(const unsigned char *data, size_t size) {
    for (int for_good = 0; for_good < 2; for_good++) {
        failing state = {-1, 0, 0};
        gmem_context *context = failing_context(&state);
        const int64_t before = state.live;
        int64_t failures = 0;
        for (;; failures++) {
            gmem_file *file = NULL;
            gmem_error error;
            memset(&error, 0, sizeof error);
            state.countdown = failures;
            state.for_good = for_good;
            const gmem_status status = gmem_file_open_memory(context, "x", data, size, ".", &file, &error);
            const int failed = state.countdown <= 0 && status != GMEM_OK;
            state.countdown = -1;
            if (!failed) {
                CHECK_INT(status, GMEM_OK);
                gmem_file_close(file);
                break;
            }
            CHECK_INT(status, GMEM_E_MEMORY);
            CHECK_INT(error.code, GMEM_E_MEMORY);
            CHECK(file == NULL);
            CHECK_INT(state.live, before);
        }
        CHECK(failures > 5);
        CHECK_INT(state.live, before);
        gmem_context_destroy(context);
    }
}

static void test_robustness(void) {
    static const char *const names[] = {"container_zip.pth", "container_proto4.pth", "container_legacy.pth"};
    for (int i = 0; i < 3; i++) {
        char path[64];
        size_t size;
        snprintf(path, sizeof path, "tests/golden/%s", names[i]);
        unsigned char *data = read_file(path, &size);
        test_prefixes(data, size);
        test_mutations(data, size);
        test_failing_allocations(data, size);
        free(data);
    }
    zip_image image;
    torch_zip(&image, "\x80\2}" P_TEXT1("w") P_TENSOR "sX\1\0\0\0xcmy\nNet\n)\x81s.",
              sizeof("\x80\2}" P_TEXT1("w") P_TENSOR "sX\1\0\0\0xcmy\nNet\n)\x81s.") - 1);
    test_mutations(image.file.data, image.file.size);
    test_failing_allocations(image.file.data, image.file.size);
    bytes_free(&image.file);
}

int main(void) {
    CHECK_OK(gmem_context_create(NULL, &shared_context, NULL));
    test_container("container_zip.pth", GMEM_TORCH_ZIP);
    test_container("container_proto4.pth", GMEM_TORCH_ZIP);
    test_container("container_legacy.pth", GMEM_TORCH_LEGACY);
    test_training_checkpoint();
    test_zip_end();
    test_zip_directory();
    test_zip_local();
    test_zip_names();
    test_zip_contents();
    test_zip64_entry();
    test_pickle_opcodes();
    test_pickle_stack();
    test_pickle_values();
    test_pickle_storages();
    test_pickle_tensors();
    test_keys();
    test_values();
    test_tensors();
    test_foreign();
    test_deep();
    test_sharing();
    test_many();
    test_many_entries();
    test_legacy();
    test_robustness();
    gmem_context_destroy(shared_context);
    return check_report();
}
