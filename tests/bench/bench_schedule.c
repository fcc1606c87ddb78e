/* What share of calibration the ranks of a pipeline wait, simulated without MPI: a model's layers on 1 to 64
 * stages, for some numbers of micro-batches. Costs are multiply-adds, activations are kept, messages take no
 * time.
 *
 * usage: bench_schedule CONFIG.json [TOKENS A SEQUENCE] */
#include "pipeline/placement.h"

#include <stdio.h>
#include <stdlib.h>

enum { STAGES_MAXIMUM = 64 };

/* The mean and the largest idle share. */
static decant_status simulate(const decant_model_config *config, int64_t tokens, int stages, int64_t batches,
                              double *mean, double *worst, decant_error *err)
{
    decant_layer_range ranges[STAGES_MAXIMUM];
    double forward_s[STAGES_MAXIMUM], backward_s[STAGES_MAXIMUM], idle[STAGES_MAXIMUM];
    double block = decant_schedule_block_cost(config, tokens), head = decant_schedule_head_cost(config, tokens);
    decant_placement_layers(config, stages, ranges);
    int active = decant_schedule_active_stages(ranges, stages);
    for (int s = 0; s < active; s++) {
        forward_s[s] = ranges[s].count * block + (s == active - 1 ? 2 * head : 0);
        backward_s[s] = 2 * ranges[s].count * block;
    }
    decant_status status = decant_schedule_idle_share(active, 0, batches, forward_s, backward_s, 0, idle, err);
    *mean = (double)(stages - active) / stages;
    *worst = active < stages;
    for (int s = 0; status == DECANT_OK && s < active; s++) {
        *mean += idle[s] / stages;
        *worst = idle[s] > *worst ? idle[s] : *worst;
    }
    return status;
}

int main(int argument_count, char **arguments)
{
    static const int64_t batches[] = {8, 32, 128, 512};
    decant_model_config config;
    decant_error err;
    if (argument_count < 2 || decant_model_config_read(arguments[1], &config, &err) != DECANT_OK) {
        fprintf(stderr, "usage: %s CONFIG.json [TOKENS]\n", arguments[0]);
        return 2;
    }
    int64_t tokens = argument_count > 2 ? atoll(arguments[2]) : 2048;
    printf("idle share, mean (largest), of %d layers, %lld tokens a sequence\n\n| stages |", config.layers,
           (long long)tokens);
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++)
        printf(" %lld micro-batches |", (long long)batches[i]);
    printf("\n| --- | --- | --- | --- | --- |\n");
    for (int stages = 1; stages <= STAGES_MAXIMUM; stages *= 2) {
        printf("| %d |", stages);
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
            double mean = 0, worst = 0;
            if (simulate(&config, tokens, stages, batches[i], &mean, &worst, &err) != DECANT_OK)
                return 1;
            printf(" %.1f %% (%.1f %%) |", 100 * mean, 100 * worst);
        }
        printf("\n");
    }
    decant_model_config_free(&config);
    return 0;
}
