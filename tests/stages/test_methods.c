/* Every method through its interface: what it measures is what its packed form decodes to, in double, and what
 * it stores has the size that was told beforehand. Runs on the backend that DECANT_TEST_DEVICE names. */
#include "kernels/grid_form.h"
#include "stages/grid_tables.h"
#include "stages/quantize.h"
#include "tests/kernels/device_arrays.h"

enum { ROWS = 48, COLUMNS = 448 /* 7 pieces of 64 */, GROUPS = 2 };

/* Sums of about 20 000 terms in an order of the backend's own, of values rounded to F32 once or twice. */
static const double MEASURE_TOLERANCE = 1e-4;

static const double CURVATURE = 36.0 / 5;

typedef struct test_matrix {
    device_array weight, fisher; /* on the device, Hessians lie behind F */
    float *hessian;              /* [GROUPS, COLUMNS, COLUMNS] */
} test_matrix;

/* Of few directions and a diagonal: H as few tokens make it. */
static float *make_hessian(uint64_t seed)
{
    enum { DIRECTIONS = 5 };
    float *hessian = calloc((size_t)GROUPS * COLUMNS * COLUMNS, sizeof *hessian);
    assert_non_null(hessian);
    for (int group = 0; group < GROUPS; group++) {
        float direction[DIRECTIONS][COLUMNS];
        for (int i = 0; i < DIRECTIONS * COLUMNS; i++)
            direction[i / COLUMNS][i % COLUMNS] = (float)random_value(&seed);
        for (int i = 0; i < COLUMNS; i++)
            for (int j = 0; j < COLUMNS; j++) {
                float *h = &hessian[((int64_t)group * COLUMNS + i) * COLUMNS + j];
                *h = i == j ? 0.5f : 0;
                for (int k = 0; k < DIRECTIONS; k++)
                    *h += direction[k][i] * direction[k][j];
            }
    }
    return hessian;
}

static test_matrix make_matrix(decant_backend *backend, uint64_t seed)
{
    test_matrix matrix = {
        .weight = weight_array(backend, DECANT_PLACE_EXACT, DECANT_F16, ROWS, COLUMNS, 0.05, seed),
        .fisher = random_host_array(DECANT_F32, ROWS, COLUMNS, 1e-3, seed + 1),
    };
    device_array *fisher = &matrix.fisher;
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) { /* not negative, and larger in some columns than in others */
        float value = fabsf(((float *)fisher->host)[i]) * (float)(i % 7 + 1);
        ((float *)fisher->host)[i] = value;
        fisher->values[i] = value;
    }
    size_t size_bytes = decant_matrix_bytes(fisher->matrix);
    size_t hessian_bytes = (size_t)GROUPS * COLUMNS * COLUMNS * sizeof(float);
    matrix.hessian = make_hessian(seed + 2);
    REQUIRE(backend->memory->allocate(backend, size_bytes + hessian_bytes, "Fisher sums", &fisher->matrix.data,
                                      err));
    REQUIRE(backend->memory->upload(backend, fisher->matrix.data, fisher->host, size_bytes, err));
    REQUIRE(backend->memory->upload(backend, (char *)fisher->matrix.data + size_bytes, matrix.hessian,
                                    hessian_bytes, err));
    REQUIRE(backend->memory->synchronize(backend, err));
    return matrix;
}

static void drop_matrix(decant_backend *backend, test_matrix *matrix)
{
    drop(backend, &matrix->weight);
    drop(backend, &matrix->fisher);
    free(matrix->hessian);
}

static void *downloaded(decant_backend *backend, const void *device, size_t size_bytes)
{
    void *host = malloc(size_bytes);
    assert_non_null(host);
    REQUIRE(backend->memory->download(backend, host, device, size_bytes, err));
    return host;
}

/* What a k-means layer stands for, by docs/container.md. */
static void decode_packed(decant_backend *backend, const decant_packed_matrix *packed, double *values)
{
    const int64_t words = (packed->columns + 31) / 32, rows = packed->rows;
    uint32_t *planes = downloaded(backend, packed->planes, (size_t)(rows * packed->bits * words) * 4);
    uint16_t *levels = downloaded(backend, packed->levels, (size_t)rows << (packed->bits + 1));
    for (int64_t i = 0; i < rows * packed->columns; i++) {
        int64_t row = i / packed->columns, j = i % packed->columns, code = 0;
        for (int b = 0; b < packed->bits; b++)
            code |= (int64_t)(planes[(row * packed->bits + b) * words + j / 32] >> j % 32 & 1u) << b;
        values[i] = decant_f16_to_f32(levels[(row << packed->bits) + code]);
    }
    if (packed->sparse.count > 0) {
        size_t count = (size_t)packed->sparse.count;
        uint32_t *offsets = downloaded(backend, packed->sparse.row_offsets, (size_t)(rows + 1) * 4);
        uint32_t *columns = downloaded(backend, packed->sparse.columns, count * 4);
        uint16_t *extra = downloaded(backend, packed->sparse_values, count * 2);
        for (int64_t row = 0; row < rows; row++)
            for (uint32_t k = offsets[row]; k < offsets[row + 1]; k++)
                values[row * packed->columns + columns[k]] += decant_f16_to_f32(extra[k]);
        free(offsets);
        free(columns);
        free(extra);
    }
    free(planes);
    free(levels);
}

static void decode_grid(decant_backend *backend, const decant_grid_matrix *grid, double *values)
{
    decant_matrix decoded = {.element = DECANT_F32, .rows = grid->rows, .columns = grid->columns};
    REQUIRE(backend->memory->allocate(backend, decant_matrix_bytes(decoded), "a decoded matrix", &decoded.data,
                                      err));
    REQUIRE(backend->grid->decode(backend, grid, decoded, err));
    float *host = downloaded(backend, decoded.data, decant_matrix_bytes(decoded));
    for (int64_t i = 0; i < grid->rows * grid->columns; i++)
        values[i] = host[i];
    free(host);
    backend->memory->release(backend, &decoded.data);
}

/* Σ δᵀ H δ over all rows; missing [ROWS, COLUMNS] */
static double guided_error_of(const test_matrix *matrix, const double *missing)
{
    double sum = 0;
    for (int64_t row = 0; row < ROWS; row++) {
        const float *hessian = matrix->hessian + row * GROUPS / ROWS * COLUMNS * COLUMNS;
        const double *of_row = missing + row * COLUMNS;
        for (int64_t i = 0; i < COLUMNS; i++)
            for (int64_t j = 0; j < COLUMNS; j++)
                sum += of_row[i] * (double)hessian[i * COLUMNS + j] * of_row[j];
    }
    return sum;
}

static decant_matrix_error error_of(decant_backend *backend, const test_matrix *matrix, decant_method method,
                                    decant_encoded_layer *encoded)
{
    double *values = calloc(ROWS * COLUMNS, sizeof *values);
    decant_matrix_error error = {0};
    if (encoded->grid.form.points)
        decode_grid(backend, &encoded->grid, values);
    else
        decode_packed(backend, &encoded->packed, values);
    for (int64_t i = 0; i < ROWS * COLUMNS; i++) {
        double w = matrix->weight.values[i], miss = w - values[i];
        error.squared += miss * miss;
        error.weighted += matrix->fisher.values[i] * miss * miss;
        error.norm += w * w;
        values[i] = miss;
    }
    if (method == DECANT_METHOD_GUIDED)
        error.weighted = guided_error_of(matrix, values);
    free(values);
    return error;
}

/* As they are stored: of guided levels a byte each and one a row, of others two. */
static int64_t bytes_of(decant_method method, const decant_encoded_layer *encoded)
{
    const decant_packed_matrix *packed = &encoded->packed;
    const decant_grid_matrix *grid = &encoded->grid;
    if (!grid->form.points)
        return decant_packed_bytes(packed->rows, packed->columns, packed->bits, packed->sparse.count) -
               (method == DECANT_METHOD_GUIDED ? packed->rows * ((1 << packed->bits) - 1) : 0);
    int64_t words = decant_grid_words(grid->columns, grid->form.dimension);
    int64_t scales = grid->rows * decant_grid_groups(grid->columns, grid->form.group);
    return grid->rows * grid->form.code_bits * words * 4 + scales * (grid->offsets ? 4 : 2);
}

/* Of all methods. */
static decant_recipe recipe_of_all(void)
{
    decant_recipe recipe = {.uses = {true, true, true, true, true},
                            .widths = 4,
                            .width = {2, 2.5, 3, 4},
                            .dimensions = 3,
                            .dimension = {1, 2, 3},
                            .groups = 2,
                            .group = {0, 40},
                            .sensitive = 0.005,
                            .outliers = 0.01,
                            .hessian_groups = GROUPS,
                            .guided_passes = 2,
                            .guided_rounds = 2,
                            .guided_damping = 0.01,
                            .seed = 11,
                            .curvature = CURVATURE};
    return recipe;
}

static void check_candidates(decant_backend *backend, const test_matrix *matrix,
                             const decant_quantized_layer *layer)
{
    for (int i = 0; i < layer->candidates; i++) {
        const decant_candidate *candidate = &layer->candidate[i];
        decant_encoded_layer encoded;
        REQUIRE(decant_quantized_layer_encode(backend, layer, i, matrix->weight.matrix, &encoded, err));
        assert_int_equal(encoded.packed.sparse.count, candidate->sparse_count);
        assert_int_equal(encoded.grid.form.points != NULL, decant_candidate_is_on_grid(candidate));
        decant_matrix_error error = error_of(backend, matrix, (decant_method)candidate->method, &encoded);
        double relative = error.squared / error.norm, predicted = 0.5 * CURVATURE * error.weighted;
        if (fabs(candidate->relative - relative) > MEASURE_TOLERANCE * relative ||
            fabs(candidate->predicted - predicted) > MEASURE_TOLERANCE * predicted ||
            candidate->bytes != bytes_of((decant_method)candidate->method, &encoded)) {
            char name[64];
            decant_candidate_describe(candidate, name, sizeof name);
            fail_msg("%s: relative %g, decoded %g; predicted %g, decoded %g; %lld bytes, %lld in arrays", name,
                     candidate->relative, relative, candidate->predicted, predicted,
                     (long long)candidate->bytes,
                     (long long)bytes_of((decant_method)candidate->method, &encoded));
        }
        decant_encoded_layer_free(backend, &encoded);
    }
}

static void errors_are_those_of_the_packed_form_when_candidates_are_mixed(void **state)
{
    decant_backend *backend = *state;
    test_matrix matrix = make_matrix(backend, 1);
    decant_recipe recipe = recipe_of_all();
    decant_quantized_layer layer;
    REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", matrix.weight.matrix, matrix.fisher.matrix.data,
                                  &layer, err));
    assert_int_equal(layer.candidates, 3 + 2 * (3 + 4 + 3) + 2 * 3 + 1 + 3);
    check_candidates(backend, &matrix, &layer);
    decant_quantized_layer_free(backend, &layer);
    drop_matrix(backend, &matrix);
}

/* Guided and k-means on one layer, with sparse parts of their own, through host memory and back. */
static void errors_are_those_of_the_packed_form_when_sparse_parts_differ(void **state)
{
    decant_backend *backend = *state;
    decant_recipe recipe = recipe_of_all();
    decant_quantized_layer layer;
    test_matrix matrix = make_matrix(backend, 4);
    memset(recipe.uses, 0, sizeof recipe.uses);
    recipe.uses[DECANT_METHOD_KMEANS] = recipe.uses[DECANT_METHOD_GUIDED] = true;
    recipe.guided_sparse_count = 3;
    recipe.guided_sparse[1] = 0.0045;
    recipe.guided_sparse[2] = 0.05;
    REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", matrix.weight.matrix, matrix.fisher.matrix.data,
                                  &layer, err));
    assert_int_equal(layer.candidates, 3 + 3 * 3);
    for (int i = 3; i < layer.candidates; i += 3) /* less is missing where a twentieth is kept apart */
        assert_true(layer.candidate[i + 2].predicted < layer.candidate[i].predicted);
    REQUIRE(decant_quantized_layer_park(backend, &layer, err));
    REQUIRE(decant_quantized_layer_unpark(backend, &layer, err));
    check_candidates(backend, &matrix, &layer);
    decant_quantized_layer_free(backend, &layer);
    drop_matrix(backend, &matrix);
}

/* What stands beside the nearest levels has Σ F (w − ŵ)² below that of SqueezeLLM's rule for as many. */
static void weights_kept_apart_are_those_with_the_largest_errors(void **state)
{
    decant_backend *backend = *state;
    decant_recipe recipe = recipe_of_all();
    test_matrix matrix = make_matrix(backend, 5);
    memset(recipe.uses, 0, sizeof recipe.uses);
    recipe.uses[DECANT_METHOD_GUIDED] = true;
    recipe.guided_rounds = 0;
    double weighted[2][3];
    for (int own = 0; own < 2; own++) {
        decant_quantized_layer layer;
        recipe.guided_sparse_count = own;
        recipe.guided_sparse[0] = recipe.sensitive + recipe.outliers;
        REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", matrix.weight.matrix,
                                      matrix.fisher.matrix.data, &layer, err));
        assert_int_equal(layer.candidates, 3);
        for (int i = 0; i < 3; i++) {
            decant_encoded_layer encoded;
            REQUIRE(decant_quantized_layer_encode(backend, &layer, i, matrix.weight.matrix, &encoded, err));
            weighted[own][i] = error_of(backend, &matrix, DECANT_METHOD_KMEANS, &encoded).weighted;
            decant_encoded_layer_free(backend, &encoded);
        }
        decant_quantized_layer_free(backend, &layer);
    }
    for (int i = 0; i < 3; i++)
        assert_true(weighted[1][i] < weighted[0][i]);
    drop_matrix(backend, &matrix);
}

static void costs_are_those_of_each_error(void **state)
{
    decant_backend *backend = *state;
    test_matrix matrix = make_matrix(backend, 6);
    decant_recipe recipe = recipe_of_all();
    decant_quantized_layer layer;
    const size_t size_bytes = (size_t)ROWS * COLUMNS * sizeof(float);
    float *cost = NULL;
    memset(recipe.uses, 0, sizeof recipe.uses);
    recipe.uses[DECANT_METHOD_KMEANS] = true;
    recipe.sensitive = recipe.outliers = 0;
    REQUIRE(backend->memory->allocate(backend, size_bytes, "costs", (void **)&cost, err));
    REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", matrix.weight.matrix, matrix.fisher.matrix.data,
                                  &layer, err));
    for (int i = 0; i < layer.candidates; i++)
        for (int with_fisher = 0; with_fisher < 2; with_fisher++) {
            double *values = calloc(ROWS * COLUMNS, sizeof *values);
            decant_encoded_layer encoded;
            REQUIRE(decant_quantized_layer_encode(backend, &layer, i, matrix.weight.matrix, &encoded, err));
            REQUIRE(backend->quantize->weigh_errors(backend, matrix.weight.matrix,
                                                    with_fisher ? matrix.fisher.matrix.data : NULL,
                                                    &encoded.packed, cost, err));
            decode_packed(backend, &encoded.packed, values);
            float *found = downloaded(backend, cost, size_bytes);
            for (int j = 0; j < ROWS * COLUMNS; j++) {
                double miss = matrix.weight.values[j] - values[j];
                double expected = (with_fisher ? matrix.fisher.values[j] : 1) * miss * miss;
                assert_true(fabs(found[j] - expected) <= 1e-6 * expected);
            }
            free(found);
            free(values);
            decant_encoded_layer_free(backend, &encoded);
        }
    decant_quantized_layer_free(backend, &layer);
    backend->memory->release(backend, (void **)&cost);
    drop_matrix(backend, &matrix);
}

static void predictions_are_relative_errors_times_weights_when_there_is_no_data(void **state)
{
    decant_backend *backend = *state;
    test_matrix matrix = make_matrix(backend, 2);
    decant_recipe recipe = recipe_of_all();
    recipe.uses[DECANT_METHOD_KMEANS] = recipe.uses[DECANT_METHOD_GUIDED] = false;
    recipe.curvature = 0;
    decant_quantized_layer layer;
    REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", matrix.weight.matrix, NULL, &layer, err));
    for (int i = 0; i < layer.candidates; i++) {
        assert_true(layer.candidate[i].relative > 0);
        assert_true(layer.candidate[i].predicted == layer.candidate[i].relative * (ROWS * COLUMNS));
    }
    decant_quantized_layer_free(backend, &layer);
    drop_matrix(backend, &matrix);
}

/* Weights are uniform, far from normal: after the rotation the error is the grid's all the same. */
static void higgs_errors_are_the_grids_constants(void **state)
{
    decant_backend *backend = *state;
    const double within = 0.02;
    device_array weight = weight_array(backend, DECANT_PLACE_EXACT, DECANT_F16, 64, 2048, 0.05, 3);
    for (int dimension = 1; dimension <= DECANT_GRID_DIMENSION_MAXIMUM; dimension++) {
        decant_recipe recipe = {.uses = {[DECANT_METHOD_HIGGS] = true},
                                .widths = 3,
                                .width = {2, 3, 4},
                                .dimensions = 1,
                                .dimension = {dimension},
                                .groups = 1};
        decant_quantized_layer layer;
        REQUIRE(decant_quantize_layer(backend, &recipe, "a.weight", weight.matrix, NULL, &layer, err));
        for (int i = 0; i < layer.candidates; i++) {
            const decant_candidate *candidate = &layer.candidate[i];
            double constant = decant_grid_find(DECANT_GRID_HIGGS, dimension, candidate->code_bits)->error;
            if (fabs(candidate->relative - constant) > within * constant)
                fail_msg("p = %d, %d bits: %g, the grid has %g", dimension, candidate->code_bits,
                         candidate->relative, constant);
        }
        decant_quantized_layer_free(backend, &layer);
    }
    drop(backend, &weight);
}

/* A matrix of these elements with the values at row 5, columns 7, 8 …. */
static test_matrix matrix_with(decant_backend *backend, decant_element element, int count, const float *values)
{
    test_matrix matrix = make_matrix(backend, 4);
    device_array *weight = &matrix.weight;
    if (element != weight->matrix.element) {
        drop(backend, weight);
        *weight = weight_array(backend, DECANT_PLACE_EXACT, element, ROWS, COLUMNS, 0.05f, 3);
    }
    backend->weights->unplace(backend, &weight->matrix);
    for (int i = 0; i < count; i++) {
        store_element(element, values[i], weight->host, 5 * COLUMNS + 7 + i);
        weight->values[5 * COLUMNS + 7 + i] = values[i];
    }
    decant_matrix host = weight->matrix;
    host.data = weight->host;
    REQUIRE(backend->weights->place(backend, host, DECANT_PLACE_EXACT, "a.weight", &weight->matrix, err));
    return matrix;
}

static void expect_refusal(decant_backend *backend, const decant_recipe *recipe, const test_matrix *matrix,
                           const char *why)
{
    decant_quantized_layer layer;
    decant_error err = {0};
    assert_int_equal(decant_quantize_layer(backend, recipe, "a.weight", matrix->weight.matrix,
                                           matrix->fisher.matrix.data, &layer, &err),
                     DECANT_ERROR_INPUT);
    assert_non_null(strstr(err.message, "a.weight: "));
    assert_non_null(strstr(err.message, why));
    assert_int_equal(layer.candidates, 0);
}

static decant_recipe recipe_of_one(int method)
{
    decant_recipe recipe = recipe_of_all();
    for (int i = 0; i < DECANT_METHODS; i++)
        recipe.uses[i] = i == method;
    return recipe;
}

/* Every method refuses a matrix with this value at row 5, column 7, and says `why`. */
static void check_refused(decant_backend *backend, decant_element element, float value, const char *why)
{
    test_matrix matrix = matrix_with(backend, element, 1, &value);
    for (int method = 0; method < DECANT_METHODS; method++) {
        decant_recipe recipe = recipe_of_one(method);
        if (recipe_of_all().uses[method])
            expect_refusal(backend, &recipe, &matrix, why);
    }
    drop_matrix(backend, &matrix);
}

static void the_tensor_is_named_when_a_weight_is_not_finite(void **state)
{
    check_refused(*state, DECANT_F16, NAN, "row 5, column 7 is not finite");
}

static void weights_beyond_f16_are_refused(void **state)
{
    check_refused(*state, DECANT_F32, -65505, "row 5, column 7 is -65505, beyond the 65504 of F16");
    check_refused(*state, DECANT_BF16, 65536, "row 5, column 7 is 65536, beyond the 65504 of F16");
}

static void expect_quantized(decant_backend *backend, const decant_recipe *recipe, const test_matrix *matrix)
{
    decant_quantized_layer layer;
    REQUIRE(decant_quantize_layer(backend, recipe, "a.weight", matrix->weight.matrix,
                                  matrix->fisher.matrix.data, &layer, err));
    if (recipe->uses[DECANT_METHOD_KMEANS])
        check_candidates(backend, matrix, &layer);
    decant_quantized_layer_free(backend, &layer);
}

/* What an outlier misses of a level at the other end of its row is F16 too: levels without a sparse part, and
 * grids, hold what it does not. */
static void weights_too_far_apart_are_refused_where_some_are_kept_apart(void **state)
{
    decant_backend *backend = *state;
    test_matrix apart = matrix_with(backend, DECANT_F16, 2, (const float[]){40000, -40000});
    test_matrix within = matrix_with(backend, DECANT_F16, 2, (const float[]){32752, -32752});
    for (int method = 0; method < DECANT_METHODS; method++) {
        decant_recipe recipe = recipe_of_one(method);
        if (!recipe_of_all().uses[method])
            continue;
        expect_quantized(backend, &recipe, &within);
        if (method == DECANT_METHOD_KMEANS || method == DECANT_METHOD_GUIDED)
            expect_refusal(backend, &recipe, &apart,
                           "row 5, columns 8 and 7 are -40000 and 40000, farther apart than the 65504 of F16");
        recipe.sensitive = recipe.outliers = 0;
        expect_quantized(backend, &recipe, &apart);
    }
    drop_matrix(backend, &within);
    drop_matrix(backend, &apart);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_are_those_of_the_packed_form_when_candidates_are_mixed),
        cmocka_unit_test(errors_are_those_of_the_packed_form_when_sparse_parts_differ),
        cmocka_unit_test(weights_kept_apart_are_those_with_the_largest_errors),
        cmocka_unit_test(costs_are_those_of_each_error),
        cmocka_unit_test(predictions_are_relative_errors_times_weights_when_there_is_no_data),
        cmocka_unit_test(higgs_errors_are_the_grids_constants),
        cmocka_unit_test(the_tensor_is_named_when_a_weight_is_not_finite),
        cmocka_unit_test(weights_beyond_f16_are_refused),
        cmocka_unit_test(weights_too_far_apart_are_refused_where_some_are_kept_apart),
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
