/* The narrow kernels of vector instructions, every one that this processor has, and those in plain C that stand in for
 * them; and which of them is chosen. Tiles are in test_amx.c. */
#include "block.h"

static void check_kernel_and_edges(const gmem__narrow *kernel) {
    check_kernel(kernel);
    if (kernel->type == GMEM_F32)
        check_edges_f32(kernel);
    else if (kernel->type == GMEM_BF16)
        check_edges_bf16(kernel);
    else
        check_edges_i8(kernel);
    printf("%s ", kernel->name);
}

static void test_portable(void) {
    CHECK_INT(gmem__portable_bf16()->type, GMEM_BF16);
    CHECK_INT(gmem__portable_i8()->type, GMEM_I8);
    check_kernel_and_edges(gmem__portable_bf16());
    check_kernel_and_edges(gmem__portable_i8());
    for (int i = 0; gmem__portable_like(i); i++)
        check_kernel_and_edges(gmem__portable_like(i));
}

#ifdef GMEM__X86
/* A stand-in's packing must be the instruction's. */
static int is_like(const gmem__narrow *a, const gmem__narrow *b) {
    return a->type == b->type && a->mr == b->mr && a->nr == b->nr && a->strips == b->strips && a->block == b->block &&
           a->offset == b->offset && a->keep == b->keep;
}

static void check_stand_in(const gmem__narrow *kernel) {
    for (; kernel; kernel = kernel->thinner) {
        int found = 0;
        for (int i = 0; gmem__portable_like(i); i++)
            found |= is_like(kernel, gmem__portable_like(i));
        if (!CHECK(found)) printf("    nothing stands in for %s\n", kernel->name);
        if (kernel->thinner) CHECK(kernel->thinner->nr < kernel->nr && kernel->thinner->mr == kernel->mr);
    }
}

/* Also those that the table passes over as slow. */
static void check_instruction(int has, const gmem__narrow *kernel) {
    if (!kernel) return;
    CHECK(kernel->nr >= 16);
    check_stand_in(kernel);
    for (; has && kernel; kernel = kernel->thinner)
        check_kernel_and_edges(kernel);
}

static void test_instructions(void) {
    const gmem__features has = gmem__processor_features();
    const gmem__narrow *const half = gmem__avx512_dots(GMEM_BF16);
    check_instruction(has.avx512_bf16, half);
    check_instruction(has.avx512_vnni, gmem__avx512_dots(GMEM_I8));
    check_instruction(has.avx512, gmem__avx512_widened(GMEM_BF16));
    check_instruction(has.avx512, gmem__avx512_widened(GMEM_F32));
    check_instruction(has.avx_vnni, gmem__avx_vnni_dots());
    check_instruction(has.avx2, gmem__avx2_dots(GMEM_BF16));
    check_instruction(has.avx2, gmem__avx2_dots(GMEM_I8));
    check_instruction(has.avx2, gmem__avx2_dots(GMEM_F32));
#ifndef EMULATED_H /* arithmetic in f32 keeps subnormals */
    for (const gmem__narrow *kernel = has.avx512_bf16 ? half : NULL; kernel; kernel = kernel->thinner)
        check_subnormal_bf16(kernel);
#endif
}

/* A choice of what the processor lacks would end in an illegal instruction. */
static void test_choice(void) {
    const gmem__features has = gmem__processor_features();
    const gmem__narrow *const half = gmem__avx512_dots(GMEM_BF16), *const wide = gmem__avx512_dots(GMEM_I8);
    const gmem__narrow *const vnni = gmem__avx_vnni_dots();
    const gmem__narrow *const bytes = has.avx_vnni && vnni ? vnni : gmem__avx2_dots(GMEM_I8);
    const int fast_half = has.avx512_bf16 && has.amd && half != NULL;
    CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_BF16) == gmem__avx2_dots(GMEM_BF16));
    CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_F32) == gmem__avx2_dots(GMEM_F32));
    CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_I8) == bytes);
    CHECK(gmem__narrow_of(GMEM_ISA_AVX512, GMEM_BF16) == (fast_half ? half : gmem__avx512_widened(GMEM_BF16)));
    CHECK(gmem__narrow_of(GMEM_ISA_AVX512, GMEM_F32) == (fast_half ? NULL : gmem__avx512_widened(GMEM_F32)));
    CHECK(gmem__narrow_of(GMEM_ISA_AVX512, GMEM_I8) == (has.avx512_vnni && wide ? wide : bytes));
}

/* What the system says of the processor is what was found; it may know of more than it saves the registers of. */
static void check_feature(const char *name, int found) {
    const int known = cpuinfo_has(name);
    if (!CHECK(known < 0 || found <= known)) printf("    %s is not there\n", name);
    if (known > 0 && !found) printf("%s is not used\n", name);
}

static void test_features(void) {
#ifndef EMULATED_H
    const gmem__features has = gmem__processor_features();
    check_feature("avx2", has.avx2);
    check_feature("avx512bw", has.avx512);
    check_feature("avx512_bf16", has.avx512_bf16);
    check_feature("avx512_vnni", has.avx512_vnni);
    check_feature("avx_vnni", has.avx_vnni);
    check_feature("amx_tile", has.amx);
    if (cpuinfo_has("avx2") == 1 && cpuinfo_has("fma") == 1 && cpuinfo_has("f16c") == 1) CHECK(has.avx2);
#endif
}
#else
static void test_instructions(void) {}
static void test_choice(void) { CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_I8) == gmem__portable_i8()); }
static void test_features(void) {}
#endif

int main(void) {
    CHECK(gmem__narrow_of(GMEM_ISA_SCALAR, GMEM_BF16) == NULL);
    CHECK(gmem__narrow_of(GMEM_ISA_SCALAR, GMEM_F32) == NULL);
    CHECK(gmem__narrow_of(GMEM_ISA_SCALAR, GMEM_I8) == gmem__portable_i8());
    test_features();
    test_choice();
    test_portable();
    test_instructions();
    printf("tested\n");
    return check_report();
}
