/* See linear_weight.h. */
#include "stages/linear_weight.h"

#include "io/checksum.h"

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

uint32_t decant_linear_weight_checksum(const decant_linear_weight *weight)
{
    return decant_checksum(0, weight->host.data, decant_matrix_bytes(weight->host));
}

uint32_t decant_model_checksum_extend(uint32_t model_checksum, uint32_t weight_checksum)
{
    return decant_checksum(model_checksum, &weight_checksum, sizeof weight_checksum);
}
