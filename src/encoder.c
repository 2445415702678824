/* Opening an image encoder: DINOv2's vision transformers in their official names (Oquab et al., 2304.07193; registers:
 * Darcet et al., 2309.16588). Sizes come from the tensors. */
#include "encoder.h"
#include "fallback.h"
#include "file.h"
#include "network.h"

#include <stdio.h>

/* the tensors of an encoder --------------------------------------------------------------------------------------- */

enum { GMEM__VIT_GELU = 1, GMEM__VIT_SWIGLU = 2 };

typedef enum gmem__vit_extent {
    GMEM__VIT_WIDTH,
    GMEM__VIT_QKV,
    GMEM__VIT_MLP,
    GMEM__VIT_MLP_IN,
    GMEM__VIT_CHANNELS,
    GMEM__VIT_PATCH,
    GMEM__VIT_EXTENT_COUNT
} gmem__vit_extent;

/* Below "blocks.N.". */
static const gmem__part gmem__vit_block_parts[] = {
    GMEM__VECTOR_PART("norm1.weight", 0, GMEM__VIT_WIDTH, gmem__vit_block, norm1.weight),
    GMEM__VECTOR_PART("norm1.bias", 0, GMEM__VIT_WIDTH, gmem__vit_block, norm1.bias),
    GMEM__LINEAR_PARTS("attn.qkv", 0, GMEM__VIT_QKV, GMEM__VIT_WIDTH, gmem__vit_block, qkv),
    GMEM__LINEAR_PARTS("attn.proj", 0, GMEM__VIT_WIDTH, GMEM__VIT_WIDTH, gmem__vit_block, proj),
    GMEM__VECTOR_PART("ls1.gamma", 0, GMEM__VIT_WIDTH, gmem__vit_block, scale1),
    GMEM__VECTOR_PART("norm2.weight", 0, GMEM__VIT_WIDTH, gmem__vit_block, norm2.weight),
    GMEM__VECTOR_PART("norm2.bias", 0, GMEM__VIT_WIDTH, gmem__vit_block, norm2.bias),
    GMEM__LINEAR_PARTS("mlp.fc1", GMEM__VIT_GELU, GMEM__VIT_MLP_IN, GMEM__VIT_WIDTH, gmem__vit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.fc2", GMEM__VIT_GELU, GMEM__VIT_WIDTH, GMEM__VIT_MLP, gmem__vit_block, mlp_out),
    GMEM__LINEAR_PARTS("mlp.w12", GMEM__VIT_SWIGLU, GMEM__VIT_MLP_IN, GMEM__VIT_WIDTH, gmem__vit_block, mlp_in),
    GMEM__LINEAR_PARTS("mlp.w3", GMEM__VIT_SWIGLU, GMEM__VIT_WIDTH, GMEM__VIT_MLP, gmem__vit_block, mlp_out),
    GMEM__VECTOR_PART("ls2.gamma", 0, GMEM__VIT_WIDTH, gmem__vit_block, scale2)};

/* The rest, but for the tokens. */
static const gmem__part gmem__vit_outer_parts[] = {
    GMEM__CONV_PARTS("patch_embed.proj", 0, GMEM__VIT_WIDTH, GMEM__VIT_CHANNELS, GMEM__VIT_PATCH, gmem_image_encoder,
                     patch),
    GMEM__VECTOR_PART("norm.weight", 0, GMEM__VIT_WIDTH, gmem_image_encoder, norm.weight),
    GMEM__VECTOR_PART("norm.bias", 0, GMEM__VIT_WIDTH, gmem_image_encoder, norm.bias)};

static const gmem__part_table gmem__vit_block_table = GMEM__PART_TABLE_OF(gmem__vit_block_parts);
static const gmem__part_table gmem__vit_outer_table = GMEM__PART_TABLE_OF(gmem__vit_outer_parts);

/* Tokens, which are read on their own, and what only training has. */
static const char *const gmem__vit_others[] = {"cls_token",  "pos_embed", "register_tokens",
                                               "mask_token", "head.",     "linear_head."};

static int gmem__vit_options(const gmem_image_encoder *encoder) {
    return encoder->swiglu ? GMEM__VIT_SWIGLU : GMEM__VIT_GELU;
}

/* A tensor that nothing reads means another architecture, whose features would come out wrong. */
static gmem_status gmem__vit_refuse_unexpected(const gmem_image_encoder *encoder, gmem_error *error) {
    const size_t others = sizeof gmem__vit_others / sizeof gmem__vit_others[0];
    const int options = gmem__vit_options(encoder);
    for (int64_t i = 0; i < gmem_file_tensor_count(encoder->file); i++) {
        gmem__quoted quoted;
        int64_t index;
        const char *name = gmem_file_tensor(encoder->file, i)->name, *below = gmem__below_block(name, &index);
        if (gmem__is_listed(gmem__vit_others, others, name)) continue;
        if (!gmem__is_part(below ? &gmem__vit_block_table : &gmem__vit_outer_table, options, below ? below : name))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "%s: not a tensor of an image encoder that gmem knows",
                              gmem__quote(&quoted, name));
    }
    return GMEM_OK;
}

/* recognition ----------------------------------------------------------------------------------------------------- */

static gmem_status gmem__vit_recognise_family(const gmem_file *file, gmem_error *error) {
    static const char *const needed[] = {"patch_embed.", "cls_token", "blocks.0.attn.", "norm."};
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!gmem__file_has_prefix(file, needed[i]) && !gmem__file_foreign_at(file, needed[i]))
            return gmem__fail(error, GMEM_E_ARCHITECTURE, "not an image encoder that gmem knows: no tensor %s*",
                              needed[i]);
    }
    return GMEM_OK;
}

static gmem_status gmem__vit_recognise_sizes(gmem_image_encoder *encoder, gmem_error *error) {
    const gmem_file *file = encoder->file;
    gmem_image_encoder_info *info = &encoder->info;
    const gmem_tensor *patch, *mlp, *registers;
    encoder->swiglu = gmem__file_has_prefix(file, "blocks.0.mlp.w");
    GMEM__TRY(gmem__count_blocks(file, &info->depth, error));
    GMEM__TRY(gmem__source(file, "patch_embed.proj.weight", 4, &patch, error));
    GMEM__TRY(
        gmem__source(file, encoder->swiglu ? "blocks.0.mlp.w3.weight" : "blocks.0.mlp.fc2.weight", 2, &mlp, error));
    info->width = patch->shape[0];
    info->patch = patch->shape[2];
    info->mlp_hidden = mlp->shape[1];
    if (gmem__file_has_prefix(file, "register_tokens")) {
        GMEM__TRY(gmem__source(file, "register_tokens", 3, &registers, error));
        info->registers = registers->shape[1];
    }
    encoder->leading = 1 + info->registers;
    /* every other dimension is a small multiple of these, or checked against the file's own size */
    if (info->width > INT32_MAX / 8 || info->mlp_hidden > INT32_MAX / 8 || info->patch > 1024 ||
        info->registers > GMEM__MAX_TOKENS)
        return gmem__fail(error, GMEM_E_LIMIT, "patch_embed.proj.weight: the image encoder is too large");
    return GMEM_OK;
}

/* A whole number that the file states of itself: `NAME` of its metadata, else of its configuration. Where it states
 * something else, E_ARCHITECTURE. */
static gmem_status gmem__vit_setting(const gmem_file *file, const char *name, int64_t highest, int64_t *out,
                                     gmem_error *error) {
    gmem__quoted quoted;
    double value = 0;
    const char *text = gmem_file_metadata(file, name);
    if (!text) {
        (void)gmem__config_size(file, name, highest, out);
        return GMEM_OK;
    }
    if (!gmem__parse_double(text, strlen(text), &value) || !(value >= 1 && value <= (double)highest) ||
        (double)(int64_t)value != value)
        return gmem__fail(error, GMEM_E_ARCHITECTURE, "%s: expected a number from 1 to %lld, found \"%s\"", name,
                          (long long)highest, gmem__quote(&quoted, text));
    *out = (int64_t)value;
    return GMEM_OK;
}

/* The attention's weights don't tell the heads. */
static gmem_status gmem__vit_recognise_heads(const gmem_file *file, const gmem_image_encoder_desc *desc,
                                             gmem_image_encoder_info *info, gmem_error *error) {
    const int64_t published = 64; /* channels of a head */
    info->heads = desc->heads;
    if (info->heads == 0) GMEM__TRY(gmem__vit_setting(file, "num_heads", info->width, &info->heads, error));
    if (info->heads == 0 && info->width % published == 0) info->heads = info->width / published;
    if (info->heads < 1 || info->width % info->heads != 0)
        return gmem__fail(error, GMEM_E_HEADS, "a width of %lld does not divide into %s: give the number of heads",
                          (long long)info->width, info->heads ? "that many heads" : "heads of 64 channels");
    info->head_dim = info->width / info->heads;
    return GMEM_OK;
}

/* The side of the square of patches that pos_embed (1, 1 + side * side, width) was made for. */
static gmem_status gmem__vit_grid(const gmem_tensor *position, int64_t *side, gmem_error *error) {
    const int64_t patches = position->shape[1] - 1;
    for (*side = 1; *side < GMEM__MAX_TOKENS && *side * *side < patches;)
        ++*side;
    if (*side * *side == patches) return GMEM_OK;
    return gmem__fail(error, GMEM_E_SHAPE, "pos_embed: expected one token and a square number of others, found %lld",
                      (long long)position->shape[1]);
}

static gmem_status gmem__vit_recognise_input(const gmem_file *file, gmem_image_encoder_info *info, gmem_error *error) {
    const gmem_tensor *position;
    int64_t grid;
    GMEM__TRY(gmem__source(file, "pos_embed", 3, &position, error));
    GMEM__TRY(gmem__vit_grid(position, &grid, error));
    GMEM__TRY(gmem__vit_setting(file, "image_size", GMEM__MAX_TOKENS, &info->input_size, error));
    if (info->input_size == 0) info->input_size = info->patch == 14 ? 224 : grid * info->patch;
    if (info->input_size % info->patch != 0)
        return gmem__fail(error, GMEM_E_ARCHITECTURE, "image_size: %lld does not divide into patches of %lld",
                          (long long)info->input_size, (long long)info->patch);
    info->picture_size = info->patch == 14 ? 256 : info->input_size;
    info->tokens = info->input_size / info->patch * (info->input_size / info->patch);
    if (info->tokens > GMEM__MAX_TOKENS)
        return gmem__fail(error, GMEM_E_LIMIT, "pictures of %lld x %lld have more than %d patches",
                          (long long)info->input_size, (long long)info->input_size, GMEM__MAX_TOKENS);
    return GMEM_OK;
}

typedef struct gmem__vit_published {
    const char *size;
    int64_t width, depth, heads;
} gmem__vit_published;

static void gmem__vit_name(gmem_image_encoder *encoder) {
    static const gmem__vit_published sizes[] = {
        {"S", 384, 12, 6}, {"B", 768, 12, 12}, {"L", 1024, 24, 16}, {"g", 1536, 40, 24}};
    const gmem_image_encoder_info *info = &encoder->info;
    const char *registers = info->registers ? " with registers" : "", *size = NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (info->width == sizes[i].width && info->depth == sizes[i].depth && info->heads == sizes[i].heads &&
            info->patch == 14)
            size = sizes[i].size;
    }
    if (size)
        snprintf(encoder->name, sizeof encoder->name, "DINOv2 ViT-%s/14%s", size, registers);
    else
        snprintf(encoder->name, sizeof encoder->name, "DINOv2 ViT%s", registers);
    encoder->info.name = encoder->name;
}

/* Two for each multiplication of a matrix or of the attention; norms and activations do not count. */
static double gmem__vit_flop(const gmem_image_encoder *encoder) {
    const gmem_image_encoder_info *info = &encoder->info;
    const double width = (double)info->width, patches = (double)info->tokens, depth = (double)info->depth;
    const double tokens = patches + (double)encoder->leading, area = (double)(info->patch * info->patch);
    const double block = 4 * width * width + (encoder->swiglu ? 3 : 2) * width * (double)info->mlp_hidden;
    return 2 * (depth * tokens * (block + 2 * tokens * width) + patches * width * 3 * area);
}

/* loading ---------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__vit_load_weights(gmem_image_encoder *encoder, gmem_error *error) {
    const gmem_image_encoder_info *info = &encoder->info;
    gmem__store *store = &encoder->store;
    int64_t extents[GMEM__VIT_EXTENT_COUNT];
    const gmem__part_sizes sizes = {gmem__vit_options(encoder), extents};
    extents[GMEM__VIT_WIDTH] = info->width;
    extents[GMEM__VIT_QKV] = 3 * info->width;
    extents[GMEM__VIT_MLP] = info->mlp_hidden;
    extents[GMEM__VIT_MLP_IN] = (encoder->swiglu ? 2 : 1) * info->mlp_hidden;
    extents[GMEM__VIT_CHANNELS] = 3;
    extents[GMEM__VIT_PATCH] = info->patch;
    encoder->blocks = (gmem__vit_block *)gmem__store_alloc(store, info->depth, sizeof *encoder->blocks);
    if (!encoder->blocks) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the image encoder");
    GMEM__TRY(gmem__load_parts(store, &gmem__vit_outer_table, &sizes, "", encoder, error));
    for (int64_t i = 0; i < info->depth; i++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blocks.%lld.", (long long)i);
        GMEM__TRY(gmem__load_parts(store, &gmem__vit_block_table, &sizes, prefix, &encoder->blocks[i], error));
    }
    return GMEM_OK;
}

/* The blocks' layers; the patches', which sees the picture and is small, stays in f32. */
static gmem_status gmem__vit_choose_compute(gmem_image_encoder *encoder, gmem_error *error) {
    const gmem_compute compute = encoder->context->compute;
    gmem__store *store = &encoder->store;
    if (compute == GMEM_COMPUTE_F32) return GMEM_OK;
    for (int64_t i = 0; i < encoder->info.depth; i++) {
        gmem__vit_block *block = &encoder->blocks[i];
        GMEM__TRY(gmem__store_narrow(store, &block->qkv.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(store, &block->proj.weight, compute, 0, error));
        GMEM__TRY(gmem__store_narrow(store, &block->mlp_in.weight, compute, encoder->swiglu, error));
        GMEM__TRY(gmem__store_narrow(store, &block->mlp_out.weight, compute, 0, error));
    }
    return GMEM_OK;
}

/* Tokens (1, count, width), counted among the parameters. */
static gmem_status gmem__vit_tokens(gmem_image_encoder *encoder, const char *name, int64_t count,
                                    const gmem_tensor **out, gmem_error *error) {
    int64_t shape[3] = {1, 0, 0};
    shape[1] = count;
    shape[2] = encoder->info.width;
    GMEM__TRY(gmem__need(encoder->file, name, 3, shape, out, error));
    if ((*out)->type == GMEM_I8) return gmem__fail(error, GMEM_E_TYPE, "%s: expected floating point, found I8", name);
    const int64_t elements = gmem_tensor_count(*out);
    encoder->store.parameters += elements;
    encoder->store.bytes += elements * (int64_t)gmem_type_bytes((*out)->type);
    return GMEM_OK;
}

/* Row `index` of tokens (1, count, width) added to column `column` of out (width, stride). */
static void gmem__vit_add_token(const gmem_tensor *tokens, int64_t index, float *row, int64_t column, int64_t stride,
                                float *out) {
    const int64_t width = tokens->shape[2];
    gmem_tensor_read_f32(tokens, index * width, width, row);
    for (int64_t c = 0; c < width; c++)
        out[c * stride + column] += row[c];
}

/* What a picture's tokens start from: the class token with its position, the registers, and the positions of the
 * patches, resampled where pictures are of another size than those that the file was trained with. */
static gmem_status gmem__vit_load_tokens(gmem_image_encoder *encoder, gmem_error *error) {
    const gmem_image_encoder_info *info = &encoder->info;
    gmem__store *store = &encoder->store;
    const int64_t width = info->width, columns = encoder->leading + info->tokens;
    const gmem_tensor *stored, *class_token, *registers = NULL;
    int64_t grid = 0;
    GMEM__TRY(gmem__vit_tokens(encoder, "pos_embed", -1, &stored, error));
    GMEM__TRY(gmem__vit_tokens(encoder, "cls_token", 1, &class_token, error));
    if (info->registers) GMEM__TRY(gmem__vit_tokens(encoder, "register_tokens", info->registers, &registers, error));
    GMEM__TRY(gmem__vit_grid(stored, &grid, error));
    float *row = (float *)gmem__store_alloc(store, width, sizeof *row);
    float *position = (float *)gmem__store_alloc(store, width * columns, sizeof *position);
    if (!row || !position ||
        !gmem__resample_position(store->context, stored, 1, grid, info->input_size / info->patch,
                                 position + encoder->leading, columns))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the positions");
    gmem__vit_add_token(stored, 0, row, 0, columns, position);
    gmem__vit_add_token(class_token, 0, row, 0, columns, position);
    for (int64_t i = 0; i < info->registers; i++)
        gmem__vit_add_token(registers, i, row, 1 + i, columns, position);
    encoder->position = position;
    return gmem__store_place(store, &encoder->position, width * columns, error);
}

/* opening ---------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__vit_load(gmem_image_encoder *encoder, const gmem_image_encoder_desc *desc, gmem_error *error) {
    gmem_image_encoder_info *info = &encoder->info;
    encoder->store.context = encoder->context;
    encoder->store.file = encoder->file;
    GMEM__TRY(gmem__choose_device(encoder->context, desc->backend, &encoder->store.device, error));
    GMEM__TRY(gmem__vit_recognise_family(encoder->file, error));
    GMEM__TRY(gmem__vit_recognise_sizes(encoder, error));
    GMEM__TRY(gmem__vit_refuse_unexpected(encoder, error));
    GMEM__TRY(gmem__vit_load_weights(encoder, error));
    GMEM__TRY(gmem__vit_recognise_heads(encoder->file, desc, info, error));
    GMEM__TRY(gmem__vit_recognise_input(encoder->file, info, error));
    GMEM__TRY(gmem__vit_choose_compute(encoder, error));
    GMEM__TRY(gmem__vit_load_tokens(encoder, error));
    GMEM__TRY(gmem__store_upload(&encoder->store, error));
    gmem__vit_name(encoder);
    info->parameters = encoder->store.parameters;
    info->weight_bytes = encoder->store.bytes;
    info->flop = gmem__vit_flop(encoder);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_image_encoder_open(gmem_context *context, const gmem_image_encoder_desc *desc,
                                             gmem_image_encoder **out, gmem_error *error) {
    if (!context || !desc || !out || (!desc->path && !desc->file) || desc->heads < 0)
        return gmem__fail(error, GMEM_E_ARGUMENT,
                          "an image encoder needs a path or a file, and a number of heads that is not negative");
    gmem_image_encoder *encoder = (gmem_image_encoder *)gmem__alloc(context, 1, sizeof *encoder);
    if (!encoder) return gmem__fail(error, GMEM_E_MEMORY, "no memory for an image encoder");
    encoder->context = context;
    encoder->file = desc->file;
    gmem_error why;
    gmem_status status = GMEM_OK;
    if (!desc->file) {
        status = gmem_file_open(context, desc->path, desc->key, &encoder->file, &why);
        encoder->owns_file = status == GMEM_OK;
    }
    if (status == GMEM_OK) {
        status = gmem__vit_load(encoder, desc, &why);
        gmem__fail_in(&why, status, gmem_file_path(encoder->file));
    }
    if (status != GMEM_OK) {
        const int again = encoder->store.device && gmem__falls_back(context, status, &why);
        gmem_image_encoder_desc on_cpu = *desc;
        gmem_image_encoder_close(encoder);
        on_cpu.backend = GMEM_BACKEND_CPU;
        if (again) return gmem_image_encoder_open(context, &on_cpu, out, error);
        if (error) *error = why;
        return status;
    }
    gmem__quoted path;
    gmem__log(context, "%s: %s, %lld parameters, pictures of %lld x %lld",
              gmem__quote(&path, gmem_file_path(encoder->file)), encoder->info.name,
              (long long)encoder->info.parameters, (long long)encoder->info.input_size,
              (long long)encoder->info.input_size);
    *out = encoder;
    return GMEM_OK;
}

GMEM_API void gmem_image_encoder_close(gmem_image_encoder *encoder) {
    if (!encoder) return;
    if (encoder->store.context) gmem__store_free(&encoder->store);
    if (encoder->owns_file) gmem_file_close(encoder->file);
    gmem__free(encoder->context, encoder, 1, sizeof *encoder);
}

GMEM_API const gmem_image_encoder_info *gmem_image_encoder_get_info(const gmem_image_encoder *encoder) {
    return &encoder->info;
}
