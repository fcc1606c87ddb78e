/* Who does what when: how layers are shared out over stages, and how sequences are taken
 * together, and in which order a stage passes them forward and backward. Pure: no MPI, no kernels, no files;
 * `decant plan` and the tests ask it anything. */
#ifndef DECANT_PIPELINE_SCHEDULE_H
#define DECANT_PIPELINE_SCHEDULE_H

#include "io/model_config.h"

#include <stdbool.h>
#include <stdint.h>

/* Ranks as stages × replicas: a stage has some of the layers, a replica some of the sequences. The replicas of
 * a stage are neighbours, because Fisher sums, the largest messages, travel between them: rank = stage ·
 * replicas + replica. */
typedef struct decant_rank_grid {
    int stages, replicas;
} decant_rank_grid;

/* The grid of `ranks` ranks with so many replicas, which must divide them; with 0, the fewest replicas that
 * divide them and leave no more stages than layers, so 1 unless ranks outnumber layers. False when it cannot
 * be. */
bool decant_schedule_grid(int ranks, int layers, int replicas, decant_rank_grid *grid);

/* The share of one of `parts` in `count` things: consecutive, the earlier shares larger by one where they do
 * not divide. */
void decant_schedule_share(int64_t count, int parts, int part, int64_t *first, int64_t *share);

/* Which replica owns which of a stage's matrices. Whole matrices are shared out, not rows, because outliers are
 * selected over a whole matrix. Blocks are gone through from the last to the first, as their Fisher sums become
 * ready, and in each the most expensive matrices first, each to the replica with the least cost so far.
 *
 *   costs    [blocks, linears], > 0
 *   loads    [replicas]; filled: what each has in the end
 *   owners   [blocks, linears]; filled */
void decant_schedule_owners(const double *costs, int blocks, int linears, int replicas, double *loads,
                            int *owners);

/* The consecutive layers of one stage; a stage with count 0 has nothing to do. */
typedef struct decant_layer_range {
    int first, count;
} decant_layer_range;

/* Splits `layers` layers over `stages` stages so that the most expensive stage is as cheap as can be, then the
 * second most expensive, and so on; among equals the earlier stages take more layers. The first
 * min(layers, stages) stages get at least one layer each, the others none.
 *
 *   layer_cost   cost of one layer, > 0
 *   first_cost   what the stage with layer 0 does besides (embedding), >= 0
 *   last_cost    what the stage with the last layer does besides (head and loss), >= 0
 *   ranges       [stages] */
void decant_schedule_layers(int layers, int stages, double layer_cost, double first_cost, double last_cost,
                            decant_layer_range *ranges);

/* The multiply-adds of one forward pass of `tokens` tokens through one block and through the head. Calibrating
 * takes three such passes in a block (forward, gradient of the input, gradient of the weights), four when
 * activations are recomputed, and two in the head, whose weights are not quantized; balancing weighs them so.
 */
double decant_schedule_block_cost(const decant_model_config *config, int64_t tokens);
double decant_schedule_head_cost(const decant_model_config *config, int64_t tokens);

/* How many stages have layers. */
int decant_schedule_active_stages(const decant_layer_range *ranges, int stages);

/* Consecutive sequences that pass through the model together, so that products are large enough to be fast. */
typedef struct decant_micro_batch {
    int64_t first, count; /* sequences */
} decant_micro_batch;

/* How many sequences of `length` tokens a micro-batch has: as many as fit 2048 tokens, at least one. Part of
 * what decides the bits of the sums, so it depends on the shape alone. */
int64_t decant_schedule_micro_batch_size(int64_t length);

/* How many micro-batches of `size` sequences there are; the last one may be smaller. */
int64_t decant_schedule_micro_batches(int64_t sequences, int64_t size);
decant_micro_batch decant_schedule_micro_batch(int64_t sequences, int64_t size, int64_t index);

typedef enum decant_direction { DECANT_FORWARD, DECANT_BACKWARD } decant_direction;

typedef struct decant_step {
    decant_direction direction;
    int64_t batch; /* micro-batch */
} decant_step;

/* How many micro-batches can be between their forward and backward pass on stage s: min(stages − s, batches)
 * where messages take no time. Each micro-batch passes stages − s − 1 boundaries forward and as many backward
 * before its turn comes, so while messages take time a stage waits for each of them, unless up to as many more
 * micro-batches are in flight: `slack` of them, stages − s − 1 at most. */
int64_t decant_schedule_in_flight(int stages, int stage, int slack, int64_t batches);

/* One-forward-one-backward order (PipeDream-flush, Narayanan et al. 2021): a stage first passes in_flight − 1
 * micro-batches forward, then alternates forward and backward, then drains. It has 2 · batches steps. Backward
 * passes are in order on every stage. */
decant_step decant_schedule_step(int64_t in_flight, int64_t batches, int64_t index);

/* What share of the time from the first step of the first stage to the last step of any stage each stage waits,
 * when all follow decant_schedule_step and a step begins as soon as its stage is free and its input is there.
 * `stages` counts those that have layers.
 *
 *   forward_s, backward_s   [stages]: seconds of one micro-batch's pass on each stage, >= 0
 *   message_s               seconds from the end of a pass until the neighbour has what it made
 *   idle                    [stages]: 0 … 1; filled
 *
 * DECANT_ERROR_MEMORY when there is none for stages · batches numbers. */
decant_status decant_schedule_idle_share(int stages, int slack, int64_t batches, const double *forward_s,
                                         const double *backward_s, double message_s, double *idle,
                                         decant_error *err);

#endif
