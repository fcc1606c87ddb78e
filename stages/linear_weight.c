/* See linear_weight.h. */
#include "stages/linear_weight.h"

#include <stdio.h>

void decant_linear_weight_name(const decant_linear *linear, char tensor[DECANT_WEIGHT_NAME_BYTES])
{
    snprintf(tensor, DECANT_WEIGHT_NAME_BYTES, "%s.weight", linear->name);
}

decant_status decant_linear_weight_find(const decant_safetensors *model, const decant_linear *linear,
                                        decant_linear_weight *weight, decant_error *err)
{
    decant_linear_weight_name(linear, weight->tensor);
    return decant_safetensors_matrix(model, weight->tensor, linear->rows, linear->columns, &weight->host, err);
}
