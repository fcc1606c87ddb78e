/* See write_validation.h. */
#include "stages/write_validation.h"

decant_status decant_validation_write(decant_container_writer *writer, const decant_validation_result *result,
                                      decant_error *err)
{
    const decant_comparison *sums = &result->sums;
    double targets = (double)sums->targets;
    decant_status status;
    DECANT_TRY(decant_container_set_integer(writer, "/", "validation_windows", result->windows, err));
    DECANT_TRY(decant_container_set_integer(writer, "/", "validation_targets", sums->targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "perplexity_original",
                                         decant_validation_perplexity_original(result), err));
    DECANT_TRY(decant_container_set_real(writer, "/", "perplexity_quantized",
                                         decant_validation_perplexity_quantized(result), err));
    DECANT_TRY(decant_container_set_real(writer, "/", "kl_divergence", sums->divergence / targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "top1_agreement", (double)sums->same_top / targets, err));
    DECANT_TRY(decant_container_set_real(writer, "/", "measured_loss_increase",
                                         (sums->loss_quantized - sums->loss_original) / targets, err));
done:
    return status;
}
