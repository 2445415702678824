/* Where a pass spends its time: a table of operations that times those of another. */
#ifndef GMEM__PROFILE_H
#define GMEM__PROFILE_H

#include "network.h"

typedef struct gmem__profiler {
    gmem__engine inner;          /* what computes */
    gmem__ops ops;               /* its operations, those of a pass timed */
    const gmem_network *network; /* whose weights tell one linear layer from another */
    gmem_profile *profile;       /* the caller's */
} gmem__profiler;

/* Makes `engine` time its operations into `profile`, or no longer where that is NULL. */
GMEM__FN void gmem__profile_engine(gmem__engine *engine, gmem__profiler *profiler, const gmem_network *network,
                                   gmem_profile *profile);

#endif /* GMEM__PROFILE_H */
