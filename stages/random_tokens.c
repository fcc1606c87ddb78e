/* See random_tokens.h. */
#include "stages/random_tokens.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "kernels/counter_random.h"

decant_status decant_random_tokens(int64_t sequences, int64_t length, int64_t vocabulary_size, uint64_t seed,
                                   decant_token_array *tokens, decant_error *err)
{
    size_t size_bytes = (size_t)(sequences * length) * sizeof *tokens->tokens;
    *tokens = (decant_token_array){.sequences = sequences, .length = length};
    decant_status status = decant_memory_allocate(size_bytes, "random tokens", (void **)&tokens->tokens, err);
    if (status != DECANT_OK)
        return status;
    for (int64_t s = 0; s < sequences; s++)
        for (int64_t t = 0; t < length; t++) {
            uint64_t bits = decant_random_bits(seed, (uint64_t)s, (uint64_t)t);
            tokens->tokens[s * length + t] = (int32_t)(bits % (uint64_t)vocabulary_size);
        }
    tokens->checksum = decant_checksum(0, tokens->tokens, size_bytes);
    return DECANT_OK;
}
