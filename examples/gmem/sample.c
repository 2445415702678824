/* gmem sample: from a seed and a choice of the bank's rows to pictures. The order of draws within a batch is that of
 * the published script: start noise, rows, then a tensor for each step. */
#include "choose.h"
#include "commands.h"
#include "interrupt.h"
#include "output.h"
#include "sampler.h"

#include <string.h>

#define DEFAULT_COUNT  16 /* pictures of the built-in model, where nothing is asked for */
#define DEFAULT_FRAMES 8
#define BATCH_TOKENS   1024 /* of one batch: enough work for every matrix product, activations in the caches' reach */
#define MOST_BATCH     16

typedef struct drawing {
    session s;
    gmem_sampler_desc sampler;
    choice chosen;
    uint64_t seed;
    gmem_rng rng;
    int64_t count, batch;
    int64_t latent_size, height, width; /* of a latent; of a picture */
    int host_noise;                     /* the start noise is drawn here and not where the network is */
    int64_t *memoryfreq;                /* (rows) of GMem's first version, or NULL */
    /* for one batch */
    float *z, *snippets; /* (batch, latent_size) with host_noise, (batch, snippet_width) */
    uint8_t *pixels;     /* (batch, height, width, 3) */
    int64_t *items;      /* (count) rows or labels drawn; for mixtures unused */
    int64_t passes;      /* of all batches so far */
    gmem_reuse reuse;    /* likewise */
    progress_bar bar;
    output out;
    double seconds;
} drawing;

/* settings -------------------------------------------------------------------------------------------------------- */

static outcome check_flags(const arguments *args, gmem_error *error) {
    if (args->show && args->json)
        return misused(error, "--show and --json cannot be combined: both want standard output");
    TRY(choose_check(args, error));
    return sampler_flags_check(args, error);
}

static int64_t count_of(const drawing *d) {
    const arguments *args = d->s.args;
    if (d->chosen.kind == CHOICE_MIX) return args->frames ? args->frames : DEFAULT_FRAMES;
    if (args->count) return args->count;
    if (d->chosen.kind != CHOICE_RANDOM) return d->chosen.count;
    return args->output || args->network ? 1 : DEFAULT_COUNT;
}

/* PyTorch's generators have one stream: the batch's size changes the pictures. The published script draws all at once.
 */
static int64_t batch_of(const drawing *d) {
    int64_t batch = BATCH_TOKENS / d->s.network_info->tokens;
    if (batch > MOST_BATCH) batch = MOST_BATCH;
    if (batch < 1) batch = 1;
    if (d->rng.kind != GMEM_RNG_PHILOX) batch = d->count;
    if (d->s.args->batch) batch = d->s.args->batch;
    return batch < d->count ? batch : d->count;
}

/* GMem's first version chooses rows by its start noise. */
static outcome read_frequencies(drawing *d, gmem_error *error) {
    const gmem_tensor *frequencies = gmem_file_find_any(d->s.network_file, "memoryfreq");
    int64_t rows = d->s.bank ? gmem_bank_rows(d->s.bank) : 0;
    if (d->chosen.kind != CHOICE_RANDOM || !d->s.bank || d->s.args->bank.count || !frequencies) return OUTCOME_DONE;
    if (gmem_tensor_count(frequencies) != rows)
        return failed(error, gmem_file_path(d->s.network_file), "memoryfreq: expected %lld elements, found %lld",
                      (long long)rows, (long long)gmem_tensor_count(frequencies));
    d->memoryfreq = (int64_t *)session_alloc(&d->s, rows, sizeof *d->memoryfreq);
    if (!d->memoryfreq) return out_of_memory(error);
    gmem_tensor_read_i64(frequencies, 0, rows, d->memoryfreq);
    return OUTCOME_DONE;
}

static outcome open_all(drawing *d, gmem_error *error) {
    const arguments *args = d->s.args;
    TRY(open_network(&d->s, error));
    const gmem_network_info *info = d->s.network_info;
    TRY(sampler_from_flags(args, info, &d->sampler, error));
    if (info->snippet_width > 0) {
        TRY(open_bank(&d->s, error));
    } else if (args->bank.count || args->names) {
        return misused(error, "%s is conditioned on classes, not on a bank: leave out --bank and --names", info->name);
    }
    TRY(choose(&d->s, &d->chosen, error));
    TRY(open_autoencoder(&d->s, error));
    TRY(open_latent_stats(&d->s, error));
    return read_frequencies(d, error);
}

static outcome allocate(drawing *d, gmem_error *error) {
    const gmem_network_info *info = d->s.network_info;
    int64_t factor = d->s.autoencoder_info->factor;
    gmem_rng_init(&d->rng, rng_of(d->s.args), d->seed);
    d->count = count_of(d);
    d->batch = batch_of(d);
    d->latent_size = info->channels * info->height * info->width;
    d->height = info->height * factor;
    d->width = info->width * factor;
    /* Mixtures share theirs, some networks choose rows by it, and torch's generators have one stream for all. */
    d->host_noise = d->chosen.kind == CHOICE_MIX || d->memoryfreq || d->rng.kind != GMEM_RNG_PHILOX;
    d->z = session_floats(&d->s, d->host_noise ? d->batch * d->latent_size : 1);
    d->snippets = session_floats(&d->s, d->batch * info->snippet_width + 1);
    d->pixels = (uint8_t *)session_alloc(&d->s, d->batch * 3 * d->height * d->width, 1);
    d->items = (int64_t *)session_alloc(&d->s, d->count, sizeof *d->items);
    if (!d->z || !d->snippets || !d->pixels || !d->items) return out_of_memory(error);
    return OUTCOME_DONE;
}

/* noise and conditions -------------------------------------------------------------------------------------------- */

/* The frames of a mixture share one picture's noise, so that only what is drawn changes from one to the next. */
static void repeat_first(float *out, int64_t count, int64_t size) {
    for (int64_t i = 1; i < count; i++) {
        memcpy(out + i * size, out, (size_t)size * sizeof *out);
    }
}

static gmem_status shared_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                gmem_error *error) {
    drawing *d = (drawing *)user;
    (void)error;
    gmem_rng_normal(&d->rng, GMEM_DRAW_STEP, index, 0, 1, per_picture, out);
    repeat_first(out, batch, per_picture);
    return GMEM_OK;
}

static outcome draw_noise(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    if (d->chosen.kind == CHOICE_MIX) {
        gmem_rng_init(&d->rng, rng_of(d->s.args), d->seed); /* again for every batch */
        gmem_rng_normal(&d->rng, GMEM_DRAW_LATENT, 0, 0, 1, d->latent_size, d->z);
        repeat_first(d->z, count, d->latent_size);
        return OUTCOME_DONE;
    }
    if (d->host_noise) gmem_rng_normal(&d->rng, GMEM_DRAW_LATENT, 0, first, count, d->latent_size, d->z);
    if (d->chosen.kind != CHOICE_RANDOM) {
        for (int64_t i = 0; i < count; i++) {
            d->items[first + i] = d->chosen.items[(first + i) % d->chosen.count];
        }
        return OUTCOME_DONE;
    }
    if (!d->memoryfreq) {
        int64_t high = d->s.bank ? gmem_bank_rows(d->s.bank) : d->s.network_info->classes;
        gmem_rng_integers(&d->rng, GMEM_DRAW_ROW, first, count, high, d->items + first);
        return OUTCOME_DONE;
    }
    for (int64_t i = 0; i < count; i++) {
        gmem_status status = gmem_choose_row(d->memoryfreq, gmem_bank_rows(d->s.bank), d->z + i * d->latent_size,
                                             d->latent_size, &d->items[first + i], error);
        TRY(in_network(&d->s, status, error));
    }
    return OUTCOME_DONE;
}

static double alpha_of(const drawing *d, int64_t frame) {
    return d->count > 1 ? (double)frame / (double)(d->count - 1) : 0.5;
}

static outcome mix_snippet(drawing *d, int64_t frame, float *out, gmem_error *error) {
    int64_t width = gmem_bank_width(d->s.bank);
    gmem_rng masks; /* the same mask for every frame: elements go over one after the other */
    gmem_rng_init(&masks, rng_of(d->s.args), d->seed);
    gmem_status status = gmem_mix(mix_method_of(d->s.args), d->chosen.ends, d->chosen.ends + width, width,
                                  alpha_of(d, frame), &masks, 0, out, error);
    return in_file(gmem_bank_file_path(d->s.bank, 0), status, error);
}

static outcome fill_snippets(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    for (int64_t i = 0; d->s.bank && i < count; i++) {
        float *snippet = d->snippets + i * gmem_bank_width(d->s.bank);
        if (d->chosen.kind == CHOICE_MIX) {
            TRY(mix_snippet(d, first + i, snippet, error));
        } else {
            TRY(read_snippet(&d->s, d->items[first + i], snippet, error));
        }
    }
    return OUTCOME_DONE;
}

/* a batch --------------------------------------------------------------------------------------------------------- */

static int step_done(void *user, const gmem_progress *progress) {
    drawing *d = (drawing *)user;
    int64_t batches = (d->count + d->batch - 1) / d->batch;
    progress_show(&d->bar, d->passes + progress->passes, batches * progress->total_passes, "passes");
    return interrupt_pending();
}

static outcome sample_batch(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    gmem_sample_pixels_desc desc;
    int64_t passes = 0;
    gmem_reuse reuse = {0, 0};
    memset(&desc, 0, sizeof desc);
    desc.sample.sampler = d->sampler;
    desc.sample.batch = count;
    desc.sample.snippets = d->s.bank ? d->snippets : NULL;
    desc.sample.labels = d->s.bank ? NULL : d->items + first;
    desc.sample.rng = &d->rng;
    desc.sample.picture = first;
    desc.sample.noise = d->chosen.kind == CHOICE_MIX ? shared_noise : NULL;
    desc.sample.noise_user = d;
    desc.sample.progress = step_done;
    desc.sample.progress_user = d;
    desc.sample.passes = &passes;
    desc.sample.reuse = &reuse;
    desc.z = d->host_noise ? d->z : NULL;
    desc.mean = d->s.mean;
    desc.std = d->s.std;
    desc.multiplier = d->s.multiplier;
    gmem_status status = gmem_sample_pixels(d->s.network, d->s.autoencoder, &desc, d->pixels, error);
    d->passes += passes;
    d->reuse.passes += reuse.passes;
    d->reuse.reused += reuse.reused;
    if (status == GMEM_E_CANCELLED) return interrupt_check(error);
    return in_network(&d->s, status, error);
}

/* outputs --------------------------------------------------------------------------------------------------------- */

static outcome put_picture(drawing *d, int64_t index, const uint8_t *pixels, gmem_error *error) {
    char item[64];
    caption c;
    int mixed = d->chosen.kind == CHOICE_MIX;
    if (mixed) {
        snprintf(item, sizeof item, "%.3g", alpha_of(d, index));
    } else {
        snprintf(item, sizeof item, "%lld", (long long)d->items[index]);
    }
    c.item = item;
    c.name = d->s.bank && !mixed ? gmem_bank_name(d->s.bank, d->items[index]) : NULL;
    return output_put(&d->out, index, pixels, &c, error);
}

static outcome put_batch(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    for (int64_t i = 0; i < count; i++) {
        TRY(put_picture(d, first + i, d->pixels + i * 3 * d->height * d->width, error));
    }
    return interrupt_check(error);
}

/* What made the pictures, as text of the session's. */
typedef struct facts {
    png_text texts[16];
    int count;
    char seed[24], rng[16], method[32], settings[512], version[32], mix[128], multiplier[32];
} facts;

static void add_fact(facts *f, const char *key, const char *value) {
    f->texts[f->count].key = key;
    f->texts[f->count++].value = value;
}

static const char *bank_paths(drawing *d) {
    size_t bytes = 1;
    int count = gmem_bank_file_count(d->s.bank);
    for (int i = 0; i < count; i++) {
        bytes += strlen(gmem_bank_file_path(d->s.bank, i)) + 1;
    }
    char *out = (char *)session_alloc(&d->s, (int64_t)bytes, 1);
    for (int i = 0; out && i < count; i++) {
        if (i) strcat(out, "\n");
        strcat(out, gmem_bank_file_path(d->s.bank, i));
    }
    return out ? out : "";
}

static void gather_facts(drawing *d, facts *f) {
    memset(f, 0, sizeof *f);
    snprintf(f->version, sizeof f->version, "gmem %s", gmem_version());
    add_fact(f, "Software", f->version);
    snprintf(f->seed, sizeof f->seed, "%llu", (unsigned long long)d->seed);
    add_fact(f, "seed", f->seed);
    add_fact(f, "rng", choice_name(FLAG_rng, d->s.args->rng, f->rng, sizeof f->rng));
    add_fact(f, "sampler", sampler_method_name(&d->sampler, f->method, sizeof f->method));
    add_fact(f, "settings", sampler_text(&d->sampler, f->settings, sizeof f->settings));
    add_fact(f, "network", gmem_file_path(d->s.network_file));
    if (d->s.bank) add_fact(f, "bank", bank_paths(d));
    add_fact(f, "autoencoder", gmem_file_path(d->s.autoencoder_file));
    if (d->s.args->latent_stats) add_fact(f, "latent-stats", d->s.args->latent_stats);
    snprintf(f->multiplier, sizeof f->multiplier, "%g", d->s.multiplier);
    add_fact(f, "multiplier", f->multiplier);
    add_fact(f, "backend", gmem_context_backend(d->s.context));
    if (d->chosen.kind == CHOICE_MIX) {
        char method[16];
        snprintf(f->mix, sizeof f->mix, "%lld,%lld %s", (long long)d->chosen.mixed[0], (long long)d->chosen.mixed[1],
                 choice_name(FLAG_mix_method, d->s.args->mix_method, method, sizeof method));
        add_fact(f, "mix", f->mix);
    }
}

static int columns_of(const drawing *d) {
    int columns = 1;
    if (d->chosen.kind == CHOICE_MIX) return d->count < 10 ? (int)d->count : 10;
    while ((int64_t)columns * columns < d->count) {
        columns++;
    }
    return columns;
}

static outcome draw(drawing *d, facts *f, gmem_error *error) {
    gather_facts(d, f);
    d->out.texts = f->texts;
    d->out.text_count = f->count;
    d->out.items = d->chosen.kind == CHOICE_MIX ? "alpha" : d->s.bank ? "rows" : "labels";
    TRY(output_begin(&d->out, d->s.context, d->count, columns_of(d), (int)d->width, (int)d->height, error));
    for (int64_t first = 0; first < d->count; first += d->batch) {
        int64_t count = d->count - first < d->batch ? d->count - first : d->batch;
        TRY(interrupt_check(error));
        TRY(draw_noise(d, first, count, error));
        TRY(fill_snippets(d, first, count, error));
        TRY(sample_batch(d, first, count, error));
        TRY(put_batch(d, first, count, error));
    }
    progress_end(&d->bar);
    return output_end(&d->out, error);
}

/* the report ------------------------------------------------------------------------------------------------------ */

static void print_items(const drawing *d, json_writer *json) {
    json_open(json, d->out.items, '[');
    for (int64_t i = 0; i < d->count; i++) {
        if (d->chosen.kind == CHOICE_MIX) {
            json_number(json, NULL, alpha_of(d, i));
        } else {
            json_integer(json, NULL, d->items[i]);
        }
    }
    json_close(json, ']');
    if (!d->s.bank || d->chosen.kind == CHOICE_MIX) return;
    json_open(json, "names", '[');
    for (int64_t i = 0; i < d->count; i++) {
        json_text(json, NULL, gmem_bank_name(d->s.bank, d->items[i]));
    }
    json_close(json, ']');
}

static void print_json(const drawing *d, const facts *f) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "output", d->out.path);
    json_integer(&json, "count", d->count);
    json_integer(&json, "width", d->width);
    json_integer(&json, "height", d->height);
    json_open(&json, "made_with", '{');
    for (int i = 0; i < f->count; i++) {
        json_text(&json, f->texts[i].key, f->texts[i].value);
    }
    json_close(&json, '}');
    json_unsigned(&json, "seed", d->seed);
    print_items(d, &json);
    json_integer(&json, "passes", d->passes);
    if (d->sampler.cache_threshold > 0) {
        json_integer(&json, "picture_passes", d->reuse.passes);
        json_integer(&json, "picture_passes_reused", d->reuse.reused);
    }
    json_number(&json, "seconds", d->seconds);
    json_close(&json, '}');
}

static void report(const drawing *d, const facts *f) {
    char plain[4200];
    note("seed: %s", f->seed);
    note("backend: %s", gmem_context_backend(d->s.context));
    detail("%s: %s", f->method, f->settings);
    detail("%lld passes in batches of %lld, %.3g seconds", (long long)d->passes, (long long)d->batch, d->seconds);
    sampler_note_reuse(&d->sampler, &d->reuse);
    if (d->s.autoencoder_info->family == GMEM_AE_VAVAE && !d->s.mean)
        note("no --latent-stats: latents are decoded as if they had mean 0 and std 1");
    if (d->s.args->json) {
        print_json(d, f);
    } else if (!d->s.args->quiet) {
        printf("%s: %lld picture%s of %lld x %lld\n", gmem_escape(d->out.path, plain, sizeof plain),
               (long long)d->count, d->count == 1 ? "" : "s", (long long)d->width, (long long)d->height);
    }
}

static outcome sample(drawing *d, const arguments *args, gmem_error *error) {
    facts f;
    double begun = seconds_now();
    TRY(check_flags(args, error));
    TRY(output_check(&d->out, args, error));
    TRY(session_begin(&d->s, args, error));
    TRY(open_all(d, error));
    d->seed = seed_of(args);
    TRY(allocate(d, error));
    progress_begin(&d->bar);
    outcome result = draw(d, &f, error);
    progress_end(&d->bar);
    TRY(result);
    d->seconds = seconds_now() - begun;
    report(d, &f);
    return OUTCOME_DONE;
}

outcome command_sample(const arguments *args, gmem_error *error) {
    drawing d;
    memset(&d, 0, sizeof d);
    outcome result = sample(&d, args, error);
    output_free(&d.out);
    session_end(&d.s);
    return result;
}
