/* One forward pass of the transformer. Activations are channels-first, (channels, columns) with columns = batch *
 * tokens; the adaLN projections depend on time and condition alone and may be computed beforehand for many of both.
 *
 *     x = patches(x) + position
 *     for each block:  x += gate * proj(attention(rotate(qkv(modulate(norm(x))))))
 *                      x += gate * mlp(modulate(norm(x)))
 *     v = unpatch(linear(modulate(norm(x))))
 * (DiT, Peebles and Xie, 2212.09748; LightningDiT, 2501.01423; GMem, 2412.08781) */
#include "cache.h"
#include "network.h"
#include "profile.h"

#include <math.h>

/* Columns held prepared: enough for a matrix product to be worth its name, in bounded memory. */
#define GMEM__PREPARED_COLUMNS 64
#define GMEM__PREPARED_BYTES   (64 << 20)

#define GMEM__NORM_EPS 1e-6f

/* The modulations of distinct (time, condition) pairs. */
typedef struct gmem__columns {
    int64_t capacity, count;
    float *time;       /* (capacity) */
    float *snippet;    /* (capacity, snippet_width) */
    int64_t *label;    /* (capacity) */
    float *modulation; /* (capacity, depth * gmem__modulation_rows + 2 hidden): block after block, the final layer */
} gmem__columns;

/* Where a pass takes its conditions from; both NULL is the null condition for every sample. */
typedef struct gmem__conditions {
    const float *snippets; /* (batch, snippet_width) */
    const int64_t *labels; /* (batch) */
} gmem__conditions;

struct gmem_pass {
    const gmem_network *network;
    gmem__engine engine;
    gmem__profiler profiler;
    gmem__arena arena;
    int64_t max_batch;
    gmem__cache cache;

    gmem__columns prepared; /* by gmem_pass_prepare */
    gmem__columns missing;  /* what a pass had to compute itself, (max_batch) */
    const float **found;    /* (max_batch) the modulation of each sample */
    float *null_snippet;    /* (snippet_width) zeros */

    /* Work of computing modulations: (..., columns), columns the larger capacity. */
    float *embedding;    /* (max(GMEM__TIME_WIDTH, snippet_width, hidden), columns) */
    float *conditioning; /* (hidden, columns) */
    float *projected;    /* (modulation rows, columns) */
    float *label_row;    /* (hidden) */

    /* Work of a pass, for max_batch * tokens columns. */
    float *modulation; /* (max_batch, modulation rows) of one block */
    float *x;          /* (hidden, columns) the residual stream */
    float *y;          /* (hidden, columns) normed, or the attention's result */
    float *wide;       /* (widest, columns) q k v, or the MLP's inside, or patches */
};

static int64_t gmem__column_size(const gmem_network_info *info) {
    return info->depth * gmem__modulation_rows(info) + 2 * info->hidden;
}

/* layout ---------------------------------------------------------------------------------------------------------- */

/* (rows, cols) floats; a size that overflows overfills the arena. */
static float *gmem__take_matrix(gmem__arena *arena, int64_t rows, int64_t cols) {
    int64_t count = 0;
    if (!gmem__mul(rows, cols, &count)) count = INT64_MAX;
    return GMEM__TAKE_F32(arena, count);
}

static void gmem__layout_columns(gmem__arena *arena, const gmem_network_info *info, gmem__columns *columns) {
    columns->time = gmem__take_matrix(arena, columns->capacity, 1);
    columns->snippet = gmem__take_matrix(arena, columns->capacity, info->snippet_width);
    columns->label = (int64_t *)gmem__take(arena, columns->capacity, sizeof *columns->label);
    columns->modulation = gmem__take_matrix(arena, columns->capacity, gmem__column_size(info));
}

/* All working memory, taken in the same order without memory first, to learn how much it is. */
static void gmem__layout_pass(gmem_pass *pass, gmem__arena *arena) {
    const gmem_network_info *info = &pass->network->info;
    int64_t rows = gmem__modulation_rows(info), hidden = info->hidden;
    int64_t held = gmem__max(pass->prepared.capacity, pass->max_batch), columns = INT64_MAX;
    int64_t patch = info->patch * info->patch;
    int64_t ends = patch * gmem__max(info->channels, pass->network->out_channels);
    (void)gmem__mul(pass->max_batch, info->tokens, &columns);
    gmem__layout_columns(arena, info, &pass->prepared);
    gmem__layout_columns(arena, info, &pass->missing);
    pass->found = (const float **)gmem__take(arena, pass->max_batch, sizeof *pass->found);
    pass->null_snippet = gmem__take_matrix(arena, info->snippet_width, 1);
    pass->embedding =
        gmem__take_matrix(arena, gmem__max(gmem__max(GMEM__TIME_WIDTH, info->snippet_width), hidden), held);
    pass->conditioning = gmem__take_matrix(arena, hidden, held);
    pass->projected = gmem__take_matrix(arena, gmem__max(rows, 2 * hidden), held);
    pass->label_row = gmem__take_matrix(arena, hidden, 1);
    pass->modulation = gmem__take_matrix(arena, pass->max_batch, gmem__max(rows, 2 * hidden));
    pass->x = gmem__take_matrix(arena, hidden, columns);
    pass->y = gmem__take_matrix(arena, hidden, columns);
    pass->wide = gmem__take_matrix(arena, gmem__max(gmem__max(3 * hidden, info->mlp_hidden), ends), columns);
    gmem__cache_layout(&pass->cache, arena);
    pass->engine.scratch = gmem__take(arena, pass->engine.ops->scratch_bytes(pass->engine.threads), 1);
}

GMEM__FN gmem_status gmem__pass_create(const gmem_network *network, int64_t max_batch, double cache_threshold,
                                       gmem_pass **out, gmem_error *error) {
    if (!network || !out || max_batch < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a pass needs a network and a batch of at least 1");
    const gmem_context *context = network->context;
    gmem_pass *pass = (gmem_pass *)gmem__alloc(context, 1, sizeof *pass);
    if (!pass) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a pass");
    int64_t column_bytes = gmem__column_size(&network->info) * (int64_t)sizeof(float);
    pass->network = network;
    pass->engine = gmem__engine_of(context);
    pass->max_batch = max_batch;
    pass->missing.capacity = max_batch;
    pass->prepared.capacity =
        gmem__max(gmem__min(GMEM__PREPARED_COLUMNS, GMEM__PREPARED_BYTES / column_bytes), max_batch + 1);
    pass->cache.threshold = network->info.depth > 1 ? cache_threshold : 0;
    pass->cache.slots = max_batch;
    pass->cache.hidden = network->info.hidden;
    pass->cache.tokens = network->info.tokens;
    gmem__layout_pass(pass, &pass->arena);
    if (!gmem__arena_reserve(context, &pass->arena)) {
        int64_t bytes = pass->arena.bytes;
        gmem_pass_destroy(pass);
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the activations of a batch of %lld: %lld bytes",
                          (long long)max_batch, (long long)bytes);
    }
    gmem__layout_pass(pass, &pass->arena);
    memset(pass->null_snippet, 0, (size_t)network->info.snippet_width * sizeof(float));
    gmem__cache_reset(&pass->cache);
    *out = pass;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_create(const gmem_network *network, int64_t max_batch, gmem_pass **out,
                                      gmem_error *error) {
    return gmem__pass_create(network, max_batch, 0, out, error);
}

GMEM_API void gmem_pass_destroy(gmem_pass *pass) {
    if (!pass) return;
    const gmem_context *context = pass->network->context;
    gmem__arena_release(context, &pass->arena);
    gmem__free(context, pass, 1, sizeof *pass);
}

GMEM_API void gmem_pass_profile(gmem_pass *pass, gmem_profile *profile) {
    if (pass) gmem__profile_engine(&pass->engine, &pass->profiler, pass->network, profile);
}

GMEM__FN gmem_reuse gmem__pass_reuse(const gmem_pass *pass) { return pass->cache.counts; }

GMEM__FN int64_t gmem__pass_prepare_limit(const gmem_pass *pass) { return pass->prepared.capacity; }

/* modulation ------------------------------------------------------------------------------------------------------ */

static void gmem__apply(const gmem_pass *pass, const gmem__layer *layer, const float *x, float *y, int64_t columns,
                        gmem__activation activation, int residual) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = x;
    op.y = y;
    op.x_stride = op.y_stride = op.columns = columns;
    op.activation = activation;
    op.residual = residual;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* embedding (GMEM__TIME_WIDTH, count): cos(t w), then sin(t w), w = 10000^(-i / 128). Time is not scaled. */
static void gmem__embed_time(const gmem__columns *columns, float *embedding) {
    const int64_t half = GMEM__TIME_WIDTH / 2, count = columns->count;
    for (int64_t i = 0; i < half; i++) {
        float frequency = (float)pow(10000.0, -(double)i / (double)half);
        for (int64_t column = 0; column < count; column++) {
            float angle = columns->time[column] * frequency;
            embedding[i * count + column] = (float)cos((double)angle);
            embedding[(half + i) * count + column] = (float)sin((double)angle);
        }
    }
}

/* A row of a matrix in its own type, in f32: out (cols). */
static void gmem__weight_row(const gmem__weight *weight, int64_t row, float *out) {
    gmem_tensor tensor;
    memset(&tensor, 0, sizeof tensor);
    tensor.type = weight->type;
    tensor.rank = 1;
    tensor.shape[0] = weight->cols;
    tensor.stride[0] = 1;
    tensor.data = (const char *)weight->data + (size_t)(row * weight->row_stride) * gmem_type_bytes(weight->type);
    gmem_tensor_read_f32(&tensor, 0, weight->cols, out);
    for (int64_t i = 0; weight->scale && i < weight->cols; i++) {
        out[i] *= weight->scale[row];
    }
}

/* conditioning (hidden, count) += the embedding of each column's condition. */
static void gmem__add_conditions(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t width = network->info.snippet_width, count = columns->count;
    for (int64_t column = 0; width == 0 && column < count; column++) {
        gmem__weight_row(&network->labels, columns->label[column], pass->label_row);
        for (int64_t i = 0; i < network->info.hidden; i++) {
            pass->conditioning[i * count + column] += pass->label_row[i];
        }
    }
    if (width == 0) return;
    for (int64_t column = 0; column < count; column++) {
        for (int64_t i = 0; i < width; i++) {
            pass->embedding[i * count + column] = columns->snippet[column * width + i];
        }
    }
    gmem__apply(pass, &network->condition, pass->embedding, pass->conditioning, count, GMEM__ACT_NONE, 1);
}

/* One layer's modulation of every column, turned so that a column's rows lie together, `offset` into each. */
static void gmem__project_columns(const gmem_pass *pass, const gmem__columns *columns, const gmem__layer *layer,
                                  int64_t offset) {
    const int64_t rows = layer->weight.rows, count = columns->count;
    const int64_t size = gmem__column_size(&pass->network->info);
    gmem__apply(pass, layer, pass->conditioning, pass->projected, count, GMEM__ACT_NONE, 0);
    for (int64_t column = 0; column < count; column++) {
        float *out = columns->modulation + column * size + offset;
        for (int64_t row = 0; row < rows; row++) {
            out[row] = pass->projected[row * count + column];
        }
    }
}

/* modulation = adaLN(silu(time embedding + condition embedding)) for every block and the final layer. */
static void gmem__compute_columns(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t count = columns->count, rows = gmem__modulation_rows(&network->info);
    if (count == 0) return;
    gmem__embed_time(columns, pass->embedding);
    gmem__apply(pass, &network->time1, pass->embedding, pass->projected, count, GMEM__ACT_SILU, 0);
    gmem__apply(pass, &network->time2, pass->projected, pass->conditioning, count, GMEM__ACT_NONE, 0);
    gmem__add_conditions(pass, columns);
    for (int64_t i = 0; i < network->info.hidden * count; i++) {
        float c = pass->conditioning[i];
        pass->conditioning[i] = c / (1.0f + expf(-c));
    }
    for (int64_t block = 0; block < network->info.depth; block++) {
        gmem__project_columns(pass, columns, &network->blocks[block].modulation, block * rows);
    }
    gmem__project_columns(pass, columns, &network->final_modulation, network->info.depth * rows);
}

/* The condition of a sample; the null one is the zero snippet, or the last label. */
static const float *gmem__snippet_of(const gmem_pass *pass, const gmem__conditions *conditions, int64_t sample) {
    const int64_t width = pass->network->info.snippet_width;
    return conditions->snippets ? conditions->snippets + sample * width : pass->null_snippet;
}

static int64_t gmem__label_of(const gmem_pass *pass, const gmem__conditions *conditions, int64_t sample) {
    return conditions->labels ? conditions->labels[sample] : pass->network->info.classes;
}

/* The modulation of a time and condition of exactly these bits, or NULL. */
static const float *gmem__find_column(const gmem_pass *pass, const gmem__columns *columns, float time,
                                      const float *snippet, int64_t label) {
    const gmem_network_info *info = &pass->network->info;
    const size_t bytes = (size_t)info->snippet_width * sizeof(float);
    for (int64_t i = 0; i < columns->count; i++) {
        if (memcmp(&columns->time[i], &time, sizeof time) == 0 && columns->label[i] == label &&
            memcmp(columns->snippet + i * info->snippet_width, snippet, bytes) == 0)
            return columns->modulation + i * gmem__column_size(info);
    }
    return NULL;
}

/* The modulation that is there already or a place for it at the end, or NULL where there's no room. */
static const float *gmem__add_column(const gmem_pass *pass, gmem__columns *columns, float time, const float *snippet,
                                     int64_t label) {
    const gmem_network_info *info = &pass->network->info;
    const float *found = gmem__find_column(pass, columns, time, snippet, label);
    if (found || columns->count == columns->capacity) return found;
    int64_t i = columns->count++;
    columns->time[i] = time;
    columns->label[i] = label;
    memcpy(columns->snippet + i * info->snippet_width, snippet, (size_t)info->snippet_width * sizeof(float));
    return columns->modulation + i * gmem__column_size(info);
}

static gmem_status gmem__check_conditions(const gmem_pass *pass, int64_t batch, int64_t times, const float *t,
                                          const gmem__conditions *conditions, gmem_error *error) {
    const gmem_network_info *info = &pass->network->info;
    if (batch < 0 || batch > pass->max_batch)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a batch of %lld, where the pass was made for at most %lld",
                          (long long)batch, (long long)pass->max_batch);
    if (!gmem__all_finite(t, times)) return gmem__fail(error, GMEM_E_ARGUMENT, "a time that is not finite");
    if (conditions->snippets && info->snippet_width == 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "snippets for a network that is conditioned on class labels");
    if (conditions->labels && info->classes == 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "labels for a network that is conditioned on snippets");
    for (int64_t i = 0; conditions->labels && i < batch; i++) {
        if (conditions->labels[i] < 0 || conditions->labels[i] > info->classes)
            return gmem__fail(error, GMEM_E_LABEL, "label %lld, where the network has 0 to %lld, and %lld for none",
                              (long long)conditions->labels[i], (long long)info->classes - 1, (long long)info->classes);
    }
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_prepare(gmem_pass *pass, int64_t times, const float *t, int64_t batch,
                                       const float *snippets, const int64_t *labels, int with_null, gmem_error *error) {
    gmem__conditions conditions, none = {NULL, NULL};
    conditions.snippets = snippets;
    conditions.labels = labels;
    if (!pass || times < 0 || (times > 0 && !t))
        return gmem__fail(error, GMEM_E_ARGUMENT, "preparing needs a pass and times");
    GMEM__TRY(gmem__check_conditions(pass, batch, times, t, &conditions, error));
    pass->prepared.count = 0;
    for (int64_t i = 0; i < times; i++) {
        for (int64_t sample = with_null ? -1 : 0; sample < batch; sample++) {
            const gmem__conditions *from = sample < 0 ? &none : &conditions;
            int64_t label = gmem__label_of(pass, from, sample);
            gmem__add_column(pass, &pass->prepared, t[i], gmem__snippet_of(pass, from, sample), label);
        }
    }
    gmem__compute_columns(pass, &pass->prepared);
    return GMEM_OK;
}

/* Points pass->found at each sample's modulation and computes those that were not prepared. */
static void gmem__find_modulations(gmem_pass *pass, int64_t batch, const float *t, const gmem__conditions *conditions) {
    pass->missing.count = 0;
    for (int64_t sample = 0; sample < batch; sample++) {
        const float *snippet = gmem__snippet_of(pass, conditions, sample);
        int64_t label = gmem__label_of(pass, conditions, sample);
        pass->found[sample] = gmem__find_column(pass, &pass->prepared, t[sample], snippet, label);
        if (!pass->found[sample])
            pass->found[sample] = gmem__add_column(pass, &pass->missing, t[sample], snippet, label);
    }
    gmem__compute_columns(pass, &pass->missing);
}

/* One layer's rows of every sample into pass->modulation (batch, rows). */
static void gmem__gather_modulation(const gmem_pass *pass, int64_t batch, int64_t offset, int64_t rows) {
    for (int64_t sample = 0; sample < batch; sample++) {
        memcpy(pass->modulation + sample * rows, pass->found[sample] + offset, (size_t)rows * sizeof(float));
    }
}

/* the pass -------------------------------------------------------------------------------------------------------- */

/* x (batch, channels, height, width) -> patches (channels * patch * patch, batch * tokens). */
static void gmem__patchify(const gmem_network_info *info, int64_t batch, const float *x, float *patches) {
    const int64_t p = info->patch, columns = info->width / p, total = batch * info->tokens;
    for (int64_t sample = 0; sample < batch; sample++) {
        for (int64_t row = 0; row < info->channels * p * p; row++) {
            const float *plane = x + (sample * info->channels + row / (p * p)) * info->height * info->width +
                                 row / p % p * info->width + row % p;
            float *out = patches + row * total + sample * info->tokens;
            for (int64_t token = 0; token < info->tokens; token++) {
                out[token] = plane[token / columns * p * info->width + token % columns * p];
            }
        }
    }
}

/* patches (patch, patch, out_channels, batch * tokens) -> v (batch, channels, height, width); a sigma is dropped. */
static void gmem__unpatchify(const gmem_network *network, int64_t batch, const float *patches, float *v) {
    const gmem_network_info *info = &network->info;
    const int64_t p = info->patch, columns = info->width / p, total = batch * info->tokens;
    for (int64_t sample = 0; sample < batch; sample++) {
        for (int64_t row = 0; row < p * p * network->out_channels; row++) {
            const int64_t channel = row % network->out_channels, place = row / network->out_channels;
            if (channel >= info->channels) continue;
            const float *from = patches + row * total + sample * info->tokens;
            float *plane = v + (sample * info->channels + channel) * info->height * info->width +
                           place / p * info->width + place % p;
            for (int64_t token = 0; token < info->tokens; token++) {
                plane[token / columns * p * info->width + token % columns * p] = from[token];
            }
        }
    }
}

/* pass->x (hidden, columns) = patches + position. */
static void gmem__embed_patches(const gmem_pass *pass, int64_t batch, const float *x) {
    const gmem_network *network = pass->network;
    const int64_t tokens = network->info.tokens, columns = batch * tokens;
    for (int64_t channel = 0; channel < network->info.hidden; channel++) {
        for (int64_t sample = 0; sample < batch; sample++) {
            memcpy(pass->x + channel * columns + sample * tokens, network->position + channel * tokens,
                   (size_t)tokens * sizeof(float));
        }
    }
    gmem__patchify(&network->info, batch, x, pass->wide);
    gmem__apply(pass, &network->patch, pass->wide, pass->x, columns, GMEM__ACT_NONE, 1);
}

/* norm(pass->x) * (1 + scale) + shift, with pass->y as memory; shift NULL: none. */
static gmem__norm gmem__modulated_norm(const gmem_pass *pass, int64_t batch, const gmem__affine *norm,
                                       const float *shift, const float *scale, int64_t stride) {
    const gmem_network_info *info = &pass->network->info;
    gmem__norm op;
    memset(&op, 0, sizeof op);
    op.rms = info->rmsnorm;
    op.eps = GMEM__NORM_EPS;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.shift = shift;
    op.scale = scale;
    op.modulation_stride = stride;
    op.x = pass->x;
    op.y = pass->y;
    op.channels = info->hidden;
    op.columns = batch * info->tokens;
    op.tokens = info->tokens;
    return op;
}

/* pass->wide = activation(layer(norm(...))). */
static void gmem__apply_normed(const gmem_pass *pass, const gmem__norm *norm, const gmem__layer *layer,
                               gmem__activation activation) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.norm = norm;
    op.y = pass->wide;
    op.y_stride = op.columns = norm->columns;
    op.activation = activation;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* pass->x += gate * layer(from). */
static void gmem__apply_gated(const gmem_pass *pass, int64_t batch, const gmem__layer *layer, const float *from,
                              const float *gate, int64_t stride) {
    const gmem_network_info *info = &pass->network->info;
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = from;
    op.y = pass->x;
    op.x_stride = op.y_stride = op.columns = batch * info->tokens;
    op.residual = 1;
    op.gate = gate;
    op.gate_stride = stride;
    op.tokens = info->tokens;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* q or k in place: its norm and the rotary embedding, each where the network has it. */
static void gmem__rotate_heads(const gmem_pass *pass, int64_t batch, const gmem__affine *norm, float *x) {
    const gmem_network *network = pass->network;
    const gmem_network_info *info = &network->info;
    gmem__rotate op;
    if (!info->qk_norm && !info->rope) return;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.heads = info->heads;
    op.head_dim = info->head_dim;
    op.columns = batch * info->tokens;
    op.tokens = info->tokens;
    op.norm = info->qk_norm;
    op.rms = info->rmsnorm;
    op.eps = info->rmsnorm ? GMEM__NORM_EPS : 1e-5f; /* torch.nn.LayerNorm's default */
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.cosine = network->rope_cosine;
    op.sine = network->rope_sine;
    pass->engine.ops->rotate(&pass->engine, &op);
}

/* pass->y = attention(norm(...)). */
static void gmem__attend(const gmem_pass *pass, int64_t batch, const gmem__norm *norm, const gmem__dit_block *block) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t columns = batch * info->tokens, part = info->hidden * columns;
    gmem__attention op;
    gmem__apply_normed(pass, norm, &block->qkv, GMEM__ACT_NONE);
    gmem__rotate_heads(pass, batch, &block->q_norm, pass->wide);
    gmem__rotate_heads(pass, batch, &block->k_norm, pass->wide + part);
    memset(&op, 0, sizeof op);
    op.q = pass->wide;
    op.k = pass->wide + part;
    op.v = pass->wide + 2 * part;
    op.y = pass->y;
    op.heads = info->heads;
    op.head_dim = info->head_dim;
    op.tokens = info->tokens;
    op.samples = batch;
    op.stride = op.y_stride = columns;
    op.scale = (float)(1.0 / sqrt((double)info->head_dim));
    op.compute = pass->network->context->compute;
    pass->engine.ops->attention(&pass->engine, &op);
}

static void gmem__run_block(const gmem_pass *pass, int64_t batch, int64_t index) {
    const gmem_network_info *info = &pass->network->info;
    const gmem__dit_block *block = &pass->network->blocks[index];
    const int64_t rows = gmem__modulation_rows(info), half = rows / 2, hidden = info->hidden;
    const int64_t scale = info->shift ? hidden : 0; /* the shift, where there is one, comes first */
    gmem__gather_modulation(pass, batch, index * rows, rows);
    const float *attention = pass->modulation, *mlp = pass->modulation + half;

    gmem__norm norm =
        gmem__modulated_norm(pass, batch, &block->norm1, info->shift ? attention : NULL, attention + scale, rows);
    gmem__attend(pass, batch, &norm, block);
    gmem__apply_gated(pass, batch, &block->proj, pass->y, attention + scale + hidden, rows);

    norm = gmem__modulated_norm(pass, batch, &block->norm2, info->shift ? mlp : NULL, mlp + scale, rows);
    gmem__apply_normed(pass, &norm, &block->mlp_in, info->swiglu ? GMEM__ACT_SWIGLU : GMEM__ACT_GELU_TANH);
    gmem__apply_gated(pass, batch, &block->mlp_out, pass->wide, mlp + scale + hidden, rows);
}

/* pass->wide = the final layer's patches. */
static void gmem__run_final(const gmem_pass *pass, int64_t batch) {
    const gmem_network *network = pass->network;
    const gmem_network_info *info = &network->info;
    const int64_t rows = 2 * info->hidden;
    gmem__gather_modulation(pass, batch, info->depth * gmem__modulation_rows(info), rows);
    const gmem__norm norm = gmem__modulated_norm(pass, batch, &network->final_norm, pass->modulation,
                                                 pass->modulation + info->hidden, rows);
    gmem__apply_normed(pass, &norm, &network->output, GMEM__ACT_NONE);
}

/* Brings the modulations of the samples that are computed to the front, or back: an exchange undoes itself. */
static void gmem__exchange_found(gmem_pass *pass, int back) {
    const int64_t count = pass->cache.computed_count;
    for (int64_t i = 0; i < count; i++) {
        const int64_t to = back ? count - 1 - i : i, from = pass->cache.computed[to];
        const float *found = pass->found[to];
        pass->found[to] = pass->found[from];
        pass->found[from] = found;
    }
}

/* All blocks, in which the cache may stand for those after the first. */
static void gmem__run_blocks(gmem_pass *pass, int64_t slot, int64_t batch) {
    const int64_t depth = pass->network->info.depth;
    const int caching = pass->cache.threshold > 0;
    if (caching) gmem__cache_enter(&pass->cache, batch, pass->x);
    for (int64_t block = 0; block < (caching ? 1 : depth); block++)
        gmem__run_block(pass, batch, block);
    if (!caching) return;
    gmem__cache_split(&pass->cache, slot, batch, pass->x);
    gmem__exchange_found(pass, 0);
    for (int64_t block = 1; block < depth && pass->cache.computed_count > 0; block++)
        gmem__run_block(pass, pass->cache.computed_count, block);
    gmem__exchange_found(pass, 1);
    gmem__cache_join(&pass->cache, slot, batch, pass->x);
}

GMEM__FN gmem_status gmem__pass_run(gmem_pass *pass, int64_t slot, int64_t batch, const float *x, const float *t,
                                    const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    gmem__conditions conditions;
    conditions.snippets = snippets;
    conditions.labels = labels;
    if (!pass || !x || !t || !v || batch < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a pass needs a batch, latents, times and room for the velocity");
    const gmem_network *network = pass->network;
    GMEM__TRY(gmem__check_conditions(pass, batch, batch, t, &conditions, error));
    gmem__find_modulations(pass, batch, t, &conditions);
    gmem__embed_patches(pass, batch, x);
    gmem__run_blocks(pass, slot, batch);
    gmem__run_final(pass, batch);
    if (!gmem__all_finite(pass->wide, network->output.weight.rows * batch * network->info.tokens))
        return gmem__fail_at(error, GMEM_E_NONFINITE, gmem_file_path(network->file), -1,
                             "the network's output is not finite: its weights or its input hold NaN or infinity");
    gmem__unpatchify(network, batch, pass->wide, v);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_pass_run(gmem_pass *pass, int64_t batch, const float *x, const float *t,
                                   const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    return gmem__pass_run(pass, 0, batch, x, t, snippets, labels, v, error);
}

#undef GMEM__PREPARED_COLUMNS
#undef GMEM__PREPARED_BYTES
#undef GMEM__NORM_EPS
