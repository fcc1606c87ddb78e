/* See resident.h. The arithmetic is stages/calibrate.h's. */
#include "pipeline/resident.h"

/* For a decant_interlude, between blocks: where the rank itself computes, its messages move on; over a device
 * only where that has enough before it. */
static void move_messages(void *context)
{
    decant_resident *resident = context;
    const decant_backend *backend = resident->run->job->backend;
    if (!backend->leaves_host_free || decant_host_lead_suffices(&resident->lead))
        decant_calibration_run_advance(resident->run);
}

/* On all ranks at once, before the first of them waits for another. */
static decant_status warm_up(decant_calibration_run *run, decant_resident *resident, decant_error *err)
{
    decant_micro_batch batch = decant_calibration_run_batch(run, 0);
    return decant_calibration_warm_up(resident->calibration,
                                      decant_token_array_sequence(run->tokens, batch.first), batch.count,
                                      run->losses + batch.first, err);
}

decant_status decant_resident_create(decant_calibration_run *run, bool retain, decant_resident *resident,
                                     decant_error *err)
{
    decant_job *job = run->job;
    decant_layer_range layers = decant_job_layers(job);
    decant_weight_source source = decant_source_of_model(job->model);
    decant_interlude interlude = {.call = move_messages, .context = resident};
    decant_status status;
    resident->run = run;
    DECANT_TRY(decant_host_lead_open(job->backend, &resident->lead, err));
    DECANT_TRY(decant_fisher_sums_create(job->backend, &job->config, job->family, job->options->fisher,
                                         decant_options_hessian_groups(job->options), layers.first,
                                         layers.count, run->fisher, err));
    DECANT_TRY(decant_model_part_load(job->backend, &job->config, &source, layers.first, layers.count,
                                      run->tokens->length, run->micro_batch, &resident->part, err));
    resident->slots = decant_schedule_in_flight(job->stages, job->stage, job->plan.slack, run->batches);
    DECANT_TRY(decant_calibration_create(&resident->part, run->fisher, resident->slots, retain, interlude,
                                         &resident->calibration, err));
    if (job->backend->leaves_host_free && run->batches > 0)
        DECANT_TRY(warm_up(run, resident, err));
done:
    return status;
}

void decant_resident_free(decant_resident *resident)
{
    decant_calibration_destroy(&resident->calibration);
    decant_host_lead_close(&resident->lead);
    decant_model_part_unload(&resident->part);
}

static void step_forward(decant_calibration_run *run, decant_resident *resident, int64_t index)
{
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_calibration *calibration = resident->calibration;
    int64_t slot = index % resident->slots;
    decant_matrix output = {0};
    decant_error error;
    decant_calibration_run_receive(run, run->from_previous,
                                   decant_calibration_input(calibration, slot, batch.count));
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_calibration_forward(calibration, slot, decant_token_array_sequence(run->tokens, batch.first),
                                       batch.count, &output, run->losses + batch.first, &error),
            &error);
    decant_calibration_run_send(run, run->to_next, output);
}

static void step_backward(decant_calibration_run *run, decant_resident *resident, int64_t index)
{
    decant_micro_batch batch = decant_calibration_run_batch(run, index);
    decant_calibration *calibration = resident->calibration;
    decant_matrix gradient = decant_calibration_gradient(calibration, batch.count);
    decant_error error;
    decant_calibration_run_receive(run, run->from_next, gradient);
    if (decant_standing_computes(&run->standing))
        decant_standing_note(
            &run->standing,
            decant_calibration_backward(calibration, index % resident->slots, batch.count, &error), &error);
    decant_calibration_run_send(run, run->to_previous, gradient);
    if (run->job->backend->leaves_host_free) /* it has the whole pass before it */
        decant_calibration_run_advance(run);
}

void decant_resident_run(decant_calibration_run *run, decant_resident *resident,
                         decant_checkpoint_rounds *rounds)
{
    decant_job *job = run->job;
    decant_backend *backend = job->backend;
    double before_s = decant_clock_s(), waited_s = 0, last_forward_s = 0;
    for (int64_t i = 0; i < 2 * run->batches; i++) {
        decant_step step = decant_schedule_step(resident->slots, run->batches, i);
        bool is_forward = step.direction == DECANT_FORWARD;
        if (is_forward)
            step_forward(run, resident, step.batch);
        else
            step_backward(run, resident, step.batch);
        double now_s = decant_clock_s(), waited_now_s = run->channels.waited_s;
        *(is_forward ? &run->times.forward_s : &run->times.backward_s) +=
            now_s - before_s - (waited_now_s - waited_s);
        if (is_forward && step.batch == run->batches - 1)
            last_forward_s = waited_now_s;
        if (!is_forward && step.batch == 0)
            run->times.filling_s = waited_now_s;
        if (!is_forward) {
            if (decant_standing_computes(&run->standing))
                decant_log_progress(job->log, run->finished + step.batch + 1, run->finished + run->batches,
                                    "micro-batches");
            decant_checkpoint_rounds_pass(rounds, step.batch);
        }
        before_s = decant_clock_s();
        waited_s = waited_now_s;
    }
    decant_error error;
    decant_channels_flush(&run->channels); /* before waiting for the device: messages stand still meanwhile */
    if (decant_standing_computes(&run->standing))
        decant_standing_note(&run->standing, backend->memory->synchronize(backend, &error), &error);
    run->times.backward_s += decant_clock_s() - before_s;
    run->times.draining_s = waited_s - last_forward_s;
}
