/* x as digits for integer tensor cores, as token_digits.h says: a block takes a token, first for its largest
 * magnitude, then for its digits; a thread takes sixteen columns at a time. */
#include "kernels/cuda/token_digits.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"

enum {
    THREADS = 1024,
    WARPS = THREADS / DECANT_WARP,
    ITEM_COLUMNS = 16, /* of a thread at a time: half a word */
    ITEM_VECTORS = ITEM_COLUMNS / 8,
    UNIT_ITEMS = DECANT_DIGITS_UNIT_COLUMNS / ITEM_COLUMNS,
    PHASES = 4,
    PIECE_BYTES = 128,
    DIGITS_MAXIMUM = 32639, /* 256 · 127 + 127 */
};

typedef struct digits_call {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    unsigned char *digits;
    decant_token_figures *figures;
    __nv_bfloat16 *turned; /* [columns, 8 tiles], or NULL */
    int tokens, columns, units, tiles;
} digits_call;

typedef struct item_vectors {
    uint4 vectors[ITEM_VECTORS];
} item_vectors;

/* Columns 16 item … + 15 of a token; zeros beyond the last column or token. */
static __device__ __forceinline__ item_vectors load_item(const digits_call &call, int token, int item)
{
    item_vectors own;
#pragma unroll
    for (int i = 0; i < ITEM_VECTORS; i++) {
        const int column = item * ITEM_COLUMNS + i * 8;
        own.vectors[i] = make_uint4(0, 0, 0, 0);
        if (token < call.tokens && column < call.columns)
            own.vectors[i] = *(const uint4 *)(call.x + (int64_t)token * call.columns + column);
    }
    return own;
}

/* The larger of `largest` and these magnitudes, in each half of a word: magnitudes of BF16 are ordered as their
 * bits are. */
static __device__ __forceinline__ uint32_t largest_bits(uint32_t largest, const item_vectors &item)
{
    const uint32_t magnitude = 0x7fff7fffu;
#pragma unroll
    for (int i = 0; i < ITEM_VECTORS; i++) {
        largest = __vmaxu2(largest, item.vectors[i].x & magnitude);
        largest = __vmaxu2(largest, item.vectors[i].y & magnitude);
        largest = __vmaxu2(largest, item.vectors[i].z & magnitude);
        largest = __vmaxu2(largest, item.vectors[i].w & magnitude);
    }
    return largest;
}

/* Byte `byte` of four words. */
static __device__ __forceinline__ uint32_t gather_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                                        uint32_t byte)
{
    const uint32_t which = byte | (4 + byte) << 4;
    return __byte_perm(__byte_perm(a, b, which), __byte_perm(c, d, which), 0x5410);
}

/* Writes the digits of an item; returns the sum of its q. */
static __device__ __forceinline__ int write_item(const digits_call &call, int token, int item,
                                                 const item_vectors &own, float factor)
{
    const uint32_t zero = 0x4b400000u; /* adding 1.5 · 2²³ rounds, and leaves q above these bits */
    uint32_t q[ITEM_COLUMNS], sum = 0;
#pragma unroll
    for (int i = 0; i < ITEM_VECTORS; i++) {
        const uint32_t words[4] = {own.vectors[i].x, own.vectors[i].y, own.vectors[i].z, own.vectors[i].w};
#pragma unroll
        for (int j = 0; j < 8; j++) { /* a BF16 is the upper half of an F32 */
            const float value = __uint_as_float(j % 2 ? words[j / 2] & 0xffff0000u : words[j / 2] << 16);
            q[8 * i + j] = __float_as_uint(fmaf(value, factor, __uint_as_float(zero))) - zero;
            sum += q[8 * i + j];
        }
    }
    const int unit = item / UNIT_ITEMS, word = item % UNIT_ITEMS / 2, half = item % 2, taker = word / 4;
    const int first_product = (unit * 4 + word % 4) * PHASES;
#pragma unroll
    for (int phase = 0; phase < PHASES; phase++) {
        unsigned char *pieces =
            call.digits + ((int64_t)(first_product + phase) * 2 + half) * 2 * call.tiles * PIECE_BYTES;
        unsigned char *upper = pieces + token / 8 * PIECE_BYTES + token % 8 * 16 + taker * 4;
        const uint32_t *own_q = q + phase;
        *(uint32_t *)upper = gather_bytes(own_q[0] + 128, own_q[4] + 128, own_q[8] + 128, own_q[12] + 128, 1);
        *(uint32_t *)(upper + call.tiles * PIECE_BYTES) =
            gather_bytes(own_q[0], own_q[4], own_q[8], own_q[12], 0);
    }
    return (int)sum;
}

/* One column, all tokens. */
static __device__ __forceinline__ void turn(const digits_call &call, int column)
{
    if (column >= call.columns)
        return;
    for (int first = 0; first < call.tiles * 8; first += 8) {
        uint32_t words[4] = {};
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (first + i < call.tokens)
                words[i / 2] |=
                    (uint32_t) * (const uint16_t *)(call.x + (int64_t)(first + i) * call.columns + column)
                    << 16 * (i % 2);
        *(uint4 *)(call.turned + (int64_t)column * call.tiles * 8 + first) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/* A block for each token, then, when x is to be turned, blocks for columns. */
__global__ void __launch_bounds__(THREADS) token_digits_kernel(const __grid_constant__ digits_call call)
{
    __shared__ uint32_t largest_of[WARPS];
    __shared__ int sums[WARPS];
    const int token = blockIdx.x, lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int items = call.units * UNIT_ITEMS;
    decant_let_next_kernel_begin();
    decant_wait_for_earlier_kernels();
    if (token >= call.tiles * 8) {
        turn(call, (token - call.tiles * 8) * THREADS + (int)threadIdx.x);
        return;
    }
    const item_vectors first = load_item(call, token, threadIdx.x);
    uint32_t bits = largest_bits(0, first);
    for (int item = threadIdx.x + THREADS; item < items; item += THREADS)
        bits = largest_bits(bits, load_item(call, token, item));
    bits = __reduce_max_sync(DECANT_ALL_LANES, max(bits & 0xffffu, bits >> 16));
    if (lane == 0)
        largest_of[warp] = bits;
    __syncthreads();
    bits = __reduce_max_sync(DECANT_ALL_LANES, largest_of[lane % WARPS]);
    const float largest = __uint_as_float(bits << 16);
    /* a token so small that 1 / scale has no float counts as zero */
    const float factor = largest < 1e-32f ? 0.0f : DIGITS_MAXIMUM / largest;
    int sum = 0;
    if ((int)threadIdx.x < items)
        sum = write_item(call, token, threadIdx.x, first, factor);
    for (int item = threadIdx.x + THREADS; item < items; item += THREADS)
        sum += write_item(call, token, item, load_item(call, token, item), factor);
    sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
    if (lane == 0)
        sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = __reduce_add_sync(DECANT_ALL_LANES, sums[lane % WARPS]);
        if (lane == 0)
            call.figures[token] = {largest / DIGITS_MAXIMUM, sum};
    }
}

/* ---- the launch ---- */

static int units_of(int64_t columns)
{
    return (int)((columns + DECANT_DIGITS_UNIT_COLUMNS - 1) / DECANT_DIGITS_UNIT_COLUMNS);
}

static size_t digits_bytes(decant_matrix x)
{
    return (size_t)units_of(x.columns) * DECANT_DIGITS_UNIT_COLUMNS * 2 * 8 *
           (size_t)decant_digits_tiles(x.rows);
}

static size_t figures_bytes(decant_matrix x)
{
    return (size_t)decant_digits_tiles(x.rows) * 8 * sizeof(decant_token_figures);
}

static size_t turned_bytes(decant_matrix x)
{
    return (size_t)x.columns * 8 * (size_t)decant_digits_tiles(x.rows) * sizeof(__nv_bfloat16);
}

size_t decant_token_digits_bytes(decant_matrix x, bool turned)
{
    size_t total = 0;
    decant_scratch_reserve(&total, digits_bytes(x));
    decant_scratch_reserve(&total, figures_bytes(x));
    decant_scratch_reserve(&total, turned ? turned_bytes(x) : 0);
    return total;
}

decant_status decant_cuda_token_digits(decant_backend *backend, decant_matrix x, bool turned, void *scratch,
                                       decant_token_digits *digits, decant_error *err)
{
    static_assert((int)WARPS == (int)DECANT_WARP, "a lane for each warp");
    size_t total = 0;
    const size_t digits_at = decant_scratch_reserve(&total, digits_bytes(x));
    const size_t figures_at = decant_scratch_reserve(&total, figures_bytes(x));
    const size_t turned_at = decant_scratch_reserve(&total, turned ? turned_bytes(x) : 0);
    digits_call call = {};
    call.x = (const __nv_bfloat16 *)x.data;
    call.digits = (unsigned char *)scratch + digits_at;
    call.figures = (decant_token_figures *)((char *)scratch + figures_at);
    call.tokens = (int)x.rows;
    call.columns = (int)x.columns;
    call.units = units_of(x.columns);
    call.tiles = decant_digits_tiles(x.rows);
    call.turned = turned ? (__nv_bfloat16 *)((char *)scratch + turned_at) : NULL;
    const unsigned columns_blocks = turned ? (unsigned)((x.columns + THREADS - 1) / THREADS) : 0;
    const unsigned blocks = (unsigned)call.tiles * 8 + columns_blocks;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        decant_launch_early(decant_cuda_context_of(backend), token_digits_kernel, blocks, THREADS, 0, call),
        "token_digits", err));
    *digits = {call.digits, call.figures, call.turned};
    return decant_cuda_launched(backend, "token_digits", err);
}
