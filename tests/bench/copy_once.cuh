/* A copy by the copy engine of what is the first to make room in the L2 cache, for benches of what copying
 * takes. */
#ifndef DECANT_TESTS_BENCH_COPY_ONCE_CUH
#define DECANT_TESTS_BENCH_COPY_ONCE_CUH

#include <stdint.h>

/* As decant_copy_bytes. */
[[maybe_unused]] static __device__ __forceinline__ void copy_once(uint32_t target, const void *source,
                                                                  uint32_t size_bytes, uint32_t barrier)
{
    asm volatile("{\n"
                 ".reg .b64 policy;\n"
                 "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
                 "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], policy;\n"
                 "}" ::"r"(target),
                 "l"(source), "r"(size_bytes), "r"(barrier)
                 : "memory");
}

#endif
