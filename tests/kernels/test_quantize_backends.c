/* The quantize kernels of all backends mean the same: levels cost what the best ones cost also where masses
 * span the range of floats, and another backend than the CPU's chooses the same sparse weights, finds levels of
 * the same error in every row, and stores the same bytes for the same levels, at sizes of real layers. */
#include "tests/kernels/quantize_case.h"

enum { WIDTHS = DECANT_BITS_MAXIMUM - DECANT_BITS_MINIMUM + 1 };

/* Errors of rows differ by no more than this part of themselves. */
static const double ROW_TOLERANCE = 1e-6;
/* What rounding may cost, as part of the row's error with a single level: gains are sums of about that size. */
static const double ROUNDING_FLOOR = 1e-12;
/* Sums of doubles in another order. */
static const double SUM_TOLERANCE = 1e-11;

/* ---- errors of rows, in plain loops ---- */

/* Σ mass (value − nearest level)² over the weights of a row that count. */
static double row_error(const quantize_case *test, int64_t row, const uint16_t *levels, int count)
{
    const float *values = test->values + row * test->columns, *masses = test->masses + row * test->columns;
    const bool *sparse = test->sparse + row * test->columns;
    double error = 0, once = 0;
    bool any = false;
    for (int64_t j = 0; j < test->columns; j++) {
        int low = 0, high = count - 1; /* the first level not below the value, or the last */
        while (low < high) {
            int middle = (low + high) / 2;
            if ((double)decant_f16_to_f32(levels[middle]) < (double)values[j])
                low = middle + 1;
            else
                high = middle;
        }
        double above = fabs((double)values[j] - (double)decant_f16_to_f32(levels[low]));
        double below = low > 0 ? fabs((double)values[j] - (double)decant_f16_to_f32(levels[low - 1])) : above;
        double distance = fmin(above, below);
        if (sparse[j])
            continue;
        any |= masses[j] > 0;
        error += (double)masses[j] * distance * distance;
        once += distance * distance;
    }
    return any ? error : once;
}

/* The same with the mean as only level. */
static double row_spread(const quantize_case *test, int64_t row)
{
    const int64_t at = row * test->columns;
    sorted_row sorted = sort_row(test->values + at, test->masses + at, test->sparse + at, test->columns);
    long double mass = 0, moment = 0, spread = 0;
    for (int i = 0; i < sorted.n; i++) {
        mass += sorted.mass[i];
        moment += sorted.mass[i] * sorted.value[i];
    }
    for (int i = 0; i < sorted.n; i++)
        spread += sorted.mass[i] * (sorted.value[i] - moment / mass) * (sorted.value[i] - moment / mass);
    free_sorted_row(&sorted);
    return (double)spread;
}

static void expect_same_error(const quantize_case *test, int64_t row, int bits, double actual, double expected)
{
    double allowed = ROW_TOLERANCE * expected + ROUNDING_FLOOR * row_spread(test, row);
    if (!(fabs(actual - expected) <= allowed))
        fail_msg("row %lld of %lld x %lld %s, %d bits: error %.12g, expected %.12g", (long long)row,
                 (long long)test->rows, (long long)test->columns, decant_element_name(test->weight.element),
                 bits, actual, expected);
}

/* ---- levels on the device ---- */

typedef struct fitted {
    int bits[WIDTHS], widths;
    uint16_t *device[WIDTHS];
    uint16_t *host[WIDTHS];
} fitted;

static fitted fit(const quantize_case *test, decant_level_search search, int lowest, int highest)
{
    decant_backend *backend = test->backend;
    fitted levels = {.widths = highest - lowest + 1};
    size_t size_bytes[WIDTHS];
    for (int i = 0; i < levels.widths; i++) {
        levels.bits[i] = lowest + i;
        size_bytes[i] = (size_t)test->rows * sizeof(uint16_t) << levels.bits[i];
        levels.device[i] = on_device(backend, NULL, size_bytes[i]);
    }
    REQUIRE(backend->quantize->fit_levels(backend, test->weight, test->fisher, &test->pattern, search, 3,
                                          levels.bits, levels.widths, levels.device, err));
    for (int i = 0; i < levels.widths; i++)
        levels.host[i] = from_device(backend, levels.device[i], size_bytes[i]);
    return levels;
}

static void drop_levels(decant_backend *backend, fitted *levels)
{
    for (int i = 0; i < levels->widths; i++) {
        void *device = levels->device[i];
        backend->memory->release(backend, &device);
        free(levels->host[i]);
    }
}

/* ---- the best levels of awkward rows, on any backend ---- */

typedef enum awkward_row {
    AWKWARD_WIDE_MASSES, /* masses over 2^-90 … 1 */
    AWKWARD_OFFSET,      /* values about 1, their spread small */
    AWKWARD_HEAVY_TAILS, /* every sixteenth value two thousand times as large as the others */
    AWKWARD_40_VALUES,
    AWKWARD_3_VALUES,
    AWKWARD_HALF_ZERO,
    AWKWARD_TINY_MASSES, /* as small as floats get */
    AWKWARD_ONE_COUNTS,  /* one positive mass alone */
    AWKWARD_HEAVY_FIRST, /* the least value weighs a million times as much as the others */
    AWKWARD_ROWS
} awkward_row;

static float awkward_value(awkward_row kind, int64_t j, uint64_t *seed)
{
    const double z = random_normal(seed);
    switch (kind) {
    case AWKWARD_OFFSET:
        return (float)(1 + 0.02 * z);
    case AWKWARD_HEAVY_TAILS:
        return (float)(j % 16 ? 0.0002 * z : 0.4 * z);
    case AWKWARD_40_VALUES:
        return (float)(0.01 * (double)(int)(20 * random_value(seed)));
    case AWKWARD_3_VALUES:
        return (float)(0.01 * (double)(int)(2 * random_value(seed)));
    case AWKWARD_HEAVY_FIRST:
        return j == 0 ? -0.5f : (float)(0.02 * z);
    default:
        return (float)(0.02 * z);
    }
}

static float awkward_mass(awkward_row kind, int64_t j, uint64_t *seed)
{
    const double fisher = random_fisher(seed);
    switch (kind) {
    case AWKWARD_WIDE_MASSES:
        return (float)exp2(-45 * (1 + random_value(seed)));
    case AWKWARD_HALF_ZERO:
        return random_value(seed) < 0 ? 0 : (float)fisher;
    case AWKWARD_TINY_MASSES:
        return (float)(1e-36 * fisher);
    case AWKWARD_ONE_COUNTS:
        return j == 0 ? 1 : 0;
    case AWKWARD_HEAVY_FIRST:
        return j == 0 ? 1 : (float)fisher;
    default:
        return (float)fisher;
    }
}

/* The error of the means of the best clusters, rounded, by the plain dynamic program. */
static double best_error(const quantize_case *test, int64_t row, int count)
{
    uint16_t levels[1 << DECANT_BITS_MAXIMUM] = {0};
    const int64_t at = row * test->columns;
    sorted_row sorted = sort_row(test->values + at, test->masses + at, test->sparse + at, test->columns);
    const int clusters = sorted.n < count ? sorted.n : count;
    long double *cost = zeroed((size_t)clusters, sizeof *cost);
    int *first = zeroed((size_t)clusters + 1, sizeof *first);
    slow_kmeans(&sorted, clusters, cost, first);
    first[clusters] = sorted.n;
    int filled = 0;
    for (int c = 0; c < clusters; c++) {
        if (first[c] == first[c + 1])
            continue; /* fewer clusters do as well */
        long double mass = 0, moment = 0;
        for (int i = first[c]; i < first[c + 1]; i++) {
            mass += sorted.mass[i];
            moment += sorted.mass[i] * sorted.value[i];
        }
        levels[filled++] = decant_f32_to_f16((float)(moment / mass));
    }
    free(cost);
    free(first);
    free_sorted_row(&sorted);
    return row_error(test, row, levels, filled);
}

static quantize_case awkward_case(decant_backend *backend, decant_element element, int64_t columns)
{
    quantize_case test = empty_case(backend, AWKWARD_ROWS, columns);
    for (int row = 0; row < AWKWARD_ROWS; row++) {
        uint64_t seed = (uint64_t)(columns * AWKWARD_ROWS + row);
        for (int64_t j = 0; j < columns; j++) {
            test.values[row * columns + j] = awkward_value((awkward_row)row, j, &seed);
            test.masses[row * columns + j] = awkward_mass((awkward_row)row, j, &seed);
            test.sparse[row * columns + j] = columns > 40 && j % 23 == 5;
        }
    }
    place_case(&test, element);
    return test;
}

static void levels_cost_least_when_rows_are_awkward(void **state)
{
    static const int64_t lengths[] = {1, 5, 17, 40, 63, 130, 257};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
            quantize_case test = awkward_case(*state, (decant_element)element, lengths[i]);
            fitted levels = fit(&test, DECANT_LEVELS_EXACT, DECANT_BITS_MINIMUM, 6);
            for (int64_t row = 0; row < test.rows; row++)
                for (int w = 0; w < levels.widths; w++) {
                    const int count = 1 << levels.bits[w];
                    double error = row_error(&test, row, levels.host[w] + row * count, count);
                    expect_same_error(&test, row, levels.bits[w], error, best_error(&test, row, count));
                }
            drop_levels(*state, &levels);
            drop_case(&test);
        }
}

/* ---- against the CPU ---- */

typedef struct backend_pair {
    decant_backend *other, *cpu;
    quantize_case on_other, on_cpu; /* the same numbers on both */
} backend_pair;

/* Chooses sparse weights and makes them the case's pattern. */
static void select_pattern(quantize_case *test, int64_t n_sensitive, int64_t n_outliers)
{
    decant_backend *backend = test->backend;
    const size_t offset_bytes = ((size_t)test->rows + 1) * sizeof(uint32_t);
    test->pattern.count = n_sensitive + n_outliers;
    test->pattern.row_offsets = on_device(backend, NULL, offset_bytes);
    test->pattern.columns = on_device(backend, NULL, (size_t)test->pattern.count * sizeof(uint32_t));
    REQUIRE(backend->quantize->select_sparse(backend, test->weight, test->fisher, n_sensitive, n_outliers,
                                             &test->pattern, err));
    uint32_t *row_offsets = from_device(backend, test->pattern.row_offsets, offset_bytes);
    uint32_t *columns =
        from_device(backend, test->pattern.columns, (size_t)test->pattern.count * sizeof(uint32_t));
    for (int64_t row = 0; row < test->rows; row++)
        for (uint32_t i = row_offsets[row]; i < row_offsets[row + 1]; i++)
            test->sparse[row * test->columns + columns[i]] = true;
    free(row_offsets);
    free(columns);
}

static backend_pair open_pair(void **state, row_kind kind, decant_element element, int64_t rows,
                              int64_t columns)
{
    backend_pair pair = {.other = *state};
    if (strcmp(pair.other->name, "cpu") == 0)
        skip();
    REQUIRE(decant_backend_create_cpu(0, &pair.cpu, err));
    pair.on_other = make_case(pair.other, kind, element, rows, columns);
    pair.on_cpu = make_case(pair.cpu, kind, element, rows, columns);
    const int64_t sensitive = rows * columns / 2000, outliers = rows * columns / 250;
    select_pattern(&pair.on_other, sensitive, outliers);
    select_pattern(&pair.on_cpu, sensitive, outliers);
    assert_memory_equal(pair.on_other.sparse, pair.on_cpu.sparse,
                        (size_t)pair.on_cpu.size * sizeof *pair.on_cpu.sparse);
    return pair;
}

static void close_pair(backend_pair *pair)
{
    drop_case(&pair->on_other);
    drop_case(&pair->on_cpu);
    decant_backend_destroy(&pair->cpu);
}

static void expect_same_rows(const backend_pair *pair, decant_level_search search, int lowest, int highest)
{
    const quantize_case *test = &pair->on_cpu;
    fitted actual = fit(&pair->on_other, search, lowest, highest),
           expected = fit(test, search, lowest, highest);
    for (int w = 0; w < actual.widths; w++)
        for (int64_t row = 0; row < test->rows; row++) {
            const int count = 1 << actual.bits[w];
            expect_same_error(test, row, actual.bits[w],
                              row_error(test, row, actual.host[w] + row * count, count),
                              row_error(test, row, expected.host[w] + row * count, count));
        }
    drop_levels(pair->other, &actual);
    drop_levels(pair->cpu, &expected);
}

static void rows_have_the_same_error_when_layers_are_real(void **state)
{
    /* Up to and beyond what a block sorts at once, 1024, 4096, 11264 and 22528. */
    static const int64_t shapes[][2] = {{40, 576},  {7, 1025},  {24, 4096}, {5, 4097},
                                        {6, 11008}, {3, 14336}, {2, 22529}, {2, 28672}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
            backend_pair pair =
                open_pair(state, ROW_NORMAL, (decant_element)element, shapes[i][0], shapes[i][1]);
            expect_same_rows(&pair, DECANT_LEVELS_EXACT, DECANT_BITS_MINIMUM, DECANT_BITS_MAXIMUM);
            close_pair(&pair);
        }
}

static void rows_have_the_same_error_when_few_widths_are_asked_for(void **state)
{
    static const int widths[][2] = {{2, 2}, {3, 3}, {2, 3}, {4, 4}, {4, 5}, {5, 5}, {8, 8}};
    backend_pair pair = open_pair(state, ROW_NORMAL, DECANT_F16, 33, 2000);
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        expect_same_rows(&pair, DECANT_LEVELS_EXACT, widths[i][0], widths[i][1]);
    close_pair(&pair);
}

static void rows_have_the_same_error_when_lloyd_searches(void **state)
{
    for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
        backend_pair pair = open_pair(state, ROW_NORMAL, (decant_element)element, 6, 701);
        expect_same_rows(&pair, DECANT_LEVELS_LLOYD, DECANT_BITS_MINIMUM, DECANT_BITS_MAXIMUM);
        close_pair(&pair);
    }
}

/* Host arrays of a packed matrix. */
typedef struct packing {
    uint32_t *planes;
    uint16_t *sparse_values;
    size_t plane_bytes, sparse_bytes;
} packing;

static packing encode(const quantize_case *test, int bits, const uint16_t *levels)
{
    decant_backend *backend = test->backend;
    packing result = {.plane_bytes =
                          (size_t)(test->rows * bits * ((test->columns + 31) / 32)) * sizeof(uint32_t),
                      .sparse_bytes = (size_t)test->pattern.count * sizeof(uint16_t)};
    decant_packed_matrix packed = {.rows = test->rows, .columns = test->columns, .bits = bits};
    packed.planes = on_device(backend, NULL, result.plane_bytes);
    packed.levels = on_device(backend, levels, (size_t)test->rows * sizeof *levels << bits);
    packed.sparse = test->pattern;
    packed.sparse_values = on_device(backend, NULL, result.sparse_bytes);
    REQUIRE(backend->quantize->encode(backend, test->weight, &packed, err));
    result.planes = from_device(backend, packed.planes, result.plane_bytes);
    result.sparse_values = from_device(backend, packed.sparse_values, result.sparse_bytes);
    void *arrays[] = {packed.planes, packed.levels, packed.sparse_values};
    for (int i = 0; i < 3; i++)
        backend->memory->release(backend, &arrays[i]);
    return result;
}

static void expect_same_bytes(const backend_pair *pair, int bits, const uint16_t *levels)
{
    packing actual = encode(&pair->on_other, bits, levels), expected = encode(&pair->on_cpu, bits, levels);
    assert_memory_equal(actual.planes, expected.planes, expected.plane_bytes);
    assert_memory_equal(actual.sparse_values, expected.sparse_values, expected.sparse_bytes);
    free(actual.planes);
    free(actual.sparse_values);
    free(expected.planes);
    free(expected.sparse_values);
}

static decant_matrix_error measure(const quantize_case *test, int bits, const uint16_t *levels)
{
    decant_backend *backend = test->backend;
    decant_matrix_error error;
    void *device = on_device(backend, levels, (size_t)test->rows * sizeof *levels << bits);
    REQUIRE(backend->quantize->measure(backend, test->weight, test->fisher, &test->pattern, bits, device,
                                       &error, err));
    backend->memory->release(backend, &device);
    return error;
}

static void expect_same_sum(double actual, double expected, const char *what)
{
    if (!(fabs(actual - expected) <= SUM_TOLERANCE * expected))
        fail_msg("%s is %.15g, expected %.15g", what, actual, expected);
}

static void same_levels_give_the_same_bytes_and_errors(void **state)
{
    static const int64_t shapes[][2] = {{129, 67}, {31, 4096}, {3, 28673}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int element = DECANT_F32; element <= DECANT_BF16; element++) {
            backend_pair pair =
                open_pair(state, ROW_NORMAL, (decant_element)element, shapes[i][0], shapes[i][1]);
            fitted levels = fit(&pair.on_cpu, DECANT_LEVELS_EXACT, DECANT_BITS_MINIMUM, DECANT_BITS_MAXIMUM);
            for (int w = 0; w < levels.widths; w++) {
                expect_same_bytes(&pair, levels.bits[w], levels.host[w]);
                decant_matrix_error actual = measure(&pair.on_other, levels.bits[w], levels.host[w]);
                decant_matrix_error expected = measure(&pair.on_cpu, levels.bits[w], levels.host[w]);
                expect_same_sum(actual.weighted, expected.weighted, "the weighted error");
                expect_same_sum(actual.squared, expected.squared, "the squared error");
                expect_same_sum(actual.norm, expected.norm, "the norm");
            }
            drop_levels(pair.cpu, &levels);
            close_pair(&pair);
        }
}

/* Many weights of a few magnitudes: what is chosen is decided by place. */
static void same_weights_are_sparse_when_most_keys_are_equal(void **state)
{
    static const row_kind kinds[] = {ROW_GRID, ROW_CONSTANT, ROW_UNIFORM_MASS, ROW_ALL_ZERO};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        backend_pair pair = open_pair(state, kinds[i], DECANT_BF16, 300, 1111);
        close_pair(&pair);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_cost_least_when_rows_are_awkward),
        cmocka_unit_test(rows_have_the_same_error_when_layers_are_real),
        cmocka_unit_test(rows_have_the_same_error_when_few_widths_are_asked_for),
        cmocka_unit_test(rows_have_the_same_error_when_lloyd_searches),
        cmocka_unit_test(same_levels_give_the_same_bytes_and_errors),
        cmocka_unit_test(same_weights_are_sparse_when_most_keys_are_equal),
    };
    cmocka_set_test_filter(getenv("DECANT_TEST_ONLY")); /* one test at a time, under tools that are slow */
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
