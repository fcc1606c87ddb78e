/* See grid.h. Encoding measures on the way, and what it takes to encode again is the candidate itself: nothing
 * is kept between evaluation and choice. */
#include "stages/methods/grid.h"

bool decant_grid_offer_one(const decant_recipe *recipe, const decant_candidate *candidate,
                           decant_candidate_list *list)
{
    return !decant_recipe_asks_for(recipe, candidate) || decant_candidate_append(list, candidate);
}

int64_t decant_grid_candidate_bytes(const decant_grid_rule *rule, const decant_candidate *candidate,
                                    int64_t rows, int64_t columns)
{
    return decant_grid_bytes(rows, columns, candidate->code_bits, candidate->dimension, candidate->group,
                             rule->has_offsets);
}

static decant_status encode_and_measure(const decant_grid_rule *rule, decant_backend *backend,
                                        const decant_candidate *candidate, uint64_t seed, decant_matrix weight,
                                        const float *fisher, decant_grid_matrix *matrix,
                                        decant_matrix_error *error, decant_error *err)
{
    int64_t columns = weight.columns;
    const decant_grid *grid = decant_grid_find(rule->kind, candidate->dimension, candidate->code_bits);
    if (!grid)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "there is no grid of dimension %d and 2^%d points",
                            candidate->dimension, candidate->code_bits);
    bool whole_row = candidate->group == 0 || candidate->group > columns;
    decant_grid_form form = {
        .dimension = candidate->dimension,
        .code_bits = candidate->code_bits,
        .points = grid->points,
        .group = whole_row ? columns : candidate->group,
        .has_offsets = rule->has_offsets,
        .rotation = candidate->rotation,
        .seed = seed,
    };
    decant_status status = decant_grid_matrix_create(backend, weight.rows, columns, &form, matrix, err);
    if (status != DECANT_OK)
        return status;
    return backend->grid->encode(backend, weight, fisher, rule->scale, matrix, error, err);
}

decant_status decant_grid_evaluate(const decant_grid_rule *rule, decant_backend *backend,
                                   const decant_recipe *recipe, decant_matrix weight, const float *fisher,
                                   int first, int count, decant_quantized_layer *layer, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int i = first; status == DECANT_OK && i < first + count; i++) {
        decant_candidate *candidate = &layer->candidate[i];
        decant_grid_matrix matrix = {0};
        decant_matrix_error error;
        status =
            encode_and_measure(rule, backend, candidate, layer->seed, weight, fisher, &matrix, &error, err);
        if (status == DECANT_OK)
            decant_candidate_measured(recipe, &error, fisher != NULL, layer->rows * layer->columns, candidate);
        decant_grid_matrix_free(backend, &matrix);
    }
    return status;
}

decant_status decant_grid_encode(const decant_grid_rule *rule, decant_backend *backend,
                                 const decant_quantized_layer *layer, int candidate, decant_matrix weight,
                                 decant_grid_matrix *grid, decant_error *err)
{
    decant_matrix_error unused;
    return encode_and_measure(rule, backend, &layer->candidate[candidate], layer->seed, weight, NULL, grid,
                              &unused, err);
}
