/* The gradients of causal attention on tensor cores, from the log-sum-exp that the forward pass kept. With the
 * scores S = q kᵀ / sqrt(d), the weights P = exp(S − log_sum_exp) and D = Σ y ∘ dy of each query:
 *
 *     dv = Pᵀ dy    dP = dy vᵀ    dS = P ∘ (dP − D)    dq = dS k / sqrt(d)    dk = dSᵀ q / sqrt(d)
 *
 * Two kernels, so that every sum has one owner and one order: a block of the first holds a tile of keys and
 * passes over the queries that see them, head after head of its group; a block of the second holds a tile of
 * queries and passes over the keys they see. The scores are computed in both: two more products than a version
 * that adds dq with atomics.
 *
 * Source: Dao et al., "FlashAttention" (2022), appendix B. */
#include "kernels/cuda/attention.cuh"

#include <climits>

enum { STAGES = 2 };

/* P of one score. */
static __device__ __forceinline__ float weight_of(float score, float scale_log2, float log_sum_exp_log2)
{
    return decant_exp2(score * scale_log2 - log_sum_exp_log2);
}

/* ---- dk and dv ---- */

enum { TILE_KEYS = 64, TILE_QUERIES = 64 };

/* A stage of the first kernel: a tile of q, one of dy, and two figures of each of their tokens. */
template <int D> struct query_stage {
    static constexpr uint32_t DY = TILE_QUERIES * D * 2, FIGURES = 2 * DY;
    static constexpr uint32_t BYTES = FIGURES + 2 * TILE_QUERIES * sizeof(float);
};

template <int D>
static __device__ __forceinline__ void load_queries(const decant_attention_task &task, uint32_t stage, int head,
                                                    int first)
{
    decant_load_head<D, TILE_QUERIES>(stage, task.q + (int64_t)head * D, task.query_stride, first, task.tokens);
    decant_load_head<D, TILE_QUERIES>(stage + query_stage<D>::DY, task.dy + (int64_t)head * D,
                                      task.query_stride, first, task.tokens);
    const float *figures = threadIdx.x < TILE_QUERIES ? task.log_sum_exp : task.delta;
    int query = first + (int)threadIdx.x % TILE_QUERIES;
    bool valid = query < task.tokens;
    decant_copy_4(stage + query_stage<D>::FIGURES + threadIdx.x * (uint32_t)sizeof(float),
                  figures + (valid ? (int64_t)head * task.tokens + query : 0), valid);
}

/* scores → weights P; rows are keys, columns queries. */
static __device__ __forceinline__ void weigh_queries(const decant_attention_task &task,
                                                     float (&scores)[1][TILE_QUERIES / 8][4],
                                                     const float *log_sum_exp, float scale_log2, int first_key,
                                                     int first_query)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const bool all =
        first_query + TILE_QUERIES <= task.tokens &&
        decant_all_see(task, first_query, first_query + TILE_QUERIES - 1, first_key, first_key + 15);
#pragma unroll
    for (int n = 0; n < TILE_QUERIES / 8; n++) {
        float2 lse = *(const float2 *)(log_sum_exp + 8 * n + 2 * (lane % 4));
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int query = first_query + 8 * n + 2 * (lane % 4) + c % 2, key = first_key + lane / 4 + 8 * (c / 2);
            float weight = weight_of(scores[0][n][c], scale_log2, (c % 2 ? lse.y : lse.x) * DECANT_LOG2_E);
            scores[0][n][c] = all || (query < task.tokens && decant_sees(task, query, key)) ? weight : 0.0f;
        }
    }
}

/* weights → dS = P ∘ (dP − D). */
static __device__ __forceinline__ void differentiate(float (&weights)[1][TILE_QUERIES / 8][4],
                                                     const float (&products)[1][TILE_QUERIES / 8][4],
                                                     const float *delta)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int n = 0; n < TILE_QUERIES / 8; n++) {
        float2 d = *(const float2 *)(delta + 8 * n + 2 * (lane % 4));
#pragma unroll
        for (int c = 0; c < 4; c++)
            weights[0][n][c] *= products[0][n][c] - (c % 2 ? d.y : d.x);
    }
}

/* Grid: tiles of keys × key-value heads; the first tiles have the most queries and go first. */
template <int D>
__global__ void __launch_bounds__(DECANT_ATTENTION_THREADS)
    attention_keys_kernel(const decant_attention_task task)
{
    extern __shared__ __align__(256) char shared_memory[];
    const uint32_t k_tile = decant_shared_address(shared_memory), v_tile = k_tile + TILE_KEYS * D * 2;
    const uint32_t stages = v_tile + TILE_KEYS * D * 2;
    const int head = blockIdx.y, first_key = blockIdx.x * TILE_KEYS;
    const int warp_row = (int)threadIdx.x / DECANT_WARP * 16;
    const float scale_log2 = task.scale * DECANT_LOG2_E;
    /* the queries that see a key of the tile, by whole tiles from first_key on */
    const int last_query = (int)min((int64_t)task.tokens - 1, (int64_t)first_key + TILE_KEYS - 2 + task.window);
    const int tiles = (last_query - first_key) / TILE_QUERIES + 1, rounds = tiles * task.group;

    decant_load_head<D, TILE_KEYS>(k_tile, task.k + (int64_t)head * D, task.key_stride, first_key, task.tokens);
    decant_load_head<D, TILE_KEYS>(v_tile, task.v + (int64_t)head * D, task.key_stride, first_key, task.tokens);
    load_queries<D>(task, stages, head * task.group, first_key);
    decant_copy_commit();
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int round = 0; round < rounds; round++) {
        const int next = round + 1, first_query = first_key + round % tiles * TILE_QUERIES;
        if (next < rounds)
            load_queries<D>(task, stages + (uint32_t)(next % STAGES) * query_stage<D>::BYTES,
                            head * task.group + next / tiles, first_key + next % tiles * TILE_QUERIES);
        decant_copy_commit();
        decant_copy_wait<1>();
        __syncthreads(); /* this round's tiles have arrived */
        const uint32_t at = (uint32_t)(round % STAGES) * query_stage<D>::BYTES, q_tile = stages + at;
        const uint32_t dy_tile = q_tile + query_stage<D>::DY;
        const float *figures =
            (const float *)(shared_memory + 2 * TILE_KEYS * D * 2 + at + query_stage<D>::FIGURES);
        float weights[1][TILE_QUERIES / 8][4] = {}, products[1][TILE_QUERIES / 8][4] = {};
        decant_multiply_tiles<D, 1, TILE_QUERIES>(weights, k_tile, warp_row, q_tile);
        weigh_queries(task, weights, figures, scale_log2, first_key + warp_row, first_query);
        decant_multiply_weights<D, 1, TILE_QUERIES>(dv, weights, dy_tile);
        decant_multiply_tiles<D, 1, TILE_QUERIES>(products, v_tile, warp_row, dy_tile);
        differentiate(weights, products, figures + TILE_QUERIES);
        decant_multiply_weights<D, 1, TILE_QUERIES>(dk, weights, q_tile);
        __syncthreads(); /* the next load replaces this round's tiles */
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            dk[0][n][c] *= task.scale;
    decant_store_head<D, 1>(shared_memory, warp_row, dk, task.dk + (int64_t)head * D, task.key_stride,
                            first_key, task.tokens);
    decant_store_head<D, 1>(shared_memory + TILE_KEYS * D * 2, warp_row, dv, task.dv + (int64_t)head * D,
                            task.key_stride, first_key, task.tokens);
}

/* ---- dq ---- */

/* scores → dS, rows are queries, columns keys; log_sum_exp_log2 and delta are those of the lane's rows. */
template <int M, int KEYS>
static __device__ __forceinline__ void
differentiate_rows(const decant_attention_task &task, float (&scores)[M][KEYS / 8][4],
                   const float (&products)[M][KEYS / 8][4], const float (&log_sum_exp_log2)[M][2],
                   const float (&delta)[M][2], float scale_log2, int first_query, int first_key)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const bool all =
        decant_all_see(task, first_query, first_query + 16 * M - 1, first_key, first_key + KEYS - 1);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int query = first_query + 16 * m + lane / 4 + 8 * (c / 2);
                int key = first_key + 8 * n + 2 * (lane % 4) + c % 2;
                float weight = weight_of(scores[m][n][c], scale_log2, log_sum_exp_log2[m][c / 2]);
                weight = all || decant_sees(task, query, key) ? weight : 0.0f;
                scores[m][n][c] = weight * (products[m][n][c] - delta[m][c / 2]);
            }
}

/* Grid: tiles of queries × heads; the last tiles have the most keys and go first. */
template <int D, int M, int KEYS>
__global__ void __launch_bounds__(DECANT_ATTENTION_THREADS)
    attention_queries_kernel(const decant_attention_task task)
{
    constexpr int QUERIES = 64 * M;
    constexpr uint32_t KEY_BYTES = KEYS * D * 2, STAGE_BYTES = 2 * KEY_BYTES;
    extern __shared__ __align__(256) char shared_memory[];
    const uint32_t q_tile = decant_shared_address(shared_memory), dy_tile = q_tile + QUERIES * D * 2;
    const uint32_t stages = dy_tile + QUERIES * D * 2;
    const int head = blockIdx.y, first_query = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    const int warp_row = (int)threadIdx.x / DECANT_WARP * 16 * M, warp_query = first_query + warp_row;
    const int lane = threadIdx.x % DECANT_WARP;
    const int end = min(task.tokens, first_query + QUERIES);
    const int begin = max(0, first_query - task.window + 1) / KEYS * KEYS,
              rounds = (end - begin + KEYS - 1) / KEYS;
    const __nv_bfloat16 *k_head = task.k + (int64_t)(head / task.group) * D;
    const __nv_bfloat16 *v_head = task.v + (int64_t)(head / task.group) * D;
    const float scale_log2 = task.scale * DECANT_LOG2_E;

    decant_load_head<D, QUERIES>(q_tile, task.q + (int64_t)head * D, task.query_stride, first_query,
                                 task.tokens);
    decant_load_head<D, QUERIES>(dy_tile, task.dy + (int64_t)head * D, task.query_stride, first_query,
                                 task.tokens);
    decant_load_head<D, KEYS>(stages, k_head, task.key_stride, begin, task.tokens);
    decant_load_head<D, KEYS>(stages + KEY_BYTES, v_head, task.key_stride, begin, task.tokens);
    decant_copy_commit();
    float dq[M][D / 8][4] = {}, lse[M][2], delta[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = min(warp_query + 16 * m + lane / 4 + 8 * half, task.tokens - 1);
            lse[m][half] = task.log_sum_exp[(int64_t)head * task.tokens + query] * DECANT_LOG2_E;
            delta[m][half] = task.delta[(int64_t)head * task.tokens + query];
        }
    for (int round = 0; round < rounds; round++) {
        const int key = begin + round * KEYS, next = round + 1;
        if (next < rounds) {
            uint32_t at = stages + (uint32_t)(next % STAGES) * STAGE_BYTES;
            decant_load_head<D, KEYS>(at, k_head, task.key_stride, begin + next * KEYS, task.tokens);
            decant_load_head<D, KEYS>(at + KEY_BYTES, v_head, task.key_stride, begin + next * KEYS,
                                      task.tokens);
        }
        decant_copy_commit();
        decant_copy_wait<1>();
        __syncthreads(); /* this round's tiles have arrived */
        if (key <= warp_query + 16 * M - 1) {
            const uint32_t k_tile = stages + (uint32_t)(round % STAGES) * STAGE_BYTES,
                           v_tile = k_tile + KEY_BYTES;
            float scores[M][KEYS / 8][4] = {}, products[M][KEYS / 8][4] = {};
            decant_multiply_tiles<D, M, KEYS>(scores, q_tile, warp_row, k_tile);
            decant_multiply_tiles<D, M, KEYS>(products, dy_tile, warp_row, v_tile);
            differentiate_rows<M, KEYS>(task, scores, products, lse, delta, scale_log2, warp_query, key);
            decant_multiply_weights<D, M, KEYS>(dq, scores, k_tile);
        }
        __syncthreads(); /* the next load replaces this round's tiles */
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                dq[m][n][c] *= task.scale;
    decant_store_head<D, M>(shared_memory, warp_row, dq, task.dq + (int64_t)head * D, task.query_stride,
                            first_query, task.tokens);
}

/* ---- the entry ---- */

template <int D>
static decant_status launch_keys(decant_backend *backend, const decant_attention_task &task,
                                 int key_value_heads, decant_error *err)
{
    const int shared_bytes = 2 * TILE_KEYS * D * 2 + STAGES * (int)query_stage<D>::BYTES;
    dim3 blocks((unsigned)((task.tokens + TILE_KEYS - 1) / TILE_KEYS), (unsigned)key_value_heads);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaFuncSetAttribute(attention_keys_kernel<D>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                          "shared memory of attention_keys", err));
    attention_keys_kernel<D>
        <<<blocks, DECANT_ATTENTION_THREADS, shared_bytes, decant_cuda_of(backend)->stream>>>(task);
    return decant_cuda_launched(backend, "attention_keys", err);
}

template <int D, int M, int KEYS>
static decant_status launch_queries(decant_backend *backend, const decant_attention_task &task, int heads,
                                    decant_error *err)
{
    const int queries = 64 * M, shared_bytes = 2 * queries * D * 2 + STAGES * 2 * KEYS * D * 2;
    dim3 blocks((unsigned)((task.tokens + queries - 1) / queries), (unsigned)heads);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaFuncSetAttribute(attention_queries_kernel<D, M, KEYS>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                          "shared memory of attention_queries", err));
    attention_queries_kernel<D, M, KEYS>
        <<<blocks, DECANT_ATTENTION_THREADS, shared_bytes, decant_cuda_of(backend)->stream>>>(task);
    return decant_cuda_launched(backend, "attention_queries", err);
}

decant_status decant_cuda_attention_mma_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                 decant_matrix q, decant_matrix k, decant_matrix v,
                                                 decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                 decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                 decant_error *err)
{
    void *delta;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, (size_t)(shape->heads * shape->tokens) * sizeof(float), &delta, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_attention_delta(backend, shape, y, dy, (float *)delta, err));
    decant_attention_task task = decant_cuda_attention_task(shape, q, k, v);
    task.dy = (const __nv_bfloat16 *)dy.data;
    task.dq = (__nv_bfloat16 *)dq.data;
    task.dk = (__nv_bfloat16 *)dk.data;
    task.dv = (__nv_bfloat16 *)dv.data;
    task.log_sum_exp = (float *)log_sum_exp;
    task.delta = (const float *)delta;
    if (shape->head_dimension == 64) {
        DECANT_RETURN_ON_FAILURE(launch_keys<64>(backend, task, shape->key_value_heads, err));
        return launch_queries<64, 2, 64>(backend, task, shape->heads, err);
    }
    DECANT_RETURN_ON_FAILURE(launch_keys<128>(backend, task, shape->key_value_heads, err));
    return launch_queries<128, 2, 32>(backend, task, shape->heads, err);
}
