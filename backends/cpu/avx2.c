/* AVX2 with FMA and F16C: the vector operations that the templates are written in, and the templates. */
#include "narrow.h"

#ifdef GMEM__X86
#include <immintrin.h>
#include <math.h>

#define GMEM__K(name) gmem__avx2_##name

#define V_WIDTH 8
#define V_F32   __m256
#define V_I32   __m256i
#define V_MASK  __m256 /* of lanes, from a comparison */

#define V_LOAD(p)            _mm256_loadu_ps(p)
#define V_STORE(p, a)        _mm256_storeu_ps((p), (a))
#define V_ZERO()             _mm256_setzero_ps()
#define V_SET1(a)            _mm256_set1_ps(a)
#define V_ADD(a, b)          _mm256_add_ps((a), (b))
#define V_SUB(a, b)          _mm256_sub_ps((a), (b))
#define V_MUL(a, b)          _mm256_mul_ps((a), (b))
#define V_DIV(a, b)          _mm256_div_ps((a), (b))
#define V_QUOTIENT(a, b)     V_DIV((a), (b))
#define V_MAX(a, b)          _mm256_max_ps((a), (b))
#define V_MIN(a, b)          _mm256_min_ps((a), (b))
#define V_SQRT(a)            _mm256_sqrt_ps(a)
#define V_ABS(a)             _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (a))
#define V_FMA(a, b, c)       _mm256_fmadd_ps((a), (b), (c))  /* a b + c */
#define V_FMS(a, b, c)       _mm256_fmsub_ps((a), (b), (c))  /* a b - c */
#define V_FNMA(a, b, c)      _mm256_fnmadd_ps((a), (b), (c)) /* c - a b */
#define V_ROUND(a)           _mm256_round_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_LESS_EQUAL(a, b)   _mm256_cmp_ps((a), (b), _CMP_LE_OQ)
#define V_ANY(mask)          _mm256_movemask_ps(mask)
#define V_IS_NAN(a)          _mm256_cmp_ps((a), (a), _CMP_UNORD_Q)
#define V_SELECT(mask, a, b) _mm256_blendv_ps((b), (a), (mask)) /* mask ? a : b */
/* a * 2^n for integral n, where the result is a normal number. */
#define V_SCALE2(a, n) \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)))
/* Of stored weights, at any address. The prefetch is assembly since gcc takes a function of mere prefetches for one
 * without effect. */
#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))
#define V_LOAD_F32(p) _mm256_loadu_ps((const float *)(const void *)(p))
#define V_LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define V_LOAD_BF16(p)   \
    _mm256_castsi256_ps( \
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))), 16))
#define V_LOAD_I8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
/* Twice as many int8 as int16, and sums of their products, two neighbours each. */
#define V_WIDEN_I8(p)        _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define V_LOAD_I16(p)        _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_ZERO_I32()         _mm256_setzero_si256()
#define V_MULTIPLY_I16(a, b) _mm256_madd_epi16((a), (b))
#define V_ADD_I32(a, b)      _mm256_add_epi32((a), (b))
#define V_FLOATS(a)          _mm256_cvtepi32_ps(a)
#define V_ADD_I16(a, b)      _mm256_add_epi16((a), (b))
#define V_ONES_I16()         _mm256_set1_epi16(1)
/* The first n lanes only, 0 <= n <= V_WIDTH; the others load as zero. */
#define V_LOAD_PART(p, n)           _mm256_maskload_ps((p), gmem__avx2_lanes(n))
#define V_STORE_PART(p, a, n)       _mm256_maskstore_ps((p), gmem__avx2_lanes(n), (a))
#define V_SUM(a)                    gmem__avx2_sum(a)
#define V_MAXIMUM(a)                gmem__avx2_maximum(a)
#define V_STORE_SUMS(p, a, b, c, d) _mm_storeu_ps((p), gmem__avx2_four_sums(a, b, c, d)) /* of four vectors */

/* To the nearest bf16, kept as a float; NaN stays NaN. */
#define V_ROUND_BF16(a) gmem__avx2_round_to_bf16(a)
/* Words of two rounded bf16, or of four integral floats below 128, the first in the lowest bits. */
#define V_WORD_BF16(lo, hi) _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(lo), 16), _mm256_castps_si256(hi))
/* The same of two floats between 0 and 1 that are not rounded yet: to nearest, ties up, and NaN to anything. */
#define V_WORD_WEIGHTS(lo, hi)  gmem__avx2_word_weights((lo), (hi))
#define V_WORD_I8(a, b, c, d)   gmem__avx2_word_i8((a), (b), (c), (d))
#define V_ADD_BYTES(word, n)    _mm256_add_epi8((word), _mm256_set1_epi8((char)(n)))
#define V_TURN(words)           gmem__avx2_turn(words) /* a square of 8 vectors of words: rows to columns */
#define V_STORE_WORDS(p, word)  _mm256_storeu_si256((__m256i *)(void *)(p), (word))
#define V_STORE_WORDS_F32(p, a) V_STORE_WORDS((p), _mm256_castps_si256(a))
#define V_STORE_BF16(p, a)      _mm_storeu_si128((__m128i *)(void *)(p), gmem__avx2_halves(a))
/* Two vectors, one after the other, to the nearest bf16; ties up, and NaN to anything. */
#define V_STORE_HALVES(p, a, b) _mm256_storeu_si256((__m256i *)(void *)(p), gmem__avx2_two_halves((a), (b)))
#define V_STORE_I8(p, a)        _mm_storel_epi64((__m128i *)(void *)(p), gmem__avx2_bytes(a))
#define V_FROM_I32(p, minus) \
    _mm256_cvtepi32_ps(      \
        _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p)), _mm256_set1_epi32(minus)))

/* Of doubles, of which a vector holds half as many. */
#define V_F64               __m256d
#define V_LOAD_F64(p)       _mm256_loadu_pd(p)
#define V_STORE_F64(p, a)   _mm256_storeu_pd((p), (a))
#define V_ZERO_F64()        _mm256_setzero_pd()
#define V_SET1_F64(a)       _mm256_set1_pd(a)
#define V_ADD_F64(a, b)     _mm256_add_pd((a), (b))
#define V_FMA_F64(a, b, c)  _mm256_fmadd_pd((a), (b), (c)) /* a b + c */
#define V_LOW_F64(a)        _mm256_cvtps_pd(_mm256_castps256_ps128(a))
#define V_HIGH_F64(a)       _mm256_cvtps_pd(_mm256_extractf128_ps((a), 1))
#define GMEM__REPEAT_F64(X) X(0) X(1) X(2) X(3)

/* The GEMM's micro-kernel: 6 rows, whose sums fill 12 of 16 registers. */
#define GMEM__MR        6
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5)

GMEM__TARGET_BEGIN("avx2,fma,f16c")

GMEM__INLINE __m256i gmem__avx2_lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GMEM__INLINE float gmem__avx2_sum(__m256 a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
GMEM__INLINE __m128 gmem__avx2_four_sums(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}
GMEM__INLINE float gmem__avx2_maximum(__m256 a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

GMEM__INLINE __m256 gmem__avx2_round_to_bf16(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256 rounded = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32((int)0xffff0000)));
    return _mm256_blendv_ps(rounded, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), V_IS_NAN(a));
}
GMEM__INLINE __m128i gmem__avx2_halves(__m256 rounded) {
    const __m256i halves = _mm256_srli_epi32(_mm256_castps_si256(rounded), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
GMEM__INLINE __m128i gmem__avx2_bytes(__m256 a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    return _mm_packs_epi16(halves, halves);
}
GMEM__INLINE __m256i gmem__avx2_two_halves(__m256 a, __m256 b) {
    const __m256i half = _mm256_set1_epi32(0x8000);
    const __m256i low = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(a), half), 16);
    const __m256i high = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(b), half), 16);
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
GMEM__INLINE __m256i gmem__avx2_word_i8(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i low = _mm256_or_si256(_mm256_and_si256(_mm256_cvtps_epi32(a), byte),
                                        _mm256_slli_epi32(_mm256_and_si256(_mm256_cvtps_epi32(b), byte), 8));
    const __m256i high =
        _mm256_or_si256(_mm256_and_si256(_mm256_cvtps_epi32(c), byte), _mm256_slli_epi32(_mm256_cvtps_epi32(d), 8));
    return _mm256_or_si256(low, _mm256_slli_epi32(high, 16));
}

GMEM__INLINE __m256i gmem__avx2_word_weights(__m256 low, __m256 high) {
    const __m256i half = _mm256_set1_epi32(0x8000), upper = _mm256_set1_epi32((int)0xffff0000);
    const __m256i l = _mm256_srli_epi32(_mm256_add_epi32(_mm256_castps_si256(low), half), 16);
    return _mm256_or_si256(l, _mm256_and_si256(_mm256_add_epi32(_mm256_castps_si256(high), half), upper));
}

GMEM__INLINE void gmem__avx2_turn(__m256i *w) {
    __m256i a[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(w[i], w[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(w[i], w[i + 1]);
    }
    for (int i = 0; i < 8; i++) /* w[4 q + j]: in lane l column 4 l + j of rows 4 q to 4 q + 3 */
        w[i] = i % 2 ? _mm256_unpackhi_epi64(a[i / 4 * 4 + i % 4 / 2], a[i / 4 * 4 + i % 4 / 2 + 2])
                     : _mm256_unpacklo_epi64(a[i / 4 * 4 + i % 4 / 2], a[i / 4 * 4 + i % 4 / 2 + 2]);
    for (int j = 0; j < 4; j++) {
        const __m256i low = _mm256_permute2x128_si256(w[j], w[4 + j], 0x20);
        w[4 + j] = _mm256_permute2x128_si256(w[j], w[4 + j], 0x31);
        w[j] = low;
    }
}

#include "math.inc"
#include "gemm.inc"
#include "rows.inc"
#include "narrow.inc"
#include "narrow_attention.inc"
#include "scan.inc"
#include "scatter.inc"

GMEM__TARGET_END

GMEM__FN const gmem__kernels *gmem__avx2_kernels(void) {
    static const gmem__kernels kernels = {GMEM__MR,
                                          2 * V_WIDTH,
                                          1,
                                          gmem__avx2_gemm,
                                          gmem__avx2_norm,
                                          gmem__avx2_rotate,
                                          gmem__avx2_attention,
                                          gmem__avx2_group_norm,
                                          gmem__avx2_finish_row,
                                          gmem__avx2_round_bf16,
                                          gmem__avx2_narrow_rows,
                                          gmem__avx2_narrow_attention,
                                          gmem__avx2_scatter,
                                          gmem__avx2_scan,
                                          gmem__avx2_scan_strip,
                                          gmem__avx2_exact,
                                          gmem__avx2_form,
                                          gmem__avx2_above};
    return &kernels;
}

#include "vector_end.inc"
#endif /* GMEM__X86 */
