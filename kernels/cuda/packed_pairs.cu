/* y = x ŵᵀ for several tokens on sparse tensor cores, codes of up to four bits, Hopper: two neighbouring
 * columns are looked up together (pair_tables.cuh), x is F16, in the order of the operands (token_fragments.h),
 * so that only y is rounded.
 *
 * The weights are the operand b, eight columns of a product. Lanes 4g and 4g + 2 give it terms of row 2g of a
 * tile, lanes 4g + 1 and 4g + 3 of row 2g + 1; so of every four terms two belong to an even row and two to an
 * odd one, and a product that takes the lower two of a's terms is that of the even rows, one that takes the
 * upper two that of the odd rows. x is the same for both. Thus two lanes share a row, where four would in a
 * dense product, and its table has to be there only twice. Up to eight tokens, one product does both kinds.
 *
 * A block has the tables of 64 rows. It takes stages of 1024 columns of these, which the tensor memory
 * accelerator brings into a ring, asked by a warp of its own where one is left; a warp takes a slice of 128
 * columns of a stage, of all rows: of the four words of a plane, lanes t = 0 and 1 take the first two, t = 2
 * and 3 the last two. The warps' sums are added up at the end of a tile of rows.
 *
 * What a warp reads of x comes from the L2 cache behind codes that were asked for before it. So it is asked for
 * a whole stage ahead where registers suffice; beside entries only where rows are long, since what is asked for
 * early stands in the way of what the entries need.
 *
 * The stages of all tiles of rows, one tile after the other, are cut into runs of the same length, one for each
 * multiprocessor; where there are blocks enough, no run has stages of two tiles. Blocks that share a tile leave
 * their sums in scratch, and the one that comes last adds them up in order.
 *
 * The sparse part is multiplied by some more warps of each block (pair_entries.cuh), while the others take the
 * codes, and added with the warps' sums; or before, by token_sparse.cu, and added at the end. The warps that do
 * not take codes hand some of their registers on to those that do. */

#include "kernels/cuda/arrivals.cuh"
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/pair_codes.cuh"
#include "kernels/cuda/pair_entries.cuh"
#include "kernels/cuda/sparse_core.cuh"
#include "kernels/cuda/token_fragments.h"
#include "kernels/cuda/token_sparse.h"

enum {
    OFFSETS_LINE = 32, /* of rows, in a cache line */
    PART_STRIDE = 80,  /* floats of a token in a warp's sums: stores of two tokens fall into different banks */
    QUADS = ROWS / 4,  /* rows that are added up together */
    SHARED_TILES = 2,  /* of a block with others: its first and its last */
    RING_ADDRESS = 2048, /* in shared memory, behind what the system and the barriers take */
    TABLES_ADDRESS = RING_ADDRESS + RING_BYTES,
    PLANES_MAXIMUM = 4,
    EARLY_STAGES = 16, /* of a row: beside entries, x of longer ones is asked for a whole stage ahead */
    HALVES = 2,        /* of a slice: the words of a plane that a lane has */
    HALF_TURNS = DECANT_FRAGMENTS_TURNS / HALVES,
    ENTRIES_BARRIER = CODES_BARRIER + 1, /* of the warps of the entries */
    OTHER_WARPS = 4, /* beside those of the codes: the entries', and one that asks for codes */
    BLOCK_THREADS = THREADS + OTHER_WARPS * DECANT_WARP,
};

/* Entries of many tokens take all of these warps; then the block's first thread asks for codes. */
template <int TOKENS> constexpr int ENTRY_WARPS = TOKENS > 16 ? OTHER_WARPS : OTHER_WARPS - 1;
template <int TOKENS> constexpr int ENTRY_LANES = ENTRY_WARPS<TOKENS> *DECANT_WARP;
template <int TOKENS, bool SPARSE> constexpr bool ASKS_APART = !SPARSE || ENTRY_WARPS<TOKENS> < OTHER_WARPS;

/* Registers of a thread on average, of the codes' threads and of the others. They leave room for a block of the
 * kernel that makes fragments for the next product. */
constexpr int REGISTERS = 160;
template <int BITS, int TOKENS, bool SPARSE>
constexpr int CODES_REGISTERS = !SPARSE                    ? 224
                                : BITS == 4 && TOKENS > 16 ? 208
                                                           : 200;
template <int BITS, int TOKENS, bool SPARSE>
constexpr int OTHERS_REGISTERS = 3 * REGISTERS - 2 * CODES_REGISTERS<BITS, TOKENS, SPARSE>;

/* Whether the codes' warps have registers for the x of two stages. */
template <int TOKENS> constexpr bool HOLDS_TWO_STAGES = TOKENS <= 16;

/* Or for the scales of what a thread adds up. */
template <int TOKENS, bool SPARSE> constexpr bool KEEPS_SCALES = !SPARSE || TOKENS <= 16;

/* Slots of the ring. At four bits one fewer than there is room for: x comes sooner so, and entries, which
 * tables leave no room for otherwise, have its place. */
template <int BITS> constexpr int OWN_SLOTS = SLOTS<BITS> - (BITS == 4 ? 1 : 0);

/* What a number of tokens is padded to, and how products are made of them. */
template <int TOKENS> constexpr int OPERANDS = TOKENS > DECANT_FRAGMENTS_OPERAND_TOKENS ? 2 : 1;
template <int TOKENS> constexpr int KINDS = TOKENS > 8 ? 2 : 1; /* of rows: even and odd, or both at once */
template <int TOKENS> using tile_sums = float[TILES][OPERANDS<TOKENS>][KINDS<TOKENS>][4];

/* Groups of four rows of a token that a thread adds up at the end of a tile, and their tokens' scales. */
template <int TOKENS> constexpr int THREAD_QUADS = (TOKENS * QUADS + THREADS - 1) / THREADS;
template <int TOKENS> using thread_scales = float[THREAD_QUADS<TOKENS>];

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

/* ---- x in registers ---- */

/* A lane's fragments of half a slice. */
template <int TOKENS> struct half_fragments {
    uint4 operands[HALF_TURNS][2][OPERANDS<TOKENS>];
};

/* Asked for once the value `behind` has come, which does not matter: an address that depends on it makes the
 * loads wait, and a warp then does not wait for these where it needs what it asked for before. */
template <int TOKENS>
static __device__ __forceinline__ void load_fragments(half_fragments<TOKENS> &x, const pairs_call &call,
                                                      int slice, int half, uint32_t behind = 0)
{
    constexpr int COUNT = HALF_TURNS * 2 * OPERANDS<TOKENS>;
    const uint4 *source = call.x.fragments + (int64_t)(slice * HALVES + half) * COUNT * DECANT_WARP +
                          (threadIdx.x % DECANT_WARP + (behind & call.zero));
#pragma unroll
    for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
        for (int part = 0; part < 2; part++)
#pragma unroll
            for (int operand = 0; operand < OPERANDS<TOKENS>; operand++, source += DECANT_WARP)
                x.operands[turn][part][operand] = *source;
}

/* The word of a half that was asked for last. */
template <int TOKENS> static __device__ __forceinline__ uint32_t last_word(const half_fragments<TOKENS> &x)
{
    return x.operands[HALF_TURNS - 1][1][OPERANDS<TOKENS> - 1].w;
}

/* ---- products ---- */

/* sums += half a slice of all tiles. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void multiply_half(tile_sums<TOKENS> &sums, const slice_codes<BITS> &codes,
                                                     int half, const half_fragments<TOKENS> &x)
{
    const uint32_t lane_bytes = threadIdx.x % DECANT_WARP * 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        uint32_t planes[BITS], numbers[4];
#pragma unroll
        for (int bit = 0; bit < BITS; bit++)
            planes[bit] = half ? codes.words[tile][bit].y : codes.words[tile][bit].x;
        number_pairs<BITS>(numbers, planes);
#pragma unroll
        for (int turn = 0; turn < HALF_TURNS; turn++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                uint32_t weights[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    weights[i] = look_up<BITS, TABLES_ADDRESS>(tile, numbers[i / 2 * 2 + part],
                                                               turn * 2 + i % 2, lane_bytes);
#pragma unroll
                for (int operand = 0; operand < OPERANDS<TOKENS>; operand++)
#pragma unroll
                    for (int kind = 0; kind < KINDS<TOKENS>; kind++)
                        decant_sparse_mma(sums[tile][operand][kind], x.operands[turn][part][operand], weights,
                                          KINDS<TOKENS> == 1 ? DECANT_BOTH_TERMS
                                          : kind == 0        ? DECANT_LOWER_TERMS
                                                             : DECANT_UPPER_TERMS);
            }
    }
}

/* ---- the end of a tile of rows ---- */

/* A warp's sums to shared memory, [tokens][PART_STRIDE]: rows 4t … 4t + 3 of a tile are in one lane. */
template <int TOKENS>
static __device__ __forceinline__ void leave_sums(const tile_sums<TOKENS> &sums, float *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, g = lane / 4, t = lane % 4;
    float *own = parts + (int)(threadIdx.x / DECANT_WARP) * TOKENS * PART_STRIDE + 4 * t;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int operand = 0; operand < OPERANDS<TOKENS>; operand++) {
            const auto &kinds = sums[tile][operand];
            float *target = own + (operand * 16 + g) * PART_STRIDE + tile * PAIR_TILE_ROWS;
            if constexpr (KINDS<TOKENS> == 1) {
                *(float4 *)target = make_float4(kinds[0][0], kinds[0][2], kinds[0][1], kinds[0][3]);
            } else {
#pragma unroll
                for (int second = 0; second < 2; second++) /* token g, then g + 8 */
                    *(float4 *)(target + second * 8 * PART_STRIDE) =
                        make_float4(kinds[0][2 * second], kinds[KINDS<TOKENS> - 1][2 * second],
                                    kinds[0][2 * second + 1], kinds[KINDS<TOKENS> - 1][2 * second + 1]);
            }
        }
}

[[maybe_unused]] static __device__ __forceinline__ void add(float4 &sum, const float4 &more)
{
    sum.x += more.x;
    sum.y += more.y;
    sum.z += more.z;
    sum.w += more.w;
}

[[maybe_unused]] static __device__ __forceinline__ void store(const pairs_call &call, int row, int token,
                                                              const float4 &four)
{
    if (token >= call.tokens)
        return;
    const float sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row + i >= call.packed.rows)
            return;
        const int64_t place = (int64_t)token * call.packed.rows + row + i;
        float sum = call.sparse ? sums[i] + call.sparse[place] : sums[i];
        if (call.accumulate)
            sum += __bfloat162float(call.y[place]);
        call.y[place] = __float2bfloat16_rn(sum);
    }
}

/* Sums [tokens of the kernel, ROWS] of a tile that a block shares with others. */
template <int TOKENS>
static __device__ __forceinline__ float4 *part_of(const pairs_call &call, int block, int row_tile)
{
    const int first = block * call.run / call.row_stages;
    return (float4 *)call.parts + (int64_t)(block * SHARED_TILES + (row_tile > first)) * TOKENS * QUADS;
}

/* The blocks that share a tile. */
typedef struct tile_blocks {
    int first, last;
} tile_blocks;

[[maybe_unused]] static __device__ __forceinline__ tile_blocks blocks_of(const pairs_call &call, int row_tile)
{
    const int begin = row_tile * call.row_stages;
    return {begin / call.run, (begin + call.row_stages - 1) / call.run};
}

[[maybe_unused]] static __device__ __forceinline__ int block_count(const pairs_call &call, int row_tile)
{
    const tile_blocks blocks = blocks_of(call, row_tile);
    return blocks.last - blocks.first + 1;
}

/* Of a block with several tiles the first may be shared with blocks before it, the last with blocks behind it.
 * Those behind take that tile first, and mostly have left their sums long before; so nobody waits for anybody.
 */
typedef struct shared_tiles {
    bool first_left_last; /* this block was the last to leave its sums of the first */
    bool others_left;     /* all others have left theirs of the last */
} shared_tiles;

/* The warps of the entries and those of the codes do not wait for each other but for these, tile after tile. */
typedef struct entry_barriers {
    uint64_t there; /* the sums of a tile's entries are there */
    uint64_t read;  /* and have been read */
} entry_barriers;

/* Four sums of all blocks that share a tile, added up in the order of the blocks. own: this block's, or NULL
 * where it has left them. */
template <int TOKENS>
static __device__ __forceinline__ float4 sum_of_blocks(const pairs_call &call, int row_tile, int i,
                                                       const float4 *own)
{
    const tile_blocks blocks = blocks_of(call, row_tile);
    float4 sum = make_float4(0, 0, 0, 0);
    for (int block = blocks.first; block <= blocks.last; block++)
        add(sum, own && block == (int)blockIdx.x ? *own : __ldcg(part_of<TOKENS>(call, block, row_tile) + i));
    return sum;
}

/* Adds the warps' sums up, in `parts`, where the tables were; barriers before and after. shared: with other
 * blocks, of which others_left tells, in shared memory. */
template <int TOKENS, bool SPARSE>
static __device__ __forceinline__ void
finish_tile(const pairs_call &call, tile_sums<TOKENS> &sums, const thread_scales<TOKENS> &scales, int row_tile,
            float *parts, const block_entries<TOKENS> &entries, entry_barriers &met, uint32_t parity,
            bool shared, const bool &others_left)
{
    float4 own[THREAD_QUADS<TOKENS>];
#pragma unroll
    for (auto &tile : sums) /* what has been looked up for them, has been before the barrier */
#pragma unroll
        for (auto &operand : tile)
#pragma unroll
            for (auto &kind : operand)
                decant_settle(kind);
    codes_meet(); /* nobody looks up any more */
    leave_sums<TOKENS>(sums, parts);
    if constexpr (SPARSE) {
        decant_barrier_wait(decant_shared_address(&met.there), parity);
#pragma unroll
        for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
            const int i = (int)threadIdx.x + k * THREADS;
            if (i < TOKENS * QUADS)
                own[k] = entry_sums_of(entries, i / QUADS, i % QUADS * 4);
        }
        __syncwarp();
        if (threadIdx.x % DECANT_WARP == 0)
            decant_barrier_arrive(decant_shared_address(&met.read));
    }
    codes_meet();
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
        const int i = (int)threadIdx.x + k * THREADS, token = i / QUADS, quad = i % QUADS;
        if (i >= TOKENS * QUADS)
            break;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            add(sum, *(const float4 *)(parts + (warp * TOKENS + token) * PART_STRIDE + 4 * quad));
        const float scale = KEEPS_SCALES<TOKENS, SPARSE> ? scales[k] : call.x.scales[token];
        sum = make_float4(sum.x * scale, sum.y * scale, sum.z * scale, sum.w * scale);
        if constexpr (SPARSE)
            add(own[k], sum);
        else
            own[k] = sum;
    }
    codes_meet();
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<TOKENS>; k++) {
        const int i = (int)threadIdx.x + k * THREADS;
        if (i >= TOKENS * QUADS)
            break;
        if (shared && !others_left)
            part_of<TOKENS>(call, blockIdx.x, row_tile)[i] = own[k];
        else
            store(call, row_tile * ROWS + i % QUADS * 4, i / QUADS,
                  shared ? sum_of_blocks<TOKENS>(call, row_tile, i, &own[k]) : own[k]);
    }
    if (shared && others_left && threadIdx.x == 0)
        call.arrivals[row_tile] = 0;
}

/* What all blocks left that share a tile. */
template <int TOKENS> static __device__ __forceinline__ void add_parts(const pairs_call &call, int row_tile)
{
    for (int i = threadIdx.x; i < TOKENS * QUADS; i += THREADS)
        store(call, row_tile * ROWS + i % QUADS * 4, i / QUADS, sum_of_blocks<TOKENS>(call, row_tile, i, NULL));
}

/* ---- the kernel ---- */

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

/* What the warps of the codes do. */
template <int BITS, int TOKENS, bool SPARSE, bool EARLY>
static __device__ __forceinline__ void take_codes(const pairs_call &call, unsigned char *shared,
                                                  code_ring<BITS, OWN_SLOTS<BITS>> &ring, entry_barriers &met)
{
    __shared__ shared_tiles known;
    using layout = shared_layout<BITS, TOKENS, SPARSE>;
    unsigned char *tables = shared + layout::TABLES_AT;
    const int warp = threadIdx.x / DECANT_WARP;
    const stage_run run = run_of_block(call);
    const int end = codes_end(call, run);
    own_levels<BITS, WARPS> levels;
    half_fragments<TOKENS> x[HALVES];
    thread_scales<TOKENS> scales;
    const auto load_x = [&](half_fragments<TOKENS> &target, int half, int stage_of_row, uint32_t behind) {
        load_fragments<TOKENS>(target, call, stage_of_row * STAGE_SLICES + warp, half, behind);
    };

    if (decant_shared_address(shared) != RING_ADDRESS)
        __trap(); /* what the compiler puts before it would have changed */
    if (threadIdx.x == 0)
        known = {};
    const int first_tile = run.begin / call.row_stages, last_tile = (run.end - 1) / call.row_stages;
    const bool begins_within = run.begin > first_tile * call.row_stages,
               ends_within = run.end < (last_tile + 1) * call.row_stages;
    int row_tile = first_tile, row_stage = run.begin % call.row_stages;
    load_levels<BITS, WARPS>(levels, call.packed, row_tile * ROWS);
    fill_tables<BITS, WARPS>(levels, tables);
    decant_wait_for_earlier_kernels();
    load_x(x[0], 0, row_stage, 0);
    if constexpr (EARLY)
        load_x(x[1], 1, row_stage, 0);
#pragma unroll
    for (int k = 0; k < THREAD_QUADS<TOKENS>; k++)
        scales[k] = call.x.scales[min(((int)threadIdx.x + k * THREADS) / QUADS, TOKENS - 1)];
    for (int stage = run.begin; stage < end; row_tile++) {
        const int tile_end = min((row_tile + 1) * call.row_stages, end);
        tile_sums<TOKENS> sums = {};
        if (tile_end < end)
            prefetch_levels<BITS>(call.packed, (row_tile + 1) * ROWS, ROWS);
        codes_meet(); /* the tables are there, and the sums of the tile before left */
        if (threadIdx.x == 0 && begins_within && row_tile == first_tile + 1)
            known.first_left_last =
                decant_leaves_last(call.arrivals + first_tile, block_count(call, first_tile));
        if (threadIdx.x == 0 && ends_within && row_tile == last_tile && last_tile > first_tile)
            known.others_left = decant_others_came(call.arrivals + last_tile, block_count(call, last_tile));
#pragma unroll 1
        for (; stage < tile_end; stage++) {
            slice_codes<BITS> codes;
            [[maybe_unused]] half_fragments<TOKENS> next_x[HALVES];
            const int own_stage = row_stage;
            row_stage = row_stage + 1 < call.column_stages ? row_stage + 1 : 0; /* of the stage after this */
            if constexpr (!ASKS_APART<TOKENS, SPARSE>)
                ring.bring_ahead(stage);
            if constexpr (EARLY) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    load_x(next_x[half], half, row_stage, 0);
            } else {
                load_x(x[1], 1, own_stage, last_word(x[0]));
            }
            ring.wait();
            load_codes<BITS>(codes, shared + ring.slot * STAGE_BYTES<BITS>);
            __syncwarp();
            ring.leave(mix_codes<BITS>(codes) & call.zero);
            multiply_half<BITS, TOKENS>(sums, codes, 0, x[0]);
            if constexpr (!EARLY)
                load_x(x[0], 0, row_stage, last_word(x[1]));
            multiply_half<BITS, TOKENS>(sums, codes, 1, x[1]);
            if constexpr (EARLY) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    x[half] = next_x[half];
            }
        }
        if (stage < end)
            load_levels<BITS, WARPS>(levels, call.packed, (row_tile + 1) * ROWS);
        finish_tile<TOKENS, SPARSE>(
            call, sums, scales, row_tile, (float *)tables,
            *(const block_entries<TOKENS> *)(shared + layout::ENTRIES_AT), met, (row_tile - first_tile) % 2,
            (begins_within && row_tile == first_tile) || (ends_within && row_tile == last_tile),
            known.others_left);
        if (stage < end)
            fill_tables<BITS, WARPS>(levels, tables);
    }
    if (known.first_left_last)
        add_parts<TOKENS>(call, first_tile);
    const bool left = ends_within || (begins_within && last_tile == first_tile);
    if (left && !known.others_left &&
        decant_comes_last(call.arrivals + last_tile, block_count(call, last_tile), codes_meet))
        add_parts<TOKENS>(call, last_tile);
}

/* The entries of a tile are cut as its stages are: those from here on belong to the stages from `stage` on.
 * first, behind: the tile's. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t cut_of(const pairs_call &call, uint32_t first,
                                                                   uint32_t behind, int stage)
{
    enum { SECTOR_ENTRIES = 8 };
    const uint32_t cut = first + (behind - first) * (uint32_t)stage / (uint32_t)call.row_stages;
    return stage == call.row_stages ? behind : max(first, cut / SECTOR_ENTRIES * SECTOR_ENTRIES);
}

/* What the warps of the entries do. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void take_entries(const pairs_call &call, unsigned char *shared,
                                                    uint32_t (*row_offsets)[ROWS + 1], entry_barriers &met)
{
    const stage_run run = run_of_block(call);
    using layout = shared_layout<BITS, TOKENS, true>;
    const int lane = (int)threadIdx.x - THREADS;
    block_entries<TOKENS> &room = *(block_entries<TOKENS> *)(shared + layout::ENTRIES_AT);
    const auto offset_of = [&](int row) { return call.packed.row_offsets[min(row, call.packed.rows)]; };
    const int first_tile = run.begin / call.row_stages, last_tile = (run.end - 1) / call.row_stages;
    for (int row_tile = first_tile; row_tile <= last_tile; row_tile++) {
        uint32_t *offsets = row_offsets[(row_tile - first_tile) % 2];
        const int tile_begin = row_tile * call.row_stages, first_row = row_tile * ROWS;
        const uint32_t first = offset_of(first_row), behind = offset_of(first_row + ROWS),
                       own = offset_of(first_row + min(lane, (int)ROWS));
        if (lane <= ROWS)
            offsets[lane] = min(max(own, cut_of(call, first, behind, max(run.begin - tile_begin, 0))),
                                cut_of(call, first, behind, min(run.end - tile_begin, call.row_stages)));
        wait_at_barrier<ENTRIES_BARRIER, ENTRY_LANES<TOKENS>>();
        tile_entries<TOKENS, ENTRY_LANES<TOKENS>, ROWS> entries(room, call.packed.sparse_entries, call.turned,
                                                                offsets, lane);
        if (row_tile < last_tile && lane <= ROWS / OFFSETS_LINE)
            decant_prefetch(call.packed.row_offsets +
                            min(first_row + ROWS + lane * OFFSETS_LINE, call.packed.rows));
        if (row_tile == first_tile)
            decant_wait_for_earlier_kernels();
        entries.start();
        if (row_tile > first_tile) /* by now the first of this tile are under way */
            decant_barrier_wait(decant_shared_address(&met.read), (row_tile - first_tile - 1) % 2);
        entries.multiply();
        __syncwarp();
        if (lane % DECANT_WARP == 0)
            decant_barrier_arrive(decant_shared_address(&met.there));
    }
}

template <int BITS, int TOKENS, bool SPARSE, bool EARLY>
__global__ void __maxnreg__(REGISTERS) packed_pairs_kernel(const __grid_constant__ pairs_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) unsigned char shared[];
        __shared__ code_barriers<OWN_SLOTS<BITS>> barriers;
        __shared__ uint32_t row_offsets[2][ROWS + 1];
        __shared__ entry_barriers met;
        const stage_run run = run_of_block(call);
        code_ring<BITS, OWN_SLOTS<BITS>> ring;
        decant_let_next_kernel_begin();
        if (SPARSE && threadIdx.x == 0) {
            decant_barrier_create(decant_shared_address(&met.there), ENTRY_WARPS<TOKENS>);
            decant_barrier_create(decant_shared_address(&met.read), WARPS);
        }
        ring.create(barriers, shared, &call.planes, {run.begin, codes_end(call, run), run.row_stages});
        if (!ASKS_APART<TOKENS, SPARSE> && threadIdx.x == 0)
            ring.bring_first();
        __syncthreads();
        if (threadIdx.x >= THREADS) {
            decant_registers_lower<OTHERS_REGISTERS<BITS, TOKENS, SPARSE>>();
            if (SPARSE && threadIdx.x < THREADS + ENTRY_LANES<TOKENS>)
                take_entries<BITS, TOKENS>(call, shared, row_offsets, met);
            else if (threadIdx.x == BLOCK_THREADS - DECANT_WARP)
                ring.bring_all();
        } else {
            decant_registers_raise<CODES_REGISTERS<BITS, TOKENS, SPARSE>>();
            take_codes<BITS, TOKENS, SPARSE, EARLY>(call, shared, ring, met);
        }
    }
}

/* ---- the calls ---- */

template <int BITS, int TOKENS, bool SPARSE, bool EARLY>
static cudaError_t launch(decant_cuda_context *context, const pairs_call &call, int blocks)
{
    return decant_launch_early(context, packed_pairs_kernel<BITS, TOKENS, SPARSE, EARLY>, (unsigned)blocks,
                               BLOCK_THREADS, shared_layout<BITS, TOKENS, SPARSE>::TOTAL, call);
}

template <int BITS, int TOKENS>
static cudaError_t launch_tokens(decant_cuda_context *context, const pairs_call &call, int blocks)
{
    constexpr bool EARLY = HOLDS_TWO_STAGES<TOKENS>;
    return !call.turned                         ? launch<BITS, TOKENS, false, EARLY>(context, call, blocks)
           : call.column_stages <= EARLY_STAGES ? launch<BITS, TOKENS, true, false>(context, call, blocks)
                                                : launch<BITS, TOKENS, true, EARLY>(context, call, blocks);
}

template <int BITS>
static cudaError_t launch_width(decant_cuda_context *context, const pairs_call &call, int blocks)
{
    return call.tokens <= 8    ? launch_tokens<BITS, 8>(context, call, blocks)
           : call.tokens <= 16 ? launch_tokens<BITS, 16>(context, call, blocks)
                               : launch_tokens<BITS, 32>(context, call, blocks);
}

bool decant_cuda_packed_has_pairs(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    return decant_cuda_context_of(backend)->has_wgmma && packed->arranged && packed->bits <= PLANES_MAXIMUM &&
           x.element == DECANT_BF16 && x.rows <= DECANT_FRAGMENTS_TOKENS_MAXIMUM &&
           (uintptr_t)packed->sparse_entries % 16 == 0 && packed->rows <= (int64_t)DECANT_ARRIVALS * ROWS &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data);
}

/* Where columns do not fit half a word, entries are not joined (joined_entries.cu). */
static bool takes_entries_before(const decant_cuda_context *context, const decant_packed_matrix *packed)
{
    return context->packed_way == DECANT_PACKED_PAIRS_BEFORE || !packed->sparse_entries;
}

decant_status decant_cuda_packed_pairs(decant_backend *backend, decant_matrix x,
                                       const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                       decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    pairs_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.accumulate = accumulate;
    call.row_tiles = (call.packed.rows + ROWS - 1) / ROWS;
    call.row_stages = (call.packed.words + STAGE_WORDS - 1) / STAGE_WORDS;
    call.column_stages = call.row_stages;
    const int stages = call.row_tiles * call.row_stages;
    call.run = (stages + context->shared.multiprocessors - 1) / context->shared.multiprocessors;
    const int row_blocks = (call.row_stages + call.run - 1) / call.run;
    if (row_blocks * call.row_tiles <= context->shared.multiprocessors)
        call.row_stages = row_blocks * call.run; /* tables once a block; there is nothing beyond the columns */
    const int blocks = (call.row_tiles * call.row_stages + call.run - 1) / call.run;
    DECANT_RETURN_ON_FAILURE(map_planes(backend, call.packed, &call.planes, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_arrivals(context, &call.arrivals, err));
    size_t total = 0;
    const size_t parts_at = decant_scratch_reserve(&total, (size_t)blocks * SHARED_TILES * ROWS *
                                                               DECANT_FRAGMENTS_TOKENS_MAXIMUM * sizeof(float));
    const size_t fragments_at = decant_scratch_reserve(&total, decant_token_fragments_bytes(x));
    const bool before = sparse && takes_entries_before(context, packed);
    const size_t sparse_at = decant_scratch_reserve(&total, before   ? decant_token_sparse_bytes(x, packed)
                                                            : sparse ? decant_turned_bytes(x)
                                                                     : 0);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    call.parts = (float *)((char *)scratch + parts_at);
    if (before)
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_token_sparse(backend, x, packed, (char *)scratch + sparse_at, &call.sparse, err));
    else if (sparse)
        call.turned = (__nv_bfloat16 *)((char *)scratch + sparse_at);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_token_fragments(backend, x, (char *)scratch + fragments_at, &call.x, call.turned, err));
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call, blocks)
                             : packed->bits == 3 ? launch_width<3>(context, call, blocks)
                                                 : launch_width<4>(context, call, blocks);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_pairs", err));
    return decant_cuda_launched(backend, "packed_pairs", err);
}
