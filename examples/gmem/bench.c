/* What the benchmarks share, and all of them in one go. */
#include "bench.h"

#include "backend.h"
#include "commands.h"
#include "machine.h"
#include "model.h"
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* limits ---------------------------------------------------------------------------------------------------------- */

double bench_peak(bench_machine *machine, peak_kind kind, int threads) {
    if (machine->peaks[kind] == 0 && peak_exists(kind)) machine->peaks[kind] = measure_peak(kind, threads);
    return machine->peaks[kind];
}

double bench_bandwidth(bench_machine *machine, int threads) {
    if (machine->bandwidth == 0) machine->bandwidth = measure_bandwidth(threads);
    return machine->bandwidth;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bench_times bench_summary(double *seconds, int64_t count) {
    bench_times times;
    qsort(seconds, (size_t)count, sizeof *seconds, compare_doubles);
    times.median = seconds[count / 2];
    times.least = seconds[0];
    times.most = seconds[count - 1];
    times.count = count;
    return times;
}

double bench_weight_bytes(const gmem_context *context, int64_t count, int64_t stored_bytes) {
    static const double bytes[] = {4, 2, 1, 2}; /* by gmem_compute */
    double computed = bytes[gmem_context_compute(context)] * (double)count;
    return computed < (double)stored_bytes ? computed : (double)stored_bytes;
}

/* What the context's kernels could do at most. An OpenCL device that runs on this processor has its f32 instructions;
 * of others nothing is known: not a number. */
static double peak_of_context(bench_machine *machine, const gmem_context *context) {
    const int threads = gmem_context_threads(context);
    if (!is_opencl(context)) return bench_peak(machine, peak_of_kernels(gmem_context_kernels(context)), threads);
    if (!is_opencl_on_cpu(context)) return NAN;
    return bench_peak(machine,
                      peak_exists(PEAK_AVX512_F32) ? PEAK_AVX512_F32
                      : peak_exists(PEAK_AVX2_F32) ? PEAK_AVX2_F32
                                                   : PEAK_SCALAR,
                      threads);
}

double bench_context_bandwidth(bench_machine *machine, const gmem_context *context) {
    if (is_opencl(context) && !is_opencl_on_cpu(context)) return NAN;
    return bench_bandwidth(machine, gmem_context_threads(context));
}

bench_figures bench_evaluate(bench_machine *machine, const gmem_context *context, double flop, double weight_bytes,
                             double seconds) {
    const double peak = peak_of_context(machine, context), bandwidth = bench_context_bandwidth(machine, context);
    const double arithmetic = flop / peak, reading = bandwidth > 0 ? weight_bytes / bandwidth : 0;
    if (!isfinite(peak)) note("no limit is known for %s: its peak is not measured", gmem_context_backend(context));
    bench_figures figures;
    figures.gflops = 1e-9 * flop / seconds;
    figures.peak_gflops = 1e-9 * peak;
    figures.fraction_of_peak = arithmetic / seconds;
    figures.limit_seconds = arithmetic > reading ? arithmetic : reading;
    figures.fraction_of_limit = figures.limit_seconds / seconds;
    return figures;
}

/* printing -------------------------------------------------------------------------------------------------------- */

void put_text(json_writer *json, const char *name, const char *value) {
    char plain[1024];
    if (json)
        json_text(json, name, value);
    else
        printf("%-18s %s\n", name, gmem_escape(value, plain, sizeof plain));
}

void put_number(json_writer *json, const char *name, double value) {
    if (json)
        json_number(json, name, value);
    else if (isfinite(value))
        printf("%-18s %.4g\n", name, value);
    else
        printf("%-18s not known\n", name);
}

void put_integer(json_writer *json, const char *name, int64_t value) {
    if (json)
        json_integer(json, name, value);
    else
        printf("%-18s %lld\n", name, (long long)value);
}

void put_figures(json_writer *json, const bench_figures *figures) {
    put_number(json, "gflops", figures->gflops);
    put_number(json, "peak_gflops", figures->peak_gflops);
    put_number(json, "fraction_of_peak", figures->fraction_of_peak);
    put_number(json, "limit_seconds", figures->limit_seconds);
    put_number(json, "fraction_of_limit", figures->fraction_of_limit);
}

void put_begin(json_writer *json, const char *key, const char *headline) {
    char plain[1200];
    if (json)
        json_open(json, key, '{');
    else
        printf("%s\n", gmem_escape(headline, plain, sizeof plain));
}

void put_end(json_writer *json) {
    if (json) json_close(json, '}');
}

bench_engine bench_engine_of(const gmem_context *context) {
    bench_engine engine;
    snprintf(engine.backend, sizeof engine.backend, "%s", gmem_context_backend(context));
    choice_name(FLAG_isa, (int)gmem_context_isa(context) + 1, engine.isa, sizeof engine.isa);
    if (is_opencl(context)) snprintf(engine.isa, sizeof engine.isa, "opencl");
    snprintf(engine.kernels, sizeof engine.kernels, "%s", gmem_context_kernels(context));
    snprintf(engine.dtype, sizeof engine.dtype, "%s", compute_name(gmem_context_compute(context)));
    engine.threads = gmem_context_threads(context);
    return engine;
}

void put_bench_engine(json_writer *json, const bench_engine *engine) {
    char cpu[256];
    put_text(json, "backend", engine->backend);
    put_text(json, "isa", engine->isa);
    put_text(json, "kernels", engine->kernels);
    put_text(json, "dtype", engine->dtype);
    put_text(json, "cpu", cpu_model(cpu, sizeof cpu));
    put_integer(json, "threads", engine->threads);
}

/* the commands ---------------------------------------------------------------------------------------------------- */

#define BENCH_COMMAND(name, result_type, measure, print)     \
    outcome name(const arguments *args, gmem_error *error) { \
        static result_type result;                           \
        bench_machine machine;                               \
        json_writer json;                                    \
        memset(&machine, 0, sizeof machine);                 \
        memset(&result, 0, sizeof result);                   \
        TRY(measure);                                        \
        if (args->json) json_begin(&json, stdout);           \
        print(&result, args->json ? &json : NULL, NULL);     \
        return OUTCOME_DONE;                                 \
    }

BENCH_COMMAND(command_bench_network, network_result, measure_network(args, &machine, &result, error), print_network)
BENCH_COMMAND(command_bench_autoencoder, autoencoder_result, measure_autoencoder(args, &machine, &result, error),
              print_autoencoder)
BENCH_COMMAND(command_bench_encoder, encoder_result, measure_encoder(args, &machine, &result, error), print_encoder)
BENCH_COMMAND(command_bench_gemm, gemm_result, measure_gemm(args, &machine, &result, error), print_gemm)

outcome command_bench_bank(const arguments *args, gmem_error *error) {
    bank_result result;
    bench_machine machine;
    json_writer json;
    memset(&machine, 0, sizeof machine);
    memset(&result, 0, sizeof result);
    TRY(measure_bank(args, &machine, &result, error));
    if (spread_is_possible(args)) TRY(measure_spread(args, &result.spread, error));
    if (args->json) json_begin(&json, stdout);
    print_bank(&result, args->json ? &json : NULL, NULL);
    return OUTCOME_DONE;
}

/* all of them ----------------------------------------------------------------------------------------------------- */

enum { DTYPES = 3 };
static const int dtype_choices[DTYPES] = {1, 2, 4}; /* of --dtype: f32, bf16, int8 */

typedef struct all_results {
    network_result network[DTYPES];
    autoencoder_result autoencoder[DTYPES];
    encoder_result encoder[DTYPES];
    int has_encoder; /* named, or built in */
    bank_result bank;
    gemm_result gemm;
    int dtypes; /* how many of them were measured */
} all_results;

static outcome measure_all(const arguments *args, bench_machine *machine, all_results *all, gmem_error *error) {
    /* parts of what the flags name need not fit together: an autoencoder is measured for itself */
    arguments network = *args, autoencoder = *args, encoder = *args, bank = *args;
    size_t bytes;
    network.profile = 1;
    autoencoder.network = NULL;
    all->has_encoder = args->image_encoder || model_data(MODEL_IMAGE_ENCODER, &bytes);
    if (!bank.bank.count) bank.network = NULL;
    TRY(measure_bank(&bank, machine, &all->bank, error)); /* first, while nothing has been opened */
    for (all->dtypes = 0; all->dtypes < (args->dtype ? 1 : DTYPES); all->dtypes++) {
        network.dtype = autoencoder.dtype = encoder.dtype = args->dtype ? args->dtype : dtype_choices[all->dtypes];
        TRY(measure_network(&network, machine, &all->network[all->dtypes], error));
        TRY(measure_autoencoder(&autoencoder, machine, &all->autoencoder[all->dtypes], error));
        if (all->has_encoder) TRY(measure_encoder(&encoder, machine, &all->encoder[all->dtypes], error));
    }
    TRY(measure_gemm(args, machine, &all->gemm, error));
    for (int i = 0; i < PEAK_COUNT; i++) {
        bench_peak(machine, (peak_kind)i, all->network[0].engine.threads);
    }
    return OUTCOME_DONE;
}

static void print_machine(const bench_machine *machine, int threads, json_writer *json) {
    char cpu[256];
    put_begin(json, "machine", "machine");
    put_text(json, "cpu", cpu_model(cpu, sizeof cpu));
    put_integer(json, "threads", threads);
    put_number(json, "bandwidth_gb", 1e-9 * machine->bandwidth);
    put_begin(json, "peak_gflops", "peaks, GFLOP/s");
    for (int i = 0; i < PEAK_COUNT; i++) {
        if (machine->peaks[i] > 0) put_number(json, peak_name((peak_kind)i), 1e-9 * machine->peaks[i]);
    }
    put_end(json);
    put_end(json);
}

/* What was measured in one type. */
static void print_models(const all_results *all, int i, json_writer *json) {
    const char *dtype = all->network[i].engine.dtype;
    char key[64];
    if (!json) printf("\n");
    snprintf(key, sizeof key, "network_%s", dtype);
    print_network(&all->network[i], json, key);
    if (!json) printf("\n");
    snprintf(key, sizeof key, "autoencoder_%s", dtype);
    print_autoencoder(&all->autoencoder[i], json, key);
    if (!all->has_encoder) return;
    if (!json) printf("\n");
    snprintf(key, sizeof key, "encoder_%s", dtype);
    print_encoder(&all->encoder[i], json, key);
}

outcome command_bench_all(const arguments *args, gmem_error *error) {
    static all_results all;
    json_writer writer, *json = args->json ? &writer : NULL;
    bench_machine machine;
    memset(&machine, 0, sizeof machine);
    memset(&all, 0, sizeof all);
    TRY(measure_all(args, &machine, &all, error));
    if (json) json_begin(json, stdout);
    put_begin(json, NULL, "all benchmarks");
    print_machine(&machine, all.network[0].engine.threads, json);
    for (int i = 0; i < all.dtypes; i++)
        print_models(&all, i, json);
    if (!json) printf("\n");
    print_bank(&all.bank, json, "bank");
    if (!json) printf("\n");
    print_gemm(&all.gemm, json, "gemm");
    put_end(json);
    return OUTCOME_DONE;
}
