/* Ctrl-C ends the run between two passes or two writes, so that what was begun can be taken back. */
#define _POSIX_C_SOURCE 200809L
#include "interrupt.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t pending;

static void remember(int signal_number) {
    (void)signal_number;
    pending = 1;
}

/* Also where the parent ignores SIGINT, as shells do for what they start in the background: a signal that is sent on
 * purpose should end the run. */
void interrupt_install(void) {
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = remember;
    action.sa_flags = SA_RESTART; /* system calls go on: no file operation fails half-way */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL); /* nohup */
    action.sa_handler = SIG_IGN;          /* a file beyond the limit is a write that fails, not an end half-way */
    sigaction(SIGXFSZ, &action, NULL);
}

int interrupt_pending(void) { return pending != 0; }

int show_rows(void *bar, int64_t done, int64_t total) {
    progress_show((progress_bar *)bar, done, total, "rows");
    return interrupt_pending();
}

outcome interrupt_check(gmem_error *error) {
    if (!pending) return OUTCOME_DONE;
    failed(error, NULL, "interrupted");
    error->code = GMEM_E_CANCELLED;
    return OUTCOME_INTERRUPTED;
}
