/* A job's plan: made before the work, so that memory that will not suffice is told then, and held against what
 * was taken, when it is done. */
#ifndef DECANT_PIPELINE_JOB_PLAN_H
#define DECANT_PIPELINE_JOB_PLAN_H

#include "pipeline/job.h"

/* Collective. Fills job->plan, the same on every rank: for the least memory that any of them has.
 *   calibration  the tokens; NULL when the Fisher sums come from a file
 * DECANT_ERROR_MEMORY, with one line that says what would fit, when it does not. That the validation will not
 * fit is said, but is no failure: the container is worth having. */
decant_status decant_job_plan(decant_job *job, const decant_token_array *calibration, decant_error *err);

/* Collective. Says and logs the peaks of memory, planned and measured, of every rank. */
void decant_job_report_memory(decant_job *job);

#endif
