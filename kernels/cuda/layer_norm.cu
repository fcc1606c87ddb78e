/* Layer norm of each row, with scale and bias, and its gradient: one block a row, sums in F32. Source: Ba,
 * Kiros and Hinton, "Layer Normalization" (2016). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

typedef struct row_moments {
    float mean, inverse_deviation;
} row_moments;

/* Of one row, by its whole block; the variance of what is left without the mean. */
template <typename T, int N>
static __device__ row_moments moments_of(const T *row, float epsilon, int columns, float *parts)
{
    float sum = 0, squares = 0;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N];
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += values[j];
    }
    float mean = decant_block_sum(sum, parts) / (float)columns;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N];
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++)
            squares += (values[j] - mean) * (values[j] - mean);
    }
    float variance = decant_block_sum(squares, parts) / (float)columns;
    return {mean, 1.0f / sqrtf(variance + epsilon)};
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    layer_norm_kernel(const T *x, const float *weight, const float *bias, float epsilon, int columns, T *y)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    const T *row = x + (int64_t)blockIdx.x * columns;
    T *target = y + (int64_t)blockIdx.x * columns;
    row_moments moments = moments_of<T, N>(row, epsilon, columns, parts);
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N], scales[N], shifts[N];
        decant_load(row + i, values);
        decant_load(weight + i, scales);
        decant_load(bias + i, shifts);
#pragma unroll
        for (int j = 0; j < N; j++)
            values[j] = (values[j] - moments.mean) * moments.inverse_deviation * scales[j] + shifts[j];
        decant_store(target + i, values);
    }
}

/* With r = 1 / sqrt(variance + epsilon), c = x − mean and g = weight ∘ dy:
 * dx = r (g − mean(g) − c r² mean(g ∘ c)). dx may be dy: a thread reads what it writes first. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    layer_norm_backward_kernel(const T *dy, const T *x, const float *weight, float epsilon, int columns,
                               bool accumulate, T *dx)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    const int64_t first = (int64_t)blockIdx.x * columns;
    row_moments moments = moments_of<T, N>(x + first, epsilon, columns, parts);
    float sum = 0, product = 0;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float gradients[N], values[N], scales[N];
        decant_load(dy + first + i, gradients);
        decant_load(x + first + i, values);
        decant_load(weight + i, scales);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float g = gradients[j] * scales[j];
            sum += g;
            product += g * (values[j] - moments.mean);
        }
    }
    float r = moments.inverse_deviation;
    float mean = decant_block_sum(sum, parts) / (float)columns;
    float slope = decant_block_sum(product, parts) / (float)columns * r * r;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float gradients[N], values[N], scales[N], around[N] = {};
        decant_load(dy + first + i, gradients);
        decant_load(x + first + i, values);
        decant_load(weight + i, scales);
        if (accumulate)
            decant_load(dx + first + i, around);
#pragma unroll
        for (int j = 0; j < N; j++)
            around[j] += r * (gradients[j] * scales[j] - mean - (values[j] - moments.mean) * slope);
        decant_store(dx + first + i, around);
    }
}

decant_status decant_cuda_layer_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                     decant_matrix bias, float epsilon, decant_matrix y, decant_error *err)
{
    const decant_matrix vectors[] = {weight, bias};
    const float *floats[2];
    if (x.rows == 0)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_as_floats(backend, vectors, 2, floats, err));
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        const T *source = (const T *)x.data;
        T *target = (T *)y.data;
        unsigned rows = (unsigned)x.rows;
        int columns = (int)x.columns;
        if (decant_has_vectors<T>(columns, source, target, floats[0], floats[1]))
            layer_norm_kernel<T, N>
                <<<rows, THREADS, 0, stream>>>(source, floats[0], floats[1], epsilon, columns, target);
        else
            layer_norm_kernel<T, 1>
                <<<rows, THREADS, 0, stream>>>(source, floats[0], floats[1], epsilon, columns, target);
        return decant_cuda_launched(backend, "layer_norm", err);
    });
}

decant_status decant_cuda_layer_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                              decant_matrix weight, float epsilon, bool accumulate,
                                              decant_matrix dx, decant_error *err)
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
            layer_norm_backward_kernel<T, N>
                <<<rows, THREADS, 0, stream>>>(gradient, source, scales, epsilon, columns, accumulate, target);
        else
            layer_norm_backward_kernel<T, 1>
                <<<rows, THREADS, 0, stream>>>(gradient, source, scales, epsilon, columns, accumulate, target);
        return decant_cuda_launched(backend, "layer_norm_backward", err);
    });
}
