/* dk and dv of attention on Hopper, as attention_wgmma_backward.cu has them: a block holds a tile of keys and
 * passes over the queries that see them, head after head of its group. The rows of its scores are keys, so that
 * Pᵀ and dSᵀ come out of the registers as left operands. */
#include "kernels/cuda/attention_wgmma_backward.cuh"

enum { QUERIES = 64 /* of a stage */, STAGES = 3, PAIR_SCORES = QUERIES / 2 /* of a thread */ };

typedef struct keys_task {
    decant_attention_sizes sizes;
    decant_query_figures figures;
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
static __device__ __forceinline__ void
produce_queries(const keys_task &task, const decant_attention_places &places, const CUtensorMap *k,
                const CUtensorMap *v, const CUtensorMap *q, const CUtensorMap *dy)
{
    using memory = keys_memory<D>;
    const decant_attention_sizes &sizes = task.sizes;
    decant_ring_place at = {0, 0};
    decant_take_items(sizes, [&](int number, uint32_t parity) {
        const keys_item item = keys_item_at(sizes, number);
        decant_barrier_wait(places.own_empty, parity ^ 1);
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
    });
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
static __device__ __forceinline__ void
differentiate_keys(const keys_task &task, const decant_attention_places &places, const keys_item &item,
                   decant_ring_place &at, char *memory_at)
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
static __device__ __forceinline__ void consume_queries(const keys_task &task,
                                                       const decant_attention_places &places, char *memory_at)
{
    decant_ring_place at = {0, 0};
    decant_take_items(task.sizes, [&](int number, uint32_t parity) {
        decant_barrier_wait(places.own_full, parity);
        differentiate_keys<D>(task, places, keys_item_at(task.sizes, number), at, memory_at);
    });
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_keys_wgmma_kernel(const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                                const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap dy,
                                const keys_task task)
{
    if constexpr (DECANT_HAS_WGMMA)
        decant_run_warpgroups<STAGES>(
            [&](const decant_attention_places &places) { produce_queries<D>(task, places, &k, &v, &q, &dy); },
            [&](const decant_attention_places &places, char *memory) {
                consume_queries<D>(task, places, memory);
            });
}

template <int D>
static decant_status launch(decant_backend *backend, const decant_attention_shape *shape,
                            const decant_attention_gradients &arrays, const decant_query_figures &figures,
                            decant_error *err)
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

decant_status decant_cuda_attention_keys(decant_backend *backend, const decant_attention_shape *shape,
                                         const decant_attention_gradients &arrays,
                                         const decant_query_figures &figures, decant_error *err)
{
    return shape->head_dimension == 64 ? launch<64>(backend, shape, arrays, figures, err)
                                       : launch<128>(backend, shape, arrays, figures, err);
}
