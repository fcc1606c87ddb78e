/* What becomes of the sums of a block of grid_boxes.cu: those of its groups of columns are added up, then those
 * of the blocks that share a row tile, in one of three ways, and stored. Knows nothing of codes and of x. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_SUMS_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_SUMS_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_boxes.cuh"

/* Four sums of a lane go to rows `row` and row + 8 of y and to two tokens, under these scales. */
typedef struct fragment_place {
    int row, token;
    float row_scales[2], token_scales[2];
} fragment_place;

/* That of fragment `index` of a group of rows of a row tile. It is asked for ahead of the sums. */
template <typename Kind>
static __device__ __forceinline__ fragment_place place_of(const boxes_call &call, int row_tile, int row_group,
                                                          int index)
{
    const int lane = threadIdx.x % DECANT_WARP, tile = row_group * WARP_TILES + index / Kind::TILES;
    fragment_place place;
    place.row = row_tile * ROWS + tile * TILE_ROWS + lane / 4;
    place.token = index % Kind::TILES * TILE_TOKENS + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        place.row_scales[i] =
            Kind::GROUPED ? 1.0f : __half2float(call.scales[min(place.row + i * 8, call.rows - 1)]);
        place.token_scales[i] =
            __ldcg(call.rotation.token_scales + min(place.token + i, call.rotation.tokens - 1));
    }
    return place;
}

static __device__ __forceinline__ void store_sums(const boxes_call &call, const fragment_place &place,
                                                  float4 sums)
{
    const float values[4] = {sums.x, sums.y, sums.z, sums.w};
#pragma unroll
    for (int c = 0; c < 4; c++) {
        const int row = place.row + c / 2 * 8, token = place.token + c % 2;
        if (row >= call.rows || token >= call.rotation.tokens)
            continue;
        __nv_bfloat16 *y = call.y + (int64_t)token * call.rows + row;
        const float sum = values[c] * place.token_scales[c % 2] * place.row_scales[c / 2];
        *y = __float2bfloat16_rn(call.accumulate ? __bfloat162float(*y) + sum : sum);
    }
}

static __device__ __forceinline__ void add(float4 &sum, const float4 &other)
{
    sum.x += other.x;
    sum.y += other.y;
    sum.z += other.z;
    sum.w += other.w;
}

/* Where a block leaves the sums of a segment: fragment 0 of row group 0, lane 0. */
template <typename Kind>
static __device__ __forceinline__ float4 *parts_of(const boxes_call &call, const tile_share &share, int block)
{
    const int segment = block == share.begin ? share.segment : 0;
    return call.parts +
           (int64_t)(block * BLOCK_SEGMENTS + segment) * (ROW_GROUPS * Kind::FRAGMENTS * DECANT_WARP);
}

/* Waits until `blocks` blocks have come, by a thread of each, to a counter that is zero before and in the end:
 * each counts when it comes and when it has seen all, and then does not wait for its count. */
static __device__ __forceinline__ void meet_blocks(uint32_t *counter, uint32_t blocks)
{
    uint32_t now;
    asm volatile("red.release.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(2 * blocks - 1) : "memory");
    do
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    while (now < blocks);
    asm volatile("red.relaxed.gpu.global.inc.u32 [%0], %1;" ::"l"(counter), "r"(2 * blocks - 1) : "memory");
}

/* The parts of a row tile by all blocks that have some of it, each some fragments, in the order of the blocks.
 * They wait for each other, so all blocks must run at once and have nothing else to do. */
template <typename Kind>
static __device__ __forceinline__ void join_together(const boxes_call &call, int row_tile,
                                                     const tile_share &share)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int blocks = share.end - share.begin + 1, first = ((int)blockIdx.x - share.begin) * WARPS + warp;
    named_barrier(SUMS_BARRIER, CONSUMERS);
    if (threadIdx.x == 0)
        meet_blocks(call.arrivals + row_tile, (uint32_t)blocks);
    named_barrier(SUMS_BARRIER, CONSUMERS);
    for (int fragment = first; fragment < ROW_GROUPS * Kind::FRAGMENTS; fragment += blocks * WARPS) {
        const fragment_place place =
            place_of<Kind>(call, row_tile, fragment / Kind::FRAGMENTS, fragment % Kind::FRAGMENTS);
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (int block = share.begin; block <= share.end; block++)
            add(sum, __ldcg(parts_of<Kind>(call, share, block) + fragment * DECANT_WARP + lane));
        store_sums(call, place, sum);
    }
}

/* The parts of a row tile by the block that comes last, in the order of the blocks. */
template <typename Kind>
static __device__ __forceinline__ void join_parts(const boxes_call &call, int row_tile, const tile_share &share)
{
    constexpr int EACH = ROW_GROUPS * Kind::FRAGMENTS / WARPS; /* of the row tile's fragments, for a warp */
    __shared__ bool is_last;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    fragment_place places[EACH];
    float4 sums[EACH];
    named_barrier(SUMS_BARRIER, CONSUMERS);
    if (threadIdx.x == 0)
        is_last = decant_leaves_last(call.arrivals + row_tile, share.end - share.begin + 1);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int fragment = i * WARPS + warp;
        places[i] = place_of<Kind>(call, row_tile, fragment / Kind::FRAGMENTS, fragment % Kind::FRAGMENTS);
        sums[i] = make_float4(0, 0, 0, 0);
    }
    named_barrier(SUMS_BARRIER, CONSUMERS);
    if (!is_last)
        return;
#pragma unroll 4
    for (int block = share.begin; block <= share.end; block++) {
        const float4 *parts = parts_of<Kind>(call, share, block) + warp * DECANT_WARP + lane;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            add(sums[i], __ldcg(parts + i * CONSUMERS));
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        store_sums(call, places[i], sums[i]);
}

/* The parts of a row tile by the blocks of the cluster that has it, each some fragments, in the order of the
 * blocks. own: of this block, in shared memory: fragment 0 of row group 0, lane 0. */
template <typename Kind>
static __device__ __forceinline__ void join_cluster(const boxes_call &call, int row_tile, const float4 *own)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int rank = (int)blockIdx.x - row_tile * call.cluster;
    decant_cluster_barrier();
    for (int fragment = rank * WARPS + warp; fragment < ROW_GROUPS * Kind::FRAGMENTS;
         fragment += call.cluster * WARPS) {
        const uint32_t address = decant_shared_address(own + fragment * DECANT_WARP + lane);
        const fragment_place place =
            place_of<Kind>(call, row_tile, fragment / Kind::FRAGMENTS, fragment % Kind::FRAGMENTS);
        float4 sum = decant_load_of_block(address, 0);
        for (int block = 1; block < call.cluster; block++)
            add(sum, decant_load_of_block(address, block));
        store_sums(call, place, sum);
    }
    decant_cluster_barrier(); /* a block's memory is there until the others have read it */
}

/* The sums of the block's share of a row tile: of the groups of columns, in order, then, where other blocks
 * have the rest of the columns, theirs. sums are zeros then. share: of the tile; exchange: EXCHANGE_BYTES of
 * shared memory; cluster_parts: room for all fragments, of blocks of clusters. */
template <typename Kind>
static __device__ __forceinline__ void
finish_segment(const boxes_call &call, int row_tile, const tile_share &share,
               float (&sums)[WARP_TILES][Kind::TILES][4], float4 *exchange, float4 *cluster_parts)
{
    constexpr int ROUNDS = Kind::FRAGMENTS / Kind::ROUND,
                  EACH = Kind::ROUND / COLUMN_GROUPS; /* fragments of a round, for a warp */
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int row_group = warp / COLUMN_GROUPS, column_group = warp % COLUMN_GROUPS;
    const bool is_whole = share.begin == share.end;
    float4 *part = (call.cluster > 1 ? cluster_parts : parts_of<Kind>(call, share, blockIdx.x)) +
                   row_group * Kind::FRAGMENTS * DECANT_WARP + lane;
    float4 *own = exchange + row_group * COLUMN_GROUPS * Kind::ROUND * DECANT_WARP + lane;
    decant_wait_for_earlier_kernels(); /* x has arrived, so they have ended */
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        fragment_place places[EACH];
        if (is_whole)
#pragma unroll
            for (int i = 0; i < EACH; i++)
                places[i] = place_of<Kind>(call, row_tile, row_group,
                                           round * Kind::ROUND + i * COLUMN_GROUPS + column_group);
        named_barrier(row_group + 1, COLUMN_GROUPS * DECANT_WARP);
#pragma unroll
        for (int i = 0; i < Kind::ROUND; i++) {
            const int index = round * Kind::ROUND + i;
            float(&four)[4] = sums[index / Kind::TILES][index % Kind::TILES];
            own[(column_group * Kind::ROUND + i) * DECANT_WARP] =
                make_float4(four[0], four[1], four[2], four[3]);
            four[0] = four[1] = four[2] = four[3] = 0;
        }
        named_barrier(row_group + 1, COLUMN_GROUPS * DECANT_WARP);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int index = i * COLUMN_GROUPS + column_group; /* of the round */
            float4 sum = own[index * DECANT_WARP];
#pragma unroll
            for (int group = 1; group < COLUMN_GROUPS; group++)
                add(sum, own[(group * Kind::ROUND + index) * DECANT_WARP]);
            if (is_whole)
                store_sums(call, places[i], sum);
            else
                part[(round * Kind::ROUND + index) * DECANT_WARP] = sum;
        }
    }
    if (call.cluster > 1)
        join_cluster<Kind>(call, row_tile, cluster_parts);
    else if (!is_whole && call.together)
        join_together<Kind>(call, row_tile, share);
    else if (!is_whole)
        join_parts<Kind>(call, row_tile, share);
}

#endif
