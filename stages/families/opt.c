/* OPT: learned positions, layer norms, ReLU, a bias on every linear layer. Most sizes norm what the halves of a
 * block take,
 *
 *   n1 = norm(x)   q, k, v = n1 Wq + bq, n1 Wk + bk, n1 Wv + bv   a = attention(q, k, v)   s = x + a Wo + bo
 *   n2 = norm(s)   f = relu(n2 W1 + b1)   y = s + f W2 + b2
 *
 * while that of 350 million parameters norms what they give (norm_behind), has a narrower embedding with a
 * projection at either end, and no final norm:
 *
 *   q, k, v = x Wq + bq, x Wk + bk, x Wv + bv   a = attention(q, k, v)   s = x + a Wo + bo
 *   n2 = norm(s)   f = relu(n2 W1 + b1)   m = n2 + f W2 + b2   y = norm(m)
 *
 * The backward pass consumes what the forward pass kept, as that of decoder_block.c does. Source: Zhang et al.,
 * "OPT: Open Pre-trained Transformer Language Models" (2022), with the tensor names of Hugging Face's
 * checkpoints. */
#include "base/memory.h"
#include "stages/families/block_steps.h"
#include "stages/families/families.h"

#include <stdio.h>

/* ---- shapes ---- */

enum { QUERY, KEY, VALUE, OUTPUT, UP, DOWN, LINEARS };

/* A block's vectors: the bias of linear layer i is in place i. */
enum { ATTENTION_NORM = LINEARS, ATTENTION_NORM_BIAS, LAST_NORM, LAST_NORM_BIAS, VECTORS };

static const char *const linear_names[LINEARS] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"};

static void linear(const decant_model_config *config, int layer, int index, decant_linear *target)
{
    const int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    *target = (decant_linear){.rows = index == UP ? intermediate : hidden,
                              .columns = index == DOWN ? intermediate : hidden,
                              .shares_x = index == KEY || index == VALUE};
    snprintf(target->name, sizeof target->name, "model.decoder.layers.%d.%s", layer, linear_names[index]);
}

static void vector(const decant_family *family, const decant_model_config *config, int layer, int index,
                   decant_vector *target)
{
    _Static_assert((int)VECTORS <= (int)DECANT_BLOCK_VECTORS, "a block has room for its vectors");
    static const char *const norms[] = {"self_attn_layer_norm.weight", "self_attn_layer_norm.bias",
                                        "final_layer_norm.weight", "final_layer_norm.bias"};
    (void)family;
    *target = (decant_vector){.length = index == UP ? config->intermediate_size : config->hidden_size};
    if (index < LINEARS)
        snprintf(target->name, sizeof target->name, "model.decoder.layers.%d.%s.bias", layer,
                 linear_names[index]);
    else
        snprintf(target->name, sizeof target->name, "model.decoder.layers.%d.%s", layer,
                 norms[index - LINEARS]);
}

static void end(const decant_model_config *config, decant_end which, decant_end_tensor *tensor)
{
    static const char embedding[] = "model.decoder.embed_tokens.weight";
    const int64_t vocabulary = config->vocabulary_size, hidden = config->hidden_size;
    const int64_t width = config->embedding_width, projects = width != hidden, norms = !config->norm_behind;
    const decant_end_tensor tensors[DECANT_ENDS] = {
        [DECANT_END_EMBEDDING] = {embedding, vocabulary, width},
        [DECANT_END_PROJECTION_IN] = {"model.decoder.project_in.weight", projects * hidden, projects * width},
        [DECANT_END_POSITIONS] = {"model.decoder.embed_positions.weight", config->position_rows, hidden},
        [DECANT_END_NORM] = {"model.decoder.final_layer_norm.weight", norms, norms * hidden},
        [DECANT_END_NORM_BIAS] = {"model.decoder.final_layer_norm.bias", norms, norms * hidden},
        [DECANT_END_PROJECTION_OUT] = {"model.decoder.project_out.weight", projects * width, projects * hidden},
        [DECANT_END_HEAD] = {config->tied_head ? embedding : "lm_head.weight", vocabulary, width},
    };
    *tensor = tensors[which];
}

/* ---- what a forward pass keeps ---- */

/* Named as at the top; those after STORED lie in another's memory, which is spent by then. */
typedef enum activation {
    NORMED_INPUT,  /* n1, then its gradient; width 0 where norms come behind */
    QUERIES,       /* q */
    KEYS,          /* k */
    VALUES,        /* v */
    ATTENDED,      /* a */
    MIDDLE,        /* s */
    NORMED_MIDDLE, /* n2, then its gradient */
    RECTIFIED,     /* f */
    RECTIFIED_GRADIENTS,
    UNNORMED_OUTPUT, /* m; width 0 where norms come first */
    STORED,
    ATTENDED_GRADIENTS = STORED,
    QUERY_GRADIENTS,
    KEY_GRADIENTS,
    VALUE_GRADIENTS,
} activation;

struct decant_activations {
    void *arrays[STORED]; /* device [most rows, widest use] */
    float *log_sum_exp;   /* device [sequences, heads, T] */
};

static activation storage_of(activation which)
{
    switch (which) {
    case ATTENDED_GRADIENTS:
        return RECTIFIED;
    case QUERY_GRADIENTS:
        return RECTIFIED_GRADIENTS;
    case KEY_GRADIENTS:
        return NORMED_MIDDLE;
    case VALUE_GRADIENTS:
        return MIDDLE;
    default:
        return which;
    }
}

static int64_t width_of(const decant_model_config *config, activation which)
{
    switch (which) {
    case NORMED_INPUT:
        return config->norm_behind ? 0 : config->hidden_size;
    case UNNORMED_OUTPUT:
        return config->norm_behind ? config->hidden_size : 0;
    case RECTIFIED:
    case RECTIFIED_GRADIENTS:
        return config->intermediate_size;
    default:
        return config->hidden_size;
    }
}

/* Attention's gradients may be wider than what they lie over. */
static int64_t stored_width(const decant_model_config *config, activation which)
{
    bool is_shared = which == RECTIFIED || which == RECTIFIED_GRADIENTS;
    int64_t width = width_of(config, which);
    return is_shared && width < config->hidden_size ? config->hidden_size : width;
}

static decant_matrix activation_of(const decant_model_part *part, const decant_activations *kept,
                                   activation which, int64_t rows)
{
    return (decant_matrix){
        .data = kept->arrays[storage_of(which)],
        .element = part->backend->activation,
        .rows = rows,
        .columns = width_of(part->config, which),
    };
}

static void sizes(const decant_family *family, const decant_model_config *config, decant_block_sizes *target)
{
    *target = (decant_block_sizes){.kept_floats = config->heads};
    for (int i = 0; i < STORED; i++)
        target->kept_activations += stored_width(config, (activation)i);
    for (int i = 0; i < VECTORS; i++) {
        decant_vector found;
        vector(family, config, 0, i, &found);
        target->vector_weights += found.length;
    }
}

static void destroy_activations(const decant_model_part *part, decant_activations **activations)
{
    decant_activations *kept = *activations;
    decant_backend *backend = part->backend;
    if (!kept)
        return;
    for (int i = 0; i < STORED; i++)
        backend->memory->release(backend, &kept->arrays[i]);
    backend->memory->release(backend, (void **)&kept->log_sum_exp);
    decant_memory_free(kept);
    *activations = NULL;
}

static decant_status create_activations(const decant_model_part *part, decant_activations **activations,
                                        decant_error *err)
{
    static const char what[] = "a block's activations";
    decant_backend *backend = part->backend;
    size_t element_bytes = decant_element_bytes(backend->activation);
    size_t rows = (size_t)(part->sequences * part->tokens);
    decant_status status;
    void *memory;
    *activations = NULL;
    DECANT_TRY(decant_memory_allocate(sizeof(decant_activations), what, &memory, err));
    decant_activations *kept = *activations = memory;
    for (int i = 0; i < STORED; i++) {
        size_t size_bytes = rows * (size_t)stored_width(part->config, (activation)i) * element_bytes;
        if (size_bytes > 0)
            DECANT_TRY(backend->memory->allocate(backend, size_bytes, what, &kept->arrays[i], err));
    }
    DECANT_TRY(backend->memory->allocate(backend, rows * (size_t)part->config->heads * sizeof(float), what,
                                         (void **)&kept->log_sum_exp, err));
done:
    if (status != DECANT_OK)
        destroy_activations(part, activations);
    return status;
}

/* ---- forward ---- */

/* The norm whose scale is in place `scale`, its bias behind it. */
static decant_status norm(const decant_model_part *part, const decant_block *block, int scale, decant_matrix x,
                          decant_matrix y, decant_error *err)
{
    return part->backend->model->layer_norm(part->backend, x, block->vectors[scale].values,
                                            block->vectors[scale + 1].values, part->config->norm_epsilon, y,
                                            err);
}

static decant_status project(const decant_model_part *part, const decant_block *block, int index,
                             decant_matrix x, bool accumulate, decant_matrix y, decant_error *err)
{
    return decant_block_project(part->backend, &block->linears[index], &block->vectors[index], x, accumulate, y,
                                err);
}

/* The norm between the halves: n2 = norm(s). */
static int middle_norm(const decant_model_config *config)
{
    return config->norm_behind ? ATTENTION_NORM : LAST_NORM;
}

/* What q, k and v are computed from. */
static decant_matrix attention_input(const decant_model_part *part, const decant_activations *kept,
                                     decant_matrix x)
{
    return part->config->norm_behind ? x : activation_of(part, kept, NORMED_INPUT, x.rows);
}

/* From x to s. */
static decant_status forward_attention(const decant_model_part *part, const decant_block *block,
                                       decant_matrix x, decant_activations *kept, decant_error *err)
{
    decant_backend *backend = part->backend;
    decant_attention_shape shape = decant_block_attention_shape(part, x.rows, 0);
    decant_matrix n1 = attention_input(part, kept, x), q = activation_of(part, kept, QUERIES, x.rows),
                  k = activation_of(part, kept, KEYS, x.rows), v = activation_of(part, kept, VALUES, x.rows),
                  a = activation_of(part, kept, ATTENDED, x.rows),
                  s = activation_of(part, kept, MIDDLE, x.rows);
    const decant_matrix projected[] = {q, k, v};
    const decant_packed_input input = {.x = n1};
    decant_status status = DECANT_OK;
    if (!part->config->norm_behind)
        DECANT_TRY(norm(part, block, ATTENTION_NORM, x, n1, err));
    DECANT_TRY(decant_block_project_several(backend, &block->linears[QUERY], &block->vectors[QUERY], 3, &input,
                                            projected, err));
    DECANT_TRY(backend->model->attention(backend, &shape, q, k, v, a, kept->log_sum_exp, err));
    DECANT_TRY(backend->memory->copy(backend, s.data, x.data, decant_matrix_bytes(x), err));
    DECANT_TRY(project(part, block, OUTPUT, a, true, s, err));
done:
    return status;
}

/* From s to y. */
static decant_status forward_mlp(const decant_model_part *part, const decant_block *block,
                                 decant_activations *kept, decant_matrix y, decant_error *err)
{
    decant_backend *backend = part->backend;
    const bool behind = part->config->norm_behind;
    decant_matrix s = activation_of(part, kept, MIDDLE, y.rows),
                  n2 = activation_of(part, kept, NORMED_MIDDLE, y.rows),
                  f = activation_of(part, kept, RECTIFIED, y.rows),
                  sum = behind ? activation_of(part, kept, UNNORMED_OUTPUT, y.rows) : y;
    decant_status status;
    DECANT_TRY(norm(part, block, middle_norm(part->config), s, n2, err));
    DECANT_TRY(project(part, block, UP, n2, false, f, err));
    DECANT_TRY(backend->model->relu(backend, f, err));
    DECANT_TRY(
        backend->memory->copy(backend, sum.data, behind ? n2.data : s.data, decant_matrix_bytes(s), err));
    DECANT_TRY(project(part, block, DOWN, f, true, sum, err));
    if (behind)
        DECANT_TRY(norm(part, block, LAST_NORM, sum, y, err));
done:
    return status;
}

static decant_status forward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                             decant_matrix y, decant_activations *kept, decant_error *err)
{
    decant_status status = forward_attention(part, block, x, kept, err);
    return status == DECANT_OK ? forward_mlp(part, block, kept, y, err) : status;
}

/* ---- backward ---- */

/* dx += the gradient of the norm's input x, or without accumulate dx = it, where dx may be dy. */
static decant_status norm_backward(const decant_model_part *part, const decant_block *block, int scale,
                                   decant_matrix dy, decant_matrix x, bool accumulate, decant_matrix dx,
                                   decant_error *err)
{
    return part->backend->model->layer_norm_backward(part->backend, dy, x, block->vectors[scale].values,
                                                     part->config->norm_epsilon, accumulate, dx, err);
}

/* dx holds dy and becomes ds. */
static decant_status backward_mlp(const decant_model_part *part, const decant_block *block,
                                  decant_activations *kept, const decant_block_fisher *fisher, decant_matrix dx,
                                  decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_linear *linears = block->linears;
    const bool behind = part->config->norm_behind;
    decant_matrix s = activation_of(part, kept, MIDDLE, dx.rows),
                  n2 = activation_of(part, kept, NORMED_MIDDLE, dx.rows), dn2 = behind ? dx : n2,
                  f = activation_of(part, kept, RECTIFIED, dx.rows),
                  df = activation_of(part, kept, RECTIFIED_GRADIENTS, dx.rows);
    decant_status status = DECANT_OK;
    if (behind) { /* now dx holds dm, which is the gradient that goes around the MLP to n2 */
        decant_matrix m = activation_of(part, kept, UNNORMED_OUTPUT, dx.rows);
        DECANT_TRY(norm_backward(part, block, LAST_NORM, dx, m, false, dx, err));
    }
    DECANT_TRY(decant_block_add_fisher(part, fisher, DOWN, dx, f, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[DOWN].weight, false, df, err));
    DECANT_TRY(model->relu_backward(backend, f, df, df, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, UP, df, n2, err));
    DECANT_TRY(model->linear_backward(backend, df, linears[UP].weight, behind, dn2, err));
    DECANT_TRY(norm_backward(part, block, middle_norm(part->config), dn2, s, !behind, dx, err));
done:
    return status;
}

/* dx holds ds and becomes the gradient of the block's input x. */
static decant_status backward_attention(const decant_model_part *part, const decant_block *block,
                                        decant_matrix x, decant_activations *kept,
                                        const decant_block_fisher *fisher, decant_matrix dx, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_linear *linears = block->linears;
    const bool behind = part->config->norm_behind;
    decant_attention_shape shape = decant_block_attention_shape(part, x.rows, 0);
    decant_matrix n1 = attention_input(part, kept, x), dn1 = behind ? dx : n1,
                  q = activation_of(part, kept, QUERIES, x.rows), k = activation_of(part, kept, KEYS, x.rows),
                  v = activation_of(part, kept, VALUES, x.rows),
                  a = activation_of(part, kept, ATTENDED, x.rows),
                  da = activation_of(part, kept, ATTENDED_GRADIENTS, x.rows),
                  dq = activation_of(part, kept, QUERY_GRADIENTS, x.rows),
                  dk = activation_of(part, kept, KEY_GRADIENTS, x.rows),
                  dv = activation_of(part, kept, VALUE_GRADIENTS, x.rows);
    decant_status status;
    DECANT_TRY(decant_block_add_fisher(part, fisher, OUTPUT, dx, a, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[OUTPUT].weight, false, da, err));
    DECANT_TRY(model->attention_backward(backend, &shape, q, k, v, a, kept->log_sum_exp, da, dq, dk, dv, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, QUERY, dq, n1, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, KEY, dk, n1, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, VALUE, dv, n1, err));
    DECANT_TRY(model->linear_backward(backend, dq, linears[QUERY].weight, behind, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dk, linears[KEY].weight, true, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dv, linears[VALUE].weight, true, dn1, err));
    if (!behind)
        DECANT_TRY(norm_backward(part, block, ATTENTION_NORM, dn1, x, true, dx, err));
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

const decant_family decant_family_opt = {
    .architecture = "OPTForCausalLM",
    .linear_count = LINEARS,
    .linear = linear,
    .vector = vector,
    .end = end,
    .sizes = sizes,
    .create_activations = create_activations,
    .destroy_activations = destroy_activations,
    .forward = forward,
    .backward = backward,
};
