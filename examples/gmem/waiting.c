/* By default OpenMP's threads spin for milliseconds at every barrier. Where other programs want the processor too, that
 * is ten times the run's work; 1000 rounds, some tens of microseconds, cost nothing on an idle machine. The runtime
 * reads this when it is loaded, so the program starts itself once more. */
#define _POSIX_C_SOURCE 200809L
#include "waiting.h"

#include <stdlib.h>
#include <unistd.h>

#if defined(_OPENMP) && defined(__linux__)

void wait_briefly(char **argv) {
    static const char *const choices[] = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"};
    char program[4096];
    for (size_t i = 0; i < sizeof choices / sizeof *choices; i++) {
        if (getenv(choices[i])) return; /* the user's, or ours the second time */
    }
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0 || setenv("GOMP_SPINCOUNT", "1000", 1) != 0 || setenv("KMP_BLOCKTIME", "0", 1) != 0) return;
    program[length] = 0;
    execv(program, argv); /* where that fails, all goes on as it is */
}

#else

void wait_briefly(char **argv) { (void)argv; }

#endif
