/* One call from files to pixels, on the public objects alone. */
#include "internal.h"

/* The default batch: enough columns for every matrix product, activations within reach of the caches. */
#define GMEM__BATCH_TOKENS 1024
#define GMEM__BATCH_MOST   16

/* Everything that a run opens and fills, released together. */
typedef struct gmem__generation {
    gmem_context *context;
    const gmem_generate_desc *desc;
    gmem_file *network_file; /* shared by the network and, in the first version, its bank */
    gmem_network *network;
    gmem_bank *bank;
    gmem_autoencoder *autoencoder;
    const gmem_network_info *info;
    int64_t count, batch, per_picture;
    int64_t first, size; /* the pictures being drawn: at most `batch` */
    gmem_rng rng;
    gmem_progress done; /* steps and passes of the batches before; what the present one has told last */
    gmem_progress told;
    int bank_in_network;
    int host_noise;    /* z is drawn here, not where the network is */
    gmem__arena arena; /* of the four below */
    float *z;          /* (batch, channels, height, width) noise, with host_noise */
    float *snippets;   /* (batch, snippet_width) */
    int64_t *chosen;   /* (count) rows or labels */
    float *stats;      /* (2, channels): mean and std */
    gmem_image image;
} gmem__generation;

/* sizes ----------------------------------------------------------------------------------------------------------- */

static int64_t gmem__image_bytes(const gmem_image *image) { return image->count * image->height * image->width * 3; }

static void gmem__generation_take(gmem__generation *g) {
    g->z = GMEM__TAKE_F32(&g->arena, g->host_noise ? g->batch * g->per_picture : 0);
    g->snippets = GMEM__TAKE_F32(&g->arena, g->batch * g->info->snippet_width);
    g->chosen = (int64_t *)gmem__take(&g->arena, g->count, sizeof *g->chosen);
    g->stats = GMEM__TAKE_F32(&g->arena, 2 * g->info->channels);
}

/* torch's generators have one stream, so the batch changes the pictures; the published script draws all at once. */
static int64_t gmem__generation_batch(const gmem__generation *g) {
    int64_t batch = gmem__max(1, gmem__min(GMEM__BATCH_TOKENS / g->info->tokens, GMEM__BATCH_MOST));
    if (g->desc->rng != GMEM_RNG_PHILOX) batch = g->count;
    if (g->desc->batch) batch = g->desc->batch;
    return gmem__min(batch, g->count);
}

static gmem_status gmem__generation_alloc(gmem__generation *g, gmem_error *error) {
    const gmem_network_info *info = g->info;
    int64_t factor = gmem_autoencoder_get_info(g->autoencoder)->factor, size = 0;
    g->per_picture = info->channels * info->height * info->width;
    /* one of the three is the largest product by which anything below is sized */
    if (!gmem__mul(3 * info->height * factor * info->width * factor, g->count, &size) ||
        !gmem__mul(g->per_picture, g->count, &size) || !gmem__mul(info->snippet_width, g->count, &size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld pictures are too many", (long long)g->count);
    g->batch = gmem__generation_batch(g);
    g->image.count = g->count;
    g->image.height = info->height * factor;
    g->image.width = info->width * factor;
    gmem__generation_take(g);
    g->image.pixels = (uint8_t *)gmem__alloc_raw(g->context, gmem__image_bytes(&g->image), 1);
    if (!gmem__arena_reserve(g->context, &g->arena) || !g->image.pixels)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for %lld pictures", (long long)g->count);
    gmem__generation_take(g);
    return GMEM_OK;
}

static void gmem__generation_free(gmem__generation *g) {
    gmem__arena_release(g->context, &g->arena);
    gmem_image_free(g->context, &g->image);
    gmem_autoencoder_close(g->autoencoder);
    gmem_bank_close(g->bank);
    gmem_network_close(g->network);
    gmem_file_close(g->network_file);
}

GMEM_API void gmem_image_free(gmem_context *context, gmem_image *image) {
    if (!image) return;
    gmem__free(context, image->pixels, gmem__image_bytes(image), 1);
    memset(image, 0, sizeof *image);
}

/* opening --------------------------------------------------------------------------------------------------------- */

static gmem_status gmem__generation_open_network(gmem__generation *g, gmem_error *error) {
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    GMEM__TRY(gmem_file_open(g->context, g->desc->network, NULL, &g->network_file, error));
    desc.file = g->network_file;
    GMEM__TRY(gmem_network_open(g->context, &desc, &g->network, error));
    g->info = gmem_network_get_info(g->network);
    return GMEM_OK;
}

static gmem_status gmem__generation_open_bank(gmem__generation *g, gmem_error *error) {
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    if (g->info->snippet_width == 0) {
        if (g->desc->bank || g->desc->memory_count > 0)
            return gmem__fail(error, GMEM_E_COMBINATION, "a class-conditional network takes labels, not a bank");
        return GMEM_OK;
    }
    if (g->desc->label_count > 0)
        return gmem__fail(error, GMEM_E_COMBINATION, "a network with snippets takes no labels");
    g->bank_in_network = !g->desc->bank && gmem_file_find_any(g->network_file, "memorybank") != NULL;
    if (!g->desc->bank && !g->bank_in_network) return gmem__fail(error, GMEM_E_ARGUMENT, "this network needs a bank");
    desc.paths = &g->desc->bank;
    desc.path_count = 1;
    desc.file = g->bank_in_network ? g->network_file : NULL;
    desc.names_path = g->desc->names;
    GMEM__TRY(gmem_bank_open(g->context, &desc, &g->bank, error));
    if (gmem_bank_width(g->bank) == g->info->snippet_width) return GMEM_OK;
    return gmem__fail_at(error, GMEM_E_WIDTH, gmem_bank_file_path(g->bank, 0), -1,
                         "the bank's rows have %lld elements, the network's snippets %lld",
                         (long long)gmem_bank_width(g->bank), (long long)g->info->snippet_width);
}

static gmem_status gmem__generation_open_autoencoder(gmem__generation *g, gmem_error *error) {
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.path = g->desc->autoencoder;
    GMEM__TRY(gmem_autoencoder_open(g->context, &desc, &g->autoencoder, error));
    int64_t channels = gmem_autoencoder_get_info(g->autoencoder)->latent_channels;
    if (channels == g->info->channels) return GMEM_OK;
    return gmem__fail_at(error, GMEM_E_LATENT, g->desc->autoencoder, -1,
                         "the autoencoder has %lld latent channels, the network %lld", (long long)channels,
                         (long long)g->info->channels);
}

static gmem_status gmem__generation_read_stats(gmem__generation *g, gmem_error *error) {
    int64_t channels = g->info->channels;
    gmem_file *file = NULL;
    for (int64_t i = 0; i < 2 * channels; i++) {
        g->stats[i] = i < channels ? 0.0f : 1.0f;
    }
    if (!g->desc->latent_stats) return GMEM_OK;
    GMEM__TRY(gmem_file_open(g->context, g->desc->latent_stats, ".", &file, error));
    gmem_status status = gmem_read_latent_stats(file, channels, g->stats, g->stats + channels, error);
    gmem_file_close(file);
    return status;
}

/* what to draw ---------------------------------------------------------------------------------------------------- */

/* Digits are a row's number, anything else a name. */
static gmem_status gmem__generation_find_row(const gmem_bank *bank, const char *what, int64_t *row, gmem_error *error) {
    int64_t number = 0;
    const char *c = what;
    if (!what) return gmem__fail(error, GMEM_E_ARGUMENT, "a name of a row is missing");
    for (; *c >= '0' && *c <= '9'; c++) {
        if (!gmem__mul(number, 10, &number) || !gmem__add(number, *c - '0', &number)) break;
    }
    if (c == what || *c) return gmem_bank_find(bank, what, row, error);
    if (number >= gmem_bank_rows(bank))
        return gmem__fail(error, GMEM_E_ROW, "row %lld of a bank of %lld", (long long)number,
                          (long long)gmem_bank_rows(bank));
    *row = number;
    return GMEM_OK;
}

/* What the caller named, in turn; before any number is drawn. */
static gmem_status gmem__generation_choose_named(gmem__generation *g, gmem_error *error) {
    const gmem_generate_desc *desc = g->desc;
    for (int64_t i = 0; i < g->count && desc->memory_count > 0; i++) {
        GMEM__TRY(gmem__generation_find_row(g->bank, desc->memory[i % desc->memory_count], &g->chosen[i], error));
    }
    for (int64_t i = 0; i < g->count && desc->label_count > 0; i++) {
        g->chosen[i] = desc->labels[i % desc->label_count];
        if (g->chosen[i] < 0 || g->chosen[i] >= g->info->classes)
            return gmem__fail(error, GMEM_E_LABEL, "label %lld of %lld classes", (long long)g->chosen[i],
                              (long long)g->info->classes);
    }
    return GMEM_OK;
}

/* GMem's first version: rows from the noise and `memoryfreq`, which its checkpoints hold beside their bank. */
static gmem_status gmem__generation_choose_by_noise(gmem__generation *g, const gmem_tensor *frequencies,
                                                    gmem_error *error) {
    int64_t rows = gmem_bank_rows(g->bank);
    gmem_status status = GMEM_OK;
    if (gmem_tensor_count(frequencies) != rows)
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(g->network_file), -1,
                             "\"memoryfreq\" has %lld elements for %lld rows",
                             (long long)gmem_tensor_count(frequencies), (long long)rows);
    int64_t *memoryfreq = (int64_t *)gmem__alloc_raw(g->context, rows, sizeof *memoryfreq);
    if (!memoryfreq) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the rows' frequencies");
    gmem_tensor_read_i64(frequencies, 0, rows, memoryfreq);
    for (int64_t i = 0; i < g->size && status == GMEM_OK; i++) {
        status = gmem_choose_row(memoryfreq, rows, g->z + i * g->per_picture, g->per_picture, &g->chosen[g->first + i],
                                 error);
    }
    gmem__free(g->context, memoryfreq, rows, sizeof *memoryfreq);
    return status;
}

/* The rows' frequencies, where they and the noise choose the rows. */
static const gmem_tensor *gmem__generation_frequencies(const gmem__generation *g) {
    const gmem_generate_desc *desc = g->desc;
    if (!g->bank_in_network || desc->memory_count > 0 || desc->label_count > 0) return NULL;
    return gmem_file_find_any(g->network_file, "memoryfreq");
}

static gmem_status gmem__generation_choose_random(gmem__generation *g, gmem_error *error) {
    const gmem_tensor *frequencies = gmem__generation_frequencies(g);
    if (frequencies) return gmem__generation_choose_by_noise(g, frequencies, error);
    int64_t high = g->bank ? gmem_bank_rows(g->bank) : g->info->classes;
    gmem_rng_integers(&g->rng, GMEM_DRAW_ROW, g->first, g->size, high, g->chosen + g->first);
    return GMEM_OK;
}

/* The published script's order of draws: z, then rows; the steps' noise follows while sampling. */
static gmem_status gmem__generation_condition(gmem__generation *g, gmem_error *error) {
    if (g->host_noise) gmem_rng_normal(&g->rng, GMEM_DRAW_LATENT, 0, g->first, g->size, g->per_picture, g->z);
    if (g->desc->memory_count == 0 && g->desc->label_count == 0) GMEM__TRY(gmem__generation_choose_random(g, error));
    for (int64_t i = 0; i < g->size && g->bank; i++) {
        GMEM__TRY(gmem_bank_snippet(g->bank, g->chosen[g->first + i], g->snippets + i * g->info->snippet_width, error));
    }
    return GMEM_OK;
}

/* drawing --------------------------------------------------------------------------------------------------------- */

/* The caller sees one run, however many batches it has. */
static int gmem__generation_progress(void *user, const gmem_progress *progress) {
    gmem__generation *g = (gmem__generation *)user;
    const int64_t batches = gmem__ceil_div(g->count, g->batch);
    gmem_progress all = *progress;
    g->told = *progress;
    all.step += g->done.step;
    all.steps *= batches;
    all.passes += g->done.passes;
    all.total_passes *= batches;
    return g->desc->progress(g->desc->progress_user, &all);
}

static gmem_status gmem__generation_batch_pixels(gmem__generation *g, gmem_error *error) {
    gmem_sample_pixels_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.sample.sampler = g->desc->sampler;
    desc.sample.batch = g->size;
    desc.sample.picture = g->first;
    desc.sample.snippets = g->bank ? g->snippets : NULL;
    desc.sample.labels = g->bank ? NULL : g->chosen + g->first;
    desc.sample.rng = &g->rng;
    desc.sample.progress = g->desc->progress ? gmem__generation_progress : NULL;
    desc.sample.progress_user = g;
    desc.z = g->host_noise ? g->z : NULL;
    desc.mean = g->stats;
    desc.std = g->stats + g->info->channels;
    desc.multiplier = g->desc->multiplier;
    uint8_t *pixels = g->image.pixels + g->first * g->image.height * g->image.width * 3;
    GMEM__TRY(gmem_sample_pixels(g->network, g->autoencoder, &desc, pixels, error));
    g->done.step += g->told.step;
    g->done.passes += g->told.passes;
    return GMEM_OK;
}

static gmem_status gmem__generation_draw(gmem__generation *g, gmem_error *error) {
    GMEM__TRY(gmem__generation_choose_named(g, error));
    gmem_rng_init(&g->rng, g->desc->rng, g->desc->seed);
    for (g->first = 0; g->first < g->count; g->first += g->size) {
        g->size = gmem__min(g->batch, g->count - g->first);
        GMEM__TRY(gmem__generation_condition(g, error));
        GMEM__TRY(gmem__generation_batch_pixels(g, error));
    }
    return GMEM_OK;
}

static gmem_status gmem__generation_run(gmem__generation *g, gmem_error *error) {
    GMEM__TRY(gmem__generation_open_network(g, error));
    GMEM__TRY(gmem__generation_open_bank(g, error));
    GMEM__TRY(gmem__generation_open_autoencoder(g, error));
    g->host_noise = g->desc->rng != GMEM_RNG_PHILOX || gmem__generation_frequencies(g) != NULL;
    GMEM__TRY(gmem__generation_alloc(g, error));
    GMEM__TRY(gmem__generation_read_stats(g, error));
    return gmem__generation_draw(g, error);
}

static gmem_status gmem__generate_check(const gmem_context *context, const gmem_generate_desc *desc,
                                        const gmem_image *out, gmem_error *error) {
    if (!context || !desc || !out || !desc->network || !desc->autoencoder)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_generate needs a network, an autoencoder and an output");
    if (desc->count < 0 || desc->batch < 0 || desc->memory_count < 0 || desc->label_count < 0 ||
        (desc->memory_count && !desc->memory) || (desc->label_count && !desc->labels) || (int)desc->rng < 0 ||
        desc->rng > GMEM_RNG_TORCH_CUDA || !(desc->multiplier >= 0 && desc->multiplier - desc->multiplier == 0))
        return gmem__fail(error, GMEM_E_ARGUMENT,
                          "a count, a list, the generator or the multiplier of gmem_generate is wrong");
    return GMEM_OK;
}

GMEM_API gmem_status gmem_generate(gmem_context *context, const gmem_generate_desc *desc, gmem_image *out,
                                   gmem_error *error) {
    gmem__generation g;
    GMEM__TRY(gmem__generate_check(context, desc, out, error));
    memset(&g, 0, sizeof g);
    g.context = context;
    g.desc = desc;
    g.count = desc->count ? desc->count : 1;
    gmem_status status = gmem__generation_run(&g, error);
    if (status == GMEM_OK) {
        *out = g.image;
        memset(&g.image, 0, sizeof g.image); /* the caller's now */
    }
    gmem__generation_free(&g);
    return status;
}

#undef GMEM__BATCH_TOKENS
#undef GMEM__BATCH_MOST
