/* What a product of sixteen tokens that looks up pairs of levels (packed_pairs.cu) can reach at most, beside
 * the 16-bit one: the time of its inner loop alone, on codes and tables that are in shared memory already and x
 * in the L2 cache. Nothing is copied, no table is filled, no sums leave the registers.
 *
 * usage: bench_pair_limits [--bits 4,3,2]
 *
 *     look-ups   codes from shared memory, pairs of levels looked up by them, and one sparse product for every
 *                four, because what is looked up must go somewhere
 *     and x      the operands of x read besides, as often as the product reads them
 *     and all    both products that sixteen tokens need
 *
 * A stage is 64 rows and 1024 columns; a multiprocessor looks up at most 32 pairs a cycle. A shape's figure is
 * that of as many stages as the busiest multiprocessor has. */
#include "kernels/cuda/early_launch.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/pair_tables.cuh"
#include "kernels/cuda/sparse_core.cuh"
#include "kernels/cuda/tensor_core.cuh"
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
    HALF_VECTORS = 4, /* of x, of a lane, for half a slice */
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

template <int BITS, int PRODUCTS>
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
                    weights[i] = look_up<BITS, TABLES_ADDRESS>(tile, numbers[i / 2 * 2 + part],
                                                               turn * 2 + i % 2, lane_bytes);
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
    call.x = (const uint4 *)make_random(&b, (size_t)X_COLUMNS * TOKENS * 2, NUMBERS_RANDOM, NUMBERS_FIXED);
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
    }
    for (void *device :
         {(void *)b.weights, b.x_data, b.y_data, (void *)call.x, (void *)call.sums, (void *)call.cycles})
        MUST(cudaFree(device));
    decant_backend_destroy(&b.backend);
    return 0;
}
