/* Blocks that share a result: each leaves its part in device memory, and the one that comes last adds them up.
 */
#ifndef DECANT_KERNELS_CUDA_ARRIVALS_CUH
#define DECANT_KERNELS_CUDA_ARRIVALS_CUH

#include <cuda_runtime.h>
#include <stdint.h>

/* Whether this block is the last of `count` that come; what the others wrote is then visible. The counter is
 * zero before the first and after the last. All threads that write or read results call, the block's first
 * among them; meet() is a barrier for them. */
template <typename Meet>
static __device__ __forceinline__ bool decant_comes_last(uint32_t *arrivals, int count, const Meet &meet)
{
    __shared__ uint32_t before;
    __threadfence();
    meet();
    if (threadIdx.x == 0) /* back to zero with the last one */
        before = atomicInc(arrivals, (uint32_t)count - 1);
    meet();
    __threadfence();
    return before == (uint32_t)count - 1;
}

/* The same where every thread of the block calls. */
static __device__ __forceinline__ bool decant_comes_last(uint32_t *arrivals, int count)
{
    return decant_comes_last(arrivals, count, [] { __syncthreads(); });
}

#endif
