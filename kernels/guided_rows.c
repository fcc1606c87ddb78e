/* See guided_rows.h. */
#include "kernels/guided_rows.h"

#include <inttypes.h>

/* Sums in F32 may make an objective that stands still appear to rise by so much of itself. */
static const double ROUNDING = 1e-4;

decant_status decant_guided_add_rows(const decant_guided_row *results, int64_t rows, decant_matrix_error *error,
                                     decant_error *err)
{
    *error = (decant_matrix_error){0, 0, 0};
    for (int64_t row = 0; row < rows; row++) {
        const decant_guided_row *result = &results[row];
        if (!(result->after <= result->before * (1 + ROUNDING)))
            return DECANT_ERROR(err, DECANT_ERROR_BUG,
                                "guided quantization raised the objective of row %" PRId64 " from %g to %g",
                                row, result->before, result->after);
        error->weighted += result->error.weighted;
        error->squared += result->error.squared;
        error->norm += result->error.norm;
    }
    return DECANT_OK;
}
