/* Narrow kernels on 256 bits: AVX-VNNI's dot products of int8, and for processors without an instruction that takes
 * whole words, bf16 in f32 arithmetic and int8 in AVX2's products of bytes. */
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

/* 6 rows, whose sums fill 12 of 16 registers, as in f32. */
#define GMEM__MR        6
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3) X(4) X(5)

#ifdef GMEM__AVX_VNNI
GMEM__TARGET_BEGIN("avx2,avxvnni")

#define GMEM__K(name)       gmem__avx_vnni_##name
#define D_VECTORS           2
#define D_WIDTH             8
#define D_VECTOR            __m256i
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      _mm256_set1_epi32((int)*(p))
#define D_DOT(sum, w, x)    _mm256_dpbusd_avx_epi32((sum), (x), (w))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
#include "dots.inc"
#include "dots_end.inc"

GMEM__TARGET_END
#endif /* GMEM__AVX_VNNI */

GMEM__TARGET_BEGIN("avx2,fma")

/* f32 arithmetic: words of one f32, then of two bf16, which are widened. */
#define D_WIDTH             8
#define D_VECTOR            __m256
#define D_SUM               __m256
#define D_ELEMENT           float
#define D_BROADCAST(p)      _mm256_castsi256_ps(_mm256_set1_epi32((int)*(p)))
#define D_DOT(sum, w, x)    _mm256_fmadd_ps((w), (x), (sum))
#define D_ADD(a, b)         _mm256_add_ps((a), (b))
#define D_ZERO()            _mm256_setzero_ps()
#define D_LOAD(p)           _mm256_castsi256_ps(GMEM__LOAD_256(p))
#define D_LOAD_SUM(p)       _mm256_loadu_ps(p)
#define D_STORE_SUM(p, sum) _mm256_storeu_ps((p), (sum))
#define GMEM__K(name)       gmem__avx2_f32_##name
#define D_VECTORS           2
#include "dots.inc"
#define GMEM__K(name) gmem__avx2_f32_8_##name
#define D_VECTORS     1
#include "dots.inc"

/* Words of a block: a strip, widened, and a panel stay in a first-level cache of 32 KB together. */
#define GMEM__WIDENED 192

#define GMEM__UPPER_HALVES(words) _mm256_and_si256((words), _mm256_set1_epi32((int)0xffff0000))
#undef D_LOAD
#define D_LOAD(p)     _mm256_castsi256_ps(_mm256_slli_epi32(GMEM__LOAD_256(p), 16))
#define D_LOAD_ODD(p) _mm256_castsi256_ps(GMEM__UPPER_HALVES(GMEM__LOAD_256(p)))
#define D_BLOCK       GMEM__WIDENED
#define D_WIDEN(p, even, odd)                                           \
    (GMEM__STORE_256((even), _mm256_slli_epi32(GMEM__LOAD_256(p), 16)), \
     GMEM__STORE_256((odd), GMEM__UPPER_HALVES(GMEM__LOAD_256(p))))
#define GMEM__K(name) gmem__avx2_bf16_##name
#define D_VECTORS     2
#include "dots.inc"
#include "dots_end.inc"

/* Products of bytes come as sums of two, saturated at 16 bits: x has 7 bits, which keeps them below. Products of pairs
 * of 16 bits need no such care, but a third more instructions, and more to take bytes apart. 4 rows leave registers for
 * products on their way to sums. */
#undef GMEM__MR
#undef GMEM__REPEAT
#define GMEM__MR        4
#define GMEM__REPEAT(X) X(0) X(1) X(2) X(3)
#define D_WIDTH         8
#define D_VECTOR        __m256i
#define D_SUM           __m256i
#define D_ELEMENT       int32_t
#define D_BROADCAST(p)  _mm256_set1_epi32((int)*(p))
#define D_DOT(sum, w, x) \
    _mm256_add_epi32((sum), _mm256_madd_epi16(_mm256_maddubs_epi16((x), (w)), _mm256_set1_epi16(1)))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           GMEM__LOAD_256(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
#define GMEM__K(name)       gmem__avx2_i8_##name
#define D_VECTORS           2
#include "dots.inc"
#include "dots_end.inc"

GMEM__TARGET_END

GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void) {
#ifdef GMEM__AVX_VNNI
    static const gmem__narrow vnni = {"avx-vnni", GMEM_I8, 6, 16, 1, 288, 128, 1, NULL, NULL, gmem__avx_vnni_multiply,
                                      NULL};
    return &vnni;
#else
    return NULL;
#endif
}

GMEM__FN const gmem__narrow *gmem__avx2_dots(gmem_type type) {
    static const gmem__narrow bf16 = {
        "avx2-bf16", GMEM_BF16, 6, 16, 1, GMEM__WIDENED, 0, 1, NULL, NULL, gmem__avx2_bf16_multiply, NULL};
    static const gmem__narrow bytes = {"avx2-int8", GMEM_I8, 4, 16, 1, 288, 64, 1, NULL, NULL, gmem__avx2_i8_multiply,
                                       NULL};
    static const gmem__narrow thin = {"avx2-f32-8", GMEM_F32, 6, 8, 1, 256, 0, 1, NULL, NULL, gmem__avx2_f32_8_multiply,
                                      NULL};
    static const gmem__narrow f32 = {"avx2-f32", GMEM_F32, 6, 16, 1, 256, 0, 1, NULL, NULL, gmem__avx2_f32_multiply,
                                     &thin};
    return type == GMEM_BF16 ? &bf16 : type == GMEM_F32 ? &f32 : &bytes;
}

#undef GMEM__MR
#undef GMEM__REPEAT
#undef GMEM__WIDENED
#undef GMEM__UPPER_HALVES
#undef V_PREFETCH
#undef GMEM__LOAD_256
#undef GMEM__STORE_256
#undef GMEM__AVX_VNNI
#endif /* GMEM__X86 */
