/* Memory: the default allocator, checked sizes, and the arena that holds a pass's activations. */
#include "internal.h"

#include <stdlib.h>

#define GMEM__ALIGNMENT 64
#define GMEM__HUGE_PAGE (2 << 20)

/* Over-allocates by the alignment and keeps the original pointer just before what it returns: C99 has no
 * aligned_alloc. What is much larger than a huge page lies in such pages where the system has them: looking up small
 * ones costs a third of the memory's bandwidth. */
static void *gmem__system_alloc(void *user, size_t bytes) {
    const size_t alignment = bytes >= 2 * GMEM__HUGE_PAGE ? GMEM__HUGE_PAGE : GMEM__ALIGNMENT;
    (void)user;
    if (bytes > SIZE_MAX / 2 - alignment - sizeof(void *)) return NULL; /* no object may be larger */
    char *raw = (char *)malloc(bytes + alignment + sizeof(void *));
    if (!raw) return NULL;
    uintptr_t start = (uintptr_t)raw + sizeof(void *);
    char *aligned = raw + sizeof(void *) + (alignment - start % alignment) % alignment;
    memcpy(aligned - sizeof(void *), &raw, sizeof(void *));
    if (alignment == GMEM__HUGE_PAGE) gmem__prefer_huge_pages(aligned, (int64_t)bytes);
    return aligned;
}

static void gmem__system_release(void *user, void *memory, size_t bytes) {
    void *raw;
    (void)user;
    (void)bytes;
    memcpy(&raw, (char *)memory - sizeof(void *), sizeof(void *));
    free(raw);
}

GMEM__FN gmem_allocator gmem__system_allocator(void) {
    gmem_allocator allocator = {NULL, gmem__system_alloc, gmem__system_release};
    return allocator;
}

GMEM__FN void *gmem__alloc_raw(const gmem_context *context, int64_t count, size_t bytes) {
    if (count < 0 || (uint64_t)count > SIZE_MAX / 2 / bytes) return NULL;
    size_t total = (size_t)count * bytes;
    return context->allocator.alloc(context->allocator.user, total ? total : 1);
}

GMEM__FN void *gmem__alloc(const gmem_context *context, int64_t count, size_t bytes) {
    void *memory = gmem__alloc_raw(context, count, bytes);
    if (memory) memset(memory, 0, (size_t)count * bytes);
    return memory;
}

GMEM__FN void gmem__free(const gmem_context *context, void *memory, int64_t count, size_t bytes) {
    if (!memory) return;
    size_t total = (size_t)count * bytes;
    context->allocator.release(context->allocator.user, memory, total ? total : 1);
}

GMEM__FN void *gmem__take(gmem__arena *arena, int64_t count, size_t bytes) {
    int64_t size = 0, end = 0, start = gmem__round_up(arena->used, GMEM__ALIGNMENT);
    if (!gmem__mul(count, (int64_t)bytes, &size) || !gmem__add(start, size, &end)) end = INT64_MAX - GMEM__ALIGNMENT;
    arena->used = end;
    if (!arena->memory && arena->cuts < GMEM__ARENA_CUTS) arena->cut[arena->cuts++] = end;
    return arena->memory && end <= arena->bytes ? arena->memory + start : NULL;
}

GMEM__FN int gmem__arena_reserve(const gmem_context *context, gmem__arena *arena) {
    arena->bytes = arena->used;
    arena->used = 0;
    arena->memory = (char *)gmem__alloc_raw(context, arena->bytes, 1);
    return arena->memory != NULL;
}

GMEM__FN void gmem__arena_release(const gmem_context *context, gmem__arena *arena) {
    gmem__free(context, arena->memory, arena->bytes, 1);
    arena->memory = NULL;
}

typedef struct gmem__block {
    struct gmem__block *next;
    int64_t bytes, used; /* of the whole allocation, this header included */
} gmem__block;

/* A new block goes first in the list, unless the first one has more room left for what comes. */
static gmem__block *gmem__block_add(const gmem_context *context, gmem__block **blocks, int64_t need) {
    int64_t bytes = gmem__max(need, *blocks ? gmem__min(2 * (*blocks)->bytes, 65536) : 2048);
    gmem__block *block = (gmem__block *)gmem__alloc(context, bytes, 1);
    if (!block) return NULL;
    block->bytes = bytes;
    block->used = (int64_t)sizeof *block;
    if (*blocks && bytes - need < (*blocks)->bytes - (*blocks)->used) {
        block->next = (*blocks)->next;
        (*blocks)->next = block;
    } else {
        block->next = *blocks;
        *blocks = block;
    }
    return block;
}

GMEM__FN void *gmem__blocks_take(const gmem_context *context, struct gmem__block **blocks, int64_t count, size_t bytes,
                                 size_t align) {
    int64_t size, need, a = (int64_t)align;
    if (!gmem__mul(count, (int64_t)bytes, &size) || !gmem__add(size, 2 * GMEM__ALIGNMENT, &need)) return NULL;
    gmem__block *block = *blocks;
    if (!block || block->bytes - gmem__round_up(block->used, a) < size) block = gmem__block_add(context, blocks, need);
    if (!block) return NULL;
    int64_t start = gmem__round_up(block->used, a);
    block->used = start + size;
    return (char *)block + start;
}

GMEM__FN void *gmem__blocks_take_raw(const gmem_context *context, gmem__block **blocks, int64_t bytes) {
    int64_t need;
    if (!*blocks && !gmem__block_add(context, blocks, 0)) return NULL; /* the first one serves small takes */
    if (!gmem__add(bytes, GMEM__ALIGNMENT, &need)) return NULL;
    gmem__block *block = (gmem__block *)gmem__alloc_raw(context, need, 1);
    if (!block) return NULL;
    block->bytes = block->used = need;
    block->next = (*blocks)->next;
    (*blocks)->next = block;
    return (char *)block + GMEM__ALIGNMENT;
}

GMEM__FN void gmem__blocks_free(const gmem_context *context, struct gmem__block **blocks) {
    while (*blocks) {
        gmem__block *block = *blocks;
        *blocks = block->next;
        gmem__free(context, block, block->bytes, 1);
    }
}

GMEM__FN int gmem__all_finite(const float *x, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bad |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
    }
    return !bad;
}
