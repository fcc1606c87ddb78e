/* y = x ŵᵀ for one token from the container's bit planes, by parities on binary tensor cores: the product of
 * packed_parities.cu, which explains it, in the frame of step_block.cuh. */
#include "kernels/cuda/parity_codes.cuh"
#include "kernels/cuda/parity_levels.cuh"
#include "kernels/cuda/parity_operands.cuh"
#include "kernels/cuda/step_block.cuh"
#include "kernels/cuda/step_codes.cuh"
#include "kernels/cuda/step_planes.cuh"
#include "kernels/cuda/step_sparse.cuh"

/* Sparse entries that a block brings in its first window, at most. */
enum { ENTRIES_OF_BLOCK = 3584 };

/* Where a block's arrays lie in shared memory, in bytes; the planes of x come first. */
typedef struct parities_layout {
    int places, coefficients, parts, sparse, rings, total;
} parities_layout;

/* sparse_bytes: what the sparse part takes. */
template <int BITS, bool SPARSE>
static __host__ __device__ __forceinline__ parities_layout layout_of_step(int tiles, int units,
                                                                          int sparse_bytes)
{
    parities_layout layout;
    layout.places = units * PRODUCTS * OPERAND_BYTES;
    layout.coefficients = layout.places + tiles * TILE_ROWS * (int)sizeof(void *);
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse = layout.parts + tiles * TILE_PARTS<1> * 4;
    layout.rings = layout.sparse + (sparse_bytes + 15) / 16 * 16;
    layout.total = layout.rings + WARPS * RING_BYTES<BITS, SPARSE>;
    return layout;
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

/* ---- the ends of rows ---- */

/* Where each row of the block's tiles is stored, NULL where it is not: of a gated pair, only the first. */
static __device__ __forceinline__ void find_places(const step_call &call, const step_share &share,
                                                   char **places)
{
    const int bytes = call.float_y ? 4 : 2;
#pragma unroll 1 /* what is not there need not be fetched: several kernels share the instruction cache */
    for (int row = threadIdx.x; row < share.tiles * TILE_ROWS; row += THREADS) {
        const step_place place = step_place_of(call, share, TILE_ROWS, row);
        const bool stores = place.row < place.matrix.rows && !(call.gated && row % TILE_ROWS >= TILE_ROWS / 2);
        places[row] = stores ? (char *)place.matrix.y + (int64_t)place.row * bytes : NULL;
    }
}

/* Of the parts of a row: which is what y holds before it is added to. */
static __device__ __forceinline__ int place_of_before(uint32_t row)
{
    return row / TILE_ROWS * TILE_PARTS<1> + WARPS * TILE_ROWS + row % TILE_ROWS;
}

/* Of rows from `first` on, a thread's each. */
static __device__ __forceinline__ void keep_before(int first, int rows, const char *const *places, float *parts)
{
#pragma unroll 1
    for (int row = first + (int)threadIdx.x; row < rows; row += THREADS)
        parts[place_of_before(row)] = step_before(step_load_before((const uint16_t *)places[row]));
}

/* What is known of a row of the block before its parts are. */
typedef struct row_end {
    int row;
    char *place;       /* NULL: it is not stored */
    const float *part; /* the first warp's */
    float constant;
} row_end;

/* Of row `row`, or of the last. The block has rows. */
template <int BITS>
static __device__ __forceinline__ row_end end_of_row(int row, int rows, char *const *places,
                                                     const float *coefficients, const float *parts,
                                                     float constant)
{
    const uint32_t own = min(row, rows - 1);
    return {(int)own, row < rows ? places[own] : NULL,
            parts + own / TILE_ROWS * TILE_PARTS<1> + own % TILE_ROWS,
            coefficients[own * COEFFICIENT_STRIDE<BITS>] * constant};
}

/* Stores a row, whose parts are there; by whole warps. sparse: sums of the rows' entries, or NULL. */
template <bool PLAIN>
static __device__ __forceinline__ void store_row(const step_call &call, const row_end &end, float scale,
                                                 const float *sparse)
{
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++)
        sum += end.part[warp * TILE_ROWS];
    float value = fmaf(sum, scale, end.constant);
    if (sparse)
        value += sparse[end.row];
    if (!PLAIN && call.gated) {
        const float up = __shfl_down_sync(DECANT_ALL_LANES, value, TILE_ROWS / 2);
        value = step_gated(value, up);
    }
    if (!end.place)
        return;
    value += end.part[WARPS * TILE_ROWS];
    if (call.float_y)
        *(float *)end.place = value;
    else
        *(__nv_bfloat16 *)end.place = __float2bfloat16_rn(value);
}

/* ---- the kernel ---- */

/* PLAIN: one matrix, and x has no norm. What a thread keeps across the wait must stay in registers: reading it
 * back from local memory would take as long as reading x. */
template <int BITS, bool PLAIN, bool SPARSE, planes_form FORM>
static __device__ __forceinline__ void multiply(const step_call &call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ x_figures figures;
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    constexpr bool ONE = PLAIN && !SPARSE;
    __shared__ step_share kept_share;
    const step_share share =
        ONE ? step_share_of_one(call, TILE_ROWS, call.units) : step_share_of(call, TILE_ROWS, call.units);
    if (threadIdx.x == 0)
        kept_share = share;
    const step_run units = step_run_of(share, WARPS);
    const parities_layout layout = layout_of_step<BITS, SPARSE>(
        share.tiles, call.units,
        SPARSE ? step_entries_bytes(share.tiles * TILE_ROWS, call.window, call.columns) : 0);
    const uint32_t base = decant_shared_address(shared);
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);
    char **places = (char **)(shared + layout.places);
    own_run run = {};
    run.tile = decant_kept(units.first / call.units);
    run.unit = decant_kept(units.first % call.units);
    run.count = units.count;
    run.ring = base + layout.rings + warp * RING_BYTES<BITS, SPARSE> + lane * 16;
    run.operands = base + lane * 16;
    run.coefficients = coefficients;
    run.parts = parts + warp * TILE_ROWS;

    /* before the codes, behind which they would have to wait */
    constexpr int ENTRIES = (ENTRIES_OF_BLOCK + THREADS - 1) / THREADS;
    step_entries entries = {};
    step_own_entries<ENTRIES> loaded = {};
    if constexpr (SPARSE) {
        entries = step_open_entries(call, share, TILE_ROWS, shared + layout.sparse);
        loaded = step_load_entries<ENTRIES>(entries);
    }
    constexpr int AHEAD = RING_UNITS<BITS, SPARSE> - 1;
    const bool is_long = share.tiles * call.units > WARPS * AHEAD;
    const own_levels<BITS> levels = load_row_levels<BITS>(call, share, threadIdx.x);
    half_scales scales = {};
    if (!PLAIN)
        scales = step_load_scales<HALF_VECTORS>(call, threadIdx.x);
    if (run.count > 0)
        run.source = find_unit<BITS, FORM>(call, share, run.tile, run.unit);
#pragma unroll 1
    for (int i = 0; i < AHEAD; i++) {
        const uint32_t slot = run.ring + i * UNIT_BYTES<BITS>;
        leave_tile<BITS, FORM, ONE>(call, share, run.source);
        if (is_long)
            decant_copy_wait<HELD_UNITS<BITS> - 1>();
        if (i < run.count)
            fetch<BITS, FORM>(call, run.source, slot, true);
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    find_places(call, share, places);
    transform_rows<BITS>(call, share, levels, coefficients);
#pragma unroll 1
    for (int i = threadIdx.x; i < share.tiles * TILE_PARTS<1>; i += THREADS)
        parts[i] = 0;
    if constexpr (SPARSE)
        step_keep_entries(entries, loaded);

    const int rows = share.tiles * TILE_ROWS, halves = call.units * UNIT_WORDS * 2;
    /* y is asked for together with x where that is what the kernel is for */
    const bool adds_early = PLAIN && call.accumulate && (int)threadIdx.x < rows;
    const uint16_t *early = decant_kept(adds_early ? (const uint16_t *)places[threadIdx.x] : NULL);
    const int early_place = decant_kept(place_of_before(threadIdx.x));
    const uint32_t own_planes = decant_kept((int)address_of_half(base, threadIdx.x));

    decant_wait_for_earlier_kernels();
    kept_halves kept = load_halves(call);
    const uint32_t before = PLAIN ? step_load_before(early) : 0;
    make_planes<PLAIN>(call, scales, kept, halves, figures, own_planes, entries.x);
    if (PLAIN && early)
        parts[early_place] = step_before(before);
    if (call.accumulate && rows > (PLAIN ? THREADS : 0))
        keep_before(PLAIN ? THREADS : 0, rows, places, parts);
    __syncthreads(); /* planes, coefficients and entries are there */
    if constexpr (SPARSE)
        step_multiply_entries(entries);
    add_run<BITS, SPARSE, ONE, FORM>(call, kept_share, run);
    const int own_rows = kept_share.tiles * TILE_ROWS;
    int sum_of_x = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum_of_x += figures.sums[i];
    const float scale = figures.scale, constant = scale * (float)sum_of_x;
    auto end_of = [&](int row) {
        return end_of_row<BITS>(row, own_rows, places, coefficients, parts, constant);
    };
    row_end end = {0, NULL, parts, 0};
    if (own_rows > 0)
        end = end_of(threadIdx.x);
    __syncthreads(); /* all parts and products are there */
    if constexpr (SPARSE)
        step_sum_entries(entries, own_rows);
    store_row<PLAIN>(call, end, scale, SPARSE ? entries.sums : NULL);
#pragma unroll 1
    for (int row = threadIdx.x + THREADS; row - (int)threadIdx.x < own_rows; row += THREADS)
        store_row<PLAIN>(call, end_of(row), scale, SPARSE ? entries.sums : NULL);
}

template <int BITS, bool SPARSE, planes_form FORM>
__global__ void __maxnreg__(STEP_REGISTERS) step_parities_kernel(const __grid_constant__ step_call call)
{
    step_take_registers(call);
    multiply<BITS, false, SPARSE, FORM>(call);
}

/* For groups that only add to y. */
template <int BITS, bool SPARSE, planes_form FORM>
__global__ void __maxnreg__(STEP_MEMORY_REGISTERS)
    step_adding_parities_kernel(const __grid_constant__ step_call call)
{
    multiply<BITS, true, SPARSE, FORM>(call);
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
    planes_form form;
    int tiles, sparse_bytes; /* of a block */
} parities_launch;

static parities_launch launch_of(const decant_cuda *cuda, const decant_step_group *group)
{
    parities_launch launch = {
        step_call_of(group), group->products[0].packed->bits, false, PLANES_BY_WORDS, 0, 0};
    step_call &call = launch.call;
    int64_t entries = 0;
    call.plane_words = decant_plane_words(call.columns, group->products[0].packed->arranged);
    call.row_bytes = call.plane_words * 4 * launch.bits;
    call.units = units_of(call.plane_words);
    launch.form = group->products[0].packed->arranged     ? PLANES_ARRANGED
                  : call.columns % (32 * LANE_WORDS) == 0 ? PLANES_BY_ROWS
                                                          : PLANES_BY_WORDS;
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
    const int units = launch.call.units;
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
            packed->arranged != group->products[0].packed->arranged ||
            (packed->sparse.count > 0 && context->sparse_by_library) || (uintptr_t)packed->planes % 16 != 0)
            return false;
    }
    return step_takes(backend, group) && context->capability < CAPABILITY_END &&
           context->packed_way == DECANT_PACKED_FASTEST && group->input->x.columns <= COLUMNS_MAXIMUM &&
           shared_bytes_of(launch_of(&context->shared, group)) + STEP_STATIC_BYTES <=
               context->shared.shared_memory_bytes;
}

template <int BITS, bool SPARSE, planes_form FORM>
static cudaError_t launch_kind(decant_cuda_context *context, const parities_launch &launch)
{
    return step_launch(context, step_parities_kernel<BITS, SPARSE, FORM>,
                       step_adding_parities_kernel<BITS, SPARSE, FORM>, THREADS, shared_bytes_of(launch),
                       launch.call);
}

template <int BITS, bool SPARSE>
static cudaError_t launch_form(decant_cuda_context *context, const parities_launch &launch)
{
    return by_form(launch.form, [&](auto form) {
        return launch_kind<BITS, SPARSE, decltype(form)::value>(context, launch);
    });
}

template <int BITS> static cudaError_t launch_bits(decant_cuda_context *context, const parities_launch &launch)
{
    return launch.sparse ? launch_form<BITS, true>(context, launch) : launch_form<BITS, false>(context, launch);
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
