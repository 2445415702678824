/* Which narrow kernel runs. An instruction's presence says nothing of its speed: AVX512-BF16 does twice the work of
 * f32's multiply-adds on AMD's Zen 4, and half of it on Intel's Sapphire Rapids, whose fast bf16 is AMX. Measured on
 * both; kept as a table, since a measurement at start could choose differently from run to run, and results with it.
 * With AVX2 alone bf16 is f32 arithmetic too, on words of bf16, which take half of the memory. */
#include "narrow.h"

#ifdef GMEM__X86
static const gmem__narrow *gmem__vector_dots(gmem_isa isa, gmem_type type) {
    const gmem__features has = gmem__processor_features();
    const gmem__narrow *wide = isa >= GMEM_ISA_AVX512 ? gmem__avx512_dots(type) : NULL;
    if (type == GMEM_BF16 && isa >= GMEM_ISA_AVX512) return has.avx512_bf16 && has.amd ? wide : NULL;
    if (wide && has.avx512_vnni) return wide;
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
    return type == GMEM_BF16 ? NULL : gmem__portable_i8(); /* the f32 loops are plain enough to be fast */
}
