/* The passes of the decoder block; see decoder_block.h.
 *
 *   n1 = norm(x)   q, k, v = n1 Wq + bq, n1 Wk + bk, n1 Wv + bv   norm the heads of q and k, rotate them
 *   a = attention(q, k, v)   h = x + a Wo
 *   n2 = norm(h)   g, u = n2 Wgate, n2 Wup   m = silu(g) ∘ u   y = h + m Wdown
 *
 * with biases and norms of heads where the family has them. The forward pass keeps every named array but x and
 * y; of packed layers, which have no backward pass, n1, n2 and m need not be there. The backward pass consumes
 * them: a gradient is written over an array that is spent by then, so `kept` serves one backward pass and needs
 * no room of its own for it. */
#include "stages/families/block_steps.h"
#include "stages/families/decoder_activations.h"

#include <stdio.h>

enum {
    QUERY = DECANT_QUERY_LINEAR,
    KEY = DECANT_KEY_LINEAR,
    VALUE = DECANT_VALUE_LINEAR,
    OUTPUT = DECANT_OUTPUT_LINEAR,
    GATE = DECANT_GATE_LINEAR,
    UP = DECANT_UP_LINEAR,
    DOWN = DECANT_DOWN_LINEAR
};

void decant_decoder_linear(const decant_model_config *config, int layer, int index, decant_linear *linear)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                        "mlp.down_proj"};
    const int64_t hidden = config->hidden_size, intermediate = config->intermediate_size;
    const int64_t queries = decant_query_width(config), keys = decant_key_value_width(config);
    const int64_t shapes[][2] = {
        {queries, hidden},      {keys, hidden},         {keys, hidden},         {hidden, queries},
        {intermediate, hidden}, {intermediate, hidden}, {hidden, intermediate},
    };
    *linear = (decant_linear){.rows = shapes[index][0],
                              .columns = shapes[index][1],
                              .shares_x = index == KEY || index == VALUE || index == UP};
    snprintf(linear->name, sizeof linear->name, "model.layers.%d.%s", layer, names[index]);
}

void decant_decoder_vector(const decant_family *family, const decant_model_config *config, int layer, int index,
                           decant_vector *vector)
{
    _Static_assert((int)DECANT_DECODER_VECTORS <= (int)DECANT_BLOCK_VECTORS,
                   "a block has room for its vectors");
    const int64_t keys = decant_key_value_width(config), head = config->head_dimension;
    const bool bias = family->decoder->query_key_value_bias, norm = family->decoder->query_key_norm;
    const struct {
        const char *name;
        bool present;
        int64_t length;
    } vectors[DECANT_BLOCK_VECTORS] = {
        [DECANT_INPUT_NORM] = {"input_layernorm.weight", true, config->hidden_size},
        [DECANT_POST_ATTENTION_NORM] = {"post_attention_layernorm.weight", true, config->hidden_size},
        [DECANT_QUERY_BIAS] = {"self_attn.q_proj.bias", bias, decant_query_width(config)},
        [DECANT_KEY_BIAS] = {"self_attn.k_proj.bias", bias, keys},
        [DECANT_VALUE_BIAS] = {"self_attn.v_proj.bias", bias, keys},
        [DECANT_QUERY_NORM] = {"self_attn.q_norm.weight", norm, head},
        [DECANT_KEY_NORM] = {"self_attn.k_norm.weight", norm, head},
    };
    *vector = (decant_vector){.length = vectors[index].present ? vectors[index].length : 0};
    if (vector->length > 0)
        snprintf(vector->name, sizeof vector->name, "model.layers.%d.%s", layer, vectors[index].name);
}

static decant_attention_shape attention_shape(const decant_model_part *part, int64_t rows)
{
    int64_t window = part->family->decoder->sliding_window ? part->config->sliding_window : 0;
    return decant_block_attention_shape(part, rows, window);
}

void decant_decoder_end(const decant_model_config *config, decant_end which, decant_end_tensor *tensor)
{
    static const char embedding[] = "model.embed_tokens.weight";
    const int64_t vocabulary = config->vocabulary_size, hidden = config->hidden_size;
    const decant_end_tensor tensors[DECANT_ENDS] = {
        [DECANT_END_EMBEDDING] = {embedding, vocabulary, hidden},
        [DECANT_END_NORM] = {"model.norm.weight", 1, hidden},
        [DECANT_END_HEAD] = {config->tied_head ? embedding : "lm_head.weight", vocabulary, hidden},
    };
    *tensor = tensors[which];
}

/* [rows, heads · head_dimension] with each head a row of its own. */
static decant_matrix heads_of(decant_matrix matrix, int heads)
{
    matrix.rows *= heads;
    matrix.columns /= heads;
    return matrix;
}

/* q or k on its way into attention. */
typedef struct decant_head_pass {
    int heads;
    const decant_vector *norm;
    float *inverse_rms;
    decant_matrix unnormed; /* where the linear layer writes: `rotated` itself when heads are not normed */
    decant_matrix rotated;  /* what attention takes */
} decant_head_pass;

static decant_head_pass queries_of(const decant_model_part *part, const decant_block *block,
                                   const decant_activations *kept, int64_t rows)
{
    const decant_vector *norm = &block->vectors[DECANT_QUERY_NORM];
    decant_activation unnormed = norm->length > 0 ? DECANT_UNNORMED_QUERIES : DECANT_QUERIES;
    return (decant_head_pass){part->config->heads, norm, kept->query_inverse_rms,
                              decant_activation_of(part, kept, unnormed, rows),
                              decant_activation_of(part, kept, DECANT_QUERIES, rows)};
}

static decant_head_pass keys_of(const decant_model_part *part, const decant_block *block,
                                const decant_activations *kept, int64_t rows)
{
    const decant_vector *norm = &block->vectors[DECANT_KEY_NORM];
    decant_activation unnormed = norm->length > 0 ? DECANT_UNNORMED_KEYS : DECANT_KEYS;
    return (decant_head_pass){part->config->key_value_heads, norm, kept->key_inverse_rms,
                              decant_activation_of(part, kept, unnormed, rows),
                              decant_activation_of(part, kept, DECANT_KEYS, rows)};
}

/* From pass->unnormed to pass->rotated. */
static decant_status forward_heads(const decant_model_part *part, const decant_head_pass *pass,
                                   decant_error *err)
{
    const decant_model_kernels *model = part->backend->model;
    decant_status status = DECANT_OK;
    if (pass->norm->length > 0)
        DECANT_TRY(model->rms_norm(part->backend, heads_of(pass->unnormed, pass->heads), pass->norm->values,
                                   part->config->norm_epsilon, heads_of(pass->rotated, pass->heads),
                                   pass->inverse_rms, err));
    DECANT_TRY(
        model->rotary(part->backend, pass->rotated, pass->heads, part->cosines, part->sines, false, err));
done:
    return status;
}

/* *gradient, of pass->rotated, becomes that of pass->unnormed; it lies in pass->rotated then, spent by now,
 * when heads are normed. */
static decant_status backward_heads(const decant_model_part *part, const decant_head_pass *pass,
                                    decant_matrix *gradient, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    decant_status status;
    DECANT_TRY(model->rotary(backend, *gradient, pass->heads, part->cosines, part->sines, true, err));
    if (pass->norm->length == 0)
        goto done;
    DECANT_TRY(backend->memory->zero(backend, pass->rotated.data, decant_matrix_bytes(pass->rotated), err));
    DECANT_TRY(model->rms_norm_backward(backend, heads_of(*gradient, pass->heads),
                                        heads_of(pass->unnormed, pass->heads), pass->norm->values,
                                        pass->inverse_rms, heads_of(pass->rotated, pass->heads), err));
    *gradient = pass->rotated;
done:
    return status;
}

/* h = x + attention(norm(x)) */
static decant_status forward_attention(const decant_model_part *part, const decant_block *block,
                                       decant_matrix x, decant_activations *kept, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_kernels *model = backend->model;
    const decant_linear *linears = block->linears;
    const decant_vector *vectors = block->vectors;
    decant_attention_shape shape = attention_shape(part, x.rows);
    decant_head_pass q = queries_of(part, block, kept, x.rows), k = keys_of(part, block, kept, x.rows);
    decant_matrix n1 = decant_activation_of(part, kept, DECANT_NORMED_INPUT, x.rows),
                  v = decant_activation_of(part, kept, DECANT_VALUES, x.rows),
                  a = decant_activation_of(part, kept, DECANT_ATTENDED, x.rows),
                  h = decant_activation_of(part, kept, DECANT_MIDDLE, x.rows);
    const decant_matrix projected[] = {q.unnormed, k.unnormed, v};
    const decant_packed_input normed = {.x = x,
                                        .norm_weight = vectors[DECANT_INPUT_NORM].values,
                                        .epsilon = part->config->norm_epsilon,
                                        .inverse_rms = kept->input_inverse_rms,
                                        .made = n1};
    decant_status status;
    DECANT_TRY(decant_block_project_several(backend, &linears[QUERY], &vectors[DECANT_QUERY_BIAS], 3, &normed,
                                            projected, err));
    DECANT_TRY(forward_heads(part, &q, err));
    DECANT_TRY(forward_heads(part, &k, err));
    DECANT_TRY(model->attention(backend, &shape, q.rotated, k.rotated, v, a, kept->log_sum_exp, err));
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
    decant_matrix h = decant_activation_of(part, kept, DECANT_MIDDLE, y.rows),
                  n2 = decant_activation_of(part, kept, DECANT_NORMED_MIDDLE, y.rows);
    decant_matrix g = decant_activation_of(part, kept, DECANT_GATES, y.rows),
                  u = decant_activation_of(part, kept, DECANT_UPS, y.rows);
    decant_matrix m = decant_activation_of(part, kept, DECANT_PRODUCTS, y.rows);
    const decant_matrix gate_and_up[] = {g, u};
    const decant_packed_input normed = {.x = h,
                                        .norm_weight = block->vectors[DECANT_POST_ATTENTION_NORM].values,
                                        .epsilon = part->config->norm_epsilon,
                                        .inverse_rms = kept->middle_inverse_rms,
                                        .made = n2},
                              gated = {.x = g, .up = u, .made = m};
    decant_status status;
    DECANT_TRY(decant_linears_forward(backend, &linears[GATE], 2, &normed, false, gate_and_up, err));
    DECANT_TRY(backend->memory->copy(backend, y.data, h.data, decant_matrix_bytes(y), err));
    DECANT_TRY(decant_linears_forward(backend, &linears[DOWN], 1, &gated, true, &y, err));
done:
    return status;
}

decant_status decant_decoder_forward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                                     decant_matrix y, decant_activations *kept, decant_error *err)
{
    decant_status status = forward_attention(part, block, x, kept, err);
    return status == DECANT_OK ? forward_mlp(part, block, kept, y, err) : status;
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
    decant_matrix h = decant_activation_of(part, kept, DECANT_MIDDLE, rows),
                  n2 = decant_activation_of(part, kept, DECANT_NORMED_MIDDLE, rows), dn2 = n2;
    decant_matrix g = decant_activation_of(part, kept, DECANT_GATES, rows), dg = g;
    decant_matrix u = decant_activation_of(part, kept, DECANT_UPS, rows), du = u;
    decant_matrix m = decant_activation_of(part, kept, DECANT_PRODUCTS, rows), dm = m;
    decant_status status;
    DECANT_TRY(decant_block_add_fisher(part, fisher, DOWN, dx, m, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[DOWN].weight, false, dm, err));
    DECANT_TRY(model->silu_multiply_backward(backend, g, u, dm, dg, du, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, GATE, dg, n2, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, UP, du, n2, err));
    DECANT_TRY(model->linear_backward(backend, dg, linears[GATE].weight, false, dn2, err));
    DECANT_TRY(model->linear_backward(backend, du, linears[UP].weight, true, dn2, err));
    DECANT_TRY(model->rms_norm_backward(backend, dn2, h, block->vectors[DECANT_POST_ATTENTION_NORM].values,
                                        kept->middle_inverse_rms, dx, err));
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
    const decant_linear *linears = block->linears;
    const int64_t rows = x.rows;
    decant_attention_shape shape = attention_shape(part, rows);
    decant_head_pass q = queries_of(part, block, kept, rows), k = keys_of(part, block, kept, rows);
    decant_matrix n1 = decant_activation_of(part, kept, DECANT_NORMED_INPUT, rows), dn1 = n1,
                  v = decant_activation_of(part, kept, DECANT_VALUES, rows),
                  a = decant_activation_of(part, kept, DECANT_ATTENDED, rows),
                  da = decant_activation_of(part, kept, DECANT_ATTENDED_GRADIENTS, rows),
                  dq = decant_activation_of(part, kept, DECANT_QUERY_GRADIENTS, rows),
                  dk = decant_activation_of(part, kept, DECANT_KEY_GRADIENTS, rows),
                  dv = decant_activation_of(part, kept, DECANT_VALUE_GRADIENTS, rows);
    decant_status status;
    DECANT_TRY(decant_block_add_fisher(part, fisher, OUTPUT, dx, a, err));
    DECANT_TRY(model->linear_backward(backend, dx, linears[OUTPUT].weight, false, da, err));
    DECANT_TRY(model->attention_backward(backend, &shape, q.rotated, k.rotated, v, a, kept->log_sum_exp, da, dq,
                                         dk, dv, err));
    DECANT_TRY(backward_heads(part, &q, &dq, err));
    DECANT_TRY(backward_heads(part, &k, &dk, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, QUERY, dq, n1, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, KEY, dk, n1, err));
    DECANT_TRY(decant_block_add_fisher(part, fisher, VALUE, dv, n1, err));
    DECANT_TRY(model->linear_backward(backend, dq, linears[QUERY].weight, false, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dk, linears[KEY].weight, true, dn1, err));
    DECANT_TRY(model->linear_backward(backend, dv, linears[VALUE].weight, true, dn1, err));
    DECANT_TRY(model->rms_norm_backward(backend, dn1, x, block->vectors[DECANT_INPUT_NORM].values,
                                        kept->input_inverse_rms, dx, err));
done:
    return status;
}

decant_status decant_decoder_backward(const decant_model_part *part, const decant_block *block, decant_matrix x,
                                      decant_matrix dy, decant_activations *kept,
                                      const decant_block_fisher *fisher, decant_matrix dx, decant_error *err)
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
