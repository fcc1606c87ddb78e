/* See sensitivity.h. */
#include "stages/sensitivity.h"

#include "base/memory.h"
#include "kernels/counter_random.h"

#include <math.h>

const char *decant_sensitivity_kind_name(decant_sensitivity_kind kind)
{
    return kind == DECANT_SENSITIVITY_NOISE      ? "noise"
           : kind == DECANT_SENSITIVITY_MEASURED ? "measured"
                                                 : "fisher";
}

const char *decant_sensitivity_measure_name(decant_sensitivity_measure measure)
{
    return measure == DECANT_MEASURE_LOSS ? "loss" : "kl";
}

decant_status decant_sensitivity_create(decant_sensitivity_kind kind, int64_t layers, int levels,
                                        decant_sensitivity *sensitivity, decant_error *err)
{
    const char *what = "measured sensitivities";
    size_t count = (size_t)layers;
    decant_status status;
    *sensitivity = (decant_sensitivity){.kind = kind, .layers = layers, .levels = levels};
    decant_sensitivity *s = sensitivity;
    DECANT_TRY(
        decant_memory_allocate(count * (size_t)levels * sizeof *s->noised, what, (void **)&s->noised, err));
    DECANT_TRY(decant_memory_allocate(count * sizeof *s->candidate, what, (void **)&s->candidate, err));
    DECANT_TRY(decant_memory_allocate(count * sizeof *s->alone, what, (void **)&s->alone, err));
    DECANT_TRY(decant_memory_allocate(count * sizeof *s->value, what, (void **)&s->value, err));
    for (int64_t i = 0; i < layers; i++)
        s->candidate[i] = -1;
    decant_noise_levels(levels, s->t);
done:
    if (status != DECANT_OK)
        decant_sensitivity_free(sensitivity);
    return status;
}

void decant_sensitivity_free(decant_sensitivity *sensitivity)
{
    decant_memory_free(sensitivity->noised);
    decant_memory_free(sensitivity->candidate);
    decant_memory_free(sensitivity->alone);
    decant_memory_free(sensitivity->value);
    *sensitivity = (decant_sensitivity){0};
}

static int32_t nearest_candidate(const decant_table_row *row, double bits)
{
    int32_t nearest = 0;
    for (int32_t i = 1; i < row->candidates; i++) {
        double distance = fabs(row->candidate[i].bits - bits),
               least = fabs(row->candidate[nearest].bits - bits);
        if (distance < least || (distance == least && row->candidate[i].bits < row->candidate[nearest].bits))
            nearest = i;
    }
    return nearest;
}

void decant_sensitivity_choose(decant_sensitivity *sensitivity, const decant_error_table *table, int64_t count,
                               double bits, uint64_t seed)
{
    for (int64_t i = 0; i < table->layers; i++) {
        /* Of the layers that remain, each is among the `count` with the same probability. */
        uint64_t draw = decant_random_bits(seed, 0, (uint64_t)i) % (uint64_t)(table->layers - i);
        if (draw >= (uint64_t)count)
            continue;
        sensitivity->candidate[i] = nearest_candidate(&table->rows[i], bits);
        count--;
    }
}

uint64_t decant_sensitivity_noise_seed(uint64_t seed, int64_t layer, int level)
{
    return decant_random_bits(seed, (uint64_t)layer + 1, (uint64_t)level);
}

void decant_sensitivity_conclude(decant_sensitivity *sensitivity)
{
    sensitivity->negatives = 0;
    for (int64_t i = 0; i < sensitivity->layers; i++) {
        double value = sensitivity->kind == DECANT_SENSITIVITY_NOISE
                           ? decant_noise_slope(sensitivity->noised + i * sensitivity->levels, sensitivity->t,
                                                sensitivity->levels)
                           : sensitivity->alone[i];
        sensitivity->negatives += value < 0;
        sensitivity->value[i] = value > 0 ? value : 0;
    }
}

/* ---- the table ---- */

/* What the matrix quantized alone was expected to do. */
static double expected(const decant_sensitivity *sensitivity, const decant_table_row *row, int64_t layer)
{
    const decant_candidate *candidate = &row->candidate[sensitivity->candidate[layer]];
    return sensitivity->kind == DECANT_SENSITIVITY_NOISE ? sensitivity->value[layer] * candidate->relative
                                                         : candidate->predicted;
}

static decant_status compare(const decant_error_table *table, decant_sensitivity *sensitivity,
                             decant_error *err)
{
    decant_agreement *agreement = &sensitivity->agreement;
    double *predicted = NULL, *measured = NULL;
    decant_status status;
    size_t size_bytes = (size_t)table->layers * sizeof *predicted;
    *agreement = (decant_agreement){0};
    DECANT_TRY(decant_memory_allocate(size_bytes, "the agreement", (void **)&predicted, err));
    DECANT_TRY(decant_memory_allocate(size_bytes, "the agreement", (void **)&measured, err));
    for (int64_t i = 0; i < table->layers; i++) {
        if (sensitivity->candidate[i] < 0)
            continue;
        predicted[agreement->count] = expected(sensitivity, &table->rows[i], i);
        measured[agreement->count] = sensitivity->alone[i];
        agreement->predicted_sum += predicted[agreement->count];
        agreement->measured_sum += measured[agreement->count++];
    }
    agreement->correlation = decant_correlation(predicted, measured, (int)agreement->count);
done:
    decant_memory_free(predicted);
    decant_memory_free(measured);
    return status;
}

/* The error of a candidate, in units of the one that was measured. */
static double error_ratio(const decant_candidate *candidate, const decant_candidate *measured)
{
    if (measured->predicted > 0)
        return candidate->predicted / measured->predicted;
    return measured->relative > 0 ? candidate->relative / measured->relative : 1;
}

decant_status decant_error_table_apply(decant_error_table *table, decant_sensitivity *sensitivity,
                                       decant_error *err)
{
    if (sensitivity->kind == DECANT_SENSITIVITY_FISHER)
        return DECANT_OK;
    decant_status status = compare(table, sensitivity, err);
    if (status != DECANT_OK)
        return status;
    for (int64_t i = 0; i < table->layers; i++) {
        decant_table_row *row = &table->rows[i];
        decant_candidate measured = {0};
        if (sensitivity->kind == DECANT_SENSITIVITY_MEASURED)
            measured = row->candidate[sensitivity->candidate[i]];
        for (int j = 0; j < row->candidates; j++) {
            decant_candidate *candidate = &row->candidate[j];
            candidate->predicted = sensitivity->value[i] * (sensitivity->kind == DECANT_SENSITIVITY_NOISE
                                                                ? candidate->relative
                                                                : error_ratio(candidate, &measured));
        }
    }
    return DECANT_OK;
}
