/* The GEMM's right operand, cut into panels that a micro-kernel reads from front to back: columns of a matrix, or the
 * patches of an image under a convolution (im2col, one block at a time). */
#include "cpu.h"

/* Row after row, as they lie in memory; nr is a multiple of 16. */
static void gmem__pack_matrix(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns,
                              int64_t nr, int64_t panel_step, float *panels) {
    for (int64_t i = 0; i < depth; i++, panels += nr) {
        const float *x = gemm->x + (k + i) * gemm->x_stride + column;
        float *out = panels;
        for (int64_t left = columns; left > 0; left -= nr, x += nr, out += panel_step) {
            if (left >= nr) {
                for (int64_t j = 0; j < nr; j += 16)
                    memcpy(out + j, x + j, 16 * sizeof *out);
            } else {
                memcpy(out, x, (size_t)left * sizeof *out);
                memset(out + left, 0, (size_t)(nr - left) * sizeof *out);
            }
        }
    }
}

/* One tap of the kernel over `count` neighbouring pixels of one output row. `line` (width): the input row under the
 * tap, NULL in the padding; `at`: the first tap's place in it, at the doubled scale where conv->upsample. */
static void gmem__pack_pixels(const gmem__conv *conv, const float *line, int64_t at, int64_t count, float *out) {
    const int64_t width = line ? conv->width << conv->upsample : 0;
    const int64_t begin = at < 0 ? 1 : 0; /* the left padding is one pixel wide at most */
    const int64_t end = gmem__min(count, gmem__max(begin, gmem__ceil_div(gmem__max(0, width - at), conv->stride)));
    for (int64_t i = 0; i < begin; i++)
        out[i] = 0;
    if (line && conv->stride == 1 && !conv->upsample) {
        memcpy(out + begin, line + at + begin, (size_t)(end - begin) * sizeof *out);
    } else if (line) {
        for (int64_t i = begin; i < end; i++)
            out[i] = line[(at + i * conv->stride) >> conv->upsample];
    }
    for (int64_t i = line ? end : begin; i < count; i++)
        out[i] = 0;
}

static void gmem__pack_patches(const gmem__conv *conv, int64_t k, int64_t depth, int64_t column, int64_t count,
                               int64_t nr, float *panel) {
    const int64_t kernel = conv->kernel, pad = kernel == 3 && conv->stride == 1;
    const int64_t height = conv->height << conv->upsample, width = conv->width << conv->upsample;
    const int64_t out_width = width / conv->stride;
    const int64_t top = column / out_width, left = column % out_width;
    int64_t channel = k / (kernel * kernel), ky = k / kernel % kernel, kx = k % kernel;
    for (int64_t i = 0; i < depth; i++, panel += nr) {
        const float *plane = conv->x + channel * conv->height * conv->width;
        int64_t y = top, x = left, done = 0;
        while (done < count) { /* the panel's columns may span several output rows */
            const int64_t pixels = gmem__min(count - done, out_width - x), row = y * conv->stride + ky - pad;
            const float *line = row >= 0 && row < height ? plane + (row >> conv->upsample) * conv->width : NULL;
            gmem__pack_pixels(conv, line, x * conv->stride + kx - pad, pixels, panel + done);
            done += pixels;
            x = 0;
            y++;
        }
        for (int64_t j = count; j < nr; j++)
            panel[j] = 0;
        if (++kx == kernel) kx = 0, ky++;
        if (ky == kernel) ky = 0, channel++;
    }
}

GMEM__FN void gmem__pack(const gmem__gemm *gemm, int64_t k, int64_t depth, int64_t column, int64_t columns, int64_t nr,
                         int64_t panel_step, float *panels) {
    if (!gemm->conv) {
        gmem__pack_matrix(gemm, k, depth, column, columns, nr, panel_step, panels);
        return;
    }
    for (int64_t done = 0; done < columns; done += nr, panels += panel_step)
        gmem__pack_patches(gemm->conv, k, depth, column + done, gmem__min(nr, columns - done), nr, panels);
}
