/* The sparse part of a tile of rows times several tokens on tensor cores, by some warps of a block. Entries are
 * the terms of a product: the operand b has an entry's value in the column of its row and zeros beside it, the
 * operand a what is gathered of x, turned (token_sparse.h), so that all tokens of an entry lie side by side.
 * Eight rows, an octet, are the columns of a product; a warp's units come in the order of rows, so that it has
 * the sums of one octet at a time, and how entries crowd in rows makes little difference.
 *
 * x is BF16 and the values are F16: they are split into two BF16, which is exact.
 *
 * What a lane reads takes its time, so it matters how many entries are under way. A warp takes a few units
 * (entry_products.h) a round. It asks for their columns two rounds before they are due, for x and the values
 * one round before. Whatever it has asked for it waits for at once, at the beginning of a round: a thread has
 * too few counters of loads on their way to tell many apart. So that is where all of it is touched, in an order
 * that the compiler is not to change. */
#ifndef DECANT_KERNELS_CUDA_ENTRY_PRODUCTS_CUH
#define DECANT_KERNELS_CUDA_ENTRY_PRODUCTS_CUH

#include "kernels/cuda/entry_products.h"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"

#include <cuda_bf16.h>

enum { ENTRY_OCTET = 8 /* rows: columns of a product */ };

/* Of eight tokens each; a warp takes all of them. */
template <int TOKENS> constexpr int ENTRY_PRODUCTS = TOKENS / 8;

/* Sums of octet o of the rows, lane 4g + t: [o][2n + i] is of token decant_token_of_product(g, n) and row
 * 8 o + 2t + i. */
template <int TOKENS, int OCTETS> using entry_sums = float[OCTETS][2 * ENTRY_PRODUCTS<TOKENS>];

/* One unit on its way: a lane's part of it. */
template <int TOKENS> struct entry_unit {
    uint32_t columns[DECANT_ENTRY_STEPS]; /* of the unit a round later; offsets in x from then on */
    uint32_t values[DECANT_ENTRY_STEPS];  /* F16, two of neighbours */
    uint32_t pairs[DECANT_ENTRY_STEPS];   /* those of a step's two terms */
    uint32_t x[DECANT_ENTRY_STEPS][ENTRY_PRODUCTS<TOKENS>]; /* BF16 of two tokens; then of two terms */
};

/* ---- reading, in the program's order ---- */

static __device__ __forceinline__ void read_sixteen(uint32_t (&words)[4], const void *address)
{
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(address));
}

static __device__ __forceinline__ void read_tokens(uint32_t (&words)[2], const void *address)
{
    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(address));
}

static __device__ __forceinline__ void read_tokens(uint32_t (&words)[4], const void *address)
{
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(address));
}

static __device__ __forceinline__ void read_tokens(uint32_t (&words)[1], const void *address)
{
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(words[0]) : "l"(address));
}

/* ---- touching what has come, in the program's order ---- */

/* Where x of a column begins, in bytes; of what is read beyond the last entry, that of the last column. */
static __device__ __forceinline__ uint32_t offset_of_column(uint32_t column, uint32_t last,
                                                            uint32_t column_bytes)
{
    uint32_t offset;
    asm volatile("{\n"
                 ".reg .u32 within;\n"
                 "min.u32 within, %1, %2;\n"
                 "mul.lo.u32 %0, within, %3;\n"
                 "}"
                 : "=r"(offset)
                 : "r"(column), "r"(last), "r"(column_bytes));
    return offset;
}

/* Transposes a matrix of eight by eight BF16 that the warp has, two of a row in a lane. */
static __device__ __forceinline__ uint32_t transpose_eight(uint32_t pair)
{
    uint32_t turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

/* The values of a lane's two terms of each step, of its eight neighbours. */
static __device__ __forceinline__ void pair_values(uint32_t (&pairs)[DECANT_ENTRY_STEPS],
                                                   const uint32_t (&values)[DECANT_ENTRY_STEPS])
{
#pragma unroll
    for (int step = 0; step < DECANT_ENTRY_STEPS; step++)
        asm volatile("prmt.b32 %0, %1, %2, %3;"
                     : "=r"(pairs[step])
                     : "r"(values[step / 2]), "r"(values[step / 2 + 2]), "r"(step % 2 ? 0x7632 : 0x5410));
}

/* ---- the operands ---- */

/* Two F16 as sums of two BF16 each. */
typedef struct split_pair {
    uint32_t upper, lower;
} split_pair;

static __device__ __forceinline__ split_pair split_values(uint32_t pair)
{
    const float2 values = __half22float2(*(const __half2 *)&pair);
    const uint32_t first = __float_as_uint(values.x), second = __float_as_uint(values.y);
    const float first_left = values.x - __uint_as_float(first & 0xffff0000u),
                second_left = values.y - __uint_as_float(second & 0xffff0000u);
    return {__byte_perm(first, second, 0x7632),
            __byte_perm(__float_as_uint(first_left), __float_as_uint(second_left), 0x7632)};
}

/* ---- a warp's units of a tile ---- */

/* WARPS share a tile of OCTETS of rows, and have AHEAD units each under way. */
template <int TOKENS, int WARPS, int OCTETS, int AHEAD> struct tile_entries {
    static constexpr int PRODUCTS = ENTRY_PRODUCTS<TOKENS>;
    static constexpr bool IN_MEMORY = TOKENS > 16; /* sums of octets left behind: registers are short */
    const uint32_t *columns;                       /* of unit 0 */
    const __half *values;
    const uint32_t *offsets; /* [8 OCTETS + 1] in shared memory */
    const char *x;           /* turned, a lane's tokens of column 0 */
    uint32_t base, last_column;
    int next, end; /* units */
    int first_octet, octet;
    uint32_t octet_end, row_begin, row_end; /* entries, the latter those of row 8 octet + g */
    float own_sums[2 * PRODUCTS];           /* of the octet */
    entry_unit<TOKENS> units[AHEAD];

    static __device__ __forceinline__ int lane_of_entries(void)
    {
        return (int)threadIdx.x % DECANT_WARP;
    }

    /* Where a lane's piece of so many entries of a unit begins, counted from unit 0; of what lies behind the
     * tile's last entry, the piece that is in. */
    __device__ __forceinline__ uint32_t piece_of(int number, int piece, int entries) const
    {
        const uint32_t last = offsets[8 * OCTETS] - 1 - base;
        return min((uint32_t)(number * DECANT_ENTRY_UNIT + piece * entries), last / entries * entries);
    }

    __device__ __forceinline__ void ask_for_columns(entry_unit<TOKENS> &unit, int number)
    {
        if (number < end)
            read_sixteen(unit.columns, columns + piece_of(number, lane_of_entries() / 4, 4));
    }

    __device__ __forceinline__ void ask_for_values(entry_unit<TOKENS> &unit, int number)
    {
        if (number < end)
            read_sixteen(unit.values, values + piece_of(number, lane_of_entries() % 4, 8));
    }

    __device__ __forceinline__ void find_offsets(entry_unit<TOKENS> &unit)
    {
#pragma unroll
        for (int step = 0; step < DECANT_ENTRY_STEPS; step++)
            unit.columns[step] = offset_of_column(unit.columns[step], last_column, TOKENS * 2);
    }

    __device__ __forceinline__ void ask_for_x(entry_unit<TOKENS> &unit, int number)
    {
        if (number < end)
#pragma unroll
            for (int step = 0; step < DECANT_ENTRY_STEPS; step++)
                read_tokens(unit.x[step], x + unit.columns[step]);
    }

    /* Waits for what has been asked for, and makes operands of it. */
    __device__ __forceinline__ void touch(entry_unit<TOKENS> &unit)
    {
        find_offsets(unit);
        pair_values(unit.pairs, unit.values);
#pragma unroll
        for (int step = 0; step < DECANT_ENTRY_STEPS; step++)
#pragma unroll
            for (int n = 0; n < PRODUCTS; n++)
                unit.x[step][n] = transpose_eight(unit.x[step][n]);
    }

    __device__ __forceinline__ void enter_octet(int number)
    {
        const int row = 8 * number + lane_of_entries() / 4;
        octet = number;
        octet_end = offsets[8 * number + 8];
        row_begin = offsets[row];
        row_end = offsets[row + 1];
#pragma unroll
        for (int j = 0; j < 2 * PRODUCTS; j++)
            own_sums[j] = 0;
    }

    __device__ __forceinline__ void leave_octet(entry_sums<TOKENS, OCTETS> &sums)
    {
        if constexpr (IN_MEMORY) {
#pragma unroll
            for (int j = 0; j < 2 * PRODUCTS; j++)
                sums[octet][j] = own_sums[j];
        } else {
#pragma unroll
            for (int o = 0; o < OCTETS; o++)
#pragma unroll
                for (int j = 0; j < 2 * PRODUCTS; j++)
                    sums[o][j] = o == octet ? own_sums[j] : sums[o][j];
        }
    }

    /* sums += a unit. */
    __device__ __forceinline__ void add(entry_sums<TOKENS, OCTETS> &sums, const entry_unit<TOKENS> &unit,
                                        int number)
    {
        const uint32_t first = base + number * DECANT_ENTRY_UNIT;
        split_pair own[DECANT_ENTRY_STEPS];
#pragma unroll
        for (int step = 0; step < DECANT_ENTRY_STEPS; step++)
            own[step] = split_values(unit.pairs[step]);
#pragma unroll 1
        while (true) {
            const uint32_t terms =
                decant_terms_of_lane(decant_entries_of_row(row_begin, row_end, first), lane_of_entries() % 4);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t mask = decant_mask_of_step(terms, 2 * half),
                               next_mask = decant_mask_of_step(terms, 2 * half + 1);
                const split_pair &low = own[2 * half], &high = own[2 * half + 1];
#pragma unroll
                for (int n = 0; n < PRODUCTS; n += 2) {
                    constexpr int LAST = PRODUCTS - 1;
                    const int m = n < LAST ? n + 1 : n;
                    const uint32_t a[4] = {unit.x[2 * half][n], n < LAST ? unit.x[2 * half][m] : 0,
                                           unit.x[2 * half + 1][n], n < LAST ? unit.x[2 * half + 1][m] : 0};
                    float c[4] = {own_sums[2 * n], own_sums[2 * n + 1], own_sums[2 * m], own_sums[2 * m + 1]};
                    decant_mma(c, a, low.upper & mask, high.upper & next_mask);
                    decant_mma(c, a, low.lower & mask, high.lower & next_mask);
                    own_sums[2 * n] = c[0];
                    own_sums[2 * n + 1] = c[1];
                    if (n < LAST) {
                        own_sums[2 * m] = c[2];
                        own_sums[2 * m + 1] = c[3];
                    }
                }
            }
            if (octet_end >= first + DECANT_ENTRY_UNIT || octet == OCTETS - 1)
                return;
            leave_octet(sums);
            enter_octet(octet + 1);
        }
    }

    /* What is read later than in the first round. */
    __device__ __forceinline__ void bring_to_l2(const decant_packed_view &packed, const decant_entry_units &own)
    {
        constexpr int LINE_BYTES = 128, COLUMNS = LINE_BYTES / 4, VALUES = LINE_BYTES / 2;
        const int thread = (int)threadIdx.x % (WARPS * DECANT_WARP);
        const uint32_t behind = min(base + own.end * DECANT_ENTRY_UNIT, offsets[8 * OCTETS]);
        const uint32_t first = base + (own.begin + AHEAD * WARPS) * DECANT_ENTRY_UNIT;
        for (uint32_t i = first + thread * COLUMNS; i < behind; i += WARPS * DECANT_WARP * COLUMNS)
            decant_prefetch(packed.sparse_columns + i);
        for (uint32_t i = first + thread * VALUES; i < behind; i += WARPS * DECANT_WARP * VALUES)
            decant_prefetch(packed.sparse_values + i);
    }

    /* Asks for what does not depend on x. own: the block's units of the tile. */
    __device__ __forceinline__ void open(const decant_packed_view &packed, const uint32_t *row_offsets,
                                         const decant_entry_units &own)
    {
        const int warp = (int)threadIdx.x / DECANT_WARP % WARPS;
        columns = packed.sparse_columns + own.base;
        values = packed.sparse_values + own.base;
        offsets = row_offsets;
        base = own.base;
        last_column = (uint32_t)packed.columns - 1;
        next = own.begin + warp;
        end = own.end;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            units[i] = {};
            ask_for_columns(units[i], next + i * WARPS);
            ask_for_values(units[i], next + i * WARPS);
        }
        bring_to_l2(packed, own);
    }

    /* Asks for the x of the first round. */
    __device__ __forceinline__ void start(const __nv_bfloat16 *turned)
    {
        x = (const char *)(turned + lane_of_entries() % 4 * (2 * PRODUCTS));
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            find_offsets(units[i]);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            ask_for_x(units[i], next + i * WARPS);
            ask_for_columns(units[i], next + (AHEAD + i) * WARPS);
        }
    }

    /* sums = the warp's units of the tile times x; of the octets before first_octet and behind octet, nothing.
     */
    __device__ __forceinline__ void multiply(entry_sums<TOKENS, OCTETS> &sums)
    {
        const uint32_t first = base + next * DECANT_ENTRY_UNIT;
        first_octet =
            min(__popc(__ballot_sync(DECANT_ALL_LANES, offsets[lane_of_entries() % OCTETS * 8 + 8] <= first) &
                       (1u << OCTETS) - 1),
                OCTETS - 1);
        enter_octet(first_octet);
#pragma unroll 1
        for (; next < end; next += AHEAD * WARPS) {
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                touch(units[i]);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                const int number = next + i * WARPS;
                if (number < end)
                    add(sums, units[i], number);
                ask_for_x(units[i], number + AHEAD * WARPS);
                ask_for_values(units[i], number + AHEAD * WARPS);
                ask_for_columns(units[i], number + 2 * AHEAD * WARPS);
            }
        }
        leave_octet(sums);
    }
};

/* ---- the sums of a warp ---- */

/* Floats that the sums of all warps take, [WARPS][TOKENS][stride]. */
template <int TOKENS, int WARPS> static __host__ __device__ constexpr int entry_parts(int stride)
{
    return WARPS * TOKENS * stride;
}

/* A warp's sums to shared memory, `stride` floats a token; of octets outside first … last zeros. */
template <int TOKENS, int WARPS, int OCTETS>
static __device__ __forceinline__ void leave_entry_sums(const entry_sums<TOKENS, OCTETS> &sums, int first,
                                                        int last, float *parts, int stride)
{
    const int lane = (int)threadIdx.x % DECANT_WARP, warp = (int)threadIdx.x / DECANT_WARP % WARPS;
    float *own = parts + warp * TOKENS * stride + lane % 4 * 2;
#pragma unroll
    for (int o = 0; o < OCTETS; o++) {
        const bool taken = first <= o && o <= last;
#pragma unroll
        for (int n = 0; n < ENTRY_PRODUCTS<TOKENS>; n++)
            *(float2 *)(own + decant_token_of_product(lane / 4, n, ENTRY_PRODUCTS<TOKENS>) * stride + 8 * o) =
                taken ? make_float2(sums[o][2 * n], sums[o][2 * n + 1]) : make_float2(0, 0);
    }
}

/* The sums of four rows of a token, of all warps. */
template <int TOKENS, int WARPS>
static __device__ __forceinline__ float4 entry_sums_of(const float *parts, int stride, int token, int row)
{
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        const float4 more = *(const float4 *)(parts + (warp * TOKENS + token) * stride + row);
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    return sum;
}

#endif
