/* gmem info: what a file is, without running anything in it. */
#include "commands.h"
#include "describe.h"

#include <string.h>

static const char *format_name(gmem_format format) {
    static const char *const names[] = {"torch zip", "torch legacy", "safetensors"};
    return names[format];
}

static void print_network(const gmem_network_info *n) {
    printf("network       %lld blocks of width %lld, %lld heads; latent %lld x %lld x %lld, patch %lld\n",
           (long long)n->depth, (long long)n->hidden, (long long)n->heads, (long long)n->channels, (long long)n->height,
           (long long)n->width, (long long)n->patch);
    printf("parts         %s, %s%s%s%s%s\n", n->swiglu ? "SwiGLU" : "GELU", n->rmsnorm ? "RMSNorm" : "LayerNorm",
           n->qk_norm ? ", q/k norm" : "", n->rope ? ", RoPE" : "", n->shift ? "" : ", no shift",
           n->learned_sigma ? ", learned sigma" : "");
    if (n->snippet_width > 0) printf("condition     a snippet of width %lld\n", (long long)n->snippet_width);
    if (n->classes > 0) printf("condition     one of %lld classes\n", (long long)n->classes);
    printf("time          %s\n", n->time_reversed ? "1 is noise (REPA)" : "0 is noise");
    printf("pass          %.4g GFLOP a picture\n", n->flop * 1e-9);
}

static void print_encoder(const gmem_image_encoder_info *e) {
    printf("encoder       %lld blocks of width %lld, %lld heads; patch %lld, %lld registers\n", (long long)e->depth,
           (long long)e->width, (long long)e->heads, (long long)e->patch, (long long)e->registers);
    printf("pictures      cropped to %lld x %lld, seen at %lld x %lld\n", (long long)e->picture_size,
           (long long)e->picture_size, (long long)e->input_size, (long long)e->input_size);
    printf("pass          %.4g GFLOP a picture\n", e->flop * 1e-9);
}

static void print_text(gmem_file *file, const description *d) {
    char plain[1024], shape[200];
    const char *key = gmem_file_key(file);
    printf("file          %s\n", gmem_escape(gmem_file_path(file), plain, sizeof plain));
    printf("format        %s, %lld bytes\n", format_name(gmem_file_format(file)), (long long)gmem_file_bytes(file));
    printf("dictionary    %s\n", key[0] ? gmem_escape(key, plain, sizeof plain) : "the whole file");
    printf("architecture  %s\n", d->architecture);
    if (d->trouble.code != GMEM_OK) printf("not usable    %s\n", gmem_escape(d->trouble.message, plain, sizeof plain));
    printf("parameters    %lld\n", (long long)d->parameters);
    if (d->has_network) print_network(&d->network);
    if (d->has_encoder) print_encoder(&d->encoder);
    for (int64_t i = 0; i < gmem_file_foreign_count(file); i++) {
        printf("foreign       %s: loading with Python would have run it; here it is only a name\n",
               gmem_escape(gmem_file_foreign(file, i), plain, sizeof plain));
    }
    for (int64_t i = 0; i < gmem_file_metadata_count(file); i++) {
        const char *name, *value;
        char name_plain[256];
        gmem_file_metadata_at(file, i, &name, &value);
        printf("metadata      %s: %s\n", gmem_escape(name, name_plain, sizeof name_plain),
               gmem_escape(value, plain, sizeof plain));
    }
    printf("tensors       %lld\n", (long long)gmem_file_tensor_count(file));
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *t = gmem_file_tensor(file, i);
        printf("  %-4s  %-56s  %s\n", gmem_type_name(t->type), gmem_escape(t->name, plain, sizeof plain),
               shape_text(t->shape, t->rank, shape, sizeof shape));
    }
}

static void json_network(json_writer *json, const gmem_network_info *n) {
    json_open(json, "network", '{');
    json_integer(json, "depth", n->depth);
    json_integer(json, "hidden", n->hidden);
    json_integer(json, "heads", n->heads);
    json_integer(json, "channels", n->channels);
    json_integer(json, "height", n->height);
    json_integer(json, "width", n->width);
    json_integer(json, "patch", n->patch);
    json_integer(json, "snippet_width", n->snippet_width);
    json_integer(json, "classes", n->classes);
    json_boolean(json, "swiglu", n->swiglu);
    json_boolean(json, "rmsnorm", n->rmsnorm);
    json_boolean(json, "qk_norm", n->qk_norm);
    json_boolean(json, "rope", n->rope);
    json_boolean(json, "shift", n->shift);
    json_boolean(json, "learned_sigma", n->learned_sigma);
    json_boolean(json, "time_reversed", n->time_reversed);
    json_number(json, "gflop", n->flop * 1e-9);
    json_close(json, '}');
}

static void json_encoder(json_writer *json, const gmem_image_encoder_info *e) {
    json_open(json, "image_encoder", '{');
    json_integer(json, "depth", e->depth);
    json_integer(json, "width", e->width);
    json_integer(json, "heads", e->heads);
    json_integer(json, "mlp_hidden", e->mlp_hidden);
    json_integer(json, "patch", e->patch);
    json_integer(json, "registers", e->registers);
    json_integer(json, "picture_size", e->picture_size);
    json_integer(json, "input_size", e->input_size);
    json_integer(json, "tokens", e->tokens);
    json_number(json, "gflop", e->flop * 1e-9);
    json_close(json, '}');
}

static void json_tensors(json_writer *json, const gmem_file *file) {
    int64_t of_type[GMEM_TYPE_COUNT] = {0};
    json_open(json, "tensors", '[');
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *t = gmem_file_tensor(file, i);
        of_type[t->type]++;
        json_tensor(json, t);
    }
    json_close(json, ']');
    json_open(json, "types", '{');
    for (int type = 0; type < GMEM_TYPE_COUNT; type++) {
        if (of_type[type]) json_integer(json, gmem_type_name((gmem_type)type), of_type[type]);
    }
    json_close(json, '}');
}

static void print_json(gmem_file *file, const description *d) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "path", gmem_file_path(file));
    json_text(&json, "format", format_name(gmem_file_format(file)));
    json_integer(&json, "bytes", gmem_file_bytes(file));
    json_text(&json, "key", gmem_file_key(file));
    json_text(&json, "architecture", d->architecture);
    if (d->trouble.code != GMEM_OK) json_text(&json, "not_usable", d->trouble.message);
    json_integer(&json, "parameters", d->parameters);
    if (d->has_network) json_network(&json, &d->network);
    if (d->has_encoder) json_encoder(&json, &d->encoder);
    json_tensors(&json, file);
    json_open(&json, "metadata", '{');
    for (int64_t i = 0; i < gmem_file_metadata_count(file); i++) {
        const char *name, *value;
        gmem_file_metadata_at(file, i, &name, &value);
        json_text(&json, name, value);
    }
    json_close(&json, '}');
    json_open(&json, "foreign", '[');
    for (int64_t i = 0; i < gmem_file_foreign_count(file); i++) {
        json_text(&json, NULL, gmem_file_foreign(file, i));
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

outcome command_info(const arguments *args, gmem_error *error) {
    session s;
    gmem_file *file = NULL;
    description d;
    memset(&s, 0, sizeof s);
    memset(&d, 0, sizeof d);
    outcome result = session_begin(&s, args, error);
    if (result == OUTCOME_DONE)
        result = from_status(gmem_file_open(s.context, args->operands.items[0], args->key, &file, error));
    if (result == OUTCOME_DONE) {
        describe(s.context, file, (int)args->heads, &d);
        (args->json ? print_json : print_text)(file, &d);
    }
    gmem_file_close(file);
    session_end(&s);
    return result;
}
