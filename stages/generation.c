/* See generation.h. The logits are F32, as for questions. */
#include "stages/generation.h"

#include "base/memory.h"

/* A backend that is another one but for its attention; the family gets its address. */
typedef struct keeping_backend {
    decant_backend backend; /* first: attention gets a decant_backend * and looks around it */
    decant_model_kernels model;
    decant_backend *actual;
    decant_matrix *keys, *values; /* [layers] of [part's tokens, key_value_heads · head_dimension] */
    int layer;                    /* whose forward pass is under way */
    int64_t position;             /* tokens that were kept before it */
} keeping_backend;

struct decant_generation {
    const decant_model_part *whole;
    keeping_backend keeping;
    decant_model_part part; /* the same on the keeping backend; its angles begin at the present position */
    decant_activations *kept;
    decant_matrix x, y; /* [tokens, hidden] */
    decant_matrix normed, logits;
    float *inverse_rms;
    float *host_logits; /* [vocabulary] */
    int64_t count;
};

/* ---- attention that keeps keys and values ---- */

static decant_status keep(keeping_backend *keeping, decant_matrix kept, decant_matrix rows, decant_error *err)
{
    decant_matrix target = decant_matrix_rows(kept, keeping->position, rows.rows);
    return keeping->actual->memory->copy(keeping->actual, target.data, rows.data, decant_matrix_bytes(rows),
                                         err);
}

/* The first of `count` tokens that the last one sees. */
static int64_t first_seen(const decant_attention_shape *shape, int64_t count)
{
    return shape->window > 0 && count > shape->window ? count - shape->window : 0;
}

/* Of a whole prompt, or of one token behind those that were kept. */
static decant_status attend(decant_backend *backend, const decant_attention_shape *shape, decant_matrix q,
                            decant_matrix k, decant_matrix v, decant_matrix y, float *log_sum_exp,
                            decant_error *err)
{
    keeping_backend *keeping = (keeping_backend *)backend;
    decant_backend *actual = keeping->actual;
    decant_matrix keys = keeping->keys[keeping->layer], values = keeping->values[keeping->layer];
    int64_t count = keeping->position + q.rows, first = first_seen(shape, count);
    decant_status status;
    DECANT_TRY(keep(keeping, keys, k, err));
    DECANT_TRY(keep(keeping, values, v, err));
    if (q.rows > 1)
        DECANT_TRY(actual->model->attention(actual, shape, q, k, v, y, log_sum_exp, err));
    else
        DECANT_TRY(actual->model->attention_step(actual, shape, q,
                                                 decant_matrix_rows(keys, first, count - first),
                                                 decant_matrix_rows(values, first, count - first), y, err));
done:
    return status;
}

static decant_status create_keeping(const decant_model_part *part, keeping_backend *keeping, decant_error *err)
{
    const decant_model_config *config = part->config;
    decant_backend *actual = part->backend;
    int64_t width = (int64_t)config->key_value_heads * config->head_dimension;
    size_t list_bytes = (size_t)part->layer_count * sizeof *keeping->keys;
    void *memory;
    decant_status status;
    keeping->backend = *actual;
    keeping->model = *actual->model;
    keeping->model.attention = attend;
    keeping->backend.model = &keeping->model;
    keeping->actual = actual;
    DECANT_TRY(decant_memory_allocate(list_bytes, "keys and values", &memory, err));
    keeping->keys = memory;
    DECANT_TRY(decant_memory_allocate(list_bytes, "keys and values", &memory, err));
    keeping->values = memory;
    for (int layer = 0; layer < part->layer_count; layer++) {
        DECANT_TRY(decant_activation_create(actual, part->tokens, width, "keys", &keeping->keys[layer], err));
        DECANT_TRY(
            decant_activation_create(actual, part->tokens, width, "values", &keeping->values[layer], err));
    }
done:
    return status;
}

static void destroy_keeping(keeping_backend *keeping, int layers)
{
    decant_backend *actual = keeping->actual;
    for (int layer = 0; keeping->values && layer < layers; layer++) {
        actual->memory->release(actual, &keeping->keys[layer].data);
        actual->memory->release(actual, &keeping->values[layer].data);
    }
    decant_memory_free(keeping->keys);
    decant_memory_free(keeping->values);
}

int64_t decant_generation_kept_bytes(const decant_model_config *config, decant_element activation,
                                     int64_t tokens)
{
    int64_t width = (int64_t)config->key_value_heads * config->head_dimension;
    return 2 * config->layers * tokens * width * (int64_t)decant_element_bytes(activation);
}

/* ---- generation ---- */

decant_status decant_generation_create(const decant_model_part *part, decant_generation **generation,
                                       decant_error *err)
{
    decant_backend *backend = part->backend;
    int64_t hidden = part->config->hidden_size, vocabulary = part->config->vocabulary_size;
    void *memory;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **generation, "generation", (void **)generation, err));
    decant_generation *g = *generation;
    g->whole = part;
    DECANT_TRY(create_keeping(part, &g->keeping, err));
    g->part = *part;
    g->part.backend = &g->keeping.backend;
    DECANT_TRY(part->family->create_activations(part, &g->kept, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the input of a block", &g->x, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the output of a block", &g->y, err));
    DECANT_TRY(decant_activation_create(backend, 1, hidden, "the final norm", &g->normed, err));
    DECANT_TRY(
        backend->memory->allocate(backend, sizeof(float), "the final norm", (void **)&g->inverse_rms, err));
    g->logits = (decant_matrix){.element = DECANT_F32, .rows = 1, .columns = vocabulary};
    DECANT_TRY(
        backend->memory->allocate(backend, decant_matrix_bytes(g->logits), "logits", &g->logits.data, err));
    DECANT_TRY(decant_memory_allocate(decant_matrix_bytes(g->logits), "logits", &memory, err));
    g->host_logits = memory;
done:
    if (status != DECANT_OK)
        decant_generation_destroy(generation);
    return status;
}

void decant_generation_destroy(decant_generation **generation)
{
    decant_generation *g = *generation;
    if (!g)
        return;
    decant_backend *backend = g->whole->backend;
    void **arrays[] = {&g->x.data, &g->y.data, &g->normed.data, &g->logits.data, (void **)&g->inverse_rms};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, arrays[i]);
    if (g->kept)
        g->whole->family->destroy_activations(g->whole, &g->kept);
    if (g->keeping.actual)
        destroy_keeping(&g->keeping, g->whole->layer_count);
    decant_memory_free(g->host_logits);
    decant_memory_free(g);
    *generation = NULL;
}

static int32_t most_likely(const float *logits, int64_t vocabulary)
{
    int64_t best = 0;
    for (int64_t i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

/* `rows` tokens behind the g->count that were kept. */
static decant_status pass(decant_generation *g, const int32_t *tokens, int64_t rows, int32_t *next,
                          decant_error *err)
{
    const decant_model_part *whole = g->whole;
    int64_t angles = g->count * (whole->config->head_dimension / 2);
    decant_status status;
    g->keeping.position = g->count;
    g->part.cosines = whole->cosines + angles;
    g->part.sines = whole->sines + angles;
    DECANT_TRY(decant_model_embed(&g->part, tokens, decant_matrix_rows(g->x, 0, rows), err));
    for (int layer = 0; layer < whole->layer_count; layer++) {
        g->keeping.layer = layer;
        DECANT_TRY(whole->family->forward(&g->part, &g->part.blocks[layer], decant_matrix_rows(g->x, 0, rows),
                                          decant_matrix_rows(g->y, 0, rows), g->kept, err));
        decant_matrix output = g->y;
        g->y = g->x;
        g->x = output;
    }
    DECANT_TRY(decant_model_head(whole, decant_matrix_rows(g->x, rows - 1, 1), g->normed, g->inverse_rms,
                                 g->logits, err));
    DECANT_TRY(whole->backend->memory->download(whole->backend, g->host_logits, g->logits.data,
                                                decant_matrix_bytes(g->logits), err));
    *next = most_likely(g->host_logits, g->logits.columns);
    g->count += rows;
done:
    return status;
}

decant_status decant_generation_begin(decant_generation *generation, const int32_t *tokens, int64_t count,
                                      int32_t *next, decant_error *err)
{
    generation->count = 0;
    if (count < 1 || count > generation->whole->tokens)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a prompt of %lld tokens, there is room for %lld",
                            (long long)count, (long long)generation->whole->tokens);
    return pass(generation, tokens, count, next, err);
}

decant_status decant_generation_step(decant_generation *generation, int32_t token, int32_t *next,
                                     decant_error *err)
{
    if (generation->count >= generation->whole->tokens)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "there is room for %lld tokens and no more",
                            (long long)generation->whole->tokens);
    return pass(generation, &token, 1, next, err);
}

int64_t decant_generation_count(const decant_generation *generation)
{
    return generation->count;
}

void decant_generation_go_back(decant_generation *generation, int64_t count)
{
    if (count < generation->count)
        generation->count = count;
}
