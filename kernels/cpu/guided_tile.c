/* Rows under guided search: how they begin, what they come to, and what is stored of them. */
#include "kernels/cpu/guided_tile.h"

#include "kernels/cpu/product.h"
#include "kernels/cpu/quantize.h"

#include <string.h>

void decant_guided_load_row(decant_guided_tile *tile, int64_t r)
{
    const int64_t n = tile->columns, row = tile->first + r;
    float *weight = tile->weight + r * n, *missing = tile->missing + r * n;
    uint8_t *codes = tile->codes + r * n, *is_sparse = tile->is_sparse + r * n;
    decant_code_book *book = &tile->books[r];
    const uint32_t *sparse;
    int64_t n_sparse = decant_cpu_sparse_columns(&tile->packed->sparse, row, &sparse);
    decant_cpu_read_row(tile->source, row, 0, n, weight);
    decant_code_book_build(decant_guided_levels_of(tile, r), tile->bits, book);
    decant_code_book_find(book, weight, n, codes);
    memset(is_sparse, 0, (size_t)n);
    for (int64_t i = 0; i < n_sparse; i++)
        is_sparse[sparse[i]] = 1;
    for (int64_t j = 0; j < n; j++) {
        missing[j] = is_sparse[j] ? 0 : weight[j] - book->level[codes[j]];
        codes[j] = book->code[codes[j]];
    }
}

void decant_guided_multiply_block(decant_guided_tile *tile, const float *a, int64_t terms, const float *b,
                                  int64_t first)
{
    const decant_product product = {
        .m = tile->rows,
        .n = decant_guided_block_length(tile, first),
        .k = terms,
        .a = a,
        .a_stride = tile->columns,
        .b = b + first * tile->columns,
        .b_stride = tile->columns,
        .b_transposed = true,
        .scale = 1.0f,
        .c = tile->gradient,
        .c_stride = DECANT_GUIDED_BLOCK,
    };
    decant_product_compute(&product);
}

void decant_guided_sum_objective(decant_guided_tile *tile, double damping, double *objective)
{
    memset(objective, 0, (size_t)tile->rows * sizeof *objective);
    for (int64_t first = 0; first < tile->columns; first += DECANT_GUIDED_BLOCK) {
        const int64_t count = decant_guided_block_length(tile, first);
        decant_guided_multiply_block(tile, tile->missing, tile->columns, tile->hessian, first);
        for (int64_t r = 0; r < tile->rows; r++) {
            const float *missing = tile->missing + r * tile->columns + first;
            for (int64_t j = 0; j < count; j++)
                objective[r] += (double)missing[j] * ((double)tile->gradient[r * DECANT_GUIDED_BLOCK + j] +
                                                      damping * (double)missing[j]);
        }
    }
}

void decant_guided_store_row(decant_guided_tile *tile, int64_t r, decant_guided_row *result)
{
    const int64_t n = tile->columns, words = (n + 31) / 32, row = tile->first + r;
    decant_packed_matrix *packed = tile->packed;
    const uint16_t *levels = decant_guided_levels_of(tile, r);
    const uint32_t *sparse;
    int64_t n_sparse = decant_cpu_sparse_columns(&packed->sparse, row, &sparse);
    decant_code_book places = {.bits = tile->bits}; /* codes stand for themselves */
    for (int code = 0; code < 1 << places.bits; code++)
        places.code[code] = (uint8_t)code;
    decant_codes_pack(&places, tile->codes + r * n, n, words, packed->planes + row * places.bits * words);
    for (int64_t i = 0; i < n_sparse; i++) {
        int64_t at = r * n + sparse[i];
        float level = decant_f16_to_f32(levels[tile->codes[at]]);
        uint16_t remainder = decant_codes_remainder(tile->weight[at], level);
        packed->sparse_values[packed->sparse.row_offsets[row] + i] = remainder;
        tile->missing[at] =
            (float)((double)tile->weight[at] - (double)level - (double)decant_f16_to_f32(remainder));
    }
    result->error = (decant_matrix_error){0};
    for (int64_t at = r * n; at < (r + 1) * n; at++) {
        result->error.squared += (double)tile->missing[at] * tile->missing[at];
        result->error.norm += (double)tile->weight[at] * tile->weight[at];
    }
}
