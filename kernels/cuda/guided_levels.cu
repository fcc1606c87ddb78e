/* Guided quantization's levels: of every row, the least-squares solution under its codes. With P the codes as
 * a matrix of zeros and ones, [columns, levels], the change Δ of the levels solves
 *
 *     Pᵀ (H + λ) P Δ = Pᵀ (H + λ) δ.
 *
 * Pᵀ H is one product for many rows, on tensor cores: P is exact in BF16, and H is cut into two BF16 numbers.
 * What remains is adding its columns by their codes, and a small system a row, in F64. Solving for the change,
 * not for the levels, keeps the rounding of the sums small against what is sought. */
#include "kernels/cuda/guided.cuh"
#include "kernels/cuda/operations.h"
#include "kernels/level_grid.h"

enum {
    THREADS = 256,
    MOST_LEVELS = 1 << DECANT_BITS_MAXIMUM,
    VECTOR = 8,           /* codes in eight bytes, BF16 numbers in sixteen */
    COLLECT_WARPS = 8,    /* at most */
    COLLECT_LEVELS = 256, /* of all warps of a block together */
    SHARED_LEVELS = 64,   /* whose matrix a block keeps in shared memory */
    ONE_BF16 = 0x3f80,    /* the bits of 1 */
};

/* Consecutive rows of one group whose equations are made together. */
struct row_batch {
    int group, first, rows;
};

/* ---- Pᵀ H ---- */

/* A block a row: Pᵀ. N columns a thread. */
template <int N>
static __global__ void __launch_bounds__(THREADS) one_hot_kernel(decant_cuda_guided g, int first)
{
    const int64_t row = first + (int64_t)blockIdx.x, columns = g.columns;
    const int levels = 1 << g.bits;
    uint16_t *target = (uint16_t *)g.one_hot + (int64_t)blockIdx.x * levels * columns;
    for (int64_t j = (int64_t)threadIdx.x * N; j < columns; j += THREADS * N) {
        const uint32_t marks = g.marks[row * g.words + j / 32] >> j % 32;
        int codes[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            codes[i] = marks >> i & 1 ? MOST_LEVELS : g.codes[row * columns + j + i];
        for (int level = 0; level < levels; level++) {
            union {
                uint4 whole;
                uint16_t bits[VECTOR];
            } vector;
#pragma unroll
            for (int i = 0; i < N; i++)
                vector.bits[i] = codes[i] == level ? ONE_BF16 : 0;
            if constexpr (N == VECTOR)
                *(uint4 *)(target + level * columns + j) = vector.whole;
            else
                target[level * columns + j] = vector.bits[0];
        }
    }
}

static decant_status make_one_hot(decant_backend *backend, const decant_cuda_guided *g, row_batch batch,
                                  decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    if (g->columns % VECTOR == 0)
        one_hot_kernel<VECTOR><<<(unsigned)batch.rows, THREADS, 0, stream>>>(*g, batch.first);
    else
        one_hot_kernel<1><<<(unsigned)batch.rows, THREADS, 0, stream>>>(*g, batch.first);
    return decant_cuda_launched(backend, "guide, codes as a matrix", err);
}

/* level_sums [rows · levels, width] = Pᵀ H of the columns [first, first + width). */
static decant_status sum_by_level(decant_backend *backend, const decant_cuda_guided *g, row_batch batch,
                                  int first, int width, decant_error *err)
{
    const int64_t columns = g->columns;
    const __nv_bfloat16 *hessian = g->hessian_parts + (batch.group * columns + first) * columns;
    for (int part = DECANT_GUIDED_PARTS - 1; part >= 0; part--) { /* the smallest first */
        const decant_cuda_product product = {
            .m = (int64_t)batch.rows << g->bits,
            .n = width,
            .k = columns,
            .element = DECANT_BF16,
            .a = g->one_hot,
            .a_stride = columns,
            .b = hessian + part * g->groups * columns * columns, /* H is symmetric */
            .b_stride = columns,
            .b_transposed = true,
            .accumulate = part != DECANT_GUIDED_PARTS - 1,
            .c = g->level_sums,
            .c_element = DECANT_F32,
            .c_stride = DECANT_GUIDED_PANEL,
        };
        DECANT_RETURN_ON_FAILURE(decant_cuda_multiply(backend, &product, "guide, levels", err));
    }
    return DECANT_OK;
}

/* ---- the normal equations ---- */

/* A warp a level of a row: adds its row of Pᵀ(H + λ)P, and its number of Pᵀ(H + λ)δ, of the columns of a panel.
 * Each lane sums by codes for itself; sums of lanes are added in a fixed order. */
static __global__ void __launch_bounds__(COLLECT_WARPS *DECANT_WARP)
    collect_kernel(decant_cuda_guided g, row_batch batch, int first, int width)
{
    extern __shared__ float shared_sums[];
    const int lane = (int)threadIdx.x % DECANT_WARP, levels = 1 << g.bits;
    const int64_t index = (int64_t)blockIdx.x * (blockDim.x / DECANT_WARP) + threadIdx.x / DECANT_WARP;
    float *sums = shared_sums + threadIdx.x / DECANT_WARP * levels * DECANT_WARP;
    if (index >= (int64_t)batch.rows << g.bits)
        return;
    const int64_t row = batch.first + (index >> g.bits), place = row * g.columns + first;
    const int level = (int)(index & (levels - 1));
    const float *level_sums = g.level_sums + index * DECANT_GUIDED_PANEL;
    const uint32_t *marks = g.marks + row * g.words + first / 32;
    const double damping = g.damping[batch.group];
    double right = 0;
    int count = 0;
    for (int d = 0; d < levels; d++)
        sums[d * DECANT_WARP + lane] = 0;
    for (int j = lane; j < width; j += DECANT_WARP) {
        if (marks[j / 32] >> lane & 1)
            continue;
        const int code = g.codes[place + j];
        const float sum = level_sums[j];
        const double missing = g.missing[place + j];
        sums[code * DECANT_WARP + lane] += sum;
        right += missing * (code == level ? sum + damping : (double)sum);
        count += code == level;
    }
    __syncwarp();
    count = decant_warp_sum(count);
    right = decant_warp_sum(right);
    for (int d = lane; d < levels; d += DECANT_WARP) {
        double sum = d == level ? damping * count : 0;
        for (int i = 0; i < DECANT_WARP; i++) /* each lane in another bank */
            sum += sums[d * DECANT_WARP + (i + d) % DECANT_WARP];
        g.normal[index * levels + d] += sum;
    }
    if (lane == 0)
        g.right[index] += right;
}

static decant_status collect(decant_backend *backend, const decant_cuda_guided *g, row_batch batch, int first,
                             int width, decant_error *err)
{
    const int levels = 1 << g->bits;
    const int warps = COLLECT_LEVELS / levels < COLLECT_WARPS ? COLLECT_LEVELS / levels : COLLECT_WARPS;
    const int64_t count = (int64_t)batch.rows << g->bits;
    const size_t shared_bytes = (size_t)(warps * levels * DECANT_WARP) * sizeof(float);
    collect_kernel<<<(unsigned)((count + warps - 1) / warps), (unsigned)(warps * DECANT_WARP), shared_bytes,
                     decant_cuda_of(backend)->stream>>>(*g, batch, first, width);
    return decant_cuda_launched(backend, "guide, normal equations", err);
}

static decant_status make_equations(decant_backend *backend, const decant_cuda_guided *g, row_batch batch,
                                    decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const size_t levels = (size_t)1 << g->bits, rows = (size_t)batch.rows;
    DECANT_RETURN_ON_FAILURE(decant_cuda_check(
        cudaMemsetAsync(g->normal, 0, rows * levels * levels * sizeof(double), stream), "guide", err));
    DECANT_RETURN_ON_FAILURE(
        decant_cuda_check(cudaMemsetAsync(g->right, 0, rows * levels * sizeof(double), stream), "guide", err));
    DECANT_RETURN_ON_FAILURE(make_one_hot(backend, g, batch, err));
    for (int first = 0; first < g->columns; first += DECANT_GUIDED_PANEL) {
        const int left = g->columns - first, width = left < DECANT_GUIDED_PANEL ? left : DECANT_GUIDED_PANEL;
        DECANT_RETURN_ON_FAILURE(sum_by_level(backend, g, batch, first, width, err));
        DECANT_RETURN_ON_FAILURE(collect(backend, g, batch, first, width, err));
    }
    return DECANT_OK;
}

/* ---- the systems: a block a row, a thread a level ---- */

/* What the threads of a row tell each other. */
struct row_system {
    double pivots[MOST_LEVELS]; /* squared */
    double solution[MOST_LEVELS], change[MOST_LEVELS];
    float level[MOST_LEVELS];
    double parts[MOST_LEVELS / DECANT_WARP];
};

/* matrix = (A + Aᵀ) / 2: rounding made the two halves of A differ in the last bits. */
static __device__ void make_symmetric(double *matrix, int count, int i)
{
    for (int j = i + 1; j < count; j++) {
        const double middle = 0.5 * (matrix[j * count + i] + matrix[i * count + j]);
        matrix[j * count + i] = matrix[i * count + j] = middle;
    }
    __syncthreads();
}

/* A = UᵀU into the upper triangle; the lower one keeps A. false, in all threads, when A is not positive
 * definite. */
static __device__ bool factorize(double *matrix, double diagonal, int count, int i, row_system &system)
{
    if (i == 0)
        system.pivots[0] = diagonal;
    __syncthreads();
    for (int k = 0; k < count; k++) {
        const double pivot = system.pivots[k];
        if (!(pivot > 0))
            return false;
        if (i > k && i < count) {
            double sum = matrix[k * count + i];
            for (int s = 0; s < k; s++)
                sum -= matrix[s * count + k] * matrix[s * count + i];
            sum /= sqrt(pivot);
            matrix[k * count + i] = sum;
            diagonal -= sum * sum;
            if (i == k + 1)
                system.pivots[i] = diagonal;
        }
        __syncthreads();
    }
    return true;
}

/* solution = A⁻¹ right */
static __device__ void substitute(const double *matrix, double right, int count, int i, row_system &system)
{
    for (int k = 0; k < count; k++) {
        if (i == k)
            system.solution[k] = right / sqrt(system.pivots[k]);
        __syncthreads();
        if (i > k && i < count)
            right -= matrix[k * count + i] * system.solution[k];
    }
    right = i < count ? system.solution[i] : 0;
    for (int k = count - 1; k >= 0; k--) {
        if (i == k)
            system.solution[k] = right / sqrt(system.pivots[k]);
        __syncthreads();
        if (i < k)
            right -= matrix[i * count + k] * system.solution[k];
    }
}

/* ΔᵀAΔ − 2 Δᵀb: what the objective changes by. */
static __device__ double change_of_objective(const double *matrix, double diagonal, double right, int count,
                                             int i, row_system &system)
{
    double sum = 0;
    if (i < count) {
        double half = 0.5 * diagonal * system.change[i];
        for (int j = i + 1; j < count; j++)
            half += matrix[j * count + i] * system.change[j];
        sum = 2 * system.change[i] * (half - right);
    }
    return decant_block_sum(sum, system.parts);
}

/* Each thread's level as it can be stored. */
static __device__ uint16_t round_level(double wanted, int count, int i, row_system &system)
{
    if (!decant_levels_are_bytes(count))
        return finite_f16(wanted);
    wanted = decant_level_clamped(wanted);
    if (i < count)
        system.change[i] = fabs(wanted);
    __syncthreads();
    double largest = 0;
    for (int j = 0; j < count; j++)
        largest = fmax(largest, system.change[j]);
    __syncthreads(); /* before `change` gets what it is for */
    return finite_f16(decant_level_rounded(wanted, decant_level_exponent(largest)));
}

/* Levels as they would be, rounded; where each goes in ascending order. */
static __device__ int place_of(const row_system &system, int count, int i)
{
    int place = 0;
    for (int j = 0; j < count; j++)
        place += system.level[j] < system.level[i] || (system.level[j] == system.level[i] && j < i);
    return place;
}

/* matrix: shared memory for few levels, else nullptr, and the equations are solved where they are. */
static __device__ void solve_row(const decant_cuda_guided &g, int64_t in_batch, int64_t row, double stride,
                                 double *matrix, row_system &system)
{
    const int i = (int)threadIdx.x, count = 1 << g.bits;
    double *normal = g.normal + in_batch * count * count;
    uint16_t *levels = g.packed.levels + (row << g.bits);
    uint8_t *places = g.places + (in_batch << g.bits);
    if (i < count)
        places[i] = (uint8_t)i;
    for (int at = i; matrix && at < count * count; at += (int)blockDim.x)
        matrix[at] = normal[at];
    __syncthreads();
    matrix = matrix ? matrix : normal;
    double diagonal = i < count ? matrix[i * count + i] : 1;
    double right = i < count ? g.right[(in_batch << g.bits) + i] : 0;
    if (diagonal == 0) { /* no weight has this level */
        diagonal = 1;
        right = 0;
    }
    make_symmetric(matrix, count, i);
    if (!factorize(matrix, diagonal, count, i, system))
        return;
    substitute(matrix, right, count, i, system);
    const double level = i < count ? decant_guided_level(levels, i) : 0;
    const double wanted = level + (i < count ? stride * system.solution[i] : 0);
    const uint16_t rounded = round_level(wanted, count, i, system);
    if (i < count) {
        system.level[i] = __half2float(__ushort_as_half(rounded));
        system.change[i] = system.level[i] - level;
    }
    __syncthreads();
    if (!(change_of_objective(matrix, diagonal, right, count, i, system) < 0) || i >= count)
        return;
    const int place = place_of(system, count, i);
    levels[place] = rounded;
    places[i] = (uint8_t)place;
}

static __global__ void __launch_bounds__(MOST_LEVELS)
    solve_kernel(decant_cuda_guided g, int first, double stride)
{
    extern __shared__ double shared_matrix[];
    __shared__ row_system system;
    const int64_t in_batch = blockIdx.x;
    solve_row(g, in_batch, first + in_batch, stride, 1 << g.bits <= SHARED_LEVELS ? shared_matrix : nullptr,
              system);
}

/* A block a row: codes go where their levels have gone, and δ follows. */
static __global__ void __launch_bounds__(THREADS) follow_kernel(decant_cuda_guided g, int first)
{
    __shared__ uint8_t places[MOST_LEVELS];
    __shared__ float values[MOST_LEVELS];
    const int64_t row = first + (int64_t)blockIdx.x, n = g.columns;
    for (int i = (int)threadIdx.x; i < 1 << g.bits; i += THREADS) {
        places[i] = g.places[((int64_t)blockIdx.x << g.bits) + i];
        values[i] = decant_guided_level(g.packed.levels + (row << g.bits), i);
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += THREADS) {
        const int64_t at = row * n + j;
        const int code = places[g.codes[at]];
        g.codes[at] = (uint8_t)code;
        if (!(g.marks[row * g.words + j / 32] >> j % 32 & 1))
            decant_guided_set_missing(g, at, weight_at(g.weight.data, g.weight.element, at) - values[code]);
    }
}

static decant_status solve(decant_backend *backend, const decant_cuda_guided *g, row_batch batch, double stride,
                           decant_error *err)
{
    const cudaStream_t stream = decant_cuda_of(backend)->stream;
    const int levels = 1 << g->bits, threads = levels > DECANT_WARP ? levels : DECANT_WARP;
    const size_t shared_bytes =
        levels <= SHARED_LEVELS ? (size_t)(levels * levels) * sizeof(double) : sizeof(double);
    solve_kernel<<<(unsigned)batch.rows, (unsigned)threads, shared_bytes, stream>>>(*g, batch.first, stride);
    DECANT_RETURN_ON_FAILURE(decant_cuda_launched(backend, "guide, levels", err));
    follow_kernel<<<(unsigned)batch.rows, THREADS, 0, stream>>>(*g, batch.first);
    return decant_cuda_launched(backend, "guide, codes of new levels", err);
}

decant_status decant_cuda_guided_levels(decant_backend *backend, const decant_cuda_guided *g, double stride,
                                        decant_error *err)
{
    for (int group = 0; group < g->groups; group++) {
        const int end = (int)decant_hessian_group_first(g->rows, g->groups, group + 1);
        row_batch batch = {group, (int)decant_hessian_group_first(g->rows, g->groups, group), 0};
        for (; batch.first < end; batch.first += batch.rows) {
            batch.rows = end - batch.first < g->at_once ? end - batch.first : g->at_once;
            DECANT_RETURN_ON_FAILURE(make_equations(backend, g, batch, err));
            DECANT_RETURN_ON_FAILURE(solve(backend, g, batch, stride, err));
        }
    }
    return DECANT_OK;
}
