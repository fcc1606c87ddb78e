/* What the kernels of attention for Hopper share. A block has three warpgroups: of the last, one thread, the
 * producer, has the tensor memory accelerator bring tiles into a ring of slots in shared memory; the first two,
 * the consumers, own 64 rows of the scores each (queries, or keys for dk and dv) and multiply. The scores of
 * one product become an operand of the next without leaving the registers.
 *
 * A block takes several items of work, one after the other: a tile of rows of one head of one sequence. Items
 * are numbered from the heaviest to the lightest and dealt out forth and back, so that all blocks get about the
 * same; the producer runs ahead over the end of an item. */
#ifndef DECANT_KERNELS_CUDA_ATTENTION_WGMMA_CUH
#define DECANT_KERNELS_CUDA_ATTENTION_WGMMA_CUH

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_map.h"

enum {
    DECANT_CONSUMER_GROUPS = 2,
    DECANT_CONSUMERS = DECANT_CONSUMER_GROUPS * DECANT_WARPGROUP, /* threads */
    DECANT_HOPPER_THREADS = DECANT_CONSUMERS + DECANT_WARPGROUP,
    DECANT_CONSUMER_REGISTERS = 240, /* a thread; 168 at the start for all */
    DECANT_PRODUCER_REGISTERS = 24,
    DECANT_GROUP_ROWS = 64,                   /* of a consuming warpgroup */
    DECANT_TILE_ROWS = 2 * DECANT_GROUP_ROWS, /* of a block */
    DECANT_BOX_COLUMNS = 64,                  /* 128 bytes: what the accelerator swizzles */
    DECANT_TILE_ALIGNMENT = 1024,             /* the swizzle is a function of the address */
};

/* What all of them are told. */
typedef struct decant_attention_sizes {
    int tokens, heads, group;  /* group: query heads that share a key-value head */
    int window;                /* INT_MAX when there is none */
    int items, items_together; /* items_together: of the same tile, one a head and sequence */
    float scale, scale_log2;   /* of the scores; the second for powers of two */
} decant_attention_sizes;

typedef struct decant_attention_place {
    int tile, head, sequence;
} decant_attention_place;

/* The item that a block takes in a round; not below sizes.items: none. Heads are query heads or key-value
 * heads. */
static __device__ __forceinline__ int decant_item_of_round(int round)
{
    const int blocks = (int)gridDim.x, block = (int)blockIdx.x;
    return round * blocks + (round % 2 ? blocks - 1 - block : block);
}

static __device__ __forceinline__ decant_attention_place
decant_place_of_item(const decant_attention_sizes &sizes, int item, int heads)
{
    const int within = item % sizes.items_together;
    return {item / sizes.items_together, within % heads, within / heads};
}

/* A query sees a key that is not after it and less than `window` before it. */
static __device__ __forceinline__ bool decant_query_sees_key(const decant_attention_sizes &sizes, int query,
                                                             int key)
{
    return key <= query && query - key < sizes.window;
}

/* Whether all queries first_query … last_query see all keys first_key … last_key. */
static __device__ __forceinline__ bool decant_all_queries_see(const decant_attention_sizes &sizes,
                                                              int first_query, int last_query, int first_key,
                                                              int last_key)
{
    return last_key <= first_query && last_query - first_key < sizes.window;
}

/* ---- the ring ---- */

/* A slot has two barriers: full, the bytes are there; empty, all consuming warps have read them. */
struct decant_ring_place {
    uint32_t slot, parity;
};

template <int SLOTS> static __device__ __forceinline__ void decant_advance(decant_ring_place &place)
{
    if (++place.slot == SLOTS) {
        place.slot = 0;
        place.parity ^= 1;
    }
}

static __device__ __forceinline__ uint32_t decant_barrier_of(uint32_t barriers, uint32_t slot)
{
    return barriers + slot * (uint32_t)sizeof(uint64_t);
}

/* How many lanes of a warp say that a slot is read: one. racecheck does not see what __syncwarp orders before
 * it (tests/gpu/ring_hazards.cu), so for racecheck alone all may. */
#ifdef DECANT_EVERY_LANE_RELEASES
enum { DECANT_RELEASING_LANES = DECANT_WARP };
#else
enum { DECANT_RELEASING_LANES = 1 };
#endif

static __device__ __forceinline__ void decant_ring_create(uint32_t full, uint32_t empty, uint32_t slots)
{
    for (uint32_t slot = 0; slot < slots; slot++) {
        decant_barrier_create(decant_barrier_of(full, slot), 1);
        decant_barrier_create(decant_barrier_of(empty, slot),
                              DECANT_CONSUMERS / DECANT_WARP * DECANT_RELEASING_LANES);
    }
}

/* Behind what all lanes of the warp have read. */
static __device__ __forceinline__ void decant_release(uint32_t empty, uint32_t slot)
{
    __syncwarp();
    if (threadIdx.x % DECANT_WARP < DECANT_RELEASING_LANES)
        decant_barrier_arrive(decant_barrier_of(empty, slot));
}

/* ---- a block ---- */

/* Addresses in shared memory. */
typedef struct decant_attention_places {
    uint32_t tiles;               /* what an item keeps, the ring, the way out */
    uint32_t full, empty;         /* barriers of the ring */
    uint32_t own_full, own_empty; /* barriers of what an item keeps */
} decant_attention_places;

/* take(item, parity of what an item keeps) for all items of the block. */
template <typename Take>
static __device__ __forceinline__ void decant_take_items(const decant_attention_sizes &sizes, Take take)
{
    for (int round = 0; round * (int)gridDim.x < sizes.items; round++) {
        const int item = decant_item_of_round(round);
        if (item >= sizes.items)
            return;
        take(item, (uint32_t)round % 2);
    }
}

/* produce(places) by one thread, consume(places, memory) by the consumers; memory: the generic address of
 * places.tiles. */
template <int SLOTS, typename Produce, typename Consume>
static __device__ __forceinline__ void decant_run_warpgroups(Produce produce, Consume consume)
{
    extern __shared__ __align__(1024) char shared_memory[];
    __shared__ __align__(8) uint64_t full[SLOTS], empty[SLOTS], own[2];
    const uint32_t shared = decant_shared_address(shared_memory);
    const uint32_t padding = (0u - shared) % DECANT_TILE_ALIGNMENT;
    const decant_attention_places places = {shared + padding, decant_shared_address(full),
                                            decant_shared_address(empty), decant_shared_address(&own[0]),
                                            decant_shared_address(&own[1])};
    if (threadIdx.x == 0) {
        decant_ring_create(places.full, places.empty, SLOTS);
        decant_ring_create(places.own_full, places.own_empty, 1);
        decant_barrier_publish();
    }
    __syncthreads();
    if (threadIdx.x < DECANT_CONSUMERS) {
        decant_registers_raise<DECANT_CONSUMER_REGISTERS>();
        consume(places, shared_memory + padding);
    } else {
        decant_registers_lower<DECANT_PRODUCER_REGISTERS>();
        if (threadIdx.x == DECANT_CONSUMERS)
            produce(places);
    }
}

/* ---- tiles ---- */

/* ROWS tokens of one head: D / 64 boxes side by side, each [ROWS, 64]. */
template <int D, int ROWS> struct decant_tile {
    static constexpr int BOXES = D / DECANT_BOX_COLUMNS;
    static constexpr uint32_t BOX_BYTES = ROWS * DECANT_BOX_COLUMNS * 2, BYTES = BOXES * BOX_BYTES;
};

template <int D, int ROWS>
static __device__ __forceinline__ void decant_fetch_tile(uint32_t tile, const CUtensorMap *map, int head,
                                                         int first_token, int sequence, uint32_t full)
{
    using shape = decant_tile<D, ROWS>;
#pragma unroll
    for (int i = 0; i < shape::BOXES; i++)
        decant_copy_boxes(tile + i * shape::BOX_BYTES, map, head * D + i * DECANT_BOX_COLUMNS, first_token,
                          sequence, full);
}

/* sums (64 × N) = a bᵀ: 64 rows of a tile of A_ROWS rows, from a_row on, by all N rows of tile b; both are D
 * wide. */
template <int D, int A_ROWS, int N>
static __device__ __forceinline__ void decant_score_tiles(float (&sums)[N / 2], uint32_t a, int a_row,
                                                          uint32_t b)
{
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        const uint32_t box = k / 4, within = k % 4 * 32;
        decant_multiply_rows(
            sums, decant_rows_descriptor(a + box * decant_tile<D, A_ROWS>::BOX_BYTES + a_row * 128 + within),
            decant_rows_descriptor(b + box * decant_tile<D, N>::BOX_BYTES + within), k > 0);
    }
}

/* sums (64 × D) += weights b: the weights are in registers as decant_pack_sums left them, b is a tile of K
 * rows. */
template <int D, int K>
static __device__ __forceinline__ void decant_weigh_tile(float (&sums)[D / 2], const uint32_t (&weights)[K / 4],
                                                         uint32_t b)
{
    const uint32_t eight_rows_bytes = 8 * DECANT_BOX_COLUMNS * 2;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
        decant_multiply_registers(sums, weights + 4 * k,
                                  decant_operand_descriptor(b + 2 * k * eight_rows_bytes,
                                                            decant_tile<D, K>::BOX_BYTES, eight_rows_bytes));
}

/* Sums of 64 × 2N over a warpgroup, as the left operand of a product. */
template <int N>
static __device__ __forceinline__ void decant_pack_sums(uint32_t (&weights)[N / 2], const float (&sums)[N])
{
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        weights[i] = decant_pair(sums[2 * i], sums[2 * i + 1]);
}

/* A warp's 16 rows of sums leave through 16 rows of shared memory that only this warp uses, so that the stores
 * to device memory are whole rows. `rows` is their generic address; head points at the head's components of the
 * sequence's token 0. */
template <int D>
static __device__ __forceinline__ void decant_store_rows(char *rows, const float (&sums)[D / 2], float scale,
                                                         __nv_bfloat16 *head, int64_t stride, int first,
                                                         int tokens)
{
    constexpr int CHUNKS = D / 8;
    const int lane = threadIdx.x % DECANT_WARP;
    __syncwarp(); /* all lanes have read what the rows held before */
#pragma unroll
    for (int n = 0; n < CHUNKS; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t *place = (uint32_t *)(rows + decant_tile_offset<D>(lane / 4 + 8 * half, n)) + lane % 4;
            *place = decant_pair(scale * sums[4 * n + 2 * half], scale * sums[4 * n + 2 * half + 1]);
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / DECANT_WARP; i++) {
        int place = i * DECANT_WARP + lane, row = place / CHUNKS, chunk = place % CHUNKS;
        if (first + row < tokens)
            *(uint4 *)(head + (int64_t)(first + row) * stride + 8 * chunk) =
                *(const uint4 *)(rows + decant_tile_offset<D>(row, chunk));
    }
}

/* ---- a tile of queries that passes over the keys it sees ---- */

/* The keys are in `tiles` tiles from `begin` on. */
typedef struct decant_query_item {
    int head, sequence, first_query, begin, tiles;
} decant_query_item;

template <int KEYS>
static __device__ __forceinline__ decant_query_item decant_query_item_at(const decant_attention_sizes &sizes,
                                                                         int item)
{
    const decant_attention_place place = decant_place_of_item(sizes, item, sizes.heads);
    const int tiles = sizes.items / sizes.items_together;
    const int first = (tiles - 1 - place.tile) * DECANT_TILE_ROWS; /* the last have the most keys */
    const int end = min(sizes.tokens, first + DECANT_TILE_ROWS);
    const int begin = max(0, first - sizes.window + 1) / KEYS * KEYS;
    return {place.head, place.sequence, first, begin, (end - begin + KEYS - 1) / KEYS};
}

/* Brings an item's keys and values, in turn, into the ring whose slots begin at `slots`. */
template <int D, int KEYS, int SLOTS>
static __device__ __forceinline__ void
decant_produce_keys(const decant_attention_sizes &sizes, const decant_attention_places &places, uint32_t slots,
                    const decant_query_item &item, const CUtensorMap *k, const CUtensorMap *v,
                    decant_ring_place &at)
{
    constexpr uint32_t TILE = decant_tile<D, KEYS>::BYTES;
    for (int i = 0; i < 2 * item.tiles; i++) {
        const uint32_t full = decant_barrier_of(places.full, at.slot);
        decant_barrier_wait(decant_barrier_of(places.empty, at.slot), at.parity ^ 1);
        decant_barrier_expect(full, TILE);
        decant_fetch_tile<D, KEYS>(slots + at.slot * TILE, i % 2 ? v : k, item.head / sizes.group,
                                   item.begin + i / 2 * KEYS, item.sequence, full);
        decant_advance<SLOTS>(at);
    }
}

/* scores [queries from group_query on, keys from first_key on] = hidden where a query does not see a key. */
template <int KEYS>
static __device__ __forceinline__ void decant_hide_unseen(const decant_attention_sizes &sizes,
                                                          float (&scores)[KEYS / 2], int group_query,
                                                          int first_key, float hidden)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x % DECANT_WARPGROUP / DECANT_WARP;
    if (decant_all_queries_see(sizes, group_query, group_query + DECANT_GROUP_ROWS - 1, first_key,
                               first_key + KEYS - 1))
        return;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        int query = group_query + 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        int key = first_key + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        if (!decant_query_sees_key(sizes, query, key))
            scores[i] = hidden;
    }
}

/* ---- the host's side ---- */

/* A map of a [S · T, heads · D] activation, read in boxes of `rows` tokens of a sequence × 64 columns. */
static inline decant_status decant_attention_map(decant_backend *backend, const decant_attention_shape *shape,
                                                 decant_matrix matrix, int rows, CUtensorMap *map,
                                                 decant_error *err)
{
    const uint64_t row_bytes = (uint64_t)matrix.columns * 2;
    const decant_tensor_view view = {
        .data = matrix.data,
        .sizes = {(uint64_t)matrix.columns, (uint64_t)shape->tokens,
                  (uint64_t)decant_attention_sequences(shape)},
        .strides_bytes = {row_bytes, row_bytes * (uint64_t)shape->tokens},
        .box = {DECANT_BOX_COLUMNS, (uint32_t)rows, 1},
    };
    return decant_cuda_map_tensor(backend, &view, map, err);
}

/* `heads` are those that items are counted by. */
static inline decant_attention_sizes decant_attention_sizes_of(const decant_attention_shape *shape, int heads)
{
    decant_attention_sizes sizes = {};
    sizes.tokens = (int)shape->tokens;
    sizes.heads = shape->heads;
    sizes.group = shape->heads / shape->key_value_heads;
    sizes.window = shape->window > 0 && shape->window < INT_MAX ? (int)shape->window : INT_MAX;
    sizes.items_together = heads * (int)decant_attention_sequences(shape);
    sizes.items = (sizes.tokens + DECANT_TILE_ROWS - 1) / DECANT_TILE_ROWS * sizes.items_together;
    sizes.scale = 1.0f / sqrtf((float)shape->head_dimension);
    sizes.scale_log2 = sizes.scale * 1.44269504f;
    return sizes;
}

/* Launches a kernel of DECANT_HOPPER_THREADS, one block a multiprocessor. */
template <typename... Arguments, typename... Values>
static decant_status decant_launch_items(decant_backend *backend, const char *what,
                                         void (*kernel)(Arguments...), const decant_attention_sizes &sizes,
                                         size_t shared_bytes, decant_error *err, const Values &...values)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    const int blocks = sizes.items < cuda->multiprocessors ? sizes.items : cuda->multiprocessors;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), what,
        err));
    kernel<<<blocks, DECANT_HOPPER_THREADS, shared_bytes, cuda->stream>>>(values...);
    return decant_cuda_launched(backend, what, err);
}

#endif
