/* What a pickle of torch.save says, as inert data. Nothing is imported or called: a global that is not in the machine's
 * short list becomes a value that only carries its name. A value is a 32-bit handle: a node's index, or a small integer
 * itself. Strings stay in the file; containers are linked cells, shared where the pickle shares them. */
#ifndef GMEM__PICKLE_H
#define GMEM__PICKLE_H

#include "file.h"
#include "names.h"

typedef uint32_t gmem__handle;
#define GMEM__HANDLE_INTEGER 0x80000000u /* the bit that marks an integer of 31 bits */

typedef enum gmem__kind {
    GMEM__KIND_NONE,
    GMEM__KIND_FALSE,
    GMEM__KIND_TRUE,
    GMEM__KIND_TUPLE,
    GMEM__KIND_LIST,
    GMEM__KIND_SET,
    GMEM__KIND_DICT,
    GMEM__KIND_ORDERED_DICT,
    GMEM__KIND_INTEGER,
    GMEM__KIND_LONG, /* an integer beyond int64: text is its little-endian two's complement */
    GMEM__KIND_FLOAT,
    GMEM__KIND_TEXT, /* UTF-8 */
    GMEM__KIND_BYTES,
    GMEM__KIND_FUNCTION,      /* index: what REDUCE does with it */
    GMEM__KIND_STORAGE_CLASS, /* index: a gmem_type */
    GMEM__KIND_DTYPE,         /* index: gmem__pickle_dtype_name */
    GMEM__KIND_DEVICE,        /* a tuple: type and maybe number */
    GMEM__KIND_STORAGE,       /* index into storages; `last` is the legacy view's tuple, or None */
    GMEM__KIND_TENSOR,        /* the tuple of arguments of its _rebuild function */
    GMEM__KIND_INERT          /* index into foreign */
} gmem__kind;

typedef struct gmem__node {
    uint8_t kind;    /* gmem__kind */
    uint8_t on_path; /* while it is being flattened */
    uint32_t at;     /* of its opcode in the pickle */
    union {
        int64_t integer;
        double number;
        struct {
            uint32_t at, bytes; /* in the pickle */
        } text;
        struct {
            uint32_t first, last; /* cells, 0 for none; a dictionary's are key, value, key, value */
        } list;
        struct {
            uint32_t index, view;
        } ref;
    } as;
} gmem__node;

typedef struct gmem__cell {
    gmem__handle value;
    uint32_t next; /* 0 at the end */
} gmem__cell;

/* A storage that the pickle names; all uses of one key agree. */
typedef struct gmem__storage {
    const unsigned char *key;  /* (key_bytes) in the file */
    const unsigned char *data; /* filled by the container's reader */
    int64_t numel;
    uint32_t key_bytes, at;
    gmem_type type;
} gmem__storage;

/* A growing array. */
typedef struct gmem__pool {
    void *items;
    uint32_t count, capacity;
    size_t bytes; /* of an item */
} gmem__pool;

typedef struct gmem__pickle {
    gmem_file *file;
    gmem_error *error;
    const unsigned char *bytes; /* (size) of the pickle and what follows */
    int64_t start;              /* file offset of bytes[0] */
    uint32_t size, next, at;    /* next to be read; opcode being executed */
    int legacy, protocol;

    gmem__pool nodes, cells, stack, marks, memo;
    gmem__pool storages, foreign; /* gmem__storage; const char * in the file's memory */
    gmem__names storage_names, foreign_names;
    int64_t held; /* bytes counted against the file's limit */
    gmem__handle root;
} gmem__pickle;

/* Runs the pickle at file offset `start`, which ends before `end`; `next` is then behind its STOP. `legacy` says which
 * persistent ids are meant. Errors: E_PICKLE_*, E_TRUNCATED, E_LIMIT, E_OVERFLOW,
 * E_STORAGE, E_TENSOR, E_NAME, E_MEMORY. On failure nothing is held. */
GMEM__FN gmem_status gmem__pickle_run(gmem_file *file, int64_t start, int64_t end, int legacy, gmem__pickle *out,
                                      gmem_error *error);
GMEM__FN void gmem__pickle_free(gmem__pickle *pickle);

GMEM__FN gmem__node gmem__pickle_node(const gmem__pickle *pickle, gmem__handle value);
GMEM__INLINE const gmem__cell *gmem__pickle_cell(const gmem__pickle *pickle, uint32_t cell) {
    return (const gmem__cell *)pickle->cells.items + cell;
}
GMEM__INLINE gmem__storage *gmem__pickle_storage(const gmem__pickle *pickle, int64_t index) {
    return (gmem__storage *)pickle->storages.items + index;
}
GMEM__FN const char *gmem__pickle_foreign(const gmem__pickle *pickle, const gmem__node *inert);
GMEM__FN const char *gmem__pickle_dtype_name(const gmem__node *dtype); /* "float32" */
/* Of INTEGER, LONG and FLOAT. */
GMEM__FN double gmem__pickle_number(const gmem__pickle *pickle, const gmem__node *number);
GMEM__FN int gmem__pickle_text_is(const gmem__pickle *pickle, gmem__handle value, const char *text);
/* The value of a dictionary's string key: 1 where found. */
GMEM__FN int gmem__pickle_lookup(const gmem__pickle *pickle, gmem__handle dict, const char *key, gmem__handle *out);
/* The index of the storage with that key, or -1. */
GMEM__FN int32_t gmem__pickle_find_storage(const gmem__pickle *pickle, const unsigned char *key, int64_t bytes);
/* The tensor, already checked against its storage; `data` is set where the storage's is. */
GMEM__FN void gmem__pickle_tensor(const gmem__pickle *pickle, const gmem__node *node, gmem_tensor *out);

#endif /* GMEM__PICKLE_H */
