/* The operands of narrow products without vector instructions: the template on vectors of one lane. */
#include "narrow.h"

#include <math.h>

#define GMEM__K(name)       gmem__scalar_##name
#define V_WIDTH             1
#define V_F32               float
#define V_I32               uint32_t
#define V_LOAD(p)           (*(p))
#define V_STORE(p, a)       (*(p) = (a))
#define V_ZERO()            0.0f
#define V_SET1(a)           ((float)(a))
#define V_ADD(a, b)         ((a) + (b))
#define V_MUL(a, b)         ((a) * (b))
#define V_DIV(a, b)         ((a) / (b))
#define V_FMA(a, b, c)      ((a) * (b) + (c))
#define V_MAX(a, b)         ((a) > (b) ? (a) : (b))
#define V_ABS(a)            fabsf(a)
#define V_ROUND(a)          rintf(a)
#define V_SUM(a)            (a)
#define V_MAXIMUM(a)        (a)
#define V_ROUND_BF16(a)     gmem__bf16_to_f32(gmem__f32_to_bf16(a))
#define V_WORD_BF16(lo, hi) ((uint32_t)gmem__f32_to_bf16(lo) | (uint32_t)gmem__f32_to_bf16(hi) << 16)
#define V_WORD_I8(a, b, c, d) \
    (gmem__byte_of(a) | gmem__byte_of(b) << 8 | gmem__byte_of(c) << 16 | gmem__byte_of(d) << 24)
#define V_ADD_BYTES(word, n) gmem__add_bytes((word), (uint32_t)(n)*0x01010101u)
#define V_STORE_WORDS(p, a)  (*(p) = (a))
#define V_FROM_I32(p, minus) ((float)(*(p) - (minus)))
#define V_STORE_I8(p, a)     (*(p) = (signed char)gmem__small_int(a))
#define V_STORE_BF16(p, a)   gmem__store_bf16((p), (a))

/* Rounded to nearest even; what is not finite has shown itself in the scale. */
GMEM__INLINE int gmem__small_int(float a) { return a > -128.5f && a < 127.5f ? (int)rintf(a) : 0; }
/* Byte by byte, without carries between them. */
GMEM__INLINE uint32_t gmem__add_bytes(uint32_t a, uint32_t b) {
    return ((a & 0x7f7f7f7fu) + (b & 0x7f7f7f7fu)) ^ ((a ^ b) & 0x80808080u);
}
GMEM__INLINE uint32_t gmem__byte_of(float a) { return (uint32_t)gmem__small_int(a) & 0xff; }
GMEM__INLINE void gmem__store_bf16(char *p, float a) {
    const uint16_t half = gmem__f32_to_bf16(a);
    memcpy(p, &half, sizeof half);
}
GMEM__INLINE float gmem__scalar_load_lanes(const float *p, int64_t lanes) {
    (void)lanes;
    return *p;
}
GMEM__INLINE void gmem__scalar_store_lanes(float *p, float a, int64_t lanes) {
    (void)lanes;
    *p = a;
}
static void gmem__scalar_convert(const gmem__weight *weight, int64_t row, int64_t k, int64_t count, float *out) {
    gmem__scalar_weights(weight, row, k, count, out);
}

#include "narrow.inc"

GMEM__FN const gmem__narrow_rows *gmem__scalar_narrow(void) { return gmem__scalar_narrow_rows(); }

#include "vector_end.inc"
