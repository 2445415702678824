/* The context and the files that commands share: opened as the flags say, else from the built-in model. */
#define _POSIX_C_SOURCE 200809L
#include "session.h"

#include "backend.h"
#include "diffusers.h"
#include "interrupt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* memory ---------------------------------------------------------------------------------------------------------- */

struct buffer {
    struct buffer *next;
    double alignment; /* what follows holds floats and integers */
};

void *session_alloc(session *s, int64_t count, size_t bytes) {
    if (count < 0 || (uint64_t)count > (SIZE_MAX / 2 - sizeof(struct buffer)) / bytes) return NULL;
    struct buffer *buffer = (struct buffer *)calloc(1, sizeof *buffer + (size_t)count * bytes);
    if (!buffer) return NULL;
    buffer->next = s->buffers;
    s->buffers = buffer;
    return buffer + 1;
}

float *session_floats(session *s, int64_t count) { return (float *)session_alloc(s, count, sizeof(float)); }

void session_end(session *s) {
    gmem_network_close(s->network);
    gmem_bank_close(s->bank);
    gmem_autoencoder_close(s->autoencoder);
    gmem_image_encoder_close(s->encoder);
    gmem_file_close(s->network_file);
    gmem_file_close(s->bank_file);
    gmem_file_close(s->autoencoder_file);
    gmem_file_close(s->encoder_file);
    gmem_file_close(s->input);
    gmem_context_destroy(s->context);
    while (s->buffers) {
        struct buffer *next = s->buffers->next;
        free(s->buffers);
        s->buffers = next;
    }
}

/* beginning ------------------------------------------------------------------------------------------------------- */

const char *session_dtype(const session *s) { return compute_name(gmem_context_compute(s->context)); }

int same_file(const char *a, const char *b) {
    struct stat one, other;
    return stat(a, &one) == 0 && stat(b, &other) == 0 && one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

outcome check_pictures_kept(const text_list *pictures, const char *path, gmem_error *error) {
    for (int i = 0; i < pictures->count; i++) {
        if (same_file(pictures->items[i], path))
            return failed(error, path, "it is one of the pictures to read: choose another name to write");
    }
    return OUTCOME_DONE;
}

outcome session_begin(session *s, const arguments *args, gmem_error *error) {
    gmem_context_desc desc;
    device_text device;
    memset(&desc, 0, sizeof desc);
    s->args = args;
    TRY(backend_from_flags(args, &desc, &device, error));
    if (args->output && args->command == COMMAND_FEATURES)
        TRY(check_pictures_kept(&args->operands, args->output, error));
    /* sample's output may be a pattern for many files */
    if (args->output && args->command != COMMAND_SAMPLE) TRY(check_output(args->output, error));
    return from_status(gmem_context_create(&desc, &s->context, error));
}

outcome check_bank_output(const char *path, gmem_error *error) {
    const char *ending = strrchr(path, '.');
    if (!ending || !(same_ignoring_case(ending, ".pth") || same_ignoring_case(ending, ".pt"))) return OUTCOME_DONE;
    return failed(error, path, "banks are written as safetensors: choose a name that says so");
}

/* Creating a file beside the output is the only sure way to know that it can be done. */
outcome check_output(const char *path, gmem_error *error) {
    struct stat status;
    size_t length = strlen(path);
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return failed(error, path, "cannot write: it is %s, not a file",
                      S_ISDIR(status.st_mode) ? "a folder" : "a device");
    char *probe = (char *)malloc(length + 32);
    if (!probe) return out_of_memory(error);
    snprintf(probe, length + 32, "%s.probe%ld", path, (long)getpid());
    int file = open(probe, O_WRONLY | O_CREAT | O_EXCL, 0600);
    int reason = errno;
    if (file >= 0) {
        close(file);
        unlink(probe);
    }
    free(probe);
    if (file < 0) return failed(error, path, "cannot write: %s", strerror(reason));
    return OUTCOME_DONE;
}

/* models ---------------------------------------------------------------------------------------------------------- */

outcome open_part(session *s, model_part part, const char *path, const char *key, gmem_file **out, gmem_error *error) {
    size_t bytes = 0;
    if (path) return from_status(gmem_file_open(s->context, path, key, out, error));
    const void *data = model_data(part, &bytes);
    if (!data && part == MODEL_IMAGE_ENCODER)
        return failed(error, NULL, "this build has no image encoder built in: name one with --image-encoder");
    if (!data)
        return failed(error, NULL,
                      "this build has no model built in: name one with --network, --bank and --autoencoder");
    return from_status(gmem_file_open_memory(s->context, model_name(part), data, bytes, NULL, out, error));
}

outcome open_network(session *s, gmem_error *error) {
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    TRY(open_part(s, MODEL_NETWORK, s->args->network, s->args->key, &s->network_file, error));
    desc.file = s->network_file;
    desc.heads = (int)s->args->heads;
    if (!gmem_file_find(s->network_file, "pos_embed")) {
        desc.latent_height = s->latent_height;
        desc.latent_width = s->latent_width;
    }
    TRY(from_status(gmem_network_open(s->context, &desc, &s->network, error)));
    s->network_info = gmem_network_get_info(s->network);
    return OUTCOME_DONE;
}

outcome open_bank(session *s, gmem_error *error) {
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.names_path = s->args->names;
    if (s->args->bank.count) {
        desc.paths = s->args->bank.items;
        desc.path_count = s->args->bank.count;
    } else if (s->network_file && s->args->network) {
        /* the first GMem's checkpoints hold their bank */
        if (!gmem_file_find_any(s->network_file, "memorybank"))
            return misused(error, "%s draws from a bank: add --bank FILE", s->network_info->name);
        desc.file = s->network_file;
    } else {
        TRY(open_part(s, MODEL_BANK, NULL, NULL, &s->bank_file, error));
        desc.file = s->bank_file;
    }
    TRY(from_status(gmem_bank_open(s->context, &desc, &s->bank, error)));
    if (s->network_info && s->network_info->snippet_width != gmem_bank_width(s->bank))
        return failed(error, gmem_bank_file_path(s->bank, 0),
                      "the network takes snippets of width %lld, the bank's have %lld",
                      (long long)s->network_info->snippet_width, (long long)gmem_bank_width(s->bank));
    return OUTCOME_DONE;
}

outcome open_autoencoder(session *s, gmem_error *error) {
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    if (s->args->network && !s->args->autoencoder)
        return misused(error, "the latents of %s need their autoencoder: add --autoencoder FILE", s->args->network);
    TRY(open_part(s, MODEL_AUTOENCODER, s->args->autoencoder, NULL, &s->autoencoder_file, error));
    desc.file = s->autoencoder_file;
    TRY(from_status(gmem_autoencoder_open(s->context, &desc, &s->autoencoder, error)));
    s->autoencoder_info = gmem_autoencoder_get_info(s->autoencoder);
    if (s->network_info && s->network_info->channels != s->autoencoder_info->latent_channels)
        return failed(error, gmem_file_path(s->autoencoder_file),
                      "the network makes latents of %lld channels, the autoencoder takes %lld",
                      (long long)s->network_info->channels, (long long)s->autoencoder_info->latent_channels);
    return OUTCOME_DONE;
}

/* From the flag, else beside the autoencoder, else in it. */
static double find_multiplier(const session *s) {
    if (s->args->multiplier > 0) return s->args->multiplier;
    double factor = diffusers_scaling_factor(s->context, s->autoencoder_file);
    if (factor > 0) detail("scaling factor: %g, of the config.json beside the autoencoder", factor);
    return factor > 0 ? factor : s->autoencoder_info->multiplier;
}

outcome open_latent_stats(session *s, gmem_error *error) {
    gmem_file *file = NULL;
    int64_t channels = s->autoencoder_info->latent_channels;
    s->multiplier = find_multiplier(s);
    if (!s->args->latent_stats && s->args->autoencoder) return OUTCOME_DONE;
    s->mean = session_floats(s, channels);
    s->std = session_floats(s, channels);
    if (!s->mean || !s->std) return out_of_memory(error);
    TRY(open_part(s, MODEL_LATENT_STATS, s->args->latent_stats, NULL, &file, error));
    outcome result = from_status(gmem_read_latent_stats(file, channels, s->mean, s->std, error));
    gmem_file_close(file);
    return result;
}

/* tensors in ------------------------------------------------------------------------------------------------------ */

outcome open_input(session *s, gmem_error *error) {
    if (!s->args->input) return misused(error, "gmem %s needs --input FILE", command_words(s->args->command));
    if (!s->args->output && (OUTPUTS >> s->args->command & 1))
        return misused(error, "gmem %s needs -o FILE", command_words(s->args->command));
    return from_status(gmem_file_open(s->context, s->args->input, ".", &s->input, error));
}

outcome in_file(const char *path, gmem_status status, gmem_error *error) {
    if (status != GMEM_OK && status != GMEM_E_CANCELLED && !error->path[0])
        snprintf(error->path, sizeof error->path, "%s", path);
    return from_status(status);
}

outcome in_network(session *s, gmem_status status, gmem_error *error) {
    return in_file(gmem_file_path(s->network_file), status, error);
}

outcome in_autoencoder(session *s, gmem_status status, gmem_error *error) {
    return in_file(gmem_file_path(s->autoencoder_file), status, error);
}

int bank_has_names(const gmem_bank *bank) {
    for (int64_t i = 0; i < gmem_bank_rows(bank); i++) {
        if (gmem_bank_name(bank, i)) return 1;
    }
    return 0;
}

outcome read_snippet(session *s, int64_t row, float *out, gmem_error *error) {
    int file = 0;
    int64_t rows = 0;
    while (file + 1 < gmem_bank_file_count(s->bank) && row >= rows + gmem_bank_file_rows(s->bank, file)) {
        rows += gmem_bank_file_rows(s->bank, file++);
    }
    return in_file(gmem_bank_file_path(s->bank, file), gmem_bank_snippet(s->bank, row, out, error), error);
}

void json_tensor(json_writer *json, const gmem_tensor *tensor) {
    json_open(json, NULL, '{');
    json_text(json, "name", tensor->name);
    json_text(json, "type", gmem_type_name(tensor->type));
    json_open(json, "shape", '[');
    for (int i = 0; i < tensor->rank; i++) {
        json_integer(json, NULL, tensor->shape[i]);
    }
    json_close(json, ']');
    json_close(json, '}');
}

const char *shape_text(const int64_t *shape, int rank, char *out, size_t bytes) {
    size_t used = 0;
    snprintf(out, bytes, "scalar");
    for (int i = 0; i < rank && used < bytes; i++) {
        const char *between = i ? " x " : "";
        int written = shape[i] < 0 ? snprintf(out + used, bytes - used, "%sany", between)
                                   : snprintf(out + used, bytes - used, "%s%lld", between, (long long)shape[i]);
        used += (size_t)written;
    }
    return out;
}

outcome input_tensor(session *s, const char *name, int rank, const int64_t *shape, const gmem_tensor **out,
                     gmem_error *error) {
    char expected[200], found[200];
    const gmem_tensor *tensor = gmem_file_find(s->input, name);
    if (!tensor)
        return failed(error, s->args->input, "no tensor '%s', which gmem %s reads", name,
                      command_words(s->args->command));
    int matches = tensor->rank == rank;
    for (int i = 0; matches && i < rank; i++) {
        matches = shape[i] < 0 || shape[i] == tensor->shape[i];
    }
    if (!matches)
        return failed(error, s->args->input, "%s: expected %s, found %s", name,
                      shape_text(shape, rank, expected, sizeof expected),
                      shape_text(tensor->shape, tensor->rank, found, sizeof found));
    *out = tensor;
    return OUTCOME_DONE;
}

outcome input_floats(session *s, const char *name, int rank, const int64_t *shape, const gmem_tensor **tensor,
                     float **out, gmem_error *error) {
    TRY(input_tensor(s, name, rank, shape, tensor, error));
    int64_t count = gmem_tensor_count(*tensor);
    *out = session_floats(s, count);
    if (!*out) return out_of_memory(error);
    gmem_tensor_read_f32(*tensor, 0, count, *out);
    return OUTCOME_DONE;
}

outcome input_integers(session *s, const char *name, int64_t count, int64_t **out, gmem_error *error) {
    const gmem_tensor *tensor = NULL;
    TRY(input_tensor(s, name, 1, &count, &tensor, error));
    if (tensor->type == GMEM_F32 || tensor->type == GMEM_F16 || tensor->type == GMEM_BF16 || tensor->type == GMEM_F64)
        return failed(error, s->args->input, "%s: expected integers, found %s", name, gmem_type_name(tensor->type));
    *out = (int64_t *)session_alloc(s, count, sizeof **out);
    if (!*out) return out_of_memory(error);
    gmem_tensor_read_i64(tensor, 0, count, *out);
    return OUTCOME_DONE;
}

/* tensors out ----------------------------------------------------------------------------------------------------- */

gmem_type written_type(const arguments *args, gmem_type otherwise) {
    static const gmem_type by_choice[] = {GMEM_F32, GMEM_BF16, GMEM_F16, GMEM_I8};
    return args->dtype ? by_choice[args->dtype - 1] : otherwise;
}

const char *row_name(session *s, const char *name) {
    const size_t bytes = 4 * strlen(name) + 1;
    if (is_utf8_line(name)) return name;
    char *escaped = (char *)session_alloc(s, (int64_t)bytes, 1);
    return escaped ? gmem_escape(name, escaped, bytes) : NULL;
}

void say_written(const arguments *args, const char *path, const char *what) {
    char plain[1024];
    json_writer json;
    if (args->json) {
        json_begin(&json, stdout);
        json_open(&json, NULL, '{');
        json_text(&json, "output", path);
        json_text(&json, "holds", what);
        json_close(&json, '}');
    } else if (!args->quiet) {
        printf("%s: %s\n", gmem_escape(path, plain, sizeof plain), what);
    }
}

static void print_output_json(const session *s, const gmem_tensor *tensors, int64_t count) {
    json_writer json;
    json_begin(&json, stdout);
    json_open(&json, NULL, '{');
    json_text(&json, "output", s->args->output);
    json_text(&json, "backend", gmem_context_backend(s->context));
    json_text(&json, "dtype", session_dtype(s));
    json_open(&json, "tensors", '[');
    for (int64_t i = 0; i < count; i++) {
        json_tensor(&json, &tensors[i]);
    }
    json_close(&json, ']');
    json_close(&json, '}');
}

static void print_output_text(const session *s, const gmem_tensor *tensors, int64_t count) {
    char text[1024];
    if (s->args->quiet) return;
    printf("%s:", gmem_escape(s->args->output, text, sizeof text));
    for (int64_t i = 0; i < count; i++) {
        printf("%s %s %s", i ? "," : "", tensors[i].name,
               shape_text(tensors[i].shape, tensors[i].rank, text, sizeof text));
    }
    putchar('\n');
}

outcome save_output(session *s, const gmem_tensor *tensors, int64_t count, gmem_error *error) {
    return save_filled(s, tensors, count, NULL, NULL, error);
}

outcome save_filled(session *s, const gmem_tensor *tensors, int64_t count, fill_function fill, void *user,
                    gmem_error *error) {
    const char *metadata[] = {"backend",     gmem_context_backend(s->context), "dtype", session_dtype(s), "gmem",
                              gmem_version()};
    gmem_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.tensors = tensors;
    desc.count = count;
    desc.metadata = metadata;
    desc.metadata_count = (int64_t)(sizeof metadata / sizeof *metadata / 2);
    desc.fill = fill;
    desc.fill_user = user;
    TRY(interrupt_check(error));
    TRY(from_status(gmem_save(s->context, s->args->output, &desc, error)));
    note("backend: %s", gmem_context_backend(s->context));
    (s->args->json ? print_output_json : print_output_text)(s, tensors, count);
    return OUTCOME_DONE;
}
