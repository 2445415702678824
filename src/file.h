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

/* One leaf of the flattened file. Keys and strings live in the file's own memory (gmem__file_alloc). */
typedef struct gmem__entry {
    const char *key; /* full dotted key */
    gmem__entry_kind kind;
    gmem_tensor tensor; /* TENSOR; tensor.name == key until the selection strips its prefix */
    double number;      /* NUMBER: integers, floats, booleans */
    const char *string; /* STRING: the text; FOREIGN: the global that alone could build the value */
} gmem__entry;

struct gmem_file {
    const gmem_context *context;
    char *path;
    int64_t path_bytes;
    gmem_format format;
    gmem__bytes bytes;
    struct gmem__block *blocks; /* everything allocated with gmem__file_alloc */

    gmem__entry *entries; /* (entry_count) in the file's order */
    int64_t entry_count, entry_capacity;
    const char **foreign; /* (foreign_count) distinct names of globals that stayed inert */
    int64_t foreign_count, foreign_capacity;
    const char **metadata; /* (2 * metadata_count) keys and values in turn; safetensors' __metadata__ */
    int64_t metadata_count, metadata_capacity;

    const char *key;       /* the selection */
    gmem_tensor *selected; /* (selected_count) views with prefixes removed from their names */
    int64_t selected_count;
    int32_t *index; /* a hash table over `selected`, for gmem_file_find */
    int64_t index_size;
};

/* Memory that lives as long as the file (zero-filled), or NULL. */
GMEM__FN void *gmem__file_alloc(gmem_file *file, int64_t count, size_t bytes);
/* A NUL-terminated copy in the file's memory, or NULL. */
GMEM__FN char *gmem__file_text(gmem_file *file, const char *text, int64_t bytes);

/* The parsers' outputs; keys and strings must live in the file's memory. Errors: E_MEMORY. */
GMEM__FN gmem_status gmem__file_add(gmem_file *file, const gmem__entry *entry, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_foreign(gmem_file *file, const char *name, gmem_error *error);
GMEM__FN gmem_status gmem__file_add_metadata(gmem_file *file, const char *key, const char *value, gmem_error *error);

/* One parser per format; file->bytes is open, file->path set. */
GMEM__FN gmem_status gmem__parse_safetensors(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_zip(gmem_file *file, gmem_error *error);
GMEM__FN gmem_status gmem__parse_torch_legacy(gmem_file *file, gmem_error *error);

#endif /* GMEM__FILE_H */
