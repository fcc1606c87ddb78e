/* A job's work directory: what it belongs to, and what is kept there once calibration is done. */
#ifndef DECANT_PIPELINE_JOB_WORK_H
#define DECANT_PIPELINE_JOB_WORK_H

#include "pipeline/job.h"

/* Collective. Opens OUTPUT.work, whose lock keeps other jobs off the output. DECANT_ERROR_USAGE when another
 * job holds it, or when what is in it belongs to another job: made by another version of decant, from another
 * model or other tokens, with other options that shape the output, other replicas or another kind of device.
 *   tokens   to calibrate on; NULL: nothing will be kept */
decant_status decant_job_open_work(decant_job *job, const decant_token_array *tokens, decant_error *err);

/* Collective. Was any rank sent a signal, so that all leave? And is it time to save, by rank 0's clock, or
 * because they leave? */
decant_status decant_job_ask(decant_job *job, bool *leaves, bool *saves, decant_error *err);

/* Collective. Keeps finished Fisher sums in place of those that were saved on the way, when --checkpoint-every
 * seconds of work are in them that are not saved yet, or when a signal came: then DECANT_INTERRUPTED. Sums that
 * cannot be kept are told and do not end a job that was to go on. */
decant_status decant_job_keep_statistics(decant_job *job, const decant_fisher_sums *fisher,
                                         const decant_statistics_origin *origin, decant_error *err);

/* Collective. DECANT_INTERRUPTED when a signal came to any rank; from then on one ends the process at once. */
decant_status decant_job_heed_signals(decant_job *job, decant_error *err);

/* Local. Lets go of the directory; removes it when the job is complete, or when there is nothing in it. */
void decant_job_close_work(decant_job *job);

#endif
