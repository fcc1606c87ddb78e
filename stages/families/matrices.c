/* A model of which nothing is known but its tensors: each matrix is quantized by itself, without data. It
 * cannot be run, so nothing here computes. */
#include "base/memory.h"
#include "stages/model.h"

#include <stdio.h>
#include <string.h>

/* What stays whole, by a part of its name: embeddings, heads, norms, routers and position biases are read row
 * by row or are small, and quantizing them is another trade. */
static const char *const kept_whole[] = {"embed", "wte",  "wpe",    "lm_head", "head.",        "shared",
                                         "norm",  "ln_f", "router", "bias",    "output.weight"};

static bool is_quantized(const decant_tensor *tensor, size_t name_bytes)
{
    static const char ending[] = ".weight";
    size_t length = strlen(tensor->name), tail = sizeof ending - 1;
    if (tensor->dimensions != 2 || length <= tail || strcmp(tensor->name + length - tail, ending) != 0 ||
        length - tail >= name_bytes || tensor->shape[0] < 1 || tensor->shape[1] < 1)
        return false;
    for (size_t i = 0; i < sizeof kept_whole / sizeof *kept_whole; i++)
        if (strstr(tensor->name, kept_whole[i]))
            return false;
    return true;
}

static void linear(const decant_model_config *config, int layer, int index, decant_linear *target)
{
    (void)index;
    const decant_config_matrix *matrix = &config->matrices[layer];
    *target = (decant_linear){.rows = matrix->rows, .columns = matrix->columns};
    snprintf(target->name, sizeof target->name, "%s", matrix->name);
}

static void end(const decant_model_config *config, decant_end which, decant_end_tensor *tensor)
{
    (void)config;
    (void)which;
    *tensor = (decant_end_tensor){.name = ""};
}

static void sizes(const decant_family *family, const decant_model_config *config, decant_block_sizes *target)
{
    (void)family;
    (void)config;
    *target = (decant_block_sizes){0};
}

static const decant_family family_of_matrices = {
    .architecture = "a model by its matrices", .linear_count = 1, .linear = linear, .end = end, .sizes = sizes};

decant_status decant_family_of_matrices(const decant_safetensors *model, decant_model_config *config,
                                        const decant_family **family, decant_error *err)
{
    int64_t tensors = decant_safetensors_count(model);
    decant_status status;
    void *matrices = NULL;
    DECANT_TRY(decant_memory_allocate((size_t)tensors * sizeof *config->matrices, "the model's matrices",
                                      &matrices, err));
    config->matrices = matrices;
    for (int64_t i = 0; i < tensors; i++) {
        const decant_tensor *tensor = decant_safetensors_at(model, i);
        decant_config_matrix *matrix = &config->matrices[config->layers];
        if (!is_quantized(tensor, sizeof matrix->name))
            continue;
        *matrix = (decant_config_matrix){.rows = tensor->shape[0], .columns = tensor->shape[1]};
        size_t length = strlen(tensor->name) - strlen(".weight");
        memcpy(matrix->name, tensor->name, length);
        matrix->name[length] = '\0';
        config->layers++;
    }
    if (config->layers == 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "the model has no two-dimensional tensor NAME.weight to quantize");
    snprintf(config->architecture, sizeof config->architecture, "%s", family_of_matrices.architecture);
    *family = &family_of_matrices;
done:
    return status;
}
