/* The tensors of a transformer as a table that says which there are, what shape each has and where it goes: loading and
 * the refusal of everything else both read it. */
#ifndef GMEM__LAYERS_H
#define GMEM__LAYERS_H

#include "internal.h"

#include <stddef.h>

/* W x + b. */
typedef struct gmem__layer {
    gmem__weight weight; /* (rows, cols) */
    const float *bias;   /* (rows) */
} gmem__layer;

/* What a normalisation learned: both NULL for LayerNorm without affine, no bias for RMSNorm. */
typedef struct gmem__affine {
    const float *weight, *bias;
} gmem__affine;

typedef enum gmem__part_kind {
    GMEM__PART_VECTOR, /* (rows), a pointer */
    GMEM__PART_MATRIX, /* (rows, cols), a gmem__weight */
    GMEM__PART_TABLE,  /* the same, of which the host picks rows */
    GMEM__PART_CONV    /* (rows, cols, kernel, kernel), a gmem__weight */
} gmem__part_kind;

typedef struct gmem__part {
    const char *name;
    int options; /* all of these are needed */
    gmem__part_kind kind;
    int rows, cols, kernel; /* which of the model's extents; those that the kind has not are not read */
    size_t place;           /* in the struct that the table is for */
} gmem__part;

typedef struct gmem__part_table {
    const gmem__part *parts;
    size_t count;
} gmem__part_table;

#define GMEM__PART_TABLE_OF(parts) \
    { parts, sizeof(parts) / sizeof(parts)[0] }
#define GMEM__VECTOR_PART(name, options, rows, type, member) \
    { name, options, GMEM__PART_VECTOR, rows, 0, 0, offsetof(type, member) }
#define GMEM__LAYER_PARTS(name, options, kind, rows, cols, kernel, type, member)          \
    {name ".weight", options, kind, rows, cols, kernel, offsetof(type, member.weight)}, { \
        name ".bias", options, GMEM__PART_VECTOR, rows, 0, 0, offsetof(type, member.bias) \
    }
#define GMEM__LINEAR_PARTS(name, options, rows, cols, type, member) \
    GMEM__LAYER_PARTS(name, options, GMEM__PART_MATRIX, rows, cols, 0, type, member)
#define GMEM__CONV_PARTS(name, options, rows, cols, kernel, type, member) \
    GMEM__LAYER_PARTS(name, options, GMEM__PART_CONV, rows, cols, kernel, type, member)

/* What of a model decides about its tensors. */
typedef struct gmem__part_sizes {
    int options;
    const int64_t *extents;
} gmem__part_sizes;

/* Takes every part that the options ask for, called `prefix` and its name, into the struct at `base`. */
GMEM__FN gmem_status gmem__load_parts(gmem__store *store, const gmem__part_table *table, const gmem__part_sizes *sizes,
                                      const char *prefix, void *base, gmem_error *error);
/* Whether the name, or its int8 scales' "NAME.scale", is one of them. */
GMEM__FN int gmem__is_part(const gmem__part_table *table, int options, const char *name);
/* Whether the name is in the list; there, a final dot stands for everything below. */
GMEM__FN int gmem__is_listed(const char *const *list, size_t count, const char *name);

#endif /* GMEM__LAYERS_H */
