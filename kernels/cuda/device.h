/* What the CUDA kernels share: the device's state and how its failures become errors. Only kernels/cuda
 * includes it. */
#ifndef DECANT_KERNELS_CUDA_DEVICE_H
#define DECANT_KERNELS_CUDA_DEVICE_H

extern "C" {
#include "kernels/backend.h"
}

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusparse.h>

/* backend->state of a CUDA backend. */
typedef struct decant_cuda {
    int device;
    int multiprocessors;
    size_t shared_memory_bytes; /* the most a block may ask for */
    bool full_floats;
    cudaStream_t stream; /* all work is issued here, in order */
    cublasHandle_t blas;
    cublasLtHandle_t blas_lt;
    cusparseHandle_t sparse;
    void *scratch; /* grows to the largest request; see decant_cuda_scratch */
    size_t scratch_bytes;
    int64_t bytes, peak_bytes; /* held through memory->allocate, weights->place and the scratch */
} decant_cuda;

static inline decant_cuda *decant_cuda_of(decant_backend *backend)
{
    return (decant_cuda *)backend->state;
}

/* Turn a code of each library into DECANT_OK or a filled error; running out of memory becomes
 * DECANT_ERROR_MEMORY. `what` says what was tried. */
decant_status decant_cuda_check(cudaError_t code, const char *what, decant_error *err);
decant_status decant_cublas_check(cublasStatus_t code, const char *what, decant_error *err);
decant_status decant_cusparse_check(cusparseStatus_t code, const char *what, decant_error *err);

/* After a launch: its own error at once; in debug builds (DECANT_CUDA_SYNCHRONOUS) that of its work too. */
decant_status decant_cuda_launched(decant_backend *backend, const char *kernel, decant_error *err);

/* At least size_bytes of device memory for the work of one call, valid until the next call that asks for
 * scratch. Work issued earlier on the stream may still use the old contents: the stream's order keeps them
 * apart. */
decant_status decant_cuda_scratch(decant_backend *backend, size_t size_bytes, void **scratch,
                                  decant_error *err);

extern const decant_memory_kernels decant_cuda_memory_kernels;
extern const decant_weight_kernels decant_cuda_weight_kernels;
extern const decant_model_kernels decant_cuda_model_kernels;
extern const decant_quantize_kernels decant_cuda_quantize_kernels;
extern const decant_grid_kernels decant_cuda_grid_kernels;
extern const decant_validate_kernels decant_cuda_validate_kernels;
extern const decant_step_kernels decant_cuda_step_kernels;
extern const decant_recording_kernels decant_cuda_recording_kernels;

#endif
