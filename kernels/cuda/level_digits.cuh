/* The levels of packed rows as digits for integer tensor cores, and codes looked up in them.
 *
 * A level is least + step · (128 upper + lower), least the row's least level, both digits from 0 to 127:
 * fourteen bits of the row's range. A lane keeps the digits of its two rows' levels in registers, and byte
 * permutations look four codes up at a time. A permutation picks one of eight bytes by three bits; by the
 * fourth it gives the byte's sign instead, eight times, which is zero here. So the first eight levels' bytes by
 * the codes, plus the other eight's by the codes with their fourth bit turned, are the bytes of all sixteen
 * levels, already where the tensor core takes them. Sums and shifts go through the multiplier, which is idle
 * otherwise.
 *
 * The planes of a word become four words of eight codes, four bits each: word n has columns n, n + 4, n + 8, …
 * of the 32. They are the phases of token_digits.h. */
#ifndef DECANT_KERNELS_CUDA_LEVEL_DIGITS_CUH
#define DECANT_KERNELS_CUDA_LEVEL_DIGITS_CUH

#include "kernels/cuda/token_tiles.cuh"

enum { PHASES = 4, LEVEL_MAXIMUM = 16383 /* 128 · 127 + 127 */ };

/* ---- levels in registers ---- */

/* The levels of one row: byte i % 4 of word i / 4 is the upper or lower digit of level i. */
template <int BITS> struct row_digits {
    static constexpr int WORDS = BITS == 4 ? 4 : 2;
    uint32_t upper[WORDS], lower[WORDS];
    float least, step;
};

/* The four lanes of a row take four levels each and tell each other. */
template <int BITS>
static __device__ __forceinline__ void load_levels(row_digits<BITS> &digits, const tiles_call &call, int row)
{
    const int lane = threadIdx.x % DECANT_WARP, first = lane % 4 * 4;
    float four[4], least = INFINITY, greatest = -INFINITY;
    if (first < 1 << BITS) {
        levels_at<BITS>(four, call, min(row, call.packed.rows - 1), first);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            least = fminf(least, four[j]);
            greatest = fmaxf(greatest, four[j]);
        }
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
        least = fminf(least, __shfl_xor_sync(DECANT_ALL_LANES, least, offset));
        greatest = fmaxf(greatest, __shfl_xor_sync(DECANT_ALL_LANES, greatest, offset));
    }
    const float range = greatest - least, factor = range > 1e-30f ? LEVEL_MAXIMUM / range : 0.0f;
    uint32_t upper = 0, lower = 0;
    if (first < 1 << BITS)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t level = (uint32_t)__float2int_rn((four[j] - least) * factor);
            upper |= (level >> 7) << 8 * j;
            lower |= (level & 127u) << 8 * j;
        }
#pragma unroll
    for (int i = 0; i < row_digits<BITS>::WORDS; i++) {
        digits.upper[i] = __shfl_sync(DECANT_ALL_LANES, upper, lane / 4 * 4 + i);
        digits.lower[i] = __shfl_sync(DECANT_ALL_LANES, lower, lane / 4 * 4 + i);
    }
    digits.least = least;
    digits.step = range / LEVEL_MAXIMUM;
}

/* ---- codes ---- */

/* Bytes of first and second as the lower four digits of `which` tell; the sign of one where the digit is
 * above 7. */
static __device__ __forceinline__ uint32_t permute(uint32_t first, uint32_t second, uint32_t which)
{
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(which));
    return bytes;
}

/* a + b, as a · one + b. */
static __device__ __forceinline__ uint32_t add(uint32_t a, uint32_t b, const shift_factors &factors)
{
    uint32_t sum;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(factors.unit), "r"(b));
    return sum;
}

/* a shifted left: likewise. */
static __device__ __forceinline__ uint32_t shift_left(uint32_t a, uint32_t factor)
{
    uint32_t product;
    asm("mul.lo.u32 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(factor));
    return product;
}

/* Eight codes, a digit of four bits each: those of columns n, n + 4, … of a word are codes[n]. */
template <int BITS>
static __device__ __forceinline__ void gather_codes(uint32_t (&codes)[PHASES], const uint32_t (&planes)[BITS],
                                                    const shift_factors &factors)
{
    const uint32_t ones = 0x55555555u, twos = 0x33333333u;
    const uint32_t even = decant_merge(ones, planes[0], shift_left(planes[1], factors.two_left));
    const uint32_t odd = decant_merge(ones, shift_right(planes[0], factors.one), planes[1]);
    uint32_t upper_even = 0, upper_odd = 0;
    if constexpr (BITS == 4) {
        upper_even = decant_merge(ones, planes[2], shift_left(planes[3], factors.two_left));
        upper_odd = decant_merge(ones, shift_right(planes[2], factors.one), planes[3]);
    }
    if constexpr (BITS == 3) {
        upper_even = planes[2] & ones;
        upper_odd = shift_right(planes[2], factors.one) & ones;
    }
    codes[0] = decant_merge(twos, even, shift_left(upper_even, factors.four_left));
    codes[1] = decant_merge(twos, odd, shift_left(upper_odd, factors.four_left));
    codes[2] = decant_merge(twos, shift_right(even, factors.two), upper_even);
    codes[3] = decant_merge(twos, shift_right(odd, factors.two), upper_odd);
}

/* The digits of eight codes: [0] those of the lower four. */
template <int BITS>
static __device__ __forceinline__ void look_up(uint32_t (&upper)[2], uint32_t (&lower)[2], uint32_t codes,
                                               const row_digits<BITS> &digits, const shift_factors &factors)
{
    const uint32_t turned = codes ^ 0x88888888u;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t own = half ? shift_right(codes, factors.sixteen) : codes;
        upper[half] = permute(digits.upper[0], digits.upper[1], own);
        lower[half] = permute(digits.lower[0], digits.lower[1], own);
        if constexpr (BITS == 4) {
            const uint32_t other = half ? shift_right(turned, factors.sixteen) : turned;
            upper[half] = add(upper[half], permute(digits.upper[2], digits.upper[3], other), factors);
            lower[half] = add(lower[half], permute(digits.lower[2], digits.lower[3], other), factors);
        }
    }
}

/* The operands of phase n: upper and lower digits of both rows. */
template <int BITS>
static __device__ __forceinline__ void
make_operands(uint32_t (&upper)[4], uint32_t (&lower)[4], const uint32_t (&codes)[HALVES][PHASES], int n,
              const row_digits<BITS> (&digits)[HALVES], const shift_factors &factors)
{
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        uint32_t own_upper[2], own_lower[2];
        look_up<BITS>(own_upper, own_lower, codes[half][n], digits[half], factors);
        upper[half] = own_upper[0];
        upper[2 + half] = own_upper[1];
        lower[half] = own_lower[0];
        lower[2 + half] = own_lower[1];
    }
}

#endif
