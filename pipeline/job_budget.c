/* See job_budget.h. */
#include "pipeline/job_budget.h"

#include "pipeline/linear_sizes.h"
#include "pipeline/plan_request.h"
#include "stages/budget.h"
#include "stages/linear_weight.h"

enum { TABLE_DATASETS = 32 }; /* in the container, beside tensors and layers; at most */

/* What the container takes besides the quantized layers, at most: the tensors that stay whole, config and
 * tables. */
static decant_status count_rest(decant_job *job, int64_t *rest_bytes, decant_error *err)
{
    const int64_t any_rows = 1, any_columns = 1; /* what is offered does not depend on the shape */
    decant_recipe recipe = decant_options_recipe(job->options);
    decant_candidate_list list;
    decant_status offered = decant_recipe_offer(&recipe, any_rows, any_columns, &list, err);
    if (offered != DECANT_OK)
        return offered;
    /* more than a layer's part of /errors, /allocation and /sensitivity */
    const int64_t table_bytes = DECANT_NAME_BYTES + 32 + list.count * (int64_t)sizeof(decant_candidate) +
                                8 * (int64_t)job->options->noise_levels;
    int64_t layers = (int64_t)job->config.layers * job->family->linear_count, bytes = 0;
    for (int64_t i = 0; i < decant_safetensors_count(job->model); i++)
        bytes += (int64_t)decant_safetensors_at(job->model, i)->size_bytes;
    for (int64_t i = 0; i < layers; i++) {
        int linears = job->family->linear_count;
        decant_linear linear;
        decant_linear_weight weight;
        job->family->linear(&job->config, (int)(i / linears), (int)(i % linears), &linear);
        decant_status status = decant_linear_weight_find(job->model, &linear, &weight, err);
        if (status != DECANT_OK)
            return status;
        bytes -= (int64_t)decant_matrix_bytes(weight.host);
    }
    int64_t whole = decant_safetensors_count(job->model) - layers, grids = 0;
    decant_budget_count_grids(list.candidate, list.count, &grids, &bytes);
    *rest_bytes = decant_budget_rest(layers, whole + TABLE_DATASETS + grids,
                                     bytes + (int64_t)job->config.json_bytes + layers * table_bytes);
    return DECANT_OK;
}

decant_status decant_job_find_budget(decant_job *job, int64_t weights, int64_t smallest_bytes, int64_t *bytes,
                                     decant_error *err)
{
    decant_budget asked = {.bits = job->options->bits, .file_bytes = job->options->size_bytes};
    decant_status status = count_rest(job, &asked.rest_bytes, err);
    return status == DECANT_OK ? decant_budget_bytes(&asked, weights, smallest_bytes, bytes, err) : status;
}

decant_status decant_job_check_budget(decant_job *job, decant_error *err)
{
    decant_plan_request request = decant_plan_request_of(job->options, &job->config, job->family, false);
    decant_linear_sizes sizes;
    int64_t unused;
    decant_status status = decant_linear_sizes_create(&request.shape, &sizes, err);
    if (status == DECANT_OK)
        status = decant_job_find_budget(job, sizes.all.weights, sizes.all.smallest_bytes, &unused, err);
    decant_linear_sizes_free(&sizes);
    return decant_ranks_agree(job->ranks, status, err);
}
