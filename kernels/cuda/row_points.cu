/* From the sorted entries of each row to points: equal values merged, and prefix sums of mass and moment in
 * double, about the row's weighted mean so that rounding costs least. Knows nothing of where the entries come
 * from.
 *
 * A block takes a row in tiles, in order; every sum is formed in an order that depends on the number of entries
 * alone. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/quantize.cuh"

#include <cub/block/block_scan.cuh>

enum { THREADS = 256, ITEMS = 4, TILE = THREADS * ITEMS };

/* What lies before an entry. */
struct running {
    double mass, moment;
    uint32_t points;
};

struct add_running {
    __device__ __forceinline__ running operator()(const running &a, const running &b) const
    {
        return running{a.mass + b.mass, a.moment + b.moment, a.points + b.points};
    }
};

/* Weighted mean of a row, on every thread. */
static __device__ double row_mean(const float *values, const float *masses, int entries, double *parts)
{
    double mass = 0, moment = 0;
    for (int i = (int)threadIdx.x; i < entries; i += THREADS) {
        const double m = masses[i];
        mass += m;
        moment += m * values[i];
    }
    mass = decant_block_sum(mass, parts);
    moment = decant_block_sum(moment, parts);
    return entries > 0 ? moment / mass : 0;
}

/* The entries first + ITEMS · thread …: a thread's share of a tile. */
struct share {
    int count; /* how many of them there are */
    double mass[ITEMS], moment[ITEMS];
    bool ends_point[ITEMS]; /* the next entry has another value, or there is none */
};

static __device__ __forceinline__ share read_share(const float *values, const float *masses, int first,
                                                   int entries, double mean)
{
    share s;
    s.count = min(ITEMS, entries - first);
    float value[ITEMS + 1] = {}, mass[ITEMS] = {};
    if (s.count > 0) { /* rows are padded to whole vectors */
        const float4 v = *(const float4 *)(values + first), m = *(const float4 *)(masses + first);
        value[0] = v.x, value[1] = v.y, value[2] = v.z, value[3] = v.w;
        mass[0] = m.x, mass[1] = m.y, mass[2] = m.z, mass[3] = m.w;
    }
    if (first + ITEMS < entries)
        value[ITEMS] = values[first + ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
        const bool present = i < s.count;
        s.mass[i] = present ? mass[i] : 0;
        s.moment[i] = present ? mass[i] * (value[i] - mean) : 0;
        s.ends_point[i] = present && (first + i + 1 == entries || value[i + 1] != value[i]);
    }
    return s;
}

static __global__ void __launch_bounds__(THREADS) sum_rows_kernel(decant_cuda_points points)
{
    using scan_type = cub::BlockScan<running, THREADS>;
    __shared__ typename scan_type::TempStorage storage;
    __shared__ double parts[THREADS / DECANT_WARP];
    const int64_t row = blockIdx.x, start = row * points.stride;
    const int entries = (int)points.entries[row];
    const float *values = points.values + start, *masses = points.masses + start;
    double2 *before = points.before + start;
    uint32_t *first_entry = points.first_entry + start;
    const double mean = row_mean(values, masses, entries, parts);

    running carried = {0, 0, 0};
    for (int tile = 0; tile < entries; tile += TILE) {
        const int first = tile + ITEMS * (int)threadIdx.x;
        const share s = read_share(values, masses, first, entries, mean);
        running sum = {0, 0, 0}, here, all;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            sum = add_running()(sum, running{s.mass[i], s.moment[i], s.ends_point[i] ? 1u : 0u});
        scan_type(storage).ExclusiveScan(sum, here, running{0, 0, 0}, add_running(), all);
        here = add_running()(carried, here);
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            here = add_running()(here, running{s.mass[i], s.moment[i], s.ends_point[i] ? 1u : 0u});
            if (!s.ends_point[i])
                continue;
            before[here.points] = make_double2(here.mass, here.moment);
            first_entry[here.points] = (uint32_t)(first + i + 1);
        }
        carried = add_running()(carried, all);
        __syncthreads(); /* before the scan's storage is used again */
    }
    if (threadIdx.x > 0)
        return;
    before[0] = make_double2(0, 0);
    first_entry[0] = 0;
    points.points[row] = carried.points;
    points.mean[row] = mean;
}

decant_status decant_cuda_sum_rows(decant_backend *backend, const decant_cuda_points *points, decant_error *err)
{
    sum_rows_kernel<<<points->rows, THREADS, 0, decant_cuda_of(backend)->stream>>>(*points);
    return decant_cuda_launched(backend, "sum rows", err);
}
