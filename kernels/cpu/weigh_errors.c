/* What each weight's error costs, F (w − ŵ)², in a packed matrix without a sparse part. Rows are independent.
 */
#include "base/element.h"
#include "kernels/cpu/quantize.h"

enum { CHUNK = 256 }; /* columns at a time; whole words of the planes */

static int code_at(const uint32_t *planes, int bits, int64_t words, int64_t column)
{
    int code = 0;
    for (int b = 0; b < bits; b++)
        code |= (int)(planes[b * words + column / 32] >> column % 32 & 1) << b;
    return code;
}

static void weigh_row(decant_matrix weight, const float *fisher, const decant_packed_matrix *packed,
                      int64_t row, float *cost)
{
    const int64_t n = weight.columns, words = (n + 31) / 32;
    const uint32_t *planes = packed->planes + row * packed->bits * words;
    const uint16_t *levels = packed->levels + (row << packed->bits);
    for (int64_t first = 0; first < n; first += CHUNK) {
        float values[CHUNK];
        int64_t count = n - first < CHUNK ? n - first : CHUNK;
        decant_cpu_read_row(weight, row, first, count, values);
        for (int64_t j = 0; j < count; j++) {
            float miss = values[j] - decant_f16_to_f32(levels[code_at(planes, packed->bits, words, first + j)]);
            float weighted = fisher ? fisher[row * n + first + j] * miss : miss;
            cost[row * n + first + j] = weighted * miss;
        }
    }
}

decant_status decant_cpu_weigh_errors(decant_backend *backend, decant_matrix weight, const float *fisher,
                                      const decant_packed_matrix *packed, float *cost, decant_error *err)
{
    if (weight.rows != packed->rows || weight.columns != packed->columns || packed->sparse.count > 0)
        return DECANT_ERROR(err, DECANT_ERROR_BUG,
                            "errors are weighed of a dense matrix of the weight's shape");
#pragma omp parallel for num_threads(decant_cpu_of(backend)->threads) schedule(static)
    for (int64_t row = 0; row < weight.rows; row++)
        weigh_row(weight, fisher, packed, row, cost);
    return DECANT_OK;
}
