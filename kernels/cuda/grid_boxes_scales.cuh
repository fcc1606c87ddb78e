/* Scales of groups of columns in a block of grid_boxes.cu: each warp brings those of some rows to shared memory
 * a step ahead, and a lane takes those of its rows for one box of x. Knows nothing of codes, nor of whether
 * weights or sums are scaled. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_SCALES_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_SCALES_CUH

#include "kernels/cuda/grid_boxes.cuh"

/* Where scales of a row of the block's begin in shared memory, of a step; turn: counts the block's steps. */
template <typename Kind> static __device__ __forceinline__ __half *row_scales(__half *scales, int turn, int row)
{
    return scales + (turn % 2 * ROWS + row) * Kind::SCALE_PITCH;
}

/* Scales of a step for the rows of this warp's group of rows: each warp brings those of some rows for all. They
 * are here when all have waited for their copies and met. The last row again beyond it, the last group too:
 * codes and x are zeros there, or their sums are not stored. */
template <typename Kind>
static __device__ __forceinline__ void ask_for_scales(const boxes_call &call, __half *scales,
                                                      const step_place &place, int turn)
{
    enum { FOURS = Kind::STEP_STRETCHES / 4, WARP_ROWS = WARP_TILES * TILE_ROWS / COLUMN_GROUPS };
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    if (call.scales_at_once > 0) {
        const int own_groups = Kind::STEP_STRETCHES >> call.group_bits,
                  copies_bits = 31 - __clz(own_groups / call.scales_at_once);
        for (int i = lane; i < WARP_ROWS << copies_bits; i += DECANT_WARP) {
            const int row = warp * WARP_ROWS + (i >> copies_bits),
                      own = (i & ((1 << copies_bits) - 1)) * call.scales_at_once;
            const __half *source = call.scales +
                                   (int64_t)min(place.row_tile * ROWS + row, call.rows - 1) * call.groups +
                                   min(place.step * own_groups + own, call.groups - call.scales_at_once);
            const uint32_t target = decant_shared_address(row_scales<Kind>(scales, turn, row) + own);
            if (call.scales_at_once == 4)
                decant_copy_bytes_8(target, source, 8);
            else
                decant_copy_4(target, source, true);
        }
        decant_copy_commit();
        return;
    }
#pragma unroll
    for (int i = lane; i < WARP_ROWS * FOURS; i += DECANT_WARP) {
        const int row = warp * WARP_ROWS + i / FOURS, own = i % FOURS * 4,
                  first = place.step * Kind::STEP_STRETCHES + own;
        const __half *groups =
            call.scales + (int64_t)min(place.row_tile * ROWS + row, call.rows - 1) * call.groups;
        __half *target = row_scales<Kind>(scales, turn, row) + own;
        const int begin = stretch_group(first, call.group_factor, call.groups),
                  last = stretch_group(first + 3, call.group_factor, call.groups);
        if (last <= begin + 1) {
            const __half lower = groups[begin], upper = groups[last];
#pragma unroll
            for (int j = 0; j < 4; j++)
                target[j] = stretch_group(first + j, call.group_factor, call.groups) == begin ? lower : upper;
        } else
#pragma unroll
            for (int j = 0; j < 4; j++)
                target[j] = groups[stretch_group(first + j, call.group_factor, call.groups)];
    }
    decant_copy_commit();
}

/* The scales of a box of x, for each of a lane's rows. */
template <typename Kind> struct box_scales {
    __half of[Kind::GROUPED ? WARP_TILES : 1][HALVES];
};

template <typename Kind>
static __device__ __forceinline__ box_scales<Kind> take_scales(const boxes_call &call, __half *scales, int turn,
                                                               int box)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int first_row = warp / COLUMN_GROUPS * WARP_TILES * TILE_ROWS + lane / ROW_LANES;
    box_scales<Kind> own;
#pragma unroll
    for (int tile = 0; tile < WARP_TILES; tile++)
#pragma unroll
        for (int half = 0; half < HALVES; half++)
            own.of[tile][half] = row_scales<Kind>(
                scales, turn,
                first_row + tile * TILE_ROWS +
                    half * 8)[(warp % COLUMN_GROUPS * Kind::STEP_X_BOXES + box) >> call.group_bits];
    return own;
}

#endif
