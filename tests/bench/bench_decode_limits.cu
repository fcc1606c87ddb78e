/* What the packed product of one token can reach at most: the time of kernels that bring the bytes it reads and
 * do nothing with them, beside the product itself and the 16-bit one. Microseconds, and times the speed of
 * cuBLAS in BF16.
 *
 * usage: bench_decode_limits [--bits 4,3,2] [--shapes 63] [--all 1] [--copies 48]
 *     shapes: a mask of those of decode_bench.cuh; all: every way is told; copies of the codes, at least
 *
 * Launches and graphs are those of bench_decode, over more copies of the codes: what is asked for ahead of time
 * would stay in the L2 cache for more than one launch, where copies make room for it, until its turn comes
 * again. Levels lie there in both. Blocks, one a multiprocessor, share the bytes evenly, each through a ring of
 * slots:
 *
 *     alone       a launch does not depend on the one before, so that memory is never idle
 *     in a chain  what does not depend on x is asked for as soon as there is room for the block
 *
 * In a chain that is the levels, the ring's slots, and more into the L2 cache. Then a block waits for the
 * launch before and reads the whole of x, as every block of a product must; only then are slots filled anew. y
 * is stored once all bytes have come.
 *
 * Slots are filled by the copy engine from one stretch of memory, or as packed_parities.cu does ("lines"): a
 * warp copies sixteen bytes a lane, 64 of each plane of eight rows, with the rest of the cache line. "once":
 * the copies are the first to make room in the L2 cache. The figure is that of the fastest way of WAYS: a limit
 * as far as no faster one is known. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/packed.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "tests/bench/copy_once.cuh"
#include "tests/bench/decode_bench.cuh"

#include <cstring>

enum {
    WARP = 32,
    WARPS = THREADS / WARP,
    SLOTS_MAXIMUM = 64,
    LEVELS_BYTES = 8 << 10, /* of a block's rows, at most */
    TILE_ROWS = 8,
    UNIT_BYTES = 64, /* of a plane of a row, by lines */
    LANE_BYTES = 16,
};

typedef struct bring_call {
    const char *codes;
    const char *levels;
    const uint4 *x;
    uint16_t *y;
    int64_t codes_bytes, levels_bytes;
    int x_vectors, rows;
    int bits, plane_bytes; /* of a row's plane */
    int slots, slot_bytes; /* by lines: of a warp, and a unit's */
    int ahead_bytes;       /* of a block */
    bool in_chain;
    bool once; /* what is copied is the first to make room in the L2 cache */
} bring_call;

/* ---- what all blocks do ---- */

/* A block's part of `count` things. */
typedef struct part {
    int64_t begin, end;
} part;

static __device__ __forceinline__ part part_of(int64_t count, int64_t index, int64_t parts)
{
    return {index * count / parts, (index + 1) * count / parts};
}

/* Starts bringing the levels of the block's rows to the start of shared memory. By one thread. */
static __device__ __forceinline__ void bring_levels(const bring_call &call, uint32_t target, uint32_t barrier)
{
    const part own = part_of(call.levels_bytes / LANE_BYTES, blockIdx.x, gridDim.x);
    const uint32_t bytes = (uint32_t)(own.end - own.begin) * LANE_BYTES;
    decant_barrier_expect(barrier, bytes);
    if (bytes > 0)
        decant_copy_bytes(target, call.levels + own.begin * LANE_BYTES, bytes, barrier);
}

/* Waits for the launch before and reads x; every thread's part has come when all have met. */
static __device__ __forceinline__ void take_x(const bring_call &call)
{
    enum { AT_ONCE = 12 };
    uint32_t all = 0;
    if (!call.in_chain)
        return;
    decant_wait_for_earlier_kernels();
    for (int first = (int)threadIdx.x; first < call.x_vectors; first += AT_ONCE * THREADS) {
        uint4 vectors[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) /* all before the first is looked at */
            vectors[i] = first + i * THREADS < call.x_vectors ? call.x[first + i * THREADS] : uint4();
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            all |= vectors[i].x ^ vectors[i].y ^ vectors[i].z ^ vectors[i].w;
    }
    if (__syncthreads_or(all == 0x12345678u)) /* never: x has to be looked at */
        call.y[0] = (uint16_t)all;
}

static __device__ __forceinline__ void store_y(const bring_call &call)
{
    const part own = part_of(call.rows, blockIdx.x, gridDim.x);
    __syncthreads();
    if (call.in_chain)
        for (int64_t row = own.begin + threadIdx.x; row < own.end; row += THREADS)
            call.y[row] = (uint16_t)row;
}

/* ---- by the copy engine ---- */

/* barriers: [SLOTS_MAXIMUM + 1], of the slots and of the levels. */
static __device__ __forceinline__ void bring_in_bulk(const bring_call &call, unsigned char *shared,
                                                     uint64_t *barriers)
{
    const uint32_t full = decant_shared_address(barriers), of_levels = full + SLOTS_MAXIMUM * 8,
                   levels = decant_shared_address(shared), ring = levels + LEVELS_BYTES;
    const part own = part_of((call.codes_bytes + call.slot_bytes - 1) / call.slot_bytes, blockIdx.x, gridDim.x);
    const int count = (int)(own.end - own.begin);
    const char *codes = call.codes + own.begin * call.slot_bytes;
    const int64_t bytes = min(own.end * call.slot_bytes, call.codes_bytes) - own.begin * call.slot_bytes;
    const auto bring = [&](int piece) {
        const uint32_t piece_bytes =
            (uint32_t)min((int64_t)call.slot_bytes, bytes - (int64_t)piece * call.slot_bytes);
        const uint32_t slot = piece % call.slots;
        decant_barrier_expect(full + slot * 8, piece_bytes);
        const char *source = codes + (int64_t)piece * call.slot_bytes;
        if (call.once)
            copy_once(ring + slot * call.slot_bytes, source, piece_bytes, full + slot * 8);
        else
            decant_copy_bytes(ring + slot * call.slot_bytes, source, piece_bytes, full + slot * 8);
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < call.slots; i++)
            decant_barrier_create(full + i * 8, 1);
        decant_barrier_create(of_levels, 1);
        decant_barrier_publish();
        bring_levels(call, levels, of_levels);
        for (int i = 0; i < min(call.slots, count); i++)
            bring(i);
        const int64_t ring_bytes = (int64_t)call.slots * call.slot_bytes;
        const int64_t ahead = min((int64_t)call.ahead_bytes, bytes - ring_bytes);
        for (int64_t done = 0; done < ahead; done += call.slot_bytes)
            decant_prefetch_bytes(codes + ring_bytes + done,
                                  (uint32_t)min((int64_t)call.slot_bytes, ahead - done));
    }
    decant_let_next_kernel_begin();
    take_x(call);
    if (threadIdx.x == 0) {
        for (int i = 0; i < count; i++) {
            decant_barrier_wait(full + i % call.slots * 8, i / call.slots & 1);
            if (i + call.slots < count)
                bring(i + call.slots);
        }
        decant_barrier_wait(of_levels, 0);
    }
    store_y(call);
}

__global__ void __launch_bounds__(THREADS) bulk_kernel(const __grid_constant__ bring_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(128) unsigned char shared[];
        __shared__ uint64_t barriers[SLOTS_MAXIMUM + 1];
        bring_in_bulk(call, shared, barriers);
    }
}

/* ---- by lines ---- */

/* STAGES: units of BITS planes in a warp's ring; of_levels: a barrier. */
template <int BITS, int STAGES>
static __device__ __forceinline__ void bring_lines(const bring_call &call, unsigned char *shared,
                                                   uint64_t *of_levels)
{
    constexpr int SLOT_BYTES = BITS * WARP * LANE_BYTES;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, units = call.plane_bytes / UNIT_BYTES;
    const part tiles = part_of(call.rows / TILE_ROWS, blockIdx.x, gridDim.x);
    const part own = part_of((tiles.end - tiles.begin) * units, warp, WARPS);
    const int count = (int)(own.end - own.begin);
    const uint32_t levels = decant_shared_address(shared),
                   ring = levels + LEVELS_BYTES + warp * STAGES * SLOT_BYTES + lane * LANE_BYTES;
    const char *tile =
        call.codes + ((tiles.begin + own.begin / units) * TILE_ROWS + lane / 4) * BITS * call.plane_bytes;
    int unit = (int)(own.begin % units);
    uint32_t target = ring;
    const auto bring = [&] {
#pragma unroll
        for (int bit = 0; bit < BITS; bit++) {
            const char *source = tile + bit * call.plane_bytes + unit * UNIT_BYTES + lane % 4 * LANE_BYTES;
            if (call.once)
                decant_copy_line_once_16(target + bit * WARP * LANE_BYTES, source, true);
            else
                decant_copy_line_16(target + bit * WARP * LANE_BYTES, source, true);
        }
        target = target + SLOT_BYTES == ring + STAGES * SLOT_BYTES ? ring : target + SLOT_BYTES;
        if (++unit == units) {
            unit = 0;
            tile += (int64_t)TILE_ROWS * BITS * call.plane_bytes;
        }
    };
    if (threadIdx.x == 0) {
        decant_barrier_create(decant_shared_address(of_levels), 1);
        decant_barrier_publish();
        bring_levels(call, levels, decant_shared_address(of_levels));
    }
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < count)
            bring();
        decant_copy_commit();
    }
    decant_let_next_kernel_begin();
    take_x(call);
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        decant_copy_wait<STAGES - 2>();
        __syncwarp();
        if (i + STAGES - 1 < count)
            bring();
        decant_copy_commit();
    }
    if (threadIdx.x == 0)
        decant_barrier_wait(decant_shared_address(of_levels), 0);
    store_y(call);
}

template <int BITS, int STAGES>
__global__ void __launch_bounds__(THREADS) lines_kernel(const __grid_constant__ bring_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(128) unsigned char shared[];
        __shared__ uint64_t of_levels;
        bring_lines<BITS, STAGES>(call, shared, &of_levels);
    }
}

/* ---- the ways ---- */

/* slot_bytes 0: by lines, `slots` planes of units in a warp's ring. */
typedef struct bring_way {
    int slots, slot_bytes;
    int ahead_bytes; /* of a block, asked for in the L2 cache beyond the slots before x is there */
    bool once;
} bring_way;

/* Of 72 rings of 48 to 96 KB, half of them once, those that were the fastest of some shape and width. */
static const bring_way WAYS[] = {
    {2, 32 << 10, 0, true},
    {3, 32 << 10, 0, true},
    {3, 32 << 10, 16 << 10, true},
    {3, 32 << 10, 32 << 10, true},
    {3, 32 << 10, 64 << 10, true},
    {3, 16 << 10, 0, true},
    {12, 0, 0, false},
    {20, 0, 0, false},
    {20, 0, 0, true},
    {24, 0, 0, true},
};
enum { WAY_COUNT = sizeof WAYS / sizeof *WAYS };

template <int BITS>
static cudaError_t launch_lines(const decant_cuda_context *context, const bring_call &call, int planes,
                                unsigned blocks)
{
    const size_t bytes = LEVELS_BYTES + (size_t)(planes / BITS) * BITS * WARPS * WARP * LANE_BYTES;
    return planes == 12
               ? decant_launch_early(context, lines_kernel<BITS, 12 / BITS>, blocks, THREADS, bytes, call)
           : planes == 24
               ? decant_launch_early(context, lines_kernel<BITS, 24 / BITS>, blocks, THREADS, bytes, call)
           : planes == 16
               ? decant_launch_early(context, lines_kernel<BITS, 16 / BITS>, blocks, THREADS, bytes, call)
               : decant_launch_early(context, lines_kernel<BITS, 20 / BITS>, blocks, THREADS, bytes, call);
}

static cudaError_t launch(const decant_cuda_context *context, bring_call call, const bring_way &way)
{
    call.once = way.once;
    const unsigned blocks = (unsigned)context->shared.multiprocessors;
    if (way.slot_bytes == 0)
        return call.bits == 2   ? launch_lines<2>(context, call, way.slots, blocks)
               : call.bits == 3 ? launch_lines<3>(context, call, way.slots, blocks)
                                : launch_lines<4>(context, call, way.slots, blocks);
    call.slots = way.slots;
    call.slot_bytes = way.slot_bytes;
    call.ahead_bytes = way.ahead_bytes;
    return decant_launch_early(context, bulk_kernel, blocks, THREADS,
                               (size_t)LEVELS_BYTES + way.slots * way.slot_bytes, call);
}

typedef struct bench : decode_bench {
    char *pool; /* codes of every copy */
    char *levels;
    int copies; /* at least */
} bench;

static int copies_of_codes(const bench *b, int64_t bytes)
{
    return std::max(b->copies, copies_of((double)bytes));
}

/* The product itself. */
static double time_product(bench *b, int rows, int columns, int bits)
{
    const int64_t bytes = (int64_t)rows * bits * decant_plane_words(columns, true) * 4;
    const int copies = copies_of_codes(b, bytes);
    const decant_matrix x = {b->x_data, DECANT_BF16, 1, columns}, y = {b->y_data, DECANT_BF16, 1, rows};
    decant_packed_matrix packed = {};
    packed.rows = rows;
    packed.columns = columns;
    packed.bits = bits;
    packed.levels = (uint16_t *)b->levels;
    packed.arranged = true; /* random bits are as random in any order */
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        decant_error err;
        packed.planes = (uint32_t *)(b->pool + i % copies * bytes);
        require(b->backend->validate->packed_linear(b->backend, x, &packed, false, y, &err), &err);
    });
}

static double time_way(bench *b, int rows, int columns, int bits, const bring_way &way, bool in_chain)
{
    const int64_t bytes = (int64_t)rows * columns / 8 * bits;
    const int copies = copies_of_codes(b, bytes);
    bring_call call = {};
    call.levels = b->levels;
    call.x = (const uint4 *)b->x_data;
    call.y = (uint16_t *)b->y_data;
    call.codes_bytes = bytes;
    call.levels_bytes = ((int64_t)rows << bits) * 2;
    call.x_vectors = columns / 8;
    call.rows = rows;
    call.bits = bits;
    call.plane_bytes = columns / 8;
    call.in_chain = in_chain;
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        call.codes = b->pool + i % copies * bytes;
        MUST(launch(decant_cuda_context_of(b->backend), call, way));
    });
}

static void print_way(const bring_way &way)
{
    if (way.slot_bytes == 0)
        printf("%d planes by lines%s", way.slots, way.once ? ", once" : "");
    else
        printf("%d x %d K + %d K%s", way.slots, way.slot_bytes >> 10, way.ahead_bytes >> 10,
               way.once ? ", once" : "");
}

static void measure(bench *b, int rows, int columns, int bits, double dense, bool all)
{
    const double product = time_product(b, rows, columns, bits);
    printf(" | %6.2f %5.2fx", product, dense / product);
    double us[2][WAY_COUNT];
    for (int in_chain = 0; in_chain < 2; in_chain++) {
        for (int i = 0; i < WAY_COUNT; i++)
            us[in_chain][i] = time_way(b, rows, columns, bits, WAYS[i], in_chain != 0);
        const double best = *std::min_element(us[in_chain], us[in_chain] + WAY_COUNT);
        const double bytes = (double)rows * (columns / 8.0 * bits + 2 * (1 << bits));
        printf(" | %6.2f %5.2fx %4.2f TB/s", best, dense / best, bytes / best * 1e-6);
    }
    printf("\n");
    for (int i = 0; all && i < WAY_COUNT; i++) {
        printf("%39s | %6.2f                  | %6.2f                   ", "", us[0][i], us[1][i]);
        print_way(WAYS[i]);
        printf("\n");
    }
    fflush(stdout);
}

static void make_arrays(bench *b)
{
    const size_t widest = 22016;
    size_t pool_bytes = 0;
    for (const auto &shape : SHAPES)
        for (int bits = 2; bits <= 4; bits++) {
            const int64_t bytes = (int64_t)shape[0] * shape[1] / 8 * bits;
            pool_bytes = std::max(pool_bytes, (size_t)(bytes * copies_of_codes(b, bytes)));
        }
    b->pool = (char *)make_random(b, pool_bytes, WORDS_RANDOM, WORDS_FIXED);
    b->levels = (char *)make_random(b, widest * 32, NUMBERS_RANDOM, NUMBERS_FIXED);
    b->weights = (__nv_bfloat16 *)make_random(b, weights_bytes(), NUMBERS_RANDOM, NUMBERS_FIXED);
    b->x_data = make_random(b, widest * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
    b->y_data = make_random(b, widest * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
    MUST(cudaStreamSynchronize(b->stream));
}

int main(int argc, char **argv)
{
    std::vector<int> widths = {4, 3, 2};
    int shapes = 63;
    bool all = false;
    bench b = {};
    b.copies = 48;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--bits") == 0)
            widths = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--shapes") == 0)
            shapes = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--all") == 0)
            all = atoi(argv[i + 1]) != 0;
        else if (strcmp(argv[i], "--copies") == 0)
            b.copies = atoi(argv[i + 1]);
    }
    decant_error err = {};
    require(decant_backend_create_cuda(0, false, &b.backend, &err), &err);
    b.stream = decant_cuda_of(b.backend)->stream;
    if (!decant_cuda_context_of(b.backend)->has_wgmma) {
        printf("for Hopper alone\n");
        return 77;
    }
    make_arrays(&b);
    printf("%s; microseconds, times BF16\n%-11s %4s %7s | %-13s | %-23s | in a chain\n", b.backend->device_name,
           "shape", "bits", "BF16", "the product", "alone");
    for (int i = 0; i < (int)(sizeof SHAPES / sizeof *SHAPES); i++) {
        if (!(shapes >> i & 1))
            continue;
        const double dense = time_dense(&b, SHAPES[i][0], SHAPES[i][1], 1);
        for (int bits : widths) {
            printf("%5dx%-5d %4d %7.2f", SHAPES[i][0], SHAPES[i][1], bits, dense);
            measure(&b, SHAPES[i][0], SHAPES[i][1], bits, dense, all);
        }
    }
    MUST(cudaFree(b.pool));
    MUST(cudaFree(b.levels));
    MUST(cudaFree(b.weights));
    MUST(cudaFree(b.x_data));
    MUST(cudaFree(b.y_data));
    decant_backend_destroy(&b.backend);
    return 0;
}
