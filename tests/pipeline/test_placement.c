/* Which replica owns which matrix of a model whose matrices differ from layer to layer, by hand. */
#include "pipeline/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void linear(const decant_model_config *config, int layer, int index, decant_linear *target)
{
    (void)index;
    *target = (decant_linear){.rows = config->matrices[layer].rows, .columns = config->matrices[layer].columns};
}

/* From the last layer to the first: 4 to replica 0, 90 to 1, 10 to 0, 100 to 0, which has 14. */
static void owners_follow_each_layers_own_size(void **state)
{
    (void)state;
    decant_config_matrix matrices[] = {{.rows = 7, .columns = 7},
                                       {.rows = 10, .columns = 10},
                                       {.rows = 2, .columns = 5},
                                       {.rows = 9, .columns = 10},
                                       {.rows = 2, .columns = 2}};
    const decant_model_config config = {.layers = 5, .matrices = matrices};
    const decant_family family = {.linear_count = 1, .linear = linear};
    const decant_layer_range layers = {.first = 1, .count = 4};
    const int expected[] = {0, 0, 1, 0};
    int owners[4] = {-1, -1, -1, -1};
    decant_error err;
    assert_int_equal(decant_placement_owners(&config, &family, layers, 2, owners, &err), DECANT_OK);
    assert_memory_equal(owners, expected, sizeof expected);
    assert_int_equal(decant_placement_owners(&config, &family, layers, 1, owners, &err), DECANT_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(owners[i], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(owners_follow_each_layers_own_size)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
