/* The ends of a step: the row of a table that an integer on the device names, and the token that the logits
 * favour. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/step.h"

enum {
    ROW_THREADS = 256,
    CHOICE_THREADS = 1024,
    CHOICE_WARPS = CHOICE_THREADS / DECANT_WARP,
    CHOICE_VECTORS = 8, /* of four logits, a thread's at a time */
};

/* ---- a row ---- */

template <typename Source, typename Target>
__global__ void __launch_bounds__(ROW_THREADS)
    take_row_kernel(const Source *table, const int32_t *index, int columns, bool accumulate, Target *y)
{
    const int column = blockIdx.x * ROW_THREADS + threadIdx.x;
    decant_let_next_kernel_begin();
    if (column >= columns)
        return;
    const float value = decant_to_float(table[(int64_t)*index * columns + column]);
    y[column] = decant_from_float<Target>(accumulate ? decant_to_float(y[column]) + value : value);
}

/* Launched in the ordinary way, it begins when all before it is done: what the kernels behind it read before
 * they wait is complete by then. */
decant_status decant_cuda_take_row(decant_backend *backend, decant_matrix table, const int32_t *index,
                                   bool accumulate, decant_matrix y, decant_error *err)
{
    const int columns = (int)table.columns;
    const unsigned blocks = decant_blocks_for(columns, ROW_THREADS, 1);
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    return decant_by_element(y.element, [&](auto element) {
        using Target = decltype(element);
        Target *target = (Target *)y.data;
        if (table.element == DECANT_F32)
            take_row_kernel<float, Target><<<blocks, ROW_THREADS, 0, stream>>>((const float *)table.data, index,
                                                                               columns, accumulate, target);
        else if (table.element == DECANT_F16)
            take_row_kernel<__half, Target><<<blocks, ROW_THREADS, 0, stream>>>(
                (const __half *)table.data, index, columns, accumulate, target);
        else
            take_row_kernel<__nv_bfloat16, Target><<<blocks, ROW_THREADS, 0, stream>>>(
                (const __nv_bfloat16 *)table.data, index, columns, accumulate, target);
        return decant_cuda_launched(backend, "take_row", err);
    });
}

/* ---- the choice ---- */

typedef struct choice_call {
    const float *logits;
    int count;
    int32_t *token, *position, *history;
} choice_call;

/* Logits in their order as integers, the lower place first among equals: a larger key is the better choice. */
static __device__ __forceinline__ unsigned long long choice_key(float logit, int place)
{
    const uint32_t bits = __float_as_uint(logit + 0.0f); /* −0 becomes 0 */
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)ordered << 32 | (0xffffffffu - (uint32_t)place);
}

static __device__ __forceinline__ unsigned long long larger_of_warp(unsigned long long key)
{
#pragma unroll
    for (int offset = DECANT_WARP / 2; offset > 0; offset /= 2) {
        const unsigned long long other = __shfl_xor_sync(DECANT_ALL_LANES, key, offset);
        key = other > key ? other : key;
    }
    return key;
}

/* Four logits from place `first` on, a multiple of 4; −∞ beyond the last. */
static __device__ __forceinline__ void load_logits(const choice_call &call, int first, float (&logits)[4])
{
    float4 four = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (first + 4 <= call.count) {
        four = *(const float4 *)(call.logits + first);
    } else if (first < call.count) {
        four.x = call.logits[first];
        four.y = first + 1 < call.count ? call.logits[first + 1] : four.y;
        four.z = first + 2 < call.count ? call.logits[first + 2] : four.z;
    }
    logits[0] = four.x;
    logits[1] = four.y;
    logits[2] = four.z;
    logits[3] = four.w;
}

__global__ void __launch_bounds__(CHOICE_THREADS) choose_kernel(const __grid_constant__ choice_call call)
{
    __shared__ unsigned long long keys[CHOICE_WARPS];
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    /* The best of a thread: places in their order, so that the first among equals stays. An undefined logit is
     * none. */
    float most = -INFINITY;
    int place = 4 * threadIdx.x;
    bool is_sound = true;
    decant_wait_for_earlier_kernels();
    for (int first = 4 * threadIdx.x; first < call.count; first += 4 * CHOICE_THREADS * CHOICE_VECTORS) {
        float logits[CHOICE_VECTORS][4]; /* all under way before the first is looked at */
#pragma unroll
        for (int i = 0; i < CHOICE_VECTORS; i++)
            load_logits(call, first + i * 4 * CHOICE_THREADS, logits[i]);
#pragma unroll
        for (int i = 0; i < CHOICE_VECTORS; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                is_sound &= logits[i][j] < INFINITY;
                if (logits[i][j] > most) {
                    most = logits[i][j];
                    place = first + i * 4 * CHOICE_THREADS + j;
                }
            }
    }
    unsigned long long best = choice_key(most, place);
    best = larger_of_warp(best);
    if (lane == 0)
        keys[warp] = best;
    is_sound = __syncthreads_and(is_sound);
    if (warp > 0)
        return;
    best = larger_of_warp(keys[lane]);
    if (lane > 0)
        return;
    const int32_t chosen = (int32_t)(0xffffffffu - (uint32_t)best);
    *call.token = chosen;
    call.history[*call.position] = is_sound && best > choice_key(-INFINITY, 0) ? chosen : -1;
    ++*call.position;
}

decant_status decant_cuda_choose(decant_backend *backend, decant_matrix logits, int32_t *token,
                                 int32_t *position, int32_t *history, decant_error *err)
{
    const choice_call call = {(const float *)logits.data, (int)logits.columns, token, position, history};
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        decant_launch_early(decant_cuda_context_of(backend), choose_kernel, 1, CHOICE_THREADS, 0, call),
        "choose", err));
    return decant_cuda_launched(backend, "choose", err);
}
