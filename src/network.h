/* The opened transformer: its weights by their place in the network, and what a pass needs to know about it. */
#ifndef GMEM__NETWORK_H
#define GMEM__NETWORK_H

#include "layers.h"

#define GMEM__MAX_TOKENS 65536
#define GMEM__TIME_WIDTH 256 /* of the sinusoidal time embedding: 128 cosines, then 128 sines */

typedef struct gmem__dit_block {
    gmem__affine norm1, norm2;   /* (hidden) */
    gmem__affine q_norm, k_norm; /* (head_dim) */
    gmem__layer qkv;             /* (3 hidden, hidden): the rows of q, then k, then v, head after head in each */
    gmem__layer proj;            /* (hidden, hidden) */
    gmem__layer mlp_in;          /* w12 (2 mlp_hidden, hidden), first half gated by SiLU; or fc1 (mlp_hidden, hidden) */
    gmem__layer mlp_out;         /* (hidden, mlp_hidden) */
    gmem__layer modulation;      /* (gmem__modulation_rows, hidden) */
} gmem__dit_block;

/* Nothing changes after gmem_network_open, so passes on several threads share it. */
struct gmem_network {
    const gmem_context *context;
    gmem_file *file;
    int owns_file;
    gmem__store store;
    gmem_network_info info;
    char name[64];
    int64_t out_channels; /* of the final layer: channels, or twice that with learned sigma */

    gmem__layer patch;                    /* (hidden, channels * patch * patch) */
    gmem__layer time1, time2;             /* (hidden, GMEM__TIME_WIDTH), (hidden, hidden) */
    gmem__layer condition;                /* (hidden, snippet_width) */
    gmem__weight labels;                  /* (classes + 1, hidden): the null label is the last */
    gmem__dit_block *blocks;              /* (depth) */
    gmem__affine final_norm;              /* (hidden) */
    gmem__layer final_modulation;         /* (2 hidden, hidden): shift, scale */
    gmem__layer output;                   /* (patch * patch * out_channels, hidden), channels innermost */
    const float *position;                /* (hidden, tokens) */
    const float *rope_cosine, *rope_sine; /* (head_dim / 2, tokens), or NULL */
};

/* Rows of a block's adaLN: shift, scale, gate of the attention, then of the MLP; without shift the other four. */
GMEM__INLINE int64_t gmem__modulation_rows(const gmem_network_info *info) {
    return (info->shift ? 6 : 4) * info->hidden;
}

/* recognise.c: what the selected tensors are: every field of `info` but name, parameters and weight_bytes. Shapes are
 * only looked at as far as that needs; loading checks them all. Errors: E_ARCHITECTURE, E_MISSING_TENSOR, E_SHAPE,
 * E_HEADS, E_LIMIT, E_ARGUMENT. */
GMEM__FN gmem_status gmem__recognise(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                     int64_t *out_channels, gmem_error *error);
/* recognise.c, also for other transformers: the number of "blocks.N.", which must have no gap; a tensor whose shape
 * decides something, of `rank`, every dimension at least 1; an integer from 1 to `highest` of the training
 * configuration, `config.NAME` or `config.model.NAME`, where it has one. */
GMEM__FN gmem_status gmem__count_blocks(const gmem_file *file, int64_t *depth, gmem_error *error);
GMEM__FN gmem_status gmem__source(const gmem_file *file, const char *name, int rank, const gmem_tensor **out,
                                  gmem_error *error);
GMEM__FN int gmem__config_size(const gmem_file *file, const char *name, int64_t highest, int64_t *out);
/* "attn.qkv.weight" of "blocks.12.attn.qkv.weight", with the block's index (at most INT32_MAX); or NULL. */
GMEM__FN const char *gmem__below_block(const char *name, int64_t *index);
/* "GMem-LightningDiT-XL/1", or the family alone. */
GMEM__FN void gmem__network_name(const gmem_network_info *info, char *out, size_t bytes);

/* pass.c: gmem_pass_create, with step caching (cache.h) where the threshold is positive; and gmem_pass_run on memory of
 * the pass's engine and on samples whose cached blocks are those of slot to slot + batch - 1, slot + batch at most
 * max_batch. A device's run is over, and its notes are there, when the engine has settled. */
GMEM__FN gmem_status gmem__pass_create(const gmem_network *network, int64_t max_batch, double cache_threshold,
                                       gmem_pass **out, gmem_error *error);
GMEM__FN gmem_status gmem__pass_run(gmem_pass *pass, int64_t slot, int64_t batch, float *x, const float *t,
                                    const float *snippets, const int64_t *labels, float *v, gmem_error *error);
GMEM__FN const gmem__engine *gmem__pass_engine(const gmem_pass *pass);
GMEM__FN gmem_status gmem__pass_nonfinite(const gmem_pass *pass, gmem_error *error); /* E_NONFINITE */
/* What caching has done. */
/* Its activations are given back; it can be asked what it did, and destroyed. */
GMEM__FN void gmem__pass_end(gmem_pass *pass);
GMEM__FN gmem_reuse gmem__pass_reuse(const gmem_pass *pass);
/* How many (time, condition) columns a pass can hold prepared. A sampler calls gmem_pass_prepare with as many
 * times as fit: limit / conditions, the null condition counted. */
GMEM__FN int64_t gmem__pass_prepare_limit(const gmem_pass *pass);

/* sample.c: the ends of a sampling, where they are not the host's memory: see gmem__integration. */
typedef struct gmem__ends {
    int draw_start;
    gmem_status (*take)(void *user, const gmem__engine *engine, const float *x, gmem_error *error);
    void *user;
} gmem__ends;

/* gmem_sample where the network is; x may be NULL with both ends. */
GMEM__FN gmem_status gmem__sample(const gmem_network *network, const gmem_sample_desc *desc, const gmem__ends *ends,
                                  float *x, gmem_error *error);

#endif /* GMEM__NETWORK_H */
