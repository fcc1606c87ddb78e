/* Reading packed matrices on the device: bit planes to codes, eight columns at a time. docs/container.md has
 * the layout: bit j % 32 of word j / 32 of plane b of a row is bit b of the code of column j.
 *
 * Where validate->prepare has arranged the planes (arranged_planes.cu), eight rows lie together: 512 columns of
 * one plane of all eight, then of the next plane, then the next 512 columns. So products that take some columns
 * of eight rows at a time read stretches of memory instead of a piece of each row. Behind the last column zeros
 * make whole pieces. */
#ifndef DECANT_KERNELS_CUDA_PACKED_CUH
#define DECANT_KERNELS_CUDA_PACKED_CUH

#include "kernels/arranged_columns.h"
#include "kernels/cuda/bit_merge.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum {
    DECANT_OCTET = 8 /* columns */,
    DECANT_WORD_OCTETS = 4,
    DECANT_LEVELS_MAXIMUM = 1 << DECANT_BITS_MAXIMUM
};

enum { DECANT_GROUP_ROWS = 8 };

/* How far apart the words of a group of eight rows lie: those of neighbouring rows, planes and pieces. */
typedef struct decant_planes_order {
    int row, plane, piece;
} decant_planes_order;

/* A packed matrix as kernels see it. */
typedef struct decant_packed_view {
    const uint32_t *planes; /* [rows, bits, words] */
    const __half *levels;   /* [rows, 2^bits] */
    const uint32_t *row_offsets, *sparse_columns;
    const __half *sparse_values;
    const uint32_t *sparse_entries; /* or NULL; joined_entries.cu */
    int rows, columns, bits;
    int words; /* of a plane of a row; of whole pieces where planes are arranged */
    bool arranged;
    decant_planes_order order;
} decant_packed_view;

static inline __host__ __device__ decant_planes_order decant_planes_order_of(int bits, int words, bool arranged)
{
    const int piece = DECANT_GROUP_ROWS * DECANT_PIECE_WORDS;
    return arranged ? decant_planes_order{DECANT_PIECE_WORDS, piece, bits * piece}
                    : decant_planes_order{bits * words, words, DECANT_PIECE_WORDS};
}

static inline decant_packed_view decant_packed_view_of(const decant_packed_matrix *packed)
{
    const int words = decant_plane_words(packed->columns, packed->arranged);
    return {packed->planes,
            (const __half *)packed->levels,
            packed->sparse.row_offsets,
            packed->sparse.columns,
            (const __half *)packed->sparse_values,
            packed->sparse_entries,
            (int)packed->rows,
            (int)packed->columns,
            packed->bits,
            words,
            packed->arranged,
            decant_planes_order_of(packed->bits, words, packed->arranged)};
}

/* The first word of a row. */
static __device__ __forceinline__ const uint32_t *decant_row_planes(const decant_packed_view &packed, int row)
{
    return packed.planes + (int64_t)(row / DECANT_GROUP_ROWS * DECANT_GROUP_ROWS) * packed.bits * packed.words +
           row % DECANT_GROUP_ROWS * packed.order.row;
}

/* Where a word of a plane lies behind its first. */
static __host__ __device__ __forceinline__ int decant_word_place(const decant_planes_order &order, int word)
{
    return word / DECANT_PIECE_WORDS * order.piece + word % DECANT_PIECE_WORDS;
}

/* The codes of columns 8·octet … +7 of a row, a byte each: columns 0 … 3 in x, 4 … 7 in y.
 *
 * Multiplying four bits by 1 + 2⁷ + 2¹⁴ + 2²¹ puts bit i at place 8 i, among others that the mask removes; no
 * two products meet in one place, so nothing carries. */
static __device__ __forceinline__ uint2 decant_octet_codes(const uint32_t *row_planes, int bits,
                                                           const decant_planes_order &order, int octet)
{
    const uint32_t spread = 0x00204081u, places = 0x01010101u;
    const uint32_t *word = row_planes + decant_word_place(order, octet / DECANT_WORD_OCTETS);
    const int shift = octet % DECANT_WORD_OCTETS * DECANT_OCTET;
    uint32_t planes[DECANT_BITS_MAXIMUM];
    uint2 codes = {0, 0};
#pragma unroll
    for (int bit = 0; bit < DECANT_BITS_MAXIMUM; bit++) /* all under way before the first is used */
        planes[bit] = bit < bits ? word[bit * order.plane] : 0;
#pragma unroll
    for (int bit = 0; bit < DECANT_BITS_MAXIMUM; bit++) {
        uint32_t plane = planes[bit] >> shift;
        codes.x |= ((plane & 15u) * (spread << bit)) & (places << bit);
        codes.y |= ((plane >> 4 & 15u) * (spread << bit)) & (places << bit);
    }
    return codes;
}

/* The code of one column. */
static __device__ __forceinline__ uint32_t decant_column_code(const uint32_t *row_planes, int bits,
                                                              const decant_planes_order &order, uint32_t column)
{
    const uint32_t *word = row_planes + decant_word_place(order, (int)(column / 32));
    uint32_t code = 0;
    for (int bit = 0; bit < bits; bit++)
        code |= (word[bit * order.plane] >> (column % 32) & 1u) << bit;
    return code;
}

#endif
