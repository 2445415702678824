/* What this machine is, what the process takes of it, and how fast its memory is read. */
#define _DEFAULT_SOURCE
#include "machine.h"

#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

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

/* A line of Linux's own file, in bytes; 0 where there is none. getrusage counts what the process was before it began
 * this program, a parent's pages among it; this does not. */
static int64_t linux_status(const char *field) {
    char line[256];
    int64_t bytes = 0;
    size_t length = strlen(field);
    FILE *status = fopen("/proc/self/status", "r");
    while (status && bytes == 0 && fgets(line, sizeof line, status)) {
        if (strncmp(line, field, length) == 0) bytes = 1024 * (int64_t)strtoll(line + length, NULL, 10);
    }
    if (status) fclose(status);
    return bytes;
}

int64_t resident_bytes_now(void) { return linux_status("VmRSS:"); }

int64_t flushing_bytes(void) {
    int64_t least = (int64_t)64 << 20, most = (int64_t)512 << 20, bytes = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    bytes = 2 * (int64_t)sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return bytes < least ? least : bytes > most ? most : bytes;
}

int64_t resident_bytes_peak(void) {
    struct rusage usage;
    int64_t peak = linux_status("VmHWM:");
    if (peak > 0) return peak;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#ifdef __APPLE__
    return usage.ru_maxrss;
#else
    return (int64_t)usage.ru_maxrss * 1024;
#endif
}

/* memory ---------------------------------------------------------------------------------------------------------- */

#define STREAM_BYTES ((int64_t)512 << 20) /* more than any cache holds */

enum { STREAMS_MOST = 4 };

/* One word of each line of 64 bytes: with more reads than that a processor asks for fewer lines at a time. In as many
 * streams, each a part of the whole: some processors fetch more where several are read. */
static uint64_t sum_lines(const uint64_t *words, int64_t count, int streams) {
    const int64_t part = count / streams;
    uint64_t sums[STREAMS_MOST] = {0};
    for (int64_t i = 0; i + 8 <= part; i += 8)
        for (int s = 0; s < streams; s++)
            sums[s] += words[s * part + i];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

double measure_bandwidth(int threads) {
    int64_t count = STREAM_BYTES / 8, part = count / threads;
    uint64_t *words = (uint64_t *)malloc((size_t)STREAM_BYTES);
    volatile uint64_t sink = 0;
    double best = 0;
    if (!words) return 0;
    memset(words, 1, (size_t)STREAM_BYTES);
    for (int run = 0; run < 10; run++) {
        const int streams = run % 2 ? STREAMS_MOST : 1;
        double start = seconds_now();
        uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) reduction(+ : sum) schedule(static)
#endif
        for (int t = 0; t < threads; t++) {
            sum += sum_lines(words + t * part, part, streams);
        }
        double rate = (double)(part * threads * 8) / (seconds_now() - start);
        sink = sink + sum;
        if (rate > best) best = rate;
    }
    free(words);
    return best;
}
