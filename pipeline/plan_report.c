/* See plan_report.h. Bytes are printed in units of 2^30, as --device-memory 80G counts them; files, which disks
 * count so, in 10^9. */
#include "pipeline/plan_report.h"

#include "pipeline/linear_sizes.h"
#include "pipeline/plan_advice.h"
#include "pipeline/plan_request.h"
#include "pipeline/print_json.h"
#include "stages/budget.h"

#include <string.h>

static const int64_t DEVICE_BYTES_DEFAULT = (int64_t)80 << 30;
enum { SEQUENCES_DEFAULT = 128 };

static double gib(int64_t bytes)
{
    return (double)bytes / 0x1p30;
}

static double gb(int64_t bytes)
{
    return (double)bytes / 1e9;
}

/* ---- for people ---- */

static void print_mode(const decant_plan *plan, FILE *stream)
{
    const decant_job_shape *shape = &plan->shape;
    fprintf(stream, "%d rank%s: %d stage%s x %d replica%s, %s", plan->ranks, plan->ranks == 1 ? "" : "s",
            plan->stages, plan->stages == 1 ? "" : "s", plan->replicas, plan->replicas == 1 ? "" : "s",
            plan->streamed ? "streamed" : "resident");
    if (!plan->streamed)
        fprintf(stream, ", activations %s", plan->retain ? "kept" : "computed again");
    fprintf(stream, "\n");
    if (shape->calibrates)
        fprintf(stream, "calibration: %lld sequences of %lld tokens, %lld at a time\n",
                (long long)shape->sequences, (long long)shape->window, (long long)shape->micro_batch);
    if (shape->validation_windows > 0)
        fprintf(stream, "validation: %lld windows of %lld tokens\n", (long long)shape->validation_windows,
                (long long)shape->validation_window);
}

/* Few ranks have a line each; of many, those share one that have as many layers and sequences. */
enum { LINES_OF_EACH = 16 };

static bool shares_line(const decant_plan *plan, int first, int rank)
{
    const decant_rank_share *a = &plan->rank[first].share, *b = &plan->rank[rank].share;
    return plan->ranks > LINES_OF_EACH && a->layers.count == b->layers.count && a->sequences == b->sequences;
}

/* The largest figures of the ranks of a line. */
typedef struct line_figures {
    double device_gib, host_gib, scratch_gib, written_gb, sent_gib, petaflop, idle;
    decant_job_stage stage;
} line_figures;

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static line_figures figures_of(const decant_plan *plan, int first, int end)
{
    line_figures most = {.stage = DECANT_STAGE_CALIBRATE};
    for (int rank = first; rank < end; rank++) {
        const decant_rank_plan *each = &plan->rank[rank];
        const decant_rank_memory *memory = &each->memory;
        double device_gib = gib(plan->shape.cuda ? memory->peak.device : memory->peak.host);
        if (device_gib > most.device_gib)
            most.stage = plan->shape.cuda ? memory->device_stage : memory->host_stage;
        most.device_gib = larger(most.device_gib, device_gib);
        most.host_gib = larger(most.host_gib, gib(memory->peak.host));
        most.scratch_gib = larger(most.scratch_gib, gib(memory->peak.scratch));
        most.written_gb = larger(most.written_gb, gb(each->written_bytes));
        most.sent_gib = larger(most.sent_gib, gib(each->sent_bytes));
        most.petaflop = larger(most.petaflop, each->flops / 1e15);
        most.idle = larger(most.idle, each->idle);
    }
    return most;
}

static void name_range(int first, int last, char *text, size_t size)
{
    if (last < first)
        snprintf(text, size, "none");
    else
        snprintf(text, size, first == last ? "%d" : "%d-%d", first, last);
}

static void print_line(const decant_plan *plan, int first, int end, FILE *stream)
{
    const decant_rank_share *share = &plan->rank[first].share;
    const decant_layer_range *last = &plan->rank[end - 1].share.layers;
    line_figures most = figures_of(plan, first, end);
    char ranks[24], layers[24], device[40];
    name_range(first, end - 1, ranks, sizeof ranks);
    name_range(share->layers.first, last->first + last->count - 1, layers, sizeof layers);
    snprintf(device, sizeof device, "%.1f %s", most.device_gib, decant_job_stage_name(most.stage));
    fprintf(stream, "%7s %7s %7d %9lld  %-15s %7.1f %8.1f %7.2f %7.2f %8.2f %6.1f %%\n", ranks, layers,
            share->layers.count, (long long)share->sequences, device, most.host_gib, most.scratch_gib,
            most.written_gb, most.sent_gib, most.petaflop, 100 * most.idle);
}

static void print_ranks(const decant_plan *plan, FILE *stream)
{
    fprintf(stream, "\n%7s %7s %7s %9s  %-15s %7s %8s %7s %7s %8s %8s\n",
            plan->ranks > LINES_OF_EACH ? "ranks" : "rank", "layers", "of each", "sequences",
            plan->shape.cuda ? "device peak" : "memory peak", "host", "scratch", "writes", "sends", "PFLOP",
            "idle");
    fprintf(stream, "%7s %7s %7s %9s  %-15s %7s %8s %7s %7s\n", "", "", "", "", "GiB, in", "GiB", "GiB", "GB",
            "GiB");
    for (int first = 0, end; first < plan->ranks; first = end) {
        for (end = first + 1; end < plan->ranks && shares_line(plan, first, end);)
            end++;
        print_line(plan, first, end, stream);
    }
    if (plan->ranks > LINES_OF_EACH)
        fprintf(stream, "(the largest figures of the ranks of a line; --json has each rank's)\n");
}

/* What guided's search computes on all ranks, and how fast. */
static void print_guided(const decant_plan *plan, const decant_guided_operations *rates, FILE *stream)
{
    decant_guided_operations sum = {0};
    for (int rank = 0; rank < plan->ranks; rank++)
        decant_guided_operations_add(&sum, &plan->rank[rank].guided);
    if (rates->products == 0 || sum.products == 0)
        return;
    const struct {
        const char *name;
        double operations, rate;
    } kinds[] = {{"products with Hessians", sum.products, rates->products},
                 {"sums by level", sum.level_sums, rates->level_sums},
                 {"error feedback", sum.feedback, rates->feedback}};
    fprintf(stream, "guided's search, in quantize:");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        fprintf(stream, "%s %.2f PFLOP of %s at %.0f TFLOP/s", i > 0 ? "," : "", kinds[i].operations / 1e15,
                kinds[i].name, kinds[i].rate / 1e12);
    fprintf(stream, "; measured on one H200\n");
}

static void print_seconds(const decant_plan *plan, const decant_plan_request *request,
                          const decant_options *options, FILE *stream)
{
    const decant_rates *rates = &request->rates;
    double sum = 0;
    if (rates->flop_s == 0) {
        fprintf(
            stream,
            "\nno times: nothing was measured on this kind of device; give --teraflops and the other rates\n");
        return;
    }
    fprintf(stream, "\nexpected seconds:");
    for (int stage = 0; stage < DECANT_STAGES; stage++) {
        fprintf(stream, " %s %.1f%s", decant_job_stage_name((decant_job_stage)stage), plan->seconds[stage],
                stage + 1 < DECANT_STAGES ? "," : "");
        sum += plan->seconds[stage];
    }
    fprintf(stream, "; %.0f in all\n", sum);
    bool given = options->teraflops > 0 || options->quantize_rate > 0 || options->read_rate > 0 ||
                 options->write_rate > 0;
    fprintf(stream,
            "at, for a rank: %.0f TFLOP/s, %.0f million weights quantized a second, reading %.1f GB/s, writing "
            "%.2f "
            "GB/s;\n  %s; messages between ranks %s\n",
            rates->flop_s / 1e12, rates->quantized_s / 1e6, rates->read_bytes_s / 1e9,
            rates->write_bytes_s / 1e9,
            given ? "as given, and else as measured on one H100 (tests/gpu/RESULTS.md)"
                  : "measured on one H100 with LLaMA-7B shapes (tests/gpu/RESULTS.md)",
            rates->message_bytes_s > 0 ? "counted where they do not overlap" : "not counted (--message-rate)");
    print_guided(plan, &rates->guided, stream);
    if (plan->faster_replicas > 0)
        fprintf(stream,
                "with --replicas %d calibration would take %.1f s; its last bits, and the container's, would "
                "differ\n",
                plan->faster_replicas, plan->faster_s);
}

static void print_hessians(const decant_plan *plan, FILE *stream)
{
    if (plan->hessian_bytes > 0)
        fprintf(stream, "Hessians of guided: %.2f GB, %.2f GB a layer; %s\n", gb(plan->hessian_bytes),
                gb(plan->block_hessian_bytes),
                plan->streamed ? "those of one layer are there at a time"
                               : "each rank has those of its layers, and frees one as its matrix is quantized");
}

static void print_files(const decant_plan *plan, FILE *stream)
{
    print_hessians(plan, stream);
    if (!plan->shape.quantizes) {
        fprintf(stream, "statistics file: %.2f GB", gb(plan->statistics_bytes));
    } else {
        fprintf(stream, "container: %.2f GB", gb(plan->container_bytes));
        if (plan->smallest_bytes < plan->largest_bytes)
            fprintf(stream, " (between %.2f and %.2f by --bit-widths)", gb(plan->smallest_bytes),
                    gb(plan->largest_bytes));
        fprintf(stream, "; a file of Fisher sums: %.2f GB", gb(plan->statistics_bytes));
    }
    if (plan->work_bytes > 0)
        fprintf(stream, "; checkpoints in OUTPUT.work: at most %.2f GB", gb(plan->work_bytes));
    fprintf(stream, "\n");
}

static void print_verdict(const decant_plan *plan, const decant_plan_request *request, FILE *stream)
{
    if (request->device_bytes > 0)
        fprintf(stream, "%s %.1f GiB of device memory a rank", plan->fits ? "fits" : "does not fit",
                gib(request->device_bytes));
    if (request->host_bytes > 0)
        fprintf(stream, "%s %.1f GiB of host memory",
                request->device_bytes > 0 ? " and"
                : plan->fits              ? "fits"
                                          : "does not fit",
                gib(request->host_bytes));
    if (request->device_bytes > 0 || request->host_bytes > 0)
        fprintf(stream, "\n");
    if (!plan->validation_fits)
        fprintf(stream, "validation takes one layer after the other: both models do not fit together\n");
}

/* ---- for programs ---- */

static void add_bytes(cJSON *object, const decant_memory_bytes *bytes)
{
    cJSON_AddNumberToObject(object, "device_bytes", (double)bytes->device);
    cJSON_AddNumberToObject(object, "host_bytes", (double)bytes->host);
    cJSON_AddNumberToObject(object, "mapped_bytes", (double)bytes->mapped);
    cJSON_AddNumberToObject(object, "scratch_bytes", (double)bytes->scratch);
}

static cJSON *rank_json(const decant_plan *plan, int index)
{
    const decant_rank_plan *rank = &plan->rank[index];
    const decant_calibration_bytes *parts = &rank->memory.calibration;
    cJSON *object = cJSON_CreateObject();
    cJSON_AddNumberToObject(object, "rank", index);
    cJSON_AddNumberToObject(object, "replica", rank->share.replica);
    cJSON_AddNumberToObject(object, "first_layer", rank->share.layers.first);
    cJSON_AddNumberToObject(object, "layers", rank->share.layers.count);
    cJSON_AddNumberToObject(object, "sequences", (double)rank->share.sequences);
    add_bytes(object, &rank->memory.peak);
    cJSON_AddStringToObject(object, "device_peak_stage", decant_job_stage_name(rank->memory.device_stage));
    cJSON_AddStringToObject(object, "host_peak_stage", decant_job_stage_name(rank->memory.host_stage));
    cJSON *stages = cJSON_AddObjectToObject(object, "stages");
    for (int stage = DECANT_STAGE_CALIBRATE; stage < DECANT_STAGES; stage++)
        add_bytes(cJSON_AddObjectToObject(stages, decant_job_stage_name((decant_job_stage)stage)),
                  &rank->memory.at[stage]);
    cJSON *calibration = cJSON_AddObjectToObject(object, "calibration");
    cJSON_AddNumberToObject(calibration, "weight_bytes", (double)parts->weights);
    cJSON_AddNumberToObject(calibration, "fisher_bytes", (double)parts->fisher);
    cJSON_AddNumberToObject(calibration, "boundary_bytes", (double)parts->boundaries);
    cJSON_AddNumberToObject(calibration, "kept_bytes", (double)parts->kept);
    cJSON_AddNumberToObject(calibration, "head_bytes", (double)parts->head);
    cJSON_AddNumberToObject(calibration, "working_bytes", (double)parts->working);
    cJSON_AddNumberToObject(object, "written_bytes", (double)rank->written_bytes);
    cJSON_AddNumberToObject(object, "sent_bytes", (double)rank->sent_bytes);
    cJSON_AddNumberToObject(object, "flop", rank->flops);
    cJSON *guided = cJSON_AddObjectToObject(object, "guided_flop");
    cJSON_AddNumberToObject(guided, "products", rank->guided.products);
    cJSON_AddNumberToObject(guided, "level_sums", rank->guided.level_sums);
    cJSON_AddNumberToObject(guided, "feedback", rank->guided.feedback);
    cJSON_AddNumberToObject(object, "idle_share", rank->idle);
    return object;
}

static decant_status print_json(const decant_plan *plan, const decant_plan_request *request, FILE *stream,
                                decant_error *err)
{
    char advice[DECANT_ERROR_MESSAGE_BYTES] = "";
    cJSON *object = cJSON_CreateObject();
    cJSON_AddNumberToObject(object, "ranks", plan->ranks);
    cJSON_AddNumberToObject(object, "stages", plan->stages);
    cJSON_AddNumberToObject(object, "replicas", plan->replicas);
    cJSON_AddStringToObject(object, "memory", plan->streamed ? "streamed" : "resident");
    cJSON_AddStringToObject(object, "activations", plan->retain ? "keep" : "recompute");
    cJSON_AddNumberToObject(object, "sequences", (double)plan->shape.sequences);
    cJSON_AddNumberToObject(object, "window", (double)plan->shape.window);
    cJSON_AddNumberToObject(object, "micro_batch", (double)plan->shape.micro_batch);
    cJSON_AddBoolToObject(object, "fits", plan->fits);
    cJSON_AddBoolToObject(object, "validation_fits", plan->validation_fits);
    cJSON_AddNumberToObject(object, "device_memory_bytes", (double)request->device_bytes);
    cJSON_AddNumberToObject(object, "host_memory_bytes", (double)request->host_bytes);
    if (!plan->fits)
        decant_plan_describe_advice(plan, advice, sizeof advice);
    cJSON_AddStringToObject(object, "advice", advice);
    cJSON_AddNumberToObject(object, "faster_replicas", plan->faster_replicas);
    cJSON *seconds = cJSON_AddObjectToObject(object, "seconds");
    for (int stage = 0; stage < DECANT_STAGES; stage++)
        cJSON_AddNumberToObject(seconds, decant_job_stage_name((decant_job_stage)stage), plan->seconds[stage]);
    cJSON_AddNumberToObject(object, "quantized_weights", (double)plan->weights);
    cJSON_AddNumberToObject(object, "container_bytes", (double)plan->container_bytes);
    cJSON_AddNumberToObject(object, "container_smallest_bytes", (double)plan->smallest_bytes);
    cJSON_AddNumberToObject(object, "container_largest_bytes", (double)plan->largest_bytes);
    cJSON_AddNumberToObject(object, "hessian_bytes", (double)plan->hessian_bytes);
    cJSON_AddNumberToObject(object, "statistics_bytes", (double)plan->statistics_bytes);
    cJSON_AddNumberToObject(object, "checkpoint_bytes", (double)plan->work_bytes);
    cJSON *ranks = cJSON_AddArrayToObject(object, "rank");
    for (int rank = 0; rank < plan->ranks; rank++)
        cJSON_AddItemToArray(ranks, rank_json(plan, rank));
    return decant_print_json(object, stream, err);
}

/* ---- the command ---- */

static decant_plan_request make_request(const decant_options *options, const decant_model_config *config,
                                        const decant_family *family)
{
    bool cuda = options->device != DECANT_DEVICE_CPU;
    decant_plan_request request = decant_plan_request_of(options, config, family, cuda);
    if (request.shape.sequences == 0)
        request.shape.sequences = SEQUENCES_DEFAULT;
    if (cuda && request.device_bytes == 0)
        request.device_bytes = DEVICE_BYTES_DEFAULT;
    return request;
}

/* A budget that the job would refuse as soon as it begins. What --size has to hold besides the linear layers
 * only the tensors tell. */
static decant_status check_budget(const decant_options *options, const decant_plan_request *request,
                                  decant_error *err)
{
    const decant_budget asked = {.bits = options->bits};
    decant_linear_sizes sizes;
    int64_t unused;
    decant_status status = decant_linear_sizes_create(&request->shape, &sizes, err);
    if (status == DECANT_OK)
        status = decant_budget_bytes(&asked, sizes.all.weights, sizes.all.smallest_bytes, &unused, err);
    if (status == DECANT_OK && options->size_bytes > 0 && options->size_bytes < sizes.all.smallest_bytes)
        status = DECANT_ERROR(err, DECANT_ERROR_USAGE,
                              "--size of %lld bytes cannot be kept: with the smallest candidates the quantized "
                              "layers alone take %lld bytes",
                              (long long)options->size_bytes, (long long)sizes.all.smallest_bytes);
    decant_linear_sizes_free(&sizes);
    return status;
}

decant_status decant_plan_command(const decant_options *options, FILE *stream, decant_error *err)
{
    decant_model_config config = {0};
    const decant_family *family;
    decant_plan plan = {0};
    decant_status status;
    DECANT_TRY(decant_family_read(options->model, &config, &family, err));
    decant_plan_request request = make_request(options, &config, family);
    if (config.position_rows > 0 && request.shape.window > config.maximum_positions)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "--window %lld, but the model has learned %lld positions",
                    (long long)request.shape.window, (long long)config.maximum_positions);
    DECANT_TRY(check_budget(options, &request, err));
    DECANT_TRY(decant_plan_choose(&request, &plan, err));
    if (options->json) {
        DECANT_TRY(print_json(&plan, &request, stream, err));
    } else {
        fprintf(stream, "%s, %d layers, %.2f billion weights to quantize; ", config.architecture, config.layers,
                (double)plan.weights / 1e9);
        print_mode(&plan, stream);
        print_ranks(&plan, stream);
        print_seconds(&plan, &request, options, stream);
        print_files(&plan, stream);
        print_verdict(&plan, &request, stream);
    }
    if (!plan.fits) {
        char advice[DECANT_ERROR_MESSAGE_BYTES - 64];
        decant_plan_describe_advice(&plan, advice, sizeof advice);
        DECANT_FAIL(err, DECANT_ERROR_MEMORY, "%d rank%s cannot hold it; what would fit: %s", plan.ranks,
                    plan.ranks == 1 ? "" : "s", advice[0] ? advice : "nothing that these options leave open");
    }
done:
    decant_plan_free(&plan);
    decant_model_config_free(&config);
    return status;
}
