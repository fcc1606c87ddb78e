/* Fourth roots of Fisher sums, element by element. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    fourth_roots_kernel(const float *values, int64_t count, float *roots)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count)
        roots[i] = __fsqrt_rn(__fsqrt_rn(values[i]));
}

decant_status decant_cuda_fourth_roots(decant_backend *backend, const float *values, int64_t count,
                                       float *roots, decant_error *err)
{
    if (count == 0)
        return DECANT_OK;
    fourth_roots_kernel<<<decant_blocks_for(count, THREADS, 1), THREADS, 0, decant_cuda_of(backend)->stream>>>(
        values, count, roots);
    return decant_cuda_launched(backend, "fourth roots", err);
}
