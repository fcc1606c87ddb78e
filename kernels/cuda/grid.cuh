/* Device code of the grid operations: a packed matrix as kernels see it, and the rotation of a row by a block.
 * Roundings are those of the CPU backend, operation by operation. */
#ifndef DECANT_KERNELS_CUDA_GRID_CUH
#define DECANT_KERNELS_CUDA_GRID_CUH

#include "kernels/counter_random.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grid.h"

#include <cmath>

/* The form of a matrix in 32-bit numbers, and its arrays. */
typedef struct decant_grid_view {
    uint32_t *planes; /* [rows, code_bits, words], or the same bits arranged (grid_arranged.cuh) */
    bool arranged;
    __half *scales, *offsets;
    const float *points; /* on the device */
    int rows, columns, dimension, code_bits, codes, words, group, groups, rotation;
    bool octets_share_scales; /* eight codes from a multiple of eight on lie in one group */
    float rotation_scale;     /* 1 / √rotation */
    uint64_t seed;
} decant_grid_view;

static inline decant_grid_view decant_grid_view_of(const decant_grid_matrix *matrix, const float *points)
{
    const decant_grid_form *form = &matrix->form;
    decant_grid_view view;
    view.planes = matrix->planes;
    view.arranged = matrix->arranged;
    view.scales = (__half *)matrix->scales;
    view.offsets = form->has_offsets ? (__half *)matrix->offsets : NULL;
    view.points = points;
    view.rows = (int)matrix->rows;
    view.columns = (int)matrix->columns;
    view.dimension = form->dimension;
    view.code_bits = form->code_bits;
    view.codes = (int)decant_grid_codes(matrix->columns, form->dimension);
    view.words = (int)decant_grid_words(matrix->columns, form->dimension);
    view.group = (int)(form->group < matrix->columns ? form->group : matrix->columns);
    view.groups = (int)decant_grid_groups(matrix->columns, form->group);
    view.octets_share_scales = view.groups == 1 || view.group % (8 * form->dimension) == 0;
    view.rotation = (int)form->rotation;
    view.rotation_scale = (float)(1.0 / std::sqrt((double)form->rotation));
    view.seed = form->seed;
    return view;
}

/* Whether there is more than one scale for each row. */
static inline bool decant_grid_is_grouped(const decant_grid_matrix *matrix)
{
    return matrix->form.has_offsets || matrix->form.group < matrix->columns;
}

/* What point coordinate q stands for. */
static __device__ __forceinline__ float decant_grid_value(float q, float scale, float offset)
{
    return decant_plus(decant_times(scale, q), offset);
}

/* Scale and offset of the group that a code belongs to. */
static __device__ __forceinline__ float2 decant_grid_scale_of(const decant_grid_view &view, int row, int code)
{
    const int64_t place = (int64_t)row * view.groups + code * view.dimension / view.group;
    return make_float2(__half2float(view.scales[place]),
                       view.offsets ? __half2float(view.offsets[place]) : 0.0f);
}

/* ---- rotation ---- */

/* Three steps of the transform at once, of neighbours that lie apart, 2 apart and 4 apart: a thread takes eight
 * numbers through them in registers. */
static __device__ __forceinline__ void decant_hadamard_eights(float *row, int columns, int apart)
{
    for (int i = threadIdx.x; i < columns / 8; i += blockDim.x) {
        float *first = row + (i & ~(apart - 1)) * 8 + (i & (apart - 1));
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            values[j] = first[j * apart];
#pragma unroll
        for (int bit = 1; bit < 8; bit *= 2)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                if (j & bit)
                    continue;
                const float a = values[j], b = values[j + bit];
                values[j] = a + b;
                values[j + bit] = a - b;
            }
#pragma unroll
        for (int j = 0; j < 8; j++)
            first[j * apart] = values[j];
    }
    __syncthreads();
}

/* The Walsh–Hadamard transform of each piece of a row, in place, without the scale; by all threads of the
 * block, which may use the row when it returns. */
static __device__ __forceinline__ void decant_hadamard_row(float *row, int columns, int piece)
{
    int apart = 1;
    for (; 4 * apart < piece; apart *= 8)
        decant_hadamard_eights(row, columns, apart);
    for (; apart < piece; apart *= 2) {
        for (int i = threadIdx.x; i < columns / 2; i += blockDim.x) {
            const int low = (i & ~(apart - 1)) * 2 + (i & (apart - 1)), high = low + apart;
            const float a = row[low], b = row[high];
            row[low] = a + b;
            row[high] = a - b;
        }
        __syncthreads();
    }
}

static __device__ __forceinline__ float decant_signed(uint64_t seed, int column, float value)
{
    return decant_random_sign(seed, column) ? -value : value;
}

/* row = H diag(signs) row; the row is written when this is called. */
static __device__ __forceinline__ void decant_rotate(const decant_grid_view &view, float *row)
{
    __syncthreads();
    if (view.rotation == 1)
        return;
    for (int i = threadIdx.x; i < view.columns; i += blockDim.x)
        row[i] = decant_signed(view.seed, i, row[i]);
    __syncthreads();
    decant_hadamard_row(row, view.columns, view.rotation);
    for (int i = threadIdx.x; i < view.columns; i += blockDim.x)
        row[i] = decant_times(row[i], view.rotation_scale);
    __syncthreads();
}

/* row = diag(signs) H row. */
static __device__ __forceinline__ void decant_rotate_back(const decant_grid_view &view, float *row)
{
    __syncthreads();
    if (view.rotation == 1)
        return;
    decant_hadamard_row(row, view.columns, view.rotation);
    for (int i = threadIdx.x; i < view.columns; i += blockDim.x)
        row[i] = decant_signed(view.seed, i, decant_times(row[i], view.rotation_scale));
    __syncthreads();
}

/* ---- rows of floats ---- */

/* Where a block keeps its row: shared memory, or, for rows too long for that, a piece of scratch. */
typedef struct decant_row_place {
    size_t shared_bytes; /* of a launch */
    float *scratch;      /* [rows at once, stride] or NULL */
    int64_t stride;
    int64_t rows_at_once; /* of a launch */
} decant_row_place;

static __device__ __forceinline__ float *decant_row_of_block(const decant_row_place &place, float *shared)
{
    return place.scratch ? place.scratch + blockIdx.x * place.stride : shared;
}

/* Room in shared memory beside the row for the little that kernels keep there themselves. */
enum { DECANT_ROW_SHARED_RESERVE = 4096, DECANT_ROW_SCRATCH_BYTES = 256 << 20 };

/* Rows of `columns` floats and a few more. Scratch is asked for as part of the caller's: *scratch_bytes grows
 * by what is needed, and place->scratch is the offset there until the caller adds its base. */
static inline decant_row_place decant_row_place_for(decant_backend *backend, int64_t rows, int64_t columns)
{
    decant_row_place place = {};
    place.stride = (columns + 2 * DECANT_GRID_DIMENSION_MAXIMUM - 1) / 4 * 4;
    const size_t row_bytes = (size_t)place.stride * sizeof(float);
    place.rows_at_once = rows;
    if (row_bytes + DECANT_ROW_SHARED_RESERVE <= decant_cuda_of(backend)->shared_memory_bytes) {
        place.shared_bytes = row_bytes;
        return place;
    }
    const int64_t fitting = (int64_t)(DECANT_ROW_SCRATCH_BYTES / row_bytes);
    place.rows_at_once = fitting < 1 ? 1 : fitting < rows ? fitting : rows;
    return place;
}

/* Bytes of scratch that the rows need; 0 when they go to shared memory. */
static inline size_t decant_row_scratch_bytes(const decant_row_place &place)
{
    return place.shared_bytes > 0 ? 0 : (size_t)(place.rows_at_once * place.stride) * sizeof(float);
}

/* Lets a kernel have that much shared memory. */
template <typename Kernel>
static decant_status decant_allow_shared(Kernel kernel, const decant_row_place &place, decant_error *err)
{
    return decant_cuda_check(cudaFuncSetAttribute((const void *)kernel,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  (int)place.shared_bytes),
                             "shared memory of a kernel", err);
}

/* Calls operation(std::integral_constant<int, dimension>). */
template <int N> struct decant_constant {
    static const int value = N;
};
template <typename Operation> static decant_status decant_by_dimension(int dimension, Operation operation)
{
    switch (dimension) {
    case 1:
        return operation(decant_constant<1>());
    case 2:
        return operation(decant_constant<2>());
    case 3:
        return operation(decant_constant<3>());
    default:
        return operation(decant_constant<4>());
    }
}

#endif
