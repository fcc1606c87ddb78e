/* See linear_sizes.h. */
#include "pipeline/linear_sizes.h"

#include "base/memory.h"
#include "stages/fisher_sums.h"
#include "stages/quantize.h"

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t pattern_bytes(int64_t rows, int64_t count)
{
    return 4 * (rows + 1) + 4 * count;
}

/* What a GPU puts behind the planes of one matrix so that they are whole pieces, at the most bits. */
static int64_t arranged_zeros_bytes(int64_t rows, int64_t columns)
{
    if (!decant_columns_are_arranged(columns))
        return 0;
    return 4 * rows * DECANT_BITS_MAXIMUM *
           (decant_plane_words(columns, true) - decant_plane_words(columns, false));
}

static void size_linear(const decant_job_shape *shape, const decant_linear *linear, decant_linear_size *size)
{
    const decant_recipe *recipe = &shape->recipe;
    int64_t rows = linear->rows, columns = linear->columns;
    int64_t count = decant_recipe_sparse_count(recipe, rows, columns), widened = 0;
    decant_candidate_list list;
    decant_error unread; /* the options were checked: something is offered */
    decant_recipe_offer(recipe, rows, columns, &list, &unread);
    *size = (decant_linear_size){.rows = rows, .columns = columns, .weights = rows * columns};
    size->sums_bytes =
        (int64_t)sizeof(float) * decant_fisher_sums_floats(rows, columns, recipe->hessian_groups);
    size->pattern_bytes = count > 0 ? pattern_bytes(rows, count) : 0;
    size->smallest_bytes = list.count > 0 ? decant_candidate_list_smallest(&list) : 0;
    for (int i = 0; i < list.count; i++) {
        const decant_candidate *candidate = &list.candidate[i];
        bool own_sparse = decant_candidate_has_own_sparse(recipe, candidate);
        size->largest_bytes = larger(size->largest_bytes, candidate->bytes);
        if (decant_candidate_is_on_grid(candidate))
            size->trial_bytes = larger(size->trial_bytes, candidate->bytes);
        else
            size->levels_bytes += rows << (candidate->code_bits + 1);
        if (candidate->method == DECANT_METHOD_GUIDED) {
            const decant_guided_operations operations =
                decant_guided_operations_of(recipe, rows, columns, candidate->code_bits);
            decant_guided_operations_add(&size->guided, &operations);
            size->levels_bytes +=
                (int64_t)decant_planes_bytes(rows, columns, candidate->code_bits) + 2 * candidate->sparse_count;
            /* levels of a byte are two on the device */
            widened = larger(widened, decant_packed_bytes(rows, columns, candidate->code_bits, 0) -
                                          decant_guided_bytes(rows, columns, candidate->code_bits, 0));
        }
        if (own_sparse && candidate->sparse_count > 0)
            size->levels_bytes += pattern_bytes(rows, candidate->sparse_count);
        if (own_sparse) /* stages/methods/guided_sparse.c: nearest levels and what their errors cost */
            size->trial_bytes =
                larger(size->trial_bytes,
                       4 * rows * columns + decant_packed_bytes(rows, columns, candidate->code_bits, 0));
        count = larger(count, candidate->sparse_count);
    }
    size->stored_bytes = size->largest_bytes;
    if (shape->bits > 0) {
        int64_t average = (int64_t)(shape->bits * (double)size->weights / 8);
        size->stored_bytes = average < size->smallest_bytes  ? size->smallest_bytes
                             : average < size->largest_bytes ? average
                                                             : size->largest_bytes;
    }
    size->packed_bytes = size->stored_bytes + (4 - decant_sparse_index_bytes(columns)) * count + widened;
    size->prepared_bytes = shape->cuda ? 4 * count + arranged_zeros_bytes(rows, columns) : 0;
}

void decant_linear_size_add(decant_linear_size *sum, const decant_linear_size *size)
{
    sum->weights += size->weights;
    sum->sums_bytes += size->sums_bytes;
    sum->pattern_bytes += size->pattern_bytes;
    sum->levels_bytes += size->levels_bytes;
    sum->smallest_bytes += size->smallest_bytes;
    sum->largest_bytes += size->largest_bytes;
    sum->stored_bytes += size->stored_bytes;
    sum->packed_bytes += size->packed_bytes;
    sum->prepared_bytes += size->prepared_bytes;
    decant_guided_operations_add(&sum->guided, &size->guided);
}

decant_status decant_linear_sizes_create(const decant_job_shape *shape, decant_linear_sizes *sizes,
                                         decant_error *err)
{
    int linears = shape->family->linear_count;
    *sizes = (decant_linear_sizes){.count = (int64_t)shape->config->layers * linears};
    decant_status status = decant_memory_allocate((size_t)sizes->count * sizeof *sizes->each,
                                                  "the sizes of linear layers", (void **)&sizes->each, err);
    for (int64_t i = 0; status == DECANT_OK && i < sizes->count; i++) {
        decant_linear linear;
        shape->family->linear(shape->config, (int)(i / linears), (int)(i % linears), &linear);
        size_linear(shape, &linear, &sizes->each[i]);
        decant_linear_size_add(&sizes->all, &sizes->each[i]);
    }
    return status;
}

void decant_linear_sizes_free(decant_linear_sizes *sizes)
{
    decant_memory_free(sizes->each);
    *sizes = (decant_linear_sizes){0};
}
