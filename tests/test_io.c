/* Files: the system's (POSIX and the C library's), their refusals, atomic writing, and every call failing. */
#include "check.h"
#include "failing_io.h"
#include "resident.h"

#include <stdlib.h>

/* The C library's files, which POSIX systems never use otherwise, under other names. */
#define GMEM__C_FILES
#define gmem__system_io       c_files_io
#define gmem__io_forget       c_files_forget
#define gmem__io_reason       c_files_reason
#define gmem__io_no_such_file c_files_no_such_file
#define gmem__bytes_open      c_files_bytes_open
#define gmem__bytes_close     c_files_bytes_close
gmem_io c_files_io(void);
#include "../src/io.c"
#undef gmem__system_io
#undef gmem__io_forget
#undef gmem__io_reason
#undef gmem__io_no_such_file
#undef gmem__bytes_open
#undef gmem__bytes_close
#undef GMEM__C_FILES

static char target[600], missing_folder[700], folder[600]; /* beside this program */

static int exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

static int holds(const char *path, const char *text) {
    char found[256];
    FILE *file = fopen(path, "rb");
    size_t bytes = file ? fread(found, 1, sizeof found, file) : 0;
    if (file) fclose(file);
    return file && bytes == strlen(text) && memcmp(found, text, bytes) == 0;
}

static void put(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) exit(1);
}

/* opening --------------------------------------------------------------------------------------------------------- */

static void test_refusals(gmem_context *context) {
    gmem_error error;
    gmem_file *file = NULL;
    CHECK_STATUS(GMEM_E_OPEN, gmem_file_open(context, missing_folder, NULL, &file, &error));
    CHECK_CONTAINS(error.message, "no such file or folder");
    CHECK_TEXT(error.path, missing_folder);
    CHECK_STATUS(GMEM_E_OPEN, gmem_file_open(context, folder, NULL, &file, &error));
    CHECK_CONTAINS(error.message, "it is a folder");
    CHECK_STATUS(GMEM_E_OPEN, gmem_file_open(context, "/dev/null", NULL, &file, &error));
    CHECK_STATUS(GMEM_E_OPEN, gmem_file_open(context, "", NULL, &file, &error));
    put(target, "", 0);
    CHECK_STATUS(GMEM_E_TRUNCATED, gmem_file_open(context, target, NULL, &file, &error));
    put(target, "short", 5);
    CHECK_STATUS(GMEM_E_TRUNCATED, gmem_file_open(context, target, NULL, &file, &error));
    CHECK_INT(error.offset, 5);
    put(target, "this is no checkpoint", 21);
    CHECK_STATUS(GMEM_E_FORMAT, gmem_file_open(context, target, NULL, &file, &error));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_file_open(context, NULL, NULL, &file, &error));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_file_open_memory(context, "x", NULL, 4, NULL, &file, &error));
    CHECK(file == NULL);
    remove(target);
}

/* A file that is shorter than its size said. */
static int64_t size_and_more(void *user, void *file) { return failing_io_size(user, file) + 10; }

static void test_shrunk(void) {
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_error error;
    gmem__bytes bytes;
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), 1);
    context->io.size = size_and_more;
    put(target, "twelve bytes", 12);
    CHECK_STATUS(GMEM_E_TRUNCATED, gmem__bytes_open(context, target, &bytes, &error));
    CHECK_INT(error.offset, 12);
    CHECK(failing_io_clean(&io, &memory));
    gmem_context_destroy(context);
    remove(target);
}

/* The same bytes mapped, read, read a few at a time, and through the C library. */
static void test_ways_of_reading(void) {
    unsigned char data[1000];
    for (int way = 0; way < 4; way++) {
        failing memory = {0, 0, 0};
        failing_io io;
        gmem__bytes bytes;
        gmem_io system = way == 3 ? c_files_io() : gmem__system_io();
        gmem_context *context = failing_io_context(&io, &memory, system, way != 0);
        if (way == 2) io.most = 7;
        for (int i = 0; i < 1000; i++)
            data[i] = (unsigned char)(i * 7 + way);
        put(target, data, sizeof data);
        CHECK_OK(gmem__bytes_open(context, target, &bytes, NULL));
        CHECK(bytes.size == 1000 && memcmp(bytes.data, data, 1000) == 0);
        CHECK_INT(io.open, 0);
        CHECK_INT(io.mapped, way == 0);
        CHECK_INT(io.calls[FAILING_READ], way == 0 ? 0 : way == 2 ? 143 : 1);
        gmem__bytes_close(context, &bytes);
        CHECK(failing_io_clean(&io, &memory));
        gmem_context_destroy(context);
    }
    remove(target);
}

/* A value for every element, so that a page that came back as another shows. */
static gmem_status fill_numbers(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    (void)user;
    (void)index;
    (void)error;
    for (int64_t i = 0; i < count; i++)
        ((int32_t *)out)[i] = (int32_t)(first + i);
    return GMEM_OK;
}

static int holds_numbers(const gmem_tensor *tensor) {
    int32_t value;
    int64_t right = 0, count = gmem_tensor_count(tensor);
    for (int64_t i = 0; i < count; i++) {
        memcpy(&value, (const char *)tensor->data + 4 * i, 4);
        right += value == (int32_t)i;
    }
    return right == count;
}

enum { DISCARD_MAPPED, DISCARD_UNHOOKED, DISCARD_READ };

/* Bytes that are not needed leave the memory and are the same afterwards; whatever is no mapping's stays. */
static void test_discarding(int way) {
    static const int64_t shape[1] = {4 << 20}, bytes = 16 << 20;
    const gmem_tensor numbers = gmem_tensor_make("numbers", GMEM_I32, 1, shape, NULL);
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_file *file = NULL;
    gmem_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.tensors = &numbers;
    desc.count = 1;
    desc.fill = fill_numbers;
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), way == DISCARD_READ);
    if (way == DISCARD_UNHOOKED) context->io.discard = NULL;
    CHECK_OK(gmem_save(context, target, &desc, NULL));
    if (!CHECK_OK(gmem_file_open(context, target, NULL, &file, NULL))) return;
    const gmem_tensor *tensor = gmem_file_find(file, "numbers");
    const unsigned char *data = (const unsigned char *)tensor->data, *begin = file->bytes.data;
    CHECK(holds_numbers(tensor));
    int64_t before = resident_bytes();
    gmem__file_discard(file, data + 4, 8); /* less than a page */
    gmem__file_discard(file, data, bytes);
    int64_t after = resident_bytes();
    CHECK_INT(io.discarded, way == DISCARD_MAPPED ? bytes + 8 : 0);
    if (way == DISCARD_MAPPED && io.system.discard && before >= 0) CHECK(before - after > bytes - (1 << 20));
    CHECK(holds_numbers(tensor));
    io.discarded = 0;
    gmem__file_discard(file, data, 0);
    gmem__file_discard(file, data, bytes + 1); /* past the end */
    gmem__file_discard(file, begin + file->bytes.size, 1);
    gmem__file_discard(file, &memory, sizeof memory);
    CHECK_INT(io.discarded, 0);
    gmem__file_discard(file, begin, file->bytes.size);
    CHECK_INT(io.discarded, way == DISCARD_MAPPED ? file->bytes.size : 0);
    CHECK(holds_numbers(tensor));
    gmem_file_close(file);
    CHECK(failing_io_clean(&io, &memory));
    gmem_context_destroy(context);
    remove(target);
}

/* writing --------------------------------------------------------------------------------------------------------- */

static void test_writing(gmem_io system) {
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_error error;
    gmem_context *context = failing_io_context(&io, &memory, system, 0);
    remove(target);
    CHECK_OK(gmem_save_bytes(context, target, "first", 5, &error));
    CHECK(holds(target, "first"));
    io.most = 2;
    CHECK_OK(gmem_save_bytes(context, target, "second one", 10, &error));
    CHECK(holds(target, "second one"));
    CHECK_OK(gmem_save_bytes(context, target, NULL, 0, &error));
    CHECK(holds(target, ""));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_save_bytes(context, target, NULL, 1, &error));
    CHECK_STATUS(GMEM_E_OPEN, gmem_save_bytes(context, folder, "x", 1, &error));
    CHECK_STATUS(GMEM_E_OPEN, gmem_save_bytes(context, missing_folder, "x", 1, &error));
    CHECK_TEXT(error.path, missing_folder);
    CHECK_CONTAINS(error.message, "no such file or folder");
    CHECK_STATUS(GMEM_E_OPEN, gmem_save_bytes(context, "", "x", 1, &error));
    CHECK(failing_io_clean(&io, &memory));
    gmem_context_destroy(context);
    remove(target);
}

/* A rename would put a regular file in the device's place. */
static void test_devices_stay(void) {
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_error error;
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), 0);
    CHECK_STATUS(GMEM_E_OPEN, gmem_save_bytes(context, "/dev/null", "x", 1, &error));
    CHECK_CONTAINS(error.message, "device");
    CHECK(failing_io_clean(&io, &memory));
    gmem_context_destroy(context);
}

/* Left by a crash, or another writer's: never touched. */
static void test_taken_names(gmem_context *context) {
    char taken[700];
    snprintf(taken, sizeof taken, "%s.tmp0", target);
    put(taken, "other", 5);
    CHECK_OK(gmem_save_bytes(context, target, "mine", 4, NULL));
    CHECK(holds(target, "mine"));
    CHECK(holds(taken, "other"));
    remove(taken);
    remove(target);
}

/* failures -------------------------------------------------------------------------------------------------------- */

static gmem_status save_tensors(gmem_context *context, gmem_error *error) {
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    static const char *const metadata[] = {"a", "b"};
    static const int64_t shape[2] = {2, 3};
    gmem_tensor tensors[2];
    gmem_save_desc desc;
    tensors[0] = gmem_tensor_make("rows", GMEM_F32, 2, shape, values);
    tensors[1] = tensors[0];
    tensors[1].name = "turned";
    tensors[1].stride[0] = 1;
    tensors[1].stride[1] = 2;
    memset(&desc, 0, sizeof desc);
    desc.tensors = tensors;
    desc.count = 2;
    desc.metadata = metadata;
    desc.metadata_count = 1;
    return gmem_save(context, target, &desc, error);
}

static gmem_status save_bytes(gmem_context *context, gmem_error *error) {
    return gmem_save_bytes(context, target, "new", 3, error);
}

static gmem_status open_tensors(gmem_context *context, gmem_error *error) {
    gmem_file *file = NULL;
    gmem_status status = gmem_file_open(context, "tests/golden/container.expect.safetensors", NULL, &file, error);
    gmem_file_close(file);
    return status;
}

static gmem_status open_zip(gmem_context *context, gmem_error *error) {
    gmem_file *file = NULL;
    gmem_status status = gmem_file_open(context, "tests/golden/container_zip.pth", NULL, &file, error);
    gmem_file_close(file);
    return status;
}

typedef gmem_status (*action)(gmem_context *context, gmem_error *error);
static const action actions[] = {save_tensors, save_bytes, open_tensors, open_zip};

/* Call `at` of `op` fails, once or for good: either the action does not need it, or it ends with one of the codes that
 * belong to it and leaves nothing, the old file at its place included. */
static int survives(action run, failing_op op, int64_t at, int for_good, int no_map) {
    static const gmem_status codes[FAILING_OPS] = {GMEM_E_OPEN, GMEM_E_READ,  GMEM_E_READ,  GMEM_E_WRITE,
                                                   GMEM_E_SYNC, GMEM_E_WRITE, GMEM_E_RENAME};
    failing memory = {0, 0, 0};
    failing_io io;
    gmem_error error;
    memset(&error, 0, sizeof error);
    gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), no_map);
    put(target, "old", 3);
    io.op = op;
    io.countdown = at;
    io.for_good = for_good;
    io.most = 64;
    gmem_status status = run(context, &error);
    int64_t failed = io.failed;
    CHECK(failing_io_clean(&io, &memory));
    if (status != GMEM_OK) {
        CHECK_STATUS(codes[op], status);
        CHECK_STATUS(status, error.code);
        CHECK(error.path[0] != 0);
        CHECK(failed > 0);
        CHECK(holds(target, "old"));
    }
    io.countdown = -1;
    CHECK_OK(run(context, NULL)); /* the context is as good as ever */
    gmem_context_destroy(context);
    return failed > 0;
}

static void test_io_failures(void) {
    int64_t reached = 0;
    for (int run = 0; run < 4; run++) {
        for (int op = 0; op < FAILING_OPS; op++) {
            for (int variant = 0; variant < 4; variant++) {
                for (int64_t at = 0; survives(actions[run], (failing_op)op, at, variant & 1, variant >> 1); at++)
                    reached++;
            }
        }
    }
    CHECK(reached > 200);
    remove(target);
}

static void test_allocation_failures(void) {
    int64_t reached = 0;
    for (int run = 0; run < 4; run++) {
        for (int variant = 0; variant < 4; variant++) {
            for (int64_t at = 0;; at++) {
                failing memory = {0, 0, 0};
                failing_io io;
                gmem_error error;
                gmem_context *context = failing_io_context(&io, &memory, gmem__system_io(), variant >> 1);
                put(target, "old", 3);
                memory.countdown = at;
                memory.for_good = variant & 1;
                gmem_status status = actions[run](context, &error);
                int done = memory.countdown > 0;
                CHECK(failing_io_clean(&io, &memory));
                if (status != GMEM_OK) CHECK_STATUS(GMEM_E_MEMORY, status);
                if (status != GMEM_OK) CHECK(holds(target, "old"));
                memory.countdown = -1;
                CHECK_OK(actions[run](context, NULL));
                gmem_context_destroy(context);
                if (done) break;
                reached += status != GMEM_OK;
            }
        }
    }
    CHECK(reached > 60);
    remove(target);
}

static const void *never_map(void *user, void *file, int64_t bytes) {
    (void)user;
    (void)file;
    (void)bytes;
    return NULL;
}

/* Hooks of which one is missing would be found out in the middle of a call. */
static void test_missing_hooks(void) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    failing memory = {-1, 0, 0};
    memset(&desc, 0, sizeof desc);
    desc.allocator.user = &memory;
    desc.allocator.alloc = failing_alloc;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    desc.allocator.alloc = NULL;
    desc.allocator.release = failing_release;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    memset(&desc, 0, sizeof desc);
    desc.io = gmem__system_io();
    desc.io.write = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    desc.io = gmem__system_io();
    desc.io.open = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    desc.io = gmem__system_io();
    desc.io.map = never_map;
    desc.io.unmap = NULL;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    desc.io.map = NULL;
    desc.io.discard = failing_io_discard; /* from no mapping */
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    desc.io = c_files_io();
    desc.io.lock = failing_io_lock;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_context_create(&desc, &context, NULL));
    CHECK(context == NULL);
    desc.io.lock = NULL;
    CHECK_OK(gmem_context_create(&desc, &context, NULL));
    gmem_context_destroy(context);
}

int main(int count, char **arguments) {
    gmem_context *context = NULL;
    const char *slash = count > 0 ? strrchr(arguments[0], '/') : NULL;
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - arguments[0]) : 1, slash ? arguments[0] : ".");
    snprintf(target, sizeof target, "%.500s/test_io.out", folder);
    snprintf(missing_folder, sizeof missing_folder, "%.500s/no such folder/x", folder);
    if (gmem_context_create(NULL, &context, NULL) != GMEM_OK) return 1;
    test_missing_hooks();
    test_refusals(context);
    test_shrunk();
    test_ways_of_reading();
    for (int way = DISCARD_MAPPED; way <= DISCARD_READ; way++)
        test_discarding(way);
    test_writing(gmem__system_io());
    test_writing(c_files_io());
    test_devices_stay();
    test_taken_names(context);
    test_io_failures();
    test_allocation_failures();
    CHECK(!exists(target));
    gmem_context_destroy(context);
    return check_report();
}
