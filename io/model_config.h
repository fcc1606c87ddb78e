/* A model's config.json: the numbers that fix its shape. Parsed with cJSON; knows nothing of tensors. */
#ifndef DECANT_IO_MODEL_CONFIG_H
#define DECANT_IO_MODEL_CONFIG_H

#include "base/element.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A matrix of a model of which nothing is known but its tensors. */
typedef struct decant_config_matrix {
    char name[128]; /* of the tensor, without ".weight" */
    int64_t rows, columns;
} decant_config_matrix;

/* How rotary frequencies are changed for contexts longer than those of the first training. */
typedef struct decant_rotary_scaling {
    double factor;      /* 0: they are not */
    bool by_wavelength; /* rope_type "llama3", with the numbers below; else "linear", all alike */
    double low_frequency_factor,
        high_frequency_factor;  /* low_freq_factor, high_freq_factor; the latter larger */
    int64_t original_positions; /* original_max_position_embeddings */
} decant_rotary_scaling;

typedef struct decant_model_config {
    char architecture[64]; /* architectures[0], e.g. "LlamaForCausalLM" */
    int64_t hidden_size;
    int64_t intermediate_size;
    int64_t vocabulary_size;
    int layers;              /* num_hidden_layers */
    int heads;               /* num_attention_heads */
    int key_value_heads;     /* num_key_value_heads; heads when absent */
    int head_dimension;      /* head_dim; hidden_size / heads when absent */
    int64_t embedding_width; /* of a token's row in the embedding: hidden_size, or word_embed_proj_dim */
    int64_t position_rows;   /* of the table of learned positions; 0: positions are rotary */
    bool norm_behind;        /* do_layer_norm_before is false: blocks norm what their halves give */
    bool plain_mlp;          /* a block's MLP is two matrices, without a gate */
    float norm_epsilon;      /* rms_norm_eps; 1e-5 for OPT, whose configs have none */
    double rotary_base;      /* rope_theta; 10000 when absent */
    decant_rotary_scaling rotary_scaling; /* rope_scaling, or inside rope_parameters */
    int64_t sliding_window;               /* sliding_window: keys a query sees, itself included; 0 when null */
    int64_t maximum_positions;            /* max_position_embeddings */
    bool tied_head;                       /* tie_word_embeddings */
    decant_element
        element; /* torch_dtype or dtype, as a hint: the tensors say for themselves; BF16 when absent */
    char *json;  /* the file, verbatim, NUL-terminated; owned */
    size_t json_bytes;
    decant_config_matrix *matrices; /* [layers], owned; NULL where the architecture is known */
} decant_model_config;

/* Reads DIR/config.json, or the file itself when path ends in ".json".
 * DECANT_ERROR_INPUT when it is missing, no JSON, lacks a number, has one out of range, or asks for something
 * this program does not compute (another rope_scaling, biases behind a switch, another activation), naming the
 * key. On failure *config is empty but for the architecture, where that could be read. */
decant_status decant_model_config_read(const char *path, decant_model_config *config, decant_error *err);

/* The same from text in memory, as the container stores it. `origin` is named in messages. */
decant_status decant_model_config_parse(const char *json, size_t json_bytes, const char *origin,
                                        decant_model_config *config, decant_error *err);

/* Only the text of DIR/config.json, whatever it says; empty where there is none. Everything else is 0.
 * DECANT_ERROR_INPUT when there is one that cannot be read. */
decant_status decant_model_config_read_text(const char *path, decant_model_config *config, decant_error *err);

/* The first key by which two models that are known compute differently, or NULL. */
const char *decant_model_config_difference(const decant_model_config *config, const decant_model_config *other);

void decant_model_config_free(decant_model_config *config);

#endif
