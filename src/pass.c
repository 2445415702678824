/* One forward pass of the transformer. Activations are channels-first, (channels, columns) with columns = batch *
 * tokens; the adaLN projections depend on time and condition alone and may be computed beforehand for many of both.
 *
 *     x = patches(x) + position
 *     for each block:  x += gate * proj(attention(rotate(qkv(modulate(norm(x))))))
 *                      x += gate * mlp(modulate(norm(x)))
 *     v = unpatch(linear(modulate(norm(x))))
 * (DiT, Peebles and Xie, 2212.09748; LightningDiT, 2501.01423; GMem, 2412.08781) */
#include "cache.h"
#include "fallback.h"
#include "network.h"
#include "profile.h"

#include <math.h>
#include <stdio.h>

/* Columns held prepared: enough for a matrix product to be worth its name, in bounded memory. */
#define GMEM__PREPARED_COLUMNS 64
#define GMEM__PREPARED_BYTES   (64 << 20)

#define GMEM__NORM_EPS 1e-6f

/* The modulations of distinct (time, condition) pairs. */
typedef struct gmem__columns {
    int64_t capacity, count;
    float *time;    /* (capacity) */
    float *snippet; /* (capacity, snippet_width) */
    int64_t *label; /* (capacity) */
    /* engine: (capacity, depth * gmem__modulation_rows + 2 hidden): block after block, the final layer */
    float *modulation;
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
    gmem__arena arena;  /* of the host */
    gmem__arena memory; /* of the engine */
    int64_t max_batch;
    int64_t most; /* samples at once, where a device cannot hold max_batch in one buffer */
    gmem__cache cache;
    gmem_pass *fallback; /* on the CPU, made when a device failed; or NULL */
    gmem_network *own;   /* of such a pass: closed with it */

    /* On the host. */
    gmem__columns prepared; /* by gmem_pass_prepare */
    gmem__columns missing;  /* what a pass had to compute itself, (most) */
    const float **found;    /* (max_batch) the modulation of each sample */
    float *null_snippet;    /* (snippet_width) zeros */
    float *inputs;          /* like embedding: what is to be embedded */
    float *label_row;       /* (hidden) */

    /* On the engine: the work of computing modulations, (..., columns), columns the larger capacity. */
    float *embedding;    /* (max(GMEM__TIME_WIDTH, snippet_width, hidden), columns) */
    float *conditioning; /* (hidden, columns) */
    float *projected;    /* (modulation rows, columns) */

    /* On the engine: the work of a pass, for `most` * tokens columns. */
    float *gathered;         /* (most, modulation of all layers), where samples' modulations lie anywhere */
    const float *modulation; /* where they are: modulation_stride apart */
    int64_t modulation_stride;
    float *x;        /* (hidden, columns) the residual stream */
    float *y;        /* (hidden, columns) normed, or the attention's result */
    float *wide;     /* (widest, columns) q k v, or the MLP's inside, or patches */
    float *in, *out; /* (max_batch, channels, height, width) of gmem_pass_run, on a device */
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
}

static int64_t gmem__embedding_rows(const gmem_network_info *info) {
    return gmem__max(gmem__max(GMEM__TIME_WIDTH, info->snippet_width), info->hidden);
}

static int64_t gmem__widest_rows(const gmem_network *network) {
    const gmem_network_info *info = &network->info;
    const int64_t ends = info->patch * info->patch * gmem__max(info->channels, network->out_channels);
    return gmem__max(gmem__max(3 * info->hidden, info->mlp_hidden), ends);
}

/* All working memory, taken in the same order without memory first, to learn how much it is: the host's ... */
static void gmem__layout_host(gmem_pass *pass) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t held = gmem__max(pass->prepared.capacity, pass->missing.capacity);
    gmem__arena *arena = &pass->arena;
    gmem__layout_columns(arena, info, &pass->prepared);
    gmem__layout_columns(arena, info, &pass->missing);
    pass->found = (const float **)gmem__take(arena, pass->max_batch, sizeof *pass->found);
    pass->null_snippet = gmem__take_matrix(arena, info->snippet_width, 1);
    pass->inputs = gmem__take_matrix(arena, gmem__embedding_rows(info), held);
    pass->label_row = gmem__take_matrix(arena, info->hidden, 1);
    gmem__cache_layout_host(&pass->cache, arena);
    pass->engine.scratch = gmem__take(arena, pass->engine.ops->scratch_bytes(pass->engine.threads), 1);
}

/* ... and the engine's. */
static void gmem__layout_engine(gmem_pass *pass) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t rows = gmem__modulation_rows(info), hidden = info->hidden, size = gmem__column_size(info);
    const int64_t held = gmem__max(pass->prepared.capacity, pass->missing.capacity);
    int64_t columns = INT64_MAX;
    gmem__arena *arena = &pass->memory;
    (void)gmem__mul(pass->most, info->tokens, &columns);
    pass->prepared.modulation = gmem__take_matrix(arena, pass->prepared.capacity, size);
    pass->missing.modulation = gmem__take_matrix(arena, pass->missing.capacity, size);
    pass->embedding = gmem__take_matrix(arena, gmem__embedding_rows(info), held);
    pass->conditioning = gmem__take_matrix(arena, hidden, held);
    pass->projected = gmem__take_matrix(arena, gmem__max(rows, 2 * hidden), held);
    pass->gathered = gmem__take_matrix(arena, pass->most > 1 ? pass->most : 0, size);
    pass->x = gmem__take_matrix(arena, hidden, columns);
    pass->y = gmem__take_matrix(arena, hidden, columns);
    pass->wide = gmem__take_matrix(arena, gmem__widest_rows(pass->network), columns);
    gmem__cache_layout_engine(&pass->cache, arena);
    if (!pass->engine.stream) return;
    const int64_t latent = info->channels * info->height * info->width;
    pass->in = gmem__take_matrix(arena, pass->max_batch, latent);
    pass->out = gmem__take_matrix(arena, pass->max_batch, latent);
}

static gmem_status gmem__pass_reserve(gmem_pass *pass, gmem_error *error) {
    const gmem_context *context = pass->network->context;
    char what[64];
    snprintf(what, sizeof what, "the activations of a batch of %lld", (long long)pass->max_batch);
    gmem__layout_host(pass);
    if (!gmem__arena_reserve(context, &pass->arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for %s: %lld bytes", what, (long long)pass->arena.bytes);
    gmem__layout_host(pass);
    gmem__layout_engine(pass);
    GMEM__TRY(gmem__engine_reserve(&pass->engine, context, &pass->memory, what, error));
    gmem__layout_engine(pass);
    return GMEM_OK;
}

/* As many samples at once as the widest buffer that a device gives can hold. */
static int64_t gmem__pass_most(const gmem_pass *pass) {
    const int64_t sample = gmem__widest_rows(pass->network) * pass->network->info.tokens * (int64_t)sizeof(float);
    if (!pass->engine.stream) return pass->max_batch;
    return gmem__max(1, gmem__min(pass->max_batch, gmem__stream_largest(pass->engine.stream) / sample));
}

/* How many columns of modulation are held: as GMEM__PREPARED_BYTES takes, but a batch's and the null condition's at
 * least; on a device no more than a buffer of activations takes. */
static int64_t gmem__pass_held(const gmem_pass *pass) {
    const int64_t column = gmem__column_size(&pass->network->info) * (int64_t)sizeof(float);
    const int64_t held =
        gmem__max(gmem__min(GMEM__PREPARED_COLUMNS, GMEM__PREPARED_BYTES / column), pass->max_batch + 1);
    if (!pass->engine.stream) return held;
    return gmem__max(1, gmem__min(held, gmem__stream_largest(pass->engine.stream) / column));
}

GMEM__FN gmem_status gmem__pass_create(const gmem_network *network, int64_t max_batch, double cache_threshold,
                                       gmem_pass **out, gmem_error *error) {
    if (!network || !out || max_batch < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a pass needs a network and a batch of at least 1");
    const gmem_context *context = network->context;
    gmem_pass *pass = (gmem_pass *)gmem__alloc(context, 1, sizeof *pass);
    if (!pass) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a pass");
    pass->network = network;
    pass->max_batch = max_batch;
    pass->cache.threshold = network->info.depth > 1 ? cache_threshold : 0;
    pass->cache.slots = max_batch;
    pass->cache.hidden = network->info.hidden;
    pass->cache.tokens = network->info.tokens;
    gmem_status status = gmem__engine_open(&network->store, &pass->engine, error);
    pass->most = pass->missing.capacity = gmem__pass_most(pass);
    pass->prepared.capacity = gmem__pass_held(pass);
    if (status == GMEM_OK) status = gmem__pass_reserve(pass, error);
    if (status != GMEM_OK) {
        gmem_pass_destroy(pass);
        return status;
    }
    memset(pass->null_snippet, 0, (size_t)network->info.snippet_width * sizeof(float));
    gmem__cache_reset(&pass->cache);
    *out = pass;
    return GMEM_OK;
}

/* Where a device failed: its network's weights are still in the mapping. */
static gmem_status gmem__pass_on_cpu(const gmem_network *network, int64_t max_batch, gmem_pass **out,
                                     gmem_error *error) {
    gmem_network *on_cpu = NULL;
    GMEM__TRY(gmem__network_on_cpu(network, &on_cpu, error));
    const gmem_status status = gmem__pass_create(on_cpu, max_batch, 0, out, error);
    if (status == GMEM_OK)
        (*out)->own = on_cpu;
    else
        gmem_network_close(on_cpu);
    return status;
}

GMEM_API gmem_status gmem_pass_create(const gmem_network *network, int64_t max_batch, gmem_pass **out,
                                      gmem_error *error) {
    gmem_error why;
    if (!network || !network->store.device) return gmem__pass_create(network, max_batch, 0, out, error);
    const gmem_status status = gmem__pass_create(network, max_batch, 0, out, &why);
    if (gmem__falls_back(network->context, status, &why)) return gmem__pass_on_cpu(network, max_batch, out, error);
    if (status != GMEM_OK && error) *error = why;
    return status;
}

GMEM_API void gmem_pass_destroy(gmem_pass *pass) {
    if (!pass) return;
    const gmem_context *context = pass->network->context;
    gmem_network *own = pass->own;
    gmem_pass_destroy(pass->fallback);
    gmem__profile_engine(&pass->engine, &pass->profiler, pass->network, NULL);
    gmem__pass_end(pass);
    gmem__arena_release(context, &pass->arena);
    gmem__engine_close(&pass->engine);
    gmem__free(context, pass, 1, sizeof *pass);
    gmem_network_close(own);
}

GMEM_API void gmem_pass_profile(gmem_pass *pass, gmem_profile *profile) {
    if (!pass) return;
    gmem__profile_engine(&pass->engine, &pass->profiler, pass->network, profile);
    gmem_pass_profile(pass->fallback, profile);
}

GMEM__FN void gmem__pass_end(gmem_pass *pass) {
    pass->engine.ops->release(&pass->engine, pass->network->context, &pass->memory);
}

GMEM__FN gmem_reuse gmem__pass_reuse(const gmem_pass *pass) { return pass->cache.counts; }

GMEM__FN const gmem__engine *gmem__pass_engine(const gmem_pass *pass) { return &pass->engine; }

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

/* conditioning (hidden, count) += the label's row. */
static void gmem__add_labels(const gmem_pass *pass, const gmem__columns *columns) {
    const int64_t hidden = pass->network->info.hidden, count = columns->count;
    gmem__combine sum;
    for (int64_t column = 0; column < count; column++) {
        gmem__weight_row(&pass->network->labels, columns->label[column], pass->label_row);
        for (int64_t i = 0; i < hidden; i++)
            pass->inputs[i * count + column] = pass->label_row[i];
    }
    pass->engine.ops->upload(&pass->engine, pass->embedding, pass->inputs, hidden * count);
    memset(&sum, 0, sizeof sum);
    sum.out = pass->conditioning;
    sum.x = pass->conditioning;
    sum.x_weight = 1;
    sum.terms = 1;
    sum.weight[0] = 1;
    sum.k[0] = pass->embedding;
    sum.rows = 1;
    sum.width = sum.stride = hidden * count;
    pass->engine.ops->combine(&pass->engine, &sum);
}

/* conditioning (hidden, count) += the embedding of each column's condition. */
static void gmem__add_conditions(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t width = network->info.snippet_width, count = columns->count;
    if (width == 0) {
        gmem__add_labels(pass, columns);
        return;
    }
    for (int64_t column = 0; column < count; column++) {
        for (int64_t i = 0; i < width; i++)
            pass->inputs[i * count + column] = columns->snippet[column * width + i];
    }
    pass->engine.ops->upload(&pass->engine, pass->embedding, pass->inputs, width * count);
    gmem__apply(pass, &network->condition, pass->embedding, pass->conditioning, count, GMEM__ACT_NONE, 1);
}

/* One layer's modulation of every column, turned so that a column's rows lie together, `offset` into each. */
static void gmem__project_columns(const gmem_pass *pass, const gmem__columns *columns, const gmem__layer *layer,
                                  int64_t offset) {
    gmem__transpose turn;
    gmem__apply(pass, layer, pass->conditioning, pass->projected, columns->count, GMEM__ACT_NONE, 0);
    turn.x = pass->projected;
    turn.y = columns->modulation + offset;
    turn.rows = layer->weight.rows;
    turn.columns = columns->count;
    turn.y_stride = gmem__column_size(&pass->network->info);
    pass->engine.ops->transpose(&pass->engine, &turn);
}

/* modulation = adaLN(silu(time embedding + condition embedding)) for every block and the final layer. */
static void gmem__compute_columns(const gmem_pass *pass, const gmem__columns *columns) {
    const gmem_network *network = pass->network;
    const int64_t count = columns->count, rows = gmem__modulation_rows(&network->info);
    if (count == 0) return;
    gmem__embed_time(columns, pass->inputs);
    pass->engine.ops->upload(&pass->engine, pass->embedding, pass->inputs, GMEM__TIME_WIDTH * count);
    gmem__apply(pass, &network->time1, pass->embedding, pass->projected, count, GMEM__ACT_SILU, 0);
    gmem__apply(pass, &network->time2, pass->projected, pass->conditioning, count, GMEM__ACT_NONE, 0);
    gmem__add_conditions(pass, columns);
    pass->engine.ops->silu(&pass->engine, pass->conditioning, network->info.hidden * count);
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

/* Points pass->found at each sample's modulation and computes those that were not prepared. Returns whether all lie in
 * one place. */
static int gmem__find_modulations(gmem_pass *pass, int64_t batch, const float *t, const gmem__conditions *conditions) {
    int64_t prepared = 0;
    pass->missing.count = 0;
    for (int64_t sample = 0; sample < batch; sample++) {
        const float *snippet = gmem__snippet_of(pass, conditions, sample);
        int64_t label = gmem__label_of(pass, conditions, sample);
        pass->found[sample] = gmem__find_column(pass, &pass->prepared, t[sample], snippet, label);
        prepared += pass->found[sample] != NULL;
        if (!pass->found[sample])
            pass->found[sample] = gmem__add_column(pass, &pass->missing, t[sample], snippet, label);
    }
    gmem__compute_columns(pass, &pass->missing);
    return prepared == 0 || prepared == batch;
}

/* What lies evenly spaced, as it does when a sampler prepared it, is used where it is; else it is gathered. */
static void gmem__gather_modulations(gmem_pass *pass, int64_t batch, int in_one_place) {
    const int64_t size = gmem__column_size(&pass->network->info);
    const int64_t stride = in_one_place && batch > 1 ? pass->found[1] - pass->found[0] : 0;
    int even = (in_one_place || batch == 1) && stride >= 0;
    for (int64_t sample = 1; even && sample < batch; sample++)
        even = pass->found[sample] - pass->found[sample - 1] == stride;
    pass->modulation = even ? pass->found[0] : pass->gathered;
    pass->modulation_stride = even ? stride : size;
    for (int64_t sample = 0; !even && sample < batch; sample++) {
        gmem__copy copy;
        copy.to = pass->gathered + sample * size;
        copy.from = pass->found[sample];
        copy.rows = 1;
        copy.width = copy.to_stride = copy.from_stride = size;
        pass->engine.ops->copy(&pass->engine, &copy);
    }
}

/* the pass -------------------------------------------------------------------------------------------------------- */

static gmem__patches gmem__patches_of(const gmem_network *network, int64_t batch, float *latents, float *patches) {
    gmem__patches op;
    memset(&op, 0, sizeof op);
    op.latents = latents;
    op.patches = patches;
    op.samples = batch;
    op.channels = network->info.channels;
    op.height = network->info.height;
    op.width = network->info.width;
    op.patch = network->info.patch;
    op.patch_channels = network->out_channels;
    return op;
}

/* pass->x (hidden, columns) = patches + position. */
static void gmem__embed_patches(const gmem_pass *pass, int64_t batch, float *x) {
    const gmem_network *network = pass->network;
    const int64_t tokens = network->info.tokens, columns = batch * tokens;
    const gmem__patches patches = gmem__patches_of(network, batch, x, pass->wide);
    for (int64_t sample = 0; sample < batch; sample++) {
        gmem__copy copy;
        copy.to = pass->x + sample * tokens;
        copy.from = network->position;
        copy.rows = network->info.hidden;
        copy.width = copy.from_stride = tokens;
        copy.to_stride = columns;
        pass->engine.ops->copy(&pass->engine, &copy);
    }
    pass->engine.ops->patches(&pass->engine, &patches);
    gmem__apply(pass, &network->patch, pass->wide, pass->x, columns, GMEM__ACT_NONE, 1);
}

/* norm(pass->x) * (1 + scale) + shift, with pass->y as memory; shift NULL: none. */
static gmem__norm gmem__modulated_norm(const gmem_pass *pass, int64_t batch, const gmem__affine *norm,
                                       const float *shift, const float *scale) {
    const gmem_network_info *info = &pass->network->info;
    gmem__norm op;
    memset(&op, 0, sizeof op);
    op.rms = info->rmsnorm;
    op.eps = GMEM__NORM_EPS;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.shift = shift;
    op.scale = scale;
    op.modulation_stride = pass->modulation_stride;
    op.x = pass->x;
    op.y = pass->y;
    op.channels = info->hidden;
    op.columns = batch * info->tokens;
    op.tokens = info->tokens;
    return op;
}

/* pass->wide = activation(layer(norm(...))), maybe handed over. */
static void gmem__apply_normed(const gmem_pass *pass, const gmem__norm *norm, const gmem__layer *layer,
                               gmem__activation activation, gmem__handover *to) {
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.norm = norm;
    op.y = pass->wide;
    op.y_stride = op.columns = norm->columns;
    op.activation = activation;
    op.to = to;
    pass->engine.ops->linear(&pass->engine, &op);
}

/* pass->x += gate * layer(x). */
static void gmem__apply_gated(const gmem_pass *pass, int64_t batch, const gmem__layer *layer, const float *x,
                              const gmem__handover *from, const float *gate) {
    const gmem_network_info *info = &pass->network->info;
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.weight = &layer->weight;
    op.bias = layer->bias;
    op.x = x;
    op.from = from;
    op.y = pass->x;
    op.x_stride = op.y_stride = op.columns = batch * info->tokens;
    op.residual = 1;
    op.gate = gate;
    op.gate_stride = pass->modulation_stride;
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

/* pass->y = attention(norm(...)), maybe handed over. */
static void gmem__attend(const gmem_pass *pass, int64_t batch, const gmem__norm *norm, const gmem__dit_block *block,
                         gmem__handover *to) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t columns = batch * info->tokens, part = info->hidden * columns;
    gmem__attention op;
    gmem__apply_normed(pass, norm, &block->qkv, GMEM__ACT_NONE, NULL);
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
    op.to = to;
    pass->engine.ops->attention(&pass->engine, &op);
}

static void gmem__run_block(const gmem_pass *pass, int64_t batch, int64_t index) {
    const gmem_network_info *info = &pass->network->info;
    const gmem__dit_block *block = &pass->network->blocks[index];
    const int64_t rows = gmem__modulation_rows(info), half = rows / 2, hidden = info->hidden;
    const int64_t scale = info->shift ? hidden : 0; /* the shift, where there is one, comes first */
    const float *attention = pass->modulation + index * rows, *mlp = attention + half;
    gmem__handover attended = {&block->proj.weight, 0}, inside = {&block->mlp_out.weight, 0};

    gmem__norm norm =
        gmem__modulated_norm(pass, batch, &block->norm1, info->shift ? attention : NULL, attention + scale);
    gmem__attend(pass, batch, &norm, block, &attended);
    gmem__apply_gated(pass, batch, &block->proj, pass->y, &attended, attention + scale + hidden);

    norm = gmem__modulated_norm(pass, batch, &block->norm2, info->shift ? mlp : NULL, mlp + scale);
    gmem__apply_normed(pass, &norm, &block->mlp_in, info->swiglu ? GMEM__ACT_SWIGLU : GMEM__ACT_GELU_TANH, &inside);
    gmem__apply_gated(pass, batch, &block->mlp_out, pass->wide, &inside, mlp + scale + hidden);
}

/* pass->wide = the final layer's patches. */
static void gmem__run_final(const gmem_pass *pass, int64_t batch) {
    const gmem_network *network = pass->network;
    const gmem_network_info *info = &network->info;
    const float *shift = pass->modulation + info->depth * gmem__modulation_rows(info);
    const gmem__norm norm = gmem__modulated_norm(pass, batch, &network->final_norm, shift, shift + info->hidden);
    gmem__apply_normed(pass, &norm, &network->output, GMEM__ACT_NONE, NULL);
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
static void gmem__run_blocks(gmem_pass *pass, int64_t slot, int64_t batch, int in_one_place) {
    const int64_t depth = pass->network->info.depth;
    const int caching = pass->cache.threshold > 0;
    if (caching) gmem__cache_enter(&pass->cache, &pass->engine, batch, pass->x);
    gmem__gather_modulations(pass, batch, in_one_place);
    for (int64_t block = 0; block < (caching ? 1 : depth); block++)
        gmem__run_block(pass, batch, block);
    if (!caching) return;
    gmem__cache_split(&pass->cache, &pass->engine, slot, batch, pass->x);
    const int64_t computed = pass->cache.computed_count;
    gmem__exchange_found(pass, 0);
    if (computed > 0) gmem__gather_modulations(pass, computed, in_one_place);
    for (int64_t block = 1; block < depth && computed > 0; block++)
        gmem__run_block(pass, computed, block);
    gmem__exchange_found(pass, 1);
    gmem__gather_modulations(pass, batch, in_one_place);
    gmem__cache_join(&pass->cache, &pass->engine, slot, batch, pass->x);
}

GMEM__FN gmem_status gmem__pass_nonfinite(const gmem_pass *pass, gmem_error *error) {
    return gmem__fail_at(error, GMEM_E_NONFINITE, gmem_file_path(pass->network->file), -1,
                         "the network's output is not finite: its weights or its input hold NaN or infinity");
}

/* At most pass->most samples. */
static gmem_status gmem__run_samples(gmem_pass *pass, int64_t slot, int64_t batch, float *x, const float *t,
                                     const gmem__conditions *conditions, float *v, gmem_error *error) {
    const gmem_network *network = pass->network;
    const int in_one_place = gmem__find_modulations(pass, batch, t, conditions);
    gmem__embed_patches(pass, batch, x);
    gmem__run_blocks(pass, slot, batch, in_one_place);
    gmem__run_final(pass, batch);
    if (!pass->engine.ops->finite(&pass->engine, pass->wide, network->output.weight.rows * batch * network->info.tokens,
                                  GMEM__NOTE_NETWORK))
        return gmem__pass_nonfinite(pass, error);
    gmem__patches patches = gmem__patches_of(network, batch, v, pass->wide);
    patches.to_latents = 1;
    pass->engine.ops->patches(&pass->engine, &patches);
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__pass_run(gmem_pass *pass, int64_t slot, int64_t batch, float *x, const float *t,
                                    const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    const gmem_network_info *info = &pass->network->info;
    const int64_t latent = info->channels * info->height * info->width;
    gmem__conditions conditions;
    conditions.snippets = snippets;
    conditions.labels = labels;
    GMEM__TRY(gmem__check_conditions(pass, batch, batch, t, &conditions, error));
    for (int64_t first = 0, count; first < batch; first += count) {
        count = gmem__min(pass->most, batch - first);
        conditions.snippets = snippets ? snippets + first * info->snippet_width : NULL;
        conditions.labels = labels ? labels + first : NULL;
        GMEM__TRY(gmem__run_samples(pass, slot + first, count, x + first * latent, t + first, &conditions,
                                    v + first * latent, error));
    }
    return GMEM_OK;
}

/* From the host's memory to the host's. */
static gmem_status gmem__pass_run_device(gmem_pass *pass, int64_t batch, const float *x, const float *t,
                                         const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    const gmem_network_info *info = &pass->network->info;
    const gmem__engine *engine = &pass->engine;
    const int64_t count = batch * info->channels * info->height * info->width;
    int notes = 0;
    engine->ops->upload(engine, pass->in, x, count);
    GMEM__TRY(gmem__pass_run(pass, 0, batch, pass->in, t, snippets, labels, pass->out, error));
    GMEM__TRY(engine->ops->settle(engine, &notes, error));
    if (notes) return gmem__pass_nonfinite(pass, error);
    engine->ops->download(engine, v, pass->out, count);
    return engine->ops->settle(engine, NULL, error);
}

GMEM_API gmem_status gmem_pass_run(gmem_pass *pass, int64_t batch, const float *x, const float *t,
                                   const float *snippets, const int64_t *labels, float *v, gmem_error *error) {
    gmem_error why;
    if (!pass || !x || !t || !v || batch < 1 || batch > pass->max_batch)
        return gmem__fail(error, GMEM_E_ARGUMENT,
                          "a pass needs a batch that it was made for, latents, times and room for the velocity");
    /* x is only read: the CPU's patches go both ways */
    if (!pass->engine.stream) return gmem__pass_run(pass, 0, batch, (float *)x, t, snippets, labels, v, error);
    if (!pass->fallback) {
        const gmem_status status = gmem__pass_run_device(pass, batch, x, t, snippets, labels, v, &why);
        if (!gmem__falls_back(pass->network->context, status, &why)) {
            if (status != GMEM_OK && error) *error = why;
            return status;
        }
        GMEM__TRY(gmem__pass_on_cpu(pass->network, pass->max_batch, &pass->fallback, error));
        if (pass->engine.profiler) gmem_pass_profile(pass->fallback, pass->profiler.profile);
    }
    return gmem_pass_run(pass->fallback, batch, x, t, snippets, labels, v, error);
}

#undef GMEM__PREPARED_COLUMNS
#undef GMEM__PREPARED_BYTES
#undef GMEM__NORM_EPS
