/* From a device that failed to the CPU. */
#include "fallback.h"

GMEM__FN int gmem__falls_back(const gmem_context *context, gmem_status status, const gmem_error *why) {
    if (context->asked != GMEM_BACKEND_AUTO || !context->device) return 0;
    if (status != GMEM_E_DEVICE && status != GMEM_E_MEMORY) return 0;
    gmem__log(context, "%s failed (%s): the CPU goes on", context->backend, why->message);
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

struct gmem__fallback {
    gmem_network *network;
    gmem_pass *pass;
};

GMEM__FN gmem_status gmem__fallback_create(const gmem_network *network, int64_t max_batch, gmem__fallback **out,
                                           gmem_error *error) {
    gmem__fallback *fallback = (gmem__fallback *)gmem__alloc(network->context, 1, sizeof *fallback);
    if (!fallback) return gmem__fail(error, GMEM_E_MEMORY, "no memory for a pass");
    gmem_status status = gmem__network_on_cpu(network, &fallback->network, error);
    if (status == GMEM_OK) status = gmem_pass_create(fallback->network, max_batch, &fallback->pass, error);
    if (status == GMEM_OK)
        *out = fallback;
    else
        gmem__fallback_destroy(network->context, fallback);
    return status;
}

GMEM__FN void gmem__fallback_destroy(const gmem_context *context, gmem__fallback *fallback) {
    if (!fallback) return;
    gmem_pass_destroy(fallback->pass);
    gmem_network_close(fallback->network);
    gmem__free(context, fallback, 1, sizeof *fallback);
}

GMEM__FN gmem_pass *gmem__fallback_pass(const gmem__fallback *fallback) { return fallback->pass; }
