/* The decoder block for one token behind those that are kept: decoder_block.c's forward pass, in the operations
 * of the backend's steps table. x is the residual stream, to which both halves of the block add in place. */
#include "stages/families/block_steps.h"
#include "stages/families/decoder_activations.h"

static decant_step_product product_of(const decant_linear *linear, decant_matrix y)
{
    return (decant_step_product){
        .weight = linear->weight, .packed = linear->packed, .grid = linear->grid, .y = y};
}

/* The norm of x that vector `norm` of the block scales, with room for the result. */
static decant_step_input normed_input(const decant_model_part *part, const decant_block *block, int norm,
                                      decant_matrix x, const decant_activations *kept)
{
    bool first = norm == DECANT_INPUT_NORM;
    return (decant_step_input){
        .x = x,
        .norm_weight = block->vectors[norm].values,
        .epsilon = part->config->norm_epsilon,
        .normed = decant_activation_of(part, kept, first ? DECANT_NORMED_INPUT : DECANT_NORMED_MIDDLE, 1),
        .inverse_rms = first ? kept->input_inverse_rms : kept->middle_inverse_rms,
    };
}

/* The bias, or the norm of each head, of families that have them. */
static decant_status add_bias(const decant_model_part *part, const decant_vector *bias, decant_matrix y,
                              decant_error *err)
{
    return bias->length > 0 ? part->backend->model->add_bias(part->backend, y, bias->values, err) : DECANT_OK;
}

static decant_status norm_heads(const decant_model_part *part, const decant_vector *norm, int heads,
                                float *inverse_rms, decant_matrix x, decant_matrix y, decant_error *err)
{
    if (norm->length == 0)
        return DECANT_OK;
    x.rows = y.rows = heads;
    x.columns = y.columns = norm->length;
    return part->backend->model->rms_norm(part->backend, x, norm->values, part->config->norm_epsilon, y,
                                          inverse_rms, err);
}

/* x += attention(norm(x)) */
static decant_status step_attention(const decant_model_part *part, const decant_block *block,
                                    const decant_kept_tokens *tokens, decant_matrix x, decant_activations *kept,
                                    decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_model_config *config = part->config;
    const decant_linear *linears = block->linears;
    const decant_vector *vectors = block->vectors;
    const bool norms = vectors[DECANT_QUERY_NORM].length > 0;
    const int64_t window = part->family->decoder->sliding_window ? config->sliding_window : 0;
    const decant_attention_shape shape = decant_block_attention_shape(part, 1, window);
    decant_matrix q = decant_activation_of(part, kept, DECANT_QUERIES, 1),
                  k = decant_activation_of(part, kept, DECANT_KEYS, 1),
                  v = decant_activation_of(part, kept, DECANT_VALUES, 1),
                  a = decant_activation_of(part, kept, DECANT_ATTENDED, 1);
    decant_matrix raw_q = norms ? decant_activation_of(part, kept, DECANT_UNNORMED_QUERIES, 1) : q,
                  raw_k = norms ? decant_activation_of(part, kept, DECANT_UNNORMED_KEYS, 1) : k;
    decant_step_input normed = normed_input(part, block, DECANT_INPUT_NORM, x, kept), attended = {.x = a};
    decant_step_product projections[] = {product_of(&linears[DECANT_QUERY_LINEAR], raw_q),
                                         product_of(&linears[DECANT_KEY_LINEAR], raw_k),
                                         product_of(&linears[DECANT_VALUE_LINEAR], v)};
    decant_step_product output = product_of(&linears[DECANT_OUTPUT_LINEAR], x);
    decant_status status;
    DECANT_TRY(backend->steps->products(backend, &normed, projections, 3, false, err));
    DECANT_TRY(add_bias(part, &vectors[DECANT_QUERY_BIAS], raw_q, err));
    DECANT_TRY(add_bias(part, &vectors[DECANT_KEY_BIAS], raw_k, err));
    DECANT_TRY(add_bias(part, &vectors[DECANT_VALUE_BIAS], v, err));
    DECANT_TRY(
        norm_heads(part, &vectors[DECANT_QUERY_NORM], config->heads, kept->query_inverse_rms, raw_q, q, err));
    DECANT_TRY(norm_heads(part, &vectors[DECANT_KEY_NORM], config->key_value_heads, kept->key_inverse_rms,
                          raw_k, k, err));
    DECANT_TRY(backend->steps->attention(backend, &shape, part->cosines, part->sines, q, k, v, tokens->keys,
                                         tokens->values, tokens->position, a, err));
    DECANT_TRY(backend->steps->products(backend, &attended, &output, 1, true, err));
done:
    return status;
}

/* x += mlp(norm(x)) */
static decant_status step_mlp(const decant_model_part *part, const decant_block *block, decant_matrix x,
                              decant_activations *kept, decant_error *err)
{
    decant_backend *backend = part->backend;
    const decant_linear *linears = block->linears;
    decant_matrix m = decant_activation_of(part, kept, DECANT_PRODUCTS, 1);
    decant_step_input normed = normed_input(part, block, DECANT_POST_ATTENTION_NORM, x, kept), gated = {.x = m};
    decant_step_product gate = product_of(&linears[DECANT_GATE_LINEAR], m);
    decant_step_product up =
        product_of(&linears[DECANT_UP_LINEAR], decant_activation_of(part, kept, DECANT_UPS, 1));
    decant_step_product down = product_of(&linears[DECANT_DOWN_LINEAR], x);
    decant_status status;
    DECANT_TRY(backend->steps->gated_products(backend, &normed, &gate, &up, err));
    DECANT_TRY(backend->steps->products(backend, &gated, &down, 1, true, err));
done:
    return status;
}

decant_status decant_decoder_step(const decant_model_part *part, const decant_block *block,
                                  const decant_kept_tokens *tokens, decant_matrix x, decant_activations *kept,
                                  decant_error *err)
{
    decant_status status = step_attention(part, block, tokens, x, kept, err);
    return status == DECANT_OK ? step_mlp(part, block, x, kept, err) : status;
}
