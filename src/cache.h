/* Step caching: what the blocks after the first add to a sample is taken from an earlier pass where the first block
 * adds nearly what it added then. */
#ifndef GMEM__CACHE_H
#define GMEM__CACHE_H

#include "internal.h"

/* A slot is a sample of a sampling: a picture, or its null half. Everything is decided for each slot on its own, so
 * that a picture does not depend on its batch. */
typedef struct gmem__cache {
    double threshold; /* relative change of the first block's residual, L1; 0: off */
    int64_t slots, hidden, tokens;
    /* of the engine */
    float *first; /* (slots, hidden, tokens) what the first block added in the slot's last computed pass */
    float *rest;  /* (slots, hidden, tokens) what the blocks after it added then */
    float *start; /* (slots, hidden, tokens) this pass's residual stream before the first block, then after it */
    /* of the host */
    unsigned char *filled; /* (slots) whether there was such a pass */
    int64_t *computed;     /* (slots) the samples of this pass that are computed to the end, ascending */
    int64_t computed_count;
    gmem_reuse counts;
} gmem__cache;

/* Takes the memory where there is a threshold. */
GMEM__FN void gmem__cache_layout_host(gmem__cache *cache, gmem__arena *arena);
GMEM__FN void gmem__cache_layout_engine(gmem__cache *cache, gmem__arena *arena);
/* Forgets everything: a sampling starts. */
GMEM__FN void gmem__cache_reset(gmem__cache *cache);

/* Around the blocks of a pass over samples slot to slot + batch - 1, x (hidden, batch * tokens):
 * before the first, ... */
GMEM__FN void gmem__cache_enter(gmem__cache *cache, const gmem__engine *engine, int64_t batch, const float *x);
/* ... after it: leaves in x (hidden, computed_count * tokens) the samples that the other blocks are to see, ... */
GMEM__FN void gmem__cache_split(gmem__cache *cache, const gmem__engine *engine, int64_t slot, int64_t batch, float *x);
/* ... and after the last: x (hidden, batch * tokens) again, with the others' sum from memory. */
GMEM__FN void gmem__cache_join(gmem__cache *cache, const gmem__engine *engine, int64_t slot, int64_t batch, float *x);

#endif /* GMEM__CACHE_H */
