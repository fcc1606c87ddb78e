/* From levels to codes: the nearest level of each weight, packed into bit planes, and the error it makes. Knows
 * nothing of how levels are found.
 *
 * A block takes a row. A weight's code is the number of thresholds below it, found by halving; a threshold is
 * the middle of two levels, formed exactly and rounded down to a float, so that a weight is above the one
 * exactly when it is above the other, and a weight in the middle gets the lower level. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/row_pattern.cuh"
#include "kernels/cuda/weight_bits.cuh"

enum {
    MOST_LEVELS = 1 << DECANT_BITS_MAXIMUM,
    THREADS = 256,
    WARPS = THREADS / DECANT_WARP,
    BATCH = 4,      /* words of 32 columns whose weights a warp loads before it looks at them */
    TILE = 1 << 14, /* columns whose part of the pattern is marked at once */
    TOTAL_THREADS = 1024,
};

/* ---- the nearest level ---- */

/* The levels of a row, in shared memory. */
struct codebook {
    float levels[MOST_LEVELS], thresholds[MOST_LEVELS];
    uint8_t first_equal[MOST_LEVELS]; /* the lowest code of a level's value */
};

/* All threads of the block; the codebook can be used when it returns. */
static __device__ void read_codebook(const uint16_t *levels, int bits, codebook *book)
{
    const int count = 1 << bits;
    for (int i = (int)threadIdx.x; i < count; i += THREADS)
        book->levels[i] = __half2float(__ushort_as_half(levels[i]));
    __syncthreads();
    for (int i = (int)threadIdx.x; i < count; i += THREADS) {
        const float level = book->levels[i];
        if (i + 1 < count)
            book->thresholds[i] = __double2float_rd(0.5 * ((double)level + book->levels[i + 1]));
        int first = i;
        while (first > 0 && book->levels[first - 1] == level)
            first--;
        book->first_equal[i] = (uint8_t)first;
    }
    __syncthreads();
}

static __device__ __forceinline__ int nearest(const codebook &book, int bits, float weight)
{
    int code = 0;
    for (int half = 1 << bits >> 1; half > 0; half >>= 1)
        if (weight > book.thresholds[code + half - 1])
            code += half;
    return book.first_equal[code];
}

/* What is stored for a weight of the sparse part, an F16. */
static __device__ __forceinline__ uint16_t sparse_value(float weight, float level)
{
    return finite_f16((double)weight - (double)level);
}

/* ---- packing ---- */

static __global__ void __launch_bounds__(THREADS)
    encode_kernel(decant_cuda_rows rows, decant_packed_matrix packed)
{
    __shared__ codebook book;
    const int lane = (int)threadIdx.x % DECANT_WARP, warp = (int)threadIdx.x / DECANT_WARP, bits = packed.bits;
    const int64_t row = blockIdx.x, start = row * rows.columns;
    const int words = (rows.columns + 31) / 32;
    read_codebook(packed.levels + (row << bits), bits, &book);
    uint32_t *planes = packed.planes + row * bits * words;
    for (int first = warp; first < words; first += BATCH * WARPS) {
        float weights[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int column = (first + i * WARPS) * 32 + lane;
            weights[i] = column < rows.columns ? weight_at(rows.weights, rows.element, start + column) : 0;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int word = first + i * WARPS;
            if (word >= words)
                break;
            const int code = word * 32 + lane < rows.columns ? nearest(book, bits, weights[i]) : 0;
            uint32_t mine = 0; /* lane b keeps the word of plane b */
            for (int b = 0; b < bits; b++) {
                const uint32_t plane = __ballot_sync(DECANT_ALL_LANES, code >> b & 1);
                if (lane == b)
                    mine = plane;
            }
            if (lane < bits)
                planes[(int64_t)lane * words + word] = mine;
        }
    }
    if (!rows.row_offsets)
        return;
    for (uint32_t i = rows.row_offsets[row] + threadIdx.x; i < rows.row_offsets[row + 1]; i += THREADS) {
        const float weight = weight_at(rows.weights, rows.element, start + rows.pattern_columns[i]);
        packed.sparse_values[i] = sparse_value(weight, book.levels[nearest(book, bits, weight)]);
    }
}

decant_status decant_cuda_encode(decant_backend *backend, decant_matrix weight, decant_packed_matrix *packed,
                                 decant_error *err)
{
    if (weight.rows != packed->rows || weight.columns != packed->columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "the packed matrix has another shape than the weight");
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    const decant_cuda_rows rows = decant_cuda_rows_of(weight, NULL, &packed->sparse, 0, weight.rows);
    encode_kernel<<<(unsigned)weight.rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(rows, *packed);
    return decant_cuda_launched(backend, "encode", err);
}

/* ---- measuring ---- */

struct error_sums {
    double weighted, squared, norm;
};

static __device__ __forceinline__ void add_error(error_sums &sums, float weight, float fisher, float level,
                                                 bool sparse)
{
    double miss = (double)weight - (double)level;
    if (sparse)
        miss -= (double)__half2float(__ushort_as_half(sparse_value(weight, level)));
    const double squared = miss * miss;
    sums.weighted += fisher * squared;
    sums.squared += squared;
    sums.norm += (double)weight * weight;
}

static __device__ __forceinline__ error_sums sum_over_block(const error_sums &mine, double *parts)
{
    error_sums all;
    all.weighted = decant_block_sum(mine.weighted, parts);
    all.squared = decant_block_sum(mine.squared, parts);
    all.norm = decant_block_sum(mine.norm, parts);
    return all;
}

static __global__ void __launch_bounds__(THREADS)
    measure_rows_kernel(decant_cuda_rows rows, int bits, const uint16_t *levels, error_sums *row_sums)
{
    __shared__ codebook book;
    __shared__ uint32_t marks[TILE / 32];
    __shared__ double parts[WARPS];
    const int64_t row = blockIdx.x, start = row * rows.columns;
    read_codebook(levels + (row << bits), bits, &book);
    error_sums sums = {0, 0, 0};
    for (int first = 0; first < rows.columns; first += TILE) {
        if (rows.row_offsets)
            mark_pattern(rows, row, (uint32_t)first, marks, TILE / 32);
        const int count = min(TILE, rows.columns - first);
#pragma unroll 4
        for (int i = (int)threadIdx.x; i < count; i += THREADS) {
            const int64_t place = start + first + i;
            const float weight = weight_at(rows.weights, rows.element, place);
            const float fisher = rows.fisher ? rows.fisher[place] : 1.0f;
            const bool sparse = rows.row_offsets && is_marked(marks, (uint32_t)i);
            add_error(sums, weight, fisher, book.levels[nearest(book, bits, weight)], sparse);
        }
    }
    sums = sum_over_block(sums, parts);
    if (threadIdx.x == 0)
        row_sums[row] = sums;
}

/* One block: the sum over rows. */
static __global__ void __launch_bounds__(TOTAL_THREADS)
    measure_all_kernel(const error_sums *row_sums, int64_t rows, error_sums *all)
{
    __shared__ double parts[TOTAL_THREADS / DECANT_WARP];
    error_sums sums = {0, 0, 0};
    for (int64_t row = threadIdx.x; row < rows; row += TOTAL_THREADS) {
        sums.weighted += row_sums[row].weighted;
        sums.squared += row_sums[row].squared;
        sums.norm += row_sums[row].norm;
    }
    sums = sum_over_block(sums, parts);
    if (threadIdx.x == 0)
        *all = sums;
}

decant_status decant_cuda_measure(decant_backend *backend, decant_matrix weight, const float *fisher,
                                  const decant_sparse_pattern *pattern, int bits, const uint16_t *levels,
                                  decant_matrix_error *error, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    *error = decant_matrix_error{0, 0, 0};
    if (weight.rows == 0 || weight.columns == 0)
        return DECANT_OK;
    void *memory;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, ((size_t)weight.rows + 1) * sizeof(error_sums), &memory, err));
    error_sums *all = (error_sums *)memory, *row_sums = all + 1, host;
    const decant_cuda_rows rows = decant_cuda_rows_of(weight, fisher, pattern, 0, weight.rows);
    measure_rows_kernel<<<(unsigned)weight.rows, THREADS, 0, stream>>>(rows, bits, levels, row_sums);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "measure rows", err));
    measure_all_kernel<<<1, TOTAL_THREADS, 0, stream>>>(row_sums, weight.rows, all);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "measure", err));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_receive(decant_cuda_context_of(backend), &host, all, sizeof host, err));
    *error = decant_matrix_error{host.weighted, host.squared, host.norm};
    return DECANT_OK;
}
