/* The autoencoder's networks as the list of their layers: what loading makes and a run walks through. */
#ifndef GMEM__AUTOENCODER_H
#define GMEM__AUTOENCODER_H

#include "internal.h"

typedef struct gmem__ae_conv {
    gmem__weight weight; /* (out, in * kernel * kernel) */
    const float *bias;   /* (out) */
    int kernel;
} gmem__ae_conv;

typedef struct gmem__ae_norm {
    const float *weight, *bias; /* (channels) */
} gmem__ae_norm;

typedef enum gmem__ae_kind {
    GMEM__AE_CONV,      /* conv[0] */
    GMEM__AE_RESIDUAL,  /* x + conv[1](silu(norm[1](conv[0](silu(norm[0](x)))))), x through conv[2] where out != in */
    GMEM__AE_ATTENTION, /* x + conv[3](attention(conv[0](n), conv[1](n), conv[2](n))) with n = norm[0](x); one head */
    GMEM__AE_NORM_SILU  /* silu(norm[0](x)) */
} gmem__ae_kind;

typedef struct gmem__ae_layer {
    gmem__ae_kind kind;
    int64_t in, out;      /* channels */
    int stride, upsample; /* of a CONV, as in gmem__conv */
    gmem__ae_norm norm[2];
    gmem__ae_conv conv[4];
} gmem__ae_layer;

/* The encoder or the decoder, quantisation convolutions included. */
typedef struct gmem__ae_net {
    gmem__ae_layer *layers; /* (count), in the store's memory */
    int64_t count, capacity;
} gmem__ae_net;

struct gmem_autoencoder {
    const gmem_context *context;
    gmem_file *file;
    int file_owned;
    gmem__store store;
    gmem_autoencoder_info info;
    gmem__ae_net encoder, decoder;
};

/* 32 groups, eps 1e-6: `Normalize` of CompVis's latent-diffusion, ldm/modules/diffusionmodules/model.py. */
#define GMEM__AE_GROUPS 32
#define GMEM__AE_EPS    1e-6f

/* The published rounding: 127.5 y + 128 truncated. GMem's first version added 127.5. */
#define GMEM__PIXEL_OFFSET 128.0f

/* Latents (count, channels, height, width) of an engine, as the transformer made them. */
typedef struct gmem__latents {
    const gmem__engine *engine;
    const float *x;
    int64_t count, height, width;
    const float *mean, *std; /* (channels) of the host, or NULL */
    double multiplier;
} gmem__latents;

/* autoencoder_run.c: gmem_denormalize, gmem_decode and gmem_pixels without the host between: pixels (count, height *
 * factor, width * factor, 3). */
GMEM__FN gmem_status gmem__decode_pixels(const gmem_autoencoder *autoencoder, const gmem__latents *latents,
                                         float offset, uint8_t *pixels, gmem_error *error);

#endif /* GMEM__AUTOENCODER_H */
