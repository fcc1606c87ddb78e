/* y = x ŵᵀ for very few tokens, straight from the container's bit planes, without looking up a single level.
 *
 * A table of 2^b levels is a sum of parities of its code's bits (its Walsh transform):
 *
 *     f(code) = Σ_S c_S (−1)^parity(code & S),      c_S = 2^−b Σ_code f(code) (−1)^parity(code & S)
 *
 * over the 2^b subsets S of the bits. With (−1)^parity = 1 − 2 parity and Σ_S c_S = f(0), a row is
 *
 *     y = f(0) Σ_k x_k − 2 Σ_{S ≠ ∅} c_S T_S,       T_S = Σ_k x_k parity(code_k & S)
 *
 * The parities of 32 columns are one XOR of words of the planes. T_S comes from binary tensor cores, which
 * count the ones of and(x, parity): x is fixed point in sixteen bit planes (fixed_point.cuh), whose counts are
 * put together by their weights, ±2^plane. T_S is an exact integer, so that its parts add up the same in any
 * order; a row's levels enter once, at its end. What is left in the loop is reading the codes: the kernel is
 * bound by memory.
 *
 * A block owns a run of tiles of eight rows; its warps share the units of these tiles (eight rows, 512 columns)
 * evenly, in order, each through a ring of its own in shared memory. Nothing of the weights depends on earlier
 * work, so their copies, and the levels' transform, start before the kernel waits for its x. parity_block.cuh
 * lists the files that hold a block's work.
 *
 * The sparse part is taken beside the codes (parity_run.cuh), or, of one token, by warps of their own where the
 * device can (parities_apart.cu).
 *
 * Shape of the product (PTX ISA, mma.m16n8k256): a lane (g = lane / 4, t = lane % 4) holds bits 32t … +31 and
 * 128 + 32t … +31 of plane g and g + 8 of x, the same of row g of the parities, and the counts of planes g and
 * g + 8 of rows 2t and 2t + 1. Which columns these bits are does not matter as long as both sides agree: of the
 * sixteen words of a unit a lane takes words 4t … 4t + 3, sixteen bytes of every plane, two words a product. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/parity_launch.cuh"
#include "kernels/cuda/parity_levels.cuh"
#include "kernels/cuda/parity_run.cuh"

/* ---- the kernel ---- */

template <int BITS, int TOKENS, planes_form FORM, int RING, bool SPARSE, bool AHEAD>
__global__ void __launch_bounds__(THREADS, HAS_ROOM_FOR_NEXT<BITS, TOKENS> ? 2 : 1)
    packed_parities_kernel(const __grid_constant__ parities_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ token_figures<TOKENS> figures;
    __shared__ int rows_with_entries[WARPS];
    const decant_packed_view &packed = call.packed;
    const block_share share = share_of<BITS, TOKENS>(call);
    const shared_layout &layout = share.layout;
    const int warp = threadIdx.x / DECANT_WARP, rows = rows_of(packed, share);
    const warp_run run = run_of<BITS>(share, warp);
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);
    const uint32_t base = decant_shared_address(shared), lane_bytes = threadIdx.x % DECANT_WARP * 16;
    const uint32_t ring =
        base + layout.rings + lane_bytes + warp / TEAM<BITS> * STAGES<BITS, RING> * UNIT_BYTES<BITS>;

    /* before the codes, behind which they would have to wait */
    const own_levels<BITS> levels = load_levels<BITS>(packed, share);
    decant_sparse_offsets offsets = {};
    if (SPARSE)
        offsets = decant_load_sparse_offsets(packed, share.first_tile * TILE_ROWS, rows);
    plane_source source =
        source_of<BITS, FORM>(packed, share, run.first / share.units, run.first % share.units);
    open_ring<BITS, FORM, RING, AHEAD, HOLDS_BACK<BITS, TOKENS, AHEAD>>(call, share, run, source, ring);
    decant_let_next_kernel_begin();
    decant_sparse_rows sparse = {};
    warp_chunks chunks = {};
    if (SPARSE) {
        sparse = decant_open_sparse_rows<TOKENS>(packed, call.entries, offsets, rows, call.window,
                                                 shared + layout.sparse, rows_with_entries);
        chunks = open_chunks(sparse, shared + layout.chunks + warp * CHUNK_BUFFERS * DECANT_CHUNK_BYTES);
        decant_copy_commit();
    }
    transform_levels<BITS>(levels, share, coefficients);
    for (int i = threadIdx.x; i < share.tiles * TILE_PARTS<TOKENS>; i += THREADS)
        parts[i] = 0;
    if (SPARSE) {
        __syncthreads();
        decant_mark_first_rows(sparse, rows, rows_with_entries);
    }

    decant_wait_for_earlier_kernels();
    if constexpr (TOKENS == 1 && !SPARSE) {
        if (share.units <= WARPS)
            make_short_operands(call, share, figures, base + layout.operands);
        else
            make_operands<1, false>(call, share, figures, base + layout.operands, 0);
    } else {
        make_operands<TOKENS, SPARSE>(call, share, figures, base + layout.operands, base + layout.x);
    }
    __syncthreads(); /* operands and coefficients are there */
    add_units<BITS, TOKENS, FORM, RING, SPARSE, AHEAD>(
        call, share, run, source, ring, coefficients, parts + warp * TILE_ROWS * TOKENS,
        base + layout.operands + lane_bytes, sparse, chunks, shared + layout.x);
    if constexpr (TOKENS == 1 && !SPARSE)
        return finish_rows_of_one<BITS>(call, share, figures, coefficients, parts,
                                        [](float sum, int) { return sum; });
    int window = 0;
    if (SPARSE)
        window = add_windows<TOKENS>(call, share, sparse, shared + layout.x);
    else
        __syncthreads(); /* all parts are there */
    finish_rows<BITS, TOKENS>(call, share, figures, coefficients, parts, [&](float sum, int row, int token) {
        return !SPARSE ? sum
                       : sum + (sparse.sums[row * TOKENS + token] +
                                decant_sum_segments<TOKENS>(sparse, row, token, window));
    });
}

/* ---- the choice of a launch ---- */

template <int BITS, int TOKENS> static size_t shared_bytes(const parities_call &call)
{
    return (size_t)layout_of<BITS, TOKENS>(call, call.tiles, units_of(call.packed.words)).total;
}

/* A ring that leaves the multiprocessor to two blocks, so that the next kernel may begin beside this one; where
 * even the shorter one does not, the longer. False where not even the shorter fits. */
template <int BITS, int TOKENS, bool SPARSE>
static bool choose_ring(const decant_cuda *cuda, parities_call *call)
{
    static const int rings[] = {FIRST_RING<BITS, TOKENS, SPARSE>, SECOND_RING<BITS, TOKENS, SPARSE>};
    const size_t rooms[] = {room_of(cuda, 2), room_of(cuda, 1)};
    for (size_t room : rooms)
        for (int ring : rings) {
            call->ring = ring;
            if (shared_bytes<BITS, TOKENS>(*call) <= room)
                return true;
        }
    return false;
}

/* How a block of TOKENS tokens lays out its shared memory; false if it does not fit. */
template <int BITS, int TOKENS> static bool choose_layout(const decant_cuda *cuda, parities_call *call)
{
    call->groups = (call->tokens + TOKENS - 1) / TOKENS;
    share_tiles(cuda, call);
    call->window = (int)(call->entries / DECANT_CHUNK * 4 / call->blocks) + WINDOW_LEAST;
    call->pairs = TOKENS == 1 && !call->sparse ? pairs_of(BITS, units_of_warp(*call)) : 0;
    if (!call->sparse)
        return choose_ring<BITS, TOKENS, false>(cuda, call);
    call->x_in_shared = true;
    if (choose_ring<BITS, TOKENS, true>(cuda, call))
        return true;
    call->x_in_shared = false;
    return choose_ring<BITS, TOKENS, true>(cuda, call);
}

template <int BITS, int TOKENS, planes_form FORM, int RING, bool SPARSE, bool AHEAD = false>
static cudaError_t launch_ring(decant_cuda_context *context, const parities_call &call)
{
    if constexpr (CAN_ASK_AHEAD<BITS, FORM> && TOKENS == 1 && !SPARSE && !AHEAD)
        if (call.pairs > 0)
            return launch_ring<BITS, TOKENS, FORM, RING, SPARSE, true>(context, call);
    const auto kernel = packed_parities_kernel<BITS, TOKENS, FORM, RING, SPARSE, AHEAD>;
    /* shapes that follow each other want shares that differ; entries may be read through the first cache */
    const cudaError_t code = SPARSE ? cudaSuccess : decant_keep_shared_memory(kernel);
    return code != cudaSuccess ? code
                               : decant_launch_early(context, kernel, (unsigned)(call.blocks * call.groups),
                                                     THREADS, shared_bytes<BITS, TOKENS>(call), call);
}

template <int BITS, int TOKENS, planes_form FORM, bool SPARSE>
static cudaError_t launch_sparse(decant_cuda_context *context, const parities_call &call)
{
    constexpr int FIRST = FIRST_RING<BITS, TOKENS, SPARSE>, SECOND = SECOND_RING<BITS, TOKENS, SPARSE>;
    return call.ring == FIRST ? launch_ring<BITS, TOKENS, FORM, FIRST, SPARSE>(context, call)
                              : launch_ring<BITS, TOKENS, FORM, SECOND, SPARSE>(context, call);
}

template <int BITS, int TOKENS, planes_form FORM>
static cudaError_t launch(decant_cuda_context *context, const parities_call &call)
{
    return call.sparse ? launch_sparse<BITS, TOKENS, FORM, true>(context, call)
                       : launch_sparse<BITS, TOKENS, FORM, false>(context, call);
}

/* The fewest tokens a block that take all in one group, or as many as fit. */
template <int BITS, int TOKENS = TOKENS_OF_WIDTH<BITS>>
static cudaError_t launch_width(decant_cuda_context *context, const parities_call &call)
{
    parities_call chosen = call;
    const bool fits = choose_layout<BITS, TOKENS>(&context->shared, &chosen);
    if constexpr (TOKENS > 1)
        if (call.tokens <= TOKENS / 2 || !fits)
            return launch_width<BITS, TOKENS / 2>(context, call);
    return by_form(form_of(call.packed),
                   [&](auto form) { return launch<BITS, TOKENS, decltype(form)::value>(context, chosen); });
}

template <int BITS> static bool fits(const decant_cuda *cuda, parities_call call)
{
    return choose_layout<BITS, 1>(cuda, &call);
}

static parities_call call_of(decant_matrix x, const decant_packed_matrix *packed, bool sparse)
{
    parities_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.tokens = (int)x.rows;
    call.sparse = sparse;
    call.entries = packed->sparse.count;
    return call;
}

static bool fits_width(const decant_cuda *cuda, const parities_call &call)
{
    return call.packed.bits == 2   ? fits<2>(cuda, call)
           : call.packed.bits == 3 ? fits<3>(cuda, call)
           : call.packed.bits == 4 ? fits<4>(cuda, call)
           : call.packed.bits == 5 ? fits<5>(cuda, call)
                                   : fits<6>(cuda, call);
}

bool decant_cuda_packed_has_parities(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    const bool sparse = packed->sparse.count > 0;
    const bool is_aligned =
        !sparse || ((uintptr_t)packed->sparse.columns % 16 == 0 && (uintptr_t)packed->sparse_values % 16 == 0);
    return context->capability < CAPABILITY_END && packed->bits <= PLANES_MAXIMUM &&
           packed->columns <= COLUMNS_MAXIMUM && x.element == DECANT_BF16 && is_aligned &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           fits_width(&context->shared, call_of(x, packed, sparse));
}

decant_status decant_cuda_packed_parities(decant_backend *backend, decant_matrix x,
                                          const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                          decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    parities_call call = call_of(x, packed, sparse);
    call.y = (__nv_bfloat16 *)y.data;
    call.accumulate = accumulate;
    if (decant_cuda_has_parities_apart(context, call)) {
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(decant_cuda_parities_apart(context, call), "parities_apart", err));
        return decant_cuda_launched(backend, "parities_apart", err);
    }
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                             : packed->bits == 4 ? launch_width<4>(context, call)
                             : packed->bits == 5 ? launch_width<5>(context, call)
                                                 : launch_width<6>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_parities", err));
    return decant_cuda_launched(backend, "packed_parities", err);
}
