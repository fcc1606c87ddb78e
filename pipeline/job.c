/* The job, in one sentence: a model's layers are sharded over ranks, each rank accumulates Fisher gradients
 * over the calibration sequences, finds levels and outliers for its layers and measures every candidate; rank 0
 * allocates the bits; all ranks write one container; and the container, as it is on disk, is validated.
 *
 * Every function here that takes a decant_job is collective: all ranks call it and leave it with the same
 * status. */
#include "pipeline/job.h"

#include "base/memory.h"
#include "pipeline/quantization.h"
#include "pipeline/report.h"
#include "stages/write.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

decant_layer_range decant_job_layers(const decant_job *job)
{
    return job->ranges[job->stage];
}

int decant_job_rank(const decant_job *job, int stage, int replica)
{
    return stage * job->grid.replicas + replica;
}

int decant_job_owner(const decant_job *job, int block, int linear)
{
    return job->owners[block * job->family->linear_count + linear];
}

/* ---- opening ---- */

/* This rank's share of the machine's cores. */
static int default_threads(const decant_ranks *ranks)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    long share = cores / ranks->node_size;
    return share < 1 ? 1 : (int)share;
}

static decant_status create_backend(decant_job *job, decant_error *err)
{
    const decant_options *options = job->options;
    int devices = options->device == DECANT_DEVICE_CPU ? 0 : decant_backend_count_cuda();
    job->sharers = devices > 0 ? (job->ranks->node_size + devices - 1) / devices : job->ranks->node_size;
    if (devices > 0)
        return decant_backend_create_cuda(job->ranks->node_rank % devices, options->full_floats, &job->backend,
                                          err);
    if (options->device == DECANT_DEVICE_CUDA)
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                            "--device cuda, but this machine shows no CUDA device to decant; use --device cpu");
    int threads = options->threads > 0 ? options->threads : default_threads(job->ranks);
    return decant_backend_create_cpu(threads, &job->backend, err);
}

static decant_status open_local(decant_job *job, decant_error *err)
{
    decant_container *container = NULL;
    decant_status status;
    DECANT_TRY(create_backend(job, err));
    if (job->options->model[0]) {
        DECANT_TRY(decant_model_config_read(job->options->model, &job->config, err));
        DECANT_TRY(decant_safetensors_open(job->options->model, &job->model, err));
    } else {
        DECANT_TRY(decant_container_open(job->options->container, &container, err));
        DECANT_TRY(decant_container_config(container, job->options->container, &job->config, err));
    }
    DECANT_TRY(decant_family_find(&job->config, &job->family, err));
done:
    decant_container_close(&container);
    return status;
}

/* Local. The ranks become stages × replicas. */
static decant_status place_ranks(decant_job *job, decant_error *err)
{
    int replicas = job->options->replicas, ranks = job->ranks->size;
    if (!decant_schedule_grid(ranks, job->config.layers, replicas, &job->grid))
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "--replicas %d does not divide the %d ranks", replicas,
                            ranks);
    job->stage = job->ranks->rank / job->grid.replicas;
    job->replica = job->ranks->rank % job->grid.replicas;
    return decant_memory_allocate((size_t)job->grid.stages * sizeof *job->ranges, "the layers of each stage",
                                  (void **)&job->ranges, err);
}

/* Balanced for calibration: a block takes its forward pass, the gradient of its input and that of its weights;
 * the head only the first two. The share depends on the model alone, not on what is asked of it. */
static void shard_layers(decant_job *job)
{
    const int64_t tokens = 512;
    double block = decant_schedule_block_cost(&job->config, tokens);
    double head = decant_schedule_head_cost(&job->config, tokens);
    decant_schedule_layers(job->config.layers, job->grid.stages, 3 * block, 0, 2 * head, job->ranges);
    job->stages = decant_schedule_active_stages(job->ranges, job->grid.stages);
}

/* Local. The matrices of a stage are shared out over its replicas by their size. */
static decant_status share_matrices(decant_job *job, decant_error *err)
{
    int linears = job->family->linear_count, blocks = decant_job_layers(job).count;
    double *costs = NULL, *loads = NULL;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(blocks * linears) * sizeof *job->owners, "owners of matrices",
                                      (void **)&job->owners, err));
    DECANT_TRY(decant_memory_allocate((size_t)(blocks * linears) * sizeof *costs, "costs of matrices",
                                      (void **)&costs, err));
    DECANT_TRY(decant_memory_allocate((size_t)job->grid.replicas * sizeof *loads, "loads of replicas",
                                      (void **)&loads, err));
    for (int i = 0; i < blocks * linears; i++) {
        decant_linear linear;
        job->family->linear(&job->config, 0, i % linears, &linear);
        costs[i] = (double)linear.rows * (double)linear.columns;
    }
    decant_schedule_owners(costs, blocks, linears, job->grid.replicas, loads, job->owners);
done:
    decant_memory_free(costs);
    decant_memory_free(loads);
    return status;
}

/* Local. Who holds which layers, passes which sequences and quantizes which matrices. */
static decant_status share_out(decant_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(place_ranks(job, err));
    shard_layers(job);
    DECANT_TRY(share_matrices(job, err));
done:
    return status;
}

static decant_status open_job(decant_job *job, decant_ranks *ranks, const decant_options *options,
                              decant_log *log, decant_error *err)
{
    *job = (decant_job){.ranks = ranks, .options = options, .log = log};
    decant_status status = decant_ranks_agree(ranks, open_local(job, err), err);
    if (status != DECANT_OK)
        return status;
    status = decant_ranks_require_equal(ranks, job->config.json, job->config.json_bytes, "config.json", err);
    if (status != DECANT_OK)
        return status;
    status = decant_ranks_agree(ranks, share_out(job, err), err);
    if (status != DECANT_OK)
        return status;
    char grid[64] = "";
    if (job->grid.replicas > 1)
        snprintf(grid, sizeof grid, " (%d stages of %d replicas)", job->grid.stages, job->grid.replicas);
    decant_log_say(log, "%s, %d layers on %d rank%s%s, %s (%s)", job->config.architecture, job->config.layers,
                   ranks->size, ranks->size == 1 ? "" : "s", grid, job->backend->name,
                   job->backend->device_name);
    return DECANT_OK;
}

static void close_job(decant_job *job)
{
    decant_memory_free(job->ranges);
    decant_memory_free(job->owners);
    decant_safetensors_close(&job->model);
    decant_model_config_free(&job->config);
    decant_backend_destroy(&job->backend);
}

/* Refuses an output that exists before the work, not after it. */
static decant_status check_output(decant_job *job, decant_error *err)
{
    const decant_options *options = job->options;
    decant_status status = DECANT_OK;
    if (!options->overwrite && access(options->output, F_OK) == 0)
        status = DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s exists; --overwrite replaces it", options->output);
    return decant_ranks_agree(job->ranks, status, err);
}

/* Sizes are known from the shapes alone, so a budget that cannot be kept is refused before the work too. */
static decant_status check_budget(decant_job *job, decant_error *err)
{
    const decant_options *options = job->options;
    int64_t weights = 0, smallest = 0;
    if (options->bits == 0)
        return DECANT_OK;
    for (int layer = 0; layer < job->config.layers; layer++)
        for (int index = 0; index < job->family->linear_count; index++) {
            decant_linear linear;
            job->family->linear(&job->config, layer, index, &linear);
            int64_t rows = linear.rows, columns = linear.columns;
            int64_t sparse = decant_fraction_count(options->sensitive, rows, columns) +
                             decant_fraction_count(options->outliers, rows, columns);
            weights += rows * columns;
            smallest += decant_packed_bytes(rows, columns, options->bit_widths.bits[0], sparse);
        }
    double least = 8.0 * (double)smallest / (double)weights;
    if (smallest <= (int64_t)(options->bits * (double)weights / 8))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                        "--bits %g cannot be kept: the smallest candidates take %.4f bits a weight",
                        options->bits, least);
}

/* ---- calibrate ---- */

/* Token ids that every rank reads for itself; all must have read the same. */
static decant_status read_tokens(decant_job *job, const char *path, int64_t window, int64_t sequences,
                                 decant_token_array *tokens, decant_error *err)
{
    decant_status status =
        decant_token_array_read(path, window, sequences, job->config.vocabulary_size, tokens, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status != DECANT_OK)
        return status;
    return decant_ranks_require_equal(job->ranks, &tokens->checksum, sizeof tokens->checksum, path, err);
}

/* The text to validate on; read before the work begins, so that a wrong file is told at once. */
static decant_status read_text(decant_job *job, decant_token_array *text, decant_error *err)
{
    const decant_options *options = job->options;
    return read_tokens(job, options->text, options->validation_window, options->validation_windows, text, err);
}

static decant_status calibrate_from_tokens(decant_job *job, decant_fisher_sums *fisher,
                                           decant_statistics_origin *origin, decant_error *err)
{
    decant_token_array tokens = {0};
    decant_status status;
    DECANT_TRY(read_tokens(job, job->options->calibration, job->options->window, job->options->sequences,
                           &tokens, err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_job_calibrate(job, &tokens, fisher, origin, err));
    decant_report_calibration(job, origin, decant_clock_s() - start_s);
done:
    decant_token_array_free(&tokens);
    return status;
}

static decant_status calibrate_from_file(decant_job *job, decant_fisher_sums *fisher,
                                         decant_statistics_origin *origin, decant_error *err)
{
    decant_container *file = NULL;
    decant_layer_range layers = decant_job_layers(job);
    decant_status status = decant_statistics_open(job->options->statistics, &file, origin, err);
    if (status == DECANT_OK)
        status = decant_fisher_sums_list(job->backend, &job->config, job->family, origin->form, layers.first,
                                         layers.count, fisher, err);
    for (int i = 0; status == DECANT_OK && i < layers.count * job->family->linear_count; i++)
        if (job->owners[i] == job->replica)
            status = decant_fisher_sums_add(fisher, i / job->family->linear_count,
                                            i % job->family->linear_count, err);
    if (status == DECANT_OK)
        status = decant_statistics_read(file, fisher, err);
    decant_container_close(&file);
    return decant_ranks_agree(job->ranks, status, err);
}

/* Fisher sums of this rank's matrices, from tokens or from a statistics file. */
static decant_status calibrate(decant_job *job, decant_fisher_sums *fisher, decant_statistics_origin *origin,
                               decant_error *err)
{
    if (job->options->statistics[0])
        return calibrate_from_file(job, fisher, origin, err);
    return calibrate_from_tokens(job, fisher, origin, err);
}

/* ---- allocate ---- */

/* Rank 0 chooses, all ranks hear. */
static decant_status allocate(decant_job *job, const decant_error_table *table, int *chosen,
                              decant_plan_summary *summary, decant_error *err)
{
    decant_status status = DECANT_OK;
    double bits = job->options->bits, start_s = decant_clock_s();
    if (job->ranks->rank == 0) {
        int64_t budget = bits > 0 ? decant_error_table_budget(table, bits) : -1;
        status = decant_error_table_choose(table, budget, chosen, summary, err);
    }
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, chosen, (size_t)table->layers * sizeof *chosen, err));
    DECANT_TRY(decant_ranks_broadcast(job->ranks, 0, summary, sizeof *summary, err));
    decant_report_allocation(job, table, chosen, summary, decant_clock_s() - start_s);
done:
    return status;
}

/* ---- write ---- */

/* The container stands complete on disk afterwards, but under its partial name. */
static decant_status write_output(decant_job *job, const decant_quantized_share *share,
                                  const decant_error_table *table, const int *chosen,
                                  const decant_plan_summary *summary, const decant_statistics_origin *origin,
                                  decant_container_writer **writer, decant_error *err)
{
    char options[1024], device[64];
    double start_s = decant_clock_s();
    decant_options_describe(job->options, options, sizeof options);
    snprintf(device, sizeof device, "%s %s", job->backend->name, decant_element_name(job->backend->activation));
    decant_container_contents contents = {
        .config = &job->config,
        .family = job->family,
        .model = job->model,
        .table = table,
        .chosen = chosen,
        .summary = summary,
        .origin = origin,
        .options = options,
        .device = device,
        .backend = job->backend,
        .quantized_count = share->count,
        .matrices = share->matrices,
        .quantized = share->layers,
    };
    decant_log_stage(job->log, "write");
    decant_status status = decant_write_container(job->ranks, job->options->output, job->options->overwrite,
                                                  &contents, writer, err);
    if (status == DECANT_OK)
        decant_report_writing(job, decant_clock_s() - start_s);
    return status;
}

/* ---- validate ---- */

/* The container's own record of what it is worth. */
static decant_status set_result(decant_container_writer *writer, const decant_validation_result *result,
                                decant_error *err)
{
    const decant_comparison *sums = &result->sums;
    double targets = (double)sums->targets;
    decant_status status;
    DECANT_TRY(decant_container_set_integer(writer, "/", "validation_windows", result->windows, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "validation_targets", sums->targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "perplexity_original",
                                         decant_validation_perplexity_original(result), err));
    DECANT_TRY(decant_container_set_real(writer, "/", "perplexity_quantized",
                                         decant_validation_perplexity_quantized(result), err));
    DECANT_TRY(decant_container_set_real(writer, "/", "kl_divergence", sums->divergence / targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "top1_agreement", (double)sums->same_top / targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "measured_loss_increase",
                                         (sums->loss_quantized - sums->loss_original) / targets, err));
done:
    return status;
}

/* Validates the file that was just written. A container that cannot be validated is kept all the same: the work
 * in it is whole, and `decant validate` can be run again. */
static decant_status validate_and_finish(decant_job *job, const decant_token_array *text,
                                         const decant_plan_summary *summary, decant_container_writer **writer,
                                         decant_error *err)
{
    decant_validation_result result;
    decant_error validation_error;
    decant_status validated = DECANT_OK;
    double start_s = decant_clock_s();
    if (text->sequences > 0) {
        validated =
            decant_job_validate(job, decant_container_partial_path(*writer), text, &result, &validation_error);
        if (validated == DECANT_OK)
            validated = set_result(*writer, &result, &validation_error);
    }
    decant_status status = decant_container_finish(writer, err);
    if (status != DECANT_OK)
        return status;
    if (validated != DECANT_OK)
        *err = validation_error;
    else if (text->sequences > 0)
        decant_report_validation(job, &result, summary, decant_clock_s() - start_s);
    return validated;
}

/* ---- the commands ---- */

static decant_status run_whole_job(decant_job *job, decant_error *err)
{
    decant_fisher_sums fisher = {0};
    decant_statistics_origin origin;
    decant_quantized_share share = {0};
    decant_error_table table = {0};
    decant_plan_summary summary = {0};
    decant_token_array text = {0};
    decant_container_writer *writer = NULL;
    int *chosen = NULL;
    decant_status status;
    DECANT_TRY(check_output(job, err));
    DECANT_TRY(check_budget(job, err));
    if (job->options->text[0])
        DECANT_TRY(read_text(job, &text, err));
    DECANT_TRY(calibrate(job, &fisher, &origin, err));
    DECANT_TRY(decant_job_quantize(job, &fisher, &origin, &share, &table, err));
    DECANT_TRY(decant_ranks_agree(
        job->ranks,
        decant_memory_allocate((size_t)table.layers * sizeof *chosen, "the allocation", (void **)&chosen, err),
        err));
    DECANT_TRY(allocate(job, &table, chosen, &summary, err));
    DECANT_TRY(write_output(job, &share, &table, chosen, &summary, &origin, &writer, err));
    decant_quantized_share_free(job->backend, &share);
    DECANT_TRY(validate_and_finish(job, &text, &summary, &writer, err));
done:
    decant_container_discard(&writer);
    decant_token_array_free(&text);
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
    DECANT_TRY(check_output(job, err));
    DECANT_TRY(calibrate_from_tokens(job, &fisher, &origin, err));
    decant_log_stage(job->log, "write");
    DECANT_TRY(decant_statistics_write(job->ranks, job->options->output, job->options->overwrite, &fisher,
                                       &origin, err));
done:
    decant_fisher_sums_free(&fisher);
    return status;
}

static decant_status run_validation(decant_job *job, decant_error *err)
{
    decant_token_array text = {0};
    decant_validation_result result;
    decant_status status;
    DECANT_TRY(read_text(job, &text, err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_job_validate(job, job->options->container, &text, &result, err));
    decant_report_validation(job, &result, NULL, decant_clock_s() - start_s);
done:
    decant_token_array_free(&text);
    return status;
}

decant_status decant_job_run(decant_ranks *ranks, const decant_options *options, decant_log *log,
                             decant_error *err)
{
    decant_job job;
    decant_status status = open_job(&job, ranks, options, log, err);
    if (status == DECANT_OK && options->command == DECANT_COMMAND_RUN)
        status = run_whole_job(&job, err);
    else if (status == DECANT_OK && options->command == DECANT_COMMAND_CALIBRATE)
        status = run_calibration(&job, err);
    else if (status == DECANT_OK)
        status = run_validation(&job, err);
    close_job(&job);
    return status;
}
