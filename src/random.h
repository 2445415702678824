/* What random.c offers beyond the public API. */
#ifndef GMEM__RANDOM_H
#define GMEM__RANDOM_H

#include "internal.h"

/* One block of Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
GMEM__FN void gmem__philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Where and in which type the published samplers draw the noise of a step. Philox makes no difference. */
typedef enum gmem__draw_kind {
    GMEM__DRAW_HOST,      /* f32, on the CPU even where the start noise is the device's: the transport package */
    GMEM__DRAW_DEVICE_F64 /* f64 rounded to f32, on the device: REPA */
} gmem__draw_kind;

/* gmem_rng_normal for GMEM_DRAW_STEP. */
GMEM__FN void gmem__rng_step_normal(gmem_rng *rng, gmem__draw_kind kind, int64_t index, int64_t picture, int64_t count,
                                    int64_t per_picture, float *out);

#endif /* GMEM__RANDOM_H */
