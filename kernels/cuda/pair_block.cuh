/* What a block of packed_pairs.cu is made of: its warps, its arrays in shared memory, the arguments of a launch
 * and the stages that fall to it. Knows nothing of what the block does with them:
 *
 *     pair_codes.cuh     codes on their way to registers
 *     pair_tables.cuh    tables of pairs of levels
 *     pair_products.cuh  x in registers, and products
 *     pair_sums.cuh      the end of a tile of rows
 *     pair_entries.cuh   the sparse part */
#ifndef DECANT_KERNELS_CUDA_PAIR_BLOCK_CUH
#define DECANT_KERNELS_CUDA_PAIR_BLOCK_CUH

#include "kernels/cuda/pair_codes.cuh"
#include "kernels/cuda/pair_entries.cuh"
#include "kernels/cuda/token_fragments.h"

enum {
    PART_STRIDE = 80, /* floats of a token in a warp's sums: stores of two tokens fall into different banks */
    QUADS = ROWS / 4, /* rows that are added up together */
    SHARED_TILES = 2, /* of a block with others: its first and its last */
    RING_ADDRESS = 2048, /* in shared memory, behind what the system and the barriers take */
    TABLES_ADDRESS = RING_ADDRESS + RING_BYTES,
    OTHER_WARPS = 4, /* beside those of the codes: the entries', and one that asks for codes */
    BLOCK_THREADS = THREADS + OTHER_WARPS * DECANT_WARP,
};

/* Entries of many tokens take all of these warps; then the block's first thread asks for codes. */
template <int TOKENS> constexpr int ENTRY_WARPS = TOKENS > 16 ? OTHER_WARPS : OTHER_WARPS - 1;
template <int TOKENS> constexpr int ENTRY_LANES = ENTRY_WARPS<TOKENS> *DECANT_WARP;
template <int TOKENS, bool SPARSE> constexpr bool ASKS_APART = !SPARSE || ENTRY_WARPS<TOKENS> < OTHER_WARPS;

/* Slots of the ring. At four bits one fewer than there is room for: x comes sooner so, and entries, which
 * tables leave no room for otherwise, have its place. */
template <int BITS> constexpr int OWN_SLOTS = SLOTS<BITS> - (BITS == 4 ? 1 : 0);

/* What a number of tokens is padded to, and how products are made of them. */
template <int TOKENS> constexpr int OPERANDS = TOKENS > DECANT_FRAGMENTS_OPERAND_TOKENS ? 2 : 1;
template <int TOKENS> constexpr int KINDS = TOKENS > 8 ? 2 : 1; /* of rows: even and odd, or both at once */

/* What the warps of the entries have in shared memory. */
template <int TOKENS> using block_entries = entry_room<TOKENS, ENTRY_LANES<TOKENS>, ROWS>;

/* Where a block's arrays lie in shared memory, in bytes. The warps' sums take the place of the tables. */
template <int BITS, int TOKENS, bool SPARSE> struct shared_layout {
    static constexpr int TABLES_AT = RING_BYTES, TABLES_BYTES = TILES / 2 * TWO_TABLES_BYTES<BITS>,
                         PARTS_BYTES = WARPS * TOKENS * PART_STRIDE * 4,
                         TABLES_END = TABLES_AT + (TABLES_BYTES > PARTS_BYTES ? TABLES_BYTES : PARTS_BYTES),
                         ENTRIES_BYTES = SPARSE ? (int)sizeof(block_entries<TOKENS>) : 0;
    static constexpr bool IN_RING = OWN_SLOTS<BITS> < SLOTS<BITS>;
    static_assert(!IN_RING || ENTRIES_BYTES <= STAGE_BYTES<BITS>, "the place of a slot");
    static constexpr int ENTRIES_AT = IN_RING ? OWN_SLOTS<BITS> * STAGE_BYTES<BITS> : TABLES_END,
                         TOTAL = IN_RING ? TABLES_END : TABLES_END + ENTRIES_BYTES;
};

/* The arguments of a launch. */
typedef struct pairs_call {
    CUtensorMap planes; /* as map_planes describes them */
    decant_packed_view packed;
    decant_token_fragments x;
    __nv_bfloat16 *y;      /* [tokens, rows] */
    const float *sparse;   /* [tokens, rows] or NULL: the product of the sparse part */
    __nv_bfloat16 *turned; /* x [columns, tokens of the kernel], for the sparse part */
    float *parts;          /* [blocks, SHARED_TILES, tokens of the kernel, ROWS] */
    uint32_t *arrivals;    /* [row tiles] zeros, and zeros again in the end */
    int tokens;
    int row_tiles, row_stages;
    int column_stages; /* of row_stages, those that have columns */
    int run;           /* stages of a block */
    uint32_t zero;     /* as a value that the compiler does not know */
    bool accumulate;
} pairs_call;

/* ---- the stages of a block ---- */

[[maybe_unused]] static __device__ __forceinline__ stage_run run_of_block(const pairs_call &call)
{
    const int begin = (int)blockIdx.x * call.run;
    return {begin, min(begin + call.run, call.row_tiles * call.row_stages), call.row_stages};
}

/* Behind the last stage of a run that has columns. Only runs within one tile have stages without. */
[[maybe_unused]] static __device__ __forceinline__ int codes_end(const pairs_call &call, const stage_run &run)
{
    return min(run.end, (run.end - 1) / call.row_stages * call.row_stages + call.column_stages);
}

#endif
