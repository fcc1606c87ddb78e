/* See rank_sizes.h. */
#include "pipeline/rank_sizes.h"

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

bool decant_rank_owns(const decant_rank_view *view, int64_t index)
{
    return view->owners[index] == view->share->replica;
}

decant_linear_size decant_rank_linears(const decant_rank_view *view)
{
    decant_linear_size sum = {0};
    for (int64_t i = 0; i < view->count; i++)
        decant_linear_size_add(&sum, &view->linears[i]);
    return sum;
}

/* Of the block whose first matrix is `first`. */
static decant_linear_size block_sum(const decant_rank_view *view, int64_t first)
{
    decant_linear_size sum = {0};
    for (int64_t i = first; i < first + view->shape->family->linear_count; i++)
        decant_linear_size_add(&sum, &view->linears[i]);
    return sum;
}

int64_t decant_rank_largest_block_weights(const decant_rank_view *view)
{
    int64_t largest = 0;
    for (int64_t first = 0; first < view->count; first += view->shape->family->linear_count)
        largest = larger(largest, block_sum(view, first).weights);
    return largest;
}

int64_t decant_rank_largest_block_sums(const decant_rank_view *view)
{
    int64_t largest = 0;
    for (int64_t first = 0; first < view->count; first += view->shape->family->linear_count)
        largest = larger(largest, block_sum(view, first).sums_bytes);
    return largest;
}

int64_t decant_rank_largest_matrix_sums(const decant_rank_view *view)
{
    int64_t largest = 0;
    for (int64_t i = 0; i < view->count; i++)
        largest = larger(largest, view->linears[i].sums_bytes);
    return largest;
}

decant_block_sizes decant_rank_block_sizes(const decant_rank_view *view)
{
    decant_block_sizes sizes;
    view->shape->family->sizes(view->shape->family, view->shape->config, &sizes);
    return sizes;
}

decant_end_sizes decant_rank_ends_of(const decant_rank_view *view, bool begins, bool ends)
{
    decant_end_sizes sizes;
    decant_family_end_sizes(view->shape->family, view->shape->config, begins, ends, &sizes);
    return sizes;
}

static decant_end_sizes end_sizes(const decant_rank_view *view)
{
    return decant_rank_ends_of(view, view->share->has_embedding, view->share->has_head);
}

int64_t decant_rank_end_elements(const decant_rank_view *view)
{
    return end_sizes(view).matrices;
}

static int64_t embedding_elements(const decant_rank_view *view)
{
    decant_end_tensor embedding;
    view->shape->family->end(view->shape->config, DECANT_END_EMBEDDING, &embedding);
    return embedding.rows * embedding.columns;
}

/* Norms and biases: F32 on a device, where a weight of one row becomes that; on the CPU they stay in the mapped
 * file. */
static int64_t vector_bytes(const decant_rank_view *view, int64_t blocks)
{
    int64_t weights = blocks * decant_rank_block_sizes(view).vector_weights + end_sizes(view).vectors;
    return view->shape->cuda ? 4 * weights : 0;
}

int64_t decant_rank_placed_bytes(const decant_rank_view *view, int64_t linear_weights, int64_t blocks)
{
    if (!view->shape->cuda)
        return 0;
    return decant_compute_bytes(view->shape) * (linear_weights + decant_rank_end_elements(view)) +
           vector_bytes(view, blocks);
}

int64_t decant_rank_part_bytes(const decant_rank_view *view, int64_t rows)
{
    const decant_model_config *config = view->shape->config;
    int64_t angles = config->position_rows > 0 ? 0 : 2 * 4 * rows * (config->head_dimension / 2);
    int64_t projected_rows = view->share->has_embedding || view->share->has_head ? rows : 0;
    decant_end_tensor projection;
    view->shape->family->end(config, DECANT_END_PROJECTION_IN, &projection);
    return angles + decant_activation_bytes(view->shape) * projected_rows * projection.columns;
}

int64_t decant_rank_file_bytes(const decant_rank_view *view)
{
    int64_t elements = decant_rank_linears(view).weights + decant_rank_end_elements(view) +
                       view->share->layers.count * decant_rank_block_sizes(view).vector_weights;
    return (int64_t)decant_element_bytes(view->shape->element) * elements;
}

int64_t decant_rank_read_bytes(const decant_rank_view *view)
{
    const decant_rank_share *share = view->share;
    int64_t blocks = share->layers.count < 2 ? share->layers.count : 2;
    if (share->streamed)
        return (int64_t)decant_element_bytes(view->shape->element) *
               (blocks * decant_rank_largest_block_weights(view) + decant_rank_end_elements(view));
    bool by_rows =
        !view->shape->cuda && share->has_embedding && !(share->has_head && view->shape->config->tied_head);
    int64_t unread = by_rows ? embedding_elements(view) : 0;
    return decant_rank_file_bytes(view) - (int64_t)decant_element_bytes(view->shape->element) * unread;
}

int64_t decant_rank_kept_bytes(const decant_rank_view *view, int64_t rows)
{
    decant_block_sizes sizes = decant_rank_block_sizes(view);
    return rows * (decant_activation_bytes(view->shape) * sizes.kept_activations + 4 * sizes.kept_floats);
}

int64_t decant_rank_boundary_bytes(const decant_rank_view *view, int64_t rows)
{
    return decant_activation_bytes(view->shape) * rows * view->hidden;
}

int64_t decant_rank_device_boundaries(const decant_rank_view *view)
{
    return view->share->boundaries_on_device *
           decant_rank_boundary_bytes(view, view->shape->micro_batch * view->shape->window);
}
