/* The gated activation, element by element: y = silu(gate) ∘ up, and its gradients. An output may be the same
 * array as an input: each element is read before it is written, by the same thread. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/sigmoid.cuh"

enum { THREADS = 256 };

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) silu_multiply_kernel(const T *gate, const T *up, T *y, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float gates[N], ups[N];
    decant_load(gate + i, gates);
    decant_load(up + i, ups);
#pragma unroll
    for (int j = 0; j < N; j++)
        ups[j] *= gates[j] * decant_sigmoid(gates[j]);
    decant_store(y + i, ups);
}

/* silu'(g) = s (1 + g (1 − s)) with s = decant_sigmoid(g). */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    silu_multiply_backward_kernel(const T *gate, const T *up, const T *dy, T *dgate, T *dup, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float gates[N], ups[N], gradients[N];
    decant_load(gate + i, gates);
    decant_load(up + i, ups);
    decant_load(dy + i, gradients);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float g = gates[j], s = decant_sigmoid(g), gradient = gradients[j];
        gates[j] = gradient * ups[j] * s * (1.0f + g * (1.0f - s));
        ups[j] = gradient * g * s;
    }
    decant_store(dgate + i, gates);
    decant_store(dup + i, ups);
}

decant_status decant_cuda_silu_multiply(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                        decant_matrix y, decant_error *err)
{
    int64_t count = gate.rows * gate.columns;
    if (count == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *gates = (const T *)gate.data, *ups = (const T *)up.data;
        T *target = (T *)y.data;
        if (decant_has_vectors<T>(count, gates, ups, target))
            silu_multiply_kernel<T, N>
                <<<decant_blocks_for(count, THREADS, N), THREADS, 0, stream>>>(gates, ups, target, count);
        else
            silu_multiply_kernel<T, 1>
                <<<decant_blocks_for(count, THREADS, 1), THREADS, 0, stream>>>(gates, ups, target, count);
        return decant_cuda_launched(backend, "silu_multiply", err);
    });
}

decant_status decant_cuda_silu_multiply_backward(decant_backend *backend, decant_matrix gate, decant_matrix up,
                                                 decant_matrix dy, decant_matrix dgate, decant_matrix dup,
                                                 decant_error *err)
{
    int64_t count = gate.rows * gate.columns;
    if (count == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *gates = (const T *)gate.data, *ups = (const T *)up.data, *gradients = (const T *)dy.data;
        T *dgates = (T *)dgate.data, *dups = (T *)dup.data;
        if (decant_has_vectors<T>(count, gates, ups, gradients, dgates, dups))
            silu_multiply_backward_kernel<T, N><<<decant_blocks_for(count, THREADS, N), THREADS, 0, stream>>>(
                gates, ups, gradients, dgates, dups, count);
        else
            silu_multiply_backward_kernel<T, 1><<<decant_blocks_for(count, THREADS, 1), THREADS, 0, stream>>>(
                gates, ups, gradients, dgates, dups, count);
        return decant_cuda_launched(backend, "silu_multiply_backward", err);
    });
}
