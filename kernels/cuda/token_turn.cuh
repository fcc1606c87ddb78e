/* Turning the activations of several tokens, [tokens, columns] to [columns, 8, 16 or 32 tokens], so that the
 * tokens of a column lie side by side. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TURN_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TURN_CUH

#include "kernels/cuda/token_entries.cuh"

#include <cuda_bf16.h>

/* What a number of tokens is padded to. */
static inline int decant_turned_tokens(int64_t tokens)
{
    return tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32;
}

/* Eight tokens of a column from first_token on; zeros beyond the last token. padded: tokens of `turned`. */
static __device__ __forceinline__ void decant_turn_vector(const __nv_bfloat16 *x, int tokens, int columns,
                                                          int padded, int column, int first_token,
                                                          __nv_bfloat16 *turned)
{
    const uint16_t *source = (const uint16_t *)x + (int64_t)first_token * columns + column;
    uint32_t words[DECANT_VECTOR_TOKENS / 2] = {};
#pragma unroll
    for (int i = 0; i < DECANT_VECTOR_TOKENS; i++)
        if (first_token + i < tokens)
            words[i / 2] |= (uint32_t)source[(int64_t)i * columns] << 16 * (i % 2);
    *(uint4 *)(turned + (int64_t)column * padded + first_token) =
        make_uint4(words[0], words[1], words[2], words[3]);
}

/* The same of four columns from `column` on, of rows that begin at multiples of eight bytes. */
static __device__ __forceinline__ void decant_turn_four(const __nv_bfloat16 *x, int tokens, int columns,
                                                        int padded, int column, int first_token,
                                                        __nv_bfloat16 *turned)
{
    const __nv_bfloat16 *source = x + (int64_t)first_token * columns + column;
    uint2 fours[DECANT_VECTOR_TOKENS];
#pragma unroll
    for (int i = 0; i < DECANT_VECTOR_TOKENS; i++, source += columns)
        fours[i] = first_token + i < tokens ? *(const uint2 *)source : make_uint2(0, 0);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        uint32_t words[DECANT_VECTOR_TOKENS / 2];
#pragma unroll
        for (int i = 0; i < DECANT_VECTOR_TOKENS / 2; i++)
            words[i] = __byte_perm(j < 2 ? fours[2 * i].x : fours[2 * i].y,
                                   j < 2 ? fours[2 * i + 1].x : fours[2 * i + 1].y, j % 2 ? 0x7632 : 0x5410);
        *(uint4 *)(turned + (int64_t)(column + j) * padded + first_token) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}

#endif
