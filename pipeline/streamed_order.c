/* See streamed_order.h. */
#include "pipeline/streamed_order.h"

/* Is the layer the first of its stage? */
static bool begins_stage(const decant_layer_range *ranges, int stages, int layer)
{
    for (int stage = 0; stage < stages; stage++)
        if (ranges[stage].first == layer)
            return true;
    return false;
}

int decant_streamed_forward_round(const decant_layer_range *ranges, int stages, int first, int end)
{
    int next = first + 1;
    while (next < end && begins_stage(ranges, stages, next))
        next++;
    return next;
}

int decant_streamed_backward_round(const decant_layer_range *ranges, int stages, int left)
{
    int low = left - 1;
    while (low > 0 && begins_stage(ranges, stages, low))
        low--;
    return low;
}

void decant_streamed_forward_rest(decant_streamed_state state, int layers, int *first, int *end)
{
    /* To go backward, the last layer takes the gradient of the loss, which its forward pass gives; any other
     * layer takes what entered it and the gradient that is there. */
    int needed = state.left == layers ? layers : state.left - 1;
    *first = state.boundaries > 0 ? state.boundaries - 1 : 0;
    *end = needed > *first ? needed : *first;
}
