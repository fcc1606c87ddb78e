/* The sparse part of a block's rows times a few tokens, beside their dense part. The block's entries, which lie
 * row after row, are cut into chunks of 128, four entries a lane, that travel through shared memory beside the
 * codes. A warp adds up the products of a chunk by row: what is left is one sum for each row that the chunk
 * meets, a segment. Chunk and row numbers of the segments ascend together, so that chunk + row (of those that
 * have entries) is a place of its own for each. In the end a thread adds up the segments of a row, in order. A
 * few rows often hold many of the entries: they are many lanes' work, too. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH
#define DECANT_KERNELS_CUDA_SPARSE_ROWS_CUH

#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    DECANT_LANE_ENTRIES = 4,
    DECANT_CHUNK = DECANT_WARP * DECANT_LANE_ENTRIES,
    DECANT_CHUNK_COLUMNS_BYTES = DECANT_CHUNK * 4,
    DECANT_CHUNK_BYTES = DECANT_CHUNK_COLUMNS_BYTES + DECANT_CHUNK * 2,
    DECANT_START_BITS = 32, /* of a word of starts */
    DECANT_CHUNK_WORDS = DECANT_CHUNK / DECANT_START_BITS,
};

/* What a thread knows of the rows of its block before their arrays in shared memory are there. */
typedef struct decant_sparse_offsets {
    uint32_t first, last; /* entries of the block */
    uint32_t begin, end;  /* of the row of this thread's number, of none beyond the last row */
} decant_sparse_offsets;

static __device__ __forceinline__ decant_sparse_offsets
decant_load_sparse_offsets(const decant_packed_view &packed, int first_row, int rows)
{
    const uint32_t *offsets = packed.row_offsets + first_row;
    return {offsets[0], offsets[rows], offsets[min((int)threadIdx.x, rows)],
            offsets[min((int)threadIdx.x + 1, rows)]};
}

/* The CSR part of a block's rows. Its entries are counted from the last multiple of DECANT_LANE_ENTRIES up to
 * its first one, so that a few entries of the rows before may come first. */
typedef struct decant_sparse_rows {
    const uint32_t *columns; /* device */
    const __half *values;    /* device */
    int readable;            /* entries until the end of both; more than a block can have count as that */
    int end, chunks;
    int window;       /* chunks there is room for at a time */
    int *places;      /* [rows + 1] of rows: their first entries; shared, like all below */
    int *ordinals;    /* [rows]: of those that have entries, from 1 */
    uint32_t *starts; /* [window, DECANT_CHUNK_WORDS]: the bits of entries that begin a row */
    int *before;      /* [window, DECANT_CHUNK_WORDS]: rows begun before the word's entries */
    float *segments;  /* [window + rows + 2, TOKENS] */
    float *sums;      /* [rows, TOKENS]: of the windows before the last */
} decant_sparse_rows;

/* Shared memory for so many rows and chunks, bytes; a multiple of 16. */
static __host__ __device__ __forceinline__ int decant_sparse_rows_bytes(int rows, int tokens, int window)
{
    return (rows * 2 + 1 + window * DECANT_CHUNK_WORDS * 2 + (window + rows * 2 + 2) * tokens + 3) / 4 * 16;
}

/* ---- chunks on their way to shared memory ---- */

/* Starts copying a lane's entries of chunk `chunk` to `target`. */
static __device__ __forceinline__ void decant_fetch_chunk(const decant_sparse_rows &own, int chunk,
                                                          uint32_t target)
{
    const int lane = threadIdx.x % DECANT_WARP, entry = chunk * DECANT_CHUNK + lane * DECANT_LANE_ENTRIES;
    const int count = min(max(own.readable - entry, 0), (int)DECANT_LANE_ENTRIES);
    decant_copy_bytes_16(target + lane * 16, own.columns + entry, count * 4);
    decant_copy_bytes_8(target + DECANT_CHUNK_COLUMNS_BYTES + lane * 8, own.values + entry, count * 2);
}

/* A lane's entries of a chunk. */
typedef struct decant_lane_entries {
    uint32_t columns[DECANT_LANE_ENTRIES];
    float values[DECANT_LANE_ENTRIES];
} decant_lane_entries;

static __device__ __forceinline__ decant_lane_entries decant_fetched_entries(const unsigned char *chunk)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const uint4 columns = ((const uint4 *)chunk)[lane];
    const uint2 values = ((const uint2 *)(chunk + DECANT_CHUNK_COLUMNS_BYTES))[lane];
    const float2 low = __half22float2(*(const __half2 *)&values.x);
    const float2 high = __half22float2(*(const __half2 *)&values.y);
    return {{columns.x, columns.y, columns.z, columns.w}, {low.x, low.y, high.x, high.y}};
}

/* The same where nothing has been copied. */
static __device__ __forceinline__ decant_lane_entries decant_load_entries(const decant_sparse_rows &own,
                                                                          int chunk)
{
    const int first = chunk * DECANT_CHUNK + (int)threadIdx.x % DECANT_WARP * DECANT_LANE_ENTRIES;
    decant_lane_entries found;
#pragma unroll
    for (int i = 0; i < DECANT_LANE_ENTRIES; i++) {
        const int entry = min(first + i, own.end - 1); /* those beyond the last belong to no row */
        found.columns[i] = own.columns[entry];
        found.values[i] = __half2float(own.values[entry]);
    }
    return found;
}

/* ---- rows of a window of chunks ---- */

static __device__ __forceinline__ void decant_clear_starts(const decant_sparse_rows &own, int threads)
{
    for (int i = threadIdx.x; i < own.window * DECANT_CHUNK_WORDS; i += threads) {
        own.starts[i] = 0;
        own.before[i] = 0;
    }
}

/* The first step of two, by all threads of the block, which are as many as its rows or more: places and
 * ordinals but for what the warps before add. Barriers must follow each. counts: [warps of the block], shared.
 */
template <int TOKENS>
static __device__ __forceinline__ decant_sparse_rows
decant_open_sparse_rows(const decant_packed_view &packed, int64_t entries, const decant_sparse_offsets &offsets,
                        int rows, int window, unsigned char *shared, int *counts)
{
    decant_sparse_rows own;
    const uint32_t base = offsets.first / DECANT_LANE_ENTRIES * DECANT_LANE_ENTRIES;
    own.columns = packed.sparse_columns + base;
    own.values = packed.sparse_values + base;
    own.readable = (int)min(entries - base, (int64_t)1 << 30);
    own.end = (int)(offsets.last - base);
    own.chunks = offsets.last > offsets.first ? (own.end + DECANT_CHUNK - 1) / DECANT_CHUNK : 0;
    own.window = window;
    own.places = (int *)shared;
    own.ordinals = own.places + rows + 1;
    own.starts = (uint32_t *)(own.ordinals + rows);
    own.before = (int *)(own.starts + window * DECANT_CHUNK_WORDS);
    own.segments = (float *)(own.before + window * DECANT_CHUNK_WORDS);
    own.sums = own.segments + (window + rows + 2) * TOKENS;
    const int row = threadIdx.x;
    const uint32_t with = __ballot_sync(DECANT_ALL_LANES, offsets.end > offsets.begin);
    if (row % DECANT_WARP == 0)
        counts[row / DECANT_WARP] = __popc(with);
    if (row == 0)
        own.places[0] = (int)(offsets.first - base);
    if (row < rows) {
        own.places[row + 1] = (int)(offsets.end - base);
        own.ordinals[row] = __popc(with & (2u << row % DECANT_WARP) - 1);
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
            own.sums[row * TOKENS + t] = 0;
    }
    decant_clear_starts(own, blockDim.x);
    return own;
}

/* Marks that row number `ordinal` of those with entries has the entries [begin, end), in words [first_word,
 * last_word). */
static __device__ __forceinline__ void decant_mark_row(const decant_sparse_rows &own, int ordinal, int begin,
                                                       int end, int first_word, int last_word)
{
    const int word = begin / DECANT_START_BITS;
    if (word >= first_word && word < last_word)
        atomicOr(&own.starts[word - first_word], 1u << begin % DECANT_START_BITS);
    for (int i = max((begin + DECANT_START_BITS - 1) / DECANT_START_BITS, first_word);
         i < last_word && i * DECANT_START_BITS < end; i++)
        own.before[i - first_word] = ordinal - (i * DECANT_START_BITS == begin);
}

/* Marks what lies in the window that begins at chunk `first`. What comes after the block's entries in its last
 * chunk counts as one row more. */
static __device__ __forceinline__ void decant_mark_rows(const decant_sparse_rows &own, int rows, int first)
{
    const int row = threadIdx.x, first_word = first * DECANT_CHUNK_WORDS;
    const int last_word = min(first + own.window, own.chunks) * DECANT_CHUNK_WORDS;
    if (row >= rows)
        return;
    if (own.places[row] < own.places[row + 1])
        decant_mark_row(own, own.ordinals[row], own.places[row], own.places[row + 1], first_word, last_word);
    if (row == rows - 1)
        decant_mark_row(own, own.ordinals[row] + 1, own.end, own.chunks * DECANT_CHUNK, first_word, last_word);
}

/* The second step: the ordinals and the first window. */
static __device__ __forceinline__ void decant_mark_first_rows(const decant_sparse_rows &own, int rows,
                                                              const int *counts)
{
    const int row = threadIdx.x;
    if (row < rows) {
        int ordinal = own.ordinals[row];
        for (int warp = 0; warp < row / DECANT_WARP; warp++)
            ordinal += counts[warp];
        own.ordinals[row] = ordinal;
    }
    decant_mark_rows(own, rows, 0);
}

/* ---- products ---- */

/* Adds up the products of a warp's chunk, number `place` of the window, by row: its segments. */
template <int TOKENS>
static __device__ __forceinline__ void decant_add_chunk(const decant_sparse_rows &own, int place,
                                                        const float (&products)[TOKENS][DECANT_LANE_ENTRIES])
{
    const int lane = threadIdx.x % DECANT_WARP, first = lane * DECANT_LANE_ENTRIES;
    const int word = place * DECANT_CHUNK_WORDS + first / DECANT_START_BITS, shift = first % DECANT_START_BITS;
    const uint32_t bits = own.starts[word], starts = bits >> shift;
    const int ordinal = own.before[word] + __popc(bits & (1u << shift) - 1);
    const bool has_start = (starts & (1u << DECANT_LANE_ENTRIES) - 1) != 0;
    const uint32_t until = __ballot_sync(DECANT_ALL_LANES, has_start) & (2u << lane) - 1;
    const int distance = lane - (until ? 31 - __clz((int)until) : 0); /* from where the last segment begins */
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        float sum = 0; /* of the last segment, up to and with this lane */
#pragma unroll
        for (int i = 0; i < DECANT_LANE_ENTRIES; i++)
            sum = (starts >> i & 1 ? 0.0f : sum) + products[t][i];
#pragma unroll
        for (int offset = 1; offset < DECANT_WARP; offset *= 2) {
            const float other = __shfl_up_sync(DECANT_ALL_LANES, sum, offset);
            sum += distance >= offset ? other : 0.0f;
        }
        const float carried = __shfl_up_sync(DECANT_ALL_LANES, sum, 1);
        float *target = own.segments + (ordinal + place) * TOKENS + t;
        float own_sum = lane == 0 ? 0.0f : carried;
#pragma unroll
        for (int i = 0; i < DECANT_LANE_ENTRIES; i++) {
            if (starts >> i & 1) {
                *target = own_sum;
                target += TOKENS;
                own_sum = 0;
            }
            own_sum += products[t][i];
        }
        if (lane == DECANT_WARP - 1)
            *target = own_sum;
    }
}

/* The sum of the segments of row `row` in the window that begins at chunk `first`, for one token. */
template <int TOKENS>
static __device__ __forceinline__ float decant_sum_segments(const decant_sparse_rows &own, int row, int token,
                                                            int first)
{
    const int begin = own.places[row], end = own.places[row + 1];
    if (begin == end)
        return 0.0f;
    const int last = min((end - 1) / DECANT_CHUNK, min(first + own.window, own.chunks) - 1);
    const float *segments = own.segments + (own.ordinals[row] - first) * TOKENS + token;
    float sum = 0;
#pragma unroll 1
    for (int chunk = max(begin / DECANT_CHUNK, first); chunk <= last; chunk++)
        sum += segments[chunk * TOKENS];
    return sum;
}

/* Adds the segments of the window to the sums of the block's rows and opens the next; by all `threads` of the
 * block. Begins and ends with a barrier. */
template <int TOKENS>
static __device__ __forceinline__ void decant_next_window(const decant_sparse_rows &own, int rows, int first,
                                                          int threads)
{
    __syncthreads();
    for (int i = threadIdx.x; i < rows * TOKENS; i += threads)
        own.sums[i] += decant_sum_segments<TOKENS>(own, i / TOKENS, i % TOKENS, first);
    decant_clear_starts(own, threads);
    __syncthreads();
    decant_mark_rows(own, rows, first + own.window);
    __syncthreads();
}

#endif
