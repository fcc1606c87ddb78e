/* See validate.h. */
#include "stages/validate.h"

#include "base/log.h"
#include "base/memory.h"

#include <math.h>

enum { ORIGINAL, QUANTIZED, MODELS };

struct decant_validation {
    const decant_model_part *parts[MODELS];  /* parts[ORIGINAL] may be NULL */
    decant_activations *kept;                /* a forward pass needs somewhere to keep; never looked at here */
    decant_matrix activations[MODELS], next; /* next: what a block writes, swapped with its input */
    decant_matrix normed, logits[MODELS];
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
                                       decant_validation **validation, decant_error *err)
{
    decant_backend *backend = quantized->backend;
    int64_t tokens = quantized->tokens, hidden = quantized->config->hidden_size;
    int64_t rows = quantized->sequences * tokens;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **validation, "validation", (void **)validation, err));
    decant_validation *v = *validation;
    v->parts[ORIGINAL] = original;
    v->parts[QUANTIZED] = quantized;
    DECANT_TRY(quantized->family->create_activations(quantized, &v->kept, err));
    DECANT_TRY(decant_activation_create(backend, rows, hidden, "the output of a block", &v->next, err));
    for (int model = original ? ORIGINAL : QUANTIZED; model < MODELS; model++) {
        DECANT_TRY(decant_activation_create(backend, rows, hidden, "the input of a block",
                                            &v->activations[model], err));
        if (quantized->head.data)
            DECANT_TRY(decant_activation_create(backend, tokens, quantized->config->vocabulary_size, "logits",
                                                &v->logits[model], err));
    }
    if (quantized->head.data) {
        DECANT_TRY(decant_activation_create(backend, tokens, hidden, "the final norm", &v->normed, err));
        DECANT_TRY(backend->memory->allocate(backend, (size_t)tokens * sizeof(float), "the final norm",
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

static decant_matrix rows_of(const decant_validation *v, decant_matrix matrix, int64_t sequences)
{
    return decant_matrix_rows(matrix, 0, matrix.data ? sequences * v->parts[QUANTIZED]->tokens : 0);
}

decant_matrix decant_validation_activation(decant_validation *validation, int model, int64_t sequences)
{
    return rows_of(validation, validation->activations[model], sequences);
}

static decant_status pass_blocks(decant_validation *v, int model, const int32_t *tokens, int64_t sequences,
                                 decant_error *err)
{
    const decant_model_part *part = v->parts[model];
    decant_status status = DECANT_OK;
    if (part->embedding.data)
        DECANT_TRY(decant_model_embed(part, tokens, decant_validation_activation(v, model, sequences), err));
    for (int block = 0; block < part->layer_count; block++) {
        DECANT_TRY(part->family->forward(part, &part->blocks[block],
                                         decant_validation_activation(v, model, sequences),
                                         rows_of(v, v->next, sequences), v->kept, err));
        decant_matrix output = v->next;
        v->next = v->activations[model];
        v->activations[model] = output;
    }
    DECANT_TRY(part->backend->memory->synchronize(part->backend, err)); /* so that the clock tells the truth */
done:
    return status;
}

/* The logits of one of the windows that passed the blocks. */
static decant_status pass_head(decant_validation *v, int model, int64_t window, decant_error *err)
{
    const decant_model_part *part = v->parts[model];
    decant_matrix x = decant_matrix_rows(v->activations[model], window * part->tokens, part->tokens);
    decant_status status;
    DECANT_TRY(decant_model_head(part, x, v->normed, v->inverse_rms, v->logits[model], err));
    DECANT_TRY(part->backend->memory->synchronize(part->backend, err)); /* the same */
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
static decant_status compare_windows(decant_validation *v, const int32_t *tokens, int64_t sequences,
                                     double *seconds[MODELS], decant_comparison *comparisons, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int64_t window = 0; window < sequences; window++) {
        for (int model = ORIGINAL; model < MODELS; model++) {
            double start_s = decant_clock_s();
            if (v->parts[model])
                DECANT_TRY(pass_head(v, model, window, err));
            *seconds[model] += decant_clock_s() - start_s;
        }
        DECANT_TRY(compare(v, tokens + window * v->parts[QUANTIZED]->tokens, &comparisons[window], err));
    }
done:
    return status;
}

decant_status decant_validation_forward(decant_validation *validation, const int32_t *tokens, int64_t sequences,
                                        decant_comparison *comparisons, decant_validation_result *result,
                                        decant_error *err)
{
    double *seconds[MODELS] = {&result->original_s, &result->quantized_s};
    decant_status status;
    for (int model = ORIGINAL; model < MODELS; model++) {
        double start_s = decant_clock_s();
        if (validation->parts[model])
            DECANT_TRY(pass_blocks(validation, model, tokens, sequences, err));
        *seconds[model] += decant_clock_s() - start_s;
    }
    if (validation->parts[QUANTIZED]->head.data)
        DECANT_TRY(compare_windows(validation, tokens, sequences, seconds, comparisons, err));
    status = DECANT_OK;
done:
    return status;
}
