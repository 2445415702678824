/* The JSON parser: RFC 8259 without leniency. It runs twice over the text, first to count the nodes and then to fill
 * them in, so memory is exact; its stack is an array of bounded depth. */
#include "json.h"
#include "file.h"

#define GMEM__JSON_MAX_BYTES ((int64_t)1 << 28)

typedef struct gmem__json_parser {
    gmem__json *json; /* nodes NULL: the counting run, which leaves the text alone */
    const char *path;
    gmem_error *error;
    int64_t at, count;
    uint32_t open[GMEM__JSON_DEPTH]; /* the containers around, innermost last */
    char closer[GMEM__JSON_DEPTH];   /* ']' or '}' */
    int depth;
} gmem__json_parser;

static gmem_status gmem__json_fail(gmem__json_parser *parser, int64_t at, const char *what) {
    return gmem__fail_at(parser->error, GMEM_E_JSON, parser->path, parser->json->offset + at, "JSON: %s", what);
}

/* The byte at `at`, or 0 at the end: no byte 0 is part of JSON. */
static char gmem__json_peek(const gmem__json_parser *parser) {
    return parser->at < parser->json->bytes ? parser->json->text[parser->at] : (char)0;
}

static void gmem__json_skip_space(gmem__json_parser *parser) {
    char c = gmem__json_peek(parser);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        parser->at++;
        c = gmem__json_peek(parser);
    }
}

static uint32_t gmem__json_push(gmem__json_parser *parser, gmem__json_kind kind, int64_t start, int64_t length) {
    uint32_t index = (uint32_t)parser->count++;
    if (parser->json->nodes) {
        gmem__json_node *node = parser->json->nodes + index;
        node->kind = (uint32_t)kind & 7u;
        node->start = (uint32_t)start & 0x1fffffffu;
        node->length = (uint32_t)length;
        node->next = index + 1;
    }
    return index;
}

/* strings --------------------------------------------------------------------------------------------------------- */

GMEM__FN int64_t gmem__utf8_error(const char *text, int64_t bytes) {
    const unsigned char *s = (const unsigned char *)text;
    for (int64_t i = 0; i < bytes;) {
        unsigned char lead = s[i];
        int more = lead < 0x80 ? 0 : lead >= 0xc2 && lead < 0xe0 ? 1 : lead >= 0xe0 && lead < 0xf0 ? 2 : 3;
        if ((more == 3 && (lead < 0xf0 || lead > 0xf4)) || more >= bytes - i) return i;
        uint32_t code = more == 0 ? lead : lead & (0x3fu >> more);
        for (int k = 1; k <= more; k++) {
            if ((s[i + k] & 0xc0) != 0x80) return i;
            code = code << 6 | (s[i + k] & 0x3fu);
        }
        if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
            (more == 3 && (code < 0x10000 || code > 0x10ffff)))
            return i;
        i += more + 1;
    }
    return -1;
}

static int gmem__utf8_put(char *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    for (int k = more; k > 0; k--, code >>= 6)
        out[k] = (char)(unsigned char)(0x80u | (code & 0x3fu));
    out[0] = (char)(unsigned char)((0xff00u >> (more + 1) & 0xffu) | code);
    return more + 1;
}

/* Four hex digits at `at`, or -1. */
static int32_t gmem__json_hex4(const gmem__json *json, int64_t at) {
    int32_t value = 0;
    if (json->bytes - at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        char c = json->text[at + i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* The escape at `at`, which points behind the backslash; moves behind it. */
static gmem_status gmem__json_escape(gmem__json_parser *parser, uint32_t *code) {
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int64_t start = parser->at - 1;
    char c = gmem__json_peek(parser);
    parser->at++;
    if (c != 'u') {
        const char *letter = c ? strchr(letters, c) : NULL;
        if (!letter) return gmem__json_fail(parser, start, "no such escape");
        *code = (unsigned char)values[letter - letters];
        return GMEM_OK;
    }
    int32_t unit = gmem__json_hex4(parser->json, parser->at);
    if (unit < 0) return gmem__json_fail(parser, start, "\\u wants four hexadecimal digits");
    parser->at += 4;
    *code = (uint32_t)unit;
    if (unit >= 0xd800 && unit < 0xdc00 && gmem__json_peek(parser) == '\\') {
        parser->at++;
        int32_t low = gmem__json_peek(parser) == 'u' ? gmem__json_hex4(parser->json, parser->at + 1) : -1;
        parser->at += 5;
        if (low >= 0xdc00 && low < 0xe000)
            *code = 0x10000u + ((uint32_t)(unit - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
    }
    if (*code >= 0xd800 && *code < 0xe000) return gmem__json_fail(parser, start, "half of a surrogate pair");
    if (*code == 0) return gmem__json_fail(parser, start, "a NUL in a string");
    return GMEM_OK;
}

/* The string at `at`. The filling run writes the decoded text, which is never longer, over the encoded one. */
static gmem_status gmem__json_string(gmem__json_parser *parser) {
    gmem__json *json = parser->json;
    int64_t start = ++parser->at, used = start, bad;
    for (;;) {
        char utf8[4], c = gmem__json_peek(parser);
        int length = 1;
        if (parser->at >= json->bytes) return gmem__json_fail(parser, start - 1, "a string without an end");
        if ((unsigned char)c < 0x20) return gmem__json_fail(parser, parser->at, "a control character in a string");
        parser->at++;
        if (c == '"') break;
        utf8[0] = c;
        if (c == '\\') {
            uint32_t code = 0;
            GMEM__TRY(gmem__json_escape(parser, &code));
            length = gmem__utf8_put(utf8, code);
        }
        if (json->nodes) memcpy(json->text + used, utf8, (size_t)length);
        used += length;
    }
    bad = json->nodes ? -1 : gmem__utf8_error(json->text + start, parser->at - 1 - start);
    if (bad >= 0) return gmem__json_fail(parser, start + bad, "a string that is not UTF-8");
    if (json->nodes) json->text[used] = 0;
    gmem__json_push(parser, GMEM__JSON_STRING, start, used - start);
    return GMEM_OK;
}

/* numbers and words ----------------------------------------------------------------------------------------------- */

static int64_t gmem__json_digits(gmem__json_parser *parser) {
    int64_t start = parser->at;
    while (gmem__json_peek(parser) >= '0' && gmem__json_peek(parser) <= '9')
        parser->at++;
    return parser->at - start;
}

static gmem_status gmem__json_number(gmem__json_parser *parser) {
    int64_t start = parser->at;
    if (gmem__json_peek(parser) == '-') parser->at++;
    char first = gmem__json_peek(parser);
    int64_t digits = gmem__json_digits(parser);
    if (digits == 0 || (digits > 1 && first == '0')) return gmem__json_fail(parser, start, "a malformed number");
    if (gmem__json_peek(parser) == '.') {
        parser->at++;
        if (gmem__json_digits(parser) == 0) return gmem__json_fail(parser, start, "a malformed number");
    }
    if (gmem__json_peek(parser) == 'e' || gmem__json_peek(parser) == 'E') {
        parser->at++;
        if (gmem__json_peek(parser) == '+' || gmem__json_peek(parser) == '-') parser->at++;
        if (gmem__json_digits(parser) == 0) return gmem__json_fail(parser, start, "a malformed number");
    }
    gmem__json_push(parser, GMEM__JSON_NUMBER, start, parser->at - start);
    return GMEM_OK;
}

static gmem_status gmem__json_word(gmem__json_parser *parser) {
    static const struct {
        const char *text;
        gmem__json_kind kind;
    } words[] = {{"null", GMEM__JSON_NULL}, {"false", GMEM__JSON_FALSE}, {"true", GMEM__JSON_TRUE}};
    for (int i = 0; i < 3; i++) {
        int64_t length = (int64_t)strlen(words[i].text);
        if (parser->json->bytes - parser->at >= length &&
            memcmp(parser->json->text + parser->at, words[i].text, (size_t)length) == 0) {
            gmem__json_push(parser, words[i].kind, parser->at, length);
            parser->at += length;
            return GMEM_OK;
        }
    }
    return gmem__json_fail(parser, parser->at, "a value is missing");
}

/* containers ------------------------------------------------------------------------------------------------------ */

typedef struct gmem__json_keys {
    const gmem__json *json;
    const uint32_t *nodes; /* of the keys, in the object's order */
} gmem__json_keys;

static int gmem__json_compare_keys(const void *user, int32_t a, int32_t b) {
    const gmem__json_keys *keys = (const gmem__json_keys *)user;
    return strcmp(gmem__json_text(keys->json, keys->nodes[a]), gmem__json_text(keys->json, keys->nodes[b]));
}

/* The first repeated key of `count`, or -1; `order` (count) is room to sort in. */
static int64_t gmem__json_repeated(const gmem__json_keys *keys, int32_t *order, int64_t count) {
    int64_t first = -1;
    gmem__sort(order, count, gmem__json_compare_keys, keys);
    for (int64_t i = 1; i < count; i++) {
        if (gmem__json_compare_keys(keys, order[i - 1], order[i]) == 0 && (first < 0 || order[i] < first))
            first = order[i];
    }
    return first;
}

static gmem_status gmem__json_check_keys(gmem__json_parser *parser, uint32_t object) {
    gmem__json *json = parser->json;
    gmem__quoted quoted;
    int64_t count = 0, filled = 0;
    uint32_t end = json->nodes[object].next;
    for (uint32_t i = object + 1; i < end; i = json->nodes[i + 1].next)
        count++;
    if (count < 2) return GMEM_OK;
    uint32_t *nodes = (uint32_t *)gmem__alloc_raw(json->context, 2 * count, sizeof *nodes);
    if (!nodes) return gmem__fail_at(parser->error, GMEM_E_MEMORY, parser->path, -1, "no memory for the JSON's keys");
    for (uint32_t i = object + 1; i < end; i = json->nodes[i + 1].next)
        nodes[filled++] = i;
    gmem__json_keys keys = {json, nodes};
    int64_t repeated = gmem__json_repeated(&keys, (int32_t *)(nodes + count), count);
    int64_t node = repeated < 0 ? -1 : (int64_t)nodes[repeated];
    gmem__free(json->context, nodes, 2 * count, sizeof *nodes);
    if (node < 0) return GMEM_OK;
    return gmem__fail_at(parser->error, GMEM_E_JSON_DUPLICATE, parser->path, gmem__json_offset(json, node),
                         "JSON: the key %s stands twice", gmem__quote(&quoted, gmem__json_text(json, node)));
}

static gmem_status gmem__json_open(gmem__json_parser *parser, char closer) {
    if (parser->depth == GMEM__JSON_DEPTH)
        return gmem__fail_at(parser->error, GMEM_E_LIMIT, parser->path, parser->json->offset + parser->at,
                             "JSON: nested more than %d deep", GMEM__JSON_DEPTH);
    parser->closer[parser->depth] = closer;
    parser->open[parser->depth++] =
        gmem__json_push(parser, closer == '}' ? GMEM__JSON_OBJECT : GMEM__JSON_ARRAY, parser->at, 0);
    parser->at++;
    return GMEM_OK;
}

static gmem_status gmem__json_close(gmem__json_parser *parser) {
    uint32_t container = parser->open[--parser->depth];
    parser->at++;
    if (!parser->json->nodes) return GMEM_OK;
    parser->json->nodes[container].next = (uint32_t)parser->count;
    return parser->closer[parser->depth] == '}' ? gmem__json_check_keys(parser, container) : GMEM_OK;
}

/* Inside an object: a key and its colon. */
static gmem_status gmem__json_key(gmem__json_parser *parser) {
    if (parser->depth == 0 || parser->closer[parser->depth - 1] != '}') return GMEM_OK;
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) != '"') return gmem__json_fail(parser, parser->at, "a key is missing");
    GMEM__TRY(gmem__json_string(parser));
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) != ':') return gmem__json_fail(parser, parser->at, "':' is missing");
    parser->at++;
    return GMEM_OK;
}

/* A scalar, or the opening of a container; where that is not empty, its first value is due. */
static gmem_status gmem__json_value(gmem__json_parser *parser, int *due) {
    gmem__json_skip_space(parser);
    char c = gmem__json_peek(parser);
    *due = 0;
    if (c == '"') return gmem__json_string(parser);
    if (c == '-' || (c >= '0' && c <= '9')) return gmem__json_number(parser);
    if (c != '[' && c != '{') return gmem__json_word(parser);
    GMEM__TRY(gmem__json_open(parser, c == '{' ? '}' : ']'));
    gmem__json_skip_space(parser);
    if (gmem__json_peek(parser) == parser->closer[parser->depth - 1]) return gmem__json_close(parser);
    *due = 1;
    return GMEM_OK;
}

/* One run over the text: parser->at ends behind the value. */
static gmem_status gmem__json_run(gmem__json_parser *parser) {
    int due = 1;
    parser->at = parser->count = 0;
    parser->depth = 0;
    for (;;) {
        if (due) {
            GMEM__TRY(gmem__json_key(parser));
            GMEM__TRY(gmem__json_value(parser, &due));
            continue;
        }
        if (parser->depth == 0) return GMEM_OK;
        gmem__json_skip_space(parser);
        char c = gmem__json_peek(parser);
        if (c == ',') {
            parser->at++;
            due = 1;
        } else if (c == parser->closer[parser->depth - 1]) {
            GMEM__TRY(gmem__json_close(parser));
        } else {
            return gmem__json_fail(parser, parser->at, "',' or the container's end is missing");
        }
    }
}

static gmem_status gmem__json_runs(gmem__json_parser *parser, int64_t *end) {
    gmem__json *json = parser->json;
    GMEM__TRY(gmem__json_run(parser));
    if (end) {
        *end = parser->at;
    } else {
        gmem__json_skip_space(parser);
        if (parser->at != json->bytes) return gmem__json_fail(parser, parser->at, "more follows the value");
    }
    json->count = parser->count;
    json->nodes = (gmem__json_node *)gmem__alloc_raw(json->context, json->count, sizeof *json->nodes);
    if (!json->nodes) return gmem__fail_at(parser->error, GMEM_E_MEMORY, parser->path, -1, "no memory for the JSON");
    return gmem__json_run(parser);
}

GMEM__FN gmem_status gmem__json_parse(const gmem_context *context, const char *text, int64_t bytes, const char *path,
                                      int64_t offset, gmem__json *out, int64_t *end, gmem_error *error) {
    gmem__json json;
    gmem__json_parser parser;
    memset(&json, 0, sizeof json);
    memset(&parser, 0, sizeof parser);
    if (bytes > GMEM__JSON_MAX_BYTES)
        return gmem__fail_at(error, GMEM_E_LIMIT, path, offset, "%lld bytes of JSON", (long long)bytes);
    json.context = context;
    json.bytes = bytes;
    json.offset = offset;
    json.text = (char *)gmem__alloc_raw(context, bytes, 1);
    if (!json.text) return gmem__fail_at(error, GMEM_E_MEMORY, path, -1, "no memory for the JSON");
    memcpy(json.text, text, (size_t)bytes);
    parser.json = &json;
    parser.path = path;
    parser.error = error;
    gmem_status status = gmem__json_runs(&parser, end);
    if (status != GMEM_OK) {
        gmem__json_free(&json);
        return status;
    }
    *out = json;
    return GMEM_OK;
}

GMEM__FN void gmem__json_free(gmem__json *json) {
    gmem__free(json->context, json->text, json->bytes, 1);
    gmem__free(json->context, json->nodes, json->count, sizeof *json->nodes);
    json->text = NULL;
    json->nodes = NULL;
}

/* access ---------------------------------------------------------------------------------------------------------- */

GMEM__FN int64_t gmem__json_get(const gmem__json *json, int64_t node, const char *key) {
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_OBJECT) return -1;
    for (int64_t i = node + 1; i < json->nodes[node].next; i = json->nodes[i + 1].next) {
        if (strcmp(gmem__json_text(json, i), key) == 0) return i + 1;
    }
    return -1;
}

GMEM__FN int gmem__json_int(const gmem__json *json, int64_t node, int64_t *out) {
    int64_t value = 0;
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_NUMBER) return 0;
    for (uint32_t i = 0; i < json->nodes[node].length; i++) {
        char c = gmem__json_text(json, node)[i];
        if (c < '0' || c > '9' || !gmem__mul(value, 10, &value) || !gmem__add(value, c - '0', &value)) return 0;
    }
    *out = value;
    return 1;
}

GMEM__FN int gmem__json_double(const gmem__json *json, int64_t node, double *out) {
    if (node < 0 || json->nodes[node].kind != GMEM__JSON_NUMBER) return 0;
    return gmem__parse_double(gmem__json_text(json, node), json->nodes[node].length, out);
}

#undef GMEM__JSON_MAX_BYTES
