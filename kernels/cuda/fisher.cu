/* Fisher sums of a linear layer, one sequence at a time.
 *
 * The sequence form needs G = dYᵀ X [out, in], squared and added: F += G∘G. What it must cost, for LLaMA-7B
 * (6.5 · 10⁹ weights, T tokens) on an H100 that multiplies at 790 TFLOP/s and moves 3.0 TB/s:
 *
 *     the product                    2 · T · 6.5 · 10⁹ operations    8 ms at T = 512, 34 ms at T = 2048
 *     F, read once and written once  8 · 6.5 · 10⁹ bytes             17 ms
 *
 * so short sequences are bound by F and long ones by the product. Three ways are here:
 *
 *     tiles   cuBLAS writes rows of G into a scratch tile small enough to stay in the L2 cache, and a kernel
 *             reads the tile from there, squares and adds. G never reaches device memory, but the two steps
 *             take turns: the times above add up to 25 and 51 ms, with two launches a tile.
 *
 *     mma     One kernel (fisher_mma.cu): G in registers, F read and written once in its epilogue; two blocks
 *             on a multiprocessor overlap one's epilogue with the other's product. On Hopper mma.sync reaches
 *             about half of the rate above, so 17 and 68 ms; on Ampere it is the full rate.
 *
 *     wgmma   The same with Hopper's own instructions (fisher_wgmma.cu): 17 and 34 ms, plus what of the
 *             epilogue stays exposed.
 *
 * "tiles" is the default, what odd widths and F32 activations always take, and the fastest of the three as they
 * are now: on an H100 at T = 2048 it takes 1.7 to 2.9 times less than the others (tests/gpu/RESULTS.md).
 *
 * The token form (dY∘dY)ᵀ(X∘X) is one product of squares that adds straight into F. In BF16 a square is rounded
 * to 8 bits, an independent relative error of at most 2⁻⁹ a term in a sum of T positive terms; its exponent has
 * F32's range, so gradients down to 1e-19 keep a normal square. */
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/operations.h"

enum {
    THREADS = 256,
    VECTOR = 4,            /* floats in sixteen bytes */
    TILE_BYTES = 17 << 20, /* of G: a third of an H100's L2 cache, and one wave of blocks of 128 × 256 on it */
    TILE_ROWS_MULTIPLE = 128, /* rows of a cuBLAS block */
};

/* ---- the sequence form by tiles ---- */

/* fisher += gradient², count elements. */
template <int N>
__global__ void __launch_bounds__(THREADS)
    add_squares_kernel(const float *gradient, float *fisher, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float gradients[N], sums[N];
    decant_load(gradient + i, gradients);
    decant_load(fisher + i, sums);
#pragma unroll
    for (int j = 0; j < N; j++)
        sums[j] += gradients[j] * gradients[j];
    decant_store(fisher + i, sums);
}

static decant_status add_squares(decant_backend *backend, const float *gradient, float *fisher, int64_t count,
                                 decant_error *err)
{
    cudaStream_t stream = decant_cuda_of(backend)->stream;
    bool vectors = decant_has_vectors<float>(count, gradient, fisher);
    int64_t per_block = (int64_t)THREADS * (vectors ? VECTOR : 1);
    unsigned blocks = (unsigned)((count + per_block - 1) / per_block);
    if (vectors)
        add_squares_kernel<VECTOR><<<blocks, THREADS, 0, stream>>>(gradient, fisher, count);
    else
        add_squares_kernel<1><<<blocks, THREADS, 0, stream>>>(gradient, fisher, count);
    return decant_cuda_launched(backend, "add_squares", err);
}

static int64_t tile_rows(int64_t rows, int64_t columns)
{
    int64_t fit = TILE_BYTES / ((int64_t)sizeof(float) * columns);
    fit = fit / TILE_ROWS_MULTIPLE * TILE_ROWS_MULTIPLE;
    if (fit < TILE_ROWS_MULTIPLE)
        fit = TILE_ROWS_MULTIPLE;
    return fit < rows ? fit : rows;
}

static decant_status add_by_tiles(decant_backend *backend, decant_matrix dy, decant_matrix x, float *fisher,
                                  decant_error *err)
{
    const int64_t rows = dy.columns, columns = x.columns, at_once = tile_rows(rows, columns);
    void *tile;
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_scratch(backend, (size_t)(at_once * columns) * sizeof(float), &tile, err));
    for (int64_t row = 0; row < rows; row += at_once) {
        int64_t count = rows - row < at_once ? rows - row : at_once;
        decant_cuda_product product = {
            .m = count,
            .n = columns,
            .k = x.rows,
            .element = x.element,
            .a = (const char *)dy.data + (size_t)row * decant_element_bytes(dy.element),
            .a_stride = rows,
            .a_transposed = true,
            .b = x.data,
            .b_stride = columns,
            .c = tile,
            .c_element = DECANT_F32,
            .c_stride = columns,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "fisher_add", err));
        DECANT_RETURN_ON_FAILURE(
            add_squares(backend, (const float *)tile, fisher + row * columns, count * columns, err));
    }
    return DECANT_OK;
}

/* ---- the token form ---- */

template <typename T, int N>
__global__ void __launch_bounds__(THREADS) square_kernel(const T *source, T *target, int64_t count)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * N;
    if (i >= count)
        return;
    float values[N];
    decant_load(source + i, values);
#pragma unroll
    for (int j = 0; j < N; j++)
        values[j] *= values[j];
    decant_store(target + i, values);
}

static decant_status square(decant_backend *backend, decant_matrix source, void *target, decant_error *err)
{
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        const int N = DECANT_VECTOR<T>;
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        int64_t count = source.rows * source.columns;
        const T *values = (const T *)source.data;
        T *squares = (T *)target;
        bool vectors = decant_has_vectors<T>(count, values, squares);
        int64_t per_block = (int64_t)THREADS * (vectors ? N : 1);
        unsigned blocks = (unsigned)((count + per_block - 1) / per_block);
        if (vectors)
            square_kernel<T, N><<<blocks, THREADS, 0, stream>>>(values, squares, count);
        else
            square_kernel<T, 1><<<blocks, THREADS, 0, stream>>>(values, squares, count);
        return decant_cuda_launched(backend, "square", err);
    });
}

static decant_status add_by_tokens(decant_backend *backend, decant_matrix dy, decant_matrix x, float *fisher,
                                   decant_error *err)
{
    size_t total = 0;
    size_t dy_at = decant_scratch_reserve(&total, decant_matrix_bytes(dy));
    size_t x_at = decant_scratch_reserve(&total, decant_matrix_bytes(x));
    void *scratch;
    DECANT_RETURN_ON_FAILURE(decant_cuda_scratch(backend, total, &scratch, err));
    void *dy_squares = (char *)scratch + dy_at, *x_squares = (char *)scratch + x_at;
    DECANT_RETURN_ON_FAILURE(square(backend, dy, dy_squares, err));
    DECANT_RETURN_ON_FAILURE(square(backend, x, x_squares, err));
    dy.data = dy_squares;
    x.data = x_squares;
    if (decant_cuda_fisher_has_wgmma(backend, dy, x, fisher))
        return decant_cuda_fisher_wgmma(backend, dy, x, false, fisher, err);
    decant_cuda_product product = {
        .m = dy.columns,
        .n = x.columns,
        .k = x.rows,
        .element = x.element,
        .a = dy.data,
        .a_stride = dy.columns,
        .a_transposed = true,
        .b = x.data,
        .b_stride = x.columns,
        .accumulate = true,
        .c = fisher,
        .c_element = DECANT_F32,
        .c_stride = x.columns,
    };
    return decant_cuda_multiply(backend, &product, "fisher_add", err);
}

/* ---- the choice ---- */

decant_status decant_cuda_fisher_add(decant_backend *backend, decant_fisher_form form, decant_matrix dy,
                                     decant_matrix x, float *fisher, decant_error *err)
{
    if (x.rows == 0)
        return DECANT_OK;
    if (form == DECANT_FISHER_TOKEN)
        return add_by_tokens(backend, dy, x, fisher, err);
    return decant_cuda_fisher_has_wgmma(backend, dy, x, fisher)
               ? decant_cuda_fisher_wgmma(backend, dy, x, true, fisher, err)
               : add_by_tiles(backend, dy, x, fisher, err);
}
