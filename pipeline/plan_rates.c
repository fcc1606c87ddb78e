/* The rates that a plan takes where none are given: those that were measured. See plan.h. */
#include "pipeline/plan.h"

/* LLaMA-7B shapes on one H100, tests/gpu/RESULTS.md: 128 sequences of 2048 tokens are 1.075e16 operations
 * in 21.7 s; 6.48e9 weights at 2, 3 and 4 bits in 3.0 s, and 0.79 s more for each of 5 and 6 bits; 13.5 GB of
 * weights from the page cache in 0.7 s; 3.3 GB written in 4.8 s. Between ranks nothing was measured, and grids
 * are taken to cost no more than reading, checksums and k-means at small widths do.
 *
 * Guided, on one H200, 3 bits, four groups, three rounds: Hessians of 100 sequences of 2048 tokens, 5.82e15
 * operations, in 20.5 s; levels of a 4096 x 4096 and an 11008 x 4096, 4.05e12 operations of sums, in 3.8 + 10.2
 * ms; the matrices of all layers, Σ rows · columns² = 3.65e13, in 17.5 s without passes; four passes made the
 * search of a job 24.5 s longer. What remains of the last two after three times the sums by level each, and of
 * the last after one objective, are the products and the feedback. What a pass and what a factorization takes
 * was not measured apart. */
decant_rates decant_rates_measured(const decant_recipe *recipe)
{
    const double weights = 6.476e9;
    double seconds = 3.0;
    for (int i = 0; i < recipe->widths && decant_recipe_has_levels(recipe); i++)
        seconds += recipe->width[i] > 4 ? 0.79 : 0;
    const double product = 2 * 3.65e13, level_sum = 8 * product; /* of all matrices */
    const double level_sum_rate = 4.05e12 / 14.0e-3, alternations_s = 3 * level_sum / level_sum_rate;
    const double product_rate = 14 * product / (17.5 - alternations_s);
    return (decant_rates){
        .flop_s = 1.075e16 / 21.7,
        .hessian_flop_s = 5.82e15 / 20.5,
        .quantized_s = weights / seconds,
        .read_bytes_s = 13.5e9 / 0.7,
        .write_bytes_s = 3.3e9 / 4.8,
        .guided = {.products = product_rate,
                   .level_sums = level_sum_rate,
                   .feedback = (4 * product / 2 + 1.49e14) / (24.5 - alternations_s - product / product_rate)},
    };
}
