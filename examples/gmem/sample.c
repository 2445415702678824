/* gmem sample: from a seed and a choice of the bank's rows to pictures. The order of draws within a batch is that of
 * the published script: start noise, rows, then a tensor for each step. */
#include "commands.h"
#include "drawing.h"
#include "interrupt.h"
#include "sampler.h"

#include <string.h>

#define DEFAULT_COUNT  16 /* pictures of the built-in model, where nothing is asked for */
#define DEFAULT_FRAMES 8
#define DEFAULT_LIKE   14 /* variations of each picture, as engine/modular_gen.py draws; and its guidance: */
#define LIKE_SCALE     7.75
#define LIKE_START     0.89
#define BATCH_TOKENS   1024 /* of one batch: enough work for every matrix product, activations in the caches' reach */
#define MOST_BATCH     16

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
    if (d->chosen.kind == CHOICE_LIKE) return d->chosen.count * (args->count ? args->count : DEFAULT_LIKE);
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

/* The published script guides what it draws from pictures; where nothing is said, so does this. GMem's first version,
 * whose time is reversed, was never guided. */
static void guide_as_published(drawing *d) {
    const arguments *args = d->s.args;
    if (!d->chosen.picture_count || d->chosen.kind == CHOICE_SNIPPETS || args->given[FLAG_cfg_scale]) return;
    if (d->s.network_info->time_reversed) return;
    d->sampler.cfg_scale = LIKE_SCALE;
    d->sampler.cfg_start = LIKE_START;
}

static outcome open_all(drawing *d, gmem_error *error) {
    const arguments *args = d->s.args;
    TRY(open_network(&d->s, error));
    const gmem_network_info *info = d->s.network_info;
    TRY(sampler_from_flags(args, info, &d->sampler, error));
    if (info->snippet_width > 0) {
        if (choose_needs_bank(args)) TRY(open_bank(&d->s, error));
    } else if (args->bank.count || args->names) {
        return misused(error, "%s is conditioned on classes, not on a bank: leave out --bank and --names", info->name);
    }
    TRY(choose(&d->s, &d->chosen, error));
    guide_as_published(d);
    TRY(open_autoencoder(&d->s, error));
    TRY(open_latent_stats(&d->s, error));
    return read_frequencies(d, error);
}

static int blends(const drawing *d) { return d->s.args->given[FLAG_strength] && d->s.args->strength < 1; }

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
    if (d->chosen.kind != CHOICE_LIKE || !blends(d)) return OUTCOME_DONE;
    d->blended = (int64_t *)session_alloc(&d->s, d->count, sizeof *d->blended);
    return d->blended ? OUTCOME_DONE : out_of_memory(error);
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
    desc.sample.snippets = has_snippets(d) ? d->snippets : NULL;
    desc.sample.labels = has_snippets(d) ? NULL : d->items + first;
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

static outcome draw(drawing *d, facts *f, gmem_error *error) {
    gather_facts(d, f);
    d->out.texts = f->texts;
    d->out.text_count = f->count;
    d->out.items = items_of(d);
    TRY(output_begin(&d->out, d->s.context, cells_of(d), columns_of(d), (int)d->width, (int)d->height, error));
    TRY(put_originals(d, error));
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
