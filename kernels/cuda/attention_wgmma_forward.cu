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
    static constexpr uint32_t TILE = decant_tile<D, KEYS>::BYTES, OUT = (1 + SLOTS) * TILE;
    static constexpr uint32_t BYTES = OUT + TILE + DECANT_TILE_ALIGNMENT;
};

/* ---- the producer ---- */

template <int D>
static __device__ __forceinline__ void produce(const forward_task &task, const decant_attention_places &places,
                                               const CUtensorMap *q, const CUtensorMap *k, const CUtensorMap *v)
{
    using memory = forward_memory<D>;
    decant_ring_place at = {0, 0};
    decant_take_items(task.sizes, [&](int number, uint32_t parity) {
        const decant_query_item item = decant_query_item_at<KEYS>(task.sizes, number);
        decant_barrier_wait(places.own_empty, parity ^ 1);
        decant_barrier_expect(places.own_full, memory::TILE);
        decant_fetch_tile<D, DECANT_TILE_ROWS>(places.tiles, q, item.head, item.first_query, item.sequence,
                                               places.own_full);
        decant_produce_keys<D, KEYS, SLOTS>(task.sizes, places, places.tiles + memory::TILE, item, k, v, at);
    });
}

/* ---- the consumers ---- */

/* What a lane keeps of the two rows it shares with three others: row lane / 4 of its warp, and eight below. */
typedef struct running_softmax {
    float maximum[2];
    float sum[2]; /* of this lane's columns alone, until the end */
} running_softmax;

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
static __device__ __forceinline__ void finish(const forward_task &task, const decant_query_item &item,
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
static __device__ __forceinline__ void attend(const forward_task &task, const decant_attention_places &places,
                                              const decant_query_item &item, decant_ring_place &at, char *out)
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
                                                  slots + at.slot * memory::TILE);
    decant_products_commit();
    decant_products_wait<0>();
    decant_settle(scores);
    decant_release(places.empty, at.slot);
    decant_advance<SLOTS>(at);
    decant_hide_unseen<KEYS>(task.sizes, scores, group_query, item.begin, -INFINITY);
    update<D>(softmax, scores, task.sizes.scale_log2, shrink);
    decant_pack_sums(weights, scores);
    for (int tile = 1; tile < item.tiles; tile++) {
        const decant_ring_place values = at;
        decant_advance<SLOTS>(at);
        decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
        decant_products_begin();
        decant_score_tiles<D, DECANT_TILE_ROWS, KEYS>(scores, places.tiles, group * DECANT_GROUP_ROWS,
                                                      slots + at.slot * memory::TILE);
        decant_products_commit();
        decant_barrier_wait(decant_barrier_of(places.full, values.slot), values.parity);
        decant_weigh_tile<D, KEYS>(sums, weights, slots + values.slot * memory::TILE);
        decant_products_commit();
        decant_products_wait<1>();
        decant_settle(scores);
        decant_release(places.empty, at.slot);
        decant_advance<SLOTS>(at);
        decant_hide_unseen<KEYS>(task.sizes, scores, group_query, item.begin + tile * KEYS, -INFINITY);
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
    decant_release(places.own_empty, 0);
    decant_barrier_wait(decant_barrier_of(places.full, at.slot), at.parity);
    decant_products_begin();
    decant_weigh_tile<D, KEYS>(sums, weights, slots + at.slot * memory::TILE);
    decant_products_commit();
    decant_products_wait<0>();
    decant_settle(sums);
    decant_release(places.empty, at.slot);
    decant_advance<SLOTS>(at);
    finish<D>(task, item, softmax, sums, out + warp * 16 * D * 2, item.first_query + warp * 16);
}

template <int D>
static __device__ __forceinline__ void consume(const forward_task &task, const decant_attention_places &places,
                                               char *out)
{
    decant_ring_place at = {0, 0};
    decant_take_items(task.sizes, [&](int number, uint32_t parity) {
        decant_barrier_wait(places.own_full, parity);
        attend<D>(task, places, decant_query_item_at<KEYS>(task.sizes, number), at, out);
    });
}

template <int D>
__global__ void __launch_bounds__(DECANT_HOPPER_THREADS, 1)
    attention_wgmma_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                           const __grid_constant__ CUtensorMap v, const forward_task task)
{
    if constexpr (DECANT_HAS_WGMMA)
        decant_run_warpgroups<SLOTS>(
            [&](const decant_attention_places &places) { produce<D>(task, places, &q, &k, &v); },
            [&](const decant_attention_places &places, char *memory) {
                consume<D>(task, places, memory + forward_memory<D>::OUT);
            });
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
