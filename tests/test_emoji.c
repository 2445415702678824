/* Recorded pictures of a trained model, end to end: bank rows, transformer, samplers, statistics, autoencoder.
 * GMEM_EMOJI names a folder with the model as it was trained, in f32 and in the published file formats; without it only
 * the f16 copy that comes with the command is tested. */
#include "check.h"
#include "golden.h"

typedef struct model {
    const char *folder; /* NULL: that of GMEM_EMOJI */
    const char *network, *bank, *names, *autoencoder, *stats;
    double snippet_bar, latent_bar; /* relative L2 errors */
} model;

static const model models[] = {
    /* rounding every weight to f16 moves the latents, but no channel of the pictures by more than 1 */
    {"examples/model", "network.safetensors", "bank.safetensors", NULL, "autoencoder.safetensors",
     "latents_stats.safetensors", 5e-4, 1e-3},
    {NULL, "emoji_network.pth", "emoji_bank.pth", "emoji_names.txt", "emoji_autoencoder.pt", "emoji_latents_stats.pt",
     1e-6, 1e-5},
};

typedef struct run {
    const char *name; /* of the tensors NAME_latent and NAME_u8 */
    gmem_method method;
    double timestep_shift, cfg_scale, cfg_start;
    int64_t pictures; /* of the eight recorded, where the instruction set is not the fastest: that one draws all */
} run;

static const run runs[] = {
    {"ode", GMEM_EULER, 0.3, 0, 0, 4},
    {"sde", GMEM_SDE_HEUN, 0, 0, 0, 1},
    {"cfg", GMEM_EULER, 0.3, 3, 0.4, 2},
};

enum { CHANNELS = 8, SIDE = 8, PER_PICTURE = CHANNELS * SIDE * SIDE, IMAGE = 64, RECORDED = 8 };

typedef struct opened {
    gmem_network *network;
    gmem_bank *bank;
    gmem_autoencoder *autoencoder;
    float mean[CHANNELS], std[CHANNELS];
} opened;

/* A file's path in a ring of buffers: one call of gmem needs up to two. */
static const char *in_folder(const char *folder, const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int open_model(gmem_context *context, const model *files, const char *folder, opened *out) {
    gmem_network_desc network;
    gmem_bank_desc bank;
    gmem_autoencoder_desc autoencoder;
    gmem_file *stats = NULL;
    const char *bank_path = in_folder(folder, files->bank);
    memset(out, 0, sizeof *out);
    memset(&network, 0, sizeof network);
    memset(&bank, 0, sizeof bank);
    memset(&autoencoder, 0, sizeof autoencoder);
    network.path = in_folder(folder, files->network);
    if (!CHECK_OK(gmem_network_open(context, &network, &out->network, NULL))) return 0;
    bank.paths = &bank_path;
    bank.path_count = 1;
    bank.names_path = files->names ? in_folder(folder, files->names) : NULL;
    if (!CHECK_OK(gmem_bank_open(context, &bank, &out->bank, NULL))) return 0;
    autoencoder.path = in_folder(folder, files->autoencoder);
    if (!CHECK_OK(gmem_autoencoder_open(context, &autoencoder, &out->autoencoder, NULL))) return 0;
    if (!CHECK_OK(gmem_file_open(context, in_folder(folder, files->stats), ".", &stats, NULL))) return 0;
    CHECK_OK(gmem_read_latent_stats(stats, CHANNELS, out->mean, out->std, NULL));
    gmem_file_close(stats);
    return 1;
}

static void close_model(opened *model_) {
    gmem_network_close(model_->network);
    gmem_bank_close(model_->bank);
    gmem_autoencoder_close(model_->autoencoder);
}

/* The bank's rows are those recorded, and have names that find them. */
static void check_rows(const opened *it, const gmem_file *golden, double bar, float *snippets) {
    int64_t *rows = golden_i64(golden, "rows", NULL);
    float *c = golden_f32(golden, "c", NULL);
    CHECK_INT(gmem_bank_rows(it->bank), 1362);
    CHECK_INT(gmem_bank_width(it->bank), 192);
    for (int i = 0; i < RECORDED; i++) {
        int64_t found = -1;
        CHECK_OK(gmem_bank_snippet(it->bank, rows[i], snippets + i * 192, NULL));
        const char *name = gmem_bank_name(it->bank, rows[i]);
        if (CHECK(name != NULL)) CHECK_OK(gmem_bank_find(it->bank, name, &found, NULL));
        CHECK_INT(found, rows[i]);
    }
    CHECK_CLOSE("snippets", snippets, c, RECORDED * 192, bar);
    free(rows);
    free(c);
}

typedef struct recorded_noise {
    const float *values; /* (49, RECORDED, PER_PICTURE) */
} recorded_noise;

static gmem_status next_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                              gmem_error *error) {
    const recorded_noise *noise = (const recorded_noise *)user;
    (void)error;
    memcpy(out, noise->values + index * RECORDED * PER_PICTURE, (size_t)(batch * per_picture) * sizeof *out);
    return GMEM_OK;
}

static void check_pictures(const opened *it, const run *what, int64_t pictures, const gmem_file *golden, float *x) {
    char name[32];
    snprintf(name, sizeof name, "%s_u8", what->name);
    int64_t *expected = golden_i64(golden, name, NULL), bytes = pictures * IMAGE * IMAGE * 3, largest = 0;
    float *decoded = (float *)malloc((size_t)bytes * sizeof *decoded);
    uint8_t *pixels = (uint8_t *)malloc((size_t)bytes);
    gmem_denormalize(x, pictures, CHANNELS, SIDE * SIDE, it->mean, it->std, 1);
    CHECK_OK(gmem_decode(it->autoencoder, pictures, SIDE, SIDE, x, decoded, NULL));
    gmem_pixels(decoded, pictures, IMAGE, IMAGE, pixels);
    for (int64_t i = 0; i < bytes; i++) {
        int64_t difference = llabs((long long)pixels[i] - (long long)expected[i]);
        if (difference > largest) largest = difference;
    }
    if (!CHECK(largest <= 1)) printf("%s: off by %lld of 255\n", what->name, (long long)largest);
    free(expected);
    free(decoded);
    free(pixels);
}

static void check_run(const opened *it, const run *what, int64_t pictures, const gmem_file *golden,
                      const float *snippets, double bar) {
    char name[32];
    gmem_sample_desc desc;
    snprintf(name, sizeof name, "%s_latent", what->name);
    float *x = golden_f32(golden, "z", NULL), *latent = golden_f32(golden, name, NULL);
    float *draws = golden_f32(golden, "sde_noise", NULL);
    recorded_noise noise = {draws};
    memset(&desc, 0, sizeof desc);
    desc.sampler.method = what->method;
    desc.sampler.steps = 50;
    desc.sampler.timestep_shift = what->timestep_shift;
    desc.sampler.cfg_scale = what->cfg_scale;
    desc.sampler.cfg_start = what->cfg_start;
    desc.batch = pictures;
    desc.snippets = snippets;
    desc.noise = next_noise;
    desc.noise_user = &noise;
    CHECK_OK(gmem_sample(it->network, &desc, x, NULL));
    CHECK_CLOSE(name, x, latent, pictures * PER_PICTURE, bar);
    check_pictures(it, what, pictures, golden, x);
    free(x);
    free(latent);
    free(draws);
}

static void test_model(gmem_context *context, const model *files, const char *folder, int all) {
    gmem_file *golden = golden_open(context, "emoji_golden.safetensors");
    opened it;
    if (open_model(context, files, folder, &it)) {
        float *snippets = (float *)calloc(RECORDED * 192, sizeof *snippets);
        check_rows(&it, golden, files->snippet_bar, snippets);
        for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
            const int64_t pictures = golden_on_device() ? 1 : all ? RECORDED : runs[r].pictures;
            check_run(&it, &runs[r], pictures, golden, snippets, files->latent_bar);
        }
        free(snippets);
    }
    close_model(&it);
    gmem_file_close(golden);
}

int main(void) {
    gmem_context *fastest = golden_context(GMEM_ISA_AUTO);
    const char *trained = getenv("GMEM_EMOJI");
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_context(golden_isas[i]);
        if (!context) continue;
        int all = golden_isas[i] == gmem_context_isa(fastest);
        for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
            const char *folder = models[m].folder ? models[m].folder : trained;
            if (folder) test_model(context, &models[m], folder, all);
        }
        gmem_context_destroy(context);
    }
    if (!trained) printf("note: GMEM_EMOJI is not set, the model in f32 is not tested\n");
    gmem_context_destroy(fastest);
    return check_report();
}
