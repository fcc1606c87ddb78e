/* The rectified linear unit, element by element, and its gradient, which is 0 at 0. An output may be the same
 * array as an input: each element is read before it is written, by the same thread. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

template <typename T, int N> __global__ void __launch_bounds__(THREADS) relu_kernel(T *x, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float values[N];
    decant_load(x + i, values);
#pragma unroll
    for (int j = 0; j < N; j++)
        values[j] = values[j] < 0 ? 0 : values[j]; /* a NaN stays one */
    decant_store(x + i, values);
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) relu_backward_kernel(const T *y, const T *dy, T *dx, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float results[N], gradients[N];
    decant_load(y + i, results);
    decant_load(dy + i, gradients);
#pragma unroll
    for (int j = 0; j < N; j++)
        gradients[j] = results[j] > 0 ? gradients[j] : 0;
    decant_store(dx + i, gradients);
}

decant_status decant_cuda_relu(decant_backend *backend, decant_matrix x, decant_error *err)
{
    int64_t count = x.rows * x.columns;
    if (count == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        T *values = (T *)x.data;
        if (decant_has_vectors<T>(count, values))
            relu_kernel<T, N><<<decant_blocks_for(count, THREADS, N), THREADS, 0, stream>>>(values, count);
        else
            relu_kernel<T, 1><<<decant_blocks_for(count, THREADS, 1), THREADS, 0, stream>>>(values, count);
        return decant_cuda_launched(backend, "relu", err);
    });
}

decant_status decant_cuda_relu_backward(decant_backend *backend, decant_matrix y, decant_matrix dy,
                                        decant_matrix dx, decant_error *err)
{
    int64_t count = y.rows * y.columns;
    if (count == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *results = (const T *)y.data, *gradients = (const T *)dy.data;
        T *target = (T *)dx.data;
        if (decant_has_vectors<T>(count, results, gradients, target))
            relu_backward_kernel<T, N><<<decant_blocks_for(count, THREADS, N), THREADS, 0, stream>>>(
                results, gradients, target, count);
        else
            relu_backward_kernel<T, 1><<<decant_blocks_for(count, THREADS, 1), THREADS, 0, stream>>>(
                results, gradients, target, count);
        return decant_cuda_launched(backend, "relu_backward", err);
    });
}
