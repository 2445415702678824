/* In place of features.c where instructions are emulated (emulated.h): the processor that GMEM_EMULATED names. */
#include "../backends/cpu/cpu.h"

#include <stdlib.h>

GMEM__FN gmem__features gmem__processor_features(void) {
    const char *name = getenv("GMEM_EMULATED");
    const int zen4 = !name || strcmp(name, "zen4") == 0;
    gmem__features has;
    memset(&has, 0, sizeof has);
    has.avx2 = has.avx512 = has.avx512_vnni = 1;
    has.amd = has.avx512_bf16 = zen4;
    has.avx_vnni = !zen4;
    return has;
}
