/* y = x ŵᵀ for up to 32 tokens in BF16 and a matrix on a grid whose codes are planes, rotation included, on
 * tensor cores.
 *
 * A block owns a run of rows and a slice of the columns, all of them where the rotated tokens fit its shared
 * memory. Its teams of warps share the tiles of sixteen rows and their strips of 128 bytes of every plane, a
 * cache line, evenly and in order; each warp takes one unit of a strip. Of a unit a lane (g = lane / 4,
 * t = lane % 4) takes the words that follow those of lane t − 1, of rows g and g + 8: what their codes stand
 * for is just what a lane holds of the operand of these rows (tensor_core.cuh lists its elements). Products do
 * not care about the order of their terms as long as both operands have the same one.
 *
 * Codes are under way while others are multiplied: of few tokens through a ring in shared memory that each warp
 * has for itself, of more, whose x takes that room, in registers.
 *
 * Where rows have one scale each it multiplies their sums, otherwise each pair of weights before the product.
 *
 * One token is rotated by every block for itself; several are rotated before, by a kernel of their own. Nothing
 * of the weights depends on earlier work, so the first codes and the table are asked for before the kernel
 * waits for its x. Sums have an order that depends on shapes and the device alone: a lane's terms, the warps of
 * a team, the teams that share a tile, the slices. */
#include "kernels/cuda/grid_tokens.h"

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/grid_sums.cuh"

/* ---- the kernels ---- */

template <typename Kind>
__global__ void __launch_bounds__(THREADS, 1) grid_tokens_kernel(const __grid_constant__ tokens_call call)
{
    using Decoder = typename Kind::Decoder;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float own_scale;
    const block_share share = share_of(call);
    const shared_layout layout = shared_layout_of<Decoder>(call);
    const int team = (int)threadIdx.x / DECANT_WARP / Kind::TEAM, lane = threadIdx.x % DECANT_WARP;
    const int items = share.tiles * share.strips;
    const int first = items * team / Kind::TEAMS, end = items * (team + 1) / Kind::TEAMS;
    uint4 *operands = (uint4 *)(shared + layout.operands);
    float *slots = (float *)(shared + layout.slots), *exchange = (float *)(shared + layout.exchange);
    float *row_scales = (float *)(shared + layout.scales);

    /* before the codes, behind which they would have to wait */
    const uint2 entry = first_entry<Decoder>(call.points, call.bits);
    const int own_row = share.first_row + min((int)threadIdx.x, share.rows - 1);
    const __half own_row_scale = Kind::GROUPED ? __half() : call.scales[own_row];
    const strip_place begin = {first / share.strips, first % share.strips};
    strip_place place = begin, asked = begin; /* what is multiplied next, and what is asked for next */
    unsigned char *ring = shared + layout.ring + (int)threadIdx.x / DECANT_WARP * Kind::RING * Kind::SLOT_BYTES;
    unit_planes<Kind> next;
    unit_scales<Kind> next_scales;
    if (first < end)
        load_scales<Kind>(next_scales, call, share, begin);
    if constexpr (Kind::RING > 0) {
#pragma unroll
        for (int i = 0; i < Kind::RING; i++) {
            if (first + i < end)
                copy_unit<Kind>(call, share, asked, ring + i * Kind::SLOT_BYTES);
            step(asked, share.strips);
            decant_copy_commit();
        }
    } else if (first < end) {
        load_unit<Kind>(next, call, share, begin);
        step(asked, share.strips);
        if (first + 1 < end)
            ask_for_strip<Kind>(call, share, asked);
    }
    decant_let_next_kernel_begin();
    const point_table table = load_table<Decoder, THREADS>(entry, call.points, call.bits, call.stride, shared);
    if (!Kind::GROUPED)
        for (int row = threadIdx.x; row < share.rows; row += THREADS)
            row_scales[row] =
                __half2float(row == (int)threadIdx.x ? own_row_scale : call.scales[share.first_row + row]);
    if (call.x) {
        for (int octet = threadIdx.x; octet < call.columns / OCTET; octet += THREADS)
            shared[layout.signs + octet] =
                call.rotation_bits > 0 ? (unsigned char)signs_of(call.seed, octet) : (unsigned char)0;
        __syncthreads();
    }

    decant_wait_for_earlier_kernels();
    if (call.x) {
        const float scale =
            rotate_own<Kind>(call, operands, (float *)(shared + layout.work), shared + layout.signs);
        if (threadIdx.x == 0)
            own_scale = scale;
    } else
        copy_operands<Kind>(call, share, operands);
    __syncthreads();

    const sum_scales scales = {row_scales, call.x ? &own_scale : call.token_scales};
    const int place_of_lane = lane / ROW_LANES % call.layout.places * ROW_LANES + lane % ROW_LANES;
    const int vectors = (int)unit_vectors(call.layout);
    float sums[Kind::SUMS][4] = {};
    for (int item = first; item < end; item++) {
        unit_planes<Kind> planes;
        const unit_scales<Kind> own_scales = next_scales;
        const strip_place own = place;
        step(place, share.strips);
        if constexpr (Kind::RING > 0) {
            unsigned char *slot = ring + (item - first) % Kind::RING * Kind::SLOT_BYTES;
            decant_copy_wait<Kind::RING - 1>(); /* a lane reads what it copied itself */
            take_unit<Kind>(planes, call, slot);
            if (item + Kind::RING < end)
                copy_unit<Kind>(call, share, asked, slot);
            step(asked, share.strips);
            decant_copy_commit();
        } else {
            planes = next;
            if (item + 1 < end)
                load_unit<Kind>(next, call, share, place);
            step(asked, share.strips);
            if (item + 2 < end)
                ask_for_strip<Kind>(call, share, asked);
        }
        if (item + 1 < end)
            load_scales<Kind>(next_scales, call, share, place);
        add_unit<Kind>(sums, planes, own_scales, call, table,
                       operands + unit_of<Kind>(own.strip) * vectors + place_of_lane);
        if (place.tile != own.tile || item + 1 == end)
            flush<Kind>(call, share, scales, sums, own.tile, slots, exchange);
    }
    __syncthreads();
    join_slots<Kind>(call, share, scales, slots);
    if (call.slices > 1)
        join_slices<Kind>(call, share, scales);
}

/* ---- the choice of a launch ---- */

/* Microseconds on an H100 or H200, as far as choosing needs them. */
static const double BYTES_A_MICROSECOND = 38e3; /* from the L2 cache, of one multiprocessor */
static const double ITEM_MICROSECONDS =
    0.14; /* a unit of a tile, for one token tile or less, a multiprocessor */
static const double JOIN_MICROSECONDS = 1.5;

static int multiprocessors_of(const decant_cuda_context *context)
{
    return context->shared.multiprocessors;
}

static void share_rows(const decant_cuda_context *context, tokens_call *call, int slices)
{
    const int eights = (call->rows + 7) / 8, runs = multiprocessors_of(context) / slices;
    call->slices = slices;
    call->runs = runs < 1 ? 1 : runs < eights ? runs : eights;
    call->run_rows = (call->rows + call->runs - 1) / call->runs;
}

static double cost_of(const tokens_call *call)
{
    const int units = slice_units(*call);
    const int tiles = (call->run_rows + TILE_ROWS - 1) / TILE_ROWS;
    const double x_bytes = (double)units * (double)unit_vectors(call->layout) * VECTOR_BYTES;
    const int rounds = (tiles * units + WARPS - 1) / WARPS * WARPS;
    double cost = x_bytes / BYTES_A_MICROSECOND +
                  rounds * ITEM_MICROSECONDS * call->layout.lane_words / 4 * (1 + 0.5 * call->layout.tiles);
    if (call->slices > 1)
        cost += JOIN_MICROSECONDS + 8.0 * call->run_rows * call->tokens / BYTES_A_MICROSECOND;
    return cost;
}

template <typename Decoder> static bool fits(const decant_cuda_context *context, const tokens_call *call)
{
    return (size_t)shared_layout_of<Decoder>(*call).total + 1024 <= context->shared.shared_memory_bytes;
}

/* Shares the work among blocks. Where there is room for the ring beside all columns, one token is rotated by
 * all blocks, or several, or one that is too wide for that, before. Otherwise the codes go to registers, and of
 * tokens that do not fit each block takes a slice of the columns. False where nothing fits. */
template <typename Decoder> static bool plan(const decant_cuda_context *context, tokens_call *call)
{
    double least = 0;
    int best = 0;
    share_rows(context, call, 1);
    if (call->ring_bytes > 0 && call->tokens == 1 && fits<Decoder>(context, call))
        return true;
    call->x = NULL;
    if (call->ring_bytes > 0 && fits<Decoder>(context, call))
        return true;
    call->ring_bytes = 0;
    for (int slices = 1; slices <= strips_of(*call) && slices <= multiprocessors_of(context); slices++) {
        share_rows(context, call, slices);
        const double cost = cost_of(call);
        if (fits<Decoder>(context, call) && (best == 0 || cost < least)) {
            best = slices;
            least = cost;
        }
    }
    if (best > 0)
        share_rows(context, call, best);
    return best > 0;
}

template <typename Kind> static cudaError_t launch_kind(decant_cuda_context *context, const tokens_call &call)
{
    return decant_launch_early(context, grid_tokens_kernel<Kind>, (unsigned)(call.runs * call.slices), THREADS,
                               (size_t)shared_layout_of<typename Kind::Decoder>(call).total, call);
}

/* How many words a lane takes at a time, which leave enough registers for two units, and of how many warps
 * these make a cache line. With the most planes the strip of a whole line would leave no room for many tokens.
 */
template <int PLANES, int TILES> struct strip_shape {
    static const int lane_words = PLANES > BYTE_PLANES ? 2 : 4;
    static const int team = PLANES <= BYTE_PLANES ? 2 : TILES == 1 ? 4 : 1;
    static const int ring = PLANES <= BYTE_PLANES && TILES == 1 ? 2 : 0;
};

template <int P, int PLANES> struct decoder_choice {
    using Decoder = point_decoder<P, PLANES>;
    static const int planes = PLANES;
    static const bool grouped = P <= 2; /* whether there are groups of columns for it */
};

template <typename Choice, int TILES, bool GROUPED>
static cudaError_t launch_tiles(decant_cuda_context *context, const tokens_call &call)
{
    using Decoder = typename Choice::Decoder;
    using Shape = strip_shape<Choice::planes, TILES>;
    constexpr int PLANES = Choice::planes;
    if constexpr (Shape::ring > 0)
        if (call.ring_bytes > 0)
            return launch_kind<
                tokens_kind<Decoder, PLANES, TILES, GROUPED, Shape::team, Shape::lane_words, Shape::ring>>(
                context, call);
    return launch_kind<tokens_kind<Decoder, PLANES, TILES, GROUPED, Shape::team, Shape::lane_words, 0>>(context,
                                                                                                        call);
}

template <typename Choice, bool GROUPED>
static cudaError_t launch_grouped(decant_cuda_context *context, const tokens_call &call)
{
    return call.layout.tiles == 1   ? launch_tiles<Choice, 1, GROUPED>(context, call)
           : call.layout.tiles == 2 ? launch_tiles<Choice, 2, GROUPED>(context, call)
                                    : launch_tiles<Choice, 4, GROUPED>(context, call);
}

template <typename Choice>
static cudaError_t launch(decant_cuda_context *context, const tokens_call &call, bool grouped)
{
    if constexpr (Choice::grouped)
        if (grouped)
            return launch_grouped<Choice, true>(context, call);
    return launch_grouped<Choice, false>(context, call);
}

/* Calls operation(decoder_choice) for a form. */
template <typename Operation> static auto by_decoder(const decant_grid_form *form, Operation operation)
{
    const int bits = form->code_bits;
    switch (form->dimension) {
    case 1:
        return bits <= 4 ? operation(decoder_choice<1, 4>()) : operation(decoder_choice<1, 8>());
    case 2:
        return bits <= 4   ? operation(decoder_choice<2, 4>())
               : bits <= 6 ? operation(decoder_choice<2, 6>())
               : bits <= 8 ? operation(decoder_choice<2, 8>())
                           : operation(decoder_choice<2, 12>());
    case 3:
        return bits <= 8 ? operation(decoder_choice<3, 8>()) : operation(decoder_choice<3, 12>());
    default:
        return bits <= 8 ? operation(decoder_choice<4, 8>()) : operation(decoder_choice<4, 12>());
    }
}

static bool has_decoder(const decant_grid_form *form)
{
    return form->dimension > 1 || form->code_bits <= BYTE_PLANES;
}

static tokens_call call_of(const decant_cuda_context *context, decant_matrix x,
                           const decant_grid_matrix *matrix, const float *points)
{
    const decant_grid_view view = decant_grid_view_of(matrix, points);
    tokens_call call = {};
    call.tokens = (int)x.rows;
    call.planes = view.planes;
    call.scales = view.scales;
    call.offsets = view.offsets;
    call.points = points;
    call.rows = view.rows;
    call.columns = view.columns;
    call.bits = view.code_bits;
    call.words = view.words;
    call.dimension = view.dimension;
    call.group = view.group;
    call.groups = view.groups;
    by_decoder(&matrix->form, [&](auto choice) {
        using Choice = decltype(choice);
        const auto shape_for = [&](auto shape) {
            using Shape = decltype(shape);
            const unsigned lane_bytes = 4 * Shape::lane_words;
            call.team = Shape::team;
            call.layout.lane_words = Shape::lane_words;
            call.whole = view.words % Shape::lane_words == 0 && (uintptr_t)view.planes % lane_bytes == 0;
            call.ring_bytes =
                call.whole ? WARPS * Shape::ring * HALVES * Choice::planes * DECANT_WARP * (int)lane_bytes : 0;
        };
        call.stride = table_stride(Choice::Decoder::index_bits(call.bits), call.tokens > TILE_TOKENS);
        if (call.tokens <= TILE_TOKENS)
            shape_for(strip_shape<Choice::planes, 1>());
        else
            shape_for(strip_shape<Choice::planes, 2>());
    });
    call.x = (const __nv_bfloat16 *)x.data;
    call.layout.chunks = 4 * view.dimension;
    call.layout.beside = 1;
    call.layout.tiles = call.tokens <= TILE_TOKENS ? 1 : call.tokens <= 2 * TILE_TOKENS ? 2 : 4;
    call.layout.places = call.tokens <= 1 ? 1 : call.tokens <= 2 ? 2 : call.tokens <= 4 ? 4 : TILE_TOKENS;
    const int strip_words = call.team * ROW_LANES * call.layout.lane_words;
    call.layout.units = (view.words + strip_words - 1) / strip_words * call.team;
    while (1 << call.rotation_bits < view.rotation)
        call.rotation_bits++;
    call.rotation_scale = view.rotation_scale;
    call.seed = view.seed;
    return call;
}

/* Where the arrays of a call lie in its scratch, in bytes. */
typedef struct tokens_scratch {
    size_t operands, token_scales, parts;
} tokens_scratch;

static bool prepare(decant_cuda_context *context, const decant_grid_matrix *matrix, tokens_call *call,
                    tokens_scratch *scratch, size_t *size_bytes)
{
    const bool planned = by_decoder(
        &matrix->form, [&](auto choice) { return plan<typename decltype(choice)::Decoder>(context, call); });
    if (!planned)
        return false;
    const size_t operands =
        call->x ? 0 : (size_t)(unit_vectors(call->layout) * call->layout.units) * VECTOR_BYTES;
    const size_t parts = (size_t)call->runs * (size_t)call->slices * (size_t)call->tokens *
                         (size_t)call->run_rows * sizeof(float);
    *size_bytes = 0;
    scratch->operands = decant_scratch_reserve(size_bytes, operands);
    scratch->token_scales = decant_scratch_reserve(size_bytes, TOKENS_MAXIMUM * sizeof(float));
    scratch->parts = decant_scratch_reserve(size_bytes, call->slices > 1 ? parts : 0);
    return true;
}

bool decant_cuda_grid_has_tokens(decant_backend *backend, decant_matrix x, const decant_grid_matrix *matrix)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const decant_grid_form *form = &matrix->form;
    if (matrix->arranged || !has_decoder(form) || form->rotation > ROTATION_MAXIMUM ||
        x.element != DECANT_BF16 || x.rows > TOKENS_MAXIMUM ||
        !decant_has_vectors<__nv_bfloat16>(x.columns, x.data) || multiprocessors_of(context) > DECANT_ARRIVALS)
        return false;
    if (decant_grid_is_grouped(matrix) &&
        (form->dimension > 2 || (form->group < matrix->columns && form->group % (32 * form->dimension) != 0)))
        return false;
    tokens_call call = call_of(context, x, matrix, NULL);
    tokens_scratch unused;
    size_t unused_bytes;
    return prepare(context, matrix, &call, &unused, &unused_bytes);
}

static token_rotation rotation_of(const tokens_call &call, const __nv_bfloat16 *x)
{
    return {x,           (uint4 *)call.operands, call.token_scales,  call.layout,
            call.tokens, call.columns,           call.rotation_bits, call.rotation_scale,
            call.seed};
}

decant_status decant_cuda_grid_tokens(decant_backend *backend, decant_matrix x,
                                      const decant_grid_matrix *matrix, const float *points, bool accumulate,
                                      decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    tokens_call call = call_of(context, x, matrix, points);
    tokens_scratch places;
    size_t size_bytes;
    if (!prepare(context, matrix, &call, &places, &size_bytes))
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "tokens do not fit shared memory");
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, size_bytes, &scratch, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_arrivals(context, &call.arrivals, err));
    call.operands = (const uint4 *)((char *)scratch + places.operands);
    call.token_scales = (float *)((char *)scratch + places.token_scales);
    call.parts = (float *)((char *)scratch + places.parts);
    call.y = (__nv_bfloat16 *)y.data;
    call.accumulate = accumulate;
    if (!call.x) {
        const cudaError_t code =
            decant_cuda_rotate_tokens(context, rotation_of(call, (const __nv_bfloat16 *)x.data));
        DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "rotate", err));
    }
    const cudaError_t code = by_decoder(&matrix->form, [&](auto choice) {
        return launch<decltype(choice)>(context, call, decant_grid_is_grouped(matrix));
    });
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "grid_tokens", err));
    return decant_cuda_launched(backend, "grid_tokens", err);
}
