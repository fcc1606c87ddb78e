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

/* [windows, window] of --text. */
decant_status decant_job_read_text(decant_job *job, decant_token_array *text, decant_error *err);

#endif
