/* The dense part in a block of packed_parities.cu: a warp counts the ones that planes of x and parities of
 * codes have in common, unit by unit, and turns the counts of a tile into what it adds to the tile's rows.
 * Units, operands and coefficients lie in shared memory; how they came there is not known here. */
#ifndef DECANT_KERNELS_CUDA_PARITY_COUNTS_CUH
#define DECANT_KERNELS_CUDA_PARITY_COUNTS_CUH

#include "kernels/cuda/named_barriers.cuh"
#include "kernels/cuda/parity_block.cuh"

/* counts += the ones of and(planes of x, parities of rows). */
static __device__ __forceinline__ void count_ones(int (&counts)[4], const uint4 &planes, uint32_t low,
                                                  uint32_t high)
{
    asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(counts[0]), "+r"(counts[1]), "+r"(counts[2]), "+r"(counts[3])
        : "r"(planes.x), "r"(planes.y), "r"(planes.z), "r"(planes.w), "r"(low), "r"(high));
}

/* All warps of the team have come here. Barriers are named one by one: a block reserves those it may use. */
template <int BITS> static __device__ __forceinline__ void wait_for_team(void)
{
    constexpr int MEMBERS = TEAM<BITS> * DECANT_WARP;
    if constexpr (TEAM<BITS> == 1)
        return __syncwarp();
    switch (threadIdx.x / MEMBERS) {
    case 0:
        return wait_at_barrier<1, MEMBERS>();
    case 1:
        return wait_at_barrier<2, MEMBERS>();
    case 2:
        return wait_at_barrier<3, MEMBERS>();
    default:
        return wait_at_barrier<4, MEMBERS>();
    }
}

/* A lane's words of a unit: its planes, those above the fifth put together. */
template <int BITS> struct unit_words {
    uint4 planes[BITS <= 5 ? BITS : 5], above;
};

/* `member`: the warp's number in its team, of which it takes the subsets. */
template <int BITS> static __device__ __forceinline__ unit_words<BITS> load_unit(uint32_t slot, int member = 0)
{
    constexpr int LOW = BITS <= 5 ? BITS : 5;
    unit_words<BITS> words;
    words.above = {0, 0, 0, 0};
#pragma unroll
    for (int bit = 0; bit < LOW; bit++)
        words.planes[bit] = load_shared(slot + bit * OPERAND_BYTES);
#pragma unroll
    for (int bit = LOW; bit < BITS; bit++)
        if (member >> (bit - LOW) & 1) {
            const uint4 plane = load_shared(slot + bit * OPERAND_BYTES);
            words.above = {words.above.x ^ plane.x, words.above.y ^ plane.y, words.above.z ^ plane.z,
                           words.above.w ^ plane.w};
        }
    return words;
}

/* counts += one product of a unit; x: its planes. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void add_product(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4],
                                                   const unit_words<BITS> &words, const uint4 (&x)[TOKENS],
                                                   int product)
{
    constexpr int LOW = BITS <= 5 ? BITS : 5, FIRST_SUBSET = BITS <= 5 ? 1 : 0;
#pragma unroll
    for (int i = 0; i < SUBSETS_OF_WARP<BITS>; i++) {
        uint32_t low = product == 0 ? words.above.x : words.above.z;
        uint32_t high = product == 0 ? words.above.y : words.above.w;
#pragma unroll
        for (int bit = 0; bit < LOW; bit++)
            if ((i + FIRST_SUBSET) >> bit & 1) {
                low ^= product == 0 ? words.planes[bit].x : words.planes[bit].z;
                high ^= product == 0 ? words.planes[bit].y : words.planes[bit].w;
            }
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            count_ones(counts[token][i], x[token], low, high);
    }
}

/* counts += one unit's, of the subsets of the warp that has number `member` of its team. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void add_unit(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4], uint32_t slot,
                                                uint32_t operands, int token_bytes, int member = 0)
{
    const unit_words<BITS> words = load_unit<BITS>(slot, member);
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++) {
        uint4 x[TOKENS];
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            x[token] = load_shared(operands + token * token_bytes + product * OPERAND_BYTES);
        add_product<BITS, TOKENS>(counts, words, x, product);
    }
}

/* Turns the counts of a tile into what this warp adds to its rows, and clears them. The lane's counts are of
 * plane g and of plane g + 8, whose weight is 2⁸ times that, of the last plane with the sign. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void finish_tile(int (&counts)[TOKENS][SUBSETS_OF_WARP<BITS>][4],
                                                   const float *coefficients, float *parts, int member = 0)
{
    constexpr int STRIDE = COEFFICIENT_STRIDE<BITS>, FIRST_SUBSET = BITS <= 5 ? 1 : 0;
    const int lane = threadIdx.x % DECANT_WARP, plane = lane / 4, first_row = lane % 4 * 2;
    const int upper_weight = plane == 7 ? -256 : 256;
    const float plane_weight = (float)(1 << plane);
    const float *of_first = coefficients + first_row * STRIDE + member * SUBSETS_OF_WARP<BITS>;
    float sums[TOKENS][2] = {};
#pragma unroll
    for (int four = 0; four < SUBSETS_OF_WARP<BITS> + FIRST_SUBSET; four += 4) {
        const float4 first = *(const float4 *)(of_first + four);
        const float4 second = *(const float4 *)(of_first + STRIDE + four);
        const float firsts[] = {first.x, first.y, first.z, first.w};
        const float seconds[] = {second.x, second.y, second.z, second.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (four + i < FIRST_SUBSET)
                continue;
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                int(&own)[4] = counts[token][four + i - FIRST_SUBSET];
                sums[token][0] = fmaf(firsts[i], (float)(own[0] + upper_weight * own[2]), sums[token][0]);
                sums[token][1] = fmaf(seconds[i], (float)(own[1] + upper_weight * own[3]), sums[token][1]);
                own[0] = own[1] = own[2] = own[3] = 0;
            }
        }
    }
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = sums[token][i] * plane_weight;
#pragma unroll
            for (int offset = 4; offset < DECANT_WARP; offset *= 2)
                sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
            if (plane == 0)
                parts[(first_row + i) * TOKENS + token] = sum;
        }
}

#endif
