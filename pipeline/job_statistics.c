/* See job_statistics.h. */
#include "pipeline/job_statistics.h"

#include "pipeline/job_plan.h"
#include "pipeline/job_tokens.h"
#include "pipeline/report.h"

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

decant_status decant_job_calibrate_from_tokens(decant_job *job, decant_fisher_sums *fisher,
                                               decant_quantized_share *share, decant_statistics_origin *origin,
                                               decant_error *err)
{
    decant_token_array tokens = {0};
    streamed_blocks streamed = {.job = job, .share = share};
    decant_status status;
    DECANT_TRY(decant_job_read_calibration(job, &tokens, err));
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

decant_status decant_job_find_fisher_sums(decant_job *job, decant_fisher_sums *fisher,
                                          decant_quantized_share *share, decant_statistics_origin *origin,
                                          decant_error *err)
{
    if (decant_options_are_data_free(job->options))
        return DECANT_OK;
    if (job->options->statistics[0])
        return calibrate_from_file(job, fisher, origin, err);
    return decant_job_calibrate_from_tokens(job, fisher, share, origin, err);
}
