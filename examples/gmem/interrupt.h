/* Ctrl-C: the signal sets a flag, long work looks at it and ends as after any error. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "report.h"

void interrupt_install(void);
/* OUTCOME_DONE, or OUTCOME_INTERRUPTED with the error filled once a signal has come. */
outcome interrupt_check(gmem_error *error);
int interrupt_pending(void);
/* A gmem_bank_progress_fn: shows rows on a progress_bar and ends once a signal has come. */
int show_rows(void *bar, int64_t done, int64_t total);

#endif /* INTERRUPT_H */
