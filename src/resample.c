/* Pictures to other sizes, in Pillow's 8-bit arithmetic: first along the rows, then along the columns, each time with
 * weights of 22 fractional bits and a result that is rounded and clamped to a byte. And the crop of the published bank
 * builder. */
#include "internal.h"

#include <math.h>

#define GMEM__RESIZE_BITS  22
#define GMEM__RESIZE_HALF  (1 << (GMEM__RESIZE_BITS - 1))
#define GMEM__RESIZE_MOST  ((int64_t)1 << GMEM__RESIZE_BITS) /* pixels on a side, or a mean's weights become zero */
#define GMEM__RESIZE_BLOCK 768                               /* bytes of a row that are summed at a time */

/* weights --------------------------------------------------------------------------------------------------------- */

static double gmem__resize_box(double x) { return x > -0.5 && x <= 0.5; }

/* Keys' cubic convolution (IEEE ASSP 29, 1981) with a = -1/2. */
static double gmem__resize_bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* Indexed by gmem_filter. */
static const struct {
    double support; /* the weight is zero beyond */
    double (*weight)(double x);
} gmem__resize_filters[] = {{0.5, gmem__resize_box}, {2, gmem__resize_bicubic}};

/* One direction: outputs [first, first + count) of `out`, made from `in` inputs. */
typedef struct gmem__resize_axis {
    int64_t in, out, first, count;
    int64_t taps;    /* most inputs that an output is made from */
    int64_t *begin;  /* (count) the first of them */
    int64_t *number; /* (count) how many there are */
    int32_t *weight; /* (count, taps) */
} gmem__resize_axis;

/* The weights of output i: the filter around the output's centre among the inputs, widened where it shrinks, cut off
 * at the picture's edges and made to sum to 1. `exact` (taps) is for intermediate values. */
static void gmem__resize_weigh(gmem__resize_axis *axis, gmem_filter filter, int64_t i, double *exact) {
    const double scale = (double)axis->in / (double)axis->out, wide = scale < 1 ? 1 : scale, narrow = 1.0 / wide;
    const double support = gmem__resize_filters[filter].support * wide;
    const double centre = ((double)(axis->first + i) + 0.5) * scale;
    const int64_t begin = gmem__max(0, (int64_t)(centre - support + 0.5));
    const int64_t number = gmem__min(axis->in, (int64_t)(centre + support + 0.5)) - begin;
    int32_t *weight = axis->weight + i * axis->taps;
    double sum = 0;
    for (int64_t k = 0; k < number; k++) {
        exact[k] = gmem__resize_filters[filter].weight(((double)(begin + k) - centre + 0.5) * narrow);
        sum += exact[k];
    }
    for (int64_t k = 0; sum != 0 && k < number; k++) {
        const double fixed = exact[k] / sum * (double)(1 << GMEM__RESIZE_BITS);
        weight[k] = (int32_t)(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    axis->begin[i] = begin;
    axis->number[i] = number;
}

static void gmem__resize_axis_free(const gmem_context *context, gmem__resize_axis *axis) {
    gmem__free(context, axis->begin, axis->count, sizeof *axis->begin);
    gmem__free(context, axis->number, axis->count, sizeof *axis->number);
    gmem__free(context, axis->weight, axis->count * axis->taps, sizeof *axis->weight);
}

/* Sizes are those of pictures that fit into memory, or were checked against GMEM__RESIZE_MOST. */
static gmem_status gmem__resize_axis_make(const gmem_context *context, gmem__resize_axis *axis, gmem_filter filter,
                                          gmem_error *error) {
    const double scale = (double)axis->in / (double)axis->out;
    axis->taps = 2 * (int64_t)ceil(gmem__resize_filters[filter].support * (scale < 1 ? 1 : scale)) + 1;
    axis->begin = (int64_t *)gmem__alloc(context, axis->count, sizeof *axis->begin);
    axis->number = (int64_t *)gmem__alloc(context, axis->count, sizeof *axis->number);
    axis->weight = (int32_t *)gmem__alloc(context, axis->count * axis->taps, sizeof *axis->weight);
    double *exact = (double *)gmem__alloc(context, axis->taps, sizeof *exact);
    const int complete = axis->begin && axis->number && axis->weight && exact;
    for (int64_t i = 0; complete && i < axis->count; i++)
        gmem__resize_weigh(axis, filter, i, exact);
    gmem__free(context, exact, axis->taps, sizeof *exact);
    if (complete) return GMEM_OK;
    gmem__resize_axis_free(context, axis);
    return gmem__fail(error, GMEM_E_MEMORY, "no memory to resize a picture");
}

/* passes ---------------------------------------------------------------------------------------------------------- */

static uint8_t gmem__resize_byte(int32_t sum) {
    if (sum < 0) return 0;
    sum >>= GMEM__RESIZE_BITS;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

/* from (rows, axis->in, 3) -> to (rows, axis->count, 3) */
static void gmem__resize_rows(const gmem__resize_axis *axis, int64_t rows, const uint8_t *from, uint8_t *to) {
    for (int64_t y = 0; y < rows; y++, from += 3 * axis->in) {
        for (int64_t i = 0; i < axis->count; i++, to += 3) {
            const uint8_t *pixel = from + 3 * axis->begin[i];
            const int32_t *weight = axis->weight + i * axis->taps;
            int32_t r = GMEM__RESIZE_HALF, g = GMEM__RESIZE_HALF, b = GMEM__RESIZE_HALF;
            for (int64_t k = 0; k < axis->number[i]; k++, pixel += 3) {
                r += weight[k] * pixel[0];
                g += weight[k] * pixel[1];
                b += weight[k] * pixel[2];
            }
            to[0] = gmem__resize_byte(r);
            to[1] = gmem__resize_byte(g);
            to[2] = gmem__resize_byte(b);
        }
    }
}

/* from (rows, bytes), whose first row is input `first` -> to (axis->count, bytes) */
static void gmem__resize_columns(const gmem__resize_axis *axis, int64_t first, int64_t bytes, const uint8_t *from,
                                 uint8_t *to) {
    int32_t sum[GMEM__RESIZE_BLOCK];
    for (int64_t i = 0; i < axis->count; i++, to += bytes) {
        const int32_t *weight = axis->weight + i * axis->taps;
        for (int64_t x = 0; x < bytes; x += GMEM__RESIZE_BLOCK) {
            const int64_t block = gmem__min(bytes - x, GMEM__RESIZE_BLOCK);
            for (int64_t j = 0; j < block; j++)
                sum[j] = GMEM__RESIZE_HALF;
            for (int64_t k = 0; k < axis->number[i]; k++) {
                const uint8_t *row = from + (axis->begin[i] - first + k) * bytes + x;
                for (int64_t j = 0; j < block; j++)
                    sum[j] += weight[k] * row[j];
            }
            for (int64_t j = 0; j < block; j++)
                to[x + j] = gmem__resize_byte(sum[j]);
        }
    }
}

/* Both passes; the first only over the rows that the second takes. */
static gmem_status gmem__resize_apply(const gmem_context *context, const gmem__resize_axis *down,
                                      const gmem__resize_axis *across, const uint8_t *pixels, uint8_t *out,
                                      gmem_error *error) {
    const int64_t last = down->count - 1, first = down->begin[0];
    const int64_t rows = down->begin[last] + down->number[last] - first, bytes = 3 * across->count;
    uint8_t *between = (uint8_t *)gmem__alloc_raw(context, rows, (size_t)bytes);
    if (!between) return gmem__fail(error, GMEM_E_MEMORY, "no memory to resize a picture");
    gmem__resize_rows(across, rows, pixels + first * 3 * across->in, between);
    gmem__resize_columns(down, first, bytes, between, out);
    gmem__free(context, between, rows, (size_t)bytes);
    return GMEM_OK;
}

/* pixels (down->in, across->in, 3) -> out (down->count, across->count, 3) */
static gmem_status gmem__resize(const gmem_context *context, gmem_filter filter, gmem__resize_axis *down,
                                gmem__resize_axis *across, const uint8_t *pixels, uint8_t *out, gmem_error *error) {
    GMEM__TRY(gmem__resize_axis_make(context, down, filter, error));
    gmem_status status = gmem__resize_axis_make(context, across, filter, error);
    if (status == GMEM_OK) {
        status = gmem__resize_apply(context, down, across, pixels, out, error);
        gmem__resize_axis_free(context, across);
    }
    gmem__resize_axis_free(context, down);
    return status;
}

static gmem__resize_axis gmem__resize_whole(int64_t in, int64_t out) {
    gmem__resize_axis axis;
    memset(&axis, 0, sizeof axis);
    axis.in = in;
    axis.out = axis.count = out;
    return axis;
}

static int gmem__resize_side(int64_t side) { return side >= 1 && side <= GMEM__RESIZE_MOST; }

GMEM_API gmem_status gmem_resize(gmem_context *context, gmem_filter filter, int64_t height, int64_t width,
                                 const uint8_t *pixels, int64_t out_height, int64_t out_width, uint8_t *out,
                                 gmem_error *error) {
    if (!context || !pixels || !out || (filter != GMEM_FILTER_BOX && filter != GMEM_FILTER_BICUBIC))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, a filter, pixels and room for the result are needed");
    if (!gmem__resize_side(height) || !gmem__resize_side(width) || !gmem__resize_side(out_height) ||
        !gmem__resize_side(out_width))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a side of a picture has 1 to %lld pixels",
                          (long long)GMEM__RESIZE_MOST);
    gmem__resize_axis down = gmem__resize_whole(height, out_height), across = gmem__resize_whole(width, out_width);
    return gmem__resize(context, filter, &down, &across, pixels, out, error);
}

/* cropping -------------------------------------------------------------------------------------------------------- */

/* A picture that is halved again and again; `owned` is NULL while it is still the caller's. */
typedef struct gmem__halving {
    int64_t height, width;
    const uint8_t *pixels; /* (height, width, 3) */
    uint8_t *owned;
} gmem__halving;

static void gmem__halving_free(const gmem_context *context, gmem__halving *picture) {
    gmem__free(context, picture->owned, picture->height, (size_t)(3 * picture->width));
}

static gmem_status gmem__halve(gmem_context *context, gmem__halving *picture, gmem_error *error) {
    gmem__halving half = {picture->height / 2, picture->width / 2, NULL, NULL};
    half.owned = (uint8_t *)gmem__alloc_raw(context, half.height, (size_t)(3 * half.width));
    if (!half.owned) return gmem__fail(error, GMEM_E_MEMORY, "no memory to halve a picture");
    half.pixels = half.owned;
    gmem_status status = gmem_resize(context, GMEM_FILTER_BOX, picture->height, picture->width, picture->pixels,
                                     half.height, half.width, half.owned, error);
    gmem__halving_free(context, status == GMEM_OK ? picture : &half);
    if (status == GMEM_OK) *picture = half;
    return status;
}

/* The middle `size` outputs of a side that is scaled, its length rounded to the even of two equally near ones. */
static gmem__resize_axis gmem__crop_axis(int64_t side, double scale, int64_t size) {
    gmem__resize_axis axis = gmem__resize_whole(side, (int64_t)rint((double)side * scale));
    axis.first = (axis.out - size) / 2;
    axis.count = size;
    return axis;
}

GMEM_API gmem_status gmem_center_crop(gmem_context *context, int64_t height, int64_t width, const uint8_t *pixels,
                                      int64_t size, uint8_t *out, gmem_error *error) {
    gmem__halving picture = {height, width, pixels, NULL};
    gmem_status status = GMEM_OK;
    if (!context || !pixels || !out)
        return gmem__fail(error, GMEM_E_ARGUMENT, "a context, pixels and room for the result are needed");
    if (!gmem__resize_side(height) || !gmem__resize_side(width) || !gmem__resize_side(size))
        return gmem__fail(error, GMEM_E_ARGUMENT, "a side of a picture has 1 to %lld pixels",
                          (long long)GMEM__RESIZE_MOST);
    while (status == GMEM_OK && gmem__min(picture.height, picture.width) >= 2 * size)
        status = gmem__halve(context, &picture, error);
    if (status == GMEM_OK) {
        const double scale = (double)size / (double)gmem__min(picture.height, picture.width);
        gmem__resize_axis down = gmem__crop_axis(picture.height, scale, size);
        gmem__resize_axis across = gmem__crop_axis(picture.width, scale, size);
        status = gmem__resize(context, GMEM_FILTER_BICUBIC, &down, &across, picture.pixels, out, error);
    }
    gmem__halving_free(context, &picture);
    return status;
}

#undef GMEM__RESIZE_BITS
#undef GMEM__RESIZE_HALF
#undef GMEM__RESIZE_MOST
#undef GMEM__RESIZE_BLOCK
