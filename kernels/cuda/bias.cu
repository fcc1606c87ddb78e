/* The bias of a linear layer, added to every row of its output, and learned positions, whose rows are taken in
 * turn: one block a row. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

template <typename T, typename Bias>
__global__ void __launch_bounds__(THREADS) add_bias_kernel(T *y, const Bias *biases, int bias_rows, int columns)
{
    const Bias *bias = biases + (int64_t)(blockIdx.x % bias_rows) * columns;
    T *row = y + (int64_t)blockIdx.x * columns;
    for (int i = threadIdx.x; i < columns; i += THREADS)
        row[i] = decant_from_float<T>(decant_to_float(row[i]) + decant_to_float(bias[i]));
}

template <typename T, typename Bias>
static void add_bias(cudaStream_t stream, decant_matrix y, decant_matrix bias)
{
    add_bias_kernel<<<(unsigned)y.rows, THREADS, 0, stream>>>((T *)y.data, (const Bias *)bias.data,
                                                              (int)bias.rows, (int)y.columns);
}

decant_status decant_cuda_add_bias(decant_backend *backend, decant_matrix y, decant_matrix bias,
                                   decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    if (y.rows == 0 || y.columns == 0)
        return DECANT_OK;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        if (bias.element == DECANT_F32)
            add_bias<T, float>(stream, y, bias);
        else if (bias.element == DECANT_F16)
            add_bias<T, __half>(stream, y, bias);
        else
            add_bias<T, __nv_bfloat16>(stream, y, bias);
        return decant_cuda_launched(backend, "add_bias", err);
    });
}
