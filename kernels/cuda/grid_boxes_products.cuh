/* What the warps of a block of grid_boxes.cu do that multiply: they take codes and x from their slots, look
 * codes up, add up the products, under the scales of groups where there are some, and hand the sums of each row
 * tile on. Knows nothing of how boxes are brought, nor of how blocks join their parts. */
#ifndef DECANT_KERNELS_CUDA_GRID_BOXES_PRODUCTS_CUH
#define DECANT_KERNELS_CUDA_GRID_BOXES_PRODUCTS_CUH

#include "kernels/cuda/grid_boxes.cuh"
#include "kernels/cuda/grid_boxes_scales.cuh"
#include "kernels/cuda/grid_boxes_sums.cuh"

/* ---- codes ---- */

/* A lane's codes of a tile of rows. units: the address of this column group's unit of its first eight rows;
 * seen: gets all bits of the words that were read. */
template <typename Kind>
static __device__ __forceinline__ void take_codes(typename Kind::Decoder (&decoders)[HALVES], uint32_t units,
                                                  uint32_t &seen)
{
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        uint32_t packed[Kind::BITS];
        read_packed<Kind::BITS>(packed, units + half * COLUMN_GROUPS * Kind::UNIT_BYTES);
        take_packed(decoders[half], packed);
#pragma unroll
        for (int k = 0; k < Kind::BITS; k++)
            seen |= packed[k];
    }
}

/* ---- products ---- */

/* This lane's operands of a tile of rows, of one octet of each lane. */
typedef struct weight_operands {
    uint32_t first[4], second[4];
} weight_operands;

template <typename Kind>
static __device__ __forceinline__ weight_operands look_up(const typename Kind::Decoder (&decoders)[HALVES],
                                                          int octet, const point_table &table)
{
    uint32_t upper[1][4], lower[1][4];
    decoders[0].look_up(upper, octet, table);
    decoders[1].look_up(lower, octet, table);
    return {{upper[0][0], lower[0][0], upper[0][1], lower[0][1]},
            {upper[0][2], lower[0][2], upper[0][3], lower[0][3]}};
}

template <typename Kind>
static __device__ __forceinline__ void scale_operands(weight_operands &operands, __half upper, __half lower)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const __half2 scale = __half2half2(i % 2 ? lower : upper);
        for (uint32_t *operand : {&operands.first[i], &operands.second[i]}) {
            __half2 pair;
            memcpy(&pair, operand, sizeof pair);
            pair = __hmul2(pair, scale);
            memcpy(operand, &pair, sizeof pair);
        }
    }
}

/* sums += the products of one octet of columns of every lane, whose weights scale(operands, tile of rows) may
 * scale. */
template <typename Kind, typename Scale>
static __device__ __forceinline__ void add_octet(float (&sums)[WARP_TILES][Kind::TILES][4],
                                                 const typename Kind::Decoder (&decoders)[WARP_TILES][HALVES],
                                                 int octet, const point_table &table, const uint4 *x,
                                                 Scale scale)
{
    uint4 own[Kind::TILES];
#pragma unroll
    for (int tile = 0; tile < Kind::TILES; tile++)
        own[tile] = x[tile * DECANT_WARP];
#pragma unroll
    for (int rows = 0; rows < WARP_TILES; rows++) {
        weight_operands operands = look_up<Kind>(decoders[rows], octet, table);
        scale(operands, rows);
#pragma unroll
        for (int tile = 0; tile < Kind::TILES; tile++)
            decant_mma_halves(sums[rows][tile], operands.first, own[tile].x, own[tile].y);
#pragma unroll
        for (int tile = 0; tile < Kind::TILES; tile++)
            decant_mma_halves(sums[rows][tile], operands.second, own[tile].z, own[tile].w);
    }
}

/* The same of a box of x, whose products are summed up by themselves and then scaled. */
template <typename Kind>
static __device__ __forceinline__ void
add_scaled_box(float (&sums)[WARP_TILES][Kind::TILES][4],
               const typename Kind::Decoder (&decoders)[WARP_TILES][HALVES], const box_scales<Kind> &scales,
               int box, const point_table &table, const unsigned char *x)
{
    float fresh[WARP_TILES][Kind::TILES][4] = {};
#pragma unroll
    for (int octet = 0; octet < BOX_OCTETS; octet++)
        add_octet<Kind>(fresh, decoders, box * BOX_OCTETS + octet, table,
                        (const uint4 *)(x + octet * (Kind::X_BYTES / BOX_OCTETS)),
                        [](weight_operands &, int) {});
#pragma unroll
    for (int rows = 0; rows < WARP_TILES; rows++) {
        const float upper = __half2float(scales.of[rows][0]), lower = __half2float(scales.of[rows][1]);
#pragma unroll
        for (int tile = 0; tile < Kind::TILES; tile++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                sums[rows][tile][c] += fresh[rows][tile][c] * (c < 2 ? upper : lower);
    }
}

/* sums += what offsets of a box of x amount to: they times the sums of x, which are products with ones. */
template <typename Kind>
static __device__ __forceinline__ void add_offsets(float (&sums)[WARP_TILES][Kind::TILES][4],
                                                   const boxes_call &call, const step_place &place, int box,
                                                   const unsigned char *x)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const uint32_t ones[4] = {HALF_ONES, HALF_ONES, HALF_ONES, HALF_ONES};
    const int first_row =
        place.row_tile * ROWS + warp / COLUMN_GROUPS * WARP_TILES * TILE_ROWS + lane / ROW_LANES;
    const int stretch = place.step * Kind::STEP_STRETCHES + warp % COLUMN_GROUPS * Kind::STEP_X_BOXES + box;
    const int group = stretch_group(stretch, call.group_factor, call.groups);
    float of_x[Kind::TILES][4] = {};
#pragma unroll
    for (int octet = 0; octet < BOX_OCTETS; octet++)
#pragma unroll
        for (int tile = 0; tile < Kind::TILES; tile++) {
            const uint4 own = ((const uint4 *)(x + octet * (Kind::X_BYTES / BOX_OCTETS)))[tile * DECANT_WARP];
            decant_mma_halves(of_x[tile], ones, own.x, own.y);
            decant_mma_halves(of_x[tile], ones, own.z, own.w);
        }
#pragma unroll
    for (int rows = 0; rows < WARP_TILES; rows++)
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const float offset =
                __half2float(call.offsets[(int64_t)min(first_row + rows * TILE_ROWS + half * 8, call.rows - 1) *
                                              call.groups +
                                          group]);
#pragma unroll
            for (int tile = 0; tile < Kind::TILES; tile++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    sums[rows][tile][2 * half + i] += offset * of_x[tile][2 * half + i];
        }
}

/* ---- a block's items ---- */

/* What a block works with. */
typedef struct block_tools {
    point_table table;
    ring_place codes, x;
    uint32_t code_slots; /* an address of shared memory */
    const unsigned char *x_slots;
    float4 *exchange, *cluster_parts;
    __half *scales; /* of groups: of this step and the next */
} block_tools;

template <typename Kind>
static __device__ __forceinline__ void multiply_items(const boxes_call &call, const block_items &items,
                                                      const tile_share (&shares)[BLOCK_SEGMENTS],
                                                      const block_tools &tools)
{
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int row_group = warp / COLUMN_GROUPS, column_group = warp % COLUMN_GROUPS;
    const int own_x = column_group * Kind::TILES * FRAGMENT_BYTES + lane * VECTOR_BYTES;
    const uint32_t code_slots =
        tools.code_slots + row_group * tools.codes.slots * Kind::CODE_BYTES + column_group * Kind::UNIT_BYTES;
    step_place place = items.first;
    bool is_first = true; /* no row tile has been finished */
    ring_place codes = tools.codes, x = tools.x;
    codes.full += row_group * codes.slots * 8;
    codes.empty += row_group * codes.slots * 8;
    float sums[WARP_TILES][Kind::TILES][4] = {};
    for (int item = 0; item < items.count; item++) {
        typename Kind::Decoder decoders[WARP_TILES][HALVES];
        step_place next = place;
        next.advance(call);
#pragma unroll
        for (int box = 0; box < WARP_BOXES; box++) {
            codes.wait_full();
            const uint32_t own = code_slots + codes.slot * Kind::CODE_BYTES;
            uint32_t seen = 0;
#pragma unroll
            for (int tile = 0; tile < BOX_TILES; tile++)
                take_codes<Kind>(decoders[box * BOX_TILES + tile],
                                 own + tile * HALVES * COLUMN_GROUPS * Kind::UNIT_BYTES, seen);
            codes.leave(words_have_come(seen));
            codes.advance();
        }
        if (Kind::GROUPED) {
            decant_copy_wait<0>();
            named_barrier(row_group + 1, COLUMN_GROUPS * DECANT_WARP);
            if (item + 1 < items.count)
                ask_for_scales<Kind>(call, tools.scales, next, item + 1);
        }
#pragma unroll
        for (int box = 0; box < Kind::STEP_X_BOXES; box++) {
            x.wait_full();
            const unsigned char *own = tools.x_slots + x.slot * Kind::X_BYTES + own_x;
            box_scales<Kind> scales;
            if constexpr (Kind::GROUPED)
                scales = take_scales<Kind>(call, tools.scales, item, box);
            if constexpr (Kind::SCALES_SUMS)
                add_scaled_box<Kind>(sums, decoders, scales, box, tools.table, own);
            else
#pragma unroll
                for (int i = 0; i < BOX_OCTETS; i++)
                    add_octet<Kind>(sums, decoders, box * BOX_OCTETS + i, tools.table,
                                    (const uint4 *)(own + i * (Kind::X_BYTES / BOX_OCTETS)),
                                    [&](weight_operands &operands, int rows) {
                                        if constexpr (Kind::GROUPED)
                                            scale_operands<Kind>(operands, scales.of[rows][0],
                                                                 scales.of[rows][1]);
                                    });
            if (Kind::GROUPED && call.offsets)
                add_offsets<Kind>(sums, call, place, box, own);
            x.leave();
            x.advance();
        }
        if (item + 1 == items.count || next.step == 0) {
            tile_share share = {(int)blockIdx.x, (int)blockIdx.x, 0}; /* of what lies between the segments */
            if (is_first || item + 1 == items.count)
                share = shares[is_first ? 0 : 1];
            finish_segment<Kind>(call, place.row_tile, share, sums, tools.exchange, tools.cluster_parts);
            is_first = false;
        }
        place = next;
    }
}

#endif
