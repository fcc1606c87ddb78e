/* Which model a job, a statistics file or a work directory belongs to: one checksum of the weights of all
 * linear layers. Embeddings, norms, biases and the head have one of their own, by which a work directory knows
 * its model too. */
#ifndef DECANT_PIPELINE_MODEL_FINGERPRINT_H
#define DECANT_PIPELINE_MODEL_FINGERPRINT_H

#include "pipeline/job.h"

/* Collective, once a job. Sets job->model_checksum and job->weight_checksums, on every rank, to the container's
 * model_crc32 and to the CRC-32s of the weights of all linear layers, in model order, that it is made of. Every
 * rank reads the matrices it owns, all of their bytes, once; they are read again for the work, so what fits the
 * page cache comes from there. */
decant_status decant_job_fingerprint_model(decant_job *job, decant_error *err);

/* Collective. Sets job->others_checksum, on every rank, to one CRC-32 over the names and bytes of all the
 * model's other tensors, in name order. The ranks share out the tensors; read once a job, asked for again it is
 * there. */
decant_status decant_job_fingerprint_others(decant_job *job, decant_error *err);

/* Local. DECANT_ERROR_INPUT when the statistics at `path` were made from another model than the job's, and
 * --old-statistics does not take them all the same. */
decant_status decant_job_check_statistics(const decant_job *job, const char *path,
                                          const decant_statistics_origin *origin, decant_error *err);

#endif
