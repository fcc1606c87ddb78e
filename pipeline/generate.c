/* See generate.h. */
#include "pipeline/generate.h"

#include "base/memory.h"
#include "pipeline/job_tokens.h"
#include "pipeline/not_finite.h"
#include "stages/generation.h"

#include <stdio.h>

enum {
    ORIGINAL = DECANT_VALIDATION_ORIGINAL,
    QUANTIZED = DECANT_VALIDATION_QUANTIZED,
    MODELS = DECANT_VALIDATION_MODELS
};

enum { TOKENS_AT_ONCE = 32 /* between two looks at what has come */ };

/* What one model said, and how long it took. */
typedef struct generated {
    int32_t *tokens; /* [prompts, new tokens]; NULL: there is no such model */
    double prompt_s; /* in passes of whole prompts, first ones that warm up not counted */
    double decode_s; /* in passes of single tokens: one less than the new tokens of each prompt */
    int64_t weight_bytes;
} generated;

typedef struct generate_run {
    decant_job *job;
    decant_token_array prompts;
    int64_t new_tokens;
    generated models[MODELS];
} generate_run;

/* ---- one model ---- */

/* Tokens that follow from logits that are no numbers are no result. */
static decant_status check_tokens(const generate_run *run, int model, const int32_t *tokens, int64_t count,
                                  decant_error *err)
{
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0)
            return decant_job_tell_not_finite(run->job, model, "a logit", err);
    return DECANT_OK;
}

/* Passes that are not counted come first: kernels are loaded, caches filled, clocks raised, a step recorded. */
static decant_status generate(generate_run *run, decant_generation *generation, int model,
                              const int32_t *prompt, int32_t *tokens, decant_error *err)
{
    generated *result = &run->models[model];
    int64_t length = run->prompts.length;
    int32_t unused;
    decant_status status;
    DECANT_TRY(decant_generation_begin(generation, prompt, length, &tokens[0], err));
    double start_s = decant_clock_s();
    DECANT_TRY(decant_generation_begin(generation, prompt, length, &tokens[0], err));
    result->prompt_s += decant_clock_s() - start_s;
    DECANT_TRY(check_tokens(run, model, tokens, 1, err));
    if (run->new_tokens > 1)
        DECANT_TRY(decant_generation_step(generation, tokens[0], &unused, err));
    decant_generation_go_back(generation, length);
    start_s = decant_clock_s();
    for (int64_t i = 1; i < run->new_tokens; i += TOKENS_AT_ONCE) {
        int64_t left = run->new_tokens - i, count = left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE;
        DECANT_TRY(decant_generation_continue(generation, tokens[i - 1], count, &tokens[i], err));
        DECANT_TRY(check_tokens(run, model, &tokens[i], count, err));
        decant_log_progress(run->job->log, i + count, run->new_tokens, "tokens");
    }
    result->decode_s += decant_clock_s() - start_s;
done:
    return status;
}

static decant_status run_model(generate_run *run, const decant_weight_source *source, int model,
                               decant_error *err)
{
    generated *result = &run->models[model];
    decant_job *job = run->job;
    decant_model_part part = {0};
    decant_generation *generation = NULL;
    int64_t prompts = run->prompts.sequences, room = run->prompts.length + run->new_tokens - 1;
    void *tokens;
    decant_status status;
    DECANT_TRY(decant_memory_allocate((size_t)(prompts * run->new_tokens) * sizeof *result->tokens,
                                      "generated tokens", &tokens, err));
    result->tokens = tokens;
    DECANT_TRY(
        decant_model_part_load(job->backend, &job->config, source, 0, job->config.layers, room, 1, &part, err));
    DECANT_TRY(decant_generation_create(&part, &generation, err));
    result->weight_bytes = decant_model_part_weight_bytes(&part);
    for (int64_t i = 0; i < prompts; i++)
        DECANT_TRY(generate(run, generation, model, decant_token_array_sequence(&run->prompts, i),
                            result->tokens + i * run->new_tokens, err));
done:
    decant_generation_destroy(&generation);
    decant_model_part_unload(&part);
    return status;
}

/* The container is closed before the original is loaded. */
static decant_status run_quantized(generate_run *run, decant_error *err)
{
    decant_container *container = NULL;
    decant_container_source *source = NULL;
    decant_status status;
    DECANT_TRY(decant_container_open(run->job->options->container, &container, err));
    DECANT_TRY(decant_container_source_create(container, &source, err));
    decant_weight_source weights = decant_source_of_container(source);
    DECANT_TRY(run_model(run, &weights, QUANTIZED, err));
done:
    decant_container_source_destroy(&source);
    decant_container_close(&container);
    return status;
}

/* ---- what came of it ---- */

static double prompt_speed(const generate_run *run, const generated *model)
{
    return model->prompt_s > 0 ? (double)(run->prompts.sequences * run->prompts.length) / model->prompt_s : 0;
}

static double decode_speed(const generate_run *run, const generated *model)
{
    return model->decode_s > 0 ? (double)(run->prompts.sequences * (run->new_tokens - 1)) / model->decode_s : 0;
}

/* Of all new tokens, those up to the first in which the models part. */
static int64_t same_tokens(const generate_run *run)
{
    int64_t same = 0;
    for (int64_t i = 0; i < run->prompts.sequences; i++) {
        const int32_t *before = run->models[ORIGINAL].tokens + i * run->new_tokens;
        const int32_t *after = run->models[QUANTIZED].tokens + i * run->new_tokens;
        int64_t agreed = 0;
        while (agreed < run->new_tokens && before[agreed] == after[agreed])
            agreed++;
        same += agreed;
    }
    return same;
}

static void print_ids(const int32_t *tokens, int64_t count, const char *separator)
{
    for (int64_t i = 0; i < count; i++)
        printf("%s%d", i ? separator : "", (int)tokens[i]);
}

static void print_speeds(const char *name, double original, double quantized)
{
    printf("%-28s ", name);
    if (original > 0)
        printf("%12.1f %12.1f tokens/s  %.2f x\n", original, quantized, quantized / original);
    else
        printf("%12s %12.1f tokens/s\n", "", quantized);
}

static void print_table(const generate_run *run)
{
    static const char *const names[MODELS] = {"original", "quantized"};
    const decant_backend *backend = run->job->backend;
    const generated *before = &run->models[ORIGINAL], *after = &run->models[QUANTIZED];
    for (int64_t i = 0; i < run->prompts.sequences; i++)
        for (int model = 0; model < MODELS; model++)
            if (run->models[model].tokens) {
                printf("prompt %lld, %s: ", (long long)i + 1, names[model]);
                print_ids(run->models[model].tokens + i * run->new_tokens, run->new_tokens, " ");
                printf("\n");
            }
    if (before->tokens)
        printf("\n%-28s %lld of %lld\n", "same tokens from the start", (long long)same_tokens(run),
               (long long)(run->prompts.sequences * run->new_tokens));
    printf("\non %s, %s\n%-28s %12s %12s\n", backend->name, backend->device_name, "",
           before->tokens ? "original" : "", "quantized");
    print_speeds("prompts", prompt_speed(run, before), prompt_speed(run, after));
    if (run->new_tokens > 1)
        print_speeds("new tokens, batch 1", decode_speed(run, before), decode_speed(run, after));
}

static void print_model_json(const generate_run *run, const generated *model)
{
    printf("{\"tokens\":[");
    for (int64_t i = 0; i < run->prompts.sequences; i++) {
        printf("%s[", i ? "," : "");
        print_ids(model->tokens + i * run->new_tokens, run->new_tokens, ",");
        printf("]");
    }
    printf("],\"prompt_tokens_per_second\":%.6g,\"tokens_per_second\":%.6g,\"weight_bytes\":%lld}",
           prompt_speed(run, model), decode_speed(run, model), (long long)model->weight_bytes);
}

static void print_json(const generate_run *run)
{
    const decant_job *job = run->job;
    int64_t room = run->prompts.length + run->new_tokens - 1;
    printf("{\"prompts\":%lld,\"prompt_tokens\":%lld,\"new_tokens\":%lld,\"kept_bytes\":%lld,\"quantized\":",
           (long long)run->prompts.sequences, (long long)run->prompts.length, (long long)run->new_tokens,
           (long long)decant_generation_kept_bytes(&job->config, job->backend->activation, room));
    print_model_json(run, &run->models[QUANTIZED]);
    if (run->models[ORIGINAL].tokens) {
        printf(",\"original\":");
        print_model_json(run, &run->models[ORIGINAL]);
        printf(",\"same_tokens\":%lld", (long long)same_tokens(run));
    }
    printf("}\n");
}

static void report(generate_run *run)
{
    decant_job *job = run->job;
    decant_log_event(job->log, "generate",
                     "\"prompts\":%lld,\"prompt_tokens\":%lld,\"new_tokens\":%lld,"
                     "\"tokens_per_second_original\":%.6g,\"tokens_per_second_quantized\":%.6g",
                     (long long)run->prompts.sequences, (long long)run->prompts.length,
                     (long long)run->new_tokens, decode_speed(run, &run->models[ORIGINAL]),
                     decode_speed(run, &run->models[QUANTIZED]));
    if (job->options->json)
        print_json(run);
    else
        print_table(run);
    fflush(stdout);
}

/* ---- the command ---- */

static decant_status run_local(generate_run *run, decant_error *err)
{
    decant_job *job = run->job;
    decant_status status;
    DECANT_TRY(run_quantized(run, err));
    if (job->model) {
        decant_weight_source weights = decant_source_of_model(job->model);
        DECANT_TRY(run_model(run, &weights, ORIGINAL, err));
    }
    report(run);
done:
    return status;
}

decant_status decant_job_generate(decant_job *job, decant_error *err)
{
    generate_run run = {.job = job, .new_tokens = job->options->new_tokens};
    decant_status status;
    decant_log_stage(job->log, "generate");
    if (job->ranks->size > 1)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "generate takes one rank, not %d", job->ranks->size);
    status = decant_job_read_prompts(job, &run.prompts, err);
    if (status == DECANT_OK)
        status = decant_ranks_agree(job->ranks, run_local(&run, err), err);
    for (int model = 0; model < MODELS; model++)
        decant_memory_free(run.models[model].tokens);
    decant_token_array_free(&run.prompts);
    return status;
}
