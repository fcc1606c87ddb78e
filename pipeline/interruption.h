/* Signals that ask a job to leave, SIGTERM and SIGUSR1: it ends with the exit status of DECANT_INTERRUPTED, and
 * the same command goes on. Either at once, as a kill would end it; or, while there is something to save first,
 * at a point from which it can go on, so that the first signal is only noted. Knows nothing of what is saved.
 */
#ifndef DECANT_PIPELINE_INTERRUPTION_H
#define DECANT_PIPELINE_INTERRUPTION_H

#include <stdbool.h>

/* Signals end the process at once. said: the line that is then written to stderr, with its end, kept by the
 * caller; NULL: nothing is. */
void decant_interruption_begin(const char *said);

void decant_interruption_defer(void);  /* signals are noted from now on */
void decant_interruption_act(void);    /* they act at once again; one that was noted does so now */
void decant_interruption_ignore(void); /* the work is all but done: they change nothing any more */

/* Has one come, to this process, since they are noted? */
bool decant_interruption_came(void);

#endif
