/* gmem bench network: a pass in the steady state of a sampling run, against what the machine could do. */
#include "bench.h"
#include "interrupt.h"
#include "machine.h"
#include "session.h"

#include <string.h>

#define RUN_STEPS   50
#define MOST_PASSES (2 * RUN_STEPS)

/* Where passes take long, the run is cut short. */
#define FEWEST_PASSES  15
#define ENOUGH_SECONDS 30.0

/* The passes of a published run (SDE Heun, 50 steps, batch 1) one after the other. Their adaLN projections are computed
 * beforehand, all together, as the sampler does; that time is spread over the passes. */
typedef struct benchmark {
    session s;
    float *x, *v, *snippet;
    int64_t label;
    gmem_pass *pass;
    double usual;                /* seconds of a pass, roughly */
    double prepare;              /* seconds */
    double seconds[MOST_PASSES]; /* of each pass */
    network_result *out;
} benchmark;

static void fill_inputs(benchmark *b) {
    const gmem_network_info *info = b->s.network_info;
    gmem_rng rng;
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 0);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, info->channels * info->height * info->width, b->x);
    for (int64_t i = 0; i < info->snippet_width; i++) {
        b->snippet[i] = i == 0 ? 1.0f : 0.0f;
    }
}

static outcome one_pass(benchmark *b, double t, double *seconds, gmem_error *error) {
    float time = (float)t;
    int has_snippet = b->s.network_info->snippet_width > 0;
    double start = seconds_now();
    gmem_status status = gmem_pass_run(b->pass, 1, b->x, &time, has_snippet ? b->snippet : NULL,
                                       has_snippet ? NULL : &b->label, b->v, error);
    *seconds = seconds_now() - start;
    return in_network(&b->s, status, error);
}

/* The very first pass, with its buffers and with weights that may still lie on the disk; and another one. */
static outcome time_first_passes(benchmark *b, gmem_error *error) {
    double start = seconds_now(), unused;
    TRY(in_network(&b->s, gmem_pass_create(b->s.network, 1, &b->pass, error), error));
    TRY(one_pass(b, 0.5, &unused, error));
    b->out->first = seconds_now() - start;
    return one_pass(b, 0.5, &b->usual, error);
}

static outcome prepare(benchmark *b, const double *times, gmem_error *error) {
    float distinct[MOST_PASSES];
    int64_t count = 0;
    int has_snippet = b->s.network_info->snippet_width > 0;
    for (int64_t i = 0; i < b->out->passes; i++) {
        if (i == 0 || times[i] != times[i - 1]) distinct[count++] = (float)times[i];
    }
    double start = seconds_now();
    gmem_status status = gmem_pass_prepare(b->pass, count, distinct, 1, has_snippet ? b->snippet : NULL,
                                           has_snippet ? NULL : &b->label, 0, error);
    b->prepare = seconds_now() - start;
    return in_network(&b->s, status, error);
}

static int64_t worthwhile_passes(double usual, int64_t most) {
    const double enough = ENOUGH_SECONDS / usual;
    return most <= FEWEST_PASSES || enough > (double)most ? most
           : enough < FEWEST_PASSES                       ? FEWEST_PASSES
                                                          : (int64_t)enough;
}

static double clock_of_profile(void *user) {
    (void)user;
    return seconds_now();
}

static outcome time_run(benchmark *b, gmem_error *error) {
    gmem_sampler_desc sampler;
    double times[MOST_PASSES];
    progress_bar bar;
    outcome result = OUTCOME_DONE;
    memset(&sampler, 0, sizeof sampler);
    sampler.method = GMEM_SDE_HEUN;
    sampler.steps = RUN_STEPS;
    TRY(from_status(gmem_sampler_check(&sampler, 0, &sampler, error)));
    b->out->passes = worthwhile_passes(b->usual, gmem_sampler_times(&sampler, times, MOST_PASSES));
    b->out->profile.clock = clock_of_profile;
    b->out->profiled = b->s.args->profile;
    gmem_pass_profile(b->pass, b->out->profiled ? &b->out->profile : NULL);
    TRY(prepare(b, times, error));
    progress_begin(&bar);
    for (int64_t i = 0; i < b->out->passes && result == OUTCOME_DONE; i++) {
        result = interrupt_check(error);
        if (result == OUTCOME_DONE) result = one_pass(b, times[i], &b->seconds[i], error);
        progress_show(&bar, i + 1, b->out->passes, "passes");
    }
    progress_end(&bar);
    return result;
}

/* The share of the weights that every pass reads: adaLN's are read once for many times and conditions. */
static double share_of_a_pass(const gmem_network_info *info) {
    const int64_t modulations = info->depth * (info->shift ? 6 : 4) + 2;
    return 1 - (double)(modulations * info->hidden * info->hidden) / (double)info->parameters;
}

static void evaluate(benchmark *b, bench_machine *machine) {
    network_result *out = b->out;
    const gmem_network_info *info = b->s.network_info;
    const gmem_context *context = b->s.context;
    out->total = b->prepare;
    for (int64_t i = 0; i < out->passes; i++) {
        out->total += b->seconds[i];
    }
    out->median = bench_summary(b->seconds, out->passes).median + b->prepare / (double)out->passes;
    out->resident = resident_bytes_peak(); /* before the measurements, which take memory of their own */
    const double weights = bench_weight_bytes(context, info->parameters, info->weight_bytes);
    out->figures = bench_evaluate(machine, context, info->flop, share_of_a_pass(info) * weights, out->median);
    out->bandwidth = bench_context_bandwidth(machine, context);
    out->engine = bench_engine_of(context);
    snprintf(out->path, sizeof out->path, "%s", gmem_file_path(b->s.network_file));
    snprintf(out->architecture, sizeof out->architecture, "%s", info->name);
}

static outcome run(benchmark *b, bench_machine *machine, gmem_error *error) {
    TRY(open_network(&b->s, error));
    const gmem_network_info *info = b->s.network_info;
    b->x = session_floats(&b->s, info->channels * info->height * info->width);
    b->v = session_floats(&b->s, info->channels * info->height * info->width);
    b->snippet = session_floats(&b->s, info->snippet_width + 1);
    if (!b->x || !b->v || !b->snippet) return out_of_memory(error);
    fill_inputs(b);
    TRY(time_first_passes(b, error));
    TRY(time_run(b, error));
    evaluate(b, machine);
    note("backend: %s", gmem_context_backend(b->s.context));
    return OUTCOME_DONE;
}

outcome measure_network(const arguments *args, bench_machine *machine, network_result *out, gmem_error *error) {
    benchmark b;
    memset(&b, 0, sizeof b);
    b.out = out;
    outcome result = session_begin(&b.s, args, error);
    if (result == OUTCOME_DONE) result = run(&b, machine, error);
    gmem_pass_destroy(b.pass);
    session_end(&b.s);
    return result;
}

/* printing -------------------------------------------------------------------------------------------------------- */

/* A line of the profile, an average pass: what it took, of it all, at which rate. */
static void print_operation(const network_result *r, json_writer *json, const char *name, double calls, double seconds,
                            double flop) {
    const double passes = (double)r->passes, gflops = seconds > 0 ? 1e-9 * flop / seconds : 0;
    if (!json) {
        printf("%-20s %7.1f calls %10.3f ms %6.2f %%", name, calls / passes, 1e3 * seconds / passes,
               100 * seconds / r->total);
        if (flop > 0) printf(" %9.1f GFLOP/s", gflops);
        printf("\n");
        return;
    }
    json_open(json, NULL, '{');
    json_text(json, "operation", name);
    json_number(json, "calls", calls / passes);
    json_number(json, "seconds", seconds / passes);
    json_number(json, "share", seconds / r->total);
    json_number(json, "gflops", gflops);
    json_close(json, '}');
}

static void print_profile(const network_result *r, json_writer *json) {
    double rest = r->total;
    if (json)
        json_open(json, "profile", '[');
    else
        printf("profile of an average pass of %.3f ms:\n", 1e3 * r->total / (double)r->passes);
    for (int i = 0; i < GMEM_OPERATION_COUNT; i++) {
        const double calls = (double)r->profile.operations[i].calls, seconds = r->profile.operations[i].seconds;
        rest -= seconds;
        if (calls > 0)
            print_operation(r, json, gmem_operation_name((gmem_operation)i), calls, seconds,
                            r->profile.operations[i].flop);
    }
    print_operation(r, json, "rest", 0, rest, 0);
    if (json) json_close(json, ']');
}

void print_network(const network_result *r, json_writer *json, const char *key) {
    put_begin(json, key, "a pass of the network");
    put_text(json, "network", r->path);
    put_text(json, "architecture", r->architecture);
    put_number(json, "seconds_median", r->median);
    put_number(json, "seconds_first", r->first);
    put_integer(json, "passes", r->passes);
    put_figures(json, &r->figures);
    put_number(json, "bandwidth_gb", 1e-9 * r->bandwidth);
    put_bench_engine(json, &r->engine);
    put_integer(json, "resident_bytes", r->resident);
    if (r->profiled) print_profile(r, json);
    put_end(json);
}
