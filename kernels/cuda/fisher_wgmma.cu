/* fisher += (dYᵀ X)∘(dYᵀ X), or += dYᵀ X, in one kernel on Hopper's wgmma. Clusters of two blocks, one block a
 * multiprocessor, pass over tiles of 256 × 256 of the product, each block over 128 of the rows. A warp of its
 * last warpgroup, the producer, has the tensor memory accelerator bring tokens of dY and X, 64 at a time, into
 * a ring of stages: its own rows of dY, and half of the columns of X, which go to both blocks of the cluster.
 * Two warpgroups, the consumers, multiply 64 rows each and send what they have to the L2 cache, which adds it
 * to F while they go on with the next tile.
 *
 * The bits do not depend on timing: an element of F belongs to one thread of a launch and gets one addition.
 *
 * Both operands lie in memory with the tokens, the terms of the sum, as the slow dimension: the layout that the
 * instruction set calls M-major and N-major. A stage holds them as boxes of 64 tokens × 64 columns, 128 bytes a
 * row, swizzled by the accelerator as wgmma expects it.
 *
 * An operand byte that leaves the L2 cache serves 128 operations: at 790 TFLOP/s it must deliver 6 TB/s.
 * Without the cluster it would be 9. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_map.h"

enum {
    BOX = 64, /* columns of a box, and tokens of a stage */
    CLUSTER = 2,
    TILE_ROWS = 128,
    TILE_COLUMNS = 256,
    TERMS = 16, /* tokens of one wgmma */
    STAGES = 4,
    GROUP = 128,           /* threads of a warpgroup; a consuming one owns BOX rows of the tile */
    CONSUMERS = 2 * GROUP, /* threads */
    THREADS = CONSUMERS + GROUP,
    CONSUMER_REGISTERS =
        232, /* a thread; 168 at the start for all, and what the producer gives up the others take */
    PRODUCER_REGISTERS = 40,
    BOX_BYTES = BOX * BOX * 2,
    EIGHT_TOKENS_BYTES = 8 * BOX * 2, /* of a box: the piece that a swizzle pattern spans */
    DY_BOXES = TILE_ROWS / BOX,
    X_BOXES = TILE_COLUMNS / BOX / CLUSTER, /* that one block of a cluster brings for both */
    DY_BYTES = TILE_ROWS / BOX * BOX_BYTES,
    STAGE_BYTES = DY_BYTES + TILE_COLUMNS / BOX * BOX_BYTES,
    ALIGNMENT = 1024, /* the swizzle is a function of the address */
    SHARED_BYTES = STAGES * STAGE_BYTES + ALIGNMENT,
    SUMS = BOX * TILE_COLUMNS / GROUP, /* of a thread */
    PAIRS_TOGETHER = 6, /* tiles that run at the same time form a near-square, so that they share operands */
};

typedef struct fisher_sizes {
    float *fisher; /* [rows, columns] */
    int tokens, rows, columns;
    bool squared;
} fisher_sizes;

typedef struct tile_place {
    int row, column; /* of the block's first element */
} tile_place;

static __host__ __device__ __forceinline__ int pair_rows(const fisher_sizes &sizes)
{
    return (sizes.rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS);
}

/* Tiles of clusters. */
static __host__ __device__ __forceinline__ int tile_count(const fisher_sizes &sizes)
{
    return pair_rows(sizes) * ((sizes.columns + TILE_COLUMNS - 1) / TILE_COLUMNS);
}

/* The order of tiles: bands of twelve blocks' rows, column after column. */
static __device__ __forceinline__ tile_place place_of(const fisher_sizes &sizes, int tile, int rank)
{
    const int column_tiles = (sizes.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int band = tile / (PAIRS_TOGETHER * column_tiles), first = band * PAIRS_TOGETHER;
    const int height = min((int)PAIRS_TOGETHER, pair_rows(sizes) - first);
    const int place = tile - first * column_tiles;
    return {((first + place % height) * CLUSTER + rank) * TILE_ROWS, place / height * TILE_COLUMNS};
}

/* A place in the ring of stages, and the parity of its current use. */
typedef struct ring_place {
    uint32_t stage, parity;
} ring_place;

static __device__ __forceinline__ void advance(ring_place &place)
{
    if (++place.stage == STAGES) {
        place.stage = 0;
        place.parity ^= 1;
    }
}

/* Addresses in shared memory. full[STAGES]: the bytes are there; empty[STAGES]: all consumers of the cluster
 * have read them. */
typedef struct fisher_ring {
    uint32_t stages, full, empty;
} fisher_ring;

static __device__ __forceinline__ uint32_t stage_at(const fisher_ring &ring, uint32_t stage)
{
    return ring.stages + stage * STAGE_BYTES;
}

static __device__ __forceinline__ uint32_t barrier_at(uint32_t barriers, uint32_t stage)
{
    return barriers + stage * (uint32_t)sizeof(uint64_t);
}

/* ---- the producer: one thread ---- */

/* Calls rows first … last − 1 of the tile of F into the L2 cache, where the sums will be added. */
static __device__ __forceinline__ void prefetch_rows(const fisher_sizes &sizes, tile_place place, int first,
                                                     int last)
{
    const int width = min((int)TILE_COLUMNS, sizes.columns - place.column);
    for (int row = place.row + first; row < min(place.row + last, sizes.rows); row++)
        decant_prefetch_bytes(sizes.fisher + (int64_t)row * sizes.columns + place.column,
                              (uint32_t)width * (uint32_t)sizeof(float));
}

static __device__ __forceinline__ void produce(const fisher_ring &ring, const fisher_sizes &sizes,
                                               const CUtensorMap *dy, const CUtensorMap *x, int rank)
{
    const uint32_t own_x = DY_BYTES + (uint32_t)rank * X_BOXES * BOX_BYTES;
    const int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    const int stages = (sizes.tokens + BOX - 1) / BOX, rows_a_stage = (TILE_ROWS + stages - 1) / stages;
    ring_place at = {0, 0};
    for (int tile = cluster; tile < tile_count(sizes); tile += clusters) {
        const tile_place place = place_of(sizes, tile, rank);
        const int row_box = place.row / BOX, column_box = place.column / BOX + rank * X_BOXES;
        for (int token = 0; token < sizes.tokens; token += BOX) {
            const uint32_t stage = stage_at(ring, at.stage), full = barrier_at(ring.full, at.stage);
            decant_barrier_wait(barrier_at(ring.empty, at.stage), at.parity ^ 1);
            decant_barrier_expect(full, STAGE_BYTES);
            decant_copy_boxes(stage, dy, 0, token, row_box, full);
            decant_copy_boxes_to_all(stage + own_x, x, 0, token, column_box, full, (1 << CLUSTER) - 1);
            advance(at);
            const int row = token / BOX * rows_a_stage;
            prefetch_rows(sizes, place, row, min(row + rows_a_stage, (int)TILE_ROWS));
        }
    }
}

/* ---- the consumers: two warpgroups ---- */

static __device__ __forceinline__ void multiply_stage(float (&sums)[SUMS], uint32_t stage, int group)
{
    decant_products_begin();
#pragma unroll
    for (int k = 0; k < BOX / TERMS; k++) {
        const uint32_t terms = k * (TERMS / 8) * EIGHT_TOKENS_BYTES;
        decant_multiply_64_256(
            sums, decant_operand_descriptor(stage + group * BOX_BYTES + terms, BOX_BYTES, EIGHT_TOKENS_BYTES),
            decant_operand_descriptor(stage + DY_BYTES + terms, BOX_BYTES, EIGHT_TOKENS_BYTES), true);
    }
    decant_products_commit();
}

/* Lane i of a warp tells block i of the cluster that the warp has read the stage. */
static __device__ __forceinline__ void release_stage(const fisher_ring &ring, uint32_t stage)
{
    const uint32_t lane = threadIdx.x % DECANT_WARP;
    if (lane < CLUSTER)
        decant_barrier_arrive_at(barrier_at(ring.empty, stage), lane);
}

/* Row `row` of F gains half of the lane's sums, or their squares. */
static __device__ __forceinline__ void add_sums(const fisher_sizes &sizes, const float (&sums)[SUMS], int half,
                                                int row, int column)
{
    if (row >= sizes.rows)
        return;
    float *target = sizes.fisher + (int64_t)row * sizes.columns + column;
#pragma unroll
    for (int i = 0; i < TILE_COLUMNS / 8; i++)
        if (column + 8 * i < sizes.columns) {
            float low = sums[4 * i + 2 * half], high = sums[4 * i + 2 * half + 1];
            decant_add_pair(target + 8 * i, sizes.squared ? low * low : low,
                            sizes.squared ? high * high : high);
        }
}

static __device__ __forceinline__ void consume(const fisher_ring &ring, const fisher_sizes &sizes, int rank)
{
    const int group = threadIdx.x / GROUP, warp = threadIdx.x % GROUP / DECANT_WARP,
              lane = threadIdx.x % DECANT_WARP;
    const int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
    ring_place at = {0, 0};
    for (int tile = cluster; tile < tile_count(sizes); tile += clusters) {
        const tile_place place = place_of(sizes, tile, rank);
        float sums[SUMS];
#pragma unroll
        for (int i = 0; i < SUMS; i++)
            sums[i] = 0;
        uint32_t before = 0;
        for (int token = 0; token < sizes.tokens; token += BOX) {
            decant_barrier_wait(barrier_at(ring.full, at.stage), at.parity);
            multiply_stage(sums, stage_at(ring, at.stage), group);
            decant_products_wait<1>(); /* the products of the stage before are done */
            if (token > 0)
                release_stage(ring, before);
            before = at.stage;
            advance(at);
        }
        decant_products_wait<0>();
        decant_settle(sums);
        release_stage(ring, before);
        const int row = place.row + group * BOX + warp * 16 + lane / 4, column = place.column + 2 * (lane % 4);
        add_sums(sizes, sums, 0, row, column);
        add_sums(sizes, sums, 1, row + 8, column);
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    fisher_wgmma_kernel(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap x,
                        const fisher_sizes sizes)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) char shared_memory[];
        __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES];
        const uint32_t shared = decant_shared_address(shared_memory);
        const fisher_ring ring = {(shared + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, decant_shared_address(full),
                                  decant_shared_address(empty)};
        const int rank = blockIdx.x % CLUSTER;
        if (threadIdx.x == 0) {
            for (uint32_t stage = 0; stage < STAGES; stage++) {
                decant_barrier_create(barrier_at(ring.full, stage), 1);
                decant_barrier_create(barrier_at(ring.empty, stage), CLUSTER * CONSUMERS / DECANT_WARP);
            }
            decant_barrier_publish();
        }
        __syncthreads();
        decant_cluster_meet(); /* the other block's barriers are there */
        if (threadIdx.x < CONSUMERS) {
            decant_registers_raise<CONSUMER_REGISTERS>();
            consume(ring, sizes, rank);
        } else {
            decant_registers_lower<PRODUCER_REGISTERS>();
            if (threadIdx.x == CONSUMERS)
                produce(ring, sizes, &dy, &x, rank);
            __syncwarp();
        }
        decant_cluster_meet(); /* nobody sends to a block that is gone */
    }
}

/* ---- the host's side ---- */

/* A map of a [tokens, width] BF16 activation as [width / 64, tokens, 64], read in `boxes` boxes of 64 × 64. */
static decant_status map_of(decant_backend *backend, decant_matrix matrix, int boxes, CUtensorMap *map,
                            decant_error *err)
{
    const uint64_t row_bytes = (uint64_t)matrix.columns * 2, box_bytes = BOX * 2;
    const decant_tensor_view view = {
        .data = matrix.data,
        .sizes = {BOX, (uint64_t)matrix.rows, (uint64_t)(matrix.columns / BOX)},
        .strides_bytes = {row_bytes, box_bytes},
        .box = {BOX, BOX, (uint32_t)boxes},
    };
    return decant_cuda_map_tensor(backend, &view, map, err);
}

static decant_status launch(decant_backend *backend, const CUtensorMap &dy, const CUtensorMap &x,
                            const fisher_sizes &sizes, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const int tiles = tile_count(sizes), fit = context->shared.multiprocessors / CLUSTER;
    const int blocks = CLUSTER * (tiles < fit ? tiles : fit);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(fisher_wgmma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
        "shared memory of fisher_wgmma", err));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = CLUSTER;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED_BYTES;
    config.stream = context->shared.stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaLaunchKernelEx(&config, fisher_wgmma_kernel, dy, x, sizes),
                                               "launching fisher_wgmma", err));
    return decant_cuda_launched(backend, "fisher_wgmma", err);
}

bool decant_cuda_fisher_has_wgmma(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                  const float *fisher)
{
    return decant_cuda_context_of(backend)->has_wgmma && x.element == DECANT_BF16 && dy.columns % BOX == 0 &&
           x.columns % BOX == 0 && decant_has_vectors<__nv_bfloat16>(x.columns, dy.data, x.data, fisher);
}

decant_status decant_cuda_fisher_wgmma(decant_backend *backend, decant_matrix dy, decant_matrix x, bool squared,
                                       float *fisher, decant_error *err)
{
    CUtensorMap dy_map, x_map;
    DECANT_RETURN_ON_FAILURE(map_of(backend, dy, DY_BOXES, &dy_map, err));
    DECANT_RETURN_ON_FAILURE(map_of(backend, x, X_BOXES, &x_map, err));
    const fisher_sizes sizes = {fisher, (int)x.rows, (int)dy.columns, (int)x.columns, squared};
    return launch(backend, dy_map, x_map, sizes, err);
}
