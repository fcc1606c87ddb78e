/* What launches of parities on binary tensor cores share: how many blocks there are, how long the rings of
 * codes are, and how much shared memory a block may have. */
#ifndef DECANT_KERNELS_CUDA_PARITY_LAUNCH_CUH
#define DECANT_KERNELS_CUDA_PARITY_LAUNCH_CUH

#include "kernels/cuda/context.h"
#include "kernels/cuda/parity_block.cuh"
#include "kernels/cuda/parity_codes.cuh"

enum {
    TILES_MAXIMUM = 32,      /* of a block */
    PLANES_MAXIMUM = 6,      /* of codes */
    BLOCKS_EACH = 1,         /* of one group of tokens, to a multiprocessor */
    COLUMNS_MAXIMUM = 65536, /* the sum of a token's fixed-point values must fit an int */
    CAPABILITY_END = 100,    /* later devices have no binary tensor cores */
    RESERVED_BYTES = 1024,   /* of shared memory, for each block beyond what it asks for */
    STATIC_BYTES = 1024,     /* of a block, beside its layout, at most */
    WINDOW_LEAST = 16,       /* chunks */
    RING_SHORT = 12,         /* planes of units in a warp's ring */
    RING_MEDIUM = 16,
    RING_LONG = 20,
};

/* As far as there are tiles for them, and more where tiles are very many. */
static int blocks_of(const decant_cuda *cuda, int rows)
{
    const int tiles = tiles_of(rows), least = (tiles + TILES_MAXIMUM - 1) / TILES_MAXIMUM;
    const int blocks = BLOCKS_EACH * cuda->multiprocessors;
    return blocks < least ? least : blocks < tiles ? blocks : tiles;
}

/* Blocks share the tiles evenly (share_of in parity_block.cuh). */
static inline void share_tiles(const decant_cuda *cuda, parities_call *call)
{
    const int tiles = tiles_of(call->packed.rows);
    call->blocks = blocks_of(cuda, call->packed.rows);
    call->tiles = (tiles + call->blocks - 1) / call->blocks;
}

/* Units of a warp, one token. */
static inline int units_of_warp(const parities_call &call)
{
    return call.tiles * units_of(call.packed.words) / WARPS;
}

static inline planes_form form_of(const decant_packed_view &packed)
{
    return packed.arranged                                                        ? PLANES_ARRANGED
           : packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % 16 == 0 ? PLANES_BY_ROWS
                                                                                  : PLANES_BY_WORDS;
}

/* Whether a warp may ask the L2 cache for units beyond its ring: lanes share a row's planes by four. */
template <int BITS, planes_form FORM> constexpr bool CAN_ASK_AHEAD = FORM != PLANES_BY_WORDS &&BITS <= 4;

/* Pairs of units to ask for beyond the ring, where runs of units are long (tests/bench/DECODE.md). */
static inline int pairs_of(int bits, int units)
{
    return bits > 4 || units < 16 ? 0 : bits == 4 ? 1 : 2;
}

/* Dynamic shared memory of a block that has so many bytes beside it, where so many blocks are to share a
 * multiprocessor. */
static size_t room_of(const decant_cuda *cuda, int blocks, int static_bytes = STATIC_BYTES)
{
    const size_t each = (cuda->shared_memory_bytes + RESERVED_BYTES) / blocks;
    return each - RESERVED_BYTES - static_bytes;
}

/* How long rings are with a sparse part and without, the longer first (tests/bench/DECODE.md). */
template <int BITS, int TOKENS, bool SPARSE>
constexpr int FIRST_RING = TOKENS == 1 && !SPARSE && BITS > 2 ? RING_LONG : RING_MEDIUM;
template <int BITS, int TOKENS, bool SPARSE>
constexpr int SECOND_RING = TOKENS == 1 && SPARSE ? RING_SHORT : FIRST_RING<BITS, TOKENS, SPARSE>;

/* parities_apart.cu: one token with a sparse part, codes of up to 4 bits, on Hopper. False where a launch would
 * not fit. */
bool decant_cuda_has_parities_apart(const decant_cuda_context *context, parities_call call);
cudaError_t decant_cuda_parities_apart(decant_cuda_context *context, const parities_call &call);

#endif
