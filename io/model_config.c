/* config.json, key by key. What a key asks for and the program does not compute is an error here: a model read
 * in part would be quantized wrongly without a word. */
#include "io/model_config.h"

#include "base/memory.h"
#include "io/config_reader.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/opt_config.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { CONFIG_LARGEST_BYTES = 16 << 20 };

static decant_status read_architecture(decant_config_reader reader, decant_model_config *config,
                                       decant_error *err)
{
    const cJSON *member;
    decant_status status = decant_json_member(reader.object, "architectures", reader.origin, &member, err);
    if (status != DECANT_OK)
        return status;
    const cJSON *first = cJSON_IsArray(member) ? member->child : NULL;
    if (!cJSON_IsString(first) || !*first->valuestring)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"architectures\" names no architecture",
                            reader.origin);
    if (strlen(first->valuestring) >= sizeof config->architecture)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: the name in \"architectures\" is longer than %zu bytes", reader.origin,
                            sizeof config->architecture - 1);
    snprintf(config->architecture, sizeof config->architecture, "%s", first->valuestring);
    return DECANT_OK;
}

/* What keys mean that a config of this architecture leaves out, where it is not what their absence means
 * elsewhere. Source: the architectures' configuration classes in transformers. */
typedef struct absent_keys {
    const char *architecture;
    int64_t head_dimension; /* 0: hidden_size / num_attention_heads */
    int64_t sliding_window; /* 0: none */
} absent_keys;

static absent_keys absent_keys_of(const decant_model_config *config)
{
    static const absent_keys known[] = {{"MistralForCausalLM", 0, 4096}, {"Qwen3ForCausalLM", 128, 0}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(config->architecture, known[i].architecture) == 0)
            return known[i];
    return (absent_keys){0};
}

static decant_status read_sizes(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status = DECANT_OK;
    DECANT_TRY(decant_config_read_integer(reader, "hidden_size", 0, &config->hidden_size, err));
    DECANT_TRY(decant_config_read_integer(reader, "intermediate_size", 0, &config->intermediate_size, err));
    DECANT_TRY(decant_config_read_integer(reader, "vocab_size", 0, &config->vocabulary_size, err));
    DECANT_TRY(decant_config_read_int(reader, "num_hidden_layers", 0, &config->layers, err));
    DECANT_TRY(decant_config_read_int(reader, "num_attention_heads", 0, &config->heads, err));
    DECANT_TRY(
        decant_config_read_int(reader, "num_key_value_heads", config->heads, &config->key_value_heads, err));
    DECANT_TRY(
        decant_config_read_integer(reader, "max_position_embeddings", 0, &config->maximum_positions, err));
    DECANT_TRY(decant_config_read_flag(reader, "tie_word_embeddings", &config->tied_head, err));
    config->embedding_width = config->hidden_size;
    /* 0 stands for absent until the division is known to come out even. */
    int64_t derived = config->hidden_size % config->heads == 0 ? config->hidden_size / config->heads : 0;
    if (absent_keys_of(config).head_dimension > 0)
        derived = absent_keys_of(config).head_dimension;
    DECANT_TRY(decant_config_read_int(reader, "head_dim", derived, &config->head_dimension, err));
done:
    return status;
}

static decant_status check_sizes(const decant_model_config *config, const char *origin, decant_error *err)
{
    if (config->heads % config->key_value_heads != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: \"num_attention_heads\" %d is no multiple of \"num_key_value_heads\" %d",
                            origin, config->heads, config->key_value_heads);
    enum { LAYERS_LARGEST = 1 << 16 }; /* so that the matrices of all layers are countable in an int */
    if (config->layers > LAYERS_LARGEST)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: \"num_hidden_layers\" %d is beyond %d", origin,
                            config->layers, LAYERS_LARGEST);
    if (config->head_dimension % 2 != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: the head dimension %d (\"head_dim\", or \"hidden_size\" over "
                            "\"num_attention_heads\") is odd",
                            origin, config->head_dimension);
    int64_t attention_width = (int64_t)config->heads * config->head_dimension;
    if (attention_width > INT_MAX)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: \"num_attention_heads\" times the head dimension is beyond %d", origin,
                            INT_MAX);
    /* All layers' largest matrices in F64 are countable in int64_t, and so is everything smaller. */
    int64_t widest = config->vocabulary_size;
    widest = config->intermediate_size > widest ? config->intermediate_size : widest;
    widest = attention_width > widest ? attention_width : widest;
    widest = config->position_rows > widest ? config->position_rows : widest;
    int64_t elements, bytes;
    enum { MATRICES_OF_A_LAYER = 16, BYTES_OF_F64 = 8 };
    if (__builtin_mul_overflow(config->hidden_size * widest, (int64_t)config->layers, &elements) ||
        __builtin_mul_overflow(elements, (int64_t)MATRICES_OF_A_LAYER * BYTES_OF_F64, &bytes))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: a model of %d layers of hidden size %lld and width %lld is too large to count",
                            origin, config->layers, (long long)config->hidden_size, (long long)widest);
    return DECANT_OK;
}

static decant_status require_real(decant_config_reader reader, const char *key, double *value,
                                  decant_error *err)
{
    const double largest = 1e6;
    bool found;
    decant_status status = decant_config_read_real(reader, key, largest, &found, value, err);
    if (status == DECANT_OK && !found)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no \"%s%s\"", reader.origin, reader.prefix, key);
    return status;
}

/* The numbers of rope_type "llama3" beside its factor. */
static decant_status read_wavelengths(decant_config_reader reader, decant_rotary_scaling *scaling,
                                      decant_error *err)
{
    decant_status status;
    scaling->by_wavelength = true;
    DECANT_TRY(require_real(reader, "low_freq_factor", &scaling->low_frequency_factor, err));
    DECANT_TRY(require_real(reader, "high_freq_factor", &scaling->high_frequency_factor, err));
    if (scaling->high_frequency_factor <= scaling->low_frequency_factor)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"%shigh_freq_factor\" is not above \"low_freq_factor\"",
                    reader.origin, reader.prefix);
    DECANT_TRY(decant_config_read_integer(reader, "original_max_position_embeddings", 0,
                                          &scaling->original_positions, err));
done:
    return status;
}

/* The kind of scaling that rope_scaling or rope_parameters asks for, with its numbers. */
static decant_status read_scaling(decant_config_reader reader, decant_rotary_scaling *scaling,
                                  decant_error *err)
{
    decant_status status;
    const cJSON *kind;
    const char *key = decant_config_has_key(reader, "rope_type") ? "rope_type" : "type"; /* in older files */
    DECANT_TRY(decant_json_member(reader.object, key, reader.origin, &kind, err));
    const char *name = !kind ? "default" : cJSON_IsString(kind) ? kind->valuestring : "";
    if (strcmp(name, "default") == 0)
        goto done;
    if (strcmp(name, "llama3") != 0 && strcmp(name, "linear") != 0)
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: \"%s%s\" is not \"default\", \"linear\" or \"llama3\", the only ones decant computes",
                    reader.origin, reader.prefix, key);
    DECANT_TRY(require_real(reader, "factor", &scaling->factor, err));
    if (strcmp(name, "llama3") == 0)
        DECANT_TRY(read_wavelengths(reader, scaling, err));
done:
    return status;
}

/* rope_theta and the scaling, in either of the two places where transformers has put them. */
static decant_status read_rotary(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status = DECANT_OK;
    bool found, found_inside = false;
    const cJSON *parameters, *scaling;
    double inside = 0;
    const double largest_base = 1e12;
    config->rotary_base = 10000;
    DECANT_TRY(decant_config_require_one(reader, "partial_rotary_factor", err));
    DECANT_TRY(decant_config_read_real(reader, "rope_theta", largest_base, &found, &config->rotary_base, err));
    DECANT_TRY(decant_config_find_object(reader, "rope_scaling", &scaling, err));
    DECANT_TRY(decant_config_find_object(reader, "rope_parameters", &parameters, err));
    if (scaling && parameters)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: has both \"rope_scaling\" and \"rope_parameters\"",
                    reader.origin);
    if (scaling)
        DECANT_TRY(read_scaling((decant_config_reader){scaling, reader.origin, "rope_scaling."},
                                &config->rotary_scaling, err));
    if (!parameters)
        goto done;
    decant_config_reader inner = {parameters, reader.origin, "rope_parameters."};
    DECANT_TRY(read_scaling(inner, &config->rotary_scaling, err));
    DECANT_TRY(decant_config_require_one(inner, "partial_rotary_factor", err));
    DECANT_TRY(decant_config_read_real(inner, "rope_theta", largest_base, &found_inside, &inside, err));
    if (found && found_inside && inside != config->rotary_base)
        DECANT_FAIL(err, DECANT_ERROR_INPUT,
                    "%s: \"rope_theta\" is %g, but \"rope_parameters.rope_theta\" is %g", reader.origin,
                    config->rotary_base, inside);
    if (found_inside)
        config->rotary_base = inside;
done:
    return status;
}

/* Whether the window is used is the family's to know. All layers must be alike: Qwen's, which slide in some
 * layers only when told to, are refused then. */
static decant_status read_window(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status;
    const cJSON *window, *layers;
    DECANT_TRY(decant_config_require_false(reader, "use_sliding_window", err));
    DECANT_TRY(decant_json_member(reader.object, "layer_types", reader.origin, &layers, err));
    if (layers && !cJSON_IsArray(layers))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"layer_types\" is no list", reader.origin);
    for (const cJSON *layer = layers ? layers->child : NULL; layer; layer = layer->next)
        if (!cJSON_IsString(layer) || strcmp(layer->valuestring, "full_attention") != 0)
            DECANT_FAIL(err, DECANT_ERROR_INPUT,
                        "%s: \"layer_types\" has other layers than \"full_attention\", the only one decant "
                        "computes",
                        reader.origin);
    DECANT_TRY(decant_json_member(reader.object, "sliding_window", reader.origin, &window, err));
    if (window)
        DECANT_TRY(decant_config_read_integer(reader, "sliding_window", 0, &config->sliding_window, err));
    else if (!decant_config_has_key(reader, "sliding_window"))
        config->sliding_window = absent_keys_of(config).sliding_window;
done:
    return status;
}

/* What the weights' type will probably be; a value unknown here is no error, as nothing is computed from it. */
static decant_status read_element(decant_config_reader reader, decant_element *element, decant_error *err)
{
    static const struct {
        const char *name;
        decant_element element;
    } names[] = {{"float32", DECANT_F32}, {"float16", DECANT_F16}, {"bfloat16", DECANT_BF16}};
    const cJSON *member;
    *element = DECANT_BF16;
    decant_status status = decant_json_member(reader.object, "torch_dtype", reader.origin, &member, err);
    if (status == DECANT_OK && !member)
        status = decant_json_member(reader.object, "dtype", reader.origin, &member, err);
    for (size_t i = 0; status == DECANT_OK && i < sizeof names / sizeof *names; i++)
        if (cJSON_IsString(member) && strcmp(member->valuestring, names[i].name) == 0)
            *element = names[i].element;
    return status;
}

static decant_status read_epsilon(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    double epsilon = 0;
    bool found;
    decant_status status;
    DECANT_TRY(decant_config_read_real(reader, "rms_norm_eps", 1, &found, &epsilon, err));
    config->norm_epsilon = (float)epsilon;
    if (!found)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: has no \"rms_norm_eps\"", reader.origin);
    if (!(config->norm_epsilon > 0))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"rms_norm_eps\" %g is 0 in single precision", reader.origin,
                    epsilon);
done:
    return status;
}

/* What the families of the decoder block have beside the architecture. */
static decant_status read_decoder(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status;
    DECANT_TRY(read_sizes(reader, config, err));
    DECANT_TRY(check_sizes(config, reader.origin, err));
    DECANT_TRY(read_epsilon(reader, config, err));
    DECANT_TRY(read_rotary(reader, config, err));
    DECANT_TRY(read_window(reader, config, err));
    DECANT_TRY(decant_config_require_text(reader, "hidden_act", "silu", err));
    DECANT_TRY(decant_config_require_false(reader, "attention_bias", err));
    DECANT_TRY(decant_config_require_false(reader, "mlp_bias", err));
done:
    return status;
}

static decant_status read_members(decant_config_reader reader, decant_model_config *config, decant_error *err)
{
    decant_status status;
    DECANT_TRY(read_architecture(reader, config, err));
    if (strcmp(config->architecture, "OPTForCausalLM") == 0) {
        DECANT_TRY(decant_opt_config_read(reader, config, err));
        DECANT_TRY(check_sizes(config, reader.origin, err));
    } else {
        DECANT_TRY(read_decoder(reader, config, err));
    }
    DECANT_TRY(read_element(reader, &config->element, err));
    DECANT_TRY(
        decant_config_require_absent(reader, "quantization_config", "the model is quantized already", err));
done:
    return status;
}

decant_status decant_model_config_parse(const char *json, size_t json_bytes, const char *origin,
                                        decant_model_config *config, decant_error *err)
{
    decant_status status = DECANT_OK;
    cJSON *root = NULL;
    void *copy = NULL;
    memset(config, 0, sizeof *config);
    if (json_bytes > CONFIG_LARGEST_BYTES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %zu bytes are too many for a model's configuration", origin,
                    json_bytes);
    DECANT_TRY(decant_json_parse(json, json_bytes, origin, &root, err));
    DECANT_TRY(read_members((decant_config_reader){root, origin, ""}, config, err));
    DECANT_TRY(decant_memory_allocate(json_bytes + 1, "the model's configuration", &copy, err));
    memcpy(copy, json, json_bytes);
    config->json = copy;
    config->json_bytes = json_bytes;
done:
    cJSON_Delete(root);
    if (status != DECANT_OK) {
        decant_model_config empty = {0};
        memcpy(empty.architecture, config->architecture, sizeof empty.architecture);
        *config = empty;
    }
    return status;
}

decant_status decant_model_config_read(const char *path, decant_model_config *config, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_mapped_file file = {0};
    char name[PATH_MAX];
    memset(config, 0, sizeof *config);
    size_t length = strlen(path);
    bool is_file = length > 5 && strcmp(path + length - 5, ".json") == 0;
    int written = snprintf(name, sizeof name, is_file ? "%s" : "%s/config.json", path);
    if (written < 0 || (size_t)written >= sizeof name)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%.200s…: the path is too long", path);
    DECANT_TRY(decant_mapped_file_open(name, &file, err));
    DECANT_TRY(decant_model_config_parse((const char *)file.data, file.size_bytes, name, config, err));
done:
    if (decant_mapped_file_check(&file, name, DECANT_OK, err) != DECANT_OK) {
        decant_model_config_free(config);
        status = DECANT_ERROR_INPUT;
    }
    decant_mapped_file_close(&file);
    return status;
}

decant_status decant_model_config_read_text(const char *path, decant_model_config *config, decant_error *err)
{
    decant_mapped_file file = {0};
    char name[PATH_MAX];
    void *copy = NULL;
    decant_status status = DECANT_OK;
    memset(config, 0, sizeof *config);
    int written = snprintf(name, sizeof name, "%s/config.json", path);
    if (written < 0 || (size_t)written >= sizeof name)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%.200s…: the path is too long", path);
    if (access(name, F_OK) == 0) /* a model without config.json has an empty one */
        DECANT_TRY(decant_mapped_file_open(name, &file, err));
    if (file.size_bytes > CONFIG_LARGEST_BYTES)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %zu bytes are too many for a model's configuration", name,
                    file.size_bytes);
    DECANT_TRY(decant_memory_allocate(file.size_bytes + 1, "the model's configuration", &copy, err));
    if (file.size_bytes > 0)
        memcpy(copy, file.data, file.size_bytes);
    config->json = copy;
    config->json_bytes = file.size_bytes;
done:
    status = decant_mapped_file_check(&file, name, status, err);
    if (status != DECANT_OK)
        decant_model_config_free(config);
    decant_mapped_file_close(&file);
    return status;
}

const char *decant_model_config_difference(const decant_model_config *config, const decant_model_config *other)
{
    const decant_rotary_scaling *scaling = &config->rotary_scaling, *other_scaling = &other->rotary_scaling;
    const struct {
        const char *key;
        double value, other;
    } numbers[] = {
        {"hidden_size", (double)config->hidden_size, (double)other->hidden_size},
        {"intermediate_size", (double)config->intermediate_size, (double)other->intermediate_size},
        {"vocab_size", (double)config->vocabulary_size, (double)other->vocabulary_size},
        {"num_hidden_layers", config->layers, other->layers},
        {"num_attention_heads", config->heads, other->heads},
        {"num_key_value_heads", config->key_value_heads, other->key_value_heads},
        {"head_dim", config->head_dimension, other->head_dimension},
        {"word_embed_proj_dim", (double)config->embedding_width, (double)other->embedding_width},
        {"max_position_embeddings", (double)config->position_rows, (double)other->position_rows},
        {"do_layer_norm_before", !config->norm_behind, !other->norm_behind},
        {"rms_norm_eps", config->norm_epsilon, other->norm_epsilon},
        {"rope_theta", config->rotary_base, other->rotary_base},
        {"rope_scaling", scaling->factor, other_scaling->factor},
        {"rope_scaling", scaling->by_wavelength, other_scaling->by_wavelength},
        {"rope_scaling", scaling->low_frequency_factor, other_scaling->low_frequency_factor},
        {"rope_scaling", scaling->high_frequency_factor, other_scaling->high_frequency_factor},
        {"rope_scaling", (double)scaling->original_positions, (double)other_scaling->original_positions},
        {"sliding_window", (double)config->sliding_window, (double)other->sliding_window},
        {"tie_word_embeddings", config->tied_head, other->tied_head},
    };
    if (strcmp(config->architecture, other->architecture) != 0)
        return "architectures";
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].value < numbers[i].other || numbers[i].value > numbers[i].other)
            return numbers[i].key;
    return NULL;
}

void decant_model_config_free(decant_model_config *config)
{
    decant_memory_free(config->matrices);
    decant_memory_free(config->json);
    memset(config, 0, sizeof *config);
}
