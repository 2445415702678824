/* The built-in model: the assembler includes the files, which is quicker to compile than any array of numbers. */
#include "model.h"

#ifdef MODEL_FOLDER /* where the build has found them */

#ifdef __APPLE__
#define SECTION      ".const_data\n"
#define SYMBOL(name) "_" name
#define SECTION_END  ".text\n"
#else
#define SECTION      ".section .rodata\n"
#define SYMBOL(name) name
#define SECTION_END  ".section .text\n"
#endif

/* 64-byte aligned, like a mapped file's tensors. */
#define EMBED(name, path)                                                                                         \
    __asm__(SECTION ".balign 64\n" SYMBOL(                                                                        \
        #name) ":\n"                                                                                              \
               ".globl " SYMBOL(#name) "\n"                                                                       \
                                       ".incbin \"" path "\"\n" SYMBOL(                                           \
                                           #name "_end") ":\n"                                                    \
                                                         ".globl " SYMBOL(#name "_end") "\n"                      \
                                                                                        ".byte 0\n" SECTION_END); \
    extern const unsigned char name[], name##_end[]

EMBED(gmem_model_network, MODEL_FOLDER "/network.safetensors");
EMBED(gmem_model_bank, MODEL_FOLDER "/bank.safetensors");
EMBED(gmem_model_autoencoder, MODEL_FOLDER "/autoencoder.safetensors");
EMBED(gmem_model_latents_stats, MODEL_FOLDER "/latents_stats.safetensors");
#ifdef MODEL_ENCODES
EMBED(gmem_model_image_encoder, MODEL_FOLDER "/image_encoder.safetensors");
#else
static const unsigned char gmem_model_image_encoder[1], *const gmem_model_image_encoder_end = gmem_model_image_encoder;
#endif

const void *model_data(model_part part, size_t *bytes) {
    const unsigned char *const starts[] = {gmem_model_network, gmem_model_bank, gmem_model_autoencoder,
                                           gmem_model_latents_stats, gmem_model_image_encoder};
    const unsigned char *const ends[] = {gmem_model_network_end, gmem_model_bank_end, gmem_model_autoencoder_end,
                                         gmem_model_latents_stats_end, gmem_model_image_encoder_end};
    *bytes = (size_t)(ends[part] - starts[part]);
    return *bytes ? starts[part] : NULL;
}

#else

const void *model_data(model_part part, size_t *bytes) {
    (void)part;
    *bytes = 0;
    return NULL;
}

#endif

const char *model_name(model_part part) {
    static const char *const names[] = {"built-in network.safetensors", "built-in bank.safetensors",
                                        "built-in autoencoder.safetensors", "built-in latents_stats.safetensors",
                                        "built-in image_encoder.safetensors"};
    return names[part];
}
