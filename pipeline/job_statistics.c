/* See job_statistics.h. */
#include "pipeline/job_statistics.h"

#include "pipeline/job_plan.h"
#include "pipeline/job_tokens.h"
#include "pipeline/job_work.h"
#include "pipeline/model_fingerprint.h"
#include "pipeline/report.h"
#include "pipeline/reuse.h"
#include "pipeline/streamed_blocks.h"
#include "stages/fisher_file.h"

/* Need this rank read the sums of its own matrix `i`?  chosen  NULL: before the allocation, after which those
 * are wanted that were not read before. */
static bool wants_sums(const decant_job *job, int i, const int *chosen)
{
    int64_t matrix = (int64_t)decant_job_layers(job).first * job->family->linear_count + i;
    bool kept_before = decant_reuse_keeps(job->reuse, matrix, NULL);
    return job->owners[i] == job->replica &&
           (chosen ? kept_before && !decant_reuse_keeps(job->reuse, matrix, chosen) : !kept_before);
}

/* Local. The sums of the matrices that this rank owns and is to quantize. */
static decant_status read_sums(decant_job *job, const decant_container *file,
                               const decant_statistics_origin *origin, const int *chosen,
                               decant_fisher_sums *fisher, decant_error *err)
{
    decant_layer_range layers = decant_job_layers(job);
    int linears = job->family->linear_count;
    decant_status status;
    DECANT_TRY(decant_fisher_sums_list(job->backend, &job->config, job->family, origin->form,
                                       decant_options_hessian_groups(job->options), layers.first, layers.count,
                                       fisher, err));
    for (int i = 0; i < layers.count * linears; i++)
        if (wants_sums(job, i, chosen))
            DECANT_TRY(decant_fisher_sums_add(fisher, i / linears, i % linears, err));
    DECANT_TRY(decant_fisher_file_read(file, "", fisher, err));
done:
    return status;
}

/* Fisher sums of the matrices that this rank owns, from a statistics file of this model, but of those that an
 * earlier container has quantized. */
static decant_status read_statistics(decant_job *job, const char *path, decant_fisher_sums *fisher,
                                     decant_statistics_origin *origin, decant_error *err)
{
    decant_container *file = NULL;
    decant_status status = decant_statistics_open(path, &file, origin, err);
    if (status == DECANT_OK)
        status = decant_job_check_statistics(job, path, origin, err);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(decant_job_open_reuse(job, origin, err));
    DECANT_TRY(decant_ranks_agree(job->ranks, read_sums(job, file, origin, NULL, fisher, err), err));
done:
    decant_container_close(&file);
    return status;
}

decant_status decant_job_find_other_sums(decant_job *job, const int *chosen, decant_fisher_sums *fisher,
                                         decant_error *err)
{
    decant_container *file = NULL;
    decant_statistics_origin origin;
    if (!job->options->statistics[0])
        return DECANT_OK;
    decant_status status = decant_statistics_open(job->options->statistics, &file, &origin, err);
    if (status == DECANT_OK)
        status = read_sums(job, file, &origin, chosen, fisher, err);
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

static decant_status begin_without_statistics(decant_job *job, decant_error *err)
{
    decant_statistics_origin none = {0};
    decant_status status;
    DECANT_TRY(decant_job_open_work(job, NULL, err));
    if (job->options->reuse[0])
        DECANT_TRY(decant_job_fingerprint_model(job, err));
    DECANT_TRY(decant_job_open_reuse(job, &none, err));
done:
    return status;
}

decant_status decant_job_find_fisher_sums(decant_job *job, decant_fisher_sums *fisher,
                                          decant_quantized_share *share, decant_statistics_origin *origin,
                                          decant_error *err)
{
    if (decant_options_are_data_free(job->options))
        return begin_without_statistics(job, err);
    if (job->options->statistics[0])
        return calibrate_from_file(job, fisher, origin, err);
    return decant_job_calibrate_from_tokens(job, fisher, share, origin, err);
}
