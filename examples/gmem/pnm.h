/* Binary PGM and PPM pictures of 8 and 16 bits. stb_image reads the same files, but not with every greatest value. */
#ifndef PNM_H
#define PNM_H

#include <stdint.h>
#include <stdio.h>

typedef struct pnm_header {
    int64_t width, height;
    int channels, greatest; /* 1 or 3; what stands for full brightness, 1 to 65535 */
} pnm_header;

/* Reads up to where the pixels begin. NULL, or what is wrong. */
const char *pnm_read_header(FILE *file, pnm_header *out);
/* Then the pixels: out (height, width, 3), scaled to 255. NULL, or what is wrong. */
const char *pnm_read_pixels(FILE *file, const pnm_header *header, uint8_t *out);

#endif /* PNM_H */
