/* y = x ŵᵀ for up to sixteen rotated tokens: a warp owns a row of ŵ at a time and a lane every 32nd octet of
 * its codes, which is looked up once and meets all tokens. The points lie in shared memory, F16 for BF16
 * activations, which keep fewer bits. Sums are in F32: a lane's columns in order, then the warp's fixed tree.
 */
#include "kernels/cuda/grid.cuh"
#include "kernels/cuda/packed.cuh"

enum { THREADS = 256, WARPS = THREADS / DECANT_WARP, BLOCKS_A_MULTIPROCESSOR = 4 };

/* How points are kept beside activations of type T. */
template <typename T> struct point_type {
    using type = __half;
};
template <> struct point_type<float> {
    using type = float;
};

template <int P>
static __device__ __forceinline__ void load_point(const __half *table, uint32_t code, float (&q)[P])
{
    if constexpr (P == 2 || P == 4) {
#pragma unroll
        for (int i = 0; i < P / 2; i++) {
            const float2 pair = __half22float2(((const __half2 *)table)[code * (P / 2) + i]);
            q[2 * i] = pair.x;
            q[2 * i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < P; i++)
            q[i] = __half2float(table[code * P + i]);
    }
}

template <int P>
static __device__ __forceinline__ void load_point(const float *table, uint32_t code, float (&q)[P])
{
#pragma unroll
    for (int i = 0; i < P; i++)
        q[i] = table[code * P + i];
}

/* The arguments of a launch. `whole_groups`: the codes of an octet share a scale. `vectors`: rows of x can be
 * read sixteen bytes at a time. */
template <typename T> struct vectors_args {
    decant_grid_view view;
    const T *x;
    T *y;
    int tokens;
    bool whole_groups, vectors, accumulate;
};

/* What the eight codes of an octet stand for. */
template <int P, typename T, typename Point>
static __device__ __forceinline__ void decode_octet(const vectors_args<T> &args, const Point *table, int row,
                                                    int octet, float (&values)[DECANT_OCTET * P])
{
    const decant_grid_view &view = args.view;
    const uint32_t *planes = view.planes + (int64_t)row * view.code_bits * view.words;
    const int low_bits = min(view.code_bits, 8), last = view.codes - 1;
    const uint2 low = decant_octet_codes(planes, low_bits, view.words, octet);
    uint2 high = {0, 0};
    if (view.code_bits > 8)
        high = decant_octet_codes(planes + 8 * view.words, view.code_bits - 8, view.words, octet);
    float2 scale = decant_grid_scale_of(view, row, min(octet * DECANT_OCTET, last));
#pragma unroll
    for (int c = 0; c < DECANT_OCTET; c++) {
        const int shift = 8 * (c % 4);
        const uint32_t code =
            ((c < 4 ? low.x : low.y) >> shift & 255u) | ((c < 4 ? high.x : high.y) >> shift & 255u) << 8;
        if (!args.whole_groups)
            scale = decant_grid_scale_of(view, row, min(octet * DECANT_OCTET + c, last));
        float q[P];
        load_point<P>(table, code, q);
#pragma unroll
        for (int i = 0; i < P; i++)
            values[c * P + i] = decant_grid_value(q[i], scale.x, scale.y);
    }
}

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

template <typename T, int TOKENS, int P>
__global__ void __launch_bounds__(THREADS) vectors_kernel(const vectors_args<T> args)
{
    using Point = typename point_type<T>::type;
    extern __shared__ float4 shared[];
    Point *table = (Point *)shared;
    const decant_grid_view &view = args.view;
    const int lane = threadIdx.x % DECANT_WARP, octets = (view.codes + DECANT_OCTET - 1) / DECANT_OCTET;
    for (int i = threadIdx.x; i < P << view.code_bits; i += THREADS)
        table[i] = decant_from_float<Point>(view.points[i]);
    __syncthreads();
    for (int row = blockIdx.x * WARPS + threadIdx.x / DECANT_WARP; row < view.rows; row += gridDim.x * WARPS) {
        float sums[TOKENS] = {};
        for (int octet = lane; octet < octets; octet += DECANT_WARP) {
            float weights[DECANT_OCTET * P];
            decode_octet<P>(args, table, row, octet, weights);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                if (t >= args.tokens)
                    continue;
                float values[DECANT_OCTET * P];
                load_columns(args.x + (int64_t)t * view.columns, octet * DECANT_OCTET * P, view.columns,
                             args.vectors, values);
#pragma unroll
                for (int i = 0; i < DECANT_OCTET * P; i++)
                    sums[t] += weights[i] * values[i];
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const float sum = decant_warp_sum(sums[t]);
            if (lane != t || t >= args.tokens)
                continue;
            T *target = args.y + (int64_t)t * view.rows + row;
            *target = decant_from_float<T>(args.accumulate ? decant_to_float(*target) + sum : sum);
        }
    }
}

template <typename T, int TOKENS, int P>
static decant_status launch(decant_backend *backend, const vectors_args<T> &args, decant_error *err)
{
    const decant_cuda *cuda = decant_cuda_of(backend);
    decant_row_place table = {};
    table.shared_bytes = ((size_t)P << args.view.code_bits) * sizeof(typename point_type<T>::type);
    DECANT_RETURN_ON_FAILURE(decant_allow_shared(vectors_kernel<T, TOKENS, P>, table, err));
    const int wanted = (args.view.rows + WARPS - 1) / WARPS;
    const int blocks = min(wanted, cuda->multiprocessors * BLOCKS_A_MULTIPROCESSOR);
    vectors_kernel<T, TOKENS, P><<<(unsigned)blocks, THREADS, table.shared_bytes, cuda->stream>>>(args);
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
        args.whole_groups =
            args.view.groups == 1 || args.view.group % (DECANT_OCTET * args.view.dimension) == 0;
        args.vectors = x.columns % DECANT_OCTET == 0 && decant_has_vectors<T>(x.columns, x.data);
        args.accumulate = accumulate;
        return decant_by_dimension(args.view.dimension, [&](auto dimension) {
            const int P = decltype(dimension)::value;
            if (x.rows == 1)
                return launch<T, 1, P>(backend, args, err);
            if (x.rows <= 4)
                return launch<T, 4, P>(backend, args, err);
            return launch<T, DECANT_GRID_VECTORS_MAXIMUM, P>(backend, args, err);
        });
    });
}
