/* y = x ŵᵀ for several tokens on sparse tensor cores, codes of up to four bits, Hopper, of one matrix or of
 * some that are multiplied by the same x: two neighbouring columns are looked up together (pair_tables.cuh), x
 * is F16, in the order of the operands (token_fragments.h), so that only y is rounded.
 *
 * The weights are the operand b, eight columns of a product. Lanes 4g and 4g + 2 give it terms of row 2g of a
 * tile, lanes 4g + 1 and 4g + 3 of row 2g + 1; so of every four terms two belong to an even row and two to an
 * odd one, and a product that takes the lower two of a's terms is that of the even rows, one that takes the
 * upper two that of the odd rows. x is the same for both. Thus two lanes share a row, where four would in a
 * dense product, and its table has to be there only twice. Up to eight tokens, one product does both kinds.
 *
 * The tiles of all matrices are counted one after the other, and shared among blocks as those of one matrix
 * would be. A block has the tables of 64 rows, or of 32 where every multiprocessor can have rows of
 * its own so. It takes stages of 1024 columns of these (pair_runs.h), which the tensor memory accelerator
 * brings into a ring (pair_codes.cuh), asked by a warp of its own where one is left; a warp takes a slice of
 * 128 columns of a stage, of all rows: of the four words of a plane, lanes t = 0 and 1 take the first two, t =
 * 2 and 3 the last two (pair_products.cuh). The warps' sums are added up at the end of a tile of rows; blocks
 * that share a tile leave theirs in scratch, and the one that comes last adds them up in order (pair_sums.cuh).
 *
 * What a warp reads of x comes from the L2 cache behind codes that were asked for before it. So it is asked for
 * a whole stage ahead where registers suffice; beside entries only where rows are long, since what is asked for
 * early stands in the way of what the entries need. Without entries the codes of a stage are then read into
 * registers during the one before. The ring has few slots, and a warp of its own fills them one after
 * the other at first, so that little is under way when x is asked for.
 *
 * Where the products are of a norm, its 1 / rms is multiplied on at the end (pair_norm.cuh).
 *
 * The sparse part is multiplied by some more warps of each block (pair_entries.cuh), while the others take the
 * codes, and added with the warps' sums; or before, by token_sparse.cu, and added at the end. The warps that do
 * not take codes hand some of their registers on to those that do. */

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/pair_kind.cuh"
#include "kernels/cuda/pair_sums.cuh"
#include "kernels/cuda/token_sparse.h"

extern "C" {
#include "kernels/packed_input.h"
}

#include <climits>

enum {
    OFFSETS_LINE = 32, /* of rows, in a cache line */
    PLANES_MAXIMUM = 4,
    EARLY_STAGES = 16, /* of a row: beside entries, x of longer ones is asked for a whole stage ahead */
    EARLY_TOKENS = 16, /* the codes' warps have registers for the x of two stages of so many */
    NARROW_TILES = 2,  /* of a block, for matrices of few rows */
    WIDE_TILES = 4,
    ENTRIES_BARRIER = CODES_BARRIER + 1, /* of the warps of the entries */
};

/* The arguments of a launch. */
typedef struct pairs_call {
    decant_packed_view packed[DECANT_PAIRS_MATRICES];
    decant_token_fragments x;
    const __nv_bfloat16 *turned; /* x [columns, tokens of the kernel], for the sparse part, or NULL */
    pair_norm norm;
    pair_target target;
    uint32_t zero; /* as a value that the compiler does not know */
} pairs_call;

/* The first row of a tile in its matrix. */
typedef struct tile_rows {
    const decant_packed_view &packed;
    int first;
} tile_rows;

template <typename Kind>
[[maybe_unused]] static __device__ __forceinline__ tile_rows rows_of(const pairs_call &call, int row_tile)
{
    const tile_place place = place_of(call.target.matrices, row_tile);
    return {call.packed[place.matrix], place.tile * Kind::ROWS};
}

[[maybe_unused]] static __device__ __forceinline__ stage_run run_of_block(const decant_pair_runs &runs)
{
    return {decant_pair_first_stage(&runs, blockIdx.x), decant_pair_end_stage(&runs, blockIdx.x)};
}

/* Behind the last stage of a run that has columns. Only runs within one tile have stages without. */
[[maybe_unused]] static __device__ __forceinline__ int codes_end(const decant_pair_runs &runs,
                                                                 const stage_run &run)
{
    return min(run.end, decant_pair_tile_of(&runs, run.end - 1) * runs.row_stages + runs.column_stages);
}

/* ---- the levels ---- */

/* Asks for the levels of a tile of rows: what one thread does, long before they are wanted. Loads into
 * registers would hold up those from shared memory at the end of the tile before. */
template <typename Kind>
[[maybe_unused]] static __device__ __forceinline__ void
bring_levels(const pairs_call &call, int row_tile, const unsigned char *shared, uint32_t barrier)
{
    const tile_rows rows = rows_of<Kind>(call, row_tile);
    const uint32_t size_bytes = (uint32_t)min((int)Kind::ROWS, rows.packed.rows - rows.first)
                                << (Kind::BITS + 1);
    decant_barrier_expect(barrier, size_bytes);
    decant_copy_bytes(decant_shared_address(shared + Kind::LEVELS_AT),
                      rows.packed.levels + ((int64_t)rows.first << Kind::BITS), size_bytes, barrier);
}

/* ---- the codes ---- */

/* A warp of the codes on its way through the stages of its block. */
template <typename Kind> struct stage_walk {
    const pairs_call &call;
    const unsigned char *shared;
    code_ring<Kind> &ring;
    int stage, end;
    int row_stage; /* the next stage's, of its row */
    slice_fragments<Kind> x;
    slice_codes<Kind> codes;
    uint32_t units, powers; /* of the sums, and of the slice that comes */

    __device__ __forceinline__ int slice(void) const
    {
        return row_stage * STAGE_SLICES + (int)threadIdx.x / DECANT_WARP;
    }

    __device__ __forceinline__ void load_x(half_fragments<Kind> &target, int half, int of_slice,
                                           uint32_t behind = 0) const
    {
        load_fragments<Kind>(target, call.x.fragments, of_slice, half, behind & call.zero);
    }

    __device__ __forceinline__ void take_next_slice(void)
    {
        row_stage = row_stage + 1 < call.target.runs.column_stages ? row_stage + 1 : 0;
    }

    __device__ __forceinline__ void change_units_if_needed(tile_sums<Kind> &sums, slice_fragments<Kind> &own_x)
    {
        if (__any_sync(DECANT_ALL_LANES, powers != units))
            change_units<Kind>(sums, units, powers, own_x);
    }

    /* The codes of the stage that the ring is at. */
    __device__ __forceinline__ void read_codes(slice_codes<Kind> &target) const
    {
        load_codes<Kind>(target, shared + ring.slot * Kind::STAGE_BYTES);
    }

    /* They are in registers. */
    __device__ __forceinline__ void leave_slot(const slice_codes<Kind> &own)
    {
        __syncwarp();
        ring.leave(mix_codes<Kind>(own) & call.zero);
    }

    /* Asks for what the first stage needs; x is there. */
    __device__ __forceinline__ void begin(void)
    {
        load_x(x[0], 0, slice());
        if constexpr (Kind::EARLY)
            load_x(x[1], 1, slice());
        units = powers = load_powers<Kind>(call.x.powers, slice());
        if constexpr (Kind::CODES_AHEAD) {
            ring.wait();
            read_codes(codes);
        }
    }

    /* A stage whose x and codes are in registers; leaves those of the next one. */
    __device__ __forceinline__ void take_ahead(tile_sums<Kind> &sums, slice_fragments<Kind> &own_x,
                                               const slice_codes<Kind> &own_codes,
                                               slice_fragments<Kind> &next_x, slice_codes<Kind> &next_codes)
    {
        take_next_slice();
#pragma unroll
        for (int half = 0; half < HALVES; half++)
            load_x(next_x[half], half, slice());
        change_units_if_needed(sums, own_x);
        powers = load_powers<Kind>(call.x.powers, slice());
        leave_slot(own_codes);
        if (stage + 1 < end)
            ring.wait();
        read_codes(next_codes); /* behind the last stage, of no stage */
        multiply<Kind, 0, HALVES>(sums, own_codes, own_x);
    }

    /* The stages until tile_end, two a turn, so that x and codes need not move between registers. */
    __device__ __forceinline__ void take_tile_ahead(tile_sums<Kind> &sums, int tile_end)
    {
        slice_fragments<Kind> other_x;
        slice_codes<Kind> other_codes;
#pragma unroll 1
        while (true) {
            take_ahead(sums, x, codes, other_x, other_codes);
            if (++stage == tile_end) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    x[half] = other_x[half];
                codes = other_codes;
                break;
            }
            take_ahead(sums, other_x, other_codes, x, codes);
            if (++stage == tile_end)
                break;
        }
    }

    /* The same with codes that are read when they are needed. */
    __device__ __forceinline__ void take_tile(tile_sums<Kind> &sums, int tile_end)
    {
#pragma unroll 1
        for (; stage < tile_end; stage++) {
            [[maybe_unused]] slice_fragments<Kind> next_x;
            const int own_slice = slice();
            take_next_slice();
            if constexpr (!Kind::ASKS_APART)
                ring.bring_ahead(stage);
            if constexpr (Kind::EARLY) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    load_x(next_x[half], half, slice());
            } else {
                load_x(x[1], 1, own_slice, last_word(x[0]));
            }
            change_units_if_needed(sums, x);
            powers = load_powers<Kind>(call.x.powers, slice());
            ring.wait();
            read_codes(codes);
            leave_slot(codes);
            multiply<Kind, 0, 1>(sums, codes, x);
            if constexpr (!Kind::EARLY)
                load_x(x[0], 0, slice(), last_word(x[1]));
            multiply<Kind, 1, 1>(sums, codes, x);
            if constexpr (Kind::EARLY) {
#pragma unroll
                for (int half = 0; half < HALVES; half++)
                    x[half] = next_x[half];
            }
        }
    }
};

/* What the warps of the codes do. */
template <typename Kind>
static __device__ __forceinline__ void take_codes(const pairs_call &call, unsigned char *shared,
                                                  code_ring<Kind> &ring, uint32_t levels_barrier,
                                                  entry_barriers &met, norm_room &normed)
{
    __shared__ shared_tiles known;
    const pair_target &target = call.target;
    const auto &entries = *(const typename Kind::entries *)(shared + Kind::ENTRIES_AT);
    unsigned char *tables = shared + Kind::TABLES_AT;
    const stage_run run = run_of_block(target.runs);
    const int row_stages = target.runs.row_stages, first_tile = decant_pair_tile_of(&target.runs, run.begin),
              last_tile = decant_pair_tile_of(&target.runs, run.end - 1);
    const bool begins_within = run.begin > first_tile * row_stages,
               ends_within = run.end < (last_tile + 1) * row_stages;
    const auto make_tables = [&](int row_tile) {
        own_levels<Kind::BITS, Kind::TILES, WARPS> levels;
        decant_barrier_wait(levels_barrier, (row_tile - first_tile) % 2);
        load_levels(levels, (const __half *)(shared + Kind::LEVELS_AT));
        fill_tables(levels, tables);
        codes_meet();
    };
    stage_walk<Kind> walk = {
        call, shared, ring, run.begin, codes_end(target.runs, run), run.begin - first_tile * row_stages};

    if (decant_shared_address(shared) != RING_ADDRESS)
        __trap(); /* what the compiler puts before it would have changed */
    if (threadIdx.x == 0)
        known = {};
    make_tables(first_tile);
    decant_wait_for_earlier_kernels();
    walk.begin();
    for (int row_tile = first_tile; walk.stage < walk.end; row_tile++) {
        const int stages_end = min((row_tile + 1) * row_stages, walk.end);
        tile_sums<Kind> sums = {};
        thread_sums<Kind> own;
        if (threadIdx.x == 0 && stages_end < walk.end)
            bring_levels<Kind>(call, row_tile + 1, shared, levels_barrier);
        /* by now the sums of the tile before have been left */
        if (threadIdx.x == 0 && begins_within && row_tile == first_tile + 1)
            known.first_left_last =
                decant_leaves_last(target.arrivals + first_tile, block_count(target, first_tile));
        if (threadIdx.x == 0 && ends_within && row_tile == last_tile && last_tile > first_tile)
            known.others_left = decant_others_came(target.arrivals + last_tile, block_count(target, last_tile));
        if constexpr (Kind::CODES_AHEAD)
            walk.take_tile_ahead(sums, stages_end);
        else
            walk.take_tile(sums, stages_end);
        const tile_end<Kind> end = {entries,
                                    met,
                                    (uint32_t)(row_tile - first_tile) % 2,
                                    (begins_within && row_tile == first_tile) ||
                                        (ends_within && row_tile == last_tile),
                                    call.norm,
                                    normed,
                                    known.others_left};
        add_up<Kind>(own, sums, walk.units, (float *)tables, end);
        finish_tile<Kind>(target, own, row_tile, end);
        if (walk.stage < walk.end) {
            codes_meet(); /* the sums have been read, and left for others */
            make_tables(row_tile + 1);
        }
    }
    if (known.first_left_last)
        add_parts<Kind>(target, first_tile);
    const bool left = ends_within || (begins_within && last_tile == first_tile);
    if (left && !known.others_left &&
        decant_comes_last(target.arrivals + last_tile, block_count(target, last_tile), codes_meet))
        add_parts<Kind>(target, last_tile);
}

/* ---- the entries ---- */

/* The entries of a tile are cut as its stages are: those from here on belong to the stages from `stage` on.
 * first, behind: the tile's. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t cut_of(int row_stages, uint32_t first,
                                                                   uint32_t behind, int stage)
{
    enum { SECTOR_ENTRIES = 8 };
    const uint32_t cut = first + (behind - first) * (uint32_t)stage / (uint32_t)row_stages;
    return stage == row_stages ? behind : max(first, cut / SECTOR_ENTRIES * SECTOR_ENTRIES);
}

/* What the warps of the entries do. */
template <typename Kind>
static __device__ __forceinline__ void take_entries(const pairs_call &call, unsigned char *shared,
                                                    uint32_t (*row_offsets)[Kind::ROWS + 1],
                                                    entry_barriers &met)
{
    constexpr int ROWS = Kind::ROWS;
    const stage_run run = run_of_block(call.target.runs);
    const int lane = (int)threadIdx.x - THREADS;
    auto &room = *(typename Kind::entries *)(shared + Kind::ENTRIES_AT);
    const decant_pair_runs &runs = call.target.runs;
    const int row_stages = runs.row_stages, first_tile = decant_pair_tile_of(&runs, run.begin),
              last_tile = decant_pair_tile_of(&runs, run.end - 1);
    for (int row_tile = first_tile; row_tile <= last_tile; row_tile++) {
        uint32_t *offsets = row_offsets[(row_tile - first_tile) % 2];
        const int tile_begin = row_tile * row_stages;
        const tile_rows rows = rows_of<Kind>(call, row_tile);
        const auto offset_of = [&](int row) {
            return rows.packed.row_offsets[min(rows.first + row, rows.packed.rows)];
        };
        const uint32_t first = offset_of(0), behind = offset_of(ROWS), own = offset_of(min(lane, (int)ROWS));
        if (lane <= ROWS)
            offsets[lane] = min(max(own, cut_of(row_stages, first, behind, max(run.begin - tile_begin, 0))),
                                cut_of(row_stages, first, behind, min(run.end - tile_begin, row_stages)));
        wait_at_barrier<ENTRIES_BARRIER, Kind::ENTRY_LANES>();
        tile_entries<Kind::TOKENS, Kind::ENTRY_LANES, ROWS> entries(room, rows.packed.sparse_entries,
                                                                    call.turned, offsets, lane);
        if (row_tile < last_tile && lane <= ROWS / OFFSETS_LINE) {
            const tile_rows next = rows_of<Kind>(call, row_tile + 1);
            decant_prefetch(next.packed.row_offsets + min(next.first + lane * OFFSETS_LINE, next.packed.rows));
        }
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

/* ---- the norm ---- */

/* What warps without entries do. */
[[maybe_unused]] static __device__ __forceinline__ void take_squares(const pair_norm &norm, norm_room &room)
{
    decant_wait_for_earlier_kernels();
    add_squares(norm, ((int)threadIdx.x - THREADS) / DECANT_WARP, room.squares);
    __syncwarp();
    if (threadIdx.x % DECANT_WARP == 0)
        decant_barrier_arrive(decant_shared_address(&room.there));
}

/* ---- the kernel ---- */

template <typename Kind>
__global__ void __maxnreg__(Kind::REGISTERS) packed_pairs_kernel(const __grid_constant__ pairs_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) unsigned char shared[];
        __shared__ code_barriers<Kind> barriers;
        __shared__ uint32_t row_offsets[2][Kind::ROWS + 1];
        __shared__ entry_barriers met;
        __shared__ norm_room normed;
        __shared__ uint64_t levels_there;
        const uint32_t levels_barrier = decant_shared_address(&levels_there);
        const stage_run run = run_of_block(call.target.runs);
        code_ring<Kind> ring;
        decant_let_next_kernel_begin();
        if (Kind::SPARSE && threadIdx.x == 0) {
            decant_barrier_create(decant_shared_address(&met.there), Kind::ENTRY_WARPS);
            decant_barrier_create(decant_shared_address(&met.read), WARPS);
        }
        if (Kind::NORMED && threadIdx.x == 0)
            decant_barrier_create(decant_shared_address(&normed.there), NORM_WARPS);
        ring.create(barriers, shared, call.target.matrices, call.target.runs,
                    {run.begin, codes_end(call.target.runs, run)});
        if (threadIdx.x == 0) {
            decant_barrier_create(levels_barrier, 1);
            decant_barrier_publish();
            bring_levels<Kind>(call, decant_pair_tile_of(&call.target.runs, run.begin), shared, levels_barrier);
        }
        if (!Kind::ASKS_APART && threadIdx.x == 0)
            ring.bring_first();
        __syncthreads();
        if (threadIdx.x >= THREADS) {
            decant_registers_lower<Kind::OTHERS_REGISTERS>();
            if (Kind::SPARSE && threadIdx.x < THREADS + Kind::ENTRY_LANES)
                take_entries<Kind>(call, shared, row_offsets, met);
            else if (threadIdx.x == BLOCK_THREADS - DECANT_WARP)
                ring.bring_all();
            else if (Kind::NORMED && threadIdx.x < THREADS + NORM_WARPS * DECANT_WARP)
                take_squares(call.norm, normed);
        } else {
            decant_registers_raise<Kind::CODES_REGISTERS>();
            take_codes<Kind>(call, shared, ring, levels_barrier, met, normed);
        }
    }
}

/* ---- the calls ---- */

template <typename Kind> static cudaError_t launch(decant_cuda_context *context, const pairs_call &call)
{
    const cudaError_t code = decant_keep_shared_memory(packed_pairs_kernel<Kind>, Kind::SHARED_PERCENT);
    if (code != cudaSuccess)
        return code;
    return decant_launch_early(context, packed_pairs_kernel<Kind>, (unsigned)call.target.runs.blocks,
                               BLOCK_THREADS, Kind::TOTAL_BYTES, call);
}

template <int BITS, int TOKENS, int TILES>
static cudaError_t launch_tiles(decant_cuda_context *context, const pairs_call &call)
{
    constexpr bool EARLY = TOKENS <= EARLY_TOKENS;
    if constexpr (TOKENS <= DECANT_FRAGMENTS_OPERAND_TOKENS)
        if (call.norm.squares)
            return launch<pair_kind<BITS, TOKENS, TILES, false, EARLY, true>>(context, call);
    return !call.turned ? launch<pair_kind<BITS, TOKENS, TILES, false, EARLY>>(context, call)
           : call.target.runs.column_stages <= EARLY_STAGES
               ? launch<pair_kind<BITS, TOKENS, TILES, true, false>>(context, call)
               : launch<pair_kind<BITS, TOKENS, TILES, true, EARLY>>(context, call);
}

template <int BITS, int TOKENS>
static cudaError_t launch_tokens(decant_cuda_context *context, const pairs_call &call, int tiles)
{
    if (tiles == NARROW_TILES)
        return launch_tiles<BITS, TOKENS, NARROW_TILES>(context, call);
    return launch_tiles<BITS, TOKENS, WIDE_TILES>(context, call);
}

template <int BITS>
static cudaError_t launch_width(decant_cuda_context *context, const pairs_call &call, int tiles)
{
    return call.target.tokens <= 8    ? launch_tokens<BITS, 8>(context, call, tiles)
           : call.target.tokens <= 16 ? launch_tokens<BITS, 16>(context, call, tiles)
                                      : launch_tokens<BITS, 32>(context, call, tiles);
}

/* Of all matrices. */
static int tiles_of(const decant_packed_product *products, int count, int rows)
{
    int64_t tiles = 0;
    for (int i = 0; i < count; i++)
        tiles += (products[i].packed->rows + rows - 1) / rows;
    return (int)tiles;
}

/* One of several that are like the first. */
static bool has_matrix(const decant_packed_product *product, const decant_packed_matrix *first)
{
    const decant_packed_matrix *packed = product->packed;
    return packed->arranged && packed->rows > 0 && packed->bits <= PLANES_MAXIMUM &&
           packed->bits == first->bits && packed->columns == first->columns &&
           (packed->sparse.count > 0) == (first->sparse.count > 0) && (uintptr_t)packed->levels % 16 == 0 &&
           (uintptr_t)packed->sparse_entries % 16 == 0 && (uintptr_t)product->y.data % sizeof(uint2) == 0;
}

bool decant_cuda_packed_has_pairs(decant_backend *backend, decant_matrix x,
                                  const decant_packed_product *products, int count)
{
    for (int i = 0; i < count; i++)
        if (!has_matrix(&products[i], products[0].packed))
            return false;
    return decant_cuda_context_of(backend)->has_wgmma && count <= DECANT_PAIRS_MATRICES &&
           x.element == DECANT_BF16 && x.rows <= DECANT_FRAGMENTS_TOKENS_MAXIMUM &&
           tiles_of(products, count, NARROW_TILES * PAIR_TILE_ROWS) <= DECANT_ARRIVALS &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data);
}

bool decant_cuda_packed_pairs_own_rows(decant_backend *backend, const decant_packed_product *products,
                                       int count)
{
    return tiles_of(products, count, NARROW_TILES * PAIR_TILE_ROWS) <=
           decant_cuda_context_of(backend)->shared.multiprocessors;
}

/* Where columns do not fit half a word, entries are not joined (joined_entries.cu). */
static bool takes_entries_before(const decant_cuda_context *context, const decant_packed_product *products,
                                 int count)
{
    bool before = context->packed_way == DECANT_PACKED_PAIRS_BEFORE;
    for (int i = 0; i < count; i++)
        before = before || !products[i].packed->sparse_entries;
    return before;
}

/* With the sparse part, x would be turned as well, and with two operands each block would have several slices
 * one after the other: then it takes longer than an operation before (tests/bench/decode/several_tokens.md). */
bool decant_cuda_packed_pairs_make_x(const decant_packed_input *input, const decant_packed_product *products)
{
    return !decant_packed_input_is_made(input) ||
           (products[0].packed->sparse.count == 0 && input->x.rows <= DECANT_FRAGMENTS_OPERAND_TOKENS &&
            decant_token_fragments_make(input));
}

decant_status decant_cuda_packed_pairs(decant_backend *backend, const decant_packed_input *input,
                                       const decant_packed_product *products, int count, bool sparse,
                                       bool accumulate, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const decant_matrix x = input->x;
    /* With few tiles each, no block waits for another's sums, but x is read twice as often. */
    const int tiles = decant_cuda_packed_pairs_own_rows(backend, products, count) ? NARROW_TILES : WIDE_TILES,
              rows = tiles * PAIR_TILE_ROWS, bits = products[0].packed->bits;
    pairs_call call = {};
    pair_target &target = call.target;
    target.tokens = (int)x.rows;
    target.accumulate = accumulate;
    for (int &first_tile : target.matrices.first_tiles)
        first_tile = INT_MAX;
    for (int i = 0; i < count; i++) {
        call.packed[i] = decant_packed_view_of(products[i].packed);
        target.ys[i].data = (__nv_bfloat16 *)products[i].y.data;
        target.ys[i].rows = call.packed[i].rows;
        target.matrices.first_tiles[i] = tiles_of(products, i, rows);
        DECANT_RETURN_ON_FAILURE(map_planes(backend, call.packed[i], rows, &target.matrices.planes[i], err));
    }
    target.runs = decant_pair_runs_of(tiles_of(products, count, rows), call.packed[0].words, bits,
                                      context->shared.multiprocessors);
    DECANT_RETURN_ON_FAILURE(decant_cuda_arrivals(context, &target.arrivals, err));
    size_t total = 0, sparse_at[DECANT_PAIRS_MATRICES] = {};
    const size_t parts_at = decant_scratch_reserve(&total, (size_t)(target.runs.blocks * SHARED_TILES * rows) *
                                                               DECANT_FRAGMENTS_TOKENS_MAXIMUM * sizeof(float));
    const size_t fragments_at = decant_scratch_reserve(&total, decant_token_fragments_bytes(input));
    const bool before = sparse && takes_entries_before(context, products, count);
    for (int i = 0; before && i < count; i++)
        sparse_at[i] = decant_scratch_reserve(&total, decant_token_sparse_bytes(x, products[i].packed));
    const size_t turned_at = decant_scratch_reserve(&total, sparse && !before ? decant_turned_bytes(x) : 0);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    target.parts = (float4 *)((char *)scratch + parts_at);
    for (int i = 0; before && i < count; i++)
        DECANT_RETURN_ON_FAILURE(decant_cuda_token_sparse(
            backend, x, products[i].packed, (char *)scratch + sparse_at[i], &target.ys[i].sparse, err));
    __nv_bfloat16 *turned = sparse && !before ? (__nv_bfloat16 *)((char *)scratch + turned_at) : NULL;
    call.turned = turned;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_token_fragments(backend, input, (char *)scratch + fragments_at, &call.x, turned, err));
    call.norm = {call.x.squares, call.x.slices, 1.0f / (float)x.columns, input->epsilon};
    const cudaError_t code = bits == 2   ? launch_width<2>(context, call, tiles)
                             : bits == 3 ? launch_width<3>(context, call, tiles)
                                         : launch_width<4>(context, call, tiles);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_pairs", err));
    return decant_cuda_launched(backend, "packed_pairs", err);
}
