/* The sensitivity stage of a job: what each layer's error does to the loss, measured on the model itself. */
#ifndef DECANT_PIPELINE_SENSITIVITY_H
#define DECANT_PIPELINE_SENSITIVITY_H

#include "pipeline/quantization.h"
#include "stages/sensitivity.h"

/* Collective. Refuses, before the work, a model that does not fit every rank's device whole. */
decant_status decant_job_check_sensitivity(decant_job *job, const decant_token_array *tokens,
                                           decant_error *err);

/* Collective. Measures as --sensitivity noise|measured says and puts the predictions that follow into the
 * table. What is finished is noted in a journal beside the output, which stays until the job is complete.
 *   tokens   what to measure on
 *   share    this rank's quantized matrices
 *   result   created here; on failure empty */
decant_status decant_job_measure_sensitivity(decant_job *job, const decant_token_array *tokens,
                                             const decant_quantized_share *share, decant_error_table *table,
                                             decant_sensitivity *result, decant_error *err);

/* Removes the journal of a job that is complete. */
void decant_job_forget_sensitivity(const decant_job *job);

#endif
