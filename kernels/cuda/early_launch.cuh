/* Kernels that begin before the one ahead of them on the stream has ended (programmatic dependent launch, from
 * compute capability 9.0 on; before, these functions do nothing): what does not depend on earlier work comes
 * first, then decant_wait_for_earlier_kernels, then everything that reads what they wrote or writes what they
 * read. As the kernel ahead may itself have begun early, arrays that are read before the wait must have been
 * complete before any work that is still under way was issued. */
#ifndef DECANT_KERNELS_CUDA_EARLY_LAUNCH_CUH
#define DECANT_KERNELS_CUDA_EARLY_LAUNCH_CUH

#include "kernels/cuda/context.h"

/* The rest of the kernel may read what earlier work on the stream wrote. */
static __device__ __forceinline__ void decant_wait_for_earlier_kernels(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel on the stream may begin what does not depend on this one. */
static __device__ __forceinline__ void decant_let_next_kernel_begin(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Before launches of a kernel beside which blocks of the next are to begin: multiprocessors keep this share of
 * the shared memory they can have, in percent, or the next larger one that they know, whatever the kernel
 * itself takes. One that had to change its share would first have to be empty. All of it leaves little to the
 * first cache, so kernels that read through that are not for it. */
template <typename Call>
static cudaError_t decant_keep_shared_memory(void (*kernel)(Call), int percent = cudaSharedmemCarveoutMaxShared)
{
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    if (code != cudaSuccess || attributes.preferredShmemCarveout == percent)
        return code;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, percent);
}

/* Shared memory of which two blocks just fit a multiprocessor, for a kernel's static and dynamic part. */
static inline size_t decant_half_of_shared(const decant_cuda *cuda)
{
    enum { RESERVED = 1024 };
    return (cuda->shared_memory_bytes + RESERVED) / 2 - RESERVED;
}

/* And of which two do not fit. */
static inline size_t decant_more_than_half(const decant_cuda *cuda)
{
    return decant_half_of_shared(cuda) + 128;
}

/* Launches a kernel of one argument that keeps to the rule above; `cluster` blocks, from capability 9.0 on,
 * make a cluster. */
template <typename Call>
static cudaError_t decant_launch_early(const decant_cuda_context *context, void (*kernel)(Call),
                                       unsigned blocks, unsigned threads, size_t shared_bytes, const Call &call,
                                       unsigned cluster = 1)
{
    cudaFuncAttributes
        attributes; /* the same limit at every call: a kernel whose limit changes is set up anew */
    cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    const int most = (int)(context->shared.shared_memory_bytes - attributes.sharedSizeBytes);
    if (code == cudaSuccess && attributes.maxDynamicSharedSizeBytes != most)
        code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (code != cudaSuccess)
        return code;
    cudaLaunchAttribute wanted[2] = {};
    wanted[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    wanted[0].val.programmaticStreamSerializationAllowed = 1;
    wanted[1].id = cudaLaunchAttributeClusterDimension;
    wanted[1].val.clusterDim.x = cluster;
    wanted[1].val.clusterDim.y = wanted[1].val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context->shared.stream;
    config.attrs = wanted;
    config.numAttrs = context->capability < 90 ? 0 : cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, call);
}

#endif
