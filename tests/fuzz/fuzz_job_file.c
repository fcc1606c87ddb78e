/* A job file: read beside a command line that lacks nothing. */
#include "tests/fuzz/input_file.h"

#include "pipeline/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    char config[64], *arguments[] = {"decant", "run", "--config", config, NULL};
    decant_options options;
    decant_error err;
    char line[1024];
    snprintf(config, sizeof config, "%s", input_file(data, size_bytes));
    if (decant_options_read(4, arguments, &options, &err) == DECANT_OK)
        decant_options_describe(&options, line, sizeof line);
    return 0;
}
