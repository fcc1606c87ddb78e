/* Device code that every operation stands on: elements read and written as floats, one or sixteen bytes at a
 * time, and sums over a warp or a block in an order that never changes. */
#ifndef DECANT_KERNELS_CUDA_ELEMENTS_CUH
#define DECANT_KERNELS_CUDA_ELEMENTS_CUH

#include "kernels/cuda/context.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { DECANT_WARP = 32 };
static const unsigned DECANT_ALL_LANES = 0xffffffffu;

/* A value that stays in a register from here on. Otherwise the compiler may compute it where it is used, which
 * may be where others wait. */
static __device__ __forceinline__ int decant_kept(int value)
{
    asm volatile("" : "+r"(value));
    return value;
}

template <typename T> static __device__ __forceinline__ T *decant_kept(T *value)
{
    asm volatile("" : "+l"(value));
    return value;
}

/* ---- elements ---- */

static __device__ __forceinline__ float decant_to_float(float value)
{
    return value;
}

static __device__ __forceinline__ float decant_to_float(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

static __device__ __forceinline__ float decant_to_float(__half value)
{
    return __half2float(value);
}

template <typename T> static __device__ __forceinline__ T decant_from_float(float value);

template <> __device__ __forceinline__ float decant_from_float<float>(float value)
{
    return value;
}

template <> __device__ __forceinline__ __nv_bfloat16 decant_from_float<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

template <> __device__ __forceinline__ __half decant_from_float<__half>(float value)
{
    return __float2half_rn(value);
}

/* How many elements sixteen bytes hold. */
template <typename T> constexpr int DECANT_VECTOR = 16 / (int)sizeof(T);

/* Blocks of so many threads, each of which takes so many of `count` elements. */
static inline unsigned decant_blocks_for(int64_t count, int threads, int at_once)
{
    int64_t per_block = (int64_t)threads * at_once;
    return (unsigned)((count + per_block - 1) / per_block);
}

/* N consecutive elements as floats. N > 1: the address is a multiple of 16 bytes, and so is N elements' size.
 */
template <typename T, int N>
static __device__ __forceinline__ void decant_load(const T *source, float (&values)[N])
{
    if constexpr (N == 1) {
        values[0] = decant_to_float(source[0]);
    } else {
        constexpr int V = DECANT_VECTOR<T>;
#pragma unroll
        for (int i = 0; i < N / V; i++) {
            union {
                uint4 whole;
                T parts[V];
            } vector = {((const uint4 *)source)[i]};
#pragma unroll
            for (int j = 0; j < V; j++)
                values[i * V + j] = decant_to_float(vector.parts[j]);
        }
    }
}

template <typename T, int N>
static __device__ __forceinline__ void decant_store(T *target, const float (&values)[N])
{
    if constexpr (N == 1) {
        target[0] = decant_from_float<T>(values[0]);
    } else {
        constexpr int V = DECANT_VECTOR<T>;
#pragma unroll
        for (int i = 0; i < N / V; i++) {
            union {
                uint4 whole;
                T parts[V];
            } vector = {make_uint4(0, 0, 0, 0)};
#pragma unroll
            for (int j = 0; j < V; j++)
                vector.parts[j] = decant_from_float<T>(values[i * V + j]);
            ((uint4 *)target)[i] = vector.whole;
        }
    }
}

/* Whether rows of `columns` elements can be read sixteen bytes at a time from all these addresses. */
template <typename T, typename... Pointers>
static bool decant_has_vectors(int64_t columns, const Pointers *...pointers)
{
    uintptr_t bits = 0;
    ((bits |= (uintptr_t)pointers), ...);
    return columns % DECANT_VECTOR<T> == 0 && bits % 16 == 0;
}

/* Calls operation(T()) with the element type T of a matrix that may be F32 or BF16. */
template <typename Operation>
static decant_status decant_by_element(decant_element element, Operation operation)
{
    return element == DECANT_F32 ? operation(float()) : operation(__nv_bfloat16());
}

/* The same with the activations' element type. */
template <typename Operation>
static decant_status decant_by_activation(const decant_backend *backend, Operation operation)
{
    return decant_by_element(backend->activation, operation);
}

/* ---- sums ---- */

template <typename Number> static __device__ __forceinline__ Number decant_warp_sum(Number value)
{
#pragma unroll
    for (int offset = DECANT_WARP / 2; offset > 0; offset /= 2)
        value += __shfl_xor_sync(DECANT_ALL_LANES, value, offset);
    return value;
}

static __device__ __forceinline__ float decant_warp_maximum(float value)
{
#pragma unroll
    for (int offset = DECANT_WARP / 2; offset > 0; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(DECANT_ALL_LANES, value, offset));
    return value;
}

/* Over a block of whole warps; every thread gets the result. `parts` is shared, one for each warp, and free
 * again when the function returns. */
template <typename Number>
static __device__ __forceinline__ Number decant_block_sum(Number value, Number *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    value = decant_warp_sum(value);
    if (lane == 0)
        parts[warp] = value;
    __syncthreads();
    value = decant_warp_sum(lane < (int)blockDim.x / DECANT_WARP ? parts[lane] : Number(0));
    __syncthreads();
    return value;
}

static __device__ __forceinline__ float decant_block_maximum(float value, float *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    value = decant_warp_maximum(value);
    if (lane == 0)
        parts[warp] = value;
    __syncthreads();
    value = decant_warp_maximum(lane < (int)blockDim.x / DECANT_WARP ? parts[lane] : -INFINITY);
    __syncthreads();
    return value;
}

#endif
