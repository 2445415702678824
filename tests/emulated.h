/* AVX-512, AVX512-BF16, AVX512-VNNI and AVX-VNNI on processors without them: included before all else, it gives their
 * intrinsics the meaning of SIMDe's portable ones, and of pairs of AVX2's where SIMDe (0.7) has none. So the kernels'
 * code, its operands and their order are tested where they can't be run. */
#ifndef EMULATED_H
#define EMULATED_H

#pragma GCC system_header /* the warnings are for the code under test */

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <immintrin.h>
#include <string.h>

#define GMEM__TARGET_BEGIN(features)
#define GMEM__TARGET_END

/* Half i of a vector, and a vector of two halves. */
#define HALVES(name, wide, half)                               \
    static inline half emulated_##name##_half(wide a, int i) { \
        half halves[2];                                        \
        memcpy(halves, &a, sizeof halves);                     \
        return halves[i];                                      \
    }                                                          \
    static inline wide emulated_##name(half low, half high) {  \
        wide out;                                              \
        memcpy(&out, &low, sizeof low);                        \
        memcpy((char *)&out + sizeof low, &high, sizeof high); \
        return out;                                            \
    }
HALVES(ps, __m512, __m256)
HALVES(pd, __m512d, __m256d)
HALVES(si, __m512i, __m256i)
HALVES(narrow, __m256i, __m128i)

#define IN_HALVES(to, from, f, a) emulated_##to(f(emulated_##from##_half((a), 0)), f(emulated_##from##_half((a), 1)))

static inline __m512i emulated_cvtps_epi32(__m512 a) { return IN_HALVES(si, ps, _mm256_cvtps_epi32, a); }
static inline __m512 emulated_cvtepi32_ps(__m512i a) { return IN_HALVES(ps, si, _mm256_cvtepi32_ps, a); }
static inline __m512 emulated_cvtph_ps(__m256i a) { return IN_HALVES(ps, narrow, _mm256_cvtph_ps, a); }
static inline __m512i emulated_cvtepu16_epi32(__m256i a) { return IN_HALVES(si, narrow, _mm256_cvtepu16_epi32, a); }
static inline __m512i emulated_cvtepi8_epi32(__m128i a) {
    return emulated_si(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(a, a)));
}
static inline __m512d emulated_cvtps_pd(__m256 a) {
    return emulated_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
static inline __m256 emulated_extractf32x8_ps(__m512 a, int i) { return emulated_ps_half(a, i); }
static inline __m512i emulated_madd_epi16(__m512i a, __m512i b) {
    return emulated_si(_mm256_madd_epi16(emulated_si_half(a, 0), emulated_si_half(b, 0)),
                       _mm256_madd_epi16(emulated_si_half(a, 1), emulated_si_half(b, 1)));
}
static inline __m256i emulated_cvtepi32_epi16(__m512i a) {
    int wide[16];
    short out[16];
    __m256i result;
    memcpy(wide, &a, sizeof a);
    for (int i = 0; i < 16; i++)
        out[i] = (short)wide[i];
    memcpy(&result, out, sizeof out);
    return result;
}

/* As inexact as it may be, nearly: 14 bits. */
static inline __m512 emulated_rcp14_ps(__m512 a) {
    float x[16];
    memcpy(x, &a, sizeof a);
    for (int i = 0; i < 16; i++) {
        unsigned bits;
        x[i] = 1 / x[i];
        memcpy(&bits, &x[i], sizeof bits);
        bits &= ~0x1ffu;
        memcpy(&x[i], &bits, sizeof bits);
    }
    memcpy(&a, x, sizeof a);
    return a;
}

static inline float emulated_reduce_add_ps(__m512 a) {
    float x[16];
    memcpy(x, &a, sizeof a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            x[i] += x[i + half];
    return x[0];
}
static inline float emulated_reduce_max_ps(__m512 a) {
    float x[16];
    memcpy(x, &a, sizeof a);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

/* Lanes that the mask leaves out are neither read nor written, as a sanitizer sees. */
static inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const void *p) {
    __m512 a = _mm512_setzero_ps();
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy((float *)&a + i, (const float *)p + i, sizeof(float));
    return a;
}
static inline void emulated_mask_storeu_ps(void *p, __mmask16 mask, __m512 a) {
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy((float *)p + i, (const float *)&a + i, sizeof(float));
}

/* Whatever SIMDe has made of them: 0.7 takes madd for its form with a mask, and has few of the others. */
#undef _mm512_madd_epi16
#undef _mm512_cvtps_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_cvtph_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtps_pd
#undef _mm512_extractf32x8_ps
#undef _mm512_rcp14_ps
#undef _mm512_reduce_add_ps
#undef _mm512_reduce_max_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm256_dpbusd_avx_epi32
#define _mm512_madd_epi16       emulated_madd_epi16
#define _mm512_cvtps_epi32      emulated_cvtps_epi32
#define _mm512_cvtepi32_ps      emulated_cvtepi32_ps
#define _mm512_cvtph_ps         emulated_cvtph_ps
#define _mm512_cvtepu16_epi32   emulated_cvtepu16_epi32
#define _mm512_cvtepi8_epi32    emulated_cvtepi8_epi32
#define _mm512_cvtepi32_epi16   emulated_cvtepi32_epi16
#define _mm512_cvtps_pd         emulated_cvtps_pd
#define _mm512_extractf32x8_ps  emulated_extractf32x8_ps
#define _mm512_rcp14_ps         emulated_rcp14_ps
#define _mm512_reduce_add_ps    emulated_reduce_add_ps
#define _mm512_reduce_max_ps    emulated_reduce_max_ps
#define _mm512_maskz_loadu_ps   emulated_maskz_loadu_ps
#define _mm512_mask_storeu_ps   emulated_mask_storeu_ps
#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32

#endif /* EMULATED_H */
