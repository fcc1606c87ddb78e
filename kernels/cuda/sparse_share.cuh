/* The sparse part of the rows of one block of token_tiles.cuh times several tokens, which one more block takes,
 * beside those that take shares of the columns.
 *
 * x is turned (token_digits.h), so that an entry's values are a few sixteen bytes that lie together. Groups of
 * lanes, each lane with eight tokens, share the entries of the block evenly, whatever rows they lie in: a few
 * rows often hold many of them. A group takes a run of entries. The sum of a row goes to the row where it
 * begins; what later groups have of the same row is kept apart, and added in their order at the end. */
#ifndef DECANT_KERNELS_CUDA_SPARSE_SHARE_CUH
#define DECANT_KERNELS_CUDA_SPARSE_SHARE_CUH

#include "kernels/cuda/token_tiles.cuh"

enum { VECTOR_TOKENS = 8, ENTRIES_AHEAD = 8, LINE_BYTES = 128 };

/* sums += one entry of eight tokens. */
static __device__ __forceinline__ void add_entry(float (&sums)[VECTOR_TOKENS], uint4 four, float value)
{
    const uint32_t words[VECTOR_TOKENS / 2] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < VECTOR_TOKENS; i++) /* a BF16 is the upper half of an F32 */
        sums[i] =
            fmaf(value, __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16), sums[i]);
}

/* Some entries that are asked for at once; those from `end` on are column 0 by nothing. */
typedef struct entries_ahead {
    uint32_t columns[ENTRIES_AHEAD];
    __half values[ENTRIES_AHEAD];
} entries_ahead;

static __device__ __forceinline__ void load_entries(entries_ahead &ahead, const decant_packed_view &packed,
                                                    uint32_t first, uint32_t end)
{
#pragma unroll
    for (int i = 0; i < ENTRIES_AHEAD; i++) {
        ahead.columns[i] = first + i < end ? packed.sparse_columns[first + i] : 0;
        ahead.values[i] = first + i < end ? packed.sparse_values[first + i] : __ushort_as_half(0);
    }
}

/* Starts bringing bytes first … end of an array into the L2 cache. */
static __device__ __forceinline__ void prefetch_range(const void *array, int64_t first, int64_t end)
{
    for (int64_t byte = first / LINE_BYTES * LINE_BYTES + threadIdx.x * LINE_BYTES; byte < end;
         byte += THREADS * LINE_BYTES)
        decant_prefetch((const char *)array + byte);
}

/* In shared memory; totals come first. */
template <int TILES> struct sparse_sums {
    static constexpr int TOKENS = TILES * TILE_TOKENS, LANES = TILES; /* of a group */
    static constexpr int GROUPS = THREADS / LANES;
    float totals[TOKENS][ROWS];
    float heads[GROUPS][TOKENS]; /* of a row that began before the group's entries */
    uint32_t offsets[ROWS + 1];  /* of the rows' entries; the last ones of rows that are there, beyond them */
};

/* The row of an entry: the last one that does not begin after it. */
static __device__ __forceinline__ int row_of_entry(const uint32_t *offsets, uint32_t entry)
{
    int row = 0;
#pragma unroll
    for (int step = ROWS / 2; step > 0; step /= 2)
        if (offsets[row + step] <= entry)
            row += step;
    return row;
}

template <int TILES>
static __device__ __forceinline__ void sparse_rows_of_block(const tiles_call &call, int row_block,
                                                            sparse_sums<TILES> &shared)
{
    using sums_type = sparse_sums<TILES>;
    const decant_packed_view &packed = call.packed;
    const int group = threadIdx.x / sums_type::LANES,
              own_token = threadIdx.x % sums_type::LANES * VECTOR_TOKENS;
    const int first_row = row_block * ROWS;
    for (int i = threadIdx.x; i <= ROWS; i += THREADS)
        shared.offsets[i] = packed.row_offsets[min(first_row + i, packed.rows)];
    for (int i = threadIdx.x; i < sums_type::TOKENS * ROWS; i += THREADS)
        shared.totals[i / ROWS][i % ROWS] = 0;
    __syncthreads();
    const uint32_t begin = shared.offsets[0], end = shared.offsets[ROWS];
    const uint32_t run = max((end - begin + sums_type::GROUPS - 1) / sums_type::GROUPS, 1u);
    const uint32_t first = min(begin + group * run, end), last = min(first + run, end);
    prefetch_range(packed.sparse_columns, (int64_t)begin * 4, (int64_t)end * 4);
    prefetch_range(packed.sparse_values, (int64_t)begin * 2, (int64_t)end * 2);
    entries_ahead ahead;
    load_entries(ahead, packed, first, last);
    int row = row_of_entry(shared.offsets, first);
    uint32_t row_end = shared.offsets[row + 1];
    bool is_head = shared.offsets[row] < first;
    float sums[VECTOR_TOKENS] = {};
    const auto leave = [&]() {
#pragma unroll
        for (int i = 0; i < VECTOR_TOKENS; i++) {
            *(is_head ? &shared.heads[group][own_token + i] : &shared.totals[own_token + i][row]) = sums[i];
            sums[i] = 0;
        }
        is_head = false;
    };

    decant_wait_for_earlier_kernels();
    const __nv_bfloat16 *turned = call.turned + own_token;
    for (uint32_t entry = first; entry < last; entry += ENTRIES_AHEAD) {
        uint4 vectors[ENTRIES_AHEAD];
        __half values[ENTRIES_AHEAD];
#pragma unroll
        for (int i = 0; i < ENTRIES_AHEAD; i++) {
            vectors[i] = *(const uint4 *)(turned + (int64_t)ahead.columns[i] * sums_type::TOKENS);
            values[i] = ahead.values[i];
        }
        load_entries(ahead, packed, entry + ENTRIES_AHEAD, last);
#pragma unroll
        for (int i = 0; i < ENTRIES_AHEAD; i++) {
            if (entry + i >= last)
                break;
            if (entry + i >= row_end) {
                leave();
                row = row_of_entry(shared.offsets, entry + i);
                row_end = shared.offsets[row + 1];
            }
            add_entry(sums, vectors[i], __half2float(values[i]));
        }
    }
    if (first < last)
        leave();
    __syncthreads();
    for (int i = threadIdx.x; i < sums_type::TOKENS * ROWS; i += THREADS) {
        const int own_row = i % ROWS, token = i / ROWS;
        const uint32_t row_begin = shared.offsets[own_row] - begin,
                       row_last = shared.offsets[own_row + 1] - begin;
        if (row_begin == row_last)
            continue;
        float sum = shared.totals[token][own_row];
        for (uint32_t other = row_begin / run + 1; other <= (row_last - 1) / run; other++)
            sum += shared.heads[other][token];
        shared.totals[token][own_row] = sum;
    }
}

/* Leaves the sums of the row block's sparse part as its last part. */
template <int TILES>
static __device__ __forceinline__ void take_sparse_share(const tiles_call &call, int row_block,
                                                         sparse_sums<TILES> &shared)
{
    constexpr int TOKENS = TILES * TILE_TOKENS;
    sparse_rows_of_block<TILES>(call, row_block, shared);
    float *own = part_of<TOKENS>(call, row_block, call.shares);
    for (int i = threadIdx.x; i < ROWS * TOKENS; i += THREADS)
        own[i] = shared.totals[i / ROWS][i % ROWS]; /* which this thread has written */
    add_parts<TILES>(call, row_block);
}

#endif
