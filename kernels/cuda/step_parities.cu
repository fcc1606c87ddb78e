/* y = x ŵᵀ for one token from the container's bit planes, by parities on binary tensor cores: the product of
 * packed_parities.cu, which explains it, in the frame of step_block.cuh. */
#include "kernels/cuda/parity_block.cuh"
#include "kernels/cuda/step_block.cuh"
#include "kernels/cuda/step_planes.cuh"
#include "kernels/cuda/step_sparse.cuh"

/* Units in a warp's ring, and sparse entries that a block brings in its first window: as many as leave the
 * multiprocessor to two blocks at LLaMA-7B's widths. */
template <int BITS, bool SPARSE> constexpr int RING_UNITS = (SPARSE ? 12 : 20) / BITS;
template <int BITS, bool SPARSE> constexpr int RING_BYTES = RING_UNITS<BITS, SPARSE> *UNIT_BYTES<BITS>;
enum { ENTRIES_OF_BLOCK = 3584 };

/* Where a block's arrays lie in shared memory, in bytes; the planes of x come first. */
typedef struct parities_layout {
    int coefficients, parts, sparse, rings, total;
} parities_layout;

/* sparse_bytes: what the sparse part takes. */
template <int BITS, bool SPARSE>
static __host__ __device__ __forceinline__ parities_layout layout_of_step(int tiles, int units,
                                                                          int sparse_bytes)
{
    parities_layout layout;
    layout.coefficients = units * PRODUCTS * OPERAND_BYTES;
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse = layout.parts + tiles * TILE_PARTS<1> * 4;
    layout.rings = layout.sparse + (sparse_bytes + 15) / 16 * 16;
    layout.total = layout.rings + WARPS * RING_BYTES<BITS, SPARSE>;
    return layout;
}

/* ---- codes ---- */

/* Where a warp's next unit is, and this lane's words of it. */
typedef struct unit_source {
    const uint32_t *words;
    int tile, unit;
} unit_source;

template <int BITS>
static __device__ __forceinline__ unit_source find_unit(const step_call &call, const step_share &share,
                                                        int tile, int unit)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const step_place place = step_place_of(call, share, TILE_ROWS, tile * TILE_ROWS + lane / 4);
    const int row = min(place.row, place.matrix.rows - 1);
    return {(const uint32_t *)((const char *)place.matrix.weights + (int64_t)row * call.row_bytes) +
                unit * UNIT_WORDS + lane % 4 * LANE_WORDS,
            tile, unit};
}

/* Starts copying the unit and moves on to the next. Where rows of planes are not whole, words go one or two at
 * a time. */
template <int BITS>
static __device__ __forceinline__ void fetch(const step_call &call, const step_share &share,
                                             unit_source &source, int plane_words, uint32_t target)
{
    const int left = plane_words - (source.unit * UNIT_WORDS + (int)threadIdx.x % 4 * LANE_WORDS);
    const uint32_t *words = source.words;
    if (call.whole) {
#pragma unroll
        for (int bit = 0; bit < BITS; bit++, words += plane_words)
            decant_copy_line_16(target + bit * OPERAND_BYTES, words, left > 0);
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
    source.words += UNIT_WORDS;
    if (++source.unit == share.units)
        source = find_unit<BITS>(call, share, min(source.tile + 1, share.tiles - 1), 0);
}

/* ---- levels ---- */

template <int BITS>
static __device__ __forceinline__ own_levels<BITS> load_row_levels(const step_call &call,
                                                                   const step_share &share, int row)
{
    own_levels<BITS> own = {};
    if (row >= share.tiles * TILE_ROWS)
        return own;
    const step_place place = step_place_of(call, share, TILE_ROWS, row);
    const int64_t own_row = min(place.row, place.matrix.rows - 1);
    const uint2 *levels = (const uint2 *)(place.matrix.levels + (own_row << BITS));
#pragma unroll
    for (int i = 0; i < (1 << BITS) / 4; i++)
        own.fours[i] = levels[i];
    return own;
}

/* The transforms of all rows of a share. */
template <int BITS>
static __device__ __forceinline__ void transform_rows(const step_call &call, const step_share &share,
                                                      own_levels<BITS> own, float *coefficients)
{
    const int rows = share.tiles * TILE_ROWS;
#pragma unroll 1
    for (int row = threadIdx.x; row < rows; row += THREADS) {
        transform_row<BITS>(own, coefficients + row * COEFFICIENT_STRIDE<BITS>);
        if (row + THREADS < rows)
            own = load_row_levels<BITS>(call, share, row + THREADS);
    }
}

/* ---- a warp's run ---- */

template <int BITS, bool SPARSE>
static __device__ __forceinline__ void
add_run(const step_call &call, const step_share &share, const step_run &run, unit_source source,
        int plane_words, uint32_t ring, const float *coefficients, float *parts, uint32_t operands)
{
    constexpr int AHEAD = RING_UNITS<BITS, SPARSE> - 1;
    int counts[1][(1 << BITS) - 1][4] = {};
    int to_fetch = run.count - AHEAD, left = run.count, unit = run.first % share.units;
    uint32_t slot = ring, free_slot = ring + AHEAD * UNIT_BYTES<BITS>;
    uint32_t x = operands + unit * PRODUCTS * OPERAND_BYTES;
    coefficients += run.first / share.units * TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
    parts += run.first / share.units * TILE_PARTS<1>;
#pragma unroll 1
    while (left > 0) {
        int units = min(share.units - unit, left); /* of this tile */
        left -= units;
#pragma unroll 1
        for (; units > 0; units--) {
            decant_copy_wait<AHEAD - 1>();
            if (to_fetch-- > 0)
                fetch<BITS>(call, share, source, plane_words, free_slot);
            decant_copy_commit();
            free_slot = slot;
            add_unit<BITS, 1>(counts, slot, x, 0);
            x += PRODUCTS * OPERAND_BYTES;
            slot = slot + UNIT_BYTES<BITS> == ring + RING_BYTES<BITS, SPARSE> ? ring : slot + UNIT_BYTES<BITS>;
        }
        finish_tile<BITS, 1>(counts, coefficients, parts);
        coefficients += TILE_ROWS * COEFFICIENT_STRIDE<BITS>;
        parts += TILE_PARTS<1>;
        x = operands;
        unit = 0;
    }
}

/* ---- the ends of rows ---- */

/* A thread for each row of the block's tiles. */
template <int BITS, bool PLAIN>
static __device__ __forceinline__ void store_rows(const step_call &call, const step_share &share,
                                                  const float *coefficients, const float *parts, float scale,
                                                  float constant, float before, const float *sparse)
{
    const int rows = share.tiles * TILE_ROWS;
#pragma unroll 1
    for (int base = 0; base < rows; base += THREADS) { /* whole warps: a shuffle follows */
        const int counted = base + (int)threadIdx.x, row = min(counted, rows - 1), own = row % TILE_ROWS;
        const float *part = parts + row / TILE_ROWS * TILE_PARTS<1> + own;
        float sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            sum += part[warp * TILE_ROWS];
        float value = scale * sum + coefficients[row * COEFFICIENT_STRIDE<BITS>] * constant;
        if (sparse)
            value += sparse[row];
        bool stores = counted < rows;
        if (!PLAIN && call.gated) {
            const float gate = step_rounded(value);
            const float up = step_rounded(__shfl_down_sync(DECANT_ALL_LANES, value, TILE_ROWS / 2));
            value = up * (gate * (1.0f / (1.0f + expf(-gate))));
            stores = stores && own < TILE_ROWS / 2;
        }
        const step_place place = step_place_of(call, share, TILE_ROWS, row);
        if (!stores || place.row >= place.matrix.rows)
            continue;
        value += base == 0 ? before : step_before(call, share, TILE_ROWS, row);
        if (call.float_y)
            ((float *)place.matrix.y)[place.row] = value;
        else
            ((__nv_bfloat16 *)place.matrix.y)[place.row] = __float2bfloat16_rn(value);
    }
}

/* ---- the kernel ---- */

/* PLAIN: one matrix, and x has no norm. What a thread keeps across the wait must stay in registers: reading it
 * back from local memory would take as long as reading x. */
template <int BITS, bool PLAIN, bool SPARSE>
static __device__ __forceinline__ void multiply(const step_call &call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ x_figures figures;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const int plane_words = call.row_bytes / (4 * BITS);
    const step_share share = PLAIN && !SPARSE ? step_share_of_one(call, TILE_ROWS, units_of(plane_words))
                                              : step_share_of(call, TILE_ROWS, units_of(plane_words));
    const step_run run = step_run_of(share, WARPS);
    const parities_layout layout = layout_of_step<BITS, SPARSE>(
        share.tiles, share.units,
        SPARSE ? step_entries_bytes(share.tiles * TILE_ROWS, call.window, call.columns) : 0);
    const uint32_t base = decant_shared_address(shared);
    const uint32_t ring = base + layout.rings + warp * RING_BYTES<BITS, SPARSE> + lane * 16;
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);

    /* before the codes, behind which they would have to wait */
    constexpr int ENTRIES = (ENTRIES_OF_BLOCK + THREADS - 1) / THREADS;
    step_entries entries = {};
    step_own_entries<ENTRIES> loaded = {};
    if constexpr (SPARSE) {
        entries = step_open_entries(call, share, TILE_ROWS, shared + layout.sparse);
        loaded = step_load_entries<ENTRIES>(entries);
    }
    const own_levels<BITS> levels = load_row_levels<BITS>(call, share, threadIdx.x);
    half_scales scales = {};
    if (!PLAIN)
        scales = load_half_scales(call, threadIdx.x);
    unit_source source = {};
    if (run.count > 0)
        source = find_unit<BITS>(call, share, run.first / share.units, run.first % share.units);
#pragma unroll 1
    for (int i = 0; i < RING_UNITS<BITS, SPARSE> - 1; i++) {
        if (i < run.count)
            fetch<BITS>(call, share, source, plane_words, ring + i * UNIT_BYTES<BITS>);
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    transform_rows<BITS>(call, share, levels, coefficients);
    for (int i = threadIdx.x; i < share.tiles * TILE_PARTS<1>; i += THREADS)
        parts[i] = 0;
    if constexpr (SPARSE)
        step_keep_entries(entries, loaded);

    decant_wait_for_earlier_kernels();
    make_planes<PLAIN>(call, scales, share.units * UNIT_WORDS * 2, figures, base, entries.x);
    const float before = step_before(call, share, TILE_ROWS, threadIdx.x);
    __syncthreads(); /* planes and coefficients are there */
    if constexpr (SPARSE)
        step_multiply_entries(entries);
    add_run<BITS, SPARSE>(call, share, run, source, plane_words, ring, coefficients, parts + warp * TILE_ROWS,
                          base + lane * 16);
    __syncthreads(); /* all parts and products are there */
    if constexpr (SPARSE)
        step_sum_entries(entries, share.tiles * TILE_ROWS);
    int sum_of_x = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum_of_x += figures.sums[i];
    store_rows<BITS, PLAIN>(call, share, coefficients, parts, figures.scale, figures.scale * (float)sum_of_x,
                            before, SPARSE ? entries.sums : NULL);
}

template <int BITS, bool SPARSE>
__global__ void __maxnreg__(STEP_REGISTERS) step_parities_kernel(const __grid_constant__ step_call call)
{
    step_take_registers(call);
    multiply<BITS, false, SPARSE>(call);
}

/* For groups that only add to y. */
template <int BITS, bool SPARSE>
__global__ void __maxnreg__(STEP_MEMORY_REGISTERS)
    step_adding_parities_kernel(const __grid_constant__ step_call call)
{
    multiply<BITS, true, SPARSE>(call);
}

/* ---- the choice of a launch ---- */

enum {
    COLUMNS_MAXIMUM = 65536, /* as in packed_parities.cu */
    CAPABILITY_END = 100,
    ENTRIES_MORE = 64,
};

/* What a group's launch is. */
typedef struct parities_launch {
    step_call call;
    int bits;
    bool sparse;
    int tiles, sparse_bytes; /* of a block */
} parities_launch;

static parities_launch launch_of(const decant_cuda *cuda, const decant_step_group *group)
{
    parities_launch launch = {step_call_of(group), group->products[0].packed->bits, false, 0, 0};
    step_call &call = launch.call;
    int64_t entries = 0;
    call.row_bytes = (call.columns + 31) / 32 * 4 * launch.bits;
    call.whole = call.columns % (32 * LANE_WORDS) == 0;
    for (int i = 0; i < group->count; i++) {
        const decant_packed_matrix *packed = group->products[i].packed;
        step_matrix &matrix = call.matrices[i];
        matrix.weights = packed->planes;
        matrix.levels = (const __half *)packed->levels;
        if (packed->sparse.count == 0)
            continue;
        matrix.row_offsets = packed->sparse.row_offsets;
        matrix.sparse_columns = packed->sparse.columns;
        matrix.sparse_values = (const __half *)packed->sparse_values;
        entries += packed->sparse.count;
    }
    /* room for a quarter more than the average, up to what the threads can bring */
    const int64_t wanted = entries / cuda->multiprocessors * 5 / 4 + ENTRIES_MORE;
    launch.sparse = entries > 0;
    call.window = (int)(wanted < (int)ENTRIES_OF_BLOCK ? wanted : (int)ENTRIES_OF_BLOCK) / 8 * 8;
    launch.tiles = step_tiles_of_block(call, TILE_ROWS, cuda->multiprocessors);
    launch.sparse_bytes =
        launch.sparse ? step_entries_bytes(launch.tiles * TILE_ROWS, call.window, call.columns) : 0;
    return launch;
}

template <int BITS> static size_t shared_bytes(const parities_launch &launch)
{
    const int units = units_of(launch.call.row_bytes / (4 * BITS));
    return (size_t)(launch.sparse ? layout_of_step<BITS, true>(launch.tiles, units, launch.sparse_bytes).total
                                  : layout_of_step<BITS, false>(launch.tiles, units, 0).total);
}

static size_t shared_bytes_of(const parities_launch &launch)
{
    return launch.bits == 2   ? shared_bytes<2>(launch)
           : launch.bits == 3 ? shared_bytes<3>(launch)
                              : shared_bytes<4>(launch);
}

bool decant_cuda_step_has_parities(decant_backend *backend, const decant_step_group *group)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    for (int i = 0; i < group->count; i++) {
        const decant_packed_matrix *packed = group->products[i].packed;
        if (!packed || packed->bits > 4 || packed->bits != group->products[0].packed->bits ||
            (packed->sparse.count > 0 && context->sparse_by_library) || (uintptr_t)packed->planes % 16 != 0)
            return false;
    }
    return step_takes(backend, group) && context->capability < CAPABILITY_END &&
           context->packed_way == DECANT_PACKED_FASTEST && group->input->x.columns <= COLUMNS_MAXIMUM &&
           shared_bytes_of(launch_of(&context->shared, group)) + STEP_STATIC_BYTES <=
               context->shared.shared_memory_bytes;
}

template <int BITS> static cudaError_t launch_bits(decant_cuda_context *context, const parities_launch &launch)
{
    const size_t bytes = shared_bytes_of(launch);
    return launch.sparse ? step_launch(context, step_parities_kernel<BITS, true>,
                                       step_adding_parities_kernel<BITS, true>, THREADS, bytes, launch.call)
                         : step_launch(context, step_parities_kernel<BITS, false>,
                                       step_adding_parities_kernel<BITS, false>, THREADS, bytes, launch.call);
}

decant_status decant_cuda_step_parities(decant_backend *backend, const decant_step_group *group,
                                        decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const parities_launch launch = launch_of(&context->shared, group);
    const cudaError_t code = launch.bits == 2   ? launch_bits<2>(context, launch)
                             : launch.bits == 3 ? launch_bits<3>(context, launch)
                                                : launch_bits<4>(context, launch);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "step_parities", err));
    return decant_cuda_launched(backend, "step_parities", err);
}
