/* Tokens drawn evenly from the vocabulary: something to run a model on where there is no text. */
#ifndef DECANT_STAGES_RANDOM_TOKENS_H
#define DECANT_STAGES_RANDOM_TOKENS_H

#include "io/token_array.h"

/* tokens [sequences, length], from the seed alone; freed with decant_token_array_free. */
decant_status decant_random_tokens(int64_t sequences, int64_t length, int64_t vocabulary_size, uint64_t seed,
                                   decant_token_array *tokens, decant_error *err);

#endif
