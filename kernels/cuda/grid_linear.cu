/* y = x ŵᵀ from the packed form. Few tokens in BF16 go to tensor cores: with arranged codes one by
 * grid_stream.cu, up to 32 by grid_boxes.cu; with planes by grid_tokens.cu where it has a decoder for the grid.
 * Else the rows of x are rotated, into scratch and in their own type; few of them then go to the lookup kernel;
 * for more, rows of ŵ are decoded, still rotated, into a tile of scratch, and cuBLAS multiplies. The tile is
 * small enough to be still in the L2 cache when the product reads it. */
#include "kernels/cuda/grid_boxes.h"
#include "kernels/cuda/grid_stream.h"
#include "kernels/cuda/grid_tokens.h"
#include "kernels/cuda/operations.h"

enum { THREADS = 256, TILE_BYTES = 32 << 20, TILE_ROWS_MULTIPLE = 256 };

template <typename T>
__global__ void __launch_bounds__(THREADS)
    rotate_kernel(const decant_grid_view view, const T *x, decant_row_place place, T *rotated)
{
    extern __shared__ float4 shared[];
    float *values = decant_row_of_block(place, (float *)shared);
    const int64_t start = (int64_t)blockIdx.x * view.columns;
    for (int j = threadIdx.x; j < view.columns; j += THREADS)
        values[j] = decant_to_float(x[start + j]);
    decant_rotate(view, values);
    for (int j = threadIdx.x; j < view.columns; j += THREADS)
        rotated[start + j] = decant_from_float<T>(values[j]);
}

static decant_status rotate(decant_backend *backend, const decant_grid_view &view, decant_matrix x,
                            decant_row_place place, void *rotated, decant_error *err)
{
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        DECANT_RETURN_ON_FAILURE(decant_allow_shared(rotate_kernel<T>, place, err));
        for (int64_t row = 0; row < x.rows; row += place.rows_at_once) {
            const int64_t left = x.rows - row, blocks = left < place.rows_at_once ? left : place.rows_at_once;
            rotate_kernel<T>
                <<<(unsigned)blocks, THREADS, place.shared_bytes, decant_cuda_of(backend)->stream>>>(
                    view, (const T *)x.data + row * view.columns, place, (T *)rotated + row * view.columns);
            DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "rotate", err));
        }
        return DECANT_OK;
    });
}

/* Rows of ŵ that are decoded at once. */
static int64_t tile_rows(decant_element element, const decant_grid_matrix *matrix)
{
    const int64_t row_bytes = (int64_t)decant_element_bytes(element) * matrix->columns;
    int64_t at_once = TILE_BYTES / row_bytes / TILE_ROWS_MULTIPLE * TILE_ROWS_MULTIPLE;
    at_once = at_once < TILE_ROWS_MULTIPLE ? TILE_ROWS_MULTIPLE : at_once;
    return at_once < matrix->rows ? at_once : matrix->rows;
}

static decant_status multiply_decoded(decant_backend *backend, decant_matrix x,
                                      const decant_grid_matrix *matrix, const float *points, int64_t at_once,
                                      void *tile, bool accumulate, decant_matrix y, decant_error *err)
{
    for (int64_t row = 0; row < matrix->rows; row += at_once) {
        const int64_t left = matrix->rows - row, count = left < at_once ? left : at_once;
        decant_matrix decoded = {tile, x.element, count, matrix->columns};
        DECANT_RETURN_ON_FAILURE(decant_cuda_grid_read(backend, matrix, points, row, false, decoded, err));
        decant_cuda_product product = {
            .m = x.rows,
            .n = count,
            .k = matrix->columns,
            .element = x.element,
            .a = x.data,
            .a_stride = x.columns,
            .b = tile,
            .b_stride = matrix->columns,
            .b_transposed = true,
            .accumulate = accumulate,
            .c = (char *)y.data + (size_t)row * decant_element_bytes(y.element),
            .c_element = y.element,
            .c_stride = y.columns,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "grid linear", err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_grid_linear(decant_backend *backend, decant_matrix x,
                                      const decant_grid_matrix *matrix, bool accumulate, decant_matrix y,
                                      decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_grid_form_check(&matrix->form, matrix->columns, err));
    if (x.rows == 0 || matrix->rows == 0)
        return DECANT_OK;
    decant_grid_cells cells;
    DECANT_RETURN_ON_FAILURE(decant_cuda_grid_cells(backend, &matrix->form, &cells, err));
    const bool rotated = matrix->form.rotation > 1;
    if (decant_cuda_context_of(backend)->packed_way != DECANT_PACKED_LOOKUPS) {
        if (decant_cuda_grid_has_stream(backend, x, matrix))
            return decant_cuda_grid_stream(backend, x, matrix, cells.points, accumulate, y, err);
        if (decant_cuda_grid_has_boxes(backend, x, matrix))
            return decant_cuda_grid_boxes(backend, x, matrix, cells.points, accumulate, y, err);
        if (decant_cuda_grid_has_tokens(backend, x, matrix))
            return decant_cuda_grid_tokens(backend, x, matrix, cells.points, accumulate, y, err);
    }
    const bool few = x.rows <= DECANT_GRID_VECTORS_MAXIMUM;
    const int64_t at_once = tile_rows(x.element, matrix);
    const decant_row_place place = decant_row_place_for(backend, x.rows, x.columns);
    size_t scratch_bytes = 0;
    const size_t rows_at =
        decant_scratch_reserve(&scratch_bytes, rotated ? decant_row_scratch_bytes(place) : 0);
    const size_t x_at = decant_scratch_reserve(&scratch_bytes, rotated ? decant_matrix_bytes(x) : 0);
    const size_t tile_at = decant_scratch_reserve(
        &scratch_bytes, few ? 0 : (size_t)(at_once * matrix->columns) * decant_element_bytes(x.element));
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, scratch_bytes, &scratch, err));
    if (rotated) {
        decant_row_place own = place;
        own.scratch = place.shared_bytes > 0 ? NULL : (float *)((char *)scratch + rows_at);
        void *target = (char *)scratch + x_at;
        DECANT_RETURN_ON_FAILURE(
            rotate(backend, decant_grid_view_of(matrix, cells.points), x, own, target, err));
        x.data = target;
    }
    if (few)
        return decant_cuda_grid_vectors(backend, x, matrix, cells.points, accumulate, y, err);
    return multiply_decoded(backend, x, matrix, cells.points, at_once, (char *)scratch + tile_at, accumulate, y,
                            err);
}
