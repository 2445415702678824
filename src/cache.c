/* Step caching. Blocks' outputs change slowly from one step to the next (TeaCache, Liu et al., 2411.19108; DeepCache,
 * Ma et al., 2312.00858). The first block, which costs 1 / depth of a pass, tells how much: the change is measured
 * against the last pass that was computed, so small changes add up until they count. */
#include "cache.h"

#include <math.h>

GMEM__FN void gmem__cache_layout(gmem__cache *cache, gmem__arena *arena) {
    int64_t size = INT64_MAX; /* that overfills the arena */
    if (!(cache->threshold > 0)) return;
    if (!gmem__mul(cache->hidden, cache->tokens, &size) || !gmem__mul(size, cache->slots, &size)) size = INT64_MAX;
    cache->first = GMEM__TAKE_F32(arena, size);
    cache->rest = GMEM__TAKE_F32(arena, size);
    cache->start = GMEM__TAKE_F32(arena, size);
    cache->filled = (unsigned char *)gmem__take(arena, cache->slots, 1);
    cache->computed = (int64_t *)gmem__take(arena, cache->slots, sizeof *cache->computed);
}

GMEM__FN void gmem__cache_reset(gmem__cache *cache) {
    memset(&cache->counts, 0, sizeof cache->counts);
    if (cache->threshold > 0) memset(cache->filled, 0, (size_t)cache->slots);
}

/* Sample i's tokens of one channel in a stream of `samples`. */
static float *gmem__cache_row(const gmem__cache *cache, float *x, int64_t samples, int64_t channel, int64_t i) {
    return x + (channel * samples + i) * cache->tokens;
}

/* The same in the cache's own order, one sample after the other. */
static float *gmem__cache_held(const gmem__cache *cache, float *held, int64_t channel, int64_t i) {
    return held + (i * cache->hidden + channel) * cache->tokens;
}

static void gmem__cache_subtract(float *out, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = a[i] - b[i];
}

static void gmem__cache_hold(gmem__cache *cache, int64_t batch, const float *x) {
    for (int64_t channel = 0; channel < cache->hidden; channel++) {
        for (int64_t i = 0; i < batch; i++)
            memcpy(gmem__cache_held(cache, cache->start, channel, i), x + (channel * batch + i) * cache->tokens,
                   (size_t)cache->tokens * sizeof(float));
    }
}

GMEM__FN void gmem__cache_enter(gmem__cache *cache, int64_t batch, const float *x) {
    gmem__cache_hold(cache, batch, x);
}

/* Whether the first block adds to sample i what it added in the slot's last computed pass, or nearly. What is not
 * finite never does. */
static int gmem__cache_is_near(const gmem__cache *cache, int64_t slot, int64_t batch, float *x, int64_t i) {
    double change = 0, size = 0;
    if (!cache->filled[slot]) return 0;
    for (int64_t channel = 0; channel < cache->hidden; channel++) {
        const float *after = gmem__cache_row(cache, x, batch, channel, i);
        const float *before = gmem__cache_held(cache, cache->start, channel, i);
        const float *then = gmem__cache_held(cache, cache->first, channel, slot);
        for (int64_t token = 0; token < cache->tokens; token++) {
            change += fabs((double)after[token] - (double)before[token] - (double)then[token]);
            size += fabs((double)then[token]);
        }
    }
    return change < cache->threshold * size;
}

/* first[slot] = what the first block added. */
static void gmem__cache_remember_first(gmem__cache *cache, int64_t slot, int64_t batch, float *x, int64_t i) {
    for (int64_t channel = 0; channel < cache->hidden; channel++)
        gmem__cache_subtract(gmem__cache_held(cache, cache->first, channel, slot),
                             gmem__cache_row(cache, x, batch, channel, i),
                             gmem__cache_held(cache, cache->start, channel, i), cache->tokens);
}

GMEM__FN void gmem__cache_split(gmem__cache *cache, int64_t slot, int64_t batch, float *x) {
    cache->computed_count = 0;
    for (int64_t i = 0; i < batch; i++) {
        if (gmem__cache_is_near(cache, slot + i, batch, x, i)) continue;
        gmem__cache_remember_first(cache, slot + i, batch, x, i);
        cache->computed[cache->computed_count++] = i;
    }
    cache->counts.passes += batch;
    cache->counts.reused += batch - cache->computed_count;
    gmem__cache_hold(cache, batch, x);
    if (cache->computed_count == batch) return;
    for (int64_t channel = 0; channel < cache->hidden; channel++) { /* to the front: nothing is overwritten too early */
        for (int64_t i = 0; i < cache->computed_count; i++)
            memmove(gmem__cache_row(cache, x, cache->computed_count, channel, i),
                    gmem__cache_row(cache, x, batch, channel, cache->computed[i]),
                    (size_t)cache->tokens * sizeof(float));
    }
}

/* One channel of the reused samples from memory, between those that were computed. */
static void gmem__cache_join_channel(gmem__cache *cache, int64_t slot, int64_t batch, int64_t channel, float *x) {
    int64_t from = cache->computed_count - 1;
    for (int64_t i = batch - 1; i >= 0; i--) { /* from the back, for the same reason */
        float *const out = gmem__cache_row(cache, x, batch, channel, i);
        float *const start = gmem__cache_held(cache, cache->start, channel, i);
        float *const rest = gmem__cache_held(cache, cache->rest, channel, slot + i);
        if (from >= 0 && cache->computed[from] == i) {
            memmove(out, gmem__cache_row(cache, x, cache->computed_count, channel, from--),
                    (size_t)cache->tokens * sizeof(float));
            gmem__cache_subtract(rest, out, start, cache->tokens);
        } else {
            for (int64_t token = 0; token < cache->tokens; token++)
                out[token] = start[token] + rest[token];
        }
    }
}

GMEM__FN void gmem__cache_join(gmem__cache *cache, int64_t slot, int64_t batch, float *x) {
    for (int64_t channel = cache->hidden - 1; channel >= 0; channel--)
        gmem__cache_join_channel(cache, slot, batch, channel, x);
    for (int64_t i = 0; i < cache->computed_count; i++)
        cache->filled[slot + cache->computed[i]] = 1;
}
