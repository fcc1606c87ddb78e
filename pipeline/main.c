/* The program: reads the command line, starts MPI where ranks are needed, runs the command, and turns the
 * agreed status into the exit status. */
#include "base/log.h"
#include "base/ranks.h"
#include "pipeline/examine.h"
#include "pipeline/export.h"
#include "pipeline/import_statistics.h"
#include "pipeline/interruption.h"
#include "pipeline/job.h"
#include "pipeline/launcher.h"
#include "pipeline/merge.h"
#include "pipeline/options.h"
#include "pipeline/plan_report.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static bool needs_ranks(decant_command command)
{
    return command == DECANT_COMMAND_RUN || command == DECANT_COMMAND_CALIBRATE ||
           command == DECANT_COMMAND_VALIDATE || command == DECANT_COMMAND_GENERATE ||
           command == DECANT_COMMAND_IMPORT_STATISTICS || command == DECANT_COMMAND_MERGE;
}

static int fail(decant_status status, const decant_error *err)
{
    fprintf(stderr, "decant: %s: %s\n", decant_status_sentence(status), err->message);
    return decant_status_exit(status);
}

/* Of processes that know it each by itself, the first says it. */
static int fail_once(decant_status status, const decant_error *err)
{
    return decant_launcher_rank() == 0 ? fail(status, err) : decant_status_exit(status);
}

/* Local. Results that nobody gets, on a disk that is full, are no success. */
static decant_status flush_results(decant_error *err)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_DISK, "standard output: the results cannot be written%s%s",
                        errno ? ": " : "", errno ? strerror(errno) : "");
}

/* A job that can be begun again leaves on a signal from now on, and its first rank says so. */
static void heed_signals(const decant_options *options, char *line, size_t size)
{
    if (options->command != DECANT_COMMAND_RUN && options->command != DECANT_COMMAND_CALIBRATE)
        return;
    snprintf(line, size, "decant: %s: the same command goes on from what was saved of it beside %s\n",
             decant_status_sentence(DECANT_INTERRUPTED), options->output);
    decant_interruption_begin(decant_launcher_rank() == 0 ? line : NULL);
}

/* Before there are ranks. */
static int fail_on_ranks(decant_status status, const decant_error *err)
{
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == err->rank)
        fprintf(stderr, "decant: rank %d: %s: %s\n", rank, decant_status_sentence(status), err->message);
    return decant_status_exit(status);
}

/* Every rank runs this; rank `err.rank` tells what happened, once. */
static int run_on_ranks(const decant_options *options)
{
    decant_ranks *ranks = NULL;
    decant_log log;
    decant_error err;
    decant_status status = decant_ranks_create(MPI_COMM_WORLD, &ranks, &err);
    if (status != DECANT_OK)
        return fail_on_ranks(status, &err);
    status = decant_log_open(ranks->rank, options->quiet, options->log[0] ? options->log : NULL, &log, &err);
    status = decant_ranks_agree(ranks, status, &err);
    if (status == DECANT_OK && options->command == DECANT_COMMAND_IMPORT_STATISTICS)
        status = decant_import_statistics(ranks, options, &err);
    else if (status == DECANT_OK && options->command == DECANT_COMMAND_MERGE)
        status = decant_merge_command(ranks, options, &log, &err);
    else if (status == DECANT_OK)
        status = decant_job_run(ranks, options, &log, &err);
    if (status == DECANT_OK)
        status = decant_ranks_agree(ranks, flush_results(&err), &err);
    decant_log_close(&log);
    int rank = ranks->rank, size = ranks->size;
    decant_ranks_destroy(&ranks);
    if (status == DECANT_OK)
        return 0;
    const bool of_a_rank = size > 1 && status != DECANT_INTERRUPTED; /* signals are all ranks' */
    if (rank == err.rank && of_a_rank)
        fprintf(stderr, "decant: rank %d: %s: %s\n", rank, decant_status_sentence(status), err.message);
    else if (rank == err.rank)
        fail(status, &err);
    return decant_status_exit(status);
}

/* The commands of one process. */
static decant_status run_alone(const decant_options *options, decant_error *err)
{
    switch (options->command) {
    case DECANT_COMMAND_HELP:
        decant_options_print_help(stdout);
        return DECANT_OK;
    case DECANT_COMMAND_VERSION:
        printf("decant %s\n", DECANT_VERSION);
        return DECANT_OK;
    case DECANT_COMMAND_PLAN:
        return decant_plan_command(options, stdout, err);
    case DECANT_COMMAND_EXPORT:
        return decant_export_command(options, stdout, err);
    default:
        return decant_examine(options, stdout, err);
    }
}

/* Several would do the same side by side, and take each other's output away. */
static decant_status require_one_process(const decant_options *options, decant_error *err)
{
    const int size = decant_launcher_size();
    if (size <= 1 || options->command == DECANT_COMMAND_HELP || options->command == DECANT_COMMAND_VERSION)
        return DECANT_OK;
    return DECANT_ERROR(err, DECANT_ERROR_USAGE,
                        "this command is one process, and %d were started; start it without mpirun or srun",
                        size);
}

int main(int argument_count, char **arguments)
{
    decant_options options;
    decant_error err;
    /* What is written beyond the limit of a file's size fails, and is told, as on a full disk. */
    signal(SIGXFSZ, SIG_IGN);
    decant_status status = decant_options_read(argument_count, arguments, &options, &err);
    if (status != DECANT_OK)
        return fail_once(status, &err);
    if (!needs_ranks(options.command)) {
        status = require_one_process(&options, &err);
        if (status != DECANT_OK)
            return fail_once(status, &err);
        status = run_alone(&options, &err);
        if (status == DECANT_OK)
            status = flush_results(&err);
        return status == DECANT_OK ? 0 : fail(status, &err);
    }
    status = decant_launcher_require_files(&err);
    if (status != DECANT_OK)
        return fail_once(status, &err);
    char last_words[sizeof options.output + 128];
    heed_signals(&options, last_words, sizeof last_words);
    decant_launcher_stay_alone();
    decant_launcher_share_no_pointer();
    int provided;
    MPI_Init_thread(&argument_count, &arguments, MPI_THREAD_FUNNELED, &provided);
    int exit_status = run_on_ranks(&options);
    decant_interruption_ignore(); /* a launcher sends them to all ranks once the first has gone */
    MPI_Finalize();
    return exit_status;
}
