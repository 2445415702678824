/* What a command works with: the context and the opened files, all released together; tensors in and out. */
#ifndef SESSION_H
#define SESSION_H

#include "args.h"
#include "model.h"

typedef struct session {
    const arguments *args;
    gmem_context *context;
    gmem_file *network_file, *bank_file, *autoencoder_file, *encoder_file, *input;
    gmem_network *network;
    gmem_bank *bank;
    gmem_autoencoder *autoencoder;
    gmem_image_encoder *encoder;
    const gmem_network_info *network_info;         /* where a network is open */
    const gmem_autoencoder_info *autoencoder_info; /* where an autoencoder is open */
    const gmem_image_encoder_info *encoder_info;   /* where an image encoder is open */
    float *mean, *std;                             /* (latent_channels) of the latent statistics, or NULL for 0 and 1 */
    double multiplier;
    int64_t latent_height, latent_width; /* of the input's latents, for networks whose files do not tell; or 0 */
    struct buffer *buffers;
} session;

/* "f32", "bf16", "int8", "f16": what products compute in. */
const char *session_dtype(const session *s);
/* Begins with the context as the flags say, and finds out early that the output cannot be written.
 * The session must be zero. session_end releases everything, whatever was opened. */
outcome session_begin(session *s, const arguments *args, gmem_error *error);
void session_end(session *s);

/* Memory that lives as long as the session; NULL where there is none. */
void *session_alloc(session *s, int64_t count, size_t bytes);
float *session_floats(session *s, int64_t count);

/* A part's file: the one named, else the built-in. */
outcome open_part(session *s, model_part part, const char *path, const char *key, gmem_file **out, gmem_error *error);
/* Open what the flags name, or the built-in model's part. */
outcome open_network(session *s, gmem_error *error);
outcome open_bank(session *s, gmem_error *error);
outcome open_autoencoder(session *s, gmem_error *error);
outcome open_latent_stats(session *s, gmem_error *error); /* after the autoencoder */
outcome open_input(session *s, gmem_error *error);

/* A tensor of --input: any rank and shape that match, a dimension of -1 matching all. */
outcome input_tensor(session *s, const char *name, int rank, const int64_t *shape, const gmem_tensor **out,
                     gmem_error *error);
/* The same read into memory of the session. */
outcome input_floats(session *s, const char *name, int rank, const int64_t *shape, const gmem_tensor **tensor,
                     float **out, gmem_error *error);
outcome input_integers(session *s, const char *name, int64_t count, int64_t **out, gmem_error *error);

/* Writes --output with `backend` and `dtype` beside the tensors, and says so on standard output. */
outcome save_output(session *s, const gmem_tensor *tensors, int64_t count, gmem_error *error);

/* The same with a function for what has no data, as in gmem_save_desc. */
typedef gmem_status (*fill_function)(void *user, int64_t index, int64_t first, int64_t count, void *out,
                                     gmem_error *error);
outcome save_filled(session *s, const gmem_tensor *tensors, int64_t count, fill_function fill, void *user,
                    gmem_error *error);

/* Refuses an output that is missing or cannot be written, before there is work to lose. */
outcome check_output(const char *path, gmem_error *error);
/* Whether both are there and the same. */
int same_file(const char *a, const char *b);
/* Refuses to write over photos what is made of them. */
outcome check_pictures_kept(const text_list *pictures, const char *path, gmem_error *error);
/* Refuses a bank's file whose name would be torch's. */
outcome check_bank_output(const char *path, gmem_error *error);
/* {"name", "type", "shape"} as an element of a list. */
void json_tensor(json_writer *json, const gmem_tensor *tensor);

/* The type that --dtype names, of what is written. */
gmem_type written_type(const arguments *args, gmem_type otherwise);

/* A name as rows have them: itself where it is one line of UTF-8, else escaped; NULL where there is no memory. */
const char *row_name(session *s, const char *name);

/* Says what was written on standard output, where it is not kept for JSON or silenced. */
void say_written(const arguments *args, const char *path, const char *what);

/* The outcome of work on what a file holds: an error that names no file is that one's. */
outcome in_file(const char *path, gmem_status status, gmem_error *error);
outcome in_network(session *s, gmem_status status, gmem_error *error);
outcome in_autoencoder(session *s, gmem_status status, gmem_error *error);

/* Whether any row has a name. */
int bank_has_names(const gmem_bank *bank);
/* A row of the bank, normalised; a failure names the file that the row is in. */
outcome read_snippet(session *s, int64_t row, float *out, gmem_error *error);

/* "3 x 8 x 8 x 8", any dimension that is negative as "any". */
const char *shape_text(const int64_t *shape, int rank, char *out, size_t bytes);

#endif /* SESSION_H */
