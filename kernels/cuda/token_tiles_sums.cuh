/* The sparse part of a block of token_tiles.cuh, and the end of its rows: sums of the sparse part and of the
 * blocks that share rows join the block's own on their way to y. Knows nothing of codes and dense products. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_SUMS_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_SUMS_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/token_entries.cuh"
#include "kernels/cuda/token_tiles_block.cuh"

/* ---- the sparse part ---- */

/* A block takes the entries of its part of the rows that it shares, in `shared` of ENTRY_BYTES, and leaves
 * their sums in call.products: of rows that it stores itself, or before it says that it has come. */
template <int TILES> struct own_entries {
    decant_row_entries<THREADS, TILES * TILE_TOKENS> entries;
    int first_row;

    /* What does not depend on x. A barrier inside. */
    __device__ __forceinline__ void open(const tiles_call &call, int row_block, int share, float *shared)
    {
        const int begin = row_block * ROWS + ROWS * share / call.shares,
                  end = row_block * ROWS + ROWS * (share + 1) / call.shares;
        first_row = min(begin, call.packed.rows);
        entries.open(call.packed, first_row, min(end, call.packed.rows) - first_row, shared);
    }

    /* Ends with a barrier. */
    __device__ __forceinline__ void multiply(const tiles_call &call)
    {
        entries.multiply(call.packed, first_row, call.turned, call.tokens, call.products);
        __syncthreads();
    }
};

template <int TILES>
constexpr int ENTRY_BYTES = (decant_row_entries<THREADS, TILES * TILE_TOKENS>::bytes(ROWS) + 127) / 128 * 128;

/* ---- the end ---- */

enum { PARTS_AHEAD = 8 /* of different shares, that are read at once */ };

static __device__ __forceinline__ void store(const tiles_call &call, int row, int token, float sum)
{
    if (row >= call.packed.rows || token >= call.tokens)
        return;
    const int64_t place = (int64_t)token * call.packed.rows + row;
    if (call.turned)
        sum += call.products[place];
    call.y[place] = __float2bfloat16_rn(call.accumulate ? __bfloat162float(call.y[place]) + sum : sum);
}

/* A lane's sum c is of row g, or g + 8 for the last two, and of token 2t or 2t + 1 of the tile. */
template <int TILES, typename Take>
static __device__ __forceinline__ void each_sum(const float (&sums)[TILES][4], Take take)
{
    const int lane = threadIdx.x % DECANT_WARP,
              first_row = (int)threadIdx.x / DECANT_WARP * WARP_ROWS + lane / 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            take(first_row + c / 2 * 8, tile * TILE_TOKENS + lane % 4 * 2 + c % 2, sums[tile][c]);
}

/* Sums of a row block [tokens of the kernel, ROWS] that one of its blocks leaves. */
template <int TOKENS>
static __device__ __forceinline__ float *part_of(const tiles_call &call, int row_block, int part)
{
    return call.parts + ((int64_t)row_block * call.shares + part) * ROWS * TOKENS;
}

/* The last block of those that share rows adds up what all left. A thread asks for all that it adds at once, as
 * far as registers suffice. */
template <int TILES> static __device__ __forceinline__ void add_parts(const tiles_call &call, int row_block)
{
    constexpr int TOKENS = TILES * TILE_TOKENS, FOURS = ROWS * TOKENS / 4, AT_ONCE = FOURS > THREADS ? 2 : 1;
    const int count = call.shares;
    if (!decant_comes_last(call.arrivals + row_block, count))
        return;
    const float4 *parts = (const float4 *)part_of<TOKENS>(call, row_block, 0);
#pragma unroll
    for (int begin = 0; begin < FOURS; begin += AT_ONCE * THREADS) {
        float sums[AT_ONCE][4] = {};
        for (int first = 0; first < count; first += PARTS_AHEAD) {
            float4 ahead[PARTS_AHEAD][AT_ONCE];
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; k++)
                        ahead[j][k] =
                            __ldcg(parts + (first + j) * FOURS + begin + k * THREADS + (int)threadIdx.x);
#pragma unroll
            for (int j = 0; j < PARTS_AHEAD; j++)
                if (first + j < count)
#pragma unroll
                    for (int k = 0; k < AT_ONCE; k++) {
                        sums[k][0] += ahead[j][k].x;
                        sums[k][1] += ahead[j][k].y;
                        sums[k][2] += ahead[j][k].z;
                        sums[k][3] += ahead[j][k].w;
                    }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            const int i = (begin + k * THREADS + (int)threadIdx.x) * 4;
#pragma unroll
            for (int j = 0; j < 4; j++)
                store(call, row_block * ROWS + i % ROWS + j, i / ROWS, sums[k][j]);
        }
    }
}

template <int TILES>
static __device__ __forceinline__ void finish(const tiles_call &call, const float (&sums)[TILES][4],
                                              int row_block, int share)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    if (call.shares == 1) {
        each_sum<TILES>(
            sums, [&](int row, int token, float sum) { store(call, row_block * ROWS + row, token, sum); });
        return;
    }
    float *own = part_of<TOKENS>(call, row_block, share);
    each_sum<TILES>(sums, [&](int row, int token, float sum) { own[token * ROWS + row] = sum; });
    add_parts<TILES>(call, row_block);
}

#endif
