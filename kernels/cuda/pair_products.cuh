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

/* What the sums of a lane's tokens are to be multiplied by: those of rows g and g + 8 of an operand. A slice of
 * x has a power of two of its own for each token, mostly the same one as the slice before. */
template <typename Kind> struct token_scales {
    float of[Kind::OPERANDS][2];
};

template <typename Kind>
static __device__ __forceinline__ void load_scales(token_scales<Kind> &scales, const float *of_slices,
                                                   int slice)
{
    const float *source = of_slices + (slice * DECANT_FRAGMENTS_GROUPS + threadIdx.x % DECANT_WARP / 4) *
                                          DECANT_FRAGMENTS_GROUP_TOKENS;
    if constexpr (Kind::OPERANDS == 1) {
        const float2 two = *(const float2 *)source;
        scales.of[0][0] = two.x;
        scales.of[0][1] = two.y;
    } else {
        const float4 four = *(const float4 *)source;
        scales.of[0][0] = four.x;
        scales.of[0][1] = four.y;
        scales.of[Kind::OPERANDS - 1][0] = four.z;
        scales.of[Kind::OPERANDS - 1][1] = four.w;
    }
}

/* 1 / 2^n. */
[[maybe_unused]] static __device__ __forceinline__ float inverse_of_power(float power)
{
    return __uint_as_float(0x7f000000u - __float_as_uint(power));
}

/* Sums in units of the slices before → in those of the slice that comes; zeros among these change nothing. x
 * that is too small to matter is left out: the sums would overflow in its units. */
template <typename Kind>
static __device__ __forceinline__ void change_units(tile_sums<Kind> &sums, token_scales<Kind> &units,
                                                    const token_scales<Kind> &next, slice_fragments<Kind> &x)
{
    const float apart = 0x1p64f;
#pragma unroll
    for (int operand = 0; operand < Kind::OPERANDS; operand++)
#pragma unroll
        for (int second = 0; second < 2; second++) {
            float &unit = units.of[operand][second];
            const float wanted = next.of[operand][second];
            float factor = 1;
            if (wanted * apart < unit) {
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
                factor = unit * inverse_of_power(wanted);
                unit = wanted;
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

/* Whether any lane's units are not those of the slice that comes. */
template <typename Kind>
static __device__ __forceinline__ bool units_change(const token_scales<Kind> &units,
                                                    const token_scales<Kind> &next)
{
    bool change = false;
#pragma unroll
    for (int operand = 0; operand < Kind::OPERANDS; operand++)
#pragma unroll
        for (int second = 0; second < 2; second++)
            change |= next.of[operand][second] != units.of[operand][second] && next.of[operand][second] != 0;
    return __any_sync(DECANT_ALL_LANES, change);
}

/* ---- products ---- */

/* Some tiles and halves of a slice. */
template <int FIRST_TILE, int TILE_COUNT, int FIRST_HALF, int HALF_COUNT> struct slice_part {
};

/* sums += that part of a slice. */
template <typename Kind, int FIRST_TILE, int TILE_COUNT, int FIRST_HALF, int HALF_COUNT>
static __device__ __forceinline__ void multiply(slice_part<FIRST_TILE, TILE_COUNT, FIRST_HALF, HALF_COUNT>,
                                                tile_sums<Kind> &sums, const slice_codes<Kind> &codes,
                                                const slice_fragments<Kind> &x)
{
    constexpr int BITS = Kind::BITS;
    const uint32_t lane_bytes = threadIdx.x % DECANT_WARP * 4;
#pragma unroll
    for (int tile = FIRST_TILE; tile < FIRST_TILE + TILE_COUNT; tile++) {
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
