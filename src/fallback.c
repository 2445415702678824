/* From a device that failed to the CPU. */
#include "fallback.h"

#include "autoencoder.h"
#include "encoder.h"

GMEM__FN int gmem__falls_back(const gmem_context *context, gmem_status status, const gmem_error *why) {
    if (context->asked != GMEM_BACKEND_AUTO || !context->device) return 0;
    if (status != GMEM_E_DEVICE && status != GMEM_E_MEMORY) return 0;
    gmem__log(context, "%s failed (%s): the CPU goes on", context->backend, why->message);
    GMEM__ATOMIC_STORE(&((gmem_context *)(uintptr_t)context)->device_failed, 1);
    return 1;
}

GMEM__FN gmem_status gmem__network_on_cpu(const gmem_network *network, gmem_network **out, gmem_error *error) {
    const gmem_network_info *info = &network->info;
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = network->file;
    desc.heads = (int)info->heads;
    desc.backend = GMEM_BACKEND_CPU;
    if (!gmem_file_find(network->file, "pos_embed")) {
        desc.latent_height = info->height;
        desc.latent_width = info->width;
    }
    return gmem_network_open((gmem_context *)(uintptr_t)network->context, &desc, out, error);
}

GMEM__FN gmem_status gmem__autoencoder_on_cpu(const gmem_autoencoder *autoencoder, gmem_autoencoder **out,
                                              gmem_error *error) {
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = autoencoder->file;
    desc.backend = GMEM_BACKEND_CPU;
    return gmem_autoencoder_open((gmem_context *)(uintptr_t)autoencoder->context, &desc, out, error);
}

GMEM__FN gmem_status gmem__encoder_on_cpu(const gmem_image_encoder *encoder, gmem_image_encoder **out,
                                          gmem_error *error) {
    gmem_image_encoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = encoder->file;
    desc.heads = (int)encoder->info.heads;
    desc.backend = GMEM_BACKEND_CPU;
    return gmem_image_encoder_open((gmem_context *)(uintptr_t)encoder->context, &desc, out, error);
}
