/* The sampler flags as the library's description, and back as text. */
#include "sampler.h"

#include <stdarg.h>
#include <string.h>

/* Which flags a method reads. */
typedef enum method_family { FAMILY_ODE = 1, FAMILY_ADAPTIVE = 2, FAMILY_SDE = 4, FAMILY_REPA = 8 } method_family;

static method_family family_of(gmem_method method) {
    switch (method) {
    case GMEM_EULER:
    case GMEM_MIDPOINT:
    case GMEM_HEUN2:
    case GMEM_HEUN3:
    case GMEM_RK4:
    case GMEM_AB2:
    case GMEM_AB3:
    case GMEM_DPMPP2M:
        return FAMILY_ODE;
    case GMEM_DOPRI5:
        return FAMILY_ADAPTIVE;
    case GMEM_REPA_EULER:
    case GMEM_REPA_HEUN:
    case GMEM_REPA_SDE:
        return FAMILY_REPA;
    default:
        return FAMILY_SDE;
    }
}

static gmem_method method_of(const arguments *args) { return (gmem_method)args->method; }

/* A flag that the chosen method never looks at is a mistake, not a wish. */
static outcome check_unused(const arguments *args, gmem_error *error) {
    static const struct {
        flag_id flag;
        const char *name, *methods;
        unsigned families;
    } uses[] = {{FLAG_atol, "atol", "dopri5", FAMILY_ADAPTIVE},
                {FLAG_rtol, "rtol", "dopri5", FAMILY_ADAPTIVE},
                {FLAG_diffusion_form, "diffusion-form", "sde-euler and sde-heun", FAMILY_SDE},
                {FLAG_diffusion_norm, "diffusion-norm", "sde-euler and sde-heun", FAMILY_SDE},
                {FLAG_last_step, "last-step", "sde-euler and sde-heun", FAMILY_SDE},
                {FLAG_last_step_size, "last-step-size", "sde-euler and sde-heun", FAMILY_SDE}};
    char method[32];
    if (!args->method) return OUTCOME_DONE; /* the network decides */
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++) {
        if (args->given[uses[i].flag] && !(family_of(method_of(args)) & uses[i].families))
            return misused(error, "--%s is for --method %s: %s does not use it", uses[i].name, uses[i].methods,
                           choice_name(FLAG_method, args->method, method, sizeof method));
    }
    return OUTCOME_DONE;
}

/* "START[,END]" */
static outcome parse_interval(const char *text, double *start, double *end, gmem_error *error) {
    char first[64];
    const char *comma = strchr(text, ',');
    snprintf(first, sizeof first, "%.*s", comma ? (int)(comma - text) : 63, text);
    *end = 0;
    if (!parse_number(first, start) || (comma && !parse_number(comma + 1, end)) || *start < 0 || *start > 1 ||
        (comma && (*end <= 0 || *end > 1 || *end < *start)))
        return misused(error, "--cfg-interval: expected START or START,END between 0 and 1, found '%s'", text);
    return OUTCOME_DONE;
}

static outcome parse_channels(const char *text, int64_t channels, int *out, gmem_error *error) {
    int64_t count = 0;
    if (same_ignoring_case(text, "all")) {
        *out = 0;
        return OUTCOME_DONE;
    }
    if (!parse_integer(text, 1, channels, &count))
        return misused(error, "--cfg-channels: expected all or 1..%lld, found '%s'", (long long)channels, text);
    *out = (int)count;
    return OUTCOME_DONE;
}

/* The flags without what depends on the network. */
static outcome fill_flags(const arguments *args, gmem_sampler_desc *out, gmem_error *error) {
    memset(out, 0, sizeof *out);
    out->method = method_of(args);
    out->steps = (int)args->steps;
    out->timestep_shift = args->timestep_shift;
    out->atol = args->atol;
    out->rtol = args->rtol;
    out->diffusion_form = args->diffusion_form == 7
                              ? GMEM_DIFFUSION_INCREASING_DECREASING /* the published misspelling */
                              : (gmem_diffusion_form)args->diffusion_form;
    out->diffusion_norm = args->diffusion_norm;
    out->last_step = (gmem_last_step)args->last_step;
    out->last_step_size = args->last_step_size;
    if (args->given[FLAG_last_step_size] && args->last_step_size == 0) out->last_step_size = -1; /* exactly 0 */
    out->path = args->path ? (gmem_path)(args->path - 1) : GMEM_PATH_LINEAR;
    out->prediction = args->prediction ? (gmem_prediction)(args->prediction - 1) : GMEM_PREDICT_VELOCITY;
    out->cfg_scale = args->cfg_scale;
    out->cache_threshold = args->cache_threshold;
    if (args->cfg_interval) TRY(parse_interval(args->cfg_interval, &out->cfg_start, &out->cfg_end, error));
    return OUTCOME_DONE;
}

outcome sampler_flags_check(const arguments *args, gmem_error *error) {
    gmem_sampler_desc desc;
    int unused = 0;
    TRY(check_unused(args, error));
    if ((args->cfg_interval || args->cfg_channels) && !args->given[FLAG_cfg_scale])
        return misused(error, "--%s needs --cfg-scale", args->cfg_interval ? "cfg-interval" : "cfg-channels");
    if (args->cfg_channels) TRY(parse_channels(args->cfg_channels, 1 << 20, &unused, error));
    TRY(fill_flags(args, &desc, error));
    /* the default method depends on the network, so only what suits neither kind is refused here */
    if (gmem_sampler_check(&desc, 1, NULL, NULL) == GMEM_OK) return OUTCOME_DONE;
    return gmem_sampler_check(&desc, 0, NULL, error) == GMEM_OK ? OUTCOME_DONE : OUTCOME_MISUSED;
}

outcome sampler_from_flags(const arguments *args, const gmem_network_info *network, gmem_sampler_desc *out,
                           gmem_error *error) {
    TRY(fill_flags(args, out, error));
    if (args->cfg_channels) {
        TRY(parse_channels(args->cfg_channels, network->channels, &out->cfg_channels, error));
    } else if (network->architecture == GMEM_ARCH_LIGHTNINGDIT && network->channels > 3) {
        out->cfg_channels = 3; /* as LightningDiT's own script guides */
    }
    return gmem_sampler_check(out, network->time_reversed, out, error) == GMEM_OK ? OUTCOME_DONE : OUTCOME_MISUSED;
}

int sampler_draws_noise(const gmem_sampler_desc *sampler) {
    return family_of(sampler->method) == FAMILY_SDE || sampler->method == GMEM_REPA_SDE;
}

const char *sampler_method_name(const gmem_sampler_desc *sampler, char *out, size_t bytes) {
    return choice_name(FLAG_method, (int)sampler->method, out, bytes);
}

typedef struct text_writer {
    char *out;
    size_t bytes, used;
} text_writer;

static void add(text_writer *text, const char *format, ...) PRINTF_LIKE(2, 3);
static void add(text_writer *text, const char *format, ...) {
    va_list values;
    if (text->used >= text->bytes) return;
    va_start(values, format);
    text->used += (size_t)vsnprintf(text->out + text->used, text->bytes - text->used, format, values);
    va_end(values);
}

const char *sampler_text(const gmem_sampler_desc *sampler, char *out, size_t bytes) {
    text_writer text = {out, bytes, 0};
    char name[64];
    unsigned family = family_of(sampler->method);
    add(&text, "steps %d", sampler->steps);
    add(&text, ", path %s", choice_name(FLAG_path, (int)sampler->path + 1, name, sizeof name));
    add(&text, ", prediction %s", choice_name(FLAG_prediction, (int)sampler->prediction + 1, name, sizeof name));
    if (family & (FAMILY_ODE | FAMILY_ADAPTIVE)) add(&text, ", timestep-shift %g", sampler->timestep_shift);
    if (family & FAMILY_ADAPTIVE) add(&text, ", atol %g, rtol %g", sampler->atol, sampler->rtol);
    if (family & FAMILY_SDE) {
        add(&text, ", diffusion-form %s",
            choice_name(FLAG_diffusion_form, (int)sampler->diffusion_form, name, sizeof name));
        add(&text, ", diffusion-norm %g", sampler->diffusion_norm);
        add(&text, ", last-step %s", choice_name(FLAG_last_step, (int)sampler->last_step, name, sizeof name));
        add(&text, ", last-step-size %g", sampler->last_step_size > 0 ? sampler->last_step_size : 0.0);
    }
    if (sampler->cfg_scale > 1) {
        add(&text, ", cfg-scale %g, cfg-interval %g", sampler->cfg_scale, sampler->cfg_start);
        if (sampler->cfg_end > 0) add(&text, ",%g", sampler->cfg_end);
        if (sampler->cfg_channels > 0) add(&text, ", cfg-channels %d", sampler->cfg_channels);
    }
    if (sampler->cache_threshold > 0) add(&text, ", cache-threshold %g", sampler->cache_threshold);
    return out;
}

void sampler_note_reuse(const gmem_sampler_desc *sampler, const gmem_reuse *reuse) {
    if (sampler->cache_threshold > 0)
        note("%lld of %lld passes reused", (long long)reuse->reused, (long long)reuse->passes);
}
