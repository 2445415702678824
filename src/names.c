/* A hash table from names to numbers: open addressing, FNV-1a, names stay where they are. */
#include "names.h"

/* The slot that holds the name, or the free one where it belongs. The table's own address begins the hash, so that a
 * file's author cannot choose names that all meet in one place. */
static int64_t gmem__names_slot(const gmem__names *names, const unsigned char *text, int64_t bytes) {
    uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)(uintptr_t)names->slots;
    for (int64_t i = 0; i < bytes; i++)
        hash = (hash ^ text[i]) * 0x100000001b3u;
    const int64_t mask = names->size - 1;
    for (int64_t slot = (int64_t)(hash ^ hash >> 32) & mask;; slot = (slot + 1) & mask) {
        const gmem__name_slot *taken = &names->slots[slot];
        if (!taken->text) return slot;
        if (taken->bytes == bytes && memcmp(taken->text, text, (size_t)bytes) == 0) return slot;
    }
}

GMEM__FN int gmem__names_reserve(gmem__names *names, int64_t count) {
    gmem__names larger = {names->context, NULL, 16, 0};
    if (count > INT32_MAX / 4) return 0;
    while (larger.size < 2 * count)
        larger.size *= 2;
    if (larger.size <= names->size) return 1;
    larger.slots = (gmem__name_slot *)gmem__alloc(names->context, larger.size, sizeof *larger.slots);
    if (!larger.slots) return 0;
    for (int64_t i = 0; i < names->size; i++) {
        const gmem__name_slot *slot = &names->slots[i];
        if (slot->text) gmem__names_add(&larger, slot->text, slot->bytes, slot->index);
    }
    gmem__names_free(names);
    *names = larger;
    return 1;
}

GMEM__FN void gmem__names_add(gmem__names *names, const unsigned char *text, int64_t bytes, int32_t index) {
    gmem__name_slot *slot = &names->slots[gmem__names_slot(names, text, bytes)];
    slot->text = text;
    slot->bytes = (int32_t)bytes;
    slot->index = index;
    names->count++;
}

GMEM__FN int32_t gmem__names_find(const gmem__names *names, const unsigned char *text, int64_t bytes) {
    if (names->size == 0 || bytes > INT32_MAX) return -1;
    const gmem__name_slot *slot = &names->slots[gmem__names_slot(names, text, bytes)];
    return slot->text ? slot->index : -1;
}

GMEM__FN void gmem__names_free(gmem__names *names) {
    gmem__free(names->context, names->slots, names->size, sizeof *names->slots);
    names->slots = NULL;
    names->size = names->count = 0;
}
