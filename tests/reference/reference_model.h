/* The small models of tests/reference, opened: for the tests that load them. */
#ifndef DECANT_TESTS_REFERENCE_MODEL_H
#define DECANT_TESTS_REFERENCE_MODEL_H

#include "io/model_config.h"
#include "io/safetensors.h"
#include "io/token_array.h"
#include "stages/source.h"
#include "tests/kernels/device_arrays.h"

typedef struct reference_model {
    decant_model_config config;
    decant_safetensors *weights;
    decant_token_array tokens; /* [sequences, length] */
} reference_model;

/* The path of the model's folder, or of what lies in it ("" for the folder), in a buffer of `size`. */
static inline void reference_path(const char *name, const char *inside, char *path, size_t size)
{
    const char *root = getenv("DECANT_TEST_SOURCE");
    snprintf(path, size, "%s/tests/reference/%s%s%s", root ? root : ".", name, *inside ? "/" : "", inside);
}

/* What cannot be opened fails the test. */
static inline void open_reference_model(const char *name, reference_model *model)
{
    char path[1024];
    *model = (reference_model){0};
    reference_path(name, "", path, sizeof path);
    REQUIRE(decant_model_config_read(path, &model->config, err));
    REQUIRE(decant_safetensors_open(path, &model->weights, err));
    reference_path(name, "tokens.npy", path, sizeof path);
    REQUIRE(decant_token_array_read(path, 0, "", 0, model->config.vocabulary_size, &model->tokens, err));
}

static inline void close_reference_model(reference_model *model)
{
    decant_token_array_free(&model->tokens);
    decant_safetensors_close(&model->weights);
    decant_model_config_free(&model->config);
}

/* All layers of it on the device, with room for `batch` sequences of `length` tokens. */
static inline void load_reference_model(decant_backend *backend, const reference_model *model, int64_t length,
                                        int64_t batch, decant_model_part *part)
{
    decant_weight_source source = decant_source_of_model(model->weights);
    REQUIRE(decant_model_part_load(backend, &model->config, &source, 0, model->config.layers, length, batch,
                                   part, err));
}

#endif
