/* Matrix products through cuBLAS. cuBLAS counts columns first: a row-major matrix is its transpose there, so
 * c = a b is asked for as cᵀ = bᵀ aᵀ. */
#include "kernels/cuda/operations.h"

#include <climits>

static cudaDataType type_of(decant_element element)
{
    return element == DECANT_F32 ? CUDA_R_32F : element == DECANT_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

decant_status decant_cuda_multiply(decant_backend *backend, const decant_cuda_product *product,
                                   const char *what, decant_error *err)
{
    if (product->m == 0 || product->n == 0)
        return DECANT_OK;
    if (product->m > INT_MAX || product->n > INT_MAX || product->k > INT_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "%s: a dimension is beyond what cuBLAS takes", what);
    const float scale = product->scale != 0 ? product->scale : 1.0f, beta = product->accumulate ? 1.0f : 0.0f;
    cublasHandle_t blas = decant_cuda_of(backend)->blas;
    cublasOperation_t a_operation = product->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t b_operation = product->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cudaDataType type = type_of(product->element), c_type = type_of(product->c_element);
    const cublasComputeType_t compute = product->tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    int m = (int)product->m, n = (int)product->n, k = (int)product->k;
    cublasStatus_t code;
    if (product->batch <= 1)
        code = cublasGemmEx(blas, b_operation, a_operation, n, m, k, &scale, product->b, type,
                            (int)product->b_stride, product->a, type, (int)product->a_stride, &beta, product->c,
                            c_type, (int)product->c_stride, compute, CUBLAS_GEMM_DEFAULT);
    else
        code = cublasGemmStridedBatchedEx(blas, b_operation, a_operation, n, m, k, &scale, product->b, type,
                                          (int)product->b_stride, product->b_batch, product->a, type,
                                          (int)product->a_stride, product->a_batch, &beta, product->c, c_type,
                                          (int)product->c_stride, product->c_batch, (int)product->batch,
                                          compute, CUBLAS_GEMM_DEFAULT);
    return decant_cublas_check(code, what, err);
}
