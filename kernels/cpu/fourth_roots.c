/* Fourth roots of Fisher sums, element by element. */
#include "kernels/cpu/quantize.h"

#include <math.h>

decant_status decant_cpu_fourth_roots(decant_backend *backend, const float *values, int64_t count, float *roots,
                                      decant_error *err)
{
    (void)err;
#pragma omp parallel for num_threads(decant_cpu_of(backend)->threads) schedule(static)
    for (int64_t i = 0; i < count; i++)
        roots[i] = sqrtf(sqrtf(values[i]));
    return DECANT_OK;
}
