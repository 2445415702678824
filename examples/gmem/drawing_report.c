/* What made the pictures: text chunks of the files, JSON, and the lines that a run prints. */
#include "drawing.h"
#include "sampler.h"

#include <string.h>

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

/* "3,photo.jpg spherical" */
static const char *mix_text(drawing *d) {
    char method[16], a[24], b[24];
    const int64_t *ends = d->chosen.items;
    const char *first = item_text(&d->chosen, ends[0], a, sizeof a);
    const char *second = item_text(&d->chosen, ends[1], b, sizeof b);
    size_t bytes = strlen(first) + strlen(second) + sizeof method + 8;
    char *out = (char *)session_alloc(&d->s, (int64_t)bytes, 1);
    if (!out) return "";
    snprintf(out, bytes, "%s,%s %s", first, second,
             choice_name(FLAG_mix_method, d->s.args->mix_method, method, sizeof method));
    return out;
}

void gather_facts(drawing *d, facts *f) {
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
    if (d->chosen.kind == CHOICE_MIX) add_fact(f, "mix", mix_text(d));
    if (d->chosen.picture_count) add_fact(f, "image-encoder", gmem_file_path(d->s.encoder_file));
    if (!d->blended) return;
    snprintf(f->strength, sizeof f->strength, "%g", d->s.args->strength);
    add_fact(f, "strength", f->strength);
}

const char *items_of(const drawing *d) {
    if (d->chosen.kind == CHOICE_MIX) return "alpha";
    if (d->chosen.kind == CHOICE_LIKE) return "like";
    return has_snippets(d) ? "rows" : "labels";
}

/* A row as a number, a picture as its path. */
static void print_item(const drawing *d, json_writer *json, int64_t item) {
    const chosen_picture *photo = picture_of(&d->chosen, item);
    if (photo) {
        json_text(json, NULL, photo->path);
    } else {
        json_integer(json, NULL, item);
    }
}

static void print_items(const drawing *d, json_writer *json) {
    json_open(json, d->out.items, '[');
    for (int64_t i = 0; i < d->count; i++) {
        if (d->chosen.kind == CHOICE_MIX) {
            json_number(json, NULL, alpha_of(d, i));
        } else {
            print_item(d, json, d->items[i]);
        }
    }
    json_close(json, ']');
    if (d->blended) {
        json_open(json, "rows", '[');
        for (int64_t i = 0; i < d->count; i++) {
            json_integer(json, NULL, d->blended[i]);
        }
        json_close(json, ']');
    }
    if (!d->s.bank || d->chosen.kind == CHOICE_MIX || d->chosen.kind == CHOICE_LIKE) return;
    json_open(json, "names", '[');
    for (int64_t i = 0; i < d->count; i++) {
        const chosen_picture *photo = picture_of(&d->chosen, d->items[i]);
        json_text(json, NULL, photo ? photo->name : gmem_bank_name(d->s.bank, d->items[i]));
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

void report(const drawing *d, const facts *f) {
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
