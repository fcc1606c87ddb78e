/* What would make a plan fit that does not: the same request asked again with one thing changed. Pure. */
#ifndef DECANT_PIPELINE_PLAN_ADVICE_H
#define DECANT_PIPELINE_PLAN_ADVICE_H

#include "pipeline/plan.h"

/* `plan` is the closest that there is to the request, and does not fit. */
decant_plan_advice decant_plan_advise(const decant_plan_request *request, const decant_plan *plan);

/* One line on what would make it fit, cut off at `size` bytes, without a newline, for messages. */
void decant_plan_describe_advice(const decant_plan *plan, char *text, size_t size);

#endif
