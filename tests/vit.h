/* A vision transformer of any size with procedural weights, and what it gives of a picture: in double precision, step
 * by step, without the engine. */
#ifndef VIT_H
#define VIT_H

#include "../examples/gmem/procedural.h"

#include "check.h"
#include "edit.h"

typedef struct vit {
    int64_t width, depth, heads, mlp, patch, grid, registers; /* grid: the side of what pos_embed was made for */
    int swiglu;
    int64_t input; /* the side of what the transformer sees */
} vit;

/* rank first: vit_add(list, 2, 3 * w, w, 1, 1, "blocks.%d.attn.qkv.weight", i) */
static inline void vit_add(edit_list *list, int rank, int64_t a, int64_t b, int64_t c, int64_t d, const char *format,
                           int i) {
    const int64_t shape[4] = {a, b, c, d};
    char *name = (char *)edit_own(list, 64);
    float *values = (float *)edit_own(list, (size_t)(a * b * c * d) * sizeof *values);
    snprintf(name, 64, format, i);
    procedural_fill(name, rank, shape, 0, a * b * c * d, values);
    edit_add(list, name, GMEM_F32, rank, shape, values);
}

static inline void vit_add_layer(edit_list *list, int64_t rows, int64_t cols, const char *name, int i) {
    char format[64];
    snprintf(format, sizeof format, "%s.weight", name);
    vit_add(list, 2, rows, cols, 1, 1, format, i);
    snprintf(format, sizeof format, "%s.bias", name);
    vit_add(list, 1, rows, 1, 1, 1, format, i);
}

static inline void vit_add_norm(edit_list *list, int64_t width, const char *name, int i) {
    char format[64];
    snprintf(format, sizeof format, "%s.weight", name);
    vit_add(list, 1, width, 1, 1, 1, format, i);
    snprintf(format, sizeof format, "%s.bias", name);
    vit_add(list, 1, width, 1, 1, 1, format, i);
}

/* The file, without metadata. */
static inline edit_list *vit_make(const vit *v) {
    edit_list *list = edit_new();
    const int64_t w = v->width;
    vit_add(list, 3, 1, 1, w, 1, "cls_token", 0);
    vit_add(list, 3, 1, v->grid * v->grid + 1, w, 1, "pos_embed", 0);
    if (v->registers) vit_add(list, 3, 1, v->registers, w, 1, "register_tokens", 0);
    vit_add(list, 4, w, 3, v->patch, v->patch, "patch_embed.proj.weight", 0);
    vit_add(list, 1, w, 1, 1, 1, "patch_embed.proj.bias", 0);
    for (int i = 0; i < (int)v->depth; i++) {
        vit_add_norm(list, w, "blocks.%d.norm1", i);
        vit_add_layer(list, 3 * w, w, "blocks.%d.attn.qkv", i);
        vit_add_layer(list, w, w, "blocks.%d.attn.proj", i);
        vit_add(list, 1, w, 1, 1, 1, "blocks.%d.ls1.gamma", i);
        vit_add_norm(list, w, "blocks.%d.norm2", i);
        vit_add_layer(list, v->swiglu ? 2 * v->mlp : v->mlp, w, v->swiglu ? "blocks.%d.mlp.w12" : "blocks.%d.mlp.fc1",
                      i);
        vit_add_layer(list, w, v->mlp, v->swiglu ? "blocks.%d.mlp.w3" : "blocks.%d.mlp.fc2", i);
        vit_add(list, 1, w, 1, 1, 1, "blocks.%d.ls2.gamma", i);
    }
    vit_add_norm(list, w, "norm", 0);
    return list;
}

/* the reference --------------------------------------------------------------------------------------------------- */

static inline const float *vit_weights(edit_list *list, const char *format, int i) {
    char name[64];
    snprintf(name, sizeof name, format, i);
    return (const float *)edit_find(list, name)->data;
}

static inline double *vit_doubles(int64_t count) {
    double *out = (double *)calloc((size_t)count, sizeof *out);
    if (!out) exit(1);
    return out;
}

static inline double vit_cubic(double x, double a) {
    x = fabs(x);
    if (x < 1) return (a + 2) * x * x * x - (a + 3) * x * x + 1;
    return x < 2 ? a * x * x * x - 5 * a * x * x + 8 * a * x - 4 * a : 0;
}

/* The weight of value `from` of `in` for value `to` of `out`; sharp: A = -0.75 on four neighbours, those beyond the
 * ends being the last value again; else A = -0.5, wider where it shrinks, and without what is beyond. */
static inline double vit_tap(int64_t in, int64_t out, int64_t to, int64_t from, int sharp) {
    const double exact = (double)in / (double)out, scale = sharp ? (double)(float)exact : exact; /* PyTorch's f32 */
    const double at = scale * ((double)to + 0.5) - 0.5, wide = scale > 1 ? scale : 1;
    double sum = 0, total = 0;
    for (int64_t j = (int64_t)floor(at - 2 * wide) - 1; j <= (int64_t)ceil(at + 2 * wide) + 1; j++) {
        const double weight = vit_cubic(((double)j - at) / (sharp ? 1 : wide), sharp ? -0.75 : -0.5);
        const int64_t place = j < 0 ? 0 : j >= in ? in - 1 : j;
        if (!sharp && place != j) continue;
        total += weight;
        if (place == from) sum += weight;
    }
    return sum / total;
}

/* (height, width) -> (side, side) */
static inline void vit_resample(const double *x, int64_t height, int64_t width, int64_t side, int sharp, double *out) {
    double *middle = vit_doubles(side * width);
    for (int64_t y = 0; y < side; y++)
        for (int64_t from = 0; from < height; from++) {
            const double weight = vit_tap(height, side, y, from, sharp);
            for (int64_t i = 0; i < width && weight != 0; i++)
                middle[y * width + i] += weight * x[from * width + i];
        }
    for (int64_t i = 0; i < side; i++)
        for (int64_t from = 0; from < width; from++) {
            const double weight = vit_tap(width, side, i, from, sharp);
            for (int64_t y = 0; y < side && weight != 0; y++)
                out[y * side + i] += weight * middle[y * width + from];
        }
    free(middle);
}

/* image (3, height, width) in [-1, 1] -> (3, input, input) */
static inline double *vit_see(const vit *v, const float *image, int64_t height, int64_t width) {
    static const double mean[3] = {0.485, 0.456, 0.406}, deviation[3] = {0.229, 0.224, 0.225};
    double *out = vit_doubles(3 * v->input * v->input), *plane = vit_doubles(height * width);
    for (int64_t c = 0; c < 3; c++) {
        for (int64_t i = 0; i < height * width; i++)
            plane[i] = (((double)image[c * height * width + i] + 1) / 2 - mean[c]) / deviation[c];
        vit_resample(plane, height, width, v->input, 1, out + c * v->input * v->input);
    }
    free(plane);
    return out;
}

/* out (rows) += scale * (W x + b), W (rows, cols) */
static inline void vit_apply(const float *weight, const float *bias, int64_t rows, int64_t cols, const double *x,
                             const float *scale, double *out) {
    for (int64_t r = 0; r < rows; r++) {
        double sum = (double)bias[r];
        for (int64_t c = 0; c < cols; c++)
            sum += (double)weight[r * cols + c] * x[c];
        out[r] += sum * (scale ? (double)scale[r] : 1);
    }
}

static inline void vit_norm(const float *weight, const float *bias, int64_t width, const double *x, double *out) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < width; c++)
        mean += x[c] / (double)width;
    for (int64_t c = 0; c < width; c++)
        variance += (x[c] - mean) * (x[c] - mean) / (double)width;
    for (int64_t c = 0; c < width; c++)
        out[c] = (x[c] - mean) / sqrt(variance + 1e-6) * (double)weight[c] + (double)bias[c];
}

/* One query of one head: out (size) */
static inline void vit_attend(const double *qkv, int64_t tokens, int64_t width, int64_t size, int64_t head,
                              int64_t query, double *weights, double *out) {
    double sum = 0, most = -1e300;
    for (int64_t t = 0; t < tokens; t++) {
        weights[t] = 0;
        for (int64_t c = head * size; c < (head + 1) * size; c++)
            weights[t] += qkv[query * 3 * width + c] * qkv[t * 3 * width + width + c] / sqrt((double)size);
        most = fmax(most, weights[t]);
    }
    for (int64_t t = 0; t < tokens; t++)
        sum += weights[t] = exp(weights[t] - most);
    for (int64_t c = 0; c < size; c++) {
        out[c] = 0;
        for (int64_t t = 0; t < tokens; t++)
            out[c] += weights[t] / sum * qkv[t * 3 * width + 2 * width + head * size + c];
    }
}

/* x (tokens, width) in place */
static inline void vit_block(const vit *v, edit_list *list, int i, int64_t tokens, double *x) {
    const int64_t w = v->width, inside = v->swiglu ? 2 * v->mlp : v->mlp, size = w / v->heads;
    double *qkv = vit_doubles(tokens * 3 * w), *row = vit_doubles(w), *wide = vit_doubles(inside);
    double *weights = vit_doubles(tokens);
    const char *in_weight = v->swiglu ? "blocks.%d.mlp.w12.weight" : "blocks.%d.mlp.fc1.weight";
    const char *in_bias = v->swiglu ? "blocks.%d.mlp.w12.bias" : "blocks.%d.mlp.fc1.bias";
    const char *out_weight = v->swiglu ? "blocks.%d.mlp.w3.weight" : "blocks.%d.mlp.fc2.weight";
    const char *out_bias = v->swiglu ? "blocks.%d.mlp.w3.bias" : "blocks.%d.mlp.fc2.bias";
    for (int64_t t = 0; t < tokens; t++) {
        vit_norm(vit_weights(list, "blocks.%d.norm1.weight", i), vit_weights(list, "blocks.%d.norm1.bias", i), w,
                 x + t * w, row);
        vit_apply(vit_weights(list, "blocks.%d.attn.qkv.weight", i), vit_weights(list, "blocks.%d.attn.qkv.bias", i),
                  3 * w, w, row, NULL, qkv + t * 3 * w);
    }
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t head = 0; head < v->heads; head++)
            vit_attend(qkv, tokens, w, size, head, t, weights, row + head * size);
        vit_apply(vit_weights(list, "blocks.%d.attn.proj.weight", i), vit_weights(list, "blocks.%d.attn.proj.bias", i),
                  w, w, row, vit_weights(list, "blocks.%d.ls1.gamma", i), x + t * w);
    }
    for (int64_t t = 0; t < tokens; t++) {
        vit_norm(vit_weights(list, "blocks.%d.norm2.weight", i), vit_weights(list, "blocks.%d.norm2.bias", i), w,
                 x + t * w, row);
        memset(wide, 0, (size_t)inside * sizeof *wide);
        vit_apply(vit_weights(list, in_weight, i), vit_weights(list, in_bias, i), inside, w, row, NULL, wide);
        for (int64_t c = 0; c < v->mlp; c++)
            wide[c] = v->swiglu ? wide[c] / (1 + exp(-wide[c])) * wide[c + v->mlp]
                                : wide[c] * 0.5 * (1 + erf(wide[c] / sqrt(2.0)));
        vit_apply(vit_weights(list, out_weight, i), vit_weights(list, out_bias, i), w, v->mlp, wide,
                  vit_weights(list, "blocks.%d.ls2.gamma", i), x + t * w);
    }
    free(qkv);
    free(row);
    free(wide);
    free(weights);
}

/* Token `to` (width) of patch (row, column) of what is seen. */
static inline void vit_embed(const vit *v, edit_list *list, const double *seen, int64_t row, int64_t column,
                             double *to) {
    const int64_t p = v->patch, values = 3 * p * p;
    double *patch = vit_doubles(values);
    for (int64_t i = 0; i < values; i++)
        patch[i] = seen[(i / (p * p) * v->input + row * p + i / p % p) * v->input + column * p + i % p];
    vit_apply(vit_weights(list, "patch_embed.proj.weight", 0), vit_weights(list, "patch_embed.proj.bias", 0), v->width,
              values, patch, NULL, to);
    free(patch);
}

/* to (tokens, width) += the positions of the patches */
static inline void vit_add_positions(const vit *v, edit_list *list, double *to) {
    const int64_t side = v->input / v->patch, area = v->grid * v->grid;
    const float *stored = vit_weights(list, "pos_embed", 0);
    double *plane = vit_doubles(area), *resampled = vit_doubles(side * side);
    for (int64_t c = 0; c < v->width; c++) {
        for (int64_t i = 0; i < area; i++)
            plane[i] = (double)stored[(1 + i) * v->width + c];
        memset(resampled, 0, (size_t)(side * side) * sizeof *resampled);
        vit_resample(plane, v->grid, v->grid, side, 0, resampled);
        for (int64_t i = 0; i < side * side; i++)
            to[i * v->width + c] += resampled[i];
    }
    free(plane);
    free(resampled);
}

/* image (3, height, width) in [-1, 1] -> cls (width), patch (patches, width) */
static inline void vit_features(const vit *v, edit_list *list, const float *image, int64_t height, int64_t width,
                                float *cls, float *patch) {
    const int64_t side = v->input / v->patch, leading = 1 + v->registers, tokens = leading + side * side, w = v->width;
    double *seen = vit_see(v, image, height, width), *x = vit_doubles(tokens * w), *row = vit_doubles(w);
    for (int64_t c = 0; c < w; c++)
        x[c] = (double)vit_weights(list, "cls_token", 0)[c] + (double)vit_weights(list, "pos_embed", 0)[c];
    for (int64_t i = 0; i < v->registers * w; i++)
        x[w + i] = (double)vit_weights(list, "register_tokens", 0)[i];
    for (int64_t i = 0; i < side * side; i++)
        vit_embed(v, list, seen, i / side, i % side, x + (leading + i) * w);
    vit_add_positions(v, list, x + leading * w);
    for (int i = 0; i < (int)v->depth; i++)
        vit_block(v, list, i, tokens, x);
    for (int64_t t = 0; t < tokens; t++) {
        float *to = t == 0 ? cls : patch + (t - leading) * w;
        if (t > 0 && t < leading) continue;
        vit_norm(vit_weights(list, "norm.weight", 0), vit_weights(list, "norm.bias", 0), w, x + t * w, row);
        for (int64_t c = 0; c < w; c++)
            to[c] = (float)row[c];
    }
    free(seen);
    free(x);
    free(row);
}

#endif /* VIT_H */
