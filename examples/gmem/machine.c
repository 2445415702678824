/* What this machine can do at most: multiply-adds from registers, and reads from memory, on all threads. bench/gemm.c
 * takes its peak from here too. */
#define _DEFAULT_SOURCE
#include "machine.h"

#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

const char *cpu_model(char *out, size_t bytes) {
    char line[512];
    FILE *info = fopen("/proc/cpuinfo", "r");
#if defined(__x86_64__)
    snprintf(out, bytes, "x86-64");
#elif defined(__aarch64__)
    snprintf(out, bytes, "aarch64");
#else
    snprintf(out, bytes, "unknown");
#endif
    while (info && fgets(line, sizeof line, info)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        snprintf(out, bytes, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        break;
    }
    if (info) fclose(info);
    return out;
}

/* getrusage counts what the process was before it began this program, a parent's pages among it; Linux's own file does
 * not. */
static int64_t linux_resident_peak(void) {
    char line[256];
    long long kilobytes = 0;
    FILE *status = fopen("/proc/self/status", "r");
    if (!status) return 0;
    while (fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %lld kB", &kilobytes) != 1) {
    }
    fclose(status);
    return kilobytes * 1024;
}

int64_t resident_bytes_peak(void) {
    struct rusage usage;
    int64_t peak = linux_resident_peak();
    if (peak > 0) return peak;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
    return usage.ru_maxrss;
#else
    return (int64_t)usage.ru_maxrss * 1024;
#endif
}

/* multiply-adds --------------------------------------------------------------------------------------------------- */

#define CHAINS 12 /* independent ones: two units times the latency of four, and some to spare */

/* The loop of one instruction set, in registers: what it computes is returned, so that it is computed. */
typedef float (*peak_loop)(int64_t rounds);

#define PEAK_LOOP(linkage, name, vector, set, fma)                                                       \
    linkage float name(int64_t rounds) {                                                                 \
        const vector f = set(0.999f);                                                                    \
        vector a = set(0.0f), b = set(0.1f), c = set(0.2f), d = set(0.3f), e = set(0.4f), g = set(0.5f); \
        vector h = set(0.6f), i = set(0.7f), j = set(0.8f), k = set(0.9f), l = set(1.0f), m = set(1.1f); \
        float first;                                                                                     \
        for (int64_t round = 0; round < rounds; round++) {                                               \
            a = fma(a, f), b = fma(b, f), c = fma(c, f), d = fma(d, f), e = fma(e, f), g = fma(g, f);    \
            h = fma(h, f), i = fma(i, f), j = fma(j, f), k = fma(k, f), l = fma(l, f), m = fma(m, f);    \
        }                                                                                                \
        a = fma(fma(fma(a, b), fma(c, d)), fma(fma(e, g), fma(h, i)));                                   \
        a = fma(a, fma(fma(j, k), fma(l, m)));                                                           \
        memcpy(&first, &a, sizeof first);                                                                \
        return first;                                                                                    \
    }

#define SCALAR_SET(x)    (x)
#define SCALAR_FMA(x, y) ((x) * (y) + (y))
PEAK_LOOP(static, peak_scalar, float, SCALAR_SET, SCALAR_FMA)

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define VECTOR_PEAKS
#define AVX2_LINKAGE     static __attribute__((target("avx2,fma")))
#define AVX2_FMA(x, y)   _mm256_fmadd_ps(x, y, y)
#define AVX512_LINKAGE   static __attribute__((target("avx512f")))
#define AVX512_FMA(x, y) _mm512_fmadd_ps(x, y, y)
PEAK_LOOP(AVX2_LINKAGE, peak_avx2, __m256, _mm256_set1_ps, AVX2_FMA)
PEAK_LOOP(AVX512_LINKAGE, peak_avx512, __m512, _mm512_set1_ps, AVX512_FMA)
#endif

static peak_loop loop_of(gmem_isa isa, int *lanes) {
#ifdef VECTOR_PEAKS
    if (isa == GMEM_ISA_AVX2) {
        *lanes = 8;
        return peak_avx2;
    }
    if (isa >= GMEM_ISA_AVX512) {
        *lanes = 16;
        return peak_avx512;
    }
#endif
    (void)isa;
    *lanes = 1;
    return peak_scalar;
}

/* The best of several tenths of a second: whatever else runs can only slow it down. */
double measure_peak_flops(gmem_isa isa, int threads) {
    enum { ROUNDS = 20000 };
    int lanes = 1;
    double best = 0, begun = seconds_now();
    volatile float sink = 0;
    peak_loop loop = loop_of(isa, &lanes);
    while (seconds_now() - begun < 0.5) {
        double start = seconds_now();
        float sum = 0;
        int repeat = 50;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
#endif
        for (int t = 0; t < threads; t++) {
            for (int i = 0; i < repeat; i++) {
                sum += loop(ROUNDS);
            }
        }
        double flops = 2.0 * lanes * CHAINS * ROUNDS * repeat * threads / (seconds_now() - start);
        sink = sink + sum;
        if (flops > best) best = flops;
    }
    return best;
}

/* memory ---------------------------------------------------------------------------------------------------------- */

#define STREAM_BYTES ((int64_t)256 << 20) /* more than any cache holds */

static uint64_t sum_words(const uint64_t *words, int64_t count) {
    uint64_t a = 0, b = 0, c = 0, d = 0; /* several sums, so that reads do not wait for additions */
    for (int64_t i = 0; i + 4 <= count; i += 4) {
        a += words[i];
        b += words[i + 1];
        c += words[i + 2];
        d += words[i + 3];
    }
    return a + b + c + d;
}

double measure_bandwidth(int threads) {
    int64_t count = STREAM_BYTES / 8, part = count / threads;
    uint64_t *words = (uint64_t *)malloc((size_t)STREAM_BYTES);
    volatile uint64_t sink = 0;
    double best = 0;
    if (!words) return 0;
    memset(words, 1, (size_t)STREAM_BYTES);
    for (int run = 0; run < 5; run++) {
        double start = seconds_now();
        uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
#endif
        for (int t = 0; t < threads; t++) {
            sum += sum_words(words + t * part, part);
        }
        double rate = (double)(part * threads * 8) / (seconds_now() - start);
        sink = sink + sum;
        if (rate > best) best = rate;
    }
    free(words);
    return best;
}
