/* x as an operand of the binary tensor cores, for a block of packed_parities.cu: its tokens' largest
 * magnitudes, fixed point (fixed_point.cuh), and its bit planes in shared memory, in the order in which lanes
 * take them. Knows nothing of codes and of levels. */
#ifndef DECANT_KERNELS_CUDA_PARITY_OPERANDS_CUH
#define DECANT_KERNELS_CUDA_PARITY_OPERANDS_CUH

#include "kernels/cuda/fixed_point.cuh"
#include "kernels/cuda/named_barriers.cuh"
#include "kernels/cuda/parity_block.cuh"

static __device__ __forceinline__ void store_shared_pair(uint32_t address, uint32_t low, uint32_t high)
{
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(low), "r"(high) : "memory");
}

static __device__ __forceinline__ void store_shared(uint32_t address, const uint4 &value)
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x), "r"(value.y),
                 "r"(value.z), "r"(value.w)
                 : "memory");
}

/* What the whole block must know of its tokens. */
template <int TOKENS> struct token_figures {
    uint32_t largest[TOKENS][WARPS]; /* magnitudes, as bits of BF16 */
    int sums[TOKENS][WARPS];         /* of the fixed-point values */
};

/* The largest magnitude of a token, once every warp has left its own. */
template <int TOKENS>
static __device__ __forceinline__ float largest_of(const token_figures<TOKENS> &figures, int token)
{
    uint32_t largest = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        largest = max(largest, figures.largest[token][warp]);
    return __uint_as_float(largest << 16);
}

/* Turns a word's columns into planes, stores them among a token's operands and adds their values to `sum`. */
static __device__ __forceinline__ int
store_planes(uint32_t operands, int word, const uint4 (&vectors)[DECANT_PLANE_VECTORS], float factor, int sum)
{
    uint32_t planes[DECANT_FIXED_POINT_PLANES];
    decant_columns_to_fixed_point(planes, vectors, factor);
    sum = decant_fixed_point_sum(sum, planes);
    decant_transpose_planes(planes);
    const int product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
    const int taker = word / LANE_WORDS % 4, half = word % 2;
    uint32_t address = operands + product * OPERAND_BYTES + taker * 16 + half * 8;
#pragma unroll
    for (int plane = 0; plane < DECANT_FIXED_POINT_PLANES / 2; plane++, address += 4 * 16)
        store_shared_pair(address, planes[plane], planes[plane + 8]);
    return sum;
}

/* Where the first plane of a half word goes among the operands. */
static __device__ __forceinline__ uint32_t address_of_half(uint32_t operands, uint32_t half)
{
    const uint32_t word = half / 2, product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
    return operands + product * OPERAND_BYTES + word / LANE_WORDS % 4 * 16 + word % 2 * 8 + half % 2 * 4;
}

/* Lane pairs put whole words together and store them, where `valid`: the even lane of a word planes 0 … 7, the
 * odd one the rest. By whole warps. */
static __device__ __forceinline__ void store_half(uint32_t address, const decant_half_planes &half, bool valid)
{
    const uint32_t selector = threadIdx.x % 2 ? 0x3175 : 0x6420;
#pragma unroll
    for (int plane = 0; plane < DECANT_HALF_COLUMNS / 2; plane++, address += 4 * 16) {
        const uint32_t other = __shfl_xor_sync(DECANT_ALL_LANES, half.words[plane], 1);
        if (valid)
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(address),
                         "r"(__byte_perm(half.words[plane], other, selector))
                         : "memory");
    }
}

/* Where column `column` of a token's x lies in its copy in shared memory: the sixteen bytes that a thread takes
 * of its word's 64 at a time fall into other banks than its neighbours'. */
static __device__ __forceinline__ uint32_t x_offset(uint32_t column)
{
    return column * 2 ^ (column >> 6 & 3) << 4;
}

/* Columns of 32 words of a token, from first_word on, by a warp that reads whole cache lines: vectors[i] of a
 * lane are the eight columns of number 32 i + lane. Zeros beyond the last column. */
static __device__ __forceinline__ void load_lines(uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                  const __nv_bfloat16 *x, int first_word, int columns)
{
    const int first = first_word * DECANT_PLANE_COLUMNS + (int)threadIdx.x % DECANT_WARP * 8;
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const int column = first + i * DECANT_WARP * 8;
        vectors[i] = column < columns ? *(const uint4 *)(x + column) : make_uint4(0, 0, 0, 0);
    }
}

/* What load_lines has read, to the copy of x, which ends with `words`. */
static __device__ __forceinline__ void store_lines(uint32_t copy, int first_word, int words,
                                                   const uint4 (&vectors)[DECANT_PLANE_VECTORS])
{
    const int first = first_word * DECANT_PLANE_COLUMNS + (int)threadIdx.x % DECANT_WARP * 8;
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
        if (first + i * DECANT_WARP * 8 < words * DECANT_PLANE_COLUMNS)
            store_shared(copy + x_offset(first + i * DECANT_WARP * 8), vectors[i]);
}

/* Turns the copy of x into planes, in steps of as many words as there are threads, and returns the sum of the
 * values of a thread's words. The copy may be the operands themselves: the 32 words that a warp takes at a time
 * lie in the same bytes as their planes. */
static __device__ __forceinline__ int turn_to_planes(uint32_t operands, uint32_t copy, int words, float factor)
{
    int sum = 0;
#pragma unroll 1
    for (int first = (int)threadIdx.x & -DECANT_WARP; first < words; first += THREADS) {
        const int word = first + (int)threadIdx.x % DECANT_WARP;
        uint4 vectors[DECANT_PLANE_VECTORS] = {};
        if (word < words)
#pragma unroll
            for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
                vectors[i] = load_shared(copy + x_offset(word * DECANT_PLANE_COLUMNS + i * 8));
        __syncwarp();
        if (word < words)
            sum = store_planes(operands, word, vectors, factor, sum);
    }
    return sum;
}

/* The operands of x of the block's tokens, and x itself where the sparse part finds it in shared memory, by
 * THREADS threads together, which are the whole block or meet at barrier BARRIER; one inside, and one must
 * follow. READERS other threads wait at the barrier behind that for the copy of x. */
template <int TOKENS, bool SPARSE, int BARRIER = 0, int READERS = 0>
static __device__ __forceinline__ void make_operands(const parities_call &call, const block_share &share,
                                                     token_figures<TOKENS> &figures, uint32_t operands,
                                                     uint32_t x_copy)
{
    constexpr int AT_ONCE = TOKENS == 1 ? 3 : 1; /* loads of 32 words, of each token */
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int columns = call.packed.columns, words = share.units * UNIT_WORDS;
    const int own = warp * DECANT_WARP; /* the warp's first word; the next come THREADS words later */
    const uint32_t token_bytes = words * DECANT_PLANE_COLUMNS * 2;
    const uint32_t copies = SPARSE && call.x_in_shared ? x_copy : operands;
    uint4 ahead[TOKENS][AT_ONCE][DECANT_PLANE_VECTORS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (own + i * THREADS < words)
                load_lines(ahead[token][i],
                           call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns,
                           own + i * THREADS, columns);
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const __nv_bfloat16 *x = call.x + (int64_t)min(share.first_token + token, call.tokens - 1) * columns;
        const uint32_t copy = copies + token * token_bytes;
        uint32_t largest = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (own + i * THREADS < words) {
                store_lines(copy, own + i * THREADS, words, ahead[token][i]);
                largest = decant_largest_bits(largest, ahead[token][i]);
            }
#pragma unroll 1
        for (int first = own + AT_ONCE * THREADS; first < words; first += THREADS) {
            uint4 vectors[DECANT_PLANE_VECTORS];
            load_lines(vectors, x, first, columns);
            store_lines(copy, first, words, vectors);
            largest = decant_largest_bits(largest, vectors);
        }
        largest = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
        if (lane == 0)
            figures.largest[token][warp] = largest;
    }
    if constexpr (READERS > 0)
        arrive_at_barrier<BARRIER + 1, THREADS + READERS>();
    if constexpr (BARRIER == 0)
        __syncthreads();
    else
        wait_at_barrier<BARRIER, THREADS>();
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const float factor = decant_fixed_point_factor(largest_of(figures, token));
        int sum = turn_to_planes(operands + token * token_bytes, copies + token * token_bytes, words, factor);
        sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
        if (lane == 0)
            figures.sums[token][warp] = sum;
    }
}

/* The operands of one token of a unit of columns to a warp or less, whose lanes take half a word each: whole
 * words would be work for half of them. Inside is a barrier of the block, and one must follow. */
static __device__ __forceinline__ void make_short_operands(const parities_call &call, const block_share &share,
                                                           token_figures<1> &figures, uint32_t operands)
{
    constexpr int UNIT_COLUMNS = UNIT_WORDS * DECANT_PLANE_COLUMNS;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const bool has_unit = warp < share.units;
    const __nv_bfloat16 *x = call.x + (int64_t)share.first_token * call.packed.columns;
    uint4 vectors[DECANT_HALF_VECTORS] = {};
    if (has_unit) { /* by whole cache lines; lanes find their own columns in shared memory */
        const int first = warp * UNIT_COLUMNS + lane * 8;
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++) {
            const int column = first + i * DECANT_WARP * 8;
            if (column < call.packed.columns)
                vectors[i] = *(const uint4 *)(x + column);
        }
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++)
            store_shared(operands + x_offset(first + i * DECANT_WARP * 8), vectors[i]);
    }
    const uint32_t largest = decant_largest_bits(0, vectors);
    const uint32_t of_warp = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
    if (lane == 0)
        figures.largest[0][warp] = of_warp;
    __syncwarp();
    if (has_unit)
#pragma unroll
        for (int i = 0; i < DECANT_HALF_VECTORS; i++)
            vectors[i] =
                load_shared(operands + x_offset(warp * UNIT_COLUMNS + lane * DECANT_HALF_COLUMNS + i * 8));
    __syncthreads();
    int sum = 0;
    if (has_unit) {
        const float factor = decant_fixed_point_factor(largest_of(figures, 0));
        const decant_half_planes half = decant_half_to_planes(vectors, factor, sum);
        store_half(address_of_half(operands, warp * UNIT_WORDS * 2 + lane), half, true);
    }
    sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
    if (lane == 0)
        figures.sums[0][warp] = sum;
}

#endif
