/* The mean of vectors that come block by block, and their scatter about it: sum (x - mean)(x - mean)^T. */
#ifndef GMEM__SCATTER_H
#define GMEM__SCATTER_H

#include "internal.h"

#define GMEM__SCATTER_ROWS 256 /* vectors of a block at most */

typedef struct gmem__scatter {
    int64_t width, padded; /* padded: whole panels, of which a kernel takes two at a time */
    int64_t panel, panels;
    int64_t count; /* vectors so far */
    double *mean;  /* (padded) */
    double total;  /* sum |x - mean|^2: the trace */
    double *sums;  /* (padded, padded), the panels on and below the diagonal; or NULL: the trace alone */
    /* The work of one block. */
    double *centred; /* (panels, GMEM__SCATTER_ROWS + 1, panel); NULL like sums */
    double *squares; /* (panels) */
} gmem__scatter;

/* Memory comes from `blocks`. 0 where there is none. */
GMEM__FN int gmem__scatter_open(gmem__scatter *scatter, const gmem_context *context, struct gmem__block **blocks,
                                const gmem__engine *engine, int64_t width, int with_sums);
/* rows (count, width), finite; at most GMEM__SCATTER_ROWS. Runs on the engine's threads; results don't depend on them.
 */
GMEM__FN void gmem__scatter_add(gmem__scatter *scatter, const gmem__engine *engine, const float *rows, int64_t count);
/* The sums as (width, width), in place: the lower triangle. Nothing can be added afterwards. */
GMEM__FN double *gmem__scatter_matrix(gmem__scatter *scatter);

#endif /* GMEM__SCATTER_H */
