/* Opening a transformer: the table of its tensors (layers.h), positions, and the refusal of everything else. */
#include "fallback.h"
#include "network.h"

#include <math.h>
#include <stdio.h>

/* the tensors of a network ---------------------------------------------------------------------------------------- */

/* Options that decide whether a tensor belongs to the network. */
enum {
    GMEM__IF_SWIGLU = 1,
    GMEM__IF_GELU = 2,
    GMEM__IF_RMSNORM = 4,
    GMEM__IF_QK_NORM = 8,
    GMEM__IF_QK_BIAS = 16,
    GMEM__IF_SNIPPETS = 32,
    GMEM__IF_LABELS = 64
};

static int gmem__options(const gmem_network_info *info) {
    int options = info->swiglu ? GMEM__IF_SWIGLU : GMEM__IF_GELU;
    if (info->rmsnorm) options |= GMEM__IF_RMSNORM;
    if (info->qk_norm) options |= GMEM__IF_QK_NORM | (info->rmsnorm ? 0 : GMEM__IF_QK_BIAS);
    return options | (info->snippet_width ? GMEM__IF_SNIPPETS : GMEM__IF_LABELS);
}

typedef enum gmem__extent {
    GMEM__HIDDEN,
    GMEM__QKV,
    GMEM__HEAD,
    GMEM__MLP,
    GMEM__MLP_IN,
    GMEM__MODULATION,
    GMEM__FINAL_MODULATION,
    GMEM__OUTPUT,
    GMEM__TIME,
    GMEM__SNIPPET,
    GMEM__LABELS,
    GMEM__CHANNELS,
    GMEM__PATCH,
    GMEM__EXTENT_COUNT
} gmem__extent;

static void gmem__extents(const gmem_network *network, int64_t extents[GMEM__EXTENT_COUNT]) {
    const gmem_network_info *info = &network->info;
    extents[GMEM__HIDDEN] = info->hidden;
    extents[GMEM__QKV] = 3 * info->hidden;
    extents[GMEM__HEAD] = info->head_dim;
    extents[GMEM__MLP] = info->mlp_hidden;
    extents[GMEM__MLP_IN] = (info->swiglu ? 2 : 1) * info->mlp_hidden;
    extents[GMEM__MODULATION] = gmem__modulation_rows(info);
    extents[GMEM__FINAL_MODULATION] = 2 * info->hidden;
    extents[GMEM__OUTPUT] = info->patch * info->patch * network->out_channels;
    extents[GMEM__TIME] = GMEM__TIME_WIDTH;
    extents[GMEM__SNIPPET] = info->snippet_width;
    extents[GMEM__LABELS] = info->classes + 1;
    extents[GMEM__CHANNELS] = info->channels;
    extents[GMEM__PATCH] = info->patch;
}

/* Below "blocks.N.". */
static const gmem__part gmem__block_parts[] = {
    GMEM__VECTOR_PART("norm1.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem__dit_block, norm1.weight),
    GMEM__VECTOR_PART("norm2.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem__dit_block, norm2.weight),
    GMEM__LINEAR_PARTS("attn.qkv", 0, GMEM__QKV, GMEM__HIDDEN, gmem__dit_block, qkv),
    GMEM__VECTOR_PART("attn.q_norm.weight", GMEM__IF_QK_NORM, GMEM__HEAD, gmem__dit_block, q_norm.weight),
    GMEM__VECTOR_PART("attn.q_norm.bias", GMEM__IF_QK_BIAS, GMEM__HEAD, gmem__dit_block, q_norm.bias),
    GMEM__VECTOR_PART("attn.k_norm.weight", GMEM__IF_QK_NORM, GMEM__HEAD, gmem__dit_block, k_norm.weight),
    GMEM__VECTOR_PART("attn.k_norm.bias", GMEM__IF_QK_BIAS, GMEM__HEAD, gmem__dit_block, k_norm.bias),
    GMEM__LINEAR_PARTS("attn.proj", 0, GMEM__HIDDEN, GMEM__HIDDEN, gmem__dit_block, proj),
    GMEM__LINEAR_PARTS("mlp.w12", GMEM__IF_SWIGLU, GMEM__MLP_IN, GMEM__HIDDEN, gmem__dit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.w3", GMEM__IF_SWIGLU, GMEM__HIDDEN, GMEM__MLP, gmem__dit_block, mlp_out),
    GMEM__LINEAR_PARTS("mlp.fc1", GMEM__IF_GELU, GMEM__MLP_IN, GMEM__HIDDEN, gmem__dit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.fc2", GMEM__IF_GELU, GMEM__HIDDEN, GMEM__MLP, gmem__dit_block, mlp_out),
    GMEM__LINEAR_PARTS("adaLN_modulation.1", 0, GMEM__MODULATION, GMEM__HIDDEN, gmem__dit_block, modulation)};

/* The rest. */
static const gmem__part gmem__outer_parts[] = {
    GMEM__CONV_PARTS("x_embedder.proj", 0, GMEM__HIDDEN, GMEM__CHANNELS, GMEM__PATCH, gmem_network, patch),
    GMEM__LINEAR_PARTS("t_embedder.mlp.0", 0, GMEM__HIDDEN, GMEM__TIME, gmem_network, time1),
    GMEM__LINEAR_PARTS("t_embedder.mlp.2", 0, GMEM__HIDDEN, GMEM__HIDDEN, gmem_network, time2),
    GMEM__LINEAR_PARTS("condition_projection.linear", GMEM__IF_SNIPPETS, GMEM__HIDDEN, GMEM__SNIPPET, gmem_network,
                       condition),
    {"y_embedder.embedding_table.weight", GMEM__IF_LABELS, GMEM__PART_TABLE, GMEM__LABELS, GMEM__HIDDEN, 0,
     offsetof(gmem_network, labels)},
    GMEM__VECTOR_PART("final_layer.norm_final.weight", GMEM__IF_RMSNORM, GMEM__HIDDEN, gmem_network, final_norm.weight),
    GMEM__LINEAR_PARTS("final_layer.adaLN_modulation.1", 0, GMEM__FINAL_MODULATION, GMEM__HIDDEN, gmem_network,
                       final_modulation),
    GMEM__LINEAR_PARTS("final_layer.linear", 0, GMEM__OUTPUT, GMEM__HIDDEN, gmem_network, output)};

static const gmem__part_table gmem__block_table = GMEM__PART_TABLE_OF(gmem__block_parts);
static const gmem__part_table gmem__outer_table = GMEM__PART_TABLE_OF(gmem__outer_parts);

/* Training's leftovers, buffers that are recomputed or read on their own, and the first version's bank. */
static const char *const gmem__skipped[] = {"projector.", "projectors.", "feat_rope.",
                                            "pos_embed",  "memorybank",  "memoryfreq"};

/* refusing what is not in the table ------------------------------------------------------------------------------- */

static int gmem__is_expected(const char *name, int options) {
    int64_t index;
    if (gmem__is_listed(gmem__skipped, sizeof gmem__skipped / sizeof gmem__skipped[0], name)) return 1;
    const char *below = gmem__below_block(name, &index);
    return below ? gmem__is_part(&gmem__block_table, options, below) : gmem__is_part(&gmem__outer_table, options, name);
}

/* A tensor that no part of the network reads means another architecture, whose pictures would come out wrong. */
static gmem_status gmem__refuse_unexpected(const gmem_network *network, gmem_error *error) {
    int options = gmem__options(&network->info);
    for (int64_t i = 0; i < gmem_file_tensor_count(network->file); i++) {
        gmem__quoted quoted;
        const char *name = gmem_file_tensor(network->file, i)->name;
        if (!gmem__is_expected(name, options))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "%s: not a tensor of a network that gmem knows",
                              gmem__quote(&quoted, name));
    }
    return GMEM_OK;
}

/* loading ---------------------------------------------------------------------------------------------------------- */

/* The layers whose products are the pass: those of the blocks. What is computed once for many steps, and the two ends,
 * which are small and next to the picture, stay in f32. */
static gmem_status gmem__choose_compute(gmem_network *network, gmem_error *error) {
    const gmem_compute compute = network->context->compute;
    if (compute == GMEM_COMPUTE_F32) return GMEM_OK;
    for (int64_t i = 0; i < network->info.depth; i++) {
        gmem__dit_block *block = &network->blocks[i];
        GMEM__TRY(gmem__store_narrow(&network->store, &block->qkv.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->proj.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->mlp_in.weight, compute, network->info.swiglu, error));
        GMEM__TRY(gmem__store_narrow(&network->store, &block->mlp_out.weight, compute, 0, error));
    }
    return GMEM_OK;
}

static gmem_status gmem__load_weights(gmem_network *network, gmem_error *error) {
    int64_t extents[GMEM__EXTENT_COUNT];
    const gmem__part_sizes sizes = {gmem__options(&network->info), extents};
    gmem__extents(network, extents);
    network->blocks =
        (gmem__dit_block *)gmem__store_alloc(&network->store, network->info.depth, sizeof *network->blocks);
    if (!network->blocks) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the network");
    GMEM__TRY(gmem__load_parts(&network->store, &gmem__outer_table, &sizes, "", network, error));
    for (int64_t i = 0; i < network->info.depth; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%lld.", (long long)i);
        GMEM__TRY(gmem__load_parts(&network->store, &gmem__block_table, &sizes, prefix, &network->blocks[i], error));
    }
    return gmem__choose_compute(network, error);
}

/* positions -------------------------------------------------------------------------------------------------------- */

/* The stored one: training's EMA has moved it a little from the formula. pos_embed (1, tokens, hidden). */
static gmem_status gmem__read_position(const gmem_network *network, float *row, float *out, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    const gmem_tensor *stored;
    int64_t shape[3] = {1, 0, 0};
    shape[1] = info->tokens;
    shape[2] = info->hidden;
    GMEM__TRY(gmem__need(network->file, "pos_embed", 3, shape, &stored, error));
    if (stored->type == GMEM_I8) return gmem__fail(error, GMEM_E_TYPE, "pos_embed: expected floating point, found I8");
    for (int64_t token = 0; token < info->tokens; token++) {
        gmem_tensor_read_f32(stored, token * info->hidden, info->hidden, row);
        for (int64_t channel = 0; channel < info->hidden; channel++) {
            out[channel * info->tokens + token] = row[channel];
        }
    }
    return GMEM_OK;
}

/* Positions depend on a token's row or on its column alone: `value` for all tokens that share it, out (tokens). */
static void gmem__fill_line(const gmem_network_info *info, int is_row, int64_t coordinate, float value, float *out) {
    const int64_t columns = info->width / info->patch;
    const int64_t step = is_row ? 1 : columns, count = is_row ? columns : info->tokens / columns;
    for (int64_t i = 0; i < count; i++) {
        out[coordinate * (is_row ? columns : 1) + i * step] = value;
    }
}

static int64_t gmem__line_count(const gmem_network_info *info, int is_row) {
    return (is_row ? info->height : info->width) / info->patch;
}

/* Two-dimensional sine and cosine: the first half of the channels is the column's, the second the row's, and in each
 * half sines come first; angle = coordinate / 10000^(i / (hidden / 4)) (MAE, He et al., 2111.06377). */
static void gmem__compute_position(const gmem_network_info *info, float *out) {
    int64_t quarter = info->hidden / 4;
    for (int64_t channel = 0; channel < info->hidden; channel++) {
        double frequency = pow(10000.0, -(double)(channel % quarter) / (double)quarter);
        int is_row = channel / quarter >= 2, is_cosine = channel / quarter % 2 == 1;
        for (int64_t i = 0; i < gmem__line_count(info, is_row); i++) {
            double angle = (double)i * frequency;
            gmem__fill_line(info, is_row, i, (float)(is_cosine ? cos(angle) : sin(angle)),
                            out + channel * info->tokens);
        }
    }
}

static gmem_status gmem__load_position(gmem_network *network, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    float *row = (float *)gmem__store_alloc(&network->store, info->hidden, sizeof *row);
    float *position = (float *)gmem__store_alloc(&network->store, info->hidden * info->tokens, sizeof *position);
    if (!row || !position) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the positions");
    if (gmem_file_find(network->file, "pos_embed")) {
        GMEM__TRY(gmem__read_position(network, row, position, error));
    } else if (info->hidden % 4 == 0) {
        gmem__compute_position(info, position);
    } else {
        return gmem__fail(error, GMEM_E_MISSING_TENSOR,
                          "pos_embed: missing, and not computable for a width of %lld, no multiple of 4",
                          (long long)info->hidden);
    }
    network->position = position;
    return gmem__store_place(&network->store, &network->position, info->hidden * info->tokens, error);
}

/* Axial rotary embedding (EVA-02, Fang et al., 2303.11331): the first half of a head's pairs turns by the token's row,
 * the second by its column, pair i of a half by coordinate / 10000^(2 i / (head_dim / 2)). */
static gmem_status gmem__compute_rope(gmem_network *network, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    int64_t pairs = info->head_dim / 2, half = pairs / 2;
    float *cosine = (float *)gmem__store_alloc(&network->store, pairs * info->tokens, sizeof *cosine);
    float *sine = (float *)gmem__store_alloc(&network->store, pairs * info->tokens, sizeof *sine);
    if (!cosine || !sine) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the rotary embedding");
    for (int64_t pair = 0; pair < pairs; pair++) {
        float frequency = (float)pow(10000.0, -2.0 * (double)(pair % half) / (double)pairs);
        int is_row = pair < half;
        for (int64_t i = 0; i < gmem__line_count(info, is_row); i++) {
            float angle = (float)i * frequency; /* in f32, as trained */
            gmem__fill_line(info, is_row, i, (float)cos((double)angle), cosine + pair * info->tokens);
            gmem__fill_line(info, is_row, i, (float)sin((double)angle), sine + pair * info->tokens);
        }
    }
    network->rope_cosine = cosine;
    network->rope_sine = sine;
    GMEM__TRY(gmem__store_place(&network->store, &network->rope_cosine, pairs * info->tokens, error));
    return gmem__store_place(&network->store, &network->rope_sine, pairs * info->tokens, error);
}

/* opening ---------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__load_network(gmem_network *network, const gmem_network_desc *desc, gmem_error *error) {
    gmem_network_info *info = &network->info;
    network->store.context = network->context;
    network->store.file = network->file;
    GMEM__TRY(gmem__choose_device(network->context, desc->backend, &network->store.device, error));
    GMEM__TRY(gmem__recognise(network->file, desc, info, &network->out_channels, error));
    GMEM__TRY(gmem__refuse_unexpected(network, error));
    GMEM__TRY(gmem__load_weights(network, error));
    GMEM__TRY(gmem__load_position(network, error));
    if (info->rope) GMEM__TRY(gmem__compute_rope(network, error));
    GMEM__TRY(gmem__store_upload(&network->store, error));
    gmem__network_name(info, network->name, sizeof network->name);
    info->name = network->name;
    info->parameters = network->store.parameters;
    info->weight_bytes = network->store.bytes;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_network_open(gmem_context *context, const gmem_network_desc *desc, gmem_network **out,
                                       gmem_error *error) {
    if (!context || !desc || !out || (!desc->path && !desc->file) || desc->heads < 0 || desc->latent_height < 0 ||
        desc->latent_width < 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a network needs a path or a file, and sizes that are not negative");
    gmem_network *network = (gmem_network *)gmem__alloc(context, 1, sizeof *network);
    if (!network) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the network");
    network->context = context;
    network->file = desc->file;
    gmem_error why;
    gmem_status status = GMEM_OK;
    if (!desc->file) {
        status = gmem_file_open(context, desc->path, desc->key, &network->file, &why);
        network->owns_file = status == GMEM_OK;
    }
    if (status == GMEM_OK) {
        status = gmem__load_network(network, desc, &why);
        gmem__fail_in(&why, status, gmem_file_path(network->file));
    }
    if (status != GMEM_OK) {
        const int again = network->store.device && gmem__falls_back(context, status, &why);
        gmem_network_desc on_cpu = *desc;
        gmem_network_close(network);
        on_cpu.backend = GMEM_BACKEND_CPU;
        if (again) return gmem_network_open(context, &on_cpu, out, error);
        if (error) *error = why;
        return status;
    }
    gmem__quoted path;
    const gmem_network_info *info = &network->info;
    gmem__log(context, "%s: %s, %lld parameters, %lld blocks of width %lld, %lld heads",
              gmem__quote(&path, gmem_file_path(network->file)), info->name, (long long)info->parameters,
              (long long)info->depth, (long long)info->hidden, (long long)info->heads);
    *out = network;
    return GMEM_OK;
}

GMEM_API void gmem_network_close(gmem_network *network) {
    if (!network) return;
    gmem__store_free(&network->store);
    if (network->owns_file) gmem_file_close(network->file);
    gmem__free(network->context, network, 1, sizeof *network);
}

GMEM_API const gmem_network_info *gmem_network_get_info(const gmem_network *network) { return &network->info; }
