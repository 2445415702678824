/* Where a pass spends its time. The model's code knows nothing of it: its engine gets a table of operations that time
 * themselves around the real ones, and a linear layer is told by its weight's address. */
#include "profile.h"

#include <stddef.h>

GMEM_API const char *gmem_operation_name(gmem_operation operation) {
    static const char *const names[] = {
#define GMEM__OPERATION_NAME(name, text) text,
        GMEM_OPERATION_LIST(GMEM__OPERATION_NAME)
#undef GMEM__OPERATION_NAME
    };
    return (int)operation >= 0 && operation < GMEM_OPERATION_COUNT ? names[operation] : "";
}

/* The layers of a block, by their place in it. */
static gmem_operation gmem__operation_in_block(size_t offset) {
    if (offset == offsetof(gmem__dit_block, qkv.weight)) return GMEM_OPERATION_QKV;
    if (offset == offsetof(gmem__dit_block, proj.weight)) return GMEM_OPERATION_PROJ;
    if (offset == offsetof(gmem__dit_block, mlp_in.weight)) return GMEM_OPERATION_MLP_IN;
    if (offset == offsetof(gmem__dit_block, mlp_out.weight)) return GMEM_OPERATION_MLP_OUT;
    return GMEM_OPERATION_CONDITIONING;
}

static gmem_operation gmem__operation_of(const gmem_network *network, const gmem__weight *weight) {
    const uintptr_t blocks = (uintptr_t)network->blocks, place = (uintptr_t)weight;
    const uintptr_t bytes = (uintptr_t)network->info.depth * sizeof *network->blocks;
    if (weight == &network->patch.weight) return GMEM_OPERATION_EMBEDDING;
    if (weight == &network->output.weight) return GMEM_OPERATION_FINAL;
    if (place < blocks || place - blocks >= bytes) return GMEM_OPERATION_CONDITIONING;
    return gmem__operation_in_block((size_t)((place - blocks) % sizeof *network->blocks));
}

static void gmem__profile_add(const gmem__profiler *profiler, gmem_operation operation, double start, double flop) {
    gmem_profile *profile = profiler->profile;
    int notes;
    if (profiler->inner.stream) profiler->inner.ops->settle(&profiler->inner, &notes, NULL); /* it has only begun */
    profile->operations[operation].calls++;
    profile->operations[operation].seconds += profile->clock(profile->user) - start;
    profile->operations[operation].flop += flop;
}

static double gmem__profile_now(const gmem__profiler *profiler) {
    return profiler->profile->clock(profiler->profile->user);
}

static void gmem__profiled_linear(const gmem__engine *engine, const gmem__linear *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double flop = 2.0 * (double)op->weight->rows * (double)op->weight->cols * (double)op->columns;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->linear(&profiler->inner, op);
    gmem__profile_add(profiler, gmem__operation_of(profiler->network, op->weight), start, flop);
}

static void gmem__profiled_norm(const gmem__engine *engine, const gmem__norm *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->norm(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_NORM, start, 0);
}

static void gmem__profiled_rotate(const gmem__engine *engine, const gmem__rotate *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->rotate(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_ROTATE, start, 0);
}

static void gmem__profiled_attention(const gmem__engine *engine, const gmem__attention *op) {
    const gmem__profiler *profiler = engine->profiler;
    const double pairs = (double)op->tokens * (double)op->tokens * (double)op->samples;
    const double start = gmem__profile_now(profiler);
    profiler->inner.ops->attention(&profiler->inner, op);
    gmem__profile_add(profiler, GMEM_OPERATION_ATTENTION, start,
                      4.0 * pairs * (double)op->heads * (double)op->head_dim); /* q k^T, and its product with v */
}

GMEM__FN void gmem__profile_engine(gmem__engine *engine, gmem__profiler *profiler, const gmem_network *network,
                                   gmem_profile *profile) {
    if (engine->profiler) *engine = profiler->inner;
    if (!profile) return;
    profiler->inner = *engine;
    profiler->network = network;
    profiler->profile = profile;
    profiler->ops = *engine->ops;
    profiler->ops.linear = gmem__profiled_linear;
    profiler->ops.norm = gmem__profiled_norm;
    profiler->ops.rotate = gmem__profiled_rotate;
    profiler->ops.attention = gmem__profiled_attention; /* a transformer has no convolutions and no group norms */
    engine->ops = &profiler->ops;
    engine->profiler = profiler;
}
