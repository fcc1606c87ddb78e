/* What a block of grid_tokens.cu works on and how it reads it, piece by piece; the whole is explained there. */
#ifndef DECANT_KERNELS_CUDA_GRID_BLOCK_CUH
#define DECANT_KERNELS_CUDA_GRID_BLOCK_CUH

#include "kernels/cuda/grid_points.cuh"
#include "kernels/cuda/grid_rotation.cuh"
#include "kernels/cuda/tensor_core.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * DECANT_WARP,
    HALVES = 2, /* of a tile: rows g and g + 8 of a lane */
    TILE_ROWS = 16,
    TOKENS_MAXIMUM = 32,
    TEAM_SLOTS = 2, /* for sums of tiles that teams share: those a team begins with and ends with */
};

/* How a kernel is built: the way from codes to numbers, tiles of eight tokens, whether groups of columns have
 * scales of their own, warps of a team, words of a plane that a lane takes at a time, and units in a warp's
 * ring; none: the next unit is read into registers. */
template <typename Decoder_, int PLANES_, int TILES_, bool GROUPED_, int TEAM_, int LANE_WORDS_, int RING_>
struct tokens_kind {
    using Decoder = Decoder_;
    static constexpr int PLANES = PLANES_, TILES = TILES_, TEAM = TEAM_, LANE_WORDS = LANE_WORDS_, RING = RING_;
    static constexpr bool GROUPED = GROUPED_;
    static constexpr int TEAMS = WARPS / TEAM;
    static constexpr int SUMS = TILES == 1 ? 2 : TILES; /* so that a tile's products need not wait for others */
    static constexpr int SLOT_BYTES = HALVES * PLANES * DECANT_WARP * LANE_WORDS * 4; /* of a ring: a unit */
};

/* The arguments of a launch. */
typedef struct tokens_call {
    const uint32_t *planes;         /* [rows, bits, words] */
    const __half *scales, *offsets; /* [rows, groups] */
    const float *points;
    int rows, columns, bits, words, dimension, group, groups;
    uint32_t stride;        /* of the table */
    int team;               /* warps of a team */
    int ring_bytes;         /* of all warps; 0: none */
    const __nv_bfloat16 *x; /* [tokens, columns], not rotated; NULL: rotated */
    const uint4 *operands;  /* rotated, as `layout` says */
    float *token_scales;    /* [tokens]: what undoes the power of two of a rotated token */
    operand_layout layout;
    __nv_bfloat16 *y;   /* [tokens, rows] */
    float *parts;       /* [runs, slices, tokens, rows of the longest run], where there are several slices */
    uint32_t *arrivals; /* [runs] zeros, and zeros again in the end */
    int tokens, slices, runs, run_rows; /* run_rows: of the longest */
    int rotation_bits;
    float rotation_scale;
    uint64_t seed;
    bool whole; /* words of planes can be read sixteen bytes at a time */
    bool accumulate;
} tokens_call;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct shared_layout {
    int operands;
    int slots;    /* F32 [teams, TEAM_SLOTS, tokens, TILE_ROWS] */
    int exchange; /* F32 [warps, 4 sums of each tile of tokens, lanes] */
    int scales;   /* F32 [rows of the run] */
    int work;     /* F32, of the token that is rotated here */
    int signs;    /* of eight of its columns, a byte */
    int ring;     /* [warps, RING] units */
    int total;
} shared_layout;

static __host__ __device__ __forceinline__ int strips_of(const tokens_call &call)
{
    return call.layout.units / call.team;
}

static __host__ __device__ __forceinline__ int slice_units(const tokens_call &call)
{
    return (strips_of(call) + call.slices - 1) / call.slices * call.team;
}

template <typename Decoder>
static __host__ __device__ __forceinline__ shared_layout shared_layout_of(const tokens_call &call)
{
    const int x_bytes = (int)(slice_units(call) * unit_vectors(call.layout)) * VECTOR_BYTES;
    shared_layout shared;
    shared.operands = (int)call.stride << Decoder::index_bits(call.bits);
    shared.slots = shared.operands + x_bytes;
    shared.exchange = shared.slots + WARPS / call.team * TEAM_SLOTS * TILE_ROWS * call.tokens * 4;
    shared.scales = shared.exchange + (call.team > 1 ? WARPS * call.layout.tiles * 4 * DECANT_WARP * 4 : 0);
    shared.work = shared.scales + (call.run_rows + 3) / 4 * 16;
    shared.signs = shared.work + (call.x ? work_place(call.columns) * 4 : 0);
    shared.ring = shared.signs + (call.x ? (call.columns / OCTET + 15) / 16 * 16 : 0);
    shared.total = shared.ring + call.ring_bytes;
    return shared;
}

/* What a block works on. */
typedef struct block_share {
    int first_row, rows, tiles;
    int first_strip, strips; /* of a tile: the units that a team takes at a time */
    int run;
} block_share;

static __device__ __forceinline__ block_share share_of(const tokens_call &call)
{
    const int slice = (int)blockIdx.x % call.slices, strips = strips_of(call);
    block_share share;
    share.run = (int)blockIdx.x / call.slices;
    share.first_row = (int)((int64_t)call.rows * share.run / call.runs);
    share.rows = (int)((int64_t)call.rows * (share.run + 1) / call.runs) - share.first_row;
    share.tiles = (share.rows + TILE_ROWS - 1) / TILE_ROWS;
    share.first_strip = strips * slice / call.slices;
    share.strips = strips * (slice + 1) / call.slices - share.first_strip;
    return share;
}

/* A team's place in the block's work. */
typedef struct strip_place {
    int tile, strip;
} strip_place;

static __device__ __forceinline__ void step(strip_place &place, int strips)
{
    if (++place.strip == strips) {
        place.strip = 0;
        place.tile++;
    }
}

/* The number of this warp's unit of a strip of the share. */
template <typename Kind> static __device__ __forceinline__ int unit_of(int strip)
{
    return strip * Kind::TEAM + (int)threadIdx.x / DECANT_WARP % Kind::TEAM;
}

/* ---- codes ---- */

/* A lane's words of a unit. */
template <typename Kind> struct unit_planes {
    uint32_t words[HALVES][Kind::LANE_WORDS][Kind::PLANES];
};

/* Words of a plane that are read once; the rest of their cache line comes along to the L2 cache, so that memory
 * is read in whole lines. */
static __device__ __forceinline__ void load_words(uint32_t (&words)[4], const uint32_t *source)
{
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(source));
}

static __device__ __forceinline__ void load_words(uint32_t (&words)[2], const uint32_t *source)
{
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "l"(source));
}

/* The row of a lane's half of a tile; the last row again beyond it, whose sums are not stored. */
static __device__ __forceinline__ int row_of(const block_share &share, int tile, int half)
{
    const int row = tile * TILE_ROWS + half * 8 + (int)threadIdx.x % DECANT_WARP / 4;
    return share.first_row + min(row, share.rows - 1);
}

template <typename Kind>
static __device__ __forceinline__ int first_word_of(const block_share &share, int strip)
{
    return (unit_of<Kind>(share.first_strip + strip) * ROW_LANES + (int)threadIdx.x % ROW_LANES) *
           Kind::LANE_WORDS;
}

/* A lane's words of a unit. Beyond the last word of a plane others are read in their place: the columns of x
 * are zeros there. */
template <typename Kind>
static __device__ __forceinline__ void load_unit(unit_planes<Kind> &planes, const tokens_call &call,
                                                 const block_share &share, const strip_place &place)
{
    const int word = first_word_of<Kind>(share, place.strip), last = call.words - 1;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint32_t *row = call.planes + (int64_t)row_of(share, place.tile, half) * call.bits * call.words;
        if (call.whole) {
            const uint32_t *source = row + min(word, last + 1 - Kind::LANE_WORDS);
#pragma unroll
            for (int bit = 0; bit < Kind::PLANES; bit++, source += call.words) {
                uint32_t words[Kind::LANE_WORDS] = {};
                if (bit < call.bits)
                    load_words(words, source);
#pragma unroll
                for (int i = 0; i < Kind::LANE_WORDS; i++)
                    planes.words[half][i][bit] = words[i];
            }
            continue;
        }
#pragma unroll
        for (int bit = 0; bit < Kind::PLANES; bit++, row += call.words)
#pragma unroll
            for (int i = 0; i < Kind::LANE_WORDS; i++)
                planes.words[half][i][bit] = bit < call.bits ? __ldg(row + min(word + i, last)) : 0;
    }
}

/* Where a lane's words of a plane lie in a slot of its warp's ring, in bytes. */
template <typename Kind> static __device__ __forceinline__ int slot_place(int half, int bit)
{
    return ((half * Kind::PLANES + bit) * DECANT_WARP + (int)threadIdx.x % DECANT_WARP) * Kind::LANE_WORDS * 4;
}

/* Starts copying a lane's words of a unit to a slot, as load_unit reads them where rows of planes are whole. */
template <typename Kind>
static __device__ __forceinline__ void copy_unit(const tokens_call &call, const block_share &share,
                                                 const strip_place &place, unsigned char *slot)
{
    static_assert(Kind::LANE_WORDS == 4, "copies of sixteen bytes");
    const int word = min(first_word_of<Kind>(share, place.strip), call.words - Kind::LANE_WORDS);
    const uint32_t target = decant_shared_address(slot);
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint32_t *source =
            call.planes + (int64_t)row_of(share, place.tile, half) * call.bits * call.words + word;
#pragma unroll
        for (int bit = 0; bit < Kind::PLANES; bit++, source += call.words)
            if (bit < call.bits)
                decant_copy_line_16(target + slot_place<Kind>(half, bit), source, true);
    }
}

/* What copy_unit brought. */
template <typename Kind>
static __device__ __forceinline__ void take_unit(unit_planes<Kind> &planes, const tokens_call &call,
                                                 const unsigned char *slot)
{
#pragma unroll
    for (int half = 0; half < HALVES; half++)
#pragma unroll
        for (int bit = 0; bit < Kind::PLANES; bit++) {
            uint4 four = make_uint4(0, 0, 0, 0);
            if (bit < call.bits)
                four = *(const uint4 *)(slot + slot_place<Kind>(half, bit));
            planes.words[half][0][bit] = four.x;
            planes.words[half][1][bit] = four.y;
            planes.words[half][2][bit] = four.z;
            planes.words[half][3][bit] = four.w;
        }
}

/* Asks for a strip of a tile ahead of its time: the lines of all rows and planes, one after the other for each
 * thread of the team. */
template <typename Kind>
static __device__ __forceinline__ void ask_for_strip(const tokens_call &call, const block_share &share,
                                                     const strip_place &place)
{
    const int word = (share.first_strip + place.strip) * Kind::TEAM * ROW_LANES * Kind::LANE_WORDS;
    for (int line = (int)threadIdx.x % (Kind::TEAM * DECANT_WARP); line < TILE_ROWS * call.bits;
         line += Kind::TEAM * DECANT_WARP) {
        const int row = share.first_row + min(place.tile * TILE_ROWS + line % TILE_ROWS, share.rows - 1);
        decant_prefetch(call.planes + ((int64_t)row * call.bits + line / TILE_ROWS) * call.words +
                        min(word, call.words - 1));
    }
}

/* ---- scales of groups ---- */

/* Scale and offset of each half's words of a unit. */
template <typename Kind> struct unit_scales {
    __half2 pairs[Kind::GROUPED ? HALVES : 1][Kind::GROUPED ? Kind::LANE_WORDS : 1];
};

template <typename Kind>
static __device__ __forceinline__ void load_scales(unit_scales<Kind> &scales, const tokens_call &call,
                                                   const block_share &share, const strip_place &place)
{
    if constexpr (Kind::GROUPED) {
        const int word = first_word_of<Kind>(share, place.strip);
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            const int64_t row = (int64_t)row_of(share, place.tile, half) * call.groups;
#pragma unroll
            for (int i = 0; i < Kind::LANE_WORDS; i++) {
                const int group = min((word + i) * 32 * call.dimension / call.group, call.groups - 1);
                scales.pairs[half][i] = __halves2half2(call.scales[row + group],
                                                       call.offsets ? call.offsets[row + group] : __half(0.0f));
            }
        }
    }
}

/* ---- products ---- */

/* sums += the products of one unit. x: this lane's first vector of the unit. */
template <typename Kind>
static __device__ __forceinline__ void add_unit(float (&sums)[Kind::SUMS][4], const unit_planes<Kind> &planes,
                                                const unit_scales<Kind> &scales, const tokens_call &call,
                                                const point_table &table, const uint4 *x)
{
    using Decoder = typename Kind::Decoder;
    const int tile_vectors = call.layout.places * ROW_LANES;
    const bool has_token = Kind::TILES > 1 || (int)threadIdx.x % DECANT_WARP < tile_vectors;
#pragma unroll
    for (int word = 0; word < Kind::LANE_WORDS; word++) {
        Decoder decoders[HALVES];
#pragma unroll
        for (int half = 0; half < HALVES; half++)
            decoders[half].gather(planes.words[half][word]);
#pragma unroll
        for (int step = 0; step < Decoder::STEPS; step++) {
            uint32_t pairs[HALVES][Decoder::STEP_CHUNKS][4];
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                decoders[half].look_up(pairs[half], step, table);
                if constexpr (Kind::GROUPED) {
#pragma unroll
                    for (int chunk = 0; chunk < Decoder::STEP_CHUNKS; chunk++)
                        scale_pairs(pairs[half][chunk], scales.pairs[half][word]);
                }
            }
#pragma unroll
            for (int chunk = 0; chunk < Decoder::STEP_CHUNKS; chunk++) {
                const uint32_t(&upper)[4] = pairs[0][chunk], (&lower)[4] = pairs[1][chunk];
                const uint32_t first[4] = {upper[0], lower[0], upper[1], lower[1]};
                const uint32_t second[4] = {upper[2], lower[2], upper[3], lower[3]};
#pragma unroll
                for (int tile = 0; tile < Kind::TILES; tile++, x += tile_vectors) {
                    uint4 four = make_uint4(0, 0, 0, 0);
                    if (has_token) /* the others' share of the access would take as long again */
                        four = *x;
                    decant_mma_halves(sums[tile], first, four.x, four.y);
                    decant_mma_halves(sums[Kind::TILES == 1 ? 1 : tile], second, four.z, four.w);
                }
            }
        }
    }
}

/* ---- the tokens ---- */

/* The one token, rotated into shared memory. `signs` is there. */
template <typename Kind>
static __device__ __forceinline__ float rotate_own(const tokens_call &call, uint4 *operands, float *work,
                                                   const unsigned char *signs)
{
    __shared__ int parts[WARPS];
    const int octets = call.columns / OCTET, all = octets_of(call.layout);
    const int own = begin_rotation(work, (const uint4 *)call.x, octets, call.rotation_bits,
                                   [&](int octet) { return (uint32_t)signs[octet]; });
    const int largest = block_largest(own, parts);
    finish_rotation(work, call.columns, call.rotation_bits);
    const int exponent = exponent_for(largest, call.rotation_bits);
    const float factor = power_of_two(exponent) * call.rotation_scale;
    for (int octet = threadIdx.x; octet < all; octet += THREADS)
        operands[vector_of(call.layout, octet, 0)] =
            octet < octets ? rotated_octet(work, octet, factor) : make_uint4(0, 0, 0, 0);
    return power_of_two(-exponent);
}

/* The rotated tokens' vectors of the block's slice. */
template <typename Kind>
static __device__ __forceinline__ void copy_operands(const tokens_call &call, const block_share &share,
                                                     uint4 *operands)
{
    const int64_t unit = unit_vectors(call.layout);
    const uint4 *source = call.operands + share.first_strip * call.team * unit;
    const int count = (int)(share.strips * call.team * unit);
    const uint32_t target = decant_shared_address(operands);
    for (int i = threadIdx.x; i < count; i += THREADS)
        decant_copy_16(target + i * VECTOR_BYTES, source + i, true);
    decant_copy_commit();
    decant_copy_wait<0>();
}

#endif
