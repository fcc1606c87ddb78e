/* Sorts each row of a matrix by value and keeps what k-means counts: the first step of every level search.
 * Knows nothing of points, clusters or levels.
 *
 * A block sorts a row in registers and shared memory. A short float is sorted as one 32-bit integer that holds
 * its ordered bits and its column, by the upper half alone; a full float as key with its column as payload.
 * Masses are fetched afterwards by column. Rows too long for a block go through CUB's segmented sort in device
 * memory. Entries that do not count sort behind all others, and equal values by column. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/row_pattern.cuh"
#include "kernels/cuda/weight_bits.cuh"

#include <cfloat>
#include <cub/block/block_exchange.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/device/device_segmented_radix_sort.cuh>

/* Sorts behind every finite number. */
#define NOT_COUNTED 0xffffffffu

/* The most columns that one block sorts. */
enum {
    BLOCK_SORT_THREADS = 512,
    BLOCK_SORT_ITEMS = 44,
    BLOCK_SORT_COLUMNS = BLOCK_SORT_THREADS * BLOCK_SORT_ITEMS
};

/* ---- which entries count ---- */

struct entry {
    uint32_t bits;
    float fisher;
    bool bad; /* cannot be quantized, counted or not */
};

static __device__ __forceinline__ entry read_entry(const decant_cuda_rows &rows, int64_t row, int column)
{
    const int64_t place = row * rows.columns + column;
    const uint32_t bits = weight_bits(rows.weights, rows.element, place);
    const float fisher = rows.fisher ? rows.fisher[place] : 1.0f;
    const bool good = bits_are_finite(bits, rows.element) && fisher >= 0 && fisher <= FLT_MAX;
    return entry{bits, fisher, !good};
}

/* `once`: no entry of this row that could count has a positive F, so that each counts once. */
static __device__ __forceinline__ bool entry_counts(const entry &e, bool extracted, bool once)
{
    return !e.bad && !extracted && (once || e.fisher > 0);
}

static __device__ __forceinline__ void report_bad(const decant_cuda_rows &rows, int64_t row, int column,
                                                  unsigned long long *bad)
{
    atomicMin(bad, (unsigned long long)((rows.first_row + row) * rows.columns + column));
}

/* The mass of an entry that counts; its F is zero only where all of the row are. */
static __device__ __forceinline__ float mass_at(const decant_cuda_rows &rows, int64_t row, uint32_t column)
{
    const float fisher = rows.fisher ? rows.fisher[row * rows.columns + column] : 1.0f;
    return fisher > 0 ? fisher : 1.0f;
}

/* *sum += the counts of all threads; sum is shared, and complete after a barrier. */
static __device__ __forceinline__ void add_over_block(int count, int *sum)
{
    count = __reduce_add_sync(DECANT_ALL_LANES, count);
    if (threadIdx.x % DECANT_WARP == 0)
        atomicAdd(sum, count);
}

/* ---- rows that a block can sort ---- */

/* The entries of a thread while its block sorts them. */
template <bool FULL_FLOATS, int THREADS, int ITEMS> struct block_sort;

/* Short floats: ordered bits and column in one key. */
template <int THREADS, int ITEMS> struct block_sort<false, THREADS, ITEMS> {
    using sorter = cub::BlockRadixSort<uint32_t, THREADS, ITEMS>;
    uint32_t keys[ITEMS];

    static __device__ __forceinline__ uint32_t key_of(uint32_t ordered, int column)
    {
        return ordered << 16 | (uint32_t)column;
    }
    __device__ __forceinline__ void sort(typename sorter::TempStorage &storage)
    {
        sorter(storage).SortBlockedToStriped(keys, 16, 32);
    }
    __device__ __forceinline__ uint32_t ordered(int i) const
    {
        return keys[i] >> 16;
    }
    __device__ __forceinline__ uint32_t column(int i) const
    {
        return keys[i] & 0xffffu;
    }
};

/* Full floats: the column goes along. */
template <int THREADS, int ITEMS> struct block_sort<true, THREADS, ITEMS> {
    using sorter = cub::BlockRadixSort<uint32_t, THREADS, ITEMS, uint16_t>;
    uint32_t keys[ITEMS];
    uint16_t columns[ITEMS];

    static __device__ __forceinline__ uint32_t key_of(uint32_t ordered, int)
    {
        return ordered;
    }
    __device__ __forceinline__ void sort(typename sorter::TempStorage &storage)
    {
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            columns[i] = (uint16_t)(threadIdx.x * ITEMS + (unsigned)i);
        sorter(storage).SortBlockedToStriped(keys, columns);
    }
    __device__ __forceinline__ uint32_t ordered(int i) const
    {
        return keys[i];
    }
    __device__ __forceinline__ uint32_t column(int i) const
    {
        return columns[i];
    }
};

/* Key i of a thread is that of column i · THREADS + thread. Returns how many of the thread's entries count; bad
 * ones are reported where `bad` is given. */
template <int THREADS, int ITEMS, class SORT>
static __device__ __forceinline__ int load_keys(const decant_cuda_rows &rows, int64_t row,
                                                const uint32_t *marks, bool once, unsigned long long *bad,
                                                SORT &held)
{
    int counted = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const int column = i * THREADS + (int)threadIdx.x;
        held.keys[i] = NOT_COUNTED;
        if (column >= rows.columns)
            continue;
        const entry e = read_entry(rows, row, column);
        if (e.bad && bad)
            report_bad(rows, row, column, bad);
        if (!entry_counts(e, is_marked(marks, (uint32_t)column), once))
            continue;
        held.keys[i] = SORT::key_of(ordered_of_bits(e.bits, rows.element), column);
        counted++;
    }
    return counted;
}

template <bool FULL_FLOATS, int THREADS, int ITEMS> union block_sort_storage {
    typename block_sort<FULL_FLOATS, THREADS, ITEMS>::sorter::TempStorage sort;
    typename cub::BlockExchange<uint32_t, THREADS, ITEMS>::TempStorage exchange;
};

template <bool FULL_FLOATS, int THREADS, int ITEMS>
static __global__ void __launch_bounds__(THREADS)
    sort_rows_kernel(decant_cuda_rows rows, unsigned long long *bad, decant_cuda_points points)
{
    extern __shared__ __align__(16) unsigned char shared[];
    auto &storage = *(block_sort_storage<FULL_FLOATS, THREADS, ITEMS> *)shared;
    __shared__ uint32_t marks[THREADS * ITEMS / 32];
    __shared__ int entries;
    const int64_t row = blockIdx.x;
    if (threadIdx.x == 0)
        entries = 0;
    mark_pattern(rows, row, 0, marks, THREADS * ITEMS / 32);

    block_sort<FULL_FLOATS, THREADS, ITEMS> held;
    int counted = load_keys<THREADS, ITEMS>(rows, row, marks, false, bad, held);
    if (!__syncthreads_or(counted))
        counted = load_keys<THREADS, ITEMS>(rows, row, marks, true, NULL, held);
    add_over_block(counted, &entries);

    /* The sort is stable: in the order of columns before, equal values are so after. */
    cub::BlockExchange<uint32_t, THREADS, ITEMS>(storage.exchange).StripedToBlocked(held.keys, held.keys);
    __syncthreads();
    held.sort(storage.sort);
    __syncthreads(); /* `entries` is complete */

    float *values = points.values + row * points.stride, *masses = points.masses + row * points.stride;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const int rank = i * THREADS + (int)threadIdx.x;
        if (rank >= entries)
            continue;
        values[rank] = weight_of_bits(bits_of_ordered(held.ordered(i), rows.element), rows.element);
        masses[rank] = mass_at(rows, row, held.column(i));
    }
    if (threadIdx.x == 0)
        points.entries[row] = (uint32_t)entries;
}

template <bool FULL_FLOATS, int THREADS, int ITEMS>
static decant_status sort_in_blocks(decant_backend *backend, const decant_cuda_rows *rows,
                                    unsigned long long *bad, const decant_cuda_points *points,
                                    decant_error *err)
{
    const size_t shared_bytes = sizeof(block_sort_storage<FULL_FLOATS, THREADS, ITEMS>);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaFuncSetAttribute(sort_rows_kernel<FULL_FLOATS, THREADS, ITEMS>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes),
                          "shared memory for sorting rows", err));
    sort_rows_kernel<FULL_FLOATS, THREADS, ITEMS>
        <<<rows->rows, THREADS, shared_bytes, decant_cuda_of(backend)->stream>>>(*rows, bad, *points);
    return decant_cuda_launched(backend, "sort rows", err);
}

template <bool FULL_FLOATS>
static decant_status sort_short_rows(decant_backend *backend, const decant_cuda_rows *rows,
                                     unsigned long long *bad, const decant_cuda_points *points,
                                     decant_error *err)
{
    if (rows->columns <= 128 * 8)
        return sort_in_blocks<FULL_FLOATS, 128, 8>(backend, rows, bad, points, err);
    if (rows->columns <= 256 * 16)
        return sort_in_blocks<FULL_FLOATS, 256, 16>(backend, rows, bad, points, err);
    if (rows->columns <= 512 * 22)
        return sort_in_blocks<FULL_FLOATS, 512, 22>(backend, rows, bad, points, err);
    return sort_in_blocks<FULL_FLOATS, BLOCK_SORT_THREADS, BLOCK_SORT_ITEMS>(backend, rows, bad, points, err);
}

/* ---- longer rows ---- */

enum { LONG_THREADS = 512, LONG_TILE = 16384 };

/* Scratch for longer rows; arrays [rows, columns]. */
struct long_sort {
    uint32_t *keys[2], *columns[2];
    int *offsets; /* [rows + 1] where each row begins */
    void *temporary;
    size_t temporary_bytes;
};

static decant_status sort_segments(decant_backend *backend, const long_sort &scratch, int rows, int columns,
                                   cub::DoubleBuffer<uint32_t> &keys, cub::DoubleBuffer<uint32_t> &places,
                                   size_t *temporary_bytes, decant_error *err)
{
    return decant_cuda_check(cub::DeviceSegmentedRadixSort::SortPairs(
                                 scratch.temporary, *temporary_bytes, keys, places, rows * columns, rows,
                                 scratch.offsets, scratch.offsets + 1, 0, 32, decant_cuda_of(backend)->stream),
                             "sorting long rows", err);
}

/* Hands out the scratch; asks CUB how much it wants for itself. */
static decant_status place_long_sort(decant_backend *backend, decant_cuda_arena *arena, int rows, int columns,
                                     long_sort *scratch, decant_error *err)
{
    const size_t all = (size_t)rows * (size_t)columns;
    *scratch = long_sort{};
    cub::DoubleBuffer<uint32_t> keys, places;
    DECANT_RETURN_ON_FAILURE(
        sort_segments(backend, *scratch, rows, columns, keys, places, &scratch->temporary_bytes, err));
    for (int i = 0; i < 2; i++) {
        scratch->keys[i] = (uint32_t *)decant_cuda_arena_take(arena, all * sizeof(uint32_t));
        scratch->columns[i] = (uint32_t *)decant_cuda_arena_take(arena, all * sizeof(uint32_t));
    }
    scratch->offsets = (int *)decant_cuda_arena_take(arena, ((size_t)rows + 1) * sizeof(int));
    scratch->temporary =
        decant_cuda_arena_take(arena, scratch->temporary_bytes + 1); /* NULL would only ask again */
    return DECANT_OK;
}

/* One row: keys and columns of all its entries, those that do not count last once sorted. */
static __global__ void __launch_bounds__(LONG_THREADS)
    long_keys_kernel(decant_cuda_rows rows, unsigned long long *bad, long_sort scratch,
                     decant_cuda_points points)
{
    __shared__ uint32_t marks[LONG_TILE / 32];
    __shared__ int entries;
    const int64_t row = blockIdx.x;
    uint32_t *keys = scratch.keys[0] + row * rows.columns, *columns = scratch.columns[0] + row * rows.columns;
    if (threadIdx.x == 0)
        entries = 0;
    int counted = 0;
    for (int once = 0; once < 2; once++) {
        for (int first = 0; first < rows.columns; first += LONG_TILE) {
            mark_pattern(rows, row, (uint32_t)first, marks, LONG_TILE / 32);
            const int end = min(rows.columns, first + LONG_TILE);
            for (int column = first + (int)threadIdx.x; column < end; column += LONG_THREADS) {
                const entry e = read_entry(rows, row, column);
                if (e.bad && !once)
                    report_bad(rows, row, column, bad);
                const bool counts = entry_counts(e, is_marked(marks, (uint32_t)(column - first)), once);
                keys[column] = counts ? ordered_of_bits(e.bits, rows.element) : NOT_COUNTED;
                columns[column] = (uint32_t)column;
                counted += counts;
            }
        }
        if (__syncthreads_or(counted))
            break;
    }
    add_over_block(counted, &entries);
    __syncthreads();
    if (threadIdx.x > 0)
        return;
    points.entries[row] = (uint32_t)entries;
    scratch.offsets[row] = (int)row * rows.columns;
    if (row == rows.rows - 1)
        scratch.offsets[rows.rows] = rows.rows * rows.columns;
}

static __global__ void __launch_bounds__(LONG_THREADS)
    long_values_kernel(decant_cuda_rows rows, const uint32_t *keys, const uint32_t *columns,
                       decant_cuda_points points)
{
    const int64_t row = blockIdx.x;
    const int entries = (int)points.entries[row];
    float *values = points.values + row * points.stride, *masses = points.masses + row * points.stride;
    for (int rank = (int)threadIdx.x; rank < entries; rank += LONG_THREADS) {
        const uint32_t ordered = keys[row * rows.columns + rank], column = columns[row * rows.columns + rank];
        values[rank] = weight_of_bits(bits_of_ordered(ordered, rows.element), rows.element);
        masses[rank] = mass_at(rows, row, column);
    }
}

static decant_status sort_long_rows(decant_backend *backend, const decant_cuda_rows *rows, void *memory,
                                    unsigned long long *bad, const decant_cuda_points *points,
                                    decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    decant_cuda_arena arena = {(char *)memory, 0};
    long_sort scratch;
    DECANT_RETURN_ON_FAILURE(place_long_sort(backend, &arena, rows->rows, rows->columns, &scratch, err));
    long_keys_kernel<<<rows->rows, LONG_THREADS, 0, stream>>>(*rows, bad, scratch, *points);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "keys of long rows", err));
    cub::DoubleBuffer<uint32_t> keys(scratch.keys[0], scratch.keys[1]);
    cub::DoubleBuffer<uint32_t> columns(scratch.columns[0], scratch.columns[1]);
    DECANT_RETURN_ON_FAILURE(sort_segments(backend, scratch, rows->rows, rows->columns, keys, columns,
                                           &scratch.temporary_bytes, err));
    long_values_kernel<<<rows->rows, LONG_THREADS, 0, stream>>>(*rows, keys.Current(), columns.Current(),
                                                                *points);
    return decant_cuda_launched(backend, "values of long rows", err);
}

/* ---- the step ---- */

decant_status decant_cuda_sort_rows_bytes(decant_backend *backend, int rows, int columns, size_t *size_bytes,
                                          decant_error *err)
{
    decant_cuda_arena arena = {NULL, 0};
    long_sort scratch;
    decant_status status = DECANT_OK;
    if (columns > BLOCK_SORT_COLUMNS)
        status = place_long_sort(backend, &arena, rows, columns, &scratch, err);
    *size_bytes = arena.used;
    return status;
}

decant_status decant_cuda_sort_rows(decant_backend *backend, const decant_cuda_rows *rows, void *scratch,
                                    unsigned long long *bad, const decant_cuda_points *points,
                                    decant_error *err)
{
    if (rows->columns > BLOCK_SORT_COLUMNS)
        return sort_long_rows(backend, rows, scratch, bad, points, err);
    if (rows->element == DECANT_F32)
        return sort_short_rows<true>(backend, rows, bad, points, err);
    return sort_short_rows<false>(backend, rows, bad, points, err);
}
