/* See paired_models.h. */
#include "pipeline/paired_models.h"

#include "pipeline/channel.h"
#include "stages/boundaries.h"

enum {
    TAG_VALIDATE = 3,
    ORIGINAL = DECANT_VALIDATION_ORIGINAL,
    QUANTIZED = DECANT_VALIDATION_QUANTIZED,
    MODELS = DECANT_VALIDATION_MODELS
};

/* ---- the models ---- */

/* Outlines, whose blocks come and go. */
static decant_status outline_parts(decant_paired_models *models, int64_t rows, decant_error *err)
{
    decant_job *job = models->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_status status = DECANT_OK;
    for (int model = job->model ? ORIGINAL : QUANTIZED; model < MODELS && status == DECANT_OK; model++)
        status = decant_model_part_outline(job->backend, &job->config, layers.first, layers.count, rows, 1,
                                           &models->parts[model], err);
    return status;
}

/* The original's weights travel to the backend while the container is read. */
static decant_status place_parts(decant_paired_models *models, int64_t rows, decant_error *err)
{
    decant_job *job = models->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_model_part *original = &models->parts[ORIGINAL], *quantized = &models->parts[QUANTIZED];
    decant_status status;
    if (job->model)
        DECANT_TRY(decant_model_part_begin(job->backend, &job->config, &models->sources[ORIGINAL], layers.first,
                                           layers.count, rows, 1, original, err));
    DECANT_TRY(decant_model_part_load(job->backend, &job->config, &models->sources[QUANTIZED], layers.first,
                                      layers.count, rows, 1, quantized, err));
    if (job->model)
        DECANT_TRY(decant_model_part_finish(original, &models->sources[ORIGINAL], err));
done:
    return status;
}

static decant_status open_local(decant_paired_models *models, const char *path, int64_t rows, decant_error *err)
{
    decant_job *job = models->job;
    decant_status status;
    DECANT_TRY(decant_container_open(path, &models->container, err));
    if (decant_job_layers(job).count == 0)
        goto done;
    DECANT_TRY(decant_container_source_create(models->container, &models->source, err));
    models->sources[QUANTIZED] = decant_source_of_container(models->source);
    if (job->model)
        models->sources[ORIGINAL] = decant_source_of_model(job->model);
    DECANT_TRY(models->streamed ? outline_parts(models, rows, err) : place_parts(models, rows, err));
done:
    return status;
}

decant_status decant_paired_models_open(decant_job *job, const char *path, int64_t rows, bool streamed,
                                        decant_paired_models *models, decant_error *err)
{
    *models = (decant_paired_models){.job = job, .streamed = streamed};
    return decant_ranks_agree(job->ranks, open_local(models, path, rows, err), err);
}

void decant_paired_models_close(decant_paired_models *models)
{
    for (int model = 0; model < MODELS; model++)
        decant_model_part_unload(&models->parts[model]);
    decant_container_source_destroy(&models->source);
    decant_container_close(&models->container);
}

/* ---- a run of passages through them ---- */

typedef struct paired_run {
    decant_paired_models *models;
    const decant_passages *passages;
    double *seconds;
    int64_t first, count; /* this replica's share of the passages */
    decant_validation *validation;
    decant_boundaries *boundaries; /* streamed: [MODELS, count], what enters the next layer */
    decant_channels channels;
    decant_channel *from_previous, *to_next; /* borrowed from them */
    decant_standing standing;
} paired_run;

/* For a decant_interlude. */
static void advance_messages(void *run)
{
    decant_channels_advance(&((paired_run *)run)->channels);
}

/* Bytes of one model's activations of the largest passage. */
static size_t largest_bytes(const paired_run *run)
{
    const decant_job *job = run->models->job;
    return decant_element_bytes(job->backend->activation) * (size_t)run->passages->largest *
           (size_t)job->config.hidden_size;
}

/* Both parts, as far as there are any, take sequences of this length from now on. */
static decant_status shape_parts(decant_paired_models *models, int64_t length, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int model = 0; model < MODELS && status == DECANT_OK; model++)
        if (models->parts[model].layer_count > 0)
            status = decant_model_part_reshape(&models->parts[model], length,
                                               models->parts[model].rows / length, err);
    return status;
}

static decant_status prepare(paired_run *run, decant_error *err)
{
    decant_paired_models *models = run->models;
    decant_job *job = models->job;
    const char *scratch = job->options->scratch[0] ? job->options->scratch : NULL;
    decant_interlude interlude = {.call = advance_messages, .context = run};
    decant_status status;
    DECANT_TRY(shape_parts(models, models->parts[QUANTIZED].rows, err)); /* room for all that they may take */
    DECANT_TRY(decant_validation_create(job->model ? &models->parts[ORIGINAL] : NULL, &models->parts[QUANTIZED],
                                        run->passages->head_rows, interlude, &run->validation, err));
    if (models->streamed)
        DECANT_TRY(decant_boundaries_create(job->backend, MODELS * run->count, largest_bytes(run), 0, scratch,
                                            &run->boundaries, err));
done:
    return status;
}

static decant_status open_channels(paired_run *run, decant_error *err)
{
    decant_job *job = run->models->job;
    int stage = job->stage;
    size_t bytes = largest_bytes(run) * (job->model ? MODELS : 1);
    decant_status status = DECANT_OK;
    if (stage > 0)
        DECANT_TRY(decant_channel_open(&run->channels, decant_job_rank(job, stage - 1, job->replica),
                                       TAG_VALIDATE, bytes, run->count, true, &run->from_previous, err));
    if (stage < job->stages - 1)
        DECANT_TRY(decant_channel_open(&run->channels, decant_job_rank(job, stage + 1, job->replica),
                                       TAG_VALIDATE, bytes, run->count, false, &run->to_next, err));
done:
    return status;
}

static decant_passage passage_at(const paired_run *run, int64_t index)
{
    return run->passages->at(run->passages->context, run->first + index);
}

static void both_activations(paired_run *run, int64_t index, decant_matrix activations[MODELS])
{
    decant_passage passage = passage_at(run, index);
    for (int model = 0; model < MODELS; model++)
        activations[model] =
            decant_validation_activation(run->validation, model, passage.sequences * passage.length);
}

static void receive_passage(paired_run *run, int64_t index)
{
    decant_matrix activations[MODELS];
    decant_error error;
    if (!run->from_previous)
        return;
    both_activations(run, index, activations);
    decant_standing_note(
        &run->standing,
        decant_channel_receive(run->from_previous, activations, MODELS, &run->standing.withdrawn, &error),
        &error);
}

static void send_passage(paired_run *run, int64_t index)
{
    decant_matrix activations[MODELS];
    decant_error error;
    if (!run->to_next)
        return;
    both_activations(run, index, activations);
    decant_standing_note(&run->standing,
                         decant_channel_send(run->to_next, activations, MODELS,
                                             !decant_standing_computes(&run->standing), &error),
                         &error);
}

/* Some blocks of both models, and what comes after the last one. */
static decant_status pass_blocks(paired_run *run, int first_block, int block_count, int64_t index,
                                 decant_error *err)
{
    decant_passage passage = passage_at(run, index);
    decant_status status;
    DECANT_TRY(shape_parts(run->models, passage.length, err));
    DECANT_TRY(decant_validation_pass_blocks(run->validation, first_block, block_count, passage.tokens,
                                             passage.sequences * passage.length, run->seconds, err));
    if (run->models->parts[QUANTIZED].head.data)
        DECANT_TRY(run->passages->measure(run->passages->context, run->validation, run->first + index,
                                          run->seconds, err));
done:
    return status;
}

/* ---- all layers in place ---- */

static void stream_passages(paired_run *run)
{
    decant_error error;
    for (int64_t i = 0; i < run->count; i++) {
        receive_passage(run, i);
        if (decant_standing_computes(&run->standing))
            decant_standing_note(&run->standing,
                                 pass_blocks(run, 0, run->models->parts[QUANTIZED].layer_count, i, &error),
                                 &error);
        send_passage(run, i);
        decant_log_progress(run->models->job->log, i + 1, run->count, "micro-batches");
    }
}

/* ---- one layer after the other ---- */

static bool is_last(const paired_run *run, int block)
{
    return block == run->models->parts[QUANTIZED].layer_count - 1;
}

static decant_status enter_block(paired_run *run, int block, decant_error *err)
{
    decant_status status = DECANT_OK;
    for (int model = 0; model < MODELS; model++) {
        decant_model_part *part = &run->models->parts[model];
        const decant_weight_source *source = &run->models->sources[model];
        if (part->layer_count == 0)
            continue;
        DECANT_TRY(decant_model_block_begin(part, source, block, err));
        DECANT_TRY(decant_model_block_finish(part, block, err));
        if (block == 0)
            DECANT_TRY(decant_model_embedding_place(part, source, err));
        if (is_last(run, block))
            DECANT_TRY(decant_model_head_place(part, source, err));
    }
done:
    return status;
}

static void leave_block(paired_run *run, int block)
{
    for (int model = 0; model < MODELS; model++) {
        decant_model_part *part = &run->models->parts[model];
        if (part->layer_count == 0)
            continue;
        decant_model_block_leave(part, block);
        decant_model_block_dismiss(part, &run->models->sources[model], block);
        decant_model_ends_leave(part);
    }
}

/* A passage through one layer of both models; it waits outside the device before and after. */
static decant_status pass_layer(paired_run *run, int block, int64_t index, decant_error *err)
{
    decant_matrix activations[MODELS];
    decant_status status = DECANT_OK;
    both_activations(run, index, activations);
    for (int model = 0; block > 0 && model < MODELS; model++)
        if (activations[model].data)
            DECANT_TRY(
                decant_boundaries_load(run->boundaries, MODELS * index + model, activations[model], err));
    DECANT_TRY(pass_blocks(run, block, 1, index, err));
    both_activations(run, index, activations);
    for (int model = 0; !is_last(run, block) && model < MODELS; model++)
        if (activations[model].data)
            DECANT_TRY(
                decant_boundaries_begin_save(run->boundaries, MODELS * index + model, activations[model], err));
    DECANT_TRY(decant_boundaries_finish_saves(run->boundaries, err));
done:
    return status;
}

static void stream_layers(paired_run *run)
{
    int layers = run->models->parts[QUANTIZED].layer_count;
    decant_error error;
    for (int block = 0; block < layers; block++) {
        if (decant_standing_computes(&run->standing))
            decant_standing_note(&run->standing, enter_block(run, block, &error), &error);
        for (int64_t i = 0; i < run->count; i++) {
            if (block == 0)
                receive_passage(run, i);
            if (decant_standing_computes(&run->standing))
                decant_standing_note(&run->standing, pass_layer(run, block, i, &error), &error);
            if (is_last(run, block))
                send_passage(run, i);
        }
        leave_block(run, block);
        decant_log_progress(run->models->job->log, block + 1, layers, "layers");
    }
}

static void dismantle(paired_run *run)
{
    decant_channels_close(&run->channels);
    decant_validation_destroy(&run->validation);
    decant_boundaries_destroy(&run->boundaries);
}

decant_status decant_paired_models_pass(decant_paired_models *models, const decant_passages *passages,
                                        double *seconds, decant_error *err)
{
    decant_job *job = models->job;
    paired_run run = {
        .models = models,
        .passages = passages,
        .seconds = seconds,
        .channels = {.ranks = job->ranks, .backend = job->backend},
    };
    bool is_active = decant_job_layers(job).count > 0;
    decant_status status;
    decant_schedule_share(passages->count, job->grid.replicas, job->replica, &run.first, &run.count);
    DECANT_TRY(decant_ranks_agree(job->ranks, is_active ? prepare(&run, err) : DECANT_OK, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, is_active ? open_channels(&run, err) : DECANT_OK, err));
    if (is_active)
        (models->streamed ? stream_layers : stream_passages)(&run);
    decant_channels_flush(&run.channels);
    decant_error unread;
    decant_standing_note(&run.standing, decant_safetensors_check(job->model, &unread), &unread);
    *err = run.standing.error;
    DECANT_TRY(decant_ranks_agree(job->ranks, run.standing.failed, err));
done:
    dismantle(&run);
    return status;
}
