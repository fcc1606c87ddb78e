/* How grid_boxes.cu cuts a matrix, and what of it falls to a block: warps, steps and boxes, the arguments of a
 * launch, a block's items, and the rings of its shared memory. Knows nothing of what a block does with them:
 *
 *     grid_boxes_copies.cuh    who asks for boxes of codes and of x
 *     grid_boxes_scales.cuh    scales of groups of columns
 *     grid_boxes_products.cuh  who multiplies
 *     grid_boxes_sums.cuh      the sums of row tiles, joined and stored */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_CUH

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

/* ---- barriers of some warps ---- */

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

#endif
