/* y += x Sᵀ by cuSPARSE, S the CSR part of a packed matrix. cuSPARSE multiplies a sparse matrix from the left,
 * so it is asked for yᵀ += S xᵀ: a row-major [T, n] array is a column-major [n, T] one. It wants one type for S
 * and x, so the F16 values are converted to the activations' type. CSR_ALG3 is the algorithm with the same bits
 * in every run. */
#include "kernels/cuda/operations.h"

static cudaDataType type_of(const decant_backend *backend)
{
    return backend->activation == DECANT_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

/* cuSPARSE's views of the three arrays. */
typedef struct sparse_views {
    cusparseSpMatDescr_t s;
    cusparseDnMatDescr_t x, y;
} sparse_views;

static void close_views(sparse_views *views)
{
    if (views->s)
        cusparseDestroySpMat(views->s);
    if (views->x)
        cusparseDestroyDnMat(views->x);
    if (views->y)
        cusparseDestroyDnMat(views->y);
}

static decant_status open_views(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed,
                                void *values, decant_matrix y, sparse_views *views, decant_error *err)
{
    const char *what = "describing the sparse part";
    cudaDataType type = type_of(backend);
    DECANT_RETURN_ON_FAILURE(decant_cusparse_check(
        cusparseCreateCsr(&views->s, packed->rows, packed->columns, packed->sparse.count,
                          packed->sparse.row_offsets, packed->sparse.columns, values, CUSPARSE_INDEX_32I,
                          CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, type),
        what, err));
    DECANT_RETURN_ON_FAILURE(decant_cusparse_check(
        cusparseCreateDnMat(&views->x, x.columns, x.rows, x.columns, x.data, type, CUSPARSE_ORDER_COL), what,
        err));
    return decant_cusparse_check(
        cusparseCreateDnMat(&views->y, y.columns, y.rows, y.columns, y.data, type, CUSPARSE_ORDER_COL), what,
        err);
}

/* The product itself; scratch holds the converted values, then cuSPARSE's buffer. */
static decant_status multiply(decant_backend *backend, decant_matrix x, const decant_packed_matrix *packed,
                              decant_matrix y, sparse_views *views, decant_error *err)
{
    const float one = 1.0f;
    const cusparseOperation_t plain = CUSPARSE_OPERATION_NON_TRANSPOSE;
    decant_cuda *cuda = decant_cuda_of(backend);
    size_t buffer_bytes = 0, total = 0;
    /* the size does not depend on the values, which have no place yet */
    DECANT_RETURN_ON_FAILURE(open_views(backend, x, packed, packed->sparse_values, y, views, err));
    DECANT_RETURN_ON_FAILURE(decant_cusparse_check(
        cusparseSpMM_bufferSize(cuda->sparse, plain, plain, &one, views->s, views->x, &one, views->y,
                                CUDA_R_32F, CUSPARSE_SPMM_CSR_ALG3, &buffer_bytes),
        "sizing the sparse product", err));
    size_t values_at = decant_scratch_reserve(&total, (size_t)packed->sparse.count *
                                                          decant_element_bytes(backend->activation));
    size_t buffer_at = decant_scratch_reserve(&total, buffer_bytes);
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &memory, err));
    void *values = (char *)memory + values_at, *buffer = (char *)memory + buffer_at;
    DECANT_RETURN_ON_FAILURE(decant_cuda_convert(backend, cuda->stream, DECANT_F16, packed->sparse_values,
                                                 backend->activation, values, packed->sparse.count, err));
    DECANT_RETURN_ON_FAILURE(
        decant_cusparse_check(cusparseSpMatSetValues(views->s, values), "describing the sparse part", err));
    return decant_cusparse_check(cusparseSpMM(cuda->sparse, plain, plain, &one, views->s, views->x, &one,
                                              views->y, CUDA_R_32F, CUSPARSE_SPMM_CSR_ALG3, buffer),
                                 "the sparse product", err);
}

decant_status decant_cuda_sparse_linear(decant_backend *backend, decant_matrix x,
                                        const decant_packed_matrix *packed, decant_matrix y, decant_error *err)
{
    sparse_views views = {};
    decant_status status = multiply(backend, x, packed, y, &views, err);
    close_views(&views);
    return status;
}
