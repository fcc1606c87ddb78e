/* Device memory, and the bytes that travel between host and device. Knows nothing of what the arrays mean.
 *
 * Memory comes from the driver's stream-ordered pool where there is one, so that releasing and allocating in
 * the middle of a job waits for nothing; the pool keeps what is released until somebody else needs it. */
#include "kernels/cuda/context.h"

extern "C" {
#include "base/memory.h"
}

#include <cstdlib>
#include <cstring>
#include <unistd.h>

/* ---- blocks ---- */

static decant_status remember(decant_cuda_context *context, void *device, size_t size_bytes, decant_error *err)
{
    if (context->block_count == context->block_capacity) {
        int64_t capacity = context->block_capacity > 0 ? 2 * context->block_capacity : 256;
        void *blocks = context->blocks;
        DECANT_RETURN_ON_FAILURE(decant_memory_resize((size_t)capacity * sizeof *context->blocks,
                                                      "the list of device blocks", &blocks, err));
        context->blocks = (decant_device_block *)blocks;
        context->block_capacity = capacity;
    }
    context->blocks[context->block_count++] = {device, size_bytes};
    decant_cuda *cuda = &context->shared;
    cuda->bytes += (int64_t)size_bytes;
    if (cuda->bytes > cuda->peak_bytes)
        cuda->peak_bytes = cuda->bytes;
    return DECANT_OK;
}

static void forget(decant_cuda_context *context, const void *device)
{
    for (int64_t i = context->block_count - 1; i >= 0; i--) {
        if (context->blocks[i].device != device)
            continue;
        context->shared.bytes -= (int64_t)context->blocks[i].size_bytes;
        context->blocks[i] = context->blocks[--context->block_count];
        return;
    }
}

/* One try; the pool may first have to give back what it keeps. */
static cudaError_t take(decant_cuda_context *context, cudaStream_t stream, size_t size_bytes, void **device)
{
    if (!context->pooled)
        return cudaMalloc(device, size_bytes);
    cudaError_t code = cudaMallocAsync(device, size_bytes, stream);
    if (code != cudaErrorMemoryAllocation)
        return code;
    cudaGetLastError();
    cudaMemPool_t pool;
    code = cudaDeviceGetDefaultMemPool(&pool, context->shared.device);
    if (code == cudaSuccess)
        code = cudaDeviceSynchronize();
    if (code == cudaSuccess)
        code = cudaMemPoolTrimTo(pool, 0);
    return code == cudaSuccess ? cudaMallocAsync(device, size_bytes, stream) : code;
}

decant_status decant_cuda_acquire(decant_cuda_context *context, cudaStream_t stream, size_t size_bytes,
                                  const char *what, void **device, decant_error *err)
{
    *device = NULL;
    const size_t vector = 16; /* kernels copy as much at once, the end of an array included */
    size_t at_least = size_bytes > 0 ? (size_bytes + vector - 1) / vector * vector : vector;
    cudaError_t code = take(context, stream, at_least, device);
    if (code == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        size_t free_bytes = 0, device_bytes = 0;
        cudaMemGetInfo(&free_bytes, &device_bytes);
        *device = NULL;
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY,
                            "no device memory for %s: %.3f GB wanted, %.3f of %.3f GB free; use more ranks, or "
                            "--memory streamed",
                            what, (double)size_bytes / 1e9, (double)free_bytes / 1e9,
                            (double)device_bytes / 1e9);
    }
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(code, what, err));
    decant_status status = remember(context, *device, size_bytes, err);
    if (status != DECANT_OK)
        decant_cuda_release(context, device);
    return status;
}

void decant_cuda_release(decant_cuda_context *context, void **device)
{
    if (!*device)
        return;
    forget(context, *device);
    if (context->pooled)
        cudaFreeAsync(*device, context->shared.stream);
    else
        cudaFree(*device);
    *device = NULL;
}

decant_status decant_cuda_scratch(decant_backend *backend, size_t size_bytes, void **scratch, decant_error *err)
{
    const size_t granule = 1 << 20;
    decant_cuda_context *context = decant_cuda_context_of(backend);
    decant_cuda *cuda = &context->shared;
    if (size_bytes > cuda->scratch_bytes) {
        size_t rounded = (size_bytes + granule - 1) / granule * granule;
        decant_cuda_release(context, &cuda->scratch);
        cuda->scratch_bytes = 0;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_acquire(context, cuda->stream, rounded, "working space", &cuda->scratch, err));
        cuda->scratch_bytes = rounded;
    }
    *scratch = cuda->scratch;
    return DECANT_OK;
}

decant_status decant_cuda_arrivals(decant_cuda_context *context, uint32_t **arrivals, decant_error *err)
{
    const size_t size_bytes = DECANT_ARRIVALS * sizeof **arrivals;
    if (!context->arrivals) {
        const cudaStream_t stream = context->shared.stream;
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_acquire(context, stream, size_bytes, "counters", &context->arrivals, err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaMemsetAsync(context->arrivals, 0, size_bytes, stream), "counters", err));
    }
    *arrivals = (uint32_t *)context->arrivals;
    return DECANT_OK;
}

/* ---- travel ---- */

static decant_staging_ring *ring_for(decant_cuda_context *context, size_t size_bytes)
{
    return size_bytes <= context->small.slot_bytes ? &context->small : &context->bulk;
}

/* The next slot, once what was issued on it is done. */
static decant_status next_slot(decant_staging_ring *ring, decant_staging_slot **slot, decant_error *err)
{
    *slot = &ring->slots[ring->next];
    ring->next = (ring->next + 1) % ring->count;
    return decant_cuda_check(cudaEventSynchronize((*slot)->free), "waiting for a transfer", err);
}

static size_t chunk_of(const decant_staging_ring *ring, size_t size_bytes, size_t offset)
{
    size_t left = size_bytes - offset;
    return left < ring->slot_bytes ? left : ring->slot_bytes;
}

decant_status decant_cuda_send_through(decant_staging_ring *ring, cudaStream_t stream, void *device,
                                       const void *host, size_t size_bytes, decant_error *err)
{
    for (size_t offset = 0; offset < size_bytes; offset += ring->slot_bytes) {
        size_t chunk = chunk_of(ring, size_bytes, offset);
        decant_staging_slot *slot;
        DECANT_RETURN_ON_FAILURE(next_slot(ring, &slot, err));
        decant_memory_copy(slot->host, (const char *)host + offset, chunk);
        DECANT_RETURN_ON_FAILURE(decant_cuda_check(
            cudaMemcpyAsync((char *)device + offset, slot->host, chunk, cudaMemcpyHostToDevice, stream),
            "a copy to the device", err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaEventRecord(slot->free, stream), "a copy to the device", err));
    }
    return DECANT_OK;
}

decant_status decant_cuda_send(decant_cuda_context *context, cudaStream_t stream, void *device,
                               const void *host, size_t size_bytes, decant_error *err)
{
    return decant_cuda_send_through(ring_for(context, size_bytes), stream, device, host, size_bytes, err);
}

/* A chunk on its way to the host. */
typedef struct arrival {
    decant_staging_slot *slot; /* NULL: none */
    void *host;
    size_t size_bytes;
} arrival;

static decant_status finish(const arrival *chunk, decant_error *err)
{
    if (!chunk->slot)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaEventSynchronize(chunk->slot->free), "a copy to the host", err));
    decant_memory_copy(chunk->host, chunk->slot->host, chunk->size_bytes);
    return DECANT_OK;
}

decant_status decant_cuda_receive(decant_cuda_context *context, void *host, const void *device,
                                  size_t size_bytes, decant_error *err)
{
    cudaStream_t stream = context->shared.stream;
    decant_staging_ring *ring = ring_for(context, size_bytes);
    arrival before = {NULL, NULL, 0};
    for (size_t offset = 0; offset < size_bytes; offset += ring->slot_bytes) {
        arrival chunk = {NULL, (char *)host + offset, chunk_of(ring, size_bytes, offset)};
        DECANT_RETURN_ON_FAILURE(next_slot(ring, &chunk.slot, err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaMemcpyAsync(chunk.slot->host, (const char *)device + offset, chunk.size_bytes,
                                              cudaMemcpyDeviceToHost, stream),
                              "a copy to the host", err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaEventRecord(chunk.slot->free, stream), "a copy to the host", err));
        DECANT_RETURN_ON_FAILURE(finish(&before, err));
        before = chunk;
    }
    return finish(&before, err);
}

/* ---- the memory table ---- */

static decant_status memory_zero(decant_backend *backend, void *device, size_t size_bytes, decant_error *err)
{
    if (size_bytes == 0)
        return DECANT_OK;
    return decant_cuda_check(cudaMemsetAsync(device, 0, size_bytes, decant_cuda_of(backend)->stream),
                             "clearing device memory", err);
}

static decant_status memory_allocate(decant_backend *backend, size_t size_bytes, const char *what,
                                     void **device, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_acquire(context, context->shared.stream, size_bytes, what, device, err));
    decant_status status = memory_zero(backend, *device, size_bytes, err);
    if (status != DECANT_OK)
        decant_cuda_release(context, device);
    return status;
}

static void memory_release(decant_backend *backend, void **device)
{
    decant_cuda_release(decant_cuda_context_of(backend), device);
}

static decant_status memory_upload(decant_backend *backend, void *device, const void *host, size_t size_bytes,
                                   decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    return decant_cuda_send(context, context->shared.stream, device, host, size_bytes, err);
}

static decant_status memory_download(decant_backend *backend, void *host, const void *device, size_t size_bytes,
                                     decant_error *err)
{
    return decant_cuda_receive(decant_cuda_context_of(backend), host, device, size_bytes, err);
}

/* Ordinary memory that is pinned afterwards, and not the driver's own: MPI lets one process read another's
 * memory through the kernel, which cannot read the pages that cudaHostAlloc maps. Whole pages, because two
 * pinned blocks may not share one. */
static decant_status memory_allocate_host(decant_backend *backend, size_t size_bytes, const char *what,
                                          void **host, decant_error *err)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (size_bytes / page + 1) * page;
    (void)backend;
    *host = NULL;
    if (posix_memalign(host, page, whole) != 0) {
        *host = NULL;
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "no memory for %s (%.3f GB); use fewer ranks a machine",
                            what, (double)size_bytes / 1e9);
    }
    cudaError_t code = cudaHostRegister(*host, whole, cudaHostRegisterDefault);
    if (code == cudaSuccess)
        return DECANT_OK;
    cudaGetLastError();
    free(*host);
    *host = NULL;
    return code == cudaErrorMemoryAllocation
               ? DECANT_ERROR(err, DECANT_ERROR_MEMORY,
                              "no pinned memory for %s (%.3f GB); use fewer ranks a machine", what,
                              (double)size_bytes / 1e9)
               : decant_cuda_check(code, what, err);
}

static void memory_release_host(decant_backend *backend, void **host)
{
    (void)backend;
    if (*host)
        cudaHostUnregister(*host);
    free(*host);
    *host = NULL;
}

static decant_status memory_begin_download(decant_backend *backend, void *host, const void *device,
                                           size_t size_bytes, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    const cudaStream_t stream = context->shared.stream;
    if (size_bytes == 0)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, stream), "a copy to the host", err));
    return decant_cuda_check(cudaEventRecord(context->downloaded, stream), "a copy to the host", err);
}

static decant_status memory_finish_downloads(decant_backend *backend, decant_error *err)
{
    return decant_cuda_check(cudaEventSynchronize(decant_cuda_context_of(backend)->downloaded),
                             "a copy to the host", err);
}

static decant_status memory_begin_upload(decant_backend *backend, void *device, const void *host,
                                         size_t size_bytes, decant_error *err)
{
    if (size_bytes == 0)
        return DECANT_OK;
    return decant_cuda_check(
        cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, decant_cuda_of(backend)->stream),
        "a copy to the device", err);
}

static decant_status memory_create_moment(decant_backend *backend, void **moment, decant_error *err)
{
    (void)backend;
    return decant_cuda_check(cudaEventCreateWithFlags((cudaEvent_t *)moment, cudaEventDisableTiming),
                             "a moment in the device's work", err);
}

static void memory_release_moment(decant_backend *backend, void **moment)
{
    (void)backend;
    if (*moment)
        cudaEventDestroy((cudaEvent_t)*moment);
    *moment = NULL;
}

static decant_status memory_mark(decant_backend *backend, void *moment, decant_error *err)
{
    return decant_cuda_check(cudaEventRecord((cudaEvent_t)moment, decant_cuda_of(backend)->stream),
                             "a moment in the device's work", err);
}

static bool memory_is_reached(decant_backend *backend, const void *moment)
{
    (void)backend;
    return cudaEventQuery((cudaEvent_t)moment) != cudaErrorNotReady;
}

static decant_status memory_copy(decant_backend *backend, void *device_target, const void *device_source,
                                 size_t size_bytes, decant_error *err)
{
    if (size_bytes == 0)
        return DECANT_OK;
    return decant_cuda_check(cudaMemcpyAsync(device_target, device_source, size_bytes, cudaMemcpyDeviceToDevice,
                                             decant_cuda_of(backend)->stream),
                             "a copy on the device", err);
}

static decant_status memory_synchronize(decant_backend *backend, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaStreamSynchronize(context->upload_stream), "an upload", err));
    return decant_cuda_check(cudaStreamSynchronize(context->shared.stream), "work on the device", err);
}

static void memory_usage(decant_backend *backend, int64_t *bytes, int64_t *peak_bytes, int64_t *device_bytes)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    size_t free_now = 0, in_all = 0;
    cudaMemGetInfo(&free_now, &in_all);
    *bytes = cuda->bytes;
    *peak_bytes = cuda->peak_bytes;
    *device_bytes = (int64_t)in_all;
}

extern const decant_memory_kernels decant_cuda_memory_kernels = {
    .allocate = memory_allocate,
    .release = memory_release,
    .upload = memory_upload,
    .download = memory_download,
    .copy = memory_copy,
    .zero = memory_zero,
    .allocate_host = memory_allocate_host,
    .release_host = memory_release_host,
    .begin_download = memory_begin_download,
    .finish_downloads = memory_finish_downloads,
    .begin_upload = memory_begin_upload,
    .create_moment = memory_create_moment,
    .release_moment = memory_release_moment,
    .mark = memory_mark,
    .is_reached = memory_is_reached,
    .synchronize = memory_synchronize,
    .usage = memory_usage,
};
