/* The products of a warp of packed_pairs.cu: fragments of x in registers, pairs of levels looked up by codes,
 * and the units of the sums. `Kind` is a pair_kind (pair_kind.cuh). Knows nothing of where codes come from and
 * where sums go. */
#ifndef DECANT_KERNELS_CUDA_PAIR_PRODUCTS_CUH
#define DECANT_KERNELS_CUDA_PAIR_PRODUCTS_CUH

#include "kernels/cuda/pair_codes.cuh"
#include "kernels/cuda/sparse_core.cuh"
#include "kernels/cuda/token_fragments.h"

enum {
    HALVES = 2, /* of a slice: the words of a plane that a lane has */
    HALF_TURNS = DECANT_FRAGMENTS_TURNS / HALVES,
};

/* A lane's sums of a tile of rows. */
template <typename Kind> using tile_sums = float[Kind::TILES][Kind::OPERANDS][Kind::ROW_KINDS][4];

/* ---- x in registers ---- */

/* A lane's fragments of half a slice. */
template <typename Kind> struct half_fragments {
    uint4 operands[HALF_TURNS][2][Kind::OPERANDS];
};

template <typename Kind> using slice_fragments = half_fragments<Kind>[HALVES];

/* Asked for once `nothing` has come, which is zero: loads whose address depends on it wait, and a warp then
 * does not wait for these where it needs what it asked for before. */
template <typename Kind>
static __device__ __forceinline__ void load_fragments(half_fragments<Kind> &x, const uint4 *fragments,
                                                      int slice, int half, uint32_t nothing)
{
    constexpr int COUNT = HALF_TURNS * 2 * Kind::OPERANDS;
    const uint4 *source = fragments + (int64_t)(slice * HALVES + half) * COUNT * DECANT_WARP +
                          (threadIdx.x % DECANT_WARP + nothing);
#pragma unroll
    for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
        for (int part = 0; part < 2; part++)
#pragma unroll
            for (int operand = 0; operand < Kind::OPERANDS; operand++, source += DECANT_WARP)
                x.operands[turn][part][operand] = *source;
}

/* The word of a half that was asked for last. */
template <typename Kind> static __device__ __forceinline__ uint32_t last_word(const half_fragments<Kind> &x)
{
    return x.operands[HALF_TURNS - 1][1][Kind::OPERANDS - 1].w;
}

/* ---- units of sums ---- */

/* The powers that a lane's tokens are multiplied by in a slice of x, mostly those of the slice before, as bytes
 * (token_fragments.h): of rows g and g + 8 of an operand, then of the next operand. The sums of products have
 * such powers too, their units. */
template <typename Kind>
static __device__ __forceinline__ uint32_t load_powers(const uint8_t *of_slices, int slice)
{
    const uint8_t *source = of_slices + (slice * DECANT_FRAGMENTS_GROUPS + threadIdx.x % DECANT_WARP / 4) *
                                            DECANT_FRAGMENTS_GROUP_TOKENS;
    return Kind::OPERANDS == 1 ? *(const uint16_t *)source : *(const uint32_t *)source;
}

static __device__ __forceinline__ int power_of(uint32_t powers, int operand, int second)
{
    return (int)(powers >> 8 * (2 * operand + second) & 0xff);
}

/* 1 / what a power multiplies by; something finite for that of zeros. */
[[maybe_unused]] static __device__ __forceinline__ float inverse_of_power(int power)
{
    const int exponent = (DECANT_FRAGMENTS_POWER_ONE - max(power, 1)) * DECANT_FRAGMENTS_POWER_STEP;
    return __uint_as_float((uint32_t)(127 + exponent) << 23);
}

/* Sums in the units of the slices before → in the powers of the slice that comes; zeros among these change
 * nothing. x that is too small to matter is left out: the sums would overflow in its units. */
template <typename Kind>
static __device__ __forceinline__ void change_units(tile_sums<Kind> &sums, uint32_t &units, uint32_t next,
                                                    slice_fragments<Kind> &x)
{
    const int apart = 64 / DECANT_FRAGMENTS_POWER_STEP;
#pragma unroll
    for (int operand = 0; operand < Kind::OPERANDS; operand++)
#pragma unroll
        for (int second = 0; second < 2; second++) {
            const int unit = power_of(units, operand, second), wanted = power_of(next, operand, second);
            float factor = 1;
            if (unit != 0 && wanted > unit + apart) {
#pragma unroll
                for (auto &half : x)
#pragma unroll
                    for (auto &turn : half.operands)
#pragma unroll
                        for (auto &part : turn) {
                            uint32_t *words = (uint32_t *)&part[operand];
                            words[second] = words[2 + second] = 0;
                        }
            } else if (wanted != 0) {
                /* so much the new power is above the old one; far below, little is left of sums */
                if (unit != 0)
                    factor = inverse_of_power(DECANT_FRAGMENTS_POWER_ONE +
                                              min(unit - wanted, DECANT_FRAGMENTS_POWER_ONE - 1));
                units += (uint32_t)(wanted - unit) << 8 * (2 * operand + second);
            }
#pragma unroll
            for (auto &tile : sums)
#pragma unroll
                for (auto &kind : tile[operand]) {
                    kind[2 * second] *= factor;
                    kind[2 * second + 1] *= factor;
                }
        }
}

/* ---- products ---- */

/* sums += some halves of a slice. */
template <typename Kind, int FIRST_HALF, int HALF_COUNT>
static __device__ __forceinline__ void multiply(tile_sums<Kind> &sums, const slice_codes<Kind> &codes,
                                                const slice_fragments<Kind> &x)
{
    constexpr int BITS = Kind::BITS;
    const uint32_t lane_bytes = threadIdx.x % DECANT_WARP * 4;
#pragma unroll
    for (int tile = 0; tile < Kind::TILES; tile++) {
        uint32_t numbers[HALF_COUNT][4];
#pragma unroll
        for (int half = 0; half < HALF_COUNT; half++) {
            uint32_t planes[BITS];
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                planes[bit] = FIRST_HALF + half ? codes.words[tile][bit].y : codes.words[tile][bit].x;
            number_pairs<BITS>(numbers[half], planes);
        }
#pragma unroll
        for (int half = 0; half < HALF_COUNT; half++)
#pragma unroll
            for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
                for (int part = 0; part < 2; part++) {
                    uint32_t weights[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        weights[i] = look_up<BITS, Kind::TABLES_ADDRESS>(tile, numbers[half][i / 2 * 2 + part],
                                                                         turn * 2 + i % 2, lane_bytes);
#pragma unroll
                    for (int operand = 0; operand < Kind::OPERANDS; operand++)
#pragma unroll
                        for (int kind = 0; kind < Kind::ROW_KINDS; kind++)
                            decant_sparse_mma(sums[tile][operand][kind],
                                              x[FIRST_HALF + half].operands[turn][part][operand], weights,
                                              Kind::ROW_KINDS == 1 ? DECANT_BOTH_TERMS
                                              : kind == 0          ? DECANT_LOWER_TERMS
                                                                   : DECANT_UPPER_TERMS);
                }
    }
}

#endif
