/* x, or what is made of it, as fragments, as token_fragments.h says. A block takes slices of an operand, each
 * of its four warps an octet of every lane: they look for the tokens' largest magnitudes and write the
 * fragments. Where x is wanted turned as well, further blocks do that, a thread eight tokens of four
 * columns.
 *
 * Blocks are so small that they begin beside those of packed_pairs.cu, whatever these leave of a
 * multiprocessor: a warp on each of its four parts, with 32 registers. */
#include "kernels/cuda/token_fragments.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/sigmoid.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_turn.cuh"

extern "C" {
#include "kernels/packed_input.h"
}

#include <cuda_fp16.h>

enum {
    THREADS = DECANT_FRAGMENTS_TURNS * DECANT_WARP,
    BLOCKS = 16,        /* of a multiprocessor, so that a thread has at most 32 registers */
    OCTET = 8,          /* columns */
    PAIR = 2,           /* tokens g and g + 8 of an operand */
    TURNED_COLUMNS = 4, /* of a thread */
    AT_ONCE = 2,        /* slices of x itself of a block where there are more than multiprocessors: as many as
                           registers hold */
};

/* What fragments are made of. */
enum { OF_X, OF_NORMED, OF_GATED };

typedef struct fragments_call {
    const __nv_bfloat16 *x, *up; /* [tokens, columns]; up OF_GATED */
    const float *norm_weight;    /* [columns], OF_NORMED */
    float *squares;              /* as in decant_token_fragments */
    uint4 *fragments;
    uint8_t *powers;
    int tokens, columns, slices, operands;
    __nv_bfloat16 *turned; /* x [columns, turned_tokens] or NULL */
    int turned_tokens;
    int slice_blocks, at_once; /* blocks that take slices, and how many of an operand at a time */
} fragments_call;

/* What the warps of a block tell each other of the operands' slices that they take, both tokens of a lane. */
typedef struct slice_figures {
    uint32_t largest[AT_ONCE][DECANT_FRAGMENTS_TURNS][DECANT_FRAGMENTS_GROUPS]; /* magnitudes, in halves */
    float2 squares[DECANT_FRAGMENTS_TURNS][DECANT_FRAGMENTS_GROUPS]; /* of a norm Σ x², of one slice */
} slice_figures;

enum { SYSTEM_BYTES = 1024 /* of shared memory that the system takes of every block */ };
static_assert(SYSTEM_BYTES + sizeof(slice_figures) <= DECANT_FRAGMENTS_SHARED_BYTES, "what a block has");

/* ---- what fragments are made of ---- */

/* Two columns of a norm but for 1 / rms; weights: theirs. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t weigh_pair(uint32_t x, float2 weights)
{
    const float2 values = decant_unpair(x);
    return decant_pair(values.x * weights.x, values.y * weights.y);
}

/* Two columns of silu(x) ∘ up. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t gate_pair(uint32_t x, uint32_t up)
{
    const float2 gates = decant_unpair(x), ups = decant_unpair(up);
    return decant_pair(ups.x * (gates.x * decant_sigmoid_nearly(gates.x)),
                       ups.y * (gates.y * decant_sigmoid_nearly(gates.y)));
}

/* What four columns of a token, from `place` of x on, become. */
template <int FROM>
[[maybe_unused]] static __device__ __forceinline__ uint2 make_four(const fragments_call &call, int64_t place,
                                                                   int column, uint2 x)
{
    if constexpr (FROM == OF_NORMED) {
        const float4 weights = *(const float4 *)(call.norm_weight + column);
        return make_uint2(weigh_pair(x.x, make_float2(weights.x, weights.y)),
                          weigh_pair(x.y, make_float2(weights.z, weights.w)));
    } else if constexpr (FROM == OF_GATED) {
        const uint2 up = *(const uint2 *)(call.up + place);
        return make_uint2(gate_pair(x.x, up.x), gate_pair(x.y, up.y));
    } else {
        return x;
    }
}

[[maybe_unused]] static __device__ __forceinline__ float square_of(uint32_t pair)
{
    const float2 values = decant_unpair(pair);
    return values.x * values.x + values.y * values.y;
}

/* Eight columns of a token; zeros beyond the last token or column. square: of a norm Σ x² of these. */
template <int FROM>
[[maybe_unused]] static __device__ __forceinline__ uint4 load_octet(const fragments_call &call, int token,
                                                                    int octet, float &square)
{
    const int column = octet * OCTET;
    const int64_t place = (int64_t)token * call.columns + column;
    square = 0;
    if (token >= call.tokens || column >= call.columns)
        return make_uint4(0, 0, 0, 0);
    const uint4 x = *(const uint4 *)(call.x + place);
    if constexpr (FROM == OF_NORMED)
        square = square_of(x.x) + square_of(x.y) + (square_of(x.z) + square_of(x.w));
    const uint2 first = make_four<FROM>(call, place, column, make_uint2(x.x, x.y)),
                second = make_four<FROM>(call, place + 4, column + 4, make_uint2(x.z, x.w));
    return make_uint4(first.x, first.y, second.x, second.y);
}

/* ---- what a block does ---- */

/* The larger of `largest` and these magnitudes, in each half of a word: magnitudes of BF16 are ordered as their
 * bits are. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t largest_bits(uint32_t largest, const uint4 &octet)
{
    const uint32_t magnitude = 0x7fff7fffu;
    largest = __vmaxu2(largest, octet.x & magnitude);
    largest = __vmaxu2(largest, octet.y & magnitude);
    largest = __vmaxu2(largest, octet.z & magnitude);
    return __vmaxu2(largest, octet.w & magnitude);
}

/* The exponent of the power of two that a slice with this largest magnitude is multiplied by: a multiple of
 * eight, so that mostly it is the same for all slices of a token; limited, so that its inverse is a float too.
 */
[[maybe_unused]] static __device__ __forceinline__ int scale_exponent(uint32_t largest)
{
    const int exponent = (int)(largest >> 7) - 127, wanted = 14, step = DECANT_FRAGMENTS_POWER_STEP,
              most = (DECANT_FRAGMENTS_POWER_ONE - 1) * step;
    return min((wanted - exponent) & -step, most);
}

/* 2^exponent, −126 … 127. */
[[maybe_unused]] static __device__ __forceinline__ float power_of_two(int exponent)
{
    return __uint_as_float((uint32_t)(exponent + 127) << 23);
}

/* Two BF16 times a factor as two F16. */
static __device__ __forceinline__ uint32_t scale_pair(uint32_t pair, float factor)
{
    const float2 values = decant_unpair(pair);
    const __half2 halves = __floats2half2_rn(values.x * factor, values.y * factor);
    return *(const uint32_t *)&halves;
}

[[maybe_unused]] static __device__ __forceinline__ uint4 scale_octet(const uint4 &octet, float factor)
{
    return make_uint4(scale_pair(octet.x, factor), scale_pair(octet.y, factor), scale_pair(octet.z, factor),
                      scale_pair(octet.w, factor));
}

/* What block `block` of `blocks` that turn x does. Its last threads begin: where columns are few, the first
 * have more to do. */
static __device__ __forceinline__ void turn(const fragments_call &call, int block, int blocks)
{
    const int vectors = call.turned_tokens / DECANT_VECTOR_TOKENS,
              all = call.columns / TURNED_COLUMNS * vectors;
    const int begin = (int)((int64_t)all * block / blocks), end = (int)((int64_t)all * (block + 1) / blocks);
    for (int i = begin + THREADS - 1 - (int)threadIdx.x; i < end; i += THREADS)
        decant_turn_four(call.x, call.tokens, call.columns, call.turned_tokens, i / vectors * TURNED_COLUMNS,
                         i % vectors * DECANT_VECTOR_TOKENS, call.turned);
}

/* What a block does with COUNT slices of operands, whose x it asks for at once: item, item + 1, …, which count
 * the operands of the first slice, then those of the second. */
template <int FROM, int COUNT>
static __device__ __forceinline__ void take_slices(const fragments_call &call, int item, slice_figures &figures)
{
    const int lane = threadIdx.x % DECANT_WARP, turn = threadIdx.x / DECANT_WARP, g = lane / 4, t = lane % 4;
    uint4 octets[COUNT][PAIR];
    float squares[COUNT][PAIR];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int slice = (item + i) / call.operands, token = (item + i) % call.operands * 16 + g;
        const int octet = slice * DECANT_FRAGMENTS_SLICE_OCTETS + t % 2 * 8 + turn * 2 + t / 2;
        octets[i][0] = load_octet<FROM>(call, token, octet, squares[i][0]);
        if (call.tokens <= 8) {
            octets[i][1] = octets[i][0];
            squares[i][1] = 0; /* no token's */
        } else {
            octets[i][1] = load_octet<FROM>(call, token + 8, octet, squares[i][1]);
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const uint32_t first = largest_bits(0, octets[i][0]), second = largest_bits(0, octets[i][1]);
        uint32_t both = __vmaxu2(__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632));
#pragma unroll
        for (int across = 1; across < 4; across *= 2) /* the lanes of a token */
            both = __vmaxu2(both, __shfl_xor_sync(DECANT_ALL_LANES, both, across));
        if (t == 0)
            figures.largest[i][turn][g] = both;
        if constexpr (FROM == OF_NORMED) {
#pragma unroll
            for (int across = 1; across < 4; across *= 2)
#pragma unroll
                for (float &square : squares[i])
                    square += __shfl_xor_sync(DECANT_ALL_LANES, square, across);
            if (t == 0)
                figures.squares[turn][g] = make_float2(squares[i][0], squares[i][1]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int slice = (item + i) / call.operands, operand = (item + i) % call.operands;
        uint32_t both = 0;
#pragma unroll
        for (int other = 0; other < DECANT_FRAGMENTS_TURNS; other++)
            both = __vmaxu2(both, figures.largest[i][other][g]);
        if (slice >= call.slices)
            break;
        if constexpr (FROM == OF_NORMED)
            if (turn < PAIR && t == 0) {
                float square = 0;
#pragma unroll
                for (int other = 0; other < DECANT_FRAGMENTS_TURNS; other++)
                    square += turn ? figures.squares[other][g].y : figures.squares[other][g].x;
                call.squares[slice * DECANT_FRAGMENTS_TOKENS_MAXIMUM + operand * 16 + turn * 8 + g] = square;
            }
#pragma unroll
        for (int j = 0; j < PAIR; j++) {
            const uint32_t of_token = j ? both >> 16 : both & 0xffffu;
            const int exponent = scale_exponent(of_token);
            octets[i][j] = scale_octet(octets[i][j], power_of_two(exponent));
            if (turn == 0 && t == 0)
                call.powers[(slice * DECANT_FRAGMENTS_GROUPS + g) * DECANT_FRAGMENTS_GROUP_TOKENS +
                            operand * PAIR + j] =
                    of_token ? (uint8_t)(exponent / DECANT_FRAGMENTS_POWER_STEP + DECANT_FRAGMENTS_POWER_ONE)
                             : 0;
        }
        const uint4 &a = octets[i][0], &b = octets[i][1];
        uint4 *target =
            call.fragments +
            (((int64_t)slice * DECANT_FRAGMENTS_TURNS + turn) * 2 * call.operands + operand) * DECANT_WARP +
            lane;
        target[0] = make_uint4(a.x, b.x, a.y, b.y);
        target[call.operands * DECANT_WARP] = make_uint4(a.z, b.z, a.w, b.w);
    }
}

/* COUNT at a time. */
template <int FROM, int COUNT>
static __device__ __forceinline__ void take_all_slices(const fragments_call &call, int block,
                                                       slice_figures &figures)
{
    for (int item = block * COUNT; item < call.slices * call.operands; item += call.slice_blocks * COUNT) {
        take_slices<FROM, COUNT>(call, item, figures);
        __syncthreads(); /* everybody has read the figures */
    }
}

/* The weights of a norm do not wait for x. */
[[maybe_unused]] static __device__ __forceinline__ void prefetch_weights(const fragments_call &call, int block)
{
    enum { LINE_FLOATS = 32 };
    const int column = block / call.operands * DECANT_FRAGMENTS_SLICE_COLUMNS + (int)threadIdx.x;
    if (threadIdx.x % LINE_FLOATS == 0 && column < call.columns)
        decant_prefetch(call.norm_weight + column);
}

template <int FROM>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    token_fragments_kernel(const __grid_constant__ fragments_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        __shared__ slice_figures figures;
        const int block = (int)blockIdx.x;
        decant_let_next_kernel_begin();
        if (FROM == OF_NORMED && block < call.slice_blocks)
            prefetch_weights(call, block);
        decant_wait_for_earlier_kernels();
        if (block >= call.slice_blocks)
            turn(call, block - call.slice_blocks, (int)gridDim.x - call.slice_blocks);
        else if (FROM == OF_X && call.at_once == 1)
            take_slices<FROM, 1>(call, block, figures);
        else
            take_all_slices<FROM, FROM == OF_X ? AT_ONCE : 1>(call, block, figures);
    }
}

/* ---- the launch ---- */

static int slices_of(int64_t columns)
{
    const int64_t at_once = DECANT_FRAGMENTS_SLICE_COLUMNS * DECANT_FRAGMENTS_STAGE_SLICES;
    return (int)((columns + at_once - 1) / at_once) * DECANT_FRAGMENTS_STAGE_SLICES;
}

static size_t fragments_bytes(decant_matrix x)
{
    return (size_t)slices_of(x.columns) * DECANT_FRAGMENTS_TURNS * 2 * DECANT_WARP * sizeof(uint4) *
           (size_t)decant_fragments_operands(x.rows);
}

static size_t powers_bytes(decant_matrix x)
{
    return (size_t)slices_of(x.columns) * DECANT_FRAGMENTS_TOKENS_MAXIMUM;
}

static size_t squares_bytes(const decant_packed_input *input)
{
    return input->norm_weight.data
               ? (size_t)slices_of(input->x.columns) * DECANT_FRAGMENTS_TOKENS_MAXIMUM * sizeof(float)
               : 0;
}

size_t decant_token_fragments_bytes(const decant_packed_input *input)
{
    size_t total = 0;
    decant_scratch_reserve(&total, fragments_bytes(input->x));
    decant_scratch_reserve(&total, powers_bytes(input->x));
    decant_scratch_reserve(&total, squares_bytes(input));
    return total;
}

bool decant_token_fragments_make(const decant_packed_input *input)
{
    const bool weights_fit = input->norm_weight.element == DECANT_F32 &&
                             decant_has_vectors<float>(input->x.columns, input->norm_weight.data);
    return (!input->norm_weight.data || weights_fit) &&
           (!input->up.data || decant_has_vectors<__nv_bfloat16>(input->x.columns, input->up.data));
}

decant_status decant_cuda_token_fragments(decant_backend *backend, const decant_packed_input *input,
                                          void *scratch, decant_token_fragments *fragments,
                                          __nv_bfloat16 *turned, decant_error *err)
{
    const decant_matrix x = input->x;
    size_t total = 0;
    const size_t fragments_at = decant_scratch_reserve(&total, fragments_bytes(x));
    const size_t powers_at = decant_scratch_reserve(&total, powers_bytes(x));
    const size_t squares_at = decant_scratch_reserve(&total, squares_bytes(input));
    fragments_call call = {};
    call.x = (const __nv_bfloat16 *)x.data;
    call.up = (const __nv_bfloat16 *)input->up.data;
    call.norm_weight = (const float *)input->norm_weight.data;
    call.squares = call.norm_weight ? (float *)((char *)scratch + squares_at) : NULL;
    call.fragments = (uint4 *)((char *)scratch + fragments_at);
    call.powers = (uint8_t *)scratch + powers_at;
    call.tokens = (int)x.rows;
    call.columns = (int)x.columns;
    call.slices = slices_of(x.columns);
    call.operands = decant_fragments_operands(x.rows);
    call.turned = turned;
    call.turned_tokens = decant_turned_tokens(x.rows);
    /* One block begins early beside each of packed_pairs.cu. */
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    const int room = context->shared.multiprocessors, items = call.slices * call.operands;
    const int vectors = call.columns / TURNED_COLUMNS * call.turned_tokens / DECANT_VECTOR_TOKENS,
              all_turning = turned ? (vectors + THREADS - 1) / THREADS : 0;
    call.at_once = items + all_turning <= room || decant_packed_input_is_made(input) ? 1 : AT_ONCE;
    const int needed = (items + call.at_once - 1) / call.at_once, most = turned ? room * 2 / 3 : room;
    call.slice_blocks = needed < most ? needed : most;
    const int left = room - call.slice_blocks, turning = all_turning < left ? all_turning : left;
    const unsigned blocks = (unsigned)(call.slice_blocks + turning);
    const auto kernel = call.norm_weight ? token_fragments_kernel<OF_NORMED>
                        : call.up        ? token_fragments_kernel<OF_GATED>
                                         : token_fragments_kernel<OF_X>;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(decant_launch_early(context, kernel, blocks, THREADS, 0, call),
                                               "token_fragments", err));
    *fragments = {call.fragments, call.powers, call.squares, call.slices};
    return decant_cuda_launched(backend, "token_fragments", err);
}
