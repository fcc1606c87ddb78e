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

/* Launches a kernel of one argument that keeps to the rule above. */
template <typename Call>
static cudaError_t decant_launch_early(const decant_cuda_context *context, void (*kernel)(Call),
                                       unsigned blocks, unsigned threads, size_t shared_bytes, const Call &call)
{
    cudaFuncAttributes
        attributes; /* the same limit at every call: a kernel whose limit changes is set up anew */
    cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    const int most = (int)(context->shared.shared_memory_bytes - attributes.sharedSizeBytes);
    if (code == cudaSuccess && attributes.maxDynamicSharedSizeBytes != most)
        code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (code != cudaSuccess)
        return code;
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = context->shared.stream;
    config.attrs = &early;
    config.numAttrs = context->capability >= 90 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, call);
}

#endif
