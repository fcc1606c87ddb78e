/* Attention of one query over keys and values that were kept from earlier tokens. The keys are cut into pieces,
 * so that a single sequence keeps the device busy: a block takes one piece of one head, and a second kernel
 * puts the pieces of a head together, in their order. Source: Dao et al., "Flash-Decoding" (2023). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

#include <cmath>

enum { THREADS = 128, WARPS = THREADS / DECANT_WARP, PIECE = 64 };

/* Of a piece: its largest score, the sum of e^(score − largest), and Σ e^(score − largest) v. */
enum { MAXIMUM, SUM, WEIGHTED };

/* Every piece of a head has WEIGHTED + dimension floats of `pieces` [heads, gridDim.y]. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_piece_kernel(const T *q, const T *keys, const T *values, int64_t key_count, int group,
                           int dimension, int stride, float scale, float *pieces)
{
    extern __shared__ float query[]; /* [dimension] */
    __shared__ float scores[PIECE], parts[WARPS];
    const int head = blockIdx.x, lane = threadIdx.x % DECANT_WARP;
    const int64_t first = (int64_t)blockIdx.y * PIECE;
    const int count = (int)min((int64_t)PIECE, key_count - first);
    const T *own_keys = keys + first * stride + head / group * dimension;
    const T *own_values = values + first * stride + head / group * dimension;
    float *piece = pieces + ((int64_t)head * gridDim.y + blockIdx.y) * (WEIGHTED + dimension);
    for (int i = threadIdx.x; i < dimension; i += THREADS)
        query[i] = decant_to_float(q[(int64_t)head * dimension + i]) * scale;
    __syncthreads();
    for (int key = threadIdx.x / DECANT_WARP; key < count; key += WARPS) {
        float dot = 0;
        for (int i = lane; i < dimension; i += DECANT_WARP)
            dot += query[i] * decant_to_float(own_keys[(int64_t)key * stride + i]);
        dot = decant_warp_sum(dot);
        if (lane == 0)
            scores[key] = dot;
    }
    __syncthreads();
    const float own = (int)threadIdx.x < count ? scores[threadIdx.x] : -INFINITY;
    const float maximum = decant_block_maximum(own, parts);
    const float exponential = (int)threadIdx.x < count ? expf(own - maximum) : 0.0f;
    const float sum = decant_block_sum(exponential, parts);
    if ((int)threadIdx.x < count)
        scores[threadIdx.x] = exponential;
    __syncthreads();
    for (int i = threadIdx.x; i < dimension; i += THREADS) {
        float weighted = 0;
#pragma unroll 8
        for (int key = 0; key < count; key++)
            weighted += scores[key] * decant_to_float(own_values[(int64_t)key * stride + i]);
        piece[WEIGHTED + i] = weighted;
    }
    if (threadIdx.x == 0) {
        piece[MAXIMUM] = maximum;
        piece[SUM] = sum;
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_join_kernel(const float *pieces, int piece_count, int dimension, T *y)
{
    const int64_t piece_floats = WEIGHTED + dimension;
    const float *own = pieces + (int64_t)blockIdx.x * piece_count * piece_floats;
    float maximum = -INFINITY, sum = 0;
    for (int i = 0; i < piece_count; i++)
        maximum = fmaxf(maximum, own[i * piece_floats + MAXIMUM]);
    for (int i = 0; i < piece_count; i++)
        sum += expf(own[i * piece_floats + MAXIMUM] - maximum) * own[i * piece_floats + SUM];
    for (int column = threadIdx.x; column < dimension; column += THREADS) {
        float weighted = 0;
        for (int i = 0; i < piece_count; i++)
            weighted +=
                expf(own[i * piece_floats + MAXIMUM] - maximum) * own[i * piece_floats + WEIGHTED + column];
        y[(int64_t)blockIdx.x * dimension + column] = decant_from_float<T>(weighted / sum);
    }
}

decant_status decant_cuda_attention_step(decant_backend *backend, const decant_attention_shape *shape,
                                         decant_matrix q, decant_matrix keys, decant_matrix values,
                                         decant_matrix y, decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    const int dimension = shape->head_dimension, group = shape->heads / shape->key_value_heads;
    const int piece_count = (int)((keys.rows + PIECE - 1) / PIECE);
    const float scale = (float)(1.0 / sqrt((double)dimension));
    size_t scratch_bytes =
        (size_t)shape->heads * (size_t)piece_count * (size_t)(WEIGHTED + dimension) * sizeof(float);
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, scratch_bytes, &scratch, err));
    float *pieces = (float *)scratch;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        attention_piece_kernel<T>
            <<<dim3((unsigned)shape->heads, (unsigned)piece_count), THREADS, (size_t)dimension * sizeof(float),
               stream>>>((const T *)q.data, (const T *)keys.data, (const T *)values.data, keys.rows, group,
                         dimension, (int)keys.columns, scale, pieces);
        attention_join_kernel<T>
            <<<(unsigned)shape->heads, THREADS, 0, stream>>>(pieces, piece_count, dimension, (T *)y.data);
        return decant_cuda_launched(backend, "attention_step", err);
    });
}
