/* Greedy generation: after a prompt, the most likely token again and again, one sequence at a time. Keys and
 * values of all tokens so far are kept, so that a new token costs one row through every layer.
 *
 * Works for every family as it is: a part whose backend has another attention in its table is given to the
 * family's forward pass. That attention keeps keys and values, and attends over what was kept. A family that
 * has a step of its own is given one token at a time by it. */
#ifndef DECANT_STAGES_GENERATION_H
#define DECANT_STAGES_GENERATION_H

#include "stages/model.h"

typedef struct decant_generation decant_generation;

/* `part` is a whole model in place, borrowed; it takes sequences of up to part->tokens, prompt and generated
 * tokens together. Freed with decant_generation_destroy, which takes NULL and sets NULL. */
decant_status decant_generation_create(const decant_model_part *part, decant_generation **generation,
                                       decant_error *err);
void decant_generation_destroy(decant_generation **generation);

/* Forgets what was before and passes a prompt.
 *   tokens   host [count], 1 … part->tokens
 *   next     receives the most likely next token, the lowest among equals; −1 where logits are no numbers */
decant_status decant_generation_begin(decant_generation *generation, const int32_t *tokens, int64_t count,
                                      int32_t *next, decant_error *err);

/* Passes `token` and then the most likely ones, each behind the one before, `count` tokens in this call and no
 * more than part->tokens in all; the host waits once.
 *   token    0 or more
 *   next     host [count], receives the most likely token behind each; −1 as above, and what follows is of no
 *            use */
decant_status decant_generation_continue(decant_generation *generation, int32_t token, int64_t count,
                                         int32_t *next, decant_error *err);

/* The same of one token. */
decant_status decant_generation_step(decant_generation *generation, int32_t token, int32_t *next,
                                     decant_error *err);

/* Forgets the tokens that passed after the first `count`. */
void decant_generation_go_back(decant_generation *generation, int64_t count);

/* Bytes of keys and values that a sequence of `tokens` tokens keeps: pure. */
int64_t decant_generation_kept_bytes(const decant_model_config *config, decant_element activation,
                                     int64_t tokens);

#endif
