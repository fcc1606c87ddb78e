/* The instructions of Ampere's tensor cores, one function each: copies into shared memory that run beside the
 * program, fragments read from there, and products of fragments; and the one layout of tiles in shared memory
 * that makes these reads free of bank conflicts. Shapes and the owner of each element are the instruction set's
 * (PTX ISA, mma.m16n8k16). With g = lane / 4 and t = lane % 4, a lane's registers hold:
 *
 *     a (16×16)   [0]: row g, columns 2t and 2t+1        [1]: the same of row g+8
 *                 [2]: row g, columns 2t+8 and 2t+9      [3]: the same of row g+8
 *
 *     b (16×8)    [0]: rows 2t and 2t+1 of column g      [1]: rows 2t+8 and 2t+9
 *
 *     c (16×8)    [0], [1]: row g, columns 2t and 2t+1   [2], [3]: the same of row g+8 */
#ifndef DECANT_KERNELS_CUDA_TENSOR_CORE_CUH
#define DECANT_KERNELS_CUDA_TENSOR_CORE_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* ---- instructions ---- */

static __device__ __forceinline__ uint32_t decant_shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* Sixteen bytes from device to shared memory; zeros when not valid, and then `source` only has to be some
 * address. */
static __device__ __forceinline__ void decant_copy_16(uint32_t target, const void *source, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0)
                 : "memory");
}

/* The same of an array that is read once, in pieces shorter than a cache line but to its end: the rest of the
 * line comes along to the L2 cache, so that memory is read in whole lines. */
static __device__ __forceinline__ void decant_copy_line_16(uint32_t target, const void *source, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

/* The same of what is the first to make room in the L2 cache. The policy is a constant that no thread keeps in
 * registers. */
static __device__ __forceinline__ void decant_copy_line_once_16(uint32_t target, const void *source, bool valid)
{
    asm volatile("{\n"
                 ".reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, policy;\n"
                 "}" ::"r"(target),
                 "l"(source), "r"(valid ? 16 : 0)
                 : "memory");
}

/* Sixteen bytes of which only the first size_bytes are read; zeros follow. */
static __device__ __forceinline__ void decant_copy_bytes_16(uint32_t target, const void *source, int size_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(size_bytes)
                 : "memory");
}

static __device__ __forceinline__ void decant_copy_bytes_8(uint32_t target, const void *source, int size_bytes)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(source), "r"(size_bytes)
                 : "memory");
}

static __device__ __forceinline__ void decant_copy_4(uint32_t target, const void *source, bool valid)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source), "r"(valid ? 4 : 0)
                 : "memory");
}

/* Closes the group of copies that this thread issued since the last one. */
static __device__ __forceinline__ void decant_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of this thread's groups are under way; a barrier then tells the other threads.
 */
template <int pending> static __device__ __forceinline__ void decant_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Four 8×8 matrices of 16-bit elements; lanes 8i … 8i+7 give the addresses of the rows of matrix i. */
static __device__ __forceinline__ void decant_load_matrices(uint32_t (&matrices)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void decant_load_transposed(uint32_t (&matrices)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

/* c += a b, BF16 operands, F32 sums. */
static __device__ __forceinline__ void decant_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same of F16 operands. */
static __device__ __forceinline__ void decant_mma_halves(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                         uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 2^value to about 2 units in the last place; 0 for −∞. */
static __device__ __forceinline__ float decant_exp2(float value)
{
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

/* Brings the cache line of an address into the L2 cache. */
static __device__ __forceinline__ void decant_prefetch(const void *address)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

/* ---- fragments ---- */

/* Two floats as a pair of BF16, the first in the low half. */
static __device__ __forceinline__ uint32_t decant_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

/* Both of such a word; the low half first. */
static __device__ __forceinline__ float2 decant_unpair(uint32_t pair)
{
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* The 16×16 operand a whose columns 0 … 7 and 8 … 15 are the sums `left` and `right`: both lie in the same
 * lanes. */
static __device__ __forceinline__ void decant_operand_of_sums(uint32_t (&a)[4], const float (&left)[4],
                                                              const float (&right)[4])
{
    a[0] = decant_pair(left[0], left[1]);
    a[1] = decant_pair(left[2], left[3]);
    a[2] = decant_pair(right[0], right[1]);
    a[3] = decant_pair(right[2], right[3]);
}

/* ---- tiles in shared memory ---- */

/* A tile has rows of W elements, W a multiple of 64, cut into chunks of sixteen bytes. Chunk c of row r lies
 * where chunk c ^ (r % 8) would: eight rows of the same chunk then fall into different banks. Tiles begin at
 * multiples of their row's bytes. */
template <int W> static __device__ __forceinline__ uint32_t decant_tile_offset(int row, int chunk)
{
    return (uint32_t)(row * W * 2 + ((chunk ^ (row & 7)) << 4));
}

/* Where the chunk of (first_row + lane_row, first_column + 8 · lane_chunk) lies; first_row is a multiple of 8
 * and first_column one of 16, so that all that depends on the lane is the same for every operand of a tile. */
template <int W>
static __device__ __forceinline__ uint32_t decant_operand_address(uint32_t tile, int first_row,
                                                                  int first_column, int lane_row,
                                                                  int lane_chunk)
{
    return (tile + (uint32_t)(first_row * W * 2) + decant_tile_offset<W>(lane_row, lane_chunk)) ^
           (uint32_t)(first_column * 2);
}

/* The operand a of rows first_row … +15 and columns 16k … +15 of a tile that holds a row by row. */
template <int W>
static __device__ __forceinline__ void decant_operand_a(uint32_t (&a)[4], uint32_t tile, int first_row, int k)
{
    const int lane = threadIdx.x % 32;
    decant_load_matrices(a, decant_operand_address<W>(tile, first_row, 16 * k, lane & 15, lane >> 4));
}

/* The operands b of rows 16k … +15 and columns first_column … +15, two 16×8 ones: {b[0], b[1]} and {b[2],
 * b[3]}, of a tile that holds b column by column: tile row = column of b. */
template <int W>
static __device__ __forceinline__ void decant_operand_b_columns(uint32_t (&b)[4], uint32_t tile,
                                                                int first_column, int k)
{
    const int lane = threadIdx.x % 32;
    decant_load_matrices(b, decant_operand_address<W>(tile, first_column, 16 * k,
                                                      (lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1));
}

/* The same operands of a tile that holds b row by row. */
template <int W>
static __device__ __forceinline__ void decant_operand_b_rows(uint32_t (&b)[4], uint32_t tile, int first_column,
                                                             int k)
{
    const int lane = threadIdx.x % 32;
    decant_load_transposed(b, decant_operand_address<W>(tile, 16 * k, first_column, lane & 15, lane >> 4));
}

#endif
