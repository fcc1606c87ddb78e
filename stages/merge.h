/* Adding statistics: the files of disjoint calibration parts become the file of all of them. Fisher sums
 * and Hessians are sums over sequences, so those of the whole are the sums of the parts'.
 *
 * Parts are added in F64 in the order in which they are given and rounded to F32 once. All terms of F are
 * squares, so a sum of n terms in F32 is off by at most n·2^-24 of itself, to first order (Higham, Accuracy and
 * Stability of Numerical Algorithms, 4.2), and so is the merged file from one run over all tokens: a merged
 * value and that of one run with the same micro-batches differ by at most 2·n·2^-24 of it, n the number of
 * calibration tokens. */
#ifndef DECANT_STAGES_MERGE_H
#define DECANT_STAGES_MERGE_H

#include "stages/statistics.h"

/* What was calibrated apart: one run of `calibrate`. */
typedef struct decant_statistics_part {
    int64_t checksum; /* CRC-32 of its tokens */
    int64_t sequences;
} decant_statistics_part;

/* Pure. What the sum of `count` files is made from: sequences and replicas add up, the loss is the mean over
 * all sequences, the checksum is that of the tokens one behind the other. micro_batch is the largest of the
 * parts'. DECANT_ERROR_INPUT says which file differs from the first in what: form, length, model.
 *   paths   [count], for messages */
decant_status decant_statistics_combine(const decant_statistics_origin *origins, const char *const *paths,
                                        int count, decant_statistics_origin *merged, decant_error *err);

/* Collective, with equal arguments. Writes the sum of the files to `output`, each rank its share of the
 * matrices; the same bytes on any number of ranks. The file lists its parts in /parts, I64 [parts, 2]: checksum
 * of the tokens, sequences.
 *   overwrite   false: DECANT_ERROR_USAGE when output exists
 *   merged      receives what the output was made from
 * DECANT_ERROR_INPUT when files are of other models, forms or lengths, have other matrices, or share a part,
 * and when a sum is not finite, in a file or in F32. Parts that overlap without being the same cannot be told
 * apart from disjoint ones. */
decant_status decant_statistics_merge(decant_ranks *ranks, const char *const *paths, int count,
                                      const char *output, bool overwrite, decant_statistics_origin *merged,
                                      decant_error *err);

#endif
