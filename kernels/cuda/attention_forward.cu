/* Causal attention on tensor cores: a block holds a tile of queries of one head and passes over the keys they
 * see, 64 at a time, with the running maximum and sum of every row. Scores stay in registers and F32; the
 * weights meet V as BF16. Source: Dao et al., "FlashAttention" (2022), section 3.1. */
#include "kernels/cuda/attention.cuh"

#include <climits>

enum { KEYS = 64 };

/* What a lane keeps of the rows it shares with three others: rows lane / 4 and lane / 4 + 8 of each 16. */
template <int M> struct running_softmax {
    float maximum[M][2];
    float sum[M][2]; /* of this lane's columns alone, until the end */
};

/* Turns the scores of one key tile into weights exp(score − maximum), and scales what was summed before. */
template <int D, int M>
static __device__ __forceinline__ void update(running_softmax<M> &softmax, float (&scores)[M][KEYS / 8][4],
                                              float (&sums)[M][D / 8][4], float scale_log2)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float maximum = softmax.maximum[m][half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            maximum = fmaxf(maximum, __shfl_xor_sync(DECANT_ALL_LANES, maximum, 1));
            maximum = fmaxf(maximum, __shfl_xor_sync(DECANT_ALL_LANES, maximum, 2));
            /* a row that has seen no key yet has maximum −∞, and its weights must be 0, not e^(−∞ + ∞) */
            float base = maximum == -INFINITY ? 0.0f : maximum * scale_log2;
            float shrink = decant_exp2(softmax.maximum[m][half] * scale_log2 - base), sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int c = 2 * half; c < 2 * half + 2; c++) {
                    scores[m][n][c] = decant_exp2(scores[m][n][c] * scale_log2 - base);
                    sum += scores[m][n][c];
                }
            softmax.maximum[m][half] = maximum;
            softmax.sum[m][half] = softmax.sum[m][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[m][n][2 * half] *= shrink;
                sums[m][n][2 * half + 1] *= shrink;
            }
        }
}

/* −∞ where a query does not see a key. */
template <int M>
static __device__ __forceinline__ void mask(const decant_attention_task &task, float (&scores)[M][KEYS / 8][4],
                                            int first_query, int first_key)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int query = first_query + 16 * m + lane / 4 + 8 * (c / 2);
                int key = first_key + 8 * n + 2 * (lane % 4) + c % 2;
                if (!decant_sees(task, query, key))
                    scores[m][n][c] = -INFINITY;
            }
}

/* Divides by the rows' sums and keeps their log-sum-exp. */
template <int D, int M>
static __device__ __forceinline__ void finish(const decant_attention_task &task,
                                              const running_softmax<M> &softmax, float (&sums)[M][D / 8][4],
                                              int head, int first_query)
{
    const int lane = threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = softmax.sum[m][half];
            sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, 2);
            float share = 1.0f / sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[m][n][2 * half] *= share;
                sums[m][n][2 * half + 1] *= share;
            }
            int query = first_query + 16 * m + lane / 4 + 8 * half;
            if (lane % 4 == 0 && query < task.tokens)
                task.log_sum_exp[(int64_t)head * task.tokens + query] =
                    softmax.maximum[m][half] * task.scale + logf(sum);
        }
}

/* Grid: tiles of queries × heads; the last tiles have the most keys and go first. */
template <int D, int M>
__global__ void __launch_bounds__(DECANT_ATTENTION_THREADS) attention_kernel(const decant_attention_task task)
{
    constexpr int QUERIES = 64 * M;
    extern __shared__ __align__(256) char shared_memory[];
    const uint32_t q_tile = decant_shared_address(shared_memory);
    const uint32_t k_tile = q_tile + QUERIES * D * 2, v_tile = k_tile + KEYS * D * 2;
    const int head = blockIdx.y, first_query = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    const int warp_row = (int)threadIdx.x / DECANT_WARP * 16 * M, warp_query = first_query + warp_row;
    const int warp_last = warp_query + 16 * M - 1;
    const int end = min(task.tokens, first_query + QUERIES);
    const int begin = max(0, first_query - task.window + 1) / KEYS * KEYS;
    const __nv_bfloat16 *k_head = task.k + (int64_t)(head / task.group) * D;
    const __nv_bfloat16 *v_head = task.v + (int64_t)(head / task.group) * D;
    const float scale_log2 = task.scale * DECANT_LOG2_E;

    decant_load_head<D, QUERIES>(q_tile, task.q + (int64_t)head * D, task.query_stride, first_query,
                                 task.tokens);
    decant_load_head<D, KEYS>(k_tile, k_head, task.key_stride, begin, task.tokens);
    decant_copy_commit();
    float sums[M][D / 8][4] = {};
    running_softmax<M> softmax;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            softmax.maximum[m][half] = -INFINITY;
            softmax.sum[m][half] = 0;
        }
    for (int key = begin; key < end; key += KEYS) {
        const bool seen = key <= warp_last; /* by some query of this warp */
        float scores[M][KEYS / 8][4] = {};
        decant_copy_wait<0>();
        __syncthreads(); /* the keys have arrived, and nobody reads the values of the last round any more */
        decant_load_head<D, KEYS>(v_tile, v_head, task.key_stride, key, task.tokens);
        decant_copy_commit();
        if (seen)
            decant_multiply_tiles<D, M, KEYS>(scores, q_tile, warp_row, k_tile);
        decant_copy_wait<0>();
        __syncthreads(); /* the values have arrived, and nobody reads the keys any more */
        if (key + KEYS < end)
            decant_load_head<D, KEYS>(k_tile, k_head, task.key_stride, key + KEYS, task.tokens);
        decant_copy_commit();
        if (!seen)
            continue;
        if (!decant_all_see(task, warp_query, warp_last, key, key + KEYS - 1))
            mask(task, scores, warp_query, key);
        update<D, M>(softmax, scores, sums, scale_log2);
        decant_multiply_weights<D, M, KEYS>(sums, scores, v_tile);
    }
    finish<D, M>(task, softmax, sums, head, warp_query);
    decant_store_head<D, M>(shared_memory, warp_row, sums, task.y + (int64_t)head * D, task.query_stride,
                            first_query, task.tokens);
}

template <int D, int M>
static decant_status launch(decant_backend *backend, const decant_attention_task &task, int heads,
                            decant_error *err)
{
    const int queries = 64 * M, shared_bytes = (queries + 2 * KEYS) * D * 2;
    dim3 blocks((unsigned)((task.tokens + queries - 1) / queries), (unsigned)heads);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(attention_kernel<D, M>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "shared memory of attention", err));
    attention_kernel<D, M>
        <<<blocks, DECANT_ATTENTION_THREADS, shared_bytes, decant_cuda_of(backend)->stream>>>(task);
    return decant_cuda_launched(backend, "attention", err);
}

decant_status decant_cuda_attention_mma(decant_backend *backend, const decant_attention_shape *shape,
                                        decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                        float *log_sum_exp, decant_error *err)
{
    decant_attention_task task = decant_cuda_attention_task(shape, q, k, v);
    task.y = (__nv_bfloat16 *)y.data;
    task.log_sum_exp = log_sum_exp;
    return shape->head_dimension == 64 ? launch<64, 2>(backend, task, shape->heads, err)
                                       : launch<128, 2>(backend, task, shape->heads, err);
}
