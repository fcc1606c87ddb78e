/* The logistic function, of which the gated activation is made: silu(x) = x sigmoid(x). */
#ifndef DECANT_KERNELS_CUDA_SIGMOID_CUH
#define DECANT_KERNELS_CUDA_SIGMOID_CUH

[[maybe_unused]] static __device__ __forceinline__ float decant_sigmoid(float value)
{
    return 1.0f / (1.0f + expf(-value));
}

/* The same within 2⁻²⁰ of it, which takes far less. */
[[maybe_unused]] static __device__ __forceinline__ float decant_sigmoid_nearly(float value)
{
    return __fdividef(1.0f, 1.0f + __expf(-value));
}

#endif
