/* The image encoder at work, several pictures at once. Activations are channels-first, (channels, columns), a picture's
 * columns being the class token, the registers and the patches.
 *
 *     x = position + (class token, registers, patches)
 *     for each block:  x += scale1 * proj(attention(qkv(norm1(x))))
 *                      x += scale2 * mlp(norm2(x))
 *     features = norm(x)
 * (ViT, Dosovitskiy et al., 2010.11929; LayerScale, Touvron et al., 2103.17239) */
#include "encoder.h"
#include "fallback.h"

#include "../backends/cpu/cpu.h"

#include <math.h>

#define GMEM__VIT_EPS     1e-6f
#define GMEM__VIT_COLUMNS 2048 /* at once, or one picture's: enough for products to be worth their name */

/* the working memory ---------------------------------------------------------------------------------------------- */

typedef struct gmem__vit_run {
    const gmem_image_encoder *encoder;
    const gmem__pictures *pictures;
    int want_cls, want_patch;
    int64_t most; /* pictures at once */
    gmem__engine engine;

    gmem__arena arena; /* of the host */
    gmem__taps down, across;
    float *lines;       /* (most, width of the pictures) */
    float *seen;        /* (most, 3, input_size, input_size) preprocessed */
    float *cls, *patch; /* results, which wait for the last picture: the caller's stay untouched until then */

    gmem__arena memory; /* of the engine */
    float *in;          /* like `seen`, which it is on the CPU */
    float *x;           /* (width, columns) the residual stream */
    float *y;           /* (width, columns) normed, or the attention's result */
    float *wide;        /* (widest, columns) patches, q k v, the MLP's inside, or features */
    float *last_x;      /* (width, most) where only the class tokens are wanted: what is left of x ... */
    float *last_y;      /* (width, most) ... and of y */
} gmem__vit_run;

/* The columns that a block works on. */
typedef struct gmem__vit_stream {
    float *x, *y;
    int64_t columns;
} gmem__vit_stream;

static int64_t gmem__vit_picture_tokens(const gmem_image_encoder *encoder) {
    return encoder->leading + encoder->info.tokens;
}

static int64_t gmem__vit_widest(const gmem_image_encoder *encoder) {
    const gmem_image_encoder_info *info = &encoder->info;
    return gmem__max(gmem__max(3 * info->width, info->mlp_hidden), 3 * info->patch * info->patch);
}

/* Pictures at once: enough columns for good products, where a device's largest buffer can hold them, and no fewer for
 * the last ones than for those before. */
static int64_t gmem__vit_most(const gmem__vit_run *run) {
    const int64_t tokens = gmem__vit_picture_tokens(run->encoder);
    const int64_t picture = gmem__vit_widest(run->encoder) * tokens * (int64_t)sizeof(float);
    int64_t most = gmem__min(run->pictures->count, GMEM__VIT_COLUMNS / tokens);
    if (run->engine.stream) most = gmem__min(most, gmem__stream_largest(run->engine.stream) / picture);
    most = gmem__max(most, 1);
    return gmem__ceil_div(run->pictures->count, gmem__ceil_div(run->pictures->count, most));
}

static void gmem__vit_take_host(gmem__vit_run *run) {
    const gmem_image_encoder_info *info = &run->encoder->info;
    const int64_t count = run->pictures->count, size = 3 * info->input_size * info->input_size;
    gmem__arena *arena = &run->arena;
    run->lines = (float *)gmem__take(arena, run->most, (size_t)run->pictures->width * sizeof(float));
    run->seen = GMEM__TAKE_F32(arena, run->most * size);
    if (run->want_cls) run->cls = (float *)gmem__take(arena, count, (size_t)info->width * sizeof(float));
    if (run->want_patch)
        run->patch = (float *)gmem__take(arena, count, (size_t)(info->tokens * info->width) * sizeof(float));
    run->engine.scratch = gmem__take(arena, run->engine.ops->scratch_bytes(run->engine.threads), 1);
}

static void gmem__vit_take_engine(gmem__vit_run *run) {
    const gmem_image_encoder_info *info = &run->encoder->info;
    const int64_t columns = run->most * gmem__vit_picture_tokens(run->encoder);
    gmem__arena *arena = &run->memory;
    run->x = GMEM__TAKE_F32(arena, info->width * columns);
    run->y = GMEM__TAKE_F32(arena, info->width * columns);
    run->wide = GMEM__TAKE_F32(arena, gmem__vit_widest(run->encoder) * columns);
    run->last_x = GMEM__TAKE_F32(arena, info->width * run->most);
    run->last_y = GMEM__TAKE_F32(arena, info->width * run->most);
    run->in = run->seen;
    if (run->engine.stream) run->in = GMEM__TAKE_F32(arena, run->most * 3 * info->input_size * info->input_size);
}

static gmem_status gmem__vit_begin(gmem__vit_run *run, gmem_error *error) {
    const gmem_context *context = run->encoder->context;
    const int64_t size = run->encoder->info.input_size;
    static const char what[] = "the image encoder's activations";
    GMEM__TRY(gmem__engine_open(&run->encoder->store, &run->engine, error));
    run->most = gmem__vit_most(run);
    if (!gmem__taps_make(context, run->pictures->height, size, 0, &run->down) ||
        !gmem__taps_make(context, run->pictures->width, size, 0, &run->across))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory to resample pictures");
    gmem__vit_take_host(run);
    if (!gmem__arena_reserve(context, &run->arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for pictures and their features: %lld bytes",
                          (long long)run->arena.bytes);
    gmem__vit_take_host(run);
    gmem__vit_take_engine(run);
    GMEM__TRY(gmem__engine_reserve(&run->engine, context, &run->memory, what, error));
    gmem__vit_take_engine(run);
    return GMEM_OK;
}

static void gmem__vit_end(gmem__vit_run *run) {
    const gmem_context *context = run->encoder->context;
    if (!run->engine.ops) return;
    gmem__taps_free(context, &run->down);
    gmem__taps_free(context, &run->across);
    run->engine.ops->release(&run->engine, context, &run->memory);
    gmem__arena_release(context, &run->arena);
    gmem__engine_close(&run->engine);
}

/* the blocks ------------------------------------------------------------------------------------------------------ */

static gmem__norm gmem__vit_norm(const gmem__vit_run *run, const gmem__vit_stream *stream, const gmem__affine *norm) {
    gmem__norm op;
    memset(&op, 0, sizeof op);
    op.eps = GMEM__VIT_EPS;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.x = stream->x;
    op.y = stream->y;
    op.channels = run->encoder->info.width;
    op.columns = op.tokens = stream->columns;
    return op;
}

/* wide = activation(layer(norm(x))). */
static void gmem__vit_widen(const gmem__vit_run *run, const gmem__vit_stream *stream, const gmem__affine *affine,
                            const gmem__layer *layer, gmem__activation activation) {
    const gmem__norm norm = gmem__vit_norm(run, stream, affine);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.norm = &norm;
    op.y = run->wide;
    op.y_stride = op.columns = stream->columns;
    op.activation = activation;
    run->engine.ops->linear(&run->engine, &op);
}

/* x += scale * layer(from). */
static void gmem__vit_add(const gmem__vit_run *run, const gmem__vit_stream *stream, const gmem__layer *layer,
                          const float *from, const float *scale) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = from;
    op.y = stream->x;
    op.x_stride = op.y_stride = op.columns = op.tokens = stream->columns;
    op.residual = 1;
    op.gate = scale; /* the same for every column: all are one sample's */
    run->engine.ops->linear(&run->engine, &op);
}

/* y = attention(q, k, v in wide). */
static void gmem__vit_attend(const gmem__vit_run *run, const gmem__vit_stream *stream, int64_t samples) {
    const gmem_image_encoder_info *info = &run->encoder->info;
    const int64_t part = info->width * stream->columns;
    gmem__attention op;
    memset(&op, 0, sizeof op);
    op.q = run->wide;
    op.k = run->wide + part;
    op.v = run->wide + 2 * part;
    op.y = stream->y;
    op.heads = info->heads;
    op.head_dim = info->head_dim;
    op.tokens = stream->columns / samples;
    op.samples = samples;
    op.stride = op.y_stride = stream->columns;
    op.scale = (float)(1 / sqrt((double)info->head_dim));
    op.compute = run->encoder->context->compute;
    run->engine.ops->attention(&run->engine, &op);
}

/* to (width, samples) = the class tokens, the first of a picture's in from (width, samples * tokens). */
static void gmem__vit_keep_first(const gmem__vit_run *run, const float *from, int64_t samples, float *to) {
    gmem__copy op;
    op.to = to;
    op.from = from;
    op.rows = run->encoder->info.width * samples;
    op.width = op.to_stride = 1;
    op.from_stride = gmem__vit_picture_tokens(run->encoder);
    run->engine.ops->copy(&run->engine, &op);
}

/* After the last attention nothing mixes tokens any more: where only the class tokens are wanted, the others end here.
 */
static gmem__vit_stream gmem__vit_narrow(const gmem__vit_run *run, const gmem__vit_stream *stream, int64_t samples) {
    gmem__vit_stream kept = {run->last_x, run->last_y, samples};
    gmem__vit_keep_first(run, stream->x, samples, kept.x);
    gmem__vit_keep_first(run, stream->y, samples, kept.y);
    return kept;
}

static void gmem__vit_block_run(const gmem__vit_run *run, gmem__vit_stream *stream, int64_t samples, int64_t index) {
    const gmem_image_encoder *encoder = run->encoder;
    const gmem__vit_block *block = &encoder->blocks[index];
    gmem__vit_widen(run, stream, &block->norm1, &block->qkv, GMEM__ACT_NONE);
    gmem__vit_attend(run, stream, samples);
    if (index + 1 == encoder->info.depth && !run->want_patch) *stream = gmem__vit_narrow(run, stream, samples);
    gmem__vit_add(run, stream, &block->proj, stream->y, block->scale1);
    gmem__vit_widen(run, stream, &block->norm2, &block->mlp_in,
                    encoder->swiglu ? GMEM__ACT_SWIGLU : GMEM__ACT_GELU_ERF);
    gmem__vit_add(run, stream, &block->mlp_out, run->wide, block->scale2);
}

/* the ends -------------------------------------------------------------------------------------------------------- */

/* x = the leading tokens, and position + patches of `in`. */
static void gmem__vit_embed(const gmem__vit_run *run, int64_t samples) {
    const gmem_image_encoder *encoder = run->encoder;
    const gmem_image_encoder_info *info = &encoder->info;
    const int64_t tokens = gmem__vit_picture_tokens(encoder), columns = samples * tokens;
    gmem__patches patches;
    gmem__linear op;
    memset(&patches, 0, sizeof patches);
    patches.latents = run->in;
    patches.patches = run->wide;
    patches.samples = samples;
    patches.channels = 3;
    patches.height = patches.width = info->input_size;
    patches.patch = info->patch;
    run->engine.ops->patches(&run->engine, &patches);
    memset(&op, 0, sizeof op);
    op.weight = &encoder->patch.weight;
    op.bias = encoder->patch.bias;
    op.x_stride = samples * info->tokens;
    op.y_stride = columns;
    op.columns = info->tokens;
    op.residual = 1;
    for (int64_t i = 0; i < samples; i++) {
        gmem__copy copy = {run->x + i * tokens, encoder->position, info->width, tokens, columns, tokens};
        run->engine.ops->copy(&run->engine, &copy);
        op.x = run->wide + i * info->tokens;
        op.y = run->x + i * tokens + encoder->leading;
        run->engine.ops->linear(&run->engine, &op);
    }
}

/* wide (columns, width) = norm(x), a token's features side by side. */
static void gmem__vit_finish(const gmem__vit_run *run, const gmem__vit_stream *stream) {
    const gmem__norm norm = gmem__vit_norm(run, stream, &run->encoder->norm);
    gmem__transpose turn;
    run->engine.ops->norm(&run->engine, &norm);
    turn.x = stream->y;
    turn.y = run->wide;
    turn.rows = turn.y_stride = run->encoder->info.width;
    turn.columns = stream->columns;
    run->engine.ops->transpose(&run->engine, &turn);
}

/* The features of pictures `first` to first + samples - 1 from `wide` to the results. */
static gmem_status gmem__vit_results(const gmem__vit_run *run, int64_t first, int64_t samples, int64_t tokens,
                                     gmem_error *error) {
    const gmem_image_encoder *encoder = run->encoder;
    const int64_t width = encoder->info.width, all = encoder->info.tokens * width;
    const gmem__engine *engine = &run->engine;
    for (int64_t i = 0; i < samples; i++) {
        const float *features = run->wide + i * tokens * width;
        if (run->want_cls) engine->ops->download(engine, run->cls + (first + i) * width, features, width);
        if (run->want_patch)
            engine->ops->download(engine, run->patch + (first + i) * all, features + encoder->leading * width, all);
    }
    GMEM__TRY(engine->ops->settle(engine, NULL, error));
    for (int64_t i = first; i < first + samples; i++) {
        if ((run->want_cls && !gmem__all_finite(run->cls + i * width, width)) ||
            (run->want_patch && !gmem__all_finite(run->patch + i * all, all)))
            return gmem__fail(error, GMEM_E_NONFINITE, "the image encoder's features of picture %lld are not finite",
                              (long long)i);
    }
    return GMEM_OK;
}

typedef struct gmem__vit_seeing {
    const gmem__vit_run *run;
    int64_t first;
} gmem__vit_seeing;

static void gmem__vit_see(const void *job, int64_t i, float *scratch) {
    const gmem__vit_seeing *seeing = (const gmem__vit_seeing *)job;
    const gmem__vit_run *run = seeing->run;
    const int64_t size = run->encoder->info.input_size;
    (void)scratch;
    gmem__preprocess(run->pictures, seeing->first + i, &run->down, &run->across, run->lines + i * run->pictures->width,
                     run->seen + i * 3 * size * size);
}

static gmem_status gmem__vit_pictures(const gmem__vit_run *run, int64_t first, int64_t samples, gmem_error *error) {
    const gmem_image_encoder_info *info = &run->encoder->info;
    const int64_t size = 3 * info->input_size * info->input_size;
    gmem__vit_stream stream = {run->x, run->y, samples * gmem__vit_picture_tokens(run->encoder)};
    const gmem__vit_seeing seeing = {run, first};
    gmem__run_tasks(&run->engine, samples, gmem__vit_see, &seeing);
    if (run->in != run->seen) run->engine.ops->upload(&run->engine, run->in, run->seen, samples * size);
    gmem__vit_embed(run, samples);
    for (int64_t i = 0; i < info->depth; i++)
        gmem__vit_block_run(run, &stream, samples, i);
    gmem__vit_finish(run, &stream);
    return gmem__vit_results(run, first, samples, stream.columns / samples, error);
}

static gmem_status gmem__vit_run_all(gmem__vit_run *run, gmem_error *error) {
    GMEM__TRY(gmem__vit_begin(run, error));
    for (int64_t first = 0; first < run->pictures->count; first += run->most)
        GMEM__TRY(gmem__vit_pictures(run, first, gmem__min(run->most, run->pictures->count - first), error));
    return GMEM_OK;
}

/* the functions --------------------------------------------------------------------------------------------------- */

/* Where the encoder's weights are. */
static gmem_status gmem__vit_features_here(const gmem_image_encoder *encoder, const gmem__pictures *pictures,
                                           float *cls, float *patch, gmem_error *error) {
    const int64_t width = encoder->info.width;
    gmem__vit_run run;
    memset(&run, 0, sizeof run);
    run.encoder = encoder;
    run.pictures = pictures;
    run.want_cls = cls != NULL;
    run.want_patch = patch != NULL;
    const gmem_status status = gmem__vit_run_all(&run, error);
    if (status == GMEM_OK && cls) memcpy(cls, run.cls, (size_t)(pictures->count * width) * sizeof *cls);
    if (status == GMEM_OK && patch)
        memcpy(patch, run.patch, (size_t)(pictures->count * encoder->info.tokens * width) * sizeof *patch);
    gmem__vit_end(&run);
    return status;
}

static gmem_status gmem__vit_features(const gmem_image_encoder *encoder, const gmem__pictures *pictures, float *cls,
                                      float *patch, gmem_error *error) {
    gmem_image_encoder *on_cpu = NULL;
    gmem_error why;
    int64_t area, size;
    if (!encoder || (!pictures->image && !pictures->pixels) || (!cls && !patch) || pictures->count < 1 ||
        pictures->height < 1 || pictures->width < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "features need an image encoder, pictures and room for a result");
    if (!gmem__mul(pictures->height, pictures->width, &area) || !gmem__mul(area, pictures->count, &size) ||
        !gmem__mul(size, 3 * (int64_t)sizeof(float), &size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld pictures of %lld x %lld are too large",
                          (long long)pictures->count, (long long)pictures->height, (long long)pictures->width);
    if (!encoder->store.device) return gmem__vit_features_here(encoder, pictures, cls, patch, error);
    const gmem_status status = gmem__vit_features_here(encoder, pictures, cls, patch, &why);
    if (!gmem__falls_back(encoder->context, status, &why)) {
        if (status != GMEM_OK && error) *error = why;
        return status;
    }
    GMEM__TRY(gmem__encoder_on_cpu(encoder, &on_cpu, error));
    const gmem_status again = gmem__vit_features_here(on_cpu, pictures, cls, patch, error);
    gmem_image_encoder_close(on_cpu);
    return again;
}

GMEM_API gmem_status gmem_image_features(const gmem_image_encoder *encoder, int64_t count, int64_t height,
                                         int64_t width, const float *image, float *cls, float *patch,
                                         gmem_error *error) {
    gmem__pictures pictures;
    memset(&pictures, 0, sizeof pictures);
    pictures.image = image;
    pictures.count = count;
    pictures.height = height;
    pictures.width = width;
    return gmem__vit_features(encoder, &pictures, cls, patch, error);
}

GMEM_API gmem_status gmem_pixel_features(const gmem_image_encoder *encoder, int64_t count, int64_t height,
                                         int64_t width, const uint8_t *pixels, int published, float *cls, float *patch,
                                         gmem_error *error) {
    gmem__pictures pictures;
    memset(&pictures, 0, sizeof pictures);
    pictures.pixels = pixels;
    pictures.published = published;
    pictures.count = count;
    pictures.height = height;
    pictures.width = width;
    return gmem__vit_features(encoder, &pictures, cls, patch, error);
}

#undef GMEM__VIT_EPS
#undef GMEM__VIT_COLUMNS
