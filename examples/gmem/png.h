/* PNG files with text chunks. */
#ifndef PNG_H
#define PNG_H

#include <stddef.h>

typedef struct png_text {
    const char *key, *value; /* UTF-8 */
} png_text;

/* pixels (height, width, 3) -> the bytes of a PNG file, to be freed with free; NULL without memory. */
unsigned char *png_encode(const unsigned char *pixels, int width, int height, const png_text *texts, int text_count,
                          size_t *bytes);

#endif /* PNG_H */
