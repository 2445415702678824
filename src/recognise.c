/* Which network a file holds, told from its tensors and never from a flag: the family, its options and dimensions.
 *
 * What each option is told from:
 *   condition      condition_projection.* (a snippet) or y_embedder.* (a class label)
 *   SwiGLU, GELU   mlp.w12 and mlp.w3, or mlp.fc1 and mlp.fc2
 *   RMSNorm        norm1.weight, norm2.weight, final_layer.norm_final.weight; LayerNorm has none
 *   q/k norm       attn.q_norm.*, attn.k_norm.*
 *   shift          6 x hidden rows of adaLN_modulation; without it 4 x hidden
 *   RoPE           feat_rope.*, a buffer that every checkpoint with RoPE holds. A file without buffers (no pos_embed
 *                  either) says `use_rope` in its configuration; where it has none, networks with LightningDiT's SwiGLU
 *                  or RMSNorm have RoPE and others don't
 *   family         SiT has GELU, LayerNorm, no RoPE, shift, and no `projector.*`; everything else is LightningDiT
 *   REPA's time    `projectors.*` anywhere in the file; GMem on SiT always */
#include "file.h"
#include "network.h"

#include <stdio.h>

/* names --------------------------------------------------------------------------------------------------------- */

static int gmem__starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* `projectors.` as a component of any key, selected or not: training's EMA may lack what its model has. */
static int gmem__has_repa_projectors(const gmem_file *file) {
    static const char component[] = "projectors.";
    for (int64_t i = 0; i < file->leaf_count; i++) {
        const char *key = file->leaves[i].tensor.name;
        for (const char *at = strstr(key, component); at; at = strstr(at + 1, component)) {
            if (at == key || at[-1] == '.') return 1;
        }
    }
    return 0;
}

GMEM__FN const char *gmem__below_block(const char *name, int64_t *index) {
    const char *at = name + 7;
    if (!gmem__starts_with(name, "blocks.") || *at < '0' || *at > '9' || (*at == '0' && at[1] != '.')) return NULL;
    for (*index = 0; *at >= '0' && *at <= '9'; at++) {
        *index = gmem__min(*index * 10 + (*at - '0'), INT32_MAX);
    }
    return *at == '.' ? at + 1 : NULL;
}

/* The number of blocks; they must be numbered without a gap. */
GMEM__FN gmem_status gmem__count_blocks(const gmem_file *file, int64_t *depth, gmem_error *error) {
    int64_t count = gmem_file_tensor_count(file), highest = -1, first_gap = 0;
    unsigned char *present = (unsigned char *)gmem__alloc(file->context, count + 1, 1);
    if (!present) return gmem__fail(error, GMEM_E_MEMORY, "no memory to count the blocks");
    for (int64_t i = 0; i < count; i++) {
        int64_t index;
        if (!gmem__below_block(gmem_file_tensor(file, i)->name, &index)) continue;
        highest = gmem__max(highest, index);
        if (index < count) present[index] = 1;
    }
    while (present[first_gap]) {
        first_gap++;
    }
    gmem__free(file->context, present, count + 1, 1);
    if (highest >= first_gap)
        return gmem__fail(error, GMEM_E_MISSING_TENSOR, "blocks.%lld.*: missing, though blocks.%lld is there",
                          (long long)first_gap, (long long)highest);
    *depth = first_gap;
    return GMEM_OK;
}

/* configuration --------------------------------------------------------------------------------------------------- */

/* A number of the training configuration: `config.NAME` or `config.model.NAME`. */
static int gmem__config_number(const gmem_file *file, const char *name, double *out) {
    static const char *const places[] = {"config.", "config.model."};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char key[96];
        snprintf(key, sizeof key, "%s%s", places[i], name);
        if (gmem_file_number(file, key, out)) return 1;
    }
    return 0;
}

/* The same where it's an integer from 1 to `highest`. */
GMEM__FN int gmem__config_size(const gmem_file *file, const char *name, int64_t highest, int64_t *out) {
    double value;
    if (!gmem__config_number(file, name, &value) || !(value >= 1 && value <= (double)highest)) return 0;
    *out = (int64_t)value;
    return (double)*out == value;
}

/* published sizes ------------------------------------------------------------------------------------------------- */

typedef struct gmem__published {
    const char *size;
    int64_t hidden, depth, heads;
} gmem__published;

/* SiT (Ma et al., 2401.08740) has the first four, LightningDiT (Yao et al., 2501.01423) all. */
static const gmem__published gmem__published_sizes[] = {{"S", 384, 12, 6},      {"B", 768, 12, 12},
                                                        {"L", 1024, 24, 16},    {"XL", 1152, 28, 16},
                                                        {"1p0B", 1536, 24, 24}, {"1p6B", 1792, 28, 28}};

static const gmem__published *gmem__find_published(int64_t hidden, int64_t depth) {
    for (size_t i = 0; i < sizeof gmem__published_sizes / sizeof gmem__published_sizes[0]; i++) {
        const gmem__published *size = &gmem__published_sizes[i];
        if (size->hidden == hidden && size->depth == depth) return size;
    }
    return NULL;
}

GMEM__FN void gmem__network_name(const gmem_network_info *info, char *out, size_t bytes) {
    static const char *const families[] = {"GMem-LightningDiT", "LightningDiT", "GMem-SiT", "SiT"};
    const gmem__published *size = gmem__find_published(info->hidden, info->depth);
    if (size && size->heads == info->heads) {
        snprintf(out, bytes, "%s-%s/%lld", families[info->architecture], size->size, (long long)info->patch);
    } else {
        snprintf(out, bytes, "%s", families[info->architecture]);
    }
}

/* recognition ----------------------------------------------------------------------------------------------------- */

/* A tensor whose shape decides something: of `rank`, every dimension at least 1. */
GMEM__FN gmem_status gmem__source(const gmem_file *file, const char *name, int rank, const gmem_tensor **out,
                                  gmem_error *error) {
    static const int64_t any[GMEM_MAX_RANK] = {-1, -1, -1, -1, -1, -1, -1, -1};
    GMEM__TRY(gmem__need(file, name, rank, any, out, error));
    for (int i = 0; i < rank; i++) {
        gmem__quoted quoted, shape;
        if ((*out)->shape[i] < 1)
            return gmem__fail(error, GMEM_E_SHAPE, "%s: expected no empty dimension, found %s",
                              gmem__quote(&quoted, name), gmem__shape_text(&shape, (*out)->shape, rank));
    }
    return GMEM_OK;
}

/* A condition that only the file's own code could build counts too: loading then says so. */
static int gmem__has_snippets(const gmem_file *file) {
    return gmem__file_has_prefix(file, "condition_projection.") ||
           gmem__file_foreign_at(file, "condition_projection.linear.weight");
}

static int gmem__has_labels(const gmem_file *file) {
    return gmem__file_has_prefix(file, "y_embedder.") ||
           gmem__file_foreign_at(file, "y_embedder.embedding_table.weight");
}

static gmem_status gmem__recognise_family(const gmem_file *file, gmem_error *error) {
    static const char *const needed[] = {"x_embedder.", "t_embedder.", "blocks.0.attn.", "final_layer."};
    int snippets = gmem__has_snippets(file), labels = gmem__has_labels(file);
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!gmem__file_has_prefix(file, needed[i]))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "not a diffusion transformer that gmem knows: no tensor %s*",
                              needed[i]);
    }
    if (snippets == labels)
        return gmem__fail(error, GMEM_E_ARCHITECTURE,
                          "not a diffusion transformer that gmem knows: %s condition_projection.* %s y_embedder.*",
                          snippets ? "both" : "neither", snippets ? "and" : "nor");
    return GMEM_OK;
}

static int gmem__recognise_rope(const gmem_file *file, const gmem_network_info *info) {
    double use_rope;
    if (gmem__file_has_prefix(file, "feat_rope.")) return 1;
    if (gmem__config_number(file, "use_rope", &use_rope)) return use_rope != 0;
    if (gmem_file_find(file, "pos_embed")) return 0;
    return info->swiglu || info->rmsnorm;
}

static gmem_status gmem__recognise_options(const gmem_file *file, gmem_network_info *info, gmem_error *error) {
    const gmem_tensor *modulation;
    int snippets = gmem__has_snippets(file);
    info->swiglu = gmem__file_has_prefix(file, "blocks.0.mlp.w");
    info->rmsnorm =
        gmem__file_has_prefix(file, "blocks.0.norm") || gmem__file_has_prefix(file, "final_layer.norm_final.");
    info->qk_norm =
        gmem__file_has_prefix(file, "blocks.0.attn.q_norm.") || gmem__file_has_prefix(file, "blocks.0.attn.k_norm.");
    info->rope = gmem__recognise_rope(file, info);
    GMEM__TRY(gmem__source(file, "blocks.0.adaLN_modulation.1.weight", 2, &modulation, error));
    info->shift = modulation->shape[0] != 4 * modulation->shape[1];
    int sit =
        !info->swiglu && !info->rmsnorm && !info->rope && info->shift && !gmem__file_has_prefix(file, "projector.");
    info->architecture =
        snippets ? (sit ? GMEM_ARCH_GMEM_SIT : GMEM_ARCH_GMEM) : (sit ? GMEM_ARCH_SIT : GMEM_ARCH_LIGHTNINGDIT);
    info->time_reversed = sit && (snippets || gmem__has_repa_projectors(file));
    return GMEM_OK;
}

static gmem_status gmem__recognise_sizes(const gmem_file *file, gmem_network_info *info, gmem_error *error) {
    const gmem_tensor *patch, *mlp, *condition;
    GMEM__TRY(gmem__count_blocks(file, &info->depth, error));
    GMEM__TRY(gmem__source(file, "x_embedder.proj.weight", 4, &patch, error));
    GMEM__TRY(gmem__source(file, info->swiglu ? "blocks.0.mlp.w3.weight" : "blocks.0.mlp.fc2.weight", 2, &mlp, error));
    info->hidden = patch->shape[0];
    info->channels = patch->shape[1];
    info->patch = patch->shape[2];
    info->mlp_hidden = mlp->shape[1];
    /* Every other dimension is a small multiple of these, or checked against the file's own size. */
    if (info->hidden > INT32_MAX / 8 || info->channels > INT32_MAX / 8 || info->mlp_hidden > INT32_MAX / 8 ||
        info->patch > 1024)
        return gmem__fail(error, GMEM_E_LIMIT, "x_embedder.proj.weight: the network is too large");
    if (info->architecture == GMEM_ARCH_GMEM || info->architecture == GMEM_ARCH_GMEM_SIT) {
        GMEM__TRY(gmem__source(file, "condition_projection.linear.weight", 2, &condition, error));
        info->snippet_width = condition->shape[1];
    } else {
        GMEM__TRY(gmem__source(file, "y_embedder.embedding_table.weight", 2, &condition, error));
        info->classes = condition->shape[0] - 1;
        if (info->classes < 1)
            return gmem__fail(error, GMEM_E_SHAPE,
                              "y_embedder.embedding_table.weight: expected a class and the null label, found 1 row");
    }
    return GMEM_OK;
}

/* The final layer gives the velocity, or the velocity and a sigma that sampling has no use for. */
static gmem_status gmem__recognise_output(const gmem_file *file, gmem_network_info *info, int64_t *out_channels,
                                          gmem_error *error) {
    const gmem_tensor *final;
    GMEM__TRY(gmem__source(file, "final_layer.linear.weight", 2, &final, error));
    info->learned_sigma = final->shape[0] == 2 * info->patch * info->patch * info->channels;
    *out_channels = info->channels * (info->learned_sigma ? 2 : 1);
    return GMEM_OK;
}

/* The attention's weights don't tell the heads: from the caller, else the configuration, else the width of a head as
 * the RoPE table, the q norm or the published size has it. */
static gmem_status gmem__recognise_heads(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                         gmem_error *error) {
    const gmem_tensor *rope = gmem_file_find(file, "feat_rope.freqs_cos");
    const gmem_tensor *q_norm = gmem_file_find(file, "blocks.0.attn.q_norm.weight");
    const gmem__published *size = gmem__find_published(info->hidden, info->depth);
    int64_t width = 0;
    if (desc->heads > 0) {
        info->heads = desc->heads;
    } else if (!gmem__config_size(file, "num_heads", info->hidden, &info->heads)) {
        if (rope && rope->rank == 2) {
            width = rope->shape[1];
        } else if (q_norm && q_norm->rank == 1) {
            width = q_norm->shape[0];
        } else if (size) {
            width = info->hidden / size->heads;
        } else {
            return gmem__fail(error, GMEM_E_HEADS,
                              "the number of heads cannot be told from the file: give it with --heads");
        }
        info->heads = width > 0 && info->hidden % width == 0 ? info->hidden / width : 0;
    }
    if (info->heads < 1 || info->hidden % info->heads != 0)
        return gmem__fail(error, GMEM_E_HEADS, "a width of %lld does not divide into heads%s: give --heads",
                          (long long)info->hidden, desc->heads > 0 ? " of that number" : " as the file has it");
    info->head_dim = info->hidden / info->heads;
    if (info->rope && info->head_dim % 4 != 0)
        return gmem__fail(error, GMEM_E_HEADS, "RoPE needs heads of a multiple of 4 channels, and %lld heads have %lld",
                          (long long)info->heads, (long long)info->head_dim);
    return GMEM_OK;
}

/* From the caller, else a square of pos_embed's tokens, else the configuration. */
static gmem_status gmem__recognise_latent(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                          gmem_error *error) {
    const gmem_tensor *position = gmem_file_find(file, "pos_embed");
    info->height = desc->latent_height ? desc->latent_height : desc->latent_width;
    info->width = desc->latent_width ? desc->latent_width : desc->latent_height;
    if (info->height == 0 && position && position->rank >= 2) {
        int64_t tokens = position->shape[position->rank - 2], side = 1;
        while (side < GMEM__MAX_TOKENS && side * side < tokens) {
            side++;
        }
        if (side * side != tokens)
            return gmem__fail(error, GMEM_E_SHAPE, "pos_embed: expected a square number of tokens, found %lld",
                              (long long)tokens);
        info->height = info->width = side * info->patch;
    } else if (info->height == 0 && gmem__config_size(file, "input_size", GMEM__MAX_TOKENS, &info->height)) {
        info->width = info->height;
    } else if (info->height == 0) {
        return gmem__fail(error, GMEM_E_MISSING_TENSOR, "pos_embed: missing, and nothing else tells the latent's size");
    }
    if (info->height < 0 || info->width < 0 || info->height % info->patch != 0 || info->width % info->patch != 0)
        return gmem__fail(error, GMEM_E_LATENT, "a latent of %lld x %lld does not divide into patches of %lld",
                          (long long)info->height, (long long)info->width, (long long)info->patch);
    if (info->height > GMEM__MAX_TOKENS * info->patch || info->width > GMEM__MAX_TOKENS * info->patch ||
        (info->height / info->patch) * (info->width / info->patch) > GMEM__MAX_TOKENS)
        return gmem__fail(error, GMEM_E_LIMIT, "a latent of %lld x %lld has more than %d tokens",
                          (long long)info->height, (long long)info->width, GMEM__MAX_TOKENS);
    info->tokens = (info->height / info->patch) * (info->width / info->patch);
    return GMEM_OK;
}

/* Two for each multiplication of a matrix or of the attention; norms and activations do not count. */
static double gmem__count_flop(const gmem_network_info *info, int64_t out_channels) {
    double hidden = (double)info->hidden, tokens = (double)info->tokens, depth = (double)info->depth;
    double patch = (double)(info->patch * info->patch);
    double block = 4 * hidden * hidden + (info->swiglu ? 3 : 2) * hidden * (double)info->mlp_hidden;
    double attention = 2 * tokens * hidden;
    double ends = patch * hidden * (double)(info->channels + out_channels);
    double modulation = hidden * (depth * (double)gmem__modulation_rows(info) + 2 * hidden);
    double condition = hidden * (GMEM__TIME_WIDTH + hidden + (double)info->snippet_width);
    return 2 * (tokens * (depth * (block + attention) + ends) + modulation + condition);
}

GMEM__FN gmem_status gmem__recognise(const gmem_file *file, const gmem_network_desc *desc, gmem_network_info *info,
                                     int64_t *out_channels, gmem_error *error) {
    memset(info, 0, sizeof *info);
    GMEM__TRY(gmem__recognise_family(file, error));
    GMEM__TRY(gmem__recognise_options(file, info, error));
    GMEM__TRY(gmem__recognise_sizes(file, info, error));
    GMEM__TRY(gmem__recognise_output(file, info, out_channels, error));
    GMEM__TRY(gmem__recognise_heads(file, desc, info, error));
    GMEM__TRY(gmem__recognise_latent(file, desc, info, error));
    info->flop = gmem__count_flop(info, *out_channels);
    return GMEM_OK;
}
