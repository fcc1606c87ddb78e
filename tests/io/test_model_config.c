/* io/model_config: what is taken from a config.json, and what is refused with the key's name. */
#include "tests/io/config_case.h"

static const char good[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"mlp_bias\":false,"
    "\"hidden_act\":\"silu\",\"hidden_size\":576,\"intermediate_size\":1536,"
    "\"max_position_embeddings\":8192,\"num_attention_heads\":9,\"num_hidden_layers\":30,"
    "\"num_key_value_heads\":3,\"rms_norm_eps\":1e-05,\"rope_scaling\":null,"
    "\"rope_theta\":100000.5,\"tie_word_embeddings\":true,\"vocab_size\":49152}\n";

static void all_members_are_read(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_ok(parse(good, &config, &err));
    assert_string_equal(config.architecture, "LlamaForCausalLM");
    assert_int_equal(config.hidden_size, 576);
    assert_int_equal(config.intermediate_size, 1536);
    assert_int_equal(config.vocabulary_size, 49152);
    assert_int_equal(config.layers, 30);
    assert_int_equal(config.heads, 9);
    assert_int_equal(config.key_value_heads, 3);
    assert_int_equal(config.head_dimension, 64);
    assert_true(config.norm_epsilon == 1e-5f);
    assert_true(config.rotary_base == 100000.5);
    assert_int_equal(config.maximum_positions, 8192);
    assert_true(config.tied_head);
    assert_int_equal(config.json_bytes, strlen(good));
    assert_string_equal(config.json, good);
    decant_model_config_free(&config);
    assert_null(config.json);
    assert_int_equal(decant_memory_usage_now().blocks, 0);
}

static void absent_members_have_their_defaults(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_ok(
        parse("{\"architectures\":[\"A\",\"B\"],\"hidden_size\":64,\"intermediate_size\":1,\"vocab_size\":1,"
              "\"num_hidden_layers\":1,\"num_attention_heads\":4,\"num_key_value_heads\":null,"
              "\"rms_norm_eps\":1,\"max_position_embeddings\":1}",
              &config, &err));
    assert_string_equal(config.architecture, "A");
    assert_int_equal(config.key_value_heads, 4);
    assert_int_equal(config.head_dimension, 16);
    assert_true(config.rotary_base == 10000);
    assert_false(config.tied_head);
    decant_model_config_free(&config);
}

static void variants_are_accepted(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    static const struct {
        const char *old, *new;
        int head_dimension;
        double rotary_base;
    } cases[] = {
        {"\"rope_theta\":100000.5", "\"rope_parameters\":{\"rope_theta\":5e5,\"rope_type\":\"default\"}", 64,
         5e5},
        {"\"rope_theta\":100000.5",
         "\"rope_theta\":5e5,\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"default\"}", 64, 5e5},
        {"\"rope_theta\":100000.5", "\"rope_theta\":7,\"rope_parameters\":{\"rope_type\":\"default\"}", 64, 7},
        {"\"rope_theta\":100000.5", "\"rope_parameters\":{}", 64, 10000},
        {"\"rope_theta\":100000.5", "\"rope_theta\":2,\"partial_rotary_factor\":1.0", 64, 2},
        {"\"rope_scaling\":null,", "\"head_dim\":128,", 128, 100000.5},
        {"\"rope_scaling\":null,", "\"head_dim\":null,", 64, 100000.5},
        {"576", "576.0", 64, 100000.5},
        {"\"num_attention_heads\":9", "\"num_attention_heads\":6", 96, 100000.5},
        {"\"hidden_act\":\"silu\",", "\"unknown\":{\"deep\":[1,2,{}]},", 64, 100000.5},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[CONFIG_BYTES];
        replace_in(good, cases[i].old, cases[i].new, text);
        assert_ok(parse(text, &config, &err));
        assert_int_equal(config.head_dimension, cases[i].head_dimension);
        assert_true(config.rotary_base == cases[i].rotary_base);
        decant_model_config_free(&config);
    }
}

static const char llama3[] = "{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
                             "\"high_freq_factor\":4.5,\"original_max_position_embeddings\":8192}";

static void scaling_is_read_from_either_place(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    char text[CONFIG_BYTES], key[512];
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2; i++) {
        snprintf(key, sizeof key, "\"%s\":%s", places[i], llama3);
        replace_in(good, "\"rope_scaling\":null", key, text);
        assert_ok(parse(text, &config, &err));
        assert_true(config.rotary_scaling.factor == 8 && config.rotary_scaling.by_wavelength);
        assert_true(config.rotary_scaling.low_frequency_factor == 1);
        assert_true(config.rotary_scaling.high_frequency_factor == 4.5);
        assert_int_equal(config.rotary_scaling.original_positions, 8192);
        assert_true(config.rotary_base == 100000.5);
        decant_model_config_free(&config);
    }
    replace_in(good, "\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"default\"}", text);
    assert_ok(parse(text, &config, &err));
    assert_true(config.rotary_scaling.factor == 0);
    decant_model_config_free(&config);
    replace_in(good, "\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", text);
    assert_ok(parse(text, &config, &err));
    assert_true(config.rotary_scaling.factor == 4 && !config.rotary_scaling.by_wavelength);
    decant_model_config_free(&config);
}

/* As transformers' configuration classes have it. */
static void what_an_absent_key_means_depends_on_the_architecture(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    static const struct {
        const char *architecture, *window;
        int64_t sliding_window;
        int head_dimension;
    } cases[] = {
        {"LlamaForCausalLM", "\"sliding_window\":null,", 0, 64},
        {"LlamaForCausalLM", "", 0, 64},
        {"MistralForCausalLM", "\"sliding_window\":null,", 0, 64},
        {"MistralForCausalLM", "", 4096, 64},
        {"MistralForCausalLM", "\"sliding_window\":77,", 77, 64},
        {"Qwen3ForCausalLM", "\"layer_types\":[\"full_attention\",\"full_attention\"],", 0, 128},
        {"Qwen3ForCausalLM", "\"head_dim\":32,", 0, 32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[CONFIG_BYTES], beginning[256];
        snprintf(beginning, sizeof beginning, "{%s\"architectures\":[\"%s\"]", cases[i].window,
                 cases[i].architecture);
        replace_in(good, "{\"architectures\":[\"LlamaForCausalLM\"]", beginning, text);
        assert_ok(parse(text, &config, &err));
        assert_int_equal(config.sliding_window, cases[i].sliding_window);
        assert_int_equal(config.head_dimension, cases[i].head_dimension);
        decant_model_config_free(&config);
    }
}

static void refusals_name_the_key(void **state)
{
    (void)state;
    static const refused_change changes[] = {
        {"\"hidden_size\":576,", "", "no \"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":\"576\"", "\"hidden_size\" is no integer"},
        {"\"hidden_size\":576", "\"hidden_size\":576.5", "\"hidden_size\" is no integer"},
        {"\"hidden_size\":576", "\"hidden_size\":0", "\"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":-576", "\"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":2147483648", "\"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":1e999", "\"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":true", "\"hidden_size\""},
        {"\"hidden_size\":576", "\"hidden_size\":576,\"hidden_size\":577", "\"hidden_size\" twice"},
        {"\"hidden_size\":576", "\"hidden_size\":577", "\"head_dim\""},
        {"\"hidden_size\":576", "\"hidden_size\":9", "is odd"},
        {"\"hidden_size\":576,", "\"hidden_size\":2147483646,\"head_dim\":2147483646,", "heads"},
        {"\"intermediate_size\":1536,", "", "\"intermediate_size\""},
        {"\"max_position_embeddings\":8192,", "", "\"max_position_embeddings\""},
        {"\"num_attention_heads\":9,", "", "\"num_attention_heads\""},
        {"\"num_hidden_layers\":30,", "", "\"num_hidden_layers\""},
        {"\"num_hidden_layers\":30", "\"num_hidden_layers\":3000000000", "\"num_hidden_layers\""},
        {"\"num_hidden_layers\":30", "\"num_hidden_layers\":65537", "\"num_hidden_layers\""},
        {"\"rms_norm_eps\":1e-05,", "", "\"rms_norm_eps\""},
        {"\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":0", "\"rms_norm_eps\""},
        {"\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":1e-300", "\"rms_norm_eps\""},
        {"\"rms_norm_eps\":1e-05", "\"rms_norm_eps\":\"small\"", "\"rms_norm_eps\""},
        {",\"vocab_size\":49152", "", "\"vocab_size\""},
        {"\"num_key_value_heads\":3", "\"num_key_value_heads\":4", "\"num_key_value_heads\" 4"},
        {"\"num_key_value_heads\":3", "\"num_key_value_heads\":18", "\"num_key_value_heads\" 18"},
        {"\"rope_scaling\":null", "\"rope_scaling\":{\"rope_type\":\"llama3\"}", "no \"rope_scaling.factor\""},
        {"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}",
         "\"rope_scaling.type\""},
        {"\"rope_scaling\":null", "\"rope_scaling\":8", "\"rope_scaling\" is no object"},
        {"\"rope_scaling\":null",
         "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":"
         "4}",
         "no \"rope_scaling.original_max_position_embeddings\""},
        {"\"rope_scaling\":null",
         "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,"
         "\"original_max_position_embeddings\":8192}",
         "\"rope_scaling.high_freq_factor\""},
        {"\"rope_scaling\":null", "\"rope_scaling\":{},\"rope_parameters\":{}", "both"},
        {"\"rope_scaling\":null", "\"use_sliding_window\":true", "\"use_sliding_window\""},
        {"\"rope_scaling\":null", "\"sliding_window\":0", "\"sliding_window\""},
        {"\"rope_scaling\":null", "\"layer_types\":[\"full_attention\",\"sliding_attention\"]",
         "\"layer_types\""},
        {"\"rope_scaling\":null", "\"layer_types\":\"full_attention\"", "\"layer_types\""},
        {"\"rope_theta\":100000.5", "\"rope_theta\":-1", "\"rope_theta\""},
        {"\"rope_theta\":100000.5", "\"rope_theta\":\"1\"", "\"rope_theta\""},
        {"\"rope_theta\":100000.5", "\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":1e4}",
         "\"rope_parameters.rope_type\""},
        {"\"rope_theta\":100000.5", "\"rope_parameters\":{\"rope_theta\":0}", "\"rope_parameters.rope_theta\""},
        {"\"rope_theta\":100000.5", "\"rope_parameters\":[]", "\"rope_parameters\""},
        {"\"rope_theta\":100000.5", "\"rope_theta\":1,\"rope_parameters\":{\"rope_theta\":2}",
         "\"rope_parameters.rope_theta\""},
        {"\"rope_theta\":100000.5", "\"partial_rotary_factor\":0.5", "\"partial_rotary_factor\""},
        {"\"attention_bias\":false", "\"attention_bias\":true", "\"attention_bias\""},
        {"\"attention_bias\":false", "\"attention_bias\":0", "\"attention_bias\""},
        {"\"mlp_bias\":false", "\"mlp_bias\":true", "\"mlp_bias\""},
        {"\"hidden_act\":\"silu\"", "\"hidden_act\":\"gelu\"", "\"hidden_act\""},
        {"\"tie_word_embeddings\":true", "\"tie_word_embeddings\":1", "\"tie_word_embeddings\""},
        {"\"mlp_bias\":false", "\"quantization_config\":{\"bits\":4}", "\"quantization_config\""},
        {"[\"LlamaForCausalLM\"]", "[]", "\"architectures\""},
        {"[\"LlamaForCausalLM\"]", "\"LlamaForCausalLM\"", "\"architectures\""},
        {"[\"LlamaForCausalLM\"]", "[\"LlamaForCausalLMLlamaForCausalLMLlamaForCausalLMLlamaForCausalLM\"]",
         "\"architectures\""},
        {"}\n", "} }", "no JSON"},
        {"}\n", "", "no JSON"},
        {"{", "[{", "no JSON"},
    };
    refuses(good, changes, sizeof changes / sizeof *changes);
}

static void sizes_whose_products_do_not_fit_are_refused(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_status(
        parse("{\"architectures\":[\"A\"],\"hidden_size\":2147483646,\"intermediate_size\":2147483647,"
              "\"vocab_size\":2147483647,\"num_hidden_layers\":65536,\"num_attention_heads\":1,"
              "\"rms_norm_eps\":1,\"max_position_embeddings\":1}",
              &config, &err),
        DECANT_ERROR_INPUT);
    assert_message(&err, "too large to count");
}

static void nul_bytes_are_refused(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    assert_status(decant_model_config_parse(good, sizeof good, "somewhere", &config, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "NUL");
}

/* Every beginning of a good file is refused. */
static void truncated_texts_are_refused(void **state)
{
    (void)state;
    decant_error err = {0};
    decant_model_config config;
    for (size_t length = 0; length < strlen(good) - 1; length++) {
        assert_status(decant_model_config_parse(good, length, "somewhere", &config, &err), DECANT_ERROR_INPUT);
        assert_message(&err, "somewhere");
    }
}

static void folder_and_file_are_read(void **state)
{
    const scratch *at = *state;
    decant_error err = {0};
    decant_model_config config;
    char path[128];
    assert_status(decant_model_config_read(at->folder, &config, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "config.json: No such file");
    scratch_write(at, "config.json", good, strlen(good));
    assert_ok(decant_model_config_read(at->folder, &config, &err));
    assert_string_equal(config.json, good);
    decant_model_config_free(&config);
    scratch_write(at, "65b.json", good, strlen(good));
    scratch_path(at, "65b.json", path, sizeof path);
    assert_ok(decant_model_config_read(path, &config, &err));
    decant_model_config_free(&config);
    scratch_write(at, "config.json", "", 0);
    assert_status(decant_model_config_read(at->folder, &config, &err), DECANT_ERROR_INPUT);
    assert_message(&err, "no JSON");
}

static void a_text_that_cannot_be_read_is_not_taken_for_none(void **state)
{
    const scratch *at = *state;
    decant_model_config config;
    decant_error err;
    char path[256];
    assert_ok(decant_model_config_read_text(at->folder, &config, &err));
    assert_int_equal(config.json_bytes, 0);
    decant_model_config_free(&config);
    scratch_write(at, "config.json", "{}", 2);
    assert_ok(decant_model_config_read_text(at->folder, &config, &err));
    assert_string_equal(config.json, "{}");
    decant_model_config_free(&config);
    scratch_path(at, "config.json", path, sizeof path);
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkdir(path, 0777), 0);
    assert_status(decant_model_config_read_text(at->folder, &config, &err), DECANT_ERROR_INPUT);
    assert_message(&err, path);
    assert_null(config.json);
}

static void differences_are_told_by_their_key(void **state)
{
    (void)state;
    static const struct {
        const char *old, *new, *key;
    } changes[] = {
        {"Llama", "Mistral", "architectures"},
        {"\"rope_theta\":100000.5", "\"rope_theta\":100000", "rope_theta"},
        {"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "rope_scaling"},
        {"1e-05", "1e-06", "rms_norm_eps"},
        {"_heads\":3", "_heads\":9", "num_key_value_heads"},
        {"1536", "1537", "intermediate_size"},
        {"true", "false", "tie_word_embeddings"},
        {"{", "{\"torch_dtype\":\"float16\",\"head_dim\":64,\"transformers_version\":\"4\",", NULL},
        {"8192", "4096", NULL}, /* what the model was made for; it computes alike */
    };
    decant_error err = {0};
    decant_model_config config, other;
    assert_ok(parse(good, &config, &err));
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char text[CONFIG_BYTES];
        replace_in(good, changes[i].old, changes[i].new, text);
        assert_ok(parse(text, &other, &err));
        for (int turn = 0; turn < 2; turn++) {
            const char *key = decant_model_config_difference(turn ? &other : &config, turn ? &config : &other);
            if (changes[i].key && key)
                assert_string_equal(key, changes[i].key);
            else
                assert_ptr_equal(key, changes[i].key);
        }
        decant_model_config_free(&other);
    }
    decant_model_config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_members_are_read),
        cmocka_unit_test(absent_members_have_their_defaults),
        cmocka_unit_test(variants_are_accepted),
        cmocka_unit_test(scaling_is_read_from_either_place),
        cmocka_unit_test(what_an_absent_key_means_depends_on_the_architecture),
        cmocka_unit_test(refusals_name_the_key),
        cmocka_unit_test(sizes_whose_products_do_not_fit_are_refused),
        cmocka_unit_test(nul_bytes_are_refused),
        cmocka_unit_test(differences_are_told_by_their_key),
        cmocka_unit_test(truncated_texts_are_refused),
        cmocka_unit_test_setup_teardown(a_text_that_cannot_be_read_is_not_taken_for_none, scratch_make,
                                        scratch_remove),
        cmocka_unit_test_setup_teardown(folder_and_file_are_read, scratch_make, scratch_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
