/* Networks of the published sizes with procedural weights: B/1 on every instruction set, XL/1 once, and both on the
 * device where there is one. The weights are made once for all. */
#include "check.h"
#include "golden.h"

static void test_pass(gmem_context *context, const golden_case *made, const char *name) {
    const gmem_file *io = made->io;
    gmem_network_desc desc;
    gmem_network *network = NULL;
    gmem_pass *pass = NULL;
    int64_t count = 0, batch = 0;
    float *x = golden_f32(io, "x", &count), *t = golden_f32(io, "t", &batch);
    float *c = golden_f32(io, "c", NULL), *y = golden_f32(io, "y", NULL);
    float *v = (float *)calloc((size_t)count, sizeof *v);
    if (!v) exit(1);
    memset(&desc, 0, sizeof desc);
    desc.file = made->weights.file;
    CHECK_OK(gmem_network_open(context, &desc, &network, NULL));
    CHECK_OK(gmem_pass_create(network, batch, &pass, NULL));
    CHECK_OK(gmem_pass_run(pass, batch, x, t, c, NULL, v, NULL));
    CHECK_CLOSE(name, v, y, count, 4e-6);
    printf("%s on %s: relative L2 error %.2g\n", name, gmem_context_backend(context), check_relative_l2(v, y, count));
    gmem_pass_destroy(pass);
    gmem_network_close(network);
    gmem_context_destroy(context);
    free(x);
    free(t);
    free(c);
    free(y);
    free(v);
}

static void test_full(const char *name, const char *published, double flop, const gmem_isa *isas, int count) {
    gmem_context *host = golden_cpu_context(GMEM_ISA_AUTO);
    golden_case made = golden_case_open(host, name, "projector");
    const gmem_network_info *info = gmem_network_get_info(made.network);
    CHECK_TEXT(info->name, published);
    CHECK(info->flop > 0.99 * flop && info->flop < 1.01 * flop);
    for (int i = 0; i < count; i++) {
        gmem_context *context = golden_cpu_context(isas[i]);
        if (context) test_pass(context, &made, published);
    }
    if (golden_on_device()) test_pass(golden_context(GMEM_ISA_AUTO), &made, published);
    golden_case_close(&made);
    gmem_context_destroy(host);
}

int main(void) {
    static const gmem_isa fastest = GMEM_ISA_AUTO;
    test_full("full_b-1", "GMem-LightningDiT-B/1", 46.2e9, golden_isas, golden_isa_count);
    test_full("full_xl-1", "GMem-LightningDiT-XL/1", 237e9, &fastest, 1);
    return check_report();
}
