/* y = x ŵᵀ from the packed form: a tile of rows is decoded (bit planes to codes, codes to levels, the sparse
 * values added) into the thread's scratch and multiplied by all tokens. */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"
#include "kernels/packed_input.h"

enum {
    ROW_TILE = 256,
    COLUMN_BLOCK = 1024, /* columns decoded at a time, a multiple of 32: bounds a thread's scratch to 1 MiB */
    WORD_BITS = 32,
    LEVELS_MAXIMUM = 1 << DECANT_BITS_MAXIMUM,
};

/* The dense part of columns [first, first + count) of a row; first is a multiple of 32. */
static void decode_levels(const decant_packed_matrix *packed, int64_t row, int64_t first, int64_t count,
                          const float *levels, float *target)
{
    int64_t words = (packed->columns + WORD_BITS - 1) / WORD_BITS;
    const uint32_t *planes = packed->planes + row * packed->bits * words;
    for (int64_t column = 0; column < count; column += WORD_BITS) {
        const uint32_t *word = planes + (first + column) / WORD_BITS;
        uint32_t codes[WORD_BITS] = {0};
        for (int bit = 0; bit < packed->bits; bit++) {
            uint32_t plane = word[bit * words];
            for (uint32_t i = 0; i < WORD_BITS; i++)
                codes[i] |= (plane >> i & 1u) << bit;
        }
        int64_t length = count - column < WORD_BITS ? count - column : WORD_BITS;
        for (int64_t i = 0; i < length; i++)
            target[column + i] = levels[codes[i]];
    }
}

/* The first entry of a row whose column is not below `column`. */
static uint32_t first_entry(const decant_sparse_pattern *sparse, int64_t row, int64_t column)
{
    uint32_t low = sparse->row_offsets[row], high = sparse->row_offsets[row + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (sparse->columns[middle] < column)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void add_sparse(const decant_packed_matrix *packed, int64_t row, int64_t first, int64_t count,
                       float *target)
{
    if (packed->sparse.count == 0)
        return;
    uint32_t end = packed->sparse.row_offsets[row + 1];
    for (uint32_t i = first_entry(&packed->sparse, row, first); i < end; i++) {
        int64_t column = (int64_t)packed->sparse.columns[i] - first;
        if (column >= count)
            break;
        target[column] += decant_f16_to_f32(packed->sparse_values[i]);
    }
}

static void decode_block(const decant_packed_matrix *packed, int64_t first_row, int64_t rows,
                         int64_t first_column, int64_t columns, float *target)
{
    int64_t level_count = (int64_t)1 << packed->bits;
    float levels[LEVELS_MAXIMUM];
    for (int64_t row = 0; row < rows; row++) {
        decant_elements_to_f32(DECANT_F16, packed->levels + (first_row + row) * level_count, level_count,
                               levels);
        decode_levels(packed, first_row + row, first_column, columns, levels, target + row * columns);
        add_sparse(packed, first_row + row, first_column, columns, target + row * columns);
    }
}

static void compute_tile(decant_matrix x, const decant_packed_matrix *packed, bool accumulate,
                         int64_t first_row, int64_t rows, decant_matrix y, float *scratch)
{
    for (int64_t column = 0; column < packed->columns; column += COLUMN_BLOCK) {
        int64_t left = packed->columns - column, columns = left < COLUMN_BLOCK ? left : COLUMN_BLOCK;
        decode_block(packed, first_row, rows, column, columns, scratch);
        decant_product product = {
            .m = x.rows,
            .n = rows,
            .k = columns,
            .a = (const float *)x.data + column,
            .a_stride = x.columns,
            .b = scratch,
            .b_stride = columns,
            .b_transposed = true,
            .scale = 1.0f,
            .accumulate = accumulate || column > 0,
            .c = (float *)y.data + first_row,
            .c_stride = y.columns,
        };
        decant_product_compute(&product);
    }
}

decant_status decant_cpu_packed_linear(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool accumulate, decant_matrix y,
                                       decant_error *err)
{
    const int threads = decant_cpu_threads_for_product(backend, x.rows, packed->rows * packed->columns);
    const int64_t block_floats = ROW_TILE * COLUMN_BLOCK;
    void *scratch;
    size_t scratch_bytes = (size_t)decant_cpu_of(backend)->threads * (size_t)block_floats * sizeof(float);
    decant_status status = decant_cpu_scratch(backend, scratch_bytes, &scratch, err);
    if (status != DECANT_OK)
        return status;
    decant_tiles tiles = decant_tiles_cut(packed->rows, ROW_TILE);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++)
        compute_tile(x, packed, accumulate, decant_tiles_first(tiles, i), decant_tiles_length(tiles, i), y,
                     (float *)scratch + decant_cpu_thread() * block_floats);
    return DECANT_OK;
}

decant_status decant_cpu_packed_products(decant_backend *backend, const decant_packed_input *input,
                                         const decant_packed_product *products, int count, bool accumulate,
                                         decant_error *err)
{
    decant_matrix x;
    decant_status status = decant_packed_input_make(backend, input, &x, err);
    for (int i = 0; i < count && status == DECANT_OK; i++)
        status = decant_cpu_packed_linear(backend, x, products[i].packed, accumulate, products[i].y, err);
    return status;
}
