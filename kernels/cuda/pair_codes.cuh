/* The codes of a block of packed_pairs.cu: some tiles of rows of a matrix at a time, which the tensor memory
 * accelerator brings in stages of 1024 columns, all planes, through a ring of shared memory into the warps'
 * registers. `Kind` is a pair_kind (pair_kind.cuh). Knows nothing of levels and of x. */
#ifndef DECANT_KERNELS_CUDA_PAIR_CODES_CUH
#define DECANT_KERNELS_CUDA_PAIR_CODES_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/named_barriers.cuh"
#include "kernels/cuda/pair_runs.h"
#include "kernels/cuda/pair_tables.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "kernels/cuda/tensor_map.h"

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    STAGE_WORDS = DECANT_PAIR_STAGE_WORDS,
    STAGE_SLICES = 8, /* of 128 columns, each for a warp */
    SLICE_COLUMNS = 128,
    SLICE_BYTES = 16, /* of a plane of a row */
    LINE_BYTES = STAGE_WORDS * 4,
    STAGE_PIECES = STAGE_WORDS / DECANT_PIECE_WORDS,
    LINE_ROWS = STAGE_WORDS / DECANT_PIECE_WORDS,                       /* of a piece of arranged planes */
    PIECE_LINES = DECANT_GROUP_ROWS * DECANT_PIECE_WORDS / STAGE_WORDS, /* of a plane of a group of rows */
    PIECE_SLICES = DECANT_PIECE_WORDS * 4 / SLICE_BYTES,
    CODES_BARRIER = 1, /* a named one */
};

/* The warps of the codes wait for each other; a block may have more warps. */
static __device__ __forceinline__ void codes_meet(void)
{
    wait_at_barrier<CODES_BARRIER, THREADS>();
}

/* The matrices of a launch, whose tiles of rows are counted one matrix after the other. */
typedef struct joined_matrices {
    int first_tiles[DECANT_PAIRS_MATRICES];    /* beyond the last matrix INT_MAX */
    CUtensorMap planes[DECANT_PAIRS_MATRICES]; /* as map_planes describes them */
} joined_matrices;

/* A tile's matrix, and its number in that. */
typedef struct tile_place {
    int matrix, tile;
} tile_place;

static __device__ __forceinline__ tile_place place_of(const joined_matrices &matrices, int row_tile)
{
    int matrix = 0;
#pragma unroll
    for (int i = 1; i < DECANT_PAIRS_MATRICES; i++)
        matrix += row_tile >= matrices.first_tiles[i];
    return {matrix, row_tile - matrices.first_tiles[matrix]};
}

/* The stages of a block: those of all tiles of rows are counted one tile after the other. */
typedef struct stage_run {
    int begin, end;
} stage_run;

/* ---- the ring ---- */

template <typename Kind> struct code_barriers {
    uint64_t full[Kind::SLOTS], empty[Kind::SLOTS];
};

/* The ring as a thread sees it. One thread asks for stages: the block's first, or one of another warp; each
 * warp of the codes says when it has those of a stage in registers. */
template <typename Kind> struct code_ring {
    static constexpr int COUNT = Kind::SLOTS, STAGE_BYTES = Kind::STAGE_BYTES;
    uint32_t slots, full, empty; /* addresses */
    int slot, round;             /* of the stage that is now, and how often the ring has been gone round */
    const joined_matrices *matrices;
    const decant_pair_runs *runs;
    stage_run run;

    /* By the block's first thread, which publishes the barriers before any other uses the ring, and by those.
     */
    __device__ __forceinline__ void create(code_barriers<Kind> &barriers, unsigned char *ring,
                                           const joined_matrices &all, const decant_pair_runs &all_runs,
                                           const stage_run &own)
    {
        matrices = &all;
        runs = &all_runs;
        run = own;
        slots = decant_shared_address(ring);
        full = decant_shared_address(barriers.full);
        empty = decant_shared_address(barriers.empty);
        slot = round = 0;
        if (threadIdx.x == 0)
            for (int i = 0; i < COUNT; i++) {
                decant_barrier_create(full + i * 8, 1);
                decant_barrier_create(empty + i * 8, WARPS);
            }
    }

    __device__ __forceinline__ void bring(int stage, int target) const
    {
        const uint32_t box = slots + target * STAGE_BYTES, barrier = full + target * 8;
        const int row_tile = decant_pair_tile_of(runs, stage), row_stage = stage - row_tile * runs->row_stages;
        const tile_place place = place_of(*matrices, row_tile);
        decant_barrier_expect(barrier, STAGE_BYTES);
        decant_copy_boxes_once(box, &matrices->planes[place.matrix], 0,
                               row_stage * STAGE_PIECES * Kind::BITS * PIECE_LINES,
                               place.tile * (Kind::ROWS / DECANT_GROUP_ROWS), barrier);
    }

    /* Asks for as many stages as there are slots. */
    __device__ __forceinline__ void bring_first(void) const
    {
        for (int i = 0; i < COUNT && run.begin + i < run.end; i++)
            bring(run.begin + i, i);
    }

    /* Asks for the stage that takes the slot of the one before `now`, once everybody has that. */
    __device__ __forceinline__ void bring_ahead(int now) const
    {
        const int stage = now + COUNT - 1, target = slot == 0 ? COUNT - 1 : slot - 1;
        if (now > run.begin && stage < run.end && threadIdx.x == 0) {
            decant_barrier_wait(empty + target * 8, (target > slot ? round - 1 : round) & 1);
            bring(stage, target);
        }
        __syncwarp();
    }

    /* Asks for all stages as slots become free: what a thread does that does nothing else. Until the ring is
     * full for the first time, a stage is asked for once the one before it has come: x comes behind the codes
     * that are under way, and with more of them later. */
    __device__ __forceinline__ void bring_all(void)
    {
        for (int i = 0; i < COUNT && run.begin + i < run.end; i++) {
            if (i > 0)
                decant_barrier_wait(full + (i - 1) * 8, 0);
            bring(run.begin + i, i);
        }
        for (int stage = run.begin + COUNT; stage < run.end; stage++) {
            decant_barrier_wait(empty + slot * 8, round & 1);
            bring(stage, slot);
            next_slot();
        }
    }

    __device__ __forceinline__ void next_slot(void)
    {
        if (++slot == COUNT) {
            slot = 0;
            round++;
        }
    }

    __device__ __forceinline__ void wait(void) const
    {
        decant_barrier_wait(full + slot * 8, round & 1);
    }

    /* nothing: zero, made of all codes of the stage in registers, so that the slot is not left before they are
     * there. Reads that have been issued wait in a queue, behind others of the same threads, which an arrival
     * at a barrier passes by. */
    __device__ __forceinline__ void leave(uint32_t nothing)
    {
        if (threadIdx.x % DECANT_WARP == 0)
            decant_barrier_arrive(empty + slot * 8 + nothing);
        next_slot();
    }
};

/* ---- codes in registers ---- */

/* A lane's words of a slice: its row of every tile, all planes. */
template <typename Kind> struct slice_codes {
    uint2 words[Kind::TILES][Kind::BITS];
};

/* Where a lane's words of a warp's slice lie in a plane of the first tile. A stage lies by
 * group of rows, piece, plane and line, of two rows' pieces; it is swizzled over 128 bytes. */
template <int BITS> static __host__ __device__ __forceinline__ int codes_place(int warp, int lane, int bit)
{
    const int row = row_of_lane(lane), own_row = row % DECANT_GROUP_ROWS;
    const int first =
        ((row / DECANT_GROUP_ROWS * STAGE_PIECES + warp / PIECE_SLICES) * BITS + bit) * PIECE_LINES;
    const int line = first + own_row / LINE_ROWS,
              slice = own_row % LINE_ROWS * PIECE_SLICES + warp % PIECE_SLICES;
    return line * LINE_BYTES + (slice ^ line % 8) * SLICE_BYTES + lane % 4 / 2 * 8;
}

template <typename Kind>
static __device__ __forceinline__ void load_codes(slice_codes<Kind> &codes, const unsigned char *stage)
{
    constexpr int BITS = Kind::BITS,
                  TILE_BYTES = PAIR_TILE_ROWS * LINE_BYTES * BITS; /* whole rounds of the swizzle */
#pragma unroll
    for (int tile = 0; tile < Kind::TILES; tile++)
#pragma unroll
        for (int bit = 0; bit < BITS; bit++)
            codes.words[tile][bit] =
                *(const uint2 *)(stage + tile * TILE_BYTES +
                                 codes_place<BITS>(threadIdx.x / DECANT_WARP, threadIdx.x % DECANT_WARP, bit));
}

/* A word that is known once all codes are there. */
template <typename Kind> static __device__ __forceinline__ uint32_t mix_codes(const slice_codes<Kind> &codes)
{
    uint32_t mixed = 0;
#pragma unroll
    for (int tile = 0; tile < Kind::TILES; tile++)
#pragma unroll
        for (int bit = 0; bit < Kind::BITS; bit++)
            mixed ^= codes.words[tile][bit].x; /* which comes with the other */
    return mixed;
}

/* ---- for the host ---- */

/* Arranged planes as the copy engine reads them, in boxes of a stage of some rows: [groups of rows, lines,
 * words as BF16]. */
static inline decant_status map_planes(decant_backend *backend, const decant_packed_view &packed, int rows,
                                       CUtensorMap *map, decant_error *err)
{
    const uint64_t lines = (uint64_t)(packed.words / DECANT_PIECE_WORDS * packed.bits * PIECE_LINES);
    const decant_tensor_view view = {
        .data = packed.planes,
        .sizes = {STAGE_WORDS * 2, lines, (uint64_t)(packed.rows / DECANT_GROUP_ROWS)},
        .strides_bytes = {LINE_BYTES, lines * LINE_BYTES},
        .box = {STAGE_WORDS * 2, (uint32_t)(STAGE_PIECES * packed.bits * PIECE_LINES),
                (uint32_t)(rows / DECANT_GROUP_ROWS)},
    };
    return decant_cuda_map_tensor(backend, &view, map, err);
}

#endif
