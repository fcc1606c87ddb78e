/* Which sparse entries of a tile of rows the warps of a block take, and which of a warp's entries belong to
 * which row. The entries are counted in units of 32, whatever rows they lie in, because a few rows often hold
 * many of them. Where blocks of packed_pairs.cu share a tile, each takes as large a part of its units as of its
 * stages of codes; the warps of a block take them in turns.
 *
 * A unit is two products of 16 terms for the tensor cores, its entries the terms: in step q = 0 … 3, half a
 * product, term k is entry 4 k + q of the unit. So the lanes that gather x of term k need the columns of four
 * neighbours in all, and the lanes that have the values of terms 2t and 2t + 1 those of eight.
 *
 * All of it runs on the host, too, where tests/kernels/test_entry_products.c follows the warps. */
#ifndef DECANT_KERNELS_CUDA_ENTRY_PRODUCTS_H
#define DECANT_KERNELS_CUDA_ENTRY_PRODUCTS_H

#include "kernels/on_both.h"

#include <stdint.h>

enum {
    DECANT_ENTRY_UNIT = 32,
    DECANT_ENTRY_STEPS = 4,
    DECANT_ENTRY_ALIGNMENT = 8, /* entries: sixteen bytes of values */
};

/* Units begin … end − 1 of a tile, unit u from entry base + 32 u on; a few entries of the rows before may come
 * first, and of the rows behind at the end. */
typedef struct decant_entry_units {
    uint32_t base;
    int begin, end;
} decant_entry_units;

/* What belongs to stages begin … end − 1 of `stages`, of a tile with entries first … behind − 1; units times
 * stages are less than 2³². */
DECANT_ON_BOTH decant_entry_units decant_entry_units_of(uint32_t first, uint32_t behind, int begin, int end,
                                                        int stages)
{
    const uint32_t base = first / DECANT_ENTRY_ALIGNMENT * DECANT_ENTRY_ALIGNMENT;
    const uint32_t units = first == behind ? 0 : (behind - base + DECANT_ENTRY_UNIT - 1) / DECANT_ENTRY_UNIT;
    const decant_entry_units own = {base, (int)(units * (uint32_t)begin / (uint32_t)stages),
                                    (int)(units * (uint32_t)end / (uint32_t)stages)};
    return own;
}

/* Bits n … 31, none from n = 32 on. */
DECANT_ON_BOTH uint32_t decant_bits_from(int n)
{
    return n >= 32 ? 0 : 0xffffffffu << n;
}

/* Which entries of the unit from entry `unit_first` on are of the row with entries begin … end − 1: a bit each.
 */
DECANT_ON_BOTH uint32_t decant_entries_of_row(uint32_t begin, uint32_t end, uint32_t unit_first)
{
    const uint32_t before = begin > unit_first ? begin - unit_first : 0,
                   until = end > unit_first ? end - unit_first : 0;
    return decant_bits_from(before < 32 ? (int)before : 32) & ~decant_bits_from(until < 32 ? (int)until : 32);
}

/* Of these bits the eight of a lane's values, t = lane % 4: bit q is its first term of step q, bit 16 + q its
 * second. */
DECANT_ON_BOTH uint32_t decant_terms_of_lane(uint32_t entries, int t)
{
    const uint32_t own = entries >> 8 * t;
    return (own & 0xfu) | (own & 0xf0u) << 12;
}

/* A mask for the pair of 16-bit values of step q. */
DECANT_ON_BOTH uint32_t decant_mask_of_step(uint32_t terms, int q)
{
    return (terms >> q & 0x00010001u) * 0xffffu;
}

/* The token whose sum lane group g = lane / 4 has of the n-th product of eight tokens, where a lane gathers
 * neighbouring tokens of an entry's x: `products` times two. */
DECANT_ON_BOTH int decant_token_of_product(int g, int n, int products)
{
    return 2 * products * (g / 2) + 2 * n + g % 2;
}

#endif
