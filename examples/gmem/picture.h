/* Pictures from files: read by stb_image within limits, cropped as the published bank builder does, and as snippets. */
#ifndef PICTURE_H
#define PICTURE_H

#include "session.h"

typedef struct picture {
    uint8_t *pixels; /* (height, width, 3), sRGB, transparency on white; in the session's memory */
    int64_t height, width;
} picture;

/* Whether the file begins like one that stb_image reads. */
int is_picture(const char *path);
/* Reads a file within the limits of hardening: its size is checked before anything is decoded. */
outcome load_picture(session *s, const char *path, picture *out, gmem_error *error);
/* out (size, size, 3) */
outcome crop_picture(session *s, const picture *from, int64_t size, uint8_t *out, gmem_error *error);

/* The flags' image encoder, or the built-in model's, into s->encoder and s->encoder_info; once a session. */
outcome open_image_encoder(session *s, gmem_error *error);
/* The class token of a picture file, as it comes: out (s->encoder_info->width). Opens the encoder. */
outcome picture_feature(session *s, const char *path, float *out, gmem_error *error);
/* The same, L2-normalised, for a network or bank of that width. */
outcome picture_snippet(session *s, const char *path, int64_t width, float *out, gmem_error *error);

#endif /* PICTURE_H */
