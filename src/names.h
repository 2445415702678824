/* A table from names to numbers, for the readers of torch files. */
#ifndef GMEM__NAMES_H
#define GMEM__NAMES_H

#include "internal.h"

typedef struct gmem__name_slot {
    const unsigned char *text; /* (bytes) not owned, not terminated; NULL where free */
    int32_t bytes, index;
} gmem__name_slot;

/* Zero-initialised but for the context. */
typedef struct gmem__names {
    const gmem_context *context;
    gmem__name_slot *slots; /* (size) open addressing; at most half are taken */
    int64_t size, count;
} gmem__names;

/* Room for `count` names: 1, or 0 where memory lacks. */
GMEM__FN int gmem__names_reserve(gmem__names *names, int64_t count);
/* Adds a name that is not there; the room must be reserved. */
GMEM__FN void gmem__names_add(gmem__names *names, const unsigned char *text, int64_t bytes, int32_t index);
/* The number of a name, or -1. */
GMEM__FN int32_t gmem__names_find(const gmem__names *names, const unsigned char *text, int64_t bytes);
GMEM__FN void gmem__names_free(gmem__names *names);

#endif /* GMEM__NAMES_H */
