/* See job_open.h. */
#include "pipeline/job_open.h"

#include "base/memory.h"
#include "pipeline/placement.h"
#include "pipeline/reuse.h"
#include "stages/model_check.h"
#include "stages/sensitivity.h"

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

/* ---- the backend and the model ---- */

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

/* Collective. Sums of a GPU and of a CPU differ, and one machine without its GPU would hold up all others. */
static decant_status require_one_kind(const decant_job *job, decant_error *err)
{
    bool has_device = strcmp(job->backend->name, "cpu") != 0;
    int64_t any_device = has_device;
    decant_status status = decant_ranks_maximum(job->ranks, &any_device, 1, err);
    if (status == DECANT_OK && any_device && !has_device)
        status = DECANT_ERROR(err, DECANT_ERROR_DEVICE,
                              "no CUDA device is shown to decant here, while other ranks have one; look at "
                              "nvidia-smi, leave this machine out, or use --device cpu");
    return decant_ranks_agree(job->ranks, status, err);
}

/* Does the job need to know what the model computes, or only its matrices? */
static bool needs_architecture(const decant_options *options)
{
    return options->command != DECANT_COMMAND_RUN || options->text[0] || options->choices[0] ||
           options->sensitivity != DECANT_SENSITIVITY_FISHER || !decant_options_are_data_free(options);
}

static decant_status open_model(decant_job *job, decant_error *err)
{
    const char *path = job->options->model;
    decant_status status = decant_family_read(path, &job->config, &job->family, err);
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

/* What the container is of; both models of a pair compute by one configuration. */
static decant_status open_container_config(decant_job *job, decant_error *err)
{
    const char *path = job->options->container;
    decant_container *container = NULL;
    decant_model_config config = {0};
    decant_status status;
    DECANT_TRY(decant_container_open(path, &container, err));
    DECANT_TRY(decant_model_check_kind(container, path, err));
    DECANT_TRY(decant_container_config(container, path, &config, err));
    if (!job->model) {
        job->config = config;
        config = (decant_model_config){0};
        DECANT_TRY(decant_family_find(&job->config, &job->family, err));
    } else {
        DECANT_TRY(decant_model_check_same(path, &config, job->options->model, &job->config, err));
    }
done:
    decant_model_config_free(&config);
    decant_container_close(&container);
    return status;
}

static decant_status open_local(decant_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(create_backend(job, err));
    if (job->options->model[0])
        DECANT_TRY(open_model(job, err));
    if (job->options->container[0])
        DECANT_TRY(open_container_config(job, err));
done:
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

/* Local. Who holds which layers, passes which sequences and quantizes which matrices. */
static decant_status share_out(decant_job *job, decant_error *err)
{
    decant_status status;
    DECANT_TRY(place_ranks(job, err));
    decant_placement_layers(&job->config, job->grid.stages, job->ranges);
    job->stages = decant_schedule_active_stages(job->ranges, job->grid.stages);
    decant_layer_range layers = decant_job_layers(job);
    DECANT_TRY(decant_memory_allocate((size_t)(layers.count * job->family->linear_count) * sizeof *job->owners,
                                      "owners of matrices", (void **)&job->owners, err));
    DECANT_TRY(
        decant_placement_owners(&job->config, job->family, layers, job->grid.replicas, job->owners, err));
done:
    return status;
}

decant_status decant_job_open(decant_job *job, decant_ranks *ranks, const decant_options *options,
                              decant_log *log, decant_error *err)
{
    *job = (decant_job){.ranks = ranks, .options = options, .log = log};
    decant_status status = decant_ranks_agree(ranks, open_local(job, err), err);
    if (status != DECANT_OK)
        return status;
    status = require_one_kind(job, err);
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

void decant_job_close(decant_job *job)
{
    decant_memory_free(job->ranges);
    decant_memory_free(job->owners);
    decant_memory_free(job->weight_checksums);
    decant_reuse_close(&job->reuse);
    decant_plan_free(&job->plan);
    decant_safetensors_close(&job->model);
    decant_model_config_free(&job->config);
    decant_backend_destroy(&job->backend);
}
