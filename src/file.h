/* An opened checkpoint: what the format parsers fill in and what gmem_file_* answers from. */
#ifndef GMEM__FILE_H
#define GMEM__FILE_H

#include "internal.h"

typedef enum gmem__entry_kind {
    GMEM__ENTRY_TENSOR,
    GMEM__ENTRY_NUMBER,
    GMEM__ENTRY_STRING,
    GMEM__ENTRY_FOREIGN
} gmem__entry_kind;

/* One leaf of the flattened file, as a parser hands it over. Keys and strings live in the file's own memory. */
typedef struct gmem__entry {
    const char *key; /* full dotted key; "" for a root that is no dictionary */
    int64_t nested;  /* bytes of `key` that name real dictionaries and lists: 3 for "ema" holding "blocks.0.bias" */
    gmem__entry_kind kind;
    gmem_tensor tensor; /* TENSOR, without its name */
    double number;      /* NUMBER: integers, floats, booleans */
    const char *string; /* STRING: the text; FOREIGN: the global that alone could build the value */
} gmem__entry;

/* What is kept of them: a tensor, or anything else in little room (checkpoints hold long lists of numbers). */
typedef struct gmem__leaf {
    gmem_tensor tensor; /* its name is the full key */
    int64_t nested;
} gmem__leaf;

typedef struct gmem__value {
    const char *key;
    int32_t kind, nested;
    union {
        double number;
        const char *string;
    } as;
} gmem__value;

struct gmem_file {
    const gmem_context *context;
    char *path;
    gmem_format format;
    gmem__bytes bytes;
    struct gmem__block *blocks; /* everything allocated with gmem__file_alloc */
    int64_t held;               /* bytes of memory held, against the limit */
    int over_limit;             /* gmem__file_alloc has refused because of it */

    gmem__leaf *leaves; /* (leaf_count) tensors in the file's order */
    int64_t leaf_count, leaf_capacity;
    gmem__value *values; /* (value_count) */
    int64_t value_count, value_capacity;
    const char **foreign; /* (foreign_count) distinct names of globals that stayed inert */
    int64_t foreign_count, foreign_capacity;
    const char **metadata; /* (2 * metadata_count) keys and values in turn; safetensors' __metadata__ */
    int64_t metadata_count, metadata_capacity;

    const char *key;       /* the selection */
    gmem_tensor *selected; /* (selected_count) views with prefixes removed from their names */
    int64_t selected_count;
    int32_t *index; /* (selected_count) the selection in the order of its names, for gmem_file_find */
};

/* Memory that lives as long as the file (zero-filled), or NULL: the system has no more, or the file wants more than 16
 * times its size + 1 MiB. gmem__file_no_memory raises what it was: E_MEMORY or E_LIMIT. */
GMEM__FN void *gmem__file_alloc(gmem_file *file, int64_t count, size_t bytes);
/* A NUL-terminated copy in the file's memory, or NULL. */
GMEM__FN char *gmem__file_text(gmem_file *file, const char *text, int64_t bytes);
GMEM__FN gmem_status gmem__file_no_memory(gmem_file *file, gmem_error *error);
/* Counts memory that a parser holds itself against the same limit: 0 where that would exceed it. The parser subtracts
 * what it frees from `held`. */
GMEM__FN int gmem__file_may_hold(gmem_file *file, int64_t bytes);

/* The parsers' outputs; keys and strings must live in the file's memory. Errors: E_MEMORY, E_LIMIT. */
GMEM__FN gmem_status gmem__file_add(gmem_file *file, const gmem__entry *entry, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_foreign(gmem_file *file, const char *name, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_metadata(gmem_file *file, const char *key, const char *value, gmem_error *error);

/* One parser per format; file->bytes is open, file->path set. */
GMEM__FN gmem_status gmem__parse_safetensors(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_zip(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_legacy(gmem_file *file, gmem_error *error);

/* Whether the name of any selected tensor begins with `prefix`. */
GMEM__FN int gmem__file_has_prefix(const gmem_file *file, const char *prefix);

/* Gives the memory of these bytes back to the system until they are read again, where `data` lies in the file's
 * mapping; else it does nothing. For weights of which a copy is in use. */
GMEM__FN void gmem__file_discard(const gmem_file *file, const void *data, int64_t bytes);

/* The global that alone could build the selection's `name` or what it lies in ("argparse.Namespace"), or NULL. */
GMEM__FN const char *gmem__file_foreign_at(const gmem_file *file, const char *name);

/* The offset of the first byte that is not UTF-8 (no overlong forms, no surrogates), or -1. */
GMEM__FN int64_t gmem__utf8_error(const char *text, int64_t bytes);
/* Sorts `order` (count), which holds 0 to count - 1 on return, by `compare`: heapsort, for names chosen by strangers
 * must not cost more than n log n. Equal items keep their order. */
GMEM__FN void gmem__sort(int32_t *order, int64_t count, int (*compare)(const void *user, int32_t a, int32_t b),
                         const void *user);
/* Why the last call of the I/O hooks failed, as far as the system tells; "" where it does not. Call
 * gmem__io_forget before the call. */
GMEM__FN void gmem__io_forget(void);
GMEM__FN const char *gmem__io_reason(void);
GMEM__FN int gmem__io_no_such_file(void); /* it was an opening, of a file that is not there */

/* gmem_save for a path that the caller has locked: the unfinished file is always PATH.unfinished, so that no more than
 * one is left by crashes, and the next save removes it. */
GMEM__FN gmem_status gmem__save_locked(gmem_context *context, const char *path, const gmem_save_desc *desc,
                                       gmem_error *error);

#endif /* GMEM__FILE_H */
