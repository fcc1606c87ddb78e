/* Boxes of codes and of x on their way to a block of grid_boxes.cu: two threads ask the copy engine for them,
 * each box as soon as its slot is free, and for x no sooner than it is rotated. Knows nothing of what codes and
 * x are for. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_COPIES_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_COPIES_CUH

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_boxes.cuh"

/* Box `box` of a step for every group of rows; each has slots of its own. */
template <typename Kind>
static __device__ __forceinline__ void ask_for_codes(const boxes_call &call, ring_place &ring, uint32_t slots,
                                                     const step_place &place, int box)
{
    const int unit = place.step * COLUMN_GROUPS;
    int tile = place.row_tile * (ROWS / ARRANGED_ROWS) + box * BOX_ARRANGED_TILES;
    ring_place own = ring;
#pragma unroll
    for (int group = 0; group < ROW_GROUPS; group++) {
        const uint32_t full = own.full + own.slot * 8;
        own.wait_empty();
        decant_barrier_expect(full, Kind::CODE_BYTES);
        decant_copy_boxes(slots + own.slot * Kind::CODE_BYTES, &call.codes, 0, unit, tile, full);
        own.slot += ring.slots;
        tile += WARP_TILES * TILE_ROWS / ARRANGED_ROWS;
    }
    ring.advance();
}

template <typename Kind>
static __device__ __forceinline__ void ask_for_x(const boxes_call &call, ring_place &ring, uint32_t slots,
                                                 int box)
{
    const uint32_t full = ring.full + ring.slot * 8;
    ring.wait_empty();
    decant_barrier_expect(full, Kind::X_BYTES);
    decant_copy_bytes(slots + ring.slot * Kind::X_BYTES,
                      (const unsigned char *)call.rotation.operands + (int64_t)box * Kind::X_BYTES,
                      Kind::X_BYTES, full);
    ring.advance();
}

/* By one thread: the codes of all items. */
template <typename Kind>
static __device__ __forceinline__ void ask_for_all_codes(const boxes_call &call, ring_place ring,
                                                         uint32_t slots, const block_items &items)
{
    step_place place = items.first;
    for (int i = 0; i < items.count; i++) {
        for (int box = 0; box < WARP_BOXES; box++)
            ask_for_codes<Kind>(call, ring, slots, place, box);
        place.advance(call);
    }
}

/* By one thread: x of all items, as soon as it is rotated. */
template <typename Kind>
static __device__ __forceinline__ void ask_for_all_x(const boxes_call &call, ring_place ring, uint32_t slots,
                                                     const block_items &items)
{
    enum { STEP_COLUMNS = COLUMN_GROUPS * ROW_LANES * Kind::OCTETS * OCTET };
    step_place place = items.first;
    int known = 0; /* runs before this one have been waited for */
    decant_wait_for_earlier_kernels();
    for (int i = 0; i < items.count; i++) {
        const int first = place.step * STEP_COLUMNS >> RUN_BITS,
                  last = ((place.step + 1) * STEP_COLUMNS - 1) >> RUN_BITS;
        if (i < call.steps) { /* later all runs are known */
            for (int run = max(first, known); run <= last; run++)
                wait_for_count(call.runs.rotated + run, (uint32_t)call.rotation.tokens);
            known = place.step + 1 == call.steps ? 0 : last + 1;
            asm volatile("fence.proxy.async;" ::: "memory"); /* x was written by ordinary stores */
        }
        for (int box = 0; box < Kind::STEP_X_BOXES; box++)
            ask_for_x<Kind>(call, ring, slots, place.step * Kind::STEP_X_BOXES + box);
        place.advance(call);
    }
    leave_rotated(call.runs);
}

#endif
