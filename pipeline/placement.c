/* See placement.h. */
#include "pipeline/placement.h"

#include "base/memory.h"

/* Balanced for calibration: a block takes its forward pass, the gradient of its input and that of its weights;
 * the head only the first two. */
void decant_placement_layers(const decant_model_config *config, int stages, decant_layer_range *ranges)
{
    const int64_t tokens = 512;
    double block = decant_schedule_block_cost(config, tokens), head = decant_schedule_head_cost(config, tokens);
    if (config->matrices) { /* nothing passes through them */
        block = 1;
        head = 0;
    }
    decant_schedule_layers(config->layers, stages, 3 * block, 0, 2 * head, ranges);
}

decant_status decant_placement_owners(const decant_model_config *config, const decant_family *family,
                                      decant_layer_range layers, int replicas, int *owners, decant_error *err)
{
    int linears = family->linear_count, count = layers.count * linears;
    double *costs = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(count + replicas) * sizeof *costs, "the costs of matrices",
                                      (void **)&costs, err));
    for (int i = 0; i < count; i++) {
        decant_linear linear;
        family->linear(config, layers.first + i / linears, i % linears, &linear);
        costs[i] = (double)linear.rows * (double)linear.columns;
    }
    decant_schedule_owners(costs, layers.count, linears, replicas, costs + count, owners);
done:
    decant_memory_free(costs);
    return status;
}
