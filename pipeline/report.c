/* See report.h. */
#include "pipeline/report.h"

#include "base/memory.h"
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
    double forward_s, backward_s, elapsed_s;
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
    DECANT_TRY(decant_schedule_idle_share(job->stages, batches, forward_s, backward_s, idle, err));
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
        decant_log_event(job->log, "idle",
                         "\"rank\":%d,\"stage\":%d,\"replica\":%d,\"micro_batches\":%lld,\"forward_s\":%.4f,"
                         "\"backward_s\":%.4f,\"elapsed_s\":%.4f,\"idle_share\":%.4f,\"predicted\":%.4f",
                         rank, stage, replica, (long long)own->batches, own->forward_s, own->backward_s,
                         own->elapsed_s, measured, predicted[stage]);
    }
}

void decant_report_idleness(const decant_calibration_run *run)
{
    decant_job *job = run->job;
    const decant_calibration_times *own = &run->times;
    stage_times mine = {run->batches, own->forward_s, own->backward_s, own->elapsed_s};
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
    int64_t weights = 0;
    for (int64_t i = 0; i < table->layers; i++)
        weights += table->rows[i].weights;
    decant_log_say(job->log, "quantized %lld matrices (%.1f million weights) in %.1f s",
                   (long long)table->layers, (double)weights / 1e6, seconds);
    decant_log_event(job->log, "quantize", "\"seconds\":%.3f,\"matrices\":%lld,\"weights\":%lld", seconds,
                     (long long)table->layers, (long long)weights);
    log_ranks(job, "quantize", seconds);
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
            (long long)agreement->count, is_noise ? "noise" : "Fisher sums", agreement->predicted_sum,
            agreement->measured_sum, agreement->predicted_sum / agreement->measured_sum,
            agreement->correlation);
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

void decant_report_allocation(decant_job *job, const decant_error_table *table, const int *chosen,
                              const decant_plan_summary *summary, double seconds)
{
    int64_t used[DECANT_BITS_MAXIMUM + 1] = {0};
    for (int64_t i = 0; i < table->layers; i++)
        used[table->rows[i].candidate[chosen[i]].bits]++;
    char counts[160] = "";
    size_t length = 0;
    for (int bits = DECANT_BITS_MINIMUM; bits <= DECANT_BITS_MAXIMUM; bits++)
        if (used[bits])
            length += (size_t)snprintf(counts + length, sizeof counts - length, "%s%lld with %d bits",
                                       length ? ", " : "", (long long)used[bits], bits);
    decant_log_say(job->log, "allocated %.3f bits a weight (%s), predicted loss increase %.4f", summary->bits,
                   counts, summary->predicted);
    decant_log_event(job->log, "allocate",
                     "\"seconds\":%.3f,\"bits\":%.6f,\"bytes\":%lld,\"predicted_loss_increase\":%.9g,"
                     "\"lower_bound\":%.9g",
                     seconds, summary->bits, (long long)summary->bytes, summary->predicted,
                     summary->lower_bound);
    char warning[DECANT_BUDGET_WARNING_BYTES];
    if (!decant_budget_is_trusted(summary->bits, summary->predicted, warning))
        decant_log_say(job->log, "warning: %s", warning);
}

void decant_report_writing(decant_job *job, double seconds)
{
    decant_log_say(job->log, "wrote %s in %.1f s", job->options->output, seconds);
    decant_log_event(job->log, "write", "\"seconds\":%.3f", seconds);
    log_ranks(job, "write", seconds);
}

/* ---- the result ---- */

static void print_json(const decant_validation_result *result, const decant_plan_summary *summary,
                       bool has_original)
{
    double targets = (double)result->sums.targets;
    printf("{\"windows\":%lld,\"targets\":%lld,\"perplexity_quantized\":%.9g", (long long)result->windows,
           (long long)result->sums.targets, decant_validation_perplexity_quantized(result));
    if (has_original)
        printf(",\"perplexity_original\":%.9g,\"kl_divergence\":%.9g,\"top1_agreement\":%.9g,"
               "\"measured_loss_increase\":%.9g",
               decant_validation_perplexity_original(result), result->sums.divergence / targets,
               (double)result->sums.same_top / targets,
               (result->sums.loss_quantized - result->sums.loss_original) / targets);
    if (summary)
        printf(",\"bits\":%.9g,\"quantized_bytes\":%lld,\"predicted_loss_increase\":%.9g", summary->bits,
               (long long)summary->bytes, summary->predicted);
    printf("}\n");
}

static void print_table(const decant_validation_result *result, const decant_plan_summary *summary,
                        bool has_original)
{
    double targets = (double)result->sums.targets;
    if (summary)
        printf("%-28s %.3f\n", "bits a weight", summary->bits);
    if (has_original)
        printf("%-28s %.4f\n", "perplexity before", decant_validation_perplexity_original(result));
    printf("%-28s %.4f\n", "perplexity after", decant_validation_perplexity_quantized(result));
    if (has_original) {
        printf("%-28s %.4f\n", "KL divergence", result->sums.divergence / targets);
        printf("%-28s %.2f %%\n", "top-1 agreement", 100 * (double)result->sums.same_top / targets);
        printf("%-28s %.4f\n", "measured loss increase",
               (result->sums.loss_quantized - result->sums.loss_original) / targets);
    }
    if (summary)
        printf("%-28s %.4f\n", "predicted loss increase", summary->predicted);
}

void decant_report_validation(decant_job *job, const decant_validation_result *result,
                              const decant_plan_summary *summary, double seconds)
{
    bool has_original = job->model != NULL;
    double targets = (double)result->sums.targets, tokens = targets + (double)result->windows;
    decant_log_say(job->log, "validated on %lld windows in %.1f s", (long long)result->windows, seconds);
    decant_log_event(
        job->log, "validate",
        "\"seconds\":%.3f,\"windows\":%lld,\"targets\":%lld,\"loss_original\":%.9g,\"loss_quantized\":%.9g,"
        "\"kl_divergence\":%.9g,\"top1_agreement\":%.9g,\"tokens_per_second_original\":%.6g,"
        "\"tokens_per_second_quantized\":%.6g",
        seconds, (long long)result->windows, (long long)result->sums.targets,
        result->sums.loss_original / targets, result->sums.loss_quantized / targets,
        result->sums.divergence / targets, (double)result->sums.same_top / targets,
        has_original ? tokens / result->original_s : 0.0, tokens / result->quantized_s);
    log_ranks(job, "validate", seconds);
    if (job->ranks->rank != 0)
        return;
    if (job->options->json)
        print_json(result, summary, has_original);
    else
        print_table(result, summary, has_original);
    fflush(stdout);
}
