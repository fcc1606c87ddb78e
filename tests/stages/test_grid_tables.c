/* The tables of grids: which there are, that they are what they say (golden errors of
 * tests/reference/make_grid_golden.py, conditions of Lloyd and Max, published values), and that weights put
 * onto them leave the error that the tables promise. */
#include "kernels/backend.h"
#include "kernels/gaussian_pair.h"
#include "stages/grid_tables.h"
#include "tests/kernels/device_arrays.h"

/* Mean square error of a coordinate on standard normal variables; from 1, 2, 3 and 4 dimensions. */
static const struct {
    int dimension, code_bits;
    double error;
} golden[] = {
    {1, 2, 0.117482},     {1, 3, 0.0345478},   {1, 4, 0.00950101}, {1, 5, 0.00250467},  {1, 6, 0.00064424},
    {1, 7, 0.000163478},  {1, 8, 4.11851e-05}, {2, 4, 0.107601},   {2, 5, 0.0571079},   {2, 6, 0.0296748},
    {2, 7, 0.0152341},    {2, 8, 0.00775961},  {2, 9, 0.00393824}, {2, 10, 0.00199196}, {2, 11, 0.00101412},
    {2, 12, 0.000518203}, {3, 6, 0.101262},    {3, 7, 0.0655289},  {3, 8, 0.0421789},   {3, 9, 0.0270299},
    {3, 10, 0.0172321},   {3, 11, 0.0109505},  {3, 12, 0.0069657}, {4, 8, 0.0962076},   {4, 9, 0.0693513},
    {4, 10, 0.0497333},   {4, 11, 0.0355359},  {4, 12, 0.0253307},
};

static void tables_are_complete(void **state)
{
    (void)state;
    static const int least[] = {0, 2, 4, 6, 8}, most[] = {0, 8, 12, 12, 12};
    for (int p = -1; p <= 6; p++)
        for (int bits = -1; bits <= 16; bits++) {
            const bool line = p == 1 && bits >= 2 && bits <= 8;
            const bool higgs = p >= 1 && p <= 4 && bits >= least[p] && bits <= most[p];
            assert_int_equal(decant_grid_find(DECANT_GRID_HIGGS, p, bits) != NULL, higgs);
            assert_int_equal(decant_grid_find(DECANT_GRID_RTN, p, bits) != NULL, line);
            assert_int_equal(decant_grid_find(DECANT_GRID_NF4, p, bits) != NULL, p == 1 && bits == 4);
            const decant_grid *grid = decant_grid_find(DECANT_GRID_HIGGS, p, bits);
            if (grid)
                assert_true(grid->dimension == p && grid->code_bits == bits && grid->kind == DECANT_GRID_HIGGS);
        }
}

/* NumPy's sums are exact in one dimension; a rule of midpoints in two; random in three and four. */
static void errors_match_golden_numbers(void **state)
{
    (void)state;
    static const double allowed[] = {0, 1e-5, 3e-3, 5e-3, 5e-3};
    assert_int_equal(sizeof golden / sizeof *golden, 7 + 9 + 7 + 5);
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        const int p = golden[i].dimension, bits = golden[i].code_bits;
        const double error = decant_grid_find(DECANT_GRID_HIGGS, p, bits)->error;
        if (!(fabs(error / golden[i].error - 1) < allowed[p]))
            fail_msg("p %d, %d bits: the table says %.9g, NumPy %.9g", p, bits, error, golden[i].error);
    }
}

/* The constants of the grids of HIGGS's authors, most of them measured with 2^17 random samples. */
static void errors_match_published_ones(void **state)
{
    (void)state;
    static const struct {
        int dimension, code_bits;
        double error;
    } published[] = {
        {1, 2, 0.11748},   {1, 3, 0.03454},  {1, 4, 0.009497}, {1, 5, 0.002499}, {2, 4, 0.1074},
        {2, 5, 0.0574},    {2, 6, 0.02955},  {2, 7, 0.01527},  {2, 8, 0.00775},  {2, 10, 0.002042},
        {2, 12, 0.000586}, {3, 6, 0.1019},   {3, 8, 0.0422},   {3, 9, 0.0271},   {3, 10, 0.01723},
        {3, 11, 0.01099},  {3, 12, 0.00689}, {4, 8, 0.0961},   {4, 9, 0.0693},   {4, 10, 0.0502},
        {4, 12, 0.0255},
    };
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        const int p = published[i].dimension, bits = published[i].code_bits;
        const double error = decant_grid_find(DECANT_GRID_HIGGS, p, bits)->error;
        if (!(error < 1.011 * published[i].error))
            fail_msg("p %d, %d bits: %.6g, published %.6g", p, bits, error, published[i].error);
    }
}

static double density(double x)
{
    return isinf(x) ? 0 : exp(-0.5 * x * x) / sqrt(2 * 3.14159265358979323846);
}

/* Each level is the mean of the interval between the middles of its neighbours. */
static void lines_meet_the_conditions_of_lloyd_and_max(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 8; bits++) {
        const int n = 1 << bits;
        const float *levels = decant_grid_find(DECANT_GRID_HIGGS, 1, bits)->points;
        for (int i = 0; i < n; i++) {
            double low = i == 0 ? -INFINITY : 0.5 * ((double)levels[i - 1] + (double)levels[i]);
            double high = i == n - 1 ? INFINITY : 0.5 * ((double)levels[i] + (double)levels[i + 1]);
            double mass = 0.5 * (erfc(low / sqrt(2)) - erfc(high / sqrt(2)));
            double mean = (density(low) - density(high)) / mass;
            assert_true(fabs(mean - (double)levels[i]) < 1e-6);
            assert_true(i == 0 || levels[i] > levels[i - 1]);
        }
    }
}

/* The table of QLoRA's paper, appendix E. */
static void nf4_matches_the_published_values(void **state)
{
    (void)state;
    static const double published[] = {-1.0,
                                       -0.6961928009986877,
                                       -0.5250730514526367,
                                       -0.39491748809814453,
                                       -0.28444138169288635,
                                       -0.18477343022823334,
                                       -0.09105003625154495,
                                       0.0,
                                       0.07958029955625534,
                                       0.16093020141124725,
                                       0.24611230194568634,
                                       0.33791524171829224,
                                       0.44070982933044434,
                                       0.5626170039176941,
                                       0.7229568362236023,
                                       1.0};
    const float *points = decant_grid_find(DECANT_GRID_NF4, 1, 4)->points;
    for (int i = 0; i < 16; i++)
        assert_true(fabs((double)points[i] - published[i]) < 1e-6);
}

static void rtn_has_even_steps(void **state)
{
    (void)state;
    for (int bits = 2; bits <= 8; bits++)
        for (int i = 0; i < 1 << bits; i++)
            assert_true(decant_grid_find(DECANT_GRID_RTN, 1, bits)->points[i] == (float)i);
}

/* ---- weights on the grids ---- */

enum { ROWS = 64, COLUMNS = 4096 };

/* Normal weights; or products of two normal numbers, whose kurtosis is 9 against the normal 3. */
static float *make_weights(bool heavy_tailed)
{
    float *weights = malloc((size_t)ROWS * COLUMNS * sizeof *weights);
    assert_non_null(weights);
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t j = 0; j < COLUMNS; j++) {
            decant_gaussian_pair pair = decant_gaussian_pair_at(5, row, j);
            weights[row * COLUMNS + j] = 0.02f * pair.first * (heavy_tailed ? pair.second : 1);
        }
    return weights;
}

static double relative_error(decant_backend *backend, float *weights, const decant_grid *grid, int64_t rotation,
                             int64_t group)
{
    decant_matrix weight, host = {weights, DECANT_F32, ROWS, COLUMNS};
    REQUIRE(backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a test's weight", &weight, err));
    decant_grid_matrix packed = {.rows = ROWS, .columns = COLUMNS};
    packed.form = (decant_grid_form){.dimension = grid->dimension,
                                     .code_bits = grid->code_bits,
                                     .points = grid->points,
                                     .group = group,
                                     .rotation = rotation,
                                     .seed = 17};
    void *planes, *scales;
    const size_t words = (size_t)((COLUMNS + grid->dimension - 1) / grid->dimension + 31) / 32;
    REQUIRE(
        backend->memory->allocate(backend, ROWS * (size_t)grid->code_bits * words * 4, "planes", &planes, err));
    REQUIRE(backend->memory->allocate(backend, ROWS * (size_t)(COLUMNS / group) * 2, "scales", &scales, err));
    packed.planes = planes;
    packed.scales = scales;
    decant_matrix_error error;
    REQUIRE(backend->grid->encode(backend, weight, NULL, DECANT_SCALE_LEAST_ERROR, &packed, &error, err));
    backend->memory->release(backend, &planes);
    backend->memory->release(backend, &scales);
    backend->weights->unplace(backend, &weight);
    return error.squared / error.norm;
}

/* One scale a row for normal weights: within 2 % of what the table says. For heavy-tailed ones, rotated in
 * pieces of 1024, one for each piece, whose refit takes up to 3 % more off. */
static void weights_leave_the_promised_error(void **state)
{
    float *normal = make_weights(false), *heavy_tailed = make_weights(true);
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        const decant_grid *grid = decant_grid_find(DECANT_GRID_HIGGS, golden[i].dimension, golden[i].code_bits);
        double plain = relative_error(*state, normal, grid, 1, COLUMNS) / grid->error,
               rotated = relative_error(*state, heavy_tailed, grid, 1024, 1024) / grid->error;
        if (!(fabs(plain - 1) < 0.02 && rotated < 1.02 && rotated > 0.96))
            fail_msg("p %d, %d bits: normal weights leave %.4f of the table's error, rotated ones %.4f",
                     grid->dimension, grid->code_bits, plain, rotated);
    }
    /* Without the rotation the heavy tails cost a third more at least: it did its work. */
    const decant_grid *grid = decant_grid_find(DECANT_GRID_HIGGS, 2, 8);
    assert_true(relative_error(*state, heavy_tailed, grid, 1, 1024) > 1.33 * grid->error);
    free(normal);
    free(heavy_tailed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_are_complete),
        cmocka_unit_test(errors_match_golden_numbers),
        cmocka_unit_test(errors_match_published_ones),
        cmocka_unit_test(lines_meet_the_conditions_of_lloyd_and_max),
        cmocka_unit_test(nf4_matches_the_published_values),
        cmocka_unit_test(rtn_has_even_steps),
        cmocka_unit_test(weights_leave_the_promised_error),
    };
    return cmocka_run_group_tests_name("grid tables", tests, open_backend, close_backend);
}
