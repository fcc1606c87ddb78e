/* Functions that are the same on the host and, in CUDA files, on the device. */
#ifndef DECANT_KERNELS_ON_BOTH_H
#define DECANT_KERNELS_ON_BOTH_H

#ifdef __CUDACC__
#define DECANT_ON_BOTH static __host__ __device__ __forceinline__
#else
#define DECANT_ON_BOTH static inline
#endif

#endif
