/* Blocks that share a result: each leaves its part in device memory, and the one that comes last adds them up.
 * A counter of those that came is zero before the first and after the last. */
#ifndef DECANT_KERNELS_CUDA_ARRIVALS_CUH
#define DECANT_KERNELS_CUDA_ARRIVALS_CUH

#include <cuda_runtime.h>
#include <stdint.h>

/* Whether this block is the last of `count` that come; what the others wrote is then visible. All threads that
 * write or read results call, the block's first among them; meet() is a barrier for them. */
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

/* The same for a block that does not wait for the answer: one thread calls, behind a barrier that those that
 * wrote have passed; those that read have to pass another before they do. */
static __device__ __forceinline__ bool decant_leaves_last(uint32_t *arrivals, int count)
{
    uint32_t before = 0;
#if __CUDA_ARCH__ >= 700
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(arrivals), "r"((uint32_t)count - 1)
                 : "memory");
#endif
    return before == (uint32_t)count - 1;
}

/* Whether all of `count` but this block have come, so that it may add the parts up without leaving its own; it
 * then sets the counter to zero. One thread calls, and those that read pass a barrier before they do. */
static __device__ __forceinline__ bool decant_others_came(const uint32_t *arrivals, int count)
{
    uint32_t came = 0;
#if __CUDA_ARCH__ >= 700
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(came) : "l"(arrivals) : "memory");
#endif
    return came == (uint32_t)count - 1;
}

#endif
