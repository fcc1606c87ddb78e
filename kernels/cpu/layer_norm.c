/* Layer norm of each row, with scale and bias, and its gradient. Source: Ba, Kiros and Hinton, "Layer
 * Normalization" (2016). */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_math.h"

#include <math.h>

/* centred = row − its mean; returns 1 / sqrt(variance + epsilon). */
static float centre(const float *row, int64_t columns, float epsilon, float *centred)
{
    double sum = 0;
    for (int64_t i = 0; i < columns; i++)
        sum += row[i];
    float mean = (float)(sum / (double)columns);
    for (int64_t i = 0; i < columns; i++)
        centred[i] = row[i] - mean;
    double variance = decant_row_dot(centred, centred, columns) / (double)columns;
    return (float)(1.0 / sqrt(variance + (double)epsilon));
}

decant_status decant_cpu_layer_norm(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                    decant_matrix bias, float epsilon, decant_matrix y, decant_error *err)
{
    int64_t hidden = x.columns;
    void *scratch;
    decant_status status = decant_cpu_scratch(backend, 2 * (size_t)hidden * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    float *w = scratch, *b = w + hidden;
    decant_elements_to_f32(weight.element, weight.data, hidden, w);
    decant_elements_to_f32(bias.element, bias.data, hidden, b);
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, x.rows *hidden)) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        float *out = (float *)y.data + t * hidden;
        float inverse = centre((const float *)x.data + t * hidden, hidden, epsilon, out);
        for (int64_t i = 0; i < hidden; i++)
            out[i] = out[i] * inverse * w[i] + b[i];
    }
    return DECANT_OK;
}

/* With r = 1 / sqrt(variance + epsilon), c = x − mean and g = weight ∘ dy:
 * dx = r (g − mean(g) − c r² mean(g ∘ c)). */
static void backward_row(const float *dy, const float *centred, float inverse, const float *w, int64_t hidden,
                         bool accumulate, float *dx)
{
    double sum = 0, product = 0;
    for (int64_t i = 0; i < hidden; i++) {
        float g = w[i] * dy[i];
        sum += g;
        product += (double)g * centred[i];
    }
    float mean = (float)(sum / (double)hidden);
    float slope = (float)(product / (double)hidden * inverse * inverse);
    for (int64_t i = 0; i < hidden; i++) {
        float gradient = inverse * (w[i] * dy[i] - mean - centred[i] * slope);
        dx[i] = accumulate ? dx[i] + gradient : gradient;
    }
}

decant_status decant_cpu_layer_norm_backward(decant_backend *backend, decant_matrix dy, decant_matrix x,
                                             decant_matrix weight, float epsilon, bool accumulate,
                                             decant_matrix dx, decant_error *err)
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
        float *centred = w + (1 + decant_cpu_thread()) * hidden;
        float inverse = centre((const float *)x.data + t * hidden, hidden, epsilon, centred);
        backward_row((const float *)dy.data + t * hidden, centred, inverse, w, hidden, accumulate,
                     (float *)dx.data + t * hidden);
    }
    return DECANT_OK;
}
