/* See reuse.h. */
#include "pipeline/reuse.h"

#include "base/memory.h"
#include "pipeline/provenance.h"
#include "pipeline/quantization.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- is it the same job, but for the weights? ---- */

/* Notes why nothing is taken over; always false. */
static bool __attribute__((format(printf, 2, 3))) refuse(decant_reuse *reuse, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reuse->obstacle, sizeof reuse->obstacle, format, arguments);
    va_end(arguments);
    for (char *at = reuse->obstacle; *at; at++) /* it goes into a JSON line */
        if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ')
            *at = '?';
    return false;
}

static bool has_text(decant_reuse *reuse, const char *name, const char *expected)
{
    char text[DECANT_PROVENANCE_BYTES];
    decant_error absent;
    if (decant_container_get_text(reuse->container, "/", name, text, sizeof text, &absent) != DECANT_OK)
        return refuse(reuse, "it has no %s", name);
    return strcmp(text, expected) == 0 || refuse(reuse, "%s: %s there, %s here", name, text, expected);
}

static bool has_integer(decant_reuse *reuse, const char *name, int64_t expected)
{
    int64_t value;
    decant_error absent;
    if (decant_container_get_integer(reuse->container, "/", name, &value, &absent) != DECANT_OK)
        return refuse(reuse, "it has no %s", name);
    return value == expected ||
           refuse(reuse, "%s: %lld there, %lld here", name, (long long)value, (long long)expected);
}

/* The next "name=value" of a line of them; false at its end. The budget is passed over: what a candidate is
 * does not depend on it. */
static bool next_pair(const char **line, char *pair, size_t size)
{
    do {
        size_t length = strcspn(*line, " ");
        snprintf(pair, size, "%.*s", (int)length, *line);
        *line += length + ((*line)[length] == ' ');
        if (length == 0)
            return false;
    } while (strncmp(pair, "bits=", 5) == 0 || strncmp(pair, "size=", 5) == 0);
    return true;
}

static bool has_same_options(const decant_job *job, decant_reuse *reuse, const decant_statistics_origin *origin)
{
    char here[DECANT_PROVENANCE_BYTES], there[DECANT_PROVENANCE_BYTES];
    decant_error absent;
    if (decant_container_get_text(reuse->container, "/", "options", there, sizeof there, &absent) != DECANT_OK)
        return refuse(reuse, "it does not say with which options it was made");
    decant_job_describe_options(job, origin, here);
    for (const char *a = there, *b = here;;) {
        char pair_there[DECANT_PROVENANCE_BYTES], pair_here[DECANT_PROVENANCE_BYTES];
        bool more_there = next_pair(&a, pair_there, sizeof pair_there);
        bool more_here = next_pair(&b, pair_here, sizeof pair_here);
        if (!more_there && !more_here)
            return true;
        if (more_there != more_here || strcmp(pair_there, pair_here) != 0)
            return refuse(reuse, "options: %.100s there, %.100s here", more_there ? pair_there : "none",
                          more_here ? pair_here : "none");
    }
}

/* The statistics' own model: recorded where it is not the container's. */
static bool has_same_weights_behind(decant_reuse *reuse, const decant_statistics_origin *origin)
{
    int64_t unused;
    decant_error absent;
    bool is_own = decant_container_get_integer(reuse->container, "/", "statistics_model_crc32", &unused,
                                               &absent) != DECANT_OK;
    return has_integer(reuse, is_own ? "model_crc32" : "statistics_model_crc32", origin->model_checksum);
}

static bool has_same_statistics(decant_reuse *reuse, const decant_statistics_origin *origin)
{
    double loss;
    int64_t unused;
    decant_error absent;
    if (origin->sequences == 0)
        return decant_container_get_integer(reuse->container, "/", "calibration_crc32", &unused, &absent) !=
                   DECANT_OK ||
               refuse(reuse, "it was made with statistics");
    if (!has_integer(reuse, "calibration_crc32", origin->calibration_checksum) ||
        !has_integer(reuse, "calibration_sequences", origin->sequences) ||
        !has_integer(reuse, "calibration_length", origin->length) ||
        !has_integer(reuse, "calibration_micro_batch", origin->micro_batch) ||
        !has_integer(reuse, "calibration_replicas", origin->replicas) ||
        !has_same_weights_behind(reuse, origin))
        return false;
    if (decant_container_get_real(reuse->container, "/", "calibration_loss", &loss, &absent) != DECANT_OK)
        return refuse(reuse, "it has no calibration_loss");
    return loss == origin->loss || (isnan(loss) && isnan(origin->loss)) ||
           refuse(reuse, "calibration_loss: %.17g there, %.17g here", loss, origin->loss);
}

static bool is_same_job(const decant_job *job, decant_reuse *reuse, const decant_statistics_origin *origin)
{
    char device[64];
    decant_job_describe_device(job, device, sizeof device);
    if (reuse->plan.table.layers != reuse->layers)
        return refuse(reuse, "it has %lld quantized matrices, the model %lld",
                      (long long)reuse->plan.table.layers, (long long)reuse->layers);
    return has_text(reuse, "program_version", DECANT_VERSION) && has_text(reuse, "device", device) &&
           has_same_options(job, reuse, origin) && has_same_statistics(reuse, origin);
}

/* ---- which matrices are the same? ---- */

static bool has_layer_integer(const decant_reuse *reuse, const char *layer, const char *name, int64_t expected)
{
    char group[DECANT_CONTAINER_PATH_BYTES];
    int64_t value;
    decant_error absent;
    snprintf(group, sizeof group, "/%s", layer);
    return decant_container_get_integer(reuse->container, group, name, &value, &absent) == DECANT_OK &&
           value == expected;
}

/* Are the candidates of this matrix those that the container's table speaks of? Then `row` gets their figures.
 */
static bool take_figures(const decant_candidate_list *list, const decant_table_row *stored,
                         decant_table_row *row)
{
    if (list->count != stored->candidates)
        return false;
    row->candidates = list->count;
    for (int i = 0; i < list->count; i++) {
        const decant_candidate *here = &list->candidate[i], *there = &stored->candidate[i];
        if (here->method != there->method || here->code_bits != there->code_bits ||
            here->dimension != there->dimension || here->group != there->group ||
            here->sparse != there->sparse || here->bytes != there->bytes)
            return false;
        row->candidate[i] = *here;
        row->candidate[i].predicted = row->candidate[i].from_sums = there->predicted;
        row->candidate[i].relative = there->relative;
    }
    return true;
}

/* Fills is_same and rows for one matrix. */
static decant_status compare_matrix(const decant_job *job, const decant_recipe *recipe, decant_reuse *reuse,
                                    int64_t matrix, decant_error *err)
{
    int linears = job->family->linear_count;
    decant_linear linear;
    decant_candidate_list list;
    job->family->linear(&job->config, (int)(matrix / linears), (int)(matrix % linears), &linear);
    decant_status status = decant_recipe_offer(recipe, linear.rows, linear.columns, &list, err);
    if (status != DECANT_OK)
        return status;
    decant_table_row row = {
        .source_checksum = job->weight_checksums[matrix],
        .weights = linear.rows * linear.columns,
    };
    reuse->is_same[matrix] = strcmp(reuse->plan.name[matrix], linear.name) == 0 &&
                             has_layer_integer(reuse, linear.name, "rows", linear.rows) &&
                             has_layer_integer(reuse, linear.name, "columns", linear.columns) &&
                             has_layer_integer(reuse, linear.name, "source_crc32", row.source_checksum) &&
                             take_figures(&list, &reuse->plan.table.rows[matrix], &row);
    if (reuse->is_same[matrix]) {
        reuse->rows[matrix] = row;
        reuse->same++;
    }
    return DECANT_OK;
}

/* ---- opening and closing ---- */

/* Local, and the same on every rank. */
static decant_status open_container(decant_job *job, const decant_statistics_origin *origin, decant_error *err)
{
    const char *path = job->options->reuse;
    decant_recipe recipe = decant_job_recipe(job, origin);
    decant_reuse *reuse;
    decant_status status;
    DECANT_TRY(decant_memory_allocate(sizeof *reuse, "what is taken over", (void **)&job->reuse, err));
    reuse = job->reuse;
    reuse->layers = (int64_t)job->config.layers * job->family->linear_count;
    DECANT_TRY(decant_memory_allocate((size_t)reuse->layers * sizeof *reuse->is_same, "what is taken over",
                                      (void **)&reuse->is_same, err));
    DECANT_TRY(decant_memory_allocate((size_t)reuse->layers * sizeof *reuse->rows, "what is taken over",
                                      (void **)&reuse->rows, err));
    DECANT_TRY(decant_container_open(path, &reuse->container, err));
    DECANT_TRY(decant_container_plan_read(reuse->container, path, &reuse->plan, err));
    if (is_same_job(job, reuse, origin))
        for (int64_t i = 0; i < reuse->layers; i++)
            DECANT_TRY(compare_matrix(job, &recipe, reuse, i, err));
done:
    return status;
}

decant_status decant_job_open_reuse(decant_job *job, const decant_statistics_origin *origin, decant_error *err)
{
    if (!job->options->reuse[0])
        return DECANT_OK;
    decant_status status = decant_ranks_agree(job->ranks, open_container(job, origin, err), err);
    if (status != DECANT_OK)
        return status;
    if (job->reuse->obstacle[0])
        decant_log_say(job->log, "nothing is taken over from %s: %s", job->options->reuse,
                       job->reuse->obstacle);
    return DECANT_OK;
}

void decant_reuse_close(decant_reuse **reuse)
{
    if (!*reuse)
        return;
    decant_container_close(&(*reuse)->container);
    decant_container_plan_free(&(*reuse)->plan);
    decant_memory_free((*reuse)->is_same);
    decant_memory_free((*reuse)->rows);
    decant_memory_free(*reuse);
    *reuse = NULL;
}

bool decant_reuse_keeps(const decant_reuse *reuse, int64_t matrix, const int *chosen)
{
    return reuse && reuse->is_same[matrix] && (!chosen || chosen[matrix] == reuse->plan.chosen[matrix]);
}

/* ---- what is said of it ---- */

/* Names what was quantized; returns how many were not. */
static int64_t log_matrices(decant_job *job, const int *chosen)
{
    const decant_reuse *reuse = job->reuse;
    int linears = job->family->linear_count;
    int64_t taken = 0;
    for (int64_t i = 0; i < reuse->layers; i++) {
        decant_linear linear;
        if (decant_reuse_keeps(reuse, i, chosen)) {
            taken++;
            continue;
        }
        job->family->linear(&job->config, (int)(i / linears), (int)(i % linears), &linear);
        decant_log_event(job->log, "quantized_anew", "\"matrix\":\"%s\",\"why\":\"%s\"", linear.name,
                         reuse->is_same[i] ? "allocation" : "weights");
    }
    return taken;
}

void decant_report_reuse(decant_job *job, const int *chosen)
{
    const decant_reuse *reuse = job->reuse;
    if (!reuse)
        return;
    bool is_refused = reuse->obstacle[0] != '\0';
    int64_t taken = is_refused ? 0 : log_matrices(job, chosen);
    int64_t weights = is_refused ? 0 : reuse->layers - reuse->same, candidates = reuse->same - taken;
    decant_log_event(job->log, "reuse",
                     "\"taken\":%lld,\"matrices\":%lld,\"other_weights\":%lld,\"other_candidates\":%lld,"
                     "\"obstacle\":\"%s\"",
                     (long long)taken, (long long)reuse->layers, (long long)weights, (long long)candidates,
                     reuse->obstacle);
    if (!is_refused)
        decant_log_say(job->log,
                       "%lld of %lld matrices are taken over from %s; %lld have other weights, %lld are given "
                       "another candidate than there",
                       (long long)taken, (long long)reuse->layers, job->options->reuse, (long long)weights,
                       (long long)candidates);
}
