/* Tells networks, autoencoders, banks and image encoders apart by the names of their tensors. */
#include "describe.h"

#include <string.h>

int is_floating(gmem_type type) {
    return type == GMEM_F32 || type == GMEM_F16 || type == GMEM_BF16 || type == GMEM_F64;
}

static int has(const gmem_file *file, const char *name) { return gmem_file_find(file, name) != NULL; }

static file_kind kind_of(const gmem_file *file) {
    if (has(file, "x_embedder.proj.weight")) return KIND_OF_NETWORK;
    if (has(file, "decoder.conv_in.weight") || has(file, "encoder.conv_in.weight")) return KIND_OF_AUTOENCODER;
    if (has(file, "patch_embed.proj.weight") && has(file, "cls_token")) return KIND_OF_ENCODER;
    if (has(file, "features") || has(file, "memorybank") || (has(file, "C") && has(file, "M"))) return KIND_OF_BANK;
    const gmem_tensor *root = gmem_file_find(file, "tensor");
    if (root && root->rank == 2) return KIND_OF_BANK;
    if (has(file, "mean") && has(file, "std")) return KIND_OF_STATS;
    return KIND_UNKNOWN;
}

static void describe_network(gmem_context *context, gmem_file *file, int heads, description *out) {
    gmem_network *network = NULL;
    gmem_network_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = file;
    desc.heads = heads;
    snprintf(out->architecture, sizeof out->architecture, "network");
    if (gmem_network_open(context, &desc, &network, &out->trouble) != GMEM_OK) return;
    const gmem_network_info *info = gmem_network_get_info(network);
    snprintf(out->architecture, sizeof out->architecture, "%s", info->name);
    out->network = *info;
    out->network.name = NULL;
    out->has_network = 1;
    out->parameters = info->parameters;
    gmem_network_close(network);
}

static void describe_autoencoder(gmem_context *context, gmem_file *file, description *out) {
    gmem_autoencoder *autoencoder = NULL;
    gmem_autoencoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = file;
    snprintf(out->architecture, sizeof out->architecture, "autoencoder");
    if (gmem_autoencoder_open(context, &desc, &autoencoder, &out->trouble) != GMEM_OK) return;
    const gmem_autoencoder_info *info = gmem_autoencoder_get_info(autoencoder);
    snprintf(out->architecture, sizeof out->architecture, "%s autoencoder f%lldd%lld%s",
             info->family == GMEM_AE_SDVAE ? "SD-VAE" : "VA-VAE", (long long)info->factor,
             (long long)info->latent_channels, info->has_encoder ? "" : ", decoder only");
    out->parameters = info->parameters;
    gmem_autoencoder_close(autoencoder);
}

static void describe_bank(gmem_context *context, gmem_file *file, description *out) {
    gmem_bank *bank = NULL;
    gmem_bank_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = file;
    snprintf(out->architecture, sizeof out->architecture, "bank");
    if (gmem_bank_open(context, &desc, &bank, &out->trouble) != GMEM_OK) return;
    snprintf(out->architecture, sizeof out->architecture, "%s of %lld rows, width %lld%s",
             gmem_bank_get_kind(bank) == GMEM_BANK_DECOMPOSED ? "decomposed bank" : "bank",
             (long long)gmem_bank_rows(bank), (long long)gmem_bank_width(bank),
             bank_has_names(bank) ? ", with names" : "");
    gmem_bank_close(bank);
}

static void describe_encoder(gmem_context *context, gmem_file *file, int heads, description *out) {
    gmem_image_encoder *encoder = NULL;
    gmem_image_encoder_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.file = file;
    desc.heads = heads;
    snprintf(out->architecture, sizeof out->architecture, "image encoder");
    if (gmem_image_encoder_open(context, &desc, &encoder, &out->trouble) != GMEM_OK) return;
    const gmem_image_encoder_info *info = gmem_image_encoder_get_info(encoder);
    snprintf(out->architecture, sizeof out->architecture, "%s", info->name);
    out->encoder = *info;
    out->encoder.name = NULL;
    out->has_encoder = 1;
    out->parameters = info->parameters;
    gmem_image_encoder_close(encoder);
}

void describe(gmem_context *context, gmem_file *file, int heads, description *out) {
    for (int64_t i = 0; i < gmem_file_tensor_count(file); i++) {
        const gmem_tensor *tensor = gmem_file_tensor(file, i);
        if (is_floating(tensor->type)) out->parameters += gmem_tensor_count(tensor);
    }
    out->kind = kind_of(file);
    switch (out->kind) {
    case KIND_OF_NETWORK:
        describe_network(context, file, heads, out);
        break;
    case KIND_OF_AUTOENCODER:
        describe_autoencoder(context, file, out);
        break;
    case KIND_OF_BANK:
        describe_bank(context, file, out);
        break;
    case KIND_OF_ENCODER:
        describe_encoder(context, file, heads, out);
        break;
    case KIND_OF_STATS:
        snprintf(out->architecture, sizeof out->architecture, "latent statistics");
        break;
    case KIND_UNKNOWN:
        snprintf(out->architecture, sizeof out->architecture, "unknown");
        break;
    }
}
