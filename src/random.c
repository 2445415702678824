/* Noise: Philox by picture (the default), and PyTorch's CPU and CUDA generators reproduced. */
#include "random.h"

#include <math.h>

#define GMEM__TWO_PI    6.283185307179586476925286766559
#define GMEM__2_POW_M24 (1.0 / 16777216)
#define GMEM__2_POW_M32 (1.0 / 4294967296)
#define GMEM__2_POW_M53 (1.0 / 9007199254740992)

/* Philox4x32-10 -------------------------------------------------------------------------------------------------- */

GMEM__FN void gmem__philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Philox by picture ----------------------------------------------------------------------------------------------- */

/* The key is the seed; the counter is (block, index, picture, picture's high bits and the purpose), so a value depends
 * on the seed, the picture, the purpose and its place alone. */

static void gmem__picture_block(const gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t block,
                                uint32_t out[4]) {
    const uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
    const uint64_t p = (uint64_t)picture;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)index, (uint32_t)p,
                                 ((uint32_t)(p >> 32) & 0xffffffu) | (uint32_t)draw << 24};
    gmem__philox(key, counter, out);
}

/* Box-Muller in double, rounded once: the same floats from every libm that is accurate to a few units. */
static void gmem__box_muller(uint32_t a, uint32_t b, double out[2]) {
    double radius = sqrt(-2.0 * log(((double)a + 0.5) * GMEM__2_POW_M32));
    double angle = GMEM__TWO_PI * (((double)b + 0.5) * GMEM__2_POW_M32);
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

static void gmem__picture_normal(const gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t count,
                                 float *out) {
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t bits[4];
        double normal[4];
        gmem__picture_block(rng, draw, index, picture, i / 4, bits);
        gmem__box_muller(bits[0], bits[1], normal);
        gmem__box_muller(bits[2], bits[3], normal + 2);
        for (int64_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = (float)normal[j];
    }
}

static void gmem__picture_uniform(const gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t bits[4];
        gmem__picture_block(rng, draw, 0, picture, i / 4, bits);
        for (int64_t j = 0; j < 4 && i + j < count; j++)
            out[i + j] = (float)(bits[j] >> 8) * (float)GMEM__2_POW_M24;
    }
}

/* 64 bits modulo high: the bias is below high / 2^64. */
static int64_t gmem__picture_integer(const gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t high) {
    uint32_t bits[4];
    gmem__picture_block(rng, draw, 0, picture, 0, bits);
    return (int64_t)(((uint64_t)bits[0] << 32 | bits[1]) % (uint64_t)high);
}

/* PyTorch's CPU generator ----------------------------------------------------------------------------------------- */

/* MT19937 (Matsumoto and Nishimura, 1998); the distributions are those of ATen's DistributionTemplates.h. */

static void gmem__mt_seed(gmem_rng *rng, uint32_t seed) {
    rng->state[0] = seed;
    for (uint32_t i = 1; i < 624; i++)
        rng->state[i] = 1812433253u * (rng->state[i - 1] ^ rng->state[i - 1] >> 30) + i;
    rng->left = 1;
    rng->next = 0;
}

static void gmem__mt_refill(gmem_rng *rng) {
    uint32_t *s = rng->state;
    for (int i = 0; i < 624; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % 624] & 0x7fffffffu);
        s[i] = s[(i + 397) % 624] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    rng->left = 624;
    rng->next = 0;
}

static uint32_t gmem__mt_next(gmem_rng *rng) {
    if (--rng->left == 0) gmem__mt_refill(rng);
    uint32_t y = rng->state[rng->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static uint64_t gmem__mt_next64(gmem_rng *rng) {
    uint64_t high = gmem__mt_next(rng);
    return high << 32 | gmem__mt_next(rng);
}

static float gmem__mt_uniform(gmem_rng *rng) {
    return (float)(gmem__mt_next(rng) & 0xffffffu) * (float)GMEM__2_POW_M24;
}

static double gmem__mt_uniform_double(gmem_rng *rng) {
    return (double)(gmem__mt_next64(rng) & 0x1fffffffffffffu) * GMEM__2_POW_M53;
}

/* Fewer than 16 values are made one by one in double, the second of a pair kept for later. */
static double gmem__mt_normal(gmem_rng *rng) {
    if (rng->has_normal) {
        rng->has_normal = 0;
        return rng->normal;
    }
    double u1 = gmem__mt_uniform_double(rng), u2 = gmem__mt_uniform_double(rng);
    double radius = sqrt(-2.0 * log1p(-u2)), angle = GMEM__TWO_PI * u1;
    rng->normal = radius * sin(angle);
    rng->has_normal = 1;
    return radius * cos(angle);
}

/* log and sincos of the Cephes library in f32, with the multiply-adds fused that PyTorch's compiler fused. fmaf and
 * sqrtf are exact by definition, and no other product feeds a sum, so no compiler or flag can change a bit. */
static float gmem__cephes_log(float x) { /* 0 < x, normal */
    static const float p[] = {-1.1514610310E-1f, 1.1676998740E-1f, -1.2420140846E-1f, 1.4249322787E-1f,
                              -1.6668057665E-1f, 2.0000714765E-1f, -2.4999993993E-1f, 3.3333331174E-1f};
    int exponent;
    x = frexpf(x, &exponent);
    float e = (float)exponent;
    if (x < 0.707106781186547524f) {
        e -= 1.0f;
        x = (x - 1.0f) + x;
    } else {
        x -= 1.0f;
    }
    float square = x * x;
    float y = 7.0376836292E-2f;
    for (int i = 0; i < 8; i++)
        y = fmaf(y, x, p[i]);
    y *= x;
    y = fmaf(y, square, e * -2.12194440e-4f);
    y = fmaf(square, -0.5f, y);
    return fmaf(e, 0.693359375f, x + y);
}

static void gmem__cephes_sincos(float x, float *sine, float *cosine) { /* 0 <= x < 8192 */
    int octant = (int)(x * 1.27323954473516f);
    octant = (octant + 1) & ~1;
    float turns = (float)octant;
    x = fmaf(turns, -0.78515625f, x);
    x = fmaf(turns, -2.4187564849853515625e-4f, x);
    x = fmaf(turns, -3.77489497744594108e-8f, x);
    float square = x * x;
    float c = fmaf(2.443315711809948E-005f, square, -1.388731625493765E-003f);
    c = fmaf(c, square, 4.166664568298827E-002f);
    c *= square;
    c = fmaf(c, square, square * -0.5f) + 1.0f;
    float s = fmaf(-1.9515295891E-4f, square, 8.3321608736E-3f);
    s = fmaf(s, square, -1.6666654611E-1f);
    s *= square;
    s = fmaf(s, x, x);
    int swap = octant & 2;
    *sine = swap ? c : s;
    *cosine = swap ? s : c;
    if (octant & 4) *sine = -*sine;
    if (!((octant - 2) & 4)) *cosine = -*cosine;
}

/* Box-Muller on 16 uniform values in place: the first eight give radii, the last eight angles. */
static void gmem__mt_normal16(gmem_rng *rng, float *data) {
    for (int i = 0; i < 16; i++)
        data[i] = gmem__mt_uniform(rng);
    for (int i = 0; i < 8; i++) {
        float sine, cosine;
        float radius = sqrtf(-2.0f * gmem__cephes_log(1.0f - data[i]));
        gmem__cephes_sincos((float)GMEM__TWO_PI * data[i + 8], &sine, &cosine);
        data[i] = radius * cosine + 0.0f;
        data[i + 8] = radius * sine + 0.0f;
    }
}

static void gmem__mt_normal16_double(gmem_rng *rng, float *data) {
    double u[16];
    for (int i = 0; i < 16; i++)
        u[i] = gmem__mt_uniform_double(rng);
    for (int i = 0; i < 8; i++) {
        double radius = sqrt(-2.0 * log(1.0 - u[i])), angle = GMEM__TWO_PI * u[i + 8];
        data[i] = (float)(radius * cos(angle));
        data[i + 8] = (float)(radius * sin(angle));
    }
}

/* torch.randn(count), of f32 or f64: 16 at a time, the last 16 drawn again where count is no multiple of 16. The
 * uniform values of all blocks but the redrawn are consecutive, so blocks can be finished one by one. */
static void gmem__mt_normals(gmem_rng *rng, int is_double, int64_t count, float *out) {
    void (*normal16)(gmem_rng *, float *) = is_double ? gmem__mt_normal16_double : gmem__mt_normal16;
    if (count < 16) {
        for (int64_t i = 0; i < count; i++)
            out[i] = (float)gmem__mt_normal(rng);
        return;
    }
    for (int64_t i = 0; i + 16 <= count; i += 16)
        normal16(rng, out + i);
    if (count % 16 == 0) return;
    for (int64_t i = 0; i < count % 16; i++) { /* uniform values that the redrawn block replaces */
        if (is_double)
            (void)gmem__mt_next64(rng);
        else
            (void)gmem__mt_next(rng);
    }
    normal16(rng, out + count - 16);
}

/* PyTorch's CUDA generator ---------------------------------------------------------------------------------------- */

/* cuRAND's Philox4_32_10: thread i of a launch reads the stream (seed, subsequence i) from the generator's offset. A
 * launch has blocks of 256 threads, as many as the values need or the device holds; a thread makes 4 values (2 of 64
 * bits) that lie a whole grid apart, and again until all are made (ATen's native/cuda/DistributionTemplates.h).
 * The device is taken to be an A100: 108 processors of 2048 threads. This matters from 221,185 values on. */

#define GMEM__CUDA_THREADS    256
#define GMEM__CUDA_MAX_BLOCKS (108 * 2048 / GMEM__CUDA_THREADS)

typedef enum gmem__cuda_kind {
    GMEM__CUDA_NORMAL,
    GMEM__CUDA_NORMAL_F64,
    GMEM__CUDA_UNIFORM,
    GMEM__CUDA_INTEGER,
    GMEM__CUDA_INTEGER64
} gmem__cuda_kind;

/* curand_normal4: the sine comes first. The device's fast sine and cosine differ from these by up to 2^-21. */
static float gmem__cuda_normal(const uint32_t bits[4], int64_t which) {
    const uint32_t *pair = bits + which / 2 * 2;
    const float to_unit = (float)GMEM__2_POW_M32, to_angle = 2.3283064e-10f * 6.2831855f;
    float u = fmaf((float)pair[0], to_unit, to_unit / 2);
    float angle = fmaf((float)pair[1], to_angle, to_angle / 2);
    double radius = sqrt(-2.0 * log((double)u));
    return (float)(radius * (which % 2 == 0 ? sin((double)angle) : cos((double)angle)));
}

/* curand_normal2_double: two words make 53 bits. */
static float gmem__cuda_normal_f64(const uint32_t bits[4], int64_t which) {
    uint64_t a = bits[0] ^ (uint64_t)bits[1] << 21, b = bits[2] ^ (uint64_t)bits[3] << 21;
    double radius = sqrt(-2.0 * log(((double)a + 0.5) * GMEM__2_POW_M53));
    double angle = GMEM__TWO_PI * (((double)b + 0.5) * GMEM__2_POW_M53);
    return (float)(radius * (which == 0 ? sin(angle) : cos(angle)));
}

/* curand_uniform gives (0, 1]; PyTorch turns 1 into 0. */
static float gmem__cuda_uniform(uint32_t bits) {
    float u = fmaf((float)bits, (float)GMEM__2_POW_M32, (float)GMEM__2_POW_M32 / 2);
    return u == 1.0f ? 0.0f : u;
}

static uint64_t gmem__cuda_integer(gmem__cuda_kind kind, const uint32_t bits[4], int64_t which) {
    if (kind == GMEM__CUDA_INTEGER) return bits[which];
    return (uint64_t)bits[2 * which] << 32 | bits[2 * which + 1];
}

/* One call of torch.randn, rand or randint: count values into `values`, or into `integers`, below `high`. */
static void gmem__cuda_draw(gmem_rng *rng, gmem__cuda_kind kind, int64_t count, float *values, int64_t *integers,
                            int64_t high) {
    if (count <= 0) return;
    const int64_t each = kind == GMEM__CUDA_NORMAL_F64 || kind == GMEM__CUDA_INTEGER64 ? 2 : 4;
    const int64_t threads =
        GMEM__CUDA_THREADS * gmem__min(gmem__ceil_div(count, GMEM__CUDA_THREADS), GMEM__CUDA_MAX_BLOCKS);
    const int64_t rounds = gmem__ceil_div(count, threads * each);
    const uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
    for (int64_t round = 0; round < rounds; round++) {
        const uint64_t place = rng->offset / 4 + (uint64_t)round;
        for (int64_t thread = 0; thread < threads; thread++) {
            const uint32_t counter[4] = {(uint32_t)place, (uint32_t)(place >> 32), (uint32_t)thread, 0};
            uint32_t bits[4];
            gmem__philox(key, counter, bits);
            for (int64_t k = 0; k < each; k++) {
                int64_t i = (round * each + k) * threads + thread;
                if (i >= count) break;
                switch (kind) {
                case GMEM__CUDA_NORMAL:
                    values[i] = gmem__cuda_normal(bits, k);
                    break;
                case GMEM__CUDA_NORMAL_F64:
                    values[i] = gmem__cuda_normal_f64(bits, k);
                    break;
                case GMEM__CUDA_UNIFORM:
                    values[i] = gmem__cuda_uniform(bits[k]);
                    break;
                case GMEM__CUDA_INTEGER:
                case GMEM__CUDA_INTEGER64:
                    integers[i] = (int64_t)(gmem__cuda_integer(kind, bits, k) % (uint64_t)high);
                    break;
                }
            }
        }
    }
    rng->offset += (uint64_t)rounds * 4;
}

/* The generators behind one face --------------------------------------------------------------------------------- */

GMEM_API void gmem_rng_init(gmem_rng *rng, gmem_rng_kind kind, uint64_t seed) {
    memset(rng, 0, sizeof *rng);
    rng->kind = kind;
    rng->seed = seed;
    gmem__mt_seed(rng, (uint32_t)seed); /* torch-cuda too: a process seeds both of its generators */
}

GMEM_API void gmem_rng_normal(gmem_rng *rng, gmem_draw draw, int64_t index, int64_t picture, int64_t count,
                              int64_t per_picture, float *out) {
    switch (rng->kind) {
    case GMEM_RNG_TORCH_CPU:
        gmem__mt_normals(rng, 0, count * per_picture, out);
        return;
    case GMEM_RNG_TORCH_CUDA:
        gmem__cuda_draw(rng, GMEM__CUDA_NORMAL, count * per_picture, out, NULL, 0);
        return;
    case GMEM_RNG_PHILOX:
        break;
    }
    for (int64_t i = 0; i < count; i++)
        gmem__picture_normal(rng, draw, index, picture + i, per_picture, out + i * per_picture);
}

GMEM__FN void gmem__rng_step_normal(gmem_rng *rng, gmem__draw_kind kind, int64_t index, int64_t picture, int64_t count,
                                    int64_t per_picture, float *out) {
    if (rng->kind == GMEM_RNG_PHILOX) {
        gmem_rng_normal(rng, GMEM_DRAW_STEP, index, picture, count, per_picture, out);
    } else if (rng->kind == GMEM_RNG_TORCH_CUDA && kind == GMEM__DRAW_DEVICE_F64) {
        gmem__cuda_draw(rng, GMEM__CUDA_NORMAL_F64, count * per_picture, out, NULL, 0);
    } else {
        gmem__mt_normals(rng, kind == GMEM__DRAW_DEVICE_F64, count * per_picture, out);
    }
}

GMEM_API void gmem_rng_integers(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t high,
                                int64_t *out) {
    const int wide = high >= (int64_t)1 << 28; /* as PyTorch has it, against the bias of a remainder of 32 bits */
    if (rng->kind == GMEM_RNG_TORCH_CUDA) {
        gmem__cuda_draw(rng, wide ? GMEM__CUDA_INTEGER64 : GMEM__CUDA_INTEGER, count, NULL, out, high);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        if (rng->kind == GMEM_RNG_PHILOX)
            out[i] = gmem__picture_integer(rng, draw, picture + i, high);
        else
            out[i] = (int64_t)((wide ? gmem__mt_next64(rng) : gmem__mt_next(rng)) % (uint64_t)high);
    }
}

GMEM_API void gmem_rng_uniform(gmem_rng *rng, gmem_draw draw, int64_t picture, int64_t count, int64_t per_picture,
                               float *out) {
    switch (rng->kind) {
    case GMEM_RNG_TORCH_CPU:
        for (int64_t i = 0; i < count * per_picture; i++)
            out[i] = gmem__mt_uniform(rng);
        return;
    case GMEM_RNG_TORCH_CUDA:
        gmem__cuda_draw(rng, GMEM__CUDA_UNIFORM, count * per_picture, out, NULL, 0);
        return;
    case GMEM_RNG_PHILOX:
        break;
    }
    for (int64_t i = 0; i < count; i++)
        gmem__picture_uniform(rng, draw, picture + i, per_picture, out + i * per_picture);
}
