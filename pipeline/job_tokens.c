/* See job_tokens.h. */
#include "pipeline/job_tokens.h"

#include "stages/random_tokens.h"

/* What the model was made for. With linear scaling, max_position_embeddings may be the number before it, as
 * transformers' documentation of rope_scaling asks for, or the number after; the larger one is meant here. */
static int64_t positions_of(const decant_model_config *config)
{
    const decant_rotary_scaling *scaling = &config->rotary_scaling;
    double stretch = scaling->factor > 1 && !scaling->by_wavelength ? scaling->factor : 1;
    return (int64_t)((double)config->maximum_positions * stretch);
}

/* Rotary positions go on for ever, so longer sequences are computed all the same; but what a model makes of
 * positions that it was not trained on says little of it. Learned ones end. */
static decant_status check_length(decant_job *job, const char *origin, int64_t length, decant_error *err)
{
    int64_t positions = positions_of(&job->config);
    if (length <= positions)
        return DECANT_OK;
    if (job->config.position_rows > 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: sequences of %lld tokens, but the model has learned %lld positions "
                            "(max_position_embeddings in its config.json): ask for a shorter window",
                            origin, (long long)length, (long long)positions);
    decant_log_say(job->log,
                   "warning: %s: sequences of %lld tokens, but the model was made for %lld positions "
                   "(max_position_embeddings in its config.json)",
                   origin, (long long)length, (long long)positions);
    return DECANT_OK;
}

/* Token ids that every rank reads for itself; all must have read the same. */
static decant_status read_tokens(decant_job *job, const char *path, int64_t window, int64_t sequences,
                                 decant_token_array *tokens, decant_error *err)
{
    decant_status status =
        decant_token_array_read(path, window, sequences, job->config.vocabulary_size, tokens, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status != DECANT_OK)
        return status;
    status = check_length(job, path, tokens->length, err);
    if (status != DECANT_OK)
        return status;
    return decant_ranks_require_equal(job->ranks, &tokens->checksum, sizeof tokens->checksum, path, err);
}

decant_status decant_job_read_text(decant_job *job, decant_token_array *text, decant_error *err)
{
    const decant_options *options = job->options;
    return read_tokens(job, options->text, options->validation_window, options->validation_windows, text, err);
}

decant_status decant_job_read_calibration(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    const decant_options *options = job->options;
    return read_tokens(job, options->calibration, options->window, options->sequences, tokens, err);
}

decant_status decant_job_read_sensitivity_tokens(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    const decant_options *options = job->options;
    if (options->calibration[0])
        return read_tokens(job, options->calibration, options->window, options->sensitivity_sequences, tokens,
                           err);
    decant_log_say(job->log, "no --calibration: sensitivities are measured on random tokens");
    decant_status status = check_length(job, "--window", options->window, err);
    if (status == DECANT_OK)
        status = decant_random_tokens(options->sensitivity_sequences, options->window,
                                      job->config.vocabulary_size, options->seed, tokens, err);
    return decant_ranks_agree(job->ranks, status, err);
}
