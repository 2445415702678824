/* What diffusers keeps beside a model's weights: config.json. */
#ifndef DIFFUSERS_H
#define DIFFUSERS_H

#include "report.h"

/* The scaling factor of latents that the config.json beside an autoencoder in diffusers' key names states, where the
 * autoencoder's own file states none; 0 where there is nothing to read. */
double diffusers_scaling_factor(gmem_context *context, const gmem_file *autoencoder);

#endif /* DIFFUSERS_H */
