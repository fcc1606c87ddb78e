/* SqueezeLLM's products, through the functions that its Python module calls. */
#include "tests/bench/peers/peers.h"

#include <quant_cuda_kernel.cu>

void squeezellm_multiply(const peer_product *product)
{
    const int rows = product->rows, columns = product->columns, full = product->full_count;
    const bool is_3 = product->bits == 3, is_one = product->tokens == 1;
    const torch::Tensor x = {product->x, {product->tokens, columns}}, y = {product->y, {product->tokens, rows}},
                        codes = {product->codes, {columns / 32 * product->bits, rows}},
                        table = {product->table, {rows, 1 << product->bits}},
                        offsets = {product->offsets, {rows + 1, 1}}, indices = {product->indices},
                        values = {product->values}, full_rows = {product->full_rows, {columns, full}},
                        full_indices = {product->full_indices, {full, 1}};
    if (!product->offsets) {
        auto multiply =
            is_3 ? is_one ? vecquant3matmul_nuq_perchannel_cuda : vecquant3matmul_nuq_perchannel_batched_cuda
            : is_one ? vecquant4matmul_nuq_perchannel_cuda
                     : vecquant4matmul_nuq_perchannel_batched_cuda;
        multiply(x, codes, y, table);
    } else if (full == 0) {
        auto multiply = is_3     ? is_one ? vecquant3matmul_spmv_nuq_perchannel_cuda
                                          : vecquant3matmul_spmv_nuq_perchannel_batched_cuda
                        : is_one ? vecquant4matmul_spmv_nuq_perchannel_cuda
                                 : vecquant4matmul_spmv_nuq_perchannel_batched_cuda;
        multiply(offsets, indices, values, x, y, rows, codes, table);
    } else {
        auto multiply = is_3     ? is_one ? vecquant3matmul_spmv_hybrid_nuq_perchannel_cuda
                                          : vecquant3matmul_spmv_hybrid_nuq_perchannel_batched_cuda
                        : is_one ? vecquant4matmul_spmv_hybrid_nuq_perchannel_cuda
                                 : vecquant4matmul_spmv_hybrid_nuq_perchannel_batched_cuda;
        multiply(offsets, indices, values, x, full_rows, full_indices, y, rows, codes, table);
    }
}
