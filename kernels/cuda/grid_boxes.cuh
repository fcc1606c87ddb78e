/* What a block of grid_boxes.cu works on, its rings of shared memory, and what becomes of its sums; the whole
 * is explained there. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_CUH

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/grid_runs.cuh"
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
    ROUND_MAXIMUM = 8, /* fragments of sums that each warp gives to the others at once */
    SCALED_TILES = 2,  /* of tokens, whose sums are scaled rather than the weights */
    TOKENS_MAXIMUM = 32,
    BLOCK_SEGMENTS = 2, /* with parts of a row tile: the first and the last */
    SLOTS_MAXIMUM = 32, /* of a ring */
    BEGIN_BARRIER = 14, /* beside those of groups of rows and of threads that rotate: all but x is there */
    BEGIN_THREADS = CONSUMERS + 3 * DECANT_WARP,
    SUMS_BARRIER = 15, /* the block's sums */
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
    static constexpr int ROUND = FRAGMENTS < ROUND_MAXIMUM ? FRAGMENTS : (int)ROUND_MAXIMUM;
    static constexpr int SUMS_BYTES = WARPS * ROUND * FRAGMENT_BYTES; /* that warps exchange at once */
    static constexpr int RUNS_BYTES = CONSUMERS / RUN_THREADS * (int)sizeof(run_exchange);
    static constexpr int EXCHANGE_BYTES = (SUMS_BYTES > RUNS_BYTES ? SUMS_BYTES : RUNS_BYTES + 127) / 128 * 128;
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
    uint32_t group_factor; /* so that stretch_group finds groups */
    int scales_at_once;    /* that may be copied, 4 or 2, where a group is 2^group_bits stretches; else 0 */
    int group_bits;        /* 0 or 1; so many stretches share what is kept of a step's scales */
    int row_tiles, steps;  /* of a block's rows; along the columns */
    int sharers;           /* blocks of a row tile, which have nothing else; 1: blocks share all steps evenly */
    int cluster;           /* blocks of a cluster, which are the sharers of a row tile; 1: no clusters */
    int code_slots, x_slots; /* of each group of rows; of all */
    run_shares runs;
    bool together; /* no block has parts of two row tiles */
    bool accumulate;
} boxes_call;

/* A step of a row tile. */
typedef struct step_place {
    int row_tile, step;

    __device__ __forceinline__ void advance(const boxes_call &call)
    {
        if (++step == call.steps) {
            step = 0;
            row_tile++;
        }
    }
} step_place;

/* ---- what a block works on ---- */

/* Steps of row tiles are shared evenly among the blocks, in order: those of a tile one after the other. Or the
 * sharers of a row tile share its steps. */
static __device__ __forceinline__ int first_item(const boxes_call &call, int block)
{
    if (call.sharers > 1) {
        const int row_tile = block / call.sharers, own = block - row_tile * call.sharers;
        return row_tile * call.steps + call.steps * own / call.sharers;
    }
    return call.row_tiles * call.steps * block / (int)gridDim.x;
}

static __device__ __forceinline__ int block_of(const boxes_call &call, int item)
{
    return ((item + 1) * (int)gridDim.x - 1) / (call.row_tiles * call.steps);
}

/* What a block works on: so many steps, one after the other. */
typedef struct block_items {
    step_place first;
    int count;
} block_items;

static __device__ __forceinline__ block_items items_of(const boxes_call &call, int block)
{
    const int begin = first_item(call, block), row_tile = begin / call.steps;
    return {{row_tile, begin - row_tile * call.steps}, first_item(call, block + 1) - begin};
}

/* The blocks that have some of a row tile, from the first to the last. */
typedef struct tile_share {
    int begin, end;
    int segment; /* of the first block: which of its segments is of this tile; of the others the first is */
} tile_share;

static __device__ __forceinline__ tile_share share_of_tile(const boxes_call &call, int row_tile)
{
    tile_share share = {row_tile * call.sharers, (row_tile + 1) * call.sharers - 1, 0};
    if (call.sharers == 1) {
        share.begin = block_of(call, row_tile * call.steps);
        share.end = block_of(call, (row_tile + 1) * call.steps - 1);
        share.segment = first_item(call, share.begin) >= row_tile * call.steps ? 0 : 1;
    }
    return share;
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

/* Counts for it, but goes on. */
static __device__ __forceinline__ void arrive_at_barrier(int name, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
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
