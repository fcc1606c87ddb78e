/* In which order a streamed job goes through its layers, over all stages, and where all ranks meet. Pure.
 *
 * Layers go forward from the first to the last and backward from the last to the first. While a stage passes
 * micro-batches through its last layer, the next stage passes them through its first one, as they arrive; so
 * these layers are gone through together, in one round, and no rank waits for a meeting in between. A round is
 * else one layer. A rank has at most one layer in a round. */
#ifndef DECANT_PIPELINE_STREAMED_ORDER_H
#define DECANT_PIPELINE_STREAMED_ORDER_H

#include "pipeline/schedule.h"

/* The round that begins with layer `first` going forward; returns the layer after it, at most `end`.
 *   ranges [stages]  the layers of each stage, all of them stages with layers; first < end */
int decant_streamed_forward_round(const decant_layer_range *ranges, int stages, int first, int end);

/* The round that begins with layer left − 1 going backward, when `left` layers have not gone yet; returns how
 * many have not gone after it. left > 0 */
int decant_streamed_backward_round(const decant_layer_range *ranges, int stages, int left);

/* What is at hand of a streamed calibration: boundary k is what enters layer k for all sequences, boundary
 * `layers` the gradient of the loss behind the last layer. */
typedef struct decant_streamed_state {
    int boundaries; /* boundaries 0 … boundaries − 1 are there */
    int left;       /* layers that have not gone backward; what lies before layer `left` is its gradient */
} decant_streamed_state;

/* Layers [*first, *end) have to go forward before the next one can go backward. When *end is not the number of
 * layers, what enters layer *end is needed too. Nothing: *first = *end.
 *   layers   of the model */
void decant_streamed_forward_rest(decant_streamed_state state, int layers, int *first, int *end);

#endif
