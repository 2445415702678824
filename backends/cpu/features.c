/* What the processor can do and the system lets it: the one place that asks (Intel SDM, volume 2, CPUID). */
#include "cpu.h"

#ifdef GMEM__X86
#include <cpuid.h>

enum { GMEM__CPUID_A, GMEM__CPUID_B, GMEM__CPUID_C, GMEM__CPUID_D };

typedef struct gmem__cpuid_leaf {
    unsigned registers[4]; /* a to d; zero where the processor has no such leaf */
} gmem__cpuid_leaf;

static gmem__cpuid_leaf gmem__cpuid(unsigned leaf, unsigned subleaf) {
    gmem__cpuid_leaf found;
    memset(&found, 0, sizeof found);
    unsigned *const r = found.registers;
    if (!__get_cpuid_count(leaf, subleaf, r, r + 1, r + 2, r + 3)) memset(&found, 0, sizeof found);
    return found;
}

static int gmem__cpuid_has(const gmem__cpuid_leaf *leaf, int name, unsigned bits) {
    return (leaf->registers[name] & bits) == bits;
}

/* XCR0: the registers that the system saves. */
static unsigned gmem__saved_registers(const gmem__cpuid_leaf *basic) {
    unsigned low, high;
    if (!gmem__cpuid_has(basic, GMEM__CPUID_C, 1u << 27)) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

GMEM__FN gmem__features gmem__processor_features(void) {
    const unsigned fma_avx_f16c = 1u << 12 | 1u << 28 | 1u << 29, avx2 = 1u << 5;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    const unsigned tiles = 1u << 22 | 1u << 24 | 1u << 25;             /* AMX-BF16, AMX-TILE, AMX-INT8 */
    const unsigned ymm = 0x6, zmm = 0xe6, tile_state = 3u << 17;
    const gmem__cpuid_leaf vendor = gmem__cpuid(0, 0), basic = gmem__cpuid(1, 0);
    const gmem__cpuid_leaf wide = gmem__cpuid(7, 0), later = gmem__cpuid(7, 1);
    const unsigned saved = gmem__saved_registers(&basic);
    gmem__features has;
    memset(&has, 0, sizeof has);
    has.amd =
        vendor.registers[GMEM__CPUID_B] == signature_AMD_ebx && vendor.registers[GMEM__CPUID_C] == signature_AMD_ecx;
    has.avx2 = (saved & ymm) == ymm && gmem__cpuid_has(&basic, GMEM__CPUID_C, fma_avx_f16c) &&
               gmem__cpuid_has(&wide, GMEM__CPUID_B, avx2);
    has.avx512 = has.avx2 && (saved & zmm) == zmm && gmem__cpuid_has(&wide, GMEM__CPUID_B, avx512);
    has.avx512_vnni = has.avx512 && gmem__cpuid_has(&wide, GMEM__CPUID_C, 1u << 11);
    has.avx512_bf16 = has.avx512 && gmem__cpuid_has(&later, GMEM__CPUID_A, 1u << 5);
    has.avx_vnni = has.avx2 && gmem__cpuid_has(&later, GMEM__CPUID_A, 1u << 4);
    has.amx = has.avx512 && (saved & tile_state) == tile_state && gmem__cpuid_has(&wide, GMEM__CPUID_D, tiles);
    return has;
}
#endif /* GMEM__X86 */
