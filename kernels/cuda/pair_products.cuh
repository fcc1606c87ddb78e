/* The products of a warp of packed_pairs.cu: x in registers, in the order of the operands, and sums of it times
 * pairs of levels that codes name. Knows nothing of where codes come from and of where sums go. */
#ifndef DECANT_KERNELS_CUDA_PAIR_PRODUCTS_CUH
#define DECANT_KERNELS_CUDA_PAIR_PRODUCTS_CUH

#include "kernels/cuda/pair_block.cuh"
#include "kernels/cuda/sparse_core.cuh"

enum {
    HALVES = 2, /* of a slice: the words of a plane that a lane has */
    HALF_TURNS = DECANT_FRAGMENTS_TURNS / HALVES,
};

/* A lane's sums of a tile of rows. */
template <int TOKENS> using tile_sums = float[TILES][OPERANDS<TOKENS>][KINDS<TOKENS>][4];

/* ---- x in registers ---- */

/* A lane's fragments of half a slice. */
template <int TOKENS> struct half_fragments {
    uint4 operands[HALF_TURNS][2][OPERANDS<TOKENS>];
};

/* Asked for once the value `behind` has come, which does not matter: an address that depends on it makes the
 * loads wait, and a warp then does not wait for these where it needs what it asked for before. */
template <int TOKENS>
static __device__ __forceinline__ void load_fragments(half_fragments<TOKENS> &x, const pairs_call &call,
                                                      int slice, int half, uint32_t behind = 0)
{
    constexpr int COUNT = HALF_TURNS * 2 * OPERANDS<TOKENS>;
    const uint4 *source = call.x.fragments + (int64_t)(slice * HALVES + half) * COUNT * DECANT_WARP +
                          (threadIdx.x % DECANT_WARP + (behind & call.zero));
#pragma unroll
    for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
        for (int part = 0; part < 2; part++)
#pragma unroll
            for (int operand = 0; operand < OPERANDS<TOKENS>; operand++, source += DECANT_WARP)
                x.operands[turn][part][operand] = *source;
}

/* The word of a half that was asked for last. */
template <int TOKENS> static __device__ __forceinline__ uint32_t last_word(const half_fragments<TOKENS> &x)
{
    return x.operands[HALF_TURNS - 1][1][OPERANDS<TOKENS> - 1].w;
}

/* ---- products ---- */

/* sums += half a slice of all tiles. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void multiply_half(tile_sums<TOKENS> &sums, const slice_codes<BITS> &codes,
                                                     int half, const half_fragments<TOKENS> &x)
{
    const uint32_t lane_bytes = threadIdx.x % DECANT_WARP * 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        uint32_t planes[BITS], numbers[4];
#pragma unroll
        for (int bit = 0; bit < BITS; bit++)
            planes[bit] = half ? codes.words[tile][bit].y : codes.words[tile][bit].x;
        number_pairs<BITS>(numbers, planes);
#pragma unroll
        for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                uint32_t weights[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    weights[i] = look_up<BITS, TABLES_ADDRESS>(tile, numbers[i / 2 * 2 + part],
                                                               turn * 2 + i % 2, lane_bytes);
#pragma unroll
                for (int operand = 0; operand < OPERANDS<TOKENS>; operand++)
#pragma unroll
                    for (int kind = 0; kind < KINDS<TOKENS>; kind++)
                        decant_sparse_mma(sums[tile][operand][kind], x.operands[turn][part][operand], weights,
                                          KINDS<TOKENS> == 1 ? DECANT_BOTH_TERMS
                                          : kind == 0        ? DECANT_LOWER_TERMS
                                                             : DECANT_UPPER_TERMS);
            }
    }
}

#endif
