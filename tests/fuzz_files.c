/* libFuzzer over every reader: whatever the bytes, opening ends with an error or with data inside of them. Memory
 * beyond 16 times the input + 1 MiB is a crash. tests/fuzz.sh runs it. */
#include "failing.h"

#include "../src/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static struct {
    failing memory;
    int64_t input, limit;
} state;

static void *limited_alloc(void *user, size_t bytes) {
    if (state.memory.live + (int64_t)bytes > state.limit) {
        printf("an input of %lld bytes asks for more than %lld bytes\n", (long long)state.input,
               (long long)state.limit);
        abort();
    }
    return failing_alloc(user, bytes);
}

static gmem_context *make_context(void) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.isa = GMEM_ISA_SCALAR;
    desc.allocator.user = &state.memory;
    desc.allocator.alloc = limited_alloc;
    desc.allocator.release = failing_release;
    state.memory.countdown = -1;
    state.limit = 1 << 20;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) abort();
    return context;
}

static void check(int condition, const char *what) {
    if (condition) return;
    printf("failed: %s\n", what);
    abort();
}

/* Every element: the first and the last one by one, all of them in one go where they are not many. */
static void read_tensor(const gmem_tensor *tensor) {
    static float reals[65536];
    static int64_t integer;
    static unsigned char raw[8];
    int64_t count = gmem_tensor_count(tensor);
    if (count == 0) return;
    gmem_tensor_read(tensor, 0, 1, raw);
    gmem_tensor_read_i64(tensor, count - 1, 1, &integer);
    gmem_tensor_read_f32(tensor, 0, count < 65536 ? count : 65536, reals);
}

static void read_values(const gmem_file *file) {
    const char *key, *text;
    double number;
    int64_t cursor = 0, length = 0;
    while (gmem_file_next_value(file, &cursor, &key, &number, &text))
        length += (int64_t)strlen(key) + (text ? (int64_t)strlen(text) : 0);
    for (int64_t i = 0; i < gmem_file_foreign_count(file); i++)
        length += (int64_t)strlen(gmem_file_foreign(file, i));
    check(length >= 0, "texts end");
}

static void open_and_read(gmem_context *context, const uint8_t *data, size_t bytes, const char *key) {
    gmem_file *file = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    gmem_status status = gmem_file_open_memory(context, "fuzz", data, bytes, key, &file, &error);
    if (status != GMEM_OK) {
        check(file == NULL && error.code == status, "a refusal leaves nothing");
        check(error.offset >= -1 && error.offset <= (int64_t)bytes, "the offset lies in the file");
        return;
    }
    check(gmem_file_tensor_count(file) >= 0, "a file has tensors");
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        check(gmem_file_find(file, tensor->name) == tensor, "names find their tensors");
        read_tensor(tensor);
    }
    read_values(file);
    gmem_file_close(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    gmem_context *context = make_context();
    int64_t before = state.memory.live;
    state.input = (int64_t)bytes;
    state.limit = before + 16 * (int64_t)bytes + (1 << 20);
    open_and_read(context, data, bytes, NULL);
    open_and_read(context, data, bytes, ".");
    check(state.memory.live == before, "everything is given back");
    gmem_context_destroy(context);
    return 0;
}
