/* gmem decode and gmem encode: the autoencoder on given tensors, picture by picture. */
#include "commands.h"
#include "interrupt.h"
#include "session.h"

#include <string.h>

/* The picture-by-picture loop of both directions. */
typedef struct coding {
    session s;
    int64_t count, height, width; /* of the input's pictures */
    const gmem_tensor *input;     /* (count, channels, height, width) */
    float *in;
    progress_bar bar;
} coding;

static outcome open_coding(coding *c, const char *name, int64_t channels, gmem_error *error) {
    int64_t shape[4] = {-1, channels, -1, -1};
    TRY(input_floats(&c->s, name, 4, shape, &c->input, &c->in, error));
    c->count = c->input->shape[0];
    c->height = c->input->shape[2];
    c->width = c->input->shape[3];
    if (c->count < 1 || c->height < 1 || c->width < 1)
        return failed(error, c->s.args->input, "%s: it holds no picture", name);
    return OUTCOME_DONE;
}

static outcome decode_all(coding *c, float *decoded, uint8_t *pixels, gmem_error *error) {
    const gmem_autoencoder_info *info = c->s.autoencoder_info;
    int64_t height = c->height * info->factor, width = c->width * info->factor;
    int64_t in_size = info->latent_channels * c->height * c->width, out_size = 3 * height * width;
    progress_begin(&c->bar);
    for (int64_t i = 0; i < c->count; i++) {
        TRY(interrupt_check(error));
        gmem_status status =
            gmem_decode(c->s.autoencoder, 1, c->height, c->width, c->in + i * in_size, decoded + i * out_size, error);
        TRY(in_autoencoder(&c->s, status, error));
        progress_show(&c->bar, i + 1, c->count, "pictures");
    }
    gmem_pixels(decoded, c->count, height, width, pixels);
    return OUTCOME_DONE;
}

static outcome decode(coding *c, gmem_error *error) {
    TRY(open_input(&c->s, error));
    TRY(open_autoencoder(&c->s, error));
    /* what encode writes as `mean` can be decoded as it is */
    TRY(open_coding(c, gmem_file_find(c->s.input, "z") || !gmem_file_find(c->s.input, "mean") ? "z" : "mean",
                    c->s.autoencoder_info->latent_channels, error));
    int64_t factor = c->s.autoencoder_info->factor;
    int64_t floats[4] = {c->count, 3, c->height * factor, c->width * factor};
    int64_t bytes[4] = {c->count, c->height * factor, c->width * factor, 3};
    int64_t size = floats[0] * floats[1] * floats[2] * floats[3];
    float *decoded = session_floats(&c->s, size);
    uint8_t *pixels = (uint8_t *)session_alloc(&c->s, size, 1);
    if (!decoded || !pixels) return out_of_memory(error);
    outcome result = decode_all(c, decoded, pixels, error);
    progress_end(&c->bar);
    TRY(result);
    gmem_tensor tensors[2];
    tensors[0] = gmem_tensor_make("decoded", GMEM_F32, 4, floats, decoded);
    tensors[1] = gmem_tensor_make("decoded_u8", GMEM_U8, 4, bytes, pixels);
    return save_output(&c->s, tensors, 2, error);
}

outcome command_decode(const arguments *args, gmem_error *error) {
    coding c;
    memset(&c, 0, sizeof c);
    outcome result = session_begin(&c.s, args, error);
    if (result == OUTCOME_DONE) result = decode(&c, error);
    session_end(&c.s);
    return result;
}

static outcome encode_all(coding *c, float *mean, float *logvar, gmem_error *error) {
    const gmem_autoencoder_info *info = c->s.autoencoder_info;
    int64_t in_size = 3 * c->height * c->width;
    int64_t out_size = info->latent_channels * (c->height / info->factor) * (c->width / info->factor);
    progress_begin(&c->bar);
    for (int64_t i = 0; i < c->count; i++) {
        TRY(interrupt_check(error));
        gmem_status status = gmem_encode(c->s.autoencoder, 1, c->height, c->width, c->in + i * in_size,
                                         mean + i * out_size, logvar + i * out_size, error);
        TRY(in_autoencoder(&c->s, status, error));
        progress_show(&c->bar, i + 1, c->count, "pictures");
    }
    return OUTCOME_DONE;
}

static outcome encode(coding *c, gmem_error *error) {
    TRY(open_input(&c->s, error));
    TRY(open_autoencoder(&c->s, error));
    TRY(open_coding(c, "image", 3, error));
    const gmem_autoencoder_info *info = c->s.autoencoder_info;
    if (c->height % info->factor != 0 || c->width % info->factor != 0)
        return failed(error, c->s.args->input, "image: expected sides that are multiples of %lld, found %lld x %lld",
                      (long long)info->factor, (long long)c->height, (long long)c->width);
    int64_t shape[4] = {c->count, info->latent_channels, c->height / info->factor, c->width / info->factor};
    int64_t size = shape[0] * shape[1] * shape[2] * shape[3];
    float *mean = session_floats(&c->s, size), *logvar = session_floats(&c->s, size);
    if (!mean || !logvar) return out_of_memory(error);
    outcome result = encode_all(c, mean, logvar, error);
    progress_end(&c->bar);
    TRY(result);
    gmem_tensor tensors[2];
    tensors[0] = gmem_tensor_make("mean", GMEM_F32, 4, shape, mean);
    tensors[1] = gmem_tensor_make("logvar", GMEM_F32, 4, shape, logvar);
    return save_output(&c->s, tensors, 2, error);
}

outcome command_encode(const arguments *args, gmem_error *error) {
    coding c;
    memset(&c, 0, sizeof c);
    outcome result = session_begin(&c.s, args, error);
    if (result == OUTCOME_DONE) result = encode(&c, error);
    session_end(&c.s);
    return result;
}
