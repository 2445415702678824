/* The model that is built into the binary, as the bytes of its safetensors files. */
#ifndef MODEL_H
#define MODEL_H

#include <stddef.h>

typedef enum model_part {
    MODEL_NETWORK,
    MODEL_BANK,
    MODEL_AUTOENCODER,
    MODEL_LATENT_STATS,
    MODEL_IMAGE_ENCODER
} model_part;

/* NULL where this build has no model, or none with that part. */
const void *model_data(model_part part, size_t *bytes);
const char *model_name(model_part part); /* stands for the path in messages */

#endif /* MODEL_H */
