/* Rotary position embedding on the two halves of each head, as Hugging Face stores LLaMA's weights.
 * Source: Su et al., "RoFormer" (2021). */
#include "kernels/cpu/operations.h"

decant_status decant_cpu_rotary(decant_backend *backend, decant_matrix x, int heads, const float *cosines,
                                const float *sines, bool inverse, decant_error *err)
{
    (void)err;
    int64_t half = x.columns / heads / 2;
    float direction = inverse ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, x.rows *x.columns)) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        const float *cosine = cosines + t * half, *sine = sines + t * half;
        for (int head = 0; head < heads; head++) {
            float *first = (float *)x.data + t * x.columns + head * 2 * half;
            float *second = first + half;
            for (int64_t i = 0; i < half; i++) {
                float a = first[i], b = second[i], s = direction * sine[i];
                first[i] = a * cosine[i] - b * s;
                second[i] = b * cosine[i] + a * s;
            }
        }
    }
    return DECANT_OK;
}
