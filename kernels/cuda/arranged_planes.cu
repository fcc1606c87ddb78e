/* Puts the planes of a packed matrix into the order that products read fastest (packed.cuh says which), once,
 * when it has been loaded. Where rows are whole pieces that is done in place, as a group of eight rows takes
 * the same words in both orders; otherwise it takes an array of its own. Knows nothing of levels and of the
 * sparse part. */
#include "kernels/cuda/packed.cuh"

enum {
    THREADS = 256,
    CHUNK_WORDS = 4,
    PIECE_CHUNKS = DECANT_PIECE_WORDS / CHUNK_WORDS,
};

/* A block takes a group of eight rows.
 * planes    [rows, bits, chunks]
 * arranged  [groups, pieces, bits, 8, PIECE_CHUNKS]; may be the same */
__global__ void __launch_bounds__(THREADS)
    arrange_planes_kernel(const uint4 *planes, int bits, int chunks, int pieces, uint4 *arranged)
{
    extern __shared__ uint4 own[];
    const int from = DECANT_GROUP_ROWS * bits * chunks, to = DECANT_GROUP_ROWS * bits * pieces * PIECE_CHUNKS;
    for (int i = threadIdx.x; i < from; i += THREADS)
        own[i] = planes[(int64_t)blockIdx.x * from + i];
    __syncthreads();
    for (int i = threadIdx.x; i < to; i += THREADS) {
        const int row = i / PIECE_CHUNKS % DECANT_GROUP_ROWS,
                  plane = i / (PIECE_CHUNKS * DECANT_GROUP_ROWS) % bits,
                  chunk = i / (PIECE_CHUNKS * DECANT_GROUP_ROWS) / bits * PIECE_CHUNKS + i % PIECE_CHUNKS;
        arranged[(int64_t)blockIdx.x * to + i] =
            chunk < chunks ? own[(row * bits + plane) * chunks + chunk] : make_uint4(0, 0, 0, 0);
    }
}

/* Of a group of rows, as they come. */
static size_t group_bytes(const decant_packed_matrix *packed)
{
    return (size_t)(DECANT_GROUP_ROWS * packed->bits * decant_plane_words(packed->columns, false)) *
           sizeof(uint32_t);
}

/* Whether products read it faster so: those of Hopper do. */
static bool gains(const decant_backend *backend, const decant_packed_matrix *packed)
{
    const decant_cuda_context *context = (const decant_cuda_context *)backend->state;
    return context->has_wgmma && backend->activation == DECANT_BF16 && packed->rows % DECANT_GROUP_ROWS == 0 &&
           decant_columns_are_arranged(packed->columns) && (uintptr_t)packed->planes % sizeof(uint4) == 0 &&
           group_bytes(packed) <= context->shared.shared_memory_bytes;
}

static decant_status arrange(decant_backend *backend, const decant_packed_matrix *packed, uint32_t *target,
                             decant_error *err)
{
    const size_t bytes = group_bytes(packed);
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaFuncSetAttribute(arrange_planes_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
        "shared memory of a kernel", err));
    arrange_planes_kernel<<<(unsigned)(packed->rows / DECANT_GROUP_ROWS), THREADS, bytes,
                            decant_cuda_of(backend)->stream>>>(
        (const uint4 *)packed->planes, packed->bits, decant_plane_words(packed->columns, false) / CHUNK_WORDS,
        decant_plane_words(packed->columns, true) / DECANT_PIECE_WORDS, (uint4 *)target);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "arrange_planes", err));
    return backend->memory->synchronize(backend, err); /* products read codes before earlier work is done */
}

decant_status decant_cuda_arrange_planes(decant_backend *backend, decant_packed_matrix *packed,
                                         decant_error *err)
{
    const int words = decant_plane_words(packed->columns, true);
    const bool in_place = words == decant_plane_words(packed->columns, false);
    uint32_t *target = packed->planes;
    if (packed->arranged || packed->rows == 0 || !gains(backend, packed))
        return DECANT_OK;
    if (!in_place)
        DECANT_RETURN_ON_FAILURE(
            backend->memory->allocate(backend, (size_t)(packed->rows * packed->bits * words) * sizeof *target,
                                      "arranged code planes", (void **)&target, err));
    const decant_status status = arrange(backend, packed, target, err);
    uint32_t *unused = status == DECANT_OK ? packed->planes : target;
    if (status == DECANT_OK) {
        packed->planes = target;
        packed->arranged = true;
    }
    if (!in_place)
        backend->memory->release(backend, (void **)&unused);
    return status;
}
