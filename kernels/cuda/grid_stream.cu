/* y = x ŵᵀ for one token in BF16 and an arranged matrix on a grid of one or two dimensions (grid_arranged.cuh),
 * rotation included, on Hopper.
 *
 * A block owns a run of tiles of eight rows, whose codes lie one after the other in memory. Its warps share
 * them evenly and in order, so each reads one stretch of memory from its beginning to its end, by the copy
 * engine through a ring in shared memory that it has for itself: no warp waits for another before the end.
 *
 * Codes are bytes that number the entries of the table in shared memory (grid_points.cuh), and what is found is
 * an operand of tensor cores as it is. A product of sixteen rows takes eight rows twice, an even octet of each
 * lane above and its next one below it. Column g of the other operand is octet g of each lane's x, so that all
 * octets of a unit are read at once; of the sums of octets 2i and 2i + 1, which are kept apart from others,
 * elements (g, 2i) and (g + 8, 2i + 1) are row g's, the rest means nothing. These are the sums of 64 columns,
 * which is where scales of groups of columns, and offsets, come in.
 *
 * Every block rotates x for itself. Nothing of the weights depends on earlier work: the first codes, the table,
 * the scales and the signs are asked for before the kernel waits for its x. Sums have an order that depends on
 * shapes and the device alone: a lane's terms, the warps that share a tile. */
#include "kernels/cuda/grid_stream.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_stream.cuh"

/* ---- x ---- */

/* x, rotated into shared memory; what undoes its power of two. parts: of the block's warps. */
template <typename Kind>
static __device__ __forceinline__ float rotate_token(const stream_call &call, uint4 *operands, float *work,
                                                     const uint64_t *signs, int *parts)
{
    const int octets = call.columns / OCTET, all = call.units * Kind::STEPS * ROW_LANES;
    const int own = begin_rotation(work, (const uint4 *)call.x, octets, call.rotation_bits, [&](int octet) {
        return (uint32_t)(signs[octet / OCTET] >> octet % OCTET * OCTET) & 255u;
    });
    const int largest = block_largest(own, parts);
    finish_rotation(work, call.columns, call.rotation_bits);
    const int exponent = exponent_for(largest, call.rotation_bits);
    const float factor = power_of_two(exponent) * call.rotation_scale;
    for (int octet = threadIdx.x; octet < all; octet += THREADS)
        operands[octet] = octet < octets ? rotated_octet(work, octet, factor) : make_uint4(0, 0, 0, 0);
    return power_of_two(-exponent);
}

/* ---- the kernel ---- */

template <typename Kind>
__global__ void __launch_bounds__(THREADS, Kind::BLOCKS)
    grid_stream_kernel(const __grid_constant__ stream_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        using Decoder = typename Kind::Decoder;
        extern __shared__ __align__(128) unsigned char shared[];
        const stream_layout layout = stream_layout_of<Kind>(call, (int)gridDim.x);
        const stream_share share = share_of<Kind>(call);
        const int lane = threadIdx.x % DECANT_WARP;
        float *row_scales = (float *)(shared + layout.scales), *ends = (float *)(shared + layout.ends);
        __half *group_scales = (__half *)(shared + layout.scales);
        uint64_t *signs = (uint64_t *)(shared + layout.signs);

        const uint2 entry = first_entry<Decoder>(call.points, Kind::BITS);
        code_ring ring =
            begin_ring<Kind>(call, share, shared + layout.ring, (uint64_t *)(shared + layout.barriers));
        decant_let_next_kernel_begin();
        if (Kind::GROUPED && call.late_scales)
            prefetch_scales(call, share);
        else if (Kind::GROUPED)
            ask_for_groups(call, share, group_scales);
        for (int row = threadIdx.x; !Kind::GROUPED && row < share.tiles * ARRANGED_ROWS; row += THREADS)
            row_scales[row] = __half2float(call.scales[share.first_tile * ARRANGED_ROWS + row]);
        for (int i = threadIdx.x; i * SIGN_COLUMNS < call.columns; i += THREADS)
            signs[i] = call.rotation_bits > 0 ? decant_random_bits(call.seed, 0, (uint64_t)i) : 0;
        const point_table table =
            load_table<Decoder, THREADS>(entry, call.points, Kind::BITS, ENTRY_STRIDE, shared);
        if (Kind::GROUPED)
            decant_copy_wait<0>();
        __syncthreads();

        decant_wait_for_earlier_kernels();
        const float token_scale = rotate_token<Kind>(call, (uint4 *)(shared + layout.operands),
                                                     (float *)(shared + layout.work), signs, (int *)ends);
        decant_leave_shared();
        __syncthreads();
#pragma unroll 1
        for (int slot = call.early_slots; slot < call.slots; slot++)
            ask<Kind>(call, share, ring, slot, true);
        if (Kind::GROUPED && call.late_scales) {
            ask_for_groups(call, share, group_scales);
            decant_copy_wait<0>();
            __syncthreads();
        }

        const uint32_t x =
            decant_shared_address(shared + layout.operands) + lane % (Kind::STEPS * ROW_LANES) * VECTOR_BYTES;
        float sums[Kind::PAIRS][4] = {};
        uint32_t words[Kind::BITS];
        int tile = share.first / call.units, unit = share.first % call.units, slot_unit = 0;
        __half2 next_scale = __half2();
        if (share.first < share.end) {
            take_unit<Kind>(words, call, share, ring, slot_unit);
            next_scale = scale_of<Kind>(call, share, group_scales, tile, unit);
        }
        for (int item = share.first; item < share.end; item++) {
            Decoder decoder;
            take_packed(decoder, words);
            const __half2 scale = next_scale;
            const int own_tile = tile, own_unit = unit;
            if (++unit == call.units) {
                unit = 0;
                tile++;
            }
            if (item + 1 < share.end) {
                take_unit<Kind>(words, call, share, ring, slot_unit);
                next_scale = scale_of<Kind>(call, share, group_scales, tile, unit);
            }
            add_unit<Kind>(sums, decoder, scale, call.offsets != NULL, table,
                           x + own_unit * Kind::STEPS * ROW_LANES * VECTOR_BYTES);
            if (unit == 0 || item + 1 == share.end)
                finish_tile<Kind>(call, share, row_scales, token_scale, sums, own_tile, ends);
        }
        __syncthreads();
        join_ends<Kind>(call, share, row_scales, token_scale, ends);
    }
}

/* ---- the choice of a launch ---- */

enum { SMALL_WEIGHTS = 64 << 20 };

/* Shares `room` bytes of shared memory: slots for each warp as far as they are of use, as many as can be early
 * ones. False where x is too wide. */
template <typename Kind> static bool share_memory(size_t room, int blocks, stream_call *call)
{
    const int items = (tiles_of_block(*call, blocks) * call->units + WARPS - 1) / WARPS;
    const int bytes = Kind::BLOCKS == 1 ? RING_BYTES : RING_BESIDE_BYTES;
    int left = -1;
    call->slots =
        min(max(bytes / (int)Kind::SLOTS_BYTES, 1), (items + Kind::SLOT_UNITS - 1) / Kind::SLOT_UNITS);
    for (int late = 0; late <= (Kind::GROUPED ? 1 : 0) && left < 0; late++) {
        call->late_scales = late != 0;
        call->early_slots = 0;
        left = (int)room - stream_layout_of<Kind>(*call, blocks).total;
    }
    call->early_slots = min(max(left, 0) / (int)Kind::SLOTS_BYTES, call->slots);
    return left >= 0;
}

/* Blocks for the call, whose shared memory is shared out then; 0 where x is too wide. Scales of groups of very
 * many rows are too much for a block of each multiprocessor: then there are some more. */
template <typename Kind> static int blocks_for(const decant_cuda_context *context, stream_call *call)
{
    const size_t room =
        Kind::BLOCKS == 1 ? context->shared.shared_memory_bytes : decant_half_of_shared(&context->shared);
    for (int most = context->shared.multiprocessors;; most *= 2) {
        const int blocks = min(call->tiles, most);
        if (share_memory<Kind>(room, blocks, call))
            return blocks;
        if (blocks == call->tiles)
            return 0;
    }
}

template <typename Kind>
static cudaError_t launch_kind(const decant_cuda_context *context, const stream_call &call, int blocks)
{
    const cudaError_t kept = decant_keep_shared_memory(grid_stream_kernel<Kind>);
    if (kept != cudaSuccess)
        return kept;
    return decant_launch_early(context, grid_stream_kernel<Kind>, (unsigned)blocks, THREADS,
                               (size_t)stream_layout_of<Kind>(call, blocks).total, call);
}

/* Blocks of small matrices leave room for those of the next kernel, which begin their tables and first codes
 * beside them: for large ones more registers and a longer ring are worth more. */
template <typename Decoder, int BITS, bool GROUPED>
static cudaError_t launch(const decant_cuda_context *context, stream_call call)
{
    using Beside = stream_kind<Decoder, BITS, GROUPED, 2>;
    using Alone = stream_kind<Decoder, BITS, GROUPED, 1>;
    const bool is_small = (int64_t)call.tiles * ARRANGED_ROWS * call.columns < SMALL_WEIGHTS;
    const int halves = is_small ? blocks_for<Beside>(context, &call) : 0;
    if (halves > 0 && halves <= context->shared.multiprocessors)
        return launch_kind<Beside>(context, call, halves);
    const int blocks = blocks_for<Alone>(context, &call);
    return launch_kind<Alone>(context, call, blocks);
}

static stream_call call_of(const decant_grid_matrix *matrix, const float *points)
{
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    stream_call call = {};
    call.codes = (const unsigned char *)view.planes;
    call.scales = view.scales;
    call.offsets = view.offsets;
    call.points = points;
    call.columns = view.columns;
    call.groups = view.groups;
    call.group_factor = quotient_factor(view.group / STRETCH_COLUMNS);
    call.tiles = view.rows / ARRANGED_ROWS;
    call.units = view.words / ARRANGED_WORDS;
    call.scales_by_fours = view.groups % 4 == 0 && ((uintptr_t)view.scales | (uintptr_t)view.offsets) % 8 == 0;
    while (1 << call.rotation_bits < view.rotation)
        call.rotation_bits++;
    call.rotation_scale = view.rotation_scale;
    call.seed = view.seed;
    return call;
}

bool decant_cuda_grid_has_stream(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    if (!matrix->arranged || x.rows != 1 || x.element != DECANT_BF16 ||
        !decant_has_vectors<__nv_bfloat16>(x.columns, x.data))
        return false;
    stream_call call = call_of(matrix, NULL);
    return by_arranged_form(&matrix->form, [&](auto decoder, auto bits) {
        using Decoder = decltype(decoder);
        constexpr int BITS = decltype(bits)::value;
        return decant_grid_is_grouped(matrix)
                   ? blocks_for<stream_kind<Decoder, BITS, true, 1>>(context, &call) > 0
                   : blocks_for<stream_kind<Decoder, BITS, false, 1>>(context, &call) > 0;
    });
}

decant_status decant_cuda_grid_stream(decant_backend *backend, decant_matrix x,
                                      const decant_grid_matrix *matrix, const float *points, bool accumulate,
                                      decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    stream_call call = call_of(matrix, points);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.accumulate = accumulate;
    const cudaError_t code = by_arranged_form(&matrix->form, [&](auto decoder, auto bits) {
        using Decoder = decltype(decoder);
        constexpr int BITS = decltype(bits)::value;
        return decant_grid_is_grouped(matrix) ? launch<Decoder, BITS, true>(context, call)
                                              : launch<Decoder, BITS, false>(context, call);
    });
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "grid_stream", err));
    return decant_cuda_launched(backend, "grid_stream", err);
}
