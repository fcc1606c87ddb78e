/* The norm of x in packed_pairs.cu: 1 / rms of each token, which is multiplied on when the sums of its products
 * are complete, since it is the same for all columns. y = 1/rms Σ ŵ (x ∘ weight), where rms² = Σ x² / columns +
 * ε. Knows nothing of the products. */
#ifndef DECANT_KERNELS_CUDA_PAIR_NORM_CUH
#define DECANT_KERNELS_CUDA_PAIR_NORM_CUH

#include "kernels/cuda/pair_codes.cuh"
#include "kernels/cuda/token_fragments.h"

enum { NORM_WARPS = 3 /* that add up squares: some of those that do not take codes */ };

typedef struct pair_norm {
    const float *squares; /* [slices][32 tokens]: Σ x² of a slice (token_fragments.h); NULL: no norm */
    int slices;
    float inverse_columns, epsilon;
} pair_norm;

/* Σ x² of each token, in parts: by the warp that has added it up. */
typedef float norm_squares[NORM_WARPS][DECANT_FRAGMENTS_TOKENS_MAXIMUM];

/* What warp `warp` of NORM_WARPS adds up, behind the kernel before, a lane a token; lanes beyond the tokens add
 * up what says nothing. It takes a while, since what is asked for comes behind codes. */
[[maybe_unused]] static __device__ __forceinline__ void add_squares(const pair_norm &norm, int warp,
                                                                    norm_squares &sums)
{
    static_assert((int)DECANT_FRAGMENTS_TOKENS_MAXIMUM == (int)DECANT_WARP, "a lane a token");
    const int token = (int)threadIdx.x % DECANT_WARP;
    float sum = 0;
#pragma unroll 8
    for (int slice = warp; slice < norm.slices; slice += NORM_WARPS)
        sum += norm.squares[slice * DECANT_FRAGMENTS_TOKENS_MAXIMUM + token];
    sums[warp][token] = sum;
}

/* Once all parts are there. */
[[maybe_unused]] static __device__ __forceinline__ float inverse_rms_of(const pair_norm &norm,
                                                                        const norm_squares &sums, int token)
{
    float square = 0;
#pragma unroll
    for (int warp = 0; warp < NORM_WARPS; warp++)
        square += sums[warp][token];
    return rsqrtf(square * norm.inverse_columns + norm.epsilon);
}

#endif
