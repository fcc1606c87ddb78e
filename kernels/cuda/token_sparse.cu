/* x Sᵀ for 1 to 32 tokens, S the CSR part of a packed matrix. An entry meets one value of each token, which in
 * x lie a row apart; so x is turned first, and an entry's values are a few sixteen bytes that lie together.
 *
 * A warp takes a row: each lane takes eight tokens of one entry at a time. A few rows often hold many of the
 * entries; what is left of those after ROW_ENTRIES is shared among the warps of the block. Sums are taken in an
 * order that depends on the row's entries alone. */
#include "kernels/cuda/token_sparse.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/packed.cuh"

enum {
    WARPS = 8, /* and rows of a block */
    THREADS = WARPS * DECANT_WARP,
    VECTOR_TOKENS = 8,
    ROW_ENTRIES = 256,
    AHEAD = 4, /* entries that a lane loads before it has x */
};

static int padded_tokens(int64_t tokens)
{
    return tokens <= 8 ? 8 : tokens <= 16 ? 16 : 32;
}

/* ---- x, turned ---- */

typedef struct turn_call {
    const __nv_bfloat16 *x; /* [tokens, columns] */
    __nv_bfloat16 *turned;  /* [columns, TOKENS], zeros beyond the last token */
    int tokens, columns;
} turn_call;

template <int TOKENS>
__global__ void __launch_bounds__(THREADS) turn_kernel(const __grid_constant__ turn_call call)
{
    const int column = (int)(blockIdx.x * THREADS + threadIdx.x);
    decant_let_next_kernel_begin();
    decant_wait_for_earlier_kernels();
    if (column >= call.columns)
        return;
#pragma unroll
    for (int first = 0; first < TOKENS; first += VECTOR_TOKENS) {
        uint32_t words[VECTOR_TOKENS / 2] = {};
#pragma unroll
        for (int i = 0; i < VECTOR_TOKENS; i++)
            if (first + i < call.tokens)
                words[i / 2] |=
                    (uint32_t) * (const uint16_t *)(call.x + (int64_t)(first + i) * call.columns + column)
                    << 16 * (i % 2);
        *(uint4 *)(call.turned + (int64_t)column * TOKENS + first) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/* ---- the product ---- */

typedef struct product_call {
    decant_packed_view packed;
    const __nv_bfloat16 *turned;
    float *products; /* [tokens, rows] */
    int tokens;
} product_call;

/* sums += one entry of eight tokens. */
static __device__ __forceinline__ void add_entry(float (&sums)[VECTOR_TOKENS], uint32_t column, __half weight,
                                                 const __nv_bfloat16 *turned, int tokens)
{
    const uint4 four = *(const uint4 *)(turned + (int64_t)column * tokens);
    const float value = __half2float(weight);
    const uint32_t words[VECTOR_TOKENS / 2] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < VECTOR_TOKENS; i++) /* a BF16 is the upper half of an F32 */
        sums[i] =
            fmaf(value, __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16), sums[i]);
}

/* sums += the entries first, first + step, … before `end`. */
static __device__ __forceinline__ void add_entries(float (&sums)[VECTOR_TOKENS],
                                                   const decant_packed_view &packed, uint32_t first,
                                                   uint32_t end, uint32_t step, const __nv_bfloat16 *turned,
                                                   int tokens)
{
#pragma unroll 4
    for (uint32_t entry = first; entry < end; entry += step)
        add_entry(sums, packed.sparse_columns[entry], packed.sparse_values[entry], turned, tokens);
}

/* Adds up over the lanes that have the same tokens. */
template <int LANES> static __device__ __forceinline__ void add_up(float (&sums)[VECTOR_TOKENS])
{
#pragma unroll
    for (int i = 0; i < VECTOR_TOKENS; i++)
#pragma unroll
        for (int offset = LANES; offset < DECANT_WARP; offset *= 2)
            sums[i] += __shfl_xor_sync(DECANT_ALL_LANES, sums[i], offset);
}

template <int TOKENS>
__global__ void __launch_bounds__(THREADS) product_kernel(const __grid_constant__ product_call call)
{
    constexpr int LANES = TOKENS / VECTOR_TOKENS, ENTRIES = DECANT_WARP / LANES; /* of an entry; of a warp */
    __shared__ float totals[WARPS][TOKENS], parts[WARPS][TOKENS];
    const decant_packed_view &packed = call.packed;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const int first_row = (int)blockIdx.x * WARPS, row = min(first_row + warp, packed.rows - 1);
    const uint32_t begin = packed.row_offsets[row], end = packed.row_offsets[row + 1];
    const __nv_bfloat16 *turned = call.turned + lane % LANES * VECTOR_TOKENS;
    const uint32_t own_end = min(end, begin + ROW_ENTRIES);
    uint32_t columns[AHEAD];
    __half values[AHEAD];
    decant_let_next_kernel_begin();
#pragma unroll
    for (int i = 0; i < AHEAD; i++) {
        const uint32_t entry = begin + lane / LANES + i * ENTRIES;
        columns[i] = entry < own_end ? packed.sparse_columns[entry] : 0;
        values[i] = entry < own_end ? packed.sparse_values[entry] : __ushort_as_half(0);
    }
    decant_wait_for_earlier_kernels();
    {
        float sums[VECTOR_TOKENS] = {};
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (begin + lane / LANES + i * ENTRIES < own_end)
                add_entry(sums, columns[i], values[i], turned, TOKENS);
        add_entries(sums, packed, begin + lane / LANES + AHEAD * ENTRIES, own_end, ENTRIES, turned, TOKENS);
        add_up<LANES>(sums);
        if (lane < LANES)
#pragma unroll
            for (int i = 0; i < VECTOR_TOKENS; i++)
                totals[warp][lane * VECTOR_TOKENS + i] = sums[i];
    }
    __syncthreads();
    for (int other = 0; other < WARPS && first_row + other < packed.rows; other++) {
        const uint32_t first = packed.row_offsets[first_row + other] + ROW_ENTRIES,
                       last = packed.row_offsets[first_row + other + 1];
        if (first >= last) /* the same for the whole block */
            continue;
        float sums[VECTOR_TOKENS] = {};
        add_entries(sums, packed, first + warp * ENTRIES + lane / LANES, last, WARPS * ENTRIES, turned, TOKENS);
        add_up<LANES>(sums);
        if (lane < LANES)
#pragma unroll
            for (int i = 0; i < VECTOR_TOKENS; i++)
                parts[warp][lane * VECTOR_TOKENS + i] = sums[i];
        __syncthreads();
        if (threadIdx.x < TOKENS)
            for (int part = 0; part < WARPS; part++)
                totals[other][threadIdx.x] += parts[part][threadIdx.x];
        __syncthreads();
    }
    const int own_row = first_row + (int)threadIdx.x % WARPS, token = (int)threadIdx.x / WARPS;
    if (token < call.tokens && own_row < packed.rows)
        call.products[(int64_t)token * packed.rows + own_row] = totals[threadIdx.x % WARPS][token];
}

/* ---- the launches ---- */

static size_t turned_bytes(decant_matrix x)
{
    return (size_t)(x.columns * padded_tokens(x.rows)) * sizeof(__nv_bfloat16);
}

size_t decant_token_sparse_bytes(decant_matrix x, const decant_packed_matrix *packed)
{
    size_t total = 0;
    decant_scratch_reserve(&total, turned_bytes(x));
    decant_scratch_reserve(&total, (size_t)(x.rows * packed->rows) * sizeof(float));
    return total;
}

template <int TOKENS>
static cudaError_t launch(decant_cuda_context *context, const turn_call &turn, const product_call &product)
{
    const cudaError_t code = decant_launch_early(
        context, turn_kernel<TOKENS>, (unsigned)((turn.columns + THREADS - 1) / THREADS), THREADS, 0, turn);
    return code != cudaSuccess ? code
                               : decant_launch_early(context, product_kernel<TOKENS>,
                                                     (unsigned)((product.packed.rows + WARPS - 1) / WARPS),
                                                     THREADS, 0, product);
}

decant_status decant_cuda_token_sparse(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, void *scratch,
                                       const float **products, decant_error *err)
{
    static_assert(THREADS >= WARPS * DECANT_TOKEN_SPARSE_MAXIMUM, "a thread for each sum of a block");
    decant_cuda_context *context = decant_cuda_context_of(backend);
    size_t total = 0;
    const size_t turned_at = decant_scratch_reserve(&total, turned_bytes(x));
    const size_t products_at = decant_scratch_reserve(&total, 0);
    __nv_bfloat16 *turned = (__nv_bfloat16 *)((char *)scratch + turned_at);
    float *target = (float *)((char *)scratch + products_at);
    const turn_call turn = {(const __nv_bfloat16 *)x.data, turned, (int)x.rows, (int)x.columns};
    const product_call product = {decant_packed_view_of(packed), turned, target, (int)x.rows};
    const int tokens = padded_tokens(x.rows);
    const cudaError_t code = tokens == 8    ? launch<8>(context, turn, product)
                             : tokens == 16 ? launch<16>(context, turn, product)
                                            : launch<32>(context, turn, product);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "token_sparse", err));
    *products = target;
    return decant_cuda_launched(backend, "token_sparse", err);
}
