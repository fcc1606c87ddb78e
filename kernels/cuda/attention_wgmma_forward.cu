/* Causal attention on Hopper: a block holds a tile of 128 queries of one head and passes over the keys they
 * see, 128 at a time, with the running maximum and sum of every row. While the tensor cores form the next
 * scores and weigh the values of the tile before, the other units turn scores into weights. Source: Shah et
 * al., "FlashAttention-3" (2024), section 3. */
#include <climits>
#include <cmath>

#include "kernels/cuda/attention_wgmma.cuh"

enum { KEYS = 128, SLOTS = 4, SCORES = KEYS / 2 /* of a thread */ };

typedef struct forward_task {
    decant_attention_sizes sizes;
    __nv_bfloat16 *y;   /* [S · T, stride] */
    float *log_sum_exp; /* [S, heads, T] */
    int64_t stride;
} forward_task;

/* Shared memory: the queries, the slots of the ring (keys and values in turn), and the way out. */
template <int D> struct forward_memory {
    static constexpr uint32_t TILE = decant_tile<D, KEYS>::BYTES, SLOT = TILE, OUT = (1 + SLOTS) * TILE;
    static constexpr uint32_t BYTES = OUT + TILE + DECANT_TILE_ALIGNMENT;
};

/* Addresses in shared memory. */
typedef struct forward_places {
    uint32_t tiles;                       /* forward_memory */
    uint32_t full, empty;                 /* barriers of the ring */
    uint32_t queries_full, queries_empty; /* barriers */
} forward_places;

/* The keys that an item's queries see: tiles from `begin` on. */
typedef struct forward_item {
    int head, sequence, first_query, begin, tiles;
} forward_item;

[[maybe_unused]] static __device__ __forceinline__ forward_item item_at(const decant_attention_sizes &sizes,
                                                                        int item)
{
    const decant_attention_place place = decant_place_of_item(sizes, item, sizes.heads);
    const int tiles = sizes.items / sizes.items_together;
    const int first = (tiles - 1 - place.tile) * DECANT_TILE_ROWS; /* the last have the most keys */
    const int end = min(sizes.tokens, first + DECANT_TILE_ROWS);
    const int begin = max(0, first - sizes.window + 1) / KEYS * KEYS;
    return {place.head, place.sequence, first, begin, (end - begin + KEYS - 1) / KEYS};
}

/* ---- the producer ---- */

template <int D>
static __device__ __forceinline__ void produce(const forward_task &task, const forward_places &places,
                                               const CUtensorMap *q, const CUtensorMap *k, const CUtensorMap *v)
{
    using memory = forward_memory<D>;
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < task.sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= task.sizes.items)
            return;
        const forward_item item = item_at(task.sizes, number);
        decant_barrier_wait(places.queries_empty, (uint32_t)(round + 1) % 2);
        decant_barrier_expect(places.queries_full, memory::TILE);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles, q, item.head, item.first_query, item.sequence,
                                               places.queries_full);
        for (int i = 0; i < 2 * item.tiles; i++) {
            const uint32_t full = decant_barrier_of(places.full, at.slot);
            decant_barrier_wait(decant_barrier_of(places.empty, at.slot), at.parity ^ 1);
            decant_barrier_expect(full, memory::TILE);
            decant_fetch_tile<D, KEYS>(places.tiles + memory::TILE + at.slot * memory::SLOT, i % 2 ? v : k,
                                       item.head / task.sizes.group, item.begin + i / 2 * KEYS, item.sequence,
                                       full);
            decant_advance<SLOTS>(at);
        }
    }
}

/* ---- the consumers ---- */

/* What a lane keeps of the two rows it shares with three others: row lane / 4 of its warp, and eight below. */
typedef struct running_softmax {
    float maximum[2];
    float sum[2]; /* of this lane's columns alone, until the end */
} running_softmax;

/* −∞ where a query does not see a key. */
template <int D>
static __device__ __forceinline__ void mask(const decant_attention_sizes &sizes, float (&scores)[SCORES],
                                            int group_query, int first_key)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x % DECANT_WARPGROUP / DECANT_WARP;
    if (decant_all_queries_see(sizes, group_query, group_query + DECANT_GROUP_ROWS - 1, first_key,
                               first_key + KEYS - 1))
        return;
#pragma unroll
    for (int i = 0; i < SCORES; i++) {
        int query = group_query + 16 * warp + lane / 4 + 8 * (i / 2 % 2);
        int key = first_key + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        if (!decant_query_sees_key(sizes, query, key))
            scores[i] = -INFINITY;
    }
}

/* Turns the scores of one key tile into weights exp(score − maximum); shrink: what earlier sums must be
 * multiplied by, for each of the two rows. */
template <int D>
static __device__ __forceinline__ void update(running_softmax &softmax, float (&scores)[SCORES],
                                              float scale_log2, float (&shrink)[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float maximum = softmax.maximum[half];
#pragma unroll
        for (int n = 0; n < SCORES / 4; n++)
            maximum = fmaxf(maximum, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
        maximum = fmaxf(maximum, __shfl_xor_sync(DECANT_ALL_LANES, maximum, 1));
        maximum = fmaxf(maximum, __shfl_xor_sync(DECANT_ALL_LANES, maximum, 2));
        /* a row that has seen no key yet has maximum −∞, and its weights must be 0, not e^(−∞ + ∞) */
        float base = maximum == -INFINITY ? 0.0f : maximum * scale_log2, sum = 0;
        shrink[half] = decant_exp2(softmax.maximum[half] * scale_log2 - base);
#pragma unroll
        for (int n = 0; n < SCORES / 4; n++)
#pragma unroll
            for (int c = 4 * n + 2 * half; c < 4 * n + 2 * half + 2; c++) {
                scores[c] = decant_exp2(scores[c] * scale_log2 - base);
                sum += scores[c];
            }
        softmax.maximum[half] = maximum;
        softmax.sum[half] = softmax.sum[half] * shrink[half] + sum;
    }
}

/* Divides by the rows' sums, keeps their log-sum-exp, and stores. */
template <int D>
static __device__ __forceinline__ void finish(const forward_task &task, const forward_item &item,
                                              const running_softmax &softmax, float (&sums)[D / 2], char *rows,
                                              int warp_query)
{
    const decant_attention_sizes &sizes = task.sizes;
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = softmax.sum[half];
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, 2);
        const float share = 1.0f / sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            sums[4 * n + 2 * half] *= share;
            sums[4 * n + 2 * half + 1] *= share;
        }
        int query = warp_query + lane / 4 + 8 * half;
        if (lane % 4 == 0 && query < sizes.tokens)
            task.log_sum_exp[((int64_t)item.sequence * sizes.heads + item.head) * sizes.tokens + query] =
                softmax.maximum[half] * sizes.scale + logf(sum);
    }
    decant_store_rows<D>(rows, sums, 1.0f,
                         task.y + (int64_t)item.sequence * sizes.tokens * task.stride + item.head * D,
                         task.stride, warp_query, sizes.tokens);
}

/* One item. `at` is the place of its first keys; values follow their keys. */
template <int D>
static __device__ __forceinline__ void attend(const forward_task &task, const forward_places &places,
                                              const forward_item &item, decant_ring_place &at, char *out)
{
    using memory = forward_memory<D>;
    const int group = threadIdx.x / DECANT_WARPGROUP, warp = threadIdx.x / DECANT_WARP;
    const int group_query = item.first_query + group * DECANT_GROUP_ROWS;
    const uint32_t slots = places.tiles + memory::TILE;
    float sums[D / 2], scores[SCORES], shrink[2];
    uint32_t weights[KEYS / 4];
    running_softmax softmax = {{-INFINITY, -INFINITY}, {0, 0}};
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        sums[i] = 0;
    decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
    decant_products_begin();
    decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(scores, places.tiles, group * DECANT_GROUP_ROWS,
                                                  slots + at.slot * memory::SLOT);
    decant_products_commit();
    decant_products_wait<0>();
    decant_settle(scores);
    decant_release(places.empty, at.slot);
    decant_advance<SLOTS>(at);
    mask<D>(task.sizes, scores, group_query, item.begin);
    update<D>(softmax, scores, task.sizes.scale_log2, shrink);
    decant_pack_sums(weights, scores);
    for (int tile = 1; tile < item.tiles; tile++) {
        const decant_ring_place values = at;
        decant_advance<SLOTS>(at);
        decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
        decant_products_begin();
        decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(scores, places.tiles, group * DECANT_GROUP_ROWS,
                                                      slots + at.slot * memory::SLOT);
        decant_products_commit();
        decant_barrier_wait(decant_barrier_of(places.full, values.slot), values.parity);
        decant_weigh_tile<D, KEYS>(sums, weights, slots + values.slot * memory::SLOT);
        decant_products_commit();
        decant_products_wait<1>();
        decant_settle(scores);
        decant_release(places.empty, at.slot);
        decant_advance<SLOTS>(at);
        mask<D>(task.sizes, scores, group_query, item.begin + tile * KEYS);
        update<D>(softmax, scores, task.sizes.scale_log2, shrink);
        decant_settle(scores); /* all this beside the product with the values */
        decant_products_wait<0>();
        decant_settle(sums);
        decant_release(places.empty, values.slot);
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            sums[i] *= shrink[i / 2 % 2];
        decant_pack_sums(weights, scores);
    }
    decant_release(places.queries_empty, 0);
    decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
    decant_products_begin();
    decant_weigh_tile<D, KEYS>(sums, weights, slots + at.slot * memory::SLOT);
    decant_products_commit();
    decant_products_wait<0>();
    decant_settle(sums);
    decant_release(places.empty, at.slot);
    decant_advance<SLOTS>(at);
    finish<D>(task, item, softmax, sums, out + warp * 16 * D * 2, item.first_query + warp * 16);
}

template <int D>
static __device__ __forceinline__ void consume(const forward_task &task, const forward_places &places,
                                               char *out)
{
    decant_ring_place at = {0, 0};
    for (int round = 0; round * (int)gridDim.x < task.sizes.items; round++) {
        const int number = decant_item_of_round(round);
        if (number >= task.sizes.items)
            return;
        decant_barrier_wait(places.queries_full, (uint32_t)round % 2);
        attend<D>(task, places, item_at(task.sizes, number), at, out);
    }
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_wgmma_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                           const __grid_constant__ CUtensorMap v, const forward_task task)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) char shared_memory[];
        __shared__ __align__(8) uint64_t full[SLOTS], empty[SLOTS], queries[2];
        const uint32_t shared = decant_shared_address(shared_memory);
        const uint32_t padding = (0u - shared) % DECANT_TILE_ALIGNMENT;
        const forward_places places = {shared + padding, decant_shared_address(full),
                                       decant_shared_address(empty), decant_shared_address(&queries[0]),
                                       decant_shared_address(&queries[1])};
        if (threadIdx.x == 0) {
            decant_ring_create(places.full, places.empty, SLOTS);
            decant_ring_create(places.queries_full, places.queries_empty, 1);
            decant_barrier_publish();
        }
        __syncthreads();
        if (threadIdx.x < DECANT_CONSUMERS) {
            decant_registers_raise<DECANT_CONSUMER_REGISTERS>();
            consume<D>(task, places, shared_memory + padding + forward_memory<D>::OUT);
        } else {
            decant_registers_lower<DECANT_PRODUCER_REGISTERS>();
            if (threadIdx.x == DECANT_CONSUMERS)
                produce<D>(task, places, &q, &k, &v);
        }
    }
}

template <int D>
static decant_status launch(decant_backend *backend, const decant_attention_shape *shape, decant_matrix q,
                            decant_matrix k, decant_matrix v, const forward_task &task, decant_error *err)
{
    CUtensorMap q_map, k_map, v_map;
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, q, DECANT_TILE_ROWS, &q_map, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, k, KEYS, &k_map, err));
    DECANT_RETURN_ON_FAILURE(decant_attention_map(backend, shape, v, KEYS, &v_map, err));
    return decant_launch_items(backend, "attention", attention_wgmma_kernel<D>, task.sizes,
                               forward_memory<D>::BYTES, err, q_map, k_map, v_map, task);
}

decant_status decant_cuda_attention_wgmma(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                          float *log_sum_exp, decant_error *err)
{
    const forward_task task = {decant_attention_sizes_of(shape, shape->heads), (__nv_bfloat16 *)y.data,
                               log_sum_exp, y.columns};
    return shape->head_dimension == 64 ? launch<64>(backend, shape, q, k, v, task, err)
                                       : launch<128>(backend, shape, q, k, v, task, err);
}
