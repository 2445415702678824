/* Noise that was recorded beforehand, played to a sampler in order. */
#ifndef TAPE_H
#define TAPE_H

#include "../src/api.h"

#include "check.h"

typedef struct tape {
    const float *noise; /* (draws, batch, per_picture) */
    int64_t draws, used;
} tape;

static inline gmem_status tape_play(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                    gmem_error *error) {
    tape *from = (tape *)user;
    (void)error;
    if (!CHECK_INT(index, from->used) || !CHECK(from->used < from->draws)) return GMEM_E_ARGUMENT;
    memcpy(out, from->noise + index * batch * per_picture, (size_t)(batch * per_picture) * sizeof *out);
    from->used++;
    return GMEM_OK;
}

#endif /* TAPE_H */
