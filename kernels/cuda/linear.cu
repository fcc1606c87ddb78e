/* Linear layers: y = x weightᵀ and dx = dy weight, one product each. */
#include "kernels/cuda/operations.h"

/* The weight in the activations' type; one that was placed otherwise (a single row is F32) goes through
 * scratch. */
static decant_status as_activation(decant_backend *backend, decant_matrix *weight, decant_error *err)
{
    if (weight->element == backend->activation)
        return DECANT_OK;
    decant_matrix converted = *weight;
    converted.element = backend->activation;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, decant_matrix_bytes(converted), &converted.data, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_convert(backend, decant_cuda_of(backend)->stream, weight->element,
                                                 weight->data, converted.element, converted.data,
                                                 weight->rows * weight->columns, err));
    *weight = converted;
    return DECANT_OK;
}

decant_status decant_cuda_linear(decant_backend *backend, decant_matrix x, decant_matrix weight,
                                 bool accumulate, decant_matrix y, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(as_activation(backend, &weight, err));
    decant_cuda_product product = {
        .m = x.rows,
        .n = weight.rows,
        .k = weight.columns,
        .element = x.element,
        .a = x.data,
        .a_stride = x.columns,
        .b = weight.data,
        .b_stride = weight.columns,
        .b_transposed = true,
        .accumulate = accumulate,
        .c = y.data,
        .c_element = y.element,
        .c_stride = y.columns,
    };
    return decant_cuda_multiply(backend, &product, "linear", err);
}

decant_status decant_cuda_linear_backward(decant_backend *backend, decant_matrix dy, decant_matrix weight,
                                          bool accumulate, decant_matrix dx, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(as_activation(backend, &weight, err));
    decant_cuda_product product = {
        .m = dy.rows,
        .n = weight.columns,
        .k = weight.rows,
        .element = dy.element,
        .a = dy.data,
        .a_stride = dy.columns,
        .b = weight.data,
        .b_stride = weight.columns,
        .accumulate = accumulate,
        .c = dx.data,
        .c_element = dx.element,
        .c_stride = dx.columns,
    };
    return decant_cuda_multiply(backend, &product, "linear_backward", err);
}
