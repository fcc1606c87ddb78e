/* A model's config.json: the numbers that fix its shape. Parsed with cJSON; knows nothing of tensors. */
#ifndef DECANT_IO_MODEL_CONFIG_H
#define DECANT_IO_MODEL_CONFIG_H

#include "base/element.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct decant_model_config {
    char architecture[64]; /* architectures[0], e.g. "LlamaForCausalLM" */
    int64_t hidden_size;
    int64_t intermediate_size;
    int64_t vocabulary_size;
    int layers;                /* num_hidden_layers */
    int heads;                 /* num_attention_heads */
    int key_value_heads;       /* num_key_value_heads; heads when absent */
    int head_dimension;        /* head_dim; hidden_size / heads when absent */
    float norm_epsilon;        /* rms_norm_eps */
    double rotary_base;        /* rope_theta; 10000 when absent */
    int64_t maximum_positions; /* max_position_embeddings */
    bool tied_head;            /* tie_word_embeddings */
    decant_element
        element; /* torch_dtype or dtype, as a hint: the tensors say for themselves; BF16 when absent */
    char *json;  /* the file, verbatim, NUL-terminated; owned */
    size_t json_bytes;
} decant_model_config;

/* Reads DIR/config.json, or the file itself when path ends in ".json".
 * DECANT_ERROR_INPUT when it is missing, no JSON, lacks a number, has one out of range, or asks for something
 * this program does not compute (a rope_scaling, attention biases, another activation), naming the key. */
decant_status decant_model_config_read(const char *path, decant_model_config *config, decant_error *err);

/* The same from text in memory, as the container stores it. `origin` is named in messages. */
decant_status decant_model_config_parse(const char *json, size_t json_bytes, const char *origin,
                                        decant_model_config *config, decant_error *err);

void decant_model_config_free(decant_model_config *config);

#endif
