/* gmem eval and gmem integrate: a network on given tensors, for tests and for comparing with other implementations. */
#include "commands.h"
#include "interrupt.h"
#include "sampler.h"
#include "session.h"

#include <string.h>

typedef struct evaluation {
    session s;
    int64_t batch, most, first;  /* pictures; at most at a time; the first of those at work */
    const gmem_tensor *x_tensor; /* (batch, channels, height, width) */
    float *x, *t, *snippets;     /* snippets (batch, snippet_width) */
    int64_t *labels;             /* (batch) */
    float *v;
    gmem_pass *pass;
    const gmem_tensor *noise; /* (draws, batch, channels, height, width) */
    gmem_reuse reuse;
    progress_bar bar;
} evaluation;

static outcome read_latents(evaluation *e, const char *name, gmem_error *error) {
    const gmem_network_info *info = e->s.network_info;
    int64_t shape[4] = {-1, info->channels, info->height, info->width};
    TRY(input_floats(&e->s, name, 4, shape, &e->x_tensor, &e->x, error));
    e->batch = e->x_tensor->shape[0];
    if (e->batch == 0) return failed(error, e->s.args->input, "%s: it holds no picture", name);
    return OUTCOME_DONE;
}

/* Opens the network for latents of the size of `name`, where its file tells no size. */
static outcome open_network_for(evaluation *e, const char *name, gmem_error *error) {
    const gmem_tensor *tensor = gmem_file_find(e->s.input, name);
    if (tensor && tensor->rank == 4) {
        e->s.latent_height = tensor->shape[2];
        e->s.latent_width = tensor->shape[3];
    }
    return open_network(&e->s, error);
}

/* What the pictures are conditioned on: `c` as given, or labels. */
static outcome read_condition(evaluation *e, const char *label, gmem_error *error) {
    const gmem_network_info *info = e->s.network_info;
    const gmem_tensor *unused = NULL;
    int64_t shape[2] = {e->batch, info->snippet_width};
    if (info->snippet_width > 0) return input_floats(&e->s, "c", 2, shape, &unused, &e->snippets, error);
    return input_integers(&e->s, label, e->batch, &e->labels, error);
}

static int64_t latent_size(const gmem_network_info *info) { return info->channels * info->height * info->width; }

static outcome save_latents(evaluation *e, const char *name, const float *data, gmem_error *error) {
    gmem_tensor tensor = gmem_tensor_make(name, GMEM_F32, 4, e->x_tensor->shape, data);
    return save_output(&e->s, &tensor, 1, error);
}

static outcome run_passes(evaluation *e, gmem_error *error) {
    const gmem_network_info *info = e->s.network_info;
    int64_t size = latent_size(info), most = e->s.args->batch ? e->s.args->batch : 8;
    if (most > e->batch) most = e->batch;
    TRY(from_status(gmem_pass_create(e->s.network, most, &e->pass, error)));
    for (int64_t i = 0; i < e->batch; i += most) {
        int64_t count = e->batch - i < most ? e->batch - i : most;
        TRY(interrupt_check(error));
        gmem_status status = gmem_pass_run(e->pass, count, e->x + i * size, e->t + i,
                                           e->snippets ? e->snippets + i * info->snippet_width : NULL,
                                           e->labels ? e->labels + i : NULL, e->v + i * size, error);
        TRY(in_network(&e->s, status, error));
    }
    return OUTCOME_DONE;
}

static outcome evaluate(evaluation *e, gmem_error *error) {
    const gmem_tensor *unused = NULL;
    TRY(open_input(&e->s, error));
    TRY(open_network_for(e, "x", error));
    TRY(read_latents(e, "x", error));
    TRY(input_floats(&e->s, "t", 1, &e->batch, &unused, &e->t, error));
    TRY(read_condition(e, "label", error));
    e->v = session_floats(&e->s, e->batch * latent_size(e->s.network_info));
    if (!e->v) return out_of_memory(error);
    TRY(run_passes(e, error));
    return save_latents(e, "v", e->v, error);
}

outcome command_eval(const arguments *args, gmem_error *error) {
    evaluation e;
    memset(&e, 0, sizeof e);
    outcome result = session_begin(&e.s, args, error);
    if (result == OUTCOME_DONE) result = evaluate(&e, error);
    gmem_pass_destroy(e.pass);
    session_end(&e.s);
    return result;
}

/* integrate ------------------------------------------------------------------------------------------------------- */

/* The noise of one step, in the order drawn. */
static gmem_status given_noise(void *user, int64_t index, int64_t batch, int64_t per_picture, float *out,
                               gmem_error *error) {
    evaluation *e = (evaluation *)user;
    if (!e->noise || index >= e->noise->shape[0]) {
        failed(error, e->s.args->input, "noise: the method draws more than the %lld tensors that are there",
               (long long)(e->noise ? e->noise->shape[0] : 0));
        return error->code;
    }
    gmem_tensor_read_f32(e->noise, (index * e->batch + e->first) * per_picture, batch * per_picture, out);
    return GMEM_OK;
}

static outcome find_noise(evaluation *e, gmem_error *error) {
    const char *name = gmem_file_find(e->s.input, "sde_noise") ? "sde_noise" : "noise";
    int64_t shape[5] = {-1, 0, 0, 0, 0};
    memcpy(shape + 1, e->x_tensor->shape, 4 * sizeof *shape);
    return input_tensor(&e->s, name, 5, shape, &e->noise, error);
}

static int show_passes(void *user, const gmem_progress *progress) {
    evaluation *e = (evaluation *)user;
    int64_t runs = (e->batch + e->most - 1) / e->most, done = e->first / e->most;
    progress_show(&e->bar, done * progress->total_passes + progress->passes, runs * progress->total_passes, "passes");
    return interrupt_pending();
}

/* All pictures at once, as dopri5 controls its steps by all of them, unless --batch says otherwise. */
static gmem_status run_sampler(evaluation *e, gmem_sample_desc *desc, gmem_error *error) {
    const gmem_network_info *info = e->s.network_info;
    gmem_status status = GMEM_OK;
    gmem_reuse reuse = {0, 0};
    e->most = e->s.args->batch ? e->s.args->batch : e->batch;
    desc->noise = given_noise;
    desc->progress = show_passes;
    desc->noise_user = desc->progress_user = e;
    desc->reuse = &reuse;
    for (e->first = 0; e->first < e->batch && status == GMEM_OK; e->first += e->most) {
        desc->batch = e->batch - e->first < e->most ? e->batch - e->first : e->most;
        desc->snippets = e->snippets ? e->snippets + e->first * info->snippet_width : NULL;
        desc->labels = e->labels ? e->labels + e->first : NULL;
        status = gmem_sample(e->s.network, desc, e->x + e->first * latent_size(info), error);
        e->reuse.passes += reuse.passes;
        e->reuse.reused += reuse.reused;
    }
    return status;
}

static outcome integrate(evaluation *e, gmem_error *error) {
    gmem_sample_desc desc;
    memset(&desc, 0, sizeof desc);
    TRY(sampler_flags_check(e->s.args, error));
    TRY(open_input(&e->s, error));
    TRY(open_network_for(e, "z", error));
    TRY(sampler_from_flags(e->s.args, e->s.network_info, &desc.sampler, error));
    TRY(read_latents(e, "z", error));
    TRY(read_condition(e, gmem_file_find(e->s.input, "sample_label") ? "sample_label" : "label", error));
    if (sampler_draws_noise(&desc.sampler)) TRY(find_noise(e, error));
    progress_begin(&e->bar);
    gmem_status status = run_sampler(e, &desc, error);
    progress_end(&e->bar);
    if (status == GMEM_E_CANCELLED) return interrupt_check(error);
    TRY(in_network(&e->s, status, error));
    sampler_note_reuse(&desc.sampler, &e->reuse);
    return save_latents(e, "out", e->x, error);
}

outcome command_integrate(const arguments *args, gmem_error *error) {
    evaluation e;
    memset(&e, 0, sizeof e);
    outcome result = session_begin(&e.s, args, error);
    if (result == OUTCOME_DONE) result = integrate(&e, error);
    session_end(&e.s);
    return result;
}
