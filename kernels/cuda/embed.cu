/* The rows of the embedding table that the tokens name. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum { THREADS = 256 };

/* One block a token. */
template <typename Source, typename Target, int N>
__global__ void __launch_bounds__(THREADS)
    embed_kernel(const int32_t *tokens, const Source *table, int columns, Target *y)
{
    const Source *row = table + (int64_t)tokens[blockIdx.x] * columns;
    Target *target = y + (int64_t)blockIdx.x * columns;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        float values[N];
        decant_load(row + i, values);
        decant_store(target + i, values);
    }
}

template <typename Source, typename Target>
static void embed(cudaStream_t stream, const int32_t *tokens, decant_matrix table, decant_matrix y)
{
    const int N = 8;
    unsigned blocks = (unsigned)y.rows;
    const Source *source = (const Source *)table.data;
    Target *target = (Target *)y.data;
    if (y.columns % N == 0 && decant_has_vectors<Target>(y.columns, source, target))
        embed_kernel<Source, Target, N><<<blocks, THREADS, 0, stream>>>(tokens, source, (int)y.columns, target);
    else
        embed_kernel<Source, Target, 1><<<blocks, THREADS, 0, stream>>>(tokens, source, (int)y.columns, target);
}

decant_status decant_cuda_embed(decant_backend *backend, const int32_t *tokens, decant_matrix table,
                                decant_matrix y, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    cudaStream_t stream = context->shared.stream;
    size_t tokens_bytes = (size_t)y.rows * sizeof *tokens;
    void *device_tokens;
    if (y.rows == 0)
        return DECANT_OK;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, tokens_bytes, &device_tokens, err));
    DECANT_RETURN_ON_FAILURE(decant_cuda_send(context, stream, device_tokens, tokens, tokens_bytes, err));
    return decant_by_activation(backend, [&](auto activation) {
        using Target = decltype(activation);
        const int32_t *list = (const int32_t *)device_tokens;
        if (table.element == DECANT_F32)
            embed<float, Target>(stream, list, table, y);
        else if (table.element == DECANT_F16)
            embed<__half, Target>(stream, list, table, y);
        else
            embed<__nv_bfloat16, Target>(stream, list, table, y);
        return decant_cuda_launched(backend, "embed", err);
    });
}
