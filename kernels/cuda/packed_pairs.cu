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
 * not take codes hand some of their registers on to those that do.
 *
 * pair_block.cuh lists the files that hold a block's work. */

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/pair_sums.cuh"
#include "kernels/cuda/token_sparse.h"

enum {
    OFFSETS_LINE = 32, /* of rows, in a cache line */
    PLANES_MAXIMUM = 4,
    EARLY_STAGES = 16, /* of a row: beside entries, x of longer ones is asked for a whole stage ahead */
    ENTRIES_BARRIER = CODES_BARRIER + 1, /* of the warps of the entries */
};

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

/* ---- the kernel ---- */

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
