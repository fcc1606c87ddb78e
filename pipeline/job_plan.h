/* A job's plan: made before the work, so that memory that will not suffice is told then, and held against what
 * was taken, when it is done. */
#ifndef DECANT_PIPELINE_JOB_PLAN_H
#define DECANT_PIPELINE_JOB_PLAN_H

#include "pipeline/job.h"

/* Collective. Fills job->plan, the same on every rank: for the least memory that any of them has.
 *   calibration  the tokens; NULL when the Fisher sums come from a file
 *   text         what will be validated on; NULL or no sequences: nothing
 * DECANT_ERROR_MEMORY, with one line that says what would fit, when it does not. */
decant_status decant_job_plan(decant_job *job, const decant_token_array *calibration,
                              const decant_token_array *text, decant_error *err);

/* Collective. Says and logs the peaks of memory, planned and measured, of every rank. */
void decant_job_report_memory(decant_job *job);

#endif
