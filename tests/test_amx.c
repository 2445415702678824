/* The tile kernels against sums in double and in integers: the stand-in, and the instructions where this machine has
 * them; every shape of leftover, and nothing read or written that isn't the block's. */
#include "block.h"

static void test_detection(void) {
    const int tiles = cpuinfo_has("amx_tile"), found = gmem__has_amx();
    if (tiles == 0) CHECK_INT(found, 0);
    CHECK_INT(gmem__has_amx(), found); /* asking again changes nothing */
    CHECK((gmem__amx_narrow(GMEM_BF16) != NULL) == found);
    CHECK((gmem__amx_narrow(GMEM_I8) != NULL) == found);
    CHECK(gmem__amx_narrow(GMEM_F32) == NULL);
    CHECK(gmem__amx_stand_in(GMEM_F32) == NULL);
    printf("AMX: %s\n", found ? "tested" : tiles > 0 ? "refused" : "none, the stand-in only");
}

static void check_tiles(const gmem__narrow *bf16, const gmem__narrow *int8) {
    check_kernel(bf16);
    check_edges_bf16(bf16);
    check_subnormal_bf16(bf16);
    check_kernel(int8);
    check_edges_i8(int8);
}

int main(void) {
    test_detection();
    check_tiles(gmem__amx_stand_in(GMEM_BF16), gmem__amx_stand_in(GMEM_I8));
    if (gmem__has_amx()) check_tiles(gmem__amx_narrow(GMEM_BF16), gmem__amx_narrow(GMEM_I8));
    return check_report();
}
