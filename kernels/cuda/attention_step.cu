/* Attention of one more token over keys and values that were kept. Where the token stands is known on the
 * device alone, so that the same launches serve every token of a recording.
 *
 * The keys that it sees are cut into pieces, so that a single sequence keeps the device busy: a block takes one
 * piece of one head, blocks of pieces that are not there yet leave at once, and a second kernel puts the pieces
 * of a head together, in their order. Source: Dao et al., "Flash-Decoding" (2023). */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

#include <cmath>

enum { THREADS = 128, WARPS = THREADS / DECANT_WARP, PIECE = 32, KEYS = PIECE / WARPS };

/* The shares of pieces are read several at once, also where fewer are left: there is room for a whole reading.
 */
enum { SHARES_AT_ONCE = 8 };
enum { PIECES_MAXIMUM = 12288 - SHARES_AT_ONCE }; /* whose shares fit the memory that every launch may have */

/* Of a piece: its largest score, the sum of e^(score − largest), and Σ e^(score − largest) v. */
enum { MAXIMUM, SUM, WEIGHTED };

/* The keys that a token sees: [first, first + count). window 0: all up to it. */
struct seen_keys {
    int first, count;
    __device__ seen_keys(int position, int window)
        : first(window > 0 && position >= window ? position - window + 1 : 0), count(position + 1 - first)
    {
    }
};

template <typename T>
__global__ void __launch_bounds__(THREADS)
    keep_kernel(const T *k, const T *v, int columns, const int32_t *position, T *keys, T *values)
{
    const int column = blockIdx.x * THREADS + threadIdx.x;
    const int64_t row = (int64_t)*position * columns;
    if (column >= columns)
        return;
    keys[row + column] = k[column];
    values[row + column] = v[column];
}

/* Every piece of a head has WEIGHTED + dimension floats of `pieces` [heads, gridDim.y]. A warp takes KEYS keys
 * at once, so that their loads are under way together; behind the last key it takes that one again, for
 * nothing. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_piece_kernel(const T *q, const T *keys, const T *values, const int32_t *position, int window,
                           int group, int dimension, int stride, float scale, float *pieces)
{
    extern __shared__ float query[]; /* [dimension] */
    __shared__ float scores[PIECE], parts[WARPS];
    const int head = blockIdx.x, lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP;
    const seen_keys seen(*position, window);
    const int before = blockIdx.y * PIECE, count = min(PIECE, seen.count - before);
    if (count <= 0)
        return;
    const int64_t offset = (int64_t)(seen.first + before) * stride + head / group * dimension;
    const T *own_keys = keys + offset, *own_values = values + offset;
    float *piece = pieces + ((int64_t)head * gridDim.y + blockIdx.y) * (WEIGHTED + dimension);
    for (int i = threadIdx.x; i < dimension; i += THREADS)
        query[i] = decant_to_float(q[(int64_t)head * dimension + i]) * scale;
    __syncthreads();
    float dots[KEYS] = {0};
#pragma unroll 4
    for (int i = lane; i < dimension; i += DECANT_WARP)
#pragma unroll
        for (int j = 0; j < KEYS; j++)
            dots[j] +=
                query[i] * decant_to_float(own_keys[(int64_t)min(j * WARPS + warp, count - 1) * stride + i]);
#pragma unroll
    for (int j = 0; j < KEYS; j++) {
        dots[j] = decant_warp_sum(dots[j]);
        if (lane == 0)
            scores[j * WARPS + warp] = dots[j];
    }
    __syncthreads();
    const float own = (int)threadIdx.x < count ? scores[threadIdx.x] : -INFINITY;
    const float maximum = decant_block_maximum(own, parts);
    const float exponential = (int)threadIdx.x < count ? expf(own - maximum) : 0.0f;
    const float sum = decant_block_sum(exponential, parts);
    if (threadIdx.x < PIECE)
        scores[threadIdx.x] = exponential;
    __syncthreads();
    for (int i = threadIdx.x; i < dimension; i += THREADS) {
        float weighted = 0;
#pragma unroll 16
        for (int key = 0; key < PIECE; key++)
            weighted += scores[key] * decant_to_float(own_values[(int64_t)min(key, count - 1) * stride + i]);
        piece[WEIGHTED + i] = weighted;
    }
    if (threadIdx.x == 0) {
        piece[MAXIMUM] = maximum;
        piece[SUM] = sum;
    }
}

/* `room`: pieces of a head that there is memory for. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    attention_join_kernel(const float *pieces, int room, const int32_t *position, int window, int dimension,
                          T *y)
{
    extern __shared__ float shares[]; /* [room]: e^(largest of the piece − largest of all) */
    __shared__ float parts[WARPS];
    const seen_keys seen(*position, window);
    const int piece_count = (seen.count + PIECE - 1) / PIECE;
    const int64_t piece_floats = WEIGHTED + dimension;
    const float *own = pieces + (int64_t)blockIdx.x * room * piece_floats;
    float maximum = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < piece_count; i += THREADS)
        maximum = fmaxf(maximum, own[i * piece_floats + MAXIMUM]);
    maximum = decant_block_maximum(maximum, parts);
    for (int i = threadIdx.x; i < piece_count; i += THREADS) {
        shares[i] = expf(own[i * piece_floats + MAXIMUM] - maximum);
        sum += shares[i] * own[i * piece_floats + SUM];
    }
    sum = decant_block_sum(sum, parts); /* every share is in place now */
    for (int column = threadIdx.x; column < dimension; column += THREADS) {
        float weighted = 0;
#pragma unroll SHARES_AT_ONCE
        for (int i = 0; i < piece_count; i++)
            weighted += shares[i] * own[i * piece_floats + WEIGHTED + column];
        y[(int64_t)blockIdx.x * dimension + column] = decant_from_float<T>(weighted / sum);
    }
}

decant_status decant_cuda_attention_step(decant_backend *backend, const decant_attention_shape *shape,
                                         decant_matrix q, decant_matrix k, decant_matrix v, decant_matrix keys,
                                         decant_matrix values, const int32_t *position, decant_matrix y,
                                         decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    const int dimension = shape->head_dimension, group = shape->heads / shape->key_value_heads;
    const int window = (int)shape->window, columns = (int)k.columns;
    const int64_t most_keys = window > 0 && window < keys.rows ? window : keys.rows;
    const int room = (int)((most_keys + PIECE - 1) / PIECE);
    const float scale = (float)(1.0 / sqrt((double)dimension));
    const size_t share_bytes =
        (size_t)((room + SHARES_AT_ONCE - 1) / SHARES_AT_ONCE * SHARES_AT_ONCE) * sizeof(float);
    size_t scratch_bytes = (size_t)shape->heads * (size_t)room * (size_t)(WEIGHTED + dimension) * sizeof(float);
    void *scratch;
    if (room > PIECES_MAXIMUM)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "attention over %lld kept tokens; a GPU takes up to %d",
                            (long long)most_keys, PIECES_MAXIMUM * PIECE);
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, scratch_bytes, &scratch, err));
    float *pieces = (float *)scratch;
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        T *kept_keys = (T *)keys.data, *kept_values = (T *)values.data;
        keep_kernel<T><<<(unsigned)((columns + THREADS - 1) / THREADS), THREADS, 0, stream>>>(
            (const T *)k.data, (const T *)v.data, columns, position, kept_keys, kept_values);
        attention_piece_kernel<T>
            <<<dim3((unsigned)shape->heads, (unsigned)room), THREADS, (size_t)dimension * sizeof(float),
               stream>>>((const T *)q.data, kept_keys, kept_values, position, window, group, dimension, columns,
                         scale, pieces);
        attention_join_kernel<T><<<(unsigned)shape->heads, THREADS, share_bytes, stream>>>(
            pieces, room, position, window, dimension, (T *)y.data);
        return decant_cuda_launched(backend, "attention_step", err);
    });
}
