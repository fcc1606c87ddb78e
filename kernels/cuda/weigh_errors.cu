/* What each weight's error costs, F (w − ŵ)², in a packed matrix without a sparse part. A block takes a row, a
 * warp 32 columns at a time: the word of a plane is the same for all of its lanes. */
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/weight_bits.cuh"

enum { MOST_LEVELS = 1 << DECANT_BITS_MAXIMUM, THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    weigh_errors_kernel(decant_cuda_rows rows, decant_packed_matrix packed, float *cost)
{
    __shared__ float levels[MOST_LEVELS];
    const int bits = packed.bits, words = (rows.columns + 31) / 32;
    const int64_t row = blockIdx.x, start = row * rows.columns;
    for (int i = (int)threadIdx.x; i < 1 << bits; i += THREADS)
        levels[i] = __half2float(__ushort_as_half(packed.levels[(row << bits) + i]));
    __syncthreads();
    const uint32_t *planes = packed.planes + row * bits * words;
    for (int column = (int)threadIdx.x; column < rows.columns; column += THREADS) {
        int code = 0;
        for (int b = 0; b < bits; b++)
            code |= (int)(planes[(int64_t)b * words + column / 32] >> column % 32 & 1u) << b;
        const float miss = weight_at(rows.weights, rows.element, start + column) - levels[code];
        const float weighted = rows.fisher ? rows.fisher[start + column] * miss : miss;
        cost[start + column] = weighted * miss;
    }
}

decant_status decant_cuda_weigh_errors(decant_backend *backend, decant_matrix weight, const float *fisher,
                                       const decant_packed_matrix *packed, float *cost, decant_error *err)
{
    if (weight.rows != packed->rows || weight.columns != packed->columns || packed->sparse.count > 0)
        return DECANT_ERROR(err, DECANT_ERROR_BUG,
                            "errors are weighed of a dense matrix of the weight's shape");
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    const decant_cuda_rows rows = decant_cuda_rows_of(weight, fisher, NULL, 0, weight.rows);
    weigh_errors_kernel<<<(unsigned)weight.rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(rows, *packed,
                                                                                                cost);
    return decant_cuda_launched(backend, "weighing errors", err);
}
