/* gmem bench encoder: the features of pictures, against what the machine could do. */
#include "bench.h"
#include "interrupt.h"
#include "machine.h"
#include "picture.h"

#include <stdlib.h>
#include <string.h>

#define FEWEST_RUNS    3
#define MOST_RUNS      15
#define ENOUGH_SECONDS 5.0
#define PICTURES       8 /* at a time, as banks are built */

typedef struct benchmark {
    session s;
    uint8_t *pixels;    /* (PICTURES, size, size, 3) */
    float *cls, *patch; /* (PICTURES, width), (PICTURES, tokens, width) */
} benchmark;

static outcome fill_inputs(benchmark *b, gmem_error *error) {
    const gmem_image_encoder_info *info = b->s.encoder_info;
    const int64_t bytes = PICTURES * 3 * info->picture_size * info->picture_size;
    uint32_t random = 1;
    b->pixels = (uint8_t *)session_alloc(&b->s, bytes, 1);
    b->cls = session_floats(&b->s, PICTURES * info->width);
    b->patch = session_floats(&b->s, PICTURES * info->tokens * info->width);
    if (!b->pixels || !b->cls || !b->patch) return out_of_memory(error);
    for (int64_t i = 0; i < bytes; i++) {
        random = random * 1664525u + 1013904223u;
        b->pixels[i] = (uint8_t)(random >> 24);
    }
    return OUTCOME_DONE;
}

static outcome encode(benchmark *b, int64_t count, float *patch, double *seconds, gmem_error *error) {
    const double start = seconds_now();
    TRY(crop_features(&b->s, count, b->pixels, b->cls, patch, error));
    *seconds = (seconds_now() - start) / (double)count;
    return OUTCOME_DONE;
}

/* Seconds a picture, `count` at a time. */
static outcome time_pictures(benchmark *b, int64_t count, float *patch, bench_times *times, gmem_error *error) {
    double seconds[MOST_RUNS];
    const double begun = seconds_now();
    int64_t runs = 0;
    while (runs < FEWEST_RUNS || (runs < MOST_RUNS && seconds_now() - begun < ENOUGH_SECONDS)) {
        TRY(interrupt_check(error));
        TRY(encode(b, count, patch, &seconds[runs++], error));
    }
    *times = bench_summary(seconds, runs);
    return OUTCOME_DONE;
}

static outcome run(benchmark *b, bench_machine *machine, encoder_result *r, gmem_error *error) {
    TRY(open_image_encoder(&b->s, error));
    const gmem_image_encoder_info *info = b->s.encoder_info;
    const gmem_context *context = b->s.context;
    TRY(fill_inputs(b, error));
    TRY(encode(b, 1, b->patch, &r->first, error));
    TRY(time_pictures(b, PICTURES, b->patch, &r->times, error));
    TRY(time_pictures(b, 1, b->patch, &r->alone, error));
    TRY(time_pictures(b, PICTURES, NULL, &r->class_alone, error));
    r->resident = resident_bytes_peak(); /* before the measurements, which take memory of their own */
    r->flop = info->flop;
    r->figures =
        bench_evaluate(machine, context, info->flop,
                       bench_weight_bytes(context, info->parameters, info->weight_bytes) / PICTURES, r->times.median);
    r->engine = bench_engine_of(context);
    r->size = info->input_size;
    snprintf(r->path, sizeof r->path, "%s", gmem_file_path(b->s.encoder_file));
    snprintf(r->architecture, sizeof r->architecture, "%s", info->name);
    note("backend: %s", gmem_context_backend(context));
    return OUTCOME_DONE;
}

outcome measure_encoder(const arguments *args, bench_machine *machine, encoder_result *out, gmem_error *error) {
    benchmark b;
    memset(&b, 0, sizeof b);
    outcome result = session_begin(&b.s, args, error);
    if (result == OUTCOME_DONE) result = run(&b, machine, out, error);
    session_end(&b.s);
    return result;
}

void print_encoder(const encoder_result *r, json_writer *json, const char *key) {
    put_begin(json, key, "a picture through the image encoder");
    put_text(json, "image_encoder", r->path);
    put_text(json, "architecture", r->architecture);
    put_integer(json, "size", r->size);
    put_integer(json, "pictures", PICTURES);
    put_number(json, "seconds_median", r->times.median);
    put_number(json, "seconds_min", r->times.least);
    put_number(json, "seconds_max", r->times.most);
    put_number(json, "seconds_first", r->first);
    put_number(json, "seconds_one", r->alone.median);
    put_number(json, "seconds_class", r->class_alone.median);
    put_integer(json, "runs", r->times.count);
    put_number(json, "flop", r->flop);
    put_figures(json, &r->figures);
    put_bench_engine(json, &r->engine);
    put_integer(json, "resident_bytes", r->resident);
    put_end(json);
}
