/* Narrow kernels of AVX-512: pairs of bf16 (AVX512-BF16) and quads of int8 (AVX512-VNNI), one instruction a dot
 * product; and where the former are missing or slow, pairs of bf16 and single f32 in f32 arithmetic. */
#include "narrow.h"

#ifdef GMEM__X86
#include <immintrin.h>

/* 12 rows, whose sums fill 24 of 32 registers, as in f32. */
#define GMEM__MR        12
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define V_PREFETCH(p)   __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

#ifndef __clang__
#pragma GCC diagnostic push /* GCC 105593, as in avx512.c */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
GMEM__TARGET_BEGIN("avx512f")

/* f32 arithmetic: words of one f32, then of two bf16, which are widened. */
#define D_WIDTH             16
#define D_VECTOR            __m512
#define D_SUM               __m512
#define D_ELEMENT           float
#define D_BROADCAST(p)      _mm512_castsi512_ps(_mm512_set1_epi32((int)*(p)))
#define D_DOT(sum, w, x)    _mm512_fmadd_ps((w), (x), (sum))
#define D_ADD(a, b)         _mm512_add_ps((a), (b))
#define D_ZERO()            _mm512_setzero_ps()
#define D_LOAD(p)           _mm512_castsi512_ps(_mm512_loadu_si512(p))
#define D_LOAD_SUM(p)       _mm512_loadu_ps(p)
#define D_STORE_SUM(p, sum) _mm512_storeu_ps((p), (sum))
#define GMEM__K(name)       gmem__avx512f_f32_##name
#define D_VECTORS           2
#include "dots.inc"
#define GMEM__K(name) gmem__avx512f_f32_16_##name
#define D_VECTORS     1
#include "dots.inc"

/* Words of a block: a strip, widened, and a panel stay in a first-level cache of 32 KB together. */
#define GMEM__WIDENED 128

#define GMEM__UPPER_HALVES(words) _mm512_and_si512((words), _mm512_set1_epi32((int)0xffff0000))
#undef D_LOAD
#define D_LOAD(p)     _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))
#define D_LOAD_ODD(p) _mm512_castsi512_ps(GMEM__UPPER_HALVES(_mm512_loadu_si512(p)))
#define D_BLOCK       GMEM__WIDENED
#define D_WIDEN(p, even, odd)                                                   \
    (_mm512_storeu_si512((even), _mm512_slli_epi32(_mm512_loadu_si512(p), 16)), \
     _mm512_storeu_si512((odd), GMEM__UPPER_HALVES(_mm512_loadu_si512(p))))
#define GMEM__K(name) gmem__avx512f_bf16_##name
#define D_VECTORS     2
#include "dots.inc"
#include "dots_end.inc"

GMEM__TARGET_END
#ifndef __clang__
#pragma GCC diagnostic pop
#endif

/* AVX512-BF16's intrinsics came with gcc 10 and clang 9. */
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define GMEM__AVX512_DOTS

#define GMEM__LOAD_256(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))

GMEM__TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni")

#define D_WIDTH             16
#define D_VECTOR            __m512i
#define D_SUM               __m512
#define D_ELEMENT           float
#define D_BROADCAST(p)      _mm512_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm512_dpbf16_ps((sum), (__m512bh)(w), (__m512bh)(x))
#define D_ADD(a, b)         _mm512_add_ps((a), (b))
#define D_ZERO()            _mm512_setzero_ps()
#define D_LOAD(p)           _mm512_loadu_si512(p)
#define D_LOAD_SUM(p)       _mm512_loadu_ps(p)
#define D_STORE_SUM(p, sum) _mm512_storeu_ps((p), (sum))
#define GMEM__K(name)       gmem__avx512_bf16_##name
#define D_VECTORS           2
#include "dots.inc"
#define GMEM__K(name) gmem__avx512_bf16_16_##name
#define D_VECTORS     1
#include "dots.inc"
#include "dots_end.inc"

#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256
#define D_ELEMENT           float
#define D_BROADCAST(p)      _mm256_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm256_dpbf16_ps((sum), (__m256bh)(w), (__m256bh)(x))
#define D_ADD(a, b)         _mm256_add_ps((a), (b))
#define D_ZERO()            _mm256_setzero_ps()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       _mm256_loadu_ps(p)
#define D_STORE_SUM(p, sum) _mm256_storeu_ps((p), (sum))
#define GMEM__K(name)       gmem__avx512_bf16_8_##name
#define D_VECTORS           1
#include "dots.inc"
#include "dots_end.inc"

/* The first operand of the instruction, x, is unsigned. */
#define D_WIDTH             16
#define D_VECTOR            __m512i
#define D_SUM               __m512i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      _mm512_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm512_dpbusd_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm512_add_epi32((a), (b))
#define D_ZERO()            _mm512_setzero_si512()
#define D_LOAD(p)           _mm512_loadu_si512(p)
#define D_LOAD_SUM(p)       _mm512_loadu_si512(p)
#define D_STORE_SUM(p, sum) _mm512_storeu_si512((p), (sum))
#define GMEM__K(name)       gmem__avx512_vnni_##name
#define D_VECTORS           2
#include "dots.inc"
#define GMEM__K(name) gmem__avx512_vnni_16_##name
#define D_VECTORS     1
#include "dots.inc"
#include "dots_end.inc"

#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      _mm256_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm256_dpbusd_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) _mm256_storeu_si256((__m256i *)(void *)(p), (sum))
#define GMEM__K(name)       gmem__avx512_vnni_8_##name
#define D_VECTORS           1
#include "dots.inc"
#include "dots_end.inc"

GMEM__TARGET_END
#endif /* GMEM__AVX512_DOTS */

GMEM__FN const gmem__narrow *gmem__avx512_widened(gmem_type type) {
    static const gmem__narrow bf16 = {
        "avx512f-bf16", GMEM_BF16, GMEM__MR, 32, 1, GMEM__WIDENED, 0, 1, NULL, NULL, gmem__avx512f_bf16_multiply, NULL};
    static const gmem__narrow thin = {
        "avx512f-f32-16", GMEM_F32, GMEM__MR, 16, 1, 160, 0, 1, NULL, NULL, gmem__avx512f_f32_16_multiply, NULL};
    static const gmem__narrow f32 = {
        "avx512f-f32", GMEM_F32, GMEM__MR, 32, 1, 160, 0, 1, NULL, NULL, gmem__avx512f_f32_multiply, &thin};
    return type == GMEM_BF16 ? &bf16 : type == GMEM_F32 ? &f32 : NULL;
}

GMEM__FN const gmem__narrow *gmem__avx512_dots(gmem_type type) {
#ifdef GMEM__AVX512_DOTS
    static const gmem__narrow kernels[2][3] = {
        {{"avx512-bf16", GMEM_BF16, GMEM__MR, 32, 1, 288, 0, 1, NULL, NULL, gmem__avx512_bf16_multiply, &kernels[0][1]},
         {"avx512-bf16-16", GMEM_BF16, GMEM__MR, 16, 1, 384, 0, 1, NULL, NULL, gmem__avx512_bf16_16_multiply,
          &kernels[0][2]},
         {"avx512-bf16-8", GMEM_BF16, GMEM__MR, 8, 1, 384, 0, 1, NULL, NULL, gmem__avx512_bf16_8_multiply, NULL}},
        {{"avx512-vnni", GMEM_I8, GMEM__MR, 32, 1, 288, 128, 1, NULL, NULL, gmem__avx512_vnni_multiply, &kernels[1][1]},
         {"avx512-vnni-16", GMEM_I8, GMEM__MR, 16, 1, 384, 128, 1, NULL, NULL, gmem__avx512_vnni_16_multiply,
          &kernels[1][2]},
         {"avx512-vnni-8", GMEM_I8, GMEM__MR, 8, 1, 384, 128, 1, NULL, NULL, gmem__avx512_vnni_8_multiply, NULL}}};
    return kernels[type == GMEM_I8];
#else
    (void)type;
    return NULL;
#endif
}

#undef GMEM__MR
#undef GMEM__REPEAT
#undef V_PREFETCH
#undef GMEM__LOAD_256
#undef GMEM__AVX512_DOTS
#undef GMEM__WIDENED
#undef GMEM__UPPER_HALVES
#endif /* GMEM__X86 */
