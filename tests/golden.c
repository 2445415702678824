/* Golden files and procedural networks; see golden.h. */
#include "golden.h"

#include "../examples/gmem/procedural.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN_FOLDER "tests/golden/"

const gmem_isa golden_isas[] = {GMEM_ISA_SCALAR, GMEM_ISA_AVX2, GMEM_ISA_AVX512};
const int golden_isa_count = 3;

const char *golden_isa_name(gmem_isa isa) {
    return isa == GMEM_ISA_SCALAR   ? "scalar"
           : isa == GMEM_ISA_AVX2   ? "avx2"
           : isa == GMEM_ISA_AVX512 ? "avx512"
                                    : "auto";
}

static void die(const char *what, const char *name, const gmem_error *error) {
    printf("%s %s: %s\n", what, name, error ? error->message : "");
    exit(1);
}

int golden_on_device(void) {
    const char *backend = getenv("GMEM_TEST_BACKEND");
    if (!backend || strcmp(backend, "cpu") == 0) return 0;
    if (strcmp(backend, "opencl") != 0) die("GMEM_TEST_BACKEND is cpu or opencl, not", backend, NULL);
    return 1;
}

void golden_choose_backend(gmem_context_desc *desc) {
    desc->backend = golden_on_device() ? GMEM_BACKEND_OPENCL : GMEM_BACKEND_CPU;
    desc->device = getenv("GMEM_TEST_DEVICE");
}

static gmem_context *make_context(const gmem_context_desc *desc) {
    gmem_context *context = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    gmem_status status = gmem_context_create(desc, &context, &error);
    if (status == GMEM_E_UNSUPPORTED) {
        printf("note: this machine has no %s\n", golden_isa_name(desc->isa));
        return NULL;
    }
    if (status != GMEM_OK) die("cannot make a context on", golden_isa_name(desc->isa), &error);
    return context;
}

gmem_context *golden_cpu_context(gmem_isa isa) {
    gmem_context_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.backend = GMEM_BACKEND_CPU;
    desc.isa = isa;
    return make_context(&desc);
}

gmem_context *golden_context(gmem_isa isa) {
    gmem_context_desc desc;
    if (!golden_on_device()) return golden_cpu_context(isa);
    /* results do not depend on the instruction set: once is enough */
    if (isa != GMEM_ISA_AUTO && isa != golden_isas[0]) return NULL;
    memset(&desc, 0, sizeof desc);
    golden_choose_backend(&desc);
    return make_context(&desc);
}

gmem_file *golden_open(gmem_context *context, const char *name) {
    char path[512];
    gmem_file *file = NULL;
    gmem_error error;
    memset(&error, 0, sizeof error);
    snprintf(path, sizeof path, "%s%s", strchr(name, '/') ? "" : GOLDEN_FOLDER, name);
    if (gmem_file_open(context, path, ".", &file, &error) != GMEM_OK) die("cannot open", path, &error);
    return file;
}

static const gmem_tensor *need(const gmem_file *file, const char *name) {
    const gmem_tensor *tensor = gmem_file_find(file, name);
    if (!tensor) die("missing in the golden file:", name, NULL);
    return tensor;
}

float *golden_f32(const gmem_file *file, const char *name, int64_t *count) {
    const gmem_tensor *tensor = need(file, name);
    int64_t elements = gmem_tensor_count(tensor);
    float *out = (float *)malloc((size_t)(elements ? elements : 1) * sizeof *out);
    if (!out) die("no memory for", name, NULL);
    gmem_tensor_read_f32(tensor, 0, elements, out);
    if (count) *count = elements;
    return out;
}

int64_t *golden_i64(const gmem_file *file, const char *name, int64_t *count) {
    const gmem_tensor *tensor = need(file, name);
    int64_t elements = gmem_tensor_count(tensor);
    int64_t *out = (int64_t *)malloc((size_t)(elements ? elements : 1) * sizeof *out);
    if (!out) die("no memory for", name, NULL);
    gmem_tensor_read_i64(tensor, 0, elements, out);
    if (count) *count = elements;
    return out;
}

int64_t golden_dim(const gmem_file *file, const char *name, int i) { return need(file, name)->shape[i]; }

int golden_has(const gmem_file *file, const char *name) { return gmem_file_find(file, name) != NULL; }

/* The text just after "name": in a flat JSON object, or NULL. Our own recorded files: no escapes in them. */
static const char *json_value(const gmem_file *file, const char *key, const char *name) {
    const char *json = gmem_file_metadata(file, key);
    char quoted[128];
    if (!json) return NULL;
    snprintf(quoted, sizeof quoted, "\"%s\": ", name);
    const char *at = strstr(json, quoted);
    return at ? at + strlen(quoted) : NULL;
}

int golden_number(const gmem_file *file, const char *key, const char *name, double *out) {
    const char *value = json_value(file, key, name);
    if (!value) return 0;
    if (strncmp(value, "true", 4) == 0 || strncmp(value, "false", 5) == 0) {
        *out = value[0] == 't';
        return 1;
    }
    char *end = NULL;
    *out = strtod(value, &end);
    return end != value;
}

int golden_text(const gmem_file *file, const char *key, const char *name, char *out, size_t bytes) {
    const char *value = json_value(file, key, name);
    const char *end = value && *value == '"' ? strchr(value + 1, '"') : NULL;
    if (!end || (size_t)(end - value) > bytes) return 0;
    memcpy(out, value + 1, (size_t)(end - value - 1));
    out[end - value - 1] = 0;
    return 1;
}

/* procedural networks ------------------------------------------------------------------------------------------- */

/* A growing text. */
typedef struct text {
    char *data;
    size_t used, capacity;
} text;

static void append(text *to, const char *from, size_t bytes) {
    if (to->used + bytes + 1 > to->capacity) {
        to->capacity = (to->used + bytes + 1) * 2;
        to->data = (char *)realloc(to->data, to->capacity);
        if (!to->data) die("no memory for", "a header", NULL);
    }
    memcpy(to->data + to->used, from, bytes);
    to->used += bytes;
    to->data[to->used] = 0;
}

static void append_escaped(text *to, const char *from) {
    for (; *from; from++) {
        if (*from == '"' || *from == '\\') append(to, "\\", 1);
        append(to, from, 1);
    }
}

typedef struct listed {
    char name[200];
    int rank;
    int64_t shape[8], count;
} listed;

/* The next `"name": [1, 2]` of the recorded list, or 0 at its end. */
static int next_listed(const char **at, listed *out) {
    const char *open = strchr(*at, '"');
    const char *close = open ? strchr(open + 1, '"') : NULL;
    const char *bracket = close ? strchr(close, '[') : NULL;
    if (!bracket || (size_t)(close - open) > sizeof out->name) return 0;
    memcpy(out->name, open + 1, (size_t)(close - open - 1));
    out->name[close - open - 1] = 0;
    out->rank = 0;
    out->count = 1;
    for (bracket++; *bracket && *bracket != ']';) {
        char *end = NULL;
        long long size = strtoll(bracket, &end, 10);
        if (end == bracket) {
            bracket++;
            continue;
        }
        out->shape[out->rank++] = size;
        out->count *= size;
        bracket = end;
    }
    *at = bracket;
    return 1;
}

static void describe(text *header, const char *list, const char *skip, int64_t *data_bytes) {
    listed tensor;
    char line[512];
    *data_bytes = 0;
    for (const char *at = list; next_listed(&at, &tensor);) {
        if (skip && strstr(tensor.name, skip)) continue;
        int used = snprintf(line, sizeof line, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[", tensor.name);
        append(header, line, (size_t)used);
        for (int i = 0; i < tensor.rank; i++) {
            used = snprintf(line, sizeof line, "%s%lld", i ? "," : "", (long long)tensor.shape[i]);
            append(header, line, (size_t)used);
        }
        int64_t end = *data_bytes + tensor.count * 4;
        used = snprintf(line, sizeof line, "],\"data_offsets\":[%lld,%lld]}", (long long)*data_bytes, (long long)end);
        append(header, line, (size_t)used);
        *data_bytes = end;
    }
}

/* In parts, for as many threads as there are. */
static void fill(const listed *tensor, float *values) {
    enum { PART = 1 << 18 };
    const int parts = (int)((tensor->count + PART - 1) / PART);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
    for (int i = 0; i < parts; i++) {
        const int64_t first = (int64_t)i * PART, left = tensor->count - first;
        procedural_fill(tensor->name, tensor->rank, tensor->shape, first, left < PART ? left : PART, values + first);
    }
}

golden_network golden_procedural(gmem_context *context, const gmem_file *io, const char *skip) {
    golden_network network = {NULL, NULL};
    const char *list = gmem_file_metadata(io, "tensors"), *config = gmem_file_metadata(io, "config");
    text header = {NULL, 0, 0};
    int64_t data_bytes = 0;
    if (!list) die("no list of tensors in", gmem_file_path(io), NULL);
    append(&header, "{\"__metadata__\":{", 17);
    if (config) {
        append(&header, "\"config\":\"", 10);
        append_escaped(&header, config);
        append(&header, "\"", 1);
    }
    append(&header, "}", 1);
    describe(&header, list, skip, &data_bytes);
    append(&header, "}", 1);
    while (header.used % 64 != 56) {
        append(&header, " ", 1);
    }
    size_t bytes = 8 + header.used + (size_t)data_bytes;
    void *allocated = malloc(bytes + 64);
    if (!allocated) die("no memory for", gmem_file_path(io), NULL);
    unsigned char *memory = (unsigned char *)allocated + (64 - (uintptr_t)allocated % 64) % 64; /* as in a mapping */
    for (int i = 0; i < 8; i++) {
        memory[i] = (unsigned char)((uint64_t)header.used >> (8 * i));
    }
    memcpy(memory + 8, header.data, header.used);
    float *values = (float *)(void *)(memory + 8 + header.used);
    listed tensor;
    for (const char *at = list; next_listed(&at, &tensor);) {
        if (skip && strstr(tensor.name, skip)) continue;
        fill(&tensor, values);
        values += tensor.count;
    }
    free(header.data);
    gmem_error error;
    memset(&error, 0, sizeof error);
    network.memory = allocated;
    if (gmem_file_open_memory(context, gmem_file_path(io), memory, bytes, NULL, &network.file, &error) != GMEM_OK)
        die("cannot open the procedural network of", gmem_file_path(io), &error);
    return network;
}

void golden_network_close(golden_network *network) {
    gmem_file_close(network->file);
    free(network->memory);
    network->file = NULL;
    network->memory = NULL;
}

golden_case golden_case_open(gmem_context *context, const char *name, const char *skip) {
    golden_case recorded;
    char file_name[128];
    gmem_network_desc desc;
    gmem_error error;
    memset(&recorded, 0, sizeof recorded);
    memset(&desc, 0, sizeof desc);
    memset(&error, 0, sizeof error);
    snprintf(file_name, sizeof file_name, "%s.io.safetensors", name);
    recorded.io = golden_open(context, file_name);
    recorded.weights = golden_procedural(context, recorded.io, skip);
    desc.file = recorded.weights.file;
    if (gmem_network_open(context, &desc, &recorded.network, &error) != GMEM_OK)
        die("cannot open the network of", name, &error);
    return recorded;
}

void golden_case_close(golden_case *recorded) {
    gmem_network_close(recorded->network);
    golden_network_close(&recorded->weights);
    gmem_file_close(recorded->io);
    recorded->network = NULL;
    recorded->io = NULL;
}
