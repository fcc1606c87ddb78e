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
 * work, so their copies, and the levels' transform, start before the kernel waits for its x.
 *
 * Shape of the product (PTX ISA, mma.m16n8k256): a lane (g = lane / 4, t = lane % 4) holds bits 32t … +31 and
 * 128 + 32t … +31 of plane g and g + 8 of x, the same of row g of the parities, and the counts of planes g and
 * g + 8 of rows 2t and 2t + 1. Which columns these bits are does not matter as long as both sides agree: of the
 * sixteen words of a unit a lane takes words 4t … 4t + 3, sixteen bytes of every plane, two words a product. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/parity_block.cuh"

/* ---- the kernel ---- */

/* y = scale (f(0) Σ q + the warps' parts) + the sparse part. Eight lanes take a row, each the part of one warp
 * and its share of the sparse products; lane t stores token t. begin, end: the last window of these. */
template <int BITS, int TOKENS>
static __device__ __forceinline__ void
finish_rows(const parities_call &call, const block_share &share, const token_figures<TOKENS> &figures,
            const float *coefficients, const float *parts, const decant_sparse_rows &sparse, int begin, int end)
{
    static_assert(WARPS == DECANT_ROW_LANES && TOKENS <= DECANT_ROW_LANES, "a lane for each part and token");
    const int lane = threadIdx.x % DECANT_ROW_LANES, rows = rows_of(call.packed, share);
    float scales[TOKENS], constant = 0;
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        int sum_of_x = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            sum_of_x += figures.sums[token][warp];
        scales[token] = largest_of(figures, token) / DECANT_FIXED_POINT_MAXIMUM;
        constant = lane == token ? scales[token] * (float)sum_of_x : constant;
    }
    for (int base = 0; base < rows; base += THREADS / DECANT_ROW_LANES) { /* whole warps: shuffles follow */
        const int row = base + (int)threadIdx.x / DECANT_ROW_LANES, own_row = min(row, rows - 1);
        const float *part =
            parts + ((own_row / TILE_ROWS * WARPS + lane) * TILE_ROWS + own_row % TILE_ROWS) * TOKENS;
        float sums[TOKENS], own = 0;
#pragma unroll
        for (int token = 0; token < TOKENS; token++)
            sums[token] = scales[token] * part[token];
        if (call.sparse)
            decant_add_products<TOKENS>(sums, sparse, own_row, lane, begin, end);
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
#pragma unroll
            for (int offset = 1; offset < DECANT_ROW_LANES; offset *= 2)
                sums[token] += __shfl_xor_sync(DECANT_ALL_LANES, sums[token], offset);
            own = lane == token ? sums[token] : own;
        }
        const int token = share.first_token + lane;
        if (row >= rows || lane >= TOKENS || token >= call.tokens)
            continue;
        own += coefficients[row * COEFFICIENT_STRIDE<BITS>] * constant;
        if (call.sparse)
            own += sparse.sums[row * TOKENS + lane];
        __nv_bfloat16 *target = call.y + (int64_t)token * call.packed.rows + share.first_tile * TILE_ROWS + row;
        *target = __float2bfloat16_rn(call.accumulate ? __bfloat162float(*target) + own : own);
    }
}

template <int BITS, int TOKENS>
static __device__ __forceinline__ block_share share_of(const parities_call &call)
{
    block_share share;
    const int tiles = tiles_of(call.packed.rows), block = blockIdx.x / call.groups;
    share.first_tile = (int)((int64_t)block * tiles / call.blocks);
    share.tiles = (int)((int64_t)(block + 1) * tiles / call.blocks) - share.first_tile;
    share.units = units_of(call.packed.words);
    share.first_token = blockIdx.x % call.groups * TOKENS;
    share.layout = layout_of<BITS, TOKENS>((tiles + call.blocks - 1) / call.blocks, share.units, call.sparse,
                                           call.products);
    return share;
}

template <int BITS, int TOKENS, bool WHOLE>
__global__ void __launch_bounds__(THREADS, HAS_ROOM_FOR_NEXT<BITS, TOKENS> ? 2 : 1)
    packed_parities_kernel(const __grid_constant__ parities_call call)
{
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ token_figures<TOKENS> figures;
    const decant_packed_view &packed = call.packed;
    const block_share share = share_of<BITS, TOKENS>(call);
    const shared_layout &layout = share.layout;
    const int warp = threadIdx.x / DECANT_WARP, all_units = share.tiles * share.units;
    const int first = all_units * warp / WARPS, count = all_units * (warp + 1) / WARPS - first;
    float *coefficients = (float *)(shared + layout.coefficients), *parts = (float *)(shared + layout.parts);
    const uint32_t base = decant_shared_address(shared);
    const uint32_t ring = base + layout.rings + warp * STAGES<BITS, TOKENS> * UNIT_BYTES<BITS>;

    /* before the codes, behind which they would have to wait */
    const own_levels<BITS> levels = load_levels<BITS>(packed, share);
    decant_sparse_offsets offsets = {};
    if (call.sparse) {
        decant_prefetch_share(packed.sparse_columns, call.entries * 4, blockIdx.x / call.groups, call.blocks,
                              THREADS);
        decant_prefetch_share(packed.sparse_values, call.entries * 2, blockIdx.x / call.groups, call.blocks,
                              THREADS);
        offsets = decant_load_sparse_offsets(packed, share.first_tile * TILE_ROWS, rows_of(packed, share));
    }
    const unit_place begin = {first / share.units, first % share.units};
    unit_place fetched = begin;
#pragma unroll
    for (int i = 0; i < STAGES<BITS, TOKENS> - 1; i++) {
        if (i < count) {
            fetch_unit<BITS, WHOLE>(packed, share.first_tile, fetched, ring + i * UNIT_BYTES<BITS>);
            step(fetched, share.units);
        }
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    decant_sparse_rows sparse = {};
    decant_sparse_entry entry = {};
    if (call.sparse)
        sparse = decant_open_sparse_rows<TOKENS>(packed, offsets, rows_of(packed, share), call.products,
                                                 shared + layout.sparse);
    transform_levels<BITS>(levels, share, coefficients);
    for (int i = threadIdx.x; i < share.tiles * WARPS * TILE_ROWS * TOKENS; i += THREADS)
        parts[i] = 0;
    if (call.sparse)
        entry = decant_sparse_entry_at(sparse, threadIdx.x, min(sparse.count, sparse.window));

    decant_wait_for_earlier_kernels();
    make_operands<TOKENS>(call, share, figures, base + layout.operands);
    __syncthreads(); /* operands and coefficients are there */
    add_units<BITS, TOKENS, WHOLE>(call, share, begin, fetched, count, ring, coefficients,
                                   parts + warp * TILE_ROWS * TOKENS, base + layout.operands, sparse, entry);
    int window_begin = 0, window_end = 0;
    if (call.sparse)
        multiply_sparse<TOKENS>(call, share, sparse, &window_begin, &window_end);
    else
        __syncthreads(); /* all parts are there */
    finish_rows<BITS, TOKENS>(call, share, figures, coefficients, parts, sparse, window_begin, window_end);
}

/* ---- the choice of a launch ---- */

enum {
    TILES_MAXIMUM = 32,      /* of a block */
    PLANES_MAXIMUM = 5,      /* of codes */
    BLOCKS_EACH = 1,         /* of one group of tokens, to a multiprocessor */
    COLUMNS_MAXIMUM = 65536, /* the sum of a token's fixed-point values must fit an int */
    CAPABILITY_END = 100,    /* later devices have no binary tensor cores */
    PRODUCTS_MORE = 64,
    PRODUCTS_LEAST = 256,  /* of sparse entries: fewer are not worth a window */
    RESERVED_BYTES = 1024, /* of shared memory, for each block beyond what it asks for */
};

/* What a block of one group takes when the tiles are shared among so many. */
template <int BITS, int TOKENS>
static size_t shared_bytes(const decant_packed_view &packed, int blocks, bool sparse, int products)
{
    const int tiles = (tiles_of(packed.rows) + blocks - 1) / blocks;
    return (size_t)layout_of<BITS, TOKENS>(tiles, units_of(packed.words), sparse, products).total +
           sizeof(token_figures<TOKENS>);
}

/* As far as there are tiles for them, and more where tiles are very many. */
static int blocks_of(const decant_cuda *cuda, int rows)
{
    const int tiles = tiles_of(rows), least = (tiles + TILES_MAXIMUM - 1) / TILES_MAXIMUM;
    const int blocks = BLOCKS_EACH * cuda->multiprocessors;
    return blocks < least ? least : blocks < tiles ? blocks : tiles;
}

template <int BITS, int TOKENS>
static bool fits(const decant_cuda *cuda, const decant_packed_view &packed, bool sparse)
{
    return shared_bytes<BITS, TOKENS>(packed, blocks_of(cuda, packed.rows), sparse, PRODUCTS_LEAST) <=
           cuda->shared_memory_bytes;
}

/* Room for the products of the sparse part: for half as many entries again as a block has on average if that
 * leaves the multiprocessor to two blocks, twice as many or what there is room for otherwise. */
template <int BITS, int TOKENS>
static int products_for(const decant_cuda *cuda, const decant_packed_view &packed, int blocks, int64_t entries)
{
    const int64_t average = entries / blocks * TOKENS, least = average * 3 / 2 + PRODUCTS_MORE;
    const int64_t without = (int64_t)shared_bytes<BITS, TOKENS>(packed, blocks, true, 0) + 16;
    const int64_t all = (int64_t)cuda->shared_memory_bytes, half = (all + RESERVED_BYTES) / 2 - RESERVED_BYTES;
    const int64_t wanted = without + least * 4 <= half ? least : average * 2 + PRODUCTS_MORE;
    const int64_t room = (all - without) / 4;
    return (int)(wanted < room ? wanted : room) / 4 * 4;
}

template <int BITS, int TOKENS, bool WHOLE>
static cudaError_t launch(decant_cuda_context *context, const parities_call &call)
{
    const size_t bytes = shared_bytes<BITS, TOKENS>(call.packed, call.blocks, call.sparse, call.products) -
                         sizeof(token_figures<TOKENS>);
    return decant_launch_early(context, packed_parities_kernel<BITS, TOKENS, WHOLE>,
                               (unsigned)(call.blocks * call.groups), THREADS, bytes, call);
}

template <int BITS, int TOKENS>
static cudaError_t launch_tokens(decant_cuda_context *context, parities_call call)
{
    const decant_packed_view &packed = call.packed;
    call.groups = (call.tokens + TOKENS - 1) / TOKENS;
    call.blocks = blocks_of(&context->shared, packed.rows);
    if (call.sparse)
        call.products = products_for<BITS, TOKENS>(&context->shared, packed, call.blocks, call.entries);
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % 16 == 0;
    return whole ? launch<BITS, TOKENS, true>(context, call) : launch<BITS, TOKENS, false>(context, call);
}

/* The fewest tokens a block that take all in one group, or as many as fit. */
template <int BITS, int TOKENS = TOKENS_OF_WIDTH<BITS>>
static cudaError_t launch_width(decant_cuda_context *context, const parities_call &call)
{
    if constexpr (TOKENS > 1)
        if (call.tokens <= TOKENS / 2 || !fits<BITS, TOKENS>(&context->shared, call.packed, call.sparse))
            return launch_width<BITS, TOKENS / 2>(context, call);
    return launch_tokens<BITS, TOKENS>(context, call);
}

static bool fits_width(const decant_cuda *cuda, const decant_packed_view &packed, bool sparse)
{
    return packed.bits == 2   ? fits<2, 1>(cuda, packed, sparse)
           : packed.bits == 3 ? fits<3, 1>(cuda, packed, sparse)
           : packed.bits == 4 ? fits<4, 1>(cuda, packed, sparse)
                              : fits<5, 1>(cuda, packed, sparse);
}

bool decant_cuda_packed_has_parities(decant_backend *backend, decant_matrix x,
                                     const decant_packed_matrix *packed)
{
    const decant_cuda_context *context = decant_cuda_context_of(backend);
    return context->capability < CAPABILITY_END && packed->bits <= PLANES_MAXIMUM &&
           packed->columns <= COLUMNS_MAXIMUM && x.element == DECANT_BF16 &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data) &&
           fits_width(&context->shared, decant_packed_view_of(packed), packed->sparse.count > 0);
}

decant_status decant_cuda_packed_parities(decant_backend *backend, decant_matrix x,
                                          const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                          decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    parities_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.x = (const __nv_bfloat16 *)x.data;
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.sparse = sparse;
    call.entries = packed->sparse.count;
    call.accumulate = accumulate;
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                             : packed->bits == 4 ? launch_width<4>(context, call)
                                                 : launch_width<5>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_parities", err));
    return decant_cuda_launched(backend, "packed_parities", err);
}
