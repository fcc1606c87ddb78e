/* From the clusters of each row to its levels, as they are stored: their means, rounded, ascending. Knows
 * nothing of how the clusters were found. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"
#include "kernels/cuda/weight_bits.cuh"

enum { WARPS = 4 };

/* The points of a cluster; begin == end: none. */
struct cluster {
    int begin, end;
};

/* Weighted mean of entries by a whole warp. */
static __device__ double mean_of_entries(const float *values, const float *masses, int first, int end)
{
    const double origin = values[first];
    double mass = 0, moment = 0;
    for (int i = first + (int)threadIdx.x % DECANT_WARP; i < end; i += DECANT_WARP) {
        mass += masses[i];
        moment += masses[i] * (values[i] - origin);
    }
    mass = decant_warp_sum(mass);
    moment = decant_warp_sum(moment);
    return origin + moment / mass;
}

/* The mean of each lane's cluster. It follows from the prefix sums unless the cluster weighs so little beside
 * what is before it that their difference has lost it; then the warp sums the cluster's entries. */
static __device__ double mean_of_cluster(const decant_cuda_points &rows, int64_t row, cluster mine)
{
    const double2 *before = rows.before + row * rows.stride;
    const uint32_t *first_entry = rows.first_entry + row * rows.stride;
    const float *values = rows.values + row * rows.stride, *masses = rows.masses + row * rows.stride;
    const bool used = mine.begin < mine.end;
    const double mass = before[mine.end].x - before[mine.begin].x;
    const double moment = before[mine.end].y - before[mine.begin].y;
    double mean = rows.mean[row] + moment / mass;
    const bool lost = used && !(mass >= 0x1p-20 * before[mine.end].x);
    for (unsigned left = __ballot_sync(DECANT_ALL_LANES, lost); left; left &= left - 1) {
        const int lane = __ffs((int)left) - 1;
        const int begin = __shfl_sync(DECANT_ALL_LANES, mine.begin, lane);
        const int end = __shfl_sync(DECANT_ALL_LANES, mine.end, lane);
        const double sum = mean_of_entries(values, masses, (int)first_entry[begin], (int)first_entry[end]);
        if ((int)threadIdx.x % DECANT_WARP == lane)
            mean = sum;
    }
    if (!used)
        return 0;
    /* Between its least and its largest value whatever the rounding: levels ascend. */
    return fmin(fmax(mean, (double)values[first_entry[mine.begin]]), (double)values[first_entry[mine.end] - 1]);
}

/* A warp a row. Empty clusters give no level; the last level is repeated for them. */
static __global__ void __launch_bounds__(WARPS *DECANT_WARP)
    levels_kernel(decant_cuda_points rows, const int32_t *boundaries, int clusters, uint16_t *levels)
{
    const int lane = (int)threadIdx.x % DECANT_WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / DECANT_WARP;
    if (row >= rows.rows)
        return;
    boundaries += row * (clusters + 1);
    levels += row * clusters;
    int filled = 0;
    unsigned last = 0; /* the level filled last; 0 when there is no point at all */
    for (int first = 0; first < clusters; first += DECANT_WARP) {
        cluster mine = {0, 0};
        if (first + lane < clusters)
            mine = cluster{boundaries[first + lane], boundaries[first + lane + 1]};
        const bool used = mine.begin < mine.end;
        const unsigned level = finite_f16(mean_of_cluster(rows, row, mine));
        const unsigned all = __ballot_sync(DECANT_ALL_LANES, used);
        if (used)
            levels[filled + __popc(all & ((1u << lane) - 1))] = (uint16_t)level;
        if (all)
            last = __shfl_sync(DECANT_ALL_LANES, level, 31 - __clz((int)all));
        filled += __popc(all);
    }
    for (int i = filled + lane; i < clusters; i += DECANT_WARP)
        levels[i] = (uint16_t)last;
}

decant_status decant_cuda_levels_of_clusters(decant_backend *backend, const decant_cuda_points *points,
                                             const int32_t *boundaries, int clusters, uint16_t *levels,
                                             decant_error *err)
{
    const unsigned blocks = (unsigned)((points->rows + WARPS - 1) / WARPS);
    levels_kernel<<<blocks, WARPS * DECANT_WARP, 0, decant_cuda_of(backend)->stream>>>(*points, boundaries,
                                                                                       clusters, levels);
    return decant_cuda_launched(backend, "levels of clusters", err);
}
