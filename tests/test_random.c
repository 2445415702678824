/* The generators: Philox against its published vectors and its own promise, PyTorch's CPU generator bit for bit, and
 * PyTorch's CUDA arrangement against values that it is known to give. */
#include "../src/random.h"

#include "check.h"
#include "golden.h"

/* The vectors of Random123's known-answer file for philox4x32-10. */
static void test_philox_vectors(void) {
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        uint32_t out[4];
        gmem__philox(vectors[i].key, vectors[i].counter, out);
        CHECK(memcmp(out, vectors[i].expected, sizeof out) == 0);
    }
}

/* Picture i of seed s depends on (s, i), the purpose and the index alone. */
static void test_philox_by_picture(void) {
    enum { PICTURES = 5, SIZE = 37 };
    float whole[PICTURES * SIZE], alone[SIZE], other[SIZE];
    int64_t rows[PICTURES], row;
    gmem_rng rng, again;
    gmem_rng_init(&rng, GMEM_RNG_PHILOX, 42);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, PICTURES, SIZE, whole);
    gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, PICTURES, 1281167, rows);
    gmem_rng_init(&again, GMEM_RNG_PHILOX, 42);
    for (int64_t i = PICTURES - 1; i >= 0; i--) { /* backwards, one by one, with other draws between */
        gmem_rng_normal(&again, GMEM_DRAW_STEP, i, i, 1, SIZE, other);
        gmem_rng_integers(&again, GMEM_DRAW_ROW, i, 1, 1281167, &row);
        gmem_rng_normal(&again, GMEM_DRAW_LATENT, 0, i, 1, SIZE, alone);
        CHECK(memcmp(alone, whole + i * SIZE, sizeof alone) == 0);
        CHECK_INT(row, rows[i]);
        CHECK(memcmp(alone, other, sizeof alone) != 0);
    }
    gmem_rng_normal(&rng, GMEM_DRAW_STEP, 0, 3, 1, SIZE, alone);
    gmem_rng_normal(&rng, GMEM_DRAW_STEP, 1, 3, 1, SIZE, other);
    CHECK(memcmp(alone, other, sizeof alone) != 0);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, (int64_t)1 << 40, 1, SIZE, other);
    CHECK(memcmp(whole, other, sizeof other) != 0);
    gmem_rng_init(&again, GMEM_RNG_PHILOX, (uint64_t)42 + ((uint64_t)1 << 32));
    gmem_rng_normal(&again, GMEM_DRAW_LATENT, 0, 0, 1, SIZE, other);
    CHECK(memcmp(whole, other, sizeof other) != 0);
}

/* Moments within five standard errors. */
static void check_normal(const float *x, int64_t count) {
    double sum = 0, squares = 0, fourths = 0, n = (double)count;
    for (int64_t i = 0; i < count; i++) {
        double v = (double)x[i];
        sum += v;
        squares += v * v;
        fourths += v * v * v * v;
    }
    CHECK(fabs(sum / n) < 5 / sqrt(n));
    CHECK(fabs(squares / n - 1) < 5 * sqrt(2 / n));
    CHECK(fabs(fourths / n - 3) < 5 * sqrt(96 / n));
}

static void test_distributions(void) {
    enum { COUNT = 100000 };
    static const gmem_rng_kind kinds[] = {GMEM_RNG_PHILOX, GMEM_RNG_TORCH_CPU, GMEM_RNG_TORCH_CUDA};
    float *x = (float *)malloc(COUNT * sizeof *x);
    int64_t *integers = (int64_t *)malloc(COUNT * sizeof *integers);
    if (!CHECK(x && integers)) return;
    for (int k = 0; k < 3; k++) {
        int counts[7] = {0}, in_range = 1;
        double sum = 0;
        gmem_rng rng;
        gmem_rng_init(&rng, kinds[k], 7);
        gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, COUNT, x);
        check_normal(x, COUNT);
        gmem__rng_step_normal(&rng, GMEM__DRAW_DEVICE_F64, 0, 0, 1, COUNT, x);
        check_normal(x, COUNT);
        gmem_rng_uniform(&rng, GMEM_DRAW_MIX, 0, 1, COUNT, x);
        for (int64_t i = 0; i < COUNT; i++) {
            in_range &= x[i] >= 0 && x[i] < 1;
            sum += (double)x[i];
        }
        CHECK(in_range);
        CHECK(fabs(sum / COUNT - 0.5) < 5 / sqrt(12.0 * COUNT));
        gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, COUNT, 7, integers);
        for (int64_t i = 0; i < COUNT; i++) {
            in_range &= integers[i] >= 0 && integers[i] < 7;
            if (in_range) counts[integers[i]]++;
        }
        CHECK(in_range);
        for (int i = 0; i < 7; i++) {
            CHECK(fabs(counts[i] - COUNT / 7.0) < 5 * sqrt(COUNT / 7.0));
        }
        gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, 3, 1, integers);
        CHECK(integers[0] == 0 && integers[1] == 0 && integers[2] == 0);
        gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, 1, INT64_MAX, integers);
        CHECK(integers[0] >= 0);
    }
    free(x);
    free(integers);
}

static void check_bits(const char *label, const void *actual, const void *expected, size_t bytes) {
    if (!CHECK(memcmp(actual, expected, bytes) == 0)) printf("  %s\n", label);
}

static void test_torch_seed(const gmem_file *file, uint64_t seed) {
    char name[64];
    gmem_rng rng;
    float out[96];
    int64_t integers[6];
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, seed);
    static const struct {
        const char *name;
        int64_t count, per_picture;
    } draws[] = {{"randn7", 1, 7},
                 {"then_randn_2x3x4x4", 2, 48},
                 {"then_randint1000", 6, 1},
                 {"then_randn16", 4, 4},
                 {"then_rand5", 1, 5}};
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "seed%llu.%s", (unsigned long long)seed, draws[i].name);
        const int64_t count = draws[i].count * draws[i].per_picture;
        if (i == 2) {
            int64_t *expected = golden_i64(file, name, NULL);
            gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, count, 1000, integers);
            check_bits(name, integers, expected, (size_t)count * sizeof *expected);
            free(expected);
            continue;
        }
        float *expected = golden_f32(file, name, NULL);
        if (i == 4)
            gmem_rng_uniform(&rng, GMEM_DRAW_LATENT, 0, draws[i].count, draws[i].per_picture, out);
        else
            gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, draws[i].count, draws[i].per_picture, out);
        check_bits(name, out, expected, (size_t)count * sizeof *expected);
        free(expected);
    }
}

static void test_torch_cpu(void) {
    static const uint64_t seeds[] = {0, 1, 42, 4294967301u};
    gmem_context *context = golden_context(GMEM_ISA_SCALAR);
    gmem_file *file = golden_open(context, "rng_torch_cpu.safetensors");
    for (int i = 0; i < 4; i++) {
        test_torch_seed(file, seeds[i]);
    }
    gmem_file_close(file);
    gmem_context_destroy(context);
}

static uint64_t fingerprint(const void *data, size_t bytes) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    }
    return hash;
}

/* Sizes around the blocks of 16, the short path's second value kept across other draws, and a long draw: hashes of the
 * bytes that torch 2.15 gives. */
static void test_torch_cpu_sizes(void) {
    static const struct {
        uint64_t seed;
        int64_t sizes[6];
        uint64_t hash;
    } cases[] = {
        {0u, {1, 15, 16, 17, 31, 32}, 0xbac9cc87022c7eebu},
        {123456789u, {3, 33, 4, 1000, 5, 6}, 0x5f22659ee9e4208bu},
        {9223372036854775807u, {16, 1, 47, 2, 48, 65536}, 0xdf1860912deb9b7bu},
        {2024u, {4097, 7, 7, 7, 2048, 100}, 0x67dc1c6e95abcd2fu},
    };
    float *out = (float *)malloc(200000 * sizeof *out);
    if (!CHECK(out != NULL)) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        gmem_rng rng;
        int64_t used = 0;
        gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, cases[i].seed);
        for (int j = 0; j < 6; j++) {
            gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, cases[i].sizes[j], out + used);
            used += cases[i].sizes[j];
        }
        CHECK(fingerprint(out, (size_t)used * sizeof *out) == cases[i].hash);
    }
    free(out);
}

/* torch.randn(5) and (17) of f64, and randint around the limit where 64 bits are drawn, of torch 2.15 with seed 3. */
static void test_torch_cpu_wide(void) {
    static const float expected[22] = {0.803276062f,  0.174833387f, 0.0889780968f, -0.613718033f, 0.0461824499f,
                                       0.653905749f,  0.758057356f, 1.0784353f,    0.343633801f,  0.719825149f,
                                       0.830618083f,  0.508653879f, -1.52658486f,  -1.90112972f,  0.203668639f,
                                       0.0287528671f, 0.242437109f, 0.784172297f,  -0.998418331f, 1.18604803f,
                                       0.413663357f,  0.184110925f};
    static const int64_t limits[3] = {(int64_t)1 << 28, ((int64_t)1 << 28) - 1, (int64_t)1 << 40};
    static const int64_t integers[6] = {35325592, 117892739, 175684540, 252666825, 2445173525, 1088503892627};
    gmem_rng rng;
    float out[22];
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, 3);
    gmem__rng_step_normal(&rng, GMEM__DRAW_DEVICE_F64, 0, 0, 1, 5, out);
    gmem__rng_step_normal(&rng, GMEM__DRAW_DEVICE_F64, 0, 0, 1, 17, out + 5);
    CHECK(memcmp(out, expected, sizeof out) == 0);
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, 3);
    for (int i = 0; i < 3; i++) {
        int64_t drawn[2];
        gmem_rng_integers(&rng, GMEM_DRAW_ROW, 0, 2, limits[i], drawn);
        CHECK_INT(drawn[0], integers[2 * i]);
        CHECK_INT(drawn[1], integers[2 * i + 1]);
    }
}

/* torch.manual_seed(0); torch.randn(3, 4, device="cuda"): widely quoted. */
static void test_torch_cuda(void) {
    static const float expected[12] = {-0.92466259f, -0.42534415f, -2.6438457f,  0.14518388f,
                                       -0.12086647f, -0.57972564f, -0.62285122f, -0.32838709f,
                                       -1.07454231f, -0.36314407f, -1.67105067f, 2.26550497f};
    float out[12], *large = (float *)malloc(300000 * sizeof *large);
    gmem_rng rng;
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CUDA, 0);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 3, 4, out);
    CHECK_CLOSE("torch.randn(3, 4) on CUDA", out, expected, 12, 1e-6);
    CHECK_INT(rng.offset, 4);
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CUDA, 0);
    gmem_rng_normal(&rng, GMEM_DRAW_LATENT, 0, 0, 1, 300000, large); /* more than the device's threads */
    CHECK_CLOSE("the first of many", large, expected, 12, 1e-6);
    CHECK_INT(rng.offset, 4);
    check_normal(large, 300000);
    gmem__rng_step_normal(&rng, GMEM__DRAW_HOST, 0, 0, 1, 12, out);
    CHECK_INT(rng.offset, 4); /* drawn by the CPU's generator of the same seed */
    gmem_rng_init(&rng, GMEM_RNG_TORCH_CPU, 0);
    gmem_rng_normal(&rng, GMEM_DRAW_STEP, 0, 0, 1, 12, large);
    CHECK(memcmp(out, large, sizeof out) == 0);
    free(large);
}

int main(void) {
    test_philox_vectors();
    test_philox_by_picture();
    test_distributions();
    test_torch_cpu();
    test_torch_cpu_sizes();
    test_torch_cpu_wide();
    test_torch_cuda();
    return check_report();
}
