/* The codes of a block of step_parities.cu: each warp's units, which come to it through a ring of its own in
 * shared memory, and what it counts of them. Of x it knows the planes, of levels their transforms. */
#ifndef DECANT_KERNELS_CUDA_STEP_CODES_CUH
#define DECANT_KERNELS_CUDA_STEP_CODES_CUH

#include "kernels/cuda/parity_codes.cuh"
#include "kernels/cuda/parity_counts.cuh"
#include "kernels/cuda/step_block.cuh"

/* Units in a warp's ring: as many as leave the multiprocessor to two blocks at LLaMA-7B's widths. */
template <int BITS, bool SPARSE> constexpr int RING_UNITS = (SPARSE ? 12 : 20) / BITS;
template <int BITS, bool SPARSE> constexpr int RING_BYTES = RING_UNITS<BITS, SPARSE> *UNIT_BYTES<BITS>;

/* Units of a warp that are under way at once while its ring is filled for the first time, where the block has
 * more units than its rings hold: this happens when the kernel ahead asks for its x, which has to come by the
 * same way. Short blocks may begin so late that they have no time to hold back, and with fewer bits no gain was
 * measured (tests/bench/DECODE.md). */
template <int BITS> constexpr int HELD_UNITS = BITS == 4 ? 2 : RING_UNITS<BITS, false>;

/* ---- copies ---- */

/* Where a warp's next unit is, and this lane's words of it. */
typedef struct unit_source {
    const uint32_t *words;
    int tile, unit;
} unit_source;

template <int BITS, planes_form FORM>
static __device__ __forceinline__ unit_source find_unit(const step_call &call, const step_share &share,
                                                        int tile, int unit)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const step_place place = step_place_of(call, share, TILE_ROWS, tile * TILE_ROWS + lane / 4);
    const int row = min(place.row, place.matrix.rows - 1);
    /* arranged rows of a tile may be of two matrices, each in a group of its own */
    const int in_group = FORM == PLANES_ARRANGED ? row % TILE_ROWS : 0;
    const int behind =
        FORM == PLANES_ARRANGED ? unit * ARRANGED_WORDS<BITS> + in_group * UNIT_WORDS : unit * UNIT_WORDS;
    return {
        (const uint32_t *)((const char *)place.matrix.weights + (int64_t)(row - in_group) * call.row_bytes) +
            behind + lane % 4 * LANE_WORDS,
        tile, unit};
}

/* Starts copying the unit, or zeros in its place, and moves on to the next of its tile. Where rows of planes
 * are not whole, words go one or two at a time. */
template <int BITS, planes_form FORM>
static __device__ __forceinline__ void fetch(const step_call &call, unit_source &source, uint32_t target,
                                             bool valid)
{
    const int plane_words = FORM == PLANES_ARRANGED ? (int)ARRANGED_PLANE_WORDS : call.plane_words;
    const int left =
        valid ? call.plane_words - (source.unit * UNIT_WORDS + (int)threadIdx.x % 4 * LANE_WORDS) : 0;
    const uint32_t *words = source.words;
    if constexpr (FORM != PLANES_BY_WORDS) {
#pragma unroll
        for (int bit = 0; bit < BITS; bit++, words += plane_words)
            decant_copy_line_16(target + bit * OPERAND_BYTES, words,
                                FORM == PLANES_ARRANGED ? valid : left > 0);
    } else if (plane_words % 2 == 0) {
#pragma unroll
        for (int bit = 0; bit < BITS; bit++, words += plane_words) {
            decant_copy_bytes_8(target + bit * OPERAND_BYTES, left > 0 ? words : source.words,
                                left > 0 ? 8 : 0);
            decant_copy_bytes_8(target + bit * OPERAND_BYTES + 8, left > 2 ? words + 2 : source.words,
                                left > 2 ? 8 : 0);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < BITS * LANE_WORDS; i++) {
            const int bit = i / LANE_WORDS, own = i % LANE_WORDS;
            decant_copy_4(target + bit * OPERAND_BYTES + own * 4,
                          own < left ? words + bit * plane_words + own : (const uint32_t *)call.x, own < left);
        }
    }
    source.words += FORM == PLANES_ARRANGED ? ARRANGED_WORDS<BITS> : (int)UNIT_WORDS;
    source.unit++;
}

/* From behind the last unit of a tile to the next tile. */
template <int BITS, planes_form FORM, bool ONE>
static __device__ __forceinline__ void leave_tile(const step_call &call, const step_share &share,
                                                  unit_source &source)
{
    if (source.unit == call.units)
        source =
            find_unit<BITS, FORM>(call, step_share_again<ONE>(share), min(source.tile + 1, share.tiles - 1), 0);
}

/* ---- a warp's run ---- */

/* A warp's units, from unit `unit` of tile `tile` on. */
typedef struct own_run {
    int tile, unit, count;
    unit_source source;      /* behind those that are under way */
    uint32_t ring, operands; /* this lane's: in shared memory */
    const float *coefficients;
    float *parts; /* the warp's, of the first tile */
} own_run;

/* The share is in shared memory, for registers are needed here. */
template <int BITS, bool SPARSE, bool ONE, planes_form FORM>
static __device__ __forceinline__ void add_run(const step_call &call, const step_share &share,
                                               const own_run &run)
{
    constexpr int AHEAD = RING_UNITS<BITS, SPARSE> - 1;
    int counts[1][(1 << BITS) - 1][4] = {};
    int to_fetch = run.count - AHEAD, left = run.count, unit = run.unit;
    unit_source source = run.source;
    uint32_t slot = run.ring, free_slot = run.ring + AHEAD * UNIT_BYTES<BITS>;
    uint32_t x = run.operands + unit * PRODUCTS * OPERAND_BYTES;
    const float *coefficients = run.coefficients + run.tile * TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
    float *parts = run.parts + run.tile * TILE_PARTS<1>;
    auto fetch_next = [&]() {
        fetch<BITS, FORM>(call, source, free_slot, to_fetch-- > 0);
        decant_copy_commit();
        free_slot = slot;
    };
#pragma unroll 1
    while (left > 0) {
        int units = min(call.units - unit, left); /* of this tile */
        left -= units;
#pragma unroll 1
        for (; units > 0; units--) {
            decant_copy_wait<AHEAD - 1>();
            if constexpr (SPARSE) { /* rings are so short that no copy can wait */
                leave_tile<BITS, FORM, ONE>(call, share, source);
                fetch_next();
            }
            const unit_words<BITS> words = load_unit<BITS>(slot);
            const uint4 first_x[1] = {load_shared(x)}, second_x[1] = {load_shared(x + OPERAND_BYTES)};
            if constexpr (!SPARSE)
                leave_tile<BITS, FORM, ONE>(call, share, source);
            add_product<BITS, 1>(counts, words, first_x, 0);
            /* Copies lie between the products: reads behind them would have to wait for them, and the products
             * are under way meanwhile. No branch is there, for which all these would have to end. */
            if constexpr (!SPARSE)
                fetch_next();
            add_product<BITS, 1>(counts, words, second_x, 1);
            x += PRODUCTS * OPERAND_BYTES;
            slot += UNIT_BYTES<BITS>;
            if (slot == run.ring + RING_BYTES<BITS, SPARSE>)
                slot = run.ring;
        }
        finish_tile<BITS, 1>(counts, coefficients, parts);
        coefficients += TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
        parts += TILE_PARTS<1>;
        x = run.operands;
        unit = 0;
    }
    decant_copy_wait<0>(); /* the last zeros: no copy may outlive the block */
}

#endif
