/* Products of fragments on sparse tensor cores: of every four terms of a row of the operand a, two are there,
 * and the metadata says which. Shapes and the owner of each element are the instruction set's (PTX ISA,
 * mma.sp.m16n8k32). With g = lane / 4 and t = lane % 4, a lane's registers hold:
 *
 *     a (16×32)   [0]: of row g, the two of terms 4t … 4t + 3     [1]: the same of row g + 8
 *                 [2]: of row g, those of 16 + 4t … 19 + 4t       [3]: the same of row g + 8
 *
 *     b (32×8)    [i]: terms 8i + 2t and 8i + 2t + 1 of column g
 *
 *     c (16×8)    [0], [1]: row g, columns 2t and 2t + 1          [2], [3]: the same of row g + 8
 *
 * Metadata are four bits for every four terms, the numbers of the first and of the second that is there. Lane
 * 4g has those of terms 0 … 15, lane 4g + 1 those of terms 16 … 31: row g in its lower half, row g + 8 in the
 * upper. Here they are the same for all terms. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_CORE_CUH
#define DECANT_KERNELS_CUDA_SPARSE_CORE_CUH

#include <cuda_runtime.h>
#include <stdint.h>

/* Terms 0 and 1 of every four, or 2 and 3, of all rows; or the one for rows 0 … 7 and the other for 8 … 15. */
enum : uint32_t {
    DECANT_LOWER_TERMS = 0x44444444u,
    DECANT_UPPER_TERMS = 0xeeeeeeeeu,
    DECANT_BOTH_TERMS = 0xeeee4444u
};

/* c += a b, F16 operands, F32 sums. */
static __device__ __forceinline__ void decant_sparse_mma(float (&c)[4], const uint4 &a, const uint32_t (&b)[4],
                                                         uint32_t metadata)
{
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0x0;"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}

#endif
