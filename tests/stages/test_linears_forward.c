/* Several linear layers applied to the same input give what each of them gives, whether they are packed or not.
 * Runs on the backend that DECANT_TEST_DEVICE names. */
#include "stages/model.h"
#include "tests/kernels/packed_case.h"

#include <math.h>

enum { LINEARS = 3, COLUMNS = 96 };

static const int64_t rows[LINEARS] = {64, 32, 40};

/* Which of the layers are packed: bit i says so of layer i. gated: they take silu(x) ∘ up, and add to what is
 * there; else x itself. */
static void check_linears(decant_backend *backend, unsigned which, bool gated, int64_t tokens)
{
    device_array x = activation_array(backend, tokens, COLUMNS, 1, 1), weights[LINEARS], arrays[LINEARS];
    device_array up = activation_array(backend, tokens, COLUMNS, 1, 3),
                 made = activation_array(backend, tokens, COLUMNS, 1e6, 4);
    decant_packed_input input = {.x = x.matrix};
    if (gated) {
        input.up = up.matrix;
        input.made = made.matrix;
    }
    packed_case packed[LINEARS];
    decant_linear linears[LINEARS];
    decant_matrix ys[LINEARS];
    uint64_t seed = 23;
    for (int i = 0; i < LINEARS; i++) {
        weights[i] =
            weight_array(backend, DECANT_PLACE_COMPUTE, DECANT_BF16, rows[i], COLUMNS, 1, 5 + (uint64_t)i);
        packed[i] = (packed_case){.packed = {.rows = rows[i], .columns = COLUMNS, .bits = 3 + i % 2},
                                  .weights = doubles(rows[i] * COLUMNS)};
        pack(backend, &packed[i], i == 1 ? SOME_SPARSE : NO_SPARSE, &seed);
        linears[i] = (decant_linear){.rows = rows[i], .columns = COLUMNS};
        if (which >> i & 1u)
            linears[i].packed = &packed[i].packed;
        else
            linears[i].weight = weights[i].matrix;
        arrays[i] = activation_array(backend, tokens, rows[i], gated ? 1 : 1e6, 2);
        ys[i] = arrays[i].matrix;
    }
    REQUIRE(decant_linears_forward(backend, linears, LINEARS, &input, gated, ys, err));
    for (int i = 0; i < LINEARS; i++) {
        const double *weight = linears[i].packed ? packed[i].weights : weights[i].values;
        double *expected = doubles(tokens * rows[i]);
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t row = 0; row < rows[i]; row++) {
                double sum = gated ? arrays[i].values[t * rows[i] + row] : 0;
                for (int64_t j = t * COLUMNS; j < (t + 1) * COLUMNS; j++) {
                    const double value = x.values[j];
                    sum += (gated ? value / (1 + exp(-value)) * up.values[j] : value) *
                           weight[row * COLUMNS + j - t * COLUMNS];
                }
                expected[t * rows[i] + row] = sum;
            }
        expect_close(backend, ys[i], expected, "one of several linear layers");
        free(expected);
        drop(backend, &weights[i]);
        drop(backend, &arrays[i]);
        drop_packed(backend, &packed[i]);
    }
    drop(backend, &x);
    drop(backend, &up);
    drop(backend, &made);
}

static void linears_give_what_each_gives(void **state)
{
    for (unsigned which = 0; which < 1u << LINEARS; which++) {
        check_linears(*state, which, false, 1);
        check_linears(*state, which, false, 7);
        check_linears(*state, which, true, 7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linears_give_what_each_gives),
    };
    return cmocka_run_group_tests_name("linears forward", tests, open_backend, close_backend);
}
