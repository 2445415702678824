/* OpenCL for tests that run under oclgrind: as the system has it, but buffers stay until their context goes. The
 * simulator takes a new buffer at an old one's address for the old one, and what a kernel wrote behind its end for
 * uninitialised. One context at a time in a program. */
#ifndef SIMULATOR_H
#define SIMULATOR_H

#include "../backends/opencl/cl.h"
#include "../src/api.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*simulator_any)(void);

static struct {
    int32_t(GMEM__CL_CALL *release)(gmem__cl_mem);
    int32_t(GMEM__CL_CALL *release_context)(gmem__cl_context);
    gmem__cl_mem *kept; /* released by the library */
    int64_t count, capacity;
} simulator_state;

static int32_t GMEM__CL_CALL simulator_release(gmem__cl_mem memory) {
    if (simulator_state.count == simulator_state.capacity) {
        simulator_state.capacity = 2 * simulator_state.capacity + 64;
        simulator_state.kept = (gmem__cl_mem *)realloc(simulator_state.kept,
                                                       (size_t)simulator_state.capacity * sizeof *simulator_state.kept);
        if (!simulator_state.kept) exit(1);
    }
    simulator_state.kept[simulator_state.count++] = memory;
    return GMEM__CL_SUCCESS;
}

static int32_t GMEM__CL_CALL simulator_release_context(gmem__cl_context of) {
    while (simulator_state.count > 0)
        (void)simulator_state.release(simulator_state.kept[--simulator_state.count]);
    free(simulator_state.kept);
    simulator_state.kept = NULL;
    simulator_state.capacity = 0;
    return simulator_state.release_context(of);
}

/* ISO C has no conversion from an object pointer to a function pointer; POSIX has one representation for both. */
static simulator_any simulator_find(void *library, const char *name) {
    void *found = dlsym(library, name);
    simulator_any function = NULL;
    memcpy(&function, &found, sizeof function);
    return function;
}

static simulator_any simulator_symbol(void *user, const char *name) {
    if (strcmp(name, "clReleaseMemObject") == 0) return (simulator_any)simulator_release;
    if (strcmp(name, "clReleaseContext") == 0) return (simulator_any)simulator_release_context;
    return simulator_find(user, name);
}

/* For gmem_context_desc.opencl; CLBlast is not there. */
static inline gmem_opencl simulator(void) {
    gmem_opencl opencl;
    opencl.user = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    opencl.symbol = simulator_symbol;
    if (!opencl.user) {
        printf("cannot open OpenCL's library: %s\n", dlerror());
        exit(1);
    }
    simulator_state.release = (int32_t(GMEM__CL_CALL *)(gmem__cl_mem))simulator_find(opencl.user, "clReleaseMemObject");
    simulator_state.release_context =
        (int32_t(GMEM__CL_CALL *)(gmem__cl_context))simulator_find(opencl.user, "clReleaseContext");
    return opencl;
}

#endif /* SIMULATOR_H */
