/* Qwen3, the dense models: the decoder block with each head of queries and keys normed.
 * Source: Yang et al., "Qwen3 Technical Report" (2025), section 2. */
#include "stages/families/decoder_block.h"
#include "stages/families/families.h"

static const decant_decoder_features features = {.query_key_norm = true};

const decant_family decant_family_qwen3 = {
    .architecture = "Qwen3ForCausalLM",
    .decoder = &features,
    DECANT_DECODER_FUNCTIONS,
};
