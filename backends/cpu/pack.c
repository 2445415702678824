/* The GEMM's right operand, cut into panels that a micro-kernel reads from front to back: columns of a matrix, or the
 * patches of an image under a convolution (im2col, one block at a time). */
#include "cpu.h"

/* Columns [lane, lane + count) of one row of the panels: `out` is the row's first column in the first panel. */
static void gmem__pack_row(float *out, int64_t panel_step, int64_t nr, int64_t lane, const float *x, int64_t count) {
    while (count > 0) {
        const int64_t lanes = gmem__min(nr - lane, count);
        if (lanes % 16 == 0) { /* the rule, and inlined */
            for (int64_t i = 0; i < lanes; i += 16)
                memcpy(out + lane + i, x + i, 16 * sizeof *x);
        } else {
            memcpy(out + lane, x, (size_t)lanes * sizeof *x);
        }
        x += lanes;
        count -= lanes;
        out += panel_step;
        lane = 0;
    }
}

static void gmem__pack_matrix(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns,
                              int64_t nr, int64_t panel_step, float *panels) {
    for (int64_t i = 0; i < depth; i++)
        gmem__pack_row(panels + i * nr, panel_step, nr, 0, gemm->x + (k + i) * gemm->x_stride + column, columns);
}

/* `count` neighbouring pixels of input row `row`, from `x` on, as the kernel sees them: doubled where conv->upsample,
 * zero outside. Where they lie, or copied to `line`. The next channel's are asked for: they are a plane away. */
static const float *gmem__pack_line(const gmem__conv *conv, int64_t channel, int64_t row, int64_t x, int64_t count,
                                    float *line) {
    const int64_t height = conv->height << conv->upsample, width = conv->width << conv->upsample;
    const int inside = row >= 0 && row < height;
    const float *pixels = conv->x + (channel * conv->height + (inside ? row >> conv->upsample : 0)) * conv->width;
    const int64_t begin = inside ? gmem__min(count, gmem__max(0, -x)) : count;
    const int64_t end = gmem__max(begin, gmem__min(count, width - x));
    if (inside && channel + 1 < conv->in_channels) {
        const float *next = pixels + conv->height * conv->width + x;
        for (int64_t i = 0; i < count; i += 16)
            GMEM__PREFETCH(next + i);
    }
    if (begin == 0 && end == count && !conv->upsample) return pixels + x;
    for (int64_t i = 0; i < begin; i++)
        line[i] = 0;
    if (conv->upsample) {
        for (int64_t i = begin; i < end; i++)
            line[i] = pixels[(x + i) >> 1];
    } else {
        memcpy(line + begin, pixels + x + begin, (size_t)(end - begin) * sizeof *line);
    }
    for (int64_t i = end; i < count; i++)
        line[i] = 0;
    return line;
}

/* The taps [k, k + depth) over `count` neighbouring pixels of one output row, which are the panels' columns from
 * `lane` on. Whole rows at a time, as the planes of an image are apart by powers of two and evict each other. */
static void gmem__pack_pixels(const gmem__conv *conv, int64_t k, int64_t depth, int64_t out_row, int64_t out_x,
                              int64_t count, int64_t lane, int64_t nr, int64_t panel_step, float *panels) {
    const int64_t kernel = conv->kernel, stride = conv->stride, pad = kernel == 3 && stride == 1;
    int64_t channel = k / (kernel * kernel), ky = k / kernel % kernel, kx = k % kernel;
    const float *line = NULL;
    float buffer[2 * GMEM__NC + 3], skipped[GMEM__NC];
    for (int64_t i = 0; i < depth; i++) {
        if (!line)
            line = gmem__pack_line(conv, channel, out_row * stride + ky - pad, out_x * stride - pad,
                                   (count - 1) * stride + kernel, buffer);
        const float *pixels = line + kx;
        if (stride > 1) {
            for (int64_t j = 0; j < count; j++)
                skipped[j] = pixels[j * stride];
            pixels = skipped;
        }
        gmem__pack_row(panels + i * nr, panel_step, nr, lane, pixels, count);
        if (++kx < kernel) continue;
        line = NULL;
        kx = 0;
        if (++ky == kernel) ky = 0, channel++;
    }
}

static void gmem__pack_image(const gmem__conv *conv, int64_t k, int64_t depth, int64_t column, int64_t columns,
                             int64_t nr, int64_t panel_step, float *panels) {
    const int64_t out_width = (conv->width << conv->upsample) / conv->stride;
    for (int64_t done = 0, count; done < columns; done += count) { /* up to the end of each output row */
        const int64_t x = (column + done) % out_width;
        count = gmem__min(gmem__min(columns - done, GMEM__NC), out_width - x);
        gmem__pack_pixels(conv, k, depth, (column + done) / out_width, x, count, done % nr, nr, panel_step,
                          panels + done / nr * panel_step);
    }
}

/* lines ----------------------------------------------------------------------------------------------------------- */

GMEM__FN int64_t gmem__line_width(const gmem__conv *conv, int64_t nr) {
    const int64_t width = conv->width << conv->upsample;
    const int whole = width % GMEM__NC == 0 || GMEM__NC % width == 0; /* no tile ends within a line */
    return conv->kernel == 3 && conv->stride == 1 && width % nr == 0 && whole ? gmem__min(width, GMEM__NC) : 0;
}

GMEM__FN gmem__lines gmem__lines_of(int64_t width) {
    gmem__lines lines;
    lines.width = width;
    lines.step = gmem__round_up(width + 2, 8);
    lines.channel_step = width ? (GMEM__NC / width + 2) * lines.step : 0;
    return lines;
}

GMEM__FN void gmem__pack_lines(const gmem__gemm *gemm, const gmem__lines *lines, int64_t first, int64_t channels,
                               const gmem__tile *tile, float *out) {
    const gmem__conv *conv = gemm->conv;
    const int64_t width = conv->width << conv->upsample, count = lines->width + 2;
    const int64_t row = tile->column / width, x = tile->column % width, rows = tile->columns / lines->width;
    for (int64_t channel = first; channel < first + channels; channel++, out += lines->channel_step)
        for (int64_t r = 0; r < rows + 2; r++) {
            float *to = out + r * lines->step;
            const float *line = gmem__pack_line(conv, channel, row + r - 1, x - 1, count, to);
            if (line != to) memcpy(to, line, (size_t)count * sizeof *line);
        }
}

/* words of bf16 -------------------------------------------------------------------------------------------------- */

/* The taps of some pixels one after the other. A line serves the taps of one row of the kernel; the one before it
 * stays, as two neighbouring taps make a word. */
typedef struct gmem__conv_taps {
    const gmem__conv *conv;
    int64_t row, x, count; /* of the output */
    int64_t channel, ky, kx;
    const float *line; /* NULL: to be read */
    int which;         /* of the buffers, for the next line */
    float buffer[2][GMEM__NC + 2];
} gmem__conv_taps;

static void gmem__begin_taps(gmem__conv_taps *taps, int64_t k) {
    const int64_t kernel = taps->conv->kernel;
    taps->channel = k / (kernel * kernel);
    taps->ky = k / kernel % kernel;
    taps->kx = k % kernel;
    taps->line = NULL;
    taps->which = 0;
}

static const float *gmem__next_tap(gmem__conv_taps *taps) {
    const int64_t kernel = taps->conv->kernel, pad = kernel == 3;
    if (!taps->line) {
        taps->line = gmem__pack_line(taps->conv, taps->channel, taps->row + taps->ky - pad, taps->x - pad,
                                     taps->count - 1 + kernel, taps->buffer[taps->which]);
        taps->which ^= 1;
    }
    const float *tap = taps->line + taps->kx;
    if (++taps->kx < kernel) return tap;
    taps->line = NULL;
    taps->kx = 0;
    if (++taps->ky == kernel) taps->ky = 0, taps->channel++;
    return tap;
}

static int64_t gmem__conv_width(const gmem__conv *conv) { return (conv->width << conv->upsample) / conv->stride; }

GMEM__FN int gmem__packs_words(const gmem__gemm *gemm, int64_t nr, int64_t column, int64_t columns) {
    const gmem__conv *conv = gemm->conv;
    return conv && conv->stride == 1 && gmem__conv_width(conv) % nr == 0 && column % nr == 0 && columns % nr == 0;
}

GMEM__FN void gmem__pack_words(const gmem__gemm *gemm, const gmem__narrow_rows *convert, int64_t nr, int64_t k,
                               int64_t words, int64_t column, int64_t columns, uint32_t *panels, int64_t panel_step) {
    static const float zeros[GMEM__NC] = {0};
    const int64_t width = gmem__conv_width(gemm->conv);
    gmem__conv_taps taps;
    taps.conv = gemm->conv;
    for (int64_t done = 0; done < columns; done += taps.count) { /* up to the end of each output row */
        uint32_t *panel = panels + done / nr * panel_step;
        taps.row = (column + done) / width;
        taps.x = (column + done) % width;
        taps.count = gmem__min(gmem__min(columns - done, GMEM__NC), width - taps.x);
        gmem__begin_taps(&taps, k);
        for (int64_t word = 0, left = gemm->depth - k; word < words; word++, left -= 2, panel += nr) {
            const float *low = left > 0 ? gmem__next_tap(&taps) : zeros;
            convert->pair(low, left > 1 ? gmem__next_tap(&taps) : zeros, taps.count, nr, panel, panel_step);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------------- */

GMEM__FN void gmem__pack(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns, int64_t nr,
                         int64_t panel_step, float *panels) {
    const int64_t rest = columns % nr;
    if (gemm->conv)
        gmem__pack_image(gemm->conv, k, depth, column, columns, nr, panel_step, panels);
    else
        gmem__pack_matrix(gemm, k, depth, column, columns, nr, panel_step, panels);
    for (int64_t i = 0; rest && i < depth; i++)
        memset(panels + columns / nr * panel_step + i * nr + rest, 0, (size_t)(nr - rest) * sizeof *panels);
}
