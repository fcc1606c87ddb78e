/* The keys of an OPT model's config.json, which has names of its own for most of what decoders have. For
 * io/model_config.c alone. */
#ifndef DECANT_IO_OPT_CONFIG_H
#define DECANT_IO_OPT_CONFIG_H

#include "io/config_reader.h"
#include "io/model_config.h"

/* Fills the sizes and switches of *config; sizes are in range by themselves, not yet together. What absent keys
 * mean is as in transformers' OPTConfig. */
decant_status decant_opt_config_read(decant_config_reader reader, decant_model_config *config,
                                     decant_error *err);

#endif
