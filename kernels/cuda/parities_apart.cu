/* y = x ŵᵀ for one token, dense and sparse: what packed_parities.cu does, with four more warps in each block
 * that take the sparse part (entry_runs.h), whose entries are a word each (joined_entries.cu), while the others
 * take the codes. These run as they do where there is no sparse part, but that they leave a copy of x in shared
 * memory; the two meet once more, when the rows are finished.
 *
 * While codes are on their way, what a lane reads from memory comes after those that have been asked for, a
 * microsecond or two later: what counts is how many entries are asked for before they are due. The first ones
 * are asked for before the kernel waits for its x; and x is gathered from shared memory, because gathers
 * through the first cache would have to wait, too. tests/bench/DECODE.md has the figures.
 *
 * A multiprocessor is to hold two such blocks, so that the next kernel can begin beside this one. That leaves
 * 80 registers a thread; the warps of the entries hand some of theirs on to those of the codes, which need
 * more. Only Hopper has the instruction for it. None may be short of them where rows of planes can be read
 * whole: what is spilled comes back from memory, behind the codes. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/entry_lanes.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/parity_launch.cuh"
#include "kernels/cuda/parity_levels.cuh"
#include "kernels/cuda/parity_run.cuh"

enum {
    ENTRY_LANES = DECANT_WARPGROUP,
    ENTRY_WARPS = ENTRY_LANES / DECANT_WARP,
    BLOCK_THREADS = THREADS + ENTRY_LANES,
    CODES_BARRIER = 1,             /* named barriers: of the threads of the codes, … */
    X_BARRIER = CODES_BARRIER + 1, /* of all, once x lies in shared memory */
    ENTRIES_BARRIER = 3,
    LONG_RUN = 32,          /* entries of a lane */
    OWN_STATIC_BYTES = 256, /* of shared memory, at most */
    /* Shared memory is had in steps (CUDA C++ Programming Guide, compute capability 9.0): without these bytes
     * of it, the first cache has 60 KB instead of 28. */
    FIRST_CACHE_BYTES = 32 << 10,
};

static_assert(TILES_MAXIMUM * TILE_ROWS <= 2 * ENTRY_LANES, "a lane has two rows of the block at most");

/* Registers of a thread of the codes and of the entries, of 80 on average; the counts of a lane are 60 of them
 * at four bits. */
template <int BITS> constexpr int CODES_REGISTERS = BITS == 4 ? 104 : 88;
template <int BITS> constexpr int ENTRIES_REGISTERS = 240 - 2 * CODES_REGISTERS<BITS>;

/* Fours of entries that a lane has asked for before they are due, and that it takes at a time, as registers
 * allow. */
template <int BITS> constexpr int FOURS = BITS == 4 ? 2 : 8;
template <int BITS> constexpr int GROUP = BITS == 4 ? 1 : 2;

/* ---- the entries ---- */

/* x of an entry in its copy, bits of a BF16. */
[[maybe_unused]] static __device__ __forceinline__ uint32_t x_of(const unsigned char *x, uint32_t entry)
{
    return *(const uint16_t *)(x + x_offset(entry & 0xffffu));
}

/* Takes the run, whose first fours have been asked for. x: the copy. */
template <int BITS>
static __device__ __forceinline__ void take_run(const decant_packed_view &packed, const lane_run &run,
                                                decant_entry_walk walk, uint4 (&ahead)[FOURS<BITS>],
                                                const unsigned char *x)
{
    constexpr int BATCH = FOURS<BITS> * DECANT_FOUR;
#pragma unroll 1
    for (int batch = run.begin; batch < run.end; batch += BATCH) {
        const uint32_t starts = decant_next_starts(&walk, batch, min(BATCH, run.end - batch));
#pragma unroll
        for (int group = 0; group < FOURS<BITS>; group += GROUP<BITS>) {
            if (batch + group * DECANT_FOUR >= run.end)
                break;
            uint4 of_x[GROUP<BITS>];
#pragma unroll
            for (int i = 0; i < GROUP<BITS>; i++) {
                const int entry = batch + (group + i) * DECANT_FOUR;
                if (entry + DECANT_FOUR > run.end)
                    drop_entries(ahead[group + i], run.end - entry, DECANT_FOUR);
                of_x[i] = gather_x(ahead[group + i], [=](uint32_t entry) { return x_of(x, entry); });
            }
#pragma unroll
            for (int i = 0; i < GROUP<BITS>; i++) {
                const int next = batch + BATCH + (group + i) * DECANT_FOUR;
                add_four(walk, ahead[group + i], of_x[i], starts >> (group + i) * DECANT_FOUR);
                if (next < run.end) /* into the same registers */
                    ahead[group + i] = read_four(packed, run.base + next);
            }
        }
    }
    decant_walk_to_end(&walk);
}

/* Starts bringing `count` elements into the L2 cache. */
template <typename Element>
static __device__ __forceinline__ void prefetch_elements(const Element *elements, int count, int lane)
{
    const int line = 128 / (int)sizeof(Element);
#pragma unroll 1
    for (int i = lane * line; i < count; i += ENTRY_LANES * line)
        decant_prefetch(elements + i);
}

/* The sums of the block's rows over their entries, by the warps of the entries. x: where its copy will be;
 * counts: [2 ENTRY_WARPS]. */
template <int BITS>
static __device__ __forceinline__ void sum_entries(const parities_call &call, const block_share &share,
                                                   const decant_entry_runs &runs, const unsigned char *x,
                                                   int *counts)
{
    const decant_packed_view &packed = call.packed;
    const int lane = (int)threadIdx.x - THREADS, warp = lane / DECANT_WARP, rows = rows_of(packed, share);
    const uint32_t *offsets = packed.row_offsets + share.first_tile * TILE_ROWS;
    const uint32_t first = load_at_once(offsets), last = load_at_once(offsets + rows);
    const row_entries row[] = {load_row(offsets, lane, rows), load_row(offsets, lane + ENTRY_LANES, rows)};
    const uint32_t base = first / DECANT_RUN_UNIT * DECANT_RUN_UNIT;
    const int end_of_block = (int)(last - base), length = decant_run_length(end_of_block, ENTRY_LANES);
    const lane_run run = {base, lane * length, min((lane + 1) * length, end_of_block)};
    uint4 ahead[FOURS<BITS>] = {};
#pragma unroll
    for (int i = 0; i < FOURS<BITS>; i++)
        if (run.begin + i * DECANT_FOUR < run.end)
            ahead[i] = read_four(packed, base + run.begin + i * DECANT_FOUR);
    decant_let_next_kernel_begin();

    uint32_t with[2];
#pragma unroll
    for (int i = 0; i < 2; i++)
        with[i] = count_rows(row[i], counts + i * ENTRY_WARPS + warp);
    wait_at_barrier<ENTRIES_BARRIER, ENTRY_LANES>();
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int number = number_of_row(with[i], counts, i * ENTRY_WARPS + warp);
        const int begin = (int)(row[i].begin - base), end = (int)(row[i].end - base);
        if (begin < end)
            runs.ends[number] = end;
        if (lane + i * ENTRY_LANES < rows)
            runs.segments_of_rows[lane + i * ENTRY_LANES] = decant_segments_of_row(number, begin, end, length);
    }
    const int with_entries = number_of_row(0, counts, 2 * ENTRY_WARPS);
    if (lane == 0)
        runs.ends[with_entries] = INT_MAX;
    wait_at_barrier<ENTRIES_BARRIER, ENTRY_LANES>();
    const int before = max((int)(first - base) - run.begin, 0); /* entries of the run, of rows before */
#pragma unroll
    for (int i = 0; i < DECANT_RUN_UNIT / DECANT_FOUR; i++)
        if (before > i * DECANT_FOUR)
            drop_entries(ahead[i], 0, before - i * DECANT_FOUR);
    const decant_entry_walk walk = decant_walk_from(&runs, with_entries, lane, run.begin + before);
    if (length > FOURS<BITS> * DECANT_FOUR)
        prefetch_elements(packed.sparse_entries + base, end_of_block, lane);

    wait_at_barrier<X_BARRIER, BLOCK_THREADS>();
    if (run.begin < run.end)
        take_run<BITS>(packed, run, walk, ahead, x);
    wait_at_barrier<ENTRIES_BARRIER, ENTRY_LANES>();
#pragma unroll 1
    for (int i = lane; i < rows; i += ENTRY_LANES)
        runs.sums[i] = decant_sum_segments_of_row(&runs, runs.segments_of_rows[i]);
}

/* ---- the codes ---- */

/* The parts of the block's rows, by the warps of the codes: the dense kernel of packed_parities.cu up to the
 * end of its units. */
template <int BITS, planes_form FORM, int RING, bool AHEAD>
static __device__ __forceinline__ void add_codes(const parities_call &call, const block_share &share,
                                                 unsigned char *shared, token_figures<1> &figures)
{
    const decant_packed_view &packed = call.packed;
    const shared_layout &layout = share.layout;
    const int warp = threadIdx.x / DECANT_WARP;
    const warp_run run = run_of<BITS>(share, warp);
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);
    const uint32_t base = decant_shared_address(shared), lane_bytes = threadIdx.x % DECANT_WARP * 16;
    const uint32_t ring = base + layout.rings + lane_bytes + warp * STAGES<BITS, RING> * UNIT_BYTES<BITS>;
    const own_levels<BITS> levels = load_levels<BITS>(packed, share);
    plane_source source =
        source_of<BITS, FORM>(packed, share, run.first / share.units, run.first % share.units);
    open_ring<BITS, FORM, RING, AHEAD, HOLDS_BACK<BITS, 1, AHEAD>>(call, share, run, source, ring);
    decant_let_next_kernel_begin();
    transform_levels<BITS>(levels, share, coefficients);
    for (int i = threadIdx.x; i < share.tiles * TILE_PARTS<1>; i += THREADS)
        parts[i] = 0;
    decant_wait_for_earlier_kernels();
    make_operands<1, true, CODES_BARRIER, ENTRY_LANES>(call, share, figures, base + layout.operands,
                                                       base + layout.x);
    wait_at_barrier<CODES_BARRIER, THREADS>(); /* operands and coefficients are there */
    add_units<BITS, 1, FORM, RING, false, AHEAD>(call, share, run, source, ring, coefficients,
                                                 parts + warp * TILE_ROWS, base + layout.operands + lane_bytes,
                                                 {}, {}, NULL);
}

template <int BITS, planes_form FORM, int RING, bool AHEAD>
__global__ void __launch_bounds__(BLOCK_THREADS, 2)
    parities_apart_kernel(const __grid_constant__ parities_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(128) unsigned char shared[];
        __shared__ token_figures<1> figures;
        __shared__ int rows_with_entries[2 * ENTRY_WARPS];
        const block_share share = share_of<BITS, 1>(call);
        const decant_entry_runs runs =
            decant_entry_runs_at(shared + share.layout.total, rows_of(call.packed, share), ENTRY_LANES);
        if (threadIdx.x >= THREADS) {
            decant_registers_lower<ENTRIES_REGISTERS<BITS>>();
            sum_entries<BITS>(call, share, runs, shared + share.layout.x, rows_with_entries);
            __syncthreads(); /* the sums are there */
        } else {
            decant_registers_raise<CODES_REGISTERS<BITS>>();
            add_codes<BITS, FORM, RING, AHEAD>(call, share, shared, figures);
            finish_rows_of_one<BITS>(call, share, figures, (const float *)(shared + share.layout.coefficients),
                                     (const float *)(shared + share.layout.parts),
                                     [&](float sum, int row) { return sum + runs.sums[row]; });
        }
    }
}

/* ---- the choice of a launch ---- */

/* The arrays of the entries come behind those of the codes. */
template <int BITS> static size_t shared_bytes(const parities_call &call)
{
    return (size_t)layout_of<BITS, 1>(call, call.tiles, units_of(call.packed.words)).total +
           (size_t)decant_entry_runs_bytes(call.tiles * TILE_ROWS, ENTRY_LANES);
}

/* Where runs of entries are longer than what lanes ask for before they wait, the longest ring, which leaves
 * room for one block, mostly, and the more of it to the first cache. Else two blocks share a multiprocessor:
 * with the dense product's ring where a warp's units all fit that; with a shorter one that leaves the first
 * cache the room it needs below four bits, where more entries wait for it (tests/bench/DECODE.md has the
 * figures). False where not even one block fits. */
template <int BITS> static bool choose_apart(const decant_cuda *cuda, parities_call *call)
{
    constexpr int DENSE_RING = FIRST_RING<BITS, 1, false>;
    call->sparse = false; /* what the layout of the codes is to leave room for */
    call->x_in_shared = true;
    call->groups = 1;
    share_tiles(cuda, call);
    const int units = units_of_warp(*call);
    const bool is_long = call->entries / call->blocks > LONG_RUN * ENTRY_LANES;
    const bool is_short = units < STAGES<BITS, DENSE_RING>;
    const size_t half = room_of(cuda, 2, OWN_STATIC_BYTES), all = room_of(cuda, 1, OWN_STATIC_BYTES);
    const size_t less = half - FIRST_CACHE_BYTES / 2;
    const struct {
        int ring;
        size_t room;
    } choices[] = {{RING_LONG, is_long ? all : 0},
                   {DENSE_RING, is_short   ? half
                                : BITS > 2 ? less
                                           : 0},
                   {RING_MEDIUM, BITS == 4   ? half
                                 : BITS == 3 ? less
                                             : 0},
                   {RING_SHORT, half},
                   {RING_LONG, all},
                   {RING_SHORT, all}};
    call->pairs = pairs_of(BITS, units);
    for (const auto &choice : choices) {
        call->ring = choice.ring;
        if (shared_bytes<BITS>(*call) <= choice.room)
            return true;
    }
    return false;
}

template <int BITS, planes_form FORM, int RING, bool AHEAD = false>
static cudaError_t launch_ring(decant_cuda_context *context, const parities_call &call)
{
    if constexpr (CAN_ASK_AHEAD<BITS, FORM> && !AHEAD)
        if (call.pairs > 0)
            return launch_ring<BITS, FORM, RING, true>(context, call);
    return decant_launch_early(context, parities_apart_kernel<BITS, FORM, RING, AHEAD>, (unsigned)call.blocks,
                               BLOCK_THREADS, shared_bytes<BITS>(call), call);
}

template <int BITS, planes_form FORM>
static cudaError_t launch_form(decant_cuda_context *context, const parities_call &call)
{
    return call.ring == RING_SHORT    ? launch_ring<BITS, FORM, RING_SHORT>(context, call)
           : call.ring == RING_MEDIUM ? launch_ring<BITS, FORM, RING_MEDIUM>(context, call)
                                      : launch_ring<BITS, FORM, RING_LONG>(context, call);
}

template <int BITS> static cudaError_t launch(decant_cuda_context *context, parities_call call)
{
    choose_apart<BITS>(&context->shared, &call);
    return by_form(form_of(call.packed),
                   [&](auto form) { return launch_form<BITS, decltype(form)::value>(context, call); });
}

bool decant_cuda_has_parities_apart(const decant_cuda_context *context, parities_call call)
{
    if (!context->has_wgmma || !call.sparse || !call.packed.sparse_entries || call.tokens != 1)
        return false;
    return call.packed.bits == 2   ? choose_apart<2>(&context->shared, &call)
           : call.packed.bits == 3 ? choose_apart<3>(&context->shared, &call)
           : call.packed.bits == 4 ? choose_apart<4>(&context->shared, &call)
                                   : false;
}

cudaError_t decant_cuda_parities_apart(decant_cuda_context *context, const parities_call &call)
{
    return call.packed.bits == 2   ? launch<2>(context, call)
           : call.packed.bits == 3 ? launch<3>(context, call)
                                   : launch<4>(context, call);
}
