/* Which narrow kernel runs. An instruction's presence says nothing of its speed: AVX512-BF16 does twice the work of
 * f32's multiply-adds on AMD's Zen 4, and half of it on Intel's Sapphire Rapids, whose fast bf16 is AMX. Measured on
 * both; kept as a table, since a measurement at start could choose differently from run to run, and results with it.
 * Elsewhere bf16 is f32 arithmetic, on words of bf16, which take half of the memory. */
#include "narrow.h"

#ifdef GMEM__X86
static const gmem__narrow *gmem__wide_dots(const gmem__features *has, gmem_type type) {
    const int fast_bf16 = has->avx512_bf16 && has->amd && gmem__avx512_dots(GMEM_BF16) != NULL;
    if (type == GMEM_I8) return has->avx512_vnni ? gmem__avx512_dots(type) : NULL;
    if (type == GMEM_F32 && fast_bf16) return NULL;
    return fast_bf16 ? gmem__avx512_dots(type) : gmem__avx512_widened(type);
}

static const gmem__narrow *gmem__vector_dots(gmem_isa isa, gmem_type type) {
    const gmem__features has = gmem__processor_features();
    const gmem__narrow *wide = isa >= GMEM_ISA_AVX512 ? gmem__wide_dots(&has, type) : NULL;
    if (wide || (isa >= GMEM_ISA_AVX512 && type != GMEM_I8)) return wide;
    const gmem__narrow *vnni = type == GMEM_I8 && has.avx_vnni ? gmem__avx_vnni_dots() : NULL;
    return vnni ? vnni : gmem__avx2_dots(type);
}
#endif

GMEM__FN const gmem__narrow *gmem__narrow_of(gmem_isa isa, gmem_type type) {
#ifdef GMEM__X86
    if (isa == GMEM_ISA_AMX) return gmem__amx_narrow(type);
    if (isa >= GMEM_ISA_AVX2) return gmem__vector_dots(isa, type);
#endif
    (void)isa;
    return type == GMEM_I8 ? gmem__portable_i8() : NULL; /* the f32 loops are plain enough to be fast */
}
