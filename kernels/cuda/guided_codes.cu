/* Guided quantization's codes.
 *
 * Coordinate descent: every code of a row in turn becomes the one that lowers the objective most while the
 * others stay. With the row's gradient g = δᵀ H up to date, the best value of weight j
 * is w_j − δ_j + (g_j + λ δ_j) / (H_jj + λ), and its best code that of the nearest level.
 *
 * Half a warp takes a row through a block of 128 columns. Lane i has the best values of columns 4i … 4i + 3 of
 * each half of the block in registers, and a threshold between levels, or several. A step asks the lane of its
 * column for the best value, finds the nearest level by a vote, and adds to the best values behind it what the
 * change of the level does to them: a row of H, each column divided by its H_jj + λ, from shared memory. Only
 * what is behind the diagonal is there, so a best value stays as it was decided upon, and codes are made from
 * them in the end. A column that takes no part has an infinite best value, and the highest level for its own:
 * it changes nothing. Products bring the changes to the columns behind the block.
 *
 * Rounding with error feedback goes the same way: the best value is the weight and what is handed to it, the
 * weight takes the place of the level before, the change that of the error, and the tile that of V. */
#include "kernels/cuda/guided.cuh"

enum {
    BLOCK = DECANT_GUIDED_BLOCK,
    LANES = DECANT_WARP / 2, /* of a row */
    VECTOR = 4,              /* floats in sixteen bytes */
    STRETCH = LANES * VECTOR,
    PER_LANE = BLOCK / LANES, /* columns */
    THREADS = 512,
    ROWS = THREADS / LANES, /* of a block of threads */
    TILE_BYTES = BLOCK * BLOCK * (int)sizeof(float),
    BLOCKS_AT_ONCE = 3, /* on a multiprocessor of 227 KB of shared memory */
};

/* What a lane knows of its columns; column p of a lane is column_of(p, lane) of the block. */
struct lane_columns {
    float best[PER_LANE];
    float level[PER_LANE]; /* of the code to begin with */
    unsigned fixed;        /* bit p: takes no part */
};

/* The levels of the row, spread over the lanes. */
template <int SLOTS> struct lane_levels {
    float level[SLOTS], threshold[SLOTS];
};

static __device__ __forceinline__ int column_of(int p, int lane)
{
    return p / VECTOR * STRETCH + lane * VECTOR + p % VECTOR;
}

/* ---- loading ---- */

/* Four elements of a row of H; those from `left` on are 0. */
static __device__ __forceinline__ float4 load_four(const float *hessian, int left, bool vectors)
{
    if (vectors && left >= VECTOR)
        return *(const float4 *)hessian;
    float4 four = make_float4(0, 0, 0, 0);
    if (left > 0)
        four.x = hessian[0];
    if (left > 1)
        four.y = hessian[1];
    if (left > 2)
        four.z = hessian[2];
    if (left > 3)
        four.w = hessian[3];
    return four;
}

/* All threads of the block: inverse[j] = 1 / (H_jj + λ), 0 where that cannot be; tile[j, t] = H_jt inverse[t]
 * for t > j, else 0. hessian: the block on the diagonal. */
static __device__ void load_tile(const float *hessian, int64_t stride, int count, float damping, float *inverse,
                                 float *tile)
{
    const bool vectors = stride % VECTOR == 0 && (uintptr_t)hessian % 16 == 0;
    const int t = (int)threadIdx.x;
    if (t < BLOCK) {
        const float curvature = t < count ? hessian[t * stride + t] + damping : 0;
        inverse[t] = curvature > 0 ? 1 / curvature : 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int i = t; i < BLOCK * BLOCK / VECTOR; i += THREADS) {
        const int row = i / (BLOCK / VECTOR), column = i % (BLOCK / VECTOR) * VECTOR;
        float4 four = make_float4(0, 0, 0, 0);
        if (column + VECTOR - 1 > row && row < count)
            four = load_four(hessian + row * stride + column, count - column, vectors);
        four.x = column > row ? four.x * inverse[column] : 0;
        four.y = column + 1 > row ? four.y * inverse[column + 1] : 0;
        four.z = column + 2 > row ? four.z * inverse[column + 2] : 0;
        four.w = column + 3 > row ? four.w * inverse[column + 3] : 0;
        ((float4 *)tile)[i] = four;
    }
    __syncthreads();
}

/* All threads of the block: tile[j, t] = V_tj for t > j, else 0. feedback: the block on the diagonal. */
static __device__ void load_feedback(const float *feedback, int64_t stride, int count, float *tile)
{
    const bool vectors = stride % VECTOR == 0 && (uintptr_t)feedback % 16 == 0;
    for (int i = (int)threadIdx.x; i < BLOCK * BLOCK / VECTOR; i += THREADS) {
        const int t = i % BLOCK, j = i / BLOCK * VECTOR;
        float4 four = make_float4(0, 0, 0, 0);
        if (t < count && j < t)
            four = load_four(feedback + t * stride + j, count - j, vectors);
        tile[j * BLOCK + t] = j < t ? four.x : 0;
        tile[(j + 1) * BLOCK + t] = j + 1 < t ? four.y : 0;
        tile[(j + 2) * BLOCK + t] = j + 2 < t ? four.z : 0;
        tile[(j + 3) * BLOCK + t] = j + 3 < t ? four.w : 0;
    }
    __syncthreads();
}

template <int SLOTS>
static __device__ lane_levels<SLOTS> load_levels(const uint16_t *levels, int count, int lane)
{
    lane_levels<SLOTS> mine;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
        const int code = s * LANES + lane;
        mine.level[s] = code < count ? decant_guided_level(levels, code) : 0;
        mine.threshold[s] = code < count ? decant_guided_threshold(levels, count, code) : INFINITY;
    }
    return mine;
}

/* at: where the block's gradient begins in the panel */
static __device__ lane_columns load_columns(const decant_cuda_guided &g, const float *inverse, float damping,
                                            int64_t row, int first, int at, int count, int lane)
{
    const uint16_t *levels = g.packed.levels + (row << g.bits);
    const float highest = decant_guided_level(levels, (1 << g.bits) - 1);
    lane_columns mine;
    mine.fixed = 0;
#pragma unroll
    for (int p = 0; p < PER_LANE; p++) {
        const int t = column_of(p, lane), column = first + t;
        const int64_t place = row * g.columns + column;
        mine.best[p] = INFINITY;
        mine.level[p] = highest;
        if (t >= count || inverse[t] == 0 || (g.marks[row * g.words + column / 32] >> column % 32 & 1)) {
            mine.fixed |= 1u << p;
            continue;
        }
        const float weight = weight_at(g.weight.data, g.weight.element, place), missing = g.missing[place];
        const float gradient = g.gradient[row * DECANT_GUIDED_PANEL + at + t];
        mine.best[p] = weight - missing + (gradient + damping * missing) * inverse[t];
        mine.level[p] = decant_guided_level(levels, g.codes[place]);
    }
    return mine;
}

static __device__ lane_columns load_handed(const decant_cuda_guided &g, const int *order, int64_t row, int at,
                                           int count, int lane)
{
    const float highest = decant_guided_level(g.packed.levels + (row << g.bits), (1 << g.bits) - 1);
    lane_columns mine;
    mine.fixed = 0;
#pragma unroll
    for (int p = 0; p < PER_LANE; p++) {
        const int t = column_of(p, lane), column = t < count ? order[t] : 0;
        mine.best[p] = INFINITY;
        mine.level[p] = highest;
        if (t >= count || (g.marks[row * g.words + column / 32] >> column % 32 & 1)) {
            mine.fixed |= 1u << p;
            continue;
        }
        mine.level[p] = weight_at(g.weight.data, g.weight.element, row * g.columns + column);
        mine.best[p] = mine.level[p] + g.gradient[row * DECANT_GUIDED_PANEL + at + t];
    }
    return mine;
}

/* ---- the descent ---- */

/* The level that is nearest to a value, which is the same in all lanes of the row. */
template <int SLOTS>
static __device__ __forceinline__ float nearest_level(const lane_levels<SLOTS> &levels, float value,
                                                      unsigned lanes_of_row)
{
    int code = 0;
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
        code += __popc(__ballot_sync(DECANT_ALL_LANES, value > levels.threshold[s]) & lanes_of_row);
    float level = __shfl_sync(DECANT_ALL_LANES, levels.level[0], code, LANES);
#pragma unroll
    for (int s = 1; s < SLOTS; s++) {
        const float other = __shfl_sync(DECANT_ALL_LANES, levels.level[s], code, LANES);
        level = code / LANES == s ? other : level;
    }
    return level;
}

template <int SLOTS>
static __device__ void descend(const lane_levels<SLOTS> &levels, const float *tile, int lane,
                               unsigned lanes_of_row, lane_columns &mine)
{
    const float4 *behind = (const float4 *)tile + lane;
#pragma unroll
    for (int stretch = 0; stretch < BLOCK / STRETCH; stretch++)
        for (int owner = 0; owner < LANES; owner++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++, behind += BLOCK / VECTOR) {
                const int decided = stretch * VECTOR + i;
                float4 change[BLOCK / STRETCH];
#pragma unroll
                for (int s = stretch; s < BLOCK / STRETCH; s++)
                    change[s] = behind[s * LANES];
                const float best = __shfl_sync(DECANT_ALL_LANES, mine.best[decided], owner, LANES);
                const float now = __shfl_sync(DECANT_ALL_LANES, mine.level[decided], owner, LANES);
                const float step = now - nearest_level(levels, best, lanes_of_row);
#pragma unroll
                for (int s = stretch; s < BLOCK / STRETCH; s++) {
                    mine.best[s * VECTOR] += step * change[s].x;
                    mine.best[s * VECTOR + 1] += step * change[s].y;
                    mine.best[s * VECTOR + 2] += step * change[s].z;
                    mine.best[s * VECTOR + 3] += step * change[s].w;
                }
            }
}

/* ---- storing ---- */

/* The codes of each lane's best values. */
template <int SLOTS>
static __device__ void find_codes(const lane_levels<SLOTS> &levels, int count, const lane_columns &mine,
                                  int (&codes)[PER_LANE])
{
#pragma unroll
    for (int p = 0; p < PER_LANE; p++)
        codes[p] = 0;
#pragma unroll
    for (int s = 0; s < SLOTS; s++)
        for (int i = 0; i < min(LANES, count); i++) {
            const float threshold = __shfl_sync(DECANT_ALL_LANES, levels.threshold[s], i, LANES);
#pragma unroll
            for (int p = 0; p < PER_LANE; p++)
                codes[p] += mine.best[p] > threshold;
        }
}

/* Writes what δ has changed by, and codes and δ where it has. */
static __device__ void store_columns(const decant_cuda_guided &g, const lane_columns &mine,
                                     const int (&codes)[PER_LANE], int64_t row, int first, int lane)
{
    const uint16_t *levels = g.packed.levels + (row << g.bits);
#pragma unroll
    for (int p = 0; p < PER_LANE; p++) {
        const int t = column_of(p, lane);
        const int64_t place = row * g.columns + first + t;
        const float level = mine.fixed >> p & 1 ? mine.level[p] : decant_guided_level(levels, codes[p]);
        g.steps[row * BLOCK + t] = mine.level[p] - level;
        if (level == mine.level[p])
            continue;
        g.codes[place] = (uint8_t)codes[p];
        decant_guided_set_missing(g, place, weight_at(g.weight.data, g.weight.element, place) - level);
    }
}

/* Writes the codes and what δ is. order: of the block's columns. */
static __device__ void store_rounded(const decant_cuda_guided &g, const lane_columns &mine,
                                     const int (&codes)[PER_LANE], const int *order, int64_t row, int first,
                                     int count, int lane)
{
    const uint16_t *levels = g.packed.levels + (row << g.bits);
#pragma unroll
    for (int p = 0; p < PER_LANE; p++) {
        const int t = column_of(p, lane);
        if (t >= count)
            continue;
        const bool fixed = mine.fixed >> p & 1;
        g.handed[row * g.columns + first + t] =
            fixed ? 0 : mine.level[p] - decant_guided_level(levels, codes[p]);
        if (!fixed)
            g.codes[row * g.columns + order[t]] = (uint8_t)codes[p];
    }
}

/* ---- the kernels ---- */

/* The codes of the columns [first, first + count), whose gradients begin at column `at` of the panel;
 * blockIdx.y is the group. Where rows end in the middle of a warp, its other half repeats the last one and
 * stores nothing.
 */
template <int SLOTS>
static __global__ void __launch_bounds__(THREADS, SLOTS == 1 ? BLOCKS_AT_ONCE : 1)
    descend_kernel(decant_cuda_guided g, int first, int at, int count)
{
    extern __shared__ __align__(16) float tile[];
    __shared__ float inverse[BLOCK];
    const int lane = (int)threadIdx.x % LANES, levels_of_row = 1 << g.bits;
    const unsigned lanes_of_row = threadIdx.x & LANES ? 0xffff0000u : 0x0000ffffu;
    const int64_t group = blockIdx.y, n = g.columns;
    const int64_t begin = g.rows * group / g.groups, end = g.rows * (group + 1) / g.groups;
    const int64_t block_row = begin + (int64_t)blockIdx.x * ROWS, own_row = block_row + threadIdx.x / LANES;
    if (block_row >= end)
        return;
    const int64_t row = min(own_row, end - 1);
    const float damping = g.damping[group];
    load_tile(g.hessian + group * n * n + first * n + first, n, count, damping, inverse, tile);
    const lane_levels<SLOTS> levels =
        load_levels<SLOTS>(g.packed.levels + (row << g.bits), levels_of_row, lane);
    lane_columns mine = load_columns(g, inverse, damping, row, first, at, count, lane);
    descend(levels, tile, lane, lanes_of_row, mine);
    int codes[PER_LANE];
    find_codes(levels, levels_of_row, mine, codes);
    if (own_row < end)
        store_columns(g, mine, codes, row, first, lane);
}

/* The same for rounding. */
template <int SLOTS>
static __global__ void __launch_bounds__(THREADS, SLOTS == 1 ? BLOCKS_AT_ONCE : 1)
    round_kernel(decant_cuda_guided g, int first, int at, int count)
{
    extern __shared__ __align__(16) float tile[];
    const int lane = (int)threadIdx.x % LANES, levels_of_row = 1 << g.bits;
    const unsigned lanes_of_row = threadIdx.x & LANES ? 0xffff0000u : 0x0000ffffu;
    const int64_t group = blockIdx.y, n = g.columns;
    const int64_t begin = g.rows * group / g.groups, end = g.rows * (group + 1) / g.groups;
    const int64_t block_row = begin + (int64_t)blockIdx.x * ROWS, own_row = block_row + threadIdx.x / LANES;
    if (block_row >= end || g.failed[group])
        return;
    const int64_t row = min(own_row, end - 1);
    const int *order = g.order + group * n + first;
    load_feedback(g.feedback + group * n * n + first * n + first, n, count, tile);
    const lane_levels<SLOTS> levels =
        load_levels<SLOTS>(g.packed.levels + (row << g.bits), levels_of_row, lane);
    lane_columns mine = load_handed(g, order, row, at, count, lane);
    descend(levels, tile, lane, lanes_of_row, mine);
    int codes[PER_LANE];
    find_codes(levels, levels_of_row, mine, codes);
    if (own_row < end)
        store_rounded(g, mine, codes, order, row, first, count, lane);
}

enum way { DESCEND, ROUND };

template <int SLOTS>
static decant_status launch(decant_backend *backend, const decant_cuda_guided *g, way way, int first, int at,
                            int count, decant_error *err)
{
    const int of_group = (g->rows + g->groups - 1) / g->groups;
    const dim3 blocks((unsigned)((of_group + ROWS - 1) / ROWS), (unsigned)g->groups);
    const auto kernel = way == ROUND ? round_kernel<SLOTS> : descend_kernel<SLOTS>;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, TILE_BYTES),
                          "guide, shared memory", err));
    kernel<<<blocks, THREADS, TILE_BYTES, decant_cuda_of(backend)->stream>>>(*g, first, at, count);
    return decant_cuda_launched(backend, "guide, codes", err);
}

static decant_status launch_by_width(decant_backend *backend, const decant_cuda_guided *g, way way, int first,
                                     int at, int count, decant_error *err)
{
    switch (g->bits) {
    case 5:
        return launch<2>(backend, g, way, first, at, count, err);
    case 6:
        return launch<4>(backend, g, way, first, at, count, err);
    case 7:
        return launch<8>(backend, g, way, first, at, count, err);
    case 8:
        return launch<16>(backend, g, way, first, at, count, err);
    default:
        return launch<1>(backend, g, way, first, at, count, err);
    }
}

decant_status decant_cuda_guided_round_block(decant_backend *backend, const decant_cuda_guided *g, int first,
                                             int at, int count, decant_error *err)
{
    return launch_by_width(backend, g, ROUND, first, at, count, err);
}

decant_status decant_cuda_guided_sweep(decant_backend *backend, const decant_cuda_guided *g, decant_error *err)
{
    for (int panel = 0; panel < g->columns; panel += DECANT_GUIDED_PANEL) {
        const int left = g->columns - panel, width = left < DECANT_GUIDED_PANEL ? left : DECANT_GUIDED_PANEL;
        DECANT_RETURN_ON_FAILURE(decant_cuda_guided_gradient(backend, g, panel, width, err));
        for (int at = 0; at < width; at += BLOCK) {
            const int count = width - at < BLOCK ? width - at : BLOCK, next = at + count;
            DECANT_RETURN_ON_FAILURE(launch_by_width(backend, g, DESCEND, panel + at, at, count, err));
            if (next < width)
                DECANT_RETURN_ON_FAILURE(
                    decant_cuda_guided_follow(backend, g, panel + next, next, width - next, count, err));
        }
    }
    return DECANT_OK;
}
