/* See generation.h. The logits are F32, as for questions.
 *
 * What a step does is the same for every token but for what two integers on the device hold: the token, and how
 * many were passed before it. So it is recorded once and replayed (kernels/backend.h), and as a step ends by
 * writing both for the next, many are issued before the host looks at what came of them. */
#include "stages/generation.h"

#include "base/memory.h"

/* A backend that is another one but for its attention; the family gets its address. */
typedef struct keeping_backend {
    decant_backend backend; /* first: attention gets a decant_backend * and looks around it */
    decant_model_kernels model;
    decant_backend *actual;
    decant_matrix *keys, *values; /* [layers] of [part's tokens, key_value_heads · head_dimension] */
    const int32_t *position;      /* device [1]: tokens that were kept before a step; borrowed */
    int layer;                    /* whose forward pass is under way */
} keeping_backend;

struct decant_generation {
    const decant_model_part *whole;
    keeping_backend keeping;
    decant_model_part prompt_part; /* the same on the keeping backend */
    decant_model_part step_part;   /* the same with angles of one position, its own, at that position */
    decant_activations *kept;
    decant_matrix x, y; /* [tokens, hidden] */
    decant_matrix normed, logits;
    float *inverse_rms;
    int32_t *next;               /* device [2]: the next token to pass, and where it stands */
    int32_t *history;            /* device [tokens]: what was most likely behind each token */
    decant_recording *recording; /* of a step; NULL until the first one after a prompt */
    int64_t count;
};

/* ---- attention that keeps keys and values ---- */

/* Of a whole prompt, whose first token is the sequence's, or of one token behind those that were kept. */
static decant_status attend(decant_backend *backend, const decant_attention_shape *shape, decant_matrix q,
                            decant_matrix k, decant_matrix v, decant_matrix y, float *log_sum_exp,
                            decant_error *err)
{
    keeping_backend *keeping = (keeping_backend *)backend;
    decant_backend *actual = keeping->actual;
    const decant_memory_kernels *memory = actual->memory;
    decant_matrix keys = keeping->keys[keeping->layer], values = keeping->values[keeping->layer];
    decant_status status;
    if (q.rows == 1)
        return actual->model->attention_step(actual, shape, q, k, v, keys, values, keeping->position, y, err);
    DECANT_TRY(memory->copy(actual, keys.data, k.data, decant_matrix_bytes(k), err));
    DECANT_TRY(memory->copy(actual, values.data, v.data, decant_matrix_bytes(v), err));
    DECANT_TRY(actual->model->attention(actual, shape, q, k, v, y, log_sum_exp, err));
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

/* Floats of one position's angles; a family without has none. */
static size_t angle_bytes(const decant_model_part *part)
{
    return part->cosines ? (size_t)(part->config->head_dimension / 2) * sizeof(float) : 0;
}

static decant_status create_parts(decant_generation *g, decant_error *err)
{
    const decant_memory_kernels *memory = g->whole->backend->memory;
    size_t size_bytes = angle_bytes(g->whole);
    void *angles = NULL;
    decant_status status = DECANT_OK;
    g->prompt_part = *g->whole;
    g->prompt_part.backend = &g->keeping.backend;
    g->step_part = g->prompt_part;
    g->step_part.cosines = g->step_part.sines = NULL;
    if (size_bytes == 0)
        goto done;
    DECANT_TRY(memory->allocate(g->whole->backend, size_bytes, "rotary angles", &angles, err));
    g->step_part.cosines = angles;
    DECANT_TRY(memory->allocate(g->whole->backend, size_bytes, "rotary angles", &angles, err));
    g->step_part.sines = angles;
done:
    return status;
}

static decant_status create_head(decant_generation *g, decant_error *err)
{
    decant_backend *backend = g->whole->backend;
    const decant_model_config *config = g->whole->config;
    void *memory;
    decant_status status;
    g->logits = (decant_matrix){.element = DECANT_F32, .rows = 1, .columns = config->vocabulary_size};
    DECANT_TRY(decant_activation_create(backend, 1, config->hidden_size, "the final norm", &g->normed, err));
    DECANT_TRY(backend->memory->allocate(backend, sizeof(float), "the final norm", &memory, err));
    g->inverse_rms = memory;
    DECANT_TRY(
        backend->memory->allocate(backend, decant_matrix_bytes(g->logits), "logits", &g->logits.data, err));
done:
    return status;
}

static decant_status create_places(decant_generation *g, decant_error *err)
{
    decant_backend *backend = g->whole->backend;
    void *memory;
    decant_status status;
    DECANT_TRY(backend->memory->allocate(backend, 2 * sizeof *g->next, "a position", &memory, err));
    g->next = memory;
    g->keeping.position = g->next + 1;
    DECANT_TRY(backend->memory->allocate(backend, (size_t)g->whole->tokens * sizeof *g->history,
                                         "the tokens of a sequence", &memory, err));
    g->history = memory;
done:
    return status;
}

decant_status decant_generation_create(const decant_model_part *part, decant_generation **generation,
                                       decant_error *err)
{
    decant_backend *backend = part->backend;
    int64_t hidden = part->config->hidden_size;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **generation, "generation", (void **)generation, err));
    decant_generation *g = *generation;
    g->whole = part;
    if (part->positions.data && part->tokens > part->config->maximum_positions)
        DECANT_TRY(DECANT_ERROR(err, DECANT_ERROR_BUG, "%lld tokens, but there are %lld positions",
                                (long long)part->tokens, (long long)part->config->maximum_positions));
    DECANT_TRY(create_keeping(part, &g->keeping, err));
    DECANT_TRY(create_places(g, err));
    DECANT_TRY(create_parts(g, err));
    DECANT_TRY(part->family->create_activations(part, &g->kept, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the input of a block", &g->x, err));
    DECANT_TRY(decant_activation_create(backend, part->tokens, hidden, "the output of a block", &g->y, err));
    DECANT_TRY(create_head(g, err));
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
    backend->recordings->drop(backend, &g->recording);
    void *arrays[] = {g->x.data, g->y.data,  g->normed.data,       g->logits.data,    g->inverse_rms,
                      g->next,   g->history, g->step_part.cosines, g->step_part.sines};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        backend->memory->release(backend, &arrays[i]);
    if (g->kept)
        g->whole->family->destroy_activations(g->whole, &g->kept);
    if (g->keeping.actual)
        destroy_keeping(&g->keeping, g->whole->layer_count);
    decant_memory_free(g);
    *generation = NULL;
}

/* ---- passes ---- */

/* From the embeddings in x through all blocks by their forward passes; *last becomes the last token's row. */
static decant_status pass_forward(decant_generation *g, const decant_model_part *part, int64_t rows,
                                  decant_matrix *last, decant_error *err)
{
    decant_matrix x = decant_matrix_rows(g->x, 0, rows), y = decant_matrix_rows(g->y, 0, rows);
    decant_status status = DECANT_OK;
    for (int layer = 0; layer < part->layer_count; layer++) {
        g->keeping.layer = layer;
        DECANT_TRY(part->family->forward(part, &part->blocks[layer], x, y, g->kept, err));
        decant_matrix output = y;
        y = x;
        x = output;
    }
    *last = decant_matrix_rows(x, rows - 1, 1);
done:
    return status;
}

/* The same of one token, in place, by the families' steps. */
static decant_status pass_steps(decant_generation *g, decant_matrix x, decant_error *err)
{
    const decant_model_part *part = g->whole;
    decant_status status = DECANT_OK;
    for (int layer = 0; layer < part->layer_count; layer++) {
        const decant_kept_tokens tokens = {g->keeping.keys[layer], g->keeping.values[layer],
                                           g->keeping.position};
        DECANT_TRY(part->family->step(part, &part->blocks[layer], &tokens, x, g->kept, err));
    }
done:
    return status;
}

/* The most likely token behind x, the output of the last block, is the next. */
static decant_status choose_next(decant_generation *g, decant_matrix x, decant_error *err)
{
    const decant_model_part *part = g->whole;
    const decant_step_kernels *steps = part->backend->steps;
    decant_status status;
    if (part->final_norm_bias.data || part->projection_out.data) {
        DECANT_TRY(decant_model_head(part, x, g->normed, g->inverse_rms, g->logits, err));
    } else {
        decant_step_input input = {x, part->final_norm, part->config->norm_epsilon, g->normed, g->inverse_rms};
        decant_step_product head = {.weight = part->head, .y = g->logits};
        DECANT_TRY(steps->products(part->backend, &input, &head, 1, false, err));
    }
    DECANT_TRY(steps->choose(part->backend, g->logits, g->next, g->next + 1, g->history, err));
done:
    return status;
}

/* The embedding of the next token, with its learned position where the family has them. */
static decant_status embed_next(decant_generation *g, decant_matrix x, decant_error *err)
{
    const decant_model_part *part = g->whole;
    decant_backend *backend = part->backend;
    const bool projects = part->projection_in.data != NULL;
    decant_matrix embedded = projects ? decant_matrix_rows(part->projected, 0, 1) : x;
    int64_t learned = part->config->maximum_positions;
    decant_status status;
    DECANT_TRY(backend->steps->take_row(backend, part->embedding, g->next, false, embedded, err));
    if (projects)
        DECANT_TRY(backend->model->linear(backend, embedded, part->projection_in, false, x, err));
    if (part->positions.data)
        DECANT_TRY(backend->steps->take_row(
            backend, decant_matrix_rows(part->positions, part->positions.rows - learned, learned), g->next + 1,
            true, x, err));
done:
    return status;
}

/* The angles of the next token's position, for families without steps. */
static decant_status take_angles(decant_generation *g, decant_error *err)
{
    const decant_model_part *whole = g->whole, *part = &g->step_part;
    decant_backend *backend = whole->backend;
    decant_matrix table = {whole->cosines, DECANT_F32, whole->tokens, whole->config->head_dimension / 2};
    decant_matrix angles = decant_matrix_rows(table, 0, 1);
    decant_status status = DECANT_OK;
    if (!whole->cosines)
        return DECANT_OK;
    angles.data = part->cosines;
    DECANT_TRY(backend->steps->take_row(backend, table, g->next + 1, false, angles, err));
    table.data = whole->sines;
    angles.data = part->sines;
    DECANT_TRY(backend->steps->take_row(backend, table, g->next + 1, false, angles, err));
done:
    return status;
}

/* For a decant_work: the next token goes through the model, and another becomes the next. */
static decant_status issue_step(void *context, decant_error *err)
{
    decant_generation *g = context;
    decant_matrix x = decant_matrix_rows(g->x, 0, 1);
    decant_status status;
    DECANT_TRY(embed_next(g, x, err));
    if (g->whole->family->step) {
        DECANT_TRY(pass_steps(g, x, err));
    } else {
        DECANT_TRY(take_angles(g, err));
        DECANT_TRY(pass_forward(g, &g->step_part, 1, &x, err));
    }
    DECANT_TRY(choose_next(g, x, err));
done:
    return status;
}

/* What the device is to pass next. */
static decant_status set_next(decant_generation *g, int32_t token, int64_t position, decant_error *err)
{
    decant_backend *backend = g->whole->backend;
    const int32_t next[] = {token, (int32_t)position};
    return backend->memory->upload(backend, g->next, next, sizeof next, err);
}

/* What was chosen behind the last `count` tokens. */
static decant_status read_chosen(decant_generation *g, int64_t count, int32_t *chosen, decant_error *err)
{
    decant_backend *backend = g->whole->backend;
    return backend->memory->download(backend, chosen, g->history + g->count - count,
                                     (size_t)count * sizeof *chosen, err);
}

decant_status decant_generation_begin(decant_generation *generation, const int32_t *tokens, int64_t count,
                                      int32_t *next, decant_error *err)
{
    decant_generation *g = generation;
    decant_backend *backend = g->whole->backend;
    decant_matrix last;
    decant_status status;
    if (count < 1 || count > g->whole->tokens)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "a prompt of %lld tokens, there is room for %lld",
                            (long long)count, (long long)g->whole->tokens);
    g->count = 0;
    backend->recordings->drop(backend, &g->recording);          /* a longer pass may take other scratch */
    DECANT_TRY(set_next(g, tokens[count - 1], count - 1, err)); /* the choice is the last token's */
    DECANT_TRY(decant_model_embed(g->whole, tokens, decant_matrix_rows(g->x, 0, count), err));
    DECANT_TRY(pass_forward(g, &g->prompt_part, count, &last, err));
    DECANT_TRY(choose_next(g, last, err));
    g->count = count;
    DECANT_TRY(read_chosen(g, 1, next, err));
done:
    return status;
}

decant_status decant_generation_continue(decant_generation *generation, int32_t token, int64_t count,
                                         int32_t *next, decant_error *err)
{
    decant_generation *g = generation;
    decant_backend *backend = g->whole->backend;
    decant_status status;
    if (count < 1 || g->count + count > g->whole->tokens)
        return DECANT_ERROR(err, DECANT_ERROR_BUG, "there is room for %lld tokens and no more",
                            (long long)g->whole->tokens);
    DECANT_TRY(set_next(g, token, g->count, err));
    for (int64_t i = 0; i < count; i++)
        if (g->recording)
            DECANT_TRY(backend->recordings->replay(backend, g->recording, err));
        else
            DECANT_TRY(backend->recordings->record(backend, (decant_work){.issue = issue_step, .context = g},
                                                   &g->recording, err));
    g->count += count;
    DECANT_TRY(read_chosen(g, count, next, err));
done:
    return status;
}

decant_status decant_generation_step(decant_generation *generation, int32_t token, int32_t *next,
                                     decant_error *err)
{
    return decant_generation_continue(generation, token, 1, next, err);
}

void decant_generation_go_back(decant_generation *generation, int64_t count)
{
    if (count < generation->count)
        generation->count = count;
}
