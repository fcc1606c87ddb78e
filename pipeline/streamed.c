/* See streamed.h. What happens inside a rank is stages/streamed_calibration.h's. */
#include "pipeline/streamed.h"

#include "pipeline/interruption.h"
#include "pipeline/job_work.h"

static decant_status create_calibration(decant_calibration_run *run, const char *scratch,
                                        decant_streamed *streamed, decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_weight_source source = decant_source_of_model(job->model);
    decant_status status;
    DECANT_TRY(decant_fisher_sums_list(job->backend, &job->config, job->family, job->options->fisher,
                                       decant_options_hessian_groups(job->options), layers.first, layers.count,
                                       run->fisher, err));
    DECANT_TRY(decant_model_part_outline(job->backend, &job->config, layers.first, layers.count,
                                         run->tokens->length, run->micro_batch, &streamed->part, err));
    DECANT_TRY(decant_streamed_calibration_create(&streamed->part, &source, run->fisher, run->batches,
                                                  job->plan.rank[job->ranks->rank].share.boundaries_on_device,
                                                  scratch, &streamed->calibration, err));
done:
    return status;
}

decant_status decant_streamed_create(decant_calibration_run *run, const char *scratch,
                                     const decant_block_sink *sink, decant_streamed *streamed,
                                     decant_error *err)
{
    const decant_job *job = run->job;
    decant_layer_range own = decant_job_layers(job);
    decant_status status = DECANT_OK;
    streamed->sink = sink;
    if (own.count > 0)
        DECANT_TRY(create_calibration(run, scratch, streamed, err));
    DECANT_TRY(decant_streamed_checkpoint_open(run, streamed->calibration, sink, &streamed->checkpoint, err));
    DECANT_TRY(decant_streamed_checkpoint_restore(&streamed->checkpoint, err));
    streamed->state = streamed->checkpoint.saved;
    streamed->has_input = own.first < streamed->state.boundaries;
    streamed->has_gradient =
        streamed->state.left < job->config.layers && streamed->state.left == own.first + own.count;
    decant_interruption_defer();
done:
    return status;
}

void decant_streamed_free(decant_streamed *streamed)
{
    decant_streamed_checkpoint_close(&streamed->checkpoint);
    decant_streamed_calibration_destroy(&streamed->calibration);
    decant_model_part_unload(&streamed->part);
}

/* ---- one block ---- */

static void forward_batch(decant_calibration_run *run, decant_streamed *streamed, int block, int64_t index)
{
    decant_streamed_calibration *calibration = streamed->calibration;
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_error error;
    if (block == 0 && !streamed->has_input)
        decant_calibration_run_receive(run, run->from_previous,
                                       decant_streamed_calibration_input(calibration, index, batch.count));
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_streamed_calibration_forward(calibration, block, index,
                                                decant_token_array_sequence(run->tokens, batch.first),
                                                batch.count, run->losses + batch.first, &error),
            &error);
    if (block == decant_job_layers(run->job).count - 1)
        decant_calibration_run_send(run, run->to_next,
                                    decant_streamed_calibration_output(calibration, index, batch.count));
}

static void backward_batch(decant_calibration_run *run, decant_streamed *streamed, int block, int64_t index)
{
    decant_streamed_calibration *calibration = streamed->calibration;
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_matrix gradient = decant_streamed_calibration_output(calibration, index, batch.count);
    decant_error error;
    if (block == decant_job_layers(run->job).count - 1 && !streamed->has_gradient)
        decant_calibration_run_receive(run, run->from_next, gradient);
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_streamed_calibration_backward(calibration, block, index, batch.count, &error), &error);
    if (block == 0)
        decant_calibration_run_send(run, run->to_previous, gradient);
}

/* A signal stops this rank, and through its messages the others. */
static void heed_signal(decant_calibration_run *run)
{
    decant_error error;
    if (decant_interruption_came() && decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             DECANT_ERROR(&error, DECANT_INTERRUPTED, "while micro-batches passed a layer"),
                             &error);
}

/* All micro-batches through one block. A rank that does not compute any more still passes on the messages. */
static void pass_block(decant_calibration_run *run, decant_streamed *streamed, decant_pass pass, int block)
{
    bool is_forward = pass == DECANT_PASS_FORWARD;
    double start_s = decant_clock_s(), waited_s = run->channels.waited_s;
    decant_error error;
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             decant_streamed_calibration_enter(streamed->calibration, pass, block, &error),
                             &error);
    for (int64_t i = 0; i < run->batches; i++) {
        heed_signal(run);
        (is_forward ? forward_batch : backward_batch)(run, streamed, block, i);
        decant_calibration_run_advance(run);
    }
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             decant_streamed_calibration_leave(streamed->calibration, pass, block, &error),
                             &error);
    *(is_forward ? &run->times.forward_s : &run->times.backward_s) +=
        decant_clock_s() - start_s - (run->channels.waited_s - waited_s);
    decant_channels_flush(&run->channels);
}

/* What enters this rank's first block, where it need not go forward again. */
static void receive_input(decant_calibration_run *run, decant_streamed *streamed)
{
    decant_error error;
    for (int64_t i = 0; i < run->batches; i++) {
        decant_micro_batch batch = decant_calibration_run_batch(run, i);
        heed_signal(run);
        decant_calibration_run_receive(
            run, run->from_previous, decant_streamed_calibration_input(streamed->calibration, i, batch.count));
        if (decant_standing_computes(&run->standing))
            decant_standing_note(
                &run->standing,
                decant_streamed_calibration_keep_input(streamed->calibration, i, batch.count, &error), &error);
        decant_calibration_run_advance(run);
    }
}

/* ---- rounds ---- */

/* Of this rank's blocks the one that is among layers [first, end) of a round; −1: none. */
static int block_in(const decant_job *job, int first, int end)
{
    decant_layer_range own = decant_job_layers(job);
    int layer = own.first > first ? own.first : first;
    return layer < end && layer < own.first + own.count ? layer - own.first : -1;
}

/* All ranks stand alike afterwards. */
static void stand(decant_calibration_run *run, decant_status status, const decant_error *error)
{
    run->standing = (decant_standing){.failed = status, .error = *error};
}

/* Collective. Saves what is done; the job leaves then, or goes on, even when that could not be written. */
static void save(decant_calibration_run *run, decant_streamed *streamed, bool leaves)
{
    decant_job *job = run->job;
    decant_streamed_state *saved = &streamed->checkpoint.saved;
    int layers = job->config.layers;
    double start_s = decant_clock_s();
    decant_error error;
    decant_status status =
        decant_streamed_checkpoint_write(&streamed->checkpoint, streamed->state, leaves, &error);
    job->work.saved_s = decant_clock_s();
    run->times.checkpoint_s += job->work.saved_s - start_s;
    if (status == DECANT_OK)
        decant_log_event(job->log, "checkpoint", "\"boundaries\":%d,\"backward\":%d,\"of\":%d,\"seconds\":%.3f",
                         saved->boundaries, layers - saved->left, layers, job->work.saved_s - start_s);
    else if (!leaves)
        decant_log_say(job->log, "no checkpoint with %d of %d layers to go backward: %s", streamed->state.left,
                       layers, error.message);
    if (!leaves)
        return;
    if (status == DECANT_OK && saved->boundaries == 0 && saved->left == layers)
        status = DECANT_ERROR(&error, DECANT_INTERRUPTED,
                              "no layer was passed yet, so the same command begins anew");
    else if (status == DECANT_OK)
        status = DECANT_ERROR(&error, DECANT_INTERRUPTED,
                              "what enters %d of %d layers, and %d layers that went backward, are in %s; the "
                              "same command goes on from there",
                              saved->boundaries < layers ? saved->boundaries : layers, layers,
                              layers - saved->left, job->work.path);
    stand(run, status, &error);
}

/* Collective, after a round. `done` is what there is when nobody failed, `kept` what is left of what was there
 * before when a signal stopped the round. False when the job ends. */
static bool meet(decant_calibration_run *run, decant_streamed *streamed, decant_streamed_state done,
                 decant_streamed_state kept)
{
    bool leaves, saves;
    decant_error error = run->standing.error;
    decant_status status = decant_ranks_agree(run->job->ranks, run->standing.failed, &error);
    bool stopped = status == DECANT_INTERRUPTED;
    streamed->state = status == DECANT_OK ? done : kept;
    if (status == DECANT_OK)
        status = decant_job_ask(run->job, &leaves, &saves, &error);
    if (stopped || (status == DECANT_OK && saves))
        save(run, streamed, stopped || leaves);
    else if (status != DECANT_OK)
        stand(run, status, &error);
    return decant_standing_computes(&run->standing);
}

static void show_progress(const decant_calibration_run *run, int passed)
{
    decant_log_progress(run->job->log, passed, 2 * run->job->config.layers, "layers");
}

/* Collective. What has not gone forward yet. False when the job ends. */
static bool run_forward(decant_calibration_run *run, decant_streamed *streamed)
{
    const decant_job *job = run->job;
    int layers = job->config.layers, first, end;
    decant_streamed_forward_rest(streamed->state, layers, &first, &end);
    for (int next; first < end; first = next) {
        decant_streamed_state before = streamed->state, after = before;
        next = decant_streamed_forward_round(job->ranges, job->stages, first, end);
        int block = block_in(job, first, next);
        if (block >= 0)
            pass_block(run, streamed, DECANT_PASS_FORWARD, block);
        if (next == end && end < layers && decant_job_layers(job).first == end && job->stage < job->stages)
            receive_input(run, streamed);
        after.boundaries = next + 1;
        if (!meet(run, streamed, after, before))
            return false;
        show_progress(run, next);
    }
    return true;
}

/* Collective. What has not gone backward yet. */
static void run_backward(decant_calibration_run *run, decant_streamed *streamed,
                         decant_replica_exchange *exchange)
{
    const decant_job *job = run->job;
    const decant_block_sink *sink = streamed->sink;
    decant_error error;
    for (int left = streamed->state.left, next; left > 0; left = next) {
        next = decant_streamed_backward_round(job->ranges, job->stages, left);
        int block = block_in(job, next, left);
        if (block >= 0) {
            pass_block(run, streamed, DECANT_PASS_BACKWARD, block);
            decant_replica_exchange_add(exchange, run->fisher, block, &run->standing);
            if (decant_standing_computes(&run->standing))
                decant_standing_note(&run->standing, sink->take(sink->context, run->fisher, block, &error),
                                     &error);
        }
        /* Gradients have taken the place of what entered the layers of the round, but for the model's first. */
        decant_streamed_state kept = {next > 0 ? next : 1, left};
        if (!meet(run, streamed, (decant_streamed_state){next, next}, kept))
            return;
        if (block >= 0)
            decant_streamed_calibration_forget(streamed->calibration, block);
        show_progress(run, 2 * job->config.layers - next);
    }
}

void decant_streamed_run(decant_calibration_run *run, decant_streamed *streamed,
                         decant_replica_exchange *exchange)
{
    if (run_forward(run, streamed))
        run_backward(run, streamed, exchange);
}
