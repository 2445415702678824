/* Procedural weights: a value depends on its tensor's name and shape and on the element's index only, so that full-size
 * networks can be measured and tested without a download. Shared by `gmem synth` and the tests. */
#ifndef PROCEDURAL_H
#define PROCEDURAL_H

#include <stdint.h>

/* Elements [first, first + count), row-major, of the weight `name` with `shape` (rank). */
void procedural_fill(const char *name, int rank, const int64_t *shape, int64_t first, int64_t count, float *out);

/* The underlying uniform values in [-1, 1]: u("input.x") and the like. */
void procedural_uniform(const char *name, int64_t first, int64_t count, float *out);

#endif /* PROCEDURAL_H */
