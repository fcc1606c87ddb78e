/* The calls of the GPU that can be made to fail: those of the CUDA runtime, which decant is linked to as a
 * shared library, and of cuBLAS and cuSPARSE. What these libraries call among themselves does not come here. */
#include "inject.h"

#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cusparse.h>
#include <stdatomic.h>

static const cudaError_t no_launch = cudaErrorLaunchOutOfResources, no_copy = cudaErrorInvalidValue,
                         no_work = cudaErrorUnknown, no_device = cudaErrorECCUncorrectable;

static atomic_bool is_lost;
static _Thread_local cudaError_t pending; /* what cudaGetLastError shall tell */

/* What a call of that kind returns in place of being made; cudaSuccess: it is made. */
static cudaError_t failure(fault_kind kind, cudaError_t code)
{
    if (fault_is(LOST, "-"))
        is_lost = true;
    if (kind != LOST && fault_is(kind, "-"))
        return pending = code;
    return is_lost ? pending = no_device : cudaSuccess;
}

/* The runtime's functions call each other, which must not count twice. */
#define CALL_OR_FAIL(kind, code, call)                                                                         \
    do {                                                                                                       \
        cudaError_t result = failure(kind, code);                                                              \
        if (result != cudaSuccess)                                                                             \
            return result;                                                                                     \
        fault_begin_inside();                                                                                  \
        result = (call);                                                                                       \
        fault_end_inside();                                                                                    \
        return result;                                                                                         \
    } while (0)

/* ---- the last error ---- */

cudaError_t cudaGetLastError(void)
{
    cudaError_t mine = pending, real = REAL(cudaGetLastError)();
    pending = cudaSuccess;
    return is_lost ? no_device : mine != cudaSuccess ? mine : real;
}

cudaError_t cudaPeekAtLastError(void)
{
    return is_lost ? no_device : pending != cudaSuccess ? pending : REAL(cudaPeekAtLastError)();
}

/* ---- memory ---- */

/* decant tries a second time for the same size, after it has given back what can be. */
static cudaError_t memory_failure(size_t size_bytes)
{
    static _Thread_local size_t again_bytes;
    bool is_again = again_bytes > 0 && again_bytes == size_bytes;
    again_bytes = 0;
    if (is_again)
        return pending = cudaErrorMemoryAllocation;
    cudaError_t code = failure(DEVICE_MEMORY, cudaErrorMemoryAllocation);
    again_bytes = code == cudaErrorMemoryAllocation ? size_bytes : 0;
    return code;
}

#define ALLOCATE_OR_FAIL(size_bytes, call)                                                                     \
    do {                                                                                                       \
        cudaError_t result = memory_failure(size_bytes);                                                       \
        if (result != cudaSuccess)                                                                             \
            return result;                                                                                     \
        fault_begin_inside();                                                                                  \
        result = (call);                                                                                       \
        fault_end_inside();                                                                                    \
        return result;                                                                                         \
    } while (0)

cudaError_t cudaMalloc(void **device, size_t size_bytes)
{
    ALLOCATE_OR_FAIL(size_bytes, REAL(cudaMalloc)(device, size_bytes));
}

cudaError_t cudaMallocAsync(void **device, size_t size_bytes, cudaStream_t stream)
{
    ALLOCATE_OR_FAIL(size_bytes, REAL(cudaMallocAsync)(device, size_bytes, stream));
}

cudaError_t cudaHostAlloc(void **host, size_t size_bytes, unsigned int flags)
{
    ALLOCATE_OR_FAIL(size_bytes, REAL(cudaHostAlloc)(host, size_bytes, flags));
}

cudaError_t cudaHostRegister(void *host, size_t size_bytes, unsigned int flags)
{
    ALLOCATE_OR_FAIL(size_bytes, REAL(cudaHostRegister)(host, size_bytes, flags));
}

/* ---- launches ---- */

/* What nvcc makes of <<<…>>>, from CUDA 12 on the first of these. */
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void **arguments,
                               size_t shared_bytes, cudaStream_t stream);

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void **arguments,
                               size_t shared_bytes, cudaStream_t stream)
{
    CALL_OR_FAIL(LAUNCH, no_launch,
                 REAL(__cudaLaunchKernel)(kernel, blocks, threads, arguments, shared_bytes, stream));
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 blocks, dim3 threads, void **arguments,
                             size_t shared_bytes, cudaStream_t stream)
{
    CALL_OR_FAIL(LAUNCH, no_launch,
                 REAL(cudaLaunchKernel)(kernel, blocks, threads, arguments, shared_bytes, stream));
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *kernel, void **arguments)
{
    CALL_OR_FAIL(LAUNCH, no_launch, REAL(cudaLaunchKernelExC)(how, kernel, arguments));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    CALL_OR_FAIL(LAUNCH, no_launch, REAL(cudaGraphLaunch)(graph, stream));
}

/* ---- copies ---- */

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size_bytes, enum cudaMemcpyKind way,
                            cudaStream_t stream)
{
    CALL_OR_FAIL(COPY, no_copy, REAL(cudaMemcpyAsync)(target, source, size_bytes, way, stream));
}

cudaError_t cudaMemsetAsync(void *device, int value, size_t size_bytes, cudaStream_t stream)
{
    CALL_OR_FAIL(COPY, no_copy, REAL(cudaMemsetAsync)(device, value, size_bytes, stream));
}

/* ---- waiting ---- */

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CALL_OR_FAIL(WAIT, no_work, REAL(cudaStreamSynchronize)(stream));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CALL_OR_FAIL(WAIT, no_work, REAL(cudaEventSynchronize)(event));
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CALL_OR_FAIL(WAIT, no_work, REAL(cudaEventRecord)(event, stream));
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    CALL_OR_FAIL(WAIT, no_work, REAL(cudaStreamWaitEvent)(stream, event, flags));
}

/* How often it is asked depends on time, so it does not count. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return is_lost ? no_device : REAL(cudaEventQuery)(event);
}

/* ---- libraries ---- */

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t left, cublasOperation_t right, int m,
                            int n, int k, const void *alpha, const void *a, cudaDataType a_type, int a_stride,
                            const void *b, cudaDataType b_type, int b_stride, const void *beta, void *c,
                            cudaDataType c_type, int c_stride, cublasComputeType_t type,
                            cublasGemmAlgo_t algorithm)
{
    if (failure(PRODUCT, no_work) != cudaSuccess)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    return REAL(cublasGemmEx)(handle, left, right, m, n, k, alpha, a, a_type, a_stride, b, b_type, b_stride,
                              beta, c, c_type, c_stride, type, algorithm);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t left,
                                          cublasOperation_t right, int m, int n, int k, const void *alpha,
                                          const void *a, cudaDataType a_type, int a_stride, long long a_step,
                                          const void *b, cudaDataType b_type, int b_stride, long long b_step,
                                          const void *beta, void *c, cudaDataType c_type, int c_stride,
                                          long long c_step, int count, cublasComputeType_t type,
                                          cublasGemmAlgo_t algorithm)
{
    if (failure(PRODUCT, no_work) != cudaSuccess)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    return REAL(cublasGemmStridedBatchedEx)(handle, left, right, m, n, k, alpha, a, a_type, a_stride, a_step, b,
                                            b_type, b_stride, b_step, beta, c, c_type, c_stride, c_step, count,
                                            type, algorithm);
}

cusparseStatus_t cusparseSpMM(cusparseHandle_t handle, cusparseOperation_t left, cusparseOperation_t right,
                              const void *alpha, cusparseConstSpMatDescr_t a, cusparseConstDnMatDescr_t b,
                              const void *beta, cusparseDnMatDescr_t c, cudaDataType type,
                              cusparseSpMMAlg_t algorithm, void *buffer)
{
    if (failure(PRODUCT, no_work) != cudaSuccess)
        return CUSPARSE_STATUS_EXECUTION_FAILED;
    return REAL(cusparseSpMM)(handle, left, right, alpha, a, b, beta, c, type, algorithm, buffer);
}
