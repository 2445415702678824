/* A procedural bank whose rows are like an image encoder's features: classes of neighbours, directions of very
 * different weight, a mean. Plain procedural rows are noise, of which every direction holds the same and nothing can be
 * saved. */
#ifndef PROCEDURAL_BANK_H
#define PROCEDURAL_BANK_H

#include <stdint.h>

typedef struct procedural_bank {
    int64_t rows, width;
    int64_t class_rows;  /* neighbours that share a class, as many as an ImageNet class has pictures */
    float *weights;      /* (width) of the directions */
    float *mean;         /* (width) */
    float *row, *shared; /* (width) at work: a row and its class */
    int64_t shared_class;
} procedural_bank;

/* The variance of direction k falls like (k + 1)^-decay. 0 where there is no memory. */
int procedural_bank_open(procedural_bank *bank, int64_t rows, int64_t width, double decay);
/* Elements [first, first + count), row-major. */
void procedural_bank_fill(procedural_bank *bank, int64_t first, int64_t count, float *out);
void procedural_bank_close(procedural_bank *bank); /* zeros are allowed */

#endif /* PROCEDURAL_BANK_H */
