/* One row a long option: its name, what it takes, its default, its help, where the value goes. The command
 * line, the job file, --help and the provenance line are all read off this table. */
#include "pipeline/options.h"

#include "pipeline/job_file.h"
#include "pipeline/option_values.h"
#include "stages/noise_regression.h"
#include "stages/sensitivity.h"

#include <getopt.h>
#include <string.h>

#define FIELD(member) offsetof(decant_options, member)

static const option_row option_table[] = {
    {"model", OPTION_PATH, "DIR", NULL, FIELD(model), 0, 0, false,
     "Hugging Face folder: config.json and safetensors"},
    {"calibration", OPTION_PATH, "T.npy", NULL, FIELD(calibration), 0, 0, false,
     "calibration tokens, [sequences, length] or one long row"},
    {"sequences", OPTION_INTEGER, "N", "0", FIELD(sequences), 0, 1e9, false,
     "calibration sequences to use, 0 for all"},
    {"window", OPTION_INTEGER, "N", "512", FIELD(window), 2, 1e6, false,
     "tokens a calibration sequence when T.npy is one long row"},
    {"micro-batch", OPTION_INTEGER, "N", "0", FIELD(micro_batch), 0, 1e6, false,
     "sequences taken together, 0 for as many as fit 2048 tokens"},
    {"fisher", OPTION_CHOICE, "sequence|token", "token", FIELD(fisher), 0, 0, true,
     "square the gradient of a sequence, or of each token"},
    {"activations", OPTION_CHOICE, "auto|keep|recompute", "auto", FIELD(retention), 0, 0, false,
     "keep what the backward pass needs, or compute it again"},
    {"statistics", OPTION_PATH, "S.h5", NULL, FIELD(statistics), 0, 0, false,
     "Fisher sums of an earlier `calibrate`, in place of --calibration"},
    {"old-statistics", OPTION_FLAG, NULL, NULL, FIELD(old_statistics), 0, 0, false,
     "take --statistics of other weights than the model's all the same"},
    {"gradients", OPTION_PATH, "DIR", NULL, FIELD(gradients), 0, 0, false,
     "import-statistics: safetensors of squared gradients, named as the model's"},
    {"replicas", OPTION_NUMBER, "R", "0", FIELD(replicas), 0, 4096, false,
     "shares of the sequences, 0: one unless ranks outnumber layers"},
    {"bits", OPTION_REAL, "B", NULL, FIELD(bits), 1, 16, true,
     "average bits a quantized weight of all that is stored for it"},
    {"size", OPTION_SIZE, "3.5GB|3.25GiB", NULL, FIELD(size_bytes), 1, 9e18, true,
     "size of the whole container; GB are 10^9 bytes, GiB 2^30"},
    {"sweep", OPTION_SWEEP, "FROM:TO:STEP", NULL, FIELD(sweep), 1, 16, false,
     "allocate: the whole curve, e.g. 2.5:5:0.25 bits"},
    {"method", OPTION_SET, "kmeans|higgs|rtn|nf4|guided", "kmeans", FIELD(methods), 0, 0, true,
     "how weights are coded; several, as in kmeans,higgs: the best for each layer"},
    {"bit-widths", OPTION_WIDTHS, "LIST", "2,3,4,5,6", FIELD(bit_widths), DECANT_BITS_MINIMUM,
     DECANT_BITS_MAXIMUM, true, "code bits a weight to choose from, e.g. 3 or 2-4,6 or 2.5"},
    {"grid-dimension", OPTION_NUMBERS, "LIST", "2", FIELD(grid_dimensions), 1, 4, true,
     "weights that one code of higgs stands for, 1 to 4, e.g. 2,3"},
    {"group", OPTION_NUMBERS, "LIST", "0", FIELD(groups), 0, 1e6, true,
     "columns that share a scale in higgs and rtn, 0 for a whole row, e.g. 0,64"},
    {"sensitive", OPTION_FRACTION, "PERCENT", "0.05%", FIELD(sensitive), 0, 0.5, true,
     "weights kept apart for the largest Fisher value"},
    {"outliers", OPTION_FRACTION, "PERCENT", "0.40%", FIELD(outliers), 0, 0.5, true,
     "weights kept apart for the largest magnitude"},
    {"levels", OPTION_CHOICE, "exact|lloyd", "exact", FIELD(levels), 0, 0, true,
     "how levels are found: the optimum, or k-means++ and Lloyd"},
    {"guided-groups", OPTION_NUMBER, "G", "4", FIELD(guided_groups), 1, 64, true,
     "groups of output channels that have a Hessian of their own, for guided"},
    {"guided-passes", OPTION_NUMBER, "N", "8", FIELD(guided_passes), 0, 100, true,
     "times that guided rounds codes column by column, handing errors on, before its rounds"},
    {"guided-rounds", OPTION_NUMBER, "N", "3", FIELD(guided_rounds), 0, 100, true,
     "times that guided solves for levels and goes through codes; 0: k-means, to compare"},
    {"guided-damping", OPTION_FRACTION, "PERCENT", "1%", FIELD(guided_damping), 0, 1, true,
     "added to a Hessian's diagonal for guided, of its mean"},
    {"guided-sparse", OPTION_FRACTIONS, "PERCENTS", NULL, FIELD(guided_sparse), 0, 0.5, true,
     "weights that guided keeps apart for their errors, each a candidate: 0,0.2,0.45"},
    {"seed", OPTION_SEED, "N", "0", FIELD(seed), 0, 0, true,
     "seed of higgs's signs, of --levels lloyd, of noise and of random tokens"},
    {"sensitivity", OPTION_CHOICE, "fisher|noise|measured", "fisher", FIELD(sensitivity), 0, 0, true,
     "what bits are allocated by: Fisher sums, measured noise, matrices quantized alone"},
    {"sensitivity-measure", OPTION_CHOICE, "kl|loss", "kl", FIELD(sensitivity_measure), 0, 0, true,
     "what is measured: KL divergence, or the loss difference (noisy)"},
    {"sensitivity-sequences", OPTION_INTEGER, "N", "16", FIELD(sensitivity_sequences), 1, 1e9, true,
     "calibration sequences to measure on; random tokens without --calibration"},
    {"sensitivity-precision", OPTION_CHOICE, "full|fast", "full", FIELD(sensitivity_precision), 0, 0, true,
     "measure in F32, or on a GPU in BF16, which adds noise of its own"},
    {"noise-levels", OPTION_NUMBER, "N", "4", FIELD(noise_levels), 1, DECANT_NOISE_LEVELS_MAXIMUM, true,
     "sizes of noise a matrix"},
    {"sensitivity-width", OPTION_REAL, "BITS", "3", FIELD(sensitivity_width), DECANT_BITS_MINIMUM,
     DECANT_BITS_MAXIMUM, true, "width at which matrices are quantized alone"},
    {"sensitivity-check", OPTION_INTEGER, "N", "8", FIELD(sensitivity_check), 0, 1e9, true,
     "matrices quantized alone to check what noise predicts"},
    {"text", OPTION_PATH, "T.npy", NULL, FIELD(text), 0, 0, false, "tokens to validate on"},
    {"choices", OPTION_PATH, "Q.jsonl", NULL, FIELD(choices), 0, 0, false,
     "questions to answer by log-likelihood, from launch/tokenize-choices"},
    {"validation-window", OPTION_INTEGER, "N", "2048", FIELD(validation_window), 2, 1e6, false,
     "tokens a validation window when the text is one long row"},
    {"validation-windows", OPTION_INTEGER, "N", "0", FIELD(validation_windows), 0, 1e9, false,
     "validation windows to use, 0 for all"},
    {"prompt", OPTION_PATH, "T.npy", NULL, FIELD(prompt), 0, 0, false,
     "generate: tokens to go on from, one long row or [prompts, length]"},
    {"new-tokens", OPTION_INTEGER, "N", "64", FIELD(new_tokens), 1, 1e6, false,
     "generate: tokens after each prompt"},
    {"reuse", OPTION_PATH, "M.h5", NULL, FIELD(reuse), 0, 0, false,
     "an earlier container: matrices that would come out the same are taken over"},
    {"output", OPTION_PATH, "M.h5", NULL, FIELD(output), 0, 0, false, "container (or statistics) to write"},
    {"overwrite", OPTION_FLAG, NULL, NULL, FIELD(overwrite), 0, 0, false,
     "replace an output that exists, once the new one is complete"},
    {"format", OPTION_CHOICE, "safetensors|squeezellm", "safetensors", FIELD(format), 0, 0, false,
     "export: 16-bit weights that any program reads, or SqueezeLLM's packing"},
    {"element", OPTION_CHOICE, "auto|bf16|f16|f32", "auto", FIELD(element), 0, 0, false,
     "export: of the weights; auto: BF16 or F16, as the model"},
    {"shard-size", OPTION_SIZE, "SIZE", "5GB", FIELD(shard_bytes), 1, 9e18, false,
     "export: largest file of the model"},
    {"device", OPTION_CHOICE, "auto|cpu|cuda", "auto", FIELD(device), 0, 0, false,
     "where to compute; auto takes a GPU when there is one"},
    {"full-floats", OPTION_FLAG, NULL, NULL, FIELD(full_floats), 0, 0, false,
     "calibrate in F32 on a GPU too, in place of BF16"},
    {"threads", OPTION_NUMBER, "N", "0", FIELD(threads), 0, 4096, false,
     "threads a rank, 0: its share of the machine's cores"},
    {"ranks", OPTION_NUMBER, "N", "1", FIELD(ranks), 1, 4096, false, "plan: ranks to plan for"},
    {"memory", OPTION_CHOICE, "auto|resident|streamed", "auto", FIELD(memory), 0, 0, false,
     "all layers of a rank in memory, or one after the other"},
    {"device-memory", OPTION_SIZE, "SIZE", NULL, FIELD(device_bytes), 1, 9e18, false,
     "device memory of a rank; 80G and 80GiB are 80 · 2^30 bytes, 80GB 80 · 10^9"},
    {"host-memory", OPTION_SIZE, "SIZE", NULL, FIELD(host_bytes), 1, 9e18, false,
     "host memory of a rank; the rest of the machine's is the other ranks'"},
    {"scratch", OPTION_PATH, "DIR", NULL, FIELD(scratch), 0, 0, false,
     "streamed: a disk for what lies between layers; auto: if memory cannot take it"},
    {"teraflops", OPTION_REAL, "N", "0", FIELD(teraflops), 0, 1e6, false,
     "plan: 10^12 operations a second of a rank, 0 as measured on an H100"},
    {"quantize-rate", OPTION_REAL, "N", "0", FIELD(quantize_rate), 0, 1e9, false,
     "plan: 10^6 weights quantized a second by a rank, 0 as measured"},
    {"read-rate", OPTION_SIZE, "SIZE", NULL, FIELD(read_rate), 1, 9e18, false,
     "plan: bytes of weights that a rank reads a second"},
    {"write-rate", OPTION_SIZE, "SIZE", NULL, FIELD(write_rate), 1, 9e18, false,
     "plan: bytes that a rank writes a second"},
    {"message-rate", OPTION_SIZE, "SIZE", NULL, FIELD(message_rate), 1, 9e18, false,
     "plan: bytes a second from rank to rank; not counted without"},
    {"checkpoint-every", OPTION_REAL, "SECONDS", "300", FIELD(checkpoint_every), 0, 1e9, false,
     "of work that a kill may cost; what is saved lies in OUTPUT.work"},
    {"overwrite-work", OPTION_FLAG, NULL, NULL, FIELD(overwrite_work), 0, 0, false,
     "begin anew in place of going on from OUTPUT.work"},
    {"log", OPTION_PATH, "FILE", NULL, FIELD(log), 0, 0, false, "JSON lines with the figures of every stage"},
    {"quiet", OPTION_FLAG, NULL, NULL, FIELD(quiet), 0, 0, false, "no progress on stderr"},
    {"json", OPTION_FLAG, NULL, NULL, FIELD(json), 0, 0, false, "results as JSON on stdout"},
};

enum { OPTION_COUNT = sizeof option_table / sizeof *option_table };

enum { ANY_ARGUMENTS = -1 };

static const struct {
    const char *name;
    decant_command command;
    int arguments; /* containers it takes; ANY_ARGUMENTS: two or more */
    const char *synopsis, *help;
} command_table[] = {
    {"run", DECANT_COMMAND_RUN, 0, "run --model DIR --calibration T.npy --bits 3.25 --output M.h5",
     "the whole job: calibrate, quantize, allocate, write, validate"},
    {"calibrate", DECANT_COMMAND_CALIBRATE, 0, "calibrate --model DIR --calibration T.npy --output S.h5",
     "the Fisher sums alone, for later runs with --statistics"},
    {"import-statistics", DECANT_COMMAND_IMPORT_STATISTICS, 0,
     "import-statistics --model DIR --gradients DIR --sequences N --output S.h5",
     "squared gradients of another program, as SqueezeLLM's, for --statistics"},
    {"merge", DECANT_COMMAND_MERGE, ANY_ARGUMENTS, "merge S1.h5 S2.h5 ... --output S.h5",
     "add the Fisher sums of disjoint calibration parts"},
    {"allocate", DECANT_COMMAND_ALLOCATE, 1, "allocate M.h5 --bits 3.5 | --size 3.5GB | --sweep 2.5:5:0.25",
     "solve the bit allocation again for other budgets; prints the plan or the curve"},
    {"validate", DECANT_COMMAND_VALIDATE, 1, "validate M.h5 --model DIR --text T.npy --choices Q.jsonl",
     "perplexity before and after, KL divergence, top-1 agreement; accuracy on questions"},
    {"generate", DECANT_COMMAND_GENERATE, 1, "generate M.h5 --prompt T.npy --new-tokens 64 --model DIR",
     "the most likely tokens after a prompt, and tokens a second, of both models"},
    {"plan", DECANT_COMMAND_PLAN, 0, "plan --model DIR|config.json --ranks 8 --device-memory 80G",
     "what a job would hold, move and take, rank by rank, before it is run"},
    {"export", DECANT_COMMAND_EXPORT, 1, "export M.h5 --format safetensors|squeezellm --output DIR",
     "a Hugging Face folder for other programs; --model copies the tokenizer"},
    {"inspect", DECANT_COMMAND_INSPECT, 1, "inspect M.h5 [--json]", "what a container holds"},
    {"verify", DECANT_COMMAND_VERIFY, 1, "verify M.h5", "check every checksum"},
    {"compare", DECANT_COMMAND_COMPARE, 2, "compare A.h5 B.h5", "tell what differs between two containers"},
};

enum { COMMAND_COUNT = sizeof command_table / sizeof *command_table };

/* ---- the command line ---- */

static decant_status read_command(const char *word, decant_options *options, int *arguments, decant_error *err)
{
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(command_table[i].name, word) == 0) {
            options->command = command_table[i].command;
            *arguments = command_table[i].arguments;
            return DECANT_OK;
        }
    return DECANT_ERROR(err, DECANT_ERROR_USAGE, "there is no command '%s'; see decant --help", word);
}

static void set_defaults(decant_options *options)
{
    memset(options, 0, sizeof *options);
    decant_error unused;
    for (int i = 0; i < OPTION_COUNT; i++)
        if (option_table[i].fallback)
            decant_option_set(&option_table[i], option_table[i].fallback, options, &unused);
    options->bit_widths.is_default = true;
}

decant_recipe decant_options_recipe(const decant_options *options)
{
    decant_recipe recipe = {
        .widths = options->bit_widths.count,
        .widths_asked = !options->bit_widths.is_default,
        .dimensions = options->grid_dimensions.count,
        .groups = options->groups.count,
        .sensitive = options->sensitive,
        .outliers = options->outliers,
        .search = options->levels,
        .seed = options->seed,
        .hessian_groups = decant_options_hessian_groups(options),
        .guided_passes = options->guided_passes,
        .guided_rounds = options->guided_rounds,
        .guided_damping = options->guided_damping,
        .guided_sparse_count = options->guided_sparse.count,
    };
    for (int i = 0; i < DECANT_METHODS; i++)
        recipe.uses[i] = options->methods >> i & 1;
    memcpy(recipe.width, options->bit_widths.width, sizeof recipe.width);
    memcpy(recipe.dimension, options->grid_dimensions.value, sizeof recipe.dimension);
    memcpy(recipe.group, options->groups.value, sizeof recipe.group);
    memcpy(recipe.guided_sparse, options->guided_sparse.value, sizeof recipe.guided_sparse);
    return recipe;
}

int decant_options_hessian_groups(const decant_options *options)
{
    return options->methods >> DECANT_METHOD_GUIDED & 1 ? options->guided_groups : 0;
}

bool decant_options_are_data_free(const decant_options *options)
{
    decant_recipe recipe = decant_options_recipe(options);
    return !options->calibration[0] && !options->statistics[0] && !decant_recipe_needs_statistics(&recipe);
}

bool decant_options_predict_loss(const decant_options *options)
{
    return !decant_options_are_data_free(options) || options->sensitivity != DECANT_SENSITIVITY_FISHER;
}

const char *decant_options_predicted_measure(const decant_options *options)
{
    bool is_divergence = options->sensitivity != DECANT_SENSITIVITY_FISHER &&
                         options->sensitivity_measure == DECANT_MEASURE_DIVERGENCE;
    return is_divergence ? "KL divergence" : "loss increase";
}

/* What a run needs beyond a model and an output. */
static decant_status require_recipe(const decant_options *options, const char **missing, decant_error *err)
{
    decant_recipe recipe = decant_options_recipe(options);
    decant_candidate_list list;
    const int64_t any_rows = 1, any_columns = 1; /* what is offered does not depend on the shape */
    decant_status status = decant_recipe_offer(&recipe, any_rows, any_columns, &list, err);
    if (status != DECANT_OK)
        return status;
    if (decant_recipe_needs_statistics(&recipe) && !options->calibration[0] && !options->statistics[0])
        *missing = "--calibration (or --statistics)";
    else if (options->bits == 0 && options->size_bytes == 0 && list.count > 1)
        *missing = "--bits or --size (or a single --bit-widths)";
    return DECANT_OK;
}

/* Which options a command cannot do without. */
static decant_status require_options(const decant_options *options, decant_error *err)
{
    decant_command command = options->command;
    bool runs = command == DECANT_COMMAND_RUN, calibrates = command == DECANT_COMMAND_CALIBRATE;
    bool validates = command == DECANT_COMMAND_VALIDATE, plans = command == DECANT_COMMAND_PLAN;
    bool imports = command == DECANT_COMMAND_IMPORT_STATISTICS;
    bool writes = runs || calibrates || imports || command == DECANT_COMMAND_EXPORT;
    const char *missing = NULL, *for_recipe = NULL;
    if (runs || plans) {
        decant_status status = require_recipe(options, &for_recipe, err);
        if (status != DECANT_OK)
            return status;
    }
    if ((runs || calibrates || imports || plans) && !options->model[0])
        missing = "--model";
    else if (runs && for_recipe)
        missing = for_recipe;
    else if (runs && options->reuse[0] && !options->statistics[0] && !decant_options_are_data_free(options))
        missing = "--statistics, for --reuse (or methods that need none)";
    else if (calibrates && !options->calibration[0])
        missing = "--calibration";
    else if (command == DECANT_COMMAND_MERGE && options->part_count < 2)
        missing = "two statistics files or more";
    else if ((writes || command == DECANT_COMMAND_MERGE) && !options->output[0])
        missing = "--output";
    else if (imports && !options->gradients[0])
        missing = "--gradients";
    else if (imports && options->sequences == 0)
        missing = "--sequences (over how many the squares were summed)";
    else if (validates && !options->text[0] && !options->choices[0])
        missing = "--text or --choices";
    else if (command == DECANT_COMMAND_GENERATE && !options->prompt[0])
        missing = "--prompt";
    else if (command == DECANT_COMMAND_ALLOCATE && options->bits == 0 && options->size_bytes == 0 &&
             options->sweep.step == 0)
        missing = "--bits, --size or --sweep";
    if (runs && options->reuse[0] && options->sensitivity != DECANT_SENSITIVITY_FISHER)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                            "--reuse goes with --sensitivity fisher alone: what is measured depends on all "
                            "matrices, and none would be the same");
    if (options->log[0] && strcmp(options->log, options->output) == 0)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "--log and --output are both %s; take another --log",
                            options->log);
    if (missing)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "this command needs %s; see decant --help", missing);
    return DECANT_OK;
}

/* Whether the command writes what --output names. A plan takes the options of the job that it is for. */
static bool takes_output(decant_command command)
{
    return command == DECANT_COMMAND_RUN || command == DECANT_COMMAND_CALIBRATE ||
           command == DECANT_COMMAND_IMPORT_STATISTICS || command == DECANT_COMMAND_MERGE ||
           command == DECANT_COMMAND_EXPORT || command == DECANT_COMMAND_PLAN;
}

/* Indices beyond the table for the three options that are not settings. */
enum { CONFIG_INDEX = OPTION_COUNT, HELP_INDEX, VERSION_INDEX, LONG_OPTIONS };

static void make_long_options(struct option long_options[LONG_OPTIONS + 1])
{
    memset(long_options, 0, (LONG_OPTIONS + 1) * sizeof *long_options);
    for (int i = 0; i < OPTION_COUNT; i++) {
        long_options[i].name = option_table[i].name;
        long_options[i].has_arg = option_table[i].kind == OPTION_FLAG ? no_argument : required_argument;
    }
    long_options[CONFIG_INDEX] = (struct option){"config", required_argument, NULL, 0};
    long_options[HELP_INDEX] = (struct option){"help", no_argument, NULL, 0};
    long_options[VERSION_INDEX] = (struct option){"version", no_argument, NULL, 0};
}

decant_status decant_options_read(int argument_count, char **arguments, decant_options *options,
                                  decant_error *err)
{
    struct option long_options[LONG_OPTIONS + 1];
    make_long_options(long_options);
    set_defaults(options);
    bool given[OPTION_COUNT] = {false};
    const char *config = NULL;
    decant_status status;
    opterr = 0;
    optind = 1;
    for (;;) {
        int index = -1, found = getopt_long(argument_count, arguments, "", long_options, &index);
        if (found == -1)
            break;
        if (found == '?')
            return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                                "%s: no such option, or its value is missing; see decant --help",
                                arguments[optind - 1]);
        if (index == HELP_INDEX || index == VERSION_INDEX) {
            options->command = index == HELP_INDEX ? DECANT_COMMAND_HELP : DECANT_COMMAND_VERSION;
            return DECANT_OK;
        }
        if (index == CONFIG_INDEX) {
            config = optarg;
            continue;
        }
        status = decant_option_set(&option_table[index], optarg ? optarg : "yes", options, err);
        if (status != DECANT_OK)
            return status;
        given[index] = true;
    }
    if (optind == argument_count)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "which command? see decant --help");
    int containers = 0;
    status = read_command(arguments[optind], options, &containers, err);
    if (status == DECANT_OK && options->output[0] && !takes_output(options->command)) /* not of a job file */
        status = DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s writes no file, so it takes no --output",
                              arguments[optind]);
    if (status == DECANT_OK && config)
        status = decant_job_file_read(config, option_table, OPTION_COUNT, given, options, err);
    if (status != DECANT_OK)
        return status;
    if (containers == ANY_ARGUMENTS) {
        options->parts = arguments + optind + 1;
        options->part_count = argument_count - optind - 1;
        return require_options(options, err);
    }
    if (argument_count - optind - 1 != containers)
        return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%s takes %d container%s, %d given", arguments[optind],
                            containers, containers == 1 ? "" : "s", argument_count - optind - 1);
    for (int i = 0; i < containers; i++) {
        const char *path = arguments[optind + 1 + i];
        if (strlen(path) >= DECANT_OPTION_PATH_BYTES)
            return DECANT_ERROR(err, DECANT_ERROR_USAGE, "%.200s…: a path of %zu bytes; %d is the most", path,
                                strlen(path), DECANT_OPTION_PATH_BYTES - 1);
        memcpy(i == 0 ? options->container : options->second_container, path, strlen(path) + 1);
    }
    return require_options(options, err);
}

void decant_options_print_help(FILE *stream)
{
    fprintf(stream, "decant quantizes large language models, on one machine or under mpirun and srun.\n\n");
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(stream, "  decant %s\n      %s\n", command_table[i].synopsis, command_table[i].help);
    fprintf(stream, "\nOptions (a job file has the same names, a `name = value` line each):\n");
    fprintf(stream, "  --%-34s %s\n", "config JOB.ini", "read options from a job file; the command line wins");
    for (int i = 0; i < OPTION_COUNT; i++) {
        const option_row *row = &option_table[i];
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", row->name, row->argument ? " " : "",
                 row->argument ? row->argument : "");
        fprintf(stream, "  --%-34s %s%s%s%s\n", left, row->help, row->fallback ? " (" : "",
                row->fallback ? row->fallback : "", row->fallback ? ")" : "");
    }
    fprintf(stream, "  --%-34s %s\n  --%-34s %s\n", "help", "this text", "version", "the program's version");
    fprintf(stream, "\nExit status: 0 done, 2 wrong usage, 3 bad input, 4 not enough memory or disk,\n"
                    "5 device or MPI failure, 70 internal error, 75 interrupted by SIGTERM or\n"
                    "SIGUSR1: the same command goes on.\n");
}

void decant_options_describe(const decant_options *options, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < OPTION_COUNT && used < size; i++) {
        if (!option_table[i].shapes_output)
            continue;
        char value[256] = "";
        decant_option_describe(&option_table[i], options, value, sizeof value);
        used +=
            (size_t)snprintf(text + used, size - used, "%s%s=%s", used ? " " : "", option_table[i].name, value);
    }
}
