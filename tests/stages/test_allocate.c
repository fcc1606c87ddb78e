/* The bit allocator against exhaustive search on small tables, a dynamic program over bytes on middling ones,
 * and the Lagrangian bound on tables of the size of real models. */
#include "base/memory.h"
#include "stages/allocate.h"
#include "tests/reference/golden_json.h"
#include "tests/stages/model_tables.h"

#include <stdbool.h>

enum {
    SMALL_TABLES = 600,
    LAYERS_MAXIMUM = 64, /* of tables held by value */
    CANDIDATES_MAXIMUM = 12,
};

static const double ERROR_UNIT = 1.0 / 1024; /* errors in whole units have exact sums, so ties are ties */
static const double SUM_TOLERANCE = 1e-13;   /* between sums of the same errors in different orders */

typedef struct small_table {
    int64_t layers;
    int64_t offsets[LAYERS_MAXIMUM + 1];
    decant_choice choices[LAYERS_MAXIMUM * CANDIDATES_MAXIMUM];
} small_table;

static small_table random_table(uint64_t *seed, int64_t layers, int64_t candidates, int64_t bytes_end,
                                bool whole)
{
    small_table table = {.layers = layers};
    for (int64_t l = 0; l < layers; l++) {
        int64_t count = 1 + random_below(seed, candidates);
        table.offsets[l + 1] = table.offsets[l] + count;
        for (int64_t i = table.offsets[l]; i < table.offsets[l + 1]; i++) {
            double error =
                whole ? (double)random_below(seed, 12) * ERROR_UNIT : pow(10, 6 * random_uniform(seed));
            table.choices[i] = (decant_choice){1 + random_below(seed, bytes_end), error};
        }
    }
    return table;
}

static void total_range(const small_table *table, int64_t *smallest, int64_t *largest)
{
    *smallest = *largest = 0;
    for (int64_t l = 0; l < table->layers; l++) {
        int64_t low = INT64_MAX, high = 0;
        for (int64_t i = table->offsets[l]; i < table->offsets[l + 1]; i++) {
            low = table->choices[i].bytes < low ? table->choices[i].bytes : low;
            high = table->choices[i].bytes > high ? table->choices[i].bytes : high;
        }
        *smallest += low;
        *largest += high;
    }
}

static decant_allocation add_up(const decant_choice *choices, const int64_t *offsets, int64_t layers,
                                const int *chosen)
{
    decant_allocation sums = {0};
    for (int64_t l = 0; l < layers; l++) {
        assert_in_range(chosen[l], 0, offsets[l + 1] - offsets[l] - 1);
        sums.bytes += choices[offsets[l] + chosen[l]].bytes;
        sums.error += choices[offsets[l] + chosen[l]].error;
    }
    return sums;
}

/* Goes through all choices, the first layer's being the slowest to change; the first of equals is kept. */
static bool try_all(const small_table *table, int64_t budget, int *best_chosen, decant_allocation *best)
{
    int chosen[LAYERS_MAXIMUM] = {0};
    bool found = false;
    for (;;) {
        decant_allocation sums = add_up(table->choices, table->offsets, table->layers, chosen);
        if (sums.bytes <= budget &&
            (!found || sums.error < best->error || (sums.error == best->error && sums.bytes < best->bytes))) {
            *best = sums;
            memcpy(best_chosen, chosen, sizeof chosen);
            found = true;
        }
        int64_t l = table->layers - 1;
        while (l >= 0 && ++chosen[l] == table->offsets[l + 1] - table->offsets[l])
            chosen[l--] = 0;
        if (l < 0)
            return found;
    }
}

static void check_against_all(uint64_t *seed, bool whole)
{
    int64_t smallest, largest;
    small_table table = random_table(seed, 1 + random_below(seed, 6), 6, whole ? 8 : 1000, whole);
    total_range(&table, &smallest, &largest);
    int64_t budget = smallest - 1 + random_below(seed, largest - smallest + 3);
    int chosen[LAYERS_MAXIMUM], expected_chosen[LAYERS_MAXIMUM] = {0};
    decant_allocation allocation, expected = {0};
    decant_error err;
    decant_status status =
        decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err);
    if (!try_all(&table, budget, expected_chosen, &expected)) {
        char smallest_text[32];
        assert_int_equal(status, DECANT_ERROR_USAGE);
        snprintf(smallest_text, sizeof smallest_text, "%lld", (long long)smallest);
        assert_non_null(strstr(err.message, smallest_text));
        return;
    }
    assert_int_equal(status, DECANT_OK);
    assert_int_equal(allocation.bytes, expected.bytes);
    assert_true(allocation.error == expected.error);
    assert_true(allocation.lower_bound <= allocation.error);
    for (int64_t l = 0; l < table.layers; l++)
        assert_int_equal(chosen[l], expected_chosen[l]);
}

static void equals_exhaustive_search_when_small(void **state)
{
    (void)state;
    uint64_t seed = 11;
    for (int i = 0; i < SMALL_TABLES; i++)
        check_against_all(&seed, false);
}

static void equals_exhaustive_search_when_many_choices_tie(void **state)
{
    (void)state;
    uint64_t seed = 12;
    for (int i = 0; i < SMALL_TABLES; i++)
        check_against_all(&seed, true);
}

/* Least error for every number of bytes, layer by layer; then least error, then fewest bytes, within the
 * budget. */
static void solve_by_bytes(const small_table *table, int64_t budget, double *best_error, int64_t *best_bytes)
{
    double *least = malloc((size_t)(budget + 1) * sizeof *least),
           *next = malloc((size_t)(budget + 1) * sizeof *next);
    for (int64_t b = 0; b <= budget; b++)
        least[b] = b == 0 ? 0 : INFINITY;
    for (int64_t l = 0; l < table->layers; l++) {
        for (int64_t b = 0; b <= budget; b++) {
            next[b] = INFINITY;
            for (int64_t i = table->offsets[l]; i < table->offsets[l + 1]; i++)
                if (table->choices[i].bytes <= b)
                    next[b] = fmin(next[b], least[b - table->choices[i].bytes] + table->choices[i].error);
        }
        double *swap = least;
        least = next;
        next = swap;
    }
    *best_error = INFINITY;
    for (int64_t b = 0; b <= budget; b++)
        if (least[b] < *best_error) {
            *best_error = least[b];
            *best_bytes = b;
        }
    free(least);
    free(next);
}

/* Makes errors fall with bytes at nearly one rate in all layers, which leaves the relaxed problem little to
 * say. */
static void straighten(small_table *table, uint64_t *seed)
{
    for (int64_t i = 0; i < table->offsets[table->layers]; i++)
        table->choices[i].error =
            (double)(100 * (200 - table->choices[i].bytes) + random_below(seed, 30)) * ERROR_UNIT;
}

static void equals_dynamic_program_when_middling(void **state)
{
    (void)state;
    uint64_t seed = 13;
    for (int i = 0; i < 60; i++) {
        small_table table =
            random_table(&seed, 20 + random_below(&seed, 44), CANDIDATES_MAXIMUM, 120, i % 3 == 0);
        if (i % 3 == 1)
            straighten(&table, &seed);
        else if (i % 3 == 2)
            for (int64_t c = 0; c < table.offsets[table.layers]; c++)
                table.choices[c].error = round(table.choices[c].error) * ERROR_UNIT;
        int64_t smallest, largest, budget, best_bytes = 0;
        int chosen[LAYERS_MAXIMUM];
        double best_error;
        decant_allocation allocation;
        decant_error err;
        total_range(&table, &smallest, &largest);
        budget = smallest + random_below(&seed, (largest - smallest) / 2 + 1);
        solve_by_bytes(&table, budget, &best_error, &best_bytes);
        assert_int_equal(
            decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err),
            DECANT_OK);
        assert_true(allocation.error == best_error);
        assert_int_equal(allocation.bytes, best_bytes);
    }
}

/* ---- the tables of make_allocation_golden.py ---- */

static small_table golden_table(const cJSON *instance)
{
    small_table table = {0};
    const cJSON *layer, *choice;
    cJSON_ArrayForEach(layer, cJSON_GetObjectItem(instance, "classes"))
    {
        int64_t count = table.offsets[table.layers];
        cJSON_ArrayForEach(choice, layer)
        {
            table.choices[count].bytes = (int64_t)cJSON_GetObjectItem(choice, "bytes")->valuedouble;
            table.choices[count++].error = cJSON_GetObjectItem(choice, "error")->valuedouble;
        }
        table.offsets[++table.layers] = count;
    }
    return table;
}

static void equals_golden_optimum(void **state)
{
    (void)state;
    cJSON *golden = read_golden_json("allocation_golden.json");
    const cJSON *instance;
    int count = 0;
    cJSON_ArrayForEach(instance, cJSON_GetObjectItem(golden, "instances"))
    {
        small_table table = golden_table(instance);
        int64_t budget = (int64_t)cJSON_GetObjectItem(instance, "budget")->valuedouble;
        const cJSON *error = cJSON_GetObjectItem(instance, "best_error");
        int chosen[LAYERS_MAXIMUM];
        decant_allocation allocation;
        decant_error err;
        decant_status status =
            decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err);
        count++;
        assert_int_equal(status, cJSON_IsNull(error) ? DECANT_ERROR_USAGE : DECANT_OK);
        if (status != DECANT_OK)
            continue;
        assert_true(allocation.error == error->valuedouble);
        assert_int_equal(allocation.bytes, (int64_t)cJSON_GetObjectItem(instance, "best_bytes")->valuedouble);
    }
    assert_true(count >= 20);
    cJSON_Delete(golden);
}

/* ---- tables of the size of real models ---- */

enum { BUDGETS = 24 };

static const int64_t STATES_EXPECTED = 300000; /* a second's work would be some twenty million */

/* Over rising budgets: bound, budget and sums are kept, the gap is tiny, and the error never rises. */
static void check_budgets(const model_table *table, double gap_allowed)
{
    int *chosen = calloc((size_t)table->layers, sizeof *chosen);
    double error_before = INFINITY;
    for (int i = 0; i < BUDGETS; i++) {
        int64_t budget = (int64_t)((3.1 + 0.173 * i) * (double)table->weights / 8);
        decant_allocation allocation;
        decant_error err;
        assert_int_equal(
            decant_allocate(table->choices, table->offsets, table->layers, budget, chosen, &allocation, &err),
            DECANT_OK);
        decant_allocation sums = add_up(table->choices, table->offsets, table->layers, chosen);
        assert_int_equal(allocation.bytes, sums.bytes);
        assert_true(allocation.error == sums.error);
        assert_true(allocation.bytes <= budget);
        assert_true(allocation.error >= allocation.lower_bound);
        assert_true(allocation.error - allocation.lower_bound <= gap_allowed * allocation.error);
        assert_true(allocation.error <= error_before);
        assert_true(allocation.states <= STATES_EXPECTED);
        error_before = allocation.error;
    }
    free(chosen);
}

static void keeps_bound_and_budget_when_7b(void **state)
{
    (void)state;
    for (table_kind kind = 0; kind < TABLE_KINDS; kind++) {
        model_table table = model_table_make(kind, 32, 4096, 11008, 5);
        check_budgets(&table, 2e-2);
        model_table_free(&table);
    }
}

static void keeps_bound_and_budget_when_65b(void **state)
{
    (void)state;
    for (table_kind kind = 0; kind < TABLE_KINDS; kind++) {
        model_table table = model_table_make(kind, 80, 8192, 22016, 6);
        check_budgets(&table, 5e-3);
        model_table_free(&table);
    }
}

/* The Lagrangian bound computed another way: its maximum over multipliers, by ternary search in doubles. */
static double lagrangian_bound(const model_table *table, int64_t budget)
{
    double low = -60, high = 10, best = -INFINITY;
    for (int step = 0; step < 200; step++) {
        double value[2];
        for (int side = 0; side < 2; side++) {
            double rate = exp(low + (side + 1) * (high - low) / 3);
            value[side] = -rate * (double)budget;
            for (int64_t l = 0; l < table->layers; l++) {
                double least = INFINITY;
                for (int64_t i = table->offsets[l]; i < table->offsets[l + 1]; i++)
                    least = fmin(least, table->choices[i].error + rate * (double)table->choices[i].bytes);
                value[side] += least;
            }
            best = fmax(best, value[side]);
        }
        *(value[0] < value[1] ? &low : &high) += (value[0] < value[1] ? 1 : -1) * (high - low) / 3;
    }
    return best;
}

static void reports_the_lagrangian_bound(void **state)
{
    (void)state;
    model_table table = model_table_make(TABLE_UNEVEN, 32, 4096, 11008, 8);
    int *chosen = calloc((size_t)table.layers, sizeof *chosen);
    for (int i = 0; i < 5; i++) {
        int64_t budget = (int64_t)((2.5 + 0.7 * i) * (double)table.weights / 8);
        decant_allocation allocation;
        decant_error err;
        assert_int_equal(
            decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err),
            DECANT_OK);
        assert_true(fabs(allocation.lower_bound / lagrangian_bound(&table, budget) - 1) < 1e-9);
    }
    free(chosen);
    model_table_free(&table);
}

static void does_not_depend_on_the_order_of_layers(void **state)
{
    (void)state;
    model_table table = model_table_make(TABLE_UNEVEN, 32, 4096, 11008, 9);
    model_table mirror = model_table_make(TABLE_UNEVEN, 32, 4096, 11008, 9);
    int *chosen = calloc((size_t)table.layers, sizeof *chosen),
        *mirrored = calloc((size_t)table.layers, sizeof *chosen);
    for (int64_t l = 0, count = 0; l < table.layers; l++) {
        int64_t source = table.layers - 1 - l;
        for (int64_t i = table.offsets[source]; i < table.offsets[source + 1]; i++)
            mirror.choices[count++] = table.choices[i];
        mirror.offsets[l + 1] = count;
    }
    decant_allocation allocation, mirror_allocation;
    decant_error err;
    int64_t budget = table.weights * 3 / 8;
    assert_int_equal(
        decant_allocate(table.choices, table.offsets, table.layers, budget, chosen, &allocation, &err), 0);
    assert_int_equal(decant_allocate(mirror.choices, mirror.offsets, table.layers, budget, mirrored,
                                     &mirror_allocation, &err),
                     0);
    assert_int_equal(allocation.bytes, mirror_allocation.bytes);
    assert_true(fabs(allocation.error / mirror_allocation.error - 1) < SUM_TOLERANCE);
    for (int64_t l = 0; l < table.layers; l++)
        assert_int_equal(chosen[l], mirrored[table.layers - 1 - l]);
    free(chosen);
    free(mirrored);
    model_table_free(&table);
    model_table_free(&mirror);
}

/* The last test: what the others took is given back. */
static void no_memory_is_held(void **state)
{
    (void)state;
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_exhaustive_search_when_small),
        cmocka_unit_test(equals_exhaustive_search_when_many_choices_tie),
        cmocka_unit_test(equals_dynamic_program_when_middling),
        cmocka_unit_test(equals_golden_optimum),
        cmocka_unit_test(keeps_bound_and_budget_when_7b),
        cmocka_unit_test(keeps_bound_and_budget_when_65b),
        cmocka_unit_test(reports_the_lagrangian_bound),
        cmocka_unit_test(does_not_depend_on_the_order_of_layers),
        cmocka_unit_test(no_memory_is_held),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
