/* x as fragments, as token_fragments.h says. A pair of tokens has a cluster of blocks, each of which takes a
 * part of the columns: it looks for the largest magnitudes there, asks the others for theirs, and then writes
 * its part. A thread takes an octet of both tokens at a time.
 *
 * Where x is wanted turned as well, further blocks do that, a thread eight tokens of four columns. Blocks are
 * so small that one begins beside each of packed_pairs.cu; with more than sixteen tokens there is room for no
 * more than make fragments, and these turn x too. */
#include "kernels/cuda/token_fragments.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/token_turn.cuh"

#include <cuda_fp16.h>

enum {
    THREADS = 128,
    WARPS = THREADS / DECANT_WARP,
    OCTET = 8,          /* columns */
    PARTS = 8,          /* of the columns, each for a block of the cluster */
    PAIR = 2,           /* tokens g and g + 8 of an operand */
    AHEAD = 4,          /* octets of a thread that are loaded at once */
    TURNED_COLUMNS = 4, /* of a thread */
    BLOCKS_EACH = 16,   /* to an empty multiprocessor: no more than 32 registers */
};

typedef struct fragments_call {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    uint4 *fragments;
    float *scales;
    int tokens, columns, slices, operands;
    __nv_bfloat16 *turned; /* x [columns, turned_tokens] or NULL */
    int turned_tokens;
} fragments_call;

/* Eight columns of a token; zeros beyond the last token or column. */
static __device__ __forceinline__ uint4 load_octet(const fragments_call &call, int token, int octet)
{
    const bool valid = token < call.tokens && octet * OCTET < call.columns;
    return valid ? *(const uint4 *)(call.x + (int64_t)token * call.columns + octet * OCTET)
                 : make_uint4(0, 0, 0, 0);
}

/* The larger of `largest` and these magnitudes, in each half of a word: magnitudes of BF16 are ordered as their
 * bits are. */
static __device__ __forceinline__ uint32_t largest_bits(uint32_t largest, const uint4 &octet)
{
    const uint32_t magnitude = 0x7fff7fffu;
    largest = __vmaxu2(largest, octet.x & magnitude);
    largest = __vmaxu2(largest, octet.y & magnitude);
    largest = __vmaxu2(largest, octet.z & magnitude);
    return __vmaxu2(largest, octet.w & magnitude);
}

/* The exponent of the power of two that a token with this largest magnitude is multiplied by: limited, so that
 * its inverse is a float too. */
static __device__ __forceinline__ int scale_exponent(uint32_t largest)
{
    const int exponent = (int)(largest >> 7) - 127, wanted = 14;
    return min(wanted - exponent, 126);
}

/* 2^exponent, −126 … 127. */
static __device__ __forceinline__ float power_of_two(int exponent)
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

static __device__ __forceinline__ uint4 scale_octet(const uint4 &octet, float factor)
{
    return make_uint4(scale_pair(octet.x, factor), scale_pair(octet.y, factor), scale_pair(octet.z, factor),
                      scale_pair(octet.w, factor));
}

/* The two fragments that an octet of tokens g and g + 8 makes. */
static __device__ __forceinline__ void write_octet(const fragments_call &call, int operand, int g, int octet,
                                                   const uint4 &first, const uint4 &second)
{
    const int own = octet % DECANT_FRAGMENTS_SLICE_OCTETS, slice = octet / DECANT_FRAGMENTS_SLICE_OCTETS;
    const int t = own / 8 + own % 2 * 2, turn = own % 8 / 2;
    uint4 *target =
        call.fragments +
        (((int64_t)(slice * DECANT_FRAGMENTS_TURNS + turn) * 2) * call.operands + operand) * DECANT_WARP +
        4 * g + t;
    target[0] = make_uint4(first.x, second.x, first.y, second.y);
    target[call.operands * DECANT_WARP] = make_uint4(first.z, second.z, first.w, second.w);
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

/* The largest magnitudes of two tokens in octets begin … end − 1, as BF16; to the first threads of each warp.
 */
static __device__ __forceinline__ void find_largest(const fragments_call &call, const int (&tokens)[PAIR],
                                                    int begin, int end, uint32_t (&largest)[PAIR])
{
    for (int first = begin + (int)threadIdx.x; first < end; first += AHEAD * THREADS) {
        uint4 ahead[AHEAD][PAIR];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int j = 0; j < PAIR; j++)
                ahead[i][j] = first + i * THREADS < end ? load_octet(call, tokens[j], first + i * THREADS)
                                                        : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int j = 0; j < PAIR; j++)
                largest[j] = largest_bits(largest[j], ahead[i][j]);
    }
#pragma unroll
    for (int j = 0; j < PAIR; j++)
        largest[j] = __reduce_max_sync(DECANT_ALL_LANES, max(largest[j] & 0xffffu, largest[j] >> 16));
}

__global__ void __launch_bounds__(THREADS, BLOCKS_EACH)
    token_fragments_kernel(const __grid_constant__ fragments_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        __shared__ uint32_t largest_of[WARPS][PAIR];
        __shared__ __align__(16) uint32_t own_largest[4]; /* of the block; as much as is read at once */
        const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
        const int part = (int)blockIdx.x % PARTS, g = (int)blockIdx.x / PARTS % 8,
                  operand = (int)blockIdx.x / PARTS / 8;
        const int octets = call.slices * DECANT_FRAGMENTS_SLICE_OCTETS;
        const int begin = octets * part / PARTS, end = octets * (part + 1) / PARTS;
        const int tokens[PAIR] = {operand * 16 + g, call.tokens <= 8 ? g : operand * 16 + g + 8};
        decant_let_next_kernel_begin();
        decant_wait_for_earlier_kernels();
        const int blocks = 8 * PARTS * call.operands;
        if ((int)blockIdx.x >= blocks) {
            turn(call, (int)blockIdx.x - blocks, (int)gridDim.x - blocks);
            return;
        }
        uint32_t largest[PAIR] = {};
        find_largest(call, tokens, begin, end, largest);
        if (lane < PAIR)
            largest_of[warp][lane] = largest[lane];
        __syncthreads();
        if (threadIdx.x < PAIR) {
            uint32_t of_all = 0;
            for (int i = 0; i < WARPS; i++)
                of_all = max(of_all, largest_of[i][threadIdx.x]);
            own_largest[threadIdx.x] = of_all;
        }
        decant_cluster_barrier();
        const float4 of_block = decant_load_of_block(decant_shared_address(own_largest), lane % PARTS);
        const uint32_t found[PAIR] = {__float_as_uint(of_block.x), __float_as_uint(of_block.y)};
        float factors[PAIR];
        decant_cluster_arrive();
#pragma unroll
        for (int j = 0; j < PAIR; j++) {
            const int exponent = scale_exponent(__reduce_max_sync(DECANT_ALL_LANES, found[j]));
            factors[j] = power_of_two(exponent);
            if (threadIdx.x == 0 && part == 0)
                call.scales[tokens[j]] = power_of_two(-exponent);
        }
        for (int octet = begin + (int)threadIdx.x; octet < end; octet += THREADS)
            write_octet(call, operand, g, octet, scale_octet(load_octet(call, tokens[0], octet), factors[0]),
                        scale_octet(load_octet(call, tokens[1], octet), factors[1]));
        if (call.turned && (int)gridDim.x == blocks)
            turn(call, (int)blockIdx.x, blocks);
        decant_cluster_wait(); /* nobody asks this block any more */
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

size_t decant_token_fragments_bytes(decant_matrix x)
{
    size_t total = 0;
    decant_scratch_reserve(&total, fragments_bytes(x));
    decant_scratch_reserve(&total, DECANT_FRAGMENTS_TOKENS_MAXIMUM * sizeof(float));
    return total;
}

decant_status decant_cuda_token_fragments(decant_backend *backend, decant_matrix x, void *scratch,
                                          decant_token_fragments *fragments, __nv_bfloat16 *turned,
                                          decant_error *err)
{
    size_t total = 0;
    const size_t fragments_at = decant_scratch_reserve(&total, fragments_bytes(x));
    const size_t scales_at = decant_scratch_reserve(&total, DECANT_FRAGMENTS_TOKENS_MAXIMUM * sizeof(float));
    fragments_call call = {};
    call.x = (const __nv_bfloat16 *)x.data;
    call.fragments = (uint4 *)((char *)scratch + fragments_at);
    call.scales = (float *)((char *)scratch + scales_at);
    call.tokens = (int)x.rows;
    call.columns = (int)x.columns;
    call.slices = slices_of(x.columns);
    call.operands = decant_fragments_operands(x.rows);
    call.turned = turned;
    call.turned_tokens = decant_turned_tokens(x.rows);
    const int turned_vectors = call.columns / TURNED_COLUMNS * call.turned_tokens / DECANT_VECTOR_TOKENS,
              block_vectors = PARTS * THREADS;
    const bool apart = turned && call.operands == 1;
    const int clusters = 8 * call.operands + (apart ? (turned_vectors + block_vectors - 1) / block_vectors : 0);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(decant_launch_early(decant_cuda_context_of(backend), token_fragments_kernel,
                                              (unsigned)(clusters * PARTS), THREADS, 0, call, PARTS),
                          "token_fragments", err));
    *fragments = {call.fragments, call.scales};
    return decant_cuda_launched(backend, "token_fragments", err);
}
