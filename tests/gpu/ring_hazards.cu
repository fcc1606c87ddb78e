/* A ring of slots that a producer fills with bulk copies and consumers read with plain loads, as the attention
 * for Hopper does with the figures of its queries, and nothing else: for compute-sanitizer's racecheck, to tell
 * its opinion of this way of waiting from one of the kernels. Which thread says that a slot may be filled
 * again:
 *
 *     all       every thread that has read it
 *     warp      the first lane of each warp, behind __syncwarp: what the kernels do
 *     lane      the same without __syncwarp: its lanes are ordered by nothing
 *     early     the same before the read: a true race, which must be found
 *
 * racecheck finds nothing in `all` and reports each of the other three, so also what is right: it does not
 * follow what __syncwarp orders to the lane that arrives.
 *
 * usage: ring_hazards all|warp|lane|early; prints whether the sums are right. */
#include "kernels/cuda/hopper.cuh"

#include <cstdio>
#include <cstring>

enum { SLOTS = 3, ROUNDS = 64, FLOATS = 64, CONSUMERS = 256, WARP = 32 };
enum release_way { ALL, EVERY_WARP, LANE, EARLY };

template <release_way way>
__global__ void __launch_bounds__(CONSUMERS + WARP) ring_kernel(const float *figures, float *sums)
{
    __shared__ __align__(128) float slots[SLOTS][FLOATS];
    __shared__ __align__(8) uint64_t full[SLOTS], empty[SLOTS];
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < SLOTS; slot++) {
            decant_barrier_create((uint32_t)__cvta_generic_to_shared(&full[slot]), 1);
            decant_barrier_create((uint32_t)__cvta_generic_to_shared(&empty[slot]),
                                  way == ALL ? CONSUMERS : CONSUMERS / WARP);
        }
        decant_barrier_publish();
    }
    __syncthreads();
    float sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const int slot = round % SLOTS;
        const uint32_t parity = round / SLOTS % 2, is_full = (uint32_t)__cvta_generic_to_shared(&full[slot]),
                       is_empty = (uint32_t)__cvta_generic_to_shared(&empty[slot]);
        if (threadIdx.x == CONSUMERS) {
            decant_barrier_wait(is_empty, parity ^ 1);
            decant_barrier_expect(is_full, sizeof slots[slot]);
            decant_copy_bytes((uint32_t)__cvta_generic_to_shared(slots[slot]), figures + round * FLOATS,
                              sizeof slots[slot], is_full);
        } else if (threadIdx.x < CONSUMERS) {
            decant_barrier_wait(is_full, parity);
            if (way == EARLY && threadIdx.x % WARP == 0)
                decant_barrier_arrive(is_empty);
            sum += slots[slot][threadIdx.x % FLOATS];
            if (way == EVERY_WARP)
                __syncwarp();
            if (way == ALL || (way != EARLY && threadIdx.x % WARP == 0))
                decant_barrier_arrive(is_empty);
        }
    }
    if (threadIdx.x < CONSUMERS)
        sums[threadIdx.x] = sum;
}

int main(int count, char **arguments)
{
    const char *const names[] = {"all", "warp", "lane", "early"};
    void (*const kernels[])(const float *, float *) = {ring_kernel<ALL>, ring_kernel<EVERY_WARP>,
                                                       ring_kernel<LANE>, ring_kernel<EARLY>};
    float *figures, *sums;
    if (cudaMallocManaged(&figures, ROUNDS * FLOATS * sizeof *figures) != cudaSuccess ||
        cudaMallocManaged(&sums, CONSUMERS * sizeof *sums) != cudaSuccess)
        return 77;
    for (int i = 0; i < ROUNDS * FLOATS; i++)
        figures[i] = (float)(i % FLOATS + i / FLOATS);
    for (int way = 0; way < 4; way++) {
        if (count < 2 || strcmp(arguments[1], names[way]) != 0)
            continue;
        kernels[way]<<<1, CONSUMERS + WARP>>>(figures, sums);
        if (cudaDeviceSynchronize() != cudaSuccess)
            return 1;
        int wrong = 0;
        for (int i = 0; i < CONSUMERS; i++)
            wrong += sums[i] != ROUNDS * (float)(i % FLOATS) + ROUNDS * (ROUNDS - 1) / 2;
        printf("%s: %d of %d sums are wrong\n", names[way], wrong, CONSUMERS);
        return wrong > 0 && way != EARLY;
    }
    return 2;
}
