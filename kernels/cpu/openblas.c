/* A release of OpenBLAS knows the processors of its day. On an x86 processor that it does not know it falls
 * back to kernels for "Prescott", a Pentium 4 of 2004: right, but three to five times slower than what the
 * processor can do (Debian 12's 0.3.21 does so on Intel's Emerald Rapids). The documented remedy is to set
 * OPENBLAS_CORETYPE before the program starts; this does the same from inside, by letting OpenBLAS choose again
 * with that variable set. A user's own setting is never touched. */
#include "kernels/cpu/openblas.h"

#include <cblas.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* OpenBLAS's own start and end of its choice of kernels, exported by builds that hold several (DYNAMIC_ARCH)
 * though not declared in its header; NULL in others. */
extern void gotoblas_dynamic_init(void) __attribute__((weak));
extern void gotoblas_dynamic_quit(void) __attribute__((weak));

/* The newest kernels that this processor can run and that every release with the fallback has; NULL: nothing
 * better. */
static const char *better_kernels(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "Haswell";
#endif
    return NULL;
}

void decant_openblas_prepare(void)
{
    openblas_set_num_threads(1);
    const char *better = better_kernels();
    if (!better || !gotoblas_dynamic_init || !gotoblas_dynamic_quit || getenv("OPENBLAS_CORETYPE") ||
        strcmp(openblas_get_corename(), "Prescott") != 0)
        return;
    setenv("OPENBLAS_CORETYPE", better, 1);
    gotoblas_dynamic_quit();
    gotoblas_dynamic_init();
}

const char *decant_openblas_kernels(void)
{
    return openblas_get_corename();
}
