/* The rectified linear unit, element by element, and its gradient, which is 0 at 0. */
#include "kernels/cpu/operations.h"

decant_status decant_cpu_relu(decant_backend *backend, decant_matrix x, decant_error *err)
{
    (void)err;
    float *values = x.data;
    int64_t count = x.rows * x.columns;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, count)) schedule(static)
    for (int64_t i = 0; i < count; i++)
        values[i] = values[i] < 0 ? 0 : values[i]; /* a NaN stays one */
    return DECANT_OK;
}

decant_status decant_cpu_relu_backward(decant_backend *backend, decant_matrix y, decant_matrix dy,
                                       decant_matrix dx, decant_error *err)
{
    (void)err;
    const float *result = y.data, *gradient = dy.data;
    float *target = dx.data;
    int64_t count = y.rows * y.columns;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, count)) schedule(static)
    for (int64_t i = 0; i < count; i++)
        target[i] = result[i] > 0 ? gradient[i] : 0;
    return DECANT_OK;
}
