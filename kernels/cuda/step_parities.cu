/* y = x ŵᵀ for one token from the container's bit planes, by parities on binary tensor cores: the product of
 * packed_parities.cu, which explains it, in the frame of step_block.cuh. The norm of x, its largest magnitude
 * and its planes are made inside; every block does it for itself, which takes less than handing them on would.
 */
#include "kernels/cuda/parity_block.cuh"
#include "kernels/cuda/step_block.cuh"
#include "kernels/cuda/step_sparse.cuh"

/* Warps of a block, and bytes of all their rings. A multiprocessor has room for one such block: attention
 * beside two smaller ones was slower, for a reason that is not known (tests/bench/DECODE.md). */
enum { BLOCK_WARPS = 12, RINGS_BYTES = 144 << 10 };
template <int BITS> constexpr int RING_UNITS = RINGS_BYTES / BLOCK_WARPS / UNIT_BYTES<BITS>;

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct parities_layout {
    int operands, coefficients, parts, sparse, rings, total;
} parities_layout;

/* Sparse entries that a block brings in its first window. */
enum { ENTRIES_OF_BLOCK = 3584 };

/* sparse_bytes: what the sparse part takes. */
template <int BITS>
static __host__ __device__ __forceinline__ parities_layout step_layout(int tiles, int units, int sparse_bytes)
{
    parities_layout layout;
    layout.operands = 0;
    layout.coefficients = units * PRODUCTS * OPERAND_BYTES;
    layout.parts = layout.coefficients + tiles * TILE_ROWS * COEFFICIENT_STRIDE<BITS> * 4;
    layout.sparse = layout.parts + tiles * BLOCK_WARPS * TILE_ROWS * 4;
    layout.rings = layout.sparse + (sparse_bytes + 15) / 16 * 16;
    layout.total = layout.rings + BLOCK_WARPS * RING_UNITS<BITS> * UNIT_BYTES<BITS>;
    return layout;
}

/* Where a warp's next unit is, and this lane's words of its row. */
typedef struct step_source {
    int tile, unit;
    const uint32_t *words;
} step_source;

template <int BITS>
static __device__ __forceinline__ void find_tile(const step_call &call, const step_share &share,
                                                 step_source &source)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const step_place place = step_place_of(call, share, TILE_ROWS, source.tile * TILE_ROWS + lane / 4);
    const int row = min(place.row, place.matrix.rows - 1);
    source.words = (const uint32_t *)((const char *)place.matrix.weights + (int64_t)row * call.row_bytes) +
                   lane % 4 * LANE_WORDS;
}

/* Starts copying the unit and moves on to the next. Where rows of planes are not whole, words go one by one. */
template <int BITS>
static __device__ __forceinline__ void fetch(const step_call &call, const step_share &share,
                                             step_source &source, uint32_t slot)
{
    const int lane = threadIdx.x % DECANT_WARP, words = call.row_bytes / (4 * BITS);
    const int word = source.unit * UNIT_WORDS, own_word = word + lane % 4 * LANE_WORDS;
    const uint32_t target = slot + lane * 16;
    if (call.whole) {
        const bool valid = own_word < words;
#pragma unroll
        for (int bit = 0; bit < BITS; bit++)
            decant_copy_line_16(target + bit * OPERAND_BYTES,
                                valid ? source.words + bit * words + word : (const uint32_t *)call.x, valid);
    } else {
#pragma unroll 1
        for (int i = 0; i < BITS * LANE_WORDS; i++) {
            const int bit = i / LANE_WORDS, own = i % LANE_WORDS;
            const bool valid = own_word + own < words;
            decant_copy_4(target + bit * OPERAND_BYTES + own * 4,
                          valid ? source.words + bit * words + word + own : (const uint32_t *)call.x, valid);
        }
    }
    if (++source.unit == share.units) {
        source.unit = 0;
        if (++source.tile < share.tiles)
            find_tile<BITS>(call, share, source);
    }
}

/* A lane's words of a unit, and of the planes of x beside them. */
template <int BITS> struct unit_words {
    uint4 planes[BITS], x[PRODUCTS];
};

template <int BITS>
static __device__ __forceinline__ unit_words<BITS> load_unit(uint32_t slot, uint32_t operands)
{
    unit_words<BITS> words;
#pragma unroll
    for (int bit = 0; bit < BITS; bit++)
        words.planes[bit] = load_shared(slot + bit * OPERAND_BYTES);
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++)
        words.x[product] = load_shared(operands + product * OPERAND_BYTES);
    return words;
}

/* counts += one unit's. */
template <int BITS>
static __device__ __forceinline__ void count_unit(int (&counts)[1][(1 << BITS) - 1][4],
                                                  const unit_words<BITS> &words)
{
#pragma unroll
    for (int product = 0; product < PRODUCTS; product++)
#pragma unroll
        for (int subset = 1; subset < 1 << BITS; subset++) {
            uint32_t low = 0, high = 0;
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                if (subset >> bit & 1) {
                    low ^= product == 0 ? words.planes[bit].x : words.planes[bit].z;
                    high ^= product == 0 ? words.planes[bit].y : words.planes[bit].w;
                }
            count_ones(counts[0][subset - 1], words.x[product], low, high);
        }
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
                                                      const own_levels<BITS> &first, float *coefficients)
{
    const int rows = share.tiles * TILE_ROWS;
    for (int row = threadIdx.x; row < rows; row += blockDim.x)
        transform_row<BITS>(row == (int)threadIdx.x ? first : load_row_levels<BITS>(call, share, row),
                            coefficients + row * COEFFICIENT_STRIDE<BITS>);
}

/* ---- x ---- */

/* What the whole block must know of x. */
typedef struct x_figures {
    float squares[BLOCK_WARPS]; /* Σ x² */
    uint32_t
        largest[BLOCK_WARPS]; /* |x|, or |x ∘ the norm's scale|: magnitudes are ordered as their bits are */
    int sums[BLOCK_WARPS];    /* of the fixed-point values */
} x_figures;

/* x, as the products take it: `inverse` is 1 / root mean square where there is a norm. `largest` is no less
 * than the largest magnitude. */
typedef struct x_scale {
    float inverse, largest;
} x_scale;

static __device__ __forceinline__ void measure_word(const uint4 (&vectors)[DECANT_PLANE_VECTORS],
                                                    const step_scales &scales, bool norm, float &square,
                                                    uint32_t &largest)
{
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
        const float4 low = scales.fours[2 * i], high = scales.fours[2 * i + 1];
        const float own[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = step_floats(pairs[j]);
            square = fmaf(values.x, values.x, square);
            square = fmaf(values.y, values.y, square);
            largest = max(largest, __float_as_uint(fabsf(norm ? values.x * own[2 * j] : values.x)));
            largest = max(largest, __float_as_uint(fabsf(norm ? values.y * own[2 * j + 1] : values.y)));
        }
    }
}

/* By all threads, whose first word is `own`; a barrier inside. One look at x suffices for both figures: what
 * the norm's rounding may add to the largest is allowed for. An undefined x makes the square so, and with it
 * all. */
static __device__ __forceinline__ x_scale measure_x(const step_call &call, const step_scales &scales,
                                                    const uint4 (&own)[DECANT_PLANE_VECTORS],
                                                    x_figures &figures)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const float allowance = 1 + 1.0f / 64;
    float square = 0;
    uint32_t largest = 0;
    measure_word(own, scales, call.norm != NULL, square, largest);
    for (int word = threadIdx.x + blockDim.x; word * DECANT_PLANE_COLUMNS < call.columns; word += blockDim.x) {
        uint4 vectors[DECANT_PLANE_VECTORS];
        decant_load_columns(vectors, call.x, word * DECANT_PLANE_COLUMNS, call.columns);
        measure_word(vectors, step_load_scales(call, word), call.norm != NULL, square, largest);
    }
    square = decant_warp_sum(square);
    largest = __reduce_max_sync(DECANT_ALL_LANES, largest);
    if (lane == 0) {
        figures.squares[warp] = square;
        figures.largest[warp] = largest;
    }
    __syncthreads();
    square = 0;
    largest = 0;
#pragma unroll
    for (int i = 0; i < BLOCK_WARPS; i++) {
        square += figures.squares[i];
        largest = max(largest, figures.largest[i]);
    }
    if (!call.norm)
        return {1, __uint_as_float(largest)};
    const float inverse = 1.0f / sqrtf(square / (float)call.columns + call.epsilon);
    return {inverse, inverse * __uint_as_float(largest) * allowance};
}

/* The planes of x, normed where it is to be, and x itself where `kept` [columns], shared, is there. Returns the
 * scale of the planes; barriers inside, and another must follow. */
static __device__ __forceinline__ float make_planes(const step_call &call, const step_scales &scales, int words,
                                                    x_figures &figures, uint32_t operands, __nv_bfloat16 *kept)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    uint4 own[DECANT_PLANE_VECTORS];
    decant_load_columns(own, call.x, threadIdx.x * DECANT_PLANE_COLUMNS, call.columns);
    const x_scale scale = measure_x(call, scales, own, figures);
    const float factor = decant_fixed_point_factor(scale.largest);
    if (call.norm)
        step_norm(own, scales, scale.inverse);
    int sum = 0;
    for (int word = threadIdx.x; word < words; word += blockDim.x) {
        uint32_t planes[DECANT_FIXED_POINT_PLANES];
        if (word != (int)threadIdx.x)
            step_load_word(own, call, word, scale.inverse);
#pragma unroll
        for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
            if (kept && word * DECANT_PLANE_COLUMNS + i * 8 < call.columns)
                ((uint4 *)kept)[word * DECANT_PLANE_VECTORS + i] = own[i];
        decant_columns_to_fixed_point(planes, own, factor);
        sum = decant_fixed_point_sum(sum, planes);
        decant_transpose_planes(planes);
        const int product = word / UNIT_WORDS * PRODUCTS + word / 2 % PRODUCTS;
        uint32_t address = operands + product * OPERAND_BYTES + word / LANE_WORDS % 4 * 16 + word % 2 * 8;
#pragma unroll
        for (int plane = 0; plane < DECANT_FIXED_POINT_PLANES / 2; plane++, address += 4 * 16)
            store_shared_pair(address, planes[plane], planes[plane + 8]);
    }
    sum = __reduce_add_sync(DECANT_ALL_LANES, sum);
    if (lane == 0)
        figures.sums[warp] = sum;
    return scale.largest / DECANT_FIXED_POINT_MAXIMUM;
}

/* ---- the kernel ---- */

template <int BITS, bool SPARSE>
__global__ void __launch_bounds__(BLOCK_WARPS *DECANT_WARP, 1)
    step_parities_kernel(const __grid_constant__ step_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ x_figures figures;
    constexpr int UNITS = RING_UNITS<BITS>, RING_BYTES = UNITS * UNIT_BYTES<BITS>;
    constexpr int ENTRIES = (ENTRIES_OF_BLOCK + BLOCK_WARPS * DECANT_WARP - 1) / (BLOCK_WARPS * DECANT_WARP);
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const step_share share = step_share_of(call, TILE_ROWS, units_of(call.row_bytes / (4 * BITS)));
    const step_run run = step_run_of(share, BLOCK_WARPS);
    const parities_layout layout =
        step_layout<BITS>(share.tiles, share.units,
                          SPARSE ? step_entries_bytes(share.tiles * TILE_ROWS, call.window, call.columns) : 0);
    const uint32_t base = decant_shared_address(shared);
    const uint32_t ring = base + layout.rings + warp * RING_BYTES + lane * 16;
    const uint32_t operands = base + layout.operands + lane * 16;
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);

    /* before the codes, behind which they would have to wait */
    step_entries entries = {};
    step_own_entries<ENTRIES> loaded = {};
    if constexpr (SPARSE) {
        entries = step_open_entries(call, share, TILE_ROWS, shared + layout.sparse);
        loaded = step_load_entries<ENTRIES>(entries);
    }
    const own_levels<BITS> levels = load_row_levels<BITS>(call, share, threadIdx.x);
    step_source source = {run.first / share.units, run.first % share.units, NULL};
    if (run.count > 0)
        find_tile<BITS>(call, share, source);
    int tile = source.tile, unit = source.unit;
#pragma unroll 1
    for (int i = 0; i < UNITS - 1; i++) {
        if (i < run.count)
            fetch<BITS>(call, share, source, base + layout.rings + warp * RING_BYTES + i * UNIT_BYTES<BITS>);
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    transform_rows<BITS>(call, share, levels, coefficients);
    for (int i = threadIdx.x; i < share.tiles * BLOCK_WARPS * TILE_ROWS; i += blockDim.x)
        parts[i] = 0;
    if constexpr (SPARSE)
        step_keep_entries(entries, loaded);
    const step_scales scales = step_load_scales(call, threadIdx.x);

    decant_wait_for_earlier_kernels();
    const float scale =
        make_planes(call, scales, share.units * UNIT_WORDS, figures, base + layout.operands, entries.x);
    const float before = step_before(call, share, TILE_ROWS, threadIdx.x / STEP_ROW_LANES);
    __syncthreads(); /* planes and coefficients are there */
    if constexpr (SPARSE)
        step_multiply_entries(entries);
    int counts[1][(1 << BITS) - 1][4] = {};
    int slot = 0, free_slot = (UNITS - 1) * UNIT_BYTES<BITS>;
#pragma unroll 1
    for (int i = 0; i < run.count; i++) {
        decant_copy_wait<UNITS - 2>();
        const unit_words<BITS> words = load_unit<BITS>(ring + slot, operands + unit * PRODUCTS * OPERAND_BYTES);
        if (i + UNITS - 1 < run.count)
            fetch<BITS>(call, share, source, base + layout.rings + warp * RING_BYTES + free_slot);
        decant_copy_commit();
        free_slot = slot;
        slot = slot + UNIT_BYTES<BITS> == RING_BYTES ? 0 : slot + UNIT_BYTES<BITS>;
        count_unit<BITS>(counts, words);
        if (++unit == share.units || i + 1 == run.count) {
            finish_tile<BITS, 1>(counts, coefficients + tile * TILE_ROWS * COEFFICIENT_STRIDE<BITS>,
                                 parts + (tile * BLOCK_WARPS + warp) * TILE_ROWS);
            unit = 0;
            tile++;
        }
    }
    __syncthreads(); /* all parts and products are there */
    int sum_of_x = 0, window_begin = 0;
#pragma unroll
    for (int i = 0; i < BLOCK_WARPS; i++)
        sum_of_x += figures.sums[i];
    const float constant = scale * (float)sum_of_x;
    if constexpr (SPARSE)
        step_last_window(entries, share.tiles * TILE_ROWS, &window_begin);
    step_store_rows(call, share, TILE_ROWS, BLOCK_WARPS, parts, before, [&](int row, float sum) {
        float value = scale * sum + coefficients[row * COEFFICIENT_STRIDE<BITS>] * constant;
        if constexpr (SPARSE)
            value += entries.sums[row] + step_entry_sum(entries, row, window_begin, entries.count);
        return value;
    });
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

template <int BITS> static size_t shared_bytes(const step_call &call, int tiles, int sparse_bytes)
{
    return (size_t)step_layout<BITS>(tiles, units_of(call.row_bytes / (4 * BITS)), sparse_bytes).total;
}

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

static size_t shared_bytes_of(const parities_launch &launch)
{
    return launch.bits == 2   ? shared_bytes<2>(launch.call, launch.tiles, launch.sparse_bytes)
           : launch.bits == 3 ? shared_bytes<3>(launch.call, launch.tiles, launch.sparse_bytes)
                              : shared_bytes<4>(launch.call, launch.tiles, launch.sparse_bytes);
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
    void (*kernel)(step_call) =
        launch.sparse ? step_parities_kernel<BITS, true> : step_parities_kernel<BITS, false>;
    const cudaError_t code = decant_keep_shared_memory(kernel);
    if (code != cudaSuccess)
        return code;
    return decant_launch_early(context, kernel, (unsigned)context->shared.multiprocessors,
                               BLOCK_WARPS * DECANT_WARP, shared_bytes_of(launch), launch.call);
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
