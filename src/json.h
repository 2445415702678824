/* JSON as a flat array of nodes: a strict parser of bounded depth for headers and configurations from strangers. */
#ifndef GMEM__JSON_H
#define GMEM__JSON_H

#include "internal.h"

#define GMEM__JSON_DEPTH 64
/* Bytes of memory that a byte of text takes at most: a node for every second one, the copy, the keys being sorted. */
#define GMEM__JSON_MEMORY 9

typedef enum gmem__json_kind {
    GMEM__JSON_NULL,
    GMEM__JSON_FALSE,
    GMEM__JSON_TRUE,
    GMEM__JSON_NUMBER,
    GMEM__JSON_STRING,
    GMEM__JSON_ARRAY,
    GMEM__JSON_OBJECT
} gmem__json_kind;

/* A value, followed by what it contains. The children of node i are i + 1, next of that, and so on until next of i;
 * an object's are keys and values in turn. */
typedef struct gmem__json_node {
    uint32_t kind : 3, start : 29; /* a gmem__json_kind; where its text begins, a string's after the quote */
    uint32_t length;               /* of a number's or string's text */
    uint32_t next;
} gmem__json_node;

typedef struct gmem__json {
    const gmem_context *context;
    char *text; /* the parser's copy; strings are decoded in place and NUL-terminated */
    int64_t bytes;
    int64_t offset; /* of the text in its file, for messages */
    gmem__json_node *nodes;
    int64_t count;
} gmem__json;

/* Parses the value at the start of text (bytes). `path` and `offset` (where the text lies in that file) are for the
 * error. `end` receives the bytes up to the value's end; where it is NULL only white space may follow.
 * Errors: E_JSON, E_JSON_DUPLICATE, E_LIMIT, E_MEMORY. */
GMEM__FN gmem_status gmem__json_parse(const gmem_context *context, const char *text, int64_t bytes, const char *path,
                                      int64_t offset, gmem__json *out, int64_t *end, gmem_error *error);
GMEM__FN void gmem__json_free(gmem__json *json);

/* The value at `key` of the object at `node`, or -1: no such key, or no object. */
GMEM__FN int64_t gmem__json_get(const gmem__json *json, int64_t node, const char *key);
GMEM__INLINE gmem__json_kind gmem__json_kind_of(const gmem__json *json, int64_t node) {
    return (gmem__json_kind)json->nodes[node].kind;
}
/* A string's text, NUL-terminated; JSON with a NUL in a string is refused. */
GMEM__INLINE const char *gmem__json_text(const gmem__json *json, int64_t node) {
    return json->text + json->nodes[node].start;
}
/* Where the value begins in its file. */
GMEM__INLINE int64_t gmem__json_offset(const gmem__json *json, int64_t node) {
    return json->offset + json->nodes[node].start - (json->nodes[node].kind == GMEM__JSON_STRING);
}
/* 1 where the node is a number that can be had: as a plain non-negative integer; as a double. */
GMEM__FN int gmem__json_int(const gmem__json *json, int64_t node, int64_t *out);
GMEM__FN int gmem__json_double(const gmem__json *json, int64_t node, double *out);

#endif /* GMEM__JSON_H */
