/* Exact weighted k-means of every row for 4, 8 and 16 levels at once, by dynamic programming over the row's
 * points. Knows the points alone, not where they come from.
 *
 * The cost of an interval of points is Σ m x² − (Σ m x)² / Σ m. The first sum does not depend on the clusters,
 * so the program maximises the sum of the second, here called gain: with the moments m x about the row's mean,
 *     G[k][j] = max over i < j of G[k−1][i] + (moment_j − moment_i)² / (mass_j − mass_i)
 * is the largest gain of the first j points in k clusters, and split[k][j] is the lowest i that attains it.
 * Three facts, which rounding may break by a rounding error and no more, keep the search short:
 *   - split[k][j] never falls as j grows;
 *   - split[k][j] ≥ split[k−1][j];
 *   - counted from the end, the boundaries of the best partition into K > k clusters lie no further left
 *     than those of the best one into k. So boundary k of the former is at or after boundary 2k − K of the
 *     latter, and earlier columns of level k are not needed.
 * K is 16 in the last one whatever is wanted: the answer for one number of clusters does not depend on which
 * others are asked, not even where several answers are as good.
 *
 * A block takes a row. Columns are solved coarse to fine, each between its solved neighbours: every 256th and
 * then every 32nd by a whole warp that spreads over the candidates, the 31 between by a warp with a column a
 * lane, all lanes walking over the same candidates, so that loads are broadcast. Where F is heavy-tailed splits
 * jump by hundreds from one column to the next, and a window with too many candidates is halved first. The
 * gains of two levels lie in shared memory where they fit; rows are taken in classes by their number of points,
 * so that no row holds more of it than its class needs.
 *
 * Source: Wang and Song, The R Journal 3(2), 2011 (the program); Grønlund et al., arXiv:1701.07204 (monotone
 * splits); Aggarwal, Schieber and Tokuyama, Discrete & Computational Geometry 12, 1994 (interleaving of best
 * paths). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kmeans_split.cuh"
#include "kernels/cuda/quantize.cuh"

enum {
    COARSE = 256, /* columns between two that are solved first */
    WINDOW = 32,  /* columns between two that are solved next; a warp then solves those between at once */
    CANDIDATES_A_COLUMN = 4, /* a window is halved while it has as many candidates for each of its columns */
    LEAST_LEVELS = 4,
    MOST_LEVELS = 16,
};

/* The program's tables; arrays [rows, …]. */
struct table {
    void *splits;     /* [rows, whole_levels, stride] of an integer type that holds any number of points */
    int whole_levels; /* levels 2 … whole_levels + 1 are kept */
    uint32_t *last;   /* the split of the last column on the last level */
    double *gains;    /* [rows, 2, stride], for rows whose gains do not fit in shared memory */
    uint32_t targets; /* numbers of levels wanted, a bit each: 4, 8, 16 */
};

/* The largest number of levels wanted that is below the number of points; 0 when there is none, and each point
 * may have a level of its own. */
static __device__ __forceinline__ int top_level(uint32_t targets, int points)
{
    int top = 0;
    for (int levels = LEAST_LEVELS; levels <= MOST_LEVELS; levels *= 2)
        if ((targets & (uint32_t)levels) && levels < points)
            top = levels;
    return top;
}

/* Where cluster c ends, c ≥ 1 (boundary c), to where it begins. Equals the split in all rows but those where
 * rounding breaks the order; there it keeps clusters from being empty and indices inside the row. */
static __device__ __forceinline__ int boundary_before(uint32_t split, int boundary, int c)
{
    return max(c - 1, min((int)split, boundary - 1));
}

/* ---- one column ---- */

/* One level of one row while it is filled. */
template <typename INDEX> struct level {
    const double2 *before;    /* mass and moment */
    const double *below;      /* G[k−1], valid from first_below */
    const INDEX *split_below; /* split[k−1], valid from first_below; NULL on level 2 */
    double *gain;
    INDEX *split;
    int first_below;

    /* The least split that a column can have. */
    __device__ __forceinline__ int lowest(int column) const
    {
        return split_below ? max(first_below, (int)split_below[column]) : first_below;
    }
};

/* The best split of a column in [low, high], by a whole warp; the same on all lanes. */
template <typename INDEX>
static __device__ __forceinline__ split_choice search_column(const level<INDEX> &l, int column, int low,
                                                             int high)
{
    high = max(high, l.first_below);
    low = min(low, high);
    split_choice best = {l.below[low], low};
    compare_splits<DECANT_WARP>(l.before, l.below, l.before[column], low + (int)threadIdx.x % DECANT_WARP, high,
                                &best);
    return best_of_warp(best);
}

/* The same, and keeps what was found. */
template <typename INDEX>
static __device__ __forceinline__ int solve_column(const level<INDEX> &l, int column, int low, int high)
{
    const split_choice best = search_column(l, column, low, high);
    if (threadIdx.x % DECANT_WARP == 0) {
        l.gain[column] = best.gain;
        l.split[column] = (INDEX)best.split;
    }
    return best.split;
}

/* Solves the columns strictly between left and right, at most one a lane, by a walk over their splits. */
template <typename INDEX>
static __device__ __forceinline__ void walk_window(const level<INDEX> &l, int left, int right, int low,
                                                   int high)
{
    const int column = left + 1 + (int)threadIdx.x % DECANT_WARP;
    if (column < right) {
        high = min(high, column - 1);
        low = min(low, high);
        split_choice best = {l.below[low], low};
        compare_splits<1>(l.before, l.below, l.before[column], low, high, &best);
        l.gain[column] = best.gain;
        l.split[column] = (INDEX)best.split;
    }
    __syncwarp();
}

/* Solves all columns strictly between two solved ones, at most WINDOW apart, by a warp. */
template <typename INDEX> static __device__ void solve_window(const level<INDEX> &l, int first, int end)
{
    int offset = 0, size = WINDOW;
    while (first + offset + 1 < end) {
        const int left = first + offset, right = min(left + size, end);
        const int low = max((int)l.split[left], l.lowest(left + 1)), high = (int)l.split[right];
        if (size > 1 && high - low >= CANDIDATES_A_COLUMN * size) {
            size /= 2;
            const int middle = left + size;
            if (middle < end)
                solve_column(l, middle, max(low, l.lowest(middle)), min(high, middle - 1));
            __syncwarp();
            continue;
        }
        walk_window(l, left, right, low, high);
        offset += size;
        size = offset & -offset; /* the window to the right of this one is as large as what was halved off */
    }
}

/* ---- one row ---- */

/* The three sweeps over the columns first … points of a level, all of them solved when the block leaves. The
 * last one is solved already when `last_solved`. next_window is shared, zero at first and zero again in the
 * end. */
template <typename INDEX>
static __device__ __forceinline__ void solve_level(const level<INDEX> &l, int first, int points,
                                                   bool last_solved, int *next_window)
{
    const int warp = (int)threadIdx.x / DECANT_WARP, warps = (int)blockDim.x / DECANT_WARP;
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int high = last_solved ? (int)l.split[points] : points - 1;
    for (int i = warp; first + i * COARSE < points + (last_solved ? 0 : COARSE); i += warps) {
        const int column = min(first + i * COARSE, points);
        solve_column(l, column, l.lowest(column), min(high, column - 1));
    }
    __syncthreads();
    const int between = COARSE / WINDOW - 1; /* windows' ends inside a coarse interval */
    for (int i = warp;; i += warps) {
        const int left = first + i / between * COARSE, column = left + (i % between + 1) * WINDOW;
        if (left >= points)
            break;
        if (column < points)
            solve_column(l, column, max((int)l.split[left], l.lowest(column)),
                         min((int)l.split[min(left + COARSE, points)], column - 1));
    }
    __syncthreads();
    for (;;) {
        int window = 0;
        if (lane == 0)
            window = atomicAdd(next_window, 1);
        window = __shfl_sync(DECANT_ALL_LANES, window, 0);
        const int left = first + window * WINDOW;
        if (left >= points)
            break;
        solve_window(l, left, min(left + WINDOW, points));
    }
    __syncthreads();
    if (threadIdx.x == 0)
        *next_window = 0;
}

/* The first column that level k needs, 2k > MOST_LEVELS, once the last one is solved: boundary 2k − MOST_LEVELS
 * of the best partition into k clusters. The same on all lanes. */
template <typename INDEX>
static __device__ __forceinline__ int first_column(const INDEX *splits, int stride, int k, int points,
                                                   int last_split)
{
    int boundary = boundary_before((uint32_t)last_split, points, k);
    for (int c = k - 1; c > 2 * k - MOST_LEVELS; c--)
        boundary = boundary_before(splits[(int64_t)(c - 2) * stride + boundary], boundary, c);
    return boundary;
}

/* The first of the columns of level k to be solved. A level 2k > MOST_LEVELS begins with its last column, which
 * says what it needs. */
template <typename INDEX>
static __device__ __forceinline__ int begin_level(const level<INDEX> &l, const INDEX *splits, int stride, int k,
                                                  int points, int *shared_first)
{
    if (2 * k <= MOST_LEVELS)
        return k;
    if (threadIdx.x < DECANT_WARP) {
        const int last = solve_column(l, points, l.lowest(points), points - 1);
        const int needed = first_column(splits, stride, k, points, last);
        if (threadIdx.x == 0)
            *shared_first = min(max(needed, l.first_below + 1), points - 1);
    }
    __syncthreads();
    return *shared_first;
}

/* Rows with from < points ≤ upto; the other blocks leave at once. GAINS_SHARED: the gains of two levels are in
 * shared memory, upto + 1 each. */
template <typename INDEX, bool GAINS_SHARED>
static __global__ void __launch_bounds__(1024)
    solve_rows_kernel(decant_cuda_points rows, table t, int from, int upto)
{
    extern __shared__ double shared_gains[];
    __shared__ int next_window, shared_first;
    const int64_t row = blockIdx.x;
    const int points = (int)rows.points[row], top = top_level(t.targets, points);
    if (points <= from || points > upto || top == 0)
        return;
    INDEX *splits = (INDEX *)t.splits + row * t.whole_levels * rows.stride;
    double *gains = GAINS_SHARED ? shared_gains : t.gains + row * 2 * rows.stride;
    const int gains_stride = GAINS_SHARED ? upto + 1 : rows.stride;
    level<INDEX> l = {};
    l.before = rows.before + row * rows.stride;
    l.gain = gains;
    l.first_below = 1;
    if (threadIdx.x == 0)
        next_window = 0;
    for (int j = 1 + (int)threadIdx.x; j <= points; j += (int)blockDim.x)
        gains[j] = l.before[j].y * l.before[j].y / l.before[j].x;
    __syncthreads();

    for (int k = 2; k <= top; k++) {
        l.below = gains + (k % 2) * gains_stride;
        l.gain = gains + (1 - k % 2) * gains_stride;
        l.split_below = l.split;
        l.split = splits + (int64_t)(k - 2) * rows.stride;
        if (k == top)
            break;
        const int first = begin_level(l, splits, rows.stride, k, points, &shared_first);
        solve_level(l, first, points, 2 * k > MOST_LEVELS, &next_window);
        l.first_below = first;
    }
    if (threadIdx.x < DECANT_WARP) {
        const split_choice best = search_column(l, points, l.lowest(points), points - 1);
        if (threadIdx.x == 0)
            t.last[row] = (uint32_t)best.split;
    }
}

/* ---- clusters ---- */

/* What to fill: for each number of clusters an array [rows, clusters + 1]. */
struct outputs {
    int count;
    int clusters[3];
    int32_t *boundaries[3];
};

/* The boundaries of the best partition of a row, fewer clusters than points. */
template <typename INDEX>
static __device__ void trace_boundaries(const decant_cuda_points &rows, const table &t, int64_t row,
                                        int clusters, int points, int32_t *boundaries)
{
    const INDEX *splits = (const INDEX *)t.splits + row * t.whole_levels * rows.stride;
    const bool is_top = clusters == top_level(t.targets, points);
    int boundary = points;
    boundaries[clusters] = points;
    for (int c = clusters; c > 1; c--) {
        const bool last = is_top && c == clusters;
        const uint32_t split = last ? t.last[row] : splits[(int64_t)(c - 2) * rows.stride + boundary];
        boundary = boundary_before(split, boundary, c);
        boundaries[c - 1] = boundary;
    }
    boundaries[0] = 0;
}

enum { TRACE_THREADS = 128 };

/* A thread for each row and number of clusters. */
template <typename INDEX>
static __global__ void __launch_bounds__(TRACE_THREADS)
    trace_kernel(decant_cuda_points rows, table t, outputs out)
{
    const int64_t task = (int64_t)blockIdx.x * TRACE_THREADS + threadIdx.x;
    const int64_t row = task / out.count;
    if (row >= rows.rows)
        return;
    const int which = (int)(task % out.count), clusters = out.clusters[which], points = (int)rows.points[row];
    int32_t *boundaries = out.boundaries[which] + row * (clusters + 1);
    if (points > clusters)
        trace_boundaries<INDEX>(rows, t, row, clusters, points, boundaries);
    else
        for (int c = 0; c <= clusters; c++)
            boundaries[c] = min(c, points);
}

/* ---- the step ---- */

/* Rows whose gains fit this many times into the shared memory of a multiprocessor form a class. */
struct row_class {
    int rows_at_once, threads;
};

static const row_class row_classes[] = {{8, 256}, {4, 256}, {3, 256}, {2, 512}, {1, 1024}};
enum { GLOBAL_GAINS_THREADS = 512 };

/* The most points that a row of a class may have. A multiprocessor keeps 1 KiB for itself of each block's
 * share. */
static int class_points(const decant_cuda *cuda, const row_class &c)
{
    const size_t reserved = 1024, fixed = 64;
    const size_t share = (cuda->shared_memory_bytes + reserved) / (size_t)c.rows_at_once - reserved - fixed;
    return (int)(share / (2 * sizeof(double))) - 1;
}

/* Splits are kept in 16 bits where they fit. */
static bool has_short_splits(int columns)
{
    return columns <= UINT16_MAX;
}

static table place_table(const decant_cuda *cuda, decant_cuda_arena *arena, int rows, int stride, int columns,
                         const int *clusters, int n_targets)
{
    table t = {};
    for (int i = 0; i < n_targets; i++)
        t.targets |= (uint32_t)clusters[i];
    const size_t entries = (size_t)rows * (size_t)stride;
    t.whole_levels = clusters[n_targets - 1] - 2;
    t.splits =
        decant_cuda_arena_take(arena, entries * (size_t)t.whole_levels * (has_short_splits(columns) ? 2 : 4));
    t.last = (uint32_t *)decant_cuda_arena_take(arena, (size_t)rows * sizeof *t.last);
    if (columns > class_points(cuda, row_class{1, 0}))
        t.gains = (double *)decant_cuda_arena_take(arena, 2 * entries * sizeof *t.gains);
    return t;
}

size_t decant_cuda_kmeans_exact_bytes(decant_backend *backend, const decant_cuda_points *points,
                                      const int *clusters, int n_targets)
{
    decant_cuda_arena arena = {NULL, 0};
    place_table(decant_cuda_of(backend), &arena, points->rows, points->stride, points->columns, clusters,
                n_targets);
    return arena.used;
}

template <typename INDEX, bool GAINS_SHARED>
static decant_status solve_class(decant_backend *backend, const decant_cuda_points *points, const table &t,
                                 int from, int upto, int threads, decant_error *err)
{
    const size_t shared_bytes = GAINS_SHARED ? 2 * ((size_t)upto + 1) * sizeof(double) : 0;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaFuncSetAttribute(solve_rows_kernel<INDEX, GAINS_SHARED>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes),
                          "shared memory for k-means", err));
    solve_rows_kernel<INDEX, GAINS_SHARED>
        <<<points->rows, threads, shared_bytes, decant_cuda_of(backend)->stream>>>(*points, t, from, upto);
    return decant_cuda_launched(backend, "exact k-means", err);
}

template <typename INDEX>
static decant_status solve_rows(decant_backend *backend, const decant_cuda_points *points, const table &t,
                                const outputs &out, decant_error *err)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    int from = LEAST_LEVELS;
    for (const row_class &c : row_classes) {
        const int upto = class_points(cuda, c);
        if (from >= points->columns || upto <= from)
            continue;
        DECANT_RETURN_ON_FAILURE((solve_class<INDEX, true>(backend, points, t, from, upto, c.threads, err)));
        from = upto;
    }
    if (from < points->columns)
        DECANT_RETURN_ON_FAILURE(
            (solve_class<INDEX, false>(backend, points, t, from, points->columns, GLOBAL_GAINS_THREADS, err)));
    const int64_t tasks = (int64_t)points->rows * out.count;
    trace_kernel<INDEX>
        <<<(unsigned)((tasks + TRACE_THREADS - 1) / TRACE_THREADS), TRACE_THREADS, 0, cuda->stream>>>(*points,
                                                                                                      t, out);
    return decant_cuda_launched(backend, "clusters of exact k-means", err);
}

decant_status decant_cuda_kmeans_exact(decant_backend *backend, const decant_cuda_points *points, void *scratch,
                                       const int *clusters, int n_targets, int32_t *const *boundaries,
                                       decant_error *err)
{
    decant_cuda_arena arena = {(char *)scratch, 0};
    const table t = place_table(decant_cuda_of(backend), &arena, points->rows, points->stride, points->columns,
                                clusters, n_targets);
    outputs out = {};
    out.count = n_targets;
    for (int i = 0; i < n_targets; i++) {
        out.clusters[i] = clusters[i];
        out.boundaries[i] = boundaries[i];
    }
    return has_short_splits(points->columns) ? solve_rows<uint16_t>(backend, points, t, out, err)
                                             : solve_rows<uint32_t>(backend, points, t, out, err);
}
