/* y = x ŵᵀ for up to 32 tokens in BF16 and an arranged matrix on a grid of one or two dimensions
 * (grid_arranged.cuh), rotation included, on Hopper: codes and x stream through shared memory in boxes that the
 * copy engine brings.
 *
 * A step is four units of sixteen tiles of eight rows. The steps of all row tiles are shared among as many
 * blocks as run at once: a row tile's among blocks that have nothing else, where that is as even, else all in
 * order. Of a step a warp takes one unit of 64 rows. It first takes the codes, so that
 * their box is free again. Then it goes through the octets of columns: x is read once for all its rows, codes
 * are looked up in the table that all rows share (grid_points.cuh), and what is found is an operand as it is:
 * lane 4g + t has every fourth octet of a unit of rows g and g + 8. Where groups of columns have scales of
 * their own, the sums of a box of x, which is of 64 columns for each warp, are scaled before they join the
 * others; of many tokens the weights are, before the product. Otherwise only the sums of rows are.
 *
 * Two warps more ask for codes and for x ahead of time: a box is free when all its readers have left it.
 * grid_boxes.cuh lists the files that hold a block's work.
 *
 * First the blocks rotate the tokens together (grid_runs.cuh), and leave them in the order in which they are
 * read here. Nothing of the weights depends on earlier work: the first boxes of codes are asked for before the
 * kernel waits for x. The table and scales are fetched while others still rotate. Everything from there to the
 * end is a chain of short stretches, each by few warps at a time, in which what is a division or a load of its
 * own shows in a product of a small matrix: so another warp finds out beforehand who shares the row tiles.
 *
 * The parts of a row tile that several blocks have are joined by the last of them; where no block has parts of
 * two, by all of them, which wait for each other; and where clusters that have a row tile each fill nearly all
 * multiprocessors, by the blocks of the cluster out of each other's shared memory. Sums have an order that
 * depends on shapes and the device alone: a warp's steps, the groups of columns, the blocks that share a row
 * tile. */
#include "kernels/cuda/grid_boxes.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_boxes.cuh"
#include "kernels/cuda/grid_boxes_copies.cuh"
#include "kernels/cuda/grid_boxes_products.cuh"
#include "kernels/cuda/grid_boxes_scales.cuh"
#include "kernels/cuda/tensor_map.h"

enum {
    CLUSTER_MAXIMUM = 4,
    X_MOST_BYTES = 64 << 10,   /* of the slots for x */
    COLUMNS_MAXIMUM = 1 << 20, /* so that items are counted in 32 bits */
};

/* ---- the kernel ---- */

/* Where a block's arrays lie in shared memory, in bytes, behind the slots for codes. */
typedef struct shared_layout {
    int x, points, exchange, cluster_parts, scales, total;
} shared_layout;

template <typename Kind>
static __host__ __device__ __forceinline__ shared_layout shared_layout_of(const boxes_call &call)
{
    shared_layout layout;
    layout.x = ROW_GROUPS * call.code_slots * Kind::CODE_BYTES;
    layout.points = layout.x + call.x_slots * Kind::X_BYTES;
    layout.exchange = layout.points + (ENTRY_STRIDE << Kind::Decoder::index_bits(Kind::BITS));
    layout.cluster_parts = layout.exchange + Kind::EXCHANGE_BYTES;
    layout.scales =
        layout.cluster_parts + (call.cluster > 1 ? ROW_GROUPS * Kind::FRAGMENTS * FRAGMENT_BYTES : 0);
    layout.total = layout.scales + (Kind::GROUPED ? 2 * ROWS * Kind::SCALE_PITCH * (int)sizeof(__half) : 0);
    return layout;
}

template <typename Kind>
__global__ void __launch_bounds__(THREADS, 1) grid_boxes_kernel(const __grid_constant__ boxes_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        using Decoder = typename Kind::Decoder;
        extern __shared__ __align__(1024) unsigned char shared[];
        __shared__ ring_barriers code_barriers, x_barriers;
        __shared__ tile_share shares[BLOCK_SEGMENTS];
        const shared_layout layout = shared_layout_of<Kind>(call);
        const int warp = threadIdx.x / DECANT_WARP, lane = threadIdx.x % DECANT_WARP;
        const ring_place codes = ring_at(code_barriers, call.code_slots), x = ring_at(x_barriers, call.x_slots);
        if (warp < WARPS) {
            decant_registers_raise<CONSUMER_REGISTERS>();
            decant_let_next_kernel_begin();
            const int member = threadIdx.x / RUN_THREADS;
            rotate_shares(call.rotation, call.runs, member * (int)gridDim.x + (int)blockIdx.x,
                          CONSUMERS / RUN_THREADS * (int)gridDim.x,
                          ((run_exchange *)(shared + layout.exchange))[member], ROW_GROUPS + 1 + member);
            /* what follows has time until the other blocks' are rotated */
            const uint2 entry = first_entry<Decoder>(call.points, Kind::BITS);
            const block_items items = items_of(call, blockIdx.x);
            if (Kind::GROUPED)
                ask_for_scales<Kind>(call, (__half *)(shared + layout.scales), items.first, 0);
            const point_table table = load_table<Decoder, CONSUMERS>(entry, call.points, Kind::BITS,
                                                                     ENTRY_STRIDE, shared + layout.points);
            named_barrier(BEGIN_BARRIER, BEGIN_THREADS);
            const block_tools tools = {table,
                                       codes,
                                       x,
                                       decant_shared_address(shared),
                                       shared + layout.x,
                                       (float4 *)(shared + layout.exchange),
                                       (float4 *)(shared + layout.cluster_parts),
                                       (__half *)(shared + layout.scales)};
            multiply_items<Kind>(call, items, shares, tools);
        } else {
            decant_registers_lower<PRODUCER_REGISTERS>();
            const bool asks_for_codes = warp == WARPS, asks_for_x = warp == WARPS + 1,
                       shares_tiles = warp == WARPS + 2;
            const block_items items = items_of(call, blockIdx.x);
            if (asks_for_codes && lane == 0) {
                create_ring(codes, ROW_GROUPS * codes.slots, COLUMN_GROUPS);
                decant_barrier_publish();
            } else if (asks_for_x && lane == 0) {
                create_ring(x, x.slots, WARPS);
                decant_barrier_publish();
            } else if (shares_tiles && lane < BLOCK_SEGMENTS)
                shares[lane] = share_of_tile(call, (first_item(call, blockIdx.x + lane) - lane) / call.steps);
            decant_let_next_kernel_begin();
            __syncwarp();
            if (shares_tiles)
                named_barrier(BEGIN_BARRIER, BEGIN_THREADS);
            else if (asks_for_codes || asks_for_x)
                arrive_at_barrier(BEGIN_BARRIER, BEGIN_THREADS);
            if (asks_for_codes && lane == 0)
                ask_for_all_codes<Kind>(call, codes, decant_shared_address(shared), items);
            else if (asks_for_x && lane == 0)
                ask_for_all_x<Kind>(call, x, decant_shared_address(shared + layout.x), items);
        }
    }
}

/* ---- the choice of a launch ---- */

/* As many slots as there is room for in `room` bytes: of x no more than two steps. */
template <typename Kind> static void share_memory(int room, boxes_call *call)
{
    call->code_slots = 0;
    call->x_slots = min(2 * Kind::STEP_X_BOXES, X_MOST_BYTES / Kind::X_BYTES);
    const int left = room - shared_layout_of<Kind>(*call).total;
    call->code_slots = min(left / Kind::CODE_BYTES, SLOTS_MAXIMUM) / ROW_GROUPS;
}

/* Blocks of a cluster that has a row tile, where such clusters would take nearly all multiprocessors and all
 * run at once; 1 elsewhere. */
template <typename Kind>
static int cluster_for(const decant_cuda_context *context, const boxes_call &call, size_t shared_bytes)
{
    const int multiprocessors = context->shared.multiprocessors;
    for (int cluster = CLUSTER_MAXIMUM; cluster > 1; cluster /= 2) {
        const int blocks = call.row_tiles * cluster;
        if (blocks > multiprocessors || 10 * blocks < 9 * multiprocessors || call.steps < cluster)
            continue;
        cudaLaunchAttribute size = {};
        size.id = cudaLaunchAttributeClusterDimension;
        size.val.clusterDim.x = (unsigned)cluster;
        size.val.clusterDim.y = size.val.clusterDim.z = 1;
        cudaLaunchConfig_t config = {};
        config.gridDim = (unsigned)blocks;
        config.blockDim = THREADS;
        config.dynamicSmemBytes = shared_bytes;
        config.attrs = &size;
        config.numAttrs = 1;
        int at_once = 0;
        if (cudaFuncSetAttribute(grid_boxes_kernel<Kind>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)shared_bytes) == cudaSuccess &&
            cudaOccupancyMaxActiveClusters(&at_once, grid_boxes_kernel<Kind>, &config) == cudaSuccess &&
            at_once * cluster >= blocks)
            return cluster;
    }
    return 1;
}

/* How many blocks may have a row tile each without the busiest having more steps than if all steps were shared
 * evenly; 1: none. */
static int sharers_for(const decant_cuda_context *context, const boxes_call &call)
{
    const int multiprocessors = context->shared.multiprocessors;
    const int sharers = min(multiprocessors / call.row_tiles, call.steps);
    const int64_t items = (int64_t)call.row_tiles * call.steps;
    return sharers > 1 &&
                   (call.steps + sharers - 1) / sharers <= (items + multiprocessors - 1) / multiprocessors
               ? sharers
               : 1;
}

template <typename Kind> static cudaError_t launch_kind(const decant_cuda_context *context, boxes_call call)
{
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, grid_boxes_kernel<Kind>);
    if (code != cudaSuccess)
        return code;
    call.row_tiles = (call.rows + ROWS - 1) / ROWS;
    const int64_t items = (int64_t)call.row_tiles * call.steps;
    const size_t room = context->shared.shared_memory_bytes - attributes.sharedSizeBytes;
    call.cluster = cluster_for<Kind>(context, call, room);
    call.sharers = call.cluster > 1 ? call.cluster : sharers_for(context, call);
    const unsigned blocks = call.sharers > 1 ? (unsigned)(call.row_tiles * call.sharers)
                                             : (unsigned)min(items, (int64_t)context->shared.multiprocessors);
    call.together = call.sharers > 1 || items <= blocks;
    call.runs = share_runs(call.rotation, (int)blocks, CONSUMERS / RUN_THREADS,
                           call.arrivals + DECANT_ARRIVALS - RUN_COUNTERS);
    share_memory<Kind>((int)room, &call);
    return decant_launch_early(context, grid_boxes_kernel<Kind>, blocks, THREADS,
                               (size_t)shared_layout_of<Kind>(call).total, call, (unsigned)call.cluster);
}

template <typename Decoder, int BITS, bool GROUPED>
static cudaError_t launch_tiles(const decant_cuda_context *context, const boxes_call &call)
{
    const int tiles = call.rotation.layout.tiles;
    return tiles == 1   ? launch_kind<boxes_kind<Decoder, BITS, GROUPED, 1>>(context, call)
           : tiles == 2 ? launch_kind<boxes_kind<Decoder, BITS, GROUPED, 2>>(context, call)
                        : launch_kind<boxes_kind<Decoder, BITS, GROUPED, 4>>(context, call);
}

static cudaError_t launch_form(const decant_cuda_context *context, const decant_grid_matrix *matrix,
                               const boxes_call &call)
{
    return by_arranged_form(&matrix->form, [&](auto decoder, auto bits) {
        using Decoder = decltype(decoder);
        constexpr int BITS = decltype(bits)::value;
        return decant_grid_is_grouped(matrix) ? launch_tiles<Decoder, BITS, true>(context, call)
                                              : launch_tiles<Decoder, BITS, false>(context, call);
    });
}

bool decant_cuda_grid_has_boxes(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix)
{
    (void)backend;
    return matrix->arranged && x.element == DECANT_BF16 && x.rows <= TOKENS_MAXIMUM &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           matrix->rows <= (int64_t)ROWS * (DECANT_ARRIVALS - RUN_COUNTERS) &&
           matrix->columns <= COLUMNS_MAXIMUM;
}

static decant_status map_codes(decant_backend *backend, const decant_grid_view &view, CUtensorMap *map,
                               decant_error *err)
{
    const uint64_t unit_words = (uint64_t)(ARRANGED_LANES * view.code_bits), unit_bytes = unit_words * 4,
                   units = (uint64_t)(view.words / ARRANGED_WORDS);
    const decant_tensor_view codes = {
        .data = view.planes,
        .sizes = {unit_words, units, (uint64_t)(view.rows / ARRANGED_ROWS)},
        .strides_bytes = {unit_bytes, units * unit_bytes},
        .box = {(uint32_t)unit_words, COLUMN_GROUPS, BOX_ARRANGED_TILES},
        .words = true,
    };
    return decant_cuda_map_tensor(backend, &codes, map, err);
}

decant_status decant_cuda_grid_boxes(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix,
                                     const float *points, bool accumulate, decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    const int tiles = x.rows <= TILE_TOKENS ? 1 : x.rows <= 2 * TILE_TOKENS ? 2 : 4;
    boxes_call call = {};
    call.points = points;
    call.scales = view.scales;
    call.offsets = view.offsets;
    call.y = (__nv_bfloat16 *)y.data;
    call.rows = view.rows;
    call.groups = view.groups;
    call.group_factor = quotient_factor(view.group / STRETCH_COLUMNS);
    if (view.group == STRETCH_COLUMNS || view.group == 2 * STRETCH_COLUMNS) {
        const uintptr_t scales = (uintptr_t)view.scales;
        call.scales_at_once = view.groups % 4 == 0 && scales % 8 == 0   ? 4
                              : view.groups % 2 == 0 && scales % 4 == 0 ? 2
                                                                        : 0;
        call.group_bits = call.scales_at_once > 0 && view.group > STRETCH_COLUMNS ? 1 : 0;
    }
    call.steps = (view.words + STEP_WORDS - 1) / STEP_WORDS;
    call.accumulate = accumulate;
    DECANT_RETURN_ON_FAILURE(map_codes(backend, view, &call.codes, err));

    token_rotation &rotation = call.rotation;
    rotation.x = (const __nv_bfloat16 *)x.data;
    rotation.layout = {1,   4 * view.dimension, tiles, TILE_TOKENS, COLUMN_GROUPS, call.steps * COLUMN_GROUPS,
                       true};
    rotation.tokens = (int)x.rows;
    rotation.columns = view.columns;
    while (1 << rotation.rotation_bits < view.rotation)
        rotation.rotation_bits++;
    rotation.rotation_scale = view.rotation_scale;
    rotation.seed = view.seed;

    size_t size_bytes = 0;
    const size_t operands_at = decant_scratch_reserve(
        &size_bytes, (size_t)(unit_vectors(rotation.layout) * rotation.layout.units) * VECTOR_BYTES);
    const size_t scales_at = decant_scratch_reserve(&size_bytes, TOKENS_MAXIMUM * sizeof(float));
    const size_t segment_bytes = (size_t)ROWS / TILE_ROWS * (size_t)tiles * FRAGMENT_BYTES;
    const size_t parts_at = decant_scratch_reserve(&size_bytes, segment_bytes * BLOCK_SEGMENTS *
                                                                    (size_t)context->shared.multiprocessors);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size_bytes, &scratch, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_arrivals(context, &call.arrivals, err));
    rotation.operands = (uint4 *)((char *)scratch + operands_at);
    rotation.token_scales = (float *)((char *)scratch + scales_at);
    call.parts = (float4 *)((char *)scratch + parts_at);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(launch_form(context, matrix, call), "grid_boxes", err));
    return decant_cuda_launched(backend, "grid_boxes", err);
}
