/* One call from files to pixels: it gives what its steps give by hand, and refuses what cannot be. */
#include "check.h"
#include "edit.h"
#include "failing.h"
#include "golden.h"

static const char network_path[] = "build/test_generate.network.safetensors";
static const char bank_path[] = "build/test_generate.bank.safetensors";
static const char ae_path[] = "build/test_generate.autoencoder.safetensors";
static const char other_ae_path[] = "build/test_generate.autoencoder4.safetensors";
static const char stats_path[] = "build/test_generate.stats.safetensors";
static const char sit_path[] = "build/test_generate.sit.safetensors";
static const char class_path[] = "tests/golden/lightningdit_class.pt";

enum { BANK_ROWS = 11, COUNT = 3, CHANNELS = 8, AREA = 64, SIDE = 64 };

static float wave(int64_t i) { return (float)sin((double)i * 0.37 + 0.2); }

static void save_procedural(gmem_context *context, const char *io_name, const char *path) {
    gmem_file *io = golden_open(context, io_name);
    golden_network network = golden_procedural(context, io, NULL);
    edit_list *list = edit_of(network.file);
    const char *config = gmem_file_metadata(network.file, "config");
    char escaped[2048];
    size_t used = 0;
    for (const char *c = config ? config : ""; *c && used + 2 < sizeof escaped; c++) {
        if (*c == '"') escaped[used++] = '\\';
        escaped[used++] = *c;
    }
    escaped[used] = 0;
    if (config) edit_metadata(list, "config", escaped);
    if (strcmp(path, sit_path) == 0) { /* the first version's checkpoints hold their bank */
        int64_t rows = golden_dim(io, "memoryfreq", 0), shape[2] = {rows, 768};
        float *bank = (float *)edit_own(list, (size_t)(rows * 768) * sizeof *bank);
        int64_t *frequencies = golden_i64(io, "memoryfreq", NULL);
        for (int64_t i = 0; i < rows * 768; i++) {
            bank[i] = wave(i);
        }
        edit_add(list, "memorybank", GMEM_F32, 2, shape, bank);
        edit_add(list, "memoryfreq", GMEM_I64, 1, shape, frequencies);
        list->owned[list->owned_count++] = frequencies;
    }
    edit_save(list, path);
    edit_free(list);
    golden_network_close(&network);
    gmem_file_close(io);
}

static void save_bank(void) {
    edit_list *list = edit_new();
    int64_t shape[2] = {BANK_ROWS, 768}, offsets[BANK_ROWS + 1] = {0}, size;
    float *rows = (float *)edit_own(list, BANK_ROWS * 768 * sizeof *rows);
    for (int64_t i = 0; i < BANK_ROWS * 768; i++) {
        rows[i] = wave(i);
    }
    edit_add(list, "features", GMEM_F32, 2, shape, rows);
    for (int i = 0; i < BANK_ROWS; i++) {
        offsets[i + 1] = i + 1; /* one letter each */
    }
    size = BANK_ROWS;
    edit_add(list, "names", GMEM_U8, 1, &size, "abcdefghijk");
    size = BANK_ROWS + 1;
    edit_add(list, "names.offsets", GMEM_I64, 1, &size, offsets);
    edit_save(list, bank_path);
    edit_free(list);
}

static void save_stats(void) {
    edit_list *list = edit_new();
    int64_t shape[4] = {1, CHANNELS, 1, 1};
    float mean[CHANNELS], std[CHANNELS];
    for (int i = 0; i < CHANNELS; i++) {
        mean[i] = 0.1f * (float)i;
        std[i] = 1 + 0.2f * (float)i;
    }
    edit_add(list, "mean", GMEM_F32, 4, shape, mean);
    edit_add(list, "std", GMEM_F32, 4, shape, std);
    edit_save(list, stats_path);
    edit_free(list);
}

/* The latents of a run by hand: z (COUNT, channels, 8, 8), as the published script draws. */
typedef struct by_hand {
    gmem_network *network;
    float *x, *snippets;
    int64_t *rows;
    int64_t per_picture;
    gmem_rng rng;
} by_hand;

static by_hand hand_open(gmem_context *context, const char *path, gmem_rng_kind kind, uint64_t seed) {
    by_hand hand;
    gmem_network_desc desc;
    memset(&hand, 0, sizeof hand);
    memset(&desc, 0, sizeof desc);
    desc.path = path;
    if (!CHECK_OK(gmem_network_open(context, &desc, &hand.network, NULL))) exit(check_report());
    const gmem_network_info *info = gmem_network_get_info(hand.network);
    hand.per_picture = info->channels * info->height * info->width;
    hand.x = (float *)calloc((size_t)(COUNT * hand.per_picture), sizeof(float));
    hand.snippets = (float *)calloc(COUNT * 768, sizeof(float));
    hand.rows = (int64_t *)calloc(COUNT, sizeof(int64_t));
    gmem_rng_init(&hand.rng, kind, seed);
    gmem_rng_normal(&hand.rng, GMEM_DRAW_LATENT, 0, 0, COUNT, hand.per_picture, hand.x);
    return hand;
}

static void hand_sample(by_hand *hand, const gmem_sampler_desc *sampler, int labels) {
    gmem_sample_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.sampler = *sampler;
    desc.batch = COUNT;
    if (labels)
        desc.labels = hand->rows;
    else
        desc.snippets = hand->snippets;
    desc.rng = &hand->rng;
    CHECK_OK(gmem_sample(hand->network, &desc, hand->x, NULL));
}

static void hand_close(by_hand *hand) {
    gmem_network_close(hand->network);
    free(hand->x);
    free(hand->snippets);
    free(hand->rows);
}

static void hand_snippets(gmem_context *context, by_hand *hand, const char *path) {
    gmem_bank_desc desc;
    gmem_bank *bank = NULL;
    memset(&desc, 0, sizeof desc);
    desc.paths = &path;
    desc.path_count = 1;
    CHECK_OK(gmem_bank_open(context, &desc, &bank, NULL));
    for (int i = 0; i < COUNT; i++) {
        CHECK_OK(gmem_bank_snippet(bank, hand->rows[i], hand->snippets + i * 768, NULL));
    }
    gmem_bank_close(bank);
}

/* Decodes the latents and compares with what the one call gave. */
static void hand_check(gmem_context *context, by_hand *hand, const char *path, const char *stats, double multiplier,
                       int first_version, const gmem_image *image) {
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    float mean[CHANNELS] = {0}, std[CHANNELS] = {1, 1, 1, 1, 1, 1, 1, 1};
    memset(&desc, 0, sizeof desc);
    desc.path = path;
    CHECK_OK(gmem_autoencoder_open(context, &desc, &ae, NULL));
    const gmem_autoencoder_info *info = gmem_autoencoder_get_info(ae);
    int64_t side = 8 * info->factor, channels = info->latent_channels;
    float *decoded = (float *)calloc((size_t)(COUNT * 3 * side * side), sizeof(float));
    uint8_t *pixels = (uint8_t *)calloc((size_t)(COUNT * side * side), 3);
    if (stats) {
        gmem_file *file = golden_open(context, stats);
        CHECK_OK(gmem_read_latent_stats(file, channels, mean, std, NULL));
        gmem_file_close(file);
    }
    gmem_denormalize(hand->x, COUNT, channels, 64, mean, std, multiplier);
    CHECK_OK(gmem_decode(ae, COUNT, 8, 8, hand->x, decoded, NULL));
    for (int64_t i = 0; first_version && i < COUNT * 3 * side * side; i++)
        decoded[i] -= 0.5f / 127.5f; /* it rounded 127.5 y + 127.5 */
    gmem_pixels(decoded, COUNT, side, side, pixels);
    CHECK_INT(image->count, COUNT);
    CHECK_INT(image->height, side);
    CHECK_INT(image->width, side);
    /* on a device the latents' statistics and the pixels are computed there, and rounded once more or less */
    int64_t largest = 0;
    for (int64_t i = 0; i < COUNT * side * side * 3; i++) {
        const int64_t difference = llabs((long long)pixels[i] - (long long)image->pixels[i]);
        if (difference > largest) largest = difference;
    }
    CHECK(largest <= golden_on_device());
    gmem_autoencoder_close(ae);
    free(decoded);
    free(pixels);
}

static gmem_generate_desc usual(void) {
    gmem_generate_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.network = network_path;
    desc.bank = bank_path;
    desc.autoencoder = ae_path;
    desc.latent_stats = stats_path;
    desc.count = COUNT;
    desc.seed = 7;
    desc.sampler.steps = 5;
    return desc;
}

/* Random rows: z, then the rows, then the noise of the steps, from one stream with torch's generators. */
static void test_random_rows(gmem_context *context, gmem_rng_kind kind) {
    gmem_generate_desc desc = usual();
    gmem_image image;
    desc.rng = kind;
    memset(&image, 0, sizeof image);
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    by_hand hand = hand_open(context, network_path, kind, 7);
    gmem_rng_integers(&hand.rng, GMEM_DRAW_ROW, 0, COUNT, BANK_ROWS, hand.rows);
    hand_snippets(context, &hand, bank_path);
    hand_sample(&hand, &desc.sampler, 0);
    hand_check(context, &hand, ae_path, stats_path, 1, 0, &image);
    hand_close(&hand);
    gmem_image_free(context, &image);
    CHECK(image.pixels == NULL && image.count == 0);
}

/* Named rows, used in turn; guidance; no statistics but a multiplier. */
static void test_named_rows(gmem_context *context) {
    static const char *const memory[2] = {"C", "10"};
    static const int64_t rows[COUNT] = {2, 10, 2};
    gmem_generate_desc desc = usual();
    gmem_image image;
    desc.memory = memory;
    desc.memory_count = 2;
    desc.latent_stats = NULL;
    desc.multiplier = 0.5;
    desc.sampler.method = GMEM_EULER;
    desc.sampler.cfg_scale = 2;
    memset(&image, 0, sizeof image);
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    by_hand hand = hand_open(context, network_path, GMEM_RNG_PHILOX, 7);
    memcpy(hand.rows, rows, sizeof rows);
    hand_snippets(context, &hand, bank_path);
    hand_sample(&hand, &desc.sampler, 0);
    hand_check(context, &hand, ae_path, NULL, 0.5, 0, &image);
    hand_close(&hand);
    gmem_image_free(context, &image);
}

/* The first version: rows from the noise, by the frequencies in its file; the SD-VAE family's multiplier. */
static void test_first_version(gmem_context *context) {
    gmem_generate_desc desc = usual();
    gmem_image image;
    int64_t rows = 0;
    desc.network = sit_path;
    desc.bank = NULL;
    desc.latent_stats = NULL;
    desc.autoencoder = other_ae_path;
    memset(&image, 0, sizeof image);
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    by_hand hand = hand_open(context, sit_path, GMEM_RNG_PHILOX, 7);
    gmem_file *file = golden_open(context, sit_path);
    int64_t *frequencies = golden_i64(file, "memoryfreq", &rows);
    for (int i = 0; i < COUNT; i++) {
        CHECK_OK(
            gmem_choose_row(frequencies, rows, hand.x + i * hand.per_picture, hand.per_picture, &hand.rows[i], NULL));
    }
    hand_snippets(context, &hand, sit_path);
    hand_sample(&hand, &desc.sampler, 0);
    hand_check(context, &hand, other_ae_path, NULL, 0.18215, 1, &image);
    gmem_file_close(file);
    free(frequencies);
    hand_close(&hand);
    gmem_image_free(context, &image);
}

static void test_labels(gmem_context *context, int random) {
    static const int64_t labels[COUNT] = {3, 9, 3};
    gmem_generate_desc desc = usual();
    gmem_image image;
    desc.network = class_path;
    desc.bank = NULL;
    desc.labels = labels;
    desc.label_count = random ? 0 : 2;
    memset(&image, 0, sizeof image);
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    by_hand hand = hand_open(context, class_path, GMEM_RNG_PHILOX, 7);
    memcpy(hand.rows, labels, sizeof labels);
    if (random) gmem_rng_integers(&hand.rng, GMEM_DRAW_ROW, 0, COUNT, 10, hand.rows);
    hand_sample(&hand, &desc.sampler, 1);
    hand_check(context, &hand, ae_path, stats_path, 1, 0, &image);
    hand_close(&hand);
    gmem_image_free(context, &image);
}

/* batches --------------------------------------------------------------------------------------------------------- */

/* What one generation told of itself, and the most memory it had when it did. */
typedef struct watched {
    const failing *memory;
    int64_t most, calls;
    gmem_progress last;
    int forward; /* steps and passes never went back */
} watched;

static int watch(void *user, const gmem_progress *progress) {
    watched *w = (watched *)user;
    if (w->memory && w->memory->live > w->most) w->most = w->memory->live;
    w->forward &= w->calls == 0 || (progress->step > w->last.step && progress->passes >= w->last.passes);
    w->calls++;
    w->last = *progress;
    return 0;
}

static gmem_image generate_batches(gmem_context *context, int64_t count, int64_t batch, gmem_rng_kind rng, watched *w) {
    gmem_generate_desc desc = usual();
    gmem_image image;
    memset(&image, 0, sizeof image);
    w->calls = w->most = 0;
    w->forward = 1;
    desc.count = count;
    desc.batch = batch;
    desc.rng = rng;
    desc.sampler.cfg_scale = 1.5;
    desc.progress = watch;
    desc.progress_user = w;
    CHECK_OK(gmem_generate(context, &desc, &image, NULL));
    CHECK(w->forward);
    CHECK_INT(w->last.step, w->last.steps);
    CHECK_INT(w->last.passes, w->last.total_passes);
    CHECK_INT(w->calls, w->last.steps);
    return image;
}

static int same_images(const gmem_image *a, const gmem_image *b) {
    return a->count == b->count && a->pixels && b->pixels &&
           memcmp(a->pixels, b->pixels, (size_t)(a->count * a->height * a->width * 3)) == 0;
}

/* Picture i of a seed is the same in whatever batch; smaller ones take less memory. */
static void test_batches(void) {
    enum { PICTURES = 5 };
    failing memory = {-1, 0, 0};
    gmem_context *context = failing_context(&memory);
    watched w = {&memory, 0, 0, {0, 0, 0, 0, 0, NULL}, 1};
    gmem_image whole = generate_batches(context, PICTURES, PICTURES, GMEM_RNG_PHILOX, &w);
    const int64_t most = w.most, steps = w.last.steps;
    for (int64_t batch = 0; batch < PICTURES; batch++) {
        gmem_image image = generate_batches(context, PICTURES, batch, GMEM_RNG_PHILOX, &w);
        CHECK(same_images(&image, &whole));
        CHECK_INT(w.last.steps, steps * (batch ? (PICTURES + batch - 1) / batch : 1)); /* five small ones are a batch */
        if (batch == 1) CHECK(w.most < most);
        gmem_image_free(context, &image);
    }
    gmem_image one = generate_batches(context, 1, 0, GMEM_RNG_PHILOX, &w);
    CHECK(one.pixels && memcmp(one.pixels, whole.pixels, (size_t)(one.height * one.width * 3)) == 0);
    gmem_image_free(context, &one);
    gmem_image_free(context, &whole);
    gmem_context_destroy(context);
}

/* The network's 64 tokens let 16 pictures into a batch, but torch's generators draw for all at once. */
static void test_default_batch(gmem_context *context) {
    static const gmem_rng_kind kinds[] = {GMEM_RNG_PHILOX, GMEM_RNG_TORCH_CPU};
    for (int i = 0; i < 2; i++) {
        watched w = {NULL, 0, 0, {0, 0, 0, 0, 0, NULL}, 1};
        gmem_image image = generate_batches(context, 17, 0, kinds[i], &w);
        gmem_image other = generate_batches(context, 17, i ? 17 : 16, kinds[i], &w);
        CHECK_INT(w.last.steps, i ? 5 : 10);
        CHECK(same_images(&image, &other));
        gmem_image_free(context, &other);
        gmem_image_free(context, &image);
    }
}

/* refusals -------------------------------------------------------------------------------------------------------- */

static void refuse(gmem_context *context, const gmem_generate_desc *desc, gmem_status expected, const char *path) {
    gmem_image image = {1, 2, 3, NULL};
    gmem_error error;
    memset(&error, 0, sizeof error);
    if (!CHECK_STATUS(expected, gmem_generate(context, desc, &image, &error))) printf("%s\n", error.message);
    if (path) CHECK_TEXT(error.path, path);
    CHECK(image.count == 1 && image.height == 2 && image.width == 3 && !image.pixels);
}

static int cancel_at_2(void *user, const gmem_progress *progress) {
    ++*(int *)user;
    return progress->step == 2;
}

static void test_settings(gmem_context *context) {
    gmem_generate_desc desc = usual();
    desc.network = NULL;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc = usual();
    desc.autoencoder = NULL;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc = usual();
    desc.bank = NULL;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc = usual();
    desc.count = -1;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc.count = INT64_MAX / 2;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc.count = (int64_t)1 << 40;
    refuse(context, &desc, GMEM_E_MEMORY, NULL);
    desc = usual();
    desc.batch = -1;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc = usual();
    desc.rng = (gmem_rng_kind)7;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc = usual();
    desc.multiplier = -1;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
}

static void test_conditions(gmem_context *context) {
    static const char *const unknown[1] = {"zebra"}, *const beyond[1] = {"11"},
                             *const huge[1] = {"99999999999999999999"}, *const absent[1] = {NULL};
    static const int64_t label = 10;
    gmem_generate_desc desc = usual();
    desc.memory_count = 1;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc.memory = absent;
    refuse(context, &desc, GMEM_E_ARGUMENT, NULL);
    desc.memory = unknown;
    refuse(context, &desc, GMEM_E_NAME_UNKNOWN, NULL);
    desc.memory = beyond;
    refuse(context, &desc, GMEM_E_ROW, NULL);
    desc.memory = huge;
    refuse(context, &desc, GMEM_E_NAME_UNKNOWN, NULL);
    desc.network = class_path;
    refuse(context, &desc, GMEM_E_COMBINATION, NULL);
    desc = usual();
    desc.labels = &label;
    desc.label_count = 1;
    refuse(context, &desc, GMEM_E_COMBINATION, NULL);
    desc.network = class_path;
    desc.bank = NULL;
    refuse(context, &desc, GMEM_E_LABEL, NULL);
}

static void test_wrong_files(gmem_context *context) {
    static const char missing[] = "tests/golden/no_such_file.pth";
    gmem_generate_desc desc = usual();
    desc.autoencoder = other_ae_path;
    refuse(context, &desc, GMEM_E_LATENT, other_ae_path);
    desc = usual();
    desc.bank = "tests/golden/bank_full.pth";
    refuse(context, &desc, GMEM_E_WIDTH, desc.bank);
    const char **paths[4] = {&desc.network, &desc.bank, &desc.autoencoder, &desc.latent_stats};
    for (int i = 0; i < 4; i++) {
        desc = usual();
        *paths[i] = missing;
        refuse(context, &desc, GMEM_E_OPEN, missing);
    }
    desc = usual();
    desc.names = missing;
    refuse(context, &desc, GMEM_E_OPEN, missing);
}

static void test_cancelling(gmem_context *context) {
    gmem_generate_desc desc = usual();
    int steps = 0;
    desc.progress = cancel_at_2;
    desc.progress_user = &steps;
    refuse(context, &desc, GMEM_E_CANCELLED, NULL);
    CHECK_INT(steps, 2);
    gmem_image_free(context, NULL);
}

static gmem_status generate_one(gmem_context *context, void *user) {
    gmem_image image;
    memset(&image, 0, sizeof image);
    gmem_status status = gmem_generate(context, (const gmem_generate_desc *)user, &image, NULL);
    CHECK((status == GMEM_OK) == (image.pixels != NULL));
    gmem_image_free(context, &image);
    return status;
}

static void test_allocations(void) {
    gmem_generate_desc desc = usual();
    desc.count = 1;
    desc.sampler.steps = 2;
    check_failing_allocations(generate_one, &desc, 20);
}

/* What the log tells of one generation, a line under the other. */
static void keep_line(void *user, const char *line) {
    char *text = (char *)user;
    CHECK(!strchr(line, '\n'));
    snprintf(text + strlen(text), 4096 - strlen(text), "%s\n", line);
}

static void test_log(void) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_generate_desc picture = usual();
    gmem_image image;
    char text[4096] = "", line[512];
    memset(&desc, 0, sizeof desc);
    memset(&image, 0, sizeof image);
    desc.log = keep_line;
    desc.log_user = text;
    if (!CHECK_OK(gmem_context_create(&desc, &context, NULL))) return;
    CHECK_OK(gmem_generate(context, &picture, &image, NULL));
    CHECK_CONTAINS(text, gmem_context_backend(context));
    snprintf(line, sizeof line, "%s: GMem-LightningDiT, ", network_path);
    CHECK_CONTAINS(text, line);
    snprintf(line, sizeof line, "bank: %d rows of width 768 in 1 files", BANK_ROWS);
    CHECK_CONTAINS(text, line);
    CHECK_CONTAINS(text, "8 latent channels, 8 pixels a latent");
    gmem_image_free(context, &image);
    gmem_context_destroy(context);
}

int main(void) {
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    save_procedural(context, "dit_base.io.safetensors", network_path);
    save_procedural(context, "vae_f8.io.safetensors", ae_path);
    save_procedural(context, "vae_noattn.io.safetensors", other_ae_path);
    save_procedural(context, "gmem_sit.io.safetensors", sit_path);
    save_bank();
    save_stats();
    test_random_rows(context, GMEM_RNG_PHILOX);
    test_random_rows(context, GMEM_RNG_TORCH_CPU);
    test_random_rows(context, GMEM_RNG_TORCH_CUDA);
    test_named_rows(context);
    test_first_version(context);
    test_log();
    test_labels(context, 0);
    test_labels(context, 1);
    test_batches();
    test_default_batch(context);
    test_settings(context);
    test_conditions(context);
    test_wrong_files(context);
    test_cancelling(context);
    test_allocations();
    gmem_context_destroy(context);
    remove(network_path);
    remove(bank_path);
    remove(ae_path);
    remove(other_ae_path);
    remove(stats_path);
    remove(sit_path);
    return check_report();
}
