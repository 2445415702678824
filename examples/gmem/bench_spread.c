/* gmem bench bank: how what a network draws spreads. Pictures are drawn from rows of the bank, from mixtures of two,
 * and from added rows, and looked at by the image encoder: how far is each from the nearest row, and from its own kind?
 */
#include "bench.h"
#include "interrupt.h"
#include "picture.h"

#include <stdlib.h>
#include <string.h>

#define PICTURES 48 /* of each kind, where --count does not say */
#define BATCH    16
#define SEED     1

typedef struct spreading {
    session s;
    int64_t count;          /* pictures of each kind */
    int64_t width;          /* of a snippet */
    int64_t picture;        /* pixels of one, times 3 */
    int64_t height, across; /* of a picture */
    gmem_rng rng;
    float *snippets;     /* (count, width) that are drawn from */
    float *features;     /* (count, width) of what was drawn, normalised */
    float *added;        /* (count, width) */
    uint8_t *pixels;     /* (BATCH, height, across, 3) */
    uint8_t *crop;       /* (picture_size, picture_size, 3) of the encoder */
    gmem_match *matches; /* (count, 2) */
    double *distances;   /* (count) */
    int64_t *rows;       /* (count) */
    progress_bar bar;
    int64_t drawn;
} spreading;

/* drawing --------------------------------------------------------------------------------------------------------- */

/* The normalised feature of a picture that was drawn: out (width). */
static outcome look(spreading *d, uint8_t *pixels, float *out, gmem_error *error) {
    picture drawn;
    drawn.pixels = pixels;
    drawn.height = d->height;
    drawn.width = d->across;
    TRY(crop_picture(&d->s, &drawn, d->s.encoder_info->picture_size, d->crop, error));
    TRY(crop_features(&d->s, 1, d->crop, out, NULL, error));
    return in_file(gmem_file_path(d->s.encoder_file), gmem_normalize(out, d->width, error), error);
}

static outcome draw_some(spreading *d, int64_t first, int64_t count, gmem_error *error) {
    gmem_sample_pixels_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.sample.batch = count;
    desc.sample.snippets = d->snippets + first * d->width;
    desc.sample.rng = &d->rng;
    desc.sample.picture = first;
    desc.mean = d->s.mean;
    desc.std = d->s.std;
    desc.multiplier = d->s.multiplier;
    TRY(in_network(&d->s, gmem_sample_pixels(d->s.network, d->s.autoencoder, &desc, d->pixels, error), error));
    for (int64_t i = 0; i < count; i++) {
        TRY(look(d, d->pixels + i * d->picture, d->features + (first + i) * d->width, error));
    }
    return interrupt_check(error);
}

static outcome draw_kind(spreading *d, gmem_error *error) {
    for (int64_t first = 0; first < d->count; first += BATCH) {
        const int64_t some = first + BATCH < d->count ? BATCH : d->count - first;
        TRY(draw_some(d, first, some, error));
        d->drawn += some;
        progress_show(&d->bar, d->drawn, SPREAD_KINDS * d->count, "pictures");
    }
    return OUTCOME_DONE;
}

/* distances ------------------------------------------------------------------------------------------------------- */

static double distance(const float *a, const float *b, int64_t width) {
    double dot = 0;
    for (int64_t i = 0; i < width; i++) {
        dot += (double)a[i] * (double)b[i];
    }
    return 1 - dot;
}

static int compare_distances(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static spread spread_of(double *distances, int64_t count) {
    spread out;
    qsort(distances, (size_t)count, sizeof *distances, compare_distances);
    out.low = distances[count / 10];
    out.median = distances[count / 2];
    out.high = distances[count - 1 - count / 10];
    return out;
}

/* From each vector (count, width) to the bank's nearest row; `skip` leaves out the nearest, a row itself. */
static outcome measure_to_bank(spreading *d, const float *vectors, int skip, spread *out, gmem_error *error) {
    gmem_bank_search_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.queries = vectors;
    desc.count = d->count;
    desc.k = 2;
    TRY(in_file(gmem_bank_file_path(d->s.bank, 0), gmem_bank_search(d->s.bank, &desc, d->matches, error), error));
    for (int64_t i = 0; i < d->count; i++) {
        d->distances[i] = 1 - (double)d->matches[2 * i + skip].cosine;
    }
    *out = spread_of(d->distances, d->count);
    return OUTCOME_DONE;
}

static spread measure_to_each_other(const spreading *d, const float *vectors) {
    double *distances = d->distances;
    for (int64_t i = 0; i < d->count; i++) {
        distances[i] = 2;
        for (int64_t j = 0; j < d->count; j++) {
            double between = i == j ? 2 : distance(vectors + i * d->width, vectors + j * d->width, d->width);
            if (between < distances[i]) distances[i] = between;
        }
    }
    return spread_of(distances, d->count);
}

static spread measure_to_snippets(const spreading *d) {
    double *distances = d->distances;
    for (int64_t i = 0; i < d->count; i++) {
        distances[i] = distance(d->features + i * d->width, d->snippets + i * d->width, d->width);
    }
    return spread_of(distances, d->count);
}

/* the kinds ------------------------------------------------------------------------------------------------------- */

static outcome random_rows(spreading *d, int64_t draw, float *out, gmem_error *error) {
    gmem_rng_integers(&d->rng, GMEM_DRAW_ROW, draw * d->count, d->count, gmem_bank_rows(d->s.bank), d->rows);
    for (int64_t i = 0; i < d->count; i++) {
        TRY(read_snippet(&d->s, d->rows[i], out + i * d->width, error));
    }
    return OUTCOME_DONE;
}

/* Halfway between two rows on the sphere. */
static outcome mixed_rows(spreading *d, gmem_error *error) {
    float *other = session_floats(&d->s, d->count * d->width);
    if (!other) return out_of_memory(error);
    TRY(random_rows(d, 1, d->snippets, error));
    TRY(random_rows(d, 2, other, error));
    for (int64_t i = 0; i < d->count; i++) {
        float *a = d->snippets + i * d->width;
        TRY(from_status(gmem_mix(GMEM_MIX_SPHERICAL, a, other + i * d->width, d->width, 0.5, NULL, 0, a, error)));
    }
    return OUTCOME_DONE;
}

/* What gmem bank add would store of new pictures: those of --like, or what was drawn from the mixtures. */
static outcome added_rows(spreading *d, gmem_error *error) {
    const text_list *like = &d->s.args->like;
    memcpy(d->snippets, d->added, (size_t)(d->count * d->width) * sizeof(float));
    for (int64_t i = 0; like->count && i < d->count; i++) {
        float *snippet = d->snippets + i * d->width;
        if (i >= like->count) {
            memcpy(snippet, d->snippets + i % like->count * d->width, (size_t)d->width * sizeof(float));
        } else {
            TRY(picture_snippet(&d->s, like->items[i], d->width, snippet, error));
        }
    }
    return OUTCOME_DONE;
}

static outcome measure_kind(spreading *d, spread_kind *out, gmem_error *error) {
    TRY(draw_kind(d, error));
    TRY(measure_to_bank(d, d->features, 0, &out->to_bank, error));
    out->to_each_other = measure_to_each_other(d, d->features);
    out->to_snippet = measure_to_snippets(d);
    return OUTCOME_DONE;
}

static outcome measure_all_kinds(spreading *d, spread_result *out, gmem_error *error) {
    TRY(random_rows(d, 0, d->snippets, error));
    TRY(measure_to_bank(d, d->snippets, 1, &out->rows_to_bank, error));
    TRY(measure_kind(d, &out->kinds[SPREAD_ROWS], error));
    TRY(mixed_rows(d, error));
    TRY(measure_kind(d, &out->kinds[SPREAD_MIXED], error));
    memcpy(d->added, d->features, (size_t)(d->count * d->width) * sizeof(float));
    TRY(added_rows(d, error));
    return measure_kind(d, &out->kinds[SPREAD_ADDED], error);
}

static outcome open_everything(spreading *d, gmem_error *error) {
    TRY(open_network(&d->s, error));
    TRY(open_bank(&d->s, error));
    TRY(open_autoencoder(&d->s, error));
    TRY(open_latent_stats(&d->s, error));
    TRY(open_image_encoder(&d->s, error));
    d->width = gmem_bank_width(d->s.bank);
    if (d->count < 2) return misused(error, "--count: distances between pictures need at least 2");
    if (d->s.encoder_info->width != d->width)
        return failed(error, gmem_file_path(d->s.encoder_file), "its features have width %lld, the bank's rows %lld",
                      (long long)d->s.encoder_info->width, (long long)d->width);
    d->height = d->s.network_info->height * d->s.autoencoder_info->factor;
    d->across = d->s.network_info->width * d->s.autoencoder_info->factor;
    d->picture = 3 * d->height * d->across;
    gmem_rng_init(&d->rng, GMEM_RNG_PHILOX, SEED);
    d->snippets = session_floats(&d->s, d->count * d->width);
    d->features = session_floats(&d->s, d->count * d->width);
    d->added = session_floats(&d->s, d->count * d->width);
    d->pixels = (uint8_t *)session_alloc(&d->s, BATCH * d->picture, 1);
    d->crop = (uint8_t *)session_alloc(&d->s, d->s.encoder_info->picture_size * d->s.encoder_info->picture_size, 3);
    d->matches = (gmem_match *)session_alloc(&d->s, 2 * d->count, sizeof *d->matches);
    d->distances = (double *)session_alloc(&d->s, d->count, sizeof *d->distances);
    d->rows = (int64_t *)session_alloc(&d->s, d->count, sizeof *d->rows);
    if (!d->matches || !d->distances || !d->rows) return out_of_memory(error);
    return d->snippets && d->features && d->added && d->pixels && d->crop ? OUTCOME_DONE : out_of_memory(error);
}

int spread_is_possible(const arguments *args) { return (!args->network && !args->bank.count) || args->image_encoder; }

outcome measure_spread(const arguments *args, spread_result *out, gmem_error *error) {
    spreading d;
    memset(&d, 0, sizeof d);
    d.count = args->count ? args->count : PICTURES;
    outcome result = session_begin(&d.s, args, error);
    if (result == OUTCOME_DONE) result = open_everything(&d, error);
    progress_begin(&d.bar);
    if (result == OUTCOME_DONE) result = measure_all_kinds(&d, out, error);
    progress_end(&d.bar);
    session_end(&d.s);
    out->pictures = d.count;
    return result;
}

/* printing -------------------------------------------------------------------------------------------------------- */

static void print_distances(const spread *s, json_writer *json, const char *kind, const char *key, const char *what) {
    if (!json) {
        printf("%-6s %-34s %6.3f %6.3f %6.3f\n", kind, what, s->low, s->median, s->high);
        return;
    }
    json_open(json, key, '{');
    json_number(json, "p10", s->low);
    json_number(json, "median", s->median);
    json_number(json, "p90", s->high);
    json_close(json, '}');
}

void print_spread(const spread_result *r, json_writer *json, const char *key) {
    static const char *const names[SPREAD_KINDS] = {"rows", "mixed", "added"};
    put_begin(json, key, "how pictures spread: 1 - cosine of features, 10 %, median, 90 %");
    if (json) json_integer(json, "pictures", r->pictures);
    print_distances(&r->rows_to_bank, json, "bank", "bank_to_itself", "a row to the nearest other");
    for (int i = 0; i < SPREAD_KINDS; i++) {
        const spread_kind *kind = &r->kinds[i];
        if (json) json_open(json, names[i], '{');
        print_distances(&kind->to_snippet, json, names[i], "to_snippet", "a picture to its own snippet");
        print_distances(&kind->to_bank, json, names[i], "to_bank", "to the bank's nearest row");
        print_distances(&kind->to_each_other, json, names[i], "to_each_other", "to the nearest of its kind");
        if (json) json_close(json, '}');
    }
    put_end(json);
}
