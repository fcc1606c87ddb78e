/* Matrices of the smallest and the most awkward shapes through every method and width, with nothing and with
 * everything kept apart: what a candidate was measured to be is what its packed form stands for. Runs on the
 * backend that DECANT_TEST_DEVICE names. */
#include "stages/decode.h"
#include "stages/quantize.h"
#include "tests/kernels/device_arrays.h"

enum { GROUPS = 2, SHAPES = 6 };

static const int64_t shapes[SHAPES][2] = {{1, 1}, {1, 7}, {5, 1}, {3, 33}, {2, 257}, {33, 3}};

/* Sums of a few hundred terms, of values that were rounded to F32. */
static const double TOLERANCE = 1e-4;

/* All methods and widths. */
static decant_recipe recipe_of(double fraction)
{
    return (decant_recipe){.uses = {true, true, true, true, true},
                           .widths = 7,
                           .width = {2, 3, 4, 5, 6, 7, 8},
                           .dimensions = 1,
                           .dimension = {1},
                           .groups = 1,
                           .sensitive = fraction,
                           .outliers = fraction,
                           .hessian_groups = GROUPS,
                           .guided_passes = 2,
                           .guided_rounds = 2,
                           .guided_damping = 0.01,
                           .curvature = 1};
}

/* F of different numbers above 0, and behind it Hessians: twice the identity and all ones, of each group. */
static device_array make_sums(decant_backend *backend, int64_t rows, int64_t columns, uint64_t seed)
{
    const int64_t weights = rows * columns, hessian = GROUPS * columns * columns;
    device_array sums = random_host_array(DECANT_F32, 1, weights + hessian, 1, seed);
    float *host = sums.host;
    for (int64_t i = 0; i < weights; i++)
        host[i] = fabsf(host[i]) + 0.1f;
    for (int64_t i = 0; i < hessian; i++)
        host[weights + i] = i / columns % columns == i % columns ? 3 : 1;
    const size_t size_bytes = decant_matrix_bytes(sums.matrix);
    REQUIRE(backend->memory->allocate(backend, size_bytes, "sums", &sums.matrix.data, err));
    REQUIRE(backend->memory->upload(backend, sums.matrix.data, host, size_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return sums;
}

static float *decoded(decant_backend *backend, const decant_encoded_layer *encoded, int64_t count)
{
    float *values = calloc((size_t)count, sizeof *values);
    assert_non_null(values);
    if (encoded->grid.form.points) {
        REQUIRE(decant_grid_decode(backend, &encoded->grid, values, err));
        return values;
    }
    decant_packed_matrix host;
    REQUIRE(decant_packed_download(backend, &encoded->packed, &host, err));
    REQUIRE(decant_packed_decode(&host, values, err));
    decant_packed_host_free(&host);
    return values;
}

static void check_candidate(decant_backend *backend, const device_array *weight,
                            const decant_quantized_layer *layer, int index, bool is_all_sparse)
{
    const decant_candidate *candidate = &layer->candidate[index];
    const int64_t count = layer->rows * layer->columns;
    decant_encoded_layer encoded;
    REQUIRE(decant_quantized_layer_encode(backend, layer, index, weight->matrix, &encoded, err));
    float *values = decoded(backend, &encoded, count);
    double squared = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double miss = weight->values[i] - (double)values[i];
        squared += miss * miss;
        norm += weight->values[i] * weight->values[i];
    }
    char name[64];
    decant_candidate_describe(candidate, name, sizeof name);
    if (fabs(candidate->relative - squared / norm) > TOLERANCE * squared / norm + 1e-12)
        fail_msg("[%d, %d], %s: relative error %g, decoded %g", (int)layer->rows, (int)layer->columns, name,
                 candidate->relative, squared / norm);
    /* What is kept apart comes back to within half a unit in the last place of F16, twice. */
    if (is_all_sparse && !decant_candidate_is_on_grid(candidate) && squared > 1e-6 * norm)
        fail_msg("[%d, %d], %s: %g is missing of what is kept apart", (int)layer->rows, (int)layer->columns,
                 name, squared / norm);
    free(values);
    decant_encoded_layer_free(backend, &encoded);
}

static void check_shapes(decant_backend *backend, double fraction)
{
    for (int i = 0; i < SHAPES; i++) {
        const int64_t rows = shapes[i][0], columns = shapes[i][1];
        const decant_recipe recipe = recipe_of(fraction);
        device_array weight =
            weight_array(backend, DECANT_PLACE_EXACT, DECANT_BF16, rows, columns, 0.05, (uint64_t)i + 1);
        device_array sums = make_sums(backend, rows, columns, (uint64_t)i + 100);
        decant_quantized_layer layer;
        REQUIRE(
            decant_quantize_layer(backend, &recipe, "a.weight", weight.matrix, sums.matrix.data, &layer, err));
        assert_int_equal(layer.candidates, 4 * 7 + 1);
        for (int candidate = 0; candidate < layer.candidates; candidate++) {
            if (!decant_candidate_is_on_grid(&layer.candidate[candidate]))
                assert_int_equal(layer.candidate[candidate].sparse_count, fraction > 0 ? rows * columns : 0);
            check_candidate(backend, &weight, &layer, candidate, fraction > 0);
        }
        decant_quantized_layer_free(backend, &layer);
        drop(backend, &weight);
        drop(backend, &sums);
    }
}

static void errors_are_those_of_the_packed_form(void **state)
{
    check_shapes(*state, 0);
}

/* Half for their Fisher sums and half for their size, of odd numbers of weights too. */
static void errors_are_those_of_the_packed_form_when_all_is_kept_apart(void **state)
{
    check_shapes(*state, 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_are_those_of_the_packed_form),
        cmocka_unit_test(errors_are_those_of_the_packed_form_when_all_is_kept_apart),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
