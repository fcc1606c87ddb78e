/* Guided quantization's coordinate descent: every code of a row in turn becomes the one that lowers the
 * objective most while the others stay. With the row's gradient g = δᵀ H up to date, the best value of weight j
 * is w_j − δ_j + (g_j + λ δ_j) / (H_jj + λ), and its best code that of the nearest level.
 *
 * A warp takes a row through a block of 128 columns: lane i has columns i, i + 32, … with their gradients in
 * registers, the block of H on the diagonal is in shared memory. A step asks the lane of its column for the
 * best value, finds the nearest level by a vote (each lane has a threshold or several), and where the level
 * changes adds a row of H to the gradients. Products bring the change to the columns behind the block. */
#include "kernels/cuda/guided.cuh"

enum {
    BLOCK = DECANT_GUIDED_BLOCK,
    WARPS = 16,
    THREADS = WARPS * DECANT_WARP,
    PER_LANE = BLOCK / DECANT_WARP, /* columns */
    TILE_BYTES = BLOCK * BLOCK * (int)sizeof(float),
};

/* What a lane knows of its columns. */
struct lane_columns {
    float gradient[PER_LANE];
    float base[PER_LANE];    /* the best value where the gradient is 0 */
    float inverse[PER_LANE]; /* 1 / (H_jj + λ) */
    float level[PER_LANE];   /* the level of the code */
    int code[PER_LANE];
    unsigned fixed[PER_LANE]; /* bit i: lane i's column takes no part */
};

/* The levels of the row, spread over the lanes. */
template <int SLOTS> struct lane_levels {
    float level[SLOTS], threshold[SLOTS];
};

/* All of the block's warps; rows and columns beyond `count` are zero. */
static __device__ void load_tile(const float *hessian, int64_t stride, int count, float *tile)
{
    for (int i = (int)threadIdx.x; i < BLOCK * BLOCK; i += THREADS) {
        const int row = i / BLOCK, column = i % BLOCK;
        tile[i] = row < count && column < count ? hessian[row * stride + column] : 0;
    }
    __syncthreads();
}

template <int SLOTS>
static __device__ lane_levels<SLOTS> load_levels(const uint16_t *levels, int count, int lane)
{
    lane_levels<SLOTS> mine;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        const int code = s * DECANT_WARP + lane;
        mine.level[s] = code < count ? decant_guided_level(levels, code) : 0;
        mine.threshold[s] = code < count ? decant_guided_threshold(levels, count, code) : INFINITY;
    }
    return mine;
}

static __device__ lane_columns load_columns(const decant_cuda_guided &g, const float *tile, float damping,
                                            int64_t row, int first, int at, int count, int lane)
{
    const uint16_t *levels = g.packed.levels + (row << g.bits);
    lane_columns mine;
#pragma unroll
    for (int q = 0; q < PER_LANE; q++) {
        const int t = q * DECANT_WARP + lane;
        const int64_t place = row * g.columns + first + t;
        const float curvature = tile[t * BLOCK + t] + damping;
        const bool fixed = t >= count || !(curvature > 0) ||
                           (g.marks[row * g.words + (first + t) / 32] >> (first + t) % 32 & 1);
        mine.fixed[q] = __ballot_sync(DECANT_ALL_LANES, fixed);
        mine.code[q] = 0;
        mine.level[q] = mine.gradient[q] = mine.base[q] = mine.inverse[q] = 0;
        if (t >= count)
            continue;
        mine.code[q] = g.codes[place];
        mine.level[q] = decant_guided_level(levels, mine.code[q]);
        mine.gradient[q] = g.gradient[row * DECANT_GUIDED_PANEL + at + t];
        if (fixed)
            continue;
        const float weight = weight_at(g.weight.data, g.weight.element, place), missing = g.missing[place];
        mine.inverse[q] = 1 / curvature;
        mine.base[q] = weight - missing + damping * missing * mine.inverse[q];
    }
    return mine;
}

/* The level of this code, which is the same in all lanes. */
template <int SLOTS>
static __device__ __forceinline__ float level_of(const lane_levels<SLOTS> &levels, int code)
{
    float level = 0;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        const float candidate = __shfl_sync(DECANT_ALL_LANES, levels.level[s], code % DECANT_WARP);
        level = code / DECANT_WARP == s ? candidate : level;
    }
    return level;
}

template <int SLOTS>
static __device__ void descend(const lane_levels<SLOTS> &levels, const float *tile, int lane,
                               lane_columns &mine)
{
#pragma unroll
    for (int q = 0; q < PER_LANE; q++)
        for (int owner = 0; owner < DECANT_WARP; owner++) {
            if (mine.fixed[q] >> owner & 1)
                continue;
            const float best =
                __shfl_sync(DECANT_ALL_LANES, mine.base[q] + mine.gradient[q] * mine.inverse[q], owner);
            const float now = __shfl_sync(DECANT_ALL_LANES, mine.level[q], owner);
            int code = 0;
#pragma unroll
            for (int s = 0; s < SLOTS; s++)
                code += __popc(__ballot_sync(DECANT_ALL_LANES, best > levels.threshold[s]));
            const float level = level_of(levels, code), step = now - level;
            if (step == 0)
                continue;
            const float *hessian = tile + (q * DECANT_WARP + owner) * BLOCK + lane;
#pragma unroll
            for (int p = q; p < PER_LANE; p++)
                mine.gradient[p] += step * hessian[p * DECANT_WARP];
            if (lane == owner) {
                mine.level[q] = level;
                mine.code[q] = code;
            }
        }
}

/* Writes codes, δ and what δ has changed by; `before` is the level that a column had. */
static __device__ void store_columns(const decant_cuda_guided &g, const lane_columns &mine,
                                     const float (&before)[PER_LANE], int64_t row, int first, int count,
                                     int lane)
{
#pragma unroll
    for (int q = 0; q < PER_LANE; q++) {
        const int t = q * DECANT_WARP + lane;
        const int64_t place = row * g.columns + first + t;
        const float step = before[q] - mine.level[q];
        g.steps[row * BLOCK + t] = step;
        if (t >= count || step == 0)
            continue;
        g.codes[place] = (uint8_t)mine.code[q];
        g.missing[place] = weight_at(g.weight.data, g.weight.element, place) - mine.level[q];
    }
}

/* The codes of the columns [first, first + count), whose gradients begin at column `at` of the panel;
 * blockIdx.y is the group. */
template <int SLOTS>
static __global__ void __launch_bounds__(THREADS)
    descend_kernel(decant_cuda_guided g, int first, int at, int count)
{
    extern __shared__ float tile[];
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t group = blockIdx.y, n = g.columns;
    const int64_t begin = g.rows * group / g.groups, end = g.rows * (group + 1) / g.groups;
    const int64_t block_row = begin + (int64_t)blockIdx.x * WARPS, row = block_row + threadIdx.x / DECANT_WARP;
    if (block_row >= end)
        return;
    load_tile(g.hessian + group * n * n + first * n + first, n, count, tile);
    if (row >= end)
        return;
    const lane_levels<SLOTS> levels = load_levels<SLOTS>(g.packed.levels + (row << g.bits), 1 << g.bits, lane);
    lane_columns mine = load_columns(g, tile, g.damping[group], row, first, at, count, lane);
    float before[PER_LANE];
#pragma unroll
    for (int q = 0; q < PER_LANE; q++)
        before[q] = mine.level[q];
    descend(levels, tile, lane, mine);
    store_columns(g, mine, before, row, first, count, lane);
}

template <int SLOTS>
static decant_status descend_block(decant_backend *backend, const decant_cuda_guided *g, int first, int at,
                                   int count, decant_error *err)
{
    const int of_group = (g->rows + g->groups - 1) / g->groups;
    const dim3 blocks((unsigned)((of_group + WARPS - 1) / WARPS), (unsigned)g->groups);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(descend_kernel<SLOTS>, cudaFuncAttributeMaxDynamicSharedMemorySize, TILE_BYTES),
        "guide, shared memory", err));
    descend_kernel<SLOTS>
        <<<blocks, THREADS, TILE_BYTES, decant_cuda_of(backend)->stream>>>(*g, first, at, count);
    return decant_cuda_launched(backend, "guide, codes", err);
}

static decant_status descend_by_width(decant_backend *backend, const decant_cuda_guided *g, int first, int at,
                                      int count, decant_error *err)
{
    switch (g->bits) {
    case 6:
        return descend_block<2>(backend, g, first, at, count, err);
    case 7:
        return descend_block<4>(backend, g, first, at, count, err);
    case 8:
        return descend_block<8>(backend, g, first, at, count, err);
    default:
        return descend_block<1>(backend, g, first, at, count, err);
    }
}

decant_status decant_cuda_guided_sweep(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    for (int panel = 0; panel < g->columns; panel += DECANT_GUIDED_PANEL) {
        const int left = g->columns - panel, width = left < DECANT_GUIDED_PANEL ? left : DECANT_GUIDED_PANEL;
        DECANT_RETURN_ON_FAILURE(decant_cuda_guided_gradient(backend, g, panel, width, err));
        for (int at = 0; at < width; at += BLOCK) {
            const int count = width - at < BLOCK ? width - at : BLOCK, next = at + count;
            DECANT_RETURN_ON_FAILURE(descend_by_width(backend, g, panel + at, at, count, err));
            if (next < width)
                DECANT_RETURN_ON_FAILURE(
                    decant_cuda_guided_follow(backend, g, panel + next, next, width - next, count, err));
        }
    }
    return DECANT_OK;
}
