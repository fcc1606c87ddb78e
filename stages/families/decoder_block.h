/* The block that most decoders share: RMSNorm, grouped-query attention with rotary embedding, SwiGLU. A family
 * made from it says what it has besides (decant_decoder_features) and takes its functions; docs/new-family.md
 * shows one.
 *
 * Source: Touvron et al., "LLaMA" (2023), with the tensor names and rotary layout of Hugging Face's
 * checkpoints. */
#ifndef DECANT_STAGES_FAMILIES_DECODER_BLOCK_H
#define DECANT_STAGES_FAMILIES_DECODER_BLOCK_H

#include "stages/model.h"

/* What a family's block has besides; all false: LLaMA's. */
typedef struct decant_decoder_features {
    bool query_key_value_bias; /* q, k, v = n1 W + b, tensors "self_attn.q_proj.bias" … */
    bool query_key_norm; /* RMSNorm of each head of q and k, "self_attn.q_norm.weight" …, before rotating */
    bool sliding_window; /* attention sees config->sliding_window keys */
} decant_decoder_features;

/* A block's vectors, at their places in decant_block. */
enum {
    DECANT_INPUT_NORM,
    DECANT_POST_ATTENTION_NORM,
    DECANT_QUERY_BIAS,
    DECANT_KEY_BIAS,
    DECANT_VALUE_BIAS,
    DECANT_QUERY_NORM,
    DECANT_KEY_NORM,
    DECANT_DECODER_VECTORS,
};

/* A block's linear layers, in the family's order. */
enum {
    DECANT_QUERY_LINEAR,
    DECANT_KEY_LINEAR,
    DECANT_VALUE_LINEAR,
    DECANT_OUTPUT_LINEAR,
    DECANT_GATE_LINEAR,
    DECANT_UP_LINEAR,
    DECANT_DOWN_LINEAR
};

/* The functions of decant_family (stages/model.h). */
void decant_decoder_linear(const decant_model_config *config, int layer, int index, decant_linear *linear);
void decant_decoder_vector(const decant_family *family, const decant_model_config *config, int layer, int index,
                           decant_vector *vector);
void decant_decoder_end(const decant_model_config *config, decant_end which, decant_end_tensor *tensor);
void decant_decoder_sizes(const decant_family *family, const decant_model_config *config,
                          decant_block_sizes *sizes);
decant_status decant_decoder_create_activations(const decant_model_part *part, decant_activations **activations,
                                                decant_error *err);
void decant_decoder_destroy_activations(const decant_model_part *part, decant_activations **activations);
decant_status decant_decoder_forward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                                     decant_matrix y, decant_activations *kept, decant_error *err);
decant_status decant_decoder_backward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                                      decant_matrix dy, decant_activations *kept,
                                      const decant_block_fisher *fisher, decant_matrix dx, decant_error *err);
decant_status decant_decoder_step(const decant_model_part *part, const decant_block *block,
                                  const decant_kept_tokens *tokens, decant_matrix x, decant_activations *kept,
                                  decant_error *err);

/* All of them, and how many linear layers they have, for the initializer of a family. */
#define DECANT_DECODER_FUNCTIONS                                                                               \
    .linear_count = DECANT_BLOCK_LINEARS, .linear = decant_decoder_linear, .vector = decant_decoder_vector,    \
    .end = decant_decoder_end, .sizes = decant_decoder_sizes,                                                  \
    .create_activations = decant_decoder_create_activations,                                                   \
    .destroy_activations = decant_decoder_destroy_activations, .forward = decant_decoder_forward,              \
    .backward = decant_decoder_backward, .step = decant_decoder_step

#endif
