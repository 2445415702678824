/* gmem bench autoencoder: the decoding of one picture, against what the machine could do. */
#include "bench.h"
#include "interrupt.h"
#include "machine.h"
#include "session.h"

#include <string.h>

#define FEWEST_RUNS    3
#define MOST_RUNS      15
#define ENOUGH_SECONDS 5.0
#define PICTURE        256 /* pixels on a side, of published autoencoders */

typedef struct benchmark {
    session s;
    int64_t height, width; /* of the latent */
    float *z, *out;
} benchmark;

/* The built-in autoencoder decodes the latents of the built-in network. */
static outcome choose_size(benchmark *b, gmem_error *error) {
    b->height = b->width = PICTURE / b->s.autoencoder_info->factor;
    if (b->s.args->autoencoder) return OUTCOME_DONE;
    TRY(open_network(&b->s, error));
    b->height = b->s.network_info->height;
    b->width = b->s.network_info->width;
    return OUTCOME_DONE;
}

static outcome fill_inputs(benchmark *b, gmem_error *error) {
    const gmem_autoencoder_info *info = b->s.autoencoder_info;
    const int64_t latent = info->latent_channels * b->height * b->width;
    gmem_rng rng;
    b->z = session_floats(&b->s, latent);
    b->out = session_floats(&b->s, 3 * info->factor * info->factor * b->height * b->width);
    if (!b->z || !b->out) return out_of_memory(error);
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 0);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, latent, b->z);
    return OUTCOME_DONE;
}

static outcome decode(benchmark *b, double *seconds, gmem_error *error) {
    double start = seconds_now();
    gmem_status status = gmem_decode(b->s.autoencoder, 1, b->height, b->width, b->z, b->out, error);
    *seconds = seconds_now() - start;
    return in_autoencoder(&b->s, status, error);
}

static outcome run(benchmark *b, bench_machine *machine, autoencoder_result *r, gmem_error *error) {
    double seconds[MOST_RUNS], begun;
    int64_t count = 0;
    TRY(open_autoencoder(&b->s, error));
    TRY(choose_size(b, error));
    TRY(fill_inputs(b, error));
    TRY(decode(b, &r->first, error));
    begun = seconds_now();
    while (count < FEWEST_RUNS || (count < MOST_RUNS && seconds_now() - begun < ENOUGH_SECONDS)) {
        TRY(interrupt_check(error));
        TRY(decode(b, &seconds[count++], error));
    }
    const gmem_autoencoder_info *info = b->s.autoencoder_info;
    r->times = bench_summary(seconds, count);
    r->resident = resident_bytes_peak();
    r->flop = gmem_decode_flop(b->s.autoencoder, b->height, b->width);
    r->figures =
        bench_evaluate(machine, b->s.context, r->flop, 0, r->times.median); /* weights are read again in cache */
    r->engine = bench_engine_of(b->s.context);
    r->height = b->height * info->factor;
    r->width = b->width * info->factor;
    snprintf(r->path, sizeof r->path, "%s", gmem_file_path(b->s.autoencoder_file));
    note("backend: %s", gmem_context_backend(b->s.context));
    return OUTCOME_DONE;
}

outcome measure_autoencoder(const arguments *args, bench_machine *machine, autoencoder_result *out, gmem_error *error) {
    benchmark b;
    memset(&b, 0, sizeof b);
    outcome result = session_begin(&b.s, args, error);
    if (result == OUTCOME_DONE) result = run(&b, machine, out, error);
    session_end(&b.s);
    return result;
}

void print_autoencoder(const autoencoder_result *r, json_writer *json, const char *key) {
    put_begin(json, key, "a decoding by the autoencoder");
    put_text(json, "autoencoder", r->path);
    put_integer(json, "height", r->height);
    put_integer(json, "width", r->width);
    put_number(json, "seconds_median", r->times.median);
    put_number(json, "seconds_min", r->times.least);
    put_number(json, "seconds_max", r->times.most);
    put_number(json, "seconds_first", r->first);
    put_integer(json, "runs", r->times.count);
    put_number(json, "flop", r->flop);
    put_figures(json, &r->figures);
    put_bench_engine(json, &r->engine);
    put_integer(json, "resident_bytes", r->resident);
    put_end(json);
}
