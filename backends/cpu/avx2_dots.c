/* Narrow kernels on 256 bits, for int8: AVX-VNNI's dot products, and for processors without them AVX2's products of
 * bytes, which need |w| and the sign of w on x as one operand is unsigned. 2 * 128 * 127 fits in the 16 bits between.
 */
#include "narrow.h"

#ifdef GMEM__X86
#include <immintrin.h>

#define V_PREFETCH(p) __asm__ volatile("prefetcht1 %0" : : "m"(*(const char *)(p)))

/* AVX-VNNI's intrinsics came with gcc 11 and clang 12. */
#if (defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11)
#define GMEM__AVX_VNNI
#endif

#define GMEM__LOAD_256(p)       _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define GMEM__STORE_256(p, sum) _mm256_storeu_si256((__m256i *)(void *)(p), (sum))

#ifdef GMEM__AVX_VNNI
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,avxvnni")
#endif

#define GMEM__MR            6
#define GMEM__REPEAT(X)     X(0) X(1) X(2) X(3) X(4) X(5)
#define GMEM__K(name)       gmem__avx_vnni_##name
#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(word)   _mm256_set1_epi32((int)(word))
#define D_DOT(sum, w, x)    _mm256_dpbusd_avx_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
#include "dots.inc"
#undef GMEM__MR
#undef GMEM__REPEAT

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif /* GMEM__AVX_VNNI */

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

GMEM__INLINE __m256i gmem__avx2_dot(__m256i sum, __m256i w, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* 4 rows: the products need registers of their own. */
#define GMEM__MR            4
#define GMEM__REPEAT(X)     X(0) X(1) X(2) X(3)
#define GMEM__K(name)       gmem__avx2_i8_##name
#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(word)   _mm256_set1_epi32((int)(word))
#define D_DOT(sum, w, x)    gmem__avx2_dot((sum), (w), (x))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
#include "dots.inc"
#undef GMEM__MR
#undef GMEM__REPEAT

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void) {
#ifdef GMEM__AVX_VNNI
    static const gmem__narrow vnni = {"avx-vnni", GMEM_I8, 6, 16, 1, 288, 1, 1, NULL, NULL, gmem__avx_vnni_multiply};
    return &vnni;
#else
    return NULL;
#endif
}

GMEM__FN const gmem__narrow *gmem__avx2_dots(void) {
    static const gmem__narrow bytes = {"avx2-int8", GMEM_I8, 4, 16, 1, 288, 0, 1, NULL, NULL, gmem__avx2_i8_multiply};
    return &bytes;
}

#undef V_PREFETCH
#undef GMEM__LOAD_256
#undef GMEM__STORE_256
#undef GMEM__AVX_VNNI
#endif /* GMEM__X86 */
