/* The Hessians of a linear layer that guided quantization takes: H_k += xᵀ diag(s_k) x, where s_k[t] is the
 * mean over the group's output channels of dy[t]². Source: GuidedQuant (arXiv 2505.07004), section 3.
 *
 * Both factors of the product are x scaled by sqrt(s_k) and rounded to the activations' type, so what is added
 * is an exact Gram matrix, positive semidefinite whatever the rounding; with F32 sums. In BF16 that rounding
 * moves an element by at most 2⁻⁷ sqrt(H_ii H_jj); as it is independent from token to token, by far less in a
 * sum of many: bench_guided prints how far, 6 · 10⁻⁴ of it over 2048 tokens. Scaling one factor alone would be
 * rounded half as much and give that property up.
 *
 * cuBLAS multiplies strips from the diagonal to the right, a kernel transposes them to below the diagonal: H is
 * symmetric to the last bit. Strips are as high as fills a GPU, so nearly half the work is saved on wide
 * layers. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum {
    THREADS = 256,
    STRIP_ROWS = 2048,
    TILE = 32, /* transposed at once */
    TILE_ROWS = 8,
};

/* ---- the scaled inputs ---- */

/* A block a token: scales[t] = sqrt(mean over the channels [first, end) of dy[t]²). */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    scale_kernel(const T *dy, int64_t channels, int64_t first, int64_t end, float *scales)
{
    __shared__ double parts[THREADS / DECANT_WARP];
    const T *own = dy + (int64_t)blockIdx.x * channels;
    double sum = 0;
    for (int64_t channel = first + threadIdx.x; channel < end; channel += THREADS) {
        const double g = decant_to_float(own[channel]);
        sum += g * g;
    }
    sum = decant_block_sum(sum, parts);
    if (threadIdx.x == 0)
        scales[blockIdx.x] = (float)sqrt(sum / (double)(end - first));
}

/* A block a token: scaled[t, :] = x[t, :] · scales[t]. */
template <typename T, int N>
static __global__ void __launch_bounds__(THREADS)
    scale_rows_kernel(const T *x, int64_t columns, const float *scales, T *scaled)
{
    const float scale = scales[blockIdx.x];
    const int64_t row = (int64_t)blockIdx.x * columns;
    for (int64_t j = (int64_t)threadIdx.x * N; j < columns; j += THREADS * N) {
        float values[N];
        decant_load(x + row + j, values);
#pragma unroll
        for (int i = 0; i < N; i++)
            values[i] *= scale;
        decant_store(scaled + row + j, values);
    }
}

static decant_status scale_rows(decant_backend *backend, decant_matrix dy, decant_matrix x, int64_t first,
                                int64_t end, float *scales, void *scaled, decant_error *err)
{
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        const cudaStream_t stream = decant_cuda_of(backend)->stream;
        const unsigned blocks = (unsigned)x.rows;
        const T *inputs = (const T *)x.data;
        T *target = (T *)scaled;
        scale_kernel<<<blocks, THREADS, 0, stream>>>((const T *)dy.data, dy.columns, first, end, scales);
        DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "gram_add, scales", err));
        if (decant_has_vectors<T>(x.columns, inputs, target))
            scale_rows_kernel<T, N><<<blocks, THREADS, 0, stream>>>(inputs, x.columns, scales, target);
        else
            scale_rows_kernel<T, 1><<<blocks, THREADS, 0, stream>>>(inputs, x.columns, scales, target);
        return decant_cuda_launched(backend, "gram_add, scaling", err);
    });
}

/* ---- the product ---- */

/* h[j, i] = h[i, j] for all j > i: a block a tile on or above the diagonal. */
static __global__ void __launch_bounds__(TILE *TILE_ROWS) mirror_kernel(float *h, int n)
{
    __shared__ float tile[TILE][TILE + 1];
    const int row = (int)blockIdx.y * TILE, column = (int)blockIdx.x * TILE;
    if (column < row)
        return;
    const int x = (int)threadIdx.x;
    for (int y = (int)threadIdx.y; y < TILE; y += TILE_ROWS)
        if (row + y < n && column + x < n)
            tile[y][x] = h[(int64_t)(row + y) * n + column + x];
    __syncthreads();
    for (int y = (int)threadIdx.y; y < TILE; y += TILE_ROWS)
        if (row + x < column + y && column + y < n)
            h[(int64_t)(column + y) * n + row + x] = tile[x][y];
}

/* hessian += scaledᵀ scaled */
static decant_status add_product(decant_backend *backend, decant_matrix scaled, float *hessian,
                                 decant_error *err)
{
    const int64_t n = scaled.columns;
    const size_t bytes = decant_element_bytes(scaled.element);
    for (int64_t first = 0; first < n; first += STRIP_ROWS) {
        const decant_cuda_product product = {
            .m = n - first < STRIP_ROWS ? n - first : STRIP_ROWS,
            .n = n - first,
            .k = scaled.rows,
            .element = scaled.element,
            .a = (const char *)scaled.data + (size_t)first * bytes,
            .a_stride = n,
            .a_transposed = true,
            .b = (const char *)scaled.data + (size_t)first * bytes,
            .b_stride = n,
            .accumulate = true,
            .c = hessian + first * n + first,
            .c_element = DECANT_F32,
            .c_stride = n,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "gram_add", err));
    }
    const unsigned tiles = (unsigned)((n + TILE - 1) / TILE);
    mirror_kernel<<<dim3(tiles, tiles), dim3(TILE, TILE_ROWS), 0, decant_cuda_of(backend)->stream>>>(hessian,
                                                                                                     (int)n);
    return decant_cuda_launched(backend, "gram_add, mirror", err);
}

decant_status decant_cuda_gram_add(decant_backend *backend, decant_matrix dy, decant_matrix x, int groups,
                                   float *hessian, decant_error *err)
{
    if (x.rows == 0 || x.columns == 0)
        return DECANT_OK;
    size_t total = 0;
    const size_t scales_at = decant_scratch_reserve(&total, (size_t)x.rows * sizeof(float));
    const size_t scaled_at = decant_scratch_reserve(&total, decant_matrix_bytes(x));
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    float *scales = (float *)((char *)scratch + scales_at);
    const decant_matrix scaled = {(char *)scratch + scaled_at, x.element, x.rows, x.columns};
    for (int group = 0; group < groups; group++) {
        const int64_t first = decant_hessian_group_first(dy.columns, groups, group);
        const int64_t end = decant_hessian_group_first(dy.columns, groups, group + 1);
        if (first == end)
            continue;
        DECANT_RETURN_ON_FAILURE(scale_rows(backend, dy, x, first, end, scales, scaled.data, err));
        DECANT_RETURN_ON_FAILURE(add_product(backend, scaled, hessian + group * x.columns * x.columns, err));
    }
    return DECANT_OK;
}
