/* See validate.h. */
#include "stages/validate.h"

#include "base/log.h"
#include "base/memory.h"

#include <math.h>

enum {
    ORIGINAL = DECANT_VALIDATION_ORIGINAL,
    QUANTIZED = DECANT_VALIDATION_QUANTIZED,
    MODELS = DECANT_VALIDATION_MODELS
};

struct decant_validation {
    const decant_model_part *parts[MODELS]; /* parts[ORIGINAL] may be NULL */
    decant_interlude interlude;
    decant_activations *kept;                /* a forward pass needs somewhere to keep; never looked at here */
    decant_matrix activations[MODELS], next; /* next: what a block writes, swapped with its input */
    decant_matrix normed, logits[MODELS];    /* logits: made when windows are first compared */
    float *inverse_rms;
};

double decant_validation_perplexity_original(const decant_validation_result *result)
{
    return exp(result->sums.loss_original / (double)result->sums.targets);
}

double decant_validation_perplexity_quantized(const decant_validation_result *result)
{
    return exp(result->sums.loss_quantized / (double)result->sums.targets);
}

decant_status decant_validation_create(const decant_model_part *original, const decant_model_part *quantized,
                                       int64_t head_rows, decant_interlude interlude,
                                       decant_validation **validation, decant_error *err)
{
    decant_backend *backend = quantized->backend;
    int64_t rows = quantized->rows, hidden = quantized->config->hidden_size;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **validation, "validation", (void **)validation, err));
    decant_validation *v = *validation;
    v->parts[ORIGINAL] = original;
    v->parts[QUANTIZED] = quantized;
    v->interlude = interlude;
    DECANT_TRY(quantized->family->create_activations(quantized, &v->kept, err));
    DECANT_TRY(decant_activation_create(backend, rows, hidden, "the output of a block", &v->next, err));
    for (int model = original ? ORIGINAL : QUANTIZED; model < MODELS; model++)
        DECANT_TRY(decant_activation_create(backend, rows, hidden, "the input of a block",
                                            &v->activations[model], err));
    if (decant_model_part_ends(quantized)) {
        DECANT_TRY(decant_activation_create(backend, head_rows, hidden, "the final norm", &v->normed, err));
        DECANT_TRY(backend->memory->allocate(backend, (size_t)head_rows * sizeof(float), "the final norm",
                                             (void **)&v->inverse_rms, err));
    }
done:
    if (status != DECANT_OK)
        decant_validation_destroy(validation);
    return status;
}

void decant_validation_destroy(decant_validation **validation)
{
    if (!*validation)
        return;
    decant_validation *v = *validation;
    const decant_model_part *part = v->parts[QUANTIZED];
    decant_backend *backend = part->backend;
    if (v->kept)
        part->family->destroy_activations(part, &v->kept);
    decant_matrix *matrices[] = {&v->activations[ORIGINAL], &v->activations[QUANTIZED], &v->next, &v->normed,
                                 &v->logits[ORIGINAL],      &v->logits[QUANTIZED]};
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        backend->memory->release(backend, &matrices[i]->data);
    backend->memory->release(backend, (void **)&v->inverse_rms);
    decant_memory_free(v);
    *validation = NULL;
}

static decant_matrix rows_of(decant_matrix matrix, int64_t rows)
{
    return decant_matrix_rows(matrix, 0, matrix.data ? rows : 0);
}

decant_matrix decant_validation_activation(decant_validation *validation, int model, int64_t rows)
{
    return rows_of(validation->activations[model], rows);
}

static decant_status pass_blocks(decant_validation *v, int model, int first, int count, const int32_t *tokens,
                                 int64_t rows, decant_error *err)
{
    const decant_model_part *part = v->parts[model];
    decant_status status = DECANT_OK;
    if (first == 0 && part->embedding.data)
        DECANT_TRY(decant_model_embed(part, tokens, decant_validation_activation(v, model, rows), err));
    for (int block = first; block < first + count; block++) {
        DECANT_TRY(part->family->forward(part, &part->blocks[block],
                                         decant_validation_activation(v, model, rows), rows_of(v->next, rows),
                                         v->kept, err));
        decant_matrix output = v->next;
        v->next = v->activations[model];
        v->activations[model] = output;
        decant_interlude_play(v->interlude);
    }
    DECANT_TRY(part->backend->memory->synchronize(part->backend, err)); /* so that the clock tells the truth */
done:
    return status;
}

decant_status decant_validation_pass_blocks(decant_validation *validation, int first_block, int block_count,
                                            const int32_t *tokens, int64_t rows, double *seconds,
                                            decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int model = ORIGINAL; model < MODELS; model++) {
        double start_s = decant_clock_s();
        if (validation->parts[model])
            DECANT_TRY(pass_blocks(validation, model, first_block, block_count, tokens, rows, err));
        seconds[model] += decant_clock_s() - start_s;
    }
done:
    return status;
}

decant_status decant_validation_head(decant_validation *validation, int model, int64_t first_row,
                                     decant_matrix logits, double *seconds, decant_error *err)
{
    decant_validation *v = validation;
    const decant_model_part *part = v->parts[model];
    decant_matrix x = decant_matrix_rows(v->activations[model], first_row, logits.rows);
    double start_s = decant_clock_s();
    decant_status status;
    DECANT_TRY(decant_model_head(part, x, rows_of(v->normed, logits.rows), v->inverse_rms, logits, err));
    DECANT_TRY(part->backend->memory->synchronize(part->backend, err)); /* the same */
    seconds[model] += decant_clock_s() - start_s;
done:
    return status;
}

static decant_status compare(decant_validation *v, const int32_t *tokens, decant_comparison *window,
                             decant_error *err)
{
    decant_backend *backend = v->parts[QUANTIZED]->backend;
    int64_t targets = v->logits[QUANTIZED].rows - 1;
    decant_status status;
    *window = (decant_comparison){.targets = targets};
    if (v->parts[ORIGINAL]) {
        DECANT_TRY(backend->validate->compare(backend, v->logits[ORIGINAL], v->logits[QUANTIZED], tokens,
                                              window, err));
        window->targets = targets;
    } else {
        DECANT_TRY(backend->model->cross_entropy(backend, v->logits[QUANTIZED], tokens, false,
                                                 &window->loss_quantized, err));
        window->loss_quantized *= (double)targets;
    }
done:
    return status;
}

void decant_validation_sum(const decant_comparison *comparisons, int64_t windows,
                           decant_validation_result *result)
{
    result->windows = windows;
    result->sums = (decant_comparison){0};
    for (int64_t i = 0; i < windows; i++) {
        result->sums.loss_original += comparisons[i].loss_original;
        result->sums.loss_quantized += comparisons[i].loss_quantized;
        result->sums.divergence += comparisons[i].divergence;
        result->sums.same_top += comparisons[i].same_top;
        result->sums.targets += comparisons[i].targets;
    }
}

/* Logits take the room of one window, so the head takes the windows one by one. */
static decant_status make_logits(decant_validation *v, decant_error *err)
{
    const decant_model_part *part = v->parts[QUANTIZED];
    decant_status status = DECANT_OK;
    for (int model = ORIGINAL; model < MODELS; model++)
        if (v->parts[model] && !v->logits[model].data)
            DECANT_TRY(decant_activation_create(part->backend, part->tokens, part->config->vocabulary_size,
                                                "logits", &v->logits[model], err));
done:
    return status;
}

decant_status decant_validation_compare(decant_validation *validation, const int32_t *tokens, int64_t sequences,
                                        decant_comparison *comparisons, double *seconds, decant_error *err)
{
    decant_validation *v = validation;
    int64_t length = v->parts[QUANTIZED]->tokens;
    decant_status status;
    DECANT_TRY(make_logits(v, err));
    for (int64_t window = 0; window < sequences; window++) {
        for (int model = ORIGINAL; model < MODELS; model++)
            if (v->parts[model])
                DECANT_TRY(decant_validation_head(v, model, window * length, v->logits[model], seconds, err));
        DECANT_TRY(compare(v, tokens + window * length, &comparisons[window], err));
    }
done:
    return status;
}
