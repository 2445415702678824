/* Autoencoders from their files: names of the parts in each naming scheme, structure from the tensors, weights.
 * One architecture, CompVis's AutoencoderKL (latent-diffusion, ldm/models/autoencoder.py), serves VA-VAE and SD-VAE. */
#include "autoencoder.h"
#include "fallback.h"
#include "file.h"

#include <stdio.h>

/* names ----------------------------------------------------------------------------------------------------------- */

typedef enum gmem__ae_scheme {
    GMEM__AE_COMPVIS,
    GMEM__AE_DIFFUSERS,
    GMEM__AE_DIFFUSERS_OLD, /* before diffusers 0.17: other names in the attention */
    GMEM__AE_SCHEMES
} gmem__ae_scheme;

/* Where a layer stands. In the names: %h "encoder" or "decoder", %d "down" or "up", %p "" or "post_", %l the level's
 * number in the file, %b the block in its level. */
typedef enum gmem__ae_place {
    GMEM__AE_CONV_IN,
    GMEM__AE_LEVEL,
    GMEM__AE_BLOCK,
    GMEM__AE_BLOCK_ATTENTION,
    GMEM__AE_RESAMPLE,
    GMEM__AE_MIDDLE,
    GMEM__AE_MIDDLE_1,
    GMEM__AE_MIDDLE_ATTENTION,
    GMEM__AE_MIDDLE_2,
    GMEM__AE_NORM_OUT,
    GMEM__AE_CONV_OUT,
    GMEM__AE_QUANT,
    GMEM__AE_PLACES
} gmem__ae_place;

static const char *const gmem__ae_place_names[GMEM__AE_PLACES][2] = {
    /* CompVis                    diffusers */
    {"%h.conv_in", "%h.conv_in"},
    {"%h.%d.%l", "%h.%d_blocks.%l"},
    {"%h.%d.%l.block.%b", "%h.%d_blocks.%l.resnets.%b"},
    {"%h.%d.%l.attn.%b", "%h.%d_blocks.%l.attentions.%b"},
    {"%h.%d.%l.%dsample.conv", "%h.%d_blocks.%l.%dsamplers.0.conv"},
    {"%h.mid", "%h.mid_block"},
    {"%h.mid.block_1", "%h.mid_block.resnets.0"},
    {"%h.mid.attn_1", "%h.mid_block.attentions.0"},
    {"%h.mid.block_2", "%h.mid_block.resnets.1"},
    {"%h.norm_out", "%h.conv_norm_out"},
    {"%h.conv_out", "%h.conv_out"},
    {"%pquant_conv", "%pquant_conv"},
};

/* What a residual block and an attention are made of. */
typedef enum gmem__ae_leaf {
    GMEM__AE_SELF, /* the place is the layer */
    GMEM__AE_NORM1,
    GMEM__AE_CONV1,
    GMEM__AE_NORM2,
    GMEM__AE_CONV2,
    GMEM__AE_SHORTCUT,
    GMEM__AE_ATTENTION_NORM,
    GMEM__AE_QUERY,
    GMEM__AE_KEY,
    GMEM__AE_VALUE,
    GMEM__AE_PROJECTION,
    GMEM__AE_LEAVES
} gmem__ae_leaf;

static const char *const gmem__ae_leaf_names[GMEM__AE_LEAVES][GMEM__AE_SCHEMES] = {
    /* CompVis        diffusers          old diffusers */
    {"", "", ""},
    {".norm1", ".norm1", ".norm1"},
    {".conv1", ".conv1", ".conv1"},
    {".norm2", ".norm2", ".norm2"},
    {".conv2", ".conv2", ".conv2"},
    {".nin_shortcut", ".conv_shortcut", ".conv_shortcut"},
    {".norm", ".group_norm", ".group_norm"},
    {".q", ".to_q", ".query"},
    {".k", ".to_k", ".key"},
    {".v", ".to_v", ".value"},
    {".proj_out", ".to_out.0", ".proj_attn"},
};

/* Prefixes under which pipelines keep their autoencoder: alone, Stable Diffusion's checkpoints, others'. */
static const char *const gmem__ae_prefixes[] = {"", "first_stage_model.", "vae."};

#define GMEM__AE_MAX_LEVELS 8
#define GMEM__AE_MAX_BLOCKS 16

/* building -------------------------------------------------------------------------------------------------------- */

/* The state of reading one half: the layer list so far and the channels that its end gives. */
typedef struct gmem__ae_builder {
    gmem__store *store;
    const gmem_file *file;
    const char *prefix;
    gmem__ae_scheme scheme;
    int decoder;
    int levels, blocks; /* of the half; blocks of each level */
    int64_t channels;   /* -1: whatever the first convolution takes */
    gmem__ae_net *net;
    gmem_error *error;
} gmem__ae_builder;

/* Where in its half a layer stands, by the file's own numbers. */
typedef struct gmem__ae_position {
    gmem__ae_place place;
    int level, block;
} gmem__ae_position;

typedef struct gmem__ae_name {
    char text[128];
} gmem__ae_name;

static gmem__ae_position gmem__ae_at(gmem__ae_place place, int level, int block) {
    gmem__ae_position position = {place, level, block};
    return position;
}

static size_t gmem__ae_append(gmem__ae_name *name, size_t used, const char *text) {
    size_t room = sizeof name->text - used, length = strlen(text);
    if (length >= room) length = room - 1; /* cannot happen with the tables above */
    memcpy(name->text + used, text, length);
    name->text[used + length] = 0;
    return used + length;
}

/* The name of a part in the file's scheme; `tail` is ".weight", ".bias", "." for the prefix of all below, or "". */
static gmem__ae_name gmem__ae_key(const gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf,
                                  const char *tail) {
    gmem__ae_name name;
    const char *pattern = gmem__ae_place_names[at.place][b->scheme != GMEM__AE_COMPVIS];
    size_t used = gmem__ae_append(&name, 0, b->prefix);
    for (const char *c = pattern; *c; c++) {
        char text[24] = {*c, 0};
        if (*c == '%') {
            c++;
            if (*c == 'h') snprintf(text, sizeof text, "%s", b->decoder ? "decoder" : "encoder");
            if (*c == 'd') snprintf(text, sizeof text, "%s", b->decoder ? "up" : "down");
            if (*c == 'p') snprintf(text, sizeof text, "%s", b->decoder ? "post_" : "");
            if (*c == 'l') snprintf(text, sizeof text, "%d", at.level);
            if (*c == 'b') snprintf(text, sizeof text, "%d", at.block);
        }
        used = gmem__ae_append(&name, used, text);
    }
    used = gmem__ae_append(&name, used, gmem__ae_leaf_names[leaf][b->scheme]);
    gmem__ae_append(&name, used, tail);
    return name;
}

/* Whether the file has any tensor at or below a place: one alone makes all the others needed. */
static int gmem__ae_has(const gmem__ae_builder *b, gmem__ae_position at) {
    gmem__ae_name name = gmem__ae_key(b, at, GMEM__AE_SELF, ".");
    return gmem__file_has_prefix(b->file, name.text);
}

static gmem_status gmem__ae_take_norm(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf, int64_t channels,
                                      gmem__ae_norm *out) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight"), bias = gmem__ae_key(b, at, leaf, ".bias");
    if (channels % GMEM__AE_GROUPS != 0)
        return gmem__fail(b->error, GMEM_E_SHAPE, "%s: %lld channels do not divide into %d groups", weight.text,
                          (long long)channels, GMEM__AE_GROUPS);
    GMEM__TRY(gmem__store_vector(b->store, weight.text, channels, &out->weight, b->error));
    return gmem__store_vector(b->store, bias.text, channels, &out->bias, b->error);
}

/* A 1x1 convolution may be stored as the matrix that it is, as diffusers' attention does. */
static gmem_status gmem__ae_take_weight(gmem__ae_builder *b, const char *name, int64_t out_channels,
                                        int64_t in_channels, int kernel, gmem__weight *out) {
    const gmem_tensor *tensor = gmem_file_find(b->file, name);
    if (kernel == 1 && tensor && tensor->rank == 2)
        return gmem__store_matrix(b->store, name, out_channels, in_channels, out, b->error);
    return gmem__store_conv(b->store, name, out_channels, in_channels, kernel, out, b->error);
}

static gmem_status gmem__ae_take_conv(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf,
                                      int64_t out_channels, int64_t in_channels, int kernel, gmem__ae_conv *out) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight"), bias = gmem__ae_key(b, at, leaf, ".bias");
    out->kernel = kernel;
    GMEM__TRY(gmem__ae_take_weight(b, weight.text, out_channels, in_channels, kernel, &out->weight));
    gmem_compute compute = b->store->context->compute;
    if (compute == GMEM_COMPUTE_INT8) compute = GMEM_COMPUTE_BF16; /* images suffer from int8 */
    if (compute != GMEM_COMPUTE_F32) GMEM__TRY(gmem__store_narrow(b->store, &out->weight, compute, 0, b->error));
    return gmem__store_vector(b->store, bias.text, out_channels, &out->bias, b->error);
}

/* The channels of a convolution, as its weight (out, in, kernel, kernel) has them; in: the builder's, or any. */
static gmem_status gmem__ae_channels(gmem__ae_builder *b, gmem__ae_position at, gmem__ae_leaf leaf, int kernel,
                                     int64_t *in_channels, int64_t *out_channels) {
    gmem__ae_name weight = gmem__ae_key(b, at, leaf, ".weight");
    int64_t shape[4] = {-1, b->channels, kernel, kernel};
    const gmem_tensor *tensor = NULL;
    GMEM__TRY(gmem__need(b->file, weight.text, 4, shape, &tensor, b->error));
    *out_channels = tensor->shape[0];
    *in_channels = tensor->shape[1];
    if (*in_channels < 1 || *out_channels < 1)
        return gmem__fail(b->error, GMEM_E_SHAPE, "%s has no elements", weight.text);
    return GMEM_OK;
}

static gmem__ae_layer *gmem__ae_add(gmem__ae_builder *b, gmem__ae_kind kind, int64_t in_channels,
                                    int64_t out_channels) {
    gmem__ae_layer *layer = b->net->layers + b->net->count++;
    layer->kind = kind;
    layer->in = in_channels;
    layer->out = out_channels;
    layer->stride = 1;
    b->channels = out_channels;
    return layer;
}

static gmem_status gmem__ae_add_conv(gmem__ae_builder *b, gmem__ae_position at, int kernel, int stride, int upsample) {
    int64_t in_channels = 0, out_channels = 0;
    GMEM__TRY(gmem__ae_channels(b, at, GMEM__AE_SELF, kernel, &in_channels, &out_channels));
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_CONV, in_channels, out_channels);
    layer->stride = stride;
    layer->upsample = upsample;
    return gmem__ae_take_conv(b, at, GMEM__AE_SELF, out_channels, in_channels, kernel, &layer->conv[0]);
}

static gmem_status gmem__ae_add_residual(gmem__ae_builder *b, gmem__ae_position at) {
    int64_t in = 0, out = 0;
    GMEM__TRY(gmem__ae_channels(b, at, GMEM__AE_CONV1, 3, &in, &out));
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_RESIDUAL, in, out);
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_NORM1, in, &layer->norm[0]));
    GMEM__TRY(gmem__ae_take_conv(b, at, GMEM__AE_CONV1, out, in, 3, &layer->conv[0]));
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_NORM2, out, &layer->norm[1]));
    GMEM__TRY(gmem__ae_take_conv(b, at, GMEM__AE_CONV2, out, out, 3, &layer->conv[1]));
    if (in == out) return GMEM_OK;
    return gmem__ae_take_conv(b, at, GMEM__AE_SHORTCUT, out, in, 1, &layer->conv[2]);
}

static gmem_status gmem__ae_add_attention(gmem__ae_builder *b, gmem__ae_position at) {
    static const gmem__ae_leaf leaves[4] = {GMEM__AE_QUERY, GMEM__AE_KEY, GMEM__AE_VALUE, GMEM__AE_PROJECTION};
    int64_t channels = b->channels;
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_ATTENTION, channels, channels);
    GMEM__TRY(gmem__ae_take_norm(b, at, GMEM__AE_ATTENTION_NORM, channels, &layer->norm[0]));
    for (int i = 0; i < 4; i++) {
        GMEM__TRY(gmem__ae_take_conv(b, at, leaves[i], channels, channels, 1, &layer->conv[i]));
    }
    return GMEM_OK;
}

static gmem_status gmem__ae_add_level(gmem__ae_builder *b, int level) {
    int attention = 0;
    for (int block = 0; block < b->blocks; block++) {
        attention |= gmem__ae_has(b, gmem__ae_at(GMEM__AE_BLOCK_ATTENTION, level, block));
    }
    for (int block = 0; block < b->blocks; block++) {
        GMEM__TRY(gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_BLOCK, level, block)));
        if (attention) GMEM__TRY(gmem__ae_add_attention(b, gmem__ae_at(GMEM__AE_BLOCK_ATTENTION, level, block)));
    }
    return GMEM_OK;
}

static gmem_status gmem__ae_add_middle(gmem__ae_builder *b) {
    gmem__ae_position attention = gmem__ae_at(GMEM__AE_MIDDLE_ATTENTION, 0, 0);
    GMEM__TRY(gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_MIDDLE_1, 0, 0)));
    if (gmem__ae_has(b, attention)) GMEM__TRY(gmem__ae_add_attention(b, attention));
    return gmem__ae_add_residual(b, gmem__ae_at(GMEM__AE_MIDDLE_2, 0, 0));
}

static gmem_status gmem__ae_add_end(gmem__ae_builder *b) {
    gmem__ae_layer *layer = gmem__ae_add(b, GMEM__AE_NORM_SILU, b->channels, b->channels);
    GMEM__TRY(gmem__ae_take_norm(b, gmem__ae_at(GMEM__AE_NORM_OUT, 0, 0), GMEM__AE_SELF, b->channels, &layer->norm[0]));
    return gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_OUT, 0, 0), 3, 1, 0);
}

/* The quantisation convolutions stand outside the halves; newer files lack them. */
static gmem_status gmem__ae_add_quant(gmem__ae_builder *b) {
    gmem__ae_position at = gmem__ae_at(GMEM__AE_QUANT, 0, 0);
    return gmem__ae_has(b, at) ? gmem__ae_add_conv(b, at, 1, 1, 0) : GMEM_OK;
}

/* The file's number of a level, 0 having the pixels' resolution: diffusers counts in the order in which they run. */
static int gmem__ae_number(const gmem__ae_builder *b, int level) {
    return b->scheme != GMEM__AE_COMPVIS && b->decoder ? b->levels - 1 - level : level;
}

static gmem_status gmem__ae_add_encoder(gmem__ae_builder *b) {
    b->channels = 3;
    GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_IN, 0, 0), 3, 1, 0));
    for (int level = 0; level < b->levels; level++) {
        GMEM__TRY(gmem__ae_add_level(b, gmem__ae_number(b, level)));
        if (level + 1 < b->levels)
            GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_RESAMPLE, gmem__ae_number(b, level), 0), 3, 2, 0));
    }
    GMEM__TRY(gmem__ae_add_middle(b));
    GMEM__TRY(gmem__ae_add_end(b));
    return gmem__ae_add_quant(b);
}

static gmem_status gmem__ae_add_decoder(gmem__ae_builder *b) {
    b->channels = -1;
    GMEM__TRY(gmem__ae_add_quant(b));
    GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_CONV_IN, 0, 0), 3, 1, 0));
    GMEM__TRY(gmem__ae_add_middle(b));
    for (int level = b->levels - 1; level >= 0; level--) {
        GMEM__TRY(gmem__ae_add_level(b, gmem__ae_number(b, level)));
        if (level > 0)
            GMEM__TRY(gmem__ae_add_conv(b, gmem__ae_at(GMEM__AE_RESAMPLE, gmem__ae_number(b, level), 0), 3, 1, 1));
    }
    return gmem__ae_add_end(b);
}

/* Counts levels and blocks by the highest numbers in the file, so that a gap in between is a missing tensor. */
static gmem_status gmem__ae_measure(gmem__ae_builder *b) {
    b->levels = b->blocks = 0;
    for (int level = 0; level < GMEM__AE_MAX_LEVELS; level++) {
        if (gmem__ae_has(b, gmem__ae_at(GMEM__AE_LEVEL, level, 0))) b->levels = level + 1;
    }
    for (int level = 0; level < b->levels; level++) {
        for (int block = b->blocks; block < GMEM__AE_MAX_BLOCKS; block++) {
            if (gmem__ae_has(b, gmem__ae_at(GMEM__AE_BLOCK, level, block))) b->blocks = block + 1;
        }
    }
    if (b->levels == 0 || b->blocks == 0)
        return gmem__fail(b->error, GMEM_E_ARCHITECTURE, "the %s has no levels of residual blocks",
                          b->decoder ? "decoder" : "encoder");
    return GMEM_OK;
}

static gmem_status gmem__ae_build(gmem__ae_builder *b, int decoder, gmem__ae_net *net) {
    b->decoder = decoder;
    b->net = net;
    GMEM__TRY(gmem__ae_measure(b));
    net->capacity = (int64_t)b->levels * (2 * b->blocks + 1) + 7; /* the middle 3, the ends 4 */
    net->layers = (gmem__ae_layer *)gmem__store_alloc(b->store, net->capacity, sizeof *net->layers);
    if (!net->layers) return gmem__fail(b->error, GMEM_E_MEMORY, "no memory for the autoencoder's layers");
    return decoder ? gmem__ae_add_decoder(b) : gmem__ae_add_encoder(b);
}

/* opening --------------------------------------------------------------------------------------------------------- */

/* The scheme of the names below the builder's prefix; 0 where there is no decoder. */
static int gmem__ae_recognise_scheme(gmem__ae_builder *b) {
    gmem__ae_position middle = gmem__ae_at(GMEM__AE_MIDDLE, 0, 0);
    b->scheme = GMEM__AE_COMPVIS;
    if (gmem__ae_has(b, middle)) return 1;
    b->scheme = GMEM__AE_DIFFUSERS_OLD;
    gmem__ae_name query = gmem__ae_key(b, gmem__ae_at(GMEM__AE_MIDDLE_ATTENTION, 0, 0), GMEM__AE_QUERY, ".");
    if (gmem__file_has_prefix(b->file, query.text)) return 1;
    b->scheme = GMEM__AE_DIFFUSERS;
    return gmem__ae_has(b, middle);
}

static gmem_status gmem__ae_recognise(gmem__ae_builder *b) {
    b->decoder = 1;
    for (size_t i = 0; i < sizeof gmem__ae_prefixes / sizeof *gmem__ae_prefixes; i++) {
        b->prefix = gmem__ae_prefixes[i];
        if (gmem__ae_recognise_scheme(b)) return GMEM_OK;
    }
    return gmem__fail(b->error, GMEM_E_ARCHITECTURE,
                      "no autoencoder: expected tensors decoder.mid.* (CompVis) or decoder.mid_block.* (diffusers)");
}

/* SD-VAE's scaling factor, where the file states it: a number `scaling_factor`, at the root or in its `config`, or
 * safetensors metadata of that name; else the published 0.18215. (diffusers keeps it in a config.json beside the file,
 * which the library doesn't read: its caller passes the factor as `multiplier` where it differs.) */
static double gmem__ae_multiplier(const gmem_file *file) {
    double value = 0;
    const char *text = gmem_file_metadata(file, "scaling_factor");
    int found = gmem_file_number(file, "scaling_factor", &value) ||
                gmem_file_number(file, "config.scaling_factor", &value) ||
                (text && gmem__parse_double(text, strlen(text), &value));
    return found && value > 0 && value - value == 0 ? value : 0.18215;
}

static gmem_status gmem__ae_describe(gmem_autoencoder *ae, const gmem__ae_builder *b, int decoder_levels,
                                     int encoder_levels) {
    gmem_autoencoder_info *info = &ae->info;
    const gmem__ae_layer *last = ae->decoder.layers + ae->decoder.count - 1;
    info->latent_channels = ae->decoder.layers[0].in;
    info->factor = (int64_t)1 << (decoder_levels - 1);
    info->parameters = ae->store.parameters;
    info->has_encoder = ae->encoder.count > 0;
    info->family = info->latent_channels == 4 || b->scheme != GMEM__AE_COMPVIS ? GMEM_AE_SDVAE : GMEM_AE_VAVAE;
    info->multiplier = info->family == GMEM_AE_SDVAE ? gmem__ae_multiplier(ae->file) : 1;
    if (last->out != 3)
        return gmem__fail(b->error, GMEM_E_SHAPE, "the decoder gives %lld channels, expected 3", (long long)last->out);
    if (!info->has_encoder) return GMEM_OK;
    last = ae->encoder.layers + ae->encoder.count - 1;
    if (last->out != 2 * info->latent_channels)
        return gmem__fail(b->error, GMEM_E_SHAPE, "the encoder gives %lld channels, expected mean and logvar of %lld",
                          (long long)last->out, (long long)info->latent_channels);
    if (encoder_levels != decoder_levels)
        return gmem__fail(b->error, GMEM_E_ARCHITECTURE, "the encoder has %d levels, the decoder %d", encoder_levels,
                          decoder_levels);
    return GMEM_OK;
}

static gmem_status gmem__ae_load(gmem_autoencoder *ae, gmem_error *error) {
    gmem__ae_builder b;
    int decoder_levels = 0, encoder_levels = 0;
    memset(&b, 0, sizeof b);
    b.store = &ae->store;
    b.file = ae->file;
    b.error = error;
    GMEM__TRY(gmem__ae_recognise(&b));
    GMEM__TRY(gmem__ae_build(&b, 1, &ae->decoder));
    decoder_levels = b.levels;
    b.decoder = 0;
    if (gmem__ae_has(&b, gmem__ae_at(GMEM__AE_MIDDLE, 0, 0))) {
        GMEM__TRY(gmem__ae_build(&b, 0, &ae->encoder));
        encoder_levels = b.levels;
    }
    return gmem__ae_describe(ae, &b, decoder_levels, encoder_levels);
}

static gmem_status gmem__ae_open(gmem_autoencoder *ae, const gmem_autoencoder_desc *desc, gmem_error *error) {
    gmem_context *context = (gmem_context *)(uintptr_t)ae->context;
    ae->file = desc->file;
    if (!desc->file) {
        GMEM__TRY(gmem_file_open(context, desc->path, desc->key, &ae->file, error));
        ae->file_owned = 1;
    }
    ae->store.context = context;
    ae->store.file = ae->file;
    gmem_status status = gmem__choose_device(context, desc->backend, &ae->store.device, error);
    if (status == GMEM_OK) status = gmem__ae_load(ae, error);
    if (status == GMEM_OK) status = gmem__store_upload(&ae->store, error);
    return gmem__fail_in(error, status, gmem_file_path(ae->file));
}

GMEM_API gmem_status gmem_autoencoder_open(gmem_context *context, const gmem_autoencoder_desc *desc,
                                           gmem_autoencoder **out, gmem_error *error) {
    gmem_error why;
    if (!context || !desc || !out || (!desc->path && !desc->file))
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_autoencoder_open needs a context, a file and an output");
    gmem_autoencoder *ae = (gmem_autoencoder *)gmem__alloc(context, 1, sizeof *ae);
    if (!ae) return gmem__fail(error, GMEM_E_MEMORY, "no memory for an autoencoder");
    ae->context = context;
    const gmem_status status = gmem__ae_open(ae, desc, &why);
    if (status != GMEM_OK) {
        const int again = ae->store.device && gmem__falls_back(context, status, &why);
        gmem_autoencoder_desc on_cpu = *desc;
        gmem_autoencoder_close(ae);
        on_cpu.backend = GMEM_BACKEND_CPU;
        if (again) return gmem_autoencoder_open(context, &on_cpu, out, error);
        if (error) *error = why;
        return status;
    }
    gmem__quoted path;
    gmem__log(context, "%s: autoencoder, %lld latent channels, %lld pixels a latent",
              gmem__quote(&path, gmem_file_path(ae->file)), (long long)ae->info.latent_channels,
              (long long)ae->info.factor);
    *out = ae;
    return GMEM_OK;
}

GMEM_API void gmem_autoencoder_close(gmem_autoencoder *autoencoder) {
    if (!autoencoder) return;
    if (autoencoder->store.context) gmem__store_free(&autoencoder->store);
    if (autoencoder->file_owned) gmem_file_close(autoencoder->file);
    gmem__free(autoencoder->context, autoencoder, 1, sizeof *autoencoder);
}

GMEM_API const gmem_autoencoder_info *gmem_autoencoder_get_info(const gmem_autoencoder *autoencoder) {
    return &autoencoder->info;
}
