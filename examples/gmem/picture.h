/* Pictures from files: read by stb_image within limits, cropped as the published bank builder does, and as snippets. */
#ifndef PICTURE_H
#define PICTURE_H

#include "session.h"

typedef struct picture {
    uint8_t *pixels; /* (height, width, 3), sRGB, transparency on white */
    int64_t height, width;
} picture;

/* Whether the file begins like one that read_picture reads; TGA, which begins like nothing, by its ending. */
int is_picture(const char *path);
/* Whether the name ends like a picture's. */
int has_picture_name(const char *path);
/* Reads a PNG, JPEG, BMP, PSD, TGA or PNM file, or a GIF's first picture. Its size is checked before anything is
 * decoded; a file that ends too early is refused. Safe from several threads. free_picture gives the memory back. */
outcome read_picture(const char *path, picture *out, gmem_error *error);
void free_picture(picture *p);
/* The same in the session's memory. */
outcome load_picture(session *s, const char *path, picture *out, gmem_error *error);
/* out (size, size, 3). Safe from several threads. */
outcome crop_picture(session *s, const picture *from, int64_t size, uint8_t *out, gmem_error *error);
/* A file's crop: out (size, size, 3). Safe from several threads. */
outcome read_crop(session *s, const char *path, int64_t size, uint8_t *out, gmem_error *error);
/* Many of them on the session's threads: out (count, size, size, 3), and results and errors (count). */
void read_crops(session *s, int64_t count, const char *const *paths, int64_t size, uint8_t *out, outcome *results,
                gmem_error *errors);

/* The flags' image encoder, or the built-in model's, into s->encoder and s->encoder_info; once a session. */
outcome open_image_encoder(session *s, gmem_error *error);
/* pixels (count, size, size, 3) of crops, size being s->encoder_info->picture_size -> features; either may be NULL. */
outcome crop_features(session *s, int64_t count, const uint8_t *pixels, float *cls, float *patch, gmem_error *error);
/* Picture files to features; one that cannot be read is an error. crops (count, picture_size, picture_size, 3). */
outcome picture_features(session *s, int64_t count, const char *const *paths, uint8_t *crops, float *cls, float *patch,
                         gmem_error *error);
/* Whether features are of use in a bank: neither zero nor infinite nor no number. */
int has_direction(const float *features, int64_t width);
/* The class token of a picture file, as it comes: out (s->encoder_info->width). Opens the encoder. */
outcome picture_feature(session *s, const char *path, float *out, gmem_error *error);
/* The same, L2-normalised, for a network or bank of that width. */
outcome picture_snippet(session *s, const char *path, int64_t width, float *out, gmem_error *error);

#endif /* PICTURE_H */
