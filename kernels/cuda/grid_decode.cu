/* What a matrix on a grid stands for: a block takes a row, unpacks its codes, looks up their points, and,
 * unless the row is to stay rotated, rotates it back in shared memory. */
#include "kernels/cuda/grid.cuh"

enum { THREADS = 256, WARPS = THREADS / DECANT_WARP };

/* Calls take(column, value) for every column of a row, a warp 32 codes at a time. */
template <typename Take>
static __device__ __forceinline__ void read_row(const decant_grid_view &view, int row, Take take)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const uint32_t *planes = view.planes + (int64_t)row * view.code_bits * view.words;
    for (int word = threadIdx.x / DECANT_WARP; word < view.words; word += WARPS) {
        const int j = word * DECANT_WARP + lane;
        uint32_t code = 0;
        for (int b = 0; b < view.code_bits; b++)
            code |= (planes[(int64_t)b * view.words + word] >> lane & 1u) << b;
        if (j >= view.codes)
            continue;
        const float2 scale = decant_grid_scale_of(view, row, j);
        for (int i = 0; i < view.dimension; i++) {
            const int column = j * view.dimension + i;
            if (column < view.columns)
                take(column, decant_grid_value(view.points[code * view.dimension + i], scale.x, scale.y));
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    read_kernel(const decant_grid_view view, int first_row, bool back, decant_row_place place, T *target)
{
    extern __shared__ float4 shared[];
    const int row = first_row + blockIdx.x;
    target += (int64_t)blockIdx.x * view.columns;
    if (!back) {
        read_row(view, row, [=](int column, float value) { target[column] = decant_from_float<T>(value); });
        return;
    }
    float *values = decant_row_of_block(place, (float *)shared);
    read_row(view, row, [=](int column, float value) { values[column] = value; });
    decant_rotate_back(view, values);
    for (int j = threadIdx.x; j < view.columns; j += THREADS)
        target[j] = decant_from_float<T>(values[j]);
}

template <typename T>
static decant_status read_rows(decant_backend *backend, const decant_grid_view &view, int64_t first,
                               int64_t rows, bool back, decant_row_place place, T *target, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(decant_allow_shared(read_kernel<T>, place, err));
    for (int64_t row = 0; row < rows; row += place.rows_at_once) {
        const int64_t left = rows - row, blocks = left < place.rows_at_once ? left : place.rows_at_once;
        read_kernel<T><<<(unsigned)blocks, THREADS, place.shared_bytes, decant_cuda_of(backend)->stream>>>(
            view, (int)(first + row), back, place, target + row * view.columns);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "grid decode", err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_grid_read(decant_backend *backend, const decant_grid_matrix *matrix,
                                    const float *points, int64_t first, bool back, decant_matrix weight,
                                    decant_error *err)
{
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    decant_row_place place = {};
    place.rows_at_once = weight.rows;
    back = back && view.rotation > 1;
    if (back)
        place = decant_row_place_for(backend, weight.rows, weight.columns);
    if (back && place.shared_bytes == 0) {
        void *scratch;
        DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, decant_row_scratch_bytes(place), &scratch, err));
        place.scratch = (float *)scratch;
    }
    switch (weight.element) {
    case DECANT_F32:
        return read_rows(backend, view, first, weight.rows, back, place, (float *)weight.data, err);
    case DECANT_F16:
        return read_rows(backend, view, first, weight.rows, back, place, (__half *)weight.data, err);
    default:
        return read_rows(backend, view, first, weight.rows, back, place, (__nv_bfloat16 *)weight.data, err);
    }
}

decant_status decant_cuda_grid_decode(decant_backend *backend, const decant_grid_matrix *matrix,
                                      decant_matrix weight, decant_error *err)
{
    if (weight.rows != matrix->rows || weight.columns != matrix->columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    DECANT_RETURN_ON_FAILURE(decant_grid_form_check(&matrix->form, matrix->columns, err));
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    decant_grid_cells cells;
    DECANT_RETURN_ON_FAILURE(decant_cuda_grid_cells(backend, &matrix->form, &cells, err));
    return decant_cuda_grid_read(backend, matrix, cells.points, 0, true, weight, err);
}
