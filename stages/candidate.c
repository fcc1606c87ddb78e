/* See candidate.h. */
#include "stages/candidate.h"

#include "kernels/grid_form.h"
#include "kernels/level_grid.h"
#include "stages/methods/methods.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *decant_method_name(decant_method method)
{
    return decant_method_operations_of(method)->name;
}

bool decant_method_find(const char *name, decant_method *method)
{
    for (int i = 0; i < DECANT_METHODS; i++)
        if (strcmp(name, decant_method_name((decant_method)i)) == 0) {
            *method = (decant_method)i;
            return true;
        }
    return false;
}

bool decant_method_is_on_grid(decant_method method)
{
    return decant_method_operations_of(method)->points != NULL;
}

bool decant_recipe_has_levels(const decant_recipe *recipe)
{
    for (int i = 0; i < DECANT_METHODS; i++)
        if (recipe->uses[i] && !decant_method_is_on_grid((decant_method)i))
            return true;
    return false;
}

bool decant_recipe_needs_statistics(const decant_recipe *recipe)
{
    for (int i = 0; i < DECANT_METHODS; i++)
        if (recipe->uses[i] && decant_method_operations_of((decant_method)i)->needs_statistics)
            return true;
    return false;
}

/* ---- candidates ---- */

double decant_candidate_width(const decant_candidate *candidate)
{
    return (double)candidate->code_bits / candidate->dimension;
}

void decant_candidate_describe(const decant_candidate *candidate, char *text, size_t size)
{
    char dimension[16] = "", group[32] = "", sparse[32] = "";
    if (candidate->method == DECANT_METHOD_HIGGS)
        snprintf(dimension, sizeof dimension, " p=%d", candidate->dimension);
    if (candidate->group > 0 && candidate->method != DECANT_METHOD_NF4)
        snprintf(group, sizeof group, " g=%lld", (long long)candidate->group);
    if (candidate->method == DECANT_METHOD_GUIDED && candidate->sparse > 0)
        snprintf(sparse, sizeof sparse, " + %.3g %%", 100 * candidate->sparse);
    snprintf(text, size, "%s %.4g%s%s%s", decant_method_name((decant_method)candidate->method),
             decant_candidate_width(candidate), dimension, group, sparse);
}

bool decant_candidate_is_on_grid(const decant_candidate *candidate)
{
    return decant_method_is_on_grid((decant_method)candidate->method);
}

bool decant_candidates_share_grid(const decant_candidate *a, const decant_candidate *b)
{
    return a->method == b->method && a->dimension == b->dimension && a->code_bits == b->code_bits;
}

int64_t decant_candidate_grid_bytes(const decant_candidate *candidate)
{
    return ((int64_t)candidate->dimension << candidate->code_bits) * (int64_t)sizeof(float);
}

static bool is_had_by_some(const decant_candidate_list *list, double width)
{
    for (int i = 0; i < list->count; i++)
        if (decant_width_is(&list->candidate[i], width))
            return true;
    return false;
}

/* What it keeps apart and what it stores. */
static void size_candidate(const decant_recipe *recipe, const decant_method_operations *method, int64_t rows,
                           int64_t columns, decant_candidate *candidate)
{
    if (decant_candidate_has_own_sparse(recipe, candidate)) {
        candidate->sparse_count = decant_fraction_count(candidate->sparse, rows, columns);
    } else if (!decant_candidate_is_on_grid(candidate)) {
        candidate->sparse = recipe->sensitive + recipe->outliers;
        candidate->sparse_count = decant_recipe_sparse_count(recipe, rows, columns);
    }
    candidate->bytes = method->bytes(candidate, rows, columns, candidate->sparse_count);
}

decant_status decant_recipe_offer(const decant_recipe *recipe, int64_t rows, int64_t columns,
                                  decant_candidate_list *list, decant_error *err)
{
    *list = (decant_candidate_list){0}; /* what is beyond the count travels and is fingerprinted too */
    for (int i = 0; i < DECANT_METHODS; i++) {
        if (!recipe->uses[i])
            continue;
        const decant_method_operations *method = decant_method_operations_of((decant_method)i);
        int first = list->count;
        if (!method->offer(recipe, columns, list))
            return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                                "more than %d candidates a layer; name fewer --bit-widths, --group or "
                                "--grid-dimension",
                                DECANT_CANDIDATES);
        for (int j = first; j < list->count; j++)
            size_candidate(recipe, method, rows, columns, &list->candidate[j]);
    }
    if (list->count == 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "the methods asked for have none of the code widths asked for (--bit-widths)");
    for (int i = 0; recipe->widths_asked && i < recipe->widths; i++)
        if (!is_had_by_some(list, recipe->width[i]))
            return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                                "no method asked for has codes of %.4g bits a weight (--bit-widths)",
                                recipe->width[i]);
    return DECANT_OK;
}

int64_t decant_candidate_list_smallest(const decant_candidate_list *list)
{
    int64_t smallest = list->candidate[0].bytes;
    for (int i = 1; i < list->count; i++)
        smallest = list->candidate[i].bytes < smallest ? list->candidate[i].bytes : smallest;
    return smallest;
}

/* ---- sizes ---- */

int32_t decant_rotation_of(int64_t columns)
{
    int64_t lowest = columns & -columns;
    return (int32_t)(lowest < DECANT_ROTATION_MAXIMUM ? lowest : DECANT_ROTATION_MAXIMUM);
}

int decant_sparse_index_bytes(int64_t columns)
{
    return columns <= 65536 ? 2 : 4;
}

int64_t decant_packed_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count)
{
    int64_t bytes = rows * bits * ((columns + 31) / 32) * 4 + rows * ((int64_t)1 << bits) * 2;
    if (sparse_count > 0)
        bytes += (rows + 1) * 4 + sparse_count * (decant_sparse_index_bytes(columns) + 2);
    return bytes;
}

int64_t decant_guided_bytes(int64_t rows, int64_t columns, int bits, int64_t sparse_count)
{
    const int64_t levels = (int64_t)1 << bits;
    int64_t bytes = decant_packed_bytes(rows, columns, bits, sparse_count);
    return decant_levels_are_bytes((int)levels) ? bytes - rows * 2 * levels + rows * (levels + 1) : bytes;
}

int64_t decant_grid_bytes(int64_t rows, int64_t columns, int code_bits, int dimension, int64_t group,
                          bool has_offsets)
{
    int64_t groups = group == 0 ? 1 : decant_grid_groups(columns, group);
    return rows * code_bits * decant_grid_words(columns, dimension) * 4 + rows * groups * (has_offsets ? 4 : 2);
}

int64_t decant_fraction_count(double fraction, int64_t rows, int64_t columns)
{
    return (int64_t)llround(fraction * (double)rows * (double)columns);
}

void decant_recipe_sparse_counts(const decant_recipe *recipe, int64_t rows, int64_t columns, int64_t *sensitive,
                                 int64_t *outliers)
{
    *sensitive = decant_fraction_count(recipe->sensitive, rows, columns);
    *outliers = decant_fraction_count(recipe->outliers, rows, columns);
    const int64_t left = rows * columns - *sensitive; /* two halves of an odd number are both rounded up */
    *outliers = *outliers < left ? *outliers : left;
}

int64_t decant_recipe_sparse_count(const decant_recipe *recipe, int64_t rows, int64_t columns)
{
    bool is_shared = recipe->uses[DECANT_METHOD_KMEANS] ||
                     (recipe->uses[DECANT_METHOD_GUIDED] && recipe->guided_sparse_count == 0);
    int64_t sensitive, outliers;
    decant_recipe_sparse_counts(recipe, rows, columns, &sensitive, &outliers);
    return is_shared ? sensitive + outliers : 0;
}

bool decant_candidate_has_own_sparse(const decant_recipe *recipe, const decant_candidate *candidate)
{
    return candidate->method == DECANT_METHOD_GUIDED && recipe->guided_sparse_count > 0;
}
