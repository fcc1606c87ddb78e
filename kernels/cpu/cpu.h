/* What the CPU kernels share. Only kernels/cpu includes it. */
#ifndef DECANT_KERNELS_CPU_CPU_H
#define DECANT_KERNELS_CPU_CPU_H

#include "kernels/backend.h"

#include <omp.h>

/* backend->state of a CPU backend. */
typedef struct decant_cpu {
    int threads;               /* OpenMP threads of every parallel region */
    int64_t bytes, peak_bytes; /* held through memory->allocate, and copies made by weights->place */
    void *scratch;             /* see decant_cpu_scratch */
    size_t scratch_bytes;
    void **copies; /* weights that place had to copy; the others are borrowed */
    int64_t copy_count;
    void *grids; /* decant_grid_cells [grid_count]: of every grid that was searched, see grid.h */
    int64_t grid_count;
} decant_cpu;

static inline decant_cpu *decant_cpu_of(decant_backend *backend)
{
    return (decant_cpu *)backend->state;
}

/* Threads for row-by-row and element-wise work: one where it would be done before another has woken up. Results
 * do not depend on it, as every row is computed by one thread either way. */
static inline int decant_cpu_threads_for(decant_backend *backend, int64_t elements)
{
    enum { WORTH_WAKING_FOR = 1 << 20 };
    return elements < WORTH_WAKING_FOR ? 1 : decant_cpu_of(backend)->threads;
}

/* Threads for the product of so many tokens with a matrix of so many weights. To read or decode a weight counts
 * as much as to multiply it with 16 tokens. */
static inline int decant_cpu_threads_for_product(decant_backend *backend, int64_t tokens, int64_t weights)
{
    return decant_cpu_threads_for(backend, (tokens + 16) * weights);
}

/* The calling thread's number in its team: its share of a scratch made for all. */
static inline int64_t decant_cpu_thread(void)
{
    return omp_get_thread_num();
}

/* At least size_bytes of working space, aligned to 64 bytes and of any content, valid until the next call. It
 * grows to the largest size asked for and is freed with the backend; ask before entering a parallel region. */
decant_status decant_cpu_scratch(decant_backend *backend, size_t size_bytes, void **scratch, decant_error *err);

extern const decant_memory_kernels decant_cpu_memory_kernels;     /* backend_cpu.c */
extern const decant_weight_kernels decant_cpu_weight_kernels;     /* backend_cpu.c */
extern const decant_model_kernels decant_cpu_model_kernels;       /* model_cpu.c, from one file an operation */
extern const decant_quantize_kernels decant_cpu_quantize_kernels; /* quantize_cpu.c, likewise */
extern const decant_grid_kernels decant_cpu_grid_kernels;         /* grid_cpu.c, likewise */
extern const decant_validate_kernels decant_cpu_validate_kernels; /* validate_cpu.c, likewise */
extern const decant_step_kernels decant_cpu_step_kernels;         /* step_cpu.c */
extern const decant_recording_kernels decant_cpu_recording_kernels; /* recording_cpu.c */

#endif
