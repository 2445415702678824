/* AVX-512 (F, BW, DQ, VL): the vector operations that the templates are written in, and the templates. */
#include "narrow.h"

#ifdef GMEM__X86
#include <immintrin.h>
#include <math.h>

#define GMEM__K(name) gmem__avx512_##name

#define V_WIDTH 16
#define V_F32   __m512
#define V_I32   __m512i
#define V_MASK  __mmask16

#define V_LOAD(p)     _mm512_loadu_ps(p)
#define V_STORE(p, a) _mm512_storeu_ps((p), (a))
#define V_ZERO()      _mm512_setzero_ps()
#define V_SET1(a)     _mm512_set1_ps(a)
#define V_ADD(a, b)   _mm512_add_ps((a), (b))
#define V_SUB(a, b)   _mm512_sub_ps((a), (b))
#define V_MUL(a, b)   _mm512_mul_ps((a), (b))
#define V_DIV(a, b)   _mm512_div_ps((a), (b))
#define V_QUOTIENT(a, b) \
    gmem__avx512_quotient((a), (b)) /* within 2 ulp for 1 <= b < 2^126; 1 / b is subnormal beyond */
#define V_MAX(a, b)          _mm512_max_ps((a), (b))
#define V_MIN(a, b)          _mm512_min_ps((a), (b))
#define V_SQRT(a)            _mm512_sqrt_ps(a)
#define V_ABS(a)             _mm512_abs_ps(a)
#define V_FMA(a, b, c)       _mm512_fmadd_ps((a), (b), (c))            /* a b + c */
#define V_FMS(a, b, c)       _mm512_fmsub_ps((a), (b), (c))            /* a b - c */
#define V_FNMA(a, b, c)      _mm512_fnmadd_ps((a), (b), (c))           /* c - a b */
#define V_ROUND(a)           _mm512_cvtepi32_ps(_mm512_cvtps_epi32(a)) /* |a| < 2^31; roundscale warns at -O0 */
#define V_LESS_EQUAL(a, b)   _mm512_cmp_ps_mask((a), (b), _CMP_LE_OQ)
#define V_ANY(mask)          ((mask) != 0)
#define V_IS_NAN(a)          _mm512_cmp_ps_mask((a), (a), _CMP_UNORD_Q)
#define V_SELECT(mask, a, b) _mm512_mask_blend_ps((mask), (b), (a)) /* mask ? a : b */
/* a * 2^n for integral n, where the result is a normal number. */
#define V_SCALE2(a, n) _mm512_scalef_ps((a), (n))
/* Of stored weights, at any address. The prefetch is assembly since gcc takes a function of mere prefetches for one
 * without effect. */
#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))
#define V_LOAD_F32(p) _mm512_loadu_ps((const float *)(const void *)(p))
#define V_LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define V_LOAD_BF16(p)   \
    _mm512_castsi512_ps( \
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(p))), 16))
#define V_LOAD_I8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))
/* Twice as many int8 as int16, and sums of their products, two neighbours each. */
#define V_WIDEN_I8(p)        _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define V_LOAD_I16(p)        _mm512_loadu_si512(p)
#define V_ZERO_I32()         _mm512_setzero_si512()
#define V_MULTIPLY_I16(a, b) _mm512_madd_epi16((a), (b))
#define V_ADD_I32(a, b)      _mm512_add_epi32((a), (b))
#define V_FLOATS(a)          _mm512_cvtepi32_ps(a)
#define V_ADD_I16(a, b)      _mm512_add_epi16((a), (b))
#define V_ONES_I16()         _mm512_set1_epi16(1)
/* The first n lanes only, 0 <= n <= V_WIDTH; the others load as zero. */
#define V_LOAD_PART(p, n)           _mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), (p))
#define V_STORE_PART(p, a, n)       _mm512_mask_storeu_ps((p), (__mmask16)((1u << (n)) - 1), (a))
#define V_SUM(a)                    _mm512_reduce_add_ps(a)
#define V_MAXIMUM(a)                _mm512_reduce_max_ps(a)
#define V_STORE_SUMS(p, a, b, c, d) _mm_storeu_ps((p), gmem__avx512_four_sums(a, b, c, d)) /* of four vectors */

/* To the nearest bf16, kept as a float; NaN stays NaN. */
#define V_ROUND_BF16(a) gmem__avx512_round_to_bf16(a)
/* Words of two rounded bf16, or of four integral floats below 128, the first in the lowest bits. */
#define V_WORD_BF16(lo, hi) _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(lo), 16), _mm512_castps_si512(hi))
/* The same of two floats between 0 and 1 that are not rounded yet: to nearest, ties up, and NaN to anything. */
#define V_WORD_WEIGHTS(lo, hi)  gmem__avx512_word_weights((lo), (hi))
#define V_WORD_I8(a, b, c, d)   gmem__avx512_word_i8((a), (b), (c), (d))
#define V_ADD_BYTES(word, n)    _mm512_add_epi8((word), _mm512_set1_epi8((char)(n)))
#define V_TURN(words)           gmem__avx512_turn(words) /* a square of 16 vectors of words: rows to columns */
#define V_STORE_WORDS(p, word)  _mm512_storeu_si512((p), (word))
#define V_STORE_WORDS_F32(p, a) V_STORE_WORDS((p), _mm512_castps_si512(a))
#define V_STORE_BF16(p, a)      _mm256_storeu_si256((__m256i *)(void *)(p), gmem__avx512_halves(a))
/* Two vectors, one after the other, to the nearest bf16; ties up, and NaN to anything. */
#define V_STORE_HALVES(p, a, b) _mm512_storeu_si512((p), gmem__avx512_two_halves((a), (b)))
#define V_STORE_I8(p, a)        _mm_storeu_si128((__m128i *)(void *)(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)))
#define V_FROM_I32(p, minus)    _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(p), _mm512_set1_epi32(minus)))

/* Of doubles, of which a vector holds half as many. */
#define V_F64               __m512d
#define V_LOAD_F64(p)       _mm512_loadu_pd(p)
#define V_STORE_F64(p, a)   _mm512_storeu_pd((p), (a))
#define V_ZERO_F64()        _mm512_setzero_pd()
#define V_SET1_F64(a)       _mm512_set1_pd(a)
#define V_ADD_F64(a, b)     _mm512_add_pd((a), (b))
#define V_FMA_F64(a, b, c)  _mm512_fmadd_pd((a), (b), (c)) /* a b + c */
#define V_LOW_F64(a)        _mm512_cvtps_pd(_mm512_castps512_ps256(a))
#define V_HIGH_F64(a)       _mm512_cvtps_pd(_mm512_extractf32x8_ps((a), 1))
#define GMEM__REPEAT_F64(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* The GEMM's micro-kernel: 12 rows, whose sums fill 24 of 32 registers. */
#define GMEM__MR        12
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#ifndef __clang__
#pragma GCC diagnostic push /* g++ 12 takes its own header's undefined operands for a mistake (GCC 105593) */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
GMEM__TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

GMEM__INLINE __m256 gmem__avx512_half_sum(__m512 a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
}
GMEM__INLINE __m128 gmem__avx512_four_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(gmem__avx512_half_sum(a), gmem__avx512_half_sum(b)),
                                         _mm256_hadd_ps(gmem__avx512_half_sum(c), gmem__avx512_half_sum(d)));
    return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

/* A reciprocal of 14 bits and a step of Newton's: a division takes as long as all else of an activation. */
GMEM__INLINE __m512 gmem__avx512_quotient(__m512 a, __m512 b) {
    const __m512 r = _mm512_rcp14_ps(b);
    return _mm512_mul_ps(a, _mm512_fmadd_ps(_mm512_fnmadd_ps(b, r, _mm512_set1_ps(1.0f)), r, r));
}
GMEM__INLINE __m512 gmem__avx512_round_to_bf16(__m512 a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i rounded = _mm512_and_si512(up, _mm512_set1_epi32((int)0xffff0000));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(V_IS_NAN(a), rounded, _mm512_set1_epi32(0x7fc00000)));
}
GMEM__INLINE __m256i gmem__avx512_halves(__m512 rounded) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(rounded), 16));
}
GMEM__INLINE __m512i gmem__avx512_two_halves(__m512 a, __m512 b) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i odd =
        _mm512_set_epi32(0x3f003d, 0x3b0039, 0x370035, 0x330031, 0x2f002d, 0x2b0029, 0x270025, 0x230021, 0x1f001d,
                         0x1b0019, 0x170015, 0x130011, 0x0f000d, 0x0b0009, 0x070005, 0x030001);
    return _mm512_permutex2var_epi16(_mm512_add_epi32(_mm512_castps_si512(a), half), odd,
                                     _mm512_add_epi32(_mm512_castps_si512(b), half));
}
GMEM__INLINE __m512i gmem__avx512_word_i8(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512i byte = _mm512_set1_epi32(0xff);
    const __m512i low = _mm512_or_si512(_mm512_and_si512(_mm512_cvtps_epi32(a), byte),
                                        _mm512_slli_epi32(_mm512_and_si512(_mm512_cvtps_epi32(b), byte), 8));
    const __m512i high =
        _mm512_or_si512(_mm512_and_si512(_mm512_cvtps_epi32(c), byte), _mm512_slli_epi32(_mm512_cvtps_epi32(d), 8));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

GMEM__INLINE __m512i gmem__avx512_word_weights(__m512 low, __m512 high) {
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
    const __m512i l = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low), half), 16);
    return _mm512_or_si512(l, _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(high), half), upper));
}

GMEM__INLINE void gmem__avx512_turn(__m512i *w) {
    __m512i a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(w[i], w[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(w[i], w[i + 1]);
    }
    for (int i = 0; i < 16; i++) /* w[4 q + j]: in lane l column 4 l + j of rows 4 q to 4 q + 3 */
        w[i] = i % 2 ? _mm512_unpackhi_epi64(a[i / 4 * 4 + i % 4 / 2], a[i / 4 * 4 + i % 4 / 2 + 2])
                     : _mm512_unpacklo_epi64(a[i / 4 * 4 + i % 4 / 2], a[i / 4 * 4 + i % 4 / 2 + 2]);
    for (int j = 0; j < 4; j++) {
        const __m512i even = _mm512_shuffle_i32x4(w[j], w[4 + j], 0x88),
                      odd = _mm512_shuffle_i32x4(w[j], w[4 + j], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(w[8 + j], w[12 + j], 0x88);
        const __m512i odd2 = _mm512_shuffle_i32x4(w[8 + j], w[12 + j], 0xdd);
        w[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        w[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        w[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        w[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
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
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

GMEM__FN const gmem__kernels *gmem__avx512_kernels(void) {
    static const gmem__kernels kernels = {GMEM__MR,
                                          2 * V_WIDTH,
                                          1,
                                          gmem__avx512_gemm,
                                          gmem__avx512_norm,
                                          gmem__avx512_rotate,
                                          gmem__avx512_attention,
                                          gmem__avx512_group_norm,
                                          gmem__avx512_finish_row,
                                          gmem__avx512_round_bf16,
                                          gmem__avx512_narrow_rows,
                                          gmem__avx512_narrow_attention,
                                          gmem__avx512_scatter,
                                          gmem__avx512_scan,
                                          gmem__avx512_scan_strip,
                                          gmem__avx512_exact,
                                          gmem__avx512_form,
                                          gmem__avx512_above};
    return &kernels;
}

#include "vector_end.inc"
#endif /* GMEM__X86 */
