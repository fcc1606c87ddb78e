/* Figures of rows added up in row order's fixed tree: the last step of every operation that returns a number.
 */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

/* One block an array. */
__global__ void __launch_bounds__(THREADS) sum_rows_kernel(const double *figures, int64_t rows, double *sums)
{
    __shared__ double parts[THREADS / DECANT_WARP];
    const double *own = figures + (int64_t)blockIdx.x * rows;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < rows; i += THREADS)
        sum += own[i];
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

decant_status decant_cuda_sum_rows(decant_backend *backend, const double *figures, int arrays, int64_t rows,
                                   double *device_sums, double *sums, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    sum_rows_kernel<<<arrays, THREADS, 0, context->shared.stream>>>(figures, rows, device_sums);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "sum_rows", err));
    return decant_cuda_receive(context, sums, device_sums, (size_t)arrays * sizeof *sums, err);
}
