/* Ctrl-C: the signal sets a flag, long work looks at it and ends as after any error. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "report.h"

void interrupt_install(void);
/* OUTCOME_DONE, or OUTCOME_INTERRUPTED with the error filled once a signal has come. */
outcome interrupt_check(gmem_error *error);
int interrupt_pending(void);

#endif /* INTERRUPT_H */
