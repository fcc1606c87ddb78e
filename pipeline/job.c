/* The job, in one sentence: a model's layers are sharded over ranks, each rank accumulates Fisher gradients
 * over the calibration sequences, finds levels and outliers for its layers and measures every candidate; rank 0
 * allocates the bits; all ranks write one container; and the container, as it is on disk, is validated.
 *
 * Every function here that takes a decant_job is collective: all ranks call it and leave it with the same
 * status. */
#include "pipeline/job.h"

#include "base/memory.h"
#include "pipeline/job_plan.h"
#include "pipeline/plan_request.h"
#include "pipeline/quantization.h"
#include "pipeline/report.h"
#include "pipeline/sensitivity.h"
#include "stages/budget.h"
#include "stages/random_tokens.h"
#include "stages/write.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { TABLE_DATASETS = 32 }; /* in the container, beside tensors and layers; at most */

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
    job->threads = options->threads > 0 ? options->threads : default_threads(job->ranks);
    int devices = options->device == DECANT_DEVICE_CPU ? 0 : decant_backend_count_cuda();
    job->sharers = devices > 0 ? (job->ranks->node_size + devices - 1) / devices : job->ranks->node_size;
    if (devices > 0)
        return decant_backend_create_cuda(job->ranks->node_rank % devices, options->full_floats, &job->backend,
                                          err);
    if (options->device == DECANT_DEVICE_CUDA)
        return DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                            "--device cuda, but this machine shows no CUDA device to decant; use --device cpu");
    return decant_backend_create_cpu(job->threads, &job->backend, err);
}

/* Does the job need to know what the model computes, or only its matrices? */
static bool needs_architecture(const decant_options *options)
{
    return options->command != DECANT_COMMAND_RUN || options->text[0] ||
           options->sensitivity != DECANT_SENSITIVITY_FISHER || !decant_options_are_data_free(options);
}

static decant_status open_model(decant_job *job, decant_error *err)
{
    const char *path = job->options->model;
    decant_status status = decant_model_config_read(path, &job->config, err);
    if (status == DECANT_OK)
        status = decant_family_find(&job->config, &job->family, err);
    if (status == DECANT_OK)
        return decant_safetensors_open(path, &job->model, err);
    if (status != DECANT_ERROR_INPUT || needs_architecture(job->options))
        return status;
    decant_model_config_free(&job->config);
    DECANT_TRY(decant_model_config_read_text(path, &job->config, err));
    DECANT_TRY(decant_safetensors_open(path, &job->model, err));
    DECANT_TRY(decant_family_of_matrices(job->model, &job->config, &job->family, err));
done:
    return status;
}

/* Not every backend has every method yet. */
static decant_status check_methods(const decant_job *job, decant_error *err)
{
    if (decant_options_hessian_groups(job->options) > 0 && !job->backend->quantize->guide)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "--method guided does not run on device %s yet; use --device cpu",
                            job->backend->name);
    return DECANT_OK;
}

static decant_status open_local(decant_job *job, decant_error *err)
{
    decant_container *container = NULL;
    decant_status status;
    DECANT_TRY(create_backend(job, err));
    DECANT_TRY(check_methods(job, err));
    if (job->options->model[0]) {
        DECANT_TRY(open_model(job, err));
    } else {
        DECANT_TRY(decant_container_open(job->options->container, &container, err));
        DECANT_TRY(decant_container_config(container, job->options->container, &job->config, err));
        DECANT_TRY(decant_family_find(&job->config, &job->family, err));
    }
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
    decant_plan_layers(&job->config, job->grid.stages, job->ranges);
    job->stages = decant_schedule_active_stages(job->ranges, job->grid.stages);
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
    if (job->options->device == DECANT_DEVICE_AUTO && strcmp(job->backend->name, "cpu") == 0)
        decant_log_say(log,
                       "no CUDA device is there, or this decant was built without CUDA: computing on the CPU");
    return DECANT_OK;
}

static void close_job(decant_job *job)
{
    decant_memory_free(job->ranges);
    decant_memory_free(job->owners);
    decant_plan_free(&job->plan);
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

/* What the container takes besides the quantized layers, at most: the tensors that stay whole, config and
 * tables. */
static decant_status count_rest(decant_job *job, int64_t *rest_bytes, decant_error *err)
{
    const int64_t any_rows = 1, any_columns = 1; /* what is offered does not depend on the shape */
    decant_recipe recipe = decant_options_recipe(job->options);
    decant_candidate_list list;
    decant_status offered = decant_recipe_offer(&recipe, any_rows, any_columns, &list, err);
    if (offered != DECANT_OK)
        return offered;
    /* more than a layer's part of /errors, /allocation and /sensitivity */
    const int64_t table_bytes = DECANT_NAME_BYTES + 32 + list.count * (int64_t)sizeof(decant_candidate) +
                                8 * (int64_t)job->options->noise_levels;
    int64_t layers = (int64_t)job->config.layers * job->family->linear_count, bytes = 0;
    for (int64_t i = 0; i < decant_safetensors_count(job->model); i++)
        bytes += (int64_t)decant_safetensors_at(job->model, i)->size_bytes;
    for (int64_t i = 0; i < layers; i++) {
        int linears = job->family->linear_count;
        char tensor[DECANT_NAME_BYTES + 8];
        decant_linear linear;
        decant_matrix host;
        job->family->linear(&job->config, (int)(i / linears), (int)(i % linears), &linear);
        snprintf(tensor, sizeof tensor, "%s.weight", linear.name);
        decant_status status =
            decant_safetensors_matrix(job->model, tensor, linear.rows, linear.columns, &host, err);
        if (status != DECANT_OK)
            return status;
        bytes -= (int64_t)decant_matrix_bytes(host);
    }
    int64_t whole = decant_safetensors_count(job->model) - layers, grids = 0;
    decant_budget_count_grids(list.candidate, list.count, &grids, &bytes);
    *rest_bytes = decant_budget_rest(layers, whole + TABLE_DATASETS + grids,
                                     bytes + (int64_t)job->config.json_bytes + layers * table_bytes);
    return DECANT_OK;
}

/* The budget in bytes of the quantized layers, whose smallest candidates are given. */
static decant_status find_budget(decant_job *job, int64_t weights, int64_t smallest_bytes, int64_t *bytes,
                                 decant_error *err)
{
    decant_budget asked = {.bits = job->options->bits, .file_bytes = job->options->size_bytes};
    decant_status status = count_rest(job, &asked.rest_bytes, err);
    return status == DECANT_OK ? decant_budget_bytes(&asked, weights, smallest_bytes, bytes, err) : status;
}

/* Sizes are known from the shapes alone, so a budget that cannot be kept is refused before the work too. */
static decant_status check_budget(decant_job *job, decant_error *err)
{
    decant_plan_request request = decant_plan_request_of(job->options, &job->config, job->family, false);
    decant_linear_sizes sizes;
    int64_t unused;
    decant_status status = decant_linear_sizes_create(&request.shape, &sizes, err);
    if (status == DECANT_OK)
        status = find_budget(job, sizes.all.weights, sizes.all.smallest_bytes, &unused, err);
    decant_linear_sizes_free(&sizes);
    return decant_ranks_agree(job->ranks, status, err);
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

/* Where a block's Fisher sums go when layers are streamed. */
typedef struct streamed_blocks {
    decant_job *job;
    decant_recipe recipe;
    decant_quantized_share *share; /* NULL: only the sums are wanted */
} streamed_blocks;

static decant_status take_block(void *context, decant_fisher_sums *fisher, int block, decant_error *err)
{
    streamed_blocks *streamed = context;
    decant_job *job = streamed->job;
    decant_status status = DECANT_OK;
    if (streamed->share)
        return decant_job_quantize_block(job, &streamed->recipe, fisher, block, streamed->share, err);
    for (int i = 0; i < job->family->linear_count && status == DECANT_OK; i++)
        if (decant_fisher_sums_at(fisher, block, i))
            status = decant_fisher_sums_park(fisher, block, i, err);
    return status;
}

/* share NULL: the sums are wanted, not what is quantized with them. */
static decant_status calibrate_from_tokens(decant_job *job, decant_fisher_sums *fisher,
                                           decant_quantized_share *share, decant_statistics_origin *origin,
                                           decant_error *err)
{
    decant_token_array tokens = {0};
    streamed_blocks streamed = {.job = job, .share = share};
    decant_status status;
    DECANT_TRY(read_tokens(job, job->options->calibration, job->options->window, job->options->sequences,
                           &tokens, err));
    DECANT_TRY(decant_job_plan(job, &tokens, err));
    *origin = (decant_statistics_origin){.sequences = tokens.sequences, .length = tokens.length};
    streamed.recipe = decant_job_recipe(job, origin);
    if (share)
        DECANT_TRY(decant_ranks_agree(job->ranks, decant_quantized_share_create(job, share, err), err));
    double start_s = decant_clock_s();
    DECANT_TRY(
        decant_job_calibrate(job, &tokens, &(decant_block_sink){take_block, &streamed}, fisher, origin, err));
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
    decant_status status = decant_job_plan(job, NULL, err);
    if (status != DECANT_OK)
        return status;
    status = decant_statistics_open(job->options->statistics, &file, origin, err);
    if (status == DECANT_OK)
        status = decant_fisher_sums_list(job->backend, &job->config, job->family, origin->form,
                                         decant_options_hessian_groups(job->options), layers.first,
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

/* Fisher sums of this rank's matrices, from tokens or from a statistics file; none in a data-free run. When
 * layers are streamed, they are quantized with as they come. */
static decant_status calibrate(decant_job *job, decant_fisher_sums *fisher, decant_quantized_share *share,
                               decant_statistics_origin *origin, decant_error *err)
{
    if (decant_options_are_data_free(job->options))
        return DECANT_OK;
    if (job->options->statistics[0])
        return calibrate_from_file(job, fisher, origin, err);
    return calibrate_from_tokens(job, fisher, share, origin, err);
}

/* ---- sensitivity ---- */

/* The first calibration sequences, or random tokens where there are none. */
static decant_status read_sensitivity_tokens(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    const decant_options *options = job->options;
    if (options->calibration[0])
        return read_tokens(job, options->calibration, options->window, options->sensitivity_sequences, tokens,
                           err);
    decant_log_say(job->log, "no --calibration: sensitivities are measured on random tokens");
    return decant_ranks_agree(job->ranks,
                              decant_random_tokens(options->sensitivity_sequences, options->window,
                                                   job->config.vocabulary_size, options->seed, tokens, err),
                              err);
}

/* Before the work: what can be refused at once. */
static decant_status prepare_sensitivity(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    if (job->options->sensitivity == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    decant_status status = read_sensitivity_tokens(job, tokens, err);
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

/* Rank 0 chooses, all ranks hear. */
static decant_status allocate(decant_job *job, const decant_error_table *table, int *chosen,
                              decant_plan_summary *summary, decant_error *err)
{
    decant_status status = DECANT_OK;
    double start_s = decant_clock_s();
    if (job->ranks->rank == 0) {
        int64_t weights, smallest, budget;
        decant_error_table_extent(table, &weights, &smallest);
        status = find_budget(job, weights, smallest, &budget, err);
        if (status == DECANT_OK)
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
                                  const decant_sensitivity *sensitivity, decant_container_writer **writer,
                                  decant_error *err)
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
        .seed = job->options->seed,
        .sensitivity = sensitivity,
        .options = options,
        .device = device,
        .backend = job->backend,
        .quantized_count = share->count,
        .matrices = share->matrices,
        .quantized = share->layers,
        .weights = share->weights,
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
    decant_statistics_origin origin = {0};
    decant_quantized_share share = {0};
    decant_error_table table = {0};
    decant_plan_summary summary = {0};
    decant_sensitivity sensitivity = {0};
    decant_token_array text = {0}, tokens = {0};
    decant_container_writer *writer = NULL;
    int *chosen = NULL;
    decant_status status;
    DECANT_TRY(check_output(job, err));
    DECANT_TRY(check_budget(job, err));
    if (job->options->text[0])
        DECANT_TRY(read_text(job, &text, err));
    job->text = &text;
    DECANT_TRY(prepare_sensitivity(job, &tokens, err));
    DECANT_TRY(calibrate(job, &fisher, &share, &origin, err));
    DECANT_TRY(decant_job_quantize(job, &fisher, &origin, &share, &table, err));
    DECANT_TRY(measure_sensitivity(job, &tokens, &share, &table, &sensitivity, err));
    DECANT_TRY(decant_ranks_agree(
        job->ranks,
        decant_memory_allocate((size_t)table.layers * sizeof *chosen, "the allocation", (void **)&chosen, err),
        err));
    DECANT_TRY(allocate(job, &table, chosen, &summary, err));
    DECANT_TRY(write_output(job, &share, &table, chosen, &summary, &origin, &sensitivity, &writer, err));
    decant_quantized_share_free(job->backend, &share);
    DECANT_TRY(validate_and_finish(job, &text, &summary, &writer, err));
    decant_job_forget_sensitivity(job);
done:
    decant_container_discard(&writer);
    decant_token_array_free(&text);
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
    DECANT_TRY(check_output(job, err));
    DECANT_TRY(calibrate_from_tokens(job, &fisher, NULL, &origin, err));
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
    if (status == DECANT_OK)
        decant_job_report_memory(&job);
    close_job(&job);
    return status;
}
