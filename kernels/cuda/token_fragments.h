/* The activations of up to 32 tokens, or what is made of them, in F16, the operand of sparse tensor cores: 128
 * columns of a token, a slice, times a power of two that brings their largest magnitude to 2⁷ … 2¹⁵. That is
 * exact but for entries less than 2⁻²⁴ times the largest, whose error is less than 2⁻³² of that; infinite and
 * undefined entries stay so.
 *
 * Fragments lie as a lane of packed_pairs.cu takes them. Of a slice of an operand of sixteen tokens, lane 4g +
 * t takes tokens g and g + 8, and in turn four octets of columns of the slice: octet 8 (t % 2) + 2 i + t / 2, i
 * = 0 … 3. Of each it has two fragments of sixteen bytes, for columns 0 … 3 and 4 … 7: {token g columns 0, 1;
 * token g + 8 columns 0, 1; token g columns 2, 3; token g + 8 columns 2, 3}. Up to eight tokens, token g stands
 * in for token g + 8.
 *
 *     [slice][i, 4][half of the octet, 2][operand, 1 or 2][lane, 32]
 *
 * Of a norm, x ∘ weight becomes fragments, rounded to BF16 first, and 1 / rms, which is the same for all
 * columns of a token, is left to the products (pair_norm.cuh): it is known only when all of x has been read.
 * silu(x) ∘ up is rounded to BF16 first, too. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_FRAGMENTS_H
#define DECANT_KERNELS_CUDA_TOKEN_FRAGMENTS_H

#include "kernels/cuda/operations.h"

#include <cuda_bf16.h>

enum {
    DECANT_FRAGMENTS_TOKENS_MAXIMUM = 32,
    DECANT_FRAGMENTS_OPERAND_TOKENS = 16,
    DECANT_FRAGMENTS_SLICE_COLUMNS = 128,
    DECANT_FRAGMENTS_SLICE_OCTETS = 16,
    DECANT_FRAGMENTS_STAGE_SLICES = 8, /* so many at a time; of those without columns, zeros */
    DECANT_FRAGMENTS_TURNS = 4,        /* octets of a lane in a slice */
    DECANT_FRAGMENTS_GROUPS = 8,       /* of tokens: g, g + 8, g + 16 and g + 24 */
    DECANT_FRAGMENTS_GROUP_TOKENS = 4,
    DECANT_FRAGMENTS_POWER_STEP = 8, /* power p multiplies by 2^(8 (p − 16)) */
    DECANT_FRAGMENTS_POWER_ONE = 16,
    DECANT_FRAGMENTS_SHARED_BYTES = 1536, /* that a block of the kernel takes at most, the system's included */
};

/* The fragments of some tokens, in device memory. */
typedef struct decant_token_fragments {
    const uint4 *fragments; /* zeros beyond the last token and column */
    const uint8_t *powers;  /* [slices][g, 8][tokens g, g + 8, g + 16 and g + 24]: what a slice of a token has
                             * been multiplied by, 1 … 31; 0 for zeros */
    const float *squares;   /* of a norm [slices][32 tokens]: Σ x² of a slice of a token; else NULL */
    int slices;
} decant_token_fragments;

static inline int decant_fragments_operands(int64_t tokens)
{
    return tokens <= DECANT_FRAGMENTS_OPERAND_TOKENS ? 1 : 2;
}

/* Scratch that the fragments take, bytes. */
size_t decant_token_fragments_bytes(const decant_packed_input *input);

/* Whether fragments can be made of what the input makes of x: of vectors on addresses of multiples of 16 bytes,
 * a norm's in F32. */
bool decant_token_fragments_make(const decant_packed_input *input);

/* Makes fragments of the input, whose x is BF16, of columns in multiples of 8 and on addresses of multiples of
 * 16 bytes; in `scratch`, of 256-byte alignment. turned: where x itself is to be turned as well, as
 * token_sparse.h says, or NULL. */
decant_status decant_cuda_token_fragments(decant_backend *backend, const decant_packed_input *input,
                                          void *scratch, decant_token_fragments *fragments,
                                          __nv_bfloat16 *turned, decant_error *err);

#endif
