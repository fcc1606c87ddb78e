/* Weighted k-means of every row as it is usually done: a k-means++ start with a few trials a centre, then
 * Lloyd's iterations on prefix sums. Here to compare the exact searches with. Knows the points alone.
 *
 * Rules, seeds and draws are those of kernels/cpu/kmeans_lloyd.c, so that both find the same clusters but where
 * rounding decides: a draw that falls between two points, a point in the very middle of two centres.
 *
 * A block takes a row, one number of clusters after the other.
 *
 * Source: Lloyd, IEEE Transactions on Information Theory 28(2), 1982; Arthur and Vassilvitskii, k-means++, SODA
 * 2007; the generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"

#include <cmath>
#include <cub/block/block_scan.cuh>

enum {
    THREADS = 256,
    MOST_CLUSTERS = 1 << DECANT_BITS_MAXIMUM,
    MOST_TARGETS = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1,
    ITERATIONS = 50,
};

#define MOVEMENT_TOLERANCE 1e-4

/* A row; arrays [points]. */
struct lloyd_row {
    int points;
    double mean;
    const double2 *before;
    const float *values;
    const uint32_t *first_entry;
    double *mass;       /* of each point */
    double *distance;   /* squared, from each point to the nearest chosen centre */
    double *cumulative; /* Σ of mass · distance up to and with each point */
};

struct lloyd_shared {
    typename cub::BlockScan<double, THREADS>::TempStorage scan;
    double parts[THREADS / DECANT_WARP];
    double centres[MOST_CLUSTERS];
    int chosen[MOST_CLUSTERS + 1]; /* points that are centres, ascending */
    int boundaries[MOST_CLUSTERS + 1];
    double tile_value[THREADS], tile_mass[THREADS];
    uint64_t state;
    double most;
    int at;
};

static __device__ __forceinline__ double value_of(const lloyd_row &row, int point)
{
    return row.values[row.first_entry[point]];
}

/* ---- random numbers ---- */

static __device__ __forceinline__ uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static __device__ __forceinline__ double next_uniform(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* Different rows start differently under one seed: the points are mixed in one after the other, by one thread,
 * from tiles that all threads bring. */
static __device__ uint64_t state_of_points(const lloyd_row &row, uint64_t seed, lloyd_shared *shared)
{
    uint64_t state = seed;
    for (int tile = 0; tile < row.points; tile += THREADS) {
        const int i = tile + (int)threadIdx.x;
        if (i < row.points) {
            shared->tile_value[threadIdx.x] = value_of(row, i);
            shared->tile_mass[threadIdx.x] = row.mass[i];
        }
        __syncthreads();
        for (int t = 0; threadIdx.x == 0 && t < min(THREADS, row.points - tile); t++) {
            state ^= (uint64_t)__double_as_longlong(shared->tile_value[t]);
            state = next_random(&state) ^ (uint64_t)__double_as_longlong(shared->tile_mass[t]);
            state = next_random(&state);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        shared->state = state;
    __syncthreads();
    return shared->state;
}

/* ---- the start; all threads call these together and agree on what they return ---- */

/* The largest value of the block, at the lowest index among equals. */
static __device__ int index_of_most(double value, int index, lloyd_shared *shared)
{
    for (int offset = DECANT_WARP / 2; offset > 0; offset /= 2) {
        const double other = __shfl_xor_sync(DECANT_ALL_LANES, value, offset);
        const int other_index = __shfl_xor_sync(DECANT_ALL_LANES, index, offset);
        if (other > value || (other == value && other_index < index)) {
            value = other;
            index = other_index;
        }
    }
    if (threadIdx.x == 0) {
        shared->most = -1;
        shared->at = 0;
    }
    __syncthreads();
    for (int warp = 0; warp < THREADS / DECANT_WARP; warp++) {
        if ((int)threadIdx.x == warp * DECANT_WARP &&
            (value > shared->most || (value == shared->most && index < shared->at))) {
            shared->most = value;
            shared->at = index;
        }
        __syncthreads();
    }
    const int at = shared->at;
    __syncthreads();
    return at;
}

/* Sums up mass · distance; returns the point that contributes most. */
static __device__ int accumulate(const lloyd_row &row, lloyd_shared *shared)
{
    using scan_type = cub::BlockScan<double, THREADS>;
    double carried = 0, most = -1;
    int at = 0;
    for (int tile = 0; tile < row.points; tile += THREADS) {
        const int i = tile + (int)threadIdx.x;
        const double part = i < row.points ? row.mass[i] * row.distance[i] : 0;
        double sum, all;
        scan_type(shared->scan).InclusiveSum(part, sum, all);
        if (i < row.points) {
            row.cumulative[i] = carried + sum;
            if (part > most) {
                most = part;
                at = i;
            }
        }
        carried += all;
        __syncthreads();
    }
    return index_of_most(most, at, shared);
}

/* The first point at which the cumulative sum exceeds r. */
static __device__ int draw(const lloyd_row &row, double r)
{
    int low = 0, high = row.points - 1;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (row.cumulative[middle] > r)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* How many chosen centres lie below a point. */
static __device__ int rank_of(const int *chosen, int n_chosen, int point)
{
    int low = 0, high = n_chosen;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (chosen[middle] < point)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* What a further centre would save; only points up to the neighbouring centres can come nearer. With `take` the
 * distances are updated. */
static __device__ double saving_of(const lloyd_row &row, int n_chosen, int centre, bool take,
                                   lloyd_shared *shared)
{
    const int rank = rank_of(shared->chosen, n_chosen, centre);
    const int first = rank > 0 ? shared->chosen[rank - 1] : 0;
    const int end = rank < n_chosen ? shared->chosen[rank] + 1 : row.points;
    const double at = value_of(row, centre);
    double saving = 0;
    for (int i = first + (int)threadIdx.x; i < end; i += THREADS) {
        double distance = value_of(row, i) - at;
        distance *= distance;
        if (distance < row.distance[i]) {
            saving += row.mass[i] * (row.distance[i] - distance);
            if (take)
                row.distance[i] = distance;
        }
    }
    return decant_block_sum(saving, shared->parts);
}

static __device__ void take(const lloyd_row &row, int n_chosen, int centre, lloyd_shared *shared)
{
    saving_of(row, n_chosen, centre, true, shared);
    if (threadIdx.x == 0) {
        int rank = n_chosen;
        for (; rank > 0 && shared->chosen[rank - 1] >= centre; rank--)
            shared->chosen[rank] = shared->chosen[rank - 1];
        shared->chosen[rank] = centre;
    }
    __syncthreads();
}

static __device__ void choose_start(const lloyd_row &row, int clusters, uint64_t state, lloyd_shared *shared)
{
    const double total = row.before[row.points].x;
    for (int i = (int)threadIdx.x; i < row.points; i += THREADS) {
        row.distance[i] = INFINITY;
        row.cumulative[i] = row.before[i + 1].x;
    }
    __syncthreads();
    take(row, 0, draw(row, next_uniform(&state) * total), shared);
    const int trials = 2 + (int)log((double)clusters);
    for (int n_chosen = 1; n_chosen < clusters; n_chosen++) {
        int best = accumulate(row, shared); /* where all draws fall on centres, the point that is worst off */
        double most = 0;
        for (int trial = 0; trial < trials; trial++) {
            const int point = draw(row, next_uniform(&state) * row.cumulative[row.points - 1]);
            const double saving = saving_of(row, n_chosen, point, false, shared);
            if (saving > most) {
                most = saving;
                best = point;
            }
        }
        take(row, n_chosen, best, shared);
    }
}

/* ---- Lloyd's iterations ---- */

/* The first point above a value. */
static __device__ int first_above(const lloyd_row &row, double value)
{
    int low = 0, high = row.points;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (value_of(row, middle) > value)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Gives each point to the nearest centre; whether anything changed. */
static __device__ bool assign(const lloyd_row &row, int clusters, lloyd_shared *shared)
{
    bool changed = false;
    const int c = (int)threadIdx.x;
    if (c > 0 && c < clusters) {
        const int boundary = first_above(row, 0.5 * (shared->centres[c - 1] + shared->centres[c]));
        changed = boundary != shared->boundaries[c];
        shared->boundaries[c] = boundary;
    }
    return __syncthreads_or(changed);
}

/* Moves each centre to the mean of its points; the sum of the squared movements. */
static __device__ double move(const lloyd_row &row, int clusters, lloyd_shared *shared)
{
    double movement = 0;
    const int c = (int)threadIdx.x;
    if (c < clusters) {
        const int first = shared->boundaries[c], end = shared->boundaries[c + 1];
        const double mass = row.before[end].x - row.before[first].x;
        if (first != end && mass > 0) {
            const double centre = row.mean + (row.before[end].y - row.before[first].y) / mass;
            movement = (centre - shared->centres[c]) * (centre - shared->centres[c]);
            shared->centres[c] = centre;
        }
    }
    return decant_block_sum(movement, shared->parts);
}

static __device__ double variance_of(const lloyd_row &row, lloyd_shared *shared)
{
    double sum = 0;
    for (int i = (int)threadIdx.x; i < row.points; i += THREADS) {
        const double distance = value_of(row, i) - row.mean;
        sum += row.mass[i] * distance * distance;
    }
    return decant_block_sum(sum, shared->parts) / row.before[row.points].x;
}

/* A local optimum of fewer clusters than points, in shared->boundaries. */
static __device__ void search_clusters(const lloyd_row &row, int clusters, uint64_t state, lloyd_shared *shared)
{
    static_assert(THREADS >= MOST_CLUSTERS, "a thread for each cluster");
    choose_start(row, clusters, state, shared);
    const int c = (int)threadIdx.x;
    if (c < clusters) {
        shared->centres[c] = value_of(row, shared->chosen[c]);
        shared->boundaries[c] = 0;
    }
    if (c == 0)
        shared->boundaries[clusters] = row.points;
    __syncthreads();
    const double enough = MOVEMENT_TOLERANCE * variance_of(row, shared);
    assign(row, clusters, shared);
    for (int iteration = 0; iteration < ITERATIONS; iteration++) {
        const double movement = move(row, clusters, shared);
        if (!assign(row, clusters, shared) || movement <= enough)
            break;
    }
}

/* ---- all rows ---- */

/* What to find: for each number of clusters an array [rows, clusters + 1]. */
struct targets {
    int count;
    int clusters[MOST_TARGETS];
    int32_t *boundaries[MOST_TARGETS];
};

/* Scratch; arrays [rows, stride]. */
struct lloyd_scratch {
    double *mass, *distance, *cumulative;
};

/* Masses of equal values are added in the order of columns. */
static __device__ void sum_points(const lloyd_row &row, const float *masses)
{
    for (int i = (int)threadIdx.x; i < row.points; i += THREADS) {
        double mass = 0;
        for (uint32_t entry = row.first_entry[i]; entry < row.first_entry[i + 1]; entry++)
            mass += masses[entry];
        row.mass[i] = mass;
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS)
    lloyd_kernel(decant_cuda_points rows, lloyd_scratch scratch, targets wanted, uint64_t seed)
{
    __shared__ lloyd_shared shared;
    const int64_t index = blockIdx.x, start = index * rows.stride;
    lloyd_row row;
    row.points = (int)rows.points[index];
    row.mean = rows.mean[index];
    row.before = rows.before + start;
    row.values = rows.values + start;
    row.first_entry = rows.first_entry + start;
    row.mass = scratch.mass + start;
    row.distance = scratch.distance + start;
    row.cumulative = scratch.cumulative + start;
    sum_points(row, rows.masses + start);
    const uint64_t state = state_of_points(row, seed, &shared);
    for (int t = 0; t < wanted.count; t++) {
        const int clusters = wanted.clusters[t];
        int32_t *boundaries = wanted.boundaries[t] + index * (clusters + 1);
        if (row.points > clusters)
            search_clusters(row, clusters, state, &shared);
        for (int c = (int)threadIdx.x; c <= clusters; c += THREADS)
            boundaries[c] = row.points > clusters ? shared.boundaries[c] : min(c, row.points);
        __syncthreads();
    }
}

/* ---- the step ---- */

static lloyd_scratch place_scratch(decant_cuda_arena *arena, const decant_cuda_points *points)
{
    const size_t bytes = (size_t)points->rows * (size_t)points->stride * sizeof(double);
    lloyd_scratch scratch;
    scratch.mass = (double *)decant_cuda_arena_take(arena, bytes);
    scratch.distance = (double *)decant_cuda_arena_take(arena, bytes);
    scratch.cumulative = (double *)decant_cuda_arena_take(arena, bytes);
    return scratch;
}

size_t decant_cuda_kmeans_lloyd_bytes(const decant_cuda_points *points)
{
    decant_cuda_arena arena = {NULL, 0};
    place_scratch(&arena, points);
    return arena.used;
}

decant_status decant_cuda_kmeans_lloyd(decant_backend *backend, const decant_cuda_points *points, void *scratch,
                                       const int *clusters, int n_targets, uint64_t seed,
                                       int32_t *const *boundaries, decant_error *err)
{
    decant_cuda_arena arena = {(char *)scratch, 0};
    const lloyd_scratch placed = place_scratch(&arena, points);
    targets wanted = {};
    wanted.count = n_targets;
    for (int i = 0; i < n_targets; i++) {
        wanted.clusters[i] = clusters[i];
        wanted.boundaries[i] = boundaries[i];
    }
    lloyd_kernel<<<(unsigned)points->rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(*points, placed,
                                                                                          wanted, seed);
    return decant_cuda_launched(backend, "Lloyd's k-means", err);
}
