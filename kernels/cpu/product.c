/* One-thread products through OpenBLAS, and the cutting of large ones. */
#include "kernels/cpu/product.h"

#include <cblas.h>

void decant_product_compute(const decant_product *product)
{
    if (product->m == 0 || product->n == 0)
        return;
    cblas_sgemm(CblasRowMajor, product->a_transposed ? CblasTrans : CblasNoTrans,
                product->b_transposed ? CblasTrans : CblasNoTrans, (blasint)product->m, (blasint)product->n,
                (blasint)product->k, product->scale, product->a, (blasint)product->a_stride, product->b,
                (blasint)product->b_stride, product->accumulate ? 1.0f : 0.0f, product->c,
                (blasint)product->c_stride);
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

decant_tiles decant_tiles_cut(int64_t extent, int64_t largest)
{
    enum { FEW_TILES = 8, TILE_STEP = 16 };
    int64_t count = divide_up(extent, largest);
    if (count < FEW_TILES && count % 2 == 1)
        count++;
    int64_t size = divide_up(divide_up(extent, count > 0 ? count : 1), TILE_STEP) * TILE_STEP;
    return (decant_tiles){extent, size, size > 0 ? divide_up(extent, size) : 0};
}

decant_weight_block decant_weight_block_read(decant_matrix weight, int64_t first_row, int64_t rows,
                                             int64_t first_column, int64_t columns, float *scratch)
{
    size_t element_bytes = decant_element_bytes(weight.element);
    const char *corner =
        (const char *)weight.data + (size_t)(first_row * weight.columns + first_column) * element_bytes;
    if (weight.element == DECANT_F32)
        return (decant_weight_block){(const float *)(const void *)corner, weight.columns};
    for (int64_t row = 0; row < rows; row++)
        decant_elements_to_f32(weight.element, corner + (size_t)(row * weight.columns) * element_bytes, columns,
                               scratch + row * columns);
    return (decant_weight_block){scratch, columns};
}
