/* Autoencoders at work: the walk through a half's layers, decoding, encoding, and what lies between the transformer's
 * latents and pixels. */
#include "autoencoder.h"
#include "fallback.h"

#include "../backends/cpu/cpu.h"

#include <math.h>

/* the walk -------------------------------------------------------------------------------------------------------- */

/* The working memory of one image: two states that layers read and write in turn, and what a layer needs inside. */
typedef struct gmem__ae_plan {
    int64_t input, state, work; /* floats */
    int64_t grain;              /* floats: a multiple of every state's groups or channels; 0: there is none */
    int64_t out_channels, out_height, out_width;
} gmem__ae_plan;

/* Makes the grain a multiple of one group of the layer's norms, where it has these, else of one channel. */
static void gmem__ae_refine(gmem__ae_plan *plan, const gmem__ae_layer *layer, int64_t channels, int64_t volume) {
    const int64_t floats = volume / (layer->kind == GMEM__AE_CONV ? channels : GMEM__AE_GROUPS);
    int64_t divisor = plan->grain, other = floats;
    while (other > 0) { /* Euclid's */
        const int64_t rest = divisor % other;
        divisor = other;
        other = rest;
    }
    if (divisor == 0 || !gmem__mul(plan->grain / divisor, floats, &plan->grain)) plan->grain = 0;
}

static int gmem__ae_volume(int64_t channels, int64_t height, int64_t width, int64_t *out) {
    return gmem__mul(channels, height, out) && gmem__mul(*out, width, out);
}

/* The largest states of a run over an image of this size; 0 where a size overflows. */
static int gmem__ae_measure_run(const gmem__ae_net *net, int64_t height, int64_t width, gmem__ae_plan *plan) {
    plan->state = plan->work = 0;
    plan->grain = 1;
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        int64_t before = 0, after = 0, inside = 0;
        if (!gmem__ae_volume(layer->in, height, width, &before)) return 0;
        gmem__ae_refine(plan, layer, layer->in, before);
        if (layer->upsample && (!gmem__mul(height, 2, &height) || !gmem__mul(width, 2, &width))) return 0;
        height /= layer->stride;
        width /= layer->stride;
        if (!gmem__ae_volume(layer->out, height, width, &after)) return 0;
        gmem__ae_refine(plan, layer, layer->out, after);
        if (layer->kind == GMEM__AE_RESIDUAL) inside = after;
        if (layer->kind == GMEM__AE_ATTENTION && !gmem__mul(after, 3, &inside)) return 0;
        if (i == 0) plan->input = before; /* the first layer reads the caller's memory */
        if (i > 0) plan->state = gmem__max(plan->state, before);
        plan->state = gmem__max(plan->state, after);
        plan->work = gmem__max(plan->work, inside);
        plan->out_channels = layer->out;
    }
    plan->out_height = height;
    plan->out_width = width;
    return 1;
}

typedef struct gmem__ae_walk {
    gmem__engine engine;
    float *x, *spare;      /* (plan.state) each; x holds the state */
    float *work;           /* (plan.work) */
    int64_t height, width; /* of the state */
    gmem_compute compute;
} gmem__ae_walk;

static void gmem__ae_swap(gmem__ae_walk *walk) {
    float *x = walk->x;
    walk->x = walk->spare;
    walk->spare = x;
}

static gmem__conv gmem__ae_conv_of(const gmem__ae_walk *walk, const gmem__ae_conv *conv, int64_t in_channels,
                                   const float *x, float *y) {
    gmem__conv op;
    memset(&op, 0, sizeof op);
    op.weight = &conv->weight;
    op.bias = conv->bias;
    op.x = x;
    op.y = y;
    op.in_channels = in_channels;
    op.height = walk->height;
    op.width = walk->width;
    op.kernel = conv->kernel;
    op.stride = 1;
    return op;
}

/* y (out, height, width) = conv(x) (+ residual), at the state's size. */
static void gmem__ae_run_conv(const gmem__ae_walk *walk, const gmem__ae_conv *conv, int64_t in_channels, const float *x,
                              const float *residual, float *y) {
    gmem__conv op = gmem__ae_conv_of(walk, conv, in_channels, x, y);
    op.residual = residual;
    walk->engine.ops->conv(&walk->engine, &op);
}

/* A convolution that stands alone, and may change the size. */
static void gmem__ae_run_layer(gmem__ae_walk *walk, const gmem__ae_layer *layer, const float *x) {
    gmem__conv op = gmem__ae_conv_of(walk, &layer->conv[0], layer->in, x, walk->spare);
    op.stride = layer->stride;
    op.upsample = layer->upsample;
    walk->engine.ops->conv(&walk->engine, &op);
    walk->height = walk->height * (layer->upsample ? 2 : 1) / layer->stride;
    walk->width = walk->width * (layer->upsample ? 2 : 1) / layer->stride;
    gmem__ae_swap(walk);
}

static void gmem__ae_run_norm(const gmem__ae_walk *walk, const gmem__ae_norm *norm, int64_t channels, int silu,
                              const float *x, float *y) {
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.y = y;
    op.weight = norm->weight;
    op.bias = norm->bias;
    op.channels = channels;
    op.area = walk->height * walk->width;
    op.groups = GMEM__AE_GROUPS;
    op.eps = GMEM__AE_EPS;
    op.silu = silu;
    walk->engine.ops->group_norm(&walk->engine, &op);
}

static void gmem__ae_run_residual(gmem__ae_walk *walk, const gmem__ae_layer *layer) {
    float *h = walk->work;
    gmem__ae_run_norm(walk, &layer->norm[0], layer->in, 1, walk->x, walk->spare);
    gmem__ae_run_conv(walk, &layer->conv[0], layer->in, walk->spare, NULL, h);
    gmem__ae_run_norm(walk, &layer->norm[1], layer->out, 1, h, h);
    if (layer->in != layer->out) {
        gmem__ae_run_conv(walk, &layer->conv[2], layer->in, walk->x, NULL, walk->spare);
        gmem__ae_swap(walk);
    }
    gmem__ae_run_conv(walk, &layer->conv[1], layer->out, h, walk->x, walk->x);
}

static void gmem__ae_run_attention(gmem__ae_walk *walk, const gmem__ae_layer *layer) {
    int64_t channels = layer->in, area = walk->height * walk->width;
    gmem__attention op;
    float *qkv[3];
    gmem__ae_run_norm(walk, &layer->norm[0], channels, 0, walk->x, walk->spare);
    for (int i = 0; i < 3; i++) {
        qkv[i] = walk->work + i * channels * area;
        gmem__ae_run_conv(walk, &layer->conv[i], channels, walk->spare, NULL, qkv[i]);
    }
    memset(&op, 0, sizeof op);
    op.q = qkv[0];
    op.k = qkv[1];
    op.v = qkv[2];
    op.y = walk->spare;
    op.heads = 1;
    op.head_dim = channels;
    op.tokens = area;
    op.samples = 1;
    op.stride = op.y_stride = area;
    op.scale = (float)(1 / sqrt((double)channels));
    op.compute = walk->compute;
    walk->engine.ops->attention(&walk->engine, &op);
    gmem__ae_run_conv(walk, &layer->conv[3], channels, walk->spare, walk->x, walk->x);
}

/* One image through a half; the result is in walk->x. The first layer is a convolution, so the input stays as it is. */
static void gmem__ae_run(gmem__ae_walk *walk, const gmem__ae_net *net, const float *input) {
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        switch (layer->kind) {
        case GMEM__AE_CONV:
            gmem__ae_run_layer(walk, layer, i == 0 ? input : walk->x);
            break;
        case GMEM__AE_RESIDUAL:
            gmem__ae_run_residual(walk, layer);
            break;
        case GMEM__AE_ATTENTION:
            gmem__ae_run_attention(walk, layer);
            break;
        case GMEM__AE_NORM_SILU:
            gmem__ae_run_norm(walk, &layer->norm[0], layer->in, 1, walk->x, walk->x);
            break;
        }
    }
}

/* a batch --------------------------------------------------------------------------------------------------------- */

/* A call's images, one after the other through one block of memory. */
typedef struct gmem__ae_job {
    const gmem_context *context;
    const gmem__ae_net *net;
    int64_t count, height, width;
    const float *input; /* (count, in, height, width) */
    const gmem__store *store;
    gmem__ae_plan plan;
    gmem__engine engine;
    gmem__arena memory; /* of the engine, for the next five */
    float *a, *b, *work;
    float *in;         /* (plan.input) where `input` does not do */
    float *stats;      /* (2, in channels) to pixels: what latents are multiplied by, and what is added */
    int to_pixels;     /* of latents elsewhere: there is no `input`, and there are no results */
    gmem__arena arena; /* of the host */
    float *scales;     /* like stats */
    float *results;    /* (count, out_channels, out_height, out_width): the caller's outputs wait for the last image */
} gmem__ae_job;

static int64_t gmem__ae_result_size(const gmem__ae_plan *plan) {
    return plan->out_channels * plan->out_height * plan->out_width;
}

static void gmem__ae_take_engine(gmem__ae_job *job) {
    job->a = GMEM__TAKE_F32(&job->memory, job->plan.state);
    job->b = GMEM__TAKE_F32(&job->memory, job->plan.state);
    job->work = GMEM__TAKE_F32(&job->memory, job->plan.work);
    if (job->engine.stream || job->to_pixels) job->in = GMEM__TAKE_F32(&job->memory, job->plan.input);
    if (job->to_pixels) job->stats = GMEM__TAKE_F32(&job->memory, 2 * job->net->layers[0].in);
}

static void gmem__ae_take_host(gmem__ae_job *job) {
    job->engine.scratch = gmem__take(&job->arena, job->engine.ops->scratch_bytes(job->engine.threads), 1);
    if (job->to_pixels) job->scales = GMEM__TAKE_F32(&job->arena, 2 * job->net->layers[0].in);
    job->results = GMEM__TAKE_F32(&job->arena, job->count * gmem__ae_result_size(&job->plan));
}

static void gmem__ae_job_end(gmem__ae_job *job) {
    if (!job->engine.ops) return;
    job->engine.ops->release(&job->engine, job->context, &job->memory);
    gmem__arena_release(job->context, &job->arena);
    gmem__engine_close(&job->engine);
}

static gmem_status gmem__ae_job_begin(gmem__ae_job *job, gmem_error *error) {
    int64_t size = 0;
    if (!gmem__ae_measure_run(job->net, job->height, job->width, &job->plan) ||
        !gmem__mul(gmem__max(job->plan.state, job->plan.input), job->count, &size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "%lld images of %lld x %lld are too large", (long long)job->count,
                          (long long)job->height, (long long)job->width);
    GMEM__TRY(gmem__engine_open(job->store, &job->engine, error));
    gmem__ae_take_host(job);
    if (!gmem__arena_reserve(job->context, &job->arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the autoencoder: %lld bytes",
                          (long long)job->arena.bytes);
    gmem__ae_take_host(job);
    gmem__ae_take_engine(job);
    if (!gmem__mul(job->plan.grain, (int64_t)sizeof(float), &job->memory.grain)) job->memory.grain = 0;
    GMEM__TRY(gmem__engine_reserve(&job->engine, job->context, &job->memory, "the autoencoder", error));
    gmem__ae_take_engine(job);
    return GMEM_OK;
}

static gmem_status gmem__ae_job_image(gmem__ae_job *job, int64_t i, gmem_error *error) {
    const gmem__engine *engine = &job->engine;
    const int64_t size = gmem__ae_result_size(&job->plan);
    const float *input = job->input + i * job->plan.input;
    int notes = 0;
    if (engine->stream) {
        engine->ops->upload(engine, job->in, input, job->plan.input);
        input = job->in;
    }
    gmem__ae_walk walk = {*engine, job->a, job->b, job->work, job->height, job->width, job->context->compute};
    gmem__ae_run(&walk, job->net, input);
    const int finite = engine->ops->finite(engine, walk.x, size, GMEM__NOTE_IMAGE);
    engine->ops->download(engine, job->results + i * size, walk.x, size);
    GMEM__TRY(engine->ops->settle(engine, &notes, error));
    if (!finite || notes)
        return gmem__fail(error, GMEM_E_NONFINITE, "the autoencoder's output for image %lld is not finite",
                          (long long)i);
    return GMEM_OK;
}

static gmem_status gmem__ae_job_images(gmem__ae_job *job, gmem_error *error) {
    GMEM__TRY(gmem__ae_job_begin(job, error));
    for (int64_t i = 0; i < job->count; i++)
        GMEM__TRY(gmem__ae_job_image(job, i, error));
    return GMEM_OK;
}

/* On success the results wait in the job until gmem__ae_job_end. */
static gmem_status gmem__ae_job_try(gmem__ae_job *job, gmem_error *error) {
    const gmem_status status = gmem__ae_job_images(job, error);
    if (status != GMEM_OK) gmem__ae_job_end(job);
    return status;
}

/* The same, on the CPU where a device fails: `on_cpu`, if not NULL, is to be closed after the job. */
static gmem_status gmem__ae_job_run(const gmem_autoencoder *ae, gmem__ae_job *job, gmem_autoencoder **on_cpu,
                                    gmem_error *error) {
    const gmem__ae_job fresh = *job;
    gmem_error why;
    *on_cpu = NULL;
    if (!ae->store.device) return gmem__ae_job_try(job, error);
    const gmem_status status = gmem__ae_job_try(job, &why);
    if (!gmem__falls_back(ae->context, status, &why)) {
        if (status != GMEM_OK && error) *error = why;
        return status;
    }
    GMEM__TRY(gmem__autoencoder_on_cpu(ae, on_cpu, error));
    *job = fresh;
    job->net = job->net == &ae->decoder ? &(*on_cpu)->decoder : &(*on_cpu)->encoder;
    job->store = &(*on_cpu)->store;
    return gmem__ae_job_try(job, error);
}

static gmem__ae_job gmem__ae_job_of(const gmem_autoencoder *ae, const gmem__ae_net *net, int64_t count, int64_t height,
                                    int64_t width, const float *input) {
    gmem__ae_job job;
    memset(&job, 0, sizeof job);
    job.context = ae->context;
    job.store = &ae->store;
    job.net = net;
    job.count = count;
    job.height = height;
    job.width = width;
    job.input = input;
    return job;
}

GMEM_API gmem_status gmem_decode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *z, float *out, gmem_error *error) {
    if (!autoencoder || !z || !out || count < 1 || height < 1 || width < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_decode needs latents (count, channels, height, width)");
    gmem__ae_job job = gmem__ae_job_of(autoencoder, &autoencoder->decoder, count, height, width, z);
    gmem_autoencoder *on_cpu = NULL;
    const gmem_status status = gmem__ae_job_run(autoencoder, &job, &on_cpu, error);
    if (status == GMEM_OK) {
        memcpy(out, job.results, (size_t)(count * gmem__ae_result_size(&job.plan)) * sizeof(float));
        gmem__ae_job_end(&job);
    }
    gmem_autoencoder_close(on_cpu);
    return status;
}

/* One picture of gmem__decode_pixels, the job having begun. scale, shift (channels) of the engine, behind job->in. */
static gmem_status gmem__ae_job_pixels(gmem__ae_job *job, const gmem__latents *latents, int64_t i, float offset,
                                       uint8_t *pixels, gmem_error *error) {
    const gmem__engine *engine = &job->engine;
    const int64_t size = gmem__ae_result_size(&job->plan), channels = job->net->layers[0].in;
    gmem__scale_shift scale_shift;
    int notes = 0;
    latents->engine->ops->hand_over(latents->engine, latents->x + i * job->plan.input, engine, job->in,
                                    job->plan.input);
    GMEM__TRY(latents->engine->ops->settle(latents->engine, &notes, error));
    scale_shift.x = scale_shift.y = job->in;
    scale_shift.scale = job->stats;
    scale_shift.shift = job->stats + channels;
    scale_shift.channels = channels;
    scale_shift.area = job->height * job->width;
    engine->ops->scale_shift(engine, &scale_shift);
    gmem__ae_walk walk = {*engine, job->a, job->b, job->work, job->height, job->width, job->context->compute};
    gmem__ae_run(&walk, job->net, job->in);
    const int finite = engine->ops->finite(engine, walk.x, size, GMEM__NOTE_IMAGE);
    engine->ops->pixels(engine, pixels, walk.x, size / 3, offset);
    GMEM__TRY(engine->ops->settle(engine, &notes, error));
    if (!finite || notes)
        return gmem__fail(error, GMEM_E_NONFINITE, "the autoencoder's output for image %lld is not finite",
                          (long long)i);
    return GMEM_OK;
}

/* What gmem_denormalize multiplies by and adds: out (2, channels). */
static void gmem__latent_scales(const gmem__latents *latents, int64_t channels, float *out) {
    for (int64_t c = 0; c < channels; c++) {
        out[c] = (float)((latents->std ? (double)latents->std[c] : 1) / latents->multiplier);
        out[channels + c] = latents->mean ? latents->mean[c] : 0;
    }
}

GMEM__FN gmem_status gmem__decode_pixels(const gmem_autoencoder *autoencoder, const gmem__latents *latents,
                                         float offset, uint8_t *pixels, gmem_error *error) {
    gmem__ae_job job = gmem__ae_job_of(autoencoder, &autoencoder->decoder, 0, latents->height, latents->width, NULL);
    const int64_t channels = autoencoder->decoder.layers[0].in;
    job.to_pixels = 1;
    gmem_status status = gmem__ae_job_begin(&job, error);
    if (status == GMEM_OK) {
        gmem__latent_scales(latents, channels, job.scales);
        job.engine.ops->upload(&job.engine, job.stats, job.scales, 2 * channels);
    }
    for (int64_t i = 0; i < latents->count && status == GMEM_OK; i++)
        status = gmem__ae_job_pixels(&job, latents, i, offset, pixels + i * gmem__ae_result_size(&job.plan), error);
    gmem__ae_job_end(&job);
    return status;
}

static double gmem__ae_conv_flop(const gmem__ae_conv *conv, double area) {
    return 2.0 * (double)conv->weight.rows * (double)conv->weight.cols * area;
}

GMEM_API double gmem_decode_flop(const gmem_autoencoder *autoencoder, int64_t height, int64_t width) {
    const gmem__ae_net *net = &autoencoder->decoder;
    double area = (double)height * (double)width, flop = 0;
    for (int64_t i = 0; i < net->count; i++) {
        const gmem__ae_layer *layer = net->layers + i;
        if (layer->upsample) area *= 4;
        area /= (double)layer->stride * (double)layer->stride;
        for (int conv = 0; conv < 4; conv++) { /* those that a layer has not are zero */
            flop += gmem__ae_conv_flop(&layer->conv[conv], area);
        }
        if (layer->kind == GMEM__AE_ATTENTION) flop += 4.0 * area * area * (double)layer->in;
    }
    return flop;
}

/* The posterior's parameters (2 * size): mean, then logvar clamped as DiagonalGaussianDistribution does. */
static void gmem__ae_split(const float *moments, int64_t size, float *mean, float *logvar) {
    memcpy(mean, moments, (size_t)size * sizeof(float));
    for (int64_t i = 0; i < size; i++) {
        float value = moments[size + i];
        logvar[i] = value < -30 ? -30 : value > 20 ? 20 : value;
    }
}

GMEM_API gmem_status gmem_encode(const gmem_autoencoder *autoencoder, int64_t count, int64_t height, int64_t width,
                                 const float *image, float *mean, float *logvar, gmem_error *error) {
    if (!autoencoder || !image || !mean || !logvar || count < 1 || height < 1 || width < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_encode needs images (count, 3, height, width)");
    if (!autoencoder->info.has_encoder)
        return gmem__fail(error, GMEM_E_COMBINATION, "this autoencoder's file has a decoder only");
    if (height % autoencoder->info.factor != 0 || width % autoencoder->info.factor != 0)
        return gmem__fail(error, GMEM_E_ARGUMENT, "an image of %lld x %lld: both must be multiples of %lld",
                          (long long)height, (long long)width, (long long)autoencoder->info.factor);
    gmem__ae_job job = gmem__ae_job_of(autoencoder, &autoencoder->encoder, count, height, width, image);
    gmem_autoencoder *on_cpu = NULL;
    const gmem_status status = gmem__ae_job_run(autoencoder, &job, &on_cpu, error);
    const int64_t size = gmem__ae_result_size(&job.plan) / 2;
    for (int64_t i = 0; i < count && status == GMEM_OK; i++)
        gmem__ae_split(job.results + 2 * i * size, size, mean + i * size, logvar + i * size);
    if (status == GMEM_OK) gmem__ae_job_end(&job);
    gmem_autoencoder_close(on_cpu);
    return status;
}

/* latents and pixels ---------------------------------------------------------------------------------------------- */

GMEM_API void gmem_denormalize(float *x, int64_t count, int64_t channels, int64_t area, const float *mean,
                               const float *std, double multiplier) {
    for (int64_t row = 0; row < count * channels; row++) {
        float scale = (float)((std ? (double)std[row % channels] : 1) / multiplier);
        float shift = mean ? mean[row % channels] : 0;
        float *values = x + row * area;
        for (int64_t i = 0; i < area; i++) {
            values[i] = values[i] * scale + shift;
        }
    }
}

static gmem_status gmem__need_stats(const gmem_file *file, const char *name, int64_t channels, int positive,
                                    const gmem_tensor **out, gmem_error *error) {
    const gmem_tensor *tensor = gmem_file_find_any(file, name);
    if (!tensor) return gmem__fail_at(error, GMEM_E_MISSING_TENSOR, gmem_file_path(file), -1, "no tensor \"%s\"", name);
    if (gmem_tensor_count(tensor) != channels)
        return gmem__fail_at(error, GMEM_E_SHAPE, gmem_file_path(file), -1, "\"%s\" has %lld elements, expected %lld",
                             name, (long long)gmem_tensor_count(tensor), (long long)channels);
    for (int64_t i = 0; i < channels; i++) {
        float value = 0;
        gmem_tensor_read_f32(tensor, i, 1, &value);
        if (!gmem__all_finite(&value, 1) || (positive && value <= 0))
            return gmem__fail_at(error, GMEM_E_ARGUMENT, gmem_file_path(file), -1, "\"%s\" of channel %lld is not %s",
                                 name, (long long)i, positive ? "positive" : "finite");
    }
    *out = tensor;
    return GMEM_OK;
}

GMEM_API gmem_status gmem_read_latent_stats(const gmem_file *file, int64_t channels, float *mean, float *std,
                                            gmem_error *error) {
    const gmem_tensor *means = NULL, *stds = NULL;
    if (!file || !mean || !std || channels < 1)
        return gmem__fail(error, GMEM_E_ARGUMENT, "gmem_read_latent_stats needs a file and room for its channels");
    GMEM__TRY(gmem__need_stats(file, "mean", channels, 0, &means, error));
    GMEM__TRY(gmem__need_stats(file, "std", channels, 1, &stds, error));
    gmem_tensor_read_f32(means, 0, channels, mean);
    gmem_tensor_read_f32(stds, 0, channels, std);
    return GMEM_OK;
}

GMEM_API void gmem_pixels(const float *decoded, int64_t count, int64_t height, int64_t width, uint8_t *pixels) {
    const int64_t area = height * width;
    for (int64_t i = 0; i < count; i++)
        gmem__host_pixels(NULL, pixels + i * 3 * area, decoded + i * 3 * area, area, GMEM__PIXEL_OFFSET);
}
