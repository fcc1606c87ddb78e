/* The job, in one sentence: a model's layers are sharded over ranks, each rank accumulates Fisher gradients
 * over the calibration sequences, finds levels and outliers for its layers and measures every candidate; rank 0
 * allocates the bits; all ranks write one container; and the container, as it is on disk, is validated.
 *
 * Every function here that takes a decant_job is collective: all ranks call it and leave it with the same
 * status. */
#include "pipeline/job.h"

#include "base/memory.h"
#include "io/partial_file.h"
#include "pipeline/generate.h"
#include "pipeline/interruption.h"
#include "pipeline/job_budget.h"
#include "pipeline/job_open.h"
#include "pipeline/job_plan.h"
#include "pipeline/job_statistics.h"
#include "pipeline/job_tokens.h"
#include "pipeline/job_work.h"
#include "pipeline/provenance.h"
#include "pipeline/report.h"
#include "pipeline/reuse.h"
#include "pipeline/sensitivity.h"
#include "stages/container_names.h"
#include "stages/write.h"
#include "stages/write_validation.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- check ---- */

/* The option whose file the output would replace, or NULL. What --reuse names may be: the new container has all
 * of it that is the same. */
static const char *find_replaced_input(const decant_options *options)
{
    const struct {
        const char *option, *path;
    } inputs[] = {{"--calibration", options->calibration},
                  {"--statistics", options->statistics},
                  {"--text", options->text},
                  {"--choices", options->choices}};
    struct stat output, input;
    if (stat(options->output, &output) != 0)
        return NULL;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        if (inputs[i].path[0] && stat(inputs[i].path, &input) == 0 && input.st_dev == output.st_dev &&
            input.st_ino == output.st_ino)
            return inputs[i].option;
    return NULL;
}

/* Refuses before the work, not after it, an output that cannot take its name and a place for scratch files that
 * is none. */
static decant_status check_places(decant_job *job, decant_error *err)
{
    const decant_options *options = job->options;
    decant_status status = decant_partial_file_check_place(options->output, options->overwrite, err);
    const char *replaced = find_replaced_input(options);
    if (status == DECANT_OK && replaced)
        status = DECANT_ERROR(err, DECANT_ERROR_USAGE,
                              "%s: is what %s reads, so it is not replaced; take another --output",
                              options->output, replaced);
    if (status == DECANT_OK && options->scratch[0] && access(options->scratch, W_OK | X_OK) != 0)
        status =
            DECANT_ERROR(err, DECANT_ERROR_DISK,
                         "--scratch %s: no file can be made there: %s; name a folder that every machine has",
                         options->scratch, strerror(errno));
    return decant_ranks_agree(job->ranks, status, err);
}

/* The same for a model with tensors that a container has no place for. */
static decant_status check_names(decant_job *job, decant_error *err)
{
    decant_status status = decant_container_check_names(job->model, &job->config, job->family, err);
    return decant_ranks_agree(job->ranks, status, err);
}

/* ---- sensitivity ---- */

/* Before the work: what can be refused at once. */
static decant_status prepare_sensitivity(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    if (job->options->sensitivity == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    decant_status status = decant_job_read_sensitivity_tokens(job, tokens, err);
    return status == DECANT_OK ? decant_job_check_sensitivity(job, tokens, err) : status;
}

static decant_status measure_sensitivity(decant_job *job, const decant_token_array *tokens,
                                         decant_quantized_share *share, decant_error_table *table,
                                         decant_sensitivity *sensitivity, decant_error *err)
{
    if (job->options->sensitivity == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    return decant_job_measure_sensitivity(job, tokens, share, table, sensitivity, err);
}

/* ---- allocate ---- */

/* Local. */
static decant_status choose(decant_job *job, const decant_error_table *table, int *chosen,
                            decant_plan_summary *summary, decant_error *err)
{
    int64_t weights, smallest, budget;
    decant_error_table_extent(table, &weights, &smallest);
    decant_status status = decant_job_find_budget(job, weights, smallest, &budget, err);
    return status == DECANT_OK ? decant_error_table_choose(table, budget, chosen, summary, err) : status;
}

/* Rank 0 chooses, all ranks hear.
 *   chosen   [layers of the table], allocated here, freed by the caller, after a failure too */
static decant_status allocate(decant_job *job, const decant_error_table *table, int **chosen,
                              decant_plan_summary *summary, decant_error *err)
{
    size_t bytes = (size_t)table->layers * sizeof **chosen;
    double start_s = decant_clock_s();
    decant_status status = decant_memory_allocate(bytes, "the allocation", (void **)chosen, err);
    if (status == DECANT_OK && job->ranks->rank == 0)
        status = choose(job, table, *chosen, summary, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, *chosen, bytes, err));
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, summary, sizeof *summary, err));
    decant_report_allocation(job, table, *chosen, summary, decant_clock_s() - start_s);
done:
    return status;
}

/* ---- write ---- */

/* The container stands complete on disk afterwards, but under its partial name. */
static decant_status write_output(decant_job *job, const decant_quantized_share *share,
                                  const decant_error_table *table, const int *chosen,
                                  const decant_plan_summary *summary, const decant_statistics_origin *origin,
                                  const decant_sensitivity *sensitivity, decant_container_writer **writer,
                                  decant_error *err)
{
    char options[DECANT_PROVENANCE_BYTES], device[64];
    double start_s = decant_clock_s();
    decant_job_describe_options(job, origin, options);
    decant_job_describe_device(job, device, sizeof device);
    decant_container_contents contents = {
        .config = &job->config,
        .family = job->family,
        .model = job->model,
        .table = table,
        .chosen = chosen,
        .summary = summary,
        .origin = origin,
        .seed = job->options->seed,
        .sensitivity = sensitivity,
        .options = options,
        .device = device,
        .backend = job->backend,
        .quantized_count = share->count,
        .matrices = share->matrices,
        .quantized = share->layers,
        .weights = share->weights,
        .earlier = job->reuse ? job->reuse->container : NULL,
        .is_taken = share->is_taken,
    };
    decant_log_stage(job->log, "write");
    decant_status status = decant_write_container(job->ranks, job->options->output, job->options->overwrite,
                                                  &contents, writer, err);
    if (status == DECANT_OK)
        decant_report_writing(job, decant_clock_s() - start_s);
    return status;
}

/* ---- validate ---- */

/* Validates the file that was just written. A container that cannot be validated is kept all the same: the work
 * in it is whole, and `decant validate` can be run again. */
static decant_status validate_and_finish(decant_job *job, const decant_validation_inputs *inputs,
                                         const decant_plan_summary *summary, decant_container_writer **writer,
                                         decant_error *err)
{
    decant_validation_result result;
    decant_question_result questions = {0};
    decant_error validation_error;
    decant_status validated = DECANT_OK;
    double start_s = decant_clock_s();
    bool validates = !decant_validation_inputs_are_empty(inputs);
    if (validates)
        validated = decant_job_validate(job, decant_container_partial_path(*writer), inputs, &result,
                                        &questions, &validation_error);
    if (validated == DECANT_OK && inputs->text.sequences > 0)
        validated = decant_validation_write(*writer, &result, &validation_error);
    decant_interruption_ignore(); /* or a rank might leave where the output has its name already */
    decant_status status = decant_container_finish(writer, err);
    if (status != DECANT_OK)
        goto done;
    job->work.complete = true;
    decant_job_forget_sensitivity(job);
    if (validated != DECANT_OK)
        *err = validation_error;
    else if (validates)
        decant_report_validation(job, &result, &questions, summary, decant_clock_s() - start_s);
    status = validated;
done:
    decant_question_result_free(&questions);
    return status;
}

/* ---- the commands ---- */

static decant_status run_whole_job(decant_job *job, decant_error *err)
{
    decant_fisher_sums fisher = {0};
    decant_statistics_origin origin = {0};
    decant_quantized_share share = {0};
    decant_error_table table = {0};
    decant_plan_summary summary = {0};
    decant_sensitivity sensitivity = {0};
    decant_validation_inputs inputs = {0};
    decant_token_array tokens = {0};
    decant_container_writer *writer = NULL;
    int *chosen = NULL;
    decant_status status;
    DECANT_TRY(check_places(job, err));
    DECANT_TRY(check_names(job, err));
    DECANT_TRY(decant_job_check_budget(job, err));
    DECANT_TRY(decant_job_read_inputs(job, &inputs, err));
    job->text = &inputs.text;
    DECANT_TRY(prepare_sensitivity(job, &tokens, err));
    DECANT_TRY(decant_job_find_fisher_sums(job, &fisher, &share, &origin, err));
    DECANT_TRY(decant_job_quantize(job, &fisher, &origin, &share, &table, err));
    DECANT_TRY(decant_job_heed_signals(job, err));
    DECANT_TRY(measure_sensitivity(job, &tokens, &share, &table, &sensitivity, err));
    DECANT_TRY(allocate(job, &table, &chosen, &summary, err));
    DECANT_TRY(decant_job_quantize_other_choices(job, &origin, chosen, &share, err));
    decant_report_reuse(job, chosen);
    DECANT_TRY(write_output(job, &share, &table, chosen, &summary, &origin, &sensitivity, &writer, err));
    decant_quantized_share_free(job->backend, &share);
    DECANT_TRY(validate_and_finish(job, &inputs, &summary, &writer, err));
done:
    decant_container_discard(&writer);
    decant_validation_inputs_free(&inputs);
    decant_token_array_free(&tokens);
    decant_sensitivity_free(&sensitivity);
    decant_fisher_sums_free(&fisher);
    decant_quantized_share_free(job->backend, &share);
    decant_error_table_free(&table);
    decant_memory_free(chosen);
    return status;
}

static decant_status run_calibration(decant_job *job, decant_error *err)
{
    decant_fisher_sums fisher = {0};
    decant_statistics_origin origin;
    decant_status status;
    DECANT_TRY(check_places(job, err));
    DECANT_TRY(decant_job_calibrate_from_tokens(job, &fisher, NULL, &origin, err));
    decant_log_stage(job->log, "write");
    DECANT_TRY(decant_statistics_write(job->ranks, job->options->output, job->options->overwrite, &job->config,
                                       job->family, decant_options_hessian_groups(job->options), &fisher,
                                       &origin, err));
    job->work.complete = true;
done:
    decant_fisher_sums_free(&fisher);
    return status;
}

/* A container that is damaged is not validated, wherever the damage is. */
static decant_status verify_together(decant_job *job, decant_error *err)
{
    decant_container *container = NULL;
    decant_status status = decant_container_open(job->options->container, &container, err);
    if (status == DECANT_OK)
        status = decant_container_verify_share(container, job->ranks->rank, job->ranks->size, err);
    decant_container_close(&container);
    return decant_ranks_agree(job->ranks, status, err);
}

static decant_status run_validation(decant_job *job, decant_error *err)
{
    decant_validation_inputs inputs = {0};
    decant_validation_result result;
    decant_question_result questions = {0};
    decant_status status;
    DECANT_TRY(verify_together(job, err));
    DECANT_TRY(decant_job_read_inputs(job, &inputs, err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_job_validate(job, job->options->container, &inputs, &result, &questions, err));
    decant_report_validation(job, &result, &questions, NULL, decant_clock_s() - start_s);
done:
    decant_question_result_free(&questions);
    decant_validation_inputs_free(&inputs);
    return status;
}

/* A device's failures, its lack of memory too, belong to a machine and a stage: "node07, calibrate: …". Every
 * rank puts its own machine in front, and the one that failed prints the line. */
static void name_place(const decant_job *job, decant_status status, decant_error *err)
{
    bool has_device = job->options->device != DECANT_DEVICE_CPU && decant_backend_count_cuda() > 0;
    char machine[64] = "", place[128];
    if (status != DECANT_ERROR_DEVICE && !(status == DECANT_ERROR_MEMORY && has_device))
        return;
    gethostname(machine, sizeof machine - 1);
    snprintf(place, sizeof place, "%s, %s", machine, job->log->stage[0] ? job->log->stage : "start");
    decant_error_name(status, place, err);
}

decant_status decant_job_run(decant_ranks *ranks, const decant_options *options, decant_log *log,
                             decant_error *err)
{
    decant_job job;
    decant_status status = decant_job_open(&job, ranks, options, log, err);
    if (status == DECANT_OK && options->command == DECANT_COMMAND_RUN)
        status = run_whole_job(&job, err);
    else if (status == DECANT_OK && options->command == DECANT_COMMAND_CALIBRATE)
        status = run_calibration(&job, err);
    else if (status == DECANT_OK && options->command == DECANT_COMMAND_GENERATE)
        status = decant_job_generate(&job, err);
    else if (status == DECANT_OK)
        status = run_validation(&job, err);
    name_place(&job, status, err);
    if (status == DECANT_OK)
        decant_job_report_memory(&job);
    decant_job_close_work(&job);
    decant_job_close(&job);
    return status;
}
