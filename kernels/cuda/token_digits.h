/* The activations of up to 32 tokens as digits of eight bits, the operand of integer tensor cores: a token's x
 * becomes fixed point with one scale, x ≈ q · scale with scale = max|x| / 32639, and q = 256 upper + lower,
 * both from −128 to 127.
 *
 * Rounding to the nearest q leaves an error of at most scale / 2 a column, as fixed_point.cuh says of its 16
 * bits. Infinite and undefined entries make the scale so, and with it every sum of the token.
 *
 * The digits lie as a product of 32 terms takes them. Its terms are, for each of four lanes t, eight columns of
 * one word: those that are `phase` modulo 4. A unit is sixteen words, of which lane t takes words 4t … 4t + 3.
 * They come in pieces of 128 bytes: sixteen terms (four of each lane: the columns of the word's lower or upper
 * half) of eight tokens, a token's sixteen side by side. The pieces are in the order
 *
 *     [unit][word of a lane, 4][phase, 4][half, 2][digit, 2: upper, lower][tile of eight tokens] */
#ifndef DECANT_KERNELS_CUDA_TOKEN_DIGITS_H
#define DECANT_KERNELS_CUDA_TOKEN_DIGITS_H

#include "kernels/cuda/operations.h"

#include <cuda_bf16.h>

enum {
    DECANT_DIGITS_TOKENS_MAXIMUM = 32,
    DECANT_DIGITS_COLUMNS_MAXIMUM = 65536, /* sums of q must fit an int */
    DECANT_DIGITS_UNIT_COLUMNS = 512,
    DECANT_DIGITS_PRODUCT_BYTES = 512, /* of 32 terms, for each tile of eight tokens */
};

/* What a token's digits stand for. */
typedef struct decant_token_figures {
    float scale;
    int sum; /* of q */
} decant_token_figures;

/* The digits of some tokens, in device memory. */
typedef struct decant_token_digits {
    const unsigned char *digits;
    const decant_token_figures *figures; /* [8 tiles]; zeros beyond the last token, as are their digits */
    const __nv_bfloat16 *turned;         /* [columns, 8 tiles] x itself, zeros beyond the last token, or NULL */
} decant_token_digits;

/* Tiles of eight that so many tokens are padded to: 1, 2 or 4. */
static inline int decant_digits_tiles(int64_t tokens)
{
    return tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
}

/* Scratch that the digits take, bytes; turned: and x with the tokens of a column side by side. */
size_t decant_token_digits_bytes(decant_matrix x, bool turned);

/* Makes digits of x, BF16, of columns in multiples of 8 and on addresses of multiples of 16 bytes; in
 * `scratch`, of 256-byte alignment. */
decant_status decant_cuda_token_digits(decant_backend *backend, decant_matrix x, bool turned, void *scratch,
                                       decant_token_digits *digits, decant_error *err);

#endif
