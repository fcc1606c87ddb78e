/* A plan's question, from the options: what `decant plan` and a job that is about to begin have in common.
 * Pure. */
#ifndef DECANT_PIPELINE_PLAN_REQUEST_H
#define DECANT_PIPELINE_PLAN_REQUEST_H

#include "pipeline/plan.h"

/* The request of these options for a model. What a job knows better, it sets afterwards: ranks, memory, tokens,
 * the type of the weights. */
decant_plan_request decant_plan_request_of(const decant_options *options, const decant_model_config *config,
                                           const decant_family *family, bool cuda);

#endif
