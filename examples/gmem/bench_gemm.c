/* gmem bench gemm: the linear layers of a GMem XL/1 block, in every instruction set and type that this machine has, or
 * on an OpenCL device in the type of --dtype.
 * Each is compared with a plain sum of products before it is timed, and timed with empty caches: in a pass, the weights
 * of a layer come from memory and its input from the layer before. */
#include "backend.h"
#include "bench.h"
#include "interrupt.h"
#include "machine.h"
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS 256 /* tokens of a picture */
#define RUNS    9
#define CHECKED 8 /* columns, spread over all */

typedef struct layer {
    const char *name;
    int64_t rows, depth;
} layer;

static const layer layers[] = {
    {"qkv", 3456, 1152}, {"proj", 1152, 1152}, {"mlp_in", 6144, 1152}, {"mlp_out", 1152, 3072}};
enum { LAYERS = sizeof layers / sizeof *layers };

/* The relative error that a type's rounding of both operands may cost. */
static double bar_of(gmem_compute compute) {
    static const double bars[] = {1e-6, 4e-3, 2e-2, 5e-4}; /* by gmem_compute */
    return bars[compute];
}

typedef struct benchmark {
    const arguments *args;
    bench_machine *machine;
    gemm_result *out;
    float *w, *x, *y; /* (rows, depth), (depth, columns), (rows, columns) of the largest layers */
    double *expected; /* (rows, CHECKED) of the present layer */
    char *flush;
    int64_t flush_bytes;
} benchmark;

static void fill(float *values, int64_t count, int64_t stream, double scale) {
    gmem_rng rng;
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, (uint64_t)stream);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, count, values);
    for (int64_t i = 0; i < count; i++) {
        values[i] = (float)(values[i] * scale);
    }
}

/* expected = W x in double, for the columns that are checked. */
static void compute_expected(const benchmark *b, const layer *l) {
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
#endif
    for (int64_t row = 0; row < l->rows; row++) {
        double sums[CHECKED] = {0};
        for (int64_t k = 0; k < l->depth; k++) {
            const float *x = b->x + k * COLUMNS;
            for (int i = 0; i < CHECKED; i++) {
                sums[i] += (double)b->w[row * l->depth + k] * (double)x[i * (COLUMNS / CHECKED) + i];
            }
        }
        memcpy(b->expected + row * CHECKED, sums, sizeof sums);
    }
}

static double relative_error(const benchmark *b, const layer *l) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < l->rows * CHECKED; i++) {
        int64_t column = i % CHECKED;
        double d = b->y[i / CHECKED * COLUMNS + column * (COLUMNS / CHECKED) + column] - b->expected[i];
        difference += d * d;
        norm += b->expected[i] * b->expected[i];
    }
    return sqrt(difference / norm);
}

static void flush_caches(const benchmark *b, int threads) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int64_t i = 0; i < b->flush_bytes; i += 64) {
        b->flush[i]++;
    }
    (void)threads;
}

/* The input, which the layer before has just written, back into the caches. */
static void touch_input(const benchmark *b, const layer *l) {
    volatile float sink = 0;
    for (int64_t i = 0; i < l->depth * COLUMNS; i += 16) {
        sink = sink + b->x[i];
    }
}

static outcome time_layer(benchmark *b, const gmem_context *context, gmem_linear *linear, const layer *l, int runs,
                          gemm_line *line, gmem_error *error) {
    double seconds[RUNS];
    for (int run = 0; run < runs; run++) {
        TRY(interrupt_check(error));
        flush_caches(b, gmem_context_threads(context));
        touch_input(b, l);
        double start = seconds_now();
        TRY(from_status(gmem_linear_run(linear, COLUMNS, b->x, b->y, error)));
        seconds[run] = seconds_now() - start;
    }
    const double weights = (double)(l->rows * l->depth);
    line->times = bench_summary(seconds, runs);
    line->figures =
        bench_evaluate(b->machine, context, 2 * weights * COLUMNS,
                       bench_weight_bytes(context, l->rows * l->depth, 4 * l->rows * l->depth), line->times.median);
    return OUTCOME_DONE;
}

static outcome measure_layer(benchmark *b, gmem_context *context, const layer *l, gmem_error *error) {
    const int64_t shape[2] = {l->rows, l->depth};
    const gmem_tensor weight = gmem_tensor_make(l->name, GMEM_F32, 2, shape, b->w);
    gmem_linear *linear = NULL;
    gemm_line *line = &b->out->lines[b->out->count];
    TRY(from_status(gmem_linear_create(context, &weight, NULL, &linear, error)));
    outcome result = from_status(gmem_linear_run(linear, COLUMNS, b->x, b->y, error));
    line->layer = l->name;
    line->rows = l->rows;
    line->depth = l->depth;
    line->engine = bench_engine_of(context);
    line->error = relative_error(b, l);
    if (result == OUTCOME_DONE && !(line->error < bar_of(gmem_context_compute(context))))
        result = failed(error, NULL, "%s by %s in %s is wrong: relative error %g", l->name, line->engine.kernels,
                        line->engine.dtype, line->error);
    const int runs = gmem_context_isa(context) == GMEM_ISA_SCALAR ? 3 : RUNS;
    if (result == OUTCOME_DONE) result = time_layer(b, context, linear, l, runs, line, error);
    if (result == OUTCOME_DONE) b->out->count++;
    gmem_linear_destroy(linear);
    return result;
}

/* One layer in one instruction set and type, where the machine has that. */
static outcome measure_in(benchmark *b, const layer *l, gmem_isa isa, gmem_compute compute, gmem_error *error) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    gmem_error ignored;
    memset(&desc, 0, sizeof desc);
    desc.isa = isa;
    desc.compute = compute;
    desc.backend = GMEM_BACKEND_CPU;
    desc.threads = (int)b->args->threads;
    const gmem_status status = gmem_context_create(&desc, &context, &ignored);
    if (status == GMEM_E_UNSUPPORTED) return OUTCOME_DONE;
    if (status != GMEM_OK) {
        *error = ignored;
        return from_status(status);
    }
    outcome result = measure_layer(b, context, l, error);
    gmem_context_destroy(context);
    return result;
}

static outcome measure_everywhere(benchmark *b, const layer *l, gmem_error *error) {
    static const gmem_compute by_choice[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_F32,
                                             GMEM_COMPUTE_INT8}; /* none, f32, bf16, f16, int8 */
    for (int isa = GMEM_ISA_SCALAR; isa <= GMEM_ISA_AMX; isa++) {
        for (int compute = GMEM_COMPUTE_F32; compute <= GMEM_COMPUTE_INT8; compute++) {
            if (b->args->isa > 1 && isa != b->args->isa - 1) continue;
            if (b->args->dtype && compute != (int)by_choice[b->args->dtype]) continue;
            if (isa == GMEM_ISA_AMX && compute == GMEM_COMPUTE_F32) continue; /* AVX-512's */
            TRY(measure_in(b, l, (gmem_isa)isa, (gmem_compute)compute, error));
        }
    }
    return OUTCOME_DONE;
}

static outcome run(benchmark *b, session *s, gmem_error *error) {
    b->flush_bytes = flushing_bytes();
    b->w = session_floats(s, 6144 * 1152);
    b->x = session_floats(s, 3072 * COLUMNS);
    b->y = session_floats(s, 6144 * COLUMNS);
    b->expected = (double *)session_alloc(s, 6144 * CHECKED, sizeof(double));
    b->flush = (char *)session_alloc(s, b->flush_bytes, 1);
    if (!b->w || !b->x || !b->y || !b->expected || !b->flush) return out_of_memory(error);
    b->out->columns = COLUMNS;
    b->out->bandwidth = bench_bandwidth(b->machine, gmem_context_threads(s->context));
    for (int i = 0; i < LAYERS; i++) {
        fill(b->w, layers[i].rows * layers[i].depth, 2 * i, 0.03);
        fill(b->x, layers[i].depth * COLUMNS, 2 * i + 1, 1);
        compute_expected(b, &layers[i]);
        TRY(is_opencl(s->context) ? measure_layer(b, s->context, &layers[i], error)
                                  : measure_everywhere(b, &layers[i], error));
    }
    return OUTCOME_DONE;
}

outcome measure_gemm(const arguments *args, bench_machine *machine, gemm_result *out, gmem_error *error) {
    session s;
    benchmark b;
    memset(&s, 0, sizeof s);
    memset(&b, 0, sizeof b);
    b.args = args;
    b.machine = machine;
    b.out = out;
    outcome result = session_begin(&s, args, error); /* refuses what cannot be */
    if (result == OUTCOME_DONE) result = run(&b, &s, error);
    session_end(&s);
    return result;
}

/* printing -------------------------------------------------------------------------------------------------------- */

static void print_line(const gemm_line *line, json_writer *json) {
    if (!json) {
        printf("%-8s %-13s %-5s %9.3f %9.3f %9.3f %9.1f %6.1f %% %6.1f %%\n", line->layer, line->engine.kernels,
               line->engine.dtype, 1e3 * line->times.median, 1e3 * line->times.least, 1e3 * line->times.most,
               line->figures.gflops, 100 * line->figures.fraction_of_peak, 100 * line->figures.fraction_of_limit);
        return;
    }
    json_open(json, NULL, '{');
    json_text(json, "layer", line->layer);
    json_integer(json, "rows", line->rows);
    json_integer(json, "depth", line->depth);
    json_text(json, "isa", line->engine.isa);
    json_text(json, "kernels", line->engine.kernels);
    json_text(json, "dtype", line->engine.dtype);
    json_number(json, "error", line->error);
    json_number(json, "seconds_median", line->times.median);
    json_number(json, "seconds_min", line->times.least);
    json_number(json, "seconds_max", line->times.most);
    put_figures(json, &line->figures);
    json_close(json, '}');
}

void print_gemm(const gemm_result *r, json_writer *json, const char *key) {
    char cpu[256];
    put_begin(json, key, "linear layers of XL/1, weights from memory");
    put_text(json, "cpu", cpu_model(cpu, sizeof cpu));
    put_integer(json, "threads", r->count ? r->lines[0].engine.threads : 0);
    put_integer(json, "columns", r->columns);
    put_number(json, "bandwidth_gb", 1e-9 * r->bandwidth);
    if (json)
        json_open(json, "results", '[');
    else
        printf("%-8s %-13s %-5s %9s %9s %9s %9s %8s %8s\n", "layer", "kernels", "dtype", "ms", "least", "most",
               "GFLOP/s", "of peak", "of limit");
    for (int i = 0; i < r->count; i++) {
        print_line(&r->lines[i], json);
    }
    if (json) json_close(json, ']');
    put_end(json);
}
