/* LLaMA 1 to 3.2 and Vicuna: the decoder block as it is. Llama 3.1's rotary scaling and 3.2's tied head are in
 * config.json. Sources: Touvron et al., "LLaMA" (2023) and "Llama 2" (2023); Grattafiori et al., "The Llama 3
 * Herd of Models" (2024). */
#include "stages/families/decoder_block.h"
#include "stages/families/families.h"

static const decant_decoder_features features = {0};

const decant_family decant_family_llama = {
    .architecture = "LlamaForCausalLM",
    .decoder = &features,
    DECANT_DECODER_FUNCTIONS,
};
