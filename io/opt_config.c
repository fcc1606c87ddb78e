/* See opt_config.h. */
#include "io/opt_config.h"

/* Of torch.nn.LayerNorm, which OPT's norms are; its configs have no key for it. */
static const float LAYER_NORM_EPSILON = 1e-5f;

/* Rows of the table of positions before that of the first position: transformers'
 * OPTLearnedPositionalEmbedding.
 */
enum { ROWS_BEFORE_POSITIONS = 2 };

/* true when absent */
static decant_status read_switch(decant_config_reader reader, const char *key, bool *value, decant_error *err)
{
    if (decant_config_has_key(reader, key))
        return decant_config_read_flag(reader, key, value, err);
    *value = true;
    return DECANT_OK;
}

static decant_status require_true(decant_config_reader reader, const char *key, decant_error *err)
{
    bool value;
    decant_status status = read_switch(reader, key, &value, err);
    if (status == DECANT_OK && !value)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"%s\" is not true, which decant does not compute",
                            reader.origin, key);
    return status;
}

static decant_status read_sizes(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_config_read_integer(reader, "hidden_size", 0, &config->hidden_size, err));
    DECANT_TRY(decant_config_read_integer(reader, "ffn_dim", 0, &config->intermediate_size, err));
    DECANT_TRY(decant_config_read_integer(reader, "vocab_size", 0, &config->vocabulary_size, err));
    DECANT_TRY(decant_config_read_int(reader, "num_hidden_layers", 0, &config->layers, err));
    DECANT_TRY(decant_config_read_int(reader, "num_attention_heads", 0, &config->heads, err));
    DECANT_TRY(
        decant_config_read_integer(reader, "max_position_embeddings", 0, &config->maximum_positions, err));
    DECANT_TRY(decant_config_read_integer(reader, "word_embed_proj_dim", config->hidden_size,
                                          &config->embedding_width, err));
    if (config->hidden_size % config->heads != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: \"hidden_size\" %lld is no multiple of \"num_attention_heads\" %d", reader.origin,
                    (long long)config->hidden_size, config->heads);
    if (config->embedding_width > config->hidden_size)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"word_embed_proj_dim\" %lld is beyond \"hidden_size\" %lld",
                    reader.origin, (long long)config->embedding_width, (long long)config->hidden_size);
    config->key_value_heads = config->heads;
    config->head_dimension = (int)(config->hidden_size / config->heads);
    config->position_rows = ROWS_BEFORE_POSITIONS + config->maximum_positions;
done:
    return status;
}

decant_status decant_opt_config_read(decant_config_reader reader, decant_model_config *config,
                                     decant_error *err)
{
    bool norm_before;
    decant_status status;
    config->norm_epsilon = LAYER_NORM_EPSILON;
    config->plain_mlp = true;
    DECANT_TRY(read_sizes(reader, config, err));
    DECANT_TRY(read_switch(reader, "do_layer_norm_before", &norm_before, err));
    config->norm_behind = !norm_before;
    DECANT_TRY(read_switch(reader, "tie_word_embeddings", &config->tied_head, err));
    DECANT_TRY(require_true(reader, "enable_bias", err));
    DECANT_TRY(require_true(reader, "layer_norm_elementwise_affine", err));
    DECANT_TRY(decant_config_require_false(reader, "_remove_final_layer_norm", err));
    DECANT_TRY(decant_config_require_text(reader, "activation_function", "relu", err));
done:
    return status;
}
