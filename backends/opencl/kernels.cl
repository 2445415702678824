/* All kernels but the products'. OpenCL C 1.2, no extension. Every tensor is a buffer and the place in it of the first
 * element; sizes are ints, offsets ulongs. Global sizes are rounded up, so every kernel guards its edges, and none
 * depends on a work-group's size but by asking for it. */

/* vectors --------------------------------------------------------------------------------------------------------- */

/* A vector, or as many as there are, and then `rest`. */
VECTOR load_or(__global const float *x, int count, float rest) {
    float some[TILE_WIDTH];
    if (count >= TILE_WIDTH) return LOAD(0, x);
    for (int i = 0; i < TILE_WIDTH; i++)
        some[i] = i < count ? x[i] : rest;
    return LOAD(0, some);
}

/* A work-item's columns, one vector of product.cl's. */
VECTOR load_columns(__global const float *x, int count) { return load_or(x, count, 0); }

void store_columns(VECTOR value, __global float *x, int count) {
    float some[TILE_WIDTH];
    if (count >= TILE_WIDTH) {
        STORE(value, 0, x);
        return;
    }
    STORE(value, 0, some);
    for (int i = 0; i < count; i++)
        x[i] = some[i];
}

/* Sums of many floats: so many at a time, so that rounding errors grow with these and not with all. */
#define BLOCK 64

float sum4(float4 x) { return (x.x + x.y) + (x.z + x.w); }
float sum8(float8 x) { return sum4(x.lo + x.hi); }
float sum16(float16 x) { return sum8(x.lo + x.hi); }
#define SUM_OF CAT(sum, TILE_WIDTH)

/* Numbers as unevaluated sums of two floats: about 48 bits where a device has no double. A compiler must not fuse what
 * follows differently. Knuth, "The Art of Computer Programming" 2, 4.2.2; Dekker, "A floating-point technique for
 * extending the available precision", 1971. */
#pragma OPENCL FP_CONTRACT OFF

typedef struct pair {
    VECTOR value, error;
} pair;

/* a + b exactly. */
pair two_sum(VECTOR a, VECTOR b) {
    pair sum;
    sum.value = a + b;
    const VECTOR rest = sum.value - a;
    sum.error = (a - (sum.value - rest)) + (b - rest);
    return sum;
}

pair add_vector(pair a, VECTOR b) {
    pair sum = two_sum(a.value, b);
    sum.error += a.error;
    return sum;
}

/* a + (high + low) x. */
pair add_product(pair a, float high, float low, VECTOR x) {
    const VECTOR product = high * x, error = fma((VECTOR)(high), x, -product);
    pair sum = two_sum(a.value, product);
    sum.error += a.error + fma((VECTOR)(low), x, error);
    return sum;
}

/* The nearest floats. Where those are not finite the error is of no use. */
VECTOR round_pair(pair a) { return select(a.value, a.value + a.error, isfinite(a.value)); }

#pragma OPENCL FP_CONTRACT ON

/* reductions ------------------------------------------------------------------------------------------------------ */

/* Work-groups of (items, slices): the slices of an item share its columns, and each takes every slices-th row. All must
 * call these, also those that have no columns, hence no rows; `partial` has a vector for each. */
#define MINE (get_local_id(1) * get_local_size(0) + get_local_id(0))
#define REDUCTION(name, operation)                                                 \
    VECTOR name(__local VECTOR *partial, VECTOR value) {                           \
        const int slices = get_local_size(1);                                      \
        if (slices == 1) return value;                                             \
        barrier(CLK_LOCAL_MEM_FENCE); /* what was there before has been read */    \
        partial[MINE] = value;                                                     \
        barrier(CLK_LOCAL_MEM_FENCE);                                              \
        value = partial[get_local_id(0)];                                          \
        for (int slice = 1; slice < slices; slice++) {                             \
            const VECTOR a = value;                                                \
            const VECTOR b = partial[slice * get_local_size(0) + get_local_id(0)]; \
            value = operation;                                                     \
        }                                                                          \
        return value;                                                              \
    }
REDUCTION(column_sum, a + b)
REDUCTION(column_max, max(a, b))

/* Work-groups of one dimension: the sum of all items, given to each. What follows them in the second dimension are
 * parts, so that there are as many of those whatever the size of a group. */
float group_sum(__local float *partial, float value) {
    const int item = get_local_id(0);
    barrier(CLK_LOCAL_MEM_FENCE);
    partial[item] = value;
    for (int count = get_local_size(0); count > 1;) {
        const int kept = (count + 1) / 2;
        barrier(CLK_LOCAL_MEM_FENCE);
        if (item < count - kept) partial[item] += partial[item + kept];
        count = kept;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    return partial[0];
}

/* norms ----------------------------------------------------------------------------------------------------------- */

/* What makes values normal: (x - mean - rest) * inverse. Two passes, the second of which also finds by how much the
 * first one's mean was wrong (Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983). */
typedef struct column_moments {
    VECTOR mean, rest, inverse; /* RMSNorm: mean and rest 0 */
} column_moments;

/* Of `count` rows, `stride` apart, of which `rows` are to be read: all, or none by an item without columns. */
column_moments find_moments(__global const float *x, int columns, int rows, int count, int stride, int rms, float eps,
                            __local VECTOR *partial) {
    const int slice = get_local_id(1), slices = get_local_size(1);
    VECTOR sum = 0, squares = 0;
    column_moments moments;
    for (int i = slice; i < rows && !rms; i += slices)
        sum += load_columns(x + (ulong)i * stride, columns);
    moments.mean = rms ? (VECTOR)(0.0f) : column_sum(partial, sum) / count;
    sum = 0;
    for (int first = slice; first < rows; first += BLOCK * slices) {
        VECTOR some = 0, some_squares = 0;
        for (int i = first; i < min(rows, first + BLOCK * slices); i += slices) {
            const VECTOR d = load_columns(x + (ulong)i * stride, columns) - moments.mean;
            some += d;
            some_squares += d * d;
        }
        sum += some;
        squares += some_squares;
    }
    moments.rest = rms ? (VECTOR)(0.0f) : column_sum(partial, sum) / count;
    squares = column_sum(partial, squares) / count - moments.rest * moments.rest;
    moments.inverse = 1 / sqrt(squares + eps);
    return moments;
}

/* Which of the optional arguments are given. */
enum { GIVEN_WEIGHT = 1, GIVEN_BIAS = 2, GIVEN_SHIFT = 4, GIVEN_SCALE = 8 };

/* Normal values times weight plus bias of channel i. */
VECTOR affine(VECTOR x, column_moments moments, __global const float *weight, __global const float *bias, int given,
              int i) {
    VECTOR y = (x - moments.mean - moments.rest) * moments.inverse;
    if (given & GIVEN_WEIGHT) y *= weight[i];
    if (given & GIVEN_BIAS) y += bias[i];
    return y;
}

/* RMSNorm (arXiv 1910.07467) or LayerNorm (1607.06450), and adaLN's modulation (2212.09748). x (channels, samples *
 * tokens); y likewise, rows y_stride apart. (items, slices, samples) */
__kernel void norm(__global const float *x, ulong x_at, __global float *y, ulong y_at, __global const float *weight,
                   ulong weight_at, __global const float *bias, ulong bias_at, __global const float *shift,
                   ulong shift_at, __global const float *scale, ulong scale_at, int given, int rms, float eps,
                   int channels, int columns, int y_stride, int tokens, int modulation_stride,
                   __local VECTOR *partial) {
    const int first = get_global_id(0) * TILE_WIDTH, sample = get_global_id(2), count = tokens - first;
    const int rows = count > 0 ? channels : 0;
    x += x_at + (ulong)sample * tokens + first;
    y += y_at + (ulong)sample * tokens + first;
    weight += weight_at;
    bias += bias_at;
    shift += shift_at + (ulong)sample * modulation_stride;
    scale += scale_at + (ulong)sample * modulation_stride;
    const column_moments moments = find_moments(x, count, rows, channels, columns, rms, eps, partial);
    for (int c = get_local_id(1); c < rows; c += get_local_size(1)) {
        VECTOR value = affine(load_columns(x + (ulong)c * columns, count), moments, weight, bias, given, c);
        if (given & GIVEN_SCALE) value *= 1 + scale[c];
        if (given & GIVEN_SHIFT) value += shift[c];
        store_columns(value, y + (ulong)c * y_stride, count);
    }
}

/* In place on x (heads * head_dim, columns): the head's norm, then RoPE (arXiv 2104.09864) on adjacent pairs; cosine,
 * sine (head_dim / 2, tokens). (items, slices, samples * heads) */
__kernel void rotate_heads(__global float *x, ulong x_at, __global const float *weight, ulong weight_at,
                           __global const float *bias, ulong bias_at, __global const float *cosine, ulong cosine_at,
                           __global const float *sine, ulong sine_at, int given, int norm, int rms, int turn, float eps,
                           int heads, int head_dim, int columns, int tokens, __local VECTOR *partial) {
    const int first = get_global_id(0) * TILE_WIDTH, count = tokens - first, rows = count > 0 ? head_dim : 0;
    const int sample = get_global_id(2) / heads, head = get_global_id(2) % heads;
    column_moments moments;
    x += x_at + (ulong)head * head_dim * columns + (ulong)sample * tokens + first;
    weight += weight_at;
    bias += bias_at;
    cosine += cosine_at + first;
    sine += sine_at + first;
    if (norm) moments = find_moments(x, count, rows, head_dim, columns, rms, eps, partial);
    barrier(CLK_GLOBAL_MEM_FENCE); /* all of the columns have been read */
    for (int even = 2 * get_local_id(1); even < rows; even += 2 * get_local_size(1)) {
        const int odd = even + 1, has_odd = odd < rows;
        __global float *at = x + (ulong)even * columns;
        VECTOR a = load_columns(at, count), b = has_odd ? load_columns(at + columns, count) : (VECTOR)(0.0f);
        if (norm) {
            a = affine(a, moments, weight, bias, given, even);
            if (has_odd) b = affine(b, moments, weight, bias, given, odd);
        }
        if (turn && has_odd) {
            const VECTOR c = load_columns(cosine + (ulong)(even / 2) * tokens, count);
            const VECTOR s = load_columns(sine + (ulong)(even / 2) * tokens, count), before = a;
            a = before * c - b * s;
            b = b * c + before * s;
        }
        store_columns(a, at, count);
        if (has_odd) store_columns(b, at + columns, count);
    }
}

/* In place on scores (batch, keys, queries): exp(scale * score) over its sum along the keys; scale is positive.
 * (items, slices, batch) */
__kernel void softmax(__global float *scores, ulong scores_at, float scale, int keys, int queries,
                      __local VECTOR *partial) {
    const int first = get_global_id(0) * TILE_WIDTH, count = queries - first, rows = count > 0 ? keys : 0;
    const int slice = get_local_id(1), slices = get_local_size(1);
    VECTOR largest = -INFINITY, sum = 0;
    scores += scores_at + (ulong)get_global_id(2) * keys * queries + first;
    for (int key = slice; key < rows; key += slices)
        largest = max(largest, load_columns(scores + (ulong)key * queries, count));
    largest = column_max(partial, largest);
    for (int start = slice; start < rows; start += BLOCK * slices) {
        VECTOR some = 0;
        for (int key = start; key < min(rows, start + BLOCK * slices); key += slices) {
            __global float *at = scores + (ulong)key * queries;
            const VECTOR p = exp(scale * (load_columns(at, count) - largest));
            store_columns(p, at, count);
            some += p;
        }
        sum += some;
    }
    const VECTOR inverse = 1 / column_sum(partial, sum);
    for (int key = slice; key < rows; key += slices) {
        __global float *at = scores + (ulong)key * queries;
        store_columns(load_columns(at, count) * inverse, at, count);
    }
}

/* The first half of GroupNorm: moments (groups, parts) of four floats, a mean, its rest, and the sum of the squared
 * deviations from it, of `chunk` values of a group's `count`; the last part may have fewer. (items, parts, groups) */
__kernel void group_moments(__global const float *x, ulong x_at, __global float *parts, ulong parts_at, int count,
                            int chunk, __local float *partial) {
    const int part = get_group_id(1), group = get_global_id(2), item = get_local_id(0);
    const int size = min(chunk, count - part * chunk), step = get_local_size(0) * TILE_WIDTH;
    VECTOR sum = 0, squares = 0;
    x += x_at + (ulong)group * count + (ulong)part * chunk;
    for (int i = item * TILE_WIDTH; i < size; i += step)
        sum += load_columns(x + i, size - i);
    const float mean = group_sum(partial, SUM_OF(sum)) / size;
    sum = 0;
    for (int i = item * TILE_WIDTH; i < size; i += step) {
        const VECTOR d = load_or(x + i, size - i, mean) - mean;
        sum += d;
        squares += d * d;
    }
    const float rest = group_sum(partial, SUM_OF(sum)) / size;
    const float total = group_sum(partial, SUM_OF(squares));
    if (item) return;
    parts += parts_at + 4 * ((ulong)group * get_num_groups(1) + part);
    parts[0] = mean;
    parts[1] = rest;
    parts[2] = total - size * rest * rest;
}

/* (mean, rest, 1 / sqrt(variance + eps)) of a group's parts. */
float3 merge_moments(__global const float *parts, int count, int chunk, float eps) {
    const int last = (count + chunk - 1) / chunk;
    float mean = 0, rest = 0, squares = 0;
    for (int part = 0; part < last; part++)
        mean += parts[4 * part] * min(chunk, count - part * chunk);
    mean /= count;
    for (int part = 0; part < last; part++) {
        const float size = min(chunk, count - part * chunk), d = parts[4 * part] - mean + parts[4 * part + 1];
        rest += size * d;
        squares += parts[4 * part + 2] + size * d * d;
    }
    rest /= count;
    return (float3)(mean, rest, 1 / sqrt(squares / count - rest * rest + eps));
}

/* The second half (arXiv 1803.08494), then silu where asked. x, y (channels, area); `parts` as above, of `channels` by
 * a group. An item does every so many vectors. (items, channels) */
__kernel void group_norm(__global const float *x, ulong x_at, __global float *y, ulong y_at,
                         __global const float *weight, ulong weight_at, __global const float *bias, ulong bias_at,
                         __global const float *parts, ulong parts_at, int channels, int area, int chunk, float eps,
                         int silu, __local float *shared) {
    const int channel = get_global_id(1), count = channels * area, chunks = (count + chunk - 1) / chunk;
    if (get_local_id(0) == 0)
        vstore3(merge_moments(parts + parts_at + (ulong)(channel / channels) * 4 * chunks, count, chunk, eps), 0,
                shared);
    barrier(CLK_LOCAL_MEM_FENCE);
    const float mean = shared[0], rest = shared[1], factor = shared[2] * weight[weight_at + channel];
    const float b = bias[bias_at + channel];
    x += x_at + (ulong)channel * area;
    y += y_at + (ulong)channel * area;
    for (int i = get_global_id(0) * TILE_WIDTH; i < area; i += get_global_size(0) * TILE_WIDTH) {
        const VECTOR value = (load_columns(x + i, area - i) - mean - rest) * factor + b;
        store_columns(silu ? value / (1 + exp(-value)) : value, y + i, area - i);
    }
}

/* shapes ---------------------------------------------------------------------------------------------------------- */

/* to (rows, width) = from, rows to_stride and from_stride apart. (width, rows) */
__kernel void copy(__global float *to, ulong to_at, __global const float *from, ulong from_at, int rows, int width,
                   int to_stride, int from_stride) {
    const int column = get_global_id(0), row = get_global_id(1);
    if (row < rows && column < width)
        to[to_at + (ulong)row * to_stride + column] = from[from_at + (ulong)row * from_stride + column];
}

/* latents (samples, channels, height, width) to patches: rows (channels, patch, patch), columns (samples, tokens).
 * (columns, rows) */
__kernel void to_patches(__global const float *latents, ulong latents_at, __global float *patches, ulong patches_at,
                         int samples, int channels, int height, int width, int patch) {
    const int across = width / patch, tokens = height / patch * across, columns = samples * tokens;
    const int column = get_global_id(0), row = get_global_id(1);
    if (column >= columns || row >= channels * patch * patch) return;
    const int sample = column / tokens, token = column % tokens, channel = row / (patch * patch);
    const int y = token / across * patch + row / patch % patch, x = token % across * patch + row % patch;
    patches[patches_at + (ulong)row * columns + column] =
        latents[latents_at + (((ulong)sample * channels + channel) * height + y) * width + x];
}

/* patches: rows (patch, patch, patch_channels), columns (samples, tokens), to latents (samples, channels, height,
 * width), the first `channels` of patch_channels. (width, height, samples * channels) */
__kernel void to_latents(__global float *latents, ulong latents_at, __global const float *patches, ulong patches_at,
                         int samples, int channels, int height, int width, int patch, int patch_channels) {
    const int across = width / patch, tokens = height / patch * across, columns = samples * tokens;
    const int x = get_global_id(0), y = get_global_id(1), plane = get_global_id(2);
    if (x >= width || y >= height || plane >= samples * channels) return;
    const int sample = plane / channels, channel = plane % channels;
    const int row = (y % patch * patch + x % patch) * patch_channels + channel;
    latents[latents_at + ((ulong)plane * height + y) * width + x] =
        patches[patches_at + (ulong)row * columns + sample * tokens + y / patch * across + x / patch];
}

/* y (columns, rows), rows y_stride apart = x (rows, columns) turned, by way of a tile as large as the work-group, so
 * that both are read and written along their rows. (columns, rows) */
__kernel void transpose(__global const float *x, ulong x_at, __global float *y, ulong y_at, int rows, int columns,
                        int y_stride, __local float *tile) {
    const int tile_columns = get_local_size(0), tile_rows = get_local_size(1);
    const int column = get_local_id(0), row = get_local_id(1), item = row * tile_columns + column;
    const int first_column = get_group_id(0) * tile_columns, first_row = get_group_id(1) * tile_rows;
    if (first_row + row < rows && first_column + column < columns)
        tile[row * (tile_columns + 1) + column] = x[x_at + (ulong)(first_row + row) * columns + first_column + column];
    barrier(CLK_LOCAL_MEM_FENCE);
    const int turned_row = item / tile_rows, turned_column = item % tile_rows;
    if (first_column + turned_row < columns && first_row + turned_column < rows)
        y[y_at + (ulong)(first_column + turned_row) * y_stride + first_row + turned_column] =
            tile[turned_column * (tile_columns + 1) + turned_row];
}

/* values ---------------------------------------------------------------------------------------------------------- */

__kernel void silu(__global float *x, ulong x_at, int count) {
    const int i = get_global_id(0);
    if (i >= count) return;
    const float value = x[x_at + i];
    x[x_at + i] = value / (1 + exp(-value));
}

/* Eight terms, each a tensor and its weight as two floats. */
#define TERM(j) __global const float *k##j, ulong k##j##_at, float high##j, float low##j
#define TERMS   TERM(0), TERM(1), TERM(2), TERM(3), TERM(4), TERM(5), TERM(6), TERM(7)
#define ADD_TERM(sum, j, at, count) \
    if (terms > j) sum = add_product(sum, high##j, low##j, load_columns(k##j + k##j##_at + (at), count))
#define ADD_TERMS(sum, at, count) \
    ADD_TERM(sum, 0, at, count);  \
    ADD_TERM(sum, 1, at, count);  \
    ADD_TERM(sum, 2, at, count);  \
    ADD_TERM(sum, 3, at, count);  \
    ADD_TERM(sum, 4, at, count);  \
    ADD_TERM(sum, 5, at, count);  \
    ADD_TERM(sum, 6, at, count);  \
    ADD_TERM(sum, 7, at, count)

/* out = (high + low) x + sum of weight[j] k[j], rounded once; all (rows, width), rows `stride` apart. (items, rows) */
__kernel void combine(__global float *out, ulong out_at, __global const float *x, ulong x_at, float high, float low,
                      int terms, TERMS, int rows, int width, int stride) {
    const int first = get_global_id(0) * TILE_WIDTH, row = get_global_id(1), count = width - first;
    const ulong at = (ulong)row * stride + first;
    pair sum = {0, 0};
    if (row >= rows || count <= 0) return;
    sum = add_product(sum, high, low, load_columns(x + x_at + at, count));
    ADD_TERMS(sum, at, count);
    store_columns(round_pair(sum), out + out_at + at, count);
}

/* y (channels, area) = x * scale + shift; scale, shift (channels). (area, channels) */
__kernel void scale_shift(__global const float *x, ulong x_at, __global float *y, ulong y_at,
                          __global const float *scale, ulong scale_at, __global const float *shift, ulong shift_at,
                          int channels, int area) {
    const int i = get_global_id(0), channel = get_global_id(1);
    if (channel >= channels || i >= area) return;
    const ulong at = (ulong)channel * area + i;
    y[y_at + at] = x[x_at + at] * scale[scale_at + channel] + shift[shift_at + channel];
}

/* out (area, 3), from one of the three on: clamp(127.5 x + offset, 0, 255) of x (channels, area), truncated; 0 for what
 * is not a number. Rounded as on the host, or a pixel here and there would be another. (area) */
__kernel void pixels(__global const float *x, ulong x_at, __global uchar *out, ulong out_at, float offset, int channels,
                     int area) {
#pragma OPENCL FP_CONTRACT OFF
    const int i = get_global_id(0);
    if (i >= area) return;
    for (int channel = 0; channel < channels; channel++) {
        const float value = 127.5f * x[x_at + (ulong)channel * area + i] + offset;
        out[out_at + 3 * (ulong)i + channel] = !(value > 0) ? 0 : value >= 255 ? 255 : (uchar)value;
    }
}

/* sums (parts): of (sum of weight[j] k[j] / (atol + rtol max(|x|, |y|)))^2. (items, parts) */
__kernel void error_norm(__global const float *x, ulong x_at, __global const float *y, ulong y_at, int has_y, int terms,
                         TERMS, float atol, float rtol, int count, __global float *sums, ulong sums_at,
                         __local float *partial) {
    const int items = get_local_size(0) * get_num_groups(1);
    const int item = get_group_id(1) * get_local_size(0) + get_local_id(0);
    VECTOR total = 0;
    for (int i = item * TILE_WIDTH; i < count; i += items * TILE_WIDTH) {
        pair sum = {0, 0};
        ADD_TERMS(sum, i, count - i);
        VECTOR size = fabs(load_or(x + x_at + i, count - i, 1)); /* nowhere 0 / 0 that is not in x */
        if (has_y) size = fmax(size, fabs(load_columns(y + y_at + i, count - i)));
        const VECTOR ratio = round_pair(sum) / (atol + rtol * size);
        total += ratio * ratio;
    }
    const float sum = group_sum(partial, SUM_OF(total));
    if (get_local_id(0) == 0) sums[sums_at + get_group_id(1)] = sum;
}

/* sums (parts, 2): of |after - before - residual| and of |residual|. after (rows, width), rows after_stride apart;
 * before, residual (rows, width). (items, parts) */
__kernel void change(__global const float *after, ulong after_at, __global const float *before, ulong before_at,
                     __global const float *residual, ulong residual_at, int rows, int width, int after_stride,
                     __global float *sums, ulong sums_at, __local float *partial) {
    VECTOR changed = 0, size = 0;
    for (int row = get_group_id(1); row < rows; row += get_num_groups(1))
        for (int i = get_local_id(0) * TILE_WIDTH; i < width; i += get_local_size(0) * TILE_WIDTH) {
            const ulong at = (ulong)row * width + i;
            const VECTOR to = load_columns(after + after_at + (ulong)row * after_stride + i, width - i);
            const VECTOR from = load_columns(before + before_at + at, width - i);
            const VECTOR then = load_columns(residual + residual_at + at, width - i);
            changed += fabs(round_pair(add_vector(two_sum(to, -from), -then)));
            size += fabs(then);
        }
    sums += sums_at + 2 * get_group_id(1);
    const float all_changed = group_sum(partial, SUM_OF(changed)), all = group_sum(partial, SUM_OF(size));
    if (get_local_id(0)) return;
    sums[0] = all_changed;
    sums[1] = all;
}

/* notes |= note where one of x is not finite. One work-group needs no atomics, and is enough for what a pass gives. */
__kernel void note_finite(__global const float *x, ulong x_at, int count, int note, __global int *notes, ulong notes_at,
                          __local float *partial) {
    VECTOR_INT finite = -1;
    for (int i = get_local_id(0) * TILE_WIDTH; i < count; i += get_local_size(0) * TILE_WIDTH)
        finite &= isfinite(load_columns(x + x_at + i, count - i));
    const float others = group_sum(partial, all(finite) ? 0 : 1);
    if (get_local_id(0) == 0 && others > 0) notes[notes_at] |= note;
}

/* noise ----------------------------------------------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
uint4 philox(uint2 key, uint4 counter) {
    for (int round = 0; round < 10; round++) {
        const uint low0 = 0xD2511F53u * counter.x, high0 = mul_hi(0xD2511F53u, counter.x);
        const uint low1 = 0xCD9E8D57u * counter.z, high1 = mul_hi(0xCD9E8D57u, counter.z);
        counter = (uint4)(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key += (uint2)(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}

/* sqrt(-2 log u) for u = (a + 1/2) / 2^32, by way of 1 - u above a half: float has no room for u near 1. */
float normal_radius(uint a) {
    const float unit = 0x1p-32f;
    const float log_u = a < 0x80000000u ? log(((float)a + 0.5f) * unit) : log1p(-((float)(~a) + 0.5f) * unit);
    return sqrt(-2 * log_u);
}

/* cos and sin of 2 pi (b + 1/2) / 2^32: the upper two bits are the quadrant, the rest a multiple of pi / 2^31. */
float2 normal_direction(uint b) {
    const float turn = ((float)(b & 0x3fffffffu) + 0.5f) * 0x1p-31f, c = cospi(turn), s = sinpi(turn);
    const uint quadrant = b >> 30;
    return quadrant == 0   ? (float2)(c, s)
           : quadrant == 1 ? (float2)(-s, c)
           : quadrant == 2 ? (float2)(-c, -s)
                           : (float2)(s, -c);
}

/* out (count, per_picture): normal draws of pictures from counter.z, counter.w on (random.c). (blocks of 4, pictures)
 */
__kernel void normal(__global float *out, ulong out_at, uint seed_low, uint seed_high, uint index, uint picture_low,
                     uint picture_high, uint draw, int count, int per_picture) {
    const int block = get_global_id(0), picture = get_global_id(1);
    if (picture >= count || block >= (per_picture + 3) / 4) return;
    const uint low = picture_low + picture, high = picture_high + (low < picture_low ? 1 : 0);
    const uint4 bits =
        philox((uint2)(seed_low, seed_high), (uint4)(block, index, low, (high & 0xffffffu) | draw << 24));
    const float2 first = normal_radius(bits.x) * normal_direction(bits.y);
    const float2 second = normal_radius(bits.z) * normal_direction(bits.w);
    const int at = block * 4;
    out += out_at + (ulong)picture * per_picture + at;
    out[0] = first.x;
    if (at + 1 < per_picture) out[1] = first.y;
    if (at + 2 < per_picture) out[2] = second.x;
    if (at + 3 < per_picture) out[3] = second.y;
}
