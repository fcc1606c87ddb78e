/* Exact weighted k-means of every row for many clusters, through a price for each. Knows the points alone, not
 * where they come from.
 *
 * With a penalty λ for every cluster the number of clusters is free, and one pass over the points solves the
 * relaxed problem exactly:
 *     V[j] = max over i < j of V[i] + gain(i, j) − λ,
 * where the last cluster of the first j points begins at the i that attains it, split[j]. The best gain G(K) of
 * K clusters is concave in K, because gain has the Monge property; so when the optimum under some λ has K
 * clusters, it is the best partition into K, and such a λ exists for every K. The number of clusters falls as λ
 * grows, so that λ is found in a few passes: the first from a high-resolution estimate, the next ones by
 * interpolation.
 *
 * split[j] never falls as j grows, nor rises as λ grows: each pass has the splits of a pass under a lower and
 * of one under a higher penalty as bounds, which get closer with every pass. They also say which columns do not
 * depend on each other: those whose splits lie before the first of them.
 *
 * A warp takes a row, one number of clusters after the other and each from the beginning, so that the answer
 * for one does not depend on which others are asked. It solves 32 columns at a time, a column a lane. A lane
 * looks at its splits among the columns that are solved; when the bounds say that a lane has none beyond them
 * its column is solved too, which opens the next splits to the lanes after it. A first pass, without bounds, so
 * solves a column at a time. Where there are many splits before the 32 columns, the whole warp first finds the
 * last column's best among them: none beyond it is another column's.
 *
 * When several numbers of clusters are optimal under one λ (equal spacings and masses), a pass may step over K.
 * Then the best partitions with more and with fewer clusters are joined where they interleave, which gives one
 * into K on the same line, an optimum again.
 *
 * Source: Aggarwal, Schieber and Tokuyama, Discrete & Computational Geometry 12, 1994 (penalty, joining of
 * paths); Grønlund et al., arXiv:1701.07204 (regularized k-means); Panter and Dite, Proceedings of the IRE 39,
 * 1951 (estimate). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/kmeans_split.cuh"
#include "kernels/cuda/quantize.cuh"

#include <cmath>

enum {
    WARPS = 4,
    MOST_TARGETS = 4,
    MANY_SPLITS = 48, /* before 32 columns: worth a look by the whole warp */
    GUESSES = 8,      /* after so many passes the chord alone is used: it cannot fail to progress */
};

/* A solution of the relaxed problem; the same on all lanes. */
template <typename INDEX> struct relaxation {
    double penalty;
    int clusters;
    double gain;  /* of the clusters, without penalties */
    INDEX *split; /* [points + 1] */
    bool trivial; /* one cluster, or one for each point: split is not filled */
};

/* One row while its clusters are searched. */
template <typename INDEX> struct penalty_search {
    const double2 *before;
    const float *values;
    const uint32_t *first_entry;
    int points;
    double *value;           /* [points + 1] V */
    INDEX *count;            /* [points + 1] how many clusters the first j points have */
    relaxation<INDEX> fewer; /* under the lowest penalty that gave fewer clusters than wanted */
    relaxation<INDEX> more;  /* under the highest penalty that gave more */
    relaxation<INDEX> now;
};

static __device__ __forceinline__ int lane_of_thread()
{
    return (int)threadIdx.x % DECANT_WARP;
}

/* ---- one pass ---- */

/* What a lane knows of its column while it is solved. */
struct column_state {
    bool exists, begun;
    int low, high; /* bounds of its split; high ≥ low */
    int next;      /* the first split that it has not looked at */
    double2 sums;  /* mass and moment before the column */
    split_choice best;
};

template <typename INDEX>
static __device__ __forceinline__ column_state begin_column(const penalty_search<INDEX> &s, int column,
                                                            int split_before)
{
    column_state state = {};
    state.exists = column <= s.points;
    if (!state.exists)
        return state;
    state.high = s.more.trivial ? column - 1 : min((int)s.more.split[column], column - 1);
    state.low = min(max(split_before, s.fewer.trivial ? 0 : (int)s.fewer.split[column]), state.high);
    state.next = state.low;
    state.sums = s.before[column];
    return state;
}

/* The last split at or before `first` that can be that of any of the columns after it. */
template <typename INDEX>
static __device__ __forceinline__ int last_split_before(const penalty_search<INDEX> &s, int first,
                                                        const column_state &state)
{
    const int last = min(DECANT_WARP, s.points - first) - 1; /* lane of the last column */
    const int low = __shfl_sync(DECANT_ALL_LANES, state.low, 0);
    const int high = min(first, __shfl_sync(DECANT_ALL_LANES, state.high, last));
    if (high - low < MANY_SPLITS)
        return high;
    split_choice best = {s.value[low], low};
    compare_splits<DECANT_WARP>(s.before, s.value, s.before[first + 1 + last],
                                low + (int)threadIdx.x % DECANT_WARP, high, &best);
    return best_of_warp(best).split;
}

/* Looks at the splits up to `upto` that the lane has not looked at; all up to `solved` count as looked at then.
 */
template <typename INDEX>
static __device__ __forceinline__ void look_at_splits(const penalty_search<INDEX> &s, int upto, int solved,
                                                      column_state *state)
{
    if (!state->exists || state->next > state->high || state->next > solved)
        return;
    if (!state->begun) {
        state->best = split_choice{s.value[state->low], state->low};
        state->begun = true;
    }
    compare_splits<1>(s.before, s.value, state->sums, state->next, min(state->high, upto), &state->best);
    state->next = solved + 1;
}

/* Solves the columns first + 1 … first + 32, as many as there are; split_before is the split of column `first`.
 * Returns that of the last column. */
template <typename INDEX>
static __device__ int relax_columns(const penalty_search<INDEX> &s, int first, int split_before)
{
    const int column = first + 1 + lane_of_thread();
    column_state state = begin_column(s, column, split_before);
    look_at_splits(s, last_split_before(s, first, state), first, &state);
    for (int solved = first;;) {
        const unsigned waiting = __ballot_sync(DECANT_ALL_LANES, state.exists && state.next <= state.high);
        const int upto = waiting ? first + __ffs((int)waiting) - 1 : first + DECANT_WARP;
        if (state.exists && column > solved && column <= upto) {
            s.value[column] = state.best.gain - s.now.penalty;
            s.now.split[column] = (INDEX)state.best.split;
            s.count[column] = (INDEX)(s.count[state.best.split] + 1);
        }
        __syncwarp();
        if (!waiting)
            break;
        solved = upto;
        look_at_splits(s, solved, solved, &state);
    }
    return __shfl_sync(DECANT_ALL_LANES, state.best.split, DECANT_WARP - 1);
}

/* s.now under its penalty. */
template <typename INDEX> static __device__ void relax(penalty_search<INDEX> &s)
{
    if (lane_of_thread() == 0) {
        s.value[0] = 0;
        s.count[0] = 0;
        s.now.split[0] = 0;
    }
    __syncwarp();
    int split = 0;
    for (int first = 0; first < s.points; first += DECANT_WARP)
        split = relax_columns(s, first, split);
    s.now.clusters = (int)s.count[s.points];
    s.now.gain = s.value[s.points] + s.now.penalty * s.now.clusters;
    s.now.trivial = false;
}

/* ---- penalties ---- */

/* No penalty, under which each point is a cluster. */
template <typename INDEX> static __device__ void reset_more(penalty_search<INDEX> &s)
{
    double gain = 0;
    for (int i = lane_of_thread(); i < s.points; i += DECANT_WARP) {
        const double mass = s.before[i + 1].x - s.before[i].x, moment = s.before[i + 1].y - s.before[i].y;
        gain += mass > 0 ? moment * moment / mass : 0;
    }
    s.more.penalty = 0;
    s.more.clusters = s.points;
    s.more.gain = decant_warp_sum(gain);
    s.more.trivial = true;
}

/* A penalty that leaves a single cluster. */
template <typename INDEX> static __device__ void reset_fewer(penalty_search<INDEX> &s)
{
    const double2 all = s.before[s.points];
    s.fewer.penalty = INFINITY;
    s.fewer.clusters = 1;
    s.fewer.gain = all.y * all.y / all.x;
    s.fewer.trivial = true;
}

/* The error of K clusters is about (∫ density^⅓)³ / (12 K²), and the penalty minus its slope. The density is
 * taken over K blocks of as many points each. Half of that estimate: rather too many clusters at first than too
 * few, for bounds from above are what shortens the next pass. */
template <typename INDEX> static __device__ double first_penalty(const penalty_search<INDEX> &s, int clusters)
{
    double sum = 0;
    for (int block = lane_of_thread(); block < clusters; block += DECANT_WARP) {
        const int first = (int)((int64_t)s.points * block / clusters);
        const int end = (int)((int64_t)s.points * (block + 1) / clusters);
        const double width =
            (double)s.values[s.first_entry[min(end, s.points - 1)]] - s.values[s.first_entry[first]];
        sum += cbrt((s.before[end].x - s.before[first].x) * width * width);
    }
    sum = decant_warp_sum(sum) / clusters;
    return sum * sum * sum / 12;
}

static __device__ double cubed(double x)
{
    return x * x * x;
}

/* The penalty to try next. The slope of the gain at K clusters is about proportional to K^−3. Between two
 * solutions it is known from the chord; beyond one, its penalty is all there is, and half a cluster more is
 * asked for, so that the next solution lies on the other side. */
template <typename INDEX>
static __device__ double next_penalty(const penalty_search<INDEX> &s, int clusters, int passes)
{
    const relaxation<INDEX> &fewer = s.fewer, &more = s.more;
    const double chord = (more.gain - fewer.gain) / (more.clusters - fewer.clusters);
    if (passes >= GUESSES)
        return chord;
    double guess;
    if (more.penalty > 0 && isfinite(fewer.penalty))
        guess = chord * cubed(sqrt((double)more.clusters * fewer.clusters) / clusters);
    else if (isfinite(fewer.penalty))
        guess = fewer.penalty * cubed((fewer.clusters - 0.5) / (clusters + 0.5));
    else if (more.penalty > 0)
        guess = more.penalty * cubed((more.clusters + 0.5) / (clusters - 0.5));
    else
        guess = first_penalty(s, clusters);
    return guess > more.penalty && guess < fewer.penalty ? guess : chord;
}

/* ---- from a solution to its clusters ---- */

/* Boundary c of the solution, from boundary c + 1. */
template <typename INDEX>
static __device__ __forceinline__ int boundary_below(const relaxation<INDEX> &solution, int c, int boundary)
{
    if (solution.trivial)
        return solution.clusters == 1 ? 0 : c;
    return (int)solution.split[boundary];
}

template <typename INDEX>
static __device__ void trace(const relaxation<INDEX> &solution, int points, int32_t *boundaries)
{
    int boundary = points;
    for (int c = solution.clusters; c >= 0; c--) {
        boundaries[c] = boundary;
        if (c > 0)
            boundary = boundary_below(solution, c - 1, boundary);
    }
}

/* The best partition into a number of clusters between those of fewer and more, when both are optimal under the
 * same penalty: the one with fewer up to the cluster that holds one of the other's, and the other from there
 * on. The search goes from the end: `kept` counts the clusters of the first one that are kept. */
template <typename INDEX>
static __device__ void join(const penalty_search<INDEX> &s, int clusters, int32_t *boundaries)
{
    const int ahead = s.more.clusters - clusters;
    int32_t *others = (int32_t *)s.value; /* not needed any more; there is room for more than points + 1 */
    trace(s.more, s.points, others);
    trace(s.fewer, s.points, boundaries); /* fewer clusters than wanted: there is room */
    int kept = 0;
    while (kept + 1 < s.fewer.clusters && boundaries[kept + 1] < others[kept + 1 + ahead])
        kept++;
    for (int c = kept + 1; c <= clusters; c++)
        boundaries[c] = others[c + ahead];
}

/* ---- one row ---- */

template <typename T> static __device__ __forceinline__ void exchange(T &a, T &b)
{
    const T kept = a;
    a = b;
    b = kept;
}

/* The best partition into fewer clusters than there are points. */
template <typename INDEX>
static __device__ void find_clusters(penalty_search<INDEX> &s, int clusters, int32_t *boundaries)
{
    reset_more(s);
    reset_fewer(s);
    for (int passes = 0;; passes++) {
        s.now.penalty = next_penalty(s, clusters, passes);
        relax(s);
        const bool found = s.now.clusters == clusters;
        const bool tie = s.now.clusters <= s.fewer.clusters || s.now.clusters >= s.more.clusters;
        if (found || (tie && passes >= GUESSES)) {
            if (lane_of_thread() == 0 && found)
                trace(s.now, s.points, boundaries);
            if (lane_of_thread() == 0 && !found)
                join(s, clusters, boundaries);
            __syncwarp();
            return;
        }
        if (s.now.clusters < clusters)
            exchange(s.now, s.fewer);
        else
            exchange(s.now, s.more);
    }
}

/* What to find: for each number of clusters an array [rows, clusters + 1]. */
struct targets {
    int count;
    int clusters[MOST_TARGETS];
    int32_t *boundaries[MOST_TARGETS];
};

/* Scratch; arrays [rows, stride], split [3][rows, stride]. */
struct search_scratch {
    double *value;
    void *count, *split[3];
};

template <typename INDEX>
static __device__ penalty_search<INDEX> begin_search(const decant_cuda_points &rows,
                                                     const search_scratch &scratch, int64_t row)
{
    const int64_t start = row * rows.stride;
    penalty_search<INDEX> s = {};
    s.before = rows.before + start;
    s.values = rows.values + start;
    s.first_entry = rows.first_entry + start;
    s.points = (int)rows.points[row];
    s.value = scratch.value + start;
    s.count = (INDEX *)scratch.count + start;
    s.fewer.split = (INDEX *)scratch.split[0] + start;
    s.more.split = (INDEX *)scratch.split[1] + start;
    s.now.split = (INDEX *)scratch.split[2] + start;
    return s;
}

/* A warp a row. */
template <typename INDEX>
static __global__ void __launch_bounds__(WARPS *DECANT_WARP, 6)
    search_rows_kernel(decant_cuda_points rows, search_scratch scratch, targets wanted)
{
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= rows.rows)
        return;
    penalty_search<INDEX> s = begin_search<INDEX>(rows, scratch, row);
    for (int t = 0; t < wanted.count; t++) {
        const int clusters = wanted.clusters[t];
        int32_t *boundaries = wanted.boundaries[t] + row * (clusters + 1);
        if (clusters < s.points)
            find_clusters(s, clusters, boundaries);
        else
            for (int c = lane_of_thread(); c <= clusters; c += DECANT_WARP)
                boundaries[c] = min(c, s.points);
    }
}

/* ---- the step ---- */

static search_scratch place_scratch(decant_cuda_arena *arena, const decant_cuda_points *points)
{
    const size_t all = (size_t)points->rows * (size_t)points->stride;
    const size_t index_bytes = points->columns <= UINT16_MAX ? sizeof(uint16_t) : sizeof(uint32_t);
    search_scratch scratch;
    scratch.value = (double *)decant_cuda_arena_take(arena, all * sizeof(double));
    scratch.count = decant_cuda_arena_take(arena, all * index_bytes);
    for (void *&split : scratch.split)
        split = decant_cuda_arena_take(arena, all * index_bytes);
    return scratch;
}

size_t decant_cuda_kmeans_lagrangian_bytes(const decant_cuda_points *points)
{
    decant_cuda_arena arena = {NULL, 0};
    place_scratch(&arena, points);
    return arena.used;
}

decant_status decant_cuda_kmeans_lagrangian(decant_backend *backend, const decant_cuda_points *points,
                                            void *scratch, const int *clusters, int n_targets,
                                            int32_t *const *boundaries, decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const unsigned blocks = (unsigned)((points->rows + WARPS - 1) / WARPS), threads = WARPS * DECANT_WARP;
    decant_cuda_arena arena = {(char *)scratch, 0};
    const search_scratch placed = place_scratch(&arena, points);
    targets wanted = {};
    wanted.count = n_targets;
    for (int i = 0; i < n_targets; i++) {
        wanted.clusters[i] = clusters[i];
        wanted.boundaries[i] = boundaries[i];
    }
    if (points->columns <= UINT16_MAX)
        search_rows_kernel<uint16_t><<<blocks, threads, 0, stream>>>(*points, placed, wanted);
    else
        search_rows_kernel<uint32_t><<<blocks, threads, 0, stream>>>(*points, placed, wanted);
    return decant_cuda_launched(backend, "k-means through penalties", err);
}
