/* From the seed to the pixels: what a sampler made goes to the decoder where it is, and only pixels come back. */
#include "autoencoder.h"
#include "fallback.h"

typedef struct gmem__pixels_job {
    const gmem_autoencoder *autoencoder;
    const gmem_network_info *info;
    const gmem_sample_pixels_desc *desc;
    uint8_t *pixels;
} gmem__pixels_job;

static gmem_status gmem__take_pixels(void *user, const gmem__engine *engine, const float *x, gmem_error *error) {
    const gmem__pixels_job *job = (const gmem__pixels_job *)user;
    const gmem_sample_pixels_desc *desc = job->desc;
    gmem__latents latents;
    latents.engine = engine;
    latents.x = x;
    latents.count = desc->sample.batch;
    latents.height = job->info->height;
    latents.width = job->info->width;
    latents.mean = desc->mean;
    latents.std = desc->std;
    latents.multiplier = desc->multiplier != 0 ? desc->multiplier : job->autoencoder->info.multiplier;
    const float offset = job->info->architecture == GMEM_ARCH_GMEM_SIT ? GMEM__PIXEL_OFFSET - 0.5f : GMEM__PIXEL_OFFSET;
    return gmem__decode_pixels(job->autoencoder, &latents, offset, job->pixels, error);
}

static gmem_status gmem__sample_pixels(const gmem_network *network, const gmem_autoencoder *autoencoder,
                                       const gmem_sample_pixels_desc *desc, uint8_t *pixels, gmem_error *error) {
    gmem__pixels_job job;
    gmem__ends ends;
    job.autoencoder = autoencoder;
    job.info = &network->info;
    job.desc = desc;
    job.pixels = pixels;
    ends.draw_start = !desc->z;
    ends.take = gmem__take_pixels;
    ends.user = &job;
    /* z is only read, as `take` gets what became of it */
    return gmem__sample(network, &desc->sample, &ends, (float *)(uintptr_t)desc->z, error);
}

/* Both on the CPU. */
static gmem_status gmem__sample_pixels_on_cpu(const gmem_network *network, const gmem_autoencoder *autoencoder,
                                              const gmem_sample_pixels_desc *desc, uint8_t *pixels, gmem_error *error) {
    gmem_network *network_on_cpu = NULL;
    gmem_autoencoder *autoencoder_on_cpu = NULL;
    gmem_status status = gmem__network_on_cpu(network, &network_on_cpu, error);
    if (status == GMEM_OK) status = gmem__autoencoder_on_cpu(autoencoder, &autoencoder_on_cpu, error);
    if (status == GMEM_OK) status = gmem__sample_pixels(network_on_cpu, autoencoder_on_cpu, desc, pixels, error);
    gmem_autoencoder_close(autoencoder_on_cpu);
    gmem_network_close(network_on_cpu);
    return status;
}

static gmem_status gmem__sample_pixels_check(const gmem_network *network, const gmem_autoencoder *autoencoder,
                                             const gmem_sample_pixels_desc *desc, const uint8_t *pixels,
                                             gmem_error *error) {
    if (!network || !autoencoder || !desc || !pixels)
        return gmem__fail(error, GMEM_E_ARGUMENT, "drawing needs a network, an autoencoder and room for the pixels");
    if (!(desc->multiplier >= 0 && desc->multiplier - desc->multiplier == 0))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the multiplier is negative or not finite");
    if (!desc->z && (!desc->sample.rng || desc->sample.rng->kind != GMEM_RNG_PHILOX))
        return gmem__fail(error, GMEM_E_ARGUMENT, "the start noise is drawn by the Philox generator only");
    if (network->info.channels != autoencoder->info.latent_channels)
        return gmem__fail(error, GMEM_E_LATENT, "the autoencoder has %lld latent channels, the network %lld",
                          (long long)autoencoder->info.latent_channels, (long long)network->info.channels);
    return GMEM_OK;
}

GMEM_API gmem_status gmem_sample_pixels(const gmem_network *network, const gmem_autoencoder *autoencoder,
                                        const gmem_sample_pixels_desc *desc, uint8_t *pixels, gmem_error *error) {
    gmem_error why;
    gmem_rng rng;
    GMEM__TRY(gmem__sample_pixels_check(network, autoencoder, desc, pixels, error));
    if (!network->store.device && !autoencoder->store.device)
        return gmem__sample_pixels(network, autoencoder, desc, pixels, error);
    if (!network->store.device != !autoencoder->store.device) {
        if (GMEM__ATOMIC_LOAD(&network->context->device_failed)) /* after one of them was opened, before the other */
            return gmem__sample_pixels_on_cpu(network, autoencoder, desc, pixels, error);
        return gmem__fail(error, GMEM_E_COMBINATION, "the network and the autoencoder are on different backends");
    }
    if (desc->sample.rng) rng = *desc->sample.rng;
    const gmem_status status = gmem__sample_pixels(network, autoencoder, desc, pixels, &why);
    if (!gmem__falls_back(network->context, status, &why)) {
        if (status != GMEM_OK && error) *error = why;
        return status;
    }
    if (desc->sample.rng) *desc->sample.rng = rng; /* the noise must be the same again */
    return gmem__sample_pixels_on_cpu(network, autoencoder, desc, pixels, error);
}
