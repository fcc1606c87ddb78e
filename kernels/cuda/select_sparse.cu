/* Which weights leave the dense part: the largest by F, then the largest by magnitude among the others, exact
 * counts, the lowest row-major index first among equals. Knows nothing of levels or codes.
 *
 * The n-th largest key is found digit by digit: a histogram of one digit over the keys that agree with the
 * digits found so far, then the digit where the count from the top reaches n. Weights above that key are marked
 * in a bitmap; of those equal to it, counted by row, the first so many are marked too. The bitmap then becomes
 * the CSR pattern. All counts are integers, so that neither threads nor timing show in the result.
 *
 * Traffic: four readings of each key's source and one more of the rows that hold equal keys to take. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/weight_bits.cuh"

#include <cub/block/block_scan.cuh>

enum {
    DIGIT_BITS = 11, /* of a 32-bit key: digits of 11, 11 and 10 bits, from the top */
    BINS = 1 << DIGIT_BITS,
    THREADS = 256,
    WARPS = THREADS / DECANT_WARP,
    BATCH = 4, /* words of the bitmap whose keys a warp loads before it looks at them */
    SCAN_THREADS = 1024,
    SCAN_ITEMS = 4,
};

/* ---- keys: integers in the order of what is selected by ---- */

struct fisher_key {
    const float *fisher; /* NULL: all ones */

    __device__ __forceinline__ uint32_t operator()(int64_t place) const
    {
        const uint32_t bits = __float_as_uint(fisher ? fisher[place] : 1.0f);
        return bits >> 31 ? 0 : bits; /* negative values, which fit_levels refuses, come last */
    }
};

struct magnitude_key {
    const void *weights;
    decant_element element;

    __device__ __forceinline__ uint32_t operator()(int64_t place) const
    {
        return __float_as_uint(weight_at(weights, element, place)) & 0x7fffffffu;
    }
};

/* The matrix as words of 32 columns, and which of its weights are taken: a bit each. */
struct bitmap {
    int64_t rows, columns;
    uint32_t words;  /* a row */
    uint32_t *taken; /* [rows, words] */
};

/* A key of a weight that is not taken. */
struct free_key {
    bool is_free; /* false also outside the matrix */
    uint32_t key;
};

template <typename KEY>
static __device__ __forceinline__ free_key read_key(const bitmap &map, const KEY &key, int64_t row,
                                                    uint32_t word)
{
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t column = (int64_t)word * DECANT_WARP + lane;
    if (column >= map.columns || (map.taken[row * map.words + word] >> lane & 1))
        return free_key{false, 0};
    return free_key{true, key(row * map.columns + column)};
}

/* ---- the key of the last one to take ---- */

struct threshold {
    uint32_t key;                 /* the digits found so far, then zeros */
    unsigned long long remaining; /* how many to take among the keys that agree with these digits */
};

template <typename KEY>
static __global__ void __launch_bounds__(THREADS)
    histogram_kernel(bitmap map, KEY key, const threshold *found, int shift, int digit_bits,
                     unsigned long long *bins)
{
    __shared__ uint32_t counts[BINS];
    for (int i = (int)threadIdx.x; i < BINS; i += THREADS)
        counts[i] = 0;
    __syncthreads();
    const int top = shift + digit_bits; /* 32 in the first pass: nothing is found yet */
    const uint32_t digits = top < 32 ? found->key >> top : 0, mask = (1u << digit_bits) - 1;
    const uint64_t words = (uint64_t)map.rows * map.words, step = (uint64_t)gridDim.x * WARPS;
    for (uint64_t first = (uint64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP; first < words;
         first += BATCH * step) {
        free_key keys[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const uint32_t word = (uint32_t)(first + i * step); /* the caller keeps words below 2^32 */
            keys[i].is_free = false;
            if (first + i * step < words)
                keys[i] = read_key(map, key, word / map.words, word % map.words);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (keys[i].is_free && (top == 32 || keys[i].key >> top == digits))
                atomicAdd(&counts[keys[i].key >> shift & mask], 1u);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < BINS; i += THREADS)
        if (counts[i] > 0)
            atomicAdd(&bins[i], (unsigned long long)counts[i]);
}

/* One block: the digit in which the count from the top reaches what remains to be taken. Leaves the bins empty.
 */
static __global__ void __launch_bounds__(SCAN_THREADS)
    find_digit_kernel(unsigned long long *bins, int shift, threshold *found)
{
    using scan_type = cub::BlockScan<unsigned long long, SCAN_THREADS>;
    __shared__ typename scan_type::TempStorage storage;
    enum { ITEMS = BINS / SCAN_THREADS };
    const unsigned long long remaining = found->remaining;
    unsigned long long counts[ITEMS], above[ITEMS];
    int digit[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        digit[i] = BINS - 1 - (ITEMS * (int)threadIdx.x + i);
        counts[i] = bins[digit[i]];
        bins[digit[i]] = 0;
    }
    scan_type(storage).ExclusiveSum(counts, above);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
        if (above[i] < remaining && remaining <= above[i] + counts[i]) {
            found->key |= (uint32_t)digit[i] << shift;
            found->remaining = remaining - above[i];
        }
}

/* ---- taking ---- */

/* Takes what is above the key, and counts by row what equals it. */
template <typename KEY>
static __global__ void __launch_bounds__(THREADS)
    take_above_kernel(bitmap map, KEY key, const threshold *found, uint32_t *equal)
{
    const uint32_t last = found->key;
    const uint64_t words = (uint64_t)map.rows * map.words, step = (uint64_t)gridDim.x * WARPS;
    for (uint64_t first = (uint64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP; first < words;
         first += BATCH * step) {
        free_key keys[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const uint32_t word = (uint32_t)(first + i * step);
            keys[i].is_free = false;
            if (first + i * step < words)
                keys[i] = read_key(map, key, word / map.words, word % map.words);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const uint32_t above = __ballot_sync(DECANT_ALL_LANES, keys[i].is_free && keys[i].key > last);
            const uint32_t same = __ballot_sync(DECANT_ALL_LANES, keys[i].is_free && keys[i].key == last);
            const uint32_t word = (uint32_t)(first + i * step);
            if (threadIdx.x % DECANT_WARP == 0 && above)
                map.taken[word] |= above;
            if (threadIdx.x % DECANT_WARP == 0 && same)
                atomicAdd(&equal[word / map.words], (uint32_t)__popc(same));
        }
    }
}

/* One block: offsets[i] = counts[0] + … + counts[i − 1], i ≤ n. counts and offsets may be one array. */
static __global__ void __launch_bounds__(SCAN_THREADS)
    add_up_kernel(const uint32_t *counts, int64_t n, uint32_t *offsets)
{
    using scan_type = cub::BlockScan<uint32_t, SCAN_THREADS>;
    __shared__ typename scan_type::TempStorage storage;
    uint32_t carried = 0;
    for (int64_t tile = 0; tile < n; tile += SCAN_THREADS * SCAN_ITEMS) {
        const int64_t first = tile + SCAN_ITEMS * (int64_t)threadIdx.x;
        uint32_t values[SCAN_ITEMS], before[SCAN_ITEMS], all;
#pragma unroll
        for (int i = 0; i < SCAN_ITEMS; i++)
            values[i] = first + i < n ? counts[first + i] : 0;
        scan_type(storage).ExclusiveSum(values, before, all);
#pragma unroll
        for (int i = 0; i < SCAN_ITEMS; i++)
            if (first + i < n)
                offsets[first + i] = carried + before[i];
        carried += all;
        __syncthreads(); /* before the scan's storage is used again */
    }
    if (threadIdx.x == 0)
        offsets[n] = carried;
}

/* A warp a row: of the weights that equal the key, the first ones in row-major order as long as any remain to
 * be taken. equal_before: [rows + 1] how many there are in the rows before. */
template <typename KEY>
static __global__ void __launch_bounds__(THREADS)
    take_equal_kernel(bitmap map, KEY key, const threshold *found, const uint32_t *equal_before)
{
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= map.rows || equal_before[row] >= found->remaining)
        return;
    const unsigned long long wanted = found->remaining - equal_before[row];
    uint32_t quota = equal_before[row + 1] - equal_before[row];
    if (quota > wanted)
        quota = (uint32_t)wanted;
    const uint32_t last = found->key;
    for (uint32_t first = 0; first < map.words && quota > 0; first += BATCH) {
        free_key keys[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            keys[i].is_free = false;
            if (first + i < map.words)
                keys[i] = read_key(map, key, row, first + i);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const bool same = keys[i].is_free && keys[i].key == last;
            const uint32_t all = __ballot_sync(DECANT_ALL_LANES, same);
            const uint32_t rank = (uint32_t)__popc(all & ((1u << lane) - 1));
            const uint32_t chosen = __ballot_sync(DECANT_ALL_LANES, same && rank < quota);
            quota -= (uint32_t)__popc(chosen);
            if (lane == 0 && chosen)
                map.taken[row * map.words + first + i] |= chosen;
        }
    }
}

/* ---- the pattern ---- */

/* A warp a row. */
static __global__ void __launch_bounds__(THREADS) count_rows_kernel(bitmap map, uint32_t *counts)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= map.rows)
        return;
    uint32_t count = 0;
    for (uint32_t word = threadIdx.x % DECANT_WARP; word < map.words; word += DECANT_WARP)
        count += (uint32_t)__popc(map.taken[row * map.words + word]);
    count = __reduce_add_sync(DECANT_ALL_LANES, count);
    if (threadIdx.x % DECANT_WARP == 0)
        counts[row] = count;
}

/* A warp a row, a word a lane: the columns of the bits, ascending. */
static __global__ void __launch_bounds__(THREADS)
    list_columns_kernel(bitmap map, const uint32_t *row_offsets, uint32_t *columns)
{
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= map.rows)
        return;
    uint32_t next = row_offsets[row];
    for (uint32_t first = 0; first < map.words && next < row_offsets[row + 1]; first += DECANT_WARP) {
        const uint32_t word = first + (uint32_t)lane;
        uint32_t bits = word < map.words ? map.taken[row * map.words + word] : 0;
        const uint32_t count = (uint32_t)__popc(bits);
        uint32_t upto = count; /* in the words of the lanes up to this one */
#pragma unroll
        for (int offset = 1; offset < DECANT_WARP; offset *= 2) {
            const uint32_t before = __shfl_up_sync(DECANT_ALL_LANES, upto, offset);
            if (lane >= offset)
                upto += before;
        }
        for (uint32_t place = next + upto - count; bits; bits &= bits - 1)
            columns[place++] = word * DECANT_WARP + (uint32_t)__ffs((int)bits) - 1;
        next += __shfl_sync(DECANT_ALL_LANES, upto, DECANT_WARP - 1);
    }
}

/* ---- the operation ---- */

/* Scratch, all zero at first. */
struct selection {
    bitmap map;
    threshold *found[2];      /* by F, by magnitude */
    unsigned long long *bins; /* [BINS] */
    uint32_t *equal[2];       /* [rows + 1] */
};

static selection place_selection(decant_cuda_arena *arena, decant_matrix weight)
{
    selection s;
    s.map.rows = weight.rows;
    s.map.columns = weight.columns;
    s.map.words = (uint32_t)((weight.columns + 31) / 32);
    s.map.taken =
        (uint32_t *)decant_cuda_arena_take(arena, (size_t)weight.rows * s.map.words * sizeof(uint32_t));
    s.bins = (unsigned long long *)decant_cuda_arena_take(arena, BINS * sizeof *s.bins);
    for (int i = 0; i < 2; i++) {
        s.found[i] = (threshold *)decant_cuda_arena_take(arena, sizeof(threshold));
        s.equal[i] = (uint32_t *)decant_cuda_arena_take(arena, ((size_t)weight.rows + 1) * sizeof(uint32_t));
    }
    return s;
}

static __global__ void begin_kernel(threshold *found, unsigned long long count)
{
    *found = threshold{0, count};
}

static unsigned blocks_of_rows(const bitmap &map)
{
    return (unsigned)((map.rows + WARPS - 1) / WARPS);
}

/* Takes the `count` free weights with the largest keys. */
template <typename KEY>
static decant_status take_largest(decant_backend *backend, const selection &s, int which, KEY key,
                                  int64_t count, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const uint64_t batches = ((uint64_t)s.map.rows * s.map.words + BATCH * WARPS - 1) / (BATCH * WARPS);
    const uint64_t most = (uint64_t)decant_cuda_of(backend)->multiprocessors * 8;
    const unsigned blocks = (unsigned)(batches < most ? batches : most);
    begin_kernel<<<1, 1, 0, stream>>>(s.found[which], (unsigned long long)count);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "begin of selection", err));
    for (int top = 32; top > 0; top -= DIGIT_BITS) {
        const int shift = top > DIGIT_BITS ? top - DIGIT_BITS : 0;
        histogram_kernel<<<blocks, THREADS, 0, stream>>>(s.map, key, s.found[which], shift, top - shift,
                                                         s.bins);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "histogram of keys", err));
        find_digit_kernel<<<1, SCAN_THREADS, 0, stream>>>(s.bins, shift, s.found[which]);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "digit of keys", err));
    }
    take_above_kernel<<<blocks, THREADS, 0, stream>>>(s.map, key, s.found[which], s.equal[which]);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "taking largest", err));
    add_up_kernel<<<1, SCAN_THREADS, 0, stream>>>(s.equal[which], s.map.rows, s.equal[which]);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "counting equals", err));
    take_equal_kernel<<<blocks_of_rows(s.map), THREADS, 0, stream>>>(s.map, key, s.found[which],
                                                                     s.equal[which]);
    return decant_cuda_launched(backend, "taking equals", err);
}

static decant_status list_pattern(decant_backend *backend, const bitmap &map, decant_sparse_pattern *pattern,
                                  decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    count_rows_kernel<<<blocks_of_rows(map), THREADS, 0, stream>>>(map, pattern->row_offsets);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "counting rows", err));
    add_up_kernel<<<1, SCAN_THREADS, 0, stream>>>(pattern->row_offsets, map.rows, pattern->row_offsets);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "row offsets", err));
    list_columns_kernel<<<blocks_of_rows(map), THREADS, 0, stream>>>(map, pattern->row_offsets,
                                                                     pattern->columns);
    return decant_cuda_launched(backend, "listing columns", err);
}

decant_status decant_cuda_select_sparse(decant_backend *backend, decant_matrix weight, const float *fisher,
                                        int64_t n_sensitive, int64_t n_outliers, decant_sparse_pattern *pattern,
                                        decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    if (n_sensitive < 0 || n_outliers < 0 || pattern->count != n_sensitive + n_outliers ||
        pattern->count > weight.rows * weight.columns)
        return DECANT_ERROR(err, DECANT_ERROR_BUG,
                            "a pattern of %lld weights for %lld sensitive ones and %lld outliers",
                            (long long)pattern->count, (long long)n_sensitive, (long long)n_outliers);
    if (pattern->count > UINT32_MAX || weight.rows * ((weight.columns + 31) / 32) > UINT32_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "a matrix of %lld x %lld is too large for a sparse part",
                            (long long)weight.rows, (long long)weight.columns);
    if (pattern->count == 0 && !pattern->row_offsets)
        return DECANT_OK;
    if (pattern->count == 0)
        return decant_cuda_check(
            cudaMemsetAsync(pattern->row_offsets, 0, ((size_t)weight.rows + 1) * 4, stream), "an empty pattern",
            err);
    decant_cuda_arena size = {NULL, 0};
    place_selection(&size, weight);
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size.used, &memory, err));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaMemsetAsync(memory, 0, size.used, stream), "selection", err));
    decant_cuda_arena arena = {(char *)memory, 0};
    const selection s = place_selection(&arena, weight);
    if (n_sensitive > 0)
        DECANT_RETURN_ON_FAILURE(take_largest(backend, s, 0, fisher_key{fisher}, n_sensitive, err));
    if (n_outliers > 0)
        DECANT_RETURN_ON_FAILURE(
            (take_largest(backend, s, 1, magnitude_key{weight.data, weight.element}, n_outliers, err)));
    return list_pattern(backend, s.map, pattern, err);
}
