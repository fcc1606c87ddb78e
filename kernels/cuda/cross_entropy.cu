/* Mean cross-entropy of next-token prediction, and its gradient (softmax − one-hot) / (T − 1), which takes the
 * place of the logits. One block a row; exponentials are added in F32, losses in F64. The loss is the one
 * figure of a sequence that the host waits for. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

#include <cmath>

enum { THREADS = 512 };

/* share is 1 / (T − 1), or 0 when the logits are to stay; the last row predicts nothing. */
template <typename T, int N>
__global__ void __launch_bounds__(THREADS)
    cross_entropy_kernel(T *logits, int columns, const int32_t *tokens, float share, double *losses)
{
    __shared__ float parts[THREADS / DECANT_WARP];
    T *row = logits + (int64_t)blockIdx.x * columns;
    const bool predicts = blockIdx.x + 1 < gridDim.x;
    const int target = predicts ? tokens[blockIdx.x + 1] : -1;
    const float target_logit = predicts ? decant_to_float(row[target]) : 0.0f;
    float maximum = -INFINITY, sum = 0, values[N];
    for (int i = threadIdx.x * N; predicts && i < columns; i += THREADS * N) {
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++)
            maximum = fmaxf(maximum, values[j]);
    }
    maximum = decant_block_maximum(maximum, parts);
    for (int i = threadIdx.x * N; predicts && i < columns; i += THREADS * N) {
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += expf(values[j] - maximum);
    }
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0 && predicts)
        losses[blockIdx.x] = log((double)sum) + (double)maximum - (double)target_logit;
    if (share == 0)
        return;
    const float scale = predicts ? share / sum : 0.0f;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        decant_load(row + i, values);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float probability = predicts ? expf(values[j] - maximum) * scale : 0.0f;
            values[j] = i + j == target ? probability - share : probability;
        }
        decant_store(row + i, values);
    }
}

template <typename T>
static void launch(cudaStream_t stream, decant_matrix logits, const int32_t *tokens, float share,
                   double *losses)
{
    T *data = (T *)logits.data;
    unsigned rows = (unsigned)logits.rows;
    int columns = (int)logits.columns;
    if (decant_has_vectors<T>(columns, data))
        cross_entropy_kernel<T, DECANT_VECTOR<T>>
            <<<rows, THREADS, 0, stream>>>(data, columns, tokens, share, losses);
    else
        cross_entropy_kernel<T, 1><<<rows, THREADS, 0, stream>>>(data, columns, tokens, share, losses);
}

decant_status decant_cuda_cross_entropy(decant_backend *backend, decant_matrix logits, const int32_t *tokens,
                                        bool gradient, double *loss, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    cudaStream_t stream = context->shared.stream;
    int64_t targets = logits.rows - 1;
    *loss = 0;
    if (targets < 1) /* a single token predicts nothing: no loss, no gradient */
        return gradient
                   ? decant_cuda_memory_kernels.zero(backend, logits.data, decant_matrix_bytes(logits), err)
                   : DECANT_OK;
    size_t total = 0, tokens_bytes = (size_t)logits.rows * sizeof *tokens;
    size_t tokens_at = decant_scratch_reserve(&total, tokens_bytes);
    size_t losses_at = decant_scratch_reserve(&total, (size_t)targets * sizeof(double));
    size_t sum_at = decant_scratch_reserve(&total, sizeof(double));
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &memory, err));
    char *scratch = (char *)memory;
    int32_t *list = (int32_t *)(scratch + tokens_at);
    double *losses = (double *)(scratch + losses_at), sum;
    DECANT_RETURN_ON_FAILURE(decant_cuda_send(context, stream, list, tokens, tokens_bytes, err));
    float share = gradient ? (float)(1.0 / (double)targets) : 0.0f;
    DECANT_RETURN_ON_FAILURE(decant_by_element(logits.element, [&](auto element) {
        launch<decltype(element)>(stream, logits, list, share, losses);
        return decant_cuda_launched(backend, "cross_entropy", err);
    }));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_sum_rows(backend, losses, 1, targets, (double *)(scratch + sum_at), &sum, err));
    *loss = sum / (double)targets;
    return DECANT_OK;
}
