/* What a file is, found out from its tensors. */
#ifndef DESCRIBE_H
#define DESCRIBE_H

#include "session.h"

typedef enum file_kind {
    KIND_OF_NETWORK,
    KIND_OF_AUTOENCODER,
    KIND_OF_BANK,
    KIND_OF_ENCODER,
    KIND_OF_STATS,
    KIND_UNKNOWN
} file_kind;

typedef struct description {
    file_kind kind;
    char architecture[128]; /* "GMem-LightningDiT-XL/1", "bank, 1281167 rows of 768", "tensors" */
    int64_t parameters;     /* of the weights used, or all floating-point elements */
    int has_network;
    gmem_network_info network; /* where has_network; its name is not kept */
    int has_encoder;
    gmem_image_encoder_info encoder; /* where has_encoder; its name is not kept */
    gmem_error trouble;              /* code OK, or why it looks like one of these and cannot be used */
} description;

/* Opens whatever the file looks like, and closes it again. `out` must be zero. */
void describe(gmem_context *context, gmem_file *file, int heads, description *out);

int is_floating(gmem_type type);

#endif /* DESCRIBE_H */
