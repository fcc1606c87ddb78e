/* Sums of squared gradients that another program left in a safetensors folder under the names of the model's
 * own tensors, as SqueezeLLM's gradient program does: for each sequence, the gradient of its mean loss,
 * squared, added up. Knows nothing of the file they go to. */
#ifndef DECANT_STAGES_GRADIENTS_H
#define DECANT_STAGES_GRADIENTS_H

#include "io/safetensors.h"
#include "stages/model.h"

/* The sums of one linear layer, F32 [rows, columns]; *checksum goes on with the CRC-32 of the bytes as stored.
 * DECANT_ERROR_INPUT, naming file, tensor and place, when they are missing, of another shape, not finite, zero
 * throughout, or negative: gradients that nobody squared have both signs. */
decant_status decant_gradients_read(const decant_safetensors *gradients, const decant_linear *linear,
                                    float *sums, uint32_t *checksum, decant_error *err);

#endif
