/* The Hessians of a linear layer that guided quantization takes: H_k += xᵀ diag(s_k) x, where s_k[t] is the
 * mean over the group's output channels of dy[t]². Both factors of the product are x scaled by sqrt(s_k).
 * Source: GuidedQuant (arXiv 2505.07004), section 3.
 *
 * Tiles above the diagonal are computed, each by one thread, and transposed to below it: H is symmetric to the
 * last bit, and every element gets its micro-batches in the order of the calls. */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"

#include <math.h>

enum { TILE = 256 };

/* scaled[t, :] = x[t, :] · sqrt(mean over the channels [first, end) of dy[t]²) */
static void scale_rows(int threads, decant_matrix dy, decant_matrix x, int64_t first, int64_t end,
                       float *scaled)
{
    const float *gradients = dy.data, *inputs = x.data;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        double sum = 0;
        for (int64_t channel = first; channel < end; channel++) {
            double g = gradients[t * dy.columns + channel];
            sum += g * g;
        }
        float scale = (float)sqrt(sum / (double)(end - first));
        for (int64_t j = 0; j < x.columns; j++)
            scaled[t * x.columns + j] = scale * inputs[t * x.columns + j];
    }
}

static void transpose_tile(int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t n,
                           float *hessian)
{
    for (int64_t i = row; i < row + rows; i++)
        for (int64_t j = column > i ? column : i + 1; j < column + columns; j++)
            hessian[j * n + i] = hessian[i * n + j];
}

static void add_tiles(int threads, const float *scaled, int64_t tokens, int64_t n, float *hessian)
{
    decant_tiles tiles = decant_tiles_cut(n, TILE);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
    for (int64_t i = 0; i < tiles.count; i++)
        for (int64_t j = 0; j < tiles.count; j++) {
            if (j < i)
                continue;
            int64_t row = decant_tiles_first(tiles, i), column = decant_tiles_first(tiles, j);
            decant_product product = {
                .m = decant_tiles_length(tiles, i),
                .n = decant_tiles_length(tiles, j),
                .k = tokens,
                .a = scaled + row,
                .a_stride = n,
                .a_transposed = true,
                .b = scaled + column,
                .b_stride = n,
                .scale = 1.0f,
                .accumulate = true,
                .c = hessian + row * n + column,
                .c_stride = n,
            };
            decant_product_compute(&product);
            transpose_tile(row, product.m, column, product.n, n, hessian);
        }
}

decant_status decant_cpu_gram_add(decant_backend *backend, decant_matrix dy, decant_matrix x, int groups,
                                  float *hessian, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    void *scaled;
    decant_status status =
        decant_cpu_scratch(backend, (size_t)(x.rows * x.columns) * sizeof(float), &scaled, err);
    for (int group = 0; group < groups && status == DECANT_OK; group++) {
        int64_t first = decant_hessian_group_first(dy.columns, groups, group);
        int64_t end = decant_hessian_group_first(dy.columns, groups, group + 1);
        if (first == end)
            continue;
        scale_rows(threads, dy, x, first, end, scaled);
        add_tiles(threads, scaled, x.rows, x.columns, hessian + group * x.columns * x.columns);
    }
    return status;
}
