/* What a block of grid_stream.cu works on, how its warps bring their codes, products and what becomes of their
 * sums; the whole is explained there. */
#ifndef DECANT_KERNELS_CUDA_GRID_STREAM_CUH
#define DECANT_KERNELS_CUDA_GRID_STREAM_CUH

#include "kernels/cuda/grid_arranged.cuh"
#include "kernels/cuda/grid_rotation.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    WARPS = 16,
    THREADS = WARPS * DECANT_WARP,
    END_TILES = 2,                /* of a warp, whose sums others complete: the first and the last */
    RING_BYTES = 64 << 10,        /* of a block; more under way at once makes memory slower */
    RING_BESIDE_BYTES = 32 << 10, /* of one that leaves room for another */
};

/* Pairs of numbers, two codes of four bits at a time: a byte as it is packed numbers an entry with what both
 * stand for. */
struct twin_decoder {
    static constexpr int STEPS = 8, STEP_CHUNKS = 1, ENTRY_BYTES = 8;
    uint32_t packed[DIGIT_PLANES];

    static __host__ __device__ __forceinline__ int index_bits(int)
    {
        return BYTE_PLANES;
    }

    __device__ __forceinline__ void look_up(uint32_t (&pairs)[1][4], int step, const point_table &table) const
    {
#pragma unroll
        for (int twin = 0; twin < 2; twin++)
            asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                         : "=r"(pairs[0][2 * twin]), "=r"(pairs[0][2 * twin + 1])
                         : "r"(__dp4a(packed[2 * twin + step % 2], (uint32_t)ENTRY_STRIDE << step / 2 * 8,
                                      table.address)));
    }

    static __device__ __forceinline__ uint2 entry(const float *points, int, int index)
    {
        const float *first = points + 2 * (index & 15), *second = points + 2 * (index >> 4);
        return make_uint2(half_pair(first[0], first[1]), half_pair(second[0], second[1]));
    }
};

static __device__ __forceinline__ void take_packed(twin_decoder &decoder,
                                                   const uint32_t (&packed)[DIGIT_PLANES])
{
#pragma unroll
    for (int k = 0; k < DIGIT_PLANES; k++)
        decoder.packed[k] = packed[k];
}

/* The way from codes to numbers that is quickest here. */
template <typename Decoder> struct stream_decoder {
    using type = Decoder;
};
template <> struct stream_decoder<point_decoder<2, 4>> {
    using type = twin_decoder;
};

/* How a kernel is built: the way from codes to numbers, the bits of a code, whether groups of columns have
 * scales of their own, and blocks that a multiprocessor can run at once. */
template <typename Decoder_, int BITS_, bool GROUPED_, int BLOCKS_> struct stream_kind {
    using Decoder = typename stream_decoder<Decoder_>::type;
    static constexpr int BITS = BITS_, BLOCKS = BLOCKS_;
    static constexpr bool GROUPED = GROUPED_;
    static constexpr int UNIT_BYTES = ARRANGED_LANES * BITS * 4;
    static constexpr int SLOT_UNITS =
        BYTE_PLANES / BITS * (BLOCKS == 1 ? 2 : 1); /* a slot: about a KB, alone two */
    static constexpr int SLOT_BYTES = SLOT_UNITS * UNIT_BYTES;
    static constexpr int SLOTS_BYTES = WARPS * SLOT_BYTES; /* one of every warp */
    static constexpr int STEPS = Decoder::STEPS;           /* octets of columns of a word */
    static constexpr int PAIRS = STEPS / 2;                /* of octets */
    static_assert(Decoder::STEP_CHUNKS == 1, "a step is an octet of columns");
};

/* The arguments of a launch. */
typedef struct stream_call {
    const unsigned char *codes;     /* words [tiles, units, lanes, bits] */
    const __half *scales, *offsets; /* [rows, groups] */
    bool scales_by_fours;           /* four of a row may be copied at once */
    bool late_scales;               /* those of groups lie where x is rotated and come afterwards */
    const float *points;
    const __nv_bfloat16 *x; /* [columns] */
    __nv_bfloat16 *y;       /* [rows] */
    int columns, groups;
    uint32_t group_factor; /* so that stretch_group finds groups */
    int tiles, units;      /* of eight rows; of a tile */
    int slots;             /* of a warp's ring */
    int early_slots;       /* of these, the ones that do not lie where x is rotated */
    int rotation_bits;
    float rotation_scale;
    uint64_t seed;
    bool accumulate;
} stream_call;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct stream_layout {
    int operands; /* x rotated, in the order of the products */
    int signs;    /* of 64 columns, a word of 64 bits */
    int scales;   /* F32 [rows of the block]; of groups F16, rows scale_pitch apart, offsets behind them */
    int ends;     /* F32 [warps, END_TILES, ARRANGED_ROWS]; before, what warps find of x */
    int barriers; /* [warps, slots] */
    int ring;     /* [slots, warps] */
    int work;     /* F32, while x is rotated; the later slots lie there too */
    int total;
} stream_layout;

static __host__ __device__ __forceinline__ int tiles_of_block(const stream_call &call, int blocks)
{
    return (call.tiles + blocks - 1) / blocks;
}

/* From the scales of a row to those of the next: an odd number of sixteen bytes, so that eight rows' lie in
 * different banks. */
static __host__ __device__ __forceinline__ int scale_pitch(int groups)
{
    return ((groups + 7) / 8 | 1) * 8;
}

template <typename Kind>
static __host__ __device__ __forceinline__ stream_layout stream_layout_of(const stream_call &call, int blocks)
{
    stream_layout layout;
    layout.operands = ENTRY_STRIDE << Kind::Decoder::index_bits(Kind::BITS);
    layout.signs = layout.operands + call.units * Kind::STEPS * ROW_LANES * VECTOR_BYTES;
    layout.scales = layout.signs + (call.columns + SIGN_COLUMNS - 1) / SIGN_COLUMNS * 8;
    const int rows = tiles_of_block(call, blocks) * ARRANGED_ROWS;
    const int scale_bytes = rows * (Kind::GROUPED ? scale_pitch(call.groups) * (call.offsets ? 4 : 2) : 4);
    layout.ends = layout.scales + (call.late_scales ? 0 : scale_bytes);
    layout.barriers = (layout.ends + WARPS * END_TILES * ARRANGED_ROWS * 4 + 7) / 8 * 8;
    layout.ring = (layout.barriers + WARPS * call.slots * 8 + 127) / 128 * 128;
    layout.work = layout.ring + call.early_slots * Kind::SLOTS_BYTES;
    int ring_end = layout.ring + call.slots * Kind::SLOTS_BYTES;
    if (call.late_scales) {
        layout.scales = ring_end;
        ring_end += scale_bytes;
    }
    const int work_end = layout.work + work_place(call.columns) * 4;
    layout.total = ring_end > work_end ? ring_end : work_end;
    return layout;
}

/* What a block and a warp of it work on: tiles, and units of these, all in order. */
typedef struct stream_share {
    int first_tile, tiles, items;
    int first, end; /* of the items, this warp's */
} stream_share;

template <typename Kind> static __device__ __forceinline__ stream_share share_of(const stream_call &call)
{
    const int block = (int)blockIdx.x, blocks = (int)gridDim.x, warp = (int)threadIdx.x / DECANT_WARP;
    stream_share share;
    share.first_tile = (int)((int64_t)call.tiles * block / blocks);
    share.tiles = (int)((int64_t)call.tiles * (block + 1) / blocks) - share.first_tile;
    share.items = share.tiles * call.units;
    share.first = share.items * warp / WARPS;
    share.end = share.items * (warp + 1) / WARPS;
    return share;
}

/* Of the warps that share `items`, the one that has this item. */
template <typename Kind> static __device__ __forceinline__ int warp_of(int item, int items)
{
    return ((item + 1) * WARPS - 1) / items;
}

/* ---- codes ---- */

/* A warp's ring as its lanes see it. */
typedef struct code_ring {
    uint32_t slots, barriers; /* addresses of the first */
    int asked;                /* the first item that was not asked for */
    int slot;                 /* that is read next */
    uint32_t parity;
} code_ring;

template <typename Kind>
static __device__ __forceinline__ uint32_t slot_address(const code_ring &ring, int slot)
{
    return ring.slots + slot * Kind::SLOTS_BYTES;
}

/* Where the codes of an item of the block lie. */
template <typename Kind>
static __device__ __forceinline__ const unsigned char *codes_of(const stream_call &call,
                                                                const stream_share &share, int item)
{
    return call.codes + ((int64_t)share.first_tile * call.units + item) * Kind::UNIT_BYTES;
}

/* The next items into this slot, if there are any and it is free. */
template <typename Kind>
static __device__ __forceinline__ void ask(const stream_call &call, const stream_share &share, code_ring &ring,
                                           int slot, bool is_free)
{
    if (threadIdx.x % DECANT_WARP == 0 && ring.asked < share.end && is_free) {
        const uint32_t bytes =
                           (uint32_t)(min(share.end - ring.asked, (int)Kind::SLOT_UNITS) * Kind::UNIT_BYTES),
                       barrier = ring.barriers + slot * 8;
        decant_barrier_expect(barrier, bytes);
        decant_copy_bytes(slot_address<Kind>(ring, slot), codes_of<Kind>(call, share, ring.asked), bytes,
                          barrier);
    }
    ring.asked += Kind::SLOT_UNITS;
}

template <typename Kind>
static __device__ __forceinline__ code_ring begin_ring(const stream_call &call, const stream_share &share,
                                                       unsigned char *slots, uint64_t *barriers)
{
    const int warp = (int)threadIdx.x / DECANT_WARP;
    code_ring ring = {decant_shared_address(slots + warp * Kind::SLOT_BYTES),
                      decant_shared_address(barriers + warp * call.slots), share.first, 0, 0};
    if (threadIdx.x % DECANT_WARP == 0) {
#pragma unroll 1
        for (int slot = 0; slot < call.slots; slot++)
            decant_barrier_create(ring.barriers + slot * 8, 1);
        decant_barrier_publish();
    }
#pragma unroll 1
    for (int slot = 0; slot < call.early_slots; slot++)
        ask<Kind>(call, share, ring, slot, true);
    const int later = min(share.end - ring.asked, (call.slots - call.early_slots) * Kind::SLOT_UNITS);
    if (threadIdx.x % DECANT_WARP == 0 && later > 0) /* for the later slots, as far as the L2 cache */
        decant_prefetch_bytes(codes_of<Kind>(call, share, ring.asked), (uint32_t)(later * Kind::UNIT_BYTES));
    __syncwarp();
    return ring;
}

/* The words of the next unit; `unit`: which of its slot. When its last one has been read the slot is asked for
 * anew. */
template <typename Kind>
static __device__ __forceinline__ void take_unit(uint32_t (&words)[Kind::BITS], const stream_call &call,
                                                 const stream_share &share, code_ring &ring, int &unit)
{
    if (unit == 0)
        decant_barrier_wait(ring.barriers + ring.slot * 8, ring.parity);
    read_packed<Kind::BITS>(words, slot_address<Kind>(ring, ring.slot) + unit * Kind::UNIT_BYTES);
    if (++unit < Kind::SLOT_UNITS)
        return;
    unit = 0;
    uint32_t seen = 0;
#pragma unroll
    for (int k = 0; k < Kind::BITS; k++)
        seen |= words[k];
    const bool is_free = words_have_come(seen);
    __syncwarp();
    ask<Kind>(call, share, ring, ring.slot, is_free);
    if (++ring.slot == call.slots) {
        ring.slot = 0;
        ring.parity ^= 1;
    }
}

/* ---- scales of groups ---- */

/* Scales or offsets of the block's rows into shared memory: asked for, and here when this thread has waited for
 * its copies and a barrier was passed. */
static __device__ __forceinline__ void ask_for_scales(const stream_call &call, const stream_share &share,
                                                      const __half *source, __half *own)
{
    const int lane = threadIdx.x % DECANT_WARP;
    for (int row = threadIdx.x / DECANT_WARP; row < share.tiles * ARRANGED_ROWS; row += WARPS) {
        const __half *from = source + (int64_t)(share.first_tile * ARRANGED_ROWS + row) * call.groups;
        __half *to = own + row * scale_pitch(call.groups);
        if (call.scales_by_fours)
            for (int group = lane * 4; group < call.groups; group += DECANT_WARP * 4)
                decant_copy_bytes_8(decant_shared_address(to + group), from + group, 8);
        else
            for (int group = lane; group < call.groups; group += DECANT_WARP)
                to[group] = from[group];
    }
}

/* Scales and, where there are, offsets. */
static __device__ __forceinline__ void ask_for_groups(const stream_call &call, const stream_share &share,
                                                      __half *own)
{
    ask_for_scales(call, share, call.scales, own);
    if (call.offsets)
        ask_for_scales(call, share, call.offsets, own + share.tiles * ARRANGED_ROWS * scale_pitch(call.groups));
    decant_copy_commit();
}

/* The block's scales, as far as the L2 cache, by one thread. */
static __device__ __forceinline__ void prefetch_scales(const stream_call &call, const stream_share &share)
{
    const __half *first = call.scales + (int64_t)share.first_tile * ARRANGED_ROWS * call.groups;
    if (threadIdx.x == 0 && share.tiles > 0 && (uintptr_t)first % 16 == 0)
        decant_prefetch_bytes(first, (uint32_t)(share.tiles * ARRANGED_ROWS * call.groups * 2));
}

/* Scale and offset of the stretch of a unit whose sums this lane has in the end. */
template <typename Kind>
static __device__ __forceinline__ __half2 scale_of(const stream_call &call, const stream_share &share,
                                                   const __half *scales, int tile, int unit)
{
    if constexpr (!Kind::GROUPED)
        return __half2();
    const int lane = threadIdx.x % DECANT_WARP, pitch = scale_pitch(call.groups);
    const int group =
        stretch_group(unit * Kind::PAIRS + lane % ROW_LANES % Kind::PAIRS, call.group_factor, call.groups);
    const __half *own = scales + (tile * ARRANGED_ROWS + lane / ROW_LANES) * pitch + group;
    return __halves2half2(*own, call.offsets ? own[share.tiles * ARRANGED_ROWS * pitch] : __ushort_as_half(0));
}

/* ---- products ---- */

/* sums += the products of a unit: of each pair of octets its own. Where groups of columns have scales, the
 * pairs are stretches of 64 columns, and lane t of a row adds what it has of the t-th under its scale to the
 * first of its sums. x: the address of this lane's vector of the unit: octet g of those of lane t, so that
 * column g of the other operand is octet g. */
template <typename Kind>
static __device__ __forceinline__ void add_unit(float (&sums)[Kind::PAIRS][4],
                                                const typename Kind::Decoder &decoder, __half2 scale,
                                                bool has_offset, const point_table &table, uint32_t x)
{
    uint4 own;
    float upper_sum = 0, lower_sum = 0;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(own.x), "=r"(own.y), "=r"(own.z), "=r"(own.w)
                 : "r"(x));
#pragma unroll
    for (int pair = 0; pair < Kind::PAIRS; pair++) {
        uint32_t upper[1][4], lower[1][4];
        decoder.look_up(upper, 2 * pair, table);
        decoder.look_up(lower, 2 * pair + 1, table);
        const uint32_t first[4] = {upper[0][0], lower[0][0], upper[0][1], lower[0][1]};
        const uint32_t second[4] = {upper[0][2], lower[0][2], upper[0][3], lower[0][3]};
        if constexpr (Kind::GROUPED) {
            float stretch[4] = {};
            decant_mma_halves(stretch, first, own.x, own.y);
            decant_mma_halves(stretch, second, own.z, own.w);
            const bool is_own = (int)threadIdx.x % ROW_LANES == pair;
            upper_sum = is_own ? stretch[0] : upper_sum;
            lower_sum = is_own ? stretch[3] : lower_sum;
        } else {
            decant_mma_halves(sums[pair], first, own.x, own.y);
            decant_mma_halves(sums[pair], second, own.z, own.w);
        }
    }
    if constexpr (Kind::GROUPED) {
        sums[0][0] += (upper_sum + lower_sum) * __low2float(scale);
        if (has_offset) {
            const uint32_t ones[4] = {HALF_ONES, HALF_ONES, HALF_ONES, HALF_ONES};
            float of_x[4] = {}; /* of octets 2t and 2t + 1, in every row */
            decant_mma_halves(of_x, ones, own.x, own.y);
            decant_mma_halves(of_x, ones, own.z, own.w);
            sums[0][0] += (of_x[0] + of_x[1]) * __high2float(scale);
        }
    }
}

/* ---- sums ---- */

template <typename Kind>
static __device__ __forceinline__ void store(const stream_call &call, const stream_share &share,
                                             const float *row_scales, float token_scale, int row, float sum)
{
    __nv_bfloat16 *y = call.y + (int64_t)share.first_tile * ARRANGED_ROWS + row;
    sum *= token_scale;
    if (!Kind::GROUPED)
        sum *= row_scales[row];
    *y = __float2bfloat16_rn(call.accumulate ? __bfloat162float(__ldcg(y)) + sum : sum);
}

/* A warp's sums of a tile: of one that it has whole to y, of others to `ends`; then they are zeros. */
template <typename Kind>
static __device__ __forceinline__ void finish_tile(const stream_call &call, const stream_share &share,
                                                   const float *row_scales, float token_scale,
                                                   float (&sums)[Kind::PAIRS][4], int tile, float *ends)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = (int)threadIdx.x / DECANT_WARP;
    const bool begins = share.first <= tile * call.units, ends_here = share.end >= (tile + 1) * call.units;
    float sum = 0;
#pragma unroll
    for (int pair = 0; pair < Kind::PAIRS; pair++) /* lane t has columns 2t and 2t + 1 */
        sum += __shfl_sync(0xffffffffu, Kind::GROUPED ? sums[0][0] : sums[pair][0] + sums[pair][3], pair,
                           ROW_LANES);
    if (lane % ROW_LANES == 0) {
        const int row = lane / ROW_LANES;
        if (begins && ends_here)
            store<Kind>(call, share, row_scales, token_scale, tile * ARRANGED_ROWS + row, sum);
        else
            ends[(warp * END_TILES + begins) * ARRANGED_ROWS + row] = sum;
    }
#pragma unroll
    for (int pair = 0; pair < Kind::PAIRS; pair++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            sums[pair][c] = 0;
}

/* The sums of tiles that several warps share, in the order of the warps. A tile is the last of the first of
 * them and the first of the others. */
template <typename Kind>
static __device__ __forceinline__ void join_ends(const stream_call &call, const stream_share &share,
                                                 const float *row_scales, float token_scale, const float *ends)
{
    for (int i = threadIdx.x; i < share.tiles * ARRANGED_ROWS; i += THREADS) {
        const int tile = i / ARRANGED_ROWS, row = i % ARRANGED_ROWS;
        const int begin = warp_of<Kind>(tile * call.units, share.items),
                  last = warp_of<Kind>((tile + 1) * call.units - 1, share.items);
        if (begin == last)
            continue;
        /* the first warp has the tile's beginning, the others do not */
        float sum = ends[(begin * END_TILES + 1) * ARRANGED_ROWS + row];
        for (int warp = begin + 1; warp <= last; warp++)
            if (share.items * warp / WARPS < share.items * (warp + 1) / WARPS) /* it has any */
                sum += ends[warp * END_TILES * ARRANGED_ROWS + row];
        store<Kind>(call, share, row_scales, token_scale, i, sum);
    }
}

#endif
