/* A second form of the sparse part, beside columns and values: a word for each entry, its column in the lower
 * half, the bits of its value in the upper. An entry is then read at once, in four bytes instead of six, and
 * waits in one register until it is due. Made once, when a matrix has been loaded, where columns fit half a
 * word; decant_packed_matrix owns it with the other arrays.
 *
 * Any product may read it where it is there (decant_packed_view.sparse_entries is not NULL). Those that must
 * are parities_apart.cu and pair_entries.cuh; the others read columns and values, which stay. */
#include "kernels/cuda/context.h"
#include "kernels/cuda/operations.h"

enum { THREADS = 256, COLUMNS_MAXIMUM = 65536 };

__global__ void join_entries_kernel(const uint32_t *columns, const uint16_t *values, int64_t count,
                                    uint32_t *entries)
{
    const int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (i < count)
        entries[i] = columns[i] | (uint32_t)values[i] << 16;
}

decant_status decant_cuda_join_entries(decant_backend *backend, decant_packed_matrix *packed, decant_error *err)
{
    const int64_t count = packed->sparse.count;
    if (count == 0 || packed->columns > COLUMNS_MAXIMUM)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(backend->memory->allocate(backend, (size_t)count * sizeof *packed->sparse_entries,
                                                       "sparse entries", (void **)&packed->sparse_entries,
                                                       err));
    join_entries_kernel<<<(unsigned)((count + THREADS - 1) / THREADS), THREADS, 0,
                          decant_cuda_of(backend)->stream>>>(packed->sparse.columns, packed->sparse_values,
                                                             count, packed->sparse_entries);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "join_entries", err));
    return backend->memory->synchronize(backend, err); /* products read arrays before earlier work is done */
}
