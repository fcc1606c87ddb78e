/* The grid table of the CUDA backend, and the cells that it keeps. */
#include "kernels/cuda/grid.h"

extern "C" {
#include "base/memory.h"
}

extern const decant_grid_kernels decant_cuda_grid_kernels = {
    .encode = decant_cuda_grid_encode,
    .prepare = decant_cuda_grid_arrange,
    .linear = decant_cuda_grid_linear,
    .decode = decant_cuda_grid_decode,
    .add_noise = decant_cuda_add_noise,
};

/* A grid that was used: its cells on the device, and its points on the host to know it by. */
struct known_grid {
    decant_grid_cells on_device;
    void *points;
};

static size_t points_bytes(int dimension, int code_bits)
{
    return ((size_t)dimension << code_bits) * sizeof(float);
}

static bool is_of(const known_grid &known, const decant_grid_form *form)
{
    return known.on_device.dimension == form->dimension && known.on_device.code_bits == form->code_bits &&
           memcmp(known.points, form->points, points_bytes(form->dimension, form->code_bits)) == 0;
}

static decant_status send_array(decant_cuda_context *context, const void *host, size_t size_bytes,
                                const void **device, decant_error *err)
{
    void *memory;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_acquire(context, context->shared.stream, size_bytes, "the cells of a grid", &memory, err));
    *device = memory;
    return decant_cuda_send(context, context->shared.stream, memory, host, size_bytes, err);
}

static decant_status send_cells(decant_cuda_context *context, const decant_grid_cells *host,
                                decant_grid_cells *device, decant_error *err)
{
    const int64_t cells = decant_grid_cells_count(host);
    *device = *host;
    DECANT_RETURN_ON_FAILURE(send_array(context, host->points, points_bytes(host->dimension, host->code_bits),
                                        (const void **)&device->points, err));
    DECANT_RETURN_ON_FAILURE(send_array(context, host->offsets, (size_t)(cells + 1) * sizeof *host->offsets,
                                        (const void **)&device->offsets, err));
    return send_array(context, host->candidates, host->offsets[cells] * sizeof *host->candidates,
                      (const void **)&device->candidates, err);
}

decant_status decant_cuda_grid_cells(decant_backend *backend, const decant_grid_form *form,
                                     decant_grid_cells *cells, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    known_grid *known = (known_grid *)context->grids, made = {};
    for (int64_t i = 0; i < context->grid_count; i++)
        if (is_of(known[i], form)) {
            *cells = known[i].on_device;
            return DECANT_OK;
        }
    DECANT_RETURN_ON_FAILURE(decant_memory_resize((size_t)(context->grid_count + 1) * sizeof *known,
                                                  "the cells of grids", &context->grids, err));
    decant_grid_cells on_host;
    DECANT_RETURN_ON_FAILURE(
        decant_grid_cells_build(form->points, form->dimension, form->code_bits, &on_host, err));
    decant_status status = send_cells(context, &on_host, &made.on_device, err);
    made.points = (void *)on_host.points;
    on_host.points = NULL;
    decant_grid_cells_free(&on_host);
    if (status != DECANT_OK) { /* the device arrays stay in the context's list */
        decant_memory_free(made.points);
        return status;
    }
    ((known_grid *)context->grids)[context->grid_count++] = made;
    *cells = made.on_device;
    return DECANT_OK;
}

void decant_cuda_grid_release(decant_cuda_context *context)
{
    for (int64_t i = 0; i < context->grid_count; i++)
        decant_memory_free(((known_grid *)context->grids)[i].points);
    decant_memory_free(context->grids);
}
