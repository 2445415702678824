/* Devices whose buffers are smaller than a tensor: every operation of the autoencoder, and every product of a weight,
 * on memory that is cut into several buffers, against loops in double; whole models with less and less in one buffer,
 * down to where nothing works any more and the error says so. With the argument "small", operations alone, for a
 * simulator: oclgrind --data-races --uninitialized --build-options -cl-opt-disable build/tests/test_opencl_split small
 */
#include "../backends/cpu/cpu.h"
#include "../backends/opencl/opencl.h"
#include "../src/autoencoder.h"

#include "attempts.h"
#include "product.h"
#include "reference.h"
#include "simulator.h"

#define BAR 1e-6 /* of an operation */

static failing_cl cl;
static int64_t device_largest; /* as the device has it */
static gmem__engine engine;
static int small; /* for a simulator */

/* From now on a buffer has so many bytes at most. */
static void allow(int64_t largest) {
    cl.largest = largest;
    context->device->found.limits.largest = largest;
}

/* memory in pieces ------------------------------------------------------------------------------------------------- */

/* What a case has put there; freed together. */
static gmem__arena arenas[16];
static int arena_count;

static void settle(const char *label, int expected_notes) {
    gmem_error error;
    int notes = 0;
    if (!CHECK_OK(engine.ops->settle(&engine, &notes, &error))) {
        printf("  %s: %s\n", label, error.message);
        exit(check_report()); /* a stream that has failed does nothing more */
    }
    CHECK_INT(notes, expected_notes);
}

/* So many bytes in buffers of `pieces` grains each; 0: in one. */
static void *device_alloc(int64_t bytes, int64_t grain, int64_t pieces) {
    gmem__arena *arena = &arenas[arena_count++];
    memset(arena, 0, sizeof *arena);
    arena->grain = grain;
    (void)gmem__take(arena, bytes, 1);
    const int64_t before = engine.stream->own.count;
    allow(pieces ? pieces * grain : device_largest);
    if (!CHECK(engine.ops->reserve(&engine, context, arena))) settle("memory", 0);
    CHECK_INT(engine.stream->own.count - before, pieces ? gmem__ceil_div(bytes, pieces * grain) : 1);
    allow(device_largest);
    return gmem__take(arena, bytes, 1);
}

static void device_free(void) {
    while (arena_count > 0)
        engine.ops->release(&engine, context, &arenas[--arena_count]);
}

static float *put_whole(const float *x, int64_t count) {
    float *there = x ? (float *)device_alloc(count * 4, 0, 0) : NULL;
    if (x) engine.ops->upload(&engine, there, x, count);
    return there;
}

/* Things of `grain` floats, one more on each side that nobody may touch. */
typedef struct tensor {
    int64_t things, grain;
    float *there; /* the first thing */
} tensor;

static tensor put(const float *x, int64_t things, int64_t grain, int64_t pieces) {
    const int64_t count = (things + 2) * grain;
    float *memory = (float *)need(count, sizeof *memory);
    tensor t;
    for (int64_t i = 0; i < count; i++)
        memory[i] = CANARY;
    memcpy(memory + grain, x, (size_t)(things * grain) * sizeof *x);
    t.things = things;
    t.grain = grain;
    t.there = (float *)device_alloc(count * 4, grain * 4, pieces);
    engine.ops->upload(&engine, t.there, memory, count);
    t.there += grain;
    free(memory);
    return t;
}

static void check_tensor(const char *label, const tensor *t, const double *expected) {
    const int64_t count = t->things * t->grain;
    float *got = (float *)need(count + 2 * t->grain, sizeof *got);
    double difference = 0, norm = 0;
    int guarded = 1;
    engine.ops->download(&engine, got, t->there - t->grain, count + 2 * t->grain);
    settle(label, 0);
    for (int64_t i = 0; i < t->grain; i++)
        guarded &= got[i] == CANARY && got[t->grain + count + i] == CANARY;
    for (int64_t i = 0; i < count; i++) {
        const double d = (double)got[t->grain + i] - expected[i];
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    const double off = sqrt(difference / (norm > 0 ? norm : 1));
    if (!CHECK(off <= BAR) || !CHECK(guarded)) printf("  %s: error %.3g\n", label, off);
    free(got);
}

static float *floats(int64_t count) { return vector_make(count, 0.3f, 1); }

static double *doubles(const float *x, int64_t count) { return reference_copy(x, 1, count, count); }

/* Each operation with tensors in pieces of so many things. */
static const int64_t piece_sizes[] = {0, 1, 2, 5};

/* operations of the autoencoder ------------------------------------------------------------------------------------ */

static void group_norm_case(int64_t x_pieces, int64_t y_pieces, int options) {
    enum { GROUPS = 7, CHANNELS = 3 * GROUPS, AREA = 67 };
    float *x = floats(CHANNELS * AREA), *weight = floats(CHANNELS), *bias = floats(CHANNELS);
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.weight = weight;
    op.bias = bias;
    op.channels = CHANNELS;
    op.area = AREA;
    op.groups = GROUPS;
    op.eps = 1e-6f;
    op.silu = options & 1;
    double *expected = reference_group_norm(&op);
    const tensor from = put(x, GROUPS, 3 * AREA, x_pieces);
    const tensor to = options & 2 ? from : put(x, GROUPS, 3 * AREA, y_pieces);
    op.x = from.there;
    op.y = to.there;
    op.weight = put_whole(weight, CHANNELS);
    op.bias = put_whole(bias, CHANNELS);
    engine.ops->group_norm(&engine, &op);
    check_tensor("group_norm", &to, expected);
    device_free();
    free(x);
    free(weight);
    free(bias);
    free(expected);
}

static void test_group_norm(void) {
    int options = 0;
    for (int i = 0; i < LENGTH(piece_sizes); i += 1 + small)
        for (int j = 0; j < LENGTH(piece_sizes); j += 1 + small)
            group_norm_case(piece_sizes[i], piece_sizes[j], options++ % 4);
}

/* The weight as it lies on the host, in buffers of so many rows. */
static gmem__weight put_weights(const weights *w, int64_t pieces) {
    const int64_t size = (int64_t)gmem_type_bytes(w->weight.type), row = w->weight.row_stride * size;
    const int64_t bytes = (w->weight.rows - 1) * row + w->weight.cols * size; /* nothing behind the last row */
    gmem__weight weight = w->weight;
    void *there = device_alloc(bytes, row, pieces);
    gmem__stream_write(engine.stream, there, w->weight.data, bytes);
    weight.data = there;
    weight.scale = put_whole(w->weight.scale, w->weight.rows);
    return weight;
}

typedef struct conv_shape {
    int kernel, stride, upsample;
} conv_shape;

static void conv_case(gmem_type type, conv_shape shape, const int64_t *pieces, int options) {
    enum { IN = 7, OUT = 9, HEIGHT = 6, WIDTH = 4, AREA = HEIGHT * WIDTH };
    const int64_t height = (HEIGHT << shape.upsample) / shape.stride, width = (WIDTH << shape.upsample) / shape.stride;
    char label[160];
    weights w = weights_make(type, OUT, IN * shape.kernel * shape.kernel);
    float *x = floats(IN * AREA), *before = floats(OUT * height * width), *bias = floats(OUT);
    double *expected = (double *)need(OUT * height * width, sizeof *expected);
    gmem__conv op;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.bias = options & 1 ? bias : NULL;
    op.residual = options & 2 ? before : NULL;
    op.in_channels = IN;
    op.height = HEIGHT;
    op.width = WIDTH;
    op.kernel = shape.kernel;
    op.stride = shape.stride;
    op.upsample = shape.upsample;
    conv_reference(&op, &w, height, width, expected);
    gmem__weight weight = put_weights(&w, pieces[0]);
    const tensor y = put(before, OUT, height * width, pieces[2]);
    op.weight = &weight;
    op.bias = put_whole(op.bias, OUT);
    op.x = put(x, IN, AREA, pieces[1]).there;
    op.y = y.there;
    if (op.residual) op.residual = options & 4 ? y.there : put(before, OUT, height * width, pieces[3]).there;
    engine.ops->conv(&engine, &op);
    snprintf(label, sizeof label, "conv %d, stride %d, type %d, pieces %d %d %d %d, options %d", shape.kernel,
             shape.stride, (int)type, (int)pieces[0], (int)pieces[1], (int)pieces[2], (int)pieces[3], options);
    check_tensor(label, &y, expected);
    device_free();
    weights_free(&w);
    free(x);
    free(before);
    free(bias);
    free(expected);
}

static void test_conv(void) {
    static const conv_shape shapes[] = {{1, 1, 0}, {3, 1, 0}, {3, 2, 0}, {3, 1, 1}};
    static const int64_t pieces[][4] = {{0, 0, 0, 0}, {0, 0, 2, 5}, {0, 2, 0, 0}, {4, 0, 0, 0},
                                        {1, 1, 1, 1}, {2, 3, 5, 0}, {5, 4, 0, 1}, {3, 5, 2, 2}};
    static const int few[] = {4, 1, 3, 2}; /* for a simulator */
    int options = 0;
    for (int s = 0; s < LENGTH(shapes); s++)
        for (int p = small ? few[s] : 0; p < LENGTH(pieces); p += small ? LENGTH(pieces) : 1, options++)
            conv_case(types[(s + p) % LENGTH(types)], shapes[s], pieces[p], options % 8);
}

/* q, k and v lie one after the other, cut anywhere between rows. */
static void attention_case(int64_t pieces, int64_t y_pieces) {
    enum { HEAD_DIM = 12, TOKENS = 21 };
    float *qkv = floats(3 * HEAD_DIM * TOKENS);
    gmem__attention op;
    memset(&op, 0, sizeof op);
    op.q = qkv;
    op.k = qkv + HEAD_DIM * TOKENS;
    op.v = qkv + 2 * HEAD_DIM * TOKENS;
    op.heads = op.samples = 1;
    op.head_dim = HEAD_DIM;
    op.tokens = op.stride = op.y_stride = TOKENS;
    op.scale = 0.3f;
    double *expected = reference_attention(&op);
    const tensor from = put(qkv, 3 * HEAD_DIM, TOKENS, pieces), to = put(qkv, HEAD_DIM, TOKENS, y_pieces);
    op.q = from.there;
    op.k = from.there + HEAD_DIM * TOKENS;
    op.v = from.there + 2 * HEAD_DIM * TOKENS;
    op.y = to.there;
    engine.ops->attention(&engine, &op);
    check_tensor("attention", &to, expected);
    device_free();
    free(qkv);
    free(expected);
}

static void test_attention(void) {
    for (int i = 3 * small; i < LENGTH(piece_sizes); i++)
        for (int j = 3 * small; j < LENGTH(piece_sizes); j++)
            attention_case(piece_sizes[i], piece_sizes[j]);
}

static void scale_shift_case(int64_t x_pieces, int64_t y_pieces) {
    enum { CHANNELS = 8, AREA = 35 };
    float *x = floats(CHANNELS * AREA), *scale = floats(CHANNELS), *shift = floats(CHANNELS);
    double *expected = doubles(x, CHANNELS * AREA);
    gmem__scale_shift op;
    for (int i = 0; i < CHANNELS * AREA; i++)
        expected[i] = expected[i] * (double)scale[i / AREA] + (double)shift[i / AREA];
    const tensor to = put(x, CHANNELS, AREA, y_pieces);
    op.x = put(x, CHANNELS, AREA, x_pieces).there;
    op.y = to.there;
    op.scale = put_whole(scale, CHANNELS);
    op.shift = put_whole(shift, CHANNELS);
    op.channels = CHANNELS;
    op.area = AREA;
    engine.ops->scale_shift(&engine, &op);
    check_tensor("scale_shift", &to, expected);
    device_free();
    free(x);
    free(scale);
    free(shift);
    free(expected);
}

static void copy_case(int64_t from_pieces, int64_t to_pieces) {
    enum { ROWS = 9, WIDTH = 14 };
    float *x = floats(ROWS * WIDTH), *y = floats(ROWS * WIDTH);
    double *expected = doubles(x, ROWS * WIDTH);
    const tensor to = put(y, ROWS, WIDTH, to_pieces);
    gmem__copy op;
    op.from = put(x, ROWS, WIDTH, from_pieces).there;
    op.to = to.there;
    op.rows = ROWS;
    op.width = op.from_stride = op.to_stride = WIDTH;
    engine.ops->copy(&engine, &op);
    check_tensor("copy", &to, expected);
    device_free();
    free(x);
    free(y);
    free(expected);
}

/* From another stream. */
static void hand_over_case(int64_t from_pieces, int64_t to_pieces) {
    enum { THINGS = 9, FLOATS = 14 };
    float *x = floats(THINGS * FLOATS), *y = floats(THINGS * FLOATS);
    double *expected = doubles(x, THINGS * FLOATS);
    const gmem__engine own = engine;
    const tensor to = put(y, THINGS, FLOATS, to_pieces);
    const int before = arena_count;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &engine.stream, NULL))) exit(check_report());
    const tensor from = put(x, THINGS, FLOATS, from_pieces);
    engine.ops->hand_over(&engine, from.there, &own, to.there, THINGS * FLOATS);
    settle("hand_over", 0);
    engine.ops->release(&engine, context, &arenas[before]);
    gmem__stream_close(engine.stream);
    engine = own;
    arena_count = before;
    check_tensor("hand_over", &to, expected);
    device_free();
    free(x);
    free(y);
    free(expected);
}

static void test_values(void) {
    for (int i = 0; i < LENGTH(piece_sizes); i += 1 + small)
        for (int j = 0; j < LENGTH(piece_sizes); j += 1 + small) {
            scale_shift_case(piece_sizes[i], piece_sizes[j]);
            copy_case(piece_sizes[i], piece_sizes[j]);
            hand_over_case(piece_sizes[i], piece_sizes[j]);
        }
}

static void test_pixels(void) {
    enum { AREA = 77 };
    for (int64_t pieces = 0; pieces <= 3; pieces++) {
        uint8_t got[3 * AREA], expected[3 * AREA];
        float *x = floats(3 * AREA);
        gmem__host_pixels(NULL, expected, x, AREA, GMEM__PIXEL_OFFSET);
        const tensor there = put(x, 3, AREA, pieces);
        engine.ops->pixels(&engine, got, there.there, AREA, GMEM__PIXEL_OFFSET);
        settle("pixels", 0);
        CHECK(memcmp(got, expected, sizeof got) == 0);
        device_free();
        free(x);
    }
}

/* What is not finite is noticed in each piece. */
static void test_finite(void) {
    enum { THINGS = 8, FLOATS = 10 };
    for (int at = -1; at < THINGS * FLOATS; at += 9) {
        float *x = floats(THINGS * FLOATS);
        if (at >= 0) x[at] = NAN;
        const tensor there = put(x, THINGS, FLOATS, 3);
        CHECK(engine.ops->finite(&engine, there.there, THINGS * FLOATS, GMEM__NOTE_IMAGE));
        settle("finite", at >= 0 ? GMEM__NOTE_IMAGE : 0);
        device_free();
        free(x);
    }
}

/* linear layers ---------------------------------------------------------------------------------------------------- */

typedef struct linear_options {
    gmem_type type;
    gmem_compute compute;
    gmem__activation activation;
    int bias, residual, gate;
    int64_t run_largest; /* bytes of a buffer while the operation runs; 0: the device's */
} linear_options;

enum { LINEAR_ROWS = 14, LINEAR_DEPTH = 29, LINEAR_TOKENS = 9, LINEAR_COLUMNS = 3 * LINEAR_TOKENS };

static int64_t linear_rows(const linear_options *o) {
    return o->activation == GMEM__ACT_SWIGLU ? LINEAR_ROWS / 2 : LINEAR_ROWS;
}

/* Computes y, with the weight in buffers of so many rows. */
static tensor linear_run(const linear_options *o, const weights *w, gmem__linear op, const matrix *before,
                         int64_t pieces) {
    const tensor y = put(before->data, before->rows, before->columns, 0);
    gmem__weight weight = put_weights(w, pieces);
    weight.compute = o->compute;
    op.weight = &weight;
    op.x = put_whole(op.x, LINEAR_DEPTH * LINEAR_COLUMNS);
    op.y = y.there;
    op.bias = put_whole(op.bias, LINEAR_ROWS);
    op.gate = put_whole(op.gate, LINEAR_COLUMNS / LINEAR_TOKENS * LINEAR_ROWS);
    if (o->run_largest) allow(o->run_largest);
    engine.ops->linear(&engine, &op);
    allow(device_largest);
    return y;
}

static void linear_case(const linear_options *o) {
    static const int64_t pieces[] = {0, 1, 5, 7, 8, 13};
    const int64_t rows = linear_rows(o);
    char label[160];
    weights w = weights_make(o->type, LINEAR_ROWS, LINEAR_DEPTH);
    matrix before = matrix_random(rows, LINEAR_COLUMNS, 0);
    float *x = floats(LINEAR_DEPTH * LINEAR_COLUMNS), *bias = floats(LINEAR_ROWS), *gate = floats(3 * LINEAR_ROWS);
    double *expected = (double *)need(rows * LINEAR_COLUMNS, sizeof *expected);
    float *whole = (float *)need(rows * LINEAR_COLUMNS, sizeof *whole);
    gmem__linear op;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.x_stride = op.y_stride = op.columns = LINEAR_COLUMNS;
    op.activation = o->activation;
    op.bias = o->bias ? bias : NULL;
    op.residual = o->residual;
    op.gate = o->gate ? gate : NULL;
    op.gate_stride = LINEAR_ROWS;
    op.tokens = LINEAR_TOKENS;
    linear_reference(&op, &w, &before, expected);
    const int first = small && o->compute == GMEM_COMPUTE_F32 ? 2 : 0, step = small ? 2 : 1;
    for (int i = first; i < (small ? 3 : LENGTH(pieces)); i += step) {
        const tensor y = linear_run(o, &w, op, &before, pieces[i]);
        if (i == 0 && o->compute != GMEM_COMPUTE_F32) { /* the narrow product itself has tests of its own */
            engine.ops->download(&engine, whole, y.there, rows * LINEAR_COLUMNS);
            for (int64_t j = 0; j < rows * LINEAR_COLUMNS; j++)
                expected[j] = (double)whole[j];
        }
        snprintf(label, sizeof label, "linear, type %d, compute %d, activation %d, %d rows", (int)o->type,
                 (int)o->compute, (int)o->activation, (int)pieces[i]);
        check_tensor(label, &y, expected);
        device_free();
    }
    weights_free(&w);
    matrix_free(&before);
    free(x);
    free(bias);
    free(gate);
    free(expected);
    free(whole);
}

static void test_linear(void) {
    for (int i = 0; i < LENGTH(types); i++)
        for (int a = small ? i : GMEM__ACT_NONE; a <= (small ? i : GMEM__ACT_SWIGLU); a++) {
            const linear_options options = {types[i], GMEM_COMPUTE_F32, (gmem__activation)a, i % 2, (i + a) % 2, a % 2,
                                            0};
            linear_case(&options);
        }
    for (int a = small ? GMEM__ACT_SWIGLU : GMEM__ACT_NONE; a <= GMEM__ACT_SWIGLU; a += GMEM__ACT_SWIGLU) {
        const linear_options int8 = {GMEM_I8, GMEM_COMPUTE_INT8, (gmem__activation)a, 1, 0, 0, 0};
        const linear_options bf16 = {GMEM_BF16, GMEM_COMPUTE_BF16, (gmem__activation)a, 1, 1, 0, 0};
        /* sums of 10 columns at a time */
        const linear_options little = {GMEM_F32, GMEM_COMPUTE_F32, (gmem__activation)a, 1, 1, 1, LINEAR_ROWS * 4 * 10};
        linear_case(&int8);
        linear_case(&bf16);
        linear_case(&little);
    }
}

/* mistakes --------------------------------------------------------------------------------------------------------- */

/* Memory cut within a group fails the stream instead of being read beyond its buffer. */
static void test_cut_within(void) {
    float x[4 * 6] = {0}, ones[4] = {1, 1, 1, 1};
    gmem_error error;
    gmem__group_norm op;
    memset(&op, 0, sizeof op);
    op.x = op.y = put(x, 4, 6, 2).there;
    op.weight = op.bias = put_whole(ones, 4);
    op.channels = 4;
    op.area = 6;
    op.groups = 2;
    engine.ops->group_norm(&engine, &op);
    CHECK_STATUS(GMEM_E_ARGUMENT, engine.ops->settle(&engine, NULL, &error));
    CHECK_CONTAINS(error.message, "cut");
    device_free();
}

/* Memory that cannot be cut, or not so finely, is refused with what it wanted and what there is. */
static void test_refused(void) {
    static const int64_t grains[] = {0, 6000};
    for (int i = 0; i < 2; i++) {
        struct gmem__stream *stream = NULL;
        gmem_error error;
        gmem__arena arena;
        memset(&arena, 0, sizeof arena);
        if (!CHECK_OK(gmem__stream_open(context->device, NULL, &stream, NULL))) return;
        gmem__engine other = engine;
        other.stream = stream;
        const int64_t used = context->device->used;
        arena.grain = grains[i];
        (void)gmem__take(&arena, 18000, 1);
        allow(5000);
        CHECK_STATUS(GMEM_E_MEMORY, gmem__engine_reserve(&other, context, &arena, "a test", &error));
        allow(device_largest);
        CHECK_CONTAINS(error.message, grains[i] ? "6000" : "18000");
        CHECK_CONTAINS(error.message, "5000");
        CHECK_INT(context->device->used, used);
        gmem__stream_close(stream);
    }
}

/* Buffer by buffer failing: an error, and those before it are given back. */
static void test_failing_buffers(void) {
    enum { PIECES = 5 };
    gmem_error error;
    for (int at = 1; at <= PIECES; at++) {
        struct gmem__stream *stream = NULL;
        gmem__arena arena;
        memset(&arena, 0, sizeof arena);
        if (!CHECK_OK(gmem__stream_open(context->device, NULL, &stream, NULL))) return;
        gmem__engine other = engine;
        other.stream = stream;
        const int64_t before = cl.buffers, used = context->device->used;
        arena.grain = 1000;
        (void)gmem__take(&arena, PIECES * 3000, 1);
        allow(3999);
        failing_cl_arm(&cl, FAILING_clCreateBuffer, at, FAILING_CL_OUT_OF_RESOURCES, 0);
        CHECK_STATUS(GMEM_E_DEVICE, gmem__engine_reserve(&other, context, &arena, "a test", &error));
        failing_cl_arm(&cl, FAILING_clCreateBuffer, 0, 0, 0);
        allow(device_largest);
        CHECK_INT(cl.buffers, before);
        CHECK_INT(context->device->used, used);
        gmem__stream_close(stream);
    }
}

static void test_operations(void) {
    const gmem__cl_way ways[] = {GMEM__CL_WAY_OWN, GMEM__CL_WAY_TILE, GMEM__CL_WAY_CLBLAST};
    const gmem__cl_way usual = context->device->tuning.way;
    memset(&engine, 0, sizeof engine);
    engine.ops = gmem__opencl_ops();
    engine.threads = 1;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &engine.stream, NULL))) return;
    test_group_norm();
    test_values();
    test_pixels();
    test_finite();
    for (int i = 0; i < LENGTH(ways) - small; i++) {
        context->device->tuning.way = ways[i];
        test_conv();
        if (small && ways[i] == GMEM__CL_WAY_OWN) continue; /* a launch of its groups takes a simulator seconds */
        test_attention();
        test_linear();
    }
    context->device->tuning.way = usual;
    test_refused();
    if (!small) test_failing_buffers();
    test_cut_within(); /* the last on this stream */
    gmem__stream_close(engine.stream);
}

/* models ----------------------------------------------------------------------------------------------------------- */

/* As the device is, then with just too little for the largest of its buffers, and less and less, at least to a part of
 * 1 / `least` of it. Where it ends the error says what was wanted and what there is. */
static void lessen(attempt attempt_of, const char *name, int64_t least) {
    gmem_error error;
    char number[32];
    cl.most_buffer = 0;
    if (!CHECK_OK(attempt_of(name, &error))) printf("  %s: %s\n", name, error.message);
    const int64_t largest = cl.most_buffer;
    int64_t now = largest - 1, smallest = largest;
    gmem_status status = GMEM_OK;
    for (; status == GMEM_OK && now > 0; now = now / 2) {
        allow(now);
        status = attempt_of(name, &error);
        if (status == GMEM_OK) smallest = now;
        if (status == GMEM_OK) continue;
        snprintf(number, sizeof number, "%lld", (long long)now);
        CHECK_INT(status, GMEM_E_MEMORY);
        CHECK_CONTAINS(error.message, number);
    }
    allow(device_largest);
    CHECK(status != GMEM_OK);
    if (!CHECK(smallest * least <= largest)) printf("  %s: %s\n", name, error.message);
    printf("%s: buffers of %lld bytes, %lld at least; then %s\n", name, (long long)largest, (long long)smallest,
           error.message);
}

static void test_models(void) {
    gmem_context_desc desc;
    gmem_context *cpu = NULL;
    lessen(try_autoencoder, "vae_f8.io.safetensors", 20);
    lessen(try_autoencoder, "vae_f16.io.safetensors", 20);
    lessen(try_autoencoder, "vae_noattn.io.safetensors", 20);
    lessen(try_autoencoder, "vae_diffusers.io.safetensors", 20);
    lessen(try_network, "dit_base.io.safetensors", 3);
    lessen(try_network, "dit_wide.io.safetensors", 3);
    lessen(try_network, "gmem_sit.io.safetensors", 3);
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    CHECK_OK(gmem_context_create(&desc, &cpu, NULL));
    if (CHECK_OK(draw(cpu, &cpu_image, NULL))) lessen(try_default_model, "the default model", 8);
    gmem_image_free(cpu, &cpu_image);
    gmem_context_destroy(cpu);
}

/* A simulator takes as long for a work-item that has nothing to do. */
static void use_small_tiles(void) {
    static const gmem__cl_tiles tiles = {2, 1, 4, 4, 4, 4, 1, 4, 16, 32};
    struct gmem__device *device = context->device;
    device->library.api.clReleaseProgram(device->program);
    device->program = NULL;
    device->tuning.tiles = tiles;
    if (!CHECK_OK(gmem__device_build(device, NULL, NULL))) exit(check_report());
}

int main(int argc, char **argv) {
    gmem_context_desc desc;
    gmem_error error;
    small = argc > 1 && strcmp(argv[1], "small") == 0;
    memset(&desc, 0, sizeof desc);
    golden_choose_backend(&desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    desc.opencl = small ? simulator() : failing_cl_hook(&cl);
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("%s\n", error.message);
        return check_report();
    }
    device_largest = context->device->found.limits.largest;
    if (small) use_small_tiles();
    test_operations();
    if (!small) test_models();
    gmem_context_destroy(context);
    CHECK(failing_cl_is_clean(&cl));
    return check_report();
}
