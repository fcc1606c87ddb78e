/* See report.h. */
#include "pipeline/report.h"

#include "base/memory.h"
#include "pipeline/report_questions.h"
#include "pipeline/reuse.h"
#include "stages/budget.h"

#include <math.h>
#include <stdio.h>

/* ---- figures of every rank ---- */

typedef struct rank_figures {
    double seconds;
    int64_t host_peak_bytes, device_peak_bytes;
} rank_figures;

/* One log line a rank: time of the stage and peak memory so far. */
static void log_ranks(decant_job *job, const char *stage, double seconds)
{
    int64_t unused;
    rank_figures mine = {.seconds = seconds, .host_peak_bytes = decant_memory_usage_now().peak_bytes};
    job->backend->memory->usage(job->backend, &unused, &mine.device_peak_bytes, &unused);
    void *all = NULL;
    size_t all_bytes;
    decant_error unused_error;
    if (decant_ranks_gather(job->ranks, &mine, sizeof mine, &all, &all_bytes, &unused_error) != DECANT_OK)
        return;
    const rank_figures *figures = all;
    for (int rank = 0; rank < job->ranks->size; rank++)
        decant_log_event(job->log, "rank",
                         "\"stage\":\"%s\",\"rank\":%d,\"seconds\":%.3f,\"host_peak_bytes\":%lld,"
                         "\"device_peak_bytes\":%lld",
                         stage, rank, figures[rank].seconds, (long long)figures[rank].host_peak_bytes,
                         (long long)figures[rank].device_peak_bytes);
    decant_memory_free(all);
}

/* ---- the stages ---- */

/* Multiply-adds of a calibration pass: forward, input gradient and weight gradient of every linear layer. */
static double calibration_flops(const decant_job *job, const decant_statistics_origin *origin)
{
    double blocks = decant_schedule_block_cost(&job->config, origin->length) * job->config.layers;
    return 2 * (3 * blocks + 2 * decant_schedule_head_cost(&job->config, origin->length)) *
           (double)origin->sequences;
}

void decant_report_calibration(decant_job *job, const decant_statistics_origin *origin, double seconds)
{
    double flops = calibration_flops(job, origin);
    decant_log_say(job->log, "calibrated on %lld sequences of %lld tokens in %.1f s, mean loss %.5f",
                   (long long)origin->sequences, (long long)origin->length, seconds, origin->loss);
    decant_log_event(
        job->log, "calibrate",
        "\"seconds\":%.3f,\"sequences\":%lld,\"length\":%lld,\"loss\":%.9f,\"flop_per_second\":%.4g", seconds,
        (long long)origin->sequences, (long long)origin->length, origin->loss, flops / seconds);
    log_ranks(job, "calibrate", seconds);
}

/* A rank's share in a pipeline, as its times are gathered. */
typedef struct stage_times {
    int64_t batches;
    double forward_s, backward_s, filling_s, draining_s, elapsed_s;
} stage_times;

/* What the schedule predicts for the stages of one replica, from their mean times a micro-batch; [stages]. */
static decant_status predict_idleness(const decant_job *job, const stage_times *times, int replica,
                                      double *idle, decant_error *err)
{
    double *forward_s = NULL, *backward_s = NULL;
    decant_status status;
    int64_t batches = times[decant_job_rank(job, 0, replica)].batches;
    DECANT_TRY(decant_memory_allocate((size_t)job->stages * sizeof(double), "times of stages",
                                      (void **)&forward_s, err));
    DECANT_TRY(decant_memory_allocate((size_t)job->stages * sizeof(double), "times of stages",
                                      (void **)&backward_s, err));
    for (int stage = 0; stage < job->stages && batches > 0; stage++) {
        const stage_times *own = &times[decant_job_rank(job, stage, replica)];
        forward_s[stage] = own->forward_s / (double)batches;
        backward_s[stage] = own->backward_s / (double)batches;
    }
    DECANT_TRY(
        decant_schedule_idle_share(job->stages, job->plan.slack, batches, forward_s, backward_s, 0, idle, err));
done:
    decant_memory_free(forward_s);
    decant_memory_free(backward_s);
    return status;
}

/* One log line a rank of this replica. */
static void log_idleness(const decant_job *job, const stage_times *times, int replica, double longest_s,
                         const double *predicted)
{
    for (int stage = 0; stage < job->stages; stage++) {
        int rank = decant_job_rank(job, stage, replica);
        const stage_times *own = &times[rank];
        double measured = longest_s > 0 ? 1 - (own->forward_s + own->backward_s) / longest_s : 0;
        decant_log_event(
            job->log, "idle",
            "\"rank\":%d,\"stage\":%d,\"replica\":%d,\"micro_batches\":%lld,\"forward_s\":%.4f,"
            "\"backward_s\":%.4f,\"filling_s\":%.4f,\"draining_s\":%.4f,\"elapsed_s\":%.4f,\"idle_share\":%.4f,"
            "\"predicted\":%.4f",
            rank, stage, replica, (long long)own->batches, own->forward_s, own->backward_s, own->filling_s,
            own->draining_s, own->elapsed_s, measured, predicted[stage]);
    }
}

void decant_report_idleness(const decant_calibration_run *run)
{
    decant_job *job = run->job;
    const decant_calibration_times *own = &run->times;
    stage_times mine = {run->batches,   own->forward_s,  own->backward_s,
                        own->filling_s, own->draining_s, own->elapsed_s};
    stage_times *times = NULL;
    double *predicted = NULL;
    size_t all_bytes;
    decant_error unused;
    if (decant_ranks_gather(job->ranks, &mine, sizeof mine, (void **)&times, &all_bytes, &unused) != DECANT_OK)
        return;
    if (job->ranks->rank == 0 && decant_memory_allocate((size_t)job->stages * sizeof *predicted, "idle shares",
                                                        (void **)&predicted, &unused) == DECANT_OK)
        for (int replica = 0; replica < job->grid.replicas; replica++) {
            double longest_s = 0;
            for (int stage = 0; stage < job->stages; stage++) {
                double elapsed_s = times[decant_job_rank(job, stage, replica)].elapsed_s;
                longest_s = elapsed_s > longest_s ? elapsed_s : longest_s;
            }
            if (predict_idleness(job, times, replica, predicted, &unused) == DECANT_OK)
                log_idleness(job, times, replica, longest_s, predicted);
        }
    decant_memory_free(predicted);
    decant_memory_free(times);
}

void decant_report_quantization(decant_job *job, const decant_error_table *table, double seconds)
{
    int64_t matrices = 0, weights = 0;
    for (int64_t i = 0; i < table->layers; i++) {
        bool is_kept = decant_reuse_keeps(job->reuse, i, NULL);
        matrices += !is_kept;
        weights += is_kept ? 0 : table->rows[i].weights;
    }
    decant_log_say(job->log, "quantized %lld matrices (%.1f million weights) in %.1f s", (long long)matrices,
                   (double)weights / 1e6, seconds);
    decant_log_event(job->log, "quantize", "\"seconds\":%.3f,\"matrices\":%lld,\"weights\":%lld", seconds,
                     (long long)matrices, (long long)weights);
    log_ranks(job, "quantize", seconds);
}

/* How many matrices took each candidate: "120 with kmeans 3, 90 with higgs 4 p=2"; cut at size bytes. All
 * matrices have the same candidates. */
static void describe_choice(const decant_error_table *table, const int *chosen, char *text, size_t size)
{
    int64_t used[DECANT_CANDIDATES] = {0};
    size_t length = 0;
    for (int64_t i = 0; i < table->layers; i++)
        used[chosen[i]]++;
    text[0] = '\0';
    for (int i = 0; i < DECANT_CANDIDATES && length < size; i++) {
        if (!used[i])
            continue;
        char name[64];
        decant_candidate_describe(&table->rows[0].candidate[i], name, sizeof name);
        length += (size_t)snprintf(text + length, size - length, "%s%lld with %s", length ? ", " : "",
                                   (long long)used[i], name);
    }
}

/* What candidates are predicted from before anything is measured. */
static const char *predicting_sums(const decant_options *options)
{
    return decant_options_hessian_groups(options) == 0      ? "Fisher sums"
           : options->methods == 1u << DECANT_METHOD_GUIDED ? "Hessians"
                                                            : "Fisher sums and Hessians";
}

void decant_report_sensitivity(decant_job *job, const decant_sensitivity *sensitivity, double seconds)
{
    const decant_agreement *agreement = &sensitivity->agreement;
    const char *measure = sensitivity->measure == DECANT_MEASURE_LOSS ? "the loss difference" : "KL divergence";
    bool is_noise = sensitivity->kind == DECANT_SENSITIVITY_NOISE;
    char how[64] = "quantized alone";
    if (is_noise)
        snprintf(how, sizeof how, "noised at %d levels", sensitivity->levels);
    decant_log_say(job->log, "measured %s of %lld matrices %s, on %lld sequences of %lld %stokens, in %.1f s",
                   measure, (long long)sensitivity->layers, how, (long long)sensitivity->sequences,
                   (long long)sensitivity->length, sensitivity->random_tokens ? "random " : "", seconds);
    if (sensitivity->negatives > 0)
        decant_log_say(job->log, "%lld of %lld sensitivities are below zero and count as zero",
                       (long long)sensitivity->negatives, (long long)sensitivity->layers);
    if (agreement->count > 1)
        decant_log_say(
            job->log,
            "one matrix at a time, %lld matrices: predicted from %s %.4f in sum, measured %.4f (ratio "
            "%.3f), Pearson %.3f",
            (long long)agreement->count, is_noise ? "noise" : predicting_sums(job->options),
            agreement->predicted_sum, agreement->measured_sum,
            agreement->predicted_sum / agreement->measured_sum, agreement->correlation);
    decant_log_event(job->log, "sensitivity",
                     "\"seconds\":%.3f,\"kind\":\"%s\",\"measure\":\"%s\",\"sequences\":%lld,\"length\":%lld,"
                     "\"negatives\":%lld,\"compared\":%lld,\"predicted_sum\":%.9g,\"measured_sum\":%.9g,"
                     "\"pearson\":%.6f",
                     seconds, decant_sensitivity_kind_name(sensitivity->kind),
                     decant_sensitivity_measure_name(sensitivity->measure), (long long)sensitivity->sequences,
                     (long long)sensitivity->length, (long long)sensitivity->negatives,
                     (long long)agreement->count, agreement->predicted_sum, agreement->measured_sum,
                     agreement->correlation);
    log_ranks(job, "sensitivity", seconds);
}

/* Matrices of which, quantized, next to nothing is left: what levels and scales cannot hold in F16 becomes
 * zero, and so does what lies between the steps of a grid too coarse for it. Zeros are whole, with an error of
 * 0. */
static void warn_of_zeros(decant_job *job, const decant_error_table *table, const int *chosen)
{
    const double lost = 0.99;
    const int linears = job->family->linear_count;
    int64_t count = 0;
    double error = 0;
    decant_linear first = {0};
    for (int64_t i = 0; i < table->layers; i++) {
        const double relative = table->rows[i].candidate[chosen[i]].relative;
        if (relative < lost || count++ > 0)
            continue;
        error = relative;
        job->family->linear(&job->config, (int)(i / linears), (int)(i % linears), &first);
    }
    char others[64] = "";
    if (count > 1)
        snprintf(others, sizeof others, " and %lld more", (long long)(count - 1));
    if (count > 0)
        decant_log_say(
            job->log,
            "warning: %s%s: next to nothing is left once quantized (relative error %.2f): the weights "
            "are too small for F16, whose least is 6e-08, or for the steps of so few bits",
            first.name, others, error);
}

void decant_report_allocation(decant_job *job, const decant_error_table *table, const int *chosen,
                              const decant_plan_summary *summary, double seconds)
{
    char counts[512], predicted[64] = "";
    describe_choice(table, chosen, counts, sizeof counts);
    bool predicts = decant_options_predict_loss(job->options);
    if (predicts)
        snprintf(predicted, sizeof predicted, ", predicted %s %.4f",
                 decant_options_predicted_measure(job->options), summary->predicted);
    decant_log_say(job->log, "allocated %.3f bits a weight (%s)%s", summary->bits, counts, predicted);
    decant_log_event(
        job->log, "allocate", "\"seconds\":%.3f,\"bits\":%.6f,\"bytes\":%lld,\"%s\":%.9g,\"lower_bound\":%.9g",
        seconds, summary->bits, (long long)summary->bytes,
        predicts ? "predicted_loss_increase" : "error_times_weights", summary->predicted, summary->lower_bound);
    char warning[DECANT_BUDGET_WARNING_BYTES];
    if (!decant_budget_is_trusted(summary->bits, predicts ? summary->predicted : 0, warning))
        decant_log_say(job->log, "warning: %s", warning);
    warn_of_zeros(job, table, chosen);
}

void decant_report_writing(decant_job *job, double seconds)
{
    decant_log_say(job->log, "wrote %s in %.1f s", job->options->output, seconds);
    decant_log_event(job->log, "write", "\"seconds\":%.3f", seconds);
    log_ranks(job, "write", seconds);
}

/* ---- the result ---- */

/* Tokens a second through the decode products of batch i; 0 when it took no time that the clock saw. */
static double decode_speed(const decant_model_costs *costs, int i)
{
    return costs->decode_s[i] > 0 ? DECANT_DECODE_BATCH[i] / costs->decode_s[i] : 0;
}

/* Writes a list of the speeds of all batches. */
static void write_speeds(const decant_model_costs *costs, char *text, size_t size)
{
    size_t length = 0;
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++)
        length +=
            (size_t)snprintf(text + length, size - length, "%s%.6g", i ? "," : "", decode_speed(costs, i));
}

/* What the models take to run, as members of a JSON object that follow others. */
static void write_costs(const decant_validation_result *result, bool has_original, char *text, size_t size)
{
    char original[160] = "", quantized[160] = "", batches[64] = "", ours[400] = "";
    size_t length = 0;
    text[0] = '\0';
    if (result->quantized_costs.weight_bytes == 0)
        return; /* not measured: the models were never whole in memory */
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++)
        length += (size_t)snprintf(batches + length, sizeof batches - length, "%s%d", i ? "," : "",
                                   DECANT_DECODE_BATCH[i]);
    write_speeds(&result->quantized_costs, quantized, sizeof quantized);
    write_speeds(&result->original_costs, original, sizeof original);
    if (has_original)
        snprintf(ours, sizeof ours,
                 ",\"decode_tokens_per_second_original\":[%s],\"weight_bytes_original\":%lld", original,
                 (long long)result->original_costs.weight_bytes);
    snprintf(text, size,
             ",\"decode_batch\":[%s],\"decode_tokens_per_second_quantized\":[%s],"
             "\"weight_bytes_quantized\":%lld%s,\"device_peak_bytes\":%lld",
             batches, quantized, (long long)result->quantized_costs.weight_bytes, ours,
             (long long)result->peak_bytes);
}

/* One line: a figure of each model, and how many times the one the other is. */
static void print_cost(const char *name, double original, double quantized, double times, const char *unit)
{
    printf("%-28s ", name);
    if (original > 0)
        printf("%12.1f %12.1f %s  %.2f x\n", original, quantized, unit, times);
    else
        printf("%12s %12.1f %s\n", "", quantized, unit);
}

/* The same as a table. */
static void print_costs(const decant_job *job, const decant_validation_result *result)
{
    const decant_model_costs *before = &result->original_costs, *after = &result->quantized_costs;
    double mb = 1e6, weights = (double)before->weight_bytes / mb, packed = (double)after->weight_bytes / mb;
    if (after->weight_bytes == 0)
        return;
    printf("\non %s, %s\n%-28s %12s %12s\n", job->backend->name, job->backend->device_name, "",
           weights > 0 ? "original" : "", "quantized");
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++) {
        char name[40];
        double original = decode_speed(before, i), quantized = decode_speed(after, i);
        snprintf(name, sizeof name, "decode products, batch %d", DECANT_DECODE_BATCH[i]);
        print_cost(name, original, quantized, quantized / (original > 0 ? original : 1), "tokens/s");
    }
    print_cost("weights in memory", weights, packed, packed / (weights > 0 ? weights : 1), "MB");
    printf("%-28s %25.1f MB on one rank, all that this program held\n", "peak of memory",
           (double)result->peak_bytes / mb);
    printf("(decode products: the linear layers of all blocks, a batch of tokens at once; no attention, norms, "
           "head)\n");
}

/* The figures of text, as members of a JSON object. */
static void print_text_json(const decant_validation_result *result, bool has_original)
{
    double targets = (double)result->sums.targets;
    printf("\"windows\":%lld,\"targets\":%lld,\"perplexity_quantized\":%.9g", (long long)result->windows,
           (long long)result->sums.targets, decant_validation_perplexity_quantized(result));
    if (has_original)
        printf(",\"perplexity_original\":%.9g,\"kl_divergence\":%.9g,\"top1_agreement\":%.9g,"
               "\"measured_loss_increase\":%.9g",
               decant_validation_perplexity_original(result), result->sums.divergence / targets,
               (double)result->sums.same_top / targets,
               (result->sums.loss_quantized - result->sums.loss_original) / targets);
}

static void print_json(const decant_validation_result *result, const decant_question_result *questions,
                       const decant_plan_summary *summary, bool has_original, bool predicts)
{
    bool has_text = result->windows > 0;
    char costs[1024];
    printf("{");
    if (has_text)
        print_text_json(result, has_original);
    if (questions->set) {
        printf("%s", has_text ? "," : "");
        decant_print_questions_json(questions, has_original, stdout);
    }
    if (summary)
        printf(",\"bits\":%.9g,\"quantized_bytes\":%lld", summary->bits, (long long)summary->bytes);
    if (summary && predicts)
        printf(",\"predicted_loss_increase\":%.9g", summary->predicted);
    write_costs(result, has_original, costs, sizeof costs);
    printf("%s}\n", costs);
}

static void print_table(const decant_job *job, const decant_validation_result *result,
                        const decant_question_result *questions, const decant_plan_summary *summary,
                        bool has_original, bool predicts)
{
    double targets = (double)result->sums.targets;
    bool has_text = result->windows > 0;
    if (summary)
        printf("%-28s %.3f\n", "bits a weight", summary->bits);
    if (has_text && has_original)
        printf("%-28s %.4f\n", "perplexity before", decant_validation_perplexity_original(result));
    if (has_text)
        printf("%-28s %.4f\n", "perplexity after", decant_validation_perplexity_quantized(result));
    if (has_text && has_original) {
        printf("%-28s %.4f\n", "KL divergence", result->sums.divergence / targets);
        printf("%-28s %.2f %%\n", "top-1 agreement", 100 * (double)result->sums.same_top / targets);
        printf("%-28s %.4f\n", "measured loss increase",
               (result->sums.loss_quantized - result->sums.loss_original) / targets);
    }
    if (summary && predicts)
        printf("predicted %-18s %.4f\n", decant_options_predicted_measure(job->options), summary->predicted);
    if (questions->set) {
        printf("%s", summary || has_text ? "\n" : "");
        decant_print_questions(questions, has_original, stdout);
    }
    print_costs(job, result);
}

static void log_text(decant_job *job, const decant_validation_result *result, double seconds)
{
    bool has_original = job->model != NULL;
    double targets = (double)result->sums.targets, tokens = targets + (double)result->windows;
    char costs[1024];
    write_costs(result, has_original, costs, sizeof costs);
    decant_log_say(job->log, "validated on %lld windows in %.1f s", (long long)result->windows, seconds);
    decant_log_event(
        job->log, "validate",
        "\"seconds\":%.3f,\"windows\":%lld,\"targets\":%lld,\"loss_original\":%.9g,\"loss_quantized\":%.9g,"
        "\"kl_divergence\":%.9g,\"top1_agreement\":%.9g,\"tokens_per_second_original\":%.6g,"
        "\"tokens_per_second_quantized\":%.6g%s",
        seconds, (long long)result->windows, (long long)result->sums.targets,
        result->sums.loss_original / targets, result->sums.loss_quantized / targets,
        result->sums.divergence / targets, (double)result->sums.same_top / targets,
        has_original ? tokens / result->original_s : 0.0, tokens / result->quantized_s, costs);
}

void decant_report_validation(decant_job *job, const decant_validation_result *result,
                              const decant_question_result *questions, const decant_plan_summary *summary,
                              double seconds)
{
    bool has_original = job->model != NULL, predicts = decant_options_predict_loss(job->options);
    if (result->windows > 0)
        log_text(job, result, seconds - questions->seconds);
    if (questions->set) {
        decant_log_say(job->log, "scored %lld questions in %.1f s", (long long)questions->set->question_count,
                       questions->seconds);
        decant_log_questions(job->log, questions, has_original);
    }
    log_ranks(job, "validate", seconds);
    if (job->ranks->rank != 0)
        return;
    if (job->options->json)
        print_json(result, questions, summary, has_original, predicts);
    else
        print_table(job, result, questions, summary, has_original, predicts);
    fflush(stdout);
}
