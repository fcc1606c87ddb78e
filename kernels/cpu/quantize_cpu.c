/* The quantize table of the CPU backend. */
#include "kernels/cpu/quantize.h"

const decant_quantize_kernels decant_cpu_quantize_kernels = {
    .select_sparse = decant_cpu_select_sparse,
    .weigh_errors = decant_cpu_weigh_errors,
    .fit_levels = decant_cpu_fit_levels,
    .measure = decant_cpu_measure,
    .encode = decant_cpu_encode,
    .guide = decant_cpu_guide,
};
