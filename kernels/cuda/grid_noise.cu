/* Gaussian noise of a given size on a weight: its norm first, then a pair of columns 2k, 2k + 1 takes the two
 * numbers of (seed, row, k). */
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/gaussian_pair.h"

enum { THREADS = 256 };

template <typename T>
__global__ void __launch_bounds__(THREADS) norm_kernel(const T *weights, int64_t columns, double *norms)
{
    __shared__ double parts[THREADS / DECANT_WARP];
    const T *row = weights + blockIdx.x * columns;
    double sum = 0;
    for (int64_t j = threadIdx.x; j < columns; j += THREADS) {
        const double weight = decant_to_float(row[j]);
        sum += weight * weight;
    }
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0)
        norms[blockIdx.x] = sum;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    noise_kernel(const T *weights, int64_t columns, float size, uint64_t seed, T *noisy)
{
    const int64_t row = blockIdx.x, start = row * columns;
    for (int64_t j = 2 * threadIdx.x; j < columns; j += 2 * THREADS) {
        const decant_gaussian_pair pair = decant_gaussian_pair_at(seed, row, j / 2);
        noisy[start + j] = decant_from_float<T>(
            decant_plus(decant_to_float(weights[start + j]), decant_times(size, pair.first)));
        if (j + 1 < columns)
            noisy[start + j + 1] = decant_from_float<T>(
                decant_plus(decant_to_float(weights[start + j + 1]), decant_times(size, pair.second)));
    }
}

template <typename T>
static decant_status add_noise(decant_backend *backend, decant_matrix weight, double t, uint64_t seed, T *noisy,
                               decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const T *weights = (const T *)weight.data;
    const unsigned rows = (unsigned)weight.rows;
    void *scratch;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, ((size_t)weight.rows + 1) * sizeof(double), &scratch, err));
    double *norms = (double *)scratch + 1, norm;
    norm_kernel<T><<<rows, THREADS, 0, stream>>>(weights, weight.columns, norms);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "norm of a weight", err));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_sum_rows(backend, norms, 1, weight.rows, (double *)scratch, &norm, err));
    const float size = (float)(t * std::sqrt(norm / ((double)weight.rows * (double)weight.columns)));
    noise_kernel<T><<<rows, THREADS, 0, stream>>>(weights, weight.columns, size, seed, noisy);
    return decant_cuda_launched(backend, "noise", err);
}

decant_status decant_cuda_add_noise(decant_backend *backend, decant_matrix weight, double t, uint64_t seed,
                                    decant_matrix noisy, decant_error *err)
{
    if (noisy.rows != weight.rows || noisy.columns != weight.columns || noisy.element != weight.element)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the noisy weight has another shape or type");
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    switch (weight.element) {
    case DECANT_F32:
        return add_noise(backend, weight, t, seed, (float *)noisy.data, err);
    case DECANT_F16:
        return add_noise(backend, weight, t, seed, (__half *)noisy.data, err);
    default:
        return add_noise(backend, weight, t, seed, (__nv_bfloat16 *)noisy.data, err);
    }
}
