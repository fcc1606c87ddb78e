/* Weights on their way to the device. A weight placed exact keeps the type of its file. One placed for compute
 * takes the type that products run in, BF16 or, with full floats, F32; a weight of a single row (the scale of a
 * norm) is read element by element and becomes F32 either way.
 *
 * Uploads have a stream of their own: a weight that is placed while the device still works on what was issued
 * before arrives beside that work. */
#include "kernels/cuda/context.h"

static decant_element placed_element(const decant_backend *backend, decant_matrix host,
                                     decant_placement placement)
{
    if (placement == DECANT_PLACE_EXACT)
        return host.element;
    return host.rows == 1 ? DECANT_F32 : backend->activation;
}

/* Piece by piece: the file's bytes arrive in the staging memory, and the device converts them from there. */
static decant_status send_converted(decant_backend *backend, decant_matrix host, decant_matrix device,
                                    decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    if (!context->upload_staging)
        DECANT_RETURN_ON_FAILURE(decant_cuda_acquire(context, context->upload_stream, DECANT_BULK_BYTES,
                                                     "staging of weights", &context->upload_staging, err));
    size_t host_bytes = decant_element_bytes(host.element), device_bytes = decant_element_bytes(device.element);
    int64_t count = host.rows * host.columns, at_once = (int64_t)(DECANT_BULK_BYTES / host_bytes);
    for (int64_t first = 0; first < count; first += at_once) {
        int64_t length = count - first < at_once ? count - first : at_once;
        DECANT_RETURN_ON_FAILURE(decant_cuda_send(context, context->upload_stream, context->upload_staging,
                                                  (const char *)host.data + (size_t)first * host_bytes,
                                                  (size_t)length * host_bytes, err));
        DECANT_RETURN_ON_FAILURE(decant_cuda_convert(
            backend, context->upload_stream, host.element, context->upload_staging, device.element,
            (char *)device.data + (size_t)first * device_bytes, length, err));
    }
    return DECANT_OK;
}

static decant_status send_weight(decant_backend *backend, decant_matrix host, decant_matrix device,
                                 decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    if (host.element == device.element)
        DECANT_RETURN_ON_FAILURE(decant_cuda_send(context, context->upload_stream, device.data, host.data,
                                                  decant_matrix_bytes(host), err));
    else
        DECANT_RETURN_ON_FAILURE(send_converted(backend, host, device, err));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaEventRecord(context->uploaded, context->upload_stream), "an upload", err));
    return decant_cuda_check(cudaStreamWaitEvent(context->shared.stream, context->uploaded, 0), "an upload",
                             err);
}

static decant_status weights_place(decant_backend *backend, decant_matrix host, decant_placement placement,
                                   const char *what, decant_matrix *device, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    decant_matrix placed = host;
    placed.data = NULL;
    placed.element = placed_element(backend, host, placement);
    *device = placed;
    DECANT_RETURN_ON_FAILURE(decant_cuda_acquire(context, context->upload_stream, decant_matrix_bytes(placed),
                                                 what, &placed.data, err));
    decant_status status = send_weight(backend, host, placed, err);
    if (status != DECANT_OK) {
        cudaStreamSynchronize(context->upload_stream); /* a piece may still be on its way there */
        decant_cuda_release(context, &placed.data);
        return status;
    }
    *device = placed;
    return DECANT_OK;
}

static void weights_unplace(decant_backend *backend, decant_matrix *device)
{
    decant_cuda_release(decant_cuda_context_of(backend), &device->data);
}

extern const decant_weight_kernels decant_cuda_weight_kernels = {.place = weights_place,
                                                                 .unplace = weights_unplace};
