/* Can a container hold a model's tensors under their own names? */
#ifndef DECANT_STAGES_CONTAINER_NAMES_H
#define DECANT_STAGES_CONTAINER_NAMES_H

#include "stages/model.h"

/* Local; reads headers alone. DECANT_ERROR_INPUT naming a tensor, or linear layer, whose place in a container
 * is that of one of the container's own parts (docs/container.md), of a quantized layer, or beneath another
 * tensor. */
decant_status decant_container_check_names(const decant_safetensors *model, const decant_model_config *config,
                                           const decant_family *family, decant_error *err);

#endif
