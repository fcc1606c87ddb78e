/* Products of eight-bit integers on Hopper's tensor cores (hopper.cuh): sums += a bᵀ with 32 terms, exact in 32
 * bits. The operand a is in registers, 16 rows a warp; b is in shared memory, as pieces of sixteen terms of
 * eight columns (token_digits.h), N / 8 pieces of the first sixteen terms before those of the others.
 *
 * With g = lane / 4 and t = lane % 4 (PTX ISA, operands of wgmma.m64nNk32):
 *
 *     a           [0]: row g, terms 4t … 4t + 3          [1]: the same of row g + 8
 *                 [2]: row g, terms 16 + 4t … + 3        [3]: the same of row g + 8
 *     sums        [4 j + 2 h + e]: row g + 8 h, column 8 j + 2 t + e */
#ifndef DECANT_KERNELS_CUDA_INTEGER_CORE_CUH
#define DECANT_KERNELS_CUDA_INTEGER_CORE_CUH

#include "kernels/cuda/hopper.cuh"

enum { DECANT_PIECE_BYTES = 128 };

template <int N> static __device__ __forceinline__ uint64_t decant_integer_descriptor(uint32_t address)
{
    const uint64_t next_terms = N / 8 * DECANT_PIECE_BYTES, next_columns = DECANT_PIECE_BYTES;
    return (uint64_t)((address & 0x3ffffu) >> 4) | (next_terms >> 4) << 16 | (next_columns >> 4) << 32;
}

#define DECANT_SUMS_8(i)                                                                                       \
    "+r"(sums[i]), "+r"(sums[i + 1]), "+r"(sums[i + 2]), "+r"(sums[i + 3]), "+r"(sums[i + 4]),                 \
        "+r"(sums[i + 5]), "+r"(sums[i + 6]), "+r"(sums[i + 7])

/* Starts sums += a bᵀ, a of the four warps' 64 rows. */
static __device__ __forceinline__ void decant_integer_start(int (&sums)[8], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k32.s32.s8.s8 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, 1;"
                 : DECANT_SUMS_8(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void decant_integer_start(int (&sums)[16], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k32.s32.s8.s8 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, 1;"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

static __device__ __forceinline__ void decant_integer_start(int (&sums)[32], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, 1;"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8), DECANT_SUMS_8(16), DECANT_SUMS_8(24)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef DECANT_SUMS_8

#endif
