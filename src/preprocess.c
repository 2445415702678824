/* What an image encoder sees: pictures normalised and resampled, and its positions resampled to their size. */
#include "encoder.h"

#include <math.h>

/* resampling ------------------------------------------------------------------------------------------------------ */

/* Keys, Cubic convolution interpolation for digital image processing (1981), with the free parameter a. */
static double gmem__cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}

/* The four neighbours of the place that an output comes from; beyond the ends the last value repeats. */
static void gmem__tap_four(int64_t in, double scale, int64_t i, int64_t *index, float *weight) {
    const double place = scale * ((double)i + 0.5) - 0.5;
    const int64_t before = (int64_t)floor(place);
    for (int64_t j = 0; j < 4; j++) {
        index[j] = gmem__max(0, gmem__min(before - 1 + j, in - 1));
        weight[j] = (float)gmem__cubic(place - (double)(before - 1 + j), -0.75);
    }
}

/* All within the kernel's support, which grows with the scale; their weights sum to 1. */
static void gmem__tap_support(int64_t in, double scale, int64_t i, int64_t count, int64_t *index, float *weight) {
    const double wide = scale > 1 ? scale : 1, center = scale * ((double)i + 0.5), support = 2 * wide;
    const int64_t first = gmem__max((int64_t)(center - support + 0.5), 0);
    const int64_t end = gmem__min((int64_t)(center + support + 0.5), in);
    double sum = 0;
    for (int64_t j = first; j < end; j++)
        sum += gmem__cubic(((double)j - center + 0.5) / wide, -0.5);
    for (int64_t j = 0; j < count; j++) {
        const int inside = first + j < end;
        index[j] = inside ? first + j : first;
        weight[j] = inside ? (float)(gmem__cubic(((double)(first + j) - center + 0.5) / wide, -0.5) / sum) : 0;
    }
}

GMEM__FN int gmem__taps_make(const gmem_context *context, int64_t in, int64_t out, int antialias, gmem__taps *taps) {
    const double scale = (double)in / (double)out;
    int64_t count = 0;
    taps->out = out;
    taps->count = antialias && scale > 1 ? (int64_t)ceil(4 * scale) + 1 : antialias ? 5 : 4;
    if (!gmem__mul(out, taps->count, &count)) return 0;
    taps->index = (int64_t *)gmem__alloc(context, count, sizeof *taps->index);
    taps->weight = (float *)gmem__alloc(context, count, sizeof *taps->weight);
    if (!taps->index || !taps->weight) {
        gmem__taps_free(context, taps);
        return 0;
    }
    for (int64_t i = 0; i < out; i++) {
        int64_t *index = taps->index + i * taps->count;
        float *weight = taps->weight + i * taps->count;
        if (antialias)
            gmem__tap_support(in, scale, i, taps->count, index, weight);
        else
            gmem__tap_four(in, (double)(float)scale, i, index, weight); /* PyTorch keeps it in f32 */
    }
    return 1;
}

GMEM__FN void gmem__taps_free(const gmem_context *context, gmem__taps *taps) {
    gmem__free(context, taps->index, taps->out * taps->count, sizeof *taps->index);
    gmem__free(context, taps->weight, taps->out * taps->count, sizeof *taps->weight);
    taps->index = NULL;
    taps->weight = NULL;
}

/* pictures -------------------------------------------------------------------------------------------------------- */

/* ImageNet's statistics of [0, 1], as torchvision's models have them. */
static const double gmem__picture_mean[3] = {0.485, 0.456, 0.406};
static const double gmem__picture_std[3] = {0.229, 0.224, 0.225};

/* What makes [0, 1] of the caller's values: times `scale`, plus `shift`. */
static void gmem__picture_range(const gmem__pictures *pictures, double *scale, double *shift) {
    const int halved = pictures->image || pictures->published;
    *scale = (halved ? 0.5 : 1) / (pictures->image ? 1 : 255);
    *shift = halved ? 0.5 : 0;
}

/* line (width) += weight * a row of the picture's channel. */
static void gmem__add_row(const gmem__pictures *pictures, int64_t i, int64_t channel, int64_t row, float weight,
                          float *line) {
    const int64_t width = pictures->width, height = pictures->height;
    if (pictures->image) {
        const float *values = pictures->image + ((i * 3 + channel) * height + row) * width;
        for (int64_t x = 0; x < width; x++)
            line[x] += weight * values[x];
    } else {
        const uint8_t *values = pictures->pixels + (i * height + row) * width * 3 + channel;
        for (int64_t x = 0; x < width; x++)
            line[x] += weight * (float)values[3 * x];
    }
}

/* Weights sum to 1, so normalising behind the resampling is the published normalising before it. */
static void gmem__preprocess_row(const gmem__taps *across, const float *line, float scale, float shift, float *out) {
    for (int64_t x = 0; x < across->out; x++) {
        float sum = 0;
        for (int64_t j = x * across->count; j < (x + 1) * across->count; j++)
            sum += across->weight[j] * line[across->index[j]];
        out[x] = sum * scale + shift;
    }
}

GMEM__FN void gmem__preprocess(const gmem__pictures *pictures, int64_t i, const gmem__taps *down,
                               const gmem__taps *across, float *line, float *out) {
    double scale, shift;
    gmem__picture_range(pictures, &scale, &shift);
    for (int64_t channel = 0; channel < 3; channel++) {
        const double std = gmem__picture_std[channel];
        for (int64_t y = 0; y < down->out; y++) {
            memset(line, 0, (size_t)pictures->width * sizeof *line);
            for (int64_t j = y * down->count; j < (y + 1) * down->count; j++)
                gmem__add_row(pictures, i, channel, down->index[j], down->weight[j], line);
            gmem__preprocess_row(across, line, (float)(scale / std),
                                 (float)((shift - gmem__picture_mean[channel]) / std),
                                 out + (channel * down->out + y) * across->out);
        }
    }
}

/* positions ------------------------------------------------------------------------------------------------------- */

/* lines (side, grid, width) = each column of the grid resampled. row (width) is memory for that. */
static void gmem__resample_down(const gmem_tensor *stored, int64_t leading, const gmem__taps *taps, int64_t grid,
                                float *row, float *lines) {
    const int64_t width = stored->shape[2];
    for (int64_t i = 0; i < taps->out * taps->count; i++) {
        const int64_t y = i / taps->count;
        for (int64_t x = 0; x < grid && taps->weight[i] != 0; x++) {
            float *line = lines + (y * grid + x) * width;
            gmem_tensor_read_f32(stored, (leading + taps->index[i] * grid + x) * width, width, row);
            for (int64_t c = 0; c < width; c++)
                line[c] += taps->weight[i] * row[c];
        }
    }
}

static void gmem__resample_across(const float *lines, const gmem__taps *taps, int64_t grid, int64_t width, float *out,
                                  int64_t out_stride) {
    for (int64_t y = 0; y < taps->out; y++) {
        for (int64_t c = 0; c < width; c++) {
            for (int64_t x = 0; x < taps->out; x++) {
                float sum = 0;
                for (int64_t j = x * taps->count; j < (x + 1) * taps->count; j++)
                    sum += taps->weight[j] * lines[(y * grid + taps->index[j]) * width + c];
                out[c * out_stride + y * taps->out + x] = sum;
            }
        }
    }
}

GMEM__FN int gmem__resample_position(const gmem_context *context, const gmem_tensor *stored, int64_t leading,
                                     int64_t grid, int64_t side, float *out, int64_t out_stride) {
    const int64_t width = stored->shape[2], count = side * grid + 1;
    gmem__taps taps;
    memset(&taps, 0, sizeof taps);
    float *lines = (float *)gmem__alloc(context, count, (size_t)width * sizeof *lines);
    const int made = lines && gmem__taps_make(context, grid, side, 1, &taps);
    if (made) {
        gmem__resample_down(stored, leading, &taps, grid, lines + side * grid * width, lines);
        gmem__resample_across(lines, &taps, grid, width, out, out_stride);
        gmem__taps_free(context, &taps);
    }
    gmem__free(context, lines, count, (size_t)width * sizeof *lines);
    return made;
}
