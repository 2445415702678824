/* Pictures as a session uses them: cropped as the published bank builder crops, and as the image encoder's features. */
#include "picture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

outcome load_picture(session *s, const char *path, picture *out, gmem_error *error) {
    picture p;
    TRY(read_picture(path, &p, error));
    out->height = p.height;
    out->width = p.width;
    out->pixels = (uint8_t *)session_alloc(s, p.height * p.width, 3);
    if (out->pixels) memcpy(out->pixels, p.pixels, (size_t)p.height * (size_t)p.width * 3);
    free_picture(&p);
    return out->pixels ? OUTCOME_DONE : out_of_memory(error);
}

outcome crop_picture(session *s, const picture *from, int64_t size, uint8_t *out, gmem_error *error) {
    return from_status(gmem_center_crop(s->context, from->height, from->width, from->pixels, size, out, error));
}

outcome read_crop(session *s, const char *path, int64_t size, uint8_t *out, gmem_error *error) {
    picture p;
    TRY(read_picture(path, &p, error));
    outcome result = crop_picture(s, &p, size, out, error);
    free_picture(&p);
    return result;
}

void read_crops(session *s, int64_t count, const char *const *paths, int64_t size, uint8_t *out, outcome *results,
                gmem_error *errors) {
#ifdef _OPENMP
    const int threads = gmem_context_threads(s->context);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
#endif
    for (int64_t i = 0; i < count; i++) {
        results[i] = read_crop(s, paths[i], size, out + i * size * size * 3, &errors[i]);
    }
}

/* the image encoder ----------------------------------------------------------------------------------------------- */

outcome open_image_encoder(session *s, gmem_error *error) {
    gmem_image_encoder_desc desc;
    if (s->encoder) return OUTCOME_DONE;
    memset(&desc, 0, sizeof desc);
    if (!s->encoder_file) TRY(open_part(s, MODEL_IMAGE_ENCODER, s->args->image_encoder, NULL, &s->encoder_file, error));
    desc.file = s->encoder_file;
    TRY(in_file(gmem_file_path(s->encoder_file), gmem_image_encoder_open(s->context, &desc, &s->encoder, error),
                error));
    s->encoder_info = gmem_image_encoder_get_info(s->encoder);
    return OUTCOME_DONE;
}

outcome crop_features(session *s, int64_t count, const uint8_t *pixels, float *cls, float *patch, gmem_error *error) {
    const int64_t size = s->encoder_info->picture_size;
    return in_file(
        gmem_file_path(s->encoder_file),
        gmem_pixel_features(s->encoder, count, size, size, pixels, s->args->published_range, cls, patch, error), error);
}

outcome picture_features(session *s, int64_t count, const char *const *paths, uint8_t *crops, float *cls, float *patch,
                         gmem_error *error) {
    outcome result = OUTCOME_DONE;
    outcome *results = (outcome *)calloc((size_t)count, sizeof *results);
    gmem_error *errors = (gmem_error *)calloc((size_t)count, sizeof *errors);
    if (results && errors) {
        read_crops(s, count, paths, s->encoder_info->picture_size, crops, results, errors);
        for (int64_t i = count - 1; i >= 0; i--) {
            if (results[i] == OUTCOME_DONE) continue;
            result = results[i];
            *error = errors[i];
        }
    } else {
        result = out_of_memory(error);
    }
    free(results);
    free(errors);
    return result == OUTCOME_DONE ? crop_features(s, count, crops, cls, patch, error) : result;
}

int has_direction(const float *features, int64_t width) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        sum += (double)features[i] * (double)features[i];
    }
    return sum > 0 && isfinite(sum);
}

outcome picture_feature(session *s, const char *path, float *out, gmem_error *error) {
    TRY(open_image_encoder(s, error));
    const int64_t size = s->encoder_info->picture_size;
    uint8_t *crop = (uint8_t *)malloc((size_t)(size * size * 3));
    if (!crop) return out_of_memory(error);
    outcome result = picture_features(s, 1, &path, crop, out, NULL, error);
    free(crop);
    return result;
}

outcome picture_snippet(session *s, const char *path, int64_t width, float *out, gmem_error *error) {
    TRY(open_image_encoder(s, error));
    if (s->encoder_info->width != width)
        return failed(error, gmem_file_path(s->encoder_file),
                      "the image encoder's features have width %lld, %lld is needed: name another one with "
                      "--image-encoder",
                      (long long)s->encoder_info->width, (long long)width);
    TRY(picture_feature(s, path, out, error));
    return in_file(path, gmem_normalize(out, width, error), error);
}
