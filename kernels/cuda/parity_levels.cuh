/* The transform of levels that packed_parities.cu explains: a row's levels become its coefficients, in shared
 * memory. Knows nothing of codes and of x. */
#ifndef DECANT_KERNELS_CUDA_PARITY_LEVELS_CUH
#define DECANT_KERNELS_CUDA_PARITY_LEVELS_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/parity_block.cuh"

/* The levels of the row of the block that a thread turns. */
template <int BITS> struct own_levels {
    uint2 fours[(1 << BITS) / 4];
};

template <int BITS>
static __device__ __forceinline__ own_levels<BITS> load_levels(const decant_packed_view &packed,
                                                               const block_share &share)
{
    const int row = min(share.first_tile * TILE_ROWS + (int)threadIdx.x, packed.rows - 1);
    const uint2 *levels = (const uint2 *)(packed.levels + ((int64_t)row << BITS));
    own_levels<BITS> own;
#pragma unroll
    for (int i = 0; i < (1 << BITS) / 4; i++)
        own.fours[i] = levels[i];
    return own;
}

/* The transform of one row: f(0), then −2 c_S for the other subsets. */
template <int BITS>
static __device__ __forceinline__ void transform_row(const own_levels<BITS> &own, float *target)
{
    constexpr int LEVELS = 1 << BITS;
    float values[LEVELS];
#pragma unroll
    for (int i = 0; i < LEVELS; i += 4) {
        const uint2 four = own.fours[i / 4];
        const float2 low = __half22float2(*(const __half2 *)&four.x);
        const float2 high = __half22float2(*(const __half2 *)&four.y);
        values[i] = low.x;
        values[i + 1] = low.y;
        values[i + 2] = high.x;
        values[i + 3] = high.y;
    }
    target[0] = values[0];
#pragma unroll
    for (int bit = 1; bit < LEVELS; bit *= 2)
#pragma unroll
        for (int i = 0; i < LEVELS; i++) {
            if (i & bit)
                continue;
            const float sum = values[i] + values[i + bit], difference = values[i] - values[i + bit];
            values[i] = sum;
            values[i + bit] = difference;
        }
#pragma unroll
    for (int i = 1; i < LEVELS; i++)
        target[i] = values[i] * (-2.0f / LEVELS);
}

/* The transform of every row of the block. */
template <int BITS>
static __device__ __forceinline__ void transform_levels(const own_levels<BITS> &own, const block_share &share,
                                                        float *coefficients)
{
    if ((int)threadIdx.x < share.tiles * TILE_ROWS)
        transform_row<BITS>(own, coefficients + threadIdx.x * COEFFICIENT_STRIDE<BITS>);
}

#endif
