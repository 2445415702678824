/* The CPU's small operations and its memory: plain loops over what is too little to be worth vectors or threads. The
 * same for every instruction set. */
#include "cpu.h"

#include <math.h>

GMEM__FN void gmem__host_copy(const gmem__engine *engine, const gmem__copy *op) {
    (void)engine;
    for (int64_t row = 0; row < op->rows; row++)
        memmove(op->to + row * op->to_stride, op->from + row * op->from_stride, (size_t)op->width * sizeof(float));
}

/* The latent plane and the place in it where a row of patches starts. */
static float *gmem__host_plane(const gmem__patches *op, int64_t sample, int64_t row) {
    const int64_t p = op->patch, area = op->height * op->width;
    const int64_t channel = op->to_latents ? row % op->patch_channels : row / (p * p);
    const int64_t place = op->to_latents ? row / op->patch_channels : row % (p * p);
    if (channel >= op->channels) return NULL; /* a learned sigma is dropped */
    return op->latents + (sample * op->channels + channel) * area + place / p * op->width + place % p;
}

GMEM__FN void gmem__host_patches(const gmem__engine *engine, const gmem__patches *op) {
    const int64_t p = op->patch, columns = op->width / p, tokens = op->height / p * columns;
    const int64_t rows = p * p * (op->to_latents ? op->patch_channels : op->channels);
    (void)engine;
    for (int64_t sample = 0; sample < op->samples; sample++) {
        for (int64_t row = 0; row < rows; row++) {
            float *const plane = gmem__host_plane(op, sample, row);
            float *const patches = op->patches + (row * op->samples + sample) * tokens;
            for (int64_t token = 0; plane && token < tokens; token += columns) {
                float *const line = plane + token / columns * p * op->width;
                for (int64_t column = 0; column < columns; column++) {
                    if (op->to_latents)
                        line[column * p] = patches[token + column];
                    else
                        patches[token + column] = line[column * p];
                }
            }
        }
    }
}

GMEM__FN void gmem__host_combine(const gmem__engine *engine, const gmem__combine *op) {
    (void)engine;
    for (int64_t row = 0; row < op->rows; row++) {
        for (int64_t i = row * op->stride; i < row * op->stride + op->width; i++) {
            double sum = op->x_weight * (double)op->x[i];
            for (int j = 0; j < op->terms; j++)
                sum += op->weight[j] * (double)op->k[j][i];
            op->out[i] = (float)sum;
        }
    }
}

GMEM__FN void gmem__host_transpose(const gmem__engine *engine, const gmem__transpose *op) {
    (void)engine;
    for (int64_t column = 0; column < op->columns; column++) {
        for (int64_t row = 0; row < op->rows; row++)
            op->y[column * op->y_stride + row] = op->x[row * op->columns + column];
    }
}

GMEM__FN void gmem__host_silu(const gmem__engine *engine, float *x, int64_t count) {
    (void)engine;
    for (int64_t i = 0; i < count; i++)
        x[i] = x[i] / (1.0f + expf(-x[i]));
}

GMEM__FN void gmem__host_normal(const gmem__engine *engine, const gmem__normal *op) {
    gmem_rng rng;
    (void)engine;
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, op->seed);
    gmem_rng_normal(&rng, (gmem_draw)op->draw, op->index, op->picture, op->count, op->per_picture, op->out);
}

GMEM__FN void gmem__host_scale_shift(const gmem__engine *engine, const gmem__scale_shift *op) {
    (void)engine;
    for (int64_t channel = 0; channel < op->channels; channel++) {
        const float *x = op->x + channel * op->area;
        float *y = op->y + channel * op->area;
        for (int64_t i = 0; i < op->area; i++)
            y[i] = x[i] * op->scale[channel] + op->shift[channel];
    }
}

GMEM__FN int gmem__host_finite(const gmem__engine *engine, const float *x, int64_t count, int note) {
    (void)engine;
    (void)note;
    return gmem__all_finite(x, count);
}

GMEM__FN double gmem__host_error_norm(const gmem__engine *engine, const gmem__error_norm *op) {
    double sum = 0;
    (void)engine;
    for (int64_t i = 0; i < op->count; i++) {
        double estimate = 0, size = fabs((double)op->x[i]);
        for (int j = 0; j < op->terms; j++)
            estimate += op->weight[j] * (double)op->k[j][i];
        if (op->y) size = fmax(size, fabs((double)op->y[i]));
        estimate /= op->atol + op->rtol * size;
        sum += estimate * estimate;
    }
    return sum;
}

GMEM__FN void gmem__host_change(const gmem__engine *engine, const gmem__change *op, double *change, double *size) {
    (void)engine;
    *change = *size = 0;
    for (int64_t row = 0; row < op->rows; row++) {
        const float *after = op->after + row * op->after_stride;
        const float *before = op->before + row * op->width, *residual = op->residual + row * op->width;
        for (int64_t i = 0; i < op->width; i++) {
            *change += fabs((double)after[i] - (double)before[i] - (double)residual[i]);
            *size += fabs((double)residual[i]);
        }
    }
}

GMEM__FN void gmem__host_transfer(const gmem__engine *engine, float *to, const float *from, int64_t count) {
    (void)engine;
    memcpy(to, from, (size_t)count * sizeof(float));
}

static uint8_t gmem__host_pixel(float y, float offset) {
    const float value = 127.5f * y + offset;
    return (uint8_t)(!(value > 0) ? 0 : value >= 255 ? 255 : value);
}

GMEM__FN void gmem__host_pixels(const gmem__engine *engine, uint8_t *pixels, const float *x, int64_t area,
                                float offset) {
    (void)engine;
    for (int64_t i = 0; i < area; i++) {
        for (int64_t c = 0; c < 3; c++)
            pixels[3 * i + c] = gmem__host_pixel(x[c * area + i], offset);
    }
}

GMEM__FN void gmem__host_hand_over(const gmem__engine *engine, const float *from, const gmem__engine *with, float *to,
                                   int64_t count) {
    (void)with;
    gmem__host_transfer(engine, to, from, count);
}

GMEM__FN int gmem__host_reserve(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena) {
    (void)engine;
    return gmem__arena_reserve(context, arena);
}

GMEM__FN void gmem__host_release(const gmem__engine *engine, const gmem_context *context, gmem__arena *arena) {
    (void)engine;
    gmem__arena_release(context, arena);
}

GMEM__FN gmem_status gmem__host_settle(const gmem__engine *engine, int *notes, gmem_error *error) {
    (void)engine;
    (void)error;
    if (notes) *notes = 0;
    return GMEM_OK;
}
