/* y = x weightᵀ for one token and BF16 weights, at the rate at which memory gives them. The frame of the kernel
 * is step_block.cuh; a unit is four rows of 256 columns, of which a lane takes eight columns of each row
 * through a ring of its own in shared memory: it copies and reads the same sixteen bytes, so nothing need be
 * waited for but its own copies. */
#include "kernels/cuda/step_block.cuh"

enum {
    TILE_ROWS = 4,
    LANE_COLUMNS = 8,
    UNIT_COLUMNS = DECANT_WARP * LANE_COLUMNS,
    ROW_BYTES = DECANT_WARP * 16, /* of a unit */
    UNIT_BYTES = TILE_ROWS * ROW_BYTES,
    WARPS = 8,
    STAGES = 10, /* of a ring: so long that a multiprocessor has room for one block */
};

/* Where a block's arrays lie in shared memory, in bytes. */
typedef struct dense_layout {
    int x, parts, rings, total;
} dense_layout;

static __host__ __device__ __forceinline__ dense_layout layout_of(int tiles, int units)
{
    dense_layout layout;
    layout.x = 0; /* BF16, zeros beyond the last column */
    layout.parts = units * UNIT_COLUMNS * 2;
    layout.rings = layout.parts + tiles * WARPS * TILE_ROWS * 4;
    layout.total = layout.rings + WARPS * STAGES * UNIT_BYTES;
    return layout;
}

/* Where a warp's next unit is, and this lane's columns of its four rows. */
typedef struct step_source {
    int tile, unit;
    const char *rows[TILE_ROWS];
} step_source;

static __device__ __forceinline__ void find_tile(const step_call &call, const step_share &share,
                                                 step_source &source)
{
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const step_place place = step_place_of(call, share, TILE_ROWS, source.tile * TILE_ROWS + i);
        const int row = min(place.row, place.matrix.rows - 1);
        source.rows[i] =
            (const char *)place.matrix.weights + (int64_t)row * call.row_bytes + threadIdx.x % DECANT_WARP * 16;
    }
}

/* Starts copying the unit and moves on to the next. */
static __device__ __forceinline__ void fetch(const step_call &call, const step_share &share,
                                             step_source &source, uint32_t slot)
{
    const int lane = threadIdx.x % DECANT_WARP;
    const bool valid = source.unit * UNIT_COLUMNS + lane * LANE_COLUMNS < call.columns;
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++)
        decant_copy_line_16(slot + i * ROW_BYTES,
                            valid ? source.rows[i] + source.unit * ROW_BYTES : (const char *)call.x, valid);
    if (++source.unit == share.units) {
        source.unit = 0;
        if (++source.tile < share.tiles)
            find_tile(call, share, source);
    }
}

static __device__ __forceinline__ uint4 load_shared(uint32_t address)
{
    uint4 value;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(address)
                 : "memory");
    return value;
}

static __device__ __forceinline__ void add_unit(float (&sums)[TILE_ROWS], uint32_t slot, uint32_t x_address)
{
    const uint4 x = load_shared(x_address);
    const float2 values[4] = {decant_unpair(x.x), decant_unpair(x.y), decant_unpair(x.z), decant_unpair(x.w)};
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const uint4 row = load_shared(slot + i * ROW_BYTES);
        const float2 weights[4] = {decant_unpair(row.x), decant_unpair(row.y), decant_unpair(row.z),
                                   decant_unpair(row.w)};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sums[i] = fmaf(weights[j].x, values[j].x, sums[i]);
            sums[i] = fmaf(weights[j].y, values[j].y, sums[i]);
        }
    }
}

/* What the warp adds to the rows of a tile, and clears the sums. */
static __device__ __forceinline__ void finish_tile(float (&sums)[TILE_ROWS], float *parts)
{
#pragma unroll
    for (int i = 0; i < TILE_ROWS; i++) {
        const float sum = decant_warp_sum(sums[i]);
        if (threadIdx.x % DECANT_WARP == 0)
            parts[i] = sum;
        sums[i] = 0;
    }
}

/* ---- x ---- */

static __device__ __forceinline__ float add_squares(float sum, const uint4 (&vectors)[DECANT_PLANE_VECTORS])
{
#pragma unroll
    for (int i = 0; i < DECANT_PLANE_VECTORS; i++) {
        const uint32_t pairs[4] = {vectors[i].x, vectors[i].y, vectors[i].z, vectors[i].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 values = decant_unpair(pairs[j]);
            sum += values.x * values.x;
            sum += values.y * values.y;
        }
    }
    return sum;
}

/* 1 / root mean square of x, where there is a norm. `own` are the columns of this thread's word. `parts`
 * [warps] is shared; barriers inside. */
static __device__ __forceinline__ float inverse_rms(const step_call &call,
                                                    const uint4 (&own)[DECANT_PLANE_VECTORS], float *parts)
{
    if (!call.norm)
        return 1.0f;
    float sum = add_squares(0.0f, own);
    for (int word = threadIdx.x + blockDim.x; word * DECANT_PLANE_COLUMNS < call.columns; word += blockDim.x) {
        uint4 vectors[DECANT_PLANE_VECTORS];
        decant_load_columns(vectors, call.x, word * DECANT_PLANE_COLUMNS, call.columns);
        sum = add_squares(sum, vectors);
    }
    return 1.0f / sqrtf(decant_block_sum(sum, parts) / (float)call.columns + call.epsilon);
}

/* The columns of a word beyond this thread's own, as the products take them. */
static __device__ __forceinline__ void load_word(uint4 (&vectors)[DECANT_PLANE_VECTORS], const step_call &call,
                                                 int word, float inverse)
{
    decant_load_columns(vectors, call.x, word * DECANT_PLANE_COLUMNS, call.columns);
    if (call.norm)
        step_norm(vectors, step_load_scales<DECANT_PLANE_VECTORS>(call, word), inverse);
}

/* x in shared memory, normed where it is to be. */
static __device__ __forceinline__ void make_x(const step_call &call,
                                              const step_scales<DECANT_PLANE_VECTORS> &scales, int words,
                                              uint4 *target, float *parts)
{
    uint4 own[DECANT_PLANE_VECTORS];
    decant_load_columns(own, call.x, threadIdx.x * DECANT_PLANE_COLUMNS, call.columns);
    const float inverse = inverse_rms(call, own, parts);
    if (call.norm)
        step_norm(own, scales, inverse);
    for (int word = threadIdx.x; word < words; word += blockDim.x) {
        if (word != (int)threadIdx.x)
            load_word(own, call, word, inverse);
#pragma unroll
        for (int i = 0; i < DECANT_PLANE_VECTORS; i++)
            target[word * DECANT_PLANE_VECTORS + i] = own[i];
    }
}

/* ---- the ends of rows ---- */

/* parts [tiles, WARPS, TILE_ROWS]; all lanes of a row get the sum. */
static __device__ __forceinline__ float sum_row(const float *parts, int row)
{
    float sum = 0;
#pragma unroll
    for (int warp = threadIdx.x % STEP_ROW_LANES; warp < WARPS; warp += STEP_ROW_LANES)
        sum += parts[(row / TILE_ROWS * WARPS + warp) * TILE_ROWS + row % TILE_ROWS];
#pragma unroll
    for (int offset = 1; offset < STEP_ROW_LANES; offset *= 2)
        sum += __shfl_xor_sync(DECANT_ALL_LANES, sum, offset);
    return sum;
}

/* Stores all rows of the block, whose parts are there. `before`: what was loaded of row
 * threadIdx.x / STEP_ROW_LANES. */
static __device__ __forceinline__ void store_rows(const step_call &call, const step_share &share,
                                                  const float *parts, uint32_t before)
{
    constexpr int AT_ONCE = WARPS * DECANT_WARP / STEP_ROW_LANES;
    const int own_rows = step_own_rows(call, TILE_ROWS), rows = share.tiles * own_rows;
    for (int base = 0; base < rows; base += AT_ONCE) { /* whole warps: shuffles follow */
        const int counted = base + (int)threadIdx.x / STEP_ROW_LANES, own = min(counted, rows - 1);
        const int row = own / own_rows * TILE_ROWS + own % own_rows;
        float value = sum_row(parts, row);
        if (call.gated)
            value = step_gated(value, sum_row(parts, row + own_rows));
        const step_place place = step_place_of(call, share, TILE_ROWS, row);
        if (counted >= rows || place.row >= place.matrix.rows || threadIdx.x % STEP_ROW_LANES != 0)
            continue;
        value +=
            step_before(base == 0 ? before : step_load_before(step_place_before(call, share, TILE_ROWS, row)));
        if (call.float_y)
            ((float *)place.matrix.y)[place.row] = value;
        else
            ((__nv_bfloat16 *)place.matrix.y)[place.row] = __float2bfloat16_rn(value);
    }
}

/* ---- the kernel ---- */

__global__ void __launch_bounds__(WARPS *DECANT_WARP, 1)
    step_dense_kernel(const __grid_constant__ step_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float block_parts[WARPS];
    const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
    const step_share share = step_share_of(call, TILE_ROWS, (call.columns + UNIT_COLUMNS - 1) / UNIT_COLUMNS);
    const step_run run = step_run_of(share, WARPS);
    const dense_layout layout = layout_of(share.tiles, share.units);
    const uint32_t base = decant_shared_address(shared) + lane * 16;
    const uint32_t ring = base + layout.rings + warp * STAGES * UNIT_BYTES;
    float *parts = (float *)(shared + layout.parts);

    step_source source = {run.first / share.units, run.first % share.units, {}};
    if (run.count > 0)
        find_tile(call, share, source);
    int tile = source.tile, unit = source.unit;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < run.count)
            fetch(call, share, source, ring + i * UNIT_BYTES);
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    for (int i = threadIdx.x; i < share.tiles * WARPS * TILE_ROWS; i += blockDim.x)
        parts[i] = 0;
    const step_scales<DECANT_PLANE_VECTORS> scales = step_load_scales<DECANT_PLANE_VECTORS>(call, threadIdx.x);

    const uint16_t *place_before =
        decant_kept(step_place_before(call, share, TILE_ROWS, threadIdx.x / STEP_ROW_LANES));

    decant_wait_for_earlier_kernels();
    make_x(call, scales, share.units * UNIT_COLUMNS / DECANT_PLANE_COLUMNS, (uint4 *)(shared + layout.x),
           block_parts);
    const uint32_t before = step_load_before(place_before);
    __syncthreads(); /* x is there, and the parts are zeros */
    float sums[TILE_ROWS] = {};
    int slot = 0, free_slot = (STAGES - 1) * UNIT_BYTES;
#pragma unroll 1
    for (int i = 0; i < run.count; i++) {
        decant_copy_wait<STAGES - 2>();
        if (i + STAGES - 1 < run.count)
            fetch(call, share, source, ring + free_slot);
        decant_copy_commit();
        free_slot = slot;
        add_unit(sums, ring + slot, base + layout.x + unit * ROW_BYTES);
        slot = slot + UNIT_BYTES == STAGES * UNIT_BYTES ? 0 : slot + UNIT_BYTES;
        if (++unit == share.units || i + 1 == run.count) {
            finish_tile(sums, parts + (tile * WARPS + warp) * TILE_ROWS);
            unit = 0;
            tile++;
        }
    }
    __syncthreads(); /* all parts are there */
    store_rows(call, share, parts, before);
}

/* ---- the choice of a launch ---- */

static size_t shared_bytes(const decant_cuda *cuda, const step_call &call)
{
    return (size_t)layout_of(step_tiles_of_block(call, TILE_ROWS, cuda->multiprocessors),
                             (call.columns + UNIT_COLUMNS - 1) / UNIT_COLUMNS)
        .total;
}

static step_call call_of(const decant_step_group *group)
{
    step_call call = step_call_of(group);
    call.row_bytes = call.columns * 2;
    for (int i = 0; i < group->count; i++)
        call.matrices[i].weights = group->products[i].weight.data;
    return call;
}

bool decant_cuda_step_has_dense(decant_backend *backend, const decant_step_group *group)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    for (int i = 0; i < group->count; i++) {
        const decant_step_product *product = &group->products[i];
        if (product->packed || product->grid || product->weight.element != DECANT_BF16 ||
            !decant_has_vectors<__nv_bfloat16>(product->weight.columns, product->weight.data))
            return false;
    }
    return step_takes(backend, group) && shared_bytes(&context->shared, call_of(group)) + STEP_STATIC_BYTES <=
                                             context->shared.shared_memory_bytes;
}

decant_status decant_cuda_step_dense(decant_backend *backend, const decant_step_group *group, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const step_call call = call_of(group);
    cudaError_t code = decant_keep_shared_memory(step_dense_kernel);
    if (code == cudaSuccess)
        code = decant_launch_early(context, step_dense_kernel, (unsigned)context->shared.multiprocessors,
                                   WARPS * DECANT_WARP, shared_bytes(&context->shared, call), call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "step_dense", err));
    return decant_cuda_launched(backend, "step_dense", err);
}
