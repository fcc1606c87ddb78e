/* How a job's ranks hold their layers while they calibrate: the plan (pipeline/plan.h), asked with what the
 * ranks have. */
#ifndef DECANT_PIPELINE_MEMORY_CHOICE_H
#define DECANT_PIPELINE_MEMORY_CHOICE_H

#include "pipeline/job.h"

typedef struct decant_memory_choice {
    bool streamed; /* one layer after the other, in place of all of a rank's */
    bool on_disk;  /* streamed: what lies between layers goes to --scratch */
    bool retain;   /* resident: keep what blocks keep, in place of computing it again */
} decant_memory_choice;

/* Collective. The same choice on every rank. Where nothing fits, what comes closest, and a line that says what
 * would help: the formulas may be wrong by a little, the devices tell for sure. */
decant_status decant_job_choose_memory(decant_job *job, const decant_token_array *tokens,
                                       decant_memory_choice *choice, decant_error *err);

#endif
