/* The start noise of pictures and the snippets that they are conditioned on. */
#include "drawing.h"

#include <string.h>

/* The frames of a mixture share one picture's noise, so that only what is drawn changes from one to the next. */
static void repeat_first(float *out, int64_t count, int64_t size) {
    for (int64_t i = 1; i < count; i++) {
        memcpy(out + i * size, out, (size_t)size * sizeof *out);
    }
}

gmem_status shared_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out, gmem_error *error) {
    drawing *d = (drawing *)user;
    (void)error;
    gmem_rng_normal(&d->rng, GMEM_DRAW_STEP, index, 0, 1, per_picture, out);
    repeat_first(out, batch, per_picture);
    return GMEM_OK;
}

int has_snippets(const drawing *d) { return d->s.network_info->snippet_width > 0; }

/* Variations of a picture follow each other; rows and labels take turns. */
int64_t chosen_index(const drawing *d, int64_t index) {
    const int64_t chosen = d->chosen.count;
    return d->chosen.kind == CHOICE_LIKE ? index / (d->count / chosen) : index % chosen;
}

outcome draw_noise(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    if (d->chosen.kind == CHOICE_MIX) {
        gmem_rng_init(&d->rng, rng_of(d->s.args), d->seed); /* again for every batch */
        gmem_rng_normal(&d->rng, GMEM_DRAW_LATENT, 0, 0, 1, d->latent_size, d->z);
        repeat_first(d->z, count, d->latent_size);
        return OUTCOME_DONE;
    }
    if (d->host_noise) gmem_rng_normal(&d->rng, GMEM_DRAW_LATENT, 0, first, count, d->latent_size, d->z);
    if (d->blended)
        gmem_rng_integers(&d->rng, GMEM_DRAW_ROW, first, count, gmem_bank_rows(d->s.bank), d->blended + first);
    if (d->chosen.kind != CHOICE_RANDOM) {
        for (int64_t i = first; i < first + count; i++) {
            d->items[i] = d->chosen.items[chosen_index(d, i)];
        }
        return OUTCOME_DONE;
    }
    if (!d->memoryfreq) {
        int64_t high = has_snippets(d) ? gmem_bank_rows(d->s.bank) : d->s.network_info->classes;
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

double alpha_of(const drawing *d, int64_t frame) { return d->count > 1 ? (double)frame / (double)(d->count - 1) : 0.5; }

static outcome mix_snippet(drawing *d, int64_t frame, float *out, gmem_error *error) {
    int64_t width = d->s.network_info->snippet_width;
    gmem_rng masks; /* the same mask for every frame: elements go over one after the other */
    gmem_rng_init(&masks, rng_of(d->s.args), d->seed);
    gmem_status status = gmem_mix(mix_method_of(d->s.args), d->chosen.ends, d->chosen.ends + width, width,
                                  alpha_of(d, frame), &masks, 0, out, error);
    return in_file(d->s.bank ? gmem_bank_file_path(d->s.bank, 0) : d->s.args->mix.items[0], status, error);
}

/* A picture's snippet, or at less than full strength what lies between a random row and it. */
static outcome like_snippet(drawing *d, int64_t index, float *out, gmem_error *error) {
    const chosen_picture *photo = picture_of(&d->chosen, d->items[index]);
    int64_t width = d->s.network_info->snippet_width;
    if (!d->blended) {
        memcpy(out, photo->snippet, (size_t)width * sizeof *out);
        return OUTCOME_DONE;
    }
    TRY(read_snippet(&d->s, d->blended[index], out, error));
    gmem_status status =
        gmem_mix(GMEM_MIX_SPHERICAL, out, photo->snippet, width, d->s.args->strength, NULL, 0, out, error);
    return in_file(photo->path, status, error);
}

outcome fill_snippets(drawing *d, int64_t first, int64_t count, gmem_error *error) {
    for (int64_t i = 0; has_snippets(d) && i < count; i++) {
        float *snippet = d->snippets + i * d->s.network_info->snippet_width;
        if (d->chosen.kind == CHOICE_MIX) {
            TRY(mix_snippet(d, first + i, snippet, error));
        } else if (picture_of(&d->chosen, d->items[first + i])) {
            TRY(like_snippet(d, first + i, snippet, error));
        } else {
            TRY(read_snippet(&d->s, d->items[first + i], snippet, error));
        }
    }
    return OUTCOME_DONE;
}
