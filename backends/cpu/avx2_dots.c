/* Narrow kernels on 256 bits, for int8: AVX-VNNI's dot products, and for processors without them AVX2's products of
 * pairs of 16 bits. Its products of bytes take one instruction less, but three to a dot product that compete for the
 * same two ports, against two. */
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

/* Quads of bytes as two pairs of 16 bits: their first and third values, their second and fourth. */
typedef struct gmem__byte_pairs {
    __m256i even, odd;
} gmem__byte_pairs;

GMEM__INLINE gmem__byte_pairs gmem__avx2_split(const uint32_t *p) {
    const __m256i quads = GMEM__LOAD_256(p);
    gmem__byte_pairs x;
    x.even = _mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8);
    x.odd = _mm256_srai_epi16(quads, 8);
    return x;
}
GMEM__INLINE __m256i gmem__avx2_dot(__m256i sum, gmem__byte_pairs w, gmem__byte_pairs x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w.even, x.even));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w.odd, x.odd));
}

#define GMEM__SPLIT_BLOCK 288                     /* words of a block */
#define GMEM__SPLIT_WORDS (4 * GMEM__SPLIT_BLOCK) /* between a strip's even and odd halves */

GMEM__INLINE gmem__byte_pairs gmem__avx2_broadcast(const uint32_t *p) {
    gmem__byte_pairs w;
    w.even = _mm256_set1_epi32((int)p[0]);
    w.odd = _mm256_set1_epi32((int)p[GMEM__SPLIT_WORDS]);
    return w;
}

/* 4 rows: both operands take two registers. */
#define GMEM__MR            4
#define GMEM__REPEAT(X)     X(0) X(1) X(2) X(3)
#define GMEM__K(name)       gmem__avx2_i8_##name
#define D_VECTORS           2
#define D_WIDTH             8
#define D_VECTOR            gmem__byte_pairs
#define D_SUM               __m256i
#define D_ELEMENT           int32_t
#define D_BROADCAST(p)      gmem__avx2_broadcast(p)
#define D_DOT(sum, w, x)    gmem__avx2_dot((sum), (w), (x))
#define D_ADD(a, b)         _mm256_add_epi32((a), (b))
#define D_ZERO()            _mm256_setzero_si256()
#define D_LOAD(p)           gmem__avx2_split(p)
#define D_LOAD_SUM(p)       GMEM__LOAD_256(p)
#define D_STORE_SUM(p, sum) GMEM__STORE_256((p), (sum))
#include "dots.inc"
#include "dots_end.inc"

/* The strip is split once for all panels. */
static void gmem__avx2_i8_multiply_split(const gmem__narrow_block *block) {
    uint32_t halves[2 * GMEM__SPLIT_WORDS];
    gmem__narrow_block split = *block;
    for (int64_t i = 0; i < block->words * GMEM__MR; i += 8) {
        const gmem__byte_pairs w = gmem__avx2_split(block->weights + i);
        GMEM__STORE_256(halves + i, w.even);
        GMEM__STORE_256(halves + GMEM__SPLIT_WORDS + i, w.odd);
    }
    split.weights = halves;
    gmem__avx2_i8_multiply(&split);
}
#undef GMEM__MR
#undef GMEM__REPEAT

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

GMEM__FN const gmem__narrow *gmem__avx_vnni_dots(void) {
#ifdef GMEM__AVX_VNNI
    static const gmem__narrow vnni = {"avx-vnni", GMEM_I8, 6, 16, 1, 288, 1, 1, NULL, NULL, gmem__avx_vnni_multiply,
                                      NULL};
    return &vnni;
#else
    return NULL;
#endif
}

GMEM__FN const gmem__narrow *gmem__avx2_dots(void) {
    static const gmem__narrow bytes = {
        "avx2-int8", GMEM_I8, 4, 16, 1, GMEM__SPLIT_BLOCK, 0, 1, NULL, NULL, gmem__avx2_i8_multiply_split, NULL};
    return &bytes;
}

#undef V_PREFETCH
#undef GMEM__SPLIT_BLOCK
#undef GMEM__SPLIT_WORDS
#undef GMEM__LOAD_256
#undef GMEM__STORE_256
#undef GMEM__AVX_VNNI
#endif /* GMEM__X86 */
