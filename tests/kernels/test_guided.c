/* Guided quantization on the CPU backend: its Hessians, levels and codes against those of
 * tests/reference/make_guided_golden.py, and against brute force. */
#include "tests/kernels/device_arrays.h"

enum { TOKENS = 24, ROWS = 10, COLUMNS = 40, GROUPS = 3, BITS = 2, LEVELS = 4, ROUNDS = 3, SWEEPS = 4 };

static const double DAMPING = 0.01;

/* ---- the golden file ---- */

typedef struct golden_case {
    char *bytes;
    const float *gradient, *input, *weight, *hessian;
    const uint16_t *start, *levels;
    const uint32_t *offsets, *columns;
    const uint8_t *codes;
    const double *objective; /* [ROUNDS + 1, ROWS] */
} golden_case;

/* What "data_offsets" says after the tensor's name in the header. */
static const void *tensor_of(const char *bytes, const char *name)
{
    char quoted[64];
    size_t begin;
    uint64_t header_bytes;
    memcpy(&header_bytes, bytes, sizeof header_bytes);
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    const char *entry = strstr(bytes + 8, quoted);
    assert_non_null(entry);
    const char *offsets = strstr(entry, "\"data_offsets\":[");
    assert_non_null(offsets);
    assert_int_equal(sscanf(offsets, "\"data_offsets\":[%zu,", &begin), 1);
    return bytes + 8 + header_bytes + begin;
}

static golden_case read_golden(void)
{
    char path[512];
    const char *source = getenv("DECANT_TEST_SOURCE");
    snprintf(path, sizeof path, "%s/tests/reference/guided_golden.safetensors", source ? source : ".");
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot open %s", path);
    enum { MOST_BYTES = 1 << 20 };
    golden_case golden = {.bytes = calloc(MOST_BYTES, 1)};
    assert_non_null(golden.bytes);
    assert_true(fread(golden.bytes, 1, MOST_BYTES - 1, file) > 0);
    fclose(file);
    golden.gradient = tensor_of(golden.bytes, "gradient");
    golden.input = tensor_of(golden.bytes, "input");
    golden.weight = tensor_of(golden.bytes, "weight");
    golden.hessian = tensor_of(golden.bytes, "hessian");
    golden.start = tensor_of(golden.bytes, "start");
    golden.levels = tensor_of(golden.bytes, "levels");
    golden.offsets = tensor_of(golden.bytes, "offsets");
    golden.columns = tensor_of(golden.bytes, "columns");
    golden.codes = tensor_of(golden.bytes, "codes");
    golden.objective = tensor_of(golden.bytes, "objective");
    return golden;
}

static int group_of(int64_t row)
{
    int group = 0;
    while (decant_hessian_group_first(ROWS, GROUPS, group + 1) <= row)
        group++;
    return group;
}

static decant_matrix matrix_of(const float *values, int64_t rows, int64_t columns)
{
    return (decant_matrix){
        .data = (void *)(uintptr_t)values, .element = DECANT_F32, .rows = rows, .columns = columns};
}

/* ---- one run ---- */

typedef struct guided_result {
    uint16_t levels[ROWS * LEVELS];
    uint32_t planes[ROWS * BITS * 2];
    uint16_t sparse_values[ROWS * COLUMNS];
    decant_matrix_error error;
} guided_result;

static guided_result guide(decant_backend *backend, const golden_case *golden, int rounds, int sweeps)
{
    guided_result result = {0};
    const decant_guided_search search = {
        .groups = GROUPS, .hessian = golden->hessian, .damping = DAMPING, .rounds = rounds, .sweeps = sweeps};
    memcpy(result.levels, golden->start, sizeof result.levels);
    decant_packed_matrix packed = {
        .rows = ROWS,
        .columns = COLUMNS,
        .bits = BITS,
        .planes = result.planes,
        .levels = result.levels,
        .sparse = {golden->offsets[ROWS], (uint32_t *)(uintptr_t)golden->offsets,
                   (uint32_t *)(uintptr_t)golden->columns},
        .sparse_values = result.sparse_values,
    };
    REQUIRE(backend->quantize->guide(backend, matrix_of(golden->weight, ROWS, COLUMNS), &search, &packed,
                                     &result.error, err));
    return result;
}

static int code_of(const guided_result *result, int64_t row, int64_t j)
{
    int code = 0;
    for (int b = 0; b < BITS; b++)
        code |= (int)(result->planes[(row * BITS + b) * 2 + j / 32] >> j % 32 & 1u) << b;
    return code;
}

static bool is_sparse(const golden_case *golden, int64_t row, int64_t j)
{
    for (uint32_t i = golden->offsets[row]; i < golden->offsets[row + 1]; i++)
        if (golden->columns[i] == j)
            return true;
    return false;
}

/* δᵀ (H + λ) δ of a row; δ [COLUMNS] */
static double objective_of(const golden_case *golden, int64_t row, const double *missing, double damping)
{
    const float *hessian = golden->hessian + group_of(row) * COLUMNS * COLUMNS;
    double sum = 0, diagonal = 0;
    for (int i = 0; i < COLUMNS; i++)
        diagonal += hessian[i * COLUMNS + i];
    for (int i = 0; i < COLUMNS; i++) {
        sum += damping * diagonal / COLUMNS * missing[i] * missing[i];
        for (int j = 0; j < COLUMNS; j++)
            sum += missing[i] * (double)hessian[i * COLUMNS + j] * missing[j];
    }
    return sum;
}

static void missing_of(const golden_case *golden, const guided_result *result, int64_t row, double *missing)
{
    for (int64_t j = 0; j < COLUMNS; j++) {
        double level = decant_f16_to_f32(result->levels[row * LEVELS + code_of(result, row, j)]);
        missing[j] = is_sparse(golden, row, j) ? 0 : (double)golden->weight[row * COLUMNS + j] - level;
    }
}

/* ---- tests ---- */

static void hessians_are_those_of_numpy(void **state)
{
    decant_backend *backend = *state;
    golden_case golden = read_golden();
    float *hessian = calloc(GROUPS * COLUMNS * COLUMNS, sizeof *hessian);
    assert_non_null(hessian);
    for (int64_t first = 0, count; first < TOKENS; first += count) { /* two micro-batches */
        count = first == 0 ? 14 : TOKENS - 14;
        REQUIRE(backend->model->gram_add(backend, matrix_of(golden.gradient + first * ROWS, count, ROWS),
                                         matrix_of(golden.input + first * COLUMNS, count, COLUMNS), GROUPS,
                                         hessian, err));
    }
    for (int group = 0; group < GROUPS; group++)
        for (int i = 0; i < COLUMNS; i++)
            for (int j = 0; j < COLUMNS; j++) {
                const float *mine = hessian + group * COLUMNS * COLUMNS;
                const float *numpys = golden.hessian + group * COLUMNS * COLUMNS;
                double scale = sqrt((double)numpys[i * COLUMNS + i] * numpys[j * COLUMNS + j]);
                assert_true(mine[i * COLUMNS + j] == mine[j * COLUMNS + i]);
                if (fabs((double)mine[i * COLUMNS + j] - numpys[i * COLUMNS + j]) > F32_TOLERANCE * scale)
                    fail_msg("H[%d, %d, %d] is %g, not %g", group, i, j, mine[i * COLUMNS + j],
                             numpys[i * COLUMNS + j]);
            }
    free(hessian);
    free(golden.bytes);
}

/* Large enough for several tiles, of which one is short. */
static void hessians_are_symmetric_sums_over_tiles(void **state)
{
    decant_backend *backend = *state;
    enum { MANY = 600, FEW = 5 };
    device_array x = activation_array(backend, FEW, MANY, 1, 3), dy = activation_array(backend, FEW, 2, 1, 4);
    float *hessian = calloc((size_t)MANY * MANY, sizeof *hessian);
    assert_non_null(hessian);
    REQUIRE(backend->model->gram_add(backend, dy.matrix, x.matrix, 1, hessian, err));
    for (int64_t i = 0; i < MANY; i++)
        for (int64_t j = 0; j < MANY; j++) {
            double sum = 0;
            for (int64_t t = 0; t < FEW; t++) {
                double s =
                    (dy.values[2 * t] * dy.values[2 * t] + dy.values[2 * t + 1] * dy.values[2 * t + 1]) / 2;
                sum += s * x.values[t * MANY + i] * x.values[t * MANY + j];
            }
            assert_true(fabs(sum - hessian[i * MANY + j]) < F32_TOLERANCE);
            assert_true(hessian[i * MANY + j] == hessian[j * MANY + i]);
        }
    free(hessian);
    drop(backend, &x);
    drop(backend, &dy);
}

static void levels_and_codes_are_those_of_numpy(void **state)
{
    decant_backend *backend = *state;
    golden_case golden = read_golden();
    guided_result result = guide(backend, &golden, ROUNDS, SWEEPS);
    for (int64_t row = 0; row < ROWS; row++) {
        assert_memory_equal(result.levels + row * LEVELS, golden.levels + row * LEVELS, LEVELS * 2);
        for (int64_t j = 0; j < COLUMNS; j++)
            if (!is_sparse(&golden, row, j))
                assert_int_equal(code_of(&result, row, j), golden.codes[row * COLUMNS + j]);
        for (uint32_t i = golden.offsets[row]; i < golden.offsets[row + 1]; i++) {
            int64_t j = golden.columns[i];
            double level = decant_f16_to_f32(result.levels[row * LEVELS + code_of(&result, row, j)]);
            double weight = golden.weight[row * COLUMNS + j];
            assert_true(fabs(level + decant_f16_to_f32(result.sparse_values[i]) - weight) <=
                        fabs(weight - level) / 2048);
        }
    }
    free(golden.bytes);
}

static void the_objective_falls_with_every_round_as_in_numpy(void **state)
{
    decant_backend *backend = *state;
    golden_case golden = read_golden();
    double last = INFINITY;
    for (int rounds = 0; rounds <= ROUNDS; rounds++) {
        guided_result result = guide(backend, &golden, rounds, SWEEPS);
        double objective = 0, weighted = 0, numpys = 0, missing[COLUMNS];
        for (int64_t row = 0; row < ROWS; row++) {
            missing_of(&golden, &result, row, missing);
            objective += objective_of(&golden, row, missing, DAMPING);
            weighted += objective_of(&golden, row, missing, 0);
            numpys += golden.objective[rounds * ROWS + row];
        }
        assert_true(objective < last);
        last = objective;
        if (fabs(objective - numpys) > 1e-4 * numpys)
            fail_msg("%d rounds: objective %g, NumPy's %g", rounds, objective, numpys);
        /* what is reported counts the rounding of the sparse part too, and no damping */
        if (fabs(result.error.weighted - weighted) > 1e-3 * weighted)
            fail_msg("%d rounds: reported %g, is %g", rounds, result.error.weighted, weighted);
    }
    free(golden.bytes);
}

/* No other code for any one weight, and no other value for any one level, is better. */
static void nothing_alone_can_be_improved_in_the_end(void **state)
{
    decant_backend *backend = *state;
    golden_case golden = read_golden();
    guided_result result = guide(backend, &golden, 1, 100);
    for (int64_t row = 0; row < ROWS; row++) {
        double missing[COLUMNS];
        missing_of(&golden, &result, row, missing);
        double objective = objective_of(&golden, row, missing, DAMPING);
        for (int64_t j = 0; j < COLUMNS; j++)
            for (int code = 0; code < LEVELS && !is_sparse(&golden, row, j); code++) {
                double kept = missing[j];
                missing[j] = golden.weight[row * COLUMNS + j] -
                             (double)decant_f16_to_f32(result.levels[row * LEVELS + code]);
                assert_true(objective_of(&golden, row, missing, DAMPING) >= objective * (1 - 1e-5));
                missing[j] = kept;
            }
    }
    result = guide(backend, &golden, 1, 0); /* levels for the nearest codes of the start */
    for (int64_t row = 0; row < ROWS; row++)
        for (int changed = 0; changed < LEVELS; changed++)
            for (int sign = -1; sign <= 1; sign += 2) {
                double missing[COLUMNS];
                missing_of(&golden, &result, row, missing);
                double objective = objective_of(&golden, row, missing, DAMPING);
                for (int64_t j = 0; j < COLUMNS; j++)
                    if (code_of(&result, row, j) == changed && !is_sparse(&golden, row, j))
                        missing[j] += sign * 1e-3; /* far more than a level is rounded by */
                assert_true(objective_of(&golden, row, missing, DAMPING) >= objective);
            }
    free(golden.bytes);
}

static void threads_do_not_show(void **state)
{
    decant_backend *one, *three;
    enum { MANY_ROWS = 150, WIDE = 200, WORDS = 7, EIGHT = 8, FEW = 40 };
    device_array weight = random_host_array(DECANT_F32, MANY_ROWS, WIDE, 0.1, 9);
    device_array x = random_host_array(DECANT_F32, FEW, WIDE, 1, 10);
    device_array dy = random_host_array(DECANT_F32, FEW, MANY_ROWS, 1, 11);
    float *hessian[2];
    uint16_t levels[2][MANY_ROWS * EIGHT];
    uint32_t planes[2][MANY_ROWS * 3 * WORDS];
    (void)state;
    REQUIRE(open_backend_named("cpu", 1, &one, err));
    REQUIRE(open_backend_named("cpu", 3, &three, err));
    for (int i = 0; i < 2; i++) {
        decant_backend *backend = i == 0 ? one : three;
        decant_matrix_error error;
        hessian[i] = calloc(2 * WIDE * WIDE, sizeof **hessian);
        assert_non_null(hessian[i]);
        REQUIRE(backend->model->gram_add(backend, matrix_of(dy.host, FEW, MANY_ROWS),
                                         matrix_of(x.host, FEW, WIDE), 2, hessian[i], err));
        for (int k = 0; k < MANY_ROWS * EIGHT; k++)
            levels[i][k] = decant_f32_to_f16(0.025f * (float)(k % EIGHT) - 0.0875f);
        decant_guided_search search = {2, hessian[i], 0.01, 2, 3};
        decant_packed_matrix packed = {
            .rows = MANY_ROWS, .columns = WIDE, .bits = 3, .planes = planes[i], .levels = levels[i]};
        REQUIRE(backend->quantize->guide(backend, matrix_of(weight.host, MANY_ROWS, WIDE), &search, &packed,
                                         &error, err));
    }
    assert_memory_equal(hessian[0], hessian[1], 2 * WIDE * WIDE * sizeof **hessian);
    assert_memory_equal(levels[0], levels[1], sizeof levels[0]);
    assert_memory_equal(planes[0], planes[1], sizeof planes[0]);
    for (int i = 0; i < 2; i++)
        free(hessian[i]);
    drop(one, &weight);
    drop(one, &x);
    drop(one, &dy);
    decant_backend_destroy(&one);
    decant_backend_destroy(&three);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hessians_are_those_of_numpy),
        cmocka_unit_test(hessians_are_symmetric_sums_over_tiles),
        cmocka_unit_test(levels_and_codes_are_those_of_numpy),
        cmocka_unit_test(the_objective_falls_with_every_round_as_in_numpy),
        cmocka_unit_test(nothing_alone_can_be_improved_in_the_end),
        cmocka_unit_test(threads_do_not_show),
    };
    if (strcmp(test_device(), "cpu") != 0)
        exit(SKIPPED); /* no other backend has it yet */
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
