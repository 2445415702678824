/* Streams and memory of a device: weights of every type on every way to it, bit for bit as the host converts them;
 * streaming; arenas, scratch, launches; each OpenCL call failing in turn, once and for good. PoCL is the device at
 * hand: without it the tests fail. */
#include "../backends/cpu/cpu.h"
#include "../backends/cpu/narrow.h"
#include "../backends/opencl/opencl.h"
#include "failing.h"
#include "failing_opencl.h"

/* A device as the library has it, with a small program of kernels whose names the library knows ------------------- */

static const char source[] = "__kernel void copy(__global float *to, ulong to_at, __global const float *from,\n"
                             "                   ulong from_at, int count, float factor) {\n"
                             "    for (int i = get_global_id(0); i < count; i += get_global_size(0))\n"
                             "        to[to_at + i] = factor * from[from_at + i];\n"
                             "}\n"
                             "__kernel void transpose(__global int *sizes, ulong at, __local int *shared) {\n"
                             "    shared[get_local_id(0)] = 1;\n"
                             "    for (int d = 0; d < 3; d++) {\n"
                             "        sizes[at + d] = get_global_size(d);\n"
                             "        sizes[at + 3 + d] = get_local_size(d);\n"
                             "    }\n"
                             "}\n";

typedef struct fixture {
    failing host;
    failing_cl cl;
    char log[512]; /* the last line */
    gmem_context *context;
    struct gmem__device *device;
} fixture;

static void fixture_log(void *user, const char *line) {
    fixture *f = (fixture *)user;
    snprintf(f->log, sizeof f->log, "%s", line);
}

static void die(const char *what, const char *why) {
    printf("%s: %s\n", what, why);
    exit(1);
}

static int32_t build(struct gmem__device *device) {
    const gmem__cl_api *api = &device->library.api;
    const char *text = source;
    int32_t status;
    device->program = api->clCreateProgramWithSource(device->cl, 1, &text, NULL, &status);
    if (status != GMEM__CL_SUCCESS) return status;
    return api->clBuildProgram(device->program, 1, &device->found.id, "-cl-std=CL1.2", NULL, NULL);
}

/* Needs f->cl to be set up; everything afterwards happens under its rules. */
static void fixture_open(fixture *f, int64_t memory) {
    static gmem__cl_found found[GMEM__CL_MAX_DEVICES];
    gmem_context_desc desc;
    gmem_error error;
    int count = 0, pick = 0;
    int32_t status = 0;
    memset(&desc, 0, sizeof desc);
    memset(&f->host, 0, sizeof f->host);
    f->host.countdown = -1;
    desc.allocator.user = &f->host;
    desc.allocator.alloc = failing_alloc;
    desc.allocator.release = failing_release;
    desc.backend = GMEM_BACKEND_CPU;
    desc.threads = 1;
    if (gmem_context_create(&desc, &f->context, &error) != GMEM_OK) die("context", error.message);
    f->context->log = fixture_log;
    f->context->log_user = f;
    f->log[0] = 0;
    f->device = (struct gmem__device *)gmem__alloc(f->context, 1, sizeof *f->device);
    f->device->context = f->context;
    const gmem_opencl hook = failing_cl_hook(&f->cl);
    if (gmem__cl_load(&hook, &f->device->library, &error) != GMEM_OK) die("OpenCL", error.message);
    if (gmem__cl_list(&f->device->library.api, found, &count, &error) != GMEM_OK) die("devices", error.message);
    if (gmem__cl_pick(found, count, NULL, 0, &pick, &error) != GMEM_OK) die("device", error.message);
    f->device->found = found[pick];
    if (memory) f->device->found.limits.memory = memory;
    f->device->cl = f->device->library.api.clCreateContext(NULL, 1, &found[pick].id, NULL, NULL, &status);
    if (status != GMEM__CL_SUCCESS || build(f->device) != GMEM__CL_SUCCESS) die("device", "no context or program");
}

/* Everything is given back. */
static void fixture_close(fixture *f) {
    CHECK_INT(f->device->used, 0);
    (void)f->device->library.api.clReleaseProgram(f->device->program);
    (void)f->device->library.api.clReleaseContext(f->device->cl);
    gmem__cl_unload(&f->device->library);
    gmem__free(f->context, f->device, 1, sizeof *f->device);
    gmem_context_destroy(f->context);
    CHECK(failing_cl_is_clean(&f->cl));
    CHECK_INT(f->host.live, 0);
}

static void fixture_default(fixture *f) {
    memset(&f->cl, 0, sizeof f->cl);
    fixture_open(f, 0);
}

static gmem__store store_of(const fixture *f) {
    gmem__store store;
    memset(&store, 0, sizeof store);
    store.context = f->context;
    store.device = f->device;
    return store;
}

static void store_close(gmem__store *store) {
    gmem__device_memory_free(store->context, store->uploaded);
    store->uploaded = NULL;
    gmem__blocks_free(store->context, &store->blocks);
}

static struct gmem__stream *stream_of(const fixture *f, const gmem__store *store) {
    struct gmem__stream *stream = NULL;
    gmem_error error;
    if (!CHECK_OK(gmem__stream_open(f->device, store ? store->uploaded : NULL, &stream, &error)))
        die("stream", error.message);
    return stream;
}

/* weights on the host --------------------------------------------------------------------------------------------- */

enum { MAX_ROWS = 40, MAX_COLS = 700, MAX_STRIDE = MAX_COLS + 9 };

typedef struct matrix {
    gmem__weight weight;
    float scale[MAX_ROWS];
    union {
        double align[8];
        unsigned char bytes[4 * MAX_ROWS * MAX_STRIDE + 128];
    } data;
} matrix;

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* `shift` bytes off a multiple of 64. Values of all sizes that a type has, ties of rounding among them. */
static void make_matrix(matrix *m, gmem_type type, int64_t rows, int64_t cols, int64_t stride, int64_t shift) {
    uint32_t state = (uint32_t)(type * 1000 + rows * 37 + cols);
    unsigned char *start = m->data.bytes + (64 - (uintptr_t)m->data.bytes % 64) % 64 + shift;
    memset(&m->weight, 0, sizeof m->weight);
    m->weight.data = start;
    m->weight.type = type;
    m->weight.rows = rows;
    m->weight.cols = cols;
    m->weight.row_stride = stride;
    for (int64_t i = 0; i < rows * stride; i++) {
        float value = ((float)next_random(&state) / 8388608.0f - 1) * (i % 7 ? 1.0f : 1e-3f);
        if (type == GMEM_I8)
            start[i] = (unsigned char)next_random(&state);
        else
            gmem_convert_f32(&value, 1, type, start + i * (int64_t)gmem_type_bytes(type));
    }
    for (int64_t i = 0; rows > 5 && type != GMEM_I8 && i < cols; i++) { /* nothing; infinity; no number */
        const float special[3] = {0, INFINITY, NAN};
        for (int64_t r = 0; r < 3; r++)
            if (r == 0 || i == cols / 2)
                gmem_convert_f32(&special[r], 1, type, start + ((2 + r) * stride + i) * (int64_t)gmem_type_bytes(type));
    }
    for (int64_t r = 0; r < rows; r++)
        m->scale[r] = 0.001f + (float)r / 977;
    if (type == GMEM_I8) m->weight.scale = m->scale;
}

/* What the device has to hold, by the host's own conversions. ------------------------------------------------------ */

static void expected_i8(const gmem__weight *weight, int64_t row, float *scale, unsigned char *out) {
    const gmem__narrow *narrow = gmem__portable_i8();
    uint32_t strip[(MAX_COLS / 64 + 1) * 8 * GMEM__TILE_WORDS];
    gmem__strip_part part;
    int32_t sum = 0, check = 0;
    gmem__scalar_narrow()->measure(weight, row, scale, &sum);
    memset(&part, 0, sizeof part);
    part.row = row;
    part.rows = 1;
    part.words = gmem__round_up(gmem__ceil_div(weight->cols, 4), GMEM__TILE_WORDS);
    part.scale = scale;
    gmem__scalar_narrow()->strip(narrow, weight, &part, strip);
    for (int64_t i = 0; i < weight->cols; i++) {
        const int64_t word = i / 4, tile = word / GMEM__TILE_WORDS;
        const uint32_t bits = strip[tile * narrow->mr * GMEM__TILE_WORDS + word % GMEM__TILE_WORDS];
        out[i] = (unsigned char)(bits >> 8 * (i % 4));
        check += (signed char)out[i];
    }
    CHECK_INT(check, sum);
}

static void expected_row(const gmem__weight *weight, int64_t row, gmem_type to, float *scale, unsigned char *out) {
    float values[MAX_COLS];
    const size_t bytes = gmem_type_bytes(weight->type);
    const char *data = (const char *)weight->data + (size_t)(row * weight->row_stride) * bytes;
    const gmem_tensor tensor = gmem_tensor_make("row", weight->type, 1, &weight->cols, data);
    *scale = weight->scale ? weight->scale[row] : 1;
    gmem_tensor_read_f32(&tensor, 0, weight->cols, values);
    for (int64_t i = 0; i < weight->cols; i++)
        values[i] *= *scale;
    if (to == weight->type) {
        memcpy(out, data, (size_t)weight->cols * bytes);
    } else if (to != GMEM_I8) {
        gmem_convert_f32(values, weight->cols, to, out);
    } else if (gmem__all_finite(values, weight->cols)) {
        expected_i8(weight, row, scale, out);
    } else {
        memset(out, 0, (size_t)weight->cols);
        *scale = NAN;
    }
}

/* `placed` is what became of `weight`. */
static int check_weight(struct gmem__stream *stream, const gmem__weight *weight, const gmem__weight *placed) {
    static unsigned char actual[4 * MAX_ROWS * MAX_COLS], expected[4 * MAX_COLS];
    float scale[MAX_ROWS], expected_scale;
    const int64_t row_bytes = weight->cols * (int64_t)gmem_type_bytes(placed->type);
    memset(actual, 0xa5, sizeof actual);
    gmem__stream_read(stream, placed->data, actual, weight->rows * row_bytes);
    if (placed->scale) gmem__stream_read(stream, placed->scale, scale, weight->rows * (int64_t)sizeof *scale);
    int same = gmem__stream_ok(stream) && placed->row_stride == weight->cols && placed->rows == weight->rows &&
               placed->cols == weight->cols && !placed->scale == (placed->type != GMEM_I8);
    for (int64_t row = 0; same && row < weight->rows; row++) {
        expected_row(weight, row, placed->type, &expected_scale, expected);
        same = memcmp(actual + row * row_bytes, expected, (size_t)row_bytes) == 0;
        if (placed->scale && !isnan(expected_scale)) same = same && scale[row] == expected_scale;
        if (placed->scale && isnan(expected_scale)) same = same && isnan(scale[row]);
    }
    return CHECK(same);
}

static const gmem_type types[] = {GMEM_F32, GMEM_F16, GMEM_BF16, GMEM_I8};
static const gmem_compute computes[] = {GMEM_COMPUTE_F32, GMEM_COMPUTE_BF16, GMEM_COMPUTE_INT8, GMEM_COMPUTE_F16};

static gmem_type type_for(gmem_type from, gmem_compute compute) {
    return compute == GMEM_COMPUTE_BF16   ? GMEM_BF16
           : compute == GMEM_COMPUTE_F16  ? GMEM_F16
           : compute == GMEM_COMPUTE_INT8 ? GMEM_I8
                                          : from;
}

/* Every type in every other, rows apart or not, aligned or not, large and small, all in one store. ----------------- */

enum { SHAPES = 7, WEIGHTS = 4 * 4 * SHAPES };

static const struct {
    int64_t rows, cols, stride, shift;
} shapes[SHAPES] = {{1, 1, 1, 0},           {1, 7, 7, 0},   {3, 5, 9, 0},
                    {17, 129, 129, 0},      {5, 64, 64, 4}, {MAX_ROWS, MAX_COLS, MAX_COLS, 0},
                    {MAX_ROWS, 333, 340, 0}};

static matrix *matrices; /* (WEIGHTS) */

static void place_weights(gmem__store *store, gmem__weight *placed) {
    gmem_error error;
    for (int i = 0; i < WEIGHTS; i++) {
        matrix *m = &matrices[i];
        const int shape = i % SHAPES;
        make_matrix(m, types[i / SHAPES % 4], shapes[shape].rows, shapes[shape].cols, shapes[shape].stride,
                    shapes[shape].shift);
        placed[i] = m->weight;
        CHECK_OK(gmem__device_place_weight(store, &placed[i], &error));
        CHECK(placed[i].data != m->weight.data);
    }
    for (int i = 0; i < WEIGHTS; i++) {
        const gmem_compute compute = computes[i / SHAPES / 4];
        CHECK_OK(gmem__device_narrow(store, &placed[i], compute, &error));
        CHECK_INT(placed[i].type, type_for(matrices[i].weight.type, compute));
        CHECK_INT(placed[i].compute, compute);
    }
}

static void check_weights(fixture *f, int64_t streamed) {
    static gmem__weight placed[WEIGHTS];
    gmem__store store = store_of(f);
    gmem_error error;
    float odd[13];
    const float *vector = odd;
    for (int i = 0; i < 13; i++)
        odd[i] = (float)i;
    place_weights(&store, placed);
    CHECK_OK(gmem__device_place_vector(&store, &vector, 13, &error));
    if (!CHECK_OK(gmem__device_upload(&store, &error))) printf("%s\n", error.message);
    CHECK((store.uploaded->streamed_bytes > 0) == (streamed != 0));
    CHECK((strstr(f->log, "streamed") != NULL) == (streamed != 0));
    struct gmem__stream *stream = stream_of(f, &store);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < WEIGHTS; i++)
            if (!check_weight(stream, &matrices[i].weight, &placed[i])) printf("  weight %d\n", i);
    }
    float back[13];
    gmem__stream_read(stream, vector, back, sizeof back);
    CHECK(memcmp(back, odd, sizeof back) == 0);
    CHECK(gmem__stream_ok(stream));
    gmem__stream_close(stream);
    store_close(&store);
}

/* On a device of so many bytes, `largest` of them in a buffer; 0: as it is. */
static void test_weights_on(int own_memory, int64_t memory, int64_t largest) {
    fixture f;
    memset(&f.cl, 0, sizeof f.cl);
    f.cl.largest = largest;
    if (own_memory) {
        f.cl.not_unified = 1;
        f.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
        f.cl.memory = memory;
    }
    fixture_open(&f, memory);
    CHECK_INT(f.device->found.limits.is_cpu, !own_memory);
    check_weights(&f, memory);
    CHECK(own_memory ? f.cl.wrapped == 0 : f.cl.wrapped > 0);
    fixture_close(&f);
}

static void test_weights(void) {
    static const int64_t sizes[] = {0, 1500000, 700000}; /* of the device: as it is, some and most are streamed */
    static const int64_t largest[] = {0, 20000, 2800};   /* the last: a row of the widest floats */
    for (int own_memory = 0; own_memory < 2; own_memory++)
        for (int i = 0; i < 9; i++)
            test_weights_on(own_memory, sizes[i % 3], largest[i / 3]);
}

static void test_weight_too_deep_for_int8(void) {
    fixture f;
    gmem__weight weight;
    gmem_error error;
    fixture_default(&f);
    gmem__store store = store_of(&f);
    memset(&weight, 0, sizeof weight);
    weight.rows = 1;
    weight.cols = weight.row_stride = (1 << 16) + 1;
    weight.data = matrices;
    CHECK_OK(gmem__device_place_weight(&store, &weight, &error));
    CHECK_OK(gmem__device_narrow(&store, &weight, GMEM_COMPUTE_INT8, &error));
    CHECK(weight.type == GMEM_F32 && weight.compute == GMEM_COMPUTE_F32 && !weight.scale);
    store_close(&store);
    CHECK_OK(gmem__device_upload(&store, &error)); /* of nothing */
    fixture_close(&f);
}

/* A wrapped buffer is the host's own memory; where wrapping fails it is copied. */
static void test_wrapping(void) {
    for (int fails = 0; fails < 2; fails++) {
        fixture f;
        gmem_error error;
        fixture_default(&f);
        gmem__store store = store_of(&f);
        float *values = (float *)gmem__store_alloc(&store, 1000, sizeof *values), back[1000];
        const float *placed = values;
        for (int i = 0; i < 1000; i++)
            values[i] = (float)i;
        f.cl.fail = FAILING_clCreateBuffer;
        f.cl.code = FAILING_CL_OUT_OF_RESOURCES;
        f.cl.at = fails;
        CHECK_OK(gmem__device_place_vector(&store, &placed, 1000, &error));
        CHECK_OK(gmem__device_upload(&store, &error));
        CHECK_INT(f.cl.wrapped, !fails);
        CHECK_INT(store.uploaded->wraps, !fails);
        CHECK_INT(store.uploaded->resident_bytes, 4000);
        CHECK_INT(f.device->used, 4000);
        struct gmem__stream *stream = stream_of(&f, &store);
        gmem__stream_read(stream, placed + 17, back, 983 * sizeof *back);
        CHECK(memcmp(back, values + 17, 983 * sizeof *back) == 0);
        gmem__stream_fail(stream, GMEM_E_ARGUMENT, "a mistake");
        gmem__stream_close(stream);
        CHECK_INT(f.cl.calls[FAILING_clFinish], !fails); /* ... unless it may be reading the host's memory */
        store_close(&store);
        fixture_close(&f);
    }
}

/* Nothing fits: the message says so, when a network is opened. */
static void test_too_small(void) {
    gmem_error error;
    for (int i = 0; i < 2; i++) {
        fixture f;
        memset(&f.cl, 0, sizeof f.cl);
        f.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
        f.cl.not_unified = 1;
        if (i) f.cl.largest = 2000;
        fixture_open(&f, i ? 0 : 50000);
        gmem__store store = store_of(&f);
        make_matrix(matrices, GMEM_F32, MAX_ROWS, MAX_COLS, MAX_COLS, 0);
        CHECK_OK(gmem__device_place_weight(&store, &matrices->weight, &error));
        CHECK_STATUS(GMEM_E_MEMORY, gmem__device_upload(&store, &error));
        CHECK_CONTAINS(error.message, i ? "2800" : "112000"); /* one row is the least */
        CHECK_CONTAINS(error.message, i ? "2000" : "50000");
        store_close(&store);
        fixture_close(&f);
    }
}

/* Two slots: what was used last is still there, what was used longest ago is not. */
static void test_streaming_order(void) {
    fixture f;
    gmem__weight placed[3];
    gmem_error error;
    static const struct {
        int weight, sent;
    } steps[] = {{0, 1}, {0, 0}, {1, 1}, {0, 0}, {2, 1}, {0, 0}, {1, 1}, {2, 1}, {1, 0}, {0, 1}};
    memset(&f.cl, 0, sizeof f.cl);
    f.cl.memory = 340000;
    f.cl.type = GMEM__CL_DEVICE_TYPE_GPU;
    f.cl.not_unified = 1;
    fixture_open(&f, 340000);
    gmem__store store = store_of(&f);
    for (int i = 0; i < 3; i++) {
        make_matrix(&matrices[i], i == 1 ? GMEM_F16 : GMEM_F32, MAX_ROWS, MAX_COLS - i, MAX_COLS, 0);
        placed[i] = matrices[i].weight;
        CHECK_OK(gmem__device_place_weight(&store, &placed[i], &error));
    }
    CHECK_OK(gmem__device_upload(&store, &error));
    CHECK_INT(store.uploaded->resident_bytes, 0);
    CHECK_INT(store.uploaded->largest_streamed, 4 * MAX_ROWS * MAX_COLS);
    struct gmem__stream *stream = stream_of(&f, &store);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        const int64_t before = f.cl.calls[FAILING_clEnqueueWriteBuffer];
        const gmem__cl_place place = gmem__stream_find(stream, placed[steps[i].weight].data);
        CHECK(place.memory && place.offset == 0);
        CHECK_INT(f.cl.calls[FAILING_clEnqueueWriteBuffer] - before, steps[i].sent);
        check_weight(stream, &matrices[steps[i].weight].weight, &placed[steps[i].weight]);
    }
    CHECK(f.cl.most_bytes <= 340000);
    /* another stream finds room for one slot only, and does with it */
    struct gmem__stream *second = stream_of(&f, &store);
    for (int i = 0; i < 3; i++)
        check_weight(second, &matrices[i].weight, &placed[i]);
    gmem__stream_close(second);
    gmem__stream_close(stream);
    store_close(&store);
    fixture_close(&f);
}

/* Streams of several threads share the weights, and each has its own slots. */
typedef struct reader {
    fixture *f;
    const gmem__store *store;
    const gmem__weight *placed; /* (3), of which the first differ */
    int good;
} reader;

static void *read_in_thread(void *user) {
    reader *r = (reader *)user;
    static const size_t bytes = 4 * MAX_ROWS * MAX_COLS;
    char *back = (char *)malloc(bytes);
    for (int i = 0; i < 20; i++) {
        struct gmem__stream *stream = NULL;
        if (gmem__stream_open(r->f->device, r->store->uploaded, &stream, NULL) != GMEM_OK) break;
        int same = 1;
        for (int k = 0; k < 6; k++) {
            const int which = (i + k) % 3;
            gmem__stream_read(stream, r->placed[which].data, back, (int64_t)bytes);
            same = same && memcmp(back, matrices[which].weight.data, bytes) == 0;
        }
        r->good += same && gmem__stream_ok(stream);
        gmem__stream_close(stream);
    }
    free(back);
    return NULL;
}

static void test_threads(void) {
    fixture f;
    gmem__weight placed[3];
    gmem_error error;
    pthread_t threads[3];
    reader readers[3];
    memset(&f.cl, 0, sizeof f.cl);
    fixture_open(&f, 800000);
    gmem__store store = store_of(&f);
    for (int i = 0; i < 3; i++) {
        make_matrix(&matrices[i], GMEM_F32, MAX_ROWS, MAX_COLS, MAX_COLS, 0);
        ((float *)(uintptr_t)matrices[i].weight.data)[99] = (float)i;
        placed[i] = matrices[i].weight;
        CHECK_OK(gmem__device_place_weight(&store, &placed[i], &error));
    }
    f.device->found.limits.memory = 300000; /* at uploading: nothing stays */
    CHECK_OK(gmem__device_upload(&store, &error));
    f.device->found.limits.memory = 800000;
    CHECK_INT(store.uploaded->resident_bytes, 0);
    f.context->allocator = gmem__system_allocator(); /* the counting one is for one thread */
    for (int i = 0; i < 3; i++) {
        const reader one = {&f, &store, placed, 0};
        readers[i] = one;
        if (pthread_create(&threads[i], NULL, read_in_thread, &readers[i]) != 0) die("test", "no thread");
    }
    for (int i = 0; i < 3; i++) {
        (void)pthread_join(threads[i], NULL);
        CHECK_INT(readers[i].good, 20);
    }
    f.context->allocator.user = &f.host;
    f.context->allocator.alloc = failing_alloc;
    f.context->allocator.release = failing_release;
    store_close(&store);
    fixture_close(&f);
}

/* addresses ------------------------------------------------------------------------------------------------------- */

static void test_addresses(void) {
    fixture f;
    gmem__device_memory memory;
    gmem__cl_buffer buffer;
    uint64_t first[300], last = 0;
    fixture_default(&f);
    memset(&memory, 0, sizeof memory);
    memset(&buffer, 0, sizeof buffer);
    memory.device = f.device;
    for (int i = 0; i < 300; i++) {
        buffer.bytes = 1 + i * 5;
        buffer.address = first[i] = gmem__device_addresses(f.device, buffer.bytes);
        CHECK(first[i] > last && first[i] % 256 == 0 && first[i] > (uint64_t)(uintptr_t)&buffer);
        last = first[i] + (uint64_t)buffer.bytes;
        CHECK(gmem__device_memory_add(f.context, &memory, &buffer));
    }
    for (int i = 0; i < 300; i++) {
        const gmem__cl_buffer *found = gmem__device_memory_find(&memory, first[i]);
        CHECK(found && found->address == first[i]);
        CHECK(gmem__device_memory_find(&memory, first[i] + (uint64_t)(i * 5)) == found);
        CHECK(!gmem__device_memory_find(&memory, first[i] + (uint64_t)(i * 5 + 1)));
        CHECK(!gmem__device_memory_find(&memory, first[i] - 1));
    }
    gmem__device_memory_drop(&memory, first[100], (int64_t)(first[200] - first[100]));
    CHECK_INT(memory.count, 200);
    for (int i = 0; i < 300; i++)
        CHECK(!gmem__device_memory_find(&memory, first[i]) == (i >= 100 && i < 200));
    gmem__device_memory_drop(&memory, last + 1000, 1000);
    CHECK_INT(memory.count, 200);
    gmem__device_memory_clear(f.context, &memory);
    CHECK(gmem__device_addresses(f.device, INT64_MAX) == 0);
    CHECK(gmem__device_addresses(f.device, -1) == 0);
    CHECK(gmem__device_addresses(f.device, 0) > last);
    fixture_close(&f);
}

/* streams --------------------------------------------------------------------------------------------------------- */

/* Takes of these sizes, twice, as everywhere: to measure and to have. */
static void take_all(gmem__arena *arena, const int64_t *counts, int takes, float **out) {
    for (int i = 0; i < takes; i++)
        out[i] = GMEM__TAKE_F32(arena, counts[i]);
}

static void test_arenas(void) {
    fixture f;
    float *pointers[40], values[500], back[500];
    int64_t counts[40];
    fixture_default(&f);
    struct gmem__stream *stream = stream_of(&f, NULL);
    for (int i = 0; i < 40; i++)
        counts[i] = i * 37 % 11 * 41; /* some are nothing */
    for (int i = 0; i < 500; i++)
        values[i] = (float)i;
    for (int takes = 0; takes <= 40; takes += 8) {
        gmem__arena arena;
        const int64_t buffers = f.cl.buffers, used = f.device->used;
        memset(&arena, 0, sizeof arena);
        take_all(&arena, counts, takes, pointers);
        CHECK(gmem__stream_reserve(stream, f.context, &arena));
        CHECK(f.cl.buffers - buffers <= GMEM__ARENA_CUTS);
        take_all(&arena, counts, takes, pointers);
        CHECK(arena.memory && arena.used <= arena.bytes);
        for (int i = 0; i < takes; i++)
            gmem__stream_write(stream, pointers[i], values + i, counts[i] * 4);
        for (int i = 0; i < takes; i++) {
            const int64_t skip = counts[i] / 3;
            CHECK(pointers[i] != NULL);
            gmem__stream_read(stream, pointers[i] + skip, back, (counts[i] - skip) * 4);
            CHECK(memcmp(back, values + i + skip, (size_t)(counts[i] - skip) * 4) == 0);
        }
        CHECK(gmem__stream_ok(stream));
        gmem__stream_release(stream, f.context, &arena);
        gmem__stream_release(stream, f.context, &arena);
        CHECK(!arena.memory && f.cl.buffers == buffers && f.device->used == used);
    }
    gmem__stream_close(stream);
    fixture_close(&f);
}

static void check_refused(int64_t memory, int64_t largest, int64_t count, const char *part) {
    fixture f;
    gmem__arena arena;
    memset(&f.cl, 0, sizeof f.cl);
    f.cl.largest = largest;
    fixture_open(&f, memory);
    struct gmem__stream *stream = stream_of(&f, NULL);
    CHECK(gmem__stream_largest(stream) <= f.device->found.limits.largest);
    CHECK(gmem__stream_largest(stream) <= f.device->found.limits.memory / 4);
    memset(&arena, 0, sizeof arena);
    (void)GMEM__TAKE_F32(&arena, 100);
    (void)GMEM__TAKE_F32(&arena, count);
    CHECK(!gmem__stream_reserve(stream, f.context, &arena) && !arena.memory);
    CHECK_INT(stream->failed.code, GMEM_E_MEMORY);
    CHECK_CONTAINS(stream->failed.message, part);
    CHECK_INT(f.device->used, 4);                            /* the notes */
    CHECK(!gmem__stream_reserve(stream, f.context, &arena)); /* no more after a failure */
    CHECK_INT(stream->own.count, 0);
    gmem__stream_close(stream);
    fixture_close(&f);
}

static void test_refused_arenas(void) {
    check_refused(0, 100000, 30000, "120000 bytes is wanted, its largest has 100000");
    check_refused(100000, 0, 24950, "100248 bytes are wanted, 4 of 100000 are in use");
    check_refused(0, 0, INT64_MAX / 2, "larger than");
}

static void test_scratch(void) {
    fixture f;
    fixture_default(&f);
    struct gmem__stream *stream = stream_of(&f, NULL);
    gmem__cl_mem first = gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, 1000);
    CHECK(first && gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, 10) == first);
    CHECK(gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SUMS, 0) != first);
    CHECK(gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, 1001) != NULL);
    CHECK_INT(f.device->used, 4 + 1 + 1001);
    CHECK_INT(f.cl.buffers, 3);
    CHECK(!gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SCORES, INT64_MAX));
    CHECK_INT(stream->failed.code, GMEM_E_MEMORY);
    CHECK(!gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SUMS, 1));
    gmem__stream_close(stream);
    fixture_close(&f);
}

/* to = factor * from, from element on, by the kernel above. */
static void scale(struct gmem__stream *stream, float *to, const float *from, int64_t count, float factor) {
    const int64_t global = count, local = 16;
    gmem__cl_launch launch = gmem__launch(stream, GMEM__CL_copy);
    gmem__launch_pointer(&launch, to, sizeof *to);
    gmem__launch_pointer(&launch, from, sizeof *from);
    gmem__launch_int(&launch, count);
    gmem__launch_float(&launch, factor);
    gmem__launch_run(&launch, 1, &global, count % 2 ? &local : NULL);
}

static float *take_floats(fixture *f, struct gmem__stream *stream, gmem__arena *arena, int64_t count) {
    memset(arena, 0, sizeof *arena);
    (void)GMEM__TAKE_F32(arena, count);
    CHECK(gmem__stream_reserve(stream, f->context, arena));
    return GMEM__TAKE_F32(arena, count);
}

static void test_launches(void) {
    fixture f;
    gmem__arena a, b;
    float values[301];
    fixture_default(&f);
    struct gmem__stream *stream = stream_of(&f, NULL);
    float *x = take_floats(&f, stream, &a, 301), *y = take_floats(&f, stream, &b, 301);
    for (int i = 0; i < 301; i++)
        values[i] = (float)i;
    gmem__stream_write(stream, x, values, sizeof values);
    for (int i = 0; i < 20; i++) { /* in order: each reads what the one before has written */
        scale(stream, y, x, 301, 2);
        scale(stream, x, y + 1, 300, 0.5f);
    }
    gmem__stream_read(stream, x, values, sizeof values);
    CHECK(values[0] == 20 && values[100] == 120 && values[300] == 300);
    CHECK_INT(f.cl.kernels, 1);
    CHECK(f.cl.calls[FAILING_clFlush] >= 2);
    gmem__stream_finish(stream);
    const int64_t launches = f.cl.calls[FAILING_clEnqueueNDRangeKernel];
    scale(stream, y, x, 0, 1); /* nothing to do */
    CHECK(gmem__stream_ok(stream) && f.cl.calls[FAILING_clEnqueueNDRangeKernel] == launches);
    gmem__stream_release(stream, f.context, &a);
    gmem__stream_release(stream, f.context, &b);
    gmem__stream_close(stream);
    fixture_close(&f);
}

static void check_sizes(struct gmem__stream *stream, int *memory, int dimensions, const int64_t *global,
                        const int64_t *local, const int *expected) {
    int sizes[6];
    gmem__cl_launch launch = gmem__launch(stream, GMEM__CL_transpose);
    gmem__launch_pointer(&launch, memory, sizeof *memory);
    gmem__launch_local(&launch, 4096 * sizeof(int));
    gmem__launch_run(&launch, dimensions, global, local);
    gmem__stream_read(stream, memory, sizes, sizeof sizes);
    if (!CHECK(gmem__stream_ok(stream))) printf("%s\n", stream->failed.message);
    CHECK(memcmp(sizes, expected, sizeof sizes) == 0);
}

/* Work-groups of a device that runs at most so many work-items. */
static void test_work_groups(void) {
    static const struct {
        int64_t most;
        int dimensions;
        int64_t global[3], local[3];
        int expected[6];
    } cases[] = {
        {0, 1, {100, 1, 1}, {64, 1, 1}, {128, 1, 1, 64, 1, 1}}, {0, 2, {33, 5, 1}, {16, 4, 1}, {48, 8, 1, 16, 4, 1}},
        {0, 3, {3, 4, 5}, {2, 2, 2}, {4, 4, 6, 2, 2, 2}},       {10, 1, {100, 1, 1}, {64, 1, 1}, {104, 1, 1, 8, 1, 1}},
        {10, 2, {33, 5, 1}, {16, 4, 1}, {34, 8, 1, 2, 4, 1}},   {1, 3, {3, 4, 5}, {256, 1, 7}, {3, 4, 5, 1, 1, 1}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fixture f;
        gmem__arena arena;
        memset(&f.cl, 0, sizeof f.cl);
        f.cl.work_group = cases[i].most;
        fixture_open(&f, 0);
        struct gmem__stream *stream = stream_of(&f, NULL);
        int *memory = (int *)(void *)take_floats(&f, stream, &arena, 6);
        check_sizes(stream, memory, cases[i].dimensions, cases[i].global, cases[i].local, cases[i].expected);
        gmem__stream_close(stream); /* with its arenas */
        fixture_close(&f);
    }
}

/* Each mistake fails the stream, and nothing more happens on it. */
static void check_mistake(int which, const char *part) {
    fixture f;
    gmem__arena arena;
    float host[2] = {3, 4};
    const int64_t one = 1;
    fixture_default(&f);
    struct gmem__stream *stream = stream_of(&f, NULL);
    float *x = take_floats(&f, stream, &arena, 10);
    gmem__cl_launch launch = gmem__launch(stream, GMEM__CL_copy);
    if (which == 0) gmem__launch_pointer(&launch, host, sizeof *host);
    if (which == 1) gmem__launch_pointer(&launch, (char *)x + 2, sizeof *x);
    if (which == 2) gmem__launch_int(&launch, (int64_t)1 << 31);
    if (which == 3) gmem__launch_int(&launch, -((int64_t)1 << 31) - 1);
    if (which == 4) gmem__stream_read(stream, x + 9, host, sizeof host);
    if (which == 5) gmem__launch_run(&launch, 1, &one, NULL);  /* without arguments */
    if (which == 6) (void)gmem__launch(stream, GMEM__CL_silu); /* not in this program */
    CHECK(!gmem__stream_ok(stream));
    CHECK_CONTAINS(stream->failed.message, part);
    const gmem_error failed = stream->failed;
    const int64_t calls = f.cl.calls[FAILING_CL_ANY];
    scale(stream, x, x, 10, 2);
    gmem__stream_write(stream, x, host, sizeof host);
    gmem__stream_read(stream, x, host, sizeof host);
    gmem__stream_finish(stream);
    gmem__stream_fail(stream, GMEM_E_ARGUMENT, "another");
    CHECK(!gmem__stream_check(stream, "clAnother", -5) && gmem__stream_check(stream, "clAnother", 0));
    CHECK(!gmem__stream_find(stream, x).memory && !gmem__stream_find(stream, NULL).memory);
    CHECK_INT(f.cl.calls[FAILING_CL_ANY], calls);
    CHECK(memcmp(&failed, &stream->failed, sizeof failed) == 0 && host[0] == 3 && host[1] == 4);
    gmem__stream_close(stream);
    CHECK_INT(f.cl.calls[FAILING_clFinish], 0); /* nobody waits for a device that has failed ... */
    fixture_close(&f);
}

static void test_mistakes(void) {
    static const char *const parts[] = {"not the device's",
                                        "between two elements",
                                        "beyond what a kernel counts",
                                        "beyond what a kernel counts",
                                        "not the device's",
                                        "clEnqueueNDRangeKernel: CL_INVALID_KERNEL_ARGS (-52)",
                                        "clCreateKernel: CL_INVALID_KERNEL_NAME (-46)"};
    for (int i = 0; i < 7; i++)
        check_mistake(i, parts[i]);
}

static void test_notes(void) {
    fixture f;
    int notes = -1;
    const int four = 4;
    fixture_default(&f);
    struct gmem__stream *stream = stream_of(&f, NULL);
    gmem__stream_read(stream, NULL, &notes, sizeof notes);
    CHECK_INT(notes, 0);
    gmem__stream_write(stream, NULL, &four, sizeof four);
    gmem__stream_read(stream, NULL, &notes, sizeof notes);
    CHECK(gmem__stream_ok(stream) && notes == 4);
    gmem__stream_close(stream);
    gmem__stream_close(NULL);
    gmem__device_memory_free(f.context, NULL);
    fixture_close(&f);
}

static void test_many_streams(void) {
    fixture f;
    fixture_default(&f);
    for (int i = 0; i < 200; i++) {
        gmem__arena arena;
        struct gmem__stream *stream = stream_of(&f, NULL);
        float *x = take_floats(&f, stream, &arena, 100);
        scale(stream, x, x + 10, 90, 1);
        gmem__stream_close(stream);
        CHECK_INT(f.device->used, 0);
    }
    fixture_close(&f);
}

/* failures -------------------------------------------------------------------------------------------------------- */

/* From weights on the host to a result: resident, converted and streamed weights, a launch on each. */
static gmem_status work(fixture *f, gmem_error *error) {
    gmem__store store = store_of(f);
    gmem__weight placed[4];
    gmem__arena arena;
    struct gmem__stream *stream = NULL;
    float result[10];
    gmem_status status = GMEM_OK;
    for (int i = 0; i < 4 && status == GMEM_OK; i++) {
        make_matrix(&matrices[i], GMEM_F32, i == 3 ? 2 : MAX_ROWS, MAX_COLS, MAX_COLS, 0);
        placed[i] = matrices[i].weight;
        status = gmem__device_place_weight(&store, &placed[i], error);
        if (status == GMEM_OK && i >= 2) status = gmem__device_narrow(&store, &placed[i], computes[i - 1], error);
    }
    if (status == GMEM_OK) status = gmem__device_upload(&store, error);
    if (status == GMEM_OK) status = gmem__stream_open(f->device, store.uploaded, &stream, error);
    if (status == GMEM_OK) {
        memset(&arena, 0, sizeof arena);
        (void)GMEM__TAKE_F32(&arena, 10);
        if (gmem__stream_reserve(stream, f->context, &arena)) {
            float *y = GMEM__TAKE_F32(&arena, 10);
            for (int i = 0; i < 24; i++)
                scale(stream, y, (const float *)placed[i % 4].data, 10, 1);
            (void)gmem__stream_scratch(stream, GMEM__CL_SCRATCH_SUMS, 100);
            gmem__stream_read(stream, y, result, sizeof result);
            gmem__stream_finish(stream);
            gmem__stream_release(stream, f->context, &arena);
        }
        status = stream->failed.code;
        *error = stream->failed;
        gmem__stream_close(stream);
    }
    store_close(&store);
    return status;
}

static void fixture_for_work(fixture *f, int unified) {
    memset(&f->cl, 0, sizeof f->cl);
    if (!unified) {
        f->cl.type = GMEM__CL_DEVICE_TYPE_GPU;
        f->cl.not_unified = 1;
        f->cl.largest = 60000; /* the wide weights are cut */
    }
    fixture_open(f, 520000);
}

/* Nothing is left of it, and what failed works again. */
static void check_given_back(fixture *f, int64_t live) {
    f->cl.at = 0;
    f->cl.for_good = 0;
    f->cl.failed = NULL;
    CHECK(!f->cl.buffers && !f->cl.queues && !f->cl.kernels && !f->cl.misuse);
    CHECK_INT(f->device->used, 0);
    CHECK_INT(f->host.live, live);
}

/* Call number `call` of OpenCL from now on fails, once or for good. Returns whether it was made. */
static int work_failing(fixture *f, int64_t call, int for_good, gmem_status *status) {
    static const int codes[] = {FAILING_CL_OUT_OF_RESOURCES, FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE,
                                FAILING_CL_DEVICE_NOT_AVAILABLE, -9999};
    const int64_t live = f->host.live;
    gmem_error error;
    memset(&error, 0, sizeof error);
    f->cl.fail = FAILING_CL_ANY;
    f->cl.at = f->cl.calls[FAILING_CL_ANY] + call;
    f->cl.code = codes[call % 4];
    f->cl.for_good = for_good;
    *status = work(f, &error);
    const char *failed = f->cl.failed;
    if (*status != GMEM_OK) {
        const int memory = f->cl.code == FAILING_CL_MEM_OBJECT_ALLOCATION_FAILURE;
        CHECK_STATUS(memory ? GMEM_E_MEMORY : GMEM_E_DEVICE, *status);
        CHECK_INT(error.code, *status);
        CHECK_CONTAINS(error.message, failed && !for_good ? failed : "cl");
    }
    check_given_back(f, live);
    return failed != NULL;
}

static void test_failing_calls(void) {
    for (int kind = 0; kind < 4; kind++) {
        int64_t failures = 0, forgiven = 0;
        gmem_status status = GMEM_OK;
        fixture f;
        fixture_for_work(&f, kind / 2);
        for (int64_t call = 1; work_failing(&f, call, kind % 2, &status) && call < 1000; call++) {
            failures += status != GMEM_OK;
            forgiven += status == GMEM_OK;
        }
        CHECK_OK(status); /* when all calls go well */
        CHECK(failures > 100);
        /* what cannot be wrapped is copied, what has no slot goes through another; releases; the last wait */
        CHECK(forgiven > 5 && forgiven < 40);
        fixture_close(&f);
    }
}

static void test_failing_allocations(void) {
    for (int kind = 0; kind < 4; kind++) {
        gmem_status status = GMEM_E_MEMORY;
        int64_t failures = 0;
        fixture f;
        fixture_for_work(&f, kind / 2);
        const int64_t live = f.host.live;
        for (; status != GMEM_OK && failures < 1000; failures++) {
            gmem_error error;
            f.host.countdown = failures;
            f.host.for_good = kind % 2;
            status = work(&f, &error);
            f.host.countdown = -1;
            if (status != GMEM_OK && !CHECK_STATUS(GMEM_E_MEMORY, status)) break;
            check_given_back(&f, live);
        }
        CHECK(status == GMEM_OK && failures > 6);
        fixture_close(&f);
    }
}

int main(void) {
    matrices = (matrix *)malloc(WEIGHTS * sizeof *matrices);
    if (!matrices) die("test", "no memory");
    test_weights();
    test_weight_too_deep_for_int8();
    test_wrapping();
    test_too_small();
    test_streaming_order();
    test_threads();
    test_addresses();
    test_arenas();
    test_refused_arenas();
    test_scratch();
    test_launches();
    test_work_groups();
    test_mistakes();
    test_notes();
    test_many_streams();
    test_failing_calls();
    test_failing_allocations();
    free(matrices);
    return check_report();
}
