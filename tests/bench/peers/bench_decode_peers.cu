/* The packed product of few tokens beside the kernels of SqueezeLLM and any-precision, cuBLAS, and cuSPARSE for
 * the sparse part: microseconds and times the speed of cuBLAS in F16, all in one run. How to build it with them
 * is in CMakeLists.txt here.
 *
 * usage: bench_decode_peers [--tokens 1] [--bits 4,3] [--shapes 63] [--entries 0,1,2]
 *     bits: 4 and 3 alone; shapes: a mask of those of decode_bench.cuh; entries: where the sparse ones are,
 *     numbers of sparse_places
 *
 * A time is the median of several replays of a CUDA graph of many launches, gaps between them included. Every
 * launch reads other copies of codes and sparse part, more bytes in all than the L2 cache holds several times.
 * Only kernels are timed: not that SqueezeLLM's take x in F32 and a y of zeros, in which they add up by
 * atomics. "10 full" are its products that keep the rows with the most sparse entries in full, ten by its
 * default.
 *
 * First every kernel multiplies a small matrix, which is compared with a product in double from its own packed
 * codes, levels and entries; the program ends when one is wrong. */
#include "kernels/cuda/packed.cuh"
#include "tests/bench/decode_bench.cuh"
#include "tests/bench/peers/peers.h"

#include <cmath>
#include <cstring>
#include <cuda_fp16.h>

enum { FULL_ROWS = 10 };
static const double SPARSE_SHARE = 0.0045;

/* Eight ninths are outliers; the last ninth, the sensitive ones, crowd in some rows of a model. */
enum sparse_places { ANYWHERE, A_NINTH_IN_ONE_ROW_OF_128, A_NINTH_IN_TEN_ROWS };
static const char *const PLACES[] = {"anywhere", "in 1/128", "in ten"};

__global__ void fill_weights(__nv_bfloat16 *weights, __half *halves, int64_t count)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * THREADS) {
        weights[i] = __float2bfloat16_rn(0.02f * normal_value((uint64_t)i));
        halves[i] = __float2half_rn(__bfloat162float(weights[i]));
    }
}

/* ---- what is measured ---- */

/* weights, x_data and y_data are BF16; half_weights and the others of x are the same numbers. */
typedef struct bench : decode_bench {
    char *pool; /* random bits: codes of every copy, in everybody's order */
    size_t pool_bytes;
    __half *half_weights;
    void *x_floats, *x_halves, *y_floats; /* y: room for F32, and for F16 too */
} bench;

/* One matrix of a width: a level for each code of each row, shared by all copies. */
typedef struct level_table {
    std::vector<__half> host;
    void *halves, *floats;
} level_table;

/* Rows of entries, and the same on the device, of every copy. */
typedef struct sparse_rows {
    std::vector<uint32_t> offsets, columns;
    std::vector<float> values; /* that F16 has too */
    std::vector<void *> device_offsets, device_columns, device_floats;
} sparse_rows;

typedef struct sparse_part {
    sparse_rows all, others; /* others: without the fullest rows */
    std::vector<int> fullest;
    std::vector<float> full_rows; /* [columns, FULL_ROWS] */
    std::vector<void *> device_fullest, device_full_rows;
    std::vector<void *> halves, entries, bfloats; /* values as decant and as cuSPARSE take them */
} sparse_part;

enum sparse_form { DENSE, BY_ROWS, WITH_FULL_ROWS };
enum peer { SQUEEZELLM, ANY_PRECISION };

template <typename element>
static std::vector<void *> copies_on_device(const std::vector<element> &host, int copies)
{
    std::vector<void *> made;
    for (int i = 0; i < copies; i++)
        made.push_back(to_device(host.data(), host.size() * sizeof(element)));
    return made;
}

static void drop(std::vector<void *> &arrays)
{
    for (void *device : arrays)
        MUST(cudaFree(device));
}

static level_table make_levels(int rows, int bits)
{
    level_table made;
    std::vector<float> floats;
    for (int64_t i = 0; i < (int64_t)rows << bits; i++) {
        made.host.push_back(__float2half_rn(0.02f * normal_value((uint64_t)i + 77)));
        floats.push_back(__half2float(made.host.back()));
    }
    made.halves = to_device(made.host.data(), made.host.size() * 2);
    made.floats = to_device(floats.data(), floats.size() * 4);
    return made;
}

static void drop_levels(level_table *levels)
{
    MUST(cudaFree(levels->halves));
    MUST(cudaFree(levels->floats));
}

static int row_count(const sparse_rows &sparse, int row)
{
    return (int)(sparse.offsets[(size_t)row + 1] - sparse.offsets[(size_t)row]);
}

/* How many of its columns a row has entries in. */
static int entries_of(int row, int rows, int columns, sparse_places places)
{
    const double mean = SPARSE_SHARE * columns, outliers = 8.0 / 9 * mean;
    if (places ==
        A_NINTH_IN_ONE_ROW_OF_128) /* outliers: between half and one and a half times as many in a row */
        return (int)lrint(outliers * (0.5 + (double)(mix((uint64_t)row) >> 40) / (1 << 24)) +
                          (mix((uint64_t)row + 17) % 128 == 0 ? 128.0 / 9 * mean : 0.0));
    const double expected = places == ANYWHERE ? mean : outliers;
    const bool is_of_ten = row % (rows / 10) == 0 && row / (rows / 10) < 10;
    const double sensitive = places == A_NINTH_IN_TEN_ROWS && is_of_ten ? rows / 90.0 * mean : 0.0;
    const double count = expected + sqrt(expected) * normal_value((uint64_t)row + 5) + sensitive;
    return (int)lrint(std::min(std::max(count, 0.0), (double)columns));
}

static void make_entries(sparse_rows *made, int rows, int columns, sparse_places places)
{
    made->offsets.push_back(0);
    for (int row = 0; row < rows; row++) {
        const int count = entries_of(row, rows, columns, places);
        for (int i = 0; i < count; i++) {
            /* one column out of each of `count` pieces, so that all differ */
            const int64_t begin = (int64_t)i * columns / count, end = (int64_t)(i + 1) * columns / count;
            made->columns.push_back(
                (uint32_t)(begin + (int64_t)(mix((uint64_t)row * 131071 + i) % (uint64_t)(end - begin))));
            made->values.push_back(
                __half2float(__float2half_rn(0.2f * normal_value((uint64_t)row * 65537 + i))));
        }
        made->offsets.push_back((uint32_t)made->columns.size());
    }
}

/* Takes the rows with the most entries out of those that stay. */
static void split_fullest(sparse_part *part, int rows, int columns)
{
    const sparse_rows &all = part->all;
    for (int row = 0; row < rows; row++)
        part->fullest.push_back(row);
    std::stable_sort(part->fullest.begin(), part->fullest.end(),
                     [&](int one, int other) { return row_count(all, one) > row_count(all, other); });
    part->fullest.resize(FULL_ROWS);
    part->full_rows.resize((size_t)columns * FULL_ROWS);
    part->others.offsets.push_back(0);
    for (int row = 0; row < rows; row++) {
        const size_t place =
            (size_t)(std::find(part->fullest.begin(), part->fullest.end(), row) - part->fullest.begin());
        for (uint32_t i = all.offsets[(size_t)row]; i < all.offsets[(size_t)row + 1]; i++) {
            if (place < FULL_ROWS) {
                part->full_rows[all.columns[i] * (size_t)FULL_ROWS + place] = all.values[i];
            } else {
                part->others.columns.push_back(all.columns[i]);
                part->others.values.push_back(all.values[i]);
            }
        }
        part->others.offsets.push_back((uint32_t)part->others.columns.size());
    }
}

static sparse_part make_sparse(int rows, int columns, int copies, sparse_places places)
{
    sparse_part made;
    make_entries(&made.all, rows, columns, places);
    split_fullest(&made, rows, columns);
    for (sparse_rows *sparse : {&made.all, &made.others}) {
        sparse->device_offsets = copies_on_device(sparse->offsets, copies);
        sparse->device_columns = copies_on_device(sparse->columns, copies);
        sparse->device_floats = copies_on_device(sparse->values, copies);
    }
    made.device_fullest = copies_on_device(made.fullest, copies);
    made.device_full_rows = copies_on_device(made.full_rows, copies);
    std::vector<__half> halves;
    std::vector<__nv_bfloat16> bfloats;
    std::vector<uint32_t> entries; /* as validate->prepare joins them */
    for (size_t i = 0; i < made.all.values.size(); i++) {
        halves.push_back(__float2half_rn(made.all.values[i]));
        bfloats.push_back(__float2bfloat16_rn(made.all.values[i]));
        entries.push_back(made.all.columns[i] | (uint32_t)__half_as_ushort(halves[i]) << 16);
    }
    made.halves = copies_on_device(halves, copies);
    made.bfloats = copies_on_device(bfloats, copies);
    made.entries = copies_on_device(entries, copies);
    return made;
}

static void drop_sparse(sparse_part *made)
{
    for (sparse_rows *sparse : {&made->all, &made->others})
        for (auto *arrays : {&sparse->device_offsets, &sparse->device_columns, &sparse->device_floats})
            drop(*arrays);
    for (auto *arrays :
         {&made->device_fullest, &made->device_full_rows, &made->halves, &made->bfloats, &made->entries})
        drop(*arrays);
}

/* Copy i of the codes of a matrix: a piece of the pool. */
static char *codes_of(const bench *b, int rows, int columns, int bits, int i)
{
    const size_t bytes = (size_t)rows * columns / 8 * bits;
    return b->pool + i % (b->pool_bytes / bytes) * bytes;
}

/* ---- the peers ---- */

static peer_product product_of(const bench *b, peer which, int rows, int columns, int bits, int tokens,
                               const level_table &levels, const sparse_part &part, sparse_form form, int i)
{
    peer_product product = {};
    product.bits = bits;
    product.rows = rows;
    product.columns = columns;
    product.tokens = tokens;
    product.codes = codes_of(b, rows, columns, bits, i);
    product.table = which == SQUEEZELLM ? levels.floats : levels.halves;
    product.x = which == SQUEEZELLM ? b->x_floats : b->x_halves;
    product.y = b->y_floats;
    if (form != DENSE) {
        const sparse_rows &sparse = form == BY_ROWS ? part.all : part.others;
        const size_t copy = (size_t)i % sparse.device_offsets.size();
        product.offsets = sparse.device_offsets[copy];
        product.indices = sparse.device_columns[copy];
        product.values = sparse.device_floats[copy];
        if (form == WITH_FULL_ROWS) {
            product.full_count = FULL_ROWS;
            product.full_rows = part.device_full_rows[copy];
            product.full_indices = part.device_fullest[copy];
        }
    }
    return product;
}

/* False where it has no kernel. */
static bool multiply(const peer_product &product, peer which)
{
    if (which == SQUEEZELLM)
        squeezellm_multiply(&product);
    else if (!any_precision_multiply(&product, cudaStreamPerThread))
        return false;
    MUST(cudaGetLastError());
    return true;
}

/* The code of a weight: SqueezeLLM keeps a column of words for each row of the matrix, its codes one behind the
 * other in their bits, the first in the lowest. */
static int squeezellm_code(const std::vector<uint32_t> &words, int rows, int bits, int row, int column)
{
    const size_t word = (size_t)(column * bits / 32);
    const int shift = column * bits % 32;
    uint64_t window = words[word * rows + row];
    if (shift + bits > 32)
        window |= (uint64_t)words[(word + 1) * rows + row] << 32;
    return (int)(window >> shift & ((1u << bits) - 1));
}

/* any-precision: planes of bits, the highest first. 1024 columns of a row, or what is left of them, are words
 * of 32 threads, or as many as there are words; a byte of a thread's word is eight neighbouring columns, the
 * first in the highest bit, and the highest bytes of all threads come first. */
static int any_precision_code(const std::vector<uint32_t> &words, int rows, int columns, int bits, int row,
                              int column)
{
    const int piece = column / 1024, threads = std::min(32, (columns - piece * 1024) / 32);
    const int octet = column % 1024 / 8, shift = 8 * (3 - octet / threads) + 7 - column % 8;
    int code = 0;
    for (int plane = 0; plane < bits; plane++) {
        const size_t word = (size_t)(plane * rows + row) * (columns / 32) + piece * 32 + octet % threads;
        code = code << 1 | (int)(words[word] >> shift & 1u);
    }
    return code;
}

/* ‖y − y₆₄‖ / ‖y₆₄‖ of one product by a peer, y₆₄ from what it reads; negative where it has no kernel. */
static double error_of(const bench *b, peer which, int rows, int columns, int bits, int tokens,
                       const level_table &levels, const sparse_part &part, sparse_form form)
{
    const peer_product product = product_of(b, which, rows, columns, bits, tokens, levels, part, form, 1);
    const size_t y_count = (size_t)tokens * rows;
    std::vector<uint32_t> words((size_t)rows * columns / 32 * bits);
    std::vector<float> y(y_count);
    std::vector<double> weights((size_t)columns);
    MUST(cudaMemcpy(words.data(), product.codes, words.size() * 4, cudaMemcpyDeviceToHost));
    MUST(cudaMemset(product.y, 0, y_count * 4));
    MUST(cudaDeviceSynchronize());
    if (!multiply(product, which))
        return -1;
    MUST(cudaStreamSynchronize(cudaStreamPerThread));
    if (which == SQUEEZELLM) {
        MUST(cudaMemcpy(y.data(), product.y, y_count * 4, cudaMemcpyDeviceToHost));
    } else {
        std::vector<__half> halves(y_count);
        MUST(cudaMemcpy(halves.data(), product.y, y_count * 2, cudaMemcpyDeviceToHost));
        std::transform(halves.begin(), halves.end(), y.begin(),
                       [](__half value) { return __half2float(value); });
    }
    double difference = 0, norm = 0;
    for (int row = 0; row < rows; row++) {
        for (int column = 0; column < columns; column++) {
            const int code = which == SQUEEZELLM ? squeezellm_code(words, rows, bits, row, column)
                                                 : any_precision_code(words, rows, columns, bits, row, column);
            weights[(size_t)column] = __half2float(levels.host[((size_t)row << bits) + code]);
        }
        for (uint32_t i = part.all.offsets[row]; form != DENSE && i < part.all.offsets[row + 1]; i++)
            weights[part.all.columns[i]] += part.all.values[i];
        for (int token = 0; token < tokens; token++) {
            double exact = 0;
            for (int column = 0; column < columns; column++)
                exact += weights[(size_t)column] * __bfloat162float(b->x[(size_t)token * columns + column]);
            const double own = y[(size_t)token * rows + row];
            difference += (own - exact) * (own - exact);
            norm += exact * exact;
        }
    }
    return sqrt(difference / norm);
}

static void check_one(const bench *b, peer which, int bits, int tokens, const level_table &levels,
                      const sparse_part &part, sparse_form form, int rows, int columns)
{
    static const char *const FORMS[] = {"dense", "sparse by rows", "sparse with full rows"};
    const double error = error_of(b, which, rows, columns, bits, tokens, levels, part, form);
    if (error == -1)
        return;
    printf("checked: %s, %d bits, T %d, %s: error %.1e\n", which == SQUEEZELLM ? "SqueezeLLM" : "any-precision",
           bits, tokens, FORMS[form], error);
    if (!(error < (which == SQUEEZELLM ? 1e-4 : 2e-2))) { /* sums in F32, in F16 */
        fprintf(stderr, "%s: that product is wrong\n", program_invocation_short_name);
        exit(1);
    }
}

/* 2816 columns: for any-precision two pieces of 1024 and a shorter one. */
static void check_peers(const bench *b, const std::vector<int> &widths, const std::vector<int> &token_counts)
{
    const int rows = 512, columns = 2816;
    sparse_part part = make_sparse(rows, columns, 2, A_NINTH_IN_TEN_ROWS);
    for (int bits : widths) {
        level_table levels = make_levels(rows, bits);
        for (int tokens : token_counts) {
            for (sparse_form form : {DENSE, BY_ROWS, WITH_FULL_ROWS})
                check_one(b, SQUEEZELLM, bits, tokens, levels, part, form, rows, columns);
            check_one(b, ANY_PRECISION, bits, tokens, levels, part, DENSE, rows, columns);
        }
        drop_levels(&levels);
    }
    drop_sparse(&part);
}

/* Microseconds, or 0 where it has no kernel. */
static double time_peer(bench *b, peer which, int rows, int columns, int bits, int tokens,
                        const level_table &levels, const sparse_part &part, sparse_form form)
{
    const int copies = copies_of((double)rows * columns * bits / 8);
    decode_bench own = *b;
    own.stream = cudaStreamPerThread;
    if (!multiply(product_of(b, which, rows, columns, bits, tokens, levels, part, form, 0), which))
        return 0;
    return time_us(&own, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        multiply(product_of(b, which, rows, columns, bits, tokens, levels, part, form, i % copies), which);
    });
}

/* ---- decant, cuBLAS in F16, and cuSPARSE ---- */

static double time_decant(bench *b, int rows, int columns, int bits, int tokens, const level_table &levels,
                          const sparse_part *part)
{
    const int copies = copies_of((double)rows * columns * bits / 8);
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        decant_error err;
        decant_packed_matrix packed = {};
        packed.rows = rows;
        packed.columns = columns;
        packed.bits = bits;
        packed.planes = (uint32_t *)codes_of(b, rows, decant_plane_words(columns, true) * 32, bits, i % copies);
        packed.arranged = true; /* random bits are as random in any order */
        packed.levels = (uint16_t *)levels.halves;
        if (part) {
            const size_t copy = (size_t)(i % copies) % part->halves.size();
            packed.sparse.count = (int64_t)part->all.columns.size();
            packed.sparse.row_offsets = (uint32_t *)part->all.device_offsets[copy];
            packed.sparse.columns = (uint32_t *)part->all.device_columns[copy];
            packed.sparse_values = (uint16_t *)part->halves[copy];
            packed.sparse_entries = (uint32_t *)part->entries[copy];
        }
        decant_matrix x = {b->x_data, DECANT_BF16, tokens, columns}, y = {b->y_data, DECANT_BF16, tokens, rows};
        require(b->backend->validate->packed_linear(b->backend, x, &packed, false, y, &err), &err);
    });
}

static double time_halves(bench *b, int rows, int columns, int tokens)
{
    const int copies = copies_of(2.0 * rows * columns);
    const float one = 1, zero = 0;
    return time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
        MUST(cublasGemmEx(decant_cuda_of(b->backend)->blas, CUBLAS_OP_T, CUBLAS_OP_N, rows, tokens, columns,
                          &one, b->half_weights + (int64_t)(i % copies) * rows * columns, CUDA_R_16F, columns,
                          b->x_halves, CUDA_R_16F, columns, &zero, b->y_floats, CUDA_R_16F, rows,
                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    });
}

/* BF16 with sums in F32, its preparation left out. */
static double time_cusparse(bench *b, int rows, int columns, const sparse_part &part, int tokens)
{
    cusparseHandle_t handle = decant_cuda_of(b->backend)->sparse;
    const cusparseOperation_t plain = CUSPARSE_OPERATION_NON_TRANSPOSE;
    const float one = 1;
    cusparseDnMatDescr_t x, y;
    std::vector<cusparseSpMatDescr_t> matrices(part.bfloats.size());
    std::vector<void *> buffers(matrices.size());
    MUST(cusparseCreateDnMat(&x, columns, tokens, columns, b->x_data, CUDA_R_16BF, CUSPARSE_ORDER_COL));
    MUST(cusparseCreateDnMat(&y, rows, tokens, rows, b->y_data, CUDA_R_16BF, CUSPARSE_ORDER_COL));
    for (size_t i = 0; i < matrices.size(); i++) {
        size_t bytes;
        MUST(cusparseCreateCsr(&matrices[i], rows, columns, (int64_t)part.all.columns.size(),
                               part.all.device_offsets[i], part.all.device_columns[i], part.bfloats[i],
                               CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, CUDA_R_16BF));
        MUST(cusparseSpMM_bufferSize(handle, plain, plain, &one, matrices[i], x, &one, y, CUDA_R_32F,
                                     CUSPARSE_SPMM_CSR_ALG3, &bytes));
        MUST(cudaMalloc(&buffers[i], bytes + 256));
        MUST(cusparseSpMM_preprocess(handle, plain, plain, &one, matrices[i], x, &one, y, CUDA_R_32F,
                                     CUSPARSE_SPMM_CSR_ALG3, buffers[i]));
    }
    const double us = time_us(b, std::max<int>((int)matrices.size(), LAUNCHES_AT_LEAST), [&](int i) {
        const size_t copy = (size_t)i % matrices.size();
        MUST(cusparseSpMM(handle, plain, plain, &one, matrices[copy], x, &one, y, CUDA_R_32F,
                          CUSPARSE_SPMM_CSR_ALG3, buffers[copy]));
    });
    for (cusparseSpMatDescr_t matrix : matrices)
        MUST(cusparseDestroySpMat(matrix));
    drop(buffers);
    MUST(cusparseDestroyDnMat(x));
    MUST(cusparseDestroyDnMat(y));
    return us;
}

/* ---- the table ---- */

static void print_time(double us, double halves)
{
    if (us > 0)
        printf(" %7.2f %5.2fx", us, halves / us);
    else
        printf(" %7s %5s ", "-", "-");
}

static void measure(bench *b, int rows, int columns, int bits, int tokens, sparse_places places)
{
    sparse_part part = make_sparse(rows, columns, copies_of((double)rows * columns * bits / 8), places);
    level_table levels = make_levels(rows, bits);
    const double halves = time_halves(b, rows, columns, tokens);
    printf("%5dx%-5d %3d %4d %-8s %7.2f %7.2f %8.2f |", rows, columns, tokens, bits, PLACES[places], halves,
           time_dense(b, rows, columns, tokens), time_cusparse(b, rows, columns, part, tokens));
    print_time(time_decant(b, rows, columns, bits, tokens, levels, NULL), halves);
    print_time(time_decant(b, rows, columns, bits, tokens, levels, &part), halves);
    printf(" |");
    for (sparse_form form : {DENSE, BY_ROWS, WITH_FULL_ROWS})
        print_time(time_peer(b, SQUEEZELLM, rows, columns, bits, tokens, levels, part, form), halves);
    printf(" |");
    print_time(time_peer(b, ANY_PRECISION, rows, columns, bits, tokens, levels, part, DENSE), halves);
    printf("\n");
    fflush(stdout);
    drop_levels(&levels);
    drop_sparse(&part);
}

static void make_arrays(bench *b, int tokens)
{
    int64_t most = 0;
    int widest = 0;
    for (const auto &shape : SHAPES) {
        const int64_t count = (int64_t)shape[0] * shape[1];
        most = std::max(most, count * copies_of(2.0 * (double)count));
        widest = std::max(widest, std::max(shape[0], shape[1]));
    }
    b->pool_bytes = (size_t)640 << 20;
    MUST(cudaMalloc((void **)&b->pool, b->pool_bytes));
    MUST(cudaMalloc((void **)&b->weights, (size_t)most * 2));
    MUST(cudaMalloc((void **)&b->half_weights, (size_t)most * 2));
    fill_words<<<2048, THREADS, 0, b->stream>>>((uint64_t *)b->pool, (int64_t)(b->pool_bytes / 8));
    fill_weights<<<2048, THREADS, 0, b->stream>>>(b->weights, b->half_weights, most);
    MUST(cudaGetLastError());
    std::vector<float> floats;
    std::vector<__half> halves;
    for (int64_t i = 0; i < (int64_t)tokens * widest; i++) {
        b->x.push_back(__float2bfloat16_rn(normal_value((uint64_t)i + 999) *
                                           (mix((uint64_t)i + 31) % 512 == 0 ? 30.0f : 1.0f)));
        floats.push_back(__bfloat162float(b->x.back()));
        halves.push_back(__float2half_rn(floats.back()));
    }
    b->x_data = to_device(b->x.data(), b->x.size() * 2);
    b->x_floats = to_device(floats.data(), floats.size() * 4);
    b->x_halves = to_device(halves.data(), halves.size() * 2);
    MUST(cudaMalloc(&b->y_data, (size_t)tokens * widest * 2));
    MUST(cudaMalloc(&b->y_floats, (size_t)tokens * widest * 4));
    MUST(cudaStreamSynchronize(b->stream));
}

int main(int argc, char **argv)
{
    std::vector<int> token_counts = {1}, widths = {4, 3};
    std::vector<int> places = {ANYWHERE, A_NINTH_IN_ONE_ROW_OF_128, A_NINTH_IN_TEN_ROWS};
    int shapes = 63;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--tokens") == 0)
            token_counts = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--bits") == 0)
            widths = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--shapes") == 0)
            shapes = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--entries") == 0)
            places = read_list(argv[i + 1]);
    }
    bench b = {};
    decant_error err = {};
    require(decant_backend_create_cuda(0, false, &b.backend, &err), &err);
    b.stream = decant_cuda_of(b.backend)->stream;
    make_arrays(&b, *std::max_element(token_counts.begin(), token_counts.end()));
    check_peers(&b, widths, token_counts);
    printf("%s; microseconds, times F16\n", b.backend->device_name);
    printf("%-11s %3s %4s %-8s %7s %7s %8s | %-14s %-14s | %-14s %-14s %-14s | any-precision\n", "shape", "T",
           "bits", "entries", "F16", "BF16", "cuSPARSE", "decant", "sparse", "SqueezeLLM", "sparse", "10 full");
    for (int i = 0; i < (int)(sizeof SHAPES / sizeof *SHAPES); i++)
        for (int tokens : token_counts)
            for (int bits : widths)
                for (int place : places)
                    if (shapes >> i & 1)
                        measure(&b, SHAPES[i][0], SHAPES[i][1], bits, tokens, (sparse_places)place);
    for (void *device : {(void *)b.pool, (void *)b.weights, (void *)b.half_weights, b.x_data, b.x_floats,
                         b.x_halves, b.y_data, b.y_floats})
        MUST(cudaFree(device));
    decant_backend_destroy(&b.backend);
    return 0;
}
