/* OpenCL for tests that run under oclgrind: as the system has it, but buffers are never released. The simulator takes a
 * new buffer at an old one's address for the old one, and what a kernel wrote behind its end for uninitialised. */
#ifndef SIMULATOR_H
#define SIMULATOR_H

#include "../backends/opencl/cl.h"
#include "../src/api.h"

#include <dlfcn.h>
#include <string.h>

static int32_t GMEM__CL_CALL simulator_release(gmem__cl_mem memory) {
    (void)memory;
    return GMEM__CL_SUCCESS;
}

static void (*simulator_symbol(void *user, const char *name))(void) {
    void (*function)(void) = NULL;
    int32_t(GMEM__CL_CALL * release)(gmem__cl_mem) = simulator_release;
    void *found = dlsym(user, name);
    if (strcmp(name, "clReleaseMemObject") == 0)
        memcpy(&function, &release, sizeof function);
    else
        memcpy(&function, &found, sizeof function);
    return function;
}

/* For gmem_context_desc.opencl; CLBlast is not there. */
static inline gmem_opencl simulator(void) {
    gmem_opencl opencl;
    opencl.user = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
    opencl.symbol = simulator_symbol;
    return opencl;
}

#endif /* SIMULATOR_H */
