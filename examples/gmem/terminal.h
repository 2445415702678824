/* Pictures in the terminal. */
#ifndef TERMINAL_H
#define TERMINAL_H

#include <stddef.h>

/* Prints a picture on standard output in the best way that the terminal is known to understand: kitty's and iTerm2's
 * protocols take the PNG, sixel and blocks of half a character the pixels (height, width, 3). */
void terminal_show(const unsigned char *pixels, int width, int height, const unsigned char *png, size_t png_bytes);

#endif /* TERMINAL_H */
