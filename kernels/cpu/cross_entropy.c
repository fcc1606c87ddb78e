/* Mean cross-entropy of next-token prediction, and its gradient (softmax − one-hot) / (T − 1). Each row's loss
 * is kept, then added up in row order. */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_math.h"

#include <math.h>
#include <string.h>

/* The loss of one row; the row becomes its gradient times `share` when share is not zero. */
static double row_loss(float *logits, int64_t vocabulary, int32_t target, float share, float *exponentials)
{
    float maximum = decant_row_maximum(logits, vocabulary);
    double target_logit = (double)logits[target] - maximum;
    float *destination = share != 0 ? logits : exponentials;
    double sum = decant_row_exponentials(logits, vocabulary, maximum, destination);
    if (share != 0) {
        float scale = (float)(share / sum);
        for (int64_t i = 0; i < vocabulary; i++)
            logits[i] *= scale;
        logits[target] -= share;
    }
    return log(sum) - target_logit;
}

decant_status decant_cpu_cross_entropy(decant_backend *backend, decant_matrix logits, const int32_t *tokens,
                                       bool gradient, double *loss, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    int64_t targets = logits.rows - 1, vocabulary = logits.columns;
    void *scratch;
    size_t losses_bytes = (size_t)targets * sizeof(double);
    size_t rows_bytes = (size_t)threads * (size_t)vocabulary * sizeof(float);
    decant_status status = decant_cpu_scratch(backend, losses_bytes + rows_bytes, &scratch, err);
    if (status != DECANT_OK)
        return status;
    double *losses = scratch;
    float *exponentials = (float *)(losses + targets);
    float share = gradient ? (float)(1.0 / (double)targets) : 0.0f;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < targets; t++)
        losses[t] = row_loss((float *)logits.data + t * vocabulary, vocabulary, tokens[t + 1], share,
                             exponentials + decant_cpu_thread() * vocabulary);
    if (gradient)
        memset((float *)logits.data + targets * vocabulary, 0, (size_t)vocabulary * sizeof(float));
    double sum = 0;
    for (int64_t t = 0; t < targets; t++)
        sum += losses[t];
    *loss = sum / (double)targets;
    return DECANT_OK;
}
