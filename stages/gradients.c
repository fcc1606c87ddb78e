/* See gradients.h. */
#include "stages/gradients.h"

#include "io/checksum.h"
#include "stages/linear_weight.h"

#include <math.h>

static decant_status check_sums(const char *file, const char *tensor, const decant_linear *linear,
                                const float *sums, decant_error *err)
{
    int64_t count = linear->rows * linear->columns;
    bool is_zero = true;
    for (int64_t i = 0; i < count; i++) {
        const char *trouble = !isfinite(sums[i]) ? "is not finite"
                              : sums[i] < 0      ? "is negative, as no square is: were the gradients squared?"
                                                 : NULL;
        is_zero &= sums[i] == 0;
        if (trouble)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: %s[%lld, %lld] = %g %s", file, tensor,
                                (long long)(i / linear->columns), (long long)(i % linear->columns),
                                (double)sums[i], trouble);
    }
    if (is_zero)
        return DECANT_ERROR(
            err, DECANT_ERROR_INPUT,
            "%s: %s is zero throughout; squares of gradients underflow in F16, take F32 or BF16", file, tensor);
    return DECANT_OK;
}

decant_status decant_gradients_read(const decant_safetensors *gradients, const decant_linear *linear,
                                    float *sums, uint32_t *checksum, decant_error *err)
{
    decant_linear_weight found;
    decant_status status;
    DECANT_TRY(decant_linear_weight_find(gradients, linear, &found, err));
    decant_elements_to_f32(found.host.element, found.host.data, linear->rows * linear->columns, sums);
    DECANT_TRY(decant_safetensors_check(gradients, err));
    DECANT_TRY(
        check_sums(decant_safetensors_find(gradients, found.tensor)->file, found.tensor, linear, sums, err));
    *checksum = decant_checksum(*checksum, found.host.data, decant_matrix_bytes(found.host));
done:
    return status;
}
