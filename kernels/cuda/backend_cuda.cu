/* The CUDA backend itself: one device, its streams and libraries, and how their failures become errors. The
 * arithmetic is in the other files, one an operation.
 *
 * Some settings are read from the environment, once, so that ways of the same operation can be tested and
 * measured:
 *
 *     DECANT_CUDA_HOPPER   used | unused         whether kernels that only Hopper can run are used there
 *     DECANT_CUDA_SPARSE   folded | cusparse     who multiplies the sparse part (packed_linear.cu)
 *     DECANT_CUDA_PACKED   fastest | parities | lookups | tiles | pairs | pairs_before
 *                                                how few tokens are multiplied (packed_linear.cu) */
#include "kernels/cuda/grid.h"

extern "C" {
#include "base/memory.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>

/* What cuBLAS asks for on Hopper. Given once, so that a product's split does not depend on what memory is free.
 */
enum { BLAS_WORKSPACE_BYTES = 32 << 20, CAPABILITY_MINIMUM = 80 };

/* ---- errors ---- */

/* What the user can do about a failure of the device or its libraries. */
static const char *remedy_for(decant_status status)
{
    return status == DECANT_ERROR_MEMORY
               ? "use more ranks, or --memory streamed"
               : "the machine's log may tell more (Xid); run the same command again, on another GPU if need be";
}

decant_status decant_cuda_check(cudaError_t code, const char *what, decant_error *err)
{
    if (code == cudaSuccess)
        return DECANT_OK;
    decant_status status = code == cudaErrorMemoryAllocation ? DECANT_ERROR_MEMORY : DECANT_ERROR_DEVICE;
    return DECANT_ERROR(err, status, "CUDA: %s: %s (%s); %s", what, cudaGetErrorString(code),
                        cudaGetErrorName(code), remedy_for(status));
}

decant_status decant_cublas_check(cublasStatus_t code, const char *what, decant_error *err)
{
    if (code == CUBLAS_STATUS_SUCCESS)
        return DECANT_OK;
    decant_status status = code == CUBLAS_STATUS_ALLOC_FAILED ? DECANT_ERROR_MEMORY : DECANT_ERROR_DEVICE;
    return DECANT_ERROR(err, status, "cuBLAS: %s: %s; %s", what, cublasGetStatusString(code),
                        remedy_for(status));
}

decant_status decant_cusparse_check(cusparseStatus_t code, const char *what, decant_error *err)
{
    if (code == CUSPARSE_STATUS_SUCCESS)
        return DECANT_OK;
    bool no_memory = code == CUSPARSE_STATUS_ALLOC_FAILED || code == CUSPARSE_STATUS_INSUFFICIENT_RESOURCES;
    decant_status status = no_memory ? DECANT_ERROR_MEMORY : DECANT_ERROR_DEVICE;
    return DECANT_ERROR(err, status, "cuSPARSE: %s: %s; %s", what, cusparseGetErrorString(code),
                        remedy_for(status));
}

decant_status decant_cuda_launched(decant_backend *backend, const char *kernel, decant_error *err)
{
    cudaError_t code = cudaGetLastError();
#ifdef DECANT_CUDA_SYNCHRONOUS
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(decant_cuda_of(backend)->stream);
#else
    (void)backend;
#endif
    return decant_cuda_check(code, kernel, err);
}

/* ---- creation ---- */

int decant_backend_count_cuda(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess)
        return count;
    cudaGetLastError();
    return 0;
}

/* The place of an environment variable's value in a list that ends with NULL; 0 when it is not set, -1 when it
 * is none of them. */
static int choice_of(const char *variable, const char *const *values)
{
    const char *value = getenv(variable);
    if (!value || !*value)
        return 0;
    for (int i = 0; values[i]; i++)
        if (strcmp(value, values[i]) == 0)
            return i;
    return -1;
}

static decant_status read_choices(decant_cuda_context *context, decant_error *err)
{
    static const char *const hopper[] = {"used", "unused", NULL};
    static const char *const sparse[] = {"folded", "cusparse", NULL};
    static const char *const packed[] = {"fastest", "parities",     "lookups", "tiles",
                                         "pairs",   "pairs_before", NULL};
    static const char *const step[] = {"together", "apart", NULL};
    int apart = choice_of("DECANT_CUDA_STEP", step);
    int unused = choice_of("DECANT_CUDA_HOPPER", hopper), library = choice_of("DECANT_CUDA_SPARSE", sparse);
    int way = choice_of("DECANT_CUDA_PACKED", packed);
    if (unused < 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "DECANT_CUDA_HOPPER is none of used, unused");
    if (library < 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "DECANT_CUDA_SPARSE is none of folded, cusparse");
    if (way < 0)
        return DECANT_ERROR(
            err, DECANT_ERROR_USAGE,
            "DECANT_CUDA_PACKED is none of fastest, parities, lookups, tiles, pairs, pairs_before");
    if (apart < 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "DECANT_CUDA_STEP is none of together, apart");
    context->step_apart = apart == 1;
    context->packed_way = (decant_packed_way)way;
    context->has_wgmma = context->capability == 90 && !unused;
    context->sparse_by_library = library == 1;
    return DECANT_OK;
}

/* Under MPS. A driver that does not know the question is taken to say no. */
static bool may_run_beside_others(int device)
{
    int answer = 0;
    if (cudaDeviceGetAttribute(&answer, cudaDevAttrMpsEnabled, device) == cudaSuccess)
        return answer != 0;
    (void)cudaGetLastError(); /* it is no error of what comes */
    return false;
}

static decant_status open_device(decant_backend *backend, int device, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    decant_cuda *cuda = &context->shared;
    if (device < 0 || device >= decant_backend_count_cuda())
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE, "there is no CUDA device %d; use --device cpu", device);
    cudaDeviceProp properties;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaSetDevice(device), "choosing the device", err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaGetDeviceProperties(&properties, device),
                                               "reading the device's properties", err));
    context->capability = 10 * properties.major + properties.minor;
    if (context->capability < CAPABILITY_MINIMUM)
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                            "%s has compute capability %d.%d; decant needs 8.0 or newer", properties.name,
                            properties.major, properties.minor);
    context->runs_beside_others = may_run_beside_others(device);
    cuda->device = device;
    cuda->multiprocessors = properties.multiProcessorCount;
    cuda->shared_memory_bytes = properties.sharedMemPerBlockOptin;
    snprintf(backend->device_name, sizeof backend->device_name, "%.*s", (int)sizeof backend->device_name - 1,
             properties.name);
    return read_choices(context, err);
}

static decant_status open_ring(decant_staging_ring *ring, int count, size_t slot_bytes, decant_error *err)
{
    ring->count = count;
    ring->slot_bytes = slot_bytes;
    for (int i = 0; i < count; i++) {
        decant_staging_slot *slot = &ring->slots[i];
        DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaHostAlloc(&slot->host, slot_bytes, cudaHostAllocDefault),
                                                   "pinned memory", err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaEventCreateWithFlags(&slot->free, cudaEventDisableTiming), "an event", err));
    }
    return DECANT_OK;
}

static void close_ring(decant_staging_ring *ring)
{
    for (int i = 0; i < ring->count; i++) {
        if (ring->slots[i].free)
            cudaEventDestroy(ring->slots[i].free);
        if (ring->slots[i].host)
            cudaFreeHost(ring->slots[i].host);
    }
}

static decant_status open_memory(decant_cuda_context *context, decant_error *err)
{
    int supported = 0;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, context->shared.device),
        "reading the device's properties", err));
    context->pooled = supported != 0;
    if (context->pooled) {
        cudaMemPool_t pool;
        uint64_t keep_all = UINT64_MAX;
        DECANT_RETURN_ON_FAILURE(decant_cuda_check(cudaDeviceGetDefaultMemPool(&pool, context->shared.device),
                                                   "opening the memory pool", err));
        DECANT_RETURN_ON_FAILURE(
            decant_cuda_check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all),
                              "opening the memory pool", err));
    }
    DECANT_RETURN_ON_FAILURE(open_ring(&context->bulk, DECANT_BULK_SLOTS, DECANT_BULK_BYTES, err));
    DECANT_RETURN_ON_FAILURE(open_ring(&context->small, DECANT_STAGING_SLOTS_MAXIMUM, DECANT_SMALL_BYTES, err));
    DECANT_RETURN_ON_FAILURE(open_ring(&context->weights, DECANT_WEIGHT_SLOTS, DECANT_BULK_BYTES, err));
    DECANT_RETURN_ON_FAILURE(decant_worker_create(&context->uploader, err));
    return decant_cuda_check(cudaEventCreateWithFlags(&context->downloaded, cudaEventDisableTiming), "an event",
                             err);
}

static decant_status open_libraries(decant_cuda_context *context, decant_error *err)
{
    decant_cuda *cuda = &context->shared;
    /* F32 means F32: no TF32. BF16 products that are split add their parts in F32. */
    cublasMath_t mode =
        cuda->full_floats ? CUBLAS_DEFAULT_MATH : CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    DECANT_RETURN_ON_FAILURE(decant_cublas_check(cublasCreate(&cuda->blas), "starting", err));
    DECANT_RETURN_ON_FAILURE(decant_cublas_check(cublasSetStream(cuda->blas, cuda->stream), "starting", err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_acquire(context, cuda->stream, BLAS_WORKSPACE_BYTES,
                                                 "cuBLAS's workspace", &context->blas_workspace, err));
    DECANT_RETURN_ON_FAILURE(
        decant_cublas_check(cublasSetWorkspace(cuda->blas, context->blas_workspace, BLAS_WORKSPACE_BYTES),
                            "setting the workspace", err));
    DECANT_RETURN_ON_FAILURE(decant_cublas_check(cublasSetMathMode(cuda->blas, mode), "setting the mode", err));
    DECANT_RETURN_ON_FAILURE(decant_cublas_check(cublasLtCreate(&cuda->blas_lt), "starting", err));
    DECANT_RETURN_ON_FAILURE(decant_cusparse_check(cusparseCreate(&cuda->sparse), "starting", err));
    return decant_cusparse_check(cusparseSetStream(cuda->sparse, cuda->stream), "starting", err);
}

static decant_status open_all(decant_backend *backend, int device, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    DECANT_RETURN_ON_FAILURE(open_device(backend, device, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaStreamCreateWithFlags(&context->shared.stream, cudaStreamNonBlocking), "a stream", err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaStreamCreateWithFlags(&context->upload_stream, cudaStreamNonBlocking), "a stream", err));
    DECANT_RETURN_ON_FAILURE(open_memory(context, err));
    return open_libraries(context, err);
}

/* Takes a backend at any point of its creation. A failing device has nobody left to tell, so codes go unread
 * here. */
static void destroy(decant_backend *backend)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    decant_cuda *cuda = &context->shared;
    decant_cuda_abandon_uploads(context);
    decant_worker_destroy(&context->uploader);
    if (context->upload_stream)
        cudaStreamSynchronize(context->upload_stream);
    if (cuda->stream)
        cudaStreamSynchronize(cuda->stream);
    if (cuda->sparse)
        cusparseDestroy(cuda->sparse);
    if (cuda->blas_lt)
        cublasLtDestroy(cuda->blas_lt);
    if (cuda->blas)
        cublasDestroy(cuda->blas);
    while (context->block_count > 0) {
        void *device = context->blocks[context->block_count - 1].device;
        decant_cuda_release(context, &device);
    }
    close_ring(&context->bulk);
    close_ring(&context->small);
    close_ring(&context->weights);
    if (context->downloaded)
        cudaEventDestroy(context->downloaded);
    if (cuda->stream) {
        cudaStreamSynchronize(cuda->stream);
        cudaStreamDestroy(cuda->stream);
    }
    if (context->upload_stream)
        cudaStreamDestroy(context->upload_stream);
    cudaGetLastError();
    decant_cuda_grid_release(context);
    decant_memory_free(context->blocks);
    decant_memory_free(context);
    decant_memory_free(backend);
}

decant_status decant_backend_create_cuda(int device, bool full_floats, decant_backend **backend,
                                         decant_error *err)
{
    *backend = NULL;
    void *memory = NULL, *state = NULL;
    DECANT_RETURN_ON_FAILURE(decant_memory_allocate(sizeof(decant_backend), "the CUDA backend", &memory, err));
    decant_status status = decant_memory_allocate(sizeof(decant_cuda_context), "the CUDA backend", &state, err);
    if (status != DECANT_OK) {
        decant_memory_free(memory);
        return status;
    }
    decant_backend *made = (decant_backend *)memory;
    *made = {
        .name = "cuda",
        .activation = full_floats ? DECANT_F32 : DECANT_BF16,
        .leaves_host_free = true,
        .memory = &decant_cuda_memory_kernels,
        .weights = &decant_cuda_weight_kernels,
        .model = &decant_cuda_model_kernels,
        .quantize = &decant_cuda_quantize_kernels,
        .grid = &decant_cuda_grid_kernels,
        .validate = &decant_cuda_validate_kernels,
        .steps = &decant_cuda_step_kernels,
        .recordings = &decant_cuda_recording_kernels,
        .destroy = destroy,
        .state = state,
    };
    decant_cuda_of(made)->full_floats = full_floats;
    status = open_all(made, device, err);
    if (status != DECANT_OK) {
        destroy(made);
        return status;
    }
    *backend = made;
    return DECANT_OK;
}
