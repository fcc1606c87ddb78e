/* fisher += (dYᵀ X)∘(dYᵀ X) in one kernel on Hopper's wgmma. One block a multiprocessor passes over tiles of
 * 128 × 256 of G. A warp of its last warpgroup, the producer, has the tensor memory accelerator bring tokens of
 * dY and X, 64 at a time, into a ring of stages, and calls the tile of F into the L2 cache; two warpgroups, the
 * consumers, multiply 64 rows each and add the squares. The producer runs ahead over the ring, so the next
 * tile's first stages arrive during the consumers' epilogue.
 *
 * Both operands lie in memory with the tokens, the terms of the sum, as the slow dimension: the layout that the
 * instruction set calls M-major and N-major. A stage holds them as boxes of 64 tokens × 64 columns, 128 bytes a
 * row, swizzled by the accelerator as wgmma expects it.
 *
 * An operand byte that enters shared memory serves 85 operations: at 790 TFLOP/s the L2 cache must deliver 9
 * TB/s. If measurements show that as the limit, blocks in clusters of two that share the X boxes halve most of
 * it. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_core.cuh"

enum {
    BOX = 64, /* columns of a box, and tokens of a stage */
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
    DY_BYTES = TILE_ROWS / BOX * BOX_BYTES,
    STAGE_BYTES = DY_BYTES + TILE_COLUMNS / BOX * BOX_BYTES,
    ALIGNMENT = 1024, /* the swizzle is a function of the address */
    SHARED_BYTES = STAGES * STAGE_BYTES + ALIGNMENT,
    ROW_TILES_TOGETHER =
        12,             /* tiles that run at the same time form a near-square, so that they share operands */
    PAIRS_AT_ONCE = 16, /* of F's elements under way in a thread */
};

/* Other devices get an empty kernel, which is never launched: backend_cuda.cu refuses the choice. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool HAS_WGMMA = true;
#else
constexpr bool HAS_WGMMA = false;
#endif

typedef struct fisher_sizes {
    float *fisher; /* [rows, columns] */
    int tokens, rows, columns;
} fisher_sizes;

typedef struct tile_place {
    int row, column; /* of the tile's first element */
} tile_place;

/* The order of tiles: bands of twelve rows of tiles, column after column. */
static __device__ __forceinline__ tile_place place_of(const fisher_sizes &sizes, int tile)
{
    const int row_tiles = (sizes.rows + TILE_ROWS - 1) / TILE_ROWS;
    const int column_tiles = (sizes.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int band = tile / (ROW_TILES_TOGETHER * column_tiles), first = band * ROW_TILES_TOGETHER;
    const int height = min((int)ROW_TILES_TOGETHER, row_tiles - first);
    const int place = tile - first * column_tiles;
    return {(first + place % height) * TILE_ROWS, place / height * TILE_COLUMNS};
}

static __host__ __device__ __forceinline__ int tile_count(const fisher_sizes &sizes)
{
    return (sizes.rows + TILE_ROWS - 1) / TILE_ROWS * ((sizes.columns + TILE_COLUMNS - 1) / TILE_COLUMNS);
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

/* Addresses in shared memory. */
typedef struct fisher_ring {
    uint32_t stages, full,
        empty; /* full[STAGES]: the bytes are there; empty[STAGES]: all consumers have read them */
} fisher_ring;

static __device__ __forceinline__ uint32_t stage_at(const fisher_ring &ring, uint32_t stage)
{
    return ring.stages + stage * STAGE_BYTES;
}

static __device__ __forceinline__ uint32_t barrier_at(uint32_t barriers, uint32_t stage)
{
    return barriers + stage * (uint32_t)sizeof(uint64_t);
}

/* ---- the producer: the first warp of its group ---- */

static __device__ __forceinline__ void prefetch_fisher(const fisher_sizes &sizes, tile_place place)
{
    const int width = min((int)TILE_COLUMNS, sizes.columns - place.column);
    for (int i = threadIdx.x % DECANT_WARP; i < TILE_ROWS; i += DECANT_WARP)
        if (place.row + i < sizes.rows)
            decant_prefetch_bytes(sizes.fisher + (int64_t)(place.row + i) * sizes.columns + place.column,
                                  (uint32_t)width * (uint32_t)sizeof(float));
}

static __device__ __forceinline__ void fetch_stage(const fisher_ring &ring, uint32_t stage,
                                                   const CUtensorMap *dy, const CUtensorMap *x,
                                                   tile_place place, int token)
{
    const uint32_t at = stage_at(ring, stage), full = barrier_at(ring.full, stage);
    decant_barrier_expect(full, STAGE_BYTES);
#pragma unroll
    for (int i = 0; i < TILE_ROWS / BOX; i++)
        decant_copy_box(at + i * BOX_BYTES, dy, token, place.row + i * BOX, full);
#pragma unroll
    for (int i = 0; i < TILE_COLUMNS / BOX; i++)
        decant_copy_box(at + DY_BYTES + i * BOX_BYTES, x, token, place.column + i * BOX, full);
}

static __device__ __forceinline__ void produce(const fisher_ring &ring, const fisher_sizes &sizes,
                                               const CUtensorMap *dy, const CUtensorMap *x)
{
    ring_place at = {0, 0};
    for (int tile = blockIdx.x; tile < tile_count(sizes); tile += gridDim.x) {
        const tile_place place = place_of(sizes, tile);
        prefetch_fisher(sizes, place);
        if (threadIdx.x % DECANT_WARP == 0)
            for (int token = 0; token < sizes.tokens; token += BOX) {
                decant_barrier_wait(barrier_at(ring.empty, at.stage), at.parity ^ 1);
                fetch_stage(ring, at.stage, dy, x, place, token);
                advance(at);
            }
        __syncwarp();
    }
}

/* ---- the consumers: two warpgroups ---- */

static __device__ __forceinline__ void multiply_stage(float (&sums)[DECANT_PRODUCT_SUMS], uint32_t stage,
                                                      int group)
{
    decant_products_begin();
#pragma unroll
    for (int k = 0; k < BOX / TERMS; k++) {
        const uint32_t terms = k * (TERMS / 8) * EIGHT_TOKENS_BYTES;
        decant_multiply_64_256(
            sums, decant_operand_descriptor(stage + group * BOX_BYTES + terms, BOX_BYTES, EIGHT_TOKENS_BYTES),
            decant_operand_descriptor(stage + DY_BYTES + terms, BOX_BYTES, EIGHT_TOKENS_BYTES));
    }
    decant_products_commit();
}

/* One arrival a warp: it has read the stage. */
static __device__ __forceinline__ void release_stage(const fisher_ring &ring, uint32_t stage)
{
    if (threadIdx.x % DECANT_WARP == 0)
        decant_barrier_arrive(barrier_at(ring.empty, stage));
}

/* Row `row` of F gains the squares of half the lane's sums; reads go out in bunches before their writes. */
static __device__ __forceinline__ void
add_squares(const fisher_sizes &sizes, const float (&sums)[DECANT_PRODUCT_SUMS], int half, int row, int column)
{
    if (row >= sizes.rows)
        return;
    float2 *target = (float2 *)(sizes.fisher + (int64_t)row * sizes.columns + column);
#pragma unroll
    for (int first = 0; first < TILE_COLUMNS / 8; first += PAIRS_AT_ONCE) {
        float2 values[PAIRS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < PAIRS_AT_ONCE; i++)
            if (column + 8 * (first + i) < sizes.columns)
                values[i] = __ldcs(target + 4 * (first + i));
#pragma unroll
        for (int i = 0; i < PAIRS_AT_ONCE; i++)
            if (column + 8 * (first + i) < sizes.columns) {
                float low = sums[4 * (first + i) + 2 * half], high = sums[4 * (first + i) + 2 * half + 1];
                __stcs(target + 4 * (first + i),
                       make_float2(values[i].x + low * low, values[i].y + high * high));
            }
    }
}

static __device__ __forceinline__ void consume(const fisher_ring &ring, const fisher_sizes &sizes)
{
    const int group = threadIdx.x / GROUP, warp = threadIdx.x % GROUP / DECANT_WARP,
              lane = threadIdx.x % DECANT_WARP;
    ring_place at = {0, 0};
    for (int tile = blockIdx.x; tile < tile_count(sizes); tile += gridDim.x) {
        const tile_place place = place_of(sizes, tile);
        float sums[DECANT_PRODUCT_SUMS];
#pragma unroll
        for (int i = 0; i < DECANT_PRODUCT_SUMS; i++)
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
        decant_products_settle(sums);
        release_stage(ring, before);
        const int row = place.row + group * BOX + warp * 16 + lane / 4, column = place.column + 2 * (lane % 4);
        add_squares(sizes, sums, 0, row, column);
        add_squares(sizes, sums, 1, row + 8, column);
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    fisher_wgmma_kernel(const __grid_constant__ CUtensorMap dy, const __grid_constant__ CUtensorMap x,
                        const fisher_sizes sizes)
{
    if constexpr (HAS_WGMMA) {
        extern __shared__ __align__(1024) char shared_memory[];
        __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES];
        const uint32_t shared = decant_shared_address(shared_memory);
        const fisher_ring ring = {(shared + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, decant_shared_address(full),
                                  decant_shared_address(empty)};
        if (threadIdx.x == 0) {
            for (uint32_t stage = 0; stage < STAGES; stage++) {
                decant_barrier_create(barrier_at(ring.full, stage), 1);
                decant_barrier_create(barrier_at(ring.empty, stage), CONSUMERS / DECANT_WARP);
            }
            decant_barrier_publish();
        }
        __syncthreads();
        if (threadIdx.x < CONSUMERS) {
            decant_registers_raise<CONSUMER_REGISTERS>();
            consume(ring, sizes);
        } else {
            decant_registers_lower<PRODUCER_REGISTERS>();
            if (threadIdx.x < CONSUMERS + DECANT_WARP)
                produce(ring, sizes, &dy, &x);
        }
    }
}

/* ---- the host's side ---- */

typedef CUresult (*map_encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill);

/* The driver's function, found through the runtime: decant links no driver library. */
static decant_status find_encoder(decant_cuda_context *context, map_encoder *encode, decant_error *err)
{
    const unsigned since = 12000;
    if (!context->encode_map) {
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &context->encode_map,
                                                               since, cudaEnableDefault, &result),
                              "finding cuTensorMapEncodeTiled", err));
        if (result != cudaDriverEntryPointSuccess || !context->encode_map)
            return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                                "the driver has no cuTensorMapEncodeTiled; use DECANT_CUDA_FISHER=tiles");
    }
    *encode = (map_encoder)context->encode_map;
    return DECANT_OK;
}

/* A map of a [tokens, width] BF16 activation, read in boxes of 64 × 64. */
static decant_status map_of(map_encoder encode, decant_matrix matrix, CUtensorMap *map, decant_error *err)
{
    const cuuint64_t sizes[2] = {(cuuint64_t)matrix.columns, (cuuint64_t)matrix.rows};
    const cuuint64_t row_bytes[1] = {(cuuint64_t)matrix.columns * 2};
    const cuuint32_t box[2] = {BOX, BOX}, steps[2] = {1, 1};
    CUresult code = encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, matrix.data, sizes, row_bytes, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (code != CUDA_SUCCESS)
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                            "CUDA: describing an activation of %lld by %lld: error %d", (long long)matrix.rows,
                            (long long)matrix.columns, (int)code);
    return DECANT_OK;
}

decant_status decant_cuda_fisher_wgmma(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                       float *fisher, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    map_encoder encode;
    CUtensorMap dy_map, x_map;
    DECANT_RETURN_ON_FAILURE(find_encoder(context, &encode, err));
    DECANT_RETURN_ON_FAILURE(map_of(encode, dy, &dy_map, err));
    DECANT_RETURN_ON_FAILURE(map_of(encode, x, &x_map, err));
    const fisher_sizes sizes = {fisher, (int)x.rows, (int)dy.columns, (int)x.columns};
    const int tiles = tile_count(sizes), multiprocessors = context->shared.multiprocessors;
    const int blocks = tiles < multiprocessors ? tiles : multiprocessors;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(fisher_wgmma_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES),
        "shared memory of fisher_wgmma", err));
    fisher_wgmma_kernel<<<blocks, THREADS, SHARED_BYTES, context->shared.stream>>>(dy_map, x_map, sizes);
    return decant_cuda_launched(backend, "fisher_wgmma", err);
}
