/* How many bytes the quantized layers of a job may take: what --bits or --size asks for, less what else the
 * container holds. */
#ifndef DECANT_PIPELINE_JOB_BUDGET_H
#define DECANT_PIPELINE_JOB_BUDGET_H

#include "pipeline/job.h"

/* Local. The budget in bytes of the quantized layers.
 *   weights          how many weights these layers have
 *   smallest_bytes   what they take at their smallest candidates
 * DECANT_ERROR_USAGE when the budget cannot be kept, DECANT_ERROR_INPUT when a tensor of the model is not there
 * or of another shape. */
decant_status decant_job_find_budget(decant_job *job, int64_t weights, int64_t smallest_bytes, int64_t *bytes,
                                     decant_error *err);

/* Collective. Refuses a budget that cannot be kept before the work: sizes are known from the shapes alone. */
decant_status decant_job_check_budget(decant_job *job, decant_error *err);

#endif
