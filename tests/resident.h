/* How much of this process is in memory, as the system counts it. */
#ifndef RESIDENT_H
#define RESIDENT_H

#include <stdint.h>
#include <stdio.h>

/* Bytes, or -1 where the system does not tell. */
static inline int64_t resident_bytes(void) {
    char line[128];
    long long kilobytes = -1;
    FILE *file = fopen("/proc/self/smaps_rollup", "r"); /* exact, where other files estimate */
    if (!file) return -1;
    while (kilobytes < 0 && fgets(line, sizeof line, file)) {
        if (sscanf(line, "Rss: %lld kB", &kilobytes) != 1) kilobytes = -1;
    }
    fclose(file);
    return kilobytes < 0 ? -1 : (int64_t)kilobytes * 1024;
}

#endif /* RESIDENT_H */
