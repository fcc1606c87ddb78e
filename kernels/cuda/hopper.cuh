/* Instructions that only Hopper has, one function each: barriers in shared memory that count arriving bytes,
 * tiles that the tensor memory accelerator brings, and products of a warpgroup (four warps whose first is a
 * multiple of four) with both operands in shared memory. They assemble for sm_90a alone; other targets may
 * include this but call nothing of it. */
#ifndef DECANT_KERNELS_CUDA_HOPPER_CUH
#define DECANT_KERNELS_CUDA_HOPPER_CUH

#include <cuda.h> /* CUtensorMap */
#include <cuda_runtime.h>
#include <stdint.h>

/* Other devices get kernels without a body, which are never launched. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool DECANT_HAS_WGMMA = true;
#else
constexpr bool DECANT_HAS_WGMMA = false;
#endif

enum { DECANT_WARPGROUP = 128 }; /* threads */

/* ---- barriers; addresses are those of shared memory ---- */

static __device__ __forceinline__ void decant_barrier_create(uint32_t barrier, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes new barriers, which lie in shared memory, known to the tensor memory accelerator; a fence of all memory
 * would take longer. */
static __device__ __forceinline__ void decant_barrier_publish(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* What the thread has done in shared memory comes before what the copy engine does there once threads have met
 * at a barrier. */
static __device__ __forceinline__ void decant_leave_shared(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void decant_barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives and announces bytes that have yet to come before the phase is complete. */
static __device__ __forceinline__ void decant_barrier_expect(uint32_t barrier, uint32_t size_bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(size_bytes)
                 : "memory");
}

/* One look at whether the phase of this parity is complete; a new barrier counts as having completed one of
 * parity 1. */
static __device__ __forceinline__ bool decant_barrier_passed(uint32_t barrier, uint32_t parity)
{
    uint32_t passed;
    asm volatile("{\n"
                 ".reg .pred passed;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, passed;\n"
                 "}"
                 : "=r"(passed)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return passed != 0;
}

static __device__ __forceinline__ void decant_barrier_wait(uint32_t barrier, uint32_t parity)
{
    while (!decant_barrier_passed(barrier, parity)) {
    }
}

/* ---- copies ---- */

/* The box of a three-dimensional array whose first element is at (plane, row, column); what lies outside the
 * array is zero. The bytes are counted by the barrier. */
static __device__ __forceinline__ void decant_copy_boxes(uint32_t target, const CUtensorMap *map, int column,
                                                         int row, int plane, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
                 "%3, %4}], [%5];" ::"r"(target),
                 "l"(map), "r"(column), "r"(row), "r"(plane), "r"(barrier)
                 : "memory");
}

/* The same of what is the first to make room in the L2 cache. */
static __device__ __forceinline__ void decant_copy_boxes_once(uint32_t target, const CUtensorMap *map,
                                                              int column, int row, int plane, uint32_t barrier)
{
    asm volatile("{\n"
                 ".reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3, %4}], [%5], policy;\n"
                 "}" ::"r"(target),
                 "l"(map), "r"(column), "r"(row), "r"(plane), "r"(barrier)
                 : "memory");
}

/* size_bytes, a multiple of 16, from and to addresses that are multiples of 16. */
static __device__ __forceinline__ void decant_copy_bytes(uint32_t target, const void *source,
                                                         uint32_t size_bytes, uint32_t barrier)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
        "l"(source), "r"(size_bytes), "r"(barrier)
        : "memory");
}

/* Asks for size_bytes, a multiple of 16, from an address that is one, in the L2 cache. */
static __device__ __forceinline__ void decant_prefetch_bytes(const void *source, uint32_t size_bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(source), "r"(size_bytes) : "memory");
}

/* ---- clusters ---- */

/* Waits for all threads of all blocks of the cluster that have not ended; what they did before is then visible.
 */
static __device__ __forceinline__ void decant_cluster_barrier(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

/* The same in two steps: this thread is here, and all are. */
static __device__ __forceinline__ void decant_cluster_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

static __device__ __forceinline__ void decant_cluster_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Four floats from what is address `address` in the shared memory of a block of the cluster. */
static __device__ __forceinline__ float4 decant_load_of_block(uint32_t address, int block)
{
    float4 four;
    asm volatile("{\n"
                 ".reg .u32 there;\n"
                 "mapa.shared::cluster.u32 there, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
                 "}"
                 : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
                 : "r"(address), "r"(block)
                 : "memory");
    return four;
}

/* ---- registers ---- */

/* What a thread of this warpgroup may use from here on; all its threads call it. */
template <int count> static __device__ __forceinline__ void decant_registers_raise(void)
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count> static __device__ __forceinline__ void decant_registers_lower(void)
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

/* ---- products ---- */

/* Operands in shared memory lie in pieces of 64 BF16 by 8, swizzled over 128 bytes. Two descriptors of them,
 * with the fields of the PTX ISA's matrix descriptor for wgmma.
 *
 * Here the rows or columns (m or n) lie side by side; pieces of further terms are terms_bytes apart, those of
 * further rows or columns across_bytes. For this layout the leading offset is the one across. */
static __device__ __forceinline__ uint64_t decant_operand_descriptor(uint32_t address, uint32_t across_bytes,
                                                                     uint32_t terms_bytes)
{
    const uint64_t swizzle_128_bytes = (uint64_t)1 << 62;
    return (uint64_t)((address & 0x3ffffu) >> 4) | (uint64_t)(across_bytes >> 4) << 16 |
           (uint64_t)(terms_bytes >> 4) << 32 | swizzle_128_bytes;
}

/* Here the terms lie side by side, 64 of them; the pieces of further rows or columns follow without a gap. The
 * address moves by 32 bytes for the next 16 terms of a piece. */
static __device__ __forceinline__ uint64_t decant_rows_descriptor(uint32_t address)
{
    const uint32_t piece_bytes = 1024; /* 8 rows of 128 bytes */
    return decant_operand_descriptor(address, 16, piece_bytes);
}

/* Before the first product, and after the accumulators were touched. */
static __device__ __forceinline__ void decant_products_begin(void)
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void decant_products_commit(void)
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int pending> static __device__ __forceinline__ void decant_products_wait(void)
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* Ties the sums to this place of the program: nothing of them is read earlier or kept from before. */
template <int N> static __device__ __forceinline__ void decant_settle(float (&sums)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(sums[i])::"memory");
}

#define DECANT_SUMS_8(i)                                                                                       \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]),                 \
        "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])

/* Products of 16 terms over a warpgroup: 64 rows by N columns. With g = lane / 4, t = lane % 4 and w the warp's
 * place in its group, element 4 j + 2 h + e of sums is row 16 w + g + 8 h and column 8 j + 2 t + e. */

/* sums = a bᵀ, or += when `add`, both with the terms side by side. */
static __device__ __forceinline__ void decant_multiply_rows(float (&sums)[64], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
                 " {%0, %1, %2, %3, %4, %5, %6, %7, "
                 " %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, "
                 " %24, %25, %26, %27, %28, %29, %30, %31, "
                 " %32, %33, %34, %35, %36, %37, %38, %39, "
                 " %40, %41, %42, %43, %44, %45, %46, %47, "
                 " %48, %49, %50, %51, %52, %53, %54, %55, "
                 " %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, add, 1, 1, 0, 0;\n"
                 "}"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8), DECANT_SUMS_8(16), DECANT_SUMS_8(24), DECANT_SUMS_8(32),
                   DECANT_SUMS_8(40), DECANT_SUMS_8(48), DECANT_SUMS_8(56)
                 : "l"(a), "l"(b), "r"((int)add));
}

static __device__ __forceinline__ void decant_multiply_rows(float (&sums)[32], uint64_t a, uint64_t b, bool add)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"
                 " {%0, %1, %2, %3, %4, %5, %6, %7, "
                 " %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, "
                 " %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "%32, %33, add, 1, 1, 0, 0;\n"
                 "}"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8), DECANT_SUMS_8(16), DECANT_SUMS_8(24)
                 : "l"(a), "l"(b), "r"((int)add));
}

/* sums += a b: a from four registers as decant_operand_of_sums fills them, b with its columns side by side. */
static __device__ __forceinline__ void decant_multiply_registers(float (&sums)[64], const uint32_t *a,
                                                                 uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16"
                 " {%0, %1, %2, %3, %4, %5, %6, %7, "
                 " %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, "
                 " %24, %25, %26, %27, %28, %29, %30, %31, "
                 " %32, %33, %34, %35, %36, %37, %38, %39, "
                 " %40, %41, %42, %43, %44, %45, %46, %47, "
                 " %48, %49, %50, %51, %52, %53, %54, %55, "
                 " %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, add, 1, 1, 1;\n"
                 "}"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8), DECANT_SUMS_8(16), DECANT_SUMS_8(24), DECANT_SUMS_8(32),
                   DECANT_SUMS_8(40), DECANT_SUMS_8(48), DECANT_SUMS_8(56)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

static __device__ __forceinline__ void decant_multiply_registers(float (&sums)[32], const uint32_t *a,
                                                                 uint64_t b)
{
    asm volatile("{\n"
                 ".reg .pred add;\n"
                 "setp.ne.b32 add, %37, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"
                 " {%0, %1, %2, %3, %4, %5, %6, %7, "
                 " %8, %9, %10, %11, %12, %13, %14, %15, "
                 " %16, %17, %18, %19, %20, %21, %22, %23, "
                 " %24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, add, 1, 1, 1;\n"
                 "}"
                 : DECANT_SUMS_8(0), DECANT_SUMS_8(8), DECANT_SUMS_8(16), DECANT_SUMS_8(24)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
}

#undef DECANT_SUMS_8

#endif
