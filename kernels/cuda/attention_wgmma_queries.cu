/* dq of attention on Hopper, as attention_wgmma_backward.cu has it: a block holds a tile of queries and passes
 * over the keys they see. */
#include "kernels/cuda/attention_wgmma_backward.cuh"

enum { KEYS = 64 /* of a slot */, SLOTS = 8, SCORES = KEYS / 2 /* of a thread */ };

typedef struct queries_task {
    decant_attention_sizes sizes;
    decant_query_figures figures;
    __nv_bfloat16 *dq; /* [S · T, stride] */
    int64_t stride;
} queries_task;

/* Shared memory: the queries and their gradients, the slots of the ring (keys and values in turn), the way out.
 */
template <int D> struct queries_memory {
    static constexpr uint32_t OWN = decant_tile<D, DECANT_TILE_ROWS>::BYTES, TILE = decant_tile<D, KEYS>::BYTES;
    static constexpr uint32_t SLOTS_AT = 2 * OWN, OUT = SLOTS_AT + SLOTS * TILE;
    static constexpr uint32_t BYTES = OUT + OWN + DECANT_TILE_ALIGNMENT;
};

template <int D>
static __device__ __forceinline__ void
produce_keys(const queries_task &task, const decant_attention_places &places, const CUtensorMap *q,
             const CUtensorMap *dy, const CUtensorMap *k, const CUtensorMap *v)
{
    using memory = queries_memory<D>;
    decant_ring_place at = {0, 0};
    decant_take_items(task.sizes, [&](int number, uint32_t parity) {
        const decant_query_item item = decant_query_item_at<KEYS>(task.sizes, number);
        decant_barrier_wait(places.own_empty, parity ^ 1);
        decant_barrier_expect(places.own_full, 2 * memory::OWN);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles, q, item.head, item.first_query, item.sequence,
                                               places.own_full);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles + memory::OWN, dy, item.head, item.first_query,
                                               item.sequence, places.own_full);
        decant_produce_keys<D, KEYS, SLOTS>(task.sizes, places, places.tiles + memory::SLOTS_AT, item, k, v,
                                            at);
    });
}

/* scores → weights; rows are queries from group_query on, columns keys. */
[[maybe_unused]] static __device__ __forceinline__ void weigh_keys(const decant_attention_sizes &sizes,
                                                                   float (&scores)[SCORES],
                                                                   const float (&log_sum_exp_log2)[2],
                                                                   int group_query, int first_key)
{
#pragma unroll
    for (int i = 0; i < SCORES; i++)
        scores[i] = decant_exp2(scores[i] * sizes.scale_log2 - log_sum_exp_log2[i / 2 % 2]);
    decant_hide_unseen<KEYS>(sizes, scores, group_query, first_key, 0);
}

template <int D>
static __device__ __forceinline__ void
differentiate_item(const queries_task &task, const decant_attention_places &places,
                   const decant_query_item &item, decant_ring_place &at, char *memory_at)
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
        decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(products, places.tiles + memory::OWN, row,
                                                      places.tiles + memory::SLOTS_AT + at.slot * memory::TILE);
        decant_products_commit();
        decant_products_wait<1>(); /* the scores, and all of the tile before */
        decant_settle(scores);
        if (pending < SLOTS)
            decant_release(places.empty, pending);
        weigh_keys(sizes, scores, lse, group_query, key);
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
static __device__ __forceinline__ void consume_keys(const queries_task &task,
                                                    const decant_attention_places &places, char *memory_at)
{
    decant_ring_place at = {0, 0};
    decant_take_items(task.sizes, [&](int number, uint32_t parity) {
        decant_barrier_wait(places.own_full, parity);
        differentiate_item<D>(task, places, decant_query_item_at<KEYS>(task.sizes, number), at, memory_at);
    });
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_queries_wgmma_kernel(const __grid_constant__ CUtensorMap q,
                                   const __grid_constant__ CUtensorMap dy,
                                   const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                                   const queries_task task)
{
    if constexpr (DECANT_HAS_WGMMA)
        decant_run_warpgroups<SLOTS>(
            [&](const decant_attention_places &places) { produce_keys<D>(task, places, &q, &dy, &k, &v); },
            [&](const decant_attention_places &places, char *memory) {
                consume_keys<D>(task, places, memory);
            });
}

template <int D>
static decant_status launch(decant_backend *backend, const decant_attention_shape *shape,
                            const decant_attention_gradients &arrays, const decant_query_figures &figures,
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

decant_status decant_cuda_attention_queries(decant_backend *backend, const decant_attention_shape *shape,
                                            const decant_attention_gradients &arrays,
                                            const decant_query_figures &figures, decant_error *err)
{
    return shape->head_dimension == 64 ? launch<64>(backend, shape, arrays, figures, err)
                                       : launch<128>(backend, shape, arrays, figures, err);
}
