/* x as fragments, as token_fragments.h says. A block takes slices of an operand, each of its four warps an
 * octet of every lane: they look for the tokens' largest magnitudes and write the fragments. Where x is wanted
 * turned as well, further blocks do that, a thread eight tokens of four columns.
 *
 * Blocks are so small that they begin beside those of packed_pairs.cu, whatever these leave of a
 * multiprocessor: a warp on each of its four parts, with 32 registers. */
#include "kernels/cuda/token_fragments.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_turn.cuh"

#include <cuda_fp16.h>

enum {
    THREADS = DECANT_FRAGMENTS_TURNS * DECANT_WARP,
    BLOCKS = 16,        /* of a multiprocessor, so that a thread has at most 32 registers */
    OCTET = 8,          /* columns */
    PAIR = 2,           /* tokens g and g + 8 of an operand */
    TURNED_COLUMNS = 4, /* of a thread */
    AT_ONCE = 2,        /* slices of a block where there are more than multiprocessors */
};

typedef struct fragments_call {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    uint4 *fragments;
    uint8_t *powers;
    int tokens, columns, slices, operands;
    __nv_bfloat16 *turned; /* x [columns, turned_tokens] or NULL */
    int turned_tokens;
    int slice_blocks, at_once; /* blocks that take slices, and how many of an operand at a time */
} fragments_call;

/* The largest magnitudes of an operand's slice: of both tokens of a lane, in halves. */
typedef uint32_t slice_largest[DECANT_FRAGMENTS_TURNS][DECANT_FRAGMENTS_GROUPS];

enum { SYSTEM_BYTES = 1024 /* of shared memory that the system takes of every block */ };
static_assert(SYSTEM_BYTES + (1 + AT_ONCE) * sizeof(slice_largest) <= DECANT_FRAGMENTS_SHARED_BYTES,
              "a block has those of one slice and of AT_ONCE");

/* Eight columns of a token; zeros beyond the last token or column. */
[[maybe_unused]] static __device__ __forceinline__ uint4 load_octet(const fragments_call &call, int token,
                                                                    int octet)
{
    const bool valid = token < call.tokens && octet * OCTET < call.columns;
    return valid ? *(const uint4 *)(call.x + (int64_t)token * call.columns + octet * OCTET)
                 : make_uint4(0, 0, 0, 0);
}

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
    const __half2 halves =
        __floats2half2_rn(__uint_as_float(pair << 16) * factor, __uint_as_float(pair & 0xffff0000u) * factor);
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
template <int COUNT> static __device__ __forceinline__ void take_slices(const fragments_call &call, int item)
{
    __shared__ slice_largest largest_of[COUNT];
    const int lane = threadIdx.x % DECANT_WARP, turn = threadIdx.x / DECANT_WARP, g = lane / 4, t = lane % 4;
    uint4 octets[COUNT][PAIR];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int slice = (item + i) / call.operands, token = (item + i) % call.operands * 16 + g;
        const int octet = slice * DECANT_FRAGMENTS_SLICE_OCTETS + t % 2 * 8 + turn * 2 + t / 2;
        octets[i][0] = load_octet(call, token, octet);
        octets[i][1] = call.tokens <= 8 ? octets[i][0] : load_octet(call, token + 8, octet);
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const uint32_t first = largest_bits(0, octets[i][0]), second = largest_bits(0, octets[i][1]);
        uint32_t both = __vmaxu2(__byte_perm(first, second, 0x5410), __byte_perm(first, second, 0x7632));
#pragma unroll
        for (int across = 1; across < 4; across *= 2) /* the lanes of a token */
            both = __vmaxu2(both, __shfl_xor_sync(DECANT_ALL_LANES, both, across));
        if (t == 0)
            largest_of[i][turn][g] = both;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int slice = (item + i) / call.operands, operand = (item + i) % call.operands;
        uint32_t both = 0;
#pragma unroll
        for (int other = 0; other < DECANT_FRAGMENTS_TURNS; other++)
            both = __vmaxu2(both, largest_of[i][other][g]);
        if (slice >= call.slices)
            break;
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

__global__ void __launch_bounds__(THREADS, BLOCKS)
    token_fragments_kernel(const __grid_constant__ fragments_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        const int block = (int)blockIdx.x;
        decant_let_next_kernel_begin();
        decant_wait_for_earlier_kernels();
        if (block >= call.slice_blocks)
            turn(call, block - call.slice_blocks, (int)gridDim.x - call.slice_blocks);
        else if (call.at_once == 1)
            take_slices<1>(call, block);
        else
            for (int item = block * AT_ONCE; item < call.slices * call.operands;
                 item += call.slice_blocks * AT_ONCE) {
                take_slices<AT_ONCE>(call, item);
                __syncthreads(); /* everybody has read the largest */
            }
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

size_t decant_token_fragments_bytes(decant_matrix x)
{
    size_t total = 0;
    decant_scratch_reserve(&total, fragments_bytes(x));
    decant_scratch_reserve(&total, powers_bytes(x));
    return total;
}

decant_status decant_cuda_token_fragments(decant_backend *backend, decant_matrix x, void *scratch,
                                          decant_token_fragments *fragments, __nv_bfloat16 *turned,
                                          decant_error *err)
{
    size_t total = 0;
    const size_t fragments_at = decant_scratch_reserve(&total, fragments_bytes(x));
    const size_t powers_at = decant_scratch_reserve(&total, powers_bytes(x));
    fragments_call call = {};
    call.x = (const __nv_bfloat16 *)x.data;
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
    call.at_once = items + all_turning <= room ? 1 : AT_ONCE;
    const int needed = (items + call.at_once - 1) / call.at_once, most = turned ? room * 2 / 3 : room;
    call.slice_blocks = needed < most ? needed : most;
    const int left = room - call.slice_blocks, turning = all_turning < left ? all_turning : left;
    const unsigned blocks = (unsigned)(call.slice_blocks + turning);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(decant_launch_early(context, token_fragments_kernel, blocks, THREADS, 0, call),
                          "token_fragments", err));
    *fragments = {call.fragments, call.powers};
    return decant_cuda_launched(backend, "token_fragments", err);
}
