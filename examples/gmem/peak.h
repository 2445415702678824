/* The most that this processor's instructions can do: what a kernel is measured against. */
#ifndef PEAK_H
#define PEAK_H

/* An instruction that products are made of. */
typedef enum peak_kind {
    PEAK_SCALAR,
    PEAK_AVX2_F32,
    PEAK_AVX512_F32,
    PEAK_AVX512_BF16, /* dot products of pairs */
    PEAK_AVX2_INT8,   /* multiply and add pairs, twice */
    PEAK_AVX_VNNI,
    PEAK_AVX512_VNNI,
    PEAK_AMX_BF16,
    PEAK_AMX_INT8,
    PEAK_COUNT
} peak_kind;

const char *peak_name(peak_kind kind); /* "avx512-bf16": the kernels of that name run on it */
/* Whether this processor has it and the system lets this process use it. */
int peak_exists(peak_kind kind);
/* The instruction of the kernels of that name (gmem_context_kernels); bf16 and int8 without kernels of their own are
 * computed in f32. */
peak_kind peak_of_kernels(const char *kernels);
/* Operations a second, an addition and a multiplication counting as two, on so many threads: the best of several runs,
 * for whatever else runs can only slow it down. It must exist. */
double measure_peak(peak_kind kind, int threads);

#endif /* PEAK_H */
