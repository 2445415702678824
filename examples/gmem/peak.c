/* Loops of one instruction from registers, long enough to be the peak of it. */
#define _DEFAULT_SOURCE
#include "peak.h"

#include "report.h"

#include <stdint.h>
#include <string.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

const char *peak_name(peak_kind kind) {
    static const char *const names[] = {"scalar",   "avx2",        "avx512",   "avx512-bf16", "avx2-int8",
                                        "avx-vnni", "avx512-vnni", "amx-bf16", "amx-int8"};
    return names[kind];
}

peak_kind peak_of_kernels(const char *kernels) {
    for (int i = 0; i < PEAK_COUNT; i++) {
        if (strcmp(kernels, peak_name((peak_kind)i)) == 0) return (peak_kind)i;
    }
    if (strcmp(kernels, "amx") == 0) return PEAK_AVX512_F32;     /* f32 has no tiles */
    if (strcmp(kernels, "avx2-bf16") == 0) return PEAK_AVX2_F32; /* its arithmetic */
    if (strcmp(kernels, "avx512f-bf16") == 0) return PEAK_AVX512_F32;
    return PEAK_SCALAR;
}

/* The loop runs `rounds` times; what it computes is returned, so that it is computed. */
typedef float (*peak_loop)(int64_t rounds);

typedef struct peak {
    peak_loop loop;
    double operations; /* of a round */
} peak;

/* vectors --------------------------------------------------------------------------------------------------------- */

#define CHAINS 12 /* independent ones: two units times the latency of four or five, and some to spare */

/* sum = step(sum, factor) in each chain. `folded` makes one float of the sums. */
#define VECTOR_LOOP(linkage, name, vector, factor, start, step)                                             \
    linkage float name(int64_t rounds) {                                                                    \
        const vector f = factor;                                                                            \
        vector a = start(0), b = start(1), c = start(2), d = start(3), e = start(4), g = start(5);          \
        vector h = start(6), i = start(7), j = start(8), k = start(9), l = start(10), m = start(11);        \
        float lanes[CHAINS * sizeof(vector) / sizeof(float)], folded = 0;                                   \
        for (int64_t round = 0; round < rounds; round++) {                                                  \
            a = step(a, f), b = step(b, f), c = step(c, f), d = step(d, f), e = step(e, f), g = step(g, f); \
            h = step(h, f), i = step(i, f), j = step(j, f), k = step(k, f), l = step(l, f), m = step(m, f); \
        }                                                                                                   \
        const vector all[CHAINS] = {a, b, c, d, e, g, h, i, j, k, l, m};                                    \
        memcpy(lanes, all, sizeof lanes);                                                                   \
        for (size_t n = 0; n < sizeof lanes / sizeof *lanes; n++) {                                         \
            folded += lanes[n];                                                                             \
        }                                                                                                   \
        return folded;                                                                                      \
    }

/* What plain C comes to where compilers vectorise it: multiplications and additions, four at a time. */
#if defined(__GNUC__)
#define PLAIN_LANES 4
typedef float plain __attribute__((vector_size(16)));
#else
#define PLAIN_LANES 1
typedef float plain;
#endif
static plain plain_set(float x) {
    plain out;
    float lanes[PLAIN_LANES];
    for (int i = 0; i < PLAIN_LANES; i++) {
        lanes[i] = x;
    }
    memcpy(&out, lanes, sizeof out);
    return out;
}
#define PLAIN_START(n)     plain_set(0.1f * (n))
#define PLAIN_STEP(sum, f) ((sum) * (f) + (f))
VECTOR_LOOP(static, loop_scalar, plain, plain_set(0.999f), PLAIN_START, PLAIN_STEP)

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_NEW_INSTRUCTIONS /* the assembler knows AVX-VNNI and AMX */
#endif

#define ON(features)         static __attribute__((target(features)))
#define AVX2_START(n)        _mm256_set1_ps(0.1f * (n))
#define AVX2_STEP(sum, f)    _mm256_fmadd_ps(sum, f, f)
#define AVX512_START(n)      _mm512_set1_ps(0.1f * (n))
#define AVX512_STEP(sum, f)  _mm512_fmadd_ps(sum, f, f)
#define WORDS_START(n)       _mm256_set1_epi32(n)
#define WORDS_BYTES          _mm256_set1_epi8(1)
#define MADDUBS_STEP(sum, f) _mm256_add_epi32(sum, maddubs(f))
#define WIDE_START(n)        _mm512_set1_epi32(n)
#define WIDE_BYTES           _mm512_set1_epi8(1)
#define VNNI_STEP(sum, f)    _mm512_dpbusd_epi32(sum, f, f)
VECTOR_LOOP(ON("avx2,fma"), loop_avx2, __m256, _mm256_set1_ps(0.999f), AVX2_START, AVX2_STEP)
VECTOR_LOOP(ON("avx512f"), loop_avx512, __m512, _mm512_set1_ps(0.999f), AVX512_START, AVX512_STEP)
VECTOR_LOOP(ON("avx512f,avx512vnni"), loop_avx512_vnni, __m512i, WIDE_BYTES, WIDE_START, VNNI_STEP)

/* Through assembly, since a compiler sees that all products are the same. */
ON("avx2") inline __m256i maddubs(__m256i f) {
    __m256i sums;
    __asm__ volatile("vpmaddubsw %1, %1, %0\n vpmaddwd %1, %0, %0" : "=&x"(sums) : "x"(f));
    return sums;
}
VECTOR_LOOP(ON("avx2"), loop_avx2_int8, __m256i, WORDS_BYTES, WORDS_START, MADDUBS_STEP)

/* Through assembly, since compilers differ in their type of a vector of bf16. */
#define BF16_STEP(sum, f) dot_bf16(sum, f)
ON("avx512f,avx512bf16") inline __m512 dot_bf16(__m512 sum, __m512 f) {
    __asm__("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(f));
    return sum;
}
VECTOR_LOOP(ON("avx512f,avx512bf16"), loop_avx512_bf16, __m512, _mm512_set1_ps(0.5f), AVX512_START, BF16_STEP)

#ifdef HAS_NEW_INSTRUCTIONS
#define AVX_VNNI_STEP(sum, f) _mm256_dpbusd_avx_epi32(sum, f, f)
VECTOR_LOOP(ON("avx2,avxvnni"), loop_avx_vnni, __m256i, WORDS_BYTES, WORDS_START, AVX_VNNI_STEP)
#endif

/* tiles ----------------------------------------------------------------------------------------------------------- */

#if defined(HAS_NEW_INSTRUCTIONS) && defined(__linux__)
#define HAS_TILES

/* Eight tiles of 16 rows of 64 bytes; the configuration belongs to the thread, and only for as long as the loop runs.
 */
static const unsigned char tile_shapes[64] = {
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0,  64, 0,  64, 0,  64, 0,  64, 0, 64, 0, 64, 0, 64, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16, 0,  0, 0,  0, 0,  0, 0,  0};

/* Four products that share two pairs of operands, as in a kernel of 2 x 2 tiles. */
#define TILE_LOOP(name, product)                                                                       \
    static float name(int64_t rounds) {                                                                \
        __asm__ volatile("ldtilecfg %0" : : "m"(tile_shapes));                                         \
        __asm__ volatile("tilezero %tmm0\n tilezero %tmm1\n tilezero %tmm2\n tilezero %tmm3\n"         \
                         "tilezero %tmm4\n tilezero %tmm5\n tilezero %tmm6\n tilezero %tmm7");         \
        for (int64_t round = 0; round < rounds; round++) {                                             \
            __asm__ volatile(product " %tmm6, %tmm4, %tmm0\n" product " %tmm7, %tmm4, %tmm1\n" product \
                                     " %tmm6, %tmm5, %tmm2\n" product " %tmm7, %tmm5, %tmm3");         \
        }                                                                                              \
        __asm__ volatile("tilerelease");                                                               \
        return 0;                                                                                      \
    }
TILE_LOOP(loop_amx_bf16, "tdpbf16ps")
TILE_LOOP(loop_amx_int8, "tdpbssd")

/* Linux keeps tiles for processes that ask. */
static int tiles_are_granted(void) {
    enum { GET_PERMISSION = 0x1022, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    uint64_t granted = 0;
    syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
    return syscall(SYS_arch_prctl, GET_PERMISSION, &granted) == 0 && (granted >> TILE_DATA & 1) != 0;
}
#endif

/* detection ------------------------------------------------------------------------------------------------------- */

/* A bit of CPUID: leaf, subleaf, register 0 to 3 for a to d. */
static int has_bit(unsigned leaf, unsigned subleaf, int name, int bit) {
    unsigned registers[4] = {0, 0, 0, 0};
    if (!__get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return 0;
    return (int)(registers[name] >> bit & 1);
}

/* The system saves these registers (bits of XCR0). */
static int system_saves(unsigned mask) {
    unsigned low, high;
    if (!has_bit(1, 0, 2, 27)) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

enum { REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D };

static int has_avx2(void) { return system_saves(0x6) && has_bit(7, 0, REGISTER_B, 5) && has_bit(1, 0, REGISTER_C, 12); }
static int has_avx512(void) { return system_saves(0xe6) && has_bit(7, 0, REGISTER_B, 16); }

#ifdef HAS_TILES
static int has_tiles(int type_bit) {
    return system_saves(3u << 17) && has_bit(7, 0, REGISTER_D, 24) && has_bit(7, 0, REGISTER_D, type_bit) &&
           tiles_are_granted();
}
#endif

static peak peak_find(peak_kind kind) {
    peak none = {NULL, 0}, found = none;
    switch (kind) {
    case PEAK_SCALAR:
        found.loop = loop_scalar;
        found.operations = 2.0 * CHAINS * PLAIN_LANES;
        return found;
    case PEAK_AVX2_F32:
        found.loop = loop_avx2;
        found.operations = 2.0 * CHAINS * 8;
        return has_avx2() ? found : none;
    case PEAK_AVX512_F32:
        found.loop = loop_avx512;
        found.operations = 2.0 * CHAINS * 16;
        return has_avx512() ? found : none;
    case PEAK_AVX512_BF16:
        found.loop = loop_avx512_bf16;
        found.operations = 2.0 * CHAINS * 32;
        return has_avx512() && has_bit(7, 1, REGISTER_A, 5) ? found : none;
    case PEAK_AVX2_INT8:
        found.loop = loop_avx2_int8;
        found.operations = 2.0 * CHAINS * 32;
        return has_avx2() ? found : none;
    case PEAK_AVX512_VNNI:
        found.loop = loop_avx512_vnni;
        found.operations = 2.0 * CHAINS * 64;
        return has_avx512() && has_bit(7, 0, REGISTER_C, 11) ? found : none;
#ifdef HAS_NEW_INSTRUCTIONS
    case PEAK_AVX_VNNI:
        found.loop = loop_avx_vnni;
        found.operations = 2.0 * CHAINS * 32;
        return has_avx2() && has_bit(7, 1, REGISTER_A, 4) ? found : none;
#endif
#ifdef HAS_TILES
    case PEAK_AMX_BF16:
        found.loop = loop_amx_bf16;
        found.operations = 4 * 2.0 * 16 * 16 * 32;
        return has_tiles(22) ? found : none;
    case PEAK_AMX_INT8:
        found.loop = loop_amx_int8;
        found.operations = 4 * 2.0 * 16 * 16 * 64;
        return has_tiles(25) ? found : none;
#endif
    default:
        return none;
    }
}
#else
static peak peak_find(peak_kind kind) {
    peak none = {NULL, 0}, scalar = {loop_scalar, 2.0 * CHAINS * PLAIN_LANES};
    return kind == PEAK_SCALAR ? scalar : none;
}
#endif

int peak_exists(peak_kind kind) { return peak_find(kind).loop != NULL; }

double measure_peak(peak_kind kind, int threads) {
    enum { ROUNDS = 20000, REPEAT = 25 };
    const peak p = peak_find(kind);
    double best = 0, begun = seconds_now();
    volatile float sink = 0;
    while (seconds_now() - begun < 0.4) {
        double start = seconds_now();
        float sum = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
#endif
        for (int t = 0; t < threads; t++) {
            for (int i = 0; i < REPEAT; i++) {
                sum += p.loop(ROUNDS);
            }
        }
        double rate = p.operations * ROUNDS * REPEAT * threads / (seconds_now() - start);
        sink = sink + sum;
        if (rate > best) best = rate;
    }
    return best;
}
