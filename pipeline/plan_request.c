/* See plan_request.h. */
#include "pipeline/plan_request.h"

static double given_or(double given, double otherwise)
{
    return given > 0 ? given : otherwise;
}

/* Rates that are not given are those measured on a GPU; for the CPU there are none to fall back on. */
static decant_rates rates_of(const decant_options *options, bool cuda)
{
    decant_rates measured = {0};
    decant_recipe recipe = decant_options_recipe(options);
    if (cuda)
        measured = decant_rates_measured(&recipe);
    return (decant_rates){
        .flop_s = given_or(options->teraflops * 1e12, measured.flop_s),
        .hessian_flop_s = options->teraflops > 0 ? 0 : measured.hessian_flop_s,
        .quantized_s = given_or(options->quantize_rate * 1e6, measured.quantized_s),
        .guided = options->quantize_rate > 0 ? (decant_guided_operations){0} : measured.guided,
        .read_bytes_s = given_or((double)options->read_rate, measured.read_bytes_s),
        .write_bytes_s = given_or((double)options->write_rate, measured.write_bytes_s),
        .message_bytes_s = (double)options->message_rate,
    };
}

decant_plan_request decant_plan_request_of(const decant_options *options, const decant_model_config *config,
                                           const decant_family *family, bool cuda)
{
    return (decant_plan_request){
        .shape =
            {
                .config = config,
                .family = family,
                .element = config->element,
                .cuda = cuda,
                .full_floats = options->full_floats || !cuda,
                .threads = options->threads > 0 ? options->threads : 1,
                .calibrates = !options->statistics[0] && !decant_options_are_data_free(options),
                .has_fisher = !decant_options_are_data_free(options),
                .sequences = options->sequences,
                .window = options->window,
                .micro_batch = options->micro_batch,
                .form = (decant_fisher_form)options->fisher,
                .quantizes = options->command != DECANT_COMMAND_CALIBRATE,
                .recipe = decant_options_recipe(options),
                .bits = options->bits,
                .validation_windows = options->validation_windows,
                .validation_window = options->validation_window,
            },
        .ranks = options->ranks,
        .replicas = options->replicas,
        .memory = (decant_memory_mode)options->memory,
        .retention = (decant_retention)options->retention,
        .device_bytes = cuda ? options->device_bytes : 0,
        .host_bytes = options->host_bytes,
        .has_scratch = options->scratch[0] != '\0',
        .rates = rates_of(options, cuda),
    };
}
