/* What a kernel of packed_pairs.cu is made for, and what follows from that: how a block's warps share its work,
 * their registers, and where its arrays lie in shared memory. Knows nothing of what is done with them. */
#ifndef DECANT_KERNELS_CUDA_PAIR_KIND_CUH
#define DECANT_KERNELS_CUDA_PAIR_KIND_CUH

#include "kernels/cuda/pair_codes.cuh"
#include "kernels/cuda/pair_entries.cuh"
#include "kernels/cuda/token_fragments.h"

enum {
    OTHER_WARPS = 4, /* beside those of the codes: the entries', and one that asks for codes */
    BLOCK_THREADS = THREADS + OTHER_WARPS * DECANT_WARP,
    RING_ADDRESS = 2048,      /* in shared memory, behind what the system and the barriers take */
    SHARED_BYTES = 228 << 10, /* of a multiprocessor, the system's included */
};

/* BITS: of a code. TOKENS: 8, 16 or 32, what a number of tokens is padded to. TILES: of sixteen rows, of a
 * block. SPARSE: with warps of the entries. EARLY: x is asked for a whole stage ahead. NORMED: of a norm
 * (pair_norm.cuh), without entries. */
template <int BITS_, int TOKENS_, int TILES_, bool SPARSE_, bool EARLY_, bool NORMED_ = false>
struct pair_kind {
    static constexpr int BITS = BITS_, TOKENS = TOKENS_, TILES = TILES_;
    static constexpr bool SPARSE = SPARSE_, EARLY = EARLY_, NORMED = NORMED_;
    static_assert(!(SPARSE && NORMED), "the warps of the entries add up squares");

    static constexpr int ROWS = TILES * PAIR_TILE_ROWS;
    static constexpr int QUADS = ROWS / 4; /* rows that are added up together */
    static constexpr int PLANE_BYTES = ROWS * LINE_BYTES, STAGE_BYTES = BITS * PLANE_BYTES;

    /* How products are made of the tokens. */
    static constexpr int OPERANDS = TOKENS > DECANT_FRAGMENTS_OPERAND_TOKENS ? 2 : 1;
    static constexpr int ROW_KINDS = TOKENS > 8 ? 2 : 1; /* even and odd, or both at once */

    /* Entries of many tokens take all of the other warps; then the block's first thread asks for codes. */
    static constexpr int ENTRY_WARPS = TOKENS > 16 ? OTHER_WARPS : OTHER_WARPS - 1;
    static constexpr int ENTRY_LANES = ENTRY_WARPS * DECANT_WARP;
    static constexpr bool ASKS_APART = !SPARSE || ENTRY_WARPS < OTHER_WARPS;
    using entries = entry_room<TOKENS, ENTRY_LANES, ROWS>;

    /* Registers of a thread on average, of the codes' threads and of the others. They leave room for a block of
     * the kernel that makes fragments for the next product. */
    static constexpr int REGISTERS = 160;
    static constexpr int CODES_REGISTERS = !SPARSE ? 224 : TOKENS > 16 && TILES > 2 ? 208 : 200;
    static constexpr int OTHERS_REGISTERS = 3 * REGISTERS - 2 * CODES_REGISTERS;

    /* The codes of a stage are read into registers during the one before. */
    static constexpr bool CODES_AHEAD = EARLY && !SPARSE;

    /* Few stages are under way, since x comes sooner so; of narrow codes more beside entries. */
    static constexpr int SLOTS = (SPARSE && BITS < 4 ? 96 << 10 : 64 << 10) / STAGE_BYTES;

    /* Bytes from the ring on. The warps' sums take the place of the tables: of a warp [TOKENS][PART_STRIDE], so
     * that stores of two tokens fall into different banks. */
    static constexpr int PART_STRIDE = ROWS + 16;
    static constexpr int ENTRIES_AT = SLOTS * STAGE_BYTES;
    static constexpr int LEVELS_AT = ENTRIES_AT + (SPARSE ? ((int)sizeof(entries) + 15) / 16 * 16 : 0);
    static constexpr int LEVELS_BYTES = ROWS * LEVELS<BITS> * 2;
    static constexpr int TABLES_AT = (LEVELS_AT + LEVELS_BYTES + 127) / 128 * 128;
    static constexpr int TABLES_BYTES = TILES / 2 * TWO_TABLES_BYTES<BITS>,
                         PARTS_BYTES = WARPS * TOKENS * PART_STRIDE * 4;
    static constexpr int TOTAL_BYTES = TABLES_AT + (TABLES_BYTES > PARTS_BYTES ? TABLES_BYTES : PARTS_BYTES);
    static constexpr uint32_t TABLES_ADDRESS = RING_ADDRESS + TABLES_AT;
    static_assert(RING_ADDRESS + TOTAL_BYTES <= SHARED_BYTES, "more than a multiprocessor has");

    /* What a multiprocessor is to have, in percent: room for the block that makes the next fragments, too. */
    static constexpr int ROOM_BYTES = RING_ADDRESS + TOTAL_BYTES + DECANT_FRAGMENTS_SHARED_BYTES,
                         SHARED_PERCENT = ROOM_BYTES < SHARED_BYTES
                                              ? (ROOM_BYTES * 100LL + SHARED_BYTES - 1) / SHARED_BYTES
                                              : 100;
};

#endif
