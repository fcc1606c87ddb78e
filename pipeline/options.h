/* The command line and the job file: one table of options, read by getopt_long and job_file.c into one struct.
 * Knows names, defaults and ranges; what the values do is the job's business. */
#ifndef DECANT_PIPELINE_OPTIONS_H
#define DECANT_PIPELINE_OPTIONS_H

#include "base/error.h"
#include "kernels/backend.h"
#include "pipeline/option_lists.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum decant_command {
    DECANT_COMMAND_RUN,
    DECANT_COMMAND_CALIBRATE,
    DECANT_COMMAND_ALLOCATE,
    DECANT_COMMAND_VALIDATE,
    DECANT_COMMAND_GENERATE,
    DECANT_COMMAND_INSPECT,
    DECANT_COMMAND_VERIFY,
    DECANT_COMMAND_COMPARE,
    DECANT_COMMAND_MERGE,
    DECANT_COMMAND_PLAN,
    DECANT_COMMAND_EXPORT,
    DECANT_COMMAND_IMPORT_STATISTICS,
    DECANT_COMMAND_HELP,
    DECANT_COMMAND_VERSION,
} decant_command;

typedef enum decant_device { DECANT_DEVICE_AUTO, DECANT_DEVICE_CPU, DECANT_DEVICE_CUDA } decant_device;

/* What a rank does with the activations between a sequence's forward and backward pass. */
typedef enum decant_retention {
    DECANT_RETAIN_AUTO,
    DECANT_RETAIN_ALL,
    DECANT_RETAIN_BOUNDARIES
} decant_retention;

/* Where a rank's layers are while it calibrates: all of them where it computes, or one after the other. */
typedef enum decant_memory_mode {
    DECANT_MEMORY_AUTO,
    DECANT_MEMORY_RESIDENT,
    DECANT_MEMORY_STREAMED
} decant_memory_mode;

enum { DECANT_OPTION_PATH_BYTES = 1024 };

/* In which floats sensitivities are measured. */
typedef enum decant_precision {
    DECANT_PRECISION_FULL, /* F32 */
    DECANT_PRECISION_FAST, /* as the rest of the job: BF16 on a GPU */
} decant_precision;

/* As what a container leaves, and of which element its decoded weights are then. */
typedef enum decant_export_format { DECANT_EXPORT_SAFETENSORS, DECANT_EXPORT_SQUEEZELLM } decant_export_format;
typedef enum decant_export_element {
    DECANT_EXPORT_AUTO, /* BF16 or F16, as the model */
    DECANT_EXPORT_BF16,
    DECANT_EXPORT_F16,
    DECANT_EXPORT_F32
} decant_export_element;

/* Average bits from first to last, in steps; step 0: not given. */
typedef struct decant_sweep {
    double first, last, step;
} decant_sweep;

enum { DECANT_SWEEP_POINTS_MAXIMUM = 1000 };

typedef char decant_option_path[DECANT_OPTION_PATH_BYTES]; /* empty: not given */

typedef struct decant_options {
    decant_command command;
    decant_option_path
        container; /* first argument of allocate, validate, generate, export, inspect, verify, compare */
    decant_option_path second_container; /* second argument of compare */
    char *const *parts;                  /* the arguments of merge [part_count]; borrowed from argv */
    int part_count;

    decant_option_path model;
    decant_option_path calibration;
    int64_t sequences;   /* calibration sequences to use; 0: all */
    int64_t window;      /* tokens a calibration sequence; 0: as the array has them */
    int64_t micro_batch; /* sequences that pass through the model together; 0: as many as fit 2048 tokens */
    int fisher;          /* decant_fisher_form */
    int retention;       /* decant_retention */
    decant_option_path statistics;
    bool old_statistics;          /* statistics of other weights are taken all the same */
    decant_option_path gradients; /* import-statistics */
    int replicas; /* groups of ranks that share out the sequences; 0: as decant_schedule_grid says */

    double bits;        /* average over the quantized weights of everything stored; 0: not given */
    int64_t size_bytes; /* of the whole container; 0: not given */
    decant_sweep sweep;
    unsigned methods; /* bit i: decant_method i */
    decant_bit_widths bit_widths;
    decant_number_list grid_dimensions, groups;
    double sensitive; /* fraction of a matrix, 0 … 0.5 */
    double outliers;  /* fraction of a matrix, 0 … 0.5 */
    int levels;       /* decant_level_search */
    int guided_groups, guided_passes, guided_rounds;
    double guided_damping;
    decant_fraction_list guided_sparse; /* none: --sensitive and --outliers, as k-means */
    uint64_t seed;

    int sensitivity;               /* decant_sensitivity_kind */
    int sensitivity_precision;     /* decant_precision */
    int sensitivity_measure;       /* decant_sensitivity_measure */
    int64_t sensitivity_sequences; /* to measure on */
    int noise_levels;
    double sensitivity_width;  /* bits of the matrices quantized alone */
    int64_t sensitivity_check; /* matrices quantized alone to check what noise predicts */

    decant_option_path text;
    decant_option_path choices; /* questions */
    int64_t validation_window;
    int64_t validation_windows; /* 0: all */
    decant_option_path prompt;
    int64_t new_tokens;

    decant_option_path reuse; /* a container to take unchanged matrices from */

    decant_option_path output;
    bool overwrite;
    int format;          /* decant_export_format */
    int element;         /* decant_export_element */
    int64_t shard_bytes; /* largest file of an export */
    int device;          /* decant_device */
    bool full_floats;
    int threads;          /* 0: the cores divided among the ranks of a machine */
    int ranks;            /* plan: how many to plan for */
    int memory;           /* decant_memory_mode */
    int64_t device_bytes; /* device memory of a rank; 0: what the device has */
    int64_t host_bytes;   /* host memory of a rank; 0: what the machine has */
    decant_option_path scratch;
    double teraflops;                            /* plan: 10^12 operations a second of a rank; 0: as measured */
    double quantize_rate;                        /* plan: 10^6 weights a second of a rank; 0: as measured */
    int64_t read_rate, write_rate, message_rate; /* plan: bytes a second of a rank; 0: as measured */
    double checkpoint_every;                     /* seconds */
    bool overwrite_work;
    decant_option_path log;
    bool quiet;
    bool json;
} decant_options;

/* Reads argv, and the job file that --config names (the command line wins). DECANT_ERROR_USAGE says what is
 * wrong and with which option; DECANT_ERROR_INPUT when the job file cannot be read. `--help` and `--version`
 * become commands. */
decant_status decant_options_read(int argument_count, char **arguments, decant_options *options,
                                  decant_error *err);

/* What the options ask to be tried on every matrix; `curvature`, which the statistics decide, is 0. */
decant_recipe decant_options_recipe(const decant_options *options);

/* Groups of output channels that Hessians are made for; 0: none of the methods needs them. */
int decant_options_hessian_groups(const decant_options *options);

/* Neither calibration nor statistics are given, and the methods do without. */
bool decant_options_are_data_free(const decant_options *options);

/* Is the sum that the allocation makes least a loss increase, or only a squared error? */
bool decant_options_predict_loss(const decant_options *options);

/* In words, what that prediction is to be compared with: "loss increase", or "KL divergence" where
 * sensitivities were measured by it. */
const char *decant_options_predicted_measure(const decant_options *options);

/* The text of --help. */
void decant_options_print_help(FILE *stream);

/* The options that decide what the container holds, as one line of `name=value` pairs in table order: for
 * provenance. */
void decant_options_describe(const decant_options *options, char *text, size_t size);

#endif
