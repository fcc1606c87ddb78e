/* See decoder_activations.h. All blocks may share one decant_activations when the forward pass of a block is
 * run again just before its backward pass. */
#include "stages/families/decoder_activations.h"

#include "base/memory.h"

static int64_t activation_width(const decant_family *family, const decant_model_config *config,
                                decant_activation which)
{
    switch (which) {
    case DECANT_UNNORMED_QUERIES:
        return family->decoder->query_key_norm ? decant_query_width(config) : 0;
    case DECANT_UNNORMED_KEYS:
        return family->decoder->query_key_norm ? decant_key_value_width(config) : 0;
    case DECANT_QUERIES:
    case DECANT_ATTENDED:
    case DECANT_ATTENDED_GRADIENTS:
    case DECANT_QUERY_GRADIENTS:
        return decant_query_width(config);
    case DECANT_KEYS:
    case DECANT_VALUES:
    case DECANT_KEY_GRADIENTS:
    case DECANT_VALUE_GRADIENTS:
        return decant_key_value_width(config);
    case DECANT_GATES:
    case DECANT_UPS:
    case DECANT_PRODUCTS:
        return config->intermediate_size;
    default:
        return config->hidden_size;
    }
}

/* Attention's gradients come when the arrays of the other half of the block are spent. */
static decant_activation storage_of(decant_activation which)
{
    switch (which) {
    case DECANT_ATTENDED_GRADIENTS:
        return DECANT_GATES;
    case DECANT_QUERY_GRADIENTS:
        return DECANT_UPS;
    case DECANT_KEY_GRADIENTS:
        return DECANT_PRODUCTS;
    case DECANT_VALUE_GRADIENTS:
        return DECANT_NORMED_MIDDLE;
    default:
        return which;
    }
}

/* The width of each stored array: that of its widest use. */
static void stored_widths(const decant_family *family, const decant_model_config *config,
                          int64_t widths[DECANT_STORED_COUNT])
{
    for (int i = 0; i < DECANT_STORED_COUNT; i++)
        widths[i] = 0;
    for (int i = 0; i < DECANT_ACTIVATION_COUNT; i++) {
        int64_t width = activation_width(family, config, i);
        if (width > widths[storage_of(i)])
            widths[storage_of(i)] = width;
    }
}

void decant_decoder_sizes(const decant_family *family, const decant_model_config *config,
                          decant_block_sizes *sizes)
{
    int64_t widths[DECANT_STORED_COUNT];
    stored_widths(family, config, widths);
    *sizes = (decant_block_sizes){.kept_floats = 2 + config->heads}; /* both norms' inverse_rms, log_sum_exp */
    if (family->decoder->query_key_norm)
        sizes->kept_floats += config->heads + config->key_value_heads;
    for (int i = 0; i < DECANT_STORED_COUNT; i++)
        sizes->kept_activations += widths[i];
    for (int i = 0; i < DECANT_BLOCK_VECTORS; i++) {
        decant_vector vector;
        family->vector(family, config, 0, i, &vector);
        sizes->vector_weights += vector.length;
    }
}

decant_matrix decant_activation_of(const decant_model_part *part, const decant_activations *kept,
                                   decant_activation which, int64_t rows)
{
    return (decant_matrix){
        .data = kept->arrays[storage_of(which)],
        .element = part->backend->activation,
        .rows = rows,
        .columns = activation_width(part->family, part->config, which),
    };
}

void decant_decoder_destroy_activations(const decant_model_part *part, decant_activations **activations)
{
    decant_activations *kept = *activations;
    const decant_memory_kernels *memory = part->backend->memory;
    if (!kept)
        return;
    for (int i = 0; i < DECANT_STORED_COUNT; i++)
        memory->release(part->backend, &kept->arrays[i]);
    void *vectors[] = {kept->input_inverse_rms, kept->middle_inverse_rms, kept->query_inverse_rms,
                       kept->key_inverse_rms, kept->log_sum_exp};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        memory->release(part->backend, &vectors[i]);
    decant_memory_free(kept);
    *activations = NULL;
}

/* *array stays NULL when count is 0. */
static decant_status create_array(decant_backend *backend, int64_t count, size_t element_bytes, void **array,
                                  decant_error *err)
{
    *array = NULL;
    if (count == 0)
        return DECANT_OK;
    return backend->memory->allocate(backend, (size_t)count * element_bytes, "a block's activations", array,
                                     err);
}

static decant_status create_vector(decant_backend *backend, int64_t count, float **vector, decant_error *err)
{
    void *memory;
    decant_status status = create_array(backend, count, sizeof(float), &memory, err);
    *vector = memory;
    return status;
}

decant_status decant_decoder_create_activations(const decant_model_part *part, decant_activations **activations,
                                                decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_config *config = part->config;
    size_t element_bytes = decant_element_bytes(backend->activation);
    int64_t widths[DECANT_STORED_COUNT], rows = part->sequences * part->tokens;
    int64_t normed_rows = part->family->decoder->query_key_norm ? rows : 0;
    decant_status status;
    void *memory;
    *activations = NULL;
    stored_widths(part->family, config, widths);
    DECANT_TRY(decant_memory_allocate(sizeof(decant_activations), "a block's activations", &memory, err));
    decant_activations *kept = *activations = memory;
    for (int i = 0; i < DECANT_STORED_COUNT; i++)
        DECANT_TRY(create_array(backend, rows * widths[i], element_bytes, &kept->arrays[i], err));
    DECANT_TRY(create_vector(backend, rows, &kept->input_inverse_rms, err));
    DECANT_TRY(create_vector(backend, rows, &kept->middle_inverse_rms, err));
    DECANT_TRY(create_vector(backend, config->heads * normed_rows, &kept->query_inverse_rms, err));
    DECANT_TRY(create_vector(backend, config->key_value_heads * normed_rows, &kept->key_inverse_rms, err));
    DECANT_TRY(create_vector(backend, config->heads * rows, &kept->log_sum_exp, err));
done:
    if (status != DECANT_OK)
        decant_decoder_destroy_activations(part, activations);
    return status;
}
