/* Levels of packed rows in shared memory, two columns a look-up: a row's table has an entry for each pair of
 * codes, both levels in one word.
 *
 * A tile is sixteen rows. Lane 4g + t looks up in row 2g + t % 2, so that each row has two lanes, and its table
 * is there twice: a lane reads its own bank whatever its code. Two tiles lie side by side:
 *
 *     [pair of tiles][entry][tile of the pair, 2][lane, 32] words
 *
 * so that an entry's number is a byte of its address, which one byte permutation puts there. */
#ifndef DECANT_KERNELS_CUDA_PAIR_TABLES_CUH
#define DECANT_KERNELS_CUDA_PAIR_TABLES_CUH

#include "kernels/cuda/packed.cuh"

enum { PAIR_TILE_ROWS = 16, ENTRY_BYTES = 2 * DECANT_WARP * 4 /* of two tiles */ };

template <int BITS> constexpr int LEVELS = 1 << BITS;
template <int BITS> constexpr int TWO_TABLES_BYTES = LEVELS<BITS> *LEVELS<BITS> *ENTRY_BYTES;

/* The row of its tile that a lane looks up in. */
static __host__ __device__ __forceinline__ int row_of_lane(int lane)
{
    return lane / 4 * 2 + lane % 2;
}

/* The number of the entry whose first column has this code and whose second has code 0: the bits of plane b of
 * both columns are at places 2b and 2b + 1. */
static __host__ __device__ __forceinline__ int entry_of(int code)
{
    int entry = 0;
    for (int bit = 0; bit < 4; bit++)
        entry |= (code >> bit & 1) << 2 * bit;
    return entry;
}

/* ---- filling ---- */

/* What a thread fills: what four lanes read of the entries whose first column has certain codes; the rows 2g
 * and 2g + 1 of a tile, g = lane % 8. Eights of lanes of a warp take different tiles and, where a block has
 * fewer than four, different codes: share, share + SHARES, … */
template <int BITS, int TILES, int WARPS> struct own_levels {
    static constexpr int EIGHTS = DECANT_WARP / 8, SHARES = WARPS * EIGHTS / TILES;
    static constexpr int FIRSTS = LEVELS<BITS> > SHARES ? LEVELS<BITS> / SHARES : 1;
    static constexpr int ROW_WORDS = LEVELS<BITS> / 2; /* two F16 a word */
    uint32_t all[2 * ROW_WORDS];                       /* of both rows */
    uint32_t firsts[2][FIRSTS];                        /* of the first column's codes, in the lower half */

    static __device__ __forceinline__ int tile(void)
    {
        return threadIdx.x % DECANT_WARP / 8 % TILES;
    }
    static __device__ __forceinline__ int share(void)
    {
        return threadIdx.x / DECANT_WARP + threadIdx.x % DECANT_WARP / 8 / TILES * WARPS;
    }
};

/* Values, not places: a choice among places would put them into memory. */
static __device__ __forceinline__ uint32_t choose(bool first, uint32_t a, uint32_t b)
{
    return first ? a : b;
}

static __device__ __forceinline__ void exchange_if(bool wanted, uint32_t &a, uint32_t &b)
{
    const uint32_t kept = choose(wanted, b, a);
    b = choose(wanted, a, b);
    a = kept;
}

/* room: levels [rows of a block, 2^BITS] in shared memory, on an address of a multiple of 16 bytes. Eight lanes
 * begin at different pieces of their rows, so that they read from different banks. */
template <int BITS, int TILES, int WARPS>
static __device__ __forceinline__ void load_levels(own_levels<BITS, TILES, WARPS> &own, const __half *room)
{
    constexpr int ROW_WORDS = own.ROW_WORDS, PIECES = 2 * ROW_WORDS / 4;
    const uint4 *rows = (const uint4 *)(room + ((own.tile() * PAIR_TILE_ROWS + threadIdx.x % 8 * 2) << BITS));
    const int begin = threadIdx.x % 8 / (8 / PIECES);
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        const uint4 words = rows[piece ^ begin];
        own.all[4 * piece] = words.x;
        own.all[4 * piece + 1] = words.y;
        own.all[4 * piece + 2] = words.z;
        own.all[4 * piece + 3] = words.w;
    }
#pragma unroll
    for (int bit = 0; 1 << bit < PIECES; bit++)
#pragma unroll
        for (int word = 0; word < 2 * ROW_WORDS; word++)
            if (!(word >> 2 >> bit & 1))
                exchange_if(begin >> bit & 1, own.all[word], own.all[word + (4 << bit)]);
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < own.FIRSTS; j++) {
            const int code = (own.share() + j * own.SHARES) % LEVELS<BITS>;
            uint32_t both = 0;
#pragma unroll
            for (int word = 0; word < ROW_WORDS; word++)
                both = choose(code / 2 == word, own.all[i * ROW_WORDS + word], both);
            own.firsts[i][j] = code % 2 ? both >> 16 : both;
        }
}

template <int BITS, int TILES, int WARPS>
static __device__ __forceinline__ void fill_tables(const own_levels<BITS, TILES, WARPS> &own,
                                                   unsigned char *tables)
{
    const int tile = own.tile();
    unsigned char *target =
        tables + tile / 2 * TWO_TABLES_BYTES<BITS> + tile % 2 * DECANT_WARP * 4 + threadIdx.x % 8 * 4 * 4;
    if (own.share() >= LEVELS<BITS>)
        return;
#pragma unroll
    for (int i = 0; i < own.FIRSTS; i++) {
        unsigned char *entries = target + entry_of(own.share() + i * own.SHARES) * ENTRY_BYTES;
#pragma unroll
        for (int second = 0; second < LEVELS<BITS>; second++) {
            const uint32_t which =
                second % 2 ? 0x7610 : 0x5410; /* a half of the level's word above the first */
            const uint32_t a = __byte_perm(own.firsts[0][i], own.all[second / 2], which),
                           b = __byte_perm(own.firsts[1][i], own.all[own.ROW_WORDS + second / 2], which);
            *(uint4 *)(entries + 2 * entry_of(second) * ENTRY_BYTES) = make_uint4(a, b, a, b);
        }
    }
}

/* ---- looking up ---- */

/* Four words of entry numbers, a byte each, from a word of each plane: byte b of numbers[0], [2], [1] and [3]
 * is of columns 8b and 8b + 1, 8b + 2 and 8b + 3, 8b + 4 and 8b + 5, 8b + 6 and 8b + 7. Blocks of two bits are
 * exchanged, then of four. */
template <int BITS>
static __host__ __device__ __forceinline__ void number_pairs(uint32_t (&numbers)[4],
                                                             const uint32_t (&planes)[BITS])
{
    const uint32_t twos = 0x33333333u, fours = 0x0f0f0f0fu;
    const uint32_t even = decant_merge(twos, planes[0], planes[1] << 2),
                   odd = decant_merge(twos, planes[0] >> 2, planes[1]);
    uint32_t upper_even = 0, upper_odd = 0;
    if constexpr (BITS == 3) {
        upper_even = planes[2] & twos;
        upper_odd = planes[2] >> 2 & twos;
    }
    if constexpr (BITS == 4) {
        upper_even = decant_merge(twos, planes[2], planes[3] << 2);
        upper_odd = decant_merge(twos, planes[2] >> 2, planes[3]);
    }
    numbers[0] = decant_merge(fours, even, upper_even << 4);
    numbers[1] = decant_merge(fours, even >> 4, upper_even);
    numbers[2] = decant_merge(fours, odd, upper_odd << 4);
    numbers[3] = decant_merge(fours, odd >> 4, upper_odd);
}

/* Both levels of the pair that byte `byte` of the numbers names. The tables' address in shared memory is known
 * to the compiler, so that a look-up's address is one permutation: byte 0 from the lane, byte 1 the entry. */
template <int BITS, uint32_t TABLES>
static __device__ __forceinline__ uint32_t look_up(int tile, uint32_t numbers, int byte, uint32_t lane_bytes)
{
    uint32_t pair;
    const uint32_t offset = __byte_perm(numbers, lane_bytes, 0x5504u | (uint32_t)byte << 4);
    asm("ld.shared.u32 %0, [%1];"
        : "=r"(pair)
        : "r"(offset + (TABLES + tile / 2 * TWO_TABLES_BYTES<BITS> + tile % 2 * DECANT_WARP * 4)));
    return pair;
}

#endif
