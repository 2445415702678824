/* Engines: where a model's operations run, decided by where its weights are. */
#include "internal.h"

GMEM__FN gmem__engine gmem__cpu_engine(const gmem_context *context) {
    gmem__engine engine;
    memset(&engine, 0, sizeof engine);
    engine.ops = context->ops;
    engine.threads = context->threads;
    engine.bf16 = context->bf16;
    engine.int8 = context->int8;
    return engine;
}

GMEM__FN gmem_status gmem__engine_open(const gmem__store *store, gmem__engine *engine, gmem_error *error) {
    *engine = gmem__cpu_engine(store->context);
    if (!store->device) return GMEM_OK;
    GMEM__TRY(gmem__stream_open(store->device, store->uploaded, &engine->stream, error));
    engine->ops = gmem__opencl_ops();
    return GMEM_OK;
}

GMEM__FN void gmem__engine_close(gmem__engine *engine) {
    if (engine->stream) gmem__stream_close(engine->stream);
    engine->stream = NULL;
}

GMEM__FN gmem_status gmem__engine_reserve(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena,
                                          const char *what, gmem_error *error) {
    int notes;
    const int64_t bytes = arena->used;
    if (engine->ops->reserve(engine, context, arena)) return GMEM_OK;
    GMEM__TRY(engine->ops->settle(engine, &notes, error)); /* a device says why */
    return gmem__fail(error, GMEM_E_MEMORY, "no memory for %s: %lld bytes", what, (long long)bytes);
}

GMEM__FN gmem_status gmem__choose_device(const gmem_context *context, gmem_backend backend, struct gmem__device **out,
                                         gmem_error *error) {
    if ((int)backend < 0 || backend > GMEM_BACKEND_OPENCL) return gmem__fail(error, GMEM_E_ARGUMENT, "no such backend");
    if (backend == GMEM_BACKEND_OPENCL && !context->device)
        return gmem__fail(error, GMEM_E_COMBINATION, "the context has no OpenCL device");
    *out = backend == GMEM_BACKEND_CPU ? NULL : context->device;
    return GMEM_OK;
}
