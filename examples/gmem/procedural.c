/* Procedural weights: SplitMix64 seeded by the FNV-1a hash of the tensor's name. */
#include "procedural.h"

#include <math.h>
#include <string.h>

static uint64_t fnv1a(const char *text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *text; text++) {
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3u;
    }
    return hash;
}

static float uniform_at(uint64_t seed, int64_t index) {
    uint64_t z = seed + ((uint64_t)index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z = z ^ (z >> 31);
    return (float)(z >> 40) * (1.0f / 8388608.0f) - 1.0f;
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static int is_token(const char *name) {
    static const char *const names[] = {"cls_token", "pos_embed", "register_tokens", "mask_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) return 1;
    }
    return 0;
}

/* value = base + scale * u */
static void distribution(const char *name, int rank, const int64_t *shape, float *base, float *scale) {
    double fan_in = 1;
    *base = 0;
    for (int i = 1; i < rank; i++) {
        fan_in *= (double)shape[i];
    }
    if (rank < 2) {
        int gain = ends_with(name, ".weight") || ends_with(name, ".gamma");
        *base = gain ? 1.0f : 0.0f;
        *scale = gain ? 0.1f : 0.05f;
    } else if (is_token(name)) {
        *scale = 0.2f;
    } else if (ends_with(name, "condition_projection.linear.weight") || ends_with(name, "embedding_table.weight")) {
        *scale = (float)sqrt(3.0);
    } else {
        *scale = (float)sqrt(3.0 / fan_in);
    }
}

void procedural_uniform(const char *name, int64_t first, int64_t count, float *out) {
    uint64_t seed = fnv1a(name);
    for (int64_t i = 0; i < count; i++) {
        out[i] = uniform_at(seed, first + i);
    }
}

void procedural_fill(const char *name, int rank, const int64_t *shape, int64_t first, int64_t count, float *out) {
    float base, scale;
    distribution(name, rank, shape, &base, &scale);
    procedural_uniform(name, first, count, out);
    for (int64_t i = 0; i < count; i++) {
        out[i] = base + scale * out[i];
    }
}
