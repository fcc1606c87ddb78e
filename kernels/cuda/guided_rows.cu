/* Guided quantization, row by row: the nearest codes to begin with, the objective, and in the end what is
 * stored and its error. Knows nothing of the search. */
#include "kernels/cuda/guided.cuh"
#include "kernels/cuda/row_pattern.cuh"
#include "kernels/level_grid.h"

enum {
    THREADS = 256,
    WARPS = THREADS / DECANT_WARP,
    MOST_LEVELS = 1 << DECANT_BITS_MAXIMUM,
    MARK_WORDS = 512, /* of the pattern, marked at once */
    VECTOR = 8,       /* BF16 numbers in sixteen bytes */
    REMAINDERS = 512, /* of the sparse part of a row, in shared memory at once */
};

/* ---- beginning ---- */

/* A block a group: λ = damping · mean of the diagonal of H. */
static __global__ void __launch_bounds__(THREADS) damping_kernel(decant_cuda_guided g, double damping)
{
    __shared__ double parts[WARPS];
    const int64_t n = g.columns;
    const float *hessian = g.hessian + blockIdx.x * n * n;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS)
        sum += hessian[i * n + i];
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0)
        g.damping[blockIdx.x] = (float)(damping * sum / (double)n);
}

/* The parts of H, N elements a thread. */
template <int N>
static __global__ void __launch_bounds__(THREADS) split_kernel(decant_cuda_guided g, int64_t count)
{
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float values[N], firsts[N], rests[N];
    decant_load(g.hessian + i, values);
#pragma unroll
    for (int j = 0; j < N; j++) {
        firsts[j] = __bfloat162float(__float2bfloat16_rn(values[j]));
        rests[j] = values[j] - firsts[j];
    }
    decant_store(g.hessian_parts + i, firsts);
    decant_store(g.hessian_parts + count + i, rests);
}

static decant_status split_hessian(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const int64_t count = (int64_t)g->groups * g->columns * g->columns;
    const bool vectors = decant_has_vectors<__nv_bfloat16>(count, g->hessian);
    const int64_t per_block = (int64_t)THREADS * (vectors ? VECTOR : 1);
    const unsigned blocks = (unsigned)((count + per_block - 1) / per_block);
    if (vectors)
        split_kernel<VECTOR><<<blocks, THREADS, 0, stream>>>(*g, count);
    else
        split_kernel<1><<<blocks, THREADS, 0, stream>>>(*g, count);
    return decant_cuda_launched(backend, "guide, parts of H", err);
}

/* A block a row: the pattern as bits. */
static __global__ void __launch_bounds__(THREADS) mark_kernel(decant_cuda_guided g, decant_cuda_rows rows)
{
    __shared__ uint32_t marks[MARK_WORDS];
    const int64_t row = blockIdx.x;
    for (int first = 0; first < g.words; first += MARK_WORDS) {
        const int count = min(MARK_WORDS, g.words - first);
        mark_pattern(rows, row, (uint32_t)first * 32, marks, MARK_WORDS);
        for (int i = (int)threadIdx.x; i < count; i += THREADS)
            g.marks[row * g.words + first + i] = marks[i];
    }
}

/* A thread a row: levels to start from, as they can be stored. */
static __global__ void __launch_bounds__(THREADS) start_kernel(decant_cuda_guided g)
{
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int count = 1 << g.bits;
    if (row >= g.rows)
        return;
    uint16_t *levels = g.packed.levels + (row << g.bits);
    double largest = 0;
    for (int i = 0; i < count; i++)
        largest = fmax(largest, fabs(decant_level_clamped(decant_guided_level(levels, i))));
    const int exponent = decant_level_exponent(largest);
    for (int i = 0; i < count; i++)
        levels[i] =
            finite_f16(decant_level_rounded(decant_level_clamped(decant_guided_level(levels, i)), exponent));
}

/* All threads of a block: a row's codes of the nearest levels, the lower of two as near; δ. */
static __device__ void take_nearest(const decant_cuda_guided &g, int64_t row)
{
    __shared__ float thresholds[MOST_LEVELS], values[MOST_LEVELS];
    const int64_t n = g.columns;
    const int count = 1 << g.bits;
    const uint16_t *levels = g.packed.levels + (row << g.bits);
    for (int i = (int)threadIdx.x; i < count; i += THREADS) {
        thresholds[i] = decant_guided_threshold(levels, count, i);
        values[i] = decant_guided_level(levels, i);
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const float weight = weight_at(g.weight.data, g.weight.element, row * n + j);
        int code = 0;
        for (int half = count >> 1; half > 0; half >>= 1)
            if (weight > thresholds[code + half - 1])
                code += half;
        const bool sparse = g.marks[row * g.words + j / 32] >> j % 32 & 1;
        g.codes[row * n + j] = (uint8_t)code;
        decant_guided_set_missing(g, row * n + j, sparse ? 0 : weight - values[code]);
    }
}

/* A block a row. */
static __global__ void __launch_bounds__(THREADS) nearest_kernel(decant_cuda_guided g)
{
    take_nearest(g, blockIdx.x);
}

decant_status decant_cuda_guided_begin(decant_backend *backend, const decant_cuda_guided *g, double damping,
                                       decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const unsigned rows = (unsigned)g->rows;
    const decant_cuda_rows pattern = decant_cuda_rows_of(g->weight, NULL, &g->packed.sparse, 0, g->rows);
    damping_kernel<<<(unsigned)g->groups, THREADS, 0, stream>>>(*g, damping);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, damping", err));
    DECANT_RETURN_ON_FAILURE(split_hessian(backend, g, err));
    mark_kernel<<<rows, THREADS, 0, stream>>>(*g, pattern);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, marks", err));
    if (decant_levels_are_bytes(1 << g->bits)) {
        start_kernel<<<(rows + THREADS - 1) / THREADS, THREADS, 0, stream>>>(*g);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, levels to start from", err));
    }
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaMemcpyAsync(g->start, g->packed.levels,
                                                               ((size_t)g->rows << g->bits) * sizeof(uint16_t),
                                                               cudaMemcpyDeviceToDevice, stream),
                                               "guide", err));
    nearest_kernel<<<rows, THREADS, 0, stream>>>(*g);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, nearest codes", err));
    return decant_cuda_check(
        cudaMemsetAsync(g->results, 0, (size_t)g->rows * sizeof(decant_guided_row), stream), "guide", err);
}

/* ---- the sparse part ---- */

/* What a stored sparse value misses; i: its place in the pattern. */
static __device__ float remainder_of(const decant_cuda_guided &g, int64_t row, uint32_t i)
{
    const int64_t at = row * g.columns + g.packed.sparse.columns[i];
    const double weight = weight_at(g.weight.data, g.weight.element, at);
    const double level = decant_guided_level(g.packed.levels + (row << g.bits), g.codes[at]);
    return (float)(weight - level - (double)__half2float(__ushort_as_half(g.packed.sparse_values[i])));
}

static __device__ void store_sparse(const decant_cuda_guided &g, int64_t row)
{
    const decant_sparse_pattern &pattern = g.packed.sparse;
    const uint16_t *levels = g.packed.levels + (row << g.bits);
    for (uint32_t i = pattern.row_offsets[row] + threadIdx.x; i < pattern.row_offsets[row + 1]; i += THREADS) {
        const int64_t at = row * g.columns + pattern.columns[i];
        const double weight = weight_at(g.weight.data, g.weight.element, at);
        g.packed.sparse_values[i] = finite_f16(weight - (double)decant_guided_level(levels, g.codes[at]));
    }
}

/* ---- objectives: a warp a row ---- */

static __device__ int group_of(const decant_cuda_guided &g, int64_t row)
{
    int group = (int)(row * g.groups / g.rows); /* the group itself, or the one before */
    if (group + 1 < g.groups && (int64_t)g.rows * (group + 1) / g.groups <= row)
        group++;
    return group;
}

/* When the objective is asked for, and so where it goes. */
enum objective_moment { BEFORE, BETWEEN, END };

/* Adds the part of the columns [first, first + count). In the end, `weighted` gets δᵀ H δ and what crosses with
 * the remainders e of the sparse part: 2 eᵀ H δ. */
template <objective_moment MOMENT>
static __global__ void __launch_bounds__(THREADS) objective_kernel(decant_cuda_guided g, int first, int count)
{
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= g.rows)
        return;
    const float *missing = g.missing + row * g.columns + first;
    const float *gradient = g.gradient + row * DECANT_GUIDED_PANEL;
    double product = 0, squares = 0, crossed = 0;
    for (int j = lane; j < count; j += DECANT_WARP) {
        const double delta = missing[j];
        product += delta * gradient[j];
        squares += delta * delta;
    }
    if (MOMENT == END && g.packed.sparse.count > 0)
        for (uint32_t i = g.packed.sparse.row_offsets[row] + lane; i < g.packed.sparse.row_offsets[row + 1];
             i += DECANT_WARP) {
            const int64_t j = (int64_t)g.packed.sparse.columns[i] - first;
            if (j >= 0 && j < count)
                crossed += 2.0 * remainder_of(g, row, i) * gradient[j];
        }
    product = decant_warp_sum(product);
    squares = decant_warp_sum(squares);
    crossed = decant_warp_sum(crossed);
    if (lane != 0)
        return;
    decant_guided_row *result = &g.results[row];
    *(MOMENT == BEFORE ? &result->before : &result->after) += product + squares * g.damping[group_of(g, row)];
    if (MOMENT == END)
        result->error.weighted += product + crossed;
}

/* A block a row: weighted += eᵀ H e. The whole row may be in the sparse part. */
static __global__ void __launch_bounds__(THREADS) remainder_kernel(decant_cuda_guided g)
{
    __shared__ double parts[WARPS];
    __shared__ uint32_t columns[REMAINDERS];
    __shared__ float rests[REMAINDERS];
    const int64_t row = blockIdx.x, n = g.columns;
    const float *hessian = g.hessian + group_of(g, row) * n * n;
    const uint32_t begin = g.packed.sparse.row_offsets[row], end = g.packed.sparse.row_offsets[row + 1];
    double sum = 0;
    for (uint32_t first = begin; first < end; first += REMAINDERS) {
        const int count = (int)min((uint32_t)REMAINDERS, end - first);
        __syncthreads(); /* earlier readers are done */
        for (int k = (int)threadIdx.x; k < count; k += THREADS) {
            columns[k] = g.packed.sparse.columns[first + k];
            rests[k] = remainder_of(g, row, first + k);
        }
        __syncthreads();
        for (uint32_t i = begin + threadIdx.x; i < end; i += THREADS) {
            const int64_t column = g.packed.sparse.columns[i];
            double inner = 0;
#pragma unroll 8
            for (int k = 0; k < count; k++)
                inner += (double)rests[k] * hessian[columns[k] * n + column];
            sum += inner * remainder_of(g, row, i);
        }
    }
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0)
        g.results[row].error.weighted += sum;
}

template <objective_moment MOMENT>
static decant_status add_objective(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    const unsigned blocks = (unsigned)((g->rows + WARPS - 1) / WARPS);
    for (int first = 0; first < g->columns; first += DECANT_GUIDED_PANEL) {
        const int left = g->columns - first, count = left < DECANT_GUIDED_PANEL ? left : DECANT_GUIDED_PANEL;
        DECANT_RETURN_ON_FAILURE(decant_cuda_guided_exact_gradient(backend, g, first, count, err));
        objective_kernel<MOMENT><<<blocks, THREADS, 0, decant_cuda_of(backend)->stream>>>(*g, first, count);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, objective", err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_guided_before(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    return add_objective<BEFORE>(backend, g, err);
}

/* ---- between ---- */

/* A block a row: δ of the codes. */
static __global__ void __launch_bounds__(THREADS) missing_kernel(decant_cuda_guided g)
{
    __shared__ float values[MOST_LEVELS];
    const int64_t row = blockIdx.x, n = g.columns;
    for (int i = (int)threadIdx.x; i < 1 << g.bits; i += THREADS)
        values[i] = decant_guided_level(g.packed.levels + (row << g.bits), i);
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const int64_t at = row * n + j;
        const bool sparse = g.marks[row * g.words + j / 32] >> j % 32 & 1;
        decant_guided_set_missing(
            g, at, sparse ? 0 : weight_at(g.weight.data, g.weight.element, at) - values[g.codes[at]]);
    }
}

decant_status decant_cuda_guided_find_missing(decant_backend *backend, const decant_cuda_guided *g,
                                              decant_error *err)
{
    missing_kernel<<<(unsigned)g->rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(*g);
    return decant_cuda_launched(backend, "guide, what is missing", err);
}

/* A block a row. */
static __global__ void __launch_bounds__(THREADS) keep_better_kernel(decant_cuda_guided g)
{
    __shared__ bool is_better;
    const int64_t row = blockIdx.x;
    if (threadIdx.x == 0) {
        decant_guided_row *result = &g.results[row];
        is_better = !g.failed[group_of(g, row)] && result->after < result->before;
        result->after = 0;
    }
    __syncthreads();
    if (is_better)
        return;
    for (int i = (int)threadIdx.x; i < 1 << g.bits; i += THREADS)
        g.packed.levels[(row << g.bits) + i] = g.start[(row << g.bits) + i];
    __syncthreads();
    take_nearest(g, row);
}

decant_status decant_cuda_guided_keep_better(decant_backend *backend, const decant_cuda_guided *g,
                                             decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(add_objective<BETWEEN>(backend, g, err));
    keep_better_kernel<<<(unsigned)g->rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(*g);
    return decant_cuda_launched(backend, "guide, rows that became worse", err);
}

/* ---- what is stored ---- */

static __device__ void pack_codes(const decant_cuda_guided &g, int64_t row)
{
    const int lane = (int)threadIdx.x % DECANT_WARP, warp = (int)threadIdx.x / DECANT_WARP;
    uint32_t *planes = g.packed.planes + row * g.bits * g.words;
    for (int word = warp; word < g.words; word += WARPS) {
        const int column = word * 32 + lane;
        const int code = column < g.columns ? g.codes[row * g.columns + column] : 0;
        uint32_t mine = 0; /* lane b keeps the word of plane b */
        for (int b = 0; b < g.bits; b++) {
            const uint32_t plane = __ballot_sync(DECANT_ALL_LANES, code >> b & 1);
            if (lane == b)
                mine = plane;
        }
        if (lane < g.bits)
            planes[(int64_t)lane * g.words + word] = mine;
    }
}

/* A block a row. */
static __global__ void __launch_bounds__(THREADS) store_kernel(decant_cuda_guided g)
{
    __shared__ double parts[WARPS];
    const int64_t row = blockIdx.x, n = g.columns;
    double squared = 0, norm = 0;
    pack_codes(g, row);
    for (int64_t at = row * n + threadIdx.x; at < (row + 1) * n; at += THREADS) {
        const double weight = weight_at(g.weight.data, g.weight.element, at), delta = g.missing[at];
        squared += delta * delta;
        norm += weight * weight;
    }
    if (g.packed.sparse.count > 0) {
        store_sparse(g, row);
        for (uint32_t i = g.packed.sparse.row_offsets[row] + threadIdx.x; /* those that it has stored itself */
             i < g.packed.sparse.row_offsets[row + 1]; i += THREADS) {
            const double rest = remainder_of(g, row, i);
            squared += rest * rest;
        }
    }
    squared = decant_block_sum(squared, parts);
    norm = decant_block_sum(norm, parts);
    if (threadIdx.x == 0) {
        g.results[row].error.squared = squared;
        g.results[row].error.norm = norm;
    }
}

decant_status decant_cuda_guided_store(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    store_kernel<<<(unsigned)g->rows, THREADS, 0, stream>>>(*g);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, storing", err));
    DECANT_RETURN_ON_FAILURE(add_objective<END>(backend, g, err));
    if (g->packed.sparse.count == 0)
        return DECANT_OK;
    remainder_kernel<<<(unsigned)g->rows, THREADS, 0, stream>>>(*g);
    return decant_cuda_launched(backend, "guide, sparse remainders", err);
}
