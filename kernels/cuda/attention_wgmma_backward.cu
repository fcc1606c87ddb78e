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
#include "kernels/cuda/attention_wgmma_backward.cuh"

#include <cmath>

/* ---- two figures of each query ---- */

static __host__ __device__ __forceinline__ int padded_tokens(int tokens)
{
    return (tokens + DECANT_TILE_ROWS - 1) / DECANT_TILE_ROWS * DECANT_TILE_ROWS;
}

enum { FIGURES_THREADS = 256 };

/* D / 8 lanes a query of a head: lanes of sixteen bytes. Grid: queries, and heads of sequences. */
template <int D>
__global__ void __launch_bounds__(FIGURES_THREADS)
    attention_figures_kernel(const __nv_bfloat16 *y, const __nv_bfloat16 *dy, const float *log_sum_exp,
                             int tokens, int heads, const decant_query_figures figures)
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

template <int D>
static decant_status launch_figures(decant_backend *backend, const decant_attention_shape *shape,
                                    const decant_attention_gradients &arrays,
                                    const decant_query_figures &figures, decant_error *err)
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
static decant_status launch_all(decant_backend *backend, const decant_attention_shape *shape,
                                const decant_attention_gradients &arrays, decant_error *err)
{
    decant_query_figures figures = {NULL, NULL, padded_tokens((int)shape->tokens)};
    const size_t figure_bytes =
        (size_t)(decant_attention_sequences(shape) * shape->heads) * (size_t)figures.padded * sizeof(float);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, 2 * figure_bytes, &scratch, err));
    figures.log_sum_exp_log2 = (float *)scratch;
    figures.delta = (float *)((char *)scratch + figure_bytes);
    DECANT_RETURN_ON_FAILURE(launch_figures<D>(backend, shape, arrays, figures, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_attention_keys(backend, shape, arrays, figures, err));
    return decant_cuda_attention_queries(backend, shape, arrays, figures, err);
}

decant_status decant_cuda_attention_wgmma_backward(decant_backend *backend, const decant_attention_shape *shape,
                                                   decant_matrix q, decant_matrix k, decant_matrix v,
                                                   decant_matrix y, const float *log_sum_exp, decant_matrix dy,
                                                   decant_matrix dq, decant_matrix dk, decant_matrix dv,
                                                   decant_error *err)
{
    const decant_attention_gradients arrays = {q, k, v, y, dy, dq, dk, dv, log_sum_exp};
    return shape->head_dimension == 64 ? launch_all<64>(backend, shape, arrays, err)
                                       : launch_all<128>(backend, shape, arrays, err);
}
