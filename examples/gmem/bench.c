/* gmem bench network: a pass in the steady state of a sampling run, against what the machine could do. */
#include "commands.h"
#include "interrupt.h"
#include "machine.h"
#include "session.h"

#include <stdlib.h>
#include <string.h>

#define RUN_STEPS   50
#define MOST_PASSES (2 * RUN_STEPS)

/* The passes of a published run (SDE Heun, 50 steps, batch 1) one after the other. Their adaLN projections are computed
 * beforehand, all together, as the sampler does; that time is spread over the passes. */
typedef struct benchmark {
    session s;
    float *x, *v, *snippet;
    int64_t label;
    gmem_pass *pass;
    double first, prepare;       /* seconds of the very first pass, nothing prepared; and of preparing */
    double seconds[MOST_PASSES]; /* of each pass */
    int64_t passes;
} benchmark;

typedef struct figures {
    double median, peak, bandwidth, gflops, limit, fraction_of_peak, fraction_of_limit;
} figures;

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

/* The very first pass, with its buffers and with weights that may still lie on the disk. */
static outcome time_first_pass(benchmark *b, gmem_error *error) {
    double start = seconds_now(), unused;
    TRY(in_network(&b->s, gmem_pass_create(b->s.network, 1, &b->pass, error), error));
    TRY(one_pass(b, 0.5, &unused, error));
    b->first = seconds_now() - start;
    return OUTCOME_DONE;
}

static outcome prepare(benchmark *b, const double *times, gmem_error *error) {
    float distinct[MOST_PASSES];
    int64_t count = 0;
    int has_snippet = b->s.network_info->snippet_width > 0;
    for (int64_t i = 0; i < b->passes; i++) {
        if (i == 0 || times[i] != times[i - 1]) distinct[count++] = (float)times[i];
    }
    double start = seconds_now();
    gmem_status status = gmem_pass_prepare(b->pass, count, distinct, 1, has_snippet ? b->snippet : NULL,
                                           has_snippet ? NULL : &b->label, 0, error);
    b->prepare = seconds_now() - start;
    return in_network(&b->s, status, error);
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
    b->passes = gmem_sampler_times(&sampler, times, MOST_PASSES);
    TRY(prepare(b, times, error));
    progress_begin(&bar);
    for (int64_t i = 0; i < b->passes && result == OUTCOME_DONE; i++) {
        result = interrupt_check(error);
        if (result == OUTCOME_DONE) result = one_pass(b, times[i], &b->seconds[i], error);
        progress_show(&bar, i + 1, b->passes, "passes");
    }
    progress_end(&bar);
    return result;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double seconds_a_pass(benchmark *b) {
    qsort(b->seconds, (size_t)b->passes, sizeof *b->seconds, compare_doubles);
    return b->seconds[b->passes / 2] + b->prepare / (double)b->passes;
}

static figures evaluate_times(benchmark *b) {
    const gmem_network_info *info = b->s.network_info;
    figures r;
    r.median = seconds_a_pass(b);
    r.peak = measure_peak_flops(gmem_context_isa(b->s.context), gmem_context_threads(b->s.context));
    r.bandwidth = measure_bandwidth(gmem_context_threads(b->s.context));
    double arithmetic = info->flop / r.peak;
    double memory = r.bandwidth > 0 ? (double)info->weight_bytes / r.bandwidth : 0;
    r.gflops = 1e-9 * info->flop / r.median;
    r.limit = arithmetic > memory ? arithmetic : memory;
    r.fraction_of_peak = 1e9 * r.gflops / r.peak;
    r.fraction_of_limit = r.limit / r.median;
    return r;
}

static void print_result(const benchmark *b, const figures *r, int64_t resident) {
    char cpu[256], isa[16], plain[1024];
    json_writer json;
    choice_name(FLAG_isa, (int)gmem_context_isa(b->s.context) + 1, isa, sizeof isa);
    cpu_model(cpu, sizeof cpu);
    if (!b->s.args->json) {
        printf("%s, %s\n", gmem_escape(gmem_file_path(b->s.network_file), plain, sizeof plain),
               b->s.network_info->name);
        printf("seconds_median    %.6g\nseconds_first     %.6g\npasses            %lld\n", r->median, b->first,
               (long long)b->passes);
        printf("gflops            %.4g\npeak_gflops       %.4g\nfraction_of_peak  %.3f\n", r->gflops, 1e-9 * r->peak,
               r->fraction_of_peak);
        printf("limit_seconds     %.6g\nfraction_of_limit %.3f\n", r->limit, r->fraction_of_limit);
        printf("isa               %s\ncpu               %s\nthreads           %d\nresident_bytes    %lld\n", isa, cpu,
               gmem_context_threads(b->s.context), (long long)resident);
        return;
    }
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "network", gmem_file_path(b->s.network_file));
    json_text(&json, "architecture", b->s.network_info->name);
    json_number(&json, "seconds_median", r->median);
    json_number(&json, "seconds_first", b->first);
    json_integer(&json, "passes", b->passes);
    json_number(&json, "gflops", r->gflops);
    json_number(&json, "peak_gflops", 1e-9 * r->peak);
    json_number(&json, "fraction_of_peak", r->fraction_of_peak);
    json_number(&json, "limit_seconds", r->limit);
    json_number(&json, "fraction_of_limit", r->fraction_of_limit);
    json_number(&json, "bandwidth_gb", 1e-9 * r->bandwidth);
    json_text(&json, "isa", isa);
    json_text(&json, "dtype", "f32");
    json_text(&json, "cpu", cpu);
    json_integer(&json, "threads", gmem_context_threads(b->s.context));
    json_integer(&json, "resident_bytes", resident);
    json_close(&json, '}');
}

static outcome bench_network(benchmark *b, gmem_error *error) {
    TRY(open_network(&b->s, error));
    const gmem_network_info *info = b->s.network_info;
    b->x = session_floats(&b->s, info->channels * info->height * info->width);
    b->v = session_floats(&b->s, info->channels * info->height * info->width);
    b->snippet = session_floats(&b->s, info->snippet_width + 1);
    if (!b->x || !b->v || !b->snippet) return out_of_memory(error);
    fill_inputs(b);
    TRY(time_first_pass(b, error));
    TRY(time_run(b, error));
    int64_t resident = resident_bytes_peak(); /* before the measurements, which take memory of their own */
    figures r = evaluate_times(b);
    note("backend: %s", gmem_context_backend(b->s.context));
    print_result(b, &r, resident);
    return OUTCOME_DONE;
}

outcome command_bench_network(const arguments *args, gmem_error *error) {
    benchmark b;
    memset(&b, 0, sizeof b);
    outcome result = session_begin(&b.s, args, error);
    if (result == OUTCOME_DONE) result = bench_network(&b, error);
    gmem_pass_destroy(b.pass);
    session_end(&b.s);
    return result;
}
