/* The opened image encoder, and what its pictures and positions go through before it sees them. */
#ifndef GMEM__ENCODER_H
#define GMEM__ENCODER_H

#include "layers.h"

typedef struct gmem__vit_block {
    gmem__affine norm1, norm2;    /* (width) */
    gmem__layer qkv;              /* (3 width, width): the rows of q, then k, then v, head after head in each */
    gmem__layer proj;             /* (width, width) */
    gmem__layer mlp_in;           /* fc1 (mlp_hidden, width); or w12 (2 mlp_hidden, width), first half gated by SiLU */
    gmem__layer mlp_out;          /* (width, mlp_hidden) */
    const float *scale1, *scale2; /* (width) LayerScale's, of the attention and of the MLP */
} gmem__vit_block;

/* Nothing changes after gmem_image_encoder_open, so calls on several threads share it. */
struct gmem_image_encoder {
    const gmem_context *context;
    gmem_file *file;
    int owns_file;
    gmem__store store;
    gmem_image_encoder_info info;
    char name[64];
    int swiglu;
    int64_t leading; /* tokens before those of the patches: the class token and the registers */

    gmem__layer patch;       /* (width, 3 * patch * patch) */
    gmem__vit_block *blocks; /* (depth) */
    gmem__affine norm;       /* (width) the final one */
    const float *position;   /* (width, leading + tokens): the leading tokens, then what the patches are added to */
};

/* preprocess.c ---------------------------------------------------------------------------------------------------- */

/* Resampling of one dimension: each of `out` values is a weighted sum of `count` others. */
typedef struct gmem__taps {
    int64_t out, count;
    int64_t *index; /* (out, count) */
    float *weight;  /* (out, count) */
} gmem__taps;

/* Bicubic, as PyTorch's interpolate places it (align_corners false): with A = -0.75 on the four neighbours, or
 * antialiased with A = -0.5. 0 without memory. */
GMEM__FN int gmem__taps_make(const gmem_context *context, int64_t in, int64_t out, int antialias, gmem__taps *taps);
GMEM__FN void gmem__taps_free(const gmem_context *context, gmem__taps *taps);

/* Pictures as the caller has them. */
typedef struct gmem__pictures {
    const float *image;    /* (count, 3, height, width) in [-1, 1], or NULL: */
    const uint8_t *pixels; /* (count, height, width, 3) */
    int published;         /* pixels: [0, 1] is fed where [-1, 1] is meant */
    int64_t count, height, width;
} gmem__pictures;

/* Picture i normalised and resampled: out (3, down->out, across->out). line (width) is memory for that. */
GMEM__FN void gmem__preprocess(const gmem__pictures *pictures, int64_t i, const gmem__taps *down,
                               const gmem__taps *across, float *line, float *out);

/* Positions of `side` x `side` patches, as timm's resample_abs_pos_embed makes them of a grid for pictures of another
 * size: row `leading` + y * grid + x of stored (1, leading + grid * grid, width) -> out (width, side * side), rows
 * out_stride apart. 0 without memory. */
GMEM__FN int gmem__resample_position(const gmem_context *context, const gmem_tensor *stored, int64_t leading,
                                     int64_t grid, int64_t side, float *out, int64_t out_stride);

#endif /* GMEM__ENCODER_H */
