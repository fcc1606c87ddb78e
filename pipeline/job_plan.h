/* A job's plan: made before the work, so that memory that will not suffice is told then, and held against what
 * was taken, when it is done. */
#ifndef DECANT_PIPELINE_JOB_PLAN_H
#define DECANT_PIPELINE_JOB_PLAN_H

#include "pipeline/job.h"

/* Collective. Fills job->plan, the same on every rank: for the least memory that any of them has.
 *   calibration  the tokens; NULL when the Fisher sums come from a file
 * DECANT_ERROR_MEMORY, with one line that says what would fit, when it does not. */
decant_status decant_job_plan(decant_job *job, const decant_token_array *calibration, decant_error *err);

/* Collective. Whether validation on this text takes one layer of both models after the other: when asked to,
 * or, with --memory auto, when all do not fit together. The same on every rank. */
decant_status decant_job_plan_validation(decant_job *job, const decant_token_array *text, bool *streamed,
                                         decant_error *err);

/* Collective. Says and logs the peaks of memory, planned and measured, of every rank. */
void decant_job_report_memory(decant_job *job);

#endif
