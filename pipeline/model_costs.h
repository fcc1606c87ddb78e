/* What the original and the quantized model take to run, measured on the parts that validation has loaded. */
#ifndef DECANT_PIPELINE_MODEL_COSTS_H
#define DECANT_PIPELINE_MODEL_COSTS_H

#include "pipeline/job.h"

/* Collective. Fills costs and peak_bytes of the result, the same on every rank.
 *   original    NULL when there is none
 *   quantized   parts of this rank; without layers on ranks that hold none
 * A batch passes the stages of the job one after the other, so that their times add up. Replicas hold the same
 * layers: the first one counts. */
decant_status decant_model_costs_measure(decant_job *job, const decant_model_part *original,
                                         const decant_model_part *quantized, decant_validation_result *result,
                                         decant_error *err);

#endif
