/* io/opt_config: what is taken from the config.json of an OPT model, and what is refused with the key's name.
 */
#include "tests/io/config_case.h"

/* The keys of OPT-350M that decant reads. */
static const char good[] =
    "{\"architectures\":[\"OPTForCausalLM\"],\"activation_function\":\"relu\",\"do_layer_norm_before\":false,"
    "\"ffn_dim\":4096,\"hidden_size\":1024,\"max_position_embeddings\":2048,\"num_attention_heads\":16,"
    "\"num_hidden_layers\":24,\"torch_dtype\":\"float16\",\"vocab_size\":50272,\"word_embed_proj_dim\":512}";

static decant_status parse_changed(const char *old, const char *new, decant_model_config *config,
                                   decant_error *err)
{
    char text[CONFIG_BYTES];
    replace_in(good, old, new, text);
    return parse(text, config, err);
}

static void all_members_are_read(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_ok(parse_changed("", "", &config, &err));
    assert_int_equal(config.hidden_size, 1024);
    assert_int_equal(config.intermediate_size, 4096);
    assert_int_equal(config.vocabulary_size, 50272);
    assert_int_equal(config.layers, 24);
    assert_int_equal(config.heads, 16);
    assert_int_equal(config.key_value_heads, 16);
    assert_int_equal(config.head_dimension, 64);
    assert_int_equal(config.embedding_width, 512);
    assert_int_equal(config.maximum_positions, 2048);
    assert_int_equal(config.position_rows, 2050);
    assert_int_equal(config.element, DECANT_F16);
    assert_true(config.norm_epsilon == 1e-5f);
    assert_true(config.norm_behind && config.plain_mlp && config.tied_head);
    decant_model_config_free(&config);
}

/* As transformers' OPTConfig has them. */
static void absent_members_have_their_defaults(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_ok(parse_changed(",\"word_embed_proj_dim\":512", "", &config, &err));
    assert_int_equal(config.embedding_width, 1024);
    decant_model_config_free(&config);
    assert_ok(parse_changed("\"word_embed_proj_dim\":512", "\"word_embed_proj_dim\":null", &config, &err));
    assert_int_equal(config.embedding_width, 1024);
    decant_model_config_free(&config);
    assert_ok(parse_changed("\"do_layer_norm_before\":false,", "", &config, &err));
    assert_false(config.norm_behind);
    decant_model_config_free(&config);
    assert_ok(parse_changed("\"do_layer_norm_before\":false", "\"tie_word_embeddings\":false", &config, &err));
    assert_false(config.norm_behind || config.tied_head);
    decant_model_config_free(&config);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

static void refusals_name_the_key(void **state)
{
    (void)state;
    static const refused_change changes[] = {
        {"\"ffn_dim\":4096,", "", "no \"ffn_dim\""},
        {"\"ffn_dim\":4096", "\"ffn_dim\":4096.5", "\"ffn_dim\" is no integer"},
        {"\"max_position_embeddings\":2048,", "", "no \"max_position_embeddings\""},
        {"\"num_attention_heads\":16", "\"num_attention_heads\":15", "\"num_attention_heads\" 15"},
        {"\"word_embed_proj_dim\":512", "\"word_embed_proj_dim\":1025", "\"word_embed_proj_dim\" 1025"},
        {"\"relu\"", "\"gelu\"", "\"activation_function\""},
        {"\"do_layer_norm_before\":false", "\"do_layer_norm_before\":0", "\"do_layer_norm_before\""},
        {"\"do_layer_norm_before\":false", "\"enable_bias\":false", "\"enable_bias\""},
        {"\"do_layer_norm_before\":false", "\"layer_norm_elementwise_affine\":false",
         "\"layer_norm_elementwise_affine\""},
        {"\"do_layer_norm_before\":false", "\"_remove_final_layer_norm\":true", "\"_remove_final_layer_norm\""},
        {"\"do_layer_norm_before\":false", "\"quantization_config\":{\"bits\":4}", "\"quantization_config\""},
        {"\"max_position_embeddings\":2048,\"num_attention_heads\":16,\"num_hidden_layers\":24",
         "\"max_position_embeddings\":2147483647,\"num_attention_heads\":16,\"num_hidden_layers\":65536",
         "too large to count"},
    };
    refuses(good, changes, sizeof changes / sizeof *changes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_members_are_read),
        cmocka_unit_test(absent_members_have_their_defaults),
        cmocka_unit_test(refusals_name_the_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
