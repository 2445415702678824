/* Pictures in the terminal. What it understands is told from the environment alone: asking it could block. */
#define _DEFAULT_SOURCE
#include "terminal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

typedef enum protocol { PROTOCOL_BLOCKS, PROTOCOL_KITTY, PROTOCOL_ITERM, PROTOCOL_SIXEL } protocol;

static int variable_has(const char *name, const char *part) {
    const char *value = getenv(name);
    return value && strstr(value, part) != NULL;
}

static protocol detect(void) {
    if (!isatty(STDOUT_FILENO) || getenv("TMUX") || variable_has("TERM", "screen")) return PROTOCOL_BLOCKS;
    if (getenv("KITTY_WINDOW_ID") || variable_has("TERM", "kitty") || variable_has("TERM", "ghostty") ||
        variable_has("TERM_PROGRAM", "ghostty"))
        return PROTOCOL_KITTY;
    if (variable_has("TERM_PROGRAM", "iTerm") || variable_has("TERM_PROGRAM", "WezTerm") ||
        variable_has("LC_TERMINAL", "iTerm"))
        return PROTOCOL_ITERM;
    if (variable_has("TERM", "sixel") || variable_has("TERM", "mlterm") || variable_has("TERM", "foot") ||
        variable_has("TERM", "contour") || variable_has("TERM", "yaft"))
        return PROTOCOL_SIXEL;
    return PROTOCOL_BLOCKS;
}

static int terminal_columns(void) {
    struct winsize size;
    const char *columns = getenv("COLUMNS");
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    int count = columns ? atoi(columns) : 0;
    return count > 0 && count < 10000 ? count : 80;
}

/* base64 of data, at most `limit` bytes of it. */
static void print_base64(const unsigned char *data, size_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < bytes; i += 3) {
        unsigned group = (unsigned)data[i] << 16;
        if (i + 1 < bytes) group |= (unsigned)data[i + 1] << 8;
        if (i + 2 < bytes) group |= data[i + 2];
        putchar(digits[group >> 18]);
        putchar(digits[group >> 12 & 63]);
        putchar(i + 1 < bytes ? digits[group >> 6 & 63] : '=');
        putchar(i + 2 < bytes ? digits[group & 63] : '=');
    }
}

/* kitty: APC G, PNG data in chunks of at most 4096 base64 characters. */
static void show_kitty(const unsigned char *png, size_t bytes) {
    const size_t chunk = 3072;
    for (size_t i = 0; i < bytes; i += chunk) {
        size_t length = bytes - i < chunk ? bytes - i : chunk;
        printf("\033_G%sm=%d;", i == 0 ? "a=T,f=100," : "", i + chunk < bytes);
        print_base64(png + i, length);
        fputs("\033\\", stdout);
    }
    putchar('\n');
}

/* iTerm2: OSC 1337. */
static void show_iterm(const unsigned char *png, size_t bytes) {
    printf("\033]1337;File=inline=1;size=%lu:", (unsigned long)bytes);
    print_base64(png, bytes);
    fputs("\a\n", stdout);
}

/* Sixel: bands of six lines, a pass for each colour of a cube of 6 x 6 x 6 levels. */
static int sixel_colour(const unsigned char *pixel) {
    return (pixel[0] * 5 + 127) / 255 * 36 + (pixel[1] * 5 + 127) / 255 * 6 + (pixel[2] * 5 + 127) / 255;
}

static void sixel_band(const unsigned char *pixels, int width, int lines, int colour) {
    int run = 0;
    char previous = 0;
    for (int x = 0; x <= width; x++) {
        int bits = 0;
        for (int y = 0; x < width && y < lines; y++) {
            bits |= (sixel_colour(pixels + 3 * ((size_t)y * (size_t)width + (size_t)x)) == colour) << y;
        }
        char now = x < width ? (char)(63 + bits) : 0;
        if (now == previous) {
            run++;
            continue;
        }
        if (run > 3) {
            printf("!%d%c", run, previous);
        } else {
            for (; run > 0; run--) {
                putchar(previous);
            }
        }
        previous = now;
        run = 1;
    }
}

static void show_sixel(const unsigned char *pixels, int width, int height) {
    printf("\033Pq\"1;1;%d;%d", width, height);
    for (int colour = 0; colour < 216; colour++) {
        printf("#%d;2;%d;%d;%d", colour, colour / 36 * 20, colour / 6 % 6 * 20, colour % 6 * 20);
    }
    for (int y = 0; y < height; y += 6) {
        int lines = height - y < 6 ? height - y : 6;
        const unsigned char *band = pixels + 3 * (size_t)y * (size_t)width;
        unsigned char used[216] = {0};
        for (int i = 0; i < lines * width; i++) {
            used[sixel_colour(band + 3 * i)] = 1;
        }
        for (int colour = 0; colour < 216; colour++) {
            if (!used[colour]) continue;
            printf("#%d", colour);
            sixel_band(band, width, lines, colour);
            putchar('$');
        }
        putchar('-');
    }
    fputs("\033\\\n", stdout);
}

/* The mean of the pixels [x0, x1) x [y0, y1). */
static void box_mean(const unsigned char *pixels, int width, int x0, int y0, int x1, int y1, int out[3]) {
    long sum[3] = {0, 0, 0};
    for (int y = y0; y < y1; y++) {
        for (int x = x0; x < x1; x++) {
            for (int c = 0; c < 3; c++) {
                sum[c] += pixels[3 * ((size_t)y * (size_t)width + (size_t)x) + (size_t)c];
            }
        }
    }
    for (int c = 0; c < 3; c++) {
        out[c] = (int)(sum[c] / ((long)(x1 - x0) * (y1 - y0)));
    }
}

/* Two pixels a character: the upper half block in the upper one's colour on the lower one's. */
static void show_blocks(const unsigned char *pixels, int width, int height) {
    int columns = terminal_columns();
    if (columns > width) columns = width;
    int lines = (int)((long)height * columns / width);
    lines += lines % 2;
    for (int y = 0; y < lines; y += 2) {
        for (int x = 0; x < columns; x++) {
            int upper[3], lower[3], x0 = x * width / columns, x1 = (x + 1) * width / columns;
            int top = y * height / lines, middle = (y + 1) * height / lines, bottom = (y + 2) * height / lines;
            box_mean(pixels, width, x0, top, x1, middle > top ? middle : top + 1, upper);
            box_mean(pixels, width, x0, middle < height ? middle : height - 1, x1, bottom > middle ? bottom : height,
                     lower);
            printf("\033[38;2;%d;%d;%dm\033[48;2;%d;%d;%dm\xe2\x96\x80", upper[0], upper[1], upper[2], lower[0],
                   lower[1], lower[2]);
        }
        fputs("\033[0m\n", stdout);
    }
}

void terminal_show(const unsigned char *pixels, int width, int height, const unsigned char *png, size_t png_bytes) {
    switch (detect()) {
    case PROTOCOL_KITTY:
        show_kitty(png, png_bytes);
        break;
    case PROTOCOL_ITERM:
        show_iterm(png, png_bytes);
        break;
    case PROTOCOL_SIXEL:
        show_sixel(pixels, width, height);
        break;
    case PROTOCOL_BLOCKS:
        show_blocks(pixels, width, height);
        break;
    }
}
