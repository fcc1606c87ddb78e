/* The packed product of few tokens beside the 16-bit one: microseconds and times the speed of cuBLAS in BF16,
 * for every width, dense and with 0.45 % sparse entries, and what cuSPARSE takes for these alone.
 *
 * usage: bench_decode [--tokens 1,2,4,8,16,32] [--bits 4,3,2] [--shapes 63] [--joined 3] [--chain 8]
 *                     [--of norm] [--repeat 1000]
 *
 * shapes: a mask of those in decode_bench.cuh. joined: so many matrices of a shape are multiplied by the same x
 * at once, in BF16 as one matrix; times are of a matrix. chain: so many layers of LLaMA-7B, whose products
 * follow one another in a graph, q, k, v and gate, up at once if joined is not 1 (in BF16 one by one); times
 * are of a layer. of: the products are not of x itself but of its norm, or of a gated activation (gate), which
 * both sides make before each product; what that takes alone stands in place of cuSPARSE's. A chain with it has
 * the norms and the gated activation of a layer. repeat: so often each product is made anew, and a line tells
 * of every one that had other bits than the first time; the exit status is then 1.
 *
 * A time is the median of several replays of a CUDA graph of many launches, gaps between them included. Every
 * launch reads other copies of the weights, more bytes in all than the L2 cache holds several times. x is
 * normal with one entry in 512 thirty times as large. "error" is ‖y − y₆₄‖ / ‖y₆₄‖ over some rows, the worst of
 * all widths, dense and sparse, y₆₄ computed in double from the same bits; "rounding" is the same of y₆₄ itself
 * rounded to BF16, which is how y is stored, and "own" what a kernel adds to that, √(error² − rounding²), the
 * worst again. */
#include "kernels/cuda/packed.cuh"
#include "tests/bench/decode_bench.cuh"

extern "C" {
#include "kernels/packed_input.h"
}

#include <cmath>
#include <cstring>
#include <cuda_fp16.h>

static const double SPARSE_SHARE = 0.0045;

/* ---- what is measured ---- */

/* What products are of. */
typedef enum input_form { OF_X, OF_NORM, OF_GATE } input_form;

static const float EPSILON = 1e-5f; /* LLaMA's */

typedef struct bench : decode_bench {
    input_form of;
    void *up_data, *made_data;
    float *norm_weight, *inverse_rms;
    std::vector<__nv_bfloat16> up; /* as many as x */
    std::vector<float> norm_weight_host;
    void *pool; /* random bits: planes of every copy */
    size_t pool_bytes, weights_bytes;
    int joined; /* matrices that are multiplied at once */
    int repeat; /* how often products are made anew, to compare their bits */
    bool differs;
} bench;

/* The sparse part of all copies of a matrix. */
typedef struct sparse_copies {
    std::vector<uint32_t> offsets, columns; /* host, of every copy alike */
    std::vector<__half> values;
    std::vector<void *> device_offsets, device_columns, device_values, device_entries, device_bfloats;
} sparse_copies;

static decant_packed_input input_of(const bench *b, input_form form, int64_t tokens, int64_t columns)
{
    decant_packed_input input = {};
    input.x = {b->x_data, DECANT_BF16, tokens, columns};
    input.made = {b->made_data, DECANT_BF16, tokens, columns};
    if (form == OF_NORM) {
        input.norm_weight = {b->norm_weight, DECANT_F32, 1, columns};
        input.epsilon = EPSILON;
        input.inverse_rms = b->inverse_rms;
    } else if (form == OF_GATE) {
        input.up = {b->up_data, DECANT_BF16, tokens, columns};
    }
    return input;
}

/* x, or what is made of it. */
static decant_matrix make_input(const bench *b, input_form form, int64_t tokens, int64_t columns)
{
    decant_error err;
    const decant_packed_input input = input_of(b, form, tokens, columns);
    decant_matrix x;
    require(decant_packed_input_make(b->backend, &input, &x, &err), &err);
    return x;
}

/* What making the input takes. */
static double time_making(bench *b, int columns, int tokens)
{
    return time_us(b, LAUNCHES_AT_LEAST, [&](int) { make_input(b, b->of, tokens, columns); });
}

/* What the input is made into, in double; [tokens, columns]. */
static std::vector<double> exact_input(const bench *b, int tokens, int64_t columns)
{
    std::vector<double> made((size_t)(tokens * columns));
    for (int token = 0; token < tokens; token++) {
        double square = 0;
        for (int64_t i = token * columns; i < (token + 1) * columns; i++)
            square += pow(__bfloat162float(b->x[(size_t)i]), 2);
        const double rms = sqrt(square / (double)columns + EPSILON);
        for (int64_t column = 0; column < columns; column++) {
            const size_t i = (size_t)(token * columns + column);
            const double x = __bfloat162float(b->x[i]);
            made[i] = b->of == OF_NORM   ? x / rms * b->norm_weight_host[(size_t)column]
                      : b->of == OF_GATE ? x / (1 + exp(-x)) * __bfloat162float(b->up[i])
                                         : x;
        }
    }
    return made;
}

/* ---- the packed product ---- */

static sparse_copies make_sparse(int rows, int columns, int copies)
{
    sparse_copies made;
    made.offsets.push_back(0);
    for (int row = 0; row < rows; row++) {
        /* eight ninths are outliers, between half and one and a half times as many in a row; the sensitive ones
         * crowd in one row of 128, as in a model */
        const double spread = 8.0 / 9 * (0.5 + (double)(mix((uint64_t)row) >> 40) / (1 << 24));
        const double crowded = mix((uint64_t)row + 17) % 128 == 0 ? 128.0 / 9 : 0.0;
        const int count = (int)lrint(SPARSE_SHARE * (spread + crowded) * columns);
        for (int i = 0; i < count; i++) {
            /* one column out of each of `count` pieces, so that all differ */
            const int64_t begin = (int64_t)i * columns / count, end = (int64_t)(i + 1) * columns / count;
            made.columns.push_back(
                (uint32_t)(begin + (int64_t)(mix((uint64_t)row * 131071 + i) % (uint64_t)(end - begin))));
            made.values.push_back(__float2half_rn(0.2f * normal_value((uint64_t)row * 65537 + i)));
        }
        made.offsets.push_back((uint32_t)made.columns.size());
    }
    std::vector<__nv_bfloat16> bfloats;
    std::vector<uint32_t> entries; /* as prepare joins them */
    for (size_t i = 0; i < made.values.size(); i++)
        entries.push_back(made.columns[i] | (uint32_t)__half_as_ushort(made.values[i]) << 16);
    for (__half value : made.values)
        bfloats.push_back(__float2bfloat16_rn(__half2float(value)));
    for (int i = 0; i < copies; i++) {
        made.device_offsets.push_back(to_device(made.offsets.data(), made.offsets.size() * 4));
        made.device_columns.push_back(to_device(made.columns.data(), made.columns.size() * 4));
        made.device_values.push_back(to_device(made.values.data(), made.values.size() * 2));
        made.device_entries.push_back(to_device(entries.data(), entries.size() * 4));
        made.device_bfloats.push_back(to_device(bfloats.data(), bfloats.size() * 2));
    }
    return made;
}

static void drop_sparse(sparse_copies *made)
{
    for (auto *all : {&made->device_offsets, &made->device_columns, &made->device_values, &made->device_entries,
                      &made->device_bfloats})
        for (void *device : *all)
            MUST(cudaFree(device));
}

static size_t planes_bytes(int rows, int columns, int bits)
{
    return (size_t)rows * bits * decant_plane_words(columns, true) * sizeof(uint32_t);
}

/* Copy i of a matrix of this width: its planes are a piece of the pool. */
static decant_packed_matrix packed_copy(const bench *b, int rows, int columns, int bits, void *levels,
                                        const sparse_copies *sparse, int i)
{
    const size_t bytes = planes_bytes(rows, columns, bits);
    const int copies = (int)(b->pool_bytes / bytes);
    decant_packed_matrix packed = {};
    packed.rows = rows;
    packed.columns = columns;
    packed.bits = bits;
    packed.planes = (uint32_t *)((char *)b->pool + i % copies * bytes);
    packed.arranged = true; /* random bits are as random in any order */
    packed.levels = (uint16_t *)levels;
    if (sparse) {
        const size_t copy = i % sparse->device_offsets.size();
        packed.sparse.count = (int64_t)sparse->columns.size();
        packed.sparse.row_offsets = (uint32_t *)sparse->device_offsets[copy];
        packed.sparse.columns = (uint32_t *)sparse->device_columns[copy];
        packed.sparse_values = (uint16_t *)sparse->device_values[copy];
        packed.sparse_entries = (uint32_t *)sparse->device_entries[copy];
    }
    return packed;
}

/* Several by packed_products, y behind y. */
typedef std::vector<decant_packed_matrix> joined_matrices;

static joined_matrices joined_copies(bench *b, int rows, int columns, int bits, void *levels,
                                     const sparse_copies *sparse, int i)
{
    joined_matrices matrices;
    for (int j = 0; j < b->joined; j++)
        matrices.push_back(packed_copy(b, rows, columns, bits, levels, sparse, i * b->joined + j));
    return matrices;
}

static void multiply_packed_of(bench *b, input_form form, const joined_matrices &matrices, int tokens)
{
    decant_error err;
    const decant_packed_input input = input_of(b, form, tokens, matrices[0].columns);
    std::vector<decant_packed_product> products;
    size_t place = 0;
    for (const decant_packed_matrix &packed : matrices) {
        products.push_back({&packed, {(char *)b->y_data + place, DECANT_BF16, tokens, packed.rows}});
        place += (size_t)(tokens * packed.rows) * 2;
    }
    const decant_validate_kernels *kernels = b->backend->validate;
    require(
        products.size() == 1 && form == OF_X
            ? kernels->packed_linear(b->backend, input.x, products[0].packed, false, products[0].y, &err)
            : kernels->packed_products(b->backend, &input, products.data(), (int)products.size(), false, &err),
        &err);
}

static void multiply_packed(bench *b, const joined_matrices &matrices, int tokens)
{
    multiply_packed_of(b, b->of, matrices, tokens);
}

typedef struct relative_error {
    double of_y, of_rounding, own;
} relative_error;

/* The last of them against the same product in double, over some rows. */
static relative_error check(bench *b, const joined_matrices &matrices, const sparse_copies *sparse,
                            const std::vector<__half> &levels, int tokens)
{
    const decant_packed_matrix &packed = matrices.back();
    const int64_t rows = packed.rows, columns = packed.columns,
                  words = decant_plane_words((int)columns, packed.arranged);
    std::vector<__nv_bfloat16> y((size_t)(tokens * rows));
    std::vector<uint32_t> planes((size_t)(DECANT_GROUP_ROWS * packed.bits * words)); /* of a group of rows */
    const decant_planes_order order = decant_planes_order_of(packed.bits, (int)words, packed.arranged);
    std::vector<double> weights((size_t)columns);
    const std::vector<double> x = exact_input(b, tokens, columns);
    const size_t before = y.size() * (matrices.size() - 1);
    MUST(cudaMemsetAsync(b->y_data, 0xff, (before + y.size()) * 2, b->stream));
    multiply_packed(b, matrices, tokens);
    MUST(cudaStreamSynchronize(b->stream));
    MUST(cudaMemcpy(y.data(), (__nv_bfloat16 *)b->y_data + before, y.size() * 2, cudaMemcpyDeviceToHost));
    double difference = 0, rounding = 0, norm = 0;
    for (int i = 0; i < CHECKED_ROWS; i++) {
        const int64_t row = i < 4   ? i
                            : i < 8 ? rows - 1 - (i - 4)
                                    : (int64_t)(mix((uint64_t)i) % (uint64_t)rows);
        MUST(cudaMemcpy(planes.data(),
                        packed.planes + row / DECANT_GROUP_ROWS * DECANT_GROUP_ROWS * packed.bits * words,
                        planes.size() * 4, cudaMemcpyDeviceToHost));
        const uint32_t *own = planes.data() + row % DECANT_GROUP_ROWS * order.row;
        for (int64_t column = 0; column < columns; column++) {
            int code = 0;
            for (int bit = 0; bit < packed.bits; bit++)
                code |=
                    (int)(own[bit * order.plane + decant_word_place(order, (int)column / 32)] >> column % 32 &
                          1u)
                    << bit;
            weights[(size_t)column] = __half2float(levels[(size_t)((row << packed.bits) + code)]);
        }
        for (uint32_t j = sparse ? sparse->offsets[row] : 0; sparse && j < sparse->offsets[row + 1]; j++)
            weights[sparse->columns[j]] += __half2float(sparse->values[j]);
        for (int token = 0; token < tokens; token++) {
            double exact = 0;
            for (int64_t column = 0; column < columns; column++)
                exact += weights[(size_t)column] * x[(size_t)(token * columns + column)];
            const double rounded = __bfloat162float(__float2bfloat16_rn((float)exact));
            const double own = __bfloat162float(y[(size_t)(token * rows + row)]);
            difference += (own - exact) * (own - exact);
            rounding += (rounded - exact) * (rounded - exact);
            norm += exact * exact;
        }
    }
    return {sqrt(difference / norm), sqrt(rounding / norm), sqrt(std::max(0.0, difference - rounding) / norm)};
}

static double time_packed(bench *b, int rows, int columns, int bits, void *levels, const sparse_copies *sparse,
                          int tokens)
{
    const int copies = copies_of((double)rows * columns * bits / 8);
    const double us = time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        multiply_packed(b, joined_copies(b, rows, columns, bits, levels, sparse, i % copies), tokens);
    });
    return us / b->joined;
}

/* ---- the same bits every time ---- */

__global__ void count_differing(const uint16_t *first, const uint16_t *y, int64_t count,
                                unsigned long long *differing)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS)
        if (first[i] != y[i])
            atomicAdd(differing, 1ull);
}

/* Makes a product again and again and tells of values that are not those of the first time; false if any. */
static bool repeats(bench *b, const joined_matrices &matrices, int tokens, int times)
{
    const decant_packed_matrix &packed = matrices[0];
    const int64_t count = (int64_t)tokens * packed.rows * (int64_t)matrices.size();
    unsigned long long found = 0, *differing;
    void *first;
    MUST(cudaMalloc(&first, (size_t)count * 2));
    MUST(cudaMalloc((void **)&differing, sizeof found));
    MUST(cudaMemsetAsync(differing, 0, sizeof found, b->stream));
    multiply_packed(b, matrices, tokens);
    MUST(cudaMemcpyAsync(first, b->y_data, (size_t)count * 2, cudaMemcpyDeviceToDevice, b->stream));
    for (int i = 0; i < times; i++) {
        MUST(cudaMemsetAsync(b->y_data, 0xff, (size_t)count * 2, b->stream));
        multiply_packed(b, matrices, tokens);
        count_differing<<<256, THREADS, 0, b->stream>>>((const uint16_t *)first, (const uint16_t *)b->y_data,
                                                        count, differing);
        MUST(cudaGetLastError());
    }
    MUST(cudaStreamSynchronize(b->stream));
    MUST(cudaMemcpy(&found, differing, sizeof found, cudaMemcpyDeviceToHost));
    MUST(cudaFree(first));
    MUST(cudaFree(differing));
    if (found)
        printf("%lldx%lld, %d tokens, %d bits, %s: %llu values in %d products differ\n", (long long)packed.rows,
               (long long)packed.columns, tokens, packed.bits, packed.sparse.count ? "sparse" : "dense", found,
               times);
    return found == 0;
}

/* ---- the sparse part by cuSPARSE, in BF16 with F32 sums, its preparation left out ---- */

static double time_cusparse(bench *b, int rows, int columns, const sparse_copies &sparse, int tokens)
{
    const int copies = (int)sparse.device_offsets.size();
    cusparseHandle_t handle = decant_cuda_of(b->backend)->sparse;
    const cusparseOperation_t plain = CUSPARSE_OPERATION_NON_TRANSPOSE;
    const float one = 1;
    cusparseDnMatDescr_t x, y;
    std::vector<cusparseSpMatDescr_t> matrices((size_t)copies);
    std::vector<void *> buffers((size_t)copies);
    MUST(cusparseCreateDnMat(&x, columns, tokens, columns, b->x_data, CUDA_R_16BF, CUSPARSE_ORDER_COL));
    MUST(cusparseCreateDnMat(&y, rows, tokens, rows, b->y_data, CUDA_R_16BF, CUSPARSE_ORDER_COL));
    for (size_t i = 0; i < matrices.size(); i++) {
        size_t bytes;
        MUST(cusparseCreateCsr(&matrices[i], rows, columns, (int64_t)sparse.columns.size(),
                               sparse.device_offsets[i], sparse.device_columns[i], sparse.device_bfloats[i],
                               CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, CUDA_R_16BF));
        MUST(cusparseSpMM_bufferSize(handle, plain, plain, &one, matrices[i], x, &one, y, CUDA_R_32F,
                                     CUSPARSE_SPMM_CSR_ALG3, &bytes));
        MUST(cudaMalloc(&buffers[i], bytes + 256));
        MUST(cusparseSpMM_preprocess(handle, plain, plain, &one, matrices[i], x, &one, y, CUDA_R_32F,
                                     CUSPARSE_SPMM_CSR_ALG3, buffers[i]));
    }
    const double us = time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        const size_t copy = (size_t)(i % copies);
        MUST(cusparseSpMM(handle, plain, plain, &one, matrices[copy], x, &one, y, CUDA_R_32F,
                          CUSPARSE_SPMM_CSR_ALG3, buffers[copy]));
    });
    for (size_t i = 0; i < matrices.size(); i++) {
        MUST(cusparseDestroySpMat(matrices[i]));
        MUST(cudaFree(buffers[i]));
    }
    MUST(cusparseDestroyDnMat(x));
    MUST(cusparseDestroyDnMat(y));
    return us;
}

/* ---- the products of a layer, one behind the other ---- */

static const int LAYER[] = {0, 0, 0, 0, 1, 1, 2}; /* of SHAPES: q, k, v, o, gate, up, down of LLaMA-7B */
static const input_form LAYER_INPUTS[] = {OF_NORM, OF_X, OF_X,   OF_X,
                                          OF_NORM, OF_X, OF_GATE}; /* OF_X: or as before */
static const std::vector<int> AT_ONCE = {3, 1, 2, 1};
static const input_form AT_ONCE_INPUTS[] = {OF_NORM, OF_X, OF_NORM, OF_GATE};
enum { LAYER_PRODUCTS = sizeof LAYER / sizeof *LAYER, CHAIN_SHAPES = 3 };

/* Where product i of the chain finds its weights in an array of so many bytes, each behind the last. */
static size_t next_place(size_t *end, size_t bytes, size_t array_bytes)
{
    const size_t place = *end + bytes <= array_bytes ? *end : 0;
    *end = place + bytes;
    return place;
}

static double time_dense_chain(bench *b, int layers, int tokens)
{
    std::vector<decant_matrix> weights;
    size_t end = 0;
    for (int i = 0; i < layers * LAYER_PRODUCTS; i++) {
        const int *shape = SHAPES[LAYER[i % LAYER_PRODUCTS]];
        const size_t place = next_place(&end, (size_t)shape[0] * shape[1] * 2, b->weights_bytes);
        weights.push_back({(char *)b->weights + place, DECANT_BF16, shape[0], shape[1]});
    }
    return LAYER_PRODUCTS * time_us(b, (int)weights.size(), [&](int i) {
               const input_form form = b->of == OF_X ? OF_X : LAYER_INPUTS[i % LAYER_PRODUCTS];
               const decant_matrix &weight = weights[(size_t)i];
               multiply_dense(b, make_input(b, form, tokens, weight.columns), weight);
           });
}

/* sparse: [CHAIN_SHAPES], or NULL. */
static double time_packed_chain(bench *b, int bits, void *levels, const sparse_copies *sparse, int layers,
                                int tokens)
{
    const std::vector<int> at_once = b->joined > 1 ? AT_ONCE : std::vector<int>(LAYER_PRODUCTS, 1);
    std::vector<joined_matrices> groups;
    size_t end = 0;
    for (int i = 0; i < layers * LAYER_PRODUCTS; i++) {
        const int shape = LAYER[i % LAYER_PRODUCTS], rows = SHAPES[shape][0], columns = SHAPES[shape][1];
        decant_packed_matrix packed =
            packed_copy(b, rows, columns, bits, levels, sparse ? &sparse[shape] : NULL, i);
        const size_t place = next_place(&end, planes_bytes(rows, columns, bits), b->pool_bytes);
        packed.planes = (uint32_t *)((char *)b->pool + place);
        if (groups.empty() || (int)groups.back().size() == at_once[(groups.size() - 1) % at_once.size()])
            groups.emplace_back();
        groups.back().push_back(packed);
    }
    const auto multiply_group = [&](int i) {
        const input_form form = b->of == OF_X ? OF_X : AT_ONCE_INPUTS[(size_t)i % at_once.size()];
        multiply_packed_of(b, form, groups[(size_t)i], tokens);
    };
    for (int i = 0; i < (int)at_once.size(); i++) /* scratch may not grow while they are captured */
        multiply_group(i);
    return (double)at_once.size() * time_us(b, (int)groups.size(), multiply_group);
}

static void measure_chain(bench *b, int layers, const std::vector<int> &widths,
                          const std::vector<int> &token_counts)
{
    sparse_copies sparse[CHAIN_SHAPES];
    for (int i = 0; i < CHAIN_SHAPES; i++)
        sparse[i] = make_sparse(SHAPES[i][0], SHAPES[i][1], layers);
    const int widest = *std::max_element(widths.begin(), widths.end());
    std::vector<__half> table;
    for (int64_t i = 0; i < (int64_t)SHAPES[1][0] << widest; i++)
        table.push_back(__float2half_rn(0.02f * normal_value((uint64_t)i + 77)));
    void *levels = to_device(table.data(), table.size() * 2);
    for (int tokens : token_counts) {
        const double dense = time_dense_chain(b, layers, tokens);
        printf("%-11s %3d %7.2f %8s", "layer of 7B", tokens, dense, "");
        for (int bits : widths) {
            const double plain = time_packed_chain(b, bits, levels, NULL, layers, tokens);
            const double both = time_packed_chain(b, bits, levels, sparse, layers, tokens);
            printf(" | %6.2f %4.2fx  %6.2f %4.2fx", plain, dense / plain, both, dense / both);
        }
        printf(" |\n");
        fflush(stdout);
    }
    for (sparse_copies &made : sparse)
        drop_sparse(&made);
    MUST(cudaFree(levels));
}

/* ---- the table ---- */

static void print_header(const bench *b, const std::vector<int> &widths)
{
    printf("%-11s %3s %7s %8s", "shape", "T", "BF16", b->of == OF_X ? "cuSPARSE" : "input");
    for (int bits : widths)
        printf(" | %d bits        sparse       ", bits);
    printf(" | error    rounding own\n");
}

static void measure_shape(bench *b, int rows, int columns, const std::vector<int> &widths,
                          const std::vector<int> &token_counts)
{
    const int narrowest = *std::min_element(widths.begin(), widths.end());
    sparse_copies sparse = make_sparse(rows, columns, copies_of((double)rows * columns * narrowest / 8));
    std::vector<std::vector<__half>> levels;
    std::vector<void *> device_levels;
    for (int bits : widths) {
        std::vector<__half> table;
        for (int64_t i = 0; i < (int64_t)rows << bits; i++)
            table.push_back(__float2half_rn(0.02f * normal_value((uint64_t)i + 77)));
        device_levels.push_back(to_device(table.data(), table.size() * 2));
        levels.push_back(table);
    }
    for (int tokens : token_counts) {
        const double dense = time_weights(b, rows * b->joined, columns,
                                          [&](decant_matrix weight) {
                                              multiply_dense(b, make_input(b, b->of, tokens, columns), weight);
                                          }) /
                             b->joined;
        relative_error worst = {};
        printf("%5dx%-5d %3d %7.2f %8.2f", rows, columns, tokens, dense,
               b->of == OF_X ? time_cusparse(b, rows, columns, sparse, tokens)
                             : time_making(b, columns, tokens));
        for (size_t i = 0; i < widths.size(); i++) {
            const double plain = time_packed(b, rows, columns, widths[i], device_levels[i], NULL, tokens);
            const double both = time_packed(b, rows, columns, widths[i], device_levels[i], &sparse, tokens);
            printf(" | %6.2f %4.2fx  %6.2f %4.2fx", plain, dense / plain, both, dense / both);
            for (const sparse_copies *own : {(const sparse_copies *)NULL, (const sparse_copies *)&sparse}) {
                const joined_matrices matrices =
                    joined_copies(b, rows, columns, widths[i], device_levels[i], own, 1);
                if (b->repeat > 0 && !repeats(b, matrices, tokens, b->repeat))
                    b->differs = true;
                const relative_error error = check(b, matrices, own, levels[i], tokens);
                const double worst_own = !(error.own <= worst.own) ? error.own : worst.own;
                if (!(error.of_y <= worst.of_y))
                    worst = error;
                worst.own = worst_own;
            }
        }
        printf(" | %.2e %.2e %.2e\n", worst.of_y, worst.of_rounding, worst.own);
        fflush(stdout);
    }
    drop_sparse(&sparse);
    for (void *device : device_levels)
        MUST(cudaFree(device));
}

static void make_arrays(bench *b, int tokens)
{
    int64_t most = 0;
    int widest = 0;
    for (const auto &shape : SHAPES) {
        const int64_t count = (int64_t)shape[0] * b->joined * shape[1];
        most = std::max(most, count * copies_of(2.0 * (double)count));
        widest = std::max(widest, std::max(shape[0] * b->joined, shape[1]));
    }
    b->pool_bytes = (size_t)640 << 20;
    MUST(cudaMalloc(&b->pool, b->pool_bytes));
    b->weights_bytes = (size_t)most * 2;
    MUST(cudaMalloc((void **)&b->weights, b->weights_bytes));
    fill_words<<<2048, THREADS, 0, b->stream>>>((uint64_t *)b->pool, (int64_t)(b->pool_bytes / 8));
    fill_weights<<<2048, THREADS, 0, b->stream>>>(b->weights, most);
    MUST(cudaGetLastError());
    for (int64_t i = 0; i < (int64_t)tokens * widest; i++)
        b->x.push_back(__float2bfloat16_rn(normal_value((uint64_t)i + 999) *
                                           (mix((uint64_t)i + 31) % 512 == 0 ? 30.0f : 1.0f)));
    for (size_t i = 0; i < b->x.size(); i++)
        b->up.push_back(__float2bfloat16_rn(normal_value((uint64_t)i + 555)));
    for (int i = 0; i < widest; i++)
        b->norm_weight_host.push_back(1.0f + 0.25f * normal_value((uint64_t)i + 333));
    b->x_data = to_device(b->x.data(), b->x.size() * 2);
    b->up_data = to_device(b->up.data(), b->up.size() * 2);
    b->norm_weight = (float *)to_device(b->norm_weight_host.data(), b->norm_weight_host.size() * 4);
    MUST(cudaMalloc(&b->made_data, b->x.size() * 2));
    MUST(cudaMalloc((void **)&b->inverse_rms, (size_t)tokens * 4));
    MUST(cudaMalloc(&b->y_data, (size_t)tokens * widest * 2));
    MUST(cudaStreamSynchronize(b->stream));
}

int main(int argc, char **argv)
{
    std::vector<int> token_counts = {1, 2, 4, 8, 16, 32}, widths = {4, 3, 2};
    int shapes = 63, joined = 1, layers = 0, repeat = 0;
    input_form of = OF_X;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--tokens") == 0)
            token_counts = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--bits") == 0)
            widths = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--shapes") == 0)
            shapes = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--joined") == 0)
            joined = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--chain") == 0)
            layers = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--of") == 0)
            of = strcmp(argv[i + 1], "norm") == 0 ? OF_NORM : strcmp(argv[i + 1], "gate") == 0 ? OF_GATE : OF_X;
        else if (strcmp(argv[i], "--repeat") == 0)
            repeat = atoi(argv[i + 1]);
    }
    bench b = {};
    b.of = of;
    b.joined = joined;
    b.repeat = repeat;
    decant_error err = {};
    require(decant_backend_create_cuda(0, false, &b.backend, &err), &err);
    b.stream = decant_cuda_of(b.backend)->stream;
    make_arrays(&b, *std::max_element(token_counts.begin(), token_counts.end()));
    printf("%s; microseconds, times BF16\n", b.backend->device_name);
    print_header(&b, widths);
    for (int i = 0; i < (int)(sizeof SHAPES / sizeof *SHAPES); i++)
        if (shapes >> i & 1)
            measure_shape(&b, SHAPES[i][0], SHAPES[i][1], widths, token_counts);
    if (layers > 0 && of != OF_X && joined == 1) {
        fprintf(stderr, "a chain with norms is of products at once: --joined 3\n");
        return 1;
    }
    if (layers > 0)
        measure_chain(&b, layers, widths, token_counts);
    MUST(cudaFree(b.pool));
    MUST(cudaFree(b.weights));
    MUST(cudaFree(b.x_data));
    MUST(cudaFree(b.y_data));
    for (void *device : {b.up_data, b.made_data, (void *)b.norm_weight, (void *)b.inverse_rms})
        MUST(cudaFree(device));
    decant_backend_destroy(&b.backend);
    return b.differs ? 1 : 0;
}
