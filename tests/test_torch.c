/* Reading torch checkpoints: the recorded files, the legacy stream, every prefix and every flipped bit of small files,
 * and every allocation failing. test_zip.c and test_pickle.c take the rules one by one. */
#include "golden.h"
#include "torch_check.h"

/* recorded files -------------------------------------------------------------------------------------------------- */

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

/* legacy ---------------------------------------------------------------------------------------------------------- */

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

/* every prefix, every bit ----------------------------------------------------------------------------------------- */

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

typedef struct file_bytes {
    const unsigned char *data;
    size_t size;
} file_bytes;

static gmem_status open_bytes(gmem_context *context, void *user) {
    const file_bytes *from = (const file_bytes *)user;
    gmem_file *file = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    const gmem_status status = gmem_file_open_memory(context, "x", from->data, from->size, ".", &file, &error);
    CHECK_INT(error.code, status);
    CHECK((status == GMEM_OK) == (file != NULL));
    gmem_file_close(file);
    return status;
}

static void test_failing_allocations(const unsigned char *data, size_t size) {
    file_bytes from = {data, size};
    check_failing_allocations(open_bytes, &from, 5);
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
    test_legacy();
    test_robustness();
    gmem_context_destroy(shared_context);
    return check_report();
}
