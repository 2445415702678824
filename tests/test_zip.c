/* The zip around a torch file: a malformed archive for every rule of the reader. */
#include "torch_check.h"

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

/* records --------------------------------------------------------------------------------------------------------- */

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

/* names and contents ---------------------------------------------------------------------------------------------- */

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

int main(void) {
    CHECK_OK(gmem_context_create(NULL, &shared_context, NULL));
    test_zip_end();
    test_zip_directory();
    test_zip_local();
    test_zip_names();
    test_zip_contents();
    test_zip64_entry();
    test_many_entries();
    gmem_context_destroy(shared_context);
    return check_report();
}
