/* One network, many threads, each with its own sampler, and one image encoder: the same pictures and features as one
 * after another, and nothing for ThreadSanitizer to report. Each context here runs on one thread, so no OpenMP runtime
 * hides what happens. */
#include "check.h"
#include "golden.h"

#include <pthread.h>

enum { STEPS = 4, MAX_THREADS = 8 };

typedef struct job {
    const gmem_network *network;
    const float *snippet;
    int64_t picture, count;
    float *x; /* (count) */
    gmem_status status;
} job;

static void *sample_one(void *argument) {
    job *work = (job *)argument;
    gmem_rng rng;
    gmem_sample_desc desc;
    memset(&desc, 0, sizeof desc);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 7);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, work->picture, 1, work->count, work->x);
    desc.sampler.steps = STEPS;
    desc.batch = 1;
    desc.snippets = work->snippet;
    desc.rng = &rng;
    desc.picture = work->picture;
    work->status = gmem_sample(work->network, &desc, work->x, NULL);
    return NULL;
}

static void sample_all(const gmem_network *network, const float *snippet, int64_t count, int threads, float *out) {
    job jobs[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    for (int first = 0; first < MAX_THREADS; first += threads) {
        for (int i = 0; i < threads; i++) {
            job work = {network, snippet, first + i, count, out + (first + i) * count, GMEM_OK};
            jobs[i] = work;
            if (pthread_create(&ids[i], NULL, sample_one, &jobs[i]) != 0) exit(1);
        }
        for (int i = 0; i < threads; i++) {
            pthread_join(ids[i], NULL);
            CHECK_OK(jobs[i].status);
        }
    }
}

/* One image encoder whose narrow weights nobody has packed yet. */
typedef struct encoding {
    const gmem_image_encoder *encoder;
    const float *image; /* (3, 256, 256) */
    float *cls;
    gmem_status status;
} encoding;

static void *encode_one(void *argument) {
    encoding *work = (encoding *)argument;
    work->status = gmem_image_features(work->encoder, 1, 256, 256, work->image, work->cls, NULL, NULL);
    return NULL;
}

static void check_encoder(gmem_context *context) {
    enum { THREADS = 3, WIDTH = 48, SIZE = 3 * 256 * 256 };
    gmem_file *io = golden_open(context, "dinov2_tiny.io.safetensors");
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_image_encoder_desc desc;
    float *recorded = golden_f32(io, "image", NULL), cls[2][THREADS * WIDTH];
    float *images = (float *)calloc(THREADS * SIZE, sizeof *images);
    if (!images) exit(1);
    for (int i = 0; i < THREADS * SIZE; i++)
        images[i] = recorded[i % SIZE] * (1 - (float)(i / SIZE) / THREADS);
    memset(&desc, 0, sizeof desc);
    desc.file = weights.file;
    for (int together = 0; together < 2; together++) {
        gmem_image_encoder *encoder = NULL;
        encoding jobs[THREADS];
        pthread_t ids[THREADS];
        if (!CHECK_OK(gmem_image_encoder_open(context, &desc, &encoder, NULL))) exit(1);
        for (int i = 0; i < THREADS; i++) {
            encoding work = {encoder, images + i * SIZE, cls[together] + i * WIDTH, GMEM_OK};
            jobs[i] = work;
            if (pthread_create(&ids[i], NULL, encode_one, &jobs[i]) != 0) exit(1);
            if (!together) pthread_join(ids[i], NULL);
        }
        for (int i = 0; i < THREADS; i++) {
            if (together) pthread_join(ids[i], NULL);
            CHECK_OK(jobs[i].status);
        }
        gmem_image_encoder_close(encoder);
    }
    CHECK(memcmp(cls[0], cls[0] + WIDTH, WIDTH * sizeof(float)) != 0); /* pictures differ from each other */
    CHECK(memcmp(cls[0], cls[1], sizeof cls[0]) == 0);
    golden_network_close(&weights);
    gmem_file_close(io);
    free(recorded);
    free(images);
}

/* Eight pictures one after the other on a network of their own, then two, four and eight at a time on one that is new
 * each time: narrow weights are packed by whoever comes first, while the others do without. */
static void check_compute(gmem_compute compute) {
    gmem_context_desc context_desc;
    gmem_context *context = NULL;
    float *alone = NULL;
    memset(&context_desc, 0, sizeof context_desc);
    context_desc.threads = 1;
    context_desc.compute = compute;
    golden_choose_backend(&context_desc);
    if (!CHECK_OK(gmem_context_create(&context_desc, &context, NULL))) return;
    for (int threads = 1; threads <= MAX_THREADS; threads *= 2) {
        golden_case recorded = golden_case_open(context, "dit_base", NULL);
        const gmem_network_info *info = gmem_network_get_info(recorded.network);
        const int64_t count = info->channels * info->height * info->width;
        const size_t bytes = (size_t)(MAX_THREADS * count) * sizeof(float);
        float *snippet = golden_f32(recorded.io, "c", NULL), *x = (float *)calloc(1, bytes);
        if (!x) exit(1);
        sample_all(recorded.network, snippet, count, threads, x);
        if (threads == 1) {
            CHECK(memcmp(x, x + count, (size_t)count * sizeof *x) != 0); /* pictures differ from each other */
            alone = x;
        } else {
            CHECK(memcmp(alone, x, bytes) == 0);
            free(x);
        }
        free(snippet);
        golden_case_close(&recorded);
    }
    free(alone);
    check_encoder(context);
    gmem_context_destroy(context);
}

int main(void) {
    check_compute(GMEM_COMPUTE_F32);
    check_compute(GMEM_COMPUTE_BF16);
    check_compute(GMEM_COMPUTE_INT8);
    return check_report();
}
