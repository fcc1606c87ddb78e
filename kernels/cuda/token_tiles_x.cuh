/* x in token_tiles.cuh: a block makes F16 of it, unit by unit, in shared memory, and its warps take their
 * operands from there. Knows nothing of codes and of how they become numbers.
 *
 * Of a unit, a token's x is multiplied by a power of two that brings its largest magnitude to 2¹⁵ … 2¹⁶, as far
 * as the exponent has room, and its sums by the inverse. In BF16 and F16, magnitudes are exponents and then
 * seven and ten bits: to make the one the other is to take something from the exponent and to shift. That is
 * exact but for entries less than 2⁻²⁹ times the largest of the unit, which are off by 2⁻³⁰ of it at most;
 * infinite and undefined entries stay so. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_X_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_X_CUH

#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_tiles_block.cuh"

/* Of numbers: where their exponents begin, the one of 1, and the largest exponents of finite ones. */
enum {
    BF16_EXPONENT_AT = 7,
    F32_EXPONENT_AT = 23,
    F16_BIAS = 15,
    BF16_LARGEST_EXPONENT = 254,
    F16_LARGEST_EXPONENT = 30,
};

/* ---- F16 of x ---- */

/* A thread's share of x of one unit, in registers: vectors [·][i] of token tile i. */
template <int TILES> struct unit_vectors {
    uint4 vectors[STEPS][TILES];
};

/* Thread i has chunk i % 32 of each step and of token i / 32 of every tile: eight columns, those of lane
 * i % 32 / 8 of the four of a row. */
static __device__ __forceinline__ int own_chunk(void)
{
    return threadIdx.x % CHUNKS;
}

static __device__ __forceinline__ int own_taker(void)
{
    return (int)threadIdx.x % STEP_CHUNKS / CHUNKS;
}

static __device__ __forceinline__ int own_token(void)
{
    return (int)threadIdx.x / STEP_CHUNKS;
}

/* Zeros beyond the last token or column. */
template <int TILES>
static __device__ __forceinline__ void load_x(unit_vectors<TILES> &own, const tiles_call &call, int unit)
{
    const int columns = call.packed.columns;
    const int column = (unit * 4 + own_taker()) * LANE_COLUMNS + own_chunk() * 8;
    const __nv_bfloat16 *source = call.x + (int64_t)own_token() * columns + column;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++, source += (int64_t)TILE_TOKENS * columns)
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            own.vectors[step][tile] = make_uint4(0, 0, 0, 0);
            if (tile * TILE_TOKENS + own_token() < call.tokens && column + step * STEP_COLUMNS < columns)
                own.vectors[step][tile] = *(const uint4 *)(source + step * STEP_COLUMNS);
        }
}

/* A step of x lies as [chunk][tile][lane] vectors; behind each chunk one is left free, so that those of a token
 * that threads store together fall into different banks. */
template <int TILES> constexpr int CHUNK_BYTES = (TILES * DECANT_WARP + 1) * VECTOR_BYTES;
template <int TILES> constexpr int STEP_BYTES = CHUNKS *CHUNK_BYTES<TILES>;

static __device__ __forceinline__ uint32_t magnitudes(uint32_t pair)
{
    return pair & 0x7fff7fffu;
}

/* What a warp takes from the exponents of the token that it has of this tile. */
template <int TILES>
static __device__ __forceinline__ int exponents_apart(const unit_vectors<TILES> &own, int tile)
{
    uint32_t most = 0;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        const uint4 four = own.vectors[step][tile];
        most = __vimax3_u16x2(most, magnitudes(four.x), magnitudes(four.y));
        most = __vimax3_u16x2(most, magnitudes(four.z), magnitudes(four.w));
    }
    most = __vmaxu2(most, __byte_perm(most, 0, 0x1032)); /* both halves alike, in the order of numbers */
    const int largest = (int)(__reduce_max_sync(DECANT_ALL_LANES, most) >> (16 + BF16_EXPONENT_AT));
    return max(min(largest, BF16_LARGEST_EXPONENT) - F16_LARGEST_EXPONENT, 0);
}

/* Two BF16 as F16. apart: their exponents' difference. */
static __device__ __forceinline__ uint32_t halves_of(uint32_t pair, int apart, const shift_factors &shifts)
{
    const uint32_t one = 0x00010001u << BF16_EXPONENT_AT, left = 0u - (one << 3); /* of both halves */
    return (__vmaxu2(magnitudes(pair), (uint32_t)apart * one) * shifts.three_left + (uint32_t)apart * left) |
           (pair & 0x80008000u);
}

/* Makes F16 of a unit, in pairs of columns n and n + 4. inverses: [TILES · TILE_TOKENS]. */
template <int TILES>
static __device__ __forceinline__ void store_x(const unit_vectors<TILES> &own, const tiles_call &call,
                                               unsigned char *x, float *inverses)
{
    unsigned char *place =
        x + own_chunk() * CHUNK_BYTES<TILES> + (own_token() * 4 + own_taker()) * VECTOR_BYTES;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const int apart = exponents_apart<TILES>(own, tile);
        inverses[tile * TILE_TOKENS + own_token()] =
            __uint_as_float((uint32_t)(apart + F16_BIAS) << F32_EXPONENT_AT);
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const uint4 four = own.vectors[step][tile];
            const uint32_t first = halves_of(four.x, apart, call.shifts),
                           second = halves_of(four.y, apart, call.shifts),
                           third = halves_of(four.z, apart, call.shifts),
                           fourth = halves_of(four.w, apart, call.shifts);
            *(uint4 *)(place + step * STEP_BYTES<TILES> + tile * DECANT_WARP * VECTOR_BYTES) =
                make_uint4(__byte_perm(first, third, 0x5410), __byte_perm(first, third, 0x7632),
                           __byte_perm(second, fourth, 0x5410), __byte_perm(second, fourth, 0x7632));
        }
    }
}

/* ---- products ---- */

/* sums += both products of one chunk. first, second: the operands of the rows (tensor_core.cuh). */
template <int TILES>
static __device__ __forceinline__ void multiply_chunk(float (&sums)[TILES][4], const uint32_t (&first)[4],
                                                      const uint32_t (&second)[4], int chunk,
                                                      const unsigned char *x)
{
    const unsigned char *place = x + chunk * CHUNK_BYTES<TILES> + threadIdx.x % DECANT_WARP * VECTOR_BYTES;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const uint4 four = *(const uint4 *)(place + tile * DECANT_WARP * VECTOR_BYTES);
        decant_mma_halves(sums[tile], first, four.x, four.y);
        decant_mma_halves(sums[tile], second, four.z, four.w);
    }
}

/* sums += those of a unit, times what its tokens' are to be multiplied by. */
template <int TILES>
static __device__ __forceinline__ void add_unit(float (&sums)[TILES][4], const float (&unit)[TILES][4],
                                                const float *inverses)
{
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const float2 two = *(const float2 *)(inverses + tile * TILE_TOKENS + threadIdx.x % 4 * 2);
#pragma unroll
        for (int c = 0; c < 4; c++)
            sums[tile][c] = fmaf(unit[tile][c], c % 2 ? two.y : two.x, sums[tile][c]);
    }
}

#endif
