/* Fisher sums of a linear layer, one sequence at a time.
 *
 *   sequence   F += G∘G with G = dyᵀ x: a tile of G is computed into the thread's scratch, squared and added
 *   token      F += (dy∘dy)ᵀ (x∘x): both squares are made once, and the product adds straight into F
 *
 * Tiles are cut by the shape of the layer, and every element of F gets its sequences in the order of the calls.
 */
#include "kernels/cpu/operations.h"
#include "kernels/cpu/product.h"

enum { ROW_TILE = 256, COLUMN_TILE = 1024 };

typedef struct fisher_task {
    const float *dy; /* [T, rows], squared for the token form */
    const float *x;  /* [T, columns], likewise */
    int64_t tokens, rows, columns;
    float *fisher;
} fisher_task;

/* target (+)= the tile of dyᵀ x */
static void compute_tile(const fisher_task *task, int64_t row, int64_t rows, int64_t column, int64_t columns,
                         bool accumulate, float *target, int64_t target_stride)
{
    decant_product product = {
        .m = rows,
        .n = columns,
        .k = task->tokens,
        .a = task->dy + row,
        .a_stride = task->rows,
        .a_transposed = true,
        .b = task->x + column,
        .b_stride = task->columns,
        .scale = 1.0f,
        .accumulate = accumulate,
        .c = target,
        .c_stride = target_stride,
    };
    decant_product_compute(&product);
}

static void add_squares(const float *gradient, int64_t rows, int64_t columns, float *fisher, int64_t stride)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t column = 0; column < columns; column++) {
            float g = gradient[row * columns + column];
            fisher[row * stride + column] += g * g;
        }
}

/* scratch NULL: the product adds into F itself. */
static void add_tiles(int threads, const fisher_task *task, float *scratch)
{
    decant_tiles row_tiles = decant_tiles_cut(task->rows, ROW_TILE);
    decant_tiles column_tiles = decant_tiles_cut(task->columns, COLUMN_TILE);
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2)
    for (int64_t i = 0; i < row_tiles.count; i++)
        for (int64_t j = 0; j < column_tiles.count; j++) {
            int64_t row = decant_tiles_first(row_tiles, i), rows = decant_tiles_length(row_tiles, i);
            int64_t column = decant_tiles_first(column_tiles, j),
                    columns = decant_tiles_length(column_tiles, j);
            float *corner = task->fisher + row * task->columns + column;
            if (!scratch) {
                compute_tile(task, row, rows, column, columns, true, corner, task->columns);
                continue;
            }
            float *gradient = scratch + (int64_t)decant_cpu_thread() * ROW_TILE * COLUMN_TILE;
            compute_tile(task, row, rows, column, columns, false, gradient, columns);
            add_squares(gradient, rows, columns, corner, task->columns);
        }
}

static void square(int threads, const float *source, int64_t count, float *target)
{
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++)
        target[i] = source[i] * source[i];
}

decant_status decant_cpu_fisher_add(decant_backend *backend, decant_fisher_form form, decant_matrix dy,
                                    decant_matrix x, float *fisher, decant_error *err)
{
    const int threads = decant_cpu_of(backend)->threads;
    fisher_task task = {dy.data, x.data, x.rows, dy.columns, x.columns, fisher};
    int64_t dy_count = dy.rows * dy.columns, x_count = x.rows * x.columns;
    int64_t scratch_floats =
        form == DECANT_FISHER_TOKEN ? dy_count + x_count : (int64_t)threads * ROW_TILE * COLUMN_TILE;
    void *memory;
    decant_status status = decant_cpu_scratch(backend, (size_t)scratch_floats * sizeof(float), &memory, err);
    if (status != DECANT_OK)
        return status;
    float *scratch = memory;
    if (form == DECANT_FISHER_TOKEN) {
        square(decant_cpu_threads_for(backend, dy_count), dy.data, dy_count, scratch);
        square(decant_cpu_threads_for(backend, x_count), x.data, x_count, scratch + dy_count);
        task.dy = scratch;
        task.x = scratch + dy_count;
    }
    add_tiles(threads, &task, form == DECANT_FISHER_TOKEN ? NULL : scratch);
    return DECANT_OK;
}
