/* What the benchmarks share: the machine's limits, medians, and results that are a table or JSON from the same lines.
 * Each benchmark measures first and prints when all is done, so that an error leaves nothing on standard output. */
#ifndef BENCH_H
#define BENCH_H

#include "args.h"
#include "peak.h"
#include "session.h"

/* What the machine can do, each measured when it is first asked for. Zero to begin with. */
typedef struct bench_machine {
    double peaks[PEAK_COUNT]; /* operations a second; 0: not measured */
    double bandwidth;         /* bytes a second read from memory */
    int threads;
} bench_machine;

double bench_peak(bench_machine *machine, peak_kind kind, int threads);
double bench_bandwidth(bench_machine *machine, int threads);
/* Of the memory that the context's weights are in; not a number where it is a device's own. */
double bench_context_bandwidth(bench_machine *machine, const gmem_context *context);

typedef struct bench_times {
    double median, least, most; /* seconds */
    int64_t count;
} bench_times;

bench_times bench_summary(double *seconds, int64_t count); /* sorts them */

/* Work beside its limit: the longer of the arithmetic at the peak of its instructions and the reading of its weights.
 */
typedef struct bench_figures {
    double gflops, peak_gflops, fraction_of_peak;
    double limit_seconds, fraction_of_limit;
} bench_figures;

bench_figures bench_evaluate(bench_machine *machine, const gmem_context *context, double flop, double weight_bytes,
                             double seconds);
/* Bytes of so many weights as products read them: as stored, or as the narrower copy in the kernel's order. */
double bench_weight_bytes(const gmem_context *context, int64_t count, int64_t stored_bytes);

/* A result's lines: members of the JSON object that is open, or `name  value` for people where json is NULL. */
void put_text(json_writer *json, const char *name, const char *value);
void put_number(json_writer *json, const char *name, double value);
void put_integer(json_writer *json, const char *name, int64_t value);
void put_figures(json_writer *json, const bench_figures *figures);
/* Opens an object in JSON, or a headline for people. */
void put_begin(json_writer *json, const char *key, const char *headline);
void put_end(json_writer *json);

/* The names of what a context computes with, which outlive it. */
typedef struct bench_engine {
    char backend[160], isa[16], kernels[32], dtype[8];
    int threads;
} bench_engine;
bench_engine bench_engine_of(const gmem_context *context);
void put_bench_engine(json_writer *json, const bench_engine *engine);

typedef struct network_result {
    char path[1024], architecture[64];
    double first, median;
    int64_t passes, resident;
    double flop;
    bench_figures figures;
    double bandwidth;
    bench_engine engine;
    int profiled;
    gmem_profile profile;
    double total; /* of all passes and their preparation, which the profile divides */
} network_result;
outcome measure_network(const arguments *args, bench_machine *machine, network_result *out, gmem_error *error);
void print_network(const network_result *result, json_writer *json, const char *key);

typedef struct autoencoder_result {
    char path[1024];
    int64_t height, width; /* of the picture */
    double first, flop;
    bench_times times;
    int64_t resident;
    bench_figures figures;
    bench_engine engine;
} autoencoder_result;
outcome measure_autoencoder(const arguments *args, bench_machine *machine, autoencoder_result *out, gmem_error *error);
void print_autoencoder(const autoencoder_result *result, json_writer *json, const char *key);

/* How far pictures are from something, 1 - cosine of their features: the 10th, 50th and 90th of 100. */
typedef struct spread {
    double low, median, high;
} spread;

typedef struct spread_kind {
    spread to_snippet;    /* what it was drawn from */
    spread to_bank;       /* the bank's nearest row */
    spread to_each_other; /* the nearest picture of the same kind */
} spread_kind;

enum { SPREAD_ROWS, SPREAD_MIXED, SPREAD_ADDED, SPREAD_KINDS };

typedef struct spread_result {
    int64_t pictures;    /* of each kind; 0: not measured */
    spread rows_to_bank; /* between a row and the nearest other one, to compare with */
    spread_kind kinds[SPREAD_KINDS];
} spread_result;
/* Whether there is an encoder for the network that the flags name. */
int spread_is_possible(const arguments *args);
outcome measure_spread(const arguments *args, spread_result *out, gmem_error *error);
void print_spread(const spread_result *result, json_writer *json, const char *key);

typedef struct encoder_result {
    char path[1024], architecture[64];
    int64_t size;            /* of what the encoder sees */
    double first, flop;      /* of one picture */
    bench_times times;       /* a picture, several at a time, with all features */
    bench_times alone;       /* one at a time */
    bench_times class_alone; /* a picture, several at a time, the class tokens only: what a bank takes */
    int64_t resident;
    bench_figures figures;
    bench_engine engine;
} encoder_result;
outcome measure_encoder(const arguments *args, bench_machine *machine, encoder_result *out, gmem_error *error);
void print_encoder(const encoder_result *result, json_writer *json, const char *key);

/* Searches for the nearest rows of so many queries at once, beside the reading of the bank and the arithmetic. */
enum { SEARCH_LINES = 3 };
typedef struct search_line {
    int64_t queries;
    bench_times times;
    double bytes, flop;
} search_line;
typedef struct search_result {
    char type[8];
    double bandwidth, peak; /* of the fastest instructions for products with such rows */
    search_line lines[SEARCH_LINES];
} search_result;
/* The session has a bank open. */
outcome measure_search(session *s, bench_machine *machine, search_result *out, gmem_error *error);
void print_search(const search_result *result, json_writer *json);

typedef struct bank_result {
    char network[1024], bank[1024];
    int64_t rows, width;
    double first; /* seconds of opening both, in a process that has not opened them before */
    bench_times network_open, bank_open, open;
    bench_times row; /* seconds of reading one random row, normalised */
    int64_t resident_grown;
    spread_result spread; /* pictures 0: not measured */
    search_result search;
} bank_result;
outcome measure_bank(const arguments *args, bench_machine *machine, bank_result *out, gmem_error *error);
void print_bank(const bank_result *result, json_writer *json, const char *key);

/* A layer of XL/1 by one instruction set in one type. */
typedef struct gemm_line {
    const char *layer;
    int64_t rows, depth;
    double error; /* relative L2, against a plain sum of products in double */
    bench_times times;
    bench_figures figures;
    bench_engine engine;
} gemm_line;
enum { MOST_GEMM_LINES = 64 };
typedef struct gemm_result {
    int64_t columns;
    double bandwidth;
    gemm_line lines[MOST_GEMM_LINES];
    int count;
} gemm_result;
outcome measure_gemm(const arguments *args, bench_machine *machine, gemm_result *out, gmem_error *error);
void print_gemm(const gemm_result *result, json_writer *json, const char *key);

#endif /* BENCH_H */
