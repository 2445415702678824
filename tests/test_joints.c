/* The joints that the benchmark measures through: a linear layer by itself, and the profile of a pass. */
#include "check.h"
#include "golden.h"

enum { ROWS = 70, DEPTH = 130, COLUMNS = 37 };

static float small(int i) { return (float)((i * 7919) % 2003 - 1001) / 1001.0f; }

static gmem_context *context_of(gmem_isa isa, gmem_compute compute) {
    gmem_context_desc desc;
    gmem_context *context = NULL;
    memset(&desc, 0, sizeof desc);
    desc.isa = isa;
    desc.compute = compute;
    desc.threads = 2;
    const gmem_status status = gmem_context_create(&desc, &context, NULL);
    CHECK(status == GMEM_OK || status == GMEM_E_UNSUPPORTED);
    return context;
}

static void test_product(gmem_isa isa, gmem_compute compute, double bar) {
    static float w[ROWS * (DEPTH + 3)], x[DEPTH * COLUMNS], y[ROWS * COLUMNS], expected[ROWS * COLUMNS];
    gmem_context *context = context_of(isa, compute);
    if (!context) return;
    for (int i = 0; i < ROWS * (DEPTH + 3); i++)
        w[i] = small(i);
    for (int i = 0; i < DEPTH * COLUMNS; i++)
        x[i] = small(3 * i + 1);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < COLUMNS; c++) {
            double sum = 0;
            for (int k = 0; k < DEPTH; k++)
                sum += (double)w[r * (DEPTH + 3) + k] * (double)x[k * COLUMNS + c];
            expected[r * COLUMNS + c] = (float)sum;
        }
    const int64_t shape[2] = {ROWS, DEPTH};
    gmem_tensor weight = gmem_tensor_make("w", GMEM_F32, 2, shape, w);
    gmem_linear *linear = NULL;
    weight.stride[0] = DEPTH + 3; /* rows may lie apart */
    CHECK_OK(gmem_linear_create(context, &weight, NULL, &linear, NULL));
    for (int run = 0; run < 2 && linear; run++) { /* the first makes the kernel's copy, the second finds it */
        memset(y, 0, sizeof y);
        CHECK_OK(gmem_linear_run(linear, COLUMNS, x, y, NULL));
        CHECK_CLOSE(gmem_context_kernels(context), y, expected, ROWS * COLUMNS, bar);
    }
    gmem_linear_destroy(linear);
    gmem_context_destroy(context);
}

static void test_products(void) {
    static const double bars[] = {1e-6, 5e-3, 2e-2}; /* by gmem_compute */
    for (int i = 0; i < golden_isa_count; i++)
        for (int compute = GMEM_COMPUTE_F32; compute <= GMEM_COMPUTE_INT8; compute++)
            test_product(golden_isas[i], (gmem_compute)compute, bars[compute]);
}

static void test_refusals(void) {
    static float data[12], scale[3] = {1, 1, 1};
    gmem_context *context = context_of(GMEM_ISA_AUTO, GMEM_COMPUTE_F32);
    const int64_t shape[2] = {3, 4};
    gmem_linear *linear = NULL;
    gmem_tensor weight = gmem_tensor_make("w", GMEM_F32, 2, shape, data);
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_create(NULL, &weight, NULL, &linear, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_create(context, NULL, NULL, &linear, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_create(context, &weight, scale, &linear, NULL));
    weight.type = GMEM_I64;
    CHECK_STATUS(GMEM_E_TYPE, gmem_linear_create(context, &weight, NULL, &linear, NULL));
    weight.type = GMEM_I8;
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_create(context, &weight, NULL, &linear, NULL));
    weight.type = GMEM_F32;
    weight.rank = 1;
    CHECK_STATUS(GMEM_E_SHAPE, gmem_linear_create(context, &weight, NULL, &linear, NULL));
    weight.rank = 2;
    weight.stride[1] = 2;
    CHECK_STATUS(GMEM_E_SHAPE, gmem_linear_create(context, &weight, NULL, &linear, NULL));
    CHECK(linear == NULL);
    weight.stride[1] = 1;
    CHECK_OK(gmem_linear_create(context, &weight, NULL, &linear, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_run(linear, 0, data, data, NULL));
    CHECK_STATUS(GMEM_E_ARGUMENT, gmem_linear_run(linear, 1, NULL, data, NULL));
    gmem_linear_destroy(linear);
    gmem_linear_destroy(NULL);
    gmem_context_destroy(context);
}

/* A clock that goes one second a look: an operation takes exactly one. */
static double ticking(void *user) { return (*(double *)user)++; }

static void test_profile(void) {
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    golden_case recorded = golden_case_open(context, "dit_qknorm", NULL);
    const gmem_network_info *info = gmem_network_get_info(recorded.network);
    const int64_t batch = golden_dim(recorded.io, "x", 0), size = batch * info->channels * info->height * info->width;
    float *x = golden_f32(recorded.io, "x", NULL), *t = golden_f32(recorded.io, "t", NULL);
    float *c = golden_f32(recorded.io, "c", NULL);
    float *plain = (float *)calloc((size_t)size, sizeof *plain), *timed = (float *)calloc((size_t)size, sizeof *timed);
    double now = 0, flop = 0;
    gmem_profile profile;
    gmem_pass *pass = NULL;
    memset(&profile, 0, sizeof profile);
    profile.clock = ticking;
    profile.user = &now;
    CHECK_OK(gmem_pass_create(recorded.network, batch, &pass, NULL));
    CHECK_OK(gmem_pass_run(pass, batch, x, t, c, NULL, plain, NULL));
    gmem_pass_profile(pass, &profile);
    gmem_pass_profile(pass, &profile); /* again changes nothing */
    CHECK_OK(gmem_pass_run(pass, batch, x, t, c, NULL, timed, NULL));
    CHECK(memcmp(plain, timed, (size_t)size * sizeof *plain) == 0);
    CHECK_INT(profile.operations[GMEM_OPERATION_EMBEDDING].calls, 1);
    CHECK_INT(profile.operations[GMEM_OPERATION_QKV].calls, info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_ROTATE].calls, 2 * info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_ATTENTION].calls, info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_PROJ].calls, info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_MLP_IN].calls, info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_MLP_OUT].calls, info->depth);
    CHECK_INT(profile.operations[GMEM_OPERATION_FINAL].calls, 1);
    CHECK_INT(profile.operations[GMEM_OPERATION_CONDITIONING].calls, info->depth + 4);
    for (int i = 0; i < GMEM_OPERATION_COUNT; i++) {
        CHECK_INT(profile.operations[i].seconds, profile.operations[i].calls);
        CHECK(gmem_operation_name((gmem_operation)i)[0] != 0);
        if (i != GMEM_OPERATION_CONDITIONING) flop += profile.operations[i].flop;
    }
    /* the pass's own count has the conditioning too, which one sample of the batch pays alone */
    CHECK(flop > 0.5 * info->flop * (double)batch && flop < info->flop * (double)batch);
    const int64_t calls = profile.operations[GMEM_OPERATION_QKV].calls;
    gmem_pass_profile(pass, NULL);
    CHECK_OK(gmem_pass_run(pass, batch, x, t, c, NULL, timed, NULL));
    CHECK_INT(profile.operations[GMEM_OPERATION_QKV].calls, calls);
    CHECK_TEXT(gmem_operation_name(GMEM_OPERATION_COUNT), "");
    gmem_pass_profile(NULL, &profile);
    gmem_pass_destroy(pass);
    golden_case_close(&recorded);
    gmem_context_destroy(context);
    free(x), free(t), free(c), free(plain), free(timed);
}

int main(void) {
    test_products();
    test_refusals();
    test_profile();
    return check_report();
}
