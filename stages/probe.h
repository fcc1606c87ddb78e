/* Measures what one changed linear layer does to a model: the original model's activations on some sequences,
 * and the rest of the model run again from the block where the change is. Holds the whole model; knows no other
 * rank, and not how the layer was changed. */
#ifndef DECANT_STAGES_PROBE_H
#define DECANT_STAGES_PROBE_H

#include "io/token_array.h"
#include "stages/model.h"

typedef struct decant_probe decant_probe;

/* How many sequences of so many tokens pass through a block at once: enough for a GPU to be busy. Pure. */
int64_t decant_probe_batch(int64_t sequences, int64_t tokens);

/* Runs the original model on all sequences. Device memory: the input of one block and the output of the last
 * one for every sequence, and their logits where those fit a quarter of what the backend has.
 *   whole    all layers, with embedding and head; borrowed, outlives the probe
 *   tokens   sequences of at most whole->tokens tokens; borrowed */
decant_status decant_probe_create(const decant_model_part *whole, const decant_token_array *tokens,
                                  decant_probe **probe, decant_error *err);
void decant_probe_destroy(decant_probe **probe); /* takes NULL, sets NULL */

/* Compares the model in which linear layer `index` of block `block` is `changed` with the original.
 *   changed   its weight, or its packed form; borrowed
 *   sums      over all sequences, in their order; filled
 * Fastest when blocks come in ascending order: the probe's block inputs move on with them. The result does not
 * depend on what was asked before. */
decant_status decant_probe_measure(decant_probe *probe, int block, int index, const decant_linear *changed,
                                   decant_comparison *sums, decant_error *err);

#endif
