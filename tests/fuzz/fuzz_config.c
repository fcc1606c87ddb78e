/* A config.json: what is accepted has a shape that the rest of decant can compute with. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/model_config.h"

static void check(const decant_model_config *config)
{
    if (config->hidden_size < 1 || config->intermediate_size < 1 || config->vocabulary_size < 1 ||
        config->layers < 1 || config->heads < 1 || config->key_value_heads < 1 || config->head_dimension < 1 ||
        config->heads % config->key_value_heads != 0 || config->embedding_width < 1 ||
        config->embedding_width > config->hidden_size ||
        (config->position_rows > 0 && config->position_rows <= config->maximum_positions))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_model_config config;
    decant_error err;
    if (decant_model_config_parse((const char *)data, size_bytes, "input", &config, &err) == DECANT_OK) {
        check(&config);
        decant_model_config_free(&config);
    }
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
