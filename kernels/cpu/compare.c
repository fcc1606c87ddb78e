/* What two models' logits say about the same sequence. Each row's figures are kept, then added up in row order.
 *
 * With a and b the logits and A, B their log-sum-exp:  KL(p ‖ q) = Σ p (a − b) − A + B, p = e^(a − A). */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/row_math.h"

#include <math.h>

typedef struct row_figures {
    double loss_original, loss_quantized, divergence;
    int64_t same_top;
} row_figures;

static double log_sum_exp(const float *logits, int64_t n, float maximum, float *exponentials, double *sum)
{
    *sum = decant_row_exponentials(logits, n, maximum, exponentials);
    return maximum + log(*sum);
}

static row_figures compare_row(const float *original, const float *quantized, int64_t vocabulary,
                               int32_t target, float *scratch)
{
    int64_t top_original = decant_row_maximum_index(original, vocabulary);
    int64_t top_quantized = decant_row_maximum_index(quantized, vocabulary);
    double sum_quantized, sum_original;
    double b = log_sum_exp(quantized, vocabulary, quantized[top_quantized], scratch, &sum_quantized);
    double a = log_sum_exp(original, vocabulary, original[top_original], scratch, &sum_original);
    float *difference = scratch + vocabulary;
    for (int64_t i = 0; i < vocabulary; i++)
        difference[i] = original[i] - quantized[i];
    return (row_figures){
        .loss_original = a - original[target],
        .loss_quantized = b - quantized[target],
        .divergence = decant_row_dot(scratch, difference, vocabulary) / sum_original - a + b,
        .same_top = top_original == top_quantized,
    };
}

decant_status decant_cpu_compare(decant_backend *backend, decant_matrix original, decant_matrix quantized,
                                 const int32_t *tokens, decant_comparison *comparison, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    int64_t targets = original.rows - 1, vocabulary = original.columns;
    void *scratch;
    size_t figures_bytes = (size_t)targets * sizeof(row_figures);
    size_t rows_bytes = (size_t)threads * 2 * (size_t)vocabulary * sizeof(float);
    decant_status status = decant_cpu_scratch(backend, figures_bytes + rows_bytes, &scratch, err);
    if (status != DECANT_OK)
        return status;
    row_figures *figures = scratch;
    float *rows = (float *)(figures + targets);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < targets; t++)
        figures[t] = compare_row((const float *)original.data + t * vocabulary,
                                 (const float *)quantized.data + t * vocabulary, vocabulary, tokens[t + 1],
                                 rows + decant_cpu_thread() * 2 * vocabulary);
    *comparison = (decant_comparison){.targets = targets};
    for (int64_t t = 0; t < targets; t++) {
        comparison->loss_original += figures[t].loss_original;
        comparison->loss_quantized += figures[t].loss_quantized;
        comparison->divergence += figures[t].divergence;
        comparison->same_top += figures[t].same_top;
    }
    return DECANT_OK;
}
