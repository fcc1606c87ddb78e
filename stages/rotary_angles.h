/* The angles of rotary position embeddings: which a config asks for, as numbers and on the device. */
#ifndef DECANT_STAGES_ROTARY_ANGLES_H
#define DECANT_STAGES_ROTARY_ANGLES_H

#include "io/model_config.h"
#include "kernels/backend.h"

/* By how much pair `pair` of a head's components turns from one position to the next, in radians: pure.
 * base^(−2 pair / head_dimension), scaled as config->rotary_scaling says.
 * Sources: Su et al., "RoFormer" (2021), section 3.2.2; the scaling: rope_type "linear" (Chen et al.,
 * "Extending Context Window of Large Language Models via Positional Interpolation", 2023) and "llama3" of
 * Hugging Face's transformers. */
double decant_rotary_frequency(const decant_model_config *config, int64_t pair);

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
