/* Barriers for some warps of a block: number 1 … 15 (0 is that of __syncthreads), and how many threads meet. */
#ifndef DECANT_KERNELS_CUDA_NAMED_BARRIERS_CUH
#define DECANT_KERNELS_CUDA_NAMED_BARRIERS_CUH

template <int BARRIER, int THREADS_OF_IT> static __device__ __forceinline__ void wait_at_barrier(void)
{
    asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS_OF_IT) : "memory");
}

/* Others wait there for this thread, which goes on. */
template <int BARRIER, int THREADS_OF_IT> static __device__ __forceinline__ void arrive_at_barrier(void)
{
    asm volatile("barrier.arrive %0, %1;" ::"n"(BARRIER), "n"(THREADS_OF_IT) : "memory");
}

#endif
