/* The end of a tile of rows in packed_pairs.cu: a block's warps add up their sums, blocks that share the tile
 * those of all of them, and y is stored. Knows nothing of codes and of levels. */
#ifndef DECANT_KERNELS_CUDA_PAIR_SUMS_CUH
#define DECANT_KERNELS_CUDA_PAIR_SUMS_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/pair_products.cuh"

/* Groups of four rows of a token that a thread adds up at the end of a tile, and their tokens' scales. */
template <int TOKENS> constexpr int THREAD_QUADS = (TOKENS * QUADS + THREADS - 1) / THREADS;
template <int TOKENS> using thread_scales = float[THREAD_QUADS<TOKENS>];

/* Whether the codes' warps have registers for these scales. */
template <int TOKENS, bool SPARSE> constexpr bool KEEPS_SCALES = !SPARSE || TOKENS <= 16;

/* A warp's sums to shared memory, [tokens][PART_STRIDE]: rows 4t … 4t + 3 of a tile are in one lane. */
template <int TOKENS>
static __device__ __forceinline__ void leave_sums(const tile_sums<TOKENS> &sums, float *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, g = lane / 4, t = lane % 4;
    float *own = parts + (int)(threadIdx.x / DECANT_WARP) * TOKENS * PART_STRIDE + 4 * t;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int operand = 0; operand < OPERANDS<TOKENS>; operand++) {
            const auto &kinds = sums[tile][operand];
            float *target = own + (operand * 16 + g) * PART_STRIDE + tile * PAIR_TILE_ROWS;
            if constexpr (KINDS<TOKENS> == 1) {
                *(float4 *)target = make_float4(kinds[0][0], kinds[0][2], kinds[0][1], kinds[0][3]);
            } else {
#pragma unroll
                for (int second = 0; second < 2; second++) /* token g, then g + 8 */
                    *(float4 *)(target + second * 8 * PART_STRIDE) =
                        make_float4(kinds[0][2 * second], kinds[KINDS<TOKENS> - 1][2 * second],
                                    kinds[0][2 * second + 1], kinds[KINDS<TOKENS> - 1][2 * second + 1]);
            }
        }
}

[[maybe_unused]] static __device__ __forceinline__ void add(float4 &sum, const float4 &more)
{
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
}

[[maybe_unused]] static __device__ __forceinline__ void store(const pairs_call &call, int row, int token,
                                                              const float4 &four)
{
    if (token >= call.tokens)
        return;
    const float sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row + i >= call.packed.rows)
            return;
        const int64_t place = (int64_t)token * call.packed.rows + row + i;
        float sum = call.sparse ? sums[i] + call.sparse[place] : sums[i];
        if (call.accumulate)
            sum += __bfloat162float(call.y[place]);
        call.y[place] = __float2bfloat16_rn(sum);
    }
}

/* Sums [tokens of the kernel, ROWS] of a tile that a block shares with others. */
template <int TOKENS>
static __device__ __forceinline__ float4 *part_of(const pairs_call &call, int block, int row_tile)
{
    const int first = block * call.run / call.row_stages;
    return (float4 *)call.parts + (int64_t)(block * SHARED_TILES + (row_tile > first)) * TOKENS * QUADS;
}

/* The blocks that share a tile. */
typedef struct tile_blocks {
    int first, last;
} tile_blocks;

[[maybe_unused]] static __device__ __forceinline__ tile_blocks blocks_of(const pairs_call &call, int row_tile)
{
    const int begin = row_tile * call.row_stages;
    return {begin / call.run, (begin + call.row_stages - 1) / call.run};
}

[[maybe_unused]] static __device__ __forceinline__ int block_count(const pairs_call &call, int row_tile)
{
    const tile_blocks blocks = blocks_of(call, row_tile);
    return blocks.last - blocks.first + 1;
}

/* Of a block with several tiles the first may be shared with blocks before it, the last with blocks behind it.
 * Those behind take that tile first, and mostly have left their sums long before; so nobody waits for anybody.
 */
typedef struct shared_tiles {
    bool first_left_last; /* this block was the last to leave its sums of the first */
    bool others_left;     /* all others have left theirs of the last */
} shared_tiles;

/* The warps of the entries and those of the codes do not wait for each other but for these, tile after tile. */
typedef struct entry_barriers {
    uint64_t there; /* the sums of a tile's entries are there */
    uint64_t read;  /* and have been read */
} entry_barriers;

/* Four sums of all blocks that share a tile, added up in the order of the blocks. own: this block's, or NULL
 * where it has left them. */
template <int TOKENS>
static __device__ __forceinline__ float4 sum_of_blocks(const pairs_call &call, int row_tile, int i,
                                                       const float4 *own)
{
    const tile_blocks blocks = blocks_of(call, row_tile);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int block = blocks.first; block <= blocks.last; block++)
        add(sum, own && block == (int)blockIdx.x ? *own : __ldcg(part_of<TOKENS>(call, block, row_tile) + i));
    return sum;
}

/* Adds the warps' sums up, in `parts`, where the tables were; barriers before and after. shared: with other
 * blocks, of which others_left tells, in shared memory. */
template <int TOKENS, bool SPARSE>
static __device__ __forceinline__ void
finish_tile(const pairs_call &call, tile_sums<TOKENS> &sums, const thread_scales<TOKENS> &scales, int row_tile,
            float *parts, const block_entries<TOKENS> &entries, entry_barriers &met, uint32_t parity,
            bool shared, const bool &others_left)
{
    float4 own[THREAD_QUADS<TOKENS>];
#pragma unroll
    for (auto &tile : sums) /* what has been looked up for them, has been before the barrier */
#pragma unroll
        for (auto &operand : tile)
#pragma unroll
            for (auto &kind : operand)
                decant_settle(kind);
    codes_meet(); /* nobody looks up any more */
    leave_sums<TOKENS>(sums, parts);
    if constexpr (SPARSE) {
        decant_barrier_wait(decant_shared_address(&met.there), parity);
#pragma unroll
        for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
            const int i = (int)threadIdx.x + k * THREADS;
            if (i < TOKENS * QUADS)
                own[k] = entry_sums_of(entries, i / QUADS, i % QUADS * 4);
        }
        __syncwarp();
        if (threadIdx.x % DECANT_WARP == 0)
            decant_barrier_arrive(decant_shared_address(&met.read));
    }
    codes_meet();
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
        const int i = (int)threadIdx.x + k * THREADS, token = i / QUADS, quad = i % QUADS;
        if (i >= TOKENS * QUADS)
            break;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            add(sum, *(const float4 *)(parts + (warp * TOKENS + token) * PART_STRIDE + 4 * quad));
        const float scale = KEEPS_SCALES<TOKENS, SPARSE> ? scales[k] : call.x.scales[token];
        sum = make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale);
        if constexpr (SPARSE)
            add(own[k], sum);
        else
            own[k] = sum;
    }
    codes_meet();
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= TOKENS * QUADS)
            break;
        if (shared && !others_left)
            part_of<TOKENS>(call, blockIdx.x, row_tile)[i] = own[k];
        else
            store(call, row_tile * ROWS + i % QUADS * 4, i / QUADS,
                  shared ? sum_of_blocks<TOKENS>(call, row_tile, i, &own[k]) : own[k]);
    }
    if (shared && others_left && threadIdx.x == 0)
        call.arrivals[row_tile] = 0;
}

/* What all blocks left that share a tile. */
template <int TOKENS> static __device__ __forceinline__ void add_parts(const pairs_call &call, int row_tile)
{
    for (int i = threadIdx.x; i < TOKENS * QUADS; i += THREADS)
        store(call, row_tile * ROWS + i % QUADS * 4, i / QUADS, sum_of_blocks<TOKENS>(call, row_tile, i, NULL));
}

#endif
