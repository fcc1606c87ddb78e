/* Slopes and correlations against NumPy (tests/reference/make_sensitivity_golden.py), and what measured values
 * make of an error table. */
#include "stages/sensitivity.h"
#include "tests/reference/golden_json.h"

#include <math.h>

enum { LAYERS = 5, CANDIDATES = 3 };

static void read_numbers(const cJSON *list, double *numbers, int *count)
{
    const cJSON *number;
    *count = 0;
    cJSON_ArrayForEach(number, list) numbers[(*count)++] = number->valuedouble;
}

static void slopes_equal_numpy(void **state)
{
    (void)state;
    cJSON *golden = read_golden_json("sensitivity_golden.json");
    const cJSON *instance;
    int instances = 0, negative = 0;
    cJSON_ArrayForEach(instance, cJSON_GetObjectItem(golden, "slopes"))
    {
        double t[DECANT_NOISE_LEVELS_MAXIMUM], increase[DECANT_NOISE_LEVELS_MAXIMUM];
        double square[DECANT_NOISE_LEVELS_MAXIMUM];
        int levels, same;
        read_numbers(cJSON_GetObjectItem(instance, "t"), t, &levels);
        read_numbers(cJSON_GetObjectItem(instance, "increase"), increase, &same);
        assert_int_equal(levels, same);
        for (int i = 0; i < levels; i++)
            square[i] = t[i] * t[i];
        double slope = cJSON_GetObjectItem(instance, "slope")->valuedouble;
        double correlation = cJSON_GetObjectItem(instance, "correlation")->valuedouble;
        assert_true(fabs(decant_noise_slope(increase, t, levels) - slope) <= 1e-12 * fabs(slope));
        assert_true(fabs(decant_correlation(square, increase, levels) - correlation) <= 1e-12);
        negative += slope < 0;
        instances++;
    }
    assert_int_equal(instances, 12);
    assert_true(negative > 0);
    cJSON_Delete(golden);
}

static void levels_span_the_linear_range(void **state)
{
    (void)state;
    double t[DECANT_NOISE_LEVELS_MAXIMUM];
    decant_noise_levels(4, t);
    assert_true(fabs(t[0] * t[0] - 0.0025) < 1e-15 && fabs(t[3] * t[3] - 0.03454) < 1e-15);
    assert_true(fabs((t[1] - t[0]) - (t[3] - t[2])) < 1e-15 && t[1] > t[0]);
    decant_noise_levels(1, t);
    assert_true(fabs(t[0] * t[0] - 0.03454) < 1e-15);
}

static void correlation_is_zero_when_nothing_varies(void **state)
{
    (void)state;
    double x[] = {1, 1, 1}, y[] = {1, 2, 3};
    assert_true(decant_correlation(x, y, 3) == 0);
    assert_true(decant_correlation(y, y, 1) == 0);
    assert_true(fabs(decant_correlation(y, y, 3) - 1) < 1e-15);
}

/* Layer l: bits 2, 3, 4; relative error 4^-bits; Fisher's prediction (l + 1) · 4^-bits / bits. */
static decant_error_table make_table(decant_table_row rows[LAYERS])
{
    for (int l = 0; l < LAYERS; l++) {
        rows[l] = (decant_table_row){.candidates = CANDIDATES, .weights = 100};
        for (int i = 0; i < CANDIDATES; i++)
            rows[l].candidate[i] = (decant_candidate){.dimension = 1,
                                                      .code_bits = i + 2,
                                                      .bytes = 25 * (i + 2),
                                                      .relative = pow(4, -(i + 2)),
                                                      .predicted = (l + 1) * pow(4, -(i + 2)) / (i + 2)};
    }
    return (decant_error_table){.layers = LAYERS, .rows = rows};
}

static void noise_predicts_in_proportion_to_squared_error(void **state)
{
    (void)state;
    decant_table_row rows[LAYERS];
    decant_error_table table = make_table(rows);
    decant_sensitivity sensitivity;
    decant_error err;
    assert_int_equal(decant_sensitivity_create(DECANT_SENSITIVITY_NOISE, LAYERS, 2, &sensitivity, &err),
                     DECANT_OK);
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < 2; i++)
            sensitivity.noised[2 * l + i] = (l - 1) * sensitivity.t[i] * sensitivity.t[i]; /* α = l − 1 */
    sensitivity.candidate[2] = 1;
    sensitivity.alone[2] = 0.02;
    sensitivity.candidate[4] = 0;
    sensitivity.alone[4] = 0.2;
    decant_sensitivity_conclude(&sensitivity);
    assert_int_equal(sensitivity.negatives, 1);
    assert_int_equal(decant_error_table_apply(&table, &sensitivity, &err), DECANT_OK);
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < CANDIDATES; i++) {
            double expected = (l > 1 ? l - 1 : 0) * pow(4, -(i + 2));
            assert_true(fabs(rows[l].candidate[i].predicted - expected) < 1e-15);
        }
    assert_int_equal(sensitivity.agreement.count, 2);
    assert_true(fabs(sensitivity.agreement.predicted_sum - (1.0 / 64 + 3.0 / 16)) < 1e-15);
    assert_true(fabs(sensitivity.agreement.measured_sum - 0.22) < 1e-15);
    assert_true(fabs(sensitivity.agreement.correlation - 1) < 1e-12);
    decant_sensitivity_free(&sensitivity);
}

static void measured_values_scale_with_the_methods_own_error(void **state)
{
    (void)state;
    decant_table_row rows[LAYERS];
    decant_error_table table = make_table(rows);
    decant_sensitivity sensitivity;
    decant_error err;
    assert_int_equal(decant_sensitivity_create(DECANT_SENSITIVITY_MEASURED, LAYERS, 0, &sensitivity, &err),
                     DECANT_OK);
    for (int i = 0; i < CANDIDATES; i++)
        rows[3].candidate[i].predicted = 0; /* no Fisher information: squared errors count */
    decant_sensitivity_choose(&sensitivity, &table, LAYERS, 3.4, 9);
    for (int l = 0; l < LAYERS; l++) {
        assert_int_equal(sensitivity.candidate[l], 1); /* 3 bits */
        sensitivity.alone[l] = l == 0 ? -1e-9 : 10 * l;
    }
    decant_sensitivity_conclude(&sensitivity);
    assert_int_equal(sensitivity.negatives, 1);
    assert_int_equal(decant_error_table_apply(&table, &sensitivity, &err), DECANT_OK);
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < CANDIDATES; i++) {
            double ratio = pow(4, 1 - i) * (l == 3 ? 1 : 3.0 / (i + 2));
            assert_true(fabs(rows[l].candidate[i].predicted - 10 * l * ratio) < 1e-9);
        }
    assert_int_equal(sensitivity.agreement.count, LAYERS);
    decant_sensitivity_free(&sensitivity);
}

static void chosen_matrices_depend_on_the_seed_alone(void **state)
{
    (void)state;
    enum { MANY = 200, WANTED = 20, SEEDS = 200 };
    decant_table_row *rows = calloc(MANY, sizeof *rows);
    decant_error_table table = {.layers = MANY, .rows = rows};
    decant_sensitivity sensitivity;
    decant_error err;
    int first_half = 0;
    for (int l = 0; l < MANY; l++)
        rows[l].candidates = 1;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        assert_int_equal(decant_sensitivity_create(DECANT_SENSITIVITY_NOISE, MANY, 1, &sensitivity, &err),
                         DECANT_OK);
        decant_sensitivity_choose(&sensitivity, &table, WANTED, 3, seed);
        int count = 0;
        for (int l = 0; l < MANY; l++) {
            count += sensitivity.candidate[l] == 0;
            first_half += sensitivity.candidate[l] == 0 && l < MANY / 2;
        }
        assert_int_equal(count, WANTED);
        decant_sensitivity_free(&sensitivity);
    }
    /* Half of 4000, give or take four standard deviations. */
    assert_in_range(first_half, SEEDS * WANTED / 2 - 130, SEEDS * WANTED / 2 + 130);
    free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slopes_equal_numpy),
        cmocka_unit_test(levels_span_the_linear_range),
        cmocka_unit_test(correlation_is_zero_when_nothing_varies),
        cmocka_unit_test(noise_predicts_in_proportion_to_squared_error),
        cmocka_unit_test(measured_values_scale_with_the_methods_own_error),
        cmocka_unit_test(chosen_matrices_depend_on_the_seed_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
