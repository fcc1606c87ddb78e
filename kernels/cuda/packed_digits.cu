/* y = x ŵᵀ for several tokens in BF16, levels of up to four bits, on integer tensor cores: both the levels and
 * x are fixed point, two digits each, whose four products are exact sums of integers.
 *
 * level_digits.cuh looks the levels' digits up, token_digits.h says how those of x lie.
 *
 * The tensor cores are those of Hopper's warpgroups, which take the looked-up bytes from registers; other
 * devices go by packed_tiles.cu. */
#include "kernels/cuda/integer_core.cuh"
#include "kernels/cuda/level_digits.cuh"
#include "kernels/cuda/token_tiles.cuh"

enum {
    PLANES_MAXIMUM = 4,
    STEP_WORDS = 2, /* of a lane: x is there for so many at a time */
    UNIT_STEPS = LANE_WORDS / STEP_WORDS,
    STEP_PRODUCTS = STEP_WORDS * PHASES,
    X_AHEAD = 2, /* steps of x on their way */
};

/* ---- the kernel ---- */

template <int TILES> constexpr int X_STAGES = TILES == 4 ? 3 : 4;
template <int TILES> constexpr int STEP_BYTES_OF_X = STEP_PRODUCTS *DECANT_DIGITS_PRODUCT_BYTES *TILES;
template <int BITS, int TILES>
constexpr int DIGITS_SHARED_BYTES = X_STAGES<TILES> *STEP_BYTES_OF_X<TILES> + WARPS *STAGES *UNIT_BYTES<BITS>;

/* upper, lower += the products of one step. x: the address of its digits. The operands of a product are looked
 * up while the tensor cores are still at the one before. */
template <int BITS, int TILES>
static __device__ __forceinline__ void
add_step(int (&upper)[8 * TILES], int (&lower)[8 * TILES], const unit_planes<BITS> &planes, int step,
         const row_digits<BITS> (&digits)[HALVES], const shift_factors &factors, uint32_t x)
{
    uint32_t operands[2][2][4];
#pragma unroll
    for (int i = 0; i < STEP_PRODUCTS; i++) {
        uint32_t codes[HALVES][PHASES];
#pragma unroll
        for (int half = 0; half < HALVES; half++) { /* once for all phases: the compiler sees that */
            uint32_t own[BITS];
#pragma unroll
            for (int bit = 0; bit < BITS; bit++)
                own[bit] = word_of(planes.words[half][bit], step * STEP_WORDS + i / PHASES);
            gather_codes<BITS>(codes[half], own, factors);
        }
        decant_products_wait<1>();
        make_operands<BITS>(operands[i % 2][0], operands[i % 2][1], codes, i % PHASES, digits, factors);
        const uint64_t b = decant_integer_descriptor<16 * TILES>(x + i * DECANT_DIGITS_PRODUCT_BYTES * TILES);
        decant_products_begin();
        decant_integer_start(upper, operands[i % 2][0], b);
        decant_integer_start(lower, operands[i % 2][1], b);
        decant_products_commit();
    }
    decant_products_wait<0>();
}

/* The sums of this block's columns: of row g, or g + 8 for the last two, and of token 2t or 2t + 1 of a tile.
 * is_first: what belongs to each row once is added here. */
template <int BITS, int TILES>
static __device__ __forceinline__ void
sums_of(float (&sums)[TILES][4], const int (&upper)[8 * TILES], const int (&lower)[8 * TILES],
        const row_digits<BITS> (&digits)[HALVES], const tiles_call &call, bool is_first)
{
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int i = 4 * tile + c, j = 4 * (TILES + tile) + c;
            const decant_token_figures token =
                call.figures[tile * TILE_TOKENS + (int)threadIdx.x % 4 * 2 + c % 2];
            const row_digits<BITS> &row = digits[c / 2];
            float sum = fmaf(32768.0f, (float)upper[i], 128.0f * (float)upper[j]);
            sum += fmaf(256.0f, (float)lower[i], (float)lower[j]);
            sums[tile][c] = token.scale * fmaf(row.step, sum, is_first ? row.least * (float)token.sum : 0.0f);
        }
}

/* x in shared memory, brought by the copy engine: barriers say when a slot has it, and when it is free. */
template <int SLOTS> struct x_barriers {
    uint64_t full[SLOTS], empty[SLOTS];
};

/* The ring of x as a thread sees it. The first thread of the block asks for steps; each warp says when it is
 * done with one. */
template <int TILES> struct x_ring {
    static constexpr int SLOTS = X_STAGES<TILES>, BYTES = STEP_BYTES_OF_X<TILES>;
    const unsigned char *source; /* of the block's first step */
    uint32_t slots, full, empty; /* addresses */
    int steps;                   /* of the block */
    int slot, round;             /* of the step that is now, and how often the ring has been gone round */

    __device__ __forceinline__ void create(x_barriers<SLOTS> &barriers)
    {
        full = decant_shared_address(barriers.full);
        empty = decant_shared_address(barriers.empty);
        slot = round = 0;
        if (threadIdx.x == 0) {
            for (int i = 0; i < SLOTS; i++) {
                decant_barrier_create(full + i * 8, 1);
                decant_barrier_create(empty + i * 8, WARPS);
            }
            decant_barrier_publish();
        }
        __syncthreads();
    }

    __device__ __forceinline__ void bring(int step, int target) const
    {
        decant_barrier_expect(full + target * 8, BYTES);
        decant_copy_bytes(slots + target * BYTES, source + (int64_t)step * BYTES, BYTES, full + target * 8);
    }

    /* Asks for the step X_AHEAD after step `now`, once everybody is done with what its slot holds. */
    __device__ __forceinline__ void bring_ahead(int now) const
    {
        const int step = now + X_AHEAD,
                  target = slot + X_AHEAD >= SLOTS ? slot + X_AHEAD - SLOTS : slot + X_AHEAD;
        if (step < steps && threadIdx.x == 0) {
            if (step >= SLOTS)
                decant_barrier_wait(empty + target * 8, (target > slot ? round + 1 : round) & 1);
            bring(step, target);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void wait(void) const
    {
        decant_barrier_wait(full + slot * 8, round & 1);
    }

    __device__ __forceinline__ void leave(void)
    {
        if (threadIdx.x % DECANT_WARP == 0)
            decant_barrier_arrive(empty + slot * 8);
        if (++slot == SLOTS) {
            slot = 0;
            round++;
        }
    }
};

template <int BITS, int TILES, bool WHOLE, bool SPARSE>
static __device__ __forceinline__ void digits_block(const tiles_call &call, unsigned char *shared)
{
    __shared__ x_barriers<X_STAGES<TILES>> barriers;
    const decant_packed_view &packed = call.packed;
    const int warp = threadIdx.x / DECANT_WARP;
    const int row_block = (int)blockIdx.x / call.shares, share = (int)blockIdx.x % call.shares;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int begin = units * share / call.shares, end = units * (share + 1) / call.shares;
    const int first_row = row_block * ROWS + warp * WARP_ROWS, lane_row = (int)threadIdx.x % DECANT_WARP / 4;
    unsigned char *codes = shared + X_STAGES<TILES> * STEP_BYTES_OF_X<TILES> + warp * STAGES * UNIT_BYTES<BITS>;
    const uint32_t codes_address = decant_shared_address(codes);
    x_ring<TILES> x;
    row_digits<BITS> digits[HALVES];
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (begin + i < end)
            fetch_unit<BITS, WHOLE>(packed, first_row, begin + i, codes_address + i * UNIT_BYTES<BITS>);
        decant_copy_commit();
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++)
        load_levels<BITS>(digits[half], call, first_row + half * 8 + lane_row);
    x.source = call.digits + (int64_t)begin * UNIT_STEPS * STEP_BYTES_OF_X<TILES>;
    x.slots = decant_shared_address(shared);
    x.steps = (end - begin) * UNIT_STEPS;
    x.create(barriers);

    own_entries<TILES> entries;
    if (SPARSE)
        entries.open(call, row_block, share, (float *)shared);
    decant_wait_for_earlier_kernels();
    if (SPARSE) { /* in the place of x, which the copy engine then brings */
        entries.multiply(call);
        decant_leave_shared();
        __syncthreads();
    }
    if (threadIdx.x == 0)
        for (int i = 0; i < X_AHEAD && i < x.steps; i++)
            x.bring(i, i);
    __syncwarp();
    int upper[8 * TILES] = {}, lower[8 * TILES] = {};
    for (int unit = begin; unit < end; unit++) {
        const int slot = (unit - begin) % STAGES * UNIT_BYTES<BITS>;
        unit_planes<BITS> planes;
#pragma unroll
        for (int step = 0; step < UNIT_STEPS; step++) {
            x.bring_ahead((unit - begin) * UNIT_STEPS + step);
            if (step == 0) {
                decant_copy_wait<STAGES - 1>();
                load_planes<BITS>(planes, codes + slot); /* which the lane copied itself */
            }
            x.wait();
            add_step<BITS, TILES>(upper, lower, planes, step, digits, call.shifts,
                                  x.slots + x.slot * STEP_BYTES_OF_X<TILES>);
            if (step == 0) {
                if (unit + STAGES < end) /* the planes are in registers */
                    fetch_unit<BITS, WHOLE>(packed, first_row, unit + STAGES, codes_address + slot);
                decant_copy_commit();
            }
            x.leave();
        }
    }
    decant_copy_wait<0>();
    float sums[TILES][4];
    sums_of<BITS, TILES>(sums, upper, lower, digits, call, share == 0);
    finish<TILES>(call, sums, row_block, share);
}

template <int BITS, int TILES, bool WHOLE, bool SPARSE>
__global__ void __launch_bounds__(THREADS, TILES == 4 ? 1 : 2)
    packed_digits_kernel(const __grid_constant__ tiles_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(128) unsigned char shared[];
        decant_let_next_kernel_begin();
        digits_block<BITS, TILES, WHOLE, SPARSE>(call, shared);
    }
}

/* ---- the calls ---- */

template <int BITS, int TILES, bool SPARSE>
static cudaError_t launch_sparse(decant_cuda_context *context, const tiles_call &call)
{
    static_assert(ENTRY_BYTES<TILES> <= X_STAGES<TILES> * STEP_BYTES_OF_X<TILES>,
                  "entries take the place of x");
    const decant_packed_view &packed = call.packed;
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % VECTOR_BYTES == 0;
    return decant_launch_early(context,
                               whole ? packed_digits_kernel<BITS, TILES, true, SPARSE>
                                     : packed_digits_kernel<BITS, TILES, false, SPARSE>,
                               (unsigned)(row_blocks_of(packed.rows) * call.shares), THREADS,
                               DIGITS_SHARED_BYTES<BITS, TILES>, call);
}

template <int BITS, int TILES>
static cudaError_t launch_digits(decant_cuda_context *context, const tiles_call &call)
{
    return call.turned ? launch_sparse<BITS, TILES, true>(context, call)
                       : launch_sparse<BITS, TILES, false>(context, call);
}

template <int BITS> static cudaError_t launch_width(decant_cuda_context *context, const tiles_call &call)
{
    return call.tokens <= TILE_TOKENS       ? launch_digits<BITS, 1>(context, call)
           : call.tokens <= 2 * TILE_TOKENS ? launch_digits<BITS, 2>(context, call)
                                            : launch_digits<BITS, 4>(context, call);
}

bool decant_cuda_packed_has_digits(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed)
{
    return decant_cuda_context_of(backend)->has_wgmma && packed->bits <= PLANES_MAXIMUM &&
           x.element == DECANT_BF16 && x.rows <= TOKENS_MAXIMUM && x.columns <= DECANT_DIGITS_COLUMNS_MAXIMUM &&
           packed->rows <= (int64_t)DECANT_ARRIVALS * ROWS &&
           decant_has_vectors<__nv_bfloat16>(x.columns, x.data);
}

decant_status decant_cuda_packed_digits(decant_backend *backend, decant_matrix x,
                                        const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                        decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    tiles_call call = {};
    call.packed = decant_packed_view_of(packed);
    call.y = (__nv_bfloat16 *)y.data;
    call.tokens = (int)x.rows;
    call.accumulate = accumulate;
    size_t total = 0, parts_bytes;
    DECANT_RETURN_ON_FAILURE(prepare(context, &call, &parts_bytes, err));
    const size_t parts_at = decant_scratch_reserve(&total, parts_bytes);
    const size_t digits_at = decant_scratch_reserve(&total, decant_token_digits_bytes(x, sparse));
    const size_t products_at =
        decant_scratch_reserve(&total, sparse ? (size_t)(x.rows * packed->rows) * sizeof(float) : 0);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    call.parts = (float *)((char *)scratch + parts_at);
    decant_token_digits digits;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_token_digits(backend, x, sparse, (char *)scratch + digits_at, &digits, err));
    call.digits = digits.digits;
    call.figures = digits.figures;
    call.turned = digits.turned;
    call.products = (float *)((char *)scratch + products_at);
    const cudaError_t code = packed->bits == 2   ? launch_width<2>(context, call)
                             : packed->bits == 3 ? launch_width<3>(context, call)
                                                 : launch_width<4>(context, call);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, "packed_digits", err));
    return decant_cuda_launched(backend, "packed_digits", err);
}
