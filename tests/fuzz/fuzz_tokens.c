/* A token array (.npy): every token that is let in is inside the vocabulary. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/token_array.h"

enum { WINDOW = 4, VOCABULARY = 1000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_token_array tokens;
    decant_error err;
    if (decant_token_array_read(input_file(data, size_bytes), WINDOW, "--window", 0, VOCABULARY, &tokens,
                                &err) == DECANT_OK) {
        for (int64_t i = 0; i < tokens.sequences * tokens.length; i++)
            if (tokens.tokens[i] < 0 || tokens.tokens[i] >= VOCABULARY)
                abort();
        decant_token_array_free(&tokens);
    }
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
