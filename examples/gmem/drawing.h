/* A run of gmem sample: what it draws, with what, and where it goes. */
#ifndef DRAWING_H
#define DRAWING_H

#include "choose.h"
#include "output.h"

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
    int64_t *items;      /* (count) what was drawn, as in `chosen`; for mixtures unused */
    int64_t *blended;    /* (count) rows that --strength mixes in, or NULL */
    int64_t passes;      /* of all batches so far */
    gmem_reuse reuse;    /* likewise */
    progress_bar bar;
    output out;
    double seconds;
} drawing;

/* drawing_snippets.c: noise and conditions ------------------------------------------------------------------------- */

int has_snippets(const drawing *d);
/* What picture `index` is of: an index of chosen.items. */
int64_t chosen_index(const drawing *d, int64_t index);
/* From A to B of a mixture. */
double alpha_of(const drawing *d, int64_t frame);
/* The noise of each step of a mixture, the same for every frame. */
gmem_status shared_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out, gmem_error *error);
/* For pictures [first, first + count): the start noise, what is drawn, and its snippets. */
outcome draw_noise(drawing *d, int64_t first, int64_t count, gmem_error *error);
outcome fill_snippets(drawing *d, int64_t first, int64_t count, gmem_error *error);

/* drawing_sheet.c: where pictures stand, and under which words ----------------------------------------------------- */

int64_t cells_of(const drawing *d);
int columns_of(const drawing *d);
/* The pictures that the drawn ones are to be compared with. */
outcome put_originals(drawing *d, gmem_error *error);
outcome put_batch(drawing *d, int64_t first, int64_t count, gmem_error *error);

/* drawing_report.c: what made the pictures, in the files and on the streams ---------------------------------------- */

/* What made the pictures, as text of the session's. */
typedef struct facts {
    png_text texts[16];
    int count;
    char seed[24], rng[16], method[32], settings[512], version[32], multiplier[32], strength[32];
} facts;

void gather_facts(drawing *d, facts *f);
/* The key of what the pictures show: "rows", "labels", "alpha" or "like". */
const char *items_of(const drawing *d);
void report(const drawing *d, const facts *f);

#endif /* DRAWING_H */
