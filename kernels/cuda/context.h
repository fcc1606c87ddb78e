/* What the CUDA backend keeps beyond device.h: how memory is had, how bytes travel between host and device, and
 * which of several ways an operation goes. Only the backend's own files and the model and validate operations
 * include it. */
#ifndef DECANT_KERNELS_CUDA_CONTEXT_H
#define DECANT_KERNELS_CUDA_CONTEXT_H

#include "kernels/cuda/device.h"

/* C++ forbids DECANT_TRY's jump over initialized variables, so functions in .cu files leave at once; what they
 * hold belongs to the context, which frees it. */
#define DECANT_RETURN_ON_FAILURE(call)                                                                         \
    do {                                                                                                       \
        decant_status failure = (call);                                                                        \
        if (failure != DECANT_OK)                                                                              \
            return failure;                                                                                    \
    } while (0)

extern "C" {
#include "base/worker.h"
}

/* Bytes pass between ordinary host memory and the device through rings of pinned slots: while one slot is on
 * its way, the host fills or empties the next. Three rings: weights have their own, which the uploading thread
 * alone touches; the calling thread's arrays go through `bulk` or, when they are short (tokens, losses),
 * through `small`, so that they do not wait for long ones. */
enum {
    DECANT_STAGING_SLOTS_MAXIMUM = 32,
    DECANT_WEIGHT_SLOTS = 4,
    DECANT_BULK_SLOTS = 4,
    DECANT_BULK_BYTES = 16 << 20,
    DECANT_SMALL_BYTES = 64 << 10
};

typedef struct decant_staging_slot {
    void *host;       /* pinned */
    cudaEvent_t free; /* what was last issued on this slot is done */
} decant_staging_slot;

typedef struct decant_staging_ring {
    decant_staging_slot slots[DECANT_STAGING_SLOTS_MAXIMUM];
    int count, next;
    size_t slot_bytes;
} decant_staging_ring;

/* How packed_linear multiplies few tokens; see packed_linear.cu. */
typedef enum decant_packed_way {
    DECANT_PACKED_FASTEST,  /* by the width of the codes and the number of tokens */
    DECANT_PACKED_PARITIES, /* parities on binary tensor cores, as far as they go */
    DECANT_PACKED_LOOKUPS,
    DECANT_PACKED_TILES,        /* levels in registers, as far as they go */
    DECANT_PACKED_PAIRS,        /* tables of pairs of levels, as far as they go */
    DECANT_PACKED_PAIRS_BEFORE, /* the same, a sparse part always in a pass before */
} decant_packed_way;

/* A block of device memory that was handed out: release is given the pointer alone. */
typedef struct decant_device_block {
    void *device;
    size_t size_bytes;
} decant_device_block;

typedef struct decant_cuda_context {
    decant_cuda shared;      /* first: backend->state is read as a decant_cuda by every kernel */
    int capability;          /* 80, 90, …: compute capability times ten */
    bool has_wgmma;          /* a device of capability 9.0, whose own kernels may be used */
    bool pooled;             /* memory comes from the driver's stream-ordered pool */
    bool runs_beside_others; /* kernels of other processes may run at the same time (MPS) */
    bool sparse_by_library;  /* packed_linear leaves the sparse part to cuSPARSE */
    bool step_apart;         /* every operation of a step is a launch of its own */
    void *encode_map;        /* the driver's cuTensorMapEncodeTiled, once tensor_map.cu has asked for it */
    decant_packed_way packed_way;

    void *blas_workspace;
    void *arrivals; /* decant_cuda_arrivals */
    decant_staging_ring bulk, small;
    cudaEvent_t downloaded; /* the last download that was begun has arrived */

    /* weights_cuda.cu */
    decant_worker *uploader;    /* copies weights into the ring and issues their uploads */
    cudaStream_t upload_stream; /* weights arrive here beside the work of shared.stream */
    decant_staging_ring weights;
    void *upload_staging; /* device memory for weights that change type on the way; made when first needed */
    struct decant_upload *uploads; /* begun and not finished, in no order */

    decant_device_block *blocks; /* [block_count] live, in no order */
    int64_t block_count, block_capacity;

    void *grids; /* [grid_count] of every grid that was used; see grid_cuda.cu */
    int64_t grid_count;
} decant_cuda_context;

static inline decant_cuda_context *decant_cuda_context_of(decant_backend *backend)
{
    return (decant_cuda_context *)backend->state;
}

/* size_bytes of device memory, of any content, for work on `stream`; freed by decant_cuda_release. */
decant_status decant_cuda_acquire(decant_cuda_context *context, cudaStream_t stream, size_t size_bytes,
                                  const char *what, void **device, decant_error *err);

/* Gives memory back once the work issued so far on shared.stream is done; takes NULL, sets NULL. */
void decant_cuda_release(decant_cuda_context *context, void **device);

/* Counters of blocks that have left their sums, [DECANT_ARRIVALS] on the device, made when first needed: zeros
 * between launches, which every kernel that counts leaves behind. Owned by the context. */
enum { DECANT_ARRIVALS = 4096 };
decant_status decant_cuda_arrivals(decant_cuda_context *context, uint32_t **arrivals, decant_error *err);

/* Bytes from ordinary host memory, which may change once this returns, to the device; issued on `stream`. */
decant_status decant_cuda_send(decant_cuda_context *context, cudaStream_t stream, void *device,
                               const void *host, size_t size_bytes, decant_error *err);

/* The same through the given ring, which the calling thread must have to itself. */
decant_status decant_cuda_send_through(decant_staging_ring *ring, cudaStream_t stream, void *device,
                                       const void *host, size_t size_bytes, decant_error *err);

/* Waits for the weights on their way and forgets them; when the backend goes. */
void decant_cuda_abandon_uploads(decant_cuda_context *context);

/* Bytes from the device to host memory, after all work issued on shared.stream; waits for them. */
decant_status decant_cuda_receive(decant_cuda_context *context, void *host, const void *device,
                                  size_t size_bytes, decant_error *err);

/* target[i] = source[i] in another element type, rounded to nearest; issued on `stream`. */
decant_status decant_cuda_convert(decant_backend *backend, cudaStream_t stream, decant_element source_element,
                                  const void *source, decant_element target_element, void *target,
                                  int64_t count, decant_error *err);

/* The vectors of a norm as floats, issued on shared.stream. Those placed for compute are F32 already and stay
 * where they are; others go through one scratch. vectors  [count], equally long floats   [count]; filled */
decant_status decant_cuda_as_floats(decant_backend *backend, const decant_matrix *vectors, int count,
                                    const float **floats, decant_error *err);

/* Makes room for one array of several that share a scratch: returns its offset and moves *total_bytes past it.
 * Offsets are multiples of 256 bytes, as good as those of allocations of their own. */
static inline size_t decant_scratch_reserve(size_t *total_bytes, size_t size_bytes)
{
    size_t offset = *total_bytes;
    *total_bytes = (offset + size_bytes + 255) / 256 * 256;
    return offset;
}

#endif
