/* The context: what the caller chose (instruction set, threads, memory, files, log), resolved once. */
#include "internal.h"

#include <stdio.h>

GMEM__FN void gmem__log(const gmem_context *context, const char *format, ...) {
    char line[512];
    va_list arguments;
    if (!context->log) return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    context->log(context->log_user, line);
}

static const char *gmem__isa_name(gmem_isa isa) {
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "amx"};
    return names[isa];
}

/* Hooks come together: a part of them would be called with the other part's data, or not be there when it is due. */
static int gmem__hooks_are_whole(const gmem_allocator *allocator, const gmem_io *io) {
    const int given = (io->open != NULL) + (io->size != NULL) + (io->read != NULL) + (io->write != NULL) +
                      (io->sync != NULL) + (io->close != NULL) + (io->rename != NULL) + (io->remove != NULL);
    return !allocator->alloc == !allocator->release && (given == 8 || (given == 0 && !io->map && !io->lock)) &&
           !io->map == !io->unmap && (io->map || !io->discard) && !io->lock == !io->unlock;
}

/* The device, where the description wants one. AUTO goes on without and says why. */
static gmem_status gmem__context_device(const gmem_context_desc *desc, gmem_context *context, gmem_error *error) {
    gmem_error why;
    context->asked = desc->backend;
    if (desc->backend != GMEM_BACKEND_CPU) {
        const gmem_status status = gmem__device_open(desc, context, &context->device, &why);
        if (status != GMEM_OK && desc->backend == GMEM_BACKEND_OPENCL) {
            if (error) *error = why;
            return status;
        }
        if (status != GMEM_OK) gmem__log(context, "the CPU, for %s", why.message);
    }
    if (desc->compute == GMEM_COMPUTE_F16 && !context->device)
        return gmem__fail(error, GMEM_E_UNSUPPORTED, "no CPU kernel computes in f16: bf16 is as fast");
    return GMEM_OK;
}

GMEM_API gmem_status gmem_context_create(const gmem_context_desc *desc, gmem_context **out, gmem_error *error) {
    gmem_context_desc defaults;
    memset(&defaults, 0, sizeof defaults);
    if (!desc) desc = &defaults;
    if (!out || (int)desc->isa < 0 || desc->isa > GMEM_ISA_AMX || (int)desc->compute < 0 ||
        desc->compute > GMEM_COMPUTE_F16 || (int)desc->backend < 0 || desc->backend > GMEM_BACKEND_OPENCL ||
        desc->device_memory < 0 || desc->threads < 0 || desc->threads > 4096)
        return gmem__fail(error, GMEM_E_ARGUMENT, "the context's description is out of range");
    if (!gmem__hooks_are_whole(&desc->allocator, &desc->io))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a function of the allocator or of the files is missing");
    gmem_isa isa = desc->isa;
    const gmem__ops *ops = NULL;
    if (isa == GMEM_ISA_AUTO && desc->compute != GMEM_COMPUTE_F32) ops = gmem__cpu_ops(GMEM_ISA_AMX, &isa);
    if (!ops) ops = gmem__cpu_ops(desc->isa, &isa);
    if (!ops)
        return gmem__fail(error, GMEM_E_UNSUPPORTED, "the instruction set %s is not available on this processor",
                          gmem__isa_name(desc->isa));
    gmem_allocator allocator = desc->allocator.alloc ? desc->allocator : gmem__system_allocator();
    gmem_context *context = (gmem_context *)allocator.alloc(allocator.user, sizeof *context);
    if (!context) return gmem__fail(error, GMEM_E_MEMORY, "no memory for the context");
    memset(context, 0, sizeof *context);
    context->allocator = allocator;
    context->io = desc->io.open ? desc->io : gmem__system_io();
    context->log = desc->log;
    context->log_user = desc->log_user;
    context->no_map = desc->no_map;
    context->isa = isa;
    context->any_isa = desc->isa == GMEM_ISA_AUTO;
    context->ops = ops;
    context->compute = desc->compute;
    if (desc->compute == GMEM_COMPUTE_BF16 || desc->compute == GMEM_COMPUTE_INT8)
        context->bf16 = gmem__cpu_narrow(isa, GMEM_BF16);
    if (desc->compute == GMEM_COMPUTE_INT8) context->int8 = gmem__cpu_narrow(isa, GMEM_I8);
    context->threads = desc->threads ? desc->threads : gmem__cpu_count();
#ifndef _OPENMP
    context->threads = 1;
#endif
    const gmem_status status = gmem__context_device(desc, context, error);
    if (status != GMEM_OK) {
        gmem_context_destroy(context);
        return status;
    }
    snprintf(context->backend, sizeof context->backend, "%s",
             context->device ? gmem__device_backend(context->device) : ops->name);
    gmem__log(context, "%s, products in %s, %d threads", context->backend, gmem_context_kernels(context),
              context->threads);
    *out = context;
    return GMEM_OK;
}

GMEM_API void gmem_context_destroy(gmem_context *context) {
    if (!context) return;
    if (context->device) gmem__device_close(context->device);
    context->allocator.release(context->allocator.user, context, sizeof *context);
}

GMEM_API const char *gmem_context_backend(const gmem_context *context) {
    return GMEM__ATOMIC_LOAD(&context->device_failed) ? context->ops->name : context->backend;
}
GMEM_API gmem_isa gmem_context_isa(const gmem_context *context) { return context->isa; }
GMEM_API int gmem_context_threads(const gmem_context *context) { return context->threads; }
GMEM_API gmem_compute gmem_context_compute(const gmem_context *context) { return context->compute; }

GMEM_API const char *gmem_context_kernels(const gmem_context *context) {
    if (context->device && !GMEM__ATOMIC_LOAD(&context->device_failed)) return gmem__device_kernels(context->device);
    if (context->int8) return gmem__cpu_narrow_name(context->int8);
    if (context->bf16) return gmem__cpu_narrow_name(context->bf16);
    return gmem__isa_name(context->isa);
}
