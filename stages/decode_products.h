/* The linear products of one decode step: every linear layer of a part's blocks applied once to a batch of
 * tokens, one of each sequence that is decoded together. Those that take the same x are applied together, as
 * the forward pass does. No attention, norms or head: these are the same for the original and the quantized
 * model, and nothing depends on what the numbers are. What the step takes is for the caller to measure. */
#ifndef DECANT_STAGES_DECODE_PRODUCTS_H
#define DECANT_STAGES_DECODE_PRODUCTS_H

#include "stages/model.h"

typedef struct decant_decode_products {
    decant_backend *backend; /* borrowed */
    void *x;                 /* device [largest batch, most columns of a layer], of the activations' type */
    void *y;                 /* device [largest batch, most rows of layers with the same x], the same: their ys,
                                one behind the other */
    decant_recording *recording;
    const decant_model_part *part; /* what is recorded; borrowed */
    int64_t tokens;
} decant_decode_products;

/* Room for up to `tokens` tokens through the layers of `part`, and a batch of numbers in [-1, 1). The struct
 * stays where it is until decant_decode_products_destroy, which frees it, also after a failure. */
decant_status decant_decode_products_create(const decant_model_part *part, int64_t tokens,
                                            decant_decode_products *products, decant_error *err);
void decant_decode_products_destroy(decant_decode_products *products); /* takes an empty one */

/* Passes a batch of `tokens` tokens once, and records its products in place of those recorded before. `part`
 * has layers of the shapes that the room was made for. */
decant_status decant_decode_products_record(decant_decode_products *products, const decant_model_part *part,
                                            int64_t tokens, decant_error *err);

/* Issues the recorded products once more; they may still run when this returns. */
decant_status decant_decode_products_run(const decant_decode_products *products, decant_error *err);

#endif
