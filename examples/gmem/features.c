/* gmem features: what the image encoder makes of pictures, or of the tensor `image`. */
#include "commands.h"
#include "interrupt.h"
#include "picture.h"

#include <string.h>

#define BATCH 16 /* enough to keep every thread at work, reading and computing */

typedef struct extraction {
    session s;
    int64_t count, batch;
    float *cls;   /* (count, width) */
    float *patch; /* (count, tokens, width) */
    /* of files */
    uint8_t *crops; /* (batch, picture_size, picture_size, 3) */
    /* of --input */
    float *image; /* (count, 3, height, width) */
    int64_t height, width;
} extraction;

/* files ----------------------------------------------------------------------------------------------------------- */

static outcome prepare_files(extraction *e, gmem_error *error) {
    const int64_t size = e->s.encoder_info->picture_size;
    e->count = e->s.args->operands.count;
    if (e->batch > e->count) e->batch = e->count;
    e->crops = (uint8_t *)session_alloc(&e->s, e->batch * size * size, 3);
    return e->crops ? OUTCOME_DONE : out_of_memory(error);
}

static outcome extract_files(extraction *e, int64_t first, int64_t count, gmem_error *error) {
    const gmem_image_encoder_info *info = e->s.encoder_info;
    return picture_features(&e->s, count, e->s.args->operands.items + first, e->crops, e->cls + first * info->width,
                            e->patch + first * info->tokens * info->width, error);
}

/* --input --------------------------------------------------------------------------------------------------------- */

static outcome prepare_input(extraction *e, gmem_error *error) {
    const int64_t shape[4] = {-1, 3, -1, -1};
    const gmem_tensor *tensor = NULL;
    TRY(input_floats(&e->s, "image", 4, shape, &tensor, &e->image, error));
    e->count = tensor->shape[0];
    e->height = tensor->shape[2];
    e->width = tensor->shape[3];
    if (e->count < 1 || e->height < 1 || e->width < 1)
        return failed(error, e->s.args->input, "image: it holds no picture");
    if (e->s.args->published_range) { /* [0, 1], where the encoder takes [-1, 1] */
        const int64_t elements = gmem_tensor_count(tensor);
        for (int64_t i = 0; i < elements; i++) {
            e->image[i] = (e->image[i] + 1) / 2;
        }
    }
    return OUTCOME_DONE;
}

static outcome extract_input(extraction *e, int64_t first, int64_t count, gmem_error *error) {
    const gmem_image_encoder_info *info = e->s.encoder_info;
    const float *image = e->image + first * 3 * e->height * e->width;
    return in_file(e->s.args->input,
                   gmem_image_features(e->s.encoder, count, e->height, e->width, image, e->cls + first * info->width,
                                       e->patch + first * info->tokens * info->width, error),
                   error);
}

/* both ------------------------------------------------------------------------------------------------------------ */

static outcome extract_all(extraction *e, gmem_error *error) {
    progress_bar bar;
    outcome result = OUTCOME_DONE;
    progress_begin(&bar);
    for (int64_t first = 0; first < e->count && result == OUTCOME_DONE; first += e->batch) {
        const int64_t count = e->count - first < e->batch ? e->count - first : e->batch;
        result = interrupt_check(error);
        if (result == OUTCOME_DONE) result = (e->image ? extract_input : extract_files)(e, first, count, error);
        progress_show(&bar, first + count, e->count, "pictures");
    }
    progress_end(&bar);
    return result;
}

static outcome extract(extraction *e, const arguments *args, gmem_error *error) {
    gmem_tensor tensors[2];
    if (!args->operands.count && !args->input) return misused(error, "gmem features needs pictures, or --input FILE");
    if (args->operands.count && args->input)
        return misused(error, "pictures and --input cannot be combined: choose one");
    if (!args->output) return misused(error, "gmem features needs -o FILE");
    TRY(session_begin(&e->s, args, error));
    if (args->input) TRY(open_input(&e->s, error));
    TRY(open_image_encoder(&e->s, error));
    e->batch = args->batch ? args->batch : BATCH;
    TRY((args->input ? prepare_input : prepare_files)(e, error));
    const gmem_image_encoder_info *info = e->s.encoder_info;
    const int64_t cls[2] = {e->count, info->width}, patch[3] = {e->count, info->tokens, info->width};
    e->cls = session_floats(&e->s, e->count * info->width);
    e->patch = session_floats(&e->s, e->count * info->tokens * info->width);
    if (!e->cls || !e->patch) return out_of_memory(error);
    TRY(extract_all(e, error));
    tensors[0] = gmem_tensor_make("cls", GMEM_F32, 2, cls, e->cls);
    tensors[1] = gmem_tensor_make("patch", GMEM_F32, 3, patch, e->patch);
    return save_output(&e->s, tensors, 2, error);
}

outcome command_features(const arguments *args, gmem_error *error) {
    extraction e;
    memset(&e, 0, sizeof e);
    outcome result = extract(&e, args, error);
    session_end(&e.s);
    return result;
}
