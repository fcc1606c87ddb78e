/* Mistral: the decoder block with attention over a sliding window, where config.json has one (the later models'
 * is null). Source: Jiang et al., "Mistral 7B" (2023), section 2. */
#include "stages/families/decoder_block.h"
#include "stages/families/families.h"

static const decant_decoder_features features = {.sliding_window = true};

const decant_family decant_family_mistral = {
    .architecture = "MistralForCausalLM",
    .decoder = &features,
    DECANT_DECODER_FUNCTIONS,
};
