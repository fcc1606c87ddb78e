/* Weights on their way to the device. A weight placed exact keeps the type of its file. One placed for compute
 * takes the type that products run in, BF16 or, with full floats, F32; a weight of a single row (the scale of a
 * norm) is read element by element and becomes F32 either way.
 *
 * Uploads have a thread and a stream of their own: the thread copies the weight piece by piece into pinned
 * memory and issues the piece's upload, beside whatever the device and the calling thread do meanwhile. */
#include "kernels/cuda/context.h"

extern "C" {
#include "base/memory.h"
}

#include <cstdio>

/* A weight on its way. The calling thread owns it; between begin_place and finish_place its task reads it. */
struct decant_upload {
    struct decant_upload *next;
    decant_backend *backend;
    decant_matrix host, device;
    char what[128];
    cudaEvent_t arrived; /* recorded on upload_stream behind the last piece */
    decant_task task;
};

static decant_element placed_element(const decant_backend *backend, decant_matrix host,
                                     decant_placement placement)
{
    if (placement == DECANT_PLACE_EXACT)
        return host.element;
    return host.rows == 1 ? DECANT_F32 : backend->activation;
}

/* ---- on the uploading thread ---- */

/* Piece by piece: the file's bytes arrive in the staging memory, and the device converts them from there. */
static decant_status send_converted(decant_upload *upload, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(upload->backend);
    const decant_matrix host = upload->host, device = upload->device;
    size_t host_bytes = decant_element_bytes(host.element), device_bytes = decant_element_bytes(device.element);
    int64_t count = host.rows * host.columns, at_once = (int64_t)(DECANT_BULK_BYTES / host_bytes);
    for (int64_t first = 0; first < count; first += at_once) {
        int64_t length = count - first < at_once ? count - first : at_once;
        DECANT_RETURN_ON_FAILURE(decant_cuda_send_through(
            &context->weights, context->upload_stream, context->upload_staging,
            (const char *)host.data + (size_t)first * host_bytes, (size_t)length * host_bytes, err));
        DECANT_RETURN_ON_FAILURE(decant_cuda_convert(
            upload->backend, context->upload_stream, host.element, context->upload_staging, device.element,
            (char *)device.data + (size_t)first * device_bytes, length, err));
    }
    return DECANT_OK;
}

static decant_status send_weight(void *argument, decant_error *err)
{
    decant_upload *upload = (decant_upload *)argument;
    decant_cuda_context *context = decant_cuda_context_of(upload->backend);
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaSetDevice(context->shared.device), "choosing the device", err));
    if (upload->host.element == upload->device.element)
        DECANT_RETURN_ON_FAILURE(decant_cuda_send_through(&context->weights, context->upload_stream,
                                                          upload->device.data, upload->host.data,
                                                          decant_matrix_bytes(upload->host), err));
    else
        DECANT_RETURN_ON_FAILURE(send_converted(upload, err));
    return decant_cuda_check(cudaEventRecord(upload->arrived, context->upload_stream), "an upload", err);
}

/* ---- on the calling thread ---- */

/* Frees the record, whose task is done. */
static void forget_upload(decant_upload *upload)
{
    if (upload->arrived)
        cudaEventDestroy(upload->arrived);
    decant_memory_free(upload);
}

static decant_status begin_upload(decant_backend *backend, decant_matrix host, decant_matrix device,
                                  const char *what, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    void *memory;
    if (host.element != device.element && !context->upload_staging)
        DECANT_RETURN_ON_FAILURE(decant_cuda_acquire(context, context->upload_stream, DECANT_BULK_BYTES,
                                                     "staging of weights", &context->upload_staging, err));
    DECANT_RETURN_ON_FAILURE(decant_memory_allocate(sizeof(decant_upload), "an upload", &memory, err));
    decant_upload *upload = (decant_upload *)memory;
    upload->backend = backend;
    upload->host = host;
    upload->device = device;
    snprintf(upload->what, sizeof upload->what, "%s", what);
    upload->task.run = send_weight;
    upload->task.argument = upload;
    decant_status status =
        decant_cuda_check(cudaEventCreateWithFlags(&upload->arrived, cudaEventDisableTiming), "an event", err);
    if (status != DECANT_OK) {
        forget_upload(upload);
        return status;
    }
    upload->next = context->uploads;
    context->uploads = upload;
    decant_worker_submit(context->uploader, &upload->task);
    return DECANT_OK;
}

static decant_status weights_begin_place(decant_backend *backend, decant_matrix host,
                                         decant_placement placement, const char *what, decant_matrix *device,
                                         decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    *device = host;
    device->data = NULL;
    device->element = placed_element(backend, host, placement);
    DECANT_RETURN_ON_FAILURE(decant_cuda_acquire(context, context->upload_stream, decant_matrix_bytes(*device),
                                                 what, &device->data, err));
    decant_status status = begin_upload(backend, host, *device, what, err);
    if (status != DECANT_OK)
        decant_cuda_release(context, &device->data);
    return status;
}

/* Takes the record of a weight on its way off the list; NULL when it is not on its way. */
static decant_upload *take_upload(decant_cuda_context *context, const void *device)
{
    for (decant_upload **link = &context->uploads; *link; link = &(*link)->next)
        if ((*link)->device.data == device) {
            decant_upload *found = *link;
            *link = found->next;
            return found;
        }
    return NULL;
}

static decant_status weights_finish_place(decant_backend *backend, decant_matrix *device, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    decant_upload *upload = device->data ? take_upload(context, device->data) : NULL;
    if (!upload)
        return DECANT_OK;
    decant_error reason;
    decant_status status = decant_task_wait(&upload->task, &reason);
    if (status == DECANT_OK)
        status = decant_cuda_check(cudaStreamWaitEvent(context->shared.stream, upload->arrived, 0), "an upload",
                                   &reason);
    if (status != DECANT_OK) {
        DECANT_ERROR(err, status, "%s: %.380s", upload->what, reason.message);
        cudaStreamSynchronize(context->upload_stream); /* a piece may still be on its way there */
        decant_cuda_release(context, &device->data);
    }
    forget_upload(upload);
    return status;
}

static decant_status weights_place(decant_backend *backend, decant_matrix host, decant_placement placement,
                                   const char *what, decant_matrix *device, decant_error *err)
{
    DECANT_RETURN_ON_FAILURE(weights_begin_place(backend, host, placement, what, device, err));
    return weights_finish_place(backend, device, err);
}

static void weights_unplace(decant_backend *backend, decant_matrix *device)
{
    decant_error unread;
    if (weights_finish_place(backend, device, &unread) == DECANT_OK)
        decant_cuda_release(decant_cuda_context_of(backend), &device->data);
}

void decant_cuda_abandon_uploads(decant_cuda_context *context)
{
    decant_error unread;
    while (context->uploads) {
        decant_upload *upload = take_upload(context, context->uploads->device.data);
        decant_task_wait(&upload->task, &unread);
        forget_upload(upload);
    }
}

extern const decant_weight_kernels decant_cuda_weight_kernels = {
    .place = weights_place,
    .unplace = weights_unplace,
    .begin_place = weights_begin_place,
    .finish_place = weights_finish_place,
};
