/* The gradients of causal attention on Hopper, from the log-sum-exp that the forward pass kept. With the scores
 * S = q kᵀ / sqrt(d), the weights P = exp(S − log_sum_exp) and D = Σ y ∘ dy of each query:
 *
 *     dv = Pᵀ dy    dP = dy vᵀ    dS = P ∘ (dP − D)    dq = dS k / sqrt(d)    dk = dSᵀ q / sqrt(d)
 *
 * Two kernels, so that every sum has one owner and one order: a block of the first holds a tile of keys and
 * passes over the queries that see them, head after head of its group; a block of the second holds a tile of
 * queries and passes over the keys they see. The scores are computed in both: seven products where a version
 * that adds dq with atomics has five.
 *
 * The rows of the first kernel's scores are keys, so that Pᵀ and dSᵀ come out of the registers as left
 * operands.
 *
 * Sources: Dao et al., "FlashAttention" (2022), appendix B; Shah et al., "FlashAttention-3" (2024). */
#include <climits>
#include <cmath>

#include "kernels/cuda/attention_wgmma.cuh"

/* ---- two figures of each query ---- */

/* Of a head's queries, padded to whole tiles of both kernels: log2(e) · log_sum_exp and D. What is beyond the
 * last query has weight 2^−∞. */
typedef struct query_figures {
    float *log_sum_exp_log2, *delta; /* [S, heads, padded] */
    int padded;
} query_figures;

static __host__ __device__ __forceinline__ int padded_tokens(int tokens)
{
    return (tokens + DECANT_TILE_ROWS - 1) / DECANT_TILE_ROWS * DECANT_TILE_ROWS;
}

enum { FIGURES_THREADS = 256 };

/* D / 8 lanes a query of a head: lanes of sixteen bytes. Grid: queries, and heads of sequences. */
template <int D>
__global__ void __launch_bounds__(FIGURES_THREADS)
    attention_figures_kernel(const __nv_bfloat16 *y, const __nv_bfloat16 *dy, const float *log_sum_exp,
                             int tokens, int heads, const query_figures figures)
{
    constexpr int LANES = D / 8, QUERIES = FIGURES_THREADS / LANES;
    const int query = blockIdx.x * QUERIES + threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int64_t head = blockIdx.y % heads, sequence = blockIdx.y / heads;
    float sum = 0;
    if (query < tokens) {
        const int64_t at = ((sequence * tokens + query) * heads + head) * D + 8 * lane;
        float a[8], b[8];
        decant_load(y + at, a);
        decant_load(dy + at, b);
#pragma unroll
        for (int i = 0; i < 8; i++)
            sum += a[i] * b[i];
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
    if (lane > 0 || query >= figures.padded)
        return;
    const int64_t row = (int64_t)blockIdx.y;
    figures.log_sum_exp_log2[row * figures.padded + query] =
        query < tokens ? log_sum_exp[row * tokens + query] * 1.44269504f : INFINITY;
    figures.delta[row * figures.padded + query] = sum;
}

/* Places where an item's tiles lie in shared memory, and barriers. */
typedef struct backward_places {
    uint32_t tiles;
    uint32_t full, empty;         /* of the ring */
    uint32_t own_full, own_empty; /* of the tiles that an item keeps */
} backward_places;

/* ---- dk and dv ---- */

enum { QUERIES = 64 /* of a stage */, STAGES = 3, PAIR_SCORES = QUERIES / 2 /* of a thread */ };

typedef struct keys_task {
    decant_attention_sizes sizes;
    query_figures figures;
    __nv_bfloat16 *dk, *dv; /* [S · T, stride] */
    int64_t stride;
} keys_task;

/* Shared memory: the keys and values of an item, the stages (queries and their gradients), the figures of the
 * stages' queries, and the way out. */
template <int D> struct keys_memory {
    static constexpr uint32_t OWN = decant_tile<D, DECANT_TILE_ROWS>::BYTES,
                              PART = decant_tile<D, QUERIES>::BYTES;
    static constexpr uint32_t STAGE = 2 * PART, STAGES_AT = 2 * OWN, FIGURE = QUERIES * sizeof(float);
    static constexpr uint32_t FIGURES_AT = STAGES_AT + STAGES * STAGE, OUT = FIGURES_AT + STAGES * 2 * FIGURE;
    static constexpr uint32_t BYTES = OUT + OWN + DECANT_TILE_ALIGNMENT;
};

/* The queries that see an item's keys: `tiles` tiles of each head of the group, from first_key on. */
typedef struct keys_item {
    int head, sequence, first_key, tiles;
} keys_item;

[[maybe_unused]] static __device__ __forceinline__ keys_item keys_item_at(const decant_attention_sizes &sizes,
                                                                          int item)
{
    const decant_attention_place place = decant_place_of_item(sizes, item, sizes.heads / sizes.group);
    const int first = place.tile * DECANT_TILE_ROWS; /* the first are seen by the most queries */
    const int last = (int)min((int64_t)sizes.tokens - 1, (int64_t)first + DECANT_TILE_ROWS - 2 + sizes.window);
    return {place.head, place.sequence, first, (last - first) / QUERIES + 1};
}

template <int D>
static __device__ __forceinline__ void produce_queries(const keys_task &task, const backward_places &places,
                                                       const CUtensorMap *k, const CUtensorMap *v,
                                                       const CUtensorMap *q, const CUtensorMap *dy)
{
    using memory = keys_memory<D>;
    const decant_attention_sizes &sizes = task.sizes;
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= sizes.items)
            return;
        const keys_item item = keys_item_at(sizes, number);
        decant_barrier_wait(places.own_empty, (uint32_t)(round + 1) % 2);
        decant_barrier_expect(places.own_full, 2 * memory::OWN);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles, k, item.head, item.first_key, item.sequence,
                                               places.own_full);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles + memory::OWN, v, item.head, item.first_key,
                                               item.sequence, places.own_full);
        for (int i = 0; i < item.tiles * sizes.group; i++) {
            const int head = item.head * sizes.group + i / item.tiles;
            const int query = item.first_key + i % item.tiles * QUERIES;
            const int64_t figures = ((int64_t)item.sequence * sizes.heads + head) * task.figures.padded + query;
            const uint32_t stage = places.tiles + memory::STAGES_AT + at.slot * memory::STAGE;
            const uint32_t figures_at = places.tiles + memory::FIGURES_AT + at.slot * 2 * memory::FIGURE;
            const uint32_t full = decant_barrier_of(places.full, at.slot);
            decant_barrier_wait(decant_barrier_of(places.empty, at.slot), at.parity ^ 1);
            decant_barrier_expect(full, memory::STAGE + 2 * memory::FIGURE);
            decant_fetch_tile<D, QUERIES>(stage, q, head, query, item.sequence, full);
            decant_fetch_tile<D, QUERIES>(stage + memory::PART, dy, head, query, item.sequence, full);
            decant_copy_bytes(figures_at, task.figures.log_sum_exp_log2 + figures, memory::FIGURE, full);
            decant_copy_bytes(figures_at + memory::FIGURE, task.figures.delta + figures, memory::FIGURE, full);
            decant_advance<STAGES>(at);
        }
    }
}

/* scores → weights; rows are keys from group_key on, columns queries. */
template <int D>
static __device__ __forceinline__ void
weigh_queries(const decant_attention_sizes &sizes, float (&scores)[PAIR_SCORES], const float *log_sum_exp_log2,
              int group_key, int first_query)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x % DECANT_WARPGROUP / DECANT_WARP;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
        const float2 lse = *(const float2 *)(log_sum_exp_log2 + 8 * n + 2 * (lane % 4));
#pragma unroll
        for (int c = 0; c < 4; c++)
            scores[4 * n + c] = decant_exp2(scores[4 * n + c] * sizes.scale_log2 - (c % 2 ? lse.y : lse.x));
    }
    if (decant_all_queries_see(sizes, first_query, first_query + QUERIES - 1, group_key,
                               group_key + DECANT_GROUP_ROWS - 1))
        return;
#pragma unroll
    for (int i = 0; i < PAIR_SCORES; i++) {
        int query = first_query + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        int key = group_key + 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        if (!decant_query_sees_key(sizes, query, key))
            scores[i] = 0;
    }
}

/* products dP → dS = P ∘ (dP − D). */
template <int D>
static __device__ __forceinline__ void
differentiate_queries(float (&products)[PAIR_SCORES], const float (&weights)[PAIR_SCORES], const float *delta)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int n = 0; n < QUERIES / 8; n++) {
        const float2 d = *(const float2 *)(delta + 8 * n + 2 * (lane % 4));
#pragma unroll
        for (int c = 0; c < 4; c++)
            products[4 * n + c] = weights[4 * n + c] * (products[4 * n + c] - (c % 2 ? d.y : d.x));
    }
}

/* One item. memory_at is the generic address of places.tiles. */
template <int D>
static __device__ __forceinline__ void differentiate_keys(const keys_task &task, const backward_places &places,
                                                          const keys_item &item, decant_ring_place &at,
                                                          char *memory_at)
{
    using memory = keys_memory<D>;
    const decant_attention_sizes &sizes = task.sizes;
    const int group = threadIdx.x / DECANT_WARPGROUP, warp = threadIdx.x / DECANT_WARP;
    const int row = group * DECANT_GROUP_ROWS, group_key = item.first_key + row;
    float dk[D / 2], dv[D / 2];
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        dk[i] = dv[i] = 0;
    for (int i = 0; i < item.tiles * sizes.group; i++) {
        const int query = item.first_key + i % item.tiles * QUERIES;
        const uint32_t q = places.tiles + memory::STAGES_AT + at.slot * memory::STAGE, dy = q + memory::PART;
        const float *figures = (const float *)(memory_at + memory::FIGURES_AT + at.slot * 2 * memory::FIGURE);
        decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
        float scores[PAIR_SCORES], products[PAIR_SCORES];
        uint32_t weights[QUERIES / 4], slopes[QUERIES / 4];
        decant_products_begin();
        decant_score_tiles<D, DECANT_TILE_ROWS, QUERIES>(scores, places.tiles, row, q);
        decant_products_commit();
        decant_score_tiles<D, DECANT_TILE_ROWS, QUERIES>(products, places.tiles + memory::OWN, row, dy);
        decant_products_commit();
        decant_products_wait<1>();
        decant_settle(scores);
        weigh_queries<D>(sizes, scores, figures, group_key, query);
        decant_pack_sums(weights, scores);
        decant_products_begin();
        decant_weigh_tile<D, QUERIES>(dv, weights, dy);
        decant_products_commit();
        decant_products_wait<1>();
        decant_settle(products);
        differentiate_queries<D>(products, scores, figures + QUERIES);
        decant_pack_sums(slopes, products);
        decant_products_begin();
        decant_weigh_tile<D, QUERIES>(dk, slopes, q);
        decant_products_commit();
        decant_products_wait<0>(); /* registers do not suffice for products that outlast the round */
        decant_settle(dk);
        decant_settle(dv);
        decant_release(places.empty, at.slot);
        decant_advance<STAGES>(at);
    }
    decant_release(places.own_empty, 0);
    const int64_t head = (int64_t)item.sequence * sizes.tokens * task.stride + item.head * D;
    char *out = memory_at + memory::OUT + warp * 16 * D * 2;
    const int warp_key = item.first_key + warp * 16;
    decant_store_rows<D>(out, dk, sizes.scale, task.dk + head, task.stride, warp_key, sizes.tokens);
    decant_store_rows<D>(out, dv, 1.0f, task.dv + head, task.stride, warp_key, sizes.tokens);
}

template <int D>
static __device__ __forceinline__ void consume_queries(const keys_task &task, const backward_places &places,
                                                       char *memory_at)
{
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < task.sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= task.sizes.items)
            return;
        decant_barrier_wait(places.own_full, (uint32_t)round % 2);
        differentiate_keys<D>(task, places, keys_item_at(task.sizes, number), at, memory_at);
    }
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_keys_wgmma_kernel(const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                                const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap dy,
                                const keys_task task)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) char shared_memory[];
        __shared__ __align__(8) uint64_t full[STAGES], empty[STAGES], own[2];
        const uint32_t shared = decant_shared_address(shared_memory);
        const uint32_t padding = (0u - shared) % DECANT_TILE_ALIGNMENT;
        const backward_places places = {shared + padding, decant_shared_address(full),
                                        decant_shared_address(empty), decant_shared_address(&own[0]),
                                        decant_shared_address(&own[1])};
        if (threadIdx.x == 0) {
            decant_ring_create(places.full, places.empty, STAGES);
            decant_ring_create(places.own_full, places.own_empty, 1);
            decant_barrier_publish();
        }
        __syncthreads();
        if (threadIdx.x < DECANT_CONSUMERS) {
            decant_registers_raise<DECANT_CONSUMER_REGISTERS>();
            consume_queries<D>(task, places, shared_memory + padding);
        } else {
            decant_registers_lower<DECANT_PRODUCER_REGISTERS>();
            if (threadIdx.x == DECANT_CONSUMERS)
                produce_queries<D>(task, places, &k, &v, &q, &dy);
        }
    }
}

/* ---- dq ---- */

enum { KEYS = 64 /* of a slot */, SLOTS = 8, SCORES = KEYS / 2 /* of a thread */ };

typedef struct queries_task {
    decant_attention_sizes sizes;
    query_figures figures;
    __nv_bfloat16 *dq; /* [S · T, stride] */
    int64_t stride;
} queries_task;

/* Shared memory: the queries and their gradients, the slots of the ring (keys and values in turn), the way out.
 */
template <int D> struct queries_memory {
    static constexpr uint32_t TILE = decant_tile<D, KEYS>::BYTES, SLOTS_AT = 2 * TILE, OUT = (2 + SLOTS) * TILE;
    static constexpr uint32_t BYTES = OUT + TILE + DECANT_TILE_ALIGNMENT;
};

typedef struct queries_item {
    int head, sequence, first_query, begin, tiles;
} queries_item;

[[maybe_unused]] static __device__ __forceinline__ queries_item
queries_item_at(const decant_attention_sizes &sizes, int item)
{
    const decant_attention_place place = decant_place_of_item(sizes, item, sizes.heads);
    const int tiles = sizes.items / sizes.items_together;
    const int first = (tiles - 1 - place.tile) * DECANT_TILE_ROWS; /* the last have the most keys */
    const int end = min(sizes.tokens, first + DECANT_TILE_ROWS);
    const int begin = max(0, first - sizes.window + 1) / KEYS * KEYS;
    return {place.head, place.sequence, first, begin, (end - begin + KEYS - 1) / KEYS};
}

template <int D>
static __device__ __forceinline__ void produce_keys(const queries_task &task, const backward_places &places,
                                                    const CUtensorMap *q, const CUtensorMap *dy,
                                                    const CUtensorMap *k, const CUtensorMap *v)
{
    using memory = queries_memory<D>;
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < task.sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= task.sizes.items)
            return;
        const queries_item item = queries_item_at(task.sizes, number);
        decant_barrier_wait(places.own_empty, (uint32_t)(round + 1) % 2);
        decant_barrier_expect(places.own_full, 2 * memory::TILE);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles, q, item.head, item.first_query, item.sequence,
                                               places.own_full);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles + memory::TILE, dy, item.head, item.first_query,
                                               item.sequence, places.own_full);
        for (int i = 0; i < 2 * item.tiles; i++) {
            const uint32_t full = decant_barrier_of(places.full, at.slot);
            decant_barrier_wait(decant_barrier_of(places.empty, at.slot), at.parity ^ 1);
            decant_barrier_expect(full, memory::TILE);
            decant_fetch_tile<D, KEYS>(places.tiles + memory::SLOTS_AT + at.slot * memory::TILE, i % 2 ? v : k,
                                       item.head / task.sizes.group, item.begin + i / 2 * KEYS, item.sequence,
                                       full);
            decant_advance<SLOTS>(at);
        }
    }
}

/* scores → weights; rows are queries from group_query on, columns keys. */
template <int D>
static __device__ __forceinline__ void weigh_keys(const decant_attention_sizes &sizes, float (&scores)[SCORES],
                                                  const float (&log_sum_exp_log2)[2], int group_query,
                                                  int first_key)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x % DECANT_WARPGROUP / DECANT_WARP;
#pragma unroll
    for (int i = 0; i < SCORES; i++)
        scores[i] = decant_exp2(scores[i] * sizes.scale_log2 - log_sum_exp_log2[i / 2 % 2]);
    if (decant_all_queries_see(sizes, group_query, group_query + DECANT_GROUP_ROWS - 1, first_key,
                               first_key + KEYS - 1))
        return;
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        int query = group_query + 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        int key = first_key + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        if (!decant_query_sees_key(sizes, query, key))
            scores[i] = 0;
    }
}

template <int D>
static __device__ __forceinline__ void
differentiate_item(const queries_task &task, const backward_places &places, const queries_item &item,
                   decant_ring_place &at, char *memory_at)
{
    using memory = queries_memory<D>;
    const decant_attention_sizes &sizes = task.sizes;
    const int group = threadIdx.x / DECANT_WARPGROUP, warp = threadIdx.x / DECANT_WARP,
              lane = threadIdx.x % DECANT_WARP;
    const int row = group * DECANT_GROUP_ROWS, group_query = item.first_query + row;
    const int warp_query = item.first_query + warp * 16;
    float dq[D / 2], lse[2], delta[2];
    uint32_t pending = SLOTS; /* the slot of the keys that the last product may be reading; SLOTS: none */
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        dq[i] = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int64_t figures = ((int64_t)item.sequence * sizes.heads + item.head) * task.figures.padded +
                                warp_query + lane / 4 + 8 * half;
        lse[half] = task.figures.log_sum_exp_log2[figures];
        delta[half] = task.figures.delta[figures];
    }
    for (int tile = 0; tile < item.tiles; tile++) {
        const int key = item.begin + tile * KEYS;
        const uint32_t key_slot = at.slot, k = places.tiles + memory::SLOTS_AT + key_slot * memory::TILE;
        float scores[SCORES], products[SCORES];
        uint32_t slopes[KEYS / 4];
        decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
        decant_products_begin();
        decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(scores, places.tiles, row, k);
        decant_products_commit();
        decant_advance<SLOTS>(at);
        decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
        decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(products, places.tiles + memory::TILE, row,
                                                      places.tiles + memory::SLOTS_AT + at.slot * memory::TILE);
        decant_products_commit();
        decant_products_wait<1>(); /* the scores, and all of the tile before */
        decant_settle(scores);
        if (pending < SLOTS)
            decant_release(places.empty, pending);
        weigh_keys<D>(sizes, scores, lse, group_query, key);
        decant_settle(scores); /* all this beside the second product */
        decant_products_wait<0>();
        decant_settle(products);
        decant_release(places.empty, at.slot);
        decant_advance<SLOTS>(at);
#pragma unroll
        for (int i = 0; i < SCORES; i++)
            products[i] = scores[i] * (products[i] - delta[i / 2 % 2]);
        decant_pack_sums(slopes, products);
        decant_products_begin();
        decant_weigh_tile<D, KEYS>(dq, slopes, k);
        decant_products_commit();
        pending = key_slot;
    }
    decant_release(places.own_empty, 0);
    decant_products_wait<0>();
    decant_settle(dq);
    decant_release(places.empty, pending);
    decant_store_rows<D>(memory_at + memory::OUT + warp * 16 * D * 2, dq, sizes.scale,
                         task.dq + (int64_t)item.sequence * sizes.tokens * task.stride + item.head * D,
                         task.stride, warp_query, sizes.tokens);
}

template <int D>
static __device__ __forceinline__ void consume_keys(const queries_task &task, const backward_places &places,
                                                    char *memory_at)
{
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < task.sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= task.sizes.items)
            return;
        decant_barrier_wait(places.own_full, (uint32_t)round % 2);
        differentiate_item<D>(task, places, queries_item_at(task.sizes, number), at, memory_at);
    }
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_queries_wgmma_kernel(const __grid_constant__ CUtensorMap q,
                                   const __grid_constant__ CUtensorMap dy,
                                   const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                                   const queries_task task)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) char shared_memory[];
        __shared__ __align__(8) uint64_t full[SLOTS], empty[SLOTS], own[2];
        const uint32_t shared = decant_shared_address(shared_memory);
        const uint32_t padding = (0u - shared) % DECANT_TILE_ALIGNMENT;
        const backward_places places = {shared + padding, decant_shared_address(full),
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
            consume_keys<D>(task, places, shared_memory + padding);
        } else {
            decant_registers_lower<DECANT_PRODUCER_REGISTERS>();
            if (threadIdx.x == DECANT_CONSUMERS)
                produce_keys<D>(task, places, &q, &dy, &k, &v);
        }
    }
}

/* ---- the host's side ---- */

/* The arrays of a call. */
typedef struct backward_arrays {
    decant_matrix q, k, v, y, dy, dq, dk, dv;
    const float *log_sum_exp;
} backward_arrays;

template <int D>
static decant_status launch_figures(decant_backend *backend, const decant_attention_shape *shape,
                                    const backward_arrays &arrays, const query_figures &figures,
                                    decant_error *err)
{
    const int queries = FIGURES_THREADS / (D / 8);
    const dim3 blocks((unsigned)((figures.padded + queries - 1) / queries),
                      (unsigned)(shape->heads * decant_attention_sequences(shape)));
    attention_figures_kernel<D><<<blocks, FIGURES_THREADS, 0, decant_cuda_of(backend)->stream>>>(
        (const __nv_bfloat16 *)arrays.y.data, (const __nv_bfloat16 *)arrays.dy.data, arrays.log_sum_exp,
        (int)shape->tokens, shape->heads, figures);
    return decant_cuda_launched(backend, "attention_figures", err);
}

template <int D>
static decant_status launch_keys(decant_backend *backend, const decant_attention_shape *shape,
                                 const backward_arrays &arrays, const query_figures &figures, decant_error *err)
{
    CUtensorMap k, v, q, dy;
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.k, DECANT_TILE_ROWS, &k, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.v, DECANT_TILE_ROWS, &v, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.q, QUERIES, &q, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.dy, QUERIES, &dy, err));
    const keys_task task = {decant_attention_sizes_of(shape, shape->key_value_heads), figures,
                            (__nv_bfloat16 *)arrays.dk.data, (__nv_bfloat16 *)arrays.dv.data,
                            arrays.dk.columns};
    return decant_launch_items(backend, "attention_keys", attention_keys_wgmma_kernel<D>, task.sizes,
                               keys_memory<D>::BYTES, err, k, v, q, dy, task);
}

template <int D>
static decant_status launch_queries(decant_backend *backend, const decant_attention_shape *shape,
                                    const backward_arrays &arrays, const query_figures &figures,
                                    decant_error *err)
{
    CUtensorMap q, dy, k, v;
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.q, DECANT_TILE_ROWS, &q, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.dy, DECANT_TILE_ROWS, &dy, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.k, KEYS, &k, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, arrays.v, KEYS, &v, err));
    const queries_task task = {decant_attention_sizes_of(shape, shape->heads), figures,
                               (__nv_bfloat16 *)arrays.dq.data, arrays.dq.columns};
    return decant_launch_items(backend, "attention_queries", attention_queries_wgmma_kernel<D>, task.sizes,
                               queries_memory<D>::BYTES, err, q, dy, k, v, task);
}

template <int D>
static decant_status launch_all(decant_backend *backend, const decant_attention_shape *shape,
                                const backward_arrays &arrays, decant_error *err)
{
    query_figures figures = {NULL, NULL, padded_tokens((int)shape->tokens)};
    const size_t figure_bytes =
        (size_t)(decant_attention_sequences(shape) * shape->heads) * (size_t)figures.padded * sizeof(float);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, 2 * figure_bytes, &scratch, err));
    figures.log_sum_exp_log2 = (float *)scratch;
    figures.delta = (float *)((char *)scratch + figure_bytes);
    DECANT_RETURN_ON_FAILURE(launch_figures<D>(backend, shape, arrays, figures, err));
    DECANT_RETURN_ON_FAILURE(launch_keys<D>(backend, shape, arrays, figures, err));
    return launch_queries<D>(backend, shape, arrays, figures, err);
}

decant_status decant_cuda_attention_wgmma_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                   decant_matrix q, decant_matrix k, decant_matrix v,
                                                   decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                   decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                   decant_error *err)
{
    const backward_arrays arrays = {q, k, v, y, dy, dq, dk, dv, log_sum_exp};
    return shape->head_dimension == 64 ? launch_all<64>(backend, shape, arrays, err)
                                       : launch_all<128>(backend, shape, arrays, err);
}
