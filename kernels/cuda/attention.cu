/* Which of three ways attention goes: Hopper's kernels (attention_wgmma_*.cu), those for any tensor cores from
 * Ampere on (attention_forward.cu, attention_backward.cu), or plain products (attention_plain.cu). The last two
 * take one sequence at a time. Also what the last two share. */
#include "kernels/cuda/attention.cuh"

#include <climits>
#include <cmath>

/* ---- the choice ---- */

static bool has_kernel(const decant_attention_shape *shape, decant_matrix q, decant_matrix k, decant_matrix v,
                       decant_matrix y)
{
    return q.element == DECANT_BF16 && (shape->head_dimension == 64 || shape->head_dimension == 128) &&
           decant_has_vectors<__nv_bfloat16>(q.columns, q.data, k.data, v.data, y.data);
}

decant_status decant_cuda_attention(decant_backend *backend, const decant_attention_shape *shape,
                                    decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                    float *log_sum_exp, decant_error *err)
{
    const int64_t tokens = shape->tokens;
    const bool kernel = has_kernel(shape, q, k, v, y);
    if (tokens == 0)
        return DECANT_OK;
    if (kernel && decant_cuda_context_of(backend)->has_wgmma)
        return decant_cuda_attention_wgmma(backend, shape, q, k, v, y, log_sum_exp, err);
    for (int64_t sequence = 0; sequence < decant_attention_sequences(shape); sequence++) {
        const int64_t first = sequence * tokens;
        const auto way = kernel ? decant_cuda_attention_mma : decant_cuda_attention_plain;
        DECANT_RETURN_ON_FAILURE(way(backend, shape, decant_matrix_rows(q, first, tokens),
                                     decant_matrix_rows(k, first, tokens), decant_matrix_rows(v, first, tokens),
                                     decant_matrix_rows(y, first, tokens), log_sum_exp + first * shape->heads,
                                     err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_attention_backward(decant_backend *backend, const decant_attention_shape *shape,
                                             decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix y,
                                             const float *log_sum_exp, decant_matrix dy, decant_matrix dq,
                                             decant_matrix dk, decant_matrix dv, decant_error *err)
{
    const int64_t tokens = shape->tokens;
    const bool kernel = has_kernel(shape, q, k, v, y) && has_kernel(shape, dq, dk, dv, dy);
    if (tokens == 0)
        return DECANT_OK;
    if (kernel && decant_cuda_context_of(backend)->has_wgmma)
        return decant_cuda_attention_wgmma_backward(backend, shape, q, k, v, y, log_sum_exp, dy, dq, dk, dv,
                                                    err);
    for (int64_t sequence = 0; sequence < decant_attention_sequences(shape); sequence++) {
        const int64_t first = sequence * tokens;
        const auto way = kernel ? decant_cuda_attention_mma_backward : decant_cuda_attention_plain_backward;
        DECANT_RETURN_ON_FAILURE(
            way(backend, shape, decant_matrix_rows(q, first, tokens), decant_matrix_rows(k, first, tokens),
                decant_matrix_rows(v, first, tokens), decant_matrix_rows(y, first, tokens),
                log_sum_exp + first * shape->heads, decant_matrix_rows(dy, first, tokens),
                decant_matrix_rows(dq, first, tokens), decant_matrix_rows(dk, first, tokens),
                decant_matrix_rows(dv, first, tokens), err));
    }
    return DECANT_OK;
}

/* ---- what the tensor-core kernels start from ---- */

decant_attention_task decant_cuda_attention_task(const decant_attention_shape *shape, decant_matrix q,
                                                 decant_matrix k, decant_matrix v)
{
    decant_attention_task task = {};
    task.q = (const __nv_bfloat16 *)q.data;
    task.k = (const __nv_bfloat16 *)k.data;
    task.v = (const __nv_bfloat16 *)v.data;
    task.query_stride = q.columns;
    task.key_stride = k.columns;
    task.tokens = (int)shape->tokens;
    task.group = shape->heads / shape->key_value_heads;
    task.window = shape->window > 0 && shape->window < INT_MAX ? (int)shape->window : INT_MAX;
    task.scale = 1.0f / sqrtf((float)shape->head_dimension);
    return task;
}

/* ---- delta ---- */

enum { THREADS = 256, WARPS = THREADS / DECANT_WARP };

/* One warp a query of a head. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_delta_kernel(const T *y, const T *dy, int tokens, int heads, int head_dimension, float *delta)
{
    const int lane = threadIdx.x % DECANT_WARP;
    int64_t place = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP; /* of a head in the rows of y */
    if (place >= (int64_t)tokens * heads)
        return;
    const T *own_y = y + place * head_dimension, *own_dy = dy + place * head_dimension;
    float sum = 0;
    for (int i = lane; i < head_dimension; i += DECANT_WARP)
        sum += decant_to_float(own_y[i]) * decant_to_float(own_dy[i]);
    sum = decant_warp_sum(sum);
    int64_t token = place / heads, head = place - token * heads;
    if (lane == 0)
        delta[head * tokens + token] = sum;
}

decant_status decant_cuda_attention_delta(decant_backend *backend, const decant_attention_shape *shape,
                                          decant_matrix y, decant_matrix dy, float *delta, decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    int64_t count = shape->tokens * shape->heads;
    unsigned blocks = (unsigned)((count + WARPS - 1) / WARPS);
    int tokens = (int)shape->tokens;
    if (y.element == DECANT_F32)
        attention_delta_kernel<<<blocks, THREADS, 0, stream>>>(
            (const float *)y.data, (const float *)dy.data, tokens, shape->heads, shape->head_dimension, delta);
    else
        attention_delta_kernel<<<blocks, THREADS, 0, stream>>>((const __nv_bfloat16 *)y.data,
                                                               (const __nv_bfloat16 *)dy.data, tokens,
                                                               shape->heads, shape->head_dimension, delta);
    return decant_cuda_launched(backend, "attention_delta", err);
}
