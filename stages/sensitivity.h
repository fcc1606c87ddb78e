/* Measured sensitivities: what one layer's error does to the loss, as the model itself shows it, in place of
 * the Fisher information. What was measured, what follows for the candidates, and how well prediction and
 * measurement agree. Pure but for memory; how it is measured is stages/probe.h, by whom pipeline/sensitivity.c.
 *
 *   noise     a layer's α is the slope of the increase over t² when Gaussian noise of relative size t is
 *             added to its weight (arXiv 2411.17525, Algorithm 3); a candidate's predicted increase is
 *             α · Σ (w − ŵ)² / Σ w²
 *   measured  each matrix is quantized alone at one width; other widths are predicted by the ratio of the
 *             errors that the method itself minimises: Σ F (w − ŵ)² where there is Fisher information
 *
 * An "increase" is the mean over targets of KL(original ‖ changed), or of the loss difference; nats a token. */
#ifndef DECANT_STAGES_SENSITIVITY_H
#define DECANT_STAGES_SENSITIVITY_H

#include "stages/error_table.h"
#include "stages/noise_regression.h"

typedef enum decant_sensitivity_kind {
    DECANT_SENSITIVITY_FISHER, /* nothing is measured: the table predicts from the Fisher sums */
    DECANT_SENSITIVITY_NOISE,
    DECANT_SENSITIVITY_MEASURED,
} decant_sensitivity_kind;

typedef enum decant_sensitivity_measure {
    DECANT_MEASURE_DIVERGENCE, /* KL(original ‖ changed) */
    DECANT_MEASURE_LOSS,       /* the loss difference: may be negative by chance */
} decant_sensitivity_measure;

/* Prediction against measurement, one matrix at a time. */
typedef struct decant_agreement {
    int64_t count; /* matrices */
    double predicted_sum, measured_sum;
    double correlation; /* Pearson's */
} decant_agreement;

typedef struct decant_sensitivity {
    decant_sensitivity_kind kind;
    decant_sensitivity_measure measure;
    decant_element precision;  /* of the activations */
    int64_t sequences, length; /* what it was measured on */
    uint32_t tokens_checksum;
    bool random_tokens; /* drawn from the seed, for want of calibration tokens */
    int64_t layers;
    int levels;                            /* of noise; 0 when nothing was noised */
    double t[DECANT_NOISE_LEVELS_MAXIMUM]; /* [levels] */
    double *noised;     /* [layers, levels]: increase with noise; owned, as all arrays here */
    int32_t *candidate; /* [layers]: which one was quantized alone; -1: none */
    double *alone;      /* [layers]: increase with it; 0 where none */
    double *value;      /* [layers]: α, or `alone`; negative ones became 0 */
    int64_t negatives;  /* how many did */
    decant_agreement agreement;
} decant_sensitivity;

/* As options and the container name them: "noise", "kl". */
const char *decant_sensitivity_kind_name(decant_sensitivity_kind kind);
const char *decant_sensitivity_measure_name(decant_sensitivity_measure measure);

/* Zeros, and -1 for candidates. On failure empty. */
decant_status decant_sensitivity_create(decant_sensitivity_kind kind, int64_t layers, int levels,
                                        decant_sensitivity *sensitivity, decant_error *err);
void decant_sensitivity_free(decant_sensitivity *sensitivity);

/* Chooses `count` matrices to be quantized alone (all, when there are no more), drawn from the seed, and for
 * each the candidate whose width is nearest to `bits`, the smaller width among equals: fills `candidate`. */
void decant_sensitivity_choose(decant_sensitivity *sensitivity, const decant_error_table *table, int64_t count,
                               double bits, uint64_t seed);

/* The seed of a layer's noise at one level. */
uint64_t decant_sensitivity_noise_seed(uint64_t seed, int64_t layer, int level);

/* `value` and `negatives` from what was measured. */
void decant_sensitivity_conclude(decant_sensitivity *sensitivity);

/* Replaces the predictions of all candidates in the table by those that follow from the measured values, after
 * comparing: `agreement` is filled for the matrices that were quantized alone, with α · t² for noise and with
 * what the table said before (from the Fisher sums) for measured. Nothing for DECANT_SENSITIVITY_FISHER. */
decant_status decant_error_table_apply(decant_error_table *table, decant_sensitivity *sensitivity,
                                       decant_error *err);

#endif
