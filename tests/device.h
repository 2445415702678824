/* What tests of the operations on an OpenCL device share: its memory, checks of what is in it, and the kinds of devices
 * that the kernels are launched for. A program given the argument "small" takes fewer and smaller shapes, and not
 * CLBlast, for a simulator:
 * oclgrind --data-races --uninitialized --build-options -cl-opt-disable build/tests/test_opencl_ops small
 * (its check of uninitialised values knows few of the instructions that optimised vectors become). */
#ifndef DEVICE_H
#define DEVICE_H

#include "../backends/opencl/opencl.h"

#include "product.h"
#include "reference.h"
#include "simulator.h"

#define BAR 1e-6

static int small; /* shapes */
static int brief; /* under a simulator, as on a GPU: its large groups take seconds a launch */
static gmem_context *context;
static gmem__engine engine;

/* memory of the device --------------------------------------------------------------------------------------------- */

/* What a case has put there, each in an arena of its own; freed together. */
static gmem__arena arenas[32];
static int arena_count;

static inline float *device_alloc(int64_t count) {
    gmem__arena *arena = &arenas[arena_count++];
    memset(arena, 0, sizeof *arena);
    (void)gmem__take(arena, count, sizeof(float));
    CHECK(engine.ops->reserve(&engine, context, arena));
    return (float *)gmem__take(arena, count, sizeof(float));
}

static inline void device_free(void) {
    while (arena_count > 0)
        engine.ops->release(&engine, context, &arenas[--arena_count]);
}

/* A copy on the device; NULL stays NULL. */
static inline float *put(const float *x, int64_t count) {
    if (!x) return NULL;
    float *there = device_alloc(count);
    engine.ops->upload(&engine, there, x, count);
    return there;
}

/* The address of the first element, guards around it. */
static inline float *put_matrix(const matrix *m) { return put(m->memory, matrix_floats(m)) + GUARD; }

static inline void settle(const char *label) {
    gmem_error error;
    int notes = 0;
    memset(&error, 0, sizeof error);
    if (!CHECK_OK(engine.ops->settle(&engine, &notes, &error))) {
        printf("    %s: %s\n", label, error.message);
        exit(1); /* a stream that has failed does nothing more */
    }
    CHECK_INT(notes, 0);
}

/* Everything that the device holds of `m`, whose address there is `y`. */
static inline matrix take_back(const matrix *m, const float *y, const char *label) {
    matrix got = matrix_make(m->rows, m->columns, m->stride);
    engine.ops->download(&engine, got.memory, y - GUARD, matrix_floats(&got));
    settle(label);
    return got;
}

static inline void check_matrix(const char *label, const matrix *m, const float *y, const double *expected) {
    char text[240];
    matrix got = take_back(m, y, label);
    const double error = matrix_error(&got, expected);
    snprintf(text, sizeof text, "%s: error %.3g", label, error);
    check_result(error <= BAR, __FILE__, __LINE__, text);
    snprintf(text, sizeof text, "%s: guards", label);
    check_result(matrix_guards_hold(&got), __FILE__, __LINE__, text);
    matrix_free(&got);
}

/* Kernels are launched as for a processor, as for a GPU, and, but under a simulator, on a device that cannot do large
 * work-groups. */
static inline void test_devices(void (*test)(void)) {
    gmem__cl_limits *limits = &context->device->found.limits;
    const gmem__cl_limits own = *limits;
    for (int kind = 0; kind < 3 - small; kind++) {
        static const char *const names[] = {"a processor", "a GPU", "a GPU of small work-groups"};
        const int failed = check_failed;
        limits->is_cpu = kind == 0;
        brief = small && kind > 0;
        for (int i = 0; kind == 2 && i < GMEM__CL_KERNEL_COUNT; i++)
            if (engine.stream->work_group[i]) engine.stream->work_group[i] = 6;
        value_state = random_state = 1;
        test();
        if (check_failed > failed) printf("    as on %s\n", names[kind]);
    }
    *limits = own;
}

/* Opens a device and a stream on it, runs `test` on each kind and `after` once; the program's result. */
static inline int device_main(int argc, char **argv, void (*test)(void), void (*after)(void)) {
    gmem_context_desc desc;
    gmem_error error;
    small = argc > 1 && strcmp(argv[1], "small") == 0;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_OPENCL;
    if (small) desc.opencl = simulator();
    if (!CHECK_OK(gmem_context_create(&desc, &context, &error))) {
        printf("    %s\n", error.message);
        return check_report();
    }
    memset(&engine, 0, sizeof engine);
    engine.ops = gmem__opencl_ops();
    engine.threads = 1;
    if (!CHECK_OK(gmem__stream_open(context->device, NULL, &engine.stream, &error))) return check_report();
    test_devices(test);
    if (after) after();
    gmem__stream_close(engine.stream);
    gmem_context_destroy(context);
    return check_report();
}

#endif /* DEVICE_H */
