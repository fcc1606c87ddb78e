/* The validate table of the CPU backend. */
#include "kernels/cpu/operations.h"

/* The CPU's products read columns and values as they are. */
static decant_status prepare(decant_backend *backend, decant_packed_matrix *packed, decant_error *err)
{
    (void)backend;
    (void)packed;
    (void)err;
    return DECANT_OK;
}

const decant_validate_kernels decant_cpu_validate_kernels = {
    .prepare = prepare,
    .packed_linear = decant_cpu_packed_linear,
    .packed_products = decant_cpu_packed_products,
    .compare = decant_cpu_compare,
};
