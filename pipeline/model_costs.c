/* See model_costs.h. */
#include "pipeline/model_costs.h"

#include "base/log.h"
#include "stages/decode_products.h"

/* After one pass that does not count, a batch is passed once, twice, four times … until that took so long; the
 * last of these counts. */
static const double ENOUGH_S = 0.03;
enum { REPEATS_MAXIMUM = 64 }; /* of a pass of half a millisecond: enough */

const int DECANT_DECODE_BATCH[DECANT_DECODE_BATCHES] = {1, 2, 4, 8, 16};

/* Waits for the work too. */
static decant_status run(const decant_decode_products *products, int times, double *elapsed_s,
                         decant_error *err)
{
    decant_status status;
    double start_s = decant_clock_s();
    for (int i = 0; i < times; i++)
        DECANT_TRY(decant_decode_products_run(products, err));
    DECANT_TRY(products->backend->memory->synchronize(products->backend, err));
    *elapsed_s = decant_clock_s() - start_s;
done:
    return status;
}

static decant_status measure_part(decant_decode_products *products, const decant_model_part *part,
                                  decant_model_costs *costs, decant_error *err)
{
    decant_status status = DECANT_OK;
    costs->weight_bytes = decant_model_part_weight_bytes(part);
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++) {
        double elapsed_s = 0;
        DECANT_TRY(decant_decode_products_record(products, part, DECANT_DECODE_BATCH[i], err));
        DECANT_TRY(run(products, 1, &elapsed_s, err)); /* warms up */
        for (int times = 1; times <= REPEATS_MAXIMUM; times *= 2) {
            DECANT_TRY(run(products, times, &elapsed_s, err));
            costs->decode_s[i] = elapsed_s / times;
            if (elapsed_s >= ENOUGH_S)
                break;
        }
    }
done:
    return status;
}

static decant_status measure_parts(const decant_model_part *original, const decant_model_part *quantized,
                                   decant_validation_result *result, decant_error *err)
{
    decant_decode_products products;
    decant_status status;
    DECANT_TRY(decant_decode_products_create(quantized, DECANT_DECODE_BATCH[DECANT_DECODE_BATCHES - 1],
                                             &products, err));
    if (original)
        DECANT_TRY(measure_part(&products, original, &result->original_costs, err));
    DECANT_TRY(measure_part(&products, quantized, &result->quantized_costs, err));
done:
    decant_decode_products_destroy(&products);
    return status;
}

/* Adds up over ranks; bytes are exact as doubles. */
static decant_status sum_costs(decant_job *job, decant_model_costs *costs, decant_error *err)
{
    double figures[DECANT_DECODE_BATCHES + 1] = {(double)costs->weight_bytes};
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++)
        figures[i + 1] = costs->decode_s[i];
    decant_status status = decant_ranks_sum(job->ranks, figures, DECANT_DECODE_BATCHES + 1, err);
    costs->weight_bytes = (int64_t)figures[0];
    for (int i = 0; i < DECANT_DECODE_BATCHES; i++)
        costs->decode_s[i] = figures[i + 1];
    return status;
}

decant_status decant_model_costs_measure(decant_job *job, const decant_model_part *original,
                                         const decant_model_part *quantized, decant_validation_result *result,
                                         decant_error *err)
{
    bool counts = job->replica == 0 && quantized->layer_count > 0;
    int64_t unused;
    decant_status status = DECANT_OK;
    result->original_costs = result->quantized_costs = (decant_model_costs){0};
    if (counts)
        status = measure_parts(original, quantized, result, err);
    job->backend->memory->usage(job->backend, &unused, &result->peak_bytes, &unused);
    DECANT_TRY(decant_ranks_agree(job->ranks, status, err));
    DECANT_TRY(sum_costs(job, &result->original_costs, err));
    DECANT_TRY(sum_costs(job, &result->quantized_costs, err));
    DECANT_TRY(decant_ranks_maximum(job->ranks, &result->peak_bytes, 1, err));
done:
    return status;
}
