/* The safetensors parser: 8 bytes of length, a JSON header, then the tensors' bytes, side by side without gaps. */
#include "file.h"
#include "json.h"

#include <stdio.h>

#define GMEM__ST_MAX_HEADER 100000000
#define GMEM__ST_PREFIX     8

typedef struct gmem__st_parser {
    gmem_file *file;
    gmem_error *error;
    gmem__json json; /* the header, a private copy */
    int64_t data;    /* offset of the tensors' bytes in the file */
    int64_t bytes;   /* of the tensors in all */
    int64_t tensors; /* entries in the header */
} gmem__st_parser;

/* Where a tensor lies, counted from parser->data. */
typedef struct gmem__st_range {
    int64_t begin, end;
    int64_t node; /* of data_offsets */
} gmem__st_range;

/* A refusal at a JSON node of the header; `what` is about the tensor or key `name`. */
static gmem_status gmem__st_fail(gmem__st_parser *parser, gmem_status code, int64_t node, const char *name,
                                 const char *what) {
    gmem__quoted quoted;
    return gmem__fail_at(parser->error, code, parser->file->path, gmem__json_offset(&parser->json, node), "%s: %s",
                         gmem__quote(&quoted, name), what);
}

/* fields of an entry ---------------------------------------------------------------------------------------------- */

static gmem_status gmem__st_type(gmem__st_parser *parser, const char *name, int64_t node, gmem_type *out) {
    gmem__quoted quoted;
    if (gmem__json_kind_of(&parser->json, node) != GMEM__JSON_STRING)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "dtype is no string");
    const char *text = gmem__json_text(&parser->json, node);
    for (int i = 0; i < GMEM_TYPE_COUNT; i++) {
        if (strcmp(text, gmem_type_name((gmem_type)i)) == 0) {
            *out = (gmem_type)i;
            return GMEM_OK;
        }
    }
    return gmem__st_fail(parser, GMEM_E_ST_TYPE, node, name, gmem__quote(&quoted, text));
}

/* Up to `capacity` plain non-negative integers. */
static gmem_status gmem__st_integers(gmem__st_parser *parser, const char *name, int64_t node, int64_t *out,
                                     int capacity, int *count) {
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, node) != GMEM__JSON_ARRAY)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "shape and data_offsets must be arrays");
    *count = 0;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[i].next) {
        if (*count == capacity) return gmem__st_fail(parser, GMEM_E_LIMIT, i, name, "more dimensions than are read");
        if (!gmem__json_int(json, i, out + *count))
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, i, name, "not a plain non-negative integer");
        ++*count;
    }
    return GMEM_OK;
}

static gmem_status gmem__st_range_of(gmem__st_parser *parser, const char *name, int64_t node, gmem__st_range *out) {
    int64_t offsets[3];
    int count;
    GMEM__TRY(gmem__st_integers(parser, name, node, offsets, 3, &count));
    if (count != 2) return gmem__st_fail(parser, GMEM_E_ST_ENTRY, node, name, "data_offsets must hold two integers");
    if (offsets[0] > offsets[1])
        return gmem__st_fail(parser, GMEM_E_ST_OFFSETS, node, name, "data_offsets end before they begin");
    if (offsets[1] > parser->bytes)
        return gmem__fail_at(parser->error, GMEM_E_TRUNCATED, parser->file->path, parser->file->bytes.size,
                             "the file ends too early: the tensors need %lld bytes, %lld are there",
                             (long long)offsets[1], (long long)parser->bytes);
    out->begin = offsets[0];
    out->end = offsets[1];
    out->node = node;
    return GMEM_OK;
}

/* The range must be exactly what the shape needs. */
static gmem_status gmem__st_check_size(gmem__st_parser *parser, const gmem_tensor *tensor,
                                       const gmem__st_range *range) {
    gmem__quoted quoted, shape;
    int64_t bytes = (int64_t)gmem_type_bytes(tensor->type);
    int empty = 0; /* the other dimensions of an empty tensor must make sense all the same */
    for (int i = 0; i < tensor->rank; i++) {
        empty |= tensor->shape[i] == 0;
        if (!gmem__mul(bytes, gmem__max(tensor->shape[i], 1), &bytes))
            return gmem__st_fail(parser, GMEM_E_OVERFLOW, range->node, tensor->name, "its size overflows");
    }
    if (empty) bytes = 0;
    if (bytes == range->end - range->begin) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_ST_SIZE, parser->file->path,
                         gmem__json_offset(&parser->json, range->node), "%s: %s of %s need %lld bytes, found %lld",
                         gmem__quote(&quoted, tensor->name), gmem__shape_text(&shape, tensor->shape, tensor->rank),
                         gmem_type_name(tensor->type), (long long)bytes, (long long)(range->end - range->begin));
}

/* entries --------------------------------------------------------------------------------------------------------- */

/* The nodes of the three fields, all there and nothing beside them. */
static gmem_status gmem__st_fields(gmem__st_parser *parser, const char *name, int64_t entry, int64_t *fields) {
    static const char *const names[3] = {"dtype", "shape", "data_offsets"};
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, entry) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_ST_ENTRY, entry, name, "not an object");
    for (int i = 0; i < 3; i++) {
        fields[i] = gmem__json_get(json, entry, names[i]);
        if (fields[i] < 0)
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, entry, name, "dtype, shape or data_offsets is missing");
    }
    for (int64_t i = entry + 1; i < json->nodes[entry].next; i = json->nodes[i + 1].next) {
        if (i + 1 != fields[0] && i + 1 != fields[1] && i + 1 != fields[2])
            return gmem__st_fail(parser, GMEM_E_ST_ENTRY, i, name, "an unknown field");
    }
    return GMEM_OK;
}

static gmem_status gmem__st_tensor(gmem__st_parser *parser, int64_t key, gmem__st_range *range) {
    const char *name = gmem__json_text(&parser->json, key);
    gmem_type type = GMEM_F32;
    int64_t fields[3], shape[GMEM_MAX_RANK];
    int rank = 0;
    GMEM__TRY(gmem__st_fields(parser, name, key + 1, fields));
    GMEM__TRY(gmem__st_type(parser, name, fields[0], &type));
    GMEM__TRY(gmem__st_integers(parser, name, fields[1], shape, GMEM_MAX_RANK, &rank));
    GMEM__TRY(gmem__st_range_of(parser, name, fields[2], range));
    gmem__entry entry;
    memset(&entry, 0, sizeof entry);
    entry.tensor = gmem_tensor_make(name, type, rank, shape, parser->file->bytes.data + parser->data + range->begin);
    GMEM__TRY(gmem__st_check_size(parser, &entry.tensor, range));
    entry.kind = GMEM__ENTRY_TENSOR;
    entry.key = gmem__file_text(parser->file, name, (int64_t)strlen(name));
    if (!entry.key) return gmem__file_no_memory(parser->file, parser->error);
    return gmem__file_add(parser->file, &entry, parser->error);
}

static gmem_status gmem__st_metadata(gmem__st_parser *parser, int64_t object) {
    const gmem__json *json = &parser->json;
    gmem_file *file = parser->file;
    if (gmem__json_kind_of(json, object) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_ST_METADATA, object, "__metadata__", "not an object");
    for (int64_t i = object + 1; i < json->nodes[object].next; i = json->nodes[i + 1].next) {
        if (gmem__json_kind_of(json, i + 1) != GMEM__JSON_STRING)
            return gmem__st_fail(parser, GMEM_E_ST_METADATA, i + 1, gmem__json_text(json, i), "metadata must be text");
        const char *key = gmem__file_text(file, gmem__json_text(json, i), json->nodes[i].length);
        const char *value = gmem__file_text(file, gmem__json_text(json, i + 1), json->nodes[i + 1].length);
        if (!key || !value) return gmem__file_no_memory(file, parser->error);
        GMEM__TRY(gmem__file_add_metadata(file, key, value, parser->error));
    }
    return GMEM_OK;
}

static int gmem__st_compare_ranges(const void *user, int32_t a, int32_t b) {
    const gmem__st_range *x = (const gmem__st_range *)user + a, *y = (const gmem__st_range *)user + b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* Side by side from 0 to the end: no gap to hide bytes in, no overlap. */
static gmem_status gmem__st_check_ranges(gmem__st_parser *parser, const gmem__st_range *ranges, int32_t *order) {
    int64_t at = 0;
    gmem__sort(order, parser->tensors, gmem__st_compare_ranges, ranges);
    for (int64_t i = 0; i < parser->tensors; i++) {
        const gmem__st_range *range = ranges + order[i];
        if (range->begin != at)
            return gmem__fail_at(
                parser->error, GMEM_E_ST_OFFSETS, parser->file->path, gmem__json_offset(&parser->json, range->node),
                "data_offsets begin at %lld where %lld bytes are taken", (long long)range->begin, (long long)at);
        at = range->end;
    }
    if (at == parser->bytes) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_ST_OFFSETS, parser->file->path, parser->data + at,
                         "%lld bytes belong to no tensor", (long long)(parser->bytes - at));
}

static int gmem__st_is_metadata(const gmem__json *json, int64_t key) {
    return strcmp(gmem__json_text(json, key), "__metadata__") == 0;
}

static gmem_status gmem__st_entries(gmem__st_parser *parser, gmem__st_range *ranges) {
    const gmem__json *json = &parser->json;
    int64_t tensors = 0;
    for (int64_t i = 1; i < json->count; i = json->nodes[i + 1].next) {
        if (gmem__st_is_metadata(json, i)) {
            GMEM__TRY(gmem__st_metadata(parser, i + 1));
        } else {
            GMEM__TRY(gmem__st_tensor(parser, i, ranges + tensors));
            tensors++;
        }
    }
    return GMEM_OK;
}

static gmem_status gmem__st_header(gmem__st_parser *parser) {
    const gmem__json *json = &parser->json;
    if (gmem__json_kind_of(json, 0) != GMEM__JSON_OBJECT)
        return gmem__st_fail(parser, GMEM_E_JSON, 0, "JSON", "not an object");
    for (int64_t i = 1; i < json->count; i = json->nodes[i + 1].next)
        parser->tensors += !gmem__st_is_metadata(json, i);
    int64_t held = json->bytes + json->count * (int64_t)sizeof *json->nodes +
                   parser->tensors * (int64_t)(sizeof(gmem__st_range) + sizeof(int32_t));
    if (!gmem__file_may_hold(parser->file, held)) return gmem__file_no_memory(parser->file, parser->error);
    const gmem_context *context = parser->file->context;
    gmem__st_range *ranges = (gmem__st_range *)gmem__alloc(context, parser->tensors, sizeof *ranges);
    int32_t *order = (int32_t *)gmem__alloc(context, parser->tensors, sizeof *order);
    gmem_status status = GMEM_E_MEMORY;
    if (ranges && order) {
        status = gmem__st_entries(parser, ranges);
        if (status == GMEM_OK) status = gmem__st_check_ranges(parser, ranges, order);
    } else {
        gmem__fail_at(parser->error, status, parser->file->path, -1, "no memory for the header");
    }
    gmem__free(context, ranges, parser->tensors, sizeof *ranges);
    gmem__free(context, order, parser->tensors, sizeof *order);
    parser->file->held -= held;
    return status;
}

/* the network's configuration ------------------------------------------------------------------------------------- */

/* A leaf of the metadata `config`, so that gmem_file_number(file, "config.num_heads") finds it in converted files as
 * it does in the checkpoint. `key` is its dotted name. */
static gmem_status gmem__st_config_leaf(gmem_file *file, const gmem__json *json, int64_t node, const char *key,
                                        gmem_error *error) {
    gmem__entry entry;
    gmem__json_kind kind = gmem__json_kind_of(json, node);
    memset(&entry, 0, sizeof entry);
    entry.kind = GMEM__ENTRY_NUMBER;
    if (kind == GMEM__JSON_STRING) {
        entry.kind = GMEM__ENTRY_STRING;
        entry.string = gmem__file_text(file, gmem__json_text(json, node), json->nodes[node].length);
        if (!entry.string) return gmem__file_no_memory(file, error);
    } else if (kind == GMEM__JSON_TRUE || kind == GMEM__JSON_FALSE) {
        entry.number = kind == GMEM__JSON_TRUE;
    } else if (!gmem__json_double(json, node, &entry.number)) {
        return GMEM_OK; /* null, and numbers beyond double */
    }
    entry.key = gmem__file_text(file, key, (int64_t)strlen(key));
    if (!entry.key) return gmem__file_no_memory(file, error);
    return gmem__file_add(file, &entry, error);
}

typedef struct gmem__st_path {
    char text[1024];
    size_t used;
} gmem__st_path;

/* Appends ".part"; 0 where it does not fit. */
static int gmem__st_path_add(gmem__st_path *path, const char *part) {
    size_t length = strlen(part);
    if (length + 2 > sizeof path->text - path->used) return 0;
    path->text[path->used++] = '.';
    memcpy(path->text + path->used, part, length + 1);
    path->used += length;
    return 1;
}

/* Recursion ends with the depth that the JSON parser allows. */
static gmem_status gmem__st_config_tree(gmem_file *file, const gmem__json *json, int64_t node, gmem__st_path *path,
                                        gmem_error *error) {
    gmem__json_kind kind = gmem__json_kind_of(json, node);
    if (kind != GMEM__JSON_OBJECT && kind != GMEM__JSON_ARRAY)
        return gmem__st_config_leaf(file, json, node, path->text, error);
    size_t used = path->used;
    int64_t index = 0, value;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[value].next) {
        char digits[24];
        snprintf(digits, sizeof digits, "%lld", (long long)index++);
        value = kind == GMEM__JSON_OBJECT ? i + 1 : i;
        if (gmem__st_path_add(path, kind == GMEM__JSON_OBJECT ? gmem__json_text(json, i) : digits))
            GMEM__TRY(gmem__st_config_tree(file, json, value, path, error));
        path->used = used;
        path->text[used] = 0;
    }
    return GMEM_OK;
}

/* Metadata is free text: a `config` that holds no JSON object is none of ours. */
static gmem_status gmem__st_config(gmem_file *file, gmem_error *error) {
    const char *text = gmem_file_metadata(file, "config");
    gmem__st_path path = {"config", 6};
    gmem__json json;
    if (!text || text[0] != '{') return GMEM_OK;
    int64_t bytes = (int64_t)strlen(text), held = GMEM__JSON_MEMORY * bytes;
    if (!gmem__file_may_hold(file, held)) return gmem__file_no_memory(file, error);
    gmem_status status = gmem__json_parse(file->context, text, bytes, file->path, -1, &json, NULL, NULL);
    if (status == GMEM_OK) {
        status = gmem__st_config_tree(file, &json, 0, &path, error);
        gmem__json_free(&json);
    } else if (status == GMEM_E_MEMORY) {
        gmem__file_no_memory(file, error);
    } else {
        status = GMEM_OK;
    }
    file->held -= held;
    return status;
}

/* the file -------------------------------------------------------------------------------------------------------- */

/* The header's length, checked against the file. */
static gmem_status gmem__st_length(gmem__st_parser *parser) {
    const gmem__bytes *bytes = &parser->file->bytes;
    const char *path = parser->file->path;
    uint64_t length = 0;
    for (int i = GMEM__ST_PREFIX - 1; i >= 0 && bytes->size >= GMEM__ST_PREFIX; i--)
        length = length << 8 | bytes->data[i];
    if (bytes->size >= GMEM__ST_PREFIX && (length < 2 || length > GMEM__ST_MAX_HEADER))
        return gmem__fail_at(parser->error, GMEM_E_ST_HEADER, path, 0,
                             "the header's length is %llu bytes, expected 2 to %d", (unsigned long long)length,
                             GMEM__ST_MAX_HEADER);
    if (bytes->size < GMEM__ST_PREFIX || (int64_t)length > bytes->size - GMEM__ST_PREFIX)
        return gmem__fail_at(parser->error, GMEM_E_TRUNCATED, path, bytes->size,
                             "the file ends too early: inside of its header");
    parser->data = GMEM__ST_PREFIX + (int64_t)length;
    parser->bytes = bytes->size - parser->data;
    return GMEM_OK;
}

static gmem_status gmem__st_check_trailing(gmem__st_parser *parser, int64_t end) {
    for (int64_t i = GMEM__ST_PREFIX + end; i < parser->data; i++) {
        if (parser->file->bytes.data[i] != ' ')
            return gmem__fail_at(parser->error, GMEM_E_ST_TRAILING, parser->file->path, i,
                                 "only spaces may follow the header's JSON");
    }
    return GMEM_OK;
}

GMEM__FN gmem_status gmem__parse_safetensors(gmem_file *file, gmem_error *error) {
    gmem__st_parser parser;
    int64_t end = 0;
    memset(&parser, 0, sizeof parser);
    parser.file = file;
    parser.error = error;
    GMEM__TRY(gmem__st_length(&parser));
    const char *text = (const char *)file->bytes.data + GMEM__ST_PREFIX;
    if (text[0] != '{')
        return gmem__fail_at(error, GMEM_E_JSON, file->path, GMEM__ST_PREFIX, "JSON: the header begins with no '{'");
    GMEM__TRY(gmem__json_parse(file->context, text, parser.data - GMEM__ST_PREFIX, file->path, GMEM__ST_PREFIX,
                               &parser.json, &end, error));
    gmem_status status = gmem__st_check_trailing(&parser, end);
    if (status == GMEM_OK) status = gmem__st_header(&parser);
    gmem__json_free(&parser.json);
    return status == GMEM_OK ? gmem__st_config(file, error) : status;
}

#undef GMEM__ST_MAX_HEADER
#undef GMEM__ST_PREFIX
