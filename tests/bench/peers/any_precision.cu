/* any-precision's products, launched as its main.cu does it. */
#include "tests/bench/peers/peers.h"

#include <matmul.cuh>

template <int tokens, int bits> static void launch(const peer_product *product, cudaStream_t stream)
{
    const int block_rows =
        (tokens == 1 ? 1 : 4) * num_rows; /* num_rows: matmul.cuh's, of a block for one token */
    matmul_kbit_32<tokens, bits, false><<<product->rows / block_rows, dim3(32, num_rows), 0, stream>>>(
        (const __half *)product->x, (const uint32_t *)product->codes, tokens, product->rows, product->columns,
        (const __half *)product->table, (__half *)product->y);
}

template <int tokens> static void launch(const peer_product *product, cudaStream_t stream)
{
    if (product->bits == 3)
        launch<tokens, 3>(product, stream);
    else
        launch<tokens, 4>(product, stream);
}

bool any_precision_multiply(const peer_product *product, cudaStream_t stream)
{
    switch (product->tokens) {
    case 1:
        launch<1>(product, stream);
        return true;
    case 2:
        launch<2>(product, stream);
        return true;
    case 4:
        launch<4>(product, stream);
        return true;
    case 8:
        launch<8>(product, stream);
        return true;
    default: /* above eight it decodes the matrix and multiplies by cuBLAS */
        return false;
    }
}
