/* See streamed.h. What happens inside a rank is stages/streamed_calibration.h's. */
#include "pipeline/streamed.h"

decant_status decant_streamed_create(decant_calibration_run *run, const char *scratch,
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
    DECANT_TRY(decant_streamed_calibration_create(&streamed->part, &source, run->fisher, run->batches, scratch,
                                                  &streamed->calibration, err));
done:
    return status;
}

void decant_streamed_free(decant_streamed *streamed)
{
    decant_streamed_calibration_destroy(&streamed->calibration);
    decant_model_part_unload(&streamed->part);
}

/* One pass of all blocks so far, for the progress line. */
static void show_progress(const decant_calibration_run *run, int passed)
{
    decant_log_progress(run->job->log, passed, 2 * decant_job_layers(run->job).count, "layers");
}

static void forward_batch(decant_calibration_run *run, decant_streamed_calibration *calibration, int block,
                          int64_t index)
{
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_error error;
    if (block == 0)
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

static void backward_batch(decant_calibration_run *run, decant_streamed_calibration *calibration, int block,
                           int64_t index)
{
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_matrix gradient = decant_streamed_calibration_output(calibration, index, batch.count);
    decant_error error;
    if (block == decant_job_layers(run->job).count - 1)
        decant_calibration_run_receive(run, run->from_next, gradient);
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_streamed_calibration_backward(calibration, block, index, batch.count, &error), &error);
    if (block == 0)
        decant_calibration_run_send(run, run->to_previous, gradient);
}

/* All micro-batches through one block. A rank that does not compute any more still passes on the messages. */
static void pass_block(decant_calibration_run *run, decant_streamed_calibration *calibration, decant_pass pass,
                       int block)
{
    bool is_forward = pass == DECANT_PASS_FORWARD;
    double start_s = decant_clock_s(), waited_s = decant_calibration_run_waited(run);
    decant_error error;
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             decant_streamed_calibration_enter(calibration, pass, block, &error), &error);
    for (int64_t i = 0; i < run->batches; i++) {
        (is_forward ? forward_batch : backward_batch)(run, calibration, block, i);
        decant_calibration_run_advance(run);
    }
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing,
                             decant_streamed_calibration_leave(calibration, pass, block, &error), &error);
    *(is_forward ? &run->times.forward_s : &run->times.backward_s) +=
        decant_clock_s() - start_s - (decant_calibration_run_waited(run) - waited_s);
}

void decant_streamed_run(decant_calibration_run *run, decant_streamed *streamed,
                         decant_replica_exchange *exchange, const decant_block_sink *sink)
{
    int blocks = decant_job_layers(run->job).count, passed = 0;
    decant_error error;
    for (int block = 0; block < blocks; block++) {
        pass_block(run, streamed->calibration, DECANT_PASS_FORWARD, block);
        show_progress(run, ++passed);
    }
    for (int block = blocks - 1; block >= 0; block--) {
        pass_block(run, streamed->calibration, DECANT_PASS_BACKWARD, block);
        decant_replica_exchange_add(exchange, run->fisher, block, &run->standing);
        if (decant_standing_computes(&run->standing))
            decant_standing_note(&run->standing, sink->take(sink->context, run->fisher, block, &error), &error);
        show_progress(run, ++passed);
    }
}
