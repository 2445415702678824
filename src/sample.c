/* Sampling with a network: it becomes the velocity that is integrated, a generator the noise. */
#include "fallback.h"
#include "network.h"
#include "random.h"
#include "sampler.h"

/* Guided passes run a doubled batch: the conditional half first, then the null half. */
typedef struct gmem__sampling {
    const gmem_sample_desc *desc;
    const gmem__ends *ends;
    const gmem_context *context;
    const gmem_network_info *info;
    const gmem__method *method;
    int guided;
    int flip_time;     /* the network's time runs the other way: t -> 1 - t, ... */
    int flip_sign;     /* ... and its velocity, where it predicts one, points the other way */
    int doubled_draws; /* the published script draws noise for the doubled batch and uses the first half */
    int64_t batch, per_picture;
    gmem_pass *pass;
    const gmem__engine *engine; /* the pass's */
    gmem__arena memory;         /* of the engine, for ... */
    float *x, *v;               /* (2 batch, per_picture), guided only */
    float *t;                   /* (2 batch), here and below on the host */
    float *snippets;            /* (2 batch, snippet_width): the null half is zero */
    int64_t *labels;            /* (2 batch) */
    float *draws;               /* (2 batch, per_picture), doubled_draws only */
    float *times;               /* (time_count) the network's times to come, neighbours distinct */
    int64_t time_count;
    int64_t prepared_first, prepared_end; /* of `times`: what the pass holds prepared */
} gmem__sampling;

static float gmem__network_time(const gmem__sampling *sampling, double t) {
    return (float)(sampling->flip_time ? 1 - t : t);
}

/* Lets the pass compute the adaLN projections of this time and as many of the following as it can hold. */
static gmem_status gmem__prepare_times(gmem__sampling *sampling, float t, gmem_error *error) {
    int64_t i = sampling->prepared_first;
    while (i < sampling->time_count && sampling->times[i] != t)
        i++;
    if (i < sampling->prepared_end || i == sampling->time_count) return GMEM_OK;
    const int64_t conditions = sampling->batch + sampling->guided;
    const int64_t room = gmem__pass_prepare_limit(sampling->pass) / conditions;
    const int64_t count = gmem__min(room, sampling->time_count - i);
    if (count < 2) return GMEM_OK;
    sampling->prepared_first = i;
    sampling->prepared_end = i + count;
    return gmem_pass_prepare(sampling->pass, count, sampling->times + i, sampling->batch, sampling->desc->snippets,
                             sampling->desc->labels, sampling->guided, error);
}

static void gmem__copy_vector(const gmem__engine *engine, float *to, const float *from, int64_t count) {
    gmem__copy copy;
    copy.to = to;
    copy.from = from;
    copy.rows = 1;
    copy.width = copy.to_stride = copy.from_stride = count;
    engine->ops->copy(engine, &copy);
}

static gmem_status gmem__run_both(gmem__sampling *sampling, const gmem_velocity_call *call, gmem_error *error) {
    const int64_t half = sampling->batch * sampling->per_picture;
    gmem__copy_vector(sampling->engine, sampling->x, call->x, half);
    gmem__copy_vector(sampling->engine, sampling->x + half, call->x, half);
    GMEM__TRY(gmem__pass_run(sampling->pass, 0, 2 * sampling->batch, sampling->x, sampling->t, sampling->snippets,
                             sampling->labels, sampling->v, error));
    gmem__copy_vector(sampling->engine, call->conditional, sampling->v, half);
    gmem__copy_vector(sampling->engine, call->unconditional, sampling->v + half, half);
    return GMEM_OK;
}

/* v may be NULL. */
static void gmem__negate(const gmem__engine *engine, float *v, int64_t count) {
    gmem__combine op;
    if (!v) return;
    memset(&op, 0, sizeof op);
    op.out = v;
    op.x = v;
    op.x_weight = -1;
    op.rows = 1;
    op.width = op.stride = count;
    engine->ops->combine(engine, &op);
}

static gmem_status gmem__network_velocity(void *user, const gmem_velocity_call *call, gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const float t = gmem__network_time(sampling, call->t);
    GMEM__TRY(gmem__prepare_times(sampling, t, error));
    for (int64_t i = 0; i < 2 * sampling->batch; i++)
        sampling->t[i] = t;
    if (call->conditional && call->unconditional)
        GMEM__TRY(gmem__run_both(sampling, call, error));
    else if (call->conditional)
        GMEM__TRY(gmem__pass_run(sampling->pass, 0, sampling->batch, (float *)call->x, sampling->t, desc->snippets,
                                 desc->labels, call->conditional, error));
    else
        GMEM__TRY(gmem__pass_run(sampling->pass, sampling->batch, sampling->batch, (float *)call->x, sampling->t, NULL,
                                 NULL, call->unconditional, error));
    if (sampling->flip_sign) {
        gmem__negate(sampling->engine, call->conditional, sampling->batch * sampling->per_picture);
        gmem__negate(sampling->engine, call->unconditional, sampling->batch * sampling->per_picture);
    }
    return GMEM_OK;
}

static gmem_status gmem__generator_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                                         gmem_error *error) {
    gmem__sampling *sampling = (gmem__sampling *)user;
    const gmem_sample_desc *desc = sampling->desc;
    const gmem__draw_kind kind = sampling->method->repa ? GMEM__DRAW_DEVICE_F64 : GMEM__DRAW_HOST;
    (void)error;
    if (!sampling->doubled_draws) {
        gmem__rng_step_normal(desc->rng, kind, index, desc->picture, batch, per_picture, out);
        return GMEM_OK;
    }
    gmem__rng_step_normal(desc->rng, kind, index, desc->picture, 2 * batch, per_picture, sampling->draws);
    memcpy(out, sampling->draws, (size_t)(batch * per_picture) * sizeof(float));
    return GMEM_OK;
}

static gmem_status gmem__check_sample(const gmem_network *network, const gmem_sample_desc *desc, int has_x,
                                      int64_t per_picture, gmem_error *error) {
    int64_t elements;
    if (!network || !desc || !has_x)
        return gmem__fail(error, GMEM_E_ARGUMENT, "sampling needs a network, a description and a start");
    if (desc->batch < 1 || !gmem__mul(desc->batch, 4 * per_picture, &elements))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the batch is empty or too large");
    if (network->info.snippet_width > 0 && !desc->snippets)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on snippets, and none are given");
    if (network->info.classes > 0 && !desc->labels)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the network is conditioned on class labels, and none are given");
    return GMEM_OK;
}

static void gmem__sampling_layout(gmem__sampling *sampling, gmem__arena *arena, int64_t time_count) {
    const gmem_network_info *info = sampling->info;
    const int64_t doubled = 2 * sampling->batch;
    sampling->t = GMEM__TAKE_F32(arena, doubled);
    sampling->times = GMEM__TAKE_F32(arena, time_count);
    if (sampling->doubled_draws) sampling->draws = GMEM__TAKE_F32(arena, doubled * sampling->per_picture);
    if (!sampling->guided) return;
    if (info->snippet_width > 0) sampling->snippets = GMEM__TAKE_F32(arena, doubled * info->snippet_width);
    if (info->classes > 0) sampling->labels = (int64_t *)gmem__take(arena, doubled, sizeof(int64_t));
}

/* The doubled conditions and the times to come. */
static void gmem__sampling_fill(gmem__sampling *sampling, const gmem__plan *plan) {
    const int64_t batch = sampling->batch, width = sampling->info->snippet_width;
    if (sampling->snippets) {
        memset(sampling->snippets, 0, (size_t)(2 * batch * width) * sizeof(float));
        memcpy(sampling->snippets, sampling->desc->snippets, (size_t)(batch * width) * sizeof(float));
    }
    for (int64_t i = 0; sampling->labels && i < batch; i++) {
        sampling->labels[i] = sampling->desc->labels[i];
        sampling->labels[batch + i] = sampling->info->classes;
    }
    gmem__schedule schedule = gmem__schedule_start(plan);
    for (double t; gmem__schedule_next(&schedule, &t);) {
        float network_t = gmem__network_time(sampling, t);
        if (sampling->time_count == 0 || sampling->times[sampling->time_count - 1] != network_t)
            sampling->times[sampling->time_count++] = network_t;
    }
}

static void gmem__sampling_layout_engine(gmem__sampling *sampling) {
    if (!sampling->guided) return;
    sampling->x = GMEM__TAKE_F32(&sampling->memory, 2 * sampling->batch * sampling->per_picture);
    sampling->v = GMEM__TAKE_F32(&sampling->memory, 2 * sampling->batch * sampling->per_picture);
}

/* The decoder comes after the last pass, and finds the room of its activations. */
static gmem_status gmem__sampling_take(void *user, const gmem__engine *engine, const float *x, gmem_error *error) {
    const gmem__sampling *sampling = (const gmem__sampling *)user;
    gmem__pass_end(sampling->pass);
    return sampling->ends->take(sampling->ends->user, engine, x, error);
}

static gmem_status gmem__sample_integrate(gmem__sampling *sampling, const gmem__plan *plan, float *x,
                                          gmem_error *error) {
    const gmem_sample_desc *desc = sampling->desc;
    gmem_integrate_desc integrate;
    gmem__integration how;
    memset(&integrate, 0, sizeof integrate);
    integrate.sampler = plan->desc;
    integrate.sampler.cache_threshold = 0; /* the pass sees to it */
    integrate.batch = sampling->batch;
    integrate.per_picture = sampling->per_picture;
    integrate.channels = sampling->info->channels;
    integrate.velocity = gmem__network_velocity;
    integrate.velocity_user = sampling;
    integrate.noise = desc->noise ? desc->noise : desc->rng ? gmem__generator_noise : NULL;
    integrate.noise_user = desc->noise ? desc->noise_user : sampling;
    integrate.progress = desc->progress;
    integrate.progress_user = desc->progress_user;
    integrate.passes = desc->passes;
    memset(&how, 0, sizeof how);
    how.engine = sampling->engine;
    how.philox = !desc->noise && desc->rng && desc->rng->kind == GMEM_RNG_PHILOX ? desc->rng : NULL;
    how.picture = desc->picture;
    if (sampling->ends) {
        how.draw_start = sampling->ends->draw_start;
        how.take = gmem__sampling_take;
        how.take_user = sampling;
    }
    return gmem__integrate(sampling->context, &how, &integrate, x, error);
}

static gmem_status gmem__sample_run(const gmem_network *network, gmem__sampling *sampling, const gmem__plan *plan,
                                    float *x, gmem_error *error) {
    const gmem_sample_desc *desc = sampling->desc;
    gmem__sampling_fill(sampling, plan);
    GMEM__TRY(gmem__pass_create(network, sampling->batch * (1 + sampling->guided), plan->desc.cache_threshold,
                                &sampling->pass, error));
    sampling->engine = gmem__pass_engine(sampling->pass);
    gmem__sampling_layout_engine(sampling);
    gmem_status status = GMEM_OK;
    if (sampling->guided)
        status = gmem__engine_reserve(sampling->engine, network->context, &sampling->memory, "the sampler", error);
    if (status == GMEM_OK) {
        gmem__sampling_layout_engine(sampling);
        status = gmem__sample_integrate(sampling, plan, x, error);
        sampling->engine->ops->release(sampling->engine, network->context, &sampling->memory);
    }
    if (status == GMEM_OK && desc->reuse) *desc->reuse = gmem__pass_reuse(sampling->pass);
    gmem_pass_destroy(sampling->pass);
    return status;
}

GMEM__FN gmem_status gmem__sample(const gmem_network *network, const gmem_sample_desc *desc, const gmem__ends *ends,
                                  float *x, gmem_error *error) {
    gmem_sampler_desc resolved;
    gmem__sampling sampling;
    gmem__arena arena;
    memset(&sampling, 0, sizeof sampling);
    memset(&arena, 0, sizeof arena);
    const int64_t per_picture = network ? network->info.channels * network->info.height * network->info.width : 0;
    GMEM__TRY(gmem__check_sample(network, desc, x || ends, per_picture, error));
    GMEM__TRY(gmem_sampler_check(&desc->sampler, network->info.time_reversed, &resolved, error));
    const gmem__plan plan = gmem__plan_make(&resolved);
    sampling.desc = desc;
    sampling.ends = ends;
    sampling.context = network->context;
    sampling.info = &network->info;
    sampling.method = plan.method;
    sampling.guided = resolved.cfg_scale > 1;
    sampling.flip_time = network->info.time_reversed != plan.method->repa;
    sampling.flip_sign = sampling.flip_time && resolved.prediction == GMEM_PREDICT_VELOCITY;
    sampling.doubled_draws = gmem__is_sde(plan.method) && !plan.method->repa && sampling.guided && !desc->noise &&
                             desc->rng && desc->rng->kind != GMEM_RNG_PHILOX;
    sampling.batch = desc->batch;
    sampling.per_picture = per_picture;

    const int64_t time_count = gmem__plan_passes(&plan);
    gmem__sampling_layout(&sampling, &arena, time_count);
    if (!gmem__arena_reserve(network->context, &arena))
        return gmem__fail(error, GMEM_E_MEMORY, "no memory for the sampler (%lld bytes)", (long long)arena.bytes);
    gmem__sampling_layout(&sampling, &arena, time_count);
    gmem_status status = gmem__sample_run(network, &sampling, &plan, x, error);
    gmem__arena_release(network->context, &arena);
    return status;
}

GMEM_API gmem_status gmem_sample(const gmem_network *network, const gmem_sample_desc *desc, float *x,
                                 gmem_error *error) {
    gmem_error why;
    gmem_network *on_cpu = NULL;
    gmem_rng rng;
    if (!network || !network->store.device) return gmem__sample(network, desc, NULL, x, error);
    if (desc && desc->rng) rng = *desc->rng;
    gmem_status status = gmem__sample(network, desc, NULL, x, &why);
    if (!gmem__falls_back(network->context, status, &why)) {
        if (status != GMEM_OK && error) *error = why;
        return status;
    }
    if (desc->rng) *desc->rng = rng; /* x is as it was, and so must the noise be */
    GMEM__TRY(gmem__network_on_cpu(network, &on_cpu, error));
    status = gmem__sample(on_cpu, desc, NULL, x, error);
    gmem_network_close(on_cpu);
    return status;
}
