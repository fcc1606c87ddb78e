/* The token ids that a job reads: to calibrate with, to measure sensitivities on, to validate on. All functions
 * here are collective: every rank reads for itself, and all must have read the same. DECANT_ERROR_INPUT with
 * the file's name when it cannot be read, is too short or has ids outside the vocabulary; a warning when
 * sequences are longer than the model was made for. Freed with decant_token_array_free, after a failure too. */
#ifndef DECANT_PIPELINE_JOB_TOKENS_H
#define DECANT_PIPELINE_JOB_TOKENS_H

#include "pipeline/job.h"

/* [sequences, window] of --calibration. */
decant_status decant_job_read_calibration(decant_job *job, decant_token_array *tokens, decant_error *err);

/* The first of the calibration sequences, as many as --sensitivity-sequences says; random tokens where there is
 * no --calibration. */
decant_status decant_job_read_sensitivity_tokens(decant_job *job, decant_token_array *tokens,
                                                 decant_error *err);

/* [prompts, length] of --prompt, one prompt when the array is one long row. */
decant_status decant_job_read_prompts(decant_job *job, decant_token_array *prompts, decant_error *err);

/* What a container will be measured on: [windows, window] of --text and the questions of --choices, as far as
 * these are given. */
decant_status decant_job_read_inputs(decant_job *job, decant_validation_inputs *inputs, decant_error *err);
void decant_validation_inputs_free(decant_validation_inputs *inputs); /* takes empty ones */

#endif
