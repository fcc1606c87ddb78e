/* Root-mean-square norm of each row, and its gradient. Source: Zhang and Sennrich, "Root Mean Square Layer
 * Normalization" (2019), as LLaMA uses it: no mean, no bias. */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_math.h"

#include <math.h>

static decant_status weight_as_floats(decant_backend *backend, decant_matrix weight, const float **floats,
                                      decant_error *err)
{
    if (weight.element == DECANT_F32) {
        *floats = weight.data;
        return DECANT_OK;
    }
    void *scratch;
    decant_status status = decant_cpu_scratch(backend, (size_t)weight.columns * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    decant_elements_to_f32(weight.element, weight.data, weight.columns, scratch);
    *floats = scratch;
    return DECANT_OK;
}

decant_status decant_cpu_rms_norm(decant_backend *backend, decant_matrix x, decant_matrix weight, float epsilon,
                                  decant_matrix y, float *inverse_rms, decant_error *err)
{
    const float *w;
    decant_status status = weight_as_floats(backend, weight, &w, err);
    if (status != DECANT_OK)
        return status;
    int64_t hidden = x.columns;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, x.rows *hidden)) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        const float *row = (const float *)x.data + t * hidden;
        float *out = (float *)y.data + t * hidden;
        double mean_square = decant_row_dot(row, row, hidden) / (double)hidden;
        float inverse = (float)(1.0 / sqrt(mean_square + (double)epsilon));
        for (int64_t i = 0; i < hidden; i++)
            out[i] = row[i] * inverse * w[i];
        inverse_rms[t] = inverse;
    }
    return DECANT_OK;
}

/* With r = 1/rms and g = weight ∘ dy:  dx += r g − x r³ mean(g ∘ x). */
decant_status decant_cpu_rms_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                           decant_matrix weight, const float *inverse_rms, decant_matrix dx,
                                           decant_error *err)
{
    int64_t hidden = x.columns;
    const int threads = decant_cpu_threads_for(backend, x.rows * hidden);
    void *scratch;
    size_t scratch_floats = (size_t)hidden * (size_t)(threads + 1);
    decant_status status = decant_cpu_scratch(backend, scratch_floats * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    float *w = scratch;
    decant_elements_to_f32(weight.element, weight.data, hidden, w);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        const float *row = (const float *)x.data + t * hidden;
        const float *dy_row = (const float *)dy.data + t * hidden;
        float *dx_row = (float *)dx.data + t * hidden;
        float *g = w + (1 + decant_cpu_thread()) * hidden;
        for (int64_t i = 0; i < hidden; i++)
            g[i] = w[i] * dy_row[i];
        float inverse = inverse_rms[t];
        double mean = decant_row_dot(g, row, hidden) / (double)hidden;
        float slope = (float)(mean * inverse * inverse * inverse);
        for (int64_t i = 0; i < hidden; i++)
            dx_row[i] += g[i] * inverse - row[i] * slope;
    }
    return DECANT_OK;
}
