/* y = x ŵᵀ from the packed form: the rows of x are rotated once, tiles of rows of ŵ are decoded, still rotated,
 * into the thread's scratch and multiplied by all tokens. */
#include "kernels/cpu/grid.h"
#include "kernels/cpu/hadamard.h"
#include "kernels/cpu/product.h"

enum { ROW_TILE = 256, COLUMN_BLOCK = 1024 /* decoded at a time, about: bounds a thread's scratch */ };

/* The working space: rotated activations for all, a block and its codes for each thread. */
typedef struct linear_space {
    const float *x;  /* [T, columns], rotated */
    float *blocks;   /* [threads, ROW_TILE, COLUMN_BLOCK] */
    uint16_t *codes; /* [threads, COLUMN_BLOCK] */
} linear_space;

static decant_status make_space(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                linear_space *space, decant_error *err)
{
    const int64_t threads = decant_cpu_of(backend)->threads, columns = matrix->columns;
    const bool rotated = matrix->form.rotation > 1;
    const int64_t signs_floats = rotated ? columns : 0, x_floats = rotated ? x.rows * columns : 0;
    const int64_t block_floats = threads * ROW_TILE * COLUMN_BLOCK;
    void *scratch;
    decant_status status = decant_cpu_scratch(backend,
                                              (size_t)(signs_floats + x_floats + block_floats) * sizeof(float) +
                                                  (size_t)threads * COLUMN_BLOCK * sizeof(uint16_t),
                                              &scratch, err);
    if (status != DECANT_OK)
        return status;
    float *signs = scratch, *rotated_x = signs + signs_floats;
    space->blocks = rotated_x + x_floats;
    space->codes = (uint16_t *)(space->blocks + block_floats);
    space->x = x.data;
    if (!rotated)
        return DECANT_OK;
    space->x = rotated_x;
    decant_rotation_signs(matrix->form.seed, columns, signs);
#pragma omp parallel for num_threads(decant_cpu_threads_for(backend, x_floats)) schedule(static)
    for (int64_t t = 0; t < x.rows; t++) {
        memcpy(rotated_x + t * columns, (const float *)x.data + t * columns, (size_t)columns * sizeof(float));
        decant_rotate_row(rotated_x + t * columns, columns, matrix->form.rotation, signs);
    }
    return DECANT_OK;
}

static void compute_tile(const decant_grid_matrix *matrix, const linear_space *space, bool accumulate,
                         int64_t first_row, int64_t rows, decant_matrix y)
{
    const int64_t whole = 32 * matrix->form.dimension; /* columns whose codes fill whole words */
    const int64_t block = COLUMN_BLOCK / whole * whole;
    float *values = space->blocks + decant_cpu_thread() * ROW_TILE * COLUMN_BLOCK;
    uint16_t *codes = space->codes + decant_cpu_thread() * COLUMN_BLOCK;
    for (int64_t column = 0; column < matrix->columns; column += block) {
        const int64_t left = matrix->columns - column, columns = left < block ? left : block;
        for (int64_t row = 0; row < rows; row++)
            decant_grid_row_read(matrix, first_row + row, column, columns, codes, values + row * columns);
        decant_product product = {
            .m = y.rows,
            .n = rows,
            .k = columns,
            .a = space->x + column,
            .a_stride = matrix->columns,
            .b = values,
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

decant_status decant_cpu_grid_linear(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     bool accumulate, decant_matrix y, decant_error *err)
{
    linear_space space;
    decant_status status = decant_grid_form_check(&matrix->form, matrix->columns, err);
    if (status != DECANT_OK)
        return status;
    status = make_space(backend, x, matrix, &space, err);
    if (status != DECANT_OK)
        return status;
    const int threads = decant_cpu_threads_for_product(backend, x.rows, matrix->rows * matrix->columns);
    decant_tiles tiles = decant_tiles_cut(matrix->rows, ROW_TILE);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++)
        compute_tile(matrix, &space, accumulate, decant_tiles_first(tiles, i), decant_tiles_length(tiles, i),
                     y);
    return DECANT_OK;
}
