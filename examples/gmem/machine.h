/* What this machine is and can do at most. */
#ifndef MACHINE_H
#define MACHINE_H

#include "gmem.h"

const char *cpu_model(char *out, size_t bytes); /* "AMD EPYC 9R14", or the architecture's name */
int64_t resident_bytes_peak(void);
int64_t resident_bytes_now(void); /* 0 where the system does not tell */
/* Bytes that push everything else out of this machine's caches. */
int64_t flushing_bytes(void);
/* Bytes a second read from memory by `threads` threads; 0 without memory to measure with. */
double measure_bandwidth(int threads);

#endif /* MACHINE_H */
