/* Matrix products: C = residual + gate * activation(alpha A B + bias), where A (rows, depth) are weights of any type
 * and B (depth, columns) are activations, or the patches of an image. Products and sums are f32; what `compute` asks
 * for is a rounding of the operands on their way.
 *
 *     product         for GPUs: a work-group's share of A and B goes through local memory
 *     product_f16     the same with products in f16, for GPUs that have its arithmetic
 *     product_tile    for processors: a work-item keeps a tile of sums in vector registers; B comes from pack_panels
 *     finish_product  the epilogue of a product that CLBlast computed of pack_rows' and pack_columns' operands
 *
 * Sums are kept by blocks of the depth: their rounding errors then grow with the block, not with the whole. */

#ifndef ITEM_ROWS
#define ITEM_ROWS     8 /* sums of a work-item of `product`; rows even */
#define ITEM_COLUMNS  4
#define GROUP_ROWS    8 /* the most work-items of its groups, along rows and columns */
#define GROUP_COLUMNS 16
#define GROUP_DEPTH   16 /* of A and B in local memory */
#endif
#ifndef TILE_ROWS
#define TILE_ROWS    12 /* sums of a work-item of `product_tile`: rows, vectors, floats of a vector */
#define TILE_VECTORS 2
#define TILE_WIDTH   16
#define TILE_COLUMNS 256 /* the most columns that it computes, and the depth between which it leaves the registers */
#define TILE_DEPTH   384
#endif
#define F16_RUN 4 /* products that an f16 sums up */

#define CAT_(a, b)  a##b
#define CAT(a, b)   CAT_(a, b)
#define VECTOR      CAT(float, TILE_WIDTH)
#define VECTOR_INT  CAT(int, TILE_WIDTH)
#define VECTOR_UINT CAT(uint, TILE_WIDTH)
#define LOAD        CAT(vload, TILE_WIDTH)
#define STORE       CAT(vstore, TILE_WIDTH)

/* gmem_type of A, gmem_compute, gmem__activation, and what an epilogue has. */
#define TYPE_F16      1
#define TYPE_BF16     2
#define TYPE_I8       4
#define COMPUTE_BF16  1
#define COMPUTE_INT8  2
#define COMPUTE_F16   3
#define ACT_SILU      1
#define ACT_GELU_TANH 2
#define ACT_GELU_ERF  3
#define ACT_SWIGLU    4
#define HAS_BIAS      1
#define HAS_GATE      2
#define HAS_RESIDUAL  4

/* functions of numbers, and the same of vectors ------------------------------------------------------------------- */

#define DEFINE_FUNCTIONS(T, I, U)                                                                                      \
    T CAT(T, _to_bf16)(T x) {                                                                                          \
        const U bits = CAT(as_, U)(x);                                                                                 \
        return select(CAT(as_, T)((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u), x, isnan(x));                   \
    }                                                                                                                  \
                                                                                                                       \
    /* Its subnormal numbers are multiples of 2^-24, and so are floats from 0.5 to 1. */                               \
    T CAT(T, _to_f16)(T x) {                                                                                           \
        const U bits = CAT(as_, U)(x);                                                                                 \
        T y = CAT(as_, T)((bits + 0xfffu + (bits >> 13 & 1u)) & 0xffffe000u);                                          \
        y = select(y, copysign((T)(INFINITY), x), fabs(y) > (T)(65504.0f));                                            \
        y = select(y, (x + 0.75f) - 0.75f, fabs(x) < (T)(6.103515625e-5f));                                            \
        return select(y, x, isnan(x));                                                                                 \
    }                                                                                                                  \
                                                                                                                       \
    /* largest: |x| of its column, only for int8. */                                                                   \
    T CAT(T, _rounded)(T x, int compute, T largest) {                                                                  \
        if (compute == COMPUTE_BF16) return CAT(T, _to_bf16)(x);                                                       \
        if (compute == COMPUTE_F16) return CAT(T, _to_f16)(x);                                                         \
        if (compute == COMPUTE_INT8) return rint(x * (127.0f / largest)) * (largest / 127.0f);                         \
        return x;                                                                                                      \
    }                                                                                                                  \
                                                                                                                       \
    /* gelu_tanh: 0.5 x (1 + tanh(s)) = x / (1 + e^-2s), s = sqrt(2 / pi) (x + 0.044715 x^3).                          \
     * gelu_erf: x P(x), P being the normal distribution's integral: max(x, 0) - a Q(a), a = |x|,                      \
     * Q(a) = e^(-a^2/2) t p(t), t = 1 / (1 + 0.4 a) (the form of Abramowitz and Stegun 26.2.17), p being minimax      \
     * (absolute error of a Q 8e-9). */                                                                                \
    T CAT(T, _activated)(T x, int activation) {                                                                        \
        const T one = (T)(1.0f);                                                                                       \
        if (activation == ACT_SILU || activation == ACT_SWIGLU) return x / (one + exp(-x));                            \
        if (activation == ACT_GELU_TANH) return x / (one + exp(x * fma(x * x, (T)(0.044715f), one) * -1.5957691216f)); \
        if (activation == ACT_GELU_ERF) {                                                                              \
            const T a = fabs(x), t = one / fma(a, (T)(0.4f), one), density = exp(a * a * -0.5f);                       \
            T p = (T)(5.724073201e-2f);                                                                                \
            p = fma(p, t, (T)(-2.577858269e-1f));                                                                      \
            p = fma(p, t, (T)(3.441259861e-1f));                                                                       \
            p = fma(p, t, (T)(1.007481944e-2f));                                                                       \
            p = fma(p, t, (T)(1.897868812e-1f));                                                                       \
            p = fma(p, t, (T)(1.565577388e-1f));                                                                       \
            return fma(-a * t, p * density, fmax(x, (T)(0.0f)));                                                       \
        }                                                                                                              \
        return x;                                                                                                      \
    }

DEFINE_FUNCTIONS(float, int, uint)
DEFINE_FUNCTIONS(VECTOR, VECTOR_INT, VECTOR_UINT)

/* operands -------------------------------------------------------------------------------------------------------- */

/* Element `at` of a matrix of weights, without its row's scale. */
float weight_at(__global const uchar *a, ulong at, int type) {
    if (type == TYPE_F16) return vload_half(at, (__global const half *)a);
    if (type == TYPE_BF16) return as_float((uint)((__global const ushort *)a)[at] << 16);
    if (type == TYPE_I8) return convert_float(((__global const char *)a)[at]);
    return ((__global const float *)a)[at];
}

/* A vector of elements from `at` on. */
VECTOR weights_at(__global const uchar *a, ulong at, int type) {
    if (type == TYPE_F16) return CAT(vload_half, TILE_WIDTH)(0, (__global const half *)a + at);
    if (type == TYPE_BF16)
        return CAT(as_, VECTOR)(CAT(convert_, VECTOR_UINT)(LOAD(0, (__global const ushort *)a + at)) << 16);
    if (type == TYPE_I8) return CAT(convert_, VECTOR)(LOAD(0, (__global const char *)a + at));
    return LOAD(0, (__global const float *)a + at);
}

/* Row i of a work-item's `count` rows of A; `rows` or more where there is none. SWIGLU's rows go in pairs, r and
 * r + rows / 2: the first half of a work-item's rows are the gates of the second half. */
int product_row(int item, int i, int count, int rows, int activation) {
    if (activation != ACT_SWIGLU) return item * count + i;
    const int half_count = count / 2, pair = item * half_count + i % half_count;
    return pair < rows / 2 ? i / half_count * (rows / 2) + pair : rows;
}

/* The image (in_channels, height, width) whose patches are B, zero padded; filter 0: B is a matrix. Depth counts
 * channels, then the rows and columns of the filter. */
#define IMAGE_PARAMETERS int filter, int stride, int upsample, int height, int width, int out_width
#define IMAGE            filter, stride, upsample, height, width, out_width

/* The first tap of output pixel `column`, which may be in the padding. */
int2 patch_corner(int column, IMAGE_PARAMETERS) {
    const int padding = filter == 3 && stride == 1, y = column / out_width, x = column - y * out_width;
    return (int2)(x * stride - padding, y * stride - padding);
}

/* Where in its channel the pixel at (y, x) of the image lies; -1 in the padding. */
int pixel_offset(int y, int x, IMAGE_PARAMETERS) {
    if (y < 0 || y >= height << upsample || x < 0 || x >= width << upsample) return -1;
    return (y >> upsample) * width + (x >> upsample);
}

/* Row k of the patch with this corner. */
float patch_at(__global const float *image, int k, int2 corner, IMAGE_PARAMETERS) {
    const int channel = filter == 3 ? k / 9 : k, tap = filter == 3 ? k - 9 * channel : 0;
    const int offset = pixel_offset(corner.y + tap / 3, corner.x + tap % 3, IMAGE);
    return offset < 0 ? 0.0f : image[(ulong)channel * height * width + offset];
}

/* epilogues ------------------------------------------------------------------------------------------------------- */

/* What comes after the product; `has` says which of these there are. first_column: what c's first column is of the
 * samples' columns. */
#define EPILOGUE_PARAMETERS                                                                                      \
    int has, int activation, float alpha, __global const float *bias, ulong bias_at, __global const float *gate, \
        ulong gate_at, int gate_stride, int tokens, int first_column, __global const float *residual,            \
        ulong residual_at, int residual_ld, __global float *c, ulong c_at, int c_ld, int c_stride

#define EPILOGUE_ARGUMENTS                                                                                           \
    has, activation, alpha, bias, bias_at, gate, gate_at, gate_stride, tokens, first_column, residual, residual_at, \
        residual_ld, c, c_at, c_ld, c_stride

/* Leaves the pointers at a batch's row 0, and NULL where there is nothing. */
#define EPILOGUE_BEGIN(batch)                                                             \
    bias = has & HAS_BIAS ? bias + bias_at : 0;                                           \
    gate = has & HAS_GATE ? gate + gate_at : 0;                                           \
    residual = has & HAS_RESIDUAL ? residual + residual_at + (ulong)(batch)*c_stride : 0; \
    c += c_at + (ulong)(batch)*c_stride;

#define EPILOGUE activation, alpha, bias, gate, gate_stride, tokens, first_column, residual, residual_ld, c, c_ld
#define FINISH_PARAMETERS                                                                                             \
    int activation, float alpha, __global const float *bias, __global const float *gate, int gate_stride, int tokens, \
        int first_column, __global const float *residual, int residual_ld, __global float *c, int c_ld

float gate_at_column(__global const float *gate, int gate_stride, int tokens, int row, int column) {
    return gate ? gate[(ulong)(column / tokens) * gate_stride + row] : 1.0f;
}

/* Takes a sum and, for SWIGLU, the one rows / 2 below it, to C. */
void finish(float sum, float up, int rows, int row, int column, FINISH_PARAMETERS) {
    float value = float_activated(fma(sum, alpha, bias ? bias[row] : 0.0f), activation);
    if (activation == ACT_SWIGLU) value *= fma(up, alpha, bias ? bias[row + rows / 2] : 0.0f);
    const float g = gate_at_column(gate, gate_stride, tokens, row, first_column + column);
    c[(ulong)row * c_ld + column] = fma(value, g, residual ? residual[(ulong)row * residual_ld + column] : 0.0f);
}

/* The epilogue of sums (rows, columns). (columns, rows or rows / 2, batch) */
__kernel void finish_product(__global const float *sums, ulong sums_at, int sums_stride, int rows, int columns,
                             EPILOGUE_PARAMETERS) {
    const int column = get_global_id(0), row = get_global_id(1), batch = get_global_id(2);
    const int half_rows = activation == ACT_SWIGLU ? rows / 2 : 0;
    if (column >= columns || row >= rows - half_rows) return;
    sums += sums_at + (ulong)batch * sums_stride + (ulong)row * columns + column;
    EPILOGUE_BEGIN(batch)
    finish(sums[0], sums[(ulong)half_rows * columns], rows, row, column, EPILOGUE);
}

/* packing --------------------------------------------------------------------------------------------------------- */

/* A (rows, depth) of any type, or floats turned. */
#define WEIGHT_PARAMETERS                                                                  \
    __global const uchar *a, ulong a_at, int type, int transposed, int a_ld, int a_stride, \
        __global const float *a_scale, ulong a_scale_at, int compute, int rows, int depth
#define WEIGHT a, a_at, type, transposed, a_ld, a_stride, a_scale, a_scale_at, compute, rows, depth

/* An element as the product sees it. Int8 weights are on their levels already. */
float weight_rounded(__global const uchar *a, ulong at, int type, float scale, int compute) {
    return float_rounded(weight_at(a, at, type) * scale, compute == COMPUTE_INT8 ? 0 : compute, 1.0f);
}

/* out (batch, rows, depth) = A in floats. (depth, rows, batch) */
__kernel void pack_rows(WEIGHT_PARAMETERS, __global float *out, ulong out_at) {
    const int k = get_global_id(0), row = get_global_id(1), batch = get_global_id(2);
    if (k >= depth || row >= rows) return;
    a_at += (ulong)batch * a_stride + (transposed ? (ulong)k * a_ld + row : (ulong)row * a_ld + k);
    out[out_at + ((ulong)batch * rows + row) * depth + k] =
        weight_rounded(a, a_at, type, type == TYPE_I8 ? a_scale[a_scale_at + row] : 1.0f, compute);
}

/* B (depth, columns) or an image; `largest` (batch, columns) from column_scales, for int8. */
#define COLUMN_PARAMETERS                                                                                         \
    __global const float *b, ulong b_at, int b_ld, int b_stride, IMAGE_PARAMETERS, __global const float *largest, \
        ulong largest_at, int columns
#define COLUMN b, b_at, b_ld, b_stride, IMAGE, largest, largest_at, columns

/* out (batch, columns) = the largest |b| of each column; NaN where one is not finite. (columns, any, batch) */
__kernel void column_scales(__global const float *b, ulong b_at, int b_ld, int b_stride, int depth, int columns,
                            __global float *out, ulong out_at, __local float *parts) {
    const int column = get_global_id(0), batch = get_global_id(2), y = get_local_id(1), step = get_local_size(1);
    __local float *part = parts + get_local_id(0);
    if (get_group_id(1) > 0) return;
    float largest = 1e-30f, finite = 0.0f; /* never divides by zero */
    b += b_at + (ulong)batch * b_stride + column;
    for (int k = y; column < columns && k < depth; k += step) {
        const float value = b[(ulong)k * b_ld];
        largest = fmax(largest, fabs(value));
        finite = fma(value, 0.0f, finite);
    }
    part[y * get_local_size(0)] = largest + finite;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (y > 0 || column >= columns) return;
    for (int i = 1; i < step; i++) {
        const float other = part[i * get_local_size(0)];
        largest = fmax(largest, other);
        finite = fma(other, 0.0f, finite);
    }
    out[out_at + (ulong)batch * columns + column] = largest + finite;
}

/* out (batch, depth, count) = columns [first, first + count) of B, rounded. (count, depth, batch) */
__kernel void pack_columns(COLUMN_PARAMETERS, int compute, int depth, int first, int count, __global float *out,
                           ulong out_at) {
    const int i = get_global_id(0), k = get_global_id(1), batch = get_global_id(2), column = first + i;
    if (i >= count || k >= depth) return;
    b += b_at + (ulong)batch * b_stride;
    float value;
    if (filter) {
        value = patch_at(b, k, patch_corner(column, IMAGE), IMAGE);
    } else {
        value = b[(ulong)k * b_ld + column];
    }
    const float levels = compute == COMPUTE_INT8 ? largest[largest_at + (ulong)batch * columns + column] : 1.0f;
    out[out_at + ((ulong)batch * depth + k) * count + i] = float_rounded(value, compute, levels);
}

#define PANEL (TILE_VECTORS * TILE_WIDTH) /* columns of a panel */

/* PANEL floats, of which `count` are there; zeros behind them. */
void panel_row(__global const float *from, int count, const float *levels, int compute, __global float *to) {
    float lanes[PANEL];
    if (count >= PANEL) {
        for (int v = 0; v < TILE_VECTORS; v++)
            STORE(LOAD(v, from), v, lanes);
    } else {
        for (int i = 0; i < PANEL; i++)
            lanes[i] = i < count ? from[i] : 0.0f;
    }
    for (int v = 0; v < TILE_VECTORS; v++)
        STORE(CAT(VECTOR, _rounded)(LOAD(v, lanes), compute, LOAD(v, levels)), v, to);
}

/* Channels [begin, end) of the patches from `column` on, of which `lanes` are there: to (channels, taps, PANEL). Within
 * a row of the image patches are neighbours, and so are the pixels under their taps. */
void panel_patches(__global const float *image, int begin, int end, int column, int lanes, const float *levels,
                   int compute, __global float *to, IMAGE_PARAMETERS) {
    const int taps = filter * filter;
    for (int ky = 0; ky < filter; ky++)
        for (int kx = 0; kx < filter; kx++) {
            int offset[PANEL], neighbours = lanes == PANEL;
            for (int i = 0; i < PANEL; i++) {
                const int2 corner = patch_corner(column + i, IMAGE);
                offset[i] = i < lanes ? pixel_offset(corner.y + ky, corner.x + kx, IMAGE) : -1;
                neighbours &= offset[i] >= 0 && offset[i] == offset[0] + i;
            }
            for (int channel = begin; channel < end; channel++) {
                __global const float *from = image + (ulong)channel * height * width;
                __global float *row = to + (ulong)(channel * taps + ky * filter + kx) * PANEL;
                if (neighbours)
                    panel_row(from + offset[0], PANEL, levels, compute, row);
                else
                    for (int i = 0; i < PANEL; i++)
                        row[i] = float_rounded(offset[i] < 0 ? 0.0f : from[offset[i]], compute, 1.0f);
            }
        }
}

/* out (batch, panels, depth, PANEL) = columns [first, first + count) of B, rounded; zeros behind the last one.
 * (panels, parts of PACK_DEPTH of the depth, batch) */
#define PACK_DEPTH 72 /* whole channels of any filter */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void
pack_panels(COLUMN_PARAMETERS, int compute, int depth, int first, int count, __global float *out, ulong out_at) {
    const int panel = get_global_id(0), batch = get_global_id(2), begin = get_global_id(1) * PACK_DEPTH;
    const int end = min(depth, begin + PACK_DEPTH), taps = filter * filter, column = first + panel * PANEL;
    const int lanes = min(PANEL, first + count - column);
    float levels[PANEL];
    for (int i = 0; i < PANEL; i++)
        levels[i] =
            compute == COMPUTE_INT8 && i < lanes ? largest[largest_at + (ulong)batch * columns + column + i] : 1.0f;
    b += b_at + (ulong)batch * b_stride;
    out += out_at + ((ulong)batch * get_global_size(0) + panel) * depth * PANEL;
    if (filter)
        panel_patches(b, begin / taps, end / taps, column, lanes, levels, compute, out, IMAGE);
    else
        for (int k = begin; k < end; k++)
            panel_row(b + (ulong)k * b_ld + column, lanes, levels, compute, out + (ulong)k * PANEL);
}

/* the product on a GPU -------------------------------------------------------------------------------------------- */

/* Tiles of A and B in local memory: (GROUP_DEPTH, LEFT_STEP) and (GROUP_DEPTH, RIGHT_STEP) floats, or half as many
 * pairs of f16, two of the depth side by side. */
#define LEFT_STEP  (GROUP_ROWS * ITEM_ROWS + 1) /* odd: rows written along the depth meet no bank twice */
#define RIGHT_STEP (GROUP_COLUMNS * ITEM_COLUMNS)

void tile_put(__local float *tile, int step, int k, int at, float value, int f16) {
    if (f16)
        vstore_half_rte(value, 2 * (k / 2 * step + at) + k % 2, (__local half *)tile);
    else
        tile[k * step + at] = value;
}

/* sum += a work-item's rows of `left` times its columns of `right`, which are `width` apart. */
#define ITEM_PARAMETERS \
    __local const float *left, __local const float *right, int width, float (*sum)[ITEM_COLUMNS]

void add_products(ITEM_PARAMETERS) {
    float part[ITEM_ROWS][ITEM_COLUMNS];
#pragma unroll
    for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
        for (int j = 0; j < ITEM_COLUMNS; j++)
            part[i][j] = 0.0f;
    for (int k = 0; k < GROUP_DEPTH; k++)
#pragma unroll
        for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
            for (int j = 0; j < ITEM_COLUMNS; j++)
                part[i][j] = fma(left[k * LEFT_STEP + i], right[k * RIGHT_STEP + j * width], part[i][j]);
#pragma unroll
    for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
        for (int j = 0; j < ITEM_COLUMNS; j++)
            sum[i][j] += part[i][j];
}

#ifdef F16_ARITHMETIC

/* Either cl_khr_fp16's arithmetic, or a stand-in with OpenCL's core for the tests of devices that lack it. */
#if F16_ARITHMETIC == 1
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define PAIR              half2
#define PAIR_AT(tile, at) ((__local const half2 *)(tile))[at]
#define PAIR_FMA(a, b, c) fma(a, b, c)
#else
DEFINE_FUNCTIONS(float2, int2, uint2)
#define PAIR              float2
#define PAIR_AT(tile, at) vload_half2(at, (__local const half *)(tile))
#define PAIR_FMA(a, b, c) float2_to_f16(fma(a, b, c))
#endif

/* The same in f16. Either half of a pair sums up F16_RUN products, whose roundings are 1.6 times that of one number to
 * f16, where the two operands' are 1.4 times it; then a float takes the sum, so that errors do not grow with the depth.
 * While |a b| < 65504 / F16_RUN, as it is where neither operand exceeds 127, no run can leave f16's range. Of one that
 * does, the sum stays infinite or NaN, and sum_again replaces it. */
void add_products_f16(ITEM_PARAMETERS) {
    for (int begin = 0; begin < GROUP_DEPTH / 2; begin += F16_RUN) {
        PAIR part[ITEM_ROWS][ITEM_COLUMNS];
#pragma unroll
        for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
            for (int j = 0; j < ITEM_COLUMNS; j++)
                part[i][j] = (PAIR)(0.0f);
        for (int k = begin; k < min(begin + F16_RUN, GROUP_DEPTH / 2); k++)
#pragma unroll
            for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
                for (int j = 0; j < ITEM_COLUMNS; j++)
                    part[i][j] = PAIR_FMA(PAIR_AT(left, k * LEFT_STEP + i), PAIR_AT(right, k * RIGHT_STEP + j * width),
                                          part[i][j]);
#pragma unroll
        for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
            for (int j = 0; j < ITEM_COLUMNS; j++) {
                const float2 both = convert_float2(part[i][j]);
                sum[i][j] += both.s0 + both.s1;
            }
    }
}

#endif

/* The sum of a row and a column in floats, of operands as they are: f16 gives what is not finite only where f32 does. */
float sum_again(WEIGHT_PARAMETERS, __global const float *b, int b_ld, IMAGE_PARAMETERS, int row, int column) {
    const float scale = type == TYPE_I8 ? a_scale[a_scale_at + row] : 1.0f;
    const int2 corner = filter ? patch_corner(column, IMAGE) : (int2)(0, 0);
    float sum = 0.0f;
    for (int k = 0; k < depth; k++) {
        const ulong at = transposed ? (ulong)k * a_ld + row : (ulong)row * a_ld + k;
        const float value = filter ? patch_at(b, k, corner, IMAGE) : b[(ulong)k * b_ld + column];
        sum = fma(weight_at(a, a_at + at, type) * scale, value, sum);
    }
    return sum;
}

/* A work-item's columns are its group's width apart, so that neighbours read and write neighbouring floats. Its arrays
 * are registers where all their loops are unrolled. f16, which is known where this is compiled into a kernel: what the
 * tiles hold and how they are multiplied. */
void multiply_groups(int f16, __local float *left, __local float *right, WEIGHT_PARAMETERS, COLUMN_PARAMETERS,
                     EPILOGUE_PARAMETERS) {
    const int x = get_local_id(0), y = get_local_id(1), width_x = get_local_size(0), width_y = get_local_size(1);
    const int batch = get_global_id(2), item = y * width_x + x, items = width_x * width_y;
    const int first = get_group_id(0) * width_x * ITEM_COLUMNS + x, group_rows = width_y * ITEM_ROWS;
    const int rounding = f16 ? 0 : compute; /* tile_put rounds to f16 */
    int2 corner[ITEM_COLUMNS];
    float levels[ITEM_COLUMNS], sum[ITEM_ROWS][ITEM_COLUMNS];
    a_at += (ulong)batch * a_stride;
    b += b_at + (ulong)batch * b_stride;
    EPILOGUE_BEGIN(batch)
#pragma unroll
    for (int j = 0; j < ITEM_COLUMNS; j++) {
        const int column = min(first + j * width_x, columns - 1);
        corner[j] = filter ? patch_corner(column, IMAGE) : (int2)(0, 0);
        levels[j] = compute == COMPUTE_INT8 ? largest[largest_at + (ulong)batch * columns + column] : 1.0f;
#pragma unroll
        for (int i = 0; i < ITEM_ROWS; i++)
            sum[i][j] = 0.0f;
    }
    for (int k0 = 0; k0 < depth; k0 += GROUP_DEPTH) {
        for (int e = item; e < group_rows * GROUP_DEPTH; e += items) {
            int k = e % GROUP_DEPTH, r = e / GROUP_DEPTH; /* neighbours read neighbours */
            if (transposed) k = e / group_rows, r = e - k * group_rows;
            const int row =
                product_row(get_group_id(1) * width_y + r / ITEM_ROWS, r % ITEM_ROWS, ITEM_ROWS, rows, activation);
            const int inside = row < rows && k0 + k < depth;
            const ulong at = transposed ? (ulong)(k0 + k) * a_ld + row : (ulong)row * a_ld + k0 + k;
            const float scale = inside && type == TYPE_I8 ? a_scale[a_scale_at + row] : 1.0f;
            tile_put(left, LEFT_STEP, k, r, inside ? weight_rounded(a, a_at + at, type, scale, rounding) : 0.0f, f16);
        }
        for (int k = y; k < GROUP_DEPTH; k += width_y)
#pragma unroll
            for (int j = 0; j < ITEM_COLUMNS; j++) {
                const int column = first + j * width_x;
                float value = 0.0f;
                if (column < columns && k0 + k < depth)
                    value = filter ? patch_at(b, k0 + k, corner[j], IMAGE) : b[(ulong)(k0 + k) * b_ld + column];
                tile_put(right, RIGHT_STEP, k, j * width_x + x, float_rounded(value, rounding, levels[j]), f16);
            }
        barrier(CLK_LOCAL_MEM_FENCE);
#ifdef F16_ARITHMETIC
        if (f16)
            add_products_f16(left + y * ITEM_ROWS, right + x, width_x, sum);
        else
#endif
            add_products(left + y * ITEM_ROWS, right + x, width_x, sum);
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    if (f16)
#pragma unroll
        for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
            for (int j = 0; j < ITEM_COLUMNS; j++) {
                const int row = product_row(get_global_id(1), i, ITEM_ROWS, rows, activation);
                if (!isfinite(sum[i][j]) && row < rows && first + j * width_x < columns)
                    sum[i][j] = sum_again(WEIGHT, b, b_ld, IMAGE, row, first + j * width_x);
            }
    const int out_rows = activation == ACT_SWIGLU ? rows / 2 : rows;
#pragma unroll
    for (int i = 0; i < ITEM_ROWS; i++)
#pragma unroll
        for (int j = 0; j < ITEM_COLUMNS; j++) {
            const int row = product_row(get_global_id(1), i, ITEM_ROWS, rows, activation), column = first + j * width_x;
            if (row < out_rows && column < columns)
                finish(sum[i][j], sum[(i + ITEM_ROWS / 2) % ITEM_ROWS][j], rows, row, column, EPILOGUE);
        }
}

/* (columns / ITEM_COLUMNS, rows / ITEM_ROWS, batch) */
__kernel void product(WEIGHT_PARAMETERS, COLUMN_PARAMETERS, EPILOGUE_PARAMETERS) {
    __local float left[GROUP_DEPTH * LEFT_STEP], right[GROUP_DEPTH * RIGHT_STEP];
    multiply_groups(0, left, right, WEIGHT, COLUMN, EPILOGUE_ARGUMENTS);
}

#ifdef F16_ARITHMETIC
__kernel void product_f16(WEIGHT_PARAMETERS, COLUMN_PARAMETERS, EPILOGUE_PARAMETERS) {
    __local float left[GROUP_DEPTH / 2 * LEFT_STEP], right[GROUP_DEPTH / 2 * RIGHT_STEP]; /* f16 in pairs */
    multiply_groups(1, left, right, WEIGHT, COLUMN, EPILOGUE_ARGUMENTS);
}
#endif

/* the product on a processor -------------------------------------------------------------------------------------- */

/* Each row and vector of a tile as X(row) and X(row, vector): named variables stay in registers. */
#define EACH_4(X)  X(0) X(1) X(2) X(3)
#define EACH_6(X)  EACH_4(X) X(4) X(5)
#define EACH_8(X)  EACH_6(X) X(6) X(7)
#define EACH_12(X) EACH_8(X) X(8) X(9) X(10) X(11)
#define EACH_ROW   CAT(EACH_, TILE_ROWS)
#define OF_1(X, r) X(r, 0)
#define OF_2(X, r) X(r, 0) X(r, 1)
#define OF_4(X, r) X(r, 0) X(r, 1) X(r, 2) X(r, 3)
#define OF_ROW     CAT(OF_, TILE_VECTORS)

/* Rows of the strip are so far apart that they do not evict each other. */
#define STRIP_STEP (TILE_DEPTH + 16)

/* strip (TILE_ROWS, count) = part k of the depth of an item's rows, rounded; zeros where there is no row. */
void load_strip(WEIGHT_PARAMETERS, int activation, int k, int count, float *strip) {
    const int rounding = compute == COMPUTE_INT8 ? 0 : compute;
    for (int i = 0; i < TILE_ROWS; i++, strip += STRIP_STEP) {
        const int row = product_row(get_global_id(0), i, TILE_ROWS, rows, activation);
        const float scale = row < rows && type == TYPE_I8 ? a_scale[a_scale_at + row] : 1.0f;
        const ulong step = transposed ? a_ld : 1, at = a_at + (transposed ? row : (ulong)row * a_ld) + k * step;
        int j = 0;
        for (; row < rows && !transposed && j + TILE_WIDTH <= count; j += TILE_WIDTH)
            STORE(CAT(VECTOR, _rounded)(weights_at(a, at + j, type) * scale, rounding, (VECTOR)(1.0f)), 0, strip + j);
        for (; j < count; j++)
            strip[j] = row < rows ? weight_rounded(a, at + j * step, type, scale, rounding) : 0.0f;
    }
}

/* sums (TILE_ROWS, PANEL), rows TILE_COLUMNS apart, += strip (TILE_ROWS, count) panel (count, PANEL). */
void multiply_tile(const float *strip, __global const float *panel, int count, float *sums) {
#define BEGIN(r, v)  VECTOR s##r##_##v = (VECTOR)(0.0f);
#define BEGIN_ROW(r) OF_ROW(BEGIN, r)
#define FETCH(r, v)  const VECTOR x##v = LOAD(v, panel);
#define STEP(r, v)   s##r##_##v = fma(w, x##v, s##r##_##v);
#define STEP_ROW(r)                                       \
    {                                                     \
        const VECTOR w = (VECTOR)(strip[r * STRIP_STEP]); \
        OF_ROW(STEP, r)                                   \
    }
#define END(r, v)  STORE(s##r##_##v + LOAD(v, sums + r * TILE_COLUMNS), v, sums + r * TILE_COLUMNS);
#define END_ROW(r) OF_ROW(END, r)
    EACH_ROW(BEGIN_ROW)
    for (int k = 0; k < count; k++, strip++, panel += PANEL) {
        OF_ROW(FETCH, 0)
        EACH_ROW(STEP_ROW)
    }
    EACH_ROW(END_ROW)
}

/* Row i of an item, whole vectors: value (count) = the activation of its sums, in place. */
void activate_row(float *sums, int i, int count, int rows, int row, int activation, float alpha,
                  __global const float *bias) {
    const VECTOR own = (VECTOR)(bias ? bias[row] : 0.0f);
    float *value = sums + i * TILE_COLUMNS;
    for (int j = 0; j < count; j += TILE_WIDTH)
        STORE(CAT(VECTOR, _activated)(fma(LOAD(0, value + j), (VECTOR)(alpha), own), activation), 0, value + j);
    if (activation != ACT_SWIGLU) return;
    const VECTOR other = (VECTOR)(bias ? bias[row + rows / 2] : 0.0f);
    const float *up = value + TILE_ROWS / 2 * TILE_COLUMNS;
    for (int j = 0; j < count; j += TILE_WIDTH)
        STORE(LOAD(0, value + j) * fma(LOAD(0, up + j), (VECTOR)(alpha), other), 0, value + j);
}

/* c (count) = residual + gate * value. */
void store_row(const float *value, int count, float gate, __global const float *residual, __global float *c) {
    int j = 0;
    for (; j + TILE_WIDTH <= count; j += TILE_WIDTH) {
        const VECTOR before = residual ? LOAD(0, residual + j) : (VECTOR)(0.0f);
        STORE(fma(LOAD(0, value + j), (VECTOR)(gate), before), 0, c + j);
    }
    for (; j < count; j++)
        c[j] = fma(value[j], gate, residual ? residual[j] : 0.0f);
}

/* panels (batch, of all columns, depth, PANEL). A work-item does TILE_ROWS rows and item_columns columns, whole panels
 * and at most TILE_COLUMNS. (rows / TILE_ROWS, columns / item_columns, batch) */
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void product_tile(WEIGHT_PARAMETERS,
                                                                          __global const float *panels, ulong panels_at,
                                                                          int columns, int item_columns,
                                                                          EPILOGUE_PARAMETERS) {
    const int batch = get_global_id(2), column = get_global_id(1) * item_columns;
    const int count = min(item_columns, columns - column), panel_count = (columns + PANEL - 1) / PANEL;
    float strip[TILE_ROWS * STRIP_STEP], sums[TILE_ROWS * TILE_COLUMNS];
    a_at += (ulong)batch * a_stride;
    panels += panels_at + ((ulong)batch * panel_count * PANEL + column) * depth;
    EPILOGUE_BEGIN(batch)
    for (int i = 0; i < TILE_ROWS * TILE_COLUMNS; i += TILE_WIDTH)
        STORE((VECTOR)(0.0f), 0, sums + i);
    for (int k = 0; k < depth; k += TILE_DEPTH) {
        const int part = min(TILE_DEPTH, depth - k);
        load_strip(WEIGHT, activation, k, part, strip);
        for (int j = 0; j < count; j += PANEL)
            multiply_tile(strip, panels + (ulong)j * depth + (ulong)k * PANEL, part, sums + j);
    }
    for (int i = 0; i < (activation == ACT_SWIGLU ? TILE_ROWS / 2 : TILE_ROWS); i++) {
        const int row = product_row(get_global_id(0), i, TILE_ROWS, rows, activation);
        if (row >= rows) continue;
        activate_row(sums, i, count, rows, row, activation, alpha, bias);
        for (int j = 0, next; j < count; j = next) { /* sample by sample, where the gate differs */
            const int at = first_column + column + j;
            next = gate ? min(count, j + (at / tokens + 1) * tokens - at) : count;
            store_row(sums + i * TILE_COLUMNS + j, next - j, gate_at_column(gate, gate_stride, tokens, row, at),
                      residual ? residual + (ulong)row * residual_ld + column + j : 0,
                      c + (ulong)row * c_ld + column + j);
        }
    }
}
