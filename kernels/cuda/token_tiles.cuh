/* y = x ŵᵀ for up to 32 tokens in BF16 on tensor cores, straight from bit planes: all but the way from codes to
 * numbers, which is a decoder's (packed_tiles.cu). Operands are F16, as levels are; of x that is made here.
 *
 * A block takes 128 rows, a warp sixteen of them, and some of the units of sixteen words of every plane; blocks
 * that share rows leave their sums in scratch, and the one that comes last adds all of them up in order. Of the
 * words of a unit a lane (g = lane / 4, t = lane % 4) takes words 4t … 4t + 3 of rows g and g + 8, sixteen
 * bytes of every plane, and copies them ahead into a ring of its own. All warps share the x of a unit that is
 * in shared memory. token_tiles_block.cuh lists the files that hold a block's work.
 *
 * Products do not care about the order of their terms as long as both operands have the same one (the terms of
 * a product are listed in tensor_core.cuh): eight columns of a token, sixteen bytes, serve two products.
 *
 * With a sparse part, blocks first take its entries (token_entries.cuh), each those of its part of the rows. */
#ifndef DECANT_KERNELS_CUDA_TOKEN_TILES_CUH
#define DECANT_KERNELS_CUDA_TOKEN_TILES_CUH

#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/token_tiles_block.cuh"
#include "kernels/cuda/token_tiles_codes.cuh"
#include "kernels/cuda/token_tiles_sums.cuh"
#include "kernels/cuda/token_tiles_x.cuh"

/* ---- the kernel ---- */

/* Whether the next unit of x is stored while one is multiplied, and one more asked for. With 32 tokens there
 * are too few registers for that. */
template <int TILES> constexpr bool STORES_AHEAD = TILES <= 2;
template <int TILES> constexpr int BUFFERS = STORES_AHEAD<TILES> ? 2 : 1;
/* For x, and before it for entries. */
template <int TILES, bool SPARSE>
constexpr int X_BYTES = SPARSE &&ENTRY_BYTES<TILES> > BUFFERS<TILES> *STEPS *STEP_BYTES<TILES>
                            ? ENTRY_BYTES<TILES>
                            : BUFFERS<TILES> *STEPS *STEP_BYTES<TILES>;
template <typename Decoder, int TILES, bool SPARSE>
constexpr int SHARED_BYTES = WARPS *STAGES *UNIT_BYTES<Decoder::PLANES> + X_BYTES<TILES, SPARSE>;
/* With what is not asked for at a launch. */
template <typename Decoder, int TILES>
constexpr int BLOCK_BYTES = SHARED_BYTES<Decoder, TILES, true> +
                            BUFFERS<TILES> *TILES *TILE_TOKENS *(int)sizeof(float);

/* A Decoder knows how codes become numbers:
 *     PLANES      of codes
 *     load        what it needs of the weights
 *     add_step    sums += the products of one step */
template <typename Decoder, int TILES, bool WHOLE, bool SPARSE>
__global__ void __launch_bounds__(THREADS, 2) tiles_kernel(const __grid_constant__ tiles_call call)
{
    constexpr int PLANES = Decoder::PLANES, UNIT_X_BYTES = STEPS * STEP_BYTES<TILES>;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ float inverses[BUFFERS<TILES>][TILES * TILE_TOKENS]; /* of the units of x that are there */
    const decant_packed_view &packed = call.packed;
    const int warp = threadIdx.x / DECANT_WARP;
    const int row_block = (int)blockIdx.x / call.shares, share = (int)blockIdx.x % call.shares;
    const int units = (packed.words + UNIT_WORDS - 1) / UNIT_WORDS;
    const int begin = units * share / call.shares, end = units * (share + 1) / call.shares;
    const int first_row = row_block * ROWS + warp * WARP_ROWS;
    unsigned char *x_places = shared,
                  *ring = shared + X_BYTES<TILES, SPARSE> + warp * STAGES * UNIT_BYTES<PLANES>;
    const uint32_t ring_address = decant_shared_address(ring);
    const lane_planes own_planes = planes_of_lane(packed, first_row);
    Decoder decoder;

    decant_let_next_kernel_begin();
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (begin + i < end)
            fetch_unit<PLANES, WHOLE>(packed, own_planes, begin + i, ring_address + i * UNIT_BYTES<PLANES>);
        decant_copy_commit();
    }
    decoder.load(call, first_row);
    own_entries<TILES> entries;
    if (SPARSE)
        entries.open(call, row_block, share, (float *)shared);
    decant_wait_for_earlier_kernels();
    float sums[TILES][4] = {};
    unit_vectors<TILES> x, second;
    load_x<TILES>(x, call, begin);
    if (SPARSE)
        entries.multiply(call);
    if (STORES_AHEAD<TILES> && begin + 1 < end)
        load_x<TILES>(second, call, begin + 1);
    store_x<TILES>(x, call, x_places, inverses[0]);
    if (STORES_AHEAD<TILES>)
        x = second;
    __syncthreads();
    for (int unit = begin; unit < end; unit++) {
        const int slot = (unsigned)(unit - begin) % STAGES * UNIT_BYTES<PLANES>;
        const unsigned now = (unsigned)(unit - begin) % BUFFERS<TILES>,
                       next = (unsigned)(unit + 1 - begin) % BUFFERS<TILES>;
        const bool more = unit + 1 < end;
        unit_planes<PLANES> planes;
        decant_copy_wait<STAGES - 1>(); /* a lane reads what it copied itself */
        load_planes<PLANES>(planes, ring + slot);
        if (STORES_AHEAD<TILES> && more) {
            store_x<TILES>(x, call, x_places + next * UNIT_X_BYTES, inverses[next]);
            if (unit + 2 < end)
                load_x<TILES>(x, call, unit + 2);
        }
        float of_unit[TILES][4] = {};
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            decoder.template add_step<TILES>(of_unit, planes, call, step,
                                             x_places + now * UNIT_X_BYTES + step * STEP_BYTES<TILES>);
        add_unit<TILES>(sums, of_unit, inverses[now]);
        if (unit + STAGES < end)
            fetch_unit<PLANES, WHOLE>(packed, own_planes, unit + STAGES, ring_address + slot);
        if (!STORES_AHEAD<TILES> && more) {
            load_x<TILES>(x, call, unit + 1);
            __syncthreads();
            store_x<TILES>(x, call, x_places, inverses[0]);
        }
        __syncthreads();
        decant_copy_commit();
    }
    finish<TILES>(call, sums, row_block, share);
}

/* ---- the choice of a launch ---- */

enum { SHARES_MAXIMUM = 16 };

/* In so many parts that the multiprocessors are done at about the same time. One block alone on one takes four
 * fifths of the time of two, which hide each other's waiting; what begins and ends a block costs about half a
 * unit.
 */
static inline int shares_for(const decant_cuda *cuda, int rows, int words)
{
    const int row_blocks = row_blocks_of(rows), units = (words + UNIT_WORDS - 1) / UNIT_WORDS;
    int best = 1;
    double least = 0;
    for (int shares = 1; shares <= units && shares <= SHARES_MAXIMUM; shares++) {
        const int blocks = (row_blocks * shares + cuda->multiprocessors - 1) / cuda->multiprocessors;
        const double rounds = blocks / 2 + blocks % 2 * 0.8;
        const double cost = rounds * ((units + shares - 1) / shares + 0.5) + 0.02 * shares;
        if (shares == 1 || cost < least) {
            best = shares;
            least = cost;
        }
    }
    return row_blocks <= DECANT_ARRIVALS ? best : 1;
}

static inline int padded_tokens(int tokens)
{
    return tokens <= TILE_TOKENS ? TILE_TOKENS : tokens <= 2 * TILE_TOKENS ? 2 * TILE_TOKENS : TOKENS_MAXIMUM;
}

/* Fills what a call needs beyond the weights, x and y; call.packed and call.tokens are set. Returns the bytes
 * of scratch for call.parts. */
static inline decant_status prepare(decant_cuda_context *context, tiles_call *call, size_t *parts_bytes,
                                    decant_error *err)
{
    call->shares = shares_for(&context->shared, call->packed.rows, call->packed.words);
    call->shifts = {1u << 31, 1u << 30, 1u << 16, 1u << 2, 1u << 3};
    const int parts = call->shares;
    *parts_bytes = parts == 1 ? 0
                              : (size_t)row_blocks_of(call->packed.rows) * (size_t)parts * ROWS *
                                    (size_t)padded_tokens(call->tokens) * sizeof(float);
    return decant_cuda_arrivals(context, &call->arrivals, err);
}

template <typename Decoder, int TILES, bool SPARSE>
static cudaError_t launch_sparse(decant_cuda_context *context, const tiles_call &call)
{
    const decant_packed_view &packed = call.packed;
    const bool whole = packed.words % LANE_WORDS == 0 && (uintptr_t)packed.planes % VECTOR_BYTES == 0;
    const unsigned blocks = (unsigned)(row_blocks_of(packed.rows) * call.shares);
    return decant_launch_early(context,
                               whole ? tiles_kernel<Decoder, TILES, true, SPARSE>
                                     : tiles_kernel<Decoder, TILES, false, SPARSE>,
                               blocks, THREADS, SHARED_BYTES<Decoder, TILES, SPARSE>, call);
}

template <typename Decoder, int TILES>
static cudaError_t launch_tokens(decant_cuda_context *context, const tiles_call &call)
{
    return call.turned ? launch_sparse<Decoder, TILES, true>(context, call)
                       : launch_sparse<Decoder, TILES, false>(context, call);
}

template <typename Decoder>
static cudaError_t launch_tiles(decant_cuda_context *context, const tiles_call &call)
{
    return call.tokens <= TILE_TOKENS       ? launch_tokens<Decoder, 1>(context, call)
           : call.tokens <= 2 * TILE_TOKENS ? launch_tokens<Decoder, 2>(context, call)
                                            : launch_tokens<Decoder, 4>(context, call);
}

#endif
