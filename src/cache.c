/* Step caching. Blocks' outputs change slowly from one step to the next (TeaCache, Liu et al., 2411.19108; DeepCache,
 * Ma et al., 2312.00858). The first block, which costs 1 / depth of a pass, tells how much: the change is measured
 * against the last pass that was computed, so small changes add up until they count. */
#include "cache.h"

GMEM__FN void gmem__cache_layout_host(gmem__cache *cache, gmem__arena *arena) {
    if (!(cache->threshold > 0)) return;
    cache->filled = (unsigned char *)gmem__take(arena, cache->slots, 1);
    cache->computed = (int64_t *)gmem__take(arena, cache->slots, sizeof *cache->computed);
}

GMEM__FN void gmem__cache_layout_engine(gmem__cache *cache, gmem__arena *arena) {
    int64_t size = INT64_MAX; /* that overfills the arena */
    if (!(cache->threshold > 0)) return;
    if (!gmem__mul(cache->hidden, cache->tokens, &size) || !gmem__mul(size, cache->slots, &size)) size = INT64_MAX;
    cache->first = GMEM__TAKE_F32(arena, size);
    cache->rest = GMEM__TAKE_F32(arena, size);
    cache->start = GMEM__TAKE_F32(arena, size);
}

GMEM__FN void gmem__cache_reset(gmem__cache *cache) {
    memset(&cache->counts, 0, sizeof cache->counts);
    if (cache->threshold > 0) memset(cache->filled, 0, (size_t)cache->slots);
}

/* Sample i in the cache's own order, one sample after the other: (hidden, tokens). */
static float *gmem__cache_held(const gmem__cache *cache, float *held, int64_t i) {
    return held + i * cache->hidden * cache->tokens;
}

/* Sample i of a stream x (hidden, samples * tokens) into `held`, ... */
static void gmem__cache_take(const gmem__cache *cache, const gmem__engine *engine, const float *x, int64_t samples,
                             int64_t i, float *held) {
    gmem__copy copy;
    copy.to = held;
    copy.from = x + i * cache->tokens;
    copy.rows = cache->hidden;
    copy.width = copy.to_stride = cache->tokens;
    copy.from_stride = samples * cache->tokens;
    engine->ops->copy(engine, &copy);
}

/* ... and back. */
static void gmem__cache_give(const gmem__cache *cache, const gmem__engine *engine, const float *held, float *x,
                             int64_t samples, int64_t i) {
    gmem__copy copy;
    copy.to = x + i * cache->tokens;
    copy.from = held;
    copy.rows = cache->hidden;
    copy.width = copy.from_stride = cache->tokens;
    copy.to_stride = samples * cache->tokens;
    engine->ops->copy(engine, &copy);
}

/* held = a + weight * b, (hidden, tokens) each. */
static void gmem__cache_add(const gmem__cache *cache, const gmem__engine *engine, float *held, const float *a,
                            double weight, const float *b) {
    gmem__combine sum;
    memset(&sum, 0, sizeof sum);
    sum.out = held;
    sum.x = a;
    sum.x_weight = 1;
    sum.terms = 1;
    sum.weight[0] = weight;
    sum.k[0] = b;
    sum.rows = 1;
    sum.width = sum.stride = cache->hidden * cache->tokens;
    engine->ops->combine(engine, &sum);
}

GMEM__FN void gmem__cache_enter(gmem__cache *cache, const gmem__engine *engine, int64_t batch, const float *x) {
    for (int64_t i = 0; i < batch; i++)
        gmem__cache_take(cache, engine, x, batch, i, gmem__cache_held(cache, cache->start, i));
}

/* Whether the first block adds to sample i what it added in the slot's last computed pass, or nearly. What is not
 * finite never does. */
static int gmem__cache_is_near(const gmem__cache *cache, const gmem__engine *engine, int64_t slot, int64_t batch,
                               const float *x, int64_t i) {
    double change = 0, size = 0;
    gmem__change op;
    if (!cache->filled[slot]) return 0;
    op.after = x + i * cache->tokens;
    op.before = gmem__cache_held(cache, cache->start, i);
    op.residual = gmem__cache_held(cache, cache->first, slot);
    op.rows = cache->hidden;
    op.width = cache->tokens;
    op.after_stride = batch * cache->tokens;
    engine->ops->change(engine, &op, &change, &size);
    return change < cache->threshold * size;
}

GMEM__FN void gmem__cache_split(gmem__cache *cache, const gmem__engine *engine, int64_t slot, int64_t batch, float *x) {
    cache->computed_count = 0;
    for (int64_t i = 0; i < batch; i++) {
        float *const first = gmem__cache_held(cache, cache->first, slot + i);
        float *const start = gmem__cache_held(cache, cache->start, i);
        const int near = gmem__cache_is_near(cache, engine, slot + i, batch, x, i);
        if (!near) {
            gmem__cache_take(cache, engine, x, batch, i, first);
            gmem__cache_add(cache, engine, first, first, -1, start);
            cache->computed[cache->computed_count++] = i;
        }
        gmem__cache_take(cache, engine, x, batch, i, start);
    }
    cache->counts.passes += batch;
    cache->counts.reused += batch - cache->computed_count;
    for (int64_t i = 0; i < cache->computed_count && cache->computed_count < batch; i++)
        gmem__cache_give(cache, engine, gmem__cache_held(cache, cache->start, cache->computed[i]), x,
                         cache->computed_count, i);
}

GMEM__FN void gmem__cache_join(gmem__cache *cache, const gmem__engine *engine, int64_t slot, int64_t batch, float *x) {
    const int64_t count = cache->computed_count;
    for (int64_t i = 0; i < count; i++) /* all, before x is written to */
        gmem__cache_take(cache, engine, x, count, i, gmem__cache_held(cache, cache->rest, slot + cache->computed[i]));
    for (int64_t i = 0, from = 0; i < batch; i++) {
        float *const start = gmem__cache_held(cache, cache->start, i);
        float *const rest = gmem__cache_held(cache, cache->rest, slot + i);
        if (from < count && cache->computed[from] == i) {
            gmem__cache_give(cache, engine, rest, x, batch, i);
            gmem__cache_add(cache, engine, rest, rest, -1, start);
            cache->filled[slot + i] = 1;
            from++;
        } else {
            gmem__cache_add(cache, engine, start, start, 1, rest);
            gmem__cache_give(cache, engine, start, x, batch, i);
        }
    }
}
