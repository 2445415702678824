/* A context whose allocations are counted and can be made to fail. */
#ifndef FAILING_H
#define FAILING_H

#include "../src/api.h"

#include "check.h"
#include "golden.h"

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
    golden_choose_backend(&desc);
    state->countdown = -1;
    if (gmem_context_create(&desc, &context, NULL) != GMEM_OK) exit(1);
    return context;
}

/* Makes the first allocation of `attempt` fail, then the second and so on, once and then for good, until it succeeds.
 * Every failed attempt must end with E_MEMORY and each must give all back. Expects more than `least` failures. */
static inline void check_failing_allocations(gmem_status (*attempt)(gmem_context *context, void *user), void *user,
                                             int64_t least) {
    for (int for_good = 0; for_good < 2; for_good++) {
        failing state = {-1, for_good, 0};
        gmem_context *context = failing_context(&state);
        const int64_t before = state.live;
        gmem_status status = GMEM_E_MEMORY;
        int64_t failures = 0;
        for (; failures < 10000; failures++) {
            state.countdown = failures;
            status = attempt(context, user);
            if (!CHECK_INT(state.live, before) || status == GMEM_OK) break;
            if (!CHECK_STATUS(GMEM_E_MEMORY, status)) break;
        }
        CHECK(status == GMEM_OK && failures > least);
        gmem_context_destroy(context);
        CHECK_INT(state.live, 0);
    }
}

#endif /* FAILING_H */
