/* Root-mean-square norm of each row, and its gradient: one block a row, sums in F32. Source: Zhang and
 * Sennrich, "Root Mean Square Layer Normalization" (2019), as LLaMA uses it: no mean, no bias. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    rms_norm_kernel(const T *x, const float *weight, float epsilon, int columns, T *y, float *inverse_rms)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    const T *row = x + (int64_t)blockIdx.x * columns;
    T *target = y + (int64_t)blockIdx.x * columns;
    float sum = 0;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N];
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += values[j] * values[j];
    }
    sum = decant_block_sum(sum, parts);
    float inverse = 1.0f / sqrtf(sum / (float)columns + epsilon);
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N], scales[N];
        decant_load(row + i, values);
        decant_load(weight + i, scales);
#pragma unroll
        for (int j = 0; j < N; j++)
            values[j] *= inverse * scales[j];
        decant_store(target + i, values);
    }
    if (threadIdx.x == 0)
        inverse_rms[blockIdx.x] = inverse;
}

/* With r = 1/rms and g = weight ∘ dy:  dx += r g − x r³ mean(g ∘ x). */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    rms_norm_backward_kernel(const T *dy, const T *x, const float *weight, const float *inverse_rms,
                             int columns, T *dx)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    const int64_t first = (int64_t)blockIdx.x * columns;
    float sum = 0;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float gradients[N], values[N], scales[N];
        decant_load(dy + first + i, gradients);
        decant_load(x + first + i, values);
        decant_load(weight + i, scales);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += gradients[j] * scales[j] * values[j];
    }
    sum = decant_block_sum(sum, parts);
    float inverse = inverse_rms[blockIdx.x];
    float slope = sum / (float)columns * inverse * inverse * inverse;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float gradients[N], values[N], scales[N], around[N];
        decant_load(dy + first + i, gradients);
        decant_load(x + first + i, values);
        decant_load(weight + i, scales);
        decant_load(dx + first + i, around);
#pragma unroll
        for (int j = 0; j < N; j++)
            around[j] += gradients[j] * scales[j] * inverse - values[j] * slope;
        decant_store(dx + first + i, around);
    }
}

decant_status decant_cuda_rms_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                   float epsilon, decant_matrix y, float *inverse_rms, decant_error *err)
{
    const float *scales;
    if (x.rows == 0)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_as_floats(backend, &weight, 1, &scales, err));
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *source = (const T *)x.data;
        T *target = (T *)y.data;
        unsigned rows = (unsigned)x.rows;
        int columns = (int)x.columns;
        if (decant_has_vectors<T>(columns, source, target, scales))
            rms_norm_kernel<T, N>
                <<<rows, THREADS, 0, stream>>>(source, scales, epsilon, columns, target, inverse_rms);
        else
            rms_norm_kernel<T, 1>
                <<<rows, THREADS, 0, stream>>>(source, scales, epsilon, columns, target, inverse_rms);
        return decant_cuda_launched(backend, "rms_norm", err);
    });
}

decant_status decant_cuda_rms_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                            decant_matrix weight, const float *inverse_rms, decant_matrix dx,
                                            decant_error *err)
{
    const float *scales;
    if (x.rows == 0)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_as_floats(backend, &weight, 1, &scales, err));
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *gradient = (const T *)dy.data, *source = (const T *)x.data;
        T *target = (T *)dx.data;
        unsigned rows = (unsigned)x.rows;
        int columns = (int)x.columns;
        if (decant_has_vectors<T>(columns, gradient, source, target, scales))
            rms_norm_backward_kernel<T, N>
                <<<rows, THREADS, 0, stream>>>(gradient, source, scales, inverse_rms, columns, target);
        else
            rms_norm_backward_kernel<T, 1>
                <<<rows, THREADS, 0, stream>>>(gradient, source, scales, inverse_rms, columns, target);
        return decant_cuda_launched(backend, "rms_norm_backward", err);
    });
}
