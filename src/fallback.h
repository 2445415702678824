/* What a device fails to do the CPU does, where the caller left the choice of the backend open. */
#ifndef GMEM__FALLBACK_H
#define GMEM__FALLBACK_H

#include "network.h"

/* Whether a failure is the device's and the CPU is to go on; says so in the log. */
GMEM__FN int gmem__falls_back(const gmem_context *context, gmem_status status, const gmem_error *why);
/* The same network on the CPU: its weights are still in the mapping, so it costs milliseconds. Closed by the caller. */
GMEM__FN gmem_status gmem__network_on_cpu(const gmem_network *network, gmem_network **out, gmem_error *error);

/* Such a network with a pass. */
typedef struct gmem__fallback gmem__fallback;
GMEM__FN gmem_status gmem__fallback_create(const gmem_network *network, int64_t max_batch, gmem__fallback **out,
                                           gmem_error *error);
GMEM__FN void gmem__fallback_destroy(const gmem_context *context, gmem__fallback *fallback);
GMEM__FN gmem_pass *gmem__fallback_pass(const gmem__fallback *fallback);

#endif /* GMEM__FALLBACK_H */
