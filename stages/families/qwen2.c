/* Qwen2 and Qwen2.5: the decoder block with biases on queries, keys and values.
 * Source: Yang et al., "Qwen2 Technical Report" (2024), section 2.2.1. */
#include "stages/families/decoder_block.h"
#include "stages/families/families.h"

static const decant_decoder_features features = {.query_key_value_bias = true};

const decant_family decant_family_qwen2 = {
    .architecture = "Qwen2ForCausalLM",
    .decoder = &features,
    DECANT_DECODER_FUNCTIONS,
};
