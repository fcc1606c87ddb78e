/* What a block of grid_boxes.cu works on, its rings of shared memory, and what becomes of its sums; the whole
 * is explained there. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_CUH

#include "kernels/cuda/grid_arranged.cuh"
#include "kernels/cuda/grid_rotation.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    ROW_GROUPS = 2,                         /* of warps that share rows */
    COLUMN_GROUPS = 4,                      /* of warps: each takes sixteen bytes of the planes of a step */
    WARPS = ROW_GROUPS * COLUMN_GROUPS,     /* that multiply */
    CONSUMERS = WARPS * DECANT_WARP,        /* threads */
    THREADS = CONSUMERS + DECANT_WARPGROUP, /* and those that ask for codes and for x */
    CONSUMER_REGISTERS = 224,
    PRODUCER_REGISTERS = 32,
    HALVES = 2, /* of a tile: rows g and g + 8 of a lane */
    TILE_ROWS = 16,
    WARP_TILES = 4, /* of rows */
    ROWS = ROW_GROUPS * WARP_TILES * TILE_ROWS,
    STEP_WORDS = COLUMN_GROUPS * ROW_LANES,
    BOX_TILES = 2, /* of rows, in a box of codes */
    BOX_ARRANGED_TILES = BOX_TILES * TILE_ROWS / ARRANGED_ROWS,
    WARP_BOXES = WARP_TILES / BOX_TILES, /* of codes, a step */
    BOX_OCTETS = 2,                      /* of each word, in a box of x */
    FRAGMENT_BYTES = DECANT_WARP * VECTOR_BYTES,
    ROUND = COLUMN_GROUPS, /* fragments of sums that warps exchange at once, one for each */
    EXCHANGE_BYTES = WARPS * ROUND * FRAGMENT_BYTES,
    SCALED_TILES = 2, /* of tokens, whose sums are scaled rather than the weights */
    TABLE_THREADS = 256,
    TOKENS_MAXIMUM = 32,
    BLOCK_SEGMENTS = 2, /* with parts of a row tile: the first and the last */
    SLOTS_MAXIMUM = 32, /* of a ring */
    RUN_COLUMNS = 8192, /* at most, that a block rotates at a time */
};

/* How a kernel is built: the way from codes to numbers, the bits of a code, whether groups of columns have
 * scales of their own, and tiles of eight tokens. */
template <typename Decoder_, int BITS_, bool GROUPED_, int TILES_> struct boxes_kind {
    using Decoder = Decoder_;
    static constexpr int BITS = BITS_, TILES = TILES_;
    static constexpr bool GROUPED = GROUPED_;
    static constexpr int UNIT_BYTES = ARRANGED_LANES * BITS * 4;
    static constexpr int CODE_BYTES = BOX_ARRANGED_TILES * COLUMN_GROUPS * UNIT_BYTES;
    static constexpr int OCTETS = Decoder::STEPS; /* of a word of codes */
    static constexpr int STEP_X_BOXES = OCTETS / BOX_OCTETS;
    static constexpr bool SCALES_SUMS = GROUPED && TILES <= SCALED_TILES;
    static constexpr int STEP_STRETCHES = COLUMN_GROUPS * STEP_X_BOXES;
    static constexpr int SCALE_PITCH = STEP_STRETCHES + 4; /* so that rows' lie in different banks */
    static constexpr int X_BYTES = BOX_OCTETS * COLUMN_GROUPS * TILES * FRAGMENT_BYTES;
    static constexpr int FRAGMENTS = WARP_TILES * TILES; /* of sums, of a warp */
    static_assert(Decoder::STEP_CHUNKS == 1, "a step is an octet of columns");
    static_assert(BOX_OCTETS * ROW_LANES * OCTET == STRETCH_COLUMNS, "a box of x has a stretch of every unit");
};

/* The arguments of a launch. */
typedef struct boxes_call {
    CUtensorMap codes; /* words [tiles of eight rows, units, lanes and bits] */
    const float *points;
    const __half *scales, *offsets; /* [rows, groups] */
    token_rotation rotation;        /* x rotated, box by box */
    __nv_bfloat16 *y;               /* [tokens, rows] */
    float4 *parts;                  /* [blocks, BLOCK_SEGMENTS, fragments of a block, lanes] */
    uint32_t *arrivals;             /* [row tiles] zeros, and zeros again in the end */
    int rows, groups;
    uint32_t group_factor;   /* so that stretch_group finds groups */
    bool scales_by_fours;    /* a group is a stretch, and four of a row may be copied at once */
    int row_tiles, steps;    /* of a block's rows; along the columns */
    int cluster;             /* blocks of a cluster, which has a row tile; 1: no clusters */
    int code_slots, x_slots; /* of each group of rows; of all */
    uint32_t *rotated; /* [2] the same of tokens that blocks rotate: runs that are done, blocks that know */
    int tasks, runs;   /* runs of columns of all tokens that blocks rotate, 0: none; and of one */
    bool together;     /* no block has parts of two row tiles */
    bool accumulate;
} boxes_call;

/* ---- what a block works on ---- */

/* Steps of row tiles are shared evenly among the blocks, in order: those of a tile one after the other. Where
 * clusters have a row tile each, their blocks share its steps. */
static __device__ __forceinline__ int first_item(const boxes_call &call, int block)
{
    if (call.cluster > 1)
        return block / call.cluster * call.steps + call.steps * (block % call.cluster) / call.cluster;
    return call.row_tiles * call.steps * block / (int)gridDim.x;
}

static __device__ __forceinline__ int block_of(const boxes_call &call, int item)
{
    return ((item + 1) * (int)gridDim.x - 1) / (call.row_tiles * call.steps);
}

/* ---- rings ---- */

/* A ring of slots as a thread sees it: barriers say when a slot has arrived and when it is free. */
typedef struct ring_place {
    uint32_t full, empty; /* addresses of the first barriers */
    int slots, slot;
    uint32_t parity;

    __device__ __forceinline__ void advance(void)
    {
        if (++slot == slots) {
            slot = 0;
            parity ^= 1;
        }
    }

    __device__ __forceinline__ void wait_full(void) const
    {
        decant_barrier_wait(full + slot * 8, parity);
    }

    __device__ __forceinline__ void wait_empty(void) const
    {
        decant_barrier_wait(empty + slot * 8, parity ^ 1);
    }

    /* By all lanes of a warp that is done with the slot; has_read: true, see words_have_come. */
    __device__ __forceinline__ void leave(bool has_read = true) const
    {
        __syncwarp();
        if (threadIdx.x % DECANT_WARP == 0 && has_read)
            decant_barrier_arrive(empty + slot * 8);
    }
} ring_place;

typedef struct ring_barriers {
    uint64_t full[SLOTS_MAXIMUM], empty[SLOTS_MAXIMUM];
} ring_barriers;

static __device__ __forceinline__ ring_place ring_at(const ring_barriers &barriers, int slots)
{
    return {decant_shared_address(barriers.full), decant_shared_address(barriers.empty), slots, 0, 0};
}

static __device__ __forceinline__ void create_ring(const ring_place &ring, int slots, int readers)
{
    for (int i = 0; i < slots; i++) {
        decant_barrier_create(ring.full + i * 8, 1);
        decant_barrier_create(ring.empty + i * 8, (uint32_t)readers);
    }
}

/* ---- sums ---- */

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

/* Waits for `threads` of the block. */
static __device__ __forceinline__ void named_barrier(int name, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/* Where a block leaves the sums of a segment: fragment 0 of row group 0, lane 0. */
template <typename Kind>
static __device__ __forceinline__ float4 *parts_of(const boxes_call &call, int block, int row_tile)
{
    const bool is_first = first_item(call, block) / call.steps == row_tile;
    const int64_t segment = (int64_t)block * BLOCK_SEGMENTS + (is_first ? 0 : 1);
    return call.parts + segment * ROW_GROUPS * Kind::FRAGMENTS * DECANT_WARP;
}

/* Waits until other blocks have brought a counter to `count`. */
static __device__ __forceinline__ void wait_for_count(const uint32_t *counter, uint32_t count)
{
    uint32_t now;
    do
        asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    while (now != count);
}

/* The parts of a row tile by all blocks that have some of it, each some fragments, in the order of the blocks.
 * They wait for each other, so all blocks must run at once and have nothing else to do. */
template <typename Kind>
static __device__ __forceinline__ void join_together(const boxes_call &call, int row_tile, int begin, int end)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int blocks = end - begin + 1, first = ((int)blockIdx.x - begin) * WARPS + warp;
    __threadfence();
    named_barrier(15, CONSUMERS);
    if (threadIdx.x == 0) {
        uint32_t *arrived = call.arrivals + row_tile, *seen = call.arrivals + call.row_tiles + row_tile;
        atomicAdd(arrived, 1u);
        wait_for_count(arrived, (uint32_t)blocks);
        if (atomicInc(seen, (uint32_t)blocks - 1) == (uint32_t)blocks - 1)
            *arrived = 0;
    }
    named_barrier(15, CONSUMERS);
    __threadfence();
    for (int fragment = first; fragment < ROW_GROUPS * Kind::FRAGMENTS; fragment += blocks * WARPS) {
        const fragment_place place =
            place_of<Kind>(call, row_tile, fragment / Kind::FRAGMENTS, fragment % Kind::FRAGMENTS);
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (int block = begin; block <= end; block++)
            add(sum, __ldcg(parts_of<Kind>(call, block, row_tile) + fragment * DECANT_WARP + lane));
        store_sums(call, place, sum);
    }
}

/* The parts of a row tile by the block that comes last, in the order of the blocks. */
template <typename Kind>
static __device__ __forceinline__ void join_parts(const boxes_call &call, int row_tile, int begin, int end)
{
    constexpr int EACH = ROW_GROUPS * Kind::FRAGMENTS / WARPS; /* of the row tile's fragments, for a warp */
    __shared__ uint32_t before;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    fragment_place places[EACH];
    float4 sums[EACH];
    __threadfence();
    named_barrier(15, CONSUMERS);
    if (threadIdx.x == 0) /* back to zero with the last one */
        before = atomicInc(call.arrivals + row_tile, (uint32_t)(end - begin));
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int fragment = i * WARPS + warp;
        places[i] = place_of<Kind>(call, row_tile, fragment / Kind::FRAGMENTS, fragment % Kind::FRAGMENTS);
        sums[i] = make_float4(0, 0, 0, 0);
    }
    named_barrier(15, CONSUMERS);
    if (before != (uint32_t)(end - begin))
        return;
    __threadfence();
#pragma unroll 4
    for (int block = begin; block <= end; block++) {
        const float4 *parts = parts_of<Kind>(call, block, row_tile) + warp * DECANT_WARP + lane;
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
    const int rank = (int)blockIdx.x % call.cluster;
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
 * have the rest of the columns, theirs. sums are zeros then. exchange: EXCHANGE_BYTES of shared memory;
 * cluster_parts: room for all fragments, of blocks of clusters. */
template <typename Kind>
static __device__ __forceinline__ void finish_segment(const boxes_call &call, int row_tile,
                                                      float (&sums)[WARP_TILES][Kind::TILES][4],
                                                      float4 *exchange, float4 *cluster_parts)
{
    constexpr int ROUNDS = Kind::FRAGMENTS / ROUND;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int row_group = warp / COLUMN_GROUPS, column_group = warp % COLUMN_GROUPS;
    const int begin = block_of(call, row_tile * call.steps),
              end = block_of(call, (row_tile + 1) * call.steps - 1);
    const bool is_whole = begin == end && call.cluster == 1;
    float4 *part = (call.cluster > 1 ? cluster_parts : parts_of<Kind>(call, blockIdx.x, row_tile)) +
                   row_group * Kind::FRAGMENTS * DECANT_WARP + lane;
    float4 *own = exchange + row_group * COLUMN_GROUPS * ROUND * DECANT_WARP + lane;
    fragment_place places[ROUNDS];
    decant_wait_for_earlier_kernels(); /* x has arrived, so they have ended */
    if (is_whole)
#pragma unroll
        for (int round = 0; round < ROUNDS; round++)
            places[round] = place_of<Kind>(call, row_tile, row_group, round * ROUND + column_group);
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        named_barrier(row_group + 1, COLUMN_GROUPS * DECANT_WARP);
#pragma unroll
        for (int i = 0; i < ROUND; i++) {
            const int index = round * ROUND + i;
            float(&four)[4] = sums[index / Kind::TILES][index % Kind::TILES];
            own[(column_group * ROUND + i) * DECANT_WARP] = make_float4(four[0], four[1], four[2], four[3]);
            four[0] = four[1] = four[2] = four[3] = 0;
        }
        named_barrier(row_group + 1, COLUMN_GROUPS * DECANT_WARP);
        float4 sum = own[column_group * DECANT_WARP];
#pragma unroll
        for (int group = 1; group < COLUMN_GROUPS; group++)
            add(sum, own[(group * ROUND + column_group) * DECANT_WARP]);
        if (is_whole)
            store_sums(call, places[round], sum);
        else
            part[(round * ROUND + column_group) * DECANT_WARP] = sum;
    }
    if (call.cluster > 1)
        join_cluster<Kind>(call, row_tile, cluster_parts);
    else if (!is_whole && call.together)
        join_together<Kind>(call, row_tile, begin, end);
    else if (!is_whole)
        join_parts<Kind>(call, row_tile, begin, end);
}

#endif
