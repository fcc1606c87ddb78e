/* See budget.h. */
#include "stages/budget.h"

#include <math.h>
#include <stdio.h>

enum {
    RECORD_BYTES = 768,    /* a dataset or group in HDF5's own records */
    LAYER_RECORDS = 7,     /* datasets and groups of a layer, at most */
    STANDING_RECORDS = 32, /* groups of the tables, the root, the seal */
};

int64_t decant_budget_rest(int64_t layers, int64_t datasets, int64_t data_bytes)
{
    return data_bytes + RECORD_BYTES * (datasets + LAYER_RECORDS * layers + STANDING_RECORDS);
}

decant_status decant_budget_bytes(const decant_budget *asked, int64_t weights, int64_t smallest_bytes,
                                  int64_t *bytes, decant_error *err)
{
    *bytes = -1;
    if (asked->bits > 0) {
        *bytes = (int64_t)floor(asked->bits * (double)weights / 8);
        if (*bytes < smallest_bytes)
            return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                                "--bits %g cannot be kept: the smallest candidates take %.4f bits a weight",
                                asked->bits, 8.0 * (double)smallest_bytes / (double)weights);
    }
    if (asked->file_bytes > 0) {
        int64_t left = asked->file_bytes - asked->rest_bytes;
        if (left < smallest_bytes)
            return DECANT_ERROR(
                err, DECANT_ERROR_USAGE,
                "--size of %lld bytes cannot be kept: with the smallest candidates the file takes up "
                "to %lld bytes",
                (long long)asked->file_bytes, (long long)(asked->rest_bytes + smallest_bytes));
        *bytes = *bytes < 0 || left < *bytes ? left : *bytes;
    }
    return DECANT_OK;
}

bool decant_budget_is_trusted(double bits, double predicted, char *warning)
{
    char reason[96] = "";
    if (bits < DECANT_BUDGET_TRUSTED_BITS)
        snprintf(reason, sizeof reason, "%.3f bits a weight are fewer than %g", bits,
                 DECANT_BUDGET_TRUSTED_BITS);
    else if (predicted > DECANT_BUDGET_TRUSTED_INCREASE)
        snprintf(reason, sizeof reason, "a predicted loss increase of %.3f is more than %g", predicted,
                 DECANT_BUDGET_TRUSTED_INCREASE);
    else
        return true;
    snprintf(
        warning, DECANT_BUDGET_WARNING_BYTES,
        "%s: here losses no longer add up over the layers, and the measured increase can be several times the "
        "predicted one; validate before use",
        reason);
    return false;
}
