/* See grid.h. Encoding measures on the way, and what it takes to encode again is the candidate itself: nothing
 * is kept between evaluation and choice. */
#include "stages/methods/grid.h"

bool decant_grid_offer_one(const decant_recipe *recipe, const decant_candidate *candidate,
                           decant_candidate_list *list)
{
    return !decant_recipe_asks_for(recipe, candidate) || decant_candidate_append(list, candidate);
}

static const decant_method_operations *method_of(const decant_candidate *candidate)
{
    return decant_method_operations_of((decant_method)candidate->method);
}

int64_t decant_grid_candidate_bytes(const decant_candidate *candidate, int64_t rows, int64_t columns,
                                    int64_t sparse_count)
{
    (void)sparse_count;
    return decant_grid_bytes(rows, columns, candidate->code_bits, candidate->dimension, candidate->group,
                             method_of(candidate)->has_offsets);
}

static const decant_grid *grid_of(const decant_candidate *candidate)
{
    return decant_grid_find(method_of(candidate)->rule->kind, candidate->dimension, candidate->code_bits);
}

const float *decant_grid_points(const decant_candidate *candidate)
{
    return grid_of(candidate)->points;
}

static decant_status encode_and_measure(decant_backend *backend, const decant_candidate *candidate,
                                        uint64_t seed, decant_matrix weight, const float *fisher,
                                        decant_grid_matrix *matrix, decant_matrix_error *error,
                                        decant_error *err)
{
    int64_t columns = weight.columns;
    const decant_method_operations *method = method_of(candidate);
    const decant_grid *grid = grid_of(candidate);
    if (!grid)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "there is no grid of dimension %d and 2^%d points",
                            candidate->dimension, candidate->code_bits);
    bool whole_row = candidate->group == 0 || candidate->group > columns;
    decant_grid_form form = {
        .dimension = candidate->dimension,
        .code_bits = candidate->code_bits,
        .points = grid->points,
        .group = whole_row ? columns : candidate->group,
        .has_offsets = method->has_offsets,
        .rotation = candidate->rotation,
        .seed = seed,
    };
    decant_status status = decant_grid_matrix_create(backend, weight.rows, columns, &form, matrix, err);
    if (status != DECANT_OK)
        return status;
    return backend->grid->encode(backend, weight, fisher, method->rule->scale, matrix, error, err);
}

decant_status decant_grid_evaluate(decant_backend *backend, const decant_recipe *recipe, decant_matrix weight,
                                   const float *fisher, int first, int count, decant_quantized_layer *layer,
                                   decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = first; status == DECANT_OK && i < first + count; i++) {
        decant_grid_matrix matrix = {0};
        decant_matrix_error error;
        status = encode_and_measure(backend, &layer->candidate[i], layer->seed, weight, fisher, &matrix, &error,
                                    err);
        if (status == DECANT_OK)
            decant_candidate_measured(recipe, &error, fisher != NULL, i, layer);
        decant_grid_matrix_free(backend, &matrix);
    }
    return status;
}

decant_status decant_grid_encode(decant_backend *backend, const decant_quantized_layer *layer, int candidate,
                                 decant_matrix weight, decant_encoded_layer *encoded, decant_error *err)
{
    decant_matrix_error unused;
    return encode_and_measure(backend, &layer->candidate[candidate], layer->seed, weight, NULL, &encoded->grid,
                              &unused, err);
}
