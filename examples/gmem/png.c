/* PNG: stb_image_write makes the picture, and text chunks are put between its header and its data. */
#include "png.h"

#include "crc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wshadow"
#endif
#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include "examples/stb/stb_image_write.h"
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC diagnostic pop
#endif

#define HEADER_BYTES 33 /* signature and IHDR */

static uint32_t crc32_of(const unsigned char *data, size_t bytes) {
    crc_table table;
    crc_prepare(&table);
    return crc_add(&table, 0, data, bytes);
}

static void put_u32(unsigned char *out, uint32_t value) {
    for (int i = 0; i < 4; i++) {
        out[i] = (unsigned char)(value >> (24 - 8 * i));
    }
}

static int is_ascii(const char *text) {
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || (unsigned char)*text > 0x7e) return 0;
    }
    return 1;
}

/* tEXt for ASCII; iTXt, which is UTF-8, for the rest: keyword, 0, no compression, language "", translation "". */
static size_t put_text(unsigned char *out, const png_text *text) {
    static const char between[5] = {0, 0, 0, 0, 0};
    int plain = is_ascii(text->value);
    size_t key = strlen(text->key), value = strlen(text->value), gap = plain ? 1 : sizeof between;
    size_t length = key + gap + value;
    if (out) {
        put_u32(out, (uint32_t)length);
        memcpy(out + 4, plain ? "tEXt" : "iTXt", 4);
        memcpy(out + 8, text->key, key);
        memcpy(out + 8 + key, between, gap);
        memcpy(out + 8 + key + gap, text->value, value);
        put_u32(out + 8 + length, crc32_of(out + 4, length + 4));
    }
    return length + 12;
}

unsigned char *png_encode(const unsigned char *pixels, int width, int height, const png_text *texts, int text_count,
                          size_t *bytes) {
    int length = 0;
    size_t text_bytes = 0;
    unsigned char *picture = stbi_write_png_to_mem(pixels, 3 * width, width, height, 3, &length);
    if (!picture) return NULL;
    for (int i = 0; i < text_count; i++) {
        text_bytes += put_text(NULL, &texts[i]);
    }
    unsigned char *out = (unsigned char *)malloc((size_t)length + text_bytes);
    if (out) {
        size_t used = HEADER_BYTES;
        memcpy(out, picture, HEADER_BYTES);
        for (int i = 0; i < text_count; i++) {
            used += put_text(out + used, &texts[i]);
        }
        memcpy(out + used, picture + HEADER_BYTES, (size_t)length - HEADER_BYTES);
        *bytes = (size_t)length + text_bytes;
    }
    free(picture);
    return out;
}
