/* The search for the fastest way of each product: settings are tried on a few shapes, best neighbours first, for as
 * long as there is time; then all shapes are measured once more with what was found. */
#include "tune.h"

#ifdef GMEM_NO_OPENCL

GMEM_API gmem_status gmem_device_tune(gmem_context *context, const gmem_tune_desc *desc, gmem_tune_report *report,
                                      gmem_error *error) {
    (void)context;
    (void)desc;
    (void)report;
    return gmem__fail(error, GMEM_E_UNSUPPORTED, "this build has no OpenCL (GMEM_NO_OPENCL)");
}

#else

#include <float.h>

/* shapes ---------------------------------------------------------------------------------------------------------- */

#define GMEM__TUNE_LAYERS (GMEM_TUNE_SHAPES + 2)

/* The linear layers of a block, for one picture of 256 tokens; the small default model's for 16 pictures of 64. The
 * last two, which nothing divides, are not timed: they must be right. */
static const struct gmem__tune_layer {
    const char *name;
    int64_t rows, depth, columns;
    int searched; /* settings are tried on these */
} gmem__tune_layers[GMEM__TUNE_LAYERS] = {
    {"XL/1 qkv", 3456, 1152, 256, 0},
    {"XL/1 proj", 1152, 1152, 256, 1},
    {"XL/1 mlp_in", 6144, 1152, 256, 0},
    {"XL/1 mlp_out", 1152, 3072, 256, 1},
    {"B/1 qkv", 2304, 768, 256, 0},
    {"B/1 proj", 768, 768, 256, 0},
    {"B/1 mlp_in", 4096, 768, 256, 0},
    {"B/1 mlp_out", 768, 2048, 256, 0},
    {"default qkv", 576, 192, 1024, 0},
    {"default proj", 192, 192, 1024, 0},
    {"default mlp_in", 1024, 192, 1024, 0},
    {"default mlp_out", 192, 512, 1024, 0},
    {"odd", 611, 203, 77, 0},
    {"odd", 13, 7, 259, 0},
};

#define GMEM__TUNE_A ((int64_t)6144 * 1152) /* floats of the largest weight, input and result */
#define GMEM__TUNE_B ((int64_t)3072 * 256)
#define GMEM__TUNE_C ((int64_t)6144 * 256)

#define GMEM__TUNE_SECONDS   60
#define GMEM__TUNE_COMPILE   15 /* seconds of a processor's compiler, until it has been seen at work; a GPU's take 3 */
#define GMEM__TUNE_TOLERANCE 1e-5 /* relative L2: a sum in another order stays far below, anything wrong far above */
#define GMEM__TUNE_RUNS      3
#define GMEM__TUNE_ENOUGH    0.2 /* seconds of runs */
#define GMEM__TUNE_HOPELESS  3   /* so many times slower is not worth the time of measuring all shapes */
#define GMEM__TUNE_TRIED     512
#define GMEM__TUNE_ALWAYS    65536 /* XGEMM_MIN_INDIRECT_SIZE with which XgemmDirect does all */

/* What is minimised: the seconds of the searched shapes by one kernel. */
typedef enum gmem__tune_goal { GMEM__GOAL_INDIRECT, GMEM__GOAL_DIRECT, GMEM__GOAL_OWN, GMEM__GOALS } gmem__tune_goal;

/* The search among one set's points. */
typedef struct gmem__tune_track {
    int open;      /* there may be more to try */
    double weight; /* its share of the time */
    gmem__tune_goal goal;
    int has_best, seeds; /* seeds tried */
    gmem__tune_point best;
    double spent, longest;            /* seconds of all tries and of the longest */
    uint64_t tried[GMEM__TUNE_TRIED]; /* hashes */
    int tried_count;
} gmem__tune_track;

typedef struct gmem__tuner {
    const gmem_context *context;
    const gmem_tune_desc *desc;
    gmem_tune_report *report;
    double began, limit, measuring; /* the last: seconds that a measurement of all shapes has taken at most */
    /* of the host */
    float *a, *b, *c, *expected; /* expected: the shapes' results one after the other */
    int64_t expected_at[GMEM__TUNE_LAYERS + 1];
    void *scratch;
    int64_t scratch_bytes;
    /* of the device */
    struct gmem__device trial; /* the context's, with a program of its own where the tiles differ */
    struct gmem__stream *stream;
    gmem__arena arena;
    const float *a_at, *b_at; /* addresses */
    float *c_at;
    gmem__cl_way own_way;
    double own_first[GMEM_TUNE_SHAPES]; /* seconds with the tiles that there were */
    gmem__cl_tiles tiles_first;
    int has_earlier;
    gmem__tune_found earlier; /* what the folder holds */
    double best[GMEM__GOALS]; /* seconds; DBL_MAX: none */
    gmem__tune_track tracks[GMEM__TUNE_SETS];
    uint64_t random;
} gmem__tuner;

static double gmem__tune_elapsed(const gmem__tuner *tuner) {
    return tuner->desc->clock(tuner->desc->user) - tuner->began;
}

/* Whether something that takes so long is done in time. */
static int gmem__tune_has_time(const gmem__tuner *tuner, double seconds) {
    return gmem__tune_elapsed(tuner) + seconds <= tuner->limit;
}

static double gmem__tune_longer(double a, double b) { return a > b ? a : b; }

static gmem_status gmem__tune_tell(const gmem__tuner *tuner, const char *what, gmem_error *error) {
    if (!tuner->desc->progress || !tuner->desc->progress(tuner->desc->user, gmem__tune_elapsed(tuner), what))
        return GMEM_OK;
    return gmem__fail(error, GMEM_E_CANCELLED, "cancelled");
}

static uint32_t gmem__tune_random(gmem__tuner *tuner, uint32_t below) {
    tuner->random = tuner->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((tuner->random >> 33) % below);
}

/* the device ------------------------------------------------------------------------------------------------------ */

static void gmem__tune_close_stream(gmem__tuner *tuner) {
    if (!tuner->stream) return;
    gmem__stream_release(tuner->stream, tuner->context, &tuner->arena);
    gmem__stream_close(tuner->stream);
    tuner->stream = NULL;
}

static void gmem__tune_layout(gmem__tuner *tuner) {
    tuner->a_at = GMEM__TAKE_F32(&tuner->arena, GMEM__TUNE_A);
    tuner->b_at = GMEM__TAKE_F32(&tuner->arena, GMEM__TUNE_B);
    tuner->c_at = GMEM__TAKE_F32(&tuner->arena, GMEM__TUNE_C);
}

/* A stream that has not failed, with the operands on the device. */
static gmem_status gmem__tune_open_stream(gmem__tuner *tuner, gmem_error *error) {
    if (tuner->stream && gmem__stream_ok(tuner->stream)) return GMEM_OK;
    gmem__tune_close_stream(tuner);
    memset(&tuner->arena, 0, sizeof tuner->arena);
    GMEM__TRY(gmem__stream_open(&tuner->trial, NULL, &tuner->stream, error));
    gmem__tune_layout(tuner);
    if (!gmem__stream_reserve(tuner->stream, tuner->context, &tuner->arena)) {
        if (error) *error = tuner->stream->failed;
        return tuner->stream->failed.code;
    }
    gmem__tune_layout(tuner);
    gmem__stream_write(tuner->stream, tuner->a_at, tuner->a, GMEM__TUNE_A * 4);
    gmem__stream_write(tuner->stream, tuner->b_at, tuner->b, GMEM__TUNE_B * 4);
    if (gmem__stream_ok(tuner->stream)) return GMEM_OK;
    if (error) *error = tuner->stream->failed;
    return tuner->stream->failed.code;
}

static void gmem__tune_drop_program(gmem__tuner *tuner) {
    gmem__tune_close_stream(tuner);
    if (tuner->trial.program && tuner->trial.program != tuner->context->device->program)
        tuner->trial.library.api.clReleaseProgram(tuner->trial.program);
    tuner->trial.program = NULL;
}

/* Goes on with these tiles, compiled anew; with the first ones where that fails, and returns 0. */
static int gmem__tune_use_tiles(gmem__tuner *tuner, const gmem__cl_tiles *tiles) {
    if (memcmp(tiles, &tuner->trial.tuning.tiles, sizeof *tiles) == 0) return 1;
    gmem__tune_drop_program(tuner);
    tuner->trial.tuning.tiles = *tiles;
    if (memcmp(tiles, &tuner->tiles_first, sizeof *tiles) != 0 &&
        gmem__device_build(&tuner->trial, NULL, NULL) == GMEM_OK)
        return 1;
    const int wanted = memcmp(tiles, &tuner->tiles_first, sizeof *tiles) == 0;
    tuner->trial.tuning.tiles = tuner->tiles_first;
    tuner->trial.program = tuner->context->device->program;
    return wanted;
}

/* measuring ------------------------------------------------------------------------------------------------------- */

static void gmem__tune_run(gmem__tuner *tuner, int shape, gmem__cl_way way) {
    const struct gmem__tune_layer *layer = &gmem__tune_layers[shape];
    gmem__cl_product product;
    memset(&product, 0, sizeof product);
    product.a = gmem__stream_find(tuner->stream, tuner->a_at);
    product.b = gmem__stream_find(tuner->stream, tuner->b_at);
    product.c = gmem__stream_find(tuner->stream, tuner->c_at);
    product.rows = layer->rows;
    product.depth = product.a_ld = layer->depth;
    product.columns = product.b_ld = product.c_ld = layer->columns;
    product.batch = 1;
    product.way = way;
    product.alpha = 1;
    gmem__stream_product(tuner->stream, &product);
}

/* The seconds of one run; 0 where it fails. */
static double gmem__tune_time(gmem__tuner *tuner, int shape, gmem__cl_way way) {
    const double start = tuner->desc->clock(tuner->desc->user);
    gmem__tune_run(tuner, shape, way);
    gmem__stream_finish(tuner->stream);
    const double seconds = tuner->desc->clock(tuner->desc->user) - start;
    if (!gmem__stream_ok(tuner->stream)) return 0;
    return seconds > 0 ? seconds : DBL_MIN; /* a clock may be coarse */
}

/* A run whose result is compared with the CPU's; what C held before cannot pass for it. 0 where it differs. */
static double gmem__tune_check(gmem__tuner *tuner, int shape, gmem__cl_way way) {
    const int64_t count = gmem__tune_layers[shape].rows * gmem__tune_layers[shape].columns;
    const float *expected = tuner->expected + tuner->expected_at[shape];
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++)
        tuner->c[i] = 1e30f;
    gmem__stream_write(tuner->stream, tuner->c_at, tuner->c, count * 4);
    const double seconds = gmem__tune_time(tuner, shape, way);
    gmem__stream_read(tuner->stream, tuner->c_at, tuner->c, count * 4);
    if (!gmem__stream_ok(tuner->stream)) return 0;
    for (int64_t i = 0; i < count; i++) {
        const double d = (double)tuner->c[i] - expected[i];
        difference += d * d;
        norm += (double)expected[i] * expected[i];
    }
    /* what is no number is not less */
    return difference <= GMEM__TUNE_TOLERANCE * GMEM__TUNE_TOLERANCE * norm ? seconds : 0;
}

/* The best of a few runs; 0 where it fails or computes something else. The first one compiles, unless it is known that
 * the kernels are there. */
static double gmem__tune_measure(gmem__tuner *tuner, int shape, gmem__cl_way way, int compiled) {
    if (gmem__tune_open_stream(tuner, NULL) != GMEM_OK) return 0;
    const double first = gmem__tune_check(tuner, shape, way);
    double best = compiled ? first : DBL_MAX, all = compiled ? first : 0;
    for (int run = 0; first > 0 && run < GMEM__TUNE_RUNS && all < GMEM__TUNE_ENOUGH; run++) {
        const double seconds = gmem__tune_time(tuner, shape, way);
        if (seconds == 0) return 0;
        if (seconds < best) best = seconds;
        all += seconds;
    }
    return first > 0 ? best : 0;
}

/* Whether the shapes are right that nothing divides. */
static int gmem__tune_is_right(gmem__tuner *tuner, gmem__cl_way way) {
    for (int i = GMEM_TUNE_SHAPES; i < GMEM__TUNE_LAYERS; i++)
        if (gmem__tune_open_stream(tuner, NULL) != GMEM_OK || gmem__tune_check(tuner, i, way) == 0) return 0;
    return 1;
}

/* All shapes one way, as far as there is time. */
static gmem_status gmem__tune_measure_all(gmem__tuner *tuner, gmem__cl_way way, const char *what,
                                          double seconds[GMEM_TUNE_SHAPES], gmem_error *error) {
    const double start = gmem__tune_elapsed(tuner);
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        seconds[i] = 0;
        if (!gmem__tune_has_time(tuner, tuner->measuring / GMEM_TUNE_SHAPES)) continue;
        GMEM__TRY(gmem__tune_tell(tuner, what, error));
        seconds[i] = gmem__tune_measure(tuner, i, way, 1);
    }
    tuner->measuring = gmem__tune_longer(tuner->measuring, gmem__tune_elapsed(tuner) - start);
    return GMEM_OK;
}

/* The seconds of the searched shapes; DBL_MAX where one fails or it is clear that they will not be the best. */
static double gmem__tune_score(gmem__tuner *tuner, gmem__cl_way way, double best) {
    double sum = 0;
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        if (!gmem__tune_layers[i].searched) continue;
        const double seconds = gmem__tune_measure(tuner, i, way, 0);
        if (seconds == 0) {
            tuner->report->failed++;
            return DBL_MAX;
        }
        sum += seconds;
        if (sum > best) return DBL_MAX;
    }
    return sum;
}

/* the search ------------------------------------------------------------------------------------------------------ */

static int gmem__tune_is_new(gmem__tune_track *track, const gmem__tune_point *point) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < GMEM__TUNE_PARAMETERS; i++)
        hash = (hash ^ (uint64_t)(unsigned)point->values[i]) * 0x100000001b3u;
    for (int i = 0; i < track->tried_count; i++)
        if (track->tried[i] == hash) return 0;
    if (track->tried_count == GMEM__TUNE_TRIED) return 0;
    track->tried[track->tried_count++] = hash;
    return 1;
}

static int gmem__tune_value_count(const gmem__tune_parameter *parameter) {
    int count = 1;
    while (count < GMEM__TUNE_VALUES && parameter->values[count] != 0)
        count++;
    return parameter->values[0] == 0 && parameter->values[1] != 0 ? 2 : count;
}

/* One to three values of the best point changed; parameters depend on each other, so one is often not enough. */
static int gmem__tune_neighbour(gmem__tuner *tuner, gmem__tune_set_id id, gmem__tune_point *out) {
    const gmem__tune_set *set = gmem__tune_get_set(id);
    gmem__tune_track *track = &tuner->tracks[id];
    for (int attempt = 0; attempt < 1000; attempt++) {
        const uint32_t changes = 1 + gmem__tune_random(tuner, 3);
        *out = track->best;
        for (uint32_t i = 0; i < changes; i++) {
            const uint32_t which = gmem__tune_random(tuner, (uint32_t)set->count);
            const gmem__tune_parameter *parameter = &set->parameters[which];
            out->values[which] =
                parameter->values[gmem__tune_random(tuner, (uint32_t)gmem__tune_value_count(parameter))];
        }
        if (gmem__tune_fits(id, out, &tuner->trial.found.limits) && gmem__tune_is_new(track, out)) return 1;
    }
    return 0;
}

/* What an earlier tuning found, 0 where there was none. */
static int gmem__tune_earlier(const gmem__tuner *tuner, gmem__tune_set_id id, gmem__tune_point *out) {
    if (!tuner->has_earlier || (id < GMEM__TUNE_CLBLAST_SETS && !tuner->earlier.has[id])) return 0;
    if (id < GMEM__TUNE_CLBLAST_SETS)
        *out = tuner->earlier.points[id];
    else
        gmem__tune_get_tiles(&tuner->earlier.tuning.tiles, id, out);
    return 1;
}

/* The next point to try: the earlier one first, then the seeds. */
static int gmem__tune_next(gmem__tuner *tuner, gmem__tune_set_id id, gmem__tune_point *out) {
    gmem__tune_track *track = &tuner->tracks[id];
    if (gmem__tune_earlier(tuner, id, out) && gmem__tune_is_new(track, out)) return 1;
    while (gmem__tune_seed(id, track->seeds, out)) {
        track->seeds++;
        if (gmem__tune_fits(id, out, &tuner->trial.found.limits) && gmem__tune_is_new(track, out)) return 1;
    }
    return track->has_best && gmem__tune_neighbour(tuner, id, out);
}

static gmem_status gmem__tune_set_routine(gmem__tuner *tuner, int least, gmem_error *error) {
    gmem__tune_point point;
    memset(&point, 0, sizeof point);
    point.values[0] = least;
    return gmem__tune_apply(&tuner->trial, GMEM__TUNE_ROUTINE, &point, error);
}

static double gmem__tune_score_clblast(gmem__tuner *tuner, gmem__tune_set_id id, const gmem__tune_point *point) {
    const int direct = id == GMEM__TUNE_XGEMM_DIRECT;
    if (gmem__tune_set_routine(tuner, direct ? GMEM__TUNE_ALWAYS : 1, NULL) != GMEM_OK ||
        gmem__tune_apply(&tuner->trial, id, point, NULL) != GMEM_OK) {
        tuner->report->failed++;
        return DBL_MAX;
    }
    return gmem__tune_score(tuner, GMEM__CL_WAY_CLBLAST, tuner->best[tuner->tracks[id].goal]);
}

static double gmem__tune_score_tiles(gmem__tuner *tuner, gmem__tune_set_id id, const gmem__tune_point *point) {
    gmem__cl_tiles tiles = tuner->trial.tuning.tiles;
    gmem__tune_set_tiles(&tiles, id, point);
    if (!gmem__tune_use_tiles(tuner, &tiles)) {
        tuner->report->failed++;
        return DBL_MAX;
    }
    return gmem__tune_score(tuner, tuner->own_way, tuner->best[GMEM__GOAL_OWN]);
}

/* Tries one more point of a set and keeps it where it is better. */
static void gmem__tune_try(gmem__tuner *tuner, gmem__tune_set_id id) {
    gmem__tune_track *track = &tuner->tracks[id];
    gmem__tune_point point;
    const double start = gmem__tune_elapsed(tuner);
    track->open = gmem__tune_next(tuner, id, &point);
    if (!track->open) return;
    tuner->report->tried++;
    const int is_own = id >= GMEM__TUNE_CLBLAST_SETS;
    const double score =
        is_own ? gmem__tune_score_tiles(tuner, id, &point) : gmem__tune_score_clblast(tuner, id, &point);
    if (score < tuner->best[track->goal]) {
        tuner->best[track->goal] = score;
        track->best = point;
        track->has_best = 1;
    } else if (!is_own && track->has_best) {
        gmem__tune_apply(&tuner->trial, id, &track->best, NULL); /* it was taken before */
    }
    const double seconds = gmem__tune_elapsed(tuner) - start;
    track->longest = gmem__tune_longer(track->spent > 0 ? track->longest : 0, seconds);
    track->spent += seconds;
}

/* What the next try of a set may take: as long as the longest so far. CLBlast's kernels are one program, which every
 * try compiles. */
static double gmem__tune_cost(const gmem__tuner *tuner, gmem__tune_set_id id) {
    double cost = tuner->tracks[id].longest;
    for (int other = 0; id < GMEM__TUNE_CLBLAST_SETS && other < GMEM__TUNE_CLBLAST_SETS; other++)
        cost = gmem__tune_longer(cost, tuner->tracks[other].longest);
    return cost;
}

/* Before anything was compiled. */
static double gmem__tune_guess(const gmem__tuner *tuner) {
    return tuner->trial.found.limits.is_cpu ? GMEM__TUNE_COMPILE : GMEM__TUNE_COMPILE / 5;
}

/* What was found is compiled and measured once more at the end, if there is time. */
static double gmem__tune_reserve(const gmem__tuner *tuner) {
    double seconds = 0;
    for (int id = 0; id < GMEM__TUNE_SETS; id++)
        if (tuner->tracks[id].has_best &&
            (id == GMEM__TUNE_XGEMM || id == GMEM__TUNE_XGEMM_DIRECT || id >= GMEM__TUNE_CLBLAST_SETS))
            seconds += gmem__tune_cost(tuner, (gmem__tune_set_id)id) + tuner->measuring;
    return seconds;
}

/* The open set that has had least of its share; one whose next try would not be done in time is left. */
static int gmem__tune_choose(const gmem__tuner *tuner) {
    const double now = gmem__tune_elapsed(tuner), until = tuner->limit - gmem__tune_reserve(tuner);
    int best = -1;
    double least = 0;
    for (int id = 0; id < GMEM__TUNE_SETS; id++) {
        const gmem__tune_track *track = &tuner->tracks[id];
        if (!track->open || now + gmem__tune_cost(tuner, (gmem__tune_set_id)id) > until) continue;
        const double share = track->spent / track->weight;
        if (best >= 0 && share >= least) continue;
        best = id;
        least = share;
    }
    return best;
}

static void gmem__tune_open_track(gmem__tuner *tuner, gmem__tune_set_id id, gmem__tune_goal goal, double weight,
                                  double longest) {
    gmem__tune_track *track = &tuner->tracks[id];
    track->open = 1;
    track->goal = goal;
    track->weight = weight;
    track->longest = longest;
}

/* CLBlast's own parameters cannot be asked for, so that those of the small kernels are set to something known before
 * the first try; afterwards every set has a best point that can be set again. */
static gmem_status gmem__tune_begin_clblast(gmem__tuner *tuner, double compiling, gmem_error *error) {
    GMEM__TRY(gmem__tune_set_routine(tuner, 1, error));
    for (int id = GMEM__TUNE_COPY; id <= GMEM__TUNE_PADTRANSPOSE; id++) {
        gmem__tune_track *track = &tuner->tracks[id];
        if (!gmem__tune_next(tuner, (gmem__tune_set_id)id, &track->best)) continue;
        GMEM__TRY(gmem__tune_apply(&tuner->trial, (gmem__tune_set_id)id, &track->best, error));
        track->has_best = 1;
        gmem__tune_open_track(tuner, (gmem__tune_set_id)id, GMEM__GOAL_INDIRECT, 1, compiling);
        track->spent = compiling; /* the large kernels go first */
    }
    gmem__tune_open_track(tuner, GMEM__TUNE_XGEMM, GMEM__GOAL_INDIRECT, 6, compiling);
    gmem__tune_open_track(tuner, GMEM__TUNE_XGEMM_DIRECT, GMEM__GOAL_DIRECT, 2, compiling);
    return GMEM_OK;
}

static void gmem__tune_begin_own(gmem__tuner *tuner) {
    const gmem__tune_set_id id = tuner->own_way == GMEM__CL_WAY_TILE ? GMEM__TUNE_TILE : GMEM__TUNE_OWN;
    gmem__tune_track *track = &tuner->tracks[id];
    gmem__tune_get_tiles(&tuner->tiles_first, id, &track->best);
    gmem__tune_is_new(track, &track->best);
    track->has_best = 1;
    tuner->best[GMEM__GOAL_OWN] = 0;
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++)
        if (gmem__tune_layers[i].searched) tuner->best[GMEM__GOAL_OWN] += tuner->own_first[i];
    gmem__tune_open_track(tuner, id, GMEM__GOAL_OWN, 6, gmem__tune_guess(tuner));
}

static gmem_status gmem__tune_search(gmem__tuner *tuner, gmem_error *error) {
    for (;;) {
        const int id = gmem__tune_choose(tuner);
        if (id < 0) return GMEM_OK;
        GMEM__TRY(gmem__tune_tell(tuner, gmem__tune_get_set((gmem__tune_set_id)id)->name, error));
        gmem__tune_try(tuner, (gmem__tune_set_id)id);
    }
}

/* the end --------------------------------------------------------------------------------------------------------- */

/* Of all shapes; DBL_MAX where one is not known. */
static double gmem__tune_sum(const double seconds[GMEM_TUNE_SHAPES]) {
    double sum = 0;
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        if (seconds[i] == 0) return DBL_MAX;
        sum += seconds[i];
    }
    return sum;
}

/* The found tiles where they are right and faster at all shapes together, else the first ones, measured once more: the
 * machine may have had other things to do when they were. */
static gmem_status gmem__tune_finish_own(gmem__tuner *tuner, gmem__cl_tiles *tiles, double own[GMEM_TUNE_SHAPES],
                                         gmem_error *error) {
    static const char what[] = "all shapes by the own kernels";
    const gmem__tune_set_id id = tuner->own_way == GMEM__CL_WAY_TILE ? GMEM__TUNE_TILE : GMEM__TUNE_OWN;
    gmem__cl_tiles found = tuner->tiles_first;
    double again[GMEM_TUNE_SHAPES];
    *tiles = tuner->tiles_first;
    gmem__tune_use_tiles(tuner, tiles);
    GMEM__TRY(gmem__tune_measure_all(tuner, tuner->own_way, what, own, error));
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++)
        if (tuner->own_first[i] > 0 && (own[i] == 0 || tuner->own_first[i] < own[i])) own[i] = tuner->own_first[i];
    if (!tuner->tracks[id].has_best) return GMEM_OK;
    gmem__tune_set_tiles(&found, id, &tuner->tracks[id].best);
    if (memcmp(&found, tiles, sizeof found) == 0) return GMEM_OK;
    if (!gmem__tune_has_time(tuner, gmem__tune_cost(tuner, id) + tuner->measuring)) return GMEM_OK;
    if (!gmem__tune_use_tiles(tuner, &found)) return GMEM_OK;
    GMEM__TRY(gmem__tune_measure_all(tuner, tuner->own_way, what, again, error));
    if (gmem__tune_sum(again) >= gmem__tune_sum(own) || !gmem__tune_is_right(tuner, tuner->own_way)) return GMEM_OK;
    *tiles = found;
    memcpy(own, again, sizeof again);
    return GMEM_OK;
}

/* By Xgemm from the size `least` on, by XgemmDirect below; 0 where that one has no result. */
static void gmem__tune_mix(const double indirect[GMEM_TUNE_SHAPES], const double direct[GMEM_TUNE_SHAPES], int least,
                           double out[GMEM_TUNE_SHAPES]) {
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        const struct gmem__tune_layer *layer = &gmem__tune_layers[i];
        const double size = (double)layer->rows * (double)layer->depth * (double)layer->columns;
        out[i] = size < (double)least * least * least ? direct[i] : indirect[i];
    }
}

/* Both kernels on all shapes, and from which size on which of them runs. */
static gmem_status gmem__tune_finish_clblast(gmem__tuner *tuner, gmem__tune_found *found,
                                             double tuned[GMEM_TUNE_SHAPES], gmem_error *error) {
    const gmem__tune_parameter *least = &gmem__tune_get_set(GMEM__TUNE_ROUTINE)->parameters[0];
    double seconds[2][GMEM_TUNE_SHAPES], mixed[GMEM_TUNE_SHAPES], best = DBL_MAX;
    memset(seconds, 0, sizeof seconds);
    memset(tuned, 0, sizeof mixed);
    for (int goal = GMEM__GOAL_INDIRECT; goal <= GMEM__GOAL_DIRECT; goal++) {
        const double other = tuner->best[GMEM__GOAL_INDIRECT + GMEM__GOAL_DIRECT - goal];
        const gmem__tune_set_id id = goal == GMEM__GOAL_DIRECT ? GMEM__TUNE_XGEMM_DIRECT : GMEM__TUNE_XGEMM;
        if (tuner->best[goal] == DBL_MAX || tuner->best[goal] / GMEM__TUNE_HOPELESS > other) continue;
        if (!gmem__tune_has_time(tuner, gmem__tune_cost(tuner, id) + tuner->measuring)) continue;
        GMEM__TRY(gmem__tune_set_routine(tuner, goal == GMEM__GOAL_DIRECT ? GMEM__TUNE_ALWAYS : 1, error));
        GMEM__TRY(gmem__tune_measure_all(tuner, GMEM__CL_WAY_CLBLAST, "all shapes by CLBlast", seconds[goal], error));
        if (!gmem__tune_is_right(tuner, GMEM__CL_WAY_CLBLAST)) memset(seconds[goal], 0, sizeof seconds[goal]);
    }
    for (int i = 0; i < gmem__tune_value_count(least); i++) {
        gmem__tune_mix(seconds[GMEM__GOAL_INDIRECT], seconds[GMEM__GOAL_DIRECT], least->values[i], mixed);
        if (gmem__tune_sum(mixed) >= best) continue;
        best = gmem__tune_sum(mixed);
        memcpy(tuned, mixed, sizeof mixed);
        found->points[GMEM__TUNE_ROUTINE].values[0] = least->values[i];
    }
    return GMEM_OK;
}

/* Keeps what CLBlast was tuned to, where that is better than what it comes with. */
static void gmem__tune_keep_clblast(gmem__tuner *tuner, gmem__tune_found *found) {
    double before[GMEM_TUNE_SHAPES], after[GMEM_TUNE_SHAPES];
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        before[i] = tuner->report->shapes[i].clblast;
        after[i] = tuner->report->shapes[i].clblast_tuned;
    }
    if (gmem__tune_sum(after) >= gmem__tune_sum(before)) return;
    for (int id = 0; id < GMEM__TUNE_ROUTINE; id++) {
        const gmem__tune_track *track = &tuner->tracks[id];
        found->has[id] = track->has_best && tuner->best[track->goal] < DBL_MAX;
        found->points[id] = track->best;
    }
    found->has[GMEM__TUNE_ROUTINE] = 1;
}

/* The fastest way of each shape with what will be in force. */
static void gmem__tune_choose_ways(const gmem__tuner *tuner, gmem__tune_found *found) {
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        gmem_tune_shape *shape = &tuner->report->shapes[i];
        const double clblast = found->has[GMEM__TUNE_ROUTINE] ? shape->clblast_tuned : shape->clblast;
        if (clblast == 0 && shape->own == 0) continue;
        const gmem__cl_way way =
            clblast > 0 && (shape->own == 0 || clblast < shape->own) ? GMEM__CL_WAY_CLBLAST : tuner->own_way;
        shape->choice = gmem__way_name(way);
        const int at = found->tuning.shape_count++;
        found->tuning.shapes[at].rows = shape->rows;
        found->tuning.shapes[at].depth = shape->depth;
        found->tuning.shapes[at].columns = shape->columns;
        found->tuning.shapes[at].way = way;
    }
}

static gmem_status gmem__tune_finish(gmem__tuner *tuner, gmem__tune_found *found, gmem_error *error) {
    double own[GMEM_TUNE_SHAPES], tuned[GMEM_TUNE_SHAPES];
    memset(found, 0, sizeof *found);
    GMEM__TRY(gmem__tune_finish_own(tuner, &found->tuning.tiles, own, error));
    GMEM__TRY(gmem__tune_finish_clblast(tuner, found, tuned, error));
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        tuner->report->shapes[i].own = own[i];
        tuner->report->shapes[i].clblast_tuned = tuned[i];
    }
    gmem__tune_keep_clblast(tuner, found);
    gmem__tune_choose_ways(tuner, found);
    return GMEM_OK;
}

/* the beginning --------------------------------------------------------------------------------------------------- */

static void gmem__tune_fill(gmem__tuner *tuner, float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)gmem__tune_random(tuner, 1 << 20) / (float)(1 << 19) - 1.0f;
}

/* What each shape gives, by the CPU's kernels. */
static void gmem__tune_expect(gmem__tuner *tuner) {
    gmem__engine engine = gmem__cpu_engine(tuner->context);
    gmem__weight weight;
    gmem__linear op;
    engine.scratch = tuner->scratch;
    for (int i = 0; i < GMEM__TUNE_LAYERS; i++) {
        memset(&weight, 0, sizeof weight);
        memset(&op, 0, sizeof op);
        weight.data = tuner->a;
        weight.type = GMEM_F32;
        weight.compute = GMEM_COMPUTE_F32;
        weight.rows = gmem__tune_layers[i].rows;
        weight.cols = weight.row_stride = gmem__tune_layers[i].depth;
        op.weight = &weight;
        op.x = tuner->b;
        op.y = tuner->expected + tuner->expected_at[i];
        op.x_stride = op.y_stride = op.columns = gmem__tune_layers[i].columns;
        engine.ops->linear(&engine, &op);
    }
}

static gmem_status gmem__tune_prepare(gmem__tuner *tuner, gmem_error *error) {
    const gmem_context *context = tuner->context;
    for (int i = 0; i < GMEM__TUNE_LAYERS; i++)
        tuner->expected_at[i + 1] = tuner->expected_at[i] + gmem__tune_layers[i].rows * gmem__tune_layers[i].columns;
    tuner->scratch_bytes = context->ops->scratch_bytes(context->threads);
    tuner->a = (float *)gmem__alloc_raw(context, GMEM__TUNE_A, sizeof(float));
    tuner->b = (float *)gmem__alloc_raw(context, GMEM__TUNE_B, sizeof(float));
    tuner->c = (float *)gmem__alloc_raw(context, GMEM__TUNE_C, sizeof(float));
    tuner->expected = (float *)gmem__alloc_raw(context, tuner->expected_at[GMEM__TUNE_LAYERS], sizeof(float));
    tuner->scratch = gmem__alloc_raw(context, tuner->scratch_bytes, 1);
    if (!tuner->a || !tuner->b || !tuner->c || !tuner->expected || !tuner->scratch)
        return gmem__fail(error, GMEM_E_MEMORY, "no memory to tune with");
    gmem__tune_fill(tuner, tuner->a, GMEM__TUNE_A);
    gmem__tune_fill(tuner, tuner->b, GMEM__TUNE_B);
    gmem__tune_expect(tuner);
    tuner->trial = *context->device;
    tuner->tiles_first = tuner->trial.tuning.tiles;
    tuner->has_earlier = gmem__tune_load(context->device, tuner->desc->cache_dir, &tuner->earlier);
    for (int goal = 0; goal < GMEM__GOALS; goal++)
        tuner->best[goal] = DBL_MAX;
    return gmem__tune_open_stream(tuner, error);
}

/* The own kernel for this kind of device, measured whatever the time; or the other one, where there is time for it and
 * it is faster at one shape. */
static gmem_status gmem__tune_measure_own(gmem__tuner *tuner, gmem_error *error) {
    const int is_cpu = tuner->trial.found.limits.is_cpu, shape = 1;
    const gmem__cl_way other = is_cpu ? GMEM__CL_WAY_OWN : GMEM__CL_WAY_TILE;
    const double limit = tuner->limit;
    tuner->own_way = is_cpu ? GMEM__CL_WAY_TILE : GMEM__CL_WAY_OWN;
    tuner->limit = DBL_MAX;
    gmem_status status = gmem__tune_measure_all(tuner, tuner->own_way, "the own kernels", tuner->own_first, error);
    tuner->limit = limit;
    if (status != GMEM_OK || !gmem__tune_has_time(tuner, gmem__tune_guess(tuner) + tuner->measuring)) return status;
    const double seconds = gmem__tune_measure(tuner, shape, other, 0);
    if (seconds == 0 || (tuner->own_first[shape] > 0 && seconds >= tuner->own_first[shape])) return GMEM_OK;
    tuner->own_way = other;
    return gmem__tune_measure_all(tuner, other, "the own kernels", tuner->own_first, error);
}

/* Everything as it comes; then the search, and what came of it. */
static gmem_status gmem__tune_work(gmem__tuner *tuner, gmem__tune_found *found, gmem_error *error) {
    double clblast[GMEM_TUNE_SHAPES];
    memset(clblast, 0, sizeof clblast);
    GMEM__TRY(gmem__tune_prepare(tuner, error));
    GMEM__TRY(gmem__tune_measure_own(tuner, error));
    if (gmem__tune_sum(tuner->own_first) < DBL_MAX) gmem__tune_begin_own(tuner);
    if (tuner->trial.library.has_clblast && gmem__tune_has_time(tuner, gmem__tune_guess(tuner))) {
        const double start = gmem__tune_elapsed(tuner);
        GMEM__TRY(gmem__tune_tell(tuner, "CLBlast", error));
        gmem__tune_measure(tuner, 1, GMEM__CL_WAY_CLBLAST, 0);
        const double compiling = gmem__tune_elapsed(tuner) - start;
        GMEM__TRY(gmem__tune_measure_all(tuner, GMEM__CL_WAY_CLBLAST, "CLBlast", clblast, error));
        GMEM__TRY(gmem__tune_begin_clblast(tuner, compiling, error));
    }
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++)
        tuner->report->shapes[i].clblast = clblast[i];
    GMEM__TRY(gmem__tune_search(tuner, error));
    return gmem__tune_finish(tuner, found, error);
}

static void gmem__tune_release(gmem__tuner *tuner) {
    const gmem_context *context = tuner->context;
    gmem__tune_drop_program(tuner);
    gmem__free(context, tuner->a, GMEM__TUNE_A, sizeof(float));
    gmem__free(context, tuner->b, GMEM__TUNE_B, sizeof(float));
    gmem__free(context, tuner->c, GMEM__TUNE_C, sizeof(float));
    gmem__free(context, tuner->expected, tuner->expected_at[GMEM__TUNE_LAYERS], sizeof(float));
    gmem__free(context, tuner->scratch, tuner->scratch_bytes, 1);
    gmem__free(context, tuner, 1, sizeof *tuner);
}

static void gmem__tune_begin_report(gmem_tune_report *report) {
    memset(report, 0, sizeof *report);
    report->shape_count = GMEM_TUNE_SHAPES;
    for (int i = 0; i < GMEM_TUNE_SHAPES; i++) {
        report->shapes[i].layer = gmem__tune_layers[i].name;
        report->shapes[i].rows = gmem__tune_layers[i].rows;
        report->shapes[i].depth = gmem__tune_layers[i].depth;
        report->shapes[i].columns = gmem__tune_layers[i].columns;
    }
}

GMEM_API gmem_status gmem_device_tune(gmem_context *context, const gmem_tune_desc *desc, gmem_tune_report *report,
                                      gmem_error *error) {
    gmem_tune_report found_report;
    gmem__tune_found found;
    if (!context || !desc || !desc->clock || !report || !(desc->seconds >= 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "tuning needs a context, a clock and room for its report");
    if (!context->device) return gmem__fail(error, GMEM_E_COMBINATION, "the context has no OpenCL device to tune");
    gmem__tuner *tuner = (gmem__tuner *)gmem__alloc(context, 1, sizeof *tuner);
    if (!tuner) return gmem__fail(error, GMEM_E_MEMORY, "no memory to tune with");
    gmem__tune_begin_report(&found_report);
    tuner->context = context;
    tuner->desc = desc;
    tuner->report = &found_report;
    tuner->random = 1;
    tuner->began = desc->clock(desc->user);
    tuner->limit = desc->seconds > 0 ? desc->seconds : GMEM__TUNE_SECONDS;
    gmem_status status = gmem__tune_work(tuner, &found, error);
    found_report.seconds = gmem__tune_elapsed(tuner);
    gmem__tune_release(tuner);
    if (status == GMEM_OK && desc->cache_dir) status = gmem__tune_save(context->device, desc->cache_dir, &found, error);
    if (status == GMEM_OK) *report = found_report;
    return status;
}

#endif /* GMEM_NO_OPENCL */
