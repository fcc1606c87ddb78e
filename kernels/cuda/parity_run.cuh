/* The run of a warp of packed_parities.cu through its units, and beside them through its chunks of the sparse
 * part, and the ends of the block's rows. */
#ifndef DECANT_KERNELS_CUDA_PARITY_RUN_CUH
#define DECANT_KERNELS_CUDA_PARITY_RUN_CUH

#include "kernels/cuda/parity_block.cuh"
#include "kernels/cuda/parity_codes.cuh"
#include "kernels/cuda/parity_counts.cuh"
#include "kernels/cuda/parity_operands.cuh"
#include "kernels/cuda/sparse_rows.cuh"

/* ---- the sparse part ---- */

/* The products of a warp's chunk, number `place` of the window. x_copy: x in shared memory, if it is there. */
template <int TOKENS>
static __device__ __forceinline__ void
multiply_chunk(const parities_call &call, const block_share &share, const decant_sparse_rows &sparse, int place,
               const decant_lane_entries &entries, const unsigned char *x_copy)
{
    const int columns = call.packed.columns, last_token = call.tokens - 1 - share.first_token;
    const uint32_t x_copy_bytes = share.units * UNIT_WORDS * DECANT_PLANE_COLUMNS * 2;
    const uint16_t *x = (const uint16_t *)call.x + (int64_t)share.first_token * columns;
    float products[TOKENS][DECANT_LANE_ENTRIES];
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
#pragma unroll
        for (int i = 0; i < DECANT_LANE_ENTRIES; i++) {
            const uint32_t column = entries.columns[i];
            const uint16_t bits = call.x_in_shared
                                      ? *(const uint16_t *)(x_copy + t * x_copy_bytes + x_offset(column))
                                      : x[(int64_t)min(t, last_token) * columns + column];
            products[t][i] = entries.values[i] * __uint_as_float((uint32_t)bits << 16);
        }
    decant_add_chunk<TOKENS>(sparse, place, products);
}

/* A warp's chunks of the first window, which are on their way through its two buffers. */
typedef struct warp_chunks {
    const unsigned char *buffers;
    int next, count; /* of the warp: chunk i of it is chunk i WARPS + warp of the window */
} warp_chunks;

static __device__ __forceinline__ void fetch_chunk(const decant_sparse_rows &sparse, const warp_chunks &chunks,
                                                   int chunk)
{
    if (chunk < chunks.count)
        decant_fetch_chunk(sparse, chunk * WARPS + threadIdx.x / DECANT_WARP,
                           decant_shared_address(chunks.buffers + chunk % CHUNK_BUFFERS * DECANT_CHUNK_BYTES));
}

/* The first chunks start on their way. By a warp; buffers: its own. */
static __device__ __forceinline__ warp_chunks open_chunks(const decant_sparse_rows &sparse,
                                                          const unsigned char *buffers)
{
    const int warp = threadIdx.x / DECANT_WARP;
    const warp_chunks chunks = {buffers, 0, (min(sparse.chunks, sparse.window) + WARPS - 1 - warp) / WARPS};
#pragma unroll
    for (int i = 0; i < CHUNK_BUFFERS; i++)
        fetch_chunk(sparse, chunks, i);
    return chunks;
}

/* Takes the next chunk, which has come, and starts another on its way. */
template <int TOKENS>
static __device__ __forceinline__ void take_chunk(const parities_call &call, const block_share &share,
                                                  const decant_sparse_rows &sparse, warp_chunks &chunks,
                                                  const unsigned char *x_copy)
{
    const unsigned char *chunk = chunks.buffers + chunks.next % CHUNK_BUFFERS * DECANT_CHUNK_BYTES;
    const decant_lane_entries entries = decant_fetched_entries(chunk);
    fetch_chunk(sparse, chunks, chunks.next + CHUNK_BUFFERS);
    multiply_chunk<TOKENS>(call, share, sparse, chunks.next * WARPS + (int)threadIdx.x / DECANT_WARP, entries,
                           x_copy);
    chunks.next++;
}

/* Chunks of the sparse part beyond the first window, one window after the other; returns the first chunk of the
 * last window, whose segments are left. Ends with a barrier. */
template <int TOKENS>
static __device__ __forceinline__ int add_windows(const parities_call &call, const block_share &share,
                                                  const decant_sparse_rows &sparse, const unsigned char *x_copy)
{
    const int rows = rows_of(call.packed, share);
    int first = 0;
    while (first + sparse.window < sparse.chunks) {
        decant_next_window<TOKENS>(sparse, rows, first, THREADS);
        first += sparse.window;
        const int last = min(first + sparse.window, sparse.chunks);
        for (int chunk = first + (int)threadIdx.x / DECANT_WARP; chunk < last; chunk += WARPS)
            multiply_chunk<TOKENS>(call, share, sparse, chunk - first, decant_load_entries(sparse, chunk),
                                   x_copy);
    }
    __syncthreads();
    return first;
}

/* ---- a warp's run ---- */

enum {
    HELD_UNITS = 2, /* of a warp that are under way at once */
    LINE_WORDS = 32,
    ARRANGED_LINES = 8, /* that a warp asks for ahead of time (tests/bench/DECODE.md) */
};

/* Whether a warp fills its ring so for the first time: one token at four bits, where nothing is asked for
 * beyond it. With fewer bits, and where runs are long, products took longer (tests/bench/DECODE.md). */
template <int BITS, int TOKENS, bool AHEAD> constexpr bool HOLDS_BACK = BITS == 4 && TOKENS == 1 && !AHEAD;

/* Asks the L2 cache for what comes next in a run: of rows, call.pairs times two units, which share cache lines,
 * lane by lane a plane of a row; of arranged units ARRANGED_LINES. What passes through the cache meanwhile must
 * not drive them out: fetch_unit's ONCE. */
template <int BITS, planes_form FORM>
static __device__ __forceinline__ void ask_ahead(const parities_call &call, const block_share &share,
                                                 plane_source source)
{
    const int lane = threadIdx.x % DECANT_WARP, bit = lane % 4;
    if constexpr (FORM == PLANES_ARRANGED) {
        if (lane < ARRANGED_LINES)
            decant_prefetch(source.words + lane * (LINE_WORDS - LANE_WORDS));
    } else {
#pragma unroll 1
        for (int i = 0; i < call.pairs; i++) {
            if (bit < BITS)
                decant_prefetch(source.words + bit * (call.packed.words - LANE_WORDS));
            source.words += 2 * UNIT_WORDS;
            source.unit += 2;
            if (source.unit >= share.units)
                source = source_of<BITS, FORM>(call.packed, share, source.tile + 1, 0);
        }
    }
}

/* The first units of a run start on their way. AHEAD: so do more into the L2 cache. HELD: not all at once where
 * there are more, because the kernel ahead asks for its x meanwhile, which has to come by the same way. `ring`
 * is a lane's. */
template <int BITS, planes_form FORM, int RING, bool AHEAD, bool HELD>
static __device__ __forceinline__ void open_ring(const parities_call &call, const block_share &share,
                                                 const warp_run &run, plane_source &source, uint32_t ring)
{
    constexpr int FETCHED = STAGES<BITS, RING> - 1;
#pragma unroll 1
    for (int i = 0; i < FETCHED; i++) {
        if (i < run.count)
            fetch_unit<BITS, FORM, AHEAD>(call.packed, share, source, ring + i * UNIT_BYTES<BITS>);
        decant_copy_commit();
        if (HELD && run.count > FETCHED)
            decant_copy_wait<HELD_UNITS - 1>();
    }
    if constexpr (AHEAD)
        ask_ahead<BITS, FORM>(call, share, source);
}

/* Its units, whose first copies are under way, and its chunks of the sparse part: one after every so many
 * units, which is long enough for it to have come, and those that are left in the end. `ring` and `operands`
 * are a lane's. */
template <int BITS, int TOKENS, planes_form FORM, int RING, bool SPARSE, bool AHEAD>
static __device__ __forceinline__ void
add_units(const parities_call &call, const block_share &share, const warp_run &run, plane_source source,
          uint32_t ring, const float *coefficients, float *parts, uint32_t operands,
          const decant_sparse_rows &sparse, warp_chunks chunks, const unsigned char *x_copy)
{
    constexpr int FETCHED = STAGES<BITS, RING> - 1, RING_BYTES = STAGES<BITS, RING> * UNIT_BYTES<BITS>;
    const int member = TEAM<BITS> > 1 ? threadIdx.x / DECANT_WARP % TEAM<BITS> : 0;
    const int token_bytes = share.units * PRODUCTS * OPERAND_BYTES;
    const int spacing = chunks.count > 0 ? max(run.count / chunks.count, FETCHED) : run.count + 1;
    int counts[TOKENS][SUBSETS_OF_WARP<BITS>][4] = {};
    int until_chunk = spacing, left = run.count;
    int unit = run.first % share.units;
    uint32_t slot = ring, free_slot = ring + FETCHED * UNIT_BYTES<BITS>,
             x = operands + unit * PRODUCTS * OPERAND_BYTES;
    coefficients += run.first / share.units * TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
    parts += run.first / share.units * TILE_PARTS<TOKENS>;
#pragma unroll 1
    while (left > 0) {
        int units = min(share.units - unit, left); /* of this tile */
        left -= units;
#pragma unroll 1
        for (; units > 0; units--) {
            decant_copy_wait<FETCHED - 1>();
            wait_for_team<BITS>();
            if (left + units > FETCHED) /* as many are left with this one */
                fetch_unit<BITS, FORM, AHEAD>(call.packed, share, source, free_slot);
            decant_copy_commit();
            free_slot = slot;
            add_unit<BITS, TOKENS>(counts, slot, x, token_bytes, member);
            x += PRODUCTS * OPERAND_BYTES;
            slot = slot + UNIT_BYTES<BITS> == ring + RING_BYTES ? ring : slot + UNIT_BYTES<BITS>;
            if (SPARSE && --until_chunk == 0) {
                until_chunk = spacing;
                if (chunks.next < chunks.count)
                    take_chunk<TOKENS>(call, share, sparse, chunks, x_copy);
            }
        }
        finish_tile<BITS, TOKENS>(counts, coefficients, parts, member);
        coefficients += TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
        parts += TILE_PARTS<TOKENS>;
        x = operands;
        unit = 0;
    }
    while (SPARSE && chunks.next < chunks.count) {
        decant_copy_commit(); /* of the last chunk that was asked for */
        decant_copy_wait<0>();
        take_chunk<TOKENS>(call, share, sparse, chunks, x_copy);
    }
}

/* ---- a block's rows ---- */

/* y = scale (f(0) Σ q + the warps' parts) of one token, with the sparse part, by the block's first threads, one
 * for each row, which meet the others inside: the parts come last, and all else is there before.
 * add_entries(sum, row): the sum and the sparse part's. */
template <int BITS, typename Entries>
static __device__ __forceinline__ void
finish_rows_of_one(const parities_call &call, const block_share &share, const token_figures<1> &figures,
                   const float *coefficients, const float *parts, const Entries &add_entries)
{
    const int rows = rows_of(call.packed, share), row = min((int)threadIdx.x, rows - 1);
    const float *part = parts + row / TILE_ROWS * TILE_PARTS<1> + row % TILE_ROWS;
    const float scale = largest_of(figures, 0) * (1.0f / DECANT_FIXED_POINT_MAXIMUM);
    int sum_of_x = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        sum_of_x += figures.sums[0][warp];
    const float first = coefficients[row * COEFFICIENT_STRIDE<BITS>] * (float)sum_of_x;
    __nv_bfloat16 *target =
        call.y + (int64_t)share.first_token * call.packed.rows + share.first_tile * TILE_ROWS + row;
    const float earlier = call.accumulate ? __bfloat162float(*target) : 0.0f;
    __syncthreads(); /* all parts are there */
    if ((int)threadIdx.x >= rows)
        return;
    float pairs[WARPS / 2];
#pragma unroll
    for (int i = 0; i < WARPS / 2; i++)
        pairs[i] = part[2 * i * TILE_ROWS] + part[(2 * i + 1) * TILE_ROWS];
    const float sum = ((pairs[0] + pairs[1]) + (pairs[2] + pairs[3]) + first) * scale;
    *target = __float2bfloat16_rn(earlier + add_entries(sum, row));
}

/* The same of several tokens: a thread for each row and token.
 * add_entries(sum, row, token): the sum and the sparse part's. */
template <int BITS, int TOKENS, typename Entries>
static __device__ __forceinline__ void
finish_rows(const parities_call &call, const block_share &share, const token_figures<TOKENS> &figures,
            const float *coefficients, const float *parts, const Entries &add_entries)
{
    const int rows = rows_of(call.packed, share), tokens = min(TOKENS, call.tokens - share.first_token);
    for (int i = threadIdx.x; i < rows * tokens; i += THREADS) {
        const int token = TOKENS == 1 ? 0 : i / rows, row = i - token * rows;
        const float *part = parts + row / TILE_ROWS * TILE_PARTS<TOKENS> + row % TILE_ROWS * TOKENS + token;
        int sum_of_x = 0;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum_of_x += figures.sums[token][warp];
            sum += part[warp * TILE_ROWS * TOKENS];
        }
        sum = fmaf(coefficients[row * COEFFICIENT_STRIDE<BITS>], (float)sum_of_x, sum) *
              (largest_of(figures, token) / DECANT_FIXED_POINT_MAXIMUM);
        sum = add_entries(sum, row, token);
        __nv_bfloat16 *target = call.y + (int64_t)(share.first_token + token) * call.packed.rows +
                                share.first_tile * TILE_ROWS + row;
        *target = __float2bfloat16_rn(call.accumulate ? __bfloat162float(*target) + sum : sum);
    }
}

#endif
