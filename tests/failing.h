/* A context whose allocations are counted and can be made to fail. */
#ifndef FAILING_H
#define FAILING_H

#include "../src/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct failing {
    int64_t countdown; /* allocations until the one that fails; negative: none does */
    int for_good;      /* all after it fail too */
    int64_t live;      /* bytes */
} failing;

static inline void *failing_alloc(void *user, size_t bytes) {
    failing *state = (failing *)user;
    if (state->countdown == 0) {
        if (!state->for_good) state->countdown = -1;
        return NULL;
    }
    if (state->countdown > 0) state->countdown--;
    /* 64-byte aligned, the original pointer kept before it */
    char *raw = (char *)malloc(bytes + 128);
    if (!raw) return NULL;
    char *aligned = raw + 128 - (uintptr_t)raw % 64;
    memcpy(aligned - sizeof raw, &raw, sizeof raw);
    state->live += (int64_t)bytes;
    return aligned;
}

static inline void failing_release(void *user, void *memory, size_t bytes) {
    char *raw;
    ((failing *)user)->live -= (int64_t)bytes;
    memcpy(&raw, (char *)memory - sizeof raw, sizeof raw);
    free(raw);
}

static inline gmem_context *failing_context(failing *state) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.allocator.user = state;
    desc.allocator.alloc = failing_alloc;
    desc.allocator.release = failing_release;
    desc.threads = 1;
    state->countdown = -1;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) exit(1);
    return context;
}

#endif /* FAILING_H */
