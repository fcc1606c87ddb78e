/* Codes of a matrix on a grid arranged for its products: the same bits as the planes of the container, in the
 * order in which the lanes of a warp take them, as bytes that number entries of a table.
 *
 * A tile is eight rows, a unit of it four words of every plane, 128 codes a row. Units follow each other along
 * the columns, tiles along the rows. Of a unit lane 4g + t owns every fourth octet of columns of row g from the
 * t-th on, so that what the four lanes of a row take at a time are neighbours: 32 codes of b bits in b words,
 * which lie by fours, then by twos, then alone, each time for all lanes one after the other.
 *
 * A lane's codes are first four to a word, a byte each: byte i of word 2n + e is code 8i + 4e + n. These eight
 * words come in the order n = 0, 2, 1, 3, e within n. The first b keep their codes in the lower bits of their
 * bytes; the codes of the others fill, bit after bit, what is left of these bytes, word after word. */
#ifndef DECANT_KERNELS_CUDA_GRID_ARRANGED_CUH
#define DECANT_KERNELS_CUDA_GRID_ARRANGED_CUH

#include "kernels/backend.h"
#include "kernels/cuda/grid_points.cuh"

enum {
    ARRANGED_ROWS = 8,  /* of a tile */
    ARRANGED_WORDS = 4, /* of a row's plane, of a unit */
    ARRANGED_LANES = ARRANGED_ROWS * ARRANGED_WORDS,
    ARRANGED_BITS_MINIMUM = 2,
    STRETCH_COLUMNS = 64, /* two octets of every lane of a row, which share a scale */
};

/* Where word k of a lane lies in its unit of codes of `bits` bits, in words. */
static __host__ __device__ __forceinline__ int arranged_place(int bits, int lane, int k)
{
    const int fours = bits / 4 * 4, pairs = bits % 4 / 2 * 2;
    if (k < fours)
        return (k / 4 * ARRANGED_LANES + lane) * 4 + k % 4;
    if (k < fours + pairs)
        return fours * ARRANGED_LANES + lane * 2 + (k - fours);
    return (fours + pairs) * ARRANGED_LANES + lane;
}

/* Word `lane` of a row's unit of a plane, as the four lanes own it, from the four words of the plane. codes: of
 * an octet of columns. */
static __host__ __device__ __forceinline__ uint32_t arranged_bits(const uint32_t (&words)[ARRANGED_WORDS],
                                                                  int lane, int codes)
{
    uint32_t own = 0;
    for (int first = 0; first < 32; first += codes) {
        const int place = first * ARRANGED_WORDS + lane * codes;
        own |= (words[place / 32] >> place % 32 & ((1u << codes) - 1)) << first;
    }
    return own;
}

/* Of the words of byte codes, which comes at place `place`. */
static __host__ __device__ __forceinline__ constexpr int arranged_word(int place)
{
    return 2 * ((place >> 2 & 1) | (place >> 1 & 1) << 1) + (place & 1);
}

/* Every byte with these bits. */
static __host__ __device__ __forceinline__ constexpr uint32_t in_bytes(uint32_t bits)
{
    return bits * 0x01010101u;
}

/* Calls move(word, from, place, to, bits) for every run of bits of the codes of the words from place BITS on:
 * bit `to` … of the codes at that place stands in bit `from` … of the bytes of packed word `word`. */
template <int BITS, typename Move> static __host__ __device__ __forceinline__ void by_spare_bits(Move move)
{
    constexpr int SPARE = BYTE_PLANES - BITS;
    if constexpr (SPARE > 0) {
#pragma unroll
        for (int spare = 0; spare < SPARE * BITS; spare++) {
            const int place = BITS + spare / BITS, to = spare % BITS, from = spare % SPARE;
            if (to > 0 && from > 0)
                continue; /* within a run */
            const int bits = BITS - to < SPARE - from ? BITS - to : SPARE - from;
            move(spare / SPARE, BITS + from, place, to, (1u << bits) - 1);
        }
    }
}

/* A lane's words from its byte codes. */
template <int BITS>
static __host__ __device__ __forceinline__ void pack_codes(uint32_t (&packed)[BITS],
                                                           const uint32_t (&codes)[WORD_BYTES])
{
#pragma unroll
    for (int k = 0; k < BITS; k++)
        packed[k] = codes[arranged_word(k)];
    by_spare_bits<BITS>([&](int word, int from, int place, int to, uint32_t bits) {
        packed[word] |= (codes[arranged_word(place)] >> to & in_bytes(bits)) << from;
    });
}

/* And back. */
template <int BITS>
static __host__ __device__ __forceinline__ void unpack_codes(uint32_t (&codes)[WORD_BYTES],
                                                             const uint32_t (&packed)[BITS])
{
#pragma unroll
    for (int k = 0; k < WORD_BYTES; k++)
        codes[arranged_word(k)] = k < BITS ? packed[k < BITS ? k : 0] & in_bytes((1u << BITS) - 1) : 0;
    by_spare_bits<BITS>([&](int word, int from, int place, int to, uint32_t bits) {
        codes[arranged_word(place)] |= (packed[word] >> from & in_bytes(bits)) << to;
    });
}

/* This lane's words of a unit at an address of shared memory. */
template <int BITS> static __device__ __forceinline__ void read_packed(uint32_t (&packed)[BITS], uint32_t unit)
{
    constexpr int FOURS = BITS / 4 * 4, PAIRS = BITS % 4 / 2 * 2;
    const uint32_t lane = threadIdx.x % ARRANGED_LANES;
#pragma unroll
    for (int k = 0; k < FOURS; k += 4)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(packed[k]), "=r"(packed[k + 1]), "=r"(packed[k + 2]), "=r"(packed[k + 3])
                     : "r"(unit + k * ARRANGED_LANES * 4 + lane * 16));
    if constexpr (PAIRS > 0)
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(packed[FOURS]), "=r"(packed[FOURS + 1])
                     : "r"(unit + FOURS * ARRANGED_LANES * 4 + lane * 8));
    if constexpr (BITS % 2 > 0)
        asm volatile("ld.shared.u32 %0, [%1];"
                     : "=r"(packed[BITS - 1])
                     : "r"(unit + (BITS - 1) * ARRANGED_LANES * 4 + lane * 4));
}

/* True, but nobody knows before all lanes of the warp have the words that they read; `seen`: their bits. What
 * is done if it is true cannot overtake these reads. Nothing else would keep them apart from what the copy
 * engine then writes: neither a barrier of a warp nor one in shared memory waits for reads that are under way.
 */
static __device__ __forceinline__ bool words_have_come(uint32_t seen)
{
    return __any_sync(0xffffffffu, seen != 0) || seen == 0;
}

/* A decoder's codes from a lane's words. Of single numbers two codes make an index: packed words of four bits
 * are these indices as they are. */
template <int P, int PLANES, int BITS>
static __device__ __forceinline__ void take_packed(point_decoder<P, PLANES> &decoder,
                                                   const uint32_t (&packed)[BITS])
{
    static_assert(BITS <= PLANES && PLANES <= BYTE_PLANES, "codes of a byte");
    if constexpr (P == 1 && PLANES == DIGIT_PLANES) {
        uint32_t codes[WORD_BYTES];
        if constexpr (BITS < DIGIT_PLANES)
            unpack_codes<BITS>(codes, packed);
#pragma unroll
        for (int k = 0; k < DIGIT_PLANES; k++)
            decoder.codes.low[k] = BITS == DIGIT_PLANES
                                       ? packed[k < BITS ? k : 0]
                                       : codes[arranged_word(k)] | codes[arranged_word(k + DIGIT_PLANES)] << 4;
    } else
        unpack_codes<BITS>(decoder.codes.low, packed);
}

/* ---- groups of stretches ---- */

enum { HALF_ONES = 0x3c003c00 }; /* a pair of ones: the product with them is the sum of x */

/* What quotient needs. */
static inline uint32_t quotient_factor(int divisor)
{
    return (uint32_t)((((uint64_t)1 << 31) + (uint64_t)divisor - 1) / (uint64_t)divisor);
}

/* A number below 2^15 by a divisor, without the many instructions of a division. */
static __device__ __forceinline__ int quotient(int number, uint32_t factor)
{
    return (int)__umulhi((uint32_t)number * 2, factor);
}

/* The group of a stretch, of which so many make a group, or all that there are; of those behind the last column
 * the last one, as what they are multiplied with is zero. */
static __device__ __forceinline__ int stretch_group(int stretch, uint32_t factor, int groups)
{
    return min(quotient(stretch, factor), groups - 1);
}

template <int BITS> struct bits_constant {
    static constexpr int value = BITS;
};

/* Calls operation(decoder, constant of bits) for the forms that are arranged. */
template <typename Operation> static auto by_arranged_form(const decant_grid_form *form, Operation operation)
{
    if (form->dimension == 1)
        return form->code_bits == 2   ? operation(point_decoder<1, 4>(), bits_constant<2>())
               : form->code_bits == 3 ? operation(point_decoder<1, 4>(), bits_constant<3>())
                                      : operation(point_decoder<1, 4>(), bits_constant<4>());
    switch (form->code_bits) {
    case 4:
        return operation(point_decoder<2, 4>(), bits_constant<4>());
    case 5:
        return operation(point_decoder<2, 5>(), bits_constant<5>());
    case 6:
        return operation(point_decoder<2, 6>(), bits_constant<6>());
    case 7:
        return operation(point_decoder<2, 7>(), bits_constant<7>());
    default:
        return operation(point_decoder<2, 8>(), bits_constant<8>());
    }
}

static inline bool has_arranged_form(const decant_grid_form *form)
{
    return form->dimension == 1   ? form->code_bits <= DIGIT_PLANES
           : form->dimension == 2 ? form->code_bits >= 4 && form->code_bits <= BYTE_PLANES
                                  : false;
}

/* Calls operation(constant) with the number of bits as a constant expression's value. */
template <typename Operation> static __device__ __forceinline__ auto by_bits(int bits, Operation operation)
{
    switch (bits) {
    case 2:
        return operation(bits_constant<2>());
    case 3:
        return operation(bits_constant<3>());
    case 4:
        return operation(bits_constant<4>());
    case 5:
        return operation(bits_constant<5>());
    case 6:
        return operation(bits_constant<6>());
    case 7:
        return operation(bits_constant<7>());
    default:
        return operation(bits_constant<8>());
    }
}

#endif
