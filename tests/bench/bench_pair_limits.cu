/* What a product of sixteen tokens that looks up pairs of levels (packed_pairs.cu) can reach at most, beside
 * the 16-bit one. First the time of its inner loop alone, on codes and tables that are in shared memory already
 * and x in the L2 cache: nothing is copied, no table is filled, no sums leave the registers. Then that of
 * launches in a chain, as bench_decode's, that bring the codes too; x is F16 already, and there is still no
 * table and no sum.
 *
 * usage: bench_pair_limits [--bits 4,3,2]
 *
 *     look-ups   codes from shared memory, pairs of levels looked up by them, and one sparse product for every
 *                four, because what is looked up must go somewhere
 *     and x      the operands of x read besides, as often as the product reads them
 *     and all    both products that sixteen tokens need
 *
 * A stage is 64 rows and 1024 columns; a multiprocessor looks up at most 32 pairs a cycle. A shape's figure is
 * that of as many stages as the busiest multiprocessor has.
 *
 * "chain, codes": a launch begins to bring them beside the one before, into a ring of two stages, the first to
 * leave the L2 cache, each stage one stretch of memory; a block waits for the launch before, and its warps read
 * them into registers. "and x": the operands of x besides, asked for a stage ahead. "and all": look-ups and
 * both products, too. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/pair_tables.cuh"
#include "kernels/cuda/sparse_core.cuh"
#include "kernels/cuda/tensor_core.cuh"
#include "tests/bench/copy_once.cuh"
#include "tests/bench/decode_bench.cuh"

#include <cstring>

enum {
    TOKENS = 16,
    TILES = 4,
    STAGE_ROWS = TILES * PAIR_TILE_ROWS,
    STAGE_COLUMNS = 1024,
    SLICES = 8, /* of a stage, each for a warp */
    SLICE_BYTES = 16,
    LINE_BYTES = 128, /* of a plane of a row */
    PLANE_BYTES = STAGE_ROWS * LINE_BYTES,
    RING_BYTES = 96 << 10,
    TABLES_ADDRESS = 1024, /* in shared memory, behind what the system takes */
    X_COLUMNS = 8192,
    CHAIN_COLUMNS = 22 * STAGE_COLUMNS, /* the widest shape's, in whole stages */
    HALF_VECTORS = 4,                   /* of x, of a lane, for half a slice */
    FEW_STAGES = 128,
    MANY_STAGES = 1152,
};

typedef struct pair_call {
    const uint4 *x; /* [slices of X_COLUMNS, 2, HALF_VECTORS, lanes] */
    float *sums;    /* [blocks, threads] */
    long long *cycles;
    int stages;
} pair_call;

static __device__ __forceinline__ void load_x(uint4 (&x)[HALF_VECTORS], const pair_call &call, int stage,
                                              int half)
{
    const int slice =
        (int)((blockIdx.x + stage) * SLICES + threadIdx.x / DECANT_WARP % SLICES) % (X_COLUMNS / 128);
    const uint4 *source = call.x + (slice * 2 + half) * HALF_VECTORS * DECANT_WARP + threadIdx.x % DECANT_WARP;
#pragma unroll
    for (int i = 0; i < HALF_VECTORS; i++)
        x[i] = source[i * DECANT_WARP];
}

template <int BITS, int PRODUCTS, uint32_t TABLES = TABLES_ADDRESS>
static __device__ __forceinline__ void take_half(float (&sums)[TILES][2][4], const uint2 (&codes)[TILES][BITS],
                                                 int half, const uint4 (&x)[HALF_VECTORS])
{
    const uint32_t lane_bytes = threadIdx.x % DECANT_WARP * 4;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        uint32_t planes[BITS], numbers[4];
#pragma unroll
        for (int bit = 0; bit < BITS; bit++)
            planes[bit] = half ? codes[tile][bit].y : codes[tile][bit].x;
        number_pairs<BITS>(numbers, planes);
#pragma unroll
        for (int turn = 0; turn < 2; turn++)
#pragma unroll
            for (int part = 0; part < 2; part++) {
                uint32_t weights[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    weights[i] =
                        look_up<BITS, TABLES>(tile, numbers[i / 2 * 2 + part], turn * 2 + i % 2, lane_bytes);
                decant_sparse_mma(sums[tile][0], x[turn * 2 + part], weights, DECANT_LOWER_TERMS);
                if constexpr (PRODUCTS == 2)
                    decant_sparse_mma(sums[tile][1], x[turn * 2 + part], weights, DECANT_UPPER_TERMS);
            }
    }
}

/* GROUPS of eight warps take stages in turn. */
template <int BITS, int GROUPS, bool X, int PRODUCTS>
__global__ void __launch_bounds__(GROUPS *THREADS, 1) pair_kernel(const __grid_constant__ pair_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) unsigned char shared[];
        constexpr int TABLES_BYTES = TILES / 2 * TWO_TABLES_BYTES<BITS>, STAGE_BYTES = BITS * PLANE_BYTES,
                      SLOTS = RING_BYTES / STAGE_BYTES;
        const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP % SLICES,
                  row = row_of_lane(lane), group = threadIdx.x / THREADS;
        unsigned char *ring = shared + TABLES_BYTES;
        if (decant_shared_address(shared) != TABLES_ADDRESS)
            __trap();
        for (int i = threadIdx.x; i < (TABLES_BYTES + RING_BYTES) / 4; i += GROUPS * THREADS)
            ((uint32_t *)shared)[i] = i * 4 < TABLES_BYTES ? 0x2c002c00u : (uint32_t)i * 2654435761u;
        __syncthreads();
        float sums[TILES][2][4] = {};
        uint4 x[2][HALF_VECTORS];
        load_x(x[0], call, group, 0);
        load_x(x[1], call, group, 1);
        const unsigned char *own = ring + row * LINE_BYTES + (warp ^ row % 8) * SLICE_BYTES + lane % 4 / 2 * 8;
        const long long begin = clock64();
        int slot = group % SLOTS;
#pragma unroll 1
        for (int stage = group; stage < call.stages; stage += GROUPS) {
            uint2 codes[TILES][BITS];
            if constexpr (X)
                load_x(x[1], call, stage, 1);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int bit = 0; bit < BITS; bit++)
                    codes[tile][bit] = *(const uint2 *)(own + slot * STAGE_BYTES + bit * PLANE_BYTES +
                                                        tile * PAIR_TILE_ROWS * LINE_BYTES);
            slot = slot + GROUPS < SLOTS ? slot + GROUPS : slot + GROUPS - SLOTS;
            take_half<BITS, PRODUCTS>(sums, codes, 0, x[0]);
            if constexpr (X)
                load_x(x[0], call, stage + GROUPS, 0);
            take_half<BITS, PRODUCTS>(sums, codes, 1, x[1]);
        }
        float sum = 0;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                sum += sums[tile][0][i] + sums[tile][1][i];
        call.sums[blockIdx.x * GROUPS * THREADS + threadIdx.x] = sum;
        __syncthreads();
        if (blockIdx.x == 0 && threadIdx.x == 0)
            *call.cycles = clock64() - begin;
    }
}

/* ---- in a chain ---- */

enum {
    CHAIN_SLOTS = 2,
    CHAIN_TABLES_ADDRESS = 2048, /* behind what the system and the barriers take */
    EARLY_SLOTS = 1,             /* filled before the launch before has ended */
    CHAIN_THREADS = THREADS + DECANT_WARP,
};

typedef enum chain_work { CHAIN_CODES, CHAIN_X, CHAIN_ALL } chain_work;

typedef struct chain_call {
    const char *codes; /* [stages] */
    const uint4 *x;    /* [row_stages * SLICES, 2, HALF_VECTORS, lanes] */
    float *sums;       /* [blocks, THREADS] */
    int stages, run;   /* in all and of a block */
    int row_stages;
    uint32_t zero; /* as a value that the compiler does not know */
} chain_call;

/* Brings all stages of the block; one thread. */
template <int BITS>
static __device__ __forceinline__ void bring_chain(const chain_call &call, uint32_t ring, uint32_t full,
                                                   uint32_t empty)
{
    constexpr int STAGE_BYTES = BITS * PLANE_BYTES;
    const int begin = (int)blockIdx.x * call.run, end = min(begin + call.run, call.stages);
    for (int stage = begin; stage < end; stage++) {
        const int index = stage - begin, slot = index % CHAIN_SLOTS, round = index / CHAIN_SLOTS;
        if (index == EARLY_SLOTS)
            decant_wait_for_earlier_kernels();
        if (round > 0)
            decant_barrier_wait(empty + slot * 8, (round - 1) & 1);
        decant_barrier_expect(full + slot * 8, STAGE_BYTES);
        copy_once(ring + slot * STAGE_BYTES, call.codes + (int64_t)stage * STAGE_BYTES, STAGE_BYTES,
                  full + slot * 8);
    }
}

template <int BITS, chain_work WORK>
static __device__ __forceinline__ void take_chain(const chain_call &call, const unsigned char *ring,
                                                  uint32_t full, uint32_t empty)
{
    constexpr int STAGE_BYTES = BITS * PLANE_BYTES;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP, row = row_of_lane(lane);
    const int begin = (int)blockIdx.x * call.run, end = min(begin + call.run, call.stages);
    const unsigned char *own = ring + row * LINE_BYTES + (warp ^ row % 8) * SLICE_BYTES + lane % 4 / 2 * 8;
    float sums[TILES][2][4] = {};
    uint4 x[2][HALF_VECTORS] = {};
    uint32_t mixed = 0;
    const auto load = [&](uint4(&target)[2][HALF_VECTORS], int stage) {
        const uint4 *source =
            call.x + (stage % call.row_stages * SLICES + warp) * 2 * HALF_VECTORS * DECANT_WARP + lane;
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < HALF_VECTORS; i++)
                target[half][i] = source[(half * HALF_VECTORS + i) * DECANT_WARP];
    };
    decant_wait_for_earlier_kernels();
    if constexpr (WORK != CHAIN_CODES)
        load(x, begin);
#pragma unroll 1
    for (int stage = begin; stage < end; stage++) {
        const int slot = (stage - begin) % CHAIN_SLOTS, round = (stage - begin) / CHAIN_SLOTS;
        uint2 codes[TILES][BITS];
        uint4 next[2][HALF_VECTORS] = {};
        if constexpr (WORK != CHAIN_CODES)
            load(next, stage + 1);
        decant_barrier_wait(full + slot * 8, round & 1);
        uint32_t own_codes = 0;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int bit = 0; bit < BITS; bit++) {
                codes[tile][bit] = *(const uint2 *)(own + slot * STAGE_BYTES + bit * PLANE_BYTES +
                                                    tile * PAIR_TILE_ROWS * LINE_BYTES);
                own_codes ^= codes[tile][bit].x ^ codes[tile][bit].y;
            }
        __syncwarp();
        if (lane == 0) /* once they are all there */
            decant_barrier_arrive(empty + slot * 8 + (own_codes & call.zero));
        mixed ^= own_codes;
        if constexpr (WORK == CHAIN_ALL) {
            take_half<BITS, 2, CHAIN_TABLES_ADDRESS>(sums, codes, 0, x[0]);
            take_half<BITS, 2, CHAIN_TABLES_ADDRESS>(sums, codes, 1, x[1]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int i = 0; i < HALF_VECTORS; i++) {
                if constexpr (WORK == CHAIN_X)
                    mixed ^= x[half][i].x ^ x[half][i].y ^ x[half][i].z ^ x[half][i].w;
                x[half][i] = next[half][i];
            }
    }
    float sum = __uint_as_float(mixed & call.zero);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum += sums[tile][0][i] + sums[tile][1][i];
    call.sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}

template <int BITS, chain_work WORK>
__global__ void __launch_bounds__(CHAIN_THREADS, 1) chain_kernel(const __grid_constant__ chain_call call)
{
    if constexpr (DECANT_HAS_WGMMA) {
        extern __shared__ __align__(1024) unsigned char shared[];
        __shared__ uint64_t full[CHAIN_SLOTS], empty[CHAIN_SLOTS];
        unsigned char *ring = shared + TILES / 2 * TWO_TABLES_BYTES<BITS>;
        decant_let_next_kernel_begin();
        if (decant_shared_address(shared) != CHAIN_TABLES_ADDRESS)
            __trap();
        if (threadIdx.x == 0) {
            for (int i = 0; i < CHAIN_SLOTS; i++) {
                decant_barrier_create(decant_shared_address(full + i), 1);
                decant_barrier_create(decant_shared_address(empty + i), SLICES);
            }
            decant_barrier_publish();
        }
        __syncthreads();
        if (threadIdx.x < THREADS)
            take_chain<BITS, WORK>(call, ring, decant_shared_address(full), decant_shared_address(empty));
        else if (threadIdx.x == THREADS)
            bring_chain<BITS>(call, decant_shared_address(ring), decant_shared_address(full),
                              decant_shared_address(empty));
    }
}

template <int BITS, chain_work WORK>
static double time_chain(decode_bench *b, const pair_call &pairs, int rows, int columns)
{
    const decant_cuda_context *context = decant_cuda_context_of(b->backend);
    const int multiprocessors = context->shared.multiprocessors;
    chain_call call = {};
    call.x = pairs.x;
    call.sums = pairs.sums;
    call.row_stages = (columns + STAGE_COLUMNS - 1) / STAGE_COLUMNS;
    call.stages = (rows + STAGE_ROWS - 1) / STAGE_ROWS * call.row_stages;
    call.run = (call.stages + multiprocessors - 1) / multiprocessors;
    const int64_t bytes = (int64_t)call.stages * BITS * PLANE_BYTES;
    const int copies = copies_of((double)bytes);
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        call.codes = (const char *)b->weights + i % copies * bytes; /* any bits will do */
        MUST(decant_launch_early(context, chain_kernel<BITS, WORK>,
                                 (unsigned)((call.stages + call.run - 1) / call.run), CHAIN_THREADS,
                                 TILES / 2 * TWO_TABLES_BYTES<BITS> + CHAIN_SLOTS * BITS * PLANE_BYTES, call));
    });
}

template <int BITS, chain_work WORK>
static void measure_chain(decode_bench *b, const pair_call &call, const double *dense, const char *name)
{
    printf("%d chain, %-18s %7s |", BITS, name, "");
    for (int shape = 0; shape < (int)(sizeof SHAPES / sizeof *SHAPES); shape++) {
        const double us = time_chain<BITS, WORK>(b, call, SHAPES[shape][0], SHAPES[shape][1]);
        printf(" %6.2f %5.2fx", us, dense[shape] / us);
    }
    printf("\n");
    fflush(stdout);
}

template <int BITS> static void measure_chains(decode_bench *b, const pair_call &call, const double *dense)
{
    measure_chain<BITS, CHAIN_CODES>(b, call, dense, "codes");
    measure_chain<BITS, CHAIN_X>(b, call, dense, "and x");
    measure_chain<BITS, CHAIN_ALL>(b, call, dense, "and all");
}

/* ---- the inner loop ---- */

/* What a stage takes. */
typedef struct stage_figures {
    double us, cycles;
} stage_figures;

template <int BITS, int GROUPS, bool X, int PRODUCTS>
static stage_figures time_stage(decode_bench *b, pair_call call)
{
    const decant_cuda_context *context = decant_cuda_context_of(b->backend);
    double us[2];
    long long cycles[2];
    for (int many = 0; many < 2; many++) {
        call.stages = many ? MANY_STAGES : FEW_STAGES;
        us[many] = time_us(b, 4, [&](int) {
            MUST(decant_launch_early(context, pair_kernel<BITS, GROUPS, X, PRODUCTS>,
                                     (unsigned)context->shared.multiprocessors, GROUPS * THREADS,
                                     TILES / 2 * TWO_TABLES_BYTES<BITS> + RING_BYTES, call));
        });
        MUST(cudaMemcpy(&cycles[many], call.cycles, sizeof *call.cycles, cudaMemcpyDeviceToHost));
    }
    const double stages = MANY_STAGES - FEW_STAGES;
    return {(us[1] - us[0]) / stages, (double)(cycles[1] - cycles[0]) / stages};
}

template <int BITS, int GROUPS> static void measure(decode_bench *b, const pair_call &call, const double *dense)
{
    static const char *const names[] = {"look-ups", "and x", "and all"};
    const stage_figures figures[] = {time_stage<BITS, GROUPS, false, 1>(b, call),
                                     time_stage<BITS, GROUPS, true, 1>(b, call),
                                     time_stage<BITS, GROUPS, true, 2>(b, call)};
    const int multiprocessors = decant_cuda_of(b->backend)->multiprocessors;
    for (int i = 0; i < 3; i++) {
        printf("%d %2d warps, %-8s %7.1f %6.1f |", BITS, GROUPS * SLICES, names[i], figures[i].cycles,
               STAGE_ROWS * STAGE_COLUMNS / figures[i].cycles);
        for (int shape = 0; shape < (int)(sizeof SHAPES / sizeof *SHAPES); shape++) {
            const int row_tiles = (SHAPES[shape][0] + STAGE_ROWS - 1) / STAGE_ROWS,
                      row_stages = (SHAPES[shape][1] + STAGE_COLUMNS - 1) / STAGE_COLUMNS;
            const int run = (row_tiles * row_stages + multiprocessors - 1) / multiprocessors;
            printf(" %6.2f %5.2fx", run * figures[i].us, dense[shape] / (run * figures[i].us));
        }
        printf("\n");
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    std::vector<int> widths = {4, 3, 2};
    if (argc > 2 && strcmp(argv[1], "--bits") == 0)
        widths = read_list(argv[2]);
    decode_bench b = {};
    decant_error err = {};
    require(decant_backend_create_cuda(0, false, &b.backend, &err), &err);
    b.stream = decant_cuda_of(b.backend)->stream;
    if (!decant_cuda_context_of(b.backend)->has_wgmma) {
        printf("for Hopper alone\n");
        return 77;
    }
    const size_t widest = 22016;
    pair_call call = {};
    b.weights = (__nv_bfloat16 *)make_random(&b, weights_bytes(), NUMBERS_RANDOM, NUMBERS_FIXED);
    b.x_data = make_random(&b, widest * TOKENS * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
    b.y_data = make_random(&b, widest * TOKENS * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
    call.x = (const uint4 *)make_random(&b, (size_t)CHAIN_COLUMNS * TOKENS * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
    MUST(cudaMalloc((void **)&call.sums,
                    sizeof(float) * 2 * THREADS * decant_cuda_of(b.backend)->multiprocessors));
    MUST(cudaMalloc((void **)&call.cycles, sizeof *call.cycles));
    std::vector<double> dense;
    printf("%s; %d tokens; microseconds, times BF16\n%-20s %7s %6s |", b.backend->device_name, TOKENS, "bits",
           "cycles", "w/cyc");
    for (const auto &shape : SHAPES)
        printf("   %5dx%-5d", shape[0], shape[1]);
    printf("\n%-20s %7s %6s |", "BF16", "", "");
    for (const auto &shape : SHAPES) {
        dense.push_back(time_dense(&b, shape[0], shape[1], TOKENS));
        printf(" %6.2f       ", dense.back());
    }
    printf("\n");
    for (int bits : widths) {
        bits == 2   ? measure<2, 1>(&b, call, dense.data())
        : bits == 3 ? measure<3, 1>(&b, call, dense.data())
                    : measure<4, 1>(&b, call, dense.data());
        bits == 2   ? measure<2, 2>(&b, call, dense.data())
        : bits == 3 ? measure<3, 2>(&b, call, dense.data())
                    : measure<4, 2>(&b, call, dense.data());
        bits == 2   ? measure_chains<2>(&b, call, dense.data())
        : bits == 3 ? measure_chains<3>(&b, call, dense.data())
                    : measure_chains<4>(&b, call, dense.data());
    }
    for (void *device :
         {(void *)b.weights, b.x_data, b.y_data, (void *)call.x, (void *)call.sums, (void *)call.cycles})
        MUST(cudaFree(device));
    decant_backend_destroy(&b.backend);
    return 0;
}
