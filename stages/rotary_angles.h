/* The angles of rotary position embeddings: which a config asks for, as numbers and on the device. */
#ifndef DECANT_STAGES_ROTARY_ANGLES_H
#define DECANT_STAGES_ROTARY_ANGLES_H

#include "io/model_config.h"
#include "kernels/backend.h"

/* The cosines and sines of `sequences` sequences of `tokens` tokens, one after the other.
 *   cosines, sines   device F32 [sequences · tokens, head_dimension / 2], the caller's to release; on failure
 *                    either may be there or NULL */
decant_status decant_rotary_angles_create(decant_backend *backend, const decant_model_config *config,
                                          int64_t tokens, int64_t sequences, float **cosines, float **sines,
                                          decant_error *err);

/* The same into arrays that are there, of at least that many. */
decant_status decant_rotary_angles_fill(decant_backend *backend, const decant_model_config *config,
                                        int64_t tokens, int64_t sequences, float *cosines, float *sines,
                                        decant_error *err);

#endif
