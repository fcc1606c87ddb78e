/* See merge.h. */
#include "pipeline/merge.h"

#include "stages/merge.h"

#include <stdio.h>

decant_status decant_merge_command(decant_ranks *ranks, const decant_options *options, decant_log *log,
                                   decant_error *err)
{
    decant_statistics_origin origin;
    double start_s = decant_clock_s();
    decant_status status =
        decant_statistics_merge(ranks, (const char *const *)options->parts, options->part_count,
                                options->output, options->overwrite, &origin, err);
    if (status != DECANT_OK)
        return status;
    decant_log_say(log, "%d files, %lld sequences of %lld tokens, loss %.4f", options->part_count,
                   (long long)origin.sequences, (long long)origin.length, origin.loss);
    decant_log_event(log, "merge",
                     "\"files\":%d,\"sequences\":%lld,\"length\":%lld,\"loss\":%.17g,\"seconds\":%.3f",
                     options->part_count, (long long)origin.sequences, (long long)origin.length, origin.loss,
                     decant_clock_s() - start_s);
    return DECANT_OK;
}
