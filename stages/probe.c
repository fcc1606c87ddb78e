/* See probe.h. */
#include "stages/probe.h"

#include "base/memory.h"

enum { BATCH_TOKENS = 8192 };

static const double LOGITS_SHARE = 0.25; /* of the backend's memory */

struct decant_probe {
    const decant_model_part *whole;
    const decant_token_array *tokens;
    int64_t batches;       /* of whole->sequences sequences, the last one perhaps of fewer */
    int block;             /* whose input `inputs` hold */
    decant_matrix *inputs; /* [batches], each [sequences · T, hidden]: of the original model */
    decant_matrix *ends;   /* [batches], each [sequences · T, hidden]: what leaves its last block */
    decant_matrix
        *logits; /* [all sequences], each [T, vocabulary]: of the original; data NULL where not kept */
    decant_activations *kept;
    decant_matrix work[2];                   /* [sequences · T, hidden] */
    decant_matrix normed, original, changed; /* of one sequence; original: logits when they are not kept */
    float *inverse_rms;
};

/* ---- creating ---- */

static decant_status create_matrices(decant_probe *probe, int64_t count, int64_t rows, int64_t columns,
                                     const char *what, bool with_data, decant_matrix **matrices,
                                     decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)count * sizeof **matrices, what, (void **)matrices, err));
    for (int64_t i = 0; with_data && i < count; i++)
        DECANT_TRY(decant_activation_create(probe->whole->backend, rows, columns, what, &(*matrices)[i], err));
done:
    return status;
}

static bool logits_fit(const decant_probe *probe)
{
    decant_backend *backend = probe->whole->backend;
    int64_t held, peak, device;
    backend->memory->usage(backend, &held, &peak, &device);
    double bytes = (double)probe->tokens->sequences * (double)probe->tokens->length *
                   (double)probe->whole->config->vocabulary_size *
                   (double)decant_element_bytes(backend->activation);
    return bytes < LOGITS_SHARE * (double)(device - held);
}

static decant_status create_arrays(decant_probe *probe, decant_error *err)
{
    const decant_model_part *whole = probe->whole;
    decant_backend *backend = whole->backend;
    int64_t tokens = probe->tokens->length, hidden = whole->config->hidden_size;
    int64_t vocabulary = whole->config->vocabulary_size, rows = whole->sequences * tokens;
    decant_status status;
    DECANT_TRY(whole->family->create_activations(whole, &probe->kept, err));
    DECANT_TRY(
        create_matrices(probe, probe->batches, rows, hidden, "inputs of a block", true, &probe->inputs, err));
    DECANT_TRY(create_matrices(probe, probe->batches, rows, hidden, "outputs of the last block", true,
                               &probe->ends, err));
    for (int i = 0; i < 2; i++)
        DECANT_TRY(decant_activation_create(backend, rows, hidden, "activations", &probe->work[i], err));
    DECANT_TRY(decant_activation_create(backend, tokens, hidden, "the final norm", &probe->normed, err));
    DECANT_TRY(decant_activation_create(backend, tokens, vocabulary, "logits", &probe->original, err));
    DECANT_TRY(decant_activation_create(backend, tokens, vocabulary, "logits", &probe->changed, err));
    DECANT_TRY(backend->memory->allocate(backend, (size_t)tokens * sizeof(float), "the final norm",
                                         (void **)&probe->inverse_rms, err));
    DECANT_TRY(create_matrices(probe, probe->tokens->sequences, tokens, vocabulary, "logits", logits_fit(probe),
                               &probe->logits, err));
done:
    return status;
}

/* The rows that a batch fills. */
static int64_t batch_rows(const decant_probe *probe, int64_t batch)
{
    int64_t left = probe->tokens->sequences - batch * probe->whole->sequences;
    return (left < probe->whole->sequences ? left : probe->whole->sequences) * probe->tokens->length;
}

static decant_status embed(decant_probe *probe, decant_error *err)
{
    decant_status status = DECANT_OK;
    probe->block = 0;
    for (int64_t i = 0; status == DECANT_OK && i < probe->batches; i++)
        status = decant_model_embed(probe->whole,
                                    decant_token_array_sequence(probe->tokens, i * probe->whole->sequences),
                                    decant_matrix_rows(probe->inputs[i], 0, batch_rows(probe, i)), err);
    return status;
}

static decant_status pass_block(decant_probe *probe, const decant_block *block, int64_t batch, decant_matrix x,
                                decant_matrix y, decant_error *err)
{
    int64_t rows = batch_rows(probe, batch);
    return probe->whole->family->forward(probe->whole, block, decant_matrix_rows(x, 0, rows),
                                         decant_matrix_rows(y, 0, rows), probe->kept, err);
}

/* The logits of one sequence of a batch, counted from its first. */
static decant_status compute_logits(decant_probe *probe, decant_matrix batch, int64_t place,
                                    decant_matrix logits, decant_error *err)
{
    int64_t tokens = probe->tokens->length;
    return decant_model_head(probe->whole, decant_matrix_rows(batch, place * tokens, tokens), probe->normed,
                             probe->inverse_rms, logits, err);
}

static void swap(decant_matrix *a, decant_matrix *b)
{
    decant_matrix kept = *a;
    *a = *b;
    *b = kept;
}

/* The original model's output and, where they are kept, its logits. */
static decant_status run_original(decant_probe *probe, decant_error *err)
{
    const decant_model_part *whole = probe->whole;
    decant_status status;
    DECANT_TRY(embed(probe, err));
    for (int64_t i = 0; i < probe->batches; i++) {
        DECANT_TRY(pass_block(probe, &whole->blocks[0], i, probe->inputs[i], probe->ends[i], err));
        for (int block = 1; block < whole->layer_count; block++) {
            DECANT_TRY(pass_block(probe, &whole->blocks[block], i, probe->ends[i], probe->work[0], err));
            swap(&probe->ends[i], &probe->work[0]);
        }
    }
    for (int64_t s = 0; s < probe->tokens->sequences; s++)
        if (probe->logits[s].data)
            DECANT_TRY(compute_logits(probe, probe->ends[s / whole->sequences], s % whole->sequences,
                                      probe->logits[s], err));
done:
    return status;
}

int64_t decant_probe_batch(int64_t sequences, int64_t tokens)
{
    int64_t batch = BATCH_TOKENS / tokens;
    batch = batch < 1 ? 1 : batch;
    return batch < sequences ? batch : sequences;
}

decant_status decant_probe_create(const decant_model_part *whole, const decant_token_array *tokens,
                                  decant_probe **probe, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof **probe, "the probe", (void **)probe, err));
    (*probe)->whole = whole;
    (*probe)->tokens = tokens;
    (*probe)->batches = (tokens->sequences + whole->sequences - 1) / whole->sequences;
    DECANT_TRY(create_arrays(*probe, err));
    DECANT_TRY(run_original(*probe, err));
done:
    if (status != DECANT_OK)
        decant_probe_destroy(probe);
    return status;
}

void decant_probe_destroy(decant_probe **probe)
{
    decant_probe *p = *probe;
    if (!p)
        return;
    decant_backend *backend = p->whole->backend;
    decant_matrix *lists[] = {p->inputs, p->ends, p->logits};
    int64_t counts[] = {p->batches, p->batches, p->tokens->sequences};
    decant_matrix *matrices[] = {&p->work[0], &p->work[1], &p->normed, &p->original, &p->changed};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        for (int64_t j = 0; lists[i] && j < counts[i]; j++)
            backend->memory->release(backend, &lists[i][j].data);
        decant_memory_free(lists[i]);
    }
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++)
        backend->memory->release(backend, &matrices[i]->data);
    backend->memory->release(backend, (void **)&p->inverse_rms);
    if (p->kept)
        p->whole->family->destroy_activations(p->whole, &p->kept);
    decant_memory_free(p);
    *probe = NULL;
}

/* ---- measuring ---- */

/* Brings `inputs` to the block. */
static decant_status move_to(decant_probe *probe, int block, decant_error *err)
{
    decant_status status;
    if (block < probe->block)
        DECANT_TRY(embed(probe, err));
    for (; probe->block < block; probe->block++)
        for (int64_t i = 0; i < probe->batches; i++) {
            DECANT_TRY(pass_block(probe, &probe->whole->blocks[probe->block], i, probe->inputs[i],
                                  probe->work[0], err));
            swap(&probe->inputs[i], &probe->work[0]);
        }
    status = DECANT_OK;
done:
    return status;
}

/* The changed model's output of a batch, in work[0]. */
static decant_status run_changed(decant_probe *probe, const decant_block *changed, int64_t batch,
                                 decant_error *err)
{
    const decant_model_part *whole = probe->whole;
    decant_status status;
    DECANT_TRY(pass_block(probe, changed, batch, probe->inputs[batch], probe->work[0], err));
    for (int block = probe->block + 1; block < whole->layer_count; block++) {
        DECANT_TRY(pass_block(probe, &whole->blocks[block], batch, probe->work[0], probe->work[1], err));
        swap(&probe->work[0], &probe->work[1]);
    }
done:
    return status;
}

/* Adds the sequence at a place of the batch in work[0]. */
static decant_status compare_sequence(decant_probe *probe, int64_t batch, int64_t place,
                                      decant_comparison *sums, decant_error *err)
{
    decant_backend *backend = probe->whole->backend;
    int64_t sequence = batch * probe->whole->sequences + place;
    bool is_kept = probe->logits[sequence].data != NULL;
    decant_matrix original = is_kept ? probe->logits[sequence] : probe->original;
    decant_comparison found = {.targets = probe->tokens->length - 1};
    decant_status status;
    DECANT_TRY(compute_logits(probe, probe->work[0], place, probe->changed, err));
    if (!is_kept)
        DECANT_TRY(compute_logits(probe, probe->ends[batch], place, original, err));
    DECANT_TRY(backend->validate->compare(backend, original, probe->changed,
                                          decant_token_array_sequence(probe->tokens, sequence), &found, err));
    sums->loss_original += found.loss_original;
    sums->loss_quantized += found.loss_quantized;
    sums->divergence += found.divergence;
    sums->same_top += found.same_top;
    sums->targets += found.targets;
done:
    return status;
}

decant_status decant_probe_measure(decant_probe *probe, int block, int index, const decant_linear *changed,
                                   decant_comparison *sums, decant_error *err)
{
    decant_block changed_block = probe->whole->blocks[block];
    decant_status status;
    changed_block.linears[index] = *changed;
    *sums = (decant_comparison){0};
    DECANT_TRY(move_to(probe, block, err));
    for (int64_t i = 0; i < probe->batches; i++) {
        DECANT_TRY(run_changed(probe, &changed_block, i, err));
        for (int64_t place = 0; place < batch_rows(probe, i) / probe->tokens->length; place++)
            DECANT_TRY(compare_sequence(probe, i, place, sums, err));
    }
done:
    return status;
}
