/* The sparse part of the rows of a block of step_parities.cu, beside their dense part: a thread brings some
 * entries to shared memory while the kernel still waits for x, multiplies them once x is there, and eight lanes
 * a row add up its products, in an order that depends on the entries alone. Entries beyond the room follow
 * window by window. */
#ifndef DECANT_KERNELS_CUDA_STEP_SPARSE_CUH
#define DECANT_KERNELS_CUDA_STEP_SPARSE_CUH

#include "kernels/cuda/step_block.cuh"

/* The entries of the block's rows, counted through the matrices. Arrays are shared memory. */
typedef struct step_entries {
    const uint32_t *columns[STEP_MATRICES]; /* device, from the block's first entry of the matrix */
    const __half *values[STEP_MATRICES];
    int end[STEP_MATRICES]; /* behind the matrix's last entry */
    int count, window;
    int *begins, *ends; /* [rows] */
    float *sums;        /* [rows]: of the windows before the last */
    float *products;    /* [window]; columns until they are multiplied */
    __half *own_values; /* [window] */
    __nv_bfloat16 *x;   /* [columns] */
} step_entries;

static __host__ __device__ __forceinline__ int step_entries_bytes(int rows, int window, int columns)
{
    return columns * 2 + window * 6 + rows * 12;
}

/* Rows of matrix `matrix` before tile `tiles` of those that the block owns of it, at most its last. */
static __device__ __forceinline__ int step_rows_before(const step_call &call, const step_share &share,
                                                       int matrix, int own_rows, int tiles)
{
    const int first = share.first[call.gated ? 0 : matrix];
    return min((first + tiles) * own_rows, call.matrices[matrix].rows);
}

/* By all threads. A barrier must follow before offsets are read. Entries lie in the order of the matrices, so
 * those of a gated pair's second matrix follow all of the first's. */
static __device__ __forceinline__ step_entries step_open_entries(const step_call &call, const step_share &share,
                                                                 int tile_rows, unsigned char *shared)
{
    const int rows = share.tiles * tile_rows, own_rows = step_own_rows(call, tile_rows);
    step_entries own;
    own.window = call.window;
    own.x = (__nv_bfloat16 *)shared;
    own.products = (float *)(shared + call.columns * 2);
    own.begins = (int *)(own.products + own.window);
    own.ends = own.begins + rows;
    own.sums = (float *)(own.ends + rows);
    own.own_values = (__half *)(own.sums + rows);
    own.count = 0;
    int row = 0; /* of the block, in the order of the matrices */
#pragma unroll
    for (int i = 0; i < STEP_MATRICES; i++) {
        const step_matrix &matrix = call.matrices[i];
        const int before = i > 0 ? share.end[i - 1] : 0;
        const int tiles = call.gated ? (i < 2 ? share.tiles : 0) : share.end[i] - before;
        const int first_row = step_rows_before(call, share, i, own_rows, 0);
        const int last_row = step_rows_before(call, share, i, own_rows, tiles);
        uint32_t first = 0, last = 0;
        if (matrix.row_offsets && tiles > 0) {
            first = matrix.row_offsets[first_row];
            last = matrix.row_offsets[last_row];
        }
        own.columns[i] = matrix.sparse_columns + first;
        own.values[i] = matrix.sparse_values + first;
        for (int j = threadIdx.x; j < tiles * own_rows; j += blockDim.x) {
            uint32_t begin = first, end = first;
            if (matrix.row_offsets) {
                begin = matrix.row_offsets[min(first_row + j, last_row)];
                end = matrix.row_offsets[min(first_row + j + 1, last_row)];
            }
            const int place = call.gated ? j / own_rows * tile_rows + i * own_rows + j % own_rows : row + j;
            own.begins[place] = own.count + (int)(begin - first);
            own.ends[place] = own.count + (int)(end - first);
        }
        row += tiles * own_rows;
        own.count += (int)(last - first);
        own.end[i] = own.count;
    }
    for (int j = threadIdx.x; j < rows; j += blockDim.x)
        own.sums[j] = 0;
    return own;
}

static __device__ __forceinline__ void step_find_entry(const step_entries &own, int entry, uint32_t &column,
                                                       __half &value)
{
    const int matrix = entry < own.end[0] ? 0 : entry < own.end[1] ? 1 : 2;
    const int place = entry - (matrix == 0 ? 0 : matrix == 1 ? own.end[0] : own.end[1]);
    const uint32_t *columns = matrix == 0 ? own.columns[0] : matrix == 1 ? own.columns[1] : own.columns[2];
    const __half *values = matrix == 0 ? own.values[0] : matrix == 1 ? own.values[1] : own.values[2];
    column = columns[place];
    value = values[place];
}

/* A thread's entries of the first window, on their way. */
template <int COUNT> struct step_own_entries {
    uint32_t columns[COUNT];
    __half values[COUNT];
};

template <int COUNT>
static __device__ __forceinline__ step_own_entries<COUNT> step_load_entries(const step_entries &own)
{
    step_own_entries<COUNT> loaded = {};
    const int end = min(own.count, own.window);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int entry = i * (int)blockDim.x + (int)threadIdx.x;
        if (entry < end)
            step_find_entry(own, entry, loaded.columns[i], loaded.values[i]);
    }
    return loaded;
}

template <int COUNT>
static __device__ __forceinline__ void step_keep_entries(const step_entries &own,
                                                         const step_own_entries<COUNT> &loaded)
{
    const int end = min(own.count, own.window);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int entry = i * (int)blockDim.x + (int)threadIdx.x;
        if (entry >= end)
            continue;
        own.products[entry] = __uint_as_float(loaded.columns[i]);
        own.own_values[entry] = loaded.values[i];
    }
}

/* The first window's products, each by the thread that brought the entry; x is there. */
static __device__ __forceinline__ void step_multiply_entries(const step_entries &own)
{
    const int end = min(own.count, own.window);
#pragma unroll 4
    for (int entry = threadIdx.x; entry < end; entry += blockDim.x)
        own.products[entry] =
            __half2float(own.own_values[entry]) * __bfloat162float(own.x[__float_as_uint(own.products[entry])]);
}

/* The sum of row `row` over the window that ends at `end`, by eight lanes that all get it. */
static __device__ __forceinline__ float step_entry_sum(const step_entries &own, int row, int begin, int end)
{
    const int from = max(own.begins[row], begin), to = min(own.ends[row], end);
    float sum = 0;
#pragma unroll 4
    for (int entry = from + (int)threadIdx.x % STEP_ROW_LANES; entry < to; entry += STEP_ROW_LANES)
        sum += own.products[entry - begin];
#pragma unroll
    for (int offset = 1; offset < STEP_ROW_LANES; offset *= 2)
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
    return sum;
}

/* The sums of all rows, window by window. All products of the first are there; barriers inside, the last behind
 * all sums. */
static __device__ __forceinline__ void step_sum_entries(const step_entries &own, int rows)
{
    for (int begin = 0;;) {
        const int end = min(begin + own.window, own.count);
        for (int base = 0; base < rows; base += (int)blockDim.x / STEP_ROW_LANES) {
            const int row = base + (int)threadIdx.x / STEP_ROW_LANES;
            const float sum = step_entry_sum(own, min(row, rows - 1), begin, end);
            if (row < rows && threadIdx.x % STEP_ROW_LANES == 0)
                own.sums[row] += sum;
        }
        __syncthreads();
        begin = end;
        if (begin >= own.count)
            return;
        for (int entry = begin + (int)threadIdx.x; entry < min(own.count, begin + own.window);
             entry += blockDim.x) {
            uint32_t column;
            __half value;
            step_find_entry(own, entry, column, value);
            own.products[entry - begin] = __half2float(value) * __bfloat162float(own.x[column]);
        }
        __syncthreads();
    }
}

#endif
