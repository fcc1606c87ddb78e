/* `decant generate`: the tokens that the quantized model and the original go on with after a prompt, and how
 * fast. */
#ifndef DECANT_PIPELINE_GENERATE_H
#define DECANT_PIPELINE_GENERATE_H

#include "pipeline/job.h"

/* Collective; takes one rank. Reads --prompt, generates --new-tokens for each of its sequences, with one model
 * in memory after the other, and prints what came of it. DECANT_ERROR_USAGE on several ranks;
 * DECANT_ERROR_INPUT for prompts that are none, and where a model's logits are no numbers. */
decant_status decant_job_generate(decant_job *job, decant_error *err);

#endif
