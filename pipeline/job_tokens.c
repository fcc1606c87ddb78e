/* See job_tokens.h. */
#include "pipeline/job_tokens.h"

#include "pipeline/job_open.h"
#include "stages/random_tokens.h"

/* What the model was made for. With linear scaling, max_position_embeddings may be the number before it, as
 * transformers' documentation of rope_scaling asks for, or the number after; the larger one is meant here. */
static int64_t positions_of(const decant_model_config *config)
{
    const decant_rotary_scaling *scaling = &config->rotary_scaling;
    double stretch = scaling->factor > 1 && !scaling->by_wavelength ? scaling->factor : 1;
    return (int64_t)((double)config->maximum_positions * stretch);
}

/* The same on all ranks when they have read the same. Rotary positions go on for ever, so longer sequences are
 * computed all the same; but what a model makes of positions that it was not trained on says little of it.
 * Learned ones end. length_option: what the length is of; "" where it is none. */
static decant_status check_length(decant_job *job, const char *origin, int64_t length,
                                  const char *length_option, decant_error *err)
{
    int64_t positions = positions_of(&job->config);
    if (length <= positions)
        return DECANT_OK;
    if (job->config.position_rows > 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: sequences of %lld tokens, but the model has learned %lld positions "
                            "(max_position_embeddings in its config.json); take %s%s",
                            origin, (long long)length, (long long)positions,
                            length_option[0] ? "a smaller " : "shorter ones", length_option);
    decant_log_say(job->log,
                   "warning: %s: sequences of %lld tokens, but the model was made for %lld positions "
                   "(max_position_embeddings in its config.json)",
                   origin, (long long)length, (long long)positions);
    return DECANT_OK;
}

/* Token ids that every rank reads for itself; all must have read the same.
 *   window_option   what `window` is of; "" where it is none
 *   tokens_behind   that will follow each sequence */
static decant_status read_tokens(decant_job *job, const char *path, int64_t window, const char *window_option,
                                 int64_t sequences, int64_t tokens_behind, decant_token_array *tokens,
                                 decant_error *err)
{
    decant_status status = decant_token_array_read(path, window, window_option, sequences,
                                                   job->config.vocabulary_size, tokens, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status != DECANT_OK)
        return status;
    const int64_t read[] = {tokens->checksum, tokens->sequences, tokens->length};
    status = decant_ranks_require_equal(job->ranks, read, sizeof read, path, err);
    return status == DECANT_OK ? check_length(job, path, tokens->length + tokens_behind, window_option, err)
                               : status;
}

/* As many as are asked for are used, or all that there are. */
static void warn_of_fewer(decant_job *job, const char *path, const char *what, int64_t asked,
                          const decant_token_array *tokens)
{
    if (asked > tokens->sequences)
        decant_log_say(job->log, "warning: %s: holds %lld %s, of the %lld asked for", path,
                       (long long)tokens->sequences, what, (long long)asked);
}

static decant_status read_questions(decant_job *job, decant_question_set *questions, decant_error *err)
{
    const char *path = job->options->choices;
    decant_status status = decant_question_set_read(path, job->config.vocabulary_size, questions, err);
    status = decant_ranks_agree(job->ranks, status, err);
    if (status != DECANT_OK)
        return status;
    status =
        decant_ranks_require_equal(job->ranks, &questions->checksum, sizeof questions->checksum, path, err);
    return status == DECANT_OK ? check_length(job, path, decant_question_set_longest(questions), "", err)
                               : status;
}

decant_status decant_job_read_inputs(decant_job *job, decant_validation_inputs *inputs, decant_error *err)
{
    const decant_options *options = job->options;
    decant_status status = DECANT_OK;
    *inputs = (decant_validation_inputs){0};
    if (options->text[0])
        status = read_tokens(job, options->text, options->validation_window, "--validation-window",
                             options->validation_windows, 0, &inputs->text, err);
    if (status == DECANT_OK && options->text[0])
        warn_of_fewer(job, options->text, "validation windows", options->validation_windows, &inputs->text);
    if (status == DECANT_OK && options->choices[0])
        status = read_questions(job, &inputs->questions, err);
    return status;
}

void decant_validation_inputs_free(decant_validation_inputs *inputs)
{
    decant_token_array_free(&inputs->text);
    decant_question_set_free(&inputs->questions);
}

decant_status decant_job_read_prompts(decant_job *job, decant_token_array *prompts, decant_error *err)
{
    const decant_options *options = job->options;
    return read_tokens(job, options->prompt, DECANT_TOKENS_UNCUT, "", 0, options->new_tokens - 1, prompts, err);
}

decant_status decant_job_read_calibration(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    const decant_options *options = job->options;
    decant_status status =
        read_tokens(job, options->calibration, options->window, "--window", options->sequences, 0, tokens, err);
    if (status == DECANT_OK)
        warn_of_fewer(job, options->calibration, "sequences", options->sequences, tokens);
    return status;
}

decant_status decant_job_read_sensitivity_tokens(decant_job *job, decant_token_array *tokens, decant_error *err)
{
    const decant_options *options = job->options;
    if (options->calibration[0])
        return read_tokens(job, options->calibration, options->window, "--window",
                           options->sensitivity_sequences, 0, tokens, err);
    decant_log_say(job->log, "no --calibration: sensitivities are measured on random tokens");
    decant_status status = check_length(job, "random tokens", options->window, "--window", err);
    if (status == DECANT_OK)
        status = decant_random_tokens(options->sensitivity_sequences, options->window,
                                      job->config.vocabulary_size, options->seed, tokens, err);
    return decant_ranks_agree(job->ranks, status, err);
}
