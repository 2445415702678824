/* Networks of the published sizes with procedural weights: B/1 on every instruction set, XL/1 once. */
#include "check.h"
#include "golden.h"

static void test_full(gmem_context *context, const char *name, const char *published, double flop) {
    golden_case recorded = golden_case_open(context, name, "projector");
    const gmem_file *io = recorded.io;
    const gmem_network_info *info = gmem_network_get_info(recorded.network);
    gmem_pass *pass = NULL;
    int64_t count = 0, batch = 0;
    float *x = golden_f32(io, "x", &count), *t = golden_f32(io, "t", &batch);
    float *c = golden_f32(io, "c", NULL), *y = golden_f32(io, "y", NULL);
    float *v = (float *)calloc((size_t)count, sizeof *v);
    if (!v) exit(1);
    CHECK_TEXT(info->name, published);
    CHECK(info->flop > 0.99 * flop && info->flop < 1.01 * flop);
    CHECK_OK(gmem_pass_create(recorded.network, batch, &pass, NULL));
    CHECK_OK(gmem_pass_run(pass, batch, x, t, c, NULL, v, NULL));
    CHECK_CLOSE(name, v, y, count, 4e-6);
    printf("%s on %s: relative L2 error %.2g\n", published, gmem_context_backend(context),
           check_relative_l2(v, y, count));
    gmem_pass_destroy(pass);
    golden_case_close(&recorded);
    free(x);
    free(t);
    free(c);
    free(y);
    free(v);
}

int main(void) {
    for (int i = 0; i < golden_isa_count; i++) {
        gmem_context *context = golden_context(golden_isas[i]);
        if (!context) continue;
        test_full(context, "full_b-1", "GMem-LightningDiT-B/1", 46.2e9);
        gmem_context_destroy(context);
    }
    gmem_context *context = golden_context(GMEM_ISA_AUTO);
    test_full(context, "full_xl-1", "GMem-LightningDiT-XL/1", 237e9);
    gmem_context_destroy(context);
    return check_report();
}
