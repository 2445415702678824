/* The config.json beside diffusers' weights. The library reads a configuration where safetensors files carry one, so
 * the text is handed to it as the metadata of a file that holds nothing else. */
#define _POSIX_C_SOURCE 200809L
#include "diffusers.h"

#include <stdlib.h>
#include <string.h>

#define MOST_BYTES ((size_t)1 << 20) /* real ones have 600 */

/* The text of the config.json in the folder of `path`, or NULL. */
static char *read_config(const char *path) {
    static const char name[] = "config.json";
    const char *slash = strrchr(path, '/');
    const size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
    char *beside = (char *)malloc(folder + sizeof name), *text = (char *)malloc(MOST_BYTES);
    size_t bytes = MOST_BYTES;
    if (beside && text) {
        memcpy(beside, path, folder);
        memcpy(beside + folder, name, sizeof name);
        FILE *file = fopen(beside, "rb");
        if (file) {
            bytes = fread(text, 1, MOST_BYTES, file);
            fclose(file);
        }
    }
    free(beside);
    if (bytes == MOST_BYTES) { /* none, or too large for one */
        free(text);
        return NULL;
    }
    text[bytes] = 0;
    return text;
}

/* A safetensors file with `config` as its metadata: the header's length, and the header. NULL without memory. */
static char *wrap(const char *config, size_t *bytes) {
    char *file = NULL;
    FILE *memory = open_memstream(&file, bytes);
    json_writer json;
    if (!memory) return NULL;
    fwrite("\0\0\0\0\0\0\0\0", 1, 8, memory);
    json_begin(&json, memory);
    json.compact = 1;
    json_open(&json, NULL, '{');
    json_open(&json, "__metadata__", '{');
    json_text(&json, "config", config);
    json_close(&json, '}');
    json_open(&json, "none", '{');
    json_text(&json, "dtype", "U8");
    json_open(&json, "shape", '[');
    json_integer(&json, NULL, 0);
    json_close(&json, ']');
    json_open(&json, "data_offsets", '[');
    json_integer(&json, NULL, 0);
    json_integer(&json, NULL, 0);
    json_close(&json, ']');
    json_close(&json, '}');
    json_close(&json, '}');
    if (fclose(memory) != 0) {
        free(file);
        return NULL;
    }
    for (int i = 0; i < 8; i++) {
        file[i] = (char)(unsigned char)((uint64_t)(*bytes - 8) >> 8 * i & 255);
    }
    return file;
}

static double scaling_factor_of(gmem_context *context, const char *config) {
    double factor = 0;
    size_t bytes = 0;
    gmem_file *file = NULL;
    char *wrapped = wrap(config, &bytes);
    if (wrapped && gmem_file_open_memory(context, "config.json", wrapped, bytes, ".", &file, NULL) == GMEM_OK &&
        !gmem_file_number(file, "config.scaling_factor", &factor))
        factor = 0;
    gmem_file_close(file);
    free(wrapped);
    return factor > 0 ? factor : 0;
}

double diffusers_scaling_factor(gmem_context *context, const gmem_file *autoencoder) {
    double stated;
    if (!gmem_file_find(autoencoder, "decoder.mid_block.resnets.0.conv1.weight")) return 0;
    if (gmem_file_number(autoencoder, "scaling_factor", &stated) ||
        gmem_file_number(autoencoder, "config.scaling_factor", &stated) ||
        gmem_file_metadata(autoencoder, "scaling_factor"))
        return 0;
    char *config = read_config(gmem_file_path(autoencoder));
    double factor = config ? scaling_factor_of(context, config) : 0;
    free(config);
    return factor;
}
