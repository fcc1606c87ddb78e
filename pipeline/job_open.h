/* Opening a job: which backend a rank computes with, what is known of the model, and which layers, sequences
 * and matrices each rank has. Nothing is computed here, and no token is read. */
#ifndef DECANT_PIPELINE_JOB_OPEN_H
#define DECANT_PIPELINE_JOB_OPEN_H

#include "pipeline/job.h"

/* Collective. Fills *job but for its text and plan; ranks, options and log are borrowed until it is closed.
 * Closed with decant_job_close, after a failure too. DECANT_ERROR_INPUT for a model that decant does not know
 * or whose files are wrong, or that differs from rank to rank; DECANT_ERROR_DEVICE when the device that is
 * asked for is not there; DECANT_ERROR_USAGE when --replicas does not divide the ranks. */
decant_status decant_job_open(decant_job *job, decant_ranks *ranks, const decant_options *options,
                              decant_log *log, decant_error *err);

/* Local. Frees what the job owns, its plan included. */
void decant_job_close(decant_job *job);

#endif
