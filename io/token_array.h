/* Token ids from a NumPy .npy file: int32 or int64, little-endian, C order, [sequences, length] or
 * one-dimensional. Format: numpy.lib.format, versions 1.0 to 3.0. */
#ifndef DECANT_IO_TOKEN_ARRAY_H
#define DECANT_IO_TOKEN_ARRAY_H

#include "base/error.h"

#include <stdint.h>

typedef struct decant_token_array {
    int32_t *tokens; /* [sequences, length], row-major; owned */
    int64_t sequences;
    int64_t length;
    uint32_t checksum; /* CRC-32 of tokens as stored here, for provenance */
} decant_token_array;

/* As a window_length: a one-dimensional array is one sequence, and a sequence may be a single token. */
enum { DECANT_TOKENS_UNCUT = -1 };

/* Reads the file.
 *   window_option   the option that window_length is of, as messages name it: a constant string, "" for none
 * A one-dimensional array is cut into windows of window_length tokens, the rest dropped; a
 * two-dimensional one keeps its length. At most maximum_sequences are kept (0: all). DECANT_ERROR_INPUT when
 * the file is no such array, has a token outside [0, vocabulary_size), naming its place and value, or yields no
 * sequence of at least 2 tokens. */
decant_status decant_token_array_read(const char *path, int64_t window_length, const char *window_option,
                                      int64_t maximum_sequences, int64_t vocabulary_size,
                                      decant_token_array *array, decant_error *err);
void decant_token_array_free(decant_token_array *array);

/* The tokens of one sequence [length]. */
static inline const int32_t *decant_token_array_sequence(const decant_token_array *array, int64_t index)
{
    return array->tokens + index * array->length;
}

#endif
