/* y = x ŵᵀ for up to sixteen tokens: each code is looked up once, where it is read, and meets all tokens. A
 * warp owns two rows; a lane owns every 32nd octet of their columns, so that x is read sixteen bytes a lane
 * side by side, and once for both rows. Sums are in F32: a lane's columns in order, then the warp's fixed tree.
 *
 * Up to 32 levels live in the lanes themselves and a lookup is a shuffle, which has no bank conflicts: lane i
 * holds level i % 2^bits, so whatever stands above a code's bits does no harm. More levels go to shared memory.
 *
 * For F32 activations, and rows of x that cannot be read sixteen bytes at a time; packed_mma.cu takes the rest.
 */
#include "kernels/cuda/packed.cuh"

enum { THREADS = 128, WARPS = THREADS / DECANT_WARP, ROWS = 2 /* of a warp */, SHUFFLE_BITS = 5 };

/* The levels of a warp's rows: of ROWS registers in each lane, or of a piece of shared memory. */
template <bool WIDE> struct level_table {
    float own[ROWS];
    const float *shared; /* [ROWS, DECANT_LEVELS_MAXIMUM] */
};

template <bool WIDE>
static __device__ __forceinline__ float level_of(const level_table<WIDE> &table, int row, uint32_t codes,
                                                 int place)
{
    uint32_t code = codes >> 8 * place;
    if constexpr (WIDE)
        return table.shared[row * DECANT_LEVELS_MAXIMUM + (int)(code & 255u)];
    else
        return __shfl_sync(DECANT_ALL_LANES, table.own[row], (int)code);
}

/* All lanes of a warp call this together. */
template <bool WIDE>
static __device__ __forceinline__ level_table<WIDE> load_levels(const decant_packed_view &packed,
                                                                const int (&rows)[ROWS], float *shared)
{
    const int lane = threadIdx.x % DECANT_WARP, count = 1 << packed.bits;
    level_table<WIDE> table = {};
    table.shared = shared;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const __half *levels = packed.levels + (int64_t)rows[r] * count;
        if constexpr (WIDE) {
            for (int i = lane; i < count; i += DECANT_WARP)
                shared[r * DECANT_LEVELS_MAXIMUM + i] = __half2float(levels[i]);
        } else {
            table.own[r] = __half2float(levels[lane & (count - 1)]);
        }
    }
    __syncwarp();
    return table;
}

/* Eight columns of a row of x; zeros beyond the last. */
template <typename T>
static __device__ __forceinline__ void load_octet(const T *row, int column, int columns, bool vectors,
                                                  float (&values)[DECANT_OCTET])
{
    if (vectors && column < columns) {
        decant_load(row + column, values);
        return;
    }
#pragma unroll
    for (int i = 0; i < DECANT_OCTET; i++)
        values[i] = column + i < columns ? decant_to_float(row[column + i]) : 0.0f;
}

/* The dense part: sums[r][t] += Σ over this lane's columns of level · x. */
template <typename T, int TOKENS, bool WIDE>
static __device__ __forceinline__ void add_dense(const decant_packed_view &packed, const int (&rows)[ROWS],
                                                 const level_table<WIDE> &table, const T *x, int tokens,
                                                 bool vectors, float (&sums)[ROWS][TOKENS])
{
    const int octets = (packed.columns + DECANT_OCTET - 1) / DECANT_OCTET;
#pragma unroll(TOKENS == 1 ? 4 : 1)
    for (int base = 0; base < octets;
         base += DECANT_WARP) { /* every lane takes every turn: lookups are shuffles */
        const int octet = base + (int)threadIdx.x % DECANT_WARP;
        float levels[ROWS][DECANT_OCTET];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            uint2 codes = {0, 0};
            if (octet < octets)
                codes =
                    decant_octet_codes(decant_row_planes(packed, rows[r]), packed.bits, packed.order, octet);
#pragma unroll
            for (int i = 0; i < DECANT_OCTET / 2; i++) {
                levels[r][i] = level_of(table, r, codes.x, i);
                levels[r][i + 4] = level_of(table, r, codes.y, i);
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            if (t >= tokens)
                continue;
            float values[DECANT_OCTET];
            load_octet(x + (int64_t)t * packed.columns, octet * DECANT_OCTET, packed.columns, vectors, values);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int i = 0; i < DECANT_OCTET; i++)
                    sums[r][t] += levels[r][i] * values[i];
        }
    }
}

/* The sparse part. A row has no more entries than columns, so the longest row costs its warp little more than
 * the dense part did: the rows need no balancing. */
template <typename T, int TOKENS>
static __device__ __forceinline__ void add_sparse(const decant_packed_view &packed, const int (&rows)[ROWS],
                                                  const T *x, int tokens, float (&sums)[ROWS][TOKENS])
{
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const uint32_t end = packed.row_offsets[rows[r] + 1];
        for (uint32_t i = packed.row_offsets[rows[r]] + threadIdx.x % DECANT_WARP; i < end; i += DECANT_WARP) {
            float value = __half2float(packed.sparse_values[i]);
            const T *own = x + packed.sparse_columns[i];
#pragma unroll
            for (int t = 0; t < TOKENS; t++)
                if (t < tokens)
                    sums[r][t] += value * decant_to_float(own[(int64_t)t * packed.columns]);
        }
    }
}

/* Lane r · TOKENS + t writes the sum of row r and token t. */
template <typename T, int TOKENS>
static __device__ __forceinline__ void store_sums(const float (&sums)[ROWS][TOKENS], int first_row,
                                                  int row_count, int tokens, bool accumulate, T *y)
{
    static_assert(ROWS * TOKENS <= DECANT_WARP, "a lane for every sum");
    const int lane = threadIdx.x % DECANT_WARP;
    float own = 0;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float sum = decant_warp_sum(sums[r][t]);
            own = lane == r * TOKENS + t ? sum : own;
        }
    const int row = first_row + lane / TOKENS, token = lane % TOKENS;
    if (lane >= ROWS * TOKENS || row >= row_count || token >= tokens)
        return;
    T *target = y + (int64_t)token * row_count + row;
    *target = decant_from_float<T>(accumulate ? decant_to_float(*target) + own : own);
}

template <typename T, int TOKENS, bool WIDE>
__global__ void __launch_bounds__(THREADS)
    packed_vectors_kernel(const decant_packed_view packed, const T *x, int tokens, bool sparse, bool vectors,
                          bool accumulate, T *y)
{
    __shared__ float shared[WIDE ? WARPS * ROWS * DECANT_LEVELS_MAXIMUM : 1];
    const int warp = threadIdx.x / DECANT_WARP, first_row = ((int)blockIdx.x * WARPS + warp) * ROWS;
    if (first_row >= packed.rows)
        return;
    int rows[ROWS]; /* the last row again where a warp has one too many; its sums are not stored */
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        rows[r] = min(first_row + r, packed.rows - 1);
    level_table<WIDE> table =
        load_levels<WIDE>(packed, rows, shared + (WIDE ? warp * ROWS * DECANT_LEVELS_MAXIMUM : 0));
    float sums[ROWS][TOKENS] = {};
    add_dense<T, TOKENS, WIDE>(packed, rows, table, x, tokens, vectors, sums);
    if (sparse)
        add_sparse<T, TOKENS>(packed, rows, x, tokens, sums);
    store_sums<T, TOKENS>(sums, first_row, packed.rows, tokens, accumulate, y);
}

/* The arguments of a launch. */
typedef struct vectors_call {
    decant_packed_view packed;
    const void *x;
    void *y;
    int tokens;
    bool sparse, vectors, accumulate;
} vectors_call;

template <typename T, int TOKENS> static void launch(cudaStream_t stream, const vectors_call &call)
{
    unsigned blocks = (unsigned)((call.packed.rows + WARPS * ROWS - 1) / (WARPS * ROWS));
    const T *x = (const T *)call.x;
    T *y = (T *)call.y;
    if (call.packed.bits <= SHUFFLE_BITS)
        packed_vectors_kernel<T, TOKENS, false><<<blocks, THREADS, 0, stream>>>(
            call.packed, x, call.tokens, call.sparse, call.vectors, call.accumulate, y);
    else
        packed_vectors_kernel<T, TOKENS, true><<<blocks, THREADS, 0, stream>>>(
            call.packed, x, call.tokens, call.sparse, call.vectors, call.accumulate, y);
}

decant_status decant_cuda_packed_vectors(decant_backend *backend, decant_matrix x,
                                         const decant_packed_matrix *packed, bool sparse, bool accumulate,
                                         decant_matrix y, decant_error *err)
{
    vectors_call call = {decant_packed_view_of(packed), x.data, y.data, (int)x.rows, sparse, false, accumulate};
    return decant_by_activation(backend, [&](auto activation) {
        using T = decltype(activation);
        cudaStream_t stream = decant_cuda_of(backend)->stream;
        call.vectors = x.columns % DECANT_OCTET == 0 && decant_has_vectors<T>(x.columns, x.data);
        if (x.rows == 1)
            launch<T, 1>(stream, call);
        else if (x.rows <= 4)
            launch<T, 4>(stream, call);
        else
            launch<T, DECANT_PACKED_VECTORS_MAXIMUM>(stream, call);
        return decant_cuda_launched(backend, "packed_vectors", err);
    });
}
