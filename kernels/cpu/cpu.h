/* What the CPU kernels share. Only kernels/cpu includes it. */
#ifndef DECANT_KERNELS_CPU_CPU_H
#define DECANT_KERNELS_CPU_CPU_H

#include "kernels/backend.h"

/* backend->state of a CPU backend. */
typedef struct decant_cpu {
    int threads;               /* OpenMP threads of every parallel region */
    int64_t bytes, peak_bytes; /* held through memory->allocate */
} decant_cpu;

static inline decant_cpu *decant_cpu_of(decant_backend *backend)
{
    return (decant_cpu *)backend->state;
}

extern const decant_memory_kernels decant_cpu_memory_kernels;     /* backend_cpu.c */
extern const decant_weight_kernels decant_cpu_weight_kernels;     /* backend_cpu.c */
extern const decant_model_kernels decant_cpu_model_kernels;       /* model_cpu.c, from one file an operation */
extern const decant_quantize_kernels decant_cpu_quantize_kernels; /* quantize_cpu.c, likewise */
extern const decant_validate_kernels decant_cpu_validate_kernels; /* validate_cpu.c, likewise */

#endif
