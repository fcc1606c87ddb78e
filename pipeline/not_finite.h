/* What is said where a model computes no numbers. */
#ifndef DECANT_PIPELINE_NOT_FINITE_H
#define DECANT_PIPELINE_NOT_FINITE_H

#include "pipeline/job.h"

/* Local; DECANT_ERROR_INPUT. Names the tensor of the job's model that is no number, where there is one, which
 * reads all of them; else what a model computes, "the loss of …", and that weights are too large.
 *   model   DECANT_VALIDATION_ORIGINAL, the job's, or DECANT_VALIDATION_QUANTIZED: whose folder or file is
 * named */
decant_status decant_job_tell_not_finite(const decant_job *job, int model, const char *what, decant_error *err);

#endif
