/* Quality against passes: how far each ODE method, and step caching, ends from the 1000-step solution for the same
 * noise. The default model, 16 rows of its bank, seed 1. Prints a table and draws it:
 *
 *     quality OUT.svg [THREADS] > OUT.tsv
 *
 * relative_l2 is that of the latents, psnr that of the decoded 8-bit pictures, each over all 16 together. A pass of
 * which only the first block is computed counts as 1 / depth. */
#include "../src/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PICTURES = 16, REFERENCE_STEPS = 1000, MOST_POINTS = 8 };

typedef struct point {
    double passes, relative_l2, psnr;
} point;

typedef struct curve {
    const char *name;
    gmem_method method;
    int per_interval, first_more; /* passes; more in the first interval */
    int cached;                   /* a point for each threshold instead of each number of passes */
    const char *colour;
    int count;
    point points[MOST_POINTS];
} curve;

static curve curves[] = {
    {"euler", GMEM_EULER, 1, 0, 0, "#888888", 0, {{0, 0, 0}}},
    {"midpoint", GMEM_MIDPOINT, 2, 0, 0, "#b07aa1", 0, {{0, 0, 0}}},
    {"heun2", GMEM_HEUN2, 2, 0, 0, "#4e79a7", 0, {{0, 0, 0}}},
    {"rk4", GMEM_RK4, 4, 0, 0, "#9c755f", 0, {{0, 0, 0}}},
    {"ab2", GMEM_AB2, 1, 0, 0, "#e15759", 0, {{0, 0, 0}}},
    {"ab3", GMEM_AB3, 1, 1, 0, "#f28e2b", 0, {{0, 0, 0}}},
    {"dpmpp2m", GMEM_DPMPP2M, 1, 0, 0, "#59a14f", 0, {{0, 0, 0}}},
    {"euler, 50 passes, cached", GMEM_EULER, 1, 0, 1, "#888888", 0, {{0, 0, 0}}},
    {"heun2, 50 passes, cached", GMEM_HEUN2, 2, 0, 1, "#4e79a7", 0, {{0, 0, 0}}},
    {"ab2, 50 passes, cached", GMEM_AB2, 1, 0, 1, "#e15759", 0, {{0, 0, 0}}},
};
enum { CURVES = sizeof curves / sizeof *curves };

static const int budgets[MOST_POINTS] = {5, 8, 12, 16, 24, 32, 50, 100};
static const double thresholds[MOST_POINTS] = {0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32};

/* the model ------------------------------------------------------------------------------------------------------- */

typedef struct model {
    gmem_context *context;
    gmem_network *network;
    gmem_autoencoder *autoencoder;
    const gmem_network_info *info;
    int64_t latent, picture; /* elements of one */
    float *snippets;         /* (PICTURES, snippet_width) */
    float *noise, *z;        /* (PICTURES, latent) */
    float *mean, *std;       /* (channels) */
    float *decoded;          /* (picture) */
    uint8_t *pixels;         /* (PICTURES, picture) */
} model;

static void must(gmem_status status, const gmem_error *error) {
    if (status == GMEM_OK) return;
    fprintf(stderr, "quality: %s: %s\n", error->path, error->message);
    exit(1);
}

static void *need(int64_t count, size_t bytes) {
    void *memory = calloc((size_t)count, bytes);
    if (memory) return memory;
    fprintf(stderr, "quality: out of memory\n");
    exit(1);
}

static void read_snippets(model *m, gmem_error *error) {
    const char *path = "examples/model/bank.safetensors";
    gmem_bank_desc desc;
    gmem_bank *bank;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    must(gmem_bank_open(m->context, &desc, &bank, error), error);
    m->snippets = (float *)need(PICTURES * m->info->snippet_width, sizeof(float));
    for (int64_t i = 0; i < PICTURES; i++) /* spread over the bank */
        must(gmem_bank_snippet(bank, i * gmem_bank_rows(bank) / PICTURES, m->snippets + i * m->info->snippet_width,
                               error),
             error);
    gmem_bank_close(bank);
}

static void read_stats(model *m, gmem_error *error) {
    gmem_file *file;
    m->mean = (float *)need(m->info->channels, sizeof(float));
    m->std = (float *)need(m->info->channels, sizeof(float));
    must(gmem_file_open(m->context, "examples/model/latents_stats.safetensors", ".", &file, error), error);
    must(gmem_read_latent_stats(file, m->info->channels, m->mean, m->std, error), error);
    gmem_file_close(file);
}

static void model_open(model *m, int threads) {
    gmem_error error;
    gmem_context_desc context;
    gmem_network_desc network;
    gmem_autoencoder_desc autoencoder;
    gmem_rng rng;
    memset(&context, 0, sizeof context);
    memset(&network, 0, sizeof network);
    memset(&autoencoder, 0, sizeof autoencoder);
    context.threads = threads;
    network.path = "examples/model/network.safetensors";
    autoencoder.path = "examples/model/autoencoder.safetensors";
    must(gmem_context_create(&context, &m->context, &error), &error);
    must(gmem_network_open(m->context, &network, &m->network, &error), &error);
    must(gmem_autoencoder_open(m->context, &autoencoder, &m->autoencoder, &error), &error);
    m->info = gmem_network_get_info(m->network);
    read_snippets(m, &error);
    read_stats(m, &error);
    const int64_t factor = gmem_autoencoder_get_info(m->autoencoder)->factor, area = m->info->height * m->info->width;
    m->latent = m->info->channels * area;
    m->picture = 3 * factor * factor * area;
    m->noise = (float *)need(PICTURES * m->latent, sizeof(float));
    m->z = (float *)need(PICTURES * m->latent, sizeof(float));
    m->decoded = (float *)need(m->picture, sizeof(float));
    m->pixels = (uint8_t *)need(PICTURES * m->picture, 1);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 1);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, PICTURES, m->latent, m->noise);
}

/* m->z and m->pixels by a method; the passes that it computed for each picture. */
static double draw(model *m, gmem_method method, int steps, double threshold) {
    gmem_error error;
    gmem_sample_desc desc;
    gmem_reuse reuse = {0, 0};
    gmem_rng rng; /* for the SDE, the same noise each time */
    int64_t passes = 0;
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 1);
    memset(&desc, 0, sizeof desc);
    desc.rng = &rng;
    desc.sampler.method = method;
    desc.sampler.steps = steps;
    desc.sampler.cache_threshold = threshold;
    desc.batch = PICTURES;
    desc.snippets = m->snippets;
    desc.passes = &passes;
    desc.reuse = &reuse;
    memcpy(m->z, m->noise, (size_t)(PICTURES * m->latent) * sizeof(float));
    must(gmem_sample(m->network, &desc, m->z, &error), &error);
    const int64_t factor = gmem_autoencoder_get_info(m->autoencoder)->factor, area = m->info->height * m->info->width;
    float *latents = (float *)need(m->latent, sizeof(float));
    for (int64_t i = 0; i < PICTURES; i++) {
        memcpy(latents, m->z + i * m->latent, (size_t)m->latent * sizeof(float));
        gmem_denormalize(latents, 1, m->info->channels, area, m->mean, m->std, 1);
        must(gmem_decode(m->autoencoder, 1, m->info->height, m->info->width, latents, m->decoded, &error), &error);
        gmem_pixels(m->decoded, 1, m->info->height * factor, m->info->width * factor, m->pixels + i * m->picture);
    }
    free(latents);
    const double saved = (double)reuse.reused * (1 - 1 / (double)m->info->depth) / PICTURES;
    return (double)passes - saved;
}

/* measuring ------------------------------------------------------------------------------------------------------- */

typedef struct reference {
    float *z;
    uint8_t *pixels;
} reference;

static reference reference_draw(model *m, gmem_method method, int steps) {
    reference r;
    draw(m, method, steps, 0);
    r.z = (float *)need(PICTURES * m->latent, sizeof(float));
    r.pixels = (uint8_t *)need(PICTURES * m->picture, 1);
    memcpy(r.z, m->z, (size_t)(PICTURES * m->latent) * sizeof(float));
    memcpy(r.pixels, m->pixels, (size_t)(PICTURES * m->picture));
    return r;
}

static point compare(const model *m, const reference *r, double passes) {
    double difference = 0, norm = 0, square = 0;
    point p;
    for (int64_t i = 0; i < PICTURES * m->latent; i++) {
        const double d = (double)m->z[i] - (double)r->z[i];
        difference += d * d;
        norm += (double)r->z[i] * (double)r->z[i];
    }
    for (int64_t i = 0; i < PICTURES * m->picture; i++) {
        const double d = (double)m->pixels[i] - (double)r->pixels[i];
        square += d * d;
    }
    p.passes = passes;
    p.relative_l2 = sqrt(difference / norm);
    p.psnr = 10 * log10(255.0 * 255.0 * (double)(PICTURES * m->picture) / square);
    return p;
}

static void print_point(const char *name, const char *setting, const point *p) {
    printf("%s\t%s\t%.1f\t%.3g\t%.1f\n", name, setting, p->passes, p->relative_l2, p->psnr);
    fflush(stdout);
}

/* What caching does to the published sampler, against the same without. */
static void measure_published(model *m) {
    const reference r = reference_draw(m, GMEM_SDE_HEUN, 50);
    for (int i = 1; i < MOST_POINTS; i += 2) {
        char setting[32];
        const double passes = draw(m, GMEM_SDE_HEUN, 50, thresholds[i]);
        const point p = compare(m, &r, passes);
        snprintf(setting, sizeof setting, "threshold %g", thresholds[i]);
        print_point("sde-heun, cached, to itself uncached", setting, &p);
    }
}

static void measure(model *m, const reference *r, curve *c) {
    for (int i = 0; i < MOST_POINTS; i++) {
        const int passes = c->cached ? 50 : budgets[i], intervals = (passes - c->first_more) / c->per_interval;
        const double threshold = c->cached ? thresholds[i] : 0;
        char setting[32];
        if (intervals < 1) continue;
        const double computed = draw(m, c->method, intervals + 1, threshold);
        const point p = compare(m, r, computed);
        c->points[c->count++] = p;
        snprintf(setting, sizeof setting, c->cached ? "threshold %g" : "steps %g",
                 c->cached ? threshold : intervals + 1.0);
        print_point(c->name, setting, &p);
    }
}

/* the picture ----------------------------------------------------------------------------------------------------- */

enum { WIDTH = 430, HEIGHT = 330, LEFT = 60, TOP = 40, GAP = 80, LEGEND = 88 };

typedef struct panel {
    const char *title;
    double left, low, high; /* of y; logarithms where `logarithmic` */
    int logarithmic;
} panel;

static double value_of(const panel *p, const point *at) { return p->logarithmic ? log10(at->relative_l2) : at->psnr; }

/* From one multiple of `step` to another, with all points between. */
static void fit(panel *p, double step) {
    p->low = 1e9;
    p->high = -1e9;
    for (int c = 0; c < CURVES; c++) {
        for (int i = 0; i < curves[c].count; i++) {
            p->low = fmin(p->low, value_of(p, &curves[c].points[i]));
            p->high = fmax(p->high, value_of(p, &curves[c].points[i]));
        }
    }
    p->low = step * floor(p->low / step);
    p->high = step * ceil(p->high / step);
}

static double x_of(const panel *p, double passes) { return p->left + WIDTH * log(passes / 3.5) / log(120 / 3.5); }

static double y_of(const panel *p, double value) { return TOP + HEIGHT * (1 - (value - p->low) / (p->high - p->low)); }

static void draw_axes(FILE *f, const panel *p, double step) {
    fprintf(f, "<rect x='%g' y='%d' width='%d' height='%d' fill='none' stroke='#999'/>\n", p->left, TOP, WIDTH, HEIGHT);
    fprintf(f, "<text x='%g' y='%d' text-anchor='middle' font-weight='bold'>%s</text>\n", p->left + WIDTH / 2, TOP - 14,
            p->title);
    for (int i = 0; i < MOST_POINTS; i++) {
        const double x = x_of(p, budgets[i]);
        fprintf(f, "<path d='M%.1f %dv%d' stroke='#eee'/>", x, TOP, HEIGHT);
        fprintf(f, "<text x='%.1f' y='%d' text-anchor='middle'>%d</text>\n", x, TOP + HEIGHT + 16, budgets[i]);
    }
    for (double y = p->low; y < p->high + step / 2; y += step) {
        const double at = y_of(p, y);
        fprintf(f, "<path d='M%g %.1fh%d' stroke='#eee'/>", p->left, at, WIDTH);
        fprintf(f, "<text x='%g' y='%.1f' text-anchor='end'>%g</text>\n", p->left - 6, at + 4,
                p->logarithmic ? pow(10, y) : y);
    }
    fprintf(f, "<text x='%g' y='%d' text-anchor='middle'>network passes computed for a picture</text>\n",
            p->left + WIDTH / 2, TOP + HEIGHT + 36);
}

static void draw_curve(FILE *f, const panel *p, const curve *c) {
    fprintf(f, "<g fill='%s' stroke='%s'><path d='", c->cached ? "white" : c->colour, c->colour);
    for (int i = 0; i < c->count; i++) {
        fprintf(f, "%c%.1f %.1f", i ? 'L' : 'M', x_of(p, c->points[i].passes), y_of(p, value_of(p, &c->points[i])));
    }
    fprintf(f, "' fill='none' stroke-width='1.8'%s/>", c->cached ? " stroke-dasharray='4 3'" : "");
    for (int i = 0; i < c->count; i++) {
        fprintf(f, "<circle cx='%.1f' cy='%.1f' r='3'/>", x_of(p, c->points[i].passes),
                y_of(p, value_of(p, &c->points[i])));
    }
    fprintf(f, "</g>\n");
}

static void draw_legend(FILE *f) {
    for (int i = 0; i < CURVES; i++) {
        const int plain = !curves[i].cached, row = plain ? 0 : 1, column = plain ? i : i - 7;
        const double x = LEFT + column * (plain ? 130 : 220), y = TOP + HEIGHT + 62 + 20 * row;
        fprintf(f, "<path d='M%g %gh24' stroke='%s' stroke-width='2'%s/>", x, y, curves[i].colour,
                plain ? "" : " stroke-dasharray='4 3'");
        fprintf(f, "<text x='%g' y='%g'>%s</text>\n", x + 30, y + 4, curves[i].name);
    }
}

static int draw_svg(const char *path) {
    panel panels[2] = {{"distance to the 1000-step solution, relative L2 of the latents", LEFT, 0, 0, 1},
                       {"PSNR of the pictures, dB", LEFT + WIDTH + GAP, 0, 0, 0}};
    FILE *f = fopen(path, "w");
    if (!f) return 0;
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' font-size='12'>\n",
            LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + LEGEND + 10);
    fprintf(f, "<rect width='100%%' height='100%%' fill='white'/>\n");
    for (int i = 0; i < 2; i++) {
        const double step = panels[i].logarithmic ? 1 : 10;
        fit(&panels[i], step);
        draw_axes(f, &panels[i], step);
        for (int c = 0; c < CURVES; c++)
            draw_curve(f, &panels[i], &curves[c]);
    }
    draw_legend(f);
    fprintf(f, "</svg>\n");
    return fclose(f) == 0;
}

int main(int argc, char **argv) {
    model m;
    memset(&m, 0, sizeof m);
    if (argc < 2) {
        fprintf(stderr, "usage: quality OUT.svg [THREADS] > OUT.tsv\n");
        return 2;
    }
    model_open(&m, argc > 2 ? atoi(argv[2]) : 1);
    const reference r = reference_draw(&m, GMEM_HEUN2, REFERENCE_STEPS);
    draw(&m, GMEM_RK4, 101, 0);
    const point check = compare(&m, &r, 400);
    printf("curve\tsetting\tpasses\trelative_l2\tpsnr\n");
    print_point("rk4, to judge the reference", "steps 101", &check);
    for (int i = 0; i < CURVES; i++)
        measure(&m, &r, &curves[i]);
    measure_published(&m);
    if (draw_svg(argv[1])) return 0;
    fprintf(stderr, "quality: cannot write %s\n", argv[1]);
    return 1;
}
