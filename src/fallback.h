/* What a device fails to do the CPU does, where the caller left the choice of the backend open. */
#ifndef GMEM__FALLBACK_H
#define GMEM__FALLBACK_H

#include "network.h"

/* Whether a failure is the device's and the CPU is to go on; says so in the log. */
GMEM__FN int gmem__falls_back(const gmem_context *context, gmem_status status, const gmem_error *why);
/* The same network on the CPU: its weights are still in the mapping, so it costs milliseconds. Closed by the caller. */
GMEM__FN gmem_status gmem__network_on_cpu(const gmem_network *network, gmem_network **out, gmem_error *error);

GMEM__FN gmem_status gmem__autoencoder_on_cpu(const gmem_autoencoder *autoencoder, gmem_autoencoder **out,
                                              gmem_error *error);
GMEM__FN gmem_status gmem__encoder_on_cpu(const gmem_image_encoder *encoder, gmem_image_encoder **out,
                                          gmem_error *error);

#endif /* GMEM__FALLBACK_H */
