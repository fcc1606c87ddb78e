/* Which model is this? One number over the original bytes of every matrix that decant quantizes. */
#ifndef DECANT_PIPELINE_MODEL_CHECKSUM_H
#define DECANT_PIPELINE_MODEL_CHECKSUM_H

#include "pipeline/job.h"

/* Collective. The CRC-32 over the CRC-32s of all matrices in model order, as model_crc32 of the container. Each
 * rank reads the matrices that it owns. */
decant_status decant_job_model_checksum(decant_job *job, uint32_t *checksum, decant_error *err);

#endif
