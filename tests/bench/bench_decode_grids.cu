/* Products of few tokens with matrices on a grid, rotation included, beside the 16-bit one: microseconds and
 * times the speed of cuBLAS in BF16.
 *
 * usage: bench_decode_grids [--tokens 1,2,4,8,16,32] [--grids 2:4,2:6,2:8,…] [--shapes 63] [--group 0]
 *                           [--arranged 1] [--repeat 0]
 *                           [--layers 0]
 *     grids: dimension:code bits; group: columns that share a scale, 0: a row; shapes: a mask of those below;
 *     arranged: codes in the order that the backend's products like best, 0: planes as the container has them;
 *     repeat: launches of each figure whose bits are compared, in place of times; see repeat_shape;
 *     layers: of LLaMA-7B's products, in one graph, in place of single shapes; microseconds are of one layer
 *
 * A time is the median of several replays of a CUDA graph of many launches, gaps between them included. Every
 * launch reads other copies of the weights, more bytes in all than the L2 cache holds several times. Codes are
 * random and so are the grid's points; x is normal with one entry in 512 thirty times as large. "error" is
 * ‖y − y₆₄‖ / ‖y₆₄‖ over some rows, the worst of all grids, y₆₄ computed in double from the same bits, the
 * rotation by a transform in double; "rounding" is the same of y₆₄ itself rounded to BF16, which is how y is
 * stored. "bits!" behind a figure: two launches differed in some bit. */
#include "kernels/counter_random.h"
#include "tests/bench/decode_bench.cuh"

extern "C" {
#include "kernels/grid_form.h"
}

#include <cmath>
#include <cstring>
#include <cuda_fp16.h>
#include <set>
#include <tuple>

enum { SEED = 5 };

typedef struct bench : decode_bench {
    char *pool;    /* random bits: codes of every copy, in whatever order */
    char *checked; /* room for one copy */
    size_t pool_bytes;
    int64_t weight_count;
    bool arranges; /* codes are put into the order of the products first */
    void *scales;
    std::vector<__half> host_scales;
} bench;

typedef struct grid_choice {
    int dimension, bits;
    std::vector<float> points;
} grid_choice;

/* ---- the product of codes ---- */

static size_t planes_bytes(int rows, int columns, const grid_choice &grid)
{
    return (size_t)rows * (size_t)grid.bits * (size_t)decant_grid_words(columns, grid.dimension) * 4;
}

/* Copy i of a matrix: its planes are a piece of the pool. */
static decant_grid_matrix matrix_copy(const bench *b, int rows, int columns, const grid_choice &grid, int group,
                                      int i)
{
    const size_t bytes = planes_bytes(rows, columns, grid);
    int64_t rotation = 1;
    while (columns % (2 * rotation) == 0)
        rotation *= 2;
    decant_grid_matrix matrix = {};
    matrix.rows = rows;
    matrix.columns = columns;
    matrix.form.dimension = grid.dimension;
    matrix.form.code_bits = grid.bits;
    matrix.form.points = grid.points.data();
    matrix.form.group = group > 0 ? group : columns;
    matrix.form.rotation = rotation;
    matrix.form.seed = SEED;
    matrix.planes = (uint32_t *)(b->pool + (size_t)i % (b->pool_bytes / bytes) * bytes);
    const size_t count = (size_t)rows * (size_t)((columns + matrix.form.group - 1) / matrix.form.group);
    matrix.scales =
        (uint16_t *)b->scales + count * (size_t)(group > 0 ? i : 0); /* a row's: L2 or not, it is little */
    return matrix;
}

/* A copy whose planes a product can be checked by, as products read it; it takes the room for one. */
static decant_grid_matrix as_multiplied(bench *b, decant_grid_matrix matrix, const grid_choice &grid)
{
    decant_error err;
    if (!b->arranges)
        return matrix;
    MUST(cudaMemcpy(b->checked, matrix.planes, planes_bytes((int)matrix.rows, (int)matrix.columns, grid),
                    cudaMemcpyDeviceToDevice));
    MUST(cudaDeviceSynchronize());
    matrix.planes = (uint32_t *)b->checked;
    require(b->backend->grid->prepare(b->backend, &matrix, &err), &err);
    return matrix;
}

static void multiply(bench *b, const decant_grid_matrix &matrix, int tokens, void *y_data)
{
    decant_error err;
    decant_matrix x = {b->x_data, DECANT_BF16, tokens, matrix.columns};
    decant_matrix y = {y_data, DECANT_BF16, tokens, matrix.rows};
    require(b->backend->grid->linear(b->backend, x, &matrix, false, y, &err), &err);
}

typedef struct relative_error {
    double of_y, of_rounding;
    bool same;
} relative_error;

static std::vector<double> rotated_token(const bench *b, const decant_grid_form &form, int columns, int token)
{
    std::vector<double> x((size_t)columns);
    for (int j = 0; j < columns; j++)
        x[(size_t)j] = __bfloat162float(b->x[(size_t)token * (size_t)columns + (size_t)j]) *
                       (decant_random_sign(form.seed, j) ? -1 : 1) / sqrt((double)form.rotation);
    for (int apart = 1; apart < form.rotation; apart *= 2)
        for (int j = 0; j < columns; j++)
            if (!(j & apart)) {
                const double low = x[(size_t)j], high = x[(size_t)(j + apart)];
                x[(size_t)j] = low + high;
                x[(size_t)(j + apart)] = low - high;
            }
    return x;
}

static std::vector<double> row_weights(const bench *b, const decant_grid_matrix &matrix, int64_t row)
{
    const int p = matrix.form.dimension, bits = matrix.form.code_bits;
    const int64_t words = decant_grid_words(matrix.columns, p), group = matrix.form.group;
    const int64_t groups = (matrix.columns + group - 1) / group;
    std::vector<uint32_t> planes((size_t)(bits * words));
    std::vector<double> weights((size_t)matrix.columns);
    MUST(cudaMemcpy(planes.data(), matrix.planes + row * bits * words, planes.size() * 4,
                    cudaMemcpyDeviceToHost));
    for (int64_t column = 0; column < matrix.columns; column++) {
        const int64_t j = column / p;
        int code = 0;
        for (int bit = 0; bit < bits; bit++)
            code |= (int)(planes[(size_t)(bit * words + j / 32)] >> j % 32 & 1u) << bit;
        weights[(size_t)column] = matrix.form.points[code * p + column % p] *
                                  __half2float(b->host_scales[(size_t)(row * groups + j * p / group)]);
    }
    return weights;
}

static std::vector<__nv_bfloat16> product_of(bench *b, const decant_grid_matrix &matrix, int tokens)
{
    std::vector<__nv_bfloat16> y((size_t)(tokens * matrix.rows));
    MUST(cudaMemsetAsync(b->y_data, 0xff, y.size() * 2, b->stream));
    multiply(b, matrix, tokens, b->y_data);
    MUST(cudaStreamSynchronize(b->stream));
    MUST(cudaMemcpy(y.data(), b->y_data, y.size() * 2, cudaMemcpyDeviceToHost));
    return y;
}

/* Against the same product in double, over some rows. matrix: planes; own: the same as products read it. */
static relative_error check(bench *b, const decant_grid_matrix &matrix, const decant_grid_matrix &own_matrix,
                            int tokens)
{
    const std::vector<__nv_bfloat16> y = product_of(b, own_matrix, tokens),
                                     again = product_of(b, own_matrix, tokens);
    std::vector<std::vector<double>> x;
    for (int token = 0; token < tokens; token++)
        x.push_back(rotated_token(b, matrix.form, (int)matrix.columns, token));
    double difference = 0, rounding = 0, norm = 0;
    for (int i = 0; i < CHECKED_ROWS; i++) {
        const int64_t row = i < 4   ? i
                            : i < 8 ? matrix.rows - 1 - (i - 4)
                                    : (int64_t)(decant_random_bits(3, 0, (uint64_t)i) % (uint64_t)matrix.rows);
        const std::vector<double> weights = row_weights(b, matrix, row);
        for (int token = 0; token < tokens; token++) {
            double exact = 0;
            for (size_t column = 0; column < weights.size(); column++)
                exact += weights[column] * x[(size_t)token][column];
            const double rounded = __bfloat162float(__float2bfloat16_rn((float)exact));
            const double own = __bfloat162float(y[(size_t)(token * matrix.rows + row)]);
            difference += (own - exact) * (own - exact);
            rounding += (rounded - exact) * (rounded - exact);
            norm += exact * exact;
        }
    }
    return {sqrt(difference / norm), sqrt(rounding / norm), memcmp(y.data(), again.data(), y.size() * 2) == 0};
}

/* ---- the same bits ---- */

enum { COMPARED_LAUNCHES = 64 };

enum { DIFFERENCES_MOST = 4096 };

/* A number that is not what it was first. */
typedef struct difference {
    int replay, launch, place; /* of the graph; in it; of y */
    uint16_t own, first;
} difference;

typedef struct differences {
    unsigned long long count;
    difference some[DIFFERENCES_MOST];
} differences;

/* y: of all launches of a graph, `count` numbers each. */
__global__ void compare_bits(const uint16_t *y, const uint16_t *first, int64_t count, int replay,
                             differences *found)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count * COMPARED_LAUNCHES;
         i += (int64_t)gridDim.x * THREADS) {
        if (y[i] == first[i])
            continue;
        const unsigned long long before = atomicAdd(&found->count, 1ull);
        if (before < DIFFERENCES_MOST)
            found->some[before] = {replay, (int)(i / count), (int)(i % count), y[i], first[i]};
    }
}

/* A line for every launch that differed. */
static void print_differences(const differences &found, int rows)
{
    std::vector<difference> some(found.some, found.some + std::min<size_t>(found.count, DIFFERENCES_MOST));
    std::sort(some.begin(), some.end(), [](const difference &a, const difference &b) {
        return std::tie(a.replay, a.launch, a.place) < std::tie(b.replay, b.launch, b.place);
    });
    for (size_t i = 0, end; i < some.size(); i = end) {
        std::set<int> own_rows, tokens;
        for (end = i;
             end < some.size() && some[end].replay == some[i].replay && some[end].launch == some[i].launch;
             end++) {
            own_rows.insert(some[end].place % rows);
            tokens.insert(some[end].place / rows);
        }
        printf("    replay %d launch %d: %zu numbers, the first %04x instead of %04x; tokens", some[i].replay,
               some[i].launch, end - i, some[i].own, some[i].first);
        for (int token : tokens)
            printf(" %d", token);
        printf("; rows");
        for (int row : own_rows)
            printf(" %d", row);
        printf("\n");
    }
}

/* Compares every y of `repeats` launches with that of the first from the same codes, on the device. Launches
 * follow each other in graphs over `copies` of the codes; apart: each alone, over what was in y before. */
static unsigned long long compare_launches(bench *b, int rows, int columns, const grid_choice &grid, int group,
                                           bool arranged, int tokens, int copies, bool apart, int repeats)
{
    const int64_t count = (int64_t)tokens * rows;
    const size_t all_bytes = (size_t)count * 2 * COMPARED_LAUNCHES;
    static differences host;
    char *own, *first;
    MUST(cudaMalloc((void **)&own, all_bytes));
    MUST(cudaMalloc((void **)&first, all_bytes));
    host.count = 0;
    differences *found = (differences *)to_device(&host, sizeof host);
    const auto launch = [&](int i) {
        decant_grid_matrix matrix = matrix_copy(b, rows, columns, grid, group, i % copies);
        matrix.arranged = arranged;
        multiply(b, matrix, tokens, own + (size_t)i * (size_t)count * 2);
    };
    cudaGraphExec_t graph = graph_of(b, COMPARED_LAUNCHES, launch);
    for (int i = 0; i <= repeats / COMPARED_LAUNCHES; i++) {
        if (i == 0 || !apart)
            MUST(cudaGraphLaunch(graph, b->stream));
        else
            for (int j = 0; j < COMPARED_LAUNCHES; j++) {
                MUST(cudaMemsetAsync(own + (size_t)j * (size_t)count * 2, 0xff, (size_t)count * 2, b->stream));
                launch(j);
                MUST(cudaStreamSynchronize(b->stream));
            }
        if (i == 0)
            MUST(cudaMemcpyAsync(first, own, all_bytes, cudaMemcpyDeviceToDevice, b->stream));
        compare_bits<<<256, THREADS, 0, b->stream>>>((const uint16_t *)own, (const uint16_t *)first, count, i,
                                                     found);
        MUST(cudaGetLastError());
    }
    MUST(cudaStreamSynchronize(b->stream));
    MUST(cudaMemcpy(&host, found, sizeof host, cudaMemcpyDeviceToHost));
    MUST(cudaGraphExecDestroy(graph));
    MUST(cudaFree(own));
    MUST(cudaFree(first));
    MUST(cudaFree(found));
    print_differences(host, rows);
    return host.count;
}

/* In place of times: numbers that differed, of launches over codes out of device memory, over codes that may be
 * in the L2 cache, and of a sixteenth as many alone. */
static void repeat_shape(bench *b, int rows, int columns, const std::vector<grid_choice> &grids, int group,
                         const std::vector<int> &token_counts, int repeats)
{
    for (int tokens : token_counts)
        for (const grid_choice &grid : grids) {
            const bool arranged =
                as_multiplied(b, matrix_copy(b, rows, columns, grid, group, 1), grid).arranged;
            const int copies = copies_of((double)planes_bytes(rows, columns, grid));
            const unsigned long long counts[] = {
                compare_launches(b, rows, columns, grid, group, arranged, tokens, copies, false, repeats),
                compare_launches(b, rows, columns, grid, group, arranged, tokens, 1, false, repeats),
                compare_launches(b, rows, columns, grid, group, arranged, tokens, 1, true, repeats / 16)};
            printf("%5dx%-5d %3d | p %d %2d bits | %llu %llu %llu different\n", rows, columns, tokens,
                   grid.dimension, grid.bits, counts[0], counts[1], counts[2]);
            fflush(stdout);
        }
}

/* ---- the table ---- */

/* Scales of groups are read like codes: as many copies of them. */
static void copy_scales(bench *b, int rows, int columns, int group)
{
    const size_t count = (size_t)rows * (size_t)((columns + group - 1) / group);
    for (int i = 0; i < COPIES_MAXIMUM; i++)
        MUST(cudaMemcpy((char *)b->scales + (size_t)i * count * 2, b->host_scales.data(), count * 2,
                        cudaMemcpyHostToDevice));
}

static void measure_shape(bench *b, int rows, int columns, const std::vector<grid_choice> &grids, int group,
                          const std::vector<int> &token_counts)
{
    for (int tokens : token_counts) {
        const double dense = time_dense(b, rows, columns, tokens);
        relative_error worst = {0, 0, true};
        printf("%5dx%-5d %3d %7.2f", rows, columns, tokens, dense);
        for (const grid_choice &grid : grids) {
            const int copies = copies_of((double)planes_bytes(rows, columns, grid));
            const decant_grid_matrix planes = matrix_copy(b, rows, columns, grid, group, 1),
                                     checked = as_multiplied(b, planes, grid);
            const double own = time_us(b, std::max<int>(copies, LAUNCHES_AT_LEAST), [&](int i) {
                decant_grid_matrix matrix = matrix_copy(b, rows, columns, grid, group, i % copies);
                matrix.arranged = checked.arranged;
                multiply(b, matrix, tokens, b->y_data);
            });
            const relative_error error = check(b, planes, checked, tokens);
            printf(" | %6.2f %4.2fx%s", own, dense / own, error.same ? "" : " bits!");
            if (!(error.of_y <= worst.of_y))
                worst = error;
        }
        printf(" | %.2e %.2e\n", worst.of_y, worst.of_rounding);
        fflush(stdout);
    }
}

/* The places in an array of the products of a layer, one after the other, from the beginning again at its end.
 */
typedef struct layer_places {
    int64_t used, count;

    int64_t take(int64_t size)
    {
        used = used + size > count ? size : used + size;
        return used - size;
    }
} layer_places;

static void measure_layers(bench *b, const std::vector<grid_choice> &grids, int group,
                           const std::vector<int> &token_counts, int layers)
{
    static const int products[] = {0, 0, 0, 0, 1, 1, 2}; /* of SHAPES */
    const int count = (int)(sizeof products / sizeof *products);
    for (int tokens : token_counts) {
        layer_places places = {0, b->weight_count};
        const double dense = time_us(b, count * layers, [&](int i) {
            const int *shape = SHAPES[products[i % count]];
            decant_error err;
            decant_matrix x = {b->x_data, DECANT_BF16, tokens, shape[1]},
                          y = {b->y_data, DECANT_BF16, tokens, shape[0]};
            decant_matrix weight = {b->weights + places.take((int64_t)shape[0] * shape[1]), DECANT_BF16,
                                    shape[0], shape[1]};
            require(b->backend->model->linear(b->backend, x, weight, false, y, &err), &err);
        });
        printf("layer       %3d %7.2f", tokens, dense * count);
        for (const grid_choice &grid : grids) {
            const bool arranged =
                as_multiplied(b, matrix_copy(b, SHAPES[0][0], SHAPES[0][1], grid, group, 0), grid).arranged;
            places = {0, (int64_t)b->pool_bytes};
            const double own = time_us(b, count * layers, [&](int i) {
                const int *shape = SHAPES[products[i % count]];
                decant_grid_matrix matrix = matrix_copy(b, shape[0], shape[1], grid, group, 0);
                matrix.planes =
                    (uint32_t *)(b->pool + places.take((int64_t)planes_bytes(shape[0], shape[1], grid)));
                matrix.arranged = arranged;
                multiply(b, matrix, tokens, b->y_data);
            });
            printf(" | %6.2f %4.2fx", own * count, dense / own);
        }
        printf("\n");
        fflush(stdout);
    }
}

static void make_arrays(bench *b, int tokens, int group, int shapes)
{
    int64_t most = 0, most_scales = 0;
    int widest = 0;
    for (int i = 0; i < (int)(sizeof SHAPES / sizeof *SHAPES); i++) {
        if (!(shapes >> i & 1))
            continue;
        const int64_t rows = SHAPES[i][0], columns = SHAPES[i][1], count = rows * columns;
        most = std::max(most, count * copies_of(2.0 * (double)count));
        most_scales = std::max(most_scales, group > 0 ? rows * ((columns + group - 1) / group) : rows);
        widest = std::max(widest, std::max(SHAPES[i][0], SHAPES[i][1]));
    }
    b->weight_count = most;
    b->pool_bytes = (size_t)640 << 20;
    MUST(cudaMalloc((void **)&b->pool, b->pool_bytes));
    MUST(cudaMalloc((void **)&b->checked, (size_t)most));
    MUST(cudaMalloc((void **)&b->weights, (size_t)most * 2));
    fill_words<<<2048, THREADS, 0, b->stream>>>((uint64_t *)b->pool, (int64_t)(b->pool_bytes / 8));
    fill_weights<<<2048, THREADS, 0, b->stream>>>(b->weights, most);
    MUST(cudaGetLastError());
    for (int64_t i = 0; i < (int64_t)tokens * widest; i++)
        b->x.push_back(__float2bfloat16_rn(normal_value((uint64_t)i + 999) *
                                           (decant_random_bits(4, 0, (uint64_t)i) % 512 == 0 ? 30.0f : 1.0f)));
    for (int64_t i = 0; i < most_scales; i++)
        b->host_scales.push_back(__float2half_rn(0.02f + 0.005f * normal_value((uint64_t)i + 333)));
    b->x_data = to_device(b->x.data(), b->x.size() * 2);
    MUST(cudaMalloc(&b->scales, b->host_scales.size() * 2 * (group > 0 ? COPIES_MAXIMUM : 1)));
    MUST(cudaMemcpy(b->scales, b->host_scales.data(), b->host_scales.size() * 2, cudaMemcpyHostToDevice));
    MUST(cudaMalloc(&b->y_data, (size_t)tokens * widest * 2));
    MUST(cudaStreamSynchronize(b->stream));
}

static std::vector<grid_choice> read_grids(const char *text)
{
    std::vector<grid_choice> grids;
    for (char *end; *text; text = *end ? end + 1 : end) {
        grid_choice grid;
        grid.dimension = (int)strtol(text, &end, 10);
        grid.bits = *end == ':' ? (int)strtol(end + 1, &end, 10) : 0;
        for (int i = 0; i < grid.dimension << grid.bits; i++)
            grid.points.push_back(normal_value((uint64_t)i + 77));
        grids.push_back(grid);
    }
    return grids;
}

int main(int argc, char **argv)
{
    std::vector<int> token_counts = {1, 2, 4, 8, 16, 32};
    const char *grid_list = "2:8,2:6,2:4";
    int shapes = 63, group = 0, arranged = 1, repeats = 0, layers = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--tokens") == 0)
            token_counts = read_list(argv[i + 1]);
        else if (strcmp(argv[i], "--grids") == 0)
            grid_list = argv[i + 1];
        else if (strcmp(argv[i], "--shapes") == 0)
            shapes = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--group") == 0)
            group = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--arranged") == 0)
            arranged = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--repeat") == 0)
            repeats = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--layers") == 0)
            layers = atoi(argv[i + 1]);
    }
    if (layers > 0)
        shapes = 7; /* those of a layer */
    const std::vector<grid_choice> grids = read_grids(grid_list);
    bench b = {};
    b.arranges = arranged != 0;
    decant_error err = {};
    require(decant_backend_create_cuda(0, false, &b.backend, &err), &err);
    b.stream = decant_cuda_of(b.backend)->stream;
    make_arrays(&b, *std::max_element(token_counts.begin(), token_counts.end()), group, shapes);
    printf("%s; %s\n", b.backend->device_name, repeats > 0 ? "same bits" : "microseconds, times BF16");
    if (repeats == 0) {
        printf("%-11s %3s %7s", "shape", "T", "BF16");
        for (const grid_choice &grid : grids)
            printf(" | p %d %2d bits   ", grid.dimension, grid.bits);
        printf(" | error    rounding\n");
    }
    if (layers > 0)
        measure_layers(&b, grids, group, token_counts, layers);
    for (int i = 0; i < (int)(sizeof SHAPES / sizeof *SHAPES); i++) {
        const int rows = SHAPES[i][0], columns = SHAPES[i][1];
        if (layers > 0 || !(shapes >> i & 1))
            continue;
        if (group > 0)
            copy_scales(&b, rows, columns, group);
        if (repeats > 0)
            repeat_shape(&b, rows, columns, grids, group, token_counts, repeats);
        else
            measure_shape(&b, rows, columns, grids, group, token_counts);
    }
    for (void *device : {(void *)b.pool, (void *)b.checked, (void *)b.weights, b.x_data, b.y_data, b.scales})
        MUST(cudaFree(device));
    decant_backend_destroy(&b.backend);
    return 0;
}
