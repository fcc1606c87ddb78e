/* Signals that ask a job to leave: SIGTERM and SIGUSR1. While this is listened to, they are only noted, for the
 * job to leave at a point from which it can go on later; a second one of the same kind acts at once, as without
 * listening. Knows nothing of what the job does then. */
#ifndef DECANT_PIPELINE_INTERRUPTION_H
#define DECANT_PIPELINE_INTERRUPTION_H

#include <stdbool.h>

void decant_interruption_listen(void);
void decant_interruption_ignore(void); /* signals act by themselves again */

/* Has one come, to this process, since it is listened to? */
bool decant_interruption_came(void);

#endif
