/* What a matrix on a grid stands for. Rows that stay rotated, for products, are looked up eight codes at a time
 * in a table in shared memory that a block keeps over many rows. Rows that are rotated back go through shared
 * memory, a block a row, and look their points up where they lie. */
#include "kernels/cuda/grid_octet.cuh"

enum { THREADS = 256, BLOCKS_A_MULTIPROCESSOR = 6 };

/* The values of an octet, as many of them as there are columns. */
template <typename T, int N>
static __device__ __forceinline__ void store_octet(T *target, const float (&values)[N], int count, bool vectors)
{
    if (vectors && count >= N) {
        decant_store(target, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        if (i < count)
            target[i] = decant_from_float<T>(values[i]);
}

/* Row `row` into target, shared or not; `vectors`: target's rows allow sixteen bytes at a time. */
template <int P, typename T>
static __device__ __forceinline__ void read_row(const decant_grid_view &view, const float *table, int row,
                                                bool vectors, T *target)
{
    const int octets = (view.codes + DECANT_OCTET - 1) / DECANT_OCTET;
    for (int octet = threadIdx.x; octet < octets; octet += THREADS) {
        const int column = octet * DECANT_OCTET * P;
        float values[DECANT_OCTET * P];
        decant_grid_octet<P>(view, table, row, octet, values);
        store_octet(target + column, values, view.columns - column, vectors);
    }
}

template <typename T, int P>
__global__ void __launch_bounds__(THREADS)
    read_rotated_kernel(const decant_grid_view view, int first_row, int rows, bool vectors, T *target)
{
    extern __shared__ float4 shared[];
    float *table = (float *)shared;
    for (int i = threadIdx.x; i < P << view.code_bits; i += THREADS)
        table[i] = view.points[i];
    __syncthreads();
    for (int row = blockIdx.x; row < rows; row += gridDim.x)
        read_row<P>(view, table, first_row + row, vectors, target + (int64_t)row * view.columns);
}

template <typename T, int P>
__global__ void __launch_bounds__(THREADS)
    read_back_kernel(const decant_grid_view view, int first_row, decant_row_place place, T *target)
{
    extern __shared__ float4 shared[];
    float *values = decant_row_of_block(place, (float *)shared);
    read_row<P>(view, view.points, first_row + blockIdx.x, false, values);
    decant_rotate_back(view, values);
    for (int j = threadIdx.x; j < view.columns; j += THREADS)
        target[(int64_t)blockIdx.x * view.columns + j] = decant_from_float<T>(values[j]);
}

template <typename T, int P>
static decant_status read_rotated(decant_backend *backend, const decant_grid_view &view, int64_t first,
                                  int64_t rows, T *target, decant_error *err)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    decant_row_place table = {};
    table.shared_bytes = ((size_t)P << view.code_bits) * sizeof(float);
    DECANT_RETURN_ON_FAILURE(decant_allow_shared(read_rotated_kernel<T, P>, table, err));
    const int64_t most = (int64_t)cuda->multiprocessors * BLOCKS_A_MULTIPROCESSOR;
    const bool vectors = decant_has_vectors<T>(view.columns, target) && view.columns % DECANT_OCTET == 0;
    read_rotated_kernel<T, P>
        <<<(unsigned)(rows < most ? rows : most), THREADS, table.shared_bytes, cuda->stream>>>(
            view, (int)first, (int)rows, vectors, target);
    return decant_cuda_launched(backend, "grid decode", err);
}

template <typename T, int P>
static decant_status read_back(decant_backend *backend, const decant_grid_view &view, int64_t first,
                               int64_t rows, T *target, decant_error *err)
{
    decant_row_place place = decant_row_place_for(backend, rows, view.columns);
    if (place.shared_bytes == 0) {
        void *scratch;
        DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, decant_row_scratch_bytes(place), &scratch, err));
        place.scratch = (float *)scratch;
    }
    DECANT_RETURN_ON_FAILURE(decant_allow_shared(read_back_kernel<T, P>, place, err));
    for (int64_t row = 0; row < rows; row += place.rows_at_once) {
        const int64_t left = rows - row, blocks = left < place.rows_at_once ? left : place.rows_at_once;
        read_back_kernel<T, P>
            <<<(unsigned)blocks, THREADS, place.shared_bytes, decant_cuda_of(backend)->stream>>>(
                view, (int)(first + row), place, target + row * view.columns);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "grid decode", err));
    }
    return DECANT_OK;
}

template <typename T>
static decant_status read_rows(decant_backend *backend, const decant_grid_view &view, int64_t first,
                               int64_t rows, bool back, T *target, decant_error *err)
{
    return decant_by_dimension(view.dimension, [&](auto dimension) {
        const int P = decltype(dimension)::value;
        return back ? read_back<T, P>(backend, view, first, rows, target, err)
                    : read_rotated<T, P>(backend, view, first, rows, target, err);
    });
}

decant_status decant_cuda_grid_read(decant_backend *backend, const decant_grid_matrix *matrix,
                                    const float *points, int64_t first, bool back, decant_matrix weight,
                                    decant_error *err)
{
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    back = back && view.rotation > 1;
    switch (weight.element) {
    case DECANT_F32:
        return read_rows(backend, view, first, weight.rows, back, (float *)weight.data, err);
    case DECANT_F16:
        return read_rows(backend, view, first, weight.rows, back, (__half *)weight.data, err);
    default:
        return read_rows(backend, view, first, weight.rows, back, (__nv_bfloat16 *)weight.data, err);
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
