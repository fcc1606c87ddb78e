/* Codes of all rows, packed, and what the sparse part adds to them. */
#include "kernels/cpu/quantize.h"

#include "kernels/cpu/codes.h"

enum { CHUNK = 256 }; /* columns at a time; whole words of a plane */

static void encode_row(decant_matrix weight, int64_t row, decant_packed_matrix *packed)
{
    decant_code_book book;
    decant_code_book_build(packed->levels + (row << packed->bits), packed->bits, &book);
    const int64_t words = (weight.columns + 31) / 32;
    uint32_t *planes = packed->planes + row * packed->bits * words;
    const uint32_t *columns;
    int64_t n_sparse = decant_cpu_sparse_columns(&packed->sparse, row, &columns), next = 0;
    for (int64_t first = 0; first < weight.columns; first += CHUNK) {
        int64_t count = weight.columns - first < CHUNK ? weight.columns - first : CHUNK;
        float values[CHUNK];
        uint8_t places[CHUNK];
        decant_cpu_read_row(weight, row, first, count, values);
        decant_code_book_find(&book, values, count, places);
        decant_codes_pack(&book, places, count, words, planes + first / 32);
        for (; next < n_sparse && columns[next] < first + count; next++) {
            int64_t j = columns[next] - first;
            packed->sparse_values[packed->sparse.row_offsets[row] + next] =
                decant_codes_remainder(values[j], book.level[places[j]]);
        }
    }
}

decant_status decant_cpu_encode(decant_backend *backend, decant_matrix weight, decant_packed_matrix *packed,
                                decant_error *err)
{
    if (weight.rows != packed->rows || weight.columns != packed->columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
#pragma omp parallel for num_threads(decant_cpu_of(backend)->threads) schedule(dynamic, 16)
    for (int64_t row = 0; row < weight.rows; row++)
        encode_row(weight, row, packed);
    return DECANT_OK;
}
