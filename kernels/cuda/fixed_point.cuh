/* Activations as bit planes, the operand of the binary tensor cores: a token's x becomes 16-bit fixed point
 * with one scale, x ≈ q · scale with scale = max|x| / 32767, and q, in two's complement, sixteen planes of one
 * bit a column.
 *
 * Rounding to the nearest q leaves an error of at most scale / 2 a column, scale / √12 in the root mean square:
 * a product with w is off by about ‖w‖ max|x| / 113500. For rows of up to 16384 columns of like size that is
 * less than what rounding the largest entry of x alone to BF16 does.
 *
 * Infinite and undefined entries make the scale so, and with it every sum of the token. */
#ifndef DECANT_KERNELS_CUDA_FIXED_POINT_CUH
#define DECANT_KERNELS_CUDA_FIXED_POINT_CUH

#include "kernels/cuda/bit_merge.cuh"
#include "kernels/cuda/elements.cuh"

enum {
    DECANT_FIXED_POINT_PLANES = 16,
    DECANT_FIXED_POINT_MAXIMUM = 32767,
    DECANT_PLANE_COLUMNS = 32, /* of one word of a plane, and of one thread's work */
    DECANT_PLANE_VECTORS = 4,  /* of sixteen bytes that hold these columns */
    DECANT_HALF_COLUMNS = DECANT_PLANE_COLUMNS / 2,
    DECANT_HALF_VECTORS = DECANT_PLANE_VECTORS / 2,
};

/* Thirty-two columns of a token: each vector is eight of them; zeros beyond the last. columns is a multiple of
 * 8 and x of sixteen bytes. */
static __device__ __forceinline__ void decant_load_columns(uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                           const __nv_bfloat16 *x, int first, int columns)
{
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const int column = first + i * 8;
        vectors[i] = column < columns ? *(const uint4 *)(x + column) : make_uint4(0, 0, 0, 0);
    }
}

/* The larger of `largest` and the magnitudes of these columns, in each half of a word: magnitudes of BF16 are
 * ordered as their bits are. */
template <int VECTORS>
static __device__ __forceinline__ uint32_t decant_largest_bits(uint32_t largest,
                                                               const uint4 (&vectors)[VECTORS])
{
    const uint32_t magnitude = 0x7fff7fffu;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        largest = __vmaxu2(largest, vectors[i].x & magnitude);
        largest = __vmaxu2(largest, vectors[i].y & magnitude);
        largest = __vmaxu2(largest, vectors[i].z & magnitude);
        largest = __vmaxu2(largest, vectors[i].w & magnitude);
    }
    return largest;
}

/* 1 / scale, within 2⁻²², of a token whose largest magnitude this is. A token so small that 1 / scale has no
 * float counts as zero. */
static __device__ __forceinline__ float decant_fixed_point_factor(float largest)
{
    float factor;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(factor) : "f"(largest * (1.0f / DECANT_FIXED_POINT_MAXIMUM)));
    return largest < 1e-32f ? 0.0f : factor;
}

/* The low half of the result is value · factor rounded to the nearest integer of 16 bits: adding 1.5 · 2²³
 * leaves the integer in the lowest bits of the sum. */
static __device__ __forceinline__ uint32_t decant_fixed_point(float value, float factor)
{
    return __float_as_uint(fmaf(value, factor, 12582912.0f));
}

/* words[i]: columns i (low half) and 16 + i (high half) as fixed point. */
static __device__ __forceinline__ void
decant_columns_to_fixed_point(uint32_t (&words)[DECANT_FIXED_POINT_PLANES],
                              const uint4 (&vectors)[DECANT_PLANE_VECTORS], float factor)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t low[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
        const uint32_t high[4] = {vectors[i + 2].x, vectors[i + 2].y, vectors[i + 2].z, vectors[i + 2].w};
#pragma unroll
        for (int j = 0; j < 4; j++) { /* a BF16 is the upper half of an F32 */
            const uint32_t even = decant_fixed_point(__uint_as_float(low[j] << 16), factor);
            const uint32_t odd = decant_fixed_point(__uint_as_float(low[j] & 0xffff0000u), factor);
            const uint32_t high_even = decant_fixed_point(__uint_as_float(high[j] << 16), factor);
            const uint32_t high_odd = decant_fixed_point(__uint_as_float(high[j] & 0xffff0000u), factor);
            words[8 * i + 2 * j] = __byte_perm(even, high_even, 0x5410);
            words[8 * i + 2 * j + 1] = __byte_perm(odd, high_odd, 0x5410);
        }
    }
}

/* The sum of all 32 columns, added to `sum`. */
static __device__ __forceinline__ int decant_fixed_point_sum(int sum,
                                                             const uint32_t (&words)[DECANT_FIXED_POINT_PLANES])
{
#pragma unroll
    for (int i = 0; i < DECANT_FIXED_POINT_PLANES; i++)
        sum = __dp2a_lo((int)words[i], 0x0101, sum);
    return sum;
}

/* One step of a transposition of bits, the exchange of blocks of `step` by `step`. */
template <int WORDS>
static __device__ __forceinline__ void decant_exchange_blocks(uint32_t (&words)[WORDS], int step)
{
    const uint32_t mask = step == 4 ? 0x0f0f0f0fu : step == 2 ? 0x33333333u : 0x55555555u;
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        if (i & step)
            continue;
        const uint32_t a = words[i], b = words[i + step];
        words[i] = decant_merge(mask, a, b << step);
        words[i + step] = decant_merge(mask, a >> step, b);
    }
}

/* Turns words into planes: bit j of planes[p] is bit p of column j. Two 16×16 transpositions at once, by
 * exchanging ever smaller blocks (Hacker's Delight, section 7-3). */
static __device__ __forceinline__ void decant_transpose_planes(uint32_t (&words)[DECANT_FIXED_POINT_PLANES])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t a = words[i], b = words[i + 8];
        words[i] = __byte_perm(a, b, 0x6240);
        words[i + 8] = __byte_perm(a, b, 0x7351);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2)
        decant_exchange_blocks(words, step);
}

/* Half a word's columns as planes: the bytes of words[p] are planes p and p + 8 of the first eight columns,
 * then the same of the others. */
typedef struct decant_half_planes {
    uint32_t words[DECANT_FIXED_POINT_PLANES / 2];
} decant_half_planes;

/* Adds the columns' values to `sum`. */
static __device__ __forceinline__ decant_half_planes
decant_half_to_planes(const uint4 (&vectors)[DECANT_HALF_VECTORS], float factor, int &sum)
{
    constexpr int WORDS = DECANT_FIXED_POINT_PLANES / 2;
    const uint32_t low[4] = {vectors[0].x, vectors[0].y, vectors[0].z, vectors[0].w};
    const uint32_t high[4] = {vectors[1].x, vectors[1].y, vectors[1].z, vectors[1].w};
    decant_half_planes half;
    uint32_t(&words)[WORDS] = half.words; /* columns i and 8 + i */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t even = decant_fixed_point(__uint_as_float(low[j] << 16), factor);
        const uint32_t odd = decant_fixed_point(__uint_as_float(low[j] & 0xffff0000u), factor);
        const uint32_t high_even = decant_fixed_point(__uint_as_float(high[j] << 16), factor);
        const uint32_t high_odd = decant_fixed_point(__uint_as_float(high[j] & 0xffff0000u), factor);
        words[2 * j] = __byte_perm(even, high_even, 0x5410);
        words[2 * j + 1] = __byte_perm(odd, high_odd, 0x5410);
    }
#pragma unroll
    for (int i = 0; i < WORDS; i++)
        sum = __dp2a_lo((int)words[i], 0x0101, sum);
#pragma unroll
    for (int step = 4; step > 0; step /= 2) /* four transpositions of 8 × 8 bits at once */
        decant_exchange_blocks(words, step);
    return half;
}

#endif
