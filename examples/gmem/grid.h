/* Pictures side by side with a label under each. */
#ifndef GRID_H
#define GRID_H

typedef struct grid {
    unsigned char *pixels; /* (height, width, 3), white at first */
    int width, height;
    int columns, rows;
    int cell_width, cell_height; /* of a picture */
    int scale;                   /* of the letters; 0: no labels */
} grid;

/* 0 where there is no memory, or the picture would be larger than a PNG reader takes. */
int grid_make(grid *g, int count, int columns, int cell_width, int cell_height, int labelled);
/* cell (cell_height, cell_width, 3) */
void grid_put(grid *g, int index, const unsigned char *cell, const char *label);
void grid_free(grid *g);

#endif /* GRID_H */
