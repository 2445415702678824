/* The sampler flags, the same in sample and integrate. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "args.h"

/* Refuses flags that contradict each other whatever the network, before any file is opened. */
outcome sampler_flags_check(const arguments *args, gmem_error *error);
/* The settings for a network, resolved: every default filled in. */
outcome sampler_from_flags(const arguments *args, const gmem_network_info *network, gmem_sampler_desc *out,
                           gmem_error *error);

int sampler_draws_noise(const gmem_sampler_desc *sampler); /* one of the SDE methods */
const char *sampler_method_name(const gmem_sampler_desc *sampler, char *out, size_t bytes);
/* "steps 50, diffusion-form linear, ...": the settings that the method uses. */
const char *sampler_text(const gmem_sampler_desc *sampler, char *out, size_t bytes);
/* "30 of 98 passes reused", a pass being one of one picture, where there is a cache threshold. */
void sampler_note_reuse(const gmem_sampler_desc *sampler, const gmem_reuse *reuse);

#endif /* SAMPLER_H */
