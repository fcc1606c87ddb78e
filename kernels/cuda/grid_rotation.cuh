/* Rotating tokens for products: y = x ŵᵀ of a matrix whose rows are rotated takes x rotated the same way. The
 * result is F16, which keeps eight times finer steps than BF16; so that nothing leaves its range, a token is
 * multiplied by a power of two that brings the largest value there can be, max |x| √rotation, under 2^15. It is
 * stored as operands of tensor cores, in the order in which grid_tokens.cu reads them. */
#ifndef DECANT_KERNELS_CUDA_GRID_ROTATION_CUH
#define DECANT_KERNELS_CUDA_GRID_ROTATION_CUH

#include "kernels/cuda/grid.cuh"

enum {
    ROW_LANES = 4,     /* of a warp, to each of its rows */
    VECTOR_BYTES = 16, /* of eight columns of x in F16 */
    OCTET_BITS = 3,
    OCTET = 1 << OCTET_BITS, /* columns */
    TILE_TOKENS = 8,         /* of one product */
};

/* How rotated tokens lie: vector (chunk, tile, token, t) is eight columns, t counts fastest. */
typedef struct operand_layout {
    int lane_words; /* of a row's plane: what a lane takes of a unit */
    int chunks;     /* of a word of codes: four times the grid's dimension */
    int tiles;      /* of eight tokens */
    int places;     /* for tokens in a tile: 1, 2, 4 or 8 */
    int units;
} operand_layout;

static __host__ __device__ __forceinline__ int64_t unit_vectors(const operand_layout &layout)
{
    return (int64_t)ROW_LANES * layout.lane_words * layout.chunks * layout.tiles * layout.places;
}

static __host__ __device__ __forceinline__ int octets_of(const operand_layout &layout)
{
    return layout.units * ROW_LANES * layout.lane_words * layout.chunks;
}

/* Where the columns 8 · octet … of a token lie: of a unit a row's lanes take their words one after the other.
 */
static __device__ __forceinline__ int vector_of(const operand_layout &layout, int octet, int token)
{
    const int word = octet / layout.chunks, chunk = octet % layout.chunks;
    const int lane = word / layout.lane_words, own = word % layout.lane_words;
    const int unit = lane / ROW_LANES, t = lane % ROW_LANES;
    const int place =
        ((unit * layout.lane_words + own) * layout.chunks + chunk) * layout.tiles + token / TILE_TOKENS;
    return (place * layout.places + token % TILE_TOKENS) * ROW_LANES + t;
}

/* The exponent of the power of two for a token whose largest magnitude has these bits as BF16. */
static __device__ __forceinline__ int exponent_for(int largest_bits, int rotation_bits)
{
    const int below = (largest_bits >> 7) - 126; /* the magnitude is less than 2^below */
    return min(max(15 - below - (rotation_bits + 1) / 2, -120), 120);
}

static __device__ __forceinline__ float power_of_two(int exponent)
{
    return __int_as_float((exponent + 127) << 23);
}

/* ---- the transform ---- */

/* Values lie in shared memory with eight unused after every 64, so that the accesses of a step fall into
 * different banks. */
static __host__ __device__ __forceinline__ int work_place(int column)
{
    return column + (column >> 6 << 3);
}

/* STEPS steps of the transform of 2^STEPS values. */
template <int STEPS> static __device__ __forceinline__ void butterflies(float *values)
{
#pragma unroll
    for (int bit = 1; bit < 1 << STEPS; bit *= 2)
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++) {
            if (j & bit)
                continue;
            const float a = values[j], b = values[j + bit];
            values[j] = a + b;
            values[j + bit] = a - b;
        }
}

/* The steps `first` … of `columns` values, by all threads of the block. */
template <int STEPS> static __device__ __forceinline__ void rotate_steps(float *work, int columns, int first)
{
    const int apart = 1 << first, stride = work_place(apart);
    for (int i = threadIdx.x; i < columns >> STEPS; i += blockDim.x) {
        float *own = work + work_place((i >> first << (first + STEPS)) | (i & (apart - 1)));
        float values[1 << STEPS];
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++)
            values[j] = own[j * stride];
        butterflies<STEPS>(values);
#pragma unroll
        for (int j = 0; j < 1 << STEPS; j++)
            own[j * stride] = values[j];
    }
    __syncthreads();
}

/* The signs of the columns 8 · octet …, a bit each. */
static __device__ __forceinline__ uint32_t signs_of(uint64_t seed, int octet)
{
    return (uint32_t)(decant_random_bits(seed, 0, (uint64_t)octet / 8) >> octet % 8 * 8) & 255u;
}

/* The largest of a value over the block; `parts` [warps of the block], which a barrier freed. A barrier is
 * passed. */
static __device__ __forceinline__ int block_largest(int value, int *parts)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2)
        value = max(value, __shfl_xor_sync(0xffffffffu, value, offset));
    if (threadIdx.x % 32 == 0)
        parts[threadIdx.x / 32] = value;
    __syncthreads();
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        value = max(value, parts[i]);
    return value;
}

/* The largest magnitude of eight BF16, as its bits. */
static __device__ __forceinline__ int largest_bits_of(const uint4 &vector)
{
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    int largest = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        largest = max(largest, max((int)(words[i] & 0x7fffu), (int)(words[i] >> 16 & 0x7fffu)));
    return largest;
}

/* Octet `octet` of the work array from eight BF16, with signs and the first steps; `steps`: of the whole. */
static __device__ __forceinline__ void begin_rotation(float *work, int octet, const uint4 &vector,
                                                      uint32_t signs, int steps)
{
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
    float values[OCTET];
#pragma unroll
    for (int i = 0; i < OCTET; i++) {
        const uint32_t bits = i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16;
        values[i] = __uint_as_float(bits ^ (signs >> i & 1u) << 31);
    }
    if (steps >= 3)
        butterflies<3>(values);
    else if (steps == 2) {
        butterflies<2>(values);
        butterflies<2>(values + 4);
    } else if (steps == 1)
#pragma unroll
        for (int i = 0; i < OCTET; i += 2)
            butterflies<1>(values + i);
    float4 *target = (float4 *)(work + work_place(octet * OCTET));
    target[0] = make_float4(values[0], values[1], values[2], values[3]);
    target[1] = make_float4(values[4], values[5], values[6], values[7]);
}

/* The other steps. */
static __device__ __forceinline__ void finish_rotation(float *work, int columns, int steps)
{
    int first = 3;
    for (; first + 3 <= steps; first += 3)
        rotate_steps<3>(work, columns, first);
    if (first + 2 == steps)
        rotate_steps<2>(work, columns, first);
    else if (first + 1 == steps)
        rotate_steps<1>(work, columns, first);
}

/* An octet of the work array as F16. */
static __device__ __forceinline__ uint4 rotated_octet(const float *work, int octet, float factor)
{
    const float4 *source = (const float4 *)(work + work_place(octet * OCTET));
    const float4 a = source[0], b = source[1];
    const __half2 pairs[4] = {
        __floats2half2_rn(a.x * factor, a.y * factor), __floats2half2_rn(a.z * factor, a.w * factor),
        __floats2half2_rn(b.x * factor, b.y * factor), __floats2half2_rn(b.z * factor, b.w * factor)};
    uint4 vector;
    memcpy(&vector, pairs, sizeof vector);
    return vector;
}

#endif
