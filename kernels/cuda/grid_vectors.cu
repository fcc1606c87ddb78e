/* y = x ŵᵀ for up to four rotated tokens: a warp owns a row of ŵ at a time and a lane every 32nd octet of
 * its codes, which is looked up once and meets all tokens. The points lie in shared memory, F16 for BF16
 * activations, which keep fewer bits. Sums are in F32: a lane's columns in order, then the warp's fixed tree.
 */
#include "kernels/cuda/grid_octet.cuh"

enum { THREADS = 256, WARPS = THREADS / DECANT_WARP, BLOCKS_A_MULTIPROCESSOR = 4 };

/* How points are kept beside activations of type T. */
template <typename T> struct point_type {
    using type = __half;
};
template <> struct point_type<float> {
    using type = float;
};

/* The arguments of a launch. `vectors`: rows of x can be read sixteen bytes at a time. */
template <typename T> struct vectors_args {
    decant_grid_view view;
    const T *x;
    T *y;
    int tokens;
    bool vectors, accumulate;
};

/* N consecutive elements of a row of x; zeros beyond the last column. */
template <typename T, int N>
static __device__ __forceinline__ void load_columns(const T *row, int column, int columns, bool vectors,
                                                    float (&values)[N])
{
    if (vectors && column + N <= columns) {
        decant_load(row + column, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        values[i] = column + i < columns ? decant_to_float(row[column + i]) : 0.0f;
}

/* sums[r][t] += Σ over this lane's octets of ŵ · x. */
template <typename T, int TOKENS, int P, int ROWS, typename Point>
static __device__ __forceinline__ void add_products(const vectors_args<T> &args, const Point *table,
                                                    const int (&rows)[ROWS], float (&sums)[ROWS][TOKENS])
{
    const decant_grid_view &view = args.view;
    const int octets = (view.codes + DECANT_OCTET - 1) / DECANT_OCTET;
    for (int octet = threadIdx.x % DECANT_WARP; octet < octets; octet += DECANT_WARP) {
        float weights[ROWS][DECANT_OCTET * P];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            decant_grid_octet<P>(view, table, rows[r], octet, weights[r]);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= args.tokens)
                continue;
            float values[DECANT_OCTET * P];
            load_columns(args.x + (int64_t)t * view.columns, octet * DECANT_OCTET * P, view.columns,
                         args.vectors, values);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < DECANT_OCTET * P; i++)
                    sums[r][t] += weights[r][i] * values[i];
        }
    }
}

template <typename T, int TOKENS, int P, int ROWS>
__global__ void __launch_bounds__(THREADS) vectors_kernel(const vectors_args<T> args)
{
    using Point = typename point_type<T>::type;
    extern __shared__ float4 shared[];
    Point *table = (Point *)shared;
    const int lane = threadIdx.x % DECANT_WARP, warp = threadIdx.x / DECANT_WARP, row_count = args.view.rows;
    for (int i = threadIdx.x; i < P << args.view.code_bits; i += THREADS)
        table[i] = decant_from_float<Point>(args.view.points[i]);
    __syncthreads();
    for (int first = (blockIdx.x * WARPS + warp) * ROWS; first < row_count; first += gridDim.x * WARPS * ROWS) {
        int rows[ROWS]; /* the last row again where there is one too many; its sums are not stored */
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            rows[r] = min(first + r, row_count - 1);
        float sums[ROWS][TOKENS] = {};
        add_products<T, TOKENS, P, ROWS>(args, table, rows, sums);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float sum = decant_warp_sum(sums[r][t]);
                if (lane != t || t >= args.tokens || first + r >= row_count)
                    continue;
                T *target = args.y + (int64_t)t * row_count + rows[r];
                *target = decant_from_float<T>(args.accumulate ? decant_to_float(*target) + sum : sum);
            }
    }
}

template <typename T, int TOKENS, int P>
static decant_status launch(decant_backend *backend, const vectors_args<T> &args, decant_error *err)
{
    const int ROWS = TOKENS > 1 && P <= 2 ? 2 : 1; /* of a warp: what fits the registers and pays */
    const decant_cuda *cuda = decant_cuda_of(backend);
    decant_row_place table = {};
    table.shared_bytes = ((size_t)P << args.view.code_bits) * sizeof(typename point_type<T>::type);
    DECANT_RETURN_ON_FAILURE(decant_allow_shared(vectors_kernel<T, TOKENS, P, ROWS>, table, err));
    const int wanted = (args.view.rows + WARPS * ROWS - 1) / (WARPS * ROWS);
    const int blocks = min(wanted, cuda->multiprocessors * BLOCKS_A_MULTIPROCESSOR);
    vectors_kernel<T, TOKENS, P, ROWS><<<(unsigned)blocks, THREADS, table.shared_bytes, cuda->stream>>>(args);
    return decant_cuda_launched(backend, "grid vectors", err);
}

decant_status decant_cuda_grid_vectors(decant_backend *backend, decant_matrix x,
                                       const decant_grid_matrix *matrix, const float *points, bool accumulate,
                                       decant_matrix y, decant_error *err)
{
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        vectors_args<T> args;
        args.view = decant_grid_view_of(matrix, points);
        args.x = (const T *)x.data;
        args.y = (T *)y.data;
        args.tokens = (int)x.rows;
        args.vectors = x.columns % DECANT_OCTET == 0 && decant_has_vectors<T>(x.columns, x.data);
        args.accumulate = accumulate;
        return decant_by_dimension(args.view.dimension, [&](auto dimension) {
            const int P = decltype(dimension)::value;
            if (x.rows == 1)
                return launch<T, 1, P>(backend, args, err);
            return launch<T, DECANT_GRID_VECTORS_MAXIMUM, P>(backend, args, err);
        });
    });
}
