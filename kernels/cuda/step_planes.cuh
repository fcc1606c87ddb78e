/* x of one token as bit planes in shared memory, for step_parities.cu: normed where it is to be, its largest
 * magnitude, fixed point (fixed_point.cuh) and planes. Every block does it for itself, which takes less than
 * handing them on would. A thread takes half a word of every plane at a time, so that 4096 columns are work for
 * all threads; lane pairs put the halves together. */
#ifndef DECANT_KERNELS_CUDA_STEP_PLANES_CUH
#define DECANT_KERNELS_CUDA_STEP_PLANES_CUH

#include "kernels/cuda/parity_operands.cuh"
#include "kernels/cuda/step_block.cuh"

enum {
    HALF_COLUMNS = DECANT_HALF_COLUMNS,
    HALF_VECTORS = DECANT_HALF_VECTORS,
    HALVES_KEPT = 3, /* by a thread, between measuring x and turning it to planes */
};

/* What the whole block must know of x. */
typedef struct x_figures {
    float squares[WARPS];    /* Σ x² */
    uint32_t largest[WARPS]; /* |x|, or |x ∘ the norm's scale|: magnitudes are ordered as their bits are */
    int sums[WARPS];         /* of the fixed-point values */
    float scale;             /* of the planes */
} x_figures;

typedef step_scales<HALF_VECTORS> half_scales;

static __device__ __forceinline__ void load_half(uint4 (&vectors)[HALF_VECTORS], const step_call &call,
                                                 int half)
{
#pragma unroll
    for (int i = 0; i < HALF_VECTORS; i++) {
        const int column = half * HALF_COLUMNS + i * 8;
        vectors[i] = column < call.columns ? *(const uint4 *)(call.x + column) : make_uint4(0, 0, 0, 0);
    }
}

/* Σ x², and the largest |x ∘ the norm's scale|. */
static __device__ __forceinline__ void measure_half(const uint4 (&vectors)[HALF_VECTORS],
                                                    const half_scales &scales, float &square, float &largest)
{
#pragma unroll
    for (int i = 0; i < HALF_VECTORS; i++) {
        const uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
        const float4 low = scales.fours[2 * i], high = scales.fours[2 * i + 1];
        const float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = decant_unpair(pairs[j]);
            square = fmaf(values.x, values.x, square);
            square = fmaf(values.y, values.y, square);
            largest = fmaxf(largest, fabsf(values.x * own[2 * j]));
            largest = fmaxf(largest, fabsf(values.y * own[2 * j + 1]));
        }
    }
}

/* A thread's half words go HALF_STEP bytes behind each other. */
enum { HALF_STEP = THREADS / 2 / UNIT_WORDS * PRODUCTS * OPERAND_BYTES };
static_assert(THREADS / 2 % UNIT_WORDS == 0, "a thread's half words have the same place in their units");

/* What a thread keeps of x between measuring it and turning it to planes. */
typedef struct kept_halves {
    uint4 halves[HALVES_KEPT][HALF_VECTORS];
} kept_halves;

static __device__ __forceinline__ kept_halves load_halves(const step_call &call)
{
    kept_halves kept;
#pragma unroll
    for (int i = 0; i < HALVES_KEPT; i++)
        load_half(kept.halves[i], call, threadIdx.x + i * THREADS);
    return kept;
}

/* A half word's columns of x, where they are to be kept. */
static __device__ __forceinline__ void keep_half(const step_call &call, int half,
                                                 const uint4 (&vectors)[HALF_VECTORS], __nv_bfloat16 *kept_x)
{
#pragma unroll
    for (int i = 0; i < HALF_VECTORS; i++)
        if (kept_x && half * HALF_COLUMNS + i * 8 < call.columns)
            ((uint4 *)kept_x)[half * HALF_VECTORS + i] = vectors[i];
}

/* The planes of x, normed where it is to be, and x itself where `kept_x` [columns], shared, is there.
 * `address`: of the thread's first half word. A barrier inside, and another must follow. What the norm's
 * rounding may add to the largest is allowed for; an undefined x makes the scale so. */
template <bool PLAIN>
static __device__ __forceinline__ void make_planes(const step_call &call, half_scales scales, kept_halves &own,
                                                   int halves, x_figures &figures, uint32_t address,
                                                   __nv_bfloat16 *kept_x)
{
    uint4(&kept)[HALVES_KEPT][HALF_VECTORS] = own.halves;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const float allowance = 1 + 1.0f / 64;
    uint32_t largest = 0;
    float inverse = 1, magnitude;
    if (PLAIN || !call.norm) {
        const uint32_t mask = 0x7fff7fffu;
        auto measure = [&](const uint4(&vectors)[HALF_VECTORS]) {
#pragma unroll
            for (int j = 0; j < HALF_VECTORS; j++) {
                largest = __vmaxu2(largest, vectors[j].x & mask);
                largest = __vmaxu2(largest, vectors[j].y & mask);
                largest = __vmaxu2(largest, vectors[j].z & mask);
                largest = __vmaxu2(largest, vectors[j].w & mask);
            }
        };
        measure(kept[0]);
        if (halves > THREADS)
#pragma unroll
            for (int i = 1; i < HALVES_KEPT; i++)
                measure(kept[i]);
#pragma unroll 1
        for (int half = threadIdx.x + HALVES_KEPT * THREADS; half < halves; half += THREADS) {
            uint4 vectors[HALF_VECTORS];
            load_half(vectors, call, half);
            measure(vectors);
        }
        largest = __reduce_max_sync(DECANT_ALL_LANES, max(largest & 0xffffu, largest >> 16));
        if (lane == 0)
            figures.largest[warp] = largest << 16;
        __syncthreads();
        largest = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++)
            largest = max(largest, figures.largest[i]);
        magnitude = __uint_as_float(largest);
    } else {
        float square = 0, most = 0;
        measure_half(kept[0], scales, square, most);
#pragma unroll 1
        for (int half = threadIdx.x + THREADS; half < halves; half += THREADS) {
            uint4 vectors[HALF_VECTORS];
            load_half(vectors, call, half);
            measure_half(vectors, step_load_scales<HALF_VECTORS>(call, half), square, most);
        }
        square = decant_warp_sum(square);
        largest = __reduce_max_sync(DECANT_ALL_LANES, __float_as_uint(most));
        if (lane == 0) {
            figures.squares[warp] = square;
            figures.largest[warp] = largest;
        }
        __syncthreads();
        square = 0;
        largest = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            square += figures.squares[i];
            largest = max(largest, figures.largest[i]);
        }
        inverse = rsqrtf(fmaf(square, call.of_columns, call.epsilon));
        magnitude = inverse * __uint_as_float(largest) * allowance;
    }
    const float factor = decant_fixed_point_factor(magnitude);
    if (threadIdx.x == 0)
        figures.scale = magnitude * (1.0f / DECANT_FIXED_POINT_MAXIMUM);
    int sum = 0, half = threadIdx.x;
    if (PLAIN && halves > THREADS) { /* one behind the other would wait longer */
        decant_half_planes bits[HALVES_KEPT];
#pragma unroll
        for (int i = 0; i < HALVES_KEPT; i++)
            bits[i] = decant_half_to_planes(kept[i], factor, sum);
#pragma unroll
        for (int i = 0; i < HALVES_KEPT; i++, half += THREADS, address += HALF_STEP) {
            store_half(address, bits[i], half < halves);
            keep_half(call, half, kept[i], kept_x);
        }
        if (half < halves)
            load_half(kept[0], call, half);
    }
#pragma unroll 1
    for (; half < halves; half += THREADS, address += HALF_STEP) { /* whole warps: halves are those of units */
        if (!PLAIN && call.norm)
            step_norm(kept[0], scales, inverse);
        store_half(address, decant_half_to_planes(kept[0], factor, sum), true);
        keep_half(call, half, kept[0], kept_x);
        if (half + THREADS >= halves)
            break;
        load_half(kept[0], call, half + THREADS);
        if (!PLAIN)
            scales = step_load_scales<HALF_VECTORS>(call, half + THREADS);
    }
    sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
    if (lane == 0)
        figures.sums[warp] = sum;
}

#endif
