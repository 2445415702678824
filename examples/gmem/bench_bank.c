/* gmem bench bank: opening a network and its bank, and reading rows; bench_search.c searches it. */
#include "bench.h"
#include "interrupt.h"
#include "machine.h"
#include "session.h"

#include <string.h>

#define RUNS 21
#define ROWS 2001

/* A bank can be measured alone. */
static int needs_network(const arguments *args) { return args->network || !args->bank.count; }

/* One opening of both, everything closed again by session_end. */
static outcome open_once(session *s, double *network, double *bank, gmem_error *error) {
    double start = seconds_now();
    if (needs_network(s->args)) TRY(open_network(s, error));
    double between = seconds_now();
    TRY(open_bank(s, error));
    *network = between - start;
    *bank = seconds_now() - between;
    return OUTCOME_DONE;
}

/* Rows in an order that no cache foresees. */
static outcome read_rows(session *s, bank_result *r, gmem_error *error) {
    double seconds[ROWS];
    float *row = session_floats(s, r->width);
    uint64_t state = 1;
    if (!row) return out_of_memory(error);
    for (int i = 0; i < ROWS; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407); /* Knuth's MMIX */
        double start = seconds_now();
        TRY(read_snippet(s, (int64_t)((state >> 33) % (uint64_t)r->rows), row, error));
        seconds[i] = seconds_now() - start;
    }
    r->row = bench_summary(seconds, ROWS);
    return OUTCOME_DONE;
}

static outcome describe(session *s, bank_result *r, gmem_error *error) {
    r->rows = gmem_bank_rows(s->bank);
    r->width = gmem_bank_width(s->bank);
    if (s->network_file) snprintf(r->network, sizeof r->network, "%s", gmem_file_path(s->network_file));
    snprintf(r->bank, sizeof r->bank, "%s", gmem_bank_file_path(s->bank, 0));
    return read_rows(s, r, error);
}

outcome measure_bank(const arguments *args, bench_machine *machine, bank_result *out, gmem_error *error) {
    double network[RUNS], bank[RUNS], both[RUNS];
    outcome result = OUTCOME_DONE;
    for (int i = 0; i < RUNS && result == OUTCOME_DONE; i++) {
        session s;
        memset(&s, 0, sizeof s);
        result = session_begin(&s, args, error);
        int64_t before = resident_bytes_now();
        if (result == OUTCOME_DONE) result = open_once(&s, &network[i], &bank[i], error);
        int64_t grown = resident_bytes_now() - before;
        if (i == 0) out->first = network[0] + bank[0];
        if (grown > out->resident_grown) out->resident_grown = grown;
        both[i] = network[i] + bank[i];
        if (result == OUTCOME_DONE && i + 1 == RUNS) result = describe(&s, out, error);
        if (result == OUTCOME_DONE && i + 1 == RUNS) result = measure_search(&s, machine, &out->search, error);
        session_end(&s);
        if (result == OUTCOME_DONE) result = interrupt_check(error);
    }
    if (result != OUTCOME_DONE) return result;
    out->network_open = bench_summary(network, RUNS);
    out->bank_open = bench_summary(bank, RUNS);
    out->open = bench_summary(both, RUNS);
    return OUTCOME_DONE;
}

void print_bank(const bank_result *r, json_writer *json, const char *key) {
    put_begin(json, key, "opening a network and its bank");
    put_text(json, "network", r->network[0] ? r->network : "none");
    put_text(json, "bank", r->bank);
    put_integer(json, "rows", r->rows);
    put_integer(json, "width", r->width);
    put_number(json, "open_ms_first", 1e3 * r->first);
    put_number(json, "open_ms_median", 1e3 * r->open.median);
    put_number(json, "open_ms_max", 1e3 * r->open.most);
    put_number(json, "network_ms_median", 1e3 * r->network_open.median);
    put_number(json, "bank_ms_median", 1e3 * r->bank_open.median);
    put_number(json, "row_us_median", 1e6 * r->row.median);
    put_number(json, "row_us_max", 1e6 * r->row.most);
    put_integer(json, "resident_bytes", r->resident_grown);
    print_search(&r->search, json);
    if (r->spread.pictures) print_spread(&r->spread, json, "spread");
    put_end(json);
}
