/* The narrow kernels of vector instructions, every one that this processor has, and those in plain C that stand in for
 * them; and which of them is chosen. Tiles are in test_amx.c. */
#include "block.h"

static void check_kernel_and_edges(const gmem__narrow *kernel) {
    check_kernel(kernel);
    if (kernel->type == GMEM_BF16)
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
static void check_instruction(gmem_isa isa, const char *feature, const gmem__narrow *kernel) {
    if (!kernel) return;
    CHECK(kernel->nr >= 16);
    check_stand_in(kernel);
    if (!gmem__cpu_ops(isa, NULL) || (feature && cpuinfo_has(feature) != 1)) return;
    for (; kernel; kernel = kernel->thinner) {
        check_kernel_and_edges(kernel);
        if (feature && kernel->type == GMEM_BF16) check_subnormal_bf16(kernel); /* f32 arithmetic keeps them */
    }
}

static void test_instructions(void) {
    check_instruction(GMEM_ISA_AVX512, "avx512_bf16", gmem__avx512_dots(GMEM_BF16));
    check_instruction(GMEM_ISA_AVX512, "avx512_vnni", gmem__avx512_dots(GMEM_I8));
    check_instruction(GMEM_ISA_AVX2, "avx_vnni", gmem__avx_vnni_dots());
    check_instruction(GMEM_ISA_AVX2, NULL, gmem__avx2_dots(GMEM_BF16));
    check_instruction(GMEM_ISA_AVX2, NULL, gmem__avx2_dots(GMEM_I8));
}

/* A choice of what the processor lacks would end in an illegal instruction. */
static void test_choice(void) {
    const gmem__narrow *wide = gmem__narrow_of(GMEM_ISA_AVX512, GMEM_I8), *bytes = gmem__avx2_dots(GMEM_I8);
    const gmem__narrow *half = gmem__narrow_of(GMEM_ISA_AVX512, GMEM_BF16), *vnni = gmem__avx_vnni_dots();
    const int wide_vnni = gmem__avx512_dots(GMEM_I8) ? cpuinfo_has("avx512_vnni") : 0,
              narrow_vnni = vnni ? cpuinfo_has("avx_vnni") : 0;
    CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_BF16) == gmem__avx2_dots(GMEM_BF16));
    CHECK(half == NULL || half == gmem__avx512_dots(GMEM_BF16));
    if (cpuinfo_has("avx512_bf16") == 0) CHECK(half == NULL);
    if (narrow_vnni >= 0) CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_I8) == (narrow_vnni ? vnni : bytes));
    if (wide_vnni == 1) CHECK(wide == gmem__avx512_dots(GMEM_I8));
    if (wide_vnni == 0) CHECK(wide == gmem__narrow_of(GMEM_ISA_AVX2, GMEM_I8));
}
#else
static void test_instructions(void) {}
static void test_choice(void) { CHECK(gmem__narrow_of(GMEM_ISA_AVX2, GMEM_I8) == gmem__portable_i8()); }
#endif

int main(void) {
    CHECK(gmem__narrow_of(GMEM_ISA_SCALAR, GMEM_BF16) == NULL);
    CHECK(gmem__narrow_of(GMEM_ISA_SCALAR, GMEM_I8) == gmem__portable_i8());
    test_choice();
    test_portable();
    test_instructions();
    printf("tested\n");
    return check_report();
}
