/* The validate table of the CPU backend. */
#include "kernels/cpu/operations.h"

const decant_validate_kernels decant_cpu_validate_kernels = {
    .packed_linear = decant_cpu_packed_linear,
    .compare = decant_cpu_compare,
};
