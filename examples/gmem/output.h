/* Where pictures go: one file, a labelled grid, or a file each; with what made them in text chunks. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include "grid.h"
#include "png.h"
#include "session.h"

/* What a picture shows, as text. */
typedef struct caption {
    const char *item;  /* "817": its row, label or alpha; a picture's path */
    const char *name;  /* of the row, or NULL */
    const char *label; /* what stands under it */
} caption;

typedef struct output {
    const arguments *args;
    gmem_context *context;
    const char *path;  /* a pattern where `separate` */
    const char *items; /* the text chunk's key for captions: "rows", "labels", "alpha", "like" */
    int separate;
    int64_t count;
    int columns, width, height;
    grid sheet;
    png_text *texts; /* (text_count) of every file; room for the captions' after them */
    int text_count;
    char *item_list, *name_list; /* of the grid's pictures, joined by commas and lines */
    size_t item_bytes, name_bytes;
    FILE *item_stream, *name_stream;
} output;

/* Refuses a pattern that is not exactly one %d or %0Nd, and a place that cannot be written. */
outcome output_check(output *out, const arguments *args, gmem_error *error);
/* `texts` must have room for two more. count: of the grid's cells. */
outcome output_begin(output *out, gmem_context *context, int64_t count, int columns, int width, int height,
                     gmem_error *error);
/* pixels (height, width, 3), into that cell of the grid; separate files are written here, numbered by index. */
outcome output_put(output *out, int64_t index, int64_t cell, const unsigned char *pixels, const caption *c,
                   gmem_error *error);
/* A picture to compare with, which was not drawn: in a grid only. */
void output_original(output *out, int64_t cell, const unsigned char *pixels, const char *name);
/* Writes the grid, shows it where asked. */
outcome output_end(output *out, gmem_error *error);
void output_free(output *out);

#endif /* OUTPUT_H */
