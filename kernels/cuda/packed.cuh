/* Reading packed matrices on the device: bit planes to codes, eight columns at a time. docs/container.md has
 * the layout: bit j % 32 of word j / 32 of plane b of a row is bit b of the code of column j. */
#ifndef DECANT_KERNELS_CUDA_PACKED_CUH
#define DECANT_KERNELS_CUDA_PACKED_CUH

#include "kernels/cuda/bit_merge.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum {
    DECANT_OCTET = 8 /* columns */,
    DECANT_WORD_OCTETS = 4,
    DECANT_LEVELS_MAXIMUM = 1 << DECANT_BITS_MAXIMUM
};

/* A packed matrix as kernels see it. */
typedef struct decant_packed_view {
    const uint32_t *planes; /* [rows, bits, words] */
    const __half *levels;   /* [rows, 2^bits] */
    const uint32_t *row_offsets, *sparse_columns;
    const __half *sparse_values;
    const uint32_t *sparse_entries; /* or NULL; joined_entries.cu */
    int rows, columns, bits, words;
} decant_packed_view;

static inline decant_packed_view decant_packed_view_of(const decant_packed_matrix *packed)
{
    return {packed->planes,
            (const __half *)packed->levels,
            packed->sparse.row_offsets,
            packed->sparse.columns,
            (const __half *)packed->sparse_values,
            packed->sparse_entries,
            (int)packed->rows,
            (int)packed->columns,
            packed->bits,
            (int)((packed->columns + 31) / 32)};
}

static __device__ __forceinline__ const uint32_t *decant_row_planes(const decant_packed_view &packed, int row)
{
    return packed.planes + (int64_t)row * packed.bits * packed.words;
}

/* The codes of columns 8·octet … +7 of a row, a byte each: columns 0 … 3 in x, 4 … 7 in y.
 *
 * Multiplying four bits by 1 + 2⁷ + 2¹⁴ + 2²¹ puts bit i at place 8 i, among others that the mask removes; no
 * two products meet in one place, so nothing carries. */
static __device__ __forceinline__ uint2 decant_octet_codes(const uint32_t *row_planes, int bits, int words,
                                                           int octet)
{
    const uint32_t spread = 0x00204081u, places = 0x01010101u;
    const uint32_t *word = row_planes + octet / DECANT_WORD_OCTETS;
    const int shift = octet % DECANT_WORD_OCTETS * DECANT_OCTET;
    uint32_t planes[DECANT_BITS_MAXIMUM];
    uint2 codes = {0, 0};
#pragma unroll
    for (int bit = 0; bit < DECANT_BITS_MAXIMUM; bit++) /* all under way before the first is used */
        planes[bit] = bit < bits ? word[bit * words] : 0;
#pragma unroll
    for (int bit = 0; bit < DECANT_BITS_MAXIMUM; bit++) {
        uint32_t plane = planes[bit] >> shift;
        codes.x |= ((plane & 15u) * (spread << bit)) & (places << bit);
        codes.y |= ((plane >> 4 & 15u) * (spread << bit)) & (places << bit);
    }
    return codes;
}

/* The code of one column. */
static __device__ __forceinline__ uint32_t decant_column_code(const uint32_t *row_planes, int bits, int words,
                                                              uint32_t column)
{
    uint32_t code = 0;
    for (int bit = 0; bit < bits; bit++)
        code |= (row_planes[bit * words + column / 32] >> (column % 32) & 1u) << bit;
    return code;
}

#endif
