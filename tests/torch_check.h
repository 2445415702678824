/* What the tests of torch files share: how a made file is opened, refused, and weighed by the memory it takes. */
#ifndef TORCH_CHECK_H
#define TORCH_CHECK_H

#include "../src/api.h"

#include "check.h"
#include "failing.h"
#include "torch_bytes.h"

static gmem_context *shared_context; /* made by each program's main */

/* Opens a copy of exactly that size, so that a sanitizer sees every byte read outside. */
static inline gmem_status open_copy(gmem_context *context, const void *data, size_t size, const char *key,
                                    gmem_file **file, void **copy, gmem_error *error) {
    *copy = malloc(size ? size : 1);
    if (!*copy) exit(1);
    if (size) memcpy(*copy, data, size);
    return gmem_file_open_memory(context, "test.pth", *copy, size, key, file, error);
}

/* The file is refused with that code at that offset. */
static inline void expect(const char *what, const bytes *file, gmem_status code, size_t offset) {
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

static inline void check_number(const gmem_file *file, const char *key, double expected) {
    double number = -12345.0;
    CHECK(gmem_file_number(file, key, &number));
    CHECK(number == expected);
}

/* Bytes of memory at their highest, on top of the failing allocator. */
typedef struct metered {
    failing base;
    int64_t peak;
} metered;

static inline void *metered_alloc(void *user, size_t size) {
    metered *state = (metered *)user;
    void *memory = failing_alloc(&state->base, size);
    if (state->base.live > state->peak) state->peak = state->base.live;
    return memory;
}

static inline void metered_release(void *user, void *memory, size_t size) {
    failing_release(&((metered *)user)->base, memory, size);
}

/* Opens in a metered context: the code, and memory in proportion. */
static inline void expect_metered(const char *what, const bytes *file, gmem_status code) {
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

#endif /* TORCH_CHECK_H */
