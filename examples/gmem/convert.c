/* gmem convert: the tensors that loading would use, as safetensors, in another type where asked. Streamed: a file of
 * any size takes no more memory than a row. */
#define _POSIX_C_SOURCE 200809L
#include "commands.h"
#include "describe.h"
#include "interrupt.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One tensor of the new file: a view of the source's, a conversion of it, or the scales of its rows. */
typedef enum item_kind { ITEM_AS_IS, ITEM_CONVERTED, ITEM_QUANTISED, ITEM_SCALES } item_kind;

typedef struct item {
    item_kind kind;
    const gmem_tensor *source;
    const gmem_tensor *scales; /* of an int8 source that is converted; else NULL */
} item;

typedef struct conversion {
    session s;
    gmem_file *file;
    gmem_tensor *tensors; /* (count), those without data are filled by `fill` */
    item *items;          /* (count) */
    int64_t count;
    const char **metadata; /* (2 * metadata_count) */
    int64_t metadata_count;
    char *config;
    char dtype[16];
    float *row; /* (row_capacity) of the source */
    int64_t row_capacity;
} conversion;

/* configuration --------------------------------------------------------------------------------------------------- */

/* Opens and closes objects until the writer stands where "config.model.depth" belongs; returns the last name. */
static const char *enter(json_writer *json, char *open_path, size_t capacity, const char *key) {
    const char *last = strrchr(key, '.');
    size_t bytes = last ? (size_t)(last - key) + 1 : 0; /* "model." */
    while (strncmp(open_path, key, strlen(open_path)) != 0 || strlen(open_path) > bytes) {
        size_t length = strlen(open_path) - 1;
        while (length > 0 && open_path[length - 1] != '.') {
            length--;
        }
        open_path[length] = 0;
        json_close(json, '}');
    }
    while (strlen(open_path) < bytes && bytes < capacity) {
        char name[256];
        const char *part = key + strlen(open_path);
        size_t length = strcspn(part, ".");
        memcpy(name, part, length); /* shorter than open_path, which has as much room */
        name[length] = 0;
        json_open(json, name, '{');
        strncat(open_path, part, length + 1);
    }
    return key + strlen(open_path);
}

static void write_value(json_writer *json, const char *name, double number, const char *string) {
    if (string) {
        json_text(json, name, string);
    } else if (number == floor(number) && fabs(number) < 9e15) {
        json_integer(json, name, (int64_t)number);
    } else {
        json_number(json, name, number);
    }
}

/* What the network's tensors alone do not tell: written where the file's configuration does not say it. */
static void write_network(json_writer *json, const gmem_file *file, const gmem_network_info *n) {
    const struct {
        const char *name;
        int64_t value;
    } known[] = {{"input_size", n->height == n->width ? n->height : -1},
                 {"patch_size", n->patch},
                 {"in_channels", n->channels},
                 {"hidden_size", n->hidden},
                 {"depth", n->depth},
                 {"num_heads", n->heads},
                 {"use_rope", n->rope}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char key[64], below_model[64];
        double number;
        snprintf(key, sizeof key, "config.%s", known[i].name);
        snprintf(below_model, sizeof below_model, "config.model.%s", known[i].name);
        if (known[i].value < 0 || gmem_file_number(file, key, &number) || gmem_file_number(file, below_model, &number))
            continue;
        json_integer(json, known[i].name, known[i].value);
    }
}

/* The source's `config` dictionary and the network's facts as JSON. */
static void write_config(FILE *to, const gmem_file *file, const description *d) {
    json_writer json;
    char open_path[256] = "";
    int64_t cursor = 0;
    const char *key, *string;
    double number;
    json_begin(&json, to);
    json.compact = 1;
    json_open(&json, NULL, '{');
    if (d->has_network) write_network(&json, file, &d->network);
    while (gmem_file_next_value(file, &cursor, &key, &number, &string)) {
        if (strncmp(key, "config.", 7) != 0 || strlen(key) >= sizeof open_path) continue;
        const char *name = enter(&json, open_path, sizeof open_path, key + 7);
        write_value(&json, name, number, string);
    }
    enter(&json, open_path, sizeof open_path, "");
    json_close(&json, '}');
}

static outcome make_config(conversion *c, const description *d, gmem_error *error) {
    size_t bytes = 0;
    FILE *memory = open_memstream(&c->config, &bytes);
    if (!memory) return out_of_memory(error);
    write_config(memory, c->file, d);
    return fclose(memory) == 0 ? OUTCOME_DONE : out_of_memory(error);
}

/* Metadata that is written anew. */
static int is_ours(const char *key) {
    static const char *const keys[] = {"config", "format", "gmem", "backend", "dtype"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (!strcmp(key, keys[i])) return 1;
    }
    return 0;
}

/* The type of the file's weights: the one asked for, else that of the first. */
static const char *dtype_name(const conversion *c, char *out, size_t bytes) {
    static const struct {
        gmem_type type;
        int choice;
    } names[] = {{GMEM_BF16, 2}, {GMEM_F16, 3}, {GMEM_I8, 4}};
    int choice = c->s.args->dtype;
    for (int64_t i = 0; !choice && i < gmem_file_tensor_count(c->file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(c->file, i);
        for (size_t k = 0; !choice && k < sizeof names / sizeof *names; k++) {
            if (tensor->type == names[k].type) choice = names[k].choice;
        }
        if (is_floating(tensor->type)) break;
    }
    return choice_name(FLAG_dtype, choice, out, bytes);
}

/* The source's metadata, the configuration in place of the old one, and who wrote the file. */
static outcome make_metadata(conversion *c, const description *d, gmem_error *error) {
    int64_t have = gmem_file_metadata_count(c->file);
    c->metadata = (const char **)calloc((size_t)have * 2 + 10, sizeof *c->metadata);
    if (!c->metadata) return out_of_memory(error);
    const char **next = c->metadata;
    for (int64_t i = 0; i < have; i++) {
        const char *key, *value;
        gmem_file_metadata_at(c->file, i, &key, &value);
        if (is_ours(key)) continue;
        *next++ = key;
        *next++ = value;
    }
    TRY(make_config(c, d, error));
    if (strcmp(c->config, "{}") != 0) {
        *next++ = "config";
        *next++ = c->config;
    }
    *next++ = "format"; /* as other tools' files say it: the tensors are PyTorch's */
    *next++ = "pt";
    *next++ = "backend";
    *next++ = gmem_context_backend(c->s.context);
    *next++ = "dtype";
    *next++ = dtype_name(c, c->dtype, sizeof c->dtype);
    *next++ = "gmem";
    *next++ = gmem_version();
    c->metadata_count = (next - c->metadata) / 2;
    return OUTCOME_DONE;
}

/* tensors --------------------------------------------------------------------------------------------------------- */

/* Tables, tokens and the factors of a decomposed bank are no matrices of weights: a scale a row would not fit them. */
static int is_matrix(const gmem_tensor *tensor) {
    static const char *const tables[] = {"pos_embed", "cls_token", "register_tokens", "mask_token", "C", "M"};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (!strcmp(tensor->name, tables[i])) return 0;
    }
    return tensor->rank >= 2 && strncmp(tensor->name, "feat_rope.", 10) != 0;
}

static void add_item(conversion *c, item_kind kind, const gmem_tensor *source, const char *name, gmem_type type,
                     int rank) {
    int64_t index = c->count++;
    c->items[index].kind = kind;
    c->items[index].source = source;
    c->tensors[index] = kind == ITEM_AS_IS ? *source : gmem_tensor_make(name, type, rank, source->shape, NULL);
}

static outcome add_quantised(conversion *c, const gmem_tensor *source, gmem_error *error) {
    size_t bytes = strlen(source->name) + sizeof ".scale";
    char *name = (char *)session_alloc(&c->s, (int64_t)bytes, 1);
    if (!name) return out_of_memory(error);
    snprintf(name, bytes, "%s.scale", source->name);
    int64_t row = source->shape[0] > 0 ? gmem_tensor_count(source) / source->shape[0] : 0;
    if (row > c->row_capacity) c->row_capacity = row;
    add_item(c, ITEM_QUANTISED, source, source->name, GMEM_I8, source->rank);
    add_item(c, ITEM_SCALES, source, name, GMEM_F32, 1);
    return OUTCOME_DONE;
}

/* The scales of an int8 tensor's rows, which make it a floating-point one; or NULL. */
static const gmem_tensor *find_scales(const conversion *c, const gmem_tensor *tensor) {
    char name[1024];
    if (tensor->type != GMEM_I8 || tensor->rank < 1) return NULL;
    if (snprintf(name, sizeof name, "%s.scale", tensor->name) >= (int)sizeof name) return NULL;
    const gmem_tensor *scales = gmem_file_find(c->file, name);
    return scales && is_floating(scales->type) && gmem_tensor_count(scales) == tensor->shape[0] ? scales : NULL;
}

/* Whether the tensor is the scales of another. */
static int are_scales(const conversion *c, const gmem_tensor *tensor) {
    static const char suffix[] = ".scale";
    char name[1024];
    size_t length = strlen(tensor->name), rest = length - (sizeof suffix - 1);
    if (length < sizeof suffix || length >= sizeof name || strcmp(tensor->name + rest, suffix) != 0) return 0;
    memcpy(name, tensor->name, rest);
    name[rest] = 0;
    const gmem_tensor *scaled = gmem_file_find(c->file, name);
    return scaled && find_scales(c, scaled) == tensor;
}

/* int8 weights and their scales stay what they are, or become one tensor of another type. */
static void add_int8(conversion *c, const gmem_tensor *source, const gmem_tensor *scales, gmem_type type) {
    if (type == GMEM_I8) {
        add_item(c, ITEM_AS_IS, source, source->name, source->type, source->rank);
        add_item(c, ITEM_AS_IS, scales, scales->name, scales->type, scales->rank);
        return;
    }
    add_item(c, ITEM_CONVERTED, source, source->name, type, source->rank);
    c->items[c->count - 1].scales = scales;
}

static outcome plan(conversion *c, gmem_error *error) {
    int64_t sources = gmem_file_tensor_count(c->file);
    gmem_type type = written_type(c->s.args, GMEM_F32);
    c->tensors = (gmem_tensor *)calloc((size_t)sources * 2 + 1, sizeof *c->tensors);
    c->items = (item *)calloc((size_t)sources * 2 + 1, sizeof *c->items);
    if (!c->tensors || !c->items) return out_of_memory(error);
    for (int64_t i = 0; i < sources; i++) {
        const gmem_tensor *source = gmem_file_tensor(c->file, i), *scales = find_scales(c, source);
        if (c->s.args->dtype && are_scales(c, source)) continue;
        if (c->s.args->dtype && scales) {
            add_int8(c, source, scales, type);
        } else if (!c->s.args->dtype || !is_floating(source->type)) {
            add_item(c, ITEM_AS_IS, source, source->name, source->type, source->rank);
        } else if (type == GMEM_I8 && is_matrix(source)) {
            TRY(add_quantised(c, source, error));
        } else {
            gmem_type target = type == GMEM_I8 ? GMEM_F32 : type;
            add_item(c, target == source->type ? ITEM_AS_IS : ITEM_CONVERTED, source, source->name, target,
                     source->rank);
        }
    }
    c->row = (float *)calloc((size_t)c->row_capacity + 1, sizeof *c->row);
    return c->row ? OUTCOME_DONE : out_of_memory(error);
}

/* filling --------------------------------------------------------------------------------------------------------- */

/* Symmetric quantisation: the largest magnitude of a row becomes 127. A row of zeros has scale 1. */
static gmem_status read_row(conversion *c, const gmem_tensor *source, int64_t row, int64_t length, float *scale,
                            gmem_error *error) {
    float largest = 0;
    gmem_tensor_read_f32(source, row * length, length, c->row);
    for (int64_t i = 0; i < length; i++) {
        float magnitude = fabsf(c->row[i]);
        if (!isfinite(magnitude)) {
            failed(error, gmem_file_path(c->file), "%s: row %lld is not finite and has no int8 form", source->name,
                   (long long)row);
            return error->code = GMEM_E_NONFINITE;
        }
        if (magnitude > largest) largest = magnitude;
    }
    *scale = largest > 0 ? largest / 127.0f : 1.0f;
    return GMEM_OK;
}

static gmem_status fill_scales(conversion *c, const gmem_tensor *source, int64_t first, int64_t count, float *out,
                               gmem_error *error) {
    int64_t length = gmem_tensor_count(source) / source->shape[0];
    for (int64_t i = 0; i < count; i++) {
        gmem_status status = read_row(c, source, first + i, length, &out[i], error);
        if (status != GMEM_OK) return status;
    }
    return GMEM_OK;
}

/* Elements [first, first + count), which may begin and end within a row. */
static gmem_status fill_quantised(conversion *c, const gmem_tensor *source, int64_t first, int64_t count, int8_t *out,
                                  gmem_error *error) {
    int64_t length = gmem_tensor_count(source) / source->shape[0], end = first + count;
    while (first < end) {
        float scale;
        int64_t row = first / length, from = first % length;
        int64_t to = end - row * length < length ? end - row * length : length;
        gmem_status status = read_row(c, source, row, length, &scale, error);
        if (status != GMEM_OK) return status;
        for (int64_t i = from; i < to; i++) {
            *out++ = (int8_t)lrintf(c->row[i] / scale);
        }
        first += to - from;
    }
    return GMEM_OK;
}

/* int8 elements [first, first + count) in f32: values (count) times the scales of their rows. */
static void scale_rows(const item *from, int64_t first, int64_t count, float *values) {
    const int64_t length = gmem_tensor_count(from->source) / from->source->shape[0];
    float scale = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i == 0 || (first + i) % length == 0) gmem_tensor_read_f32(from->scales, (first + i) / length, 1, &scale);
        values[i] *= scale;
    }
}

static gmem_status fill_converted(const item *from, gmem_type type, int64_t first, int64_t count, void *out) {
    enum { CHUNK = 1024 };
    float chunk[CHUNK];
    char *to = (char *)out;
    for (int64_t done = 0; done < count; done += CHUNK) {
        int64_t part = count - done < CHUNK ? count - done : (int64_t)CHUNK;
        gmem_tensor_read_f32(from->source, first + done, part, chunk);
        if (from->scales) scale_rows(from, first + done, part, chunk);
        gmem_convert_f32(chunk, part, type, to + (size_t)done * gmem_type_bytes(type));
    }
    return GMEM_OK;
}

static gmem_status fill(void *user, int64_t index, int64_t first, int64_t count, void *out, gmem_error *error) {
    conversion *c = (conversion *)user;
    const gmem_tensor *source = c->items[index].source;
    if (interrupt_check(error) != OUTCOME_DONE) return GMEM_E_CANCELLED;
    switch (c->items[index].kind) {
    case ITEM_QUANTISED:
        return fill_quantised(c, source, first, count, (int8_t *)out, error);
    case ITEM_SCALES:
        return fill_scales(c, source, first, count, (float *)out, error);
    case ITEM_CONVERTED:
        return fill_converted(&c->items[index], c->tensors[index].type, first, count, out);
    case ITEM_AS_IS:
        break; /* these have data */
    }
    return GMEM_OK;
}

/* Whether PyTorch's own code builds tensors of some other type or layout by this global. */
static int builds_tensors(const char *global) {
    const char *end = strstr(global, "Storage");
    return !strncmp(global, "torch._utils._rebuild_", 22) || (!strncmp(global, "torch.", 6) && end && !end[7]);
}

/* A converted file that lacks a tensor in silence would be worse than none. */
static outcome check_complete(const conversion *c, gmem_error *error) {
    int64_t cursor = 0;
    const char *key, *global;
    char plain[256];
    while (gmem_file_next_foreign(c->file, &cursor, &key, &global)) {
        if (!builds_tensors(global)) continue;
        return failed(error, gmem_file_path(c->file), "%s: a tensor of a type that gmem does not read (%s)",
                      gmem_escape(key, plain, sizeof plain), global);
    }
    return OUTCOME_DONE;
}

static outcome convert(conversion *c, const arguments *args, gmem_error *error) {
    description d;
    gmem_save_desc desc;
    char what[256];
    const char *path = args->operands.items[0];
    memset(&d, 0, sizeof d);
    memset(&desc, 0, sizeof desc);
    if (!args->output) return misused(error, "gmem convert needs -o FILE");
    TRY(session_begin(&c->s, args, error));
    TRY(from_status(gmem_file_open(c->s.context, path, args->key, &c->file, error)));
    if (gmem_file_tensor_count(c->file) == 0) return failed(error, path, "the file holds no tensor");
    TRY(check_complete(c, error));
    describe(c->s.context, c->file, (int)args->heads, &d);
    TRY(make_metadata(c, &d, error));
    TRY(plan(c, error));
    desc.tensors = c->tensors;
    desc.count = c->count;
    desc.metadata = c->metadata;
    desc.metadata_count = c->metadata_count;
    desc.fill = fill;
    desc.fill_user = c;
    TRY(from_status(gmem_save(c->s.context, args->output, &desc, error)));
    snprintf(what, sizeof what, "%s, %lld tensors", d.architecture, (long long)c->count);
    say_written(args, args->output, what);
    return OUTCOME_DONE;
}

outcome command_convert(const arguments *args, gmem_error *error) {
    conversion c;
    memset(&c, 0, sizeof c);
    outcome result = convert(&c, args, error);
    gmem_file_close(c.file);
    session_end(&c.s);
    free(c.tensors);
    free(c.items);
    free(c.metadata);
    free(c.config);
    free(c.row);
    return result;
}
