/* What two models' logits say about the same sequence: one block a row, then sums over the rows.
 *
 * With a and b the logits and A, B their log-sum-exp:  KL(p ‖ q) = Σ p (a − b) − A + B, p = e^(a − A). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

#include <cmath>

enum { THREADS = 512, WARPS = THREADS / DECANT_WARP };

/* The figures of a row, each an array of its own over the rows. */
enum { LOSS_ORIGINAL, LOSS_QUANTIZED, DIVERGENCE, SAME_TOP, FIGURES };

/* The largest logit so far and the lowest place that holds it. */
typedef struct top {
    float value;
    int index;
} top;

static __device__ __forceinline__ top higher(top a, top b)
{
    return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

static __device__ __forceinline__ top warp_top(top best)
{
#pragma unroll
    for (int offset = DECANT_WARP / 2; offset > 0; offset /= 2) {
        top other = {__shfl_xor_sync(DECANT_ALL_LANES, best.value, offset),
                     __shfl_xor_sync(DECANT_ALL_LANES, best.index, offset)};
        best = higher(best, other);
    }
    return best;
}

static __device__ __forceinline__ top block_top(top best, top *parts)
{
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    best = warp_top(best);
    if (lane == 0)
        parts[warp] = best;
    __syncthreads();
    best = warp_top(parts[lane % WARPS]);
    __syncthreads();
    return best;
}

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) compare_kernel(const T *original, const T *quantized, int columns,
                                                          const int32_t *tokens, int64_t rows, double *figures)
{
    __shared__ top tops[WARPS];
    __shared__ double parts[WARPS];
    const T *a = original + (int64_t)blockIdx.x * columns, *b = quantized + (int64_t)blockIdx.x * columns;
    top a_top = {-INFINITY, columns}, b_top = a_top;
    float a_values[N], b_values[N];
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        decant_load(a + i, a_values);
        decant_load(b + i, b_values);
#pragma unroll
        for (int j = 0; j < N; j++) {
            a_top = higher(a_top, {a_values[j], i + j});
            b_top = higher(b_top, {b_values[j], i + j});
        }
    }
    a_top = block_top(a_top, tops);
    b_top = block_top(b_top, tops);
    float a_sum = 0, b_sum = 0, weighted = 0;
    for (int i = threadIdx.x * N; i < columns; i += THREADS * N) {
        decant_load(a + i, a_values);
        decant_load(b + i, b_values);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float exponential = expf(a_values[j] - a_top.value);
            a_sum += exponential;
            b_sum += expf(b_values[j] - b_top.value);
            weighted += exponential * (a_values[j] - b_values[j]);
        }
    }
    double a_total = decant_block_sum((double)a_sum, parts), b_total = decant_block_sum((double)b_sum, parts);
    double weighted_total = decant_block_sum((double)weighted, parts);
    if (threadIdx.x > 0)
        return;
    const int target = tokens[blockIdx.x + 1];
    double a_lse = log(a_total) + (double)a_top.value, b_lse = log(b_total) + (double)b_top.value;
    double *own = figures + blockIdx.x;
    own[LOSS_ORIGINAL * rows] = a_lse - (double)decant_to_float(a[target]);
    own[LOSS_QUANTIZED * rows] = b_lse - (double)decant_to_float(b[target]);
    own[DIVERGENCE * rows] = weighted_total / a_total - a_lse + b_lse;
    own[SAME_TOP * rows] = a_top.index == b_top.index ? 1.0 : 0.0;
}

template <typename T>
static void launch(cudaStream_t stream, decant_matrix original, decant_matrix quantized, const int32_t *tokens,
                   int64_t targets, double *figures)
{
    const T *a = (const T *)original.data, *b = (const T *)quantized.data;
    unsigned blocks = (unsigned)targets;
    int columns = (int)original.columns;
    if (decant_has_vectors<T>(columns, a, b))
        compare_kernel<T, DECANT_VECTOR<T>>
            <<<blocks, THREADS, 0, stream>>>(a, b, columns, tokens, targets, figures);
    else
        compare_kernel<T, 1><<<blocks, THREADS, 0, stream>>>(a, b, columns, tokens, targets, figures);
}

decant_status decant_cuda_compare(decant_backend *backend, decant_matrix original, decant_matrix quantized,
                                  const int32_t *tokens, decant_comparison *comparison, decant_error *err)
{
    decant_cuda_context *context = decant_cuda_context_of(backend);
    cudaStream_t stream = context->shared.stream;
    int64_t targets = original.rows - 1;
    *comparison = {};
    if (targets < 1)
        return DECANT_OK;
    size_t total = 0, tokens_bytes = (size_t)original.rows * sizeof *tokens;
    size_t tokens_at = decant_scratch_reserve(&total, tokens_bytes);
    size_t figures_at = decant_scratch_reserve(&total, FIGURES * (size_t)targets * sizeof(double));
    size_t sums_at = decant_scratch_reserve(&total, FIGURES * sizeof(double));
    void *memory;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &memory, err));
    char *scratch = (char *)memory;
    int32_t *list = (int32_t *)(scratch + tokens_at);
    double *figures = (double *)(scratch + figures_at), sums[FIGURES];
    DECANT_RETURN_ON_FAILURE(decant_cuda_send(context, stream, list, tokens, tokens_bytes, err));
    DECANT_RETURN_ON_FAILURE(decant_by_activation(backend, [&](auto activation) {
        launch<decltype(activation)>(stream, original, quantized, list, targets, figures);
        return decant_cuda_launched(backend, "compare", err);
    }));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_sum_rows(backend, figures, FIGURES, targets, (double *)(scratch + sums_at), sums, err));
    comparison->loss_original = sums[LOSS_ORIGINAL];
    comparison->loss_quantized = sums[LOSS_QUANTIZED];
    comparison->divergence = sums[DIVERGENCE];
    comparison->same_top = (int64_t)sums[SAME_TOP];
    comparison->targets = targets;
    return DECANT_OK;
}
