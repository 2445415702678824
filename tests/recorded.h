/* How recorded passes and pictures come out on a context: relative L2 errors against the recordings. */
#ifndef RECORDED_H
#define RECORDED_H

#include "check.h"
#include "golden.h"

static inline float *zeros(int64_t count) {
    float *memory = (float *)calloc((size_t)count + 1, sizeof *memory);
    if (!memory) exit(1);
    return memory;
}

/* How the recorded pass of NAME comes out, relative to the recording; `v` (may be NULL) receives it. */
static inline double pass_error(gmem_context *context, const char *name, float *v) {
    golden_case it = golden_case_open(context, name, NULL);
    gmem_pass *pass = NULL;
    gmem_error error;
    int64_t count, batch;
    float *x = golden_f32(it.io, "x", &count), *t = golden_f32(it.io, "t", &batch), *c = golden_f32(it.io, "c", NULL);
    float *y = golden_f32(it.io, "y", NULL), *out = zeros(count);
    gmem_status status = gmem_pass_create(it.network, batch, &pass, &error);
    if (status == GMEM_OK) status = gmem_pass_run(pass, batch, x, t, c, NULL, out, &error);
    if (!CHECK_OK(status)) printf("  %s: %s\n", name, error.message);
    const double off = check_relative_l2(out, y, count);
    if (v) memcpy(v, out, (size_t)count * sizeof *v);
    gmem_pass_destroy(pass);
    golden_case_close(&it);
    free(x);
    free(t);
    free(c);
    free(y);
    free(out);
    return off;
}

static inline double decode_error(gmem_context *context, const char *name) {
    gmem_file *io = golden_open(context, name);
    golden_network weights = golden_procedural(context, io, NULL);
    gmem_autoencoder_desc desc;
    gmem_autoencoder *ae = NULL;
    gmem_error error;
    int64_t pixels;
    float *z = golden_f32(io, "mean", NULL), *decoded = golden_f32(io, "decoded", &pixels), *out = zeros(pixels);
    memset(&desc, 0, sizeof desc);
    desc.file = weights.file;
    gmem_status status = gmem_autoencoder_open(context, &desc, &ae, &error);
    if (status == GMEM_OK)
        status = gmem_decode(ae, golden_dim(io, "mean", 0), golden_dim(io, "mean", 2), golden_dim(io, "mean", 3), z,
                             out, &error);
    if (!CHECK_OK(status)) printf("  %s: %s\n", name, error.message);
    const double off = check_relative_l2(out, decoded, pixels);
    gmem_autoencoder_close(ae);
    golden_network_close(&weights);
    gmem_file_close(io);
    free(z);
    free(decoded);
    free(out);
    return off;
}

#endif /* RECORDED_H */
