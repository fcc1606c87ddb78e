/* Qwen3, the dense models: the decoder block with each head of queries and keys normed.
 * Source: Yang et al., "Qwen3 Technical Report" (2025), section 2. */
#include "stages/families/decoder_block.h"
#include "stages/families/families.h"

static const decant_decoder_features features = {.query_key_norm = true};

const decant_family decant_family_qwen3 = {
    .architecture = "Qwen3ForCausalLM",
    .decoder = &features,
    .linear_count = DECANT_BLOCK_LINEARS,
    .linear = decant_decoder_linear,
    .vector = decant_decoder_vector,
    .sizes = decant_decoder_sizes,
    .create_activations = decant_decoder_create_activations,
    .destroy_activations = decant_decoder_destroy_activations,
    .forward = decant_decoder_forward,
    .backward = decant_decoder_backward,
};
