/* The LLaMA family: RMSNorm, grouped-query attention with rotary embedding, SwiGLU.
 * Source: Touvron et al., "LLaMA" (2023), with the tensor names and rotary layout of Hugging Face's
 * checkpoints.
 *
 *   n1 = norm(x)   q, k, v = n1 Wq, n1 Wk, n1 Wv   rotate q, k   a = attention(q, k, v)   h = x + a Wo
 *   n2 = norm(h)   g, u = n2 Wgate, n2 Wup         m = silu(g) ∘ u                        y = h + m Wdown
 *
 * The forward pass keeps every named array but x and y. The backward pass consumes them: a gradient is written
 * over an array that is spent by then, so `kept` serves one backward pass and needs no room of its own for it.
 * All blocks may share one decant_activations when the forward pass of a block is run again just before its
 * backward pass. */
#include "base/memory.h"
#include "stages/families/families.h"

#include <stdio.h>

/* A block's linear layers, in the family's order. */
enum { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN };

/* The arrays of the passes, named as at the top; those after STORED_COUNT lie where storage_of says. */
typedef enum activation {
    NORMED_INPUT,  /* n1, then its gradient */
    QUERIES,       /* q, rotated */
    KEYS,          /* k, rotated */
    VALUES,        /* v */
    ATTENDED,      /* a */
    MIDDLE,        /* h */
    NORMED_MIDDLE, /* n2, then its gradient */
    GATES,         /* g, then its gradient */
    UPS,           /* u, then its gradient */
    PRODUCTS,      /* m, then its gradient */
    STORED_COUNT,
    ATTENDED_GRADIENTS = STORED_COUNT,
    QUERY_GRADIENTS,
    KEY_GRADIENTS,
    VALUE_GRADIENTS,
    ACTIVATION_COUNT,
} activation;

struct decant_activations {
    void *arrays[STORED_COUNT]; /* device [most rows, widest use] */
    float *input_inverse_rms;   /* device [rows] */
    float *middle_inverse_rms;  /* device [rows] */
    float *log_sum_exp;         /* device [sequences, heads, T] */
};

static int64_t query_width(const decant_model_config *config)
{
    return (int64_t)config->heads * config->head_dimension;
}

static int64_t key_value_width(const decant_model_config *config)
{
    return (int64_t)config->key_value_heads * config->head_dimension;
}

static void linear(const decant_model_config *config, int layer, int index, decant_linear *target)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                        "mlp.down_proj"};
    const int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    const int64_t shapes[][2] = {
        {query_width(config), hidden},
        {key_value_width(config), hidden},
        {key_value_width(config), hidden},
        {hidden, query_width(config)},
        {intermediate, hidden},
        {intermediate, hidden},
        {hidden, intermediate},
    };
    *target = (decant_linear){.rows = shapes[index][0], .columns = shapes[index][1]};
    snprintf(target->name, sizeof target->name, "model.layers.%d.%s", layer, names[index]);
}

static decant_status begin_norm(decant_backend *backend, const decant_model_config *config,
                                const decant_weight_source *source, int layer, const char *which,
                                decant_matrix *norm, decant_error *err)
{
    char name[DECANT_NAME_BYTES];
    decant_matrix host;
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, which);
    decant_status status = source->matrix(source->context, name, 1, config->hidden_size, &host, err);
    if (status != DECANT_OK)
        return status;
    return backend->weights->begin_place(backend, host, DECANT_PLACE_COMPUTE, name, norm, err);
}

static decant_status begin_block(decant_backend *backend, const decant_model_config *config,
                                 const decant_weight_source *source, decant_block *block, decant_error *err)
{
    decant_status status;
    DECANT_TRY(begin_norm(backend, config, source, block->layer, "input_layernorm", &block->input_norm, err));
    DECANT_TRY(begin_norm(backend, config, source, block->layer, "post_attention_layernorm",
                          &block->post_attention_norm, err));
done:
    return status;
}

/* ---- activations ---- */

static int64_t activation_width(const decant_model_config *config, activation which)
{
    switch (which) {
    case QUERIES:
    case ATTENDED:
    case ATTENDED_GRADIENTS:
    case QUERY_GRADIENTS:
        return query_width(config);
    case KEYS:
    case VALUES:
    case KEY_GRADIENTS:
    case VALUE_GRADIENTS:
        return key_value_width(config);
    case GATES:
    case UPS:
    case PRODUCTS:
        return config->intermediate_size;
    default:
        return config->hidden_size;
    }
}

/* Attention's gradients come when the arrays of the other half of the block are spent. */
static activation storage_of(activation which)
{
    switch (which) {
    case ATTENDED_GRADIENTS:
        return GATES;
    case QUERY_GRADIENTS:
        return UPS;
    case KEY_GRADIENTS:
        return PRODUCTS;
    case VALUE_GRADIENTS:
        return NORMED_MIDDLE;
    default:
        return which;
    }
}

/* The width of each stored array: that of its widest use. */
static void stored_widths(const decant_model_config *config, int64_t widths[STORED_COUNT])
{
    for (int i = 0; i < STORED_COUNT; i++)
        widths[i] = 0;
    for (int i = 0; i < ACTIVATION_COUNT; i++) {
        int64_t width = activation_width(config, i);
        if (width > widths[storage_of(i)])
            widths[storage_of(i)] = width;
    }
}

static void sizes(const decant_model_config *config, decant_block_sizes *target)
{
    int64_t widths[STORED_COUNT];
    stored_widths(config, widths);
    *target = (decant_block_sizes){
        .kept_floats = 2 + config->heads, /* inverse_rms of both norms, log_sum_exp */
        .vector_weights = 2 * config->hidden_size,
    };
    for (int i = 0; i < STORED_COUNT; i++)
        target->kept_activations += widths[i];
}

/* The first rows of an array, as it is used for that many. */
static decant_matrix activation_of(const decant_model_part *part, const decant_activations *kept,
                                   activation which, int64_t rows)
{
    return (decant_matrix){
        .data = kept->arrays[storage_of(which)],
        .element = part->backend->activation,
        .rows = rows,
        .columns = activation_width(part->config, which),
    };
}

static void destroy_activations(const decant_model_part *part, decant_activations **activations)
{
    decant_activations *kept = *activations;
    const decant_memory_kernels *memory = part->backend->memory;
    if (!kept)
        return;
    for (int i = 0; i < STORED_COUNT; i++)
        memory->release(part->backend, &kept->arrays[i]);
    void *vectors[] = {kept->input_inverse_rms, kept->middle_inverse_rms, kept->log_sum_exp};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        memory->release(part->backend, &vectors[i]);
    decant_memory_free(kept);
    *activations = NULL;
}

static decant_status create_array(decant_backend *backend, int64_t count, size_t element_bytes, void **array,
                                  decant_error *err)
{
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

static decant_status create_activations(const decant_model_part *part, decant_activations **activations,
                                        decant_error *err)
{
    decant_backend *backend = part->backend;
    size_t element_bytes = decant_element_bytes(backend->activation);
    int64_t widths[STORED_COUNT], rows = part->sequences * part->tokens;
    decant_status status;
    void *memory;
    *activations = NULL;
    stored_widths(part->config, widths);
    DECANT_TRY(decant_memory_allocate(sizeof(decant_activations), "a block's activations", &memory, err));
    decant_activations *kept = *activations = memory;
    for (int i = 0; i < STORED_COUNT; i++)
        DECANT_TRY(create_array(backend, rows * widths[i], element_bytes, &kept->arrays[i], err));
    DECANT_TRY(create_vector(backend, rows, &kept->input_inverse_rms, err));
    DECANT_TRY(create_vector(backend, rows, &kept->middle_inverse_rms, err));
    DECANT_TRY(create_vector(backend, part->config->heads * rows, &kept->log_sum_exp, err));
done:
    if (status != DECANT_OK)
        destroy_activations(part, activations);
    return status;
}

/* ---- passes ---- */

static decant_attention_shape attention_shape(const decant_model_part *part, int64_t rows)
{
    const decant_model_config *config = part->config;
    return (decant_attention_shape){
        .sequences = decant_model_part_sequences(part, rows),
        .tokens = rows / decant_model_part_sequences(part, rows),
        .heads = config->heads,
        .key_value_heads = config->key_value_heads,
        .head_dimension = config->head_dimension,
    };
}

/* h = x + attention(norm(x)) */
static decant_status forward_attention(const decant_model_part *part, const decant_block *block,
                                       decant_matrix x, decant_activations *kept, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_model_config *config = part->config;
    const decant_linear *linears = block->linears;
    decant_attention_shape shape = attention_shape(part, x.rows);
    decant_matrix n1 = activation_of(part, kept, NORMED_INPUT, x.rows),
                  q = activation_of(part, kept, QUERIES, x.rows);
    decant_matrix k = activation_of(part, kept, KEYS, x.rows), v = activation_of(part, kept, VALUES, x.rows);
    decant_matrix a = activation_of(part, kept, ATTENDED, x.rows),
                  h = activation_of(part, kept, MIDDLE, x.rows);
    decant_status status;
    DECANT_TRY(
        model->rms_norm(backend, x, block->input_norm, config->norm_epsilon, n1, kept->input_inverse_rms, err));
    DECANT_TRY(decant_linear_forward(backend, &linears[QUERY], n1, false, q, err));
    DECANT_TRY(decant_linear_forward(backend, &linears[KEY], n1, false, k, err));
    DECANT_TRY(decant_linear_forward(backend, &linears[VALUE], n1, false, v, err));
    DECANT_TRY(model->rotary(backend, q, config->heads, part->cosines, part->sines, false, err));
    DECANT_TRY(model->rotary(backend, k, config->key_value_heads, part->cosines, part->sines, false, err));
    DECANT_TRY(model->attention(backend, &shape, q, k, v, a, kept->log_sum_exp, err));
    DECANT_TRY(backend->memory->copy(backend, h.data, x.data, decant_matrix_bytes(x), err));
    DECANT_TRY(decant_linear_forward(backend, &linears[OUTPUT], a, true, h, err));
done:
    return status;
}

/* y = h + mlp(norm(h)) */
static decant_status forward_mlp(const decant_model_part *part, const decant_block *block,
                                 decant_activations *kept, decant_matrix y, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_linear *linears = block->linears;
    decant_matrix h = activation_of(part, kept, MIDDLE, y.rows),
                  n2 = activation_of(part, kept, NORMED_MIDDLE, y.rows);
    decant_matrix g = activation_of(part, kept, GATES, y.rows), u = activation_of(part, kept, UPS, y.rows);
    decant_matrix m = activation_of(part, kept, PRODUCTS, y.rows);
    decant_status status;
    DECANT_TRY(backend->model->rms_norm(backend, h, block->post_attention_norm, part->config->norm_epsilon, n2,
                                        kept->middle_inverse_rms, err));
    DECANT_TRY(decant_linear_forward(backend, &linears[GATE], n2, false, g, err));
    DECANT_TRY(decant_linear_forward(backend, &linears[UP], n2, false, u, err));
    DECANT_TRY(backend->model->silu_multiply(backend, g, u, m, err));
    DECANT_TRY(backend->memory->copy(backend, y.data, h.data, decant_matrix_bytes(y), err));
    DECANT_TRY(decant_linear_forward(backend, &linears[DOWN], m, true, y, err));
done:
    return status;
}

static decant_status forward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                             decant_matrix y, decant_activations *kept, decant_error *err)
{
    decant_status status = forward_attention(part, block, x, kept, err);
    return status == DECANT_OK ? forward_mlp(part, block, kept, y, err) : status;
}

/* One linear layer's share of the backward pass: its Fisher sum and Hessians. The token form and Hessians take
 * all rows at once; the gradient of a sequence is squared by itself. */
static decant_status add_fisher(const decant_model_part *part, const decant_block_fisher *fisher, int index,
                                decant_matrix dy, decant_matrix x, decant_error *err)
{
    if (!fisher || !fisher->sums[index])
        return DECANT_OK;
    bool together = fisher->form == DECANT_FISHER_TOKEN;
    const int64_t rows = together ? x.rows : x.rows / decant_model_part_sequences(part, x.rows);
    decant_status status = DECANT_OK;
    for (int64_t first = 0; first < x.rows && status == DECANT_OK; first += rows)
        status =
            part->backend->model->fisher_add(part->backend, fisher->form, decant_matrix_rows(dy, first, rows),
                                             decant_matrix_rows(x, first, rows), fisher->sums[index], err);
    if (status == DECANT_OK && fisher->hessian_groups > 0)
        status = part->backend->model->gram_add(part->backend, dy, x, fisher->hessian_groups,
                                                fisher->sums[index] + dy.columns * x.columns, err);
    return status;
}

/* dx holds dy and becomes dh. */
static decant_status backward_mlp(const decant_model_part *part, const decant_block *block,
                                  decant_activations *kept, const decant_block_fisher *fisher, decant_matrix dx,
                                  decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_linear *linears = block->linears;
    const int64_t rows = dx.rows;
    decant_matrix h = activation_of(part, kept, MIDDLE, rows),
                  n2 = activation_of(part, kept, NORMED_MIDDLE, rows), dn2 = n2;
    decant_matrix g = activation_of(part, kept, GATES, rows), dg = g;
    decant_matrix u = activation_of(part, kept, UPS, rows), du = u;
    decant_matrix m = activation_of(part, kept, PRODUCTS, rows), dm = m;
    decant_status status;
    DECANT_TRY(add_fisher(part, fisher, DOWN, dx, m, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[DOWN].weight, false, dm, err));
    DECANT_TRY(model->silu_multiply_backward(backend, g, u, dm, dg, du, err));
    DECANT_TRY(add_fisher(part, fisher, GATE, dg, n2, err));
    DECANT_TRY(add_fisher(part, fisher, UP, du, n2, err));
    DECANT_TRY(model->linear_backward(backend, dg, linears[GATE].weight, false, dn2, err));
    DECANT_TRY(model->linear_backward(backend, du, linears[UP].weight, true, dn2, err));
    DECANT_TRY(model->rms_norm_backward(backend, dn2, h, block->post_attention_norm, kept->middle_inverse_rms,
                                        dx, err));
done:
    return status;
}

/* dx holds dh and becomes the gradient of the block's input x. */
static decant_status backward_attention(const decant_model_part *part, const decant_block *block,
                                        decant_matrix x, decant_activations *kept,
                                        const decant_block_fisher *fisher, decant_matrix dx, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_model_config *config = part->config;
    const decant_linear *linears = block->linears;
    const int64_t rows = x.rows;
    decant_attention_shape shape = attention_shape(part, rows);
    decant_matrix n1 = activation_of(part, kept, NORMED_INPUT, rows), dn1 = n1,
                  q = activation_of(part, kept, QUERIES, rows);
    decant_matrix k = activation_of(part, kept, KEYS, rows), v = activation_of(part, kept, VALUES, rows);
    decant_matrix a = activation_of(part, kept, ATTENDED, rows);
    decant_matrix da = activation_of(part, kept, ATTENDED_GRADIENTS, rows);
    decant_matrix dq = activation_of(part, kept, QUERY_GRADIENTS, rows);
    decant_matrix dk = activation_of(part, kept, KEY_GRADIENTS, rows),
                  dv = activation_of(part, kept, VALUE_GRADIENTS, rows);
    decant_status status;
    DECANT_TRY(add_fisher(part, fisher, OUTPUT, dx, a, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[OUTPUT].weight, false, da, err));
    DECANT_TRY(model->attention_backward(backend, &shape, q, k, v, a, kept->log_sum_exp, da, dq, dk, dv, err));
    DECANT_TRY(model->rotary(backend, dq, config->heads, part->cosines, part->sines, true, err));
    DECANT_TRY(model->rotary(backend, dk, config->key_value_heads, part->cosines, part->sines, true, err));
    DECANT_TRY(add_fisher(part, fisher, QUERY, dq, n1, err));
    DECANT_TRY(add_fisher(part, fisher, KEY, dk, n1, err));
    DECANT_TRY(add_fisher(part, fisher, VALUE, dv, n1, err));
    DECANT_TRY(model->linear_backward(backend, dq, linears[QUERY].weight, false, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dk, linears[KEY].weight, true, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dv, linears[VALUE].weight, true, dn1, err));
    DECANT_TRY(model->rms_norm_backward(backend, dn1, x, block->input_norm, kept->input_inverse_rms, dx, err));
done:
    return status;
}

static decant_status backward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                              decant_matrix dy, decant_activations *kept, const decant_block_fisher *fisher,
                              decant_matrix dx, decant_error *err)
{
    decant_backend *backend = part->backend;
    decant_status status = DECANT_OK;
    if (dx.data != dy.data)
        DECANT_TRY(backend->memory->copy(backend, dx.data, dy.data, decant_matrix_bytes(dy), err));
    DECANT_TRY(backward_mlp(part, block, kept, fisher, dx, err));
    DECANT_TRY(backward_attention(part, block, x, kept, fisher, dx, err));
done:
    return status;
}

const decant_family decant_family_llama = {
    .architecture = "LlamaForCausalLM",
    .linear_count = DECANT_BLOCK_LINEARS,
    .linear = linear,
    .sizes = sizes,
    .begin_block = begin_block,
    .create_activations = create_activations,
    .destroy_activations = destroy_activations,
    .forward = forward,
    .backward = backward,
};
