/* Where a job's Fisher sums come from: calibration tokens, a statistics file, or, in a data-free run, nowhere.
 * How sums are added up from tokens is pipeline/calibration.c. */
#ifndef DECANT_PIPELINE_JOB_STATISTICS_H
#define DECANT_PIPELINE_JOB_STATISTICS_H

#include "pipeline/quantization.h"

/* Collective. Fisher sums of the matrices that this rank owns, from --calibration or --statistics; none in a
 * data-free run. Otherwise makes the job's plan first, and so refuses memory that will not suffice.
 *   fisher   created here; freed with decant_fisher_sums_free, after a failure too
 *   share    all zeros; when layers are streamed, their matrices are quantized as they pass, and no sums are
 *            left. Freed with decant_quantized_share_free, after a failure too
 *   origin   what the sums were taken over; untouched in a data-free run
 * With --reuse the sums of matrices that need not be quantized are not read. */
decant_status decant_job_find_fisher_sums(decant_job *job, decant_fisher_sums *fisher,
                                          decant_quantized_share *share, decant_statistics_origin *origin,
                                          decant_error *err);

/* Collective. The sums, from --statistics, of the matrices of this rank that were to be taken over from an
 * earlier container (pipeline/reuse.h) but were given another candidate; nothing without --statistics.
 *   chosen   [linear layers of the model]
 *   fisher   all zeros, filled; freed with decant_fisher_sums_free, after a failure too */
decant_status decant_job_find_other_sums(decant_job *job, const int *chosen, decant_fisher_sums *fisher,
                                         decant_error *err);

/* Collective. The same from --calibration alone. share NULL: the sums are wanted, not what is quantized with
 * them. */
decant_status decant_job_calibrate_from_tokens(decant_job *job, decant_fisher_sums *fisher,
                                               decant_quantized_share *share, decant_statistics_origin *origin,
                                               decant_error *err);

#endif
