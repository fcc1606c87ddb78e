/* See job_statistics.h. */
#include "pipeline/job_statistics.h"

#include "pipeline/job_plan.h"
#include "pipeline/job_tokens.h"
#include "pipeline/job_work.h"
#include "pipeline/model_fingerprint.h"
#include "pipeline/report.h"
#include "pipeline/streamed_blocks.h"
#include "stages/fisher_file.h"

/* Fisher sums of the matrices that this rank owns, from a statistics file of this model. */
static decant_status read_statistics(decant_job *job, const char *path, decant_fisher_sums *fisher,
                                     decant_statistics_origin *origin, decant_error *err)
{
    decant_container *file = NULL;
    decant_layer_range layers = decant_job_layers(job);
    int linears = job->family->linear_count;
    decant_status status = decant_statistics_open(path, &file, origin, err);
    if (status == DECANT_OK)
        status = decant_job_check_statistics(job, path, origin, err);
    if (status == DECANT_OK)
        status = decant_fisher_sums_list(job->backend, &job->config, job->family, origin->form,
                                         decant_options_hessian_groups(job->options), layers.first,
                                         layers.count, fisher, err);
    for (int i = 0; status == DECANT_OK && i < layers.count * linears; i++)
        if (job->owners[i] == job->replica)
            status = decant_fisher_sums_add(fisher, i / linears, i % linears, err);
    if (status == DECANT_OK)
        status = decant_fisher_file_read(file, "", fisher, err);
    decant_container_close(&file);
    return decant_ranks_agree(job->ranks, status, err);
}

static decant_status calibrate_from_file(decant_job *job, decant_fisher_sums *fisher,
                                         decant_statistics_origin *origin, decant_error *err)
{
    decant_status status;
    DECANT_TRY(decant_job_open_work(job, NULL, err));
    DECANT_TRY(decant_job_plan(job, NULL, err));
    DECANT_TRY(decant_job_fingerprint_model(job, err));
    DECANT_TRY(read_statistics(job, job->options->statistics, fisher, origin, err));
done:
    return status;
}

/* An earlier job has finished calibration. */
static decant_status resume_from_statistics(decant_job *job, decant_fisher_sums *fisher,
                                            decant_statistics_origin *origin, decant_error *err)
{
    decant_log_say(job->log, "calibration is finished already: going on from %s", job->work.statistics);
    decant_plan_free(&job->plan);
    decant_status status = decant_job_plan(job, NULL, err);
    return status == DECANT_OK ? read_statistics(job, job->work.statistics, fisher, origin, err) : status;
}

decant_status decant_job_calibrate_from_tokens(decant_job *job, decant_fisher_sums *fisher,
                                               decant_quantized_share *share, decant_statistics_origin *origin,
                                               decant_error *err)
{
    decant_token_array tokens = {0};
    decant_streamed_blocks streamed = {.job = job, .share = share};
    decant_block_sink sink = decant_streamed_blocks_sink(&streamed);
    decant_status status;
    DECANT_TRY(decant_job_read_calibration(job, &tokens, err));
    DECANT_TRY(decant_job_plan(job, &tokens, err));
    DECANT_TRY(decant_job_fingerprint_model(job, err));
    DECANT_TRY(decant_job_open_work(job, &tokens, err));
    if (job->work.has_statistics) {
        DECANT_TRY(resume_from_statistics(job, fisher, origin, err));
        goto done;
    }
    *origin = (decant_statistics_origin){.sequences = tokens.sequences, .length = tokens.length};
    streamed.recipe = decant_job_recipe(job, origin);
    if (share)
        DECANT_TRY(decant_ranks_agree(job->ranks, decant_quantized_share_create(job, share, err), err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_job_calibrate(job, &tokens, &sink, fisher, origin, err));
    decant_report_calibration(job, origin, decant_clock_s() - start_s);
    if (share && !job->plan.streamed)
        DECANT_TRY(decant_job_keep_statistics(job, fisher, origin, err));
done:
    decant_token_array_free(&tokens);
    return status;
}

decant_status decant_job_find_fisher_sums(decant_job *job, decant_fisher_sums *fisher,
                                          decant_quantized_share *share, decant_statistics_origin *origin,
                                          decant_error *err)
{
    if (decant_options_are_data_free(job->options))
        return decant_job_open_work(job, NULL, err);
    if (job->options->statistics[0])
        return calibrate_from_file(job, fisher, origin, err);
    return decant_job_calibrate_from_tokens(job, fisher, share, origin, err);
}
