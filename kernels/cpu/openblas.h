/* OpenBLAS as decant uses it: one thread a call, with the kernels of the processor it runs on. */
#ifndef DECANT_KERNELS_CPU_OPENBLAS_H
#define DECANT_KERNELS_CPU_OPENBLAS_H

/* To be called before the first product. Keeps OpenBLAS from splitting products over threads of its own, and
 * replaces the kernels it chose when those are for a far older processor. */
void decant_openblas_prepare(void);

/* Which processor's kernels it uses, e.g. "SkylakeX"; a constant string. They decide the last bits of every
 * product. */
const char *decant_openblas_kernels(void);

#endif
