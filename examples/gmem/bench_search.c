/* gmem bench bank: searching it, for one query and for batches that share the scan. */
#include "bench.h"
#include "interrupt.h"
#include "search.h"

#include <string.h>

#define K    10
#define RUNS 7 /* of the fastest; fewer of what takes long */

static const int64_t batches[SEARCH_LINES] = {1, 16, 256};

/* Rows of the bank, moved a little: what a search is usually for. */
static outcome make_queries(session *s, int64_t count, float *queries, gmem_error *error) {
    const int64_t rows = gmem_bank_rows(s->bank), width = gmem_bank_width(s->bank);
    for (int64_t q = 0; q < count; q++) {
        float *query = queries + q * width;
        TRY(read_snippet(s, (q * 7919 + 13) % rows, query, error));
        for (int64_t i = 0; i < width; i++) {
            query[i] += 0.003f * (float)((i * 31 + q) % 17 - 8);
        }
    }
    return OUTCOME_DONE;
}

static outcome measure_batch(session *s, const gmem_bank *rerank, const float *queries, search_line *line,
                             gmem_error *error) {
    const int runs = line->queries > 64 ? 3 : RUNS;
    double seconds[RUNS];
    gmem_bank_search_desc desc;
    gmem_match *matches = (gmem_match *)session_alloc(s, line->queries * K, sizeof *matches);
    if (!matches) return out_of_memory(error);
    memset(&desc, 0, sizeof desc);
    desc.queries = queries;
    desc.count = line->queries;
    desc.rerank = rerank;
    desc.k = gmem_bank_rows(s->bank) < K ? gmem_bank_rows(s->bank) : K;
    for (int i = -1; i < runs; i++) { /* once before, which may have to bring the bank from the disk */
        double start = seconds_now();
        TRY(in_file(gmem_bank_file_path(s->bank, 0), gmem_bank_search(s->bank, &desc, matches, error), error));
        if (i >= 0) seconds[i] = seconds_now() - start;
        TRY(interrupt_check(error));
    }
    line->times = bench_summary(seconds, runs);
    return OUTCOME_DONE;
}

/* The most that products with rows of this type can do here. */
static double peak_of(bench_machine *machine, gmem_type type, int threads) {
    static const peak_kind wide[] = {PEAK_SCALAR, PEAK_AVX2_F32, PEAK_AVX512_F32, PEAK_AVX512_BF16, PEAK_AMX_BF16};
    static const peak_kind bytes[] = {PEAK_AVX2_INT8, PEAK_AVX_VNNI, PEAK_AVX512_VNNI, PEAK_AMX_INT8};
    double best = 0;
    for (int i = 0; i < 5; i++) {
        double peak = bench_peak(machine, wide[i], threads);
        if (peak > best) best = peak;
    }
    for (int i = 0; type == GMEM_I8 && i < 4; i++) {
        double peak = bench_peak(machine, bytes[i], threads);
        if (peak > best) best = peak;
    }
    return best;
}

static outcome measure_batches(session *s, const gmem_bank *rerank, bench_machine *machine, search_result *out,
                               gmem_error *error) {
    const int64_t rows = gmem_bank_rows(s->bank), width = gmem_bank_width(s->bank);
    const int threads = gmem_context_threads(s->context);
    const double bytes = (double)rows * (double)width * (double)gmem_type_bytes(gmem_bank_type(s->bank));
    float *queries = session_floats(s, batches[SEARCH_LINES - 1] * width);
    if (!queries) return out_of_memory(error);
    TRY(make_queries(s, batches[SEARCH_LINES - 1], queries, error));
    snprintf(out->type, sizeof out->type, "%s", gmem_type_name(gmem_bank_type(s->bank)));
    out->bandwidth = bench_bandwidth(machine, threads);
    out->peak = peak_of(machine, gmem_bank_type(s->bank), threads);
    for (int i = 0; i < SEARCH_LINES; i++) {
        search_line *line = &out->lines[i];
        line->queries = batches[i];
        TRY(measure_batch(s, rerank, queries, line, error));
        line->bytes = bytes;
        line->flop = 2.0 * (double)rows * (double)width * (double)line->queries;
    }
    return OUTCOME_DONE;
}

outcome measure_search(session *s, bench_machine *machine, search_result *out, gmem_error *error) {
    gmem_bank *rerank = NULL;
    outcome result = open_rerank(s, &rerank, error);
    if (result == OUTCOME_DONE) result = measure_batches(s, rerank, machine, out, error);
    gmem_bank_close(rerank);
    return result;
}

void print_search(const search_result *r, json_writer *json) {
    put_text(json, "type", r->type);
    put_number(json, "bandwidth_gb", 1e-9 * r->bandwidth);
    put_number(json, "search_peak_gflops", 1e-9 * r->peak);
    if (json) json_open(json, "search", '[');
    for (int i = 0; i < SEARCH_LINES; i++) {
        const search_line *line = &r->lines[i];
        const double reading = line->bytes / r->bandwidth, computing = line->flop / r->peak;
        put_begin(json, NULL, i == 0 ? "searching it for the 10 nearest rows" : "");
        put_integer(json, "queries", line->queries);
        put_number(json, "seconds_median", line->times.median);
        put_number(json, "seconds_min", line->times.least);
        put_number(json, "seconds_max", line->times.most);
        put_number(json, "gb_per_second", 1e-9 * line->bytes / line->times.median);
        put_number(json, "fraction_of_bandwidth", reading / line->times.median);
        put_number(json, "gflops", 1e-9 * line->flop / line->times.median);
        put_number(json, "fraction_of_search_peak", computing / line->times.median);
        put_number(json, "fraction_of_limit", (reading > computing ? reading : computing) / line->times.median);
        put_end(json);
    }
    if (json) json_close(json, ']');
}
