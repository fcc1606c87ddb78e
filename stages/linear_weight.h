/* The weight of a linear layer as it lies in a folder of safetensors: its tensor's name, its values, and the
 * checksums that tie statistics, containers and work directories to the model they came from. */
#ifndef DECANT_STAGES_LINEAR_WEIGHT_H
#define DECANT_STAGES_LINEAR_WEIGHT_H

#include "stages/model.h"

enum { DECANT_WEIGHT_NAME_BYTES = DECANT_NAME_BYTES + sizeof ".weight" - 1 };

typedef struct decant_linear_weight {
    char tensor[DECANT_WEIGHT_NAME_BYTES]; /* "model.layers.0.self_attn.q_proj.weight" */
    decant_matrix host;                    /* [rows, columns], mapped; owned by the open model */
} decant_linear_weight;

/* The name of the tensor that is the weight of a linear layer. */
void decant_linear_weight_name(const decant_linear *linear, char tensor[DECANT_WEIGHT_NAME_BYTES]);

/* The weight of a linear layer, which has its name and shape. Local; reads the header alone, not the values.
 * DECANT_ERROR_INPUT naming file and tensor when it is missing or has another shape. */
decant_status decant_linear_weight_find(const decant_safetensors *model, const decant_linear *linear,
                                        decant_linear_weight *weight, decant_error *err);

/* CRC-32 of the weight's bytes as they are stored. Local; reads all of them. */
uint32_t decant_linear_weight_checksum(const decant_linear_weight *weight);

/* The checksum of a model, the container's model_crc32: the CRC-32 of the CRC-32s of the weights of all its
 * linear layers. Start with 0 and pass each weight's checksum in model order; pure. */
uint32_t decant_model_checksum_extend(uint32_t model_checksum, uint32_t weight_checksum);

#endif
