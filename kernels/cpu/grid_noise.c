/* Gaussian noise of a given size on a weight. A pair of columns 2k, 2k + 1 takes the two numbers that the
 * Box–Muller transform makes of the random bits of (seed, row, k). */
#include "kernels/cpu/grid.h"

#include "kernels/cpu/quantize.h"
#include "kernels/gaussian_pair.h"

#include <math.h>

/* Σ w² of a row, in four partial sums. */
static double row_norm(const float *row, int64_t columns)
{
    double sums[4] = {0};
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4)
        for (int i = 0; i < 4; i++)
            sums[i] += (double)row[j + i] * (double)row[j + i];
    for (; j < columns; j++)
        sums[0] += (double)row[j] * (double)row[j];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

static void add_to_row(float *row, int64_t columns, float size, uint64_t seed, int64_t number)
{
    for (int64_t j = 0; j < columns; j += 2) {
        const decant_gaussian_pair pair = decant_gaussian_pair_at(seed, number, j / 2);
        row[j] += size * pair.first;
        if (j + 1 < columns)
            row[j + 1] += size * pair.second;
    }
}

decant_status decant_cpu_add_noise(decant_backend *backend, decant_matrix weight, double t, uint64_t seed,
                                   decant_matrix noisy, decant_error *err)
{
    if (noisy.rows != weight.rows || noisy.columns != weight.columns || noisy.element != weight.element)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the noisy weight has another shape or type");
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    const int threads = decant_cpu_of(backend)->threads;
    const int64_t rows = weight.rows, columns = weight.columns;
    void *scratch;
    decant_status status = decant_cpu_scratch(
        backend, (size_t)rows * sizeof(double) + (size_t)(threads * columns) * sizeof(float), &scratch, err);
    if (status != DECANT_OK)
        return status;
    double *norms = scratch, norm = 0;
    float *buffers = (float *)(norms + rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float *own = buffers + decant_cpu_thread() * columns;
        decant_cpu_read_row(weight, row, 0, columns, own);
        norms[row] = row_norm(own, columns);
    }
    for (int64_t row = 0; row < rows; row++)
        norm += norms[row];
    const float size = (float)(t * sqrt(norm / ((double)rows * (double)columns)));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float *own = buffers + decant_cpu_thread() * columns;
        decant_cpu_read_row(weight, row, 0, columns, own);
        add_to_row(own, columns, size, seed, row);
        decant_elements_from_f32(noisy.element, own, columns, decant_matrix_rows(noisy, row, 1).data);
    }
    return DECANT_OK;
}
