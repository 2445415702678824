/* PGM and PPM: a short header of decimal numbers, with comments between them, then the rows of bytes or of big-endian
 * pairs (netpbm's pgm(5) and ppm(5)). */
#include "pnm.h"

static int is_space(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int is_digit(int c) { return c >= '0' && c <= '9'; }

/* The first byte that belongs to no space and no comment. */
static int skip_space(FILE *file) {
    int c = getc(file);
    while (c == '#' || is_space(c)) {
        if (c == '#') {
            while (c != '\n' && c != '\r' && c != EOF) {
                c = getc(file);
            }
        } else {
            c = getc(file);
        }
    }
    return c;
}

/* The next number, up to `most`, and the one space behind it; -1 where there is none. */
static int64_t read_number(FILE *file, int64_t most) {
    int64_t value = 0;
    int c = skip_space(file);
    if (!is_digit(c)) return -1;
    for (; is_digit(c); c = getc(file)) {
        if (value <= most) value = 10 * value + (c - '0');
    }
    return is_space(c) && value <= most ? value : -1;
}

const char *pnm_read_header(FILE *file, pnm_header *out) {
    const int first = getc(file), second = getc(file);
    if (first != 'P' || (second != '5' && second != '6')) return "not a binary PGM or PPM file";
    out->channels = second == '5' ? 1 : 3;
    out->width = read_number(file, 1000000000);
    out->height = read_number(file, 1000000000);
    const int64_t greatest = read_number(file, 65535);
    if (out->width < 0 || out->height < 0 || greatest < 1) return "a malformed PNM header";
    out->greatest = (int)greatest;
    return NULL;
}

/* One sample, scaled to 255; -1 at the end of the file. */
static int read_sample(FILE *file, int greatest) {
    int value = getc(file);
    if (greatest > 255 && value != EOF) {
        const int low = getc(file);
        value = low == EOF ? EOF : 256 * value + low;
    }
    if (value == EOF) return -1;
    if (value > greatest) value = greatest;
    return (value * 255 + greatest / 2) / greatest;
}

const char *pnm_read_pixels(FILE *file, const pnm_header *header, uint8_t *out) {
    const int64_t pixels = header->width * header->height;
    for (int64_t i = 0; i < pixels; i++, out += 3) {
        for (int c = 0; c < header->channels; c++) {
            const int value = read_sample(file, header->greatest);
            if (value < 0) return "the file ends too early";
            out[c] = (uint8_t)value;
        }
        if (header->channels == 1) out[1] = out[2] = out[0];
    }
    return NULL;
}
