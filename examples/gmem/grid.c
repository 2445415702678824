/* The labelled grid. Letters are stb_easy_font's, cut where the picture above ends. */
#include "grid.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-braces"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#include "examples/stb/stb_easy_font.h"
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif

#define LABEL_BYTES 64
#define QUAD_BYTES  (4 * 16) /* a quad's vertices: x, y, z, colour */
#define MAX_PIXELS  (1 << 28)
static const int margin = 8, letter_height = 10;

static int label_height(const grid *g) { return g->scale ? g->scale * letter_height + margin / 2 : 0; }

int grid_make(grid *g, int count, int columns, int cell_width, int cell_height, int labelled) {
    memset(g, 0, sizeof *g);
    g->columns = columns;
    g->rows = (count + columns - 1) / columns;
    g->cell_width = cell_width;
    g->cell_height = cell_height;
    g->scale = !labelled ? 0 : cell_width >= 192 ? 2 : 1;
    int64_t width = cell_width, height = cell_height;
    if (count > 1 || labelled) {
        width = margin + (int64_t)g->columns * (cell_width + margin);
        height = margin + (int64_t)g->rows * (cell_height + label_height(g) + margin);
    }
    if (width * height > MAX_PIXELS) return 0;
    g->width = (int)width;
    g->height = (int)height;
    g->pixels = (unsigned char *)malloc((size_t)(width * height * 3));
    if (!g->pixels) return 0;
    memset(g->pixels, 255, (size_t)(width * height * 3));
    return 1;
}

void grid_free(grid *g) { free(g->pixels); }

static void fill_box(grid *g, int left, int top, int right, int bottom) {
    for (int y = top; y < bottom; y++) {
        for (int x = left; x < right; x++) {
            if (x >= 0 && y >= 0 && x < g->width && y < g->height)
                memset(g->pixels + 3 * ((int64_t)y * g->width + x), 40, 3);
        }
    }
}

/* Copies as many letters as fit, with two dots where something is cut; other than ASCII becomes '?'. */
static void fit_label(const grid *g, const char *label, char *out) {
    int length = 0;
    for (; *label && length < LABEL_BYTES - 4; label++) {
        unsigned char c = (unsigned char)*label;
        if ((c & 0xc0) == 0x80) continue; /* the rest of a UTF-8 sequence */
        out[length++] = c >= 0x20 && c < 0x7f ? (char)c : '?';
    }
    out[length] = 0;
    int cut = *label != 0;
    while (length > 0 && (cut || stb_easy_font_width(out) * g->scale > g->cell_width)) {
        memcpy(out + --length, "..", 3);
        cut = 0;
        if (stb_easy_font_width(out) * g->scale <= g->cell_width) return;
    }
}

static void draw_label(grid *g, int left, int top, const char *label) {
    static unsigned char quads[LABEL_BYTES * 270 * 2];
    char text[LABEL_BYTES];
    fit_label(g, label, text);
    int indent = (g->cell_width - stb_easy_font_width(text) * g->scale) / 2;
    int count = stb_easy_font_print(0, 0, text, NULL, quads, (int)sizeof quads);
    for (int i = 0; i < count; i++) {
        float first[2], third[2]; /* opposite corners */
        memcpy(first, quads + i * QUAD_BYTES, sizeof first);
        memcpy(third, quads + i * QUAD_BYTES + 2 * 16, sizeof third);
        fill_box(g, left + indent + g->scale * (int)first[0], top + g->scale * (int)first[1],
                 left + indent + g->scale * (int)third[0], top + g->scale * (int)third[1]);
    }
}

void grid_put(grid *g, int index, const unsigned char *cell, const char *label) {
    int lone = g->width == g->cell_width;
    int left = lone ? 0 : margin + index % g->columns * (g->cell_width + margin);
    int top = lone ? 0 : margin + index / g->columns * (g->cell_height + label_height(g) + margin);
    for (int y = 0; y < g->cell_height; y++) {
        memcpy(g->pixels + 3 * ((int64_t)(top + y) * g->width + left), cell + 3 * (int64_t)y * g->cell_width,
               3 * (size_t)g->cell_width);
    }
    if (g->scale) draw_label(g, left, top + g->cell_height + margin / 2, label);
}
